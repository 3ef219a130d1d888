//! Reads the stack and the mappings of a process that is about to crash. The process ends soon, so a look begins with
//! the kernel's record of the crash. It runs on separate threads, since the process decides how long it takes.
//!
//! Bounded are the looks under way ([`THREADS`]) and waiting ([`WAITING`]; the rest are dropped and counted), the bytes
//! that one look reads ([`Bounds::CRASH`]), and the findings kept until their deaths are decided ([`KEPT`]).

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use monitor_common::{
    record::{CrashSite, NO_STACK, SITE_BLOCKED},
    stack::CrashStack,
};
use tokio::{sync::Notify, time::timeout};

use super::{
    Mapping, RawFrame, Stack,
    follow::Copied,
    maps::{self, Bounds},
};
use crate::{
    host::process::{Identity, identity},
    kernel::CrashStacks,
    unwind::Registers,
};

/// Looks at a time.
const THREADS: usize = 2;
/// Stack of a thread, bytes; its buffer is on the heap.
const THREAD_STACK: usize = 128 * 1024;
/// Looks that wait for a thread. More crashes at once would find their processes gone.
const WAITING: usize = 32;
/// Looks whose findings are kept until they are taken; each has at most 8 KiB of stack and 13 KiB of mappings.
const KEPT: usize = 32;
/// How long the naming of a crash waits for its look. Longer than [`Bounds::CRASH`] allows for one.
const PATIENCE: Duration = Duration::from_millis(500);

/// What a look found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Files with code that the stack or a frame refers to; empty when the process had gone.
    pub(super) mappings: Vec<Mapping>,
    /// Registers and stack.
    pub(super) copied: Option<Box<Copied>>,
}

/// State of a look.
#[derive(Debug, Default)]
enum State {
    #[default]
    Begun,
    Done(Found),
    /// Its findings were taken, or evicted by newer ones.
    Over,
}

/// A look, shared by the thread that does it and the task that waits for it.
#[derive(Debug, Default)]
struct Look {
    state: Mutex<State>,
    done: Notify,
}

impl Look {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the findings; `None` while the look is not finished.
    fn take(&self) -> Option<Found> {
        let mut state = self.state();
        match std::mem::replace(&mut *state, State::Over) {
            State::Begun => {
                *state = State::Begun;
                None
            }
            State::Done(found) => Some(found),
            State::Over => Some(Found::default()),
        }
    }

    /// Stores the findings, unless the look is over.
    fn keep(&self, found: Found) {
        let mut state = self.state();
        if matches!(*state, State::Begun) {
            *state = State::Done(found);
        }
        drop(state);
        self.done.notify_one();
    }
}

/// A handle on the findings of a look; empty when there was no look.
#[derive(Clone, Debug, Default)]
pub(crate) struct Looked(Option<Arc<Look>>);

/// Two are the same when they wait for the same look.
impl PartialEq for Looked {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl Eq for Looked {}

impl Looked {
    /// Waits for the findings and takes them; empty after half a second, or when they were evicted.
    pub(super) async fn take(&self) -> Found {
        let Some(look) = &self.0 else { return Found::default() };
        let found = async {
            loop {
                if let Some(found) = look.take() {
                    return found;
                }
                look.done.notified().await;
            }
        };
        timeout(PATIENCE, found).await.unwrap_or_default()
    }
}

/// A crash that a thread is to look at.
struct Order {
    site: CrashSite,
    addresses: Vec<u64>,
    look: Arc<Look>,
}

/// The threads that look.
#[derive(Debug)]
pub(crate) struct Lookers {
    orders: SyncSender<Order>,
    kept: VecDeque<Weak<Look>>,
    dropped: Arc<AtomicU64>,
}

impl Lookers {
    /// Starts the threads; `stacks` reads the stacks that the kernel programs copied.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn start(stacks: CrashStacks) -> Result<Self> {
        let (orders, waiting) = sync_channel(WAITING);
        let (waiting, stacks) = (Arc::new(Mutex::new(waiting)), Arc::new(stacks));
        for _ in 0..THREADS {
            let (waiting, stacks) = (Arc::clone(&waiting), Arc::clone(&stacks));
            let thread = std::thread::Builder::new().name("defib-look".to_owned()).stack_size(THREAD_STACK);
            thread.spawn(move || work(&waiting, &stacks)).context("cannot start a thread that looks at crashes")?;
        }
        Ok(Self { orders, kept: VecDeque::new(), dropped: Arc::default() })
    }

    /// Looks dropped because too many waited.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Begins a look at a process.
    pub(crate) fn look(&mut self, site: &CrashSite, stack: &Stack) -> Looked {
        let look = Arc::new(Look::default());
        let address = |frame: &RawFrame| if let RawFrame::Address(address) = frame { Some(*address) } else { None };
        let addresses = stack.frames.iter().filter_map(address).collect();
        let order = Order { site: *site, addresses, look: Arc::clone(&look) };
        if self.orders.try_send(order).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return Looked::default();
        }
        self.kept.push_back(Arc::downgrade(&look));
        if self.kept.len() > KEPT
            && let Some(oldest) = self.kept.pop_front().and_then(|oldest| oldest.upgrade())
        {
            *oldest.state() = State::Over;
            oldest.done.notify_one();
        }
        Looked(Some(look))
    }
}

/// Body of a thread.
fn work(waiting: &Mutex<Receiver<Order>>, stacks: &CrashStacks) {
    loop {
        let order = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        // The agent ends.
        let Ok(Order { site, addresses, look }) = order else { return };
        look.keep(see(&site, addresses, stacks));
    }
}

fn see(site: &CrashSite, addresses: Vec<u64>, stacks: &CrashStacks) -> Found {
    let copied = if site.stack == NO_STACK {
        None
    } else {
        let words = stacks.read(site.stack);
        words.and_then(|words| {
            CrashStack::of_site(&words, site.header.kernel_ns, site.tgid, site.start_ns).map(copied).map(Box::new)
        })
    };
    // A process that blocks the signal may send it without end, so its maps are not read. Where a C library blocks it
    // for a moment, the frames have build ids.
    let mappings = if site.header.flags & SITE_BLOCKED == 0 {
        let wanted = copied.as_deref().map(|copied| wanted(copied, addresses));
        maps::read(site.tgid, Bounds::CRASH, |mapping| {
            wanted.as_ref().is_none_or(|wanted| {
                let first = wanted.partition_point(|&address| address < mapping.begin);
                wanted.get(first).is_some_and(|&address| address < mapping.end)
            })
        })
    } else {
        Vec::new()
    };
    // The record may be old, and the pid reused by now.
    let process = Identity { tgid: site.tgid, start_ns: site.start_ns };
    let is_another =
        !mappings.is_empty() && identity(site.tgid).ok().flatten().is_some_and(|now| !now.matches(process));
    Found { mappings: if is_another { Vec::new() } else { mappings }, copied }
}

/// All words that may be return addresses: the callers' addresses are on the stack.
fn wanted(copied: &Copied, addresses: Vec<u64>) -> Vec<u64> {
    let mut wanted = addresses;
    wanted.extend(&copied.addresses);
    wanted.extend([copied.registers.ip, copied.registers.lr]);
    wanted.extend(copied.stack.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_ne_bytes)));
    wanted.sort_unstable();
    wanted.dedup();
    wanted
}

fn copied(stack: &CrashStack) -> Copied {
    Copied {
        registers: Registers { ip: stack.ip, sp: stack.sp, bp: stack.bp, lr: stack.lr },
        addresses: stack.addresses().to_vec(),
        code: (stack.code_begin, stack.code_end),
        program_inode: stack.program_inode,
        stack: stack.stack().to_vec(),
    }
}

/// Reads any bytes as a slot, with a matching site.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(bytes: &[u8]) {
    use monitor_common::stack::WORDS;

    let word =
        |at: usize| bytes.get(at * 8..at * 8 + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_ne_bytes);
    let words: [u64; WORDS] = std::array::from_fn(word);
    let [tgid, tid] = bytemuck::cast::<u64, [u32; 2]>(words[2]);
    if let Some(stack) = CrashStack::of_site(&words, words[0], tgid, words[1]) {
        let copied = copied(stack);
        assert_eq!(stack.tid, tid);
        assert!(super::follow::fuzz(&copied) && wanted(&copied, Vec::new()).len() <= WORDS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable as _;

    fn site(tgid: u32) -> CrashSite {
        let start_ns = identity(tgid).ok().flatten().map_or(0, |identity| identity.start_ns);
        CrashSite { tgid, start_ns, stack: NO_STACK, ..CrashSite::zeroed() }
    }

    fn stack(tgid: u32) -> Stack {
        Stack { tgid, ..Stack::default() }
    }

    #[tokio::test]
    async fn a_look_finds_what_a_process_has_mapped_and_is_taken_once() {
        let mut lookers = Lookers::start(CrashStacks::none()).expect("threads");
        let own = std::process::id();
        let looked = lookers.look(&site(own), &stack(own));
        let program = std::env::current_exe().expect("a path").display().to_string();
        assert!(looked.take().await.mappings.iter().any(|mapping| mapping.path == program));
        assert_eq!(looked.take().await, Found::default());
        let mut blocked = site(own);
        blocked.header.flags = SITE_BLOCKED;
        assert_eq!(lookers.look(&blocked, &stack(own)).take().await, Found::default());
        let other = CrashSite { start_ns: 1, ..site(own) };
        assert_eq!(lookers.look(&other, &stack(own)).take().await, Found::default(), "another has the pid");
        assert_eq!(Looked::default().take().await, Found::default());
    }

    #[tokio::test]
    async fn a_storm_is_dropped_and_counted_and_what_is_kept_is_bounded() {
        let (orders, waiting) = sync_channel(WAITING);
        let mut lookers = Lookers { orders, kept: VecDeque::new(), dropped: Arc::default() };
        let looks: Vec<_> = (0..1000).map(|tgid| lookers.look(&site(tgid), &stack(tgid))).collect();
        assert_eq!((lookers.dropped(), lookers.kept.len()), (1000 - WAITING as u64, KEPT));
        // As a thread would.
        for order in waiting.try_iter() {
            order.look.keep(Found { mappings: Vec::new(), copied: Some(Box::default()) });
        }
        (0..KEPT as u32).for_each(|tgid| drop(lookers.look(&site(tgid), &stack(tgid))));
        assert_eq!(looks.iter().filter(|look| look.0.is_some()).count(), WAITING);
        assert!(lookers.kept.len() <= KEPT);
        assert_eq!(looks[0].take().await, Found::default(), "newer ones pushed it out");
    }

    #[test]
    fn only_mappings_with_an_address_on_the_stack_are_wanted() {
        let word = 0x7f00_0000_1234_u64;
        let copied = Copied {
            registers: Registers { ip: 5, sp: 0, bp: 0, lr: 0 },
            addresses: vec![9, 5],
            stack: [word.to_ne_bytes(), 3_u64.to_ne_bytes()].concat(),
            ..Copied::default()
        };
        assert_eq!(wanted(&copied, vec![7]), [0, 3, 5, 7, 9, word]);
    }
}

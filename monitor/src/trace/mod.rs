//! Where a service's memory grows, by call stack: for suspects only, bounded in time and cost.
//!
//! ```text
//! a service ──▶ its processes ──▶ their allocators                    process.rs, allocator.rs (files: crate::unwind)
//! how long to watch, how long to rest                                 pace.rs (pure)
//! a watch ──ring──▶ memory that was handed out, with the stack        watch.rs (programs: kernel/allocations.rs)
//! what came back is taken off ──▶ what stays                          ledger.rs (pure), held.rs
//! by stack, in bytes an hour, with names                              stacks.rs, result.rs ──▶ growth.rs
//! for people and for tools; kept                                       show/
//! ```
//!
//! Memory that a process maps past its allocator is followed beside that, call by call, in mappings.rs (pure).
//!
//! Why not page faults: the function that first touches a page is seldom the one whose memory stays in it. Loud ones, which
//! allocate and release, fault the heap in; a quiet leak then takes the blocks that they leave. Measured on a leak of 64-byte blocks
//! beside loud functions, first touches named the leaking function for none of its growth.
//!
//! All of it runs in a process of its own, which ends with its work: programs and their cost end with it, and other people's
//! files are read far from the agent.

mod allocator;
mod child;
pub(crate) mod growth;
mod held;
mod ledger;
mod mappings;
mod pace;
mod process;
mod result;
pub(crate) mod show;
mod stacks;
mod suspects;
mod watch;

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    pin::pin,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use jiff::Timestamp;
use tokio::time::sleep;

use crate::{
    host::{
        cgroup_walk::{MEMBERS, members},
        clock,
        process::{is_alive, memory_held, processor_seconds},
    },
    kernel::Allocations,
    unwind::Cache,
};

use growth::{Ended, Growth};
use ledger::{Ledger, ProcessId, StackId, Sum};
use mappings::Mappings;
use pace::{Plan, Price};
use process::{Files, Process};
use stacks::Stacks;

pub(crate) use child::{NoTrace, Order, trace as by_child};
pub(crate) use show::summary::Summary;
pub(crate) use suspects::Suspects;

/// What to trace, and for how long.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The service, for the record.
    pub(crate) service: String,
    /// Directory of its cgroup; processes of those inside it belong to it too.
    pub(crate) cgroup: PathBuf,
    /// How long.
    pub(crate) duration: Duration,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Look {
    /// Since the beginning.
    pub(crate) elapsed: Duration,
    /// Processes that are traced now.
    pub(crate) processes: usize,
    /// Calls seen.
    pub(crate) calls: u64,
    /// Growth that stays, as far as it can be told by now, bytes an hour.
    pub(crate) bytes_per_hour: f64,
    /// See [`growth::Cost::share`].
    pub(crate) cost_share: f64,
}

/// Processes that are traced at a time: those with the most memory.
const PROCESSES_MAX: usize = 8;
/// Watches before the cost is judged.
const ENOUGH: u64 = 3;
/// Between two looks at which processes there are, and what they have mapped.
const ROSTER: Duration = Duration::from_secs(5);
/// Between two looks whether memory is still held.
const HELD: Duration = Duration::from_secs(4);
/// Between two looks at mappings that were told of meanwhile: the ring has room for 126.
const MAPPED: Duration = Duration::from_millis(100);
/// What watching them may take of what the service uses: half of what all of it may. Judged as if it had been traced for some seconds.
const MAPPED_SHARE: f64 = pace::SHARE_MAX / 2.0;
const JUDGED_AFTER: f64 = 5.0;
/// Between two words of how far it is.
const LOOK: Duration = Duration::from_secs(1);
/// Memory stays when it was not given back for a quarter of the trace, within these bounds.
const MATURITY: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(60));

/// Traces until the time is up, nothing is left to trace or `stop` completes. `look` is called about once a second.
///
/// # Errors
/// When nothing can be traced here: no rights, no uprobes in this kernel, no process, no allocator that is known.
pub(crate) async fn follow(
    options: &Options,
    stop: impl Future<Output = ()>,
    mut look: impl FnMut(Look),
) -> Result<Growth> {
    let mut trace = Trace::begin(options)?;
    let mut stop = pin!(stop);
    let began = Instant::now();
    let (mut roster_at, mut held_at, mut look_at, mut mapped_at) = (began + ROSTER, began + HELD, began, began);
    let ended = loop {
        let now = Instant::now();
        let elapsed = now - began;
        if elapsed >= options.duration {
            break Ended::Done;
        }
        if now >= roster_at {
            trace.look_at_processes(&options.cgroup)?;
            roster_at = now + ROSTER;
        }
        if now >= mapped_at {
            trace.look_at_mappings()?;
            mapped_at = now + MAPPED;
        }
        if now >= held_at {
            trace.look_at_memory();
            held_at = now + HELD;
        }
        if trace.subjects.is_empty() {
            let never = trace.totals.watches == 0 && !trace.notes.is_empty();
            ensure!(!never, "{} cannot be watched: {}", options.service, trace.notes.join("; "));
            break Ended::ServiceGone;
        }
        if trace.is_too_dear() {
            break Ended::TooDear;
        }
        if now >= look_at {
            look(trace.look(elapsed)?);
            look_at = now + LOOK;
        }
        let next = roster_at.min(held_at).min(look_at).min(mapped_at).min(began + options.duration);
        // What comes later could not mature.
        let may_watch = elapsed + trace.maturity < options.duration;
        let step = async {
            match trace.subjects.values().map(|subject| subject.due).min() {
                Some(due) if may_watch && due < next => {
                    sleep(due.saturating_duration_since(Instant::now())).await;
                    trace.watch().await
                }
                _ => {
                    sleep(next.saturating_duration_since(Instant::now())).await;
                    Ok(())
                }
            }
        };
        tokio::select! {
            done = step => done?,
            () = &mut stop => break Ended::Asked,
        }
    };
    trace.look_at_mappings()?;
    trace.look_at_memory();
    trace.finish(options, began.elapsed(), ended).await
}

/// All that a trace knows.
struct Trace {
    began: Timestamp,
    allocations: Allocations,
    files: Files,
    subjects: HashMap<ProcessId, Subject>,
    ledger: Ledger,
    mappings: Mappings,
    maturity: Duration,
    stacks: Stacks,
    cache: Cache,
    /// By whether a process bears return probes.
    prices: [Price; 2],
    totals: Totals,
    notes: Vec<String>,
    /// Programs of all processes that were traced, with how many processes.
    programs: HashMap<u16, u32>,
    /// Files whose allocators were watched.
    seen_allocators: BTreeSet<u16>,
    /// Resident anonymous memory at the beginning.
    anonymous: u64,
    next_id: ProcessId,
}

/// A process that is traced, and when it is watched next.
struct Subject {
    process: Process,
    memory: held::Memory,
    allocators: Vec<u16>,
    /// Whether it bears return probes.
    returns: bool,
    /// They stand as long as it is traced.
    mapping_probes: Option<watch::Probes>,
    plan: Plan,
    due: Instant,
    /// Processor time at the last watch, seconds, and when that was.
    processor: (f64, Instant),
    /// What it uses of a processor, seconds in a second.
    uses: f64,
    /// Since when it is traced, and seconds taken from it.
    since: Instant,
    taken: f64,
}

/// Sums for the account of what it took.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    watched: f64,
    watches: u64,
    calls: u64,
    /// Seconds taken from the service, and those among them for its mappings.
    taken: f64,
    for_mappings: f64,
    /// Hits of probes for mappings, mappings, and records without room, at the last look.
    mapping_hits: u64,
    mappings: u64,
    lost: u64,
    /// Seconds of processor time that the traced processes have used meanwhile.
    used: f64,
    /// Seconds that they were traced, all processes together.
    traced: f64,
}

impl Trace {
    fn begin(options: &Options) -> Result<Self> {
        let allocations = Allocations::load()?;
        let maturity = (options.duration / 4).clamp(MATURITY.0, MATURITY.1);
        let mut trace = Self {
            began: Timestamp::now(),
            allocations,
            files: Files::default(),
            subjects: HashMap::new(),
            ledger: Ledger::new(maturity),
            mappings: Mappings::new(maturity),
            maturity,
            stacks: Stacks::default(),
            cache: Cache::default(),
            prices: watch::PRICES,
            totals: Totals::default(),
            notes: Vec::new(),
            programs: HashMap::new(),
            seen_allocators: BTreeSet::new(),
            anonymous: 0,
            next_id: 0,
        };
        ensure!(
            !members(&options.cgroup, MEMBERS)?.beginning().is_empty(),
            "no process is in {}: is the service running?",
            options.cgroup.display()
        );
        trace.look_at_processes(&options.cgroup)?;
        if trace.subjects.is_empty() {
            let why = if trace.notes.is_empty() { "they have all gone".to_owned() } else { trace.notes.join("; ") };
            bail!("none of the processes of {} can be traced: {why}", options.service);
        }
        trace.anonymous = trace.memory();
        trace.prices = watch::prices(&mut trace.allocations)
            .inspect_err(|error| tracing::debug!("what a probe costs cannot be measured: {error:#}"))
            .unwrap_or(watch::PRICES);
        Ok(trace)
    }

    fn note(&mut self, note: String) {
        if self.notes.len() < 16 && !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn memory(&self) -> u64 {
        self.subjects.values().filter_map(|subject| memory_held(subject.process.identity.tgid)).sum()
    }

    /// Which processes there are: those with the most memory are traced.
    fn look_at_processes(&mut self, cgroup: &Path) -> Result<()> {
        let gone: Vec<_> = self
            .subjects
            .iter()
            .filter(|(_, subject)| !is_alive(subject.process.identity))
            .map(|(&id, _)| id)
            .collect();
        for id in gone {
            self.end(id);
        }
        for subject in self.subjects.values_mut() {
            subject.process.look(&mut self.files);
            subject.allocators = subject.process.allocators(&self.files);
        }
        let known = |tgid: u32| self.subjects.values().any(|subject| subject.process.identity.tgid == tgid);
        let found = members(cgroup, MEMBERS)?;
        let is_cut = found.is_cut();
        let mut members: Vec<_> = found
            .beginning()
            .into_iter()
            .filter(|&tgid| !known(tgid))
            .filter_map(|tgid| Some((memory_held(tgid)?, tgid)))
            .collect();
        members.sort_unstable_by(|a, b| b.cmp(a));
        let room = PROCESSES_MAX.saturating_sub(self.subjects.len());
        if members.len() > room {
            let all = members.len() + self.subjects.len();
            self.note(format!("of {all} processes the {PROCESSES_MAX} with the most memory are traced"));
        }
        if is_cut {
            self.note("it has more processes than are looked at".to_owned());
        }
        for (_, tgid) in members.into_iter().take(room) {
            self.add(tgid);
        }
        Ok(())
    }

    fn add(&mut self, tgid: u32) {
        let id = self.next_id;
        let process = match Process::open(tgid, &mut self.files) {
            Ok(process) => process,
            Err(error) => {
                if is_running(tgid) {
                    self.note(format!("{error:#}"));
                }
                return;
            }
        };
        let allocators = process.allocators(&self.files);
        let name = |number| self.files.get(number).map(|file| file.path.clone());
        // Its functions have no return probes.
        let is_go = process.program.and_then(|number| self.files.get(number)).is_some_and(|file| file.module.is_go());
        let program = process.program.and_then(name).unwrap_or_else(|| format!("process {tgid}"));
        if allocators.is_empty() {
            self.note(if is_go {
                format!("{program} is a Go program without symbols: build it without -ldflags=-s")
            } else {
                format!(
                    "{program} has no allocator that is known (malloc of a shared library, or one whose symbols it has): do not \
                     strip it, or link the C library dynamically"
                )
            });
            return;
        }
        // With another allocator beside it, whose a block is cannot be told.
        let is_glibc = allocators.iter().filter_map(|&number| name(number)).all(|path| path.ends_with("/libc.so.6"));
        let memory = match held::Memory::open(tgid, is_glibc) {
            Ok(memory) => memory,
            Err(error) => return self.note(format!("{error:#}")),
        };
        if let Some(number) = process.program {
            *self.programs.entry(number).or_default() += 1;
        }
        self.seen_allocators.extend(&allocators);
        self.next_id += 1;
        let (plan, now) = (pace::first(), Instant::now());
        let processor = (processor_seconds(tgid).unwrap_or(0.0), now);
        self.subjects.insert(
            id,
            Subject {
                process,
                memory,
                allocators,
                returns: bears_return_probes(tgid) && !is_go,
                mapping_probes: None,
                plan,
                due: now + plan.rest,
                processor,
                uses: 0.0,
                since: now,
                taken: 0.0,
            },
        );
        self.watch_mappings(id);
    }

    fn end(&mut self, id: ProcessId) {
        if let Some(subject) = self.subjects.remove(&id) {
            for address in self.ledger.addresses(id) {
                self.allocations.forget(subject.process.identity.tgid, address, false);
            }
            self.ledger.ended(id, clock::boot_ns());
            self.mappings.ends(id, clock::boot_ns());
        }
    }

    /// Looks at what came of mappings, and at what that has taken.
    fn look_at_mappings(&mut self) -> Result<()> {
        self.drain_mappings();
        let counts = self.allocations.counts()?;
        let (hits, mappings) = (counts.mapping_hits - self.totals.mapping_hits, counts.mappings - self.totals.mappings);
        // Of what was lost since the last look, watches of the allocator have a part only where mappings came as well.
        let lost = mappings > 0 && counts.lost > self.totals.lost;
        (self.totals.mapping_hits, self.totals.mappings, self.totals.lost) =
            (counts.mapping_hits, counts.mappings, counts.lost);
        let dearest = |of: fn(&Price) -> f64| self.prices.iter().map(of).fold(0.0, f64::max);
        let taken = hits as f64 * dearest(|price| price.hit) + mappings as f64 * dearest(|price| price.sample);
        self.totals.taken += taken;
        self.totals.for_mappings += taken;
        let given = self.given().max(JUDGED_AFTER * pace::PROCESSOR_MIN);
        if lost || self.totals.for_mappings > MAPPED_SHARE * given {
            let now = clock::boot_ns();
            let ended: Vec<_> = self
                .subjects
                .iter_mut()
                .filter_map(|(&id, subject)| subject.mapping_probes.take().map(|_| id))
                .collect();
            for &id in &ended {
                self.mappings.ends(id, now);
            }
            if !ended.is_empty() {
                self.note("it maps memory so often that only its allocator is watched from then on".to_owned());
            }
        }
        Ok(())
    }

    /// What stays by now, by stack.
    fn growth(&self) -> HashMap<StackId, Sum> {
        let now = clock::boot_ns();
        let mut growth = self.ledger.growth(now);
        for (stack, sum) in self.mappings.growth(now) {
            growth.entry(stack).or_default().join(&sum);
        }
        growth
    }

    /// Takes off what is held no longer, or written again.
    fn look_at_memory(&mut self) {
        let now = clock::boot_ns();
        for (&id, Subject { process, memory, .. }) in &self.subjects {
            if is_alive(process.identity) {
                for address in self.ledger.look(id, now, |address, size| memory.print(address, size)) {
                    self.allocations.forget(process.identity.tgid, address, true);
                }
                self.mappings.look(id, |address, size| memory.resident(address, size));
            }
        }
    }

    fn look(&mut self, elapsed: Duration) -> Result<Look> {
        let growth = self.growth();
        Ok(Look {
            elapsed,
            processes: self.subjects.len(),
            calls: self.totals.calls,
            bytes_per_hour: growth.values().map(|sum| sum.sure_per_hour).sum(),
            cost_share: self.share(),
        })
    }

    /// Whether even the rarest watching takes more than is promised. A first look is too short to tell.
    fn is_too_dear(&self) -> bool {
        self.totals.watches >= ENOUGH && self.subjects.values().all(|subject| subject.plan.too_dear)
    }

    /// Seconds of processor time of which a share may be taken.
    fn given(&self) -> f64 {
        self.totals.used.max(self.totals.traced * pace::PROCESSOR_MIN)
    }

    /// Share of the service's processor time that was taken from it, as the pace counts it.
    fn share(&self) -> f64 {
        let given = self.given();
        if given > 0.0 { (self.totals.taken / given).min(1.0) } else { 0.0 }
    }
}

/// A filter of system calls may end a process for the one by which return probes come back to the kernel (6.11 to 6.13), and a stack of
/// addresses to return to that the processor keeps beside must agree with the changed ones.
fn bears_return_probes(tgid: u32) -> bool {
    let status = crate::host::process::status(tgid).unwrap_or_default();
    let says = |key, is_bad: fn(&str) -> bool| status.lines().any(|line| line.strip_prefix(key).is_some_and(is_bad));
    !status.is_empty()
        && !says("Seccomp:", |value| value.trim() != "0")
        && !says("x86_Thread_features:", |value| value.contains("shstk"))
}

fn is_running(tgid: u32) -> bool {
    crate::host::process::identity(tgid).is_ok_and(|identity| identity.is_some_and(is_alive))
}

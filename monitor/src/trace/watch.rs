//! One watch: probes are attached, calls sampled for a moment, probes detached; then what came back within it is set aside, and the
//! rest goes to the ledger.

use std::{
    collections::HashMap,
    hint::black_box,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use monitor_common::allocation::Record;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::sleep;

use super::{
    Trace,
    allocator::Points,
    ledger::{ProcessId, StackId},
    pace::{self, Met, Plan, Price},
    process::{Files, Mapped, Process},
    stacks::Frame,
};
use crate::{
    host::{
        clock,
        process::{is_alive, processor_seconds},
    },
    kernel::{Allocations, Counts, Probe, Role},
};

/// What a hit costs when it cannot be measured, without and with return probes: as on slow machines.
pub(super) const PRICES: [Price; 2] = [
    Price { hit: 12e-6, sample: 6e-6, watch: 1e-3, linger: 0.1 },
    Price { hit: 3e-6, sample: 6e-6, watch: 1e-3, linger: 0.1 },
];

/// Between two looks into the ring, so that it never fills.
const DRAIN: Duration = Duration::from_millis(2);

/// Places to probe, by file.
type Places = Vec<(PathBuf, Vec<(Role, u64)>)>;

/// `which` of the points of each file, [`Points::in_order`] or [`Points::for_mappings`].
fn places(allocators: &[u16], files: &Files, which: fn(&Points, bool) -> Vec<(Role, u64)>, returns: bool) -> Places {
    let of = |file: &Mapped| (file.reachable.clone(), which(&file.points, returns));
    allocators.iter().filter_map(|&number| files.get(number)).map(of).filter(|(_, places)| !places.is_empty()).collect()
}

/// Attached probes. Dropped, they go all at once where the kernel can do that, else in the opposite order.
pub(super) struct Probes(Vec<Probe>);

impl Probes {
    fn attach(allocations: &mut Allocations, places: &Places, tgid: u32) -> Result<Self> {
        let mut probes = Self(Vec::new());
        for (file, places) in places {
            probes.0.extend(allocations.attach(file, places, tgid)?);
        }
        Ok(probes)
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        if self.0.iter().all(|probe| matches!(probe, Probe::Many(_))) {
            // Each waits some ten milliseconds when it has gone, in which the others would still be hit.
            thread::scope(|scope| {
                for probe in self.0.drain(..) {
                    scope.spawn(move || drop(probe));
                }
            });
        }
        while let Some(probe) = self.0.pop() {
            drop(probe);
        }
    }
}

impl Trace {
    /// Watches the process that is due.
    pub(super) async fn watch(&mut self) -> Result<()> {
        let due = self.subjects.iter().min_by_key(|(_, subject)| subject.due).map(|(&id, _)| id);
        let Some(id) = due else { return Ok(()) };
        let Some(subject) = self.subjects.get(&id) else { return Ok(()) };
        let (tgid, plan) = (subject.process.identity.tgid, subject.plan);
        let before = self.allocations.counts()?;
        let probes = match Probes::attach(
            &mut self.allocations,
            &places(&subject.allocators, &self.files, Points::in_order, subject.returns),
            tgid,
        ) {
            Ok(probes) => probes,
            Err(error) => {
                // A process that goes meanwhile is no failure.
                if is_alive(subject.process.identity) {
                    self.note(format!("{error:#}"));
                    self.end(id);
                }
                return Ok(());
            }
        };
        // Now that they stand: they may stand in another process that has its id by now.
        if !is_alive(subject.process.identity) {
            drop(probes);
            self.end(id);
            return Ok(());
        }
        let mut watch = Watch::default();
        let (begin, open) = (clock::boot_ns(), self.allocations.counts()?);
        self.allocations.sample(plan.share)?;
        let end = Instant::now() + plan.watch;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            sleep(left.min(DRAIN)).await;
            self.drain(&mut watch);
        }
        self.allocations.sample(0.0)?;
        let (closed, seconds) = (self.allocations.counts()?, (clock::boot_ns() - begin) as f64 / 1e9);
        // Release is still seen while the probes go.
        drop(probes);
        let after = self.allocations.counts()?;
        self.drain(&mut watch);
        self.ledger.watched(id, begin, seconds, watch.calls);
        for ((tgid, address), waiting) in watch.waiting {
            let Some(id) = self.id_of(tgid) else { continue };
            let left =
                self.ledger.handed_out((id, address), waiting.stack, waiting.size, waiting.weight, waiting.time_ns);
            for (owner, address) in left {
                if let Some(subject) = self.subjects.get(&owner) {
                    self.allocations.forget(subject.process.identity.tgid, address, false);
                }
            }
        }
        let met = met(&plan, seconds, before, open, closed, after);
        self.account(id, &met);
        Ok(())
    }

    /// From now on, every mapping that a process gets past its allocator is seen.
    pub(super) fn watch_mappings(&mut self, id: ProcessId) {
        let Some(subject) = self.subjects.get_mut(&id) else { return };
        let places = places(&subject.allocators, &self.files, Points::for_mappings, subject.returns);
        if places.is_empty() {
            return;
        }
        match Probes::attach(&mut self.allocations, &places, subject.process.identity.tgid) {
            Ok(probes) => {
                subject.mapping_probes = Some(probes);
                self.mappings.begins(id, clock::boot_ns());
            }
            // Its allocator is watched all the same, if that can be.
            Err(error) => tracing::debug!("mappings are not watched: {error:#}"),
        }
    }

    /// Takes what came between watches, when no calls are sampled.
    pub(super) fn drain_mappings(&mut self) {
        self.drain(&mut Watch::default());
    }

    /// Plans the next watch of a process, after one that has met this.
    fn account(&mut self, id: ProcessId, met: &Met) {
        self.totals.watches += 1;
        self.totals.watched += met.seconds;
        self.totals.calls += met.calls;
        let Some(subject) = self.subjects.get_mut(&id) else { return };
        let price = self.prices[usize::from(subject.returns)];
        self.totals.taken += price.of(met);
        let (used, now) = (processor_seconds(subject.process.identity.tgid), Instant::now());
        let (before, at) = subject.processor;
        if let Some(used) = used {
            let span = (now - at).as_secs_f64();
            self.totals.used += used - before;
            self.totals.traced += span;
            // Its clock has steps of 10 ms: short spans tell nothing.
            let uses = (used - before) / span.max(1e-3);
            subject.uses = if subject.uses == 0.0 { uses } else { subject.uses * 0.7 + uses * 0.3 };
            subject.processor = (used, now);
        }
        subject.taken += price.of(met);
        let traced = (now - subject.since).as_secs_f64();
        subject.plan = pace::next(met, subject.uses, &price).owing(subject.taken, traced, subject.uses);
        subject.due = now + subject.plan.rest;
    }

    /// Takes what is in the ring. Every sample is unwound, also of memory that comes back: of which stack how much does is told by it.
    fn drain(&mut self, watch: &mut Watch) {
        let (now, mut gone) = (clock::boot_ns(), Vec::new());
        let Self { allocations, subjects, stacks, cache, files, mappings, .. } = self;
        let who = |tgid: u32| subjects.iter().find(|(_, subject)| subject.process.identity.tgid == tgid);
        allocations.drain(|record| match record {
            Record::Sample(sample) => {
                // What was there before had been released, or it could not be handed out again.
                gone.push((sample.tgid, sample.address, None));
                if let Some((_, subject)) = who(sample.tgid) {
                    let (frames, whole) = subject.process.unwind(sample, cache);
                    let stack = stacks.id(&frames, whole);
                    let weight = f64::from(u32::MAX) / f64::from(sample.share.max(1));
                    *watch.calls.entry(stack).or_default() += weight;
                    let waiting = Waiting { stack, size: sample.size, weight, time_ns: sample.time_ns };
                    watch.waiting.insert((sample.tgid, sample.address), waiting);
                }
            }
            Record::Gone(word) => {
                let size = watch.waiting.remove(&(word.tgid, word.address)).map(|waiting| waiting.size);
                gone.push((word.tgid, word.address, (word.released == 1).then_some(size)));
            }
            Record::Mapped(sample) => {
                if let Some((&id, subject)) = who(sample.tgid) {
                    let (frames, whole) = subject.process.unwind(sample, cache);
                    if is_allocator_s(&frames, files) {
                        mappings.unmapped(id, sample.address, sample.size);
                    } else {
                        mappings.mapped(id, sample.address, sample.size, stacks.id(&frames, whole), sample.time_ns);
                    }
                }
            }
            Record::Unmapped(word) => {
                if let Some((&id, _)) = who(word.tgid) {
                    mappings.unmapped(id, word.address, word.released);
                }
            }
        });
        for (tgid, address, released) in gone {
            let Some(id) = self.id_of(tgid) else { continue };
            let followed = self.ledger.gone(id, address, now);
            if let Some(size) = released.and_then(|size| size.or(followed))
                && let Some(subject) = self.subjects.get_mut(&id)
            {
                subject.memory.released(address, size);
            }
        }
    }

    fn id_of(&self, tgid: u32) -> Option<ProcessId> {
        self.subjects.iter().find(|(_, subject)| subject.process.identity.tgid == tgid).map(|(&id, _)| id)
    }
}

/// Whether an allocator has asked for a mapping, to hand out of it: the C library itself, or a function that is known for one.
fn is_allocator_s(frames: &[Frame], files: &Files) -> bool {
    let own = frames.first().and_then(|frame| frame.module);
    let is_in_allocator = |frame: &Frame| {
        frame.module.and_then(|number| files.get(number)).is_some_and(|file| file.points.is_allocator(frame.address))
    };
    frames.get(1).is_some_and(|caller| caller.module == own) || frames.iter().any(is_in_allocator)
}

/// What one watch has seen.
#[derive(Default)]
struct Watch {
    /// Samples whose release may still be seen in it, by process and address.
    waiting: HashMap<(u32, u64), Waiting>,
    /// Calls by stack, as far as samples stand for them.
    calls: HashMap<StackId, f64>,
}

/// A sample.
struct Waiting {
    stack: StackId,
    size: u64,
    weight: f64,
    time_ns: u64,
}

fn met(plan: &Plan, seconds: f64, before: Counts, open: Counts, closed: Counts, after: Counts) -> Met {
    Met {
        share: plan.share,
        seconds,
        calls: closed.calls - open.calls,
        hits: after.hits - before.hits,
        samples: after.sampled - before.sampled,
    }
}

/// Calls with which the price is measured, and how often.
const ROUNDS: u32 = 100;
const TRIES: u32 = 5;

/// What probes cost on this machine, without and with return probes: measured on our own allocator, by a thread that is not our first,
/// which some kernels do not see when many probes are attached at once.
pub(super) fn prices(allocations: &mut Allocations) -> Result<[Price; 2]> {
    let mut files = Files::default();
    let own = Process::open(std::process::id(), &mut files)?;
    let mut price = |returns| {
        let places = places(&own.allocators(&files), &files, Points::in_order, returns);
        let price = measure(allocations, &places)?;
        if price.is_none() && allocations.all_at_once() {
            allocations.one_by_one();
            return measure(allocations, &places)?.context("our own calls were not seen");
        }
        price.context("our own calls were not seen")
    };
    Ok([price(false)?, price(true)?])
}

/// `None`: nothing was seen.
fn measure(allocations: &mut Allocations, places: &Places) -> Result<Option<Price>> {
    let bare = exercise();
    allocations.sample(0.0)?;
    let began = Instant::now();
    let probes = Probes::attach(allocations, places, std::process::id())?;
    let attached = began.elapsed().as_secs_f64();
    let before = allocations.counts()?;
    let plain = exercise();
    let between = allocations.counts()?;
    allocations.sample(1.0)?;
    let sampled = exercise();
    allocations.sample(0.0)?;
    let after = allocations.counts()?;
    let began = Instant::now();
    drop(probes);
    let detached = began.elapsed().as_secs_f64();
    allocations.drain(|_| {});
    // Of all tries, the least of which was taken.
    let hits = (between.hits - before.hits) / u64::from(TRIES);
    if hits < u64::from(ROUNDS) {
        return Ok(None);
    }
    let samples = ((after.sampled - between.sampled) as f64 / f64::from(TRIES)).max(1.0);
    let hit = (plain - bare).max(0.0) / hits as f64;
    let sample = (sampled - plain).max(0.0) / samples;
    tracing::debug!(hit, sample, attached, detached, hits, "the price of a probe");
    // The process waits only while its memory is changed, a small part of the time in which probes come and go.
    // All at once they are gone when the kernel begins to wait. One by one each waits for the one before; after three the often hit
    // ones are gone.
    let count = places.iter().map(|(_, places)| places.len()).sum::<usize>().max(1) as f64;
    let linger = if allocations.all_at_once() { 0.0 } else { detached * (3.0 / count).min(1.0) };
    Ok(Some(Price { hit, sample, watch: attached.min(1e-3), linger }))
}

/// Seconds of processor time that it takes to allocate and release: the least of some tries, since others disturb.
fn exercise() -> f64 {
    let work = || {
        let used = || {
            let time = clock_gettime(ClockId::ThreadCPUTime);
            time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
        };
        let tries = (0..TRIES).map(|_| {
            let began = used();
            for _ in 0..ROUNDS / 10 {
                let blocks: [Vec<u8>; 10] = std::array::from_fn(|_| black_box(Vec::with_capacity(100)));
                drop(black_box(blocks));
            }
            used() - began
        });
        tries.fold(f64::INFINITY, f64::min)
    };
    // A thread that panics has measured nothing.
    thread::spawn(work).join().unwrap_or(0.0)
}

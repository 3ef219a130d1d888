//! What was handed out before our eyes and has not come back: by stack, and how fast it grows. Pure.
//!
//! An allocator is watched for moments only. Of the memory that was handed out in them, most comes back at once; what does not is
//! followed, and taken off when it is released in a later watch, when its address is handed out again, when its process has it no
//! longer, or when it is written again: an address that was released and handed out between two watches looks like that, and what
//! leaks is left alone. What is still there after a while, the ledger's maturity, counts as growth that stays;
//! less of it where much of what a stack had got went after that, since more will go. Watches are a known part of the time, so
//! that growth by the time watched is an estimate of the whole.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

/// From when on what is in it is compared.
const FILLED_NS: u64 = 2_000_000_000;
/// Samples that are followed. When there are more, those that have stayed longest are taken as staying for good.
pub(super) const FOLLOWED: usize = 7_000;

/// Standard deviations by which an estimate may be wrong and is still taken for sure, as in 39 of 40 cases. Five samples of one stack
/// are needed for that.
const SURE: f64 = 2.0;

/// A process of the service, numbered in the order of their appearance.
pub(super) type ProcessId = u16;
/// A stack, see [`super::stacks`].
pub(super) type StackId = u32;

/// See the module.
#[derive(Debug)]
pub(super) struct Ledger {
    /// Memory counts as staying when it was not given back for so long.
    maturity_ns: u64,
    followed: BTreeMap<(ProcessId, u64), Sample>,
    /// The same in the order of their time.
    order: BTreeSet<(u64, ProcessId, u64)>,
    settled: HashMap<(ProcessId, StackId), Sum>,
    /// Samples that had stayed for so long, and went all the same.
    late: HashMap<StackId, u64>,
    watches: Vec<Watch>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    stack: StackId,
    size: u64,
    /// Calls that it stands for.
    weight: f64,
    time_ns: u64,
    /// What was in it when it was first looked at.
    print: Option<u64>,
}

#[derive(Clone, Debug)]
struct Watch {
    process: ProcessId,
    begin_ns: u64,
    seconds: f64,
    /// Calls by stack, those that each sample stands for.
    calls: HashMap<StackId, f64>,
}

/// What stays of one stack.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sum {
    /// Bytes an hour, estimate.
    pub(super) bytes_per_hour: f64,
    /// Samples that stayed.
    pub(super) samples: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// The same, less what it may be by chance: samples stand for many calls, and of every stack a little is left lying.
    pub(super) sure_per_hour: f64,
    /// Calls that the samples stand for.
    calls: f64,
    /// Bytes times the calls that each stands for, and the sum of their squares.
    weighed: f64,
    squares: f64,
}

impl Sum {
    /// Adds memory of which none was overlooked, in so many hours; [`Self::settle`] comes last.
    pub(super) fn add_exact(&mut self, bytes: u64, hours: f64) {
        let per_hour = bytes as f64 / hours;
        self.samples += 1;
        self.bytes += bytes;
        self.bytes_per_hour += per_hour;
        self.squares += per_hour * per_hour;
    }

    /// Adds what another has of the same stack.
    pub(super) fn join(&mut self, other: &Self) {
        self.samples += other.samples;
        self.bytes += other.bytes;
        self.bytes_per_hour += other.bytes_per_hour;
        self.sure_per_hour += other.sure_per_hour;
    }

    /// Tells what of it is sure: what comes seldom may have come by chance.
    pub(super) fn settle(&mut self) {
        self.sure_per_hour = (self.bytes_per_hour - SURE * self.squares.sqrt()).max(0.0);
    }

    fn add(&mut self, sample: &Sample) {
        self.samples += 1;
        self.bytes += sample.size;
        self.calls += sample.weight;
        let weighed = sample.size as f64 * sample.weight;
        self.weighed += weighed;
        self.squares += weighed * weighed;
    }
}

impl Ledger {
    /// An empty one.
    pub(super) fn new(maturity: Duration) -> Self {
        Self {
            maturity_ns: u64::try_from(maturity.as_nanos()).unwrap_or(u64::MAX),
            followed: BTreeMap::new(),
            order: BTreeSet::new(),
            settled: HashMap::new(),
            late: HashMap::new(),
            watches: Vec::new(),
        }
    }

    /// A watch of `process` began then, took so long, and saw these calls by stack, as far as its samples stand for them.
    pub(super) fn watched(&mut self, process: ProcessId, begin_ns: u64, seconds: f64, calls: HashMap<StackId, f64>) {
        self.watches.push(Watch { process, begin_ns, seconds, calls });
    }

    /// Memory was handed out, and not given back before the watch ended. What was followed in the same place had been given back
    /// before. Returns what is followed no longer.
    pub(super) fn handed_out(
        &mut self,
        (process, address): (ProcessId, u64),
        stack: StackId,
        size: u64,
        weight: f64,
        time_ns: u64,
    ) -> Vec<(ProcessId, u64)> {
        let mut left = self.within(process, address, size.max(1));
        for &(process, address) in &left {
            self.gone(process, address, time_ns);
        }
        self.gone(process, address, time_ns);
        self.followed.insert((process, address), Sample { stack, size, weight, time_ns, print: None });
        self.order.insert((time_ns, process, address));
        if self.followed.len() > FOLLOWED {
            left.extend(self.settle_oldest());
        }
        left
    }

    /// What is followed and lies, with a part at least, in this memory; but not what begins where it does.
    fn within(&self, process: ProcessId, address: u64, size: u64) -> Vec<(ProcessId, u64)> {
        let behind = (process, address.saturating_add(size));
        let before = self.followed.range((process, 0)..(process, address)).next_back();
        let before = before.filter(|((_, at), sample)| at.saturating_add(sample.size) > address);
        let inside = self.followed.range((process, address)..behind).filter(|((_, at), _)| *at != address);
        before.into_iter().chain(inside).map(|(&key, _)| key).collect()
    }

    /// Memory was given back, or is another's. Returns its size; `None` when it was not followed.
    pub(super) fn gone(&mut self, process: ProcessId, address: u64, now_ns: u64) -> Option<u64> {
        let sample = self.forget(process, address)?;
        if self.is_mature(sample.time_ns, now_ns) {
            *self.late.entry(sample.stack).or_default() += 1;
        }
        Some(sample.size)
    }

    fn forget(&mut self, process: ProcessId, address: u64) -> Option<Sample> {
        let sample = self.followed.remove(&(process, address))?;
        self.order.remove(&(sample.time_ns, process, address));
        Some(sample)
    }

    /// A process has ended. Its memory has come back, but what had matured by then had grown while it lived.
    pub(super) fn ended(&mut self, process: ProcessId, now_ns: u64) {
        let all: Vec<_> = self.of(process).map(|(&key, &sample)| (key, sample)).collect();
        for ((_, address), sample) in all {
            if self.is_mature(sample.time_ns, now_ns) {
                self.settled.entry((process, sample.stack)).or_default().add(&sample);
            }
            self.forget(process, address);
        }
        let maturity_ns = self.maturity_ns;
        self.watches.retain(|watch| watch.process != process || watch.begin_ns + maturity_ns <= now_ns);
    }

    /// Addresses that are followed in a process.
    pub(super) fn addresses(&self, process: ProcessId) -> Vec<u64> {
        self.of(process).map(|(&(_, address), _)| address).collect()
    }

    /// Looks at all memory that is followed in a process. `print` tells what is in it, by address and size; `None` when it is held no
    /// longer. Returns the addresses that are followed no longer.
    pub(super) fn look(
        &mut self,
        process: ProcessId,
        now_ns: u64,
        mut print: impl FnMut(u64, u64) -> Option<u64>,
    ) -> Vec<u64> {
        let mut gone = Vec::new();
        for (&(_, address), sample) in self.followed.range_mut((process, 0)..=(process, u64::MAX)) {
            // It has to be filled first.
            if sample.time_ns + FILLED_NS > now_ns {
                continue;
            }
            match (print(address, sample.size), sample.print) {
                (Some(new), None) => sample.print = Some(new),
                (Some(new), Some(old)) if new == old => {}
                _ => gone.push(address),
            }
        }
        for &address in &gone {
            self.gone(process, address, now_ns);
        }
        gone
    }

    /// What stays, by stack.
    pub(super) fn growth(&self, now_ns: u64) -> HashMap<StackId, Sum> {
        let mut sums = self.settled.clone();
        for (&(process, _), sample) in &self.followed {
            if self.is_mature(sample.time_ns, now_ns) {
                sums.entry((process, sample.stack)).or_default().add(sample);
            }
        }
        let mut watched: HashMap<ProcessId, f64> = HashMap::new();
        let mut calls: HashMap<StackId, f64> = HashMap::new();
        for watch in self.watches.iter().filter(|watch| self.is_mature(watch.begin_ns, now_ns)) {
            *watched.entry(watch.process).or_default() += watch.seconds;
            for (&stack, count) in &watch.calls {
                *calls.entry(stack).or_default() += count;
            }
        }
        let mut growth: HashMap<StackId, Sum> = HashMap::new();
        for ((process, stack), sum) in sums {
            let seconds = watched.get(&process).copied().unwrap_or(0.0);
            if seconds > 0.0 {
                let total = growth.entry(stack).or_default();
                total.samples += sum.samples;
                total.bytes += sum.bytes;
                total.calls += sum.calls;
                total.bytes_per_hour += sum.weighed / seconds * 3600.0;
                total.squares += sum.squares / (seconds * seconds) * 3600.0 * 3600.0;
            }
        }
        let residue = residue(&growth, &calls);
        for (stack, sum) in &mut growth {
            let late = self.late.get(stack).copied().unwrap_or(0);
            let of_all = calls.get(stack).copied().unwrap_or(sum.calls).max(sum.calls);
            let real = (1.0 - residue * of_all / sum.calls).max(0.0);
            sum.bytes_per_hour *= real * sum.samples as f64 / (sum.samples + late) as f64;
            sum.settle();
        }
        growth
    }

    fn of(&self, process: ProcessId) -> impl Iterator<Item = (&(ProcessId, u64), &Sample)> {
        self.followed.range((process, 0)..=(process, u64::MAX))
    }

    fn is_mature(&self, since_ns: u64, now_ns: u64) -> bool {
        since_ns.saturating_add(self.maturity_ns) <= now_ns
    }

    fn settle_oldest(&mut self) -> Option<(ProcessId, u64)> {
        let (_, process, address) = self.order.pop_first()?;
        let sample = self.followed.remove(&(process, address))?;
        self.settled.entry((process, sample.stack)).or_default().add(&sample);
        Some((process, address))
    }
}

/// The share of calls whose memory is left lying though it was given back: the middle one of all stacks, each counted by its calls. It
/// is next to nothing where release is seen, and some hundredths where a collector gives back what is then not used again at once.
fn residue(growth: &HashMap<StackId, Sum>, calls: &HashMap<StackId, f64>) -> f64 {
    let share = |(stack, &count): (&StackId, &f64)| (growth.get(stack).map_or(0.0, |sum| sum.calls / count), count);
    let mut shares: Vec<(f64, f64)> = calls.iter().map(share).collect();
    shares.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let half = shares.iter().map(|(_, count)| count).sum::<f64>() / 2.0;
    let mut before = 0.0;
    let middle = shares.iter().find(|(_, count)| {
        before += count;
        before >= half
    });
    // Where most calls are those of a leak, nothing is told by the middle.
    middle.map(|&(share, _)| share).filter(|share| *share < 0.2).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const LATER: u64 = 100 * SECOND;

    #[test]
    fn what_stays_is_told_by_the_time_that_was_watched() {
        let mut ledger = Ledger::new(Duration::from_secs(20));
        ledger.watched(0, SECOND, 0.5, HashMap::new());
        // Each tenth call was sampled.
        ledger.handed_out((0, 0x1000), 7, 100, 10.0, SECOND);
        ledger.handed_out((0, 0x2000), 7, 100, 10.0, SECOND);
        ledger.handed_out((0, 0x3000), 8, 4096, 10.0, SECOND);
        ledger.gone(0, 0x3000, 2 * SECOND);
        let growth = ledger.growth(LATER);
        assert_eq!(growth.len(), 1);
        assert_eq!(growth[&7].bytes_per_hour, 2000.0 / 0.5 * 3600.0);
        assert_eq!((growth[&7].samples, growth[&7].bytes), (2, 200));
    }

    #[test]
    fn of_a_stack_whose_memory_goes_late_less_is_taken_as_staying() {
        let mut ledger = Ledger::new(Duration::from_secs(20));
        ledger.watched(0, SECOND, 1.0, HashMap::new());
        for n in 0..4 {
            ledger.handed_out((0, 0x1000 * n), 1, 100, 1.0, SECOND);
        }
        ledger.gone(0, 0x1000, 2 * SECOND);
        assert_eq!(ledger.growth(LATER)[&1].bytes_per_hour, 300.0 * 3600.0, "that one was early");
        ledger.gone(0, 0x2000, 60 * SECOND);
        assert_eq!(ledger.growth(LATER)[&1].bytes_per_hour, 200.0 * 3600.0 * 2.0 / 3.0);
    }

    #[test]
    fn what_every_stack_leaves_lying_is_no_growth() {
        let mut ledger = Ledger::new(Duration::from_secs(20));
        // Two in a hundred of what loud ones get is left; all of what the leak gets.
        let calls = HashMap::from([(1, 2000.0), (2, 1000.0), (3, 40.0)]);
        ledger.watched(0, SECOND, 1.0, calls);
        for (stack, count, size) in [(1, 40, 800), (2, 20, 500), (3, 40, 100)] {
            for n in 0..count {
                ledger.handed_out((0, 0x10_0000 * u64::from(stack) + 0x1000 * n), stack, size, 1.0, SECOND);
            }
        }
        let growth = ledger.growth(LATER);
        assert_eq!((growth[&1].bytes_per_hour, growth[&2].bytes_per_hour), (0.0, 0.0));
        let leak = growth[&3];
        assert!((3900.0..=4000.0).contains(&(leak.bytes_per_hour / 3600.0)), "{leak:?}");
        assert!((2600.0..2900.0).contains(&(leak.sure_per_hour / 3600.0)), "less what may be chance: {leak:?}");
    }

    #[test]
    fn one_sample_that_stands_for_many_calls_is_not_sure() {
        let mut ledger = Ledger::new(Duration::from_secs(20));
        ledger.watched(0, SECOND, 1.0, HashMap::from([(1, 35_000.0), (2, 20.0), (3, 100_000.0)]));
        ledger.handed_out((0, 0x1000), 1, 4096, 35.0, SECOND);
        for n in 2..22 {
            ledger.handed_out((0, 0x1000 * n), 2, 100, 1.0, SECOND);
        }
        let growth = ledger.growth(LATER);
        assert!(growth[&1].bytes_per_hour > growth[&2].bytes_per_hour);
        assert!(growth[&1].sure_per_hour < growth[&2].sure_per_hour);
    }

    #[test]
    fn what_has_just_come_does_not_count_nor_does_its_watch() {
        let mut ledger = Ledger::new(Duration::from_secs(20));
        ledger.watched(0, SECOND, 1.0, HashMap::new());
        ledger.handed_out((0, 0x1000), 1, 100, 1.0, SECOND);
        ledger.watched(0, 90 * SECOND, 1.0, HashMap::new());
        ledger.handed_out((0, 0x2000), 1, 5000, 1.0, 90 * SECOND);
        assert_eq!(ledger.growth(LATER)[&1].bytes_per_hour, 100.0 * 3600.0);
        assert_eq!(ledger.growth(200 * SECOND)[&1].bytes_per_hour, 5100.0 / 2.0 * 3600.0);
    }

    #[test]
    fn an_address_that_is_handed_out_again_had_been_given_back() {
        let mut ledger = Ledger::new(Duration::from_secs(20));
        ledger.watched(0, SECOND, 1.0, HashMap::new());
        ledger.handed_out((0, 0x1000), 1, 100, 1.0, SECOND);
        ledger.handed_out((0, 0x1000), 2, 50, 1.0, 2 * SECOND);
        // So had what reaches into its place, from before and inside.
        ledger.handed_out((0, 0x8000), 3, 64, 1.0, 2 * SECOND);
        ledger.handed_out((0, 0x8040), 3, 64, 1.0, 2 * SECOND);
        ledger.handed_out((0, 0x8080), 4, 64, 1.0, 2 * SECOND);
        assert_eq!(ledger.handed_out((0, 0x8010), 5, 0x70, 1.0, 3 * SECOND), [(0, 0x8000), (0, 0x8040)]);
        // The same address in another process is other memory.
        ledger.watched(1, SECOND, 1.0, HashMap::new());
        ledger.handed_out((1, 0x1000), 1, 10, 1.0, SECOND);
        let growth = ledger.growth(LATER);
        assert_eq!(growth[&2].bytes, 50);
        assert_eq!(growth[&1].bytes, 10);
        assert!(!growth.contains_key(&3));
        assert_eq!((growth[&4].bytes, growth[&5].bytes), (64, 0x70));
    }

    #[test]
    fn a_process_that_ends_soon_has_not_grown() {
        let mut ledger = Ledger::new(Duration::from_secs(20));
        ledger.watched(0, SECOND, 1.0, HashMap::new());
        ledger.handed_out((0, 0x1000), 1, 100, 1.0, SECOND);
        ledger.ended(0, 5 * SECOND);
        assert!(ledger.growth(LATER).is_empty());
        ledger.watched(1, SECOND, 1.0, HashMap::new());
        ledger.handed_out((1, 0x1000), 1, 100, 1.0, SECOND);
        ledger.ended(1, 50 * SECOND);
        assert_eq!(ledger.growth(LATER)[&1].bytes_per_hour, 360_000.0);
        assert!(ledger.addresses(1).is_empty());
    }

    #[test]
    fn what_is_written_again_or_held_no_longer_is_taken_off() {
        let mut ledger = Ledger::new(Duration::from_secs(20));
        ledger.watched(0, SECOND, 1.0, HashMap::new());
        for address in [0x1000, 0x2000, 0x3000] {
            ledger.handed_out((0, address), 1, 100, 1.0, SECOND);
        }
        assert!(ledger.look(0, 2 * SECOND, |_, _| None).is_empty(), "too early to tell");
        assert!(ledger.look(0, 5 * SECOND, |address, _| Some(address)).is_empty());
        assert_eq!(
            ledger.look(0, 9 * SECOND, |address, _| Some(if address == 0x2000 { 7 } else { address })),
            [0x2000]
        );
        assert_eq!(ledger.look(0, 13 * SECOND, |address, _| (address != 0x3000).then_some(address)), [0x3000]);
        assert_eq!(ledger.growth(LATER)[&1].bytes, 100);
    }

    #[test]
    fn no_more_are_followed_than_there_is_room_for() {
        let mut ledger = Ledger::new(Duration::from_secs(20));
        ledger.watched(0, 0, 1.0, HashMap::new());
        let mut gave_way = Vec::new();
        for n in (0..FOLLOWED as u64 + 10).map(|n| n * 8) {
            gave_way.extend(ledger.handed_out((0, n), 1, 1, 1.0, n));
        }
        assert_eq!(gave_way, (0..10).map(|n| (0, n * 8)).collect::<Vec<_>>());
        assert_eq!(ledger.addresses(0).len(), FOLLOWED);
        assert_eq!(ledger.growth(LATER)[&1].bytes, FOLLOWED as u64 + 10);
    }
}

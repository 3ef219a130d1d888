//! Memory that was taken from the kernel before our eyes, past every allocator, and is still there: by stack, and how fast it grows. Pure.
//!
//! Every such call is seen while its process is traced, so this is no estimate; only of what is mapped the resident part counts, as
//! memory that nobody has touched is none.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use super::ledger::{ProcessId, StackId, Sum};

/// Mappings that are known at a time; beyond, they are counted as lost.
const MAPPINGS_MAX: usize = 8192;

/// See the module.
#[derive(Debug)]
pub(super) struct Mappings {
    /// As for the allocator's memory: what was not given back for so long stays.
    maturity_ns: u64,
    held: BTreeMap<(ProcessId, u64), Mapping>,
    /// Since when a process is traced, until when one was that has ended, and what had stayed in it by then.
    since: HashMap<ProcessId, u64>,
    ended: Vec<Ended>,
    lost: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Mapping {
    size: u64,
    resident: u64,
    stack: StackId,
    time_ns: u64,
}

#[derive(Debug)]
struct Ended {
    seconds: f64,
    stayed: Vec<Mapping>,
}

impl Mappings {
    /// None.
    pub(super) fn new(maturity: Duration) -> Self {
        Self {
            maturity_ns: u64::try_from(maturity.as_nanos()).unwrap_or(u64::MAX),
            held: BTreeMap::new(),
            since: HashMap::new(),
            ended: Vec::new(),
            lost: 0,
        }
    }

    /// From now on every call of this process is seen.
    pub(super) fn begins(&mut self, process: ProcessId, now_ns: u64) {
        self.since.insert(process, now_ns);
    }

    /// Memory was mapped; what was there before is no more.
    pub(super) fn mapped(&mut self, process: ProcessId, address: u64, size: u64, stack: StackId, time_ns: u64) {
        self.unmapped(process, address, size);
        if self.held.len() < MAPPINGS_MAX {
            self.held.insert((process, address), Mapping { size, resident: 0, stack, time_ns });
        } else {
            self.lost += 1;
        }
    }

    /// Memory is mapped no more: whole mappings, or parts.
    pub(super) fn unmapped(&mut self, process: ProcessId, address: u64, size: u64) {
        let end = address.saturating_add(size);
        let before = self.held.range((process, 0)..(process, address)).next_back();
        let inside = self.held.range((process, address)..(process, end));
        let met: Vec<_> = before.into_iter().chain(inside).map(|(&key, &mapping)| (key, mapping)).collect();
        for ((_, at), mapping) in met {
            let behind = at.saturating_add(mapping.size);
            if behind <= address {
                continue;
            }
            self.held.remove(&(process, at));
            for (at, size) in [(at, address.saturating_sub(at)), (end, behind.saturating_sub(end))] {
                if size > 0 {
                    let resident = mapping.resident.min(size);
                    self.held.insert((process, at), Mapping { size, resident, ..mapping });
                }
            }
        }
    }

    /// A process has ended, or is seen no longer. What had stayed by then had grown while it lived.
    pub(super) fn ends(&mut self, process: ProcessId, now_ns: u64) {
        let Some(seconds) = self.seconds(process, now_ns) else { return };
        let all: Vec<_> = self.of(process).map(|(&key, &mapping)| (key, mapping)).collect();
        let stayed =
            all.iter().map(|&(_, mapping)| mapping).filter(|mapping| self.is_mature(mapping, now_ns)).collect();
        for (key, _) in all {
            self.held.remove(&key);
        }
        self.since.remove(&process);
        self.ended.push(Ended { seconds, stayed });
    }

    /// Asks of each mapping of a process, by address and size, how many of its bytes are resident.
    pub(super) fn look(&mut self, process: ProcessId, mut resident: impl FnMut(u64, u64) -> u64) {
        for (&(_, address), mapping) in self.held.range_mut((process, 0)..=(process, u64::MAX)) {
            mapping.resident = resident(address, mapping.size);
        }
    }

    /// Mappings that found no room here.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// What stays, by stack.
    pub(super) fn growth(&self, now_ns: u64) -> HashMap<StackId, Sum> {
        let mut growth: HashMap<StackId, Sum> = HashMap::new();
        let mut add = |mapping: &Mapping, seconds: f64| {
            if seconds > 0.0 && mapping.resident > 0 {
                growth.entry(mapping.stack).or_default().add_exact(mapping.resident, seconds / 3600.0);
            }
        };
        for (&(process, _), mapping) in &self.held {
            if self.is_mature(mapping, now_ns) {
                add(mapping, self.seconds(process, now_ns).unwrap_or(0.0));
            }
        }
        for Ended { seconds, stayed } in &self.ended {
            stayed.iter().for_each(|mapping| add(mapping, *seconds));
        }
        growth.values_mut().for_each(Sum::settle);
        growth
    }

    fn of(&self, process: ProcessId) -> impl Iterator<Item = (&(ProcessId, u64), &Mapping)> {
        self.held.range((process, 0)..=(process, u64::MAX))
    }

    fn is_mature(&self, mapping: &Mapping, now_ns: u64) -> bool {
        mapping.time_ns.saturating_add(self.maturity_ns) <= now_ns
    }

    /// How long what is mature by now could come.
    fn seconds(&self, process: ProcessId, now_ns: u64) -> Option<f64> {
        let since = self.since.get(&process)?;
        Some(now_ns.saturating_sub(self.maturity_ns).saturating_sub(*since) as f64 / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const MIB: u64 = 1 << 20;

    fn mappings() -> Mappings {
        let mut mappings = Mappings::new(Duration::from_secs(10));
        mappings.begins(0, 0);
        mappings
    }

    fn told(mappings: &Mappings, now: u64, stack: StackId) -> (u64, u64) {
        let sum = mappings.growth(now * SECOND).get(&stack).copied().unwrap_or_default();
        (sum.samples, sum.bytes_per_hour as u64)
    }

    #[test]
    fn what_stays_and_is_touched_is_growth() {
        let mut mappings = mappings();
        for n in 0..10 {
            mappings.mapped(0, n * 16 * MIB, 4 * MIB, 1, n * SECOND);
            mappings.mapped(0, 1 << 40, 4 * MIB, 2, n * SECOND);
        }
        mappings.mapped(0, 1 << 41, 4 * MIB, 3, SECOND);
        mappings.unmapped(0, 1 << 41, 4 * MIB);
        mappings.look(0, |address, size| if address < 32 * MIB { 0 } else { size / 2 });
        // 46 seconds, less the ten in which nothing can have stayed for long.
        assert_eq!(told(&mappings, 46, 1), (8, 8 * 2 * MIB * 100));
        assert_eq!(told(&mappings, 46, 2).0, 1, "one address is one mapping");
        assert_eq!(told(&mappings, 46, 3), (0, 0));
        assert_eq!(told(&mappings, 15, 1).0, 4, "what has just come does not count");
    }

    #[test]
    fn one_that_came_once_is_no_trend() {
        let mut mappings = mappings();
        mappings.mapped(0, 0, 1000 * MIB, 1, SECOND);
        (0..20).for_each(|n| mappings.mapped(0, (1 << 40) + n * MIB, MIB, 2, SECOND));
        mappings.look(0, |_, size| size);
        let growth = mappings.growth(100 * SECOND);
        assert!(growth[&1].sure_per_hour == 0.0 && growth[&2].sure_per_hour > 0.0);
    }

    #[test]
    fn parts_go_by_themselves() {
        let mut mappings = mappings();
        mappings.mapped(0, 10 * MIB, 10 * MIB, 1, SECOND);
        mappings.unmapped(0, 12 * MIB, 2 * MIB);
        mappings.unmapped(0, 0, 11 * MIB);
        mappings.unmapped(1, 0, 1 << 40);
        mappings.unmapped(0, 19 * MIB, 100 * MIB);
        let left: Vec<_> = mappings.held.iter().map(|(&(_, at), mapping)| (at / MIB, mapping.size / MIB)).collect();
        assert_eq!(left, [(11, 1), (14, 5)]);
    }

    #[test]
    fn of_a_process_that_ends_counts_what_had_stayed_by_then() {
        let mut mappings = mappings();
        mappings.mapped(0, MIB, MIB, 1, SECOND);
        mappings.mapped(0, 2 * MIB, MIB, 1, 45 * SECOND);
        mappings.look(0, |_, size| size);
        mappings.ends(0, 46 * SECOND);
        assert_eq!(told(&mappings, 1000, 1), (1, MIB * 100));
        assert!(mappings.held.is_empty());
    }

    #[test]
    fn there_is_an_end_to_what_is_known() {
        let mut mappings = mappings();
        (0..MAPPINGS_MAX as u64 + 5).for_each(|n| mappings.mapped(0, n * MIB, 4096, 1, SECOND));
        assert_eq!((mappings.held.len(), mappings.lost()), (MAPPINGS_MAX, 5));
    }
}

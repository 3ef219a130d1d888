//! What we believe held against what is: our count of OOM kills against the kernel's own, the wall clock against the one that
//! never steps.

use serde::{Deserialize, Serialize};

use crate::host::vmstat;

/// What is kept of it, for the next agent in the same boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// See [`Audit`].
    pub(crate) base: Option<u64>,
    /// Likewise.
    pub(crate) seen: u64,
    /// Likewise.
    pub(crate) reported: u64,
}

impl Kept {
    /// The same, had these not been seen.
    pub(crate) fn without(self, unseen: u64) -> Self {
        Self { seen: self.seen.saturating_sub(unseen), ..self }
    }
}

/// See the module. Begins before the programs are attached: what the kernel counts from then on, we must see.
#[derive(Debug)]
pub(crate) struct Audit {
    /// The kernel's count at the begin; `None` where it cannot be read.
    base: Option<u64>,
    /// Kills that we have seen.
    seen: u64,
    /// The kernel's count at the last look: a kill that it has counted may still be on its way to us.
    last: u64,
    /// Kills that were reported as missed.
    reported: u64,
}

impl Audit {
    /// Reads the kernel's count.
    pub(crate) fn begin() -> Self {
        let base =
            vmstat::oom_kills().inspect_err(|error| tracing::warn!("OOM kills cannot be audited: {error:#}")).ok();
        Self { base, seen: 0, last: base.unwrap_or(0), reported: 0 }
    }

    /// Goes on with that of an earlier agent, whose rings were taken over: what the kernel has counted meanwhile is in them.
    pub(crate) fn resume(Kept { base, seen, reported }: Kept) -> Self {
        Self { base, seen, reported, last: base.unwrap_or(0).saturating_add(seen + reported) }
    }

    /// What to keep for that.
    pub(crate) fn kept(&self) -> Kept {
        Kept { base: self.base, seen: self.seen, reported: self.reported }
    }

    /// One kill was seen.
    pub(crate) fn saw_one(&mut self) {
        self.seen += 1;
    }

    /// Reads the kernel's count again; the kills that it had counted at the look before, that we have not seen since, and
    /// that were not reported yet.
    pub(crate) fn check(&mut self) -> u64 {
        match vmstat::oom_kills() {
            Ok(now) => self.compare(now),
            Err(_) => 0,
        }
    }

    fn compare(&mut self, now: u64) -> u64 {
        let Some(base) = self.base else { return 0 };
        let due = self.last.saturating_sub(base);
        self.last = now;
        let missed = due.saturating_sub(self.seen + self.reported);
        self.reported += missed;
        missed
    }
}

/// The wall clock may be slewed, which is no step: by half a second in ten, say (adjtimex(2) allows 0.05 %, NTP's daemons more).
const STEP_NS: i64 = 500_000_000;

/// The wall clock, seen from CLOCK_BOOTTIME.
#[derive(Debug)]
pub(crate) struct Wall {
    /// By how much it was ahead at the last look, nanoseconds.
    lead_ns: i64,
}

impl Wall {
    /// It is ahead by so much now.
    pub(crate) fn new(lead_ns: i64) -> Self {
        Self { lead_ns }
    }

    /// It is ahead by so much now; by how much it was set since the last look, if it was.
    pub(crate) fn step(&mut self, lead_ns: i64) -> Option<i64> {
        let step = lead_ns.saturating_sub(std::mem::replace(&mut self.lead_ns, lead_ns));
        (step.saturating_abs() >= STEP_NS).then_some(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_is_missed_when_it_was_not_seen_by_the_look_after_the_next() {
        let mut audit = Audit { base: Some(100), seen: 0, last: 100, reported: 0 };
        assert_eq!(audit.compare(103), 0, "just counted: may still come");
        audit.saw_one();
        audit.saw_one();
        assert_eq!(audit.compare(103), 1);
        assert_eq!(audit.compare(103), 0, "once");
        audit.saw_one();
        assert_eq!(audit.compare(104), 0, "it came late, and hides no other");
    }

    #[test]
    fn what_was_killed_between_two_agents_is_due_when_their_rings_were_read() {
        let mut audit = Audit::resume(Kept { base: Some(100), seen: 5, reported: 1 });
        assert_eq!(audit.compare(108), 0, "in the rings");
        audit.saw_one();
        assert_eq!(audit.compare(108), 1);
        assert_eq!(audit.kept(), Kept { base: Some(100), seen: 6, reported: 2 });
        assert_eq!(audit.kept().without(2).seen, 4);
    }

    #[test]
    fn a_clock_that_was_set_is_told_from_one_that_drifts() {
        let mut wall = Wall::new(1_000);
        assert_eq!(wall.step(1_000 + STEP_NS / 2), None);
        assert_eq!(wall.step(STEP_NS), None, "by little, once more");
        assert_eq!(wall.step(-3 * STEP_NS), Some(-4 * STEP_NS));
        assert_eq!(wall.step(-3 * STEP_NS), None);
    }

    #[test]
    fn without_the_kernel_s_count_nothing_is_claimed() {
        assert_eq!(Audit { base: None, seen: 0, last: 0, reported: 0 }.compare(7), 0);
    }
}

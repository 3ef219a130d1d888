//! Our count of OOM kills held against the kernel's own.

use crate::host::vmstat;

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
    fn without_the_kernel_s_count_nothing_is_claimed() {
        assert_eq!(Audit { base: None, seen: 0, last: 0, reported: 0 }.compare(7), 0);
    }
}

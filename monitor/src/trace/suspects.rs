//! Which services the agent has traced by itself: those that are said to leak, one at a time on a host, once for each incarnation
//! and day. Pure.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use crate::{host::process::Identity, memory::forecast::Verdict};

/// All in periods in which memory is sampled for the forecast, whose times scale with it: by default, a minute.
mod periods {
    /// An incarnation younger than this fills caches, which looks like a leak.
    pub(super) const SETTLED: u32 = 30;
    /// How long a trace takes.
    pub(super) const LONG: u32 = 10;
    /// Between two traces of one service.
    pub(super) const APART: u32 = 24 * 60;
}
/// The shortest trace that there is, and the longest.
const LENGTHS: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(3600)];

/// See the module.
#[derive(Debug)]
pub(crate) struct Suspects {
    sample: Duration,
    /// Services that may be traced.
    allowed: HashSet<Arc<str>>,
    /// The one that is traced now.
    running: Option<Arc<str>>,
    /// Which incarnation was traced last, and when, CLOCK_BOOTTIME nanoseconds.
    last: HashMap<Arc<str>, (Identity, u64)>,
}

impl Suspects {
    /// Nobody yet; `sample` is the period of the forecast's samples.
    pub(crate) fn new(sample: Duration) -> Self {
        Self { sample, allowed: HashSet::new(), running: None, last: HashMap::new() }
    }

    /// A service that may be traced.
    pub(crate) fn allow(&mut self, service: &Arc<str>) {
        self.allowed.insert(Arc::clone(service));
    }

    /// Forgets a service that is no longer managed.
    pub(crate) fn forget(&mut self, service: &str) {
        self.allowed.remove(service);
        self.last.remove(service);
    }

    /// How long a trace takes.
    pub(crate) fn duration(&self) -> Duration {
        let [shortest, longest] = LENGTHS;
        (self.sample * periods::LONG).clamp(shortest, longest)
    }

    /// Between two traces of one service.
    pub(crate) fn apart(&self) -> Duration {
        self.sample * periods::APART
    }

    /// Whether this incarnation is to be traced now, which begins then.
    pub(crate) fn begin(&mut self, service: &Arc<str>, process: Identity, verdict: Verdict, now_ns: u64) -> bool {
        let after = |since_ns: u64, periods: u32| now_ns.saturating_sub(since_ns) >= nanoseconds(self.sample * periods);
        let is_suspect = matches!(verdict, Verdict::Leak | Verdict::MaskedLeak) && self.allowed.contains(service);
        if !is_suspect || self.running.is_some() || !after(process.start_ns, periods::SETTLED) {
            return false;
        }
        if let Some(&(before, at_ns)) = self.last.get(service)
            && (before.matches(process) || !after(at_ns, periods::APART))
        {
            return false;
        }
        self.running = Some(Arc::clone(service));
        self.last.insert(Arc::clone(service), (process, now_ns));
        true
    }

    /// It is over.
    pub(crate) fn ended(&mut self) {
        self.running = None;
    }

    /// It could not begin, through no fault of its own: somebody else traces.
    pub(crate) fn put_off(&mut self) {
        if let Some(service) = self.running.take() {
            self.last.remove(&service);
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000_000_000;
    const HOUR: u64 = 60 * MINUTE;

    fn process(tgid: u32, start_ns: u64) -> Identity {
        Identity { tgid, start_ns }
    }

    fn suspects() -> (Suspects, Arc<str>, Arc<str>) {
        let mut suspects = Suspects::new(Duration::from_secs(60));
        let (web, db) = (Arc::from("web"), Arc::from("db"));
        suspects.allow(&web);
        suspects.allow(&db);
        (suspects, web, db)
    }

    #[test]
    fn only_suspects_that_may_be_traced_and_have_settled_are() {
        let (mut suspects, web, _) = suspects();
        for verdict in [Verdict::Steady, Verdict::Insufficient] {
            assert!(!suspects.begin(&web, process(1, 0), verdict, HOUR));
        }
        assert!(!suspects.begin(&"other".into(), process(1, 0), Verdict::Leak, HOUR));
        assert!(!suspects.begin(&web, process(1, HOUR), Verdict::MaskedLeak, HOUR + 29 * MINUTE));
        assert!(suspects.begin(&web, process(1, HOUR), Verdict::MaskedLeak, HOUR + 30 * MINUTE));
    }

    #[test]
    fn one_at_a_time_once_for_each_incarnation_and_day() {
        let (mut suspects, web, db) = suspects();
        assert!(suspects.begin(&web, process(1, 0), Verdict::Leak, HOUR));
        assert!(!suspects.begin(&db, process(2, 0), Verdict::Leak, HOUR));
        suspects.ended();
        assert!(suspects.begin(&db, process(2, 0), Verdict::Leak, HOUR));
        suspects.ended();
        assert!(!suspects.begin(&web, process(1, 0), Verdict::Leak, 100 * HOUR), "the same incarnation");
        assert!(!suspects.begin(&web, process(3, 2 * HOUR), Verdict::Leak, 24 * HOUR), "the same day");
        assert!(suspects.begin(&web, process(3, 2 * HOUR), Verdict::Leak, 25 * HOUR));
    }

    #[test]
    fn what_could_not_begin_is_tried_again() {
        let (mut suspects, web, _) = suspects();
        for _ in 0..3 {
            assert!(suspects.begin(&web, process(1, 0), Verdict::Leak, HOUR));
            suspects.put_off();
        }
    }

    #[test]
    fn times_scale_with_the_forecast_s_and_stay_within_what_a_trace_can_do() {
        for (sample, want) in [(60_000, 600), (100, 10), (3_600_000, 3600)] {
            assert_eq!(Suspects::new(Duration::from_millis(sample)).duration(), Duration::from_secs(want));
        }
    }
}

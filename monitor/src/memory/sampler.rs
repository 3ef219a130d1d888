//! Measures the memory of services: reads files, keeps nothing.
//!
//! Every few seconds what the flight recorder keeps, one file each; once a minute what the trend wants beside that, and
//! limits, each of which is a file for each level on the way up. Many services are measured less often, down to once a
//! minute, so that their flight recorders cost no more than those of a few hundred.

use std::{sync::Arc, time::Duration};

use crate::host::{cgroup::Hierarchy, clock, memory, process, process::Identity};

/// Between two measurements of a service, for its flight recorder.
const SHORTEST: Duration = Duration::from_secs(5);
/// Measurements in a second at most, over all services: at some 40 microseconds each, a fifth of a percent of a processor.
const PER_SECOND: usize = 50;
/// Where nothing limits a service, the host does: this share of its memory is left to it, the rest to the kernel and those
/// who keep it running.
const OF_THE_HOST: f64 = 0.95;

/// How often services are measured when there are so many of them, and the trend wants one sample each `sample`: that it
/// gets, however many there are.
pub(crate) fn interval(services: usize, sample: Duration) -> Duration {
    Duration::from_secs_f64(services as f64 / PER_SECOND as f64).clamp(SHORTEST.min(sample), sample)
}

/// A service to measure.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Its name.
    pub(crate) service: Arc<str>,
    /// Its living main process.
    pub(crate) process: Identity,
    /// Where it lives.
    pub(crate) cgroup: Arc<str>,
    /// The least limit on the way up, bytes, as it was last read.
    pub(crate) limit: Option<u64>,
    /// Its trend wants a sample too.
    pub(crate) whole: bool,
}

/// One measurement.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// The service.
    pub(crate) service: Arc<str>,
    /// The main process that it was about.
    pub(crate) process: Identity,
    /// When, CLOCK_BOOTTIME nanoseconds.
    pub(crate) at_ns: u64,
    /// Memory that no reclaim frees, bytes.
    pub(crate) bytes: u64,
    /// The least limit on the way up, bytes; read when the measurement is whole.
    pub(crate) limit: Option<u64>,
    /// What the trend wants beside that.
    pub(crate) whole: Option<Whole>,
}

/// What a trend knows of a moment beside memory and limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Whole {
    /// The limit, or what the host can give; bytes.
    pub(crate) ceiling: f64,
    /// Processor time used so far, seconds.
    pub(crate) cpu_seconds: Option<f64>,
    /// Share of the last ten seconds in which all processes waited for memory, of 1.
    pub(crate) pressure: Option<f64>,
    /// Tells builds apart.
    pub(crate) build: Option<u64>,
}

/// Measures services. Those whose cgroup has gone are left out.
pub(crate) fn measure(hierarchy: &Hierarchy, targets: Vec<Target>) -> Vec<Measured> {
    targets.into_iter().filter_map(|target| one(hierarchy, target)).collect()
}

fn one(hierarchy: &Hierarchy, Target { service, process, cgroup, limit, whole }: Target) -> Option<Measured> {
    let at_ns = clock::boot_ns();
    let bytes = hierarchy.memory_held(&cgroup)?;
    let limit = if whole { hierarchy.least_memory_limit(&cgroup) } else { limit };
    let whole = whole.then(|| Whole {
        ceiling: limit.map_or_else(|| memory::of_the_host() * OF_THE_HOST, |limit| limit as f64),
        cpu_seconds: hierarchy.cpu_seconds(&cgroup),
        pressure: hierarchy.memory_pressure(&cgroup),
        build: process::build(process.tgid),
    });
    Some(Measured { service, process, at_ns, bytes, limit, whole })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_services_are_measured_less_often_and_a_fast_trend_more_often() {
        let minute = Duration::from_secs(60);
        assert_eq!(interval(10, minute), SHORTEST);
        assert_eq!(interval(1_000, minute), Duration::from_secs(20));
        assert_eq!(interval(10_000, minute), minute);
        assert_eq!(interval(1, Duration::from_millis(100)), Duration::from_millis(100));
    }
}

//! Order statistics, and what the kernel says about programs and processes.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

/// The value below which `share` of the sorted `values` lie.
pub(super) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

/// A mean or median with its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Interval {
    pub(super) middle: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// Of independent values whose mean is about normally distributed; from twenty on, Student's t is within a tenth of 2.
pub(super) fn interval(values: &[f64]) -> Interval {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let half = 2.07 * (variance / count).sqrt();
    Interval { middle: mean, low: mean - half, high: mean + half }
}

/// The median of independent values, whatever their distribution: between which of the sorted values it lies is a matter of tossing
/// coins. A neighbour that took the processor away for a moment moves it little.
pub(super) fn median_interval(values: &[f64]) -> Interval {
    let mut values = values.to_vec();
    let count = values.len() as f64;
    // 1.96 standard deviations of the number of heads, either side of the middle.
    let half = 0.98 / count.sqrt();
    let [low, middle, high] = [0.5 - half, 0.5, 0.5 + half].map(|share| quantile(&mut values, share.clamp(0.0, 1.0)));
    Interval { middle, low, high }
}

/// Microseconds since the minute began, of a moment in RFC 3339: enough to tell how far apart two moments are that are less than a
/// minute apart.
pub(super) fn in_minute_us(at: &str) -> Option<u64> {
    let seconds: f64 = at.strip_suffix('Z')?.rsplit_once(':')?.1.parse().ok()?;
    Some((seconds * 1e6) as u64)
}

/// Run time in nanoseconds and runs of all BPF programs that process `pid` holds open.
pub(super) fn programs_of(pid: u32) -> Result<(u64, u64)> {
    let directory = Path::new("/proc").join(pid.to_string()).join("fdinfo");
    let mut total = (0, 0);
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
        total.0 += value("run_time_ns:").unwrap_or(0);
        total.1 += value("run_cnt:").unwrap_or(0);
    }
    Ok(total)
}

/// Nanoseconds that all threads of process `pid` have run.
pub(super) fn cpu_ns(pid: u32) -> Result<u64> {
    let directory = Path::new("/proc").join(pid.to_string()).join("task");
    let mut total = 0;
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let path = entry?.path().join("schedstat");
        let Ok(text) = fs::read_to_string(&path) else { continue };
        total += text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(total)
}

/// A line of `/proc/PID/status` in KiB.
pub(super) fn status_kib(pid: u32, key: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).with_context(|| format!("{path} has no {key}"))
}

/// Has the kernel measure BPF programs until it is dropped.
pub(super) struct Measuring {
    before: String,
}

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

impl Measuring {
    pub(super) fn begin() -> Result<Self> {
        let before = fs::read_to_string(SWITCH).with_context(|| format!("cannot read {SWITCH}"))?;
        fs::write(SWITCH, "1").with_context(|| format!("cannot write {SWITCH}"))?;
        Ok(Self { before })
    }

    /// Refuses where somebody has left the kernel measuring: each run of a program takes two looks at the clock then, which would be
    /// taken for its cost; the one table that asks for that begins and ends it by itself.
    pub(super) fn ensure_nobody() -> Result<()> {
        let now = fs::read_to_string(SWITCH).with_context(|| format!("cannot read {SWITCH}"))?;
        ensure!(
            now.trim() == "0",
            "{SWITCH} is {}: write 0 to it, or what the kernel's measuring takes is told as our cost",
            now.trim()
        );
        Ok(())
    }
}

impl Drop for Measuring {
    fn drop(&mut self) {
        if let Err(error) = fs::write(SWITCH, &self.before) {
            crate::say::line(format_args!("{SWITCH} stays at 1: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_interval_is_around_its_mean_and_as_wide_as_the_values_differ() {
        let super::Interval { middle, low, high } = super::interval(&[1.0, 3.0, 1.0, 3.0]);
        assert_eq!(middle, 2.0);
        // A standard deviation of 2/√3 over four values.
        assert!((high - low - 2.0 * 2.07 / 3f64.sqrt()).abs() < 1e-9 && (low + high - 4.0).abs() < 1e-9);
    }

    #[test]
    fn a_median_is_not_moved_by_few_values_that_are_far_off() {
        let mut values: Vec<f64> = (0..101).map(f64::from).collect();
        values[100] = 1e9;
        // 40 to 60 of a hundred tosses are heads, in 19 of 20 trials.
        assert_eq!(super::median_interval(&values), super::Interval { middle: 50.0, low: 40.0, high: 60.0 });
        let few = super::median_interval(&[2.0, 1.0]);
        assert_eq!((few.low, few.high), (1.0, 2.0));
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let mut values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(super::quantile(&mut values, 0.5), 3.0);
        assert_eq!(super::quantile(&mut values, 0.99), 5.0);
        assert!(super::quantile(&mut [], 0.5).is_nan());
    }
}

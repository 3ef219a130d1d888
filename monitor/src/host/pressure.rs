//! Whether the host has memory for one process more.

use super::bounded;

/// `/proc/meminfo` has some fifty rows, 1.5 KiB.
const SIZE: usize = 16 * 1024;
/// Share of the time in which all processes waited for memory, over the last ten seconds (`full avg10`), from which on a
/// host is exhausted: 40 %. systemd-oomd kills from 60 % over thirty seconds on.
const FULL_MAX: f64 = 40.0;
/// Where the kernel does not measure that: memory that can be had without swapping, as a share of all, below which a host is
/// exhausted: 2 %.
const AVAILABLE_MIN: f64 = 0.02;

/// Why the host has no memory for a restart; `None` when it has.
pub(crate) fn exhausted() -> Option<String> {
    let read = |path: &str| bounded::text(path, SIZE).unwrap_or_default();
    judge(&read("/proc/pressure/memory"), &read("/proc/meminfo"))
}

fn judge(pressure: &str, meminfo: &str) -> Option<String> {
    if let Some(full) = full_avg10(pressure) {
        return (full >= FULL_MAX).then(|| format!("all processes wait for memory {full} % of the time"));
    }
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().trim_end_matches(" kB").parse::<f64>().ok()
    };
    let (available, total) = (kib("MemAvailable")?, kib("MemTotal")?);
    (available < total * AVAILABLE_MIN)
        .then(|| format!("{:.1} % of its memory is available", available / total * 100.0))
}

/// Share of the last ten seconds in which all waited, in percent.
pub(super) fn full_avg10(pressure: &str) -> Option<f64> {
    let full = pressure.lines().find_map(|line| line.strip_prefix("full "))?;
    full.split(' ').find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
}

/// Takes any text for `/proc/pressure/memory` and `/proc/meminfo`.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &str) {
    let (pressure, meminfo) = text.split_once("\n\n").unwrap_or((text, ""));
    judge(pressure, meminfo);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_decides_and_free_memory_where_there_is_none() {
        let pressure = |full: &str| {
            format!(
                "some avg10=99.00 avg60=0.00 avg300=0.00 total=1\nfull avg10={full} avg60=0.00 avg300=0.00 total=1\n"
            )
        };
        let low = "MemTotal:       1000000 kB\nMemFree:  5 kB\nMemAvailable:     19000 kB\n";
        let fine = "MemTotal:       1000000 kB\nMemFree:  5 kB\nMemAvailable:     21000 kB\n";
        assert_eq!(judge(&pressure("12.50"), low), None);
        assert!(judge(&pressure("40.00"), fine).is_some_and(|why| why.contains("40 %")));
        assert!(judge("", low).is_some_and(|why| why.contains("1.9 %")));
        assert_eq!(judge("", fine), None);
        assert_eq!(judge("", ""), None, "what cannot be read forbids nothing");
    }
}

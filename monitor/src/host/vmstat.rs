//! `/proc/vmstat`: the kernel's own count of processes killed for want of memory, the yardstick we are measured by.

use anyhow::{Context as _, Result};

use super::bounded;

const PATH: &str = "/proc/vmstat";
/// Some 170 counters, 5 KiB (vmstat_text, mm/vmstat.c).
const SIZE: usize = 64 * 1024;

/// Processes killed by the OOM killer since boot, over all scopes (`oom_kill`, Linux 4.13 and newer).
pub(crate) fn oom_kills() -> Result<u64> {
    let text = bounded::text(PATH, SIZE).with_context(|| format!("cannot read {PATH}"))?;
    parse(&text).with_context(|| format!("{PATH} has no line oom_kill"))
}

fn parse(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|count| count.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_the_exact_counter_is_read() {
        assert_eq!(super::parse("nr_free_pages 1\noom_kill 42\noom_kill_other 7\n"), Some(42));
        assert_eq!(super::parse("nr_free_pages 1\n"), None);
    }
}

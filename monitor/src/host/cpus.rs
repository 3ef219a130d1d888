//! Counts the processors that this host may have, including those that can be added while it runs.

use super::bounded;

/// The kernel's list of them.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
/// Bytes read of that list, which is mostly one range.
const LIST: usize = 4096;

/// The number of possible processors; where the kernel does not list them, of those that run now.
pub(crate) fn possible() -> u32 {
    let text = bounded::text(POSSIBLE, LIST);
    let running = || std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    text.ok().and_then(|text| count(&text)).unwrap_or_else(running)
}

/// Counts numbers and ranges, separated by commas (list format, cpuset(7)).
fn count(list: &str) -> Option<u32> {
    let mut count = 0_u32;
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_counted() {
        for (list, want) in [
            ("0\n", Some(1)),
            ("0-1\n", Some(2)),
            ("0-3,8-11,16\n", Some(9)),
            ("", None),
            ("3-1", None),
            ("0-4294967295", None),
            ("all", None),
        ] {
            assert_eq!(count(list), want, "{list:?}");
        }
        assert!(possible() >= 1);
    }
}

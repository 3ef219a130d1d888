//! The two clocks: CLOCK_BOOTTIME orders events (the kernel stamps records with it), the wall clock is for people.

use std::{sync::LazyLock, time::Duration};

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};

use super::bounded::{self, FIGURES};

/// Now, in nanoseconds of CLOCK_BOOTTIME: counts through suspend, never steps.
pub(crate) fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    // Both parts are positive: the clock began at boot.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Names this boot of the host; empty where the kernel does not say.
pub(crate) fn boot_id() -> &'static str {
    static ID: LazyLock<String> = LazyLock::new(|| {
        let text = bounded::text("/proc/sys/kernel/random/boot_id", FIGURES).unwrap_or_default();
        text.trim().to_owned()
    });
    &ID
}

/// How much further the wall clock is than CLOCK_BOOTTIME, nanoseconds.
pub(crate) fn lead_ns() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond() - i128::from(boot_ns())).unwrap_or(0)
}

/// The wall-clock time of a moment on CLOCK_BOOTTIME, as the wall clock is set now.
pub(crate) fn wall(at_ns: u64) -> Timestamp {
    wall_of(i64::try_from(at_ns).unwrap_or(i64::MAX))
}

/// The same for a moment that may be before this boot (then it is negative).
pub(crate) fn wall_of(at_ns: i64) -> Timestamp {
    let (now, boot) = (Timestamp::now(), i64::try_from(boot_ns()).unwrap_or(i64::MAX));
    let span = Duration::from_nanos(boot.abs_diff(at_ns));
    let moved = if at_ns <= boot { now.checked_sub(span) } else { now.checked_add(span) };
    // Out of range only if the wall clock itself stands at the end of time.
    moved.unwrap_or(now)
}

//! Figures as people read them, with their units, on terminals and pages.

use jiff::Timestamp;

/// Bytes as people read them.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// The last `width` characters of `text`, with a mark where something was left out.
pub(crate) fn tail(text: &str, width: usize) -> String {
    let count = text.chars().count();
    if count <= width {
        return text.to_owned();
    }
    let kept = text.chars().skip(count - width.saturating_sub(1));
    std::iter::once('…').chain(kept).collect()
}

/// The first `width` characters of `text`, likewise.
pub(crate) fn head(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(std::iter::once('…')).collect()
}

/// A time span as people read it.
pub(crate) fn span(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..10 => format!("{:.2}s", milliseconds as f64 / 1000.0),
        10..600 => format!("{seconds}s"),
        600..36_000 => format!("{}m", seconds / 60),
        36_000..864_000 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// From `at` to `now`; nothing when that is still to come.
pub(crate) fn since(at: Timestamp, now: Timestamp) -> String {
    span(u64::try_from(now.duration_since(at).as_millis()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_keep_three_digits_or_so() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
        assert_eq!(span(1234), "1.23s");
        assert_eq!(span(59_000), "59s");
        assert_eq!(span(3_600_000), "60m");
        assert_eq!(span(1_000_000_000), "11d");
        assert_eq!(tail("nginx.service", 13), "nginx.service");
        assert_eq!(tail("/a/long/päth", 6), "…/päth");
        assert_eq!(head("/a/long/päth", 6), "/a/lo…");
    }
}

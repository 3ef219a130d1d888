//! What people see: errors on one line, tables, and the end of a pipe that is no error.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::{Context as _, Result};

/// Writes an error as one line to stderr: the step that failed, then why.
#[expect(clippy::print_stderr, reason = "the one place where errors reach people")]
pub(crate) fn error(error: &anyhow::Error) {
    let line = format!("{error:#}").replace('\n', "; ");
    eprintln!("defib: {line}");
}

/// True when the reader of our output has gone, as `head` does.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Writes one line to stdout and makes it visible at once.
pub(crate) fn line(text: impl std::fmt::Display) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).context("cannot write to standard output")
}

/// Writes a value as JSON on one line.
pub(crate) fn json(value: &impl serde::Serialize) -> Result<()> {
    line(serde_json::to_string(value).context("cannot write JSON")?)
}

/// Colour for people at a terminal who did not ask for none (no-color.org).
pub(crate) fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

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
    }
}

//! What people see: errors on one line, tables, and the end of a pipe that is no error.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::{Context as _, Result};

pub(crate) use crate::figures::{bytes, span, tail};

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

//! The only way to the terminal: progress on standard output, errors as one line on standard error.

use std::fmt::Display;

/// Says what is about to happen or what came of it.
pub(crate) fn line(text: impl Display) {
    println!("{text}");
}

/// Prints an error and its causes as one line.
#[expect(clippy::print_stderr, reason = "the one place that writes errors, so that each is one line")]
pub(crate) fn error(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}

//! The end of a test run: a line for each step and each skipped test, then the counts.

use std::time::Duration;

use super::{harness::Counts, skips::Skip};
use crate::say;

/// How a step ended.
pub(super) enum Outcome {
    Passed(Duration),
    /// With its error.
    Failed(Duration, String),
    /// A step before it failed.
    NotRun,
}

/// Prints it all. The last line is for programs too: `N passed, N failed, N skipped`.
pub(super) fn print(outcomes: &[(&str, Outcome)], skips: &[Skip], counts: Counts) {
    lines(outcomes, skips, counts).iter().for_each(say::line);
}

fn lines(outcomes: &[(&str, Outcome)], skips: &[Skip], counts: Counts) -> Vec<String> {
    let mut lines = vec!["==> summary".to_owned()];
    for (name, outcome) in outcomes {
        lines.push(match outcome {
            Outcome::Passed(time) => format!("{name:<14} {:>7.1} s  ok", time.as_secs_f64()),
            Outcome::Failed(time, error) => format!("{name:<14} {:>7.1} s  FAILED: {error}", time.as_secs_f64()),
            Outcome::NotRun => format!("{name:<14} {:>9}  not run", "-"),
        });
    }
    for skip in skips {
        lines.push(format!("skipped {}: {}", skip.test, skip.reason));
    }
    let Counts { passed, failed, skipped } = counts;
    lines.push(format!("{passed} passed, {failed} failed, {skipped} skipped"));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_and_skip_has_its_line_and_the_counts_come_last() {
        let outcomes = [
            ("format", Outcome::Passed(Duration::from_millis(1234))),
            ("clippy", Outcome::Failed(Duration::from_secs(20), "a lint".into())),
            ("unit tests", Outcome::NotRun),
        ];
        let skips = [Skip { test: "oom".into(), reason: "needs root".into(), accepted: false }];
        let expected = [
            "==> summary",
            "format             1.2 s  ok",
            "clippy            20.0 s  FAILED: a lint",
            "unit tests             -  not run",
            "skipped oom: needs root",
            "1 passed, 0 failed, 2 skipped",
        ];
        assert_eq!(lines(&outcomes, &skips, Counts { passed: 1, failed: 0, skipped: 2 }), expected);
    }
}

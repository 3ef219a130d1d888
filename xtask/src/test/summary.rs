//! The end of a test run: a line for each step and each skipped test, then the counts.

use std::time::Duration;

use super::{harness::Counts, skips::Skip};
use crate::say;

/// A test that failed, and the one command that runs it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) test: String,
    pub(crate) again: String,
}

/// How a step ended.
pub(super) enum Outcome {
    Passed(Duration),
    /// With its error, and the command that runs it again.
    Failed(Duration, String, String),
    /// Left out: it needs this earlier step, which failed.
    LeftOut(&'static str),
}

/// Prints it all. The last line is for programs too: `N passed, N failed, N skipped`.
pub(super) fn print(outcomes: &[(&str, Outcome)], skips: &[Skip], failures: &[Failure], counts: Counts) {
    lines(outcomes, skips, failures, counts).iter().for_each(say::line);
}

fn lines(outcomes: &[(&str, Outcome)], skips: &[Skip], failures: &[Failure], counts: Counts) -> Vec<String> {
    let mut lines = vec!["==> summary".to_owned()];
    for (name, outcome) in outcomes {
        lines.push(match outcome {
            Outcome::Passed(time) => format!("{name:<14} {:>7.1} s  ok", time.as_secs_f64()),
            Outcome::Failed(time, error, _) => format!("{name:<14} {:>7.1} s  FAILED: {error}", time.as_secs_f64()),
            Outcome::LeftOut(needs) => format!("{name:<14} {:>9}  not run: it needs the step '{needs}'", "-"),
        });
    }
    for skip in skips {
        lines.push(format!("skipped {}: {}", skip.test, skip.reason));
    }
    for Failure { test, again } in failures {
        lines.push(format!("failed {test}; again: {again}"));
    }
    for (name, outcome) in outcomes {
        if let Outcome::Failed(_, _, again) = outcome {
            lines.push(format!("failed step {name}; again: {again}"));
        }
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
            (
                "clippy",
                Outcome::Failed(Duration::from_secs(20), "a lint".into(), "cargo xtask test --only clippy".into()),
            ),
            ("live tests", Outcome::LeftOut("build")),
        ];
        let failures = [Failure { test: "one::a".into(), again: "cargo xtask test --only 'unit tests' one::a".into() }];
        let skips = [Skip { test: "oom".into(), reason: "needs root".into(), accepted: false }];
        let expected = [
            "==> summary",
            "format             1.2 s  ok",
            "clippy            20.0 s  FAILED: a lint",
            "live tests             -  not run: it needs the step 'build'",
            "skipped oom: needs root",
            "failed one::a; again: cargo xtask test --only 'unit tests' one::a",
            "failed step clippy; again: cargo xtask test --only clippy",
            "1 passed, 0 failed, 2 skipped",
        ];
        assert_eq!(lines(&outcomes, &skips, &failures, Counts { passed: 1, failed: 0, skipped: 2 }), expected);
    }
}

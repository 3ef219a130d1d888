//! From death to serving again: runs the bench of the package `tests` and reads its lines.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::{
    Programs,
    stats::{in_minute_us, quantile},
};
use crate::{artifacts, say, workspace};

/// One arm.
pub(super) struct Recovery {
    pub(super) name: String,
    /// What is not here and would be needed.
    pub(super) missing: Option<String>,
    /// From the kill until a connection is accepted again, milliseconds. Empty: it never came back.
    pub(super) back_ms: Vec<f64>,
    /// From the verdict that it stays dead to the call of StartUnit, as a witness on the bus saw it, milliseconds.
    pub(super) called_ms: Vec<f64>,
}

#[derive(Deserialize)]
struct Line {
    name: String,
    missing: Option<String>,
    #[serde(default)]
    back_ms: Vec<f64>,
    #[serde(default)]
    incidents: Vec<Incident>,
    /// Unix time, microseconds.
    #[serde(default)]
    asked_us: Vec<u64>,
}

#[derive(Deserialize)]
struct Incident {
    timeline: Vec<Moment>,
}

#[derive(Deserialize)]
struct Moment {
    at: String,
    what: String,
}

pub(super) fn measure(programs: &Programs) -> Result<Vec<Recovery>> {
    let mut build = workspace::cargo();
    let built =
        artifacts::build(build.args(["bench", "--locked", "--package", "tests", "--bench", "recovery", "--no-run"]))?;
    let bench = built.iter().find(|executable| executable.name == "recovery").context("cargo built no bench")?;
    let output = Command::new(&bench.path)
        .env("DEFIB_BINARY", &programs.defib)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", bench.path.display()))?;
    ensure!(output.status.success(), "the bench of recoveries ended with {}", output.status);
    let text = String::from_utf8(output.stdout).context("the bench of recoveries does not write text")?;
    say::line(&text);
    let lines = text.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| Ok(recovery(serde_json::from_str(line)?))).collect()
}

fn recovery(line: Line) -> Recovery {
    let Line { name, missing, mut back_ms, incidents, asked_us } = line;
    // Sorts them.
    quantile(&mut back_ms, 0.5);
    let mut called_ms = Vec::new();
    for incident in incidents {
        let decided = incident.timeline.iter().find(|moment| moment.what == "restart_asked");
        let Some(decided_us) = decided.and_then(|moment| in_minute_us(&moment.at)) else { continue };
        // Both within the same minute, or nothing can be said.
        let within_minute = asked_us.iter().map(|&us| us % 60_000_000);
        let after = within_minute.filter_map(|us| us.checked_sub(decided_us));
        if let Some(us) = after.min().filter(|&us| us < 1_000_000) {
            called_ms.push(us as f64 / 1e3);
        }
    }
    quantile(&mut called_ms, 0.5);
    Recovery { name, missing, back_ms, called_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_paired_with_the_decision_before_it() {
        let moment = |what: &str, at: &str| Moment { at: at.to_owned(), what: what.to_owned() };
        let timeline =
            vec![moment("died", "2026-01-01T00:00:05Z"), moment("restart_asked", "2026-01-01T00:00:05.001500Z")];
        let line = Line {
            name: String::new(),
            missing: None,
            back_ms: vec![3.0, 1.0],
            incidents: vec![Incident { timeline }],
            asked_us: vec![1_767_225_604_000_000, 1_767_225_605_002_000, 1_767_225_609_000_000],
        };
        let recovery = recovery(line);
        assert_eq!(recovery.back_ms, [1.0, 3.0]);
        assert_eq!(recovery.called_ms, [0.5]);
    }
}

//! Runs the live test of all attacks at once and reads its line of results.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::Programs;
use crate::{artifacts, say, workspace};

/// The program of the package `tests`, and the test in it.
const PROGRAM: &str = "attacks";
const TEST: &str = "all_attacks_at_once_cost_no_honest_service_its_agent";
/// Length of the test, seconds.
const SECONDS: &str = "300";

/// What the test measured.
#[derive(Debug, Deserialize)]
pub(super) struct Attacks {
    pub(super) seconds: u64,
    /// Grace of honest services, milliseconds.
    pub(super) grace_ms: f64,
    pub(super) resident_peak_bytes: u64,
    pub(super) rows: Vec<Row>,
}

/// One kind of time, milliseconds; `None` where an answer never came, or nothing was measured.
#[derive(Debug, Deserialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) count: u64,
    pub(super) p50_ms: Option<f64>,
    pub(super) p99_ms: Option<f64>,
    pub(super) largest_ms: Option<f64>,
}

impl Attacks {
    /// Targets of a row: for its 99th percentile and for its largest value, milliseconds.
    pub(super) fn wanted(&self, row: &Row) -> (Option<f64>, Option<f64>) {
        match row.name.as_str() {
            "/healthz" | "/pool" => (None, Some(250.0)),
            "from death to start" => (None, Some(self.grace_ms + 500.0)),
            "the controller's loop" => (Some(50.0), Some(250.0)),
            _ => (None, None),
        }
    }
}

pub(super) fn measure(programs: &Programs) -> Result<Attacks> {
    say::line(format_args!("bench: all attacks at once for {SECONDS} s"));
    // The test finds the other programs in the agent's directory.
    let attacker = programs.victim.with_file_name("attacker");
    let place = workspace::target().join("bench-attacks");
    std::fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
    for (path, name) in [(&programs.defib, "defib"), (&programs.victim, "victim"), (&attacker, "attacker")] {
        std::fs::copy(path, place.join(name)).with_context(|| path.display().to_string())?;
    }
    let test = artifacts::live_test(PROGRAM)?;
    let output = Command::new(&test.path)
        .args(["--exact", &format!("together::{TEST}"), "--nocapture"])
        .env("DEFIB_BINARY", place.join("defib"))
        .env("DEFIB_ATTACK_SECONDS", SECONDS)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", test.path.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    say::line(&text);
    ensure!(output.status.success(), "the attacks ended with {}", output.status);
    read(&text)
}

fn read(text: &str) -> Result<Attacks> {
    let line = text.lines().find_map(|line| line.split_once("MEASURED ")).context("the attacks measured nothing")?;
    serde_json::from_str(line.1).context("the attacks say their figures in another way")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_test_is_found_among_others_and_has_its_targets() {
        let line = r#"MEASURED {"seconds":60,"grace_ms":200,"resident_peak_bytes":1048576,"rows":[
            {"name":"/pool","count":2,"p50_ms":0.5,"p99_ms":1.0,"largest_ms":null},
            {"name":"from death to start","count":1,"p50_ms":201.0,"p99_ms":201.0,"largest_ms":201.0}]}"#;
        let attacks = read(&format!("running 1 test\n{}\nok\n", line.replace('\n', ""))).expect("it is read");
        assert_eq!((attacks.seconds, attacks.rows[0].largest_ms), (60, None));
        let wanted: Vec<_> = attacks.rows.iter().map(|row| attacks.wanted(row)).collect();
        assert_eq!(wanted, [(None, Some(250.0)), (None, Some(700.0))]);
        assert!(read("no such line").is_err());
    }
}

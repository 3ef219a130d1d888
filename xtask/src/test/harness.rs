//! Runs test programs, lets their output through unchanged, and counts what it says.
//!
//! Every harness ends with a line `test result: ok. 3 passed; 0 failed; 1 ignored; ...`; a cargo that runs several
//! programs prints several.

use std::{
    io::{Read as _, Write},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, anyhow};

use crate::process;

/// Tests by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// Not run: marked so in the source, or unable to run here.
    pub(crate) skipped: usize,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        let Self { passed, failed, skipped } = other;
        self.passed += passed;
        self.failed += failed;
        self.skipped += skipped;
    }

    /// Moves tests from passed to skipped: to its harness, a test that found that it cannot run here has passed.
    pub(crate) fn skip(&mut self, tests: usize) {
        self.passed = self.passed.saturating_sub(tests);
        self.skipped += tests;
    }
}

/// What one run gave: counts also when it failed.
pub(crate) struct Run {
    pub(crate) counts: Counts,
    /// The tests that failed, by name.
    pub(crate) failed: Vec<String>,
    pub(crate) result: Result<()>,
}

/// Runs to the end, standard output going through to `terminal`. The error is for a command that could not be run at all.
pub(crate) fn run(command: &mut Command, terminal: &mut dyn Write) -> Result<Run> {
    let cannot_run = |command: &Command| format!("cannot run {}", process::shown(command));
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| cannot_run(command))?;
    let mut tally = Tally::default();
    if let Some(mut stdout) = child.stdout.take() {
        // Not by lines: a harness prints a test's name first and its outcome later, on the same line.
        let mut buffer = [0; 4096];
        loop {
            let length = stdout.read(&mut buffer).with_context(|| cannot_run(command))?;
            let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else { break };
            terminal.write_all(bytes).and_then(|()| terminal.flush()).context("cannot pass on the output of tests")?;
            tally.read(bytes);
        }
    }
    let status = child.wait().with_context(|| cannot_run(command))?;
    if status.success() {
        return Ok(Run { counts: tally.summed, failed: Vec::new(), result: Ok(()) });
    }
    let error = anyhow!("`{}` ended with {status}", process::shown(command));
    Ok(Run { counts: tally.counts(), failed: tally.failed(), result: Err(error) })
}

/// Stands for a test's name when a program died between two tests.
pub(crate) const DIED: &str = "(a program that died)";

/// Reads the counts and the failed tests from the whole output of a program that ran elsewhere.
pub(crate) fn read(output: &[u8]) -> (Counts, Vec<String>) {
    let mut tally = Tally::default();
    tally.read(output);
    (tally.counts(), tally.failed())
}

/// Puts lines together from what comes through and sums the results.
#[derive(Default)]
struct Tally {
    summed: Counts,
    line: Vec<u8>,
    started: usize,
    ended: usize,
    /// The test that began last, until its outcome is read.
    begun: Option<String>,
    /// The lines since `failures:`; at the harness's end these are the names of failed tests.
    listed: Option<Vec<String>>,
    failed: Vec<String>,
}

impl Tally {
    fn read(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = plain(&self.line);
            self.line.clear();
            self.take(&line);
        }
    }

    fn take(&mut self, line: &str) {
        if let Some(counts) = result_line(line) {
            self.summed.add(counts);
            self.ended += 1;
            self.begun = None;
            self.failed.extend(self.listed.take().filter(|_| counts.failed > 0).into_iter().flatten());
        } else if line.starts_with("running ") && line.trim_end_matches('s').ends_with(" test") {
            self.started += 1;
        } else if line == "failures:" {
            // `failures:` comes twice: before the output of the failed tests, and before their names.
            self.listed = Some(Vec::new());
        } else if let (Some(listed), Some(name)) = (&mut self.listed, line.strip_prefix("    ")) {
            listed.push(name.to_owned());
        } else if let Some((name, _)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
            self.begun = (!["ok", "FAILED"].iter().any(|end| line.ends_with(end))).then(|| name.to_owned());
        }
    }

    /// The names of the failed tests, including the one in which the program died.
    fn failed(mut self) -> Vec<String> {
        if self.started > self.ended {
            let rest = plain(&std::mem::take(&mut self.line));
            self.take(&rest);
            self.failed.push(self.begun.unwrap_or_else(|| DIED.to_owned()));
        }
        self.failed
    }

    /// The sum, with a failure for a harness that began and never said how it ended: its program died inside a test.
    fn counts(&self) -> Counts {
        let mut counts = self.summed;
        if counts.failed == 0 && self.started > self.ended {
            counts.failed = 1;
        }
        counts
    }
}

/// The counts in a harness's last line; none for any other line.
fn result_line(line: &str) -> Option<Counts> {
    let (_, fields) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut counts = Counts::default();
    for field in fields.split("; ") {
        match field.split_once(' ') {
            Some((count, "passed")) => counts.passed = count.parse().ok()?,
            Some((count, "failed")) => counts.failed = count.parse().ok()?,
            Some((count, "ignored")) => counts.skipped = count.parse().ok()?,
            _ => {}
        }
    }
    Some(counts)
}

/// The text without colours (`ESC [ ... letter`).
pub(crate) fn plain(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut parts = text.split("\u{1b}[");
    let mut plain = parts.next().map(str::to_owned).unwrap_or_default();
    for part in parts {
        let visible = part.trim_start_matches(|c: char| !c.is_ascii_alphabetic());
        plain.push_str(visible.get(1..).unwrap_or(""));
    }
    plain.trim_end_matches('\r').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(passed: usize, failed: usize, skipped: usize) -> Counts {
        Counts { passed, failed, skipped }
    }

    #[test]
    fn result_lines() {
        let line = "test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 2 filtered out; finished in 0.01s";
        assert_eq!(result_line(line), Some(counted(12, 0, 3)));
        let line = "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(result_line(line), Some(counted(1, 2, 0)));
        assert_eq!(result_line("test result: said the test. But no numbers"), Some(counted(0, 0, 0)));
        assert_eq!(result_line("test oom::one ... ok"), None);
        assert_eq!(result_line("test result: ok. many passed; 0 failed"), None);
    }

    #[test]
    fn results_are_summed_over_programs_and_pieces() {
        let output = "\nrunning 2 tests\ntest a ... \u{1b}[32mok\u{1b}[m\n\ntest result: \u{1b}[32mok\u{1b}[m. \
                      2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\n\
                      running 1 test\ntest b ... FAILED\n\n\
                      test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n";
        for size in [1, 7, 4096] {
            let mut tally = Tally::default();
            output.as_bytes().chunks(size).for_each(|piece| tally.read(piece));
            assert_eq!(tally.counts(), counted(2, 1, 0));
        }
    }

    #[test]
    fn the_tests_that_failed_are_named_also_the_one_in_which_a_program_died() {
        let output = "running 2 tests\ntest one::a ... FAILED\ntest one::b ... ok\n\nfailures:\n\n\
                      ---- one::a stdout ----\n    indented\n\n\nfailures:\n    one::a\n\n\
                      test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n\n\
                      running 2 tests\ntest two::a ... ok\ntest two::b ... it says\nsomething\n";
        for size in [1, 7, 4096] {
            let mut tally = Tally::default();
            output.as_bytes().chunks(size).for_each(|piece| tally.read(piece));
            assert_eq!(tally.failed(), ["one::a", "two::b"]);
        }
        let (counts, failed) = read(b"running 1 test\ntest hangs ... ");
        assert_eq!((counts, failed), (counted(0, 1, 0), vec!["hangs".to_owned()]));
        assert_eq!(read(b"running 1 test\n").1, ["(a program that died)"]);
    }

    #[test]
    fn a_program_that_dies_inside_a_test_is_a_failure() -> Result<()> {
        let script = "echo; echo 'running 3 tests'; printf 'test a ... '; kill -9 $$";
        let mut output = Vec::new();
        let run = run(Command::new("/bin/sh").args(["-c", script]), &mut output)?;
        assert_eq!(run.counts, counted(0, 1, 0));
        assert!(run.result.is_err());
        assert_eq!(output, b"\nrunning 3 tests\ntest a ... ");
        Ok(())
    }

    #[test]
    fn a_skip_is_no_pass() {
        let mut all = counted(5, 0, 1);
        all.skip(2);
        assert_eq!(all, counted(3, 0, 3));
    }
}

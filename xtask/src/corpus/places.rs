//! Runs the corpus here and in virtual machines, its output going through to the terminal, and keeps that output.

use std::{io, path::Path, process::Command};

use anyhow::Result;

use super::{Run, TEST, cells};
use crate::{
    artifacts::Executable,
    privilege::Privilege,
    process, say,
    tee::Tee,
    test::{
        guest::{self, Guest},
        harness, live,
    },
    vm::{self, Harness, Job, Kernel},
};

/// Has the program compare whole names.
const EXACT: &str = "--exact";
/// The test that compares the counts. It is no case, and in every run.
const AUDIT: &str = "audit";

/// Cases to run, and the words with which the program runs them.
#[derive(Debug, PartialEq)]
pub(super) struct Selection {
    pub(super) cases: Vec<String>,
    words: Vec<String>,
}

impl Selection {
    /// Of these cases, only those that are named.
    fn only(&self, names: &[String]) -> Self {
        let (cases, others): (Vec<_>, Vec<_>) = self.cases.iter().cloned().partition(|case| names.contains(case));
        let mut words: Vec<String> = others.iter().map(|name| format!("--skip={name}")).collect();
        words.extend(self.words.iter().filter(|word| *word != EXACT).cloned());
        words.push(EXACT.to_owned());
        Self { cases, words }
    }

    /// Asks the program for its cases and takes those whose names contain one of `filters`; all when there is none.
    pub(super) fn ask(corpus: &Executable, filters: &[String]) -> Result<Self> {
        let list = process::output(Command::new(&corpus.path).arg("--list"))?;
        Ok(Self::of(&list, filters))
    }

    fn of(list: &str, filters: &[String]) -> Self {
        let names = list.lines().filter_map(|line| line.strip_suffix(": test")).filter(|name| *name != AUDIT);
        let wanted = |name: &&str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
        let (cases, others): (Vec<_>, Vec<_>) = names.partition(wanted);
        // Not by the program's own filter: it takes one alone, and would leave the audit out.
        let mut words: Vec<String> = others.into_iter().map(|name| format!("--skip={name}")).collect();
        if !words.is_empty() {
            words.push(EXACT.to_owned());
        }
        Self { cases: cases.into_iter().map(str::to_owned).collect(), words }
    }
}

/// The name of this machine where other places have a kernel series.
pub(super) const HOST: &str = "host";

/// On this machine, with root's rights if there is a way to them.
pub(super) fn on_host(corpus: &Executable, defib: &Path, selection: &Selection) -> Result<Run> {
    let mut command = live::command(corpus, Privilege::available()?, &[(live::BINARY, defib.as_os_str())]);
    command.args(&selection.words);
    say::line(format_args!("--> {}", process::shown(&command)));
    let mut output = Vec::new();
    let harness::Run { counts, result, .. } = harness::run(&mut command, &mut Tee(io::stdout(), &mut output))?;
    Ok(Run {
        place: HOST,
        transcript: cells::read(&output),
        counts,
        failure: result.err().map(|error| format!("{error:#}")),
    })
}

/// In a machine with another kernel.
///
/// Emulation on a busy machine makes whoever is asked late, or a runtime crash by itself. So cases that were wrong are run
/// once more in a machine of their own, and said to be; what is wrong twice is wrong.
pub(super) fn in_guest(harness: &Harness, kernel: Kernel, job: &Job<'_>, selection: &Selection) -> Run {
    let first = once(harness, kernel, job, selection);
    let wrong = first.transcript.wrong();
    if wrong.is_empty() {
        return first;
    }
    say::line(format_args!("vm: kernel {}: once more, since they were wrong: {}", kernel.name(), wrong.join(", ")));
    first.mended_by(once(harness, kernel, job, &selection.only(&wrong)))
}

fn once(harness: &Harness, kernel: Kernel, job: &Job<'_>, selection: &Selection) -> Run {
    let script = script(selection);
    let job = &Job { script: Some(&script), ..*job };
    let Guest { output, counts, failure } = guest::run(harness, kernel, job, io::stdout());
    Run { place: kernel.name(), transcript: cells::read(&output), counts, failure }
}

/// What the guest does.
fn script(selection: &Selection) -> String {
    vm::test_script(TEST, &selection.words)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "oom_one: test\noom_two: test\noom: test\nexit: test\naudit: test\n\n5 tests, 0 benchmarks\n";

    fn select(filters: &[&str]) -> Selection {
        let filters: Vec<String> = filters.iter().map(|filter| (*filter).to_owned()).collect();
        Selection::of(LIST, &filters)
    }

    #[test]
    fn without_a_filter_the_program_runs_as_it_is() {
        let all = select(&[]);
        assert_eq!(all.cases, ["oom_one", "oom_two", "oom", "exit"]);
        assert!(all.words.is_empty());
    }

    #[test]
    fn a_second_run_is_of_the_named_cases_and_the_audit() {
        let again = select(&["one", "exit"]).only(&["exit".to_owned()]);
        assert_eq!(again.cases, ["exit"]);
        assert_eq!(again.words, ["--skip=oom_one", "--skip=oom_two", "--skip=oom", "--exact"]);
    }

    #[test]
    fn with_filters_the_others_are_skipped_by_their_whole_names_and_the_audit_stays() {
        let some = select(&["one", "exit"]);
        assert_eq!(some.cases, ["oom_one", "exit"]);
        assert_eq!(some.words, ["--skip=oom_two", "--skip=oom", "--exact"]);
        assert!(select(&["audit"]).cases.is_empty());
    }
}

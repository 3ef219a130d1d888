//! `cargo xtask corpus`: every way to die, caused for real on this machine's kernel and on others, each with the cause
//! that must be given for it.
//!
//! ```text
//! test program `corpus` ─┬─▶ here, as root ──────────┐
//!                        └─▶ in a machine of `vm` ───┴─▶ output ─▶ cells ─▶ verdict, table, documentation
//! ```
//! * [`places`]: runs the program and keeps what it prints
//! * [`cells`]: reads that
//! * [`verdict`]: what must hold for it
//! * [`matrix`]: shows it

mod cells;
mod matrix;
mod places;
#[cfg(test)]
mod samples;
mod verdict;

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum as _;

use self::{
    cells::{Cell, Transcript},
    places::{HOST, Selection},
};
use crate::{
    artifacts, foreign, needs, say,
    test::{harness::Counts, setup, skips::Skip, summary::Failure},
    vm::{self, Harness, Job, Kernel, Patience, Program},
    workspace,
};

/// The test program, by its cargo name.
pub(crate) const TEST: &str = "corpus";

/// Run the corpus of deaths on this kernel and on others, and compare what is reported with what happened
///
/// Builds the programs, runs the corpus here (as root, through sudo where that is possible) and in a virtual machine for
/// each kernel, one after the other, and shows a table of all cases. Fails when a cause is wrong, a run does not end well, a
/// case is missing, or OOM kills were seen that the kernel did not count, or the other way round.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Kernel series to boot; may be given more than once
    #[arg(long, value_enum)]
    kernel: Vec<Kernel>,
    /// Boot every kernel, one after another
    #[arg(long, conflicts_with = "kernel")]
    all: bool,
    /// Leave out the run on this machine's kernel
    #[arg(long)]
    no_host: bool,
    /// Write the results to docs/diagnosis.md; for a whole run on all kernels that found no fault
    #[arg(long, requires = "all", conflicts_with_all = ["no_host", "filters"])]
    write: bool,
    /// Install nothing; where something is missing, list it with the commands that bring it, and fail
    #[arg(long)]
    no_install: bool,
    /// Run only cases whose names contain one of these
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
}

pub(crate) fn execute(args: &Args) -> Result<ExitCode> {
    let kernels = if args.all { Kernel::value_variants() } else { args.kernel.as_slice() };
    ensure!(!args.no_host || !kernels.is_empty(), "nowhere to run: name a kernel, or leave out --no-host");
    let report = run(&Plan { host: !args.no_host, kernels, filters: &args.filters, install: !args.no_install })?;
    ensure!(!report.cases.is_empty(), "no case has a name like that");
    report.show();
    if !report.faults().is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    if args.write {
        let path = workspace::root().join("docs/diagnosis.md");
        crate::document::CORPUS.write(&path, &matrix::markdown(&report.cases, &report.runs)?)?;
        say::line(format_args!("written to {}", path.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// What to run, and where.
pub(crate) struct Plan<'a> {
    /// On this machine's kernel.
    pub(crate) host: bool,
    /// In virtual machines.
    pub(crate) kernels: &'a [Kernel],
    /// Only cases whose names contain one of these; all when there is none.
    pub(crate) filters: &'a [String],
    /// Whether what is missing on this machine may be installed.
    pub(crate) install: bool,
}

/// One run of the corpus.
struct Run {
    /// `host`, or the series of the kernel.
    place: &'static str,
    transcript: Transcript,
    counts: Counts,
    /// Why the run as a whole did not end well.
    failure: Option<String>,
}

impl Run {
    /// The same run, with the cases that were right when they were run once more.
    fn mended_by(mut self, again: Self) -> Self {
        for cell in again.transcript.cells.into_iter().filter(Cell::is_right) {
            let before = self.transcript.cells.iter_mut().find(|before| before.case == cell.case);
            if let Some(before) = before.filter(|before| before.is_wrong()) {
                *before = cell;
                self.counts.failed = self.counts.failed.saturating_sub(1);
                self.counts.passed += 1;
            }
        }
        // A failure of the program as a whole was that of its cases, if it ran to its end.
        let whole = self.transcript.audit.is_some() && self.transcript.unfinished.is_none();
        if whole && self.counts.failed == 0 {
            self.failure = None;
        }
        self
    }
}

/// All runs.
pub(crate) struct Report {
    /// Names of the cases that every run must have, in the corpus's own order.
    cases: Vec<String>,
    runs: Vec<Run>,
}

/// Runs the corpus as planned. A run that fails does not keep the others from running; nothing runs when no case is
/// meant.
pub(crate) fn run(plan: &Plan<'_>) -> Result<Report> {
    needs::provide(setup::c_compiler().as_slice(), plan.install)?;
    let mut built = artifacts::release()?;
    let defib = artifacts::program(&built, "defib")?.to_path_buf();
    let corpus = artifacts::live_test(TEST)?;
    let foreign = foreign::build(defib.parent().context("a program is in a directory")?)?;
    let selection = Selection::ask(&corpus, plan.filters)?;
    let mut runs = Vec::new();
    if selection.cases.is_empty() {
        return Ok(Report { cases: selection.cases, runs });
    }
    // First what may fail for want of something: a run takes minutes.
    let harness = if plan.kernels.is_empty() { None } else { Some(Harness::prepare(&[], plan.install)?) };
    if plan.host {
        runs.push(places::on_host(&corpus, &defib, &selection)?);
    }
    if let Some(harness) = harness {
        built.push(corpus);
        let programs: Vec<_> = built.into_iter().map(Program::from).chain(foreign).collect();
        let job = Job {
            programs: &programs,
            with: &[],
            script: None,
            memory_mib: vm::MEMORY_MIB,
            cpus: vm::CPUS,
            patience: Patience::programs(1),
        };
        runs.extend(plan.kernels.iter().map(|&kernel| places::in_guest(&harness, kernel, &job, &selection)));
    }
    Ok(Report { cases: selection.cases, runs })
}

impl Report {
    /// Prints the table and what is wrong.
    pub(crate) fn show(&self) {
        say::line(format_args!("==> {} cases, ✓ right, ✗ wrong, – impossible there", self.cases.len()));
        matrix::terminal(&self.cases, &self.runs).iter().for_each(say::line);
        self.faults().iter().for_each(|fault| say::line(format_args!("WRONG {fault}")));
    }

    /// What is wrong, one line each.
    pub(crate) fn faults(&self) -> Vec<String> {
        verdict::faults(&self.cases, &self.runs)
    }

    /// The cases that failed or did not finish, each with the command that runs it again.
    pub(crate) fn failures(&self) -> Vec<Failure> {
        let of_run = |run: &Run| {
            let place = match run.place {
                HOST => String::new(),
                kernel => format!(" --no-host --kernel {kernel}"),
            };
            let (wrong, unfinished) = (run.transcript.wrong(), run.transcript.unfinished.clone());
            let cases: Vec<_> = wrong.into_iter().chain(unfinished).collect();
            let named = |case: String| Failure {
                again: format!("cargo xtask corpus{place} {case}"),
                test: format!("{TEST} on {}: {case}", run.place),
            };
            let whole = run.failure.as_ref().filter(|_| cases.is_empty()).map(|_| Failure {
                test: format!("{TEST} on {}", run.place),
                again: format!("cargo xtask corpus{place}"),
            });
            cases.into_iter().map(named).chain(whole).collect::<Vec<_>>()
        };
        self.runs.iter().flat_map(of_run).collect()
    }

    /// The tests of all runs by outcome, without the cases that were impossible where they ran.
    pub(crate) fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for run in &self.runs {
            let mut counts = run.counts;
            counts.skip(run.transcript.skips.len());
            sum.add(counts);
        }
        sum
    }

    /// The cases that did not happen, their names with the place.
    pub(crate) fn into_skips(self) -> Vec<Skip> {
        let of_run = |run: Run| {
            let named = move |skip: Skip| Skip { test: format!("{TEST} on {}: {}", run.place, skip.test), ..skip };
            run.transcript.skips.into_iter().map(named)
        };
        self.runs.into_iter().flat_map(of_run).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        samples::{audit, cannot, cases, right, run, wrong},
        *,
    };

    #[test]
    fn what_was_right_the_second_time_is_right_and_what_was_wrong_twice_is_wrong() {
        let first = || {
            let mut run = run("7.2", vec![wrong("a", "late"), wrong("b", "late")], Some(audit(1, 1)));
            run.counts = Counts { passed: 1, failed: 2, skipped: 0 };
            run.failure = Some("the tests ended with status 101".to_owned());
            run
        };
        let both = first().mended_by(run("7.2", vec![right("a"), right("b")], Some(audit(1, 1))));
        assert_eq!((both.counts, both.failure), (Counts { passed: 3, failed: 0, skipped: 0 }, None));
        let one = first().mended_by(run("7.2", vec![right("a"), wrong("b", "again")], None));
        assert_eq!((one.transcript.wrong(), one.counts.failed), (vec!["b".to_owned()], 1));
        assert!(one.failure.is_some());
        // A run that broke off is not whole by that.
        let mut broken = first();
        broken.transcript.audit = None;
        assert!(broken.mended_by(run("7.2", vec![right("a"), right("b")], None)).failure.is_some());
    }

    #[test]
    fn what_failed_is_named_with_the_command_that_runs_it_again() {
        let of_host = run("host", vec![wrong("a", "late"), right("b")], Some(audit(1, 1)));
        let mut of_vm = run("7.2", vec![right("a")], None);
        of_vm.failure = Some("ended".to_owned());
        let failures = |of_vm| {
            let report = Report { cases: cases(), runs: vec![of_vm] };
            report.failures().into_iter().map(|failure| (failure.test, failure.again)).collect::<Vec<_>>()
        };
        let pair = |test: &str, again: &str| (test.to_owned(), again.to_owned());
        assert_eq!(failures(of_host), [pair("corpus on host: a", "cargo xtask corpus a")]);
        assert_eq!(failures(of_vm), [pair("corpus on 7.2", "cargo xtask corpus --no-host --kernel 7.2")]);
        let mut hung = run("7.2", vec![right("a")], None);
        (hung.failure, hung.transcript.unfinished) = (Some("ended".to_owned()), Some("b".to_owned()));
        assert_eq!(failures(hung), [pair("corpus on 7.2: b", "cargo xtask corpus --no-host --kernel 7.2 b")]);
    }

    #[test]
    fn a_case_that_cannot_be_is_counted_as_skipped_and_named_with_its_place() {
        let mut of_host = run("host", vec![right("a"), cannot("b", "no v2")], Some(audit(1, 1)));
        of_host.counts = Counts { passed: 3, failed: 0, skipped: 0 };
        of_host.transcript.skips = Skip::find("SKIP-OK b: no v2").into_iter().collect();
        let mut of_vm = run("5.10", vec![right("a"), right("b")], Some(audit(1, 1)));
        of_vm.counts = Counts { passed: 2, failed: 1, skipped: 0 };
        let report = Report { cases: cases(), runs: vec![of_host, of_vm] };
        assert_eq!(report.counts(), Counts { passed: 4, failed: 1, skipped: 1 });
        let skips = report.into_skips();
        let expected = Skip { test: "corpus on host: b".into(), reason: "no v2".into(), accepted: true };
        assert_eq!(skips, [expected]);
    }
}

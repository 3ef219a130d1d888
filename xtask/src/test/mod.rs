//! `cargo xtask test`: all that must hold before a change goes in, in one command, on any machine.
//!
//! The steps run one after another, also after a failure; only steps that need a failed step are left out. The summary
//! names each failed test and the command that runs it again. Its last line counts the tests. A live test that cannot
//! run here (no root, no BTF) says why in a file, see [`skips`]: it counts as skipped, not as passed, and on a build
//! server as a failure.
//!
//! A build server also boots virtual machines: the live tests that need systemd run in one, and the
//! [`corpus`](crate::corpus) in another with the newest kernel. For a person those are commands of their own.

pub(crate) mod guest;
pub(crate) mod harness;
pub(crate) mod live;
pub(crate) mod setup;
pub(crate) mod skips;
mod steps;
pub(crate) mod summary;

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{say, workspace};
use harness::Counts;
use skips::{Skip, SkipLog};
use steps::Step;
use summary::{Failure, Outcome};

/// Run all checks and tests: format, lints, unit tests, kernel object, live tests, corpus of deaths
///
/// Says what is missing on this machine and why it is needed, and installs it. The live tests kill real processes
/// inside cgroups of their own and need root: they are built as the invoking user and only the finished test programs run
/// as root, through sudo where that is possible. Without root each live test is skipped with its reason. With CI=true the
/// kernel tool chain and what the corpus needs are installed as well, live tests run in virtual machines too (real systemd,
/// other kernels), and a skip for lack of root or BTF is a failure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Install nothing; where something is missing, list it with the commands that bring it, and fail
    #[arg(long)]
    no_install: bool,
    /// Leave out the live tests, the corpus, and the build of what they run
    #[arg(long)]
    no_live: bool,
    /// Run this step alone, and what it needs
    #[arg(long, value_name = "STEP", value_parser = steps::names())]
    only: Option<String>,
    /// Run only tests whose names contain one of these; the other checks run as always
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
}

/// What the steps share and leave behind for the summary.
struct Session {
    args: Args,
    counts: Counts,
    skips: Vec<Skip>,
    failures: Vec<Failure>,
    log: SkipLog,
    /// The agent's binary, once it is built.
    defib: Option<PathBuf>,
}

pub(crate) fn execute(args: Args) -> Result<ExitCode> {
    let steps = steps::chosen(args.only.as_deref(), args.no_live);
    let log = SkipLog::create(&workspace::target())?;
    let (counts, skips, failures) = (Counts::default(), Vec::new(), Vec::new());
    let mut session = Session { args, counts, skips, failures, log, defib: None };

    let outcomes = run_all(&steps, |index, step| {
        say::line(format_args!("==> [{}/{}] {}: {}", index + 1, steps.len(), step.name, step.what));
        (step.run)(&mut session)
    });
    summary::print(&outcomes, &session.skips, &session.failures, session.counts);
    let failed = outcomes.iter().any(|(_, outcome)| !matches!(outcome, Outcome::Passed(_)));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Runs each step, except those that need a step that failed or was left out.
fn run_all(steps: &[Step], mut run: impl FnMut(usize, &Step) -> Result<()>) -> Vec<(&'static str, Outcome)> {
    let mut outcomes: Vec<(&str, Outcome)> = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let is_lacking = |needed: &&str| {
            outcomes.iter().any(|(name, outcome)| name == needed && !matches!(outcome, Outcome::Passed(_)))
        };
        let outcome = match step.needs.iter().copied().find(is_lacking) {
            Some(needed) => Outcome::LeftOut(needed),
            None => {
                let start = Instant::now();
                Outcome::of(run(index, step), start.elapsed(), step)
            }
        };
        outcomes.push((step.name, outcome));
    }
    outcomes
}

impl Outcome {
    fn of(result: Result<()>, time: Duration, step: &Step) -> Self {
        match result {
            Ok(()) => Self::Passed(time),
            Err(error) => Self::Failed(time, format!("{error:#}"), step.again()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_fails_keeps_only_those_from_running_that_need_it() {
        let steps = steps::chosen(None, false);
        let run = |failing: &[&str]| {
            let mut ran = Vec::new();
            let outcomes = run_all(&steps, |_, step| {
                ran.push(step.name);
                anyhow::ensure!(!failing.contains(&step.name), "broken");
                Ok(())
            });
            let left_out: Vec<_> = outcomes
                .iter()
                .filter(|(_, outcome)| matches!(outcome, Outcome::LeftOut(_)))
                .map(|(name, _)| *name)
                .collect();
            assert_eq!(ran.len() + left_out.len(), steps.len());
            left_out
        };
        assert!(run(&[]).is_empty());
        assert!(run(&["tools", "clippy", "unit tests", "live tests", "corpus"]).is_empty());
        assert_eq!(run(&["build"]), ["live tests", "corpus", "machines"]);
    }

    #[test]
    fn a_step_that_is_chosen_comes_with_what_it_needs() {
        let names = |only, no_live| steps::chosen(only, no_live).iter().map(|step| step.name).collect::<Vec<_>>();
        assert_eq!(names(Some("unit tests"), false), ["unit tests"]);
        assert_eq!(names(Some("live tests"), false), ["build", "live tests"]);
        assert!(!names(None, true).contains(&"build"));
        assert_eq!(names(None, false).len(), steps::ALL.len());
    }
}

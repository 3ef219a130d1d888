//! `cargo xtask test`: all that must hold before a change goes in, in one command, on any machine.
//!
//! The steps run one after another and the first failure ends the run; the summary is printed in any case. Its last line
//! counts the tests. A live test that cannot run here (no root, no BTF) says why in a file, see [`skips`]: it counts as
//! skipped, not as passed, and on a build server as a failure.
//!
//! A build server also boots virtual machines: the live tests that need systemd run in one, and the
//! [`corpus`](crate::corpus) in another with the newest kernel. For a person those are commands of their own.

pub(crate) mod guest;
pub(crate) mod harness;
pub(crate) mod live;
pub(crate) mod setup;
pub(crate) mod skips;
mod steps;
mod summary;

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
use summary::Outcome;

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
    /// Run only tests whose names contain one of these; the other checks run as always
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
}

/// What the steps share and leave behind for the summary.
struct Session {
    args: Args,
    counts: Counts,
    skips: Vec<Skip>,
    log: SkipLog,
    /// The agent's binary, once it is built.
    defib: Option<PathBuf>,
}

pub(crate) fn execute(args: Args) -> Result<ExitCode> {
    let steps: Vec<Step> = steps::ALL.into_iter().filter(|step| !(args.no_live && step.live)).collect();
    let log = SkipLog::create(&workspace::target())?;
    let mut session = Session { args, counts: Counts::default(), skips: Vec::new(), log, defib: None };

    let mut outcomes: Vec<(&str, Outcome)> = Vec::new();
    let mut failed = false;
    for (index, step) in steps.iter().enumerate() {
        if failed {
            outcomes.push((step.name, Outcome::NotRun));
            continue;
        }
        say::line(format_args!("==> [{}/{}] {}: {}", index + 1, steps.len(), step.name, step.what));
        let start = Instant::now();
        let result = (step.run)(&mut session);
        failed = result.is_err();
        outcomes.push((step.name, Outcome::of(result, start.elapsed())));
    }
    summary::print(&outcomes, &session.skips, session.counts);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl Outcome {
    fn of(result: Result<()>, time: Duration) -> Self {
        match result {
            Ok(()) => Self::Passed(time),
            Err(error) => Self::Failed(time, format!("{error:#}")),
        }
    }
}

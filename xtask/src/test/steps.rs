//! The steps of the test command, in their order: the cheap ones first.

use std::{io, process::Command};

use anyhow::Result;

use super::{Session, harness, live, setup, skips};
use crate::{artifacts, ebpf, process, workspace};

/// One step.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) name: &'static str,
    /// What it does, for the line that announces it.
    pub(super) what: &'static str,
    /// Whether it is there for the live tests only.
    pub(super) live: bool,
    pub(super) run: fn(&mut Session) -> Result<()>,
}

pub(super) const ALL: [Step; 7] = [
    Step { name: "tools", what: "is everything here that the other steps need?", live: false, run: tools },
    Step { name: "format", what: "cargo fmt", live: false, run: format },
    Step { name: "clippy", what: "lints of the whole workspace, warnings are errors", live: false, run: clippy },
    Step { name: "unit tests", what: "all packages except the live tests", live: false, run: unit },
    Step {
        name: "kernel object",
        what: "does the committed object follow from its sources?",
        live: false,
        run: object,
    },
    Step { name: "build", what: "the agent and the programs that the live tests kill", live: true, run: build },
    Step {
        name: "live tests",
        what: "real deaths on this machine's kernel, one test at a time",
        live: true,
        run: live,
    },
];

fn tools(session: &mut Session) -> Result<()> {
    setup::provide(!session.args.no_install)
}

fn format(_: &mut Session) -> Result<()> {
    process::run(workspace::cargo().args(["fmt", "--all", "--", "--check"]))
}

fn clippy(_: &mut Session) -> Result<()> {
    let mut command = workspace::cargo();
    process::run(command.args(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))
}

fn unit(session: &mut Session) -> Result<()> {
    let mut command = workspace::cargo();
    command.args(["test", "--workspace", "--exclude", "monitor-ebpf", "--exclude", "tests", "--locked"]);
    run_tests(
        command.args(["--no-fail-fast", "--"]).args(&session.args.filters).env(skips::VARIABLE, session.log.path()),
        session,
    )
}

fn object(session: &mut Session) -> Result<()> {
    ebpf::check(!session.args.no_install)
}

fn build(session: &mut Session) -> Result<()> {
    let built = artifacts::release()?;
    session.defib = Some(artifacts::program(&built, "defib")?.to_path_buf());
    Ok(())
}

fn live(session: &mut Session) -> Result<()> {
    live::run(session)
}

/// Runs a test program (or a cargo that runs several) and books its tests and skips.
pub(super) fn run_tests(command: &mut Command, session: &mut Session) -> Result<()> {
    let run = harness::run(command, &mut io::stdout())?;
    let skips = session.log.take()?;
    session.counts.add(run.counts);
    session.counts.skip(skips.len());
    session.skips.extend(skips);
    run.result
}

//! The steps of the test command, in their order: the cheap ones first.

use std::{
    io::{self, Write as _},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Session, guest, harness, live, setup, skips};
use crate::{
    artifacts, corpus, ebpf, foreign, process, say, supply,
    vm::{self, Harness, Kernel},
    workspace,
};

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

pub(super) const ALL: [Step; 10] = [
    Step { name: "tools", what: "is everything here that the other steps need?", live: false, run: tools },
    Step { name: "format", what: "cargo fmt", live: false, run: format },
    Step { name: "clippy", what: "lints of the whole workspace, warnings are errors", live: false, run: clippy },
    Step {
        name: "dependencies",
        what: "licences, sources, double versions, advisories",
        live: false,
        run: dependencies,
    },
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
    Step { name: "corpus", what: "every way to die, with the cause that must be given", live: true, run: corpus },
    Step {
        name: "machines",
        what: "live tests with a real systemd, the package's, and the corpus on the newest kernel, in virtual machines \
               (on build servers)",
        live: true,
        run: machines,
    },
];

fn tools(session: &mut Session) -> Result<()> {
    setup::provide(!session.args.no_install, !session.args.no_live)
}

fn format(_: &mut Session) -> Result<()> {
    process::run(workspace::cargo().args(["fmt", "--all", "--", "--check"]))
}

fn clippy(_: &mut Session) -> Result<()> {
    let mut command = workspace::cargo();
    process::run(command.args(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))
}

fn dependencies(_: &mut Session) -> Result<()> {
    supply::check()
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
    let defib = artifacts::program(&built, "defib")?.to_path_buf();
    foreign::build(defib.parent().context("a program is in a directory")?)?;
    session.defib = Some(defib);
    Ok(())
}

fn live(session: &mut Session) -> Result<()> {
    live::run(session)
}

/// The kernel of Debian's stable release, which most of our users' systemd runs on.
const SYSTEMD_KERNEL: Kernel = Kernel::V6_1;
/// The newest: its programs can be preempted, which no other step sees. The others are for `cargo xtask corpus --all`; each takes
/// five minutes, and a build server has 35 for everything.
const CORPUS_KERNELS: &[Kernel] = &[Kernel::V7_2];
/// Twice what a machine has been seen to take for either alone; emulation is slow on a busy build server.
const MACHINE_TIME: Duration = Duration::from_secs(900);
/// Likewise for what systemd keeps, a minute without memory among it.
const KEPT_TIME: Duration = Duration::from_secs(360);
/// Likewise for the installation, after the tests with systemd.
const INSTALL_TIME: Duration = Duration::from_secs(300);

fn corpus(session: &mut Session) -> Result<()> {
    let report = corpus::run(&corpus_of(session, true, &[]))?;
    book(report, session)
}

/// Two machines at a time: each waits more than it works.
fn machines(session: &mut Session) -> Result<()> {
    if !workspace::in_ci() {
        say::line(
            "left to build servers; by hand: cargo xtask vm --kernel 6.1 --test systemd --deadline 900, then --test kept \
             and --test install, and cargo xtask corpus --kernel 7.2",
        );
        return Ok(());
    }
    let install = !session.args.no_install;
    // What may be missing is brought once, before both need it.
    Harness::prepare(&[], install)?;
    let (names, time) = (["systemd", "kept", vm::INSTALL], MACHINE_TIME + KEPT_TIME + INSTALL_TIME);
    let (units, report) = thread::scope(|scope| {
        let units = scope.spawn(|| guest::live_tests(&names, SYSTEMD_KERNEL, time, install));
        let report = corpus::run(&corpus_of(session, false, CORPUS_KERNELS));
        (units.join(), report)
    });
    let Ok(units) = units else { bail!("the machine with systemd was not looked after to its end") };
    let units = units?;
    say::line(format_args!("==> what the tests said on {}", SYSTEMD_KERNEL.name()));
    io::stdout().write_all(&units.output)?;
    session.counts.add(units.counts);
    let deaths = book(report?, session);
    units.failure.map_or(Ok(()), |failure| bail!(failure))?;
    deaths
}

fn corpus_of<'a>(session: &'a Session, host: bool, kernels: &'a [Kernel]) -> corpus::Plan<'a> {
    let (filters, install) = (&session.args.filters, !session.args.no_install);
    corpus::Plan { host, kernels, filters, deadline: MACHINE_TIME, install }
}

/// Shows what the corpus found, and books it.
fn book(report: corpus::Report, session: &mut Session) -> Result<()> {
    report.show();
    let faults = report.faults();
    session.counts.add(report.counts());
    let skips = report.into_skips();
    let refused = live::refuse_skips(&skips);
    session.skips.extend(skips);
    ensure!(faults.is_empty(), "{}", faults.join("; "));
    refused
}

/// Runs a test program (or a cargo that runs several) and books its tests and skips.
pub(super) fn run_tests(command: &mut Command, session: &mut Session) -> Result<()> {
    book_tests(harness::run(command, &mut io::stdout())?, session)
}

/// Books the tests of a run, and what was skipped since the last one was booked.
pub(super) fn book_tests(run: harness::Run, session: &mut Session) -> Result<()> {
    let skips = session.log.take()?;
    session.counts.add(run.counts);
    session.counts.skip(skips.len());
    session.skips.extend(skips);
    run.result
}

//! The steps of the test command, in their order: the cheap ones first.

use std::{
    io::{self, Write as _},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::{Session, guest, harness, live, setup, skips, summary::Failure};
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
    /// The steps that it needs.
    pub(super) needs: &'static [&'static str],
    pub(super) run: fn(&mut Session) -> Result<()>,
}

pub(super) const ALL: [Step; 10] = [
    Step { name: "tools", what: "is everything here that the other steps need?", live: false, needs: &[], run: tools },
    Step { name: "format", what: "cargo fmt", live: false, needs: &[], run: format },
    Step {
        name: "clippy",
        what: "lints of the whole workspace, warnings are errors",
        live: false,
        needs: &[],
        run: clippy,
    },
    Step {
        name: "dependencies",
        what: "licences, sources, double versions, advisories",
        live: false,
        needs: &[],
        run: dependencies,
    },
    Step { name: UNIT, what: "all packages except the live tests", live: false, needs: &[], run: unit },
    Step {
        name: "kernel object",
        what: "does the committed object follow from its sources?",
        live: false,
        needs: &[],
        run: object,
    },
    Step {
        name: "build",
        what: "the agent and the programs that the live tests kill",
        live: true,
        needs: &[],
        run: build,
    },
    Step {
        name: LIVE,
        what: "real deaths on this machine's kernel, one test at a time",
        live: true,
        needs: &["build"],
        run: live,
    },
    Step {
        name: "corpus",
        what: "every way to die, with the cause that must be given",
        live: true,
        needs: &["build"],
        run: corpus,
    },
    Step {
        name: "machines",
        what: "live tests with a real systemd, the package's, and the corpus on the newest kernel, in virtual machines \
               (on build servers)",
        live: true,
        needs: &["build"],
        run: machines,
    },
];

impl Step {
    /// The command that runs it alone.
    pub(super) fn again(&self) -> String {
        again(self.name)
    }
}

fn again(name: &str) -> String {
    let quote = if name.contains(' ') { "'" } else { "" };
    format!("cargo xtask test --only {quote}{name}{quote}")
}

/// Parser for the argument: accepts the names of all steps.
pub(super) fn names() -> impl TypedValueParser<Value = String> {
    PossibleValuesParser::new(ALL.map(|step| step.name))
}

/// The step `only` and those it needs; or all steps, with `no_live` without those for the live tests.
pub(super) fn chosen(only: Option<&str>, no_live: bool) -> Vec<Step> {
    let chosen = ALL.into_iter().filter(|step| only.is_none_or(|name| step.name == name));
    let needed: Vec<_> = chosen.clone().flat_map(|step| step.needs).collect();
    ALL.into_iter()
        .filter(|step| match only {
            Some(name) => step.name == name || needed.contains(&&step.name),
            None => !(no_live && step.live),
        })
        .collect()
}

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
        UNIT,
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
/// The live tests that run one after the other in one virtual machine.
const IN_MACHINE: [&str; 3] = ["systemd", "kept", vm::INSTALL];

fn corpus(session: &mut Session) -> Result<()> {
    let report = corpus::run(&corpus_of(session, true, &[]))?;
    book(report, session)
}

/// Two machines at a time: each waits more than it works.
fn machines(session: &mut Session) -> Result<()> {
    if !workspace::in_ci() {
        say::line("left to build servers; by hand:");
        by_hand().iter().for_each(|command| say::line(format_args!("    {command}")));
        return Ok(());
    }
    let install = !session.args.no_install;
    // What may be missing is brought once, before both need it.
    Harness::prepare(&[], install)?;
    let (units, report) = thread::scope(|scope| {
        let units = scope.spawn(|| guest::live_tests(&IN_MACHINE, SYSTEMD_KERNEL, install));
        let report = corpus::run(&corpus_of(session, false, CORPUS_KERNELS));
        (units.join(), report)
    });
    let Ok(units) = units else { bail!("the machine with systemd was not looked after to its end") };
    let units = units?;
    say::line(format_args!("==> what the tests said on {}", SYSTEMD_KERNEL.name()));
    io::stdout().write_all(&units.output)?;
    session.counts.add(units.counts);
    session.failures.extend(guest::failures(&units, SYSTEMD_KERNEL));
    let deaths = book(report?, session);
    units.failure.map_or(Ok(()), |failure| bail!(failure))?;
    deaths
}

/// The commands of this step, for running them by hand.
fn by_hand() -> Vec<String> {
    let test = |name| format!("cargo xtask vm --kernel {} --test {name}", SYSTEMD_KERNEL.name());
    let corpus = |kernel: &Kernel| format!("cargo xtask corpus --no-host --kernel {}", kernel.name());
    IN_MACHINE.into_iter().map(test).chain(CORPUS_KERNELS.iter().map(corpus)).collect()
}

fn corpus_of<'a>(session: &'a Session, host: bool, kernels: &'a [Kernel]) -> corpus::Plan<'a> {
    let (filters, install) = (&session.args.filters, !session.args.no_install);
    corpus::Plan { host, kernels, filters, install }
}

/// Shows what the corpus found, and books it.
fn book(report: corpus::Report, session: &mut Session) -> Result<()> {
    report.show();
    let faults = report.faults();
    session.counts.add(report.counts());
    session.failures.extend(report.failures());
    let skips = report.into_skips();
    let refused = live::refuse_skips(&skips);
    session.skips.extend(skips);
    ensure!(faults.is_empty(), "{}", faults.join("; "));
    refused
}

/// Names of the steps whose tests are counted.
pub(super) const UNIT: &str = "unit tests";
pub(super) const LIVE: &str = "live tests";

/// Runs a test program (or a cargo that runs several) of this step, and records its tests and skips.
pub(super) fn run_tests(command: &mut Command, step: &str, session: &mut Session) -> Result<()> {
    book_tests(harness::run(command, &mut io::stdout())?, step, session)
}

/// Books the tests of a run, and what was skipped since the last one was booked.
pub(super) fn book_tests(run: harness::Run, step: &str, session: &mut Session) -> Result<()> {
    let skips = session.log.take()?;
    session.counts.add(run.counts);
    session.counts.skip(skips.len());
    session.skips.extend(skips);
    let failure = |test: String| {
        let filter = if test == harness::DIED { String::new() } else { format!(" {test}") };
        Failure { again: format!("{}{filter}", again(step)), test }
    };
    session.failures.extend(run.failed.into_iter().map(failure));
    run.result
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn the_commands_that_are_named_for_a_person_are_commands() {
        for command in by_hand() {
            let words = command.strip_prefix("cargo xtask ").expect("of ours").split(' ');
            crate::Cli::try_parse_from(["xtask"].into_iter().chain(words)).unwrap_or_else(|error| panic!("{error}"));
        }
        for name in [UNIT, LIVE] {
            let words = ["xtask", "test", "--only", name, "some::test"];
            crate::Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
        }
        let again = ["xtask", "vm", "--kernel", "6.1", "--test", "systemd", "--", "some::test"];
        crate::Cli::try_parse_from(again).unwrap_or_else(|error| panic!("{error}"));
    }
}

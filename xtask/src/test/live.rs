//! The live tests: programs of the package `tests` that load the kernel programs and cause real deaths.
//!
//! They are built as the invoking user. Only the finished programs run as root, one after another (but for some) and one test
//! at a time, since all of them count on the same kernel.

use std::{
    env,
    ffi::OsStr,
    io::{self, Write as _},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, bail};

use super::{Session, harness, skips, steps};
use crate::{
    artifacts::{self, Executable},
    corpus,
    privilege::Privilege,
    process, say, workspace,
};

/// Names the agent's binary to the tests.
pub(crate) const BINARY: &str = "DEFIB_BINARY";
/// What a test program may look at of our environment; sudo drops what it is not told to keep.
const PASSED_ON: [&str; 4] = ["CI", "RUST_BACKTRACE", "RUST_LOG", "TMPDIR"];

/// All of them except the corpus, which has a step of its own.
pub(super) fn run(session: &mut Session) -> Result<()> {
    let built = artifacts::live_tests()?;
    let privilege = Privilege::available()?;
    match privilege {
        Privilege::Root => {}
        Privilege::Sudo => say::line("the tests need root: running them through sudo, which may ask for your password"),
        Privilege::Unprivileged => say::line("neither root nor sudo: each test that needs root says so and is skipped"),
    }
    let mut programs: Vec<_> = built.iter().filter(|built| built.name != corpus::TEST).collect();
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    let is_beside = |program: &&Executable| BESIDE.iter().any(|(_, beside)| program.name == *beside);
    let (mut beside, programs): (Vec<_>, Vec<_>) = programs.into_iter().partition(is_beside);

    let before = session.skips.len();
    let mut result = Ok(());
    for program in programs {
        let beside =
            beside.extract_if(.., |other| BESIDE.contains(&(program.name.as_str(), other.name.as_str()))).next();
        // One that fails does not keep the others from running.
        result = result.and(run_programs(program, beside, privilege, session));
    }
    for program in beside {
        result = result.and(run_programs(program, None, privilege, session));
    }
    result?;
    refuse_skips(&session.skips[before..])
}

/// The two of a pair run at the same time. They wait most of the time, for leases, leaks, engines and forecasts, take a sixth of two
/// processors at most, and look at services of their own only; what else dies on the host is nothing to them.
const BESIDE: [(&str, &str); 2] = [("fleet", "leak"), ("containers", "planned")];

/// Runs a program, and another one beside it whose output comes after.
fn run_programs(
    program: &Executable,
    beside: Option<&Executable>,
    privilege: Privilege,
    session: &mut Session,
) -> Result<()> {
    let defib = session.defib.clone().context("the agent has not been built")?;
    let log = session.log.path().to_path_buf();
    let variables = [(skips::VARIABLE, log.as_os_str()), (BINARY, defib.as_os_str())];
    let start = |program| {
        let mut command = command(program, privilege, &variables);
        command.args(&session.args.filters);
        say::line(format_args!("--> {}", process::shown(&command)));
        command
    };
    let mut here = start(program);
    let Some(beside) = beside else { return steps::run_tests(&mut here, steps::LIVE, session) };
    let (mut there, mut output) = (start(beside), Vec::new());
    let (here, there) = thread::scope(|scope| {
        let there = scope.spawn(|| harness::run(&mut there, &mut output));
        (harness::run(&mut here, &mut io::stdout()), there.join())
    });
    io::stdout().write_all(&output)?;
    let Ok(there) = there else { bail!("{} was not looked after to its end", beside.name) };
    // Both are booked, whatever came of either.
    let book = |run: Result<harness::Run>| steps::book_tests(run?, steps::LIVE, session);
    let [here, there] = [here, there].map(book);
    here.and(there)
}

/// A test program, ready to start, with these variables beside what it may look at of our environment.
pub(crate) fn command(program: &Executable, privilege: Privilege, variables: &[(&str, &OsStr)]) -> Command {
    let kept: Vec<_> = PASSED_ON.iter().filter_map(|&name| Some((name, env::var_os(name)?))).collect();
    let mut all: Vec<(&str, &OsStr)> = kept.iter().map(|(name, value)| (*name, value.as_os_str())).collect();
    all.extend(variables);
    let mut command = privilege.command(program.path.as_os_str(), &all);
    command.current_dir(&program.package).arg("--test-threads=1");
    command
}

/// On a build server, a test that could have run and did not is a failure.
pub(super) fn refuse_skips(skips: &[skips::Skip]) -> Result<()> {
    let refused: Vec<_> = skips.iter().filter(|skip| !skip.accepted).map(|skip| skip.test.as_str()).collect();
    if workspace::in_ci() && !refused.is_empty() {
        bail!("skipped on a build server, where they must run: {}", refused.join(", "));
    }
    Ok(())
}

//! A test program in a virtual machine: its output is passed on, and counted.

use std::{
    io::{self, Write},
    time::Duration,
};

use anyhow::Result;

use super::harness::{self, Counts};
use crate::{
    artifacts, dist,
    tee::Tee,
    vm::{self, Harness, Job, Kernel, Outcome, Program},
};

/// What came of it.
pub(crate) struct Guest {
    /// All that it printed.
    pub(crate) output: Vec<u8>,
    /// Its tests; one has failed at least when it did not end well.
    pub(crate) counts: Counts,
    /// Why it did not end well.
    pub(crate) failure: Option<String>,
}

/// Runs `job`, a test program, on `kernel`; `show` gets its output as it comes.
pub(crate) fn run(harness: &Harness, kernel: Kernel, job: &Job<'_>, show: impl Write) -> Guest {
    let mut output = Vec::new();
    let failure = match harness.run(kernel, job, &mut Tee(show, &mut output)) {
        Ok(Outcome { status: 0, .. }) => None,
        Ok(Outcome { status, .. }) => Some(format!("the tests ended with status {status}")),
        Err(error) => Some(format!("{error:#}")),
    };
    let mut counts = harness::counts(&output);
    if failure.is_some() && counts.failed == 0 {
        counts.failed = 1;
    }
    Guest { output, counts, failure }
}

/// Builds the live tests `names` and runs them one after the other on `kernel`, our packages beside them; `time` is for all of it,
/// boot included. Shows nothing meanwhile.
pub(super) fn live_tests(names: &[&str], kernel: Kernel, time: Duration, install: bool) -> Result<Guest> {
    let harness = Harness::prepare(&[], install)?;
    let mut built = artifacts::release()?;
    let packages = dist::for_upgrade(artifacts::program(&built, "defib")?)?;
    for name in names {
        built.push(artifacts::live_test(name)?);
    }
    let programs: Vec<_> = built.into_iter().map(Program::from).collect();
    // All of them run, also after one that failed.
    let mut script = "status=0\n".to_owned();
    for name in names {
        script.push_str(&format!("{} || status=$?\n", vm::test_script(name, &[])));
    }
    script.push_str("exit $status");
    let (memory_mib, cpus) = (vm::MEMORY_MIB, vm::CPUS);
    let job = Job { programs: &programs, with: &packages, script: Some(&script), memory_mib, cpus, deadline: time };
    Ok(run(&harness, kernel, &job, io::sink()))
}

//! A test program in a virtual machine: its output goes through to the terminal, and is counted.

use std::{io, time::Duration};

use anyhow::Result;

use super::harness::{self, Counts};
use crate::{
    artifacts,
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

/// Runs `job`, a test program, on `kernel`.
pub(crate) fn run(harness: &Harness, kernel: Kernel, job: &Job<'_>) -> Guest {
    let mut output = Vec::new();
    let failure = match harness.run(kernel, job, &mut Tee(io::stdout(), &mut output)) {
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

/// Builds the live test `name` and runs it on `kernel`; `time` is for all of it, boot included.
pub(super) fn live_test(name: &str, kernel: Kernel, time: Duration, install: bool) -> Result<Guest> {
    let harness = Harness::prepare(&[], install)?;
    let mut built = artifacts::release()?;
    built.push(artifacts::live_test(name)?);
    let programs: Vec<_> = built.into_iter().map(Program::from).collect();
    let script = vm::test_script(name, &[]);
    let (memory_mib, cpus) = (vm::MEMORY_MIB, vm::CPUS);
    let job = Job { programs: &programs, with: &[], script: Some(&script), memory_mib, cpus, deadline: time };
    Ok(run(&harness, kernel, &job))
}

//! A test program in a virtual machine: its output is passed on, and counted.

use std::io::{self, Write};

use anyhow::Result;

use super::{
    harness::{self, Counts},
    summary::Failure,
};
use crate::{
    artifacts, dist,
    tee::Tee,
    vm::{self, Harness, Job, Kernel, Outcome, Patience, Program},
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
    let (mut counts, _) = harness::read(&output);
    if failure.is_some() && counts.failed == 0 {
        counts.failed = 1;
    }
    Guest { output, counts, failure }
}

/// Line before the output of each program.
const PROGRAM: &str = "==> test program ";

/// Builds the live tests `names` and runs them one after the other on `kernel`, with our packages. Prints nothing
/// meanwhile.
pub(super) fn live_tests(names: &[&str], kernel: Kernel, install: bool) -> Result<Guest> {
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
        script.push_str(&format!("echo '{PROGRAM}{name}'\n{} || status=$?\n", vm::test_script(name, &[])));
    }
    script.push_str("exit $status");
    let (memory_mib, cpus) = (vm::MEMORY_MIB, vm::CPUS);
    let patience = Patience::programs(names.len());
    let job = Job { programs: &programs, with: &packages, script: Some(&script), memory_mib, cpus, patience };
    Ok(run(&harness, kernel, &job, io::sink()))
}

/// The tests that failed in a machine that ran several programs, each with the command that runs it again.
pub(super) fn failures(guest: &Guest, kernel: Kernel) -> Vec<Failure> {
    let (text, kernel) = (String::from_utf8_lossy(&guest.output), kernel.name());
    let mut failures = Vec::new();
    for part in text.split(PROGRAM).skip(1) {
        let (name, output) = part.split_once('\n').unwrap_or((part, ""));
        let (_, failed) = harness::read(output.as_bytes());
        failures.extend(failed.into_iter().map(|test| Failure {
            again: format!("cargo xtask vm --kernel {kernel} --test {} -- {test}", name.trim_end()),
            test: format!("{} on {kernel}: {test}", name.trim_end()),
        }));
    }
    failures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_test_that_failed_in_a_machine_has_a_command_that_names_its_program() {
        let output = "noise\n==> test program systemd\r\nrunning 2 tests\ntest a ... ok\ntest b ... FAILED\n\nfailures:\n\n\
                      failures:\n    b\n\ntest result: FAILED. 1 passed; 1 failed; 0 ignored\n\
                      ==> test program kept\nrunning 1 test\ntest c ... half";
        let guest =
            Guest { output: output.as_bytes().to_vec(), counts: Counts::default(), failure: Some("ended".to_owned()) };
        let failures = failures(&guest, Kernel::V6_1);
        let shown: Vec<_> = failures.iter().map(|failure| (failure.test.as_str(), failure.again.as_str())).collect();
        let expected = [
            ("systemd on 6.1: b", "cargo xtask vm --kernel 6.1 --test systemd -- b"),
            ("kept on 6.1: c", "cargo xtask vm --kernel 6.1 --test kept -- c"),
        ];
        assert_eq!(shown, expected);
    }
}

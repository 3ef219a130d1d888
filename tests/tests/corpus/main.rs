//! The corpus of deaths: every way a process can die, each really caused on the running kernel, each with the cause that
//! `defib watch` must give.
//!
//! One watcher sees them all. Every case prints a line `CELL {…}` for the table of results; at the end the audit compares
//! what was seen with the kernel's own count of OOM kills and prints `AUDIT {…}`. A case that cannot happen on this
//! machine says why.
//!
//! * [`case`]: what a case is, and how it is judged
//! * [`stage`]: what all cases share: the watcher, the Docker engine, the kernel's counts
//! * [`scene`]: what one case uses: its processes' deaths, its cgroups
//! * [`facts`]: what this machine has
//! * the other modules: the cases, one group each

mod applications;
mod audit;
mod case;
mod containers;
mod daemons;
mod ends;
mod facts;
mod faults;
mod host;
mod memory;
mod scene;
mod signals;
mod stage;
mod systemd;

use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::{Arguments, Trial};

use crate::{case::Case, stage::Stage};

/// All cases, in the order in which they run.
fn cases() -> impl Iterator<Item = &'static Case> {
    [
        memory::CASES,
        host::CASES,
        signals::CASES,
        daemons::CASES,
        systemd::CASES,
        faults::CASES,
        ends::CASES,
        containers::CASES,
        applications::CASES,
    ]
    .into_iter()
    .flatten()
}

fn main() {
    let stage = Arc::new(Mutex::new(Stage::default()));
    // A case that panics says so itself; the next one finds the stage as it is.
    let on_stage = |act: fn(&mut Stage) -> _| {
        let stage = Arc::clone(&stage);
        move || act(&mut stage.lock().unwrap_or_else(PoisonError::into_inner))
    };
    let mut trials: Vec<Trial> = cases()
        .map(|case| {
            let stage = Arc::clone(&stage);
            Trial::test(case.id, move || case.judge(&mut stage.lock().unwrap_or_else(PoisonError::into_inner)))
        })
        .collect();
    trials.push(Trial::test("audit", on_stage(audit::judge)));
    let mut arguments = Arguments::from_args();
    // The kernel's counts are the whole machine's: one death after the other.
    arguments.test_threads = Some(1);
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(stage);
    conclusion.exit();
}

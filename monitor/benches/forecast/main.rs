//! How good the forecast is, on simulated services. `cargo xtask bench forecast` runs this and writes docs/forecast.md.
//!
//! * [`service`]: services that leak and services that do not
//! * [`rules`]: what people use today, on the same minutes
//! * [`replay`]: one service through the forecaster
//! * [`report`]: the tables

mod random;
mod replay;
mod report;
mod rules;
mod service;

use std::{
    ops::Range,
    process::ExitCode,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use clap::Parser;

use replay::{Outcome, replay};
use service::{HEALTHY, LEAKING, Schedule};

/// What constants are chosen on.
const DEVELOPMENT: Range<u64> = 0..1_000_000;
/// What is reported: never looked at while choosing.
const REPORTING: Range<u64> = 1_000_000..2_000_000;

/// Measures the forecast on simulated services
#[derive(Parser)]
struct Args {
    /// Draw from the seeds that reports are made of
    #[arg(long)]
    report: bool,
    /// Services of each family and schedule
    #[arg(long, default_value_t = 20)]
    each: u64,
    /// Hide the load from the forecaster
    #[arg(long)]
    no_load: bool,
    /// A line for each miss and each false alarm
    #[arg(long)]
    misses: bool,
    #[arg(long)]
    only: Option<u64>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// One service, and what became of it.
struct Row {
    leaking: bool,
    family: usize,
    schedule: Schedule,
    seed: u64,
    outcome: Outcome,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let rows = run(&args);
    report::print(&rows, &args);
    ExitCode::SUCCESS
}

fn run(args: &Args) -> Vec<Row> {
    let range = if args.report { REPORTING } else { DEVELOPMENT };
    let mut jobs = Vec::new();
    for index in 0..args.each {
        for leaking in [false, true] {
            for family in 0..if leaking { LEAKING.len() } else { HEALTHY.len() } {
                for schedule in Schedule::ALL {
                    let seed = range.start + jobs.len() as u64;
                    if args.only.is_some_and(|only| only != seed) {
                        jobs.push((leaking, 99, schedule, seed));
                        continue;
                    }
                    assert!(range.contains(&seed), "{index}: more services than seeds");
                    jobs.push((leaking, family, schedule, seed));
                }
            }
        }
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut rows = Vec::new();
        while let Some(&(leaking, family, schedule, seed)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            if family == 99 {
                continue;
            }
            let families = if leaking { &LEAKING } else { &HEALTHY };
            let outcome = replay(&families[family], schedule, seed, !args.no_load);
            rows.push(Row { leaking, family, schedule, seed, outcome });
        }
        rows
    };
    let mut rows = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..thread::available_parallelism().map_or(1, usize::from)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect::<Vec<_>>()
    });
    rows.sort_by_key(|row| row.seed);
    rows
}

//! How good the forecast is, on simulated services. `cargo xtask bench forecast` runs this and writes docs/forecast.md.
//!
//! * [`service`]: services that leak and services that do not
//! * [`first`]: the first algorithm, on the same minutes
//! * [`rules`]: what people use today, on the same minutes
//! * [`replay`]: one service through the forecaster
//! * [`report`]: the tables

mod first;
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
use service::{Family, HEALTHY, LEAKING, Schedule};

/// What constants are chosen on.
const DEVELOPMENT: Range<u64> = 0..1_000_000;
/// What the choice is checked on.
const CHECKING: Range<u64> = 1_000_000..2_000_000;
/// What is reported: never looked at while choosing. Each million between was reported once, before changes
/// that followed; the second is for checks on the way.
const REPORTING: Range<u64> = 5_000_000..6_000_000;

/// Measures the forecast on simulated services
#[derive(Parser)]
struct Args {
    /// Draw from the seeds that reports are made of
    #[arg(long)]
    report: bool,
    /// Draw from the seeds of checks: what was chosen on those of development, before it is reported
    #[arg(long, conflicts_with = "report")]
    check: bool,
    /// Services of each family and schedule
    #[arg(long, default_value_t = 20)]
    each: u64,
    /// Hide the load from the forecaster
    #[arg(long)]
    no_load: bool,
    /// Name each false alarm and each leak that was not found, with its seed
    #[arg(long)]
    misses: bool,
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
    print!("{}", report::text(&run(&args, !args.no_load), args.misses));
    if args.report {
        println!("{}", report::without_load(&run(&args, false)));
    }
    ExitCode::SUCCESS
}

/// Lives and replays all services; `load`: whether their CPU is known.
fn run(args: &Args, load: bool) -> Vec<Row> {
    let range = match (args.report, args.check) {
        (true, _) => REPORTING,
        (false, true) => CHECKING,
        (false, false) => DEVELOPMENT,
    };
    let mut jobs = Vec::new();
    for _ in 0..args.each {
        for leaking in [false, true] {
            for family in 0..families(leaking).len() {
                for schedule in Schedule::ALL {
                    let seed = range.start + jobs.len() as u64;
                    assert!(range.contains(&seed), "more services than seeds");
                    jobs.push((leaking, family, schedule, seed));
                }
            }
        }
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut rows = Vec::new();
        while let Some(&(leaking, family, schedule, seed)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let outcome = replay(&families(leaking)[family], schedule, seed, load);
            rows.push(Row { leaking, family, schedule, seed, outcome });
        }
        rows
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut rows: Vec<Row> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker does not fail")).collect()
    });
    rows.sort_by_key(|row| row.seed);
    rows
}

fn families(leaking: bool) -> &'static [Family] {
    if leaking { &LEAKING } else { &HEALTHY }
}

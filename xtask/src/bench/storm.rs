//! Run time of the programs under a storm of exits: clean and failing, with Defib and with `exitsnoop`, taking turns.

use std::{
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    Programs,
    agent::{Agent, Running},
    stats::{self, Measuring, quantile},
};
use crate::{process, say};

/// Exits in one arm of one round.
const EXITS: u32 = 20_000;

/// Medians over the rounds, nanoseconds for each run of a program.
pub(super) struct Storm {
    pub(super) rounds: u32,
    pub(super) exits: u32,
    /// The exit program, clean exits that nobody watches.
    pub(super) clean_ns: f64,
    /// The exit program, failing exits that are reported.
    pub(super) reported_ns: f64,
    /// The fork program in the clean arm.
    pub(super) fork_ns: f64,
    /// The signal program in the clean arm (one SIGCHLD for each exit, which leaves at once).
    pub(super) signal_ns: f64,
    /// `exitsnoop`, clean and failing; `None` where it is not installed.
    pub(super) peer_ns: Option<(f64, f64)>,
    /// Records that the storm of failing exits lost for want of room.
    pub(super) lost: f64,
    /// Records that it brought.
    pub(super) seen: f64,
}

pub(super) fn measure(programs: &Programs, rounds: u32) -> Result<Storm> {
    let _measuring = Measuring::begin()?;
    let mut series: [Vec<f64>; 6] = Default::default();
    let [clean, reported, fork, signal, peer_clean, peer_failing] = &mut series;
    let (mut lost, mut seen) = (0.0, 0.0);
    for round in 1..=rounds {
        say::line(format_args!("bench: storm of exits, round {round} of {rounds}"));
        {
            let agent = Agent::start(programs, "")?;
            let before = agent.metrics()?;
            storm(programs, 0)?;
            let between = agent.metrics()?;
            storm(programs, 3)?;
            sleep(Duration::from_millis(100));
            let after = agent.metrics()?;
            clean.push(mean(&before, &between, "process_exit"));
            fork.push(mean(&before, &between, "process_fork"));
            signal.push(mean(&before, &between, "signal_generate"));
            reported.push(mean(&between, &after, "process_exit"));
            let grown = |name: &str| after.get(name).unwrap_or(&0.0) - between.get(name).unwrap_or(&0.0);
            lost += grown("defib_events_lost_total{ring=\"bulk\"}");
            seen += grown("defib_detection_seconds_count");
        }
        for (code, series) in [(0, &mut *peer_clean), (3, &mut *peer_failing)] {
            if let Some(snoop) = peer()? {
                let (ns, runs) = stats::programs_of(snoop.0.id())?;
                storm(programs, code)?;
                let (ns_after, runs_after) = stats::programs_of(snoop.0.id())?;
                series.push((ns_after - ns) as f64 / (runs_after - runs) as f64);
            }
        }
    }
    Ok(Storm {
        rounds,
        exits: EXITS,
        clean_ns: quantile(clean, 0.5),
        reported_ns: quantile(reported, 0.5),
        fork_ns: quantile(fork, 0.5),
        signal_ns: quantile(signal, 0.5),
        peer_ns: (!peer_failing.is_empty()).then(|| (quantile(peer_clean, 0.5), quantile(peer_failing, 0.5))),
        lost,
        seen,
    })
}

/// A running `exitsnoop`, attached; `None` where it is not installed or cannot attach.
///
/// It finds its tracepoint through tracefs, which not every machine has mounted: it gets one in a mount namespace of its
/// own, so that nothing is left behind.
fn peer() -> Result<Option<Running>> {
    let Some(path) = ["/usr/sbin/exitsnoop", "/usr/bin/exitsnoop"].into_iter().find(|path| Path::new(path).exists())
    else {
        return Ok(None);
    };
    let script = "mount -t tracefs tracefs /sys/kernel/tracing; exec \"$0\"";
    let child = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, path])
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {path}"))?;
    let mut snoop = Running(child);
    sleep(Duration::from_secs(1));
    Ok(if snoop.0.try_wait()?.is_none() { Some(snoop) } else { None })
}

fn storm(programs: &Programs, code: u8) -> Result<()> {
    process::run(&mut programs.storm(EXITS, code))
}

/// Nanoseconds for one run of `program` between two scrapes.
fn mean(
    before: &std::collections::BTreeMap<String, f64>,
    after: &std::collections::BTreeMap<String, f64>,
    program: &str,
) -> f64 {
    let grown = |metric: &str| {
        let name = format!("{metric}{{program=\"{program}\"}}");
        after.get(&name).unwrap_or(&f64::NAN) - before.get(&name).unwrap_or(&0.0)
    };
    grown("defib_bpf_run_seconds_total") * 1e9 / grown("defib_bpf_runs_total")
}

//! Run time of the programs under a storm of exits, beside those of peers and a program that does nothing.

use std::{path::Path, thread::sleep, time::Duration};

use anyhow::{Result, ensure};

use super::{
    Programs,
    agent::{Agent, Metrics},
    empty::Empty,
    peers::{self, Peer},
    sleepers::Sleepers,
    stats::{self, Measuring, quantile},
};
use crate::{process, say};

/// Exits in one storm.
pub(super) const EXITS: u32 = 20_000;
/// Peers with programs of their own.
const PEERS: [Peer; 2] = [peers::BPFTRACE, peers::EXITSNOOP];
/// Services that are looked after meanwhile: few, and as many as an agent takes.
pub(super) const SERVICES: [usize; 2] = [10, 10_000];

/// How the processes of a storm end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Clean,
    Failing,
    Signalled,
}

impl End {
    pub(super) const ALL: [Self; 3] = [Self::Clean, Self::Failing, Self::Signalled];

    /// Of the storm's children.
    pub(super) fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Clean => &["0"],
            Self::Failing => &["3"],
            // SIGUSR1: it ends a process, and nobody takes it for a crash.
            Self::Signalled => &["0", "--signal", "10"],
        }
    }
}

/// One row of the table; medians over the rounds, nanoseconds for one run, for each of [`End::ALL`].
pub(super) struct Row {
    pub(super) name: String,
    pub(super) ns: [f64; 3],
}

/// See the module.
pub(super) struct Kernel {
    pub(super) rounds: u32,
    pub(super) rows: Vec<Row>,
    /// The empty program, and the peers; no numbers for those that are not installed.
    pub(super) empty: Row,
    pub(super) peers: Vec<Row>,
    /// The fork program, and the signal program (one SIGCHLD for each exit, which leaves at once), in a storm of clean exits.
    pub(super) fork_ns: f64,
    pub(super) signal_ns: f64,
    /// Records of failing exits that came, and that found no room.
    pub(super) seen: f64,
    pub(super) lost: f64,
}

/// What the rounds brought for one row.
#[derive(Default)]
struct Series([Vec<f64>; 3]);

impl Series {
    fn row(&mut self, name: impl Into<String>) -> Row {
        Row { name: name.into(), ns: self.0.each_mut().map(|values| quantile(values, 0.5)) }
    }
}

pub(super) fn measure(programs: &Programs, rounds: u32) -> Result<Kernel> {
    let _measuring = Measuring::begin()?;
    let services = SERVICES.map(Sleepers::start);
    let services = services.into_iter().collect::<Result<Vec<_>>>()?;
    let mut ours: Vec<[Series; 2]> = services.iter().map(|_| Default::default()).collect();
    let mut empty = Series::default();
    let mut peers: [Series; PEERS.len()] = Default::default();
    let (mut fork, mut signal) = (Vec::new(), Vec::new());
    let (mut seen, mut lost) = (0.0, 0.0);
    for round in 1..=rounds {
        say::line(format_args!("bench: programs under a storm of exits, round {round} of {rounds}"));
        for (sleepers, [elsewhere, inside]) in services.iter().zip(&mut ours) {
            let agent = Agent::start(programs, &sleepers.config())?;
            for (cgroup, series) in [(None, elsewhere), (Some(sleepers.directory(0)), inside)] {
                for (end, values) in End::ALL.into_iter().zip(&mut series.0) {
                    let before = agent.metrics()?;
                    storm(programs, end, cgroup.as_deref())?;
                    sleep(Duration::from_millis(100));
                    let after = agent.metrics()?;
                    values.push(mean(&before, &after, "process_exit"));
                    if cgroup.is_some() {
                        continue;
                    }
                    if end == End::Clean {
                        fork.push(mean(&before, &after, "process_fork"));
                        signal.push(mean(&before, &after, "signal_generate"));
                    } else {
                        let grown = |name: &str| after.get(name).unwrap_or(&0.0) - before.get(name).unwrap_or(&0.0);
                        lost += grown("defib_events_lost_total{ring=\"bulk\"}");
                        seen += grown("defib_detection_seconds_count");
                    }
                }
            }
        }
        for (end, values) in End::ALL.into_iter().zip(&mut empty.0) {
            let _program = Empty::attach()?;
            values.push(of_process(std::process::id(), || storm(programs, end, None))?);
        }
        for ((_, start), series) in PEERS.iter().zip(&mut peers) {
            let Some(peer) = start()? else { continue };
            for (end, values) in End::ALL.into_iter().zip(&mut series.0) {
                values.push(of_process(peer.0.id(), || storm(programs, end, None))?);
            }
        }
    }
    let mut rows = Vec::new();
    for (services, [elsewhere, inside]) in SERVICES.into_iter().zip(&mut ours) {
        rows.push(elsewhere.row(format!("Defib, {services} services; none of theirs")));
        rows.push(inside.row(format!("Defib, {services} services; all of one of theirs")));
    }
    Ok(Kernel {
        rounds,
        rows,
        empty: empty.row("an empty program: the limit"),
        peers: PEERS.iter().zip(&mut peers).map(|((name, _), series)| series.row(*name)).collect(),
        fork_ns: quantile(&mut fork, 0.5),
        signal_ns: quantile(&mut signal, 0.5),
        seen,
        lost,
    })
}

fn storm(programs: &Programs, end: End, cgroup: Option<&Path>) -> Result<()> {
    process::run(&mut programs.storm(EXITS, end, cgroup))
}

/// Nanoseconds for one run of the programs that a process holds, over some work.
fn of_process(pid: u32, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let (ns, runs) = stats::programs_of(pid)?;
    work()?;
    let (ns_after, runs_after) = stats::programs_of(pid)?;
    // One that was not attached yet would be measured by whatever else ended.
    ensure!(runs_after - runs >= u64::from(EXITS), "of {EXITS} exits a program ran for {} only", runs_after - runs);
    Ok((ns_after - ns) as f64 / (runs_after - runs) as f64)
}

/// Nanoseconds for one run of `program` between two scrapes.
fn mean(before: &Metrics, after: &Metrics, program: &str) -> f64 {
    let grown = |metric: &str| {
        let name = format!("{metric}{{program=\"{program}\"}}");
        after.get(&name).unwrap_or(&f64::NAN) - before.get(&name).unwrap_or(&0.0)
    };
    grown("defib_bpf_run_seconds_total") * 1e9 / grown("defib_bpf_runs_total")
}

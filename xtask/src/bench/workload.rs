//! What watching costs the workload: how fast processes fork and exit, with nothing attached, with Defib, with its peers.
//!
//! Each round measures all arms, in another order; an arm is compared with "nothing" of the same round.

use std::{
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    Programs,
    agent::{Agent, Running},
    kernel::{self, End},
    stats::{self, Interval},
};
use crate::{process, say};

/// Exits in a measurement; a second or two.
pub(super) const EXITS: u32 = 10_000;
/// Enough for an interval of a few parts in a thousand on a quiet machine.
pub(super) const ROUNDS: u32 = 60;
/// Peers, which cost much more, are measured in one round of so many.
pub(super) const PEERS_EACH: u32 = 5;

/// An arm against nothing.
pub(super) struct Against {
    pub(super) name: &'static str,
    /// Time, as a share of that with nothing attached; median of the rounds with its 95 % interval.
    pub(super) ratio: Interval,
}

/// See the module.
pub(super) struct Workload {
    /// With nothing attached.
    pub(super) exits_per_second: f64,
    pub(super) arms: Vec<Against>,
}

/// Whoever watches, for as long as this is there.
enum Watcher {
    Nobody,
    Defib(#[expect(dead_code, reason = "it watches by being there")] Agent),
    Peer(#[expect(dead_code, reason = "it watches by being there")] Running),
}

type Start = fn(&Programs) -> Result<Option<Watcher>>;

const ARMS: [(&str, Start); 4] = [
    ("nothing", |_| Ok(Some(Watcher::Nobody))),
    ("Defib", |programs| Ok(Some(Watcher::Defib(Agent::start(programs, "")?)))),
    ("libbpf-tools `exitsnoop`", |_| Ok(kernel::exitsnoop()?.map(Watcher::Peer))),
    ("`forkstat` (process events by netlink)", |_| Ok(forkstat()?.map(Watcher::Peer))),
];

pub(super) fn measure(programs: &Programs) -> Result<Workload> {
    let mut nothing = Vec::new();
    let mut ratios: [Vec<f64>; ARMS.len()] = Default::default();
    for round in 0..ROUNDS {
        say::line(format_args!("bench: fork and exit with and without watchers, round {} of {ROUNDS}", round + 1));
        // Ours right beside nothing, which comes first in every other round.
        let arms = if round % PEERS_EACH == 0 { ARMS.len() } else { 2 };
        let mut seconds = [None; ARMS.len()];
        for step in 0..arms {
            let arm = (step + round as usize) % arms;
            let Some(_watcher) = ARMS[arm].1(programs)? else { continue };
            let mut storm = programs.storm(EXITS, End::Clean, None);
            let begin = Instant::now();
            process::run(&mut storm)?;
            seconds[arm] = Some(begin.elapsed().as_secs_f64());
        }
        let [Some(without), ..] = seconds else { continue };
        nothing.push(without);
        for (all, with) in ratios.iter_mut().zip(seconds) {
            all.extend(with.map(|with| with / without));
        }
    }
    let arms = ARMS.iter().zip(&ratios).skip(1).filter(|(_, ratios)| !ratios.is_empty());
    let arms = arms.map(|(arm, ratios)| Against { name: arm.0, ratio: stats::median_interval(ratios) }).collect();
    Ok(Workload { exits_per_second: f64::from(EXITS) / stats::quantile(&mut nothing, 0.5), arms })
}

fn forkstat() -> Result<Option<Running>> {
    let Some(path) = process::find("forkstat") else { return Ok(None) };
    let child = Command::new(&path)
        .args(["-e", "exit"])
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", path.display()))?;
    let mut forkstat = Running(child);
    sleep(Duration::from_secs(1));
    Ok(if forkstat.0.try_wait()?.is_none() { Some(forkstat) } else { None })
}

//! What watching costs the workload: how fast processes fork and exit, with nothing attached, with Defib, with its peers.
//!
//! Each round measures all arms, in another order; an arm is compared with "nothing" of the same round.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    Programs,
    agent::{Agent, Running},
    kernel::End,
    peers::{self, Peer},
    stats::{self, Interval},
};
use crate::{process, say};

/// Exits in a measurement; a second or two.
pub(super) const EXITS: u32 = 10_000;
/// Rounds at least: enough for an interval of a few parts in a thousand on a quiet machine.
const ROUNDS: u32 = 60;
/// On a noisy one they go on until the interval is as narrow as [`NARROW`], and no longer than this. How wide it is stops them, and not
/// where it lies, so stopping favours nobody.
const ROUNDS_AT_MOST: u32 = 180;
/// Before each measurement, with a watcher and without: what the start of one, or the end of the one before, still leaves to be done is
/// not what watching costs.
const SETTLED: Duration = Duration::from_secs(1);
/// From end to end, as a share of the time: what is wanted of us, 1 %, can be told then.
const NARROW: f64 = 0.01;
/// Peers, which cost much more, are measured in one round of so many.
pub(super) const PEERS_EACH: u32 = 5;

/// An arm against nothing.
pub(super) struct Against {
    pub(super) name: &'static str,
    /// Time, as a share of that with nothing attached; median of the rounds with its 95 % interval; no number where the arm is not
    /// installed.
    pub(super) ratio: Interval,
}

/// See the module.
pub(super) struct Workload {
    pub(super) rounds: u32,
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

/// Beside nothing and Defib, which are the first two arms.
const PEERS: [Peer; 3] = [peers::BPFTRACE, peers::EXITSNOOP, peers::FORKSTAT];
const ARMS: usize = 2 + PEERS.len();

pub(super) fn measure(programs: &Programs) -> Result<Workload> {
    let mut nothing = Vec::new();
    let mut ratios: [Vec<f64>; ARMS] = Default::default();
    let mut round = 0;
    while round < ROUNDS || round < ROUNDS_AT_MOST && !is_narrow(&ratios[1]) {
        say::line(format_args!(
            "bench: fork and exit with and without watchers, round {} of {ROUNDS} to {ROUNDS_AT_MOST}",
            round + 1
        ));
        // Ours right beside nothing, which comes first in every other round.
        let arms = if round % PEERS_EACH == 0 { ARMS } else { 2 };
        let mut seconds = [None; ARMS];
        for step in 0..arms {
            let arm = (step + round as usize) % arms;
            let Some(_watcher) = watcher(arm, programs)? else { continue };
            sleep(SETTLED);
            let mut storm = programs.storm(EXITS, End::Clean, None);
            let begin = Instant::now();
            process::run(&mut storm)?;
            seconds[arm] = Some(begin.elapsed().as_secs_f64());
        }
        round += 1;
        let [Some(without), ..] = seconds else { continue };
        nothing.push(without);
        for (all, with) in ratios.iter_mut().zip(seconds) {
            all.extend(with.map(|with| with / without));
        }
    }
    let names = ["Defib"].into_iter().chain(PEERS.map(|(name, _)| name));
    let arms = names.zip(&ratios[1..]);
    let arms = arms.map(|(name, ratios)| Against { name, ratio: stats::median_interval(ratios) }).collect();
    Ok(Workload { rounds: round, exits_per_second: f64::from(EXITS) / stats::quantile(&mut nothing, 0.5), arms })
}

fn is_narrow(ratios: &[f64]) -> bool {
    let Interval { low, high, .. } = stats::median_interval(ratios);
    high - low <= NARROW
}

/// Whoever watches in this arm; `None` where it is not installed.
fn watcher(arm: usize, programs: &Programs) -> Result<Option<Watcher>> {
    Ok(match arm {
        0 => Some(Watcher::Nobody),
        1 => Some(Watcher::Defib(Agent::start(programs, "")?)),
        _ => PEERS[arm - 2].1()?.map(Watcher::Peer),
    })
}

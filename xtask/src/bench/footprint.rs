//! What an idle agent takes: resident memory and CPU.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{Programs, agent::Agent, stats};
use crate::say;

const IDLE: Duration = Duration::from_secs(30);

pub(super) struct Footprint {
    pub(super) resident_kib: u64,
    pub(super) peak_kib: u64,
    /// Share of one core.
    pub(super) cpu: f64,
}

pub(super) fn measure(programs: &Programs) -> Result<Footprint> {
    say::line(format_args!("bench: an idle agent, {} s", IDLE.as_secs()));
    let agent = Agent::start(programs, "")?;
    let (begin, cpu) = (Instant::now(), stats::cpu_ns(agent.pid())?);
    sleep(IDLE);
    let cpu = (stats::cpu_ns(agent.pid())? - cpu) as f64 / begin.elapsed().as_nanos() as f64;
    Ok(Footprint {
        resident_kib: stats::status_kib(agent.pid(), "VmRSS")?,
        peak_kib: stats::status_kib(agent.pid(), "VmHWM")?,
        cpu,
    })
}

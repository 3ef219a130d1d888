//! Who hears of an OOM kill first: a reader of Defib's events, or one of the kernel's log.

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Seek as _, SeekFrom},
    sync::mpsc::{Receiver, channel},
    thread::{sleep, spawn},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{Programs, agent::Agent, limited::Limited, stats::quantile};
use crate::say;

const KILLS: usize = 40;
/// Between kills: both readers sleep again.
const PAUSE: Duration = Duration::from_millis(250);
/// Nobody who has not heard of it by then will.
const PATIENCE: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Beside {
    pub(super) kills: usize,
    /// Heard of by each.
    pub(super) by_events: usize,
    pub(super) by_kmsg: usize,
    /// How much earlier Defib's reader heard of those that both did, microseconds: median, and the least.
    pub(super) ahead_us: (f64, f64),
}

pub(super) fn measure(programs: &Programs) -> Result<Beside> {
    say::line(format_args!("bench: {KILLS} OOM kills, by Defib's events and by the kernel's log"));
    let limited = Limited::new()?;
    let agent = Agent::start(programs, &limited.config("victims"))?;
    let (events, kmsg) = (agent.oom_marks()?, kmsg()?);
    sleep(Duration::from_secs(1));
    let (mut by_events, mut by_kmsg, mut ahead) = (0, 0, Vec::new());
    for _ in 0..KILLS {
        sleep(PAUSE);
        // What came late was of the one before.
        events.try_iter().for_each(drop);
        kmsg.try_iter().for_each(drop);
        limited.run_out(programs)?;
        let (here, there) =
            (events.recv_timeout(PATIENCE).ok().map(|mark| mark.heard), kmsg.recv_timeout(PATIENCE).ok());
        by_events += usize::from(here.is_some());
        by_kmsg += usize::from(there.is_some());
        if let (Some(here), Some(there)) = (here, there) {
            let later = |a: Instant, b: Instant| a.saturating_duration_since(b).as_secs_f64() * 1e6;
            ahead.push(later(there, here) - later(here, there));
        }
    }
    let ahead_us = (quantile(&mut ahead, 0.5), quantile(&mut ahead, 0.0));
    Ok(Beside { kills: KILLS, by_events, by_kmsg, ahead_us })
}

/// When each kill is in the kernel's log. The reader waits for the log until this program ends.
fn kmsg() -> Result<Receiver<Instant>> {
    let mut log = File::open("/dev/kmsg").context("cannot open /dev/kmsg")?;
    log.seek(SeekFrom::End(0)).context("cannot go to the end of /dev/kmsg")?;
    let (send, heard) = channel();
    spawn(move || {
        let mut record = [0; 8192];
        loop {
            match log.read(&mut record) {
                Ok(length) => {
                    let is_kill = String::from_utf8_lossy(&record[..length]).contains("Killed process");
                    if is_kill && send.send(Instant::now()).is_err() {
                        return;
                    }
                }
                // Overwritten unread.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(_) => return,
            }
        }
    });
    Ok(heard)
}

//! What a year of incidents takes on disk: real outages, each with the memory history of a service that has lived for a while.

use std::{
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{Programs, agent::Agent, sleepers::memory_hierarchy};
use crate::say;

const SERVICES: usize = 10;
/// Times that each of them is killed.
const ROUNDS: usize = 40;
/// The flight recorders are full by then: three times what 36 samples of 100 ms take.
const LIVED: Duration = Duration::from_secs(12);
/// Between two rounds: outages are closed, and written down.
const PAUSE: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct Year {
    pub(super) incidents: usize,
    /// The file when the agent has ended; what it knows of ten services beside them is in it, and small.
    pub(super) bytes: u64,
}

/// The cgroups that the agent has made; removed when dropped.
struct Cgroups(Vec<PathBuf>);

impl Drop for Cgroups {
    fn drop(&mut self) {
        for directory in &self.0 {
            members(directory).into_iter().for_each(kill);
            let begin = Instant::now();
            while directory.exists() && fs::remove_dir(directory).is_err() && begin.elapsed() < PATIENCE {
                sleep(Duration::from_millis(10));
            }
        }
    }
}

pub(super) fn measure(programs: &Programs) -> Result<Year> {
    let incidents = SERVICES * ROUNDS;
    say::line(format_args!("bench: {incidents} incidents"));
    let name = |number| format!("defib-bench-year-{}-{number}", std::process::id());
    let mut config = "[defaults]\nrestart = true\ngrace = '0s'\nhealth = 'exec:/bin/true'\n\
                      backoff = { initial = '0s', max = '1s', reset_after = '0s' }\n\
                      budget = { per_service = '1000/1h', per_host = '1000/1h' }\n\
                      [forecast]\nsample = '100ms'\n"
        .to_owned();
    let (mount, _) = memory_hierarchy();
    let mut cgroups = Cgroups(Vec::new());
    for number in 0..SERVICES {
        let name = name(number);
        config += &format!(
            "[[service]]\nname = 's{number}'\ncommand = {{ start = ['/bin/sleep', '100000'], cgroup = '/{name}' }}\n"
        );
        cgroups.0.push(mount.join(name));
    }
    let agent = Agent::start(programs, &config)?;
    let mut lives = begun(&cgroups.0, &[0; SERVICES])?;
    sleep(LIVED);
    for _ in 0..ROUNDS {
        lives.iter().copied().for_each(kill);
        lives = begun(&cgroups.0, &lives)?;
        sleep(PAUSE);
    }
    let state = agent.state().to_owned();
    // Its end writes all down.
    drop(agent);
    drop(cgroups);
    Ok(Year { incidents, bytes: size(&state)? })
}

/// The processes of all services, once they are others than before.
fn begun(cgroups: &[PathBuf], before: &[u32]) -> Result<Vec<u32>> {
    let begin = Instant::now();
    loop {
        let now: Vec<_> = cgroups.iter().filter_map(|directory| members(directory).pop()).collect();
        if now.len() == before.len() && now.iter().zip(before).all(|(now, before)| now != before) {
            return Ok(now);
        }
        ensure!(begin.elapsed() < PATIENCE, "the agent did not start all of {} services again", before.len());
        sleep(Duration::from_millis(10));
    }
}

fn members(directory: &Path) -> Vec<u32> {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // One that has gone by itself is as good.
        kill_process(pid, Signal::KILL).ok();
    }
}

/// Of the store and the log beside it.
fn size(state: &Path) -> Result<u64> {
    let file = state.join("defib.db");
    let main = fs::metadata(&file).with_context(|| format!("cannot look at {}", file.display()))?.len();
    Ok(main + fs::metadata(state.join("defib.db-wal")).map_or(0, |log| log.len()))
}

//! `cargo xtask soak`: hours of service life at a high rate, with memory, file descriptors and threads of the agent sampled,
//! which must stay flat, and OOM kills and restarts counted, which must be right to the last one.
//!
//! A round, ten a second: a service that the agent starts is killed and comes back; a process in a cgroup with a limit runs
//! out of memory; a cgroup comes, has a death and goes; twenty processes fail; metrics are asked for.

use std::{
    fs,
    path::PathBuf,
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Programs,
    agent::{Agent, Metrics},
    kernel::End,
    limited::Limited,
    sleepers::{make, memory_hierarchy},
    stats,
};
use crate::{artifacts, fuzz, privilege, say, test::live};

const ROUND: Duration = Duration::from_millis(100);
const SAMPLE: Duration = Duration::from_secs(5);
/// Each so many rounds one victim runs out of memory: it takes longest.
const OOM_EVERY: u64 = 5;
/// What memory may grow by from the second quarter to the last: 2 MiB, less than a minute's incidents would take if each
/// were kept. Before that, tables fill that are bounded by count.
const GROWTH_KIB: u64 = 2048;
/// Descriptors and threads may differ by what is at work when the sample is taken: starts, health checks, requests.
const AT_WORK: u64 = 16;

/// Let an agent live through hours of service life at a high rate, and see that it does not grow
///
/// Needs root. Another build than the optimised one of these sources can be named with DEFIB_BINARY; `victim` has to lie
/// beside it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long, in whole seconds, minutes or hours: 60s, 10m, 1h
    #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = fuzz::duration)]
    time: Duration,
}

/// What an agent has at a moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    resident_kib: u64,
    descriptors: u64,
    threads: u64,
}

pub(crate) fn execute(args: &Args) -> Result<ExitCode> {
    ensure!(privilege::is_root(), "cargo xtask soak needs root, to load the kernel programs and to make cgroups");
    let programs = programs()?;
    let served = Served::new()?;
    let limited = Limited::new()?;
    let agent = Agent::start(&programs, &format!("{}{}", served.config(), limited.config("victims")))?;
    wait_for(&agent, "the service", |_| served.member().is_some())?;
    let (begin, before) = (Instant::now(), agent.metrics()?);
    let (mut samples, mut due) = (Vec::new(), Instant::now() + SAMPLE);
    let (mut rounds, mut oom_kills, mut kills, mut killed) = (0_u64, 0_u32, 0_u32, 0);
    while begin.elapsed() < args.time {
        let next = Instant::now() + ROUND;
        rounds += 1;
        // On a busy machine one that was killed may still be there a round later.
        if let Some(pid) = served.member().filter(|&pid| pid != killed)
            && kill(pid)?
        {
            (kills, killed) = (kills + 1, pid);
        }
        if rounds.is_multiple_of(OOM_EVERY) {
            limited.run_out(&programs)?;
            oom_kills += 1;
        }
        passing(&programs, rounds)?;
        programs.storm(20, End::Failing, None).status()?;
        agent.metrics()?;
        if Instant::now() >= due {
            samples.push(sample(agent.pid())?);
            due += SAMPLE;
        }
        sleep(next.saturating_duration_since(Instant::now()));
    }
    let seen = |metrics: &Metrics| {
        let own = |name: &str| name.starts_with("defib_oom_kills_total") && name.contains("\"victims\"");
        metrics.iter().filter(|(name, _)| own(name)).map(|(_, value)| value).sum::<f64>()
    };
    let grown = |metrics: &Metrics, name: &str| metrics.get(name).unwrap_or(&0.0) - before.get(name).unwrap_or(&0.0);
    let deaths = |metrics: &Metrics| grown(metrics, "defib_deaths_total{cause=\"killed\",service=\"served\"}");
    let waited = wait_for(&agent, "the last deaths", |metrics| {
        seen(metrics) - seen(&before) >= f64::from(oom_kills) && deaths(metrics) >= f64::from(kills)
    });
    let after = agent.metrics()?;
    let (deaths, lost) = (deaths(&after), grown(&after, "defib_events_lost_total{ring=\"critical\"}"));
    say::line(format_args!(
        "soak: {} s, {rounds} rounds; OOM kills {oom_kills}, seen {}; kills {kills}, seen {deaths}; lost: {lost}",
        begin.elapsed().as_secs(),
        seen(&after) - seen(&before)
    ));
    flat(&samples)?;
    waited?;
    ensure!(seen(&after) - seen(&before) == f64::from(oom_kills), "OOM kills were missed or counted twice");
    ensure!(deaths == f64::from(kills), "deaths of the service were missed or counted twice");
    ensure!(lost == 0.0, "records that matter were lost");
    Ok(ExitCode::SUCCESS)
}

fn programs() -> Result<Programs> {
    if let Some(defib) = std::env::var_os(live::BINARY).map(PathBuf::from) {
        let victim = defib.with_file_name("victim");
        ensure!(victim.is_file(), "there is no {}", victim.display());
        return Ok(Programs { defib, victim });
    }
    let built = artifacts::release()?;
    let program = |name| artifacts::program(&built, name).map(std::path::Path::to_path_buf);
    Ok(Programs { defib: program("defib")?, victim: program("victim")? })
}

/// Nothing grows from the second quarter to the last.
fn flat(samples: &[Sample]) -> Result<()> {
    ensure!(samples.len() >= 8, "{} samples say nothing; let it run for a minute at least", samples.len());
    let quarter = samples.len() / 4;
    let (early, late) = (&samples[quarter..2 * quarter], &samples[samples.len() - quarter..]);
    let compare = |what: &str, of: fn(&Sample) -> u64, tolerance: u64| {
        let (from, to) = (median(early, of), median(late, of));
        let most = samples.iter().map(of).max().unwrap_or(0);
        say::line(format_args!("{what}: {from} early, {to} late, {most} at most"));
        ensure!(to <= from + tolerance, "{what} grew from {from} to {to}");
        Ok(())
    };
    compare("resident KiB", |sample| sample.resident_kib, GROWTH_KIB)?;
    compare("file descriptors", |sample| sample.descriptors, AT_WORK)?;
    compare("threads", |sample| sample.threads, AT_WORK)
}

fn median(samples: &[Sample], of: fn(&Sample) -> u64) -> u64 {
    let mut values: Vec<_> = samples.iter().map(of).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

fn sample(pid: u32) -> Result<Sample> {
    let count = |what: &str| {
        let path = format!("/proc/{pid}/{what}");
        fs::read_dir(&path).map(|entries| entries.count() as u64).with_context(|| format!("cannot list {path}"))
    };
    Ok(Sample { resident_kib: stats::status_kib(pid, "VmRSS")?, descriptors: count("fd")?, threads: count("task")? })
}

fn wait_for(agent: &Agent, what: &str, mut there: impl FnMut(&Metrics) -> bool) -> Result<()> {
    let begin = Instant::now();
    while !there(&agent.metrics()?) {
        ensure!(begin.elapsed() < Duration::from_secs(60), "waited in vain for {what}");
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A cgroup that comes, has a death, and goes.
fn passing(programs: &Programs, round: u64) -> Result<()> {
    let directory = memory_hierarchy().0.join(format!("defib-soak-{}-{}", std::process::id(), round % 1000));
    make(&directory)?;
    programs.victim_in(&directory).args(["exit", "3"]).status()?;
    fs::remove_dir(&directory).with_context(|| format!("cannot remove {}", directory.display()))
}

/// Whether it was there to be killed.
fn kill(pid: i32) -> Result<bool> {
    use rustix::process::{Pid, Signal, kill_process};
    let Some(pid) = Pid::from_raw(pid) else { return Ok(false) };
    match kill_process(pid, Signal::KILL) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(error) => Err(error).context("cannot kill the service"),
    }
}

/// The cgroup of a service that the agent keeps alive; cleared and removed when dropped.
struct Served(PathBuf);

impl Served {
    fn new() -> Result<Self> {
        let directory = memory_hierarchy().0.join(format!("defib-soak-{}", std::process::id()));
        make(&directory)?;
        Ok(Self(directory))
    }

    fn config(&self) -> String {
        let name = self.0.file_name().unwrap_or_default().to_string_lossy();
        format!(
            "[defaults]\nbudget = {{ per_service = \"1000/1s\", per_host = \"1000/1s\" }}\n\
             backoff = {{ initial = \"1ms\", max = \"10ms\" }}\n\
             [[service]]\nname = \"served\"\nrestart = true\ngrace = \"10ms\"\nhealth = \"exec:/bin/true\"\n\
             command = {{ start = [\"/bin/sleep\", \"100000\"], cgroup = \"/{name}\" }}\n"
        )
    }

    /// Its process, once that is what it shall be.
    fn member(&self) -> Option<i32> {
        let pid: i32 = fs::read_to_string(self.0.join("cgroup.procs")).ok()?.lines().next()?.parse().ok()?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        (name.trim() == "sleep" && !state.contains(") Z ")).then_some(pid)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let begin = Instant::now();
        while fs::remove_dir(&self.0).is_err() && begin.elapsed() < Duration::from_secs(5) {
            if let Some(pid) = self.member() {
                kill(pid).ok();
            }
            sleep(Duration::from_millis(10));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_seen_and_a_peak_in_between_is_none() {
        let sample = |resident_kib, descriptors| Sample { resident_kib, descriptors, threads: 7 };
        let steady: Vec<_> = (0..40).map(|n| sample(30_000 + n % 3 * 100, 40)).collect();
        assert!(flat(&steady).is_ok());
        let mut peak = steady.clone();
        peak[20].resident_kib = 90_000;
        assert!(flat(&peak).is_ok());
        assert!(flat(&(0..40).map(|n| sample(30_000 + n * 200, 40)).collect::<Vec<_>>()).is_err());
        assert!(flat(&(0..40).map(|n| sample(30_000, 40 + n)).collect::<Vec<_>>()).is_err());
        assert!(flat(&steady[..4]).is_err(), "too few");
    }
}

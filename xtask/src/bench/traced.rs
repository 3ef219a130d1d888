//! What a trace takes from the service that is traced: how much a busy server serves, with and without.
//!
//! The server allocates as fast as it can. Each round measures both, in turns which first; a round is compared with itself.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{
    Programs,
    agent::Running,
    sleepers::{make, memory_hierarchy},
    stats::{self, Interval},
};
use crate::say;

/// Enough for an interval of half a hundredth.
const ROUNDS: u32 = 20;
/// How long each measurement is: two watches of a busy server or more.
const SPAN: Duration = Duration::from_secs(10);
/// Before the first watch, programs are loaded and what a probe costs is measured.
const BEGIN: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Traced {
    pub(super) rounds: u32,
    /// Requests a second without a trace, median.
    pub(super) served: f64,
    /// Time for a request with a trace, as a share of that without.
    pub(super) ratio: Interval,
    /// What the traces said that they take, mean, share.
    pub(super) told: f64,
    /// Most private memory of a tracing process, bytes.
    pub(super) memory: f64,
    /// Its processor time, share of one processor, mean.
    pub(super) processor: f64,
    /// Calls for memory that the server makes in a second, as the traces saw it.
    pub(super) calls: f64,
}

pub(super) fn measure(programs: &Programs) -> Result<Traced> {
    let place = Place::new()?;
    let mut server = programs.victim_in(&place.0);
    let mut server = Running(server.args(["sessions", "17", "--busy"]).stdout(Stdio::piped()).spawn()?);
    let (said, heard) = mpsc::channel();
    let out = server.0.stdout.take().context("its output is piped")?;
    thread::spawn(move || {
        let rates = BufReader::new(out).lines().map_while(|line| line.ok()?.parse::<f64>().ok());
        rates.into_iter().try_for_each(|rate| said.send(rate))
    });
    let (mut ratios, mut without, mut told) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        say::line(format_args!("bench: a busy server with and without a trace, round {} of {ROUNDS}", round + 1));
        let mut rates = [0.0; 2];
        for step in 0..2 {
            let with = (step + round) % 2 == 1;
            let trace = if with { Some(Trace::begin(programs, &place.0)?) } else { None };
            sleep(BEGIN);
            rates[usize::from(with)] = mean(&heard)?;
            told.extend(trace.map(Trace::end).transpose()?);
        }
        let [bare, traced] = rates;
        without.push(bare);
        ratios.push(bare / traced);
    }
    let mean = |key: &str| {
        let of = |told: &Value| told.pointer(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
        told.iter().map(of).sum::<f64>() / told.len() as f64
    };
    let largest = told.iter().filter_map(|told| told.pointer("/cost/memory_bytes")?.as_f64()).fold(0.0, f64::max);
    Ok(Traced {
        rounds: ROUNDS,
        served: stats::quantile(&mut without, 0.5),
        ratio: stats::interval(&ratios),
        told: mean("/cost/share"),
        memory: largest,
        processor: mean("/cost/processor_seconds") / mean("/seconds"),
        calls: mean("/cost/calls") / mean("/cost/watched_seconds"),
    })
}

/// Mean of what the server says in a span that begins now.
fn mean(heard: &Receiver<f64>) -> Result<f64> {
    while heard.try_recv().is_ok() {}
    let (begun, mut rates) = (Instant::now(), Vec::new());
    while begun.elapsed() < SPAN {
        rates.push(heard.recv_timeout(SPAN).context("the server says nothing")?);
    }
    Ok(rates.iter().sum::<f64>() / rates.len() as f64)
}

/// A trace under way.
struct Trace(Running);

impl Trace {
    fn begin(programs: &Programs, cgroup: &Path) -> Result<Self> {
        let name = cgroup.file_name().context("a cgroup has a name")?.to_string_lossy();
        let state = std::env::temp_dir().join(&*name);
        let mut command = Command::new(&programs.defib);
        command.args(["trace", &format!("/{name}"), "--for", "2m", "--json", "--socket", "/nonexistent"]);
        command.arg("--state-dir").arg(&state);
        Ok(Self(Running(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?)))
    }

    /// Ends it as Ctrl-C does; what it says.
    fn end(mut self) -> Result<Value> {
        let pid = Pid::from_raw(self.0.0.id().cast_signed()).context("no process has this id")?;
        kill_process(pid, Signal::INT)?;
        let out = self.0.0.stdout.take().context("its output is piped")?;
        let told = serde_json::from_reader(BufReader::new(out)).context("a trace did not say what it found")?;
        let status = self.0.0.wait()?;
        ensure!(status.success(), "a trace ended with {status}");
        Ok(told)
    }
}

/// The server's cgroup, and where traces are kept; gone when dropped.
struct Place(PathBuf);

impl Place {
    fn new() -> Result<Self> {
        let (mount, _) = memory_hierarchy();
        let name = format!("defib-bench-traced-{}", std::process::id());
        let directory = mount.join(&name);
        make(&directory)?;
        fs::create_dir_all(std::env::temp_dir().join(name))?;
        Ok(Self(directory))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The server is gone by now; its cgroup notices a moment later.
        let gone = (0..100).any(|_| {
            sleep(Duration::from_millis(20));
            fs::remove_dir(&self.0).is_ok()
        });
        if !gone {
            say::line(format_args!("left behind: {}", self.0.display()));
        }
        if let Some(name) = self.0.file_name() {
            fs::remove_dir_all(std::env::temp_dir().join(name)).ok();
        }
    }
}

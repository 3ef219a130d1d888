//! An agent for the length of a measurement, and what its metrics say.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread::{sleep, spawn},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use super::{Programs, stats::in_minute_us};
use crate::workspace;

/// A running child that is ended with SIGTERM when it is dropped, and with SIGKILL when that does not do: bpftrace sleeps on when
/// the signal comes while it prints.
pub(super) struct Running(pub(super) Child);

/// From SIGTERM to SIGKILL: an agent has its end to write down.
const ENDING: Duration = Duration::from_secs(5);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM).ok();
        }
        let begin = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) && begin.elapsed() < ENDING {
            sleep(Duration::from_millis(1));
        }
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The series of a scrape with their values.
pub(super) type Metrics = BTreeMap<String, f64>;

/// A moment of the event stream.
#[derive(Deserialize)]
struct Moment {
    time: String,
    what: String,
}

/// An OOM mark that the agent told.
pub(super) struct OomMark {
    /// When the kernel set it, microseconds since its minute began.
    pub(super) at_us: u64,
    /// When it was heard of.
    pub(super) heard: Instant,
}

/// An address of loopback that nobody listens on.
pub(super) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// `defib run`.
pub(super) struct Agent {
    child: Running,
    address: SocketAddr,
    state: PathBuf,
    attached: Duration,
    ready: Duration,
}

impl Agent {
    /// Starts it with this configuration and waits until it is ready.
    pub(super) fn start(programs: &Programs, config_text: &str) -> Result<Self> {
        let address = free_address()?;
        let config = workspace::target().join("bench.toml");
        std::fs::write(&config, config_text).with_context(|| format!("cannot write {}", config.display()))?;
        let state = workspace::target().join("bench-state");
        // What an earlier arm has left is another agent's.
        std::fs::remove_dir_all(&state).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error).with_context(|| format!("cannot remove {}", state.display())),
        })?;
        let begin = Instant::now();
        let child = Command::new(&programs.defib)
            .args(["run", "--listen", &address.to_string(), "--config"])
            .arg(&config)
            .arg("--state-dir")
            .arg(&state)
            .arg("--control-socket")
            .arg(state.join("control.sock"))
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start defib run")?;
        let mut agent = Self { child: Running(child), address, state, attached: Duration::ZERO, ready: Duration::ZERO };
        loop {
            let answer = agent.get("/readyz").unwrap_or_default();
            if agent.attached.is_zero() && !answer.is_empty() && !answer.contains("kernel programs") {
                agent.attached = begin.elapsed();
            }
            if answer.split(' ').nth(1) == Some("200") {
                break;
            }
            ensure!(begin.elapsed() < Duration::from_secs(60), "the agent did not become ready");
            sleep(Duration::from_millis(2));
        }
        agent.ready = begin.elapsed();
        Ok(agent)
    }

    /// From its start until it said that its programs are attached.
    pub(super) fn attached_after(&self) -> Duration {
        self.attached
    }

    /// From its start until it said that its programs are attached and what runs is known.
    pub(super) fn ready_after(&self) -> Duration {
        self.ready
    }

    /// Where it keeps its state.
    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    /// Its OOM marks, as a reader of its events hears of them.
    pub(super) fn oom_marks(&self) -> Result<Receiver<OomMark>> {
        let mut stream = TcpStream::connect(self.address)?;
        write!(stream, "GET /api/v1/events HTTP/1.1\r\nHost: {}\r\n\r\n", self.address)?;
        let (send, heard) = channel();
        spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let heard = Instant::now();
                let moment = line.strip_prefix("data: ").and_then(|data| serde_json::from_str::<Moment>(data).ok());
                let Some(moment) = moment.filter(|moment| moment.what == "oom_mark") else { continue };
                let Some(at_us) = in_minute_us(&moment.time) else { continue };
                if send.send(OomMark { at_us, heard }).is_err() {
                    return;
                }
            }
        });
        Ok(heard)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// All series with their values.
    pub(super) fn metrics(&self) -> Result<Metrics> {
        let text = self.get("/metrics")?;
        let series = text.lines().filter(|line| line.starts_with("defib_"));
        Ok(series
            .filter_map(|line| line.rsplit_once(' '))
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect())
    }

    /// The whole answer to a GET.
    pub(super) fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.address)?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }
}

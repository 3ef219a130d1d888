//! From the kernel's OOM mark on a server until a load balancer that asks is told that it is down.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::mpsc::{Receiver, channel},
    thread::{sleep, spawn},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::{
    Programs,
    agent::Agent,
    limited::Limited,
    stats::{in_minute_us, quantile},
};
use crate::say;

const KILLS: usize = 40;
/// Between two questions: many times less than what is measured, and light on the processors that are measured.
const ASK_EVERY: Duration = Duration::from_micros(200);
/// Of a server that is in: longer than what would be held against it (`backoff.reset_after` below).
const LIFE: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_secs(20);
const MINUTE_US: u64 = 60_000_000;

/// Milliseconds.
pub(super) struct OutOfPool {
    pub(super) kills: usize,
    pub(super) p50: f64,
    pub(super) max: f64,
}

/// A moment of the event stream.
#[derive(Deserialize)]
struct Moment {
    time: String,
    what: String,
}

pub(super) fn measure(programs: &Programs) -> Result<OutOfPool> {
    say::line(format_args!("bench: {KILLS} OOM kills, until a load balancer is told"));
    let limited = Limited::new()?;
    let [server, agent_check] = [free_address()?, free_address()?];
    let start = [&*programs.victim.to_string_lossy(), "serve", &server.port().to_string()];
    // In again at once, however often it has died.
    let config = format!(
        "[pool]\nagent_check = \"{agent_check}\"\n\
         [defaults]\nrestart = true\ngrace = \"0s\"\nbackoff = {{ reset_after = \"100ms\" }}\n\
         budget = {{ per_service = \"1000/10m\", per_host = \"1000/10m\" }}\n\
         {}pool = \"be/victims\"\nhealth = \"http://{server}/healthz\"\n",
        limited.config_of("victims", &start)
    );
    let agent = Agent::start(programs, &config)?;
    let marks = marks(&agent)?;
    let mut all = Vec::new();
    for _ in 0..KILLS {
        until(agent_check, "up")?;
        sleep(LIFE);
        marks.try_iter().for_each(drop);
        TcpStream::connect(server)?.write_all(b"GET /leak HTTP/1.0\r\n\r\n")?;
        until(agent_check, "down")?;
        let told = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() as u64 % MINUTE_US;
        let marked = marks.recv_timeout(PATIENCE).context("nobody told of the mark")?;
        all.push(((told + MINUTE_US - marked) % MINUTE_US) as f64 / 1e3);
    }
    Ok(OutOfPool { kills: all.len(), p50: quantile(&mut all, 0.5), max: quantile(&mut all, 1.0) })
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Asks as HAProxy does until the answer begins with this word.
fn until(agent_check: SocketAddr, word: &str) -> Result<()> {
    let begin = Instant::now();
    loop {
        let mut stream = TcpStream::connect(agent_check).context("the agent does not answer agent checks")?;
        stream.write_all(b"be/victims\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if answer.starts_with(word) {
            return Ok(());
        }
        ensure!(begin.elapsed() < PATIENCE, "the server did not become '{word}' in its pool, but '{}'", answer.trim());
        sleep(ASK_EVERY);
    }
}

/// The time of each OOM mark in the kernel, microseconds since its minute began.
fn marks(agent: &Agent) -> Result<Receiver<u64>> {
    let mut stream = TcpStream::connect(agent.address())?;
    write!(stream, "GET /api/v1/events HTTP/1.1\r\nHost: {}\r\n\r\n", agent.address())?;
    let (send, heard) = channel();
    spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let moment = line.strip_prefix("data: ").and_then(|data| serde_json::from_str::<Moment>(data).ok());
            let Some(moment) = moment.filter(|moment| moment.what == "oom_mark") else { continue };
            if in_minute_us(&moment.time).is_some_and(|at| send.send(at).is_err()) {
                return;
            }
        }
    });
    Ok(heard)
}

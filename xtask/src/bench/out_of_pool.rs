//! From the kernel's OOM mark on a server until a load balancer that asks is told that it is down.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Programs,
    agent::{Agent, free_address},
    limited::Limited,
    stats::quantile,
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
    let marks = agent.oom_marks()?;
    let mut all = Vec::new();
    for _ in 0..KILLS {
        until(agent_check, "up")?;
        sleep(LIFE);
        marks.try_iter().for_each(drop);
        TcpStream::connect(server)?.write_all(b"GET /leak HTTP/1.0\r\n\r\n")?;
        until(agent_check, "down")?;
        let told = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() as u64 % MINUTE_US;
        let marked = marks.recv_timeout(PATIENCE).context("nobody told of the mark")?.at_us;
        all.push(((told + MINUTE_US - marked) % MINUTE_US) as f64 / 1e3);
    }
    Ok(OutOfPool { kills: all.len(), p50: quantile(&mut all, 0.5), max: quantile(&mut all, 1.0) })
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

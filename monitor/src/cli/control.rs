//! `defib status`, `pause`, `resume`: talks to the agent that runs.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use jiff::Timestamp;

use super::{complete, config_arg, output};
use crate::{
    control::{self, Pause, Resume, Status},
    memory::forecast::{Forecast, Verdict},
    pool::State,
    text::Clean,
};

/// How the agent is reached.
#[derive(clap::Args)]
pub(super) struct Agent {
    #[command(flatten)]
    config: config_arg::Args,
    /// The agent's control socket, over what the configuration says
    #[arg(long, value_name = "PATH", global = true)]
    socket: Option<PathBuf>,
    /// JSON, for programs
    #[arg(long, global = true)]
    json: bool,
}

impl Agent {
    fn socket(&self) -> Result<PathBuf> {
        match &self.socket {
            Some(socket) => Ok(socket.clone()),
            None => Ok(self.config.load()?.agent.control_socket),
        }
    }
}

/// Arguments of `pause`.
#[derive(clap::Args)]
pub(super) struct PauseArgs {
    /// The service, as 'defib status' names it
    #[arg(add = complete::service())]
    service: String,
    /// How long: 30m, 2h, 1d; at most 30 days
    #[arg(long = "for", value_name = "TIME", default_value = "30m", value_parser = duration)]
    time: Duration,
    /// Why; kept in the incident
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    agent: Agent,
}

/// Arguments of `resume`.
#[derive(clap::Args)]
pub(super) struct ResumeArgs {
    /// The service, as 'defib status' names it
    #[arg(add = complete::service())]
    service: String,
    #[command(flatten)]
    agent: Agent,
}

/// A pause that nobody remembers is an outage that nobody mends.
const LONGEST: Duration = Duration::from_secs(30 * 86_400);

fn duration(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| format!("{error}; write 30m, 2h or 1d"))?;
    match time {
        Duration::ZERO => Err("a pause of nothing".to_owned()),
        time if time > LONGEST => Err("at most 30d; a service that is to stay down needs no Defib".to_owned()),
        time => Ok(time),
    }
}

pub(super) async fn status(agent: &Agent) -> Result<()> {
    let all: Vec<Status> = control::request(&agent.socket()?, "/status", None::<()>).await?;
    if agent.json {
        return output::json(&all);
    }
    if all.is_empty() {
        return output::line("the agent looks after no service; [[service]] in its configuration names them");
    }
    output::line(format!(
        "{:<28} {:<14} {:>8} {:>8} {:>10} {:>10} {:>10} {:>8}  NOTES",
        "SERVICE", "STATE", "PID", "SINCE", "MEMORY", "LIMIT", "GROWTH/H", "OOM IN"
    ))?;
    for one in &all {
        let since = one.down_since.or(one.started);
        let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), output::bytes);
        output::line(format!(
            "{:<28} {:<14} {:>8} {:>8} {:>10} {:>10} {:>10} {:>8}  {}",
            output::tail(&Clean(&one.service).to_string(), 28),
            one.state,
            one.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            since.map_or_else(|| "-".to_owned(), ago),
            size(one.memory_bytes),
            size(one.memory_limit_bytes),
            growth(&one.forecast),
            oom_in(&one.forecast),
            notes(one),
        ))?;
    }
    Ok(())
}

fn ago(at: Timestamp) -> String {
    output::span(u64::try_from(Timestamp::now().duration_since(at).as_millis()).unwrap_or(0))
}

/// Growth of memory in an hour of uptime, where it means something.
fn growth(forecast: &Forecast) -> String {
    let leaks = matches!(forecast.verdict, Verdict::Leak | Verdict::MaskedLeak);
    let growth = forecast.growth_bytes_per_hour.filter(|growth| leaks && *growth > 0.0);
    growth.map_or_else(|| "-".to_owned(), |growth| output::bytes(growth as u64))
}

fn oom_in(forecast: &Forecast) -> String {
    let eta = forecast.exhausted_in_seconds.or(forecast.time_to_oom_seconds);
    eta.map_or_else(|| "-".to_owned(), |seconds| output::span((seconds * 1e3) as u64))
}

fn notes(status: &Status) -> String {
    let mut notes = Vec::new();
    if let Some(incident) = status.incident {
        notes.push(format!("incident {incident}"));
    }
    if let Some(state) = status.pool.filter(|&state| state != State::In) {
        notes.push(match state {
            State::Draining => "draining from its pool".to_owned(),
            _ => "out of its pool".to_owned(),
        });
    }
    if let Some(until) = status.paused_until {
        notes.push(format!("paused until {until:.0}"));
    }
    if status.forecast.level.is_some() {
        notes.push(status.forecast_text.clone());
    }
    notes.join(", ")
}

pub(super) async fn pause(args: PauseArgs) -> Result<()> {
    let PauseArgs { service, time, reason, agent } = args;
    let pause = Pause { service, seconds: time.as_secs().max(1), reason };
    let status: Status = control::request(&agent.socket()?, "/pause", Some(pause)).await?;
    told(&status, agent.json)
}

pub(super) async fn resume(args: ResumeArgs) -> Result<()> {
    let ResumeArgs { service, agent } = args;
    let status: Status = control::request(&agent.socket()?, "/resume", Some(Resume { service })).await?;
    told(&status, agent.json)
}

fn told(status: &Status, json: bool) -> Result<()> {
    if json {
        return output::json(status);
    }
    let service = Clean(&status.service);
    match status.paused_until {
        Some(until) => output::line(format!("{service} is paused until {until:.0}: no restarts by Defib")),
        None => output::line(format!("{service} is not paused; its state: {}", status.state)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_have_an_end() {
        assert_eq!(duration("30m"), Ok(Duration::from_secs(1800)));
        for (text, want) in [("0s", "nothing"), ("31d", "at most 30d"), ("soon", "write 30m")] {
            let error = duration(text).expect_err("refused");
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}

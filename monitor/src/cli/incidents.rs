//! `defib incidents`: what happened, from the store; no agent needs to run.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use jiff::Timestamp;

use super::{complete, config_arg, output};
use crate::{
    healing::Outcome,
    incident::{self, Incident, Kind, picture},
    store::Reader,
    text::Clean,
    trace::{
        Summary,
        show::{kept::Shelf, summary},
    },
};

/// Arguments of `incidents`.
#[derive(clap::Args)]
// Its group would be called as that of the arguments within, which a debug build refuses.
#[group(skip)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    list: List,
    #[command(flatten)]
    config: config_arg::Args,
    /// Where state is kept, over what the configuration says
    #[arg(long, value_name = "DIR", global = true)]
    state_dir: Option<PathBuf>,
    /// JSON, for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// The newest incidents (the same as without a subcommand)
    List(List),
    /// One incident: evidence, timeline, decisions, outcome
    Show {
        /// Its number in the list
        id: i64,
    },
    /// The root-cause timeline of one incident, in Markdown
    Report {
        /// Its number in the list
        id: i64,
    },
}

#[derive(clap::Args)]
struct List {
    /// Only this service
    #[arg(long, value_name = "NAME", add = complete::service())]
    service: Option<String>,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: u32,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let directory = match &args.state_dir {
        Some(directory) => directory.clone(),
        None => args.config.load()?.agent.state_dir,
    };
    let reader = Reader::open(&directory)?;
    let one =
        |id: i64| reader.incident(id)?.with_context(|| format!("there is no incident {id}; see 'defib incidents'"));
    match &args.command {
        None => list(&reader, &args.list, args.json),
        Some(Command::List(what)) => list(&reader, what, args.json),
        Some(Command::Show { id }) if args.json => output::json(&one(*id)?),
        Some(Command::Show { id }) => {
            let incident = one(*id)?;
            show(&incident)?;
            traced(&directory, &incident, summary::lines).into_iter().flatten().try_for_each(output::line)
        }
        Some(Command::Report { id }) if args.json => output::json(&one(*id)?),
        Some(Command::Report { id }) => {
            let incident = one(*id)?;
            let grew = traced(&directory, &incident, summary::markdown).unwrap_or_default();
            output::line(format!("{}{grew}", incident::markdown(&incident)).trim_end())
        }
    }
}

/// What the trace that an incident is shown with has to say, if one is kept.
fn traced<T>(state_dir: &Path, incident: &Incident, tell: impl Fn(&Summary, &Path) -> T) -> Option<T> {
    let shelf = Shelf::of(state_dir);
    let summary = summary::for_incident(shelf.list(Some(&incident.service)).ok()?, incident)?;
    Some(tell(&summary, &shelf.path(&summary)?))
}

fn list(reader: &Reader, what: &List, json: bool) -> Result<()> {
    let incidents = reader.incidents(what.service.as_deref(), what.limit)?;
    if json {
        return output::json(&incidents);
    }
    if incidents.is_empty() {
        return output::line("no incidents");
    }
    output::line(format!(
        "{:>6}  {:<20} {:<28} {:>9}  {:<12} CAUSE",
        "ID", "BEGAN (UTC)", "SERVICE", "DOWN", "OUTCOME"
    ))?;
    for incident in &incidents {
        output::line(format!(
            "{:>6}  {:<20} {:<28} {:>9}  {:<12} {}",
            incident.id,
            incident.began.strftime("%Y-%m-%d %H:%M:%S").to_string(),
            output::tail(&Clean(&incident.service).to_string(), 28),
            down(incident),
            word(incident),
            Clean(&incident.cause_text),
        ))?;
    }
    Ok(())
}

fn down(incident: &Incident) -> String {
    match (incident.kind, incident.outage_ms) {
        (Kind::NearMiss | Kind::PlannedRestart, _) => "-".to_owned(),
        (Kind::Outage, Some(outage_ms)) => output::span(outage_ms),
        (Kind::Outage, None) => {
            let since = Timestamp::now().duration_since(incident.began);
            output::span(u64::try_from(since.as_millis()).unwrap_or(0))
        }
    }
}

fn word(incident: &Incident) -> &'static str {
    match (incident.kind, incident.ended, incident.outcome) {
        (Kind::NearMiss, ..) => "lived on",
        (Kind::PlannedRestart, Some(_), Some(Outcome::LeftAlone)) => "called off",
        (_, _, Some(Outcome::Renewed)) => "planned",
        (_, None, Some(Outcome::LeftAlone)) => "left alone",
        (_, None, _) => "open",
        (_, _, Some(Outcome::Restarted)) => "restarted",
        (_, _, Some(Outcome::Respawned)) => "respawned",
        (_, _, Some(Outcome::LeftAlone)) => "left alone",
        (_, _, Some(Outcome::Intended)) => "intended",
        (_, _, None) => "-",
    }
}

fn show(incident: &Incident) -> Result<()> {
    output::line(format!("incident {}: {} ({})", incident.id, Clean(&incident.service), incident.kind.as_str()))?;
    output::line(format!("cause     {}", Clean(&incident.cause_text)))?;
    output::line(format!("began     {}", incident.began))?;
    let ended = incident.ended.map_or_else(|| "not yet".to_owned(), |ended| ended.to_string());
    output::line(format!("ended     {ended}"))?;
    output::line(format!("down      {}", down(incident)))?;
    output::line(format!("outcome   {}", word(incident)))?;
    output::line(format!("deaths    {}, restarts asked {}", incident.deaths, incident.restarts))?;
    for item in incident.evidence.as_array().into_iter().flatten() {
        let text = |name: &str| Clean(item[name].as_str().unwrap_or_default()).to_string();
        output::line(format!("evidence  {}: {}", text("source"), text("finding")))?;
    }
    for entry in &incident.timeline {
        output::line(format!("{:.3}  {:<14} {}", entry.at, entry.what, Clean(&entry.text)))?;
    }
    if incident.moments_dropped > 0 {
        output::line(format!("({} moments in the middle were not kept)", incident.moments_dropped))?;
    }
    for sample in &incident.memory {
        output::line(format!("memory    {:.0}  {}", sample.at, output::bytes(sample.bytes)))?;
    }
    show_picture(incident)
}

fn show_picture(incident: &Incident) -> Result<()> {
    let Some(before) = &incident.before_oom else { return Ok(()) };
    for shown in &before.pictures {
        output::line(format!("picture   {}", Clean(&picture::heading(incident, shown))))?;
        for portrait in &shown.processes {
            output::line(format!("          {}", Clean(&picture::process(portrait))))?;
            for (resident, swap, what) in picture::rows(portrait) {
                let swapped = if swap > 0 { format!(" and {} in swap", output::bytes(swap)) } else { String::new() };
                output::line(format!("  {:>12}  {}{swapped}", output::bytes(resident), Clean(&what)))?;
            }
        }
    }
    match &before.command {
        Some(ran) => output::line(format!("command   {}", Clean(&ran.text))),
        None => Ok(()),
    }
}

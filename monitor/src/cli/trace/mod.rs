//! `defib trace`: where a service's memory grows, by call stack; and what earlier traces found.

mod find;
mod near;
mod progress;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{complete, config_arg, output};
use crate::{
    config::Config,
    host::{memory, privilege},
    text::Clean,
    trace::{
        self,
        growth::Growth,
        show::{
            compare,
            kept::{FILES, Files, Output, Shelf},
            report,
            summary::Summary,
        },
    },
};

/// Arguments of `trace`.
#[derive(clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// A service as 'defib status' names it, a systemd unit, a container, or the path of a cgroup, beginning with a slash
    #[arg(required_unless_present = "list", add = complete::service())]
    service: Option<String>,
    /// How long: 10s to 1h
    #[arg(long = "for", value_name = "TIME", default_value = "5m", value_parser = duration)]
    time: Duration,
    /// Where to put growth.json, flame.svg and folded.txt, instead of among the kept traces
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Lists the traces that are kept, of SERVICE or of all; traces nothing
    #[arg(long, conflicts_with_all = ["show", "compare", "output"])]
    list: bool,
    /// Shows the newest trace of SERVICE that is kept; traces nothing
    #[arg(long, conflicts_with_all = ["compare", "output"])]
    show: bool,
    /// Compares the newest traces of two builds of SERVICE, by stack; traces nothing
    #[arg(long, conflicts_with = "output")]
    compare: bool,
    /// JSON, for programs
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: config_arg::Args,
    /// The agent's control socket, over what the configuration says
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Where state is kept, over what the configuration says
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The directory of the service's cgroup, which is then not looked for
    #[arg(long, value_name = "DIR", hide = true, requires = "service")]
    cgroup: Option<PathBuf>,
    /// For the agent that starts it: few rights, and no more than a summary as JSON
    #[arg(long, hide = true, requires = "cgroup")]
    for_agent: bool,
}

impl Args {
    /// Whoever looks for a leak must not hold up others, nor have them killed for the memory that it takes itself. To be called
    /// before there is a second thread: much of this is a thread's own.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn step_back(&self) -> Result<()> {
        // A sandbox may forbid it; it is a courtesy.
        rustix::process::setpriority_process(None, NICE).ok();
        memory::volunteer();
        if !self.for_agent {
            return Ok(());
        }
        // An agent that is killed has no time to end what it has begun.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .context("cannot ask to end with the agent")?;
        privilege::only_tracing()
    }
}

/// Shorter than this nothing can be told from what is about to be released; longer it is a monitor, which this is not.
const SHORTEST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(3600);
/// How much less than others this process counts for who computes next (setpriority(2)).
const NICE: i32 = 10;

fn duration(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| format!("{error}; write 30s, 10m or 1h"))?;
    if (SHORTEST..=LONGEST).contains(&time) { Ok(time) } else { Err("allowed is 10s to 1h".to_owned()) }
}

pub(super) fn run(args: Args) -> Result<()> {
    let config = match args.for_agent {
        // The agent has said all.
        true => Config::default(),
        false => args.config.load()?,
    };
    let state_dir = args.state_dir.as_ref().unwrap_or(&config.agent.state_dir);
    let shelf = Shelf::of(state_dir);
    let service = args.service.as_deref();
    match service {
        _ if args.list => list(&shelf, service, args.json),
        Some(service) if args.show => show(&shelf, service, args.json),
        Some(service) if args.compare => compare(&shelf, service, args.json),
        Some(service) => follow(&args, &config, &shelf, service),
        None => bail!("which service?"),
    }
}

/// What is kept of a service; the ending of a unit may be left out.
fn kept(shelf: &Shelf, service: &str) -> Result<Vec<Summary>> {
    let all = shelf.list(Some(service))?;
    if all.is_empty() { shelf.list(Some(&format!("{service}.service"))) } else { Ok(all) }
}

fn list(shelf: &Shelf, service: Option<&str>, json: bool) -> Result<()> {
    let all = match service {
        Some(service) => kept(shelf, service)?,
        None => shelf.list(None)?,
    };
    if json {
        return output::json(&all);
    }
    if all.is_empty() {
        return output::line("no traces are kept; 'defib trace SERVICE' makes one");
    }
    output::line(report::head())?;
    all.iter().try_for_each(|summary| output::line(report::row(summary)))
}

fn show(shelf: &Shelf, service: &str, json: bool) -> Result<()> {
    let newest = kept(shelf, service)?.into_iter().next().with_context(|| none_kept(shelf, service))?;
    let growth = shelf.growth(&newest)?;
    if json {
        return output::json(&growth);
    }
    tell(&growth, shelf.path(&newest).as_deref())
}

fn none_kept(shelf: &Shelf, service: &str) -> String {
    let known: Vec<_> = shelf.list(None).unwrap_or_default().into_iter().map(|summary| summary.service).collect();
    format!("no trace of {} is kept{}", Clean(service), near::words(service, &known))
}

/// Of the newest trace, and the newest before it that is of another build.
fn compare(shelf: &Shelf, service: &str, json: bool) -> Result<()> {
    let all = kept(shelf, service)?;
    let (newest, earlier) = all.split_first().with_context(|| none_kept(shelf, service))?;
    let after = shelf.growth(newest)?;
    for summary in earlier {
        let before = shelf.growth(summary)?;
        if compare::are_different_builds(&before, &after) {
            let comparison = compare::compare(&before, &after);
            return if json { output::json(&comparison) } else { output::line(compare::text(&comparison).trim_end()) };
        }
    }
    bail!(
        "there is nothing to compare: {} kept of {}, and none of another build than the newest (builds are told apart by the build id \
         in their programs)",
        if all.len() == 1 { "one trace is".to_owned() } else { format!("{} traces are", all.len()) },
        Clean(service)
    )
}

/// Where the files go.
enum Place {
    Named(Output),
    Kept,
}

fn follow(args: &Args, config: &Config, shelf: &Shelf, service: &str) -> Result<()> {
    shelf.prepare()?;
    let place = match &args.output {
        Some(path) => Place::Named(Output::open(path)?),
        None => Place::Kept,
    };
    let _alone = shelf.alone()?;
    let growth = super::runtime()?.block_on(async {
        let stop = super::asked_to_stop()?;
        let socket = args.socket.as_deref().unwrap_or(&config.agent.control_socket);
        let options = options(args, config, socket, service).await?;
        let quiet = args.json || args.for_agent;
        if !quiet {
            progress::announce(&options);
        }
        let mut progress = progress::Progress::new(options.duration, quiet);
        let growth = trace::follow(&options, stop, |look| progress.look(look)).await;
        progress.end();
        growth
    })?;
    let files = Files::of(&growth)?;
    let kept = match &place {
        Place::Named(output) => output.write(&files),
        Place::Kept => shelf.keep(&files),
    };
    if args.for_agent {
        kept?;
        return output::json(files.summary());
    }
    // What was found after minutes is shown also when it could not be written.
    if args.json {
        output::json(&growth)?;
    } else {
        tell(&growth, kept.as_deref().ok())?;
    }
    kept.map(drop)
}

async fn options(args: &Args, config: &Config, socket: &Path, service: &str) -> Result<trace::Options> {
    let (service, cgroup) = match &args.cgroup {
        Some(cgroup) => (service.to_owned(), cgroup.clone()),
        None => find::service(service, socket, config).await?,
    };
    ensure!(cgroup.is_dir(), "{} is no cgroup", cgroup.display());
    Ok(trace::Options { service, cgroup, duration: args.time })
}

fn tell(growth: &Growth, place: Option<&Path>) -> Result<()> {
    output::line(report::text(growth).trim_end())?;
    match place {
        Some(place) => output::line(format!("files   {}: {}", place.display(), FILES.map(|(name, _)| name).join(", "))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_has_a_beginning_and_an_end() {
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        for text in ["9s", "61m", "soon", ""] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}

//! `defib forecast`: a recorded series through the forecaster, as the agent would have seen it.
//!
//! * [`table`]: the series from a file
//! * [`prometheus`]: the series from a server
//! * [`replay`]: what the agent would have said, and when first
//! * [`show`]: for people, with a small plot
//! * [`svg`]: the same as a picture

mod prometheus;
mod replay;
mod show;
mod svg;
mod table;

use std::{fs::File, io, path::PathBuf};

use anyhow::{Context as _, Result, ensure};

use self::replay::Replay;
use super::output;
use crate::memory::trend::Sample;

/// Arguments of `forecast`.
#[derive(clap::Args)]
#[command(after_help = "\
FILE is CSV with the header time,start,bytes,limit and optionally cpu, in any order: Unix seconds (start: when that
incarnation began), bytes that cannot be reclaimed, their limit (empty: none), cores in use. '-' is standard input.

  defib forecast web.csv                            what the agent would have said, and when
  defib forecast web.csv --svg web.svg              the same as a picture: by the clock and by uptime
  defib forecast --prometheus http://127.0.0.1:9090 --range 14d \\
    --query 'defib_service_memory_bytes{service=\"web\"}' --limit 'defib_service_memory_limit_bytes{service=\"web\"}'

A leak that restarts hide is a sawtooth by the clock and one line by uptime, so give the starts if you have them.")]
pub(super) struct Args {
    /// The series; '-' is standard input
    #[arg(required_unless_present = "prometheus", conflicts_with = "prometheus")]
    file: Option<PathBuf>,
    #[command(flatten)]
    prometheus: prometheus::Server,
    /// Write a picture: memory by the clock and by uptime, limit, forecast
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// JSON, for programs
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> Result<()> {
    let samples = match &args.file {
        None => prometheus::read(&args.prometheus).await?,
        Some(path) => from_file(path)?,
    };
    ensure!(!samples.is_empty(), "the series is empty");
    let replay = Replay::of(&samples);
    if let Some(path) = &args.svg {
        svg::draw(path, &samples, &replay)?;
    }
    if args.json { output::json(&replay.report()) } else { show::print(&samples, &replay) }
}

fn from_file(path: &PathBuf) -> Result<Vec<Sample>> {
    if path.as_os_str() == "-" {
        return table::read(io::stdin().lock()).context("standard input");
    }
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    table::read(io::BufReader::new(file)).with_context(|| path.display().to_string())
}

/// Takes any bytes for a series, replays it and says what that gave.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let Ok(samples) = table::read(bytes) else { return };
    let report = serde_json::to_string(&Replay::of(&samples).report());
    assert!(report.is_ok(), "{report:?}");
}

/// Takes any bytes for Prometheus' answer.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_prometheus(bytes: &[u8]) {
    prometheus::fuzz(bytes);
}

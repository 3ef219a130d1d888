//! The forecast on simulated services: runs the bench of the package `monitor` and keeps its tables.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::{artifacts, document, process, say, workspace};

/// Measure the forecast on simulated services, and write the tables to docs/forecast.md
///
/// Needs no rights. Takes about a minute. The seeds of a report are not those on which the forecast was developed.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Print the tables without writing docs/forecast.md
    #[arg(long)]
    print: bool,
    /// Services of each kind and schedule
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    each: u32,
    /// Draw from the seeds of development, to choose constants; nothing is written
    #[arg(long)]
    development: bool,
}

pub(super) fn execute(args: &Args) -> Result<ExitCode> {
    let mut build = workspace::cargo();
    let built =
        artifacts::build(build.args(["bench", "--locked", "--package", "monitor", "--bench", "forecast", "--no-run"]))?;
    let bench = built.iter().find(|executable| executable.name == "forecast").context("cargo built no bench")?;
    let mut command = Command::new(&bench.path);
    command.args(["--each", &args.each.to_string()]).stderr(Stdio::inherit());
    if !args.development {
        command.arg("--report");
    }
    say::line(format_args!("+ {}", process::shown(&command)));
    let output = command.output().with_context(|| format!("cannot start {}", process::shown(&command)))?;
    ensure!(output.status.success(), "the bench ended with {}", output.status);
    let tables = String::from_utf8(output.stdout).context("the bench does not write text")?;
    say::line(&tables);
    if !args.print && !args.development {
        let path = workspace::root().join("docs/forecast.md");
        document::FORECAST.write(&path, tables.trim_end())?;
        say::line(format_args!("written to {}", path.display()));
    }
    Ok(ExitCode::SUCCESS)
}

//! `cargo xtask run`: the agent, in the foreground.

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;

use crate::launch;

/// Start the agent in the foreground, from these sources
///
/// Builds the optimised binary as the invoking user, then runs `defib run`: as it is when that is enough, else
/// through sudo.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Passed on to `defib run`; `cargo xtask run -- --help` lists what it takes
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

pub(crate) fn execute(args: &Args) -> Result<ExitCode> {
    launch::launch("run", &args.args)
}

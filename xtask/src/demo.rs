//! `cargo xtask demo`: the main job, for real, on this machine.

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;

use crate::launch;

/// Show the main job here, for real: a service leaks, is OOM-killed, is brought back
///
/// Builds the optimised binary as the invoking user, then runs `defib demo`: as it is when that is enough, else
/// through sudo. Leaves nothing behind.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Passed on to `defib demo`; `cargo xtask demo -- --help` lists what it takes
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

pub(crate) fn execute(args: &Args) -> Result<ExitCode> {
    launch::launch("demo", &args.args)
}

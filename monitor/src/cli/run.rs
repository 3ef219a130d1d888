//! `defib run`: the agent.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Result;

use super::{asked_to_stop, log_lines_lost};
use crate::{
    agent,
    config::{Config, DEFAULT_PATH},
    timeline::Timeline,
};

/// Arguments of `run`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Configuration; without it, the default file is read when it exists, and otherwise everything is observed and
    /// nothing restarted
    #[arg(long, value_name = "FILE", help = format!("Configuration [default: {DEFAULT_PATH}, when it exists]"))]
    config: Option<PathBuf>,
    /// Address of /metrics, /healthz and /readyz, over what the configuration says
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Where state is kept, over what the configuration says
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where 'defib status', 'pause' and 'resume' reach it, over what the configuration says
    #[arg(long, value_name = "PATH")]
    control_socket: Option<PathBuf>,
    /// Type information of the running kernel, when it is not at /sys/kernel/btf/vmlinux
    #[arg(long, value_name = "PATH")]
    btf: Option<PathBuf>,
}

pub(super) async fn run(args: Args) -> Result<()> {
    let mut config = Config::load(args.config.as_deref())?;
    if let Some(listen) = args.listen {
        config.http.listen = listen;
    }
    if let Some(state_dir) = args.state_dir {
        config.agent.state_dir = state_dir;
    }
    if let Some(control_socket) = args.control_socket {
        config.agent.control_socket = control_socket;
    }
    let options = agent::Options { config, btf: args.btf.as_deref(), timeline: Timeline::new(), log_lines_lost };
    agent::run(options, asked_to_stop()?).await
}

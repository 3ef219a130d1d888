//! `defib run`: the agent.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Result;
use rustix::process::Pid;

use super::{log_lines_lost, reload::asked_to_stop_or_reload};
use crate::{
    agent::{self, Ended},
    config::{Config, ConfigError, DEFAULT_PATH},
    host::{children, inherited::Named},
    metrics::Reloads,
    timeline::Timeline,
    web,
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

impl Args {
    /// The configuration as it is now, and what the command line says over it.
    pub(super) fn load(&self) -> Result<Config, ConfigError> {
        let mut config = Config::load(self.config.as_deref())?;
        if let Some(listen) = self.listen {
            config.http.listen = listen;
        }
        if let Some(state_dir) = &self.state_dir {
            config.agent.state_dir.clone_from(state_dir);
        }
        if let Some(control_socket) = &self.control_socket {
            config.agent.control_socket.clone_from(control_socket);
        }
        // Before anything relies on it: a reload with a wrong one must change nothing.
        if let Some(file) = &config.http.web_config {
            web::check(file)?;
        }
        Ok(config)
    }
}

/// `inherited` and `left`: descriptors and children left to this process by the agent before it.
pub(super) async fn run(args: Args, config: Config, inherited: Vec<Named>, left: Vec<Pid>) -> Result<Ended> {
    if !left.is_empty() {
        tokio::spawn(children::reap(left));
    }
    let (reloads, btf) = (Reloads::new()?, args.btf.clone());
    let timeline = Timeline::new();
    let options = agent::Options {
        config,
        btf: btf.as_deref(),
        timeline,
        log_lines_lost,
        reloads: Some(reloads.clone()),
        inherited,
    };
    agent::run(options, asked_to_stop_or_reload(reloads, move || args.load())?).await
}

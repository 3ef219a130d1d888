//! What a shell asks at the tab key: with `COMPLETE` set, `defib` is its completer, and `COMPLETE=bash defib` prints what
//! a shell needs to ask. Names of services come from the agent that runs; nothing is ever printed but candidates.

use std::{ffi::OsStr, time::Duration};

use clap::CommandFactory as _;
use clap_complete::{ArgValueCompleter, CompleteEnv, CompletionCandidate};

use crate::{
    config::Config,
    control::{self, Status},
};

/// A person waits for the tab key no longer than this.
const PATIENCE: Duration = Duration::from_millis(300);

/// Answers a shell that asks, and ends the process then.
pub(super) fn if_asked() {
    CompleteEnv::with_factory(super::Cli::command).bin("defib").completer("defib").complete();
}

/// Completes the name of a service.
pub(super) fn service() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let typed = typed.to_string_lossy();
        let names = names().unwrap_or_default();
        names.into_iter().filter(|name| name.starts_with(&*typed)).map(CompletionCandidate::new).collect::<Vec<_>>()
    })
}

/// What the agent looks after; `None` when it does not answer, or not to this user.
fn names() -> Option<Vec<String>> {
    let config = Config::load(None).ok()?;
    let asked = async {
        let request = control::request(&config.agent.control_socket, "/status", None::<()>);
        tokio::time::timeout(PATIENCE, request).await
    };
    let all: Vec<Status> = super::runtime().ok()?.block_on(asked).ok()?.ok()?;
    Some(all.into_iter().map(|one| one.service.to_string()).collect())
}

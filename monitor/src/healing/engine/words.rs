//! What an engine is told, and what it says.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    config::{Backoff, Budget, Mode},
    healing::plan::Plan,
    host::process::Identity,
};

/// The rules for one service, or for many.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Policy {
    /// How much the agent may do.
    pub(crate) mode: Mode,
    /// Bring the service back.
    pub(crate) restart: bool,
    /// Least time for its own supervisor, from the death.
    pub(crate) grace: Duration,
    /// Times between tries.
    pub(crate) backoff: Backoff,
    /// Restarts in a window.
    pub(crate) budget: Budget,
}

/// Whether a service was meant to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    /// Nothing says so.
    None,
    /// By this sign, unless its supervisor knows better.
    Likely(String),
    /// By this sign.
    Certain(String),
}

/// What the engine is told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Input {
    /// The service's main process lives.
    Alive(Identity),
    /// The service's main process died.
    Died {
        /// Who.
        process: Identity,
        /// When, CLOCK_BOOTTIME nanoseconds.
        at_ns: u64,
        /// Whether it was meant to end.
        intent: Intent,
    },
    /// At start-up the service was not running, and it is one that always should.
    Missing,
    /// The supervisor told its plan.
    Planned {
        /// The question that this answers; answers may come late.
        question: u32,
        /// The plan, or why there is no answer.
        plan: Result<Plan, String>,
        /// Why the host has no memory for a restart.
        exhausted: Option<String>,
    },
    /// The supervisor has started it, or not.
    Started {
        /// The try that this is the answer to; answers may come late.
        attempt: u32,
        /// The new main process, or why there is none.
        result: Result<Identity, String>,
    },
    /// Health was proven, or a living process was not healthy in its time.
    Probed {
        /// The incarnation that was asked.
        process: Identity,
        /// Why it is not healthy.
        result: Result<(), String>,
    },
    /// This incarnation shall be ended, and the next one started.
    Renew {
        /// Who.
        process: Identity,
        /// Why.
        because: String,
    },
    /// The supervisor has done so, or not.
    RenewalEnded {
        /// The new main process, or why there is none.
        result: Result<Identity, String>,
    },
    /// An operator wants no restarts until then.
    Pause {
        /// CLOCK_BOOTTIME nanoseconds.
        until_ns: u64,
    },
    /// The pause is over.
    Resume,
    /// A deadline has come.
    Tick,
}

/// What became of a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// It was meant.
    Intended,
    /// Somebody else started a new incarnation.
    Respawned,
    /// We did.
    Restarted,
    /// Nothing was to be done, by configuration.
    LeftAlone,
    /// We asked for it ahead of time, and for the next incarnation.
    Renewed,
}

/// What the owner of the engine shall do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// An outage begins.
    Open {
        /// When the service died.
        at_ns: u64,
    },
    /// Ask its supervisor what it is going to do.
    Ask {
        /// Comes back with the answer.
        question: u32,
        /// When the last incarnation died: what began before is what it left behind.
        died_ns: u64,
        /// Its end was asked for by us, so it is no sign that somebody wants it down.
        ours: bool,
    },
    /// The next move is not ours.
    Wait {
        /// Until when.
        until_ns: u64,
        /// Why so long.
        reason: &'static str,
        /// What that rests on.
        because: String,
    },
    /// Ask the supervisor to start it.
    Restart {
        /// 1 for the first try in a row.
        attempt: u32,
        /// What that rests on.
        because: String,
    },
    /// Ask the supervisor to end this incarnation and to start the next one.
    Renew {
        /// Who ends.
        process: Identity,
        /// Why.
        because: String,
    },
    /// The planned restart is over, and the new incarnation healthy.
    Renewed {
        /// From the end of the old one to the health of the new one, nanoseconds.
        down_ns: u64,
    },
    /// It is over, or did not begin, for this reason; where nothing lives, an outage begins.
    NotRenewed {
        /// Why.
        reason: String,
    },
    /// Find out whether this incarnation is healthy.
    Probe {
        /// Who.
        process: Identity,
    },
    /// No restart, and why.
    Suppress {
        /// A label.
        reason: &'static str,
        /// What that rests on.
        because: String,
    },
    /// A try failed.
    Failed {
        /// Why.
        reason: String,
    },
    /// What became of a death; once for each.
    Conclude {
        /// Who died; `None`: it was not running at start-up.
        process: Option<Identity>,
        /// What became of it.
        outcome: Outcome,
    },
    /// The outage is over.
    Close {
        /// From death to proven health, nanoseconds.
        outage_ns: u64,
        /// How.
        outcome: Outcome,
    },
}

impl Action {
    /// The reasons of [`Action::Suppress`], for series that exist from the start.
    pub(crate) const SUPPRESSED: [&'static str; 11] = [
        "respawned",
        "observe",
        "not_configured",
        "dry_run",
        "service_budget",
        "host_budget",
        "maintenance",
        "intended_stop",
        "held",
        "host_memory",
        "supervisor_unreachable",
    ];
}

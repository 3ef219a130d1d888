//! What an engine knows that outlives the agent.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Engine, Outcome, State};
use crate::host::process::Identity;

/// The state that outlives the agent. Times are CLOCK_BOOTTIME nanoseconds, which the store converts for later boots.
/// Times that can be of an earlier boot are signed; a time before this boot is negative.
#[derive(Clone, Debug, Default, PartialEq, Hash, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// The living main process.
    pub(crate) process: Option<Identity>,
    /// Begin of the outage.
    pub(crate) down_ns: Option<u64>,
    /// The last proof of health.
    pub(crate) healthy_ns: Option<i64>,
    /// Restarts in a row.
    pub(crate) attempts: u32,
    /// A restart was asked for, and there was no answer yet.
    pub(crate) in_flight: bool,
    /// When restarts were spent.
    pub(crate) spent_ns: VecDeque<i64>,
    /// The end of a pause.
    pub(crate) paused_until_ns: Option<u64>,
    /// The incarnation that died last.
    pub(crate) gone: Option<Identity>,
    /// Its death, or its absence at a start, has no outcome yet.
    pub(crate) pending: bool,
    /// It was meant to be down.
    pub(crate) stopped: bool,
    /// By what sign the death that has no outcome yet was likely meant.
    #[serde(default)]
    pub(crate) likely: Option<String>,
    /// The incarnation whose end was asked for last, to start the next one.
    #[serde(default)]
    pub(crate) renewed: Option<Identity>,
}

impl Memory {
    /// The state after a reboot: no process is left; budgets and pauses go on. `shift_ns` is added to old times. A
    /// service that was up when the host went down counts as healthy until then; one that was down has proven nothing
    /// since, so its tries go on from the beginning of this boot.
    pub(crate) fn after_reboot(self, shift_ns: i64) -> Self {
        let moved = |at_ns: i64| at_ns.saturating_add(shift_ns);
        let healthy_ns = self.healthy_ns.map(moved);
        Self {
            healthy_ns: if self.down_ns.is_none() { healthy_ns } else { healthy_ns.map(|at_ns| at_ns.max(0)) },
            attempts: self.attempts,
            spent_ns: self.spent_ns.into_iter().map(moved).collect(),
            // A pause that ended before this boot ends at time 0.
            paused_until_ns: self.paused_until_ns.map(|at_ns| at_ns.saturating_add_signed(shift_ns)),
            ..Self::default()
        }
    }
}

impl Engine {
    /// Goes on where an earlier agent was: then tell it what is alive, or that nothing is. An outage goes on with a fresh
    /// question to the supervisor, also when a restart was in flight: it may have succeeded.
    pub(crate) fn remember(&mut self, memory: Memory, now_ns: u64) {
        let Memory {
            process,
            down_ns,
            healthy_ns,
            attempts,
            in_flight,
            spent_ns,
            paused_until_ns,
            gone,
            pending,
            stopped,
            likely,
            renewed,
        } = memory;
        self.ledger.restore(spent_ns);
        (self.attempts, self.down_ns, self.healthy_ns) = (attempts, down_ns, healthy_ns);
        (self.paused_until_ns, self.died_ns) = (paused_until_ns, down_ns.unwrap_or(0));
        self.gone = gone;
        self.pending = pending.then_some(gone);
        self.absent = pending && gone.is_none();
        self.likely = likely;
        self.renewed = renewed;
        self.revived = if in_flight { Outcome::Restarted } else { Outcome::Respawned };
        self.state = match process {
            Some(process) if down_ns.is_some() => State::Proving(process),
            Some(process) => State::Running(process),
            // Nothing was to be done then, or is now.
            None if down_ns.is_some() && (!pending || !self.may_restart()) => State::Left,
            None if down_ns.is_some() => State::Waiting { until_ns: now_ns, reason: "agent restarted" },
            None if stopped => State::Stopped,
            None => State::Unknown,
        };
    }

    /// What to keep for [`Self::remember`].
    pub(crate) fn memory(&self) -> Memory {
        // One that is being renewed is believed to live until the next one does: so the next agent finds its death.
        let process = match self.state {
            State::Renewing { process, .. } => Some(process),
            _ => self.process(),
        };
        Memory {
            process,
            down_ns: self.down_ns,
            healthy_ns: self.healthy_ns,
            attempts: self.attempts,
            in_flight: matches!(self.state, State::Restarting { .. }),
            spent_ns: self.ledger.spent().clone(),
            paused_until_ns: self.paused_until_ns,
            gone: self.gone,
            pending: self.pending.is_some(),
            stopped: self.state == State::Stopped,
            likely: self.likely.clone(),
            renewed: self.renewed,
        }
    }
}

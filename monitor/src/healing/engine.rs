//! The states of one service, as a pure state machine.
//!
//! ```text
//!   Unknown ──alive──▶ Running ──died──▶ Waiting ──respawned by its supervisor──▶ Proving
//!      │                  ▲                │ deadline, budget left                  │ │
//!      └──missing──▶ Waiting               ▼                                        │ │
//!                         │             Restarting ──started──▶ Proving ──healthy───┘ │
//!                         │                │ failed                                   │
//!                         ▲                ▼                                          │
//!                         └───────── Waiting (longer each time) ◀──died or unhealthy──┘
//! ```
//!
//! A service that dies is an outage from its death until its health is proven. While a service waits, its supervisor
//! may bring it back, and then Defib does nothing. Each decision leaves as an action with its reason.

use std::time::Duration;

use super::budget::Ledger;
use crate::{
    config::{Backoff, Budget, Mode},
    host::process::Identity,
};

/// A start that neither succeeds nor fails within this is failed: 30 s.
const START_TIMEOUT_NS: u64 = 30_000_000_000;
/// Doubling stops here; 2^16 times the initial back-off is beyond any maximum.
const MAX_DOUBLINGS: u32 = 16;

/// The rules for one service.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// How much the agent may do.
    pub(crate) mode: Mode,
    /// Bring the service back.
    pub(crate) restart: bool,
    /// Least time for its own supervisor.
    pub(crate) grace: Duration,
    /// Times between tries.
    pub(crate) backoff: Backoff,
    /// Restarts in a window.
    pub(crate) budget: Budget,
    /// Varies the jitter from service to service.
    pub(crate) seed: u64,
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
    },
    /// At start-up the service was not running.
    Missing,
    /// The supervisor answered.
    Started {
        /// The try that this is the answer to; answers may come late.
        attempt: u32,
        /// The new main process, or why there is none.
        result: Result<Identity, String>,
    },
    /// Health was proven, or not within its time.
    Probed {
        /// The incarnation that was asked.
        process: Identity,
        /// Why it is not healthy.
        result: Result<(), String>,
    },
    /// A deadline has come.
    Tick,
}

/// What the owner of the engine shall do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// An outage begins.
    Open {
        /// When the service died.
        at_ns: u64,
    },
    /// Its supervisor has the next move.
    Wait {
        /// Until when.
        until_ns: u64,
        /// Why so long.
        reason: &'static str,
    },
    /// Ask the supervisor to start it.
    Restart {
        /// 1 for the first try in a row.
        attempt: u32,
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
    },
    /// A try failed.
    Failed {
        /// Why.
        reason: String,
    },
    /// The outage is over.
    Close {
        /// From death to proven health, nanoseconds.
        outage_ns: u64,
        /// Defib restarted it; otherwise its supervisor did.
        by_us: bool,
    },
}

impl Action {
    /// The reasons of [`Action::Suppress`], for series that exist from the start.
    pub(crate) const SUPPRESSED: [&'static str; 6] =
        ["respawned", "observe", "not_configured", "dry_run", "service_budget", "host_budget"];
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    Unknown,
    Running(Identity),
    /// Until a deadline, somebody else may bring the service back.
    Waiting {
        until_ns: u64,
    },
    Restarting {
        until_ns: u64,
    },
    Proving(Identity),
    /// Dead, and nothing will be done about it.
    Left,
}

/// One service.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    policy: Policy,
    state: State,
    ledger: Ledger,
    /// Restarts in a row that did not lead to lasting health.
    attempts: u32,
    /// Begin of the outage.
    down_ns: Option<u64>,
    healthy_ns: Option<u64>,
    restarted: bool,
    /// A newer incarnation than the one that counts: word of its life came before that of the other's death.
    newer: Option<Identity>,
    /// The incarnation that died or failed last: word of its life may come later than that of its death.
    gone: Option<Identity>,
    /// This is the first start, not the answer to a death.
    first_start: bool,
}

impl Engine {
    /// A service of which nothing is known yet.
    pub(crate) fn new(policy: Policy) -> Self {
        let ledger = Ledger::new(policy.budget);
        Self {
            policy,
            state: State::Unknown,
            ledger,
            attempts: 0,
            down_ns: None,
            healthy_ns: None,
            restarted: false,
            newer: None,
            gone: None,
            first_start: false,
        }
    }

    /// When [`Input::Tick`] is due; `None`: not without another input.
    pub(crate) fn deadline(&self) -> Option<u64> {
        match self.state {
            State::Waiting { until_ns } | State::Restarting { until_ns } => Some(until_ns),
            State::Unknown | State::Running(_) | State::Proving(_) | State::Left => None,
        }
    }

    /// The living main process, when there is one.
    pub(crate) fn process(&self) -> Option<Identity> {
        match self.state {
            State::Running(process) | State::Proving(process) => Some(process),
            State::Unknown | State::Waiting { .. } | State::Restarting { .. } | State::Left => None,
        }
    }

    /// Takes one input. `host` is the budget that all services share.
    pub(crate) fn step(&mut self, input: Input, host: &mut Ledger, now_ns: u64) -> Vec<Action> {
        match input {
            Input::Alive(process) => self.alive(process),
            Input::Died { process, at_ns } => self.died(process, at_ns, now_ns),
            Input::Missing if self.state == State::Unknown => self.missing(now_ns),
            Input::Missing => Vec::new(),
            Input::Started { attempt, result } => self.answered(attempt, result, now_ns),
            // The answer of an earlier incarnation's probe says nothing about this one.
            Input::Probed { process, .. } if self.state != State::Proving(process) => Vec::new(),
            Input::Probed { process, result: Ok(()) } => self.healthy(process, now_ns),
            Input::Probed { result: Err(reason), .. } => self.failed(reason, now_ns),
            Input::Tick => self.tick(host, now_ns),
        }
    }

    fn alive(&mut self, process: Identity) -> Vec<Action> {
        if self.gone.is_some_and(|gone| gone.matches(process)) {
            return Vec::new();
        }
        match self.state {
            State::Unknown => {
                self.state = State::Running(process);
                Vec::new()
            }
            State::Running(current) | State::Proving(current) => {
                if process.start_ns > current.start_ns && !process.matches(current) {
                    self.newer = Some(process);
                }
                Vec::new()
            }
            // The answer of the supervisor names the process.
            State::Restarting { .. } => Vec::new(),
            State::Waiting { .. } | State::Left => self.respawned(process),
        }
    }

    /// Somebody else brought it back.
    fn respawned(&mut self, process: Identity) -> Vec<Action> {
        self.state = State::Proving(process);
        self.restarted = false;
        vec![Action::Suppress { reason: "respawned" }, Action::Probe { process }]
    }

    fn died(&mut self, process: Identity, at_ns: u64, now_ns: u64) -> Vec<Action> {
        if self.newer.is_some_and(|newer| newer.matches(process)) {
            self.newer = None;
        }
        // Only the incarnation that counts: an old one's death must not end a new one's life.
        if self.process().is_some_and(|current| !current.matches(process)) {
            return Vec::new();
        }
        self.gone = Some(process);
        match self.state {
            State::Running(_) | State::Unknown => {
                let reset = u64::try_from(self.policy.backoff.reset_after.as_nanos()).unwrap_or(u64::MAX);
                if self.healthy_ns.is_none_or(|healthy| at_ns.saturating_sub(healthy) >= reset) {
                    self.attempts = 0;
                }
                let newer = self.newer.take();
                let mut actions = self.down(at_ns, now_ns);
                if let Some(newer) = newer {
                    // Somebody was faster than word of the death.
                    actions.retain(|action| !matches!(action, Action::Wait { .. }));
                    actions.extend(self.respawned(newer));
                }
                actions
            }
            State::Proving(_) => self.failed("it died before its health was proven".to_owned(), now_ns),
            State::Waiting { .. } | State::Restarting { .. } | State::Left => Vec::new(),
        }
    }

    /// Not running at start-up: whoever might have brought it back has had the time for it.
    fn missing(&mut self, now_ns: u64) -> Vec<Action> {
        let mut actions = self.down(now_ns, now_ns);
        self.first_start = true;
        if let State::Waiting { .. } = self.state {
            actions.retain(|action| !matches!(action, Action::Wait { .. }));
            self.state = State::Waiting { until_ns: now_ns };
        }
        actions
    }

    fn down(&mut self, at_ns: u64, now_ns: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.down_ns.is_none() {
            self.down_ns = Some(at_ns);
            actions.push(Action::Open { at_ns });
        }
        actions.extend(self.wait(now_ns));
        actions
    }

    /// Gives the supervisor its time, longer after every failed try.
    fn wait(&mut self, now_ns: u64) -> Vec<Action> {
        if self.policy.mode == Mode::Observe {
            self.state = State::Left;
            return vec![Action::Suppress { reason: "observe" }];
        }
        if !self.policy.restart {
            self.state = State::Left;
            return vec![Action::Suppress { reason: "not_configured" }];
        }
        let (grace, backoff) = (self.policy.grace, self.backoff());
        let (wait, reason) = if backoff > grace { (backoff, "back-off") } else { (grace, "grace") };
        let until_ns = now_ns.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX));
        self.state = State::Waiting { until_ns };
        vec![Action::Wait { until_ns, reason }]
    }

    fn tick(&mut self, host: &mut Ledger, now_ns: u64) -> Vec<Action> {
        match self.state {
            State::Waiting { until_ns } if until_ns <= now_ns => {
                for (ledger, reason) in [(&mut self.ledger, "service_budget"), (host, "host_budget")] {
                    if let Some(until_ns) = ledger.blocked_until(now_ns) {
                        self.state = State::Waiting { until_ns };
                        return vec![Action::Suppress { reason }, Action::Wait { until_ns, reason: "budget" }];
                    }
                }
                self.restart(host, now_ns)
            }
            State::Restarting { until_ns } if until_ns <= now_ns => {
                self.failed("its supervisor did not answer in time".to_owned(), now_ns)
            }
            _ => Vec::new(),
        }
    }

    fn restart(&mut self, host: &mut Ledger, now_ns: u64) -> Vec<Action> {
        if self.policy.mode == Mode::DryRun {
            self.state = State::Left;
            return vec![Action::Suppress { reason: "dry_run" }];
        }
        self.ledger.spend(now_ns);
        host.spend(now_ns);
        self.attempts = self.attempts.saturating_add(1);
        self.restarted = true;
        self.state = State::Restarting { until_ns: now_ns.saturating_add(START_TIMEOUT_NS) };
        vec![Action::Restart { attempt: self.attempts }]
    }

    fn answered(&mut self, attempt: u32, result: Result<Identity, String>, now_ns: u64) -> Vec<Action> {
        let current = attempt == self.attempts && matches!(self.state, State::Restarting { .. });
        match result {
            // Also when the time for it was over: it lives, and a second start would end it.
            Ok(process) if current || matches!(self.state, State::Waiting { .. }) => {
                self.state = State::Proving(process);
                vec![Action::Probe { process }]
            }
            Err(reason) if current => self.failed(reason, now_ns),
            Ok(_) | Err(_) => Vec::new(),
        }
    }

    fn failed(&mut self, reason: String, now_ns: u64) -> Vec<Action> {
        if !matches!(self.state, State::Restarting { .. } | State::Proving(_)) {
            return Vec::new();
        }
        self.gone = self.process().or(self.gone);
        let mut actions = vec![Action::Failed { reason }];
        actions.extend(self.wait(now_ns));
        actions
    }

    fn healthy(&mut self, process: Identity, now_ns: u64) -> Vec<Action> {
        self.state = State::Running(process);
        self.healthy_ns = Some(now_ns);
        if std::mem::take(&mut self.first_start) {
            // What it took to start it says nothing about how it will live.
            self.attempts = 0;
        }
        let Some(down_ns) = self.down_ns.take() else { return Vec::new() };
        vec![Action::Close { outage_ns: now_ns.saturating_sub(down_ns), by_us: self.restarted }]
    }

    /// Nothing before the first try, then doubling, with jitter that is the same whenever the inputs are replayed.
    fn backoff(&self) -> Duration {
        let Some(doublings) = self.attempts.checked_sub(1) else { return Duration::ZERO };
        let Backoff { initial, max, jitter, .. } = self.policy.backoff;
        let plain = initial.saturating_mul(1 << doublings.min(MAX_DOUBLINGS)).min(max);
        // SplitMix64's finalizer: every bit of seed and attempt reaches the result.
        let mut mixed = self.policy.seed ^ u64::from(self.attempts).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let unit = (mixed >> 11) as f64 / (1u64 << 53) as f64;
        plain.mul_f64(1.0 + jitter * (2.0 * unit - 1.0))
    }
}

#[cfg(test)]
mod tests;

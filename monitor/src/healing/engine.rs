//! The states of one service, as a pure state machine.
//!
//! ```text
//!   Unknown ──alive──▶ Running ──died──▶ Asking ◀──deadline── Waiting ◀─────────────────────────┐
//!      │                  ▲               │ │ its supervisor restarts it, grace, back-off,       │
//!      └──missing──▶ Asking               │ └─ pause, budget spent ──▶ Waiting                   │
//!                         │               ├─ it is meant to be down ──▶ Stopped                  │
//!                         │               ├─ it lives ──▶ Proving                                │
//!                         │               └─ it stays dead ──▶ Restarting ──started──▶ Proving   │
//!                         │                                        │ failed             │ │ died │
//!                         │                                        └────────────────────┼─┴──────┘
//!                         └──────────────────────────healthy────────────────────────────┘
//! ```
//!
//! A service that dies is an outage from its death until its health is proven; one that was meant to end is none. Its
//! supervisor is asked before anything is decided, and again right before a restart. While it is at it, Defib does
//! nothing. When the budget is spent the circuit is open: a try now and then, each within the budget, and no end to them.
//! Every decision leaves as an action with its reason, and every death has exactly one [`Outcome`].
//!
//! A planned restart ([`super::renewal`]) goes from Running by Renewing to Proving. The end that it asks for is no outage;
//! one that leads to no healthy incarnation is, from that end on, and goes on as every other.

mod memory;
mod renewing;
mod words;

use std::{sync::Arc, time::Duration};

use super::{
    budget::{HostLedger, Ledger, moment, nanoseconds},
    plan::Plan,
};
use crate::{
    config::{Backoff, Budget, Mode},
    host::process::Identity,
};

pub(crate) use memory::Memory;
pub(crate) use words::{Action, Input, Intent, Outcome, Policy};

/// A supervisor that has not told its plan within this does not answer: 10 s. Longer than its own time-outs.
const ASK_TIMEOUT_NS: u64 = 10_000_000_000;
/// A start that neither succeeds nor fails within this is failed: 40 s. Longer than the supervisors' own time-outs.
const START_TIMEOUT_NS: u64 = 40_000_000_000;
/// A planned restart whose old incarnation has not ended by then has failed: 150 s, what units and containers have for their
/// end, and some. From that end on it is a start like any other.
const RENEWAL_TIMEOUT_NS: u64 = 150_000_000_000;
/// Between questions to a supervisor that does not answer: 1 s, doubling up to a minute.
const UNANSWERED_NS: u64 = 1_000_000_000;
const UNANSWERED_MAX_NS: u64 = 60_000_000_000;
/// Between looks at what forbids a restart and can change without a word: a masked unit, a host without memory. 5 s.
const HELD_NS: u64 = 5_000_000_000;
/// A supervisor that is at it is asked again no sooner than this: 20 ms.
const BUSY_MIN_NS: u64 = 20_000_000;
/// Doubling stops here; 2^16 times the initial back-off is beyond any maximum.
const MAX_DOUBLINGS: u32 = 16;

#[derive(Clone, Debug, PartialEq)]
enum State {
    Unknown,
    Running(Identity),
    /// Dead; the supervisor was asked.
    Asking {
        until_ns: u64,
        question: u32,
    },
    /// Dead; until then the next move is not ours.
    Waiting {
        until_ns: u64,
        reason: &'static str,
    },
    Restarting {
        until_ns: u64,
    },
    Proving(Identity),
    /// Its end was asked for, and a new incarnation.
    Renewing {
        process: Identity,
        died_ns: Option<u64>,
        until_ns: u64,
    },
    /// Dead, as somebody wanted.
    Stopped,
    /// Dead, and nothing will be done about it.
    Left,
}

/// One service.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    policy: Arc<Policy>,
    /// Varies the jitter from service to service.
    seed: u64,
    state: State,
    ledger: Ledger,
    /// Restarts in a row that did not lead to lasting health.
    attempts: u32,
    /// Begin of the outage.
    down_ns: Option<u64>,
    /// The death that counts for grace and back-off: that of the last incarnation.
    died_ns: u64,
    /// Found absent at a start, and no incarnation has died since: nobody else is restarting it, so there is no grace.
    absent: bool,
    /// The last proof of health; before this boot it is negative.
    healthy_ns: Option<i64>,
    /// How the living incarnation came to be, in an outage.
    revived: Outcome,
    /// A newer incarnation than the one that counts: word of its life came before that of the other's death.
    newer: Option<Identity>,
    /// The incarnation that died last: word of its life may come later than that of its death.
    gone: Option<Identity>,
    /// A death, or an absence at start-up, that has no outcome yet.
    pending: Option<Option<Identity>>,
    /// By what sign that death was likely meant.
    likely: Option<String>,
    /// This is the first start, not the answer to a death.
    first_start: bool,
    paused_until_ns: Option<u64>,
    /// The incarnation whose end was asked for last: there is one planned restart for each.
    renewed: Option<Identity>,
    /// When the last one ended, while the new one of a planned restart has to prove its health.
    renewal_ns: Option<u64>,
    question: u32,
    unanswered: u32,
    /// The last reason for doing nothing, which is said once.
    said: Option<&'static str>,
}

impl Engine {
    /// A service of which nothing is known yet.
    pub(crate) fn new(policy: impl Into<Arc<Policy>>, seed: u64) -> Self {
        let policy = policy.into();
        let ledger = Ledger::new(policy.budget);
        Self {
            policy,
            seed,
            state: State::Unknown,
            ledger,
            attempts: 0,
            down_ns: None,
            died_ns: 0,
            absent: false,
            healthy_ns: None,
            revived: Outcome::Respawned,
            newer: None,
            gone: None,
            pending: None,
            likely: None,
            first_start: false,
            paused_until_ns: None,
            renewed: None,
            renewal_ns: None,
            question: 0,
            unanswered: 0,
            said: None,
        }
    }

    /// Identifies this service among those that share the host's budget.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// When [`Input::Tick`] is due; `None`: not without another input.
    pub(crate) fn deadline(&self) -> Option<u64> {
        match self.state {
            State::Waiting { until_ns, .. }
            | State::Restarting { until_ns }
            | State::Renewing { until_ns, .. }
            | State::Asking { until_ns, .. } => Some(until_ns),
            State::Unknown | State::Running(_) | State::Proving(_) | State::Stopped | State::Left => None,
        }
    }

    /// The living main process, when there is one.
    pub(crate) fn process(&self) -> Option<Identity> {
        match self.state {
            State::Running(process) | State::Proving(process) | State::Renewing { process, died_ns: None, .. } => {
                Some(process)
            }
            _ => None,
        }
    }

    /// The end of a pause that lasts, CLOCK_BOOTTIME nanoseconds.
    pub(crate) fn paused_until(&self, now_ns: u64) -> Option<u64> {
        self.paused_until_ns.filter(|&until_ns| until_ns > now_ns)
    }

    /// A word for the state, for people and programs.
    pub(crate) fn state(&self) -> &'static str {
        match self.state {
            State::Unknown => "unknown",
            State::Running(_) => "running",
            State::Asking { .. } => "asking",
            State::Waiting { reason, .. } => reason,
            State::Restarting { .. } => "restarting",
            State::Proving(_) => "proving",
            State::Renewing { .. } => "planned restart",
            State::Stopped => "stopped",
            State::Left => "left_alone",
        }
    }

    /// True while restarts are only tried now and then, because the budget is spent.
    pub(crate) fn is_circuit_open(&self) -> bool {
        matches!(self.state, State::Waiting { reason: CIRCUIT_OPEN, .. })
    }

    /// Begin of the outage, CLOCK_BOOTTIME nanoseconds.
    pub(crate) fn down_since(&self) -> Option<u64> {
        self.down_ns
    }

    /// Takes one input. `host` is the budget that all services share.
    pub(crate) fn step(&mut self, input: Input, host: &mut HostLedger, now_ns: u64) -> Vec<Action> {
        match input {
            Input::Alive(process) => self.alive(process),
            Input::Died { process, at_ns, intent } => self.died(process, at_ns, intent, now_ns),
            Input::Missing if self.state == State::Unknown => self.missing(now_ns),
            Input::Missing => Vec::new(),
            Input::Planned { question, plan, exhausted } => match self.state {
                State::Asking { question: asked, .. } if asked == question => {
                    self.planned(plan, exhausted, host, now_ns)
                }
                _ => Vec::new(),
            },
            Input::Started { attempt, result } => self.answered(attempt, result, now_ns),
            // The answer of an earlier incarnation's probe says nothing about this one.
            Input::Probed { process, .. } if self.state != State::Proving(process) => Vec::new(),
            Input::Probed { process, result: Ok(()) } => self.healthy(process, now_ns),
            // It lives: it is not ours to kill. Its outage goes on until it is healthy or dead.
            Input::Probed { process, result: Err(reason) } => {
                let mut actions = Vec::new();
                if let Some(at_ns) = self.renewal_ns.take() {
                    actions.push(Action::NotRenewed { reason: reason.clone() });
                    actions.extend(self.open(at_ns));
                }
                actions.extend([Action::Failed { reason }, Action::Probe { process }]);
                actions
            }
            Input::Renew { process, because } => self.renew(process, because, host, now_ns),
            Input::RenewalEnded { result } => self.renewal_ended(result, now_ns),
            Input::Pause { until_ns } => {
                self.paused_until_ns = Some(until_ns);
                Vec::new()
            }
            Input::Resume => self.resume(now_ns),
            Input::Tick => self.tick(now_ns),
        }
    }

    fn alive(&mut self, process: Identity) -> Vec<Action> {
        if self.gone.is_some_and(|gone| gone.matches(process)) {
            return Vec::new();
        }
        match self.state {
            State::Unknown | State::Stopped => {
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
            State::Restarting { .. } | State::Renewing { .. } => Vec::new(),
            State::Waiting { .. } | State::Asking { .. } | State::Left => {
                // After a restart of the agent, a start that was in flight is ours.
                let outcome = self.revived;
                self.revives(process, outcome)
            }
        }
    }

    /// A new incarnation.
    fn revives(&mut self, process: Identity, outcome: Outcome) -> Vec<Action> {
        self.state = State::Proving(process);
        self.revived = outcome;
        self.said = None;
        let mut actions = Vec::new();
        if outcome == Outcome::Respawned {
            actions.push(Action::Suppress { reason: "respawned", because: format!("pid {} lives", process.tgid) });
        }
        actions.extend(self.conclude(outcome));
        actions.push(Action::Probe { process });
        actions
    }

    fn conclude(&mut self, outcome: Outcome) -> Option<Action> {
        self.likely = None;
        self.pending.take().map(|process| Action::Conclude { process, outcome })
    }

    fn died(&mut self, process: Identity, at_ns: u64, intent: Intent, now_ns: u64) -> Vec<Action> {
        if self.newer.is_some_and(|newer| newer.matches(process)) {
            self.newer = None;
        }
        // Only the incarnation that counts: an old one's death must not end a new one's life.
        let intent = if self.is_ours(Some(process)) { Intent::None } else { intent };
        let counts = match self.state {
            State::Renewing { process: current, died_ns: None, .. } if current.matches(process) => {
                self.gone = Some(process);
                let until_ns = now_ns.saturating_add(START_TIMEOUT_NS);
                self.state = State::Renewing { process, died_ns: Some(at_ns), until_ns };
                return Vec::new();
            }
            State::Running(current) | State::Proving(current) => current.matches(process),
            State::Unknown => true,
            State::Asking { .. } | State::Waiting { .. } if self.pending == Some(Some(process)) => {
                return self.learns_why(intent, now_ns);
            }
            _ => false,
        };
        if !counts {
            return Vec::new();
        }
        self.gone = Some(process);
        (self.died_ns, self.absent) = (at_ns, false);
        self.pending = Some(Some(process));
        let mut actions = Vec::new();
        if let Some(began_ns) = self.renewal_ns.take() {
            let reason = "the new incarnation died before its health was proven".to_owned();
            actions.push(Action::NotRenewed { reason });
            actions.extend(self.open(began_ns));
        } else if let State::Proving(_) = self.state {
            actions.push(Action::Failed { reason: "it died before its health was proven".to_owned() });
        } else {
            let reset = nanoseconds(self.policy.backoff.reset_after);
            if self.healthy_ns.is_none_or(|healthy| moment(at_ns).saturating_sub(healthy) >= moment(reset)) {
                self.attempts = 0;
            }
        }
        self.revived = Outcome::Respawned;
        if let Some(newer) = self.newer.take() {
            // Somebody was faster than word of the death.
            if intent == Intent::None {
                actions.extend(self.open(at_ns));
            }
            actions.extend(self.revives(newer, Outcome::Respawned));
            return actions;
        }
        match intent {
            Intent::Certain(because) => {
                actions.extend(self.intended(because, now_ns));
                return actions;
            }
            Intent::Likely(because) => self.likely = Some(because),
            Intent::None => {}
        }
        actions.extend(self.open(at_ns));
        actions.extend(self.consider(now_ns));
        actions
    }

    /// The record of a death that was noticed without it: it may have been meant.
    fn learns_why(&mut self, intent: Intent, now_ns: u64) -> Vec<Action> {
        match intent {
            Intent::Certain(because) => return self.intended(because, now_ns),
            Intent::Likely(because) => self.likely = Some(because),
            Intent::None => self.likely = None,
        }
        Vec::new()
    }

    fn open(&mut self, at_ns: u64) -> Option<Action> {
        if self.down_ns.is_some() {
            return None;
        }
        self.down_ns = Some(at_ns);
        Some(Action::Open { at_ns })
    }

    /// It is down, and somebody wanted that.
    fn intended(&mut self, because: String, now_ns: u64) -> Vec<Action> {
        self.state = State::Stopped;
        self.attempts = 0;
        self.first_start = false;
        let mut actions = vec![Action::Suppress { reason: "intended_stop", because }];
        actions.extend(self.conclude(Outcome::Intended));
        actions.extend(self.close(Outcome::Intended, now_ns));
        actions
    }

    /// Not running at start-up: whoever might have brought it back has had the time for it.
    fn missing(&mut self, now_ns: u64) -> Vec<Action> {
        self.first_start = true;
        self.pending = Some(None);
        (self.died_ns, self.absent) = (now_ns, true);
        let mut actions: Vec<_> = self.open(now_ns).into_iter().collect();
        actions.extend(self.consider(now_ns));
        actions
    }

    fn may_restart(&self) -> bool {
        self.policy.restart && self.policy.mode != Mode::Observe
    }

    /// Asks the supervisor, if there is anything to decide.
    fn consider(&mut self, now_ns: u64) -> Vec<Action> {
        for (is, reason, because) in [
            (self.policy.mode == Mode::Observe, "observe", "mode = \"observe\""),
            (!self.policy.restart, "not_configured", "restart = false"),
        ] {
            if is {
                return self.leave(reason, because.to_owned());
            }
        }
        self.ask(now_ns)
    }

    fn leave(&mut self, reason: &'static str, because: String) -> Vec<Action> {
        self.state = State::Left;
        let mut actions = vec![Action::Suppress { reason, because }];
        actions.extend(self.conclude(Outcome::LeftAlone));
        actions
    }

    fn ask(&mut self, now_ns: u64) -> Vec<Action> {
        self.question = self.question.wrapping_add(1);
        self.state = State::Asking { until_ns: now_ns.saturating_add(ASK_TIMEOUT_NS), question: self.question };
        vec![Action::Ask { question: self.question, died_ns: self.died_ns, ours: self.is_ours(self.gone) }]
    }

    fn tick(&mut self, now_ns: u64) -> Vec<Action> {
        match self.state {
            State::Waiting { until_ns, .. } if until_ns <= now_ns => self.ask(now_ns),
            State::Asking { until_ns, .. } if until_ns <= now_ns => {
                self.unanswered("it has not answered in time".to_owned(), now_ns)
            }
            State::Renewing { until_ns, .. } if until_ns <= now_ns => {
                self.not_renewed("its supervisor did not answer in time".to_owned(), now_ns)
            }
            State::Restarting { until_ns } if until_ns <= now_ns => {
                self.failed("its supervisor did not answer in time".to_owned(), now_ns)
            }
            _ => Vec::new(),
        }
    }

    /// Waits; what is said again and again is said once.
    fn wait(&mut self, until_ns: u64, reason: &'static str, because: String) -> Vec<Action> {
        self.state = State::Waiting { until_ns, reason };
        if self.said.replace(reason) == Some(reason) {
            return Vec::new();
        }
        vec![Action::Wait { until_ns, reason, because }]
    }

    /// Waits, and counts it as a decision against a restart.
    fn refuse(&mut self, until_ns: u64, label: &'static str, reason: &'static str, because: String) -> Vec<Action> {
        let mut actions = self.wait(until_ns, reason, because.clone());
        if !actions.is_empty() {
            actions.insert(0, Action::Suppress { reason: label, because });
        }
        actions
    }

    fn unanswered(&mut self, error: String, now_ns: u64) -> Vec<Action> {
        let wait = UNANSWERED_NS.saturating_mul(1 << self.unanswered.min(MAX_DOUBLINGS)).min(UNANSWERED_MAX_NS);
        self.unanswered = self.unanswered.saturating_add(1);
        self.refuse(now_ns.saturating_add(wait), "supervisor_unreachable", "supervisor unreachable", error)
    }

    fn planned(
        &mut self,
        plan: Result<Plan, String>,
        exhausted: Option<String>,
        host: &mut HostLedger,
        now_ns: u64,
    ) -> Vec<Action> {
        let plan = match plan {
            Ok(plan) => plan,
            Err(error) => return self.unanswered(error, now_ns),
        };
        self.unanswered = 0;
        match plan {
            // The one whose death is being handled: word of its end has not reached its supervisor.
            Plan::Alive(process) if self.gone.is_some_and(|gone| gone.matches(process)) => {
                self.wait(now_ns.saturating_add(BUSY_MIN_NS), "supervisor", "it has not noticed yet".to_owned())
            }
            Plan::Alive(process) => {
                let outcome = self.revived;
                self.revives(process, outcome)
            }
            Plan::Intended { why } => self.intended(why, now_ns),
            Plan::Held { why } => self.refuse(now_ns.saturating_add(HELD_NS), "held", "held", why),
            Plan::Restarts { within, why } => {
                // Half as much again as it needs.
                let needs = nanoseconds(within).saturating_mul(3) / 2;
                self.wait(now_ns.saturating_add(needs.max(BUSY_MIN_NS)), "supervisor", why)
            }
            Plan::EndedWell { why } => match self.likely.take() {
                Some(because) => self.intended(format!("{because}; {why}"), now_ns),
                None => self.stays_dead(why, exhausted, host, now_ns),
            },
            Plan::GivesUp { why } => self.stays_dead(why, exhausted, host, now_ns),
        }
    }

    /// Its supervisor will not bring it back: everything else that may forbid a restart, then the restart.
    fn stays_dead(
        &mut self,
        why: String,
        exhausted: Option<String>,
        host: &mut HostLedger,
        now_ns: u64,
    ) -> Vec<Action> {
        let (grace, backoff) = (self.policy.grace, self.backoff());
        let (wait, reason) = if backoff > grace { (backoff, "back-off") } else { (grace, "grace") };
        let until_ns = self.died_ns.saturating_add(nanoseconds(wait));
        if until_ns > now_ns && !self.absent {
            return self.wait(until_ns, reason, why);
        }
        if let Some(until_ns) = self.paused_until(now_ns) {
            return self.refuse(until_ns, "maintenance", "maintenance", "paused by an operator".to_owned());
        }
        if let Some(because) = exhausted {
            return self.refuse(now_ns.saturating_add(HELD_NS), "host_memory", "host memory", because);
        }
        if let Some(until_ns) = self.ledger.blocked_until(now_ns) {
            let Budget { count, window } = self.policy.budget;
            let because = format!("{count} restarts in {window:?} are spent");
            let slow = now_ns.saturating_add(nanoseconds(self.policy.backoff.max));
            return self.refuse(until_ns.max(slow), "service_budget", CIRCUIT_OPEN, because);
        }
        if let Some(until_ns) = host.blocked_until(self.seed, now_ns) {
            return self.refuse(
                until_ns,
                "host_budget",
                "host budget",
                "the host's restarts are spent, or the half of them that flapping services may use".to_owned(),
            );
        }
        self.restart(why, host, now_ns)
    }

    fn restart(&mut self, because: String, host: &mut HostLedger, now_ns: u64) -> Vec<Action> {
        if self.policy.mode == Mode::DryRun {
            return self.leave("dry_run", because);
        }
        self.ledger.spend(now_ns);
        host.spend(self.seed, now_ns);
        self.attempts = self.attempts.saturating_add(1);
        self.said = None;
        self.state = State::Restarting { until_ns: now_ns.saturating_add(START_TIMEOUT_NS) };
        vec![Action::Restart { attempt: self.attempts, because }]
    }

    fn answered(&mut self, attempt: u32, result: Result<Identity, String>, now_ns: u64) -> Vec<Action> {
        let current = attempt == self.attempts && matches!(self.state, State::Restarting { .. });
        let late = matches!(self.state, State::Waiting { .. } | State::Asking { .. });
        match result {
            // Also when the time for it was over: it lives, and a second start would be one too many.
            Ok(process) if current || late && attempt == self.attempts => self.revives(process, Outcome::Restarted),
            Err(reason) if current => self.failed(reason, now_ns),
            Ok(_) | Err(_) => Vec::new(),
        }
    }

    /// True when we asked for the end of this incarnation.
    fn is_ours(&self, process: Option<Identity>) -> bool {
        matches!((self.renewed, process), (Some(renewed), Some(process)) if renewed.matches(process))
    }

    fn failed(&mut self, reason: String, now_ns: u64) -> Vec<Action> {
        (self.died_ns, self.absent) = (now_ns, false);
        let mut actions = vec![Action::Failed { reason }];
        let backoff = self.backoff().max(self.policy.grace);
        let until_ns = now_ns.saturating_add(nanoseconds(backoff));
        actions.extend(self.wait(until_ns, "back-off", format!("try {} failed", self.attempts)));
        actions
    }

    fn resume(&mut self, now_ns: u64) -> Vec<Action> {
        self.paused_until_ns = None;
        if let State::Waiting { reason: "maintenance", .. } = self.state {
            self.state = State::Waiting { until_ns: now_ns, reason: "maintenance" };
        }
        Vec::new()
    }

    fn healthy(&mut self, process: Identity, now_ns: u64) -> Vec<Action> {
        self.state = State::Running(process);
        self.healthy_ns = Some(moment(now_ns));
        if std::mem::take(&mut self.first_start) {
            // What it took to start it says nothing about how it will live.
            self.attempts = 0;
        }
        let renewed = self.renewal_ns.take().map(|at_ns| Action::Renewed { down_ns: now_ns.saturating_sub(at_ns) });
        renewed.into_iter().chain(self.close(self.revived, now_ns)).collect()
    }

    fn close(&mut self, outcome: Outcome, now_ns: u64) -> Option<Action> {
        self.said = None;
        let down_ns = self.down_ns.take()?;
        Some(Action::Close { outage_ns: now_ns.saturating_sub(down_ns), outcome })
    }

    /// Nothing before the first try, then doubling, with jitter that is the same whenever the inputs are replayed.
    fn backoff(&self) -> Duration {
        let Some(doublings) = self.attempts.checked_sub(1) else { return Duration::ZERO };
        let Backoff { initial, max, jitter, .. } = self.policy.backoff;
        let plain = initial.saturating_mul(1 << doublings.min(MAX_DOUBLINGS)).min(max);
        // SplitMix64's finalizer: every bit of seed and attempt reaches the result.
        let mut mixed = self.seed ^ u64::from(self.attempts).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let unit = (mixed >> 11) as f64 / (1u64 << 53) as f64;
        plain.mul_f64(1.0 + jitter * (2.0 * unit - 1.0))
    }
}

/// The reason of a wait for the next half-open try.
const CIRCUIT_OPEN: &str = "circuit open";

#[cfg(test)]
mod tests;

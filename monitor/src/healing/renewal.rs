//! A planned restart of one service before its memory runs out, as a pure state machine.
//!
//! ```text
//!   Idle ──near, and nothing is against it──▶ Asking ──granted──▶ Draining ──done, or long enough──▶ Renewing ──▶ Idle
//!     ▲                                          │ refused            │                                 (the engine's)
//!     └──────────────────────────────────────────┴── called off ◀─────┘
//! ```
//!
//! What speaks against it is looked at again at every step until the service is told to end; from then on it is the
//! [engine](super::engine)'s, which says how it ended. Leave is asked for before anything is done, and given back after it.

use std::time::Duration;

use super::budget::nanoseconds;
use crate::{config::PlannedRestart, host::process::Identity, pool::State as Place};

/// Between looks at the connections of one that drains: 100 ms.
const LOOK_NS: u64 = 100_000_000;
/// Looks in a row that must see none.
const QUIET: u8 = 2;
/// After one that was called off: 60 s.
const AGAIN_NS: u64 = 60_000_000_000;

/// How things are at the moment of a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Facts {
    /// The living main process.
    pub(crate) process: Option<Identity>,
    /// Seconds until its memory runs out, by the forecast for this incarnation.
    pub(crate) left_seconds: Option<f64>,
    /// By its last minutes alone, it does so within a quarter of an hour.
    pub(crate) runs_out: bool,
    /// Why the engine would refuse.
    pub(crate) refusal: Option<&'static str>,
    /// Where it stands in its pool; `None`: it has none.
    pub(crate) place: Option<Place>,
    /// Other servers that can take its traffic; `None`: it has no pool, or that cannot be told.
    pub(crate) others: Option<usize>,
    /// Connections that its load balancers have to it, once all of them send nothing new; `None`: they do, or cannot be asked.
    pub(crate) connections: Option<u64>,
    /// Minute of the day in UTC.
    pub(crate) minute: u16,
}

/// What the machine is told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Input {
    /// Something may have changed, or a deadline has come.
    Look,
    /// The answer to [`Action::Ask`].
    Leave {
        /// The question that this answers; answers may come late.
        ticket: u32,
        /// Why not: no sooner than after this long it is worth asking again.
        answer: Result<(), Duration>,
    },
    /// The engine is done with it.
    Ended {
        /// Why there is no new, healthy incarnation.
        result: Result<(), String>,
    },
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// The new incarnation is healthy.
    Ok,
    /// There is none; what comes next is the engine's.
    Failed,
    /// The old one was never told to end.
    CalledOff,
}

impl Renewal {
    /// All, for series that exist from the start.
    pub(crate) const ALL: [Self; 3] = [Self::Ok, Self::Failed, Self::CalledOff];

    /// As metrics have it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::CalledOff => "called_off",
        }
    }
}

/// What the owner of the machine shall do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// Nothing, and say that it would be restarted.
    Would {
        /// Why.
        because: String,
    },
    /// Ask whether it may go now.
    Ask {
        /// Comes back with the answer.
        ticket: u32,
    },
    /// It begins: take it out of its pool.
    Begin {
        /// Why.
        because: String,
    },
    /// Have it ended and started again.
    Renew {
        /// Who ends.
        process: Identity,
        /// Why.
        because: String,
    },
    /// It is over: it need not be out of its pool any more.
    End {
        /// How.
        how: Renewal,
        /// Why.
        because: String,
    },
    /// Leave is not needed any more.
    Release,
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    Idle { not_before_ns: u64 },
    Asking { process: Identity },
    Draining { process: Identity, until_ns: u64, look_ns: u64, quiet: u8 },
    Renewing,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Renewals {
    policy: PlannedRestart,
    /// Say what would be done, and do nothing.
    dry_run: bool,
    state: State,
    ticket: u32,
    /// The incarnation for which that was said.
    said: Option<Identity>,
}

impl Renewals {
    /// Nothing is under way.
    pub(crate) fn new(policy: PlannedRestart, dry_run: bool) -> Self {
        Self { policy, dry_run, state: State::Idle { not_before_ns: 0 }, ticket: 0, said: None }
    }

    /// When [`Input::Look`] is due without anything else, CLOCK_BOOTTIME nanoseconds.
    pub(crate) fn deadline(&self) -> Option<u64> {
        match self.state {
            State::Draining { until_ns, look_ns, .. } => Some(until_ns.min(look_ns)),
            _ => None,
        }
    }

    /// True while this question waits for its answer.
    pub(crate) fn is_asking(&self, ticket: u32) -> bool {
        matches!(self.state, State::Asking { .. }) && self.ticket == ticket
    }

    /// Takes one input.
    pub(crate) fn step(&mut self, input: Input, facts: &Facts, now_ns: u64) -> Vec<Action> {
        match (self.state.clone(), input) {
            (State::Idle { not_before_ns }, Input::Look) if now_ns >= not_before_ns => self.consider(facts, now_ns),
            (State::Asking { .. }, Input::Leave { ticket, answer }) if ticket == self.ticket => {
                self.answered(answer, facts, now_ns)
            }
            (State::Asking { process }, Input::Look) if self.wants(facts, now_ns) != Some(process) => {
                self.rest(now_ns);
                vec![Action::Release]
            }
            (State::Draining { process, until_ns, look_ns, quiet }, Input::Look) => {
                self.drains(process, (until_ns, look_ns, quiet), facts, now_ns)
            }
            (State::Renewing, Input::Ended { result }) => {
                self.rest(now_ns);
                let (how, because) = match result {
                    Ok(()) => (Renewal::Ok, "the new incarnation is healthy".to_owned()),
                    Err(reason) => (Renewal::Failed, reason),
                };
                vec![Action::End { how, because }, Action::Release]
            }
            _ => Vec::new(),
        }
    }

    fn rest(&mut self, now_ns: u64) {
        self.state = State::Idle { not_before_ns: now_ns.saturating_add(AGAIN_NS) };
    }

    /// The incarnation that should be restarted now.
    fn wants(&self, facts: &Facts, now_ns: u64) -> Option<Identity> {
        let process = facts.process?;
        let old = now_ns.saturating_sub(process.start_ns) >= nanoseconds(self.policy.min_uptime);
        let open = self.policy.window.is_none_or(|window| window.contains(facts.minute));
        (old && open && self.is_near(facts) && objection(facts).is_none()).then_some(process)
    }

    fn is_near(&self, facts: &Facts) -> bool {
        facts.runs_out || facts.left_seconds.is_some_and(|left| left <= self.policy.when.as_secs_f64())
    }

    fn consider(&mut self, facts: &Facts, now_ns: u64) -> Vec<Action> {
        let Some(process) = self.wants(facts, now_ns) else { return Vec::new() };
        if self.dry_run {
            if self.said.replace(process) == Some(process) {
                return Vec::new();
            }
            return vec![Action::Would { because: because(facts) }];
        }
        self.ticket = self.ticket.wrapping_add(1);
        self.state = State::Asking { process };
        vec![Action::Ask { ticket: self.ticket }]
    }

    fn answered(&mut self, answer: Result<(), Duration>, facts: &Facts, now_ns: u64) -> Vec<Action> {
        let State::Asking { process: asked } = self.state else { return Vec::new() };
        // Things may have changed since it was asked.
        let wanted = self.wants(facts, now_ns).filter(|process| *process == asked);
        let process = match (wanted, answer) {
            (Some(process), Ok(())) => process,
            (Some(_), Err(again_in)) => {
                self.state = State::Idle { not_before_ns: now_ns.saturating_add(nanoseconds(again_in)) };
                return vec![Action::Release];
            }
            (None, _) => {
                self.rest(now_ns);
                return vec![Action::Release];
            }
        };
        let mut actions = vec![Action::Begin { because: because(facts) }];
        match facts.place {
            None => actions.push(self.renew(process, facts)),
            Some(_) => {
                let until_ns = now_ns.saturating_add(nanoseconds(self.policy.drain));
                let look_ns = now_ns.saturating_add(LOOK_NS);
                self.state = State::Draining { process, until_ns, look_ns, quiet: 0 };
            }
        }
        actions
    }

    fn renew(&mut self, process: Identity, facts: &Facts) -> Action {
        self.state = State::Renewing;
        Action::Renew { process, because: because(facts) }
    }

    /// It drains. That the forecast sees more time by now, since the load has gone, or that the window is over is no reason to
    /// stop halfway.
    fn drains(
        &mut self,
        process: Identity,
        (until_ns, look_ns, quiet): (u64, u64, u8),
        facts: &Facts,
        now_ns: u64,
    ) -> Vec<Action> {
        let against = match facts.process {
            Some(living) if living.matches(process) => objection(facts),
            _ => Some("it died"),
        };
        // The pool takes back whoever is needed.
        let against = against.or((facts.place == Some(Place::In)).then_some("its pool needs it"));
        if let Some(why) = against {
            self.rest(now_ns);
            return vec![Action::End { how: Renewal::CalledOff, because: why.to_owned() }, Action::Release];
        }
        if now_ns >= until_ns {
            return vec![self.renew(process, facts)];
        }
        if now_ns < look_ns {
            return Vec::new();
        }
        let quiet = if facts.connections == Some(0) { quiet + 1 } else { 0 };
        if quiet >= QUIET {
            return vec![self.renew(process, facts)];
        }
        self.state = State::Draining { process, until_ns, look_ns: now_ns.saturating_add(LOOK_NS), quiet };
        Vec::new()
    }
}

/// What forbids it, now and until the service is told to end.
fn objection(facts: &Facts) -> Option<&'static str> {
    facts.refusal.or((facts.others == Some(0)).then_some("nobody else in its pool can serve"))
}

fn because(facts: &Facts) -> String {
    match facts.left_seconds {
        Some(left) if !facts.runs_out => {
            let left = Duration::from_secs(left.clamp(0.0, 1e9) as u64);
            format!("its memory is forecast to run out in {}", humantime::format_duration(left))
        }
        _ => "its memory runs out within minutes".to_owned(),
    }
}

#[cfg(test)]
mod tests;

//! A planned restart: the service is ended while it is well, and started again.

use super::{Action, Engine, Intent, Outcome, RENEWAL_TIMEOUT_NS, State};
use crate::{config::Mode, healing::budget::HostLedger, host::process::Identity};

impl Engine {
    /// Why its living incarnation may not be ended and followed by a new one now, by what the engine knows.
    pub(crate) fn refuses_renewal(&mut self, host: &mut HostLedger, now_ns: u64) -> Option<&'static str> {
        let State::Running(process) = self.state else { return Some("it is not up and proven to be healthy") };
        [
            (!self.may_restart(), "Defib may not restart it"),
            (self.renewed.is_some_and(|renewed| renewed.matches(process)), "this incarnation had its planned restart"),
            (self.paused_until(now_ns).is_some(), "paused by an operator"),
            (self.ledger.blocked_until(now_ns).is_some(), "its restarts are spent"),
            (host.blocked_until(self.seed, now_ns).is_some(), "the host's restarts are spent"),
        ]
        .into_iter()
        .find_map(|(is, why)| is.then_some(why))
    }

    /// A planned restart begins, if nothing has come between.
    pub(super) fn renew(
        &mut self,
        process: Identity,
        because: String,
        host: &mut HostLedger,
        now_ns: u64,
    ) -> Vec<Action> {
        let refusal = match self.refuses_renewal(host, now_ns) {
            None if self.policy.mode != Mode::Act => Some("this mode does nothing"),
            None if !self.process().is_some_and(|living| living.matches(process)) => Some("another incarnation lives"),
            refusal => refusal,
        };
        if let Some(reason) = refusal {
            return vec![Action::NotRenewed { reason: reason.to_owned() }];
        }
        self.ledger.spend(now_ns);
        host.spend(self.seed, now_ns);
        self.renewed = Some(process);
        let until_ns = now_ns.saturating_add(RENEWAL_TIMEOUT_NS);
        self.state = State::Renewing { process, died_ns: None, until_ns };
        vec![Action::Renew { process, because }]
    }

    pub(super) fn renewal_ended(&mut self, result: Result<Identity, String>, now_ns: u64) -> Vec<Action> {
        match (result, self.state.clone()) {
            (Ok(next), State::Renewing { process, died_ns, .. }) => {
                // Word of its death may come later.
                self.gone = Some(process);
                self.newer = None;
                self.renewal_ns = Some(died_ns.unwrap_or(now_ns));
                self.revived = Outcome::Restarted;
                self.state = State::Proving(next);
                vec![Action::Probe { process: next }]
            }
            (Err(reason), State::Renewing { .. }) => self.not_renewed(reason, now_ns),
            // When the time for it was over: a life like any other that is found.
            (Ok(process), _) => self.alive(process),
            (Err(_), _) => Vec::new(),
        }
    }

    /// The old incarnation lives on, or its death is one like any other.
    pub(super) fn not_renewed(&mut self, reason: String, now_ns: u64) -> Vec<Action> {
        let State::Renewing { process, died_ns, .. } = self.state else { return Vec::new() };
        self.state = State::Running(process);
        let mut actions = vec![Action::NotRenewed { reason }];
        if let Some(at_ns) = died_ns {
            actions.extend(self.died(process, at_ns, Intent::None, now_ns));
        }
        actions
    }
}

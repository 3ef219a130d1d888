//! Planned restarts: what is known of a service goes to its machine, what that wants is done.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use jiff::{Timestamp, tz::TimeZone};

use super::{Steward, Word};
use crate::{
    config::{Mode, Service},
    fleet::{self, Fleet, Permit, Refused},
    healing::{
        Input as EngineInput, Outcome,
        renewal::{Action, Facts, Input, Renewal, Renewals},
    },
    host::clock,
    incident::Before,
    memory::forecast::Forecast,
    pool::Input as PoolInput,
    text::Clean,
    timeline::What,
};

/// The machines of those services that have planned restarts, and the leave of those that are under way.
#[derive(Debug)]
pub(crate) struct Planned {
    slots: HashMap<Arc<str>, Slot>,
    /// When each machine wants to be asked again, CLOCK_BOOTTIME nanoseconds; only those that drain do.
    deadlines: BTreeSet<(u64, Arc<str>)>,
    fleet: Fleet,
}

#[derive(Debug)]
struct Slot {
    renewals: Renewals,
    /// The pool whose members must not all go at once, on whatever host they are.
    pool: String,
    /// Leave to go, held while it is under way.
    leave: Option<Permit>,
}

impl Planned {
    /// Nobody yet; leave is asked for here.
    pub(crate) fn new(fleet: Fleet) -> Self {
        Self { slots: HashMap::new(), deadlines: BTreeSet::new(), fleet }
    }

    /// A service that is looked after.
    pub(super) fn add(&mut self, service: &Arc<str>, rule: &Service, mode: Mode) {
        let Some(policy) = rule.planned_restart.filter(|_| mode != Mode::Observe) else { return };
        let renewals = Renewals::new(policy, mode == Mode::DryRun);
        let pool = fleet::pool_of(rule.pool.as_ref(), service).to_owned();
        self.slots.insert(Arc::clone(service), Slot { renewals, pool, leave: None });
    }

    /// Forgets a service that is no longer managed.
    pub(super) fn remove(&mut self, service: &Arc<str>) {
        self.slots.remove(service);
        self.deadlines.retain(|(_, other)| other != service);
    }

    /// When the next machine is due.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// The services whose machines are due.
    pub(super) fn due(&self, now: u64) -> Vec<Arc<str>> {
        let due = self.deadlines.iter().take_while(|&&(deadline, _)| deadline <= now);
        due.map(|(_, service)| Arc::clone(service)).collect()
    }

    fn step(&mut self, service: &Arc<str>, input: Input, facts: &Facts, now: u64) -> Vec<Action> {
        let Some(slot) = self.slots.get_mut(service) else { return Vec::new() };
        let before = slot.renewals.deadline();
        let actions = slot.renewals.step(input, facts, now);
        let after = slot.renewals.deadline();
        if before != after {
            if let Some(before) = before {
                self.deadlines.remove(&(before, Arc::clone(service)));
            }
            self.deadlines.extend(after.map(|after| (after, Arc::clone(service))));
        }
        actions
    }
}

impl Steward {
    /// Has a look at a service: something may have changed.
    pub(super) fn planned_look(&mut self, service: &Arc<str>, now: u64) {
        self.planned_step(service, Input::Look, now);
    }

    /// Leave was given, or not.
    pub(super) fn planned_answered(&mut self, service: &Arc<str>, ticket: u32, answer: Result<Permit, Refused>) {
        let Some(slot) = self.planned.slots.get_mut(service) else { return };
        if !slot.renewals.is_asking(ticket) {
            // Nobody waits for it any more.
            if let Ok(leave) = answer {
                self.give_back(leave);
            }
            return;
        }
        let answer = match answer {
            Ok(leave) => {
                slot.leave = Some(leave);
                Ok(())
            }
            Err(why) => {
                tracing::info!(service = %Clean(service), "no planned restart now: {why}");
                Err(why.again_in)
            }
        };
        self.planned_step(service, Input::Leave { ticket, answer }, clock::boot_ns());
    }

    /// The engine has said how it ended.
    pub(super) fn planned_ended(&mut self, service: &Arc<str>, result: Result<u64, String>, now: u64) {
        if let Ok(down_ns) = result {
            self.say(now, service, What::Renewed { down_ns });
            // What was foreseen was foreseen of the incarnation that is gone.
            if let Some(managed) = self.roster.get(service) {
                let (time_to_oom_seconds, exhausted_in_seconds) = (None, None);
                let forecast = Forecast { time_to_oom_seconds, exhausted_in_seconds, ..managed.follower.forecast() };
                self.metrics.forecast(service, &forecast);
                self.alerts.foresees(service, &forecast);
            }
        }
        self.planned_step(service, Input::Ended { result: result.map(drop) }, now);
    }

    fn planned_step(&mut self, service: &Arc<str>, input: Input, now: u64) {
        if !self.planned.slots.contains_key(service) {
            return;
        }
        let Some(facts) = self.facts(service, now) else { return };
        for action in self.planned.step(service, input, &facts, now) {
            self.planned_act(service, action, now);
        }
    }

    fn facts(&mut self, service: &Arc<str>, now: u64) -> Option<Facts> {
        let leave = self.planned.slots.get(service).and_then(|slot| slot.leave.as_ref());
        let is_lost = leave.is_some_and(|leave| !leave.is_valid(now));
        let refusal = self.roster.refuses_renewal(service, now).or(is_lost.then_some("another host may go now"));
        let managed = self.roster.get(service)?;
        let process = managed.process();
        // What was foreseen for an earlier incarnation says nothing about this one.
        let forecast = managed.follower.forecast_of(process);
        let wall = Timestamp::now().to_zoned(TimeZone::UTC);
        let has_pool = self.pools.is_named(service);
        Some(Facts {
            process,
            left_seconds: forecast.as_ref().and_then(|forecast| forecast.time_to_oom_seconds),
            runs_out: forecast.is_some_and(|forecast| forecast.exhausted_in_seconds.is_some()),
            refusal,
            place: self.pool_state(service).filter(|_| has_pool),
            others: self.pools.others(service),
            connections: self.pools.connections(service),
            minute: u16::try_from(i32::from(wall.hour()) * 60 + i32::from(wall.minute())).unwrap_or(0),
        })
    }

    fn planned_act(&mut self, service: &Arc<str>, action: Action, now: u64) {
        match action {
            Action::Would { because } => self.say(now, service, What::WouldRenew(because)),
            Action::Ask { ticket } => {
                let Some(slot) = self.planned.slots.get(service) else { return };
                let (fleet, pool) = (self.planned.fleet.clone(), slot.pool.clone());
                let (service, words) = (Arc::clone(service), self.words.0.clone());
                self.tasks.spawn(async move {
                    let answer = fleet.acquire(&pool, &service).await;
                    // The send fails only when the agent stops.
                    words.send(Word::Leave(service, ticket, answer)).await.ok();
                });
            }
            Action::Begin { because } => {
                if let Some(managed) = self.roster.get(service) {
                    let before = Before {
                        memory: managed.recorder.samples(),
                        limit: managed.recorder.limit(),
                        foretold: Some(managed.follower.foretold()),
                    };
                    self.book.open_planned(service, clock::wall(now), before, &because);
                }
                self.say(now, service, What::RenewalBegins(because));
                let others = self.pools.others(service);
                self.pool_step(service, PoolInput::Retire { others }, now);
            }
            Action::Renew { process, because } => {
                self.step(service, EngineInput::Renew { process, because }, now);
            }
            Action::End { how, because } => {
                self.metrics.renewed(service, how);
                if how != Renewal::Ok {
                    self.say(now, service, What::RenewalEnds { how, because });
                }
                let outcome = if how == Renewal::Ok { Outcome::Renewed } else { Outcome::LeftAlone };
                self.book.close_planned(service, clock::wall(now), outcome);
                self.pool_step(service, PoolInput::Stay, now);
            }
            Action::Release => {
                let leave = self.planned.slots.get_mut(service).and_then(|slot| slot.leave.take());
                if let Some(leave) = leave {
                    self.give_back(leave);
                }
            }
        }
    }

    fn give_back(&mut self, leave: Permit) {
        self.tasks.spawn(async move {
            // It says itself what went wrong; then it is free a little later.
            leave.release().await.ok();
        });
    }
}

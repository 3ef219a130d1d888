//! Planned restarts: what is known of a service goes to its machine, what that wants is done.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use jiff::{Timestamp, tz::TimeZone};

use super::{Steward, Word};
use crate::{
    config::{Mode, Service},
    healing::{
        Input as EngineInput, Outcome,
        renewal::{Action, Facts, Input, Renewal, Renewals},
    },
    host::clock,
    incident::Before,
    leave::{Leave, Office},
    memory::forecast::Forecast,
    pool::Input as PoolInput,
    timeline::What,
};

/// The machines of those services that have planned restarts, and the leave of those that are under way.
#[derive(Debug)]
pub(crate) struct Planned {
    slots: HashMap<Arc<str>, Slot>,
    /// When each machine wants to be asked again, CLOCK_BOOTTIME nanoseconds; only those that drain do.
    deadlines: BTreeSet<(u64, Arc<str>)>,
    office: Arc<dyn Office>,
}

#[derive(Debug)]
struct Slot {
    renewals: Renewals,
    /// Held while it is under way.
    leave: Option<Leave>,
}

impl Planned {
    /// Nobody yet; leave is asked for here.
    pub(crate) fn new(office: Arc<dyn Office>) -> Self {
        Self { slots: HashMap::new(), deadlines: BTreeSet::new(), office }
    }

    /// A service that is looked after.
    pub(super) fn add(&mut self, service: &Arc<str>, rule: &Service, mode: Mode) {
        let Some(policy) = rule.planned_restart.filter(|_| mode != Mode::Observe) else { return };
        let renewals = Renewals::new(policy, mode == Mode::DryRun);
        self.slots.insert(Arc::clone(service), Slot { renewals, leave: None });
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
    pub(super) fn planned_answered(&mut self, service: &Arc<str>, ticket: u32, answer: Result<Leave, String>) {
        let Some(slot) = self.planned.slots.get_mut(service) else { return };
        // Nobody waits for it any more: it is given back.
        if !slot.renewals.is_asking(ticket) {
            return;
        }
        let answer = match answer {
            Ok(leave) => {
                slot.leave = Some(leave);
                Ok(())
            }
            Err(why) => {
                tracing::info!(service = %crate::text::Clean(service), "no planned restart now: {why}");
                Err(why)
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
        let refusal = self.roster.refuses_renewal(service, now);
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
                let (answer, words) = (self.planned.office.ask(service), self.words.0.clone());
                let service = Arc::clone(service);
                self.tasks.spawn(async move {
                    let answer = answer.await;
                    // Nobody receives only when the agent stops.
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
                if let Some(slot) = self.planned.slots.get_mut(service) {
                    slot.leave = None;
                }
            }
        }
    }
}

//! Where services stand in their pools: what happens to them goes to their members, what those order is done.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use monitor_common::record::{CrashSite, SITE_FATAL};
use tokio::sync::watch;

use super::{Steward, Word};
use crate::{
    config::{Health, Mode, PoolConfig, Service},
    healing::Input,
    health,
    host::{clock, process::Identity},
    memory::{Measured, forecast::Forecast},
    pool::{self, Board, Member, Order, Policy, Standing, State},
    roster::Managed,
    shared::Shared,
    timeline::What,
};

/// The members, and which of them is due next.
pub(crate) struct Pools {
    /// Boxed, since a map keeps up to twice as many places as it has entries.
    slots: HashMap<Arc<str>, Box<Slot>>,
    deadlines: BTreeSet<(u64, Arc<str>)>,
    /// Main processes by pid, so that the end of one is known before its cause is.
    mains: HashMap<u32, (Identity, Arc<str>)>,
    board: Arc<Board>,
    config: PoolConfig,
    policies: Shared<Policy>,
    /// What an earlier agent knew of services that have not been met yet.
    left: HashMap<String, pool::Memory>,
}

struct Slot {
    member: Member,
    standing: Option<Standing>,
    /// A load balancer has a name for it, so its moves are worth a line.
    is_named: bool,
    /// By the last forecast its memory is exhausted within minutes.
    runs_out: bool,
}

impl Pools {
    /// Nobody yet.
    pub(crate) fn new(config: PoolConfig, board: Arc<Board>, left: HashMap<String, pool::Memory>) -> Self {
        let (slots, deadlines, mains) = (HashMap::new(), BTreeSet::new(), HashMap::new());
        Self { slots, deadlines, mains, board, config, policies: Shared::default(), left }
    }

    /// A service that is looked after.
    pub(super) fn add(&mut self, service: &Arc<str>, rule: &Service, mode: Mode, now: u64) {
        let policy = self.policies.share(Policy {
            drain_at: rule.drain_at,
            may_drain: mode == Mode::Act,
            // Who has no place in a pool is not asked every second how it is.
            has_check: rule.pool.is_some() && rule.health != Health::Survival,
            settle: self.config.settle,
            settle_max: self.config.settle_max,
            lasting: rule.backoff.reset_after,
        });
        self.board.add(service, rule.pool.as_ref());
        let member = Member::new(policy, self.left.remove(&**service), now);
        self.deadlines.extend(member.deadline().map(|deadline| (deadline, Arc::clone(service))));
        self.slots.insert(
            Arc::clone(service),
            Box::new(Slot { member, standing: None, is_named: rule.pool.is_some(), runs_out: false }),
        );
    }

    /// Forgets a service that is no longer managed.
    pub(super) fn remove(&mut self, service: &Arc<str>) {
        let Some(slot) = self.slots.remove(service) else { return };
        self.deadlines.retain(|(_, other)| other != service);
        if let Some(process) = slot.member.process() {
            self.mains.remove(&process.tgid);
        }
        self.board.remove(service);
    }

    /// Gives back the places of what was left for members that are here now.
    pub(super) fn forget_spare_room(&mut self) {
        self.left.shrink_to_fit();
    }

    /// When the next member is due.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// The members that are due.
    pub(super) fn due(&self, now: u64) -> Vec<Arc<str>> {
        let due = self.deadlines.iter().take_while(|&&(deadline, _)| deadline <= now);
        due.map(|(_, service)| Arc::clone(service)).collect()
    }

    /// Where a service stands.
    pub(super) fn standing(&self, service: &str) -> Option<&Standing> {
        self.slots.get(service)?.standing.as_ref()
    }

    /// A load balancer has a name for it.
    pub(super) fn is_named(&self, service: &str) -> bool {
        self.slots.get(service).is_some_and(|slot| slot.is_named)
    }

    /// How many others could take its traffic; `None`: that cannot be told.
    pub(super) fn others(&self, service: &str) -> Option<usize> {
        self.board.others(service)
    }

    /// Connections of one that drains; `None`: that cannot be told.
    pub(super) fn connections(&self, service: &str) -> Option<u64> {
        self.board.connections(service)
    }

    fn step(&mut self, service: &Arc<str>, input: pool::Input, now: u64) -> Vec<Order> {
        let Some(slot) = self.slots.get_mut(service) else { return Vec::new() };
        let (before, was) = (slot.member.deadline(), slot.member.process());
        let orders = slot.member.step(input, now);
        let (after, is) = (slot.member.deadline(), slot.member.process());
        if before != after {
            if let Some(before) = before {
                self.deadlines.remove(&(before, Arc::clone(service)));
            }
            self.deadlines.extend(after.map(|after| (after, Arc::clone(service))));
        }
        if was != is {
            // What was foreseen was foreseen of the one before.
            slot.runs_out = false;
            if let Some(was) = was
                && self.mains.get(&was.tgid).is_some_and(|(process, _)| *process == was)
            {
                self.mains.remove(&was.tgid);
            }
            self.mains.extend(is.map(|is| (is.tgid, (is, Arc::clone(service)))));
        }
        orders
    }
}

impl Steward {
    /// A process ended, why is not known yet. When it is the main one of a service, that one serves nobody any more.
    pub(super) fn pool_exited(&mut self, process: Identity, now: u64) {
        let Some((main, service)) = self.pools.mains.get(&process.tgid) else { return };
        if main.matches(process) {
            let service = Arc::clone(service);
            self.pool_step(&service, pool::Input::Died(process), now);
        }
    }

    /// A process got a fatal signal. A main process serves no more requests then, though its core dump may take a
    /// minute.
    pub(super) fn pool_crashes(&mut self, site: &CrashSite, now: u64) {
        if site.header.flags & SITE_FATAL == 0 {
            return;
        }
        let process = Identity { tgid: site.tgid, start_ns: site.start_ns };
        if let Some((main, service)) = self.pools.mains.get(&process.tgid)
            && main.matches(process)
        {
            let service = Arc::clone(service);
            self.pool_step(&service, pool::Input::Crashing(process), now);
        }
    }

    /// The engine of a service was told something, and may know its main process by now.
    pub(super) fn pool_follow(&mut self, service: &Arc<str>, input: &Input, now: u64) {
        if let Input::Died { process, .. } = input {
            self.pool_step(service, pool::Input::Died(*process), now);
        }
        match self.roster.get(service).and_then(Managed::process) {
            Some(process) => self.pool_step(service, pool::Input::Alive(process), now),
            None if *input == Input::Missing => self.pool_step(service, pool::Input::Absent, now),
            None => {}
        }
        if let Input::Probed { process, result: Ok(()) } = input {
            self.pool_step(service, pool::Input::Proven(*process), now);
        }
    }

    /// Memory of a service was measured.
    pub(super) fn pool_measured(&mut self, measured: &Measured, forecast: Option<&Forecast>, now: u64) {
        let service = &measured.service;
        let Some(slot) = self.pools.slots.get_mut(service) else { return };
        if !slot.member.process().is_some_and(|process| process.matches(measured.process)) {
            return;
        }
        if let Some(forecast) = forecast {
            // One of hours is a matter for people; a server that drains for hours helps nobody.
            slot.runs_out = forecast.exhausted_in_seconds.is_some();
        }
        let runs_out = slot.runs_out;
        let share = measured.limit.filter(|&limit| limit > 0).map_or(0.0, |limit| measured.bytes as f64 / limit as f64);
        let others = self.pools.board.others(service);
        self.pool_step(service, pool::Input::Measured { share, runs_out, others }, now);
    }

    /// Who else can serve may have changed: those that drain have to know.
    pub(super) fn pool_look_around(&mut self, now: u64) {
        let drains = |slot: &Slot| slot.standing.as_ref().is_some_and(|standing| standing.state == State::Draining);
        let all: Vec<_> =
            self.pools.slots.iter().filter(|(_, slot)| drains(slot)).map(|(service, _)| Arc::clone(service)).collect();
        for service in all {
            let others = self.pools.board.others(&service);
            self.pool_step(&service, pool::Input::Others(others), now);
        }
    }

    /// Tells when a load balancer sees something else.
    pub(super) fn pool_views(&self) -> watch::Receiver<()> {
        self.pools.board.views()
    }

    /// Tells a member something, and does what it orders.
    pub(super) fn pool_step(&mut self, service: &Arc<str>, input: pool::Input, now: u64) {
        let orders = self.pools.step(service, input, now);
        for order in orders {
            self.pool_act(service, order, now);
        }
    }

    fn pool_act(&mut self, service: &Arc<str>, order: Order, now: u64) {
        let Some(slot) = self.pools.slots.get_mut(service) else { return };
        let is_named = slot.is_named;
        match order {
            Order::Move { to, cause, .. } => {
                let standing = Standing { state: to, cause, since: clock::wall(now), weight: 100 };
                slot.standing = Some(standing.clone());
                let memory = slot.member.memory();
                // First of all: traffic may be failing.
                self.pools.board.stand(service, standing);
                if let Some(memory) = memory {
                    self.store.keep_member(service, memory);
                }
                self.metrics.pool_moved(service, to);
                if is_named {
                    self.say(now, service, What::Pool { state: to, cause });
                    if to != State::In {
                        self.pool_look_around(now);
                    }
                }
            }
            Order::Weigh(weight) => {
                if let Some(standing) = &mut slot.standing {
                    standing.weight = weight;
                    self.pools.board.stand(service, standing.clone());
                }
            }
            Order::Probe { ticket, process } => {
                let Some(health) = self.roster.get(service).map(|managed| managed.health.clone()) else { return };
                let (words, service) = (self.words.0.clone(), Arc::clone(service));
                self.tasks.spawn(async move {
                    let healthy = health::is_healthy(&health, process).await;
                    // The send fails only when the agent stops.
                    words.send(Word::Pool(service, pool::Input::Probed { ticket, healthy })).await.ok();
                });
            }
            Order::Keep(cause) => {
                self.metrics.pool_kept(service);
                if is_named {
                    self.say(now, service, What::KeptInPool(cause));
                }
            }
        }
    }

    /// The agent ends: what was decided here is taken back, so that nobody is left out.
    pub(crate) fn leave_pools(&mut self) {
        let now = clock::boot_ns();
        let all: Vec<_> = self.pools.slots.keys().map(Arc::clone).collect();
        for service in all {
            self.pool_step(&service, pool::Input::AgentStops, now);
        }
    }

    /// Where a service stands in its pool.
    pub(super) fn pool_state(&self, service: &str) -> Option<State> {
        self.pools.standing(service).map(|standing| standing.state)
    }
}

//! The services that Defib looks after: their engines, the budget that they share, and which of them is due next.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use crate::{
    config::{Budget, Health},
    healing::{Action, Engine, Input, Ledger, Memory},
    host::process::Identity,
    memory::{Clocks, Follower, Measured, News, Recorder},
    supervisor::Supervisor,
};

/// A service that Defib looks after.
pub(crate) struct Managed {
    engine: Engine,
    /// How its health is proven.
    pub(crate) health: Health,
    /// Who starts it.
    pub(crate) supervisor: Arc<dyn Supervisor>,
    /// Path of its cgroup, the one that was seen last.
    pub(crate) cgroup: Arc<str>,
    /// Its memory in the last minutes.
    pub(crate) recorder: Recorder,
    /// Its memory over its incarnations.
    pub(crate) follower: Follower,
    /// Tells what the store has of its engine; `None`: nothing.
    kept: Option<u64>,
}

impl Managed {
    /// A service of which nothing is known yet, but for what `follower` has seen.
    pub(crate) fn new(
        engine: Engine,
        health: Health,
        supervisor: Arc<dyn Supervisor>,
        cgroup: Arc<str>,
        follower: Follower,
    ) -> Self {
        Self { engine, health, supervisor, cgroup, recorder: Recorder::default(), follower, kept: None }
    }

    /// The living main process, when there is one.
    pub(crate) fn process(&self) -> Option<Identity> {
        self.engine.process()
    }

    /// True when nothing is under way: no deadline, no living process.
    pub(crate) fn is_left_alone(&self) -> bool {
        self.engine.process().is_none() && self.engine.deadline().is_none()
    }

    /// Its engine, to look at.
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }
}

/// See the module.
pub(crate) struct Roster {
    /// Boxed, since a map keeps up to twice as many places as it has entries.
    services: HashMap<Arc<str>, Box<Managed>>,
    /// When each engine wants to be asked again, CLOCK_BOOTTIME nanoseconds. Kept in order, so that a host with ten
    /// thousand services does not look at each for every event.
    deadlines: BTreeSet<(u64, Arc<str>)>,
    host: Ledger,
}

impl Roster {
    /// Nobody, with a budget for all.
    pub(crate) fn new(host: Budget) -> Self {
        Self { services: HashMap::new(), deadlines: BTreeSet::new(), host: Ledger::new(host) }
    }

    /// Adds a service.
    pub(crate) fn add(&mut self, name: Arc<str>, managed: Managed) {
        self.services.insert(name, Box::new(managed));
    }

    /// The service of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&Managed> {
        self.services.get(name).map(Box::as_ref)
    }

    /// Notes where a service lives now.
    pub(crate) fn moved(&mut self, name: &str, cgroup: &Arc<str>) {
        if let Some(managed) = self.services.get_mut(name) {
            managed.cgroup = Arc::clone(cgroup);
        }
    }

    /// All services.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Managed)> {
        self.services.iter().map(|(name, managed)| (name, managed.as_ref()))
    }

    /// Goes on where an earlier agent was with a service.
    pub(crate) fn remember(&mut self, name: &Arc<str>, memory: Memory, now_ns: u64) {
        let Some(managed) = self.services.get_mut(name) else { return };
        self.host.borrow(&memory.spent_ns);
        managed.engine.remember(memory, now_ns);
        if let Some(deadline) = managed.engine.deadline() {
            self.deadlines.insert((deadline, Arc::clone(name)));
        }
    }

    /// What is to be kept of a service, if it differs from what was kept last.
    pub(crate) fn changed(&mut self, name: &str) -> Option<Memory> {
        let managed = self.services.get_mut(name)?;
        let memory = managed.engine.memory();
        let mut hasher = DefaultHasher::new();
        memory.hash(&mut hasher);
        let print = Some(hasher.finish());
        if print == managed.kept || managed.kept.is_none() && memory == Memory::default() {
            return None;
        }
        managed.kept = print;
        Some(memory)
    }

    /// Takes a measurement; what is new about the service, if it is still the process that was measured.
    pub(crate) fn measured(&mut self, measured: &Measured, clocks: Clocks) -> News {
        let Some(managed) = self.services.get_mut(&measured.service) else { return News::default() };
        if !managed.process().is_some_and(|process| process.matches(measured.process)) {
            return News::default();
        }
        managed.recorder.add(measured.at_ns, measured.bytes, measured.limit);
        managed.follower.take(measured, clocks)
    }

    /// Number of services.
    pub(crate) fn len(&self) -> usize {
        self.services.len()
    }

    /// Tells a service's engine something, and returns what shall be done.
    pub(crate) fn step(&mut self, name: &Arc<str>, input: Input, now_ns: u64) -> Vec<Action> {
        let Some(managed) = self.services.get_mut(name) else { return Vec::new() };
        let before = managed.engine.deadline();
        let actions = managed.engine.step(input, &mut self.host, now_ns);
        let after = managed.engine.deadline();
        if before != after {
            if let Some(before) = before {
                self.deadlines.remove(&(before, Arc::clone(name)));
            }
            if let Some(after) = after {
                self.deadlines.insert((after, Arc::clone(name)));
            }
        }
        actions
    }

    /// Why the engine of a service would refuse a planned restart now.
    pub(crate) fn refuses_renewal(&mut self, name: &str, now_ns: u64) -> Option<&'static str> {
        self.services.get_mut(name)?.engine.refuses_renewal(&mut self.host, now_ns)
    }

    /// When the next engine is due.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// The services that are due.
    pub(crate) fn due(&self, now_ns: u64) -> Vec<Arc<str>> {
        self.deadlines
            .iter()
            .take_while(|&&(deadline, _)| deadline <= now_ns)
            .map(|(_, name)| Arc::clone(name))
            .collect()
    }
}

//! The services that Defib looks after: their engines, the budget that they share, and which of them is due next.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use crate::{
    attribution::{Origin, Place},
    config::{Budget, Health},
    healing::{Action, Engine, HostLedger, Input, Memory},
    host::process::Identity,
    memory::{Clocks, Follower, Measured, News, Recorder},
    supervisor::Supervisor,
};

/// Who starts a service and confirms its own cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// systemd: a unit.
    Systemd,
    /// A container engine; `None`: the one that has a container of that name.
    Engine(Option<&'static str>),
    /// Defib: a command service.
    Defib,
}

/// Cgroups below a service's own that are stored for the next agent.
const NESTED_KEPT: u32 = 8;

/// A service that Defib looks after.
pub(crate) struct Managed {
    engine: Engine,
    /// Who starts it.
    pub(crate) owner: Owner,
    /// How its health is proven.
    pub(crate) health: Health,
    /// Asks the owner.
    pub(crate) supervisor: Arc<dyn Supervisor>,
    /// Path of its own cgroup, as confirmed by its owner; empty when not known.
    pub(crate) cgroup: Arc<str>,
    /// Cgroups below its own that were stored for the next agent.
    nested_kept: u32,
    /// Its memory in the last minutes.
    pub(crate) recorder: Recorder,
    /// Its memory over its incarnations.
    pub(crate) follower: Follower,
    /// When [`Roster::idle`] first saw it without a process and without an action under way, CLOCK_BOOTTIME
    /// nanoseconds.
    idle_since_ns: Option<u64>,
    /// Tells what the store has of its engine; `None`: nothing.
    kept: Option<u64>,
}

impl Managed {
    /// A service of which nothing is known yet, but for what `follower` has seen.
    pub(crate) fn new(
        engine: Engine,
        health: Health,
        (owner, supervisor): (Owner, Arc<dyn Supervisor>),
        cgroup: Arc<str>,
        follower: Follower,
    ) -> Self {
        let recorder = Recorder::default();
        Self {
            engine,
            owner,
            health,
            supervisor,
            cgroup,
            nested_kept: 0,
            recorder,
            follower,
            idle_since_ns: None,
            kept: None,
        }
    }

    /// True when this place is in the service's own cgroup or below it.
    pub(crate) fn has(&self, place: &Place) -> bool {
        !self.cgroup.is_empty() && self.cgroup.trim_matches('/') == place.root().trim_matches('/')
    }

    /// True when the service's owner can own the cgroup at this place.
    pub(crate) fn may_own(&self, place: &Place) -> bool {
        match (self.owner, &*place.origin) {
            (Owner::Systemd, Origin::Unit(_)) | (Owner::Engine(None), Origin::Container { .. }) => true,
            (Owner::Engine(Some(engine)), Origin::Container { engine: other, .. }) => engine == *other,
            (Owner::Systemd | Owner::Engine(_) | Owner::Defib, _) => false,
        }
    }

    /// Whether a cgroup of the service is to be stored for the next agent: its own, and a few below.
    pub(crate) fn keeps(&mut self, place: &Place) -> bool {
        if place.is_root() {
            self.nested_kept = 0;
            return true;
        }
        self.nested_kept = self.nested_kept.saturating_add(1);
        self.nested_kept <= NESTED_KEPT
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
    host: HostLedger,
}

impl Roster {
    /// Nobody, with a budget for all.
    pub(crate) fn new(host: Budget) -> Self {
        Self { services: HashMap::new(), deadlines: BTreeSet::new(), host: HostLedger::new(host) }
    }

    /// Adds a service.
    pub(crate) fn add(&mut self, name: Arc<str>, managed: Managed) {
        self.services.insert(name, Box::new(managed));
    }

    /// The service of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&Managed> {
        self.services.get(name).map(Box::as_ref)
    }

    /// The service of that name, mutable.
    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Managed> {
        self.services.get_mut(name).map(Box::as_mut)
    }

    /// The service that contains this place.
    pub(crate) fn at(&self, place: &Place) -> Option<&Managed> {
        self.get(&place.service).filter(|managed| managed.has(place))
    }

    /// Sets a service's own cgroup, as its owner has confirmed it.
    pub(crate) fn moved(&mut self, name: &str, cgroup: &Arc<str>) {
        if let Some(managed) = self.services.get_mut(name) {
            managed.cgroup = Arc::clone(cgroup);
        }
    }

    /// Up to `most` services that had no process and no action under way for `after_ns`: their owners may have
    /// forgotten them. Each is returned again after that time.
    pub(crate) fn idle(&mut self, now_ns: u64, after_ns: u64, most: usize) -> Vec<Arc<str>> {
        let mut idle = Vec::new();
        for (name, managed) in &mut self.services {
            let is_idle = managed.owner != Owner::Defib
                && managed.is_left_alone()
                && managed.engine.down_since().is_none()
                && managed.engine.paused_until(now_ns).is_none();
            if !is_idle {
                managed.idle_since_ns = None;
                continue;
            }
            let since = *managed.idle_since_ns.get_or_insert(now_ns);
            if now_ns.saturating_sub(since) >= after_ns && idle.len() < most {
                managed.idle_since_ns = None;
                idle.push(Arc::clone(name));
            }
        }
        idle
    }

    /// Removes a service.
    pub(crate) fn remove(&mut self, name: &Arc<str>) {
        if let Some(managed) = self.services.remove(name)
            && let Some(deadline) = managed.engine.deadline()
        {
            self.deadlines.remove(&(deadline, Arc::clone(name)));
        }
    }

    /// All services.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Managed)> {
        self.services.iter().map(|(name, managed)| (name, managed.as_ref()))
    }

    /// Goes on where an earlier agent was with a service.
    pub(crate) fn remember(&mut self, name: &Arc<str>, memory: Memory, now_ns: u64) {
        let Some(managed) = self.services.get_mut(name) else { return };
        self.host.borrow(managed.engine.seed(), &memory.spent_ns);
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

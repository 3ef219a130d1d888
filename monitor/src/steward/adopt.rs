//! Which services there are: those that the configuration names, that cgroups show, and that an earlier agent knew.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    mem,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use jiff::Timestamp;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Steward, Word};
use crate::{
    attribution::{Answer, Origin, Place, confirm},
    config::{Command, Config, Mode, Service, Target},
    healing::{Engine, Input, Intent, Outcome, Policy},
    host::{
        clock,
        process::{self, Identity},
    },
    questions::Kind,
    roster::{Managed, Owner},
    supervisor::{CommandSupervisor, ContainerSupervisor, Supervisor, SystemdSupervisor},
    text::Clean,
    timeline::What,
};

/// At start, owners have this long to confirm existing cgroups; then the agent is ready without their answers.
const OWNERS_ANSWER: Duration = Duration::from_secs(5);
/// Cgroups that wait for room to be watched.
const UNWATCHED: usize = 4096;
/// Within this, the rings that were taken over are read, and the verdicts on what they tell have come: a second, for some
/// thousand records at most.
const RECORD_OF_DEATH: Duration = Duration::from_secs(1);

impl Steward {
    /// Adopts the command services, reads what exists, watches what is configured, and finds out which services live.
    /// Returns what does not work, a line for each service; the others are not held up by it.
    ///
    /// # Errors
    /// When the cgroup hierarchy cannot be read at all.
    pub(crate) async fn scan(&mut self, config: &Config) -> Result<Vec<String>> {
        let mut failures = Vec::new();
        let mut commands = Vec::new();
        let (fixed, patterns) = mem::take(&mut self.rules)
            .into_iter()
            .partition::<Vec<_>, _>(|rule| matches!(rule.target, Target::Command { .. }));
        self.rules = patterns;
        let state_dir: Arc<Path> = config.agent.state_dir.as_path().into();
        for rule in &fixed {
            let Target::Command { name, command } = &rule.target else { continue };
            let Some(hierarchy) = self.hierarchy.clone() else {
                failures.push(format!("{name}: a command service needs a cgroup file system"));
                continue;
            };
            let service: Arc<str> = name.as_str().into();
            // The configuration is let go of after this scan. One name of it that stays would keep the whole page around it.
            let cgroup: Arc<str> = (*command.cgroup).into();
            let command = Command { cgroup: Arc::clone(&cgroup), ..command.clone() };
            self.observer.name_command(&cgroup, &service);
            let supervisor = CommandSupervisor::new(Arc::clone(&service), command, hierarchy, Arc::clone(&state_dir));
            let supervisor = Arc::new(supervisor);
            let starter = Arc::clone(&supervisor) as Arc<dyn Supervisor>;
            self.manage(Arc::clone(&service), rule, (Owner::Defib, starter), cgroup);
            commands.push((service, supervisor));
        }
        let now = clock::boot_ns();
        for (service, supervisor) in &commands {
            // A cgroup is a thing that the observing modes must not make.
            let id = if self.mode == Mode::Act { supervisor.prepare().map(Some) } else { supervisor.cgroup_id() };
            if let Err(error) = id.and_then(|id| id.map_or(Ok(()), |id| self.kernel.watch(id, id))) {
                failures.push(format!("{service}: {error:#}"));
            }
        }
        let own: HashMap<_, _> =
            commands.iter().filter_map(|(service, one)| Some((service, one.cgroup_id().ok()??))).collect();
        for (id, place) in self.observer.scan()? {
            // A cgroup that existed before the programs watched its service.
            if let (false, Some(&own)) = (place.is_root(), own.get(&place.service)) {
                self.watch(id, own, &place);
            }
            self.appeared(id, &place);
        }
        let mut confirmed = HashMap::new();
        for (id, path, service) in mem::take(&mut self.cgroups) {
            self.observer.recall(id, &path, &service.as_str().into());
            confirmed.extend(self.observer.known_place(id).map(|place| (service, Arc::<str>::from(place.root()))));
        }
        for (service, supervisor) in &commands {
            match supervisor.main_process() {
                Ok(process) => {
                    self.meet(service, process);
                    if let Some(process) = process {
                        self.introduce(service, process, now);
                    }
                }
                Err(error) => failures.push(format!("{service}: {error:#}")),
            }
            self.step(service, Input::Missing, now);
        }
        self.hear_owners().await;
        self.meet_the_dead(&confirmed);
        if self.took_over_ns.is_some() {
            self.unwatch_the_unwanted()?;
        }
        let services: Vec<_> = self.roster.iter().map(|(service, _)| Arc::clone(service)).collect();
        for service in services {
            self.stands(&service, now);
        }
        self.alerts.settle();
        Ok(failures)
    }

    /// An earlier agent may have watched what is not configured any more, or what has gone without word of it.
    fn unwatch_the_unwanted(&mut self) -> Result<()> {
        for id in self.kernel.watched()? {
            match self.observer.known_place(id) {
                Some(place) if self.roster.at(place).is_some() || self.claims.has(place.root()) => {}
                Some(_) => self.kernel.unwatch(id),
                None => {
                    self.unknown.insert(id);
                }
            }
        }
        self.kernel.recount()
    }

    /// Stops watching cgroups that an earlier agent watched and that are unknown still: a new cgroup is known by now.
    pub(super) fn unwatch_the_unknown(&mut self) {
        for id in mem::take(&mut self.unknown) {
            if self.observer.known_place(id).is_none() {
                self.kernel.unwatch(id);
            }
        }
    }

    /// Cgroups have gone without word of it.
    pub(super) fn vanished(&mut self, ids: Vec<u64>) {
        for id in ids {
            self.observer.vanished(id);
            self.kernel.unwatch(id);
        }
    }

    /// Continues with services that an earlier agent knew and that have no cgroup now. `confirmed`: their own cgroups
    /// then.
    fn meet_the_dead(&mut self, confirmed: &HashMap<String, Arc<str>>) {
        let names: Vec<Arc<str>> = self.left.keys().map(|name| name.as_str().into()).collect();
        for service in names {
            let wanted = |rule: &&Service| match &rule.target {
                Target::Unit(pattern) => is_unit(&service) && pattern.matches(&service),
                Target::Container(pattern) => !is_unit(&service) && pattern.matches(&service),
                Target::Command { .. } => false,
            };
            let Some(rule) = self.rules.iter().find(wanted).cloned() else { continue };
            let (owner, supervisor): (_, Arc<dyn Supervisor>) = match rule.target {
                Target::Unit(_) => (Owner::Systemd, self.systemd_supervisor(&service)),
                _ => (Owner::Engine(None), Arc::new(ContainerSupervisor::new(None, &service))),
            };
            let cgroup = confirmed.get(&*service).map_or_else(|| "".into(), Arc::clone);
            self.manage(Arc::clone(&service), &rule, (owner, supervisor), cgroup);
            self.meet(&service, None);
        }
        for service in self.book.open_services() {
            let engine = self.roster.get(&service).map(Managed::engine);
            let why = match engine {
                Some(engine) if self.book.is_planned(&service) && engine.down_since().is_none() => {
                    "the agent was started again"
                }
                None => "it is no longer configured",
                Some(engine) if engine.down_since().is_none() => "the host was started again",
                Some(_) => {
                    self.metrics.outage_began(&service);
                    self.say(clock::boot_ns(), &service, What::AgentStarted);
                    continue;
                }
            };
            self.say(clock::boot_ns(), &service, What::Over(why));
            self.book.close(&service, Timestamp::now(), Duration::ZERO, Outcome::LeftAlone);
        }
        // Emptied maps keep their places.
        self.left = HashMap::new();
        self.followers.shrink_to_fit();
        self.pools.forget_spare_room();
        self.write_down();
    }

    /// Holds what an earlier agent knew of a service against the main process that it has. Once, when it is first seen: later,
    /// word of a death is on its way.
    pub(super) fn meet(&mut self, service: &Arc<str>, found: Option<Identity>) {
        let Some(managed) = self.roster.get(service) else { return };
        let now = clock::boot_ns();
        if let Some(believed) = managed.process()
            && !found.is_some_and(|found| found.matches(believed))
            && !process::is_alive(believed)
        {
            if self.took_over_ns.is_some() {
                self.expect_death(service, believed, now);
            } else {
                self.found_dead(service, believed, now);
            }
        }
    }

    /// It died while no agent ran, and the rings tell of it; if not, it is found dead.
    fn expect_death(&mut self, service: &Arc<str>, believed: Identity, now: u64) {
        let (words, service) = (self.words.0.clone(), Arc::clone(service));
        self.tasks.spawn(async move {
            sleep(RECORD_OF_DEATH).await;
            // The send fails only when the agent stops.
            words.send(Word::Lost(service, believed, now)).await.ok();
        });
    }

    fn found_dead(&mut self, service: &Arc<str>, believed: Identity, now: u64) {
        self.say(now, service, What::Died);
        self.say(now, service, What::Verdict("unknown: it died while no agent was watching".to_owned()));
        // Whoever stops a service while no agent runs must not find it started by the next one.
        let intent = Intent::Likely("it ended while no agent was watching".to_owned());
        self.step(service, Input::Died { process: believed, at_ns: now, intent }, now);
    }

    fn systemd_supervisor(&self, unit: &str) -> Arc<dyn Supervisor> {
        Arc::new(SystemdSupervisor::new(unit, self.systemd.clone(), self.hierarchy.clone()))
    }

    fn manage(
        &mut self,
        service: Arc<str>,
        rule: &Service,
        (owner, supervisor): (Owner, Arc<dyn Supervisor>),
        cgroup: Arc<str>,
    ) {
        let mut hasher = DefaultHasher::new();
        service.hash(&mut hasher);
        let seed = hasher.finish();
        let policy = self.policies.share(Policy {
            mode: self.mode,
            restart: rule.restart && can_be_started(&service, &rule.target),
            grace: rule.grace,
            backoff: rule.backoff,
            budget: rule.budget,
        });
        self.metrics.add_managed(&service);
        let follower = self.follower(&service).staggered(seed);
        let forecast = follower.forecast();
        self.metrics.forecast(&service, &forecast);
        self.alerts.foresees(&service, &forecast);
        let managed =
            Managed::new(Engine::new(policy, seed), rule.health.clone(), (owner, supervisor), cgroup, follower);
        self.roster.add(Arc::clone(&service), managed);
        self.pictures.add(&service, rule);
        self.pools.add(&service, rule, self.mode, clock::boot_ns());
        if can_be_started(&service, &rule.target) {
            self.planned.add(&service, rule, self.mode);
        }
        self.traces.add(&service, rule);
        if is_unit(&service) {
            self.look_at_coverage(&service);
        }
        let Some(memory) = self.left.remove(&*service) else { return };
        self.roster.remember(&service, memory, clock::boot_ns());
        let Some(process) = self.roster.get(&service).and_then(Managed::process) else { return };
        if self.book.open_id(&service).is_some() && process::is_alive(process) {
            let health = rule.health.clone();
            self.probe(&service, health, process, clock::boot_ns());
        }
    }

    /// Finds out whether systemd would bring a unit back after an OOM kill.
    fn look_at_coverage(&mut self, service: &Arc<str>) {
        let (systemd, words, service) = (self.systemd.clone(), self.words.0.clone(), Arc::clone(service));
        let turns = self.asking.turns(Kind::Systemd);
        self.tasks.spawn(async move {
            let _turn = turns.acquire_owned().await.ok();
            if let Ok(unit) = systemd.unit(&service).await {
                // The send fails only when the agent stops.
                words.send(Word::Covered(service, unit.gap().is_none())).await.ok();
            }
        });
    }

    /// A cgroup was made, or found. Its owner must confirm what the path claims, unless it has done so for this path.
    pub(super) fn appeared(&mut self, id: u64, place: &Place) {
        if self.roster.at(place).is_some() {
            if place.is_root() {
                self.watch(id, id, place);
            } else {
                // The programs watch cgroups that are made inside a watched one.
                self.keep_cgroup(id, place);
            }
        } else if !place.is_root() {
            self.claims.add_below(id, place);
        } else if self.is_asked_about(place) {
            self.claims.add(id, place);
        }
    }

    /// Whether an owner is asked: for a container always, since only the engine knows its name; for a unit when a rule
    /// wants it.
    fn is_asked_about(&self, place: &Place) -> bool {
        match &*place.origin {
            Origin::Container { .. } => true,
            Origin::Unit(name) => {
                self.rules.iter().any(|rule| matches!(&rule.target, Target::Unit(pattern) if pattern.matches(name)))
            }
            Origin::Cgroup => false,
        }
    }

    /// Asks the owners of cgroups, a few at a time.
    pub(super) fn ask_owners(&mut self, now: u64) {
        let Some(hierarchy) = &self.hierarchy else { return };
        for place in self.claims.ask(now) {
            let (words, systemd, hierarchy) = (self.words.0.clone(), self.systemd.clone(), Arc::clone(hierarchy));
            self.tasks.spawn(async move {
                let answer = confirm(&place, &systemd, &hierarchy).await;
                // The send fails only when the agent stops.
                words.send(Word::Owner(place.path, answer)).await.ok();
            });
        }
    }

    /// Waits a bounded time for owners to answer about existing cgroups, so that the agent is ready with most services
    /// known.
    async fn hear_owners(&mut self) {
        let end = Instant::now() + OWNERS_ANSWER;
        self.ask_owners(clock::boot_ns());
        while self.claims.is_waiting() {
            let Ok(Some(word)) = timeout_at(end, self.words.1.recv()).await else { return };
            self.word(word);
            self.ask_owners(clock::boot_ns());
        }
    }

    /// An owner has answered whether the cgroup at this path is what it claims to be.
    pub(super) fn owner_answered(&mut self, path: &Arc<str>, answer: Answer, now: u64) {
        let (service, main) = match answer {
            Answer::Confirmed { service, main } => (service, main),
            Answer::Denied(why) => {
                if self.claims.answered(path).is_some() {
                    tracing::info!("the cgroup {} is a plain one: {}", Clean(path), Clean(&why));
                }
                return;
            }
            Answer::Silent(why) => {
                if self.claims.silent(path, now) {
                    tracing::warn!("no owner has confirmed the cgroup {}, asking again: {}", Clean(path), Clean(&why));
                }
                return;
            }
        };
        let Some(claim) = self.claims.answered(path) else { return };
        let places = match &*claim.place.origin {
            Origin::Container { .. } => self.observer.name_container(path, &service),
            Origin::Unit(_) | Origin::Cgroup => std::iter::once((claim.id, claim.place)).chain(claim.below).collect(),
        };
        for (id, place) in places {
            self.adopt((id, claim.id), &place, main);
        }
    }

    /// Watches a confirmed cgroup when a rule wants it. `own` is the id of the service's own cgroup, `main` the main
    /// process that the owner names.
    fn adopt(&mut self, (id, own): (u64, u64), place: &Place, main: Option<Identity>) {
        let service = &place.service;
        // By an earlier agent, and not yet by this one.
        let is_known = self.left.contains_key(&**service);
        if self.roster.get(service).is_none() {
            let wanted = |rule: &&Service| match (&rule.target, &*place.origin) {
                (Target::Unit(pattern), Origin::Unit(name)) => pattern.matches(name),
                (Target::Container(pattern), Origin::Container { .. }) => pattern.matches(service),
                _ => false,
            };
            let Some(rule) = self.rules.iter().find(wanted).cloned() else { return };
            let (owner, supervisor): (_, Arc<dyn Supervisor>) = match &*place.origin {
                Origin::Container { engine, .. } => {
                    (Owner::Engine(Some(engine)), Arc::new(ContainerSupervisor::new(Some(engine), service)))
                }
                Origin::Unit(_) | Origin::Cgroup => (Owner::Systemd, self.systemd_supervisor(service)),
            };
            self.manage(Arc::clone(service), &rule, (owner, supervisor), place.root().into());
        }
        let Some(managed) = self.roster.get(service) else { return };
        if !managed.may_own(place) {
            tracing::error!(
                service = %Clean(service),
                "two services have this name; the one in {} is not looked after",
                Clean(&place.path)
            );
            return;
        }
        if place.is_root() {
            self.roster.moved(service, &place.path);
        }
        self.watch(id, own, place);
        if !place.is_root() {
            return;
        }
        if is_known {
            self.meet(service, main);
        }
        if let Some(process) = main {
            // The owner has just named this main process.
            self.step(service, Input::Alive(process), clock::boot_ns());
        }
    }

    /// Stores which service a cgroup belongs to, for the next agent.
    fn keep_cgroup(&mut self, id: u64, place: &Place) {
        if self.roster.get_mut(&place.service).is_some_and(|managed| managed.keeps(place)) {
            self.draft.settling.cgroups.insert(id, (Arc::clone(&place.path), Arc::clone(&place.service)));
        }
    }

    /// Makes the kernel programs watch a cgroup of a service; `own` is the id of the service's own cgroup.
    fn watch(&mut self, id: u64, own: u64, place: &Place) {
        self.keep_cgroup(id, place);
        if let Err(error) = self.kernel.watch(id, own) {
            let is_first = self.unwatched.is_empty();
            if self.unwatched.len() < UNWATCHED {
                self.unwatched.insert((id, own));
            }
            if is_first {
                tracing::error!(service = %Clean(&place.service), "its deaths may be lost in a storm, until there is room: {error:#}");
            }
        }
    }

    /// Tries again to watch the cgroups that found no room.
    pub(super) fn watch_again(&mut self) {
        let (kernel, observer) = (&self.kernel, &self.observer);
        self.unwatched.retain(|&(id, own)| observer.known_place(id).is_some() && kernel.watch(id, own).is_err());
    }
}

/// False for scopes, which systemd cannot start, and for a user's manager, which belongs to its user.
fn can_be_started(service: &str, target: &Target) -> bool {
    !matches!(target, Target::Unit(_)) || service.ends_with(".service") && !service.starts_with("user@")
}

pub(super) fn is_unit(service: &str) -> bool {
    service.ends_with(".service") || service.ends_with(".scope")
}

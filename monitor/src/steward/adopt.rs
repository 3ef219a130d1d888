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
use tokio::time::sleep;

use super::{Steward, Word};
use crate::{
    attribution::{Origin, Place, ask_name},
    config::{Command, Config, Mode, Service, Target},
    healing::{Engine, Input, Intent, Outcome, Policy},
    host::{
        clock,
        process::{self, Identity},
    },
    roster::Managed,
    supervisor::{CommandSupervisor, ContainerSupervisor, Supervisor, SystemdSupervisor},
    text::Clean,
    timeline::What,
};

/// Within this, the rings that were taken over are read, and the verdicts on what they tell have come: a second, for some
/// thousand records at most.
const RECORD_OF_DEATH: Duration = Duration::from_secs(1);

impl Steward {
    /// Adopts the command services, reads what exists, watches what is configured, and finds out which services live.
    /// Returns what does not work, a line for each service; the others are not held up by it.
    ///
    /// # Errors
    /// When the cgroup hierarchy cannot be read at all.
    pub(crate) fn scan(&mut self, config: &Config) -> Result<Vec<String>> {
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
            self.observer.name(&cgroup, &service);
            let supervisor = CommandSupervisor::new(Arc::clone(&service), command, hierarchy, Arc::clone(&state_dir));
            let supervisor = Arc::new(supervisor);
            let starter = Arc::clone(&supervisor) as Arc<dyn Supervisor>;
            self.manage(Arc::clone(&service), rule, starter, cgroup);
            commands.push((service, supervisor));
        }
        let now = clock::boot_ns();
        for (service, supervisor) in &commands {
            // A cgroup is a thing that the observing modes must not make.
            let id = if self.mode == Mode::Act { supervisor.prepare().map(Some) } else { supervisor.cgroup_id() };
            if let Err(error) = id.and_then(|id| id.map_or(Ok(()), |id| self.kernel.watch(id))) {
                failures.push(format!("{service}: {error:#}"));
            }
        }
        for (id, place) in self.observer.scan(now)? {
            self.appeared(id, &place);
        }
        for (id, path, service) in mem::take(&mut self.cgroups) {
            self.observer.recall(id, &path, &service.as_str().into());
        }
        for (service, supervisor) in &commands {
            match supervisor.main_process() {
                Ok(process) => self.meet(service, process),
                Err(error) => failures.push(format!("{service}: {error:#}")),
            }
            self.step(service, Input::Missing, now);
        }
        self.meet_the_dead();
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

    /// An earlier agent may have watched what is not configured any more. A cgroup that is not known was made just now.
    fn unwatch_the_unwanted(&self) -> Result<()> {
        for id in self.kernel.watched()? {
            let place = self.observer.known_place(id);
            if place.is_some_and(|place| self.roster.get(&place.service).is_none()) {
                self.kernel.unwatch(id);
            }
        }
        Ok(())
    }

    /// Goes on with services that an earlier agent knew and that have no cgroup now.
    fn meet_the_dead(&mut self) {
        let names: Vec<Arc<str>> = self.left.keys().map(|name| name.as_str().into()).collect();
        for service in names {
            let wanted = |rule: &&Service| match &rule.target {
                Target::Unit(pattern) => is_unit(&service) && pattern.matches(&service),
                Target::Container(pattern) => !is_unit(&service) && pattern.matches(&service),
                Target::Command { .. } => false,
            };
            let Some(rule) = self.rules.iter().find(wanted).cloned() else { continue };
            let supervisor = match rule.target {
                Target::Unit(_) => self.systemd_supervisor(&service),
                _ => Arc::new(ContainerSupervisor::new(None, &service)),
            };
            self.manage(Arc::clone(&service), &rule, supervisor, "".into());
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
    fn meet(&mut self, service: &Arc<str>, found: Option<Identity>) {
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
        if let Some(found) = found {
            self.introduce(service, found, now);
        }
    }

    /// It died while no agent ran, and the rings tell of it; if not, it is found dead.
    fn expect_death(&mut self, service: &Arc<str>, believed: Identity, now: u64) {
        let (words, service) = (self.words.0.clone(), Arc::clone(service));
        self.tasks.spawn(async move {
            sleep(RECORD_OF_DEATH).await;
            // Nobody receives only when the agent stops.
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

    fn manage(&mut self, service: Arc<str>, rule: &Service, supervisor: Arc<dyn Supervisor>, cgroup: Arc<str>) {
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
        let managed = Managed::new(Engine::new(policy, seed), rule.health.clone(), supervisor, cgroup, follower);
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
        self.tasks.spawn(async move {
            if let Ok(unit) = systemd.unit(&service).await {
                // Nobody receives only when the agent stops.
                words.send(Word::Covered(service, unit.gap().is_none())).await.ok();
            }
        });
    }

    /// Watches a cgroup when a rule wants it, and asks for its name when it is a container.
    pub(super) fn appeared(&mut self, id: u64, place: &Place) {
        match ask_name(place) {
            // Rules are for names; until the engine has answered there is none.
            Some(question) => {
                let words = self.words.0.clone();
                self.tasks.spawn(async move {
                    if let Some((cgroup, service)) = question.await {
                        // Nobody receives only when the agent stops.
                        words.send(Word::Named(cgroup, service)).await.ok();
                    }
                });
            }
            None => self.consider(id, place),
        }
    }

    /// Watches a cgroup when a rule wants it.
    pub(super) fn consider(&mut self, id: u64, place: &Place) {
        // By an earlier agent, and not yet by this one.
        let is_known = self.left.contains_key(&*place.service);
        if self.roster.get(&place.service).is_none() {
            let wanted = |rule: &&Service| match (&rule.target, &*place.origin) {
                (Target::Unit(pattern), Origin::Unit(name)) => pattern.matches(name),
                (Target::Container(pattern), Origin::Container { .. }) => {
                    place.is_named() && pattern.matches(&place.service)
                }
                _ => false,
            };
            let Some(rule) = self.rules.iter().find(wanted).cloned() else { return };
            let supervisor: Arc<dyn Supervisor> = match &*place.origin {
                Origin::Container { engine, .. } => Arc::new(ContainerSupervisor::new(Some(engine), &place.service)),
                _ => self.systemd_supervisor(&place.service),
            };
            self.manage(Arc::clone(&place.service), &rule, supervisor, Arc::clone(&place.path));
        }
        self.draft.settling.cgroups.insert(id, (Arc::clone(&place.path), Arc::clone(&place.service)));
        if let Err(error) = self.kernel.watch(id) {
            tracing::error!(service = %Clean(&place.service), "its deaths may be lost in a storm: {error:#}");
        }
        self.roster.moved(&place.service, &place.path);
        let main = self.main_process(&place.path);
        if is_known {
            self.meet(&place.service, main);
        } else if let Some(process) = main {
            self.introduce(&place.service, process, clock::boot_ns());
        }
    }
}

/// Scopes are made by whoever runs in them, and a user's units belong to a manager that the host's does not speak for.
fn can_be_started(service: &str, target: &Target) -> bool {
    !matches!(target, Target::Unit(_)) || service.ends_with(".service") && !service.contains('/')
}

fn is_unit(service: &str) -> bool {
    service.ends_with(".service") || service.ends_with(".scope")
}

//! The one task that owns observer and engines and takes every input in turn: events, log lines, answers, deadlines.
//!
//! Work that takes time (starting, proving health) runs in tasks of its own and comes back as an input.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    attribution::{Origin, Place, Role, ask_name},
    config::{Config, Health, Mode, Service, Target},
    healing::{Action, Engine, Input, Ledger, Policy},
    health,
    host::{cgroup::Hierarchy, clock, kmsg::OomLine, process, vmstat},
    kernel::{Event, Kernel},
    metrics::Metrics,
    observer::{Death, Observer, Sight},
    supervisor::CommandSupervisor,
    timeline::{Timeline, What},
};

/// Events handled before anything else gets a turn.
const BATCH: usize = 256;
/// Answers on their way; each service has at most one start and one probe under way.
const OUTCOMES: usize = 1024;
/// A death whose record has not come this long after its cgroup was empty will not come: twice what a verdict may wait.
const WORD_OF_DEATH: Duration = Duration::from_millis(200);
/// How often our count of OOM kills is held against the kernel's.
const AUDIT_INTERVAL: Duration = Duration::from_secs(10);

/// What comes back from a task.
enum Outcome {
    /// A supervisor's or a probe's answer.
    Input(Arc<str>, Input),
    /// A container's cgroup and its name.
    Named(String, Arc<str>),
    /// A service's cgroup had no process left at that time, and word of the death should have come by now.
    Emptied(Arc<str>, u64),
}

/// A service that Defib looks after.
struct Managed {
    engine: Engine,
    health: Health,
    supervisor: Option<CommandSupervisor>,
}

/// See the module.
pub(crate) struct Steward {
    observer: Observer,
    hierarchy: Option<Hierarchy>,
    kernel: Arc<Kernel>,
    metrics: Metrics,
    timeline: Timeline,
    mode: Mode,
    rules: Vec<Service>,
    services: HashMap<Arc<str>, Managed>,
    host_budget: Ledger,
    outcomes: (mpsc::Sender<Outcome>, mpsc::Receiver<Outcome>),
    audit: Audit,
}

impl Steward {
    /// A steward that has seen nothing yet. The programs are attached by now.
    pub(crate) fn new(
        config: &Config,
        hierarchy: Option<Hierarchy>,
        kernel: Arc<Kernel>,
        metrics: Metrics,
        timeline: Timeline,
    ) -> Self {
        let mut steward = Self {
            observer: Observer::new(hierarchy.clone()),
            hierarchy,
            kernel,
            metrics,
            timeline,
            mode: config.agent.mode,
            rules: config.services(),
            services: HashMap::new(),
            host_budget: Ledger::new(config.host_budget()),
            outcomes: mpsc::channel(OUTCOMES),
            audit: Audit::begin(),
        };
        steward.adopt_commands(config);
        steward
    }

    /// Services without an owner are known by name, running or not.
    fn adopt_commands(&mut self, config: &Config) {
        let Some(hierarchy) = self.hierarchy.clone() else { return };
        for rule in self.rules.clone() {
            let Target::Command { name, command } = &rule.target else { continue };
            let service: Arc<str> = name.as_str().into();
            self.observer.name(&command.cgroup, &service);
            let supervisor = CommandSupervisor::new(name, command.clone(), hierarchy.clone(), &config.agent.state_dir);
            self.manage(service, &rule, Some(supervisor));
        }
    }

    fn manage(&mut self, service: Arc<str>, rule: &Service, supervisor: Option<CommandSupervisor>) {
        let mut hasher = DefaultHasher::new();
        service.hash(&mut hasher);
        let policy = Policy {
            mode: self.mode,
            restart: rule.restart && supervisor.is_some(),
            grace: rule.grace,
            backoff: rule.backoff,
            budget: rule.budget.per_service,
            seed: hasher.finish(),
        };
        self.metrics.add_managed(&service);
        let managed = Managed { engine: Engine::new(policy), health: rule.health.clone(), supervisor };
        self.services.insert(service, managed);
    }

    /// Reads what exists, watches what is configured, and finds out which services live.
    ///
    /// # Errors
    /// When the cgroup hierarchy cannot be read.
    pub(crate) fn scan(&mut self) -> Result<()> {
        let now = clock::boot_ns();
        for service in self.services.values() {
            if let Some(supervisor) = &service.supervisor {
                self.kernel.watch(supervisor.prepare()?)?;
            }
        }
        for (id, place) in self.observer.scan(now)? {
            self.appeared(id, &place);
        }
        let idle: Vec<_> = self
            .services
            .iter()
            .filter(|(_, managed)| managed.supervisor.is_some())
            .map(|(name, _)| Arc::clone(name))
            .collect();
        for service in idle {
            let Some(supervisor) = self.services.get(&service).and_then(|managed| managed.supervisor.as_ref()) else {
                continue;
            };
            let input = supervisor.main_process()?.map_or(Input::Missing, Input::Alive);
            self.step(&service, input, now);
        }
        Ok(())
    }

    /// Number of known cgroups.
    pub(crate) fn cgroups(&self) -> usize {
        self.observer.cgroups()
    }

    /// Number of services that Defib looks after.
    pub(crate) fn services(&self) -> usize {
        self.services.len()
    }

    /// Runs until the rings end.
    ///
    /// # Errors
    /// When nothing reads the rings any more.
    pub(crate) async fn run(
        &mut self,
        mut events: mpsc::Receiver<Event>,
        mut lines: mpsc::Receiver<OomLine>,
    ) -> Result<()> {
        let mut batch = Vec::with_capacity(BATCH);
        let mut lines_open = true;
        let mut next_audit = Instant::now() + AUDIT_INTERVAL;
        loop {
            let deadline = self.deadline();
            tokio::select! {
                count = events.recv_many(&mut batch, BATCH) => {
                    anyhow::ensure!(count > 0, "nobody reads the rings any more");
                    for event in batch.drain(..) {
                        self.event(&event);
                    }
                    self.metrics.sizes(self.observer.cgroups(), events.len());
                }
                line = lines.recv(), if lines_open => match line {
                    Some(line) => self.observer.line(line),
                    None => lines_open = false,
                },
                Some(outcome) = self.outcomes.1.recv() => match outcome {
                    Outcome::Input(service, input) => self.step(&service, input, clock::boot_ns()),
                    Outcome::Emptied(service, at_ns) => self.emptied(&service, at_ns),
                    Outcome::Named(cgroup, service) => {
                        for (id, place) in self.observer.name(&cgroup, &service) {
                            self.consider(id, &place);
                        }
                    }
                },
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
                () = sleep_until(next_audit) => {
                    next_audit = Instant::now() + AUDIT_INTERVAL;
                    self.metrics.missed_oom_kills(self.audit.check());
                }
            }
            let now = clock::boot_ns();
            for death in self.observer.deaths(now) {
                self.died(&death);
            }
            self.tick(now);
        }
    }

    /// The next moment at which something is due without an input.
    fn deadline(&self) -> Option<Instant> {
        let engines = self.services.values().filter_map(|managed| managed.engine.deadline());
        let earliest = engines.chain(self.observer.next_deadline()).min()?;
        Some(Instant::now() + Duration::from_nanos(earliest.saturating_sub(clock::boot_ns())))
    }

    fn tick(&mut self, now: u64) {
        let due = |managed: &Managed| managed.engine.deadline().is_some_and(|deadline| deadline <= now);
        let names: Vec<_> =
            self.services.iter().filter(|(_, managed)| due(managed)).map(|(name, _)| Arc::clone(name)).collect();
        for service in names {
            self.step(&service, Input::Tick, now);
        }
    }

    fn event(&mut self, event: &Event) {
        match self.observer.event(event) {
            Some(Sight::Marked(marked)) => {
                self.metrics.detected(marked.kernel_ns, marked.seen_ns);
                if let Some(place) = &marked.place
                    && self.services.contains_key(&place.service)
                {
                    self.timeline.say(marked.kernel_ns, &place.service, What::Marked);
                }
            }
            Some(Sight::Alive { place, process, exec: true, kernel_ns }) => {
                self.step(&place.service, Input::Alive(process), kernel_ns);
            }
            Some(Sight::Created { id, place }) => self.appeared(id, &place),
            Some(Sight::Populated { place, populated: false, kernel_ns }) => {
                let outcomes = self.outcomes.0.clone();
                tokio::spawn(async move {
                    sleep(WORD_OF_DEATH).await;
                    // Nobody receives only when the agent stops.
                    outcomes.send(Outcome::Emptied(place.service, kernel_ns)).await.ok();
                });
            }
            Some(Sight::Alive { .. } | Sight::Populated { .. }) | None => {}
        }
    }

    /// Watches a cgroup when a rule wants it, and asks for its name when it is a container.
    fn appeared(&mut self, id: u64, place: &Place) {
        if let Some(question) = ask_name(place) {
            let outcomes = self.outcomes.0.clone();
            tokio::spawn(async move {
                if let Some((cgroup, service)) = question.await {
                    // Nobody receives only when the agent stops.
                    outcomes.send(Outcome::Named(cgroup, service)).await.ok();
                }
            });
        }
        self.consider(id, place);
    }

    /// Watches a cgroup when a rule wants it.
    fn consider(&mut self, id: u64, place: &Place) {
        if !self.services.contains_key(&place.service) {
            let wanted = |rule: &&Service| match (&rule.target, &*place.origin) {
                (Target::Unit(pattern), Origin::Unit(name)) => pattern.matches(name),
                (Target::Container(pattern), Origin::Container { .. }) => pattern.matches(&place.service),
                _ => false,
            };
            let Some(rule) = self.rules.iter().find(wanted).cloned() else { return };
            self.manage(Arc::clone(&place.service), &rule, None);
        }
        if let Err(error) = self.kernel.watch(id) {
            tracing::error!(service = %crate::text::Clean(&place.service), "its deaths may be lost in a storm: {error:#}");
        }
        let main = self.hierarchy.as_ref().map(|hierarchy| hierarchy.main_process(&place.path));
        if let Some(Ok(Some(process))) = main {
            self.step(&place.service, Input::Alive(process), clock::boot_ns());
        }
    }

    fn died(&mut self, death: &Death) {
        self.metrics.died(death);
        if matches!(death.cause, crate::diagnosis::Cause::OomKill(_)) {
            self.audit.counted += 1;
        }
        let Some(place) = &death.place else { return };
        let Some(managed) = self.services.get(&place.service) else { return };
        let is_main = match managed.engine.process() {
            Some(process) => process.matches(death.process),
            None => death.role == Some(Role::Main),
        };
        if !is_main {
            tracing::info!(service = %crate::text::Clean(&place.service), "a worker ({}) {}", death.comm, death.cause);
            return;
        }
        let service = Arc::clone(&place.service);
        let now = clock::boot_ns();
        self.timeline.say(death.kernel_ns, &service, What::Died);
        self.timeline.say(now, &service, What::Verdict(death.cause.to_string()));
        let label = self.metrics.label(&service);
        self.metrics
            .last_death
            .with_label_values(&[label])
            .set(clock::wall(death.kernel_ns).as_millisecond() as f64 / 1e3);
        self.step(&service, Input::Died { process: death.process, at_ns: death.kernel_ns }, now);
    }

    /// The second witness: a service's cgroup was empty, and its main process still counts as alive. Then the record of
    /// its death was lost.
    fn emptied(&mut self, service: &Arc<str>, at_ns: u64) {
        let process = self.services.get(service).and_then(|managed| managed.engine.process());
        if let Some(process) = process
            && process.start_ns < at_ns
            && !process::is_alive(process)
        {
            self.timeline.say(at_ns, service, What::Died);
            let now = clock::boot_ns();
            self.timeline.say(now, service, What::Verdict("unknown: the record of its death was lost".to_owned()));
            self.step(service, Input::Died { process, at_ns }, now);
        }
    }

    fn step(&mut self, service: &Arc<str>, input: Input, now: u64) {
        let Some(managed) = self.services.get_mut(service) else { return };
        let actions = managed.engine.step(input, &mut self.host_budget, now);
        let up = managed.engine.process().is_some();
        let label = self.metrics.label(service);
        self.metrics.up.with_label_values(&[label]).set(i64::from(up));
        for action in actions {
            self.act(service, action, now);
        }
    }

    fn act(&mut self, service: &Arc<str>, action: Action, now: u64) {
        let Some(managed) = self.services.get(service) else { return };
        let label = self.metrics.label(service);
        let say = |what: What| self.timeline.say(now, service, what);
        match action {
            Action::Open { .. } => self.metrics.incidents_open.with_label_values(&[label]).set(1),
            Action::Wait { until_ns, reason } => say(What::Waiting { until_ns, reason }),
            Action::Restart { attempt } => {
                say(What::RestartAsked { attempt });
                if let Some(supervisor) = managed.supervisor.clone() {
                    self.spawn(service, async move {
                        let result = supervisor.start().await.map_err(|error| format!("{error:#}"));
                        Input::Started { attempt, result }
                    });
                }
            }
            Action::Probe { process } => {
                say(What::Started { tgid: process.tgid });
                let health = managed.health.clone();
                self.spawn(service, async move {
                    let result = health::prove(&health, process).await.map_err(|error| format!("{error:#}"));
                    Input::Probed { process, result }
                });
            }
            Action::Suppress { reason } => {
                self.metrics.suppressed.with_label_values(&[label, reason]).inc();
                say(What::Suppressed(reason));
            }
            Action::Failed { reason } => {
                self.metrics.restarts.with_label_values(&[label, "failed"]).inc();
                say(What::Failed(reason));
            }
            Action::Close { outage_ns, by_us } => {
                self.metrics.incidents_open.with_label_values(&[label]).set(0);
                self.metrics.outage.with_label_values(&[label]).observe(outage_ns as f64 / 1e9);
                if by_us {
                    self.metrics.restarts.with_label_values(&[label, "ok"]).inc();
                }
                say(What::Healthy { outage_ns });
            }
        }
    }

    /// Runs `work` beside the steward; its input comes back in turn.
    fn spawn(&self, service: &Arc<str>, work: impl Future<Output = Input> + Send + 'static) {
        let (outcomes, service) = (self.outcomes.0.clone(), Arc::clone(service));
        tokio::spawn(async move {
            let input = work.await;
            // Nobody receives only when the agent stops.
            outcomes.send(Outcome::Input(service, input)).await.ok();
        });
    }
}

/// Holds our count of OOM kills against the kernel's own.
struct Audit {
    /// The kernel's count that ours began at; `None` where the kernel does not count.
    base: Option<u64>,
    counted: u64,
    /// The kernel's count at the last look: a kill that it has counted may still be on its way to us.
    last: u64,
    reported: u64,
}

impl Audit {
    fn begin() -> Self {
        let base =
            vmstat::oom_kills().inspect_err(|error| tracing::warn!("OOM kills cannot be audited: {error:#}")).ok();
        Self { base, counted: 0, last: base.unwrap_or(0), reported: 0 }
    }

    /// Kills that the kernel counted by the last look, that we have not seen, and that were not reported before.
    fn check(&mut self) -> u64 {
        let (Some(base), Ok(now)) = (self.base, vmstat::oom_kills()) else { return 0 };
        let due = self.last.saturating_sub(base);
        self.last = now;
        let missed = due.saturating_sub(self.counted + self.reported);
        self.reported += missed;
        if missed > 0 {
            tracing::error!(missed, "the kernel counted OOM kills that were not seen");
        }
        missed
    }
}

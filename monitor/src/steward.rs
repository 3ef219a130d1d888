//! The one task that owns observer and engines and takes every input in turn: events, log lines, answers, deadlines.
//!
//! Work that takes time (starting, proving health, asking for names, looking at processes) runs in tasks of its own and
//! comes back as an input. They end with the steward.
//!
//! * [`adopt`]: which services there are
//! * [`growth`]: their memory
//! * [`pictures`]: what was in their memory
//! * [`operators`]: what operators ask and tell
//! * [`planned`]: their planned restarts
//! * [`suspects`]: those that leak are traced
//! * [`pool`]: where services stand in their pools

mod adopt;
mod growth;
mod operators;
mod pictures;
mod planned;
mod pool;
mod suspects;

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use monitor_common::record::{MARK_THREAD_ONLY, Record};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    alert::{Alerts, Standing},
    attribution::{Place, Role},
    audit::{Audit, Wall},
    config::{Config, Health, Mode, Service},
    control::Command,
    diagnosis::{Cause, Question, Reply},
    enquiry::Enquiry,
    fleet::{self, Fleet},
    handover::Handover,
    healing::{Action, Input, Intent, Memory, Outcome, Policy},
    health::{self, Unproven},
    host::{
        cgroup::Hierarchy,
        clock,
        kmsg::OomLine,
        manager::Pulse,
        pressure,
        process::{self, Identity},
        systemd::Systemd,
    },
    incident::{self, Before, Book},
    kernel::{Event, Kernel, Origin},
    memory::{self, Follower, Measured},
    metrics::Metrics,
    observer::{Death, Observer, Sight},
    pool::{Board, Input as PoolInput, State},
    progress::Progress,
    roster::{Managed, Roster},
    shared::Shared,
    store::{Draft, Left, Store},
    supervisor::{End, Permit},
    text::Clean,
    timeline::{Timeline, What},
    trace,
};

use pictures::{Pictures, Seen};

pub(crate) use pictures::Kept;
pub(crate) use planned::Planned;
pub(crate) use pool::Pools;
pub(crate) use suspects::Traces;

/// Events handled before anything else gets a turn.
const BATCH: usize = 256;
/// Answers on their way. A task whose answer finds no room waits.
const WORDS: usize = 1024;
/// A death whose record has not come this long after its cgroup was empty will not come: twice what a verdict may wait.
const WORD_OF_DEATH: Duration = Duration::from_millis(200);
/// How often what we believe is held against what is: OOM kills counted, services alive.
const AUDIT_INTERVAL: Duration = Duration::from_secs(10);
/// Bytes of the critical ring whose records left nothing to write, before their room is given back.
const UNWRITTEN: u64 = 16 * 1024;
/// How long a restart waits until it is written down: committed within a millisecond or two on a disk that works.
const KEEPING: Duration = Duration::from_millis(100);

/// What comes back from a task.
enum Word {
    /// A supervisor's or a probe's answer, or a life that was found.
    Input(Arc<str>, Input),
    /// A container's cgroup and its name.
    Named(String, Arc<str>),
    /// Somebody's answer about a death.
    Replied(Identity, Reply),
    /// That incarnation is believed to live and does not; word of its death should have come by now.
    Lost(Arc<str>, Identity, u64),
    /// This process looks like the main process of a service that was believed to be down.
    Met(Arc<str>, Identity),
    /// A moment that was found out beside.
    Moment(Arc<str>, u64, What),
    /// Memory of services.
    Measured(Vec<Measured>),
    /// What comes to a service's member in its pool.
    Pool(Arc<str>, PoolInput),
    /// The answer to whether a service may be restarted ahead of time.
    Leave(Arc<str>, u32, Result<fleet::Permit, fleet::Refused>),
    /// Whether a unit would be brought back by systemd after an OOM kill.
    Covered(Arc<str>, bool),
    /// What a trace of a suspect found.
    Traced(Arc<str>, Result<trace::Summary, trace::NoTrace>),
    /// What was in memory. Boxed: it is many times the size of the others.
    Seen(Box<Seen>),
}

/// How far the reading of the rings is.
#[derive(Debug)]
pub(crate) struct Reading {
    /// Which records of the critical ring are settled.
    pub(crate) progress: Progress,
    /// The audit of OOM kills, begun before the programs were attached.
    pub(crate) audit: Audit,
    /// The rings hold what happened while no agent ran.
    pub(crate) took_over: bool,
}

/// See the module.
pub(crate) struct Steward {
    observer: Observer,
    hierarchy: Option<Arc<Hierarchy>>,
    kernel: Arc<Kernel>,
    handover: Handover,
    metrics: Metrics,
    timeline: Timeline,
    mode: Mode,
    /// Those of units and containers, which may come at any time.
    rules: Vec<Service>,
    roster: Roster,
    policies: Shared<Policy>,
    words: (mpsc::Sender<Word>, mpsc::Receiver<Word>),
    tasks: JoinSet<()>,
    /// The round of measurements that was last begun.
    measuring: Option<AbortHandle>,
    audit: Audit,
    wall: Wall,
    enquiry: Enquiry,
    systemd: Systemd,
    store: Store,
    /// What came of events since it was handed over last.
    draft: Draft,
    /// Which records of the critical ring are settled.
    progress: Progress,
    /// Up to where the store was told to give back their room.
    given_back: u64,
    /// When this agent took over the rings of an earlier one, CLOCK_BOOTTIME nanoseconds: what they tell of before may be long
    /// over.
    took_over_ns: Option<u64>,
    alerts: Alerts,
    book: Book,
    /// What an earlier agent knew of services that have not been met yet.
    left: HashMap<String, Memory>,
    /// The cgroups that it watched.
    cgroups: Vec<(u64, String, String)>,
    /// What it knew of their memory.
    followers: HashMap<String, Follower>,
    /// Between two samples of a service's memory for its trend.
    sample: Duration,
    pools: Pools,
    planned: Planned,
    traces: Traces,
    pictures: Pictures,
}

impl Steward {
    /// A steward that has seen nothing yet. The programs are attached by now, and `reading` began before that.
    pub(crate) fn new(
        config: &Config,
        hierarchy: Option<Hierarchy>,
        (kernel, handover): (Arc<Kernel>, Handover),
        (mut metrics, timeline, alerts, board): (Metrics, Timeline, Alerts, Arc<Board>),
        reading: Reading,
        (store, left): (Store, Left),
        fleet: Fleet,
    ) -> Self {
        metrics.restore_oom_kills(&left.oom_kills);
        metrics.own().attached(kernel.programs());
        let systemd = Systemd::default();
        Self {
            observer: Observer::new(hierarchy.clone()),
            hierarchy: hierarchy.map(Arc::new),
            kernel,
            handover,
            metrics,
            timeline,
            mode: config.agent.mode,
            rules: config.services(),
            roster: Roster::new(config.host_budget()),
            policies: Shared::default(),
            words: mpsc::channel(WORDS),
            tasks: JoinSet::new(),
            measuring: None,
            audit: reading.audit,
            wall: Wall::new(clock::lead_ns()),
            enquiry: Enquiry::new(systemd.clone()),
            systemd,
            store,
            draft: Draft::default(),
            given_back: reading.progress.low(),
            progress: reading.progress,
            took_over_ns: reading.took_over.then(clock::boot_ns),
            alerts,
            book: Book::new(left.open, left.next_id),
            left: left.services,
            cgroups: left.cgroups,
            followers: left.followers,
            sample: config.forecast.sample,
            pools: Pools::new(config.pool.clone(), board, left.pool.members),
            planned: Planned::new(fleet),
            traces: Traces::new(config),
            pictures: Pictures::new(&config.agent.state_dir, config.agent.mode, left.pictures),
        }
    }

    /// Number of known cgroups.
    pub(crate) fn cgroups(&self) -> usize {
        self.observer.cgroups()
    }

    /// Number of services that Defib looks after.
    pub(crate) fn services(&self) -> usize {
        self.roster.len()
    }

    /// What it does, for people who ask the service manager.
    pub(crate) fn summary(&self) -> String {
        format!("watching {} cgroups, looking after {} services", self.cgroups(), self.services())
    }

    /// Runs until the rings end, with a beat of `pulse` between two pieces of work.
    ///
    /// # Errors
    /// When nothing reads the rings any more.
    pub(crate) async fn run(
        &mut self,
        mut events: mpsc::Receiver<Event>,
        mut lines: mpsc::Receiver<OomLine>,
        mut commands: mpsc::Receiver<Command>,
        pulse: &mut Pulse,
    ) -> Result<()> {
        let enquiry = self.enquiry.clone();
        self.tasks.spawn(async move { enquiry.prepare().await });
        let mut batch = Vec::with_capacity(BATCH);
        let mut next_audit = Instant::now() + AUDIT_INTERVAL;
        let mut next_measurement = Instant::now();
        let mut views = self.pool_views();
        loop {
            pulse.beat(Instant::now(), || self.summary());
            let (deadline, next_beat) = (self.deadline(), pulse.next());
            tokio::select! {
                count = events.recv_many(&mut batch, BATCH) => {
                    ensure!(count > 0, "nobody reads the rings any more");
                    for event in batch.drain(..) {
                        self.event(&event);
                    }
                    self.metrics.sizes(self.observer.cgroups(), events.len());
                    self.metrics.own().evidence_lost(self.observer.losses());
                }
                Some(line) = lines.recv() => self.observer.line(line),
                Some(word) = self.words.1.recv() => self.word(word),
                Some(_) = self.tasks.join_next() => {}
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
                () = sleep_until(next_beat.unwrap_or_else(Instant::now)), if next_beat.is_some() => {}
                Ok(()) = views.changed() => self.pool_look_around(clock::boot_ns()),
                Some(command) = commands.recv() => self.command(command),
                () = sleep_until(next_measurement) => {
                    let interval = memory::interval(self.roster.len(), self.sample);
                    next_measurement = Instant::now() + interval;
                    self.measure(interval);
                }
                () = sleep_until(next_audit) => {
                    next_audit = Instant::now() + AUDIT_INTERVAL;
                    self.look_again();
                }
            }
            let now = clock::boot_ns();
            for death in self.observer.deaths(now) {
                self.died(&death);
            }
            for service in self.roster.due(now) {
                self.step(&service, Input::Tick, now);
            }
            for service in self.pools.due(now) {
                self.pool_step(&service, PoolInput::Tick, now);
            }
            for service in self.planned.due(now) {
                self.planned_look(&service, now);
            }
            for (id, place) in self.observer.take_discovered() {
                self.appeared(id, &place);
            }
            self.write_down();
        }
    }

    /// Tells what has not been said, for a clean end.
    pub(crate) async fn end(&mut self) {
        self.traces.stop().await;
        self.write_down();
        self.alerts.write_down();
        for (name, managed) in self.roster.iter() {
            self.store.keep_follower(name, managed.follower.clone());
        }
        self.store.close().await;
    }

    /// Takes back what was left for a next agent.
    pub(crate) fn leave_nothing(&self) {
        self.handover.end();
    }

    /// Hands to the store what came of the events so far: all of it is committed, or none, together with which records that
    /// settles.
    fn write_down(&mut self) {
        self.draft.incidents = self.book.take_changed();
        let low = self.progress.low();
        if self.draft.is_empty() {
            // Records of which nothing came that is kept; to read them again does no harm.
            if low.saturating_sub(self.given_back) < UNWRITTEN {
                return;
            }
        } else {
            self.draft.settling.account = Some(self.progress.account(self.audit.kept()));
        }
        self.draft.settling.low = Some(low);
        self.given_back = low;
        self.store.keep(std::mem::take(&mut self.draft));
    }

    /// Says a moment, and notes it in the service's record.
    fn say(&mut self, at_ns: u64, service: &Arc<str>, what: What) {
        if self.roster.get(service).is_some() {
            let (at, word, text) = (clock::wall(at_ns), what.word(), what.to_string());
            match what {
                What::Pool { state: State::In, .. } => self.book.returned(service, at, word, text),
                _ => self.book.note(service, at, word, text),
            }
        }
        self.timeline.say(at_ns, service, what);
    }

    /// The next moment at which something is due without an input.
    fn deadline(&self) -> Option<Instant> {
        let all = [
            self.roster.next_deadline(),
            self.observer.next_deadline(),
            self.pools.next_deadline(),
            self.planned.next_deadline(),
        ];
        let earliest = all.into_iter().flatten().min()?;
        Some(Instant::now() + Duration::from_nanos(earliest.saturating_sub(clock::boot_ns())))
    }

    fn event(&mut self, event: &Event) {
        // An earlier agent may have settled it.
        if event.span.is_some_and(|span| !self.progress.take(span)) {
            return;
        }
        let kills = self.sight(event);
        let Some(span) = event.span else { return };
        match &event.record {
            // With the death that it is evidence of.
            Record::OomMark(mark) => {
                let is_thread = mark.header.flags & MARK_THREAD_ONLY != 0;
                let process = if is_thread {
                    Identity { tgid: mark.victim.tid, start_ns: 0 }
                } else {
                    Identity { tgid: mark.victim.tgid, start_ns: mark.victim.start_ns }
                };
                self.progress.hold_mark(span, process, kills, clock::boot_ns());
            }
            Record::CrashSite(site) => {
                let process = Identity { tgid: site.tgid, start_ns: site.start_ns };
                self.progress.hold_site(span, process, clock::boot_ns());
            }
            // When it is decided.
            Record::Exit(_) if self.observer.has_taken(span) => {}
            Record::Exit(_) | Record::Life(_) | Record::Cgroup(_) => self.progress.settle(span),
        }
    }

    /// Tells all that it concerns. True when an OOM kill was counted for it: of the marks of one victim that is so for the first.
    fn sight(&mut self, event: &Event) -> bool {
        if let Record::Exit(exit) = &event.record {
            let process = Identity { tgid: exit.process.tgid, start_ns: exit.process.start_ns };
            self.pool_exited(process, clock::boot_ns());
        }
        match self.observer.event(event) {
            Some(Sight::Marked(marked)) => {
                // First of all: the victim is about to go.
                self.pictures_marked(&marked);
                self.metrics.detected(marked.kernel_ns, marked.seen_ns);
                if marked.kill_sent {
                    self.audit.saw_one();
                }
                if let Some(place) = &marked.place
                    && self.roster.get(&place.service).is_some()
                {
                    let service = Arc::clone(&place.service);
                    if marked.kill_sent {
                        self.pool_step(&service, PoolInput::Marked(marked.process), clock::boot_ns());
                    }
                    self.say(marked.kernel_ns, &service, What::Marked);
                }
                return marked.kill_sent;
            }
            // A worker that executes something is no new incarnation.
            Some(Sight::Alive { place, process, role: Some(Role::Main), exec: true, kernel_ns }) => {
                // While no agent ran, it may have come and gone.
                if self.took_over_ns.is_some_and(|took_over| kernel_ns < took_over) && !process::is_alive(process) {
                    return false;
                }
                self.introduce(&place.service, process, kernel_ns);
            }
            Some(Sight::Created { id, place }) => self.appeared(id, &place),
            Some(Sight::Asked { process, question }) => self.ask(process, question),
            Some(Sight::Emptied { place, kernel_ns }) => self.emptied(&place, kernel_ns),
            Some(Sight::Alive { .. }) | None => {}
        }
        false
    }

    fn word(&mut self, word: Word) {
        match word {
            Word::Input(service, input) => self.step(&service, input, clock::boot_ns()),
            Word::Named(cgroup, service) => {
                for (id, place) in self.observer.name(&cgroup, &service) {
                    self.consider(id, &place);
                }
            }
            Word::Replied(process, reply) => self.observer.reply(process, reply),
            Word::Lost(service, process, at_ns) => self.lost(&service, process, at_ns),
            Word::Met(service, process) => self.introduce(&service, process, clock::boot_ns()),
            Word::Moment(service, at_ns, what) => self.say(at_ns, &service, what),
            Word::Measured(measured) => self.measured(measured),
            Word::Pool(service, input) => self.pool_step(&service, input, clock::boot_ns()),
            Word::Leave(service, ticket, answer) => self.planned_answered(&service, ticket, answer),
            Word::Seen(seen) => self.pictures_seen(*seen),
            Word::Covered(service, covered) => self.metrics.covered(&service, covered),
            Word::Traced(service, result) => self.traced(&service, result),
        }
    }

    /// Asks somebody else about a death; the verdict waits for the answer, not for long.
    fn ask(&mut self, process: Identity, question: Question) {
        let output = match &question {
            Question::LastWords { place, .. } => {
                self.roster.get(&place.service).and_then(|managed| managed.supervisor.output())
            }
            Question::Systemd { .. } => None,
        };
        let (words, enquiry) = (self.words.0.clone(), self.enquiry.clone());
        self.tasks.spawn(async move {
            let reply = enquiry.ask(question, output).await;
            // Nobody receives only when the agent stops.
            words.send(Word::Replied(process, reply)).await.ok();
        });
    }

    fn main_process(&self, cgroup: &str) -> Option<Identity> {
        let found = self.hierarchy.as_ref()?.main_process(cgroup);
        found.inspect_err(|error| tracing::warn!("cannot look for a main process: {error:#}")).ok().flatten()
    }

    /// A process that looks like the main process of a service lives. Its supervisor knows whether it is; one that cannot be
    /// asked is believed to mean yes.
    fn introduce(&mut self, service: &Arc<str>, process: Identity, now: u64) {
        let Some(managed) = self.roster.get(service) else { return };
        let supervisor = Arc::clone(&managed.supervisor);
        if supervisor.is_main(process).is_none() || managed.process().is_some_and(|known| known.matches(process)) {
            self.step(service, Input::Alive(process), now);
            return;
        }
        let (words, service) = (self.words.0.clone(), Arc::clone(service));
        self.tasks.spawn(async move {
            let is_main = match supervisor.is_main(process) {
                Some(answer) => answer.await.unwrap_or(true),
                None => true,
            };
            if is_main {
                // Nobody receives only when the agent stops.
                words.send(Word::Input(service, Input::Alive(process))).await.ok();
            }
        });
    }

    fn died(&mut self, death: &Death) {
        let kill = self.metrics.died(death);
        self.draft.settling.oom_kills.extend(kill);
        self.progress.died(death.span, death.process, death.evidence.mark.as_ref().map(|mark| mark.tid));
        if let Cause::OomKill(oom) = &death.cause {
            // Its mark was one; it may have been lost, or the kernel may count it twice.
            let text = format!("{} (pid {}) {}", death.comm, death.process.tgid, death.cause);
            self.alerts.oom_kill(self.metrics.label_of(death), oom.scope, death.kernel_ns, &text);
            let by_its_mark = u64::from(oom.triggered_by.is_some());
            for _ in by_its_mark..oom.kernel_count {
                self.audit.saw_one();
            }
        }
        let Some(place) = &death.place else { return };
        let Some(managed) = self.roster.get(&place.service) else { return };
        let is_main = match managed.process() {
            Some(process) => process.matches(death.process),
            // One that ended well before it was known for the main process prepared something.
            None => {
                let is_known = managed.supervisor.is_main(death.process).is_none();
                death.role == Some(Role::Main) && (is_known || death.status != 0)
            }
        };
        if !is_main {
            // Not an outage; that a worker was killed for want of memory is worth a line all the same, and a record.
            match &death.cause {
                Cause::OomKill(_)
                | Cause::UserspaceOomKill { .. }
                | Cause::AppOomProbable { .. }
                | Cause::Crash { .. } => {
                    let text = format!("a worker ({}): {}", death.comm, death.cause);
                    tracing::info!(service = %Clean(&place.service), "{text}");
                    self.book.near_miss(&place.service, clock::wall(death.kernel_ns), text, record_of(death));
                    if death.cause.is_want_of_memory() {
                        self.pictures_for_death(&place.service, death.process, death.kernel_ns);
                    }
                }
                Cause::CleanExit | Cause::Exit { .. } | Cause::Stopped { .. } => {
                    tracing::debug!(service = %Clean(&place.service), "a worker ({}) {}", death.comm, death.cause);
                }
                cause => tracing::info!(service = %Clean(&place.service), "a worker ({}) {cause}", death.comm),
            }
            return;
        }
        let service = Arc::clone(&place.service);
        // A supervisor may have been faster, and a forking daemon's first process ends at once and well. What a failed one
        // leaves behind is no new incarnation.
        let is_new = |process: &Identity| death.status == 0 || process.begins_after(death.kernel_ns);
        if let Some(process) = self.main_process(&place.path).filter(is_new) {
            self.introduce(&service, process, clock::boot_ns());
        }
        let now = clock::boot_ns();
        self.say(death.kernel_ns, &service, What::Died);
        self.say(now, &service, What::Verdict(death.cause.to_string()));
        self.say(now, &service, What::Evidence(death.evidence.to_string()));
        self.book.death(&service, record_of(death));
        self.name_site(&service, death);
        self.metrics.last_died(&service, clock::wall(death.kernel_ns));
        let intent = match &death.cause {
            // A stop that systemd did not confirm in time is no more than likely: its plan will tell.
            cause @ Cause::Stopped { .. } if death.evidence.lacks_systemd() => Intent::Likely(cause.to_string()),
            cause @ Cause::Stopped { .. } => Intent::Certain(cause.to_string()),
            _ => Intent::None,
        };
        self.step(&service, Input::Died { process: death.process, at_ns: death.kernel_ns, intent }, now);
        if death.cause.is_want_of_memory() {
            self.pictures_for_death(&service, death.process, death.kernel_ns);
        }
    }

    /// Finds the names of a crash site, beside everything else.
    fn name_site(&mut self, service: &Arc<str>, death: &Death) {
        if death.cause.site().is_none() {
            return;
        }
        let (mut death, service, words) = (death.clone(), Arc::clone(service), self.words.0.clone());
        self.tasks.spawn(async move {
            death.name_site().await;
            if let Some(site) = death.cause.site() {
                let word = Word::Moment(service, clock::boot_ns(), What::CrashedAt(site.to_string()));
                // Nobody receives only when the agent stops.
                words.send(word).await.ok();
            }
        });
    }

    /// A service's cgroup has no process left. Should word of the main process's death be lost, this is a second witness.
    fn emptied(&mut self, place: &Place, kernel_ns: u64) {
        let Some(process) = self.roster.get(&place.service).and_then(Managed::process) else { return };
        let (words, service) = (self.words.0.clone(), Arc::clone(&place.service));
        self.tasks.spawn(async move {
            sleep(WORD_OF_DEATH).await;
            // Nobody receives only when the agent stops.
            words.send(Word::Lost(service, process, kernel_ns)).await.ok();
        });
    }

    /// That incarnation should be dead, and no record has said so.
    fn lost(&mut self, service: &Arc<str>, process: Identity, at_ns: u64) {
        let believed = self.roster.get(service).and_then(Managed::process);
        if believed == Some(process) && !process::is_alive(process) {
            let now = clock::boot_ns();
            self.say(at_ns, service, What::Died);
            self.say(now, service, What::Verdict("unknown: the record of its death was lost".to_owned()));
            // What would tell a stop from a failure is lost with the record: its supervisor has the word.
            let intent = Intent::Likely("nothing tells why it ended".to_owned());
            self.step(service, Input::Died { process, at_ns, intent }, now);
        }
    }

    /// Holds what we believe against what is.
    fn look_again(&mut self) {
        self.progress.tick(clock::boot_ns());
        self.attach_again();
        if let Some(step) = self.wall.step(clock::lead_ns()) {
            tracing::warn!("the wall clock was set by {:+.3} s; moments are told as it stands now", step as f64 / 1e9);
            self.metrics.own().clock_stepped();
        }
        let missed = self.audit.check();
        if missed > 0 {
            tracing::error!(missed, "the kernel counted OOM kills that were not seen");
            self.metrics.missed_oom_kills(missed);
        }
        let Some(hierarchy) = self.hierarchy.clone() else { return };
        let mut alive = Vec::new();
        let mut down = Vec::new();
        let now = clock::boot_ns();
        for (name, managed) in self.roster.iter() {
            // A pause runs out without a word.
            self.metrics.paused(name, managed.engine().paused_until(now).is_some());
            match managed.process() {
                Some(process) => alive.push((Arc::clone(name), process)),
                None if managed.is_left_alone() => down.push((Arc::clone(name), Arc::clone(&managed.cgroup))),
                None => {}
            }
        }
        let words = self.words.0.clone();
        // Thousands of small reads: not on the threads that take events.
        self.tasks.spawn(async move {
            let found =
                tokio::task::spawn_blocking(move || reconcile(&hierarchy, alive, down)).await.unwrap_or_default();
            if found.iter().any(|word| matches!(word, Word::Lost(..))) {
                // Its record may be waiting for its verdict.
                sleep(WORD_OF_DEATH).await;
            }
            for word in found {
                // Nobody receives only when the agent stops.
                words.send(word).await.ok();
            }
        });
    }

    /// Mends what somebody else has detached, and leaves it for the next agent once more.
    fn attach_again(&mut self) {
        for (program, mended) in self.kernel.attach_again() {
            let attached = mended.and_then(|link| self.handover.renew(link));
            match &attached {
                Ok(()) => tracing::error!("the program {program} was detached by somebody else, and is attached again"),
                Err(error) => tracing::error!("the program {program} was detached by somebody else: {error:#}"),
            }
            self.metrics.own().detached(program, attached.is_ok());
        }
        if !self.handover.is_whole(&self.kernel) {
            match self.handover.keep(&self.kernel, &Origin::TakenOver) {
                Ok(()) => tracing::warn!("somebody has removed pins of the kernel programs; they are there again"),
                Err(error) => tracing::error!("what happens while no agent runs will be lost: {error:#}"),
            }
            self.metrics.own().unpinned();
        }
    }

    fn step(&mut self, service: &Arc<str>, input: Input, now: u64) {
        let is_missing = input == Input::Missing;
        let actions = self.roster.step(service, input.clone(), now);
        self.pool_follow(service, &input, now);
        if is_missing && !actions.is_empty() {
            let cause_text = "it was not running when the agent started".to_owned();
            self.book.death(service, incident::Death { cause_text, ..incident::Death::default() });
        }
        if let Some(managed) = self.roster.get(service) {
            self.metrics.is_up(service, managed.process().is_some());
            self.metrics.circuit(service, managed.engine().is_circuit_open());
        }
        if let Some(memory) = self.roster.changed(service) {
            self.draft.services.insert(Arc::clone(service), memory);
        }
        for action in actions {
            self.act(service, action, now);
        }
        self.stands(service, now);
        self.planned_look(service, now);
    }

    /// Tells operators how a service stands.
    fn stands(&self, service: &Arc<str>, now: u64) {
        let Some(managed) = self.roster.get(service) else { return };
        let engine = managed.engine();
        let paused_until_ns = engine.paused_until(now);
        self.metrics.paused(service, paused_until_ns.is_some());
        self.alerts.stands(
            service,
            Standing {
                down_since_ns: engine.down_since(),
                cause: self.book.open_cause(service),
                circuit_open: engine.is_circuit_open(),
                paused_until_ns,
            },
        );
    }

    fn act(&mut self, service: &Arc<str>, action: Action, now: u64) {
        let Some(managed) = self.roster.get(service) else { return };
        match action {
            Action::Open { at_ns } => {
                self.metrics.outage_began(service);
                let before = Before {
                    memory: managed.recorder.samples(),
                    limit: managed.recorder.limit(),
                    foretold: Some(managed.follower.foretold()),
                };
                self.book.open(service, clock::wall(at_ns), before);
            }
            Action::Ask { question, died_ns, ours } => {
                let supervisor = Arc::clone(&managed.supervisor);
                self.spawn(service, async move {
                    let plan = supervisor.plan(End { died_ns, ours }).await.map_err(|error| format!("{error:#}"));
                    Input::Planned { question, plan, exhausted: pressure::exhausted() }
                });
            }
            Action::Wait { until_ns, reason, because } => {
                self.say(now, service, What::Waiting { until_ns, reason, because });
            }
            Action::Restart { attempt, because } => {
                let supervisor = Arc::clone(&managed.supervisor);
                self.say(now, service, What::RestartAsked { attempt, because });
                let permit = self.written_down();
                self.spawn(service, async move {
                    let result = supervisor.start(permit).await.map_err(|error| format!("{error:#}"));
                    Input::Started { attempt, result }
                });
            }
            Action::Renew { process, because } => {
                let supervisor = Arc::clone(&managed.supervisor);
                self.say(now, service, What::RenewalAsked(because));
                let permit = self.written_down();
                self.spawn(service, async move {
                    let result = supervisor.renew(process, permit).await.map_err(|error| format!("{error:#}"));
                    Input::RenewalEnded { result }
                });
            }
            Action::Renewed { down_ns } => self.planned_ended(service, Ok(down_ns), now),
            Action::NotRenewed { reason } => self.planned_ended(service, Err(reason), now),
            Action::Probe { process } => {
                let health = managed.health.clone();
                self.say(now, service, What::Started { tgid: process.tgid });
                self.probe(service, health, process, now);
            }
            Action::Suppress { reason, because } => {
                self.metrics.suppressed(service, reason);
                self.say(now, service, What::Suppressed { reason, because });
            }
            Action::Failed { reason } => {
                self.metrics.restart_failed(service);
                self.say(now, service, What::Failed(reason));
            }
            Action::Conclude { outcome, .. } => self.book.conclude(service, outcome),
            Action::Close { outage_ns, outcome } => {
                self.metrics.outage_ended(service, outage_ns, outcome);
                self.say(
                    now,
                    service,
                    match outcome {
                        Outcome::Intended => What::Over("it was meant to be down"),
                        _ => What::Healthy { outage_ns },
                    },
                );
                self.book.close(service, clock::wall(now), Duration::from_nanos(outage_ns), outcome);
            }
        }
    }

    /// Completes when all that was decided is written down: whoever comes after us must know of a restart before it can have
    /// happened. A disk that takes nothing must not keep a service down.
    fn written_down(&mut self) -> Permit {
        self.write_down();
        let kept = timeout(KEEPING, self.store.flush());
        Box::pin(async move { drop(kept.await) })
    }

    /// Has the health of an incarnation proven. One that is dead has a death of its own, which comes as such; should word of
    /// it be lost, this is the second witness.
    fn probe(&mut self, service: &Arc<str>, health: Health, process: Identity, now: u64) {
        let (words, service) = (self.words.0.clone(), Arc::clone(service));
        self.tasks.spawn(async move {
            let word = match health::prove(&health, process).await {
                Ok(()) => Word::Input(service, Input::Probed { process, result: Ok(()) }),
                Err(Unproven::Sick(error)) => {
                    let result = Err(format!("{error:#}"));
                    Word::Input(service, Input::Probed { process, result })
                }
                Err(Unproven::Dead) => {
                    sleep(WORD_OF_DEATH).await;
                    Word::Lost(service, process, now)
                }
            };
            // Nobody receives only when the agent stops.
            words.send(word).await.ok();
        });
    }

    /// Runs `work` beside the steward; its input comes back in turn.
    fn spawn(&mut self, service: &Arc<str>, work: impl Future<Output = Input> + Send + 'static) {
        let (words, service) = (self.words.0.clone(), Arc::clone(service));
        self.tasks.spawn(async move {
            let input = work.await;
            // Nobody receives only when the agent stops.
            words.send(Word::Input(service, input)).await.ok();
        });
    }
}

/// What an incident keeps of a death.
fn record_of(death: &Death) -> incident::Death {
    let value = |value: serde_json::Result<serde_json::Value>| value.unwrap_or_default();
    incident::Death {
        cause: value(serde_json::to_value(&death.cause)),
        cause_text: death.cause.to_string(),
        evidence: value(serde_json::to_value(death.evidence.items())),
        missing: value(serde_json::to_value(&death.evidence.missing)),
    }
}

/// Looks at the processes that are believed to live, and for those of services that are believed to be down.
fn reconcile(hierarchy: &Hierarchy, alive: Vec<(Arc<str>, Identity)>, down: Vec<(Arc<str>, Arc<str>)>) -> Vec<Word> {
    let now = clock::boot_ns();
    let lost = alive.into_iter().filter(|&(_, process)| !process::is_alive(process));
    let mut found: Vec<_> = lost.map(|(service, process)| Word::Lost(service, process, now)).collect();
    for (service, cgroup) in down {
        if let Ok(Some(process)) = hierarchy.main_process(&cgroup) {
            found.push(Word::Met(service, process));
        }
    }
    found
}

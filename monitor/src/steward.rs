//! The one task that owns observer and engines and takes every input in turn: events, log lines, answers, deadlines.
//!
//! Work that takes time (starting, proving health, asking for names, looking at processes) runs in tasks of its own and
//! comes back as an input. They end with the steward.
//!
//! * [`adopt`]: finds and adopts services
//! * [`claims`]: cgroups that their owners have not confirmed yet
//! * [`asking`]: questions to the journal, systemd and container engines
//! * [`deaths`]: handles deaths and new processes of services
//! * [`forget`]: services that their owner no longer knows
//! * [`healing`]: carries out the decisions of the services' engines
//! * [`reconcile`]: checks the state against the host
//! * [`growth`]: follows the memory of services
//! * [`looking`]: looks for the next main process of a command service
//! * [`pictures`]: pictures of the services' memory
//! * [`operators`]: questions and commands of operators
//! * [`planned`]: planned restarts
//! * [`suspects`]: traces of services that leak
//! * [`pool`]: states of services in their pools
//! * [`turns`]: reports of slow turns

mod adopt;
mod asking;
mod claims;
mod deaths;
mod forget;
mod growth;
mod healing;
mod looking;
mod operators;
mod pictures;
mod planned;
mod pool;
mod reconcile;
mod suspects;
mod turns;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use anyhow::{Result, ensure};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};

use crate::{
    alert::Alerts,
    attribution::Answer,
    audit::{Audit, Wall},
    config::{Config, Mode, Service},
    control::Command,
    diagnosis::Reply,
    enquiry::Enquiry,
    fleet::{self, Fleet},
    handover::Handover,
    healing::{Input, Memory, Policy},
    host::{cgroup::Hierarchy, clock, kmsg::OomLine, manager::Pulse, process::Identity, systemd::Systemd},
    incident::Book,
    kernel::{Event, Kernel},
    memory::{self, Follower, Measured},
    metrics::Metrics,
    observer::{Crashes, Observer},
    pool::{Board, Input as PoolInput, State},
    progress::Progress,
    questions::Asker,
    roster::Roster,
    shared::Shared,
    store::{Draft, Left, Store},
    symbols::Lookers,
    timeline::{Timeline, What},
    trace,
};

use asking::Asking;
use claims::Claims;
use looking::Looking;
use pictures::{Pictures, Seen};
use turns::Turns;

pub(crate) use pictures::Kept;
pub(crate) use planned::Planned;
pub(crate) use pool::Pools;
pub(crate) use suspects::Traces;

/// Events handled before anything else gets a turn.
const BATCH: usize = 256;
/// Answers on their way. A task whose answer finds no room waits.
const WORDS: usize = 1024;
/// A death whose record has not come this long after its cgroup was empty will not come: twice what a verdict may wait.
const WORD_OF_DEATH: Duration = Duration::from_secs(1);
/// How often what we believe is held against what is: OOM kills counted, services alive.
const AUDIT_INTERVAL: Duration = Duration::from_secs(10);
/// Bytes of the critical ring whose records left nothing to write, before their room is given back.
const UNWRITTEN: u64 = 16 * 1024;

/// What comes back from a task.
enum Word {
    /// A supervisor's or a probe's answer, or a life that was found.
    Input(Arc<str>, Input),
    /// The owner's answer about the cgroup at this path.
    Owner(Arc<str>, Answer),
    /// The owner does not know the service any more.
    Gone(Arc<str>),
    /// Cgroups that have gone without a removal record.
    Vanished(Vec<u64>),
    /// Somebody's answer about a death.
    Replied(Asker, Identity, Reply),
    /// systemd's plan for a unit.
    Meant(String, Reply),
    /// The main process of a service, as its owner names it.
    Main(Arc<str>, Option<Identity>),
    /// The main process that was found in a service's cgroup.
    Looked(Arc<str>, Option<Identity>),
    /// Where a process crashed.
    Sited(Asker, String),
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
    claims: Claims,
    /// Cgroups that the kernel programs had no room to watch, with the own cgroups of their services.
    unwatched: BTreeSet<(u64, u64)>,
    /// Watched cgroups that an earlier agent left and this one did not know at its start.
    unknown: BTreeSet<u64>,
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
    asking: Asking,
    looking: Looking,
    /// Running proofs of health and questions for plans, by service; a newer one aborts the older.
    probes: HashMap<Arc<str>, AbortHandle>,
    plans: HashMap<Arc<str>, AbortHandle>,
    /// The running check of state against the host.
    reconciling: Option<AbortHandle>,
    turns: Turns,
}

/// The input of one turn of the steward.
enum Came {
    Events(usize),
    Line(OomLine),
    Word(Word),
    Views,
    Command(Command),
    Measurement,
    Audit,
    /// A deadline, a beat, or the end of a task; due work is done after every input.
    Nothing,
}

impl Came {
    /// For the log.
    fn name(&self) -> &'static str {
        match self {
            Self::Events(_) => "records of the kernel",
            Self::Line(_) => "a line of the kernel's log",
            Self::Word(word) => word.name(),
            Self::Views => "the pool states that load balancers see",
            Self::Command(_) => "a command of an operator",
            Self::Measurement => "the start of a round of measurements",
            Self::Audit => "the check of state against the host",
            Self::Nothing => "a deadline",
        }
    }
}

impl Word {
    /// For the log.
    fn name(&self) -> &'static str {
        match self {
            Self::Input(..) => "the answer of a supervisor or a probe",
            Self::Owner(..) => "the answer of a cgroup's owner",
            Self::Gone(_) => "a service that has gone",
            Self::Vanished(_) => "cgroups that have gone",
            Self::Replied(..) | Self::Meant(..) => "an answer about a death",
            Self::Main(..) | Self::Looked(..) | Self::Met(..) => "a main process",
            Self::Sited(..) => "the names of a crash site",
            Self::Lost(..) => "a death without a record",
            Self::Moment(..) => "an event of a service's timeline",
            Self::Measured(_) => "measurements",
            Self::Pool(..) => "a member of a pool",
            Self::Leave(..) => "an answer about a planned restart",
            Self::Covered(..) => "the settings of a unit",
            Self::Traced(..) => "a trace",
            Self::Seen(_) => "a picture of memory",
        }
    }
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
        metrics.restore_oom_kills(&left.oom_kills, clock::boot_ns());
        metrics.own().attached(kernel.programs());
        let systemd = Systemd::default();
        let mut observer = Observer::new(hierarchy.clone());
        match kernel.stacks().and_then(Lookers::start) {
            Ok(lookers) => observer.look_by(lookers, Crashes::Watched),
            Err(error) => tracing::error!("crashes will lack their callers: {error:#}"),
        }
        Self {
            observer,
            hierarchy: hierarchy.map(Arc::new),
            kernel,
            handover,
            metrics,
            timeline,
            mode: config.agent.mode,
            rules: config.services(),
            roster: Roster::new(config.host_budget()),
            claims: Claims::default(),
            unwatched: BTreeSet::new(),
            unknown: BTreeSet::new(),
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
            asking: Asking::default(),
            looking: Looking::default(),
            probes: HashMap::new(),
            plans: HashMap::new(),
            reconciling: None,
            turns: Turns::default(),
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
            let came = tokio::select! {
                count = events.recv_many(&mut batch, BATCH) => Came::Events(count),
                Some(line) = lines.recv() => Came::Line(line),
                Some(word) = self.words.1.recv() => Came::Word(word),
                Some(_) = self.tasks.join_next() => Came::Nothing,
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Came::Nothing,
                () = sleep_until(next_beat.unwrap_or_else(Instant::now)), if next_beat.is_some() => Came::Nothing,
                Ok(()) = views.changed() => Came::Views,
                Some(command) = commands.recv() => Came::Command(command),
                () = sleep_until(next_measurement) => Came::Measurement,
                () = sleep_until(next_audit) => Came::Audit,
            };
            let (begin, about) = (Instant::now(), came.name());
            match came {
                Came::Events(count) => {
                    ensure!(count > 0, "nobody reads the rings any more");
                    for event in batch.drain(..) {
                        self.event(&event);
                    }
                    self.metrics.sizes(self.observer.cgroups(), events.len());
                    self.metrics.own().evidence_lost(self.observer.losses());
                }
                Came::Line(line) => self.observer.line(line),
                Came::Word(word) => self.word(word),
                Came::Views => self.pool_look_around(clock::boot_ns()),
                Came::Command(command) => self.command(command),
                Came::Measurement => {
                    let interval = memory::interval(self.roster.len(), self.sample);
                    next_measurement = Instant::now() + interval;
                    self.measure(interval);
                }
                Came::Audit => {
                    next_audit = Instant::now() + AUDIT_INTERVAL;
                    self.look_again();
                }
                Came::Nothing => {}
            }
            self.due();
            self.took(begin.elapsed(), about);
        }
    }

    /// Does what is due, after each input.
    fn due(&mut self) {
        let now = clock::boot_ns();
        for death in self.observer.deaths(now) {
            self.died(death);
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
        self.ask_owners(now);
        self.write_down();
    }

    /// Records that a turn about `about` has taken `time`.
    fn took(&mut self, time: Duration, about: &str) {
        self.metrics.own().turn(time);
        if let Some(unsaid) = self.turns.took(time, clock::boot_ns()) {
            let millis = time.as_millis();
            tracing::warn!(
                "nothing else was handled for {millis} ms: {about} took so long ({unsaid} more slow turns since the last line)"
            );
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
            self.claims.next_deadline(),
        ];
        let earliest = all.into_iter().flatten().min()?;
        Some(Instant::now() + Duration::from_nanos(earliest.saturating_sub(clock::boot_ns())))
    }

    fn word(&mut self, word: Word) {
        match word {
            Word::Input(service, input) => {
                // Drops the handle: it keeps the memory of the ended task.
                match input {
                    Input::Planned { .. } => drop(self.plans.remove(&service)),
                    Input::Probed { .. } => drop(self.probes.remove(&service)),
                    _ => {}
                }
                self.step(&service, input, clock::boot_ns());
            }
            Word::Owner(path, answer) => self.owner_answered(&path, answer, clock::boot_ns()),
            Word::Gone(service) => self.forget(&service),
            Word::Vanished(ids) => self.vanished(ids),
            Word::Replied(asker, process, reply) => self.replied(&asker, process, reply),
            Word::Meant(unit, reply) => self.meant(unit, &reply),
            Word::Main(service, main) => self.main_named(&service, main),
            Word::Looked(service, found) => self.looked(&service, found),
            Word::Sited(asker, site) => self.sited(&asker, site),
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
}

//! The metrics of the agent, on a registry that is handed in. Labels are bounded: no pid, no name that a process chose.

mod families;
mod own;
mod services;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use jiff::Timestamp;
use monitor_common::counter;
use prometheus::{
    CounterVec, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, core::Collector,
};

use crate::{
    attribution::{Origin, Place},
    diagnosis::{Cause, Scope},
    healing::{Outcome, renewal::Renewal},
    kernel::{Kernel, RingStats, SOURCES, Skipped},
    memory::forecast::{Forecast, Verdict},
    observer::Death,
    pool::State,
    store::Store,
};
use families::Of;
pub(crate) use own::OwnMetrics;
use services::Row;
pub(crate) use services::Table;

/// The label of services beyond the cap, and of all that has no stable name (sessions, plain cgroups).
const OTHER: &str = "other";

/// All metrics that the steward keeps.
pub(crate) struct Metrics {
    own: OwnMetrics,
    missed: IntCounter,
    detection: Histogram,
    cgroups: IntGauge,
    queue: IntGauge,
    table: Arc<Table>,
    /// The services that have a label of their own.
    known: HashMap<Arc<str>, Known>,
    /// All others together.
    other: Arc<Row>,
    cap: usize,
}

/// A service with its own label.
struct Known {
    row: Arc<Row>,
    /// True when Defib manages it.
    is_managed: bool,
    /// When one of its events was last counted, CLOCK_BOOTTIME nanoseconds.
    counted_ns: u64,
}

/// A service that Defib does not manage keeps its label this long after its last death, nanoseconds: 6 h.
const FORGOTTEN_NS: u64 = 6 * 3600 * 1_000_000_000;
/// The same when labels are scarce: 10 min, more than two scrapes at the usual intervals.
const SCARCE_NS: u64 = 600 * 1_000_000_000;

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> Result<C> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
}

impl Metrics {
    /// Registers everything; at most `cap` services get a label of their own.
    pub(crate) fn new(registry: &Registry, cap: usize) -> Result<Self> {
        let build =
            Opts::new("defib_build_info", "What is running: version, commit, and the kernel programs' sources.")
                .const_label("version", env!("CARGO_PKG_VERSION"))
                .const_label("commit", env!("DEFIB_GIT_COMMIT"))
                .const_label("ebpf_sources", SOURCES);
        register(registry, IntGauge::with_opts(build)?)?.set(1);
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;

        // Detection: from the 10 µs of an idle machine to the second of a stalled one.
        let detection = HistogramOpts::new("defib_detection_seconds", "Kernel hook to user space, for each death.")
            .buckets(vec![2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.1, 1.0]);
        let table = Arc::new(Table::new());
        Ok(Self {
            own: OwnMetrics::new(registry)?,
            missed: register(
                registry,
                IntCounter::new(
                    "defib_oom_audit_missed_total",
                    "OOM kills in /proc/vmstat that the agent did not see.",
                )?,
            )?,
            detection: register(registry, Histogram::with_opts(detection)?)?,
            cgroups: register(registry, IntGauge::new("defib_cgroups", "Cgroups known to the agent.")?)?,
            queue: register(registry, IntGauge::new("defib_event_queue_length", "Events read and not yet handled.")?)?,
            other: table.add(OTHER),
            table,
            known: HashMap::new(),
            cap,
        })
    }

    /// How the agent itself is.
    pub(crate) fn own(&self) -> &OwnMetrics {
        &self.own
    }

    /// The series of services, for whoever scrapes.
    pub(crate) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table)
    }

    /// Gives a service its series, at 0, so that the first death is an increase. Beyond the cap it shares `other`.
    fn add_service(&mut self, service: &Arc<str>, now_ns: u64) {
        if let Some(known) = self.known.get_mut(service) {
            known.counted_ns = now_ns;
            return;
        }
        if self.known.len() >= self.cap && !self.make_room(now_ns) {
            return;
        }
        let known = Known { row: self.table.add(service), is_managed: false, counted_ns: now_ns };
        self.known.insert(Arc::clone(service), known);
    }

    /// Removes the label of a service without recent events; false when there is none.
    fn make_room(&mut self, now_ns: u64) -> bool {
        let others = self.known.iter().filter(|(_, known)| !known.is_managed);
        let quiet = others.min_by_key(|(_, known)| known.counted_ns);
        let quiet = quiet.filter(|(_, known)| now_ns.saturating_sub(known.counted_ns) >= SCARCE_NS);
        let Some(service) = quiet.map(|(service, _)| Arc::clone(service)) else { return false };
        self.forget(&service);
        true
    }

    /// Removes the series of a service that has gone.
    pub(crate) fn forget(&mut self, service: &str) {
        if let Some(known) = self.known.remove(service) {
            self.table.remove(&known.row);
        }
    }

    /// Removes the series of services without events for long, except those that Defib manages.
    pub(crate) fn forget_quiet(&mut self, now_ns: u64) {
        let is_quiet = |known: &Known| !known.is_managed && now_ns.saturating_sub(known.counted_ns) >= FORGOTTEN_NS;
        for (_, known) in self.known.extract_if(|_, known| is_quiet(known)) {
            self.table.remove(&known.row);
        }
    }

    /// The series of a service that Defib looks after; those are as many as the configuration wants, whatever the cap.
    pub(crate) fn add_managed(&mut self, service: &Arc<str>) {
        let known = self.known.entry(Arc::clone(service)).or_insert_with(|| Known {
            row: self.table.add(service),
            is_managed: true,
            counted_ns: 0,
        });
        known.is_managed = true;
        known.row.manage();
    }

    /// Says whether a service that Defib looks after is up.
    pub(crate) fn is_up(&self, service: &str, up: bool) {
        self.flag(service, Of::Up, up);
    }

    /// Says whether its circuit is open.
    pub(crate) fn circuit(&self, service: &str, open: bool) {
        self.flag(service, Of::CircuitOpen, open);
    }

    /// Says whether operators want silence about it.
    pub(crate) fn paused(&self, service: &str, paused: bool) {
        self.flag(service, Of::Paused, paused);
    }

    /// Says whether systemd would bring a unit back after an OOM kill.
    pub(crate) fn covered(&self, service: &str, covered: bool) {
        self.flag(service, Of::Covered, covered);
    }

    /// Says what it uses; bytes.
    pub(crate) fn memory(&self, service: &str, bytes: u64, limit: Option<u64>) {
        let row = self.row(service);
        self.table.set(row, Of::Memory, bytes as f64);
        self.table.set(row, Of::MemoryLimit, limit.unwrap_or(0) as f64);
    }

    /// Says what is foreseen for its memory.
    pub(crate) fn forecast(&self, service: &str, forecast: &Forecast) {
        let row = self.row(service);
        self.table.set(row, Of::Growth, forecast.growth_bytes_per_hour.unwrap_or(0.0));
        let eta = forecast.exhausted_in_seconds.or(forecast.time_to_oom_seconds);
        self.table.set(row, Of::OomEta, eta.unwrap_or(f64::INFINITY));
        for verdict in Verdict::ALL {
            self.table.set_with(row, Of::Leak, verdict.as_str(), number(verdict == forecast.verdict));
        }
    }

    /// Says where it stands in its pool.
    pub(crate) fn pool_moved(&self, service: &str, to: State) {
        let row = self.row(service);
        for state in State::ALL {
            self.table.set_with(row, Of::PoolState, state.as_str(), number(state == to));
        }
        self.table.count_with(row, Of::PoolMoves, to.as_str());
    }

    /// It should have drained, and was the last that could serve.
    pub(crate) fn pool_kept(&self, service: &str) {
        self.table.count(self.row(service), Of::PoolKept);
    }

    /// A planned restart has ended.
    pub(crate) fn renewed(&self, service: &str, how: Renewal) {
        self.table.count_with(self.row(service), Of::Renewals, how.as_str());
    }

    /// Says when it died.
    pub(crate) fn last_died(&self, service: &str, at: Timestamp) {
        self.table.set(self.row(service), Of::LastDeath, at.as_millisecond() as f64 / 1e3);
    }

    /// An outage began. What was foreseen of its memory was foreseen of the incarnation that is dead.
    pub(crate) fn outage_began(&self, service: &str) {
        let row = self.row(service);
        self.table.set(row, Of::IncidentsOpen, 1.0);
        self.table.set(row, Of::OomEta, f64::INFINITY);
    }

    /// It ended, by a restart of ours, by somebody else's, or because it was meant.
    pub(crate) fn outage_ended(&self, service: &str, outage_ns: u64, outcome: Outcome) {
        let row = self.row(service);
        self.table.set(row, Of::IncidentsOpen, 0.0);
        if outcome == Outcome::Intended {
            return;
        }
        self.table.outage(row, outage_ns as f64 / 1e9);
        if outcome == Outcome::Restarted {
            self.table.count_with(row, Of::Restarts, "ok");
        }
    }

    /// A restart of ours failed.
    pub(crate) fn restart_failed(&self, service: &str) {
        self.table.count_with(self.row(service), Of::Restarts, "failed");
    }

    /// Defib decided against a restart.
    pub(crate) fn suppressed(&self, service: &str, reason: &str) {
        self.table.count_with(self.row(service), Of::Suppressed, reason);
    }

    /// The label value of a death's service.
    pub(crate) fn label_of<'a>(&self, death: &'a Death) -> &'a str {
        death.place.as_ref().map_or(OTHER, |place| self.label(&place.service))
    }

    /// The label value of a service.
    fn label<'a>(&self, service: &'a str) -> &'a str {
        if self.known.contains_key(service) { service } else { OTHER }
    }

    fn row(&self, service: &str) -> &Row {
        self.known.get(service).map_or(&self.other, |known| &known.row)
    }

    fn flag(&self, service: &str, of: Of, is: bool) {
        self.table.set(self.row(service), of, number(is));
    }

    /// Goes on with the OOM kills that an earlier agent has counted.
    pub(crate) fn restore_oom_kills(&mut self, counted: &[(String, String, u64)], now_ns: u64) {
        for (service, scope, kills) in counted {
            if service != OTHER {
                self.add_service(&service.as_str().into(), now_ns);
            }
            let is_known = service == OTHER || self.known.contains_key(service.as_str());
            // One without a label of its own has no series to go on with; that of the others has its own count.
            if let Some(scope) = Scope::LABELS.into_iter().find(|label| label == scope).filter(|_| is_known) {
                self.table.count_from(self.row(service), Of::OomKills, scope, *kills);
            }
        }
    }

    /// Counts a death. Units and containers get a label when they first die, within the cap. An OOM kill's labels, and how many
    /// there were with them.
    pub(crate) fn died(&mut self, death: &Death) -> Option<((Arc<str>, &'static str), u64)> {
        if let Some(place) = &death.place
            && has_stable_name(place)
        {
            self.add_service(&place.service, death.decided_ns);
        }
        let row = death.place.as_ref().map_or(&*self.other, |place| self.row(&place.service));
        self.table.count_with(row, Of::Deaths, death.cause.kind());
        self.detected(death.kernel_ns, death.seen_ns);
        let Cause::OomKill(oom) = &death.cause else { return None };
        let scope = Scope::label(oom.scope);
        let total = self.table.count_with(row, Of::OomKills, scope);
        Some(((self.label_of(death).into(), scope), total))
    }

    /// Notes how long a record took to user space.
    pub(crate) fn detected(&self, kernel_ns: u64, seen_ns: u64) {
        self.detection.observe(seen_ns.saturating_sub(kernel_ns) as f64 / 1e9);
    }

    /// Notes OOM kills that the kernel counted and the agent did not see.
    pub(crate) fn missed_oom_kills(&self, count: u64) {
        self.missed.inc_by(count);
    }

    /// Notes the agent's own sizes.
    pub(crate) fn sizes(&self, cgroups: usize, queued: usize) {
        self.cgroups.set(i64::try_from(cgroups).unwrap_or(i64::MAX));
        self.queue.set(i64::try_from(queued).unwrap_or(i64::MAX));
    }
}

/// Values of the label `ring` for events that preempted programs were skipped for, in the order of [`Skipped`].
const PREEMPTED: [&str; 4] = ["preempted", "preempted_life", "preempted_cgroup", "preempted_evidence"];

/// What the kernel counts, brought up to date before each scrape.
pub(crate) struct KernelMetrics {
    exits: IntCounterVec,
    records: IntCounterVec,
    lost: IntCounterVec,
    run_seconds: CounterVec,
    runs: IntCounterVec,
    log_lines_lost: IntCounter,
    unsettled: IntCounter,
    late: IntCounterVec,
    /// One at a time: two scrapes that raise a counter to the same total would raise it twice.
    refreshing: Mutex<()>,
}

impl KernelMetrics {
    /// Registers everything.
    pub(crate) fn new(registry: &Registry) -> Result<Self> {
        let run_seconds = Opts::new(
            "defib_bpf_run_seconds_total",
            "Time spent in each kernel program while kernel.bpf_stats_enabled is 1.",
        );
        let metrics = Self {
            exits: counters(
                registry,
                "defib_process_exits_total",
                "Processes ended on this host since the kernel programs were loaded, counted there.",
                &["outcome"],
            )?,
            records: counters(
                registry,
                "defib_records_read_total",
                "Records that came through each ring: critical (OOM kills and watched services), bulk (other abnormal deaths).",
                &["ring"],
            )?,
            lost: counters(
                registry,
                "defib_events_lost_total",
                "Records that found no room in a ring (critical, bulk), gave way to others (routine) or were malformed; upper bounds of events for which the kernel skipped a preempted program: deaths (preempted), execs and forks (preempted_life), cgroups (preempted_cgroup), signals and other evidence (preempted_evidence).",
                &["ring"],
            )?,
            run_seconds: register(registry, CounterVec::new(run_seconds, &["program"])?)?,
            runs: counters(
                registry,
                "defib_bpf_runs_total",
                "Runs of each kernel program while kernel.bpf_stats_enabled is 1.",
                &["program"],
            )?,
            log_lines_lost: register(
                registry,
                IntCounter::new(
                    "defib_log_lines_lost_total",
                    "Log lines dropped because nobody took them fast enough.",
                )?,
            )?,
            unsettled: register(
                registry,
                IntCounter::new(
                    "defib_records_unsettled_total",
                    "Times that room in the critical ring was needed before what came of its records was written down; a crash of the agent right then would lose them.",
                )?,
            )?,
            late: counters(
                registry,
                "defib_records_late_total",
                "Times that records lay in a ring for up to a second, because word of them had not woken the agent.",
                &["ring"],
            )?,
            refreshing: Mutex::new(()),
        };
        for ring in ["critical", "bulk"] {
            metrics.late.with_label_values(&[ring]);
        }
        for outcome in ["clean", "error", "signal", "oom"] {
            metrics.exits.with_label_values(&[outcome]);
        }
        for ring in ["critical", "bulk", "routine", "malformed"].into_iter().chain(PREEMPTED) {
            metrics.lost.with_label_values(&[ring]);
        }
        Ok(metrics)
    }

    /// Reads the kernel's counters, and those of the readers of both rings, the critical one first.
    pub(crate) fn refresh(&self, kernel: &Kernel, rings: [&RingStats; 2], log_lines_lost: u64) -> Result<()> {
        let _alone = self.refreshing.lock().unwrap_or_else(PoisonError::into_inner);
        self.log_lines_lost.inc_by(log_lines_lost.saturating_sub(self.log_lines_lost.get()));
        let now = kernel.counters()?;
        let at = |slot: u32| now[slot as usize];
        for (label, slot) in [
            ("clean", counter::EXIT_CLEAN),
            ("error", counter::EXIT_ERROR),
            ("signal", counter::EXIT_SIGNAL),
            ("oom", counter::EXIT_OOM),
        ] {
            raise(&self.exits, label, at(slot));
        }
        raise(&self.lost, "critical", at(counter::LOST_CRITICAL));
        raise(&self.lost, "bulk", at(counter::LOST_BULK));
        raise(&self.lost, "routine", at(counter::LOST_ROUTINE));
        raise(&self.lost, "malformed", rings.iter().map(|ring| ring.malformed()).sum());
        for (label, ring) in ["critical", "bulk"].into_iter().zip(rings) {
            raise(&self.records, label, ring.records());
            raise(&self.late, label, ring.overslept());
        }
        let given_up: u64 = rings.iter().map(|ring| ring.given_up()).sum();
        self.unsettled.inc_by(given_up.saturating_sub(self.unsettled.get()));
        let costs = kernel.costs()?;
        let Skipped { exits, lives, cgroups, evidence } = Skipped::of(&costs);
        for (label, skipped) in PREEMPTED.into_iter().zip([exits, lives, cgroups, evidence]) {
            raise(&self.lost, label, skipped);
        }
        for program in costs {
            raise(&self.runs, program.name, program.runs);
            let seconds = self.run_seconds.with_label_values(&[program.name]);
            seconds.inc_by((program.time.as_secs_f64() - seconds.get()).max(0.0));
        }
        Ok(())
    }
}

/// Whether the configuration that was read last is the one in use.
#[derive(Clone, Debug)]
pub(crate) struct Reloads {
    ok: IntGauge,
    at: Gauge,
}

impl Reloads {
    /// It is: the agent begins with it.
    pub(crate) fn new() -> Result<Self> {
        let ok = IntGauge::new(
            "defib_config_reload_success",
            "1 when the configuration that was read last is in use, 0 when it was wrong and an older one is.",
        )?;
        let at = Gauge::new(
            "defib_config_reload_success_timestamp_seconds",
            "When the configuration in use was read, Unix time.",
        )?;
        ok.set(1);
        at.set(Timestamp::now().as_millisecond() as f64 / 1e3);
        Ok(Self { ok, at })
    }

    /// Registers everything.
    pub(crate) fn register(&self, registry: &Registry) -> Result<()> {
        register(registry, self.ok.clone())?;
        register(registry, self.at.clone()).map(drop)
    }

    /// One that was wrong was read.
    pub(crate) fn refused(&self) {
        self.ok.set(0);
    }
}

/// What the store counts, brought up to date before each scrape.
pub(crate) struct StoreMetrics {
    ok: IntGauge,
    failed: IntCounter,
    dropped: IntCounter,
}

impl StoreMetrics {
    /// Registers everything.
    pub(crate) fn new(registry: &Registry) -> Result<Self> {
        let counter = |name, help| register(registry, IntCounter::new(name, help)?);
        Ok(Self {
            ok: register(
                registry,
                IntGauge::new("defib_store_ok", "1 while state and incidents are on disk, 0 while only in memory.")?,
            )?,
            failed: counter(
                "defib_store_write_errors_total",
                "Writes of state and incidents that failed; each is tried again.",
            )?,
            dropped: counter(
                "defib_incidents_dropped_total",
                "Incidents that were lost because they could not be written.",
            )?,
        })
    }

    /// Reads the store's counts.
    pub(crate) fn refresh(&self, store: &Store) {
        let (failed, dropped) = store.losses();
        self.ok.set(i64::from(store.trouble().is_none()));
        self.failed.inc_by(failed.saturating_sub(self.failed.get()));
        self.dropped.inc_by(dropped.saturating_sub(self.dropped.get()));
    }
}

fn number(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// Brings a counter up to a total that is kept elsewhere.
fn raise(counters: &IntCounterVec, label: &str, total: u64) {
    let counter = counters.with_label_values(&[label]);
    counter.inc_by(total.saturating_sub(counter.get()));
}

/// Sessions, transient and users' units, unnamed containers and plain cgroups come and go under ever new names; labels for
/// them would never end.
fn has_stable_name(place: &Place) -> bool {
    match &*place.origin {
        Origin::Unit(name) => name.ends_with(".service") && !name.starts_with("run-") && !name.starts_with("user@"),
        Origin::Container { .. } => place.is_named(),
        Origin::Cgroup => false,
    }
}

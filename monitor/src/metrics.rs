//! The metrics of the agent, on a registry that is handed in. Labels are bounded: no pid, no name that a process chose.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use jiff::Timestamp;
use monitor_common::counter;
use prometheus::{
    CounterVec, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, core::Collector,
};

use crate::{
    attribution::{Origin, Place},
    diagnosis::{Cause, Scope},
    healing::{Action, Outcome, renewal::Renewal},
    kernel::{Kernel, SOURCES},
    memory::forecast::{Forecast, Verdict},
    observer::Death,
    pool::State,
    store::Store,
};

/// The label of services beyond the cap, and of all that has no stable name (sessions, plain cgroups).
const OTHER: &str = "other";

/// All metrics, and what is needed to keep them.
pub(crate) struct Metrics {
    oom_kills: IntCounterVec,
    deaths: IntCounterVec,
    missed: IntCounter,
    detection: Histogram,
    cgroups: IntGauge,
    queue: IntGauge,
    up: IntGaugeVec,
    last_death: GaugeVec,
    restarts: IntCounterVec,
    suppressed: IntCounterVec,
    outage: HistogramVec,
    incidents_open: IntGaugeVec,
    circuit_open: IntGaugeVec,
    paused: IntGaugeVec,
    covered: IntGaugeVec,
    memory: IntGaugeVec,
    memory_limit: IntGaugeVec,
    growth: GaugeVec,
    oom_eta: GaugeVec,
    leak: IntGaugeVec,
    pool_state: IntGaugeVec,
    pool_moves: IntCounterVec,
    pool_kept: IntCounterVec,
    renewals: IntCounterVec,
    services: Services,
}

/// The services that have a label of their own.
struct Services {
    known: HashSet<Arc<str>>,
    cap: usize,
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> Result<C> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
    register(registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

fn float_gauges(registry: &Registry, name: &str, help: &str) -> Result<GaugeVec> {
    register(registry, GaugeVec::new(Opts::new(name, help), &["service"])?)
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
        // Outages: from a restart without grace to the eleven minutes of the incident this was written for.
        let outage = HistogramOpts::new("defib_outage_seconds", "Death of a service to its proven health.")
            .buckets(vec![0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 660.0, 1800.0]);
        let metrics = Self {
            oom_kills: counters(
                registry,
                "defib_oom_kills_total",
                "Processes killed by the kernel for want of memory.",
                &["service", "scope"],
            )?,
            deaths: counters(registry, "defib_deaths_total", "Deaths with their cause.", &["service", "cause"])?,
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
            up: gauges(registry, "defib_service_up", "1 while the service lives, 0 while it does not.", &["service"])?,
            last_death: register(
                registry,
                GaugeVec::new(
                    Opts::new(
                        "defib_service_last_death_timestamp_seconds",
                        "Last death of the service, Unix time; 0: none.",
                    ),
                    &["service"],
                )?,
            )?,
            restarts: counters(registry, "defib_restarts_total", "Restarts by Defib.", &["service", "result"])?,
            suppressed: counters(
                registry,
                "defib_restart_suppressed_total",
                "Restarts that Defib decided against.",
                &["service", "reason"],
            )?,
            outage: register(registry, HistogramVec::new(outage, &["service"])?)?,
            incidents_open: gauges(registry, "defib_incidents_open", "Outages that are not over.", &["service"])?,
            circuit_open: gauges(
                registry,
                "defib_circuit_open",
                "1 while restarts are only tried now and then, because the budget is spent.",
                &["service"],
            )?,
            paused: gauges(
                registry,
                "defib_service_paused",
                "1 while operators want no restarts and no alerts (see defib pause).",
                &["service"],
            )?,
            covered: gauges(
                registry,
                "defib_unit_oom_restart_covered",
                "1 when systemd would bring the unit back after an OOM kill, 0 when it would stay dead (see defib audit).",
                &["service"],
            )?,
            memory: gauges(
                registry,
                "defib_service_memory_bytes",
                "Memory of the service that no reclaim frees, swap included.",
                &["service"],
            )?,
            memory_limit: gauges(
                registry,
                "defib_service_memory_limit_bytes",
                "The least memory limit above the service; 0: none.",
                &["service"],
            )?,
            growth: float_gauges(
                registry,
                "defib_service_memory_growth_bytes_per_hour",
                "Growth of its memory with uptime, over all its incarnations.",
            )?,
            oom_eta: float_gauges(
                registry,
                "defib_service_oom_eta_seconds",
                "Time until its memory runs out if it is not restarted; +Inf: not foreseen.",
            )?,
            leak: gauges(
                registry,
                "defib_service_leak",
                "1 for what holds of its memory: leak, masked_leak (only restarts keep it alive), steady, insufficient (too little was seen).",
                &["service", "verdict"],
            )?,
            pool_state: gauges(
                registry,
                "defib_pool_state",
                "1 for where the service stands in its pool: in, draining, out.",
                &["service", "state"],
            )?,
            pool_moves: counters(
                registry,
                "defib_pool_moves_total",
                "Moves of the service in its pool, by where to.",
                &["service", "state"],
            )?,
            pool_kept: counters(
                registry,
                "defib_pool_kept_total",
                "Times that the service should have drained and was the last that could serve.",
                &["service"],
            )?,
            renewals: counters(
                registry,
                "defib_planned_restarts_total",
                "Restarts ahead of time by Defib: ok, failed (what comes next are restarts), called_off before the end was asked for.",
                &["service", "result"],
            )?,
            services: Services { known: HashSet::new(), cap },
        };
        metrics.start_series(OTHER);
        Ok(metrics)
    }

    /// Gives a service its series, at 0, so that the first death is an increase. Beyond the cap it shares `other`.
    pub(crate) fn add_service(&mut self, service: &Arc<str>) {
        if self.services.known.contains(service) || self.services.known.len() >= self.services.cap {
            return;
        }
        self.services.known.insert(Arc::clone(service));
        self.start_series(service);
    }

    /// The series of a service that Defib looks after; those are as many as the configuration wants, whatever the cap.
    pub(crate) fn add_managed(&mut self, service: &Arc<str>) {
        if self.services.known.insert(Arc::clone(service)) {
            self.start_series(service);
        }
        let label = self.label(service);
        self.up.with_label_values(&[label]).set(0);
        self.last_death.with_label_values(&[label]).set(0.0);
        self.incidents_open.with_label_values(&[label]).set(0);
        self.circuit_open.with_label_values(&[label]).set(0);
        self.paused.with_label_values(&[label]).set(0);
        self.outage.with_label_values(&[label]);
        self.memory.with_label_values(&[label]).set(0);
        self.memory_limit.with_label_values(&[label]).set(0);
        for state in State::ALL {
            self.pool_state.with_label_values(&[label, state.as_str()]).set(0);
            self.pool_moves.with_label_values(&[label, state.as_str()]);
        }
        self.pool_kept.with_label_values(&[label]);
        for how in Renewal::ALL {
            self.renewals.with_label_values(&[label, how.as_str()]);
        }
        for result in ["ok", "failed"] {
            self.restarts.with_label_values(&[label, result]);
        }
        for reason in Action::SUPPRESSED {
            self.suppressed.with_label_values(&[label, reason]);
        }
    }

    fn start_series(&self, label: &str) {
        for scope in ["memcg", "global", "cpuset", "sysrq", "unknown"] {
            self.oom_kills.with_label_values(&[label, scope]);
        }
        for kind in Cause::KINDS {
            self.deaths.with_label_values(&[label, kind]);
        }
    }

    /// Says whether a service that Defib looks after is up.
    pub(crate) fn is_up(&self, service: &str, up: bool) {
        self.up.with_label_values(&[self.label(service)]).set(i64::from(up));
    }

    /// Says whether its circuit is open.
    pub(crate) fn circuit(&self, service: &str, open: bool) {
        self.circuit_open.with_label_values(&[self.label(service)]).set(i64::from(open));
    }

    /// Says whether operators want silence about it.
    pub(crate) fn paused(&self, service: &str, paused: bool) {
        self.paused.with_label_values(&[self.label(service)]).set(i64::from(paused));
    }

    /// Says whether systemd would bring a unit back after an OOM kill.
    pub(crate) fn covered(&self, service: &str, covered: bool) {
        self.covered.with_label_values(&[self.label(service)]).set(i64::from(covered));
    }

    /// Says what it uses; bytes.
    pub(crate) fn memory(&self, service: &str, bytes: u64, limit: Option<u64>) {
        let label = self.label(service);
        let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.memory.with_label_values(&[label]).set(number(bytes));
        self.memory_limit.with_label_values(&[label]).set(number(limit.unwrap_or(0)));
    }

    /// Says what is foreseen for its memory.
    pub(crate) fn forecast(&self, service: &str, forecast: &Forecast) {
        let label = self.label(service);
        self.growth.with_label_values(&[label]).set(forecast.growth_bytes_per_hour.unwrap_or(0.0));
        let eta = forecast.exhausted_in_seconds.or(forecast.time_to_oom_seconds);
        self.oom_eta.with_label_values(&[label]).set(eta.unwrap_or(f64::INFINITY));
        for verdict in Verdict::ALL {
            let holds = i64::from(verdict == forecast.verdict);
            self.leak.with_label_values(&[label, verdict.as_str()]).set(holds);
        }
    }

    /// Says where it stands in its pool.
    pub(crate) fn pool_moved(&self, service: &str, to: State) {
        let label = self.label(service);
        for state in State::ALL {
            self.pool_state.with_label_values(&[label, state.as_str()]).set(i64::from(state == to));
        }
        self.pool_moves.with_label_values(&[label, to.as_str()]).inc();
    }

    /// It should have drained, and was the last that could serve.
    pub(crate) fn pool_kept(&self, service: &str) {
        self.pool_kept.with_label_values(&[self.label(service)]).inc();
    }

    /// A planned restart has ended.
    pub(crate) fn renewed(&self, service: &str, how: Renewal) {
        self.renewals.with_label_values(&[self.label(service), how.as_str()]).inc();
    }

    /// Says when it died.
    pub(crate) fn last_died(&self, service: &str, at: Timestamp) {
        self.last_death.with_label_values(&[self.label(service)]).set(at.as_millisecond() as f64 / 1e3);
    }

    /// An outage began. What was foreseen of its memory was foreseen of the incarnation that is dead.
    pub(crate) fn outage_began(&self, service: &str) {
        let label = self.label(service);
        self.incidents_open.with_label_values(&[label]).set(1);
        self.oom_eta.with_label_values(&[label]).set(f64::INFINITY);
    }

    /// It ended, by a restart of ours, by somebody else's, or because it was meant.
    pub(crate) fn outage_ended(&self, service: &str, outage_ns: u64, outcome: Outcome) {
        let label = self.label(service);
        self.incidents_open.with_label_values(&[label]).set(0);
        if outcome == Outcome::Intended {
            return;
        }
        self.outage.with_label_values(&[label]).observe(outage_ns as f64 / 1e9);
        if outcome == Outcome::Restarted {
            self.restarts.with_label_values(&[label, "ok"]).inc();
        }
    }

    /// A restart of ours failed.
    pub(crate) fn restart_failed(&self, service: &str) {
        self.restarts.with_label_values(&[self.label(service), "failed"]).inc();
    }

    /// Defib decided against a restart.
    pub(crate) fn suppressed(&self, service: &str, reason: &str) {
        self.suppressed.with_label_values(&[self.label(service), reason]).inc();
    }

    /// The label value of a death's service.
    pub(crate) fn label_of<'a>(&self, death: &'a Death) -> &'a str {
        death.place.as_ref().map_or(OTHER, |place| self.label(&place.service))
    }

    /// The label value of a service.
    fn label<'a>(&self, service: &'a str) -> &'a str {
        if self.services.known.contains(service) { service } else { OTHER }
    }

    /// Counts a death. Units and containers get a label when they first die, within the cap.
    pub(crate) fn died(&mut self, death: &Death) {
        if let Some(place) = &death.place
            && has_stable_name(place)
        {
            self.add_service(&place.service);
        }
        let label = self.label_of(death);
        self.deaths.with_label_values(&[label, death.cause.kind()]).inc();
        if let Cause::OomKill(oom) = &death.cause {
            self.oom_kills.with_label_values(&[label, Scope::label(oom.scope)]).inc();
        }
        self.detected(death.kernel_ns, death.seen_ns);
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

/// What the kernel counts, brought up to date before each scrape.
pub(crate) struct KernelMetrics {
    exits: IntCounterVec,
    lost: IntCounterVec,
    run_seconds: CounterVec,
    runs: IntCounterVec,
    log_lines_lost: IntCounter,
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
                "Processes ended on this host since the agent started, counted in the kernel.",
                &["outcome"],
            )?,
            lost: counters(
                registry,
                "defib_events_lost_total",
                "Records that found no room in a ring (critical, bulk), stood back for others (routine) or were malformed; deaths that the kernel may have skipped a preempted program for (preempted, an upper bound).",
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
            refreshing: Mutex::new(()),
        };
        for outcome in ["clean", "error", "signal", "oom"] {
            metrics.exits.with_label_values(&[outcome]);
        }
        for ring in ["critical", "bulk", "routine", "malformed", "preempted"] {
            metrics.lost.with_label_values(&[ring]);
        }
        Ok(metrics)
    }

    /// Reads the kernel's counters.
    pub(crate) fn refresh(&self, kernel: &Kernel, malformed: u64, log_lines_lost: u64) -> Result<()> {
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
        raise(&self.lost, "malformed", malformed);
        raise(&self.lost, "preempted", kernel.skipped()?);
        for program in kernel.costs()? {
            raise(&self.runs, program.name, program.runs);
            let seconds = self.run_seconds.with_label_values(&[program.name]);
            seconds.inc_by((program.time.as_secs_f64() - seconds.get()).max(0.0));
        }
        Ok(())
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

/// Brings a counter up to a total that is kept elsewhere.
fn raise(counters: &IntCounterVec, label: &str, total: u64) {
    let counter = counters.with_label_values(&[label]);
    counter.inc_by(total.saturating_sub(counter.get()));
}

/// Sessions, transient and users' units, unnamed containers and plain cgroups come and go under ever new names; labels for
/// them would never end.
fn has_stable_name(place: &Place) -> bool {
    match &*place.origin {
        Origin::Unit(name) => name.ends_with(".service") && !name.starts_with("run-") && !name.contains('/'),
        Origin::Container { .. } => place.is_named(),
        Origin::Cgroup(_) => false,
    }
}

//! What the agent finds when it looks at itself.

use std::time::Duration;

use anyhow::Result;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

use super::{counters, register};
use crate::{
    diagnosis::Losses,
    memory::picture::Ended,
    questions::Kind,
    trace::{NoTrace, Summary},
};

/// See the module.
pub(crate) struct OwnMetrics {
    attached: IntGaugeVec,
    detached: IntCounterVec,
    unpinned: IntCounter,
    clock_steps: IntCounter,
    evidence_lost: IntCounterVec,
    claims_dropped: IntCounter,
    pictures: IntCounterVec,
    ran_before_oom: IntCounterVec,
    traces: IntCounterVec,
    questions_dropped: IntCounterVec,
    turns: Histogram,
}

/// How a trace of a suspect can end.
const TRACES: [&str; 5] = ["done", "busy", "recent", "stopped", "failed"];

impl OwnMetrics {
    /// Registers everything.
    pub(super) fn new(registry: &Registry) -> Result<Self> {
        let counter = |name, help| register(registry, IntCounter::new(name, help)?);
        let attached =
            Opts::new("defib_bpf_attached", "1 while a kernel program is attached, by the look each ten seconds.");
        let pictures = counters(
            registry,
            "defib_memory_pictures_total",
            "Pictures of a service's memory: taken, missed because the victim was gone, dropped because others had all turns.",
            &["result"],
        )?;
        for result in ["taken", "missed", "dropped"] {
            pictures.with_label_values(&[result]);
        }
        let ran_before_oom = counters(
            registry,
            "defib_before_oom_runs_total",
            "Commands that looked at a service before it was out of memory, by how they ended.",
            &["result"],
        )?;
        for ended in Ended::ALL {
            ran_before_oom.with_label_values(&[ended.as_str()]);
        }
        let evidence_lost = counters(
            registry,
            "defib_evidence_lost_total",
            "Evidence evicted by newer before it was used, upper bound (oom_mark, crash_site, log_line); waits for evidence ended early because too many deaths waited (wait); crashing processes not looked at because too many crashed at once (crash_look).",
            &["kind"],
        )?;
        let traces = counters(
            registry,
            "defib_traces_total",
            "Traces of suspects that the agent began: done, put off because another was at work (busy), not needed after one of late (recent), ended with the agent (stopped), failed.",
            &["result"],
        )?;
        for result in TRACES {
            traces.with_label_values(&[result]);
        }
        let questions_dropped = counters(
            registry,
            "defib_questions_dropped_total",
            "Questions not asked because too many were under way: to the journal, systemd, a container's engine, the file of a service's output, the process that reads symbols.",
            &["kind"],
        )?;
        for kind in Kind::ALL {
            questions_dropped.with_label_values(&[kind.as_str()]);
        }
        // From turns without effect to turns in which evidence comes too late.
        let turns = HistogramOpts::new(
            "defib_controller_loop_seconds",
            "Duration of one turn of the task that owns all state, from waking to waiting.",
        )
        .buckets(vec![1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0]);
        let metrics = Self {
            questions_dropped,
            turns: register(registry, Histogram::with_opts(turns)?)?,
            traces,
            evidence_lost,
            pictures,
            ran_before_oom,
            attached: register(registry, IntGaugeVec::new(attached, &["program"])?)?,
            detached: counters(
                registry,
                "defib_bpf_detached_total",
                "Times that a kernel program was found detached by somebody else; each is attached again.",
                &["program"],
            )?,
            unpinned: counter(
                "defib_bpf_unpinned_total",
                "Times that pins of the kernel programs were found removed by somebody else; each is made again.",
            )?,
            claims_dropped: counter(
                "defib_cgroup_claims_dropped_total",
                "Cgroups of units and containers that are not managed because too many waited for their owners' confirmation.",
            )?,
            clock_steps: counter(
                "defib_clock_steps_total",
                "Times that the wall clock was found set by half a second or more.",
            )?,
        };
        // Each series is there from the start.
        metrics.evidence_lost(Losses::default());
        Ok(metrics)
    }

    /// These programs are attached.
    pub(crate) fn attached(&self, programs: &[&'static str]) {
        for program in programs {
            self.attached.with_label_values(&[program]).set(1);
            self.detached.with_label_values(&[program]);
        }
    }

    /// One was found detached, and `is_mended` or not.
    pub(crate) fn detached(&self, program: &str, is_mended: bool) {
        self.attached.with_label_values(&[program]).set(i64::from(is_mended));
        self.detached.with_label_values(&[program]).inc();
    }

    /// Pins were found removed.
    pub(crate) fn unpinned(&self) {
        self.unpinned.inc();
    }

    /// The wall clock was found set.
    pub(crate) fn clock_stepped(&self) {
        self.clock_steps.inc();
    }

    /// So much evidence was lost since the start.
    pub(crate) fn evidence_lost(&self, Losses { marks, sites, lines, waits, looks }: Losses) {
        let all =
            [("oom_mark", marks), ("crash_site", sites), ("log_line", lines), ("wait", waits), ("crash_look", looks)];
        for (kind, all) in all {
            let counter = self.evidence_lost.with_label_values(&[kind]);
            counter.inc_by(all.saturating_sub(counter.get()));
        }
    }

    /// Sets the number of cgroups, since the start, that found no room among those whose owners are asked.
    pub(crate) fn claims_dropped(&self, all: u64) {
        self.claims_dropped.inc_by(all.saturating_sub(self.claims_dropped.get()));
    }

    /// Sets the numbers of questions dropped since the start.
    pub(crate) fn questions_dropped(&self, dropped: impl Iterator<Item = (Kind, u64)>) {
        for (kind, all) in dropped {
            let counter = self.questions_dropped.with_label_values(&[kind.as_str()]);
            counter.inc_by(all.saturating_sub(counter.get()));
        }
    }

    /// Records how long a turn of the task that owns all state took.
    pub(crate) fn turn(&self, time: Duration) {
        self.turns.observe(time.as_secs_f64());
    }

    /// A picture of memory was taken, or not.
    pub(crate) fn picture(&self, result: &str) {
        self.pictures.with_label_values(&[result]).inc();
    }

    /// A command has ended that looked at a service before it was out of memory.
    pub(crate) fn ran_before_oom(&self, ended: Ended) {
        self.ran_before_oom.with_label_values(&[ended.as_str()]).inc();
    }

    /// A trace of a suspect has ended.
    pub(crate) fn traced(&self, result: &Result<Summary, NoTrace>) {
        let result = match result {
            Ok(_) => "done",
            Err(NoTrace::Busy) => "busy",
            Err(NoTrace::Recent) => "recent",
            Err(NoTrace::Stopped) => "stopped",
            Err(NoTrace::Broken(_)) => "failed",
        };
        self.traces.with_label_values(&[result]).inc();
    }
}

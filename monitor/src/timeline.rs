//! What happened to a service, moment by moment: the agent says it, the log, the demo and later the incident keep it.

use std::{fmt, sync::Arc};

use anyhow::Result;
use prometheus::{IntCounter, Registry};
use tokio::sync::broadcast;

use crate::{
    healing::renewal::Renewal,
    pool::{Cause, State},
};

/// Moments kept for a listener that is slow; a slower one is told how many it missed.
const BACKLOG: usize = 1024;

/// One moment.
#[derive(Clone, Debug)]
pub(crate) struct Moment {
    /// CLOCK_BOOTTIME, nanoseconds.
    pub(crate) at_ns: u64,
    /// The service.
    pub(crate) service: Arc<str>,
    /// What happened.
    pub(crate) what: What,
}

/// What can happen.
#[derive(Clone, Debug)]
pub(crate) enum What {
    /// The OOM killer chose a process of the service.
    Marked,
    /// Its main process ended.
    Died,
    /// The cause was decided.
    Verdict(String),
    /// What the verdict rests on, and what had not come.
    Evidence(String),
    /// Where it crashed, with names; they take a moment longer than the verdict.
    CrashedAt(String),
    /// The supervisor has the next move.
    Waiting {
        /// Until when, CLOCK_BOOTTIME nanoseconds.
        until_ns: u64,
        /// Why so long.
        reason: &'static str,
        /// What that rests on.
        because: String,
    },
    /// The supervisor was asked to start it.
    RestartAsked {
        /// 1 for the first try.
        attempt: u32,
        /// What that rests on.
        because: String,
    },
    /// A new main process.
    Started {
        /// Its process id.
        tgid: u32,
    },
    /// No restart, and why.
    Suppressed {
        /// A label.
        reason: &'static str,
        /// What that rests on.
        because: String,
    },
    /// A try failed.
    Failed(String),
    /// An operator wants no restarts for a while.
    Paused {
        /// Until when, wall clock.
        until: jiff::Timestamp,
        /// In the operator's words.
        reason: String,
    },
    /// The operator wants them again.
    Resumed,
    /// Operators have to hear of its memory.
    Forecast(String),
    /// What was said of its memory no longer holds.
    ForecastOver,
    /// It is looked at where its memory grows, for so long.
    TraceBegins(std::time::Duration),
    /// What that found.
    Traced(String),
    /// It could not be done.
    TraceFailed(String),
    /// What is in its memory was looked at.
    Pictured(String),
    /// A command looks at it before memory is out, or has.
    BeforeOom(String),
    /// It stands elsewhere in its pool now.
    Pool {
        /// Where.
        state: State,
        /// Why.
        cause: Cause,
    },
    /// It should leave its pool, and is the last there that can serve.
    KeptInPool(Cause),
    /// It would be restarted ahead of time, in another mode.
    WouldRenew(String),
    /// A planned restart begins.
    RenewalBegins(String),
    /// Its supervisor was asked for it.
    RenewalAsked(String),
    /// The new incarnation is healthy.
    Renewed {
        /// From the end of the old one to the health of the new one, nanoseconds.
        down_ns: u64,
    },
    /// It ended in another way.
    RenewalEnds {
        /// How.
        how: Renewal,
        /// Why.
        because: String,
    },
    /// An agent took over from an earlier one in the middle of it.
    AgentStarted,
    /// The outage is over in another way than by health.
    Over(&'static str),
    /// Health is proven, the outage is over.
    Healthy {
        /// From death to health, nanoseconds.
        outage_ns: u64,
    },
}

impl What {
    /// A stable word for it, for programs.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Marked => "oom_mark",
            Self::Died => "died",
            Self::Verdict(_) => "verdict",
            Self::Evidence(_) => "evidence",
            Self::CrashedAt(_) => "crash_site",
            Self::Waiting { .. } => "waiting",
            Self::RestartAsked { .. } => "restart_asked",
            Self::Started { .. } => "started",
            Self::Suppressed { .. } => "not_restarted",
            Self::Failed(_) => "failed",
            Self::Paused { .. } => "paused",
            Self::Resumed => "resumed",
            Self::Forecast(_) => "forecast",
            Self::ForecastOver => "forecast_over",
            Self::TraceBegins(_) => "trace",
            Self::Traced(_) => "traced",
            Self::TraceFailed(_) => "trace_failed",
            Self::Pictured(_) => "memory_picture",
            Self::BeforeOom(_) => "before_oom",
            Self::Pool { state: State::In, .. } => "pool_in",
            Self::Pool { state: State::Draining, .. } => "pool_draining",
            Self::Pool { state: State::Out, .. } => "pool_out",
            Self::KeptInPool(_) => "pool_kept",
            Self::WouldRenew(_) => "planned_restart_due",
            Self::RenewalBegins(_) => "planned_restart",
            Self::RenewalAsked(_) => "planned_restart_asked",
            Self::Renewed { .. } => "planned_restart_done",
            Self::RenewalEnds { how: Renewal::Failed, .. } => "planned_restart_failed",
            Self::RenewalEnds { .. } => "planned_restart_called_off",
            Self::AgentStarted => "agent_started",
            Self::Healthy { .. } => "healthy",
            Self::Over(_) => "over",
        }
    }
}

/// Says moments to the log and to whoever listens.
#[derive(Clone, Debug)]
pub(crate) struct Timeline {
    listeners: broadcast::Sender<Moment>,
    missed: IntCounter,
}

impl Timeline {
    /// A timeline that nobody listens to yet.
    pub(crate) fn new() -> Self {
        let missed = IntCounter::new(
            "defib_timeline_missed_total",
            "Moments that readers of the event stream did not take in time; each was told how many it has missed.",
        );
        Self { listeners: broadcast::channel(BACKLOG).0, missed: missed.expect("a name of a metric") }
    }

    /// Has its losses exported.
    ///
    /// # Errors
    /// When the name is taken.
    pub(crate) fn register(&self, registry: &Registry) -> Result<()> {
        Ok(registry.register(Box::new(self.missed.clone()))?)
    }

    /// A listener did not take so many in time.
    pub(crate) fn missed(&self, moments: u64) {
        self.missed.inc_by(moments);
    }

    /// Listens from now on.
    pub(crate) fn listen(&self) -> broadcast::Receiver<Moment> {
        self.listeners.subscribe()
    }

    /// Says a moment.
    pub(crate) fn say(&self, at_ns: u64, service: &Arc<str>, what: What) {
        tracing::info!(service = %crate::text::Clean(service), "{what}");
        // No listener is no error.
        drop(self.listeners.send(Moment { at_ns, service: Arc::clone(service), what }));
    }
}

impl fmt::Display for What {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Marked => out.write_str("the kernel chose it to die for want of memory"),
            Self::Died => out.write_str("its main process ended"),
            Self::Verdict(cause) => write!(out, "cause: {cause}"),
            Self::Evidence(evidence) => write!(out, "evidence: {evidence}"),
            Self::CrashedAt(site) => write!(out, "crashed at {site}"),
            Self::Waiting { reason, because, .. } => write!(out, "waiting: {reason} ({because})"),
            Self::RestartAsked { attempt, because } => write!(out, "restart asked, try {attempt} ({because})"),
            Self::Started { tgid } => write!(out, "started, pid {tgid}"),
            Self::Suppressed { reason, because } => write!(out, "not restarted: {reason} ({because})"),
            Self::Failed(reason) => write!(out, "failed: {reason}"),
            Self::Paused { until, reason } if reason.is_empty() => write!(out, "paused until {until:.0}"),
            Self::Paused { until, reason } => write!(out, "paused until {until:.0}: {}", crate::text::Clean(reason)),
            Self::Resumed => out.write_str("resumed"),
            Self::Forecast(text) | Self::Pictured(text) | Self::BeforeOom(text) => out.write_str(text),
            Self::ForecastOver => out.write_str("its memory is not expected to run out any more"),
            Self::TraceBegins(duration) => {
                let time = humantime::format_duration(*duration);
                write!(out, "its requests for memory are watched now and then for {time}, to see where it grows")
            }
            Self::Traced(what) => write!(out, "{what}; 'defib trace --show SERVICE' has the rest"),
            Self::TraceFailed(why) => write!(out, "cannot see where its memory grows: {}", crate::text::Clean(why)),
            Self::Pool { state: State::In, cause } => write!(out, "in its pool: {cause}"),
            Self::Pool { state: State::Draining, cause } => write!(out, "draining from its pool: {cause}"),
            Self::Pool { state: State::Out, cause } => write!(out, "out of its pool: {cause}"),
            Self::KeptInPool(cause) => {
                write!(out, "kept in its pool, since nobody else there can serve, though {cause}")
            }
            Self::WouldRenew(because) => write!(out, "would be restarted ahead of time: {because}"),
            Self::RenewalBegins(because) => write!(out, "planned restart: {because}"),
            Self::RenewalAsked(because) => write!(out, "its end and its next start were asked for ({because})"),
            Self::Renewed { down_ns } => {
                write!(out, "planned restart done; down for {:.3} s", *down_ns as f64 / 1e9)
            }
            Self::RenewalEnds { how: Renewal::Failed, because } => write!(out, "planned restart failed: {because}"),
            Self::RenewalEnds { because, .. } => write!(out, "planned restart called off: {because}"),
            Self::AgentStarted => out.write_str("a new agent goes on with it"),
            Self::Over(why) => write!(out, "over: {why}"),
            Self::Healthy { outage_ns } => write!(out, "healthy again; outage {:.3} s", *outage_ns as f64 / 1e9),
        }
    }
}

//! What is kept of an incident.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{healing::Outcome, memory::picture::BeforeOom};

/// What an incident is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// A service was down.
    Outage,
    /// A service was to be restarted before it died.
    PlannedRestart,
    /// A worker died of something that may come back: the service lived on.
    NearMiss,
}

impl Kind {
    /// As it is written.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Outage => "outage",
            Self::PlannedRestart => "planned_restart",
            Self::NearMiss => "near_miss",
        }
    }
}

/// One moment of the timeline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// When, wall clock.
    pub(crate) at: Timestamp,
    /// A stable word for what happened.
    pub(crate) what: String,
    /// What happened, for people.
    pub(crate) text: String,
}

/// Memory of the service at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// When, wall clock.
    pub(crate) at: Timestamp,
    /// Memory in use without reclaimable files, bytes.
    pub(crate) bytes: u64,
}

/// What was known of the service's memory when it died.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Foretold {
    /// `leak`, `masked_leak`, `steady`, `insufficient`.
    pub(crate) verdict: String,
    /// Growth with uptime.
    pub(crate) growth_bytes_per_hour: Option<f64>,
    /// Since when operators had been told that memory would run out; `None`: they had not.
    pub(crate) since: Option<Timestamp>,
    /// When it was said to run out, at first: the estimate.
    pub(crate) runs_out: Option<Timestamp>,
    /// The earliest.
    pub(crate) earliest: Option<Timestamp>,
    /// The latest; `None` with an estimate: it might have been never.
    pub(crate) latest: Option<Timestamp>,
}

/// Memory of the service before it died.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Before {
    /// See [`Incident::memory`].
    pub(crate) memory: Vec<Sample>,
    /// See [`Incident::memory_limit`].
    pub(crate) limit: Option<u64>,
    /// See [`Incident::foretold`].
    pub(crate) foretold: Option<Foretold>,
}

/// See the module. Times are the wall clock's as it was set then; spans are measured on the clock that never steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Incident {
    /// 1 for the first one of this host.
    pub(crate) id: i64,
    /// The service.
    pub(crate) service: String,
    /// What it is about.
    pub(crate) kind: Kind,
    /// The death.
    pub(crate) began: Timestamp,
    /// Proven health, or the intention that was found; `None` while it lasts.
    pub(crate) ended: Option<Timestamp>,
    /// From death to health, milliseconds; `None` while it lasts.
    pub(crate) outage_ms: Option<u64>,
    /// What became of it; `None` while that is open.
    pub(crate) outcome: Option<Outcome>,
    /// The cause of the first death, as `defib watch --json` writes it; `null` when no record told of it.
    pub(crate) cause: Value,
    /// The same in words.
    pub(crate) cause_text: String,
    /// What the verdict rests on.
    pub(crate) evidence: Value,
    /// Evidence that had not come in time.
    pub(crate) missing: Value,
    /// What happened, in order.
    pub(crate) timeline: Vec<Entry>,
    /// Moments that found no room.
    pub(crate) moments_dropped: u64,
    /// Memory in the minutes before the death, the oldest first.
    pub(crate) memory: Vec<Sample>,
    /// Memory limit in bytes.
    pub(crate) memory_limit: Option<u64>,
    /// What was known of its memory; `None` for a near miss, and in records of older agents.
    #[serde(default)]
    pub(crate) foretold: Option<Foretold>,
    /// What was in memory before it died for want of it; `None` when it died of something else, and in records of older agents.
    #[serde(default)]
    pub(crate) before_oom: Option<Box<BeforeOom>>,
    /// Restarts that were asked for.
    pub(crate) restarts: u32,
    /// Deaths that are told in this record; none in that of a planned restart.
    pub(crate) deaths: u32,
}

//! What the trend of a service's memory means: will it run out, when, and does anything but restarts keep it alive?

use serde::{Deserialize, Serialize};

/// Seconds ahead from which on a leak is a warning, and a page.
pub(crate) const WARN: f64 = 7.0 * 86_400.0;
pub(crate) const PAGE: f64 = 4.0 * 3600.0;

/// What memory does with uptime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It grows, and does not level off.
    Leak,
    /// So it does, and only restarts have kept it from its limit.
    MaskedLeak,
    /// Nothing of the kind.
    Steady,
    /// Too little was seen to say.
    Insufficient,
}

impl Verdict {
    /// All, for series that exist from the start.
    pub const ALL: [Self; 4] = [Self::Leak, Self::MaskedLeak, Self::Steady, Self::Insufficient];

    /// As metrics and JSON have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Leak => "leak",
            Self::MaskedLeak => "masked_leak",
            Self::Steady => "steady",
            Self::Insufficient => "insufficient",
        }
    }
}

/// Whom it concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// A leak, farther than a week from its limit.
    Notice,
    /// Within a week.
    Warn,
    /// Within four hours, or exhaustion within minutes.
    Page,
}

impl Level {
    /// `leaks`: a verdict was held. `eta`: seconds to the limit. `fast`: the same by the last minutes alone.
    pub(super) fn of(leaks: bool, eta: Option<f64>, fast: Option<f64>) -> Option<Self> {
        match (leaks, eta) {
            _ if fast.is_some() => Some(Self::Page),
            (false, _) => None,
            (true, Some(eta)) if eta <= PAGE => Some(Self::Page),
            (true, Some(eta)) if eta <= WARN => Some(Self::Warn),
            (true, _) => Some(Self::Notice),
        }
    }
}

/// Growth of two builds over the same uptimes, bytes an hour.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Builds {
    /// The present build.
    pub now: f64,
    /// The build before it.
    pub before: f64,
    /// When the present build was first seen, Unix seconds; `None`: nobody noted it.
    #[serde(default)]
    pub since: Option<f64>,
}

/// All that is said of a service's memory at a moment. Seconds are real ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// The held verdict.
    pub verdict: Verdict,
    /// A leak, or what may become one: less certain, and earlier.
    pub advisory: bool,
    /// Whom to tell; `None`: nobody.
    pub level: Option<Level>,
    /// Growth with uptime, the load's part taken out. `None`: too little was seen.
    pub growth_bytes_per_hour: Option<f64>,
    /// From now to the limit, if it is not restarted. `None`: no leak, or no limit.
    pub time_to_oom_seconds: Option<f64>,
    /// The least it may be.
    pub time_to_oom_seconds_low: Option<f64>,
    /// The most it may be; `None` with an estimate: it may be never.
    pub time_to_oom_seconds_high: Option<f64>,
    /// Of the present incarnation.
    pub uptime_seconds: f64,
    /// Of all incarnations seen.
    pub longest_uptime_seconds: f64,
    /// 19 of 20 past incarnations ended before this.
    pub usual_uptime_seconds: Option<f64>,
    /// The uptime at which an incarnation reaches the limit.
    pub uptime_at_oom_seconds: Option<f64>,
    /// That against the usual uptime: above 1 only restarts keep the service alive.
    pub severity: Option<f64>,
    /// This build against the last, if both are known.
    pub builds: Option<Builds>,
    /// By the last minutes alone: memory is exhausted within a quarter of an hour.
    pub exhausted_in_seconds: Option<f64>,
}

impl Forecast {
    /// Whether an operator is told, at whatever level.
    pub fn alerts(&self) -> bool {
        self.level.is_some()
    }
}

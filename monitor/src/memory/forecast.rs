//! What the trend of a service's memory means: will it run out, when, and does anything but restarts keep it alive?

use serde::Serialize;

/// Seconds ahead from which on a leak is a warning, and a page.
const WARN: f64 = 7.0 * 86_400.0;
const PAGE: f64 = 4.0 * 3600.0;

/// What memory does with uptime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Builds {
    /// The present build.
    pub now: f64,
    /// The build before it.
    pub before: f64,
}

impl Builds {
    /// For people; `name` is the present build's: "since build 1f3a: +2.1 MiB/h against +0 KiB/h".
    pub fn sentence(&self, name: &str) -> String {
        let signed = |growth: f64| format!("{}{}/h", if growth < 0.0 { "" } else { "+" }, size(growth));
        format!("since build {name}: {} against {}", signed(self.now), signed(self.before))
    }
}

/// All that is said of a service's memory at a moment. Seconds are real ones.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
    /// For people, in a sentence.
    pub fn sentence(&self) -> String {
        let grows =
            self.growth_bytes_per_hour.map_or_else(String::new, |growth| format!("grows by {} an hour", size(growth)));
        let fast = self.exhausted_in_seconds.map(|eta| format!("Memory is exhausted in about {}. ", time(eta)));
        let text = match self.verdict {
            Verdict::MaskedLeak => match (self.uptime_at_oom_seconds, self.usual_uptime_seconds) {
                (Some(end), Some(usual)) => format!(
                    "It {grows} and survives only because it is restarted within {}; it would die after {}.",
                    time(usual),
                    time(end)
                ),
                _ => format!("It {grows}; restarts hide how far that goes."),
            },
            Verdict::Leak => match self.time_to_oom_seconds {
                Some(eta) => format!("It {grows} and does not level off: out of memory in about {}.", time(eta)),
                None => format!("It {grows} and does not level off; it has no limit to reach."),
            },
            Verdict::Steady if self.advisory => {
                format!("It {grows} with uptime. Whether that levels off cannot be told yet.")
            }
            Verdict::Steady => "No leak: its memory does not grow with uptime, or levels off.".to_owned(),
            Verdict::Insufficient => {
                "Too little was seen to say: it takes half a day, and incarnations of two hours.".to_owned()
            }
        };
        fast.unwrap_or_default() + &text
    }

    /// Whether an operator is told, at whatever level.
    pub fn alerts(&self) -> bool {
        self.level.is_some()
    }
}

/// Bytes as people read them.
fn size(bytes: f64) -> String {
    const MIB: f64 = 1_048_576.0;
    if bytes.abs() >= 1024.0 * MIB {
        format!("{:.1} GiB", bytes / (1024.0 * MIB))
    } else if bytes.abs() >= MIB {
        format!("{:.1} MiB", bytes / MIB)
    } else {
        format!("{:.0} KiB", bytes / 1024.0)
    }
}

/// Seconds as people read them, to one unit.
fn time(seconds: f64) -> String {
    match seconds {
        ..120.0 => format!("{seconds:.0} seconds"),
        120.0..7200.0 => format!("{:.0} minutes", seconds / 60.0),
        7200.0..172_800.0 => format!("{:.0} hours", seconds / 3600.0),
        _ => format!("{:.0} days", seconds / 86_400.0),
    }
}

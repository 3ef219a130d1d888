//! Which alerts there are. Names, severities and runbooks are those of `deploy/prometheus/defib.rules.yml`; a test holds the
//! two against each other.

use crate::text::Clean;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// An outage lasts.
    ServiceDown,
    /// It was tried until the budget was spent.
    CircuitOpen,
    /// The kernel killed one of its processes for want of memory; with the scope, as metrics have it.
    OomKill(&'static str),
    /// Memory runs out within four hours.
    OomWithin4h,
    /// Memory runs out within a week.
    OomWithin7d,
    /// Only restarts keep it alive.
    HiddenLeak,
    /// Memory grows with uptime.
    Leak,
}

/// The scopes of an OOM kill, as metrics have them.
pub(super) const SCOPES: [&str; 5] = ["memcg", "global", "cpuset", "sysrq", "unknown"];

impl Kind {
    /// All that have no scope.
    pub(super) const LEVELS: [Self; 6] =
        [Self::ServiceDown, Self::CircuitOpen, Self::OomWithin4h, Self::OomWithin7d, Self::HiddenLeak, Self::Leak];

    /// The label `alertname`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ServiceDown => "DefibServiceDown",
            Self::CircuitOpen => "DefibCircuitOpen",
            Self::OomKill(_) => "DefibOomKill",
            Self::OomWithin4h => "DefibOomWithin4h",
            Self::OomWithin7d => "DefibOomWithin7d",
            Self::HiddenLeak => "DefibHiddenLeak",
            Self::Leak => "DefibLeak",
        }
    }

    /// The label `severity`.
    pub(super) fn severity(self) -> &'static str {
        match self {
            Self::ServiceDown | Self::CircuitOpen | Self::OomWithin4h => "page",
            Self::OomKill(_) | Self::OomWithin7d | Self::HiddenLeak => "warn",
            Self::Leak => "info",
        }
    }

    /// The label `scope`.
    pub(super) fn scope(self) -> Option<&'static str> {
        match self {
            Self::OomKill(scope) => Some(scope),
            _ => None,
        }
    }

    /// True for what happens at a moment; the others hold for a time.
    pub(super) fn is_event(self) -> bool {
        matches!(self, Self::OomKill(_))
    }

    /// The inverse of [`Self::name`] and [`Self::scope`].
    pub(super) fn parse(name: &str, scope: Option<&str>) -> Option<Self> {
        let known = |scope: &str| SCOPES.into_iter().find(|&known| known == scope).map(Self::OomKill);
        match scope {
            Some(scope) => known(scope).filter(|kind| kind.name() == name),
            None => Self::LEVELS.into_iter().find(|kind| kind.name() == name),
        }
    }

    /// The annotation `summary`.
    pub(super) fn summary(self, service: &str, instance: &str) -> String {
        let (service, instance) = (Clean(service), Clean(instance));
        match self {
            Self::ServiceDown => format!("{service} is down on {instance}"),
            Self::CircuitOpen => format!("{service} cannot be kept alive on {instance}"),
            Self::OomKill(_) => format!("{service} was OOM-killed on {instance}"),
            Self::OomWithin4h => format!("{service} runs out of memory within hours on {instance}"),
            Self::OomWithin7d => format!("{service} runs out of memory within days on {instance}"),
            Self::HiddenLeak => format!("Only restarts keep {service} alive on {instance}"),
            Self::Leak => format!("{service} leaks memory on {instance}"),
        }
    }

    /// The annotation `runbook`.
    pub(super) fn runbook(self) -> String {
        format!("docs/alerts.md#{}", self.name().to_lowercase())
    }
}

#[cfg(test)]
mod tests;

//! Which alerts are to be known. Pure: what happens and the time go in.
//!
//! An alert is shown while its level holds or, for an event, for a while; never while operators have paused its service. An
//! event that no peer has accepted yet stays until one has: what happened while Alertmanager was away is still heard of. What
//! is over stays on the board long enough for every peer to be told so.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::kind::Kind;
use crate::memory::{
    Words,
    forecast::{Forecast, PAGE, Verdict, WARN},
};

const SECOND: u64 = 1_000_000_000;
/// How long an event is shown: as long as the window of the rule that shows it, ten minutes.
const EVENT: u64 = 600 * SECOND;
/// An event that nobody took for a day is dropped, and counted.
const UNDELIVERED: u64 = 86_400 * SECOND;
/// Alertmanager ends by itself what it has not heard of for this long: five times the interval of re-sending, so a few lost
/// posts end nothing. What is over is told for as long; later, it has ended by itself.
pub(super) const TTL: u64 = 300 * SECOND;
/// Alerts on the board; at some kilobyte each that is 10 MB. Beyond, new ones are dropped and counted.
const MAX_ALERTS: usize = 10_000;

/// Which alert.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    /// What is wrong.
    pub(super) kind: Kind,
    /// With which service: the label that metrics use.
    pub(super) service: Arc<str>,
}

/// How a service stands. Times are CLOCK_BOOTTIME nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Standing<'a> {
    /// Begin of the outage.
    pub(crate) down_since_ns: Option<u64>,
    /// Why, for people.
    pub(crate) cause: &'a str,
    /// Restarts are only tried now and then.
    pub(crate) circuit_open: bool,
    /// Operators want silence until then.
    pub(crate) paused_until_ns: Option<u64>,
}

/// What peers see of an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// Nothing, and nothing is to be taken back.
    No,
    /// It fires.
    Firing,
    /// It is over since then, and they are to hear that.
    Ended(u64),
}

/// One alert.
#[derive(Clone, Debug)]
pub(super) struct Alert {
    /// When it began; negative when before this boot.
    pub(super) since_ns: i64,
    /// The annotation `description`.
    pub(super) text: String,
    pub(super) shown: Shown,
    /// Grows with every change that peers have to hear of.
    pub(super) version: u64,
    /// The level holds.
    holds: bool,
    /// Somebody has confirmed the level, or it was new: see [`Board::settle`].
    confirmed: bool,
    /// An event is shown until then.
    until_ns: u64,
    /// A peer has taken the event.
    delivered: bool,
}

/// An alert as it outlives the agent; times are the wall clock's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Kept {
    alert: String,
    scope: Option<String>,
    service: String,
    since: Timestamp,
    until: Timestamp,
    text: String,
    holds: bool,
    delivered: bool,
    /// Peers have to hear that it is over.
    ended: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Board {
    alerts: BTreeMap<Key, Alert>,
    /// Ends of pauses.
    paused: HashMap<Arc<str>, u64>,
    version: u64,
    dropped: u64,
    /// What has to be written down.
    changed: BTreeSet<Key>,
    /// Something has happened since [`Self::take_news`].
    news: bool,
}

impl Board {
    /// The kernel killed one of its processes for want of memory. `text`: who, and why.
    pub(super) fn oom_kill(&mut self, service: &str, scope: &'static str, at_ns: u64, text: &str, now: u64) {
        let key = Key { kind: Kind::OomKill(scope), service: service.into() };
        self.version += 1;
        let version = self.version;
        let Some(alert) = self.entry(&key, moment(at_ns)) else { return };
        if alert.shown != Shown::Firing {
            alert.since_ns = moment(at_ns);
        }
        // Of one that follows another, too, somebody has to hear.
        (alert.version, alert.delivered) = (version, false);
        alert.until_ns = now + EVENT;
        text.clone_into(&mut alert.text);
        self.has_changed(key);
    }

    /// See [`Standing`].
    pub(super) fn stands(&mut self, service: &str, standing: Standing<'_>, now: u64) {
        let service: Arc<str> = service.into();
        let paused = standing.paused_until_ns.filter(|&until| until > now);
        let before = match paused {
            Some(until) => self.paused.insert(Arc::clone(&service), until),
            None => self.paused.remove(&service),
        };
        self.news |= before != paused;
        let down = standing.down_since_ns;
        let since = down.unwrap_or(now);
        let cause = if standing.cause.is_empty() { String::new() } else { format!("; {}", standing.cause) };
        self.level(Kind::ServiceDown, &service, down.is_some(), since, || {
            format!("it is down and not healthy again{cause}")
        });
        // While one of the rare tries is under way the circuit is not open, and nothing is better.
        let was_open = self.holds(Kind::CircuitOpen, &service);
        let open = down.is_some() && (standing.circuit_open || was_open);
        self.level(Kind::CircuitOpen, &service, open, now, || {
            format!("it died again after each restart until the budget was spent; it is tried only now and then{cause}")
        });
        if down.is_some() {
            // What was foreseen was foreseen of the incarnation that is dead.
            for kind in [Kind::OomWithin4h, Kind::OomWithin7d] {
                self.level(kind, &service, false, now, String::new);
            }
        }
    }

    /// What is foreseen for its memory: as the metrics say it, and the rules read it.
    pub(super) fn foresees(&mut self, service: &str, forecast: &Forecast, now: u64) {
        let service: Arc<str> = service.into();
        let eta = forecast.exhausted_in_seconds.or(forecast.time_to_oom_seconds).unwrap_or(f64::INFINITY);
        let text = || Words(forecast).to_string();
        for (kind, holds) in [
            (Kind::OomWithin4h, eta <= PAGE),
            (Kind::OomWithin7d, eta > PAGE && eta <= WARN),
            (Kind::HiddenLeak, forecast.verdict == Verdict::MaskedLeak),
            (Kind::Leak, forecast.verdict == Verdict::Leak),
        ] {
            self.level(kind, &service, holds, now, text);
        }
    }

    fn holds(&self, kind: Kind, service: &Arc<str>) -> bool {
        let key = Key { kind, service: Arc::clone(service) };
        self.alerts.get(&key).is_some_and(|alert| alert.holds)
    }

    fn level(&mut self, kind: Kind, service: &Arc<str>, holds: bool, since_ns: u64, text: impl FnOnce() -> String) {
        let key = Key { kind, service: Arc::clone(service) };
        if !holds {
            if let Some(alert) = self.alerts.get_mut(&key).filter(|alert| alert.holds) {
                alert.holds = false;
                self.has_changed(key);
            }
            return;
        }
        let Some(alert) = self.entry(&key, moment(since_ns)) else { return };
        let is_new = !alert.holds;
        if is_new {
            (alert.since_ns, alert.holds) = (moment(since_ns), true);
        }
        // Peers get it with the next re-sending, if nothing else has changed.
        alert.text = text();
        alert.confirmed = true;
        if is_new {
            self.has_changed(key);
        }
    }

    fn has_changed(&mut self, key: Key) {
        self.changed.insert(key);
        self.news = true;
    }

    /// Whether anything has happened since this was called last.
    pub(super) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// The alert of that key, made if there is room.
    fn entry(&mut self, key: &Key, since_ns: i64) -> Option<&mut Alert> {
        if self.alerts.len() >= MAX_ALERTS && !self.alerts.contains_key(key) {
            self.dropped += 1;
            return None;
        }
        Some(self.alerts.entry(key.clone()).or_insert_with(|| Alert {
            since_ns,
            text: String::new(),
            shown: Shown::No,
            version: 0,
            holds: false,
            confirmed: true,
            until_ns: 0,
            delivered: false,
        }))
    }

    /// What is shown at this time. To be called before the board is read.
    pub(super) fn advance(&mut self, now: u64) {
        self.paused.retain(|_, until| *until > now);
        let Self { alerts, paused, version, changed, dropped, news: _ } = self;
        alerts.retain(|key, alert| {
            let waits = alert.waits_for_a_peer(key);
            let lost = waits && now >= alert.gives_up_ns();
            if lost {
                *dropped += 1;
                alert.delivered = true;
            }
            let lasts = alert.holds || now < alert.until_ns || waits && !lost;
            let fires = lasts && !paused.contains_key(&key.service);
            let before = alert.shown;
            alert.shown = match before {
                Shown::No if fires => Shown::Firing,
                Shown::Ended(_) if fires => Shown::Firing,
                Shown::Firing if !fires => Shown::Ended(now),
                Shown::Ended(at) if now >= at.saturating_add(TTL) => Shown::No,
                same => same,
            };
            if alert.shown != before {
                *version += 1;
                alert.version = *version;
                changed.insert(key.clone());
            }
            let stays = lasts || alert.shown != Shown::No;
            if !stays {
                changed.insert(key.clone());
            }
            stays
        });
    }

    /// When [`Self::advance`] has something to do without any news.
    pub(super) fn deadline(&self) -> Option<u64> {
        let of_alerts = self.alerts.iter().filter_map(|(key, alert)| match alert.shown {
            Shown::Ended(at) => Some(at.saturating_add(TTL)),
            _ if alert.holds => None,
            _ if alert.waits_for_a_peer(key) => Some(alert.gives_up_ns()),
            _ => Some(alert.until_ns),
        });
        of_alerts.chain(self.paused.values().copied()).min()
    }

    /// The alerts that peers have something to hear of.
    pub(super) fn shown(&self) -> impl Iterator<Item = (&Key, &Alert)> {
        self.alerts.iter().filter(|(_, alert)| alert.shown != Shown::No)
    }

    /// Number of alerts that fire.
    pub(super) fn firing(&self) -> usize {
        self.alerts.values().filter(|alert| alert.shown == Shown::Firing).count()
    }

    /// Alerts for which there was no room, and events that nobody took in time.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// True when peers know, or knew, something of that alert.
    pub(super) fn knows(&self, key: &Key) -> bool {
        self.alerts.contains_key(key)
    }

    /// A peer has taken this version. The time of an event begins when the first one has.
    pub(super) fn delivered(&mut self, key: &Key, version: u64, now: u64) {
        let Some(alert) = self.alerts.get_mut(key) else { return };
        if alert.version == version && alert.shown == Shown::Firing && alert.waits_for_a_peer(key) {
            alert.delivered = true;
            alert.until_ns = alert.until_ns.max(now + EVENT);
            self.changed.insert(key.clone());
        }
    }

    /// Goes on with what an earlier agent left.
    pub(super) fn restore(&mut self, kept: Kept, now: u64, wall: Timestamp) {
        let Some(kind) = Kind::parse(&kept.alert, kept.scope.as_deref()) else {
            tracing::warn!("an alert of another version is forgotten: {:?}", kept.alert);
            return;
        };
        // It may have begun before this boot.
        let ns = |at: Timestamp| {
            let ahead = at.as_nanosecond() - wall.as_nanosecond();
            moment(now).saturating_add(i64::try_from(ahead).unwrap_or(0))
        };
        let key = Key { kind, service: kept.service.into() };
        let until = u64::try_from(ns(kept.until)).unwrap_or(0).min(now + EVENT);
        let since = ns(kept.since);
        self.version += 1;
        let version = self.version;
        let Some(alert) = self.entry(&key, since) else { return };
        (alert.until_ns, alert.text, alert.delivered) = (until, kept.text, kept.delivered);
        (alert.holds, alert.confirmed) = (kept.holds, !kept.holds);
        if kept.ended {
            (alert.shown, alert.version) = (Shown::Ended(now), version);
        }
    }

    /// See [`super::Alerts::settle`].
    pub(super) fn settle(&mut self, _: u64) {
        for (key, alert) in &mut self.alerts {
            if alert.holds && !alert.confirmed {
                (alert.holds, alert.confirmed) = (false, true);
                if alert.shown == Shown::No {
                    // The earlier agent has told it; so it has to be taken back.
                    alert.shown = Shown::Firing;
                }
                self.changed.insert(key.clone());
                self.news = true;
            }
        }
    }

    /// What has to be written down since this was called last: a name, and the alert unless it is over and told.
    pub(super) fn take_changed(&mut self, now: u64, wall: Timestamp) -> Vec<(String, Option<Kept>)> {
        let at = |ns: i64| {
            let (now, ahead) = (moment(now), Duration::from_nanos(ns.abs_diff(moment(now))));
            let moved = if ns >= now { wall.checked_add(ahead) } else { wall.checked_sub(ahead) };
            moved.unwrap_or(wall)
        };
        let changed = std::mem::take(&mut self.changed);
        let kept = |key: &Key, alert: &Alert| Kept {
            alert: key.kind.name().to_owned(),
            scope: key.kind.scope().map(ToOwned::to_owned),
            service: key.service.to_string(),
            since: at(alert.since_ns),
            until: at(moment(alert.until_ns)),
            text: alert.text.clone(),
            holds: alert.holds,
            delivered: alert.delivered,
            ended: matches!(alert.shown, Shown::Ended(_)),
        };
        changed.iter().map(|key| (key.to_string(), self.alerts.get(key).map(|alert| kept(key, alert)))).collect()
    }
}

/// A time of this boot as a signed number, since times of earlier boots are negative.
fn moment(at_ns: u64) -> i64 {
    i64::try_from(at_ns).unwrap_or(i64::MAX)
}

impl Alert {
    fn waits_for_a_peer(&self, key: &Key) -> bool {
        key.kind.is_event() && !self.delivered
    }

    /// When an event that nobody takes is dropped.
    fn gives_up_ns(&self) -> u64 {
        self.until_ns.saturating_add(UNDELIVERED - EVENT)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}/{}/{}", self.kind.name(), self.kind.scope().unwrap_or_default(), self.service)
    }
}

#[cfg(test)]
mod tests;

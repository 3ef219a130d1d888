//! What one peer has to hear, and when. Pure: answers and the time go in.
//!
//! A peer is told each version of an alert once, and what fires again and again, since Alertmanager forgets what it does not
//! hear of. A peer that does not answer is tried less and less often. What it refuses is not sent again: an alert that a peer
//! finds wrong stays wrong. When it refuses several at once, each is sent alone, so that one cannot take the others with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    board::{Alert, Board, Key, Shown},
    kind::Kind,
};

const SECOND: u64 = 1_000_000_000;
/// What fires is said again after this: a minute, as Prometheus does.
const RESEND: u64 = 60 * SECOND;
/// Before the second try; doubled up to [`BACK_OFF_MAX`].
const BACK_OFF: u64 = SECOND / 4;
/// Alertmanager may be away for days, and is to hear of things soon after it is back.
const BACK_OFF_MAX: u64 = 15 * SECOND;
/// Alerts in one post, some 64 KiB: a peer answers within milliseconds, and a storm does not hold up what comes after it.
const BATCH: usize = 64;

/// What is said of one alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Posting {
    pub(super) kind: Kind,
    pub(super) service: Arc<str>,
    pub(super) since_ns: i64,
    /// When it was over; `None`: it fires.
    pub(super) ended_ns: Option<u64>,
    pub(super) text: String,
    version: u64,
}

/// What a peer answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It has them.
    Accepted,
    /// It finds them wrong.
    Refused(String),
    /// It did not answer, or cannot take anything now.
    Failed(String),
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Tell these, and then what came of it.
    Post(Vec<Posting>),
    /// Nothing until then, or until the board changes.
    Wait {
        /// `None`: not without a change.
        until_ns: Option<u64>,
    },
    /// Nothing until then, whatever changes.
    Hold {
        /// CLOCK_BOOTTIME.
        until_ns: u64,
    },
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    told: BTreeMap<Key, Told>,
    /// Alerts of a batch that was refused: each goes alone.
    alone: BTreeSet<Key>,
    failures: u32,
    not_before_ns: u64,
}

/// The last that a peer has answered to.
#[derive(Clone, Copy, Debug)]
struct Told {
    version: u64,
    at_ns: u64,
    refused: bool,
}

impl Outbox {
    /// What this peer has to hear now.
    pub(super) fn next(&mut self, board: &Board, now: u64) -> Next {
        self.told.retain(|key, _| board.knows(key));
        self.alone.retain(|key| board.knows(key));
        if now < self.not_before_ns {
            return Next::Hold { until_ns: self.not_before_ns };
        }
        let is_new =
            |(key, alert): &(&Key, &Alert)| self.told.get(key).is_none_or(|told| told.version != alert.version);
        let alone = board.shown().find(|one| self.alone.contains(one.0) && is_new(one));
        if let Some((key, alert)) = alone {
            return Next::Post(vec![posting(key, alert)]);
        }
        // News first: they must not wait behind what was said before.
        let news = board.shown().filter(is_new);
        let again = board.shown().filter(|one| !is_new(one) && self.again_ns(one).is_some_and(|at| now >= at));
        let batch: Vec<_> = news.chain(again).take(BATCH).map(|(key, alert)| posting(key, alert)).collect();
        if !batch.is_empty() {
            return Next::Post(batch);
        }
        let again = board.shown().filter_map(|one| self.again_ns(&one)).min();
        Next::Wait { until_ns: again.into_iter().chain(board.deadline()).min() }
    }

    /// When a peer that did not answer is tried again.
    #[cfg(test)]
    pub(super) fn held_until(&self) -> Option<u64> {
        (self.not_before_ns > 0).then_some(self.not_before_ns)
    }

    /// When what was told is to be told again.
    fn again_ns(&self, (key, alert): &(&Key, &Alert)) -> Option<u64> {
        let told = self.told.get(key).filter(|told| !told.refused && alert.shown == Shown::Firing)?;
        Some(told.at_ns.saturating_add(RESEND))
    }

    /// Notes what came of a batch. Returns what was accepted.
    pub(super) fn answered(&mut self, batch: &[Posting], answer: &Answer, now: u64) -> Vec<(Key, u64)> {
        let keys = batch.iter().map(|posting| (posting.key(), posting.version));
        if let Answer::Failed(_) = answer {
            self.not_before_ns =
                now.saturating_add(BACK_OFF.saturating_mul(1 << self.failures.min(16)).min(BACK_OFF_MAX));
            self.failures += 1;
            return Vec::new();
        }
        (self.failures, self.not_before_ns) = (0, 0);
        let refused = matches!(answer, Answer::Refused(_));
        if refused && batch.len() > 1 {
            self.alone.extend(keys.map(|(key, _)| key));
            return Vec::new();
        }
        for (key, version) in keys.clone() {
            self.alone.remove(&key);
            self.told.insert(key, Told { version, at_ns: now, refused });
        }
        if refused { Vec::new() } else { keys.collect() }
    }
}

impl Posting {
    fn key(&self) -> Key {
        Key { kind: self.kind, service: Arc::clone(&self.service) }
    }
}

fn posting(key: &Key, alert: &Alert) -> Posting {
    Posting {
        kind: key.kind,
        service: Arc::clone(&key.service),
        since_ns: alert.since_ns,
        ended_ns: match alert.shown {
            Shown::Ended(at) => Some(at),
            Shown::Firing | Shown::No => None,
        },
        text: alert.text.clone(),
        version: alert.version,
    }
}

#[cfg(test)]
mod tests;

//! One claim to a slot of a pool: what to ask etcd next, and whether the slot may be relied on. Pure: time is an argument,
//! answers come in, and may come late or never.
//!
//! ```text
//! Look ──a slot is free──▶ Grant ──▶ Take ──it is ours──▶ held ◀──▶ Renew, three times in a TTL
//!  │ none                    │        │ somebody was faster: another slot │ gone, or no answer in time
//!  ▼                         ▼        ▼                                   ▼
//! refused ◀──────────────────┴────────┘                                 lost
//! ```
//! A slot is a key that is created by a transaction if it does not exist, under the holder's lease. etcd removes it when
//! the lease has not been renewed for its TTL; the holder stops relying on it a tenth of a TTL before, counted from when it
//! *sent* what was answered. So between the two no message can be late enough to make two holders.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Shares of a TTL. A tenth is for the difference between two hosts' clocks (the kernel slews by 500 ppm at most, adjtimex(2))
/// and for what happens between the look at the clock and the act. Renewal at a third leaves two more tries.
const MARGIN: u32 = 10;
const RENEWALS: u32 = 3;
/// Between tries to renew when nobody answers.
const RETRY: u32 = 20;
/// Slots that are tried when others are faster, before it is said that there is none.
const TRIES: u32 = 4;

/// etcd's name for a lease.
pub(super) type Lease = i64;

/// What stands in a slot, for people with etcdctl, and for [`Refused`](super::Refused).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    /// The host's name.
    pub(crate) host: String,
    /// What is out there, or what the slot is held for.
    pub(crate) service: String,
    /// Since when; RFC 3339.
    pub(crate) since: jiff::Timestamp,
}

/// A slot that is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// Its number; `None` when it was not taken by an agent.
    pub(super) index: Option<u32>,
    /// Whose lease it goes with; 0: none.
    pub(super) lease: Lease,
    /// `None` when it was not written by an agent.
    pub(super) holder: Option<Holder>,
}

/// What is known of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Slots that are taken.
    pub(super) taken: usize,
    /// After [`Ask::Look`] a few of them, so that a full pool of many slots costs little to look at; after [`Ask::Take`] all.
    pub(super) slots: Vec<Slot>,
}

/// What etcd is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// How many slots of the pool are taken, and a few of them.
    Look,
    /// A lease.
    Grant,
    /// A slot, if nobody has it.
    Take { slot: u32, lease: Lease },
    /// Another TTL.
    Renew { lease: Lease },
}

/// What it says.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// To [`Ask::Look`]; to [`Ask::Take`], when somebody has the slot.
    Slots(Seen),
    /// To [`Ask::Grant`] and [`Ask::Renew`].
    Lease { lease: Lease, ttl: Duration },
    /// To [`Ask::Take`].
    Taken,
    /// There is no such lease any more.
    Gone,
    /// Nothing that says anything.
    Failed(String),
}

/// Why it is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Never held: so many are out as may be.
    Full(Seen),
    /// Never held: etcd did not say that it is.
    Unreachable(String),
    /// Held, and no longer.
    Lost(String),
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Ask, and bring the answer.
    Ask(Ask),
    /// It is held; come again at that time (CLOCK_BOOTTIME).
    Held { until_ns: u64 },
    /// Nothing.
    Over(End),
}

/// A slot that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// Its number.
    pub(super) slot: u32,
    /// Under which lease.
    pub(super) lease: Lease,
    /// From then on it must not be relied on (CLOCK_BOOTTIME).
    pub(super) valid_until_ns: u64,
}

#[derive(Clone, Debug)]
enum State {
    Looking,
    Leasing { slot: u32 },
    Taking { slot: u32, tries: u32 },
    Held { slot: u32, renew_ns: u64 },
    Over(End),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Claim {
    /// How many may be out at once.
    limit: u32,
    /// Where the search for a free slot begins: not where everybody else's does.
    seed: u64,
    state: State,
    lease: Option<(Lease, Duration)>,
    /// When the question that is under way was asked.
    asked_ns: u64,
    /// When the newest answer about the lease was asked for.
    confirmed_ns: u64,
    /// From then on the slot must not be relied on.
    valid_until_ns: u64,
}

impl Claim {
    /// A claim to one of `limit` slots.
    pub(super) fn new(limit: u32, seed: u64) -> Self {
        Self { limit, seed, state: State::Looking, lease: None, asked_ns: 0, confirmed_ns: 0, valid_until_ns: 0 }
    }

    /// What to do now.
    pub(super) fn next(&mut self, now_ns: u64) -> Next {
        self.expire(now_ns);
        let lease = self.lease.map_or(0, |(lease, _)| lease);
        let ask = match &self.state {
            State::Looking => Ask::Look,
            State::Leasing { .. } => Ask::Grant,
            State::Taking { slot, .. } => Ask::Take { slot: *slot, lease },
            State::Held { renew_ns, .. } if now_ns < *renew_ns => {
                return Next::Held { until_ns: (*renew_ns).min(self.valid_until_ns) };
            }
            State::Held { .. } => Ask::Renew { lease },
            State::Over(end) => return Next::Over(end.clone()),
        };
        self.asked_ns = now_ns;
        Next::Ask(ask)
    }

    /// The answer to what [`Self::next`] asked last.
    pub(super) fn answered(&mut self, answer: Answer, now_ns: u64) {
        self.state = match (self.state.clone(), answer) {
            (State::Looking, Answer::Slots(seen)) => match self.free(&seen) {
                Some(slot) => State::Leasing { slot },
                None => State::Over(End::Full(seen)),
            },
            (State::Leasing { slot }, Answer::Lease { lease, ttl }) => {
                self.lease = Some((lease, ttl));
                self.prolong(ttl);
                State::Taking { slot, tries: 1 }
            }
            (State::Taking { slot, .. }, Answer::Taken) => self.held(slot),
            (State::Taking { tries, .. }, Answer::Slots(seen)) => {
                let own = self.lease.map(|(lease, _)| lease);
                match seen.slots.iter().find(|slot| Some(slot.lease) == own).and_then(|slot| slot.index) {
                    // It was taken by an earlier try whose answer was lost.
                    Some(slot) => self.held(slot),
                    None => match self.free(&seen).filter(|_| tries < TRIES) {
                        Some(slot) => State::Taking { slot, tries: tries + 1 },
                        None => State::Over(End::Full(seen)),
                    },
                }
            }
            (State::Held { slot, .. }, Answer::Lease { ttl, .. }) => {
                // What is over stays over, also when the renewal did reach etcd.
                if now_ns < self.valid_until_ns {
                    self.prolong(ttl);
                }
                self.held(slot)
            }
            (State::Held { .. }, Answer::Gone) => State::Over(End::Lost("etcd has ended its lease".to_owned())),
            (State::Held { slot, .. }, _) => {
                let pause = self.lease.map_or(Duration::ZERO, |(_, ttl)| ttl / RETRY);
                State::Held { slot, renew_ns: now_ns.saturating_add(nanos(pause)) }
            }
            (State::Over(end), _) => State::Over(end),
            (_, Answer::Failed(why)) => State::Over(End::Unreachable(why)),
            (_, answer) => State::Over(End::Unreachable(format!("an answer that makes no sense: {answer:?}"))),
        };
        self.expire(now_ns);
    }

    /// The lease, if one was granted, for whoever gives it back.
    pub(super) fn lease(&self) -> Option<Lease> {
        self.lease.map(|(lease, _)| lease)
    }

    /// The slot that is held, if there is one.
    pub(super) fn holds(&self) -> Option<Held> {
        match (&self.state, self.lease) {
            (&State::Held { slot, .. }, Some((lease, _))) => {
                Some(Held { slot, lease, valid_until_ns: self.valid_until_ns })
            }
            _ => None,
        }
    }

    fn held(&self, slot: u32) -> State {
        let third = self.lease.map_or(Duration::ZERO, |(_, ttl)| ttl / RENEWALS);
        State::Held { slot, renew_ns: self.confirmed_ns.saturating_add(nanos(third)) }
    }

    fn prolong(&mut self, ttl: Duration) {
        self.lease = self.lease.map(|(lease, _)| (lease, ttl));
        self.confirmed_ns = self.asked_ns;
        self.valid_until_ns = self.asked_ns.saturating_add(nanos(ttl - ttl / MARGIN));
    }

    fn expire(&mut self, now_ns: u64) {
        if now_ns < self.valid_until_ns {
            return;
        }
        self.state = match &self.state {
            State::Taking { .. } => State::Over(End::Unreachable("etcd was too slow".to_owned())),
            State::Held { .. } => State::Over(End::Lost("etcd has not confirmed it in time".to_owned())),
            State::Looking | State::Leasing { .. } | State::Over(_) => return,
        };
    }

    /// A slot that nobody is known to have, unless so many are taken as may be: also by holders who know another number.
    fn free(&self, seen: &Seen) -> Option<u32> {
        if seen.taken >= self.limit as usize {
            return None;
        }
        let first = (self.seed % u64::from(self.limit.max(1))) as u32;
        let free = |slot: &u32| seen.slots.iter().all(|taken| taken.index != Some(*slot));
        (first..self.limit).chain(0..first).find(free)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

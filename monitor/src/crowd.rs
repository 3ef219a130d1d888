//! Shares a fixed number of places fairly among peers; pure. When all are taken, a new member gets a place of the peer
//! that has the most. So a peer that fills all places loses one to each newcomer and keeps nobody else out.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    time::Duration,
};

/// A fixed number of places, held by members of peers `P`. The token `T` tells a member that it has lost its place.
#[derive(Debug)]
pub(crate) struct Crowd<P, T> {
    room: usize,
    /// A member is slow once it has held its place for this long.
    patience: Duration,
    /// The next member's number. Numbers grow, so a peer's oldest member has its lowest number.
    next: u64,
    members: HashMap<u64, Member<P, T>>,
    peers: HashMap<P, BTreeSet<u64>>,
}

#[derive(Debug)]
struct Member<P, T> {
    peer: P,
    since: Duration,
    token: T,
}

/// A place that was given.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entered<T> {
    /// Number to give the place back with.
    pub(crate) number: u64,
    /// The member that lost its place for this one.
    pub(crate) evicted: Option<T>,
}

impl<P: Copy + Eq + Hash, T> Crowd<P, T> {
    /// A crowd of `room` free places.
    pub(crate) fn new(room: usize, patience: Duration) -> Self {
        Self { room, patience, next: 0, members: HashMap::new(), peers: HashMap::new() }
    }

    /// Gives `peer` one more place, at `now` on any monotonic clock. `None` when no other peer has more than this one
    /// would have and the member to evict is not slow yet.
    pub(crate) fn enter(&mut self, peer: P, token: T, now: Duration) -> Option<Entered<T>> {
        let evicted = if self.members.len() < self.room { None } else { Some(self.leave(self.victim(peer, now)?)?) };
        let number = self.next;
        self.next += 1;
        self.members.insert(number, Member { peer, since: now, token });
        self.peers.entry(peer).or_default().insert(number);
        Some(Entered { number, evicted })
    }

    /// Gives a place back; does nothing when it was already lost.
    pub(crate) fn leave(&mut self, number: u64) -> Option<T> {
        let Member { peer, token, .. } = self.members.remove(&number)?;
        if let Some(numbers) = self.peers.get_mut(&peer) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.peers.remove(&peer);
            }
        }
        Some(token)
    }

    /// Takes the place of the oldest member of the peer that has the most.
    pub(crate) fn evict(&mut self) -> Option<T> {
        let (_, oldest) = self.fullest()?;
        self.leave(oldest)
    }

    /// Members in all.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// The member whose place a new member of `peer` may take.
    fn victim(&self, peer: P, now: Duration) -> Option<u64> {
        let own = self.peers.get(&peer);
        let (most, of_fullest) = self.fullest()?;
        if most > own.map_or(0, BTreeSet::len) + 1 {
            return Some(of_fullest);
        }
        // No peer has more than this one would have: take its own oldest member, or if it has none, another peer's
        // oldest.
        let oldest = own.and_then(BTreeSet::first).copied().unwrap_or(of_fullest);
        let since = self.members.get(&oldest)?.since;
        (now.saturating_sub(since) >= self.patience).then_some(oldest)
    }

    /// The size of the peer with the most members, and its oldest member. Among equal peers, the one with the oldest
    /// member.
    fn fullest(&self) -> Option<(usize, u64)> {
        let each = self.peers.values().filter_map(|numbers| Some((numbers.len(), *numbers.first()?)));
        each.max_by_key(|&(count, oldest)| (count, std::cmp::Reverse(oldest)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn crowd(room: usize) -> Crowd<u32, u32> {
        Crowd::new(room, Duration::ZERO)
    }

    #[test]
    fn who_fills_all_places_loses_the_oldest_to_each_of_the_others() {
        let mut crowd = crowd(4);
        for token in 0..4 {
            assert_eq!(crowd.enter(7, token, SECOND).and_then(|entered| entered.evicted), None);
        }
        assert_eq!(crowd.enter(1, 10, SECOND).and_then(|entered| entered.evicted), Some(0));
        assert_eq!(crowd.enter(7, 4, SECOND).and_then(|entered| entered.evicted), Some(1), "its own");
        assert_eq!(crowd.enter(1, 11, SECOND).and_then(|entered| entered.evicted), Some(2), "half of all");
        assert_eq!(crowd.enter(1, 12, SECOND).and_then(|entered| entered.evicted), Some(10), "and no more than that");
        assert_eq!(crowd.len(), 4);
    }

    #[test]
    fn an_answer_that_has_just_begun_is_nobodys_to_take_but_of_who_has_too_many() {
        let mut crowd = Crowd::new(2, SECOND);
        crowd.enter(7, 0, Duration::ZERO).expect("room");
        crowd.enter(7, 1, Duration::ZERO).expect("room");
        assert_eq!(crowd.enter(7, 2, SECOND / 2), None, "it waits for its own");
        assert_eq!(crowd.enter(1, 3, SECOND / 2).and_then(|entered| entered.evicted), Some(0), "it had all");
        assert_eq!(crowd.enter(2, 4, SECOND / 2), None, "each has one");
        assert_eq!(crowd.enter(2, 4, SECOND).and_then(|entered| entered.evicted), Some(1), "it is slow");
    }

    #[test]
    fn a_place_that_is_given_back_is_free_and_a_lost_one_is_nothing() {
        let mut crowd = crowd(1);
        let first = crowd.enter(7, 0, SECOND).expect("room");
        assert_eq!(crowd.enter(7, 1, SECOND), Some(Entered { number: first.number + 1, evicted: Some(0) }));
        assert_eq!((crowd.leave(first.number), crowd.leave(first.number + 1)), (None, Some(1)));
        assert_eq!((crowd.len(), crowd.evict()), (0, None));
        assert_eq!(Crowd::new(0, SECOND).enter(7, 0, SECOND), None);
    }

    proptest! {
        #[test]
        fn nobody_has_more_than_there_is_and_who_has_few_keeps_them(
            comes in proptest::collection::vec((0..4u32, any::<bool>()), 1..200),
            room in 1..12usize,
        ) {
            let (mut crowd, mut held) = (Crowd::new(room, Duration::ZERO), Vec::new());
            for (token, (peer, leaves)) in comes.into_iter().enumerate() {
                if let (true, false) = (leaves, held.is_empty()) {
                    let (number, ..): (u64, u32, usize) = held.swap_remove(token % held.len());
                    prop_assert!(crowd.leave(number).is_some());
                    continue;
                }
                let counts = |held: &[(u64, u32, usize)], peer| held.iter().filter(|one| one.1 == peer).count();
                let entered = crowd.enter(peer, token, Duration::ZERO).expect("no patience: there is always one");
                if let Some(evicted) = entered.evicted {
                    let at = held.iter().position(|&(_, _, token)| token == evicted).expect("it was in");
                    let (_, victim, _) = held[at];
                    let most = (0..4).map(|peer| counts(&held, peer)).max().unwrap_or(0);
                    let own = counts(&held, peer);
                    prop_assert!(victim == peer || counts(&held, victim) == most && (most > own + 1 || own == 0));
                    held.remove(at);
                }
                held.push((entered.number, peer, token));
                prop_assert!(held.len() <= room && held.len() == crowd.len());
                prop_assert_eq!(crowd.peers.values().map(BTreeSet::len).sum::<usize>(), held.len());
            }
        }
    }
}

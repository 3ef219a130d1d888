//! Places that whoever comes from outside shares, pure. When all are taken, a new one gets the place of a peer that has more than
//! its share: so who fills all places loses them to the others, one for each that comes, and stands in nobody's way but its own.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    time::Duration,
};

/// So many places, held by members of peers `P`; `T` is by what a member is told that it has lost its place.
#[derive(Debug)]
pub(crate) struct Crowd<P, T> {
    room: usize,
    /// A member that has its place for less time than this is not taken for slow.
    patience: Duration,
    /// The next member's number: numbers grow, so the least one of a peer is that of its oldest member.
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
    /// By which it is given back.
    pub(crate) number: u64,
    /// Who has lost it.
    pub(crate) evicted: Option<T>,
}

impl<P: Copy + Eq + Hash, T> Crowd<P, T> {
    /// All places are free.
    pub(crate) fn new(room: usize, patience: Duration) -> Self {
        Self { room, patience, next: 0, members: HashMap::new(), peers: HashMap::new() }
    }

    /// A place for one more of `peer`, at `now` on any clock that goes forward; `None` when there is none to be had: then all
    /// others have no more than this peer, and none of its own is slow.
    pub(crate) fn enter(&mut self, peer: P, token: T, now: Duration) -> Option<Entered<T>> {
        let evicted = if self.members.len() < self.room { None } else { Some(self.leave(self.victim(peer, now)?)?) };
        let number = self.next;
        self.next += 1;
        self.members.insert(number, Member { peer, since: now, token });
        self.peers.entry(peer).or_default().insert(number);
        Some(Entered { number, evicted })
    }

    /// Gives a place back; one that is lost is nothing.
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

    /// Whose place one more of `peer` may have.
    fn victim(&self, peer: P, now: Duration) -> Option<u64> {
        let own = self.peers.get(&peer);
        let (most, of_fullest) = self.fullest()?;
        if most > own.map_or(0, BTreeSet::len) + 1 {
            return Some(of_fullest);
        }
        // Nobody has more than this one would have: its own oldest, or with none the oldest of somebody else.
        let oldest = own.and_then(BTreeSet::first).copied().unwrap_or(of_fullest);
        let since = self.members.get(&oldest)?.since;
        (now.saturating_sub(since) >= self.patience).then_some(oldest)
    }

    /// How many the peer with the most has, and its oldest; of several, the one whose oldest is the oldest.
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

//! Cgroups whose claim to be a service's own is not confirmed yet. Pure.
//!
//! At most one question per cgroup and few in total are under way. A silent owner is asked again later. Claims that
//! find no room are counted.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use crate::attribution::Place;

/// Claims that wait for their owners' answer.
const WAITING: usize = 32_768;
/// Questions to owners under way at a time.
const ASKED_AT_ONCE: usize = 16;
/// Cgroups below one claim that wait with it.
const BELOW: usize = 256;
/// A silent owner is asked again after this time, which doubles with each silence up to the longest; nanoseconds.
const AGAIN_NS: u64 = 1_000_000_000;
const AGAIN_MAX_NS: u64 = 60_000_000_000;

/// Claims that wait: for their turn, for an answer, or for the next question to a silent owner.
#[derive(Debug, Default)]
pub(super) struct Claims {
    waiting: HashMap<Arc<str>, Claim>,
    /// Paths to ask about next.
    queue: VecDeque<Arc<str>>,
    /// Silent owners' claims, by when they are asked about again, CLOCK_BOOTTIME nanoseconds.
    later: BTreeMap<(u64, Arc<str>), ()>,
    asked: usize,
    dropped: u64,
}

/// A cgroup whose owner is to be asked.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    /// Id of the cgroup.
    pub(super) id: u64,
    /// Where it is, and what it claims.
    pub(super) place: Place,
    /// Cgroups below it.
    pub(super) below: Vec<(u64, Place)>,
    /// Silences so far.
    silences: u32,
}

impl Claims {
    /// Adds a claim. It replaces an older one for the same path: the cgroup was made anew. The answer to a question under way is
    /// about the path, so it holds for the new cgroup too.
    pub(super) fn add(&mut self, id: u64, place: &Place) {
        if let Some(claim) = self.waiting.get_mut(&place.path) {
            (claim.id, claim.place) = (id, place.clone());
            return;
        }
        if self.waiting.len() >= WAITING {
            self.dropped += 1;
            return;
        }
        let claim = Claim { id, place: place.clone(), below: Vec::new(), silences: 0 };
        self.waiting.insert(Arc::clone(&place.path), claim);
        self.queue.push_back(Arc::clone(&place.path));
    }

    /// Lets a cgroup wait with the claim above it, if there is one.
    pub(super) fn add_below(&mut self, id: u64, place: &Place) {
        if let Some(claim) = self.waiting.get_mut(place.root()) {
            if claim.below.len() < BELOW {
                claim.below.push((id, place.clone()));
            } else {
                self.dropped += 1;
            }
        }
    }

    /// Claims to ask about now; each must end in [`Self::answered`] or [`Self::silent`].
    pub(super) fn ask(&mut self, now_ns: u64) -> Vec<Place> {
        while let Some(entry) = self.later.first_entry() {
            if entry.key().0 > now_ns {
                break;
            }
            let ((_, path), ()) = entry.remove_entry();
            self.queue.push_back(path);
        }
        let mut places = Vec::new();
        while self.asked < ASKED_AT_ONCE
            && let Some(path) = self.queue.pop_front()
        {
            if let Some(claim) = self.waiting.get(&path) {
                self.asked += 1;
                places.push(claim.place.clone());
            }
        }
        places
    }

    /// Removes and returns the claim whose owner has answered.
    pub(super) fn answered(&mut self, path: &str) -> Option<Claim> {
        self.asked = self.asked.saturating_sub(1);
        self.waiting.remove(path)
    }

    /// The owner did not answer. True when that is the first time for this claim.
    pub(super) fn silent(&mut self, path: &Arc<str>, now_ns: u64) -> bool {
        self.asked = self.asked.saturating_sub(1);
        let Some(claim) = self.waiting.get_mut(path) else { return false };
        let wait = AGAIN_NS.saturating_mul(1 << claim.silences.min(16)).min(AGAIN_MAX_NS);
        claim.silences += 1;
        let is_first = claim.silences == 1;
        self.later.insert((now_ns.saturating_add(wait), Arc::clone(path)), ());
        is_first
    }

    /// When [`Self::ask`] has something new to ask about.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.later.first_key_value().map(|((at_ns, _), ())| *at_ns)
    }

    /// True while a question is under way or waits for its turn.
    pub(super) fn is_waiting(&self) -> bool {
        self.asked > 0 || !self.queue.is_empty()
    }

    /// True while the cgroup at this path waits for its owner's answer.
    pub(super) fn has(&self, path: &str) -> bool {
        self.waiting.contains_key(path)
    }

    /// Claims that found no room.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::Table;

    fn place(path: &str) -> Place {
        Table::default().describe(path)
    }

    fn unit(number: usize) -> Place {
        place(&format!("/system.slice/{number}.service"))
    }

    #[test]
    fn few_are_asked_about_at_once_and_each_has_its_turn() {
        let mut claims = Claims::default();
        for number in 0..100 {
            claims.add(number as u64, &unit(number));
        }
        let mut answered = 0;
        while claims.is_waiting() {
            let places = claims.ask(0);
            assert!(places.len() <= ASKED_AT_ONCE);
            for place in places {
                answered += usize::from(claims.answered(&place.path).is_some());
            }
        }
        assert_eq!(answered, 100);
    }

    #[test]
    fn what_is_below_a_claim_waits_with_it_and_is_bounded() {
        let mut claims = Claims::default();
        claims.add(1, &unit(1));
        for id in 0..300 {
            claims.add_below(id, &place(&format!("/system.slice/1.service/{id}")));
        }
        claims.add_below(7, &place("/system.slice/2.service/x"));
        assert_eq!(claims.ask(0).len(), 1);
        let claim = claims.answered("/system.slice/1.service").expect("waiting");
        assert_eq!((claim.id, claim.below.len(), claims.dropped()), (1, BELOW, 300 - BELOW as u64));
    }

    #[test]
    fn a_cgroup_that_was_made_anew_is_the_one_that_counts() {
        let mut claims = Claims::default();
        claims.add(1, &unit(1));
        claims.add(2, &unit(1));
        assert_eq!(claims.ask(0).len(), 1, "one question");
        assert_eq!(claims.answered("/system.slice/1.service").map(|claim| claim.id), Some(2));
        assert!(!claims.is_waiting());
    }

    #[test]
    fn a_silent_owner_is_asked_again_ever_more_seldom() {
        let mut claims = Claims::default();
        claims.add(1, &unit(1));
        let path = &claims.ask(0)[0].path.clone();
        assert!(claims.silent(path, 10));
        assert!(!claims.is_waiting(), "nobody waits for a silent owner");
        assert_eq!((claims.ask(10).len(), claims.next_deadline()), (0, Some(10 + AGAIN_NS)));
        assert_eq!(claims.ask(10 + AGAIN_NS).len(), 1);
        assert!(!claims.silent(path, 0));
        assert_eq!(claims.next_deadline(), Some(2 * AGAIN_NS));
        for _ in 0..20 {
            claims.ask(u64::MAX);
            claims.silent(path, 0);
        }
        assert_eq!(claims.next_deadline(), Some(AGAIN_MAX_NS));
    }

    #[test]
    fn a_crowd_of_claims_is_bounded_and_counted() {
        let mut claims = Claims::default();
        for number in 0..WAITING + 5 {
            claims.add(number as u64, &unit(number));
        }
        assert_eq!((claims.dropped(), claims.waiting.len()), (5, WAITING));
    }
}

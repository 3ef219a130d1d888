//! A map that keeps the entries that came last, so that what is remembered of the past stays bounded.

use std::{
    borrow::Borrow,
    collections::{HashMap, VecDeque, hash_map::Entry},
    hash::Hash,
};

/// See the module. The first value for a key stays until it is removed or pushed out.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    entries: HashMap<K, (u64, V)>,
    /// Keys with the number of their insertion, the oldest first; those of removed entries go when their turn comes.
    order: VecDeque<(u64, K)>,
    capacity: usize,
    inserted: u64,
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    /// A map for at most `capacity` entries.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new(), capacity, inserted: 0 }
    }

    /// Adds an entry, and pushes the oldest out when there is no room. False when the key is there already.
    pub(crate) fn insert(&mut self, key: K, value: V) -> bool {
        let Entry::Vacant(vacant) = self.entries.entry(key.clone()) else { return false };
        self.inserted += 1;
        vacant.insert((self.inserted, value));
        self.order.push_back((self.inserted, key));
        // Entries that are removed and added again leave their old keys in the queue.
        while self.entries.len() > self.capacity || self.order.len() > 2 * self.capacity {
            let Some((number, oldest)) = self.order.pop_front() else { break };
            if self.entries.get(&oldest).is_some_and(|(current, _)| *current == number) {
                self.entries.remove(&oldest);
            }
        }
        true
    }

    /// What the next new entry will push out.
    pub(crate) fn oldest(&mut self) -> Option<(&K, &V)> {
        while let Some((number, key)) = self.order.front() {
            if self.entries.get(key).is_some_and(|(current, _)| current == number) {
                break;
            }
            self.order.pop_front();
        }
        let (_, key) = self.order.front()?;
        self.entries.get_key_value(key).map(|(key, (_, value))| (key, value))
    }

    /// True when a new entry pushes another out.
    pub(crate) fn is_full(&self) -> bool {
        self.entries.len() >= self.capacity
    }

    /// The value of a key.
    pub(crate) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.entries.get(key).map(|(_, value)| value)
    }

    /// The stored key and its value.
    pub(crate) fn get_key_value<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
    {
        self.entries.get_key_value(key).map(|(key, (_, value))| (key, value))
    }

    /// Takes an entry out.
    pub(crate) fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.entries.remove(key).map(|(_, value)| value)
    }

    /// All entries, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, (_, value))| (key, value))
    }

    /// All entries, mutable, in no order.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.entries.iter_mut().map(|(key, (_, value))| (key, value))
    }

    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Up to `most` keys, oldest first. They count as newest afterwards, so that repeated calls reach every key.
    pub(crate) fn turn(&mut self, most: usize) -> Vec<K> {
        let mut taken = Vec::new();
        for _ in 0..self.order.len() {
            if taken.len() == most {
                break;
            }
            let Some((number, key)) = self.order.pop_front() else { break };
            if self.entries.get(&key).is_some_and(|(current, _)| *current == number) {
                taken.push(key.clone());
                self.order.push_back((number, key));
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_oldest_goes_first_and_the_first_value_stays() {
        let mut recent = Recent::new(2);
        assert!(recent.insert(1, "a"));
        assert!(!recent.insert(1, "b"));
        recent.insert(2, "c");
        recent.insert(3, "d");
        assert_eq!((recent.get(&1), recent.get(&2), recent.get(&3)), (None, Some(&"c"), Some(&"d")));
        assert!(recent.is_full());
        assert_eq!(recent.oldest(), Some((&2, &"c")));
        assert_eq!(recent.remove(&2), Some("c"));
        assert_eq!(recent.oldest(), Some((&3, &"d")));
        assert!(!recent.is_full());
        assert_eq!(recent.iter().count(), 1);
    }

    #[test]
    fn all_have_their_turn() {
        let mut recent = Recent::new(8);
        for key in 0..5 {
            recent.insert(key, ());
        }
        recent.remove(&1);
        assert_eq!((recent.turn(3), recent.turn(3)), (vec![0, 2, 3], vec![4, 0, 2]));
        assert_eq!(recent.turn(9).len(), 4, "each once");
        assert_eq!(recent.len(), 4);
    }

    proptest! {
        /// Whatever is added and removed: the newest entries are there, and neither map nor queue grows.
        #[test]
        fn it_stays_bounded(steps in prop::collection::vec((0u8..20, any::<bool>()), 0..400)) {
            let mut recent = Recent::new(5);
            for (key, add) in steps {
                if add {
                    recent.insert(key, ());
                    prop_assert!(recent.get(&key).is_some());
                } else {
                    recent.remove(&key);
                }
                prop_assert!(recent.entries.len() <= 5 && recent.order.len() <= 10);
            }
        }
    }
}

//! Which kept traces have to go. Pure.

use std::collections::HashMap;

/// Traces of one service.
pub(super) const EACH: usize = 8;
/// Bytes of all.
pub(super) const ALL: u64 = 64 << 20;

/// A trace that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The directory of its service.
    pub(super) service: String,
    /// Its own, within that; sorts by time.
    pub(super) time: String,
    /// Bytes of its files.
    pub(super) bytes: u64,
}

/// The oldest of each service beyond [`EACH`], then the oldest of all until the rest has room in [`ALL`]. The newest stays, since
/// it was just made for somebody.
pub(super) fn surplus(mut kept: Vec<Entry>) -> Vec<Entry> {
    kept.sort_by(|a, b| b.time.cmp(&a.time).then_with(|| a.service.cmp(&b.service)));
    let (mut of_each, mut bytes) = (HashMap::new(), 0_u64);
    let mut surplus = Vec::new();
    let mut is_full = false;
    for (at, entry) in kept.into_iter().enumerate() {
        let of_this = of_each.entry(entry.service.clone()).or_insert(0_usize);
        if *of_this >= EACH {
            surplus.push(entry);
            continue;
        }
        // Older ones go before newer ones, also where a small old one would find room.
        is_full |= at > 0 && bytes.saturating_add(entry.bytes) > ALL;
        if is_full {
            surplus.push(entry);
        } else {
            *of_this += 1;
            bytes = bytes.saturating_add(entry.bytes);
        }
    }
    surplus
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(service: &str, time: u32, mib: u64) -> Entry {
        Entry { service: service.to_owned(), time: format!("{time:04}"), bytes: mib << 20 }
    }

    #[test]
    fn the_oldest_of_a_service_go_beyond_eight() {
        let mut kept: Vec<_> = (0..10).map(|time| entry("web", time, 1)).collect();
        kept.push(entry("db", 0, 1));
        assert_eq!(surplus(kept), [entry("web", 1, 1), entry("web", 0, 1)]);
    }

    #[test]
    fn the_oldest_of_all_go_beyond_the_room_and_the_newest_never() {
        let kept = vec![entry("a", 3, 30), entry("b", 2, 30), entry("c", 1, 30), entry("d", 0, 1)];
        assert_eq!(surplus(kept), [entry("c", 1, 30), entry("d", 0, 1)]);
        assert_eq!(surplus(vec![entry("a", 1, 100), entry("b", 0, 1)]), [entry("b", 0, 1)]);
        assert_eq!(surplus(Vec::new()), []);
    }
}

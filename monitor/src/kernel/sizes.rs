//! How many entries the LRU maps need on this host.

/// The LRU maps, with their least number of entries (monitor-ebpf/src/maps.rs).
const EVICTING: [(&str, u32); 4] = [("SIGNALS", 16384), ("REFUSED", 4096), ("OOM_REQUESTS", 256), ("ENDED", 4096)];
/// Entries for each processor. Each keeps up to 128 free ones (`LOCAL_FREE_TARGET`, kernel/bpf/bpf_lru_list.c, before a
/// change of June 2025), so a smaller map evicts long before it is full.
const FOR_EACH_CPU: u32 = 256;

/// The entries of each LRU map on a host with up to `cpus` processors.
pub(super) fn of(cpus: u32) -> [(&'static str, u32); EVICTING.len()] {
    EVICTING.map(|(map, least)| (map, least.max(cpus.saturating_mul(FOR_EACH_CPU))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{allocations::UNUSED_BY_AGENT, load::OBJECT};

    #[test]
    fn a_map_grows_with_the_processors_and_is_never_smaller_than_it_was() {
        assert_eq!(of(1), EVICTING.map(|(map, least)| (map, least.max(256))));
        assert_eq!(of(64), [("SIGNALS", 16384), ("REFUSED", 16384), ("OOM_REQUESTS", 16384), ("ENDED", 16384)]);
        assert_eq!(of(512).map(|(_, entries)| entries), [131_072; 4]);
    }

    #[test]
    fn every_evicting_map_of_the_object_is_sized() {
        let object = aya_obj::Object::parse(&OBJECT.0).expect("our own object");
        // `BPF_MAP_TYPE_LRU_HASH` (uapi bpf.h).
        let evicting = |name: &str, map: &aya_obj::Map| {
            map.map_type() == 9 && UNUSED_BY_AGENT.iter().all(|(unused, _)| *unused != name)
        };
        let found = object.maps.iter().filter(|(name, map)| evicting(name, map));
        let mut found: Vec<_> = found.map(|(name, map)| (name.as_str(), map.max_entries())).collect();
        let mut known = EVICTING.to_vec();
        found.sort_unstable();
        known.sort_unstable();
        assert_eq!(found, known);
    }
}

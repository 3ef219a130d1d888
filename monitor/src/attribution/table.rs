//! Cgroup id → path and service. Filled by one walk at start, kept by the programs' create and remove records.
//!
//! A removed cgroup stays known for a while: deaths on the other ring may be read after its removal. The table is
//! bounded; when it is full, removed cgroups go first, and what then finds no room is looked up again when needed.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use super::origin::Origin;

/// Cgroups known at a time, about 200 bytes each.
const CAPACITY: usize = 65_536;
/// Removed cgroups that stay known.
const REMEMBERED: usize = 1024;

/// Where a process lived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Path of the cgroup below its hierarchy's root.
    pub(crate) path: Arc<str>,
    /// Name of the service, stable over restarts.
    pub(crate) service: Arc<str>,
    /// What the path says.
    pub(crate) origin: Arc<Origin>,
}

impl Place {
    /// False for a container that its engine has not named yet: it is called by its id meanwhile.
    pub(crate) fn is_named(&self) -> bool {
        match &*self.origin {
            Origin::Container { engine, id } => *self.service != *by_id(engine, id),
            Origin::Unit(_) | Origin::Cgroup => true,
        }
    }
}

fn by_id(engine: &str, id: &str) -> String {
    format!("{engine}:{}", id.get(..12).unwrap_or(id))
}

/// All cgroups of the watched hierarchy.
#[derive(Debug)]
pub(crate) struct Table {
    places: HashMap<u64, Place>,
    removed: VecDeque<u64>,
    /// Names that others gave to origins: a command service's cgroup, a container's name.
    named: HashMap<Arc<str>, Arc<str>>,
    /// Of all cgroups that are neither of a unit nor of a container.
    plain: Arc<Origin>,
}

impl Default for Table {
    fn default() -> Self {
        let (places, removed, named) = (HashMap::new(), VecDeque::new(), HashMap::new());
        Self { places, removed, named, plain: Arc::new(Origin::Cgroup) }
    }
}

impl Table {
    /// Calls everything below the cgroup `path` by a service's name, and returns what is known there already.
    pub(crate) fn name(&mut self, path: &Arc<str>, service: &Arc<str>) -> Vec<(u64, Place)> {
        let root = format!("/{}", path.trim_matches('/'));
        let root: Arc<str> = if root == **path { Arc::clone(path) } else { root.into() };
        let below = |path: &str| path.strip_prefix(&*root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let mut renamed = Vec::new();
        for (&id, place) in self.places.iter_mut().filter(|(_, place)| below(&place.path)) {
            place.service = Arc::clone(service);
            renamed.push((id, place.clone()));
        }
        self.named.insert(root, Arc::clone(service));
        renamed
    }

    /// Notes a cgroup; `None` when the table is full.
    pub(crate) fn insert(&mut self, id: u64, path: &str) -> Option<&Place> {
        if self.places.len() >= CAPACITY && !self.places.contains_key(&id) {
            let oldest = self.removed.pop_front()?;
            self.forget(oldest);
        }
        let place = self.describe(path);
        self.places.insert(id, place);
        self.places.get(&id)
    }

    /// Keeps what `exists` says, after a walk over all cgroups: word of a removal can be lost.
    pub(crate) fn retain(&mut self, exists: impl Fn(u64) -> bool) {
        let waiting: HashSet<u64> = self.removed.iter().copied().collect();
        let gone: Vec<_> = self.places.keys().copied().filter(|&id| !exists(id) && !waiting.contains(&id)).collect();
        for id in gone {
            self.remove(id);
        }
    }

    /// Notes that a cgroup was removed; it stays known until others push it out.
    pub(crate) fn remove(&mut self, id: u64) {
        if !self.places.contains_key(&id) {
            return;
        }
        self.removed.push_back(id);
        if self.removed.len() > REMEMBERED
            && let Some(oldest) = self.removed.pop_front()
        {
            self.forget(oldest);
        }
    }

    /// A container's name goes with its cgroup, whose id never comes again; a command service's stays.
    fn forget(&mut self, id: u64) {
        if let Some(place) = self.places.remove(&id)
            && place.origin.container_root(&place.path) == Some(&place.path)
        {
            self.named.remove(&*place.path);
        }
    }

    /// Notes one that was known to an earlier agent by this service's name, and is not there any more.
    pub(crate) fn recall(&mut self, id: u64, path: &str, service: &Arc<str>) {
        if self.places.contains_key(&id) || self.insert(id, path).is_none() {
            return;
        }
        if let Some(place) = self.places.get_mut(&id) {
            place.service = Arc::clone(service);
        }
        self.remove(id);
    }

    /// The place with this id, when known.
    pub(crate) fn get(&self, id: u64) -> Option<&Place> {
        self.places.get(&id)
    }

    /// Number of known cgroups.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// What a path means here.
    pub(crate) fn describe(&self, path: &str) -> Place {
        let origin = Origin::of(path);
        // Ten thousand services, and as many copies of a path that is here already, are a megabyte.
        let path = self.named.get_key_value(path).map_or_else(|| path.into(), |(path, _)| Arc::clone(path));
        let service = self.given_name(&path).unwrap_or_else(|| match &origin {
            Origin::Unit(name) => name.as_str().into(),
            Origin::Container { engine, id } => by_id(engine, id).into(),
            Origin::Cgroup if path.is_empty() => "/".into(),
            Origin::Cgroup => Arc::clone(&path),
        });
        let origin = if origin == Origin::Cgroup { Arc::clone(&self.plain) } else { Arc::new(origin) };
        Place { path, service, origin }
    }

    /// The name given to this cgroup or to the nearest one above it.
    fn given_name(&self, path: &str) -> Option<Arc<str>> {
        let mut path = path;
        loop {
            if let Some(name) = self.named.get(path) {
                return Some(Arc::clone(name));
            }
            path = &path[..path.rfind('/')?];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_cgroup_is_known_until_a_thousand_others_have_gone() {
        let mut table = Table::default();
        table.insert(1, "/system.slice/a.service");
        table.remove(1);
        assert_eq!(table.get(1).map(|place| &*place.service), Some("a.service"));
        for id in 2..=(REMEMBERED as u64 + 1) {
            table.insert(id, "/x");
            table.remove(id);
        }
        assert_eq!(table.get(1), None);
        assert_eq!(table.len(), REMEMBERED);
    }

    #[test]
    fn what_an_earlier_agent_knew_is_recalled_as_removed() {
        let (mut table, web): (_, Arc<str>) = (Table::default(), "web".into());
        table.insert(1, "/system.slice/a.service");
        table.recall(1, "/x", &web);
        table.recall(2, "/docker/x", &web);
        let service = |id| table.get(id).map(|place| place.service.to_string());
        assert_eq!((service(1).as_deref(), service(2).as_deref()), (Some("a.service"), Some("web")));
        assert_eq!(table.removed, [2]);
    }

    #[test]
    fn a_full_table_gives_way_to_the_living_only() {
        let mut table = Table::default();
        for id in 0..CAPACITY as u64 {
            table.insert(id, "/x");
        }
        assert_eq!(table.insert(u64::MAX, "/new"), None);
        table.remove(5);
        assert!(table.insert(u64::MAX, "/new").is_some());
        assert_eq!(table.len(), CAPACITY);
    }

    #[test]
    fn cgroups_whose_removal_was_missed_make_room_too() {
        let mut table = Table::default();
        for id in 0..CAPACITY as u64 {
            table.insert(id, "/x");
        }
        table.retain(|id| id == 7);
        assert_eq!(table.len(), REMEMBERED + 1);
        assert!(table.get(7).is_some());
    }

    #[test]
    fn given_names_cover_everything_below() {
        let mut table = Table::default();
        table.insert(1, "/batch/early");
        assert_eq!(table.name(&"batch".into(), &"nightly".into()).len(), 1);
        assert_eq!(table.get(1).map(|place| &*place.service), Some("nightly"));
        assert_eq!(&*table.describe("/batch").service, "nightly");
        assert_eq!(&*table.describe("/batch/worker-1").service, "nightly");
        assert_eq!(&*table.describe("/batches").service, "/batches");
        assert_eq!(&*table.describe("").service, "/");
    }
}

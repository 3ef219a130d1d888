//! Cgroup id → path and service. Filled by one walk at start, kept by the programs' create and remove records.
//!
//! A removed cgroup stays known for a while: deaths on the other ring may be read after its removal. The table has two
//! bounded parts: own cgroups (of units, containers, command services, and those at the top), which only root makes,
//! and the cgroups below them, which users make in any number. So users' cgroups evict only users' cgroups. An evicted
//! cgroup is looked up again by its id when needed.

use std::{collections::HashMap, sync::Arc};

use super::origin::Origin;
use crate::recent::Recent;

/// Own cgroups known at a time.
const ROOTS: usize = 49_152;
/// Cgroups below them known at a time, some 300 bytes each: more than the ten thousand of a crowded host.
const NESTED: usize = 12_288;
/// Removed cgroups that stay known in each part.
const REMEMBERED: usize = 1024;
/// Longest path of a nested cgroup that is kept, bytes. A longer one (up to 4,096) is cut to its unit or container.
const PATH_MAX: usize = 255;
/// Containers whose names are known.
const NAMED: usize = 16_384;

/// Where a process lived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Path of the cgroup below its hierarchy's root.
    pub(crate) path: Arc<str>,
    /// Name of the service, stable over restarts.
    pub(crate) service: Arc<str>,
    /// What the path claims.
    pub(crate) origin: Arc<Origin>,
    /// Bytes of the path up to the end of the own cgroup of that unit, container or command service.
    root_len: u16,
    /// True below that own cgroup.
    nested: bool,
}

impl Place {
    /// False for a container that its engine has not confirmed: until then its id is its name.
    pub(crate) fn is_named(&self) -> bool {
        match &*self.origin {
            Origin::Container { engine, id } => *self.service != *by_id(engine, id),
            Origin::Unit(_) | Origin::Cgroup => true,
        }
    }

    /// Path of the own cgroup of the unit, container or command service that this cgroup is in.
    pub(crate) fn root(&self) -> &str {
        self.path.get(..usize::from(self.root_len)).unwrap_or(&self.path)
    }

    /// True for that own cgroup itself.
    pub(crate) fn is_root(&self) -> bool {
        !self.nested
    }
}

fn by_id(engine: &str, id: &str) -> String {
    format!("{engine}:{}", id.get(..12).unwrap_or(id))
}

/// One part of the table: cgroups that exist, and those removed recently.
#[derive(Debug)]
struct Part {
    living: Recent<u64, Place>,
    removed: Recent<u64, Place>,
}

impl Part {
    fn new(most: usize) -> Self {
        Self { living: Recent::new(most), removed: Recent::new(REMEMBERED) }
    }

    fn get(&self, id: u64) -> Option<&Place> {
        self.living.get(&id).or_else(|| self.removed.get(&id))
    }

    fn remove(&mut self, id: u64) {
        if let Some(place) = self.living.remove(&id) {
            self.removed.insert(id, place);
        }
    }

    fn rename(&mut self, is_below: impl Fn(&str) -> bool, service: &Arc<str>, renamed: &mut Vec<(u64, Place)>) {
        for (&id, place) in self.living.iter_mut().filter(|(_, place)| is_below(&place.path)) {
            place.service = Arc::clone(service);
            renamed.push((id, place.clone()));
        }
        for (_, place) in self.removed.iter_mut().filter(|(_, place)| is_below(&place.path)) {
            place.service = Arc::clone(service);
        }
    }
}

/// The cgroups of the watched hierarchy.
#[derive(Debug)]
pub(crate) struct Table {
    roots: Part,
    nested: Part,
    /// Command services by their cgroups.
    commands: HashMap<Arc<str>, Arc<str>>,
    /// Containers by their cgroups.
    containers: Recent<Arc<str>, Arc<str>>,
    /// Components of the deepest named path; lookups try no deeper prefix.
    deepest: usize,
    /// The shared origin of all plain cgroups.
    plain: Arc<Origin>,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            roots: Part::new(ROOTS),
            nested: Part::new(NESTED),
            commands: HashMap::new(),
            containers: Recent::new(NAMED),
            deepest: 0,
            plain: Arc::new(Origin::Cgroup),
        }
    }
}

impl Table {
    /// Names the cgroup `path` of a command service, and everything below it. Call it before any cgroup there is known.
    pub(crate) fn name_command(&mut self, path: &str, service: &Arc<str>) {
        let root: Arc<str> = format!("/{}", path.trim_matches('/')).into();
        self.deepest = self.deepest.max(depth(&root));
        self.commands.insert(root, Arc::clone(service));
    }

    /// Names a container's cgroup and everything below it; returns the known cgroups there.
    pub(crate) fn name_container(&mut self, root: &Arc<str>, service: &Arc<str>) -> Vec<(u64, Place)> {
        let is_below =
            |path: &str| path.strip_prefix(&**root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let mut renamed = Vec::new();
        self.roots.rename(is_below, service, &mut renamed);
        self.nested.rename(is_below, service, &mut renamed);
        self.deepest = self.deepest.max(depth(root));
        self.containers.remove(&**root);
        self.containers.insert(Arc::clone(root), Arc::clone(service));
        renamed
    }

    /// Adds a cgroup, or changes the path of a known one.
    pub(crate) fn insert(&mut self, id: u64, path: &str) -> Place {
        let place = self.describe(path);
        self.roots.living.remove(&id);
        self.nested.living.remove(&id);
        self.part(&place).living.insert(id, place.clone());
        place
    }

    /// Changes the path of a renamed cgroup (v1) and of all known ones below it; returns them.
    ///
    /// A name that an engine gave stays with the old path: the engine confirmed only that one.
    pub(crate) fn rename(&mut self, id: u64, path: &str) -> Vec<(u64, Place)> {
        let Some(old) = self.get(id).map(|place| Arc::clone(&place.path)) else { return Vec::new() };
        let moved = |(&id, place): (&u64, &Place)| {
            let rest = place.path.strip_prefix(&*old)?;
            (rest.is_empty() || rest.starts_with('/')).then(|| (id, format!("{path}{rest}")))
        };
        let living = self.roots.living.iter().chain(self.nested.living.iter());
        let moved: Vec<(u64, String)> = living.filter_map(moved).collect();
        moved.into_iter().map(|(id, path)| (id, self.insert(id, &path))).collect()
    }

    fn part(&mut self, place: &Place) -> &mut Part {
        if place.nested { &mut self.nested } else { &mut self.roots }
    }

    /// Marks a cgroup as removed; it stays known until later removals evict it.
    pub(crate) fn remove(&mut self, id: u64) {
        self.roots.remove(id);
        self.nested.remove(id);
    }

    /// Adds a removed cgroup that an earlier agent knew by this service's name.
    pub(crate) fn recall(&mut self, id: u64, path: &str, service: &Arc<str>) {
        if self.get(id).is_some() {
            return;
        }
        let place = Place { service: Arc::clone(service), ..self.describe(path) };
        self.part(&place).removed.insert(id, place);
    }

    /// The place with this id, when known.
    pub(crate) fn get(&self, id: u64) -> Option<&Place> {
        self.roots.get(id).or_else(|| self.nested.get(id))
    }

    /// Number of known cgroups.
    pub(crate) fn len(&self) -> usize {
        [&self.roots, &self.nested].map(|part| part.living.len() + part.removed.len()).iter().sum()
    }

    /// Up to `most` cgroups of each part, to check whether they still exist: removal records can be lost. Takes all in
    /// turn.
    pub(crate) fn turn(&mut self, most: usize) -> Vec<(u64, Arc<str>)> {
        let mut taken = Vec::new();
        for part in [&mut self.roots, &mut self.nested] {
            for id in part.living.turn(most) {
                taken.extend(part.living.get(&id).map(|place| (id, Arc::clone(&place.path))));
            }
        }
        taken
    }

    /// What a path means here.
    pub(crate) fn describe(&self, path: &str) -> Place {
        if let Some((root, service, origin)) = self.given(path) {
            // Shares the path that is stored already: copies for ten thousand services would take a megabyte.
            let own = if *path == **root { Some(root) } else { None };
            return self.place(path, root.len(), own, Arc::clone(service), origin);
        }
        let (origin, root) = Origin::claim(path);
        let service: Arc<str> = match &origin {
            Origin::Unit(name) => name.as_str().into(),
            Origin::Container { engine, id } => by_id(engine, id).into(),
            Origin::Cgroup if path.is_empty() => "/".into(),
            Origin::Cgroup => cut(path, root.len()).into(),
        };
        self.place(path, root.len(), None, service, origin)
    }

    fn place(&self, path: &str, root_len: usize, own: Option<&Arc<str>>, service: Arc<str>, origin: Origin) -> Place {
        let origin = if origin == Origin::Cgroup { Arc::clone(&self.plain) } else { Arc::new(origin) };
        let nested = root_len < path.trim_end_matches('/').len();
        let path = own.map_or_else(|| cut(path, root_len).into(), Arc::clone);
        Place { path, service, origin, root_len: u16::try_from(root_len).unwrap_or(u16::MAX), nested }
    }

    /// The nearest named cgroup at or above `path`: its path, name and origin.
    fn given(&self, path: &str) -> Option<(&Arc<str>, &Arc<str>, Origin)> {
        let ends = path.char_indices().skip(1).filter(|(_, letter)| *letter == '/').map(|(end, _)| end);
        let parts: Vec<&str> = ends.take(self.deepest).chain([path.len()]).filter_map(|end| path.get(..end)).collect();
        parts.into_iter().rev().find_map(|part| {
            if let Some((root, service)) = self.commands.get_key_value(part) {
                return Some((root, service, Origin::Cgroup));
            }
            let (root, service) = self.containers.get_key_value(part)?;
            Some((root, service, Origin::claim(root).0))
        })
    }
}

/// A path that is kept: all of it, or its root.
fn cut(path: &str, root_len: usize) -> &str {
    if path.len() > PATH_MAX { path.get(..root_len).unwrap_or_default() } else { path }
}

fn depth(path: &str) -> usize {
    path.split('/').filter(|name| !name.is_empty()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4fa6e0f0c6786287e131c3852c58a2e01cc697a68231826813597e4994f1d6e2";

    fn service(table: &Table, id: u64) -> Option<&str> {
        table.get(id).map(|place| &*place.service)
    }

    #[test]
    fn a_removed_cgroup_is_known_until_a_thousand_others_have_gone() {
        let mut table = Table::default();
        table.insert(1, "/system.slice/a.service");
        table.remove(1);
        assert_eq!(service(&table, 1), Some("a.service"));
        for id in 2..=(REMEMBERED as u64 + 1) {
            table.insert(id, "/x");
            table.remove(id);
        }
        assert_eq!(table.get(1), None);
        assert_eq!(table.len(), REMEMBERED);
    }

    #[test]
    fn however_many_cgroups_users_make_units_stay_known() {
        let mut table = Table::default();
        table.insert(1, "/system.slice/web.service");
        table.insert(2, "/system.slice/old.service");
        table.remove(2);
        let user = "/user.slice/user-1.slice/user@1.service";
        for id in 10..100_000 {
            table.insert(id, &format!("{user}/{id}.service"));
            if id % 2 == 0 {
                table.remove(id);
            }
        }
        assert_eq!((service(&table, 1), service(&table, 2)), (Some("web.service"), Some("old.service")));
        assert_eq!(service(&table, 99_999), Some("user@1.service"));
        assert!(table.len() <= NESTED + REMEMBERED + 2, "{}", table.len());
    }

    #[test]
    fn what_an_earlier_agent_knew_is_recalled_as_removed() {
        let (mut table, web): (_, Arc<str>) = (Table::default(), "web".into());
        table.insert(1, "/system.slice/a.service");
        table.recall(1, "/x", &web);
        table.recall(2, "/docker/x", &web);
        assert_eq!((service(&table, 1), service(&table, 2)), (Some("a.service"), Some("web")));
        assert_eq!(table.turn(9).len(), 1, "the removed one is not held against what exists");
    }

    #[test]
    fn a_renamed_cgroup_is_known_by_its_new_path_alone() {
        let mut table = Table::default();
        table.insert(1, "/batch/a");
        table.insert(1, "/b");
        assert_eq!((service(&table, 1), table.len()), (Some("/b"), 1));
    }

    #[test]
    fn a_cgroup_that_is_renamed_takes_all_below_it_along_and_no_other() {
        let mut table = Table::default();
        for (id, path) in [(1, "/jobs"), (2, "/jobs/a"), (3, "/jobs/a/b"), (4, "/jobs/ab")] {
            table.insert(id, path);
        }
        let mut renamed: Vec<_> = table.rename(2, "/jobs/c").into_iter().map(|(id, _)| id).collect();
        renamed.sort_unstable();
        let path = |id| table.get(id).map(|place| place.path.to_string());
        assert_eq!((renamed, path(2).as_deref(), path(3).as_deref()), (vec![2, 3], Some("/jobs/c"), Some("/jobs/c/b")));
        assert_eq!((path(1).as_deref(), path(4).as_deref()), (Some("/jobs"), Some("/jobs/ab")));
        assert!(table.rename(9, "/x").is_empty(), "not known");
    }

    #[test]
    fn given_names_cover_everything_below() {
        let mut table = Table::default();
        table.name_command("batch/", &"nightly".into());
        for (path, want, is_root) in [
            ("/batch", "nightly", true),
            ("/batch/worker-1", "nightly", false),
            ("/batches", "/batches", true),
            ("/batches/x", "/batches/x", false),
            ("", "/", true),
        ] {
            let place = table.describe(path);
            assert_eq!((&*place.service, place.is_root()), (want, is_root), "{path}");
        }
        assert_eq!(table.describe("/batch/a/b").root(), "/batch");
    }

    #[test]
    fn a_container_has_its_engine_s_name_with_everything_in_it() {
        let mut table = Table::default();
        let root: Arc<str> = format!("/docker/{ID}").into();
        table.insert(1, &root);
        table.insert(2, &format!("{root}/init"));
        table.insert(3, &format!("/docker/{}", "0".repeat(64)));
        assert!(table.get(1).is_some_and(|place| !place.is_named() && place.is_root()));
        let renamed = table.name_container(&root, &"web".into());
        assert_eq!(renamed.len(), 2);
        table.insert(4, &format!("{root}/late"));
        for id in [1, 2, 4] {
            let place = table.get(id).expect("known");
            assert!(place.is_named() && &*place.service == "web" && place.root() == &*root, "{place:?}");
            assert!(matches!(*place.origin, Origin::Container { engine: "docker", .. }));
        }
        assert_eq!(service(&table, 3), Some("docker:000000000000"));
    }

    #[test]
    fn of_a_path_that_is_too_long_the_unit_is_kept() {
        let mut table = Table::default();
        let path = format!("/system.slice/web.service/{}", "n".repeat(PATH_MAX));
        let place = table.insert(1, &path);
        assert_eq!((&*place.service, &*place.path), ("web.service", "/system.slice/web.service"));
        assert!(!place.is_root(), "it is a cgroup in the unit all the same");
    }

    #[test]
    fn a_path_of_many_names_costs_no_more_looks_than_named_ones_are_deep() {
        let mut table = Table::default();
        table.name_command("/a/b", &"b".into());
        let deep = format!("/a/b{}", "/x".repeat(2000));
        assert_eq!(&*table.describe(&deep).service, "b");
        assert_eq!(table.deepest, 2);
    }
}

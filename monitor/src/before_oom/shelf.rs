//! Where commands leave what they found: a directory for each incarnation of a service, and room for so many bytes of all of them.
//!
//! The directory of an incarnation is made once: that it is there says that its command has run, also to the next agent.

use std::{
    fs::{self, DirBuilder},
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    figures::bytes,
    host::{
        bounded::{self, Bounded},
        process::Identity,
    },
};

/// Below the state directory.
pub(crate) const PLACE: &str = "before-oom";
/// Incarnations of a service whose directories are kept, however small.
const KEPT: usize = 16;
/// Files in a directory that are looked at; who leaves more is taken for too large.
const FILES: usize = 10_000;
/// A block of `stat(2)`, bytes.
const BLOCK: u64 = 512;
/// `/proc` tells starts to a tick of 10 ms, so the name must not tell them better.
const TICK_NS: u64 = 10_000_000;

/// The place of one incarnation among those of its service.
#[derive(Clone, Debug)]
pub(super) struct Shelf {
    service: PathBuf,
    own: PathBuf,
    keep: u64,
}

impl Shelf {
    /// For an incarnation in this boot of the host; the service may keep so many bytes.
    pub(super) fn new(state_dir: &Path, service: &str, boot_id: &str, incarnation: Identity, keep: u64) -> Self {
        let state_dir = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned());
        let service = state_dir.join(PLACE).join(file_name(service));
        let boot: String = boot_id.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
        let own = service.join(format!("{boot}-{}-{}", incarnation.start_ns / TICK_NS, incarnation.tgid));
        Self { service, own, keep }
    }

    /// The directory of the incarnation.
    pub(super) fn directory(&self) -> &Path {
        &self.own
    }

    /// Makes the directory; false when it is there already.
    ///
    /// # Errors
    /// When it cannot be made, or there is no room on the disk for as much as may be kept.
    pub(super) fn prepare(&self) -> Result<bool> {
        for place in self.service.parent().into_iter().chain([self.service.as_path()]) {
            make(place)?;
            let metadata =
                fs::symlink_metadata(place).with_context(|| format!("cannot look at {}", place.display()))?;
            ensure!(metadata.is_dir(), "{} is no directory of ours", place.display());
        }
        if !make(&self.own)? {
            return Ok(false);
        }
        let others: u64 = self.others().iter().map(|other| size(&other.path)).sum();
        let system =
            rustix::fs::statvfs(&self.own).with_context(|| format!("cannot look at {}", self.own.display()))?;
        let free = system.f_bavail.saturating_mul(system.f_frsize);
        let wanted = self.keep.saturating_sub(others);
        if free < wanted {
            bail!(
                "the disk of {} has {} left, and what it leaves may grow by {}",
                self.service.display(),
                bytes(free),
                bytes(wanted)
            );
        }
        Ok(true)
    }

    /// Removes what is older until all fits; false when the incarnation's own is too much by itself.
    pub(super) fn make_room(&self) -> bool {
        let own = size(&self.own);
        let others: Vec<_> = self.others().into_iter().map(|other| (size(&other.path), other)).collect();
        let mut sum = others.iter().map(|(size, _)| *size).fold(own, u64::saturating_add);
        let mut count = others.len() + 1;
        for (size, other) in others {
            if sum <= self.keep && count <= KEPT {
                break;
            }
            match fs::remove_dir_all(&other.path) {
                Ok(()) => tracing::info!("{} is removed, to make room for newer ones", other.path.display()),
                Err(error) => tracing::warn!("cannot remove {}: {error}", other.path.display()),
            }
            (sum, count) = (sum.saturating_sub(size), count - 1);
        }
        own <= self.keep
    }

    /// Removes what the incarnation's own directory holds, but for itself: that it is there says that the command has run.
    pub(super) fn empty(&self) {
        let Ok(found) = bounded::entries(&self.own, FILES) else { return };
        if found.is_cut() {
            // Too many to list: remove all.
            let emptied = fs::remove_dir_all(&self.own).map_err(anyhow::Error::from).and_then(|()| make(&self.own));
            if let Err(error) = emptied {
                tracing::warn!("cannot empty {}: {error:#}", self.own.display());
            }
            return;
        }
        for path in found.beginning() {
            let is_directory = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir());
            let removed = if is_directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            if let Err(error) = removed {
                tracing::warn!("cannot remove {}: {error}", path.display());
            }
        }
    }

    /// Bytes on disk of the incarnation's own.
    pub(super) fn size(&self) -> u64 {
        size(&self.own)
    }

    /// Those of other incarnations, the oldest first.
    fn others(&self) -> Vec<Other> {
        let entries = bounded::entries(&self.service, FILES).map(Bounded::beginning).unwrap_or_default();
        let other = |path: PathBuf| {
            let metadata = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_dir)?;
            (path != self.own).then_some(Other { changed: metadata.modified().ok()?, path })
        };
        let mut others: Vec<_> = entries.into_iter().filter_map(other).collect();
        others.sort();
        others
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Other {
    changed: SystemTime,
    path: PathBuf,
}

/// False when it is there already.
fn make(directory: &Path) -> Result<bool> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot make {}", directory.display())),
    }
}

/// Bytes on disk of all files below; links are not followed.
fn size(directory: &Path) -> u64 {
    let (mut sum, mut seen) = (0u64, 0);
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        let listed = bounded::visit(&directory, FILES - seen, None, |entry| {
            seen += 1;
            let Ok(metadata) = entry.metadata() else { return };
            sum = sum.saturating_add(metadata.blocks().saturating_mul(BLOCK));
            if metadata.is_dir() {
                left.push(entry.path());
            }
        });
        if listed.is_ok_and(|listed| listed.is_cut()) {
            return u64::MAX;
        }
    }
    sum
}

/// A service's name as that of a file: services of containers are called as somebody likes.
fn file_name(service: &str) -> String {
    const LENGTH: usize = 120;
    let mut name = String::new();
    for byte in service.bytes() {
        if byte.is_ascii_alphanumeric() || b"_@:-".contains(&byte) || byte == b'.' && !name.is_empty() {
            name.push(char::from(byte));
        } else {
            name += &format!("%{byte:02x}");
        }
    }
    if name.len() > LENGTH {
        // Two long names that begin alike must not share a place.
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};
        let mut hasher = DefaultHasher::new();
        service.hash(&mut hasher);
        name.truncate(LENGTH);
        name += &format!("%{:016x}", hasher.finish());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    fn shelf(state: &Path, number: u64, keep: u64) -> Shelf {
        Shelf::new(state, "web", "0badcafe-1", Identity { tgid: 7, start_ns: number * TICK_NS }, keep)
    }

    fn fill(shelf: &Shelf, name: &str, kib: usize) {
        fs::write(shelf.directory().join(name), vec![1; kib * 1024]).expect("written");
    }

    fn age(shelf: &Shelf, seconds: u64) {
        let when = SystemTime::now() - std::time::Duration::from_secs(seconds);
        fs::File::open(shelf.directory()).and_then(|file| file.set_modified(when)).expect("set");
    }

    #[test]
    fn an_incarnation_has_its_turn_once() {
        let state = tempfile::tempdir().expect("a directory");
        let first = shelf(state.path(), 1, KIB);
        assert!(first.prepare().expect("made"));
        assert!(!first.prepare().expect("looked at"), "it has run");
        let same_tick = Identity { tgid: 7, start_ns: TICK_NS + 5 };
        assert!(!Shelf::new(state.path(), "web", "0badcafe-2", same_tick, KIB).prepare().expect("looked at"));
        assert!(shelf(state.path(), 2, KIB).prepare().expect("made"), "another one has its own");
        assert!(first.directory().is_absolute());
    }

    #[test]
    fn the_oldest_go_first_and_what_is_too_much_by_itself_goes_but_for_its_place() {
        let state = tempfile::tempdir().expect("a directory");
        let shelves: Vec<_> = (1..=4).map(|number| shelf(state.path(), number, 100 * KIB)).collect();
        for (number, one) in (0..).zip(&shelves[..3]) {
            assert!(one.prepare().expect("made"));
            fill(one, "dump", 40);
            age(one, 100 - number);
        }
        let newest = &shelves[3];
        assert!(newest.prepare().expect("made"));
        fill(newest, "dump", 40);
        assert!(newest.make_room());
        let there: Vec<_> = shelves.iter().map(|one| one.directory().exists()).collect();
        assert_eq!(there, [false, false, true, true]);
        fs::create_dir(newest.directory().join("more")).expect("made");
        fill(newest, "more/dump", 80);
        assert!(!newest.make_room(), "too much");
        newest.empty();
        assert!(newest.directory().exists() && newest.size() == 0);
        assert!(!newest.prepare().expect("looked at"), "it has run");
    }

    #[test]
    fn so_many_are_kept_however_small() {
        let state = tempfile::tempdir().expect("a directory");
        for number in 0..30 {
            let one = shelf(state.path(), number, 1 << 20);
            assert!(one.prepare().expect("made"));
            age(&one, 1000 - number);
            assert!(one.make_room());
        }
        let left = fs::read_dir(state.path().join(PLACE).join("web")).expect("listed").count();
        assert_eq!(left, KEPT);
    }

    #[test]
    fn a_disk_without_room_and_a_link_in_the_place_are_refused() {
        let state = tempfile::tempdir().expect("a directory");
        let error = shelf(state.path(), 1, u64::MAX).prepare().expect_err("no such disk").to_string();
        assert!(error.contains("left"), "{error}");
        let other = tempfile::tempdir().expect("a directory");
        let state = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink(other.path(), state.path().join(PLACE)).expect("made");
        let error = shelf(state.path(), 1, KIB).prepare().expect_err("a link").to_string();
        assert!(error.contains("no directory of ours"), "{error}");
    }

    #[test]
    fn no_name_of_a_service_leads_elsewhere() {
        assert_eq!(file_name("web-1.service"), "web-1.service");
        assert_eq!(file_name(".."), "%2e.");
        assert_eq!(file_name("a/../b c"), "a%2f..%2fb%20c");
        let long = [file_name(&"x".repeat(5000)), file_name(&"x".repeat(5001))];
        assert!(long[0] != long[1] && long[0].len() < 200);
    }
}

//! Traces that are kept: `traces/SERVICE/TIME/` in the state directory, with the growth as JSON, the flame graph, the folded
//! stacks and a summary. Bounded ([`room`]); every step is taken from an open directory and follows no link.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Write as _,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use jiff::Timestamp;
use rustix::{
    fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags},
    io::Errno,
};

use super::{
    flame, folded,
    room::{self, Entry},
    summary::Summary,
};
use crate::{
    host::{
        bounded::{self, Bounded},
        guarded,
    },
    trace::growth::Growth,
};

/// Below the state directory.
const ROOT: &str = "traces";
/// The files of a trace that others may read, with what they are.
pub(crate) const FILES: [(&str, &str); 3] =
    [("growth.json", "application/json"), ("flame.svg", "image/svg+xml"), ("folded.txt", "text/plain; charset=utf-8")];
const SUMMARY: &str = "summary.json";
/// Held while somebody traces.
const LOCK: &str = "lock";
/// A directory that is being filled; renamed when it is whole. Of a writer that died it goes with the next trace.
const UNFINISHED: &str = ".unfinished";

/// Bytes of a trace as JSON. One that is larger loses its slowest stacks; with names of usual length it has half a megabyte.
const JSON_MAX: usize = 16 << 20;
const SUMMARY_MAX: usize = 64 << 10;
/// Directories of services that are looked at.
const SERVICES: usize = 4096;
/// Characters of a service's name in its directory's.
const NAME: usize = 96;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);
const NEW: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// All files of a trace, ready to be written.
#[derive(Debug)]
pub(crate) struct Files {
    growth: Vec<u8>,
    flame: Vec<u8>,
    folded: String,
    summary: Summary,
}

impl Files {
    /// Makes them.
    ///
    /// # Errors
    /// When the flame graph cannot be drawn.
    pub(crate) fn of(growth: &Growth) -> Result<Self> {
        let (bounded, json) = bounded(growth)?;
        let growth = bounded.as_ref().unwrap_or(growth);
        Ok(Self {
            growth: json,
            flame: flame::draw(growth)?,
            folded: folded::folded(growth, '_'),
            summary: Summary::of(growth),
        })
    }

    /// Its few lines.
    pub(crate) fn summary(&self) -> &Summary {
        &self.summary
    }

    fn write_into(&self, directory: impl AsFd) -> Result<()> {
        let [(growth, _), (flame, _), (folded, _)] = FILES;
        let summary = serde_json::to_vec(&self.summary).context("cannot write JSON")?;
        let parts =
            [(growth, &*self.growth), (flame, &self.flame), (folded, self.folded.as_bytes()), (SUMMARY, &summary)];
        for (name, bytes) in parts {
            let file = rustix::fs::openat(&directory, name, NEW, Mode::RUSR | Mode::WUSR);
            let mut file = File::from(file.with_context(|| format!("cannot make {name}"))?);
            file.write_all(bytes).with_context(|| format!("cannot write {name}"))?;
        }
        Ok(())
    }
}

/// As JSON; with fewer stacks when all of them are too long.
fn bounded(growth: &Growth) -> Result<(Option<Growth>, Vec<u8>)> {
    let json = |growth: &Growth| serde_json::to_vec(growth).context("cannot write JSON");
    let mut bytes = json(growth)?;
    let mut bounded = None;
    while bytes.len() > JSON_MAX {
        let growth = bounded.get_or_insert_with(|| growth.clone());
        ensure!(!growth.stacks.is_empty(), "a trace without stacks is longer than {JSON_MAX} bytes");
        let gone = growth.stacks.split_off(growth.stacks.len() / 2);
        growth.others_bytes_per_hour += gone.iter().map(|stack| stack.bytes_per_hour.max(0.0)).sum::<f64>();
        bytes = json(growth)?;
    }
    Ok((bounded, bytes))
}

/// A directory that somebody named for the files of one trace.
#[derive(Debug)]
pub(crate) struct Output {
    path: PathBuf,
    directory: OwnedFd,
}

impl Output {
    /// Makes it, or takes one in which nothing would be overwritten.
    ///
    /// # Errors
    /// When it cannot be had, or has such files.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        fs::create_dir_all(path).with_context(|| format!("cannot make {shown}"))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty()).with_context(|| format!("cannot open {shown}"))?;
        for name in FILES.iter().map(|(name, _)| *name).chain([SUMMARY]) {
            match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => {}
                _ => bail!("{shown} has a {name} already; name another directory"),
            }
        }
        Ok(Self { path: path.to_owned(), directory })
    }

    /// Writes the files; where they are.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(crate) fn write(&self, files: &Files) -> Result<PathBuf> {
        files.write_into(&self.directory).with_context(|| format!("in {}", self.path.display()))?;
        Ok(self.path.clone())
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Shelf {
    root: PathBuf,
}

impl Shelf {
    /// The one in a state directory; nothing is made or looked at yet.
    pub(crate) fn of(state_dir: &Path) -> Self {
        Self { root: state_dir.join(ROOT) }
    }

    /// Makes it when it is missing, and makes sure that it is ours.
    ///
    /// # Errors
    /// When it cannot be made, or others could change it.
    pub(crate) fn prepare(&self) -> Result<()> {
        let shown = self.root.display();
        let state_dir = self.root.parent().context("no state directory")?;
        guarded::ensure_state_is_ours(state_dir).context("the state directory is not safe")?;
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root);
        made.with_context(|| format!("cannot make {shown}; are you root?"))?;
        guarded::ensure_state_is_ours(state_dir).context("the state directory is not safe")?;
        self.open().map(drop)
    }

    fn open(&self) -> Result<OwnedFd> {
        rustix::fs::open(&self.root, DIRECTORY, Mode::empty())
            .with_context(|| format!("cannot open {}", self.root.display()))
    }

    /// That nobody else traces on this host, until it is dropped: two at once would cost twice as much as was promised.
    ///
    /// # Errors
    /// When somebody does.
    pub(crate) fn alone(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(self.open()?, LOCK, flags, Mode::RUSR | Mode::WUSR);
        let lock = lock.with_context(|| format!("cannot open {}", self.root.join(LOCK).display()))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(lock),
            Err(Errno::WOULDBLOCK) => bail!(
                "another trace is at work on this host, perhaps one that the agent has begun; one at a time keeps the cost low: try \
                 again in some minutes"
            ),
            Err(error) => Err(error).context("cannot tell whether another trace is at work"),
        }
    }

    /// Keeps a trace, and lets the oldest go for it. Where it is.
    ///
    /// # Errors
    /// When it cannot be written. What is to go and cannot be removed is no error.
    pub(crate) fn keep(&self, files: &Files) -> Result<PathBuf> {
        let (service, time) = (directory_of(&files.summary.service), time_of(files.summary.began));
        let path = self.root.join(&service).join(&time);
        self.write(&service, &time, files).with_context(|| format!("cannot keep the trace in {}", path.display()))?;
        self.make_room();
        Ok(path)
    }

    fn write(&self, service: &str, time: &str, files: &Files) -> Result<()> {
        let root = self.open()?;
        make(&root, service)?;
        let of_service = rustix::fs::openat(&root, service, DIRECTORY, Mode::empty())?;
        remove(&of_service, UNFINISHED);
        make(&of_service, UNFINISHED)?;
        let fresh = rustix::fs::openat(&of_service, UNFINISHED, DIRECTORY, Mode::empty())?;
        files.write_into(&fresh)?;
        Ok(rustix::fs::renameat(&of_service, UNFINISHED, &of_service, time)?)
    }

    fn make_room(&self) {
        let Ok(root) = self.open() else { return };
        for service in services(&root) {
            if let Ok(of_service) = rustix::fs::openat(&root, &service, DIRECTORY, Mode::empty()) {
                // Nobody else writes now: one traces at a time.
                remove(&of_service, UNFINISHED);
            }
        }
        for Entry { service, time, .. } in room::surplus(self.entries(&root)) {
            if let Ok(of_service) = rustix::fs::openat(&root, &service, DIRECTORY, Mode::empty()) {
                remove(&of_service, &time);
            }
            // With its last one.
            rustix::fs::unlinkat(&root, &service, AtFlags::REMOVEDIR).ok();
        }
    }

    fn entries(&self, root: &OwnedFd) -> Vec<Entry> {
        let mut entries = Vec::new();
        for service in services(root) {
            let Ok(of_service) = rustix::fs::openat(root, &service, DIRECTORY, Mode::empty()) else { continue };
            for time in names(&of_service).into_iter().filter(|name| is_time(name)) {
                let Ok(one) = rustix::fs::openat(&of_service, &time, DIRECTORY, Mode::empty()) else { continue };
                let size = |name: &String| rustix::fs::statat(&one, name, AtFlags::SYMLINK_NOFOLLOW).ok();
                let sizes =
                    names(&one).iter().filter_map(size).map(|stat| u64::try_from(stat.st_size).unwrap_or(0)).sum();
                entries.push(Entry { service: service.clone(), time, bytes: sizes });
            }
        }
        entries
    }

    /// Summaries of what is kept, the newest first; of one service, when it is named. Nothing when nothing was ever kept.
    ///
    /// # Errors
    /// When that cannot be looked at.
    pub(crate) fn list(&self, service: Option<&str>) -> Result<Vec<Summary>> {
        let root = match rustix::fs::open(&self.root, DIRECTORY, Mode::empty()) {
            Ok(root) => root,
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot look into {}; are you root?", self.root.display()));
            }
        };
        let wanted = service.map(directory_of);
        let directories = match &wanted {
            Some(name) => vec![name.clone()],
            None => services(&root),
        };
        let mut all = Vec::new();
        for directory in directories {
            let Ok(of_service) = rustix::fs::openat(&root, &directory, DIRECTORY, Mode::empty()) else { continue };
            let mut times: Vec<_> = names(&of_service).into_iter().filter(|name| is_time(name)).collect();
            times.sort_unstable_by(|a, b| b.cmp(a));
            for time in times.into_iter().take(2 * room::EACH) {
                let read = self.read(&directory, &time, SUMMARY, SUMMARY_MAX);
                let summary = read.ok().flatten().and_then(|bytes| serde_json::from_slice::<Summary>(&bytes).ok());
                // Another service may have a directory of the same name.
                if let Some(mut summary) = summary.filter(|one| service.is_none_or(|service| one.service == service)) {
                    summary.kept = Some(format!("{directory}/{time}"));
                    all.push(summary);
                }
            }
        }
        all.sort_by_key(|one| std::cmp::Reverse(one.began));
        Ok(all)
    }

    /// The whole of a kept trace.
    ///
    /// # Errors
    /// When it is no longer kept, or cannot be read.
    pub(crate) fn growth(&self, summary: &Summary) -> Result<Growth> {
        let (service, time) =
            summary.kept.as_deref().and_then(|kept| kept.split_once('/')).context("it is not kept")?;
        let [(name, _), ..] = FILES;
        let bytes = self.read(service, time, name, JSON_MAX)?.context("that trace is no longer kept")?;
        serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is no trace of this version", self.root.join(service).join(time).display()))
    }

    /// Where a kept trace has its files.
    pub(crate) fn path(&self, summary: &Summary) -> Option<PathBuf> {
        summary.kept.as_deref().map(|kept| self.root.join(kept))
    }

    /// A file of a kept trace, as somebody named it; `None` when there is none of that name.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(crate) fn file(&self, service: &str, time: &str, name: &str) -> Result<Option<File>> {
        if !(is_service(service) && is_time(time)) {
            return Ok(None);
        }
        let open = || -> Result<OwnedFd, Errno> {
            let root = rustix::fs::open(&self.root, DIRECTORY, Mode::empty())?;
            let of_service = rustix::fs::openat(root, service, DIRECTORY, Mode::empty())?;
            let one = rustix::fs::openat(of_service, time, DIRECTORY, Mode::empty())?;
            rustix::fs::openat(one, name, READ, Mode::empty())
        };
        match open() {
            Ok(file) => {
                let file = File::from(file);
                Ok(file.metadata().context("cannot look at a kept trace")?.is_file().then_some(file))
            }
            // A link counts as nothing.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(error).context("cannot open a kept trace"),
        }
    }

    fn read(&self, service: &str, time: &str, name: &str, most: usize) -> Result<Option<Vec<u8>>> {
        let Some(mut file) = self.file(service, time, name)? else { return Ok(None) };
        let bytes = bounded::take(&mut file, most, None).and_then(Bounded::whole);
        bytes.map(Some).with_context(|| format!("cannot read {name} of a kept trace"))
    }
}

/// Directories of services.
fn services(root: &OwnedFd) -> Vec<String> {
    names(root).into_iter().filter(|name| is_service(name)).take(SERVICES).collect()
}

fn make(directory: &OwnedFd, name: &str) -> Result<()> {
    match rustix::fs::mkdirat(directory, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot make {name}")),
    }
}

/// Removes the directory of a trace with the files that are written there, and no more.
fn remove(of_service: &OwnedFd, time: &str) {
    if let Ok(one) = rustix::fs::openat(of_service, time, DIRECTORY, Mode::empty()) {
        for name in FILES.iter().map(|(name, _)| *name).chain([SUMMARY]) {
            // What is not there need not go.
            rustix::fs::unlinkat(&one, name, AtFlags::empty()).ok();
        }
    }
    rustix::fs::unlinkat(of_service, time, AtFlags::REMOVEDIR).ok();
}

/// Names in a directory that are text; those of files, too.
fn names(directory: impl AsFd) -> Vec<String> {
    let Ok(entries) = Dir::read_from(directory) else { return Vec::new() };
    let named = |entry: rustix::fs::DirEntry| {
        let is_link = entry.file_type() == FileType::Symlink;
        let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_str()?.to_owned();
        (!is_link && !matches!(name.as_str(), "." | "..")).then_some(name)
    };
    entries.flatten().filter_map(named).collect()
}

/// A service's name as that of a directory: what is unusual becomes `_`, and then a print of the whole name sets it apart.
pub(crate) fn directory_of(service: &str) -> String {
    let plain = |character: char| if is_plain(character) { character } else { '_' };
    let name: String = service.chars().take(NAME).map(plain).collect();
    if name == service && is_service(&name) && name != LOCK {
        return name;
    }
    format!("{}-{:016x}", name.trim_start_matches('.'), print(service))
}

fn is_plain(character: char) -> bool {
    character.is_ascii_alphanumeric() || "._@:-".contains(character)
}

/// FNV-1a, which stays the same over versions.
fn print(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |print, byte| (print ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn is_service(name: &str) -> bool {
    (1..=NAME + 17).contains(&name.len()) && !name.starts_with('.') && name.chars().all(is_plain)
}

/// `2026-01-31T23-59-59.999Z`
fn time_of(began: Timestamp) -> String {
    format!("{}.{:03}Z", began.strftime("%Y-%m-%dT%H-%M-%S"), began.subsec_millisecond())
}

fn is_time(name: &str) -> bool {
    let pattern = "0000-00-00T00-00-00.000Z";
    let fits = |(byte, want): (u8, u8)| if want == b'0' { byte.is_ascii_digit() } else { byte == want };
    name.len() == pattern.len() && name.bytes().zip(pattern.bytes()).all(fits)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::trace::show::sample;

    fn shelf() -> (tempfile::TempDir, Shelf) {
        let directory = tempfile::tempdir().expect("a directory");
        let shelf = Shelf::of(directory.path());
        shelf.prepare().expect("made");
        (directory, shelf)
    }

    fn listed(shelf: &Shelf, service: Option<&str>) -> Vec<Summary> {
        shelf.list(service).expect("listed")
    }

    fn traced(service: &str, second: i64) -> Files {
        let mut growth = sample::growth();
        growth.service = service.to_owned();
        growth.began = Timestamp::from_second(1_700_000_000 + second).expect("a time");
        Files::of(&growth).expect("drawn")
    }

    #[test]
    fn what_was_kept_is_listed_and_read_again() {
        let (_directory, shelf) = shelf();
        for (service, second) in [("web", 0), ("web", 60), ("a b/ü", 30)] {
            let path = shelf.keep(&traced(service, second)).expect("kept");
            for (name, _) in FILES {
                let mode = fs::metadata(path.join(name)).expect("written").permissions().mode();
                assert_eq!(mode & 0o777, 0o600);
            }
        }
        let all = listed(&shelf, None);
        assert_eq!(all.iter().map(|one| one.service.as_str()).collect::<Vec<_>>(), ["web", "a b/ü", "web"]);
        assert_eq!(all[0].kept.as_deref(), Some("web/2023-11-14T22-14-20.000Z"));
        assert_eq!(listed(&shelf, Some("a b/ü")).len(), 1);
        assert_eq!(listed(&shelf, Some("a b/x")), []);
        let growth = shelf.growth(&all[1]).expect("read");
        assert_eq!((growth.service.as_str(), growth.stacks), ("a b/ü", sample::growth().stacks));
        assert!(shelf.keep(&traced("web", 60)).is_err(), "it is there already");
    }

    #[test]
    fn the_oldest_go_and_nothing_that_is_not_a_trace() {
        let (directory, shelf) = shelf();
        let (other, half) =
            (directory.path().join("traces/web/notes"), directory.path().join("traces/db").join(UNFINISHED));
        for place in [&other, &half] {
            fs::create_dir_all(place).expect("made");
        }
        fs::write(half.join("growth.json"), "{").expect("written");
        for second in 0..12 {
            shelf.keep(&traced("web", second)).expect("kept");
        }
        let left = listed(&shelf, Some("web"));
        assert_eq!(left.len(), room::EACH);
        assert!(left[0].kept.as_deref().is_some_and(|kept| kept.ends_with("22-13-31.000Z")), "{left:?}");
        assert!(other.exists());
        assert!(!half.exists(), "of a writer that died");
        assert!(!directory.path().join("traces/web").join(UNFINISHED).exists());
    }

    #[test]
    fn links_are_nothing_and_lead_nowhere() {
        let (directory, shelf) = shelf();
        shelf.keep(&traced("web", 0)).expect("kept");
        let kept = listed(&shelf, Some("web"))[0].kept.clone().expect("where");
        let (_, time) = kept.split_once('/').expect("two parts");
        let elsewhere = directory.path().join("elsewhere");
        fs::create_dir(&elsewhere).expect("made");
        fs::write(elsewhere.join("secret"), "x").expect("written");
        symlink(&elsewhere, directory.path().join("traces/db")).expect("linked");
        assert!(shelf.keep(&traced("db", 0)).is_err());
        let svg = directory.path().join("traces").join(&kept).join("flame.svg");
        fs::remove_file(&svg).expect("removed");
        symlink(elsewhere.join("secret"), &svg).expect("linked");
        assert!(shelf.file("web", time, "flame.svg").expect("no fault").is_none());
        assert!(shelf.file("web", time, "growth.json").expect("no fault").is_some());
        for (service, time, name) in [
            ("..", time, "growth.json"),
            ("web", "..", "growth.json"),
            ("web", time, "none"),
            ("", "", ""),
            ("db", time, "secret"),
        ] {
            assert!(shelf.file(service, time, name).expect("no fault").is_none(), "{service}/{time}/{name}");
        }
        assert_eq!(fs::read_dir(&elsewhere).expect("there").count(), 1);
    }

    #[test]
    fn one_traces_at_a_time() {
        let (_directory, shelf) = shelf();
        let first = shelf.alone().expect("alone");
        assert!(shelf.alone().expect_err("two").to_string().contains("another trace is at work"));
        drop(first);
        shelf.alone().expect("alone again");
    }

    #[test]
    fn every_service_has_a_directory_of_its_own_that_is_harmless() {
        let long = "x".repeat(500);
        let names =
            ["web", "lock", "a/b", "a_b", "a b", "..", ".", "", "../../etc", "user@1000.service/x.service", "ü", &long];
        let directories: std::collections::HashSet<_> = names.iter().map(|name| directory_of(name)).collect();
        assert_eq!(directories.len(), names.len());
        assert!(directories.iter().all(|name| is_service(name) && name != LOCK), "{directories:?}");
        assert_eq!(directory_of("php8.2-fpm@a:b.service"), "php8.2-fpm@a:b.service");
        assert_eq!(directory_of("a/b"), format!("a_b-{:016x}", print("a/b")));
        assert_eq!(print(""), 0xcbf2_9ce4_8422_2325, "as its authors have it");
        assert_eq!(print("a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn a_trace_beyond_measure_loses_its_slowest_stacks() {
        let mut growth = sample::growth();
        let long = "x".repeat(1 << 20);
        growth.stacks = (0..40).map(|at| sample::stack(f64::from(100 - at), &["malloc", &long])).collect();
        let total = growth.total();
        let files = Files::of(&growth).expect("made");
        assert!(files.growth.len() <= JSON_MAX, "{}", files.growth.len());
        let read: Growth = serde_json::from_slice(&files.growth).expect("JSON");
        assert_eq!(read.stacks.len(), 10);
        assert_eq!(read.stacks[9], growth.stacks[9], "names are whole there");
        assert!((read.total() - total).abs() < 1.0);
    }

    #[test]
    fn a_directory_that_somebody_named_is_not_overwritten() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a/b");
        let output = Output::open(&path).expect("made");
        assert_eq!(output.write(&traced("web", 0)).expect("written"), path);
        assert!(Output::open(&path).expect_err("taken").to_string().contains("has a growth.json already"));
    }
}

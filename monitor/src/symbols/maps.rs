//! `/proc/PID/maps`: the files whose code a process has mapped.
//!
//! The file has no bound: any user's process can map one file 65,000 times under a path of 4 KiB, which makes 270 MiB.
//! So it is read through one small buffer, with bounds in bytes and time, and only needed mappings are kept.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt as _,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// A mapped part of a file with code in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mapping {
    /// First address.
    pub(crate) begin: u64,
    /// First address behind it.
    pub(crate) end: u64,
    /// Where in the file it begins.
    pub(crate) offset: u64,
    /// Inode number of the file.
    pub(crate) inode: u64,
    /// The file, as the process sees it.
    pub(crate) path: String,
}

/// How much of one process's maps is read and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Bytes read.
    pub(crate) bytes: u64,
    /// Time spent.
    pub(crate) time: Duration,
    /// Mappings kept.
    pub(crate) mappings: usize,
    /// Bytes of all their paths.
    pub(crate) paths: usize,
}

impl Bounds {
    /// For a process that is traced, or whose symbols are needed. 8 MiB: a usual line has some 128 bytes, and a process
    /// may have 65,530 mappings (`vm.max_map_count`, kernel documentation admin-guide/sysctl/vm.rst); libraries come
    /// last, after all parts of a large heap.
    pub(crate) const WHOLE: Self =
        Self { bytes: 8 << 20, time: Duration::from_millis(250), mappings: 512, paths: 64 << 10 };
    /// For a process that is about to crash. Reads as much and keeps 64 mappings: a stack of some fifty frames lies in
    /// some ten files.
    pub(crate) const CRASH: Self =
        Self { bytes: 8 << 20, time: Duration::from_millis(100), mappings: 64, paths: 8 << 10 };
    /// For each process while all are searched for a file. 1 MiB has some 8,000 mappings.
    const SEARCH: Self = Self { bytes: 1 << 20, time: Duration::from_millis(50), mappings: 512, paths: 64 << 10 };
}

/// Longest path that is kept, bytes. Files with longer paths (`PATH_MAX` is 4096) are known by the kernel's build ids.
const PATH_KEPT: usize = 1024;
/// Bytes of the buffer. The longest possible line has a path of `PATH_MAX` with each byte escaped as four (`\\012`).
const BUFFER: usize = 32 * 1024;
/// Processes looked at for a file that is not among the dead one's.
const PROCESSES: usize = 4096;
/// Most files that are collected.
const FILES: usize = 16 * 1024;
/// Bytes read of our own mounts: enough for some 10,000.
const MOUNTS: u64 = 2 << 20;
/// Places of one path below all mounts.
const PLACES: usize = 256;

/// What a process has mapped; nothing when it is gone.
pub(super) fn read(tgid: u32, bounds: Bounds, is_wanted: impl FnMut(&Mapping) -> bool) -> Vec<Mapping> {
    let file = File::open(format!("/proc/{tgid}/maps"));
    file.map_or_else(|_| Vec::new(), |file| keep(file, bounds, is_wanted))
}

fn keep(from: impl Read, bounds: Bounds, mut is_wanted: impl FnMut(&Mapping) -> bool) -> Vec<Mapping> {
    let until = Instant::now() + bounds.time;
    let (mut kept, mut paths) = (Vec::new(), 0);
    lines(from, bounds.bytes, |line| {
        let mapping = parse(line).filter(|mapping| mapping.path.len() <= PATH_KEPT && is_wanted(mapping));
        if let Some(mapping) = mapping
            && paths + mapping.path.len() <= bounds.paths
        {
            paths += mapping.path.len();
            kept.push(mapping);
        }
        kept.len() < bounds.mappings && Instant::now() < until
    });
    kept
}

/// Calls `take` with each line, until it returns false, `most` bytes are read, or the input ends. Lines longer than the
/// buffer are skipped.
fn lines(from: impl Read, most: u64, mut take: impl FnMut(&str) -> bool) {
    let mut from = from.take(most);
    let mut buffer = vec![0; BUFFER];
    let (mut filled, mut is_rest) = (0, false);
    loop {
        if filled == buffer.len() {
            (filled, is_rest) = (0, true);
        }
        let read = match from.read(&mut buffer[filled..]) {
            Ok(read) if read > 0 => read,
            _ => return,
        };
        let end = filled + read;
        let mut begin = 0;
        while let Some(length) = buffer[begin..end].iter().position(|&byte| byte == b'\n') {
            let line = &buffer[begin..begin + length];
            if !std::mem::take(&mut is_rest)
                && let Ok(line) = str::from_utf8(line)
                && !take(line)
            {
                return;
            }
            begin += length + 1;
        }
        buffer.copy_within(begin..end, 0);
        filled = end - begin;
    }
}

/// Every file with code that some process has mapped, once, with one such process; until `deadline`. The superuser's
/// processes come first, since other users can have any number of processes and mappings.
pub(super) fn files_of_all(deadline: Instant) -> Vec<(u32, String)> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).take(PROCESSES);
    let is_others = |pid: &u32| fs::metadata(format!("/proc/{pid}")).map_or(true, |metadata| metadata.uid() != 0);
    let mut pids: Vec<u32> = pids.collect();
    pids.sort_by_cached_key(|pid| (is_others(pid), *pid));
    for pid in pids {
        if Instant::now() >= deadline || found.len() >= FILES {
            break;
        }
        let namespace = namespace(pid);
        read(pid, Bounds::SEARCH, |mapping| {
            // The same path may be another file in another mount namespace; its build id decides.
            if seen.len() < FILES && seen.insert((namespace, mapping.path.clone())) {
                found.push((pid, mapping.path.clone()));
            }
            false
        });
    }
    found
}

/// Where a path that begins at the root of its file system may be found: below every mount.
pub(super) fn places_of(path: &str) -> Vec<String> {
    let mut places = Vec::new();
    if let Ok(mounts) = File::open("/proc/self/mountinfo") {
        lines(mounts, MOUNTS, |line| {
            places.extend(place_in(line, path));
            places.len() < PLACES
        });
    }
    places
}

/// `id parent device root mount-point …`, as proc_pid_mountinfo(5) has it: `root` is the part of the file system that is
/// mounted.
fn place_in(line: &str, path: &str) -> Option<String> {
    let mut columns = line.split(' ').skip(3);
    let (root, mount) = (columns.next()?, columns.next()?);
    let below = path.strip_prefix(root.trim_end_matches('/'))?;
    below.starts_with('/').then(|| format!("{}{below}", mount.trim_end_matches('/')))
}

/// The number of a process' mount namespace.
fn namespace(pid: u32) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/mnt")).ok().map(|metadata| metadata.ino())
}

/// `begin-end perms offset device inode path`, as proc_pid_maps(5) has it.
fn parse(line: &str) -> Option<Mapping> {
    let mut columns = line.splitn(6, ' ');
    let (begin, end) = columns.next()?.split_once('-')?;
    let permissions = columns.next()?;
    let offset = columns.next()?;
    let inode = columns.nth(1)?.parse().ok()?;
    let path = columns.next()?.trim_start();
    let is_code = permissions.get(2..3) == Some("x") && path.starts_with('/');
    let number = |text| u64::from_str_radix(text, 16).ok();
    is_code.then_some(())?;
    Some(Mapping { begin: number(begin)?, end: number(end)?, offset: number(offset)?, inode, path: path.to_owned() })
}

/// Takes any text for a process' mappings and our mounts.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &str) {
    let kept = keep(text.as_bytes(), Bounds::CRASH, |_| true);
    assert!(kept.len() <= Bounds::CRASH.mappings && kept.iter().all(|mapping| mapping.path.len() <= PATH_KEPT));
    lines(text.as_bytes(), MOUNTS, |line| {
        drop(place_in(line, "/bin/web"));
        true
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_counts() {
        let code = "55d0c8a00000-55d0c8b00000 r-xp 00012000 fe:00 1234                       /usr/bin/my web";
        let want = Mapping {
            begin: 0x55d0_c8a0_0000,
            end: 0x55d0_c8b0_0000,
            offset: 0x12000,
            inode: 1234,
            path: "/usr/bin/my web".to_owned(),
        };
        assert_eq!(parse(code), Some(want));
        for other in [
            "55d0c8a00000-55d0c8b00000 r--p 00000000 fe:00 1234                       /usr/bin/web",
            "7ffd0f5f9000-7ffd0f5fb000 r-xp 00000000 00:00 0                          [vdso]",
            "7f0000000000-7f0000001000 r-xp 00000000 00:00 0",
            "nonsense",
            "",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_path_is_looked_for_below_every_mount() {
        for (mount, place) in [
            ("22 1 254:0 / / rw - ext4 /dev/vda rw", Some("/bin/web")),
            ("23 22 254:1 / /payload rw - ext4 /dev/vdb rw", Some("/payload/bin/web")),
            ("24 22 254:1 /bin /usr/local rw - ext4 /dev/vdb rw", Some("/usr/local/web")),
            ("25 22 254:1 /bi /usr/local rw - ext4 /dev/vdb rw", None),
            ("26 22", None),
        ] {
            assert_eq!(place_in(mount, "/bin/web").as_deref(), place, "{mount}");
        }
    }

    #[test]
    fn our_own_program_is_among_our_mappings() {
        let own = std::env::current_exe().expect("a path").display().to_string();
        assert!(read(std::process::id(), Bounds::WHOLE, |_| true).iter().any(|mapping| mapping.path == own));
        assert!(read(u32::MAX, Bounds::WHOLE, |_| true).is_empty());
    }

    /// Returns a few bytes for each read, as the kernel does, and counts them.
    struct Slow<'a>(&'a [u8], u64);

    impl Read for Slow<'_> {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            let length = into.len().min(1000);
            let read = self.0.read(&mut into[..length])?;
            self.1 += read as u64;
            Ok(read)
        }
    }

    fn line(number: usize, path: &str) -> String {
        let begin = 0x7f00_0000_0000 + number * 0x2000;
        format!("{begin:x}-{:x} r-xp 00001000 fe:00 77                       {path}\n", begin + 0x1000)
    }

    #[test]
    fn a_hostile_process_costs_a_bounded_amount_of_reading_and_of_memory() {
        let long = format!("/{}", "x".repeat(4094));
        let text: String = (0..10_000).map(|number| line(number, &long)).collect();
        let mut from = Slow(text.as_bytes(), 0);
        let bounds = Bounds { time: Duration::from_secs(600), ..Bounds::CRASH };
        assert!(keep(&mut from, bounds, |_| true).is_empty(), "no path of such a length is kept");
        assert_eq!(from.1, bounds.bytes, "of {} bytes", text.len());
        let text: String = (0..10_000).map(|number| line(number, &format!("/{}", "x".repeat(500)))).collect();
        let kept = keep(text.as_bytes(), bounds, |_| true);
        assert!(kept.iter().map(|mapping| mapping.path.len()).sum::<usize>() <= bounds.paths);
        assert_eq!(kept.len(), bounds.paths / 501);
        let text: String = (0..10_000).map(|number| line(number, "/x")).collect();
        assert_eq!(keep(text.as_bytes(), bounds, |_| true).len(), bounds.mappings);
        let late = Bounds { time: Duration::ZERO, ..bounds };
        assert_eq!(keep(text.as_bytes(), late, |_| true).len(), 1);
    }

    #[test]
    fn what_is_wanted_is_found_behind_all_that_is_not() {
        let mut text: String = (0..20_000).map(|number| line(number, "/usr/lib/jvm/heap")).collect();
        text.push_str(&line(20_000, "/usr/lib/libc.so.6"));
        let wanted = 0x7f00_0000_0000 + 20_000 * 0x2000 + 0x10;
        let from = Slow(text.as_bytes(), 0);
        let bounds = Bounds { time: Duration::from_secs(600), ..Bounds::CRASH };
        let kept = keep(from, bounds, |mapping| (mapping.begin..mapping.end).contains(&wanted));
        assert_eq!(kept.iter().map(|mapping| mapping.path.as_str()).collect::<Vec<_>>(), ["/usr/lib/libc.so.6"]);
    }

    #[test]
    fn a_line_that_fits_no_buffer_is_passed_over_and_the_next_is_read() {
        let text = format!("{}\nnext\n\u{e9}\nlast", "y".repeat(3 * BUFFER + 5));
        let mut seen = Vec::new();
        lines(text.as_bytes(), u64::MAX, |line| {
            seen.push(line.to_owned());
            true
        });
        assert_eq!(seen, ["next", "\u{e9}"], "what has no end is no line");
        let mut seen = 0;
        lines(&b"a\n\xff\nb\n"[..], u64::MAX, |_| {
            seen += 1;
            true
        });
        assert_eq!(seen, 2, "what is no text is passed over");
    }
}

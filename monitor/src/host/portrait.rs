//! Reads pictures of processes from `/proc`. Blocking, and slow for a large process: never on a thread that takes events.
//!
//! While one piece of `smaps` is written, the kernel holds the lock of the process' address space for reading: page faults go on,
//! `mmap` and `munmap` of the process wait. A piece is a page of text, some six mappings.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use jiff::Timestamp;

use super::{
    bounded::{self, Bounded, FIGURES},
    cgroup::Hierarchy,
    process::{self, Identity},
};
use crate::memory::picture::{Cut, Moment, Picture, Portrait, Smaps, rollup};

/// Text read of one process: a mapping is some 700 bytes, and there are 65,530 of them unless the host allows more
/// (`vm.max_map_count`).
const TEXT: u64 = 64 * 1024 * 1024;
/// Time taken for one picture.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes asked for at once; the kernel gives a page or so.
const PIECE: usize = 32 * 1024;
/// Text of a rollup: one mapping.
const ROLLUP: usize = 8 * 1024;
/// Processes of a service that are told when it is not known which of them will be the victim.
const SHOWN: usize = 3;
/// Processes of a service that are looked at for which of them hold most.
const LOOKED_AT: usize = 512;
/// Open files that are counted one by one, before 6.2.
const FILES: usize = 1_000_000;

/// Why there is no picture of a process.
const GONE: &str = "gone before it could be read";

/// A picture of a service in `cgroup`, of which `victim` was chosen, or of which memory is about to run out.
pub(crate) fn picture(hierarchy: &Hierarchy, cgroup: &str, victim: Option<Identity>) -> Picture {
    let begin = Instant::now();
    let until = begin + PATIENCE;
    let taken = Timestamp::now();
    // First of all: it is about to go.
    let portrait = victim.map(|victim| take(victim, until));
    let moment = if victim.is_some() { Moment::Marked } else { Moment::Foreseen };
    let (missed, mut processes) = match portrait {
        Some(Ok(portrait)) => (None, vec![portrait]),
        Some(Err(error)) => (Some(format!("{error:#}")), Vec::new()),
        None => (None, Vec::new()),
    };
    let mut members = members(hierarchy, cgroup);
    let others = members.len() - members.iter().filter(|&&pid| victim.is_some_and(|victim| victim.tgid == pid)).count();
    let mut others = others as u64;
    if processes.is_empty() {
        members.retain(|&pid| victim.is_none_or(|victim| victim.tgid != pid));
        processes = largest(&members).into_iter().filter_map(|process| take(process, until).ok()).collect();
        others -= processes.len() as u64;
    }
    let took_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    Picture { taken, took_ms, moment, missed, processes, others }
}

/// The process of a service that holds most memory: the one that the kernel would choose first, as a rule.
pub(crate) fn largest_of(hierarchy: &Hierarchy, cgroup: &str) -> Option<Identity> {
    largest(&members(hierarchy, cgroup)).first().copied()
}

fn members(hierarchy: &Hierarchy, cgroup: &str) -> Vec<u32> {
    // A removed cgroup has no processes. Of a cut list, the largest is searched among the oldest processes.
    hierarchy.members(cgroup).map(Bounded::beginning).unwrap_or_default()
}

/// Those that hold most memory, the largest first.
fn largest(members: &[u32]) -> Vec<Identity> {
    let held = |&pid: &u32| Some((process::memory_held(pid)?, process::identity(pid).ok()??));
    let mut all: Vec<_> = members.iter().take(LOOKED_AT).filter_map(held).collect();
    all.sort_by_key(|&(bytes, process)| (std::cmp::Reverse(bytes), process.tgid));
    all.into_iter().take(SHOWN).map(|(_, process)| process).collect()
}

/// Reads one process, until `until` at most.
///
/// # Errors
/// When it is gone, or somebody else has its pid by now.
fn take(process: Identity, until: Instant) -> Result<Portrait> {
    let tgid = process.tgid;
    let directory = PathBuf::from(format!("/proc/{tgid}"));
    // Whoever has the pid now, this file stays that process'; the look comes after.
    let mut file = open(process, "smaps")?;
    ensure!(is_same(process), GONE);
    let (smaps, mut cut) = read(&mut file, until).with_context(|| format!("cannot read /proc/{tgid}/smaps"))?;
    let mut anatomy = smaps.finish();
    ensure!(anatomy.mappings > 0, GONE);
    if has_no_memory(process) {
        cut = Some(Cut::Died);
    }
    if cut.is_some()
        && let Some((resident, swap)) = open(process, "smaps_rollup").ok().and_then(|file| {
            let mut file = file;
            rollup(&bounded::take(&mut file, ROLLUP, Some(until)).ok()?.beginning())
        })
    {
        (anatomy.resident_bytes, anatomy.swap_bytes) = (resident, swap);
    }
    let comm = bounded::text(directory.join("comm"), FIGURES).unwrap_or_default();
    let portrait = Portrait {
        tgid,
        comm: comm.trim_end_matches('\n').to_owned(),
        threads: process::threads(tgid),
        open_files: open_files(&directory, until),
        resident_bytes: anatomy.resident_bytes,
        swap_bytes: anatomy.swap_bytes,
        mappings: anatomy.mappings,
        largest: anatomy.largest,
        rest: anatomy.rest,
        cut,
    };
    // What was read by its pid must be its own too. One that has been reaped meanwhile told of its memory all the same.
    match process::identity(tgid) {
        Ok(Some(now)) if now.matches(process) => Ok(portrait),
        Ok(None) => Ok(Portrait { threads: None, open_files: None, cut: Some(Cut::Died), ..portrait }),
        _ => bail!(GONE),
    }
}

fn open(process: Identity, name: &str) -> Result<File> {
    let path = format!("/proc/{}/{name}", process.tgid);
    match File::open(&path) {
        Ok(file) => Ok(file),
        Err(error) if is_gone(&error) => bail!(GONE),
        Err(error) => Err(error).with_context(|| format!("cannot open {path}")),
    }
}

fn is_same(process: Identity) -> bool {
    process::identity(process.tgid).is_ok_and(|now| now.is_some_and(|now| now.matches(process)))
}

/// Of one that has ended, and of one that is about to and has given its memory back.
fn has_no_memory(process: Identity) -> bool {
    bounded::text(format!("/proc/{}/statm", process.tgid), FIGURES).map_or(true, |text| text.starts_with("0 "))
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

fn read(file: &mut File, until: Instant) -> io::Result<(Smaps, Option<Cut>)> {
    let mut smaps = Smaps::default();
    let mut piece = vec![0; PIECE];
    let mut left = TEXT;
    loop {
        let size = match file.read(&mut piece) {
            Ok(0) => return Ok((smaps, None)),
            Ok(size) => size,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if is_gone(&error) => return Ok((smaps, Some(Cut::Died))),
            Err(error) => return Err(error),
        };
        smaps.feed(&piece[..size]);
        left = left.saturating_sub(size as u64);
        if left == 0 {
            return Ok((smaps, Some(Cut::TooLong)));
        }
        if Instant::now() >= until {
            return Ok((smaps, Some(Cut::TooSlow)));
        }
    }
}

/// From 6.2 on the directory's size says how many there are.
fn open_files(directory: &std::path::Path, until: Instant) -> Option<u64> {
    let directory = directory.join("fd");
    match fs::metadata(&directory).ok()?.len() {
        0 => {
            let mut count = 0;
            // When there are more, this is a lower bound.
            let _all = bounded::visit(&directory, FILES, Some(until), |_| count += 1).ok()?;
            Some(count)
        }
        count => Some(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::picture::Kind;

    fn soon() -> Instant {
        Instant::now() + PATIENCE
    }

    fn own() -> Identity {
        process::identity(std::process::id()).expect("readable").expect("alive")
    }

    #[test]
    fn this_process_is_seen_as_it_is() {
        let held = std::hint::black_box(vec![1u8; 32 << 20]);
        let portrait = take(own(), soon()).expect("it lives");
        assert_eq!((portrait.tgid, portrait.cut), (std::process::id(), None));
        let large = |mapping: &&crate::memory::picture::Mapping| mapping.resident_bytes >= 32 << 20;
        let found = portrait.largest.iter().find(large).expect("what is held");
        assert_eq!((found.kind, found.name.as_str()), (Kind::Anonymous, ""));
        assert!(portrait.threads >= Some(1) && portrait.open_files >= Some(3), "{portrait:?}");
        let told = portrait.largest.iter().map(|one| one.resident_bytes).sum::<u64>()
            + portrait.rest.iter().map(|one| one.resident_bytes).sum::<u64>();
        assert_eq!(told, portrait.resident_bytes);
        drop(held);
    }

    #[test]
    fn somebody_else_with_the_pid_and_nobody_at_all_give_nothing() {
        let later = Identity { start_ns: own().start_ns + 1_000_000_000, ..own() };
        for gone in [later, Identity { tgid: u32::MAX, start_ns: 1 }] {
            assert_eq!(take(gone, soon()).expect_err("gone").to_string(), GONE);
        }
    }

    #[test]
    fn one_that_has_ended_and_was_not_reaped_gives_nothing() {
        let mut child = std::process::Command::new("true").spawn().expect("starts");
        let process = process::identity(child.id()).expect("readable").expect("not reaped");
        while !process::is_zombie(child.id()) {
            std::thread::yield_now();
        }
        let error = take(process, soon()).expect_err("it has no memory");
        child.wait().expect("it ends");
        assert_eq!(error.to_string(), GONE);
    }

    #[test]
    fn a_look_that_may_take_no_time_is_cut() {
        let portrait = take(own(), Instant::now()).expect("it lives");
        assert_eq!(portrait.cut, Some(Cut::TooSlow));
        let told: u64 = portrait.largest.iter().map(|one| one.resident_bytes).sum();
        assert!(portrait.resident_bytes > told, "the rollup tells all of it");
    }
}

//! A picture of a process' memory: its largest mappings by name, and sums of the rest. Pure: the kernel's text in, figures out.
//!
//! `/proc/PID/smaps` of a process with 65,000 mappings is some 45 MB of text. It is taken piece by piece; what is kept of it is
//! ten mappings and a sum for each kind.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    io::BufRead as _,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::figures::tail;

/// Mappings that are told by themselves.
const LARGEST: usize = 10;
/// Characters kept of a name; of a path the end tells more than its beginning.
const NAME: usize = 200;
/// Bytes of a line that are looked at: a path has up to 4096, what stands before it less than 100. The rest of a longer one is
/// skipped.
const LINE: usize = 4352;

/// What a mapping is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Memory of its own: what `mmap` gives, large allocations and stacks of threads among it.
    Anonymous,
    /// What `brk` gives.
    Heap,
    /// The stack of its first thread.
    Stack,
    /// A file.
    File,
    /// Memory that it shares, or may: System V, POSIX, memfd.
    Shared,
    /// What the kernel maps by itself.
    Kernel,
}

impl Kind {
    /// As it is written.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Heap => "heap",
            Self::Stack => "stack",
            Self::File => "file",
            Self::Shared => "shared",
            Self::Kernel => "kernel",
        }
    }

    /// By the last column of a mapping's first line (proc_pid_maps(5)), and a shorter name if it has one of its own. Where a
    /// file lies on a tmpfs only its path could tell, so it counts as a file unless that is `/dev/shm`.
    fn of(path: &str, is_shared: bool) -> (Self, &str) {
        const SHARED: [&str; 5] = ["/memfd:", "/SYSV", "/dev/shm/", "/dev/zero", "/anon_hugepage"];
        let inside = |text| path.strip_prefix(text).map(|rest: &str| rest.strip_suffix(']').unwrap_or(rest));
        if path.is_empty() {
            return (if is_shared { Self::Shared } else { Self::Anonymous }, "");
        }
        if let Some(name) = inside("[anon:") {
            return (Self::Anonymous, name);
        }
        if let Some(name) = inside("[anon_shmem:") {
            return (Self::Shared, name);
        }
        match path {
            "[heap]" => (Self::Heap, ""),
            // With the id of a thread before 4.5.
            _ if path.starts_with("[stack") => (Self::Stack, ""),
            _ if SHARED.iter().any(|prefix| path.starts_with(prefix)) => (Self::Shared, path),
            _ if path.starts_with('/') && !path.starts_with("/[") => (Self::File, path),
            _ => (Self::Kernel, path),
        }
    }
}

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mapping {
    /// What it is for.
    pub(crate) kind: Kind,
    /// The file as the process sees it, as the kernel writes it: a line break in it is `\012`, and one that has been removed ends in
    /// ` (deleted)`. Empty without a name.
    pub(crate) name: String,
    /// In memory.
    pub(crate) resident_bytes: u64,
    /// In swap.
    pub(crate) swap_bytes: u64,
}

/// Mappings of a kind, together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sum {
    /// What they are for.
    pub(crate) kind: Kind,
    /// How many.
    pub(crate) mappings: u64,
    /// In memory.
    pub(crate) resident_bytes: u64,
    /// In swap.
    pub(crate) swap_bytes: u64,
}

/// Why a picture does not show all of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cut {
    /// Its memory was taken away while it was read.
    Died,
    /// There is more text than is read.
    TooLong,
    /// Reading took too long.
    TooSlow,
}

impl Cut {
    /// For people.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Died => "it died while it was read, so there was more",
            Self::TooLong => "only so much text is read, so there was more",
            Self::TooSlow => "reading took too long, so there was more",
        }
    }
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Portrait {
    /// Its id.
    pub(crate) tgid: u32,
    /// Its name.
    pub(crate) comm: String,
    /// Its threads; `None`: could not be read any more.
    pub(crate) threads: Option<u64>,
    /// Its open files; likewise.
    pub(crate) open_files: Option<u64>,
    /// What all of its mappings have in memory.
    pub(crate) resident_bytes: u64,
    /// And in swap.
    pub(crate) swap_bytes: u64,
    /// How many mappings were read.
    pub(crate) mappings: u64,
    /// The largest by memory and swap together, the largest first.
    pub(crate) largest: Vec<Mapping>,
    /// All others, by kind, the largest first.
    pub(crate) rest: Vec<Sum>,
    /// Why that is not all.
    pub(crate) cut: Option<Cut>,
}

/// When a picture was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Moment {
    /// Memory was about to run out.
    Foreseen,
    /// The kernel had chosen a victim.
    Marked,
}

/// Processes of a service at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Picture {
    /// When, wall clock.
    pub(crate) taken: Timestamp,
    /// How long that took, milliseconds.
    pub(crate) took_ms: u64,
    /// On what occasion.
    pub(crate) moment: Moment,
    /// Why the victim is not among the processes.
    pub(crate) missed: Option<String>,
    /// The victim; or those that hold most, the largest first.
    pub(crate) processes: Vec<Portrait>,
    /// Processes of the service beside those.
    pub(crate) others: u64,
}

/// How a command ended that ran before memory was out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ended {
    /// With success.
    Ok,
    /// Without.
    Failed,
    /// It was ended, since it took too long.
    TimedOut,
    /// It was ended, since it left more than may be kept.
    TooLarge,
    /// It was not started.
    NotRun,
}

impl Ended {
    /// All, for series that exist from the start.
    pub(crate) const ALL: [Self; 5] = [Self::Ok, Self::Failed, Self::TimedOut, Self::TooLarge, Self::NotRun];

    /// As metrics and JSON have it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::TooLarge => "too_large",
            Self::NotRun => "not_run",
        }
    }
}

/// A command that ran before memory was out, or should have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ran {
    /// When it ended, wall clock.
    pub(crate) at: Timestamp,
    /// How.
    pub(crate) ended: Ended,
    /// The same in words, and why.
    pub(crate) text: String,
    /// Where its output is, and what else it left.
    pub(crate) directory: Option<String>,
}

/// What is kept of a service's memory for when it dies for want of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BeforeOom {
    /// The last that was taken when it was foreseen, and one at the mark.
    pub(crate) pictures: Vec<Picture>,
    /// The configured command.
    pub(crate) command: Option<Ran>,
}

/// Pictures kept in one record: one that was foreseen, one of a mark.
const PICTURES: usize = 2;

impl BeforeOom {
    /// Nothing to tell.
    pub(crate) fn is_empty(&self) -> bool {
        self.pictures.is_empty() && self.command.is_none()
    }

    /// Adds what came later. The first picture of each moment stays: of many victims in a row the first tells how it began.
    pub(crate) fn add(&mut self, later: Self) {
        for picture in later.pictures {
            let has_one = self.pictures.iter().any(|known| known.moment == picture.moment);
            if !has_one && self.pictures.len() < PICTURES {
                self.pictures.push(picture);
            }
        }
        self.pictures.sort_by_key(|picture| picture.taken);
        let ran = |command: &Option<Ran>| command.as_ref().is_some_and(|ran| ran.ended != Ended::NotRun);
        if self.command.is_none() || !ran(&self.command) && ran(&later.command) {
            self.command = later.command;
        }
    }
}

/// Takes the text of `/proc/PID/smaps` in pieces of any size.
#[derive(Debug, Default)]
pub(crate) struct Smaps {
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    current: Current,
    sums: BTreeMap<Kind, (u64, u64, u64)>,
    largest: BinaryHeap<Reverse<Ranked>>,
    mappings: u64,
}

/// The mapping whose lines come now. Its name is a place that is used again for each.
#[derive(Debug, Default)]
struct Current {
    exists: bool,
    is_shared: bool,
    path: Vec<u8>,
    resident: u64,
    swap: u64,
}

/// By size; of two equal ones the first ranks higher.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ranked {
    bytes: u64,
    number: Reverse<u64>,
    kind: Kind,
    name: String,
    resident: u64,
    swap: u64,
}

/// What the text tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Anatomy {
    /// See [`Portrait::resident_bytes`].
    pub(crate) resident_bytes: u64,
    /// See [`Portrait::swap_bytes`].
    pub(crate) swap_bytes: u64,
    /// See [`Portrait::mappings`].
    pub(crate) mappings: u64,
    /// See [`Portrait::largest`].
    pub(crate) largest: Vec<Mapping>,
    /// See [`Portrait::rest`].
    pub(crate) rest: Vec<Sum>,
}

impl Smaps {
    /// Takes a piece.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let line = rest;
            // Of a slice, which cannot fail: the library searches many bytes at once.
            let size = rest.skip_until(b'\n').unwrap_or(line.len());
            match line[..size].strip_suffix(b"\n") {
                Some(line) if self.line.is_empty() => self.take(&line[..line.len().min(LINE)]),
                Some(end) => {
                    self.hold(end);
                    let mut whole = std::mem::take(&mut self.line);
                    self.take(&whole);
                    whole.clear();
                    self.line = whole;
                }
                None => self.hold(line),
            }
        }
    }

    /// All of it. A last line without its end counts for nothing: half a number is another number.
    pub(crate) fn finish(mut self) -> Anatomy {
        self.complete();
        let mut largest = self.largest.into_vec();
        // Reversed, each of them: so the largest comes first.
        largest.sort();
        let mapping = |Reverse(ranked): Reverse<Ranked>| Mapping {
            kind: ranked.kind,
            name: ranked.name,
            resident_bytes: ranked.resident,
            swap_bytes: ranked.swap,
        };
        let largest: Vec<_> = largest.into_iter().map(mapping).collect();
        let total = |which: fn(&(u64, u64, u64)) -> u64| self.sums.values().map(which).fold(0, u64::saturating_add);
        let (resident_bytes, swap_bytes) = (total(|sum| sum.1), total(|sum| sum.2));
        let mut rest: Vec<_> = self
            .sums
            .iter()
            .map(|(&kind, &(mappings, resident_bytes, swap_bytes))| {
                let mut sum = Sum { kind, mappings, resident_bytes, swap_bytes };
                for told in largest.iter().filter(|told| told.kind == kind) {
                    sum.mappings -= 1;
                    sum.resident_bytes = sum.resident_bytes.saturating_sub(told.resident_bytes);
                    sum.swap_bytes = sum.swap_bytes.saturating_sub(told.swap_bytes);
                }
                sum
            })
            .filter(|sum| sum.mappings > 0)
            .collect();
        rest.sort_by_key(|sum| Reverse(sum.resident_bytes.saturating_add(sum.swap_bytes)));
        Anatomy { resident_bytes, swap_bytes, mappings: self.mappings, largest, rest }
    }

    fn hold(&mut self, bytes: &[u8]) {
        let room = LINE.saturating_sub(self.line.len());
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn take(&mut self, line: &[u8]) {
        // Some 23 lines of figures follow each first line, which begins with a number: their names begin with a capital.
        if let Some(figure) = line.strip_prefix(b"Rss:") {
            self.current.resident = kib(figure);
        } else if let Some(figure) = line.strip_prefix(b"Swap:") {
            self.current.swap = kib(figure);
        } else if !line.first().is_some_and(u8::is_ascii_uppercase)
            && let Some((is_shared, path)) = first_line(line)
        {
            self.complete();
            let current = &mut self.current;
            (current.exists, current.is_shared) = (true, is_shared);
            current.path.clear();
            current.path.extend_from_slice(path);
        }
    }

    fn complete(&mut self) {
        let (resident, swap) = (std::mem::take(&mut self.current.resident), std::mem::take(&mut self.current.swap));
        if !std::mem::take(&mut self.current.exists) {
            return;
        }
        let path = String::from_utf8_lossy(&self.current.path);
        let (kind, name) = Kind::of(&path, self.current.is_shared);
        let sum = self.sums.entry(kind).or_default();
        *sum = (sum.0 + 1, sum.1.saturating_add(resident), sum.2.saturating_add(swap));
        self.mappings += 1;
        let bytes = resident.saturating_add(swap);
        let is_full = self.largest.len() >= LARGEST;
        if bytes == 0 || is_full && self.largest.peek().is_some_and(|Reverse(least)| bytes <= least.bytes) {
            return;
        }
        if is_full {
            self.largest.pop();
        }
        let name = tail(name, NAME);
        self.largest.push(Reverse(Ranked { bytes, number: Reverse(self.mappings), kind, name, resident, swap }));
    }
}

/// What `/proc/PID/smaps_rollup` says of all mappings: bytes in memory and in swap. `None` when it says nothing.
pub(crate) fn rollup(text: &[u8]) -> Option<(u64, u64)> {
    let mut sum = Smaps::default();
    sum.feed(text);
    let sum = sum.finish();
    (sum.mappings > 0).then_some((sum.resident_bytes, sum.swap_bytes))
}

/// `begin-end perms offset device inode path`: whether it is shared, and the path.
fn first_line(line: &[u8]) -> Option<(bool, &[u8])> {
    let mut columns = line.splitn(6, |&byte| byte == b' ');
    let range = columns.next()?;
    let dash = range.iter().position(|&byte| byte == b'-')?;
    let is_number = |digits: &[u8]| !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit);
    if !is_number(&range[..dash]) || !is_number(&range[dash + 1..]) {
        return None;
    }
    let is_shared = columns.next()?.get(3) == Some(&b's');
    // Offset, device, inode; then blanks up to a column of their own.
    let path = columns.nth(3).unwrap_or_default();
    Some((is_shared, path.trim_ascii_start()))
}

/// `      1234 kB`; what is no such figure is nothing.
fn kib(figure: &[u8]) -> u64 {
    let figure = figure.trim_ascii().strip_suffix(b" kB").map(<[u8]>::trim_ascii);
    let figure = figure.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u64>().ok());
    figure.unwrap_or(0).saturating_mul(1024)
}

/// Takes any bytes for a process' mappings, whole and in pieces.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let read = |size: usize| {
        let mut smaps = Smaps::default();
        bytes.chunks(size).for_each(|piece| smaps.feed(piece));
        smaps.finish()
    };
    let whole = read(usize::MAX);
    assert_eq!(whole, read(7), "pieces do not matter");
    assert!(whole.largest.len() <= LARGEST && whole.rest.len() <= 6, "it is bounded");
    let told: u64 = whole.largest.len() as u64 + whole.rest.iter().map(|sum| sum.mappings).sum::<u64>();
    assert_eq!(told, whole.mappings, "each is told once");
    rollup(bytes);
}

#[cfg(test)]
mod tests;

//! The maps, programs and links of one load, as descriptors with names: whoever has the whole set has the programs running and
//! can read what they write, whichever process loaded them.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, IntoRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use aya::maps::MapData;

use super::{bpf, records::Records};
use crate::host::inherited::Named;

/// The names of the maps. Programs and links are called by their program.
pub(super) const CRITICAL: &str = "map-critical";
pub(super) const BULK: &str = "map-bulk";
pub(super) const AWAKE: &str = "map-awake";
pub(super) const COUNTERS: &str = "map-counters";
pub(super) const WATCHED: &str = "map-watched";
pub(super) const INHERITED: &str = "map-inherited";
pub(super) const EPOCH: &str = "map-epoch";
pub(super) const STACKS: &str = "map-stacks";
/// What the others are like, see [`super::about`].
pub(super) const ABOUT: &str = "map-about";
/// All of them.
pub(super) const MAPS: [&str; 9] = [CRITICAL, BULK, AWAKE, COUNTERS, WATCHED, INHERITED, EPOCH, STACKS, ABOUT];
const PROGRAM: &str = "program-";
const LINK: &str = "link-";

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Set(BTreeMap<String, OwnedFd>);

/// What the kernel says of a loaded program (`/proc/self/fdinfo`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// Its id.
    id: u64,
    /// Times run, and time spent in it; zero unless the kernel measures.
    pub(super) runs: u64,
    pub(super) nanoseconds: u64,
    /// Times that it was skipped. Kernels before 5.12 do not count, and do not skip.
    pub(super) skipped: u64,
}

impl Set {
    /// The set that these make.
    pub(super) fn new(descriptors: Vec<Named>) -> Self {
        Self(descriptors.into_iter().collect())
    }

    /// True when there is nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds one.
    pub(super) fn insert(&mut self, name: String, descriptor: OwnedFd) {
        self.0.insert(name, descriptor);
    }

    /// Whether a program of that name is loaded.
    pub(super) fn has_program(&self, program: &str) -> bool {
        self.0.contains_key(&named(PROGRAM, program))
    }

    /// Attaches a program that was just loaded.
    pub(super) fn attach(&mut self, name: &str, program: impl AsFd) -> io::Result<()> {
        self.insert(named(LINK, name), bpf::attach(&program)?);
        self.insert(named(PROGRAM, name), program.as_fd().try_clone_to_owned()?);
        Ok(())
    }

    /// Attaches a program whose link is not there, or is another program's; then the new link.
    pub(super) fn attach_again_if_detached(&mut self, name: &str) -> Result<Option<Named>> {
        let program = self.get(&named(PROGRAM, name))?;
        let own = facts(program.as_fd())?;
        let link = named(LINK, name);
        let holds = |link: &OwnedFd| facts(link.as_fd()).is_ok_and(|held| held.id == own.id);
        if self.0.get(&link).is_some_and(holds) {
            return Ok(None);
        }
        let attached = bpf::attach(program).context("the kernel refused it")?;
        let copy = attached.try_clone().context("cannot copy the link")?;
        if let Some(stale) = self.0.insert(link.clone(), attached) {
            // It was closed behind our back, so its number may be somebody else's by now: not ours to close.
            let _number = stale.into_raw_fd();
        }
        Ok(Some((link, copy)))
    }

    /// Detaches all of its programs, as far as it is the only one that holds them.
    pub(super) fn detach(&mut self) {
        self.0.retain(|name, _| !name.starts_with(LINK));
    }

    /// A map.
    pub(super) fn map(&self, name: &str) -> Result<MapData> {
        let copy = self.get(name)?.try_clone().with_context(|| format!("cannot copy {name}"))?;
        MapData::from_fd(copy).with_context(|| format!("{name} is no map"))
    }

    /// A ring's descriptor and its records.
    pub(super) fn ring(&self, name: &str) -> Result<(OwnedFd, Records)> {
        let size = self.map(name)?.info()?.max_entries();
        let map = self.get(name)?.try_clone().with_context(|| format!("cannot copy {name}"))?;
        let records = Records::new(&map, size as usize).with_context(|| format!("cannot map the ring {name}"))?;
        Ok((map, records))
    }

    /// What the kernel says of a program.
    pub(super) fn facts(&self, program: &str) -> Result<Facts> {
        facts(self.get(&named(PROGRAM, program))?.as_fd())
    }

    /// All of it, once more. What the others are like comes last: kept without it, they are not whole.
    pub(super) fn copies(&self) -> Result<Vec<Named>> {
        let copy = |(name, descriptor): (&String, &OwnedFd)| Ok((name.clone(), descriptor.try_clone()?));
        let copies = self.0.iter().map(copy).collect::<Result<Vec<_>>>();
        let mut copies = copies.context("cannot copy the descriptors of the programs")?;
        copies.sort_by_key(|(name, _)| name == ABOUT);
        Ok(copies)
    }

    /// What they are called.
    pub(super) fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn get(&self, name: &str) -> Result<&OwnedFd> {
        self.0.get(name).with_context(|| format!("{name} is not there"))
    }
}

fn named(kind: &str, program: &str) -> String {
    format!("{kind}{program}")
}

/// Of a program, or of the program that a link holds.
fn facts(descriptor: BorrowedFd<'_>) -> Result<Facts> {
    let path = format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd());
    // Some hundred bytes, which come whole: each scrape reads that of all programs.
    let mut buffer = [0; 4096];
    let read = File::open(&path).and_then(|mut file| file.read(&mut buffer));
    let length = read.with_context(|| format!("cannot read {path}"))?;
    let text = String::from_utf8_lossy(&buffer[..length]);
    parse(&text).with_context(|| format!("{path} tells of no program"))
}

fn parse(text: &str) -> Option<Facts> {
    let number = |key| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
    Some(Facts {
        id: number("prog_id:")?,
        runs: number("run_cnt:").unwrap_or(0),
        nanoseconds: number("run_time_ns:").unwrap_or(0),
        skipped: number("recursion_misses:").unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_and_its_link_tell_the_same_id() {
        let program = "pos:\t0\nprog_type:\t26\nprog_jited:\t1\nmemlock:\t8192\nprog_id:\t41\n\
                       run_time_ns:\t900\nrun_cnt:\t3\nrecursion_misses:\t2\n";
        assert_eq!(parse(program), Some(Facts { id: 41, runs: 3, nanoseconds: 900, skipped: 2 }));
        let link = "link_type:\traw_tracepoint\nlink_id:\t7\nprog_tag:\tab\nprog_id:\t41\ntp_name:\tx\n";
        assert_eq!(parse(link).map(|facts| facts.id), Some(41));
        assert_eq!(parse("pos:\t0\nmap_id:\t41\n"), None);
    }
}

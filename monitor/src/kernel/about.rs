//! What the maps and programs of a load are like, noted in a map beside them: so a newer agent knows whether it can go on with
//! them, and if not, what it can still read.

use std::hash::{DefaultHasher, Hash, Hasher as _};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use monitor_common::record::{self, Record};

use super::{
    SOURCES, bpf,
    layout::Plan,
    records::Span,
    set::{self, Set},
};

/// To be raised with each change of records that leaves their sizes as they are.
const RECORDS: u64 = 1;
/// Likewise of what this map says.
const FORM: u64 = 1;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct About {
    records: u64,
    programs: u64,
}

/// What was left of a load that is replaced.
#[derive(Debug, Default)]
pub(crate) struct Remains {
    /// Names its critical ring.
    pub(crate) id: u32,
    /// Its records, with their place where it is that ring.
    pub(crate) records: Vec<(Option<Span>, Record)>,
    /// Records that cannot be read.
    pub(crate) unread: u64,
}

impl About {
    /// What this agent's own load is like on this kernel.
    pub(super) fn of(plan: &Plan, sizes: &[(&str, u32)], log_level: u8) -> Self {
        let functions: Vec<_> = plan.functions.iter().map(|function| (function.program, function.substitute)).collect();
        let layout: &[u32] = bytemuck::cast_slice(std::slice::from_ref(&plan.layout));
        Self { records: records(), programs: hash(&(SOURCES, layout, &plan.programs, functions, sizes, log_level)) }
    }

    /// Notes it, as the last part of a set: one without it is not whole.
    pub(super) fn write(self, set: &mut Set) -> Result<()> {
        let words = [FORM, self.records, self.programs];
        set.insert(set::ABOUT.to_owned(), bpf::numbers(words.len() as u32)?);
        let mut map = numbers(set)?;
        for (slot, word) in words.into_iter().enumerate() {
            map.set(slot as u32, word, 0)?;
        }
        Ok(())
    }

    fn read(set: &Set) -> Result<Self> {
        let map = numbers(set)?;
        let form = map.get(&0, 0)?;
        ensure!(form == FORM, "they are noted in the form {form}, and this agent knows {FORM}");
        Ok(Self { records: map.get(&1, 0)?, programs: map.get(&2, 0)? })
    }

    /// Says why this agent cannot go on with a set.
    pub(super) fn compare(self, set: &Set) -> Result<()> {
        let found = Self::read(set).context("it is not known what they are like")?;
        ensure!(found.records == self.records, "they write other records");
        ensure!(found.programs == self.programs, "they were built or set up differently");
        Ok(())
    }

    /// Detaches the programs of a set, and reads what is left in its rings. The new programs run by then, so what happens
    /// meanwhile is in both.
    pub(super) fn drain(self, mut set: Set) -> Remains {
        set.detach();
        // One that was running finishes its record.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let can_read = Self::read(&set).is_ok_and(|found| found.records == self.records);
        let id = set.map(set::CRITICAL).and_then(|map| Ok(map.info()?.id())).unwrap_or_default();
        let mut remains = Remains { id, ..Remains::default() };
        for name in [set::CRITICAL, set::BULK] {
            let Ok((_, mut ring)) = set.ring(name) else { continue };
            while let Some((span, bytes)) = ring.next() {
                match Record::decode(bytes) {
                    Ok(record) if can_read => remains.records.push(((name == set::CRITICAL).then_some(span), record)),
                    _ => remains.unread += 1,
                }
            }
        }
        remains
    }
}

fn numbers(set: &Set) -> Result<Array<MapData, u64>> {
    Ok(Array::try_from(Map::from_map_data(set.map(set::ABOUT)?)?)?)
}

fn records() -> u64 {
    let sizes = [
        size_of::<record::OomMark>(),
        size_of::<record::Exit>(),
        size_of::<record::Life>(),
        size_of::<record::Cgroup>(),
        size_of::<record::CrashSite>(),
    ];
    hash(&(RECORDS, sizes))
}

/// Another hash than an older agent's makes one load in vain, no more.
fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

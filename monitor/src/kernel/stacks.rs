//! Reads the array in which the kernel programs store the stacks of crashing processes.

use std::fmt;

use anyhow::Result;
use aya::maps::{Array, Map};
use monitor_common::stack::WORDS;

use super::set::{self, Set};

/// Reads slots of the array.
#[derive(Default)]
pub(crate) struct CrashStacks(Option<Array<aya::maps::MapData, [u64; WORDS]>>);

impl CrashStacks {
    pub(super) fn open(set: &Set) -> Result<Self> {
        Ok(Self(Some(Array::try_from(Map::from_map_data(set.map(set::STACKS)?)?)?)))
    }

    /// Without an array: every slot is empty.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self::default()
    }

    /// The words of a slot, completely written or not; `None` when there is no such slot.
    pub(crate) fn read(&self, slot: u32) -> Option<Box<[u64; WORDS]>> {
        self.0.as_ref()?.get(&slot, 0).ok().map(Box::new)
    }
}

impl fmt::Debug for CrashStacks {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("CrashStacks").field(&self.0.is_some()).finish()
    }
}

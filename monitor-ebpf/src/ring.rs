//! How a record is sent: which ring, when the reader is woken, what is counted when there is no room.
//!
//! Waking the reader costs an interrupt to oneself and a task switch, ten times as much as writing the record. So it is
//! done once after a quiet spell: a reader that is awake says so in [`AWAKE`], looks again by itself every few
//! milliseconds, and is left alone until it goes back to sleep. Only OOM marks wake it always.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    maps::{RingBuf, ring_buf::RingBufEntry},
};
use monitor_common::counter;

use crate::maps::{AWAKE, BULK, CRITICAL, count};

/// Bytes of the critical ring from which on routine records leave the rest to deaths.
const ROUTINE_CEILING: u64 = 1024 * 1024;

/// Where a record goes and how much it matters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// OOM marks: never held back, the reader wakes at once.
    Urgent,
    /// OOM deaths and abnormal deaths of watched services.
    Critical,
    /// Clean exits, execs, forks and cgroups of watched services: they stand back when the critical ring is half full.
    Routine,
    /// Abnormal deaths that nobody watches.
    Bulk,
}

impl Lane {
    #[inline(always)]
    fn ring(self) -> &'static RingBuf {
        if self == Self::Bulk { &BULK } else { &CRITICAL }
    }

    /// Reserves room for `T`; without room the loss is counted. Every read that can fail comes before this.
    #[inline(always)]
    pub(crate) fn reserve<T: 'static>(self) -> Option<RingBufEntry<T>> {
        if self == Self::Routine && CRITICAL.query(u64::from(BPF_RB_AVAIL_DATA)) > ROUTINE_CEILING {
            count(counter::LOST_ROUTINE);
            return None;
        }
        let entry = self.ring().reserve::<T>(0);
        if entry.is_none() {
            count(match self {
                Self::Bulk => counter::LOST_BULK,
                Self::Routine => counter::LOST_ROUTINE,
                Self::Urgent | Self::Critical => counter::LOST_CRITICAL,
            });
        }
        entry
    }

    /// Hands a filled record to the reader.
    #[inline(always)]
    pub(crate) fn submit<T>(self, entry: RingBufEntry<T>) {
        let wake = self == Self::Urgent || !self.reader_is_awake();
        entry.submit(u64::from(if wake { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP }));
    }

    /// A reader that falls asleep between this look and the record's submission looks twice more before it does.
    #[inline(always)]
    fn reader_is_awake(self) -> bool {
        let slot = u32::from(self == Self::Bulk);
        // SAFETY: an aligned word of a map value, which the reader alone writes.
        AWAKE.get_ptr(slot).is_some_and(|awake| unsafe { core::ptr::read_volatile(awake) } != 0)
    }
}

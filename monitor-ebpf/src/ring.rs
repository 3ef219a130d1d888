//! How a record is sent: which ring, when the reader is woken, what is counted without room.
//!
//! Waking the reader costs a self-interrupt and a task switch, ten times as much as writing the record. So a program wakes only a
//! sleeping reader: an awake reader says so in [`AWAKE`] and polls every few milliseconds until it sleeps again. Only OOM marks always
//! wake it.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    maps::{RingBuf, ring_buf::RingBufEntry},
};
use monitor_common::counter;

use crate::maps::{AWAKE, BULK, CRITICAL, count};

/// Bytes used in the critical ring above which routine records are dropped to keep room for deaths.
const ROUTINE_CEILING: u64 = 1024 * 1024;

/// Ring and priority of a record.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// OOM marks: never held back, the reader wakes at once.
    Urgent,
    /// OOM deaths and abnormal deaths of watched services.
    Critical,
    /// Clean exits, execs, forks and cgroups of watched services: dropped while the critical ring is half full.
    Routine,
    /// Abnormal deaths of unwatched processes, or beyond a share.
    Bulk,
}

impl Lane {
    #[inline(always)]
    fn ring(self) -> &'static RingBuf {
        if self == Self::Bulk { &BULK } else { &CRITICAL }
    }

    /// Reserves room for `T`; without room the loss is counted. Do every read that can fail before this call.
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

    /// True while the reader polls. Before it sleeps, it looks twice more and finds a record submitted meanwhile.
    #[inline(always)]
    fn reader_is_awake(self) -> bool {
        let slot = u32::from(self == Self::Bulk);
        // SAFETY: an aligned word of a map value, which the reader alone writes.
        AWAKE.get_ptr(slot).is_some_and(|awake| unsafe { core::ptr::read_volatile(awake) } != 0)
    }
}

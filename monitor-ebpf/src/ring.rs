//! How a record is sent: which ring, when the reader is woken, what is counted when there is no room.
//!
//! Waking the reader costs an interrupt to oneself and a task switch, far more than writing the record. So a ring wakes
//! its reader at once after a quiet spell and then not again for [`WAKE_WINDOW_NS`]; the reader knows, and looks again
//! by itself until two looks in a row find nothing. What cannot wait says so.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    maps::{RingBuf, ring_buf::RingBufEntry},
};
use monitor_common::{counter, record::WAKE_WINDOW_NS};

use crate::maps::{BULK, CRITICAL, LAST_WAKE, count};

/// Bytes of the critical ring that routine records leave free for deaths.
const ROUTINE_CEILING: u64 = 256 * 1024;

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
    pub(crate) fn submit<T>(self, entry: RingBufEntry<T>, now_ns: u64) {
        count(if self == Self::Bulk { counter::SENT_BULK } else { counter::SENT_CRITICAL });
        entry.submit(if self.must_wake(now_ns) {
            u64::from(BPF_RB_FORCE_WAKEUP)
        } else {
            u64::from(BPF_RB_NO_WAKEUP)
        });
    }

    #[inline(always)]
    fn must_wake(self, now_ns: u64) -> bool {
        let Some(last) = LAST_WAKE.get_ptr_mut(u32::from(self == Self::Bulk)) else { return true };
        // SAFETY: an aligned word of a map value; a race between CPUs costs one wake-up more, never one less, because
        // each that writes also wakes.
        unsafe {
            // A clock read before another CPU's later one gives a huge difference here and wakes: harmless.
            if self == Self::Urgent || now_ns.wrapping_sub(core::ptr::read_volatile(last)) > WAKE_WINDOW_NS {
                core::ptr::write_volatile(last, now_ns);
                return true;
            }
        }
        false
    }
}

//! Follows a ring: bytes become checked [`Event`]s and go to one bounded channel.
//!
//! Being woken costs the program that submits a record more than the record itself. So a reader that was woken stays
//! awake for a while and looks again by itself; it says so to the programs ([`Reader::awake`]), which then do not wake
//! it. Before it sleeps it says that too and looks twice more, for a record whose program had read the old word.

use std::{
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData, RingBuf};
use monitor_common::record::Record;
use tokio::{
    io::unix::AsyncFd,
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::host::clock;

/// A record with the moment at which user space saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    /// CLOCK_BOOTTIME, nanoseconds.
    pub(crate) seen_ns: u64,
    /// What happened.
    pub(crate) record: Record,
}

/// What the reader of one ring has met.
#[derive(Debug, Default)]
pub(crate) struct RingStats {
    read: AtomicU64,
    malformed: AtomicU64,
}

impl RingStats {
    /// Records that came, the malformed ones among them.
    pub(crate) fn records(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Records that were not understood, and skipped.
    pub(crate) fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }

    /// Reads a record; `None` when it is malformed.
    fn read(&self, bytes: &[u8]) -> Option<Record> {
        self.read.fetch_add(1, Ordering::Relaxed);
        Record::decode(bytes)
            .inspect_err(|error| {
                // One line for the first: a flood of them would be a flood of log.
                if self.malformed.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::error!(
                        ?error,
                        "a record from the kernel programs is malformed; it is counted and skipped"
                    );
                }
            })
            .ok()
    }
}

/// Between two looks of a reader that is awake. A fiftieth of what a verdict may take.
const PAUSE: Duration = Duration::from_millis(2);
/// Looks without a record before the reader goes to sleep: 16 ms, so that a steady trickle of deaths wakes nobody.
const QUIET_LOOKS: u32 = 8;
/// Looks after it has said that it sleeps.
const LAST_LOOKS: u32 = 2;
/// A sleeping reader looks once in a while all the same: a program that was preempted for milliseconds between reading
/// the word and submitting its record would leave that record lying.
const SAFETY: Duration = Duration::from_secs(1);

/// One ring and the word that tells its programs whether to wake us.
pub(crate) struct Reader {
    /// The records.
    pub(super) ring: RingBuf<MapData>,
    /// The word.
    pub(super) awake: Arc<Mutex<Array<MapData, u32>>>,
    /// Its slot.
    pub(super) slot: u32,
}

impl AsRawFd for Reader {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl Reader {
    fn awake(&self, awake: bool) -> Result<()> {
        let mut words = self.awake.lock().unwrap_or_else(PoisonError::into_inner);
        words.set(self.slot, u32::from(awake), 0).context("cannot tell the kernel programs whether to wake the reader")
    }
}

/// Follows a ring until nobody receives any more. A full channel holds the reader back, and then the kernel counts what
/// the ring has no room for: no loss goes uncounted.
///
/// # Errors
/// When the ring cannot be waited for.
pub(crate) async fn follow(reader: Reader, events: mpsc::Sender<Event>, stats: &RingStats) -> Result<()> {
    // SAFETY: the reader owns its map's descriptor, keeps it open and never exchanges it while it is registered.
    let mut reader = unsafe { AsyncFd::register(reader) }.context("cannot wait for a ring of the kernel programs")?;
    loop {
        if let Ok(ready) = timeout(SAFETY, reader.readable_mut()).await {
            ready.context("cannot wait for a ring of the kernel programs")?.clear_ready();
        }
        let mut quiet = 0;
        let mut awake = false;
        while quiet < QUIET_LOOKS + LAST_LOOKS {
            match drain(&mut reader.get_mut().ring, &events, stats).await {
                None => return Ok(()),
                // Woken by the clock, and there was nothing: back to sleep.
                Some(0) if !awake && quiet == 0 => break,
                Some(0) => quiet += 1,
                Some(_) => quiet = 0,
            }
            let stay = quiet < QUIET_LOOKS;
            if stay != awake {
                awake = stay;
                reader.get_ref().awake(awake)?;
            }
            sleep(PAUSE).await;
        }
    }
}

/// Sends on what the ring holds now; the number of records, or `None` when nobody receives.
async fn drain(ring: &mut RingBuf<MapData>, events: &mpsc::Sender<Event>, stats: &RingStats) -> Option<usize> {
    let mut seen = 0;
    // The item is released before the channel is waited for: until then it occupies its room in the ring.
    while let Some(record) = ring.next().map(|item| stats.read(&item)) {
        seen += 1;
        if let Some(record) = record {
            events.send(Event { seen_ns: clock::boot_ns(), record }).await.ok()?;
        }
    }
    Some(seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable as _;
    use monitor_common::record::{Header, KIND_LIFE, Life};

    #[test]
    fn malformed_records_are_counted_and_the_next_good_one_is_read() {
        let stats = RingStats::default();
        let mut life = Life::zeroed();
        life.header = Header { kind: KIND_LIFE, flags: 0, kernel_ns: 1 };
        let good = bytemuck::bytes_of(&life);
        assert_eq!(stats.read(&good[..good.len() - 1]), None);
        assert_eq!(stats.read(&[]), None);
        assert_eq!(stats.read(&[0xff; 4096]), None);
        assert_eq!(stats.read(good), Some(Record::Life(life)));
        assert_eq!(stats.malformed(), 3);
    }
}

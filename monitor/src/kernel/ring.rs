//! Follows a ring: bytes become checked [`Event`]s and go to one bounded channel.
//!
//! A ring does not wake its reader for every record (`monitor-ebpf/src/ring.rs`): after a wake-up it stays silent for
//! [`WAKE_WINDOW_NS`]. So the reader, once woken, looks again by itself each window until two looks in a row find
//! nothing; the second covers a record whose clock was read just before the window closed.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, RingBuf};
use monitor_common::record::{Record, WAKE_WINDOW_NS};
use tokio::{io::unix::AsyncFd, sync::mpsc};

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
    malformed: AtomicU64,
}

impl RingStats {
    /// Records that were not understood, and skipped.
    pub(crate) fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }
}

/// Quiet looks after which the reader sleeps until woken.
const QUIET_LOOKS: u32 = 2;

/// Follows `ring` until nobody receives any more. A full channel holds the reader back, and then the kernel counts what
/// the ring has no room for: no loss goes uncounted.
///
/// # Errors
/// When the ring cannot be waited for.
pub(crate) async fn follow(ring: RingBuf<MapData>, events: mpsc::Sender<Event>, stats: &RingStats) -> Result<()> {
    // SAFETY: the ring owns its map's descriptor, keeps it open and never exchanges it while it is registered.
    let mut ring = unsafe { AsyncFd::register(ring) }.context("cannot wait for a ring of the kernel programs")?;
    loop {
        ring.readable_mut().await.context("cannot wait for a ring of the kernel programs")?.clear_ready();
        let mut quiet = 0;
        while quiet < QUIET_LOOKS {
            match drain(ring.get_mut(), &events, stats).await {
                None => return Ok(()),
                Some(0) => quiet += 1,
                Some(_) => quiet = 0,
            }
            if quiet < QUIET_LOOKS {
                tokio::time::sleep(Duration::from_nanos(WAKE_WINDOW_NS)).await;
            }
        }
    }
}

/// Sends on what the ring holds now; the number of records, or `None` when nobody receives.
async fn drain(ring: &mut RingBuf<MapData>, events: &mpsc::Sender<Event>, stats: &RingStats) -> Option<usize> {
    let mut seen = 0;
    // The item is released before the channel is waited for: until then it occupies its room in the ring.
    while let Some(decoded) = ring.next().map(|item| Record::decode(&item)) {
        seen += 1;
        match decoded {
            Ok(record) => events.send(Event { seen_ns: clock::boot_ns(), record }).await.ok()?,
            Err(error) => {
                // One line for the first: a flood of them would be a flood of log.
                if stats.malformed.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::error!(?error, "a record from the kernel programs is malformed; it is counted and skipped");
                }
            }
        }
    }
    Some(seen)
}

//! Follows a ring: bytes become checked [`Event`]s and go to one bounded channel.
//!
//! Being woken costs the program that submits a record more than the record itself. So a reader that was woken stays
//! awake for a while and looks again by itself; it says so to the programs ([`Reader::awake`]), which then do not wake
//! it. Before it sleeps it says that too and looks twice more, for a record whose program had read the old word.
//!
//! Of the critical ring, the room of a record is given back when what came of it is written down ([`Settled`]): what an agent
//! had read when it was killed is read again by the next one.

use std::{
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData};
use monitor_common::record::Record;
use tokio::{io::unix::AsyncFd, sync::mpsc, time::timeout};

use super::records::{Records, Span};
use crate::host::clock;

/// A record with the moment at which user space saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    /// CLOCK_BOOTTIME, nanoseconds.
    pub(crate) seen_ns: u64,
    /// Where it lies in the critical ring, until it is settled; `None` when nobody waits for that.
    pub(crate) span: Option<Span>,
    /// What happened.
    pub(crate) record: Record,
}

/// What the reader of one ring has met.
#[derive(Debug, Default)]
pub(crate) struct RingStats {
    read: AtomicU64,
    malformed: AtomicU64,
    given_up: AtomicU64,
    overslept: AtomicU64,
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

    /// Times that room was given back before what came of its records was written down: a disk that takes nothing must not
    /// make us lose what comes.
    pub(crate) fn given_up(&self) -> u64 {
        self.given_up.load(Ordering::Relaxed)
    }

    /// Times that the look of once a second found records that nobody had woken the reader for.
    pub(crate) fn overslept(&self) -> u64 {
        self.overslept.load(Ordering::Relaxed)
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

/// Up to where the critical ring's records are settled, as a position in it. Whoever settles them only ever raises it.
pub(crate) type Settled = Arc<AtomicU64>;

/// Bytes of the critical ring, of 512 KiB, that may be held for what is not settled while nothing is settled at all: some 700
/// deaths, or 400 OOM kills. Routine records stand back at half.
const HELD_MAX: u64 = 192 * 1024;
/// And for so long. A backlog that is worked off is none of a disk that hangs, on which to see what comes goes before surviving a
/// kill right then.
const STUCK: Duration = Duration::from_secs(1);

/// One ring and the word that tells its programs whether to wake us.
pub(crate) struct Reader {
    /// The ring.
    pub(super) map: OwnedFd,
    /// Its records.
    pub(super) records: Records,
    /// Who says when their room can be given back; `None`: once they are read.
    pub(super) settled: Option<Settled>,
    /// Up to where they were settled at the last change, and when that was.
    pub(super) moved: Option<(u64, Instant)>,
    /// The word.
    pub(super) awake: Arc<Mutex<Array<MapData, u32>>>,
    /// Its slot.
    pub(super) slot: u32,
}

impl AsRawFd for Reader {
    fn as_raw_fd(&self) -> RawFd {
        self.map.as_raw_fd()
    }
}

impl Reader {
    /// Has room given back only up to where records are settled.
    pub(crate) fn settle_by(&mut self, settled: Settled) {
        self.settled = Some(settled);
    }

    fn awake(&self, awake: bool) -> Result<()> {
        let mut words = self.awake.lock().unwrap_or_else(PoisonError::into_inner);
        words.set(self.slot, u32::from(awake), 0).context("cannot tell the kernel programs whether to wake the reader")
    }

    /// Gives back the room of what needs it no longer.
    fn give_back(&mut self, stats: &RingStats) {
        let end = self.records.end();
        let settled = self.settled.as_ref().map_or(end, |settled| settled.load(Ordering::Acquire));
        self.records.release(settled);
        let held = end.saturating_sub(self.records.begin());
        let moved = self.moved.filter(|&(before, _)| before == settled && held > HELD_MAX);
        let since = moved.map_or_else(Instant::now, |(_, since)| since);
        self.moved = Some((settled, since));
        if held > HELD_MAX && since.elapsed() > STUCK {
            self.records.release(end);
            stats.given_up.fetch_add(1, Ordering::Relaxed);
        }
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
    // The reader before us may have been killed while it was awake.
    reader.get_ref().awake(false)?;
    if drain(reader.get_mut(), &events, stats).await.is_none() {
        return Ok(());
    }
    loop {
        let woken = wait(&mut reader, SAFETY).await?;
        let mut quiet = 0;
        let mut awake = false;
        loop {
            match drain(reader.get_mut(), &events, stats).await {
                None => return Ok(()),
                // The clock's look, and there was nothing: back to sleep.
                Some(0) if !awake && quiet == 0 => break,
                Some(0) => quiet += 1,
                Some(_) => {
                    if !woken && !awake && quiet == 0 {
                        stats.overslept.fetch_add(1, Ordering::Relaxed);
                    }
                    quiet = 0;
                }
            }
            // Not after another pause: what wakes us in one is read after it.
            if quiet == QUIET_LOOKS + LAST_LOOKS {
                break;
            }
            let stay = quiet < QUIET_LOOKS;
            if stay != awake {
                awake = stay;
                reader.get_ref().awake(awake)?;
            }
            // Who is awake is woken by OOM marks alone.
            wait(&mut reader, PAUSE).await?;
        }
    }
}

/// Waits until the programs wake the reader, `at_most` so long. True when they did; then somebody has to look.
async fn wait(reader: &mut AsyncFd<Reader>, at_most: Duration) -> Result<bool> {
    let Ok(ready) = timeout(at_most, reader.readable_mut()).await else { return Ok(false) };
    ready.context("cannot wait for a ring of the kernel programs")?.clear_ready();
    Ok(true)
}

/// Sends on records that were left in rings whose programs have gone.
///
/// # Errors
/// Never; it ends with the agent.
pub(crate) async fn follow_remains(records: Vec<Record>, events: mpsc::Sender<Event>) -> Result<()> {
    for record in records {
        if events.send(Event { seen_ns: clock::boot_ns(), span: None, record }).await.is_err() {
            return Ok(());
        }
    }
    drop(events);
    std::future::pending().await
}

/// Sends on what the ring holds now; the number of records, or `None` when nobody receives.
async fn drain(reader: &mut Reader, events: &mpsc::Sender<Event>, stats: &RingStats) -> Option<usize> {
    let mut seen = 0;
    loop {
        // Before each record: the channel may hold us back for long.
        reader.give_back(stats);
        let Some((span, record)) = reader.records.next().map(|(span, bytes)| (span, stats.read(bytes))) else {
            return Some(seen);
        };
        seen += 1;
        if let Some(record) = record {
            let span = reader.settled.as_ref().map(|_| span);
            events.send(Event { seen_ns: clock::boot_ns(), span, record }).await.ok()?;
        }
    }
}

/// Takes any bytes for a record.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let stats = RingStats::default();
    let read = stats.read(bytes);
    assert_eq!(stats.malformed(), u64::from(read.is_none()), "each is understood or counted");
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

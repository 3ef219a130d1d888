//! What outlives the agent, in SQLite: the state of each service's engine, where it stands in its pool, what is known of
//! its memory, incidents, and alerts that are not over.
//!
//! One thread owns the file. Writers hand it the newest version of a row and go on; versions that nobody has written yet
//! are replaced by newer ones, so what waits is never more than what there is. [`Store::flush`] says when all that was
//! handed over is on its way to the disk: a restart is written down before it is asked for.
//!
//! A file that cannot be used is set aside, not deleted; when none can be opened, or the disk is full, the agent goes on
//! from memory and says so.

mod left;
mod reader;
mod settling;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use rusqlite::{Connection, params};
use tokio::sync::oneshot;

use crate::{
    alert, healing::Memory, host::clock, incident::Incident, kernel::Settled, memory::Follower, pool, steward::Kept,
};
pub(crate) use left::Left;
pub(crate) use reader::Reader;
pub(crate) use settling::Draft;

use left::{open_or_set_aside, prepare};
use settling::Settling;

/// The file in the state directory.
const FILE: &str = "defib.db";
/// `PRAGMA user_version` of this layout.
const LAYOUT: i64 = 1;
/// Incidents are kept for so long: 400 days, a year to look back on and some.
const MAX_AGE: Duration = Duration::from_secs(400 * 86_400);
/// And never more than this many of them; at some 4 KiB each (docs/performance.md) that is 40 MiB.
const MAX_INCIDENTS: i64 = 10_000;
/// What is known of the memory of a service that was not seen for this long is forgotten: 90 days.
const MAX_UNSEEN: Duration = Duration::from_secs(90 * 86_400);
/// Incidents that wait for a disk that takes none; beyond, the oldest are dropped and counted.
const MAX_WAITING: usize = 2_000;
/// After a write that failed.
const RETRY: Duration = Duration::from_secs(5);
/// A statement waits this long for a reader in another process.
const BUSY: Duration = Duration::from_millis(500);
/// Pages of the file in memory; negative: KiB (sqlite.org/pragma.html#pragma_cache_size). Rows are written, and read at a start
/// only, so little is read twice.
const CACHE: i64 = -256;
/// Rows that are removed at once, so that an old file does not hold up the first write.
const REMOVED_AT_ONCE: i64 = 1_000;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS service (
    name TEXT PRIMARY KEY,
    boot_id TEXT NOT NULL,
    -- the wall clock's lead over CLOCK_BOOTTIME when this was written
    lead_ns INTEGER NOT NULL,
    memory TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS incident (
    id INTEGER PRIMARY KEY,
    service TEXT NOT NULL,
    kind TEXT NOT NULL,
    began_ms INTEGER NOT NULL,
    ended_ms INTEGER,
    record TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS follower (
    name TEXT PRIMARY KEY,
    kept_ms INTEGER NOT NULL,
    follower TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS alert (
    name TEXT PRIMARY KEY,
    alert TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS pool (
    -- what a record is of: a service, or what was changed at a HAProxy
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    kept_ms INTEGER NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT;
CREATE TABLE IF NOT EXISTS picture (
    name TEXT PRIMARY KEY,
    kept_ms INTEGER NOT NULL,
    record TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS incident_began ON incident (began_ms);
";

/// A handle on the store. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    /// Why the last write failed.
    trouble: Mutex<Option<String>>,
    failed: AtomicU64,
    dropped: AtomicU64,
    /// See [`Store::settled`].
    settled: Settled,
}

#[derive(Debug, Default)]
struct Waiting {
    services: HashMap<Arc<str>, Memory>,
    followers: HashMap<Arc<str>, Follower>,
    pictures: HashMap<Arc<str>, Kept>,
    /// By name; without a version the row goes.
    alerts: HashMap<String, Option<alert::Kept>>,
    pool: PoolRecords,
    /// Services whose rows are deleted before newer ones are written.
    forgotten: BTreeSet<Arc<str>>,
    incidents: BTreeMap<i64, Incident>,
    settling: Settling,
    flushed: Vec<oneshot::Sender<()>>,
    /// Whoever waits for the file to be closed.
    closing: Option<oneshot::Sender<()>>,
}

/// Records of the table `pool`, by kind and name.
type PoolRecords = HashMap<(&'static str, Arc<str>), PoolRecord>;

#[derive(Debug)]
enum PoolRecord {
    Member(pool::Memory),
    Claims(pool::Claims),
}

/// Kinds in the table `pool`.
const MEMBER: &str = "member";
const CLAIMS: &str = "claims";

impl Waiting {
    fn is_empty(&self) -> bool {
        self.has_no_rows() && self.settling.low.is_none() && self.flushed.is_empty()
    }

    fn has_no_rows(&self) -> bool {
        let Self {
            services,
            followers,
            pictures,
            alerts,
            pool,
            forgotten,
            incidents,
            settling,
            flushed: _,
            closing: _,
        } = self;
        let rows = services.len() + followers.len() + pictures.len() + alerts.len() + pool.len() + incidents.len();
        rows + forgotten.len() + settling.rows() == 0
    }
}

/// A panic elsewhere while the lock was held leaves rows that are whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Opens the store in `directory` and begins its thread. Without a usable file it is kept in memory, which [`Left`]
    /// says.
    ///
    /// # Errors
    /// Only when not even memory can be had.
    pub(crate) fn open(directory: &Path) -> Result<(Self, Left)> {
        let path = directory.join(FILE);
        let store = Self { shared: Arc::default() };
        let (connection, left) = match open_or_set_aside(&path) {
            Ok(opened) => opened,
            Err(error) => {
                let connection = prepare(Connection::open_in_memory()?)?;
                let trouble = format!("{error:#}; kept in memory only");
                *lock(&store.shared.trouble) = Some(trouble.clone());
                (connection, Left { next_id: 1, trouble: Some(trouble), ..Left::default() })
            }
        };
        let shared = Arc::clone(&store.shared);
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || write_on(connection, &shared))
            .context("cannot start the store's thread")?;
        Ok((store, left))
    }

    /// Hands over what came of some events, to be committed as one.
    pub(crate) fn keep(&self, draft: Draft) {
        let Draft { services, incidents, settling } = draft;
        let mut waiting = lock(&self.shared.waiting);
        waiting.services.extend(services);
        waiting.settling.renew(settling);
        for incident in incidents {
            waiting.incidents.insert(incident.id, incident);
        }
        while waiting.incidents.len() > MAX_WAITING {
            waiting.incidents.pop_first();
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
        drop(waiting);
        self.shared.wake.notify_one();
    }

    /// Up to where the critical ring's records are settled by what is committed, or could not be: a disk that fails must not
    /// hold up the ring.
    pub(crate) fn settled(&self) -> Settled {
        Arc::clone(&self.shared.settled)
    }

    /// Hands over what is known of a service's memory.
    pub(crate) fn keep_follower(&self, name: &Arc<str>, follower: Follower) {
        lock(&self.shared.waiting).followers.insert(Arc::clone(name), follower);
        self.shared.wake.notify_one();
    }

    /// Hands over what is in a service's memory.
    pub(crate) fn keep_pictures(&self, name: &Arc<str>, kept: Kept) {
        lock(&self.shared.waiting).pictures.insert(Arc::clone(name), kept);
        self.shared.wake.notify_one();
    }

    /// Hands over an alert, or that it is over and told.
    pub(crate) fn keep_alert(&self, name: String, alert: Option<alert::Kept>) {
        lock(&self.shared.waiting).alerts.insert(name, alert);
        self.shared.wake.notify_one();
    }

    /// Removes a service that its owner no longer knows; its incidents stay.
    pub(crate) fn forget(&self, name: &Arc<str>) {
        let mut waiting = lock(&self.shared.waiting);
        waiting.services.remove(name);
        waiting.followers.remove(name);
        waiting.pictures.remove(name);
        waiting.pool.remove(&(MEMBER, Arc::clone(name)));
        waiting.forgotten.insert(Arc::clone(name));
        drop(waiting);
        self.shared.wake.notify_one();
    }

    /// Hands over where a service stands in its pool.
    pub(crate) fn keep_member(&self, service: &Arc<str>, memory: pool::Memory) {
        self.keep_pool((MEMBER, Arc::clone(service)), PoolRecord::Member(memory));
    }

    /// Hands over what was changed at a load balancer.
    pub(crate) fn keep_claims(&self, endpoint: &str, claims: pool::Claims) {
        self.keep_pool((CLAIMS, endpoint.into()), PoolRecord::Claims(claims));
    }

    fn keep_pool(&self, key: (&'static str, Arc<str>), record: PoolRecord) {
        lock(&self.shared.waiting).pool.insert(key, record);
        self.shared.wake.notify_one();
    }

    /// Completes when all that was handed over so far is committed, or could not be; never fails, since nothing must hold
    /// up a restart for good.
    pub(crate) fn flush(&self) -> impl Future<Output = ()> + Send + use<> {
        let (done, flushed) = oneshot::channel();
        lock(&self.shared.waiting).flushed.push(done);
        self.shared.wake.notify_one();
        async move { flushed.await.unwrap_or(()) }
    }

    /// Writes what is left and closes the file, for a clean end of the agent: from then on all is in the one file, and none of it in
    /// SQLite's log beside it, unless somebody else has the file open.
    pub(crate) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        lock(&self.shared.waiting).closing = Some(done);
        self.shared.wake.notify_one();
        closed.await.unwrap_or(());
    }

    /// Why what happens is not on disk; `None` when it is.
    pub(crate) fn trouble(&self) -> Option<String> {
        lock(&self.shared.trouble).clone()
    }

    /// Writes that failed and incidents that were dropped, since the start.
    pub(crate) fn losses(&self) -> (u64, u64) {
        (self.shared.failed.load(Ordering::Relaxed), self.shared.dropped.load(Ordering::Relaxed))
    }
}

/// The thread.
fn write_on(mut connection: Connection, shared: &Shared) {
    let in_memory = lock(&shared.trouble).clone();
    loop {
        let mut waiting = lock(&shared.waiting);
        while waiting.is_empty() && waiting.closing.is_none() {
            waiting = shared.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        let closing = waiting.closing.take();
        if waiting.is_empty() {
            drop(waiting);
            drop(connection);
            if let Some(done) = closing {
                // Whoever asked may have given up.
                done.send(()).ok();
            }
            return;
        }
        let is_closing = closing.is_some();
        let mut batch = mem::take(&mut *waiting);
        waiting.closing = closing;
        drop(waiting);
        let written = write(&mut connection, &batch);
        match &written {
            Ok(()) => lock(&shared.trouble).clone_from(&in_memory),
            Err(error) => {
                shared.failed.fetch_add(1, Ordering::Relaxed);
                let text = format!("{error:#}");
                tracing::error!("the store cannot be written: {text}");
                *lock(&shared.trouble) = Some(text);
            }
        }
        if let Some(low) = batch.settling.low.take() {
            shared.settled.fetch_max(low, Ordering::Release);
        }
        for done in mem::take(&mut batch.flushed) {
            // Whoever asked may have given up.
            done.send(()).ok();
        }
        if written.is_err() && !is_closing {
            put_back(shared, batch);
            std::thread::sleep(RETRY);
        }
    }
}

/// What could not be written waits again, unless something newer does.
fn put_back(shared: &Shared, batch: Waiting) {
    let Waiting { services, followers, pictures, alerts, pool, forgotten, incidents, settling, flushed: _, closing: _ } =
        batch;
    let mut waiting = lock(&shared.waiting);
    waiting.forgotten.extend(forgotten);
    waiting.settling.put_back(settling);
    for (name, alert) in alerts {
        waiting.alerts.entry(name).or_insert(alert);
    }
    for (key, record) in pool {
        waiting.pool.entry(key).or_insert(record);
    }
    for (name, follower) in followers {
        waiting.followers.entry(name).or_insert(follower);
    }
    for (name, kept) in pictures {
        waiting.pictures.entry(name).or_insert(kept);
    }
    for (name, memory) in services {
        waiting.services.entry(name).or_insert(memory);
    }
    for (id, incident) in incidents {
        waiting.incidents.entry(id).or_insert(incident);
    }
}

fn write(connection: &mut Connection, batch: &Waiting) -> Result<()> {
    if batch.has_no_rows() {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    {
        batch.settling.write(&transaction)?;
        for name in &batch.forgotten {
            for table in ["service", "follower", "picture"] {
                transaction
                    .prepare_cached(&format!("DELETE FROM {table} WHERE name = ?1"))?
                    .execute([name.as_ref()])?;
            }
            transaction
                .prepare_cached("DELETE FROM pool WHERE kind = ?1 AND name = ?2")?
                .execute([MEMBER, name.as_ref()])?;
        }
        let (boot_id, lead_ns) = (clock::boot_id(), clock::lead_ns());
        let mut service = transaction.prepare_cached(
            "INSERT OR REPLACE INTO service (name, boot_id, lead_ns, memory) VALUES (?1, ?2, ?3, ?4)",
        )?;
        for (name, memory) in &batch.services {
            service.execute(params![name.as_ref(), boot_id, lead_ns, serde_json::to_string(memory)?])?;
        }
        let mut follower = transaction
            .prepare_cached("INSERT OR REPLACE INTO follower (name, kept_ms, follower) VALUES (?1, ?2, ?3)")?;
        let now_ms = Timestamp::now().as_millisecond();
        for (name, one) in &batch.followers {
            follower.execute(params![name.as_ref(), now_ms, serde_json::to_string(one)?])?;
        }
        for (name, kept) in &batch.pictures {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO picture (name, kept_ms, record) VALUES (?1, ?2, ?3)")?
                .execute(params![name.as_ref(), now_ms, serde_json::to_string(kept)?])?;
        }
        for (name, one) in &batch.alerts {
            match one {
                Some(alert) => transaction
                    .prepare_cached("INSERT OR REPLACE INTO alert (name, alert) VALUES (?1, ?2)")?
                    .execute(params![name, serde_json::to_string(alert)?])?,
                None => transaction.prepare_cached("DELETE FROM alert WHERE name = ?1")?.execute([name])?,
            };
        }
        let mut pool = transaction
            .prepare_cached("INSERT OR REPLACE INTO pool (kind, name, kept_ms, record) VALUES (?1, ?2, ?3, ?4)")?;
        for ((kind, name), record) in &batch.pool {
            let text = match record {
                PoolRecord::Member(memory) => serde_json::to_string(memory)?,
                PoolRecord::Claims(claims) => serde_json::to_string(claims)?,
            };
            pool.execute(params![kind, name.as_ref(), now_ms, text])?;
        }
        let mut incident = transaction.prepare_cached(
            "INSERT OR REPLACE INTO incident (id, service, kind, began_ms, ended_ms, record) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        for (id, record) in &batch.incidents {
            let ended_ms = record.ended.map(Timestamp::as_millisecond);
            let began_ms = record.began.as_millisecond();
            let text = serde_json::to_string(record)?;
            incident.execute(params![id, record.service, record.kind.as_str(), began_ms, ended_ms, text])?;
        }
        if !batch.incidents.is_empty() {
            forget(&transaction)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Removes what is too old or too much, never what is open.
fn forget(connection: &Connection) -> Result<()> {
    let oldest = Timestamp::now().as_millisecond() - i64::try_from(MAX_AGE.as_millis()).unwrap_or(i64::MAX);
    connection
        .prepare_cached(
            "DELETE FROM incident WHERE id IN (SELECT id FROM incident WHERE ended_ms IS NOT NULL AND (began_ms < ?1 \
             OR id <= (SELECT max(id) FROM incident) - ?2) ORDER BY id LIMIT ?3)",
        )?
        .execute(params![oldest, MAX_INCIDENTS, REMOVED_AT_ONCE])?;
    Ok(())
}

#[cfg(test)]
mod tests;

//! What an earlier agent left is read, and the file made ready to be written to.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags};
use serde::de::DeserializeOwned;

use super::{BUSY, CACHE, CLAIMS, FILE, LAYOUT, MAX_UNSEEN, MEMBER, SCHEMA, settling};
use crate::{
    alert, healing::Memory, host::clock, incident::Incident, memory::Follower, pool, progress::Account, steward::Kept,
};

/// What an earlier agent left.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// The engines' memories by service, in this boot's time.
    pub(crate) services: HashMap<String, Memory>,
    /// What was known of the memory of services.
    pub(crate) followers: HashMap<String, Follower>,
    /// What was in their memory when it was about to run out.
    pub(crate) pictures: HashMap<String, Kept>,
    /// Alerts that somebody has to hear of, or to hear that they are over.
    pub(crate) alerts: Vec<alert::Kept>,
    /// Where services stood in their pools, and what was changed at load balancers.
    pub(crate) pool: pool::Left,
    /// Which records of the critical ring it had settled.
    pub(crate) account: Option<Account>,
    /// OOM kills that were counted, by service and scope.
    pub(crate) oom_kills: Vec<(String, String, u64)>,
    /// Cgroups that were watched in this boot: id, path, service.
    pub(crate) cgroups: Vec<(u64, String, String)>,
    /// Incidents that were open.
    pub(crate) open: Vec<Incident>,
    /// The first id that is free.
    pub(crate) next_id: i64,
    /// Why there is less than there should be.
    pub(crate) trouble: Option<String>,
}

pub(super) fn open_or_set_aside(path: &Path) -> Result<(Connection, Left)> {
    let directory = path.parent().context("the store is in a directory")?;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.with_context(|| format!("cannot make {}", directory.display()))?;
    // Links on the way are the operator's; SQLite follows none, so it gets the way without them.
    let real = fs::canonicalize(directory).with_context(|| format!("cannot look at {}", directory.display()))?;
    let path = &real.join(FILE);
    match open_file(path) {
        Ok(opened) => Ok(opened),
        Err(error) if is_corrupt(&error) => {
            let aside = set_aside(path)?;
            let (connection, left) = open_file(path)?;
            let trouble = format!("{} was not usable ({error:#}) and is now {}", path.display(), aside.display());
            Ok((connection, Left { trouble: Some(trouble), ..left }))
        }
        Err(error) => Err(error),
    }
}

fn open_file(path: &Path) -> Result<(Connection, Left)> {
    let shown = path.display();
    let made = !path.exists();
    let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags).with_context(|| format!("cannot open {shown}"))?;
    if made {
        // What services say and how they died is for root.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .with_context(|| format!("cannot protect {shown}"))?;
    }
    let connection = prepare(connection).with_context(|| format!("cannot use {shown}"))?;
    let left = read(&connection).with_context(|| format!("cannot read {shown}"))?;
    Ok((connection, left))
}

pub(super) fn prepare(connection: Connection) -> Result<Connection> {
    connection.busy_timeout(BUSY)?;
    // A kill of the agent loses nothing; a power cut may lose the last moments, never the file.
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "cache_size", CACHE)?;
    let layout: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    ensure!(layout <= LAYOUT, "it was written by a newer defib (layout {layout}; this one knows {LAYOUT})");
    connection.execute_batch(SCHEMA)?;
    connection.execute_batch(settling::SCHEMA)?;
    connection.pragma_update(None, "user_version", LAYOUT)?;
    Ok(connection)
}

/// True when the file itself is the trouble, not the disk or the rights.
fn is_corrupt(error: &anyhow::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    let code = error.chain().find_map(|cause| cause.downcast_ref::<rusqlite::Error>()?.sqlite_error_code());
    matches!(code, Some(DatabaseCorrupt | NotADatabase)) || error.chain().any(|cause| cause.is::<serde_json::Error>())
}

fn set_aside(path: &Path) -> Result<PathBuf> {
    let stamp = Timestamp::now().as_second();
    let aside = path.with_extension(format!("db.corrupt-{stamp}"));
    fs::rename(path, &aside).with_context(|| format!("cannot set {} aside", path.display()))?;
    for extra in ["db-wal", "db-shm"] {
        let companion = path.with_extension(extra);
        if companion.exists() {
            let aside = aside.with_added_extension(extra);
            fs::rename(&companion, aside).with_context(|| format!("cannot set {} aside", companion.display()))?;
        }
    }
    Ok(aside)
}

pub(super) fn read(connection: &Connection) -> Result<Left> {
    let mut left = Left::default();
    let (boot_id, lead_now) = (clock::boot_id(), clock::lead_ns());
    let mut statement = connection.prepare("SELECT name, boot_id, lead_ns, memory FROM service")?;
    let rows = statement.query_map([], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?, row.get::<_, String>(3)?))
    })?;
    for row in rows {
        let (name, boot, lead, memory) = row?;
        let memory: Memory = serde_json::from_str(&memory).with_context(|| format!("the state of {name}"))?;
        let memory = if boot == boot_id { memory } else { memory.after_reboot(lead - lead_now) };
        left.services.insert(name, memory);
    }
    settling::read(connection, &mut left)?;
    read_followers(connection, &mut left)?;
    read_pictures(connection, &mut left)?;
    read_alerts(connection, &mut left)?;
    read_pool(connection, &mut left.pool)?;
    let mut statement = connection.prepare("SELECT record FROM incident WHERE ended_ms IS NULL ORDER BY id")?;
    for record in statement.query_map([], |row| row.get::<_, String>(0))? {
        left.open.push(serde_json::from_str(&record?).context("an open incident")?);
    }
    left.next_id = connection.query_row("SELECT coalesce(max(id), 0) + 1 FROM incident", [], |row| row.get(0))?;
    Ok(left)
}

/// Those that another version wrote, and that this one does not understand, begin anew: that costs a few days of forecast,
/// not the file.
fn read_followers(connection: &Connection, left: &mut Left) -> Result<()> {
    forget_unseen(connection, "follower")?;
    let rows = "SELECT name, follower FROM follower";
    read_named(connection, rows, "what was known of the memory of", |name, follower| {
        left.followers.insert(name, follower);
    })
}

/// Likewise: the next one is taken before memory is out.
fn read_pictures(connection: &Connection, left: &mut Left) -> Result<()> {
    forget_unseen(connection, "picture")?;
    let rows = "SELECT name, record FROM picture";
    read_named(connection, rows, "the picture of the memory of", |name, kept| {
        left.pictures.insert(name, kept);
    })
}

/// Those that this version does not understand are forgotten: Alertmanager ends them by itself.
fn read_alerts(connection: &Connection, left: &mut Left) -> Result<()> {
    read_named(connection, "SELECT name, alert FROM alert", "the alert", |_, alert| left.alerts.push(alert))
}

/// Removes from a table of ours what was not written for long.
fn forget_unseen(connection: &Connection, table: &'static str) -> Result<()> {
    let oldest = Timestamp::now().as_millisecond() - i64::try_from(MAX_UNSEEN.as_millis()).unwrap_or(i64::MAX);
    connection.execute(&format!("DELETE FROM {table} WHERE kept_ms < ?1"), [oldest])?;
    Ok(())
}

/// Hands each row, a name and JSON, to `take`; one that cannot be read is passed over, and said to be `what` by its name.
fn read_named<T: DeserializeOwned>(
    connection: &Connection,
    rows: &str,
    what: &str,
    mut take: impl FnMut(String, T),
) -> Result<()> {
    let mut statement = connection.prepare(rows)?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    for row in rows {
        let (name, text) = row?;
        match serde_json::from_str(&text) {
            Ok(value) => take(name, value),
            Err(error) => tracing::warn!("{what} {name:?} cannot be read: {error}"),
        }
    }
    Ok(())
}

/// Likewise: a service that is not known is asked for its health, and a HAProxy for what it has.
fn read_pool(connection: &Connection, left: &mut pool::Left) -> Result<()> {
    forget_unseen(connection, "pool")?;
    let mut statement = connection.prepare("SELECT kind, name, record FROM pool")?;
    let rows = statement
        .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?)))?;
    for row in rows {
        let (kind, name, text) = row?;
        let read = match kind.as_str() {
            MEMBER => serde_json::from_str(&text).map(|memory| left.members.extend([(name.clone(), memory)])),
            CLAIMS => serde_json::from_str(&text).map(|claims| left.claims.extend([(name.clone(), claims)])),
            _ => continue,
        };
        if let Err(error) = read {
            tracing::warn!("what was known of {name:?} in its pool cannot be read: {error}");
        }
    }
    Ok(())
}

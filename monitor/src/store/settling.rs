//! What is written in one transaction with what came of deaths: that their records are settled, and the counts that go on over
//! agents.

use std::{collections::HashMap, sync::Arc};

use anyhow::Result;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::{Incident, Left, Memory};
use crate::{host::clock, progress::Account};

/// Cgroups that are remembered, the newest; a unit has a new one with each start.
const CGROUPS: i64 = 4096;

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS account (
    -- there is one
    id INTEGER PRIMARY KEY CHECK (id = 1),
    account TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS oom_kills (
    service TEXT NOT NULL,
    scope TEXT NOT NULL,
    kills INTEGER NOT NULL,
    PRIMARY KEY (service, scope)
) STRICT;
CREATE TABLE IF NOT EXISTS cgroup (
    id INTEGER PRIMARY KEY,
    boot_id TEXT NOT NULL,
    path TEXT NOT NULL,
    service TEXT NOT NULL
) STRICT;
";

/// What came of some events, handed over as one: all of it is committed, or none.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    /// Services whose engines know something new.
    pub(crate) services: HashMap<Arc<str>, Memory>,
    /// Incidents that changed.
    pub(crate) incidents: Vec<Incident>,
    /// What is settled by this.
    pub(crate) settling: Settling,
}

/// See the module. Of each, the newest version counts.
#[derive(Debug, Default)]
pub(crate) struct Settling {
    /// All OOM kills, by the labels of their series.
    pub(crate) oom_kills: HashMap<(Arc<str>, &'static str), u64>,
    /// Path and service of watched cgroups by id.
    pub(crate) cgroups: HashMap<u64, (Arc<str>, Arc<str>)>,
    /// Which records are settled.
    pub(crate) account: Option<Account>,
    /// Up to where the ring's room can be given back once this is committed.
    pub(crate) low: Option<u64>,
}

impl Draft {
    /// True when there is nothing to write; room may have to be given back all the same.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { services, incidents, settling: Settling { oom_kills, cgroups, account, low: _ } } = self;
        services.is_empty() && incidents.is_empty() && oom_kills.is_empty() && cgroups.is_empty() && account.is_none()
    }
}

impl Settling {
    /// Rows to write.
    pub(super) fn rows(&self) -> usize {
        let Self { oom_kills, cgroups, account, low: _ } = self;
        oom_kills.len() + cgroups.len() + usize::from(account.is_some())
    }

    /// Takes what is newer.
    pub(super) fn renew(&mut self, Self { oom_kills, cgroups, account, low }: Self) {
        self.oom_kills.extend(oom_kills);
        self.cgroups.extend(cgroups);
        self.account = account.or(self.account.take());
        self.low = low.or(self.low);
    }

    /// Takes what is older, and was not written.
    pub(super) fn put_back(&mut self, mut older: Self) {
        older.renew(std::mem::take(self));
        *self = older;
    }

    pub(super) fn write(&self, transaction: &Transaction<'_>) -> Result<()> {
        for ((service, scope), kills) in &self.oom_kills {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO oom_kills (service, scope, kills) VALUES (?1, ?2, ?3)")?
                .execute(params![service.as_ref(), scope, i64::try_from(*kills)?])?;
        }
        for (id, (path, service)) in &self.cgroups {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO cgroup (id, boot_id, path, service) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![id.cast_signed(), clock::boot_id(), path.as_ref(), service.as_ref()])?;
        }
        if !self.cgroups.is_empty() {
            transaction
                .prepare_cached(
                    "DELETE FROM cgroup WHERE boot_id != ?2 OR \
                     id NOT IN (SELECT id FROM cgroup ORDER BY id DESC LIMIT ?1)",
                )?
                .execute(params![CGROUPS, clock::boot_id()])?;
        }
        if let Some(account) = &self.account {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO account (id, account) VALUES (1, ?1)")?
                .execute([serde_json::to_string(account)?])?;
        }
        Ok(())
    }
}

/// An account that this version does not understand is none: the records that the ring still has are read again.
pub(super) fn read(connection: &Connection, left: &mut Left) -> Result<()> {
    let account: Option<String> =
        connection.query_row("SELECT account FROM account", [], |row| row.get(0)).optional()?;
    left.account = account.and_then(|text| {
        let read = serde_json::from_str(&text);
        read.inspect_err(|error| tracing::warn!("what an earlier agent has settled cannot be read: {error}")).ok()
    });
    let mut statement = connection.prepare("SELECT service, scope, kills FROM oom_kills")?;
    for row in statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, i64>(2)?)))? {
        let (service, scope, kills) = row?;
        left.oom_kills.push((service, scope, kills.cast_unsigned()));
    }
    let mut statement = connection.prepare("SELECT id, path, service FROM cgroup WHERE boot_id = ?1")?;
    for row in statement.query_map([clock::boot_id()], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?)))? {
        let (id, path, service) = row?;
        left.cgroups.push((id.cast_unsigned(), path, service));
    }
    Ok(())
}

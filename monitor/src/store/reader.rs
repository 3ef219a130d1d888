//! Looks into a store from beside: for operators' commands, pages and JSON.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};

use super::{BUSY, FILE};
use crate::incident::Incident;

/// Looks into a store that an agent may be writing to.
pub(crate) struct Reader(Connection);

impl Reader {
    /// Opens the store in `directory`.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let path = directory.join(FILE);
        ensure!(
            path.exists(),
            "there is no {}: has an agent ever run with this state directory (--state-dir)?",
            path.display()
        );
        let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .with_context(|| format!("cannot open {}", path.display()))?;
        connection.busy_timeout(BUSY)?;
        Ok(Self(connection))
    }

    /// The newest incidents, the newest first; of one service, when it is named.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn incidents(&self, service: Option<&str>, limit: u32) -> Result<Vec<Incident>> {
        let mut statement = self
            .0
            .prepare("SELECT record FROM incident WHERE ?1 IS NULL OR service = ?1 ORDER BY id DESC LIMIT ?2")
            .context("cannot read the incidents")?;
        let rows = statement.query_map(params![service, limit], |row| row.get::<_, String>(0))?;
        rows.map(|record| serde_json::from_str(&record?).context("an incident cannot be read")).collect()
    }

    /// One incident.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn incident(&self, id: i64) -> Result<Option<Incident>> {
        let record: Option<String> = self
            .0
            .query_row("SELECT record FROM incident WHERE id = ?1", [id], |row| row.get(0))
            .optional()
            .context("cannot read the incidents")?;
        record.map(|record| serde_json::from_str(&record).context("the incident cannot be read")).transpose()
    }
}

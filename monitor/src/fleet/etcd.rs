//! Asks etcd: members in turn, each with little patience. Knows whether anybody answers, and says so when that changes.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use super::{
    claim::{Answer, Ask, Holder, Lease, Slot},
    endpoints::Endpoints,
    metrics::FleetMetrics,
    wire::{self, Query, Reply},
};
use crate::{
    config::FleetConfig,
    host::clock,
    http::{self, Bounds},
};

/// A member that is there answers within milliseconds, in an election within seconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// Of a TTL: with a third gone before a renewal and a tenth kept as a margin, there is time for three that swallow packets.
const PATIENCE_SHARE: u32 = 6;
/// A thousand slots are some 400 kB.
const ANSWER_MAX: usize = 4 << 20;
/// Slots that are listed for people, and of how many it is asked when they run out: each is a question of its own.
const LISTED: u32 = 10_000;
const TIMED: usize = 100;

/// Whether somebody answered last time.
const UNKNOWN: u8 = 0;
const UP: u8 = 1;
const DOWN: u8 = 2;

/// See the module.
#[derive(Debug)]
pub(super) struct Etcd {
    config: FleetConfig,
    endpoints: Mutex<Endpoints>,
    state: AtomicU8,
    pub(super) metrics: FleetMetrics,
}

impl Etcd {
    pub(super) fn new(config: FleetConfig, metrics: FleetMetrics, seed: u64) -> Self {
        let endpoints = Mutex::new(Endpoints::new(config.etcd.len(), seed));
        Self { config, endpoints, state: AtomicU8::new(UNKNOWN), metrics }
    }

    /// Asks for a claim to a slot of a pool.
    pub(super) async fn ask(&self, ask: Ask, pool: &str, holder: &Holder) -> Answer {
        let slots = wire::slots_of(&self.config.prefix, pool);
        let reply = self.query(wire::query(ask, &slots, self.config.ttl, holder)).await;
        wire::answer(ask, &slots, reply)
    }

    /// Gives a lease back. One that is gone is given back too.
    ///
    /// # Errors
    /// When nobody answers.
    pub(super) async fn revoke(&self, lease: Lease) -> Result<(), String> {
        match self.query(wire::revoke(lease)).await {
            Reply::Said(_) | Reply::NotFound => Ok(()),
            Reply::Failed(why) => Err(why),
        }
    }

    /// Looks whether the cluster answers: one member with a quorum behind it does.
    pub(super) async fn probe(&self) {
        self.query(wire::range(&self.config.prefix, 1)).await;
    }

    /// Every slot that is taken, with its pool and the seconds that its lease has to live, if known.
    ///
    /// # Errors
    /// When nobody answers.
    pub(super) async fn list(&self) -> Result<Vec<(String, Slot, Option<u64>)>, String> {
        let value = match self.query(wire::range(&self.config.prefix, LISTED)).await {
            Reply::Said(value) => value,
            Reply::NotFound => return Ok(Vec::new()),
            Reply::Failed(why) => return Err(why),
        };
        let mut all = Vec::new();
        for (pool, slot) in wire::listed(value, &self.config.prefix).map_err(|error| error.to_string())? {
            let left = match (slot.lease, all.len()) {
                (0, _) | (_, TIMED..) => None,
                _ => match self.query(wire::time_to_live(slot.lease)).await {
                    Reply::Said(value) => wire::seconds_left(&value),
                    Reply::NotFound | Reply::Failed(_) => None,
                },
            };
            all.push((pool, slot, left));
        }
        Ok(all)
    }

    async fn query(&self, Query { path, body }: Query) -> Reply {
        let bounds = Bounds { patience: PATIENCE.min(self.config.ttl / PATIENCE_SHARE), body: ANSWER_MAX };
        let order = self.endpoints().order(clock::boot_ns());
        let mut failures = Vec::new();
        for member in order {
            let Some(server) = self.config.etcd.get(member) else { continue };
            let reply = match http::ask(server, path, Some(body.clone()), bounds).await {
                Ok(http::Answer { status, body: Ok(body) }) => wire::reply(status, &body),
                Ok(http::Answer { body: Err(error), .. }) | Err(error) => Reply::Failed(format!("{error:#}")),
            };
            self.metrics.asked(server, !matches!(reply, Reply::Failed(_)));
            let Reply::Failed(why) = reply else {
                self.endpoints().answered(member);
                self.note(None);
                return reply;
            };
            self.endpoints().failed(member, clock::boot_ns());
            // An error of the way to it names it already.
            let named = why.contains(&server.to_string());
            failures.push(if named { why } else { format!("{server}: {why}") });
        }
        let why = failures.join("; ");
        self.note(Some(&why));
        Reply::Failed(why)
    }

    /// Says it when that has changed.
    fn note(&self, trouble: Option<&str>) {
        self.metrics.up(trouble.is_none());
        let before = self.state.swap(if trouble.is_none() { UP } else { DOWN }, Ordering::Relaxed);
        match trouble {
            Some(why) if before != DOWN => {
                tracing::warn!(
                    "etcd does not answer, so nothing is done by plan; what dies is brought back as ever: {why}"
                );
            }
            None if before == DOWN => tracing::info!("etcd answers again: planned actions go on"),
            _ => {}
        }
    }

    /// A panic elsewhere while the lock was held leaves an order that is whole.
    fn endpoints(&self) -> std::sync::MutexGuard<'_, Endpoints> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

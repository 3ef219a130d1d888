//! The fleet guard: at most so many members of a pool are drained or restarting *by plan* at once, whichever hosts they are
//! on. Agents agree through etcd. Bringing back what died never asks here.
//!
//! ```text
//! acquire(pool) ──▶ Pace: not too often ──▶ Claim: what to ask (pure) ◀──▶ Etcd ──▶ wire, http
//!       │                                      │ one task goes on renewing it
//!       ▼                                      ▼
//!    Permit ◀───────────── how long it may be relied on
//! ```
//! * [`claim`]: one slot, from the look at the pool to its loss; why two never hold the same
//! * [`pace`]: how often a full pool is asked for
//! * [`endpoints`], [`wire`], [`etcd`]: members of the cluster, and what is said to them
//!
//! Whoever acts by plan looks at [`Permit::is_valid`] right before each step that cannot be taken back, and stops when
//! [`Permit::lost`] completes. A permit that is dropped without [`Permit::release`] is free when its lease has run out.

mod claim;
mod endpoints;
mod etcd;
mod metrics;
mod pace;
mod wire;

use std::{
    collections::HashMap,
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use jiff::Timestamp;
use prometheus::IntGauge;
use tokio::{sync::watch, task::JoinHandle, time::sleep};

use crate::{config::FleetConfig, host::clock, pool, text::Clean};

pub(crate) use claim::Holder;
use claim::{Claim, End, Held, Lease, Next};
use etcd::Etcd;
pub(crate) use metrics::FleetMetrics;
use pace::Pace;
#[cfg(any(test, fuzzing))]
pub(crate) use wire::fuzz as fuzz_etcd;

/// Holders that a refusal names.
const NAMED: usize = 3;
/// Pools that are paced one by one; what is beyond shares one.
const PACES: usize = 1000;

/// The pool that a service is counted in: the backend of the name that load balancers have for it, or else its own name.
pub(crate) fn pool_of<'a>(name: Option<&'a pool::Name>, service: &'a str) -> &'a str {
    name.and_then(pool::Name::parts).map_or(service, |(backend, _)| backend)
}

/// Why a planned action must wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// So many are out as may be.
    Full {
        /// How many that is.
        taken: usize,
        /// A few of them; `None` for what was not written by an agent.
        holders: Vec<Option<Holder>>,
    },
    /// etcd does not answer.
    Unreachable(String),
}

impl Why {
    /// All of [`Self::name`].
    pub(crate) const NAMES: [&str; 2] = ["full", "unreachable"];

    /// As metrics and JSON have it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Full { .. } => "full",
            Self::Unreachable(_) => "unreachable",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { taken, holders } => {
                write!(out, "{taken} out by plan already, which is as many as may be")?;
                for (index, holder) in holders.iter().enumerate() {
                    out.write_str(if index == 0 { ": " } else { ", " })?;
                    match holder {
                        Some(Holder { host, service, since }) => {
                            write!(out, "{} on {} since {since:.0}", Clean(service), Clean(host))?;
                        }
                        None => out.write_str("somebody without a name")?,
                    }
                }
                if *taken > holders.len() { out.write_str(", …") } else { Ok(()) }
            }
            Self::Unreachable(why) => write!(out, "etcd does not answer: {why}"),
        }
    }
}

/// No permit: nothing must be done by plan now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Why.
    pub(crate) why: Why,
    /// An earlier question gets the same answer, without etcd being asked.
    pub(crate) again_in: Duration,
}

impl fmt::Display for Refused {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.why.fmt(out)
    }
}

/// A slot that is taken, for people.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    /// Of which pool.
    pub(crate) pool: String,
    /// Its number; `None` when it was not taken by an agent.
    pub(crate) slot: Option<u32>,
    /// Likewise.
    pub(crate) holder: Option<Holder>,
    /// Its lease, as etcdctl has it; without one, it stays until its key is deleted.
    pub(crate) lease: Option<String>,
    /// If nobody renews it, it is free in so many seconds.
    pub(crate) expires_in_seconds: Option<u64>,
}

/// A handle on the guard. Cheap to clone; without etcd in the configuration everything is granted.
#[derive(Clone, Debug)]
pub(crate) struct Fleet(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    etcd: Etcd,
    slots: u32,
    ttl: Duration,
    host: String,
    seed: u64,
    paces: Mutex<HashMap<String, (Pace, Option<Why>)>>,
}

impl Fleet {
    /// A guard for this configuration.
    pub(crate) fn new(config: &FleetConfig, metrics: FleetMetrics) -> Self {
        if config.etcd.is_empty() {
            return Self::off();
        }
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let mut hasher = DefaultHasher::new();
        (&host, clock::boot_id(), std::process::id(), clock::boot_ns()).hash(&mut hasher);
        let seed = hasher.finish();
        Self(Some(Arc::new(Shared {
            etcd: Etcd::new(config.clone(), metrics, seed),
            slots: config.max_unavailable,
            ttl: config.ttl,
            host,
            seed,
            paces: Mutex::default(),
        })))
    }

    /// A guard that grants everything.
    pub(crate) fn off() -> Self {
        Self(None)
    }

    /// Asks for one of the pool's slots. `service`: what it is for, for people who look at who is out.
    ///
    /// Takes a few round trips, and as long as [`FleetConfig::ttl`] when members of the cluster are away. Dropped meanwhile, it
    /// leaves a slot that is free after that time.
    ///
    /// # Errors
    /// [`Refused`]; without etcd, never.
    pub(crate) async fn acquire(&self, pool: &str, service: &str) -> Result<Permit, Refused> {
        let Some(shared) = &self.0 else { return Ok(Permit(None)) };
        if let Some(refused) = shared.too_early(pool) {
            return Err(refused);
        }
        let holder = Holder { host: shared.host.clone(), service: service.to_owned(), since: Timestamp::now() };
        let mut claim = Claim::new(shared.slots, shared.seed);
        let why = loop {
            match claim.next(clock::boot_ns()) {
                Next::Ask(ask) => {
                    let answer = shared.etcd.ask(ask, pool, &holder).await;
                    claim.answered(answer, clock::boot_ns());
                }
                Next::Held { .. } => match claim.holds() {
                    Some(held) => return Ok(Arc::clone(shared).granted(claim, held, pool, holder)),
                    None => break Why::Unreachable("there is no slot after all".to_owned()),
                },
                Next::Over(End::Full(seen)) => {
                    let holders = seen.slots.into_iter().map(|slot| slot.holder).take(NAMED).collect();
                    break Why::Full { taken: seen.taken, holders };
                }
                Next::Over(End::Unreachable(why) | End::Lost(why)) => break Why::Unreachable(why),
            }
        };
        if let Some(lease) = claim.lease() {
            // If that fails too, it runs out.
            shared.etcd.revoke(lease).await.ok();
        }
        shared.etcd.metrics.refused(&why);
        let again_in = shared.pace(pool, |pace| {
            pace.1 = Some(why.clone());
            pace.0.refused(clock::boot_ns())
        });
        Err(Refused { why, again_in })
    }

    /// All slots that are taken.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub(crate) async fn list(&self) -> Result<Vec<Taken>, Why> {
        let Some(shared) = &self.0 else { return Ok(Vec::new()) };
        let all = shared.etcd.list().await.map_err(Why::Unreachable)?;
        let taken = |(pool, slot, expires_in_seconds): (String, claim::Slot, _)| Taken {
            pool,
            slot: slot.index,
            holder: slot.holder,
            lease: (slot.lease != 0).then(|| format!("{:x}", slot.lease)),
            expires_in_seconds,
        };
        Ok(all.into_iter().map(taken).collect())
    }

    /// Looks once in a TTL, or so, whether etcd answers, so that its absence is known before it is needed. Never ends.
    pub(crate) async fn watch(self) -> Result<()> {
        let Some(shared) = &self.0 else { return std::future::pending().await };
        let mut round = 0;
        loop {
            shared.etcd.probe().await;
            sleep(shared.ttl.mul_f64(0.75 + 0.5 * pace::unit(shared.seed ^ round))).await;
            round += 1;
        }
    }
}

impl Shared {
    fn granted(self: Arc<Self>, claim: Claim, held: Held, pool: &str, holder: Holder) -> Permit {
        self.pace(pool, |(pace, _)| pace.granted());
        let Held { slot, lease, valid_until_ns } = held;
        let held = self.etcd.metrics.held(pool);
        held.inc();
        tracing::info!(pool, slot, service = holder.service, "slot taken for a planned action");
        let (told, until_ns) = watch::channel(valid_until_ns);
        let renewal = tokio::spawn(Arc::clone(&self).renew(claim, pool.to_owned(), holder, told));
        Permit(Some(Hold { shared: self, pool: pool.to_owned(), slot, lease, until_ns, renewal, held }))
    }

    /// Keeps a claim until it is lost.
    async fn renew(self: Arc<Self>, mut claim: Claim, pool: String, holder: Holder, told: watch::Sender<u64>) {
        loop {
            match claim.next(clock::boot_ns()) {
                Next::Ask(ask) => {
                    let answer = self.etcd.ask(ask, &pool, &holder).await;
                    claim.answered(answer, clock::boot_ns());
                    told.send_replace(claim.holds().map_or(0, |held| held.valid_until_ns));
                }
                Next::Held { until_ns } => {
                    sleep(Duration::from_nanos(until_ns.saturating_sub(clock::boot_ns()))).await;
                }
                Next::Over(End::Lost(why) | End::Unreachable(why)) => {
                    return self.gave_up(&pool, &told, &why);
                }
                Next::Over(End::Full(_)) => return self.gave_up(&pool, &told, "others have it"),
            }
        }
    }

    fn gave_up(&self, pool: &str, told: &watch::Sender<u64>, why: &str) {
        told.send_replace(0);
        self.etcd.metrics.lost();
        tracing::warn!(pool, "slot lost, so nothing more is done by plan with it: {why}");
    }

    fn too_early(&self, pool: &str) -> Option<Refused> {
        self.pace(pool, |(pace, why)| Some(Refused { again_in: pace.wait(clock::boot_ns())?, why: why.clone()? }))
    }

    /// The pace of a pool.
    fn pace<T>(&self, pool: &str, with: impl FnOnce(&mut (Pace, Option<Why>)) -> T) -> T {
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        let key = if paces.len() < PACES || paces.contains_key(pool) { pool } else { "" };
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let pace = paces.entry(key.to_owned()).or_insert_with(|| (Pace::new(self.seed ^ hasher.finish()), None));
        with(pace)
    }
}

/// The right to have one member of a pool out by plan.
#[derive(Debug)]
pub(crate) struct Permit(Option<Hold>);

#[derive(Debug)]
struct Hold {
    shared: Arc<Shared>,
    pool: String,
    slot: u32,
    lease: Lease,
    /// From then on it must not be relied on; 0 when it is lost.
    until_ns: watch::Receiver<u64>,
    renewal: JoinHandle<()>,
    held: IntGauge,
}

impl Permit {
    /// Whether it may be relied on at `now_ns` (CLOCK_BOOTTIME, which counts through suspend). To be looked at right before
    /// every step that cannot be taken back.
    pub(crate) fn is_valid(&self, now_ns: u64) -> bool {
        self.0.as_ref().is_none_or(|slot| now_ns < *slot.until_ns.borrow())
    }

    /// Completes when it must not be relied on any more.
    pub(crate) async fn lost(&self) {
        let Some(slot) = &self.0 else { return std::future::pending().await };
        let mut until = slot.until_ns.clone();
        loop {
            let left = until.borrow_and_update().saturating_sub(clock::boot_ns());
            if left == 0 {
                return;
            }
            tokio::select! {
                () = sleep(Duration::from_nanos(left)) => {}
                changed = until.changed() => if changed.is_err() { return },
            }
        }
    }

    /// The number of the slot; `None` when nobody was asked.
    pub(crate) fn slot(&self) -> Option<u32> {
        self.0.as_ref().map(|slot| slot.slot)
    }

    /// Gives it back: the next one may begin at once.
    ///
    /// # Errors
    /// When etcd does not answer; it is free when its lease has run out.
    pub(crate) async fn release(mut self) -> Result<(), Why> {
        let Some(slot) = self.0.take() else { return Ok(()) };
        slot.renewal.abort();
        let revoked = slot.shared.etcd.revoke(slot.lease).await;
        match &revoked {
            Ok(()) => tracing::info!(pool = slot.pool, slot = slot.slot, "slot given back"),
            Err(why) => {
                tracing::warn!(pool = slot.pool, "slot not given back, and free when its lease has run out: {why}")
            }
        }
        revoked.map_err(Why::Unreachable)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.renewal.abort();
        self.held.dec();
    }
}

#[cfg(test)]
mod tests;

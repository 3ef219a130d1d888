//! What the guard says in `/metrics`. Labels are bounded: members of the cluster, and a hundred pools.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use anyhow::Result;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::Why;
use crate::http::Server;

/// Pools with a label of their own. An agent has a few services, each in one pool.
const POOLS: usize = 100;
const OTHER: &str = "other";

/// See the module.
#[derive(Debug)]
pub(crate) struct FleetMetrics {
    up: IntGauge,
    held: IntGaugeVec,
    lost: IntCounter,
    refused: IntCounterVec,
    requests: IntCounterVec,
    pools: Mutex<BTreeSet<String>>,
}

impl FleetMetrics {
    /// Registers everything. Each member, reason, and pool that is known has its series from the start.
    ///
    /// # Errors
    /// When a name is taken.
    pub(crate) fn new<'a>(
        registry: &Registry,
        members: &[Server],
        pools: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self> {
        let held = Opts::new("defib_fleet_slots_held", "Slots of a pool that this agent holds for planned actions.");
        let refused = Opts::new(
            "defib_fleet_refused_total",
            "Planned actions that had to wait: full (so many are out as may be), unreachable (etcd does not answer).",
        );
        let requests = Opts::new("defib_fleet_requests_total", "Questions to members of etcd: answered, failed.");
        let metrics = Self {
            up: IntGauge::new("defib_fleet_up", "Whether etcd answers; without it nothing is done by plan.")?,
            held: IntGaugeVec::new(held, &["pool"])?,
            lost: IntCounter::new("defib_fleet_slots_lost_total", "Slots that were lost before they were given back.")?,
            refused: IntCounterVec::new(refused, &["reason"])?,
            requests: IntCounterVec::new(requests, &["endpoint", "result"])?,
            pools: Mutex::default(),
        };
        registry.register(Box::new(metrics.up.clone()))?;
        registry.register(Box::new(metrics.held.clone()))?;
        registry.register(Box::new(metrics.lost.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        registry.register(Box::new(metrics.requests.clone()))?;
        for why in Why::NAMES {
            metrics.refused.with_label_values(&[why]);
        }
        for member in members {
            for result in ["answered", "failed"] {
                metrics.requests.with_label_values(&[member.to_string().as_str(), result]);
            }
        }
        for pool in pools {
            metrics.held(pool);
        }
        Ok(metrics)
    }

    /// Whether etcd answers. Returns what was said before.
    pub(super) fn up(&self, up: bool) {
        self.up.set(up.into());
    }

    pub(super) fn asked(&self, member: &Server, answered: bool) {
        let result = if answered { "answered" } else { "failed" };
        self.requests.with_label_values(&[member.to_string().as_str(), result]).inc();
    }

    pub(super) fn refused(&self, why: &Why) {
        self.refused.with_label_values(&[why.name()]).inc();
    }

    pub(super) fn lost(&self) {
        self.lost.inc();
    }

    /// Slots of a pool that are held.
    pub(super) fn held(&self, pool: &str) -> IntGauge {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let known = pools.contains(pool) || (pools.len() < POOLS && pools.insert(pool.to_owned()));
        self.held.with_label_values(&[if known { pool } else { OTHER }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_beyond_the_cap_share_a_label() {
        let registry = Registry::new();
        let metrics = FleetMetrics::new(&registry, &[], ["be_web"]).expect("names are free");
        for pool in 0..2 * POOLS {
            metrics.held(&format!("pool{pool}")).inc();
        }
        metrics.held("pool0").inc();
        assert_eq!(metrics.held("pool0").get(), 2);
        assert_eq!(metrics.held("new").get(), POOLS as i64 + 1, "one place is be_web's");
        let families = registry.gather();
        let held = families.iter().find(|family| family.name() == "defib_fleet_slots_held").expect("registered");
        assert_eq!(held.get_metric().len(), POOLS + 1);
    }
}

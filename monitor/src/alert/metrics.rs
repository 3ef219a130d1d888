//! What became of alerts, for `/metrics`. Peers are as many as the configuration names.

use anyhow::Result;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::{Alerts, outbox::Answer};
use crate::config::Peer;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct AlertMetrics {
    sent: IntCounterVec,
    dropped: IntCounter,
    active: IntGauge,
}

impl AlertMetrics {
    /// Registers everything; each peer has its series from the start.
    ///
    /// # Errors
    /// When a name is taken.
    pub(crate) fn new(registry: &Registry, peers: &[Peer]) -> Result<Self> {
        let sent = Opts::new(
            "defib_alerts_sent_total",
            "Alerts told to an Alertmanager: accepted, refused (not sent again), failed (sent again).",
        );
        let metrics = Self {
            sent: IntCounterVec::new(sent, &["peer", "result"])?,
            dropped: IntCounter::new(
                "defib_alerts_dropped_total",
                "Alerts that found no room, and OOM kills that no Alertmanager took within a day.",
            )?,
            active: IntGauge::new("defib_alerts_active", "Alerts of the agent that fire.")?,
        };
        registry.register(Box::new(metrics.sent.clone()))?;
        registry.register(Box::new(metrics.dropped.clone()))?;
        registry.register(Box::new(metrics.active.clone()))?;
        for peer in peers {
            for result in ["accepted", "refused", "failed"] {
                metrics.sent.with_label_values(&[peer.to_string().as_str(), result]);
            }
        }
        Ok(metrics)
    }

    /// Counts the alerts of one post.
    pub(super) fn sent(&self, peer: &Peer, answer: &Answer, count: usize) {
        let result = match answer {
            Answer::Accepted => "accepted",
            Answer::Refused(_) => "refused",
            Answer::Failed(_) => "failed",
        };
        self.sent.with_label_values(&[peer.to_string().as_str(), result]).inc_by(count as u64);
    }

    /// Brings the rest up to date before a scrape.
    pub(crate) fn refresh(&self, alerts: &Alerts) {
        let (firing, dropped) = alerts.sizes();
        self.active.set(i64::try_from(firing).unwrap_or(i64::MAX));
        self.dropped.inc_by(dropped.saturating_sub(self.dropped.get()));
    }
}

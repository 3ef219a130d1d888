//! Forgets services that their owner no longer knows. Only their incidents are kept.
//!
//! Otherwise containers with a new name for each run, units named after a peer's address, and transient units would
//! stay known for ever.

use std::sync::Arc;

use super::{Steward, Word};
use crate::{
    host::clock,
    memory::{Follower, Pace},
};

/// The owner is asked when a service had no process and no action under way for this long; 10 min.
const IDLE_NS: u64 = 600 * 1_000_000_000;
/// Services asked about in one round.
const ASKED: usize = 32;

impl Steward {
    /// Asks the owners of services that were idle for a while whether they still know them.
    pub(super) fn look_for_the_gone(&mut self) {
        let now = clock::boot_ns();
        self.metrics.forget_quiet(now);
        let idle = self.roster.idle(now, IDLE_NS, ASKED);
        let supervisors: Vec<_> = idle
            .into_iter()
            .filter(|service| self.book.open_id(service).is_none())
            .filter_map(|service| Some((Arc::clone(&self.roster.get(&service)?.supervisor), service)))
            .collect();
        if supervisors.is_empty() {
            return;
        }
        let words = self.words.0.clone();
        self.tasks.spawn(async move {
            for (supervisor, service) in supervisors {
                // An owner that does not answer may still know the service.
                if matches!(supervisor.knows().await, Ok(false)) {
                    // The send fails only when the agent stops.
                    words.send(Word::Gone(service)).await.ok();
                }
            }
        });
    }

    /// Forgets a service, unless it has come back meanwhile.
    pub(super) fn forget(&mut self, service: &Arc<str>) {
        let Some(managed) = self.roster.get(service).filter(|managed| managed.is_left_alone()) else { return };
        tracing::info!(service = %crate::text::Clean(service), "its owner no longer knows it: forgotten");
        debug_assert!(managed.process().is_none(), "nothing of it lives");
        let nothing = Follower::new(Pace { sample_seconds: self.sample.as_secs_f64() }).forecast();
        self.alerts.foresees(service, &nothing);
        self.roster.remove(service);
        self.pools.remove(service);
        self.planned.remove(service);
        self.pictures.remove(service);
        self.traces.remove(service);
        self.metrics.forget(service);
        self.store.forget(service);
    }
}

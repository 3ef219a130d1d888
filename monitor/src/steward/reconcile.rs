//! What is believed is held against what is, and mended: services that live or do not, OOM kills, the clock, the programs.

use std::sync::Arc;

use tokio::time::sleep;

use super::{Steward, WORD_OF_DEATH, Word};
use crate::{
    host::{
        cgroup::Hierarchy,
        clock,
        process::{self, Identity},
    },
    kernel::Origin,
};

/// Cgroups of each part of the table that one round checks for existence.
const CGROUPS_IN_TURN: usize = 512;

impl Steward {
    /// Holds what we believe against what is.
    pub(super) fn look_again(&mut self) {
        self.progress.tick(clock::boot_ns());
        self.attach_again();
        self.unwatch_the_unknown();
        self.watch_again();
        self.look_for_the_gone();
        self.metrics.own().claims_dropped(self.claims.dropped());
        if let Some(step) = self.wall.step(clock::lead_ns()) {
            tracing::warn!("the wall clock was set by {:+.3} s; moments are told as it stands now", step as f64 / 1e9);
            self.metrics.own().clock_stepped();
        }
        let missed = self.audit.check();
        if missed > 0 {
            tracing::error!(missed, "the kernel counted OOM kills that were not seen");
            self.metrics.missed_oom_kills(missed);
        }
        let Some(hierarchy) = self.hierarchy.clone() else { return };
        let mut alive = Vec::new();
        let mut down = Vec::new();
        let now = clock::boot_ns();
        for (name, managed) in self.roster.iter() {
            // A pause runs out without a word.
            self.metrics.paused(name, managed.engine().paused_until(now).is_some());
            match managed.process() {
                Some(process) => alive.push((Arc::clone(name), process)),
                None if managed.is_left_alone() && !managed.cgroup.is_empty() => {
                    down.push((Arc::clone(name), Arc::clone(&managed.cgroup)));
                }
                None => {}
            }
        }
        // On a slow host the next round is skipped rather than run beside this one.
        if self.reconciling.as_ref().is_some_and(|round| !round.is_finished()) {
            return;
        }
        let words = self.words.0.clone();
        let cgroups = self.observer.turn(CGROUPS_IN_TURN);
        // Thousands of small reads: not on the threads that take events.
        let round = self.tasks.spawn(async move {
            let found = tokio::task::spawn_blocking(move || {
                let mut found = reconcile(&hierarchy, alive, down);
                found.push(Word::Vanished(vanished(&hierarchy, cgroups)));
                found
            });
            let found = found.await.unwrap_or_default();
            if found.iter().any(|word| matches!(word, Word::Lost(..))) {
                // Its record may be waiting for its verdict.
                sleep(WORD_OF_DEATH).await;
            }
            for word in found {
                // The send fails only when the agent stops.
                words.send(word).await.ok();
            }
        });
        self.reconciling = Some(round);
    }

    /// Mends what somebody else has detached, and leaves it for the next agent once more.
    fn attach_again(&mut self) {
        for (program, mended) in self.kernel.attach_again() {
            let attached = mended.and_then(|link| self.handover.renew(link));
            match &attached {
                Ok(()) => tracing::error!("the program {program} was detached by somebody else, and is attached again"),
                Err(error) => tracing::error!("the program {program} was detached by somebody else: {error:#}"),
            }
            self.metrics.own().detached(program, attached.is_ok());
        }
        if !self.handover.is_whole(&self.kernel) {
            match self.handover.keep(&self.kernel, &Origin::TakenOver) {
                Ok(()) => tracing::warn!("somebody has removed pins of the kernel programs; they are there again"),
                Err(error) => tracing::error!("what happens while no agent runs will be lost: {error:#}"),
            }
            self.metrics.own().unpinned();
        }
    }
}

/// Those of these cgroups that no longer exist, or whose path now belongs to another cgroup.
fn vanished(hierarchy: &Hierarchy, cgroups: Vec<(u64, Arc<str>)>) -> Vec<u64> {
    let exists = |(id, path): &(u64, Arc<str>)| !matches!(hierarchy.id_of(path), Ok(now) if now != Some(*id));
    cgroups.into_iter().filter(|cgroup| !exists(cgroup)).map(|(id, _)| id).collect()
}

/// Looks at the processes that are believed to live, and for those of services that are believed to be down.
fn reconcile(hierarchy: &Hierarchy, alive: Vec<(Arc<str>, Identity)>, down: Vec<(Arc<str>, Arc<str>)>) -> Vec<Word> {
    let now = clock::boot_ns();
    let lost = alive.into_iter().filter(|&(_, process)| !process::is_alive(process));
    let mut found: Vec<_> = lost.map(|(service, process)| Word::Lost(service, process, now)).collect();
    for (service, cgroup) in down {
        if let Ok(Some(process)) = hierarchy.main_process(&cgroup) {
            found.push(Word::Met(service, process));
        }
    }
    found
}

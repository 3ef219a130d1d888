//! Services' engines are told what happens, and what they decide is done.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::AbortHandle,
    time::{sleep, timeout},
};

use super::{Steward, WORD_OF_DEATH, Word};
use crate::{
    alert::Standing,
    config::Health,
    healing::{Action, Input, Outcome},
    health::{self, Unproven},
    host::{clock, pressure, process::Identity},
    incident::{self, Before},
    supervisor::{End, Permit},
    timeline::What,
};

/// How long a restart waits until it is written down: committed within a millisecond or two on a disk that works.
const KEEPING: Duration = Duration::from_millis(100);

impl Steward {
    pub(super) fn step(&mut self, service: &Arc<str>, input: Input, now: u64) {
        let is_missing = input == Input::Missing;
        let actions = self.roster.step(service, input.clone(), now);
        self.pool_follow(service, &input, now);
        if is_missing && !actions.is_empty() {
            let cause_text = "it was not running when the agent started".to_owned();
            self.book.death(service, incident::Death { cause_text, ..incident::Death::default() });
        }
        if let Some(managed) = self.roster.get(service) {
            self.metrics.is_up(service, managed.process().is_some());
            self.metrics.circuit(service, managed.engine().is_circuit_open());
        }
        if let Some(memory) = self.roster.changed(service) {
            self.draft.services.insert(Arc::clone(service), memory);
        }
        for action in actions {
            self.act(service, action, now);
        }
        self.stands(service, now);
        self.planned_look(service, now);
    }

    /// Tells operators how a service stands.
    pub(super) fn stands(&self, service: &Arc<str>, now: u64) {
        let Some(managed) = self.roster.get(service) else { return };
        let engine = managed.engine();
        let paused_until_ns = engine.paused_until(now);
        self.metrics.paused(service, paused_until_ns.is_some());
        self.alerts.stands(
            service,
            Standing {
                down_since_ns: engine.down_since(),
                cause: self.book.open_cause(service),
                circuit_open: engine.is_circuit_open(),
                paused_until_ns,
            },
        );
    }

    fn act(&mut self, service: &Arc<str>, action: Action, now: u64) {
        let Some(managed) = self.roster.get(service) else { return };
        match action {
            Action::Open { at_ns } => {
                self.metrics.outage_began(service);
                let before = Before {
                    memory: managed.recorder.samples(),
                    limit: managed.recorder.limit(),
                    foretold: Some(managed.follower.foretold()),
                };
                self.book.open(service, clock::wall(at_ns), before);
            }
            Action::Ask { question, died_ns, ours } => {
                let supervisor = Arc::clone(&managed.supervisor);
                let asked = self.spawn(service, async move {
                    let plan = supervisor.plan(End { died_ns, ours }).await.map_err(|error| format!("{error:#}"));
                    Input::Planned { question, plan, exhausted: pressure::exhausted() }
                });
                // The engine only waits for the answer to its last question.
                if let Some(older) = self.plans.insert(Arc::clone(service), asked) {
                    older.abort();
                }
            }
            Action::Wait { until_ns, reason, because } => {
                self.say(now, service, What::Waiting { until_ns, reason, because });
            }
            Action::Restart { attempt, because } => {
                let supervisor = Arc::clone(&managed.supervisor);
                self.say(now, service, What::RestartAsked { attempt, because });
                let permit = self.written_down();
                self.spawn(service, async move {
                    let result = supervisor.start(permit).await.map_err(|error| format!("{error:#}"));
                    Input::Started { attempt, result }
                });
            }
            Action::Renew { process, because } => {
                let supervisor = Arc::clone(&managed.supervisor);
                self.say(now, service, What::RenewalAsked(because));
                let permit = self.written_down();
                self.spawn(service, async move {
                    let result = supervisor.renew(process, permit).await.map_err(|error| format!("{error:#}"));
                    Input::RenewalEnded { result }
                });
            }
            Action::Renewed { down_ns } => self.planned_ended(service, Ok(down_ns), now),
            Action::NotRenewed { reason } => self.planned_ended(service, Err(reason), now),
            Action::Probe { process } => {
                let health = managed.health.clone();
                self.say(now, service, What::Started { tgid: process.tgid });
                self.probe(service, health, process, now);
            }
            Action::Suppress { reason, because } => {
                self.metrics.suppressed(service, reason);
                self.say(now, service, What::Suppressed { reason, because });
            }
            Action::Failed { reason } => {
                self.metrics.restart_failed(service);
                self.say(now, service, What::Failed(reason));
            }
            Action::Conclude { outcome, .. } => self.book.conclude(service, outcome),
            Action::Close { outage_ns, outcome } => {
                self.metrics.outage_ended(service, outage_ns, outcome);
                self.say(
                    now,
                    service,
                    match outcome {
                        Outcome::Intended => What::Over("it was meant to be down"),
                        _ => What::Healthy { outage_ns },
                    },
                );
                self.book.close(service, clock::wall(now), Duration::from_nanos(outage_ns), outcome);
            }
        }
    }

    /// Completes when all that was decided is written down: whoever comes after us must know of a restart before it can have
    /// happened. A disk that takes nothing must not keep a service down.
    pub(super) fn written_down(&mut self) -> Permit {
        self.write_down();
        let kept = timeout(KEEPING, self.store.flush());
        Box::pin(async move { drop(kept.await) })
    }

    /// Has the health of an incarnation proven. One that is dead has a death of its own, which comes as such; should word of
    /// it be lost, this is the second witness.
    pub(super) fn probe(&mut self, service: &Arc<str>, health: Health, process: Identity, now: u64) {
        let (words, of) = (self.words.0.clone(), Arc::clone(service));
        let service = Arc::clone(service);
        let begun = self.tasks.spawn(async move {
            let word = match health::prove(&health, process).await {
                Ok(()) => Word::Input(service, Input::Probed { process, result: Ok(()) }),
                Err(Unproven::Sick(error)) => {
                    let result = Err(format!("{error:#}"));
                    Word::Input(service, Input::Probed { process, result })
                }
                Err(Unproven::Dead) => {
                    sleep(WORD_OF_DEATH).await;
                    Word::Lost(service, process, now)
                }
            };
            // The send fails only when the agent stops.
            words.send(word).await.ok();
        });
        // Only one incarnation of a service is proven healthy at a time.
        if let Some(older) = self.probes.insert(of, begun) {
            older.abort();
        }
    }

    /// Runs `work` beside the steward; its input comes back in turn.
    pub(super) fn spawn(
        &mut self,
        service: &Arc<str>,
        work: impl Future<Output = Input> + Send + 'static,
    ) -> AbortHandle {
        let (words, service) = (self.words.0.clone(), Arc::clone(service));
        self.tasks.spawn(async move {
            let input = work.await;
            // The send fails only when the agent stops.
            words.send(Word::Input(service, input)).await.ok();
        })
    }
}

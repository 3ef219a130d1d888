//! Looks for the next main process of a command service after the old one died. This reads `/proc` once for each
//! process of the cgroup, so it runs beside the steward. Each service has one look at a time; its deaths wait in order.
//! (The owner of a unit or a container names the main process itself.)

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use tokio::{sync::Semaphore, task::spawn_blocking};

use super::{Steward, Word};
use crate::{host::process::Identity, observer::Death};

/// Looks at a time, over all services.
const AT_ONCE: usize = 16;
/// Deaths of one service that wait for a look. Further ones are handled without a look: the plan finds what lives.
const WAITING: usize = 64;

/// Looks that are under way.
pub(super) struct Looking {
    services: HashMap<Arc<str>, VecDeque<Box<Death>>>,
    turns: Arc<Semaphore>,
}

impl Default for Looking {
    fn default() -> Self {
        Self { services: HashMap::new(), turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Looking {
    /// True when something of this service waits.
    pub(super) fn is_at(&self, service: &str) -> bool {
        self.services.contains_key(service)
    }
}

impl Steward {
    /// Queues a death behind the service's waiting ones, and looks for the next main process.
    pub(super) fn look(&mut self, service: &Arc<str>, death: Box<Death>) {
        let queue = self.looking.services.entry(Arc::clone(service)).or_default();
        if queue.len() < WAITING {
            queue.push_back(death);
            if queue.len() == 1 {
                self.next_look(service);
            }
        } else if self.is_main(&death) {
            self.main_died(&death, None);
        } else {
            self.worker_died(&death);
        }
    }

    /// Begins the look for the first waiting death, if there is one.
    fn next_look(&mut self, service: &Arc<str>) {
        loop {
            let Some(death) = self.looking.services.get(service).and_then(VecDeque::front) else {
                self.looking.services.remove(service);
                return;
            };
            // The deaths before it may have changed which process is the main one.
            if !self.is_main(death) {
                let death = self.looking.services.get_mut(service).and_then(VecDeque::pop_front);
                death.into_iter().for_each(|death| self.worker_died(&death));
                continue;
            }
            let path = self.roster.get(service).map(|managed| Arc::clone(&managed.cgroup));
            let (words, turns) = (self.words.0.clone(), Arc::clone(&self.looking.turns));
            let (service, hierarchy) = (Arc::clone(service), self.hierarchy.clone());
            self.tasks.spawn(async move {
                let _turn = turns.acquire_owned().await.ok();
                let found = spawn_blocking(move || {
                    let found = hierarchy?.main_process(&path?);
                    found.inspect_err(|error| tracing::warn!("cannot look for a main process: {error:#}")).ok()?
                });
                // The send fails only when the agent stops.
                words.send(Word::Looked(service, found.await.ok().flatten())).await.ok();
            });
            return;
        }
    }

    /// A look is over.
    pub(super) fn looked(&mut self, service: &Arc<str>, found: Option<Identity>) {
        if let Some(death) = self.looking.services.get_mut(service).and_then(VecDeque::pop_front) {
            self.main_died(&death, found);
        }
        self.next_look(service);
    }
}

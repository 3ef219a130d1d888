//! From records to the services that they are about: deaths, new lives, and who is asked about them.

use std::sync::Arc;

use monitor_common::record::{MARK_THREAD_ONLY, Record};
use tokio::time::sleep;

use super::{Steward, WORD_OF_DEATH, Word};
use crate::{
    attribution::{Place, Role},
    diagnosis::Cause,
    healing::{Input, Intent},
    host::{
        clock,
        process::{self, Identity},
    },
    incident,
    kernel::Event,
    observer::{Death, INIT, Sight},
    pool::Input as PoolInput,
    roster::{Managed, Owner},
    text::Clean,
    timeline::What,
};

impl Steward {
    pub(super) fn event(&mut self, event: &Event) {
        // An earlier agent may have settled it.
        if event.span.is_some_and(|span| !self.progress.take(span)) {
            return;
        }
        let kills = self.sight(event);
        let Some(span) = event.span else { return };
        match &event.record {
            // With the death that it is evidence of.
            Record::OomMark(mark) => {
                let is_thread = mark.header.flags & MARK_THREAD_ONLY != 0;
                let process = if is_thread {
                    Identity { tgid: mark.victim.tid, start_ns: 0 }
                } else {
                    Identity { tgid: mark.victim.tgid, start_ns: mark.victim.start_ns }
                };
                self.progress.hold_mark(span, process, kills, clock::boot_ns());
            }
            Record::CrashSite(site) => {
                let process = Identity { tgid: site.tgid, start_ns: site.start_ns };
                self.progress.hold_site(span, process, clock::boot_ns());
            }
            // When it is decided.
            Record::Exit(_) if self.observer.has_taken(span) => {}
            Record::Exit(_) | Record::Life(_) | Record::Cgroup(_) => self.progress.settle(span),
        }
    }

    /// Tells all that it concerns. True when an OOM kill was counted for it: of the marks of one victim that is so for the first.
    fn sight(&mut self, event: &Event) -> bool {
        if let Record::Exit(exit) = &event.record {
            let process = Identity { tgid: exit.process.tgid, start_ns: exit.process.start_ns };
            self.pool_exited(process, clock::boot_ns());
        }
        if let Record::CrashSite(site) = &event.record {
            self.pool_crashes(site, clock::boot_ns());
        }
        match self.observer.event(event) {
            Some(Sight::Marked(marked)) => {
                // First of all: the victim is about to go.
                self.pictures_marked(&marked);
                self.metrics.detected(marked.kernel_ns, marked.seen_ns);
                if marked.kill_sent {
                    self.audit.saw_one();
                }
                if let Some(place) = &marked.place
                    && self.roster.at(place).is_some()
                {
                    let service = Arc::clone(&place.service);
                    if marked.kill_sent {
                        self.pool_step(&service, PoolInput::Marked(marked.process), clock::boot_ns());
                    }
                    self.say(marked.kernel_ns, &service, What::Marked);
                }
                return marked.kill_sent;
            }
            // A worker that executes something is no new incarnation.
            Some(Sight::Alive { place, process, role: Some(Role::Main), exec: true, orphan, kernel_ns }) => {
                // While no agent ran, it may have come and gone.
                if self.took_over_ns.is_some_and(|took_over| kernel_ns < took_over) && !process::is_alive(process) {
                    return false;
                }
                // A command service's main process starts in the service's own cgroup, as a child of its starter. A
                // process below that cgroup, or one that has lost its parent, is a worker.
                let may_be_main = |managed: &Managed| managed.owner != Owner::Defib || place.is_root() && !orphan;
                if self.roster.at(&place).is_some_and(may_be_main) {
                    self.introduce(&place.service, process, kernel_ns);
                }
            }
            Some(Sight::Created { id, place }) => self.appeared(id, &place),
            Some(Sight::Asked { process, question }) => self.ask(process, question),
            Some(Sight::Emptied { place, kernel_ns }) => self.emptied(&place, kernel_ns),
            Some(Sight::Alive { .. }) | None => {}
        }
        false
    }

    /// Handles a decided death. For a command service's main process it first looks for the next one; other owners name
    /// theirs.
    pub(super) fn died(&mut self, death: Death) {
        let Some((place, managed)) = death.place.as_ref().and_then(|place| Some((place, self.roster.at(place)?)))
        else {
            return self.account(&death);
        };
        let (service, owner) = (Arc::clone(&place.service), managed.owner);
        // Deaths that still wait may decide whether this process was the main one.
        let waits = self.looking.is_at(&service) && death.role != Some(Role::Worker);
        match (waits || self.is_main(&death), owner) {
            (true, Owner::Defib) => self.look(&service, Box::new(death)),
            (true, Owner::Systemd | Owner::Engine(_)) => self.main_died(&death, None),
            (false, _) => self.worker_died(&death),
        }
    }

    /// Counts a death and settles its record.
    fn account(&mut self, death: &Death) {
        let kill = self.metrics.died(death);
        self.draft.settling.oom_kills.extend(kill);
        self.progress.died(death.span, death.process, death.evidence.mark.as_ref().map(|mark| mark.tid));
        if let Cause::OomKill(oom) = &death.cause {
            // Its mark was one; it may have been lost, or the kernel may count it twice.
            let text = format!("{} (pid {}) {}", death.comm, death.process.tgid, death.cause);
            self.alerts.oom_kill(self.metrics.label_of(death), oom.scope, death.kernel_ns, &text);
            let by_its_mark = u64::from(oom.triggered_by.is_some());
            for _ in by_its_mark..oom.kernel_count {
                self.audit.saw_one();
            }
        }
    }

    /// Whether a death is that of the main process of its service.
    pub(super) fn is_main(&self, death: &Death) -> bool {
        let managed = death.place.as_ref().and_then(|place| self.roster.at(place));
        managed.is_some_and(|managed| match managed.process() {
            Some(process) => process.matches(death.process),
            // One that ended well before it was known for the main process prepared something.
            None if death.role != Some(Role::Main) => false,
            None => match managed.owner {
                // Its start is not answered yet, or another program has started it. A process below its cgroup, or one
                // that lost its parent while this agent watched, is a worker of an earlier incarnation.
                Owner::Defib => {
                    let is_orphan = death.evidence.exit.process.parent_tgid == INIT;
                    let is_in_own = death.place.as_ref().is_some_and(Place::is_root);
                    is_in_own && !is_orphan || self.took_over_ns.is_some_and(|took_over| death.kernel_ns < took_over)
                }
                Owner::Systemd | Owner::Engine(_) => death.status != 0,
            },
        })
    }

    /// A worker of a service died: no outage.
    pub(super) fn worker_died(&mut self, death: &Death) {
        self.account(death);
        let Some(place) = &death.place else { return };
        let worker = format_args!("a worker ({}, pid {})", death.comm, death.process.tgid);
        // Not an outage, but a memory kill or a crash still gets a log line and a record.
        match &death.cause {
            Cause::OomKill(_) | Cause::UserspaceOomKill { .. } | Cause::AppOomProbable { .. } | Cause::Crash { .. } => {
                let text = format!("{worker}: {}", death.cause);
                tracing::info!(service = %Clean(&place.service), "{text}");
                self.book.near_miss(&place.service, clock::wall(death.kernel_ns), text, record_of(death));
                if death.cause.is_want_of_memory() {
                    self.pictures_for_death(&place.service, death.process, death.kernel_ns);
                }
            }
            Cause::CleanExit | Cause::Exit { .. } | Cause::Stopped { .. } => {
                tracing::debug!(service = %Clean(&place.service), "{worker} {}", death.cause);
            }
            cause => tracing::info!(service = %Clean(&place.service), "{worker} {cause}"),
        }
    }

    /// The main process of a service died; `found` is the candidate for the next one.
    pub(super) fn main_died(&mut self, death: &Death, found: Option<Identity>) {
        self.account(death);
        let Some(place) = &death.place else { return };
        let service = Arc::clone(&place.service);
        // A supervisor may have been faster, and a forking daemon's first process ends at once and well. What a failed one
        // leaves behind is no new incarnation.
        let is_new = |process: &Identity| death.status == 0 || process.begins_after(death.kernel_ns);
        if let Some(process) = found.filter(is_new) {
            self.introduce(&service, process, clock::boot_ns());
        }
        let now = clock::boot_ns();
        self.say(death.kernel_ns, &service, What::Died);
        self.say(now, &service, What::Verdict(death.cause.to_string()));
        self.say(now, &service, What::Evidence(death.evidence.to_string()));
        self.book.death(&service, record_of(death));
        self.name_site(&service, death);
        self.metrics.last_died(&service, clock::wall(death.kernel_ns));
        let intent = match &death.cause {
            // A stop that systemd did not confirm in time is no more than likely: its plan will tell.
            cause @ Cause::Stopped { .. } if death.evidence.lacks_systemd() => Intent::Likely(cause.to_string()),
            cause @ Cause::Stopped { .. } => Intent::Certain(cause.to_string()),
            _ => Intent::None,
        };
        self.step(&service, Input::Died { process: death.process, at_ns: death.kernel_ns, intent }, now);
        if death.cause.is_want_of_memory() {
            self.pictures_for_death(&service, death.process, death.kernel_ns);
        }
    }

    /// A service's cgroup has no process left. Should word of the main process's death be lost, this is a second witness.
    pub(super) fn emptied(&mut self, place: &Place, kernel_ns: u64) {
        let Some(managed) = self.roster.at(place).filter(|_| place.is_root()) else { return };
        let Some(process) = managed.process() else { return };
        if !self.asking.expected.insert((Arc::clone(&place.service), process)) {
            return;
        }
        let (words, service) = (self.words.0.clone(), Arc::clone(&place.service));
        self.tasks.spawn(async move {
            sleep(WORD_OF_DEATH).await;
            // The send fails only when the agent stops.
            words.send(Word::Lost(service, process, kernel_ns)).await.ok();
        });
    }

    /// That incarnation should be dead, and no record has said so.
    pub(super) fn lost(&mut self, service: &Arc<str>, process: Identity, at_ns: u64) {
        self.asking.expected.remove(&(Arc::clone(service), process));
        // Its death waits for a look, so it is not lost.
        if self.looking.is_at(service) {
            return;
        }
        let believed = self.roster.get(service).and_then(Managed::process);
        if believed == Some(process) && !process::is_alive(process) {
            let now = clock::boot_ns();
            self.say(at_ns, service, What::Died);
            self.say(now, service, What::Verdict("unknown: the record of its death was lost".to_owned()));
            // What would tell a stop from a failure is lost with the record: its supervisor has the word.
            let intent = Intent::Likely("nothing tells why it ended".to_owned());
            self.step(service, Input::Died { process, at_ns, intent }, now);
        }
    }
}

/// What an incident keeps of a death.
fn record_of(death: &Death) -> incident::Death {
    let value = |value: serde_json::Result<serde_json::Value>| value.unwrap_or_default();
    incident::Death {
        cause: value(serde_json::to_value(&death.cause)),
        cause_text: death.cause.to_string(),
        evidence: value(serde_json::to_value(death.evidence.items())),
        missing: value(serde_json::to_value(&death.evidence.missing)),
    }
}

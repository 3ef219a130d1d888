//! Asks others (journal, systemd, engines) about events of services. Each question goes through the queue of its kind
//! ([`Questions`]); of one service, each is asked once at a time.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::{Steward, Word, adopt::is_unit};
use crate::{
    diagnosis::{Question, Reply},
    enquiry,
    healing::Input,
    host::{
        clock,
        process::{self, Identity},
    },
    observer::Death,
    questions::{Asker, Kind, Questions},
    supervisor::Supervisor,
    timeline::What,
};

/// A question that waited longer than this is dropped, and so is a later answer: the verdict no longer waits.
const PATIENCE: Duration = Duration::from_secs(2);
/// An owner that names no main process within this time counts as one that cannot be asked.
const MAIN_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two questions about one service's main process: its processes decide how often a question arises.
const MAIN_PAUSE: Duration = Duration::from_millis(100);
/// Deaths of one unit that wait for systemd's answer.
const CROWD: usize = 1024;

/// What is asked at present.
pub(super) struct Asking {
    questions: Questions,
    /// Questions of each kind that may be asked at a time.
    turns: [Arc<Semaphore>; Kind::ALL.len()],
    /// Units that systemd is asked about.
    rounds: HashMap<String, Round>,
    /// Services whose owner is asked for their main process; with each, a candidate that appeared after the question.
    mains: HashMap<Arc<str>, Option<Identity>>,
    /// Incarnations whose death should be reported by now.
    pub(super) expected: HashSet<(Arc<str>, Identity)>,
}

/// One question to systemd about a unit.
#[derive(Debug, Default)]
struct Round {
    /// Deaths for which it is asked.
    asked: Vec<Identity>,
    /// Deaths that came after the question; systemd is asked again about these.
    next: Vec<Identity>,
}

impl Default for Asking {
    fn default() -> Self {
        Self {
            questions: Questions::default(),
            turns: Kind::ALL.map(|kind| Arc::new(Semaphore::new(kind.at_once()))),
            rounds: HashMap::new(),
            mains: HashMap::new(),
            expected: HashSet::new(),
        }
    }
}

impl Asking {
    /// The semaphore of a kind, for callers that bound their queue themselves.
    pub(super) fn turns(&self, kind: Kind) -> Arc<Semaphore> {
        Arc::clone(&self.turns[kind as usize])
    }
}

impl Steward {
    /// Asks the question about a death; the verdict waits a bounded time for the answer.
    pub(super) fn ask(&mut self, process: Identity, question: Question) {
        match question {
            Question::Systemd { unit } => self.ask_systemd(unit, process),
            Question::LastWords { ref place, .. } => {
                let managed = self.roster.get(&place.service);
                let is_main = managed.and_then(|managed| managed.process()).is_some_and(|main| main.matches(process));
                let output = managed.and_then(|managed| managed.supervisor.output());
                let Some(kind) = enquiry::kind(&question, output.as_ref()) else {
                    return self.observer.reply(process, Reply::LastWords(Err("nobody keeps its output".to_owned())));
                };
                let asker = Asker { kind, service: Arc::clone(&place.service), is_main };
                if !self.admit(&asker) {
                    return self.observer.reply(process, Reply::Refused);
                }
                let (words, enquiry, turns) = (self.words.0.clone(), self.enquiry.clone(), self.asking.turns(kind));
                self.tasks.spawn(async move {
                    let reply = match timeout(PATIENCE, turns.acquire_owned()).await {
                        Ok(Ok(turn)) => enquiry.ask(question, output, turn).await,
                        Ok(Err(_)) | Err(_) => Reply::Refused,
                    };
                    // The send fails only when the agent stops.
                    words.send(Word::Replied(asker, process, reply)).await.ok();
                });
            }
        }
    }

    /// An answer has come.
    pub(super) fn replied(&mut self, asker: &Asker, process: Identity, reply: Reply) {
        self.asking.questions.answered(asker);
        if reply == Reply::Refused {
            self.dropped(asker.kind);
        }
        self.observer.reply(process, reply);
    }

    /// Asks systemd once about a unit, however many of its processes a stop ends.
    fn ask_systemd(&mut self, unit: String, process: Identity) {
        let is_full = self.asking.rounds.len() >= UNITS;
        match self.asking.rounds.get_mut(&unit) {
            Some(round) if round.next.len() < CROWD => round.next.push(process),
            None if !is_full => {
                self.asking.rounds.insert(unit.clone(), Round { asked: vec![process], next: Vec::new() });
                self.begin_round(unit);
            }
            Some(_) | None => {
                self.dropped(Kind::Systemd);
                self.observer.reply(process, Reply::Refused);
            }
        }
    }

    fn begin_round(&mut self, unit: String) {
        let (words, enquiry, turns) = (self.words.0.clone(), self.enquiry.clone(), self.asking.turns(Kind::Systemd));
        self.tasks.spawn(async move {
            let question = Question::Systemd { unit: unit.clone() };
            let reply = match timeout(PATIENCE, turns.acquire_owned()).await {
                Ok(Ok(turn)) => enquiry.ask(question, None, turn).await,
                Ok(Err(_)) | Err(_) => Reply::Refused,
            };
            // The send fails only when the agent stops.
            words.send(Word::Meant(unit, reply)).await.ok();
        });
    }

    /// systemd has told its plan for a unit.
    pub(super) fn meant(&mut self, unit: String, reply: &Reply) {
        let Some(mut round) = self.asking.rounds.remove(&unit) else { return };
        if *reply == Reply::Refused {
            self.dropped(Kind::Systemd);
        }
        for process in round.asked {
            self.observer.reply(process, reply.clone());
        }
        if !round.next.is_empty() {
            round.asked = std::mem::take(&mut round.next);
            self.asking.rounds.insert(unit.clone(), round);
            self.begin_round(unit);
        }
    }

    fn admit(&mut self, asker: &Asker) -> bool {
        let is_admitted = self.asking.questions.admit(asker, clock::boot_ns());
        if !is_admitted {
            self.metrics.own().questions_dropped(self.asking.questions.dropped());
        }
        is_admitted
    }

    fn dropped(&mut self, kind: Kind) {
        self.asking.questions.drop(kind);
        self.metrics.own().questions_dropped(self.asking.questions.dropped());
    }

    /// A process looks like the main process of a service. Asks the owner which one is; if the owner cannot be asked,
    /// this one counts as the main process.
    pub(super) fn introduce(&mut self, service: &Arc<str>, process: Identity, now: u64) {
        let Some(managed) = self.roster.get(service) else { return };
        let supervisor = Arc::clone(&managed.supervisor);
        if supervisor.main_pid().is_none() || managed.process().is_some_and(|known| known.matches(process)) {
            self.step(service, Input::Alive(process), now);
        } else if let Some(newer) = self.asking.mains.get_mut(service) {
            *newer = Some(process);
        } else {
            self.ask_main(service, supervisor, process, Duration::ZERO);
        }
    }

    fn ask_main(&mut self, service: &Arc<str>, supervisor: Arc<dyn Supervisor>, process: Identity, after: Duration) {
        self.asking.mains.insert(Arc::clone(service), None);
        let turns = self.asking.turns(if is_unit(service) { Kind::Systemd } else { Kind::Engine });
        let (words, service) = (self.words.0.clone(), Arc::clone(service));
        self.tasks.spawn(async move {
            sleep(after).await;
            let main = timeout(MAIN_PATIENCE, async {
                let _turn = turns.acquire_owned().await.ok();
                match supervisor.main_pid() {
                    Some(answer) => answer.await,
                    None => Ok(process.tgid),
                }
            });
            let main = match main.await {
                Ok(Ok(pid)) if pid != process.tgid => process::living(pid).ok().flatten(),
                Ok(_) | Err(_) => Some(process),
            };
            // The send fails only when the agent stops.
            words.send(Word::Main(service, main)).await.ok();
        });
    }

    /// A service's owner has named its main process.
    pub(super) fn main_named(&mut self, service: &Arc<str>, main: Option<Identity>) {
        let newer = self.asking.mains.remove(service).flatten();
        let Some(known) = self.roster.get(service).map(|managed| managed.process()) else { return };
        let is_known = |process: Identity| known.is_some_and(|known| known.matches(process));
        // If it has died meanwhile, its record may have been handled already.
        if let Some(main) = main.filter(|&main| !is_known(main) && process::is_alive(main)) {
            self.step(service, Input::Alive(main), clock::boot_ns());
        }
        let is_told = |process: Identity| main.is_some_and(|main| main.matches(process));
        let supervisor = self.roster.get(service).map(|managed| Arc::clone(&managed.supervisor));
        if let (Some(newer), Some(supervisor)) = (newer.filter(|&newer| !is_told(newer)), supervisor) {
            self.ask_main(service, supervisor, newer, MAIN_PAUSE);
        }
    }

    /// Names a crash site in a separate task. A service that crashes too often gets sites without names.
    pub(super) fn name_site(&mut self, service: &Arc<str>, death: &Death) {
        let Some(site) = death.cause.site() else { return };
        let asker = Asker { kind: Kind::Symbols, service: Arc::clone(service), is_main: true };
        if !self.admit(&asker) {
            let what = What::CrashedAt(site.to_string());
            return self.say(clock::boot_ns(), service, what);
        }
        let (mut death, words, turns) = (death.clone(), self.words.0.clone(), self.asking.turns(Kind::Symbols));
        self.tasks.spawn(async move {
            if let Ok(_turn) = turns.acquire_owned().await {
                death.name_site().await;
            }
            let site = death.cause.site().map(ToString::to_string).unwrap_or_default();
            // The send fails only when the agent stops.
            words.send(Word::Sited(asker, site)).await.ok();
        });
    }

    /// The names of a crash site are found.
    pub(super) fn sited(&mut self, asker: &Asker, site: String) {
        self.asking.questions.answered(asker);
        self.say(clock::boot_ns(), &asker.service, What::CrashedAt(site));
    }
}

/// Units that systemd is asked about at a time.
const UNITS: usize = 256;

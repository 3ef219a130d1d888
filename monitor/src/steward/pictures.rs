//! Pictures of memory: taken when it is about to run out and when the kernel has chosen a victim, kept for the record of the death.
//!
//! What is read of `/proc` is read beside the steward, a few processes at a time; what finds no turn is counted and left out.

use std::{collections::HashMap, path::Path, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, task::spawn_blocking};

use super::{Steward, Word};
use crate::{
    before_oom::{self, Turn},
    config::{self, Mode, Service},
    figures::bytes,
    host::{clock, portrait, process::Identity},
    memory::{
        Measured,
        forecast::Forecast,
        picture::{BeforeOom, Ended, Moment, Picture, Ran},
    },
    observer::Marked,
    recent::Recent,
    roster::Managed,
    shared::Shared,
    timeline::What,
};

/// Without `drain_at`, a service that nothing is foretold of is looked at from this share of its limit on.
const NEAR: f64 = 0.9;
/// Pictures that are taken at a time: of what is foreseen, which comes again in seconds, and of victims, who do not.
const FORESEEN_AT_A_TIME: usize = 2;
const MARKED_AT_A_TIME: usize = 8;
/// A look that has not come back after this has failed: twice what one may take.
const LOOK_NS: u64 = 10_000_000_000;

/// What is kept of an incarnation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Kept {
    boot_id: String,
    process: Identity,
    seen: BeforeOom,
}

/// See the module.
pub(crate) struct Pictures {
    /// The rules of all services that are looked after.
    rules: HashMap<Arc<str>, Arc<Rules>>,
    shared: Shared<Rules>,
    /// Services of which memory is foretold to run out, or was looked at.
    slots: HashMap<Arc<str>, Slot>,
    /// What an earlier agent has kept of services that have not been looked at yet.
    left: HashMap<String, Kept>,
    state_dir: Arc<Path>,
    mode: Mode,
    foreseen: Arc<Semaphore>,
    marked: Arc<Semaphore>,
    /// When a look at a victim of a service began that has not come back: of many victims at once the first is looked at.
    marks: Recent<Arc<str>, u64>,
}

/// When a service is looked at, and by what.
#[derive(Debug, PartialEq)]
struct Rules {
    /// What its configuration says.
    before_oom: config::BeforeOom,
    /// Share of its limit from which on it is near.
    near: f64,
}

/// One incarnation.
#[derive(Debug)]
struct Slot {
    process: Identity,
    /// When memory may run out at the earliest, CLOCK_BOOTTIME nanoseconds; `None`: nothing is foretold.
    runs_out_ns: Option<u64>,
    /// When the last picture was asked for, likewise.
    asked_ns: Option<u64>,
    /// Its command has had its turn.
    has_run: bool,
    seen: BeforeOom,
}

impl Slot {
    fn new(process: Identity) -> Self {
        Self { process, runs_out_ns: None, asked_ns: None, has_run: false, seen: BeforeOom::default() }
    }
}

/// What comes back from beside the steward.
pub(crate) struct Seen {
    service: Arc<str>,
    /// The main process at the time, when there was one.
    incarnation: Option<Identity>,
    what: Sight,
}

enum Sight {
    Picture(Picture),
    Ran(Ran),
}

impl Pictures {
    /// Nobody yet; `left` by an earlier agent.
    pub(crate) fn new(state_dir: &Path, mode: Mode, mut left: HashMap<String, Kept>) -> Self {
        left.retain(|_, kept| kept.boot_id == clock::boot_id());
        Self {
            rules: HashMap::new(),
            shared: Shared::default(),
            slots: HashMap::new(),
            left,
            state_dir: state_dir.into(),
            mode,
            foreseen: Arc::new(Semaphore::new(FORESEEN_AT_A_TIME)),
            marked: Arc::new(Semaphore::new(MARKED_AT_A_TIME)),
            marks: Recent::new(MARKED_AT_A_TIME),
        }
    }

    /// A service that is looked after.
    pub(super) fn add(&mut self, service: &Arc<str>, rule: &Service) {
        let rules = Rules { before_oom: rule.before_oom.clone(), near: rule.drain_at.unwrap_or(NEAR) };
        self.rules.insert(Arc::clone(service), self.shared.share(rules));
    }

    /// Forgets a service that is no longer managed.
    pub(super) fn remove(&mut self, service: &str) {
        self.rules.remove(service);
        self.slots.remove(service);
    }

    /// The slot of an incarnation; that of an earlier one is over.
    fn slot(&mut self, service: &Arc<str>, process: Identity) -> &mut Slot {
        let slot = self.slots.entry(Arc::clone(service)).or_insert_with(|| {
            let left = self.left.remove(&**service);
            let left = left.filter(|left| left.process.matches(process));
            let seen = left.map(|left| left.seen).unwrap_or_default();
            Slot { has_run: seen.command.is_some(), seen, ..Slot::new(process) }
        });
        if !slot.process.matches(process) {
            *slot = Slot::new(process);
        }
        slot
    }

    /// Notes what is foretold, and says whether memory is about to run out.
    fn is_near(&mut self, measured: &Measured, forecast: Option<&Forecast>, rules: &Rules) -> bool {
        let (service, process, now) = (&measured.service, measured.process, measured.at_ns);
        if let Some(forecast) = forecast {
            let runs_out_ns =
                least_seconds(forecast).map(|seconds| now.saturating_add((seconds.max(0.0) * 1e9) as u64));
            // Most services have none, and need no slot.
            if runs_out_ns.is_some() || self.slots.contains_key(service) {
                self.slot(service, process).runs_out_ns = runs_out_ns;
            }
        }
        let slot = self.slots.get(service).filter(|slot| slot.process.matches(process));
        match slot.and_then(|slot| slot.runs_out_ns) {
            Some(at) => at.saturating_sub(now) < nanoseconds(rules.before_oom.within),
            None => {
                let limit = measured.limit.filter(|&limit| limit > 0);
                limit.is_some_and(|limit| measured.bytes as f64 / limit as f64 >= rules.near)
            }
        }
    }
}

/// The least time until memory is out, seconds.
fn least_seconds(forecast: &Forecast) -> Option<f64> {
    let slow = forecast.time_to_oom_seconds_low.or(forecast.time_to_oom_seconds);
    match (slow, forecast.exhausted_in_seconds) {
        (Some(slow), Some(fast)) => Some(slow.min(fast)),
        (slow, fast) => slow.or(fast),
    }
}

fn nanoseconds(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Steward {
    /// Memory of a service was measured. When it is about to run out, what is there is looked at while it can be.
    pub(super) fn pictures_measured(&mut self, measured: &Measured, forecast: Option<&Forecast>) {
        let (service, now) = (&measured.service, measured.at_ns);
        let Some(managed) = self.roster.get(service) else { return };
        let Some(process) = managed.process().filter(|process| process.matches(measured.process)) else { return };
        let Some(rules) = self.pictures.rules.get(service).cloned() else { return };
        if !self.pictures.is_near(measured, forecast, &rules) {
            return;
        }
        let cgroup = Arc::clone(&managed.cgroup);
        let slot = self.pictures.slot(service, process);
        let is_due =
            slot.asked_ns.is_none_or(|asked| now.saturating_sub(asked) >= nanoseconds(rules.before_oom.within));
        let runs = !slot.has_run && !rules.before_oom.command.is_empty();
        if is_due && rules.before_oom.picture && self.take_picture(service, Some(process), &cgroup, None) {
            self.pictures.slot(service, process).asked_ns = Some(now);
        }
        // While another one runs, this one waits: memory is measured again in seconds.
        if runs && let Some(turn) = before_oom::turn() {
            self.run_before_oom(service, process, cgroup, (&rules, turn), now);
        }
    }

    /// The kernel has chosen a victim: now or never.
    pub(super) fn pictures_marked(&mut self, marked: &Marked) {
        let Some(place) = marked.place.as_ref().filter(|_| marked.kill_sent && marked.process.start_ns != 0) else {
            return;
        };
        let wanted = self.pictures.rules.get(&place.service).is_some_and(|rules| rules.before_oom.picture);
        if !wanted || self.roster.at(place).is_none() {
            return;
        }
        let (service, now) = (&place.service, clock::boot_ns());
        if self.pictures.marks.get(service).is_some_and(|began| now.saturating_sub(*began) < LOOK_NS) {
            self.metrics.own().picture("dropped");
            return;
        }
        let incarnation = self.roster.get(service).and_then(Managed::process);
        if self.take_picture(service, incarnation, &place.path, Some(marked.process)) {
            self.pictures.marks.remove(service);
            self.pictures.marks.insert(Arc::clone(service), now);
        }
    }

    /// Has a picture taken; false when others have all turns.
    fn take_picture(
        &mut self,
        service: &Arc<str>,
        incarnation: Option<Identity>,
        cgroup: &Arc<str>,
        victim: Option<Identity>,
    ) -> bool {
        let Some(hierarchy) = self.hierarchy.clone() else { return false };
        let turns = if victim.is_some() { &self.pictures.marked } else { &self.pictures.foreseen };
        let Ok(turn) = Arc::clone(turns).try_acquire_owned() else {
            self.metrics.own().picture("dropped");
            return false;
        };
        let (words, service, cgroup) = (self.words.0.clone(), Arc::clone(service), Arc::clone(cgroup));
        // At once, not after the task's first turn: a victim is about to go.
        let taken = spawn_blocking(move || portrait::picture(&hierarchy, &cgroup, victim));
        self.tasks.spawn(async move {
            let Ok(picture) = taken.await else { return };
            drop(turn);
            // The send fails only when the agent stops.
            words.send(Word::Seen(Box::new(Seen { service, incarnation, what: Sight::Picture(picture) }))).await.ok();
        });
        true
    }

    fn run_before_oom(
        &mut self,
        service: &Arc<str>,
        process: Identity,
        cgroup: Arc<str>,
        (rules, turn): (&Rules, Turn),
        now: u64,
    ) {
        self.pictures.slot(service, process).has_run = true;
        let program = rules.before_oom.command.first().cloned().unwrap_or_default();
        match self.pictures.mode {
            Mode::Act => {}
            Mode::DryRun => {
                return self.say(now, service, What::BeforeOom(format!("{program} would run before memory is out")));
            }
            Mode::Observe => return,
        }
        let Some(hierarchy) = self.hierarchy.clone() else { return };
        let (words, service, rules) = (self.words.0.clone(), Arc::clone(service), rules.before_oom.clone());
        let state_dir = Arc::clone(&self.pictures.state_dir);
        self.tasks.spawn(async move {
            let largest = spawn_blocking(move || portrait::largest_of(&hierarchy, &cgroup)).await.ok().flatten();
            let task = before_oom::Task {
                rules,
                service: Arc::clone(&service),
                incarnation: process,
                process: largest.unwrap_or(process),
                state_dir,
                boot_id: clock::boot_id(),
            };
            // The send fails only when the agent stops.
            let begun = async {
                let what = What::BeforeOom(format!("memory is about to run out; {program} looks at it first"));
                words.send(Word::Moment(Arc::clone(&service), clock::boot_ns(), what)).await.ok();
            };
            let what = Sight::Ran(task.run(turn, begun).await);
            words.send(Word::Seen(Box::new(Seen { service, incarnation: Some(process), what }))).await.ok();
        });
    }

    /// Takes what was seen.
    pub(super) fn pictures_seen(&mut self, Seen { service, incarnation, what }: Seen) {
        let mut seen = BeforeOom::default();
        match what {
            Sight::Picture(picture) => {
                self.metrics.own().picture(if picture.missed.is_some() { "missed" } else { "taken" });
                let is_first = self.pictures.slots.get(&service).is_none_or(|slot| slot.seen.pictures.is_empty());
                if picture.moment == Moment::Foreseen && is_first {
                    self.say(clock::boot_ns(), &service, What::Pictured(in_a_line(&picture)));
                }
                if picture.moment == Moment::Marked {
                    self.pictures.marks.remove(&service);
                }
                seen.pictures.push(picture);
            }
            Sight::Ran(ran) => {
                self.metrics.own().ran_before_oom(ran.ended);
                self.say(clock::boot_ns(), &service, What::BeforeOom(ran.text.clone()));
                seen.command = Some(ran);
            }
        }
        let is_of_victim = seen.pictures.iter().any(|picture| picture.moment == Moment::Marked);
        let main = self.roster.get(&service).and_then(Managed::process);
        let living = main.filter(|main| incarnation.is_some_and(|incarnation| main.matches(incarnation)));
        let Some(process) = living.filter(|_| !is_of_victim) else {
            self.book.before_oom(&service, clock::wall(clock::boot_ns()), seen);
            return;
        };
        // Of what is foreseen the newest counts.
        let slot = self.pictures.slot(&service, process);
        if !seen.pictures.is_empty() {
            slot.seen.pictures.clear();
        }
        slot.seen.add(seen);
        let kept = Kept { boot_id: clock::boot_id().to_owned(), process, seen: slot.seen.clone() };
        self.store.keep_pictures(&service, kept);
    }

    /// What was seen of a service before a process of it died for want of memory.
    pub(super) fn pictures_for_death(&mut self, service: &Arc<str>, died: Identity, at_ns: u64) {
        let Some(rules) = self.pictures.rules.get(service).cloned() else { return };
        let main = self.roster.get(service).and_then(Managed::process);
        // Of an earlier agent, which looked at it when this one had no reason to yet.
        let left = self.pictures.left.get(&**service).map(|left| left.process);
        if let Some(process) =
            left.filter(|left| [main, Some(died)].into_iter().flatten().any(|one| one.matches(*left)))
        {
            self.pictures.slot(service, process);
        }
        // After its death the service has no main process any more.
        let is_of = |slot: &&Slot| main.is_some_and(|main| slot.process.matches(main)) || slot.process.matches(died);
        let slot = self.pictures.slots.get(service).filter(is_of);
        let mut seen = slot.map(|slot| slot.seen.clone()).unwrap_or_default();
        let (has_run, wants) = (slot.is_some_and(|slot| slot.has_run), !rules.before_oom.command.is_empty());
        if wants && !has_run && self.pictures.mode == Mode::Act {
            let program = rules.before_oom.command.first().map_or("", String::as_str);
            let text =
                format!("{program} did not run before: that memory was about to run out was not foreseen in time");
            seen.command = Some(Ran { at: clock::wall(at_ns), ended: Ended::NotRun, text, directory: None });
        }
        if !seen.is_empty() {
            self.book.before_oom(service, clock::wall(at_ns), seen);
        }
    }
}

/// The largest of all: for the timeline.
fn in_a_line(picture: &Picture) -> String {
    let Some(portrait) = picture.processes.first() else {
        return "a picture of its memory was to be taken, and no process could be read".to_owned();
    };
    let mut text = format!(
        "a picture of its memory was taken: {} (pid {}) holds {}",
        portrait.comm,
        portrait.tgid,
        bytes(portrait.resident_bytes.saturating_add(portrait.swap_bytes))
    );
    if let Some(largest) = portrait.largest.first() {
        let held = largest.resident_bytes.saturating_add(largest.swap_bytes);
        text += &format!(", of that {} in one mapping ({})", bytes(held), largest.kind.as_str());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::forecast::Verdict;

    const SECOND: u64 = 1_000_000_000;
    const PROCESS: Identity = Identity { tgid: 7, start_ns: SECOND };

    fn forecast(low: Option<f64>, fast: Option<f64>) -> Forecast {
        Forecast {
            verdict: Verdict::Leak,
            advisory: false,
            level: None,
            growth_bytes_per_hour: None,
            time_to_oom_seconds: low.map(|low| low * 2.0),
            time_to_oom_seconds_low: low,
            time_to_oom_seconds_high: None,
            uptime_seconds: 1.0,
            longest_uptime_seconds: 1.0,
            usual_uptime_seconds: None,
            uptime_at_oom_seconds: None,
            severity: None,
            builds: None,
            exhausted_in_seconds: fast,
        }
    }

    fn measured(at: u64, process: Identity, bytes: u64) -> Measured {
        Measured { service: "web".into(), process, at_ns: at * SECOND, bytes, limit: Some(100), whole: None }
    }

    fn pictures() -> Pictures {
        Pictures::new(Path::new("/nonexistent"), Mode::Act, HashMap::new())
    }

    fn rules() -> Rules {
        Rules { before_oom: config::BeforeOom::default(), near: 0.9 }
    }

    #[test]
    fn memory_is_about_to_run_out_by_the_forecast_or_else_by_its_share_of_the_limit() {
        let (mut pictures, rules) = (pictures(), rules());
        assert!(!pictures.is_near(&measured(1, PROCESS, 89), None, &rules));
        assert!(pictures.is_near(&measured(1, PROCESS, 90), None, &rules), "nothing is foretold");
        assert!(pictures.slots.is_empty(), "and no slot is needed for that");
        assert!(
            !pictures.is_near(&measured(1, PROCESS, 95), Some(&forecast(Some(700.0), None)), &rules),
            "in 12 minutes"
        );
        assert!(!pictures.is_near(&measured(100, PROCESS, 95), None, &rules), "what was foretold stays");
        assert!(pictures.is_near(&measured(102, PROCESS, 10), None, &rules), "and comes nearer");
        assert!(!pictures.is_near(&measured(103, PROCESS, 10), Some(&forecast(None, None)), &rules), "it is off");
        assert!(pictures.is_near(&measured(104, PROCESS, 10), Some(&forecast(Some(1e9), Some(5.0))), &rules));
        let next = Identity { start_ns: 200 * SECOND, ..PROCESS };
        assert!(!pictures.is_near(&measured(201, next, 10), None, &rules), "it was foretold of another incarnation");
    }

    #[test]
    fn what_an_earlier_agent_has_kept_counts_for_the_same_incarnation_alone() {
        let ran = Ran { at: clock::wall(1), ended: Ended::Ok, text: "x".to_owned(), directory: None };
        let kept = |boot_id: &str| Kept {
            boot_id: boot_id.to_owned(),
            process: PROCESS,
            seen: BeforeOom { command: Some(ran.clone()), ..BeforeOom::default() },
        };
        let web: Arc<str> = "web".into();
        let of = |boot_id: &str, process| {
            let left = HashMap::from([("web".to_owned(), kept(boot_id))]);
            let mut pictures = Pictures::new(Path::new("/nonexistent"), Mode::Act, left);
            pictures.slot(&web, process).has_run
        };
        assert!(of(clock::boot_id(), PROCESS));
        assert!(!of("another boot", PROCESS));
        assert!(!of(clock::boot_id(), Identity { tgid: 8, ..PROCESS }));
    }
}

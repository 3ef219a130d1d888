//! The incidents that are open. Moments come in, records that changed go out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use serde_json::Value;

use super::record::{Before, Entry, Incident, Kind};
use crate::{healing::Outcome, memory::picture::BeforeOom, recent::Recent};

/// Moments in one record; a service that is tried for weeks tells no more in the thousandth than in the hundredth.
const MOMENTS: usize = 200;
/// Of these, the first: how it began is never lost.
const FIRST: usize = 100;
/// Moments that wait for the incident that they may belong to: a mark and a verdict come before the outage.
const WAITING: usize = 16;
/// Services that have such moments.
const SERVICES: usize = 1024;
/// A worker that dies again within this belongs to the same near miss.
const SAME_MISS: Duration = Duration::from_secs(60);
/// What was handed over longer ago than this belongs to no death that is told now.
const SAME_DEATH: Duration = Duration::from_secs(60);

/// What is known of the death that an incident begins with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Death {
    /// See [`Incident::cause`].
    pub(crate) cause: Value,
    /// See [`Incident::cause_text`].
    pub(crate) cause_text: String,
    /// See [`Incident::evidence`].
    pub(crate) evidence: Value,
    /// See [`Incident::missing`].
    pub(crate) missing: Value,
}

/// What came before the incident that it belongs to.
#[derive(Debug, Default)]
struct Waiting {
    entries: Vec<Entry>,
    death: Death,
    /// And when that was handed over.
    before_oom: Option<(Timestamp, BeforeOom)>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Book {
    next_id: i64,
    open: HashMap<Arc<str>, Incident>,
    /// Closed ones that may still change: the last near miss of each service.
    misses: Recent<Arc<str>, Incident>,
    waiting: Recent<Arc<str>, Waiting>,
    /// Closed outages whose service was out of its pool: that it is in again comes a moment after it is healthy.
    returning: Recent<Arc<str>, Incident>,
    changed: BTreeSet<Arc<str>>,
    /// Finished records that nobody has taken yet.
    finished: BTreeMap<i64, Incident>,
}

impl Book {
    /// A book that goes on where an earlier agent stopped: `open` incidents, and the next free id.
    pub(crate) fn new(open: Vec<Incident>, next_id: i64) -> Self {
        Self {
            next_id,
            open: open.into_iter().map(|incident| (Arc::from(incident.service.as_str()), incident)).collect(),
            misses: Recent::new(SERVICES),
            waiting: Recent::new(SERVICES),
            returning: Recent::new(SERVICES),
            changed: BTreeSet::new(),
            finished: BTreeMap::new(),
        }
    }

    /// The id of a service's open incident.
    pub(crate) fn open_id(&self, service: &str) -> Option<i64> {
        self.open.get(service).map(|incident| incident.id)
    }

    /// The cause of a service's open incident, in words; empty when none is open or known.
    pub(crate) fn open_cause(&self, service: &str) -> &str {
        self.open.get(service).map_or("", |incident| &incident.cause_text)
    }

    /// Services whose incidents are open.
    pub(crate) fn open_services(&self) -> Vec<Arc<str>> {
        self.open.keys().cloned().collect()
    }

    /// Something happened to a service. Outside of an incident, it is kept for the one that may follow.
    pub(crate) fn note(&mut self, service: &Arc<str>, at: Timestamp, what: &str, text: String) {
        let entry = Entry { at, what: what.to_owned(), text };
        if let Some(incident) = self.open.get_mut(service) {
            if matches!(what, "restart_asked" | "planned_restart_asked") {
                incident.restarts += 1;
            }
            add(incident, entry);
            self.changed.insert(Arc::clone(service));
            return;
        }
        let mut waiting = self.waiting.remove(service).unwrap_or_default();
        if waiting.entries.len() >= WAITING {
            waiting.entries.remove(0);
        }
        waiting.entries.push(entry);
        self.waiting.insert(Arc::clone(service), waiting);
    }

    /// What was in the memory of a service that dies for want of it at about `at`. The death may have been told already, or be
    /// told in a moment.
    pub(crate) fn before_oom(&mut self, service: &Arc<str>, at: Timestamp, seen: BeforeOom) {
        let open = self.open.get_mut(service).filter(|incident| incident.kind != Kind::PlannedRestart);
        if let Some(incident) = open {
            incident.before_oom.get_or_insert_default().add(seen);
            self.changed.insert(Arc::clone(service));
            return;
        }
        // Whether a worker's death was told before it, or the main process' comes after it: both may be, of one want of memory.
        let is_of = |miss: &Incident| miss.ended.is_some_and(|ended| is_recent(ended, at));
        if self.misses.get(service).is_some_and(is_of)
            && let Some(mut miss) = self.misses.remove(service)
        {
            miss.before_oom.get_or_insert_default().add(seen.clone());
            self.finished.insert(miss.id, miss.clone());
            self.misses.insert(Arc::clone(service), miss);
        }
        let mut waiting = self.waiting.remove(service).unwrap_or_default();
        let earlier = waiting.before_oom.take().filter(|(then, _)| is_recent(*then, at));
        let mut all = earlier.map(|(_, all)| all).unwrap_or_default();
        all.add(seen);
        waiting.before_oom = Some((at, all));
        self.waiting.insert(Arc::clone(service), waiting);
    }

    /// A service is in its pool again: the last moment of the outage that took it out, though that is over.
    pub(crate) fn returned(&mut self, service: &Arc<str>, at: Timestamp, what: &str, text: String) {
        let closed = self.returning.remove(service);
        if self.open.contains_key(service) {
            return self.note(service, at, what, text);
        }
        // Without an outage nothing brought it out that a record tells of.
        let Some(mut incident) = closed else { return };
        add(&mut incident, Entry { at, what: what.to_owned(), text });
        self.finished.insert(incident.id, incident);
    }

    /// What is known of the death that was just noted.
    pub(crate) fn death(&mut self, service: &Arc<str>, death: Death) {
        // That of a planned restart is expected; should it lead to an outage, that begins with it.
        let open = self.open.get_mut(service).filter(|incident| incident.kind != Kind::PlannedRestart);
        if let Some(incident) = open {
            incident.deaths += 1;
            if incident.cause.is_null() {
                tell(incident, death);
            }
            self.changed.insert(Arc::clone(service));
            return;
        }
        let waiting = self.waiting.remove(service).unwrap_or_default();
        self.waiting.insert(Arc::clone(service), Waiting { death, ..waiting });
    }

    /// An outage begins.
    pub(crate) fn open(&mut self, service: &Arc<str>, began: Timestamp, before: Before) {
        match self.open.get_mut(service) {
            // One story: it was to be restarted, and now it is down.
            Some(incident) if incident.kind == Kind::PlannedRestart => {
                (incident.kind, incident.began, incident.deaths) = (Kind::Outage, began, 1);
                incident.cause_text.clear();
                let Waiting { death, before_oom, .. } = self.waiting.remove(service).unwrap_or_default();
                incident.before_oom = of_death(before_oom, began);
                tell(incident, death);
            }
            Some(_) => return,
            None => {
                let incident = self.begin(service, Kind::Outage, began, before);
                self.open.insert(Arc::clone(service), incident);
            }
        }
        self.changed.insert(Arc::clone(service));
    }

    /// A planned restart begins.
    pub(crate) fn open_planned(&mut self, service: &Arc<str>, began: Timestamp, before: Before, because: &str) {
        if self.open.contains_key(service) {
            return;
        }
        let mut incident = self.begin(service, Kind::PlannedRestart, began, before);
        tell(&mut incident, Death { cause_text: because.to_owned(), ..Death::default() });
        incident.deaths = 0;
        self.open.insert(Arc::clone(service), incident);
        self.changed.insert(Arc::clone(service));
    }

    /// Whether the open record of a service is that of a planned restart.
    pub(crate) fn is_planned(&self, service: &str) -> bool {
        self.open.get(service).is_some_and(|incident| incident.kind == Kind::PlannedRestart)
    }

    /// A planned restart is over, and has not become an outage.
    pub(crate) fn close_planned(&mut self, service: &Arc<str>, at: Timestamp, outcome: Outcome) {
        if self.is_planned(service) {
            self.waiting.remove(service);
            self.close(service, at, Duration::ZERO, outcome);
        }
    }

    fn begin(&mut self, service: &Arc<str>, kind: Kind, began: Timestamp, before: Before) -> Incident {
        let Waiting { entries: timeline, death, before_oom } = self.waiting.remove(service).unwrap_or_default();
        let mut incident = Incident {
            id: self.next_id,
            service: service.to_string(),
            kind,
            began,
            ended: None,
            outage_ms: None,
            outcome: None,
            cause: Value::Null,
            cause_text: String::new(),
            evidence: Value::Null,
            missing: Value::Null,
            timeline,
            moments_dropped: 0,
            memory: before.memory,
            memory_limit: before.limit,
            foretold: before.foretold,
            before_oom: of_death(before_oom, began),
            restarts: 0,
            deaths: 1,
        };
        self.next_id += 1;
        tell(&mut incident, death);
        incident
    }

    /// What became of the death; the last word of an outage with several counts.
    pub(crate) fn conclude(&mut self, service: &Arc<str>, outcome: Outcome) {
        match self.open.get_mut(service) {
            Some(incident) => {
                incident.outcome = Some(outcome);
                self.changed.insert(Arc::clone(service));
            }
            // Meant to end: what was noted of it belongs to nothing.
            None => drop(self.waiting.remove(service)),
        }
    }

    /// The outage is over.
    pub(crate) fn close(&mut self, service: &Arc<str>, at: Timestamp, outage: Duration, outcome: Outcome) {
        let Some(mut incident) = self.open.remove(service) else { return };
        incident.ended = Some(at);
        let is_outage = incident.kind != Kind::PlannedRestart;
        incident.outage_ms = is_outage.then(|| u64::try_from(outage.as_millis()).unwrap_or(u64::MAX));
        incident.outcome = Some(outcome);
        self.changed.remove(service);
        if incident.timeline.iter().any(|entry| entry.what == "pool_out") {
            self.returning.insert(Arc::clone(service), incident.clone());
        }
        self.finished.insert(incident.id, incident);
    }

    /// A worker died of something that may come back.
    pub(crate) fn near_miss(&mut self, service: &Arc<str>, at: Timestamp, text: String, death: Death) {
        let entry = Entry { at, what: "worker_died".to_owned(), text };
        if let Some(incident) = self.open.get_mut(service) {
            incident.deaths += 1;
            add(incident, entry);
            self.changed.insert(Arc::clone(service));
            return;
        }
        let earlier = self.misses.remove(service);
        let same = |earlier: &Incident| {
            let last = earlier.timeline.last().map_or(earlier.began, |entry| entry.at);
            at.duration_since(last).unsigned_abs() < SAME_MISS
        };
        let mut incident = match earlier.filter(same) {
            Some(mut earlier) => {
                earlier.deaths += 1;
                earlier
            }
            None => {
                let mut incident = self.begin(service, Kind::NearMiss, at, Before::default());
                tell(&mut incident, death);
                incident
            }
        };
        add(&mut incident, entry);
        incident.ended = Some(at);
        self.finished.insert(incident.id, incident.clone());
        self.misses.insert(Arc::clone(service), incident);
    }

    /// The records that have changed since this was called last.
    pub(crate) fn take_changed(&mut self) -> Vec<Incident> {
        let open = std::mem::take(&mut self.changed);
        let open = open.iter().filter_map(|service| self.open.get(service)).cloned();
        let mut changed: Vec<_> = open.collect();
        changed.extend(std::mem::take(&mut self.finished).into_values());
        changed
    }
}

fn is_recent(then: Timestamp, at: Timestamp) -> bool {
    at.duration_since(then).unsigned_abs() < SAME_DEATH
}

/// A mark may have come to nothing: what was seen then is not of this death.
fn of_death(seen: Option<(Timestamp, BeforeOom)>, began: Timestamp) -> Option<Box<BeforeOom>> {
    let (at, seen) = seen?;
    (is_recent(at, began) && !seen.is_empty()).then(|| Box::new(seen))
}

fn tell(incident: &mut Incident, Death { cause, cause_text, evidence, missing }: Death) {
    if cause_text.is_empty() {
        return;
    }
    (incident.cause, incident.cause_text) = (cause, cause_text);
    (incident.evidence, incident.missing) = (evidence, missing);
}

fn add(incident: &mut Incident, entry: Entry) {
    if incident.timeline.len() >= MOMENTS {
        incident.timeline.remove(FIRST);
        incident.moments_dropped += 1;
    }
    incident.timeline.push(entry);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        incident::{Foretold, Sample},
        memory::picture::{Moment, Picture},
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).expect("a time")
    }

    fn death(kind: &str) -> Death {
        Death { cause: serde_json::json!({ "kind": kind }), cause_text: kind.to_owned(), ..Death::default() }
    }

    fn book() -> (Book, Arc<str>) {
        (Book::new(Vec::new(), 7), "web".into())
    }

    #[test]
    fn an_outage_is_told_from_before_its_beginning_to_its_end() {
        let (mut book, web) = book();
        book.note(&web, at(0), "oom_mark", "chosen".to_owned());
        book.death(&web, death("oom_kill"));
        let memory = vec![Sample { at: at(-5), bytes: 9 }];
        book.open(&web, at(0), Before { memory, limit: Some(10), foretold: Some(Foretold::default()) });
        assert_eq!(book.open_id("web"), Some(7));
        let [incident] = &book.take_changed()[..] else { panic!("one record") };
        assert_eq!((incident.timeline.len(), incident.cause_text.as_str()), (1, "oom_kill"));
        assert_eq!(book.take_changed(), [], "nothing new");
        book.note(&web, at(2), "restart_asked", "try 1".to_owned());
        book.conclude(&web, Outcome::Restarted);
        book.close(&web, at(3), Duration::from_millis(2900), Outcome::Restarted);
        let [incident] = &book.take_changed()[..] else { panic!("one record") };
        assert_eq!((incident.outage_ms, incident.restarts, incident.ended), (Some(2900), 1, Some(at(3))));
        assert_eq!(book.open_id("web"), None);
        book.open(&web, at(9), Before::default());
        assert_eq!(book.open_id("web"), Some(8));
    }

    #[test]
    fn the_return_to_the_pool_is_the_last_word_of_the_outage() {
        let (mut book, web) = book();
        book.returned(&web, at(0), "pool_in", "found running".to_owned());
        book.note(&web, at(1), "pool_out", "chosen".to_owned());
        book.open(&web, at(1), Before::default());
        book.close(&web, at(3), Duration::from_secs(2), Outcome::Restarted);
        assert_eq!(book.take_changed()[0].timeline.len(), 1);
        for _ in 0..2 {
            book.returned(&web, at(4), "pool_in", "healthy".to_owned());
        }
        let [incident] = &book.take_changed()[..] else { panic!("one record") };
        let words: Vec<_> = incident.timeline.iter().map(|entry| entry.what.as_str()).collect();
        assert_eq!((words, incident.ended), (vec!["pool_out", "pool_in"], Some(at(3))));
    }

    #[test]
    fn a_planned_restart_is_no_outage_unless_it_leads_to_one() {
        let (mut book, web) = book();
        book.note(&web, at(0), "forecast", "soon".to_owned());
        book.open_planned(&web, at(1), Before::default(), "memory");
        assert!(book.is_planned("web"));
        book.note(&web, at(2), "planned_restart_asked", "asked".to_owned());
        book.death(&web, death("stopped"));
        book.close_planned(&web, at(3), Outcome::Renewed);
        let [incident] = &book.take_changed()[..] else { panic!("one record") };
        assert_eq!((incident.kind, incident.outage_ms, incident.deaths), (Kind::PlannedRestart, None, 0));
        assert_eq!((incident.restarts, incident.cause_text.as_str(), incident.timeline.len()), (1, "memory", 2));

        book.open_planned(&web, at(11), Before::default(), "memory");
        book.death(&web, death("oom_kill"));
        book.open(&web, at(12), Before::default());
        book.close_planned(&web, at(13), Outcome::LeftAlone);
        assert!(book.open_id("web").is_some() && !book.is_planned("web"), "an outage goes on");
        book.close(&web, at(14), Duration::from_secs(2), Outcome::Restarted);
        let [incident] = &book.take_changed()[..] else { panic!("one record") };
        assert_eq!((incident.kind, incident.began, incident.deaths), (Kind::Outage, at(12), 1));
        assert_eq!((incident.cause_text.as_str(), incident.outage_ms), ("oom_kill", Some(2000)));
    }

    #[test]
    fn what_was_meant_leaves_no_record() {
        let (mut book, web) = book();
        book.note(&web, at(0), "died", "stopped".to_owned());
        book.conclude(&web, Outcome::Intended);
        assert_eq!(book.take_changed(), []);
        book.open(&web, at(1), Before::default());
        assert_eq!(book.take_changed()[0].timeline, [], "and nothing of it in the next one");
    }

    #[test]
    fn workers_that_die_again_and_again_are_one_near_miss() {
        let (mut book, web) = book();
        for second in [0, 30, 80] {
            book.near_miss(&web, at(second), "killed".to_owned(), death("oom_kill"));
        }
        book.near_miss(&web, at(200), "killed".to_owned(), death("oom_kill"));
        let changed = book.take_changed();
        let told: Vec<_> = changed.iter().map(|incident| (incident.id, incident.deaths)).collect();
        assert_eq!(told, [(7, 3), (8, 1)]);
        assert_eq!(changed[0].kind, Kind::NearMiss);
    }

    #[test]
    fn what_was_in_memory_comes_before_or_after_the_death_and_goes_with_it() {
        let seen = |second, moment| BeforeOom {
            pictures: vec![Picture {
                taken: at(second),
                took_ms: 0,
                moment,
                missed: None,
                processes: Vec::new(),
                others: 0,
            }],
            command: None,
        };
        let moments = |incident: &Incident| {
            let before = incident.before_oom.as_ref().expect("it was seen");
            before.pictures.iter().map(|picture| picture.moment).collect::<Vec<_>>()
        };
        let (mut book, web) = book();
        // A mark that came to nothing, an hour ago.
        book.before_oom(&web, at(-3600), seen(-3600, Moment::Marked));
        book.open(&web, at(0), Before::default());
        assert_eq!(book.take_changed()[0].before_oom, None);
        book.before_oom(&web, at(1), seen(1, Moment::Marked));
        book.before_oom(&web, at(1), seen(-600, Moment::Foreseen));
        assert_eq!(moments(&book.take_changed()[0]), [Moment::Foreseen, Moment::Marked]);
        book.close(&web, at(9), Duration::from_secs(9), Outcome::Restarted);

        // Of a worker, before its death and after it.
        book.before_oom(&web, at(20), seen(20, Moment::Marked));
        book.near_miss(&web, at(20), "killed".to_owned(), death("oom_kill"));
        book.before_oom(&web, at(21), seen(19, Moment::Foreseen));
        let changed = book.take_changed();
        assert_eq!(moments(changed.last().expect("a near miss")), [Moment::Foreseen, Moment::Marked]);
        book.open(&web, at(900), Before::default());
        assert_eq!(book.take_changed()[0].before_oom, None, "each is told once");
    }

    #[test]
    fn a_long_story_keeps_its_beginning_and_its_end() {
        let (mut book, web) = book();
        book.open(&web, at(0), Before::default());
        for second in 0..1000 {
            book.note(&web, at(second), "failed", second.to_string());
        }
        let incident = book.take_changed().remove(0);
        assert_eq!((incident.timeline.len(), incident.moments_dropped), (MOMENTS, 800));
        assert_eq!((incident.timeline[0].text.as_str(), incident.timeline[MOMENTS - 1].text.as_str()), ("0", "999"));
    }

    #[test]
    fn an_open_incident_of_an_earlier_agent_goes_on() {
        let (mut book, web) = book();
        book.open(&web, at(0), Before::default());
        let open = book.take_changed();
        let mut next = Book::new(open, 8);
        next.close(&web, at(60), Duration::from_secs(60), Outcome::Respawned);
        assert_eq!(next.take_changed()[0].id, 7);
    }
}

use proptest::prelude::*;

use super::*;
use crate::{
    config::{Backoff, Budget, Mode},
    healing::{self, Engine, HostLedger, Plan},
};

const S: u64 = 1_000_000_000;
/// Restarts of the service in ten minutes.
const BUDGET: u32 = 2;

fn who(tgid: u32) -> Identity {
    Identity { tgid, start_ns: u64::from(tgid) * S }
}

fn policy() -> PlannedRestart {
    PlannedRestart {
        window: Some("02:00-05:00".parse().expect("a window")),
        when: Duration::from_secs(3600),
        drain: Duration::from_secs(30),
        min_uptime: Duration::from_secs(100),
    }
}

/// One that has to be restarted now, in a pool where another one can serve.
fn near() -> Facts {
    Facts {
        process: Some(who(1)),
        left_seconds: Some(600.0),
        place: Some(Place::In),
        others: Some(1),
        minute: 180,
        ..Facts::default()
    }
}

fn draining() -> Facts {
    Facts { place: Some(Place::Draining), ..near() }
}

/// Only what is done.
fn short(actions: &[Action]) -> Vec<&'static str> {
    let word = |action: &Action| match action {
        Action::Would { .. } => "would",
        Action::Ask { .. } => "ask",
        Action::Begin { .. } => "begin",
        Action::Renew { .. } => "renew",
        Action::End { how, .. } => how.as_str(),
        Action::Release => "release",
    };
    actions.iter().map(word).collect()
}

fn granted(ticket: u32) -> Input {
    Input::Leave { ticket, answer: Ok(()) }
}

/// A machine that drains since second 1000.
fn begun() -> Renewals {
    let mut renewals = Renewals::new(policy(), false);
    assert_eq!(short(&renewals.step(Input::Look, &near(), 1000 * S)), ["ask"]);
    assert!(renewals.is_asking(1));
    assert_eq!(short(&renewals.step(granted(1), &near(), 1000 * S)), ["begin"]);
    renewals
}

#[test]
fn it_drains_until_its_connections_are_done_and_is_restarted_once() {
    let mut renewals = begun();
    let facts = |connections| Facts { connections, ..draining() };
    let mut now = 1000 * S;
    let mut look = |renewals: &mut Renewals, connections| {
        now += LOOK_NS;
        assert_eq!(renewals.deadline(), Some(now));
        short(&renewals.step(Input::Look, &facts(connections), now))
    };
    for connections in [None, Some(3), Some(0), Some(1), Some(0)] {
        assert_eq!(look(&mut renewals, connections), [""; 0]);
    }
    assert_eq!(look(&mut renewals, Some(0)), ["renew"], "at two looks");
    let dead = Facts { process: None, refusal: Some("it is not up"), ..draining() };
    assert_eq!(renewals.step(Input::Look, &dead, now), []);
    assert_eq!(short(&renewals.step(Input::Ended { result: Ok(()) }, &near(), now)), ["ok", "release"]);
    assert_eq!(renewals.deadline(), None);
}

#[test]
fn what_does_not_end_is_waited_for_no_longer_than_was_said() {
    let mut renewals = begun();
    let busy = Facts { connections: Some(9), ..draining() };
    assert_eq!(renewals.step(Input::Look, &busy, 1030 * S - 1), []);
    assert_eq!(short(&renewals.step(Input::Look, &busy, 1030 * S)), ["renew"]);
    let failed = Input::Ended { result: Err("no".to_owned()) };
    assert_eq!(short(&renewals.step(failed, &busy, 1031 * S)), ["failed", "release"]);
}

#[test]
fn without_a_pool_there_is_nothing_to_wait_for() {
    let mut renewals = Renewals::new(policy(), false);
    let alone = Facts { place: None, others: None, ..near() };
    renewals.step(Input::Look, &alone, 1000 * S);
    assert_eq!(short(&renewals.step(granted(1), &alone, 1000 * S)), ["begin", "renew"]);
}

#[test]
fn what_speaks_against_it_keeps_it_from_beginning() {
    let young = 100 * S;
    for (facts, now, why) in [
        (Facts { left_seconds: Some(3601.0), ..near() }, 1000 * S, "there is time"),
        (Facts { left_seconds: None, ..near() }, 1000 * S, "nothing is foreseen"),
        (Facts { minute: 300, ..near() }, 1000 * S, "outside the window"),
        (Facts { others: Some(0), ..near() }, 1000 * S, "the last one"),
        (Facts { refusal: Some("paused"), ..near() }, 1000 * S, "the engine refuses"),
        (Facts { process: None, ..near() }, 1000 * S, "it is dead"),
        (near(), young, "it is young"),
    ] {
        let mut renewals = Renewals::new(policy(), false);
        assert_eq!(renewals.step(Input::Look, &facts, now), [], "{why}");
        // Nor when that comes while leave is waited for, or with it.
        renewals.step(Input::Look, &near(), 1000 * S);
        if now == 1000 * S {
            assert_eq!(short(&renewals.step(granted(1), &facts, now)), ["release"], "{why}");
            assert_eq!(renewals.step(Input::Look, &near(), 1059 * S), [], "not at once again");
            assert_eq!(short(&renewals.step(Input::Look, &near(), 1060 * S)), ["ask"]);
            assert_eq!(short(&renewals.step(Input::Look, &facts, 1060 * S)), ["release"], "{why}");
        }
    }
    let mut renewals = Renewals::new(policy(), false);
    let fast = Facts { left_seconds: None, runs_out: true, ..near() };
    assert_eq!(short(&renewals.step(Input::Look, &fast, 1000 * S)), ["ask"], "minutes count always");
}

#[test]
fn leave_that_is_refused_or_comes_too_late_begins_nothing() {
    let mut renewals = Renewals::new(policy(), false);
    renewals.step(Input::Look, &near(), 1000 * S);
    let refused = Input::Leave { ticket: 1, answer: Err(Duration::from_secs(5)) };
    assert_eq!(short(&renewals.step(refused, &near(), 1000 * S)), ["release"]);
    assert_eq!(renewals.step(granted(1), &near(), 1000 * S), []);
    assert!(!renewals.is_asking(1));
    // It is asked for again when the one who refused it has said.
    assert_eq!(renewals.step(Input::Look, &near(), 1005 * S - 1), []);
    assert_eq!(short(&renewals.step(Input::Look, &near(), 1005 * S)), ["ask"]);
}

#[test]
fn it_is_called_off_while_it_drains_when_that_would_do_harm() {
    for facts in [
        Facts { refusal: Some("paused by an operator"), ..draining() },
        Facts { others: Some(0), ..draining() },
        near(), // in its pool again
        Facts { process: None, ..draining() },
        Facts { process: Some(who(2)), ..draining() },
    ] {
        let mut renewals = begun();
        assert_eq!(short(&renewals.step(Input::Look, &facts, 1001 * S)), ["called_off", "release"]);
    }
    // Less load makes for a better forecast; that does not stop it halfway.
    let mut renewals = begun();
    let calm = Facts { left_seconds: None, minute: 301, ..draining() };
    assert_eq!(renewals.step(Input::Look, &calm, 1001 * S), []);
}

#[test]
fn a_dry_run_says_it_once_for_each_incarnation() {
    let mut renewals = Renewals::new(policy(), true);
    assert_eq!(short(&renewals.step(Input::Look, &near(), 1000 * S)), ["would"]);
    assert_eq!(renewals.step(Input::Look, &near(), 2000 * S), []);
    let next = Facts { process: Some(who(2)), ..near() };
    assert_eq!(short(&renewals.step(Input::Look, &next, 3000 * S)), ["would"]);
}

#[derive(Clone, Debug)]
enum Word {
    Facts {
        left: Option<f64>,
        runs_out: bool,
        others: Option<usize>,
        connections: Option<u64>,
        minute: u16,
    },
    /// All that is under way is answered, well or not.
    Leave(bool),
    Renewed(bool),
    Healthy(bool),
    Died,
    Planned,
    Pause,
    Resume,
    Look,
}

fn word() -> impl Strategy<Value = Word> {
    let facts = (
        prop::option::weighted(0.9, 0.0..4000.0),
        any::<bool>(),
        prop::option::weighted(0.9, 0usize..8),
        prop::option::of(0u64..2),
        110u16..305,
    );
    prop_oneof![
        2 => facts.prop_map(|(left, runs_out, others, connections, minute)| {
            Word::Facts { left, runs_out, others, connections, minute }
        }),
        8 => prop::bool::weighted(0.9).prop_map(Word::Leave),
        6 => prop::bool::weighted(0.8).prop_map(Word::Renewed),
        6 => prop::bool::weighted(0.9).prop_map(Word::Healthy),
        1 => Just(Word::Died),
        3 => Just(Word::Planned),
        1 => Just(Word::Pause),
        4 => Just(Word::Resume),
        8 => Just(Word::Look),
    ]
}

/// The machine and the engine as the steward joins them, and a world that knows the truth.
struct World {
    renewals: Renewals,
    engine: Engine,
    host: HostLedger,
    facts: Facts,
    now: u64,
    next: u32,
    paused: bool,
    /// Of the engine: a question that waits, a start that is under way.
    asked: Option<u32>,
    starting: Option<u32>,
    probing: Option<Identity>,
    leave: Option<u32>,
    begun: bool,
    renewing: Option<Identity>,
    renewed: Vec<Identity>,
    spent: Vec<u64>,
    open: bool,
}

impl World {
    fn look(&mut self, input: Input) {
        self.facts.process = self.engine.process();
        self.facts.refusal = self.engine.refuses_renewal(&mut self.host, self.now);
        for action in self.renewals.step(input, &self.facts.clone(), self.now) {
            match action {
                Action::Ask { ticket } => self.leave = Some(ticket),
                Action::Begin { .. } => {
                    assert!(!self.begun, "two under way");
                    assert!((120..300).contains(&self.facts.minute), "outside the window");
                    self.harmless();
                    self.begun = true;
                    self.facts.place = Some(Place::Draining);
                }
                Action::Renew { process, because } => {
                    assert!(self.begun && self.renewing.is_none(), "one for each beginning");
                    self.harmless();
                    assert!(self.now - process.start_ns >= 100 * S, "too young");
                    self.engine(healing::Input::Renew { process, because });
                }
                Action::End { .. } => {
                    assert!(self.begun, "what did not begin cannot end");
                    self.begun = false;
                    self.facts.place = Some(Place::In);
                }
                Action::Release | Action::Would { .. } => {}
            }
        }
    }

    fn harmless(&self) {
        assert!(!self.paused, "during maintenance");
        assert!(!self.open && self.engine.down_since().is_none(), "in an outage");
        assert!(self.facts.others != Some(0), "the last one of its pool");
    }

    fn spends(&mut self) {
        assert!(self.renewing.is_none() && self.starting.is_none(), "two restarts in flight");
        self.spent.push(self.now);
        let recent = self.spent.iter().filter(|&&at| at + 600 * S > self.now).count();
        assert!(recent <= BUDGET as usize, "over budget");
    }

    fn engine(&mut self, input: healing::Input) {
        for action in self.engine.step(input, &mut self.host, self.now) {
            match action {
                healing::Action::Open { .. } => self.open = true,
                healing::Action::Close { .. } => self.open = false,
                healing::Action::Ask { question, .. } => self.asked = Some(question),
                healing::Action::Restart { attempt, .. } => {
                    self.spends();
                    self.starting = Some(attempt);
                }
                healing::Action::Renew { process, .. } => {
                    self.spends();
                    assert!(!self.renewed.contains(&process), "twice for one incarnation");
                    self.renewed.push(process);
                    self.renewing = Some(process);
                }
                healing::Action::Probe { process } => self.probing = Some(process),
                healing::Action::Renewed { .. } => self.look(Input::Ended { result: Ok(()) }),
                healing::Action::NotRenewed { reason } => self.look(Input::Ended { result: Err(reason) }),
                _ => {}
            }
        }
        self.look(Input::Look);
    }

    fn fresh(&mut self) -> Identity {
        self.next += 1;
        // Each begins when it is started, and no two are taken for each other.
        Identity { tgid: self.next, start_ns: self.now }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_a_planned_restart_does_no_harm(steps in prop::collection::vec((word(), 0u64..25), 1..300)) {
        let budget = |count| Budget { count, window: Duration::from_secs(600) };
        let engine = healing::Policy {
            mode: Mode::Act,
            restart: true,
            grace: Duration::ZERO,
            backoff: Backoff { jitter: 0.0, max: Duration::from_secs(60), ..Backoff::default() },
            budget: budget(BUDGET),
        };
        let mut world = World {
            renewals: Renewals::new(policy(), false),
            engine: Engine::new(engine, 1),
            host: HostLedger::new(budget(100)),
            facts: Facts { place: Some(Place::In), others: Some(1), minute: 180, ..Facts::default() },
            now: 1000 * S,
            next: 0,
            paused: false,
            asked: None,
            starting: None,
            probing: None,
            leave: None,
            begun: false,
            renewing: None,
            renewed: Vec::new(),
            spent: Vec::new(),
            open: false,
        };
        let first = world.fresh();
        world.engine(healing::Input::Alive(first));
        for (word, seconds) in steps {
            world.now += seconds * S + 1;
            if world.engine.deadline().is_some_and(|deadline| deadline <= world.now) {
                world.renewing = None;
                world.starting = None;
                world.engine(healing::Input::Tick);
            }
            match word {
                Word::Facts { left, runs_out, others, connections, minute } => {
                    let (process, place) = (world.facts.process, world.facts.place);
                    let refusal = None;
                    world.facts =
                        Facts { process, left_seconds: left, runs_out, refusal, place, others, connections, minute };
                    world.look(Input::Look);
                }
                Word::Leave(given) => {
                    if let Some(ticket) = world.leave.take() {
                        let answer = if given { Ok(()) } else { Err(Duration::from_secs(5)) };
                        world.look(Input::Leave { ticket, answer });
                    }
                }
                Word::Renewed(well) => {
                    if let Some(old) = world.renewing.take() {
                        let at_ns = world.now;
                        let intent = healing::Intent::Certain("stopped".to_owned());
                        world.engine(healing::Input::Died { process: old, at_ns, intent });
                        let result = if well { Ok(world.fresh()) } else { Err("no".to_owned()) };
                        world.engine(healing::Input::RenewalEnded { result });
                    } else if let Some(attempt) = world.starting.take() {
                        let result = if well { Ok(world.fresh()) } else { Err("no".to_owned()) };
                        world.engine(healing::Input::Started { attempt, result });
                    }
                }
                Word::Healthy(well) => {
                    if let Some(process) = world.probing.take() {
                        let result = if well { Ok(()) } else { Err("sick".to_owned()) };
                        world.engine(healing::Input::Probed { process, result });
                    }
                }
                Word::Died => {
                    if let Some(process) = world.engine.process() {
                        let (at_ns, intent) = (world.now, healing::Intent::None);
                        world.engine(healing::Input::Died { process, at_ns, intent });
                    }
                }
                Word::Planned => {
                    if let Some(question) = world.asked.take() {
                        let plan = Ok(Plan::GivesUp { why: String::new() });
                        world.engine(healing::Input::Planned { question, plan, exhausted: None });
                    }
                }
                Word::Pause => {
                    world.paused = true;
                    world.engine(healing::Input::Pause { until_ns: u64::MAX });
                }
                Word::Resume => {
                    world.paused = false;
                    world.engine(healing::Input::Resume);
                }
                Word::Look => world.look(Input::Look),
            }
        }
    }
}

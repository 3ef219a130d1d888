use super::*;
use proptest::prelude::*;

const S: u64 = 1_000_000_000;
const MS: u64 = 1_000_000;

fn policy() -> Policy {
    Policy {
        drain_at: Some(0.9),
        may_drain: true,
        has_check: true,
        settle: Duration::from_millis(200),
        settle_max: Duration::from_secs(60),
        lasting: Duration::from_secs(600),
    }
}

fn who(tgid: u32) -> Identity {
    Identity { tgid, start_ns: u64::from(tgid) * S }
}

fn measured(share: f64, others: Option<usize>) -> Input {
    Input::Measured { share, runs_out: false, others }
}

#[test]
fn who_is_about_to_be_restarted_drains_until_it_is_dead_or_stays() {
    let mut bench = Bench::calm();
    assert_eq!(bench.step(Input::Retire { others: Some(0) }), [], "not the last one");
    let drains = [(State::In, State::Draining, Cause::PlannedRestart)];
    assert_eq!(bench.step(Input::Retire { others: Some(1) }), drains);
    assert_eq!(bench.step(measured(0.1, Some(1))), []);
    assert_eq!(bench.pass(20 * S, true), [], "a low memory does not bring it back");
    assert_eq!(bench.step(Input::Stay), []);
    assert!(matches!(bench.pass(S, true)[..], [(_, State::In, Cause::Healthy)]));

    assert_eq!(bench.step(Input::Retire { others: None }), drains);
    let out = [(State::Draining, State::Out, Cause::PlannedRestart)];
    assert_eq!(bench.step(Input::Died(who(1))), out);
    assert_eq!(bench.step(Input::Alive(who(2))), []);
    assert!(matches!(bench.pass(2 * S, true)[..], [(_, State::In, Cause::Healthy)]));

    // One that drains already, and is needed after all.
    bench.step(measured(0.95, Some(1)));
    assert_eq!(bench.step(Input::Retire { others: Some(1) }), []);
    assert_eq!(bench.step(Input::Others(Some(0))), [(State::Draining, State::In, Cause::LastOne)]);
    bench.step(measured(0.5, Some(1)));
    let dies = [(State::In, State::Out, Cause::Died)];
    assert_eq!(bench.step(Input::Died(who(2))), dies, "nothing is left of the plan");
}

/// A member whose probes are answered by hand or by the clock.
struct Bench {
    member: Member,
    now: u64,
}

impl Bench {
    fn new(policy: Policy, left: Option<Memory>) -> Self {
        Self { member: Member::new(policy, left, 0), now: 0 }
    }

    /// In, with process 1, calm.
    fn calm() -> Self {
        let mut bench = Self::new(policy(), None);
        assert_eq!(bench.step(Input::Alive(who(1))), [(State::Out, State::In, Cause::FoundRunning)]);
        bench
    }

    /// The moves that an input causes.
    fn step(&mut self, input: Input) -> Vec<(State, State, Cause)> {
        moves(&self.member.step(input, self.now))
    }

    /// Lets time pass, each probe answered with `healthy`; the moves with their times.
    fn pass(&mut self, time: u64, healthy: bool) -> Vec<(u64, State, Cause)> {
        let (end, mut seen) = (self.now + time, Vec::new());
        loop {
            let input = match self.member.probe {
                Some(probe) => Input::Probed { ticket: probe.ticket, healthy },
                None => match self.member.deadline() {
                    Some(at) if at <= end => {
                        self.now = at.max(self.now);
                        Input::Tick
                    }
                    _ => break,
                },
            };
            for (_, to, cause) in self.step(input) {
                seen.push((self.now, to, cause));
            }
        }
        self.now = end;
        seen
    }
}

fn moves(orders: &[Order]) -> Vec<(State, State, Cause)> {
    let one = |order: &Order| match *order {
        Order::Move { from, to, cause } => Some((from, to, cause)),
        _ => None,
    };
    orders.iter().filter_map(one).collect()
}

#[test]
fn the_mark_takes_it_out_and_proof_brings_it_back() {
    let mut bench = Bench::calm();
    assert!(bench.pass(100 * S, true).is_empty());
    assert_eq!(bench.step(Input::Marked(who(1))), [(State::In, State::Out, Cause::OomKill)]);
    assert_eq!(bench.step(Input::Died(who(1))), [], "said once");
    assert!(bench.pass(5 * S, true).is_empty(), "nobody to ask");
    let started = bench.now;
    assert_eq!(bench.step(Input::Alive(who(2))), []);
    assert!(bench.pass(S, false).is_empty(), "not healthy yet");
    let healthy = bench.now;
    let back = bench.pass(10 * S, true);
    let [(at, State::In, Cause::Healthy)] = back[..] else { panic!("{back:?}") };
    assert!(started < healthy && (200 * MS..S).contains(&(at - healthy)), "{} ms", (at - healthy) / MS);
}

#[test]
fn a_mark_or_a_death_of_somebody_else_changes_nothing() {
    let mut bench = Bench::calm();
    for input in [Input::Marked(who(7)), Input::Died(who(7)), Input::Proven(who(7)), Input::Tick] {
        assert_eq!(bench.step(input), [], "{input:?}");
    }
    assert!(bench.pass(60 * S, true).is_empty());
}

#[test]
fn one_that_was_chosen_and_lives_on_is_asked_again() {
    let mut bench = Bench::calm();
    bench.step(Input::Marked(who(1)));
    assert_eq!(bench.step(Input::Proven(who(1))), []);
    let back = bench.pass(30 * S, true);
    assert!(matches!(back[..], [(at, State::In, _)] if at >= 10 * S), "{back:?}");
}

#[test]
fn a_fatal_signal_takes_it_out_before_the_process_has_ended() {
    let mut bench = Bench::calm();
    assert_eq!(bench.step(Input::Crashing(who(7))), [], "a worker, or another service's process");
    assert_eq!(bench.step(Input::Crashing(who(1))), [(State::In, State::Out, Cause::Crashing)]);
    // For a minute it writes its core, and each probe fails.
    assert!(bench.pass(60 * S, false).is_empty());
    assert_eq!(bench.step(Input::Died(who(1))), [], "said once");
    bench.step(Input::Alive(who(2)));
    assert!(matches!(bench.pass(S, true)[..], [(_, State::In, Cause::Healthy)]));
}

#[test]
fn one_that_lives_on_after_a_fatal_signal_comes_back_by_proof_alone() {
    let mut bench = Bench::calm();
    bench.step(Input::Crashing(who(1)));
    assert_eq!(bench.step(Input::Proven(who(1))), [], "what was proven may be older than the signal");
    assert_eq!(bench.step(Input::Alive(who(1))), []);
    let back = bench.pass(30 * S, true);
    assert!(matches!(back[..], [(at, State::In, Cause::Healthy)] if at >= 10 * S), "{back:?}");
}

#[test]
fn three_bad_answers_in_a_row_and_no_fewer_take_it_out() {
    let mut bench = Bench::calm();
    bench.pass(2 * S, true);
    assert!(bench.pass(2 * S, false).is_empty());
    assert!(bench.pass(2 * S, true).is_empty());
    let out = bench.pass(4 * S, false);
    assert!(matches!(out[..], [(_, State::Out, Cause::Unhealthy)]), "{out:?}");
}

#[test]
fn a_return_that_did_not_last_makes_the_next_one_slower() {
    let mut bench = Bench::calm();
    let mut waits = Vec::new();
    for tgid in 2..12 {
        bench.step(Input::Died(bench.member.process.expect("alive")));
        bench.step(Input::Alive(who(tgid)));
        let before = bench.now;
        let back = bench.pass(120 * S, true);
        waits.push((back[0].0 - before) / MS);
    }
    assert_eq!(waits[..4], [200, 400, 800, 1600]);
    assert!(waits.is_sorted() && waits[9] == 60_000, "{waits:?}");
    bench.pass(601 * S, true);
    bench.step(Input::Died(who(11)));
    bench.step(Input::Alive(who(20)));
    let before = bench.now;
    assert_eq!(bench.pass(S, true)[0].0 - before, 200 * MS, "it has lasted");
}

#[test]
fn memory_drains_it_unless_it_is_the_last() {
    let mut bench = Bench::calm();
    assert_eq!(bench.member.step(measured(0.86, Some(1)), 0), [Order::Weigh(50)]);
    assert_eq!(bench.member.step(measured(0.95, Some(0)), 0), [Order::Keep(Cause::Memory)]);
    assert_eq!(bench.member.step(measured(0.96, Some(0)), 0), [], "said once, and it keeps half of its traffic");
    let drained = bench.member.step(measured(0.96, Some(1)), 0);
    let want = Order::Move { from: State::In, to: State::Draining, cause: Cause::Memory };
    assert_eq!(drained, [want]);
    assert_eq!(bench.step(measured(0.85, Some(1))), [], "not far enough below its mark");
    assert!(bench.pass(10 * S, true).is_empty());
    bench.step(measured(0.5, Some(1)));
    let back = bench.pass(S, true);
    assert!(matches!(back[..], [(_, State::In, Cause::Healthy)]), "{back:?}");
}

#[test]
fn whoever_drains_serves_again_when_nobody_else_is_left() {
    let mut bench = Bench::calm();
    bench.step(measured(0.95, Some(1)));
    assert_eq!(bench.step(Input::Others(Some(2))), []);
    assert_eq!(bench.step(Input::Others(None)), []);
    assert_eq!(bench.step(Input::Others(Some(0))), [(State::Draining, State::In, Cause::LastOne)]);
    assert_eq!(bench.member.step(measured(0.95, Some(0)), 0), [Order::Weigh(50)], "the floor was said");
    assert_eq!(bench.step(measured(0.95, Some(1))), [(State::In, State::Draining, Cause::Memory)]);
}

#[test]
fn a_death_knows_no_floor_and_dry_runs_no_drain() {
    let mut bench = Bench::calm();
    bench.step(measured(0.95, Some(0)));
    assert_eq!(bench.step(Input::Died(who(1))), [(State::In, State::Out, Cause::Died)]);
    let mut bench = Bench::new(Policy { may_drain: false, ..policy() }, None);
    bench.step(Input::Alive(who(1)));
    assert_eq!(bench.member.step(measured(0.99, None), 0), []);
}

#[test]
fn minutes_left_drain_it_whatever_its_share() {
    let mut bench = Bench::new(Policy { drain_at: None, ..policy() }, None);
    bench.step(Input::Alive(who(1)));
    assert_eq!(bench.step(measured(1.0, None)), [], "no mark");
    let input = Input::Measured { share: 0.4, runs_out: true, others: None };
    assert_eq!(bench.step(input), [(State::In, State::Draining, Cause::Forecast)]);
    assert_eq!(bench.step(Input::Marked(who(1))), [(State::Draining, State::Out, Cause::OomKill)]);
}

#[test]
fn what_an_earlier_agent_knew_goes_on() {
    let left = |state, tgid, cause| Some(Memory { state, cause, process: Some(who(tgid)), flaps: 1 });
    let mut same = Bench::new(policy(), left(State::In, 1, Cause::Healthy));
    assert_eq!(same.step(Input::Alive(who(1))), [(State::Out, State::In, Cause::Healthy)]);
    let mut other = Bench::new(policy(), left(State::In, 9, Cause::Healthy));
    assert_eq!(other.step(Input::Alive(who(1))), [(State::In, State::Out, Cause::Died)]);
    let mut out = Bench::new(policy(), left(State::Out, 1, Cause::OomKill));
    assert_eq!(out.step(Input::Alive(who(1))), [(State::In, State::Out, Cause::OomKill)]);
    assert!(matches!(out.pass(5 * S, true)[..], [(400_000_000.., State::In, _)]), "one flap");
    let mut drains = Bench::new(policy(), left(State::Draining, 1, Cause::Memory));
    assert_eq!(drains.step(Input::Alive(who(1))), [(State::In, State::Draining, Cause::Memory)]);
    assert!(drains.pass(5 * S, true).is_empty(), "no word of its memory yet");
    drains.step(measured(0.1, None));
    assert!(matches!(drains.pass(5 * S, true)[..], [(_, State::In, Cause::Healthy)]));
    let mut absent = Bench::new(policy(), None);
    assert_eq!(absent.step(Input::Absent), [(State::In, State::Out, Cause::NotRunning)]);
    assert_eq!(absent.step(Input::Alive(who(1))), [], "whoever starts it proves it");
    let mut nobody = Bench::new(policy(), None);
    assert!(matches!(nobody.pass(5 * S, true)[..], [(at, State::Out, Cause::NotRunning)] if at == UNSEEN_NS));
}

#[test]
fn a_clean_end_takes_back_decisions_and_no_facts() {
    let mut drained = Bench::calm();
    drained.step(measured(0.95, None));
    assert_eq!(drained.step(Input::AgentStops), [(State::Draining, State::In, Cause::AgentStops)]);
    let mut dead = Bench::calm();
    dead.step(Input::Died(who(1)));
    assert_eq!(dead.step(Input::AgentStops), []);
}

/// What happens, without the numbers that only the run knows.
#[derive(Clone, Debug)]
enum Word {
    Plain(Input),
    /// The answer to the probe that many before the last.
    Probed(u32, bool),
}

fn word() -> impl Strategy<Value = Word> {
    let process = || (1u32..4).prop_map(who);
    prop_oneof![
        process().prop_map(|process| Word::Plain(Input::Alive(process))),
        process().prop_map(|process| Word::Plain(Input::Marked(process))),
        process().prop_map(|process| Word::Plain(Input::Died(process))),
        process().prop_map(|process| Word::Plain(Input::Proven(process))),
        (0u32..2, any::<bool>()).prop_map(|(back, healthy)| Word::Probed(back, healthy)),
        (0.0..1.0f64, any::<bool>(), prop::option::of(0usize..3))
            .prop_map(|(share, runs_out, others)| { Word::Plain(Input::Measured { share, runs_out, others }) }),
        Just(Word::Plain(Input::Absent)),
        prop::option::of(0usize..2).prop_map(|others| Word::Plain(Input::Others(others))),
        Just(Word::Plain(Input::Tick)),
        Just(Word::Plain(Input::Tick)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_the_promises_hold(steps in prop::collection::vec((word(), 0u64..3 * S), 1..300)) {
        let (mut member, mut replay) = (Member::new(policy(), None, 0), Member::new(policy(), None, 0));
        let (mut now, mut told, mut weight) = (0, None, 100);
        let (mut drains, mut undone) = (0, 0);
        let mut asked: Option<u32> = None;
        for (word, pause) in steps {
            now += pause;
            let input = match word {
                Word::Plain(input) => input,
                Word::Probed(back, healthy) => Input::Probed { ticket: member.ticket.wrapping_sub(back), healthy },
            };
            let orders = member.step(input, now);
            prop_assert_eq!(&orders, &replay.step(input, now), "a replay decides the same");
            if member.probe.is_none_or(|probe| Some(probe.ticket) != asked) {
                asked = None;
            }
            for order in orders {
                match order {
                    Order::Move { from, to, cause } => {
                        prop_assert_ne!(from, to);
                        prop_assert!(told.is_none_or(|told| told == from), "no move from where it is not");
                        told = Some(to);
                        weight = 100;
                        drains += u32::from(to == State::Draining);
                        undone += u32::from(from == State::Draining);
                        if to == State::Draining {
                            let last = matches!(input, Input::Measured { others: Some(0), .. });
                            prop_assert!(!last && matches!(cause, Cause::Memory | Cause::Forecast));
                        }
                    }
                    Order::Probe { ticket, process } => {
                        prop_assert_eq!(asked, None, "one at a time");
                        asked = Some(ticket);
                        prop_assert!(member.process == Some(process) && !member.is_doomed(process));
                    }
                    Order::Weigh(percent) => {
                        prop_assert_ne!(weight, percent);
                        weight = percent;
                    }
                    // Before the move back, when it drained.
                    Order::Keep(_) => prop_assert!(matches!(told, Some(State::In | State::Draining))),
                }
            }
            if told == Some(State::In) {
                let process = member.process;
                prop_assert!(process.is_some_and(|process| !member.is_doomed(process)), "never in while dead");
            }
            prop_assert!(drains == undone || drains == undone + 1 && told == Some(State::Draining));
            prop_assert!(member.process.is_none() || told != Some(State::Out) || member.deadline().is_some(), "a way back");
        }
    }
}

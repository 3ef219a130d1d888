use super::*;
use proptest::prelude::*;

const S: u64 = 1_000_000_000;

fn policy() -> Policy {
    Policy {
        mode: Mode::Act,
        restart: true,
        grace: Duration::from_secs(2),
        backoff: Backoff { jitter: 0.0, ..Backoff::default() },
        budget: Budget { count: 3, window: Duration::from_secs(600) },
        seed: 1,
    }
}

fn host() -> Ledger {
    Ledger::new(Budget { count: 100, window: Duration::from_secs(600) })
}

fn who(tgid: u32) -> Identity {
    Identity { tgid, start_ns: u64::from(tgid) * S }
}

fn died(tgid: u32, at_ns: u64) -> Input {
    Input::Died { process: who(tgid), at_ns }
}

fn started(attempt: u32, tgid: u32) -> Input {
    Input::Started { attempt, result: Ok(who(tgid)) }
}

fn probed(tgid: u32, result: Result<(), String>) -> Input {
    Input::Probed { process: who(tgid), result }
}

#[test]
fn answers_about_earlier_incarnations_and_tries_change_nothing() {
    let (mut engine, mut host) = (Engine::new(policy()), host());
    engine.step(Input::Missing, &mut host, 0);
    engine.step(Input::Tick, &mut host, 0);
    engine.step(started(1, 7), &mut host, 1);
    engine.step(died(7, 2), &mut host, 2);
    engine.step(Input::Tick, &mut host, 3 * S);
    let late = Input::Started { attempt: 1, result: Err("no".to_owned()) };
    assert_eq!(engine.step(late, &mut host, 3 * S), vec![], "of the first try");
    engine.step(started(2, 8), &mut host, 3 * S);
    assert_eq!(engine.step(probed(7, Err("it died".to_owned())), &mut host, 3 * S), vec![]);
    assert_eq!(engine.process(), Some(who(8)));
}

#[test]
fn a_death_without_respawn_is_restarted_after_the_grace_and_closed_when_healthy() {
    let (mut engine, mut host) = (Engine::new(policy()), host());
    assert_eq!(engine.step(Input::Alive(who(1)), &mut host, 0), vec![]);
    assert_eq!(
        engine.step(died(1, 10 * S), &mut host, 10 * S),
        vec![Action::Open { at_ns: 10 * S }, Action::Wait { until_ns: 12 * S, reason: "grace" }]
    );
    assert_eq!(engine.step(Input::Tick, &mut host, 12 * S - 1), vec![], "inside the grace");
    assert_eq!(engine.step(Input::Tick, &mut host, 12 * S), vec![Action::Restart { attempt: 1 }]);
    assert_eq!(engine.step(Input::Tick, &mut host, 13 * S), vec![], "one restart in flight");
    assert_eq!(engine.step(started(1, 2), &mut host, 13 * S), vec![Action::Probe { process: who(2) }]);
    assert_eq!(
        engine.step(probed(2, Ok(())), &mut host, 14 * S),
        vec![Action::Close { outage_ns: 4 * S, by_us: true }]
    );
    assert_eq!(engine.process(), Some(who(2)));
}

#[test]
fn a_respawn_that_is_heard_of_before_the_death_is_left_alone() {
    let (mut engine, mut host) = (Engine::new(policy()), host());
    engine.step(Input::Alive(who(1)), &mut host, 0);
    assert_eq!(engine.step(Input::Alive(who(2)), &mut host, S), vec![]);
    assert_eq!(
        engine.step(died(1, S), &mut host, S),
        vec![Action::Open { at_ns: S }, Action::Suppress { reason: "respawned" }, Action::Probe { process: who(2) }]
    );
    assert_eq!((engine.process(), engine.deadline()), (Some(who(2)), None));
}

#[test]
fn a_newer_process_that_has_died_too_is_no_respawn() {
    let (mut engine, mut host) = (Engine::new(policy()), host());
    engine.step(Input::Alive(who(1)), &mut host, 0);
    engine.step(Input::Alive(who(2)), &mut host, S);
    assert_eq!(engine.step(died(2, S), &mut host, S), vec![]);
    let actions = engine.step(died(1, S), &mut host, S);
    assert_eq!(actions, vec![Action::Open { at_ns: S }, Action::Wait { until_ns: 3 * S, reason: "grace" }]);
}

#[test]
fn a_respawn_within_the_grace_is_left_alone() {
    let (mut engine, mut host) = (Engine::new(policy()), host());
    engine.step(Input::Alive(who(1)), &mut host, 0);
    engine.step(died(1, S), &mut host, S);
    assert_eq!(
        engine.step(Input::Alive(who(2)), &mut host, 2 * S),
        vec![Action::Suppress { reason: "respawned" }, Action::Probe { process: who(2) }]
    );
    assert_eq!(engine.step(Input::Tick, &mut host, 9 * S), vec![]);
    assert_eq!(
        engine.step(probed(2, Ok(())), &mut host, 9 * S),
        vec![Action::Close { outage_ns: 8 * S, by_us: false }]
    );
}

#[test]
fn the_death_of_an_earlier_incarnation_ends_nothing() {
    let (mut engine, mut host) = (Engine::new(policy()), host());
    engine.step(Input::Alive(who(2)), &mut host, 0);
    assert_eq!(engine.step(died(1, S), &mut host, S), vec![]);
    assert_eq!(engine.process(), Some(who(2)));
}

#[test]
fn late_word_of_a_dead_incarnation_s_life_is_no_respawn() {
    let (mut engine, mut host) = (Engine::new(policy()), host());
    engine.step(Input::Missing, &mut host, 0);
    engine.step(Input::Tick, &mut host, 0);
    engine.step(started(1, 7), &mut host, 1);
    engine.step(probed(7, Err("it died".to_owned())), &mut host, 2);
    assert_eq!(engine.step(Input::Alive(who(7)), &mut host, 3), vec![]);
    assert_eq!(engine.process(), None);
}

#[test]
fn modes_and_settings_that_restart_nothing_say_so() {
    for (change, reason) in [
        (Policy { mode: Mode::Observe, ..policy() }, "observe"),
        (Policy { restart: false, ..policy() }, "not_configured"),
    ] {
        let (mut engine, mut host) = (Engine::new(change), host());
        engine.step(Input::Alive(who(1)), &mut host, 0);
        let actions = engine.step(died(1, S), &mut host, S);
        assert_eq!(actions, vec![Action::Open { at_ns: S }, Action::Suppress { reason }]);
        assert_eq!(engine.deadline(), None);
    }
    let (mut engine, mut host) = (Engine::new(Policy { mode: Mode::DryRun, ..policy() }), host());
    engine.step(Input::Alive(who(1)), &mut host, 0);
    engine.step(died(1, S), &mut host, S);
    assert_eq!(engine.step(Input::Tick, &mut host, 3 * S), vec![Action::Suppress { reason: "dry_run" }]);
}

#[test]
fn failed_tries_wait_longer_each_time_and_stop_at_the_budget() {
    let (mut engine, mut host) = (Engine::new(policy()), host());
    engine.step(Input::Missing, &mut host, 0);
    let mut waits = Vec::new();
    let mut restarts = 0;
    let mut now = 0;
    for _ in 0..8 {
        let Some(deadline) = engine.deadline() else { panic!("it never gives up silently") };
        waits.push((deadline - now) / S);
        now = deadline;
        for action in engine.step(Input::Tick, &mut host, now) {
            if let Action::Restart { attempt } = action {
                restarts += 1;
                engine.step(Input::Started { attempt, result: Err("no".to_owned()) }, &mut host, now);
            }
        }
    }
    // At once, grace (the back-off of 1 s is less), 2 s, 4 s; then the budget of 3 in 600 s holds.
    assert_eq!(&waits[..5], &[0, 2, 2, 4, 592], "{waits:?}");
    assert!(restarts >= 4, "half-open tries go on: {restarts}");
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        (1u32..6).prop_map(|tgid| Input::Alive(who(tgid))),
        (1u32..6).prop_map(|tgid| died(tgid, 0)),
        Just(Input::Missing),
        (1u32..6, 1u32..6).prop_map(|(attempt, tgid)| started(attempt, tgid)),
        (1u32..6).prop_map(|attempt| Input::Started { attempt, result: Err("no".to_owned()) }),
        (1u32..6).prop_map(|tgid| probed(tgid, Ok(()))),
        (1u32..6).prop_map(|tgid| probed(tgid, Err("no".to_owned()))),
        Just(Input::Tick),
    ]
}

proptest! {
    #[test]
    fn whatever_comes_budget_grace_and_single_flight_hold(
        steps in proptest::collection::vec((input(), 0u64..5 * S), 1..300)
    ) {
        let (mut engine, mut host) = (Engine::new(policy()), host());
        let (mut replay, mut replay_host) = (Engine::new(policy()), self::host());
        let mut now = 0;
        let mut restarts: Vec<u64> = Vec::new();
        let mut in_flight = false;
        let mut open = false;
        let mut waits_until = Some(0);
        for (input, pause) in steps {
            now += pause;
            let ends_flight = matches!(input, Input::Started { .. }) || matches!(input, Input::Tick);
            let actions = engine.step(input.clone(), &mut host, now);
            prop_assert_eq!(&actions, &replay.step(input, &mut replay_host, now), "replay differs");
            if ends_flight && !actions.iter().any(|action| matches!(action, Action::Restart { .. })) && !actions.is_empty() {
                in_flight = false;
            }
            for action in actions {
                if let Action::Suppress { reason } = action {
                    prop_assert!(Action::SUPPRESSED.contains(&reason), "{reason} has no series");
                }
                match action {
                    Action::Wait { until_ns, .. } => waits_until = Some(until_ns),
                    Action::Restart { .. } => {
                        prop_assert!(!in_flight, "two restarts in flight");
                        prop_assert!(waits_until.is_some_and(|until| until <= now), "inside the supervisor's time");
                        in_flight = true;
                        restarts.push(now);
                        let recent = restarts.iter().filter(|&&at| at + 600 * S > now).count();
                        prop_assert!(recent <= 3, "over budget");
                    }
                    Action::Open { .. } => {
                        prop_assert!(!open, "an outage opened twice");
                        open = true;
                    }
                    Action::Close { .. } => {
                        prop_assert!(open, "an outage closed that was not open");
                        open = false;
                    }
                    Action::Probe { .. } | Action::Suppress { .. } | Action::Failed { .. } => {}
                }
            }
        }
    }
}

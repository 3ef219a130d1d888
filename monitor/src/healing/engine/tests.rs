use super::*;
use proptest::prelude::*;

const S: u64 = 1_000_000_000;

fn policy() -> Policy {
    Policy {
        mode: Mode::Act,
        restart: true,
        grace: Duration::from_secs(2),
        backoff: Backoff { jitter: 0.0, max: Duration::from_secs(60), ..Backoff::default() },
        budget: Budget { count: 3, window: Duration::from_secs(600) },
    }
}

fn host() -> HostLedger {
    HostLedger::new(Budget { count: 100, window: Duration::from_secs(600) })
}

fn who(tgid: u32) -> Identity {
    Identity { tgid, start_ns: u64::from(tgid) * S }
}

fn died(tgid: u32, at_ns: u64) -> Input {
    Input::Died { process: who(tgid), at_ns, intent: Intent::None }
}

fn ended_well() -> Plan {
    Plan::EndedWell { why: "result success".to_owned() }
}

fn gives_up() -> Plan {
    Plan::GivesUp { why: "Restart=no".to_owned() }
}

/// An engine with its host, driven by hand.
struct Bench {
    engine: Engine,
    host: HostLedger,
}

impl Bench {
    fn new(policy: Policy) -> Self {
        Self { engine: Engine::new(policy, 1), host: host() }
    }

    /// A service that lives as process 1.
    fn alive(policy: Policy) -> Self {
        let mut bench = Self::new(policy);
        assert_eq!(bench.step(Input::Alive(who(1)), 0), []);
        bench
    }

    fn step(&mut self, input: Input, now_ns: u64) -> Vec<Action> {
        self.engine.step(input, &mut self.host, now_ns)
    }

    /// Answers the question that was asked last.
    fn plan(&mut self, plan: Plan, now_ns: u64) -> Vec<Action> {
        self.answer(Ok(plan), None, now_ns)
    }

    fn answer(&mut self, plan: Result<Plan, String>, exhausted: Option<&str>, now_ns: u64) -> Vec<Action> {
        let exhausted = exhausted.map(str::to_owned);
        self.step(Input::Planned { question: self.engine.question, plan, exhausted }, now_ns)
    }

    fn started(&mut self, tgid: u32, now_ns: u64) -> Vec<Action> {
        self.step(Input::Started { attempt: self.engine.attempts, result: Ok(who(tgid)) }, now_ns)
    }

    /// The deadline, reached, and the supervisor's plan for it.
    fn due(&mut self, plan: Plan) -> (u64, Vec<Action>) {
        let at = self.engine.deadline().expect("something is due");
        let asked = self.step(Input::Tick, at);
        assert!(matches!(asked[..], [Action::Ask { .. }]), "{asked:?}");
        (at, self.plan(plan, at))
    }
}

#[test]
fn on_a_host_that_has_just_booted_a_service_that_is_absent_starts_at_once_whatever_its_grace() {
    for now in [0, S, 60 * S] {
        let mut bench = Bench::new(Policy { grace: Duration::from_secs(3600), ..policy() });
        assert_eq!(short(&bench.step(Input::Missing, now)), ["open", "ask"]);
        assert_eq!(short(&bench.plan(gives_up(), now)), ["restart 1"]);
        // After a death there is a grace, also for the first incarnation.
        bench.started(2, now + S);
        bench.step(died(2, now + 2 * S), now + 2 * S);
        let until = now / S + 2 + 3600;
        assert_eq!(short(&bench.plan(gives_up(), now + 2 * S)), [format!("grace until {until}")]);
    }
}

#[test]
fn an_agent_that_is_started_again_before_it_has_started_what_was_absent_does_so_at_once() {
    let mut bench = Bench::new(Policy { grace: Duration::from_secs(3600), ..policy() });
    bench.step(Input::Missing, S);
    let memory = bench.engine.memory();
    let mut next = Bench::new(Policy { grace: Duration::from_secs(3600), ..policy() });
    next.engine.remember(memory, 3 * S);
    let (_, actions) = next.due(gives_up());
    assert_eq!(short(&actions), ["restart 1"]);
}

#[test]
fn what_was_before_this_boot_is_as_long_ago_as_it_is() {
    const DAY: i64 = 86_400 * S as i64;
    let spent: std::collections::VecDeque<i64> = [5, 6, 7].map(|at| at * S as i64).into();
    let memory = Memory { healthy_ns: Some(8 * S as i64), attempts: 3, spent_ns: spent, ..Memory::default() };
    let rebooted = |memory: &Memory, shift: i64| {
        let mut bench = Bench::new(policy());
        bench.engine.remember(memory.clone().after_reboot(shift), S);
        assert_eq!(bench.step(Input::Alive(who(2)), S), []);
        bench.step(died(2, 20 * S), 20 * S);
        short(&bench.plan(gives_up(), 22 * S))
    };
    assert_eq!(rebooted(&memory, -DAY), ["restart 1"], "a day ago: neither budget nor tries are spent");
    // The host was down for seconds: three of three in ten minutes are spent.
    assert_eq!(rebooted(&memory, -9 * S as i64), ["back-off until 24"]);
    let mut bench = Bench::new(policy());
    bench.engine.remember(memory.clone().after_reboot(-9 * S as i64), S);
    assert_eq!(bench.engine.ledger.blocked_until(S), Some(596 * S), "ten minutes after the first");
    // An outage that lasted until the host went down has proven nothing, however long ago it was last healthy.
    let down = Memory { down_ns: Some(9 * S), ..memory };
    assert_eq!(rebooted(&down, -DAY), ["back-off until 24"]);
}

/// Only what is done, and the labels.
fn short(actions: &[Action]) -> Vec<String> {
    actions
        .iter()
        .map(|action| match action {
            Action::Open { .. } => "open".to_owned(),
            Action::Ask { .. } => "ask".to_owned(),
            Action::Wait { until_ns, reason, .. } => format!("{reason} until {}", until_ns / S),
            Action::Restart { attempt, .. } => format!("restart {attempt}"),
            Action::Renew { process, .. } => format!("renew {}", process.tgid),
            Action::Renewed { down_ns } => format!("renewed after {}", down_ns / S),
            Action::NotRenewed { .. } => "not renewed".to_owned(),
            Action::Probe { process } => format!("probe {}", process.tgid),
            Action::Suppress { reason, .. } => format!("not: {reason}"),
            Action::Failed { .. } => "failed".to_owned(),
            Action::Conclude { process, outcome } => format!("{:?} {outcome:?}", process.map(|process| process.tgid)),
            Action::Close { outage_ns, outcome } => format!("close after {} {outcome:?}", outage_ns / S),
        })
        .collect()
}

#[test]
fn a_death_that_its_supervisor_leaves_is_restarted_after_the_grace_and_closed_when_healthy() {
    let mut bench = Bench::alive(policy());
    assert_eq!(short(&bench.step(died(1, 10 * S), 10 * S)), ["open", "ask"]);
    assert_eq!(short(&bench.plan(gives_up(), 10 * S)), ["grace until 12"]);
    assert_eq!(bench.step(Input::Tick, 12 * S - 1), [], "inside the grace");
    let (at, actions) = bench.due(gives_up());
    assert_eq!((at, short(&actions)), (12 * S, vec!["restart 1".to_owned()]));
    assert_eq!(bench.step(Input::Tick, 13 * S), [], "one restart in flight");
    assert_eq!(short(&bench.started(2, 13 * S)), ["Some(1) Restarted", "probe 2"]);
    let healthy = Input::Probed { process: who(2), result: Ok(()) };
    assert_eq!(short(&bench.step(healthy, 14 * S)), ["close after 4 Restarted"]);
    assert_eq!(bench.engine.process(), Some(who(2)));
}

fn renew(tgid: u32) -> Input {
    Input::Renew { process: who(tgid), because: String::new() }
}

#[test]
fn a_planned_restart_is_no_outage_and_there_is_one_for_each_incarnation() {
    let mut bench = Bench::alive(policy());
    assert_eq!(short(&bench.step(renew(1), 10 * S)), ["renew 1"]);
    assert_eq!(bench.engine.memory().renewed, Some(who(1)), "known before it is asked for");
    assert_eq!(short(&bench.step(renew(1), 10 * S)), ["not renewed"], "it is under way");
    let stopped = Intent::Certain("stopped by defib".to_owned());
    assert_eq!(bench.step(Input::Died { process: who(1), at_ns: 11 * S, intent: stopped }, 11 * S), []);
    assert_eq!(bench.step(Input::Alive(who(2)), 11 * S), [], "its supervisor's answer names it");
    let ended = |tgid| Input::RenewalEnded { result: Ok(who(tgid)) };
    assert_eq!(short(&bench.step(ended(2), 12 * S)), ["probe 2"]);
    let healthy = |tgid| Input::Probed { process: who(tgid), result: Ok(()) };
    assert_eq!(short(&bench.step(healthy(2), 13 * S)), ["renewed after 2"]);
    // Word of the death after word of the new life.
    assert_eq!(short(&bench.step(renew(2), 20 * S)), ["renew 2"]);
    assert_eq!(short(&bench.step(ended(3), 21 * S)), ["probe 3"]);
    assert_eq!(bench.step(died(2, 21 * S), 21 * S), []);
    assert_eq!(short(&bench.step(healthy(3), 21 * S)), ["renewed after 0"]);
    assert_eq!(short(&bench.step(renew(3), 30 * S)), ["renew 3"]);
    assert_eq!(short(&bench.step(ended(4), 31 * S)), ["probe 4"]);
    assert_eq!(short(&bench.step(healthy(4), 31 * S)), ["renewed after 0"]);
    assert_eq!(short(&bench.step(renew(4), 32 * S)), ["not renewed"], "three are the budget");
}

#[test]
fn a_planned_restart_that_leads_to_nothing_is_an_outage_from_its_death_on() {
    let refused = || Input::RenewalEnded { result: Err("no".to_owned()) };
    let mut bench = Bench::alive(policy());
    bench.step(renew(1), 10 * S);
    assert_eq!(short(&bench.step(refused(), 11 * S)), ["not renewed"], "the old one lives");
    assert_eq!(bench.engine.process(), Some(who(1)));
    assert_eq!(short(&bench.step(renew(1), 12 * S)), ["not renewed"], "once for each");
    // When it does end after all, by our word, nobody may take that for a stop.
    let stopped = Intent::Certain("stopped by defib".to_owned());
    let late = Input::Died { process: who(1), at_ns: 13 * S, intent: stopped };
    assert_eq!(short(&bench.step(late, 13 * S)), ["open", "ask"]);

    let mut bench = Bench::alive(policy());
    bench.step(renew(1), 10 * S);
    bench.step(died(1, 11 * S), 11 * S);
    let actions = bench.step(refused(), 12 * S);
    assert_eq!(short(&actions), ["not renewed", "open", "ask"]);
    let asked = Action::Ask { question: bench.engine.question, died_ns: 11 * S, ours: true };
    assert_eq!((&actions[1], &actions[2]), (&Action::Open { at_ns: 11 * S }, &asked));

    for sick in [died(2, 14 * S), Input::Probed { process: who(2), result: Err("sick".to_owned()) }] {
        let mut bench = Bench::alive(policy());
        bench.step(renew(1), 10 * S);
        bench.step(died(1, 11 * S), 11 * S);
        bench.step(Input::RenewalEnded { result: Ok(who(2)) }, 12 * S);
        let actions = bench.step(sick, 14 * S);
        assert_eq!(short(&actions)[..2], ["not renewed", "open"]);
        assert_eq!(actions[1], Action::Open { at_ns: 11 * S });
    }
}

#[test]
fn an_agent_that_follows_one_that_was_killed_in_a_planned_restart_finds_the_death() {
    let mut bench = Bench::alive(policy());
    bench.step(renew(1), 10 * S);
    bench.step(died(1, 11 * S), 11 * S);
    let mut next = Bench::new(policy());
    next.engine.remember(bench.engine.memory(), 20 * S);
    assert_eq!(next.engine.process(), Some(who(1)), "believed to live, so it is looked for");
    let intent = Intent::Likely("it ended while no agent was watching".to_owned());
    let actions = next.step(Input::Died { process: who(1), at_ns: 20 * S, intent }, 20 * S);
    assert_eq!(short(&actions), ["open", "ask"]);
    assert!(matches!(actions[1], Action::Ask { ours: true, .. }));
    assert_eq!(short(&next.plan(ended_well(), 20 * S)), ["grace until 22"], "no stop: it is started");
}

#[test]
fn without_a_grace_the_first_answer_is_enough() {
    let mut bench = Bench::alive(Policy { grace: Duration::ZERO, ..policy() });
    bench.step(died(1, S), S);
    assert_eq!(short(&bench.plan(gives_up(), S)), ["restart 1"]);
}

#[test]
fn a_supervisor_that_is_at_it_gets_half_as_much_again_as_it_needs_and_is_never_overtaken() {
    let mut bench = Bench::alive(Policy { grace: Duration::ZERO, ..policy() });
    bench.step(died(1, S), S);
    let at_it = || Plan::Restarts { within: Duration::from_secs(10), why: "auto-restart".to_owned() };
    assert_eq!(short(&bench.plan(at_it(), S)), ["supervisor until 16"]);
    for _ in 0..10 {
        assert_eq!(bench.due(at_it()).1, [], "said once");
    }
    let (at, actions) = bench.due(Plan::Alive(who(2)));
    assert_eq!(short(&actions), ["not: respawned", "Some(1) Respawned", "probe 2"]);
    let healthy = Input::Probed { process: who(2), result: Ok(()) };
    assert_eq!(short(&bench.step(healthy, at)), [format!("close after {} Respawned", (at - S) / S)]);
}

#[test]
fn a_supervisor_that_does_not_know_of_the_death_yet_is_asked_again_soon() {
    let mut bench = Bench::alive(Policy { grace: Duration::ZERO, ..policy() });
    bench.step(died(1, S), S);
    bench.plan(Plan::Alive(who(1)), S);
    assert_eq!(bench.engine.deadline(), Some(S + BUSY_MIN_NS));
    assert_eq!(short(&bench.due(gives_up()).1), ["restart 1"]);
}

#[test]
fn a_respawn_that_is_heard_of_before_the_death_is_left_alone() {
    let mut bench = Bench::alive(policy());
    assert_eq!(bench.step(Input::Alive(who(2)), S), []);
    let actions = bench.step(died(1, S), S);
    assert_eq!(short(&actions), ["open", "not: respawned", "Some(1) Respawned", "probe 2"]);
    assert_eq!((bench.engine.process(), bench.engine.deadline()), (Some(who(2)), None));
}

#[test]
fn a_newer_process_that_has_died_too_is_no_respawn() {
    let mut bench = Bench::alive(policy());
    bench.step(Input::Alive(who(2)), S);
    assert_eq!(bench.step(died(2, S), S), []);
    assert_eq!(short(&bench.step(died(1, S), S)), ["open", "ask"]);
}

#[test]
fn the_death_of_an_earlier_incarnation_ends_nothing() {
    let mut bench = Bench::new(policy());
    bench.step(Input::Alive(who(2)), 0);
    assert_eq!(bench.step(died(1, S), S), []);
    assert_eq!(bench.engine.process(), Some(who(2)));
}

#[test]
fn late_word_changes_nothing() {
    let mut bench = Bench::alive(policy());
    bench.step(died(1, S), S);
    assert_eq!(bench.step(Input::Alive(who(1)), S), [], "of a dead incarnation's life");
    let question = bench.engine.question;
    bench.plan(gives_up(), S);
    bench.due(gives_up());
    let late = Input::Planned { question, plan: Ok(Plan::Intended { why: String::new() }), exhausted: None };
    assert_eq!(bench.step(late, 4 * S), [], "of an earlier question");
    let late = Input::Started { attempt: 7, result: Err("no".to_owned()) };
    assert_eq!(bench.step(late, 4 * S), [], "of another try");
    bench.started(2, 4 * S);
    assert_eq!(bench.step(Input::Probed { process: who(1), result: Ok(()) }, 4 * S), [], "of another's health");
}

#[test]
fn what_was_meant_is_no_outage() {
    let mut bench = Bench::alive(policy());
    let stop = Input::Died { process: who(1), at_ns: S, intent: Intent::Certain("systemctl stop".to_owned()) };
    assert_eq!(short(&bench.step(stop, S)), ["not: intended_stop", "Some(1) Intended"]);
    assert_eq!(bench.engine.deadline(), None);
    assert_eq!(bench.step(Input::Alive(who(2)), 9 * S), [], "and neither is its start");

    // The supervisor knows of an intention that the death did not show.
    bench.step(died(2, 10 * S), 10 * S);
    let actions = bench.plan(Plan::Intended { why: "a stop job".to_owned() }, 11 * S);
    assert_eq!(short(&actions), ["not: intended_stop", "Some(2) Intended", "close after 1 Intended"]);
}

#[test]
fn what_was_likely_meant_is_left_down_unless_its_supervisor_knows_that_it_failed() {
    let likely = |at_ns| Input::Died { process: who(1), at_ns, intent: Intent::Likely("a stop".to_owned()) };
    let mut bench = Bench::alive(policy());
    assert_eq!(short(&bench.step(likely(S), S)), ["open", "ask"]);
    // It is remembered over the agent's own end.
    let mut next = Bench::alive(policy());
    next.engine.remember(bench.engine.memory(), S);
    next.step(Input::Tick, S);
    assert_eq!(
        short(&next.plan(ended_well(), 2 * S)),
        ["not: intended_stop", "Some(1) Intended", "close after 1 Intended"]
    );

    let actions = bench.plan(gives_up(), 9 * S);
    assert!(short(&actions).iter().any(|action| action.starts_with("restart")), "{actions:?}");
    // What nobody seems to have meant is an outage, also when it ended well.
    let mut bench = Bench::alive(policy());
    bench.step(died(1, S), S);
    let actions = bench.plan(ended_well(), 9 * S);
    assert!(short(&actions).iter().any(|action| action.starts_with("restart")), "{actions:?}");
}

#[test]
fn a_record_that_comes_after_the_death_was_noticed_still_tells_whether_it_was_meant() {
    let with = |intent| Input::Died { process: who(1), at_ns: S, intent };
    let noticed = || {
        let mut bench = Bench::alive(policy());
        bench.step(with(Intent::Likely("nothing tells".to_owned())), S);
        bench
    };
    let left_down = ["not: intended_stop", "Some(1) Intended", "close after 1 Intended"];
    // In the middle of a question, and in the grace after it.
    let mut bench = noticed();
    assert_eq!(short(&bench.step(with(Intent::Certain("a stop".to_owned())), 2 * S)), left_down);
    assert_eq!(bench.plan(gives_up(), 2 * S), [], "nothing is asked any more");
    let mut bench = noticed();
    assert_eq!(short(&bench.plan(gives_up(), S)), ["grace until 3"]);
    assert_eq!(short(&bench.step(with(Intent::Certain("a stop".to_owned())), 2 * S)), left_down);
    assert_eq!(bench.engine.deadline(), None);
    // It was not meant: ending well is no excuse.
    let mut bench = noticed();
    assert_eq!(bench.step(with(Intent::None), S), []);
    assert_eq!(short(&bench.plan(ended_well(), S)), ["grace until 3"]);
    assert_eq!(short(&bench.due(ended_well()).1), ["restart 1"]);
}

#[test]
fn what_holds_a_restart_is_looked_at_until_it_is_gone() {
    let mut bench = Bench::alive(policy());
    bench.step(died(1, S), S);
    let masked = || Plan::Held { why: "masked".to_owned() };
    assert_eq!(short(&bench.plan(masked(), S)), ["not: held", "held until 6"]);
    assert_eq!(bench.due(masked()).1, []);
    assert_eq!(short(&bench.due(gives_up()).1), ["restart 1"]);
}

#[test]
fn a_host_without_memory_gets_no_more_processes() {
    let mut bench = Bench::alive(Policy { grace: Duration::ZERO, ..policy() });
    bench.step(died(1, S), S);
    let actions = bench.answer(Ok(gives_up()), Some("90 % of the time"), S);
    assert_eq!(short(&actions), ["not: host_memory", "host memory until 6"]);
    assert_eq!(short(&bench.due(gives_up()).1), ["restart 1"]);
}

#[test]
fn a_pause_holds_restarts_until_its_end_or_its_recall() {
    let mut bench = Bench::alive(Policy { grace: Duration::ZERO, ..policy() });
    bench.step(Input::Pause { until_ns: 100 * S }, 0);
    bench.step(died(1, S), S);
    let actions = bench.plan(gives_up(), S);
    assert_eq!(short(&actions), ["not: maintenance", "maintenance until 100"]);
    let mut recalled = Bench { engine: bench.engine.clone(), host: host() };
    recalled.step(Input::Resume, 9 * S);
    for (bench, at) in [(&mut bench, 100 * S), (&mut recalled, 9 * S)] {
        let (due, actions) = bench.due(gives_up());
        assert_eq!((due, short(&actions)), (at, vec!["restart 1".to_owned()]));
    }
}

#[test]
fn a_supervisor_that_does_not_answer_is_asked_less_and_less_often() {
    let mut bench = Bench::alive(policy());
    bench.step(died(1, S), S);
    let actions = bench.answer(Err("no bus".to_owned()), None, S);
    assert_eq!(short(&actions), ["not: supervisor_unreachable", "supervisor unreachable until 2"]);
    bench.step(Input::Tick, 2 * S);
    let silent = bench.engine.deadline().expect("a deadline for the answer");
    assert_eq!(bench.step(Input::Tick, silent), [], "said once");
    assert_eq!(bench.engine.deadline(), Some(silent + 2 * S));
    bench.step(Input::Tick, silent + 2 * S);
    assert_eq!(short(&bench.plan(gives_up(), silent + 2 * S)), ["restart 1"]);
}

#[test]
fn modes_and_settings_that_restart_nothing_say_so() {
    for (change, reason) in [
        (Policy { mode: Mode::Observe, ..policy() }, "not: observe"),
        (Policy { restart: false, ..policy() }, "not: not_configured"),
    ] {
        let mut bench = Bench::alive(change);
        assert_eq!(short(&bench.step(died(1, S), S)), ["open", reason, "Some(1) LeftAlone"]);
        assert_eq!(bench.engine.deadline(), None);
        assert_eq!(short(&bench.step(Input::Alive(who(2)), 2 * S)), ["not: respawned", "probe 2"]);
    }
    let mut bench = Bench::alive(Policy { mode: Mode::DryRun, grace: Duration::ZERO, ..policy() });
    bench.step(died(1, S), S);
    assert_eq!(short(&bench.plan(gives_up(), S)), ["not: dry_run", "Some(1) LeftAlone"]);
}

#[test]
fn failed_tries_wait_longer_each_time_and_the_circuit_opens_for_good_but_not_for_ever() {
    let mut bench = Bench::new(policy());
    bench.step(Input::Missing, 1000 * S);
    let mut actions = bench.plan(gives_up(), 1000 * S);
    let mut seen = Vec::new();
    for _ in 0..8 {
        seen.extend(short(&actions));
        if matches!(actions.last(), Some(Action::Restart { .. })) {
            let now = 1000 * S + seen.len() as u64;
            let now = bench.engine.deadline().map_or(now, |deadline| deadline - START_TIMEOUT_NS);
            let attempt = bench.engine.attempts;
            actions = bench.step(Input::Started { attempt, result: Err("no".to_owned()) }, now);
        } else {
            (_, actions) = bench.due(gives_up());
        }
    }
    assert_eq!(
        seen,
        [
            "restart 1",
            "failed",
            "back-off until 1002",
            "restart 2",
            "failed",
            "back-off until 1004",
            "restart 3",
            "failed",
            "back-off until 1008",
            "not: service_budget",
            "circuit open until 1600",
            "restart 4",
        ]
    );
}

#[test]
fn an_unhealthy_process_that_lives_is_not_ours_to_kill() {
    let mut bench = Bench::alive(Policy { grace: Duration::ZERO, ..policy() });
    bench.step(died(1, S), S);
    bench.plan(gives_up(), S);
    bench.started(2, S);
    let sick = Input::Probed { process: who(2), result: Err("HTTP 500".to_owned()) };
    assert_eq!(short(&bench.step(sick, 60 * S)), ["failed", "probe 2"]);
    assert_eq!(short(&bench.step(died(2, 61 * S), 61 * S)), ["failed", "ask"], "the same outage");
}

#[test]
fn what_an_earlier_agent_knew_is_gone_on_with() {
    // In the middle of a restart.
    let mut bench = Bench::alive(Policy { grace: Duration::ZERO, ..policy() });
    bench.step(died(1, S), S);
    bench.plan(gives_up(), S);
    let memory = bench.engine.memory();
    assert!(memory.in_flight);
    let restored = || {
        let mut bench = Bench::new(policy());
        bench.engine.remember(memory.clone(), 5 * S);
        bench
    };
    let mut succeeded = restored();
    assert_eq!(short(&succeeded.step(Input::Alive(who(2)), 5 * S)), ["Some(1) Restarted", "probe 2"]);
    let healthy = Input::Probed { process: who(2), result: Ok(()) };
    assert_eq!(short(&succeeded.step(healthy, 6 * S)), ["close after 5 Restarted"]);
    let mut lost = restored();
    let (_, actions) = lost.due(gives_up());
    assert_eq!(short(&actions), ["restart 2"], "the first one is not forgotten");
    assert_eq!(lost.engine.memory().spent_ns.len(), 2, "and neither is the budget");

    // A living service that died meanwhile.
    let mut bench = Bench::new(policy());
    bench.engine.remember(Memory { process: Some(who(1)), ..Memory::default() }, 5 * S);
    assert_eq!(short(&bench.step(died(1, 4 * S), 5 * S)), ["open", "ask"]);
    // One that was stopped, and stays so.
    let mut bench = Bench::new(policy());
    bench.engine.remember(Memory { stopped: true, ..Memory::default() }, 5 * S);
    assert_eq!(bench.step(Input::Missing, 5 * S), []);
}

fn intent() -> impl Strategy<Value = Intent> {
    prop_oneof![Just(Intent::None), Just(Intent::Likely(String::new())), Just(Intent::Certain(String::new()))]
}

fn plan() -> impl Strategy<Value = Result<Plan, String>> {
    prop_oneof![
        4 => Just(Ok(gives_up())),
        2 => Just(Ok(ended_well())),
        2 => (0u64..20).prop_map(|s| Ok(Plan::Restarts { within: Duration::from_secs(s), why: String::new() })),
        1 => (1u32..6).prop_map(|tgid| Ok(Plan::Alive(who(tgid)))),
        1 => Just(Ok(Plan::Held { why: String::new() })),
        1 => Just(Ok(Plan::Intended { why: String::new() })),
        1 => Just(Err("no".to_owned())),
    ]
}

/// Inputs with small numbers, so that many fit. Numbers of questions and tries count back from the last one.
#[derive(Clone, Debug)]
enum Word {
    Plain(Input),
    Died(u32, Intent),
    Planned(u32, Result<Plan, String>, bool),
    Started(u32, Result<u32, ()>),
    Pause(u64),
    Agent,
}

fn word() -> impl Strategy<Value = Word> {
    prop_oneof![
        2 => (1u32..6).prop_map(|tgid| Word::Plain(Input::Alive(who(tgid)))),
        3 => (1u32..6, intent()).prop_map(|(tgid, intent)| Word::Died(tgid, intent)),
        1 => Just(Word::Plain(Input::Missing)),
        8 => (0u32..2, plan(), prop::bool::weighted(0.1)).prop_map(|(back, plan, no)| Word::Planned(back, plan, no)),
        4 => (0u32..2, 1u32..6).prop_map(|(back, tgid)| Word::Started(back, Ok(tgid))),
        2 => (0u32..2).prop_map(|back| Word::Started(back, Err(()))),
        2 => (1u32..6).prop_map(|tgid| Word::Plain(Input::Probed { process: who(tgid), result: Ok(()) })),
        1 => (1u32..6).prop_map(|tgid| Word::Plain(Input::Probed { process: who(tgid), result: Err(String::new()) })),
        2 => (1u32..6).prop_map(|tgid| Word::Plain(renew(tgid))),
        2 => (1u32..6).prop_map(|tgid| Word::Plain(Input::RenewalEnded { result: Ok(who(tgid)) })),
        1 => Just(Word::Plain(Input::RenewalEnded { result: Err(String::new()) })),
        1 => (0u64..60).prop_map(Word::Pause),
        1 => Just(Word::Plain(Input::Resume)),
        1 => Just(Word::Agent),
        8 => Just(Word::Plain(Input::Tick)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_the_promises_hold(steps in prop::collection::vec((word(), 0u64..5 * S), 1..300)) {
        let (mut engine, mut host) = (Engine::new(policy(), 1), host());
        let (mut replay, mut replay_host) = (Engine::new(policy(), 1), self::host());
        let mut now = 1000 * S;
        let mut restarts: Vec<u64> = Vec::new();
        let (mut open, mut paused_until, mut pending) = (false, 0, 0i32);
        for (word, pause) in steps {
            now += pause;
            let mut allowed = false;
            let input = match word {
                Word::Plain(input) => input,
                Word::Died(tgid, intent) => Input::Died { process: who(tgid), at_ns: now, intent },
                Word::Planned(back, plan, no) => {
                    let ended_well = plan == Ok(ended_well()) && engine.likely.is_none();
                    allowed = (plan == Ok(gives_up()) || ended_well) && back == 0 && !no;
                    let question = engine.question.wrapping_sub(back);
                    Input::Planned { question, plan, exhausted: no.then(|| "no".to_owned()) }
                }
                Word::Started(back, result) => Input::Started {
                    attempt: engine.attempts.wrapping_sub(back),
                    result: result.map(who).map_err(|()| "no".to_owned()),
                },
                Word::Pause(seconds) => {
                    paused_until = now + seconds * S;
                    Input::Pause { until_ns: paused_until }
                }
                Word::Agent => {
                    // Killed and started again: what it kept is all that it knows.
                    for engine in [&mut engine, &mut replay] {
                        let (memory, question) = (engine.memory(), engine.question);
                        *engine = Engine::new(policy(), 1);
                        engine.remember(memory, now);
                        engine.question = question;
                    }
                    continue;
                }
            };
            if input == Input::Resume {
                paused_until = 0;
            }
            let in_flight = matches!(engine.state, State::Restarting { .. } | State::Renewing { .. });
            let (was_open, renewed) = (open, engine.renewed);
            let before = engine.pending;
            let actions = engine.step(input.clone(), &mut host, now);
            prop_assert_eq!(&actions, &replay.step(input, &mut replay_host, now), "replay differs");
            let concluded = actions.iter().filter(|action| matches!(action, Action::Conclude { .. })).count() as i32;
            if engine.pending.is_some() && engine.pending != before || concluded > 0 && before.is_none() {
                pending += 1;
            }
            pending -= concluded;
            prop_assert!((0..=1).contains(&pending), "an outcome for each death: {pending}");
            prop_assert_eq!(pending == 1, engine.pending.is_some(), "and none is forgotten");
            for action in actions {
                match action {
                    Action::Restart { .. } => {
                        prop_assert!(allowed, "only when its supervisor has given up");
                        prop_assert!(!in_flight, "two restarts in flight");
                        prop_assert!(engine.absent || engine.died_ns + 2 * S <= now, "inside the grace");
                        prop_assert!(now >= paused_until, "during maintenance");
                        restarts.push(now);
                        let recent = restarts.iter().filter(|&&at| at + 600 * S > now).count();
                        prop_assert!(recent <= 3, "over budget");
                    }
                    Action::Renew { process, .. } => {
                        prop_assert!(!in_flight, "two restarts in flight");
                        prop_assert!(!was_open, "in an outage");
                        prop_assert!(now >= paused_until, "during maintenance");
                        prop_assert!(renewed != Some(process), "twice for one incarnation");
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
                    Action::Suppress { reason, .. } => {
                        prop_assert!(Action::SUPPRESSED.contains(&reason), "{reason} has no series");
                    }
                    _ => {}
                }
            }
            let idle = matches!(engine.state, State::Running(_) | State::Stopped);
            prop_assert!(!idle || !open, "an outage is forgotten");
            let waits = matches!(
                engine.state,
                State::Asking { .. } | State::Waiting { .. } | State::Restarting { .. } | State::Renewing { .. }
            );
            prop_assert_eq!(engine.deadline().is_some(), waits, "whoever waits has a deadline");
        }
    }
}

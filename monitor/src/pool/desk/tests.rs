use super::*;
use proptest::prelude::*;

const S: u64 = 1_000_000_000;

/// A HAProxy as far as commands and `show servers state` go; in the order of its own columns, and with some that nobody
/// here needs.
#[derive(Clone, Debug)]
struct Fake {
    servers: BTreeMap<&'static str, Server>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Server {
    op: u32,
    admin: u32,
    weight: u32,
    full: u32,
    health_check: bool,
    agent_check: bool,
    serving: u32,
}

const FRESH: Server =
    Server { op: RUNNING, admin: 0, weight: 100, full: 100, health_check: true, agent_check: true, serving: 2 };

impl Fake {
    fn new(names: &[&'static str]) -> Self {
        Self { servers: names.iter().map(|&name| (name, FRESH)).collect() }
    }

    /// What it answers to lines; what it makes no sense of is a mistake of ours.
    fn say(&mut self, lines: &[String]) -> String {
        let commands = lines.iter().flat_map(|line| line.split(';'));
        commands.map(|command| self.command(command)).collect()
    }

    fn command(&mut self, command: &str) -> String {
        let words: Vec<_> = command.split(' ').collect();
        match words[..] {
            ["show", "servers", "state", backend] => self.show(backend),
            ["show", "stat", backend, "4", "-1"] => {
                let own = self.servers.iter().filter(|(name, _)| name.starts_with(&format!("{backend}/")));
                let lines = own.map(|(name, server)| format!("{},1,9,{},\n", name.replace('/', ","), server.serving));
                format!("# pxname,svname,qcur,qmax,scur,\n{}\n", lines.collect::<String>())
            }
            ["set", "server", name, what, value] => {
                let Some(server) = self.servers.get_mut(name) else { return "No such server.\n\n".to_owned() };
                match (what, value) {
                    ("state", "ready") => server.admin = 0,
                    ("state", "drain") => server.admin = FORCED_DRAIN,
                    ("state", "maint") => server.admin = FORCED_MAINT,
                    ("agent", "up") => server.op = RUNNING,
                    ("health", "down") => server.op = 0,
                    ("weight", percent) => {
                        let percent: u32 = percent.trim_end_matches('%').parse().expect("percent");
                        server.weight = server.full * percent / 100;
                        assert!(server.weight > 0, "drained by its weight");
                    }
                    _ => panic!("{command}"),
                }
                "\n".to_owned()
            }
            _ => panic!("{command}"),
        }
    }

    fn show(&self, backend: &str) -> String {
        let mut text =
            "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight \
                        srv_time_since_last_change srv_check_state srv_agent_state srv_fqdn\n"
                .to_owned();
        for (name, server) in &self.servers {
            let Some((own, short)) = name.split_once('/').filter(|parts| parts.0 == backend) else { continue };
            let Server { op, admin, weight, full, health_check, agent_check, serving: _ } = *server;
            let (health, agent) = (u32::from(health_check) * 6, 16 + u32::from(agent_check) * 6);
            text.push_str(&format!("2 {own} 1 {short} 127.0.0.1 {op} {admin} {weight} {full} 9 {health} {agent} -\n"));
        }
        text + "\n"
    }
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn wishes(all: &[(&str, State)]) -> Wishes {
    weighed(&all.iter().map(|&(text, state)| (text, state, 100)).collect::<Vec<_>>())
}

fn weighed(all: &[(&str, State, u8)]) -> Wishes {
    all.iter().map(|&(text, state, weight)| (name(text), Wish { state, weight })).collect::<BTreeMap<_, _>>().into()
}

/// Says what is to be said; what was said, and what came of it.
fn round(desk: &mut Desk, fake: &mut Fake, wishes: &Wishes, now: u64) -> (Vec<String>, Result<View, String>) {
    let lines = desk.lines(wishes, false, now);
    let replies = fake.say(&lines);
    let said = lines.iter().flat_map(|line| line.split(';')).filter(|command| command.starts_with("set"));
    (said.map(ToOwned::to_owned).collect(), desk.learn(wishes, &replies, false, now))
}

const WEB: &str = "be_web/web1";

#[test]
fn connections_are_counted_once_nothing_new_comes() {
    let (mut desk, mut fake) = (Desk::default(), Fake::new(&[WEB, "be_web/web2"]));
    let (web, drain) = (name(WEB), wishes(&[(WEB, State::Draining), ("be_web/web2", State::In)]));
    let view = round(&mut desk, &mut fake, &wishes(&[(WEB, State::In)]), 0).1.expect("fine");
    assert_eq!(view.connections.len(), 0, "nobody waits for them");
    let view = round(&mut desk, &mut fake, &drain, S).1.expect("fine");
    // Two in hand, one waiting for it.
    assert_eq!(view.connections, [(web.clone(), 3)].into());
    fake.servers.get_mut(WEB).expect("there").admin = 0;
    let view = desk.learn(&drain, &fake.say(&["show servers state be_web".to_owned()]), false, 2 * S);
    assert!(view.is_err(), "it is not as wished");
    let text = "# pxname,svname,qcur,qmax,scur,\nbe_web,web1,,,0,\nbe_web,web2,x,0,x,\n\n";
    assert_eq!(connections(text), [(web, 0)].into());
}

#[test]
fn out_at_once_and_back_as_it_was() {
    let (mut desk, mut fake) = (Desk::default(), Fake::new(&[WEB, "be_web/web2"]));
    let (said, view) = round(&mut desk, &mut fake, &wishes(&[(WEB, State::In)]), 0);
    assert_eq!((said.len(), view.expect("fine").others[&name(WEB)]), (0, 1), "nothing to say");

    let out = wishes(&[(WEB, State::Out)]);
    assert_eq!(round(&mut desk, &mut fake, &out, S).0, ["set server be_web/web1 state maint"]);
    assert_eq!(round(&mut desk, &mut fake, &out, 2 * S).0, [""; 0], "once");
    assert!(!desk.claims().is_empty());
    let (said, view) = round(&mut desk, &mut fake, &wishes(&[(WEB, State::In)]), 3 * S);
    assert_eq!(said, ["set server be_web/web1 agent up", "set server be_web/web1 state ready"]);
    assert!(view.is_ok() && desk.claims().is_empty() && fake.servers[WEB] == FRESH);
}

#[test]
fn what_an_operator_has_set_stays_set() {
    for (admin, word) in [(FORCED_MAINT, "maint"), (FORCED_DRAIN, "drain")] {
        let (mut desk, mut fake) = (Desk::default(), Fake::new(&[WEB]));
        fake.servers.insert(WEB, Server { admin, ..FRESH });
        let mut held = false;
        for second in 0..12 {
            let (said, view) = round(&mut desk, &mut fake, &wishes(&[(WEB, State::In)]), second * S);
            assert!(said.is_empty());
            held = view.expect("fine").held.contains(&name(WEB));
        }
        assert!(held, "agent checks must not undo {word}");
        for (second, state) in [(20, State::Draining), (21, State::Out), (22, State::In)] {
            round(&mut desk, &mut fake, &wishes(&[(WEB, state)]), second * S).1.expect("fine");
            assert!(state != State::Draining || fake.servers[WEB].admin == admin, "never milder");
        }
        assert_eq!((fake.servers[WEB].admin, desk.claims().is_empty()), (admin, true), "{word}");
    }
}

#[test]
fn a_drain_that_our_agent_check_was_faster_with_is_ours() {
    let (mut desk, mut fake) = (Desk::default(), Fake::new(&[WEB]));
    round(&mut desk, &mut fake, &wishes(&[(WEB, State::In)]), 0).1.expect("fine");
    fake.servers.insert(WEB, Server { admin: FORCED_DRAIN, ..FRESH });
    round(&mut desk, &mut fake, &wishes(&[(WEB, State::In)]), S / 10).1.expect("fine");
    for (at, state) in [(2, State::Draining), (3, State::In)] {
        round(&mut desk, &mut fake, &wishes(&[(WEB, state)]), at * S).1.expect("fine");
    }
    assert_eq!(fake.servers[WEB].admin, 0);
}

#[test]
fn a_restart_of_haproxy_and_of_the_agent_forget_nothing() {
    let (mut desk, mut fake) = (Desk::default(), Fake::new(&[WEB]));
    let out = wishes(&[(WEB, State::Out)]);
    round(&mut desk, &mut fake, &out, 0).1.expect("fine");
    fake = Fake::new(&[WEB]);
    round(&mut desk, &mut fake, &out, S).1.expect_err("it was found to be ready");
    assert_eq!(round(&mut desk, &mut fake, &out, 2 * S).0, ["set server be_web/web1 state maint"]);

    let kept = serde_json::to_string(desk.claims()).expect("JSON");
    let mut desk = Desk::new(serde_json::from_str(&kept).expect("the same"));
    let (said, view) = round(&mut desk, &mut fake, &wishes(&[(WEB, State::In)]), 3 * S);
    assert!(said.contains(&"set server be_web/web1 state ready".to_owned()) && view.is_ok(), "{said:?}");
    assert!(desk.claims().is_empty());
}

#[test]
fn half_of_a_weight_of_one_would_be_none() {
    let (mut desk, mut fake) = (Desk::default(), Fake::new(&[WEB, "be_web/web2"]));
    fake.servers.insert(WEB, Server { weight: 1, full: 1, ..FRESH });
    let half = weighed(&[(WEB, State::In, 50), ("be_web/web2", State::In, 50)]);
    round(&mut desk, &mut fake, &half, 0).1.expect_err("nothing was known of it");
    let (said, view) = round(&mut desk, &mut fake, &half, S);
    assert_eq!(said, ["set server be_web/web2 weight 50%"]);
    assert_eq!(view.expect("fine").indivisible, [name(WEB)].into());
    let all = wishes(&[(WEB, State::In), ("be_web/web2", State::In)]);
    assert_eq!(round(&mut desk, &mut fake, &all, 2 * S).0, ["set server be_web/web2 weight 100%"]);
    assert!(desk.claims().is_empty() && fake.servers["be_web/web2"] == FRESH);
}

#[test]
fn whoever_leaves_hands_the_dead_over_to_health_checks() {
    let (mut desk, mut fake) = (Desk::default(), Fake::new(&[WEB, "be_web/web2"]));
    fake.servers.insert("be_web/web2", Server { health_check: false, ..FRESH });
    let out = wishes(&[(WEB, State::Out), ("be_web/web2", State::Out)]);
    round(&mut desk, &mut fake, &out, 0).1.expect("fine");
    let lines = desk.lines(&out, true, S);
    let replies = fake.say(&lines);
    desk.learn(&out, &replies, true, S).expect("fine");
    assert_eq!(fake.servers[WEB], Server { op: 0, ..FRESH }, "its own checks bring it back");
    assert_eq!(fake.servers["be_web/web2"].admin, FORCED_MAINT, "nobody else would notice that it is dead");
    assert_eq!(desk.claims().names().collect::<Vec<_>>(), [name("be_web/web2")]);
}

#[test]
fn answers_that_break_off_or_make_no_sense_are_errors_that_say_so() {
    let out = wishes(&[(WEB, State::Out)]);
    let whole = Fake::new(&[WEB]).show("be_web");
    let cut = &whole[..whole.len() - 5];
    for (reply, wants) in [
        (cut, "breaks off"),
        ("Can't find backend.\n\n", "no server be_web/web1"),
        ("", "no server be_web/web1"),
        ("1\n# be_name srv_name\n\n", "srv_op_state"),
        (&whole.replace("127.0.0.1 2", "127.0.0.1 two"), "makes no sense"),
        (&whole, "shall be maint"),
    ] {
        let mut desk = Desk::default();
        desk.lines(&out, false, 0);
        let error = desk.learn(&out, reply, false, 0).expect_err(wants);
        assert!(error.contains(wants), "{error}");
    }
}

#[test]
fn lines_are_short_enough_for_haproxy() {
    let all: Vec<_> = (0..1000).map(|number| (format!("be_web/web{number}"), State::Out)).collect();
    let all: Vec<_> = all.iter().map(|(name, state)| (name.as_str(), *state)).collect();
    let lines = Desk::default().lines(&wishes(&all), false, 0);
    assert!(lines.len() > 1 && lines.iter().all(|line| line.len() <= LINE_MAX));
    assert_eq!(lines.iter().flat_map(|line| line.split(';')).count(), 1001);
}

/// What can happen to a HAProxy and to what is wished.
#[derive(Clone, Debug)]
enum Word {
    Wish(usize, State, u8),
    /// It does what it is told, and its answer breaks off there.
    Broken(usize),
    Restarted,
    AgentRestarted,
}

fn word() -> impl Strategy<Value = Word> {
    let state = prop_oneof![Just(State::In), Just(State::Draining), Just(State::Out)];
    prop_oneof![
        4 => (0usize..3, state, prop_oneof![Just(50u8), Just(100)])
            .prop_map(|(server, state, weight)| Word::Wish(server, state, weight)),
        1 => (0usize..200).prop_map(Word::Broken),
        1 => Just(Word::Restarted),
        1 => Just(Word::AgentRestarted),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_it_ends_as_wished_and_all_is_undone(steps in prop::collection::vec(word(), 1..60)) {
        const NAMES: [&str; 3] = [WEB, "be_web/web2", "be_api/api1"];
        let (mut desk, mut fake) = (Desk::default(), Fake::new(&NAMES));
        let mut wished = [(State::In, 100); NAMES.len()];
        let mut now = 0;
        let all = |wished: &[(State, u8); NAMES.len()]| {
            weighed(&NAMES.iter().zip(wished).map(|(&name, &(state, weight))| (name, state, weight)).collect::<Vec<_>>())
        };
        for step in steps {
            now += S;
            match step {
                Word::Wish(server, state, weight) => {
                    // What does not serve has no weight to speak of.
                    wished[server] = (state, if state == State::In { weight } else { 100 });
                }
                Word::Restarted => fake = Fake::new(&NAMES),
                Word::AgentRestarted => desk = Desk::new(desk.claims().clone()),
                Word::Broken(at) => {
                    let lines = desk.lines(&all(&wished), false, now);
                    let replies = fake.say(&lines);
                    prop_assert!(desk.learn(&all(&wished), &replies[..at.min(replies.len() - 1)], false, now).is_err());
                    continue;
                }
            }
            round(&mut desk, &mut fake, &all(&wished), now).1.ok();
        }
        for _ in 0..2 {
            now += S;
            round(&mut desk, &mut fake, &all(&wished), now).1.ok();
        }
        for (name, (state, weight)) in NAMES.iter().zip(wished) {
            let admin = match state { State::In => 0, State::Draining => FORCED_DRAIN, State::Out => FORCED_MAINT };
            prop_assert_eq!((fake.servers[name].admin, fake.servers[name].weight), (admin, u32::from(weight)), "{}", name);
        }
        wished = [(State::In, 100); NAMES.len()];
        for _ in 0..2 {
            now += S;
            round(&mut desk, &mut fake, &all(&wished), now).1.ok();
        }
        prop_assert!(desk.claims().is_empty());
        prop_assert!(NAMES.iter().all(|name| fake.servers[name] == FRESH));
        prop_assert!(round(&mut desk, &mut fake, &all(&wished), now + S).0.is_empty(), "nothing more to say");
    }
}

#[test]
fn counts_that_no_number_holds_are_as_many_as_it_holds() {
    let text = "# pxname,svname,qcur,scur,\nbe_web,web1,18446744073709551615,3,\n\n";
    assert_eq!(connections(text).into_values().collect::<Vec<_>>(), [u64::MAX]);
}

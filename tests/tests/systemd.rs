//! Deaths in units of a real systemd: the unit's name, main process told from worker. Runs where systemd is PID 1, as in
//! `cargo xtask vm --kernel 6.1 --test systemd`.

use std::{os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command, thread::sleep, time::Duration};

use serde_json::Value;

use tests::{
    PATIENCE,
    defib::{Agent, Watch},
    eventually, live,
    unit::{self, Unit, systemctl},
    victim::binary,
};

fn can_run(name: &str) -> bool {
    unit::can_run(name, "systemd")
}

fn start(unit: &str, properties: &[&str], words: &[&str]) {
    let mut command = Command::new("systemd-run");
    command.args(["--unit", unit, "--collect", "-q"]);
    for property in properties {
        command.args(["-p", property]);
    }
    let status = command.arg(binary("victim")).args(words).status().expect("systemd-run starts");
    assert!(status.success(), "systemd-run {unit}");
}

const LIMIT: [&str; 2] = ["MemoryMax=40M", "MemorySwapMax=0"];

#[test]
fn deaths_in_units_carry_the_unit_s_name_and_role() {
    if !can_run("deaths_in_units_carry_the_unit_s_name_and_role") {
        return;
    }
    live::let_the_kernel_log_recover();
    let mut watch = Watch::start(&[]);
    start("victim-main", &LIMIT, &["leak"]);
    let death = watch.find(PATIENCE, |line| line["service"] == "victim-main.service").expect("a death in the unit");
    assert_eq!((&death["cause"]["kind"], &death["role"]), (&"oom_kill".into(), &"main".into()), "{death}");
    assert_eq!(death["cgroup"], "/system.slice/victim-main.service");
    assert_eq!(death["cause"]["limit_owner"], "/system.slice/victim-main.service");

    start("victim-worker", &["MemoryMax=40M", "MemorySwapMax=0", "OOMPolicy=continue"], &["leak-in-child"]);
    let death = watch.find(PATIENCE, |line| line["service"] == "victim-worker.service").expect("a death in the unit");
    assert_eq!((&death["cause"]["kind"], &death["role"]), (&"oom_kill".into(), &"worker".into()), "{death}");

    start("victim-exit", &[], &["exit", "6"]);
    let death = watch.find(PATIENCE, |line| line["service"] == "victim-exit.service").expect("a death in the unit");
    assert_eq!((&death["cause"]["kind"], &death["cause"]["code"]), (&"exit".into(), &6.into()), "{death}");
}

#[test]
fn a_configured_unit_is_watched_from_its_first_moment() {
    if !can_run("a_configured_unit_is_watched_from_its_first_moment") {
        return;
    }
    live::let_the_kernel_log_recover();
    let agent = Agent::start("[[service]]\nunit = \"watched-*.service\"\n");
    start("watched-1", &[], &["exit", "0"]);
    // A clean exit is reported for watched services only.
    let series = "defib_deaths_total{cause=\"clean_exit\",service=\"watched-1.service\"}";
    eventually("the clean exit of a watched unit", || (agent.metrics().get(series) == Some(1.0)).then_some(()));
    start("watched-2", &LIMIT, &["leak"]);
    // The last thing that the agent does about a death that it only watches.
    let left_alone = "defib_restart_suppressed_total{reason=\"not_configured\",service=\"watched-2.service\"}";
    let oom_kills = "defib_oom_kills_total{scope=\"memcg\",service=\"watched-2.service\"}";
    // A scrape is not atomic: it may contain the second change but not yet the first.
    let metrics = eventually("the OOM kill of a watched unit", || {
        let metrics = agent.metrics();
        (metrics.get(left_alone) == Some(1.0) && metrics.get(oom_kills) == Some(1.0)).then_some(metrics)
    });
    assert_eq!(metrics.get("defib_service_up{service=\"watched-2.service\"}"), Some(0.0));
    start("unwatched-1", &[], &["exit", "0"]);
    start("unwatched-2", &[], &["exit", "3"]);
    let other = "defib_deaths_total{cause=\"exit\",service=\"unwatched-2.service\"}";
    let metrics = eventually("the failure of an unwatched unit", || {
        let metrics = agent.metrics();
        (metrics.get(other) == Some(1.0)).then_some(metrics)
    });
    assert_eq!(metrics.get("defib_deaths_total{cause=\"clean_exit\",service=\"unwatched-1.service\"}"), None);
}

/// An agent that brings back at once what is called `healed-…`.
fn healer() -> Agent {
    Agent::start(
        "[defaults]\nbudget = { per_host = '1000/10m' }\n\
         [[service]]\nunit = 'healed-*.service'\nrestart = true\ngrace = '0s'\nhealth = 'exec:/bin/true'\n",
    )
}

fn up(agent: &Agent, unit: &Unit) {
    let up = format!("defib_service_up{{service=\"{}\"}}", unit.name);
    eventually("the unit to be looked after", || (agent.metrics().get(&up) == Some(1.0)).then_some(()));
}

/// The last incident, once it has ended.
fn ended(agent: &Agent, unit: &Unit) -> Value {
    eventually(&format!("the end of the outage of {}", unit.name), || {
        agent.incidents(&unit.name).pop().filter(|incident| incident["ended"].is_string())
    })
}

/// Shows the moments of an outage in milliseconds from the death, systemd's own among them, for people who run this with
/// `--nocapture`.
fn measured(what: &str, unit: &Unit, incident: &Value) {
    let time = |value: &Value| value.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok()).expect("a time");
    let died = time(&incident["began"]);
    let since_ms = |at: jiff::Timestamp| at.duration_since(died).as_secs_f64() * 1e3;
    let moments = incident["timeline"].as_array().expect("moments");
    let mut at: Vec<_> = moments
        .iter()
        .map(|moment| (since_ms(time(&moment["at"])), moment["what"].as_str().unwrap_or_default().to_owned()))
        .collect();
    // systemd's wall clock, in microseconds: the start began, and the main process was there.
    for property in ["InactiveExitTimestamp", "ExecMainStartTimestamp"] {
        let micros = systemctl(&["show", "--timestamp=us+utc", "-P", property, &unit.name]);
        at.push((since_ms(of_systemd(&micros)), format!("systemd: {property}")));
    }
    at.sort_by(|a, b| a.0.total_cmp(&b.0));
    let at: Vec<_> = at.into_iter().map(|(ms, what)| format!("{ms:.1} {what}")).collect();
    println!("MEASURED {what}: outage of {} ms; {}", incident["outage_ms"], at.join(", "));
}

/// Reads systemd's `Wed 2026-11-25 02:03:04.567890 UTC`.
fn of_systemd(text: &str) -> jiff::Timestamp {
    let words: Vec<_> = text.split(' ').collect();
    let [_, day, time, "UTC"] = words[..] else { panic!("a time of systemd's: {text}") };
    format!("{day}T{time}Z").parse().expect("a time")
}

#[test]
fn units_that_systemd_leaves_dead_are_started_again() {
    if !can_run("units_that_systemd_leaves_dead_are_started_again") {
        return;
    }
    let agent = healer();
    let unit = Unit::start("healed-no", "Restart=no", "", "true", 0);
    up(&agent, &unit);
    let first = unit.main();
    unit.kill();
    let incident = ended(&agent, &unit);
    assert_eq!((&incident["outcome"], &incident["restarts"]), (&"restarted".into(), &1.into()), "{incident}");
    assert!(incident["timeline"].to_string().contains("Restart=no"), "{incident}");
    assert_ne!(unit.main(), first);
    measured("Restart=no, killed", &unit, &incident);

    let victim = binary("victim");
    let leak = format!("exec '{}' leak", victim.display());
    let unit = Unit::start("healed-abort", "Restart=on-abort\nMemoryMax=40M\nMemorySwapMax=0", "", &leak, 1);
    let incident = ended(&agent, &unit);
    assert_eq!(incident["cause"]["kind"], "oom_kill", "{incident}");
    assert_eq!((&incident["outcome"], &incident["restarts"]), (&"restarted".into(), &1.into()), "{incident}");
    assert!(incident["timeline"].to_string().contains("Restart=on-abort"), "{incident}");
    assert_eq!(unit.starts(), 2);
    measured("Restart=on-abort, OOM-killed", &unit, &incident);
    let covered = format!("defib_unit_oom_restart_covered{{service=\"{}\"}}", unit.name);
    assert_eq!(agent.metrics().get(&covered), Some(0.0));

    // What prepares the start, and the process that systemd starts and that forks the daemon, come and go.
    let forks = "{ sleep 1000 & exit 0; }";
    let unit = Unit::start("healed-forking", "Type=forking\nRestart=no\nExecStartPre=/bin/true", "", forks, 1000);
    up(&agent, &unit);
    let first = unit.main();
    assert!(agent.incidents(&unit.name).is_empty(), "a start is no outage");
    unit.kill();
    let incident = ended(&agent, &unit);
    assert_eq!((&incident["outcome"], &incident["restarts"]), (&"restarted".into(), &1.into()), "{incident}");
    assert_ne!(unit.main(), first);

    let limited = "StartLimitBurst=3\nStartLimitIntervalSec=60";
    let unit = Unit::start("healed-limit", "Restart=always\nRestartSec=10ms", limited, "exit 1", 3);
    // The deaths that systemd itself answered may have been outages of their own.
    let ours = |incident: &Value| incident["outcome"] == "restarted" && incident["ended"].is_string();
    let incident = eventually("our restart", || agent.incidents(&unit.name).into_iter().find(ours));
    assert_eq!(incident["restarts"], 1, "{incident}");
    assert!(incident["timeline"].to_string().contains("start limit: 3 starts"), "{incident}");
    assert_eq!(unit.starts(), 4, "three of systemd's, one of ours");
    measured("start limit hit", &unit, &incident);
}

#[test]
fn a_unit_that_fails_before_it_is_ready_is_tried_again() {
    if !can_run("a_unit_that_fails_before_it_is_ready_is_tried_again") {
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let (broken, health) = (place.path().join("broken"), place.path().join("health"));
    std::fs::write(&health, format!("#!/bin/sh\ntest ! -e {}\n", broken.display())).expect("a script");
    std::fs::set_permissions(&health, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    let agent = Agent::start(&format!(
        "[defaults]\nbudget = {{ per_service = '100/10m', per_host = '1000/10m' }}\n\
         [[service]]\nunit = 'healed-*.service'\nrestart = true\ngrace = '0s'\nhealth = 'exec:{}'\n",
        health.display()
    ));
    let readies = format!("{{ test -e {} && exit 1; systemd-notify --ready; }}", broken.display());
    let limit = "StartLimitBurst=3\nStartLimitIntervalSec=60";
    for (name, restart, limit) in
        [("healed-notify", "Restart=no", ""), ("healed-notify-limit", "Restart=on-failure\nRestartSec=10ms", limit)]
    {
        let service = format!("Type=notify\nNotifyAccess=all\n{restart}");
        let unit = Unit::start(name, &service, limit, &readies, 1000);
        unit.main();
        up(&agent, &unit);
        std::fs::write(&broken, "").expect("a fault");
        unit.kill();
        // systemd's own starts under the limit are two.
        eventually("starts that fail", || (unit.starts() >= 5).then_some(()));
        std::fs::remove_file(&broken).expect("mended");
        let incident = ended(&agent, &unit);
        // Under the limit, which our start resets, systemd starts it too.
        assert!(incident["outcome"] == "restarted" || !limit.is_empty(), "{incident}");
        assert_ne!(incident["outcome"], "intended", "{incident}");
        assert_eq!(incident["cause"]["kind"], "killed", "{incident}");
        assert!(incident["restarts"].as_u64() >= Some(1), "{incident}");
        assert_eq!(agent.incidents(&unit.name).len(), 1, "one outage");
    }
}

/// Outages of a unit that nobody wanted. A stop that systemd confirms late, as an emulated one may, is recorded with that end.
fn outages(agent: &Agent, unit: &Unit) -> usize {
    // One that systemd confirmed too late, and ended by a start, is a respawn; emulation makes it late.
    let is_meant = |incident: &Value| {
        incident["outcome"] == "intended"
            || incident["outcome"] == "respawned" && incident["cause"]["kind"] == "stopped"
    };
    agent.incidents(&unit.name).iter().filter(|incident| !is_meant(incident)).count()
}

#[test]
fn what_an_operator_holds_or_stops_stays_down() {
    if !can_run("what_an_operator_holds_or_stops_stays_down") {
        return;
    }
    let agent = healer();
    let unit = Unit::start("healed-masked", "Restart=no", "", "true", 0);
    up(&agent, &unit);
    unit.main();
    systemctl(&["mask", "--runtime", &unit.name]);
    unit.kill();
    let held = format!("defib_restart_suppressed_total{{reason=\"held\",service=\"{}\"}}", unit.name);
    eventually("the decision", || (agent.metrics().get(&held) == Some(1.0)).then_some(()));
    assert_eq!(unit.starts(), 1);
    systemctl(&["unmask", "--runtime", &unit.name]);
    let incident = ended(&agent, &unit);
    assert_eq!((&incident["outcome"], &incident["restarts"]), (&"restarted".into(), &1.into()), "{incident}");
    assert!(incident["timeline"].to_string().contains("masked"), "{incident}");

    let unit = Unit::start("healed-stopped", "Restart=always", "", "true", 0);
    up(&agent, &unit);
    unit.main();
    systemctl(&["stop", &unit.name]);
    let intended = format!("defib_restart_suppressed_total{{reason=\"intended_stop\",service=\"{}\"}}", unit.name);
    eventually("the decision", || (agent.metrics().get(&intended) == Some(1.0)).then_some(()));
    sleep(Duration::from_secs(1));
    assert_eq!((unit.starts(), outages(&agent, &unit)), (1, 0), "no outage");
    // However it is stopped.
    let kills = "Restart=no\nExecStop=/bin/kill -KILL $MAINPID";
    let by_command = Unit::start("healed-command", kills, "", "true", 0);
    up(&agent, &by_command);
    by_command.main();
    systemctl(&["stop", &by_command.name]);
    let intended =
        format!("defib_restart_suppressed_total{{reason=\"intended_stop\",service=\"{}\"}}", by_command.name);
    eventually("the decision", || (agent.metrics().get(&intended) == Some(1.0)).then_some(()));
    assert_eq!(by_command.starts(), 1);
    // An operator's restart is none either.
    systemctl(&["start", &unit.name]);
    up(&agent, &unit);
    systemctl(&["restart", &unit.name]);
    up(&agent, &unit);
    unit.main();
    assert_eq!(outages(&agent, &unit), 0, "no outage");
}

#[test]
fn a_unit_that_will_run_out_of_memory_is_restarted_by_systemd_before_it_does() {
    if !can_run("a_unit_that_will_run_out_of_memory_is_restarted_by_systemd_before_it_does") {
        return;
    }
    // A minute of the forecast is half a second.
    let agent = Agent::start(
        "[forecast]\nsample = '500ms'\n[[service]]\nunit = 'planned-*.service'\nrestart = true\n\
         health = 'exec:/bin/true'\nplanned_restart = { when = '0s', min_uptime = '1s' }\n",
    );
    let leak = format!("exec '{}' leak-slowly 16 2560", binary("victim").display());
    let unit = Unit::start("planned-leak", "Restart=no\nMemoryMax=64M\nMemorySwapMax=0", "", &leak, 1);
    up(&agent, &unit);
    let done = format!("defib_planned_restarts_total{{result=\"ok\",service=\"{}\"}}", unit.name);
    eventually("its planned restart", || (agent.metrics().get(&done) == Some(1.0)).then_some(()));
    unit.main();
    let incident = ended(&agent, &unit);
    assert_eq!((&incident["kind"], &incident["outcome"]), (&"planned_restart".into(), &"renewed".into()), "{incident}");
    assert_eq!((unit.starts(), agent.incidents(&unit.name).len()), (2, 1), "once, and no outage");
    let deaths = format!("defib_deaths_total{{cause=\"stopped\",service=\"{}\"}}", unit.name);
    assert_eq!(agent.metrics().get(&deaths), Some(1.0));
}

#[test]
fn a_unit_that_systemd_restarts_is_left_to_it_a_hundred_times() {
    const DEATHS: usize = 100;
    if !can_run("a_unit_that_systemd_restarts_is_left_to_it_a_hundred_times") {
        return;
    }
    let agent = healer();
    let unit = Unit::start("healed-always", "Restart=always\nRestartSec=50ms", "StartLimitIntervalSec=0", "true", 0);
    up(&agent, &unit);
    for death in 0..DEATHS {
        unit.kill();
        eventually("the next start", || (unit.starts() > death + 1).then_some(()));
    }
    let deaths = |all: &[Value]| all.iter().filter_map(|incident| incident["deaths"].as_u64()).sum::<u64>();
    let all = eventually("the last record", || {
        let all = agent.incidents(&unit.name);
        let is_whole = deaths(&all) >= DEATHS as u64 && all.iter().all(|incident| incident["ended"].is_string());
        is_whole.then_some(all)
    });
    assert_eq!(deaths(&all), DEATHS as u64);
    assert!(all.iter().all(|incident| incident["restarts"] == 0 && incident["outcome"] == "respawned"), "{all:?}");
    assert_eq!(unit.starts(), DEATHS + 1);
    let restarts = format!("defib_restarts_total{{result=\"ok\",service=\"{}\"}}", unit.name);
    assert_eq!(agent.metrics().get(&restarts), Some(0.0));
}

#[test]
fn an_agent_killed_in_an_outage_of_a_unit_is_followed_by_one_that_goes_on() {
    if !can_run("an_agent_killed_in_an_outage_of_a_unit_is_followed_by_one_that_goes_on") {
        return;
    }
    let config = "[[service]]\nunit = 'healed-*.service'\nrestart = true\ngrace = '3s'\nhealth = 'exec:/bin/true'\n";
    let agent = Agent::start(config);
    let unit = Unit::start("healed-twice", "Restart=no", "", "true", 0);
    up(&agent, &unit);
    unit.kill();
    eventually("the outage to be written down", || agent.incidents(&unit.name).pop());
    let state = agent.crash();
    assert_eq!(unit.starts(), 1, "inside the grace");
    let agent = Agent::start_in(state, config);
    let incident = ended(&agent, &unit);
    assert_eq!((&incident["outcome"], &incident["restarts"]), (&"restarted".into(), &1.into()), "{incident}");
    assert_eq!((unit.starts(), agent.incidents(&unit.name).len()), (2, 1));

    // And one that died meanwhile.
    let process = unit.main();
    eventually("it to be written down", || (agent.kept(&unit.name)?["process"]["tgid"] == process).then_some(()));
    let state = agent.crash();
    unit.kill();
    let agent = Agent::start_in(state, config);
    eventually("the second outage to end", || {
        let all = agent.incidents(&unit.name);
        (all.len() == 2 && all[1]["ended"].is_string()).then_some(())
    });
    assert_eq!(unit.starts(), 3);
}

#[test]
fn the_audit_names_units_that_would_stay_dead() {
    if !can_run("the_audit_names_units_that_would_stay_dead") {
        return;
    }
    let dead = Unit::start("audited-no", "Restart=no", "", "true", 0);
    let back = Unit::start("audited-always", "Restart=always", "", "true", 0);
    dead.main();
    back.main();
    let audit = |words: &[&str]| {
        let output = tests::defib::run(&[&["audit"], words].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let findings: Value = serde_json::from_str(&audit(&["--json", "--all"])).expect("JSON");
    let find = |unit: &Unit| {
        let all = findings.as_array().expect("a list");
        all.iter().find(|finding| finding["name"] == unit.name.as_str()).expect("it runs").clone()
    };
    assert_eq!((&find(&dead)["covered"], &find(&back)["covered"]), (&false.into(), &true.into()));
    let text = audit(&[]);
    assert!(
        text.contains("/etc/systemd/system/audited-no.service.d/") && text.contains("Restart=on-failure"),
        "{text}"
    );
    assert!(!text.contains("audited-always"), "{text}");
}

/// The system bus at a place of its own, where it is not yet.
struct Bus(tempfile::TempDir);

impl Bus {
    fn path(&self) -> PathBuf {
        self.0.path().join("bus")
    }

    fn comes(&self) {
        std::os::unix::fs::symlink("/run/dbus/system_bus_socket", self.path()).expect("a link");
    }
}

/// An agent that brings back at once what is called `healed-…`, and that has no bus yet.
fn busless() -> (Bus, Agent) {
    let bus = Bus(tempfile::tempdir().expect("a directory"));
    let address = format!("unix:path={}", bus.path().display());
    let agent = Agent::start_among(
        &[("DBUS_SYSTEM_BUS_ADDRESS", &address)],
        "[[service]]\nunit = 'healed-*.service'\nrestart = true\ngrace = '0s'\nhealth = 'exec:/bin/true'\n",
    );
    (bus, agent)
}

#[test]
fn a_stop_that_systemd_cannot_confirm_yet_is_neither_believed_nor_undone() {
    if !can_run("a_stop_that_systemd_cannot_confirm_yet_is_neither_believed_nor_undone") {
        return;
    }
    let (bus, agent) = busless();
    let unit = Unit::start("healed-unsure", "Restart=no", "", "true", 0);
    eventually("the silence to be noticed", || agent.log().contains("no owner has confirmed the cgroup").then_some(()));
    unit.main();
    systemctl(&["stop", &unit.name]);
    bus.comes();
    // systemd has no unit there any more.
    eventually("systemd's word", || agent.log().contains("is a plain one").then_some(()));
    assert_eq!(unit.starts(), 1);
}

#[test]
fn a_bus_that_is_not_there_is_asked_again() {
    if !can_run("a_bus_that_is_not_there_is_asked_again") {
        return;
    }
    let (bus, agent) = busless();
    let unit = Unit::start("healed-busless", "Restart=no", "", "true", 0);
    // Until systemd answers, the cgroup counts as a plain one.
    eventually("the silence to be noticed", || agent.log().contains("no owner has confirmed the cgroup").then_some(()));
    assert_eq!(agent.metrics().get(&format!("defib_service_up{{service=\"{}\"}}", unit.name)), None);
    bus.comes();
    up(&agent, &unit);
    unit.kill();
    let incident = ended(&agent, &unit);
    assert_eq!((&incident["outcome"], &incident["restarts"]), (&"restarted".into(), &1.into()), "{incident}");
}

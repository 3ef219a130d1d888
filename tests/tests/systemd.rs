//! Deaths in units of a real systemd: the unit's name, main process told from worker. Runs where systemd is PID 1, as in
//! `cargo xtask vm --kernel 6.1 --test systemd`.

use std::{fs, process::Command};

use tests::{
    PATIENCE,
    defib::{Agent, Watch},
    eventually, live,
    victim::binary,
};

fn can_run(name: &str) -> bool {
    if !live::can_run(name) {
        return false;
    }
    if fs::read_to_string("/proc/1/comm").is_ok_and(|comm| comm.trim() == "systemd") {
        return true;
    }
    live::skip_ok(name, "needs systemd as PID 1; run it with 'cargo xtask vm --kernel 6.1 --test systemd'");
    false
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
    let metrics = eventually("the OOM kill of a watched unit", || {
        let metrics = agent.metrics();
        (metrics.get(left_alone) == Some(1.0)).then_some(metrics)
    });
    assert_eq!(metrics.get("defib_oom_kills_total{scope=\"memcg\",service=\"watched-2.service\"}"), Some(1.0));
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

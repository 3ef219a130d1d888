//! What a real systemd does to its units.

use std::process::Command;

use serde_json::{Value, json};
use tests::{eventually, victim::binary};

use crate::{case::Case, facts, scene::Scene, signals::is_asleep};

const fn case(id: &'static str, title: &'static str, expect: &'static str, act: fn(&mut Scene<'_>)) -> Case {
    Case { id, group: "systemd", title, expect, cannot: facts::no_systemd, act }
}

pub(crate) const CASES: &[Case] = &[
    case("unit_stop", "systemctl stop", "stopped", |scene| stop(scene, "stop", &["idle"], Ended::By(15))),
    case("unit_stop_0", "systemctl stop of a service that then exits with 0", "stopped", |scene| {
        stop(scene, "stop-0", &["on-term", "0"], Ended::With(0));
    }),
    case("unit_stop_3", "systemctl stop of a service that then exits with 3", "stopped", |scene| {
        stop(scene, "stop-3", &["on-term", "3"], Ended::With(3));
    }),
    case("unit_stop_timeout", "systemctl stop of a service that does not mind", "stopped", |scene| {
        stop(scene, "stop-timeout", &["ignore-term"], Ended::By(9));
    }),
    case("unit_watchdog", "no sign of life within WatchdogSec", "watchdog", watchdog),
    case("unit_start_timeout", "not ready within TimeoutStartSec", "killed", start_timeout),
    case("unit_runtime_limit", "longer than RuntimeMaxSec", "killed", runtime_limit),
    case("unit_oom", "a unit takes more than MemoryMax", "oom_kill", oom),
    case("unit_oom_policy", "the rest of a unit after an OOM kill in it", "killed", oom_policy),
    case("unit_exit_0", "a unit that should stay exits with 0", "clean_exit", |scene| exit(scene, "exit-0", 0)),
    case("unit_exit_n", "a unit exits with a code", "exit", |scene| exit(scene, "exit-n", 9)),
];

/// Runs systemctl.
pub(crate) fn systemctl(words: &[&str]) -> String {
    let output = Command::new("systemctl").args(words).output().expect("systemctl starts");
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(output.status.success(), "systemctl {words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Starts a victim as the service `unit`, without waiting for it to be ready.
pub(crate) fn start(unit: &str, properties: &[&str], words: &[&str]) {
    let mut command = Command::new("systemd-run");
    command.args(["--unit", unit, "--quiet", "--no-block"]);
    for property in properties {
        command.args(["-p", property]);
    }
    let output = command.arg(binary("victim")).args(words).output().expect("systemd-run starts");
    assert!(output.status.success(), "systemd-run {unit}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The main process of a unit, once there is one.
fn main_process(unit: &str) -> u32 {
    eventually(&format!("a main process of {unit}"), || {
        systemctl(&["show", "-P", "MainPID", unit]).parse().ok().filter(|pid| *pid > 0)
    })
}

/// How a process ended.
enum Ended {
    By(i32),
    With(i32),
}

fn ended(scene: &mut Scene<'_>, death: &Value, how: &Ended) {
    match how {
        Ended::By(signal) => {
            scene.has(death, "/signal", *signal);
            scene.has(death, "/cause/signal", *signal);
        }
        Ended::With(code) => scene.has(death, "/exit_code", *code),
    }
}

fn by_systemd(scene: &mut Scene<'_>, death: &Value) {
    scene.has(death, "/cause/by/tgid", 1);
    scene.has(death, "/cause/by/comm", "systemd");
}

fn stop(scene: &mut Scene<'_>, name: &str, words: &[&str], how: Ended) {
    let unit = format!("corpus-{name}.service");
    start(&unit, &["TimeoutStopSec=1"], words);
    let pid = main_process(&unit);
    is_asleep(pid);
    systemctl(&["stop", &unit]);
    let death = scene.death_of(pid);
    scene.expected(&death);
    scene.has(&death, "/service", unit.as_str());
    scene.has(&death, "/role", "main");
    ended(scene, &death, &how);
    by_systemd(scene, &death);
    scene.has(&death, "/cause/forced", json!(matches!(how, Ended::By(9))));
}

fn watchdog(scene: &mut Scene<'_>) {
    const UNIT: &str = "corpus-watchdog.service";
    start(UNIT, &["Type=notify", "WatchdogSec=1"], &["notify-once"]);
    let death = scene.death(UNIT, |death| death["service"] == UNIT);
    scene.expected(&death);
    ended(scene, &death, &Ended::By(6));
    by_systemd(scene, &death);
}

fn start_timeout(scene: &mut Scene<'_>) {
    const UNIT: &str = "corpus-start-timeout.service";
    start(UNIT, &["Type=notify", "TimeoutStartSec=1"], &["idle"]);
    let death = scene.death(UNIT, |death| death["service"] == UNIT);
    scene.expected(&death);
    ended(scene, &death, &Ended::By(15));
    by_systemd(scene, &death);
    scene.has(&death, "/cause/reason", "start_timeout");
}

fn runtime_limit(scene: &mut Scene<'_>) {
    const UNIT: &str = "corpus-runtime-limit.service";
    start(UNIT, &["RuntimeMaxSec=1"], &["idle"]);
    let death = scene.death(UNIT, |death| death["service"] == UNIT);
    scene.expected(&death);
    ended(scene, &death, &Ended::By(15));
    by_systemd(scene, &death);
    scene.has(&death, "/cause/reason", "runtime_limit");
}

const LIMIT: [&str; 2] = ["MemoryMax=32M", "MemorySwapMax=0"];

fn oom(scene: &mut Scene<'_>) {
    const UNIT: &str = "corpus-oom.service";
    scene.let_the_kernel_log_recover();
    start(UNIT, &LIMIT, &["leak"]);
    let death = scene.death(UNIT, |death| death["service"] == UNIT);
    scene.expected(&death);
    scene.has(&death, "/signal", 9);
    scene.has(&death, "/role", "main");
    scene.has(&death, "/cause/scope", "memcg");
    scene.has(&death, "/cause/limit_owner", format!("/system.slice/{UNIT}"));
    scene.has(&death, "/cause/limit_bytes", 32 << 20);
}

/// By default, systemd ends what is left of a unit in which a process was killed for want of memory.
fn oom_policy(scene: &mut Scene<'_>) {
    const UNIT: &str = "corpus-oom-policy.service";
    start(UNIT, &[LIMIT[0], LIMIT[1], "OOMPolicy=stop"], &["leak-in-child-and-idle"]);
    let child = scene.death("the child", |death| death["service"] == UNIT && death["cause"]["kind"] == "oom_kill");
    scene.is_a(&child, "oom_kill");
    scene.has(&child, "/role", "worker");
    let main = scene.death("the main process", |death| death["service"] == UNIT && death["tgid"] != child["tgid"]);
    scene.expected(&main);
    scene.has(&main, "/role", "main");
    ended(scene, &main, &Ended::By(15));
    by_systemd(scene, &main);
    scene.has(&main, "/cause/reason", "oom_policy");
}

fn exit(scene: &mut Scene<'_>, name: &str, code: i32) {
    let unit = format!("corpus-{name}.service");
    start(&unit, &[], &["exit", &code.to_string()]);
    let death = scene.death(&unit, |death| death["service"] == unit.as_str());
    scene.expected(&death);
    scene.has(&death, "/role", "main");
    ended(scene, &death, &Ended::With(code));
}

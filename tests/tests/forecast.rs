//! A real service leaks under a real limit, restarts hide it, and the agent says when it will die. Time is scaled by
//! configuration: a day of the forecast takes a quarter of a minute.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde_json::Value;
use tests::{cgroup::Cgroup, defib::Agent, eventually, live, victim::binary};

/// A day of the forecast, at a sample each 10 ms where a host's agent has a minute.
const DAY: Duration = Duration::from_millis(10 * 24 * 60);
/// What the service takes at once, and its limit, in MiB.
const BASE: u64 = 16;
const LIMIT: u64 = 48;
/// Its days from start to limit.
const DAYS: u64 = 5;
/// Days on which it is restarted, as by a deploy.
const DEPLOYS: u32 = 4;

fn main_process(cgroup: &Cgroup) -> i32 {
    eventually("the service", || cgroup.members().first().copied())
}

fn restart(cgroup: &Cgroup) {
    let old = main_process(cgroup);
    let pid = rustix::process::Pid::from_raw(old).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    eventually("a new process", || cgroup.members().into_iter().find(|&pid| pid != old));
}

fn status(agent: &Agent) -> Value {
    let output = agent.control(&["status", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut all: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    all.pop().expect("one service")
}

fn time(value: &Value) -> Timestamp {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no time: {value}"))
}

#[test]
fn a_leak_that_restarts_hide_is_foretold_and_comes_when_it_was_said_to_come() {
    if !live::can_run("a_leak_that_restarts_hide_is_foretold_and_comes_when_it_was_said_to_come") {
        return;
    }
    let cgroup = Cgroup::new(Some(LIMIT << 20));
    let kib_per_second = (LIMIT - BASE) * 1024 * 1000 / (DAYS * DAY.as_millis() as u64);
    let agent = Agent::start(&format!(
        "[forecast]\nsample = \"10ms\"\n[defaults]\nbudget = {{ per_host = \"100/1m\" }}\n\
         [[service]]\nname = \"leaky\"\nrestart = true\ngrace = \"0s\"\nhealth = \"exec:/bin/true\"\n\
         backoff = {{ initial = \"10ms\" }}\nbudget = {{ per_service = \"100/1m\" }}\n\
         command = {{ start = [\"{}\", \"leak-slowly\", \"{BASE}\", \"{kib_per_second}\"], cgroup = \"{}\" }}\n",
        binary("victim").display(),
        cgroup.path
    ));
    main_process(&cgroup);
    for _ in 0..DEPLOYS {
        sleep(DAY);
        restart(&cgroup);
    }

    // Two more days without a deploy: the gap. By now it is known, and that only restarts have hidden it.
    let gap = Instant::now();
    sleep(DAY * 2);
    let metrics = agent.metrics();
    let leaks = |verdict: &str| metrics.get(&format!("defib_service_leak{{service=\"leaky\",verdict=\"{verdict}\"}}"));
    assert!(leaks("masked_leak") == Some(1.0) || leaks("leak") == Some(1.0), "{}", metrics.0);
    let growth = metrics.get("defib_service_memory_growth_bytes_per_hour{service=\"leaky\"}").expect("a figure");
    let real = (kib_per_second * 1024 * 3600) as f64;
    assert!((0.7 * real..=1.3 * real).contains(&growth), "{growth} bytes an hour, not {real}");
    let told = Timestamp::now();
    let now = status(&agent);
    let seconds = |name: &str| now["forecast"][name].as_f64();
    let (low, high) = (seconds("time_to_oom_seconds_low"), seconds("time_to_oom_seconds_high"));
    println!("MEASURED told: {}", now["forecast_text"]);

    // Nobody deploys, and it dies.
    sleep((DAY * DAYS as u32).saturating_sub(gap.elapsed()).saturating_sub(DAY / 2));
    let incident = eventually("its OOM kill", || {
        agent.incidents("leaky").into_iter().find(|incident| incident["cause"]["kind"] == "oom_kill")
    });
    let died = time(&incident["began"]).duration_since(told).as_secs_f64();
    println!("MEASURED died after {died:.1} s, foretold between {low:?} and {high:?}");
    assert!(
        low.is_some_and(|low| low <= died) && high.is_none_or(|high| died <= high),
        "{died} s, {low:?} to {high:?}"
    );
    let foretold = &incident["foretold"];
    assert!(time(&foretold["since"]) < told, "{foretold}");

    // Its record says so, for people too.
    let state = agent.state.path().to_str().expect("UTF-8");
    let report = tests::defib::run(&["incidents", "report", &incident["id"].to_string(), "--state-dir", state]);
    let report = String::from_utf8(report.stdout).expect("UTF-8");
    assert!(report.contains("## Was it foreseen?\n\nYes: since "), "{report}");
}

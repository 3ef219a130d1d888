//! Many processes that a service leaves behind, or many failing workers, do not affect other services.

use std::path::Path;

use serde_json::Value;
use tests::{
    cgroup::Cgroup,
    defib::{Agent, scratch},
    eventually, live,
};

/// Workers that a crowd leaves behind, where there is memory for them.
const CROWD: usize = 1500;
/// Workers that fail.
const FAILING: usize = 400;

/// A command service that does `first`, and then sleeps until it is killed.
fn service(name: &str, cgroup: &Cgroup, first: &str) -> String {
    format!(
        "[[service]]\nname = \"{name}\"\nrestart = true\ngrace = '100ms'\nhealth = \"exec:/bin/true\"\n\
         command = {{ start = [\"/bin/sh\", \"-c\", \"{first} exec sleep 1000\"], cgroup = \"{}\" }}\n",
        cgroup.path
    )
}

/// `DEFIB_CROWD`, else one process for each free MiB of the host: a shell takes a quarter of that, and there are two
/// crowds.
fn crowd_size() -> usize {
    if let Some(size) = std::env::var("DEFIB_CROWD").ok().and_then(|size| size.parse().ok()) {
        return size;
    }
    let text = std::fs::read_to_string("/proc/meminfo").expect("it can be read");
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).expect("it is told");
    let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
    CROWD.min(kib / 1024)
}

/// Script that leaves `count` shells behind, which wait for a write to a pipe.
fn crowd(place: &Path, count: usize) -> String {
    let (pipe, once) = (place.join("pipe"), place.join("once"));
    let (pipe, once) = (pipe.display(), once.display());
    format!(
        "if mkdir {once}; then mkfifo {pipe}; i=0; while [ $i -lt {count} ]; do ( read -r x <{pipe} ) & i=$((i+1)); \
         done; fi;"
    )
}

fn sleeper(cgroup: &Cgroup) -> Option<i32> {
    let comm = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    cgroup.members().into_iter().find(|pid| comm(pid).trim() == "sleep")
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
}

fn is_healthy(agent: &Agent, name: &str) -> Option<()> {
    let metrics = agent.metrics();
    let is = |metric: &str, value: f64| metrics.get(&format!("{metric}{{service=\"{name}\"}}")) == Some(value);
    (is("defib_service_up", 1.0) && is("defib_incidents_open", 0.0)).then_some(())
}

/// Length of the outage after the main process was killed, milliseconds; waits for its end.
fn outage(agent: &Agent, name: &str) -> u64 {
    let is_of_kill = |incident: &Value| incident["cause"]["kind"] == "killed" && incident["ended"].is_string();
    eventually("the end of an outage", || agent.incidents(name).into_iter().find(is_of_kill))["outage_ms"]
        .as_u64()
        .expect("milliseconds")
}

#[test]
fn a_crowd_that_a_service_leaves_behind_holds_up_no_other_restart() {
    if !live::can_run("a_crowd_that_a_service_leaves_behind_holds_up_no_other_restart") {
        return;
    }
    let (one, two, quick) = (Cgroup::new(None), Cgroup::new(None), Cgroup::new(None));
    let (places, count) = ([scratch(), scratch()], crowd_size());
    let config = service("one", &one, &crowd(places[0].path(), count))
        + &service("two", &two, &crowd(places[1].path(), count))
        + &service("quick", &quick, "");
    let agent = Agent::start(&config);
    for (name, cgroup, size) in [("one", &one, count + 1), ("two", &two, count + 1), ("quick", &quick, 1)] {
        eventually("all workers", || (cgroup.members().len() == size).then_some(()));
        eventually("health", || is_healthy(&agent, name));
    }
    for cgroup in [&one, &two, &quick] {
        // The service is healthy from its first process on; that is a shell until it sleeps.
        kill(eventually("its main process to sleep", || sleeper(cgroup)));
    }
    let outages = ["one", "two", "quick"].map(|name| (name, outage(&agent, name)));
    println!("outages with {count} left-over workers, and without: {outages:?} ms");
    let [(_, one_ms), (_, two_ms), (_, quick_ms)] = outages;
    assert!(quick_ms <= one_ms && quick_ms <= two_ms, "it has nobody to wait for: {outages:?}");
    assert_eq!([&one, &two, &quick].map(|cgroup| cgroup.members().len()), [1, 1, 1], "nobody is left, all are back");
}

#[test]
fn workers_that_fail_in_any_number_raise_no_questions() {
    if !live::can_run("workers_that_fail_in_any_number_raise_no_questions") {
        return;
    }
    let (cgroup, place) = (Cgroup::new(None), scratch());
    let once = place.path().join("once");
    let first = format!(
        "if mkdir {}; then i=0; while [ $i -lt {FAILING} ]; do ( exit 3 ) & i=$((i+1)); done; wait; fi;",
        once.display()
    );
    let agent = Agent::start(&service("failing", &cgroup, &first));
    let deaths = || agent.metrics().get("defib_deaths_total{cause=\"exit\",service=\"failing\"}").unwrap_or(0.0);
    eventually("all deaths", || (deaths() >= FAILING as f64).then_some(()));
    let metrics = agent.metrics();
    for kind in ["output", "journal", "systemd", "engine", "symbols"] {
        let series = format!("defib_questions_dropped_total{{kind=\"{kind}\"}}");
        assert_eq!(metrics.get(&series), Some(0.0), "{series}");
    }
    assert!(metrics.get("defib_controller_loop_seconds_count") > Some(0.0), "turns are measured");
    let slow = metrics.get("defib_controller_loop_seconds_count").unwrap_or(0.0)
        - metrics.get("defib_controller_loop_seconds_bucket{le=\"0.25\"}").unwrap_or(0.0);
    println!("turns slower than 250 ms: {slow}");
    // The last words of the main process do count.
    kill(eventually("the service", || sleeper(&cgroup)));
    assert!(outage(&agent, "failing") >= 100, "the grace");
}

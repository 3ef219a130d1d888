//! `defib run` against real deaths: counts that agree with the kernel's own, and services that come back.

use std::{fs, path::Path, process::Command, thread::sleep, time::Duration};

use tests::{
    cgroup::Cgroup,
    defib::{Agent, Metrics, run},
    eventually, live,
    victim::{Victim, binary},
};

const MIB: u64 = 1024 * 1024;

fn kernel_oom_kills() -> u64 {
    let text = fs::read_to_string("/proc/vmstat").expect("readable");
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill ")).expect("counted");
    line.parse().expect("a number")
}

#[test]
fn two_hundred_oom_kills_are_counted_as_the_kernel_counts_them() {
    if !live::can_run("two_hundred_oom_kills_are_counted_as_the_kernel_counts_them") {
        return;
    }
    let cgroup = Cgroup::new(Some(8 * MIB));
    let agent = Agent::start("");
    let before = kernel_oom_kills();
    for _ in 0..200 {
        let status = Victim::start(Some(&cgroup), &["leak"]).wait();
        assert!(!status.success());
    }
    let kernel = kernel_oom_kills() - before;
    assert_eq!(kernel, 200);
    let metrics = eventually("the last verdict", || {
        let metrics = agent.metrics();
        (metrics.sum("defib_oom_kills_total") >= kernel as f64).then_some(metrics)
    });
    assert_eq!(metrics.sum("defib_oom_kills_total"), kernel as f64);
    assert_eq!(metrics.get("defib_process_exits_total{outcome=\"oom\"}"), Some(kernel as f64));
    assert_eq!(metrics.get("defib_deaths_total{cause=\"oom_kill\",service=\"other\"}"), Some(kernel as f64));
    assert_eq!(metrics.sum("defib_oom_audit_missed_total"), 0.0);
    assert_eq!(metrics.sum("defib_events_lost_total"), 0.0);
}

/// A reader goes to sleep some 20 ms after the last record. Whenever another one comes just then, nobody else's has to wake it.
#[test]
fn a_death_at_any_moment_wakes_the_agent() {
    if !live::can_run("a_death_at_any_moment_wakes_the_agent") {
        return;
    }
    let agent = Agent::start("");
    let read = || agent.metrics().get("defib_records_read_total{ring=\"bulk\"}").expect("a count");
    for quarter_ms in 4 * 12..4 * 32 {
        let before = read();
        for pause in [Duration::ZERO, Duration::from_micros(250 * quarter_ms)] {
            sleep(pause);
            assert!(!Command::new("/bin/false").status().expect("it starts").success());
        }
        eventually("both records", || (read() >= before + 2.0).then_some(()));
    }
    assert_eq!(agent.metrics().get("defib_records_late_total{ring=\"bulk\"}"), Some(0.0));
}

/// A service that lives until it is killed, healthy at once.
fn sleeper(cgroup: &Cgroup, extra: &str) -> String {
    format!(
        "[[service]]\nname = \"patient\"\nrestart = true\ngrace = \"100ms\"\nhealth = \"exec:/bin/true\"\n\
         command = {{ start = [\"/bin/sleep\", \"1000\"], cgroup = \"{}\" }}\n{extra}",
        cgroup.path
    )
}

fn only_member(cgroup: &Cgroup) -> i32 {
    eventually("one process in the cgroup", || match cgroup.members().as_slice() {
        [pid] if name(*pid) == "sleep" => Some(*pid),
        _ => None,
    })
}

fn name(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
}

#[test]
fn a_killed_service_comes_back_and_the_outage_is_measured() {
    if !live::can_run("a_killed_service_comes_back_and_the_outage_is_measured") {
        return;
    }
    let cgroup = Cgroup::new(None);
    let agent = Agent::start(&sleeper(&cgroup, ""));
    let first = only_member(&cgroup);
    eventually("the first start to be healthy", || {
        (agent.metrics().get("defib_incidents_open{service=\"patient\"}") == Some(0.0)).then_some(())
    });
    let starts = agent.metrics().get("defib_restarts_total{result=\"ok\",service=\"patient\"}").expect("exists at 0");
    kill(first);
    let second = eventually("a new process", || {
        cgroup.members().first().copied().filter(|&pid| pid != first && name(pid) == "sleep")
    });
    assert_ne!(first, second);
    let metrics = eventually("the outage to end", || {
        let metrics = agent.metrics();
        let done = metrics.get("defib_restarts_total{result=\"ok\",service=\"patient\"}") == Some(starts + 1.0);
        done.then_some(metrics)
    });
    assert_eq!(metrics.get("defib_service_up{service=\"patient\"}"), Some(1.0));
    assert_eq!(metrics.get("defib_incidents_open{service=\"patient\"}"), Some(0.0));
    assert_eq!(metrics.get("defib_deaths_total{cause=\"killed\",service=\"patient\"}"), Some(1.0));
    assert!(metrics.get("defib_service_last_death_timestamp_seconds{service=\"patient\"}") > Some(1.0e9));
    assert!(metrics.get("defib_outage_seconds_count{service=\"patient\"}") >= Some(1.0));
    assert_eq!(cgroup.members(), vec![second], "one incarnation");
    // The service is in a session of its own and not protected from the OOM killer.
    let adjustment = fs::read_to_string(format!("/proc/{second}/oom_score_adj")).expect("readable");
    assert_eq!(adjustment.trim(), "0");
}

#[test]
fn a_configuration_that_is_read_again_counts_if_it_is_right() {
    if !live::can_run("a_configuration_that_is_read_again_counts_if_it_is_right") {
        return;
    }
    let cgroups = [Cgroup::new(None), Cgroup::new(None)];
    let first = sleeper(&cgroups[0], "");
    let agent = Agent::start(&first);
    let patient = only_member(&cgroups[0]);
    let ok = |agent: &Agent| {
        agent.try_get("/metrics").and_then(|(_, text)| Metrics(text).get("defib_config_reload_success"))
    };
    assert_eq!(ok(&agent), Some(1.0));

    // A wrong one changes nothing, and where it is wrong is said.
    agent.reload(&format!("{first}[[service]]\nnam = \"other\"\n"));
    eventually("the refusal", || (ok(&agent) == Some(0.0)).then_some(()));
    eventually("the reason in the log", || {
        let log = agent.log();
        (log.contains("the configuration is wrong, and the old one stays") && log.contains("defib.toml:8"))
            .then_some(())
    });
    kill(patient);
    let again =
        eventually("another incarnation", || cgroups[0].members().first().copied().filter(|&pid| pid != patient));

    // A right one counts, all of it; it is the same process, and what it looked after lives on.
    let second = sleeper(&cgroups[1], "").replace("patient", "other");
    agent.reload(&format!("{first}{second}"));
    let up = "defib_service_up{service=\"other\"}";
    eventually("the other service", || {
        let metrics = Metrics(agent.try_get("/metrics")?.1);
        (metrics.get(up) == Some(1.0) && metrics.get("defib_config_reload_success") == Some(1.0)).then_some(())
    });
    assert_eq!(only_member(&cgroups[0]), again, "{}", agent.log());
    assert_eq!(name(agent.pid() as i32), "defib");
    let incidents = eventually("the incidents of both", || {
        let all = agent.incidents("patient");
        all.iter().any(|incident| incident["outcome"] == "restarted" && incident["deaths"] == 1).then_some(all)
    });
    assert!(incidents.iter().all(|incident| incident["ended"].is_string()), "{incidents:?}");
    let only = only_member(&cgroups[1]);
    kill(only);
    eventually("it to be looked after", || cgroups[1].members().first().copied().filter(|&pid| pid != only));
}

#[test]
fn the_agent_s_own_death_does_not_harm_its_services() {
    if !live::can_run("the_agent_s_own_death_does_not_harm_its_services") {
        return;
    }
    let cgroup = Cgroup::new(None);
    let config = sleeper(&cgroup, "");
    let agent = Agent::start(&config);
    let process = only_member(&cgroup);
    let state = agent.crash();
    assert_eq!(cgroup.members(), vec![process], "it lives on");
    let agent = Agent::start_in(state, &config);
    assert_eq!(cgroup.members(), vec![process], "it is found, not started twice");
    assert_eq!(agent.metrics().get("defib_service_up{service=\"patient\"}"), Some(1.0));
    // Its death is still seen and answered.
    kill(process);
    eventually("a new process", || {
        cgroup.members().first().copied().filter(|&pid| pid != process && name(pid) == "sleep")
    });
}

#[test]
fn a_service_that_cannot_live_stops_at_its_budget() {
    if !live::can_run("a_service_that_cannot_live_stops_at_its_budget") {
        return;
    }
    let cgroup = Cgroup::new(None);
    let config = format!(
        "[[service]]\nname = \"hopeless\"\nrestart = true\ngrace = \"0s\"\nbackoff = {{ initial = \"1ms\", max = \"2ms\" }}\n\
         budget = {{ per_service = \"4/1h\" }}\n\
         command = {{ start = [\"{}\", \"exit\", \"3\"], cgroup = \"{}\" }}\n",
        binary("victim").display(),
        cgroup.path
    );
    let agent = Agent::start(&config);
    let suppressed = "defib_restart_suppressed_total{reason=\"service_budget\",service=\"hopeless\"}";
    let metrics = eventually("the budget to be spent", || {
        let metrics = agent.metrics();
        (metrics.get(suppressed) >= Some(1.0)).then_some(metrics)
    });
    assert_eq!(metrics.get("defib_restarts_total{result=\"failed\",service=\"hopeless\"}"), Some(4.0));
    assert_eq!(metrics.get("defib_incidents_open{service=\"hopeless\"}"), Some(1.0));
    assert_eq!(metrics.get("defib_deaths_total{cause=\"exit\",service=\"hopeless\"}"), Some(4.0));
}

#[test]
fn a_start_that_fails_says_why() {
    if !live::can_run("a_start_that_fails_says_why") {
        return;
    }
    let cgroup = Cgroup::new(None);
    // A file that is there and is no program.
    let config = format!(
        "[[service]]\nname = \"broken\"\nrestart = true\n\
         command = {{ start = [\"/proc/version\"], cgroup = \"{}\" }}\n",
        cgroup.path
    );
    let agent = Agent::start(&config);
    eventually("the failed start", || {
        let failed = agent.metrics().get("defib_restarts_total{result=\"failed\",service=\"broken\"}");
        (failed >= Some(1.0)).then_some(())
    });
    let log = eventually("the reason in the log", || {
        let log = fs::read_to_string(agent.state.path().join("agent.log")).expect("a log");
        log.contains("cannot start /proc/version").then_some(log)
    });
    assert!(log.contains("Permission denied"), "{log}");
}

/// What the old incarnation left behind is neither taken for the new one nor left beside it.
#[test]
fn an_orphaned_worker_is_no_respawn_and_is_cleared_away() {
    if !live::can_run("an_orphaned_worker_is_no_respawn_and_is_cleared_away") {
        return;
    }
    let cgroup = Cgroup::new(None);
    let config = format!(
        "[[service]]\nname = \"family\"\nrestart = true\ngrace = \"300ms\"\nhealth = \"exec:/bin/true\"\n\
         command = {{ start = [\"/bin/sh\", \"-c\", \"(while :; do sleep 0.05; done) & exec sleep 1000\"], \
         cgroup = \"{}\" }}\n",
        cgroup.path
    );
    let agent = Agent::start(&config);
    let main = || cgroup.members().into_iter().find(|&pid| command_line(pid) == "sleep 1000");
    let first = eventually("the main process", main);
    let worker = eventually("the worker", || cgroup.members().into_iter().find(|&pid| name(pid) == "sh"));
    eventually("health", || {
        (agent.metrics().get("defib_incidents_open{service=\"family\"}") == Some(0.0)).then_some(())
    });
    // /proc tells a start to a tick of 10 ms: a worker that began in the tick of the death could be a new incarnation.
    sleep(Duration::from_millis(30));
    kill(first);
    let second = eventually("a new main process", || main().filter(|&pid| pid != first));
    assert!(!cgroup.members().contains(&worker), "the old worker is gone");
    let metrics = eventually("the outage to end", || {
        let metrics = agent.metrics();
        (metrics.get("defib_restarts_total{result=\"ok\",service=\"family\"}") == Some(2.0)).then_some(metrics)
    });
    let respawned = metrics.get("defib_restart_suppressed_total{reason=\"respawned\",service=\"family\"}");
    assert_eq!(respawned, Some(0.0), "a worker's sleep is no respawn");
    assert!(cgroup.members().contains(&second));
}

fn command_line(pid: i32) -> String {
    let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&text).trim_end_matches('\0').replace('\0', " ")
}

#[test]
fn pages_answer_and_series_exist_from_the_start() {
    if !live::can_run("pages_answer_and_series_exist_from_the_start") {
        return;
    }
    let agent = Agent::start("");
    assert_eq!(agent.try_get("/healthz"), Some((200, "alive\n".to_owned())));
    assert_eq!(agent.try_get("/readyz").map(|(status, _)| status), Some(200));
    assert_eq!(agent.try_get("/nothing").map(|(status, _)| status), Some(404));
    let metrics = agent.metrics();
    for series in [
        "defib_oom_kills_total{scope=\"memcg\",service=\"other\"}",
        "defib_deaths_total{cause=\"oom_kill\",service=\"other\"}",
        "defib_events_lost_total{ring=\"critical\"}",
        "defib_events_lost_total{ring=\"bulk\"}",
        "defib_oom_audit_missed_total",
        "defib_process_exits_total{outcome=\"oom\"}",
    ] {
        assert_eq!(metrics.get(series), Some(0.0), "{series}");
    }
    assert!(metrics.get("process_resident_memory_bytes").is_some());
    assert!(metrics.0.contains("defib_build_info{"));
}

#[test]
fn the_demo_brings_its_service_back_and_leaves_nothing() {
    if !live::can_run("the_demo_brings_its_service_back_and_leaves_nothing") {
        return;
    }
    let output = run(&["demo", "--json"]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let story: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let steps: Vec<_> = story["timeline"].as_array().expect("steps").iter().collect();
    let order: Vec<_> = steps.iter().filter_map(|step| step["what"].as_str()).collect();
    let want =
        ["leak started", "kernel mark", "death", "verdict", "waiting", "restart asked", "started", "healthy again"];
    assert_eq!(order, want, "{text}");
    let times: Vec<_> = steps.iter().filter_map(|step| step["at_ns"].as_u64()).collect();
    assert!(times.is_sorted(), "{text}");
    assert!(steps[3]["detail"].as_str().is_some_and(|cause| cause.contains("killed for want of memory")), "{text}");
    assert_nothing_left();
}

#[test]
fn an_interrupted_demo_cleans_up() {
    if !live::can_run("an_interrupted_demo_cleans_up") {
        return;
    }
    let mut demo = Command::new(binary("defib"))
        .args(["demo", "--grace", "60s"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("starts");
    let directory = std::env::temp_dir().join(format!("defib-demo-{}", demo.id()));
    eventually("the demo's service to write", || directory.join("output/demo.log").exists().then_some(()));
    let pid = rustix::process::Pid::from_raw(demo.id() as i32).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("interrupted");
    assert_eq!(demo.wait().expect("ends").code(), Some(1));
    assert!(!directory.exists());
    assert_nothing_left();
}

fn assert_nothing_left() {
    let (mount, _) = tests::cgroup::memory_hierarchy();
    for place in [mount.as_path(), Path::new(&std::env::temp_dir())] {
        let left: Vec<_> = fs::read_dir(place)
            .expect("readable")
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("defib-demo-"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

//! `defib run` brings dead services back: within budgets, over its own death, as operators want it, and written down.
//! The supervisor is Defib's own; systemd's and Docker's stand in `systemd.rs` and `docker.rs`.

use std::{fs, io::Write as _, path::Path, process::Command, thread::sleep, time::Duration};

use serde_json::Value;
use tests::{cgroup::Cgroup, defib::Agent, eventually, live, victim::Victim};

/// A service that lives until it is killed and writes a line for every start, healthy at once.
fn counted(cgroup: &Cgroup, starts: &Path, settings: &str) -> String {
    format!(
        "[[service]]\nname = \"counted\"\nrestart = true\nhealth = \"exec:/bin/true\"\n{settings}\n\
         command = {{ start = [\"/bin/sh\", \"-c\", \"echo start >> {}; exec sleep 1000\"], cgroup = \"{}\" }}\n",
        starts.display(),
        cgroup.path
    )
}

fn lines(file: &Path) -> usize {
    fs::read_to_string(file).unwrap_or_default().lines().count()
}

fn name(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

fn sleeper(cgroup: &Cgroup) -> Option<i32> {
    cgroup.members().into_iter().find(|&pid| name(pid) == "sleep")
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
}

fn healthy(agent: &Agent) {
    eventually("health", || {
        let metrics = agent.metrics();
        let up = metrics.get("defib_service_up{service=\"counted\"}") == Some(1.0);
        (up && metrics.get("defib_incidents_open{service=\"counted\"}") == Some(0.0)).then_some(())
    });
}

fn what(incident: &Value) -> Vec<&str> {
    incident["timeline"].as_array().into_iter().flatten().filter_map(|entry| entry["what"].as_str()).collect()
}

/// The incident of that number in the order of time, once it says so.
fn incident(agent: &Agent, number: usize, says: impl Fn(&Value) -> bool) -> Value {
    eventually("the incident", || agent.incidents("counted").into_iter().nth(number).filter(|incident| says(incident)))
}

#[test]
fn an_outage_is_written_down_from_the_death_to_the_proof_of_health() {
    if !live::can_run("an_outage_is_written_down_from_the_death_to_the_proof_of_health") {
        return;
    }
    let (cgroup, place) = (Cgroup::new(None), tempfile::tempdir().expect("a directory"));
    let agent = Agent::start(&counted(&cgroup, &place.path().join("starts"), "grace = '100ms'"));
    healthy(&agent);
    kill(eventually("the service", || sleeper(&cgroup)));
    let incident = incident(&agent, 1, |incident| incident["ended"].is_string());
    assert_eq!((&incident["outcome"], &incident["restarts"]), (&"restarted".into(), &1.into()), "{incident}");
    assert_eq!(incident["cause"]["kind"], "killed", "{incident}");
    assert!(incident["outage_ms"].as_u64() >= Some(100), "the grace: {incident}");
    let order = what(&incident);
    let want = ["died", "verdict", "evidence", "waiting", "restart_asked", "started", "healthy"];
    assert_eq!(order, want, "{incident}");
    assert!(incident["evidence"].as_array().is_some_and(|items| items.len() > 1), "{incident}");

    let state = agent.state.path().to_str().expect("UTF-8");
    let id = incident["id"].to_string();
    let report = tests::defib::run(&["incidents", "report", &id, "--state-dir", state]);
    let report = String::from_utf8(report.stdout).expect("UTF-8");
    for part in ["# Incident 2: counted was down", "| Outcome | Defib restarted it |", "## Timeline", "SIGKILL"] {
        assert!(report.contains(part), "{part}\n{report}");
    }
    let list = tests::defib::run(&["incidents", "--state-dir", state]);
    let list = String::from_utf8(list.stdout).expect("UTF-8");
    assert!(list.contains("restarted") && list.contains("counted"), "{list}");
    let none = tests::defib::run(&["incidents", "show", "99", "--state-dir", state]);
    assert_eq!(none.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&none.stderr).contains("no incident 99"));
}

#[test]
fn an_agent_killed_in_an_outage_is_followed_by_one_that_goes_on() {
    if !live::can_run("an_agent_killed_in_an_outage_is_followed_by_one_that_goes_on") {
        return;
    }
    let (cgroup, place) = (Cgroup::new(None), tempfile::tempdir().expect("a directory"));
    let starts = place.path().join("starts");
    let config = counted(&cgroup, &starts, "grace = '3s'");
    let agent = Agent::start(&config);
    healthy(&agent);
    kill(eventually("the service", || sleeper(&cgroup)));
    let begun = incident(&agent, 1, |incident| what(incident).contains(&"waiting"));
    let state = agent.crash();
    assert_eq!(lines(&starts), 1, "inside the grace");
    let agent = Agent::start_in(state, &config);
    healthy(&agent);
    let ended = incident(&agent, 1, |incident| incident["ended"].is_string());
    assert_eq!((&ended["id"], &ended["began"]), (&begun["id"], &begun["began"]), "the same outage");
    assert_eq!((&ended["restarts"], &ended["outcome"]), (&1.into(), &"restarted".into()), "{ended}");
    assert!(what(&ended).contains(&"agent_started"), "{ended}");
    assert_eq!(lines(&starts), 2, "one restart");
    assert_eq!(agent.incidents("counted").len(), 2, "and no other incident");
}

#[test]
fn what_died_while_no_agent_ran_is_found_and_brought_back() {
    if !live::can_run("what_died_while_no_agent_ran_is_found_and_brought_back") {
        return;
    }
    let (cgroup, place) = (Cgroup::new(None), tempfile::tempdir().expect("a directory"));
    let starts = place.path().join("starts");
    let config = counted(&cgroup, &starts, "grace = '100ms'");
    let agent = Agent::start(&config);
    healthy(&agent);
    let process = eventually("the service", || sleeper(&cgroup));
    eventually("it to be written down", || (agent.kept("counted")?["process"]["tgid"] == process).then_some(()));
    let state = agent.crash();
    kill(process);
    eventually("its end", || cgroup.members().is_empty().then_some(()));
    let agent = Agent::start_in(state, &config);
    let ended = incident(&agent, 1, |incident| incident["ended"].is_string());
    assert_eq!((&ended["restarts"], &ended["outcome"]), (&1.into(), &"restarted".into()), "{ended}");
    assert!(ended["timeline"].to_string().contains("no agent was watching"), "{ended}");
    assert_eq!(lines(&starts), 2);
}

/// Killed again and again in the middle of tries: no try more than the budget allows.
#[test]
fn a_budget_is_not_reset_by_the_agent_s_death() {
    if !live::can_run("a_budget_is_not_reset_by_the_agent_s_death") {
        return;
    }
    let (cgroup, place) = (Cgroup::new(None), tempfile::tempdir().expect("a directory"));
    let starts = place.path().join("starts");
    let config = format!(
        "[[service]]\nname = \"counted\"\nrestart = true\ngrace = '0s'\nbudget = {{ per_service = '3/1h' }}\n\
         backoff = {{ initial = '200ms', max = '1s' }}\n\
         command = {{ start = [\"/bin/sh\", \"-c\", \"echo start >> {}; exit 1\"], cgroup = \"{}\" }}\n",
        starts.display(),
        cgroup.path
    );
    let mut state = Agent::start(&config).crash();
    for pause in [0, 150, 300] {
        let agent = Agent::start_in(state, &config);
        sleep(Duration::from_millis(pause));
        state = agent.crash();
    }
    let agent = Agent::start_in(state, &config);
    eventually("the circuit to open", || {
        (agent.metrics().get("defib_circuit_open{service=\"counted\"}") == Some(1.0)).then_some(())
    });
    // A start that was written down and then not made, because the agent was killed between, is spent all the same.
    assert!((1..=3).contains(&lines(&starts)), "{} starts", lines(&starts));
    let all = agent.incidents("counted");
    let asked: u64 = all.iter().filter_map(|incident| incident["restarts"].as_u64()).sum();
    assert_eq!((all.len(), asked), (1, 3), "{all:?}");
    assert!(all[0]["ended"].is_null() && what(&all[0]).contains(&"not_restarted"), "{all:?}");
}

#[test]
fn an_operator_pauses_and_resumes() {
    if !live::can_run("an_operator_pauses_and_resumes") {
        return;
    }
    let (cgroup, place) = (Cgroup::new(None), tempfile::tempdir().expect("a directory"));
    let starts = place.path().join("starts");
    let config = counted(&cgroup, &starts, "grace = '50ms'");
    let agent = Agent::start(&config);
    healthy(&agent);
    let paused = agent.control(&["pause", "counted", "--for", "1h", "--reason", "new disk"]);
    assert!(paused.status.success(), "{}", String::from_utf8_lossy(&paused.stderr));
    kill(eventually("the service", || sleeper(&cgroup)));
    let held = "defib_restart_suppressed_total{reason=\"maintenance\",service=\"counted\"}";
    eventually("the decision", || (agent.metrics().get(held) == Some(1.0)).then_some(()));
    // It lasts over the agent's death.
    let agent = Agent::start_in(agent.crash(), &config);
    eventually("the decision again", || (agent.metrics().get(held) == Some(1.0)).then_some(()));
    let status = agent.control(&["status", "--json"]);
    let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!((&status[0]["service"], &status[0]["state"]), (&"counted".into(), &"maintenance".into()), "{status}");
    assert!(status[0]["paused_until"].is_string() && status[0]["pid"].is_null(), "{status}");
    assert_eq!(lines(&starts), 1, "no restart");
    let table = String::from_utf8(agent.control(&["status"]).stdout).expect("UTF-8");
    assert!(table.contains("paused until"), "{table}");

    assert!(agent.control(&["resume", "counted"]).status.success());
    healthy(&agent);
    assert_eq!(lines(&starts), 2);
    let unknown = agent.control(&["pause", "counte"]);
    let error = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert_eq!(unknown.status.code(), Some(1), "{error}");
    assert!(error.contains("\"counte\"") && error.contains("counted"), "{error}");
}

#[test]
fn a_thousand_services_that_die_at_once_cost_one_budget_and_leave_a_thousand_records() {
    const COUNT: usize = 1000;
    const BUDGET: usize = 7;
    if !live::can_run("a_thousand_services_that_die_at_once_cost_one_budget_and_leave_a_thousand_records") {
        return;
    }
    let parent = Cgroup::new(None);
    let cgroups: Vec<_> = (0..COUNT).map(|number| parent.child(&format!("s{number}"))).collect();
    let mut config = format!("[defaults]\nrestart = true\ngrace = '0s'\nbudget = {{ per_host = '{BUDGET}/1h' }}\n");
    for (number, cgroup) in cgroups.iter().enumerate() {
        config.push_str(&format!(
            "[[service]]\nname = \"s{number}\"\nhealth = \"exec:/bin/true\"\n\
             command = {{ start = [\"/bin/sleep\", \"1000\"], cgroup = \"{}\" }}\n",
            cgroup.path
        ));
    }
    let victims: Vec<_> = cgroups.iter().map(|cgroup| Victim::start(Some(cgroup), &["wait"])).collect();
    eventually("all to be where they belong", || {
        cgroups.iter().all(|cgroup| cgroup.members().len() == 1).then_some(())
    });
    let agent = Agent::start(&config);
    for victim in &victims {
        kill(i32::try_from(victim.pid()).expect("a pid"));
    }
    for victim in victims {
        victim.wait_with_input_open();
    }
    let metrics = eventually("every decision", || {
        let metrics = agent.metrics();
        let refused = |line: &&str| line.contains("reason=\"host_budget\"") && line.ends_with(" 1");
        (metrics.0.lines().filter(refused).count() == COUNT - BUDGET).then_some(metrics)
    });
    assert_eq!(metrics.sum("defib_events_lost_total"), 0.0);
    assert_eq!(metrics.sum("defib_deaths_total"), COUNT as f64);
    eventually("the restarts", || {
        let restarted = cgroups.iter().filter(|cgroup| sleeper(cgroup).is_some()).count();
        assert!(restarted <= BUDGET, "over budget");
        (restarted == BUDGET).then_some(())
    });
    let state = agent.state.path().to_str().expect("UTF-8").to_owned();
    let all = eventually("every record", || {
        let output = tests::defib::run(&["incidents", "--json", "--limit", "100000", "--state-dir", &state]);
        let all: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
        let restarts: u64 = all.iter().filter_map(|incident| incident["restarts"].as_u64()).sum();
        (all.len() == COUNT && restarts == BUDGET as u64).then_some(all)
    });
    assert!(all.iter().all(|incident| incident["cause"]["kind"] == "killed" && !what(incident).is_empty()));
    drop(agent);
    for pid in cgroups.iter().filter_map(sleeper) {
        kill(pid);
    }
}

#[test]
fn a_corrupt_store_is_set_aside_and_a_missing_disk_is_said() {
    if !live::can_run("a_corrupt_store_is_set_aside_and_a_missing_disk_is_said") {
        return;
    }
    let (cgroup, place) = (Cgroup::new(None), tempfile::tempdir().expect("a directory"));
    let config = counted(&cgroup, &place.path().join("starts"), "grace = '50ms'");
    let state = Agent::start(&config).crash();
    fs::write(state.path().join("defib.db"), vec![b'x'; 9000]).expect("spoilt");
    fs::remove_file(state.path().join("defib.db-wal")).ok();
    let agent = Agent::start_in(state, &config);
    let (_, ready) = agent.try_get("/readyz").expect("it answers");
    assert!(ready.contains("is now") && ready.contains("corrupt"), "{ready}");
    assert_eq!(agent.metrics().get("defib_store_ok"), Some(1.0));
    let state = agent.crash();
    let aside = fs::read_dir(state.path()).expect("listed").flatten().find(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with("defib.db.corrupt-") && !name.ends_with("-wal") && !name.ends_with("-shm")
    });
    assert_eq!(fs::read(aside.expect("kept").path()).expect("read"), vec![b'x'; 9000]);

    // A directory where the file should be: nothing can be written down.
    for file in ["defib.db", "defib.db-wal", "defib.db-shm"] {
        fs::remove_file(state.path().join(file)).ok();
    }
    fs::create_dir(state.path().join("defib.db")).expect("in the way");
    let agent = Agent::start_in(state, &config);
    let (status, ready) = agent.try_get("/readyz").expect("it answers");
    assert_eq!(status, 200, "the rest works");
    assert!(ready.contains("not working") && ready.contains("memory only"), "{ready}");
    assert_eq!(agent.metrics().get("defib_store_ok"), Some(0.0));
    healthy(&agent);
    let first = eventually("the service", || sleeper(&cgroup));
    kill(first);
    eventually("a new process", || sleeper(&cgroup).filter(|&pid| pid != first));
}

/// A file system in memory, so small that a file fills it.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(at: &'a Path) -> Self {
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m,mode=0700", "defib-test"]).arg(at).status();
        assert!(status.expect("mount starts").success(), "a file system at {}", at.display());
        Self(at)
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(self.0).status().ok();
    }
}

#[test]
fn a_disk_that_fills_up_is_said_and_keeps_no_service_down() {
    if !live::can_run("a_disk_that_fills_up_is_said_and_keeps_no_service_down") {
        return;
    }
    let (cgroup, place) = (Cgroup::new(None), tempfile::tempdir().expect("a directory"));
    let state = tests::defib::scratch();
    let path = state.path().to_owned();
    let _disk = SmallDisk::mount(&path);
    let agent = Agent::start_in(state, &counted(&cgroup, &place.path().join("starts"), "grace = '50ms'"));
    healthy(&agent);
    let first = eventually("the service", || sleeper(&cgroup));

    let full = path.join("full");
    let mut file = fs::File::create(&full).expect("a file");
    while file.write_all(&[b'x'; 512]).is_ok() {}
    kill(first);
    let second = eventually("a new process", || sleeper(&cgroup).filter(|&pid| pid != first));
    eventually("the full disk to be noticed", || (agent.metrics().get("defib_store_ok") == Some(0.0)).then_some(()));
    let (status, ready) = agent.try_get("/readyz").expect("it answers");
    assert_eq!(status, 200, "the rest works");
    assert!(ready.contains("not working") && ready.contains("full"), "{ready}");

    // With room again, what had to wait is written down.
    drop(file);
    fs::remove_file(&full).expect("removed");
    let incidents = eventually("the incident", || {
        let killed = |incident: &Value| incident["cause"]["kind"] == "killed" && incident["ended"].is_string();
        let all: Vec<_> = agent.incidents("counted").into_iter().filter(killed).collect();
        (!all.is_empty()).then_some(all)
    });
    assert_eq!((incidents.len(), &incidents[0]["restarts"]), (1, &1.into()), "{incidents:?}");
    assert_eq!(agent.metrics().get("defib_store_ok"), Some(1.0));
    assert_eq!(sleeper(&cgroup), Some(second), "no second restart");
}

/// Children of the agent that have ended and that it has not waited for.
fn zombies(agent: &Agent) -> Vec<String> {
    let list = fs::read_to_string(format!("/proc/{0}/task/{0}/children", agent.pid())).unwrap_or_default();
    let stats = list.split_ascii_whitespace().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok());
    stats.filter(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))).collect()
}

#[test]
fn what_an_agent_has_started_before_a_reload_leaves_no_zombie() {
    if !live::can_run("what_an_agent_has_started_before_a_reload_leaves_no_zombie") {
        return;
    }
    let (cgroup, place) = (Cgroup::new(None), tempfile::tempdir().expect("a directory"));
    let starts = place.path().join("starts");
    let config = counted(&cgroup, &starts, "grace = '0s'\nbackoff = { initial = '10ms', max = '20ms' }");
    let agent = Agent::start(&config);
    healthy(&agent);
    let reloads = |log: &str| log.matches(" watching ").count();
    for number in 1..=10 {
        agent.reload(&config);
        eventually("the next agent", || (reloads(&agent.log()) > number).then_some(()));
        if number % 3 == 0 {
            // The running service was started by the agent before the reload.
            let before = lines(&starts);
            kill(sleeper(&cgroup).expect("it lives"));
            eventually("the next one", || (lines(&starts) > before && sleeper(&cgroup).is_some()).then_some(()));
        }
    }
    healthy(&agent);
    assert_eq!(lines(&starts), 4);
    eventually("no zombie", || zombies(&agent).is_empty().then_some(()));
}

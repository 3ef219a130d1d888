//! The agent amid faults of its host: a disk that fails, one that stalls, no file descriptors, a stop of its own, cgroups that vanish, and ten
//! thousand at once. It lives through all of them, and what was lost is counted. A full disk stands in `healing.rs`; engines and
//! buses that are restarted in `containers.rs` and `systemd.rs`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tests::{
    cgroup::Cgroup,
    defib::{Agent, Metrics, scratch},
    eventually, live,
    victim::Victim,
};

const MIB: u64 = 1 << 20;

/// A service that lives until it is killed, healthy at once.
fn patient(cgroup: &Cgroup) -> String {
    format!(
        "[[service]]\nname = \"patient\"\nrestart = true\ngrace = \"100ms\"\nhealth = \"exec:/bin/true\"\n\
         command = {{ start = [\"/bin/sleep\", \"1000\"], cgroup = \"{}\" }}\n",
        cgroup.path
    )
}

/// One that is looked after and not started.
fn victims(cgroup: &Cgroup) -> String {
    format!("[[service]]\nname = \"victims\"\ncommand = {{ start = [\"/bin/false\"], cgroup = \"{}\" }}\n", cgroup.path)
}

/// The OOM kills of [`victims`], by whatever scope, which the kernel's log may not have said of all.
fn oom_kills(metrics: &Metrics) -> f64 {
    let own = |line: &&str| line.starts_with("defib_oom_kills_total{") && line.contains("service=\"victims\"");
    metrics.0.lines().filter(own).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

fn member(cgroup: &Cgroup, but: Option<i32>) -> i32 {
    eventually("the service", || cgroup.members().into_iter().find(|&pid| Some(pid) != but && is_sleep(pid)))
}

fn is_sleep(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep")
}

fn send(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("the process is there");
}

fn healthy(agent: &Agent) {
    eventually("health", || (agent.metrics().get("defib_service_up{service=\"patient\"}") == Some(1.0)).then_some(()));
}

/// Runs a program of the system; what it says when it fails.
fn system(words: &[&str]) -> Result<(), String> {
    let output = Command::new(words[0]).args(&words[1..]).output().map_err(|error| format!("{words:?}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A file system of a test's own in the place of a directory, unmounted when dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = system(&["umount", "--lazy", text(&self.0)]) {
            println!("left behind: {} ({error})", self.0.display());
        }
    }
}

/// Mounts a disk of its own, which is a file in `place`, in the place of `state`.
fn disk(test: &str, place: &TempDir, state: &TempDir) -> Option<Mounted> {
    let image = place.path().join("disk");
    fs::File::create(&image).and_then(|file| file.set_len(16 * MIB)).expect("a file");
    let made = system(&["mkfs.ext4", "-q", text(&image)])
        .and_then(|()| system(&["mount", "-o", "loop,errors=continue", text(&image), text(state.path())]));
    if let Err(error) = made {
        live::skip_ok(test, &format!("no file system in a file can be mounted here: {}", error.trim()));
        return None;
    }
    Some(Mounted(state.path().to_owned()))
}

/// A file system that takes nothing, until dropped: whoever writes waits.
struct Stalled<'a>(&'a Mounted);

impl<'a> Stalled<'a> {
    fn new(mounted: &'a Mounted) -> Self {
        system(&["fsfreeze", "--freeze", text(&mounted.0)]).expect("it can be frozen");
        Self(mounted)
    }
}

impl Drop for Stalled<'_> {
    fn drop(&mut self) {
        if let Err(error) = system(&["fsfreeze", "--unfreeze", text(&self.0.0)]) {
            println!("left frozen: {} ({error})", self.0.0.display());
        }
    }
}

/// Ends an agent whose state lies on such a file system, and takes both away.
fn leave(agent: Agent, mounted: Mounted) {
    let state: TempDir = agent.crash();
    drop(mounted);
    drop(state);
}

fn last_outcome(agent: &Agent) -> Option<Value> {
    agent.incidents("patient").pop().filter(|incident| incident["ended"].is_string())
}

#[test]
fn on_a_disk_that_fails_services_come_back_and_it_is_said() {
    const NAME: &str = "on_a_disk_that_fails_services_come_back_and_it_is_said";
    if !live::can_run(NAME) {
        return;
    }
    let (cgroup, place, state) = (Cgroup::new(None), scratch(), scratch());
    let Some(mounted) = disk(NAME, &place, &state) else { return };
    let agent = Agent::start_in(state, &patient(&cgroup));
    let first = member(&cgroup, None);
    healthy(&agent);
    // ext4's own way to try out a disk that fails (ext4(5), `abort`).
    system(&["mount", "-o", "remount,abort", text(&mounted.0)]).ok();
    assert!(fs::write(mounted.0.join("probe"), "x").is_err(), "nothing can be written any more");
    send(first, Signal::KILL);
    // Its output cannot be opened there, so the start is refused, counted, and tried again: a service without its log
    // is not what was asked for.
    eventually("the fault in the metrics", || {
        let metrics = agent.metrics();
        (metrics.get("defib_store_ok") == Some(0.0)).then_some(())
    });
    let (status, ready) = agent.try_get("/readyz").expect("answered");
    assert!(status == 200 && ready.contains("writing down state and incidents"), "{status} {ready}");
    leave(agent, mounted);
}

#[test]
fn on_a_disk_that_stalls_the_agent_goes_on_and_all_is_written_once_it_moves_again() {
    const NAME: &str = "on_a_disk_that_stalls_the_agent_goes_on_and_all_is_written_once_it_moves_again";
    /// More than the agent has threads to work with.
    const SERVICES: usize = 6;
    const STALLS: u32 = 10;
    if !live::can_run(NAME) {
        return;
    }
    let (place, state) = (scratch(), scratch());
    let cgroups: Vec<_> = (0..SERVICES).map(|_| Cgroup::new(None)).collect();
    let limited = Cgroup::new(Some(8 * MIB));
    let Some(mounted) = disk(NAME, &place, &state) else { return };
    let name = |number: usize| format!("patient-{number}");
    let services = cgroups.iter().enumerate().map(|(number, cgroup)| patient(cgroup).replace("patient", &name(number)));
    let defaults = "[defaults]\nbackoff = { initial = '10ms', max = '20ms' }\n\
                    budget = { per_service = '1000/1s', per_host = '1000/1s' }\n";
    let config = format!("{defaults}{}{}", services.collect::<String>(), victims(&limited));
    let agent = Agent::start_in(state, &config);
    let up = |agent: &Agent| {
        let metrics = agent.metrics();
        (0..SERVICES)
            .filter(|&number| metrics.get(&format!("defib_service_up{{service=\"{}\"}}", name(number))) == Some(1.0))
            .count()
    };
    let kills = |agent: &Agent| oom_kills(&agent.metrics());
    let all_up = |agent: &Agent| eventually("all services", || (up(agent) == SERVICES).then_some(()));
    all_up(&agent);

    let stalled = Stalled::new(&mounted);
    let first: Vec<_> = cgroups.iter().map(|cgroup| member(cgroup, None)).collect();
    first.iter().for_each(|&pid| send(pid, Signal::KILL));
    eventually("the deaths", || (up(&agent) == 0).then_some(()));
    // Their starts wait for the disk by now, all at once; whoever else is to be seen is seen.
    sleep(Duration::from_secs(1));
    assert!(!Victim::start(Some(&limited), &["leak"]).wait().success());
    eventually("an OOM kill meanwhile", || (kills(&agent) == 1.0).then_some(()));
    assert!(agent.try_get("/readyz").is_some_and(|(status, _)| status == 200));
    assert!(cgroups.iter().all(|cgroup| cgroup.members().into_iter().all(|pid| !is_sleep(pid))), "nowhere to write to");
    drop(stalled);
    for (cgroup, &first) in cgroups.iter().zip(&first) {
        member(cgroup, Some(first));
    }
    all_up(&agent);

    // And a disk that is slow: each death meets another moment of it.
    for stall in 1..=STALLS {
        let before = member(&cgroups[0], None);
        let stalled = Stalled::new(&mounted);
        send(before, Signal::KILL);
        assert!(!Victim::start(Some(&limited), &["leak"]).wait().success());
        sleep(Duration::from_millis(u64::from(stall * 37)));
        drop(stalled);
        member(&cgroups[0], Some(before));
        all_up(&agent);
    }
    let total = |number: usize| {
        let incidents = agent.incidents(&name(number));
        let over = incidents.iter().all(|incident| incident["ended"].is_string());
        let sum = |field: &str| incidents.iter().filter_map(|incident| incident[field].as_u64()).sum::<u64>();
        over.then(|| (sum("deaths"), sum("restarts")))
    };
    for number in 0..SERVICES {
        // The first incident tells that it was not running at all.
        let deaths = if number == 0 { 2 + u64::from(STALLS) } else { 2 };
        eventually("the records", || (total(number)? == (deaths, deaths)).then_some(()));
    }
    assert_eq!(kills(&agent), 1.0 + f64::from(STALLS));
    let metrics = agent.metrics();
    for counter in ["defib_store_write_errors_total", "defib_incidents_dropped_total", "defib_oom_audit_missed_total"] {
        assert_eq!(metrics.get(counter), Some(0.0), "{counter}");
    }
    assert_eq!(metrics.get("defib_events_lost_total{ring=\"critical\"}"), Some(0.0));
    leave(agent, mounted);
}

#[test]
fn without_file_descriptors_the_agent_lives_and_brings_the_service_back_when_there_are_some() {
    if !live::can_run("without_file_descriptors_the_agent_lives_and_brings_the_service_back_when_there_are_some") {
        return;
    }
    let cgroup = Cgroup::new(None);
    let agent = Agent::start(&patient(&cgroup));
    let first = member(&cgroup, None);
    healthy(&agent);
    let pid = agent.pid().to_string();
    let limit = |soft: u32| {
        system(&["prlimit", "--pid", &pid, &format!("--nofile={soft}:")]).expect("the limit can be set");
    };
    // Below all that it has open: each new one is refused.
    limit(3);
    send(first, Signal::KILL);
    eventually("a try that fails", || agent.log().contains("os error 24").then_some(()));
    assert!(cgroup.members().is_empty());
    limit(1024);
    member(&cgroup, Some(first));
    healthy(&agent);
    let incident = eventually("the record", || last_outcome(&agent).filter(|incident| incident["deaths"] == 1));
    assert_eq!(incident["outcome"], "restarted", "{incident}");
}

#[test]
fn an_agent_that_was_stopped_amid_a_storm_misses_no_death_that_it_watches_for() {
    const KILLS: u32 = 20;
    const STORM: u32 = 3000;
    if !live::can_run("an_agent_that_was_stopped_amid_a_storm_misses_no_death_that_it_watches_for") {
        return;
    }
    let (cgroup, limited) = (Cgroup::new(None), Cgroup::new(Some(8 * MIB)));
    let agent = Agent::start(&format!("{}{}", patient(&cgroup), victims(&limited)));
    let first = member(&cgroup, None);
    healthy(&agent);
    let restarts = "defib_restarts_total{result=\"ok\",service=\"patient\"}";
    eventually("the first start", || (agent.metrics().get(restarts) == Some(1.0)).then_some(()));
    let agent_pid = agent.pid() as i32;
    send(agent_pid, Signal::STOP);
    let storm = Victim::start(None, &["storm", &STORM.to_string(), "3"]);
    for _ in 0..KILLS {
        assert!(!Victim::start(Some(&limited), &["leak"]).wait().success());
    }
    send(first, Signal::KILL);
    assert!(storm.wait().success());
    sleep(Duration::from_secs(5));
    send(agent_pid, Signal::CONT);
    let second = member(&cgroup, Some(first));
    healthy(&agent);
    let metrics = eventually("the last of the kills", || {
        let metrics = agent.metrics();
        (oom_kills(&metrics) >= f64::from(KILLS)).then_some(metrics)
    });
    assert_eq!(oom_kills(&metrics), f64::from(KILLS), "each once");
    assert_eq!(metrics.get("defib_events_lost_total{ring=\"critical\"}"), Some(0.0));
    eventually("the restart, once", || (agent.metrics().get(restarts) == Some(2.0)).then_some(()));
    let exits = metrics.get("defib_process_exits_total{outcome=\"error\"}");
    assert!(exits >= Some(f64::from(STORM)), "the kernel counted on: {exits:?}");
    assert_eq!(member(&cgroup, None), second);
}

#[test]
fn cgroups_that_vanish_while_they_are_read_are_no_fault() {
    const ROUNDS: usize = 300;
    if !live::can_run("cgroups_that_vanish_while_they_are_read_are_no_fault") {
        return;
    }
    let cgroup = Cgroup::new(None);
    let agent = Agent::start(&format!("[forecast]\nsample = \"10ms\"\n{}", patient(&cgroup)));
    let first = member(&cgroup, None);
    healthy(&agent);
    for round in 0..ROUNDS {
        // Below the one that is measured all the time, with a process in it every now and then.
        let child = cgroup.child(&format!("round-{round}"));
        if round % 10 == 0 {
            Victim::start(Some(&child), &["exit", "0"]).wait();
        }
        drop(child);
        // And elsewhere, named as a unit's.
        drop(Cgroup::new(None).child("app.service"));
    }
    assert_eq!(member(&cgroup, None), first, "it was left alone");
    let log = agent.log();
    assert!(!log.contains("panicked") && !log.contains(" ERROR "), "{log}");
    send(first, Signal::KILL);
    member(&cgroup, Some(first));
    assert_eq!(agent.metrics().sum("defib_events_lost_total"), 0.0);
}

#[test]
fn ten_thousand_cgroups_at_once_are_all_known_and_cost_a_bounded_amount_of_memory() {
    const MANY: usize = 10_000;
    /// Of resident memory for each: its path, its name, and their places in the tables.
    const EACH: u64 = 2048;
    const REMEMBERED: f64 = 1024.0;
    if !live::can_run("ten_thousand_cgroups_at_once_are_all_known_and_cost_a_bounded_amount_of_memory") {
        return;
    }
    let (cgroup, parent) = (Cgroup::new(None), Cgroup::new(None));
    let agent = Agent::start(&patient(&cgroup));
    let first = member(&cgroup, None);
    healthy(&agent);
    let known = || agent.metrics().get("defib_cgroups").expect("counted");
    let (before, resident) = (known(), resident(agent.pid()));
    let many = Many { parent: &parent, count: MANY };
    let name = |number: usize| many.place(number);
    for number in 0..MANY {
        fs::create_dir(name(number)).expect("made");
    }
    eventually("all of them", || (known() >= before + MANY as f64).then_some(()));
    let grown = resident_after(agent.pid(), resident);
    assert!(grown < MANY as u64 * EACH, "{grown} bytes more");
    // A name that any user can choose must not become a label.
    let series = "defib_deaths_total{cause=\"killed\",service=\"other\"}";
    let others = agent.metrics().get(series).unwrap_or(0.0);
    let victim = Victim::start(None, &["wait"]);
    fs::write(name(MANY - 1).join("cgroup.procs"), victim.pid().to_string()).expect("moved");
    send(victim.pid() as i32, Signal::KILL);
    victim.wait();
    eventually("its death", || (agent.metrics().get(series)? > others).then_some(()));
    let named = format!("service=\"app-{}.service\"", MANY - 1);
    assert!(!agent.metrics().0.contains(&named), "only root puts cgroups below slices");
    drop(many);
    // The youngest of the dead stay known for a while, since their last deaths may still be on their way.
    eventually("their end", || (known() <= before + REMEMBERED + 100.0).then_some(()));
    send(first, Signal::KILL);
    member(&cgroup, Some(first));
    assert_eq!(agent.metrics().get("defib_events_lost_total{ring=\"critical\"}"), Some(0.0));
}

/// Cgroups named as units are, removed when dropped.
struct Many<'a> {
    parent: &'a Cgroup,
    count: usize,
}

impl Many<'_> {
    fn place(&self, number: usize) -> PathBuf {
        self.parent.directory.join(format!("app-{number}.service"))
    }
}

impl Drop for Many<'_> {
    fn drop(&mut self) {
        for number in 0..self.count {
            fs::remove_dir(self.place(number)).ok();
        }
    }
}

fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

fn resident_after(pid: u32, before: u64) -> u64 {
    resident(pid).saturating_sub(before)
}

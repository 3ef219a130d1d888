//! Attacks on services of systemd: a unit is only what systemd confirms.

use std::{fs, thread::sleep, time::Duration};

use tests::{
    attacker::{Attacker, Delegated, NOBODY},
    cage::Cage,
    defib::Agent,
    eventually,
    unit::{self, Unit, systemctl},
    victim::binary,
};

fn can_run(name: &str) -> bool {
    unit::can_run(name, "attacks")
}

/// Long enough for any wrong action to show.
const WHILE: Duration = Duration::from_secs(5);

/// An agent within the packaged unit's limits that restarts units named `attacked-…` at once.
fn agent(cage: &Cage, sections: &str) -> Agent {
    let config = format!(
        "[defaults]\nbudget = {{ per_service = '1000/1s', per_host = '1000/1s' }}\n\
         backoff = {{ initial = '10ms', max = '20ms' }}\n\
         [[service]]\nunit = 'attacked-*.service'\nrestart = true\ngrace = '0s'\nhealth = 'exec:/bin/true'\n{sections}"
    );
    Agent::start_caged(cage, &[], &config)
}

/// A systemd unit whose program attacks in its delegated cgroup.
fn attacking(name: &str, settings: &str, words: &str) -> Unit {
    let service = format!("User={NOBODY}\nDelegate=yes\n{settings}");
    Unit::start(name, &service, "", &format!("exec '{}' {words}", binary("attacker").display()), u32::MAX)
}

fn up(agent: &Agent, unit: &Unit) {
    let up = format!("defib_service_up{{service=\"{}\"}}", unit.name);
    eventually("the unit to be looked after", || (agent.metrics().get(&up) == Some(1.0)).then_some(()));
}

fn restarts(agent: &Agent, unit: &Unit) -> f64 {
    agent.metrics().get(&format!("defib_restarts_total{{result=\"ok\",service=\"{}\"}}", unit.name)).unwrap_or(0.0)
}

/// Kills the unit `times` times; Defib must restart it each time.
fn comes_back(agent: &Agent, unit: &Unit, times: u32) {
    for _ in 0..times {
        up(agent, unit);
        let (first, before) = (unit.main(), restarts(agent, unit));
        unit.kill();
        eventually("our restart", || (restarts(agent, unit) == before + 1.0 && unit.main() != first).then_some(()));
    }
}

#[test]
fn a_cgroup_that_is_called_as_a_unit_of_the_host_starts_none() {
    if !can_run("a_cgroup_that_is_called_as_a_unit_of_the_host_starts_none") {
        return;
    }
    let cage = Cage::new();
    // Loaded; must never run.
    let target = Unit::start("attacked-target", "Restart=no", "", "true", 0);
    systemctl(&["stop", &target.name]);
    let ran = target.starts();
    let honest = Unit::start("attacked-honest", "Restart=no", "", "true", 0);
    let agent = agent(&cage, "");
    up(&agent, &honest);
    let (container, inside) = (Delegated::new(), format!("lxc.payload.c1/system.slice/{}", target.name));
    let _container = Attacker::start(
        &[&container.entrance()],
        &["impostor", &container.at(&inside), "--exit", "1", "--again", "300"],
    );
    let below = format!("/sys/fs/cgroup/system.slice/payload.service/{inside}");
    let payload = attacking("payload", "Restart=no", &format!("impostor {below} --exit 1 --again 300"));
    comes_back(&agent, &honest, 2);
    sleep(WHILE);
    assert_eq!(target.starts(), ran, "the host's unit was started");
    assert_eq!(systemctl(&["show", "-P", "ActiveState", &target.name]), "inactive");
    assert_eq!(systemctl(&["show", "-P", "ActiveState", &payload.name]), "active", "the attack went on");
    // Made anew for each of its processes.
    eventually("a cgroup of the attack", || fs::metadata(&below).ok());
}

#[test]
fn orphans_below_a_unit_do_not_stand_for_it() {
    if !can_run("orphans_below_a_unit_do_not_stand_for_it") {
        return;
    }
    let cage = Cage::new();
    let agent = agent(&cage, "");
    // The unit keeps processes that its main process leaves (`KillMode=`).
    let words = "orphans /sys/fs/cgroup/system.slice/attacked-orphans.service";
    let unit = attacking("attacked-orphans", "Restart=no\nKillMode=process", words);
    eventually("it to be started again and again", || (restarts(&agent, &unit) >= 3.0).then_some(()));
    let honest = Unit::start("attacked-honest", "Restart=no", "", "true", 0);
    comes_back(&agent, &honest, 1);
}

#[test]
fn failing_exits_in_a_unit_start_no_crowd_of_questions() {
    /// Children of an agent at a time: questions, and room for others.
    const CHILDREN: usize = 8;
    if !can_run("failing_exits_in_a_unit_start_no_crowd_of_questions") {
        return;
    }
    let cage = Cage::new();
    let agent = agent(&cage, "");
    let failing = attacking("attacked-failing", "Restart=no", "failures 60");
    let honest = Unit::start("attacked-honest", "Restart=no", "", "true", 0);
    let (mut most, mut seen) = (0, 0.0);
    let deaths = format!("defib_deaths_total{{cause=\"exit\",service=\"{}\"}}", failing.name);
    for round in 0..200 {
        if round % 50 == 0 {
            comes_back(&agent, &honest, 1);
            seen = agent.metrics().get(&deaths).unwrap_or(0.0);
        }
        most = most.max(children(agent.pid()));
        sleep(Duration::from_millis(50));
    }
    println!("{most} children at a time at most, {seen} failing exits told, {:?} tasks refused", cage.refused_tasks());
    assert!(seen > 100.0, "they are seen: {seen}");
    assert_eq!(cage.refused_tasks().unwrap_or(0), 0, "the agent met its limit of tasks");
    assert!(most <= CHILDREN, "{most} children at a time");
}

/// The processes that a process has started and that have not ended.
fn children(pid: u32) -> usize {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .map(|text| text.split_ascii_whitespace().count())
        .sum()
}

#[test]
fn a_unit_s_new_cgroup_is_watched_however_many_others_there_are() {
    /// More than any table of the agent can hold; the kernel needs some KiB for a cgroup without a controller.
    const MANY: usize = 66_000;
    const EACH_KIB: usize = 8;
    if !can_run("a_unit_s_new_cgroup_is_watched_however_many_others_there_are") {
        return;
    }
    let text = fs::read_to_string("/proc/meminfo").expect("it can be read");
    let free = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<usize>().ok());
    let many = (free.expect("a number") * 2 / 3 / EACH_KIB).min(MANY);
    println!("{many} cgroups{}", if many < MANY { ": with --memory 2048 there is room for all" } else { "" });
    let (cage, delegated) = (Cage::new(), Delegated::new());
    let honest = Unit::start("attacked-honest", "Restart=no", "", "true", 0);
    let agent = agent(&cage, "");
    up(&agent, &honest);
    let words = ["cgroups", delegated.directory().to_str().expect("UTF-8"), &many.to_string(), "--keep"];
    let _attack = Attacker::start(&[&delegated.entrance()], &words);
    // Each incarnation has a new cgroup.
    comes_back(&agent, &honest, 3);
    println!("{} cgroups known", agent.metrics().get("defib_cgroups").unwrap_or(f64::NAN));
}

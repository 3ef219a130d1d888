//! Attacks with cgroups and processes that have the names of others: a name proves nothing.

use std::{fs, thread::sleep, time::Duration};

use rustix::process::{Pid, test_kill_process};
use tests::{
    attacker::{Attacker, Delegated, NOBODY, attack},
    cgroup::Cgroup,
    eventually, live,
};

use crate::scene::{Scene, attacking};

/// An id that no container has.
const ID: &str = "4fa6e0f0c6786287e131c3852c58a2e01cc697a68231826813597e4994f1d6e2";

/// Long enough for any wrong action to show.
const WHILE: Duration = Duration::from_secs(3);

#[test]
fn cgroups_with_names_of_containers_and_units_are_plain_cgroups() {
    if !live::can_run("cgroups_with_names_of_containers_and_units_are_plain_cgroups") {
        return;
    }
    let delegated = Delegated::new();
    delegated.pass_memory_on();
    let user = Delegated::below(&delegated, "user@65534.service");
    user.pass_memory_on();
    let entrance = delegated.entrance();
    // Rules that restart anything with these names at once.
    let wide = "[[service]]\nunit = 'x.service'\nrestart = true\ngrace = '0s'\n\
                [[service]]\nunit = 'y.service'\nrestart = true\ngrace = '0s'\n\
                [[service]]\ncontainer = '*'\nrestart = true\ngrace = '0s'\ndrain_at = 0.1\npool = 'theirs'\n";
    let mut scene = Scene::new(1, wide);
    let names = [
        user.at(&format!("docker-{ID}.scope")),
        user.at(&format!("libpod-{ID}.scope")),
        user.at(&format!("cri-containerd-{ID}.scope")),
        user.at(&format!("crio-{ID}.scope")),
        user.at(&format!("docker/{ID}")),
        delegated.at("lxc.payload.c1/system.slice/x.service"),
        delegated.at("system.slice/y.service"),
    ];
    let attacks: Vec<_> = names
        .iter()
        .map(|name| Attacker::start(&[&entrance], &["impostor", name, "--exit", "1", "--again", "200"]))
        .collect();
    let hogs: Vec<_> = [("docker", 24), ("libpod", 64)]
        .map(|(kind, mib)| {
            let place = user.at(&format!("{kind}-{}.scope", ID.replace('4', "5")));
            Attacker::start(
                &[&entrance],
                &["impostor", &place, "--limit", "32", "--mib", &mib.to_string(), "--again", "500"],
            )
        })
        .into();
    scene.go_through_all();
    sleep(WHILE);
    let labels = scene.labels();
    let claimed = |name: &str| {
        let is_id =
            name.contains(':') && name.split(':').nth(1).is_some_and(|id| ID.starts_with(id) || id.starts_with("5fa6"));
        is_id || ["x.service", "y.service"].contains(&name)
    };
    let claimed: Vec<_> = labels.keys().filter(|name| claimed(name)).collect();
    assert!(claimed.is_empty(), "services that no owner confirmed: {claimed:?}");
    let log = scene.agent.log();
    for name in ["x.service", "y.service"] {
        let acted =
            log.lines().find(|line| line.contains(name) && (line.contains("start") || line.contains("restart")));
        assert_eq!(acted, None, "something was done for {name}");
    }
    drop((attacks, hogs));
}

#[test]
fn orphans_in_a_cgroup_below_do_not_stand_for_the_service() {
    if !live::can_run("orphans_in_a_cgroup_below_do_not_stand_for_the_service") {
        return;
    }
    // The operator delegates this cgroup to the service, which may make cgroups below.
    let cgroup = Delegated::new();
    let directory = cgroup.directory().to_str().expect("UTF-8");
    let mut scene = Scene::new(1, &attacking("orphaned", cgroup.path(), "", &["orphans", directory]));
    let deaths = "defib_deaths_total{cause=\"exit\",service=\"orphaned\"}";
    // Its main process ends one second after each start, so each death follows a start.
    let metrics = eventually("the service to be started again and again", || {
        let metrics = scene.agent.metrics();
        (metrics.get(deaths) >= Some(5.0)).then_some(metrics)
    });
    let respawned = "defib_restart_suppressed_total{reason=\"respawned\",service=\"orphaned\"}";
    assert_eq!(metrics.get(respawned), Some(0.0), "an orphan was taken for the service");
    scene.go_through_all();
}

#[test]
fn a_name_alone_makes_no_engine_and_no_memory_killer() {
    if !live::can_run("a_name_alone_makes_no_engine_and_no_memory_killer") {
        return;
    }
    const NAMES: [&str; 6] = ["runc", "dockerd", "containerd-shim", "systemd-oomd", "earlyoom", "systemd"];
    let (cgroup, own) = (Cgroup::new(None), Delegated::new());
    let mut scene = Scene::new(1, &attacking("theirs", &cgroup.path, "", &["idle"]));
    let mut last = 0;
    for name in NAMES {
        // The process that already runs as the attacker's user.
        let pid = eventually("the service", || {
            let pid = *cgroup.members().first()?;
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            (pid != last && status.contains(&format!("\nUid:\t{NOBODY}\t"))).then_some(pid)
        });
        last = pid;
        attack(&[own.directory()], &["--comm", name, "kill", &pid.to_string(), "9"]);
        eventually("its end", || is_gone(pid).then_some(()));
    }
    let deaths = |cause: &str| {
        let series = format!("defib_deaths_total{{cause=\"{cause}\",service=\"theirs\"}}");
        scene.agent.metrics().get(&series).unwrap_or(0.0)
    };
    eventually("all deaths to be told", || {
        let told: f64 = ["killed", "stopped", "userspace_oom_kill", "watchdog", "unknown"].map(deaths).iter().sum();
        (told >= NAMES.len() as f64).then_some(())
    });
    assert_eq!(deaths("killed"), NAMES.len() as f64, "the others were called something else");
    scene.go_through_all();
}

fn is_gone(pid: i32) -> bool {
    // Signal 0 asks whether there is such a process.
    Pid::from_raw(pid).is_none_or(|pid| test_kill_process(pid).is_err())
}

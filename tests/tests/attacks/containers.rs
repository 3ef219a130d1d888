//! Attacks on services of a real container engine: a container is only what its engine confirms.

use std::{fs, thread::sleep, time::Duration};

use tests::{
    attacker::{Attacker, Delegated, NOBODY, attack},
    cage::Cage,
    defib::Agent,
    engine::{Engine, Kind},
    eventually, live,
};

/// Long enough for any wrong action to show.
const WHILE: Duration = Duration::from_secs(8);

#[test]
fn a_cgroup_with_the_id_of_a_running_container_is_not_that_container() {
    if !live::can_run("a_cgroup_with_the_id_of_a_running_container_is_not_that_container") {
        return;
    }
    if let Some(what) = Kind::Docker.missing() {
        return live::skip_ok(
            "a_cgroup_with_the_id_of_a_running_container_is_not_that_container",
            &format!("needs {what}"),
        );
    }
    let (engine, cage, delegated) = (Engine::start(Kind::Docker), Cage::new(), Delegated::new());
    let place = tempfile::tempdir().expect("a directory");
    let (asked, command) = (place.path().join("asked"), place.path().join("command"));
    fs::write(&command, format!("#!/bin/sh\necho asked >> {}\n", asked.display())).expect("written");
    std::os::unix::fs::chown(&command, Some(0), Some(0)).expect("root's");
    fs::set_permissions(&command, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("its mode can be set");
    let (variable, host) = engine.variable();
    // All actions for the container are enabled and immediate.
    let config = format!(
        "[forecast]\nsample = '200ms'\n[[service]]\ncontainer = 'web'\nrestart = true\ngrace = '0s'\n\
         health = 'exec:/bin/true'\npool = 'web'\ndrain_at = 0.5\n\
         before_oom = {{ command = ['{}'], within = '10m' }}\nplanned_restart = {{ when = '4h', min_uptime = '1s' }}\n",
        command.display()
    );
    let agent = Agent::start_caged(&cage, &[(variable, &host)], &config);
    let id = engine.start_container("web", &["--memory", "512m"], "trap 'exit 0' TERM; while :; do sleep 0.2; done");
    let up = "defib_service_up{service=\"web\"}";
    eventually("the container to be looked after", || (agent.metrics().get(up) == Some(1.0)).then_some(()));
    let started = || engine.run(&["inspect", "-f", "{{.State.StartedAt}} {{.State.Pid}}", "web"]);
    let before = started();

    delegated.pass_memory_on();
    let user = Delegated::below(&delegated, "user@65534.service");
    user.pass_memory_on();
    let entrance = delegated.entrance();
    let names = [
        user.at(&format!("docker-{id}.scope")),
        user.at(&format!("docker/{id}")),
        delegated.at(&format!("docker-{id}.scope")),
    ];
    // One impostor fills its limit and stays; others run out of memory again and again.
    let mut attacks = vec![Attacker::start(&[&entrance], &["impostor", &names[0], "--limit", "64", "--mib", "58"])];
    for name in &names[1..] {
        attacks
            .push(Attacker::start(&[&entrance], &["impostor", name, "--limit", "16", "--mib", "64", "--again", "500"]));
    }
    let begin = std::time::Instant::now();
    while begin.elapsed() < WHILE {
        let pool = agent.try_get("/pool/web").map(|(status, _)| status);
        assert_eq!(pool, Some(200), "the container was drained for a stranger's memory");
        sleep(Duration::from_millis(100));
    }
    assert_eq!(started(), before, "the healthy container was restarted");
    assert!(!asked.exists(), "a command ran as root on a stranger's process");
    let metrics = agent.metrics();
    for cause in ["oom_kill", "exit", "killed"] {
        let series = format!("defib_deaths_total{{cause=\"{cause}\",service=\"web\"}}");
        assert_eq!(
            metrics.get(&series).unwrap_or(0.0),
            0.0,
            "{series}: a stranger's deaths were taken for the container's"
        );
    }
    assert!(agent.incidents("web").is_empty(), "{:?}", agent.incidents("web"));
    // The real container is still managed.
    let pid =
        engine.run(&["inspect", "-f", "{{.State.Pid}}", "web"]).parse().ok().and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(pid.expect("a pid"), rustix::process::Signal::KILL).expect("killed");
    let incident = eventually("the end of its outage", || {
        agent.incidents("web").pop().filter(|incident| incident["ended"].is_string())
    });
    assert_eq!((&incident["outcome"], &incident["restarts"]), (&"restarted".into(), &1.into()), "{incident}");
    drop(attacks);
}

#[test]
fn a_process_that_is_called_as_an_engine_stops_no_container() {
    const NAMES: [&str; 4] = ["runc", "dockerd", "containerd-shim", "podman"];
    if !live::can_run("a_process_that_is_called_as_an_engine_stops_no_container") {
        return;
    }
    if let Some(what) = Kind::Docker.missing() {
        return live::skip_ok("a_process_that_is_called_as_an_engine_stops_no_container", &format!("needs {what}"));
    }
    let (engine, cage, own) = (Engine::start(Kind::Docker), Cage::new(), Delegated::new());
    let (variable, host) = engine.variable();
    let config = "[defaults]\nbudget = { per_service = '1000/1s', per_host = '1000/1s' }\n\
                  backoff = { initial = '10ms', max = '20ms' }\n[[service]]\ncontainer = 'web'\nrestart = true\n\
                  grace = '0s'\nhealth = 'exec:/bin/true'\n";
    let agent = Agent::start_caged(&cage, &[(variable, &host)], config);
    let user = NOBODY.to_string();
    engine.start_container("web", &["--user", &user], "trap 'exit 0' TERM; while :; do sleep 0.2; done");
    let up = "defib_service_up{service=\"web\"}";
    for (number, name) in NAMES.into_iter().enumerate() {
        eventually("the container to be looked after", || (agent.metrics().get(up) == Some(1.0)).then_some(()));
        let pid = engine.run(&["inspect", "-f", "{{.State.Pid}}", "web"]);
        attack(&[own.directory()], &["--comm", name, "kill", &pid, "9"]);
        let incident = eventually(&format!("our answer to what is called {name}"), || {
            agent.incidents("web").into_iter().nth(number).filter(|incident| incident["ended"].is_string())
        });
        assert_eq!(incident["cause"]["kind"], "killed", "by what is called {name}: {incident}");
        assert_eq!(incident["outcome"], "restarted", "{incident}");
    }
}

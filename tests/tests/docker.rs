//! Deaths in containers of a real Docker engine: called by the container's name, main process told from worker.

use tests::{PATIENCE, defib::Watch, docker, live};

/// A shell that doubles a string until it is killed.
const LEAK: &str = "x=a; while :; do x=$x$x; done";

#[test]
fn deaths_in_containers_carry_the_container_s_name() {
    const NAME: &str = "deaths_in_containers_carry_the_container_s_name";
    if !live::can_run(NAME) {
        return;
    }
    if let Some(what) = docker::missing() {
        live::skip_ok(NAME, &format!("needs {what}"));
        return;
    }
    live::let_the_kernel_log_recover();
    let engine = docker::Engine::start();
    let mut watch = Watch::start_with(&[("DOCKER_HOST", &engine.host())], &[]);
    let run = |name: &str, script: &str| {
        engine.run(&[
            "run",
            "-d",
            "--name",
            name,
            "--network",
            "none",
            "--memory",
            "20m",
            "busybox",
            "sh",
            "-c",
            script,
        ])
    };

    // The sleep is a worker that exits cleanly; it also gives the engine the time to answer for the name.
    let id = run("web", &format!("sleep 1; {LEAK}"));
    let death = watch.find(PATIENCE, |line| line["service"] == "web").expect("a death in the container");
    assert_eq!(death["cause"]["kind"], "oom_kill", "{death}");
    assert_eq!(death["cause"]["scope"], "memcg", "{death}");
    assert_eq!(death["role"], "main", "{death}");
    assert!(death["cgroup"].as_str().is_some_and(|path| path.contains(&id)), "{death}");
    assert!(death["cause"]["limit_owner"].as_str().is_some_and(|path| path.contains(&id)), "{death}");

    let id = run("parent", &format!("sleep 1; (:; {LEAK}); sleep 1000"));
    let death = watch.find(PATIENCE, |line| line["service"] == "parent").expect("a death in the container");
    assert_eq!((&death["cause"]["kind"], &death["role"]), (&"oom_kill".into(), &"worker".into()), "{death}");
    assert_eq!(engine.run(&["inspect", "-f", "{{.State.Running}}", &id]), "true", "its main process survived");

    run("five", "sleep 1; exit 5");
    let death = watch.find(PATIENCE, |line| line["service"] == "five").expect("a death in the container");
    assert_eq!((&death["cause"]["kind"], &death["cause"]["code"]), (&"exit".into(), &5.into()), "{death}");
}

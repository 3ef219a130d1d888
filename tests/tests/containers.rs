//! Deaths in containers of real engines, Docker and Podman: called by the container's name, main process told from worker,
//! brought back when nobody else does.

use std::{thread::sleep, time::Duration};

use tests::{
    PATIENCE,
    defib::{Agent, Watch},
    engine::{Engine, Kind},
    eventually, live,
};

/// A shell that doubles a string until it is killed.
const LEAK: &str = "x=a; while :; do x=$x$x; done";

fn can_run(name: &str, kind: Kind) -> bool {
    if !live::can_run(name) {
        return false;
    }
    if let Some(what) = kind.missing() {
        live::skip_ok(name, &format!("needs {what}"));
        return false;
    }
    true
}

#[test]
fn deaths_in_containers_carry_the_container_s_name() {
    if !can_run("deaths_in_containers_carry_the_container_s_name", Kind::Docker) {
        return;
    }
    live::let_the_kernel_log_recover();
    let engine = Engine::start(Kind::Docker);
    let (variable, host) = engine.variable();
    let mut watch = Watch::start_with(&[(variable, &host)], &[]);
    let run = |name: &str, script: &str| engine.start_container(name, &["--memory", "20m"], script);

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

const CONFIG: &str =
    "[[service]]\ncontainer = \"kept-*\"\nrestart = true\ngrace = \"100ms\"\nhealth = \"exec:/bin/true\"\n";

/// An engine with an agent that looks after its containers.
fn looked_after(kind: Kind) -> (Engine, Agent) {
    let engine = Engine::start(kind);
    let (variable, host) = engine.variable();
    let agent = Agent::start_among(&[(variable, &host)], CONFIG);
    (engine, agent)
}

fn run(engine: &Engine, agent: &Agent, name: &str, policy: &str) {
    let script = "trap 'exit 0' TERM; while :; do sleep 0.2; done";
    engine.start_container(name, &["--restart", policy], script);
    let up = format!("defib_service_up{{service=\"{name}\"}}");
    eventually("the container to be looked after", || (agent.metrics().get(&up) == Some(1.0)).then_some(()));
}

fn pid(engine: &Engine, name: &str) -> i32 {
    engine.run(&["inspect", "-f", "{{.State.Pid}}", name]).parse().expect("a pid")
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
}

#[test]
fn dead_containers_come_back_unless_docker_or_an_operator_has_them() {
    if !can_run("dead_containers_come_back_unless_docker_or_an_operator_has_them", Kind::Docker) {
        return;
    }
    let (engine, agent) = looked_after(Kind::Docker);
    come_back(&engine, &agent);

    // What happened while no agent was there, Docker remembers.
    let state = while_no_agent_runs(&engine, agent);
    let (variable, host) = engine.variable();
    let agent = Agent::start_in_among(state, &[(variable, &host)], CONFIG);
    let incident = eventually("the second outage of kept-no", || {
        agent.incidents("kept-no").into_iter().nth(1).filter(|incident| incident["ended"].is_string())
    });
    assert_eq!((&incident["outcome"], &incident["restarts"]), (&"restarted".into(), &1.into()), "{incident}");
    eventually("the decision", || (agent.metrics().get(LEFT_STOPPED) == Some(1.0)).then_some(()));
    assert!(!runs(&engine, "kept-stopped"));
}

#[test]
fn dead_containers_come_back_unless_podman_or_an_operator_has_them() {
    if !can_run("dead_containers_come_back_unless_podman_or_an_operator_has_them", Kind::Podman) {
        return;
    }
    let (engine, agent) = looked_after(Kind::Podman);
    come_back(&engine, &agent);

    // Podman does not remember who stopped what, so neither is touched.
    let state = while_no_agent_runs(&engine, agent);
    let (variable, host) = engine.variable();
    let agent = Agent::start_in_among(state, &[(variable, &host)], CONFIG);
    eventually("the decision", || (agent.metrics().get(LEFT_STOPPED) == Some(1.0)).then_some(()));
    let left_dead = "defib_restart_suppressed_total{reason=\"intended_stop\",service=\"kept-no\"}";
    eventually("the other decision", || (agent.metrics().get(left_dead) == Some(1.0)).then_some(()));
    assert!(!runs(&engine, "kept-stopped") && !runs(&engine, "kept-no"));
}

/// That `kept-stopped` was left as an operator wanted it.
const LEFT_STOPPED: &str = "defib_restart_suppressed_total{reason=\"intended_stop\",service=\"kept-stopped\"}";

fn runs(engine: &Engine, name: &str) -> bool {
    engine.run(&["inspect", "-f", "{{.State.Running}}", name]) == "true"
}

/// With `no` it comes back, with `always` it is left to the engine, and stopped it stays.
fn come_back(engine: &Engine, agent: &Agent) {
    for (name, policy) in [("kept-no", "no"), ("kept-always", "always"), ("kept-stopped", "no")] {
        run(engine, agent, name, policy);
    }
    let ended = |service: &str| {
        eventually(&format!("the end of {service}'s outage"), || {
            agent.incidents(service).pop().filter(|incident| incident["ended"].is_string())
        })
    };

    let first = pid(engine, "kept-no");
    kill(first);
    let incident = ended("kept-no");
    assert_eq!((&incident["outcome"], &incident["restarts"]), (&"restarted".into(), &1.into()), "{incident}");
    assert!(incident["timeline"].to_string().contains("restart policy no"), "{incident}");
    assert_ne!(pid(engine, "kept-no"), first);

    kill(pid(engine, "kept-always"));
    let incident = ended("kept-always");
    assert_eq!((&incident["outcome"], &incident["restarts"]), (&"respawned".into(), &0.into()), "{incident}");
    assert!(!incident["timeline"].to_string().contains("unreachable"), "{incident}");

    engine.run(&["stop", "-t", "10", "kept-stopped"]);
    eventually("the decision", || (agent.metrics().get(LEFT_STOPPED) == Some(1.0)).then_some(()));
    sleep(Duration::from_secs(1));
    assert!(!runs(engine, "kept-stopped"));
    assert!(agent.incidents("kept-stopped").is_empty(), "no outage");
}

/// The agent is killed, `kept-stopped` started before and stopped meanwhile, `kept-no` killed; what the agent has left.
fn while_no_agent_runs(engine: &Engine, agent: Agent) -> tempfile::TempDir {
    engine.run(&["start", "kept-stopped"]);
    let up = "defib_service_up{service=\"kept-stopped\"}";
    eventually("the container to be looked after", || (agent.metrics().get(up) == Some(1.0)).then_some(()));
    // What an agent has seen is on the disk some milliseconds later.
    let started = pid(engine, "kept-stopped");
    eventually("the new process to be written down", || {
        (agent.kept("kept-stopped")?["process"]["tgid"] == started).then_some(())
    });
    let state = agent.crash();
    engine.run(&["stop", "-t", "10", "kept-stopped"]);
    kill(pid(engine, "kept-no"));
    eventually("the engine to notice", || (!runs(engine, "kept-no")).then_some(()));
    state
}

#[test]
fn an_engine_that_does_not_answer_is_asked_again() {
    if !can_run("an_engine_that_does_not_answer_is_asked_again", Kind::Docker) {
        return;
    }
    let (engine, agent) = looked_after(Kind::Docker);
    run(&engine, &agent, "kept-late", "no");
    let first = pid(&engine, "kept-late");
    engine.stand_still();
    kill(first);
    let unreachable = "defib_restart_suppressed_total{reason=\"supervisor_unreachable\",service=\"kept-late\"}";
    eventually("the silence to be noticed", || (agent.metrics().get(unreachable) == Some(1.0)).then_some(()));
    engine.go_on();
    let incident = eventually("the end of the outage", || {
        agent.incidents("kept-late").pop().filter(|incident| incident["ended"].is_string())
    });
    assert_eq!((&incident["outcome"], &incident["restarts"]), (&"restarted".into(), &1.into()), "{incident}");
    assert!(incident["timeline"].to_string().contains("does not answer"), "{incident}");
}

#[test]
fn a_container_that_will_run_out_of_memory_is_restarted_by_docker_before_it_does() {
    if !can_run("a_container_that_will_run_out_of_memory_is_restarted_by_docker_before_it_does", Kind::Docker) {
        return;
    }
    // A quarter of a MiB, and so much more each quarter of a second. A minute of the forecast is a second.
    const SLOWLY: &str = "trap 'exit 0' TERM; c=abcdefgh; i=0; while [ $i -lt 15 ]; do c=$c$c; i=$((i+1)); done; \
        while :; do eval \"v$i=\\$c\"; i=$((i+1)); sleep 0.25; done";
    let config =
        format!("[forecast]\nsample = \"1s\"\n{CONFIG}planned_restart = {{ when = \"0s\", min_uptime = \"3s\" }}\n");
    let engine = Engine::start(Kind::Docker);
    let (variable, host) = engine.variable();
    let agent = Agent::start_among(&[(variable, &host)], &config);
    engine.start_container("kept-leak", &["--memory", "40m", "--restart", "unless-stopped"], SLOWLY);
    let first = pid(&engine, "kept-leak");
    let incident = eventually("the record", || {
        agent.incidents("kept-leak").pop().filter(|incident| incident["ended"].is_string())
    });
    assert_eq!((&incident["kind"], &incident["outcome"]), (&"planned_restart".into(), &"renewed".into()), "{incident}");
    assert_ne!(pid(&engine, "kept-leak"), first);
    let metrics = agent.metrics();
    let done = "defib_planned_restarts_total{result=\"ok\",service=\"kept-leak\"}";
    assert_eq!(metrics.get(done), Some(1.0), "{}", metrics.0);
    assert_eq!(metrics.get("defib_oom_kills_total{scope=\"memcg\",service=\"kept-leak\"}"), Some(0.0));
    assert_eq!(agent.incidents("kept-leak").len(), 1, "and no outage");
}

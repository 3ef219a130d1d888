//! What a real Docker engine does to its containers, and what they do to themselves.

use serde_json::{Value, json};
use tests::engine::Kind;

use crate::{case::Case, facts, scene::Scene};

const fn case(id: &'static str, title: &'static str, expect: &'static str, act: fn(&mut Scene<'_>)) -> Case {
    Case { id, group: "containers", title, expect, cannot: no_engine, act }
}

pub(crate) const CASES: &[Case] = &[
    case("container_oom", "a container takes more than its limit", "oom_kill", oom),
    case("container_child_oom", "a child in a container takes too much", "oom_kill", child_oom),
    case("docker_stop", "docker stop", "stopped", stop),
    case("docker_stop_timeout", "docker stop of a container that does not mind", "stopped", stop_timeout),
    case("docker_kill", "docker kill", "stopped", kill),
    case(
        "container_init_exit",
        "the first process of a container exits, the rest goes with it",
        "container_teardown",
        end,
    ),
];

fn no_engine() -> Option<String> {
    facts::lacks(&["dockerd", "docker"])
        .or_else(|| Kind::Docker.missing().map(|what| format!("{what} is not installed")))
}

/// A shell that doubles a string until it is killed.
const LEAK: &str = "x=a; while :; do x=$x$x; done";

/// Starts a container that is called `name`; its id.
fn run(scene: &mut Scene<'_>, name: &str, script: &str) -> String {
    let words = ["run", "-d", "--name", name, "--network", "none", "--memory", "20m", "busybox", "sh", "-c", script];
    scene.engine().run(&words)
}

/// Starts a container whose first process waits, and returns when it does and the engine has told its name: until then a
/// death there has the container's id. A busy engine takes its time for that.
fn run_ready(scene: &mut Scene<'_>, name: &str, script: &str) {
    run(scene, name, &format!("{script}; while :; do sleep 0.2; done"));
    scene.death(&format!("a sleep in {name}"), |death| death["service"] == name && death["comm"] == "sleep");
}

/// Starts a container that does what `script` says once the engine has told its name; its id.
fn run_named(scene: &mut Scene<'_>, name: &str, script: &str) -> String {
    let id = run(scene, name, &format!("trap 'go=1' USR1; while [ -z \"$go\" ]; do sleep 0.2; done; {script}"));
    scene.death(&format!("a sleep in {name}"), |death| death["service"] == name && death["comm"] == "sleep");
    scene.engine().run(&["kill", "-s", "USR1", name]);
    id
}

/// The death of a container's first process or of another.
fn death(scene: &mut Scene<'_>, name: &str, role: &str) -> Value {
    let abnormal = |death: &Value| death["cause"]["kind"] != "clean_exit" || role == "main";
    scene.death(&format!("the {role} process of {name}"), |death| {
        death["service"] == name && death["role"] == role && abnormal(death)
    })
}

fn oom(scene: &mut Scene<'_>) {
    scene.let_the_kernel_log_recover();
    let id = run_named(scene, "leaking", LEAK);
    let death = death(scene, "leaking", "main");
    scene.expected(&death);
    scene.has(&death, "/signal", 9);
    scene.has(&death, "/cause/scope", "memcg");
    let owner = death["cause"]["limit_owner"].as_str().is_some_and(|owner| owner.contains(&id));
    scene.holds(&death, "the limit is the container's", owner);
    scene.has(&death, "/cause/limit_bytes", 20 << 20);
}

fn child_oom(scene: &mut Scene<'_>) {
    scene.let_the_kernel_log_recover();
    let id = run_named(scene, "parent", &format!("(:; {LEAK}); sleep 1000"));
    let death = death(scene, "parent", "worker");
    scene.expected(&death);
    scene.has(&death, "/signal", 9);
    scene.has(&death, "/cause/scope", "memcg");
    let running = scene.engine().run(&["inspect", "-f", "{{.State.Running}}", &id]);
    scene.fact("the main process lives", running.as_str(), "true");
    scene.engine().run(&["rm", "-f", &id]);
}

fn stop(scene: &mut Scene<'_>) {
    run_ready(scene, "polite", "trap 'exit 0' TERM");
    scene.engine().run(&["stop", "-t", "30", "polite"]);
    let death = death(scene, "polite", "main");
    scene.expected(&death);
    scene.has(&death, "/exit_code", 0);
    scene.has(&death, "/cause/forced", json!(false));
}

fn stop_timeout(scene: &mut Scene<'_>) {
    run_ready(scene, "deaf", "trap '' TERM");
    scene.engine().run(&["stop", "-t", "1", "deaf"]);
    let death = death(scene, "deaf", "main");
    scene.expected(&death);
    scene.has(&death, "/signal", 9);
    scene.has(&death, "/cause/forced", json!(true));
}

fn kill(scene: &mut Scene<'_>) {
    run_ready(scene, "unlucky", ":");
    scene.engine().run(&["kill", "unlucky"]);
    let death = death(scene, "unlucky", "main");
    scene.expected(&death);
    scene.has(&death, "/signal", 9);
    scene.has(&death, "/cause/forced", json!(false));
}

fn end(scene: &mut Scene<'_>) {
    run_named(scene, "short", "sleep 1000 & sleep 1; exit 0");
    let worker = death(scene, "short", "worker");
    scene.expected(&worker);
    scene.has(&worker, "/signal", 9);
    scene.has(&worker, "/comm", "sleep");
    let main = death(scene, "short", "main");
    scene.is_a(&main, "clean_exit");
    scene.has(&worker, "/cause/by/tgid", main["tgid"].clone());
}

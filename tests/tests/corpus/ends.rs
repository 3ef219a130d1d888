//! Processes that end by themselves, and ids that come again.

use serde_json::{Value, json};
use tests::victim::Victim;

use crate::{
    case::Case,
    facts,
    scene::Scene,
    signals::{is_asleep, kill},
};

const fn case(id: &'static str, title: &'static str, expect: &'static str, act: fn(&mut Scene<'_>)) -> Case {
    Case { id, group: "ends", title, expect, cannot: facts::always, act }
}

pub(crate) const CASES: &[Case] = &[
    case("exit_0", "a service that should stay exits with 0", "clean_exit", exit_0),
    case("exit_n", "a service exits with a code", "exit", exit_n),
    case("exit_after_leader", "the first thread leaves, another exits with a code", "exit", exit_after_leader),
    case("exec_in_thread", "a thread becomes another program, which exits with a code", "exit", exec_in_thread),
    case("exec_failed", "a child becomes a program that is not there", "exit", exec_failed),
    case("pid_reuse", "one process id: OOM-killed, then killed, then OOM-killed", "oom_kill", pid_reuse),
];

fn exit_0(scene: &mut Scene<'_>) {
    let cgroup = scene.cgroup(None);
    let death = scene.dies(Some(&cgroup), &["exit", "0"]);
    scene.expected(&death);
    scene.has(&death, "/service", cgroup.path.as_str());
    scene.has(&death, "/role", "main");
    scene.has(&death, "/exit_code", 0);
}

fn exit_n(scene: &mut Scene<'_>) {
    let cgroup = scene.cgroup(None);
    let death = scene.dies(Some(&cgroup), &["exit", "42"]);
    scene.expected(&death);
    scene.has(&death, "/service", cgroup.path.as_str());
    scene.has(&death, "/exit_code", 42);
    scene.has(&death, "/cause/code", 42);
}

fn exit_after_leader(scene: &mut Scene<'_>) {
    let death = scene.dies(None, &["exit-after-leader", "7"]);
    scene.expected(&death);
    scene.has(&death, "/exit_code", 7);
}

fn exec_in_thread(scene: &mut Scene<'_>) {
    let death = scene.dies(None, &["exec-in-thread", "5"]);
    scene.expected(&death);
    scene.has(&death, "/exit_code", 5);
    scene.has(&death, "/comm", "sh");
}

fn exec_failed(scene: &mut Scene<'_>) {
    let (_, children) = scene.parent_and_child("exec-nothing", "the parent has waited");
    for death in children {
        scene.expected(&death);
        scene.has(&death, "/exit_code", 127);
        scene.has(&death, "/cause/reason", "exec_failed");
    }
}

/// clone3(2) can ask for an id, so nobody has to wait until the ids of the machine have gone round.
fn pid_reuse(scene: &mut Scene<'_>) {
    const LIMIT: u64 = 32 << 20;
    let cgroup = scene.cgroup(Some(LIMIT));
    let first = scene.dies(Some(&cgroup), &["leak"]);
    scene.expected(&first);
    let pid = first["tgid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a process id");
    let after = |death: &Value, other: &Value| death["start_ns"].as_u64() > other["start_ns"].as_u64();

    let parent = Victim::start(Some(&cgroup), &["as-pid", &pid.to_string()]);
    is_asleep(pid);
    kill(pid, 9);
    scene.fact("the id could be taken again", parent.wait().success(), true);
    let second = scene.death("the second life", |death| death["tgid"] == pid && after(death, &first));
    scene.is_a(&second, "killed");
    scene.has(&second, "/cause/by/tgid", std::process::id());
    scene.has(&second, "/cause/by_kernel", json!(false));

    let parent = Victim::start(Some(&cgroup), &["as-pid", &pid.to_string(), "--leak"]);
    scene.fact("the id could be taken once more", parent.wait().success(), true);
    let third = scene.death("the third life", |death| death["tgid"] == pid && after(death, &second));
    scene.expected(&third);
    scene.fact("kills counted", cgroup.oom_kills(), Some(2));
}

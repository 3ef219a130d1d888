//! Killed from outside, by users and by the kernel for other reasons than memory.

use std::{
    fs,
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tests::{cgroup::Cgroup, eventually, victim::Victim};

use crate::{case::Case, facts, scene::Scene};

const fn case(id: &'static str, title: &'static str, expect: &'static str, act: fn(&mut Scene<'_>)) -> Case {
    Case { id, group: "signals", title, expect, cannot: facts::always, act }
}

pub(crate) const CASES: &[Case] = &[
    case("kill_by_user", "kill -9 by the same user", "killed", by_user),
    case("kill_by_script", "kill -9 in a script", "killed", by_script),
    case("kill_term", "kill, without a supervisor behind it", "killed", term),
    Case { cannot: facts::no_cgroup_kill, ..case("kill_cgroup", "cgroup.kill", "killed", by_cgroup) },
    case("pid_namespace_end", "the init of a pid namespace ends", "container_teardown", namespace_end),
    case("tracer_exit", "a tracer ends whose children shall too", "killed", tracer_exit),
    case("cpu_limit", "RLIMIT_CPU, hard limit", "killed", cpu_limit),
    case("seccomp_strict", "a system call that seccomp's strict mode forbids", "killed", seccomp_strict),
    case("broken_pipe", "SIGPIPE: a write to a pipe that nobody reads", "killed", broken_pipe),
    case(
        "parent_exit",
        "the parent ends, and the child had asked to be told (PR_SET_PDEATHSIG)",
        "killed",
        parent_exit,
    ),
    case("terminal_gone", "SIGHUP: the terminal is closed", "killed", terminal_gone),
    case("alarm", "SIGALRM: alarm(2)", "killed", alarm),
    case("timer", "SIGTERM from a timer of its own", "killed", timer),
];

/// Sends a signal from this very process.
pub(crate) fn kill(pid: u32, signal: i32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    let signal = Signal::from_named_raw(signal).expect("a signal");
    kill_process(pid, signal).expect("the signal can be sent");
}

/// Waits until a process has become what it shall be: asleep, as all that wait for their input or for a signal.
pub(crate) fn is_asleep(pid: u32) {
    eventually(&format!("process {pid} to wait"), || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let is_victim = fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "victim");
        (is_victim && stat.rsplit(')').next()?.starts_with(" S")).then_some(())
    });
}

fn by_user(scene: &mut Scene<'_>) {
    const NOBODY: &str = "65534";
    let victim = Victim::start(None, &["--uid", NOBODY, "wait"]);
    let pid = victim.pid();
    eventually("the victim to be nobody's", || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().any(|line| line.starts_with("Uid:\t65534\t65534")).then_some(())
    });
    let killer = Victim::start(None, &["--uid", NOBODY, "kill", &pid.to_string(), "9"]);
    let by = killer.pid();
    scene.fact("the signal could be sent", killer.wait().success(), true);
    victim.wait_with_input_open();
    let death = scene.death_of(pid);
    scene.expected(&death);
    scene.has(&death, "/uid", 65534);
    scene.has(&death, "/signal", 9);
    scene.has(&death, "/cause/signal", 9);
    scene.has(&death, "/cause/by_kernel", json!(false));
    scene.has(&death, "/cause/reason", Value::Null);
    scene.has(&death, "/cause/by/tgid", by);
    scene.has(&death, "/cause/by/uid", 65534);
    scene.has(&death, "/cause/by/comm", "victim");
}

fn by_script(scene: &mut Scene<'_>) {
    let cgroup = scene.cgroup(None);
    let victim = Victim::start(Some(&cgroup), &["wait"]);
    let pid = victim.pid();
    is_asleep(pid);
    let script = format!("kill -9 {pid}; read rest");
    let mut shell = Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).spawn().expect("a shell starts");
    victim.wait_with_input_open();
    let death = scene.death_of(pid);
    scene.expected(&death);
    scene.has(&death, "/signal", 9);
    scene.has(&death, "/service", cgroup.path.as_str());
    scene.has(&death, "/cause/by_kernel", json!(false));
    scene.has(&death, "/cause/by/tgid", shell.id());
    scene.has(&death, "/cause/by/comm", "sh");
    scene.has(&death, "/cause/by/uid", 0);
    drop(shell.stdin.take());
    shell.wait().expect("the shell ends");
}

fn term(scene: &mut Scene<'_>) {
    let victim = Victim::start(None, &["wait"]);
    let pid = victim.pid();
    is_asleep(pid);
    kill(pid, 15);
    victim.wait_with_input_open();
    let death = scene.death_of(pid);
    scene.expected(&death);
    scene.has(&death, "/signal", 15);
    scene.has(&death, "/cause/signal", 15);
    scene.has(&death, "/cause/by/tgid", std::process::id());
}

fn by_cgroup(scene: &mut Scene<'_>) {
    let cgroup = Cgroup::at(&facts::unified().expect("it was there a moment ago"));
    let victim = Victim::start(Some(&cgroup), &["wait"]);
    let pid = victim.pid();
    is_asleep(pid);
    fs::write(cgroup.directory.join("cgroup.kill"), "1").expect("the cgroup can be killed");
    victim.wait_with_input_open();
    let death = scene.death_of(pid);
    scene.expected(&death);
    scene.has(&death, "/signal", 9);
    scene.has(&death, "/cause/reason", "cgroup_kill");
    scene.has(&death, "/cause/by/tgid", std::process::id());
}

/// The process of a cgroup that is called `number` in its own pid namespace.
fn in_namespace(cgroup: &Cgroup, number: u32) -> u32 {
    let end = format!("\t{number}");
    eventually(&format!("process {number} of the namespace"), || {
        cgroup.members().into_iter().find_map(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let ids = status.lines().find(|line| line.starts_with("NSpid:"))?;
            // The last of several, the first being ours.
            (ids.ends_with(&end) && ids.split('\t').count() > 2).then_some(pid as u32)
        })
    })
}

fn namespace_end(scene: &mut Scene<'_>) {
    let cgroup = scene.cgroup(None);
    let outside = Victim::start(Some(&cgroup), &["pid-namespace"]);
    let (init, member) = (in_namespace(&cgroup, 1), in_namespace(&cgroup, 2));
    kill(init, 9);
    outside.wait();
    let death = scene.death_of(member);
    scene.expected(&death);
    scene.has(&death, "/signal", 9);
    scene.has(&death, "/cause/by/tgid", init);
    let death = scene.death_of(init);
    scene.is_a(&death, "killed");
    scene.has(&death, "/cause/by/tgid", std::process::id());
}

fn tracer_exit(scene: &mut Scene<'_>) {
    let (_, children) = scene.parent_and_child("trace-and-leave", "the child could be traced");
    for death in children {
        scene.expected(&death);
        scene.has(&death, "/signal", 9);
        scene.has(&death, "/cause/by_kernel", json!(true));
        scene.has(&death, "/cause/reason", "tracer_exit");
    }
}

fn cpu_limit(scene: &mut Scene<'_>) {
    let death = scene.dies(None, &["cpu-limit"]);
    scene.expected(&death);
    scene.has(&death, "/signal", 9);
    scene.has(&death, "/cause/by_kernel", json!(true));
    scene.has(&death, "/cause/reason", "cpu_limit");
}

fn seccomp_strict(scene: &mut Scene<'_>) {
    let death = scene.dies(None, &["sys-strict"]);
    by_the_kernel(scene, &death, 9, "seccomp_strict");
}

fn broken_pipe(scene: &mut Scene<'_>) {
    let death = scene.dies(None, &["broken-pipe"]);
    by_the_kernel(scene, &death, 13, "broken_pipe");
}

fn alarm(scene: &mut Scene<'_>) {
    let death = scene.dies(None, &["alarm"]);
    by_the_kernel(scene, &death, 14, "timer");
}

/// Asserts a kill by the kernel, without a sender.
fn by_the_kernel(scene: &mut Scene<'_>, death: &Value, signal: i32, reason: &str) {
    scene.expected(death);
    scene.has(death, "/signal", signal);
    scene.has(death, "/cause/by_kernel", json!(true));
    scene.has(death, "/cause/by", Value::Null);
    scene.has(death, "/cause/reason", reason);
}

fn timer(scene: &mut Scene<'_>) {
    let death = scene.dies(None, &["timer"]);
    scene.expected(&death);
    scene.has(&death, "/signal", 15);
    scene.has(&death, "/cause/by", Value::Null);
    scene.has(&death, "/cause/reason", "event");
}

fn parent_exit(scene: &mut Scene<'_>) {
    let (pid, children) = scene.parent_and_child("outlive-nobody", "the child has said what it wants");
    for death in children {
        scene.expected(&death);
        scene.has(&death, "/signal", 15);
        scene.has(&death, "/cause/by_kernel", json!(true));
        scene.has(&death, "/cause/by/tgid", pid);
        scene.has(&death, "/cause/reason", "parent_exit");
    }
}

fn terminal_gone(scene: &mut Scene<'_>) {
    let (_, children) = scene.parent_and_child("lose-terminal", "the terminal could be closed");
    for death in children {
        scene.expected(&death);
        scene.has(&death, "/signal", 1);
        scene.has(&death, "/cause/by_kernel", json!(true));
        scene.has(&death, "/cause/reason", "terminal_gone");
    }
}

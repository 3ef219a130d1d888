//! OOM kills for want of the whole machine's memory.

use std::fs;

use tests::victim::Victim;

use crate::{case::Case, facts, memory::has_taken, scene::Scene, stage::kernel_oom_kills};

const fn case(id: &'static str, title: &'static str, cannot: fn() -> Option<String>, act: fn(&mut Scene<'_>)) -> Case {
    Case { id, group: "host memory", title, expect: "oom_kill", cannot, act }
}

pub(crate) const CASES: &[Case] = &[
    case("oom_global", "the machine's memory runs out", facts::not_our_guest, global),
    case("oom_sysrq", "a person asks for an OOM kill (SysRq-f)", no_sysrq, sysrq),
];

/// The kernel's first choice.
const FIRST: [&str; 2] = ["--oom-score-adj", "1000"];

fn global(scene: &mut Scene<'_>) {
    scene.let_the_kernel_log_recover();
    let cgroup = scene.cgroup(None);
    let before = kernel_oom_kills();
    let death = scene.dies(Some(&cgroup), &[FIRST[0], FIRST[1], "leak"]);
    scene.expected(&death);
    scene.has(&death, "/signal", 9);
    scene.has(&death, "/cause/scope", "global");
    scene.has(&death, "/cause/limit_owner", serde_json::Value::Null);
    scene.has(&death, "/cause/limit_bytes", serde_json::Value::Null);
    scene.has(&death, "/cause/memory/oom_score_adj", 1000);
    scene.fact("OOM kills counted by the kernel", kernel_oom_kills() - before, 1);
}

fn no_sysrq() -> Option<String> {
    facts::not_our_guest().or_else(|| facts::lacks_file("/proc/sysrq-trigger"))
}

fn sysrq(scene: &mut Scene<'_>) {
    scene.let_the_kernel_log_recover();
    let cgroup = scene.cgroup(None);
    let before = kernel_oom_kills();
    let victim = Victim::start(Some(&cgroup), &[FIRST[0], FIRST[1], "hold", "64"]);
    let pid = victim.pid();
    has_taken(pid, 64);
    fs::write("/proc/sysrq-trigger", "f").expect("root may ask");
    victim.wait_with_input_open();
    let death = scene.death_of(pid);
    scene.expected(&death);
    scene.has(&death, "/signal", 9);
    scene.has(&death, "/cause/scope", "sysrq");
    scene.has(&death, "/cause/memory/oom_score_adj", 1000);
    scene.fact("OOM kills counted by the kernel", kernel_oom_kills() - before, 1);
}

//! A kernel that lacks fields: the evidence they carry is off and said to be, the rest works.
//!
//! Such a kernel is the running one with some names changed in a copy of its type information.

use std::fs;

use monitor_common::layout::Layout;
use tests::{
    cgroup::Cgroup,
    defib::{Agent, Watch, run, scratch},
    live,
    victim::Victim,
};

/// Fields that a kernel may lack, and a word of what is said about each.
const FIELDS: [(&str, &str); 8] = [
    ("maxrss", "peak memory"),
    ("oom_mm", "OOM victims"),
    ("exe_file", "program of a crash"),
    ("rss_stat", "memory figures"),
    ("thread_pid", "pid namespace"),
    ("rlim", "limits of address space"),
    ("order", "limit behind an OOM kill"),
    ("sa_handler", "whether a signal was fatal"),
];

/// Type information without these names: each is as long as before, and no other's.
fn without(names: &[&str]) -> Vec<u8> {
    let mut bytes = fs::read("/sys/kernel/btf/vmlinux").expect("type information");
    for name in names {
        let whole = [b"\0", name.as_bytes(), b"\0"].concat();
        let at = bytes.windows(whole.len()).position(|window| window == whole).unwrap_or_else(|| panic!("no {name}"));
        bytes[at + name.len()] = b'~';
    }
    bytes
}

#[test]
fn each_missing_field_is_named_and_deaths_are_seen_all_the_same() {
    if !live::can_run("each_missing_field_is_named_and_deaths_are_seen_all_the_same") {
        return;
    }
    let place = scratch();
    let path = place.path().join("vmlinux");
    let btf = path.to_str().expect("UTF-8");
    fs::write(&path, without(&FIELDS.map(|(field, _)| field))).expect("written");

    let doctor = String::from_utf8(run(&["doctor", "--btf", btf]).stdout).expect("UTF-8");
    for (field, evidence) in FIELDS {
        assert!(doctor.contains(&format!(".{field}")) && doctor.contains(evidence), "{field}: {doctor}");
    }
    let agent = Agent::start_with(&["--btf", btf], "");
    let (status, ready) = agent.try_get("/readyz").expect("it answers");
    assert_eq!(status, 200, "{ready}");
    for (field, evidence) in FIELDS {
        assert!(ready.contains(&format!(".{field}")) && ready.contains(evidence), "{field}: {ready}");
    }

    let mut watch = Watch::start(&["--btf", btf]);
    let crash = Victim::start(None, &["segv"]);
    let pid = crash.pid();
    crash.wait();
    let death = watch.death_of(pid);
    assert_eq!(death["cause"]["kind"], "crash", "{death}");
    assert!(death["max_rss_bytes"].is_null(), "{death}");
    // Its own state no longer tells an OOM victim, so the mark does.
    let cgroup = Cgroup::new(Some(32 * 1024 * 1024));
    let leak = Victim::start(Some(&cgroup), &["leak"]);
    let pid = leak.pid();
    leak.wait();
    let death = watch.death_of(pid);
    assert_eq!(death["cause"]["kind"], "oom_kill", "{death}");
    assert!(death["cause"]["memory"].is_null(), "{death}");
}

/// One at a time, since each opens other paths through the programs.
#[test]
fn the_programs_load_without_any_field_that_is_only_evidence() {
    if !live::can_run("the_programs_load_without_any_field_that_is_only_evidence") {
        return;
    }
    let place = scratch();
    let path = place.path().join("vmlinux");
    let needed =
        |name: &str| Layout::FIELDS.iter().any(|(field, _)| field.evidence.is_none() && field.names.contains(&name));
    let present = fs::read("/sys/kernel/btf/vmlinux").expect("type information");
    let mut tried = 0;
    for (field, _) in Layout::FIELDS {
        let names: Vec<_> = field.names.iter().copied().filter(|name| is_in(&present, name)).collect();
        // Names are shared: without "flags", say, there would be no task's flags either.
        if field.evidence.is_none() || names.is_empty() || names.iter().any(|name| needed(name)) {
            continue;
        }
        fs::write(&path, without(&names)).expect("written");
        let doctor = String::from_utf8(run(&["doctor", "--btf", path.to_str().expect("UTF-8")]).stdout).expect("UTF-8");
        let programs = doctor.lines().find(|line| line.contains("kernel programs")).unwrap_or_default();
        assert!(programs.starts_with("ok"), "without {}.{names:?}: {programs}", field.structure);
        tried += 1;
    }
    assert!(tried > 20, "{tried} fields");
}

fn is_in(bytes: &[u8], name: &str) -> bool {
    let whole = [b"\0", name.as_bytes(), b"\0"].concat();
    bytes.windows(whole.len()).any(|window| window == whole)
}

#[test]
fn without_a_field_that_nothing_works_without_there_is_one_clear_error() {
    if !live::can_run("without_a_field_that_nothing_works_without_there_is_one_clear_error") {
        return;
    }
    let place = scratch();
    let path = place.path().join("vmlinux");
    fs::write(&path, without(&["group_leader"])).expect("written");
    let output = run(&["watch", "--btf", path.to_str().expect("UTF-8")]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("task_struct.group_leader") && error.lines().count() == 1, "{error}");
}

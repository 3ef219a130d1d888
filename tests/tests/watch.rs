//! `defib watch` against real deaths on the running kernel: the cause, the sender, the service, the role.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tests::{
    PATIENCE,
    cgroup::{Cgroup, memory_hierarchy},
    defib::Watch,
    eventually, live,
    victim::{Victim, binary},
};

const MIB: u64 = 1024 * 1024;

/// What every record must have, whatever the cause.
fn check_common(death: &Value) {
    let ns = |key: &str| death[key].as_u64().unwrap_or_else(|| panic!("{key} of {death}"));
    assert!(ns("start_ns") <= ns("kernel_ns") && ns("kernel_ns") <= ns("seen_ns"), "{death}");
    let time = death["time"].as_str().expect("a time");
    assert!(time.ends_with('Z') && time.len() == "2026-01-01T00:00:00.123456789Z".len(), "{time}");
    assert!(death["exit_code"].is_null() != death["signal"].is_null(), "one of the two: {death}");
}

fn check_oom(death: &Value, cgroup: &Cgroup, role: &str) {
    check_common(death);
    let cause = &death["cause"];
    assert_eq!(cause["kind"], "oom_kill", "{death}");
    assert_eq!(death["signal"], 9, "{death}");
    assert_eq!(death["cgroup"], cgroup.path, "{death}");
    assert_eq!(death["service"], cgroup.path, "{death}");
    assert_eq!(death["role"], role, "{death}");
    assert_eq!(cause["scope"], "memcg", "{death}");
    assert_eq!(cause["limit_owner"], cgroup.path, "{death}");
    assert_eq!(cause["triggered_by"]["comm"], "victim", "{death}");
    let rss = death["max_rss_bytes"].as_u64().expect("a peak");
    assert!((8 * MIB..40 * MIB).contains(&rss), "near the limit of 32 MiB: {death}");
}

#[test]
fn one_process_is_oom_killed() {
    if !live::can_run("one_process_is_oom_killed") {
        return;
    }
    live::let_the_kernel_log_recover();
    let cgroup = Cgroup::new(Some(32 * MIB));
    let mut watch = Watch::start(&[]);
    let victim = Victim::start(Some(&cgroup), &["leak"]);
    let pid = victim.pid();
    victim.wait();
    let death = watch.death_of(pid);
    check_oom(&death, &cgroup, "main");
    assert_eq!(death["comm"], "victim");
    assert_eq!(death["cause"]["triggered_by"]["tgid"], pid);
}

#[test]
fn a_child_is_oom_killed_and_the_main_process_survives() {
    if !live::can_run("a_child_is_oom_killed_and_the_main_process_survives") {
        return;
    }
    live::let_the_kernel_log_recover();
    let cgroup = Cgroup::new(Some(32 * MIB));
    let mut watch = Watch::start(&["--all"]);
    let victim = Victim::start(Some(&cgroup), &["leak-in-child"]);
    let main = victim.pid();
    let child = watch.find(PATIENCE, |line| line["cgroup"] == cgroup.path).expect("a death in the cgroup");
    check_oom(&child, &cgroup, "worker");
    assert_ne!(child["tgid"], main);
    // The main process ends when it is told to, and only then, and cleanly.
    assert!(victim.wait().success(), "the main process survived");
    let main = watch.death_of(main);
    check_common(&main);
    assert_eq!((main["cause"]["kind"].as_str(), main["role"].as_str()), (Some("clean_exit"), Some("main")), "{main}");
}

#[test]
fn a_process_whose_leader_has_left_is_oom_killed() {
    if !live::can_run("a_process_whose_leader_has_left_is_oom_killed") {
        return;
    }
    live::let_the_kernel_log_recover();
    let cgroup = Cgroup::new(Some(32 * MIB));
    let mut watch = Watch::start(&[]);
    let victim = Victim::start(Some(&cgroup), &["leak-after-leader"]);
    let pid = victim.pid();
    victim.wait();
    check_oom(&watch.death_of(pid), &cgroup, "main");
    let deaths = watch.seen().iter().filter(|line| line["tgid"] == pid).count();
    assert_eq!(deaths, 1, "one process, one death");
}

#[test]
fn kill_9_names_its_sender() {
    if !live::can_run("kill_9_names_its_sender") {
        return;
    }
    live::let_the_kernel_log_recover();
    let cgroup = Cgroup::new(Some(32 * MIB));
    let mut watch = Watch::start(&[]);
    let victim = Victim::start(Some(&cgroup), &["wait"]);
    let pid = victim.pid();
    eventually("the victim to enter its cgroup", || cgroup.members().contains(&(pid as i32)).then_some(()));
    // Another program kills it, so that the sender is not simply its parent.
    let mut killer = Command::new("sh")
        .args(["-c", &format!("kill -9 {pid}; read rest")])
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell starts");
    victim.wait_with_input_open();
    let death = watch.death_of(pid);
    check_common(&death);
    assert_eq!(death["cause"]["kind"], "killed", "{death}");
    assert_eq!(death["cause"]["signal"], 9);
    assert_eq!(death["cause"]["by"]["tgid"], killer.id(), "{death}");
    assert_eq!(death["cause"]["by"]["comm"], "sh");
    assert_eq!(death["cause"]["by"]["uid"], 0);
    killer.kill().ok();
    killer.wait().expect("the shell ends");
}

#[test]
fn faults_and_exits_are_what_they_are() {
    if !live::can_run("faults_and_exits_are_what_they_are") {
        return;
    }
    let mut watch = Watch::start(&["--all"]);
    for (words, kind, code, signal) in [
        (&["segv"][..], "crash", None, Some(11)),
        (&["abort"], "crash", None, Some(6)),
        (&["bus"], "crash", None, Some(7)),
        (&["fpe"], "crash", None, Some(8)),
        (&["ill"], "crash", None, Some(4)),
        (&["sys"], "crash", None, Some(31)),
        (&["xcpu"], "crash", None, Some(24)),
        (&["exit", "3"], "exit", Some(3), None),
        (&["exit", "0"], "clean_exit", Some(0), None),
        (&["exit-after-leader", "7"], "exit", Some(7), None),
    ] {
        let victim = Victim::start(None, words);
        let pid = victim.pid();
        victim.wait_with_input_open();
        let death = watch.death_of(pid);
        check_common(&death);
        assert_eq!(death["cause"]["kind"], kind, "{words:?}: {death}");
        assert_eq!(death["exit_code"].as_i64(), code, "{words:?}: {death}");
        assert_eq!(death["signal"].as_i64(), signal, "{words:?}: {death}");
        let deaths = watch.seen().iter().filter(|line| line["tgid"] == pid).count();
        assert_eq!(deaths, 1, "one process, one death: {words:?}");
    }
}

/// A program in C without frame pointers, from `src/foreign`; built here where no `cargo xtask` has.
fn aborts(directory: &Path) -> Option<PathBuf> {
    let built = binary("victim").with_file_name("aborts-c");
    if built.exists() {
        return Some(built);
    }
    let (program, source) = (directory.join("aborts-c"), directory.join("aborts.c"));
    fs::write(&source, include_str!("../src/foreign/aborts.c")).expect("written");
    let words = ["-O2", "-fomit-frame-pointer", "-o"];
    let compiled = Command::new("cc").args(words).args([&program, &source]).status();
    compiled.is_ok_and(|status| status.success()).then_some(program)
}

#[test]
fn an_abort_names_the_functions_that_led_there_though_none_keeps_frame_pointers() {
    const TEST: &str = "an_abort_names_the_functions_that_led_there_though_none_keeps_frame_pointers";
    if !live::can_run(TEST) {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let Some(program) = aborts(directory.path()) else {
        live::skip_ok(TEST, "there is no C compiler");
        return;
    };
    let mut watch = Watch::start(&[]);
    for _ in 0..5 {
        let victim = Victim::start(None, &["exec", program.to_str().expect("UTF-8")]);
        let pid = victim.pid();
        victim.wait();
        let death = watch.death_of(pid);
        let frames = death["cause"]["site"]["frames"].as_array().unwrap_or_else(|| panic!("a site: {death}"));
        let symbols: Vec<_> = frames.iter().filter_map(|frame| frame["symbol"].as_str()).collect();
        let at = |name: &str| symbols.iter().position(|symbol| symbol.starts_with(name));
        let order = [at("abort"), at("gives_up"), at("works_for_a_while"), at("main")];
        assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{death}");
        assert!(frames.iter().all(|frame| frame["sure"] == true), "{death}");
    }
}

#[test]
fn clean_exits_are_not_shown_unless_asked_for() {
    if !live::can_run("clean_exits_are_not_shown_unless_asked_for") {
        return;
    }
    let mut watch = Watch::start(&[]);
    let quiet = Victim::start(None, &["exit", "0"]);
    let quiet_pid = quiet.pid();
    quiet.wait();
    let loud = Victim::start(None, &["exit", "1"]);
    let loud_pid = loud.pid();
    loud.wait();
    watch.death_of(loud_pid);
    assert!(!watch.seen().iter().any(|line| line["tgid"] == quiet_pid));
}

/// A name is chosen by the process: it must break neither a terminal nor JSON.
#[test]
fn a_hostile_name_is_shown_harmless() {
    if !live::can_run("a_hostile_name_is_shown_harmless") {
        return;
    }
    // ESC [ 2 J, BEL, a byte that is no UTF-8, a quote, a backslash.
    const NAME: &str = "1b5b324a07ff225c";
    let mut watch = Watch::start(&[]);
    let table = Command::new(binary("defib"))
        .args(["watch", "--count", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("defib starts");
    // The table's watcher ends with the first death that it sees.
    eventually("the table's watcher to see one", || {
        let victim = Victim::start(None, &["--comm", NAME, "exit", "9"]);
        let pid = victim.pid();
        victim.wait();
        let death = watch.death_of(pid);
        assert_eq!(death["comm"], "\u{1b}[2J\u{7}\u{fffd}\"\\", "JSON keeps the name: {death}");
        let ended = fs::read_to_string(format!("/proc/{}/stat", table.id())).is_ok_and(|stat| stat.contains(") Z "));
        ended.then_some(())
    });
    let output = table.wait_with_output().expect("it ends");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(text.contains("\\x1b[2J\\x07"), "{text}");
    assert!(!text.chars().any(|character| character.is_control() && character != '\n'), "{text:?}");
}

/// Each process exits with a code that belongs to its cgroup; a wrong pair is a wrong attribution.
#[test]
fn a_thousand_parallel_short_lives_are_attributed_right() {
    if !live::can_run("a_thousand_parallel_short_lives_are_attributed_right") {
        return;
    }
    const CGROUPS: usize = 10;
    const EACH: usize = 100;
    let cgroups: Vec<_> = (0..CGROUPS).map(|_| Cgroup::new(None)).collect();
    let mut watch = Watch::start(&[]);
    let (mount, _) = memory_hierarchy();
    std::thread::scope(|scope| {
        for (number, cgroup) in cgroups.iter().enumerate() {
            scope.spawn(move || {
                let code = (number + 1).to_string();
                for _ in 0..EACH / 10 {
                    let batch: Vec<_> = (0..10).map(|_| Victim::start(Some(cgroup), &["exit", &code])).collect();
                    for victim in batch {
                        assert_eq!(victim.wait().code(), Some(number as i32 + 1));
                    }
                }
            });
        }
    });
    let mut counts = vec![0; CGROUPS];
    let ours = |seen: &[Value]| seen.iter().filter(|line| is_ours(line, &cgroups)).count();
    let begin = Instant::now();
    while ours(watch.seen()) < CGROUPS * EACH && begin.elapsed() < PATIENCE {
        watch.find(Duration::from_millis(100), |_| false);
    }
    assert_eq!(ours(watch.seen()), CGROUPS * EACH, "deaths seen");
    for death in watch.seen().iter().filter(|line| is_ours(line, &cgroups)) {
        let code = death["exit_code"].as_u64().expect("a code") as usize;
        assert_eq!(death["cgroup"], cgroups[code - 1].path, "{death}");
        assert_eq!(death["cause"]["code"], code, "{death}");
        counts[code - 1] += 1;
    }
    assert_eq!(counts, vec![EACH; CGROUPS]);
    assert!(fs::metadata(mount).is_ok());
}

fn is_ours(death: &Value, cgroups: &[Cgroup]) -> bool {
    cgroups.iter().any(|cgroup| death["cgroup"] == cgroup.path)
        || death["comm"] == "victim" && death["exit_code"].as_u64().is_some_and(|code| (1..=10).contains(&code))
}

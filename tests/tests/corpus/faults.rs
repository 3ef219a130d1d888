//! Processes that end by a fault of their own.

use std::fs;

use serde_json::{Value, json};

use crate::{case::Case, facts, scene::Scene};

const fn case(id: &'static str, title: &'static str, act: fn(&mut Scene<'_>)) -> Case {
    Case { id, group: "faults", title, expect: "crash", cannot: facts::always, act }
}

pub(crate) const CASES: &[Case] = &[
    case("segv", "SIGSEGV: a read from address zero", |scene| {
        fault(scene, "segv", 11, Some("read_address_zero"));
    }),
    Case { cannot: facts::no_plain_core, ..case("segv_core", "SIGSEGV with a core", segv_with_core) },
    case("segv_in_thread", "SIGSEGV in a thread that is not the first", |scene| {
        fault(scene, "segv-in-thread", 11, Some("read_address_zero"));
    }),
    case("bus", "SIGBUS: a read behind the end of a mapped file", |scene| {
        fault(scene, "bus", 7, Some("read_behind_the_file"));
    }),
    case("fpe", "SIGFPE: a division by zero", |scene| {
        fault(scene, "fpe", 8, Some("divide_by_zero"));
    }),
    case("ill", "SIGILL: no such instruction", |scene| {
        fault(scene, "ill", 4, Some("execute_nonsense"));
    }),
    case("trap", "SIGTRAP: a breakpoint without a debugger", |scene| {
        fault(scene, "trap", 5, Some("hit_a_breakpoint"));
    }),
    case("abort", "SIGABRT: abort(3)", |scene| {
        let death = fault(scene, "abort", 6, None);
        called_from(scene, &death, "give_up");
    }),
    case("stack_overflow", "SIGABRT: a stack that is used up", |scene| {
        fault(scene, "use-up-the-stack", 6, None);
    }),
    case("sys", "SIGSYS: a system call that a seccomp filter forbids", |scene| {
        fault_for(scene, "sys", 31, None, "seccomp");
    }),
    Case {
        cannot: facts::no_broken_memory,
        ..case("memory_error", "SIGBUS: memory that the hardware reports as broken", |scene| {
            fault_for(scene, "memory-error", 7, Some("read_broken_memory"), "memory_error");
        })
    },
    case("xcpu", "SIGXCPU: RLIMIT_CPU, soft limit", |scene| {
        fault(scene, "xcpu", 24, None);
    }),
    case("xfsz", "SIGXFSZ: RLIMIT_FSIZE", |scene| {
        fault(scene, "xfsz", 25, None);
    }),
];

/// Dies of `signal` without a core; where it happened in a function of the victim's, that is `function`.
fn fault(scene: &mut Scene<'_>, way: &str, signal: i32, function: Option<&str>) -> Value {
    let death = scene.dies(None, &[way]);
    check(scene, &death, signal, function);
    // A core is asked for by its limit, which is 0, or by a program that takes them all.
    if facts::no_plain_core().is_none() {
        scene.has(&death, "/core_dumped", json!(false));
        scene.has(&death, "/cause/core_dumped", json!(false));
    }
    death
}

/// Asserts that unwind tables find this function of the program as a caller of the crash in a library.
pub(crate) fn called_from(scene: &mut Scene<'_>, death: &Value, function: &str) {
    let frames = death["cause"]["site"]["frames"].as_array();
    let is_there = |frame: &Value| {
        frame["sure"] == true && frame["symbol"].as_str().is_some_and(|symbol| symbol.contains(function))
    };
    let found = frames.is_some_and(|frames| frames.iter().skip(1).any(is_there));
    scene.holds(death, &format!("{function} is among the callers"), found);
}

/// A crash whose reason the signal alone does not give.
fn fault_for(scene: &mut Scene<'_>, way: &str, signal: i32, function: Option<&str>, reason: &str) {
    let death = scene.dies(None, &[way]);
    check(scene, &death, signal, function);
    scene.has(&death, "/cause/reason", reason);
}

fn check(scene: &mut Scene<'_>, death: &Value, signal: i32, function: Option<&str>) {
    scene.expected(death);
    scene.has(death, "/comm", "victim");
    scene.has(death, "/signal", signal);
    scene.has(death, "/cause/signal", signal);
    let Some(function) = function else { return };
    let frame = &death["cause"]["site"]["frames"][0];
    let text = |field: &str| frame[field].as_str().unwrap_or_default();
    let in_victim = text("module").ends_with("victim");
    scene.holds(death, "the crash is in the victim's own program", in_victim);
    let in_function = text("symbol").contains(function);
    scene.holds(death, &format!("the crash is in {function}"), in_function);
}

fn segv_with_core(scene: &mut Scene<'_>) {
    let directory = tempfile::tempdir().expect("a directory for the core");
    let death = scene.dies(None, &["--core", directory.path().to_str().expect("UTF-8"), "segv"]);
    check(scene, &death, 11, Some("read_address_zero"));
    scene.has(&death, "/core_dumped", json!(true));
    scene.has(&death, "/cause/core_dumped", json!(true));
    scene.fact("cores", fs::read_dir(directory.path()).expect("readable").count(), 1);
}

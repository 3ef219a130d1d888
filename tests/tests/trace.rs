//! `defib trace` on real programs: each leaks in one function, quietly, among louder ones that allocate and release.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::{self, sleep},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::{
    cgroup::Cgroup,
    defib::scratch,
    engine::{Engine, Kind},
    eventually,
    live::{can_run, skip_ok},
    victim::binary,
};

/// A server that leaks, in a cgroup of its own.
struct Server {
    name: &'static str,
    /// How its leaking function is called in its language.
    function: &'static str,
    child: Child,
    cgroup: Cgroup,
}

/// KiB that a server leaks in a second, and how long it is traced. `DEFIB_TRACE="17.1 5m"` (1 MiB a minute, five minutes) tries less in
/// more time.
fn pace() -> (f64, String) {
    let words = std::env::var("DEFIB_TRACE").unwrap_or_else(|_| "68 70s".to_owned());
    let (kib, time) = words.split_once(' ').expect("KiB a second, and a time");
    (kib.parse().expect("a number"), time.to_owned())
}

impl Server {
    fn start(name: &'static str, function: &'static str, program: &Path, words: &[&str], place: &Path) -> Self {
        let cgroup = Cgroup::new(None);
        let victim = binary("victim");
        let child = Command::new(victim)
            .arg("--cgroup")
            .arg(&cgroup.directory)
            .arg("exec")
            .arg(program)
            .args(words)
            // Node leaves a log where it is.
            .current_dir(place)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        Self { name, function, child, cgroup }
    }

    fn end(&mut self) {
        self.child.kill().ok();
        self.child.wait().expect("it was ours");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// Traces a cgroup; the result, or what was said instead.
fn trace(cgroup: &Cgroup, place: &Path, time: &str) -> Result<Value, String> {
    trace_by(&cgroup.path, None, place, time)
}

/// Likewise a service by its name, with a variable that says where its container's engine is.
fn trace_by(name: &str, engine: Option<(&str, String)>, place: &Path, time: &str) -> Result<Value, String> {
    let output = Command::new(binary("defib"))
        .args(["trace", name, "--for", time, "--json", "--socket", "/nonexistent", "--output"])
        .envs(engine)
        .arg(place)
        // One trace at a time is let run for each state directory.
        .arg("--state-dir")
        .arg(place.with_extension("state"))
        .output()
        .expect("it starts");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(serde_json::from_slice(&output.stdout).expect("one JSON object"))
}

/// What grows fastest: its functions, the innermost first.
fn fastest(growth: &Value) -> Vec<String> {
    let frames = growth["stacks"][0]["frames"].as_array().cloned().unwrap_or_default();
    frames.iter().map(|frame| frame["function"].as_str().unwrap_or("?").to_owned()).collect()
}

/// A program that `cargo xtask` has built from `src/foreign`, or an interpreter.
fn foreign(test: &str, name: &str) -> Option<PathBuf> {
    let path = binary("victim").with_file_name(name);
    if !path.exists() {
        skip_ok(test, &format!("{name} was not built: its compiler is not installed"));
    }
    path.exists().then_some(path)
}

fn node(test: &str) -> Option<PathBuf> {
    let path = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|directory| directory.join("node"))
        .find(|path| path.is_file());
    if path.is_none() {
        skip_ok(test, "node is not installed");
    }
    path
}

#[test]
fn the_function_that_leaks_comes_first_in_five_languages() {
    const TEST: &str = "the_function_that_leaks_comes_first_in_five_languages";
    if !can_run(TEST) {
        return;
    }
    let place = scratch();
    let (kib, time) = pace();
    let each = kib.to_string();
    let script = place.path().join("sessions.js");
    fs::write(&script, include_str!("../src/foreign/sessions.js")).expect("written");
    let mut servers =
        vec![Server::start("Rust", "open_session", &binary("victim"), &["sessions", &each], place.path())];
    for (name, function, file) in [
        ("C", "open_session", "sessions-c"),
        ("C++", "open_session", "sessions-cpp"),
        ("Go", "main.openSession", "sessions-go"),
    ] {
        let program = foreign(TEST, file);
        servers.extend(program.map(|program| Server::start(name, function, &program, &[&each], place.path())));
    }
    let words = ["--perf-basic-prof", "--interpreted-frames-native-stack", script.to_str().expect("UTF-8"), &each];
    servers.extend(node(TEST).map(|node| Server::start("JavaScript", "openSession", &node, &words, place.path())));
    // Its map of code is written when it has warmed up.
    sleep(Duration::from_secs(3));
    thread::scope(|scope| {
        for server in &servers {
            let place = place.path().join(server.name);
            let time = time.clone();
            scope.spawn(move || judge(server, &trace(&server.cgroup, &place, &time).expect("a result"), &place, kib));
        }
    });
}

fn judge(server: &Server, growth: &Value, place: &Path, kib: f64) {
    let name = server.name;
    let functions = fastest(growth);
    assert!(functions.iter().any(|function| function.contains(server.function)), "{name}: {functions:?}\n{growth:#}");
    let all = growth["stacks"].as_array().expect("a list");
    let rate = |stack: &Value| stack["bytes_per_hour"].as_f64().expect("a number");
    let of_leak = all.iter().filter(|stack| stack.to_string().contains(server.function)).map(rate).sum::<f64>();
    let told = of_leak / 3600.0 / 1024.0;
    println!("{name}: {kib} KiB a second leaked, {told:.1} told; it took {:.2} % from the server", {
        growth["cost"]["share"].as_f64().expect("a number") * 100.0
    });
    // The servers count by what a session takes, roughly; a sample stands for many calls where there are many.
    assert!((kib / 4.0..=kib * 3.0).contains(&told), "{name}: {told} KiB a second\n{growth:#}");
    // Where a watch costs much, as under emulation, the first ones take more than their share, and the rests make up for it in time.
    let few = growth["cost"]["watches"].as_u64().expect("a number") < 8;
    assert!(few || growth["cost"]["share"].as_f64().expect("a number") <= 0.03, "{name}: {}", growth["cost"]);
    assert!(growth["cut_share"].as_f64().expect("a number") < 0.5, "{name}: {growth:#}");
    let folded = fs::read_to_string(place.join("folded.txt")).expect("folded stacks");
    assert!(folded.contains(server.function), "{name}: {folded}");
    let flame = fs::read_to_string(place.join("flame.svg")).expect("a flame graph");
    assert!(flame.contains("<svg"), "{name}");
}

#[test]
fn memory_that_is_mapped_past_the_allocator_is_named_too() {
    const TEST: &str = "memory_that_is_mapped_past_the_allocator_is_named_too";
    if !can_run(TEST) {
        return;
    }
    let Some(program) = foreign(TEST, "arenas-c") else { return };
    let (place, kib) = (scratch(), 500.0);
    let server = Server::start("C", "grow_arena", &program, &[&kib.to_string()], place.path());
    let growth = trace(&server.cgroup, &place.path().join("out"), "25s").expect("a result");
    judge(&server, &growth, &place.path().join("out"), kib);
    // Nothing of what came back, or was never touched, nor what the allocator takes to hand it out.
    let others =
        growth["stacks"].as_array().expect("a list").iter().filter(|stack| !stack.to_string().contains("grow_arena"));
    let others: f64 = others.filter_map(|stack| stack["bytes_per_hour"].as_f64()).sum();
    let told = growth["stacks"][0]["bytes_per_hour"].as_f64().expect("a number");
    assert!(others < told / 4.0, "{growth:#}");
}

#[test]
fn a_container_is_traced_by_its_name_and_its_files_are_those_that_it_sees() {
    const TEST: &str = "a_container_is_traced_by_its_name_and_its_files_are_those_that_it_sees";
    if !can_run(TEST) {
        return;
    }
    if let Some(what) = Kind::Docker.missing() {
        return skip_ok(TEST, &format!("needs {what}"));
    }
    let Some(program) = foreign(TEST, "sessions-c") else { return };
    let (place, engine) = (scratch(), Engine::start(Kind::Docker));
    // Nothing of that name is on the host, where another file of its path would be another program.
    let inside = place.path().join("inside");
    fs::create_dir(&inside).expect("made");
    fs::copy(&program, inside.join("server")).expect("a copy");
    let inside = format!("{}:/only-inside:ro", inside.display());
    let libraries = ["/lib", "/lib64", "/usr/lib"].map(|path| format!("{path}:{path}:ro"));
    let volumes: Vec<&str> = libraries.iter().chain([&inside]).flat_map(|volume| ["-v", volume.as_str()]).collect();
    engine.start_container("leaky-container", &volumes, "exec /only-inside/server 500");
    sleep(Duration::from_secs(1));
    let out = place.path().join("out");
    let growth = trace_by("leaky-container", Some(engine.variable()), &out, "25s").expect("a result");
    let functions = fastest(&growth);
    assert!(functions.iter().any(|function| function == "open_session"), "{functions:?}\n{growth:#}");
    assert_eq!(growth["programs"][0]["path"], "/only-inside/server", "{growth:#}");
    assert_eq!(growth["service"], "leaky-container", "{growth:#}");
}

#[test]
fn a_program_that_was_replaced_on_disk_is_named_and_one_that_dies_ends_the_trace() {
    const TEST: &str = "a_program_that_was_replaced_on_disk_is_named_and_one_that_dies_ends_the_trace";
    if !can_run(TEST) {
        return;
    }
    let place = scratch();
    let copy = place.path().join("server");
    fs::copy(binary("victim"), &copy).expect("a copy");
    let mut server = Server::start("Rust", "open_session", &copy, &["sessions", "500"], place.path());
    sleep(Duration::from_secs(1));
    fs::remove_file(&copy).expect("it is ours");
    fs::write(&copy, "another program").expect("written");
    // With the same C library: nothing is done to it.
    let bystander = Server::start("bystander", "", &binary("victim"), &["sessions", "1"], place.path());
    let growth = thread::scope(|scope| {
        let traced = scope.spawn(|| trace(&server.cgroup, &place.path().join("out"), "10m"));
        sleep(Duration::from_secs(25));
        assert!(is_probed(&server), "it is watched now and then");
        assert!(!is_probed(&bystander), "the same library, and nobody asked for it");
        let pid = Pid::from_raw(server.child.id().cast_signed()).expect("a pid");
        kill_process(pid, Signal::KILL).expect("it is ours");
        traced.join().expect("it ends").expect("a result")
    });
    server.child.wait().expect("it was ours");
    assert_eq!(growth["ended"], "service_gone");
    assert!(growth["seconds"].as_f64().is_some_and(|seconds| seconds < 60.0), "{growth:#}");
    assert_eq!(growth["programs"][0]["path"].as_str().map(|path| path.contains("server")), Some(true), "{growth:#}");
}

/// Whether the kernel has ever stopped a process at a probe: it then has a page there to go on from.
fn is_probed(server: &Server) -> bool {
    let maps = fs::read_to_string(format!("/proc/{}/maps", server.child.id())).expect("it lives");
    maps.contains("[uprobes]")
}

#[test]
fn what_cannot_be_traced_is_said_in_one_line() {
    const TEST: &str = "what_cannot_be_traced_is_said_in_one_line";
    if !can_run(TEST) {
        return;
    }
    let place = scratch();
    let empty = Cgroup::new(None);
    let said = trace(&empty, &place.path().join("none"), "10s").expect_err("nothing runs there");
    assert!(said.contains("no process") && said.lines().count() == 1, "{said}");
    // Linked statically and stripped: nothing to be seen of its allocator.
    let Some(busybox) =
        [Path::new("/bin/busybox"), Path::new("/usr/bin/busybox")].into_iter().find(|path| path.exists())
    else {
        return skip_ok(TEST, "busybox is not installed");
    };
    let server = Server::start("busybox", "", busybox, &["sleep", "100"], place.path());
    eventually("busybox", || {
        let of = fs::read_link(format!("/proc/{}/exe", server.child.id())).ok()?;
        of.ends_with("busybox").then_some(())
    });
    let said = trace(&server.cgroup, &place.path().join("busybox"), "10s").expect_err("no allocator");
    assert!(said.contains("no allocator that is known") && said.lines().count() == 1, "{said}");
}

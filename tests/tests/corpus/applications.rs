//! Programs that find no more memory and end by themselves; the kernel kills nobody.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tests::{cgroup::Cgroup, defib::Agent, eventually, victim::binary};

use crate::{case::Case, facts, faults::called_from, scene::Scene};

const fn case(id: &'static str, title: &'static str, cannot: fn() -> Option<String>, act: fn(&mut Scene<'_>)) -> Case {
    Case { id, group: "applications", title, expect: "app_oom_probable", cannot, act }
}

pub(crate) const CASES: &[Case] = &[
    case("app_rust", "Rust: an allocation fails (SIGABRT)", facts::always, rust),
    case("app_cpp", "C++: bad_alloc that nobody catches (SIGABRT)", no_cpp, cpp),
    case("app_python", "Python: MemoryError that nobody catches (exit 1)", || facts::lacks(&["python3"]), python),
    case("app_go", "Go: the runtime gets no more memory (exit 2)", no_go, go),
    case(
        "app_jvm_exit",
        "JVM: -XX:+ExitOnOutOfMemoryError (exit 3)",
        || facts::lacks(&["java"]),
        |scene| {
            jvm(scene, "-XX:+ExitOnOutOfMemoryError", Ended::With(3));
        },
    ),
    case(
        "app_jvm_crash",
        "JVM: -XX:+CrashOnOutOfMemoryError (SIGABRT)",
        || facts::lacks(&["java"]),
        |scene| {
            jvm(scene, "-XX:+CrashOnOutOfMemoryError", Ended::By(6));
        },
    ),
    case("app_node", "Node: --max-old-space-size (SIGABRT)", || facts::lacks(&["node"]), node),
];

/// How a process ended.
enum Ended {
    By(i32),
    With(i32),
}

/// A probable verdict, and how sure it has to be.
fn is_probable(scene: &mut Scene<'_>, death: &Value, how: &Ended) {
    scene.expected(death);
    ended(scene, death, how);
    let score = death["cause"]["score"].as_f64();
    scene.holds(death, "the score is 0.6 or more", score.is_some_and(|score| (0.6..=1.0).contains(&score)));
    let evidence = death["cause"]["evidence"].as_array();
    scene.holds(death, "there is evidence", evidence.is_some_and(|evidence| !evidence.is_empty()));
}

fn ended(scene: &mut Scene<'_>, death: &Value, how: &Ended) {
    match how {
        Ended::By(signal) => scene.has(death, "/signal", *signal),
        Ended::With(code) => scene.has(death, "/exit_code", *code),
    }
}

/// Runs a program that is refused more addresses than this, and judges its end by what the watcher alone can see.
fn refused(scene: &mut Scene<'_>, mib: u32, program: &[&str], how: &Ended) -> Value {
    let cgroup = scene.cgroup(None);
    let limit = mib.to_string();
    let death = scene.dies(Some(&cgroup), &[&["--address-space", &limit, "exec"], program].concat());
    is_probable(scene, &death, how);
    death
}

fn rust(scene: &mut Scene<'_>) {
    let victim = binary("victim");
    let death = refused(scene, 256, &[victim.to_str().expect("UTF-8"), "leak"], &Ended::By(6));
    called_from(scene, &death, "memory::leak");
}

fn python(scene: &mut Scene<'_>) {
    let python = facts::program("python3").expect("it is installed");
    let program = "taken = []\nwhile True: taken.append(bytearray(16 << 20))";
    refused(scene, 512, &[python.to_str().expect("UTF-8"), "-c", program], &Ended::With(1));
}

/// A program that `cargo xtask corpus` puts beside the victim, from `src/foreign`.
fn foreign(name: &str) -> PathBuf {
    binary("victim").with_file_name(name)
}

fn no_foreign(name: &str, compiler: &str) -> Option<String> {
    let reason = format!("{compiler} was not installed where the corpus was built");
    (!foreign(name).exists()).then_some(reason)
}

fn no_cpp() -> Option<String> {
    no_foreign("bad-alloc", "g++")
}

fn cpp(scene: &mut Scene<'_>) {
    let program = foreign("bad-alloc");
    let death = refused(scene, 256, &[program.to_str().expect("UTF-8")], &Ended::By(6));
    called_from(scene, &death, "main");
}

fn no_go() -> Option<String> {
    no_foreign("go-leak", "go")
}

fn go(scene: &mut Scene<'_>) {
    let program = foreign("go-leak");
    refused(scene, 1024, &[program.to_str().expect("UTF-8")], &Ended::With(2));
}

const JAVA: &str = "public class Leak {\n    public static void main(String[] arguments) {\n        \
     var taken = new java.util.ArrayList<byte[]>();\n        while (true) taken.add(new byte[1 << 20]);\n    }\n}\n";

fn jvm(scene: &mut Scene<'_>, option: &str, how: Ended) {
    let place = tempfile::tempdir().expect("a directory");
    let source = place.path().join("Leak.java");
    fs::write(&source, JAVA).expect("the source can be written");
    let java = facts::program("java").expect("it is installed");
    let report = format!("-XX:ErrorFile={}", place.path().join("hs_err.log").display());
    let words = ["-Xmx64m", &report, option, source.to_str().expect("UTF-8")];
    last_words(scene, &java, &words, "java.lang.OutOfMemoryError", &how);
}

fn node(scene: &mut Scene<'_>) {
    let node = facts::program("node").expect("it is installed");
    let program = "const taken = []; for (;;) taken.push(new Array(100000).fill(1.5));";
    let words = ["--max-old-space-size=32", "-e", program];
    last_words(scene, &node, &words, "JavaScript heap out of memory", &Ended::By(6));
}

/// How often a program is run until it dies as it is meant to: under emulation a runtime sometimes crashes in its own code
/// before it runs out of memory, which is another death than the one that the case is about.
const TRIES: usize = 3;

/// Runs a program as a service of the agent, which hears its last words. The watcher sees the same death without them:
/// its record counts only as far as the facts go.
fn last_words(scene: &mut Scene<'_>, program: &Path, words: &[&str], says: &str, how: &Ended) {
    // Through the victim, which allows no cores.
    let victim = binary("victim");
    let start = [victim.to_str().expect("UTF-8"), "exec", program.to_str().expect("UTF-8")];
    let start: Vec<_> = start.iter().chain(words).map(|word| format!("{word:?}")).collect();
    for tries_left in (0..TRIES).rev() {
        let cgroup = Cgroup::new(None);
        // Started by the agent, and not a second time before the case is over.
        let agent = Agent::start(&format!(
            "[[service]]\nname = \"talkative\"\nrestart = true\nbackoff = {{ initial = \"10m\", max = \"10m\" }}\n\
             command = {{ start = [{}], cgroup = \"{}\" }}\n",
            start.join(", "),
            cgroup.path
        ));
        let death = scene.death("the program", |death| death["cgroup"] == cgroup.path && death["role"] == "main");
        let said = fs::read_to_string(agent.state.path().join("output/talkative.log")).unwrap_or_default();
        if !said.contains(says) && tries_left > 0 {
            println!("not the death that is meant, once more: {death}\n{said}");
            continue;
        }
        scene.fact("its last words", said.contains(says), true);
        scene.expected_of_another(&death);
        ended(scene, &death, how);
        let of = |cause: &str| format!("defib_deaths_total{{cause=\"{cause}\",service=\"talkative\"}}");
        let metrics = eventually("the agent's verdict", || {
            let metrics = agent.metrics();
            let kinds = ["app_oom_probable", "crash", "exit", "killed", "unknown"];
            kinds.iter().any(|kind| metrics.get(&of(kind)) >= Some(1.0)).then_some(metrics)
        });
        scene.fact("the agent's verdicts on app_oom_probable", metrics.get(&of("app_oom_probable")), Some(1.0));
        return;
    }
}

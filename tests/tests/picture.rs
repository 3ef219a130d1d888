//! What was in memory when a service died for want of it, and the command that looks at it before; real leaks under real limits.

use std::{
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use serde_json::Value;
use tests::{
    cgroup::Cgroup,
    defib::{Agent, run},
    eventually, live,
    victim::binary,
};

const MIB: u64 = 1024 * 1024;
/// Of every service, in MiB, and what they have at once: a tenth below is where a service is looked at.
const LIMIT: u64 = 40;

/// Memory is measured ten times in a second.
const HEAD: &str = "[forecast]\nsample = \"100ms\"\n[defaults]\nbudget = { per_host = \"100/1m\" }\n";

fn service(name: &str, cgroup: &Cgroup, words: &[&str], extra: &str) -> String {
    let words: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
    format!(
        "[[service]]\nname = \"{name}\"\nrestart = true\ngrace = \"0s\"\nhealth = \"exec:/bin/true\"\n\
         backoff = {{ initial = \"10ms\", max = \"20ms\" }}\nbudget = {{ per_service = \"100/1m\" }}\n{extra}\n\
         command = {{ start = [\"{}\", {}], cgroup = \"{}\" }}\n",
        binary("victim").display(),
        words.join(", "),
        cgroup.path
    )
}

/// The first death of a service for want of memory, as it is recorded.
fn oom(agent: &Agent, service: &str) -> Value {
    let is_whole = |incident: &Value| {
        let mut pictures = incident["before_oom"]["pictures"].as_array().into_iter().flatten();
        incident["cause"]["kind"] == "oom_kill" && pictures.any(|picture| picture["moment"] == "marked")
    };
    eventually("its OOM kill", || agent.incidents(service).into_iter().find(is_whole))
}

/// The words of its timeline that tell of its command.
fn told(incident: &Value) -> Vec<String> {
    let entries = incident["timeline"].as_array().expect("a timeline").iter();
    let of_command = entries.filter(|entry| entry["what"] == "before_oom");
    of_command.map(|entry| entry["text"].as_str().expect("text").to_owned()).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn what_was_in_memory_is_in_the_record_of_the_death() {
    if !live::can_run("what_was_in_memory_is_in_the_record_of_the_death") {
        return;
    }
    let cgroup = Cgroup::new(Some(LIMIT * MIB));
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("my data|<b>");
    // 24 MiB, 2 of a file, 2 of shared memory, 8 of many pieces; then 1 MiB in a second.
    let agent = Agent::start(&format!(
        "{HEAD}{}",
        service("hoarder", &cgroup, &["hoard", text(&file), "2000", "24", "1024"], "")
    ));
    let incident = oom(&agent, "hoarder");
    let pictures = incident["before_oom"]["pictures"].as_array().expect("pictures");
    let moments: Vec<_> = pictures.iter().map(|picture| (&picture["moment"], &picture["missed"])).collect();
    println!("MEASURED pictures: {moments:?}");
    let foreseen = pictures.iter().find(|picture| picture["moment"] == "foreseen").expect("it was foreseen");
    let marked = pictures.iter().find(|picture| picture["moment"] == "marked").expect("the mark was seen");
    assert!(marked["missed"].is_null() == (marked["processes"].as_array().map(Vec::len) == Some(1)), "{marked}");

    let [process] = foreseen["processes"].as_array().expect("processes").as_slice() else { panic!("{foreseen}") };
    assert_eq!(process["comm"], "victim");
    assert_eq!(process["threads"], 21, "{process}");
    let least = |name: &str, least: u64| assert!(process[name].as_u64() >= Some(least), "{name}: {process}");
    least("open_files", 100);
    least("mappings", 2000);
    least("resident_bytes", 30 * MIB);
    let largest = process["largest"].as_array().expect("mappings");
    assert_eq!(largest.len(), 10);
    let has = |kind: &str, name: &str, least: u64| {
        let fits =
            |one: &&Value| one["kind"] == kind && one["name"] == name && one["resident_bytes"].as_u64() >= Some(least);
        assert!(largest.iter().any(|one| fits(&one)), "{kind} {name}: {largest:?}");
    };
    has("anonymous", "", 24 * MIB);
    has("file", text(&file), 2 * MIB);
    has("shared", "/memfd:hoard (deleted)", 2 * MIB);
    let rest = process["rest"].as_array().expect("sums");
    let pieces = rest.iter().find(|sum| sum["kind"] == "anonymous").expect("pieces");
    assert!(pieces["mappings"].as_u64() > Some(1900), "{pieces}");

    // People see it everywhere that they see an incident.
    let id = incident["id"].to_string();
    let said = |command: &str| {
        let output = run(&["incidents", command, &id, "--state-dir", text(agent.state.path())]);
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let shown = said("show");
    for want in
        ["picture   -", "when memory was about to run out", "21 threads", "file: ", "shared: /memfd:hoard", "others"]
    {
        assert!(shown.contains(want), "{want}: {shown}");
    }
    let report = said("report");
    assert!(report.contains("## What was in memory\n\n-") && report.contains("my data\\| b>"), "{report}");
    let (status, page) = agent.try_get(&format!("/incidents/{id}")).expect("a page");
    assert!(status == 200 && page.contains("What was in memory") && page.contains("my data|&lt;b&gt;"), "{page}");
    let (_, json) = agent.try_get(&format!("/api/v1/incidents/{id}")).expect("JSON");
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["before_oom"], incident["before_oom"]);
    let what = |word: &str| incident["timeline"].as_array().expect("entries").iter().any(|entry| entry["what"] == word);
    assert!(what("memory_picture") && !what("before_oom"), "no command is configured: {incident}");
    let metrics = agent.metrics();
    assert!(metrics.get("defib_memory_pictures_total{result=\"taken\"}") >= Some(1.0));
    assert_eq!(metrics.get("defib_memory_pictures_total{result=\"dropped\"}"), Some(0.0));
}

#[test]
fn a_command_looks_at_each_incarnation_once_and_what_came_of_it_is_told() {
    if !live::can_run("a_command_looks_at_each_incarnation_once_and_what_came_of_it_is_told") {
        return;
    }
    let cgroups: Vec<_> = (0..5).map(|_| Cgroup::new(Some(LIMIT * MIB))).collect();
    // From 33 MiB on at half a MiB in a second: some 5 s until it is looked at, and 8 s more until it dies.
    let leak = ["leak-slowly", "33", "512"];
    let configured = |number: usize, name: &str, command: &str, extra: &str| {
        service(name, &cgroups[number], &leak, &format!("before_oom = {{ command = {command}{extra} }}"))
    };
    let config = [
        configured(
            0,
            "looked-at",
            "[\"/bin/sh\", \"-c\", \"cat /proc/self/status /proc/self/oom_score_adj; echo $1 > $0/pid; echo $* >&2; env\", \
             \"{dir}\", \"{pid}\", \"{service}; $(touch x)\"]",
            "",
        ),
        configured(
            1,
            "hanging",
            "[\"/bin/sh\", \"-c\", \"sleep 1000 & echo $! $$ > $0/pids; sleep 1000\", \"{dir}\"]",
            ", timeout = \"1s\"",
        ),
        configured(
            2,
            "greedy",
            "[\"/bin/sh\", \"-c\", \"i=0; while :; do head -c 200000 /dev/zero > $0/$i; i=$((i+1)); done\", \"{dir}\"]",
            ", keep = \"1MiB\"",
        ),
        configured(3, "large", "[\"/bin/dd\", \"if=/dev/zero\", \"of={dir}/dump\", \"bs=1000\"]", ", keep = \"1MiB\""),
        configured(4, "missing", "[\"/nonexistent/tool\"]", ""),
    ];
    let agent = Agent::start(&format!("{HEAD}{}", config.concat()));
    let state = agent.state.path().canonicalize().expect("a directory");
    let record = |name: &str| {
        let incident = oom(&agent, name);
        let ran = incident["before_oom"]["command"].clone();
        let told = told(&incident);
        assert_eq!(told.last().map(String::as_str), ran["text"].as_str(), "the timeline says so too: {incident}");
        assert!(told.first().is_some_and(|text| text.starts_with("memory is about to run out; /")), "{told:?}");
        println!("MEASURED {name}: {ran}");
        (ran["ended"].clone(), ran["text"].as_str().expect("text").to_owned(), ran["directory"].clone())
    };
    let directory = |value: &Value| PathBuf::from(value.as_str().expect("a directory"));

    let (ended, said, place) = record("looked-at");
    assert!(ended == "ok" && said.contains("/bin/sh ran before memory was out: done in "), "{said}");
    let place = directory(&place);
    assert!(place.starts_with(state.join("before-oom/looked-at")), "{}", place.display());
    let output = fs::read_to_string(place.join("output.log")).expect("its output");
    let pid = fs::read_to_string(place.join("pid")).expect("what it wrote");
    assert!(output.contains(&format!("\n{} looked-at; $(touch x)\n", pid.trim())), "no shell of ours: {output}");
    assert!(output.contains("\n1000\n"), "it is the first to go: {output}");
    let rights = output.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("its rights");
    let rights = u64::from_str_radix(rights.trim(), 16).expect("hexadecimal");
    // BPF, PERFMON and SYSLOG are the agent's own; to see the memory of others is what it is for.
    assert_eq!(rights & (1 << 39 | 1 << 38 | 1 << 34 | 1 << 19), 1 << 19, "{rights:x}");
    assert!(!output.contains("NOTIFY_SOCKET") && output.contains("LANG=C.UTF-8"), "{output}");
    let mode = |path: &Path| std::os::unix::fs::MetadataExt::mode(&fs::metadata(path).expect("it is there")) & 0o777;
    assert_eq!((mode(&place), mode(&place.join("output.log"))), (0o700, 0o600));

    let (ended, said, place) = record("hanging");
    assert!(ended == "timed_out" && said.contains("was ended: ended after 1s"), "{said}");
    for pid in fs::read_to_string(directory(&place).join("pids")).expect("its pids").split_whitespace() {
        assert!(!Path::new("/proc").join(pid).exists(), "{pid} lives on");
    }

    for name in ["greedy", "large"] {
        let (ended, said, place) = record(name);
        assert!(ended == "too_large" && said.contains("left more than 1.0 MiB"), "{said}");
        // It stays, empty, until a later incarnation needs the room.
        assert_eq!(fs::read_dir(directory(&place)).map_or(0, Iterator::count), 0, "{name}");
    }
    let (ended, said, _) = record("missing");
    assert!(ended == "failed" && said.contains("cannot start /nonexistent/tool: No such file"), "{said}");

    // A directory for each incarnation that was looked at, and as many runs.
    let metrics = agent.metrics();
    let runs =
        |result: &str| metrics.get(&format!("defib_before_oom_runs_total{{result=\"{result}\"}}")).expect("exists");
    let places = |name: &str| fs::read_dir(state.join("before-oom").join(name)).map_or(0, Iterator::count) as f64;
    assert!(runs("ok") >= 1.0 && runs("ok") <= places("looked-at") && runs("timed_out") <= places("hanging"));
}

#[test]
fn a_new_agent_does_not_look_again_and_pictures_are_renewed() {
    if !live::can_run("a_new_agent_does_not_look_again_and_pictures_are_renewed") {
        return;
    }
    let cgroup = Cgroup::new(Some(LIMIT * MIB));
    let place = tempfile::tempdir().expect("a directory");
    let runs = place.path().join("runs");
    let extra = format!(
        "before_oom = {{ command = [\"/bin/sh\", \"-c\", \"echo run >> $0\", \"{}\"], within = \"1s\" }}",
        runs.display()
    );
    // It stands still, close to its limit.
    let config = format!("{HEAD}{}", service("full", &cgroup, &["leak-slowly", "37", "0"], &extra));
    let agent = Agent::start(&config);
    let count = || fs::read_to_string(&runs).map_or(0, |text| text.lines().count());
    eventually("its command", || (count() == 1).then_some(()));
    eventually("another picture", || {
        (agent.metrics().get("defib_memory_pictures_total{result=\"taken\"}") >= Some(3.0)).then_some(())
    });
    let agent = Agent::start_in(agent.crash(), &config);
    eventually("a picture by the new agent", || {
        (agent.metrics().get("defib_memory_pictures_total{result=\"taken\"}") >= Some(2.0)).then_some(())
    });
    assert_eq!(count(), 1, "once for an incarnation, whoever looks after it");
    assert!(!agent.log().contains("an earlier agent"), "what came of it is known to the new one");
    // Before 5.11 the maps of two agents are more than may be locked.
    drop(agent);
    // In the observing modes it is said and not done.
    let other = Cgroup::new(Some(LIMIT * MIB));
    let config = service("dry", &other, &["leak-slowly", "37", "0"], &extra);
    let dry = Agent::start(&format!("{HEAD}[agent]\nmode = \"dry-run\"\n{config}"));
    let _victim = tests::victim::Victim::start(Some(&other), &["leak-slowly", "37", "0"]);
    eventually("the word", || dry.log().contains("/bin/sh would run before memory is out").then_some(()));
    sleep(Duration::from_millis(300));
    assert_eq!(count(), 1);
}

#[test]
fn victims_of_a_fast_leak_are_looked_at_and_it_is_said_when_that_was_too_late() {
    if !live::can_run("victims_of_a_fast_leak_are_looked_at_and_it_is_said_when_that_was_too_late") {
        return;
    }
    let cgroup = Cgroup::new(Some(8 * MIB));
    let agent = Agent::start(&format!("{HEAD}{}", service("fast", &cgroup, &["leak"], "")));
    let figures = eventually("twenty victims", || {
        let metrics = agent.metrics();
        let of = |result: &str| metrics.get(&format!("defib_memory_pictures_total{{result=\"{result}\"}}"));
        let (taken, missed) = (of("taken")?, of("missed")?);
        (taken + missed >= 20.0).then_some((taken, missed))
    });
    println!(
        "MEASURED pictures of a service that leaks fast: {} with what was looked for, {} without",
        figures.0, figures.1
    );
    let marks = |fits: &dyn Fn(&Value) -> bool| {
        let incidents = agent.incidents("fast");
        let pictures =
            incidents.iter().flat_map(|incident| incident["before_oom"]["pictures"].as_array().into_iter().flatten());
        pictures.filter(|picture| picture["moment"] == "marked" && fits(picture)).count()
    };
    println!(
        "MEASURED its victims: {} seen whole, {} in part, {} gone",
        marks(&|picture| picture["missed"].is_null() && picture["processes"][0]["cut"].is_null()),
        marks(&|picture| picture["missed"].is_null() && picture["processes"][0]["cut"] == "died"),
        marks(&|picture| picture["missed"].is_string())
    );
    let incident = oom(&agent, "fast");
    let picture = &incident["before_oom"]["pictures"][0];
    let is_read = picture["processes"].as_array().map(Vec::len) == Some(1);
    assert!(is_read || picture["missed"] == "gone before it could be read", "{picture}");
}

#[test]
fn a_command_does_not_outlive_its_agent() {
    if !live::can_run("a_command_does_not_outlive_its_agent") {
        return;
    }
    let cgroup = Cgroup::new(Some(LIMIT * MIB));
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("pid");
    let command = format!("[\"/bin/sh\", \"-c\", \"echo $$ > $0; exec sleep 1000\", \"{}\"]", file.display());
    let extra = format!("before_oom = {{ command = {command}, timeout = \"10m\" }}");
    let agent = Agent::start(&format!("{HEAD}{}", service("full", &cgroup, &["leak-slowly", "37", "0"], &extra)));
    let pid = eventually("the command", || fs::read_to_string(&file).ok().filter(|pid| pid.ends_with('\n')));
    let lives = || fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| !stat.contains(") Z "));
    assert!(lives());
    let state = agent.crash();
    eventually("its end", || (!lives()).then_some(()));
    drop(state);
}

#[test]
fn a_worker_that_dies_for_want_of_memory_leaves_a_picture_too() {
    if !live::can_run("a_worker_that_dies_for_want_of_memory_leaves_a_picture_too") {
        return;
    }
    let cgroup = Cgroup::new(Some(LIMIT * MIB));
    let agent = Agent::start(&format!("{HEAD}{}", service("family", &cgroup, &["leak-in-child-and-idle"], "")));
    let incident = oom(&agent, "family");
    assert_eq!(incident["kind"], "near_miss", "{incident}");
    let main = u64::try_from(cgroup.members()[0]).expect("a pid");
    let pictures = incident["before_oom"]["pictures"].as_array().expect("pictures");
    let marked = pictures.iter().find(|picture| picture["moment"] == "marked").expect("the mark was seen");
    let pids: Vec<_> = marked["processes"].as_array().expect("a list").iter().map(|one| one["tgid"].as_u64()).collect();
    println!("MEASURED a worker: {} {pids:?}, main {main}", marked["missed"]);
    // Of a victim that is gone, what is left of its service is shown.
    assert_eq!(pids == [Some(main)], marked["missed"].is_string(), "{marked}");
}

#[test]
fn a_process_with_as_many_mappings_as_there_can_be_is_read_beside_everything_else() {
    if !live::can_run("a_process_with_as_many_mappings_as_there_can_be_is_read_beside_everything_else") {
        return;
    }
    let (full, other) = (Cgroup::new(Some(300 * MIB)), Cgroup::new(None));
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("file");
    // 64,000 pages are 250 MiB; it stands still close to its limit, and is looked at each second.
    let words = ["hoard", text(&file), "64000", "24", "0"];
    let config = service("full", &full, &words, "before_oom = { within = \"1s\" }");
    let agent = Agent::start(&format!("{HEAD}{config}{}", service("other", &other, &["idle"], "")));
    let taken = || agent.metrics().get("defib_memory_pictures_total{result=\"taken\"}").expect("exists");
    eventually("the first picture", || (taken() >= 1.0).then_some(()));
    // Another service dies twenty times meanwhile, and is seen each time as always.
    for _ in 0..20 {
        let pid = eventually("its process", || other.members().first().copied());
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
        eventually("another one", || {
            other.members().first().filter(|now| **now != pid.as_raw_nonzero().get()).copied()
        });
    }
    eventually("more pictures", || (taken() >= 3.0).then_some(()));
    let metrics = agent.metrics();
    let (sum, count) = (metrics.sum("defib_detection_seconds_sum"), metrics.sum("defib_detection_seconds_count"));
    println!("MEASURED detection beside it: {:.0} us", sum / count * 1e6);
    assert!(sum / count < 0.1, "{sum} s for {count} deaths");

    // What is kept of it is small, and is all of it.
    let state = rusqlite::Connection::open(agent.state.path().join("defib.db")).expect("opens");
    let kept: String =
        state.query_row("SELECT record FROM picture WHERE name = 'full'", [], |row| row.get(0)).expect("kept");
    let record: Value = serde_json::from_str(&kept).expect("JSON");
    let picture = &record["seen"]["pictures"][0];
    let process = &picture["processes"][0];
    println!("MEASURED {} mappings in {} ms, {} bytes kept", process["mappings"], picture["took_ms"], kept.len());
    // On a machine that is very busy the time runs out, which is said.
    let is_whole = process["cut"].is_null() && process["mappings"].as_u64() >= Some(64_000);
    assert!(is_whole || process["cut"] == "too_slow", "{process}");
    assert!(kept.len() < 8192, "{}", kept.len());
}

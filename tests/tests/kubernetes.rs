//! The image that is made by the recipe, run with what the DaemonSet gives to its container and with nothing else: it sees
//! deaths outside of it.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use tests::{
    cgroup::Cgroup,
    defib::{Metrics, Watch},
    engine::{Engine, Kind},
    eventually, live,
    monitoring::deploy,
    pod::{Container, Pod},
    victim::{Victim, binary},
};

const NAME: &str = "the_image_with_the_rights_of_the_daemon_set_sees_deaths_outside_of_it";

/// The release of Debian that programs are built for here.
fn suite() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    field("VERSION_CODENAME").filter(|_| field("ID") == Some("debian")).map(str::to_owned)
}

/// A base with the C library and nothing that could be started.
fn base(home: &Path) -> String {
    let suite = suite().expect("can_run has seen it");
    let tar = home.join("base.tar").display().to_string();
    let made = Command::new("mmdebstrap")
        .args(["--quiet", "--variant=extract", "--include=base-files,libc6,libgcc-s1", &suite, &tar])
        .output()
        .expect("mmdebstrap starts");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    tar
}

fn can_run() -> bool {
    let programs = [("/usr/bin/mmdebstrap", "mmdebstrap"), ("/usr/bin/curl", "curl"), ("/usr/bin/nsenter", "nsenter")];
    let missing = programs.into_iter().find(|(path, _)| !Path::new(path).exists()).map(|(_, what)| what);
    if let Some(what) = Kind::Docker.missing().or_else(Container::missing).or(missing) {
        live::skip_ok(NAME, &format!("needs {what}"));
        return false;
    }
    if suite().is_none() {
        live::skip_ok(NAME, "needs Debian, whose C library is the base of the image");
        return false;
    }
    live::can_run(NAME)
}

/// Asks inside of the container's network.
fn get(pid: &str, port: u64, path: &str) -> Option<(u16, String)> {
    let url = format!("http://127.0.0.1:{port}{path}");
    let curl = ["curl", "--silent", "--max-time", "20", "--write-out", "\n%{http_code}", &url];
    let output = Command::new("nsenter").args(["-t", pid, "-n"]).args(curl).stderr(Stdio::null()).output();
    let output = output.expect("nsenter starts");
    let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    let (body, status) = text.rsplit_once('\n')?;
    Some((status.parse().ok()?, body.to_owned()))
}

/// A field of `/proc/PID/status`.
fn status(pid: &str, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect("a field").trim().to_owned()
}

#[test]
fn the_image_with_the_rights_of_the_daemon_set_sees_deaths_outside_of_it() {
    if !can_run() {
        return;
    }
    let home = tempfile::tempdir().expect("a directory");
    let engine = Engine::start(Kind::Docker);
    engine.run(&["import", &base(home.path()), "base"]);
    let context = home.path().join("context");
    fs::create_dir(&context).expect("a directory");
    fs::copy(binary("defib"), context.join("defib")).expect("copied");
    let recipe = deploy("container/Dockerfile").display().to_string();
    let context = context.display().to_string();
    engine.run(&["build", "--build-arg", "BASE=base", "--tag", "defib", "--file", &recipe, &context]);

    let image = home.path().join("image.tar");
    engine.run(&["save", "--output", &image.display().to_string(), "defib"]);

    let manifest = fs::read_to_string(deploy("kubernetes/daemonset.yaml")).expect("readable");
    let pod = Pod::read(&manifest, home.path());
    let name = "docker.io/library/defib:latest";
    let container = Container::run(&pod, engine.containerd(), &image, name, home.path());
    let (pid, [ready, alive]) = (&container.pid, &pod.probes);
    let (_, notes) =
        eventually("the agent to be ready", || get(pid, pod.port, ready).filter(|(status, _)| *status == 200));
    assert_eq!(get(pid, pod.port, alive).expect("an answer").0, 200);
    // It has what the manifest names: BPF is 39, PERFMON 38, SYS_PTRACE 19 (uapi capability.h).
    assert_eq!(pod.capabilities, ["BPF", "PERFMON", "SYS_PTRACE"]);
    let rights = u64::from_str_radix(&status(pid, "CapEff"), 16).expect("hexadecimal");
    assert_eq!(rights, 1 << 39 | 1 << 38 | 1 << 19, "{rights:x}");
    let metrics = || Metrics(get(pid, pod.port, "/metrics").filter(|(status, _)| *status == 200).expect("metrics").1);
    let deaths = |cause: &str| {
        metrics().get(&format!("defib_deaths_total{{cause=\"{cause}\",service=\"other\"}}")).unwrap_or(0.0)
    };
    assert_eq!((status(pid, "NoNewPrivs").as_str(), status(pid, "Seccomp").as_str()), ("1", "2"));

    // Outside of it, in a cgroup of the host's. Beside the agent an operator watches, with no more rights.
    let mut watch = Watch::of(container.command("watcher", &["defib", "watch", "--json"]));
    let small = Cgroup::new(Some(32 << 20));
    let before = deaths("oom_kill");
    let victim = Victim::start(Some(&small), &["leak"]);
    let death = watch.death_of(victim.pid());
    victim.wait();
    assert_eq!((&death["cause"]["kind"], &death["role"]), (&"oom_kill".into(), &"main".into()), "{death}");
    assert_eq!(death["cgroup"], small.path.as_str(), "as the host calls it: {death}");
    if !notes.contains("exact scope") {
        // No micro-VM's kernel: the limit that fired is known from the kernel's own function.
        assert_eq!(death["cause"]["scope"], "memcg", "{death}");
    }
    // Where it crashed is read from the host's files, if that is in time: a process that dies at once may be gone before.
    eventually("a crash with its place", || {
        let victim = Victim::start(None, &["segv"]);
        let death = watch.death_of(victim.pid());
        victim.wait();
        assert_eq!(death["cause"]["kind"], "crash", "{death}");
        let module = death["cause"]["site"]["frames"][0]["module"].as_str().map(str::to_owned);
        module.filter(|module| module.ends_with("/victim"))
    });
    eventually("its count", || (deaths("oom_kill") > before).then_some(()));
    // An operator's way in.
    let status = container.command("operator", &["defib", "status", "--json"]).output().expect("ctr starts");
    assert!(status.status.success() && status.stdout.starts_with(b"["), "{status:?}");
    assert_eq!(metrics().sum("defib_events_lost_total"), 0.0);
}

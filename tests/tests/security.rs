//! What an agent may do, whom it listens to, and what it refuses: `docs/security.md` names each of these tests.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::Path,
    process::{Child, Command, Output},
};

use tests::{
    cgroup::Cgroup,
    defib::{Agent, free_address, get, request, run, scratch},
    eventually, live,
    victim::binary,
};

/// Bits of capabilities (uapi capability.h).
const CHOWN: u64 = 1;
const DAC_OVERRIDE: u64 = 1 << 1;
const DAC_READ_SEARCH: u64 = 1 << 2;
const KILL: u64 = 1 << 5;
const SETUID: u64 = 1 << 7;
const SYS_PTRACE: u64 = 1 << 19;
const IPC_LOCK: u64 = 1 << 14;
const SYSLOG: u64 = 1 << 34;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;
const NOBODY: u32 = 65534;

/// A set of capabilities, as `/proc/PID/status` shows it.
fn set(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    u64::from_str_radix(line.expect("the set is there").trim(), 16).expect("hexadecimal")
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("the mode can be set");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Runs an agent that is to refuse, with this configuration and state directory.
fn refused(config: &Path, state: &Path) -> Output {
    let socket = state.join("control.sock");
    run(&[
        "run",
        "--listen",
        "127.0.0.1:0",
        "--config",
        text(config),
        "--state-dir",
        text(state),
        "--control-socket",
        text(&socket),
    ])
}

/// One line says why, and how to mend it.
fn says(output: &Output, code: i32, wants: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    let line = stderr.lines().find(|line| line.starts_with("defib: ")).unwrap_or_default();
    for want in wants {
        assert!(line.contains(want), "{want:?} is missing in: {stderr}");
    }
}

#[test]
fn every_thread_of_an_agent_has_the_rights_that_it_needs_and_no_more() {
    if !live::can_run("every_thread_of_an_agent_has_the_rights_that_it_needs_and_no_more") {
        return;
    }
    let seeing = BPF | PERFMON | SYSLOG | KILL | SYS_PTRACE | DAC_READ_SEARCH | IPC_LOCK;
    let agent = Agent::start("");
    let threads = fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("it lives");
    for thread in threads.flatten() {
        let status = fs::read_to_string(thread.path().join("status")).expect("readable");
        for name in ["CapEff", "CapPrm"] {
            assert_eq!(set(&status, name), seeing, "{name} of {}", thread.path().display());
        }
        assert_eq!(set(&status, "CapInh"), 0, "{status}");
    }
    drop(agent);
    let cgroup = Cgroup::new(None);
    let agent = Agent::start(&service(&cgroup, "rights", "", &["/bin/sleep", "1000"]));
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("it lives");
    assert_eq!(set(&status, "CapEff"), seeing | DAC_OVERRIDE, "it makes cgroups");
}

fn service(cgroup: &Cgroup, name: &str, settings: &str, start: &[&str]) -> String {
    format!(
        "[[service]]\nname = {name:?}\nrestart = true\n\
         command = {{ start = {start:?}, cgroup = {:?}{settings} }}\n",
        cgroup.path
    )
}

#[test]
fn a_service_has_none_of_the_agent_s_eyes_but_those_that_it_is_granted() {
    if !live::can_run("a_service_has_none_of_the_agent_s_eyes_but_those_that_it_is_granted") {
        return;
    }
    let (plain, granted) = (Cgroup::new(None), Cgroup::new(None));
    let show = ["/bin/sh", "-c", "cat /proc/self/status; exec sleep 1000"];
    let agent = Agent::start(&format!(
        "{}{}",
        service(&plain, "plain", "", &show),
        service(&granted, "granted", ", capabilities = [\"CAP_SYS_PTRACE\"]", &show)
    ));
    let rights = |name: &str| {
        let output = agent.state.path().join("output").join(format!("{name}.log"));
        eventually("its rights", || {
            let text = fs::read_to_string(&output).ok().filter(|text| text.contains("CapAmb"))?;
            Some((set(&text, "CapEff"), set(&text, "CapBnd")))
        })
    };
    let eyes = BPF | PERFMON | SYSLOG | SYS_PTRACE;
    let (effective, bound) = rights("plain");
    assert_eq!((effective & eyes, bound & eyes), (0, 0), "no way to them");
    assert_eq!(effective & CHOWN, CHOWN, "what the agent was given and does not need itself");
    assert_eq!(rights("granted").0 & eyes, SYS_PTRACE);
    let wrong = service(&plain, "plain", ", capabilities = [\"CAP_CHOWN\"]", &show);
    let place = scratch();
    let file = place.path().join("defib.toml");
    fs::write(&file, wrong).expect("written");
    says(&run(&["check", text(&file)]), 2, &["defib.toml:4", "CAP_CHOWN", "CAP_SYS_PTRACE"]);
}

/// An agent within bounds such as those of the packaged unit, ended when dropped.
struct Bounded(Child);

impl Drop for Bounded {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn where_no_rights_can_be_gained_a_service_has_what_the_agent_was_given_and_a_reload_works() {
    if !live::can_run("where_no_rights_can_be_gained_a_service_has_what_the_agent_was_given_and_a_reload_works") {
        return;
    }
    let (cgroup, place, address) = (Cgroup::new(None), scratch(), free_address());
    let file = place.path().join("defib.toml");
    let show = ["/bin/sh", "-c", "cat /proc/self/status; exec sleep 1000"];
    fs::write(&file, service(&cgroup, "bounded", "", &show)).expect("written");
    // What the unit gives, and its drop-in for command services.
    let bounds = "--bounding-set=-all,+bpf,+perfmon,+syslog,+kill,+sys_ptrace,+dac_override,+setuid";
    let agent = Command::new("setpriv")
        .args([bounds, "--no-new-privs"])
        .arg(binary("defib"))
        .args(["run", "--listen", &address.to_string(), "--config", text(&file), "--state-dir", text(place.path())])
        .args(["--control-socket", text(&place.path().join("control.sock"))])
        .stderr(fs::File::create(place.path().join("agent.log")).expect("made"))
        .spawn()
        .expect("setpriv runs");
    let agent = Bounded(agent);
    let ready =
        || get(address, "/metrics").is_some_and(|(_, text)| text.contains("defib_service_up{service=\"bounded\"} 1"));
    eventually("the service", || ready().then_some(()));
    let output = place.path().join("output/bounded.log");
    let status = eventually("its rights", || fs::read_to_string(&output).ok().filter(|text| text.contains("CapAmb")));
    assert_eq!(set(&status, "CapEff"), KILL | DAC_OVERRIDE | SETUID, "not the agent's eyes, and all the rest");
    let effective = || {
        let status = fs::read_to_string(format!("/proc/{}/status", agent.0.id())).expect("it lives");
        set(&status, "CapEff")
    };
    let kept = BPF | PERFMON | SYSLOG | KILL | SYS_PTRACE | DAC_OVERRIDE;
    assert_eq!(effective(), kept);
    let pid = i32::try_from(agent.0.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("it lives");
    let log = || fs::read_to_string(place.path().join("agent.log")).unwrap_or_default();
    eventually("the next agent in its place", || (log().matches(" watching ").count() == 2).then_some(()));
    assert_eq!(effective(), kept);
    eventually("the service, still", || ready().then_some(()));
}

#[test]
fn the_control_socket_takes_no_orders_from_others_even_when_it_is_open_to_them() {
    if !live::can_run("the_control_socket_takes_no_orders_from_others_even_when_it_is_open_to_them") {
        return;
    }
    let agent = Agent::start("");
    let socket = agent.state.path().join("control.sock");
    assert_eq!(fs::metadata(&socket).expect("there").mode() & 0o777, 0o600);
    let place = scratch();
    let copy = place.path().join("defib");
    fs::copy(binary("defib"), &copy).expect("copied");
    mode(place.path(), 0o755);
    let ask = || {
        let mut other = Command::new("setpriv");
        other.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy);
        other.args(["status", "--socket"]).arg(&socket).output().expect("setpriv runs")
    };
    mode(agent.state.path(), 0o711);
    says(&ask(), 1, &["no agent listens", "are you root?"]);
    mode(&socket, 0o666);
    says(&ask(), 1, &["takes no orders from user 65534"]);
    assert!(agent.control(&["status"]).status.success(), "root is heard");
    eventually("the refusal in the log", || {
        agent.log().contains("user 65534 asked on the control socket").then_some(())
    });
}

#[test]
fn http_only_reads() {
    if !live::can_run("http_only_reads") {
        return;
    }
    let agent = Agent::start("");
    let paths = [
        "/",
        "/incidents/1",
        "/metrics",
        "/healthz",
        "/readyz",
        "/pool/web",
        "/api/v1/services",
        "/api/v1/incidents",
        "/api/v1/incidents/1",
        "/api/v1/traces",
        "/api/v1/traces/web/2026-01-01T00-00-00.000Z/flame.svg",
        "/api/v1/events",
    ];
    for path in paths {
        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            let (status, _) = request(agent.address(), method, path).expect("answered");
            assert_eq!(status, 405, "{method} {path}");
        }
    }
    // What changes something is on the control socket, and nowhere else.
    for path in ["/status", "/pause", "/resume"] {
        let (status, _) = request(agent.address(), "POST", path).expect("answered");
        assert_eq!(status, 404, "{path}");
    }
}

#[test]
fn a_configuration_that_others_could_change_is_refused() {
    if !live::can_run("a_configuration_that_others_could_change_is_refused") {
        return;
    }
    let place = scratch();
    let open = place.path().join("open");
    fs::create_dir(&open).expect("made");
    let file = open.join("defib.toml");
    fs::write(&file, "").expect("written");
    let check = || run(&["check", text(&file)]);
    assert!(check().status.success());
    mode(&file, 0o666);
    says(&check(), 2, &["defib.toml", "everybody", "chmod go-w"]);
    says(&refused(&file, &place.path().join("state")), 2, &["defib.toml", "everybody", "chmod go-w"]);
    mode(&file, 0o660);
    chown(&file, None, Some(NOBODY)).expect("changed");
    says(&check(), 2, &["group 65534", "chmod go-w"]);
    mode(&file, 0o600);
    chown(&file, Some(NOBODY), None).expect("changed");
    says(&check(), 2, &["belongs to user 65534", "chown root"]);
    chown(&file, Some(0), None).expect("changed");
    mode(&open, 0o777);
    says(&check(), 2, &["open can be written by everybody"]);
    // As /tmp is: what belongs to root there, nobody else can replace.
    mode(&open, 0o1777);
    assert!(check().status.success());
    // As Kubernetes mounts a ConfigMap: its modes say that everybody may write, and nobody can.
    mode(&open, 0o777);
    let mount = |options: &str| {
        let mut mount = Command::new("mount");
        mount.args(["-o", options]).arg(&open).arg(&open).status().expect("mount runs").success()
    };
    assert!(mount("bind") && mount("remount,bind,ro"));
    let (read_only, other) = (check(), fs::write(&file, "").is_err());
    assert!(Command::new("umount").arg(&open).status().expect("umount runs").success());
    assert!(read_only.status.success() && other, "{read_only:?}");
    says(&check(), 2, &["open can be written by everybody"]);
    mode(&open, 0o1777);
    let link = place.path().join("link.toml");
    let theirs = open.join("theirs.toml");
    fs::write(&theirs, "").expect("written");
    chown(&theirs, Some(NOBODY), None).expect("changed");
    symlink(&theirs, &link).expect("a link");
    says(&run(&["check", text(&link)]), 2, &["theirs.toml belongs to user 65534"]);
}

#[test]
fn a_state_directory_that_others_could_change_is_refused() {
    if !live::can_run("a_state_directory_that_others_could_change_is_refused") {
        return;
    }
    let place = scratch();
    let (file, state) = (place.path().join("defib.toml"), place.path().join("state"));
    fs::write(&file, "").expect("written");
    fs::create_dir(&state).expect("made");
    mode(&state, 0o777);
    says(&refused(&file, &state), 1, &["state can be written by everybody", "chmod go-w"]);
    mode(&state, 0o1777);
    says(&refused(&file, &state), 1, &["state can be written by everybody"]);
    mode(&state, 0o700);
    fs::write(state.join("defib.db"), "").expect("written");
    chown(state.join("defib.db"), Some(NOBODY), None).expect("changed");
    says(&refused(&file, &state), 1, &["defib.db belongs to user 65534", "chown root"]);
}

#[test]
fn no_link_in_the_state_directory_is_followed() {
    if !live::can_run("no_link_in_the_state_directory_is_followed") {
        return;
    }
    let place = scratch();
    let (file, state, target) =
        (place.path().join("defib.toml"), place.path().join("state"), place.path().join("target"));
    fs::write(&file, "").expect("written");
    fs::create_dir(&state).expect("made");
    for name in ["defib.db", "defib.db-wal", "defib.db-shm", "output", "traces"] {
        fs::write(&target, "precious").expect("written");
        symlink(&target, state.join(name)).expect("a link");
        says(&refused(&file, &state), 1, &[name, "is a link", "rm "]);
        fs::remove_file(state.join(name)).expect("removed");
        assert_eq!(fs::read_to_string(&target).expect("there"), "precious", "{name}");
    }
    // A file where the socket shall be is nothing that an agent left.
    let agent = {
        let state = scratch();
        fs::write(state.path().join("control.sock"), "precious").expect("written");
        Agent::start_in(state, "")
    };
    let socket = agent.state.path().join("control.sock");
    assert_eq!(fs::read_to_string(socket).expect("there"), "precious");
    assert!(agent.log().contains("operators cannot reach the agent"), "{}", agent.log());
    drop(agent);
    // The output of a service.
    let (cgroup, state) = (Cgroup::new(None), scratch());
    fs::create_dir(state.path().join("output")).expect("made");
    symlink(&target, state.path().join("output/linked.log")).expect("a link");
    let agent = Agent::start_in(state, &service(&cgroup, "linked", "", &["/bin/sh", "-c", "echo said; sleep 1000"]));
    eventually("the refusal", || agent.log().contains("linked.log").then_some(()));
    assert_eq!(fs::read_to_string(&target).expect("there"), "precious");
    assert!(cgroup.members().is_empty(), "it was not started");
}

#[test]
fn commands_and_health_checks_go_through_no_shell() {
    if !live::can_run("commands_and_health_checks_go_through_no_shell") {
        return;
    }
    let (cgroup, place) = (Cgroup::new(None), scratch());
    let trap = place.path().join("trap");
    let words = format!("$(touch {0}) `touch {0}` ; touch {0} | touch {0} && touch {0}", trap.display());
    // Its name is such a word too, without a slash; it leaves a mark, so that it is known to have run.
    let check = place.path().join("a b; $(touch trap) `touch trap` | c");
    fs::write(&check, format!("#!/bin/sh\necho \"$#\" > {}\n", place.path().join("asked").display())).expect("written");
    mode(&check, 0o755);
    let config = format!(
        "[[service]]\nname = \"words\"\nrestart = true\nhealth = {:?}\n\
         command = {{ start = [\"/bin/sh\", \"-c\", \"echo \\\"$1\\\"; exec sleep 1000\", \"sh\", {words:?}], cgroup = {:?} }}\n",
        format!("exec:{}", check.display()),
        cgroup.path
    );
    let agent = Agent::start(&config);
    let output = agent.state.path().join("output/words.log");
    let said = eventually("its output", || fs::read_to_string(&output).ok().filter(|text| text.ends_with('\n')));
    assert_eq!(said.trim_end(), words, "as it was written");
    let asked = place.path().join("asked");
    let count = eventually("the health check", || fs::read_to_string(&asked).ok().filter(|text| !text.is_empty()));
    assert_eq!(count.trim(), "0", "it has no arguments");
    assert!(!trap.exists());
}

//! What the program says when it cannot do what it is asked: one clear line, the right exit code, no backtrace.

use std::{
    net::TcpListener,
    process::{Command, Output},
};

use tests::{
    defib::{Watch, run, scratch},
    live,
    victim::binary,
};

fn check(output: &Output, code: i32, wants: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    for want in wants {
        assert!(stderr.contains(want), "{want:?} is missing in: {stderr}");
    }
    assert!(!stderr.contains("panicked") && !stderr.contains("backtrace"), "{stderr}");
    let lines = stderr.lines().filter(|line| line.starts_with("defib: ")).count();
    assert_eq!(lines, 1, "one line that says why: {stderr}");
}

#[test]
fn a_missing_capability_is_named_with_its_mend() {
    if !live::can_run("a_missing_capability_is_named_with_its_mend") {
        return;
    }
    // Another user may not reach the build directory; the binary is copied where it may.
    let place = scratch();
    let copy = place.path().join("defib");
    std::fs::copy(binary("defib"), &copy).expect("copied");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(place.path(), open).expect("opened");
    for command in ["watch", "run", "demo"] {
        let mut defib = Command::new("setpriv");
        defib.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy).arg(command);
        if command == "run" {
            defib.args(["--listen", "127.0.0.1:0"]);
        }
        let output = defib.output().expect("setpriv runs");
        check(&output, 1, &["CAP_BPF", "CAP_PERFMON", "setcap"]);
    }
}

#[test]
fn missing_type_information_names_the_kernel_option() {
    if !live::can_run("missing_type_information_names_the_kernel_option") {
        return;
    }
    let output = run(&["watch", "--btf", "/nonexistent/vmlinux"]);
    check(&output, 1, &["/nonexistent/vmlinux", "CONFIG_DEBUG_INFO_BTF", "--btf"]);
    let place = scratch();
    let garbage = place.path().join("vmlinux");
    std::fs::write(&garbage, "this is no BTF").expect("written");
    let output = run(&["watch", "--btf", garbage.to_str().expect("UTF-8")]);
    check(&output, 1, &["vmlinux", "not valid BTF"]);
    // The right file under another name is as good: a watcher on it sees its canary.
    drop(Watch::start(&["--btf", "/sys/kernel/btf/vmlinux"]));
}

#[test]
fn a_taken_port_is_named() {
    if !live::can_run("a_taken_port_is_named") {
        return;
    }
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    check(&run(&["run", "--listen", &address]), 1, &[&address, "--listen"]);
}

#[test]
fn an_unmounted_cgroup_file_system_is_said_and_deaths_are_still_seen() {
    if !live::can_run("an_unmounted_cgroup_file_system_is_said_and_deaths_are_still_seen") {
        return;
    }
    // In a mount namespace of its own; the host's mounts stay.
    let script = "umount -R /sys/fs/cgroup; (sleep 2; exit 3) & exec \"$0\" watch --count 1 --json";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(binary("defib"))
        .output()
        .expect("unshare runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("cannot be attributed") && stderr.contains("mount"), "{stderr}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"kind\""));
}

#[test]
fn wrong_usage_and_wrong_configuration_end_with_2() {
    let place = scratch();
    let file = place.path().join("defib.toml");
    std::fs::write(&file, "[agent]\nmode = \"fight\"\n").expect("written");
    let name = file.to_str().expect("UTF-8");
    check(&run(&["check", name]), 2, &["defib.toml:2", "mode", "observe", "dry-run", "act"]);
    check(&run(&["run", "--config", name]), 2, &["defib.toml:2"]);
    check(&run(&["check", "/nonexistent.toml"]), 2, &["/nonexistent.toml", "cannot read"]);
    let output = run(&["watch", "--count", "0"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(run(&["no-such-command"]).status.code(), Some(2));
    assert_eq!(run(&["--help"]).status.code(), Some(0));
}

#[test]
fn a_closed_pipe_is_no_error() {
    let script = "\"$0\" --help | head -1 >/dev/null; \"$0\" check \"$1\" | true";
    let place = scratch();
    let file = place.path().join("defib.toml");
    std::fs::write(&file, "").expect("written");
    let output = Command::new("sh").args(["-c", script]).arg(binary("defib")).arg(&file).output().expect("sh runs");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

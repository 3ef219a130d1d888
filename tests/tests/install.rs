//! The package on a host: what a newcomer does by the guide, what goes wrong later, an upgrade, and the end. Runs where systemd
//! is PID 1 and the packages are there, as in `cargo xtask vm --kernel 6.1 --test install`.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::{defib::get, eventually, live, victim::binary};

/// Its commands are the newcomer's.
const GUIDE: &str = include_str!("../../docs/guide.md");
/// Begins a block of commands that are run here.
const FENCE: &str = "```sh install-test\n";
/// Tenths of the exposure level that `systemd-analyze security` may find.
const EXPOSURE: &str = "--threshold=26";
/// Finds what bears our name; the guest's own harness does too. Logs, and what systemd keeps of units that ran, may stay.
const TRACES: &str = "find /boot /etc /opt /root /run /srv /usr /var -xdev -iname '*defib*' -not -path '/var/log/*' \
                      -not -path '/run/log/*' -not -path '/run/systemd/*' -not -path '/run/udev/*' | sort";
const AGENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9669);
const SERVICE: &str = "hello.service";

#[test]
fn a_newcomer_installs_heals_upgrades_and_removes() {
    let Some(packages) = packages("a_newcomer_installs_heals_upgrades_and_removes") else { return };
    let _witness = Witness;
    let blocks: Vec<&str> =
        GUIDE.split(FENCE).skip(1).map(|rest| rest.split("```").next().expect("a block ends")).collect();
    let [install, ask, service, configure, kill, look, upgrade, remove, purge] = blocks[..] else {
        panic!("the guide has {} blocks of commands", blocks.len())
    };
    let place = tempfile::tempdir().expect("a directory");
    let run = |commands: &str| shell(place.path(), commands);
    let before_all = run(TRACES);

    fs::copy(&packages[0], place.path().join("defib_1.deb")).expect("copied");
    run(install);
    the_agent_is_well();
    run(ask);
    run(&format!(
        "systemd-analyze security --no-pager {EXPOSURE} defib.service > list || {{ cat list; exit 1; }}; tail -1 list"
    ));

    run("sh -n /usr/share/defib/nginx/defib-upstream && test -x /usr/share/defib/nginx/defib-upstream");
    run("test -r /usr/share/defib/kubernetes/daemonset.yaml && test -r /usr/share/defib/container/Dockerfile");

    run(service);
    run(configure);
    the_agent_is_well();
    let first = main_process(SERVICE);
    run(kill);
    healed(first);
    let seen = run(look);
    assert!(seen.contains(SERVICE) && seen.contains("running"), "{seen}");
    let incidents = incidents();
    assert_eq!((incidents.len(), incidents[0]["service"].as_str()), (1, Some(SERVICE)), "{incidents:?}");
    let completed = run("_CLAP_COMPLETE_INDEX=2 COMPLETE=bash defib -- defib pause hel");
    assert_eq!(completed.trim(), SERVICE);

    a_reload_takes_what_is_right();
    the_watchdog_ends_an_agent_that_hangs();
    let second = main_process(SERVICE);
    run(kill);
    healed(second);
    assert_eq!(self::incidents().len(), 2, "the incidents of both agents");
    a_command_service_runs_with_its_drop_in(place.path());
    a_suspect_is_traced_with_its_drop_in(place.path());

    fs::remove_file(place.path().join("defib_1.deb")).expect("removed");
    fs::copy(&packages[1], place.path().join("defib_2.deb")).expect("copied");
    let before =
        (fs::read("/etc/defib/defib.toml").expect("a configuration"), self::incidents(), main_process("defib"));
    let living = main_process(SERVICE);
    run(upgrade);
    the_agent_is_well();
    assert_ne!(main_process("defib"), before.2, "the new agent runs");
    assert_eq!(fs::read("/etc/defib/defib.toml").expect("a configuration"), before.0);
    assert_eq!(self::incidents(), before.1);
    assert!(run("dpkg-query --show --showformat='${Version}' defib").ends_with("-2"));
    assert_eq!(main_process(SERVICE), living, "services go on");

    run(remove);
    assert!(Path::new("/etc/defib/defib.toml").exists() && Path::new("/var/lib/defib/defib.db").exists());
    assert!(!Path::new("/usr/bin/defib").exists() && get(AGENT, "/healthz").is_none());
    assert_eq!(main_process(SERVICE), living, "services go on");
    run(purge);
    assert_eq!(run(TRACES), before_all, "left behind");
    run("systemctl stop hello && rm /etc/systemd/system/hello.service && systemctl daemon-reload");
}

/// The packages in their order, where this test can run.
fn packages(name: &str) -> Option<Vec<PathBuf>> {
    if !live::can_run(name) {
        return None;
    }
    let systemd = fs::read_to_string("/proc/1/comm").is_ok_and(|comm| comm.trim() == "systemd");
    let here = fs::read_dir(".").expect("a directory").flatten().map(|entry| entry.path());
    let mut packages: Vec<_> =
        here.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect();
    packages.sort();
    if systemd && packages.len() == 2 {
        return Some(packages);
    }
    live::skip_ok(name, "needs systemd and the packages; run it with 'cargo xtask vm --kernel 6.1 --test install'");
    None
}

/// When anything fails, what the agent said of it.
struct Witness;

impl Drop for Witness {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", journal());
        }
    }
}

/// Runs commands as a person would paste them, all of which must succeed; returns what they print.
fn shell(place: &Path, commands: &str) -> String {
    let mut command = Command::new("bash");
    command.args(["-euc", commands]).current_dir(place).env("DEBIAN_FRONTEND", "noninteractive");
    let output = command.output().expect("bash starts");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    println!("$ {}\n{printed}{errors}", commands.trim_end());
    assert!(output.status.success(), "{}", output.status);
    printed
}

fn journal() -> String {
    let output = Command::new("journalctl").args(["-u", "defib", "-n", "60", "--no-pager"]).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

fn show(unit: &str, property: &str) -> String {
    let output = Command::new("systemctl").args(["show", "-P", property, unit]).output().expect("systemctl starts");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn main_process(unit: &str) -> i32 {
    show(unit, "MainPID").parse().expect("a pid")
}

/// systemd has heard that it is ready, and nothing that it can do on this kernel is off.
fn the_agent_is_well() {
    assert_eq!(show("defib", "ActiveState"), "active");
    let status = show("defib", "StatusText");
    assert!(status.starts_with("watching "), "{status}");
    let (code, body) = get(AGENT, "/readyz").expect("an answer");
    println!("{body}");
    assert_eq!(code, 200, "{body}");
    assert!(!body.contains("denied") && !body.contains("not permitted") && !body.contains("Read-only"), "{body}");
}

/// Another incarnation than `before` runs and is believed to.
fn healed(before: i32) {
    eventually("the service to be back", || {
        let now = main_process(SERVICE);
        (now != 0 && now != before && status(SERVICE)["state"] == "running").then_some(())
    });
}

fn json(words: &[&str]) -> Vec<Value> {
    let output = Command::new("defib").args(words).arg("--json").output().expect("defib starts");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn status(service: &str) -> Value {
    json(&["status"]).into_iter().find(|one| one["service"] == service).unwrap_or_default()
}

fn incidents() -> Vec<Value> {
    json(&["incidents"])
}

/// What is wrong changes nothing; what is right counts, in the same process.
fn a_reload_takes_what_is_right() {
    const CONFIG: &str = "/etc/defib/defib.toml";
    let agent = main_process("defib");
    let right = fs::read_to_string(CONFIG).expect("readable");
    let reload = |text: &str, success: &str| {
        fs::write(CONFIG, text).expect("written");
        shell(Path::new("/"), "systemctl reload defib");
        eventually("the configuration to be read", || {
            let (_, metrics) = get(AGENT, "/metrics")?;
            metrics.contains(&format!("\ndefib_config_reload_success {success}\n")).then_some(())
        });
    };
    reload(&format!("{right}wrong\n"), "0");
    reload(&right, "1");
    eventually("the agent to be active", || (show("defib", "ActiveState") == "active").then_some(()));
    assert_eq!(main_process("defib"), agent);
    the_agent_is_well();
}

/// Stopped, it lives and does nothing: what a hang looks like from outside.
fn the_watchdog_ends_an_agent_that_hangs() {
    let hanging = main_process("defib");
    kill_process(Pid::from_raw(hanging).expect("a pid"), Signal::STOP).expect("stopped");
    eventually("another agent", || {
        let now = main_process("defib");
        (now != 0 && now != hanging && show("defib", "ActiveState") == "active").then_some(())
    });
    assert!(journal().contains("Watchdog timeout"));
    the_agent_is_well();
}

/// The sandbox has no room for what the agent starts itself; the drop-in of the package makes it.
fn a_command_service_runs_with_its_drop_in(place: &Path) {
    let added = "\n[[service]]\nname = 'napping'\ncommand = { start = ['/bin/sleep', '1000'], cgroup = '/napping' }\n\
                 restart = true\nhealth = 'exec:/bin/true'\n";
    let before = fs::read_to_string("/etc/defib/defib.toml").expect("a configuration");
    fs::write("/etc/defib/defib.toml", before.clone() + added).expect("written");
    let drop_ins = "/etc/systemd/system/defib.service.d";
    shell(
        place,
        &format!(
            "mkdir {drop_ins}; cp /usr/share/defib/command-services.conf {drop_ins}
             systemctl daemon-reload; systemctl restart defib"
        ),
    );
    let up = |other: Option<u64>| {
        eventually("the command service to run", || {
            let status = status("napping");
            let pid = status["pid"].as_u64().filter(|&pid| Some(pid) != other)?;
            (status["state"] == "running").then_some(pid)
        })
    };
    let first = up(None);
    kill_process(Pid::from_raw(first as i32).expect("a pid"), Signal::KILL).expect("killed");
    let second = up(Some(first));
    fs::write("/etc/defib/defib.toml", before).expect("written");
    shell(place, &format!("rm -r {drop_ins}; systemctl daemon-reload; systemctl restart defib; kill {second}"));
}

/// Nor is there room for what sees where a service's memory grows; on an old kernel there are not the rights, which is said. An hour
/// of the forecast is 0.6 s here.
fn a_suspect_is_traced_with_its_drop_in(place: &Path) {
    const CONFIG: &str = "/etc/defib/defib.toml";
    let unit = "/etc/systemd/system/leaky.service";
    let before = fs::read_to_string(CONFIG).expect("a configuration");
    let fast = before.replace("sample = \"60s\"", "sample = \"10ms\"");
    assert_ne!(fast, before);
    let added = "\n[[service]]\nunit = 'leaky.service'\ntrace = 'suspects'\n";
    fs::write(CONFIG, fast + added).expect("written");
    let victim = binary("victim");
    let leaky = "MemoryMax=48M\nMemorySwapMax=0\nRestart=always\n";
    fs::write(unit, format!("[Service]\nExecStart={} leak-slowly 16 569\n{leaky}", victim.display())).expect("written");
    let drop_ins = "/etc/systemd/system/defib.service.d";
    shell(
        place,
        &format!(
            "mkdir {drop_ins}; cp /usr/share/defib/traces.conf {drop_ins}
             systemctl daemon-reload; systemctl restart defib; systemctl start leaky"
        ),
    );
    eventually("a suspicion", || journal().contains("to see where it grows").then_some(()));
    let types = fs::read("/sys/kernel/btf/vmlinux").expect("the kernel's types");
    let at_once = types.windows(21).any(|name| name == b"bpf_uprobe_multi_link");
    let (wanted, other) = ("traced for", "this kernel attaches probes for CAP_SYS_ADMIN only");
    let (wanted, other) = if at_once { (wanted, other) } else { (other, wanted) };
    eventually("the end of a trace", || {
        let said = journal();
        assert!(!said.contains(other), "{said}");
        said.contains(wanted).then_some(())
    });
    fs::write(CONFIG, before).expect("written");
    shell(
        place,
        &format!("rm -r {drop_ins}; systemctl stop leaky; rm {unit}; systemctl daemon-reload; systemctl restart defib"),
    );
}

//! Programs that end others before the kernel must.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use tests::victim::binary;

use crate::{case::Case, facts, scene::Scene, systemd};

const fn case(id: &'static str, title: &'static str, cannot: fn() -> Option<String>, act: fn(&mut Scene<'_>)) -> Case {
    Case { id, group: "user-space OOM killers", title, expect: "userspace_oom_kill", cannot, act }
}

pub(crate) const CASES: &[Case] = &[
    case("earlyoom_term", "earlyoom asks a process to end", no_earlyoom, |scene| earlyoom(scene, false, 15)),
    case("earlyoom_kill", "earlyoom kills a process", no_earlyoom, |scene| earlyoom(scene, true, 9)),
    case("systemd_oomd", "systemd-oomd kills a unit under memory pressure", no_oomd, oomd),
];

fn no_earlyoom() -> Option<String> {
    facts::lacks(&["earlyoom", "unshare"])
}

/// `unshare`, which takes its namespace with it when it ends.
struct Namespace(Child);

impl Drop for Namespace {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Runs the real earlyoom with thresholds that every machine is below. It is in a pid namespace with a victim and nobody
/// else: it can neither see nor end what does not belong to the case.
fn earlyoom(scene: &mut Scene<'_>, kill: bool, signal: i32) {
    // Thresholds to ask and to kill: of memory in KiB, as much as there is; of swap in percent.
    let all = facts::memory_kib();
    let (memory, swap) = if kill { (format!("{all},{all}"), "99,99") } else { (format!("{all},1"), "99,1") };
    let cgroup = scene.cgroup(None);
    let directory = cgroup.directory.display();
    // earlyoom looks around once its victim is where it belongs.
    let script = format!(
        "'{}' --cgroup '{directory}' idle & until grep -q . '{directory}/cgroup.procs'; do sleep 0.1; done; \
         exec '{}' -M {memory} -s {swap} -r 0 --prefer '^victim$'",
        binary("victim").display(),
        facts::program("earlyoom").expect("it is installed").display(),
    );
    let namespace = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("unshare starts");
    let namespace = Namespace(namespace);
    let death = scene.death("earlyoom's victim", |death| death["cgroup"] == cgroup.path);
    drop(namespace);
    scene.expected(&death);
    scene.has(&death, "/comm", "victim");
    scene.has(&death, "/signal", signal);
    scene.has(&death, "/cause/signal", signal);
    scene.has(&death, "/cause/by/comm", "earlyoom");
    scene.has(&death, "/cause/by/uid", 0);
}

fn no_oomd() -> Option<String> {
    facts::not_our_guest()
        .or_else(|| facts::lacks_file("/proc/pressure/memory"))
        .or_else(|| facts::lacks_file("/usr/lib/systemd/systemd-oomd"))
}

/// Its settings for this case, gone with it.
struct Oomd;

const OOMD_SETTINGS: &str = "/run/systemd/oomd.conf.d/corpus.conf";

impl Oomd {
    fn start() -> Self {
        let directory = std::path::Path::new(OOMD_SETTINGS).parent().expect("a directory");
        fs::create_dir_all(directory).expect("settings can be made");
        fs::write(OOMD_SETTINGS, "[OOM]\nDefaultMemoryPressureDurationSec=1s\n").expect("settings can be written");
        systemd::systemctl(&["restart", "systemd-oomd.service"]);
        Self
    }
}

impl Drop for Oomd {
    fn drop(&mut self) {
        let quiet = |words: &[&str]| drop(Command::new("systemctl").args(words).output());
        quiet(&["stop", "systemd-oomd.service", "systemd-oomd.socket"]);
        fs::remove_file(OOMD_SETTINGS).ok();
    }
}

fn oomd(scene: &mut Scene<'_>) {
    const UNIT: &str = "corpus-oomd.service";
    let oomd = Oomd::start();
    let file = tempfile::Builder::new().prefix("corpus-").tempfile_in("/var/tmp").expect("a file");
    let properties =
        ["MemoryHigh=40M", "MemorySwapMax=0", "ManagedOOMMemoryPressure=kill", "ManagedOOMMemoryPressureLimit=1%"];
    systemd::start(UNIT, &properties, &["thrash", file.path().to_str().expect("UTF-8")]);
    let death = scene.death(UNIT, |death| death["service"] == UNIT);
    drop(oomd);
    scene.expected(&death);
    scene.has(&death, "/signal", 9);
    scene.has(&death, "/cause/signal", 9);
    scene.has(&death, "/cause/by/comm", "systemd-oomd");
    scene.has(&death, "/cause/by/service", "systemd-oomd.service");
}

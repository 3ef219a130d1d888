//! OOM kills at a cgroup's limit, and a death there that is none.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use tests::{
    cgroup::{self, Cgroup, memory_hierarchy},
    eventually,
    victim::Victim,
};

use crate::{
    case::Case,
    facts,
    scene::{Scene, kernel_count},
    stage::kernel_oom_kills,
};

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 32 * MIB;

const fn case(id: &'static str, title: &'static str, cannot: fn() -> Option<String>, act: fn(&mut Scene<'_>)) -> Case {
    Case { id, group: "memory cgroup", title, expect: "oom_kill", cannot, act }
}

pub(crate) const CASES: &[Case] = &[
    case("oom_single", "a process takes more than its cgroup's limit", facts::always, single),
    case("oom_threaded", "a thread that is not the first takes too much", facts::always, threaded),
    case("oom_leader_gone", "a thread takes too much after the first one has left", facts::always, leader_gone),
    case("oom_worker", "a child takes too much, the main process lives on", facts::always, worker),
    case("oom_ancestor", "the limit is on the cgroup above", facts::always, ancestor),
    case("oom_group", "memory.oom.group: one kill for all members", facts::no_v2, group),
    case("oom_vfork_twin", "two processes in one memory, as in vfork", facts::always, vfork_twin),
    Case {
        id: "oom_already_dying",
        group: "memory cgroup",
        title: "killed and frozen, then chosen by the OOM killer, which kills nobody",
        expect: "killed",
        cannot: no_freezer,
        act: already_dying,
    },
];

/// What the record of an OOM kill at the limit of `owner` says.
fn is_at_limit(scene: &mut Scene<'_>, death: &Value, owner: &Cgroup) {
    scene.has(death, "/signal", 9);
    scene.has(death, "/cause/scope", "memcg");
    scene.has(death, "/cause/limit_owner", owner.path.as_str());
    scene.has(death, "/cause/limit_bytes", LIMIT);
    scene.has(death, "/cause/group", Value::Null);
    scene.has(death, "/cause/shared_with", Value::Null);
    // A process inherits the peak of the one that started it, which is this one (exec_mmap, fs/exec.c).
    let most = peak().max(LIMIT) + 8 * MIB;
    let rss = death["max_rss_bytes"].as_u64();
    scene.holds(death, "the peak is near the limit", rss.is_some_and(|rss| (8 * MIB..=most).contains(&rss)));
    let memory = &death["cause"]["memory"];
    let figure = |name: &str| memory[name].as_u64();
    let (anon, all) = (figure("anon_rss_bytes"), figure("total_vm_bytes"));
    scene.holds(death, "most of it is anonymous", anon.is_some_and(|anon| (8 * MIB..=LIMIT + 4 * MIB).contains(&anon)));
    scene.holds(death, "what is mapped is more than what is there", all > anon);
    scene.holds(death, "page tables take memory", figure("page_tables_bytes").is_some_and(|bytes| bytes > 0));
    scene.holds(death, "file pages are counted", figure("file_rss_bytes").is_some());
    scene.holds(death, "shared pages are counted", figure("shmem_rss_bytes").is_some());
    let own = fs::read_to_string("/proc/self/oom_score_adj").expect("readable");
    scene.has(death, "/cause/memory/oom_score_adj", own.trim().parse::<i64>().expect("a number"));
}

/// The most memory that this process had at once.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("readable");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it is counted");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

fn single(scene: &mut Scene<'_>) {
    scene.let_the_kernel_log_recover();
    let cgroup = scene.cgroup(Some(LIMIT));
    let death = scene.dies(Some(&cgroup), &["leak"]);
    scene.expected(&death);
    is_at_limit(scene, &death, &cgroup);
    scene.has(&death, "/comm", "victim");
    scene.has(&death, "/cgroup", cgroup.path.as_str());
    scene.has(&death, "/service", cgroup.path.as_str());
    scene.has(&death, "/role", "main");
    scene.has(&death, "/cause/triggered_by/tgid", death["tgid"].clone());
    scene.has(&death, "/cause/triggered_by/comm", "victim");
    scene.has(&death, "/cause/triggered_by/service", cgroup.path.as_str());
}

fn threaded(scene: &mut Scene<'_>) {
    scene.let_the_kernel_log_recover();
    let cgroup = scene.cgroup(Some(LIMIT));
    let death = scene.dies(Some(&cgroup), &["leak-in-thread"]);
    scene.expected(&death);
    is_at_limit(scene, &death, &cgroup);
    scene.has(&death, "/role", "main");
    scene.has(&death, "/cause/triggered_by/tgid", death["tgid"].clone());
}

fn leader_gone(scene: &mut Scene<'_>) {
    scene.let_the_kernel_log_recover();
    let cgroup = scene.cgroup(Some(LIMIT));
    let death = scene.dies(Some(&cgroup), &["leak-after-leader"]);
    scene.expected(&death);
    is_at_limit(scene, &death, &cgroup);
    scene.has(&death, "/role", "main");
}

fn worker(scene: &mut Scene<'_>) {
    scene.let_the_kernel_log_recover();
    let cgroup = scene.cgroup(Some(LIMIT));
    let victim = Victim::start(Some(&cgroup), &["leak-in-child"]);
    let main = victim.pid();
    let child = scene.death(&cgroup.path, |death| death["cgroup"] == cgroup.path);
    scene.expected(&child);
    is_at_limit(scene, &child, &cgroup);
    scene.has(&child, "/role", "worker");
    scene.fact("the main process lives", victim.wait().success(), true);
    let main = scene.death_of(main);
    scene.is_a(&main, "clean_exit");
    scene.has(&main, "/role", "main");
}

fn ancestor(scene: &mut Scene<'_>) {
    scene.let_the_kernel_log_recover();
    let owner = scene.cgroup(Some(LIMIT));
    let cgroup = scene.child(&owner);
    let death = scene.dies(Some(&cgroup), &["leak"]);
    scene.expected(&death);
    is_at_limit(scene, &death, &owner);
    scene.has(&death, "/cgroup", cgroup.path.as_str());
    scene.fact("kills counted", owner.oom_kills(), Some(1));
}

fn group(scene: &mut Scene<'_>) {
    const WAITING: usize = 3;
    let cgroup = scene.cgroup(Some(LIMIT));
    fs::write(cgroup.directory.join("memory.oom.group"), "1").expect("the group can be made one");
    let waiting: Vec<_> = (0..WAITING).map(|_| Victim::start(Some(&cgroup), &["wait"])).collect();
    eventually("the group to be complete", || (cgroup.members().len() == WAITING).then_some(()));
    let before = kernel_oom_kills();
    let leaking = Victim::start(Some(&cgroup), &["leak"]);
    let mut pids: Vec<u32> = waiting.iter().chain([&leaking]).map(Victim::pid).collect();
    leaking.wait();
    for victim in waiting {
        victim.wait_with_input_open();
    }
    let deaths: Vec<_> = pids.drain(..).map(|pid| scene.death_of(pid)).collect();
    for death in &deaths {
        scene.expected(death);
        scene.has(death, "/cause/scope", "memcg");
        scene.has(death, "/cause/group/kills", deaths.len());
        scene.has(death, "/cause/group/id", deaths[0]["cause"]["group"]["id"].clone());
        scene.has(death, "/cause/shared_with", Value::Null);
    }
    scene.holds(&deaths[0], "the group has an id", !deaths[0]["cause"]["group"]["id"].is_null());
    // The chosen one is killed once more with its group, and counted again.
    scene.fact("OOM kills counted by the kernel", kernel_oom_kills() - before, deaths.iter().map(kernel_count).sum());
    let groups = cgroup::counter(&cgroup.directory.join("memory.events"), "oom_group_kill");
    scene.fact("groups counted, where the kernel does", groups.unwrap_or(1), 1);
}

fn vfork_twin(scene: &mut Scene<'_>) {
    let cgroup = scene.cgroup(Some(LIMIT));
    let before = kernel_oom_kills();
    let victim = Victim::start(Some(&cgroup), &["leak-in-twin"]);
    let parent = victim.pid();
    victim.wait_with_input_open();
    let deaths = scene.deaths_in(&cgroup, 2);
    for death in &deaths {
        scene.expected(death);
        scene.has(death, "/signal", 9);
    }
    let (marked, shared): (Vec<_>, Vec<_>) = deaths.iter().partition(|death| kernel_count(death) == 1);
    scene.fact("one of the two is counted", marked.len(), 1);
    for (shared, marked) in shared.iter().zip(&marked) {
        scene.has(shared, "/cause/shared_with", marked["tgid"].clone());
    }
    scene.fact("the parent is one of them", deaths.iter().any(|death| death["tgid"] == parent), true);
    scene.fact("OOM kills counted by the kernel", kernel_oom_kills() - before, 1);
}

/// A cgroup of the v1 freezer, whose members stop even when they are killed.
struct Freezer {
    directory: PathBuf,
    /// Mounted for this case.
    mount: Option<tempfile::TempDir>,
}

impl Freezer {
    fn new() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let is_freezer = |line: &Vec<&str>| line[2] == "cgroup" && line[3].split(',').any(|option| option == "freezer");
        let name = format!("defib-test-{}", std::process::id());
        if let Some(line) = lines.find(is_freezer) {
            let directory = Path::new(line[1]).join(name);
            fs::create_dir(&directory).ok()?;
            return Some(Self { directory, mount: None });
        }
        let mount = tempfile::tempdir().ok()?;
        let mounted = Command::new("mount").args(["-t", "cgroup", "-o", "freezer", "none"]).arg(mount.path()).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            return None;
        }
        let freezer = Self { directory: mount.path().join(name), mount: Some(mount) };
        fs::create_dir(&freezer.directory).ok()?;
        Some(freezer)
    }

    fn state(&self) -> PathBuf {
        self.directory.join("freezer.state")
    }

    fn freeze(&self, pid: u32) {
        fs::write(self.directory.join("cgroup.procs"), pid.to_string()).expect("the freezer can be entered");
        fs::write(self.state(), "FROZEN").expect("it freezes");
        eventually("the process to be frozen", || {
            fs::read_to_string(self.state()).is_ok_and(|state| state.trim() == "FROZEN").then_some(())
        });
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        fs::write(self.state(), "THAWED").ok();
        for _ in 0..500 {
            if fs::remove_dir(&self.directory).is_ok() || !self.directory.exists() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        if let Some(mount) = &self.mount {
            Command::new("umount").arg(mount.path()).output().ok();
        }
    }
}

fn no_freezer() -> Option<String> {
    Freezer::new().is_none().then(|| "the v1 freezer cannot be mounted, and no other keeps a killed process".to_owned())
}

/// The OOM killer finds that its choice is dying already: it marks it, thaws it, and sends nothing.
///
/// On cgroup v2 the limit is lowered under it. On v1, where that is refused, a bystander takes what was left. A dying
/// process is passed over as soon as its pages are unmapped, with up to 10,000 of them not given back yet (`exit_mmap`;
/// MAX_GATHER_BATCH_COUNT): it holds three times as many, so that the bystander is not the next choice. From 7.0 on it is
/// passed over before that, and the bystander would die.
fn already_dying(scene: &mut Scene<'_>) {
    const HELD: u32 = 120;
    const WANTED: u32 = 80;
    let (_, v2) = memory_hierarchy();
    let cgroup = scene.cgroup(Some(160 * MIB));
    let freezer = Freezer::new().expect("it was there a moment ago");
    let before = kernel_oom_kills();
    let holding = Victim::start(Some(&cgroup), &["hold", &HELD.to_string()]);
    let pid = holding.pid();
    has_taken(pid, HELD.into());
    freezer.freeze(pid);
    crate::signals::kill(pid, 9);
    if v2 {
        fs::write(cgroup.directory.join("memory.max"), (MIB * 16).to_string()).expect("the limit can be lowered");
    } else {
        let second = Victim::start(Some(&cgroup), &["hold", &WANTED.to_string()]);
        let bystander = second.pid();
        has_taken(bystander, WANTED.into());
        scene.fact("the bystander lives", second.wait().success(), true);
        let bystander = scene.death_of(bystander);
        scene.is_a(&bystander, "clean_exit");
    }
    holding.wait_with_input_open();
    let death = scene.death_of(pid);
    scene.expected(&death);
    scene.has(&death, "/signal", 9);
    scene.has(&death, "/cause/by/tgid", std::process::id());
    scene.has(&death, "/cause/by_kernel", json!(false));
    let evidence = death["evidence"].as_array().into_iter().flatten();
    let chosen = evidence.map(|item| &item["source"]).any(|source| *source == "oom_mm");
    scene.holds(&death, "the OOM killer had chosen it", chosen);
    scene.fact("OOM kills counted by the kernel", kernel_oom_kills() - before, 0);
}

/// Waits until a process has this much memory.
pub(crate) fn has_taken(pid: u32, mib: u64) {
    eventually(&format!("process {pid} to have {mib} MiB"), || {
        let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
        (pages * rustix::param::page_size() as u64 >= mib * MIB).then_some(())
    });
}

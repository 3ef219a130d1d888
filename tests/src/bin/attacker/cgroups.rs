//! Makes any number of cgroups, and cgroups with names of units and containers, below a delegated one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, exit},
    thread::sleep,
    time::Duration,
};

use tests::processes::{fork, wait_for};

use crate::{ready, wait};

const MIB: usize = 1 << 20;

/// Makes `count` cgroups below `directory`, removes them, and does it again; with `keep` it makes them once and waits.
pub(crate) fn many(directory: &Path, count: usize, name: &str, keep: bool) -> ! {
    let place = |number: usize| directory.join(name.replace("{}", &number.to_string()));
    loop {
        for number in 0..count {
            // The kernel may refuse more (65,535 with a memory controller); those made so far are enough.
            if fs::create_dir(place(number)).is_err() {
                break;
            }
        }
        ready();
        if keep {
            wait();
        }
        for number in 0..count {
            fs::remove_dir(place(number)).ok();
        }
    }
}

/// What an impostor does in its cgroup.
pub(crate) struct Act {
    pub(crate) limit_mib: Option<u64>,
    pub(crate) mib: usize,
    pub(crate) exit: Option<i32>,
}

/// Makes a cgroup with its missing parents, and lets a process act there; once, or again after each pause, each time in
/// a new cgroup.
pub(crate) fn impostor(directory: &Path, act: &Act, again: Option<Duration>) -> ! {
    loop {
        fs::create_dir_all(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        if let Some(mib) = act.limit_mib {
            limit(directory, mib);
        }
        // SAFETY: this process has one thread.
        let child = unsafe { fork() };
        if child.is_none() {
            fs::write(directory.join("cgroup.procs"), "0").expect("the cgroup can be entered");
            let held = vec![1_u8; act.mib * MIB];
            std::hint::black_box(&held);
            match act.exit {
                Some(code) => exit(code),
                None => {
                    ready();
                    wait()
                }
            }
        }
        child.into_iter().for_each(wait_for);
        ready();
        let Some(pause) = again else { wait() };
        fs::remove_dir(directory).ok();
        sleep(pause);
    }
}

/// Limits the memory of a delegated cgroup, on v1 or v2. On v2 its parent must enable the controller.
fn limit(directory: &Path, mib: u64) {
    let bytes = (mib * MIB as u64).to_string();
    for file in ["memory.max", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"] {
        let file = directory.join(file);
        if file.exists() {
            fs::write(&file, &bytes).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
    }
}

/// The main process of a service leaves a worker in a cgroup below the service's. The worker keeps leaving orphans
/// there that execute a program: judged by parent and cgroup alone, each looks like a new main process.
pub(crate) fn orphans(directory: &Path) -> ! {
    let below: PathBuf = directory.join("workers");
    fs::create_dir_all(&below).unwrap_or_else(|error| panic!("{}: {error}", below.display()));
    // SAFETY: this process has one thread.
    if unsafe { fork() }.is_none() {
        fs::write(below.join("cgroup.procs"), "0").expect("the cgroup can be entered");
        loop {
            // SAFETY: as above.
            match unsafe { fork() } {
                Some(child) => wait_for(child),
                None => {
                    // When this process has ended, init is the child's parent.
                    Command::new("/bin/sleep").arg("2").spawn().expect("a program starts");
                    exit(0)
                }
            }
            sleep(Duration::from_millis(200));
        }
    }
    ready();
    sleep(Duration::from_secs(1));
    exit(1)
}

//! Memory of the host, and the agent's own.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use rustix::{
    mm::{MlockAllFlags, mlockall, munlockall},
    process::{Resource, Rlimit, setrlimit},
};
use tokio::{task::spawn_blocking, time::sleep};

use super::{
    bounded::{self, FIGURES},
    pressure,
};

/// How unwillingly the kernel shall kill the agent for want of memory, as in `deploy/systemd/defib.service`. Not −1000, never: an
/// agent that takes all memory itself must not have the whole host killed before it.
const OOM_SCORE_ADJ: i32 = -900;
/// The most there is (proc_pid_oom_score_adj(5)).
const FIRST: i32 = 1000;
const OOM_SCORE_ADJ_FILE: &str = "/proc/self/oom_score_adj";
/// Bytes read of our own `smaps`: a few hundred mappings of some 700 bytes each. The program's own come first.
const SMAPS: usize = 8 * 1024 * 1024;

/// All memory of the host, bytes.
pub(crate) fn of_the_host() -> f64 {
    let info = rustix::system::sysinfo();
    let (units, bytes) = (info.totalram as f64, info.mem_unit as f64);
    units * bytes
}

/// After this long all has been done that is done once after a start: first samples, first questions to others.
const SETTLED: Duration = Duration::from_secs(20);
/// Later there are pages that an operator looked at, reports, storms.
const NOW_AND_THEN: Duration = Duration::from_secs(3600);

/// Has the kernel look for other victims first. A service manager may have seen to it.
///
/// # Errors
/// When it is not allowed.
pub(crate) fn protect() -> Result<()> {
    let now =
        bounded::text(OOM_SCORE_ADJ_FILE, FIGURES).with_context(|| format!("cannot read {OOM_SCORE_ADJ_FILE}"))?;
    if now.trim().parse::<i32>().is_ok_and(|now| now <= OOM_SCORE_ADJ) {
        return Ok(());
    }
    fs::write(OOM_SCORE_ADJ_FILE, OOM_SCORE_ADJ.to_string())
        .with_context(|| format!("cannot write {OOM_SCORE_ADJ_FILE}: it takes CAP_SYS_RESOURCE"))
}

/// Lifts the limit of locked memory, as the packaged unit does: kernels before 5.11 count maps of kernel programs against it, those of
/// all of a user's processes together, and the usual 64 KiB or 8 MiB are too few for them. Whoever may not has what there is; on newer
/// kernels that is enough.
pub(crate) fn lift_lock_limit() {
    setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }).ok();
}

/// Has all threads take memory from one pool. Of each further one only what is freed at its end goes back to the host: start-up, which
/// frees tens of megabytes of type information, may run on any thread, and would leave nine of them behind. Threads that wait for
/// each other here for a moment are no loss to an agent that sleeps most of the time.
pub(crate) fn share_one_pool() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes the allocator's own locks and has no other precondition.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Has the kernel look here first: for a process whose work anybody can do without. Everybody may do so.
pub(crate) fn volunteer() {
    fs::write(OOM_SCORE_ADJ_FILE, FIRST.to_string()).ok();
}

/// Gives back what is not needed, once the agent has settled and each hour, and keeps the rest; never ends.
///
/// # Errors
/// None; it is a part of the agent like others.
pub(crate) async fn give_back_now_and_then() -> Result<()> {
    sleep(SETTLED).await;
    let mut was_said = false;
    loop {
        let locked = spawn_blocking(|| {
            if is_calm() {
                // Nothing can be given back that is locked; without a lock there is nothing to undo.
                munlockall().ok();
                give_back();
            }
            lock()
        });
        // A failure of the task would be a panic, and has been reported as such.
        if let (Ok(Err(error)), false) = (locked.await, was_said) {
            was_said = true;
            tracing::info!("the agent may be paged out when the host has no memory: {error:#}");
        }
        sleep(NOW_AND_THEN).await;
    }
}

/// Whether nobody waits for memory. A host that cannot tell is taken for one where nobody does.
fn is_calm() -> bool {
    let text = bounded::text("/proc/pressure/memory", FIGURES).unwrap_or_default();
    pressure::full_avg10(&text).is_none_or(|percent| percent == 0.0)
}

/// Keeps in memory what is used: program text above all, which a host that runs out of memory throws away first and has to read
/// back from a busy disk for each death. What is never touched takes no memory by this.
///
/// # Errors
/// When it is not allowed.
fn lock() -> Result<()> {
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::ONFAULT)
        .context("cannot lock its memory: it takes CAP_IPC_LOCK, or 'ulimit -l unlimited'")
}

/// Gives back freed memory, which the allocator keeps otherwise, and lets go of program text. Start-up frees tens of megabytes
/// of type information, and runs megabytes of code that a resident agent never needs again; what it needs again comes back
/// from the host's page cache, a few microseconds for each piece of 64 KiB.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes the allocator's own locks and has no other precondition.
    unsafe {
        libc::malloc_trim(0);
    }
    // Only a kernel without /proc/PID/smaps has nothing to say here, and then it all stays.
    let Ok(smaps) = bounded::beginning("/proc/self/smaps", SMAPS) else { return };
    for (start, length) in untouched(&smaps) {
        // SAFETY: the range is one mapping of a file, private, read-only and without a page that differs from the file, so the
        // next access finds the same bytes.
        unsafe {
            libc::madvise(std::ptr::with_exposed_provenance_mut(start), length, libc::MADV_DONTNEED);
        }
    }
}

/// Start and length of the mappings in `/proc/PID/smaps` (proc_pid_smaps(5)) that are of a file, private, not writable, and as
/// they are in the file: relocated pages count as anonymous.
fn untouched(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        match first {
            "Anonymous:" if second == "0" => found.extend(candidate.take()),
            _ if first.ends_with(':') => {}
            // The head of a mapping: range, rights, offset, device, inode, path.
            range => {
                let is_file = words.nth(3).is_some_and(|path| path.starts_with('/'));
                candidate = (is_file && matches!(second, "r-xp" | "r--p")).then(|| bounds(range)).flatten();
            }
        }
    }
    found
}

fn bounds(range: &str) -> Option<(usize, usize)> {
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_as_it_is_in_a_file_is_let_go_of() {
        let smaps = "\
55d000-55e000 r--p 00000000 fe:00 12 /usr/bin/defib
Rss:   4 kB
Anonymous:             0 kB
55e000-560000 r-xp 00001000 fe:00 12 /usr/bin/defib
Anonymous:             0 kB
560000-561000 r--p 00003000 fe:00 12 /usr/bin/defib
Anonymous:             4 kB
561000-562000 rw-p 00004000 fe:00 12 /usr/bin/defib
Anonymous:             0 kB
570000-580000 r--p 00000000 00:00 0
Anonymous:             0 kB
580000-590000 r--s 00000000 00:0e 7 anon_inode:bpf-map
Anonymous:             0 kB
590000-5a0000 r--s 00000000 fe:00 9 /var/lib/defib/defib.db-shm
Anonymous:             0 kB
7fff000-7fff100 r-xp 00000000 00:00 0 [vdso]
Anonymous:             0 kB
";
        assert_eq!(untouched(smaps), [(0x55d000, 0x1000), (0x55e000, 0x2000)]);
    }

    #[test]
    fn code_and_constants_are_there_again_when_they_are_needed() {
        let own = fs::read_to_string("/proc/self/smaps").expect("this process has mappings");
        assert!(untouched(&own).len() >= 2, "its program, at least");
        let before = format!("{:?}", Duration::from_millis(1500));
        give_back();
        assert_eq!(format!("{:?}", Duration::from_millis(1500)), before);
    }
}

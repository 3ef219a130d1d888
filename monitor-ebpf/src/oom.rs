//! `mark_victim`: the OOM killer chose. Sent at once, hundreds of milliseconds before any supervisor can know.
//!
//! `current` is the process whose allocation failed, not the victim. Two prototypes exist, also within one release
//! series (back-ported in 2025), so the agent picks the program by BTF. The older one names a *thread* id only; the
//! process comes from the SIGKILL that the kernel sent just before, on this CPU.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_ktime_get_boot_ns},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use aya_log_ebpf::info;
use monitor_common::{
    record::{Header, KIND_OOM_MARK, MARK_KILL_SENT, MARK_THREAD_ONLY, OomMark, Process, SI_KERNEL},
    status::SIGKILL,
};

use crate::{
    maps::{Identity, KERNEL_KILL, SENDERS},
    ring::Lane,
    task::{self, Kernel},
};

/// From the kernel's signal to its mark: 4 to 32 µs measured; 10 ms leave room for interrupts and slow machines.
const JUST_BEFORE_NS: u64 = 10_000_000;

/// `mark_victim(struct task_struct *, uid_t)`.
#[btf_tracepoint(function = "mark_victim")]
fn oom_mark_task(ctx: BtfTracePointContext) -> i32 {
    let task: Kernel = ctx.arg(0);
    info!(&ctx, "the OOM killer marked process {}", task::tgid(task));
    let flags = if was_killed(task::identity(task)) { MARK_KILL_SENT } else { 0 };
    // SAFETY: `describe` fills the whole of what it is given.
    report(flags, |victim| unsafe { task::describe(task, victim) });
    0
}

/// `mark_victim(int pid)`.
#[btf_tracepoint(function = "mark_victim")]
fn oom_mark_pid(ctx: BtfTracePointContext) -> i32 {
    let tid: u32 = ctx.arg(0);
    info!(&ctx, "the OOM killer marked thread {}", tid);
    let Some(slot) = KERNEL_KILL.get_ptr(0) else { return 0 };
    // SAFETY: this CPU's slot of the map.
    let killed = unsafe { &*slot };
    if killed.tid == tid {
        let sent = was_killed(Identity { start_ns: killed.start_ns, tgid: u64::from(killed.tgid) });
        // SAFETY: `victim` is writable for a `Process`.
        report(if sent { MARK_KILL_SENT } else { 0 }, |victim| unsafe { *victim = *killed });
    } else {
        // SAFETY: likewise.
        report(MARK_THREAD_ONLY, |victim| unsafe { *victim = Process { tid, ..Process::NONE } });
    }
    0
}

/// The kernel sent this process SIGKILL just before, from this very context. A mark without that is of a process that was
/// dying anyway, also when it was the kernel that had killed it (the end of a pid namespace).
#[inline(always)]
fn was_killed(identity: Identity) -> bool {
    // SAFETY: read once, right after the look-up.
    let Some(sender) = (unsafe { SENDERS.get(identity) }) else { return false };
    // SAFETY: a helper without arguments.
    let age = unsafe { bpf_ktime_get_boot_ns() } - sender.kernel_ns;
    sender.signal == SIGKILL
        && sender.si_code == SI_KERNEL
        && sender.tgid == (bpf_get_current_pid_tgid() >> 32) as u32
        && age < JUST_BEFORE_NS
}

#[inline(always)]
fn report(flags: u32, describe: impl FnOnce(*mut Process)) {
    // SAFETY: a helper without arguments.
    let kernel_ns = unsafe { bpf_ktime_get_boot_ns() };
    let Some(mut entry) = Lane::Urgent.reserve::<OomMark>() else { return };
    let mark = entry.as_mut_ptr();
    // SAFETY: the entry is as large as an `OomMark`.
    unsafe {
        (*mark).header = Header { kind: KIND_OOM_MARK, flags, kernel_ns };
        describe(&raw mut (*mark).victim);
        (*mark).trigger_tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
        (*mark).trigger_uid = bpf_get_current_uid_gid() as u32;
        task::current_comm(&raw mut (*mark).trigger_comm);
    }
    Lane::Urgent.submit(entry);
}

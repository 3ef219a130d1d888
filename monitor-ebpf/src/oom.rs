//! `mark_victim`: the OOM killer chose a victim. The record is sent at once, hundreds of milliseconds before any supervisor can know.
//!
//! `current` is the process whose allocation failed, not the victim. Two prototypes exist, also within one release series (back-ported
//! in 2025), so the agent picks the program by BTF. The older has only a *thread* id; the process is that of the SIGKILL that the
//! kernel sent just before on this CPU.
//!
//! Scope and limit are known where the OOM killer begins: `out_of_memory(struct oom_control *)`. With fentry there both are exact;
//! without fentry both come from the kernel's log, which is rate-limited.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_probe_read_kernel},
    macros::{btf_tracepoint, fentry},
    programs::{BtfTracePointContext, FEntryContext},
};
use aya_log_ebpf::info;
use monitor_common::{
    record::{
        Header, KIND_OOM_MARK, MARK_KILL_SENT, MARK_MEMORY, MARK_THREAD_ONLY, OomMark, Process, SCOPE_CPUSET,
        SCOPE_GLOBAL, SCOPE_MEMCG, SCOPE_SYSRQ, SCOPE_UNKNOWN, SENT_BY_NAMESPACE_END, SENT_BY_TRACER_END, SI_KERNEL,
    },
    status::SIGKILL,
};

use crate::{
    current::{self, Address, probe},
    maps::{Identity, KERNEL_KILL, OOM_REQUESTS, OomRequest, SIGNALS, Signals},
    ring::Lane,
    task::{self, ABSENT, Kernel, field, offset},
};

/// `enum oom_constraint` (oom.h).
const CONSTRAINT_NONE: u32 = 0;
const CONSTRAINT_CPUSET: u32 = 1;
const CONSTRAINT_MEMORY_POLICY: u32 = 2;
/// Counters of `mm_struct.rss_stat` (mm_types_task.h).
const MM_FILEPAGES: u64 = 0;
const MM_ANONPAGES: u64 = 1;
const MM_SHMEMPAGES: u64 = 3;
/// Longest time from a request to its mark, nanoseconds: in between the kernel logs its report, slowly on a slow console. A thread
/// overwrites its older request, so this only guards against a reused thread id.
const REQUEST_MAX_NS: u64 = 60_000_000_000;

/// The OOM killer begins.
#[fentry(function = "out_of_memory")]
fn oom_begins(ctx: FEntryContext) -> i32 {
    let control: Kernel = ctx.arg(0);
    let memcg = field!(control, oom_control_memcg: Kernel, else return 0);
    let css = offset!(mem_cgroup_css);
    if css == ABSENT || offset!(css_cgroup) == ABSENT {
        return 0;
    }
    let limit_owner =
        if memcg.is_null() { 0 } else { task::node_id(task::read::<Kernel>(memcg, css + offset!(css_cgroup))) };
    let request = OomRequest {
        kernel_ns: task::now_ns(),
        control: ctx.arg(0),
        limit_owner,
        limit_pages: if memcg.is_null() { 0 } else { limit_pages(memcg) },
        sysrq: u64::from(field!(control, oom_control_order: i32, else 0) == -1),
    };
    // Without room the kernel's log is the source.
    OOM_REQUESTS.insert(bpf_get_current_pid_tgid(), request, 0).ok();
    0
}

#[inline(always)]
fn limit_pages(memcg: Kernel) -> u64 {
    let (memory, max) = (offset!(mem_cgroup_memory), offset!(page_counter_max));
    if memory == ABSENT || max == ABSENT {
        return 0;
    }
    task::read(memcg, memory + max)
}

/// What is known of this thread's request.
struct Reason {
    scope: u32,
    limit_owner: u64,
    limit_pages: u64,
    request_ns: u64,
}

impl Reason {
    const UNKNOWN: Self = Self { scope: SCOPE_UNKNOWN, limit_owner: 0, limit_pages: 0, request_ns: 0 };
}

#[inline(always)]
fn reason() -> Reason {
    // SAFETY: read once, right after the look-up.
    let Some(request) = (unsafe { OOM_REQUESTS.get(bpf_get_current_pid_tgid()) }) else { return Reason::UNKNOWN };
    let age = task::now_ns() - request.kernel_ns;
    if age > REQUEST_MAX_NS {
        return Reason::UNKNOWN;
    }
    let of_host = |scope| Reason { scope, request_ns: request.kernel_ns, ..Reason::UNKNOWN };
    if request.sysrq == 1 {
        return of_host(SCOPE_SYSRQ);
    }
    if request.limit_owner != 0 {
        let OomRequest { limit_owner, limit_pages, .. } = *request;
        return Reason { limit_owner, limit_pages, ..of_host(SCOPE_MEMCG) };
    }
    let constraint = offset!(oom_control_constraint);
    if offset!(may_probe) == 0 || constraint == ABSENT {
        return of_host(SCOPE_UNKNOWN);
    }
    // SAFETY: the helper checks the address. The structure is on this thread's stack, in the frame of a caller.
    match unsafe { bpf_probe_read_kernel((request.control + constraint) as *const u32) } {
        Ok(CONSTRAINT_NONE) => of_host(SCOPE_GLOBAL),
        Ok(CONSTRAINT_CPUSET | CONSTRAINT_MEMORY_POLICY) => of_host(SCOPE_CPUSET),
        Ok(_) | Err(_) => of_host(SCOPE_UNKNOWN),
    }
}

/// `mark_victim(struct task_struct *, uid_t)`.
#[btf_tracepoint(function = "mark_victim")]
fn oom_mark_task(ctx: BtfTracePointContext) -> i32 {
    let task: Kernel = ctx.arg(0);
    info!(&ctx, "the OOM killer marked process {}", task::tgid(task));
    let flags = if was_killed(task::identity(task)) { MARK_KILL_SENT } else { 0 };
    // SAFETY: `describe` fills the whole of what it is given.
    report(flags, ctx.arg(0), |victim| unsafe { task::describe(task, victim) });
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
    let Process { start_ns, tgid, .. } = killed.process;
    if killed.process.tid == tid {
        let sent = was_killed(Identity { start_ns, tgid: u64::from(tgid) });
        // SAFETY: `victim` is writable for a `Process`.
        report(if sent { MARK_KILL_SENT } else { 0 }, killed.task, |victim| unsafe { *victim = killed.process });
    } else {
        // SAFETY: `victim` is writable for a `Process`.
        report(MARK_THREAD_ONLY, 0, |victim| unsafe { *victim = Process { tid, ..Process::NONE } });
    }
    0
}

/// True when this thread sent SIGKILL to the process before: the OOM killer sends the signal, then marks. Otherwise the process was
/// dying anyway, for example because its pid namespace or tracer ended.
#[inline(always)]
fn was_killed(identity: Identity) -> bool {
    // SAFETY: read once, right after the look-up.
    let Some(Signals { last: sender, .. }) = (unsafe { SIGNALS.get(identity) }) else { return false };
    sender.signal == SIGKILL
        && sender.si_code == SI_KERNEL
        && sender.flags & (SENT_BY_NAMESPACE_END | SENT_BY_TRACER_END) == 0
        && u64::from(sender.tgid) << 32 | u64::from(sender.tid) == bpf_get_current_pid_tgid()
}

/// Sends the mark. `task` is the address of the victim's task, 0 when it is not known.
#[inline(always)]
fn report(flags: u32, task: Address, describe: impl FnOnce(*mut Process)) {
    let kernel_ns = task::now_ns();
    let reason = reason();
    let trigger_cgroup = current::cgroup_id();
    let Some(mut entry) = Lane::Urgent.reserve::<OomMark>() else { return };
    let mark = entry.as_mut_ptr();
    let ids = bpf_get_current_pid_tgid();
    // SAFETY: the entry is as large as an `OomMark`.
    unsafe {
        describe(&raw mut (*mark).victim);
        (*mark).trigger_tgid = (ids >> 32) as u32;
        (*mark).trigger_tid = ids as u32;
        (*mark).trigger_uid = bpf_get_current_uid_gid() as u32;
        (*mark).scope = reason.scope;
        task::current_comm(&raw mut (*mark).trigger_comm);
        (*mark).trigger_cgroup = trigger_cgroup;
        (*mark).limit_owner = reason.limit_owner;
        (*mark).limit_pages = reason.limit_pages;
        (*mark).request_ns = reason.request_ns;
        (*mark).reserved = 0;
        let known = figures(task, mark);
        (*mark).header = Header { kind: KIND_OOM_MARK, flags: flags | if known { MARK_MEMORY } else { 0 }, kernel_ns };
    }
    Lane::Urgent.submit(entry);
}

/// Fills the victim's memory figures, those of the kernel's own report; false when they cannot be read.
///
/// # Safety
/// `mark` must be writable.
#[inline(always)]
unsafe fn figures(task: Address, mark: *mut OomMark) -> bool {
    // SAFETY: the caller vouches for `mark`.
    unsafe {
        (*mark).total_vm_pages = 0;
        (*mark).anon_pages = 0;
        (*mark).file_pages = 0;
        (*mark).shmem_pages = 0;
        (*mark).page_tables_bytes = 0;
        (*mark).oom_score_adj = 0;
    }
    let (rss, stride) = (offset!(mm_rss), offset!(mm_rss_stride));
    if task == 0 || rss == ABSENT {
        return false;
    }
    let signal = probe!(task, task_signal: Address, else return false);
    // `oom_mm` is set before the mark; the `mm` of a leader that has left may be gone.
    let mm = probe!(signal, signal_oom_mm: Address, else return false);
    if mm == 0 {
        return false;
    }
    // A counter sums what processors have handed in and may be below zero for a moment.
    let pages =
        |counter: u64| current::probe_at::<i64>(mm, rss + counter * stride).map_or(0, |count| count.max(0) as u64);
    // SAFETY: the caller vouches for `mark`.
    unsafe {
        (*mark).total_vm_pages = probe!(mm, mm_total_vm: u64, else 0);
        (*mark).file_pages = pages(MM_FILEPAGES);
        (*mark).anon_pages = pages(MM_ANONPAGES);
        (*mark).shmem_pages = pages(MM_SHMEMPAGES);
        (*mark).page_tables_bytes = probe!(mm, mm_page_tables: u64, else 0);
        (*mark).oom_score_adj = i32::from(probe!(signal, signal_oom_score_adj: i16, else 0));
    }
    true
}

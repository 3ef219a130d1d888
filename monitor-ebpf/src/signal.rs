//! `signal_generate`: remembers who sent the signal that is about to end a process.
//!
//! At the exit the sender is no longer known. Only signals that kill are recorded (by default action, or `SIGKILL`), and the few that
//! ask a process to stop even when it handles them; other signals cost two comparisons.

use core::mem::MaybeUninit;

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_probe_read_kernel},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use aya_log_ebpf::trace;
use monitor_common::{
    record::{
        SENT_AGAIN, SENT_BY_NAMESPACE_END, SENT_BY_PARENT_END, SENT_BY_TRACER_END, SENT_TO_PROCESS, SENT_WITHOUT_INFO,
        SI_EVENT, SI_KERNEL, SI_UNKNOWN, SI_USER, SITE_FATAL, Sender,
    },
    status::SIGKILL,
};

use crate::{
    crash, current,
    maps::{KERNEL_KILL, SIGNALS, Signals},
    task::{self, ABSENT, Kernel, field, offset},
};

/// `TRACE_SIGNAL_DELIVERED` and `TRACE_SIGNAL_LOSE_INFO` (trace/events/signal.h): the signal took effect. A second
/// SIGKILL to a dying process is ignored, so the first sender stays.
const DELIVERED: i32 = 0;
const LOSE_INFO: i32 = 4;
/// `TRACE_SIGNAL_IGNORED`: by choice, by the first process of a pid namespace, or by a dying process.
const IGNORED: i32 = 1;
/// `TRACE_SIGNAL_ALREADY_PENDING`: reported by 5.10 for a dying process.
const PENDING: i32 = 2;
/// `SIGNAL_GROUP_EXIT` (sched/signal.h): the process is dying.
const DYING: u32 = 4;

/// `SEND_SIG_NOINFO` and `SEND_SIG_PRIV` (sched/signal.h): constants in place of a siginfo.
const NO_INFO: u64 = 0;
const PRIVATE: u64 = 1;

/// `_NSIG` (signal.h).
const COUNT: u32 = 64;

/// `PT_EXITKILL` (linux/ptrace.h): `PTRACE_O_EXITKILL` in the flags of a traced task.
const KILLED_WITH_TRACER: u32 = 1 << 23;

/// Signals as bits, bit n - 1 for signal n.
const fn bits(signals: &[u32]) -> u64 {
    let mut mask = 0;
    let mut at = 0;
    while at < signals.len() {
        mask |= 1 << (signals[at] - 1);
        at += 1;
    }
    mask
}

/// Never fatal by default: CHLD, CONT, STOP, TSTP, TTIN, TTOU, URG, WINCH (signal(7), x86 and arm numbers).
const HARMLESS: u64 = bits(&[17, 18, 19, 20, 21, 22, 23, 28]);
/// Recorded even when handled: the requests to stop HUP, INT, QUIT, TERM; and KILL, which has no handler.
const REQUESTS: u64 = bits(&[1, 2, 3, 9, 15]);
/// Requests among these to end, which can be ignored: INT, QUIT, TERM.
const STOPS: u64 = bits(&[2, 3, 15]);

#[btf_tracepoint(function = "signal_generate")]
fn signal_generate(ctx: BtfTracePointContext) -> i32 {
    let signal: u32 = ctx.arg(0);
    let result: i32 = ctx.arg(4);
    if signal == 0 || signal > COUNT || HARMLESS >> (signal - 1) & 1 != 0 {
        return 0;
    }
    let task: Kernel = ctx.arg(2);
    match result {
        DELIVERED | LOSE_INFO => {}
        IGNORED | PENDING if signal == SIGKILL && ctx.arg::<u64>(1) == PRIVATE && is_oom_victim(task) => {
            again(task);
            return 0;
        }
        // An ignored request to stop explains the kill that follows it.
        IGNORED if STOPS >> (signal - 1) & 1 != 0 && !is_dying(task) => {}
        _ => return 0,
    }
    if REQUESTS >> (signal - 1) & 1 == 0 && !is_default(task, signal) {
        return 0;
    }
    let (si_code, mut flags) = match ctx.arg::<u64>(1) {
        NO_INFO => (SI_USER, SENT_WITHOUT_INFO),
        PRIVATE => (SI_KERNEL, SENT_WITHOUT_INFO),
        info => (code_of(info), 0),
    };
    if ctx.arg::<u32>(3) != 0 {
        flags |= SENT_TO_PROCESS;
    }
    let identity = task::identity(task);
    let own = identity.tgid == u64::from(task::current_tgid());
    if signal == SIGKILL && si_code == SI_KERNEL {
        if let Some(slot) = KERNEL_KILL.get_ptr_mut(0) {
            // SAFETY: this CPU's slot of the map.
            unsafe {
                task::describe(task, &raw mut (*slot).process);
                (*slot).task = ctx.arg(2);
            }
        }
        if !own {
            flags |= reason(task);
        }
    }
    // A parent's end: the kernel sends this signal without a siginfo, in the parent's name.
    if flags & SENT_WITHOUT_INFO != 0
        && si_code == SI_USER
        && field!(task, task_pdeath_signal: u32, else 0) == signal
        && current::is_exiting()
    {
        flags |= SENT_BY_PARENT_END;
    }
    let (start_ns, cgroup) = if own { (identity.start_ns, task::cgroup_id(task)) } else { current::origin() };
    // An interrupt raises signals of timers and I/O while any process runs, by chance this one.
    if own && !SI_EVENT.contains(&si_code) {
        let flags = if is_certain(task, signal) { SITE_FATAL } else { 0 };
        crash::site(&ctx, signal, task, (identity, cgroup), flags);
    }
    let ids = bpf_get_current_pid_tgid();
    let kernel_ns = task::now_ns();
    let mut signals = MaybeUninit::<Signals>::uninit();
    let out = signals.as_mut_ptr();
    // SAFETY: every field is written before the value is used; the earlier value is copied right after its look-up.
    let signals = unsafe {
        (*out).before = match SIGNALS.get(identity) {
            Some(earlier) => earlier.last,
            None => Sender::NONE,
        };
        let last = &raw mut (*out).last;
        (*last).kernel_ns = kernel_ns;
        (*last).start_ns = start_ns;
        (*last).cgroup = cgroup;
        (*last).signal = signal;
        (*last).si_code = si_code;
        (*last).tgid = (ids >> 32) as u32;
        (*last).tid = ids as u32;
        (*last).uid = bpf_get_current_uid_gid() as u32;
        (*last).flags = flags;
        task::current_comm(&raw mut (*last).comm);
        signals.assume_init_ref()
    };
    // A full LRU map evicts the oldest; an insert fails only under contention, and the sender is then unknown.
    let recorded = SIGNALS.insert(identity, signals, 0).is_ok();
    trace!(&ctx, "signal {} to process {} recorded: {}", signal, task::tgid(task), u32::from(recorded));
    0
}

/// True once a fatal signal or exit_group(2) has begun to end the process.
#[inline(always)]
fn is_dying(task: Kernel) -> bool {
    let signal = field!(task, task_signal: Kernel, else return true);
    field!(signal, signal_flags: u32, else DYING) & DYING != 0
}

/// True once the OOM killer has marked the process.
#[inline(always)]
fn is_oom_victim(task: Kernel) -> bool {
    let signal = field!(task, task_signal: Kernel, else return false);
    field!(signal, signal_oom_mm: u64, else 0) != 0
}

/// Notes that the last signal was sent once more.
#[inline(always)]
fn again(task: Kernel) {
    if let Some(signals) = SIGNALS.get_ptr_mut(task::identity(task)) {
        // SAFETY: a value of a preallocated map, which stays mapped; the process is dying, so no other program writes it.
        unsafe { (*signals).last.flags |= SENT_AGAIN };
    }
}

/// `SENT_*` flags: why an exiting task's kernel code kills `victim`.
#[inline(always)]
fn reason(victim: Kernel) -> u32 {
    if !current::is_exiting() {
        return 0;
    }
    let mut flags = 0;
    if field!(victim, task_ptrace: u32, else 0) & KILLED_WITH_TRACER != 0 {
        flags |= SENT_BY_TRACER_END;
    }
    if current::is_namespace_init() {
        flags |= SENT_BY_NAMESPACE_END;
    }
    flags
}

/// `si_code` of a siginfo. To some verifiers this argument is a plain number, as it may be one of the constants above, so the helper
/// reads it.
#[inline(always)]
fn code_of(info: u64) -> i32 {
    let offset = offset!(siginfo_code);
    if offset!(may_probe) == 0 || offset == ABSENT {
        return SI_UNKNOWN;
    }
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel((info + offset) as *const i32) }.unwrap_or(SI_UNKNOWN)
}

/// True when a delivered signal without a handler (see [`is_default`]) certainly ends the process: the thread has not blocked it and
/// has no tracer. Before the kernel forces a signal on a process, it removes block and handler, so both reads are right then too.
#[inline(always)]
fn is_certain(task: Kernel, signal: u32) -> bool {
    if offset!(may_probe) == 0 || offset!(sigaction_size) == ABSENT || offset!(sigaction_handler) == ABSENT {
        return false;
    }
    let blocked = field!(task, task_blocked: u64, else u64::MAX);
    blocked >> (signal - 1) & 1 == 0 && field!(task, task_ptrace: u32, else 1) == 0
}

/// True when the process has no handler for `signal`, or when that cannot be known.
#[inline(always)]
fn is_default(task: Kernel, signal: u32) -> bool {
    let size = offset!(sigaction_size);
    let (actions, action, handler) = (offset!(sighand_action), offset!(k_sigaction_sa), offset!(sigaction_handler));
    if offset!(may_probe) == 0 || size == ABSENT || actions == ABSENT || action == ABSENT || handler == ABSENT {
        return true;
    }
    let table = field!(task, task_sighand: Kernel, else return true);
    // Older verifiers lose the bound of a product; the mask restores one, above the size of the table of 64 entries.
    let at = actions + (u64::from(signal - 1) * size & 0xffff) + action + handler;
    // SAFETY: the helper checks the address; the index is below the 64 entries of the table.
    unsafe { bpf_probe_read_kernel((table as u64 + at) as *const u64) }.unwrap_or(0) == 0
}

//! `sched_process_exit`: a process ended when its last thread did.
//!
//! `pid == tgid` says nothing (a leader may leave first): `group_dead` does from 6.16 on, before that
//! `signal->live == 0`, which two threads may both see. A clean exit that nobody watches costs one counter and a
//! look at what [`crate::watched`] remembers: some 20 ns beyond an empty program's 55 (6.18, cgroup v1; docs/performance.md), where
//! reading the whole way to the cgroup's id and looking that up took 110. Most of what is left are cache lines that the kernel itself
//! has not touched for long: the counter, `task->cgroups` and the set that it leads to. But instructions count as well: some 50 fewer
//! of them, by offsets that are part of the code and an epoch that takes no look-up, were 15 to 20 ns; and so does the stack, see
//! [`ended`]: 13 ns.
//!
//! From 7.0 on, a program on this tracepoint can be preempted, and the kernel then skips it for every other exit on the
//! same processor until it goes on: 1 % of the exits of a storm on 7.2. So there a second copy of the program is
//! attached behind the first, and takes what the first was skipped for.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use aya_log_ebpf::debug;
use monitor_common::{
    counter::EXIT_CLEAN,
    record::{
        EXIT_IN_CROWD, EXIT_NEVER_EXECUTED, EXIT_OOM_VICTIM, EXIT_SENDER, EXIT_WATCHED, EXIT_WITHOUT_SIGNAL, Exit,
        Header, KIND_EXIT, Sender,
    },
    status::{Outcome, SIGKILL},
};

use crate::{
    crowd,
    maps::{Cpu, ENDED, REFUSED, SIGNALS, cpu},
    ring::Lane,
    task::{self, ABSENT, Kernel, field, known, offset},
    watched,
};

/// `SIGNAL_GROUP_EXIT` (sched/signal.h): `group_exit_code` holds the status. Without it wait(2) reports the leader's.
const SIGNAL_GROUP_EXIT: u32 = 4;
/// Bytes of a `struct rlimit`: the limit in force, then the highest that it may be raised to (uapi resource.h).
const RLIMIT: u64 = 16;
/// In the table of limits: `RLIMIT_AS`, in force; `RLIMIT_CPU`, the highest (asm-generic/resource.h).
const ADDRESS_SPACE_NOW: u64 = 9 * RLIMIT;
const CPU_MAX: u64 = 8;
/// `PF_FORKNOEXEC` and `PF_SIGNALED` (sched.h): forked and never executed a program; a signal was delivered that ends the thread.
const FORKED_ONLY: u32 = 0x40;
const SIGNALED: u32 = 0x400;
/// `BPF_NOEXIST` (uapi bpf.h): insert only.
const NOEXIST: u64 = 1;
/// `-EEXIST` (errno-base.h): it is there already.
const EEXIST: i32 = -17;

#[btf_tracepoint(function = "sched_process_exit")]
fn process_exit(ctx: BtfTracePointContext) -> i32 {
    exited(&ctx);
    if offset!(preemptible) == 1
        && let Some(cpu) = cpu()
    {
        // SAFETY: this CPU's slot of the map.
        unsafe { (*cpu).handled = ctx.arg(0) };
    }
    0
}

/// The second copy, for [`process_exit`]'s misses.
#[btf_tracepoint(function = "sched_process_exit")]
fn process_exit_again(ctx: BtfTracePointContext) -> i32 {
    if let Some(cpu) = cpu() {
        // SAFETY: this CPU's slot of the map. Taken out, so that a later task at the same address is not mistaken for
        // this one. When another exit came between the copies, this one is reported twice, and the agent drops the
        // second by its identity.
        let before = unsafe { core::ptr::replace(&raw mut (*cpu).handled, 0) };
        if before == ctx.arg::<u64>(0) {
            return 0;
        }
    }
    exited(&ctx);
    0
}

#[inline(always)]
fn exited(ctx: &BtfTracePointContext) {
    let task: Kernel = ctx.arg(0);
    // A C `bool` argument: the caller defines only its low byte.
    if offset!(exit_tells_group_dead) == 1 && ctx.arg::<u8>(1) == 0 {
        return;
    }
    let signal = known!(task, task_signal: Kernel);
    if offset!(exit_tells_group_dead) == 0 && !is_last_thread(task, signal) {
        return;
    }
    if task::is_kernel_thread(task) {
        return;
    }
    let Some(cpu) = cpu() else { return };
    if offset!(report_clean) == 0 && is_clean_at_a_glance(task, signal) && watched::was_asked_last(task, cpu) {
        // SAFETY: this CPU's slot of the map; of the race see `count`.
        unsafe { (*cpu).counters[EXIT_CLEAN as usize] += 1 };
        return;
    }
    ended(ctx, cpu);
}

/// True when a look at the task alone tells that wait(2) will report 0: it is its process' only or first thread, and neither it nor
/// the process as a whole has another status. False says nothing.
#[inline(always)]
fn is_clean_at_a_glance(task: Kernel, signal: Kernel) -> bool {
    known!(task, task_exit_code: u32) == 0
        && core::ptr::eq(task::leader(task), task)
        && known!(signal, signal_group_exit_code: u32) == 0
}

/// All that is to be done for the end of a process, when a glance did not do.
///
/// A function of its own, for what it takes: many registers, and 64 bytes of stack or more, which from 6.13 on are not the kernel's own
/// warm stack, but memory that each CPU keeps for the program. Whom it does not concern pays for neither.
#[inline(never)]
fn ended(ctx: &BtfTracePointContext, cpu: *mut Cpu) {
    let task: Kernel = ctx.arg(0);
    let signal = known!(task, task_signal: Kernel);
    let status = wait_status(task, signal);
    // Of another end it says nothing, and it is a cache line more.
    let oom_victim = status & 0x7f == SIGKILL && field!(signal, signal_oom_mm: u64, else 0) != 0;
    let outcome = Outcome::of(status, oom_victim);
    // SAFETY: this CPU's slot of the map; of the race see `count`.
    unsafe { (*cpu).counters[outcome.slot() as usize] += 1 };

    let watched = if outcome == Outcome::Clean && offset!(report_clean) == 0 {
        if !watched::remembers(task, cpu) {
            return;
        }
        true
    } else {
        watched::watches(task)
    };
    let lane = match (watched, outcome) {
        (_, Outcome::Oom) => Lane::Critical,
        (true, Outcome::Clean) => Lane::Routine,
        (true, _) if crowd::is_beyond_share(task::cgroup_id(task), crowd::DEATH) => Lane::Bulk,
        (true, _) => Lane::Critical,
        (false, _) => Lane::Bulk,
    };
    debug!(ctx, "process {} ended with status {}, watched: {}", task::tgid(task), status, u32::from(watched));
    report(task, signal, lane, status, watched, oom_victim);
}

/// Before 6.16: true for the last thread, once for each process.
#[inline(always)]
fn is_last_thread(task: Kernel, signal: Kernel) -> bool {
    if known!(signal, signal_live: u32) != 0 {
        return false;
    }
    let identity = task::identity(task);
    if known!(signal, signal_nr_threads: u32) == 1 {
        // The only thread left to be reaped; another may have come here before it, and have been reaped since.
        // SAFETY: the value is only compared with "absent".
        return unsafe { ENDED.get(identity) }.is_none();
    }
    // Any other failure of the insert must not hide a death; at worst it is reported twice.
    ENDED.insert(identity, 1, NOEXIST) != Err(EEXIST)
}

/// What wait(2) will report.
#[inline(always)]
fn wait_status(task: Kernel, signal: Kernel) -> u32 {
    let status = if known!(signal, signal_flags: u32) & SIGNAL_GROUP_EXIT != 0 {
        known!(signal, signal_group_exit_code: u32)
    } else {
        known!(task::leader(task), task_exit_code: u32)
    };
    status & 0xffff
}

/// Sends what is known of the end.
///
/// The verifier walks what follows a branch once for each way into it, unless the ways look the same to it. So the long straight
/// part comes first, the branches after it, and nothing that a way is chosen by is kept in a variable over it: the ring is told
/// from the record again.
#[inline(always)]
fn report(task: Kernel, signal: Kernel, lane: Lane, status: u32, watched: bool, oom_victim: bool) {
    let identity = task::identity(task);
    let kernel_ns = task::now_ns();
    let mut flags = 0;
    if watched {
        flags |= EXIT_WATCHED;
        if lane == Lane::Bulk {
            flags |= EXIT_IN_CROWD;
        }
    }
    if oom_victim {
        flags |= EXIT_OOM_VICTIM;
    }
    let task_flags = known!(task, task_flags: u32);
    // Without a branch: the flags of the record are multiples of the flags of the task.
    flags |= task_flags / FORKED_ONLY % 2 * EXIT_NEVER_EXECUTED;
    flags |= (1 - task_flags / SIGNALED % 2) * EXIT_WITHOUT_SIGNAL;
    let Some(mut entry) = lane.reserve::<Exit>() else { return };
    let exit = entry.as_mut_ptr();
    // SAFETY: the entry is as large as an `Exit`; the other pointers lead into preallocated maps, whose values stay
    // mapped.
    unsafe {
        (*exit).header = Header { kind: KIND_EXIT, flags, kernel_ns };
        task::describe(task, &raw mut (*exit).process);
        (*exit).status = status;
        (*exit).max_rss_pages = field!(signal, signal_maxrss: u64, else 0);
        let limits = offset!(signal_rlim);
        let limit = |at| if limits == ABSENT { 0 } else { task::read::<u64>(signal, limits + at) };
        (*exit).address_space_limit = limit(ADDRESS_SPACE_NOW);
        (*exit).cpu_limit = limit(CPU_MAX);
        (*exit).cpu_used_ns = cpu_used_ns(task, signal);
        (*exit).cpu_timer_ns = cpu_timer_ns(signal);
        (*exit).seccomp_mode = seccomp_mode(task);
        (*exit).reserved = 0;
        // What was found is removed. Room for others: on a machine with many processors an LRU map evicts long before it is
        // full.
        match REFUSED.get_ptr(identity) {
            Some(refused) => {
                (*exit).refusals = (*refused).count as u32;
                (*exit).refused_ns = (*refused).kernel_ns;
                (*exit).refused_bytes = (*refused).bytes;
                REFUSED.remove(identity).ok();
            }
            None => {
                (*exit).refusals = 0;
                (*exit).refused_ns = 0;
                (*exit).refused_bytes = 0;
            }
        }
        match SIGNALS.get_ptr(identity) {
            Some(signals) => {
                (*exit).header.flags |= EXIT_SENDER;
                (*exit).sender = (*signals).last;
                (*exit).before = (*signals).before;
                SIGNALS.remove(identity).ok();
            }
            None => {
                (*exit).sender = Sender::NONE;
                (*exit).before = Sender::NONE;
            }
        }
        lane_of(&raw const *exit).submit(entry);
    }
}

/// Processor time of this thread, the last one, and of all that were reaped before; 0 where it cannot be read.
#[inline(always)]
fn cpu_used_ns(task: Kernel, signal: Kernel) -> u64 {
    field!(task, task_utime: u64, else 0)
        + field!(task, task_stime: u64, else 0)
        + field!(signal, signal_utime: u64, else 0)
        + field!(signal, signal_stime: u64, else 0)
}

/// Processor time of the process as the kernel compares it with `RLIMIT_CPU`; 0 where it keeps no such account.
#[inline(always)]
fn cpu_timer_ns(signal: Kernel) -> u64 {
    let (timer, sums) = (offset!(signal_cputimer), offset!(cputimer_atomic));
    let (utime, stime) = (offset!(cputime_utime), offset!(cputime_stime));
    if timer == ABSENT || sums == ABSENT || utime == ABSENT || stime == ABSENT {
        return 0;
    }
    task::read::<u64>(signal, timer + sums + utime) + task::read::<u64>(signal, timer + sums + stime)
}

/// Which rules for system calls the thread had; 0 where that cannot be read.
#[inline(always)]
fn seccomp_mode(task: Kernel) -> u32 {
    let (seccomp, mode) = (offset!(task_seccomp), offset!(seccomp_mode));
    if seccomp == ABSENT || mode == ABSENT { 0 } else { task::read::<u32>(task, seccomp + mode) }
}

/// The ring that a record of an exit is on; which lane of the critical one makes no difference any more.
///
/// # Safety
/// `exit` must be readable, its flags and status filled.
#[inline(always)]
unsafe fn lane_of(exit: *const Exit) -> Lane {
    // SAFETY: the caller vouches for it. Volatile, or the compiler would keep what was written.
    let (flags, status) = unsafe {
        (core::ptr::read_volatile(&raw const (*exit).header.flags), core::ptr::read_volatile(&raw const (*exit).status))
    };
    let is_oom = Outcome::of(status, flags & EXIT_OOM_VICTIM != 0) == Outcome::Oom;
    if is_oom || flags & (EXIT_WATCHED | EXIT_IN_CROWD) == EXIT_WATCHED { Lane::Critical } else { Lane::Bulk }
}

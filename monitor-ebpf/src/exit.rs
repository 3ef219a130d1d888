//! `sched_process_exit`: a process ended when its last thread did.
//!
//! `pid == tgid` does not tell the last thread, as a leader may leave first. From 6.16 on, `group_dead` tells it; before that,
//! `signal->live == 0`, which two threads may both see.
//!
//! A clean exit of an unwatched process costs one counter and one comparison with what [`crate::watched`] remembers: some 20 ns beyond
//! an empty program's 55 ns (6.18, cgroup v1; docs/performance.md). Reading the cgroup's id and looking it up took 110 ns. Most of the
//! rest is cache misses: the counter, `task->cgroups` and its `css_set`. Instructions count too: offsets in the code and an epoch
//! without a look-up save some 50 instructions, 15 to 20 ns. The stack costs 13 ns, see [`ended`].
//!
//! From 7.0 on, a program on this tracepoint can be preempted. Until it continues, the kernel skips it for other exits on the same
//! processor: 1 % of the exits of a storm on 7.2. So a second copy of the program is attached behind the first and handles the exits
//! that the first missed.

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

/// `SIGNAL_GROUP_EXIT` (sched/signal.h): `group_exit_code` holds the status. Without this flag wait(2) reports the leader's.
const SIGNAL_GROUP_EXIT: u32 = 4;
/// Bytes of a `struct rlimit`: the soft limit, then the hard limit (uapi resource.h).
const RLIMIT: u64 = 16;
/// Offsets in the table of limits: `RLIMIT_AS`, soft; `RLIMIT_CPU`, hard (asm-generic/resource.h).
const ADDRESS_SPACE_NOW: u64 = 9 * RLIMIT;
const CPU_MAX: u64 = 8;
/// `PF_FORKNOEXEC` and `PF_SIGNALED` (sched.h): forked without executing a program; a delivered signal ends the thread.
const FORKED_ONLY: u32 = 0x40;
const SIGNALED: u32 = 0x400;
/// `BPF_NOEXIST` (uapi bpf.h): insert only.
const NOEXIST: u64 = 1;
/// `-EEXIST` (errno-base.h): the key exists.
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

/// Second copy, for exits that [`process_exit`] missed.
#[btf_tracepoint(function = "sched_process_exit")]
fn process_exit_again(ctx: BtfTracePointContext) -> i32 {
    if let Some(cpu) = cpu() {
        // SAFETY: this CPU's slot of the map. Cleared, so that a later task at the same address is not mistaken for this one. After
        // another exit between the copies, both report this one; the agent drops the second record by its identity.
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
        // SAFETY: this CPU's slot of the map; `maps::count` tells of the race.
        unsafe { (*cpu).counters[EXIT_CLEAN as usize] += 1 };
        return;
    }
    ended(ctx, cpu);
}

/// True when the task alone shows that wait(2) will report 0: it is the leader, and its own status and the process's are 0. False
/// means not known.
#[inline(always)]
fn is_clean_at_a_glance(task: Kernel, signal: Kernel) -> bool {
    known!(task, task_exit_code: u32) == 0
        && core::ptr::eq(task::leader(task), task)
        && known!(signal, signal_group_exit_code: u32) == 0
}

/// Handles an exit that the fast path could not.
///
/// A separate function: it needs many registers and 64 bytes of stack or more, which from 6.13 on is per-CPU memory and not the warm
/// kernel stack.
#[inline(never)]
fn ended(ctx: &BtfTracePointContext, cpu: *mut Cpu) {
    let task: Kernel = ctx.arg(0);
    let signal = known!(task, task_signal: Kernel);
    let status = wait_status(task, signal);
    // `oom_mm` means nothing for other deaths, and costs a cache line.
    let oom_victim = status & 0x7f == SIGKILL && field!(signal, signal_oom_mm: u64, else 0) != 0;
    let outcome = Outcome::of(status, oom_victim);
    // SAFETY: this CPU's slot of the map; `maps::count` tells of the race.
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
        // The only thread not reaped yet; another may have come here before it, and been reaped since.
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

/// Sends the record of an exit.
///
/// The verifier walks the code after a branch once for each path into it, unless the paths look the same to it. So the long straight
/// part comes before the branches, and no variable keeps a branch's condition across it: the ring is derived again from the record.
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
    // Arithmetic instead of branches: the bit of a task flag times the record's flag.
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
        // Entries found are removed to make room: with many processors an LRU map evicts long before it is full.
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

/// Processor time of this last thread and of all reaped before it, nanoseconds; unreadable parts count as 0.
#[inline(always)]
fn cpu_used_ns(task: Kernel, signal: Kernel) -> u64 {
    field!(task, task_utime: u64, else 0)
        + field!(task, task_stime: u64, else 0)
        + field!(signal, signal_utime: u64, else 0)
        + field!(signal, signal_stime: u64, else 0)
}

/// Processor time of the process that the kernel compares with `RLIMIT_CPU`, nanoseconds; 0 without such an account.
#[inline(always)]
fn cpu_timer_ns(signal: Kernel) -> u64 {
    let (timer, sums) = (offset!(signal_cputimer), offset!(cputimer_atomic));
    let (utime, stime) = (offset!(cputime_utime), offset!(cputime_stime));
    if timer == ABSENT || sums == ABSENT || utime == ABSENT || stime == ABSENT {
        return 0;
    }
    task::read::<u64>(signal, timer + sums + utime) + task::read::<u64>(signal, timer + sums + stime)
}

/// Seccomp mode of the thread; 0 when it cannot be read.
#[inline(always)]
fn seccomp_mode(task: Kernel) -> u32 {
    let (seccomp, mode) = (offset!(task_seccomp), offset!(seccomp_mode));
    if seccomp == ABSENT || mode == ABSENT { 0 } else { task::read::<u32>(task, seccomp + mode) }
}

/// The ring of an exit's record. Routine and critical records are submitted alike: `Critical` stands for both.
///
/// # Safety
/// `exit` must be readable, its flags and status filled.
#[inline(always)]
unsafe fn lane_of(exit: *const Exit) -> Lane {
    // SAFETY: the caller vouches for it. Volatile, so that the compiler does not keep the written values.
    let (flags, status) = unsafe {
        (core::ptr::read_volatile(&raw const (*exit).header.flags), core::ptr::read_volatile(&raw const (*exit).status))
    };
    let is_oom = Outcome::of(status, flags & EXIT_OOM_VICTIM != 0) == Outcome::Oom;
    if is_oom || flags & (EXIT_WATCHED | EXIT_IN_CROWD) == EXIT_WATCHED { Lane::Critical } else { Lane::Bulk }
}

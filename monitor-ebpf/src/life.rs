//! `sched_process_exec` and `sched_process_fork` inside watched cgroups: a service runs again.
//!
//! A supervisor usually forks in its own cgroup, moves the child and execs there, so the exec is the first sign of a restarted
//! service; forks show the workers that it starts afterwards.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use monitor_common::record::{Header, KIND_LIFE, LIFE_EXEC, Life};

use crate::{
    maps::cpu,
    ring::Lane,
    task::{self, Kernel, known},
    watched,
};

#[btf_tracepoint(function = "sched_process_exec")]
fn process_exec(ctx: BtfTracePointContext) -> i32 {
    report(ctx.arg(0), LIFE_EXEC);
    0
}

#[btf_tracepoint(function = "sched_process_fork")]
fn process_fork(ctx: BtfTracePointContext) -> i32 {
    let child: Kernel = ctx.arg(1);
    // A new thread is not a new process.
    if known!(child, task_pid: u32) == task::tgid(child) {
        report(child, 0);
    }
    0
}

#[inline(always)]
fn report(task: Kernel, flags: u32) {
    let Some(cpu) = cpu() else { return };
    if !watched::remembers(task, cpu) {
        return;
    }
    let kernel_ns = task::now_ns();
    let Some(mut entry) = Lane::Routine.reserve::<Life>() else { return };
    let life = entry.as_mut_ptr();
    // SAFETY: the entry is as large as a `Life`.
    unsafe {
        (*life).header = Header { kind: KIND_LIFE, flags, kernel_ns };
        task::describe(task, &raw mut (*life).process);
    }
    Lane::Routine.submit(entry);
}

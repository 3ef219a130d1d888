//! Requests for memory that the kernel refused: evidence that a process died after it hit a limit where the kernel refuses and does
//! not kill (`RLIMIT_AS`, overcommit).
//!
//! With fexit on `vm_mmap_pgoff` and `brk`, only these calls cost more. Without fexit the only place is the tracepoint at the end of
//! every system call, which makes all calls cost more; the agent attaches that program only on request.

use aya_ebpf::{
    macros::{btf_tracepoint, fexit},
    programs::{BtfTracePointContext, FExitContext},
};

use crate::{
    current::{self, probe},
    maps::{REFUSED, Refused},
    task::{self, Kernel, field},
};

/// `-ENOMEM` (errno-base.h).
const NO_MEMORY: i64 = -12;
/// System calls of x86-64 that take memory and report a refusal: mmap, mremap.
const MMAP: u64 = 9;
const MREMAP: u64 = 25;

/// `unsigned long vm_mmap_pgoff(file, addr, len, prot, flag, pgoff)`: every mmap(2) calls it.
#[fexit(function = "vm_mmap_pgoff")]
fn mmap_ended(ctx: FExitContext) -> i32 {
    // The result follows the six arguments.
    if ctx.arg::<i64>(6) == NO_MEMORY {
        refused(ctx.arg(2));
    }
    0
}

/// `long __x64_sys_brk(const struct pt_regs *)`: returns the break; a refusal leaves it unchanged.
#[fexit(function = "__x64_sys_brk")]
fn brk_ended(ctx: FExitContext) -> i32 {
    let asked = probe!(ctx.arg::<u64>(0), regs_first: u64, else return 0);
    let end: u64 = ctx.arg(1);
    if asked > end {
        refused(asked - end);
    }
    0
}

/// `sys_exit(struct pt_regs *regs, long ret)`: the end of any system call.
#[btf_tracepoint(function = "sys_exit")]
fn call_ended(ctx: BtfTracePointContext) -> i32 {
    if ctx.arg::<i64>(1) != NO_MEMORY {
        return 0;
    }
    let regs: Kernel = ctx.arg(0);
    let call = field!(regs, regs_call: u64, else return 0);
    if call == MMAP || call == MREMAP {
        refused(field!(regs, regs_second: u64, else 0));
    }
    0
}

#[inline(always)]
fn refused(bytes: u64) {
    let identity = current::identity();
    let kernel_ns = task::now_ns();
    // SAFETY: copied right after the look-up.
    let count = unsafe { REFUSED.get(identity) }.map_or(0, |earlier| earlier.count);
    // An LRU map makes room by itself; an insert that fails under contention loses only a hint.
    REFUSED.insert(identity, Refused { kernel_ns, bytes, count: count + 1 }, 0).ok();
}

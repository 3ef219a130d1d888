//! Reads tasks through pointers whose type the verifier knows, at offsets from BTF.

use core::{arch::asm, ffi::c_void};

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns, generated::bpf_get_current_comm};
use monitor_common::{
    layout::{self, placeholder},
    record::{COMM_LEN, Process},
};

use crate::maps::Identity;

/// A pointer into the kernel that the verifier tracks by type.
pub(crate) type Kernel = *const c_void;

/// `PF_KTHREAD` (sched.h): a kernel thread, no process.
const PF_KTHREAD: u32 = 0x0020_0000;

/// The value that the agent put into a slot of the layout.
macro_rules! offset {
    ($slot:ident) => {
        $crate::task::constant::<{ core::mem::offset_of!(monitor_common::layout::Layout, $slot) }>()
    };
}
pub(crate) use offset;

/// The layout slot at byte `AT`, held in the instruction itself: the agent writes it there ([`monitor_common::layout`] tells how). A
/// global would cost each exit one more cache line, for which every other read waits.
#[inline(always)]
pub(crate) fn constant<const AT: usize>() -> u64 {
    let value: u64;
    // SAFETY: the instruction loads a number and does nothing else. Not `pure`, or the compiler moves the number away from its use,
    // over branches and the stack, where older verifiers lose it.
    unsafe {
        asm!("{value} = {placeholder} ll", value = out(reg) value, placeholder = const placeholder(AT),
            options(nomem, nostack, preserves_flags));
    }
    value
}

/// The offset of a field that the running kernel does not have.
pub(crate) const ABSENT: u64 = layout::constant(layout::ABSENT);

/// Reads a field at an offset of the layout; evaluates the given default where the kernel has no such field.
macro_rules! field {
    ($base:expr, $slot:ident: $type:ty, else $default:expr) => {{
        let offset = $crate::task::offset!($slot);
        if offset == $crate::task::ABSENT { $default } else { $crate::task::read::<$type>($base, offset) }
    }};
}
pub(crate) use field;

/// Reads a field that every kernel has: without it the agent does not load the programs.
macro_rules! known {
    ($base:expr, $slot:ident: $type:ty) => {
        $crate::task::read::<$type>($base, $crate::task::offset!($slot))
    };
}
pub(crate) use known;

/// Reads `T` at `offset`.
#[inline(always)]
pub(crate) fn read<T: Copy>(base: Kernel, offset: u64) -> T {
    // SAFETY: the verifier refuses the program unless `base` is a typed kernel pointer and the read stays inside one
    // field of that type; a pointer that has gone stale reads as zero (BPF_PROBE_MEM).
    unsafe { core::ptr::read_volatile(base.byte_add(offset as usize).cast::<T>()) }
}

/// True for kernel threads.
#[inline(always)]
pub(crate) fn is_kernel_thread(task: Kernel) -> bool {
    known!(task, task_flags: u32) & PF_KTHREAD != 0
}

/// The thread group leader.
#[inline(always)]
pub(crate) fn leader(task: Kernel) -> Kernel {
    known!(task, task_group_leader: Kernel)
}

/// Process id.
#[inline(always)]
pub(crate) fn tgid(task: Kernel) -> u32 {
    known!(task, task_tgid: u32)
}

/// Identity of a task's process.
#[inline(always)]
pub(crate) fn identity(task: Kernel) -> Identity {
    Identity { start_ns: known!(leader(task), task_start: u64), tgid: u64::from(tgid(task)) }
}

/// Id of the task's cgroup in the watched hierarchy; 0 when it cannot be read.
#[inline(always)]
pub(crate) fn cgroup_id(task: Kernel) -> u64 {
    let css_set = field!(task, task_cgroups: Kernel, else return 0);
    let cgroup = if offset!(watch_memory_v1) == 1 {
        let css = field!(css_set, css_set_memory: Kernel, else return 0);
        field!(css, css_cgroup: Kernel, else return 0)
    } else {
        field!(css_set, css_set_dfl_cgrp: Kernel, else return 0)
    };
    node_id(cgroup)
}

/// Id of a cgroup: the inode number of its directory.
#[inline(always)]
pub(crate) fn node_id(cgroup: Kernel) -> u64 {
    let node = field!(cgroup, cgroup_kn: Kernel, else return 0);
    field!(node, kernfs_id: u64, else 0)
}

/// Fills every field of `out` from `task`.
///
/// # Safety
/// `out` must be writable for the whole of a [`Process`].
#[inline(always)]
pub(crate) unsafe fn describe(task: Kernel, out: *mut Process) {
    let leader = leader(task);
    let parent = field!(leader, task_real_parent: Kernel, else core::ptr::null());
    let (parent_tgid, parent_cgroup) =
        if offset!(task_real_parent) == ABSENT { (0, 0) } else { (tgid(parent), cgroup_id(parent)) };
    // SAFETY: the caller vouches for `out`.
    unsafe {
        (*out).tgid = tgid(task);
        (*out).tid = known!(task, task_pid: u32);
        (*out).parent_tgid = parent_tgid;
        (*out).uid = user(task);
        (*out).start_ns = known!(leader, task_start: u64);
        (*out).cgroup = cgroup_id(task);
        (*out).parent_cgroup = parent_cgroup;
        comm(leader, &raw mut (*out).comm);
    }
}

/// Now, CLOCK_BOOTTIME nanoseconds.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Process id of the thread that runs now.
#[inline(always)]
pub(crate) fn current_tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// Fills `out` with the name of the thread that runs now.
///
/// The library's wrapper would zero a buffer, in a loop that the verifier walks, and copy it.
///
/// # Safety
/// `out` must be writable.
#[inline(always)]
pub(crate) unsafe fn current_comm(out: *mut [u8; COMM_LEN]) {
    // SAFETY: the caller vouches for `out`; the helper fills all of it, with zeros when it fails.
    unsafe { bpf_get_current_comm(out.cast(), COMM_LEN as u32) };
}

/// User id of the task's credentials.
#[inline(always)]
fn user(task: Kernel) -> u32 {
    let cred = field!(task, task_cred: Kernel, else return u32::MAX);
    field!(cred, cred_uid: u32, else u32::MAX)
}

/// Copies a task's name byte by byte: the verifier lets a typed pointer read one element of an array at a time, and
/// sixteen loads cost less than a helper call that lockdown may refuse.
///
/// # Safety
/// `out` must be writable.
#[inline(always)]
unsafe fn comm(task: Kernel, out: *mut [u8; COMM_LEN]) {
    let offset = offset!(task_comm);
    let out = out.cast::<u8>();
    macro_rules! bytes {
        ($($at:literal)+) => {
            $(
                // SAFETY: `$at` is below COMM_LEN.
                unsafe { core::ptr::write_volatile(out.add($at), read::<u8>(task, offset + $at)) };
            )+
        };
    }
    bytes!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
}

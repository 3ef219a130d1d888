//! Facts about the running thread that no helper gives.
//!
//! Kernels before 5.11 return the current task as a plain number, so each read uses the helper that checks addresses.
//! lockdown=confidentiality refuses that helper; the answers are then "not known".

use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_task, bpf_probe_read_kernel,
    generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
};

use crate::{
    maps::Identity,
    task,
    task::{ABSENT, offset},
};

/// `PF_EXITING` (sched.h).
const EXITING: u32 = 4;

/// A plain address in the kernel.
pub(crate) type Address = u64;

/// Reads a field at an offset of the layout; evaluates the given default when that fails.
macro_rules! probe {
    ($base:expr, $slot:ident: $type:ty, else $default:expr) => {{
        let (base, offset): ($crate::current::Address, u64) = ($base, $crate::task::offset!($slot));
        if offset == $crate::task::ABSENT {
            $default
        } else {
            match $crate::current::probe_at::<$type>(base, offset) {
                Some(value) => value,
                None => $default,
            }
        }
    }};
}
pub(crate) use probe;

/// Reads `T`; `None` when the address is bad or reading is not allowed.
#[inline(always)]
pub(crate) fn probe_at<T>(base: Address, offset: u64) -> Option<T> {
    if offset!(may_probe) == 0 {
        return None;
    }
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel((base + offset) as *const T) }.ok()
}

/// Address of the current task.
#[inline(always)]
pub(crate) fn task() -> Address {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_current_task() }
}

/// Identity of the current process; start 0 when it cannot be read.
#[inline(always)]
pub(crate) fn identity() -> Identity {
    Identity { start_ns: start_ns(), tgid: u64::from(task::current_tgid()) }
}

/// Start of the current process, and its cgroup in the watched hierarchy; each 0 when it cannot be read.
#[inline(always)]
pub(crate) fn origin() -> (u64, u64) {
    (start_ns(), cgroup_id())
}

/// Size of a thread's kernel stack (`THREAD_SIZE`), for kernels without the helper that finds the registers: 16 KiB on x86-64
/// (asm/page_64_types.h), and on arm64 with pages of 4 KiB (asm/memory.h). Where the size differs, [`crate::stack`] detects that the
/// bytes read are no registers.
const KERNEL_STACK: u64 = 16 * 1024;

/// Address of the current thread's user registers; 0 when it is not known.
#[inline(always)]
pub(crate) fn registers() -> Address {
    if offset!(tells_regs) == 1 {
        // SAFETY: kernels with the second helper have the first, which returns the second's argument.
        return unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as Address;
    }
    let size = offset!(regs_size);
    let stack = probe!(task(), task_stack: Address, else 0);
    if stack == 0 || size == ABSENT { 0 } else { stack + KERNEL_STACK - size }
}

#[inline(always)]
fn start_ns() -> u64 {
    let leader = probe!(task(), task_group_leader: Address, else return 0);
    probe!(leader, task_start: u64, else 0)
}

/// Id of the current process's cgroup in the watched hierarchy.
#[inline(always)]
pub(crate) fn cgroup_id() -> u64 {
    if offset!(watch_memory_v1) == 0 {
        // SAFETY: a helper without arguments.
        return unsafe { bpf_get_current_cgroup_id() };
    }
    let css_set = probe!(task(), task_cgroups: Address, else return 0);
    let css = probe!(css_set, css_set_memory: Address, else return 0);
    let cgroup = probe!(css, css_cgroup: Address, else return 0);
    let node = probe!(cgroup, cgroup_kn: Address, else return 0);
    probe!(node, kernfs_id: u64, else 0)
}

/// True while the current thread exits.
#[inline(always)]
pub(crate) fn is_exiting() -> bool {
    probe!(task(), task_flags: u32, else 0) & EXITING != 0
}

/// True for the first process of a pid namespace that is not the initial one.
#[inline(always)]
pub(crate) fn is_namespace_init() -> bool {
    let size = offset!(upid_size);
    if size == ABSENT {
        return false;
    }
    let leader = probe!(task(), task_group_leader: Address, else return false);
    let pid = probe!(leader, task_thread_pid: Address, else return false);
    let level = probe!(pid, pid_level: u32, else return false);
    if level == 0 {
        return false;
    }
    // The last id is the one in the process's own namespace.
    let own = pid + u64::from(level) * size;
    let at = offset!(pid_numbers);
    if at == ABSENT {
        return false;
    }
    probe!(own + at, upid_nr: u32, else 0) == 1
}

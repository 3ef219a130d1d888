//! Where a process is when it causes its own fatal signal: the user stack, by build id.
//!
//! The stack is read when the signal is generated: before 6.16 the address space is gone at the exit. The kernel follows frame
//! pointers, so the innermost frame is always right and outer frames are right in code that keeps frame pointers. For other code
//! [`crate::stack`] copies the stack itself.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_USER_BUILD_ID, BPF_F_USER_STACK},
    helpers::generated::{bpf_get_stack, bpf_probe_read_kernel_str},
    programs::BtfTracePointContext,
};
use monitor_common::record::{
    CrashSite, FRAMES, Frame, Header, KIND_CRASH_SITE, NO_STACK, PROGRAM_NAME_LEN, PROGRAM_NAMES, SITE_BLOCKED,
    SITE_WATCHED,
};

use crate::{
    crowd,
    current::{self, Address, probe},
    maps::{Identity, SITES, WATCHED},
    ring::Lane,
    stack,
    task::{self, ABSENT, Kernel, field, offset},
};

/// Signals whose default action is a core dump, except QUIT: ILL, TRAP, ABRT, BUS, FPE, SEGV, SYS (signal(7)).
const FAULTS: u64 = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 10 | 1 << 30;
/// A site costs some microseconds and 1136 bytes, so unwatched processes have a budget for each window of this length.
const WINDOW_NS: u64 = 1_000_000_000;
/// Budget of each processor for a window: sites, and sites with a copied stack.
const SITES_IN_WINDOW: u64 = 64;
const STACKS_IN_WINDOW: u64 = 8;

/// Sends the site of a fatal `signal` that the current process has just caused itself; `flags`: `SITE_*`.
#[inline(always)]
pub(crate) fn site(
    ctx: &BtfTracePointContext,
    signal: u32,
    task: Kernel,
    (identity, cgroup): (Identity, u64),
    flags: u32,
) {
    if signal > 32 || FAULTS >> (signal - 1) & 1 == 0 {
        return;
    }
    // SAFETY: the value is only compared with "absent".
    let watched = unsafe { WATCHED.get(cgroup) }.is_some();
    let taken = if watched { 0 } else { taken() };
    if taken > SITES_IN_WINDOW {
        return;
    }
    // The ring that the exit will use, so that the site comes first.
    let lane = if watched && !crowd::is_beyond_share(cgroup, crowd::SITE) { Lane::Critical } else { Lane::Bulk };
    let kernel_ns = task::now_ns();
    let blocked = field!(task, task_blocked: u64, else 0) >> (signal - 1) & 1 != 0;
    let flags = flags | if watched { SITE_WATCHED } else { 0 } | if blocked { SITE_BLOCKED } else { 0 };
    let stack = if taken > STACKS_IN_WINDOW { NO_STACK } else { stack::copy(ctx, identity, kernel_ns, watched) };
    let Some(mut entry) = lane.reserve::<CrashSite>() else { return };
    let site = entry.as_mut_ptr();
    // SAFETY: the entry is as large as a `CrashSite`; the helper writes no more than it is told, and nothing on failure.
    unsafe {
        (*site).header = Header { kind: KIND_CRASH_SITE, flags, kernel_ns };
        (*site).start_ns = identity.start_ns;
        (*site).tgid = identity.tgid as u32;
        (*site).tid = aya_ebpf::helpers::bpf_get_current_pid_tgid() as u32;
        (*site).signal = signal;
        (*site).stack = stack;
        (*site).reserved = 0;
        let size = (FRAMES * size_of::<Frame>()) as u32;
        let how = u64::from(BPF_F_USER_STACK | BPF_F_USER_BUILD_ID);
        let filled = bpf_get_stack(ctx.as_ptr(), (&raw mut (*site).frames).cast(), size, how);
        (*site).depth = if filled > 0 { filled as u32 / size_of::<Frame>() as u32 } else { 0 };
        program(site);
    }
    lane.submit(entry);
}

/// Counts this site; its number in this window, from 1.
#[inline(always)]
fn taken() -> u64 {
    let Some(window) = SITES.get_ptr_mut(0) else { return u64::MAX };
    let now = task::now_ns();
    // SAFETY: this CPU's slot of the map.
    unsafe {
        if now - (*window).begin_ns > WINDOW_NS {
            (*window).begin_ns = now;
            (*window).taken = 0;
        }
        (*window).taken += 1;
        (*window).taken
    }
}

/// Fills the path of the program: its own name, then the directories upwards.
///
/// # Safety
/// `site` must be writable for the whole of a [`CrashSite`].
#[inline(always)]
unsafe fn program(site: *mut CrashSite) {
    let mut entry = dentry();
    // SAFETY: the caller vouches for `site`; the index is below the length of the array.
    unsafe {
        for at in 0..PROGRAM_NAMES {
            let name = (&raw mut (*site).program).cast::<[u8; PROGRAM_NAME_LEN]>().add(at);
            // Each place is zeroed first, as the ring holds old bytes; an unused place begins with a zero byte.
            let words = name.cast::<u64>();
            for word in 0..PROGRAM_NAME_LEN / 8 {
                core::ptr::write_volatile(words.add(word), 0);
            }
            if entry != 0 {
                entry = copy_name(entry, name.cast());
            }
        }
    }
}

/// Copies the name of a directory entry. Returns the entry above, or 0.
///
/// # Safety
/// `out` must be writable for [`PROGRAM_NAME_LEN`] bytes.
#[inline(always)]
unsafe fn copy_name(entry: Address, out: *mut core::ffi::c_void) -> Address {
    let (name, text) = (offset!(dentry_name), offset!(qstr_name));
    if name == ABSENT || text == ABSENT {
        return 0;
    }
    let Some(text) = current::probe_at::<Address>(entry + u64::from(name), text) else { return 0 };
    // SAFETY: the caller vouches for `out`; the helper checks the address that it reads from.
    unsafe { bpf_probe_read_kernel_str(out, PROGRAM_NAME_LEN as u32, text as *const core::ffi::c_void) };
    let above = probe!(entry, dentry_parent: Address, else 0);
    if above == entry { 0 } else { above }
}

/// Directory entry of the current program; 0 when it cannot be read.
#[inline(always)]
fn dentry() -> Address {
    let mm = probe!(current::task(), task_mm: Address, else return 0);
    let file = probe!(mm, mm_exe_file: Address, else return 0);
    let path = offset!(file_path);
    if path == ABSENT {
        return 0;
    }
    probe!(file + u64::from(path), path_dentry: Address, else 0)
}

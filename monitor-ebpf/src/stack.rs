//! Copies the user stack of a crashing process, for code without frame pointers: the agent unwinds it with the tables of the files, as
//! a debugger does. The copy goes into a slot of an array; [`monitor_common::stack`] tells why.

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_F_USER_STACK,
    helpers::generated::{bpf_get_stack, bpf_probe_read_user},
    programs::BtfTracePointContext,
};
use monitor_common::{
    record::{FRAMES, NO_STACK},
    stack::{CrashStack, PIECE, SLOTS, STACK, UserStack},
};

use crate::{
    current::{self, Address, probe},
    maps::{Identity, STACKS, STACKS_WRITTEN},
};

/// Copies registers and stack of the current thread. Returns the slot, or [`NO_STACK`].
#[inline(always)]
pub(crate) fn copy(ctx: &BtfTracePointContext, identity: Identity, kernel_ns: u64, watched: bool) -> u32 {
    let regs = current::registers();
    if regs == 0 {
        return NO_STACK;
    }
    let (ip, sp) = (probe!(regs, regs_ip: u64, else 0), probe!(regs, regs_sp: u64, else 0));
    if ip == 0 || sp == 0 {
        return NO_STACK;
    }
    let slot = next(watched);
    let Some(stack) = STACKS.get_ptr_mut(slot) else { return NO_STACK };
    let size = (FRAMES * size_of::<u64>()) as u32;
    // SAFETY: the slot is as large as a `CrashStack`; each helper writes no more than it is told. The order of the writes to both ends
    // tells the agent whether the rest is complete.
    unsafe {
        core::ptr::write_volatile(&raw mut (*stack).sealed_ns, 0);
        core::ptr::write_volatile(&raw mut (*stack).kernel_ns, 0);
        let filled =
            bpf_get_stack(ctx.as_ptr(), (&raw mut (*stack).addresses).cast(), size, u64::from(BPF_F_USER_STACK));
        // The kernel's own trace begins at the program's `ip`; if not, these are no registers.
        if filled < 8 || (*stack).addresses[0] != ip {
            return NO_STACK;
        }
        (*stack).depth = filled as u32 / 8;
        (*stack).ip = ip;
        (*stack).sp = sp;
        (*stack).bp = probe!(regs, regs_bp: u64, else 0);
        (*stack).lr = probe!(regs, regs_lr: u64, else 0);
        (*stack).start_ns = identity.start_ns;
        (*stack).tgid = identity.tgid as u32;
        (*stack).tid = aya_ebpf::helpers::bpf_get_current_pid_tgid() as u32;
        program(stack);
        (*stack).stack_len = copy_from(sp, &raw mut (*stack).stack);
        core::ptr::write_volatile(&raw mut (*stack).kernel_ns, kernel_ns);
        core::ptr::write_volatile(&raw mut (*stack).sealed_ns, kernel_ns);
    }
    slot
}

/// Copies the user stack of the current thread from `sp` upwards, until a piece cannot be read. Returns the bytes copied.
///
/// # Safety
/// `to` must be writable.
#[inline(always)]
pub(crate) unsafe fn copy_from(sp: u64, to: *mut UserStack) -> u32 {
    let mut read = 0;
    while read < STACK {
        // SAFETY: a piece ends within the array, and the helper writes no more than it is told.
        let status = unsafe {
            bpf_probe_read_user(to.cast::<u8>().add(read).cast(), PIECE as u32, (sp + read as u64) as *const _)
        };
        if status != 0 {
            break;
        }
        read += PIECE;
    }
    read as u32
}

/// Takes the oldest slot, in the half for watched services or in the other.
#[inline(always)]
fn next(watched: bool) -> u32 {
    let half = u32::from(watched);
    let Some(written) = STACKS_WRITTEN.get_ptr_mut(half) else { return 0 };
    // SAFETY: an aligned word of a map value.
    let number = unsafe { core::ptr::read_volatile(written) };
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(written, number.wrapping_add(1)) };
    half * SLOTS + (number & (SLOTS - 1))
}

/// Notes the range of the program's code and the inode of its file.
///
/// # Safety
/// `stack` must be writable for the whole of a [`CrashStack`].
#[inline(always)]
unsafe fn program(stack: *mut CrashStack) {
    let mm = probe!(current::task(), task_mm: Address, else 0);
    let file = probe!(mm, mm_exe_file: Address, else 0);
    let inode = probe!(file, file_inode: Address, else 0);
    // SAFETY: the caller vouches for the slot.
    unsafe {
        (*stack).code_begin = probe!(mm, mm_start_code: u64, else 0);
        (*stack).code_end = probe!(mm, mm_end_code: u64, else 0);
        (*stack).program_inode = probe!(inode, inode_number: u64, else 0);
    }
}

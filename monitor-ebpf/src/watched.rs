//! Is a task's cgroup watched? Every exit and fork asks, and the answer is nearly always no.
//!
//! Reading a cgroup's id from a task's `css_set` and looking it up in [`WATCHED`] takes some 75 ns, mostly cache misses. So each CPU
//! remembers the addresses of a few unwatched cgroups, the latest beside the counter that an exit touches anyway. Comparing with the
//! latest takes two cache lines and answers most exits.
//!
//! A note is valid for one epoch. A new epoch follows each addition to [`WATCHED`], so every look-up noted in this epoch ran after the
//! last addition. This includes the address that a watched cgroup has taken over from a removed one: the epoch began after that
//! addition too.

use core::ptr::{read_volatile, write_volatile};

use monitor_common::counter::{Author, SPREAD, UNWATCHED, epoch};

use crate::{
    maps::{Cpu, EPOCH, WATCHED},
    task::{self, Kernel, field, offset},
};

/// True when the task's cgroup is watched.
#[inline(always)]
pub(crate) fn watches(task: Kernel) -> bool {
    // SAFETY: the value is only compared with "absent".
    unsafe { WATCHED.get(task::cgroup_id(task)) }.is_some()
}

/// True when the task's cgroup is the one that this CPU last noted as unwatched. False means not known.
#[inline(always)]
pub(crate) fn was_asked_last(task: Kernel, cpu: *mut Cpu) -> bool {
    let Some((_, note)) = note(task, cpu) else { return false };
    // SAFETY: this CPU's slot of the map.
    unsafe { read_volatile(&raw const (*cpu).latest) == note }
}

/// True when the task's cgroup is watched; looked up only without a note on this CPU.
#[inline(always)]
pub(crate) fn remembers(task: Kernel, cpu: *mut Cpu) -> bool {
    let Some((address, note)) = note(task, cpu) else { return false };
    // SAFETY: this CPU's slot of the map. A run that preempts this one, on kernels where that can happen, writes a complete note of
    // its own.
    let latest = unsafe { &raw mut (*cpu).latest };
    // SAFETY: as above.
    if unsafe { read_volatile(latest) } == note {
        return false;
    }
    let slot = (address.wrapping_mul(SPREAD) >> (64 - UNWATCHED.ilog2())) as usize;
    // SAFETY: as above, and the shift leaves a number below UNWATCHED.
    let noted = unsafe { (&raw mut (*cpu).unwatched).cast::<u64>().add(slot) };
    // SAFETY: as above.
    if unsafe { read_volatile(noted) } != note {
        if watches(task) {
            return true;
        }
        // SAFETY: as above.
        unsafe { write_volatile(noted, note) };
    }
    // SAFETY: as above.
    unsafe { write_volatile(latest, note) };
    false
}

/// A number that stands for a task's cgroup, and its note in this epoch if it is unwatched; `None` where nothing can be watched.
#[inline(always)]
fn note(task: Kernel, cpu: *mut Cpu) -> Option<(u64, u64)> {
    // Read before the map, or the look-up could be older than the epoch of its note.
    // SAFETY: an aligned word of a map value.
    let epoch = unsafe { read_volatile(&raw const EPOCH) };
    // The address that identifies the cgroup while it exists, quicker to reach than its id: on v2 the cgroup itself, on v1 its memory
    // controller's state. Where neither can be read nothing is watched; the verifier would refuse a null below, which is no pointer.
    let css_set = field!(task, task_cgroups: Kernel, else return None);
    let member = if offset!(watch_memory_v1) == 1 {
        field!(css_set, css_set_memory: Kernel, else return None)
    } else {
        field!(css_set, css_set_dfl_cgrp: Kernel, else return None)
    };
    // The verifier lets pointers be subtracted, and nothing else: the difference stands for the address.
    let address = (member as u64).wrapping_sub(cpu as u64);
    Some((address, address ^ epoch))
}

/// Begins a new epoch, with a name that neither the programs nor the agent have used before. If both begin one at the same time, one
/// name is lost, which does no harm.
#[inline(always)]
pub(crate) fn added() {
    // SAFETY: an aligned word of a map value.
    unsafe { write_volatile(&raw mut EPOCH, epoch(task::now_ns(), Author::Programs)) };
}

//! Is a task's cgroup watched? Asked at every exit and fork, and the answer is nearly always no.
//!
//! From the set of a task's cgroups to a cgroup's id and on into [`WATCHED`] it is some 75 ns over cache lines that nobody else has
//! touched for long. So each CPU remembers by their address a few cgroups that were not watched, the latest beside the counter that an
//! exit has touched already: that takes two lines, and most exits ask no further.
//!
//! What is remembered holds for one epoch. Whoever adds a cgroup to [`WATCHED`] begins another one after it: so whatever was looked
//! for in this epoch was looked for after the last addition. An address that a watched cgroup has taken over from one
//! that is gone is no exception: the epoch has begun after that addition too.

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

/// True when nobody watches the task's cgroup, and this CPU was asked for it the last time too. False says nothing.
#[inline(always)]
pub(crate) fn was_asked_last(task: Kernel, cpu: *mut Cpu) -> bool {
    let Some((_, note)) = note(task, cpu) else { return false };
    // SAFETY: this CPU's slot of the map.
    unsafe { read_volatile(&raw const (*cpu).latest) == note }
}

/// True when the task's cgroup is watched, from what is remembered if that says so.
#[inline(always)]
pub(crate) fn remembers(task: Kernel, cpu: *mut Cpu) -> bool {
    let Some((address, note)) = note(task, cpu) else { return false };
    // SAFETY: this CPU's slot of the map. Another run that comes between on a kernel where programs can be preempted writes a whole
    // note of its own.
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

/// A number for the address of what stands for a task's cgroup, and what is noted in this epoch when it is not watched; `None` where
/// nothing can be watched.
#[inline(always)]
fn note(task: Kernel, cpu: *mut Cpu) -> Option<(u64, u64)> {
    // Before the look into the map, or that could be older than the epoch that it is noted for.
    // SAFETY: an aligned word of a map value.
    let epoch = unsafe { read_volatile(&raw const EPOCH) };
    // What stands for the cgroup as long as it exists, and is nearer than its id: on v2 the cgroup itself, on v1 the memory
    // controller's state of it. Where neither can be read nothing is watched; a null here would be refused below, as it is no
    // pointer.
    let css_set = field!(task, task_cgroups: Kernel, else return None);
    let member = if offset!(watch_memory_v1) == 1 {
        field!(css_set, css_set_memory: Kernel, else return None)
    } else {
        field!(css_set, css_set_dfl_cgrp: Kernel, else return None)
    };
    // A number for the address: the verifier lets pointers be subtracted, and nothing else.
    let address = (member as u64).wrapping_sub(cpu as u64);
    Some((address, address ^ epoch))
}

/// Begins another epoch, with a name that neither we nor the agent have given to one before: so it does no harm when both begin one
/// at the same time, and one name is lost.
#[inline(always)]
pub(crate) fn added() {
    // SAFETY: an aligned word of a map value.
    unsafe { write_volatile(&raw mut EPOCH, epoch(task::now_ns(), Author::Programs)) };
}

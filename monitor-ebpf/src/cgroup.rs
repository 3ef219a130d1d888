//! `cgroup_mkdir`, `cgroup_rmdir`, `cgroup_rename` (v1), `cgroup_notify_populated` (v2) of the watched hierarchy.
//!
//! A cgroup made inside a watched one is watched from its first moment, without waiting for the agent. A service can make any number
//! of cgroups, so those added here take at most half of the map. Paths come from the tracepoint's own argument; no program walks the
//! tree.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{helpers::bpf_probe_read_kernel_str_bytes, macros::btf_tracepoint, programs::BtfTracePointContext};
use monitor_common::record::{
    CGROUP_CREATED, CGROUP_EMPTY, CGROUP_POPULATED, CGROUP_REMOVED, CGROUP_RENAMED, Cgroup, Header, KIND_CGROUP,
    PATH_LEN,
};
use monitor_common::watched::INHERITS;

use crate::{
    maps::{INHERITED, WATCHED},
    ring::Lane,
    task::{self, ABSENT, Kernel, field, offset},
    watched,
};

#[btf_tracepoint(function = "cgroup_mkdir")]
fn cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    let cgroup: Kernel = ctx.arg(0);
    if !is_followed(cgroup) {
        return 0;
    }
    let id = task::node_id(cgroup);
    inherit(cgroup, id);
    report(id, CGROUP_CREATED, ctx.arg(1))
}

#[btf_tracepoint(function = "cgroup_rmdir")]
fn cgroup_rmdir(ctx: BtfTracePointContext) -> i32 {
    let cgroup: Kernel = ctx.arg(0);
    if !is_followed(cgroup) {
        return 0;
    }
    let id = task::node_id(cgroup);
    // Most cgroups are not in the map. Ids are not reused, so a late removal hits no other cgroup.
    // SAFETY: copied out before the map changes.
    let handle = unsafe { WATCHED.get(id) }.copied();
    if WATCHED.remove(id).is_ok() && handle.is_some_and(|handle| handle & INHERITS != 0) {
        count_inherited(-1);
    }
    report(id, CGROUP_REMOVED, ctx.arg(1))
}

/// A rename changes the paths of a cgroup and of all below it, but no id: the same cgroups stay watched.
#[btf_tracepoint(function = "cgroup_rename")]
fn cgroup_rename(ctx: BtfTracePointContext) -> i32 {
    let cgroup: Kernel = ctx.arg(0);
    if !is_followed(cgroup) {
        return 0;
    }
    report(task::node_id(cgroup), CGROUP_RENAMED, ctx.arg(1))
}

#[btf_tracepoint(function = "cgroup_notify_populated")]
fn cgroup_populated(ctx: BtfTracePointContext) -> i32 {
    let cgroup: Kernel = ctx.arg(0);
    if !is_followed(cgroup) {
        return 0;
    }
    let id = task::node_id(cgroup);
    // SAFETY: the value is only compared with "absent".
    if unsafe { WATCHED.get(id) }.is_none() {
        return 0;
    }
    let event = if ctx.arg::<i32>(2) == 0 { CGROUP_EMPTY } else { CGROUP_POPULATED };
    report(id, event, ctx.arg(1))
}

/// True in the hierarchy where services are watched.
#[inline(always)]
fn is_followed(cgroup: Kernel) -> bool {
    let root = field!(cgroup, cgroup_root: Kernel, else return false);
    u64::from(field!(root, cgroup_root_hierarchy: u32, else return false)) == offset!(hierarchy)
}

/// A child of a watched cgroup is watched too.
#[inline(always)]
fn inherit(cgroup: Kernel, id: u64) {
    let css = offset!(cgroup_self);
    let parent = offset!(css_parent);
    if css == ABSENT || parent == ABSENT {
        return;
    }
    let parent: Kernel = task::read(cgroup, css + parent);
    let parent = task::node_id(field!(parent, css_cgroup: Kernel, else return));
    // SAFETY: copied out before the map changes.
    if let Some(handle) = unsafe { WATCHED.get(parent) }.copied() {
        // Above the limit, deaths in the new cgroup are still reported, but without priority.
        if inherited() < INHERITED_MAX && WATCHED.insert(id, handle | INHERITS, 0).is_ok() {
            count_inherited(1);
        }
        watched::added();
    }
}

/// Most cgroups that the programs may add to [`WATCHED`]: half of it.
const INHERITED_MAX: u64 = 8192;

#[inline(always)]
fn inherited() -> u64 {
    let Some(count) = INHERITED.get_ptr(0) else { return INHERITED_MAX };
    // SAFETY: an aligned word of a map value.
    unsafe { read_volatile(count) }
}

#[inline(always)]
fn count_inherited(by: i64) {
    if let Some(count) = INHERITED.get_ptr_mut(0) {
        // SAFETY: an aligned word of a map value, which stays mapped. Both tracepoints run under the kernel's cgroup_mutex
        // (cgroup_mkdir and cgroup_rmdir in kernel/cgroup/cgroup.c), so they never run at the same time.
        unsafe { write_volatile(count, read_volatile(count).wrapping_add_signed(by)) };
    }
}

#[inline(always)]
fn report(id: u64, event: u32, path: *const u8) -> i32 {
    let kernel_ns = task::now_ns();
    let Some(mut entry) = Lane::Routine.reserve::<Cgroup>() else { return 0 };
    let record = entry.as_mut_ptr();
    // SAFETY: the entry is as large as a `Cgroup`; the helper checks the kernel address and fills at most PATH_LEN bytes.
    unsafe {
        (*record).header = Header { kind: KIND_CGROUP, flags: 0, kernel_ns };
        (*record).id = id;
        (*record).event = event;
        (*record).path_len = 0;
        core::ptr::write_bytes((&raw mut (*record).path).cast::<u64>(), 0, PATH_LEN / 8);
        if offset!(may_probe) == 1
            && let Ok(text) = bpf_probe_read_kernel_str_bytes(path, &mut (*record).path)
        {
            (*record).path_len = text.len() as u32;
        }
    }
    Lane::Routine.submit(entry);
    0
}

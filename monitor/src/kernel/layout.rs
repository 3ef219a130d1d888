//! From BTF to the layout that the programs are loaded with, and to the programs that fit this kernel.

use anyhow::{Context as _, Result};
use monitor_common::layout::Layout;

use super::btf::{Argument, Btf};
use crate::host::cgroup::Hierarchy;

/// What this kernel offers, decided once at start.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Goes into the programs.
    pub(crate) layout: Layout,
    /// Programs to attach: name in the object, tracepoint.
    pub(crate) programs: Vec<(&'static str, &'static str)>,
    /// Evidence that this kernel cannot give, in words, each once.
    pub(crate) missing: Vec<String>,
}

/// Facts about the host that are not in BTF.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host<'a> {
    /// Where services are watched; `None` when no cgroup file system is mounted.
    pub(crate) hierarchy: Option<&'a Hierarchy>,
    /// False under lockdown=confidentiality.
    pub(crate) may_probe: bool,
    /// Report clean exits of unwatched processes too.
    pub(crate) report_clean: bool,
}

/// Looks everything up.
///
/// # Errors
/// When a field or tracepoint is missing without which no death can be seen.
pub(crate) fn plan(btf: &Btf, host: Host<'_>) -> Result<Plan> {
    let mut layout = Layout::unknown();
    let mut missing = Vec::new();
    let mut miss = |evidence: &str, what: String| {
        let line = format!("{evidence} ({what})");
        if !missing.contains(&line) {
            missing.push(line);
        }
    };

    for (field, slot) in Layout::FIELDS {
        let mut found = None;
        for name in field.names {
            found = btf.offset_of(field.structure, name)?;
            if found.is_some() {
                break;
            }
        }
        match (found, field.evidence) {
            (Some(offset), _) => *slot(&mut layout) = offset,
            (None, Some(evidence)) => miss(evidence, format!("no field {}.{}", field.structure, field.names[0])),
            (None, None) => anyhow::bail!("this kernel's BTF has no field {}.{}", field.structure, field.names[0]),
        }
    }
    if let (Some(table), Some(memory)) =
        (btf.offset_of("css_set", "subsys")?, btf.enum_value("cgroup_subsys_id", "memory_cgrp_id")?)
    {
        layout.css_set_memory = table + 8 * memory;
    }
    if let Some(size) = btf.size_of("k_sigaction")? {
        layout.sigaction_size = size;
    }
    layout.may_probe = u32::from(host.may_probe);
    layout.report_clean = u32::from(host.report_clean);
    if let Some(hierarchy) = host.hierarchy {
        layout.watch_memory_v1 = u32::from(hierarchy.is_v1());
        layout.hierarchy = hierarchy.id;
    }

    // In the order in which they are attached: what gives evidence before what reports a death with it.
    let mut programs = Vec::new();
    // The event exists in every hierarchy's code but is only raised for v2.
    let unified = host.hierarchy.is_some_and(|hierarchy| !hierarchy.is_v1());
    for (program, tracepoint, wanted, evidence) in [
        ("cgroup_mkdir", "cgroup_mkdir", true, "cgroups that come and go"),
        ("cgroup_rmdir", "cgroup_rmdir", true, "cgroups that come and go"),
        ("cgroup_populated", "cgroup_notify_populated", unified, "the moment a service becomes empty"),
        ("process_exec", "sched_process_exec", true, "new life in a watched service"),
        ("process_fork", "sched_process_fork", true, "workers of a watched service"),
        ("signal_generate", "signal_generate", true, "sender of a fatal signal"),
    ] {
        if !wanted {
            continue;
        }
        if btf.tracepoint(tracepoint)?.is_some() {
            programs.push((program, tracepoint));
        } else {
            miss(evidence, format!("no tracepoint {tracepoint}"));
        }
    }
    match btf.tracepoint("mark_victim")?.as_deref() {
        Some([Argument::Pointer(name), ..]) if name == "task_struct" => programs.push(("oom_mark_task", "mark_victim")),
        Some([Argument::Other, ..]) => programs.push(("oom_mark_pid", "mark_victim")),
        _ => miss("OOM marks", "no tracepoint mark_victim with a known prototype".to_owned()),
    }
    let exit = btf.tracepoint("sched_process_exit")?.context("this kernel has no tracepoint sched_process_exit")?;
    layout.exit_tells_group_dead = u32::from(exit.len() >= 2);
    programs.push(("process_exit", "sched_process_exit"));
    // Tracepoints are guarded by this flavour of SRCU instead of disabled preemption since 7.0. A program that is
    // preempted there is skipped for all other events on its processor, so the one that must miss nothing gets a second.
    if btf.has_typedef("class_srcu_fast_notrace_t")? {
        layout.preemptible = 1;
        programs.push(("process_exit_again", "sched_process_exit"));
    }
    if !host.may_probe {
        miss("whether a signal was fatal, paths of new cgroups", "kernel lockdown is confidentiality".to_owned());
    }
    Ok(Plan { layout, programs, missing })
}

//! From BTF to the layout that the programs are loaded with, and to the programs that fit this kernel.

use anyhow::{Context as _, Result};
use monitor_common::layout::{ABSENT, Layout};

use super::btf::{Argument, Btf};
use crate::host::cgroup::Hierarchy;

/// What this kernel offers, decided once at start.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Goes into the programs.
    pub(crate) layout: Layout,
    /// Programs to attach: name in the object, tracepoint.
    pub(crate) programs: Vec<(&'static str, &'static str)>,
    /// Programs to attach at functions, where the kernel lets them in.
    pub(crate) functions: Vec<Function>,
    /// Evidence that this kernel cannot give, in words, each once.
    pub(crate) missing: Vec<String>,
}

/// A program at the begin or the end of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Function {
    /// Name in the object.
    pub(crate) program: &'static str,
    /// The kernel's function.
    pub(crate) function: &'static str,
    /// What is lost without it.
    pub(crate) evidence: &'static str,
    /// Program and tracepoint to attach instead where the kernel refuses it.
    pub(crate) substitute: Option<(&'static str, &'static str)>,
}

/// Whether refused requests for memory are watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Watched {
    /// Where it costs the calls that ask for memory only
    #[default]
    Auto,
    /// Everywhere; where the kernel refuses programs at functions, at a cost to every system call
    Always,
    /// Nowhere
    Never,
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
    /// Whether refused requests for memory are watched.
    pub(crate) failed_allocations: Watched,
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
        layout.css_set_memory = inside(table, memory.checked_mul(POINTER))?;
    }
    if let Some(size) = btf.size_of("k_sigaction")? {
        layout.sigaction_size = size;
    }
    if let Some(size) = btf.size_of("upid")? {
        layout.upid_size = size;
    }
    registers(btf, &mut layout)?;
    match resident_counters(btf)? {
        Some((first, stride)) => (layout.mm_rss, layout.mm_rss_stride) = (first, stride),
        None => miss("memory figures of an OOM victim", "mm_struct.rss_stat has no known shape".to_owned()),
    }
    layout.may_probe = u32::from(host.may_probe);
    layout.report_clean = u32::from(host.report_clean);
    if let Some(hierarchy) = host.hierarchy {
        layout.watch_memory_v1 = u32::from(hierarchy.is_v1());
        layout.hierarchy = hierarchy.id;
    }

    let functions = functions(btf, host.failed_allocations, &mut miss)?;

    // In the order in which they are attached: what gives evidence before what reports a death with it.
    let mut programs = Vec::new();
    // The event exists in every hierarchy's code but is only raised for v2.
    let unified = host.hierarchy.is_some_and(|hierarchy| !hierarchy.is_v1());
    // No cgroup of v2 can be renamed.
    let renames = host.hierarchy.is_some_and(Hierarchy::is_v1);
    for (program, tracepoint, wanted, evidence) in [
        ("cgroup_mkdir", "cgroup_mkdir", true, "cgroups that come and go"),
        ("cgroup_rmdir", "cgroup_rmdir", true, "cgroups that come and go"),
        ("cgroup_rename", "cgroup_rename", renames, "cgroups that are renamed"),
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
        let evidence = "whether a signal was fatal, paths of new cgroups, programs of crashes, memory figures of OOM victims, \
            ends of pid namespaces and tracers";
        miss(evidence, "kernel lockdown is confidentiality".to_owned());
    }
    Ok(Plan { layout, programs, functions, missing })
}

/// Finds registers that have no field of their own. On arm64 the frame pointer is the 30th of an array, followed by the
/// link register.
fn registers(btf: &Btf, layout: &mut Layout) -> Result<()> {
    const REGISTER: u32 = 8;
    layout.regs_size = btf.size_of("pt_regs")?.unwrap_or(ABSENT);
    match (btf.offset_of("pt_regs", "bp")?, btf.offset_of("pt_regs", "regs")?) {
        (Some(bp), _) => layout.regs_bp = bp,
        (None, Some(array)) => {
            layout.regs_bp = inside(array, Some(29 * REGISTER))?;
            layout.regs_lr = inside(array, Some(30 * REGISTER))?;
        }
        (None, None) => {}
    }
    let helper = btf.enum_value("bpf_func_id", "BPF_FUNC_task_pt_regs")?;
    layout.tells_regs = u32::from(helper.is_some());
    Ok(())
}

/// Where the counters of resident pages begin in `mm_struct`, and from one to the next: plain numbers before 6.2,
/// per-processor counters since.
fn resident_counters(btf: &Btf) -> Result<Option<(u32, u32)>> {
    let Some(stat) = btf.offset_of("mm_struct", "rss_stat")? else { return Ok(None) };
    if let Some(plain) = btf.offset_of("mm_rss_stat", "count")? {
        return Ok(Some((inside(stat, Some(plain))?, 8)));
    }
    let (count, size) = (btf.offset_of("percpu_counter", "count")?, btf.size_of("percpu_counter")?);
    count.zip(size).map(|(count, size)| Ok((inside(stat, Some(count))?, size))).transpose()
}

/// Bytes of a pointer on the architectures that there are programs for.
const POINTER: u32 = 8;

/// The offset of what lies in a field; type information that says more than an offset can be is not this kernel's.
fn inside(field: u32, at: Option<u32>) -> Result<u32> {
    at.and_then(|at| field.checked_add(at)).context("the kernel's type information has an offset that is none")
}

/// The programs at functions. Not every kernel lets one in there, so each has its substitute or its loss.
fn functions(btf: &Btf, failed_allocations: Watched, miss: &mut impl FnMut(&str, String)) -> Result<Vec<Function>> {
    let mut found = Vec::new();
    for (program, function, arguments, wanted, evidence, substitute) in [
        (
            "oom_begins",
            "out_of_memory",
            1,
            true,
            "exact scope and limit of every OOM kill (the kernel's log is used)",
            None,
        ),
        (
            "mmap_ended",
            "vm_mmap_pgoff",
            6,
            failed_allocations != Watched::Never,
            "refused requests for memory",
            (failed_allocations == Watched::Always).then_some(("call_ended", "sys_exit")),
        ),
        (
            "brk_ended",
            "__x64_sys_brk",
            1,
            failed_allocations != Watched::Never,
            "refused requests for a larger heap",
            None,
        ),
    ] {
        if !wanted {
            continue;
        }
        // The programs find what they read by its place among the arguments.
        match btf.function(function)? {
            Some(count) if count == arguments => found.push(Function { program, function, evidence, substitute }),
            Some(count) => miss(evidence, format!("{function} has {count} arguments here, not {arguments}")),
            None => miss(evidence, format!("no function {function}")),
        }
    }
    Ok(found)
}

/// Takes any bytes for type information, and asks all that it is asked for a kernel.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let Ok(types) = Btf::parse(bytes.to_vec()) else { return };
    drop(types.without_unknown_kinds());
    let hierarchy = Hierarchy::fuzz();
    for failed_allocations in [Watched::Auto, Watched::Always, Watched::Never] {
        let host = Host { hierarchy: Some(&hierarchy), may_probe: true, report_clean: false, failed_allocations };
        // An error names what this kernel lacks; a panic would keep the agent from its start.
        drop(plan(&types, host));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_that_no_number_holds_is_an_error() {
        assert_eq!(inside(16, 3_u32.checked_mul(POINTER)).expect("fits"), 40);
        for (field, at) in [(16, (1_u32 << 29).checked_mul(POINTER)), (u32::MAX, Some(1))] {
            let error = inside(field, at).expect_err("too large").to_string();
            assert!(error.contains("offset"), "{error}");
        }
    }
}

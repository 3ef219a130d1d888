//! Loads and attaches the programs, and holds them for as long as they shall run.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Btf, Ebpf, EbpfLoader, Endianness,
    maps::{Array, HashMap, MapData, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, Program, ProgramError},
};
use aya_log::EbpfLogger;
use monitor_common::counter::SLOTS;

use super::{
    btf,
    diagnostics::{self, Diagnostics},
    layout,
    ring::Reader,
};
use crate::host::{cgroup::Hierarchy, privilege};

/// Where the kernel shows its type information.
pub(crate) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The compiled programs. Aligned, because the loader reads the ELF in place.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);
static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("DEFIB_EBPF_OBJECT")));

/// How to load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options<'a> {
    /// Type information of the running kernel, when it is not at [`VMLINUX`].
    pub(crate) btf: Option<&'a Path>,
    /// Where services are watched.
    pub(crate) hierarchy: Option<&'a Hierarchy>,
    /// Report clean exits of unwatched processes too.
    pub(crate) report_clean: bool,
    /// Whether refused requests for memory are watched.
    pub(crate) failed_allocations: layout::Watched,
}

/// Why the programs are not running, where an operator can mend it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// Type information is missing.
    #[error(
        "this kernel shows no type information at {0}: it needs CONFIG_DEBUG_INFO_BTF=y; \
         if the file is elsewhere (say, /sys is not mounted here), name it with --btf PATH"
    )]
    NoBtf(PathBuf),
    /// A capability is missing.
    #[error(
        "missing {0}: run as root, or grant it with \
         'setcap cap_bpf,cap_perfmon+ep /path/to/defib' or, in a systemd unit, 'AmbientCapabilities=CAP_BPF CAP_PERFMON'"
    )]
    Capability(String),
}

/// The running programs. Dropping it detaches them.
pub(crate) struct Kernel {
    /// Holds the programs, their links and the maps that nobody took.
    ebpf: Ebpf,
    counters: PerCpuArray<MapData, u64>,
    watched: Mutex<HashMap<MapData, u64, u32>>,
    programs: Vec<&'static str>,
    missing: Vec<String>,
}

/// The two rings, each for one reader.
pub(crate) struct Rings {
    /// OOM marks and watched services.
    pub(crate) critical: Reader,
    /// Other abnormal deaths.
    pub(crate) bulk: Reader,
}

/// What one attached program has cost; zero unless the kernel measures (`kernel.bpf_stats_enabled`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Name in the object.
    pub(crate) name: &'static str,
    /// Times run.
    pub(crate) runs: u64,
    /// Time spent in it.
    pub(crate) time: Duration,
}

/// Whether this process may load the programs at all; for callers that prepare something first.
///
/// # Errors
/// [`LoadError::Capability`] names what is missing.
pub(crate) fn permitted() -> Result<()> {
    let lacking = privilege::Effective::of_self()?.lacking();
    if lacking.is_empty() {
        return Ok(());
    }
    let names: Vec<_> =
        lacking.iter().map(|capability| format!("{} ({})", capability.name, capability.purpose)).collect();
    Err(LoadError::Capability(names.join(" and ")).into())
}

/// Loads and attaches everything that fits this kernel.
///
/// # Errors
/// [`LoadError`] for what an operator can mend; anything else names the step that failed.
pub(crate) fn load(options: Options<'_>) -> Result<(Kernel, Rings)> {
    permitted()?;
    let path = options.btf.unwrap_or(Path::new(VMLINUX));
    if !path.exists() {
        return Err(LoadError::NoBtf(path.to_owned()).into());
    }
    // The index is dropped before the loader needs memory of its own.
    let plan = {
        let types = btf::Btf::read(path)?;
        let host = layout::Host {
            hierarchy: options.hierarchy,
            may_probe: !privilege::lockdown_is_confidential(),
            report_clean: options.report_clean,
            failed_allocations: options.failed_allocations,
        };
        layout::plan(&types, host).context("this kernel cannot be watched")?
    };

    let layout: &[u32] = bytemuck::cast_slice(std::slice::from_ref(&plan.layout));
    let log_level = diagnostics::level();
    let mut ebpf = EbpfLoader::new()
        .btf(None)
        .override_global("LAYOUT", layout, true)
        .override_global(aya_log::LEVEL, &log_level, false)
        .load(&OBJECT.0)
        .map_err(|error| explain(error.into()))
        .context("cannot load the kernel programs")?;

    // The loader asks type information for one thing: the id of each tracepoint.
    let types = Btf::parse_file(path, Endianness::default())
        .with_context(|| format!("cannot read type information from {}", path.display()))?;
    let mut programs = Vec::new();
    let mut missing = plan.missing;
    // What gives evidence is attached before what reports a death with it.
    let mut tracepoints = Vec::new();
    for function in plan.functions {
        match (attach_function(&mut ebpf, &types, &function), function.substitute) {
            (Ok(()), _) => programs.push(function.program),
            (Err(_), Some(substitute)) => tracepoints.push(substitute),
            (Err(error), None) => missing.push(format!(
                "{} (no program can be attached to {} here: {})",
                function.evidence,
                function.function,
                error.root_cause()
            )),
        }
    }
    tracepoints.extend(plan.programs);
    for (name, tracepoint) in tracepoints {
        let program: &mut BtfTracePoint =
            ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?.try_into()?;
        program.load(tracepoint, &types).map_err(|error| explain(error.into())).with_context(|| {
            format!("the kernel refused the program {name} (DEFIB_LOG=debug shows the verifier's whole log)")
        })?;
        program
            .attach()
            .map_err(|error| explain(error.into()))
            .with_context(|| format!("cannot attach {name} to {tracepoint}"))?;
        programs.push(name);
    }
    drop(types);

    let mut take = |name: &str| ebpf.take_map(name).with_context(|| format!("the object has no map {name}"));
    let awake = Arc::new(Mutex::new(Array::try_from(take("AWAKE")?)?));
    let mut reader =
        |name, slot| anyhow::Ok(Reader { ring: RingBuf::try_from(take(name)?)?, awake: Arc::clone(&awake), slot });
    let rings = Rings { critical: reader("CRITICAL", 0)?, bulk: reader("BULK", 1)? };
    let counters = take("COUNTERS")?.try_into()?;
    let watched = Mutex::new(HashMap::try_from(take("WATCHED")?)?);
    Ok((Kernel { ebpf, counters, watched, programs, missing }, rings))
}

fn attach_function(ebpf: &mut Ebpf, types: &Btf, at: &layout::Function) -> Result<()> {
    let program = ebpf.program_mut(at.program).with_context(|| format!("the object has no program {}", at.program))?;
    match program {
        Program::FEntry(program) => {
            program.load(at.function, types)?;
            program.attach()?;
        }
        Program::FExit(program) => {
            program.load(at.function, types)?;
            program.attach()?;
        }
        _ => bail!("{} is no program for a function", at.program),
    }
    Ok(())
}

/// A refusal for want of privilege reads as such, however deep the loader wrapped it.
fn explain(error: anyhow::Error) -> anyhow::Error {
    let refused = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error()));
    if refused {
        let note = "the kernel refused it (EPERM): CAP_BPF and CAP_PERFMON are needed in the initial user namespace";
        return error.context(note);
    }
    // The verifier's log is for developers; people get its last lines.
    if let Some(ProgramError::LoadError { verifier_log, .. }) = error.downcast_ref::<ProgramError>() {
        let log = verifier_log.to_string();
        let tail: Vec<_> = log.lines().rev().filter(|line| !line.trim().is_empty()).take(3).collect();
        let tail: Vec<_> = tail.into_iter().rev().collect();
        tracing::debug!("verifier log:\n{log}");
        let tail = tail.join(" / ");
        return error.context(format!("the verifier said: {tail}"));
    }
    error
}

impl Kernel {
    /// Sums the per-CPU counters; the index is a slot of [`monitor_common::counter`].
    pub(crate) fn counters(&self) -> Result<[u64; SLOTS as usize]> {
        let mut sums = [0; SLOTS as usize];
        for (slot, sum) in sums.iter_mut().enumerate() {
            let values = self.counters.get(&(slot as u32), 0).with_context(|| format!("cannot read counter {slot}"))?;
            *sum = values.iter().sum();
        }
        Ok(sums)
    }

    /// Watches a cgroup. Cgroups that are made inside it later are watched by the programs themselves.
    ///
    /// # Errors
    /// When the map is full (16,384 cgroups) or gone.
    pub(crate) fn watch(&self, cgroup: u64) -> Result<()> {
        self.watched
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(cgroup, 1, 0)
            .with_context(|| format!("cannot watch the cgroup with id {cgroup}"))
    }

    /// Names of the attached programs.
    pub(crate) fn programs(&self) -> &[&'static str] {
        &self.programs
    }

    /// Evidence that this kernel cannot give.
    pub(crate) fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Deaths that the kernel skipped the programs for, at most: a program that is preempted misses what happens on its
    /// processor meanwhile. Where a second copy of the exit program is attached, both must have missed it.
    pub(crate) fn skipped(&self) -> Result<u64> {
        let copies = self.programs.iter().filter(|name| name.starts_with("process_exit"));
        let mut skipped = Vec::new();
        for &name in copies {
            let program: &BtfTracePoint =
                self.ebpf.program(name).with_context(|| format!("the program {name} has gone"))?.try_into()?;
            let path = format!("/proc/self/fdinfo/{}", program.fd()?.as_fd().as_raw_fd());
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            // Kernels before 5.12 do not count, and do not skip.
            skipped.extend(
                text.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse::<u64>().ok()),
            );
        }
        Ok(skipped.into_iter().min().unwrap_or(0))
    }

    /// What each program has cost so far.
    pub(crate) fn costs(&self) -> Result<Vec<Cost>> {
        self.programs
            .iter()
            .map(|&name| {
                let program = self.ebpf.program(name).with_context(|| format!("the program {name} has gone"))?;
                let info = program.info().with_context(|| format!("cannot ask for the cost of {name}"))?;
                Ok(Cost { name, runs: info.run_count(), time: info.run_time() })
            })
            .collect()
    }

    /// The ring of diagnostics from the programs, when they were asked for.
    ///
    /// # Errors
    /// When they were asked for and cannot be read.
    pub(crate) fn take_diagnostics(&mut self) -> Result<Option<Diagnostics>> {
        if diagnostics::level() == 0 {
            return Ok(None);
        }
        EbpfLogger::init(&mut self.ebpf).map(Some).context("cannot read the programs' diagnostics")
    }
}

//! Loads and attaches the programs, and holds them for as long as they shall run.

use std::{
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Btf, Ebpf, EbpfLoader, Endianness,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray},
    programs::{BtfTracePoint, Program, ProgramError},
};
use aya_log::EbpfLogger;
use monitor_common::{
    counter::{self, Author, CPU_WORDS, SLOTS},
    watched::INHERITS,
};

use super::{
    about::{About, Remains},
    allocations::UNUSED_BY_AGENT,
    btf, constants,
    diagnostics::{self, Diagnostics},
    layout::{self, Function, Plan},
    ring::Reader,
    set::{self, Facts, Set},
    sizes,
    stacks::CrashStacks,
};
use crate::host::{cgroup::Hierarchy, clock, cpus, inherited::Named, privilege};

/// `BPF_NOEXIST` and `BPF_EXIST` (include/uapi/linux/bpf.h): whether an insertion adds an entry or replaces one.
const ADD: u64 = 1;
const REPLACE: u64 = 2;

/// Where the kernel shows its type information.
pub(crate) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The compiled programs. Aligned, because the loader reads the ELF in place.
#[repr(C, align(8))]
pub(super) struct Aligned<T: ?Sized>(pub(super) T);
pub(super) static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("DEFIB_EBPF_OBJECT")));

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

/// The running programs. Dropping it detaches them, unless somebody else holds their descriptors too.
pub(crate) struct Kernel {
    /// All that keeps them running, for the next agent.
    set: Mutex<Set>,
    counters: PerCpuArray<MapData, [u64; CPU_WORDS]>,
    watched: Mutex<Watched>,
    programs: Vec<&'static str>,
    missing: Vec<String>,
    diagnostics: Option<Diagnostics>,
}

/// The cgroups that are watched, the number of those that the programs have added, and the epoch whose change makes the programs
/// look again.
struct Watched {
    cgroups: HashMap<MapData, u64, u32>,
    inherited: Array<MapData, u64>,
    epoch: Array<MapData, u64>,
}

/// The two rings, each for one reader, and how they came to be.
pub(crate) struct Rings {
    /// OOM marks and watched services.
    pub(crate) critical: Reader,
    /// Other abnormal deaths.
    pub(crate) bulk: Reader,
    /// Names the critical ring, on this boot.
    pub(crate) id: u32,
    /// Where they come from.
    pub(crate) origin: Origin,
}

/// Where the running programs come from.
#[derive(Debug)]
pub(crate) enum Origin {
    /// Loaded by this agent, and nothing was handed over.
    New,
    /// Handed over by an agent with the same programs: they have run on meanwhile.
    TakenOver,
    /// Loaded by this agent, because those that were handed over are others.
    Replaced(Remains),
}

/// Upper bounds of the events for which the kernel skipped a program: a preempted program (7.0 and newer) misses events
/// on its processor meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Skipped {
    /// Deaths. With a second copy of the exit program, those that both may have missed.
    pub(crate) exits: u64,
    /// Execs and forks.
    pub(crate) lives: u64,
    /// Cgroups that were made, removed, renamed, or changed between empty and populated.
    pub(crate) cgroups: u64,
    /// Evidence: signals, OOM marks, requests for memory.
    pub(crate) evidence: u64,
}

impl Skipped {
    /// The sum over all programs.
    pub(crate) fn of(programs: &[Cost]) -> Self {
        let exits = programs.iter().filter(|program| program.name.starts_with("process_exit"));
        let mut skipped = Self { exits: exits.map(|program| program.skipped).min().unwrap_or(0), ..Self::default() };
        for &Cost { name, skipped: count, .. } in programs {
            match name {
                "process_exec" | "process_fork" => skipped.lives += count,
                _ if name.starts_with("process_exit") => {}
                _ if name.starts_with("cgroup_") => skipped.cgroups += count,
                _ => skipped.evidence += count,
            }
        }
        skipped
    }
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
    /// How often the kernel skipped it, whether run times are measured or not.
    pub(crate) skipped: u64,
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

/// Loads and attaches everything that fits this kernel, or takes it over from an earlier agent if that has `handed_over` the
/// same.
///
/// # Errors
/// [`LoadError`] for what an operator can mend; anything else names the step that failed.
pub(crate) fn load(options: Options<'_>, handed_over: Vec<Named>) -> Result<(Kernel, Rings)> {
    permitted()?;
    let path = options.btf.unwrap_or(Path::new(VMLINUX));
    if !path.exists() {
        return Err(LoadError::NoBtf(path.to_owned()).into());
    }
    // The index is dropped before the loader needs memory of its own.
    let (plan, known_kinds) = {
        let types = btf::Btf::read(path)?;
        if let Some(kind) = types.cut_at() {
            tracing::warn!(
                "{}: the size of its types of kind {kind} is unknown; later types are not read",
                path.display()
            );
        }
        let host = layout::Host {
            hierarchy: options.hierarchy,
            may_probe: !privilege::lockdown_is_confidential(),
            report_clean: options.report_clean,
            failed_allocations: options.failed_allocations,
        };
        (layout::plan(&types, host).context("this kernel cannot be watched")?, types.without_unknown_kinds()?)
    };
    let log_level = diagnostics::level();
    let sizes = sizes::of(cpus::possible());
    let about = About::of(&plan, &sizes, log_level);
    let mut old = Set::new(handed_over);
    let is_first = old.is_empty();
    if !is_first {
        match about.compare(&old).and_then(|()| resume(&plan, &mut old)) {
            Ok(programs) => return open(old, programs, plan, None, Origin::TakenOver),
            Err(error) => tracing::info!("programs of an earlier agent run and are replaced: {error:#}"),
        }
    }
    let types = Types { path, known_kinds };
    let (set, programs, diagnostics) = begin(&plan, types, &sizes, log_level, &about)?;
    // From here on the new ones see everything, so the old ones may go.
    let origin = if is_first { Origin::New } else { Origin::Replaced(about.drain(old)) };
    open(set, programs, plan, diagnostics, origin)
}

/// Checks that a set that was handed over has all that the plan wants, and attaches again what is loaded and not attached.
/// Returns the names of its programs.
fn resume(plan: &Plan, set: &mut Set) -> Result<Vec<&'static str>> {
    let mut programs = Vec::new();
    for function in &plan.functions {
        let substitute = function.substitute.map(|(name, _)| name);
        programs.extend([Some(function.program), substitute].into_iter().flatten().find(|name| set.has_program(name)));
    }
    for name in set::MAPS {
        set.map(name)?;
    }
    for &(name, _) in &plan.programs {
        ensure!(set.has_program(name), "the program {name} is not among them");
        programs.push(name);
    }
    for name in &programs {
        set.attach_again_if_detached(name).with_context(|| format!("cannot attach {name} again"))?;
    }
    Ok(programs)
}

/// Type information for the loader.
struct Types<'a> {
    path: &'a Path,
    /// A copy without unknown kinds, where the loader cannot read the file.
    known_kinds: Option<Vec<u8>>,
}

impl Types<'_> {
    fn parse(self) -> Result<Btf> {
        let types = match self.known_kinds {
            Some(copy) => Btf::parse(&copy, Endianness::default()),
            None => Btf::parse_file(self.path, Endianness::default()),
        };
        types.with_context(|| format!("cannot read type information from {}", self.path.display()))
    }
}

/// Loads and attaches. The programs' other maps live as long as they do.
fn begin(
    plan: &Plan,
    types: Types<'_>,
    sizes: &[(&'static str, u32)],
    log_level: u8,
    about: &About,
) -> Result<(Set, Vec<&'static str>, Option<Diagnostics>)> {
    let object = constants::fill(&OBJECT.0, &plan.layout)?;
    let mut loader = EbpfLoader::new();
    for &(map, entries) in UNUSED_BY_AGENT.iter().chain(sizes) {
        loader.map_max_entries(map, entries);
    }
    let mut ebpf = loader
        .btf(None)
        .override_global(aya_log::LEVEL, &log_level, false)
        .load(&object)
        .map_err(|error| explain(error.into()))
        .context("cannot load the kernel programs")?;
    let (mut set, mut maps) = (Set::default(), Vec::new());
    for (name, map) in [
        (set::CRITICAL, "CRITICAL"),
        (set::BULK, "BULK"),
        (set::AWAKE, "AWAKE"),
        (set::COUNTERS, "COUNTERS"),
        (set::WATCHED, "WATCHED"),
        (set::INHERITED, "INHERITED"),
        (set::EPOCH, ".bss"),
        (set::STACKS, "STACKS"),
    ] {
        let taken = ebpf.take_map(map).with_context(|| format!("the object has no map {map}"))?;
        let (Map::RingBuf(data) | Map::Array(data) | Map::PerCpuArray(data) | Map::HashMap(data)) = taken else {
            bail!("the object's map {map} is of another kind");
        };
        let descriptor =
            data.fd().as_fd().try_clone_to_owned().with_context(|| format!("cannot keep the map {map}"))?;
        set.insert(name.to_owned(), descriptor);
        // A program's load asks for the map, so it stays open until then.
        maps.push(data);
    }

    // The loader asks type information for one thing: the id of each tracepoint.
    let types = types.parse()?;
    let mut programs = Vec::new();
    // What gives evidence is attached before what reports a death with it.
    let mut tracepoints = Vec::new();
    for function in &plan.functions {
        match (attach_function(&mut ebpf, &types, function, &mut set), function.substitute) {
            (Ok(()), _) => programs.push(function.program),
            (Err(_), Some(substitute)) => tracepoints.push(substitute),
            (Err(error), None) => tracing::debug!("{} cannot be attached: {error:#}", function.program),
        }
    }
    tracepoints.extend(&plan.programs);
    for (name, tracepoint) in tracepoints {
        let program: &mut BtfTracePoint =
            ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?.try_into()?;
        program.load(tracepoint, &types).map_err(|error| explain(error.into())).with_context(|| {
            format!("the kernel refused the program {name} (DEFIB_LOG=debug shows the verifier's whole log)")
        })?;
        set.attach(name, program.fd()?)
            .map_err(|error| explain(error.into()))
            .with_context(|| format!("cannot attach {name} to {tracepoint}"))?;
        programs.push(name);
    }
    drop(maps);
    about.write(&mut set).context("cannot note the layout of the maps")?;
    let diagnostics = match log_level {
        0 => None,
        _ => Some(EbpfLogger::init(&mut ebpf).context("cannot read the programs' diagnostics")?),
    };
    Ok((set, programs, diagnostics))
}

/// Opens the maps of a whole set.
fn open(
    set: Set,
    programs: Vec<&'static str>,
    plan: Plan,
    diagnostics: Option<Diagnostics>,
    origin: Origin,
) -> Result<(Kernel, Rings)> {
    let awake = Arc::new(Mutex::new(Array::try_from(Map::from_map_data(set.map(set::AWAKE)?)?)?));
    let reader = |name, slot| {
        let (map, records) = set.ring(name)?;
        anyhow::Ok(Reader { map, records, settled: None, moved: None, awake: Arc::clone(&awake), slot })
    };
    let id = set.map(set::CRITICAL)?.info()?.id();
    let rings = Rings { critical: reader(set::CRITICAL, 0)?, bulk: reader(set::BULK, 1)?, id, origin };
    let counters = Map::from_map_data(set.map(set::COUNTERS)?)?.try_into()?;
    let watched = Mutex::new(Watched {
        cgroups: Map::from_map_data(set.map(set::WATCHED)?)?.try_into()?,
        inherited: Map::from_map_data(set.map(set::INHERITED)?)?.try_into()?,
        epoch: Map::from_map_data(set.map(set::EPOCH)?)?.try_into()?,
    });
    let mut missing = plan.missing;
    for Function { program, function, evidence, substitute } in plan.functions {
        let has = |name: &str| programs.contains(&name);
        if !has(program) && !substitute.is_some_and(|(name, _)| has(name)) {
            missing.push(format!("{evidence} (no program can be attached to {function} here)"));
        }
    }
    Ok((Kernel { set: Mutex::new(set), counters, watched, programs, missing, diagnostics }, rings))
}

fn attach_function(ebpf: &mut Ebpf, types: &Btf, at: &Function, set: &mut Set) -> Result<()> {
    let program = ebpf.program_mut(at.program).with_context(|| format!("the object has no program {}", at.program))?;
    let descriptor = match program {
        Program::FEntry(program) => {
            program.load(at.function, types)?;
            program.fd()?
        }
        Program::FExit(program) => {
            program.load(at.function, types)?;
            program.fd()?
        }
        _ => bail!("{} is no program for a function", at.program),
    };
    Ok(set.attach(at.program, descriptor)?)
}

/// A refusal for want of privilege reads as such, however deep the loader wrapped it.
pub(super) fn explain(error: anyhow::Error) -> anyhow::Error {
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
        let cpus = self.counters.get(&0, 0).context("cannot read the counters")?;
        Ok(std::array::from_fn(|slot| cpus.iter().map(|words| words[slot]).sum()))
    }

    /// Watches a cgroup. The programs watch cgroups made inside it later, up to half of the map for all services. `own`
    /// is the id of the service's own cgroup, which is this one or above it: all cgroups of a service share its part of
    /// the critical ring.
    ///
    /// # Errors
    /// When the map is full (16,384 cgroups) or gone.
    pub(crate) fn watch(&self, cgroup: u64, own: u64) -> Result<()> {
        let Watched { cgroups, epoch, .. } = &mut *self.lock();
        let own = own as u32 & !INHERITS;
        let (value, flags) = match cgroups.get(&cgroup, 0) {
            Ok(value) if value & !INHERITS == own => return Ok(()),
            // The programs count the cgroups that they have added, so the bit stays.
            Ok(value) => (own | value & INHERITS, REPLACE),
            Err(_) => (own, ADD),
        };
        match cgroups.insert(cgroup, value, flags) {
            Ok(()) => {}
            // The programs have added or removed it meanwhile.
            Err(MapError::SyscallError(error))
                if matches!(error.io_error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot watch the cgroup with id {cgroup}")),
        }
        // The epoch after the cgroup: the programs rely on it.
        epoch
            .set(0, counter::epoch(clock::boot_ns(), Author::Agent), 0)
            .context("cannot tell the kernel programs that a cgroup is watched")
    }

    /// The cgroups that are watched.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub(crate) fn watched(&self) -> Result<Vec<u64>> {
        self.lock().cgroups.keys().collect::<Result<_, _>>().context("cannot list the cgroups that are watched")
    }

    /// Stops watching a cgroup, if it is watched.
    pub(crate) fn unwatch(&self, cgroup: u64) {
        let Watched { cgroups, inherited, .. } = &mut *self.lock();
        let value = cgroups.get(&cgroup, 0).unwrap_or_default();
        // When the programs have removed it meanwhile, they have counted it.
        if cgroups.remove(&cgroup).is_ok() && value & INHERITS != 0 {
            let counted = inherited.get(&0, 0).and_then(|count| inherited.set(0, count.saturating_sub(1), 0));
            if let Err(error) = counted {
                tracing::debug!("cannot count the cgroups that the kernel programs watch: {error}");
            }
        }
    }

    /// Counts the cgroups that the programs have added, which they limit. Their count and [`Self::unwatch`] may miss one
    /// that is made or removed at the same moment.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub(crate) fn recount(&self) -> Result<()> {
        let Watched { cgroups, inherited, .. } = &mut *self.lock();
        let added = cgroups.iter().filter(|entry| entry.as_ref().is_ok_and(|(_, value)| value & INHERITS != 0)).count();
        inherited.set(0, added as u64, 0).context("cannot count the cgroups that the kernel programs watch")
    }

    /// The stacks of processes that crash.
    ///
    /// # Errors
    /// When this process may open no more descriptors.
    pub(crate) fn stacks(&self) -> Result<CrashStacks> {
        CrashStacks::open(&self.set()).context("cannot read the stacks of processes that crash")
    }

    /// Names of the attached programs.
    pub(crate) fn programs(&self) -> &[&'static str] {
        &self.programs
    }

    /// Evidence that this kernel cannot give.
    pub(crate) fn missing(&self) -> &[String] {
        &self.missing
    }

    /// What each program has cost so far.
    pub(crate) fn costs(&self) -> Result<Vec<Cost>> {
        let set = self.set();
        let cost = |&name: &&'static str| {
            let Facts { runs, nanoseconds, skipped, .. } = set.facts(name)?;
            Ok(Cost { name, runs, time: Duration::from_nanos(nanoseconds), skipped })
        };
        self.programs.iter().map(cost).collect()
    }

    /// The ring of diagnostics from the programs, when they were asked for.
    pub(crate) fn take_diagnostics(&mut self) -> Option<Diagnostics> {
        self.diagnostics.take()
    }

    /// All that keeps the programs running, for whoever keeps it for the next agent.
    ///
    /// # Errors
    /// When this process may open no more descriptors.
    pub(crate) fn descriptors(&self) -> Result<Vec<Named>> {
        self.set().copies()
    }

    /// What they are called.
    pub(crate) fn descriptor_names(&self) -> Vec<String> {
        self.set().names()
    }

    /// Attaches what is attached no longer; the names of these programs, each with what came of it.
    pub(crate) fn attach_again(&self) -> Vec<(&'static str, Result<Named>)> {
        let mut set = self.set();
        let mended = self
            .programs
            .iter()
            .filter_map(|&name| set.attach_again_if_detached(name).transpose().map(|link| (name, link)));
        mended.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self) -> MutexGuard<'_, Set> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use monitor_common::record::Record;

    /// The code with which a process ends that nobody watches.
    fn ends(rings: &mut Rings) -> bool {
        let child = std::process::Command::new("/bin/sh").args(["-c", "exit 7"]).spawn().expect("a shell");
        let pid = child.id();
        drop(child.wait_with_output());
        let mut found = false;
        while let Some((_, bytes)) = rings.bulk.records.next() {
            found |= matches!(Record::decode(bytes), Ok(Record::Exit(exit)) if exit.process.tgid == pid);
        }
        found
    }

    #[test]
    fn what_was_skipped_is_counted_by_what_is_lost() {
        let programs = [
            ("process_exit", 7),
            ("process_exit_again", 2),
            ("process_exec", 10),
            ("process_fork", 20),
            ("cgroup_mkdir", 100),
            ("cgroup_rename", 200),
            ("signal_generate", 1000),
            ("oom_mark_task", 2000),
        ]
        .map(|(name, skipped)| Cost { name, runs: 0, time: Duration::ZERO, skipped });
        let skipped = Skipped { exits: 2, lives: 30, cgroups: 300, evidence: 3000 };
        assert_eq!(Skipped::of(&programs), skipped);
        assert_eq!(Skipped::of(&programs[..1]), Skipped { exits: 7, ..Skipped::default() });
        assert_eq!(Skipped::of(&[]), Skipped::default());
    }

    #[test]
    fn a_program_whose_link_has_gone_is_attached_again() {
        let hierarchy = Hierarchy::detect().ok();
        let options = Options {
            btf: None,
            hierarchy: hierarchy.as_ref(),
            report_clean: false,
            failed_allocations: layout::Watched::Never,
        };
        // Needs rights that not everybody who runs unit tests has.
        let Ok((kernel, mut rings)) = load(options, Vec::new()) else { return };
        assert!(ends(&mut rings) && kernel.attach_again().is_empty());
        kernel.set().detach();
        assert!(!ends(&mut rings), "nothing is attached");
        let mended: Vec<_> = kernel.attach_again().into_iter().filter(|(_, link)| link.is_ok()).collect();
        assert_eq!(mended.len(), kernel.programs().len());
        assert!(ends(&mut rings) && kernel.attach_again().is_empty());
    }

    /// Whether the clean ends of some processes in a cgroup are reported; all must be, or none.
    fn reported(rings: &mut Rings, hierarchy: &Hierarchy, cgroup: &str) -> bool {
        let procs = hierarchy.directory(cgroup).join("cgroup.procs");
        // More than one, for each processor to have met it.
        let pids: [u32; 8] = std::array::from_fn(|_| {
            let script = format!("echo $$ > {}; exit 0", procs.display());
            let child = std::process::Command::new("/bin/sh").args(["-c", &script]).spawn().expect("a shell");
            let pid = child.id();
            assert!(child.wait_with_output().expect("it can be waited for").status.success());
            pid
        });
        let mut seen = 0;
        while let Some((_, bytes)) = rings.critical.records.next() {
            seen += usize::from(
                matches!(Record::decode(bytes), Ok(Record::Exit(exit)) if pids.contains(&exit.process.tgid)),
            );
        }
        assert!(seen == 0 || seen == pids.len(), "{seen} of {}", pids.len());
        seen > 0
    }

    #[test]
    fn a_cgroup_that_is_remembered_as_not_watched_is_watched_when_it_shall_be() {
        let Ok(hierarchy) = Hierarchy::detect() else { return };
        let options = Options {
            btf: None,
            hierarchy: Some(&hierarchy),
            report_clean: false,
            failed_allocations: layout::Watched::Never,
        };
        let Ok((kernel, mut rings)) = load(options, Vec::new()) else { return };
        let top = format!("/defib-unit-{}", std::process::id());
        let inside = |name: &str| format!("{top}/{name}");
        if hierarchy.create(&inside("a")).is_err() {
            return;
        }
        hierarchy.create(&inside("watched")).expect("the parent could be made");
        let id = |path: &str| hierarchy.id_of(path).expect("it can be looked at").expect("it is there");

        assert!(!reported(&mut rings, &hierarchy, &inside("a")));
        kernel.watch(id(&inside("a")), 1).expect("room");
        assert!(reported(&mut rings, &hierarchy, &inside("a")));
        kernel.unwatch(id(&inside("a")));
        assert!(!reported(&mut rings, &hierarchy, &inside("a")));

        // A new one in a watched one may be where another was that is remembered.
        kernel.watch(id(&inside("watched")), 1).expect("room");
        for round in 0..10 {
            let (other, child) = (inside("b"), inside(&format!("watched/{round}")));
            hierarchy.create(&other).expect("a cgroup");
            assert!(!reported(&mut rings, &hierarchy, &other));
            hierarchy.remove(&other).expect("it is empty");
            hierarchy.create(&child).expect("a cgroup");
            assert!(reported(&mut rings, &hierarchy, &child), "in round {round}");
            hierarchy.remove(&child).expect("it is empty");
        }

        // What the programs add is counted, however it goes.
        let inherited = || kernel.lock().inherited.get(&0, 0).expect("it can be read");
        let children: Vec<_> = ["c", "d", "e"].map(|name| inside(&format!("watched/{name}"))).into();
        for child in &children {
            hierarchy.create(child).expect("a cgroup");
        }
        assert_eq!(inherited(), 3);
        kernel.watch(id(&children[0]), 2).expect("room");
        kernel.unwatch(id(&children[0]));
        kernel.unwatch(id(&children[0]));
        assert_eq!(inherited(), 2, "once, and although it became another service's");
        hierarchy.remove(&children[1]).expect("it is empty");
        assert_eq!(inherited(), 1);
        kernel.lock().inherited.set(0, 8192, 0).expect("it can be written");
        kernel.recount().expect("both maps can be used");
        assert_eq!(inherited(), 1);
        for path in [&children[0], &children[2], &inside("a"), &inside("watched"), &top] {
            hierarchy.remove(path).expect("it is empty");
        }
    }
}

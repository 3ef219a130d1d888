//! The programs that watch an allocator: loaded for a trace, attached to one process for moments.

use std::{
    io,
    num::NonZeroU32,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf},
    programs::{
        UProbe,
        uprobe::{UProbeAttachLocation, UProbeLink, UProbeScope},
    },
};
use aya_obj::{Object, generated::bpf_insn};
use monitor_common::allocation::{self, Kind, Record, SLOTS, role};

use super::{
    bpf,
    load::{OBJECT, explain, permitted},
};
use crate::host::privilege::Effective;

/// What a probe is for; each has a program of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    /// `malloc(size)`.
    Allocate,
    /// `calloc(count, size)`.
    AllocateArray,
    /// `aligned_alloc(alignment, size)`.
    AllocateAligned,
    /// `posix_memalign(out, alignment, size)`.
    AllocateOut,
    /// `realloc(memory, size)`.
    Reallocate,
    /// `free(memory)`.
    Release,
    /// The functions before, release apart, have returned. The process must bear that its address to return to is changed.
    Returned,
    /// A `ret` of theirs.
    Allocated,
    /// Go's `runtime.mallocgc`.
    AllocateGo,
    /// A `ret` of that.
    AllocatedGo,
    /// `mmap(address, length, protection, flags, file, offset)`.
    Map,
    /// `mremap(address, length, new length, flags)`.
    Remap,
    /// `sbrk(length)`.
    Extend,
    /// These three have returned, likewise.
    MapReturned,
    /// A `ret` of theirs.
    Mapped,
    /// `munmap(address, length)`.
    Unmap,
}

impl Role {
    /// The number by which the program for many places is told, and the program for one.
    fn told(self) -> (u64, &'static str) {
        match self {
            Self::Allocate => (role::ALLOCATE, "probed_allocate"),
            Self::AllocateArray => (role::ALLOCATE_ARRAY, "probed_allocate_array"),
            Self::AllocateAligned => (role::ALLOCATE_ALIGNED, "probed_allocate_aligned"),
            Self::AllocateOut => (role::ALLOCATE_OUT, "probed_allocate_out"),
            Self::Reallocate => (role::REALLOCATE, "probed_reallocate"),
            Self::Returned => (role::RETURNED, "probed_returned"),
            Self::Release => (role::RELEASE, "probed_release"),
            Self::Allocated => (role::ALLOCATED, "probed_allocated"),
            Self::AllocateGo => (role::ALLOCATE_GO, "probed_allocate_go"),
            Self::AllocatedGo => (role::ALLOCATED_GO, "probed_allocated_go"),
            Self::Map => (role::MAP, "probed_map"),
            Self::Remap => (role::REMAP, "probed_remap"),
            Self::Extend => (role::EXTEND, "probed_extend"),
            Self::MapReturned => (role::MAP_RETURNED, "probed_map_returned"),
            Self::Mapped => (role::MAPPED, "probed_mapped"),
            Self::Unmap => (role::UNMAP, "probed_unmap"),
        }
    }

    fn is_return_probe(self) -> bool {
        matches!(self, Self::Returned | Self::MapReturned)
    }
}

/// The program for many places.
const MANY: &str = "probed";

/// Maps that only the agent proper needs, made as small as the kernel lets them be.
const UNUSED: [(&str, u32); 8] = [
    ("CRITICAL", 4096),
    ("BULK", 4096),
    ("WATCHED", 1),
    ("SIGNALS", 1),
    ("REFUSED", 1),
    ("OOM_REQUESTS", 1),
    ("ENDED", 1),
    ("STACKS", 1),
];

/// Room for an agent that loads the object and traces nothing.
pub(super) const UNUSED_BY_AGENT: [(&str, u32); 4] =
    [("ALLOCATIONS", 4096), ("BEGUN", 1), ("FOLLOWED", 1), ("KINDS", 1)];

/// As the programs know a followed sample.
#[repr(C)]
#[derive(Clone, Copy)]
struct Memory {
    tgid: u64,
    address: u64,
}

// SAFETY: two numbers of eight bytes, so no padding between or behind.
unsafe impl aya::Pod for Memory {}

/// As the programs keep it.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Seen(Kind);

// SAFETY: two numbers of four bytes, so no padding between or behind.
unsafe impl aya::Pod for Seen {}

/// The loaded programs.
pub(crate) struct Allocations {
    ebpf: Ebpf,
    /// The program for many places at once, where the kernel has that.
    many: Option<OwnedFd>,
    /// Whether it was attached once.
    many_works: bool,
    ring: RingBuf<MapData>,
    share: Array<MapData, u32>,
    followed: HashMap<MapData, Memory, u64>,
    kinds: HashMap<MapData, u64, Seen>,
    counts: PerCpuArray<MapData, u64>,
}

/// What the programs have counted since they were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Calls for memory.
    pub(crate) calls: u64,
    /// Those that were sampled.
    pub(crate) sampled: u64,
    /// Times that a probe was hit, also such as tell nothing: of a call that began before there were probes.
    pub(crate) hits: u64,
    /// Times that a probe for mappings was hit.
    pub(crate) mapping_hits: u64,
    /// Mappings that were told of.
    pub(crate) mappings: u64,
    /// Records that found no room in the ring, and samples that found none among those that are followed.
    pub(crate) lost: u64,
}

impl Allocations {
    /// Loads the programs; nothing is attached.
    ///
    /// # Errors
    /// When the kernel refuses them, or this process has no right to.
    pub(crate) fn load() -> Result<Self> {
        permitted()?;
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        for (map, entries) in UNUSED {
            loader.map_max_entries(map, entries);
        }
        let loaded = loader.load(&OBJECT.0).map_err(|error| explain(error.into()));
        let mut ebpf = loaded.context("cannot load the programs that watch an allocator")?;
        let many =
            load_for_many(&ebpf).inspect_err(|error| tracing::debug!("probes are attached one by one: {error:#}")).ok();
        let mut map = |name: &str| ebpf.take_map(name).with_context(|| format!("the object has no map {name}"));
        Ok(Self {
            ring: map("ALLOCATIONS")?.try_into()?,
            share: map("SHARE")?.try_into()?,
            followed: map("FOLLOWED")?.try_into()?,
            kinds: map("KINDS")?.try_into()?,
            counts: map("ALLOCATION_COUNTS")?.try_into()?,
            ebpf,
            many,
            many_works: false,
        })
    }

    /// Attaches no longer at many places at once: kernels before 6.10 then see only a process' first thread.
    pub(crate) fn one_by_one(&mut self) {
        self.many = None;
    }

    /// Whether probes come and go all at once. One by one, each takes some ten milliseconds to go.
    pub(crate) fn all_at_once(&self) -> bool {
        self.many.is_some()
    }

    /// Attaches probes at offsets of a file, for one process, in this order.
    ///
    /// # Errors
    /// When the process is gone, or the kernel refuses a place: it takes none where an instruction does not begin.
    pub(crate) fn attach(&mut self, file: &Path, places: &[(Role, u64)], tgid: u32) -> Result<Vec<Probe>> {
        let what = || format!("cannot watch {}", file.display());
        if let Some(program) = &self.many {
            match attach_many(program, file, places, tgid) {
                Ok(probes) => {
                    self.many_works = true;
                    return Ok(probes);
                }
                Err(error) if self.many_works => return Err(explain(error.into()).context(what())),
                // Kernels that do not know this yet load its program all the same.
                Err(error) => {
                    tracing::debug!("probes are attached one by one: {error}");
                    self.many = None;
                }
            }
        }
        let process = NonZeroU32::new(tgid).context("there is no process 0")?;
        let mut probes = Vec::new();
        for &(role, offset) in places {
            let (_, name) = role.told();
            let program = self.ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
            let program: &mut UProbe = program.try_into()?;
            if program.fd().is_err() {
                program.load().map_err(|error| explain(error.into())).with_context(|| format!("cannot load {name}"))?;
            }
            let id = program
                .attach(UProbeAttachLocation::AbsoluteOffset(offset), file, UProbeScope::OneProcess(process))
                .map_err(|error| name_the_right(explain(error.into())))
                .with_context(what)?;
            probes.push((rank(places, role, offset), Probe::One(program.take_link(id)?)));
        }
        // The last go first.
        probes.sort_by_key(|&(rank, _)| rank);
        Ok(probes.into_iter().map(|(_, probe)| probe).collect())
    }

    /// Samples this share of calls, 0 to 1.
    ///
    /// # Errors
    /// When the map is gone.
    pub(crate) fn sample(&mut self, share: f64) -> Result<()> {
        let of_all = (share.clamp(0.0, 1.0) * f64::from(u32::MAX)) as u32;
        self.share.set(0, of_all, 0).context("cannot say how many calls are sampled")
    }

    /// Follows a sample no longer; `found_gone`: its memory has come back, which the programs had not seen.
    pub(crate) fn forget(&mut self, tgid: u32, address: u64, found_gone: bool) {
        let memory = Memory { tgid: tgid.into(), address };
        // It may have gone by itself.
        if let Ok(call) = self.followed.get(&memory, 0)
            && self.followed.remove(&memory).is_ok()
            && found_gone
            && let Ok(Seen(mut kind)) = self.kinds.get(&call, 0)
        {
            kind.gone += 1;
            // What the programs count at the same moment may be lost: a share that is a little wrong, and known for each sample.
            self.kinds.insert(call, Seen(kind), 0).ok();
        }
    }

    /// Hands all that has come to `take`. Returns how many records were not understood.
    pub(crate) fn drain(&mut self, mut take: impl FnMut(Record<'_>)) -> u64 {
        let mut malformed = 0;
        while let Some(bytes) = self.ring.next() {
            match Record::decode(&bytes) {
                Some(record) => take(record),
                None => malformed += 1,
            }
        }
        malformed
    }

    /// What was counted.
    ///
    /// # Errors
    /// When the map is gone.
    pub(crate) fn counts(&self) -> Result<Counts> {
        let mut sums = [0; SLOTS as usize];
        for (slot, sum) in sums.iter_mut().enumerate() {
            *sum = self.counts.get(&(slot as u32), 0).context("cannot read the counts")?.iter().sum::<u64>();
        }
        let at = |slot: u32| sums[slot as usize];
        Ok(Counts {
            calls: at(allocation::CALLS),
            sampled: at(allocation::SAMPLED),
            hits: at(allocation::HITS),
            mapping_hits: at(allocation::MAPPING_HITS),
            mappings: at(allocation::MAPPINGS),
            lost: at(allocation::NO_RING) + at(allocation::NO_ROOM),
        })
    }
}

/// The place of a probe among those that go one by one, the highest first: what is hit most often. A return probe stops its process where
/// the function begins, too.
fn rank(places: &[(Role, u64)], role: Role, offset: u64) -> u8 {
    match role {
        Role::Allocate | Role::AllocateGo => 3,
        Role::Returned if places.contains(&(Role::Allocate, offset)) => 2,
        Role::Release => 1,
        _ => 0,
    }
}

/// Before probes could be attached to many places at once (6.6), the kernel left them to CAP_SYS_ADMIN (`perf_uprobe_event_init`).
fn name_the_right(error: anyhow::Error) -> anyhow::Error {
    if is_denied(&error) && Effective::of_self().is_ok_and(|rights| !rights.is_admin()) {
        return error.context(
            "this kernel attaches probes for CAP_SYS_ADMIN only; run 'defib trace' from a root shell, or a kernel from 6.6 on",
        );
    }
    error
}

fn is_denied(error: &anyhow::Error) -> bool {
    let by_kernel = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    by_kernel.is_some_and(|cause| cause.kind() == io::ErrorKind::PermissionDenied)
}

/// Attaches at all these places, returns apart.
fn attach_many(program: &OwnedFd, file: &Path, places: &[(Role, u64)], tgid: u32) -> io::Result<Vec<Probe>> {
    let mut probes = Vec::new();
    for returns in [true, false] {
        let of = places.iter().filter(|(role, _)| role.is_return_probe() == returns);
        let of: Vec<_> = of.map(|&(role, offset)| (offset, role.told().0)).collect();
        if !of.is_empty() {
            probes.push(Probe::Many(bpf::attach_probe(program, file, &of, tgid, returns)?));
        }
    }
    Ok(probes)
}

/// Loads the program for many places. The loader knows no such program, but the same object and how its maps are put in.
fn load_for_many(ebpf: &Ebpf) -> Result<OwnedFd> {
    let mut object = Object::parse(&OBJECT.0).context("cannot read the object")?;
    let text = object.functions.keys().map(|&(section, _)| section).collect();
    let mut maps = Vec::new();
    for (name, map) in &object.maps {
        // Maps that are none of its own it does not refer to.
        let data = match ebpf.map(name) {
            Some(Map::RingBuf(data) | Map::Array(data) | Map::PerCpuArray(data)) => data,
            Some(Map::HashMap(data) | Map::LruHashMap(data)) => data,
            _ => continue,
        };
        maps.push((name.clone(), data.fd().as_fd().as_raw_fd(), map.clone()));
    }
    object.programs.retain(|name, _| name == MANY);
    let program = object.programs.get(MANY).with_context(|| format!("the object has no program {MANY}"))?;
    let key = program.function_key();
    object.functions.retain(|&other, _| other == key);
    let maps = maps.iter().map(|(name, descriptor, map)| (name.as_str(), *descriptor, map));
    object.relocate_maps(maps, &text).context("cannot put in its maps")?;
    let function = object.functions.get(&key).context("the program has no code")?;
    let code: Vec<u8> = function.instructions.iter().flat_map(bytes_of).collect();
    bpf::load_probe(&code).map_err(|error| explain(error.into()))
}

/// An instruction as the kernel reads it (uapi bpf.h, `struct bpf_insn`).
fn bytes_of(instruction: &bpf_insn) -> [u8; 8] {
    let registers = instruction.dst_reg() | instruction.src_reg() << 4;
    let mut bytes = [instruction.code, registers, 0, 0, 0, 0, 0, 0];
    bytes[2..4].copy_from_slice(&instruction.off.to_ne_bytes());
    bytes[4..8].copy_from_slice(&instruction.imm.to_ne_bytes());
    bytes
}

/// Attached probes, until they are dropped.
#[derive(Debug)]
pub(crate) enum Probe {
    /// All of a file.
    Many(#[expect(dead_code, reason = "it is held")] OwnedFd),
    /// One.
    One(#[expect(dead_code, reason = "it is held")] UProbeLink),
}

#[cfg(test)]
mod tests {
    use aya::{programs::ProgramError, sys::SyscallError};

    use super::*;

    #[test]
    fn a_refusal_for_want_of_rights_is_told_from_others() {
        const EACCES: i32 = 13;
        const ESRCH: i32 = 3;
        let refused = |errno| {
            let io_error = io::Error::from_raw_os_error(errno);
            explain(ProgramError::SyscallError(SyscallError { call: "perf_event_open", io_error }).into())
        };
        assert!(is_denied(&refused(EACCES)) && !is_denied(&refused(ESRCH)));
    }
}

//! Records of the programs that watch an allocator: samples of memory handed out, releases of sampled memory, and, as they are few,
//! all mappings that the kernel hands out.
//!
//! Only [`Sample`] is large: it carries part of the stack, so that user space can unwind code without frame pointers with the tables
//! of its file.

use bytemuck::{Pod, Zeroable};

use crate::stack::{STACK, UserStack};

/// A [`Sample`] of an allocation.
pub const KIND_SAMPLE: u32 = 1;
/// A [`Gone`] of sampled memory.
pub const KIND_GONE: u32 = 2;
/// A [`Sample`] of a mapping; every mapping has one.
pub const KIND_MAPPED: u32 = 3;
/// A [`Gone`] of a mapping or of a part of one.
pub const KIND_UNMAPPED: u32 = 4;

/// Memory that an allocator has handed out.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Sample {
    /// [`KIND_SAMPLE`] or [`KIND_MAPPED`].
    pub kind: u32,
    /// Bytes of `stack` that were read.
    pub stack_len: u32,
    /// Process id.
    pub tgid: u32,
    /// Thread id.
    pub tid: u32,
    /// Share of calls like this that is sampled, of 2^32.
    pub share: u32,
    /// Zero.
    pub zero: u32,
    /// Kind of the call, numbered by the programs.
    pub call: u64,
    /// End of the call, CLOCK_BOOTTIME nanoseconds.
    pub time_ns: u64,
    /// Address of the memory.
    pub address: u64,
    /// Bytes requested.
    pub size: u64,
    /// Address of the called function.
    pub ip: u64,
    /// Return address of the call.
    pub caller: u64,
    /// Stack pointer after the return.
    pub sp: u64,
    /// Frame pointer after the return.
    pub bp: u64,
    /// Stack from `sp` upwards.
    pub stack: UserStack,
}

/// Release of sampled memory or of a mapping.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Gone {
    /// [`KIND_GONE`] or [`KIND_UNMAPPED`].
    pub kind: u32,
    /// Process id.
    pub tgid: u32,
    /// Address of the memory.
    pub address: u64,
    /// Sampled memory: 1 when the release was seen, 0 when it was missed and the address handed out again. Mapping: bytes released.
    pub released: u64,
}

/// A record.
#[derive(Clone, Copy)]
pub enum Record<'a> {
    /// Sampled memory was handed out.
    Sample(&'a Sample),
    /// Sampled memory was released.
    Gone(Gone),
    /// A mapping was handed out.
    Mapped(&'a Sample),
    /// A mapping or a part of one was released.
    Unmapped(Gone),
}

impl<'a> Record<'a> {
    /// Reads a record; `None` when `bytes` is no record. `bytes` must be aligned to eight bytes, as records in a ring are.
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let kind = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
        let sample = || {
            let sample: &Sample = bytemuck::try_from_bytes(bytes.get(..size_of::<Sample>())?).ok()?;
            (sample.stack_len as usize <= STACK).then_some(sample)
        };
        let gone = || bytemuck::try_pod_read_unaligned(bytes.get(..size_of::<Gone>())?).ok();
        match kind {
            KIND_SAMPLE => sample().map(Self::Sample),
            KIND_GONE => gone().map(Self::Gone),
            KIND_MAPPED => sample().map(Self::Mapped),
            KIND_UNMAPPED => gone().map(Self::Unmapped),
            _ => None,
        }
    }
}

/// Counter slot: allocator calls that began.
pub const CALLS: u32 = 0;
/// Counter slot: samples sent.
pub const SAMPLED: u32 = 1;
/// Counter slot: records without room in the ring.
pub const NO_RING: u32 = 2;
/// Counter slot: samples without room in the map of sampled memory.
pub const NO_ROOM: u32 = 3;
/// Counter slot: runs of the allocator programs, one for each probe hit.
pub const HITS: u32 = 4;
/// Counter slot: runs of the mapping programs, one for each probe hit.
pub const MAPPING_HITS: u32 = 5;
/// Counter slot: mappings sent.
pub const MAPPINGS: u32 = 6;
/// Number of slots.
pub const SLOTS: u32 = 7;

/// Roles of probes: the number that tells the program for many places what was hit.
pub mod role {
    /// `malloc(size)` and its like.
    pub const ALLOCATE: u64 = 1;
    /// `calloc(count, size)`.
    pub const ALLOCATE_ARRAY: u64 = 2;
    /// `aligned_alloc(alignment, size)`.
    pub const ALLOCATE_ALIGNED: u64 = 3;
    /// `posix_memalign(out, alignment, size)`.
    pub const ALLOCATE_OUT: u64 = 4;
    /// `realloc(memory, size)`.
    pub const REALLOCATE: u64 = 5;
    /// Return probe of an allocating function.
    pub const RETURNED: u64 = 6;
    /// `free(memory)`.
    pub const RELEASE: u64 = 7;
    /// A `ret` of an allocating function.
    pub const ALLOCATED: u64 = 8;
    /// Go's `runtime.mallocgc(size, type, zero)`.
    pub const ALLOCATE_GO: u64 = 9;
    /// A `ret` of `runtime.mallocgc`.
    pub const ALLOCATED_GO: u64 = 10;
    /// `mmap(address, length, protection, flags, file, offset)`.
    pub const MAP: u64 = 11;
    /// `mremap(address, length, new length, flags)`.
    pub const REMAP: u64 = 12;
    /// `sbrk(length)`.
    pub const EXTEND: u64 = 13;
    /// Return probe of `mmap`, `mremap` or `sbrk`.
    pub const MAP_RETURNED: u64 = 14;
    /// A `ret` of `mmap`, `mremap` or `sbrk`.
    pub const MAPPED: u64 = 15;
    /// `munmap(address, length)`.
    pub const UNMAP: u64 = 16;
}

/// Sampled calls of one kind, and their releases.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kind {
    /// Calls that were sampled.
    pub sampled: u32,
    /// Sampled calls whose memory was released.
    pub gone: u32,
}

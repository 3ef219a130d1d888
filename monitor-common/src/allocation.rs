//! What travels from the programs that watch an allocator: samples of memory that was handed out, and word of those that came back.
//! And mappings that the kernel hands out: these are few, so each travels.
//!
//! Only [`Sample`] is large, for the part of the stack that comes with it: code without frame pointers is unwound in user space,
//! with the tables that its file has.

use bytemuck::{Pod, Zeroable};

use crate::stack::{STACK, UserStack};

/// A [`Sample`].
pub const KIND_SAMPLE: u32 = 1;
/// A [`Gone`].
pub const KIND_GONE: u32 = 2;
/// A [`Sample`] that is none: every mapping has one.
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
    /// Process.
    pub tgid: u32,
    /// Thread.
    pub tid: u32,
    /// Of 2^32 calls like this, how many are sampled.
    pub share: u32,
    /// Nothing.
    pub zero: u32,
    /// The kind of its call, as the programs number them.
    pub call: u64,
    /// CLOCK_BOOTTIME, nanoseconds.
    pub time_ns: u64,
    /// Where the memory is.
    pub address: u64,
    /// How much was asked for, bytes.
    pub size: u64,
    /// The allocator's function.
    pub ip: u64,
    /// The address that it returns to.
    pub caller: u64,
    /// The stack pointer when it has returned.
    pub sp: u64,
    /// The frame pointer then.
    pub bp: u64,
    /// The stack from `sp` on.
    pub stack: UserStack,
}

/// Memory of a sample that is its owner's no longer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Gone {
    /// [`KIND_GONE`] or [`KIND_UNMAPPED`].
    pub kind: u32,
    /// Process.
    pub tgid: u32,
    /// Where it was.
    pub address: u64,
    /// Of memory: 1: released before our eyes. 0: handed out again, so it had been. Of a mapping: how many bytes.
    pub released: u64,
}

/// A record.
#[derive(Clone, Copy)]
pub enum Record<'a> {
    /// See [`Sample`].
    Sample(&'a Sample),
    /// See [`Gone`].
    Gone(Gone),
    /// A mapping.
    Mapped(&'a Sample),
    /// A mapping or a part of one that is none any more.
    Unmapped(Gone),
}

impl<'a> Record<'a> {
    /// Reads a record; `None` when it is none of ours. `bytes` must be aligned to eight, as records in a ring are.
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

/// Slots of the per-CPU counters: calls that began, samples, records that found no room in the ring, and samples that found none among
/// those that are followed.
pub const CALLS: u32 = 0;
/// See [`CALLS`].
pub const SAMPLED: u32 = 1;
/// See [`CALLS`].
pub const NO_RING: u32 = 2;
/// See [`CALLS`].
pub const NO_ROOM: u32 = 3;
/// Runs of the programs for the allocator: each is a probe that was hit.
pub const HITS: u32 = 4;
/// The same of the programs for mappings, and mappings that were told of.
pub const MAPPING_HITS: u32 = 5;
/// See [`MAPPING_HITS`].
pub const MAPPINGS: u32 = 6;
/// Number of slots.
pub const SLOTS: u32 = 7;

/// What a probe is for, as it is told to the program for many places.
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
    /// The functions before have returned.
    pub const RETURNED: u64 = 6;
    /// `free(memory)`.
    pub const RELEASE: u64 = 7;
    /// A `ret` of them.
    pub const ALLOCATED: u64 = 8;
    /// Go's `runtime.mallocgc(size, type, zero)`.
    pub const ALLOCATE_GO: u64 = 9;
    /// A `ret` of that.
    pub const ALLOCATED_GO: u64 = 10;
    /// `mmap(address, length, protection, flags, file, offset)`.
    pub const MAP: u64 = 11;
    /// `mremap(address, length, new length, flags)`.
    pub const REMAP: u64 = 12;
    /// `sbrk(length)`.
    pub const EXTEND: u64 = 13;
    /// The functions before have returned.
    pub const MAP_RETURNED: u64 = 14;
    /// A `ret` of them.
    pub const MAPPED: u64 = 15;
    /// `munmap(address, length)`.
    pub const UNMAP: u64 = 16;
}

/// How long the memory of one kind of calls is held.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kind {
    /// Calls that were sampled.
    pub sampled: u32,
    /// Those whose memory has come back.
    pub gone: u32,
}

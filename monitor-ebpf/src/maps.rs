//! Every map and global of the programs but those of [`crate::allocation`], and access to per-CPU state.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use monitor_common::{
    counter::{CPU_WORDS, SLOTS, UNWATCHED},
    record::{Process, Sender},
    stack::{self, CrashStack},
};

/// OOM marks, OOM deaths, and everything about watched services. A record's room is freed once its results are on disk, which may take
/// a second on a busy disk; the ring holds some seven thousand deaths.
#[map]
pub(crate) static CRITICAL: RingBuf = RingBuf::with_byte_size(2 * 1024 * 1024, 0);

/// Other abnormal deaths. A storm of them fills this ring and leaves the critical one alone.
#[map]
pub(crate) static BULK: RingBuf = RingBuf::with_byte_size(512 * 1024, 0);

/// Per-CPU state of the exit programs.
#[map]
pub(crate) static COUNTERS: PerCpuArray<Cpu> = PerCpuArray::with_max_entries(1, 0);

/// State of one CPU, in one value so that an exit touches few cache lines; the agent reads it as words.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Cpu {
    /// Exit outcomes and losses, by slot of [`monitor_common::counter`].
    pub(crate) counters: [u64; SLOTS as usize],
    /// Note of the latest unwatched cgroup ([`crate::watched`]).
    pub(crate) latest: u64,
    /// Notes of other unwatched cgroups.
    pub(crate) unwatched: [u64; UNWATCHED],
    /// Task that the first copy of the exit program handled last; unused without a second copy.
    pub(crate) handled: u64,
}

const _: () = assert!(size_of::<Cpu>() == CPU_WORDS * 8, "what the agent reads");

/// Watched cgroups by id. The value names the service, the same for all its cgroups; cgroups made inside get a copy with
/// [`monitor_common::watched::INHERITS`] set.
///
/// A new epoch of [`crate::watched`] follows each addition.
#[map]
pub(crate) static WATCHED: HashMap<u64, u32> = HashMap::with_max_entries(16384, 0);

/// Number of cgroups in [`WATCHED`] that the programs added: those made inside watched ones.
#[map]
pub(crate) static INHERITED: Array<u64> = Array::with_max_entries(1, 0);

/// Deaths of services in the current window of [`crate::crowd`]. Services with the same slot share it.
#[map]
pub(crate) static CROWDS: Array<Window> = Array::with_max_entries(SERVICES, 0);

/// Slots of [`CROWDS`]; a power of two.
pub(crate) const SERVICES: u32 = 1024;

/// The epoch of [`crate::watched`]. A global and not a map: every exit reads it, and a global takes no look-up. The agent finds it as
/// the only one in the section of globals that begin as zero.
#[unsafe(no_mangle)]
pub(crate) static mut EPOCH: u64 = 0;

/// 1 while the reader of a ring polls and need not be woken: slot 0 critical, slot 1 bulk.
#[map]
pub(crate) static AWAKE: Array<u32> = Array::with_max_entries(2, 0);

/// The last two recorded signals of a process.
#[map]
pub(crate) static SIGNALS: LruHashMap<Identity, Signals> = LruHashMap::with_max_entries(16384, 0);

/// The last signal and the one before, for example a kill and the request to end before it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Signals {
    pub(crate) last: Sender,
    pub(crate) before: Sender,
}

/// The last process on this CPU to which the kernel sent `SIGKILL`. The OOM killer marks its victim right after, on the same CPU, and
/// the older prototype of the mark has only a thread id.
#[map]
pub(crate) static KERNEL_KILL: PerCpuArray<Killed> = PerCpuArray::with_max_entries(1, 0);

/// A process and the address of its task.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Killed {
    pub(crate) process: Process,
    pub(crate) task: u64,
}

/// Refused requests for memory, by process.
#[map]
pub(crate) static REFUSED: LruHashMap<Identity, Refused> = LruHashMap::with_max_entries(4096, 0);

/// Refused requests of one process; time and bytes of the last.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Refused {
    pub(crate) kernel_ns: u64,
    pub(crate) bytes: u64,
    pub(crate) count: u64,
}

/// Crash sites that this CPU has taken in the current window of [`crate::crash`].
#[map]
pub(crate) static SITES: PerCpuArray<Window> = PerCpuArray::with_max_entries(1, 0);

/// Stacks of crashing processes: the first half for unwatched processes, the second for watched services.
#[map]
pub(crate) static STACKS: Array<CrashStack> = Array::with_max_entries(2 * stack::SLOTS, 0);

/// Number of stacks written into each half. Two CPUs that count at the same time may use one slot; the agent sees that the stack is
/// incomplete or of another process.
#[map]
pub(crate) static STACKS_WRITTEN: Array<u32> = Array::with_max_entries(2, 0);

/// A span of time and the budget used in it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Window {
    pub(crate) begin_ns: u64,
    pub(crate) taken: u64,
}

/// Current requests to the OOM killer, by requesting thread.
#[map]
pub(crate) static OOM_REQUESTS: LruHashMap<u64, OomRequest> = LruHashMap::with_max_entries(256, 0);

/// A request to the OOM killer.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct OomRequest {
    pub(crate) kernel_ns: u64,
    /// Address of the `struct oom_control` on the thread's stack.
    pub(crate) control: u64,
    /// Id of the cgroup whose limit was hit; 0 for the host.
    pub(crate) limit_owner: u64,
    /// Limit of that cgroup, pages; 0 when it cannot be read.
    pub(crate) limit_pages: u64,
    pub(crate) sysrq: u64,
}

/// Processes whose end was seen: before 6.16 two threads may both seem to be the last.
#[map]
pub(crate) static ENDED: LruHashMap<Identity, u8> = LruHashMap::with_max_entries(4096, 0);

/// The identity of a process.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) start_ns: u64,
    pub(crate) tgid: u64,
}

/// State of this CPU. A program runs on one CPU from start to end.
#[inline(always)]
pub(crate) fn cpu() -> Option<*mut Cpu> {
    COUNTERS.get_ptr_mut(0)
}

/// Adds one to this CPU's slot.
#[inline(always)]
pub(crate) fn count(slot: u32) {
    if let Some(cpu) = cpu() {
        // SAFETY: the slot belongs to this CPU. Where a program can be preempted (7.0 and newer), its second copy may run between the
        // load and the store and lose one count; an atomic add would slow every exit on every kernel.
        unsafe { (*cpu).counters[slot as usize] += 1 };
    }
}

//! Every map and global of the programs, and how what each CPU keeps for itself is reached.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use monitor_common::{
    counter::{CPU_WORDS, SLOTS, UNWATCHED},
    record::{Process, Sender},
    stack::{self, CrashStack},
};

/// OOM marks, OOM deaths, and everything about watched services. A record's room is given back when what it led to is on the disk,
/// which takes a second where that is busy; until then there is room for some seven thousand deaths.
#[map]
pub(crate) static CRITICAL: RingBuf = RingBuf::with_byte_size(2 * 1024 * 1024, 0);

/// Other abnormal deaths. A storm of them fills this ring and leaves the critical one alone.
#[map]
pub(crate) static BULK: RingBuf = RingBuf::with_byte_size(512 * 1024, 0);

/// All that each CPU keeps for itself at every exit.
#[map]
pub(crate) static COUNTERS: PerCpuArray<Cpu> = PerCpuArray::with_max_entries(1, 0);

/// What a CPU keeps for itself, together so that an exit meets few cache lines; the agent reads it as words.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Cpu {
    /// Exit outcomes and losses, see [`monitor_common::counter`].
    pub(crate) counters: [u64; SLOTS as usize],
    /// See [`crate::watched`].
    pub(crate) latest: u64,
    /// Likewise.
    pub(crate) unwatched: [u64; UNWATCHED],
    /// The task that the first copy of the exit program has handled last, where copies are needed.
    pub(crate) handled: u64,
}

const _: () = assert!(size_of::<Cpu>() == CPU_WORDS * 8, "what the agent reads");

/// Watched cgroups by id; the value is the same for all cgroups of a service, copied to cgroups made inside with [`crate::cgroup::INHERITS`] set.
///
/// Whoever adds one begins another epoch after it, see [`crate::watched`].
#[map]
pub(crate) static WATCHED: HashMap<u64, u32> = HashMap::with_max_entries(16384, 0);

/// How many cgroups in [`WATCHED`] the programs have added, because they were made inside watched ones.
#[map]
pub(crate) static INHERITED: Array<u64> = Array::with_max_entries(1, 0);

/// Deaths of services in the present second, see [`crate::crowd`]. Services whose slot is the same share it.
#[map]
pub(crate) static CROWDS: Array<Window> = Array::with_max_entries(SERVICES, 0);

/// Slots of [`CROWDS`]; a power of two.
pub(crate) const SERVICES: u32 = 1024;

/// The epoch, see [`crate::watched`]. A global and no map of its own, since every exit reads it: that takes no look-up. The agent
/// finds it as the only one in the section of globals that begin as zero.
#[unsafe(no_mangle)]
pub(crate) static mut EPOCH: u64 = 0;

/// 1 while the reader of a ring looks by itself and need not be woken: slot 0 critical, slot 1 bulk.
#[map]
pub(crate) static AWAKE: Array<u32> = Array::with_max_entries(2, 0);

/// The last signals worth remembering for a process.
#[map]
pub(crate) static SIGNALS: LruHashMap<Identity, Signals> = LruHashMap::with_max_entries(16384, 0);

/// The last signal, and the one before: a request to end and the kill that followed it, say.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Signals {
    pub(crate) last: Sender,
    pub(crate) before: Sender,
}

/// The last process on this CPU to which the kernel sent `SIGKILL`. The OOM killer marks its victim right after, on
/// the same CPU, and the older prototype of the mark names nothing but a thread id.
#[map]
pub(crate) static KERNEL_KILL: PerCpuArray<Killed> = PerCpuArray::with_max_entries(1, 0);

/// A process, and where the kernel keeps it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Killed {
    pub(crate) process: Process,
    pub(crate) task: u64,
}

/// Processes that asked for memory and were refused.
#[map]
pub(crate) static REFUSED: LruHashMap<Identity, Refused> = LruHashMap::with_max_entries(4096, 0);

/// Refused requests of one process.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Refused {
    pub(crate) kernel_ns: u64,
    pub(crate) bytes: u64,
    pub(crate) count: u64,
}

/// Crash sites that this CPU may still take in the present window, see [`crate::crash`].
#[map]
pub(crate) static SITES: PerCpuArray<Window> = PerCpuArray::with_max_entries(1, 0);

/// Stacks of processes that crash: the first half for those that nobody watches, the second for watched services.
#[map]
pub(crate) static STACKS: Array<CrashStack> = Array::with_max_entries(2 * stack::SLOTS, 0);

/// How many stacks were written into each half. Two CPUs that count at the same time may write into one slot; the agent sees that it
/// is not whole, or another's.
#[map]
pub(crate) static STACKS_WRITTEN: Array<u32> = Array::with_max_entries(2, 0);

/// A span of time and what was done in it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Window {
    pub(crate) begin_ns: u64,
    pub(crate) taken: u64,
}

/// Requests to the OOM killer that are under way, by the thread that makes them.
#[map]
pub(crate) static OOM_REQUESTS: LruHashMap<u64, OomRequest> = LruHashMap::with_max_entries(256, 0);

/// A request to the OOM killer.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct OomRequest {
    pub(crate) kernel_ns: u64,
    /// The `struct oom_control`, on the stack of the thread.
    pub(crate) control: u64,
    /// Id of the cgroup whose limit was met; 0: the host.
    pub(crate) limit_owner: u64,
    /// That limit in pages; 0 when it cannot be read.
    pub(crate) limit_pages: u64,
    pub(crate) sysrq: u64,
}

/// Processes whose end has been seen, where two threads may both find that they are the last (before 6.16).
#[map]
pub(crate) static ENDED: LruHashMap<Identity, u8> = LruHashMap::with_max_entries(4096, 0);

/// The identity of a process.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) start_ns: u64,
    pub(crate) tgid: u64,
}

/// What this CPU keeps for itself. The programs run on one CPU from begin to end.
#[inline(always)]
pub(crate) fn cpu() -> Option<*mut Cpu> {
    COUNTERS.get_ptr_mut(0)
}

/// Adds one to this CPU's slot.
#[inline(always)]
pub(crate) fn count(slot: u32) {
    if let Some(cpu) = cpu() {
        // SAFETY: the slot belongs to this CPU. Where a program can be preempted (7.0 and newer), its second copy may run
        // between the load and the store and lose one count; an atomic add would cost every exit on every kernel more.
        unsafe { (*cpu).counters[slot as usize] += 1 };
    }
}

//! Probes in the allocator of a traced service, attached for moments only: which memory it hands out and takes back.
//!
//! A call is noted when it begins (size requested) and finished when it ends, where the memory's address is known and the stack is as
//! at the beginning. Two kinds of probe see the end: the kernel's return probe, which replaces the return address by one of its own;
//! or probes at the `ret` instructions, for processes that a return probe might harm (on some kernels system call filters end them;
//! some languages move stacks). The second kind costs several times as much: the kernel steps over the instruction. An end belongs to
//! the call that began with the same stack pointer, so functions that the allocator calls or ends by a jump to may be probed as well.
//!
//! Functions that take memory from the kernel are probed all the time: they are called seldom, and each call counts. An allocator's
//! own calls of them are recognised later, by the stack.
//!
//! x86-64 only: the calling convention says where arguments are.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_attach_cookie, bpf_get_prandom_u32, bpf_probe_read_user},
    },
    macros::{map, uprobe, uretprobe},
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
    programs::{ProbeContext, RetProbeContext},
};
use monitor_common::allocation::{
    CALLS, Gone, HITS, KIND_GONE, KIND_MAPPED, KIND_SAMPLE, KIND_UNMAPPED, Kind, MAPPING_HITS, MAPPINGS, NO_RING,
    NO_ROOM, SAMPLED, SLOTS, Sample, role,
};

use crate::{stack, task};

/// Samples, mappings and their releases. The agent itself does not trace and loads these maps with almost no room.
#[map]
static ALLOCATIONS: RingBuf = RingBuf::with_byte_size(1024 * 1024, 0);

/// Calls that have begun, by thread.
#[map]
static BEGUN: LruHashMap<u64, Call> = LruHashMap::with_max_entries(1024, 0);

/// Sampled memory whose release has not been seen. The value is the kind of its call.
#[map]
static FOLLOWED: HashMap<Memory, u64> = HashMap::with_max_entries(8192, 0);

/// Kinds of calls, and how much of their sampled memory was released. Calls of one kind come from the same place, at the same stack
/// depth, for about the same size: mostly the same call path. The more samples of a kind are released, the fewer of its calls are
/// sampled, so that the few calls whose memory stays stand out. The agent adds the releases that it finds itself.
#[map]
static KINDS: LruHashMap<u64, Kind> = LruHashMap::with_max_entries(4096, 0);

/// Highest share of calls to sample, of 2^32.
#[map]
static SHARE: Array<u32> = Array::with_max_entries(1, 0);

/// Counters, by slot of [`monitor_common::allocation`].
#[map]
static ALLOCATION_COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(SLOTS, 0);

/// A call that has begun.
#[repr(C)]
#[derive(Clone, Copy)]
struct Call {
    size: u64,
    /// Address of the function.
    ip: u64,
    /// Stack pointer at the beginning; the return address is there.
    sp: u64,
    /// Where the function stores the memory's address, if it does not return it; else 0.
    out: u64,
}

/// `PROT_WRITE` and `MAP_ANONYMOUS` (asm-generic/mman-common.h).
const PROT_WRITE: u64 = 2;
const MAP_ANONYMOUS: u64 = 0x20;
/// Divisor of the lowest share: a kind whose memory always comes back is still sampled at 1/32 of [`SHARE`], as a leak may be among
/// its calls.
const RAREST: u64 = 32;
/// Samples of a kind above which its counts are halved, so that older ones count less.
const REMEMBERED: u32 = 4096;

/// Memory of a process.
#[repr(C)]
#[derive(Clone, Copy)]
struct Memory {
    tgid: u64,
    address: u64,
}

macro_rules! register {
    ($ctx:expr, $name:ident) => {
        // SAFETY: the context of a probe is the registers.
        unsafe { (*$ctx.regs).$name }
    };
}

/// One program for all places; the number that each was attached with tells its role. Kernels that attach many places at once (6.6 and
/// newer) detach them at once too; one by one, each takes some ten milliseconds.
#[uprobe]
fn probed(ctx: ProbeContext) -> u32 {
    // SAFETY: the helper takes the context.
    let role = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    count(if role < role::MAP { HITS } else { MAPPING_HITS });
    match role {
        role::ALLOCATE => allocate(&ctx),
        role::ALLOCATE_ARRAY => allocate_array(&ctx),
        role::ALLOCATE_ALIGNED => allocate_aligned(&ctx),
        role::ALLOCATE_OUT => allocate_out(&ctx),
        role::REALLOCATE => reallocate(&ctx),
        role::RETURNED => returned(&ctx, thread(), finish),
        role::RELEASE => release(&ctx),
        role::ALLOCATED => end(&ctx, thread(), finish),
        role::ALLOCATE_GO => allocate_go(&ctx),
        role::ALLOCATED_GO => end(&ctx, goroutine(&ctx), finish),
        role::MAP => map(&ctx),
        role::REMAP => remap(&ctx),
        role::EXTEND => extend(&ctx),
        role::MAP_RETURNED => returned(&ctx, mapper(), mapped),
        role::MAPPED => end(&ctx, mapper(), mapped),
        role::UNMAP => unmap(&ctx),
        _ => {}
    }
    0
}

macro_rules! programs {
    ($hits:ident; $($program:ident: $body:expr;)+) => {
        $(
            #[uprobe]
            fn $program(ctx: ProbeContext) -> u32 {
                count($hits);
                let body: fn(&ProbeContext) = $body;
                body(&ctx);
                0
            }
        )+
    };
}

// For kernels before 6.6: one program for each role.
programs! {
    HITS;
    probed_allocate: allocate;
    probed_allocate_array: allocate_array;
    probed_allocate_aligned: allocate_aligned;
    probed_allocate_out: allocate_out;
    probed_reallocate: reallocate;
    probed_release: release;
    probed_allocated: |ctx| end(ctx, thread(), finish);
    probed_allocate_go: allocate_go;
    probed_allocated_go: |ctx| end(ctx, goroutine(ctx), finish);
}

programs! {
    MAPPING_HITS;
    probed_map: map;
    probed_remap: remap;
    probed_extend: extend;
    probed_mapped: |ctx| end(ctx, mapper(), mapped);
    probed_unmap: unmap;
}

/// Return probe of allocators, for kernels before 6.6.
#[uretprobe]
fn probed_returned(ctx: RetProbeContext) -> u32 {
    count(HITS);
    returned(&ProbeContext::new(ctx.as_ptr()), thread(), finish);
    0
}

/// Return probe of mapping functions, for kernels before 6.6.
#[uretprobe]
fn probed_map_returned(ctx: RetProbeContext) -> u32 {
    count(MAPPING_HITS);
    returned(&ProbeContext::new(ctx.as_ptr()), mapper(), mapped);
    0
}

/// `malloc(size)` and its like.
#[inline(always)]
fn allocate(ctx: &ProbeContext) {
    begin(ctx, thread(), register!(ctx, rdi), 0);
}

/// `calloc(count, size)`.
#[inline(always)]
fn allocate_array(ctx: &ProbeContext) {
    begin(ctx, thread(), register!(ctx, rdi).wrapping_mul(register!(ctx, rsi)), 0);
}

/// `aligned_alloc(alignment, size)`.
#[inline(always)]
fn allocate_aligned(ctx: &ProbeContext) {
    begin(ctx, thread(), register!(ctx, rsi), 0);
}

/// `posix_memalign(out, alignment, size)`.
#[inline(always)]
fn allocate_out(ctx: &ProbeContext) {
    begin(ctx, thread(), register!(ctx, rdx), register!(ctx, rdi));
}

/// `realloc(memory, size)`: releases `memory`, whether it moves or not.
#[inline(always)]
fn reallocate(ctx: &ProbeContext) {
    give_up(register!(ctx, rdi));
    begin(ctx, thread(), register!(ctx, rsi), 0);
}

/// `free(memory)`.
#[inline(always)]
fn release(ctx: &ProbeContext) {
    give_up(register!(ctx, rdi));
}

/// Go's `runtime.mallocgc(size, type, zero)`: Go passes arguments in its own registers.
#[inline(always)]
fn allocate_go(ctx: &ProbeContext) {
    begin(ctx, goroutine(ctx), register!(ctx, rax), 0);
}

/// The calling goroutine (R14): it may continue on another thread.
#[inline(always)]
fn goroutine(ctx: &ProbeContext) -> u64 {
    register!(ctx, r14)
}

#[inline(always)]
fn thread() -> u64 {
    bpf_get_current_pid_tgid()
}

/// The thread as caller of a mapping function: bit 63 keeps it apart from its allocator call.
#[inline(always)]
fn mapper() -> u64 {
    thread() | 1 << 63
}

/// `mmap`: notes only writable anonymous memory.
#[inline(always)]
fn map(ctx: &ProbeContext) {
    if register!(ctx, rdx) & PROT_WRITE != 0 && register!(ctx, rcx) & MAP_ANONYMOUS != 0 {
        note(ctx, mapper(), register!(ctx, rsi), 0);
    }
}

/// `mremap`: the old mapping is gone. If the call fails, that mapping is forgotten.
#[inline(always)]
fn remap(ctx: &ProbeContext) {
    unmap(ctx);
    note(ctx, mapper(), register!(ctx, rdx), 0);
}

/// `sbrk`: moves the end of the heap. Notes only growth.
#[inline(always)]
fn extend(ctx: &ProbeContext) {
    let length = register!(ctx, rdi);
    if (1..1 << 47).contains(&length) {
        note(ctx, mapper(), length, 0);
    }
}

#[inline(always)]
fn mapped(ctx: &ProbeContext, call: &Call, back: u64, sp: u64) {
    let address = register!(ctx, rax);
    // Addresses in the last page are error codes.
    if address == 0 || address >= -4096_i64 as u64 {
        return;
    }
    let Some(mut entry) = ALLOCATIONS.reserve::<Sample>(0) else {
        count(NO_RING);
        return;
    };
    // SAFETY: the entry is as large as a `Sample`.
    unsafe { describe(ctx, entry.as_mut_ptr(), KIND_MAPPED, address, call, back, sp) };
    count(MAPPINGS);
    entry.submit(0);
}

/// `munmap(address, length)`.
#[inline(always)]
fn unmap(ctx: &ProbeContext) {
    let Some(mut entry) = ALLOCATIONS.reserve::<Gone>(0) else {
        count(NO_RING);
        return;
    };
    let (address, released) = (register!(ctx, rdi), register!(ctx, rsi));
    entry.write(Gone { kind: KIND_UNMAPPED, tgid: (bpf_get_current_pid_tgid() >> 32) as u32, address, released });
    entry.submit(0);
}

#[inline(always)]
fn begin(ctx: &ProbeContext, caller: u64, size: u64, out: u64) {
    count(CALLS);
    note(ctx, caller, size, out);
}

#[inline(always)]
fn note(ctx: &ProbeContext, caller: u64, size: u64, out: u64) {
    let call = Call { size, ip: register!(ctx, rip), sp: register!(ctx, rsp), out };
    // If a thread's earlier call never came to its end, the latest call counts.
    BEGUN.insert(caller, call, 0).ok();
}

/// What to do at the end of a call; the numbers are the return address and the stack pointer there.
type Finish = fn(&ProbeContext, &Call, u64, u64);

/// Probe at a `ret`.
#[inline(always)]
fn end(ctx: &ProbeContext, caller: u64, finish: Finish) {
    let sp = register!(ctx, rsp);
    let Some(call) = ended(caller, sp) else { return };
    finish(ctx, &call, word_at(sp), sp + 8);
}

/// Reads a word of the process; 0 when that fails.
#[inline(always)]
fn word_at(address: u64) -> u64 {
    let mut word = 0_u64;
    // SAFETY: the helper checks the address; on failure it writes zeros.
    unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, address as *const _) };
    word
}

/// Return probe: runs after the `ret`.
#[inline(always)]
fn returned(ctx: &ProbeContext, caller: u64, finish: Finish) {
    let sp = register!(ctx, rsp);
    let Some(call) = ended(caller, sp - 8) else { return };
    finish(ctx, &call, register!(ctx, rip), sp);
}

/// The call that began with this stack pointer.
#[inline(always)]
fn ended(caller: u64, sp: u64) -> Option<Call> {
    let call = BEGUN.get_ptr(caller)?;
    // SAFETY: a value of a preallocated map stays mapped; at worst it belongs to another call by now, with another stack pointer.
    let call = unsafe { *call };
    if call.sp != sp {
        return None;
    }
    BEGUN.remove(caller).ok();
    Some(call)
}

/// Samples memory just handed out, or not. `back`: the return address, with the stack pointer at `sp`.
#[inline(always)]
fn finish(ctx: &ProbeContext, call: &Call, back: u64, sp: u64) {
    let mut address = register!(ctx, rax);
    if call.out != 0 {
        if address != 0 {
            return;
        }
        address = word_at(call.out);
    }
    if address == 0 {
        return;
    }
    let memory = Memory { tgid: bpf_get_current_pid_tgid() >> 32, address };
    // SAFETY: a number, copied.
    let again = unsafe { FOLLOWED.get(memory) }.copied();
    let kind = kind(back, call);
    let share = share_of(kind);
    // SAFETY: a helper without arguments.
    if (unsafe { bpf_get_prandom_u32() } as u32) < share && follow(ctx, memory, call, kind, share, back, sp) {
        if let Some(before) = again {
            learn(before, 0, 1);
        }
        return;
    }
    if let Some(kind) = again {
        went(memory, kind, 0);
    }
}

/// The kind of a call that has returned to `back`. Stacks of threads and goroutines begin at multiples of 2 KiB.
#[inline(always)]
fn kind(back: u64, call: &Call) -> u64 {
    // Sizes in four steps for each power of two.
    let size = call.size | 4;
    let mut step = 0;
    while step < 64 && size >> step >= 8 {
        step += 1;
    }
    back ^ (step << 2 | (size >> step & 3)) << 48 ^ (call.sp & 0x7ff) << 53
}

/// Share of this kind's calls to sample, of 2^32.
#[inline(always)]
fn share_of(kind: u64) -> u32 {
    let most = u64::from(SHARE.get(0).copied().unwrap_or(0));
    let Some(known) = KINDS.get_ptr(kind) else { return most as u32 };
    // SAFETY: a value of a preallocated map stays mapped; at worst it belongs to another kind by now.
    let Kind { sampled, gone } = unsafe { *known };
    let left = u64::from(sampled.saturating_sub(gone)) + 1;
    let all = u64::from(sampled) + 1;
    let share = most * left / all;
    (if share < most / RAREST { most / RAREST } else { share }) as u32
}

/// Adds to the counts of a kind, which may be new.
#[inline(always)]
fn learn(kind: u64, sampled: u32, gone: u32) {
    match KINDS.get_ptr_mut(kind) {
        // SAFETY: as above; counts that another processor adds at the same time may be lost, and a share is a little wrong then.
        Some(known) => unsafe {
            (*known).sampled += sampled;
            (*known).gone += gone;
            if (*known).sampled > REMEMBERED {
                (*known).sampled /= 2;
                (*known).gone /= 2;
            }
        },
        None => drop(KINDS.insert(kind, Kind { sampled, gone }, 0)),
    }
}

/// Sends a sample; false when there is no room for it.
#[inline(always)]
fn follow(ctx: &ProbeContext, memory: Memory, call: &Call, kind: u64, share: u32, back: u64, sp: u64) -> bool {
    let Some(mut entry) = ALLOCATIONS.reserve::<Sample>(0) else {
        count(NO_RING);
        return false;
    };
    if FOLLOWED.insert(memory, kind, 0).is_err() {
        count(NO_ROOM);
        entry.discard(0);
        return false;
    }
    let sample = entry.as_mut_ptr();
    // SAFETY: the entry is as large as a `Sample`.
    unsafe {
        describe(ctx, sample, KIND_SAMPLE, memory.address, call, back, sp);
        (*sample).share = share;
        (*sample).call = kind;
    }
    count(SAMPLED);
    learn(kind, 1, 0);
    entry.submit(0);
    true
}

/// Fills a sample; `share` and `call` as for a mapping.
///
/// # Safety
/// `sample` must be writable.
#[inline(always)]
unsafe fn describe(ctx: &ProbeContext, sample: *mut Sample, kind: u32, address: u64, call: &Call, back: u64, sp: u64) {
    let (ids, time_ns, bp) = (bpf_get_current_pid_tgid(), task::now_ns(), register!(ctx, rbp));
    // SAFETY: the caller vouches for the sample; the helper checks what it reads and writes no more than it is told.
    unsafe {
        (*sample).kind = kind;
        (*sample).tgid = (ids >> 32) as u32;
        (*sample).tid = ids as u32;
        (*sample).share = u32::MAX;
        (*sample).zero = 0;
        (*sample).call = 0;
        (*sample).time_ns = time_ns;
        (*sample).address = address;
        (*sample).size = call.size;
        (*sample).ip = call.ip;
        (*sample).caller = back;
        (*sample).sp = sp;
        (*sample).bp = bp;
        (*sample).stack_len = stack::copy_from(sp, &raw mut (*sample).stack);
    }
}

/// Memory is released or reallocated: reports it if sampled.
#[inline(always)]
fn give_up(address: u64) {
    if address == 0 {
        return;
    }
    let memory = Memory { tgid: bpf_get_current_pid_tgid() >> 32, address };
    // SAFETY: a number, copied.
    if let Some(&kind) = unsafe { FOLLOWED.get(memory) } {
        went(memory, kind, 1);
    }
}

/// Reports that sampled memory is gone. Without room it stays followed until its next hand-out.
#[inline(always)]
fn went(memory: Memory, kind: u64, released: u64) {
    let Some(mut entry) = ALLOCATIONS.reserve::<Gone>(0) else {
        count(NO_RING);
        return;
    };
    entry.write(Gone { kind: KIND_GONE, tgid: memory.tgid as u32, address: memory.address, released });
    entry.submit(0);
    FOLLOWED.remove(memory).ok();
    learn(kind, 0, 1);
}

#[inline(always)]
fn count(slot: u32) {
    if let Some(counter) = ALLOCATION_COUNTS.get_ptr_mut(slot) {
        // SAFETY: this CPU's slot of the map.
        unsafe { *counter += 1 };
    }
}

//! Memory that an allocator hands out and takes back, for a service that is traced: probes in user space, attached for moments.
//!
//! A call is noted when it begins (how much is asked for) and finished when it ends, where the address of the memory is known and the
//! stack is as it was at the beginning. The end is seen in one of two ways: by the kernel's return probe, which puts an address of its
//! own in place of the one to return to; or by probes at the `ret` instructions, for processes to which that might do harm (system
//! call filters of some kernels end them; languages that move stacks). The second costs several times as much: the kernel steps over
//! the instruction. An end belongs to the call that began with the same stack pointer, so functions that the allocator calls, or
//! ends by a jump to, may be probed as well.
//!
//! Beside the allocator's functions, those by which memory is taken from the kernel are probed, not for moments but all the time:
//! they are called seldom, and each call counts. An allocator's own calls of them are told by the stack, later.
//!
//! x86-64 only: where arguments are is the machine's convention.

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

/// Samples and what became of them. The agent proper loads these maps with next to no room.
#[map]
static ALLOCATIONS: RingBuf = RingBuf::with_byte_size(1024 * 1024, 0);

/// Calls that have begun, by thread.
#[map]
static BEGUN: LruHashMap<u64, Call> = LruHashMap::with_max_entries(1024, 0);

/// Samples that are followed: memory that was handed out and has not come back, as far as we know. With the kind of its call.
#[map]
static FOLLOWED: HashMap<Memory, u64> = HashMap::with_max_entries(8192, 0);

/// Kinds of calls, and how long what they get is held. Calls of one kind come from the same place, at the same depth of the stack, for
/// memory of about the same size: mostly the same call path. Where what was sampled has come back, fewer are sampled, so that the
/// few whose memory stays are seen among the many. The agent writes here too what it finds to be gone.
#[map]
static KINDS: LruHashMap<u64, Kind> = LruHashMap::with_max_entries(4096, 0);

/// Of 2^32 calls, how many are sampled at most.
#[map]
static SHARE: Array<u32> = Array::with_max_entries(1, 0);

/// See [`monitor_common::allocation`].
#[map]
static ALLOCATION_COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(SLOTS, 0);

/// A call that has begun.
#[repr(C)]
#[derive(Clone, Copy)]
struct Call {
    size: u64,
    /// Where it is.
    ip: u64,
    /// Stack pointer at its beginning, where the address to return to is.
    sp: u64,
    /// Where the address is put, for functions that do not return it.
    out: u64,
}

/// `PROT_WRITE` and `MAP_ANONYMOUS` (asm-generic/mman-common.h).
const PROT_WRITE: u64 = 2;
const MAP_ANONYMOUS: u64 = 0x20;
/// Of a kind whose memory always comes back, one call of so many is sampled all the same: a leak may be among them.
const RAREST: u64 = 32;
/// Samples of a kind after which the older ones begin to count for less.
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

/// One program for all places: which is which is told by the number that each was attached with. Where the kernel can attach to
/// many places at once (6.6 and newer), they are given up at once as well; one by one, each takes some ten milliseconds.
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

// The same for older kernels: a program for each.
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

/// For older kernels: the return probe.
#[uretprobe]
fn probed_returned(ctx: RetProbeContext) -> u32 {
    count(HITS);
    returned(&ProbeContext::new(ctx.as_ptr()), thread(), finish);
    0
}

/// Likewise.
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

/// `realloc(memory, size)`: what was there goes, whether it moves or not.
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

/// Go's `runtime.mallocgc(size, type, zero)`: arguments are in registers of Go's own.
#[inline(always)]
fn allocate_go(ctx: &ProbeContext) {
    begin(ctx, goroutine(ctx), register!(ctx, rax), 0);
}

/// Who calls in a Go program: a goroutine may go on on another thread.
#[inline(always)]
fn goroutine(ctx: &ProbeContext) -> u64 {
    register!(ctx, r14)
}

#[inline(always)]
fn thread() -> u64 {
    bpf_get_current_pid_tgid()
}

/// Apart from the call of the allocator that the same thread may be in.
#[inline(always)]
fn mapper() -> u64 {
    thread() | 1 << 63
}

/// `mmap`: memory that can be written and is no file.
#[inline(always)]
fn map(ctx: &ProbeContext) {
    if register!(ctx, rdx) & PROT_WRITE != 0 && register!(ctx, rcx) & MAP_ANONYMOUS != 0 {
        note(ctx, mapper(), register!(ctx, rsi), 0);
    }
}

/// `mremap`: what was there goes. Should it fail, we have forgotten a mapping.
#[inline(always)]
fn remap(ctx: &ProbeContext) {
    unmap(ctx);
    note(ctx, mapper(), register!(ctx, rdx), 0);
}

/// `sbrk`: the end of the heap moves; less is no memory for anybody.
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
    // The last page of all is where errors are.
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
    // Of a thread that began another call and never came to its end, the latest counts.
    BEGUN.insert(caller, call, 0).ok();
}

/// What is done at the end of a call: with where it returns to, and the stack pointer there.
type Finish = fn(&ProbeContext, &Call, u64, u64);

/// At a `ret`.
#[inline(always)]
fn end(ctx: &ProbeContext, caller: u64, finish: Finish) {
    let sp = register!(ctx, rsp);
    let Some(call) = ended(caller, sp) else { return };
    finish(ctx, &call, word_at(sp), sp + 8);
}

/// A word of the process; 0 when it cannot be read.
#[inline(always)]
fn word_at(address: u64) -> u64 {
    let mut word = 0_u64;
    // SAFETY: the helper checks the address; on failure it writes zeros.
    unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, address as *const _) };
    word
}

/// Behind the call, where the return probe leads.
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
    // SAFETY: a value of a preallocated map stays mapped; at worst it is another call's by now, whose stack pointer differs.
    let call = unsafe { *call };
    if call.sp != sp {
        return None;
    }
    BEGUN.remove(caller).ok();
    Some(call)
}

/// `back`: where it has returned to, with the stack pointer at `sp`.
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

/// The kind of a call that has returned to `back`. The stacks of threads, and of goroutines, begin at whole multiples of 2 KiB.
#[inline(always)]
fn kind(back: u64, call: &Call) -> u64 {
    // Four steps for each power of two.
    let size = call.size | 4;
    let mut step = 0;
    while step < 64 && size >> step >= 8 {
        step += 1;
    }
    back ^ (step << 2 | (size >> step & 3)) << 48 ^ (call.sp & 0x7ff) << 53
}

/// Of 2^32 calls of this kind, how many are sampled.
#[inline(always)]
fn share_of(kind: u64) -> u32 {
    let most = u64::from(SHARE.get(0).copied().unwrap_or(0));
    let Some(known) = KINDS.get_ptr(kind) else { return most as u32 };
    // SAFETY: a value of a preallocated map stays mapped; at worst it is another kind's by now.
    let Kind { sampled, gone } = unsafe { *known };
    let left = u64::from(sampled.saturating_sub(gone)) + 1;
    let all = u64::from(sampled) + 1;
    let share = most * left / all;
    (if share < most / RAREST { most / RAREST } else { share }) as u32
}

/// Counts for a kind; which may be new.
#[inline(always)]
fn learn(kind: u64, sampled: u32, gone: u32) {
    match KINDS.get_ptr_mut(kind) {
        // SAFETY: as above; what another processor counts at the same time may be lost, which makes a share a little wrong.
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

/// Fills all of a sample but how it was chosen.
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

/// Memory is released, or on the way to be another.
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

/// Says so. Without room it stays followed, and is told of when it is handed out again.
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

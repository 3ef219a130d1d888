//! The user stack of a process that is about to crash, beside its [`crate::record::CrashSite`].
//!
//! The stack does not use a ring: 8 KiB for each crash would push deaths out. The programs write it into a slot of an array, the site
//! names the slot, and the agent copies the slot soon after. If a later crash takes the slot first, only the callers known from the
//! stack are lost.

use bytemuck::{Pod, Zeroable};

use crate::record::FRAMES;

/// Bytes of stack copied, from the stack pointer upwards: some fifty frames of usual size.
pub const STACK: usize = PIECES * PIECE;
/// Size of one read, bytes; the first failing read ends the copy.
pub const PIECE: usize = 512;
/// Number of reads.
pub const PIECES: usize = 16;
/// Bytes of a stack; samples of allocations carry them too.
pub type UserStack = [[u8; PIECE]; PIECES];
/// Slots for watched services, and as many for all other processes: a storm of unwatched crashes takes no slot from a service. A power
/// of two.
pub const SLOTS: u32 = 16;

/// One crash's registers and stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct CrashStack {
    /// [`crate::record::Header::kernel_ns`] of the site; 0 while the slot is being written.
    pub kernel_ns: u64,
    /// Start of the process, nanoseconds of CLOCK_BOOTTIME.
    pub start_ns: u64,
    /// Process id in the initial namespace.
    pub tgid: u32,
    /// Thread id.
    pub tid: u32,
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer.
    pub bp: u64,
    /// Link register, on processors that have one; otherwise 0.
    pub lr: u64,
    /// Start of the program's code (`mm_struct.start_code`); 0 when it cannot be read.
    pub code_begin: u64,
    /// First address behind that code (`mm_struct.end_code`).
    pub code_end: u64,
    /// Inode number of the program's file; 0 when it cannot be read.
    pub program_inode: u64,
    /// Frames of the site, as addresses.
    pub addresses: [u64; FRAMES],
    /// Number of `addresses` filled.
    pub depth: u32,
    /// Bytes of `stack` that were read.
    pub stack_len: u32,
    /// Stack from `sp` upwards.
    pub stack: UserStack,
    /// Equal to `kernel_ns` once the slot is complete.
    pub sealed_ns: u64,
}

// A changed size is a changed contract between the committed object and the agent.
const _: () = assert!(size_of::<CrashStack>() == 8416 && SLOTS.is_power_of_two());

/// Words of a slot, as the agent reads it from the array.
pub const WORDS: usize = size_of::<CrashStack>() / 8;

impl CrashStack {
    /// The stack that belongs to a site; `None` when the slot is being written or belongs to another crash.
    pub fn of_site(words: &[u64; WORDS], kernel_ns: u64, tgid: u32, start_ns: u64) -> Option<&Self> {
        let stack: &Self = bytemuck::try_from_bytes(bytemuck::cast_slice(words)).ok()?;
        let is_whole = stack.kernel_ns == kernel_ns && stack.sealed_ns == kernel_ns;
        let is_sound = stack.depth as usize <= FRAMES && stack.stack_len as usize <= STACK;
        (is_whole && is_sound && (stack.tgid, stack.start_ns) == (tgid, start_ns)).then_some(stack)
    }

    /// The frames as addresses.
    pub fn addresses(&self) -> &[u64] {
        self.addresses.get(..self.depth as usize).unwrap_or_default()
    }

    /// The bytes of the stack that were read.
    pub fn stack(&self) -> &[u8] {
        self.stack.as_flattened().get(..self.stack_len as usize).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(stack: &CrashStack) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        words.copy_from_slice(bytemuck::cast_slice(bytemuck::bytes_of(stack)));
        words
    }

    #[test]
    fn a_slot_counts_only_for_its_own_site_and_when_it_is_whole() {
        let whole = CrashStack {
            kernel_ns: 7,
            start_ns: 3,
            tgid: 9,
            depth: 2,
            stack_len: 512,
            sealed_ns: 7,
            ..CrashStack::zeroed()
        };
        let is_read = |stack: &CrashStack| {
            let words = words(stack);
            CrashStack::of_site(&words, 7, 9, 3)
                .is_some_and(|read| (read.addresses().len(), read.stack().len()) == (2, 512))
        };
        assert!(is_read(&whole));
        for other in [
            CrashStack { kernel_ns: 8, ..whole },
            CrashStack { sealed_ns: 0, ..whole },
            CrashStack { start_ns: 4, ..whole },
            CrashStack { tgid: 8, ..whole },
            CrashStack { depth: FRAMES as u32 + 1, ..whole },
            CrashStack { stack_len: STACK as u32 + 1, ..whole },
        ] {
            assert!(!is_read(&other), "{other:?}");
        }
    }
}

//! The user stack of a process that is about to crash, beside its [`crate::record::CrashSite`].
//!
//! It does not travel over a ring: 8 KiB for each crash would push deaths out. The programs write it into a slot of an array, the site
//! names the slot, and the agent copies it out soon after. A later crash may take the slot first; then only the callers are lost that
//! the stack would have told.

use bytemuck::{Pod, Zeroable};

use crate::record::FRAMES;

/// Bytes of stack that are copied, from its pointer upwards: some fifty frames of usual size.
pub const STACK: usize = PIECES * PIECE;
/// It is read in pieces of so many bytes, until one is not there.
pub const PIECE: usize = 512;
/// So many of them.
pub const PIECES: usize = 16;
/// The bytes; samples of allocations carry them too.
pub type UserStack = [[u8; PIECE]; PIECES];
/// Slots for the processes of watched services, and as many for all others: a storm of crashes that nobody watches takes no stack from
/// a service. A power of two.
pub const SLOTS: u32 = 16;

/// One slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct CrashStack {
    /// [`crate::record::Header::kernel_ns`] of the site; 0 while the slot is being written.
    pub kernel_ns: u64,
    /// Start of the process, nanoseconds of CLOCK_BOOTTIME.
    pub start_ns: u64,
    /// Process id in the initial namespace.
    pub tgid: u32,
    /// The thread.
    pub tid: u32,
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer.
    pub bp: u64,
    /// Link register, on processors that have one; otherwise 0.
    pub lr: u64,
    /// Where the code of the program begins (`mm_struct.start_code`); 0 when it cannot be read.
    pub code_begin: u64,
    /// The first address behind it (`mm_struct.end_code`).
    pub code_end: u64,
    /// Inode number of the program's file; 0 when it cannot be read.
    pub program_inode: u64,
    /// The frames of the site once more, as addresses.
    pub addresses: [u64; FRAMES],
    /// How many of them are filled.
    pub depth: u32,
    /// Bytes of `stack` that were read.
    pub stack_len: u32,
    /// The stack from `sp` on.
    pub stack: UserStack,
    /// The same as `kernel_ns` when all is written.
    pub sealed_ns: u64,
}

// A changed size is a changed contract between the committed object and the agent.
const _: () = assert!(size_of::<CrashStack>() == 8416 && SLOTS.is_power_of_two());

/// Words of a slot, as the agent reads it from the array.
pub const WORDS: usize = size_of::<CrashStack>() / 8;

impl CrashStack {
    /// The stack that belongs to a site; `None` when the slot has another's by now, or is being written.
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

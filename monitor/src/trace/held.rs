//! Whether memory that was handed out is still held, and what is in it, by a look at the process' memory.
//!
//! Any allocator: memory that is mapped no longer is held no longer. The GNU C library: the block behind it tells whether this
//! one is in use, and blocks in a thread's own cache of free ones carry a mark, a random number of the process that is learnt
//! from blocks whose release was seen.

use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    fs::File,
    hash::{Hash as _, Hasher as _},
    os::unix::fs::FileExt as _,
};

use anyhow::{Context as _, Result};

/// Block headers of the GNU C library (malloc.c): flags in the low bits of a block's size.
const FLAGS: u64 = 7;
const PREVIOUS_IN_USE: u64 = 1;
const IS_MAPPED: u64 = 2;
/// Longer blocks do not exist: a terabyte.
const LENGTH_MAX: u64 = 1 << 40;

/// Bytes that a print is of.
const PRINTED: usize = 256;

/// Sizes of blocks with the same word in them that make it a mark. What a program puts into its own is in those of one size, or few.
const SIZES: u32 = 5;
/// Different bytes in a mark, at least: a random number of eight has fewer in one case of a thousand.
const DIFFERENT: usize = 5;
/// Words that are counted; a process has one mark, older libraries one for each thread.
const WORDS: usize = 1024;

/// Pages of a mapping that are looked at one by one; of a larger one, as many in so many places.
const PAGES: u64 = 4096;
const PARTS: u64 = 8;
/// Present, or in swap (admin-guide/mm/pagemap.rst).
const RESIDENT: u64 = 3 << 62;

/// The memory of a process.
#[derive(Debug)]
pub(super) struct Memory {
    file: File,
    /// A word for each of its pages.
    pages: File,
    /// Whether blocks are the GNU C library's.
    is_glibc: bool,
    marks: Marks,
}

impl Memory {
    /// Opens it.
    ///
    /// # Errors
    /// When it is gone, or this process may not read it.
    pub(super) fn open(tgid: u32, is_glibc: bool) -> Result<Self> {
        let open = |name| {
            let path = format!("/proc/{tgid}/{name}");
            File::open(&path).with_context(|| format!("cannot read {path}"))
        };
        Ok(Self { file: open("mem")?, pages: open("pagemap")?, is_glibc, marks: Marks::default() })
    }

    /// Bytes of a mapping that are in memory or in swap; of a large one an estimate.
    pub(super) fn resident(&self, address: u64, size: u64) -> u64 {
        let page = rustix::param::page_size() as u64;
        let (first, all) = (address / page, size.div_ceil(page));
        let parts = if all > PAGES { PARTS } else { 1 };
        let length = all.min(PAGES) / parts;
        let mut words = vec![0; (length * 8) as usize];
        let mut found = 0;
        for part in 0..parts {
            let at = first + (all - length) * part / (parts - 1).max(1);
            if self.pages.read_exact_at(&mut words, at * 8).is_ok() {
                let is_resident = |word: &&[u8; 8]| u64::from_ne_bytes(**word) & RESIDENT != 0;
                found += words.as_chunks().0.iter().filter(is_resident).count() as u64;
            }
        }
        found * page * all / (length * parts).max(1)
    }

    /// Learns from a block that was released a moment ago.
    pub(super) fn released(&mut self, address: u64, size: u64) {
        if self.is_glibc
            && let Some(word) = self.word(address.wrapping_add(8))
        {
            self.marks.learn(word, size);
        }
    }

    /// A number for what is in a block of `size` bytes; `None` when its owner has released it. Its first half, at most sixteen
    /// bytes, is left out: lists are linked there, in use and not.
    pub(super) fn print(&self, address: u64, size: u64) -> Option<u64> {
        let mut bytes = [0; PRINTED];
        let length = usize::try_from(size).unwrap_or(PRINTED).clamp(8, PRINTED);
        let bytes = &mut bytes[..length];
        self.file.read_exact_at(bytes, address).ok()?;
        if self.is_glibc && self.is_free(address, size, bytes) {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        bytes[(length / 2).min(16)..].hash(&mut hasher);
        Some(hasher.finish())
    }

    fn is_free(&self, address: u64, size: u64, bytes: &[u8]) -> bool {
        let mark = bytes.get(8..16).and_then(|word| word.try_into().ok()).map(u64::from_ne_bytes);
        if mark.is_some_and(|word| self.marks.is_mark(word)) {
            return true;
        }
        match self.word(address.wrapping_sub(8)).map(|header| Block::of(address, header, size)) {
            Some(Block::Mapped) => false,
            Some(Block::Until(next)) => !self.word(next).is_some_and(is_behind_one_in_use),
            Some(Block::None) | None => true,
        }
    }

    fn word(&self, address: u64) -> Option<u64> {
        let mut word = [0; 8];
        self.file.read_exact_at(&mut word, address).ok()?;
        Some(u64::from_ne_bytes(word))
    }
}

/// What a header tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    /// A mapping of its own.
    Mapped,
    /// The next block's header is there.
    Until(u64),
    /// No block of that size is in use here.
    None,
}

impl Block {
    fn of(address: u64, header: u64, size: u64) -> Self {
        let length = header & !FLAGS;
        if length < size || !(32..LENGTH_MAX).contains(&length) || !length.is_multiple_of(16) {
            Self::None
        } else if header & IS_MAPPED != 0 {
            Self::Mapped
        } else {
            Self::Until(address.wrapping_sub(8).wrapping_add(length))
        }
    }
}

/// Whether a word is the header of a block, and the one before it is in use.
fn is_behind_one_in_use(header: u64) -> bool {
    header & PREVIOUS_IN_USE != 0 && header & IS_MAPPED == 0 && header & !FLAGS != 0 && header < LENGTH_MAX
}

/// Words found in blocks that were released, with a bit for each size of these. The block may have been handed out again since.
#[derive(Debug, Default)]
struct Marks(HashMap<u64, u64>);

impl Marks {
    fn learn(&mut self, word: u64, size: u64) {
        if looks_random(word) && (self.0.len() < WORDS || self.0.contains_key(&word)) {
            *self.0.entry(word).or_default() |= 1 << (size / 16 % 64);
        }
    }

    fn is_mark(&self, word: u64) -> bool {
        self.0.get(&word).is_some_and(|sizes| sizes.count_ones() >= SIZES)
    }
}

/// Neither a number that programs keep, nor an address, nor a pattern.
fn looks_random(word: u64) -> bool {
    let top = word >> 47;
    let mut bytes = word.to_ne_bytes();
    bytes.sort_unstable();
    let different = 1 + bytes.windows(2).filter(|pair| pair[0] != pair[1]).count();
    top != 0 && top != (1 << 17) - 1 && different >= DIFFERENT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unmapped_is_held_no_longer() {
        let memory = Memory::open(std::process::id(), true).expect("our own memory");
        let mut block = Box::new([0_u8; 100]);
        let address = block.as_ptr() as u64;
        let first = memory.print(address, 100);
        assert!(first.is_some());
        block[1] = 7;
        assert_eq!(memory.print(address, 100), first, "links do not count");
        block[40] = 7;
        assert_ne!(memory.print(address, 100), first);
        assert_eq!(memory.print(8, 100), None);
    }

    #[test]
    fn of_a_mapping_what_was_touched_is_resident() {
        let memory = Memory::open(std::process::id(), true).expect("our own memory");
        let share = |block: &Vec<u8>| {
            memory.resident(block.as_ptr() as u64, block.capacity() as u64) as f64 / block.capacity() as f64
        };
        for mib in [4, 64] {
            let touched = share(&vec![1; mib << 20]);
            assert!((0.9..=1.1).contains(&touched), "{touched} of {mib} MiB");
        }
        // So large that the allocator has no old memory for it.
        let fresh = share(&Vec::with_capacity(64 << 20));
        assert!(fresh < 0.1, "{fresh}");
        assert_eq!(memory.resident(4096, 4096), 0);
    }

    #[test]
    fn a_header_tells_where_the_next_block_begins() {
        assert_eq!(Block::of(0x1010, 0x71, 100), Block::Until(0x1078));
        assert_eq!(Block::of(0x1010, 0x1002, 4000), Block::Mapped);
        for (header, size) in [(0x71, 200), (0, 0), (u64::MAX, 1), (0x5a5a_5a5a_5a5a_5a5a, 8)] {
            assert_eq!(Block::of(0x1010, header, size), Block::None, "{header:#x}");
        }
        for (header, want) in [(0x91, true), (0x95, true), (0x90, false), (1, false), (0x5a5a_5a5a_5a5a_5a5b, false)] {
            assert_eq!(is_behind_one_in_use(header), want, "{header:#x}");
        }
    }

    #[test]
    fn a_word_in_free_blocks_of_many_sizes_is_a_mark_unless_programs_keep_such_words() {
        let mut marks = Marks::default();
        let random = 0x9c3f_11d2_7a05_be61;
        for word in [random, 1, 0x7fff_1234_5678, u64::MAX, 0x5a5a_5a5a_5a5a_5a5a] {
            for size in (16..16 * u64::from(SIZES)).step_by(16) {
                marks.learn(word, size);
                marks.learn(word, size);
            }
            assert!(!marks.is_mark(word));
            marks.learn(word, 500);
            assert_eq!(marks.is_mark(word), word == random, "{word:#x}");
        }
    }
}

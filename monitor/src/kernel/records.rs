//! A ring's memory: records are read in place, and their room is given back apart from that, when the reader says so. So what
//! was read and not yet written down is still there for the next agent.
//!
//! The layout is that of kernel/bpf/ringbuf.c: a page with the reader's position, a page with the writers', and the data, mapped
//! twice in a row so that no record is cut. Positions only grow; where one points to is its remainder by the data's size.

use std::{
    ffi::c_void,
    io,
    os::fd::{AsFd, BorrowedFd},
    ptr::{self, NonNull},
    slice,
    sync::atomic::{AtomicU32, AtomicUsize, Ordering},
};

use rustix::{
    mm::{MapFlags, ProtFlags, mmap, munmap},
    param::page_size,
};

/// `BPF_RINGBUF_*` (uapi bpf.h): the header's flags, which lie above the length, and its size.
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
const HEADER: usize = 8;

/// Where a record lies, in positions of its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Its first byte.
    pub(crate) begin: u64,
    /// The first byte behind it.
    pub(crate) end: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Records {
    reader: Mapping,
    writers: Mapping,
    size: usize,
    /// The next record to read.
    next: usize,
}

impl Records {
    /// Maps a ring whose data have `size` bytes, a power of two and whole pages.
    pub(super) fn new(ring: impl AsFd, size: usize) -> io::Result<Self> {
        let page = page_size();
        if !size.is_power_of_two() || !size.is_multiple_of(page) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{size} bytes is no size of a ring")));
        }
        let reader = Mapping::new(ring.as_fd(), page, 0, ProtFlags::READ | ProtFlags::WRITE)?;
        let writers = Mapping::new(ring.as_fd(), page + 2 * size, page, ProtFlags::READ)?;
        let next = reader.position().load(Ordering::Acquire);
        Ok(Self { reader, writers, size, next })
    }

    /// The next record that is complete. Its room stays taken until [`Self::release`].
    pub(super) fn next(&mut self) -> Option<(Span, &[u8])> {
        loop {
            if self.next >= self.writers.position().load(Ordering::Acquire) {
                return None;
            }
            let at = self.next & (self.size - 1);
            let header = self.header(at).load(Ordering::Acquire);
            if header & BUSY != 0 {
                return None;
            }
            let length = (header & !(BUSY | DISCARDED)) as usize;
            let begin = self.next;
            self.next += (HEADER + length).next_multiple_of(8);
            if header & DISCARDED == 0 {
                let span = Span { begin: begin as u64, end: self.next as u64 };
                return Some((span, self.data(at + HEADER, length)));
            }
        }
    }

    /// Gives back the room of all records before `position`, of those that were read.
    pub(super) fn release(&mut self, position: u64) {
        let position = usize::try_from(position).unwrap_or(usize::MAX).min(self.next);
        if position > self.released() {
            self.reader.position().store(position, Ordering::Release);
        }
    }

    /// Where the room begins that is not given back.
    pub(super) fn begin(&self) -> u64 {
        self.released() as u64
    }

    /// Where the next record will be read.
    pub(super) fn end(&self) -> u64 {
        self.next as u64
    }

    fn released(&self) -> usize {
        // We alone write it.
        self.reader.position().load(Ordering::Relaxed)
    }

    fn header(&self, at: usize) -> &AtomicU32 {
        debug_assert!(at < self.size && at.is_multiple_of(8));
        // SAFETY: `at` is below the data's size and a multiple of eight, so the word lies whole and aligned in the mapping; the
        // kernel writes it atomically.
        unsafe { &*self.writers.address.as_ptr().cast::<u8>().add(page_size() + at).cast::<AtomicU32>() }
    }

    /// What a torn or foreign header may say is cut to what is mapped.
    fn data(&self, from: usize, length: usize) -> &[u8] {
        let length = length.min(2 * self.size - from);
        // SAFETY: the bytes lie in the mapping. The kernel writes a record before it clears its busy bit, which was seen clear,
        // and not again before its room is given back, for which this borrow has to end.
        unsafe { slice::from_raw_parts(self.writers.address.as_ptr().cast::<u8>().add(page_size() + from), length) }
    }
}

/// A mapping, with a position in its first word.
#[derive(Debug)]
struct Mapping {
    address: NonNull<c_void>,
    length: usize,
}

// SAFETY: the memory belongs to the mapping, not to a thread; words that others change meanwhile are read atomically.
unsafe impl Send for Mapping {}
// SAFETY: likewise.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(of: BorrowedFd<'_>, length: usize, offset: usize, rights: ProtFlags) -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses, over nothing of ours.
        let address = unsafe { mmap(ptr::null_mut(), length, rights, MapFlags::SHARED, of, offset as u64) }?;
        let address = NonNull::new(address).ok_or_else(|| io::Error::other("a mapping at address 0"))?;
        Ok(Self { address, length })
    }

    fn position(&self) -> &AtomicUsize {
        // SAFETY: a mapping begins with its page and is longer than a word.
        unsafe { self.address.cast::<AtomicUsize>().as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: ours alone, and nothing that was borrowed from it is left.
        let gone = unsafe { munmap(self.address.as_ptr(), self.length) };
        debug_assert!(gone.is_ok(), "{gone:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, os::unix::fs::FileExt as _};

    const PAGE: usize = 4096;

    /// A ring as the kernel lays it out, in a file; the data's second mapping is written like the first.
    struct Ring {
        file: File,
        written: usize,
    }

    impl Ring {
        fn new(begin: usize) -> Self {
            let file = tempfile::tempfile().expect("a file");
            file.set_len((2 * PAGE + 2 * PAGE) as u64).expect("a size");
            let ring = Self { file, written: begin };
            ring.put(0, &begin.to_ne_bytes());
            ring.put(PAGE, &begin.to_ne_bytes());
            ring
        }

        fn put(&self, at: usize, bytes: &[u8]) {
            self.file.write_all_at(bytes, at as u64).expect("written");
        }

        fn write(&mut self, flags: u32, bytes: &[u8]) {
            let mut record = (bytes.len() as u32 | flags).to_ne_bytes().to_vec();
            record.extend([0; 4]);
            record.extend(bytes);
            for (at, byte) in record.iter().enumerate() {
                let at = (self.written + at) % PAGE;
                self.put(2 * PAGE + at, &[*byte]);
                self.put(3 * PAGE + at, &[*byte]);
            }
            self.written = (self.written + record.len()).next_multiple_of(8);
            self.put(PAGE, &self.written.to_ne_bytes());
        }

        fn open(&self) -> Records {
            Records::new(&self.file, PAGE).expect("a ring")
        }
    }

    #[test]
    fn what_was_read_and_not_given_back_is_read_again_by_the_next() {
        let mut ring = Ring::new(0);
        ring.write(0, b"first");
        ring.write(DISCARDED, b"taken back");
        ring.write(0, b"second");
        let mut records = ring.open();
        let (span, bytes) = records.next().expect("a record");
        assert_eq!((span, bytes), (Span { begin: 0, end: 16 }, &b"first"[..]));
        assert_eq!(records.next().map(|(_, bytes)| bytes.to_vec()), Some(b"second".to_vec()));
        assert!(records.next().is_none());
        records.release(span.end);
        records.release(0);
        assert_eq!((records.begin(), records.end()), (16, ring.written as u64));
        let mut next = ring.open();
        assert_eq!(next.next().map(|(_, bytes)| bytes.to_vec()), Some(b"second".to_vec()));
        next.release(u64::MAX);
        assert_eq!(next.begin(), ring.written as u64, "no further than it was read");
    }

    #[test]
    fn a_record_at_the_end_of_the_data_is_whole_and_one_that_is_being_written_is_waited_for() {
        let mut ring = Ring::new(3 * PAGE - 16);
        ring.write(0, &[7; 100]);
        ring.write(BUSY, b"not yet");
        let mut records = ring.open();
        assert_eq!(records.next().map(|(_, bytes)| bytes.to_vec()), Some(vec![7; 100]));
        assert!(records.next().is_none() && records.next().is_none());
    }

    #[test]
    fn a_length_that_no_ring_has_reads_nothing_that_is_not_there() {
        let mut ring = Ring::new(0);
        ring.write(0, b"");
        ring.put(2 * PAGE, &(DISCARDED - 1).to_ne_bytes());
        assert_eq!(ring.open().next().map(|(_, bytes)| bytes.len()), Some(2 * PAGE - HEADER));
        assert!(Records::new(&ring.file, PAGE + 8).is_err());
    }
}

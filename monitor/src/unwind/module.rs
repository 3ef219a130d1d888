//! A program or library that another process has mapped: its unwind tables and functions.
//!
//! The files belong to others and stay mapped while they are read. A file that is truncated meanwhile kills the reading
//! process; so traces and the naming of crashes run in separate processes.

use std::{
    fs::File,
    ops::{Deref, Range},
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use framehop::ExplicitModuleSectionInfo;
use gimli::{BaseAddresses, EhFrame, EhFrameHdr, NativeEndian, UnwindSection as _};
use memmap2::Mmap;
use object::{
    LittleEndian, Object as _, ObjectSection as _, ObjectSegment as _, ObjectSymbol as _, SegmentFlags, SymbolSection,
    elf::PF_X, read::elf::ElfFile64,
};
use rustix::param::page_size;

use crate::symbols::hexadecimal;

/// The machine whose stacks are followed here.
#[cfg(target_arch = "aarch64")]
const NATIVE: object::Architecture = object::Architecture::Aarch64;
#[cfg(not(target_arch = "aarch64"))]
const NATIVE: object::Architecture = object::Architecture::X86_64;

/// Size of a table for unwinding that is read from its beginning for each address, where it has no index: GCC gives none to programs
/// that it links statically.
const UNINDEXED: u64 = 4 << 20;

type Elf<'a> = ElfFile64<'a, LittleEndian>;

/// Part of a mapped file.
#[derive(Clone, Debug)]
pub(crate) struct Bytes {
    file: Arc<Mmap>,
    range: Range<usize>,
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.file[self.range.clone()]
    }
}

/// A mapped program or library.
#[derive(Debug)]
pub(crate) struct Module {
    descriptor: File,
    file: Arc<Mmap>,
    /// Virtual address, offset in the file and length of each part with code.
    segments: Vec<[u64; 3]>,
}

impl Module {
    /// Maps an ELF file of this machine.
    ///
    /// # Errors
    /// When the file cannot be read, or is not such an ELF file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let descriptor = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        // SAFETY: others may change the bytes meanwhile, and every reader of them accepts any bytes; for a truncated
        // file see the module.
        let file = unsafe { Mmap::map(&descriptor) }.with_context(|| format!("cannot map {}", path.display()))?;
        let segments = {
            let elf = Elf::parse(&*file).with_context(|| format!("{} is no 64-bit ELF file", path.display()))?;
            let machine = elf.architecture();
            ensure!(machine == NATIVE, "{} is for {machine:?}", path.display());
            let is_code = |flags| matches!(flags, SegmentFlags::Elf { p_flags } if p_flags & PF_X != 0);
            elf.segments()
                .filter(|segment| is_code(segment.flags()))
                .map(|segment| {
                    let (offset, length) = segment.file_range();
                    [segment.address(), offset, length]
                })
                .collect()
        };
        Ok(Self { descriptor, file: Arc::new(file), segments })
    }

    /// The open file.
    pub(crate) fn descriptor(&self) -> &File {
        &self.descriptor
    }

    fn elf(&self) -> Option<Elf<'_>> {
        Elf::parse(&**self.file).ok()
    }

    /// The file offset of an address.
    pub(crate) fn offset_of(&self, address: u64) -> Option<u64> {
        let within = |&&[begin, _, length]: &&[u64; 3]| address >= begin && address - begin < length;
        self.segments.iter().find(within).map(|&[begin, offset, _]| address - begin + offset)
    }

    /// The bias of the file's addresses when its code from offset `at` on, a whole number of pages, is mapped at
    /// `begin`. A segment begins anywhere in its first page, which may be another segment's last.
    pub(crate) fn bias(&self, at: u64, begin: u64) -> Option<u64> {
        let page = page_size() as u64;
        let is_from = |&&[_, offset, length]: &&[u64; 3]| at >= offset - offset % page && at < offset + length;
        self.segments.iter().find(is_from).map(|&[address, offset, _]| {
            let first = address.wrapping_sub(offset).wrapping_add(at);
            begin.wrapping_sub(first)
        })
    }

    /// Begin and end of the segments with code, as in `mm_struct.start_code` and `end_code` (fs/binfmt_elf.c) but
    /// without the load bias.
    pub(crate) fn code_range(&self) -> Option<Range<u64>> {
        let begin = self.segments.iter().map(|&[begin, ..]| begin).min()?;
        let end = self.segments.iter().map(|&[begin, _, length]| begin.saturating_add(length)).max()?;
        Some(begin..end)
    }

    /// Each segment with code.
    pub(crate) fn code_ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.segments.iter().map(|&[begin, _, length]| begin..begin.saturating_add(length))
    }

    /// The address at a file offset.
    pub(crate) fn address_of(&self, offset: u64) -> Option<u64> {
        let within = |&&[_, begin, length]: &&[u64; 3]| offset >= begin && offset - begin < length;
        self.segments.iter().find(within).map(|&[address, begin, _]| address.wrapping_add(offset - begin))
    }

    /// Inode number of the file.
    pub(crate) fn inode(&self) -> Option<u64> {
        self.descriptor.metadata().ok().map(|metadata| metadata.ino())
    }

    /// The bytes at an address.
    pub(crate) fn code(&self, range: &Range<u64>) -> Option<&[u8]> {
        let begin = usize::try_from(self.offset_of(range.start)?).ok()?;
        self.file.get(begin..begin.checked_add(usize::try_from(range.end - range.start).ok()?)?)
    }

    /// Calls `take` with the name, address and length (may be 0) of every named function that is exported, or with
    /// `in_table` in the table of symbols.
    pub(crate) fn functions(&self, in_table: bool, mut take: impl FnMut(&[u8], u64, u64)) {
        let Some(elf) = self.elf() else { return };
        let table = in_table.then(|| elf.symbols()).into_iter().flatten();
        for symbol in elf.dynamic_symbols().chain(table) {
            let is_here = matches!(symbol.section(), SymbolSection::Section(_)) && symbol.address() != 0;
            if is_here && let Ok(name) = symbol.name_bytes() {
                take(name, symbol.address(), symbol.size());
            }
        }
    }

    /// The extent of the function around an address, by the unwind table.
    pub(crate) fn extent(&self, address: u64) -> Option<Range<u64>> {
        let elf = self.elf()?;
        let table = elf.section_by_name(".eh_frame")?;
        let text = elf.section_by_name(".text").map_or(0, |text| text.address());
        let bases = BaseAddresses::default().set_eh_frame(table.address()).set_text(text);
        let frames = EhFrame::new(table.data().ok()?, NativeEndian);
        let entry = if let Some(index) = elf.section_by_name(".eh_frame_hdr") {
            let bases = bases.set_eh_frame_hdr(index.address());
            let parsed = EhFrameHdr::new(index.data().ok()?, NativeEndian).parse(&bases, 8).ok()?;
            parsed.table()?.fde_for_address(&frames, &bases, address, EhFrame::cie_from_offset).ok()?
        } else if table.size() <= UNINDEXED {
            frames.fde_for_address(&bases, address, EhFrame::cie_from_offset).ok()?
        } else {
            return None;
        };
        Some(entry.initial_address()..entry.end_address())
    }

    /// The unwind tables.
    pub(crate) fn unwinding(&self) -> ExplicitModuleSectionInfo<Bytes> {
        let elf = self.elf();
        let section = |name: &str| {
            let section = elf.as_ref()?.section_by_name(name)?;
            // Compressed sections (only those for debugging) cannot be used in place.
            let compressed = section.compressed_file_range().ok()?.format != object::CompressionFormat::None;
            let (offset, length) = section.file_range().filter(|_| !compressed)?;
            let begin = usize::try_from(offset).ok()?;
            let range = begin..begin.checked_add(usize::try_from(length).ok()?)?;
            self.file.get(range.clone())?;
            Some((section.address()..section.address() + section.size(), Bytes { file: Arc::clone(&self.file), range }))
        };
        let (text_svma, text) = section(".text").unzip();
        let (eh_frame_svma, eh_frame) = section(".eh_frame").unzip();
        let (eh_frame_hdr_svma, eh_frame_hdr) = section(".eh_frame_hdr").unzip();
        ExplicitModuleSectionInfo {
            base_svma: 0,
            text_svma,
            text,
            eh_frame_svma,
            eh_frame,
            eh_frame_hdr_svma,
            eh_frame_hdr,
            got_svma: section(".got").map(|(range, _)| range),
            debug_frame: section(".debug_frame").map(|(_, bytes)| bytes),
            // Only in files of other systems.
            stubs_svma: None,
            stub_helper_svma: None,
            unwind_info: None,
            text_segment_svma: None,
            text_segment: None,
        }
    }

    /// GNU build id in hexadecimal digits.
    pub(crate) fn build_id(&self) -> Option<String> {
        Some(hexadecimal(self.elf()?.build_id().ok()??))
    }

    /// Whether it is a Go program without names of functions.
    pub(crate) fn is_go(&self) -> bool {
        self.elf().is_some_and(|elf| elf.section_by_name(".gopclntab").is_some())
    }
}

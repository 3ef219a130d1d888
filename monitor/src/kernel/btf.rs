//! The type information that the running kernel carries, and the few questions the agent has for it.
//!
//! A reader of the BTF format (Documentation/bpf/btf.rst) that keeps the file's bytes and one index, about 6 MB for the
//! milliseconds that start-up needs it. General-purpose BTF crates build an object for each of the 150,000 types and
//! take 22 to 63 MB, too much for an agent that must start on a host without memory.

use std::{ops::Range, path::Path};

use anyhow::{Context as _, Result, bail, ensure};

use crate::host::bounded::{self, Bounded};

/// `BTF_MAGIC`, little endian.
const MAGIC: u16 = 0xeb9f;
/// Types nested deeper than this are taken for a loop.
const MAX_DEPTH: u32 = 32;
/// Most bytes of BTF. The kernel's own has 4 to 12 MB, depending on what is built in.
const SIZE_MAX: usize = 128 * 1024 * 1024;

/// `BTF_KIND_*` (uapi btf.h).
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FWD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// One argument of a tracepoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Argument {
    /// A pointer to the named structure.
    Pointer(String),
    /// Anything else.
    Other,
}

/// Type information of one kernel.
pub(crate) struct Btf {
    bytes: Vec<u8>,
    strings: Range<usize>,
    /// Where each type's header begins; the index is the type id minus 1 (0 is void).
    types: Vec<u32>,
    /// True when a type has a kind that this reader does not know.
    has_unknown: bool,
    /// The first kind of unknown size; its type and all later ones are not indexed.
    cut_at: Option<u32>,
}

/// Bytes of one entry of the file's table of kind sizes (`struct btf_layout`, 7.1 and newer), by which a reader skips
/// kinds that it does not know.
const LAYOUT_ENTRY: usize = 4;
/// Length of a header that names that table.
const HEADER_WITH_LAYOUT: u32 = 32;

/// A type's header: `struct btf_type`.
#[derive(Clone, Copy)]
struct Type {
    at: usize,
    name: u32,
    kind: u32,
    len: usize,
    /// The top bit of `info`: for structures, members carry bit-field sizes.
    flagged: bool,
    size_or_type: u32,
}

const HEADER: usize = 12;
/// The bits of a kind. Two of them, and eight of the number of elements, were unused and zero before 7.1.
const KINDS: u32 = 0x7f;

impl Type {
    /// Bytes that follow the header; `None` for an unknown kind.
    fn tail(&self) -> Option<usize> {
        Some(match self.kind {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * self.len,
            kind::ENUM | kind::FUNC_PROTO => 8 * self.len,
            kind::PTR
            | kind::FWD
            | kind::TYPEDEF
            | kind::VOLATILE
            | kind::CONST
            | kind::RESTRICT
            | kind::FUNC
            | kind::FLOAT
            | kind::TYPE_TAG => 0,
            _ => return None,
        })
    }

    /// The positions of the entries that follow, each `width` bytes.
    fn entries(self, width: usize) -> impl Iterator<Item = usize> {
        (0..self.len).map(move |n| self.at + HEADER + n * width)
    }
}

impl Btf {
    /// Reads and indexes a BTF file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = bounded::read(path, SIZE_MAX)
            .and_then(Bounded::whole)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(bytes).with_context(|| format!("{} is not valid BTF", path.display()))
    }

    /// Indexes BTF bytes.
    pub(crate) fn parse(bytes: Vec<u8>) -> Result<Self> {
        ensure!(bytes.get(..2) == Some(&MAGIC.to_le_bytes()), "it does not begin with the magic number {MAGIC:#x}");
        let mut btf = Self { bytes, strings: 0..0, types: Vec::new(), has_unknown: false, cut_at: None };
        let base = btf.u32(4)? as usize;
        let section = |offset: u32, len: u32| -> Result<Range<usize>> {
            let start = base.checked_add(offset as usize).context("a section is out of range")?;
            let end = start.checked_add(len as usize).context("a section is out of range")?;
            ensure!(end <= btf.bytes.len(), "it is cut short: {} bytes of {end}", btf.bytes.len());
            Ok(start..end)
        };
        let types = section(btf.u32(8)?, btf.u32(12)?)?;
        btf.strings = section(btf.u32(16)?, btf.u32(20)?)?;
        let layout = if btf.u32(4)? >= HEADER_WITH_LAYOUT { section(btf.u32(24)?, btf.u32(28)?)? } else { 0..0 };
        let mut at = types.start;
        // Kernel types take 20 to 40 bytes each; a good guess saves the copies of a growing vector.
        btf.types.reserve(types.len() / 24);
        while at < types.end {
            let ty = btf.type_at(at)?;
            let tail = match ty.tail() {
                Some(tail) => tail,
                None => match btf.tail_by_layout(&ty, &layout) {
                    Some(tail) => {
                        btf.has_unknown = true;
                        tail
                    }
                    // Earlier types keep their ids; later ones are not found.
                    None => {
                        btf.cut_at = Some(ty.kind);
                        return Ok(btf);
                    }
                },
            };
            btf.types.push(u32::try_from(at)?);
            at = at.checked_add(HEADER + tail).context("a type is out of range")?;
        }
        ensure!(at == types.end, "its last type runs over the end of its section");
        Ok(btf)
    }

    /// Bytes after the header of a type of unknown kind, by the file's table: some for the type, and some for each
    /// element.
    fn tail_by_layout(&self, ty: &Type, layout: &Range<usize>) -> Option<usize> {
        let at = layout.start + ty.kind as usize * LAYOUT_ENTRY;
        let entry = (at + LAYOUT_ENTRY <= layout.end).then(|| self.bytes.get(at..at + LAYOUT_ENTRY)).flatten()?;
        Some(usize::from(entry[0]) + usize::from(entry[1]) * ty.len)
    }

    /// The kind at which the index ends, because its size is unknown.
    pub(crate) fn cut_at(&self) -> Option<u32> {
        self.cut_at
    }

    /// A copy with the same ids for a reader that knows no newer kinds: a type of such a kind becomes a nameless
    /// declaration, and types that are not indexed are left out. `None`: the file needs no copy.
    pub(crate) fn without_unknown_kinds(&self) -> Result<Option<Vec<u8>>> {
        if !self.has_unknown && self.cut_at.is_none() {
            return Ok(None);
        }
        let mut types = Vec::new();
        for &at in &self.types {
            let ty = self.type_at(at as usize)?;
            match ty.tail() {
                Some(tail) => {
                    let all = self.bytes.get(ty.at..ty.at + HEADER + tail).context("a type is cut short")?;
                    types.extend_from_slice(all);
                }
                None => {
                    for word in [0, kind::FWD << 24, 0] {
                        types.extend_from_slice(&u32::to_le_bytes(word));
                    }
                }
            }
        }
        let strings = self.bytes.get(self.strings.clone()).context("the names are cut short")?;
        let (types_len, strings_len) = (u32::try_from(types.len())?, u32::try_from(strings.len())?);
        let mut copy = self.bytes.get(..4).context("there is no header")?.to_vec();
        for word in [24, 0, types_len, types_len, strings_len] {
            copy.extend_from_slice(&u32::to_le_bytes(word));
        }
        copy.extend_from_slice(&types);
        copy.extend_from_slice(strings);
        Ok(Some(copy))
    }

    /// Byte offset of a member, looked for through anonymous structures and unions too; `None` when the structure or
    /// the member does not exist.
    pub(crate) fn offset_of(&self, structure: &str, member: &str) -> Result<Option<u32>> {
        let Some(ty) = self.find(kind::STRUCT, structure)? else { return Ok(None) };
        let Some(bits) = self.member_bits(ty, member, 0)? else { return Ok(None) };
        ensure!(bits % 8 == 0, "{structure}.{member} is a bit field");
        Ok(Some(bits / 8))
    }

    /// Size of a structure in bytes.
    pub(crate) fn size_of(&self, structure: &str) -> Result<Option<u32>> {
        Ok(self.find(kind::STRUCT, structure)?.map(|ty| ty.size_or_type))
    }

    /// Value of an enumerator.
    pub(crate) fn enum_value(&self, name: &str, enumerator: &str) -> Result<Option<u32>> {
        let Some(ty) = self.find(kind::ENUM, name)? else { return Ok(None) };
        for at in ty.entries(8) {
            if self.string(self.u32(at)?)? == enumerator.as_bytes() {
                return Ok(Some(self.u32(at + 4)?));
            }
        }
        Ok(None)
    }

    /// True when the kernel has a typedef of that name.
    pub(crate) fn has_typedef(&self, name: &str) -> Result<bool> {
        Ok(self.find(kind::TYPEDEF, name)?.is_some())
    }

    /// The arguments of a tracepoint, without the leading `void *__data`; `None` when the kernel has no such tracepoint.
    pub(crate) fn tracepoint(&self, name: &str) -> Result<Option<Vec<Argument>>> {
        let Some(typedef) = self.find(kind::TYPEDEF, &format!("btf_trace_{name}"))? else { return Ok(None) };
        let pointer = self.resolve(typedef.size_or_type)?.context("a tracepoint's typedef names no type")?;
        let proto = self.resolve(pointer.size_or_type)?.context("a tracepoint's typedef points nowhere")?;
        ensure!(proto.kind == kind::FUNC_PROTO, "a tracepoint's typedef is no function");
        let mut arguments = Vec::new();
        for at in proto.entries(8).skip(1) {
            let target = match self.resolve(self.u32(at + 4)?)? {
                Some(ty) if ty.kind == kind::PTR => self.resolve(ty.size_or_type)?,
                _ => None,
            };
            arguments.push(match target {
                Some(ty) if ty.kind == kind::STRUCT => {
                    Argument::Pointer(String::from_utf8_lossy(self.string(ty.name)?).into_owned())
                }
                _ => Argument::Other,
            });
        }
        Ok(Some(arguments))
    }

    /// Number of arguments of a function; `None` when the kernel has none of that name.
    pub(crate) fn function(&self, name: &str) -> Result<Option<usize>> {
        let Some(function) = self.find(kind::FUNC, name)? else { return Ok(None) };
        let proto = self.resolve(function.size_or_type)?.context("a function without a prototype")?;
        ensure!(proto.kind == kind::FUNC_PROTO, "a function without a prototype");
        Ok(Some(proto.len))
    }

    fn member_bits(&self, ty: Type, member: &str, depth: u32) -> Result<Option<u32>> {
        ensure!(depth < MAX_DEPTH, "structures nest too deep");
        for at in ty.entries(12) {
            let name = self.string(self.u32(at)?)?;
            let raw = self.u32(at + 8)?;
            let bits = if ty.flagged { raw & 0x00ff_ffff } else { raw };
            if name == member.as_bytes() {
                return Ok(Some(bits));
            }
            if name.is_empty()
                && let Some(inner) = self.resolve(self.u32(at + 4)?)?
                && matches!(inner.kind, kind::STRUCT | kind::UNION)
                && let Some(inside) = self.member_bits(inner, member, depth + 1)?
            {
                return Ok(bits.checked_add(inside));
            }
        }
        Ok(None)
    }

    /// The first type of that kind and name (forward declarations are a kind of their own).
    fn find(&self, kind: u32, name: &str) -> Result<Option<Type>> {
        for &at in &self.types {
            let at = at as usize;
            if (self.u32(at + 4)? >> 24) & KINDS == kind && self.string(self.u32(at)?)? == name.as_bytes() {
                return self.type_at(at).map(Some);
            }
        }
        Ok(None)
    }

    /// The type behind typedefs and qualifiers; `None` for void.
    fn resolve(&self, mut id: u32) -> Result<Option<Type>> {
        for _ in 0..MAX_DEPTH {
            if id == 0 {
                return Ok(None);
            }
            let at = *self.types.get(id as usize - 1).with_context(|| format!("there is no type {id}"))?;
            let ty = self.type_at(at as usize)?;
            match ty.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => id = ty.size_or_type,
                _ => return Ok(Some(ty)),
            }
        }
        bail!("type {id} refers to itself")
    }

    fn type_at(&self, at: usize) -> Result<Type> {
        let info = self.u32(at + 4)?;
        Ok(Type {
            at,
            name: self.u32(at)?,
            kind: (info >> 24) & KINDS,
            len: (info & 0x00ff_ffff) as usize,
            flagged: info >> 31 == 1,
            size_or_type: self.u32(at + 8)?,
        })
    }

    fn u32(&self, at: usize) -> Result<u32> {
        let bytes = self.bytes.get(at..).and_then(<[u8]>::first_chunk).with_context(|| format!("no bytes at {at}"))?;
        Ok(u32::from_le_bytes(*bytes))
    }

    fn string(&self, offset: u32) -> Result<&[u8]> {
        let strings = &self.bytes[self.strings.clone()];
        let tail = strings.get(offset as usize..).with_context(|| format!("no string at {offset}"))?;
        let end = tail.iter().position(|&byte| byte == 0).context("a string without an end")?;
        Ok(&tail[..end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes BTF by hand: just enough of the format for the questions above.
    #[derive(Default)]
    struct Writer {
        types: Vec<u8>,
        strings: Vec<u8>,
        count: u32,
    }

    impl Writer {
        fn name(&mut self, name: &str) -> u32 {
            if self.strings.is_empty() {
                self.strings.push(0);
            }
            if name.is_empty() {
                return 0;
            }
            let at = self.strings.len() as u32;
            self.strings.extend_from_slice(name.as_bytes());
            self.strings.push(0);
            at
        }

        fn ty(&mut self, name: &str, kind: u32, len: u32, size_or_type: u32, tail: &[u32]) -> u32 {
            let name = self.name(name);
            for word in [name, kind << 24 | len, size_or_type].iter().chain(tail) {
                self.types.extend_from_slice(&word.to_le_bytes());
            }
            self.count += 1;
            self.count
        }

        fn finish(self) -> Vec<u8> {
            self.finish_with(&[])
        }

        /// With a table of kind sizes, unless `layout` is empty.
        fn finish_with(self, layout: &[[u8; 4]]) -> Vec<u8> {
            let mut bytes = MAGIC.to_le_bytes().to_vec();
            bytes.extend_from_slice(&[1, 0]);
            let types = self.types.len() as u32;
            let strings = self.strings.len() as u32;
            let header = if layout.is_empty() { 24 } else { 32 };
            for word in [header, 0, types, types, strings] {
                bytes.extend_from_slice(&u32::to_le_bytes(word));
            }
            if !layout.is_empty() {
                for word in [types + strings, 4 * layout.len() as u32] {
                    bytes.extend_from_slice(&u32::to_le_bytes(word));
                }
            }
            bytes.extend_from_slice(&self.types);
            bytes.extend_from_slice(&self.strings);
            bytes.extend_from_slice(layout.as_flattened());
            bytes
        }
    }

    fn sample() -> Vec<u8> {
        let mut w = Writer::default();
        let int = w.ty("int", kind::INT, 0, 4, &[32]);
        let (a, b, c) = (w.name("a"), w.name("b"), w.name("c"));
        let inner = w.ty("", kind::UNION, 2, 8, &[b, int, 0, c, int, 32]);
        let constant = w.ty("", kind::CONST, 0, inner, &[]);
        let outer = w.ty("outer", kind::STRUCT, 2, 16, &[a, int, 0, 0, constant, 64]);
        let (x, y) = (w.name("first_id"), w.name("second_id"));
        w.ty("ids", kind::ENUM, 2, 4, &[x, 3, y, 7]);
        let pointer = w.ty("", kind::PTR, 0, outer, &[]);
        let proto = w.ty("", kind::FUNC_PROTO, 3, 0, &[0, 0, 0, pointer, 0, int]);
        let function = w.ty("", kind::PTR, 0, proto, &[]);
        w.ty("btf_trace_sample", kind::TYPEDEF, 0, function, &[]);
        w.finish()
    }

    #[test]
    fn members_are_found_through_anonymous_unions() {
        let btf = Btf::parse(sample()).expect("valid");
        assert_eq!(btf.offset_of("outer", "a").expect("reads"), Some(0));
        assert_eq!(btf.offset_of("outer", "b").expect("reads"), Some(8));
        assert_eq!(btf.offset_of("outer", "c").expect("reads"), Some(12));
        assert_eq!(btf.offset_of("outer", "d").expect("reads"), None);
        assert_eq!(btf.offset_of("other", "a").expect("reads"), None);
        assert_eq!(btf.size_of("outer").expect("reads"), Some(16));
        assert_eq!(btf.enum_value("ids", "second_id").expect("reads"), Some(7));
        assert_eq!(btf.enum_value("ids", "third_id").expect("reads"), None);
    }

    /// Types of the kinds 20 to 22 and of a kind that does not exist, among others; each with elements of a different
    /// size.
    fn future() -> Writer {
        let mut w = Writer::default();
        let int = w.ty("int", kind::INT, 0, 4, &[32]);
        w.ty("", 20, 0, 8, &[1, 2]);
        w.ty("", 21, 3, 0, &[2, 2, 2]);
        w.ty(".text", 22, 2, 0, &[9, 9, 9, 9, 8, 8, 8, 8]);
        w.ty("", 77, 1, 0, &[5, 6, 7]);
        let a = w.name("a");
        w.ty("late", kind::STRUCT, 1, 4, &[a, int, 0]);
        let pointer = w.ty("", kind::PTR, 0, 6, &[]);
        let proto = w.ty("", kind::FUNC_PROTO, 2, 0, &[0, 0, 0, pointer]);
        let function = w.ty("", kind::PTR, 0, proto, &[]);
        w.ty("btf_trace_future", kind::TYPEDEF, 0, function, &[]);
        w
    }

    fn sizes() -> Vec<[u8; 4]> {
        let mut layout = vec![[0; 4]; 78];
        (layout[20], layout[21], layout[22], layout[77]) = ([8, 0, 0, 0], [0, 4, 0, 0], [0, 16, 0, 0], [4, 8, 0, 0]);
        layout
    }

    #[test]
    fn kinds_that_are_not_known_yet_are_skipped_by_the_size_that_the_file_tells() {
        let btf = Btf::parse(future().finish_with(&sizes())).expect("valid");
        assert_eq!((btf.types.len(), btf.cut_at()), (10, None));
        assert_eq!(btf.offset_of("late", "a").expect("reads"), Some(0));
        assert_eq!(btf.tracepoint("future").expect("reads"), Some(vec![Argument::Pointer("late".to_owned())]));
    }

    #[test]
    fn without_a_size_the_types_before_an_unknown_kind_are_still_there() {
        let btf = Btf::parse(future().finish()).expect("valid");
        assert_eq!((btf.types.len(), btf.cut_at()), (1, Some(20)));
        assert_eq!(btf.offset_of("late", "a").expect("reads"), None);
    }

    #[test]
    fn the_loader_is_given_the_same_ids_without_kinds_that_it_does_not_know() {
        use aya::Endianness;
        let bytes = future().finish_with(&sizes());
        assert!(aya::Btf::parse(&bytes, Endianness::Little).is_err(), "or the copy is needed no longer");
        let copy = Btf::parse(bytes).expect("valid").without_unknown_kinds().expect("reads").expect("needed");
        aya::Btf::parse(&copy, Endianness::Little).expect("the loader reads it");
        let copy = Btf::parse(copy).expect("valid");
        assert_eq!(copy.types.len(), 10);
        assert_eq!(copy.tracepoint("future").expect("reads"), Some(vec![Argument::Pointer("late".to_owned())]));
        let cut =
            Btf::parse(future().finish()).expect("valid").without_unknown_kinds().expect("reads").expect("needed");
        aya::Btf::parse(&cut, Endianness::Little).expect("the loader reads it");
        assert_eq!(Btf::parse(sample()).expect("valid").without_unknown_kinds().expect("reads"), None);
    }

    #[test]
    fn tracepoint_prototypes_are_told_apart() {
        let btf = Btf::parse(sample()).expect("valid");
        let arguments = btf.tracepoint("sample").expect("reads");
        assert_eq!(arguments, Some(vec![Argument::Pointer("outer".to_owned()), Argument::Other]));
        assert_eq!(btf.tracepoint("absent").expect("reads"), None);
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_an_error_or_an_answer_never_a_panic() {
        for good in [sample(), future().finish_with(&sizes())] {
            flip(&good);
        }
    }

    fn flip(good: &[u8]) {
        for len in 0..good.len() {
            let outcome = Btf::parse(good[..len].to_vec());
            assert!(outcome.is_err(), "a file cut at {len} was accepted");
        }
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bytes = good.to_vec();
                bytes[at] ^= 1 << bit;
                if let Ok(btf) = Btf::parse(bytes) {
                    for member in ["a", "c", "missing"] {
                        drop(btf.offset_of("outer", member));
                    }
                    drop(btf.enum_value("ids", "second_id"));
                    drop(btf.tracepoint("sample"));
                    drop(btf.without_unknown_kinds());
                }
            }
        }
    }

    #[test]
    fn the_running_kernel_answers() {
        let path = Path::new("/sys/kernel/btf/vmlinux");
        if !path.exists() {
            return;
        }
        let btf = Btf::read(path).expect("the kernel's own BTF");
        assert!(btf.offset_of("task_struct", "tgid").expect("reads").is_some());
        let exit = btf.tracepoint("sched_process_exit").expect("reads").expect("exists");
        assert_eq!(exit[0], Argument::Pointer("task_struct".to_owned()));
    }
}

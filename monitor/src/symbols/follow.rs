//! Unwinds the stack of a crash by the unwind tables of its files, from the registers and the stack that the kernel
//! programs copied. Runs in the separate process that names crashes.
//!
//! A process is mostly gone before its maps can be read, so three sources say where each file was in memory: its maps,
//! if they were read in time; each frame of the kernel's (address, build id, offset); and for the program itself, the
//! begin and end of its code. A file is used only when its build id or inode is the mapped one.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    FRAMES_MAX, Frame, Mapping, RawFrame, Stack, hexadecimal,
    names::{self, Finder, Module, Placed},
};
use crate::unwind::{Cache, End, Registers, Unwinder, module::Module as Elf};

/// Registers and stack of a process that crashed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Copied {
    /// Its registers.
    pub(super) registers: Registers,
    /// The kernel's frames as addresses.
    pub(super) addresses: Vec<u64>,
    /// Where the code of the program begins and ends.
    pub(super) code: (u64, u64),
    /// Inode number of the program's file; 0 when it is not known.
    pub(super) program_inode: u64,
    /// The stack from the stack pointer on.
    pub(super) stack: Vec<u8>,
}

/// The frames, innermost first, and whether the last one is the first of the stack; `None` when the tables find no
/// caller.
pub(super) fn follow(stack: &Stack, finder: &mut Finder<'_>) -> Option<(Vec<Placed>, bool)> {
    let copied = stack.copied.as_deref()?;
    let files = Files::find(stack, copied, finder);
    let mut addresses = Vec::new();
    let end = files.code.walk(copied.registers, &copied.stack, &mut Cache::default(), |address| {
        // A return address is after the call, which may be the last instruction of its function.
        let inside = address.saturating_sub(u64::from(!addresses.is_empty()));
        addresses.push(address);
        addresses.len() < FRAMES_MAX && files.code.has_table(inside)
    });
    let (&last, before) = addresses.split_last()?;
    if before.is_empty() {
        return None;
    }
    let mut placed: Vec<_> = addresses.iter().enumerate().map(|(at, &address)| files.place(address, at > 0)).collect();
    if end == End::Cut
        && let Some(at) = copied.addresses.iter().position(|&address| address == last)
    {
        // The kernel found this frame too and its callers, by frame pointers.
        placed.extend(names::chain(stack, at + 1, finder));
    }
    Some((placed, end == End::Whole))
}

/// The files whose addresses in memory are known.
#[derive(Default)]
struct Files {
    known: Vec<(Module, Option<[u8; 20]>, Arc<Elf>)>,
    code: Unwinder,
}

impl Files {
    fn find(stack: &Stack, copied: &Copied, finder: &mut Finder<'_>) -> Self {
        let mut files = Self::default();
        let frames: Vec<_> = copied.addresses.iter().zip(&stack.frames).collect();
        for mapping in &stack.mappings {
            files.add_mapping(stack.tgid, mapping, &frames);
        }
        for &(&address, raw) in &frames {
            if let RawFrame::BuildId { id, offset } = *raw
                && files.code.place(address).is_none()
                && let Some(module) = finder.by_build_id(id)
                && let Ok(elf) = Elf::open(&module.reachable)
                && let Some(at) = elf.address_of(offset)
            {
                files.add(module, Some(id), Arc::new(elf), address.wrapping_sub(at));
            }
        }
        files.add_program(stack, copied);
        files
    }

    /// Adds a mapped file: the mapped one itself while its process lives, else the one at its path.
    fn add_mapping(&mut self, tgid: u32, mapping: &Mapping, frames: &[(&u64, &RawFrame)]) {
        let Mapping { begin, end, offset, inode, path } = mapping;
        let exact =
            Module { path: path.clone(), reachable: format!("/proc/{tgid}/map_files/{begin:x}-{end:x}").into() };
        for module in [exact, names::module(tgid, path)] {
            if !names::is_file(&module.reachable) {
                continue;
            }
            let Ok(elf) = Elf::open(&module.reachable) else { continue };
            let id = names::build_id(&module.reachable);
            let is_told = frames.iter().any(|&(address, raw)| {
                let told = if let RawFrame::BuildId { id, .. } = raw { Some(*id) } else { None };
                (begin..end).contains(&address) && told.is_some() && told == id
            });
            if (is_told || elf.inode() == Some(*inode))
                && let Some(bias) = elf.bias(*offset, *begin)
            {
                let elf = Arc::new(elf);
                self.code.add(*begin..*end, bias, self.known.len() as u16, &elf);
                self.known.push((module, id, elf));
                return;
            }
        }
    }

    /// Adds the program, unless a frame has already placed it.
    fn add_program(&mut self, stack: &Stack, copied: &Copied) {
        let (begin, end) = copied.code;
        if begin == 0 || begin >= end || self.code.place(begin).is_some() || self.code.place(end - 1).is_some() {
            return;
        }
        let exe = stack
            .program
            .iter()
            .map(|path| Module { path: path.clone(), reachable: format!("/proc/{}/exe", stack.tgid).into() });
        for module in exe.chain(names::programs(stack)) {
            if !names::is_file(&module.reachable) {
                continue;
            }
            let Ok(elf) = Elf::open(&module.reachable) else { continue };
            if elf.inode() != Some(copied.program_inode) {
                continue;
            }
            let Some(range) = elf.code_range() else { continue };
            let bias = end.wrapping_sub(range.end);
            // Some kernels set the begin of the code to that of the first loaded segment of any kind.
            if begin <= range.start.wrapping_add(bias) {
                let id = names::build_id(&module.reachable);
                self.add(module, id, Arc::new(elf), bias);
                return;
            }
        }
    }

    /// Adds all code of a file, its addresses moved by `bias`.
    fn add(&mut self, module: Module, id: Option<[u8; 20]>, elf: Arc<Elf>, bias: u64) {
        for range in elf.code_ranges() {
            let at = range.start.wrapping_add(bias)..range.end.wrapping_add(bias);
            if at.start < at.end {
                self.code.add(at, bias, self.known.len() as u16, &elf);
            }
        }
        self.known.push((module, id, elf));
    }

    fn place(&self, address: u64, is_return: bool) -> Placed {
        let unknown = Frame { offset: address, sure: true, ..Frame::default() };
        let found = self.code.place(address.saturating_sub(u64::from(is_return)));
        let Some((file, inside)) = found else { return Placed { frame: unknown, module: None } };
        let Some((module, id, elf)) = self.known.get(usize::from(file)) else {
            return Placed { frame: unknown, module: None };
        };
        let Some(offset) = elf.offset_of(inside) else { return Placed { frame: unknown, module: None } };
        let frame = Frame {
            build_id: id.as_ref().map(|id| hexadecimal(id)),
            offset: offset + u64::from(is_return),
            sure: true,
            ..Frame::default()
        };
        Placed { frame, module: Some(module.clone()) }
    }
}

/// Unwinds a stack from untrusted bytes, in our own code.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(copied: &Copied) -> bool {
    let tgid = std::process::id();
    let stack =
        Stack { tgid, copied: Some(Box::new(copied.clone())), mappings: super::mappings(tgid), ..Stack::default() };
    let found = follow(&stack, &mut Finder::new(&stack));
    found.is_none_or(|(placed, _)| placed.len() <= FRAMES_MAX)
}

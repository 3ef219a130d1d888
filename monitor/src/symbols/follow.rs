//! The frames of a crash by the tables of the files, from the copy of registers and stack that the kernel programs made. Runs in the
//! process of its own, see the module above.
//!
//! Where each file was in memory is known from three sources, since a process is mostly gone before its maps can be read: those maps
//! if they came in time; each frame of the kernel's, as address, build id and offset; and for the program itself, where the kernel says
//! that its code begins and ends. A file is believed when its build id or its inode is the one that was mapped.

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
    /// The stack from its pointer on.
    pub(super) stack: Vec<u8>,
}

/// The frames, the innermost first, and whether the last is where the stack begins; `None` where the tables lead no further than to
/// where the process was.
pub(super) fn follow(stack: &Stack, finder: &mut Finder<'_>) -> Option<(Vec<Placed>, bool)> {
    let copied = stack.copied.as_deref()?;
    let files = Files::find(stack, copied, finder);
    let mut addresses = Vec::new();
    let end = files.code.walk(copied.registers, &copied.stack, &mut Cache::default(), |address| {
        // What is returned to is behind the call, which may be the last of its function.
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
        // The kernel came here too, by frame pointers, and went on.
        placed.extend(names::chain(stack, at + 1, finder));
    }
    Some((placed, end == End::Whole))
}

/// The files whose place in memory is known.
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

    /// What was mapped, whatever is at its path by now, while its process lives; and else what is at its path.
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

    /// The program, unless a frame has told where it is.
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
            // Some kernels let the code begin where the first part of the file is loaded, whatever that is.
            if begin <= range.start.wrapping_add(bias) {
                let id = names::build_id(&module.reachable);
                self.add(module, id, Arc::new(elf), bias);
                return;
            }
        }
    }

    /// All code of a file whose addresses are moved by `bias`.
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

/// Walks up a stack that was made by others, in code that is our own.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(copied: &Copied) -> bool {
    let tgid = std::process::id();
    let stack =
        Stack { tgid, copied: Some(Box::new(copied.clone())), mappings: super::mappings(tgid), ..Stack::default() };
    let found = follow(&stack, &mut Finder::new(&stack));
    found.is_none_or(|(placed, _)| placed.len() <= FRAMES_MAX)
}

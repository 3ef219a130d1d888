//! Build ids and symbols from the files on disk. Runs in a process of its own, see the module above.
//!
//! A path proves nothing: the file may have been replaced since, or be another one in another mount namespace. So where
//! the kernel gave a build id, only a file with that build id is believed.

use std::{
    collections::HashMap,
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use blazesym::{
    helper::read_elf_build_id,
    symbolize::{
        Input, Symbolized, Symbolizer,
        source::{Elf, Source},
    },
};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::{Frame, Question, RawFrame, Stack, maps, places};
use crate::host::privilege;

/// Memory and processor time that the process may use; a browser's symbols fit. Source lines of thousands of places take longer.
const MEMORY_MAX: u64 = 2 * 1024 * 1024 * 1024;
const SECONDS_MAX: u64 = 5;
const SECONDS_FOR_PLACES: u64 = 120;
/// Where distributions put symbols that they have taken out of programs.
const DEBUG_FILES: &str = "/usr/lib/debug/.build-id";

/// What `defib locate` does: a [`Question`] comes by standard input, its answer goes to standard output, both as JSON.
///
/// # Errors
/// When the input is no stack, or nobody takes the output.
pub(crate) fn locate() -> Result<()> {
    let limit = |resource, limit| {
        setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) }).context("cannot limit this process")
    };
    limit(Resource::As, MEMORY_MAX)?;
    limit(Resource::Core, 0)?;
    privilege::only_symbols()?;
    let mut question = Vec::new();
    std::io::stdin().read_to_end(&mut question).context("cannot read a question")?;
    let answer = match serde_json::from_slice(&question).context("this is no question")? {
        Question::Stack(stack) => {
            limit(Resource::Cpu, SECONDS_MAX)?;
            serde_json::to_vec(&resolve(&stack))
        }
        Question::Places(places) => {
            limit(Resource::Cpu, SECONDS_FOR_PLACES)?;
            serde_json::to_vec(&places::name(&places))
        }
    };
    std::io::stdout().write_all(&answer.context("cannot write an answer")?).context("cannot write an answer")
}

/// A file, and the way to it from here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Module {
    /// As its process saw it.
    path: String,
    /// As it can be opened.
    reachable: PathBuf,
}

/// Names all frames, as far as that is possible.
pub(super) fn resolve(stack: &Stack) -> Vec<Frame> {
    let mut finder = Finder::new(stack);
    let symbolizer = Symbolizer::builder().enable_code_info(false).enable_inlined_fns(false).build();
    let frames = stack.frames.iter().enumerate();
    frames
        .map(|(at, raw)| {
            let mut frame = Frame::unresolved(raw);
            if let Some(module) = finder.module(raw, &mut frame) {
                // An outer frame's address is the one behind its call, which may be the first of another function.
                let back = u64::from(at > 0);
                if let Some((name, offset)) = symbol(&symbolizer, &module, &frame, back) {
                    (frame.symbol, frame.symbol_offset) = (Some(name), Some(offset + back));
                }
                frame.module = Some(module.path);
            }
            frame
        })
        .collect()
}

/// Finds the files of frames, each build id once.
struct Finder<'a> {
    stack: &'a Stack,
    /// Candidates, the likely ones first; completed by what other processes have mapped when those do not suffice.
    candidates: Vec<Module>,
    searched_all: bool,
    known: HashMap<[u8; 20], Option<Module>>,
}

impl<'a> Finder<'a> {
    fn new(stack: &'a Stack) -> Self {
        let own = stack.mappings.iter().map(|mapping| module(stack.tgid, &mapping.path));
        let program = stack.program.iter().flat_map(|path| maps::places_of(path));
        let mut candidates: Vec<_> = own.chain(program.map(|path| module(stack.tgid, &path))).collect();
        candidates.dedup();
        Self { stack, candidates, searched_all: false, known: HashMap::new() }
    }

    /// The file of a frame; for a bare address also turns it into an offset and adds the build id.
    fn module(&mut self, raw: &RawFrame, frame: &mut Frame) -> Option<Module> {
        match *raw {
            RawFrame::BuildId { id, .. } => self.by_build_id(id),
            RawFrame::Address(address) => {
                let mapping =
                    self.stack.mappings.iter().find(|mapping| (mapping.begin..mapping.end).contains(&address))?;
                let module = module(self.stack.tgid, &mapping.path);
                frame.offset = address - mapping.begin + mapping.offset;
                frame.build_id = build_id(&module.reachable).map(|id| hexadecimal(&id));
                Some(module)
            }
        }
    }

    fn by_build_id(&mut self, id: [u8; 20]) -> Option<Module> {
        if let Some(known) = self.known.get(&id) {
            return known.clone();
        }
        let fits = |module: &&Module| build_id(&module.reachable) == Some(id);
        let mut found = self.candidates.iter().find(fits).cloned();
        if found.is_none() && !self.searched_all {
            self.searched_all = true;
            self.candidates = maps::files_of_all().into_iter().map(|(pid, path)| module(pid, &path)).collect();
            found = self.candidates.iter().find(fits).cloned();
        }
        self.known.insert(id, found.clone());
        found
    }
}

/// The way to a file leads through the root of a process that sees it, while that lives.
fn module(pid: u32, path: &str) -> Module {
    let through = PathBuf::from(format!("/proc/{pid}/root{path}"));
    let reachable = if through.exists() { through } else { path.into() };
    Module { path: path.to_owned(), reachable }
}

/// Build id of a file, zero-padded as the kernel gives it.
fn build_id(path: &Path) -> Option<[u8; 20]> {
    if !is_file(path) {
        return None;
    }
    let found = read_elf_build_id(path).ok()??;
    let mut id = [0; 20];
    id.get_mut(..found.len())?.copy_from_slice(&found);
    Some(id)
}

fn symbol(symbolizer: &Symbolizer, module: &Module, frame: &Frame, back: u64) -> Option<(String, u64)> {
    let separate = frame.build_id.as_deref().and_then(debug_file);
    // A file of symbols alone has its sections elsewhere, but the same segments, so the offset leads to the same address.
    let files = [Some(module.reachable.clone()), separate].into_iter().flatten();
    files.filter(|path| is_file(path)).find_map(|path| {
        let mut elf = Elf::new(path);
        // A function's name is all that is wanted, and reading source lines takes longer than a crash is waited for.
        elf.debug_syms = false;
        let source = Source::Elf(elf);
        match symbolizer.symbolize_single(&source, Input::FileOffset(frame.offset.checked_sub(back)?)) {
            Ok(Symbolized::Sym(sym)) => Some((sym.name.into_owned(), sym.offset as u64)),
            Ok(Symbolized::Unknown(_)) | Err(_) => None,
        }
    })
}

pub(super) fn debug_file(build_id: &str) -> Option<PathBuf> {
    let (directory, name) = build_id.split_at_checked(2)?;
    Some(Path::new(DEBUG_FILES).join(directory).join(format!("{name}.debug")))
}

/// What was a file when it was mapped may be a pipe by now, and opening that would wait.
pub(super) fn is_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
}

/// Two digits a byte.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::Mapping;

    /// A function with a name to look for.
    #[inline(never)]
    fn a_place_to_be_found() -> u64 {
        std::hint::black_box(7)
    }

    fn of_this_process(address: u64) -> Stack {
        let mut stack = Stack {
            tgid: std::process::id(),
            frames: vec![RawFrame::Address(address)],
            mappings: Vec::new(),
            program: None,
        };
        stack.look_at_process();
        stack
    }

    #[test]
    fn an_address_becomes_module_offset_and_function() {
        assert_eq!(a_place_to_be_found(), 7);
        let frames = resolve(&of_this_process(a_place_to_be_found as fn() -> u64 as usize as u64));
        let frame = &frames[0];
        let own = std::env::current_exe().expect("a path").display().to_string();
        assert_eq!(frame.module.as_deref(), Some(own.as_str()));
        assert!(frame.symbol.as_deref().is_some_and(|name| name.ends_with("a_place_to_be_found")), "{frame:?}");
        assert_eq!(frame.symbol_offset, Some(0));
    }

    #[test]
    fn a_build_id_finds_its_file_among_those_mapped_anywhere_and_nothing_else() {
        let stack = of_this_process(libc::getpid as *const () as usize as u64);
        let by_address = resolve(&stack).remove(0);
        assert!(by_address.symbol.as_deref().is_some_and(|name| name.contains("getpid")), "{by_address:?}");
        let path = by_address.module.clone().expect("the C library");
        let id = build_id(Path::new(&path)).expect("the C library has a build id");
        // The process is gone, and only the build id is left.
        let frames = vec![RawFrame::BuildId { id, offset: by_address.offset }];
        let stack = Stack { tgid: u32::MAX, frames, mappings: Vec::new(), program: None };
        assert_eq!(resolve(&stack).remove(0), by_address);
        let other = RawFrame::BuildId { id: [0xee; 20], offset: by_address.offset };
        let unknown = resolve(&Stack { frames: vec![other], ..stack }).remove(0);
        assert_eq!((unknown.module, unknown.symbol), (None, None));
        assert_eq!(unknown.build_id, Some("ee".repeat(20)));
    }

    #[test]
    fn files_that_are_no_programs_are_passed_over() {
        let place = tempfile::tempdir().expect("a directory");
        let fifo = place.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .expect("a pipe");
        let own = fs::read(std::env::current_exe().expect("a path")).expect("readable");
        for (name, bytes) in
            [("empty", &own[..0]), ("header", &own[..64]), ("cut", &own[..4096]), ("text", b"#!/bin/sh")]
        {
            fs::write(place.path().join(name), bytes).expect("written");
        }
        for name in ["fifo", "empty", "header", "cut", "text", "missing"] {
            let path = place.path().join(name).display().to_string();
            assert_eq!(build_id(Path::new(&path)), None, "{name}");
            let mappings = vec![Mapping { begin: 0, end: 0x1000, offset: 0, path: path.clone() }];
            let stack = Stack { tgid: u32::MAX, frames: vec![RawFrame::Address(0x10)], mappings, program: None };
            assert_eq!(resolve(&stack)[0].symbol, None, "{name}");
        }
    }
}

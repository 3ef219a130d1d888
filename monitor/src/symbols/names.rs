//! Build ids and symbols from the files on disk. Runs in a process of its own, see the module above.
//!
//! A path proves nothing: the file may have been replaced since, or be another one in another mount namespace. So where
//! the kernel gave a build id, only a file with that build id is believed.

use std::{
    collections::HashMap,
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
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

use super::{FRAMES_MAX, Frame, Located, NAME_MAX, Question, RawFrame, Stack, follow, maps, places};
use crate::{host::privilege, text::shortened};

/// Address space of the process, bytes: it maps files whole and needs its own memory; a browser's symbols fit.
const ADDRESSES_MAX: u64 = 2 * 1024 * 1024 * 1024;
const MEMORY_MAX: u64 = 256 * 1024 * 1024;
/// Limit of processor time, seconds. Source lines of thousands of places take longer.
const SECONDS_MAX: u64 = 5;
const SECONDS_FOR_PLACES: u64 = 120;
/// Longest search for a file among all processes. Many processes with many mappings can use it up; then frames whose
/// file was not found have no names.
const SEARCH: Duration = Duration::from_secs(2);
/// Bytes read of a question: enough for thousands of places.
const QUESTION_MAX: u64 = 16 * 1024 * 1024;
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
    limit(Resource::As, ADDRESSES_MAX)?;
    limit(Resource::Core, 0)?;
    privilege::only_symbols()?;
    // When memory runs out in the agent's cgroup, the kernel kills this process first.
    fs::write("/proc/self/oom_score_adj", "1000").ok();
    let mut question = Vec::new();
    std::io::stdin().take(QUESTION_MAX).read_to_end(&mut question).context("cannot read a question")?;
    let answer = match serde_json::from_slice(&question).context("this is no question")? {
        Question::Stack(stack) => {
            limit(Resource::Cpu, SECONDS_MAX)?;
            limit(Resource::Data, MEMORY_MAX)?;
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
pub(super) struct Module {
    /// As its process saw it.
    pub(super) path: String,
    /// As it can be opened.
    pub(super) reachable: PathBuf,
}

/// A frame and its file, if that was found; the function is not known yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) frame: Frame,
    pub(super) module: Option<Module>,
}

/// Finds and names as many frames as possible.
pub(super) fn resolve(stack: &Stack) -> Located {
    let mut finder = Finder::new(stack);
    let (placed, whole) = follow::follow(stack, &mut finder).unwrap_or_else(|| (chain(stack, 0, &mut finder), false));
    let symbolizer = Symbolizer::builder().enable_code_info(false).enable_inlined_fns(false).build();
    let frames = placed.into_iter().take(FRAMES_MAX).enumerate().map(|(at, placed)| {
        let Placed { mut frame, module } = placed;
        let Some(module) = module else { return frame };
        // An outer frame's address is after its call, and may be the first of another function.
        let back = u64::from(at > 0);
        if let Some((name, offset)) = symbol(&symbolizer, &module, &frame, back) {
            (frame.symbol, frame.symbol_offset) = (Some(name), Some(offset + back));
        }
        frame.module = Some(shortened(&module.path, NAME_MAX));
        frame
    });
    Located { frames: frames.collect(), whole }
}

/// The frames that the kernel found, from number `from` on. Only the innermost of all is sure.
pub(super) fn chain(stack: &Stack, from: usize, finder: &mut Finder<'_>) -> Vec<Placed> {
    let frames = stack.frames.iter().enumerate().skip(from);
    frames
        .map(|(at, raw)| {
            let mut frame = Frame { sure: at == 0, ..Frame::unresolved(raw) };
            let module = finder.module(raw, &mut frame);
            Placed { frame, module }
        })
        .collect()
}

/// Finds the files of frames, each build id once.
pub(super) struct Finder<'a> {
    stack: &'a Stack,
    /// Candidates, the likely ones first; completed by what other processes have mapped when those do not suffice.
    candidates: Vec<Module>,
    searched_all: bool,
    known: HashMap<[u8; 20], Option<Module>>,
    deadline: Instant,
}

impl<'a> Finder<'a> {
    pub(super) fn new(stack: &'a Stack) -> Self {
        let own = stack.mappings.iter().map(|mapping| module(stack.tgid, &mapping.path));
        let mut candidates: Vec<_> = own.collect();
        candidates.extend(programs(stack));
        candidates.dedup();
        Self { stack, candidates, searched_all: false, known: HashMap::new(), deadline: Instant::now() + SEARCH }
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

    /// The file with this build id.
    pub(super) fn by_build_id(&mut self, id: [u8; 20]) -> Option<Module> {
        if let Some(known) = self.known.get(&id) {
            return known.clone();
        }
        let deadline = self.deadline;
        let fits = |module: &&Module| Instant::now() < deadline && build_id(&module.reachable) == Some(id);
        let mut found = self.candidates.iter().find(fits).cloned();
        if found.is_none() && !self.searched_all {
            self.searched_all = true;
            self.candidates = maps::files_of_all(deadline).into_iter().map(|(pid, path)| module(pid, &path)).collect();
            found = self.candidates.iter().find(fits).cloned();
        }
        self.known.insert(id, found.clone());
        found
    }
}

/// Files that may be the program of the process.
pub(super) fn programs(stack: &Stack) -> impl Iterator<Item = Module> {
    let places = stack.program.iter().flat_map(|path| maps::places_of(path));
    places.map(|path| module(stack.tgid, &path))
}

/// The way to a file leads through the root of a process that sees it, while that lives.
pub(super) fn module(pid: u32, path: &str) -> Module {
    let through = PathBuf::from(format!("/proc/{pid}/root{path}"));
    let reachable = if through.exists() { through } else { path.into() };
    Module { path: path.to_owned(), reachable }
}

/// Build id of a file, zero-padded as the kernel gives it.
pub(super) fn build_id(path: &Path) -> Option<[u8; 20]> {
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
            Ok(Symbolized::Sym(sym)) => Some((shortened(&sym.name, NAME_MAX), sym.offset as u64)),
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
        let tgid = std::process::id();
        let frames = vec![RawFrame::Address(address)];
        Stack { tgid, frames, mappings: crate::symbols::mappings(tgid), ..Stack::default() }
    }

    #[test]
    fn an_address_becomes_module_offset_and_function() {
        assert_eq!(a_place_to_be_found(), 7);
        let frames = resolve(&of_this_process(a_place_to_be_found as fn() -> u64 as usize as u64)).frames;
        let frame = &frames[0];
        let own = std::env::current_exe().expect("a path").display().to_string();
        assert_eq!(frame.module.as_deref(), Some(own.as_str()));
        assert!(frame.symbol.as_deref().is_some_and(|name| name.ends_with("a_place_to_be_found")), "{frame:?}");
        assert_eq!(frame.symbol_offset, Some(0));
    }

    #[test]
    fn a_build_id_finds_its_file_among_those_mapped_anywhere_and_nothing_else() {
        let stack = of_this_process(libc::getpid as *const () as usize as u64);
        let by_address = resolve(&stack).frames.remove(0);
        assert!(by_address.symbol.as_deref().is_some_and(|name| name.contains("getpid")), "{by_address:?}");
        let path = by_address.module.clone().expect("the C library");
        let id = build_id(Path::new(&path)).expect("the C library has a build id");
        // The process is gone, and only the build id is left.
        let frames = vec![RawFrame::BuildId { id, offset: by_address.offset }];
        let stack = Stack { tgid: u32::MAX, frames, ..Stack::default() };
        assert_eq!(resolve(&stack).frames.remove(0), by_address);
        let other = RawFrame::BuildId { id: [0xee; 20], offset: by_address.offset };
        let unknown = resolve(&Stack { frames: vec![other], ..stack }).frames.remove(0);
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
            let mappings = vec![Mapping { begin: 0, end: 0x1000, offset: 0, inode: 1, path: path.clone() }];
            let frames = vec![RawFrame::Address(0x10)];
            let stack = Stack { tgid: u32::MAX, frames, mappings, ..Stack::default() };
            assert_eq!(resolve(&stack).frames[0].symbol, None, "{name}");
        }
    }

    /// A program of one page of code with one function, at 0x1000, of that name.
    fn crafted(name: &[u8]) -> Vec<u8> {
        const CODE: u64 = 0x1000;
        let header = |name: u32, kind: u32, flags: u64, at: u64, place: u64, size: u64, link: u32, entry: u64| {
            let mut bytes = [name.to_le_bytes(), kind.to_le_bytes()].concat();
            [flags, at, place, size].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
            // After the local symbols: only the first, empty one.
            bytes.extend([link.to_le_bytes(), 1_u32.to_le_bytes()].concat());
            [1_u64, entry].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
            bytes
        };
        let names = b"\0.text\0.symtab\0.strtab\0.shstrtab\0";
        let symbols = 2 * CODE;
        let strings = symbols + 48;
        let words = strings + name.len() as u64 + 2;
        let sections = (words + names.len() as u64).next_multiple_of(8);
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        let machine: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
        file.extend([3_u16.to_le_bytes(), machine.to_le_bytes()].concat());
        file.extend(1_u32.to_le_bytes());
        [CODE, 64, sections].iter().for_each(|word| file.extend(word.to_le_bytes()));
        file.extend(0_u32.to_le_bytes());
        [64_u16, 56, 1, 64, 5, 4].iter().for_each(|half| file.extend(half.to_le_bytes()));
        // All of it is code.
        file.extend([1_u32.to_le_bytes(), 5_u32.to_le_bytes()].concat());
        [0, 0, 0, sections, sections, CODE].iter().for_each(|word: &u64| file.extend(word.to_le_bytes()));
        file.resize(symbols as usize + 24, 0);
        file.extend(1_u32.to_le_bytes());
        file.extend([0x12, 0, 1, 0]);
        [CODE, 0x100].iter().for_each(|word: &u64| file.extend(word.to_le_bytes()));
        file.push(0);
        file.extend(name);
        file.push(0);
        file.extend(names);
        file.resize(sections as usize, 0);
        file.extend(header(0, 0, 0, 0, 0, 0, 0, 0));
        file.extend(header(1, 1, 6, CODE, CODE, CODE, 0, 0));
        file.extend(header(7, 2, 0, 0, symbols, 48, 3, 24));
        file.extend(header(15, 3, 0, 0, strings, name.len() as u64 + 2, 0, 0));
        file.extend(header(23, 3, 0, 0, words, names.len() as u64, 0, 0));
        file
    }

    #[test]
    fn a_name_of_megabytes_is_cut_and_says_so() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("crafted");
        let of = |name: &[u8]| {
            fs::write(&path, crafted(name)).expect("written");
            let path = path.display().to_string();
            let mappings = vec![Mapping { begin: 0, end: 0x2000, offset: 0, inode: 1, path }];
            let frames = vec![RawFrame::Address(0x1010)];
            let stack = Stack { tgid: u32::MAX, frames, mappings, ..Stack::default() };
            resolve(&stack).frames.remove(0).symbol.expect("the function has a name")
        };
        assert_eq!(of(b"short"), "short");
        let long = of(&b"n".repeat(13_500_000));
        assert!(long.len() <= NAME_MAX && long.ends_with("n… (13500000 bytes)"), "{} bytes", long.len());
        let places = |count| {
            let (files, places) = (vec![(path.clone(), None)], vec![(Some(0), 0x1010); count]);
            let answer = places::name(&places::Places { files, process: None, places });
            let names = answer.into_iter().flatten().filter_map(|named| named.function);
            names.map(|name| name.len()).collect::<Vec<_>>()
        };
        assert_eq!(places(1), [long.len()]);
        of(&b"n".repeat(2000));
        let lengths = places(10_000);
        assert!(lengths.iter().all(|&length| length <= NAME_MAX) && lengths.len() < 10_000);
        assert!(lengths.iter().sum::<usize>() <= 8 * 1024 * 1024);
    }
}

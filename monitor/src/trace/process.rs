//! A process that is traced: what it has mapped, where its allocators are, how its stacks are followed.

use std::{
    collections::HashMap,
    fs,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use framehop::{
    MayAllocateDuringUnwind, Unwinder as _,
    x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64},
};
use monitor_common::allocation::Sample;

use super::{
    allocator::{self, Points},
    module::{Bytes, Module},
    stacks::{DEPTH_MAX, Frame},
};
use crate::{
    host::{
        bounded,
        process::{self, Identity},
    },
    symbols::{self, Mapping},
};

/// Files that are known at a time; a service has some tens.
const FILES_MAX: usize = 1024;

/// A file that some traced process has mapped.
#[derive(Debug)]
pub(super) struct Mapped {
    /// Its path, as its process sees it.
    pub(super) path: String,
    /// The way to it from here, which holds though it be deleted or replaced.
    pub(super) reachable: PathBuf,
    /// What is in it.
    pub(super) module: Arc<Module>,
    /// Where to probe it.
    pub(super) points: Arc<Points>,
    /// GNU build id in hexadecimal digits.
    pub(super) build_id: Option<String>,
}

/// All of them, by what they are on disk.
#[derive(Debug, Default)]
pub(super) struct Files {
    known: HashMap<(u64, u64), Option<u16>>,
    files: Vec<Mapped>,
}

impl Files {
    /// A file.
    pub(super) fn get(&self, number: u16) -> Option<&Mapped> {
        self.files.get(usize::from(number))
    }

    /// All of them, in the order of their numbers.
    pub(super) fn all(&self) -> impl Iterator<Item = &Mapped> {
        self.files.iter()
    }

    /// The number of the file behind a mapping; `None` when it is none that we can read.
    fn number(&mut self, tgid: u32, mapping: &Mapping, is_program: bool) -> Option<u16> {
        // What is mapped, whatever is at its path by now. Without the right for that, what is at its path.
        let exact = PathBuf::from(format!("/proc/{tgid}/map_files/{:x}-{:x}", mapping.begin, mapping.end));
        let by_path = PathBuf::from(format!("/proc/{tgid}/root{}", mapping.path));
        let way = [exact, by_path].into_iter().find_map(|way| Some((fs::metadata(&way).ok()?, way)));
        let (metadata, way) = way.filter(|(metadata, _)| metadata.is_file())?;
        let key = (metadata.dev(), metadata.ino());
        if let Some(&known) = self.known.get(&key) {
            return known;
        }
        let number = (self.files.len() < FILES_MAX).then_some(self.files.len() as u16);
        let opened = number.zip(Module::open(&way).inspect_err(|error| tracing::debug!("{error:#}")).ok());
        let number = opened.map(|(number, module)| {
            let points = allocator::points(&module, is_program);
            let reachable = format!("/proc/{}/fd/{}", std::process::id(), module.descriptor().as_raw_fd());
            self.files.push(Mapped {
                path: mapping.path.clone(),
                reachable: reachable.into(),
                build_id: module.build_id(),
                points: Arc::new(points),
                module: Arc::new(module),
            });
            number
        });
        self.known.insert(key, number);
        number
    }
}

/// Code of a file in the process' memory.
#[derive(Debug)]
struct Code {
    begin: u64,
    end: u64,
    /// What is added to an address in the file.
    bias: u64,
    file: u16,
}

/// See the module.
pub(super) struct Process {
    /// Who it is.
    pub(super) identity: Identity,
    /// The file of its program.
    pub(super) program: Option<u16>,
    code: Vec<Code>,
    unwinder: UnwinderX86_64<Bytes>,
}

impl Process {
    /// Looks at a process.
    ///
    /// # Errors
    /// When it is gone, or this process may not look at it.
    pub(super) fn open(tgid: u32, files: &mut Files) -> Result<Self> {
        let identity = process::identity(tgid)?.with_context(|| format!("process {tgid} has gone"))?;
        let mut new = Self { identity, program: None, code: Vec::new(), unwinder: UnwinderX86_64::new() };
        new.look(files);
        anyhow::ensure!(!new.code.is_empty(), "cannot see what process {tgid} has mapped");
        Ok(new)
    }

    /// Looks again at what it has mapped: libraries come and go.
    pub(super) fn look(&mut self, files: &mut Files) {
        let tgid = self.identity.tgid;
        let program = bounded::link(format!("/proc/{tgid}/exe")).ok();
        let program = program.as_ref().and_then(|path| path.to_str());
        let mappings = symbols::mappings(tgid);
        let is_same = |code: &Code, mapping: &Mapping| (code.begin, code.end) == (mapping.begin, mapping.end);
        if self.code.len() == mappings.len() && self.code.iter().zip(&mappings).all(|(code, new)| is_same(code, new)) {
            return;
        }
        self.code.clear();
        self.unwinder = UnwinderX86_64::new();
        for mapping in mappings {
            let is_program = Some(mapping.path.as_str()) == program;
            let Some(number) = files.number(tgid, &mapping, is_program) else { continue };
            let Some(file) = files.get(number) else { continue };
            let Some(bias) = file.module.bias(mapping.offset, mapping.begin) else { continue };
            if is_program {
                self.program = Some(number);
            }
            self.code.push(Code { begin: mapping.begin, end: mapping.end, bias, file: number });
            self.unwinder.add_module(framehop::Module::new(
                String::new(),
                mapping.begin..mapping.end,
                bias,
                file.module.unwinding(),
            ));
        }
    }

    /// The files in which it has allocators.
    pub(super) fn allocators(&self, files: &Files) -> Vec<u16> {
        let mut found: Vec<u16> = self.code.iter().map(|code| code.file).collect();
        found.sort_unstable();
        found.dedup();
        found.retain(|&number| files.get(number).is_some_and(|file| !file.points.is_empty()));
        found
    }

    /// The stack of a sample, the innermost frame first, and whether it was followed to its beginning.
    pub(super) fn unwind(&self, sample: &Sample, cache: &mut Cache) -> (Vec<Frame>, bool) {
        let stack = sample.stack.as_flattened();
        let stack = &stack[..(sample.stack_len as usize).min(stack.len())];
        let mut read = |address: u64| {
            let at = usize::try_from(address.checked_sub(sample.sp).ok_or(())?).map_err(drop)?;
            let word = stack.get(at..at + 8).ok_or(())?;
            Ok(u64::from_ne_bytes(word.try_into().map_err(drop)?))
        };
        let mut frames = vec![self.frame(sample.ip, 0)];
        let caller = sample.caller;
        let registers = UnwindRegsX86_64::new(caller, sample.sp, sample.bp);
        let mut iterator = self.unwinder.iter_frames(caller, registers, &mut cache.0, &mut read);
        let mut is_first = true;
        loop {
            match iterator.next() {
                Ok(Some(frame)) if frames.len() <= DEPTH_MAX => {
                    // The first is an address to return to as well, though it was given as one to begin at.
                    let address = if is_first { caller } else { frame.address() };
                    is_first = false;
                    frames.push(self.frame(address, 1));
                }
                Ok(None) => return (frames, true),
                Ok(Some(_)) | Err(_) => return (frames, false),
            }
        }
    }

    fn frame(&self, address: u64, back: u64) -> Frame {
        let address = address.saturating_sub(back);
        match self.code.iter().find(|code| (code.begin..code.end).contains(&address)) {
            Some(code) => Frame { module: Some(code.file), address: address.wrapping_sub(code.bias) },
            None => Frame { module: None, address },
        }
    }
}

/// Rules of unwinding that were found, for one process after the other.
#[derive(Default)]
pub(super) struct Cache(CacheX86_64<MayAllocateDuringUnwind>);

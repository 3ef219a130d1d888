//! A process that is traced: what it has mapped, where its allocators are, how its stacks are followed.

use std::{
    collections::HashMap,
    fs,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use monitor_common::allocation::Sample;

use super::{
    allocator::{self, Points},
    stacks::{DEPTH_MAX, Frame},
};
use crate::{
    host::{
        bounded,
        process::{self, Identity},
    },
    symbols::{self, Mapping},
    unwind::{Cache, End, Registers, Unwinder, module::Module},
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

/// See the module.
pub(super) struct Process {
    /// Who it is.
    pub(super) identity: Identity,
    /// The file of its program.
    pub(super) program: Option<u16>,
    code: Unwinder,
}

impl Process {
    /// Looks at a process.
    ///
    /// # Errors
    /// When it is gone, or this process may not look at it.
    pub(super) fn open(tgid: u32, files: &mut Files) -> Result<Self> {
        let identity = process::identity(tgid)?.with_context(|| format!("process {tgid} has gone"))?;
        let mut new = Self { identity, program: None, code: Unwinder::default() };
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
        if self.code.ranges().eq(mappings.iter().map(|mapping| (mapping.begin, mapping.end))) {
            return;
        }
        self.code = Unwinder::default();
        for mapping in mappings {
            let is_program = Some(mapping.path.as_str()) == program;
            let Some(number) = files.number(tgid, &mapping, is_program) else { continue };
            let Some(file) = files.get(number) else { continue };
            let Some(bias) = file.module.bias(mapping.offset, mapping.begin) else { continue };
            if is_program {
                self.program = Some(number);
            }
            self.code.add(mapping.begin..mapping.end, bias, number, &file.module);
        }
    }

    /// The files in which it has allocators.
    pub(super) fn allocators(&self, files: &Files) -> Vec<u16> {
        let mut found: Vec<u16> = self.code.files().collect();
        found.sort_unstable();
        found.dedup();
        found.retain(|&number| files.get(number).is_some_and(|file| !file.points.is_empty()));
        found
    }

    /// The stack of a sample, the innermost frame first, and whether it was followed to its beginning.
    pub(super) fn unwind(&self, sample: &Sample, cache: &mut Cache) -> (Vec<Frame>, bool) {
        let stack = sample.stack.as_flattened();
        let stack = &stack[..(sample.stack_len as usize).min(stack.len())];
        let mut frames = vec![self.frame(sample.ip, 0)];
        let registers = Registers { ip: sample.caller, sp: sample.sp, bp: sample.bp, lr: 0 };
        // The first address is a return address too.
        let end = self.code.walk(registers, stack, cache, |address| {
            let has_room = frames.len() <= DEPTH_MAX;
            if has_room {
                frames.push(self.frame(address, 1));
            }
            has_room
        });
        (frames, end == End::Whole)
    }

    fn frame(&self, address: u64, back: u64) -> Frame {
        let address = address.saturating_sub(back);
        match self.code.place(address) {
            Some((file, address)) => Frame { module: Some(file), address },
            None => Frame { module: None, address },
        }
    }
}

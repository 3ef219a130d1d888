//! Unwinds stacks of other processes by the unwind tables of their files (`.eh_frame`), as a debugger does: from a copy
//! of registers and stack, without the process.
//!
//! * [`module`]: a program or library, its tables and functions
//! * this file: where the code of one process is, and the walk up its stack
//!
//! Serves traces and crashes. Runs only in short-lived processes, since it reads files of others.

pub(crate) mod module;

use std::{ops::Range, sync::Arc};

use framehop::{CacheNative, MayAllocateDuringUnwind, UnwindRegsNative, Unwinder as _, UnwinderNative};

use serde::{Deserialize, Serialize};

use module::{Bytes, Module};

/// A cache of unwind rules, reused from process to process.
#[derive(Default)]
pub(crate) struct Cache(CacheNative<MayAllocateDuringUnwind>);

/// Registers that a walk begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registers {
    /// Instruction pointer.
    pub(crate) ip: u64,
    /// Stack pointer.
    pub(crate) sp: u64,
    /// Frame pointer.
    pub(crate) bp: u64,
    /// Link register, on processors that have one.
    pub(crate) lr: u64,
}

impl Registers {
    #[cfg(target_arch = "aarch64")]
    fn native(self) -> UnwindRegsNative {
        UnwindRegsNative::new(self.lr, self.sp, self.bp)
    }

    #[cfg(not(target_arch = "aarch64"))]
    fn native(self) -> UnwindRegsNative {
        UnwindRegsNative::new(self.ip, self.sp, self.bp)
    }
}

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// At the first frame of the stack.
    Whole,
    /// Before that: it could not go on.
    Cut,
}

/// Code of a file in a process' memory.
#[derive(Debug)]
struct Code {
    begin: u64,
    end: u64,
    /// What is added to an address in the file.
    bias: u64,
    file: u16,
    module: Arc<Module>,
}

/// The code of one process.
#[derive(Default)]
pub(crate) struct Unwinder {
    code: Vec<Code>,
    tables: UnwinderNative<Bytes, MayAllocateDuringUnwind>,
}

impl Unwinder {
    /// Adds code: file number `file`, with its addresses moved by `bias`, is at these addresses.
    pub(crate) fn add(&mut self, at: Range<u64>, bias: u64, file: u16, module: &Arc<Module>) {
        self.tables.add_module(framehop::Module::new(String::new(), at.clone(), bias, module.unwinding()));
        self.code.push(Code { begin: at.start, end: at.end, bias, file, module: Arc::clone(module) });
    }

    /// True while nothing was added.
    pub(crate) fn is_empty(&self) -> bool {
        self.code.is_empty()
    }

    /// Address ranges of code, in the order in which it was added.
    pub(crate) fn ranges(&self) -> impl ExactSizeIterator<Item = (u64, u64)> {
        self.code.iter().map(|code| (code.begin, code.end))
    }

    /// Number of the file of each piece of code.
    pub(crate) fn files(&self) -> impl Iterator<Item = u16> {
        self.code.iter().map(|code| code.file)
    }

    /// The file at an address, and the address within the file; `None` where there is no file.
    pub(crate) fn place(&self, address: u64) -> Option<(u16, u64)> {
        self.at(address).map(|code| (code.file, address.wrapping_sub(code.bias)))
    }

    /// Whether the file's tables cover the function at an address. Otherwise its caller is a guess.
    pub(crate) fn has_table(&self, address: u64) -> bool {
        self.at(address).is_some_and(|code| code.module.extent(address.wrapping_sub(code.bias)).is_some())
    }

    fn at(&self, address: u64) -> Option<&Code> {
        self.code.iter().find(|code| (code.begin..code.end).contains(&address))
    }

    /// Walks up a stack; `stack` is a copy of it from the stack pointer on. `take` gets each address (the instruction
    /// pointer, then return addresses) and returns whether to go on.
    pub(crate) fn walk(
        &self,
        registers: Registers,
        stack: &[u8],
        cache: &mut Cache,
        mut take: impl FnMut(u64) -> bool,
    ) -> End {
        let mut read = |address: u64| {
            let at = usize::try_from(address.checked_sub(registers.sp).ok_or(())?).map_err(drop)?;
            let word = stack.get(at..at.checked_add(8).ok_or(())?).ok_or(())?;
            Ok(u64::from_ne_bytes(word.try_into().map_err(drop)?))
        };
        let mut frames = self.tables.iter_frames(registers.ip, registers.native(), &mut cache.0, &mut read);
        loop {
            match frames.next() {
                Ok(Some(frame)) if take(frame.address()) => {}
                Ok(None) => return End::Whole,
                Ok(Some(_)) | Err(_) => return End::Cut,
            }
        }
    }
}

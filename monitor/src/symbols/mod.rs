//! From the raw frames of a crash to module, offset and function name.
//!
//! * [`maps`]: files that a process has mapped
//! * [`look`]: stack and mappings of a process that is about to die, read on separate threads
//! * [`follow`]: frames that the kernel could not find, by the unwind tables of the files
//! * [`names`]: build ids and symbols from the files on disk
//! * [`places`]: source lines too, for many places at once
//! * this file: the frames, and the short-lived process of this binary in which [`names`] runs
//!
//! The files belong to others. The library maps them into memory, so a file that is truncated meanwhile would kill the
//! reading process, and a large table of symbols would stay in it. So a separate process (`locate`) reads them, with
//! limits of memory and time; when it fails, only the names are lost. A name may have any length, so each is cut when
//! it is read, and again when the agent reads the answer.

mod follow;
mod look;
mod maps;
mod names;
mod places;

use std::{process::Stdio, time::Duration};

use crate::text::shortened;
use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::Semaphore,
    time::timeout,
};

use follow::Copied;
pub(crate) use look::{Looked, Lookers};
pub(crate) use maps::Mapping;
#[cfg(any(test, fuzzing))]
pub(crate) use maps::fuzz as fuzz_maps;
pub(crate) use names::{hexadecimal, locate};
pub(crate) use places::{Named, Places};

/// The files with code that a process has mapped; nothing when it is gone. At most 512.
pub(crate) fn mappings(tgid: u32) -> Vec<Mapping> {
    maps::read(tgid, maps::Bounds::WHOLE, |_| true)
}

/// A frame as the kernel gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RawFrame {
    /// Build id, zero-padded, and offset in the file.
    BuildId {
        /// The build id.
        id: [u8; 20],
        /// The offset.
        offset: u64,
    },
    /// An address; the kernel could not read the build id.
    Address(u64),
}

/// A frame as people read it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Frame {
    /// Path of the file, as its process saw it; `None` when it was not found.
    pub(crate) module: Option<String>,
    /// GNU build id in hexadecimal digits.
    pub(crate) build_id: Option<String>,
    /// Offset in the file; the address when neither module nor build id is known.
    pub(crate) offset: u64,
    /// Function.
    pub(crate) symbol: Option<String>,
    /// Offset in the function.
    pub(crate) symbol_offset: Option<u64>,
    /// True for the innermost frame and those found by unwind tables. The others were found by frame pointers, and are
    /// right only in code that keeps them.
    #[serde(default)]
    pub(crate) sure: bool,
}

impl Frame {
    /// What the kernel told, without names.
    pub(crate) fn unresolved(raw: &RawFrame) -> Self {
        match raw {
            RawFrame::BuildId { id, offset } => {
                Self { build_id: Some(hexadecimal(id)), offset: *offset, ..Self::default() }
            }
            RawFrame::Address(address) => Self { offset: *address, ..Self::default() },
        }
    }
}

/// Frames with their names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Located {
    /// The innermost first.
    pub(crate) frames: Vec<Frame>,
    /// True when the last frame is the first of the stack.
    pub(crate) whole: bool,
}

/// A stack to be named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stack {
    /// The process, which may be gone.
    pub(crate) tgid: u32,
    /// Its frames, the innermost first.
    pub(crate) frames: Vec<RawFrame>,
    /// What it had mapped, when that could be read in time.
    mappings: Vec<Mapping>,
    /// Its registers and stack, when they were copied.
    copied: Option<Box<Copied>>,
    /// Its program's path, as far as the kernel knows it.
    pub(crate) program: Option<String>,
}

impl Stack {
    /// A stack of which only this is known.
    pub(crate) fn new(tgid: u32, frames: Vec<RawFrame>, program: Option<String>) -> Self {
        Self { tgid, frames, program, ..Self::default() }
    }
}

/// What the process that reads symbols is asked.
#[derive(Debug, Serialize, Deserialize)]
enum Question {
    Stack(Stack),
    Places(Places),
}

/// Longer than it takes to read the symbols of a large program, some hundred milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// And the source lines of thousands of places.
const PATIENCE_FOR_PLACES: Duration = Duration::from_secs(180);
/// Stacks named at a time, and those with the waiting ones; in a storm of crashes further stacks get no names.
const AT_A_TIME: usize = 2;
const WAITING: usize = 16;
/// Bytes kept of a name of a function or file. Names of C++ can have some KiB; after the first KiB come arguments of
/// templates.
const NAME_MAX: usize = 1024;
/// Most frames of a stack that are named.
const FRAMES_MAX: usize = 48;
/// Bytes read of an answer about a stack: [`FRAMES_MAX`] frames with two names of [`NAME_MAX`], each byte escaped as in
/// JSON (`\u0001`).
const ANSWER_MAX: u64 = 1024 * 1024;
/// Bytes read of an answer about thousands of places, in the process of a trace, not in the agent.
const ANSWER_MAX_FOR_PLACES: u64 = 16 * 1024 * 1024;

static PERMITS: Semaphore = Semaphore::const_new(AT_A_TIME);
static PLACES: Semaphore = Semaphore::const_new(WAITING);

/// Names the frames of a stack, in a separate process.
///
/// # Errors
/// When that process cannot be started, fails, or takes longer than five seconds; when too many stacks are being named.
pub(crate) async fn name(mut stack: Stack, looked: &Looked) -> Result<Located> {
    let _place = PLACES.try_acquire().context("too many crashes at once to look up the names of all")?;
    let found = looked.take().await;
    let permit = timeout(PATIENCE, PERMITS.acquire()).await;
    let _permit = permit.context("too many crashes at once to look up the names of all")??;
    (stack.mappings, stack.copied) = (found.mappings, found.copied);
    let question = Question::Stack(stack);
    let answer = timeout(PATIENCE, ask(&question, ANSWER_MAX)).await.context("symbols took too long")?;
    answer.map(Located::bounded)
}

/// Names many places, in a process of its own.
///
/// # Errors
/// When that process cannot be started, ends badly, or takes longer than three minutes.
pub(crate) async fn name_places(places: Places) -> Result<Vec<Vec<Named>>> {
    let question = Question::Places(places);
    timeout(PATIENCE_FOR_PLACES, ask(&question, ANSWER_MAX_FOR_PLACES)).await.context("symbols took too long")?
}

impl Located {
    /// Cuts the answer to the bounds of `locate` again: a hostile file may have taken over that process.
    fn bounded(mut self) -> Self {
        self.frames.truncate(FRAMES_MAX);
        for frame in &mut self.frames {
            for name in [&mut frame.module, &mut frame.build_id, &mut frame.symbol].into_iter().flatten() {
                *name = shortened(name, NAME_MAX);
            }
        }
        self
    }
}

async fn ask<T: DeserializeOwned>(question: &Question, most: u64) -> Result<T> {
    let question = serde_json::to_vec(question).context("cannot write down a question")?;
    let mut child = tokio::process::Command::new("/proc/self/exe")
        .arg("locate")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .env_clear()
        .current_dir("/")
        .kill_on_drop(true)
        .spawn()
        .context("cannot start a process that reads symbols")?;
    let mut input = child.stdin.take().context("no way to ask")?;
    input.write_all(&question).await.context("cannot ask for symbols")?;
    drop(input);
    let mut answer = Vec::new();
    let output = child.stdout.take().context("no way to hear an answer")?;
    output.take(most + 1).read_to_end(&mut answer).await.context("cannot read symbols")?;
    ensure!(answer.len() as u64 <= most, "the process that reads symbols says more than {most} bytes");
    let status = child.wait().await.context("cannot wait for symbols")?;
    ensure!(status.success(), "the process that reads symbols ended with {status}");
    serde_json::from_slice(&answer).context("cannot read symbols")
}

/// Reads any bytes as a slot of the programs' array, as a question, and as an answer about a stack.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    look::fuzz(bytes);
    if let Ok(located) = serde_json::from_slice::<Located>(bytes) {
        let located = located.bounded();
        assert!(located.frames.len() <= FRAMES_MAX);
        for frame in &located.frames {
            assert!([&frame.module, &frame.symbol].into_iter().flatten().all(|name| name.len() <= NAME_MAX));
        }
    }
}

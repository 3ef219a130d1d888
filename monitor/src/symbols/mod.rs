//! From the raw frames of a crash to module, offset and function name.
//!
//! * [`maps`]: which files a process has mapped, read when it is about to die
//! * [`names`]: build ids and symbols from the files on disk
//! * [`places`]: source lines too, for many places at once
//! * this file: the frames, and the short-lived process of this binary in which [`names`] runs
//!
//! The files belong to whoever made them. The library maps them into memory, so a file that is cut short meanwhile would
//! end the process that reads it; and a large table of symbols would stay with it. Hence a process of its own (`locate`),
//! limited in memory and time, whose end in any manner costs the names and nothing else.

mod maps;
mod names;
mod places;

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::Semaphore,
    time::timeout,
};

pub(crate) use maps::Mapping;
#[cfg(any(test, fuzzing))]
pub(crate) use maps::fuzz;
pub(crate) use names::{hexadecimal, locate};
pub(crate) use places::{Named, Places};

/// The files with code that a process has mapped; nothing when it is gone. At most 512.
pub(crate) fn mappings(tgid: u32) -> Vec<Mapping> {
    maps::read(tgid)
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

/// A stack to be named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stack {
    /// The process, which may be gone.
    pub(crate) tgid: u32,
    /// Its frames, the innermost first.
    pub(crate) frames: Vec<RawFrame>,
    /// What it had mapped, when that could be read in time.
    pub(crate) mappings: Vec<Mapping>,
    /// Its program's path, as far as the kernel knows it.
    pub(crate) program: Option<String>,
}

impl Stack {
    /// Reads what the process has mapped; nothing when it is gone.
    pub(crate) fn look_at_process(&mut self) {
        self.mappings = maps::read(self.tgid);
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
/// Stacks that are named at a time; in a storm of crashes the others go without.
const AT_A_TIME: usize = 2;
/// Bytes read of an answer: 16 frames with long C++ names, or thousands of places.
const ANSWER_MAX: u64 = 16 * 1024 * 1024;

static PERMITS: Semaphore = Semaphore::const_new(AT_A_TIME);

/// Names the frames of a stack, in a process of its own.
///
/// # Errors
/// When that process cannot be started, ends badly, or takes longer than five seconds; when others are being named already.
pub(crate) async fn name(stack: Stack) -> Result<Vec<Frame>> {
    let _permit = PERMITS.try_acquire().context("too many crashes at once to look up the names of all")?;
    timeout(PATIENCE, ask(&Question::Stack(stack))).await.context("symbols took too long")?
}

/// Names many places, in a process of its own.
///
/// # Errors
/// When that process cannot be started, ends badly, or takes longer than three minutes.
pub(crate) async fn name_places(places: Places) -> Result<Vec<Vec<Named>>> {
    timeout(PATIENCE_FOR_PLACES, ask(&Question::Places(places))).await.context("symbols took too long")?
}

async fn ask<T: DeserializeOwned>(question: &Question) -> Result<T> {
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
    output.take(ANSWER_MAX).read_to_end(&mut answer).await.context("cannot read symbols")?;
    let status = child.wait().await.context("cannot wait for symbols")?;
    ensure!(status.success(), "the process that reads symbols ended with {status}");
    serde_json::from_slice(&answer).context("cannot read symbols")
}

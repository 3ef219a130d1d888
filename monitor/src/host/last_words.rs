//! The last lines that a service wrote before it died, and the one among them that says that memory ran out.
//!
//! Runtimes that run out of memory end by themselves, with an exit code or an abort that says nothing; what they write
//! before that is the best witness.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tokio::{
    process::{Child, Command},
    task::spawn_blocking,
    time::timeout,
};

use super::{
    bounded::{self, Bounded},
    containers,
};

/// Who keeps the output of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A file.
    File(PathBuf),
    /// The journal.
    Journal {
        /// The unit.
        unit: String,
        /// The process: another one of the unit may have said something of its own.
        tgid: u32,
    },
    /// A container's engine.
    Container {
        /// `docker` or `podman`.
        engine: &'static str,
        /// Full id.
        id: String,
    },
}

/// Bytes read from the end.
const TAIL: usize = 8 * 1024;
/// Lines that count as last words. A JVM writes a dozen after the one that matters, Node a stack of twenty, Go one for each
/// goroutine.
const LINES: usize = 60;

/// The end of a service's output, at most 8 KiB.
///
/// # Errors
/// When the output cannot be read.
///
/// `turn` is dropped once every program started for the answer has ended, which may be after the answer.
pub(crate) async fn read(source: &Source, turn: impl Send + 'static) -> Result<String> {
    match source {
        Source::File(path) => {
            let path = path.clone();
            // A disk that stalls must not stall those who run here.
            let read = spawn_blocking(move || {
                let end = tail(&path);
                drop(turn);
                end
            });
            read.await.context("cannot read its output")?
        }
        Source::Journal { unit, tgid } => journal(unit, *tgid, turn).await,
        Source::Container { engine, id } => containers::output(engine, id, LINES).await,
    }
}

fn tail(path: &Path) -> Result<String> {
    let end = bounded::tail(path, TAIL).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&end.beginning()).into_owned())
}

/// Longest run of the journal's reader. Verdicts wait for a tenth of it ([`crate::diagnosis`]); later lines go into the
/// incident's record.
const JOURNAL: Duration = Duration::from_secs(1);

/// Asks the journal through its own reader: its files have no other stable interface than a C library.
async fn journal(unit: &str, tgid: u32, turn: impl Send + 'static) -> Result<String> {
    let mut command = Command::new("journalctl");
    command
        .args(["--quiet", "--no-pager", "--output=cat", "--boot", "--lines"])
        .arg(LINES.to_string())
        .arg(format!("_SYSTEMD_UNIT={unit}"))
        .arg(format!("_PID={tgid}"));
    let end = first_of(command, JOURNAL, turn).await?;
    Ok(String::from_utf8_lossy(&end).into_owned())
}

/// The first [`TAIL`] bytes that a program writes within `patience`. Then the program is killed and reaped, and only
/// then `turn` is given back: a program that cannot be killed, for example in a read from a hung disk, keeps its turn.
async fn first_of(mut command: Command, patience: Duration, turn: impl Send + 'static) -> Result<Vec<u8>> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start journalctl")?;
    let mut output = child.stdout.take().context("journalctl has no output")?;
    let read = timeout(patience, bounded::receive(&mut output, TAIL)).await;
    tokio::spawn(async move {
        end(child).await;
        drop(turn);
    });
    match read {
        Ok(read) => Ok(read.map(Bounded::beginning).context("cannot read from journalctl")?),
        Err(_) => bail!("journalctl has not answered within {} ms", patience.as_millis()),
    }
}

async fn end(mut child: Child) {
    child.start_kill().ok();
    if let Err(error) = child.wait().await {
        tracing::warn!("cannot wait for journalctl: {error}");
    }
}

/// How a line begins or what it holds when a runtime has run out of memory, and who says so.
const SAYINGS: [(Place, &str); 18] = [
    (Place::Begin, "MemoryError"),                         // Python, last line of a traceback
    (Place::Within, "java.lang.OutOfMemoryError"),         // JVM, with both flags and without
    (Place::Within, "JavaScript heap out of memory"),      // Node (V8)
    (Place::Begin, "fatal error: runtime: out of memory"), // Go
    (Place::Begin, "fatal error: runtime: cannot allocate memory"), // Go
    (Place::Begin, "runtime: cannot allocate memory"),     // Go
    (Place::Begin, "fatal error: cannot allocate memory"), // Go, thread creation and arenas
    (Place::Within, "memory allocation of "),              // Rust: "memory allocation of N bytes failed"
    (Place::Within, "instance of 'std::bad_alloc'"),       // libstdc++
    (Place::Within, "exception of type std::bad_alloc"),   // libc++
    (Place::Within, "System.OutOfMemoryException"),        // .NET
    (Place::Begin, "Out of memory."),                      // .NET, before it aborts
    (Place::Within, "(NoMemoryError)"),                    // Ruby
    (Place::Begin, "Out of memory!"),                      // Perl
    (Place::Begin, "Out of memory in perl:"),              // Perl
    (Place::Within, "virtual memory exhausted"),           // GCC and GNU tools
    (Place::Within, "memory exhausted"),                   // GNU tools (xalloc)
    (Place::End, "Cannot allocate memory"),                // strerror(ENOMEM), in C programs' last line
];

/// Where in a line a saying stands.
#[derive(Clone, Copy)]
enum Place {
    Begin,
    Within,
    End,
}

/// The line that says that memory ran out, the last one if several do.
pub(crate) fn out_of_memory(text: &str) -> Option<&str> {
    let says = |line: &&str| {
        SAYINGS.iter().any(|(place, saying)| match place {
            Place::Begin => line.starts_with(saying),
            Place::Within => line.contains(saying),
            Place::End => line.ends_with(saying),
        })
    };
    text.lines().rev().map(str::trim).filter(|line| !line.is_empty()).take(LINES).find(says)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_ended_and_reaped_before_its_turn_is_given_back() {
        let (turn, over) = oneshot::channel::<()>();
        let (place, mut pid) = (tempfile::tempdir().expect("a directory"), None);
        let file = place.path().join("pid");
        let script = format!("echo $$ >{}; exec sleep 1000", file.display());
        let error = first_of(shell(&script), Duration::from_secs(1), turn).await.expect_err("it says nothing");
        assert!(error.to_string().contains("within 1000 ms"), "{error}");
        over.await.expect_err("it is dropped");
        if let Ok(text) = std::fs::read_to_string(&file) {
            pid = text.trim().parse::<u32>().ok();
        }
        assert!(pid.is_some_and(|pid| super::super::process::identity(pid).expect("readable").is_none()), "{pid:?}");
    }

    #[tokio::test]
    async fn a_program_that_writes_without_end_is_cut() {
        let (turn, over) = oneshot::channel::<()>();
        let text = first_of(shell("exec yes"), Duration::from_secs(60), turn).await.expect("it writes");
        assert_eq!(text.len(), TAIL);
        over.await.expect_err("it is dropped");
    }

    #[test]
    fn runtimes_are_understood_in_their_own_words() {
        for text in [
            "Traceback (most recent call last):\n  File \"<string>\", line 1, in <module>\nMemoryError\n",
            "numpy.core._exceptions._ArrayMemoryError: Unable\nMemoryError: cannot allocate\n",
            "Terminating due to java.lang.OutOfMemoryError: Java heap space\n",
            "Aborting due to java.lang.OutOfMemoryError: Java heap space\n#\n# A fatal error has been detected\n#\n",
            "FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory\n 1: 0xb8d0a3 node::Abort()\n",
            "fatal error: runtime: out of memory\n\ngoroutine 1 [running]:\n",
            "memory allocation of 1073741824 bytes failed\n",
            "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n",
            "Unhandled exception. System.OutOfMemoryException: Array dimensions exceeded\n",
            "leak.rb:1:in `*': failed to allocate memory (NoMemoryError)\n",
            "Out of memory!\n",
            "app: mmap: Cannot allocate memory\n",
        ] {
            assert!(out_of_memory(text).is_some(), "{text}");
        }
    }

    #[test]
    fn other_words_and_words_long_ago_say_nothing() {
        let long_ago = format!("java.lang.OutOfMemoryError handled\n{}", "served a request\n".repeat(LINES));
        for text in ["", "\n\n", "Traceback\nValueError: no MemoryError here\n", "killed\n", &long_ago] {
            assert_eq!(out_of_memory(text), None, "{text}");
        }
    }

    #[tokio::test]
    async fn the_end_of_a_file_is_read_and_nothing_but_a_file() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("log");
        std::fs::write(&path, format!("{}MemoryError\n", "x".repeat(100_000))).expect("written");
        let text = read(&Source::File(path.clone()), ()).await.expect("read");
        assert_eq!(text.len(), TAIL);
        assert!(text.ends_with("xMemoryError\n"));
        let link = place.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        assert!(read(&Source::File(link), ()).await.is_err(), "a link is not followed");
        assert!(read(&Source::File(place.path().to_owned()), ()).await.is_err(), "a directory");
    }
}

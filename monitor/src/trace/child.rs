//! The agent has a service traced: in a process of this binary, which takes few rights and is gone when the agent is.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use tokio::{io::AsyncRead, sync::oneshot, time::timeout};

use super::show::{kept::Shelf, summary::Summary};
use crate::host::bounded::{self, Bounded};

/// What it takes beyond the time that it traces: symbols of large programs, and the pictures.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes that are read of its answer, and of what it has to complain.
const ANSWER_MAX: usize = 64 * 1024;
const COMPLAINT_MAX: usize = 4 * 1024;

/// What to trace.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// The service.
    pub(crate) service: String,
    /// Directory of its cgroup.
    pub(crate) cgroup: PathBuf,
    /// How long.
    pub(crate) duration: Duration,
    /// Not within this time of the last one that is kept.
    pub(crate) apart: Duration,
    /// Where traces are kept.
    pub(crate) state_dir: PathBuf,
}

/// Why there is no trace.
#[derive(Debug)]
pub(crate) enum NoTrace {
    /// Somebody else traces.
    Busy,
    /// It was traced not long ago, perhaps for an earlier agent.
    Recent,
    /// The agent stops.
    Stopped,
    /// It did not work.
    Broken(anyhow::Error),
}

/// Waits for whom else, and looks into what is kept; blocks for that.
fn may_begin(order: &Order) -> Result<(), NoTrace> {
    let shelf = Shelf::of(&order.state_dir);
    shelf.prepare().map_err(NoTrace::Broken)?;
    if shelf.alone().is_err() {
        return Err(NoTrace::Busy);
    }
    let newest = shelf.list(Some(&order.service)).map_err(NoTrace::Broken)?.into_iter().next();
    let since = newest.map(|newest| Timestamp::now().duration_since(newest.began).unsigned_abs());
    if since.is_some_and(|since| since < order.apart) { Err(NoTrace::Recent) } else { Ok(()) }
}

/// Has it done; `begins` is called when it does, and `stop` ends it.
///
/// # Errors
/// See [`NoTrace`].
pub(crate) async fn trace(
    order: Order,
    begins: impl AsyncFnOnce(),
    stop: oneshot::Receiver<()>,
) -> Result<Summary, NoTrace> {
    let looked = order.clone();
    let may = tokio::task::spawn_blocking(move || may_begin(&looked)).await;
    may.context("the look at kept traces failed").map_err(NoTrace::Broken)??;
    begins().await;
    let mut child = command(&order).spawn().context("cannot start a process that traces").map_err(NoTrace::Broken)?;
    let answer = async {
        let (output, complaint) = (child.stdout.take(), child.stderr.take());
        let (output, complaint) = tokio::join!(read(output, ANSWER_MAX), read(complaint, COMPLAINT_MAX));
        let status = child.wait().await.context("cannot wait for the process that traces")?;
        if !status.success() {
            let complaint = String::from_utf8_lossy(&complaint);
            let last = complaint.lines().last().map(|line| line.trim_start_matches("defib: ")).unwrap_or_default();
            bail!(
                "{}",
                if last.is_empty() { format!("the process that traces ended with {status}") } else { last.to_owned() }
            );
        }
        serde_json::from_slice(&output).context("what was found cannot be read")
    };
    let ended = tokio::select! {
        // Who would have it stopped and who has gone are the same.
        _ = stop => None,
        answer = timeout(order.duration + PATIENCE, answer) => Some(answer),
    };
    match ended {
        Some(Ok(answer)) => answer.map_err(NoTrace::Broken),
        Some(Err(_)) | None => {
            let is_late = ended.is_some();
            // Its probes go with it.
            child.kill().await.ok();
            if is_late {
                Err(NoTrace::Broken(anyhow::anyhow!("it took too long and was ended")))
            } else {
                Err(NoTrace::Stopped)
            }
        }
    }
}

fn command(order: &Order) -> tokio::process::Command {
    let mut command = tokio::process::Command::new("/proc/self/exe");
    command
        .args(["trace", "--for-agent", "--for"])
        .arg(format!("{}s", order.duration.as_secs()))
        .arg("--cgroup")
        .arg(&order.cgroup)
        .arg("--state-dir")
        .arg(&order.state_dir)
        // A name may begin with a dash.
        .arg("--")
        .arg(&order.service)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env_clear()
        .current_dir(Path::new("/"))
        .kill_on_drop(true);
    command
}

/// The first bytes, to the end: whoever writes more is not held up.
async fn read(from: Option<impl AsyncRead + Unpin>, most: usize) -> Vec<u8> {
    let Some(mut from) = from else { return Vec::new() };
    let bytes = bounded::receive(&mut from, most).await.map(Bounded::beginning).unwrap_or_default();
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await.ok();
    bytes
}

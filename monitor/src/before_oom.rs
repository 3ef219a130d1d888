//! Runs what the operator wants to see of a service before it dies: a heap dump, the stacks of its threads.
//!
//! The command is as trusted as a health check, and more dangerous: it works on a service that still serves, on a host that may be
//! short of memory and disk. So it runs once for each incarnation, one at a time on a host, without a shell, for so long and no
//! longer; what it leaves is in a directory of its own ([`shelf`]), whose size is watched while it runs. It is started through this
//! binary's own `aside`, which makes it the first to go when memory is short, and takes from it the rights that serve only the agent.

mod shelf;

use std::{
    fs::{self, File, OpenOptions},
    os::unix::{
        fs::OpenOptionsExt as _,
        process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, kill_process_group, set_parent_process_death_signal,
    setrlimit, setsid, waitid,
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::spawn_blocking,
    time::{Instant, sleep},
};

use crate::{
    config,
    figures::{bytes, head},
    host::{
        bounded, guarded, privilege,
        process::{self, Identity},
    },
    memory::picture::{Ended, Ran},
};
use shelf::Shelf;

/// Between two looks at a command that runs and at what it leaves.
const LOOK: Duration = Duration::from_millis(100);
/// Where its output goes, in its directory.
const OUTPUT: &str = "output.log";
/// Characters told of the last line of its output.
const LAST_LINE: usize = 200;
/// It sees the memory of others, which is what it is for.
const RIGHTS: [&str; 1] = ["CAP_SYS_PTRACE"];

/// Two heap dumps at once on a host that is short of memory help nobody.
static ONE_AT_A_TIME: Semaphore = Semaphore::const_new(1);

/// What is to run, for whom.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    /// The rules of the service.
    pub(crate) rules: config::BeforeOom,
    /// Its name.
    pub(crate) service: std::sync::Arc<str>,
    /// Its main process, which stands for the incarnation.
    pub(crate) incarnation: Identity,
    /// What `{pid}` stands for.
    pub(crate) process: Identity,
    /// Where state is kept.
    pub(crate) state_dir: std::sync::Arc<Path>,
    /// Names this boot of the host.
    pub(crate) boot_id: &'static str,
}

/// Leave to run one, given back when it is dropped.
pub(crate) type Turn = SemaphorePermit<'static>;

/// The turn, unless another command has it.
pub(crate) fn turn() -> Option<Turn> {
    ONE_AT_A_TIME.try_acquire().ok()
}

impl Task {
    /// Runs it to its end, `begun` once that is sure: not when it has had its turn for this incarnation.
    pub(crate) async fn run(self, _turn: Turn, begun: impl Future<Output = ()>) -> Ran {
        let shelf = Shelf::new(&self.state_dir, &self.service, self.boot_id, self.incarnation, self.rules.keep);
        let place = shelf.clone();
        let prepared = match spawn_blocking(move || place.prepare()).await {
            Ok(prepared) => prepared,
            Err(error) => Err(error.into()),
        };
        match prepared {
            Ok(true) => begun.await,
            Ok(false) => {
                let left = Some((shelf.size(), shelf.directory().to_owned()));
                return self.tell(
                    Ended::NotRun,
                    "it had its turn under an earlier agent, which did not see its end",
                    left,
                );
            }
            Err(error) => return self.tell(Ended::NotRun, &format!("{error:#}"), None),
        }
        let words = self.words(shelf.directory());
        let (ended, text) = match self.started(&words, &shelf) {
            Ok(running) => self.wait_for(running, &shelf).await,
            Err(error) => (Ended::NotRun, format!("{error:#}")),
        };
        if matches!(ended, Ended::TimedOut | Ended::TooLarge) {
            // What was killed may be in the middle of a write.
            sleep(LOOK).await;
        }
        let place = shelf.clone();
        let size = spawn_blocking(move || {
            // The last bytes may have come between the last look and the end.
            let fits = place.make_room();
            if !fits || ended == Ended::TooLarge {
                place.empty();
            }
            (fits, place.size())
        });
        let (fits, size) = size.await.unwrap_or((true, 0));
        let (ended, text) = match ended {
            Ended::Ok | Ended::Failed if !fits => (Ended::TooLarge, self.too_large()),
            _ => (ended, text),
        };
        self.tell(ended, &text, Some((size, shelf.directory().to_owned())))
    }

    fn started(&self, words: &[String], shelf: &Shelf) -> Result<Running> {
        let program = Path::new(words.first().context("there is no program to start")?);
        guarded::ensure_ours(program)?;
        ensure!(process::is_alive(self.process), "process {} is gone", self.process.tgid);
        let output = output(shelf.directory())?;
        let child = Command::new("/proc/self/exe")
            .args(["aside", "--file-size", &self.rules.keep.to_string(), "--"])
            .args(words)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("cannot share the output file")?)
            .stderr(output)
            // What a service manager tells the agent is not for it.
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LANG", "C.UTF-8")
            .current_dir(shelf.directory())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Running { child: Some(child) })
    }

    /// Its end, or ours with it.
    async fn wait_for(&self, running: Running, shelf: &Shelf) -> (Ended, String) {
        let begin = Instant::now();
        loop {
            sleep(LOOK).await;
            match running.ended() {
                Ok(Some(status)) if status.success() => {
                    return (Ended::Ok, format!("done in {:.1} s", begin.elapsed().as_secs_f64()));
                }
                Ok(Some(status)) if status.signal() == Some(Signal::XFSZ.as_raw()) => {
                    return (Ended::TooLarge, self.too_large());
                }
                Ok(Some(status)) => return (Ended::Failed, failed(status, shelf.directory())),
                Ok(None) => {}
                Err(error) => return (Ended::Failed, format!("cannot be waited for: {error}")),
            }
            if begin.elapsed() >= self.rules.timeout {
                let text = format!("ended after {}, which is all that it has", span(self.rules.timeout));
                return (Ended::TimedOut, text);
            }
            let place = shelf.clone();
            if !spawn_blocking(move || place.make_room()).await.unwrap_or(true) {
                return (Ended::TooLarge, self.too_large());
            }
        }
    }

    fn too_large(&self) -> String {
        format!("it left more than {}, which is all that is kept; that is removed", bytes(self.rules.keep))
    }

    /// The command with its placeholders filled in. What stands for one stays within its argument.
    fn words(&self, directory: &Path) -> Vec<String> {
        let fill = |word: &String| {
            let with_pid = word.replace("{pid}", &self.process.tgid.to_string());
            // In one pass over the pieces between, so that nothing that was filled in is taken for a placeholder.
            let pieces = with_pid.split("{service}").map(|piece| piece.replace("{dir}", &directory.to_string_lossy()));
            pieces.collect::<Vec<_>>().join(&self.service)
        };
        self.rules.command.iter().map(fill).collect()
    }

    fn tell(&self, ended: Ended, why: &str, left: Option<(u64, PathBuf)>) -> Ran {
        let program = self.rules.command.first().map_or("", String::as_str);
        let how = match ended {
            Ended::Ok => "ran before memory was out",
            Ended::Failed => "ran before memory was out, and failed",
            Ended::TimedOut | Ended::TooLarge => "ran before memory was out, and was ended",
            Ended::NotRun => "was to run before memory was out, and did not",
        };
        let mut text = format!("{program} {how}: {why}");
        if let Some((size, directory)) = left.as_ref().filter(|(size, _)| *size > 0) {
            text += &format!("; {} in {}", bytes(*size), directory.display());
        }
        let directory = left.map(|(_, directory)| directory.display().to_string());
        Ran { at: Timestamp::now(), ended, text, directory }
    }
}

/// A command that runs. It does not outlive this: an agent that ends takes it along.
struct Running {
    child: Option<Child>,
}

impl Running {
    /// How it ended; `None` while it runs. It is not reaped, so that its pid, and that of its group, stay its own.
    fn ended(&self) -> std::io::Result<Option<ExitStatus>> {
        let Some(pid) = self.pid() else { return Ok(None) };
        let status = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT)?;
        // As wait(2) has it: a code in the second byte, or a signal in the first.
        let raw = |status: rustix::process::WaitIdStatus| match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => (code & 0xff) << 8,
            (None, signal) => signal.unwrap_or(0),
        };
        Ok(status.map(|status| ExitStatus::from_raw(raw(status))))
    }

    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.child.as_ref()?.id()).ok()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(pid) = self.pid() else { return };
        // It leads a session of its own as soon as it has begun; what it has started goes with it.
        kill_process_group(pid, Signal::KILL).ok();
        let Some(mut child) = self.child.take() else { return };
        child.kill().ok();
        // A process that waits for a disk may take its time to go.
        std::thread::Builder::new().name("reaper".to_owned()).spawn(move || child.wait()).ok();
    }
}

/// What it does in the process that becomes the command.
#[derive(Clone, Debug)]
pub(crate) struct Aside {
    /// Bytes that a file may have which it writes.
    pub(crate) file_size: u64,
    /// Program and arguments.
    pub(crate) command: Vec<String>,
}

impl Aside {
    /// Becomes the command.
    ///
    /// # Errors
    /// Only returns when that failed.
    pub(crate) fn exec(&self) -> Result<()> {
        setsid().context("cannot begin a session")?;
        // An agent that is killed cannot end it any more. The thread that started it lives as long as the agent.
        set_parent_process_death_signal(Some(Signal::KILL)).context("cannot be bound to the agent")?;
        // The agent may be protected from the OOM killer; what it looks with is the first to go.
        fs::write("/proc/self/oom_score_adj", "1000").context("cannot set /proc/self/oom_score_adj")?;
        for (resource, limit) in [(Resource::Fsize, self.file_size), (Resource::Core, 0)] {
            setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })
                .with_context(|| format!("cannot limit {resource:?}"))?;
        }
        privilege::hand_on(&RIGHTS.map(str::to_owned))?;
        let (program, arguments) = self.command.split_first().context("there is no program to start")?;
        let error = Command::new(program).args(arguments).exec();
        Err(error).with_context(|| format!("cannot start {program}"))
    }
}

fn output(directory: &Path) -> Result<File> {
    let path = directory.join(OUTPUT);
    let no_follow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let mut options = OpenOptions::new();
    options.create_new(true).append(true).mode(0o600).custom_flags(no_follow);
    options.open(&path).with_context(|| format!("cannot make {}", path.display()))
}

fn failed(status: ExitStatus, directory: &Path) -> String {
    match last_line(&directory.join(OUTPUT)) {
        Some(line) => format!("{status}, its last words {line:?}"),
        None => status.to_string(),
    }
}

/// The end of its output, to tell why it failed.
fn last_line(path: &Path) -> Option<String> {
    const END: usize = 4096;
    let text = bounded::tail(path, END).ok()?.beginning();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(head(line, LAST_LINE))
}

fn span(time: Duration) -> impl std::fmt::Display {
    humantime::format_duration(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(command: &[&str]) -> Task {
        let own = process::identity(std::process::id()).expect("readable").expect("alive");
        Task {
            rules: config::BeforeOom {
                command: command.iter().map(ToString::to_string).collect(),
                ..config::BeforeOom::default()
            },
            service: "a {dir}; rm -rf /".into(),
            incarnation: own,
            process: own,
            state_dir: Path::new("/nonexistent").into(),
            boot_id: "boot",
        }
    }

    #[test]
    fn a_placeholder_is_never_split_nor_filled_in_twice() {
        let task = task(&["/bin/x", "--pid={pid}", "{service}", "{dir}/{service}/{pid}"]);
        let pid = std::process::id();
        assert_eq!(
            task.words(Path::new("/d {pid}")),
            [
                "/bin/x".to_owned(),
                format!("--pid={pid}"),
                "a {dir}; rm -rf /".to_owned(),
                format!("/d {{pid}}/a {{dir}}; rm -rf //{pid}"),
            ]
        );
    }

    #[tokio::test]
    async fn a_program_that_others_could_change_and_one_whose_service_is_gone_are_not_run() {
        let state = tempfile::tempdir().expect("a directory");
        let program = state.path().join("tool");
        fs::write(&program, "").expect("written");
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("set");
        let words = [program.to_str().expect("UTF-8")];
        let turn = || async {
            loop {
                match turn() {
                    Some(turn) => break turn,
                    None => sleep(LOOK).await,
                }
            }
        };
        let first = Task { state_dir: state.path().into(), ..task(&words) };
        let ran = first.clone().run(turn().await, async {}).await;
        if rustix::process::geteuid().is_root() {
            assert!(ran.ended == Ended::NotRun && ran.text.contains("chmod go-w"), "{ran:?}");
        }
        let ran = first.run(turn().await, async { panic!("it had its turn") }).await;
        assert!(ran.ended == Ended::NotRun && ran.text.contains("earlier agent"), "{ran:?}");
        let gone = Identity { start_ns: 1, ..task(&[]).process };
        let second = Task { process: gone, incarnation: gone, state_dir: state.path().into(), ..task(&["/bin/true"]) };
        let ran = second.run(turn().await, async {}).await;
        assert!(ran.ended == Ended::NotRun && ran.text.contains("is gone"), "{ran:?}");
    }

    #[test]
    fn the_last_line_that_says_something_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(OUTPUT);
        assert_eq!(last_line(&path), None);
        fs::write(&path, format!("{}\nfirst\n  why \n\n", "x".repeat(10_000))).expect("written");
        assert_eq!(last_line(&path).as_deref(), Some("why"));
        fs::write(&path, "y".repeat(10_000)).expect("written");
        assert_eq!(last_line(&path).expect("a line").chars().count(), LAST_LINE);
    }
}

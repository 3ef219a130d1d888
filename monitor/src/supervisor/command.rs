//! The supervisor of services that have none: starts a program in a session and a cgroup of its own.
//!
//! The program is not the agent's child in any sense that matters: it survives the agent, and its death is seen by the
//! kernel programs. It is started through this binary's own `launch`, which enters the cgroup, becomes a session leader
//! and undoes what the agent has and a service must not (its OOM protection) before it becomes the program. So nothing
//! runs between fork and exec in the agent, which has threads.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::{
            fs::{DirBuilderExt as _, OpenOptionsExt as _},
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::setsid,
};
use tokio::{sync::Mutex, task::spawn_blocking};

use super::{Answer, End, Permit, Supervisor, fence};
use crate::{
    config::Command,
    healing::Plan,
    host::{
        bounded,
        cgroup::Hierarchy,
        inherited, privilege,
        process::{self, Identity},
    },
};

/// Output kept of each service; beyond it the file is set aside once at the next start.
const OUTPUT_MAX: u64 = 1024 * 1024;
/// Bytes read of the error that says why a program did not start: one line with the program's path.
const REASON_MAX: usize = 64 * 1024;

/// What a service manager tells the agent, and must not tell the agent's services.
const OF_THE_AGENT: [&str; 7] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "FDSTORE",
    "INVOCATION_ID",
    inherited::VARIABLE,
    inherited::PINNED,
];

/// Keeps one command service.
#[derive(Debug)]
pub(crate) struct CommandSupervisor {
    name: Arc<str>,
    command: Command,
    hierarchy: Arc<Hierarchy>,
    state_dir: Arc<Path>,
    /// One start at a time: a second would take the first one's process for a left-over.
    starting: Mutex<()>,
}

impl CommandSupervisor {
    /// A supervisor whose service's output goes below `state_dir`.
    pub(crate) fn new(name: Arc<str>, command: Command, hierarchy: Arc<Hierarchy>, state_dir: Arc<Path>) -> Self {
        Self { name, command, hierarchy, state_dir, starting: Mutex::default() }
    }

    /// Where the service's output goes.
    fn output_file(&self) -> PathBuf {
        self.state_dir.join("output").join(format!("{}.log", self.name))
    }

    /// The cgroup of the service.
    pub(crate) fn cgroup(&self) -> &str {
        &self.command.cgroup
    }

    /// Its id, when it exists.
    pub(crate) fn cgroup_id(&self) -> Result<Option<u64>> {
        self.hierarchy.id_of(&self.command.cgroup)
    }

    /// Makes the cgroup when it is missing; its id.
    pub(crate) fn prepare(&self) -> Result<u64> {
        if let Some(id) = self.cgroup_id()? {
            return Ok(id);
        }
        self.hierarchy.create(&self.command.cgroup)?;
        self.hierarchy
            .id_of(&self.command.cgroup)?
            .with_context(|| format!("the cgroup {} has gone", self.command.cgroup))
    }

    /// The running main process, when there is one.
    pub(crate) fn main_process(&self) -> Result<Option<Identity>> {
        self.hierarchy.main_process(&self.command.cgroup)
    }

    async fn start_alone(&self, permit: Permit) -> Result<Identity> {
        let _alone = self.starting.lock().await;
        permit.await;
        self.launch().await
    }

    /// SIGTERM to the main process; whatever is left after its time is killed before the start.
    async fn renew_alone(&self, old: Identity, permit: Permit) -> Result<Identity> {
        let _alone = self.starting.lock().await;
        permit.await;
        fence::ask_to_end(old, self.command.stop_timeout)
            .await
            .with_context(|| format!("cannot end process {} of {}", old.tgid, self.name))?;
        self.launch().await
    }

    async fn launch(&self) -> Result<Identity> {
        let program = self.command.start.first().context("there is no program to start")?;
        self.prepare()?;
        self.clear().await?;
        let file = self.output_file();
        // A disk that stalls must hold up this start alone.
        let output = spawn_blocking(move || open_output(&file)).await.context("cannot open its output")??;
        // Held open by `launch` as its standard input until it has become the program; what it writes there is why not.
        let (mut refusal, held) = io::pipe().context("cannot make a pipe")?;
        let mut launch = tokio::process::Command::new("/proc/self/exe");
        for variable in OF_THE_AGENT.into_iter().chain(inherited::OF_THE_MANAGER) {
            launch.env_remove(variable);
        }
        let mut child = launch
            .arg("launch")
            .arg("--cgroup")
            .arg(self.hierarchy.directory(&self.command.cgroup))
            .args(self.command.capabilities.iter().flat_map(|name| ["--grant", name]))
            .arg("--")
            .args(&self.command.start)
            .stdin(held)
            .stdout(output.try_clone().context("cannot share the output file")?)
            .stderr(output)
            .current_dir("/")
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        drop(launch);
        let identity = child.id().map(process::identity).transpose()?.flatten();
        // Its end is seen by the kernel programs; here the zombie is only taken away.
        tokio::spawn(async move { child.wait().await });
        let reason = spawn_blocking(move || bounded::take(&mut refusal, REASON_MAX, None));
        let reason = reason.await.context("cannot wait for the start")?.context("cannot wait for the start")?;
        let reason = reason.beginning();
        ensure!(reason.is_empty(), "{}", String::from_utf8_lossy(&reason));
        identity.with_context(|| format!("{program} ended at once"))
    }

    /// Ends what is left of an incarnation, and waits until it has gone.
    ///
    /// # Errors
    /// When something is left after ten seconds, or the cgroup holds others than the service.
    pub(crate) async fn clear(&self) -> Result<()> {
        fence::clear(&self.hierarchy, &self.command.cgroup, &self.name).await
    }
}

fn open_output(output: &Path) -> Result<File> {
    let shown = output.display();
    if let Some(directory) = output.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.with_context(|| format!("cannot make {}", directory.display()))?;
    }
    if fs::symlink_metadata(output).is_ok_and(|metadata| metadata.len() > OUTPUT_MAX) {
        fs::rename(output, output.with_extension("log.1")).with_context(|| format!("cannot set {shown} aside"))?;
    }
    // What a service says may be secret, and a link in the file's place would be written through.
    let no_follow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .custom_flags(no_follow)
        .open(output)
        .with_context(|| format!("cannot open {shown}"))
}

impl Supervisor for CommandSupervisor {
    fn plan(&self, End { died_ns, .. }: End) -> Answer<'_, Plan> {
        Box::pin(async move {
            // On a blocking thread: one read for each process of the service.
            let (hierarchy, cgroup) = (Arc::clone(&self.hierarchy), Arc::clone(&self.command.cgroup));
            let looked = spawn_blocking(move || hierarchy.main_process(&cgroup));
            Ok(match looked.await.context("cannot look for its main process")?? {
                Some(process) if process.begins_after(died_ns) => Plan::Alive(process),
                // A worker that it left behind, which a start clears away, is none either.
                Some(_) | None => Plan::GivesUp { why: "nobody else starts it".to_owned() },
            })
        })
    }

    fn start(&self, permit: Permit) -> Answer<'_, Identity> {
        Box::pin(self.start_alone(permit))
    }

    fn renew(&self, old: Identity, permit: Permit) -> Answer<'_, Identity> {
        Box::pin(self.renew_alone(old, permit))
    }

    fn knows(&self) -> Answer<'_, bool> {
        Box::pin(async { Ok(true) })
    }

    fn main_pid(&self) -> Option<Answer<'_, u32>> {
        None
    }

    fn output(&self) -> Option<PathBuf> {
        Some(self.output_file())
    }
}

const WIDOWED: &str = "the agent that asked for it has gone";

/// What `defib launch` does, in the process that becomes the service.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// Directory of the cgroup to enter.
    pub(crate) cgroup: PathBuf,
    /// Rights of the agent's own that the program has too.
    pub(crate) grant: Vec<String>,
    /// Program and arguments.
    pub(crate) command: Vec<String>,
}

impl Launch {
    /// Becomes the program. Standard input is a pipe to the agent, closed by success; a failure is written to it.
    ///
    /// # Errors
    /// Only returns when that failed.
    pub(crate) fn exec(&self) -> Result<()> {
        let agent = rustix::io::dup(rustix::stdio::stdin()).context("there is no standard input")?;
        rustix::io::fcntl_setfd(&agent, rustix::io::FdFlags::CLOEXEC).context("cannot keep the agent's pipe")?;
        let refused = self.become_program(agent.as_fd());
        if let Err(error) = &refused {
            // Without a reader there is nobody to tell.
            rustix::io::write(&agent, format!("{error:#}").as_bytes()).ok();
        }
        refused
    }

    fn become_program(&self, agent: BorrowedFd<'_>) -> Result<()> {
        let nothing = File::open("/dev/null").context("cannot open /dev/null")?;
        rustix::stdio::dup2_stdin(&nothing).context("cannot replace standard input")?;
        let file = self.cgroup.join("cgroup.procs");
        ensure!(!is_widowed(agent), WIDOWED);
        // 0: the writing process.
        fs::write(&file, "0").with_context(|| format!("cannot enter the cgroup through {}", file.display()))?;
        // The next agent looks for what lives in the cgroup; whoever enters it after its agent is gone would be a second one.
        if is_widowed(agent) {
            // Its end is not the service's. Where it cannot leave, that is told as a start that failed.
            self.cgroup.parent().map(|parent| fs::write(parent.join("cgroup.procs"), "0"));
            bail!(WIDOWED);
        }
        setsid().context("cannot begin a session")?;
        // The agent may be protected from the OOM killer; its services must not inherit that.
        fs::write("/proc/self/oom_score_adj", "0").context("cannot reset /proc/self/oom_score_adj")?;
        privilege::hand_on(&self.grant)?;
        let (program, arguments) = self.command.split_first().context("there is no program to start")?;
        let error = std::process::Command::new(program).args(arguments).exec();
        Err(error).with_context(|| format!("cannot start {program}"))
    }
}

/// Whether nobody reads the other end of this pipe any more.
fn is_widowed(pipe: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(&pipe, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec::default())).is_ok() && polled[0].revents().contains(PollFlags::ERR)
}

//! `defib demo`: the main job on this machine, for real. A service of our own leaks in a memory cgroup of our own, the
//! kernel kills it, nobody respawns it, the agent does. Everything that was made is removed, also on Ctrl-C.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use tokio::{sync::broadcast, time::timeout};

use super::{asked_to_stop, log_lines_lost, output};
use crate::{
    agent,
    config::{Command, Config, Health},
    host::{bounded, cgroup::Hierarchy, clock},
    kernel,
    supervisor::CommandSupervisor,
    timeline::{Moment, Timeline, What},
};

const SERVICE: &str = "demo";
const MIB: u64 = 1024 * 1024;
/// Limit of the demo's cgroup.
const LIMIT: u64 = 64 * MIB;
/// The service leaks so much at a time, so often: 100 MiB a second, so that it lives for about half a second.
const CHUNK: usize = 2 * MIB as usize;
const PACE: Duration = Duration::from_millis(20);
/// Bytes of the service's output that are searched for it: it is in one of the first lines.
const OUTPUT_MAX: usize = 1024 * 1024;
/// What the service says when it begins to leak, with the time.
const LEAK_BEGINS: &str = "leak begins at ";
/// The whole story takes two seconds; on a busy machine it may take longer, but not without end.
const PATIENCE: Duration = Duration::from_secs(120);

/// Arguments of `demo`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// How long the agent waits for somebody else to bring the service back
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// The timeline as one JSON object, for programs
    #[arg(long)]
    json: bool,
}

/// Arguments of the service.
#[derive(clap::Args)]
pub(super) struct ServiceArgs {
    /// Port to answer on
    #[arg(long)]
    port: u16,
}

/// One line of the story.
#[derive(Clone, Debug, Serialize)]
struct Step {
    /// CLOCK_BOOTTIME, nanoseconds.
    at_ns: u64,
    what: &'static str,
    detail: String,
}

/// What the demo makes, and removes when it is dropped out of sight by [`Stage::clear`].
struct Stage {
    directory: PathBuf,
    hierarchy: Hierarchy,
    supervisor: CommandSupervisor,
    command: Command,
    address: SocketAddr,
}

pub(super) async fn run(args: Args) -> Result<()> {
    kernel::permitted()?;
    let stage = Stage::plan()?;
    if !args.json {
        stage.explain(args.grace)?;
    }
    let stop = asked_to_stop()?;
    tokio::pin!(stop);
    let story = tokio::select! {
        biased;
        () = &mut stop => Err(anyhow::anyhow!("stopped before its end")),
        story = stage.play(args.grace) => story,
    };
    // Whatever happened, what was made goes first.
    let cleared = stage.clear().await.context("could not clean up");
    let story = story?;
    tell(&story, args.json)?;
    cleared?;
    if !args.json {
        output::line("\nThe cgroup, the service and its files are gone.")?;
    }
    Ok(())
}

impl Stage {
    fn plan() -> Result<Self> {
        let name = format!("defib-demo-{}", std::process::id());
        let hierarchy = Hierarchy::detect()?;
        let directory = std::env::temp_dir().join(&name);
        // Chosen by the kernel, given back, and taken again by the service a moment later.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot find a free port on 127.0.0.1")?;
        let address = listener.local_addr().context("a bound port has no address")?;
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let command = Command {
            start: vec![
                program.to_str().context("this program's path is not UTF-8")?.to_owned(),
                "demo-service".to_owned(),
                format!("--port={}", address.port()),
            ],
            cgroup: format!("/{name}").into(),
            stop_timeout: crate::config::stop_timeout(),
            capabilities: Vec::new(),
        };
        let supervisor = CommandSupervisor::new(
            SERVICE.into(),
            command.clone(),
            Arc::new(hierarchy.clone()),
            directory.as_path().into(),
        );
        Ok(Self { directory, hierarchy, supervisor, command, address })
    }

    fn explain(&self, grace: Duration) -> Result<()> {
        let version = if self.hierarchy.is_v1() { "v1" } else { "v2" };
        output::line(format_args!(
            "On this machine, for real, this will\n  \
             1. make the memory cgroup {} (cgroup {version}) with a limit of {},\n  \
             2. start a small service in it that answers on {} and leaks 100 MiB a second,\n  \
             3. let the kernel kill it for want of memory; it has no supervisor, so nobody respawns it,\n  \
             4. see the death, wait {} in case somebody does, restart the service and prove its health,\n  \
             5. stop the service, and remove the cgroup and {}.\n\
             Nothing else is touched. Ctrl-C stops it and cleans up.\n",
            self.hierarchy.directory(self.supervisor.cgroup()).display(),
            output::bytes(LIMIT),
            self.address,
            humantime::format_duration(grace),
            self.directory.display(),
        ))
    }

    async fn play(&self, grace: Duration) -> Result<Vec<Step>> {
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&self.directory)
            .with_context(|| format!("cannot make {}", self.directory.display()))?;
        self.hierarchy.create(self.supervisor.cgroup())?;
        self.hierarchy.limit_memory(self.supervisor.cgroup(), LIMIT)?;

        let mut config = Config::with_command(SERVICE, self.command.clone(), grace, Health::Tcp(self.address));
        config.agent.state_dir.clone_from(&self.directory);
        config.agent.control_socket = self.directory.join("control.sock");
        config.http.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let timeline = Timeline::new();
        let moments = timeline.listen();
        let options =
            agent::Options { config, btf: None, timeline, log_lines_lost, reloads: None, inherited: Vec::new() };
        tokio::select! {
            ended = agent::run(options, std::future::pending()) => {
                ended?;
                bail!("the agent ended before the demo did")
            }
            story = timeout(PATIENCE, self.listen(moments)) => {
                story.with_context(|| format!("the story did not end within {} s", PATIENCE.as_secs()))?
            }
        }
    }

    /// Follows the agent's timeline to the end of the outage.
    async fn listen(&self, mut moments: broadcast::Receiver<Moment>) -> Result<Vec<Step>> {
        let mut story: Vec<Step> = Vec::new();
        let mut died = false;
        loop {
            let Moment { at_ns, service, what } = moments.recv().await.context("the timeline ended")?;
            let (what, detail) = match what {
                What::Marked => ("kernel mark", "the OOM killer chose the service".to_owned()),
                What::Died => {
                    died = true;
                    ("death", "its last thread left".to_owned())
                }
                What::Verdict(cause) => ("verdict", cause),
                What::Waiting { until_ns, .. } if died => {
                    let wait = until_ns.saturating_sub(at_ns) / 1_000_000;
                    ("waiting", format!("{wait} ms for somebody else to bring it back; nobody does"))
                }
                What::RestartAsked { .. } if died => ("restart asked", "of the command supervisor".to_owned()),
                What::Started { tgid } if died => ("started", format!("pid {tgid}")),
                What::Failed(reason) => bail!("the service could not be brought back: {reason}"),
                What::Healthy { outage_ns } if died => {
                    let detail = format!("answers on {}; outage {:.1} ms", self.address, outage_ns as f64 / 1e6);
                    story.push(Step { at_ns, what: "healthy again", detail });
                    story.push(self.leak_began()?);
                    story.sort_by_key(|step| step.at_ns);
                    return Ok(story);
                }
                What::Forecast(text) => ("forecast", text),
                What::ForecastOver => ("forecast", "its memory is not expected to run out any more".to_owned()),
                // The first start, before the story.
                What::Waiting { .. } | What::RestartAsked { .. } | What::Started { .. } | What::Healthy { .. } => {
                    continue;
                }
                What::Suppressed { because, .. } => bail!("the agent decided against a restart: {because}"),
                // The story needs no more than the verdict.
                What::Evidence(_) | What::CrashedAt(_) => continue,
                // No load balancer takes part.
                What::Pool { .. } | What::KeptInPool(_) => continue,
                What::TraceBegins(_) | What::Traced(_) | What::TraceFailed(_) => continue,
                // Nobody pauses it, and no agent was before this one.
                What::Paused { .. } | What::Resumed | What::AgentStarted | What::Over(_) => continue,
                // It has none.
                What::WouldRenew(_)
                | What::RenewalBegins(_)
                | What::RenewalAsked(_)
                | What::Renewed { .. }
                | What::RenewalEnds { .. }
                | What::Pictured(_)
                | What::BeforeOom(_) => continue,
            };
            debug_assert_eq!(&*service, SERVICE);
            story.push(Step { at_ns, what, detail });
        }
    }

    /// The service itself says when it began to leak; its first incarnation's word counts.
    fn leak_began(&self) -> Result<Step> {
        let path = self.directory.join("output").join(format!("{SERVICE}.log"));
        let text = bounded::beginning(&path, OUTPUT_MAX).with_context(|| format!("cannot read {}", path.display()))?;
        let at_ns = text
            .lines()
            .find_map(|line| line.strip_prefix(LEAK_BEGINS)?.parse().ok())
            .with_context(|| format!("the service has not said in {} when it began to leak", path.display()))?;
        Ok(Step { at_ns, what: "leak started", detail: format!("limit {}, 100 MiB a second", output::bytes(LIMIT)) })
    }

    /// Removes all that the demo made.
    async fn clear(&self) -> Result<()> {
        if self.hierarchy.id_of(self.supervisor.cgroup())?.is_some() {
            self.supervisor.clear().await?;
            self.remove_cgroup().await?;
        }
        remove_directory(&self.directory)
    }

    /// The kernel lets go of a cgroup a moment after its last process.
    async fn remove_cgroup(&self) -> Result<()> {
        for _ in 0..200 {
            if self.hierarchy.remove(self.supervisor.cgroup()).is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.hierarchy.remove(self.supervisor.cgroup())
    }
}

fn remove_directory(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", directory.display())),
    }
}

fn tell(story: &[Step], json: bool) -> Result<()> {
    if json {
        return output::line(serde_json::to_string(&serde_json::json!({ "timeline": story }))?);
    }
    let begin = story.first().map_or(0, |step| step.at_ns);
    let death = story.iter().find(|step| step.what == "death").map_or(begin, |step| step.at_ns);
    output::line(format_args!("{:>12} {:>12}", "SINCE LEAK", "SINCE DEATH"))?;
    for step in story {
        let since = |from: u64| step.at_ns as f64 / 1e6 - from as f64 / 1e6;
        output::line(format_args!(
            "{:>9.1} ms {:>+9.1} ms  {:<14} {}",
            since(begin),
            since(death),
            step.what,
            step.detail
        ))?;
    }
    Ok(())
}

/// The service: answers on a port, and leaks until it is killed.
pub(super) fn serve(args: &ServiceArgs) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port))
        .with_context(|| format!("cannot listen on 127.0.0.1:{}", args.port))?;
    std::thread::Builder::new()
        .name("answers".to_owned())
        .spawn(move || listener.incoming().for_each(drop))
        .context("cannot start a thread")?;
    output::line(format_args!("{LEAK_BEGINS}{}", clock::boot_ns()))?;
    let mut leaked = Vec::new();
    loop {
        // Written to, so that the pages are really there.
        leaked.push(vec![1u8; CHUNK]);
        std::thread::sleep(PACE);
    }
}

//! `defib watch`: deaths as they happen, straight from the kernel.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use serde::Serialize;
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, sleep_until},
};

use super::{asked_to_stop, output};
use crate::{
    attribution::{Answer, Origin, Place, Role, confirm},
    diagnosis::{Cause, Item, Missing, Reply},
    enquiry::Enquiry,
    host::{
        cgroup::Hierarchy,
        clock,
        kmsg::{self, Kmsg},
        process::Identity,
        systemd::Systemd,
    },
    kernel::{self, RingStats, Watched},
    observer::{Crashes, Death, Observer, Sight},
    questions::Kind,
    symbols::Lookers,
    text::{Clean, Comm},
};

/// Arguments of `watch`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// One JSON object a line, for programs
    #[arg(long)]
    json: bool,
    /// Clean exits too
    #[arg(long)]
    all: bool,
    /// End after this many deaths
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Watch requests for memory that the kernel refuses, evidence that a program ran out of memory by itself
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    failed_allocations: Watched,
    /// Type information of the running kernel, when it is not at /sys/kernel/btf/vmlinux
    #[arg(long, value_name = "PATH")]
    btf: Option<PathBuf>,
}

/// Questions about deaths at a time; further ones are not asked.
const QUESTIONS: usize = 64;
/// Crash sites whose symbols are read at a time.
const SYMBOLS: usize = 8;
/// Deaths read and not yet shown; beyond, the rings keep them and the kernel counts what finds no room.
const EVENTS: usize = 4096;

pub(super) async fn run(args: Args) -> Result<()> {
    let hierarchy = Hierarchy::detect()
        .inspect_err(|error| tracing::warn!("deaths cannot be attributed to services: {error:#}"))
        .ok();
    let options = kernel::Options {
        btf: args.btf.as_deref(),
        hierarchy: hierarchy.as_ref(),
        report_clean: args.all,
        failed_allocations: args.failed_allocations,
    };
    let (kernel, rings) = kernel::load(options, Vec::new())?;
    for missing in kernel.missing() {
        tracing::info!("off on this kernel: {missing}");
    }
    let (events_in, mut events) = mpsc::channel(EVENTS);
    let stats = Arc::new(RingStats::default());
    for ring in [rings.critical, rings.bulk] {
        let (events, stats) = (events_in.clone(), Arc::clone(&stats));
        tokio::spawn(async move {
            if let Err(error) = kernel::follow(ring, events, &stats).await {
                tracing::error!("{error:#}");
            }
        });
    }
    drop(events_in);
    let mut observer = Observer::new(hierarchy.clone());
    observer.look_by(Lookers::start(kernel.stacks()?)?, Crashes::All);
    let (names_in, mut names) = mpsc::channel(EVENTS);
    let turns = |count| Arc::new(Semaphore::new(count));
    let (engines, symbols, questions) = (turns(Kind::Engine.at_once()), turns(SYMBOLS), turns(QUESTIONS));
    for (_, place) in observer.scan()? {
        ask(&place, hierarchy.as_ref(), &engines, &names_in);
    }
    let enquiry = Enquiry::default();
    enquiry.prepare().await;
    let (replies_in, mut replies) = mpsc::channel::<(Identity, Reply)>(EVENTS);
    let (named_in, mut named) = mpsc::channel::<Death>(EVENTS);
    let (lines_in, mut lines) = mpsc::channel(EVENTS);
    match Kmsg::open() {
        Ok(kmsg) => drop(tokio::spawn(kmsg::follow(kmsg, lines_in))),
        Err(error) => tracing::warn!("OOM kills will lack scope and limit: {error:#}"),
    }

    let mut view = View::new(&args);
    view.begin()?;
    let stop = asked_to_stop()?;
    tokio::pin!(stop);
    loop {
        let deadline = observer
            .next_deadline()
            .map(|at| Instant::now() + std::time::Duration::from_nanos(at.saturating_sub(clock::boot_ns())));
        tokio::select! {
            event = events.recv() => {
                match observer.event(&event.context("nobody reads the rings any more")?) {
                    Some(Sight::Created { place, .. }) => ask(&place, hierarchy.as_ref(), &engines, &names_in),
                    Some(Sight::Asked { process, question }) => match Arc::clone(&questions).try_acquire_owned() {
                        Ok(turn) => {
                            let (enquiry, replies) = (enquiry.clone(), replies_in.clone());
                            tokio::spawn(async move {
                                let reply = enquiry.ask(question, None, turn).await;
                                // The send fails only when the watcher ends.
                                replies.send((process, reply)).await.ok();
                            });
                        }
                        Err(_) => observer.reply(process, Reply::Refused),
                    },
                    _ => {}
                }
            }
            Some((process, reply)) = replies.recv() => observer.reply(process, reply),
            Some((cgroup, name)) = names.recv() => drop(observer.name_container(&cgroup, &name)),
            Some(line) = lines.recv() => observer.line(line),
            Some(death) = named.recv() => {
                if !view.show(&death)? {
                    return view.end(&kernel, &stats);
                }
            }
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
            () = &mut stop => break,
        }
        for mut death in observer.deaths(clock::boot_ns()) {
            let turn = death.cause.site_mut().and_then(|_| Arc::clone(&symbols).try_acquire_owned().ok());
            if let Some(turn) = turn {
                // Reading symbols takes a while, so it runs in a task. In a storm of crashes, sites stay without names.
                let named = named_in.clone();
                tokio::spawn(async move {
                    death.name_site().await;
                    drop(turn);
                    // The send fails only when the watcher ends.
                    named.send(death).await.ok();
                });
            } else if !view.show(&death)? {
                return view.end(&kernel, &stats);
            }
        }
    }
    view.end(&kernel, &stats)
}

/// Asks for the name of a container, without waiting for it.
fn ask(
    place: &Place,
    hierarchy: Option<&Hierarchy>,
    turns: &Arc<Semaphore>,
    names: &mpsc::Sender<(Arc<str>, Arc<str>)>,
) {
    let (true, Origin::Container { .. }, Some(hierarchy)) = (place.is_root(), &*place.origin, hierarchy) else {
        return;
    };
    let Ok(turn) = Arc::clone(turns).try_acquire_owned() else { return };
    let (place, hierarchy, names) = (place.clone(), hierarchy.clone(), names.clone());
    tokio::spawn(async move {
        if let Answer::Confirmed { service, .. } = confirm(&place, &Systemd::default(), &hierarchy).await {
            // The send fails only when the watcher ends.
            names.send((place.path, service)).await.ok();
        }
        drop(turn);
    });
}

/// How deaths are shown.
struct View {
    json: bool,
    colours: bool,
    left: Option<u64>,
}

impl View {
    fn new(args: &Args) -> Self {
        Self { json: args.json, colours: !args.json && output::colours(), left: args.count }
    }

    fn begin(&self) -> Result<()> {
        if self.json {
            return Ok(());
        }
        output::line(format_args!(
            "{:<12} {:>8} {:<16} {:>7} {:>10}  {:<SERVICE$} {:<6}  CAUSE",
            "TIME", "PID", "NAME", "LIVED", "MAX RSS", "SERVICE", "ROLE"
        ))
    }

    /// Shows a death; false when no more are wanted.
    fn show(&mut self, death: &Death) -> Result<bool> {
        if self.json {
            output::line(serde_json::to_string(&Line::of(death)).context("cannot encode a death")?)?;
        } else {
            output::line(self.row(death))?;
        }
        if let Some(left) = &mut self.left {
            *left -= 1;
        }
        Ok(self.left != Some(0))
    }

    fn row(&self, death: &Death) -> String {
        let service = death.place.as_ref().map_or_else(|| "-".to_owned(), |place| Clean(&place.service).to_string());
        let role = match death.role {
            Some(Role::Main) => "main",
            Some(Role::Worker) => "worker",
            None => "-",
        };
        let (begin, end) = match (self.colours, &death.cause) {
            (false, _) | (true, Cause::CleanExit) => ("", ""),
            (true, Cause::OomKill(_) | Cause::UserspaceOomKill { .. } | Cause::AppOomProbable { .. }) => {
                ("\x1b[1;31m", "\x1b[0m")
            }
            (true, Cause::Crash { .. } | Cause::Watchdog { .. }) => ("\x1b[31m", "\x1b[0m"),
            (true, Cause::Killed { .. } | Cause::Unknown { .. } | Cause::Exit { .. }) => ("\x1b[33m", "\x1b[0m"),
            (true, Cause::Stopped { .. } | Cause::ContainerTeardown { .. }) => ("\x1b[2m", "\x1b[0m"),
        };
        format!(
            "{:<12} {:>8} {:<16} {:>7} {:>10}  {:<SERVICE$} {role:<6}  {begin}{}{end}",
            clock::wall(death.kernel_ns).strftime("%H:%M:%S%.3f").to_string(),
            death.process.tgid,
            death.comm,
            output::span(death.lived_ms()),
            death.max_rss_bytes.map_or_else(|| "-".to_owned(), output::bytes),
            output::tail(&service, SERVICE),
            death.cause,
        )
    }

    /// Says what was lost, if anything was.
    fn end(&self, kernel: &kernel::Kernel, stats: &RingStats) -> Result<()> {
        use monitor_common::counter;
        let counters = kernel.counters()?;
        let lost = counters[counter::LOST_CRITICAL as usize] + counters[counter::LOST_BULK as usize];
        if lost + stats.malformed() > 0 {
            tracing::warn!("{lost} deaths found no room in the rings, {} records were malformed", stats.malformed());
        }
        Ok(())
    }
}

/// Width of the column for services; longer names lose their beginning, which tells least.
const SERVICE: usize = 28;

/// One death for programs. The names are fixed.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    kernel_ns: u64,
    seen_ns: u64,
    tgid: u32,
    start_ns: u64,
    comm: Comm,
    uid: u32,
    cgroup: Option<&'a str>,
    service: Option<&'a str>,
    role: Option<Role>,
    lived_ms: u64,
    max_rss_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    core_dumped: Option<bool>,
    cause: &'a Cause,
    decided_ns: u64,
    evidence: Vec<Item>,
    missing: &'a [Missing],
}

impl<'a> Line<'a> {
    fn of(death: &'a Death) -> Self {
        let signal = death.signal();
        Self {
            time: format!("{:.9}", clock::wall(death.kernel_ns)),
            kernel_ns: death.kernel_ns,
            seen_ns: death.seen_ns,
            tgid: death.process.tgid,
            start_ns: death.process.start_ns,
            comm: death.comm,
            uid: death.uid,
            cgroup: death.place.as_ref().map(|place| &*place.path),
            service: death.place.as_ref().map(|place| &*place.service),
            role: death.role,
            lived_ms: death.lived_ms(),
            max_rss_bytes: death.max_rss_bytes,
            exit_code: death.exit_code(),
            signal: signal.map(|(signal, _)| signal),
            core_dumped: signal.map(|(_, core)| core),
            cause: &death.cause,
            decided_ns: death.decided_ns,
            evidence: death.evidence.items(),
            missing: &death.evidence.missing,
        }
    }
}

//! The agent: knows all the parts, wires them in the order that lets nothing fall between, and owns the engine's state.
//!
//! Start-up: bind the port (a taken one is known before anything is touched) → attach the programs → scan what exists →
//! watch what is configured → handle what the rings have kept meanwhile. One task owns observer and engines and takes
//! every input in turn; slow work (starting, probing) runs in tasks of its own and comes back as an input.

use std::{future::Future, net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use prometheus::Registry;
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use crate::{
    config::Config,
    host::{
        self,
        cgroup::Hierarchy,
        kmsg::{Kmsg, OomLine},
    },
    kernel::{self, RingStats},
    metrics::{KernelMetrics, Metrics},
    steward::Steward,
    timeline::Timeline,
    web::{self, Readiness, Web},
};

/// Events read and not yet handled; beyond, the rings keep them.
const EVENTS: usize = 1024;
const PROGRAMS: &str = "kernel programs";
const SCAN: &str = "first scan of cgroups";

/// How to run.
#[derive(Debug)]
pub(crate) struct Options<'a> {
    /// The configuration.
    pub(crate) config: Config,
    /// Type information of the kernel, when not in its usual place.
    pub(crate) btf: Option<&'a Path>,
    /// Where moments are said.
    pub(crate) timeline: Timeline,
    /// Told the HTTP address once everything is attached and scanned.
    pub(crate) ready: Option<oneshot::Sender<SocketAddr>>,
}

/// Runs until `shutdown` completes. Services that it started live on.
///
/// # Errors
/// When start-up fails, or a part that nothing works without.
pub(crate) async fn run(options: Options<'_>, shutdown: impl Future<Output = ()>) -> Result<()> {
    let Options { config, btf, timeline, ready } = options;
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let listener = web::bind(config.http.listen).await?;
    let address = listener.local_addr().context("the HTTP listener has no address")?;
    let readiness = Arc::new(Readiness::new(&[PROGRAMS, SCAN]));

    let hierarchy = match Hierarchy::detect() {
        Ok(hierarchy) => Some(hierarchy),
        Err(error) => {
            tracing::error!("deaths cannot be attributed to services: {error:#}");
            readiness.note(format!("attribution to services ({error:#})"));
            None
        }
    };
    let mut tasks = JoinSet::new();
    let (mut kernel, rings) =
        kernel::load(kernel::Options { btf, hierarchy: hierarchy.as_ref(), report_clean: false })?;
    for missing in kernel.missing() {
        tracing::warn!("off on this kernel: {missing}");
        readiness.note(missing.clone());
    }
    if let Some(diagnostics) = kernel.take_diagnostics()? {
        tasks.spawn(kernel::follow_diagnostics(diagnostics));
    }
    let kernel = Arc::new(kernel);
    readiness.release(PROGRAMS);

    let registry = Registry::new();
    let (events_in, events) = mpsc::channel(EVENTS);
    let stats = [Arc::new(RingStats::default()), Arc::new(RingStats::default())];
    for (ring, stats) in [rings.critical, rings.bulk].into_iter().zip(&stats) {
        let (events, stats) = (events_in.clone(), Arc::clone(stats));
        tasks.spawn(async move { kernel::follow(ring, events, &stats).await });
    }
    drop(events_in);

    let mut steward = Steward::new(
        &config,
        hierarchy,
        Arc::clone(&kernel),
        Metrics::new(&registry, config.agent.max_services)?,
        timeline,
    );
    steward.scan()?;
    readiness.release(SCAN);

    let refresh = {
        let (kernel, metrics) = (Arc::clone(&kernel), KernelMetrics::new(&registry)?);
        Box::new(move || metrics.refresh(&kernel, stats.iter().map(|stats| stats.malformed()).sum()))
    };
    let (stop_web, web_stopped) = oneshot::channel::<()>();
    let web = Web { registry, readiness: Arc::clone(&readiness), refresh };
    tasks.spawn(web::serve(listener, web, async move { drop(web_stopped.await) }));
    // Start-up needed tens of megabytes for type information; a resident agent gives them back.
    host::memory::give_back();
    tracing::info!(
        %address,
        programs = kernel.programs().len(),
        cgroups = steward.cgroups(),
        services = steward.services(),
        "watching"
    );
    if let Some(ready) = ready {
        // The receiver may have gone; then nobody waits.
        ready.send(address).ok();
    }
    let kmsg = match Kmsg::open() {
        Ok(kmsg) => Some(kmsg),
        Err(error) => {
            tracing::warn!("OOM kills will lack scope and limit: {error:#}");
            readiness.note(format!("scope and limit of an OOM kill ({error:#})"));
            None
        }
    };
    let (lines_in, lines) = mpsc::channel(EVENTS);
    if let Some(kmsg) = kmsg {
        tasks.spawn(follow_log(kmsg, lines_in));
    }
    let outcome = tokio::select! {
        outcome = steward.run(events, lines) => outcome,
        () = shutdown => Ok(()),
        Some(ended) = tasks.join_next() => match ended {
            Ok(Ok(())) => Err(anyhow::anyhow!("a part of the agent ended by itself")),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(error).context("a part of the agent failed"),
        },
    };
    drop(stop_web);
    tasks.shutdown().await;
    outcome
}

/// Sends on the OOM lines of the kernel's log. The log failing ends the enrichment, not the agent.
async fn follow_log(kmsg: Kmsg, lines: mpsc::Sender<OomLine>) -> Result<()> {
    // SAFETY: the log owns its descriptor, keeps it open and never exchanges it while it is registered.
    let mut kmsg = unsafe { AsyncFd::register(kmsg) }.context("cannot wait for the kernel's log")?;
    loop {
        kmsg.readable_mut().await.context("cannot wait for the kernel's log")?.clear_ready();
        match kmsg.get_mut().drain() {
            Ok(found) => {
                for line in found {
                    if lines.send(line).await.is_err() {
                        return Ok(());
                    }
                }
            }
            Err(error) => {
                tracing::warn!("OOM kills will lack scope and limit from now on: {error:#}");
                return std::future::pending().await;
            }
        }
    }
}

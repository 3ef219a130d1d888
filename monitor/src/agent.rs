//! The agent: connects all the parts, in an order in which no event is missed.
//!
//! Start-up: bind the port (a taken one is known before anything is touched) → answer `/readyz` with what is still missing
//! → note the kernel's own counts → attach the programs → scan what exists → watch what is configured → handle what the
//! rings have kept meanwhile.

use std::{
    collections::{BTreeSet, HashMap},
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context as _, Result};
use monitor_common::record::Record;
use prometheus::Registry;
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, timeout},
};

use crate::{
    alert::{AlertMetrics, Alerts},
    audit::Audit,
    config::{Config, Mode},
    control,
    fleet::{Fleet, FleetMetrics},
    handover::Handover,
    host::{
        self,
        cgroup::Hierarchy,
        clock, guarded,
        inherited::Named,
        kmsg::{self, Kmsg},
        manager::Manager,
    },
    kernel::{self, Kernel, Origin, Remains, RingStats, Rings, Span},
    metrics::{KernelMetrics, Metrics, Reloads, StoreMetrics},
    pool::{AgentCheck, Answered, Board, Claims, Endpoint, HaProxy, Spoken},
    progress::{Account, Progress},
    steward::{Reading, Steward},
    store::Store,
    timeline::Timeline,
    web::{self, Api, Gate, Hosts, Readiness, Web, WebMetrics},
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
    /// Log lines that were dropped so far, because nobody took them fast enough.
    pub(crate) log_lines_lost: fn() -> u64,
    /// How reading the configuration went, where it can be read again.
    pub(crate) reloads: Option<Reloads>,
    /// What an earlier agent left to this process.
    pub(crate) inherited: Vec<Named>,
}

/// What comes after an agent's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// Nothing.
    End,
    /// Another one in its place, with the configuration as it is by then.
    BeginAgain,
}

/// How an agent has ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// For good.
    Ended,
    /// To begin again in the same process.
    BeginAgain {
        /// What keeps the kernel programs running meanwhile.
        left: Vec<Named>,
        /// Where they are pinned.
        pin_dir: Option<PathBuf>,
    },
}

/// Runs until `shutdown` completes, and does what that said. Services that it started live on.
///
/// # Errors
/// When start-up fails, or a part that nothing works without.
pub(crate) async fn run(options: Options<'_>, shutdown: impl Future<Output = After>) -> Result<Ended> {
    let Options { config, btf, timeline, log_lines_lost, reloads, inherited } = options;
    let listener = web::bind(config.http.listen)?;
    let address = listener.local_addr().context("the HTTP listener has no address")?;
    let (registry, board) = (Registry::new(), Arc::new(Board::new()));
    let hosts = Hosts::of_this_host(&config.http.hosts);
    let gate = Gate::open(config.http.web_config.clone(), hosts, WebMetrics::new(&registry)?)?;
    let agent_check = match config.pool.agent_check {
        Some(address) => Some(AgentCheck::bind(address, Arc::clone(&board), Answered::new(&registry)?).await?),
        None => None,
    };
    control::ensure_alone(&config.agent.control_socket)?;
    guarded::ensure_state_is_ours(&config.agent.state_dir).context("the state directory is not safe")?;
    let (store, mut left) = Store::open(&config.agent.state_dir)?;
    if let Some(trouble) = &left.trouble {
        tracing::error!("state and incidents: {trouble}");
    }
    let readiness = Arc::new(Readiness::new(&[PROGRAMS, SCAN]));
    if let Some(aside) = left.trouble.clone().filter(|_| store.trouble().is_none()) {
        readiness.note(format!("earlier state and incidents ({aside})"));
    }
    let control = control::bind(&config.agent.control_socket)
        .inspect_err(|error| {
            tracing::error!("operators cannot reach the agent: {error:#}");
            readiness.note(format!("defib status, pause and resume ({error:#})"));
        })
        .ok();
    let metrics = Metrics::new(&registry, config.agent.max_services)?;
    timeline.register(&registry)?;
    if let Some(reloads) = reloads {
        reloads.register(&registry)?;
    }
    let alerts = {
        let (store, mut alertmanager) = (store.clone(), config.alertmanager.clone());
        // As Prometheus calls it, when the host is scraped by its name.
        let instance = || format!("{}:{}", rustix::system::uname().nodename().to_string_lossy(), address.port());
        alertmanager.labels.entry("instance".to_owned()).or_insert_with(instance);
        let keep = Box::new(move |name, alert| store.keep_alert(name, alert));
        Alerts::new(alertmanager, std::mem::take(&mut left.alerts), keep)
    };
    let alert_metrics = AlertMetrics::new(&registry, &config.alertmanager.urls)?;
    let fleet = guard(&config, &registry)?;
    let mut tasks = JoinSet::new();

    let attached: Arc<OnceLock<Arc<Kernel>>> = Arc::default();
    let stats = [Arc::new(RingStats::default()), Arc::new(RingStats::default())];
    let refresh = {
        let (attached, stats, metrics) = (Arc::clone(&attached), stats.clone(), KernelMetrics::new(&registry)?);
        let (store, store_metrics) = (store.clone(), StoreMetrics::new(&registry)?);
        let (alerts, alert_metrics) = (alerts.clone(), alert_metrics.clone());
        Box::new(move || {
            store_metrics.refresh(&store);
            alert_metrics.refresh(&alerts);
            attached.get().map_or(Ok(()), |kernel| metrics.refresh(kernel, [&*stats[0], &*stats[1]], log_lines_lost()))
        })
    };
    let (stop_web, web_stopped) = oneshot::channel::<()>();
    let trouble = {
        let store = store.clone();
        Box::new(move || store.trouble().map(|trouble| format!("writing down state and incidents ({trouble})")))
    };
    let haproxies = Haproxies::new(&config, &registry, &board, &store, &mut left.pool.claims)?;
    let (commands_in, commands) = mpsc::channel(control::WAITING);
    let api = Api::new(commands_in.clone(), config.agent.state_dir.clone(), timeline.clone());
    let services = metrics.table();
    let web =
        Web { registry, services, readiness: Arc::clone(&readiness), refresh, board: Arc::clone(&board), trouble, api };
    tasks.spawn(web::serve(listener, web, Arc::clone(&gate), async move { drop(web_stopped.await) }));

    tasks.spawn(gate.follow());

    let hierarchy = Hierarchy::detect()
        .inspect_err(|error| {
            tracing::error!("deaths cannot be attributed to services: {error:#}");
            readiness.note(format!("attribution to services ({error:#})"));
        })
        .ok();
    let (lines_in, lines) = mpsc::channel(EVENTS);
    match Kmsg::open() {
        Ok(kmsg) => drop(tasks.spawn(kmsg::follow(kmsg, lines_in))),
        Err(error) => {
            tracing::warn!("OOM kills will lack scope and limit: {error:#}");
            readiness.note(format!("scope and limit of an OOM kill ({error:#})"));
        }
    }
    let audit = Audit::begin();
    let (handover, handed_over) = Handover::open(config.agent.pin_dir.as_deref(), inherited);
    let options = kernel::Options {
        btf,
        hierarchy: hierarchy.as_ref(),
        report_clean: false,
        failed_allocations: config.agent.failed_allocations,
    };
    let (mut kernel, mut rings) = kernel::load(options, handed_over)?;
    let kept = handover.keep(&kernel, &rings.origin).map_err(|error| format!("{error:#}"));
    if let Some(trouble) = handover.trouble().map(ToOwned::to_owned).or(kept.err()) {
        tracing::error!("what happens while no agent runs will be lost: {trouble}");
        readiness.note(format!("what happens while no agent runs ({trouble})"));
    }
    for missing in kernel.missing() {
        tracing::info!("off on this kernel: {missing}");
        readiness.note(missing.clone());
    }
    if let Some(diagnostics) = kernel.take_diagnostics() {
        tasks.spawn(kernel::follow_diagnostics(diagnostics));
    }
    let kernel = Arc::new(kernel);
    attached.set(Arc::clone(&kernel)).ok();
    readiness.release(PROGRAMS);

    let (reading, remains) = reading(&rings, left.account.take(), audit);
    rings.critical.settle_by(store.settled());
    let (events_in, events) = mpsc::channel(EVENTS);
    tasks.spawn({
        let events = events_in.clone();
        async move { kernel::follow_remains(remains, events).await }
    });
    for (ring, stats) in [rings.critical, rings.bulk].into_iter().zip(stats) {
        let events = events_in.clone();
        tasks.spawn(async move { kernel::follow(ring, events, &stats).await });
    }
    drop(events_in);
    if let Some(control) = control {
        tasks.spawn(control.serve(commands_in));
    }
    tasks.spawn(alerts.clone().tell(alert_metrics));
    tasks.spawn(fleet.clone().watch());
    let told = (metrics, timeline, alerts, Arc::clone(&board));
    let parts = (Arc::clone(&kernel), handover);
    let mut steward = Steward::new(&config, hierarchy, parts, told, reading, (store, left), fleet);
    for failure in steward.scan(&config).await? {
        tracing::error!("a service cannot be looked after: {failure}");
        readiness.note(format!("a service: {failure}"));
    }
    let pin_dir = config.agent.pin_dir.clone();
    // Thousands of services are as many kilobytes of configuration, which is all in use by now.
    drop(config);
    // From here on there is something to say.
    let agent_check = agent_check.map(|check| tokio::spawn(check.serve()));
    readiness.release(SCAN);
    host::memory::give_back();
    tasks.spawn(host::memory::give_back_now_and_then());
    tracing::info!(
        %address,
        programs = kernel.programs().len(),
        cgroups = steward.cgroups(),
        services = steward.services(),
        "watching"
    );
    let manager = Manager::from_env();
    manager.ready(&steward.summary());
    let mut pulse = manager.pulse(Instant::now());

    let outcome = tokio::select! {
        outcome = steward.run(events, lines, commands, &mut pulse) => outcome.map(|()| After::End),
        after = shutdown => Ok(after),
        Some(ended) = tasks.join_next() => match ended {
            Ok(Ok(())) => Err(anyhow::anyhow!("a part of the agent ended by itself")),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(error).context("a part of the agent failed"),
        },
    };
    match outcome {
        Ok(After::BeginAgain) => pulse.manager().reloading(),
        _ => pulse.manager().stopping(),
    }
    steward.leave_pools();
    linger(&board, agent_check).await;
    haproxies.leave().await;
    steward.end().await;
    drop(stop_web);
    tasks.shutdown().await;
    match outcome? {
        After::BeginAgain => Ok(Ended::BeginAgain { left: kernel.descriptors()?, pin_dir }),
        After::End => {
            steward.leave_nothing();
            Ok(Ended::Ended)
        }
    }
}

/// Where the reading of the rings begins, and what is to be read before.
fn reading(rings: &Rings, left: Option<Account>, begun: Audit) -> (Reading, Vec<Record>) {
    let boot_id = clock::boot_id();
    let is_of = |ring| left.as_ref().filter(|account| account.is_of(boot_id, ring));
    let (known, remains) = match &rings.origin {
        Origin::New => (None, Vec::new()),
        Origin::TakenOver => {
            tracing::info!("goes on with the kernel programs of the agent before");
            (is_of(rings.id), Vec::new())
        }
        Origin::Replaced(Remains { id, records, unread }) => {
            let known = is_of(*id);
            let is_new = |span: &Option<Span>| !span.zip(known).is_some_and(|(span, account)| account.has(span.begin));
            let records: Vec<_> = records.iter().filter(|(span, _)| is_new(span)).map(|(_, record)| *record).collect();
            tracing::info!(records = records.len(), unread, "what the earlier programs had left is read first");
            (known, records)
        }
    };
    let audit = known.map_or(begun, |account| Audit::resume(account.audit));
    let took_over = !matches!(rings.origin, Origin::New);
    let progress = Progress::new(boot_id, rings.id, left);
    (Reading { progress, audit, took_over }, remains)
}

/// Who is asked before anything is done by plan.
fn guard(config: &Config, registry: &Registry) -> Result<Fleet> {
    if config.fleet.etcd.is_empty() {
        return Ok(Fleet::off());
    }
    let services = config.services();
    let pools = services.iter().filter_map(|service| Some(service.pool.as_ref()?.parts()?.0));
    Ok(Fleet::new(&config.fleet, FleetMetrics::new(registry, &config.fleet.etcd, pools)?))
}

/// Agent checks that wait for news get so long to ask for it: HAProxy asks every two seconds unless told otherwise.
const LINGER: Duration = Duration::from_secs(3);
/// Between looks whether they have.
const LINGER_LOOK: Duration = Duration::from_millis(20);

/// What was said to agent checks only the next answer undoes, so the agent stays for that, if not for long.
async fn linger(board: &Board, agent_check: Option<JoinHandle<Result<()>>>) {
    let Some(agent_check) = agent_check else { return };
    let asked = async {
        while !board.all_answered() {
            sleep(LINGER_LOOK).await;
        }
    };
    if timeout(LINGER, asked).await.is_err() {
        tracing::warn!("an agent check has not asked again, and may keep a server as it was");
    }
    agent_check.abort();
}

/// The tasks that speak to HAProxies, and how each is told to leave.
struct Haproxies(Vec<(oneshot::Sender<()>, JoinHandle<Result<()>>)>);

impl Haproxies {
    /// Begins to speak to those that the configuration names, if the agent may act.
    fn new(
        config: &Config,
        registry: &Registry,
        board: &Arc<Board>,
        store: &Store,
        claims: &mut HashMap<String, Claims>,
    ) -> Result<Self> {
        if config.agent.mode != Mode::Act {
            return Ok(Self(Vec::new()));
        }
        let spoken = Spoken::new(registry, &config.pool.haproxy)?;
        let names: BTreeSet<_> = config.services().into_iter().filter_map(|service| service.pool).collect();
        let begin = |endpoint: &Endpoint| {
            let store = store.clone();
            let haproxy = HaProxy {
                endpoint: endpoint.clone(),
                names: names.clone(),
                claims: claims.remove(&endpoint.to_string()).unwrap_or_default(),
                board: Arc::clone(board),
                spoken: spoken.clone(),
                keep: Box::new(move |endpoint, claims| store.keep_claims(endpoint, claims)),
            };
            let (leave, left) = oneshot::channel();
            (leave, tokio::spawn(haproxy.run(board.wishes(), left)))
        };
        Ok(Self(config.pool.haproxy.iter().map(begin).collect()))
    }

    /// Has them give back what they can.
    async fn leave(self) {
        let (leaves, tasks): (Vec<_>, Vec<_>) = self.0.into_iter().unzip();
        for leave in leaves {
            // One that has ended already has nothing to give back.
            leave.send(()).ok();
        }
        for task in tasks {
            task.await.ok();
        }
    }
}

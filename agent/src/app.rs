//! Wires the rooms, starts them and ends them. The only file that knows all of them.

mod doctor;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, anyhow, bail};
use arc_swap::ArcSwap;
use dinle_proto::server::observer_server::ObserverServer;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tonic::transport::Server;

use crate::{
    admission::Admission,
    api::{Api, Facts, Measured, Streams},
    auth::{Auth, Reviewer},
    config::{AuthMode, Config, DRAIN},
    control::{self, Control, Settle},
    event,
    export::{self, Exporters},
    hub::Hub,
    kernel::{Kernel, Options},
    listen::{self, Listener},
    metrics::{self, Health, Watchdog},
    pipeline::{Pipeline, Stats},
    workload::{self, Index},
};

pub use doctor::Doctor;

/// A peer that does not answer a ping within [`KEEPALIVE_TIMEOUT`] is dead, and its stream ends. Port-forwards that broke
/// silently are noticed by this.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// See [`KEEPALIVE`].
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Calls at a time on one connection, as many as streams can be open and then some.
const CALLS: u32 = 128;

/// Runs the agent until it is told to stop.
pub async fn run(config: Config) -> anyhow::Result<()> {
    config.check_listen().map_err(anyhow::Error::msg)?;
    let options = Options {
        ring_bytes: config.ring_bytes,
        ways: config.ways.clone(),
        sensors: config.sensors.clone(),
        every_way: config.check,
    };
    if config.check {
        return check(&options);
    }
    // What is wrong is told before anything is loaded.
    let exporters = match &config.exporters {
        Some(path) => Some(Exporters::open(path.clone(), &config.request_limits())?),
        None => None,
    };
    // Ports and signals first: nothing is loaded for an agent that cannot serve.
    let mut stop = Stop::listen()?;
    let tls = config.tls().map(listen::State::open).transpose()?;
    let mut grpc = Vec::new();
    for address in &config.listen {
        let listener = Listener::bind(address, config.access(), tls.as_ref()).await;
        grpc.push(listener.with_context(|| {
            format!("--listen {address} cannot be listened on; is another agent running?")
        })?);
    }
    let http = bind(config.http, "--http").await?;
    let node_name = node_name(config.node_name.as_deref())?;
    let cgroup_root = cgroup_root(config.cgroup_root.as_deref())?;

    let Kernel {
        scope,
        mut programs,
        reader,
        counters,
        narrowing,
        rates,
        namespaces,
        tables,
        names,
    } = Kernel::load(&options)?;
    let nudge = reader.sleeper.nudge();
    let (hub, publisher) = Hub::new(config.stream_limits(), {
        let nudge = nudge.clone();
        move || nudge.nudge()
    });
    let index = Index::new(&node_name);
    // The tracker is attached: what is made from now on is told, and what was there before is found.
    let found = index.walk(&cgroup_root).with_context(|| {
        format!(
            "the tree of cgroups at {} cannot be walked; see --cgroup-root",
            cgroup_root.display()
        )
    })?;
    let node = Arc::new(ArcSwap::from_pointee(control::node(
        &programs.status(),
        programs.kinds(),
    )));
    for capability in node
        .load()
        .capabilities
        .iter()
        // A sensor that was left out has no hooks, and whoever left it out knows.
        .filter(|capability| !capability.available && !capability.hooks.is_empty())
    {
        tracing::warn!(
            kind = capability.kind().as_str_name(),
            reason = capability.reason,
            "unavailable"
        );
    }
    let stats = Arc::new(Stats::default());
    let (settle, settles) = Settle::new();
    let names = Arc::new(event::Names {
        drop_reasons: names.drop_reasons,
        reset_reasons: names.reset_reasons,
        symbols: Arc::default(),
    });
    let reader = ReaderThread::spawn(
        Pipeline {
            reader,
            counters,
            tables,
            names: names.clone(),
            index: index.clone(),
            publisher,
            stats: stats.clone(),
            stop: Arc::default(),
        },
        nudge.clone(),
    )?;
    let mut control = tokio::spawn(
        Control {
            hub: hub.clone(),
            index: index.clone(),
            programs,
            scope,
            narrowing,
            rates,
            namespaces,
            symbols: names.symbols.clone(),
            stats: stats.clone(),
            node: node.clone(),
            cgroup_root: cgroup_root.clone(),
            linger: config.linger,
            pod_rate: config.max_pod_events_per_second,
            budget: config.budget_cpu,
            costs: control::Costs::default(),
            unmeasured: None,
            settle: settles,
        }
        .run(),
    );
    // The reader tells streams what becomes known of their workloads.
    let mut changes = index.changes();
    let nudging = tokio::spawn(async move {
        while changes.changed().await.is_ok() {
            nudge.nudge();
        }
    });
    let pods = tokio::spawn(workload::run(
        config.pods.clone(),
        index.clone(),
        node_name.clone(),
    ));

    let facts = Facts {
        node: node_name.clone(),
        boot_id: read_trimmed("/proc/sys/kernel/random/boot_id")?,
        kernel_release: read_trimmed("/proc/sys/kernel/osrelease")?,
        started: SystemTime::now(),
        ring_bytes: config.ring_bytes,
    };
    let auth = match config.auth {
        AuthMode::None => None,
        AuthMode::Kube => Some(Arc::new(Auth::new(Reviewer::new(
            config.auth_audiences.clone(),
        )))),
    };
    let watchdog = Arc::new(Watchdog::default());
    let watching = tokio::spawn({
        let (watchdog, stats, hub) = (watchdog.clone(), stats.clone(), hub.clone());
        async move { watchdog.watch(stats, hub).await }
    });
    let connections = Arc::<listen::Counts>::default();
    let health = Health {
        hub: hub.clone(),
        index: index.clone(),
        stats,
        node: node.clone(),
        watchdog,
        connections: connections.clone(),
        tls,
        auth: auth.clone(),
        exporters: exporters.clone(),
    };
    let http_task = tokio::spawn(metrics::serve(http, health));
    let admission = Admission {
        auth,
        grace: config.auth_grace,
        index: index.clone(),
    };
    let context = export::Context {
        hub: hub.clone(),
        admission: admission.clone(),
        settle: settle.clone(),
        limits: config.request_limits(),
        index: index.clone(),
        state: node.clone(),
        node: node_name.clone(),
    };
    let exporting = exporters.clone().map(|own| tokio::spawn(own.run(context)));
    let (reporter, health_service) = tonic_health::server::health_reporter();
    reporter.set_serving::<ObserverServer<Api>>().await;
    let api = Api {
        facts,
        hub: hub.clone(),
        admission,
        streams: Streams::default(),
        index,
        state: node,
        settle,
        limits: config.request_limits(),
        exporters: exporters.clone(),
    };
    let request_bytes = config.max_request_bytes as usize;
    let reflection = tonic_reflection::server::Builder::configure;
    let described = |builder: tonic_reflection::server::Builder<'static>| {
        builder
            .register_encoded_file_descriptor_set(dinle_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (draining, drained) = tokio::sync::oneshot::channel::<()>();
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        // tonic takes none for no limit at all.
        .max_concurrent_streams(Some(CALLS))
        .add_service(Measured::new(
            ObserverServer::new(api).max_decoding_message_size(request_bytes),
            hub.clone(),
            request_bytes,
        ))
        .add_service(health_service)
        .add_service(described(reflection()).build_v1().context("reflection")?)
        .add_service(
            described(reflection())
                .build_v1alpha()
                .context("reflection")?,
        )
        .serve_with_incoming_shutdown(Listener::incoming(grpc, &connections), async {
            // A sender that is gone means the same.
            _ = drained.await;
        });
    let mut serving = tokio::spawn(serving);
    tracing::info!(
        listen = %list(&config.listen), http = %config.http, node = node_name, pods = %config.pods,
        cgroup_root = %cgroup_root.display(), cgroups = found, "listening"
    );

    let ended = tokio::select! {
        name = stop.wait() => {
            tracing::info!(signal = name, "stopping: streams get their final books");
            Ok(())
        }
        served = &mut serving => served
            .context("the gRPC server")
            .and_then(|served| served.context("the gRPC server")),
        ended = reader.ended() => Err(anyhow!("the reader thread ended: {ended}")),
        // Without it nothing attaches any more. It ends by a defect alone: the service holds what it waits for.
        ended = &mut control => Err(anyhow!("the controller ended: {ended:?}")),
    };
    reporter.set_not_serving::<ObserverServer<Api>>().await;
    hub.shutdown();
    drop(draining);
    if ended.is_ok() && !serving.is_finished() && timeout(DRAIN, &mut serving).await.is_err() {
        tracing::warn!(
            seconds = DRAIN.as_secs(),
            "streams did not end in time and are cut"
        );
    }
    serving.abort();
    if let (Some(exporters), Some(exporting)) = (exporters, exporting) {
        exporters.stop();
        // They end by themselves soon after.
        if timeout(export::DRAIN, exporting).await.is_err() {
            tracing::warn!(
                seconds = export::DRAIN.as_secs(),
                "exporters did not end in time: what they had is lost"
            );
        }
    }
    for task in [nudging, pods, watching] {
        task.abort();
    }
    http_task.abort();
    control.abort();
    if !control.is_finished() {
        // The programs go with the controller: whatever happens next, nothing stays attached.
        _ = control.await;
    }
    drop(reader);
    ended
}

/// Loads everything, and says what became of it, separated by tabs: `PROGRAM <name> <ok|unavailable> <instructions or reason>`, and
/// `KIND <name> <ok|unavailable|left out> <ways or reason>`.
fn check(options: &Options) -> anyhow::Result<()> {
    let Kernel { mut programs, .. } = Kernel::load(options)?;
    let hooks = programs.status();
    for way in hooks.iter().flat_map(|hook| &hook.ways) {
        match &way.verified {
            Ok(instructions) => println!("PROGRAM\t{}\tok\t{instructions}", way.program),
            Err(reason) => println!("PROGRAM\t{}\tunavailable\t{reason}", way.program),
        }
    }
    let capabilities = control::node(&hooks, programs.kinds()).capabilities;
    for capability in &capabilities {
        let kind = capability.kind().name();
        // Whoever left it out knows.
        if capability.hooks.is_empty() && !capability.available {
            println!("KIND\t{kind}\tleft out\t{}", capability.reason);
            continue;
        }
        let mut ways: Vec<&str> = Vec::new();
        for hook in &capability.hooks {
            if !ways.contains(&hook.chosen.as_str()) {
                ways.push(&hook.chosen);
            }
        }
        match capability.available {
            true => println!("KIND\t{kind}\tok\t{}", ways.join(", ")),
            false => println!("KIND\t{kind}\tunavailable\t{}", capability.reason),
        }
    }
    let missing: Vec<String> = capabilities
        .iter()
        .filter(|capability| !capability.available && !capability.hooks.is_empty())
        .map(|capability| format!("{}: {}", capability.kind().as_str_name(), capability.reason))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "some kinds of events are not available here: {}",
        missing.join("; ")
    )
}

/// Signals that end the agent. SIGHUP does nothing: a terminal that closes is no reason to stop listening.
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Stop {
    fn listen() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("signals cannot be handled");
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    async fn wait(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => tracing::info!("SIGHUP does nothing"),
            }
        }
    }
}

/// The reader's thread. Dropping it ends the thread.
struct ReaderThread {
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    nudge: crate::kernel::Nudge,
}

impl ReaderThread {
    fn spawn(pipeline: Pipeline, nudge: crate::kernel::Nudge) -> anyhow::Result<Self> {
        let stop = pipeline.stop.clone();
        let thread = std::thread::Builder::new()
            .name("dinle-reader".into())
            .spawn(|| pipeline.run())
            .context("the reader's thread")?;
        Ok(Self {
            thread: Some(thread),
            stop,
            nudge,
        })
    }

    /// Comes back only if the thread ended by itself, which it never should.
    async fn ended(&self) -> &'static str {
        const LOOK: Duration = Duration::from_secs(1);
        let mut looks = tokio::time::interval(LOOK);
        loop {
            looks.tick().await;
            if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                return "a defect; its message is above";
            }
        }
    }
}

impl Drop for ReaderThread {
    fn drop(&mut self) {
        /// How long it may take. One that is stuck ends with the process.
        const PATIENCE: Duration = Duration::from_secs(2);
        const LOOK: Duration = Duration::from_millis(1);
        self.stop.store(true, Ordering::Relaxed);
        self.nudge.nudge();
        let Some(thread) = self.thread.take() else {
            return;
        };
        let began = Instant::now();
        while !thread.is_finished() {
            if began.elapsed() >= PATIENCE {
                tracing::error!("the reader stands still, and is not waited for");
                return;
            }
            std::thread::sleep(LOOK);
        }
        // A panic was printed when it happened.
        _ = thread.join();
    }
}

fn list(addresses: &[listen::Address]) -> String {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    addresses.join(",")
}

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("{flag} {address} cannot be listened on; is another agent running?")
    })
}

fn node_name(given: Option<&str>) -> anyhow::Result<String> {
    match given {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => read_trimmed("/proc/sys/kernel/hostname"),
    }
}

fn read_trimmed(path: &str) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{path} cannot be read"))?;
    Ok(text.trim_end().to_owned())
}

/// The root of the v2 hierarchy: has `cgroup.procs`, and no v1 controllers beside it.
fn cgroup_root(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let candidates = match given {
        Some(root) => vec![root.to_owned()],
        None => ["/host/sys/fs/cgroup", "/sys/fs/cgroup"]
            .map(PathBuf::from)
            .to_vec(),
    };
    for root in &candidates {
        for root in [root.clone(), root.join("unified")] {
            if root.join("cgroup.procs").exists() && root.join("cgroup.controllers").exists() {
                return Ok(root);
            }
        }
    }
    let tried: Vec<String> = candidates
        .iter()
        .map(|root| root.display().to_string())
        .collect();
    bail!(
        "no cgroup2 tree at {} (nor at `unified` below); mount the node's /sys/fs/cgroup and name it with --cgroup-root",
        tried.join(" or ")
    )
}

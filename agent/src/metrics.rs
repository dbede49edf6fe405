//! The agent's own health over HTTP: `/metrics` for Prometheus, `/healthz` and `/readyz` for the kubelet.

mod capacity;
mod exporters;
mod watchdog;

use std::{
    collections::VecDeque,
    fmt::Write as _,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use arc_swap::ArcSwap;
use axum::{
    Router,
    extract::{Path, State},
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use dinle_ebpf::Kind;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, text::encode},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

use crate::{
    auth::Auth,
    control::{Costs, Node},
    event::proto_kind,
    export::Exporters,
    hub::{Hub, Stage},
    listen,
    pipeline::Stats,
    workload::Index,
};

pub use watchdog::Watchdog;

/// Connections at a time. One more, and the oldest goes: an answer takes milliseconds, and nobody who is slow keeps the kubelet waiting.
const CONNECTIONS: usize = 64;
/// How long a connection may be silent before a request.
const SILENCE: Duration = Duration::from_secs(10);
/// How old a connection may get: whoever asks again connects again.
const AGE: Duration = Duration::from_secs(300);
/// How long to wait when no more files can be opened.
const FULL: Duration = Duration::from_millis(100);

/// What is shown.
#[derive(Clone)]
pub struct Health {
    /// Who listens.
    pub hub: Hub,
    /// Who runs.
    pub index: Index,
    /// The reader's counters.
    pub stats: Arc<Stats>,
    /// The kernel half.
    pub node: Arc<ArcSwap<Node>>,
    /// Whether the reader stands still.
    pub watchdog: Arc<Watchdog>,
    /// Connections of gRPC.
    pub connections: Arc<listen::Counts>,
    /// Certificates, where clients speak TLS.
    pub tls: Option<Arc<listen::State>>,
    /// Who asks the API server for permissions, where callers must say who they are.
    pub auth: Option<Arc<Auth>>,
    /// What the agent itself exports, if it does.
    pub exporters: Option<Arc<Exporters>>,
}

/// Serves the routes until it is dropped. Nobody is asked who they are: so there is little to take up.
pub async fn serve(listener: TcpListener, health: Health) {
    let router = router(health);
    // They end with it.
    let mut open = JoinSet::new();
    let mut order: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        while open.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection to --http could not be taken");
                sleep(FULL).await;
                continue;
            }
        };
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(SILENCE);
        let service = TowerToHyperService::new(router.clone());
        let served = http.serve_connection(TokioIo::new(stream), service);
        order.retain(|connection| !connection.is_finished());
        if order.len() == CONNECTIONS
            && let Some(oldest) = order.pop_front()
        {
            oldest.abort();
        }
        order.push_back(open.spawn(async move {
            // Whoever breaks off knows.
            _ = timeout(AGE, served).await;
        }));
    }
}

/// The routes.
fn router(health: Health) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/metrics/{exporter}", get(series))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(health)
}

/// Whether the agent does its work. Never depends on a subscriber or on the API server: a restart would mend neither.
async fn healthz(State(health): State<Health>) -> impl IntoResponse {
    works(&health).map_or_else(unavailable, |()| ok())
}

/// Whether events would come, and carry the names of their pods.
async fn readyz(State(health): State<Health>) -> impl IntoResponse {
    let source = health.index.status();
    let known = || match (source.synced, &*source.error) {
        (true, _) => Ok(()),
        (false, error) => {
            let error = Some(error).filter(|error| !error.is_empty());
            let error = error.unwrap_or("no answer yet");
            Err(format!("pods are not known yet ({}: {error})", source.name))
        }
    };
    works(&health)
        .and_then(|()| known())
        .map_or_else(unavailable, |()| ok())
}

fn works(health: &Health) -> Result<(), String> {
    match health.watchdog.stuck() {
        Some(time) => Err(watchdog::told(time)),
        None => Ok(()),
    }
}

fn ok() -> (StatusCode, String) {
    (StatusCode::OK, "ok\n".to_owned())
}

fn unavailable(why: String) -> (StatusCode, String) {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    let mut registry = Registry::with_prefix("dinle");
    registry.register_collector(Box::new(Metrics(health)));
    let mut text = String::new();
    if let Err(error) = encode(&mut text, &registry) {
        text.clear();
        _ = writeln!(text, "# metrics cannot be encoded: {error}");
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, kind)], text)
}

/// The series of an exporter `prometheus`.
async fn series(
    State(health): State<Health>,
    Path(exporter): Path<String>,
    headers: HeaderMap,
) -> Response {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let exporters = health.exporters.as_ref();
    match exporters.and_then(|exporters| exporters.scrape(&exporter, accept.unwrap_or_default())) {
        Some((kind, body)) => ([(CONTENT_TYPE, kind)], body).into_response(),
        None => {
            let text =
                "no exporter `prometheus` has this name; /metrics tells of the agent itself\n";
            (StatusCode::NOT_FOUND, text).into_response()
        }
    }
}

#[derive(Clone)]
struct Metrics(Health);

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Collector for Metrics {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Self(Health {
            hub,
            index,
            stats,
            node,
            connections,
            tls,
            auth,
            exporters,
            watchdog,
        }) = self;
        if let Some(exporters) = exporters {
            exporters::encode(exporters, &mut out)?;
        }
        let node = node.load();
        let kinds = || {
            Kind::ALL
                .iter()
                .map(|&kind| (kind, proto_kind(kind).name()))
        };

        let counter = ConstCounter::new(0u64).metric_type();
        let gauge = ConstGauge::new(0i64).metric_type();
        let mut family = out.encode_descriptor(
            "frames",
            "Frames taken out of the kernel's ring",
            None,
            counter,
        )?;
        for (kind, name) in kinds() {
            let count = stats.frames[kind as usize].load(Ordering::Relaxed);
            ConstCounter::new(count).encode(family.encode_family(&[("kind", &*name)])?)?;
        }
        let mut family = out.encode_descriptor(
            "events_delivered",
            "Events sent, each to each of its subscribers",
            None,
            counter,
        )?;
        for (kind, name) in kinds() {
            let count = hub.totals().deliveries(proto_kind(kind));
            ConstCounter::new(count).encode(family.encode_family(&[("kind", &*name)])?)?;
        }
        let mut family = out.encode_descriptor(
            "events_lost",
            "Events lost, by stage; each stream is told of its own",
            None,
            counter,
        )?;
        for (kind, name) in kinds() {
            for stage in Stage::ALL {
                let count = hub.totals().losses(proto_kind(kind), stage);
                ConstCounter::new(count)
                    .encode(family.encode_family(&[("kind", &*name), ("stage", stage.name())])?)?;
            }
        }
        let mut family = out.encode_descriptor(
            "streams_refused",
            "Streams and other requests that a limit kept out, by the limit",
            None,
            counter,
        )?;
        for (limit, count) in hub.refusals().counts() {
            ConstCounter::new(count).encode(family.encode_family(&[("limit", limit)])?)?;
        }
        if let Some(auth) = auth {
            let mut family = out.encode_descriptor(
                "calls_refused",
                "Calls and streams of callers who are unknown or may not, by the reason",
                None,
                counter,
            )?;
            for (reason, count) in auth.refusals() {
                ConstCounter::new(count).encode(family.encode_family(&[("reason", reason)])?)?;
            }
        }
        let mut one = |name, help, count: u64| {
            ConstCounter::new(count).encode(out.encode_descriptor(name, help, None, counter)?)
        };
        one(
            "frames_undecodable",
            "Frames that could not be read",
            stats.undecodable.load(Ordering::Relaxed),
        )?;
        one(
            "reader_rounds",
            "Times that the reader looked for events, once a second at least",
            stats.rounds.load(Ordering::Relaxed),
        )?;
        one(
            "tracker_records_lost",
            "Cgroups whose creation was not told; the tree was walked anew",
            stats.tracker_lost.load(Ordering::Relaxed),
        )?;
        one(
            "scope_inheritance_failures",
            "New cgroups that could not be watched: the kernel's table was full",
            stats.scope_full.load(Ordering::Relaxed),
        )?;
        one(
            "workloads_refused",
            "Cgroups and pods beyond the limits",
            index.refused(),
        )?;
        one(
            "connections_refused",
            "Connections to gRPC that did not begin as they should: no HTTP/2, no TLS where that is spoken, or too slow",
            connections.refused(),
        )?;
        if let Some(tls) = tls {
            one(
                "tls_handshake_failures",
                "Connections that did not become TLS: no TLS, no certificate that the client CA has signed, or too slow",
                tls.handshake_failures(),
            )?;
            one(
                "tls_reload_failures",
                "Times that certificates had changed and could not be used; the old ones stay in use",
                tls.reload_failures(),
            )?;
        }
        let mut one = |name, help, value: i64| {
            ConstGauge::new(value).encode(out.encode_descriptor(name, help, None, gauge)?)
        };
        if let Some(tls) = tls {
            one(
                "tls_certificate_expiry_timestamp_seconds",
                "When the certificate in use ends, in seconds since 1970",
                tls.expires() as i64,
            )?;
        }
        one(
            "reader_stuck",
            "1 while the reader stands still, and nobody is told of anything",
            watchdog.stuck().is_some().into(),
        )?;
        one(
            "connections",
            "Connections to gRPC that are open",
            connections.open() as i64,
        )?;
        one(
            "subscriptions",
            "Streams that are open",
            hub.board().listeners().count() as i64,
        )?;
        one(
            "queue_size_bytes",
            "What the queues of all open streams may hold",
            hub.board().queue_bytes() as i64,
        )?;
        let limits = hub.limits();
        one(
            "subscriptions_limit",
            "Streams that may be open",
            limits.streams as i64,
        )?;
        one(
            "queue_size_limit_bytes",
            "What the queues of all streams may hold at most",
            limits.queue_bytes.try_into().unwrap_or(i64::MAX),
        )?;
        one("cgroups", "Cgroups that are known", index.cgroups() as i64)?;
        one(
            "cgroups_watched",
            "Cgroups that the kernel reports on",
            node.watched as i64,
        )?;
        one(
            "pods",
            "Pods that the pod source told of",
            index.status().pods.into(),
        )?;
        one(
            "pods_synced",
            "1 once the pod source has told everything",
            index.status().synced.into(),
        )?;
        one(
            "pods_source_up",
            "1 while the pod source answers; names are those of before while it does not",
            index.status().error.is_empty().into(),
        )?;
        let mut used = Vec::new();
        let mut family = out.encode_descriptor(
            "capacity",
            "How much there may be of it; docs/limits.md says what happens then",
            None,
            gauge,
        )?;
        for capacity::Capacity {
            what,
            used: now,
            most,
        } in capacity::capacities(&self.0)
        {
            let most = i64::try_from(most).unwrap_or(i64::MAX);
            ConstGauge::new(most).encode(family.encode_family(&[("what", what)])?)?;
            used.push((what, now));
        }
        let mut family =
            out.encode_descriptor("capacity_used", "How much there is of it", None, gauge)?;
        for (what, now) in used {
            let now = i64::try_from(now).unwrap_or(i64::MAX);
            ConstGauge::new(now).encode(family.encode_family(&[("what", what)])?)?;
        }
        costs(&node.costs, &mut out)?;
        let mut family = out.encode_descriptor(
            "kind_available",
            "1 if this kernel lets that kind be told; what --sensors leaves out is not here",
            None,
            gauge,
        )?;
        let offered = node.capabilities.iter().filter(|one| !one.hooks.is_empty());
        for capability in offered {
            let available = ConstGauge::new(i64::from(capability.available));
            let kind = capability.kind().name();
            available.encode(family.encode_family(&[("kind", &*kind)])?)?;
        }
        let mut family = out.encode_descriptor(
            "program_attached",
            "1 while a program is attached",
            None,
            gauge,
        )?;
        for program in &node.programs {
            let labels = [("hook", &*program.hook), ("way", &*program.way)];
            ConstGauge::new(i64::from(program.attached)).encode(family.encode_family(&labels)?)?;
        }
        let mut family = out.encode_descriptor(
            "program_skipped",
            "Runs that the kernel skipped because the program already ran on that CPU",
            None,
            counter,
        )?;
        for program in &node.programs {
            let labels = [("hook", &*program.hook), ("way", &*program.way)];
            ConstCounter::new(program.recursion_misses).encode(family.encode_family(&labels)?)?;
        }
        let resident = Unit::Bytes;
        let family = out.encode_descriptor(
            "resident_memory",
            "Memory of the agent",
            Some(&resident),
            gauge,
        )?;
        ConstGauge::new(resident_bytes() as i64).encode(family)
    }
}

/// What programs and the agent cost, and what is shed.
fn costs(costs: &Costs, out: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
    let counter = ConstCounter::new(0u64).metric_type();
    let gauge = ConstGauge::new(0f64).metric_type();
    let Costs {
        budget, programs, ..
    } = costs;
    let mut one = |name, help, percent: f64| {
        let family = out.encode_descriptor(name, help, None, gauge)?;
        ConstGauge::new(percent / 100.0).encode(family)
    };
    one(
        "budget_cpu_ratio",
        "What --budget-cpu allows, of one CPU; 0: no budget",
        budget.limit_percent,
    )?;
    one(
        "programs_cpu_ratio",
        "What programs in the kernel took of one CPU in the last second in which they were measured",
        budget.programs_percent,
    )?;
    one(
        "agent_cpu_ratio",
        "What the agent's own threads took of one CPU in that second",
        budget.agent_percent,
    )?;
    let family = out.encode_descriptor(
        "budget_shed",
        "Kinds of streams that are told less than everything, because the agent was over its budget",
        None,
        gauge,
    )?;
    ConstGauge::new(i64::from(budget.shed)).encode(family)?;
    let mut family = out.encode_descriptor(
        "budget_steps",
        "Times that a kind of a stream was told less, or more again",
        None,
        counter,
    )?;
    let steps = [budget.steps_down, budget.steps_up];
    for (direction, steps) in ["down", "up"].into_iter().zip(steps) {
        ConstCounter::new(steps).encode(family.encode_family(&[("direction", direction)])?)?;
    }
    let mut family = out.encode_descriptor(
        "program_cpu_ratio",
        "What a program took of one CPU in the last second in which it was measured",
        None,
        gauge,
    )?;
    for (hook, cost) in programs {
        let ratio = ConstGauge::new(cost.cpu_percent / 100.0);
        ratio.encode(family.encode_family(&[("hook", &**hook)])?)?;
    }
    Ok(())
}

/// Second field of /proc/self/statm, in bytes; 0 where /proc is not there.
fn resident_bytes() -> u64 {
    const PAGE: u64 = 4096;
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages
        .as_deref()
        .and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * PAGE
}

#[cfg(test)]
mod tests;

//! The agent's own health over HTTP: `/metrics` for Prometheus, `/healthz` and `/readyz` for the kubelet.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
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
    control::Node,
    event::proto_kind,
    hub::{Hub, Stage},
    listen,
    pipeline::Stats,
    workload::Index,
};

/// Connections at a time. One more, and the oldest goes: an answer takes milliseconds, and nobody who is slow keeps the kubelet waiting.
const CONNECTIONS: usize = 64;
/// How long a connection may be silent before a request.
const SILENCE: Duration = Duration::from_secs(10);
/// How old a connection may get: whoever asks again connects again.
const AGE: Duration = Duration::from_secs(300);
/// How long to wait when no more files can be opened.
const FULL: Duration = Duration::from_millis(100);

/// A reader that made no round for so long is stuck: it looks at least every second.
const STUCK: Duration = Duration::from_secs(10);

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
    /// When the reader was last seen alive.
    pub alive: Arc<Alive>,
    /// Those of gRPC.
    pub connections: Arc<listen::Counts>,
    /// Certificates, where clients speak TLS.
    pub tls: Option<Arc<listen::State>>,
    /// Who asks the API server for permissions, where callers must say who they are.
    pub auth: Option<Arc<Auth>>,
}

/// Sees whether a counter moves.
#[derive(Debug)]
pub struct Alive {
    began: Instant,
    rounds: AtomicU64,
    /// Milliseconds since `began` when `rounds` was seen to move.
    moved_ms: AtomicU64,
}

impl Default for Alive {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            rounds: AtomicU64::new(0),
            moved_ms: AtomicU64::new(0),
        }
    }
}

impl Alive {
    /// How long the counter has stood still, as far as calls of this have seen. The first call sees it move.
    fn idle(&self, rounds: u64) -> Duration {
        self.idle_at(rounds, self.began.elapsed().as_millis() as u64)
    }

    /// The same at a time, in milliseconds since `began`.
    fn idle_at(&self, rounds: u64, now: u64) -> Duration {
        if self.rounds.swap(rounds, Ordering::Relaxed) != rounds {
            self.moved_ms.store(now, Ordering::Relaxed);
        }
        Duration::from_millis(now.saturating_sub(self.moved_ms.load(Ordering::Relaxed)))
    }
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
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(health)
}

/// Whether the agent does its work. Never depends on a subscriber or on the API server: a restart would mend neither.
async fn healthz(State(health): State<Health>) -> impl IntoResponse {
    let idle = health
        .alive
        .idle(health.stats.rounds.load(Ordering::Relaxed));
    if idle < STUCK {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the reader has stood still for {} s\n", idle.as_secs()),
        )
    }
}

/// Whether events would carry the names of their pods.
async fn readyz(State(health): State<Health>) -> impl IntoResponse {
    let source = health.index.status();
    if source.synced {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        let error = if source.error.is_empty() {
            "no answer yet"
        } else {
            &source.error
        };
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("pods are not known yet ({}: {error})\n", source.name),
        )
    }
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
            alive: _,
        }) = self;
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
            "Streams for which there was no room, by the limit",
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
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    #[test]
    fn a_counter_that_moves_is_alive() {
        let alive = Alive::default();
        let idle = |rounds, seconds: u64| alive.idle_at(rounds, seconds * 1000).as_secs();
        assert_eq!(idle(5, 100), 0, "the first look sees it move");
        assert_eq!(idle(5, 109), 9);
        assert_eq!(idle(6, 110), 0, "it moved");
        assert_eq!(idle(6, 110 + STUCK.as_secs()), STUCK.as_secs());
        assert!(alive.idle(7) < STUCK);
    }

    #[tokio::test]
    async fn who_says_nothing_is_not_waited_for_and_keeps_nobody_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (hub, _publisher) = Hub::new(crate::hub::Limits::default(), || ());
        let health = Health {
            hub,
            index: Index::new("n1"),
            stats: Arc::default(),
            node: Arc::default(),
            alive: Arc::default(),
            connections: Arc::default(),
            tls: None,
            auth: None,
        };
        let serving = tokio::spawn(serve(listener, health));
        let ask = async || {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").await?;
            let mut answer = [0; 15];
            stream.read_exact(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        assert_eq!(&ask().await.expect("an answer"), b"HTTP/1.1 200 OK");
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS + 10 {
            silent.push(TcpStream::connect(address).await.expect("connected"));
        }
        let answer = timeout(SILENCE / 2, ask()).await.expect("at once");
        assert_eq!(&answer.expect("an answer"), b"HTTP/1.1 200 OK");
        // The first of them made room, and the last go in the end.
        let mut first = silent.remove(0);
        let closed = timeout(SILENCE / 2, first.read(&mut [0])).await;
        assert_eq!(closed.expect("it is gone already").unwrap_or(0), 0);
        let mut last = silent.pop().expect("there are more");
        let closed = timeout(3 * SILENCE, last.read(&mut [0])).await;
        assert_eq!(closed.expect("it is gone in the end").unwrap_or(0), 0);
        serving.abort();
    }
}

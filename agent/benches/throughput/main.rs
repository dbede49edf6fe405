//! How many frames the reader takes their way in a second, and how many events reach subscribers.
//!
//! Synthetic frames go through the agent's own router and hub, as the reader's thread does it but for the ring. What comes out is
//! drained in this process on another CPU, or served over loopback gRPC by the agent's own service, whose thread shares the
//! reader's CPU. The reader waits only where a queue is long, so that nothing is lost: what is measured is sustained. Needs two
//! CPUs.
//!
//! | variable | meaning |
//! |---|---|
//! | `DINLE_BENCH_ROUNDS` | rounds (5) |
//! | `DINLE_BENCH_FRAMES` | frames in each measurement (500000) |
//! | `DINLE_BENCH_CASE` | only cases with this in their name |

mod client;
mod frames;
#[path = "../support.rs"]
mod support;

use std::{
    env, fs,
    net::SocketAddr,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, ensure};
use arc_swap::ArcSwap;
use dinle::{
    admission::Admission,
    api::{Api, Facts, Streams},
    control::{Node, Settle},
    filter::{Grant, Limits, Request},
    hub::{self, Hub, Listener, Publisher, Subscription},
    pipeline::{Router, Stats},
    workload::Index,
};
use dinle_ebpf::Kind;
use dinle_proto::{server::observer_server::ObserverServer, v1};
use tokio::{net::TcpListener, runtime::Runtime};
use tonic::transport::server::TcpIncoming;

use support::{knob, pin, quantile};

/// The reader's CPU, and the gRPC server's.
const AGENT_CPU: usize = 0;
/// The subscribers' CPU.
const CLIENT_CPU: usize = 1;

/// Frames between two looks at the queues.
const PASS: usize = 1024;

/// Events in a queue beyond which the reader waits. With another pass they are below [`QUEUE_BYTES`].
const QUEUED_MAX: u64 = 16_384;

/// Room for each subscriber. All of them together stay below the agent's own limit.
const QUEUE_BYTES: u64 = 8 << 20;

/// How long the reader waits for a queue to become shorter.
const WAIT: Duration = Duration::from_micros(50);

/// Within so long all subscribers are there, or something is wrong.
const SUBSCRIBED: Duration = Duration::from_secs(30);

/// What subscribers ask for.
#[derive(Clone, Copy)]
enum Selectors {
    /// All of them everything.
    Same,
    /// Each of them one pod.
    Different,
}

/// How subscribers get their events.
#[derive(Clone, Copy)]
enum Road {
    InProcess,
    Grpc,
}

#[derive(Clone, Copy)]
struct Case {
    road: Road,
    kind: Kind,
    subscribers: u64,
    selectors: Selectors,
    by_reference: bool,
    /// Frames a second, where there is one.
    target: Option<f64>,
}

/// What one subscriber got.
#[derive(Clone, Copy, Default)]
pub(crate) struct Received {
    events: u64,
    bytes: u64,
}

/// One measurement.
struct Sample {
    seconds: f64,
    /// Of the reader's thread.
    reader_cpu: f64,
    /// Of the gRPC server's thread.
    server_cpu: f64,
    /// Of the subscribers' thread.
    client_cpu: f64,
    received: Received,
}

fn main() -> anyhow::Result<()> {
    let rounds: usize = knob("DINLE_BENCH_ROUNDS", 5);
    let count: usize = knob("DINLE_BENCH_FRAMES", 500_000);
    let only = env::var("DINLE_BENCH_CASE").unwrap_or_default();
    let cases: Vec<Case> = cases()
        .into_iter()
        .filter(|case| case.name().contains(&only))
        .collect();
    println!("# throughput: {rounds} rounds of {count} frames, medians\n");
    println!("{}\n", support::machine());
    for kind in [Kind::Exec, Kind::Exit] {
        println!(
            "* {kind:?} frame: {} bytes",
            frames::frames(kind).first().map_or(0, Vec::len)
        );
    }
    let mut samples: Vec<Vec<Sample>> = cases.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (case, samples) in cases.iter().zip(&mut samples) {
            let sample = match case.road {
                Road::InProcess => in_process(case, count),
                Road::Grpc => grpc(case, count),
            };
            samples.push(sample.with_context(|| case.name())?);
        }
    }
    println!(
        "\n| case | M frames/s | of target | M events/s | M frames per CPU second of the reader | bytes/event | \
         CPU: reader | server | subscribers |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for (case, samples) in cases.iter().zip(&samples) {
        print_row(case, samples, count);
    }
    Ok(())
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (road, one, eight) in [
        (Road::InProcess, Some(2e6), Some(1e6)),
        (Road::Grpc, Some(1e6), None),
    ] {
        for kind in [Kind::Exec, Kind::Exit] {
            for (subscribers, selectors, by_reference, target) in [
                (1, Selectors::Same, false, one),
                (1, Selectors::Same, true, one),
                (frames::PODS, Selectors::Same, false, eight),
                (frames::PODS, Selectors::Same, true, eight),
                (frames::PODS, Selectors::Different, false, None),
            ] {
                cases.push(Case {
                    road,
                    kind,
                    subscribers,
                    selectors,
                    by_reference,
                    target,
                });
            }
        }
    }
    cases
}

impl Case {
    fn name(&self) -> String {
        let road = match self.road {
            Road::InProcess => "in process",
            Road::Grpc => "gRPC",
        };
        let to = match (self.subscribers, self.selectors) {
            (1, _) => "1 subscriber".to_owned(),
            (many, Selectors::Same) => format!("{many} alike"),
            (many, Selectors::Different) => format!("{many} of one pod each"),
        };
        let identity = if self.by_reference {
            "by reference"
        } else {
            "inline"
        };
        format!("{road}, {:?}, {to}, {identity}", self.kind).to_lowercase()
    }

    fn requests(&self) -> Vec<v1::SubscribeRequest> {
        let selector = |pod| match self.selectors {
            Selectors::Same => None,
            Selectors::Different => Some(v1::Selector {
                pods: vec![frames::pod_name(pod)],
                ..Default::default()
            }),
        };
        let identity_mode = if self.by_reference {
            v1::IdentityMode::ByReference
        } else {
            v1::IdentityMode::Inline
        };
        (0..self.subscribers)
            .map(|subscriber| v1::SubscribeRequest {
                kinds: vec![dinle::event::proto_kind(self.kind).into()],
                selector: selector(subscriber),
                identity_mode: identity_mode.into(),
                queue_bytes: QUEUE_BYTES,
                ..Default::default()
            })
            .collect()
    }

    /// Events of so many frames.
    fn events(&self, frames: usize) -> u64 {
        match self.selectors {
            Selectors::Same => frames as u64 * self.subscribers,
            Selectors::Different => frames as u64,
        }
    }
}

/// Subscribers in this process, on a CPU of their own.
fn in_process(case: &Case, count: usize) -> anyhow::Result<Sample> {
    let (hub, publisher) = Hub::new(hub::Limits::default(), || ());
    let client = thread::spawn({
        let (hub, requests) = (hub.clone(), case.requests());
        move || -> anyhow::Result<(Vec<Received>, f64)> {
            pin(CLIENT_CPU)?;
            let runtime = runtime()?;
            runtime.block_on(async {
                let mut drains = Vec::new();
                for asked in requests {
                    let request = Request::parse(&asked, &Limits::default())?;
                    drains.push(tokio::spawn(drain(hub.subscribe(
                        asked,
                        request,
                        v1::Caller::default(),
                        Grant::all(),
                    )?)));
                }
                let mut received = Vec::new();
                for drain in drains {
                    received.push(drain.await??);
                }
                Ok((received, cpu_seconds()?))
            })
        }
    });
    let fed = feed(case, count, frames::index(), &hub, publisher);
    let (fed, (received, client_cpu)) = both(fed, client)?;
    sample(case, count, fed, 0.0, client_cpu, &received)
}

async fn drain(mut subscription: Subscription) -> anyhow::Result<Received> {
    let mut received = Received::default();
    while let Some(message) = subscription.next().await {
        received.add(message.0)?;
    }
    Ok(received)
}

/// Subscribers that are gRPC clients, each with its own connection to the agent's service.
fn grpc(case: &Case, count: usize) -> anyhow::Result<Sample> {
    let (hub, publisher) = Hub::new(hub::Limits::default(), || ());
    let index = frames::index();
    let (started, start) = mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let server = thread::spawn({
        let (hub, index) = (hub.clone(), index.clone());
        move || -> anyhow::Result<f64> {
            pin(AGENT_CPU)?;
            runtime()?.block_on(serve(hub, index, started, stopped))?;
            cpu_seconds()
        }
    });
    let address = format!("http://{}", start.recv().context("the server")?);
    let client = thread::spawn({
        let requests = case.requests();
        move || -> anyhow::Result<(Vec<Received>, f64)> {
            pin(CLIENT_CPU)?;
            let runtime = runtime()?;
            runtime.block_on(async {
                let clients: Vec<_> = requests
                    .into_iter()
                    .map(|request| tokio::spawn(client::count(address.clone(), request)))
                    .collect();
                let mut received = Vec::new();
                for client in clients {
                    received.push(client.await??);
                }
                Ok((received, cpu_seconds()?))
            })
        }
    });
    let fed = feed(case, count, index, &hub, publisher);
    let (fed, (received, client_cpu)) = both(fed, client)?;
    // Nobody waits for it any more if it ended by itself, which is told below.
    _ = stop.send(());
    let server_cpu = join(server)?;
    sample(case, count, fed, server_cpu, client_cpu, &received)
}

/// The agent's service around a hub, without a kernel.
async fn serve(
    hub: Hub,
    index: Index,
    started: mpsc::Sender<SocketAddr>,
    stopped: tokio::sync::oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    let (settle, mut settles) = Settle::new();
    tokio::spawn(async move {
        while let Some(done) = settles.recv().await {
            // Whoever asked may have left.
            _ = done.send(());
        }
    });
    let capability = |kind: v1::Kind| v1::Capability {
        kind: kind.into(),
        available: true,
        ..Default::default()
    };
    let api = Api {
        facts: Facts {
            node: "worker-3.example".into(),
            boot_id: String::new(),
            kernel_release: String::new(),
            started: SystemTime::now(),
            ring_bytes: 0,
        },
        hub,
        admission: Admission {
            auth: None,
            grace: Duration::ZERO,
            index: index.clone(),
        },
        streams: Streams::default(),
        index,
        state: Arc::new(ArcSwap::from_pointee(Node {
            capabilities: [v1::Kind::Exec, v1::Kind::Exit].map(capability).into(),
            ..Node::default()
        })),
        settle,
        limits: Limits::default(),
        exporters: None,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    started.send(listener.local_addr()?)?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tonic::transport::Server::builder()
        .add_service(ObserverServer::new(api))
        .serve_with_incoming_shutdown(incoming, async {
            // A sender that is gone means the same.
            _ = stopped.await;
        })
        .await?;
    Ok(())
}

/// What the reader's side saw.
struct Fed {
    begin: Instant,
    cpu: f64,
    listeners: Vec<Arc<Listener>>,
}

/// The reader, in a thread of its own: frames in, and at last the end of all streams.
fn feed(
    case: &Case,
    count: usize,
    index: Index,
    hub: &Hub,
    publisher: Publisher,
) -> anyhow::Result<Fed> {
    let frames = frames::frames(case.kind);
    let (hub, subscribers) = (hub.clone(), case.subscribers as usize);
    join(thread::spawn(move || {
        pin(AGENT_CPU)?;
        let mut router = Router::new(index, publisher, Arc::new(Stats::default()), Arc::default());
        let begin = Instant::now();
        let listeners = loop {
            let listeners: Vec<Arc<Listener>> = hub
                .board()
                .listeners()
                .map(|(_, listener)| listener.clone())
                .collect();
            if listeners.len() == subscribers {
                break listeners;
            }
            ensure!(
                begin.elapsed() < SUBSCRIBED,
                "{} of {subscribers} subscribers came",
                listeners.len()
            );
            thread::sleep(WAIT);
        };
        let (begin, cpu) = (Instant::now(), cpu_seconds()?);
        let mut frames = frames.iter().cycle().take(count);
        loop {
            router.refresh();
            let mut fed = 0;
            for frame in frames.by_ref().take(PASS) {
                router.frame(frame, || ());
                fed += 1;
            }
            router.publisher.flush();
            while listeners
                .iter()
                .any(|listener| queued(listener) > QUEUED_MAX)
            {
                thread::sleep(WAIT);
            }
            if fed < PASS {
                break;
            }
        }
        for listener in &listeners {
            router
                .publisher
                .finish(listener.id, v1::EndReason::MaxDuration);
        }
        Ok(Fed {
            begin,
            cpu: cpu_seconds()? - cpu,
            listeners,
        })
    }))
}

fn queued(listener: &Listener) -> u64 {
    listener.books().iter().map(|books| books.queued).sum()
}

/// Checks that everything arrived.
fn sample(
    case: &Case,
    count: usize,
    fed: Fed,
    server_cpu: f64,
    client_cpu: f64,
    received: &[Received],
) -> anyhow::Result<Sample> {
    let seconds = fed.begin.elapsed().as_secs_f64();
    let sum = received
        .iter()
        .fold(Received::default(), |sum, one| Received {
            events: sum.events + one.events,
            bytes: sum.bytes + one.bytes,
        });
    let mut delivered = 0;
    for books in fed.listeners.iter().flat_map(|listener| listener.books()) {
        ensure!(
            books.lost.is_empty() && books.matched == books.delivered,
            "events were lost: {books:?}"
        );
        delivered += books.delivered;
    }
    let expected = case.events(count);
    ensure!(
        (sum.events, delivered) == (expected, expected),
        "{} events arrived and {delivered} were delivered, expected {expected}",
        sum.events
    );
    Ok(Sample {
        seconds,
        reader_cpu: fed.cpu,
        server_cpu,
        client_cpu,
        received: sum,
    })
}

fn print_row(case: &Case, samples: &[Sample], count: usize) {
    let median = |value: &dyn Fn(&Sample) -> f64| {
        let values: Vec<f64> = samples.iter().map(value).collect();
        quantile(&values, 0.5)
    };
    let frames = count as f64;
    let rate = median(&|sample| frames / sample.seconds);
    let of_target = case
        .target
        .map(|target| format!("{:.2} of {} M", rate / target, target / 1e6))
        .unwrap_or_default();
    println!(
        "| {} | {:.2} | {of_target} | {:.2} | {:.2} | {:.0} | {:.0} % | {:.0} % | {:.0} % |",
        case.name(),
        rate / 1e6,
        median(&|sample| sample.received.events as f64 / sample.seconds) / 1e6,
        median(&|sample| frames / sample.reader_cpu) / 1e6,
        median(&|sample| sample.received.bytes as f64 / sample.received.events as f64),
        median(&|sample| sample.reader_cpu / sample.seconds) * 100.0,
        median(&|sample| sample.server_cpu / sample.seconds) * 100.0,
        median(&|sample| sample.client_cpu / sample.seconds) * 100.0,
    );
}

fn runtime() -> anyhow::Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

/// Time on a CPU of the calling thread.
fn cpu_seconds() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let ns: f64 = text.split(' ').next().unwrap_or_default().parse()?;
    Ok(ns / 1e9)
}

/// What both sides saw.
fn both<T>(
    fed: anyhow::Result<Fed>,
    client: thread::JoinHandle<anyhow::Result<T>>,
) -> anyhow::Result<(Fed, T)> {
    match fed {
        Ok(fed) => Ok((fed, join(client)?)),
        // Why it ended says more than that nobody came.
        Err(error) if client.is_finished() => Err(join(client).err().unwrap_or(error)),
        Err(error) => Err(error),
    }
}

fn join<T>(thread: thread::JoinHandle<anyhow::Result<T>>) -> anyhow::Result<T> {
    // A panic was printed when it happened.
    thread
        .join()
        .unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")))
}

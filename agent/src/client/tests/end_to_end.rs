//! Commands against a small agent that says what a script tells it to.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use dinle_proto::{
    Encoded,
    server::observer_server::{Observer, ObserverServer},
    v1::{self, event::Detail, subscribe_response::Message},
};
use tokio_stream::{Stream, StreamExt as _, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status};

use super::{
    super::{
        columns::EventTable,
        connect::{Place, client_on},
        lasting::Lasting,
        pages::tests::{a_plan, both_capabilities},
        stream::{Ending, Format, View, follow},
    },
    *,
};

mod answers;
mod breaks;
mod prints;

/// An agent that answers every Subscribe with the same script, and then ends the stream.
#[derive(Clone, Default)]
struct Fake {
    script: Vec<Result<Message, Status>>,
    /// What comes when a stream is resumed.
    rest: Vec<Result<Message, Status>>,
    /// So often it is not there any more.
    gone: usize,
    asked: Arc<Mutex<Vec<v1::SubscribeRequest>>>,
    left: Arc<Mutex<Vec<v1::LeaveRequest>>>,
}

#[tonic::async_trait]
impl Observer for Fake {
    type SubscribeStream = tokio_stream::Iter<std::vec::IntoIter<Result<Encoded, Status>>>;

    async fn subscribe(
        &self,
        request: Request<v1::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let request = request.into_inner();
        if request.queue_bytes == 1 {
            return Err(Status::invalid_argument("queue_bytes: is 1"));
        }
        let resumed = request.resume.is_some();
        let mut asked = self.asked.lock().expect("not poisoned");
        asked.push(request);
        let resumes = asked.iter().filter(|asked| asked.resume.is_some());
        if resumed && resumes.count() <= self.gone {
            return Err(Status::not_found("stream 7 is not here any more"));
        }
        let script = if resumed { &self.rest } else { &self.script };
        let script: Vec<_> = script
            .iter()
            .cloned()
            .map(|message| message.map(|message| Encoded::new(&response(message))))
            .collect();
        Ok(Response::new(tokio_stream::iter(script)))
    }

    async fn leave(
        &self,
        request: Request<v1::LeaveRequest>,
    ) -> Result<Response<v1::LeaveResponse>, Status> {
        let mut left = self.left.lock().expect("not poisoned");
        left.push(request.into_inner());
        Ok(Response::new(v1::LeaveResponse {}))
    }

    async fn explain(
        &self,
        _: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        Ok(Response::new(v1::ExplainResponse {
            plan: Some(a_plan()),
        }))
    }

    async fn list_workloads(
        &self,
        request: Request<v1::ListWorkloadsRequest>,
    ) -> Result<Response<v1::ListWorkloadsResponse>, Status> {
        let wanted = request.into_inner().selector.unwrap_or_default().namespaces;
        let workloads = a_plan()
            .workloads
            .into_iter()
            .filter(|workload| wanted.is_empty() || wanted.contains(&workload.namespace))
            .collect();
        Ok(Response::new(v1::ListWorkloadsResponse { workloads }))
    }

    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        Ok(Response::new(v1::GetStatusResponse {
            node: "node-1".to_owned(),
            ..Default::default()
        }))
    }

    async fn list_subscriptions(
        &self,
        _: Request<v1::ListSubscriptionsRequest>,
    ) -> Result<Response<v1::ListSubscriptionsResponse>, Status> {
        Ok(Response::new(v1::ListSubscriptionsResponse {
            subscriptions: vec![v1::Subscription {
                stream_id: 7,
                ..Default::default()
            }],
            own_only: true,
            node: "node-1".to_owned(),
        }))
    }

    async fn list_capabilities(
        &self,
        _: Request<v1::ListCapabilitiesRequest>,
    ) -> Result<Response<v1::ListCapabilitiesResponse>, Status> {
        Ok(Response::new(v1::ListCapabilitiesResponse {
            capabilities: both_capabilities(),
        }))
    }
}

async fn serve(fake: Fake) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let address = listener.local_addr().expect("an address");
    let server = tonic::transport::Server::builder()
        .add_service(ObserverServer::new(fake))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    address
}

/// What a command printed, and how it ended.
struct Printed {
    out: String,
    err: String,
    result: anyhow::Result<ExitCode>,
}

/// Paper, which has no colours.
fn plain<'a>(out: &'a mut Vec<u8>, err: &'a mut Vec<u8>) -> Screen<'a> {
    Screen {
        out,
        err,
        look: Look::default(),
        err_colored: false,
    }
}

async fn run(fake: &Fake, line: &str) -> Printed {
    let address = serve(fake.clone()).await.to_string();
    let mut arguments: Vec<_> = line.split(' ').collect();
    arguments.extend(["--address", &address]);
    let command = parse(&arguments).expect(line);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let result = run_on(command, &mut plain(&mut out, &mut err)).await;
    Printed {
        out: String::from_utf8(out).expect("UTF-8"),
        err: String::from_utf8(err).expect("UTF-8"),
        result: result.map_err(|error| {
            // Ports differ from run to run.
            anyhow::anyhow!(error.to_string().replace(&address, "AGENT"))
        }),
    }
}

fn squeezed(text: &str) -> Vec<String> {
    text.lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

fn response(message: Message) -> v1::SubscribeResponse {
    v1::SubscribeResponse {
        message: Some(message),
    }
}

fn workload(container: &str) -> v1::Workload {
    v1::Workload {
        cgroup_id: 71,
        state: v1::IdentityState::Container.into(),
        namespace: "shop".to_owned(),
        pod: "db-0".to_owned(),
        container: container.to_owned(),
        ..Default::default()
    }
}

fn update(container: &str) -> Message {
    Message::Workload(v1::WorkloadUpdate {
        workload: Some(workload(container)),
    })
}

fn exec(cgroup_id: u64, pid: u32) -> v1::Event {
    v1::Event {
        time: Some(prost_types::Timestamp {
            seconds: 0,
            nanos: 0,
        }),
        kind: v1::Kind::Exec.into(),
        cgroup_id,
        process: Some(v1::Process {
            pid,
            comm: "ls".to_owned(),
            ..Default::default()
        }),
        detail: Some(Detail::Exec(v1::Exec {
            filename: "/bin/ls".to_owned(),
            args: vec!["ls".to_owned()],
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn batch(first_sequence: u64, events: Vec<v1::Event>) -> Message {
    Message::Batch(v1::EventBatch {
        first_sequence,
        events,
    })
}

fn loss(count: u64) -> Message {
    Message::Loss(v1::Loss {
        kind: v1::Kind::Exec.into(),
        stage: v1::LossStage::ClientQueue.into(),
        count,
        first_sequence: 3,
        last_sequence: 2 + count,
    })
}

fn heartbeat(delivered: u64, lost: u64, end: v1::EndReason) -> Message {
    let lost_stage = v1::StageLoss {
        stage: v1::LossStage::ClientQueue.into(),
        count: lost,
    };
    Message::Heartbeat(v1::Heartbeat {
        books: vec![v1::KindBooks {
            kind: v1::Kind::Exec.into(),
            matched: delivered + lost,
            delivered,
            queued: 0,
            lost: vec![lost_stage],
            ..Default::default()
        }],
        end: end.into(),
        ..Default::default()
    })
}

/// Three execs, of which the pods are told before and during the stream, and a loss of four.
fn a_stream() -> Vec<Result<Message, Status>> {
    [
        Message::Plan(a_plan()),
        batch(1, vec![exec(70, 1)]),
        update(""),
        batch(2, vec![exec(71, 2)]),
        heartbeat(2, 0, v1::EndReason::Unspecified),
        loss(4),
        update("postgres"),
        batch(7, vec![exec(71, 3), exec(99, 4)]),
        heartbeat(4, 4, v1::EndReason::MaxEvents),
    ]
    .map(Ok)
    .to_vec()
}

fn scripted(script: Vec<Result<Message, Status>>) -> Fake {
    Fake {
        script,
        ..Default::default()
    }
}

//! The gRPC service: what may be asked, and the only place that makes a `tonic::Status`.

mod admit;
mod audit;
mod resume;
mod size;

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use dinle_proto::{
    Encoded,
    server::observer_server::Observer,
    v1::{self, subscribe_response::Message},
};
use futures::{Stream, stream};
use tokio::time::timeout;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    admission::{Admission, Admitted, Verdict},
    auth,
    control::{Node, Settle},
    export::Exporters,
    filter::{self, Grant, Invalid, Limits, Selector},
    hub::{Hub, Stage, Subscription},
    workload::Index,
};

use admit::{admit, status};
use audit::Audited;
use resume::{Connection, Token};

pub use resume::Streams;
pub use size::Measured;

/// A Plan names at most so many workloads: it should stay far below the 4 MiB that clients accept.
const PLAN_WORKLOADS: usize = 500;

/// How long a stream waits until the kernel reports what it asked for. That takes milliseconds, unless the reader stands still.
const SETTLE: Duration = Duration::from_secs(30);

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Kubernetes node name.
    pub node: String,
    /// The kernel's boot id.
    pub boot_id: String,
    /// `uname -r`.
    pub kernel_release: String,
    /// When the agent started.
    pub started: SystemTime,
    /// Size of the ring in bytes.
    pub ring_bytes: u32,
}

/// The service.
pub struct Api {
    /// What does not change.
    pub facts: Facts,
    /// Who listens.
    pub hub: Hub,
    /// Who runs.
    pub index: Index,
    /// The kernel half.
    pub state: Arc<ArcSwap<Node>>,
    /// Brings the kernel half in line.
    pub settle: Settle,
    /// Bounds of requests.
    pub limits: Limits,
    /// Who is let in.
    pub admission: Admission,
    /// Those that are open; none at first.
    pub streams: Streams,
    /// What the agent itself brings elsewhere.
    pub exporters: Option<Arc<Exporters>>,
}

impl Api {
    fn plan(&self, request: &filter::Request, verdict: &Verdict, stream_id: u64) -> v1::Plan {
        let Verdict {
            grant,
            notes: left_out,
        } = verdict;
        let Self {
            facts,
            hub,
            index,
            state,
            ..
        } = self;
        let node = state.load();
        let asked = |capability: &&v1::Capability| request.kinds.contains(capability.kind());
        let capabilities: Vec<v1::Capability> =
            node.capabilities.iter().filter(asked).cloned().collect();
        let live = index.live();
        let mut matching = live.iter().filter(|live| {
            let told = grant.of(&live.workload).watch.intersection(request.kinds);
            request.selector.matches(&live.workload) && !told.is_empty()
        });
        let workloads: Vec<v1::Workload> = matching
            .by_ref()
            .take(PLAN_WORKLOADS)
            .map(|live| (*live.workload).clone())
            .collect();
        let total = workloads.len() + matching.count();
        let source = index.status();
        let mut notes = Vec::new();
        if !source.synced {
            let untold = source.error.is_empty() || grant.everywhere.watch.is_empty();
            notes.push(format!(
                "pods are not known yet ({}{}): events of pods that come first may carry only their ids",
                source.name,
                if untold { String::new() } else { format!(": {}", source.error) },
            ));
        }
        if total == 0 {
            notes.push("nothing matches the selector now; what comes later is followed".into());
        }
        if total > PLAN_WORKLOADS {
            notes.push(format!(
                "only {PLAN_WORKLOADS} of {total} workloads are named here; ListWorkloads has all"
            ));
        }
        // Also of what was not asked for, but is heard for a filter's sake.
        let heard = |capability: &&v1::Capability| request.heard.contains(capability.kind());
        for v1::Capability { kind, reason, .. } in node
            .capabilities
            .iter()
            .filter(heard)
            .filter(|capability| !capability.available)
        {
            let name = v1::Kind::try_from(*kind).unwrap_or_default().as_str_name();
            notes.push(format!("{name}: unavailable: {reason}"));
        }
        notes.extend(left_out.iter().cloned());
        notes.extend(hub.notes());
        if request.selector.names_containers() {
            notes.push(
                "events of a container whose name is not known yet do not match: its first ones come before the API server tells its name"
                    .into(),
            );
        }
        v1::Plan {
            node: facts.node.clone(),
            boot_id: facts.boot_id.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            stream_id,
            workloads,
            workloads_total: total as u32,
            capabilities,
            notes,
            queue_bytes: request.queue_bytes,
            heartbeat_interval: prost_types::Duration::try_from(request.heartbeat).ok(),
            max_events_per_second: request.max_events_per_second.unwrap_or(0),
            resume_token: Vec::new(),
            resume_window: request
                .resume_window
                .and_then(|window| prost_types::Duration::try_from(window).ok()),
            resumed: false,
        }
    }

    /// INVALID_ARGUMENT with the field as google.rpc.BadRequest has it; RESOURCE_EXHAUSTED with the same if an agent that allows more would do it.
    fn invalid(&self, error: &Invalid, within: &str) -> Status {
        let Invalid {
            field,
            problem,
            beyond,
        } = error;
        let field = format!("{within}{field}");
        let details = ErrorDetails::with_bad_request_violation(&field, problem);
        let code = match beyond {
            Some(bound) => {
                self.hub.refusals().beyond(*bound);
                Code::ResourceExhausted
            }
            None => Code::InvalidArgument,
        };
        Status::with_error_details(code, format!("{field}: {problem}"), details)
    }

    /// A stream with its plan before everything else, once the kernel reports what was asked for.
    async fn open(
        &self,
        asked: &v1::SubscribeRequest,
        admitted: &Admitted,
    ) -> Result<(Subscription, Option<(Token, Duration)>), Status> {
        let request = filter::Request::parse(asked, &self.limits)
            .map_err(|error| self.invalid(&error, ""))?;
        let verdict = self.admission.verdict(admitted, &request).await;
        let verdict = verdict.map_err(status)?;
        let (caller, grant) = (admitted.caller.clone(), verdict.grant.clone());
        let mut subscription = self
            .hub
            .subscribe(asked.clone(), request.clone(), caller, grant)
            .map_err(|full| Status::resource_exhausted(full.to_string()))?;
        // Whoever waits holds a place.
        let settled = timeout(SETTLE, self.settle.settle()).await;
        if !settled.map_err(|_| unsettled(&self.hub.notes()))? {
            return Err(Status::unavailable("the agent is shutting down"));
        }
        let mut plan = self.plan(&request, &verdict, subscription.id());
        if !plan
            .capabilities
            .iter()
            .any(|capability| capability.available)
        {
            let reasons: Vec<&str> = plan
                .capabilities
                .iter()
                .map(|capability| &*capability.reason)
                .collect();
            return Err(Status::failed_precondition(format!(
                "none of the kinds asked for is available here: {}",
                reasons.join("; ")
            )));
        }
        let kept = match request.resume_window {
            Some(window) => Some((resume::token()?, window)),
            None => None,
        };
        if let Some((token, _)) = &kept {
            plan.resume_token = token.to_vec();
        }
        subscription.begin_with(Message::Plan(plan));
        Ok((subscription, kept))
    }

    /// Goes on with a stream whose connection broke.
    async fn resume(
        &self,
        asked: &v1::SubscribeRequest,
        resume: &v1::Resume,
        admitted: &Admitted,
    ) -> Result<Connection, Status> {
        let alone = v1::SubscribeRequest {
            resume: asked.resume.clone(),
            ..v1::SubscribeRequest::default()
        };
        if *asked != alone {
            return Err(Status::invalid_argument(
                "resume: goes on with a stream as that was asked for: leave everything else out",
            ));
        }
        let plan = |asked: &v1::SubscribeRequest, grant: &Grant, id: u64| {
            // It was well when the stream began.
            let request = filter::Request::parse(asked, &self.limits)
                .map_err(|error| self.invalid(&error, ""))?;
            let verdict = Verdict {
                grant: grant.clone(),
                notes: auth::notes(&admitted.caller.user, grant, request.kinds),
            };
            Ok(v1::Plan {
                resume_token: resume.token.clone(),
                resumed: true,
                ..self.plan(&request, &verdict, id)
            })
        };
        self.streams.resume(resume, admitted, plan).await
    }
}

impl Api {
    /// Who asks, and what they may be told of anything here.
    async fn sight<T>(&self, request: &Request<T>) -> Result<(v1::Caller, Grant), Status> {
        let (caller, admitted) = admit(&self.admission, request).await;
        let sight = self.admission.sight(&admitted.map_err(status)?).await;
        Ok((caller, sight.map_err(status)?))
    }

    /// Who asks, the streams that they may know of, and whether those are only their own.
    async fn subscriptions<T>(
        &self,
        request: &Request<T>,
    ) -> Result<(v1::Caller, Vec<v1::Subscription>, bool), Status> {
        let (caller, admitted) = admit(&self.admission, request).await;
        let may = self.admission.may_list(&admitted.map_err(status)?).await;
        let all = may.map_err(status)?;
        let costs = &self.state.load().costs.streams;
        let board = self.hub.board();
        let told = board
            .listeners()
            .map(|(_, listener)| listener)
            .filter(|listener| all || listener.caller.user == caller.user);
        let mut told: Vec<v1::Subscription> = told
            .map(|listener| v1::Subscription {
                stream_id: listener.id,
                started: Some(listener.started.into()),
                request: Some(listener.asked.clone()),
                books: listener.books(),
                caller: Some(listener.caller.clone()),
                cpu_percent: costs.get(&listener.id).copied().unwrap_or(0.0),
            })
            .collect();
        told.sort_by_key(|subscription| subscription.stream_id);
        Ok((caller, told, !all))
    }
}

#[tonic::async_trait]
impl Observer for Api {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<Encoded, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<v1::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let (caller, admitted) = admit(&self.admission, &request).await;
        let asked = request.into_inner();
        let opened = async {
            let admitted = admitted.map_err(status)?;
            if let Some(resume) = &asked.resume {
                return self.resume(&asked, resume, &admitted).await;
            }
            let (subscription, kept) = self.open(&asked, &admitted).await?;
            let guard = self
                .admission
                .guard(admitted, &self.hub, subscription.listener());
            let audited = Audited::begin(subscription, guard);
            Ok(self.streams.begin(audited, kept))
        };
        let connection = opened
            .await
            .inspect_err(|status| audit::refused(&caller, &asked, status))?;
        let messages = stream::unfold(connection, |mut connection| async move {
            let message = connection.next().await?;
            Some((message, connection))
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn leave(
        &self,
        request: Request<v1::LeaveRequest>,
    ) -> Result<Response<v1::LeaveResponse>, Status> {
        let (caller, admitted) = admit(&self.admission, &request).await;
        admitted.map_err(status)?;
        self.streams.leave(request.get_ref(), &caller).await;
        Ok(Response::new(v1::LeaveResponse {}))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        let (_, admitted) = admit(&self.admission, &request).await;
        let admitted = admitted.map_err(status)?;
        let asked = request.into_inner().request.unwrap_or_default();
        let request = filter::Request::parse(&asked, &self.limits)
            .map_err(|error| self.invalid(&error, "request."))?;
        let verdict = self.admission.verdict(&admitted, &request).await;
        Ok(Response::new(v1::ExplainResponse {
            plan: Some(self.plan(&request, &verdict.map_err(status)?, 0)),
        }))
    }

    async fn list_workloads(
        &self,
        request: Request<v1::ListWorkloadsRequest>,
    ) -> Result<Response<v1::ListWorkloadsResponse>, Status> {
        let grant = self.sight(&request).await?.1;
        let asked = request.into_inner().selector;
        let selector = Selector::parse(asked.as_ref(), &self.limits)
            .map_err(|error| self.invalid(&error, ""))?;
        let live = self.index.live();
        let matching = live.iter().filter(|live| {
            selector.matches(&live.workload) && !grant.of(&live.workload).watch.is_empty()
        });
        let mut workloads: Vec<v1::Workload> =
            matching.map(|live| (*live.workload).clone()).collect();
        workloads.sort_by(|a, b| a.cgroup_path.cmp(&b.cgroup_path));
        Ok(Response::new(v1::ListWorkloadsResponse { workloads }))
    }

    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let everywhere = self.sight(&request).await?.1.everywhere.watch;
        let (_, subscriptions, own_only) = self.subscriptions(&request).await?;
        let Self {
            facts,
            hub,
            index,
            state,
            exporters,
            ..
        } = self;
        let told = v1::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            node: facts.node.clone(),
            boot_id: facts.boot_id.clone(),
            kernel_release: facts.kernel_release.clone(),
            started: Some(facts.started.into()),
            subscriptions,
            // They are subscribers whom nobody calls their own.
            exporters: exporters
                .iter()
                .filter(|_| !own_only)
                .flat_map(|all| all.told())
                .collect(),
            ring_bytes: facts.ring_bytes.into(),
            ..v1::GetStatusResponse::default()
        };
        // The rest is about the whole node, as processes outside pods are.
        if everywhere.is_empty() {
            return Ok(Response::new(told));
        }
        let node = state.load();
        let kinds = node.capabilities.iter().map(|capability| capability.kind());
        let losses = kinds
            .filter(|kind| everywhere.contains(*kind))
            .flat_map(|kind| Stage::ALL.map(|stage| (kind, stage)))
            .filter_map(|(kind, stage)| {
                let count = hub.totals().losses(kind, stage);
                (count > 0).then(|| v1::NodeLoss {
                    kind: kind.into(),
                    stage: stage.proto().into(),
                    count,
                })
            });
        Ok(Response::new(v1::GetStatusResponse {
            programs: node.programs.clone(),
            losses: losses.collect(),
            pod_source: Some(index.status()),
            cgroups: index.cgroups() as u32,
            cgroups_in_scope: node.watched as u32,
            budget: Some(node.costs.budget.clone()),
            ..told
        }))
    }

    async fn list_subscriptions(
        &self,
        request: Request<v1::ListSubscriptionsRequest>,
    ) -> Result<Response<v1::ListSubscriptionsResponse>, Status> {
        let (_, subscriptions, own_only) = self.subscriptions(&request).await?;
        Ok(Response::new(v1::ListSubscriptionsResponse {
            subscriptions,
            own_only,
            node: self.facts.node.clone(),
        }))
    }

    async fn list_capabilities(
        &self,
        request: Request<v1::ListCapabilitiesRequest>,
    ) -> Result<Response<v1::ListCapabilitiesResponse>, Status> {
        admit(&self.admission, &request).await.1.map_err(status)?;
        let capabilities = self.state.load().capabilities.clone();
        Ok(Response::new(v1::ListCapabilitiesResponse { capabilities }))
    }
}

/// UNAVAILABLE, with what the agent knows of the reason.
fn unsettled(notes: &[String]) -> Status {
    let reason = notes
        .first()
        .map_or("the agent's log may say why", String::as_str);
    Status::unavailable(format!(
        "nothing was attached for this stream in {} s: {reason}; try again",
        SETTLE.as_secs()
    ))
}

#[cfg(test)]
mod tests;

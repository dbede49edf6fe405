//! The service, with an API server that says what a test wants, and a kernel half that has all it is asked for.

use futures::StreamExt as _;
use prost::Message as _;
use tokio::time::sleep;

use super::*;
use crate::{
    admission::Guard,
    auth::fake::Cluster,
    export,
    hub::{Listener, Publisher, Withdrawn},
    listen::{Peer, PeerAddress, Subject},
    workload::fake::runs,
};

const EXEC: v1::Kind = v1::Kind::Exec;
const RESET: v1::Kind = v1::Kind::TcpReset;
const GRACE: Duration = Duration::from_secs(30);
/// Of what was taken away nothing is told after so long.
const WITHDRAWN: Duration = Duration::from_secs(30);

struct Bed {
    api: Api,
    cluster: Arc<Cluster>,
    _publisher: Publisher,
}

/// Pods of the shop and the bank run here. The token of a user is their name.
fn bed() -> Bed {
    let cluster = Arc::new(Cluster::default());
    for user in ["jane", "joe"] {
        cluster.set_token(user, Some(user));
    }
    let index = Index::new("n1");
    for (number, namespace) in [(0, "shop"), (1, "bank")] {
        runs(&index, number, namespace);
    }
    let (hub, publisher) = Hub::new(crate::hub::Limits::default(), || ());
    let (settle, mut calls) = Settle::new();
    tokio::spawn(async move {
        while let Some(done) = calls.recv().await {
            _ = done.send(());
        }
    });
    let available = |kind: v1::Kind| v1::Capability {
        kind: kind.into(),
        available: true,
        ..Default::default()
    };
    let node = Node {
        capabilities: vec![available(EXEC), available(RESET)],
        programs: vec![v1::Program::default()],
        watched: 2,
        ..Node::default()
    };
    let api = Api {
        facts: Facts {
            node: "n1".into(),
            boot_id: "b1".into(),
            kernel_release: "6.12".into(),
            started: SystemTime::now(),
            ring_bytes: 4096,
        },
        hub,
        admission: Admission {
            auth: Some(cluster.auth()),
            grace: GRACE,
            index: index.clone(),
        },
        index,
        state: Arc::new(ArcSwap::from_pointee(node)),
        settle,
        limits: Limits::default(),
        streams: Streams::default(),
        exporters: None,
    };
    Bed {
        api,
        cluster,
        _publisher: publisher,
    }
}

fn with_token<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let header = format!("Bearer {token}").parse().expect("a header");
    request.metadata_mut().insert("authorization", header);
    request
}

fn asked(namespaces: &[&str], kinds: &[v1::Kind]) -> v1::SubscribeRequest {
    v1::SubscribeRequest {
        kinds: kinds.iter().map(|&kind| kind.into()).collect(),
        selector: Some(v1::Selector {
            namespaces: namespaces.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        }),
        resume_window: Some(prost_types::Duration {
            seconds: 60,
            nanos: 0,
        }),
        ..Default::default()
    }
}

impl Bed {
    /// A stream, with the plan that it begins with.
    async fn subscribe(
        &self,
        token: &str,
        asked: v1::SubscribeRequest,
    ) -> Result<(<Api as Observer>::SubscribeStream, v1::Plan), Status> {
        let request = with_token(token, asked);
        let mut stream = self.api.subscribe(request).await?.into_inner();
        let bytes = stream.next().await.expect("a message")?.0;
        match v1::SubscribeResponse::decode(bytes).map(|response| response.message) {
            Ok(Some(Message::Plan(plan))) => Ok((stream, plan)),
            other => panic!("{other:?}"),
        }
    }

    /// Goes on with it.
    async fn resume(
        &self,
        token: &str,
        plan: &v1::Plan,
    ) -> Result<(<Api as Observer>::SubscribeStream, v1::Plan), Status> {
        let resume = v1::Resume {
            stream_id: plan.stream_id,
            token: plan.resume_token.clone(),
            received: 1,
        };
        let asked = v1::SubscribeRequest {
            resume: Some(resume),
            ..Default::default()
        };
        self.subscribe(token, asked).await
    }

    async fn status(&self, token: &str) -> v1::GetStatusResponse {
        let request = with_token(token, v1::GetStatusRequest {});
        self.api
            .get_status(request)
            .await
            .expect("a status")
            .into_inner()
    }

    fn listener(&self) -> Arc<Listener> {
        let board = self.api.hub.board();
        let (_, listener) = board.listeners().next().expect("one listens");
        listener.clone()
    }

    /// A stream of which only the permissions are looked at.
    async fn watched(&self, namespaces: &[&str]) -> (Subscription, Guard) {
        let Self { api, .. } = self;
        let asked = asked(namespaces, &[EXEC]);
        let request = filter::Request::parse(&asked, &api.limits).expect("a good request");
        let admitted = admit(&api.admission, &with_token("jane", ())).await.1;
        let admitted = admitted.expect("somebody");
        let verdict = api.admission.verdict(&admitted, &request).await;
        let grant = verdict.expect("allowed").grant;
        let caller = admitted.caller.clone();
        let subscription = api.hub.subscribe(asked, request, caller, grant);
        let subscription = subscription.expect("room");
        let guard = api
            .admission
            .guard(admitted, &api.hub, subscription.listener());
        (subscription, guard)
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_about_the_whole_node_is_for_who_may_everywhere() {
    let bed = bed();
    bed.cluster.allow("jane", "shop", &["process", "tcp"]);
    bed.cluster.allow("joe", "", &["tcp"]);
    for kind in [EXEC, RESET] {
        bed.api.hub.lose_everywhere(kind, Stage::KernelRing, 3);
    }
    let less = bed.status("jane").await;
    assert_eq!((&*less.node, &*less.boot_id), ("n1", "b1"));
    assert_eq!((less.ring_bytes, less.subscriptions.len()), (4096, 0));
    let whole = v1::GetStatusResponse {
        programs: Vec::new(),
        losses: Vec::new(),
        pod_source: None,
        cgroups: 0,
        cgroups_in_scope: 0,
        budget: None,
        ..less.clone()
    };
    assert_eq!(less, whole);
    let more = bed.status("joe").await;
    assert_eq!((more.programs.len(), more.cgroups_in_scope), (1, 2));
    assert!(more.budget.is_some() && more.pod_source.is_some() && more.cgroups > 0);
    let kinds: Vec<v1::Kind> = more.losses.iter().map(v1::NodeLoss::kind).collect();
    assert_eq!(
        kinds,
        [RESET],
        "of others they may not even know the node's events"
    );
}

#[tokio::test(start_paused = true)]
async fn exporters_are_for_who_may_know_of_others_streams() {
    let mut bed = bed();
    bed.cluster.allow("jane", "", &["process", "tcp"]);
    bed.cluster.allow("joe", "", &["tcp", "subscriptions"]);
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("exporters.yaml");
    let text = "exporters:\n- {name: b, kinds: [exec], prometheus: {}}\n- {name: a, kinds: [exec], prometheus: {}}\n";
    std::fs::write(&file, text).expect("a file");
    let exporters = Exporters::open(file, &bed.api.limits).expect("a good file");
    bed.api.exporters = Some(exporters.clone());
    let Api {
        hub,
        admission,
        settle,
        limits,
        index,
        state,
        ..
    } = &bed.api;
    let running = tokio::spawn(exporters.clone().run(export::Context {
        hub: hub.clone(),
        admission: admission.clone(),
        settle: settle.clone(),
        limits: *limits,
        index: index.clone(),
        state: state.clone(),
        node: "n1".into(),
    }));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bed.status("jane").await.exporters, []);
    let told = bed.status("joe").await.exporters;
    let known: Vec<_> = told.iter().map(|one| (&*one.name, one.up)).collect();
    assert_eq!(known, [("a", false), ("b", false)]);
    assert!(
        told[0].problem.contains("dinle:exporter:a may not watch"),
        "{told:?}"
    );
    exporters.stop();
    running.await.expect("it ends");
}

#[tokio::test(start_paused = true)]
async fn a_plan_says_after_a_break_what_it_said_before() {
    let bed = bed();
    bed.cluster.allow("jane", "shop", &["process"]);
    let (stream, plan) = bed
        .subscribe("jane", asked(&[], &[EXEC]))
        .await
        .expect("allowed");
    let said = |plan: &v1::Plan, what: &str| plan.notes.iter().any(|note| note.starts_with(what));
    let (out, hidden) = (
        "left out, since jane may not watch process",
        "arguments and paths",
    );
    assert!(said(&plan, out) && said(&plan, hidden), "{:?}", plan.notes);
    drop(stream);
    let (stream, again) = bed.resume("jane", &plan).await.expect("it is there");
    assert_eq!((again.resumed, &again.notes), (true, &plan.notes));
    // It says what holds now.
    bed.cluster.allow("jane", "", &["process"]);
    sleep(WITHDRAWN).await;
    drop(stream);
    let (_stream, again) = bed.resume("jane", &plan).await.expect("it is there");
    assert!(
        !said(&again, out) && said(&again, hidden),
        "{:?}",
        again.notes
    );
}

#[tokio::test(start_paused = true)]
async fn only_who_began_a_stream_goes_on_with_it_and_with_the_token_that_they_show_then() {
    let bed = bed();
    for user in ["jane", "joe"] {
        bed.cluster.allow(user, "shop", &["process"]);
    }
    let (stream, plan) = bed
        .subscribe("jane", asked(&["shop"], &[EXEC]))
        .await
        .expect("allowed");
    drop(stream);
    let other = bed
        .resume("joe", &plan)
        .await
        .err()
        .expect("it is not theirs");
    assert_eq!(other.code(), Code::NotFound);
    let guessed = v1::Plan {
        resume_token: vec![0; 16],
        ..plan.clone()
    };
    let other = bed.resume("jane", &guessed).await.err().expect("a guess");
    assert_eq!(other.code(), Code::NotFound);

    bed.cluster.set_token("jane's second", Some("jane"));
    let (stream, _) = bed
        .resume("jane's second", &plan)
        .await
        .expect("it is hers");
    bed.cluster.set_token("jane", None);
    sleep(2 * WITHDRAWN).await;
    assert!(!bed.listener().grant().is_empty(), "it goes on");
    bed.cluster.set_token("jane's second", None);
    sleep(WITHDRAWN).await;
    assert!(bed.listener().grant().is_empty(), "it does not");
    drop(stream);
}

#[tokio::test(start_paused = true)]
async fn what_is_taken_away_ends_a_stream_within_the_time_that_is_promised() {
    // Where, what may be done there, and what of it is not any more.
    type Rule = (&'static str, &'static str);
    let cases: [(&[&str], &[Rule], Rule, &str); 4] = [
        (
            &["shop"],
            &[("shop", "process"), ("shop", "process/args")],
            ("shop", "process/args"),
            "jane may no longer watch process.dinle.dev/args in namespace shop",
        ),
        (
            &["shop"],
            &[("shop", "process"), ("shop", "process/args")],
            ("shop", "process"),
            "jane may not watch process.dinle.dev in namespace shop",
        ),
        (
            &[],
            &[("shop", "process"), ("bank", "process")],
            ("bank", "process"),
            "jane may no longer watch process.dinle.dev in namespace bank",
        ),
        (
            &[],
            &[("", "process"), ("", "process/args"), ("bank", "process")],
            ("", "process"),
            "jane may no longer watch process.dinle.dev in all namespaces",
        ),
    ];
    for (namespaces, may, (place, what), why) in cases {
        let bed = bed();
        for (place, what) in may {
            bed.cluster.allow("jane", place, &[what]);
        }
        let (subscription, _guard) = bed.watched(namespaces).await;
        sleep(3 * WITHDRAWN).await;
        assert_eq!(subscription.withdrawn(), None, "{why}");
        bed.cluster.forbid("jane", place, what);
        sleep(WITHDRAWN).await;
        let withdrawn = Some(Withdrawn::Denied(why.to_owned()));
        assert_eq!(subscription.withdrawn(), withdrawn);
        assert!(subscription.listener().grant().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_outlives_an_api_server_that_is_away_for_less_than_the_grace() {
    let bed = bed();
    bed.cluster.allow("jane", "shop", &["process"]);
    let (subscription, _guard) = bed.watched(&["shop"]).await;
    // Each time anew.
    for _ in 0..3 {
        bed.cluster.set_away(true);
        sleep(GRACE - Duration::from_secs(1)).await;
        bed.cluster.set_away(false);
        assert_eq!(subscription.withdrawn(), None);
        sleep(auth::LOOK + Duration::from_secs(1)).await;
    }
    assert_eq!(subscription.withdrawn(), None);
    // What is added meanwhile is told.
    let args = || subscription.listener().grant().all_access().args;
    assert!(!args().contains(EXEC));
    bed.cluster.allow("jane", "shop", &["process/args"]);
    sleep(WITHDRAWN).await;
    assert!(args().contains(EXEC));

    bed.cluster.set_away(true);
    sleep(GRACE - Duration::from_secs(1)).await;
    assert_eq!(subscription.withdrawn(), None);
    sleep(2 * auth::LOOK).await;
    let withdrawn = subscription.withdrawn();
    let Some(Withdrawn::Unknown(why)) = withdrawn else {
        panic!("{withdrawn:?}");
    };
    assert!(why.contains("for 30 s now"), "{why}");
    assert!(subscription.listener().grant().is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_has_a_certificate_is_one_of_the_authenticated() {
    let bed = bed();
    let mut request = Request::new(());
    let subject = Subject {
        user: "jane".into(),
        groups: vec!["ops".into()],
    };
    request.extensions_mut().insert(Peer {
        address: PeerAddress::Tcp(([10, 0, 0, 7], 41234).into()),
        certificate: Some(Arc::new(subject)),
    });
    let admission = &bed.api.admission;
    let (caller, admitted) = admit(admission, &request).await;
    assert_eq!(caller.user, "jane");
    assert_eq!(caller.groups, ["ops", "system:authenticated"]);
    assert_eq!(admitted.expect("somebody").caller, caller);
    // Who shows a token, too, is whom that is of.
    let header = "Bearer joe".parse().expect("a header");
    request.metadata_mut().insert("authorization", header);
    assert_eq!(admit(admission, &request).await.0.user, "joe");
}

#[tokio::test(start_paused = true)]
async fn a_stream_does_not_wait_for_ever_for_a_kernel_half_that_stands_still() {
    let mut bed = bed();
    let (settle, _calls) = Settle::new();
    bed.api.settle = settle;
    bed.cluster.allow("jane", "shop", &["process"]);
    bed.api
        .hub
        .set_alarm(Some("the reader stands still".into()));
    let refused = bed.subscribe("jane", asked(&["shop"], &[EXEC])).await;
    let Err(refused) = refused else {
        panic!("it is told that all is attached");
    };
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(
        refused.message(),
        "nothing was attached for this stream in 30 s: the reader stands still; try again"
    );
    assert_eq!(
        bed.api.hub.board().listeners().count(),
        0,
        "its place is free"
    );
}

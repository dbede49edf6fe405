//! Follows pods: agents by node, and nodes of pods that are selected.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    pin::pin,
};

use dinle_proto::v1;
use futures::{Stream, StreamExt as _, stream::select_all};
use k8s_openapi::api::core::v1 as k8s;
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use tokio::sync::watch;

use super::{Agent, Agents, Known, Nodes, root_cause};
use crate::{filter::Selector, workload::Pod};

/// Follows agents, for as long as somebody looks.
pub(super) fn agents(client: Client, namespace: &str, labels: &str) -> Agents {
    let pods = Api::namespaced(client, namespace);
    let config = watcher::Config::default().labels(labels);
    let events = watcher(pods, config).default_backoff();
    let place = format!("namespace {namespace}");
    let (sender, receiver) = watch::channel(Known::default());
    tokio::spawn(follow(
        events.map(move |event| (place.clone(), event)),
        1,
        sender,
        by_node,
    ));
    receiver
}

/// Follows the nodes of selected pods, for as long as somebody looks.
pub(super) fn nodes(
    client: Client,
    namespaces: &[String],
    labels: &str,
    selector: Selector,
) -> Nodes {
    let config = || watcher::Config::default().labels(labels);
    let place = |name: &str| format!("namespace {name}");
    // One that is named twice is one place, with one list.
    let namespaces: BTreeSet<&String> = namespaces.iter().collect();
    let mut watched: Vec<(Api<k8s::Pod>, String)> = namespaces
        .into_iter()
        .map(|name| (Api::namespaced(client.clone(), name), place(name)))
        .collect();
    if watched.is_empty() {
        watched.push((Api::all(client), "any namespace".to_owned()));
    }
    let lists = watched.len();
    let events = watched.into_iter().map(|(pods, place)| {
        let events = watcher(pods, config()).default_backoff().modify(slim);
        events.map(move |event| (place.clone(), event)).boxed()
    });
    let (sender, receiver) = watch::channel(Known::default());
    tokio::spawn(follow(select_all(events), lists, sender, move |pods| {
        of_selected(pods, &selector)
    }));
    receiver
}

/// Keeps `sender` up to date until nobody receives any more. `lists` is how many places are watched, each of which has a first list.
pub(super) async fn follow<T: Default + PartialEq>(
    events: impl Stream<Item = (String, watcher::Result<Event<k8s::Pod>>)>,
    lists: usize,
    sender: watch::Sender<Known<T>>,
    make: impl Fn(&HashMap<String, k8s::Pod>) -> T,
) {
    let mut events = pin!(events);
    let mut pods = HashMap::new();
    // Uids of a list that comes in anew, by place: what is not in it is gone.
    let mut lists_by_place: HashMap<String, Vec<k8s::Pod>> = HashMap::new();
    let mut synced: BTreeSet<String> = BTreeSet::new();
    let mut faults: BTreeMap<String, String> = BTreeMap::new();
    // A pod belongs to the place that told of it.
    let mut homes: HashMap<String, String> = HashMap::new();
    loop {
        let next = tokio::select! {
            () = sender.closed() => return,
            next = events.next() => next,
        };
        let Some((place, event)) = next else { return };
        match event {
            Ok(event) => {
                match event {
                    Event::Apply(pod) => apply(&mut pods, &mut homes, &place, pod),
                    Event::Delete(pod) => {
                        let uid = uid(&pod);
                        pods.remove(&uid);
                        homes.remove(&uid);
                    }
                    Event::Init => {
                        lists_by_place.insert(place.clone(), Vec::new());
                        continue;
                    }
                    Event::InitApply(pod) => {
                        lists_by_place.entry(place.clone()).or_default().push(pod);
                        continue;
                    }
                    Event::InitDone => {
                        homes.retain(|uid, home| {
                            let stays = *home != place;
                            if !stays {
                                pods.remove(uid);
                            }
                            stays
                        });
                        for pod in lists_by_place.remove(&place).unwrap_or_default() {
                            apply(&mut pods, &mut homes, &place, pod);
                        }
                        synced.insert(place.clone());
                    }
                }
                faults.remove(&place);
            }
            Err(error) => {
                let fault = fault(&place, &error);
                faults.insert(place, fault);
            }
        }
        let value = make(&pods);
        let fault = faults.values().next().cloned();
        let synced = synced.len() == lists;
        sender.send_if_modified(|known| {
            let new = Known {
                synced,
                fault,
                value,
            };
            let changed = *known != new;
            *known = new;
            changed
        });
    }
}

fn apply(
    pods: &mut HashMap<String, k8s::Pod>,
    homes: &mut HashMap<String, String>,
    place: &str,
    pod: k8s::Pod,
) {
    let uid = uid(&pod);
    homes.insert(uid.clone(), place.to_owned());
    pods.insert(uid, pod);
}

fn uid(pod: &k8s::Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

/// What keeps pods from being followed, in words for the user.
fn fault(place: &str, error: &watcher::Error) -> String {
    let api = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status.code),
        watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    };
    match api {
        Some(403) => format!(
            "you may not list and watch pods in {place}: it takes the permission to `list` and `watch` `pods` there"
        ),
        Some(401) => "the API server does not know you: are the credentials still good?".to_owned(),
        _ => format!("pods in {place} cannot be followed: {}", root_cause(error)),
    }
}

/// The agent of each node. Of two, as while one is replaced, the one that is ready and does not end.
fn by_node(pods: &HashMap<String, k8s::Pod>) -> BTreeMap<String, Agent> {
    let mut agents: BTreeMap<String, (bool, Agent)> = BTreeMap::new();
    for pod in pods.values() {
        let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else {
            continue;
        };
        let conditions = pod
            .status
            .iter()
            .flat_map(|status| &status.conditions)
            .flatten();
        let ready = conditions
            .into_iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        let ready = ready && pod.metadata.deletion_timestamp.is_none();
        let agent = Agent {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            pod: pod.metadata.name.clone().unwrap_or_default(),
            ready,
        };
        if agents.get(&node).is_none_or(|(better, _)| !better || ready) {
            agents.insert(node, (ready, agent));
        }
    }
    let agents = agents.into_iter();
    agents.map(|(node, (_, agent))| (node, agent)).collect()
}

/// Leaves out what nobody asks a pod for: those of a large cluster, as they come, are hundreds of megabytes.
fn slim(pod: &mut k8s::Pod) {
    pod.metadata.managed_fields = None;
    pod.metadata.annotations = None;
    pod.spec = pod.spec.take().map(|spec| k8s::PodSpec {
        node_name: spec.node_name,
        ..k8s::PodSpec::default()
    });
    pod.status = pod.status.take().map(|status| k8s::PodStatus {
        phase: status.phase,
        ..k8s::PodStatus::default()
    });
}

/// Nodes of the pods that are selected and have not ended.
fn of_selected(pods: &HashMap<String, k8s::Pod>, selector: &Selector) -> BTreeSet<String> {
    let ended = |pod: &k8s::Pod| {
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    pods.values()
        .filter(|pod| !ended(pod))
        .filter_map(|pod| Pod::from_api(pod.clone()))
        .filter(|pod| {
            let Pod {
                namespace,
                name,
                labels,
                owner,
                ..
            } = pod;
            selector.matches_pod(&v1::Workload {
                namespace: namespace.clone(),
                pod: name.clone(),
                labels: labels.clone(),
                owner: owner.clone(),
                state: v1::IdentityState::Pod.into(),
                ..Default::default()
            })
        })
        .filter_map(|pod| pod.node)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::filter::Limits;
    use kube::core::Status;
    use tokio::{sync::mpsc, time::timeout};
    use tokio_stream::wrappers::UnboundedReceiverStream;
    use tower_test::mock::pair;

    fn pod(name: &str, node: &str, phase: &str) -> k8s::Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": { "name": name, "namespace": "shop", "uid": name, "labels": { "app": name } },
            "spec": { "nodeName": node, "containers": [] },
            "status": { "phase": phase },
        }))
        .expect("a pod")
    }

    fn agent(name: &str, node: &str, ready: bool) -> k8s::Pod {
        let ready = if ready { "True" } else { "False" };
        let mut pod = pod(name, node, "Running");
        let conditions = serde_json::json!([{ "type": "Ready", "status": ready }]);
        let status = pod.status.get_or_insert_default();
        status.conditions = serde_json::from_value(conditions).expect("conditions");
        pod
    }

    fn keyed(pods: impl IntoIterator<Item = k8s::Pod>) -> HashMap<String, k8s::Pod> {
        pods.into_iter().map(|pod| (uid(&pod), pod)).collect()
    }

    #[test]
    fn of_two_agents_of_a_node_the_ready_one_counts() {
        let mut ending = agent("ending", "a", true);
        ending.metadata.deletion_timestamp = Some(
            serde_json::from_value(serde_json::json!("2026-01-01T00:00:00Z")).expect("a time"),
        );
        let pods = keyed([
            ending,
            agent("new", "a", true),
            agent("starting", "b", false),
            agent("nowhere", "", true),
        ]);
        let agents = by_node(&pods);
        let found = |node: &str| {
            agents
                .get(node)
                .map(|agent| (agent.pod.as_str(), agent.ready))
        };
        assert_eq!(found("a"), Some(("new", true)));
        assert_eq!(found("b"), Some(("starting", false)));
    }

    #[test]
    fn nodes_are_those_of_pods_that_are_selected_and_go_on() {
        let selector = v1::Selector {
            pods: vec!["web-*".to_owned()],
            ..Default::default()
        };
        let selector = Selector::parse(Some(&selector), &Limits::default());
        let mut pods = keyed([
            pod("web-1", "a", "Running"),
            pod("web-2", "b", "Pending"),
            pod("web-3", "c", "Succeeded"),
            pod("db-1", "d", "Running"),
        ]);
        pods.values_mut().for_each(slim);
        let nodes = of_selected(&pods, &selector.expect("a selector"));
        assert_eq!(nodes, ["a", "b"].map(str::to_owned).into());
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_that_is_named_twice_is_listed_once() {
        let (service, mut server) =
            pair::<http::Request<kube::client::Body>, http::Response<axum::body::Body>>();
        let namespaces = ["shop", "bank", "shop"].map(str::to_owned);
        let selector = Selector::parse(None, &Limits::default()).expect("a selector");
        let mut known = nodes(Client::new(service, "default"), &namespaces, "", selector);
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Some((request, answer)) = server.next_request().await {
                if request.uri().query().unwrap_or_default().contains("watch=") {
                    open.push(answer);
                    continue;
                }
                let (_, namespace) = request.uri().path().split_at("/api/v1/namespaces/".len());
                let name = format!("of-{}", namespace.trim_end_matches("/pods"));
                let list = serde_json::json!({
                    "kind": "PodList",
                    "apiVersion": "v1",
                    "metadata": { "resourceVersion": "1" },
                    "items": [pod(&name, &name, "Running")],
                });
                answer.send_response(http::Response::new(list.to_string().into()));
            }
        });
        let listed = known.wait_for(|known| known.synced);
        let listed = timeout(Duration::from_secs(1), listed).await;
        let listed = listed.expect("all lists are in").expect("followed").clone();
        assert_eq!(
            listed.value,
            ["of-bank", "of-shop"].map(str::to_owned).into()
        );
    }

    type Told = (String, watcher::Result<Event<k8s::Pod>>);

    fn followed(
        lists: usize,
    ) -> (
        mpsc::UnboundedSender<Told>,
        watch::Receiver<Known<Vec<String>>>,
    ) {
        let (events, stream) = mpsc::unbounded_channel();
        let (sender, receiver) = watch::channel(Known::default());
        let names = |pods: &HashMap<String, k8s::Pod>| {
            let mut names: Vec<String> = pods.keys().cloned().collect();
            names.sort();
            names
        };
        tokio::spawn(follow(
            UnboundedReceiverStream::new(stream),
            lists,
            sender,
            names,
        ));
        (events, receiver)
    }

    #[tokio::test]
    async fn a_list_that_comes_anew_replaces_that_of_its_place_alone() {
        let (events, mut known) = followed(2);
        let tell = |place: &str, event| {
            let sent = events.send((place.to_owned(), Ok(event)));
            assert!(sent.is_ok());
        };
        let running = |name| pod(name, "a", "Running");
        tell("x", Event::Init);
        tell("x", Event::InitApply(running("x1")));
        tell("x", Event::InitDone);
        let half = known.wait_for(|known| known.value == ["x1"]).await;
        assert!(!half.expect("followed").synced, "one of two lists");
        tell("y", Event::Init);
        tell("y", Event::InitApply(running("y1")));
        tell("y", Event::InitDone);
        known
            .wait_for(|known| known.synced && known.value == ["x1", "y1"])
            .await
            .expect("both");
        tell("x", Event::Init);
        tell("x", Event::InitApply(running("x2")));
        tell("x", Event::InitDone);
        known
            .wait_for(|known| known.value == ["x2", "y1"])
            .await
            .expect("x anew");
        tell("y", Event::Delete(running("y1")));
        known
            .wait_for(|known| known.value == ["x2"])
            .await
            .expect("y1 is gone");
    }

    #[tokio::test]
    async fn what_is_forbidden_is_told_until_that_place_is_listed() {
        let (events, mut known) = followed(2);
        let tell = |place: &str, event| {
            assert!(events.send((format!("namespace {place}"), event)).is_ok());
        };
        let status = Status::failure("no", "Forbidden").with_code(403).boxed();
        tell(
            "shop",
            Err(watcher::Error::InitialListFailed(kube::Error::Api(status))),
        );
        let expected = "you may not list and watch pods in namespace shop: it takes the permission to `list` and `watch` `pods` there";
        let told = known
            .wait_for(|known| known.fault.is_some())
            .await
            .expect("followed")
            .clone();
        assert_eq!(
            (told.synced, told.fault.as_deref()),
            (false, Some(expected))
        );
        // What another place tells does not mend it, nor does another try.
        tell("shop", Ok(Event::Init));
        tell("bank", Ok(Event::Init));
        tell("bank", Ok(Event::InitApply(pod("bank1", "a", "Running"))));
        tell("bank", Ok(Event::InitDone));
        let told = known
            .wait_for(|known| known.value == ["bank1"])
            .await
            .expect("bank")
            .clone();
        assert_eq!(
            (told.synced, told.fault.as_deref()),
            (false, Some(expected))
        );
        tell("shop", Ok(Event::InitDone));
        let told = known
            .wait_for(|known| known.synced)
            .await
            .expect("both")
            .clone();
        assert_eq!(told.fault, None);
    }
}

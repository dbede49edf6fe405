//! What an argument may name.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    future::Future,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use clap_complete::{ArgValueCompleter, CompletionCandidate};
use dinle_proto::v1;

use super::line::{Line, Scope};
use crate::{
    client::{
        connect::{Place, answer, connect},
        connection::Reach,
        nodes, output, text,
    },
    cluster::{self, Cluster},
};

/// How long somebody who pressed Tab waits for names, at most.
const PATIENCE: Duration = Duration::from_secs(2);

/// What there are names of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Namespace,
    Pod,
    Owner,
    /// A pod or an owner.
    Target,
    Container,
    Node,
    Context,
    Kind,
    /// A form in which to print.
    Form,
}

/// Arguments that take names, by their ids.
const ARGUMENTS: [(&str, Named); 10] = [
    ("namespace", Named::Namespace),
    ("agent_namespace", Named::Namespace),
    ("pod", Named::Pod),
    ("owner", Named::Owner),
    ("targets", Named::Target),
    ("container", Named::Container),
    ("node", Named::Node),
    ("kube_context", Named::Context),
    ("kinds", Named::Kind),
    ("output", Named::Form),
];

/// Makes the arguments of each command complete with names, those of which this line tells where to find them.
pub(super) fn attach(cli: clap::Command, line: &Line) -> clap::Command {
    let Some(scope) = line.scope(&cli).map(Arc::new) else {
        return cli;
    };
    cli.mut_subcommands(|command| {
        let asks = command
            .get_arguments()
            .any(|argument| argument.get_id() == "kube");
        if !asks {
            return command;
        }
        command.mut_args(|argument| match named(&argument) {
            Some(named) => argument.add(completer(named, Arc::clone(&scope))),
            None => argument,
        })
    })
}

fn named(argument: &clap::Arg) -> Option<Named> {
    let found = ARGUMENTS.iter().find(|(id, _)| argument.get_id() == id);
    found.map(|(_, named)| *named)
}

fn completer(named: Named, scope: Arc<Scope>) -> ArgValueCompleter {
    ArgValueCompleter::new(move |current: &OsStr| -> Vec<CompletionCandidate> {
        let current = current.to_string_lossy();
        let names = names(named, &scope, &current);
        let fitting = names.into_iter().filter(|name| name.starts_with(&*current));
        fitting.map(CompletionCandidate::new).collect()
    })
}

fn names(named: Named, scope: &Scope, current: &str) -> BTreeSet<String> {
    let workloads = || {
        let scope = scope.clone();
        in_time(move || workloads(scope, named))
    };
    match named {
        Named::Namespace => {
            let scope = scope.clone();
            in_time(move || namespaces(scope))
        }
        Named::Pod => pods(&workloads()),
        Named::Owner => owners(&workloads(), current),
        Named::Target => targets(&workloads(), current),
        Named::Container => containers(&workloads()),
        Named::Node => {
            let scope = scope.clone();
            in_time(move || nodes(scope))
        }
        Named::Context => cluster::contexts(scope.connection.kubeconfig())
            .into_iter()
            .collect(),
        Named::Kind => text::all_kinds().map(v1::Kind::name).collect(),
        Named::Form => output::FORMS.map(str::to_owned).into(),
    }
}

/// Waits for an answer; nothing if it does not come.
fn in_time<T: Default + Send + 'static, F: Future<Output = T>>(
    question: impl FnOnce() -> F + Send + 'static,
) -> T {
    let (sender, receiver) = mpsc::channel();
    // A thread of its own: what reads credentials may wait without letting anything else go on. It ends with the process.
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        if let Ok(runtime) = runtime {
            // Nobody may wait any more.
            _ = sender.send(runtime.block_on(question()));
        }
    });
    receiver.recv_timeout(PATIENCE).unwrap_or_default()
}

async fn namespaces(scope: Scope) -> BTreeSet<String> {
    match scope.connection.clone().reach_unattended().await {
        Ok(Reach::Cluster(cluster)) => cluster.namespaces().await.into_iter().collect(),
        Ok(Reach::Agent(_)) => {
            let everywhere = Scope {
                namespaces: Vec::new(),
                ..scope
            };
            let known = workloads(everywhere, Named::Namespace).await;
            distinct(known.iter().map(|workload| &workload.namespace))
        }
        Err(_) => BTreeSet::new(),
    }
}

/// Nodes that have an agent.
async fn nodes(scope: Scope) -> BTreeSet<String> {
    let Ok(Reach::Cluster(cluster)) = scope.connection.reach_unattended().await else {
        return BTreeSet::new();
    };
    let mut agents = cluster.agents();
    // If they cannot be listed there are none.
    _ = nodes::first(&mut agents).await;
    agents.borrow().value.keys().cloned().collect()
}

async fn workloads(scope: Scope, named: Named) -> Vec<v1::Workload> {
    let Scope {
        connection,
        namespaces,
        all_namespaces,
    } = scope;
    match connection.reach_unattended().await {
        Ok(Reach::Cluster(cluster)) => {
            let namespaces = meant(namespaces, all_namespaces, &cluster);
            match named {
                Named::Container => cluster.containers(&namespaces).await,
                _ => cluster.pods(&namespaces).await,
            }
        }
        Ok(Reach::Agent(address)) => {
            let selector = v1::Selector {
                namespaces,
                ..v1::Selector::default()
            };
            let request = v1::ListWorkloadsRequest {
                selector: Some(selector),
            };
            let Ok(mut client) = connect(&address).await else {
                return Vec::new();
            };
            let listed = answer(&Place::At(address), client.list_workloads(request)).await;
            listed.map(|listed| listed.workloads).unwrap_or_default()
        }
        Err(_) => Vec::new(),
    }
}

fn meant(namespaces: Vec<String>, all: bool, cluster: &Cluster) -> Vec<String> {
    match (namespaces.is_empty(), all) {
        (true, false) => vec![cluster.namespace().to_owned()],
        (true, true) | (false, _) => namespaces,
    }
}

fn pods(workloads: &[v1::Workload]) -> BTreeSet<String> {
    distinct(workloads.iter().map(|workload| &workload.pod))
}

fn containers(workloads: &[v1::Workload]) -> BTreeSet<String> {
    distinct(workloads.iter().map(|workload| &workload.container))
}

/// `deploy/checkout`, or with the kind as it is written already.
fn owners(workloads: &[v1::Workload], current: &str) -> BTreeSet<String> {
    let written = current.split_once('/').map(|(kind, _)| kind);
    let owners = workloads.iter().filter_map(|workload| {
        let v1::Owner { kind, name } = workload.owner.as_ref()?;
        let short = cluster::short_kind(kind);
        match written {
            None => Some(format!("{short}/{name}")),
            Some(written) if written == short || written.eq_ignore_ascii_case(kind) => {
                Some(format!("{written}/{name}"))
            }
            Some(_) => None,
        }
    });
    owners.collect()
}

/// Pods, and owners; or behind `pod/` pods alone.
fn targets(workloads: &[v1::Workload], current: &str) -> BTreeSet<String> {
    let pods = pods(workloads);
    if current.starts_with("pod/") {
        return pods.iter().map(|pod| format!("pod/{pod}")).collect();
    }
    let owners = owners(workloads, current);
    pods.into_iter().chain(owners).collect()
}

fn distinct<'a>(names: impl Iterator<Item = &'a String>) -> BTreeSet<String> {
    names.filter(|name| !name.is_empty()).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(pod: &str, container: &str, owner: (&str, &str)) -> v1::Workload {
        v1::Workload {
            namespace: "shop".to_owned(),
            pod: pod.to_owned(),
            container: container.to_owned(),
            owner: (!owner.0.is_empty()).then(|| v1::Owner {
                kind: owner.0.to_owned(),
                name: owner.1.to_owned(),
            }),
            ..v1::Workload::default()
        }
    }

    fn shop() -> Vec<v1::Workload> {
        vec![
            workload("checkout-7d9-x2", "app", ("Deployment", "checkout")),
            workload("checkout-7d9-x2", "proxy", ("Deployment", "checkout")),
            workload("checkout-7d9-z8", "app", ("Deployment", "checkout")),
            workload("db-0", "postgres", ("StatefulSet", "db")),
            workload("tap-1", "tap", ("CloudEventSource", "tap")),
            workload("alone", "", ("", "")),
            workload("", "", ("", "")),
        ]
    }

    #[test]
    fn every_argument_that_takes_names_is_there() {
        use clap::CommandFactory as _;

        let cli = crate::client::tests::Cli::command();
        let known: BTreeSet<&str> = cli
            .get_subcommands()
            .flat_map(clap::Command::get_arguments)
            .map(|argument| argument.get_id().as_str())
            .collect();
        for (id, named) in ARGUMENTS {
            assert!(
                known.contains(id),
                "no command has an argument {id}, a {named:?}"
            );
        }
    }

    fn sorted(names: BTreeSet<String>) -> Vec<String> {
        names.into_iter().collect()
    }

    #[test]
    fn each_name_is_told_once() {
        let pods = sorted(pods(&shop()));
        assert_eq!(
            pods,
            [
                "alone",
                "checkout-7d9-x2",
                "checkout-7d9-z8",
                "db-0",
                "tap-1"
            ]
        );
        let containers = sorted(containers(&shop()));
        assert_eq!(containers, ["app", "postgres", "proxy", "tap"]);
    }

    #[test]
    fn owners_have_their_short_kind_until_another_is_written() {
        let table = [
            (
                "",
                vec!["cloudeventsource/tap", "deploy/checkout", "sts/db"],
            ),
            ("deploy/", vec!["deploy/checkout"]),
            ("deployment/", vec!["deployment/checkout"]),
            ("Deployment/ch", vec!["Deployment/checkout"]),
            ("statefulset/", vec!["statefulset/db"]),
            ("CloudEventSource/", vec!["CloudEventSource/tap"]),
            ("ds/", vec![]),
        ];
        for (current, expected) in table {
            assert_eq!(sorted(owners(&shop(), current)), expected, "{current}");
        }
    }

    #[test]
    fn a_target_is_a_pod_or_an_owner() {
        let all = sorted(targets(&shop(), ""));
        assert!(all.contains(&"db-0".to_owned()) && all.contains(&"sts/db".to_owned()));
        let pods = sorted(targets(&shop(), "pod/a"));
        assert!(pods.contains(&"pod/alone".to_owned()), "{pods:?}");
        assert!(pods.iter().all(|pod| pod.starts_with("pod/")), "{pods:?}");
    }

    #[test]
    fn who_does_not_answer_in_time_has_nothing_to_say() {
        let began = std::time::Instant::now();
        let stuck = || async {
            // As a program that gives credentials may do it.
            thread::sleep(PATIENCE * 2);
            vec!["late"]
        };
        assert_eq!(in_time(stuck), Vec::<&str>::new());
        assert!(began.elapsed() < PATIENCE * 2, "{:?}", began.elapsed());
    }
}

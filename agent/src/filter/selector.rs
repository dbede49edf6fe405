//! Which workloads.

use dinle_proto::v1;

use super::{Invalid, Limits, check_elements, check_text, labels::Labels, pattern::Pattern};

/// Which workloads a subscriber wants.
#[derive(Clone, Debug)]
pub struct Selector {
    namespaces: Vec<String>,
    pods: Vec<Pattern>,
    labels: Labels,
    containers: Vec<Pattern>,
    owners: Vec<OwnerMatch>,
    wants_pods: bool,
    wants_host: bool,
}

#[derive(Clone, Debug)]
struct OwnerMatch {
    kind: String,
    name: String,
}

/// Every pod.
impl Default for Selector {
    fn default() -> Self {
        Self {
            namespaces: Vec::new(),
            pods: Vec::new(),
            labels: Labels::default(),
            containers: Vec::new(),
            owners: Vec::new(),
            wants_pods: true,
            wants_host: false,
        }
    }
}

impl Selector {
    /// Checks what a request says of workloads. None asks for every pod.
    pub fn parse(selector: Option<&v1::Selector>, limits: &Limits) -> Result<Self, Invalid> {
        let empty = v1::Selector::default();
        let v1::Selector {
            namespaces,
            pods,
            label_selector,
            containers,
            owners,
            host_processes,
        } = selector.unwrap_or(&empty);

        let field = "selector.label_selector";
        check_text(field, label_selector)?;
        let labels =
            Labels::parse(label_selector).map_err(|problem| Invalid::new(field, problem))?;
        let (wants_pods, wants_host) = parse_host_processes(*host_processes)?;
        let parsed = Self {
            namespaces: parse_each("selector.namespaces", namespaces, limits, parse_namespace)?,
            pods: parse_each("selector.pods", pods, limits, Pattern::name)?,
            labels,
            containers: parse_each("selector.containers", containers, limits, Pattern::name)?,
            owners: parse_each("selector.owners", owners, limits, parse_owner)?,
            wants_pods,
            wants_host,
        };
        if !wants_pods && (parsed.asks_about_pods() || !parsed.containers.is_empty()) {
            return Err(Invalid::new(
                "selector.host_processes",
                "is HOST_PROCESSES_ONLY, but the selector's other fields ask for pods; \
                 clear them, or use HOST_PROCESSES_INCLUDE",
            ));
        }
        Ok(parsed)
    }

    /// Whether the subscriber wants what runs there.
    ///
    /// While the pod or the container is not known, a selector that asks about it does not match.
    /// Processes outside pods have no namespace, name, labels or owner: only `host_processes` speaks of them.
    pub fn matches(&self, workload: &v1::Workload) -> bool {
        self.test(workload, &self.containers)
    }

    /// The same without the test of the container's name, which becomes known last: decides what the kernel reports.
    pub fn matches_pod(&self, workload: &v1::Workload) -> bool {
        self.test(workload, &[])
    }

    /// Namespaces that it names; none: all of them.
    pub fn namespaces(&self) -> &[String] {
        &self.namespaces
    }

    /// It asks for pods.
    pub fn wants_pods(&self) -> bool {
        self.wants_pods
    }

    /// It asks for what runs outside pods.
    pub fn wants_host(&self) -> bool {
        self.wants_host
    }

    /// It asks for containers by name.
    pub fn names_containers(&self) -> bool {
        !self.containers.is_empty()
    }

    fn test(&self, workload: &v1::Workload, containers: &[Pattern]) -> bool {
        use v1::IdentityState;

        let asks = self.asks_about_pods() || !containers.is_empty();
        match IdentityState::try_from(workload.state) {
            Ok(IdentityState::Host) => self.wants_host,
            Ok(IdentityState::Pending) => self.wants_pods && !asks,
            Ok(IdentityState::Pod | IdentityState::Container | IdentityState::Sandbox) => {
                self.wants_pods
                    && self.matches_properties(workload)
                    && (containers.is_empty()
                        // `*` is any name, not the lack of one.
                        || !workload.container.is_empty()
                            && containers.iter().any(|p| p.matches(&workload.container)))
            }
            // A pod or not: matches only where both do.
            Ok(IdentityState::Unknown) => self.wants_pods && self.wants_host && !asks,
            Ok(IdentityState::Unspecified) | Err(_) => false,
        }
    }

    fn asks_about_pods(&self) -> bool {
        !(self.namespaces.is_empty()
            && self.pods.is_empty()
            && self.labels.is_empty()
            && self.owners.is_empty())
    }

    fn matches_properties(&self, workload: &v1::Workload) -> bool {
        let Self {
            namespaces,
            pods,
            labels,
            owners,
            containers: _,
            wants_pods: _,
            wants_host: _,
        } = self;
        (namespaces.is_empty() || namespaces.contains(&workload.namespace))
            && (pods.is_empty() || pods.iter().any(|p| p.matches(&workload.pod)))
            && labels.matches(&workload.labels)
            && (owners.is_empty()
                || workload.owner.as_ref().is_some_and(|owner| {
                    owners.iter().any(|OwnerMatch { kind, name }| {
                        owner.kind.eq_ignore_ascii_case(kind) && owner.name == *name
                    })
                }))
    }
}

fn parse_each<T>(
    field: &str,
    texts: &[String],
    limits: &Limits,
    parse: impl Fn(&str, &str) -> Result<T, Invalid>,
) -> Result<Vec<T>, Invalid> {
    check_elements(field, texts, limits)?;
    texts
        .iter()
        .enumerate()
        .map(|(index, text)| parse(&format!("{field}[{index}]"), text))
        .collect()
}

fn parse_namespace(field: &str, text: &str) -> Result<String, Invalid> {
    check_text(field, text)?;
    if text.is_empty() {
        return Err(Invalid::new(
            field,
            "is empty; leave the field out for every namespace",
        ));
    }
    if text.contains(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')) {
        return Err(Invalid::new(
            field,
            format!(
                "`{}` cannot be a namespace: they are matched exactly, and have lower-case letters, digits and `-`",
                text.escape_debug()
            ),
        ));
    }
    Ok(text.to_owned())
}

/// Kinds of owners as kubectl shortens them.
const SHORT_KINDS: [(&str, &str); 5] = [
    ("deploy", "Deployment"),
    ("sts", "StatefulSet"),
    ("ds", "DaemonSet"),
    ("rs", "ReplicaSet"),
    ("cj", "CronJob"),
];

/// How people write a kind of owners: short where kubectl has something short for it, else in small letters.
pub(crate) fn short_kind(kind: &str) -> String {
    let short = SHORT_KINDS.iter().find(|(_, long)| *long == kind);
    short.map_or_else(
        || kind.to_ascii_lowercase(),
        |(short, _)| (*short).to_owned(),
    )
}

fn parse_owner(field: &str, text: &str) -> Result<OwnerMatch, Invalid> {
    check_text(field, text)?;
    let split = text.split_once('/');
    let Some((kind, name)) =
        split.filter(|(kind, name)| !kind.is_empty() && !name.is_empty() && !name.contains('/'))
    else {
        return Err(Invalid::new(
            field,
            format!(
                "`{}` is not an owner; write `kind/name`, as in `deployment/checkout`",
                text.escape_debug()
            ),
        ));
    };
    let short = SHORT_KINDS
        .iter()
        .find(|(short, _)| short.eq_ignore_ascii_case(kind));
    // Others are full names, and kinds that only this cluster knows.
    let kind = short.map_or(kind, |(_, long)| long);
    Ok(OwnerMatch {
        kind: kind.to_owned(),
        name: name.to_owned(),
    })
}

fn parse_host_processes(number: i32) -> Result<(bool, bool), Invalid> {
    match v1::HostProcesses::try_from(number) {
        Ok(v1::HostProcesses::Unspecified | v1::HostProcesses::Exclude) => Ok((true, false)),
        Ok(v1::HostProcesses::Include) => Ok((true, true)),
        Ok(v1::HostProcesses::Only) => Ok((false, true)),
        Err(_) => Err(Invalid::new(
            "selector.host_processes",
            format!(
                "is {number}, which this agent does not know; use HOST_PROCESSES_EXCLUDE, \
                 HOST_PROCESSES_INCLUDE or HOST_PROCESSES_ONLY"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::{HostProcesses, IdentityState};

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn parsed(selector: &v1::Selector) -> Selector {
        Selector::parse(Some(selector), &Limits::default()).expect("a selector")
    }

    fn refused(selector: &v1::Selector) -> String {
        Selector::parse(Some(selector), &Limits::default())
            .expect_err("should be refused")
            .to_string()
    }

    /// One workload in each state; what is not known in a state is not filled in.
    fn in_state(state: IdentityState) -> v1::Workload {
        let mut workload = v1::Workload {
            cgroup_id: 7,
            state: state.into(),
            ..Default::default()
        };
        let pod_known = match state {
            IdentityState::Unspecified
            | IdentityState::Host
            | IdentityState::Pending
            | IdentityState::Unknown => false,
            IdentityState::Pod | IdentityState::Container | IdentityState::Sandbox => true,
        };
        if pod_known {
            workload.namespace = "shop".to_owned();
            workload.pod = "checkout-7d9f-x2x1z".to_owned();
            workload.labels = [("app".to_owned(), "checkout".to_owned())].into();
            workload.owner = Some(v1::Owner {
                kind: "Deployment".to_owned(),
                name: "checkout".to_owned(),
            });
        }
        if state == IdentityState::Container {
            workload.container = "app".to_owned();
        }
        workload
    }

    const STATES: [IdentityState; 7] = [
        IdentityState::Unspecified,
        IdentityState::Host,
        IdentityState::Pending,
        IdentityState::Pod,
        IdentityState::Container,
        IdentityState::Sandbox,
        IdentityState::Unknown,
    ];

    #[test]
    fn each_field_decides_which_states_match() {
        use IdentityState::{Container, Host, Pending, Pod, Sandbox, Unknown};
        let known: &[IdentityState] = &[Pod, Container, Sandbox];
        let pods: &[IdentityState] = &[Pending, Pod, Container, Sandbox];
        // What is asked, which states match, which match for the kernel's scope.
        let table: &[(v1::Selector, &[IdentityState], &[IdentityState])] = &[
            (v1::Selector::default(), pods, pods),
            (
                v1::Selector {
                    namespaces: texts(&["bank", "shop"]),
                    ..Default::default()
                },
                known,
                known,
            ),
            (
                v1::Selector {
                    pods: texts(&["checkout-*"]),
                    ..Default::default()
                },
                known,
                known,
            ),
            (
                v1::Selector {
                    label_selector: "app=checkout".to_owned(),
                    ..Default::default()
                },
                known,
                known,
            ),
            (
                // A pod that is not known yet might have the label.
                v1::Selector {
                    label_selector: "!canary".to_owned(),
                    ..Default::default()
                },
                known,
                known,
            ),
            (
                v1::Selector {
                    owners: texts(&["deploy/checkout"]),
                    ..Default::default()
                },
                known,
                known,
            ),
            (
                v1::Selector {
                    containers: texts(&["app"]),
                    ..Default::default()
                },
                &[Container],
                pods,
            ),
            (
                v1::Selector {
                    containers: texts(&["*"]),
                    namespaces: texts(&["shop"]),
                    ..Default::default()
                },
                &[Container],
                known,
            ),
            (
                v1::Selector {
                    host_processes: HostProcesses::Exclude.into(),
                    ..Default::default()
                },
                pods,
                pods,
            ),
            (
                v1::Selector {
                    host_processes: HostProcesses::Include.into(),
                    ..Default::default()
                },
                &[Host, Pending, Pod, Container, Sandbox, Unknown],
                &[Host, Pending, Pod, Container, Sandbox, Unknown],
            ),
            (
                v1::Selector {
                    host_processes: HostProcesses::Include.into(),
                    namespaces: texts(&["shop"]),
                    ..Default::default()
                },
                &[Host, Pod, Container, Sandbox],
                &[Host, Pod, Container, Sandbox],
            ),
            (
                v1::Selector {
                    host_processes: HostProcesses::Only.into(),
                    ..Default::default()
                },
                &[Host],
                &[Host],
            ),
        ];
        for (selector, matching, scope) in table {
            let parsed = parsed(selector);
            for state in STATES {
                let workload = in_state(state);
                assert_eq!(
                    parsed.matches(&workload),
                    matching.contains(&state),
                    "{selector:?} on {state:?}"
                );
                assert_eq!(
                    parsed.matches_pod(&workload),
                    scope.contains(&state),
                    "{selector:?} on {state:?}, scope"
                );
            }
        }
    }

    #[test]
    fn other_values_do_not_match() {
        let workload = in_state(IdentityState::Container);
        let table = [
            v1::Selector {
                namespaces: texts(&["sho", "shop2"]),
                ..Default::default()
            },
            v1::Selector {
                pods: texts(&["checkout", "*-a"]),
                ..Default::default()
            },
            v1::Selector {
                label_selector: "app=checkout,tier".to_owned(),
                ..Default::default()
            },
            v1::Selector {
                owners: texts(&["deploy/check", "sts/checkout"]),
                ..Default::default()
            },
            v1::Selector {
                namespaces: texts(&["shop"]),
                pods: texts(&["other"]),
                ..Default::default()
            },
        ];
        for selector in table {
            assert!(!parsed(&selector).matches(&workload), "{selector:?}");
            assert!(!parsed(&selector).matches_pod(&workload), "{selector:?}");
        }
        let container = v1::Selector {
            containers: texts(&["sidecar", "ap"]),
            ..Default::default()
        };
        assert!(!parsed(&container).matches(&workload));
        assert!(parsed(&container).matches_pod(&workload));
    }

    #[test]
    fn owners_are_named_as_kubectl_names_them() {
        let table = [
            ("deploy/x", "Deployment"),
            ("deployment/x", "Deployment"),
            ("DEPLOY/x", "Deployment"),
            ("sts/x", "StatefulSet"),
            ("statefulset/x", "StatefulSet"),
            ("ds/x", "DaemonSet"),
            ("daemonset/x", "DaemonSet"),
            ("rs/x", "ReplicaSet"),
            ("replicaset/x", "ReplicaSet"),
            ("job/x", "Job"),
            ("cj/x", "CronJob"),
            ("cronjob/x", "CronJob"),
            ("node/x", "Node"),
            ("rollout/x", "Rollout"),
        ];
        for (text, kind) in table {
            let parsed = parsed(&v1::Selector {
                owners: texts(&[text]),
                ..Default::default()
            });
            let mut workload = in_state(IdentityState::Container);
            let owner = |kind: &str, name: &str| {
                Some(v1::Owner {
                    kind: kind.to_owned(),
                    name: name.to_owned(),
                })
            };
            workload.owner = owner(kind, "x");
            assert!(parsed.matches(&workload), "{text}");
            workload.owner = owner(kind, "X");
            assert!(!parsed.matches(&workload), "{text}: names are exact");
            workload.owner = owner("Other", "x");
            assert!(!parsed.matches(&workload), "{text}");
            workload.owner = None;
            assert!(!parsed.matches(&workload), "{text}: no owner");
        }
    }

    #[test]
    fn refusals_name_the_element() {
        let many = vec!["a".to_owned(); 65];
        let table = [
            (
                v1::Selector {
                    namespaces: texts(&["shop", ""]),
                    ..Default::default()
                },
                "selector.namespaces[1]: is empty; leave the field out for every namespace",
            ),
            (
                v1::Selector {
                    namespaces: texts(&["shop-*"]),
                    ..Default::default()
                },
                "selector.namespaces[0]: `shop-*` cannot be a namespace: they are matched exactly, \
                 and have lower-case letters, digits and `-`",
            ),
            (
                v1::Selector {
                    namespaces: many.clone(),
                    ..Default::default()
                },
                "selector.namespaces: has 65 elements, this agent allows 64; use globs, or several streams",
            ),
            (
                v1::Selector {
                    pods: texts(&["a", "b", "[x"]),
                    ..Default::default()
                },
                "selector.pods[2]: `[x` is not a glob: unclosed character class; missing ']'; \
                 put a backslash before `*`, `?`, `[` and `{` that stand for themselves",
            ),
            (
                v1::Selector {
                    containers: texts(&[""]),
                    ..Default::default()
                },
                "selector.containers[0]: is empty, which is nothing's name; leave it out, or use `*` for any name",
            ),
            (
                v1::Selector {
                    label_selector: "app=".to_owned() + &"a".repeat(1021),
                    ..Default::default()
                },
                "selector.label_selector: is 1025 bytes long; 1024 are allowed",
            ),
            (
                v1::Selector {
                    label_selector: "app in".to_owned(),
                    ..Default::default()
                },
                "selector.label_selector: found the end at byte 6 where `(` should be, as in `tier in (web,api)`",
            ),
            (
                v1::Selector {
                    owners: texts(&["checkout"]),
                    ..Default::default()
                },
                "selector.owners[0]: `checkout` is not an owner; write `kind/name`, as in `deployment/checkout`",
            ),
            (
                v1::Selector {
                    owners: texts(&["deploy/a", "deploy/"]),
                    ..Default::default()
                },
                "selector.owners[1]: `deploy/` is not an owner; write `kind/name`, as in `deployment/checkout`",
            ),
            (
                v1::Selector {
                    host_processes: 9,
                    ..Default::default()
                },
                "selector.host_processes: is 9, which this agent does not know; use HOST_PROCESSES_EXCLUDE, \
                 HOST_PROCESSES_INCLUDE or HOST_PROCESSES_ONLY",
            ),
            (
                v1::Selector {
                    host_processes: HostProcesses::Only.into(),
                    containers: texts(&["app"]),
                    ..Default::default()
                },
                "selector.host_processes: is HOST_PROCESSES_ONLY, but the selector's other fields ask for pods; \
                 clear them, or use HOST_PROCESSES_INCLUDE",
            ),
        ];
        for (selector, expected) in table {
            assert_eq!(refused(&selector), expected);
        }
        for selector in [
            v1::Selector {
                pods: many.clone(),
                ..Default::default()
            },
            v1::Selector {
                containers: many.clone(),
                ..Default::default()
            },
            v1::Selector {
                owners: many,
                ..Default::default()
            },
        ] {
            assert!(refused(&selector).contains("has 65 elements"));
        }
    }
}

//! Arguments that several commands share, and what they become in a request.

use std::time::Duration;

use clap::ValueEnum;
use dinle_proto::v1;

use super::{Refused, text};

/// Which workloads. Elements of one flag are alternatives; a workload must match each flag that is given.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Selection")]
pub(super) struct Selection {
    /// Only these pods, each a `NAME`; or the pods of these owners, each `KIND/NAME`, such as `deploy/checkout` [default: any pod]
    // Not with --host, after which `only` would be taken for a pod.
    #[arg(value_name = "POD|KIND/NAME", conflicts_with = "host")]
    targets: Vec<String>,
    /// Only pods of this namespace; repeat it or separate with commas [default: every namespace; with --kube that of the context]
    #[arg(short, long, value_name = "NAMESPACE", value_delimiter = ',')]
    namespace: Vec<String>,
    /// Pods of every namespace
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Only pods with these labels, such as `app=checkout,tier in (web,api),!canary` [default: any labels]
    #[arg(
        short = 'l',
        long,
        value_name = "LABELS",
        default_value_t,
        hide_default_value = true
    )]
    selector: String,
    /// Only pods of this name or glob, such as `checkout-*`; can be repeated [default: any name]
    #[arg(short, long, value_name = "POD")]
    pod: Vec<String>,
    /// Only containers of this name or glob; can be repeated [default: any container]
    #[arg(short, long, value_name = "CONTAINER")]
    container: Vec<String>,
    /// Only pods of this owner, such as `deploy/checkout`; can be repeated [default: any owner]
    #[arg(long, value_name = "KIND/NAME")]
    owner: Vec<String>,
    /// Processes outside pods too, or with `--host=only` nothing else [default: only pods]
    #[arg(
        long,
        value_name = "WHICH",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "include"
    )]
    host: Option<Host>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Host {
    /// Pods, and processes outside of them
    Include,
    /// Only processes outside pods
    Only,
}

impl Selection {
    /// Every namespace was asked for, and not just left open.
    pub(super) fn all_namespaces(&self) -> bool {
        self.all_namespaces
    }

    /// Refuses a list of names that would be no list: a pod must match each flag, and so be of that name and of that owner.
    pub(super) fn check(&self) -> Result<(), Refused> {
        let (owners, pods) = self.targets();
        match (pods.first(), owners.first()) {
            (Some(pod), Some(owner)) => Err(Refused(format!(
                "name pods or owners, not both: `{pod}` is a pod and `{owner}` an owner; of an owner's pods, --pod takes those with a name"
            ))),
            _ => Ok(()),
        }
    }

    /// Owners and pods that are named without a flag.
    fn targets(&self) -> (Vec<String>, Vec<String>) {
        let targets = self.targets.iter();
        targets
            .map(|target| target.strip_prefix("pod/").unwrap_or(target).to_owned())
            .partition(|target| target.contains('/'))
    }

    pub(super) fn to_proto(&self) -> v1::Selector {
        let (owners, pods) = self.targets();
        let Self {
            targets: _,
            namespace,
            all_namespaces: _,
            selector,
            pod,
            container,
            owner,
            host,
        } = self;
        let host_processes = match host {
            None => v1::HostProcesses::Exclude,
            Some(Host::Include) => v1::HostProcesses::Include,
            Some(Host::Only) => v1::HostProcesses::Only,
        };
        v1::Selector {
            namespaces: namespace.clone(),
            pods: [pod.as_slice(), &pods].concat(),
            label_selector: selector.clone(),
            containers: container.clone(),
            owners: [owner.as_slice(), &owners].concat(),
            host_processes: host_processes.into(),
        }
    }
}

/// Which processes.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Filters")]
pub(super) struct Processes {
    /// Only commands of this name; `ngin*` is a prefix, other globs work too; can be repeated [default: any command]
    #[arg(long, value_name = "COMM")]
    comm: Vec<String>,
    /// Only real user ids; repeat it or separate with commas [default: any user]
    #[arg(short, long, value_name = "UID", value_delimiter = ',')]
    uid: Vec<u32>,
    /// Only processes with this id on the host; repeat it or separate with commas [default: any process]
    #[arg(
        long,
        value_name = "PID",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pid: Vec<u32>,
    /// With --pid: also everything that these processes start, and what that starts [default: no]
    #[arg(long, requires = "pid")]
    descendants: bool,
    /// Only programs with this path; `/usr/*` is a prefix, other globs work too; can be repeated; only for exec [default: any program]
    #[arg(long, value_name = "PATH")]
    binary: Vec<String>,
}

impl Processes {
    pub(super) fn to_proto(&self, exit_failed: bool) -> v1::Filter {
        let Self {
            comm,
            uid,
            pid,
            descendants,
            binary,
        } = self;
        let pid_match = |pid: &u32| v1::PidMatch {
            pid: *pid,
            descendants: *descendants,
        };
        v1::Filter {
            comm: comm.iter().map(|text| string_match(text)).collect(),
            binary: binary.iter().map(|text| string_match(text)).collect(),
            uids: uid.clone(),
            pids: pid.iter().map(pid_match).collect(),
            exit_failed,
            ..Default::default()
        }
    }

    /// A filter that only exec events can answer is given.
    pub(super) fn needs_exec(&self) -> bool {
        !self.binary.is_empty()
    }
}

/// Plain text is exact, a single `*` at the end makes it a prefix, other special characters make it a glob.
pub(super) fn string_match(text: &str) -> v1::StringMatch {
    use v1::string_match::Pattern;

    let special = |text: &str| text.contains(['*', '?', '[', '{', '\\']);
    let pattern = match text.strip_suffix('*') {
        Some(prefix) if !special(prefix) => Pattern::Prefix(prefix.to_owned()),
        Some(_) => Pattern::Glob(text.to_owned()),
        None if special(text) => Pattern::Glob(text.to_owned()),
        None => Pattern::Exact(text.to_owned()),
    };
    v1::StringMatch {
        pattern: Some(pattern),
    }
}

/// When to stop, and how much the agent may keep meanwhile.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Limits")]
pub(super) struct Bounds {
    /// End after this time, such as `10s` or `5m` [default: when interrupted]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(super) duration: Option<prost_types::Duration>,
    /// End after this many events [default: when interrupted]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) count: Option<u64>,
    /// Bytes of events that the agent keeps while this client does not read; what does not fit is lost, and told [default: 4194304]
    #[arg(long, value_name = "BYTES")]
    queue_bytes: Option<u64>,
    /// Events a second at most; those beyond are lost, and told [default: the agent's limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate_limit: Option<u32>,
    /// Try for so long to go on when the connection breaks, and have the agent keep what happens meanwhile, for 60s at most; with --kube, each node is tried again until the end; 0s: end, with --kube for that node
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(super) reconnect: Duration,
    /// Print what the agent would do, and end [default: no]
    #[arg(long)]
    pub(super) explain: bool,
}

impl Bounds {
    /// Writes the limits into a request.
    pub(super) fn apply(&self, request: &mut v1::SubscribeRequest) {
        let Self {
            duration,
            count,
            queue_bytes,
            rate_limit,
            reconnect: _,
            explain: _,
        } = self;
        request.max_duration = *duration;
        request.max_events = count.unwrap_or(0);
        request.queue_bytes = queue_bytes.unwrap_or(0);
        request.max_events_per_second = rate_limit.unwrap_or(0);
    }
}

pub(super) fn parse_duration(text: &str) -> Result<prost_types::Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write it as in `10s` or `1h 30m`"))?;
    if duration.is_zero() {
        return Err("it is 0; leave the flag out for no limit".to_owned());
    }
    prost_types::Duration::try_from(duration).map_err(|error| error.to_string())
}

/// Reads the name of a kind.
pub(super) fn parse_kind(name: &str) -> Result<v1::Kind, String> {
    text::all_kinds()
        .find(|kind| kind.name() == name)
        .ok_or_else(|| {
            let names: Vec<_> = text::all_kinds().map(v1::Kind::name).collect();
            format!("there is no such kind; there are {}", names.join(", "))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::string_match::Pattern;

    #[test]
    fn text_becomes_the_simplest_test_that_it_can_be() {
        let table = [
            ("nginx", Pattern::Exact("nginx".to_owned())),
            ("", Pattern::Exact(String::new())),
            ("ngin*", Pattern::Prefix("ngin".to_owned())),
            ("/usr/*", Pattern::Prefix("/usr/".to_owned())),
            ("*", Pattern::Prefix(String::new())),
            ("*sh", Pattern::Glob("*sh".to_owned())),
            ("*sh*", Pattern::Glob("*sh*".to_owned())),
            ("a**", Pattern::Glob("a**".to_owned())),
            ("?at", Pattern::Glob("?at".to_owned())),
            ("[ab]x", Pattern::Glob("[ab]x".to_owned())),
            ("{a,b}", Pattern::Glob("{a,b}".to_owned())),
            (r"a\*", Pattern::Glob(r"a\*".to_owned())),
        ];
        for (text, expected) in table {
            assert_eq!(string_match(text).pattern, Some(expected), "{text}");
        }
    }

    #[test]
    fn durations_have_units_and_are_not_zero() {
        assert_eq!(
            parse_duration("1m 500ms"),
            Ok(prost_types::Duration {
                seconds: 60,
                nanos: 500_000_000
            })
        );
        assert_eq!(
            parse_duration("0s"),
            Err("it is 0; leave the flag out for no limit".to_owned())
        );
        assert_eq!(
            parse_duration("10"),
            Err(
                "time unit needed, for example 10sec or 10ms; write it as in `10s` or `1h 30m`"
                    .to_owned()
            )
        );
    }

    #[test]
    fn kinds_have_their_names() {
        assert_eq!(parse_kind("exec"), Ok(v1::Kind::Exec));
        assert_eq!(parse_kind("exit"), Ok(v1::Kind::Exit));
        for name in ["", "EXEC", "unspecified", "forks"] {
            let error = parse_kind(name).expect_err("no kind");
            assert!(
                error.starts_with("there is no such kind; there are exec, exit, fork, "),
                "{error}"
            );
        }
    }
}

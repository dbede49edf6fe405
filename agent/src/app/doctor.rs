//! `dinle doctor`: what a node offers, what it lacks, and how to mend that.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use dinle_proto::v1;
use tokio::time::timeout;

use super::{cgroup_root, node_name, read_trimmed};
use crate::{
    config::sensor,
    control,
    kernel::{Kernel, Options, Sensor},
    workload::{self, Index, Source},
};

/// Where the running kernel shows its types.
const BTF: &str = "/sys/kernel/btf/vmlinux";
/// How long the source of pods may take.
const PODS_MAX: Duration = Duration::from_secs(15);

/// Look at this node as the agent would, and say what works, what does not, and how to mend it. Run it where the agent runs:
/// `kubectl -n dinle exec ds/dinle -- /dinle doctor`.
///
/// Programs are loaded and taken out again; nothing but the tracker of cgroups is attached meanwhile. Exit status: 0 if the agent would
/// see every kind of event and know the pods, 1 if something is missing.
#[derive(Clone, Debug, clap::Args)]
pub struct Doctor {
    /// Where pods are known from, as for `dinle agent` [default: kube in a pod, otherwise none]
    #[arg(long, value_name = "SOURCE", env = "DINLE_PODS")]
    pods: Option<Source>,
    /// Name of this node in Kubernetes [default: the host's name]
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: Option<String>,
    /// Where the node's cgroup2 tree is mounted, as for `dinle agent`
    #[arg(long, value_name = "DIR", env = "DINLE_CGROUP_ROOT")]
    cgroup_root: Option<PathBuf>,
    /// Sensors that the agent is to have, as for `dinle agent`
    #[arg(long, value_name = "SENSOR,…", value_delimiter = ',', default_values_t = Sensor::ALL.to_vec(), value_parser = sensor, env = "DINLE_SENSORS")]
    sensors: Vec<Sensor>,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Fine,
    /// It works, but for something.
    Less,
    Missing,
}

/// What was found out.
#[derive(Debug)]
struct Finding {
    state: State,
    what: String,
    text: String,
    /// What to do about it.
    mend: Option<&'static str>,
}

impl Finding {
    fn fine(what: &str, text: String) -> Self {
        Self {
            state: State::Fine,
            what: what.to_owned(),
            text,
            mend: None,
        }
    }

    fn less(what: &str, text: String, mend: &'static str) -> Self {
        Self {
            state: State::Less,
            mend: Some(mend),
            ..Self::fine(what, text)
        }
    }

    fn missing(what: &str, text: String, mend: &'static str) -> Self {
        Self {
            state: State::Missing,
            ..Self::less(what, text, mend)
        }
    }
}

impl Doctor {
    /// Looks at everything and prints it.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let Self {
            pods,
            node_name: name,
            cgroup_root: root,
            sensors,
        } = self;
        let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        let source = pods.unwrap_or(if in_pod { Source::Kube } else { Source::None });
        let name = node_name(name.as_deref())?;
        let release = read_trimmed("/proc/sys/kernel/osrelease")?;
        let kernel = format!("{release} on {}, node {name}", std::env::consts::ARCH);
        let mut findings = vec![
            Finding::fine("kernel", kernel),
            types(),
            rights(&fs::read_to_string("/proc/self/status").unwrap_or_default()),
            lockdown(fs::read_to_string("/sys/kernel/security/lockdown").ok()),
            jit(read_trimmed("/proc/sys/net/core/bpf_jit_enable").ok()),
        ];
        let index = Index::new(&name);
        findings.push(match cgroup_root(root.as_deref()) {
            Ok(root) => cgroups(&root, &index),
            Err(error) => Finding::missing(
                "cgroups",
                format!("{error:#}"),
                "the chart mounts it; cgroup v1 alone is not enough: the kernel must have mounted cgroup2 somewhere",
            ),
        });
        findings.push(pods_of(source, &index, &name).await);
        findings.extend(kinds(sensors));
        print(&findings, &mut io::stdout().lock())?;
        let missing = findings
            .iter()
            .any(|finding| finding.state == State::Missing);
        Ok(if missing {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }
}

fn types() -> Finding {
    match fs::metadata(BTF) {
        Ok(file) => Finding::fine("types", format!("{BTF}, {} KiB", file.len() >> 10)),
        Err(error) => Finding::missing(
            "types",
            format!("{BTF}: {error}"),
            "use a kernel that is built with CONFIG_DEBUG_INFO_BTF, as those of all current distributions are",
        ),
    }
}

/// Of `/proc/self/status`. Numbers of capabilities: include/uapi/linux/capability.h.
fn rights(status: &str) -> Finding {
    const SYS_ADMIN: u32 = 21;
    const SYSLOG: u32 = 34;
    const PERFMON: u32 = 38;
    const BPF: u32 = 39;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let has = |bit: u32| effective.unwrap_or(0) & 1 << bit != 0;
    let lacks: Vec<&str> = [(BPF, "BPF"), (PERFMON, "PERFMON")]
        .into_iter()
        .filter(|(bit, _)| !has(*bit) && !has(SYS_ADMIN))
        .map(|(_, name)| name)
        .collect();
    if !lacks.is_empty() {
        return Finding::missing(
            "rights",
            format!("no capability {}", lacks.join(" and ")),
            "run it as uid 0 with the capabilities BPF and PERFMON, as the chart does; an admission policy may have taken them away",
        );
    }
    if has(SYSLOG) {
        return Finding::fine("rights", "BPF, PERFMON, SYSLOG".to_owned());
    }
    Finding::less(
        "rights",
        "BPF, PERFMON, but not SYSLOG: places of drops are addresses instead of names".to_owned(),
        "if names are wanted: the chart's value kernelSymbols",
    )
}

/// Of what the security module says, if it is there. `[none] integrity confidentiality`: the one in brackets is in force.
fn lockdown(says: Option<String>) -> Finding {
    let says = says.unwrap_or_default();
    if says.contains("[confidentiality]") {
        return Finding::missing(
            "lockdown",
            "confidentiality: programs may not read the kernel's memory".to_owned(),
            "boot without lockdown=confidentiality; integrity is no obstacle",
        );
    }
    let mode = says.split(['[', ']']).nth(1).unwrap_or("none");
    Finding::fine("lockdown", mode.to_owned())
}

fn jit(enabled: Option<String>) -> Finding {
    match enabled.as_deref() {
        Some("0") => Finding::less(
            "compiler",
            "net.core.bpf_jit_enable is 0: programs are interpreted, which takes several times as long".to_owned(),
            "sysctl net.core.bpf_jit_enable=1",
        ),
        // A kernel that always compiles has no such file in a pod's network namespace.
        _ => Finding::fine("compiler", "programs are compiled".to_owned()),
    }
}

fn cgroups(root: &Path, index: &Index) -> Finding {
    let found = match index.walk(root) {
        Ok(found) => found,
        Err(error) => {
            return Finding::missing(
                "cgroups",
                format!("{}: {error}", root.display()),
                "mount the node's cgroup2 tree read-only, as the chart does",
            );
        }
    };
    let live = index.live();
    let count = |state: v1::IdentityState| {
        live.iter()
            .filter(|live| live.workload.state() == state)
            .count()
    };
    // Nobody has told of pods yet: what looks like one by its path is pending.
    let of_pods = count(v1::IdentityState::Pending);
    let systemd = live
        .iter()
        .any(|live| live.workload.cgroup_path.contains("kubepods.slice"));
    let driver = if systemd { "systemd" } else { "cgroupfs" };
    let text = format!(
        "cgroup2 at {}, {found} cgroups as {driver} names them, {of_pods} of pods and containers",
        root.display()
    );
    match of_pods {
        0 => Finding::less(
            "cgroups",
            text,
            "on a node of a cluster this is wrong: mount the node's own tree, not that of the pod's cgroup namespace",
        ),
        _ => Finding::fine("cgroups", text),
    }
}

async fn pods_of(source: Source, index: &Index, node: &str) -> Finding {
    if matches!(source, Source::None) {
        return Finding::less(
            "pods",
            "no source: events have ids of pods instead of names".to_owned(),
            "in a cluster: --pods kube",
        );
    }
    let named = source.to_string();
    let follow = workload::run(source, index.clone(), node.to_owned());
    let told = async {
        tokio::select! {
            _ = follow => {}
            () = told(index) => {}
        }
    };
    // What is known by then is what counts.
    _ = timeout(PODS_MAX, told).await;
    let v1::PodSource {
        synced,
        pods,
        error,
        ..
    } = index.status();
    if synced && pods > 0 {
        return Finding::fine(
            "pods",
            format!("{named} tells of {pods} pods of node {node}"),
        );
    }
    if synced {
        return Finding::missing(
            "pods",
            format!("{named} tells of no pod of node {node}"),
            "the name must be the node's in Kubernetes: --node-name, or NODE_NAME from the downward API",
        );
    }
    let why = if error.is_empty() {
        format!("no answer within {} s", PODS_MAX.as_secs())
    } else {
        error
    };
    Finding::missing(
        "pods",
        format!("{named}: {why}"),
        "the service account must be allowed to get, list and watch pods, and the API server be reachable",
    )
}

/// Waits until the source has told of pods, or what keeps it from that.
async fn told(index: &Index) {
    loop {
        let v1::PodSource { synced, error, .. } = index.status();
        if synced || !error.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Loads the programs. One finding for each kind.
fn kinds(sensors: Vec<Sensor>) -> Vec<Finding> {
    let options = Options {
        sensors,
        ..Options::default()
    };
    let mut kernel = match Kernel::load(&options) {
        Ok(kernel) => kernel,
        Err(error) => {
            return vec![Finding::missing(
                "programs",
                error.to_string(),
                "see what is missing above",
            )];
        }
    };
    let capabilities =
        control::node(&kernel.programs.status(), kernel.programs.kinds()).capabilities;
    let offered = capabilities
        .iter()
        // Whoever left a sensor out knows.
        .filter(|capability| capability.available || !capability.hooks.is_empty());
    offered.map(kind).collect()
}

fn kind(capability: &v1::Capability) -> Finding {
    let name = capability.kind().name();
    if !capability.available {
        return Finding::missing(
            &name,
            capability.reason.clone(),
            "docs/kernels.md says which kernels have it",
        );
    }
    let mut hooks: Vec<String> = Vec::new();
    for hook in &capability.hooks {
        let hook = format!("{} ({})", hook.name, hook.chosen);
        if !hooks.contains(&hook) {
            hooks.push(hook);
        }
    }
    let text = hooks.join(", ");
    let better = |limit: &&String| limit.starts_with("a better way is not open");
    match capability.limits.iter().find(better) {
        Some(limit) => Finding::less(
            &name,
            format!("{text}; {limit}"),
            "`dinle watch --explain` says what this way cannot see",
        ),
        None => Finding::fine(&name, text),
    }
}

fn print(findings: &[Finding], out: &mut dyn Write) -> io::Result<()> {
    let width = findings
        .iter()
        .map(|finding| finding.what.len())
        .max()
        .unwrap_or(0);
    for finding in findings {
        let Finding {
            state,
            what,
            text,
            mend,
        } = finding;
        let state = match state {
            State::Fine => "ok",
            State::Less => "less",
            State::Missing => "MISSING",
        };
        writeln!(out, "{state:7}  {what:width$}  {text}")?;
        if let Some(mend) = mend {
            writeln!(out, "{:7}  {:width$}  -> {mend}", "", "")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(finding: &Finding) -> (State, &str) {
        (finding.state, &finding.text)
    }

    #[test]
    fn rights_are_read_from_the_effective_set() {
        let status = |bits: &[u32]| {
            let set: u64 = bits.iter().map(|bit| 1 << bit).sum();
            rights(&format!(
                "Name:\tdinle\nCapInh:\tffffffffffffffff\nCapEff:\t{set:016x}\n"
            ))
        };
        assert_eq!(
            found(&status(&[38, 39, 34])),
            (State::Fine, "BPF, PERFMON, SYSLOG")
        );
        assert_eq!(status(&[38, 39]).state, State::Less);
        assert_eq!(
            status(&[21, 34]).state,
            State::Fine,
            "SYS_ADMIN stands for both"
        );
        assert_eq!(
            found(&status(&[39])),
            (State::Missing, "no capability PERFMON")
        );
        assert_eq!(
            found(&status(&[])),
            (State::Missing, "no capability BPF and PERFMON")
        );
        assert_eq!(rights("").state, State::Missing);
    }

    #[test]
    fn lockdown_is_an_obstacle_only_at_its_highest() {
        let says = |text: &str| lockdown(Some(text.to_owned()));
        assert_eq!(
            found(&says("[none] integrity confidentiality")),
            (State::Fine, "none")
        );
        assert_eq!(
            found(&says("none [integrity] confidentiality")),
            (State::Fine, "integrity")
        );
        assert_eq!(
            says("none integrity [confidentiality]").state,
            State::Missing
        );
        assert_eq!(found(&lockdown(None)), (State::Fine, "none"));
    }

    #[test]
    fn a_kind_that_has_no_way_is_missing_and_one_that_has_a_worse_one_is_less() {
        let capability = |available, limits: &[&str]| v1::Capability {
            kind: v1::Kind::FileDelete.into(),
            available,
            reason: "no way".to_owned(),
            hooks: vec![v1::Hook {
                name: "sys_exit".to_owned(),
                chosen: "tp_btf".to_owned(),
                ways: Vec::new(),
            }],
            limits: limits.iter().map(|limit| (*limit).to_owned()).collect(),
        };
        let fine = kind(&capability(true, &["something is cut"]));
        assert_eq!(found(&fine), (State::Fine, "sys_exit (tp_btf)"));
        assert_eq!(fine.what, "file_delete");
        assert_eq!(
            found(&kind(&capability(
                true,
                &["a better way is not open: no kprobes"]
            ))),
            (
                State::Less,
                "sys_exit (tp_btf); a better way is not open: no kprobes"
            )
        );
        assert_eq!(
            found(&kind(&capability(false, &[]))),
            (State::Missing, "no way")
        );
    }
}

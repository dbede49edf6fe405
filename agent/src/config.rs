//! Every knob of the agent: its default, its unit, its reason.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;

use crate::{
    kernel::{Options, Way},
    workload::Source,
};

/// How long streams get to end by themselves when the agent is told to stop. Below Kubernetes' default grace period of 30 s.
pub const DRAIN: Duration = Duration::from_secs(10);

/// Listen to this node and serve what happens to subscribers.
#[derive(Args, Clone, Debug)]
#[command(
    long_about = "Listens to this node and serves what happens over gRPC (dinle.v1.Observer).\n\n\
        Programs are loaded at the start and attached only while somebody subscribes. Needs root, or CAP_BPF and CAP_PERFMON, \
        and a kernel of 5.8 or later with BTF.\n\n\
        Examples:\n  \
        dinle agent                                  pods from the API server, as in a DaemonSet\n  \
        dinle agent --pods file:pods.json            pods from `kubectl get pods -A -o json`\n  \
        dinle agent --pods none                      no names, only cgroups\n  \
        dinle agent --check                          say what this kernel offers, and end\n\n\
        On SIGTERM or SIGINT streams get their final books, for at most 10 s. RUST_LOG sets what is logged (default: info)."
)]
pub struct Config {
    /// Address of the gRPC service. Anything but loopback needs --insecure: nobody is asked who they are.
    #[arg(
        long,
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:4380",
        env = "DINLE_LISTEN"
    )]
    pub listen: SocketAddr,
    /// Address of /metrics, /healthz and /readyz. They tell counts, never events or names of pods.
    #[arg(
        long,
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:4381",
        env = "DINLE_HTTP"
    )]
    pub http: SocketAddr,
    /// Serve gRPC without encryption or authentication to whoever can reach --listen.
    #[arg(long)]
    pub insecure: bool,
    /// Where pods are known from: `kube`, `file:PATH` (output of `kubectl get pods -o json`, read again when it changes) or `none`.
    #[arg(
        long,
        value_name = "SOURCE",
        default_value = "kube",
        env = "DINLE_PODS"
    )]
    pub pods: Source,
    /// Name of this node in Kubernetes. Default: the host's name.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// The node's cgroup2 tree. Default: /host/sys/fs/cgroup where that is mounted, else /sys/fs/cgroup; `unified` below it on
    /// hybrid machines.
    #[arg(long, value_name = "DIR", env = "DINLE_CGROUP_ROOT")]
    pub cgroup_root: Option<PathBuf>,
    /// Size of the kernel's ring buffer in bytes: a power of two from 65536 to 1073741824.
    #[arg(long, value_name = "BYTES", default_value_t = Options::RING_BYTES, env = "DINLE_RING_BYTES")]
    pub ring_bytes: u32,
    /// Ways to attach that may be used, in the order in which they are tried.
    #[arg(long, value_name = "WAY,…", value_delimiter = ',', default_values_t = Way::ALL.to_vec())]
    pub ways: Vec<Way>,
    /// How long programs stay attached after their last subscriber has left.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    pub linger: Duration,
    /// Load every program, print what this kernel takes, and end.
    #[arg(long)]
    pub check: bool,
    /// Log as JSON, one object a line.
    #[arg(long, env = "DINLE_LOG_JSON")]
    pub log_json: bool,
}

impl Config {
    /// Refuses what would expose the node's events to strangers.
    pub fn check_listen(&self) -> Result<(), String> {
        if self.listen.ip().is_loopback() || self.insecure {
            return Ok(());
        }
        Err(format!(
            "--listen {} is not a loopback address, and whoever reaches it could read what runs on this node; listen on 127.0.0.1 \
             and use `kubectl port-forward`, or say --insecure if the network keeps strangers away",
            self.listen
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        config: Config,
    }

    fn parse(args: &[&str]) -> Result<Config, clap::Error> {
        let args = ["agent"].iter().chain(args);
        Cli::try_parse_from(args).map(|cli| cli.config)
    }

    #[test]
    fn only_loopback_is_served_unless_told_otherwise() {
        for (args, served) in [
            (&[][..], true),
            (&["--listen", "[::1]:1"], true),
            (&["--listen", "127.0.0.5:1"], true),
            (&["--listen", "0.0.0.0:1"], false),
            (&["--listen", "[::]:1"], false),
            (&["--listen", "10.0.0.1:1"], false),
            (&["--listen", "0.0.0.0:1", "--insecure"], true),
        ] {
            let checked = parse(args).expect("flags").check_listen();
            assert_eq!(checked.is_ok(), served, "{args:?}");
            if let Err(error) = checked {
                assert!(
                    error.contains(args[1]) && error.contains("--insecure"),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn wrong_flags_say_what_is_right() {
        for (args, hint) in [
            (["--pods", "cube"], "file:PATH"),
            (["--ways", "ftrace"], "tp_btf"),
            (["--listen", "localhost"], "--listen"),
            (["--linger", "soon"], "--linger"),
        ] {
            let error = parse(&args).expect_err("refused").to_string();
            assert!(error.contains(hint), "{args:?}: {error}");
        }
    }
}

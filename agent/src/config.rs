//! Every knob of the agent: its default, its unit, its reason.

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, value_parser};

use crate::{
    filter,
    hub::{self, LISTENERS_MAX},
    kernel::{Options, Sensor, Way},
    listen::{Access, Address, Files},
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
    /// Where the gRPC service is: ADDR:PORT, tls:ADDR:PORT with the certificate of --tls-cert, or unix:PATH; several, separated by
    /// commas. Anything but loopback needs a tls: with --tls-client-ca or --auth kube, or --insecure: else nobody is asked who they are.
    #[arg(
        long,
        value_name = "WHERE,…",
        value_delimiter = ',',
        default_value = "127.0.0.1:4380",
        env = "DINLE_LISTEN"
    )]
    pub listen: Vec<Address>,
    /// Address of /metrics, /healthz and /readyz. They tell counts, never events; names of pods only in /metrics/NAME of an exporter
    /// `prometheus` of --exporters.
    #[arg(
        long,
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:4381",
        env = "DINLE_HTTP"
    )]
    pub http: SocketAddr,
    /// Serve gRPC to whoever can reach --listen, without asking who they are.
    #[arg(long)]
    pub insecure: bool,
    /// Certificates for tls: in --listen, PEM. Read again when they change; connections that are open stay.
    #[arg(
        long,
        value_name = "FILE",
        requires = "tls_key",
        env = "DINLE_TLS_CERT"
    )]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's key, PEM.
    #[arg(
        long,
        value_name = "FILE",
        requires = "tls_cert",
        env = "DINLE_TLS_KEY"
    )]
    pub tls_key: Option<PathBuf>,
    /// Take only clients with a certificate that these authorities have signed, PEM. With --auth kube also those with a token.
    #[arg(
        long,
        value_name = "FILE",
        requires = "tls_cert",
        env = "DINLE_TLS_CLIENT_CA"
    )]
    pub tls_client_ca: Option<PathBuf>,
    /// Whether callers must say who they are: `none`, or `kube`, which asks the API server whose token it is (TokenReview), or takes the
    /// name in a certificate of --tls-client-ca, and what that user may watch (SubjectAccessReview). Whoever can open the socket of unix:
    /// without a token may watch everything. Of exporters it is asked what the user dinle:exporter:NAME may.
    #[arg(
        long,
        value_name = "HOW",
        value_enum,
        default_value_t,
        env = "DINLE_AUTH"
    )]
    pub auth: AuthMode,
    /// Audiences of which a token has to be meant for one.
    #[arg(
        long,
        value_name = "AUDIENCE,…",
        value_delimiter = ',',
        default_value = "dinle",
        env = "DINLE_AUTH_AUDIENCES"
    )]
    pub auth_audiences: Vec<String>,
    /// How long a stream goes on while the API server cannot be asked whether it still may. New ones are refused at once.
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = humantime::parse_duration, env = "DINLE_AUTH_GRACE")]
    pub auth_grace: Duration,
    /// Permissions of the socket of unix:PATH, octal.
    #[arg(long, value_name = "MODE", default_value = "0600", value_parser = mode)]
    pub socket_mode: u32,
    /// Group of that socket, by name or number. Default: the agent's own.
    #[arg(long, value_name = "GROUP", value_parser = group)]
    pub socket_group: Option<u32>,
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
    /// Sensors that may be listened to: process, file, tcp, block, drop. Probes of others are not even loaded.
    #[arg(long, value_name = "SENSOR,…", value_delimiter = ',', default_values_t = Sensor::ALL.to_vec(), value_parser = sensor, env = "DINLE_SENSORS")]
    pub sensors: Vec<Sensor>,
    /// Streams that may be open at a time, at most 64. One more is refused with RESOURCE_EXHAUSTED.
    #[arg(long, value_name = "N", default_value_t = LISTENERS_MAX as u64, value_parser = value_parser!(u64).range(1..=LISTENERS_MAX as u64), env = "DINLE_MAX_STREAMS")]
    pub max_streams: u64,
    /// Those of one user, who is known by a certificate or at a Unix socket.
    #[arg(long, value_name = "N", default_value_t = hub::Limits::STREAMS_PER_USER as u64, value_parser = value_parser!(u64).range(1..), env = "DINLE_MAX_STREAMS_PER_USER")]
    pub max_streams_per_user: u64,
    /// Bytes that may wait for all streams together, at least 65536. A stream asks for a queue of 4194304, or of all there is, unless its client says otherwise.
    #[arg(long, value_name = "BYTES", default_value_t = hub::Limits::QUEUE_BYTES, value_parser = value_parser!(u64).range(65536..), env = "DINLE_MAX_QUEUE_BYTES")]
    pub max_queue_bytes: u64,
    /// Events a second that one stream may be sent; those beyond are counted as lost [default: no limit]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..), env = "DINLE_MAX_EVENTS_PER_SECOND")]
    pub max_events_per_second: Option<u32>,
    /// Events a second of each kind that one pod may have told, to all streams together, and as many at once; all processes outside pods count as
    /// one. Those beyond are left out in the kernel, and counted as lost [default: no limit]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=1_000_000_000), env = "DINLE_MAX_POD_EVENTS_PER_SECOND")]
    pub max_pod_events_per_second: Option<u32>,
    /// Bytes that a request may have, from 4096 to 4194304. A larger one is not read.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, value_parser = value_parser!(u64).range(4096..=4 << 20), env = "DINLE_MAX_REQUEST_BYTES")]
    pub max_request_bytes: u64,
    /// Elements that each list of a selector or a filter may have: an event is compared with all of them.
    #[arg(long, value_name = "N", default_value_t = filter::Limits::ELEMENTS as u64, value_parser = value_parser!(u64).range(1..=4096), env = "DINLE_MAX_FILTER_ELEMENTS")]
    pub max_filter_elements: u64,
    /// What programs in the kernel and the agent's own threads may take together, in per cent of one CPU. Above it the streams that cost most are
    /// told less, step by step: 100 events a second of each pod, counts alone, nothing; and more again when there is room. Programs are measured
    /// where the agent has CAP_SYS_ADMIN, or the node sets kernel.bpf_stats_enabled=1 [default: no budget]
    #[arg(long, value_name = "PERCENT", value_parser = percent, env = "DINLE_BUDGET_CPU")]
    pub budget_cpu: Option<f64>,
    /// File that says what the agent itself exports, and where to: see docs/exporters.md. Read again when it changes. `dinle config check` says
    /// whether it is right.
    #[arg(long, value_name = "FILE", env = "DINLE_EXPORTERS")]
    pub exporters: Option<PathBuf>,
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

/// Whether callers must say who they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum AuthMode {
    /// Whoever can connect is told everything.
    #[default]
    None,
    /// The API server is asked.
    Kube,
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    match number.parse() {
        // Of so many CPUs.
        Ok(percent) if (0.01..=100_000.0).contains(&percent) => Ok(percent),
        _ => Err("write per cent of one CPU, as in 2.5: 0.01 at least".to_owned()),
    }
}

fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("write three octal digits, as in 0660".to_owned()),
    }
}

/// A static binary cannot ask the C library, which would load others: the file is all there is.
fn group(text: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let number = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(text)).then(|| fields.nth(1)?.parse().ok())?
    });
    number.ok_or_else(|| "/etc/group has no such group; write its number".to_owned())
}

/// Reads a sensor's name.
pub(crate) fn sensor(text: &str) -> Result<Sensor, String> {
    let mut all = Sensor::ALL.iter().copied();
    all.find(|sensor| sensor.name() == text).ok_or_else(|| {
        let known: Vec<_> = Sensor::ALL.iter().map(|sensor| sensor.name()).collect();
        format!("`{text}` is no sensor; there are {}", known.join(", "))
    })
}

impl Config {
    /// Refuses what would expose the node's events to strangers, and what contradicts itself.
    pub fn check_listen(&self) -> Result<(), String> {
        let tls = self
            .listen
            .iter()
            .find(|address| matches!(address, Address::Tls(_)));
        match (tls, &self.tls_cert) {
            (Some(address), None) => {
                return Err(format!(
                    "--listen {address} needs a certificate: name its files with --tls-cert and --tls-key"
                ));
            }
            (None, Some(_)) => {
                return Err("--tls-cert is for an address with TLS, but --listen names none: write tls:ADDR:PORT there".to_owned());
            }
            _ => {}
        }
        for address in &self.listen {
            let (ip, asked) = match address {
                Address::Unix(_) => continue,
                Address::Tcp(address) => (address.ip(), false),
                // A token must not be read on its way.
                Address::Tls(address) => {
                    let asked = self.tls_client_ca.is_some() || self.auth == AuthMode::Kube;
                    (address.ip(), asked)
                }
            };
            if !ip.is_loopback() && !asked && !self.insecure {
                return Err(format!(
                    "--listen {address} is not a loopback address, and whoever reaches it could read what runs on this node; listen on \
                     127.0.0.1 and use `kubectl port-forward`, or on tls:ADDR:PORT with --tls-client-ca or --auth kube, or say --insecure if the \
                     network keeps strangers away"
                ));
            }
        }
        Ok(())
    }

    /// What all streams together may take.
    pub fn stream_limits(&self) -> hub::Limits {
        hub::Limits {
            streams: self.max_streams as usize,
            streams_per_user: self.max_streams_per_user as usize,
            queue_bytes: self.max_queue_bytes,
        }
    }

    /// What one request may ask for.
    pub fn request_limits(&self) -> filter::Limits {
        let most = filter::Limits::default().queue_bytes_max;
        filter::Limits {
            // What does not fit into an empty agent is no matter of time.
            queue_bytes_max: most.min(self.max_queue_bytes),
            events_per_second_max: self.max_events_per_second,
            elements_max: self.max_filter_elements as usize,
        }
    }

    /// Files for TLS.
    pub fn tls(&self) -> Option<Files> {
        let (certificate, key) = self.tls_cert.clone().zip(self.tls_key.clone())?;
        Some(Files {
            certificate,
            key,
            client_ca: self.tls_client_ca.clone(),
            client_may_show_none: self.auth == AuthMode::Kube,
        })
    }

    /// Who may open the socket.
    pub fn access(&self) -> Access {
        Access {
            mode: self.socket_mode,
            group: self.socket_group,
        }
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
        const TLS: [&str; 4] = ["--tls-cert", "c", "--tls-key", "k"];
        for (args, served) in [
            (&[][..], true),
            (&["--listen", "127.0.0.1:1,unix:/run/dinle.sock"], true),
            (&["--listen", "127.0.0.1:1,0.0.0.0:2"], false),
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
                let address = args[1].rsplit(',').next().expect("an address");
                assert!(
                    error.contains(address) && error.contains("--insecure"),
                    "{error}"
                );
            }
        }
        for (args, served) in [
            (&["--listen", "tls:[::1]:1"][..], true),
            (&["--listen", "tls:0.0.0.0:1", "--tls-client-ca", "a"], true),
            (&["--listen", "tls:0.0.0.0:1", "--insecure"], true),
            (&["--listen", "tls:0.0.0.0:1", "--auth", "kube"], true),
            // A token would be read by whoever listens in.
            (
                &["--auth", "kube", "--listen", "tls:127.0.0.1:1,0.0.0.0:2"],
                false,
            ),
            // Who they are is asked of nobody.
            (&["--listen", "tls:0.0.0.0:1"], false),
            (
                &[
                    "--listen",
                    "tls:0.0.0.0:1,0.0.0.0:2",
                    "--tls-client-ca",
                    "a",
                ],
                false,
            ),
        ] {
            let args = [args, &TLS[..]].concat();
            let checked = parse(&args).expect("flags").check_listen();
            assert_eq!(checked.is_ok(), served, "{args:?}: {checked:?}");
        }
        for (args, hint) in [
            (
                &["--listen", "tls:127.0.0.1:1"][..],
                "--tls-cert and --tls-key",
            ),
            (&TLS[..], "tls:ADDR:PORT"),
        ] {
            let error = parse(args)
                .expect("flags")
                .check_listen()
                .expect_err("a contradiction");
            assert!(error.contains(hint), "{error}");
        }
    }

    #[test]
    fn each_limit_is_the_flags() {
        let config = parse(&[
            "--max-streams",
            "3",
            "--max-streams-per-user",
            "2",
            "--max-queue-bytes",
            "70000",
            "--max-events-per-second",
            "5",
            "--socket-mode",
            "0660",
            "--socket-group",
            "7",
            "--max-filter-elements",
            "7",
        ])
        .expect("flags");
        let limits = hub::Limits {
            streams: 3,
            streams_per_user: 2,
            queue_bytes: 70000,
        };
        assert_eq!(config.stream_limits(), limits);
        let limits = filter::Limits {
            queue_bytes_max: 70000,
            events_per_second_max: Some(5),
            elements_max: 7,
        };
        assert_eq!(config.request_limits(), limits);
        let Access { mode, group } = config.access();
        assert_eq!((mode, group), (0o660, Some(7)));
        let all = parse(&[]).expect("no flags");
        assert_eq!(all.request_limits(), filter::Limits::default());
    }

    #[test]
    fn wrong_flags_say_what_is_right() {
        for (args, hint) in [
            (["--pods", "cube"], "file:PATH"),
            (["--ways", "ftrace"], "tp_btf"),
            (["--sensors", "files"], "process, file, tcp"),
            (["--listen", "localhost"], "--listen"),
            (["--linger", "soon"], "--linger"),
            (
                ["--listen", "tls:unix:/run/dinle.sock"],
                "needs no TLS: write unix:PATH",
            ),
            (["--listen", "unix:"], "no path"),
            (["--tls-cert", "c"], "--tls-key"),
            (["--tls-client-ca", "a"], "--tls-cert"),
            (["--max-streams", "65"], "1..=64"),
            (["--max-streams-per-user", "0"], "--max-streams-per-user"),
            (["--max-queue-bytes", "1000"], "65536"),
            (["--socket-mode", "1777"], "0660"),
            (["--budget-cpu", "0"], "0.01 at least"),
            (["--budget-cpu", "NaN"], "as in 2.5"),
            (["--max-pod-events-per-second", "0"], "1..="),
            (["--auth", "token"], "none, kube"),
            (["--socket-group", "nobody-has-this"], "/etc/group"),
        ] {
            let error = parse(&args).expect_err("refused").to_string();
            assert!(error.contains(hint), "{args:?}: {error}");
        }
    }
}

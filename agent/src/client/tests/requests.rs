//! From arguments to requests.

use clap::CommandFactory as _;
use dinle_proto::v1::{self, string_match::Pattern};

use super::{super::text, Cli, Command, parse};

fn request(line: &str) -> v1::SubscribeRequest {
    let arguments: Vec<_> = line.split(' ').collect();
    match parse(&arguments).unwrap_or_else(|error| panic!("{line}: {error}")) {
        Command::Watch(watch) => watch.request(),
        Command::Execsnoop(execsnoop) => execsnoop.request(),
        Command::Opensnoop(tool) => tool.request(),
        Command::Filesnoop(tool) => tool.request(),
        Command::Tcplife(tool) => tool.request(),
        Command::Tcpreset(tool) => tool.request(),
        Command::Tcpretrans(tool) => tool.request(),
        Command::Biosnoop(tool) => tool.request(),
        Command::Biolatency(tool) => tool.request(),
        Command::Top(top) => top.request(),
        Command::Pktdrop(pktdrop) => pktdrop.request(),
        other => panic!("{other:?} is not tested here"),
    }
}

/// What is asked for when nothing is said.
fn default() -> v1::SubscribeRequest {
    v1::SubscribeRequest {
        selector: Some(v1::Selector {
            host_processes: v1::HostProcesses::Exclude.into(),
            ..Default::default()
        }),
        kinds: vec![v1::Kind::Exec.into(), v1::Kind::Exit.into()],
        filter: Some(v1::Filter::default()),
        identity_mode: v1::IdentityMode::ByReference.into(),
        heartbeat_interval: Some(prost_types::Duration {
            seconds: 3,
            nanos: 0,
        }),
        ..Default::default()
    }
}

fn only(kind: v1::Kind) -> v1::SubscribeRequest {
    v1::SubscribeRequest {
        kinds: vec![kind.into()],
        ..default()
    }
}

fn selecting(change: impl FnOnce(&mut v1::Selector)) -> v1::SubscribeRequest {
    let mut request = default();
    change(request.selector.get_or_insert_default());
    request
}

fn filtering(
    mut request: v1::SubscribeRequest,
    change: impl FnOnce(&mut v1::Filter),
) -> v1::SubscribeRequest {
    change(request.filter.get_or_insert_default());
    request
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn pattern(pattern: Pattern) -> v1::StringMatch {
    v1::StringMatch {
        pattern: Some(pattern),
    }
}

#[test]
fn each_flag_fills_its_field() {
    let pid = |pid, descendants| v1::PidMatch { pid, descendants };
    let inline = v1::IdentityMode::Inline.into();
    let table = [
        ("watch", default()),
        ("watch -A", default()),
        ("watch --kinds exit", only(v1::Kind::Exit)),
        ("watch --kinds exec,exit", default()),
        (
            "watch -n shop,bank --namespace other",
            selecting(|s| s.namespaces = texts(&["shop", "bank", "other"])),
        ),
        (
            "watch -p db-* web-1 pod/web-2",
            selecting(|s| s.pods = texts(&["db-*", "web-1", "web-2"])),
        ),
        (
            "watch -p db-* deploy/checkout sts/db --owner ds/x",
            selecting(|s| {
                s.pods = texts(&["db-*"]);
                s.owners = texts(&["ds/x", "deploy/checkout", "sts/db"]);
            }),
        ),
        (
            "watch -l app=checkout,!canary",
            selecting(|s| s.label_selector = "app=checkout,!canary".to_owned()),
        ),
        (
            "watch -p web-{0,1} --pod db-*",
            selecting(|s| s.pods = texts(&["web-{0,1}", "db-*"])),
        ),
        (
            "watch -c app",
            selecting(|s| s.containers = texts(&["app"])),
        ),
        (
            "watch --owner deploy/x --owner sts/y",
            selecting(|s| s.owners = texts(&["deploy/x", "sts/y"])),
        ),
        (
            "watch --host",
            selecting(|s| s.host_processes = v1::HostProcesses::Include.into()),
        ),
        (
            "watch --host=only",
            selecting(|s| s.host_processes = v1::HostProcesses::Only.into()),
        ),
        (
            "watch --comm nginx --comm ngin*",
            filtering(default(), |f| {
                f.comm = vec![
                    pattern(Pattern::Exact("nginx".to_owned())),
                    pattern(Pattern::Prefix("ngin".to_owned())),
                ];
            }),
        ),
        (
            "watch -u 0,1000 --uid 7",
            filtering(default(), |f| f.uids = vec![0, 1000, 7]),
        ),
        (
            "watch --pid 1,2",
            filtering(default(), |f| {
                f.pids = vec![pid(1, false), pid(2, false)];
            }),
        ),
        (
            "watch --pid 1 --descendants",
            filtering(default(), |f| f.pids = vec![pid(1, true)]),
        ),
        (
            "watch --binary /bin/{a,b}",
            filtering(only(v1::Kind::Exec), |f| {
                f.binary = vec![pattern(Pattern::Glob("/bin/{a,b}".to_owned()))];
            }),
        ),
        (
            "watch -x",
            filtering(only(v1::Kind::Exit), |f| f.exit_failed = true),
        ),
        (
            // The agent refuses it with the reason.
            "watch --kinds exec --failed",
            filtering(only(v1::Kind::Exec), |f| f.exit_failed = true),
        ),
        (
            "watch --duration 1500ms --count 23 --queue-bytes 65536 --rate-limit 100 -o json",
            v1::SubscribeRequest {
                max_duration: Some(prost_types::Duration {
                    seconds: 1,
                    nanos: 500_000_000,
                }),
                max_events: 23,
                queue_bytes: 65_536,
                max_events_per_second: 100,
                identity_mode: inline,
                ..default()
            },
        ),
        ("watch -o wide", default()),
        (
            "watch -o jsonpath={.process.comm}",
            v1::SubscribeRequest {
                identity_mode: inline,
                ..default()
            },
        ),
        ("execsnoop", only(v1::Kind::Exec)),
        (
            "execsnoop -o json -T -U -q --max-args 3",
            v1::SubscribeRequest {
                identity_mode: inline,
                ..only(v1::Kind::Exec)
            },
        ),
        (
            "execsnoop --binary /bin/sh -u 5",
            filtering(only(v1::Kind::Exec), |f| {
                f.binary = vec![pattern(Pattern::Exact("/bin/sh".to_owned()))];
                f.uids = vec![5];
            }),
        ),
        ("pktdrop", only(v1::Kind::DropCount)),
        (
            "pktdrop -i 10s --reason NO_SOCKET,TCP_* --port 53,5432",
            v1::SubscribeRequest {
                interval: Some(prost_types::Duration {
                    seconds: 10,
                    nanos: 0,
                }),
                ..filtering(only(v1::Kind::DropCount), |f| {
                    f.reason = vec![
                        pattern(Pattern::Exact("NO_SOCKET".to_owned())),
                        pattern(Pattern::Prefix("TCP_".to_owned())),
                    ];
                    f.ports = vec![53, 5432];
                })
            },
        ),
        ("pktdrop --samples -o wide", only(v1::Kind::Drop)),
    ];
    for (line, expected) in table {
        assert_eq!(request(line), expected, "{line}");
    }
}

#[test]
fn each_flag_of_the_tools_for_tcp_fills_its_field() {
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let life = || v1::SubscribeRequest {
        kinds: vec![v1::Kind::TcpSession.into(), v1::Kind::TcpConnect.into()],
        ..default()
    };
    let table = [
        ("tcplife", life()),
        ("tcplife -x", only(v1::Kind::TcpConnect)),
        (
            "tcplife --min-duration 10s",
            filtering(only(v1::Kind::TcpSession), |f| {
                f.min_duration = seconds(10);
            }),
        ),
        (
            "tcplife --interval 5s",
            v1::SubscribeRequest {
                interval: seconds(5),
                ..life()
            },
        ),
        (
            "tcplife -L 80,8080 -D 5432 --port 1 --uid 7",
            filtering(life(), |f| {
                f.local_ports = vec![80, 8080];
                f.remote_ports = vec![5432];
                f.ports = vec![1];
                f.uids = vec![7];
            }),
        ),
        ("tcpreset", only(v1::Kind::TcpReset)),
        (
            "tcpreset -L 80",
            filtering(only(v1::Kind::TcpReset), |f| f.local_ports = vec![80]),
        ),
        ("tcpretrans", only(v1::Kind::TcpRetransmit)),
        (
            "tcpretrans --remote-port 443",
            filtering(only(v1::Kind::TcpRetransmit), |f| {
                f.remote_ports = vec![443];
            }),
        ),
    ];
    for (line, expected) in table {
        assert_eq!(request(line), expected, "{line}");
    }
}

#[test]
fn arguments_that_cannot_be_are_refused() {
    let table = [
        ("watch -A -n shop", "cannot be used with"),
        ("watch --descendants", "--pid <PID>"),
        ("watch --pid 0", "0 is not in 1.."),
        ("watch --count 0", "0 is not in 1.."),
        ("watch --duration 0s", "it is 0; leave the flag out"),
        ("watch --duration 10", "time unit needed"),
        (
            "watch --kinds forks",
            "there is no such kind; there are exec, exit, fork, file_open",
        ),
        ("watch --failed --binary x", "cannot be used with"),
        ("watch --host only", "cannot be used with"),
        ("watch -o yaml", "invalid value 'yaml'"),
        ("watch --address ftp://x", "there are `http://host:port`"),
        (
            "watch --address unix:x",
            "write the whole path of the socket",
        ),
        (
            "watch --address x --tls-ca f",
            "--tls-ca is for an address with TLS",
        ),
        (
            "watch --address https://x --tls-client-cert f",
            "--tls-client-key",
        ),
        ("top disk -i 500ms", "it is from 1s to 1h"),
        ("top disk -i 3601s", "it is from 1s to 1h"),
        ("top process -i 9223372036854775807s", "it is from 1s to 1h"),
        ("pktdrop --samples -i 10s", "cannot be used with"),
        ("pktdrop --port 0", "0 is not in 1.."),
        ("execsnoop -x", "unexpected argument '-x'"),
        ("execsnoop --max-args 0", "0 would leave nothing"),
        ("tcplife -x --min-duration 1s", "cannot be used with"),
        ("tcplife -L 0", "0 is not in 1..=65535"),
        (
            "workloads -o name",
            "there are table|wide|json|jsonpath=TEMPLATE",
        ),
        (
            "watch -o jsonpath=.process.comm",
            "it names no field; put a path in braces",
        ),
        ("watch -o jsonpath={.process", "has no closing brace"),
        ("status -o jsonpath={status}", "it begins with a dot"),
        (
            "watch --kube --address n1",
            "--address names one agent, and --kube asks those of a cluster: leave one of them out",
        ),
        (
            "top disk --address n1 --kube-context c",
            "and --kube-context asks",
        ),
        (
            "selftest --kubeconfig f --address n1",
            "and --kubeconfig asks",
        ),
    ];
    for (line, expected) in table {
        let arguments: Vec<_> = line.split(' ').collect();
        let error = parse(&arguments).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
        assert!(error.to_string().contains(expected), "{line}: {error}");
    }
}

#[test]
fn the_arguments_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn help_is_worth_reading() {
    let cli = Cli::command();
    for command in cli.get_subcommands() {
        let name = command.get_name();
        let about = command.get_about().map(ToString::to_string);
        let long = command.get_long_about().map(ToString::to_string);
        let (about, long) = about.zip(long).unwrap_or_else(|| panic!("{name} has none"));
        assert_eq!(about.lines().count(), 1, "{name}: {about}");
        assert_eq!(
            long.matches(&format!("\n  dinle {name}")).count(),
            2,
            "{name} has two examples"
        );
        for argument in command.get_arguments() {
            let id = argument.get_id().as_str();
            let help = argument.get_help().map(ToString::to_string);
            assert!(
                help.is_some_and(|help| !help.is_empty()),
                "{name} --{id} has no help"
            );
        }
    }
    // Whoever adds a kind tells of it here too.
    let watch = cli.find_subcommand("watch").expect("watch");
    let kinds = watch
        .get_arguments()
        .find(|argument| argument.get_id() == "kinds")
        .and_then(|argument| argument.get_help())
        .map(ToString::to_string)
        .expect("help of --kinds");
    for kind in text::all_kinds().map(v1::Kind::name) {
        assert!(kinds.contains(&kind), "{kind} is missing in: {kinds}");
    }
}

#[test]
fn tools_for_files_ask_for_their_kinds_and_filters() {
    assert_eq!(request("opensnoop"), only(v1::Kind::FileOpen));
    assert_eq!(request("filesnoop --deleted"), only(v1::Kind::FileDelete));
    let both = request("filesnoop");
    assert_eq!(
        both.kinds,
        [v1::Kind::FileDelete.into(), v1::Kind::FileOpen.into()] as [i32; 2]
    );
    let asked = request("opensnoop -x --write --create --path /var/log/* --path /etc/passwd");
    let filter = asked.filter.expect("a filter");
    assert!(filter.failed && filter.write && filter.create);
    let paths: Vec<_> = filter.path.into_iter().map(|path| path.pattern).collect();
    assert_eq!(
        paths,
        [
            Some(Pattern::Prefix("/var/log/".into())),
            Some(Pattern::Exact("/etc/passwd".into()))
        ]
    );
}

#[test]
fn tools_for_disks_fill_their_fields() {
    let io = || only(v1::Kind::BlockIo);
    let latency = || only(v1::Kind::BlockLatency);
    let disks = || {
        vec![
            pattern(Pattern::Exact("vda".to_owned())),
            pattern(Pattern::Prefix("nvme".to_owned())),
        ]
    };
    let table = [
        ("biosnoop", io()),
        ("biosnoop -Q -o wide", io()),
        (
            "biosnoop -d vda --disk nvme* -x --min-ms 1.5 --comm dd",
            filtering(io(), |f| {
                f.disk = disks();
                f.failed = true;
                f.min_duration = Some(prost_types::Duration {
                    seconds: 0,
                    nanos: 1_500_000,
                });
                f.comm = vec![pattern(Pattern::Exact("dd".to_owned()))];
            }),
        ),
        ("biolatency", latency()),
        (
            "biolatency -i 5s --cumulative -d vda -d nvme*",
            v1::SubscribeRequest {
                interval: Some(prost_types::Duration {
                    seconds: 5,
                    nanos: 0,
                }),
                ..filtering(latency(), |f| f.disk = disks())
            },
        ),
    ];
    for (line, expected) in table {
        assert_eq!(request(line), expected, "{line}");
    }
    for (line, expected) in [
        ("biosnoop --min-ms x", "no number of milliseconds"),
        ("biolatency --cumulative", "--interval <TIME>"),
    ] {
        let arguments: Vec<_> = line.split(' ').collect();
        let error = parse(&arguments).expect_err(line).to_string();
        assert!(error.contains(expected), "{line}: {error}");
    }
}

#[test]
fn rankings_ask_for_their_kinds_at_their_interval() {
    let ranking = |kinds: &[v1::Kind], seconds| v1::SubscribeRequest {
        kinds: kinds.iter().map(|kind| (*kind).into()).collect(),
        interval: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..default()
    };
    let table = [
        ("top disk", ranking(&[v1::Kind::BlockLatency], 1)),
        ("top tcp -i 5s", ranking(&[v1::Kind::TcpSession], 5)),
        ("top process", ranking(&[v1::Kind::Exec, v1::Kind::Exit], 1)),
        ("top drops", ranking(&[v1::Kind::DropCount], 1)),
        (
            "top -i 2s",
            ranking(
                &[
                    v1::Kind::Exec,
                    v1::Kind::Exit,
                    v1::Kind::FileOpen,
                    v1::Kind::FileDelete,
                    v1::Kind::TcpSession,
                    v1::Kind::BlockLatency,
                    v1::Kind::DropCount,
                ],
                2,
            ),
        ),
        (
            "top files --sort failed/s --rows 3",
            ranking(&[v1::Kind::FileOpen, v1::Kind::FileDelete], 1),
        ),
    ];
    for (line, expected) in table {
        assert_eq!(request(line), expected, "{line}");
    }
    let error = parse(&["top", "cpu"]).expect_err("no such ranking");
    assert!(error.to_string().contains("invalid value 'cpu'"), "{error}");
}

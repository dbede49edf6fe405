use super::*;
use v1::string_match;

fn event(kind: v1::Kind, detail: Detail) -> v1::Event {
    v1::Event {
        kind: kind.into(),
        detail: Some(detail),
        ..Default::default()
    }
}

fn exec(pid: u32, ancestors: &[u32]) -> v1::Event {
    let detail = Detail::Exec(v1::Exec {
        filename: "/usr/sbin/nginx".to_owned(),
        ..Default::default()
    });
    v1::Event {
        process: Some(v1::Process {
            pid,
            tid: pid,
            start_boot_ns: u64::from(pid) * 1000,
            ppid: ancestors.first().copied().unwrap_or_default(),
            ancestors: ancestors.to_vec(),
            comm: "nginx".to_owned(),
            uid: 101,
            ..Default::default()
        }),
        ..event(v1::Kind::Exec, detail)
    }
}

fn exit(pid: u32, ancestors: &[u32], code: u32, signal: u32) -> v1::Event {
    let detail = Detail::Exit(v1::Exit {
        code,
        signal,
        ..Default::default()
    });
    v1::Event {
        process: exec(pid, ancestors).process,
        ..event(v1::Kind::Exit, detail)
    }
}

fn both() -> Kinds {
    [v1::Kind::Exec, v1::Kind::Exit].into_iter().collect()
}

fn only(kind: v1::Kind) -> Kinds {
    [kind].into_iter().collect()
}

fn parsed(filter: &v1::Filter, kinds: Kinds) -> Filter {
    Filter::parse(Some(filter), kinds, &Limits::default()).expect("a filter")
}

fn refused(filter: &v1::Filter, kinds: Kinds) -> String {
    Filter::parse(Some(filter), kinds, &Limits::default())
        .expect_err("should be refused")
        .to_string()
}

#[track_caller]
fn check(filter: &v1::Filter, kinds: Kinds, event: &v1::Event, expected: bool) {
    let matches = parsed(filter, kinds).matches(event, &mut Family::default());
    assert_eq!(matches, expected, "{filter:?} and {event:?}");
}

fn exact(text: &str) -> v1::StringMatch {
    v1::StringMatch {
        pattern: Some(string_match::Pattern::Exact(text.to_owned())),
    }
}

fn prefix(text: &str) -> v1::StringMatch {
    v1::StringMatch {
        pattern: Some(string_match::Pattern::Prefix(text.to_owned())),
    }
}

fn glob(text: &str) -> v1::StringMatch {
    v1::StringMatch {
        pattern: Some(string_match::Pattern::Glob(text.to_owned())),
    }
}

fn pid_10(descendants: bool) -> v1::Filter {
    v1::Filter {
        pids: vec![v1::PidMatch {
            pid: 10,
            descendants,
        }],
        ..Default::default()
    }
}

#[test]
fn no_filter_matches_everything() {
    let filter = Filter::parse(None, both(), &Limits::default()).expect("no filter");
    let mut family = Family::default();
    assert!(filter.matches(&exec(5, &[]), &mut family));
    assert!(filter.matches(&exit(5, &[], 0, 0), &mut family));
    assert!(filter.matches(&v1::Event::default(), &mut family));
}

#[test]
fn elements_of_a_field_are_alternatives_and_fields_must_all_match() {
    let table = [
        (vec![exact("nginx")], vec![], true),
        (vec![exact("ngin")], vec![], false),
        (vec![exact("sh"), exact("nginx")], vec![], true),
        (vec![prefix("ngi")], vec![], true),
        (vec![glob("n?in*")], vec![], true),
        (vec![glob("n?in")], vec![], false),
        (vec![], vec![101], true),
        (vec![], vec![0, 101], true),
        (vec![], vec![0], false),
        (vec![exact("nginx")], vec![0], false),
        (vec![exact("sh")], vec![101], false),
    ];
    for (comm, uids, expected) in table {
        let filter = v1::Filter {
            comm,
            uids,
            ..Default::default()
        };
        check(&filter, both(), &exec(5, &[]), expected);
    }
}

#[test]
fn binary_is_the_path_given_to_execve() {
    let table = [
        (exact("/usr/sbin/nginx"), true),
        (exact("nginx"), false),
        (prefix("/usr/"), true),
        (glob("/usr/*nginx"), true),
        (glob("*/nginx"), true),
        (glob("*/bin/*"), false),
    ];
    for (binary, expected) in table {
        let filter = v1::Filter {
            binary: vec![binary],
            ..Default::default()
        };
        check(&filter, only(v1::Kind::Exec), &exec(5, &[]), expected);
    }
}

#[test]
fn failed_is_a_code_or_a_signal() {
    let filter = v1::Filter {
        exit_failed: true,
        ..Default::default()
    };
    let kinds = only(v1::Kind::Exit);
    check(&filter, kinds, &exit(5, &[], 0, 0), false);
    check(&filter, kinds, &exit(5, &[], 3, 0), true);
    check(&filter, kinds, &exit(5, &[], 0, 9), true);
}

#[test]
fn pids_match_alone_or_with_descendants() {
    for descendants in [false, true] {
        let filter = pid_10(descendants);
        check(&filter, both(), &exec(10, &[1]), true);
        check(&filter, both(), &exit(10, &[1], 0, 0), true);
        check(&filter, both(), &exec(11, &[1]), false);
        check(&filter, both(), &exec(12, &[11, 10, 1]), descendants);
        check(&filter, both(), &exit(12, &[11, 10, 1], 0, 0), descendants);
    }
}

#[test]
fn descendants_stay_in_the_family_when_init_adopts_them() {
    let filter = parsed(&pid_10(true), both());
    let mut family = Family::default();
    let steps = [
        (exec(20, &[10, 1]), true),
        // 10 ended; 20 and its new child still count.
        (exec(20, &[1]), true),
        (exec(30, &[20, 1]), true),
        (exec(40, &[1]), false),
        (exit(20, &[1], 0, 0), true),
        (exec(30, &[1]), true),
        (exit(30, &[1], 0, 0), true),
        // All are gone: their pids mean nothing any more.
        (exec(31, &[20, 1]), false),
        (exec(30, &[1]), false),
    ];
    for (index, (event, expected)) in steps.iter().enumerate() {
        assert_eq!(
            filter.matches(event, &mut family),
            *expected,
            "step {index}"
        );
    }
    assert!(family.started.is_empty() && family.by_start.is_empty());
}

#[test]
fn a_pid_that_is_used_again_is_someone_else() {
    let filter = parsed(&pid_10(true), both());
    let mut family = Family::default();
    assert!(filter.matches(&exec(20, &[10, 1]), &mut family));
    let mut reused = exec(20, &[1]);
    if let Some(process) = &mut reused.process {
        process.start_boot_ns += 1;
    }
    assert!(!filter.matches(&reused, &mut family), "its exit was lost");
    assert!(!filter.matches(&exec(21, &[20, 1]), &mut family));
}

#[test]
fn the_family_learns_from_events_that_other_fields_leave_out() {
    let filter = v1::Filter {
        comm: vec![exact("curl")],
        ..pid_10(true)
    };
    let filter = parsed(&filter, both());
    let mut family = Family::default();
    assert!(!filter.matches(&exec(20, &[10, 1]), &mut family), "nginx");
    let mut curl = exec(30, &[20, 1]);
    if let Some(process) = &mut curl.process {
        process.comm = "curl".to_owned();
    }
    assert!(filter.matches(&curl, &mut family));
}

#[test]
fn a_rule_without_descendants_teaches_nothing() {
    let filter = parsed(&pid_10(false), both());
    let mut family = Family::default();
    assert!(filter.matches(&exec(10, &[1]), &mut family));
    assert!(family.started.is_empty());
}

#[test]
fn a_full_family_forgets_the_oldest() {
    let mut family = Family::default();
    let max = u32::try_from(FAMILY_MAX).expect("fits");
    for pid in 1..=max {
        family.remember(pid, u64::from(pid));
    }
    family.remember(max, u64::from(max));
    assert!(family.contains(1), "the same again needs no room");
    family.remember(max + 1, u64::from(max) + 1);
    assert!(!family.contains(1));
    assert!(family.contains(2));
    assert!(family.contains(max + 1));
    assert_eq!(family.started.len(), FAMILY_MAX);
    assert_eq!(family.by_start.len(), FAMILY_MAX);
}

#[test]
fn ports_are_of_either_end_or_of_one() {
    let end = |port| {
        Some(v1::Endpoint {
            port,
            ..Default::default()
        })
    };
    let connect = Detail::TcpConnect(v1::TcpConnect {
        local: end(40_000),
        remote: end(443),
        ..Default::default()
    });
    let connect = event(v1::Kind::TcpConnect, connect);
    let kinds = only(v1::Kind::TcpConnect);
    // Either, local, remote; whether it matches.
    let table = [
        (vec![443], vec![], vec![], true),
        (vec![1, 40_000], vec![], vec![], true),
        (vec![1], vec![], vec![], false),
        (vec![], vec![40_000], vec![], true),
        (vec![], vec![443], vec![], false),
        (vec![], vec![], vec![443, 80], true),
        (vec![], vec![], vec![40_000], false),
        (vec![443], vec![40_000], vec![443], true),
    ];
    for (ports, local_ports, remote_ports, expected) in table {
        let filter = v1::Filter {
            ports,
            local_ports,
            remote_ports,
            ..Default::default()
        };
        check(&filter, kinds, &connect, expected);
    }
    let wrong = v1::Filter {
        remote_ports: vec![80, 65_536],
        ..Default::default()
    };
    assert_eq!(
        refused(&wrong, kinds),
        "filter.remote_ports[1]: is 65536; ports are from 1 to 65535"
    );
    let drops = v1::Filter {
        local_ports: vec![80],
        ..Default::default()
    };
    assert!(refused(&drops, only(v1::Kind::DropCount)).contains("ask for the kinds of TCP"));
}

#[test]
fn reasons_are_asked_of_what_has_them() {
    let drop = |reason: &str| {
        let detail = Detail::DropCount(v1::DropCount {
            reason: reason.to_owned(),
            ..Default::default()
        });
        event(v1::Kind::DropCount, detail)
    };
    let filter = v1::Filter {
        reason: vec![exact("NO_SOCKET"), glob("NETFILTER_*")],
        ..Default::default()
    };
    for (reason, expected) in [
        ("NO_SOCKET", true),
        ("NETFILTER_DROP", true),
        ("UDP_CSUM", false),
        ("", false),
    ] {
        check(&filter, only(v1::Kind::DropCount), &drop(reason), expected);
    }
    assert_eq!(
        refused(&filter, only(v1::Kind::TcpSession)),
        "filter.reason: KIND_TCP_SESSION has no reason; \
         ask for KIND_TCP_RESET, KIND_DROP and KIND_DROP_COUNT alone"
    );
}

#[test]
fn refusals_say_what_to_ask_instead() {
    let binary = v1::Filter {
        binary: vec![exact("/bin/sh")],
        ..Default::default()
    };
    let expected = "filter.binary: KIND_EXIT does not tell the program's path; \
                    ask for KIND_EXEC alone, or use `filter.comm`";
    assert_eq!(refused(&binary, both()), expected);
    assert_eq!(refused(&binary, only(v1::Kind::Exit)), expected);

    let failed = v1::Filter {
        exit_failed: true,
        ..Default::default()
    };
    let expected =
        "filter.exit_failed: KIND_EXEC does not tell how a process ended; ask for KIND_EXIT alone";
    assert_eq!(refused(&failed, both()), expected);
    assert_eq!(refused(&failed, only(v1::Kind::Exec)), expected);

    let pid_0 = v1::Filter {
        pids: vec![
            v1::PidMatch {
                pid: 1,
                descendants: false,
            },
            v1::PidMatch::default(),
        ],
        ..Default::default()
    };
    assert_eq!(
        refused(&pid_0, both()),
        "filter.pids[1].pid: is 0, which is the kernel's idle task; \
         name a process by its id in the host's PID namespace"
    );

    let nothing = v1::Filter {
        comm: vec![exact("a"), v1::StringMatch::default()],
        ..Default::default()
    };
    assert_eq!(
        refused(&nothing, both()),
        "filter.comm[1]: has no pattern; set `exact`, `prefix` or `glob`"
    );

    let bad_glob = v1::Filter {
        binary: vec![exact("a"), exact("b"), glob("{x")],
        ..Default::default()
    };
    assert!(refused(&bad_glob, only(v1::Kind::Exec)).starts_with("filter.binary[2].glob: `{x` "));
}

#[test]
fn requests_match_by_disk_time_and_failure() {
    let request = |disk: &str, error, took| {
        let detail = Detail::BlockIo(v1::BlockIo {
            disk: disk.to_owned(),
            error,
            queued: Some(span(took / 4)),
            device: Some(span(took - took / 4)),
            ..Default::default()
        });
        event(v1::Kind::BlockIo, detail)
    };
    fn span(milliseconds: i32) -> prost_types::Duration {
        prost_types::Duration {
            seconds: 0,
            nanos: milliseconds * 1_000_000,
        }
    }
    let kinds = only(v1::Kind::BlockIo);
    let disk = v1::Filter {
        disk: vec![exact("sda"), prefix("nvme")],
        ..Default::default()
    };
    for (name, expected) in [("sda", true), ("nvme1n1", true), ("sdab", false)] {
        check(&disk, kinds, &request(name, 0, 1), expected);
    }
    let failed = v1::Filter {
        failed: true,
        ..Default::default()
    };
    check(&failed, kinds, &request("sda", 5, 1), true);
    check(&failed, kinds, &request("sda", 0, 1), false);
    let slow = v1::Filter {
        min_duration: Some(span(100)),
        ..Default::default()
    };
    check(&slow, kinds, &request("sda", 0, 100), true);
    check(&slow, kinds, &request("sda", 0, 99), false);

    let latency = Detail::BlockLatency(v1::BlockLatency {
        disk: "sdb".to_owned(),
        ..Default::default()
    });
    let latency = event(v1::Kind::BlockLatency, latency);
    check(&disk, only(v1::Kind::BlockLatency), &latency, false);
    assert_eq!(
        refused(&disk, both()),
        "filter.disk: KIND_EXEC is not about disks; ask for KIND_BLOCK_IO and KIND_BLOCK_LATENCY alone"
    );
}

#[test]
fn more_than_64_elements_are_refused() {
    let table = [
        (
            "filter.comm",
            v1::Filter {
                comm: vec![exact("a"); 65],
                ..Default::default()
            },
        ),
        (
            "filter.binary",
            v1::Filter {
                binary: vec![exact("a"); 65],
                ..Default::default()
            },
        ),
        (
            "filter.uids",
            v1::Filter {
                uids: vec![1; 65],
                ..Default::default()
            },
        ),
        (
            "filter.pids",
            v1::Filter {
                pids: vec![
                    v1::PidMatch {
                        pid: 1,
                        descendants: true
                    };
                    65
                ],
                ..Default::default()
            },
        ),
    ];
    for (field, filter) in table {
        assert_eq!(
            refused(&filter, only(v1::Kind::Exec)),
            format!(
                "{field}: has 65 elements, this agent allows 64; use globs, or several streams"
            )
        );
    }
}

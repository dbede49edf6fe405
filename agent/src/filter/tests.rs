use super::*;

fn asked(kinds: &[v1::Kind]) -> v1::SubscribeRequest {
    v1::SubscribeRequest {
        kinds: kinds.iter().map(|kind| (*kind).into()).collect(),
        ..Default::default()
    }
}

fn exec() -> v1::SubscribeRequest {
    asked(&[v1::Kind::Exec])
}

fn parsed(request: &v1::SubscribeRequest) -> Request {
    Request::parse(request, &Limits::default()).expect("a request")
}

fn refused(request: &v1::SubscribeRequest) -> String {
    Request::parse(request, &Limits::default())
        .expect_err("should be refused")
        .to_string()
}

fn span(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos })
}

#[test]
fn what_is_left_out_gets_its_default() {
    let request = parsed(&exec());
    assert_eq!(request.kinds, [v1::Kind::Exec].into_iter().collect());
    assert!(!request.by_reference);
    assert_eq!(request.queue_bytes, 4_194_304);
    assert_eq!(request.heartbeat, Duration::from_secs(2));
    assert_eq!(request.max_events, None);
    assert_eq!(request.max_duration, None);
    let pod = v1::Workload {
        state: v1::IdentityState::Pending.into(),
        ..Default::default()
    };
    assert!(request.selector.matches(&pod));
    assert!(
        request
            .filter
            .matches(&v1::Event::default(), &mut Family::default())
    );
}

#[test]
fn what_is_asked_for_is_kept() {
    let request = parsed(&v1::SubscribeRequest {
        identity_mode: v1::IdentityMode::ByReference.into(),
        queue_bytes: 65_536,
        heartbeat_interval: span(0, 100_000_000),
        max_events: 23,
        max_duration: span(1, 500_000_000),
        ..asked(&[v1::Kind::Exit, v1::Kind::Exec, v1::Kind::Exit])
    });
    assert_eq!(
        request.kinds.iter().collect::<Vec<_>>(),
        [v1::Kind::Exec, v1::Kind::Exit]
    );
    assert!(request.by_reference);
    assert_eq!(request.queue_bytes, 65_536);
    assert_eq!(request.heartbeat, Duration::from_millis(100));
    assert_eq!(request.max_events, Some(23));
    assert_eq!(request.max_duration, Some(Duration::from_millis(1500)));
    let slowest = v1::SubscribeRequest {
        heartbeat_interval: span(60, 0),
        queue_bytes: 64 << 20,
        ..exec()
    };
    assert_eq!(parsed(&slowest).heartbeat, Duration::from_secs(60));
    assert_eq!(parsed(&slowest).queue_bytes, 64 << 20);
}

#[test]
fn the_agents_rate_holds_unless_less_is_asked_for() {
    let rate = |asked, allowed| {
        let limits = Limits {
            events_per_second_max: allowed,
            ..Limits::default()
        };
        let request = v1::SubscribeRequest {
            max_events_per_second: asked,
            ..exec()
        };
        Request::parse(&request, &limits).map(|request| request.max_events_per_second)
    };
    assert_eq!(rate(0, None), Ok(None));
    assert_eq!(rate(7, None), Ok(Some(7)));
    assert_eq!(rate(0, Some(100)), Ok(Some(100)));
    assert_eq!(rate(100, Some(100)), Ok(Some(100)));
    let told = rate(101, Some(100)).expect_err("too much").to_string();
    assert_eq!(
        told,
        "max_events_per_second: is 101; this agent allows 100 at most"
    );
}

#[test]
fn what_an_agent_with_other_limits_would_do_is_told_apart_from_what_is_wrong() {
    let small = Limits {
        queue_bytes_max: 1 << 20,
        events_per_second_max: Some(10),
        elements_max: 2,
    };
    let named = |names: &[&str]| v1::SubscribeRequest {
        selector: Some(v1::Selector {
            namespaces: names.iter().map(|name| (*name).to_owned()).collect(),
            ..v1::Selector::default()
        }),
        ..exec()
    };
    let of_uids = |count| v1::SubscribeRequest {
        filter: Some(v1::Filter {
            uids: (0..count).collect(),
            ..v1::Filter::default()
        }),
        ..exec()
    };
    let beyond = |request: v1::SubscribeRequest| {
        let refused = |limits: &Limits| Request::parse(&request, limits).err();
        assert_eq!(refused(&Limits::default()), None);
        refused(&small).map(|invalid| (invalid.field, invalid.beyond))
    };
    let told = |field: &str, bound| Some((field.to_owned(), Some(bound)));
    let queue = v1::SubscribeRequest {
        queue_bytes: (1 << 20) + 1,
        ..exec()
    };
    assert_eq!(beyond(queue), told("queue_bytes", Bound::QueueBytes));
    let rate = v1::SubscribeRequest {
        max_events_per_second: 11,
        ..exec()
    };
    assert_eq!(
        beyond(rate),
        told("max_events_per_second", Bound::EventsPerSecond)
    );
    assert_eq!(beyond(named(&["a", "b"])), None);
    assert_eq!(
        beyond(named(&["a", "b", "c"])),
        told("selector.namespaces", Bound::Filter)
    );
    assert_eq!(beyond(of_uids(2)), None);
    assert_eq!(beyond(of_uids(3)), told("filter.uids", Bound::Filter));
    // How many kinds there are does not depend on it.
    assert_eq!(beyond(asked(&[v1::Kind::Exec; 3])), None);
    let wrong = Request::parse(&named(&["A"]), &small).expect_err("no name");
    assert_eq!(wrong.beyond, None);
}

#[test]
fn the_default_queue_stays_below_the_agents_limit() {
    let limits = Limits {
        queue_bytes_max: 1 << 20,
        ..Limits::default()
    };
    let request = Request::parse(&exec(), &limits).expect("a request");
    assert_eq!(request.queue_bytes, 1 << 20);
}

#[test]
fn refusals_name_the_field_and_the_way_out() {
    let kind = |number| v1::SubscribeRequest {
        kinds: vec![1, number],
        ..Default::default()
    };
    let table = [
        (
            v1::SubscribeRequest::default(),
            "kinds: is empty; name at least one of KIND_EXEC, KIND_EXIT, KIND_FORK, KIND_FILE_OPEN, KIND_FILE_DELETE, KIND_TCP_SESSION, KIND_TCP_CONNECT, KIND_TCP_RESET, KIND_TCP_RETRANSMIT, KIND_BLOCK_IO, KIND_BLOCK_LATENCY, KIND_DROP, KIND_DROP_COUNT",
        ),
        (
            kind(0),
            "kinds[1]: is KIND_UNSPECIFIED; name one of KIND_EXEC, KIND_EXIT, KIND_FORK, KIND_FILE_OPEN, KIND_FILE_DELETE, KIND_TCP_SESSION, KIND_TCP_CONNECT, KIND_TCP_RESET, KIND_TCP_RETRANSMIT, KIND_BLOCK_IO, KIND_BLOCK_LATENCY, KIND_DROP, KIND_DROP_COUNT",
        ),
        (
            kind(77),
            "kinds[1]: is 77, which this agent does not know; it knows KIND_EXEC, KIND_EXIT, KIND_FORK, KIND_FILE_OPEN, KIND_FILE_DELETE, KIND_TCP_SESSION, KIND_TCP_CONNECT, KIND_TCP_RESET, KIND_TCP_RETRANSMIT, KIND_BLOCK_IO, KIND_BLOCK_LATENCY, KIND_DROP, KIND_DROP_COUNT",
        ),
        (
            kind(-1),
            "kinds[1]: is -1, which this agent does not know; it knows KIND_EXEC, KIND_EXIT, KIND_FORK, KIND_FILE_OPEN, KIND_FILE_DELETE, KIND_TCP_SESSION, KIND_TCP_CONNECT, KIND_TCP_RESET, KIND_TCP_RETRANSMIT, KIND_BLOCK_IO, KIND_BLOCK_LATENCY, KIND_DROP, KIND_DROP_COUNT",
        ),
        (
            asked(&[v1::Kind::Exec; 65]),
            "kinds: has 65 elements, this agent allows 64; use globs, or several streams",
        ),
        (
            v1::SubscribeRequest {
                identity_mode: 5,
                ..exec()
            },
            "identity_mode: is 5, which this agent does not know; \
             use IDENTITY_MODE_INLINE or IDENTITY_MODE_BY_REFERENCE",
        ),
        (
            v1::SubscribeRequest {
                queue_bytes: 65_535,
                ..exec()
            },
            "queue_bytes: is 65535; ask for 65536 or more, or leave it out",
        ),
        (
            v1::SubscribeRequest {
                queue_bytes: (64 << 20) + 1,
                ..exec()
            },
            "queue_bytes: is 67108865; this agent allows 67108864 at most",
        ),
        (
            v1::SubscribeRequest {
                heartbeat_interval: span(0, 99_999_999),
                ..exec()
            },
            "heartbeat_interval: is 99.999999ms; ask for 100ms to 60s, or leave it out",
        ),
        (
            v1::SubscribeRequest {
                heartbeat_interval: span(60, 1),
                ..exec()
            },
            "heartbeat_interval: is 60.000000001s; ask for 100ms to 60s, or leave it out",
        ),
        (
            v1::SubscribeRequest {
                heartbeat_interval: span(-1, 0),
                ..exec()
            },
            "heartbeat_interval: is negative; time runs forwards",
        ),
        (
            v1::SubscribeRequest {
                max_duration: span(0, -1),
                ..exec()
            },
            "max_duration: is negative; time runs forwards",
        ),
        (
            v1::SubscribeRequest {
                max_duration: span(0, 0),
                ..exec()
            },
            "max_duration: is 0; leave it out for a stream without such a limit",
        ),
        (
            v1::SubscribeRequest {
                filter: Some(v1::Filter {
                    exit_failed: true,
                    ..Default::default()
                }),
                ..exec()
            },
            "filter.exit_failed: KIND_EXEC does not tell how a process ended; ask for KIND_EXIT alone",
        ),
        (
            v1::SubscribeRequest {
                selector: Some(v1::Selector {
                    owners: vec!["x".to_owned()],
                    ..Default::default()
                }),
                ..exec()
            },
            "selector.owners[0]: `x` is not an owner; write `kind/name`, as in `deployment/checkout`",
        ),
    ];
    for (request, expected) in table {
        assert_eq!(refused(&request), expected);
    }
}

#[test]
fn kinds_are_a_set() {
    let mut kinds = Kinds::default();
    assert!(kinds.is_empty());
    assert_eq!(kinds.iter().count(), 0);
    kinds.insert(v1::Kind::Exit);
    kinds.insert(v1::Kind::Exit);
    assert!(!kinds.is_empty());
    assert!(kinds.contains(v1::Kind::Exit));
    assert!(!kinds.contains(v1::Kind::Exec));
    assert_eq!(kinds.bits(), 0b100);
    let both = kinds.union([v1::Kind::Exec].into_iter().collect());
    assert_eq!(both.bits(), 0b110);
    assert_eq!(
        both.iter().collect::<Vec<_>>(),
        [v1::Kind::Exec, v1::Kind::Exit]
    );
}

//! Requests as they come over the network: understood, or refused with the field that is wrong.
#![no_main]

use std::time::Duration;

use dinle::filter::{Bound, Family, Invalid, Limits, Request};
use dinle_fuzz::{assert_is_a_sentence, events, workloads};
use dinle_proto::v1::{self, event::Detail};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

fuzz_target!(|bytes: &[u8]| {
    // The largest that the agent reads, and far more than libFuzzer makes.
    let Ok(asked) = v1::SubscribeRequest::decode(bytes) else {
        return;
    };
    let limits = Limits {
        queue_bytes_max: 8 << 20,
        events_per_second_max: Some(1000),
        elements_max: 8,
    };
    match Request::parse(&asked, &limits) {
        Ok(request) => understood(&asked, &request, &limits),
        Err(invalid) => refused(&invalid),
    }
});

fn refused(invalid: &Invalid) {
    let Invalid {
        field,
        problem,
        beyond,
    } = invalid;
    assert_is_a_sentence(problem);
    let first = field.split(['.', '[']).next().unwrap_or_default();
    let known = [
        "selector",
        "kinds",
        "filter",
        "identity_mode",
        "queue_bytes",
        "heartbeat_interval",
        "max_events",
        "max_duration",
        "interval",
        "max_events_per_second",
        "resume_window",
        "resume",
    ];
    assert!(known.contains(&first), "there is no field {field:?}");
    let bounded = match beyond {
        None => true,
        Some(Bound::QueueBytes) => first == "queue_bytes",
        Some(Bound::EventsPerSecond) => first == "max_events_per_second",
        Some(Bound::Filter) => ["selector", "kinds", "filter"].contains(&first),
        // Nothing that is read is too large to be read.
        Some(Bound::RequestBytes) => false,
    };
    assert!(bounded, "{field:?} is not bounded by {beyond:?}");
}

fn understood(asked: &v1::SubscribeRequest, request: &Request, limits: &Limits) {
    assert!(asked.resume.is_none());
    assert!(!request.kinds.is_empty());
    assert!(
        asked
            .kinds
            .iter()
            .all(|kind| request.kinds.iter().any(|known| known as i32 == *kind))
    );
    assert_eq!(request.kinds.intersection(request.heard), request.kinds);
    assert!((64 << 10..=limits.queue_bytes_max).contains(&request.queue_bytes));
    assert!(
        request
            .max_events_per_second
            .is_some_and(|rate| (1..=1000).contains(&rate))
    );
    assert!((Duration::from_millis(100)..=Duration::from_secs(60)).contains(&request.heartbeat));
    assert!(
        request
            .resume_window
            .is_none_or(|window| window <= Duration::from_secs(60))
    );
    // What was sent on says the same.
    let again = v1::SubscribeRequest::decode(&*asked.encode_to_vec()).expect("it was just encoded");
    let again = Request::parse(&again, limits).expect("it was understood");
    assert_eq!(format!("{again:?}"), format!("{request:?}"));

    for workload in workloads([("app".to_owned(), "checkout".to_owned())].into()) {
        if request.selector.matches(&workload) {
            assert!(
                request.selector.matches_pod(&workload),
                "the kernel leaves out {workload:?}"
            );
        }
    }
    let mut family = Family::default();
    for event in events() {
        let wanted = request.filter.matches(event, &mut family);
        let kind = v1::Kind::try_from(event.kind).expect("it was decoded");
        if wanted && request.kinds.contains(kind) {
            not_narrowed(request, event);
        }
    }
}

/// What the kernel is told to leave out is nothing that the filter wants.
fn not_narrowed(request: &Request, event: &v1::Event) {
    let narrow = request.filter.narrow();
    let (path, error, flags, took) = match event.detail.as_ref().expect("it was decoded") {
        Detail::FileOpen(open) => (Some(&open.path), Some(open.error), Some(open.flags), None),
        Detail::FileDelete(delete) => (Some(&delete.path), Some(delete.error), None, None),
        Detail::TcpSession(session) => (None, None, None, session.duration),
        Detail::BlockIo(io) => (None, Some(io.error), None, None),
        _ => return,
    };
    assert!(
        path.is_none_or(|path| path.starts_with(&narrow.prefix)),
        "{path:?} {narrow:?}"
    );
    assert!(!narrow.failed || error.is_none_or(|error| error != 0));
    assert!(!narrow.write || flags.is_none_or(|flags| flags & 3 != 0));
    assert!(!narrow.create || flags.is_none_or(|flags| flags & 0o100 != 0));
    if let Some(took) = took.and_then(|took| Duration::try_from(took).ok()) {
        assert!(took >= narrow.min_duration);
    }
}

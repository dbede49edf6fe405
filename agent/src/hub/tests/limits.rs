//! How many streams there may be, of whom, and how much may wait for them.

use super::*;
use crate::filter::Bound;

const NOBODY: &str = "";

/// Opens a stream of a user, with a queue of so many bytes.
fn open(hub: &Hub, user: &str, queue_bytes: u64) -> Result<Subscription, Full> {
    let asked = v1::SubscribeRequest {
        queue_bytes,
        ..request(&[v1::Kind::Exec])
    };
    let parsed = Request::parse(&asked, &Limits::default()).expect("a good request");
    let (user, peer) = match user.strip_prefix("unix:") {
        Some(_) => (String::new(), user.to_owned()),
        None => (user.to_owned(), "127.0.0.1:4711".to_owned()),
    };
    let caller = v1::Caller {
        peer,
        user,
        groups: Vec::new(),
    };
    hub.subscribe(asked, parsed, caller, Grant::all())
}

fn refused(hub: &Hub, user: &str, queue_bytes: u64) -> String {
    open(hub, user, queue_bytes)
        .err()
        .expect("no room")
        .to_string()
}

fn count(hub: &Hub, limit: &str) -> u64 {
    let counts = hub.refusals().counts();
    let (_, count) = counts
        .iter()
        .find(|(name, _)| *name == limit)
        .expect("a limit");
    *count
}

#[test]
fn what_would_not_fit_alone_is_counted_by_its_limit() {
    let (hub, _publisher) = Hub::new(crate::hub::Limits::default(), || ());
    for (bound, name) in [
        (Bound::QueueBytes, "queue_bytes"),
        (Bound::EventsPerSecond, "events_per_second"),
        (Bound::Filter, "filter"),
        (Bound::RequestBytes, "request_bytes"),
    ] {
        assert_eq!(count(&hub, name), 0);
        hub.refusals().beyond(bound);
        assert_eq!(count(&hub, name), 1);
    }
}

#[tokio::test]
async fn there_is_room_for_so_many_streams_and_a_place_that_is_left_is_free_again() {
    let limits = crate::hub::Limits {
        queue_bytes: u64::MAX,
        ..Default::default()
    };
    let (hub, mut publisher) = Hub::new(limits, || ());
    let mut all: Vec<_> = (0..LISTENERS_MAX)
        .map(|_| open(&hub, NOBODY, 0).expect("room"))
        .collect();
    let told = refused(&hub, NOBODY, 0);
    assert!(
        told.contains("64 streams") && told.contains("--max-streams"),
        "{told}"
    );
    assert_eq!(count(&hub, "streams"), 1);
    let left = all.remove(5).id();
    let newcomer = open(&hub, NOBODY, 0).expect("room again");
    assert!(newcomer.id() > left, "numbers are not used again");
    publisher.refresh();
    assert_eq!(
        publisher.targets(v1::Kind::Exec, &pod(7, "web")).whole,
        u64::MAX
    );
}

#[tokio::test]
async fn one_user_does_not_keep_others_out() {
    let limits = crate::hub::Limits {
        streams_per_user: 2,
        ..Default::default()
    };
    let (hub, _publisher) = Hub::new(limits, || ());
    let mut of_jane = vec![open(&hub, "jane", 0), open(&hub, "jane", 0)];
    assert!(of_jane.iter().all(Result::is_ok));
    let told = refused(&hub, "jane", 0);
    assert!(told.starts_with("jane has 2 streams"), "{told}");
    assert!(told.contains("--max-streams-per-user"), "{told}");
    // By their number, who come through a socket.
    let _of_socket = [open(&hub, "unix:1000", 0), open(&hub, "unix:1000", 0)];
    assert!(refused(&hub, "unix:1000", 0).starts_with("unix:1000 has 2"));
    assert_eq!(
        (count(&hub, "streams_per_user"), count(&hub, "streams")),
        (2, 0)
    );
    let _others = [
        open(&hub, "unix:1001", 0).expect("another user"),
        open(&hub, "john", 0).expect("another user"),
        // All that come through port-forwards look alike.
        open(&hub, NOBODY, 0).expect("nobody knows who"),
        open(&hub, NOBODY, 0).expect("nobody knows who"),
        open(&hub, NOBODY, 0).expect("nobody knows who"),
    ];
    of_jane.pop();
    open(&hub, "jane", 0).expect("room again");
}

#[tokio::test]
async fn queues_have_a_common_limit() {
    const SMALL: u64 = 64 << 10;
    let limits = crate::hub::Limits {
        queue_bytes: 3 * SMALL,
        ..Default::default()
    };
    let (hub, _publisher) = Hub::new(limits, || ());
    // The default size alone is more.
    let told = refused(&hub, NOBODY, 0);
    assert!(
        told.contains("4194304 bytes") && told.contains("queue_bytes"),
        "{told}"
    );
    let first = open(&hub, NOBODY, SMALL).expect("room");
    let _second = open(&hub, NOBODY, 2 * SMALL).expect("room, to the last byte");
    let told = refused(&hub, NOBODY, SMALL);
    assert!(
        told.contains("2 other streams") && told.contains("196608 of 196608"),
        "{told}"
    );
    assert_eq!(
        (hub.board().queue_bytes(), count(&hub, "queue_bytes")),
        (3 * SMALL, 2)
    );
    drop(first);
    open(&hub, NOBODY, SMALL).expect("room again");
}

#[tokio::test]
async fn what_is_more_than_a_stream_s_rate_is_lost_for_it_alone_and_told() {
    let (hub, mut publisher) = hub();
    let limited = v1::SubscribeRequest {
        max_events_per_second: 5,
        ..request(&[v1::Kind::Exec])
    };
    let (mut limited, mut free) = (
        subscribe(&hub, limited),
        subscribe(&hub, request(&[v1::Kind::Exec])),
    );
    publisher.refresh();
    let web = pod(7, "web");
    let began = std::time::Instant::now();
    let total = 1000;
    for _ in 0..total {
        publish(&mut publisher, &web, "a");
    }
    let seconds = began.elapsed().as_secs() + 1;
    let books = final_books(&rest(&mut publisher, &mut free).await);
    assert_eq!((books.delivered, books.lost), (total, vec![]));

    let messages = rest(&mut publisher, &mut limited).await;
    let (mut numbers, mut told) = (Vec::new(), 0);
    for message in &messages {
        match message {
            Message::Batch(batch) => {
                numbers
                    .extend(batch.first_sequence..batch.first_sequence + batch.events.len() as u64);
            }
            Message::Loss(loss) => {
                assert_eq!(
                    (loss.kind(), loss.stage()),
                    (v1::Kind::Exec, LossStage::RateLimit)
                );
                assert_eq!((loss.first_sequence, loss.last_sequence), (0, 0));
                told += loss.count;
            }
            Message::Plan(_)
            | Message::Snapshot(_)
            | Message::Workload(_)
            | Message::Heartbeat(_) => {}
        }
    }
    let delivered = numbers.len() as u64;
    // A machine that is slow lets more through.
    assert!(
        (5..=5 * (seconds + 1)).contains(&delivered),
        "{delivered} in {seconds} s"
    );
    assert_eq!(numbers, (1..=delivered).collect::<Vec<_>>(), "without gaps");
    let books = final_books(&messages);
    assert_eq!(
        (books.matched, books.delivered, books.queued),
        (total, delivered, 0)
    );
    assert_eq!(
        books.lost,
        [v1::StageLoss {
            stage: LossStage::RateLimit.into(),
            count: total - delivered
        }]
    );
    assert_eq!(told, total - delivered);
    assert_eq!(hub.totals().losses(v1::Kind::Exec, Stage::RateLimit), told);
}

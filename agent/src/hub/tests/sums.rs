//! Snapshots: what the kernel added up arrives whole, whoever reads how slowly.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use dinle_proto::v1::{self, LossStage, subscribe_response::Message};

use super::{
    super::{Publisher, Stage, Subscription},
    final_books, hub, next, pod, request, rest, subscribe,
};

const INTERVAL: Duration = Duration::from_secs(2);

fn asked() -> v1::SubscribeRequest {
    v1::SubscribeRequest {
        interval: INTERVAL.try_into().ok(),
        ..request(&[v1::Kind::BlockLatency])
    }
}

/// A row: so many requests to that disk, in that bucket.
fn row(cgroup_id: u64, disk: &str, count: u64, bucket: usize) -> v1::Event {
    let mut buckets = vec![0; bucket + 1];
    buckets[bucket] = count;
    v1::Event {
        kind: v1::Kind::BlockLatency.into(),
        cgroup_id,
        detail: Some(v1::event::Detail::BlockLatency(v1::BlockLatency {
            disk: disk.into(),
            operation: v1::BlockOperation::Read.into(),
            count,
            bytes: count * 4096,
            device_ns: count * 10,
            queued_ns: count,
            buckets,
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn add(publisher: &mut Publisher, row: &v1::Event) {
    let workload = pod(row.cgroup_id, "web");
    let targets = publisher.targets(v1::Kind::BlockLatency, &workload).whole;
    publisher.add_up(row, &workload, targets);
}

fn latency(event: &v1::Event) -> &v1::BlockLatency {
    match &event.detail {
        Some(v1::event::Detail::BlockLatency(latency)) => latency,
        other => panic!("{other:?}"),
    }
}

async fn next_snapshot(subscription: &mut Subscription) -> v1::Snapshot {
    loop {
        match next(subscription).await {
            Message::Snapshot(snapshot) => return snapshot,
            Message::Plan(_)
            | Message::Batch(_)
            | Message::Loss(_)
            | Message::Workload(_)
            | Message::Heartbeat(_) => {}
        }
    }
}

fn snapshots(messages: &[Message]) -> Vec<&v1::Snapshot> {
    let mut snapshots = Vec::new();
    for message in messages {
        match message {
            Message::Snapshot(snapshot) => snapshots.push(snapshot),
            Message::Plan(_)
            | Message::Batch(_)
            | Message::Loss(_)
            | Message::Workload(_)
            | Message::Heartbeat(_) => {}
        }
    }
    snapshots
}

#[tokio::test]
async fn a_snapshot_adds_up_what_belongs_together_and_nothing_else() {
    let (hub, mut publisher) = hub();
    let mut subscription = subscribe(&hub, asked());
    publisher.refresh();
    for one in [
        row(8, "sda", 1, 0),
        row(7, "sda", 2, 3),
        row(7, "sdb", 4, 3),
        row(7, "sda", 8, 5),
        row(7, "sda", 16, 3),
    ] {
        add(&mut publisher, &one);
    }
    publisher.tell_sums(Instant::now());
    publisher.tell_sums(Instant::now() + INTERVAL);
    let snapshot = next_snapshot(&mut subscription).await;
    let told: Vec<_> = snapshot
        .events
        .iter()
        .map(|event| {
            let latency = latency(event);
            (event.cgroup_id, &*latency.disk, latency.count)
        })
        .collect();
    assert_eq!(told, [(7, "sda", 26), (7, "sdb", 4), (8, "sda", 1)]);
    let expected = v1::BlockLatency {
        bytes: 26 * 4096,
        device_ns: 260,
        queued_ns: 26,
        buckets: vec![0, 0, 0, 18, 0, 8],
        ..latency(&row(7, "sda", 26, 0)).clone()
    };
    assert_eq!(latency(&snapshot.events[0]), &expected);
    for event in &snapshot.events {
        assert_eq!(event.time, snapshot.end);
        assert_eq!(event.workload.as_ref().map(|name| &*name.pod), Some("web"));
    }

    // A quiet interval is told too, and the next begins where it ended.
    publisher.tell_sums(Instant::now() + 2 * INTERVAL);
    let quiet = next_snapshot(&mut subscription).await;
    assert_eq!((quiet.start, quiet.events.len()), (snapshot.end, 0));
    let books = final_books(&rest(&mut publisher, &mut subscription).await);
    assert_eq!((books.matched, books.delivered, books.queued), (3, 3, 0));
}

#[tokio::test]
async fn snapshots_come_at_the_interval_that_each_stream_asked_for() {
    let (hub, mut publisher) = hub();
    let (mut often, mut seldom) = (
        subscribe(&hub, asked()),
        subscribe(
            &hub,
            v1::SubscribeRequest {
                interval: (10 * INTERVAL).try_into().ok(),
                ..asked()
            },
        ),
    );
    // The first intervals begin after this, and a quarter of one is left for that.
    let begin = Instant::now();
    publisher.refresh();
    // Half an interval at a time.
    for half in 1..=21 {
        add(&mut publisher, &row(7, "sda", 1, 0));
        publisher.tell_sums(begin + half * INTERVAL / 2 + INTERVAL / 4);
    }
    let count = |messages: &[Message]| {
        let counts = snapshots(messages)
            .into_iter()
            .flat_map(|snapshot| &snapshot.events)
            .map(|event| latency(event).count);
        counts.sum::<u64>()
    };
    let often = rest(&mut publisher, &mut often).await;
    assert_eq!((snapshots(&often).len(), count(&often)), (11, 21));
    let seldom = rest(&mut publisher, &mut seldom).await;
    assert_eq!((snapshots(&seldom).len(), count(&seldom)), (2, 21));
}

#[tokio::test]
async fn a_slow_client_gets_fewer_snapshots_and_all_that_is_in_them() {
    const CGROUPS: u64 = 300;
    const TURNS: u32 = 20;
    let (hub, mut publisher) = hub();
    let small = |identity_mode: v1::IdentityMode| v1::SubscribeRequest {
        queue_bytes: 64 << 10,
        identity_mode: identity_mode.into(),
        ..asked()
    };
    for mode in [v1::IdentityMode::Inline, v1::IdentityMode::ByReference] {
        let mut slow = subscribe(&hub, small(mode));
        publisher.refresh();
        let begin = Instant::now();
        let mut taken = Vec::new();
        for turn in 1..=TURNS {
            for cgroup_id in 1..=CGROUPS {
                add(&mut publisher, &row(cgroup_id, "sda", 1, 7));
            }
            publisher.tell_sums(begin + turn * INTERVAL + INTERVAL / 2);
            // It reads one now and then.
            if turn % 7 == 0 {
                taken.push(next_snapshot(&mut slow).await);
            }
        }
        let messages = rest(&mut publisher, &mut slow).await;
        let told: Vec<&v1::Snapshot> = taken.iter().chain(snapshots(&messages)).collect();
        assert!(
            1 < told.len() && told.len() < TURNS as usize,
            "{mode:?}: {}",
            told.len()
        );
        for pair in told.windows(2) {
            assert_eq!(pair[0].end, pair[1].start, "no gap and no overlap");
        }
        let mut sums: BTreeMap<u64, u64> = BTreeMap::new();
        let rows = told.iter().flat_map(|snapshot| &snapshot.events);
        for event in rows.clone() {
            *sums.entry(event.cgroup_id).or_default() += latency(event).buckets[7];
        }
        assert_eq!(sums.len() as u64, CGROUPS);
        assert!(
            sums.values().all(|sum| *sum == u64::from(TURNS)),
            "{sums:?}"
        );
        let books = final_books(&messages);
        let rows = rows.count() as u64;
        assert_eq!((books.matched, books.delivered), (rows, rows));
        assert_eq!((books.queued, books.lost), (0, vec![]));
        drop(slow);
        publisher.refresh();
    }
}

#[tokio::test]
async fn what_a_stream_ends_with_is_told_though_its_queue_is_full() {
    let (hub, mut publisher) = hub();
    let asked = v1::SubscribeRequest {
        queue_bytes: 64 << 10,
        identity_mode: v1::IdentityMode::ByReference.into(),
        ..asked()
    };
    let mut stalled = subscribe(&hub, asked);
    publisher.refresh();
    for cgroup_id in 1..=2000 {
        add(&mut publisher, &row(cgroup_id, "sda", 1, 7));
    }
    let messages = rest(&mut publisher, &mut stalled).await;
    let told = snapshots(&messages);
    assert_eq!((told.len(), told[0].events.len()), (1, 2000));
    let names = messages
        .iter()
        .filter(|message| matches!(message, Message::Workload(_)));
    assert_eq!(names.count(), 2000);
    let books = final_books(&messages);
    assert_eq!((books.matched, books.delivered), (2000, 2000));
}

#[tokio::test]
async fn rows_beyond_the_bound_are_lost_and_told() {
    // As many as fit into its queue, 512 bytes each.
    const BOUND: u64 = 4096;
    let (hub, mut publisher) = hub();
    let asked = v1::SubscribeRequest {
        queue_bytes: 2 << 20,
        ..asked()
    };
    let mut subscription = subscribe(&hub, asked);
    publisher.refresh();
    for cgroup_id in 1..=BOUND + 3 {
        add(&mut publisher, &row(cgroup_id, "sda", 1, 0));
    }
    // What is kept already needs no more room.
    add(&mut publisher, &row(1, "sda", 1, 0));
    let messages = rest(&mut publisher, &mut subscription).await;
    let books = final_books(&messages);
    assert_eq!((books.matched, books.delivered), (BOUND + 3, BOUND));
    let lost = v1::StageLoss {
        stage: LossStage::ClientQueue.into(),
        count: 3,
    };
    assert_eq!(books.lost, [lost]);
    assert_eq!(latency(&snapshots(&messages)[0].events[0]).count, 2);
    let losses = hub
        .totals()
        .losses(v1::Kind::BlockLatency, Stage::ClientQueue);
    assert_eq!(losses, 3);
}

#[tokio::test]
async fn a_snapshot_counts_towards_what_a_stream_asked_for_and_is_not_cut() {
    let (hub, mut publisher) = hub();
    let asked = v1::SubscribeRequest {
        max_events: 2,
        ..asked()
    };
    let mut subscription = subscribe(&hub, asked);
    publisher.refresh();
    for cgroup_id in 1..=3 {
        add(&mut publisher, &row(cgroup_id, "sda", 1, 0));
    }
    publisher.tell_sums(Instant::now() + INTERVAL);
    assert_eq!(publisher.take_finished(), [subscription.id()]);
    add(&mut publisher, &row(4, "sda", 1, 0));
    let messages = rest(&mut publisher, &mut subscription).await;
    let told = snapshots(&messages);
    assert_eq!((told.len(), told[0].events.len()), (1, 3));
    let books = final_books(&messages);
    assert_eq!((books.matched, books.delivered), (3, 3));
}

#[tokio::test]
async fn who_asks_for_no_sums_gets_no_snapshot() {
    let (hub, mut publisher) = hub();
    let mut subscription = subscribe(&hub, request(&[v1::Kind::Exec]));
    publisher.refresh();
    add(&mut publisher, &row(7, "sda", 1, 0));
    publisher.tell_sums(Instant::now() + INTERVAL);
    let messages = rest(&mut publisher, &mut subscription).await;
    assert_eq!(snapshots(&messages).len(), 0);
}

#[tokio::test]
async fn sums_without_bounds_are_no_overflow() {
    let (hub, mut publisher) = hub();
    let mut stream = subscribe(&hub, asked());
    publisher.refresh();
    let mut most = row(7, "vda", 1, 3);
    let Some(v1::event::Detail::BlockLatency(latency)) = &mut most.detail else {
        panic!("it is a row")
    };
    latency.count = u64::MAX - 1;
    latency.bytes = u64::MAX;
    latency.buckets[3] = u64::MAX;
    for _ in 0..2 {
        add(&mut publisher, &most);
    }
    publisher.tell_sums(Instant::now() + INTERVAL);
    let snapshot = next_snapshot(&mut stream).await;
    let [event] = &snapshot.events[..] else {
        panic!("{snapshot:?}")
    };
    let sum = self::latency(event);
    assert_eq!(
        (sum.count, sum.bytes, sum.buckets[3]),
        (u64::MAX, u64::MAX, u64::MAX)
    );
}

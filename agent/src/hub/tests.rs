//! The hub without a kernel: a publisher on one side, subscriptions on the other.

mod fidelity;
mod grant;
mod limits;
mod resume;
mod sums;

use std::{sync::Arc, time::Duration};

use dinle_proto::v1::{self, EndReason, LossStage, subscribe_response::Message};
use prost::Message as _;

use super::*;
use crate::filter::{Grant, Limits, Request};

fn hub() -> (Hub, Publisher) {
    Hub::new(super::Limits::default(), || ())
}

fn request(kinds: &[v1::Kind]) -> v1::SubscribeRequest {
    v1::SubscribeRequest {
        kinds: kinds.iter().map(|&kind| kind.into()).collect(),
        ..Default::default()
    }
}

fn subscribe(hub: &Hub, asked: v1::SubscribeRequest) -> Subscription {
    let request = Request::parse(&asked, &Limits::default()).expect("a good request");
    hub.subscribe(asked, request, v1::Caller::default(), Grant::all())
        .expect("room")
}

fn pod(cgroup_id: u64, name: &str) -> Arc<v1::Workload> {
    Arc::new(v1::Workload {
        cgroup_id,
        state: v1::IdentityState::Pod.into(),
        node: "n".into(),
        namespace: "shop".into(),
        pod: name.into(),
        pod_uid: format!("uid-{name}"),
        ..Default::default()
    })
}

fn event(workload: &v1::Workload, comm: &str) -> v1::Event {
    v1::Event {
        kind: v1::Kind::Exec.into(),
        cgroup_id: workload.cgroup_id,
        process: Some(v1::Process {
            comm: comm.into(),
            pid: 9,
            ..Default::default()
        }),
        detail: Some(v1::event::Detail::Exec(v1::Exec {
            filename: "/bin/true".into(),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn publish(publisher: &mut Publisher, workload: &Arc<v1::Workload>, comm: &str) {
    let targets = publisher.targets(v1::Kind::Exec, workload).whole;
    publisher.publish(
        &event(workload, comm),
        v1::Kind::Exec,
        workload,
        &encode_name(workload),
        targets,
    );
}

async fn next(subscription: &mut Subscription) -> Message {
    let bytes = subscription.next().await.expect("a message").0;
    v1::SubscribeResponse::decode(bytes)
        .expect("a response")
        .message
        .expect("one of them")
}

async fn next_batch(subscription: &mut Subscription) -> v1::EventBatch {
    loop {
        match next(subscription).await {
            Message::Batch(batch) => return batch,
            Message::Plan(_)
            | Message::Snapshot(_)
            | Message::Loss(_)
            | Message::Workload(_)
            | Message::Heartbeat(_) => {}
        }
    }
}

/// Ends a stream as the reader does, and collects what is left of it.
async fn rest(publisher: &mut Publisher, subscription: &mut Subscription) -> Vec<Message> {
    publisher.finish(subscription.id(), EndReason::MaxDuration);
    let mut messages = Vec::new();
    while let Some(bytes) = subscription.next().await {
        messages.push(
            v1::SubscribeResponse::decode(bytes.0)
                .expect("a response")
                .message
                .expect("one of them"),
        );
    }
    messages
}

fn final_books(messages: &[Message]) -> v1::KindBooks {
    match messages.last() {
        Some(Message::Heartbeat(heartbeat)) => {
            assert_eq!(heartbeat.end(), EndReason::MaxDuration);
            heartbeat.books[0].clone()
        }
        other => panic!("the last message is {other:?}"),
    }
}

#[tokio::test]
async fn an_event_arrives_with_its_number_and_its_pods_name() {
    let (hub, mut publisher) = hub();
    let mut subscription = subscribe(&hub, request(&[v1::Kind::Exec]));
    publisher.refresh();
    let web = pod(7, "web");
    publish(&mut publisher, &web, "a");
    publish(&mut publisher, &web, "b");
    publisher.flush();
    publish(&mut publisher, &web, "c");
    publisher.flush();
    let batch = next_batch(&mut subscription).await;
    assert_eq!((batch.first_sequence, batch.events.len()), (1, 2));
    let event = &batch.events[1];
    assert_eq!(
        event.process.as_ref().map(|process| &*process.comm),
        Some("b")
    );
    let name = event.workload.as_ref().expect("inline identity");
    assert_eq!(
        (&*name.node, &*name.namespace, &*name.pod, &*name.container),
        ("n", "shop", "web", "")
    );
    assert_eq!(next_batch(&mut subscription).await.first_sequence, 3);
}

#[tokio::test]
async fn only_what_was_asked_for_arrives() {
    let (hub, mut publisher) = hub();
    let selector = v1::Selector {
        pods: vec!["web".into()],
        ..Default::default()
    };
    let filter = v1::Filter {
        comm: vec![v1::StringMatch {
            pattern: Some(v1::string_match::Pattern::Exact("sh".into())),
        }],
        ..Default::default()
    };
    let asked = v1::SubscribeRequest {
        selector: Some(selector),
        filter: Some(filter),
        ..request(&[v1::Kind::Exec])
    };
    let mut subscription = subscribe(&hub, asked);
    let mut exits = subscribe(&hub, request(&[v1::Kind::Exit]));
    publisher.refresh();
    for (workload, comm) in [("db", "sh"), ("web", "cat"), ("web", "sh"), ("db", "cat")] {
        publish(
            &mut publisher,
            &pod(if workload == "db" { 8 } else { 7 }, workload),
            comm,
        );
    }
    let messages = rest(&mut publisher, &mut subscription).await;
    let events: Vec<_> = messages
        .iter()
        .filter_map(|message| match message {
            Message::Batch(batch) => Some(batch.events.len()),
            _ => None,
        })
        .collect();
    assert_eq!(events, [1]);
    let books = final_books(&messages);
    assert_eq!((books.matched, books.delivered, books.queued), (1, 1, 0));
    assert_eq!(
        final_books(&rest(&mut publisher, &mut exits).await).matched,
        0
    );
}

#[tokio::test]
async fn by_reference_a_workload_comes_before_its_first_event_and_once() {
    let (hub, mut publisher) = hub();
    let asked = v1::SubscribeRequest {
        identity_mode: v1::IdentityMode::ByReference.into(),
        ..request(&[v1::Kind::Exec])
    };
    let mut subscription = subscribe(&hub, asked);
    publisher.refresh();
    for _ in 0..2 {
        publish(&mut publisher, &pod(7, "web"), "a");
        publisher.flush();
    }
    match next(&mut subscription).await {
        Message::Workload(update) => assert_eq!(
            update.workload.map(|workload| workload.pod),
            Some("web".into())
        ),
        other => panic!("{other:?}"),
    }
    for _ in 0..2 {
        match next(&mut subscription).await {
            Message::Batch(batch) => assert_eq!(
                (batch.events[0].cgroup_id, &batch.events[0].workload),
                (7, &None)
            ),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn what_becomes_known_later_is_told_to_those_who_saw_it() {
    let (hub, mut publisher) = hub();
    let mut saw = subscribe(&hub, request(&[v1::Kind::Exec]));
    let mut other = subscribe(&hub, request(&[v1::Kind::Exit]));
    publisher.refresh();
    publish(&mut publisher, &pod(7, "web"), "a");
    let named = Arc::new(v1::Workload {
        container: "app".into(),
        ..(*pod(7, "web")).clone()
    });
    publisher.flush();
    publisher.workloads_changed(|_| Some(named.clone()));
    publisher.workloads_changed(|_| Some(named.clone()));
    let messages = rest(&mut publisher, &mut saw).await;
    let updates: Vec<_> = messages
        .iter()
        .filter_map(|message| match message {
            Message::Workload(update) => Some(
                update
                    .workload
                    .as_ref()
                    .expect("a workload")
                    .container
                    .clone(),
            ),
            _ => None,
        })
        .collect();
    assert_eq!(updates, ["app"]);
    assert_eq!(
        rest(&mut publisher, &mut other).await.len(),
        1,
        "nothing but the end"
    );
}

#[tokio::test]
async fn a_slow_subscriber_loses_its_own_events_and_is_told_which() {
    let (hub, mut publisher) = hub();
    let small = v1::SubscribeRequest {
        queue_bytes: 64 << 10,
        ..request(&[v1::Kind::Exec])
    };
    let (mut slow, mut fast) = (
        subscribe(&hub, small),
        subscribe(&hub, request(&[v1::Kind::Exec])),
    );
    publisher.refresh();
    let web = pod(7, "web");
    let total: u64 = 5000;
    let mut fast_seen = 0;
    for _ in 0..total / 50 {
        for _ in 0..50 {
            publish(&mut publisher, &web, "a");
        }
        publisher.flush();
        fast_seen += next_batch(&mut fast).await.events.len() as u64;
    }
    assert_eq!(fast_seen, total);
    assert_eq!(final_books(&rest(&mut publisher, &mut fast).await).lost, []);

    let messages = rest(&mut publisher, &mut slow).await;
    let books = final_books(&messages);
    let (mut seen, mut gaps, mut next_sequence, mut told) = (0, 0, 1, 0);
    for message in &messages {
        match message {
            Message::Batch(batch) => {
                gaps += batch.first_sequence - next_sequence;
                next_sequence = batch.first_sequence + batch.events.len() as u64;
                seen += batch.events.len() as u64;
            }
            Message::Loss(loss) => {
                assert_eq!(
                    (loss.kind(), loss.stage()),
                    (v1::Kind::Exec, LossStage::ClientQueue)
                );
                assert!(
                    1 < loss.first_sequence
                        && loss.first_sequence <= loss.last_sequence
                        && loss.last_sequence == total
                );
                told += loss.count;
            }
            Message::Plan(_)
            | Message::Snapshot(_)
            | Message::Workload(_)
            | Message::Heartbeat(_) => {}
        }
    }
    gaps += total + 1 - next_sequence;
    assert!(gaps > 0);
    assert_eq!(
        (books.matched, books.delivered, books.queued),
        (total, seen, 0)
    );
    assert_eq!((seen + gaps, told), (total, gaps));
    assert_eq!(
        books.lost,
        [v1::StageLoss {
            stage: LossStage::ClientQueue.into(),
            count: gaps
        }]
    );
}

#[tokio::test]
async fn what_waits_for_a_stalled_stream_is_bounded_also_when_only_names_change() {
    let (hub, mut publisher) = hub();
    let asked = v1::SubscribeRequest {
        queue_bytes: 64 << 10,
        identity_mode: v1::IdentityMode::ByReference.into(),
        ..request(&[v1::Kind::Exec])
    };
    let mut stalled = subscribe(&hub, asked);
    publisher.refresh();
    let total = 20_000;
    for n in 0..total {
        publish(&mut publisher, &pod(n + 1, &format!("pod-{n}")), "a");
        publisher.flush();
        assert!(stalled.listener().queue.bytes() <= 64 << 10);
    }
    let messages = rest(&mut publisher, &mut stalled).await;
    let books = final_books(&messages);
    let mut named = std::collections::HashSet::new();
    let (mut delivered, mut last) = (0, 0);
    for message in &messages {
        match message {
            Message::Workload(update) => {
                named.insert(update.workload.as_ref().expect("a workload").cgroup_id);
            }
            Message::Batch(batch) => {
                assert!(batch.first_sequence > last, "numbers go up");
                last = batch.first_sequence;
                for event in &batch.events {
                    assert!(named.contains(&event.cgroup_id), "its name comes first");
                    delivered += 1;
                }
            }
            Message::Plan(_) | Message::Snapshot(_) | Message::Loss(_) | Message::Heartbeat(_) => {}
        }
    }
    assert!(0 < delivered && delivered < total);
    assert_eq!(
        (books.matched, books.delivered, books.queued),
        (total, delivered, 0)
    );
    let lost: Vec<_> = books
        .lost
        .iter()
        .map(|loss| (loss.stage(), loss.count))
        .collect();
    assert_eq!(lost, [(LossStage::ClientQueue, total - delivered)]);
}

#[tokio::test]
async fn news_that_found_no_room_comes_with_the_next_event() {
    let (hub, mut publisher) = hub();
    let asked = v1::SubscribeRequest {
        queue_bytes: 64 << 10,
        ..request(&[v1::Kind::Exec])
    };
    let mut subscription = subscribe(&hub, asked);
    publisher.refresh();
    let web = pod(7, "web");
    for _ in 0..5000 {
        publish(&mut publisher, &web, "a");
        publisher.flush();
    }
    let named = Arc::new(v1::Workload {
        container: "app".into(),
        ..(*web).clone()
    });
    publisher.workloads_changed(|_| Some(named.clone()));
    let updates = |messages: &[Message]| {
        let update = |message: &&Message| matches!(message, Message::Workload(_));
        messages.iter().filter(update).count()
    };
    let mut before = Vec::new();
    while subscription.listener().queue.bytes() > 0 {
        before.push(next(&mut subscription).await);
    }
    assert_eq!(updates(&before), 0, "there was no room");
    publish(&mut publisher, &named, "b");
    assert_eq!(updates(&rest(&mut publisher, &mut subscription).await), 1);
}

#[tokio::test]
async fn a_record_that_nobody_can_read_is_everyones_loss() {
    let (hub, mut publisher) = hub();
    let mut execs = subscribe(&hub, request(&[v1::Kind::Exec]));
    let mut exits = subscribe(&hub, request(&[v1::Kind::Exit]));
    publisher.refresh();
    publisher.lose_unread();
    for subscription in [&mut execs, &mut exits] {
        let books = final_books(&rest(&mut publisher, subscription).await);
        assert_eq!((books.matched, books.delivered), (1, 0));
        assert_eq!(books.lost[0].stage(), LossStage::Agent);
    }
}

#[tokio::test]
async fn what_cannot_be_heard_or_counted_is_told_with_the_heartbeat() {
    let (hub, mut publisher) = hub();
    let mut subscription = subscribe(&hub, request(&[v1::Kind::Exec]));
    publisher.refresh();
    hub.set_notes(vec!["the table is full".into()]);
    match rest(&mut publisher, &mut subscription).await.last() {
        Some(Message::Heartbeat(heartbeat)) => assert_eq!(heartbeat.notes, ["the table is full"]),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_kernels_losses_are_told_to_those_who_watch_the_pod() {
    let (hub, mut publisher) = hub();
    let of = |pod: &str| v1::SubscribeRequest {
        selector: Some(v1::Selector {
            pods: vec![pod.into()],
            ..Default::default()
        }),
        ..request(&[v1::Kind::Exec])
    };
    let (mut web, mut db) = (subscribe(&hub, of("web")), subscribe(&hub, of("db")));
    let mut exits = subscribe(&hub, request(&[v1::Kind::Exit]));
    let (web_pod, db_pod) = (pod(7, "web"), pod(8, "db"));
    let demand = hub.demand([(7, &web_pod), (8, &db_pod)], 16);
    publisher.refresh();
    let [web_want, db_want] = demand.cgroups[..] else {
        panic!("{demand:?}")
    };
    assert_ne!(web_want.slot, db_want.slot);
    publisher.lose(web_want.slot, v1::Kind::Exec, Stage::KernelRing, 40);
    publisher.lose(web_want.slot, v1::Kind::Exec, Stage::KernelRing, 2);
    for (subscription, lost) in [(&mut web, 42), (&mut db, 0), (&mut exits, 0)] {
        let books = final_books(&rest(&mut publisher, subscription).await);
        assert_eq!((books.matched, books.delivered), (lost, 0));
        let told: Vec<_> = books
            .lost
            .iter()
            .map(|loss| (loss.stage(), loss.count))
            .collect();
        assert_eq!(
            told,
            if lost == 0 {
                vec![]
            } else {
                vec![(LossStage::KernelRing, lost)]
            }
        );
    }
    assert_eq!(hub.totals().losses(v1::Kind::Exec, Stage::KernelRing), 42);
}

#[tokio::test]
async fn a_stream_gets_as_many_events_as_it_asked_for() {
    let (hub, mut publisher) = hub();
    let mut subscription = subscribe(
        &hub,
        v1::SubscribeRequest {
            max_events: 5,
            ..request(&[v1::Kind::Exec])
        },
    );
    publisher.refresh();
    for _ in 0..9 {
        publish(&mut publisher, &pod(7, "web"), "a");
    }
    publisher.flush();
    assert_eq!(publisher.take_finished(), [subscription.id()]);
    let messages = rest(&mut publisher, &mut subscription).await;
    let books = final_books(&messages);
    assert_eq!((books.matched, books.delivered, books.queued), (5, 5, 0));
}

#[tokio::test(start_paused = true)]
async fn a_quiet_stream_shows_that_it_lives() {
    let (hub, _publisher) = hub();
    let asked = v1::SubscribeRequest {
        heartbeat_interval: Some(prost_types::Duration {
            seconds: 3,
            nanos: 0,
        }),
        ..request(&[v1::Kind::Exec])
    };
    let mut subscription = subscribe(&hub, asked);
    let began = tokio::time::Instant::now();
    for beat in 1..4 {
        match next(&mut subscription).await {
            Message::Heartbeat(heartbeat) => assert_eq!(heartbeat.end(), EndReason::Unspecified),
            other => panic!("{other:?}"),
        }
        assert_eq!(began.elapsed().as_secs(), 3 * beat);
    }
}

#[tokio::test(start_paused = true)]
async fn time_and_shutdown_end_a_stream_through_the_reader() {
    let (hub, mut publisher) = hub();
    let asked = v1::SubscribeRequest {
        max_duration: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
        ..request(&[v1::Kind::Exec])
    };
    let mut timed = subscribe(&hub, asked);
    let mut endless = subscribe(&hub, request(&[v1::Kind::Exec]));
    publisher.refresh();
    let (first, second) = (timed.id(), endless.id());
    let reader = std::thread::spawn(move || {
        let mut ended = Vec::new();
        let began = std::time::Instant::now();
        while ended.len() < 2 {
            assert!(began.elapsed() < Duration::from_secs(30), "{ended:?}");
            for command in publisher.commands() {
                if let Command::Finish(id, reason) = command {
                    publisher.finish(id, reason);
                    ended.push((id, reason));
                }
            }
            std::thread::yield_now();
        }
        ended
    });
    let last = |messages: Vec<Message>| match messages.last() {
        Some(Message::Heartbeat(heartbeat)) => heartbeat.end(),
        other => panic!("{other:?}"),
    };
    async fn all(subscription: &mut Subscription) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(bytes) = subscription.next().await {
            messages.push(
                v1::SubscribeResponse::decode(bytes.0)
                    .expect("a response")
                    .message
                    .expect("one of them"),
            );
        }
        messages
    }
    assert_eq!(last(all(&mut timed).await), EndReason::MaxDuration);
    hub.shutdown();
    assert_eq!(last(all(&mut endless).await), EndReason::Shutdown);
    assert_eq!(
        reader.join().expect("the reader"),
        [
            (first, EndReason::MaxDuration),
            (second, EndReason::Shutdown)
        ]
    );
}

#[test]
fn demand_is_what_all_want_together_and_a_pod_keeps_its_slot() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let _guard = runtime.enter();
    let (hub, _publisher) = hub();
    let (web, db, host) = (
        pod(7, "web"),
        pod(8, "db"),
        Arc::new(v1::Workload {
            cgroup_id: 9,
            state: v1::IdentityState::Host.into(),
            ..Default::default()
        }),
    );
    let live = || [(7, &web), (8, &db), (9, &host)];
    assert_eq!(
        hub.demand(live(), 16)
            .cgroups
            .iter()
            .map(|want| want.kinds)
            .collect::<Vec<_>>(),
        [0, 0, 0]
    );
    let only_db = v1::SubscribeRequest {
        selector: Some(v1::Selector {
            pods: vec!["d*".into()],
            ..Default::default()
        }),
        ..request(&[v1::Kind::Exit])
    };
    let first = subscribe(&hub, only_db);
    let before = hub.demand(live(), 16);
    let (exec, exit) = (1 << v1::Kind::Exec as u64, 1 << v1::Kind::Exit as u64);
    assert_eq!(before.kinds, exit);
    assert_eq!(
        before
            .cgroups
            .iter()
            .map(|want| want.kinds)
            .collect::<Vec<_>>(),
        [0, exit, 0]
    );
    let second = subscribe(&hub, request(&[v1::Kind::Exec]));
    let both = hub.demand(live(), 16);
    assert_eq!(
        both.cgroups
            .iter()
            .map(|want| want.kinds)
            .collect::<Vec<_>>(),
        [exec, exec | exit, 0]
    );
    assert_eq!(both.cgroups[1].slot, before.cgroups[1].slot);
    assert_ne!(both.cgroups[0].slot, both.cgroups[1].slot);
    drop((first, second));
    let none = hub.demand(live(), 16);
    assert_eq!((none.kinds, none.moved), (0, true));
    assert!(!hub.demand(live(), 16).moved, "nothing has changed since");
}

#[test]
fn pods_beyond_the_slots_share_slot_0() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let _guard = runtime.enter();
    let (hub, _publisher) = hub();
    let _all = subscribe(&hub, request(&[v1::Kind::Exec]));
    let pods: Vec<_> = (0..5).map(|n| pod(n, &format!("p{n}"))).collect();
    let demand = hub.demand(pods.iter().map(|pod| (pod.cgroup_id, pod)), 4);
    let mut slots: Vec<_> = demand.cgroups.iter().map(|want| want.slot).collect();
    slots.sort_unstable();
    assert_eq!(slots, [0, 0, 1, 2, 3]);
}

#[tokio::test]
async fn without_a_reader_nobody_waits_for_ever() {
    let (hub, publisher) = hub();
    drop(publisher);
    let synced = tokio::time::timeout(Duration::from_secs(5), hub.sync()).await;
    assert_eq!(synced, Ok(false));
}

#[tokio::test]
async fn a_small_queue_takes_a_part_of_a_flood() {
    const EVENTS: usize = 5000;
    let (hub, mut publisher) = hub();
    let asked = v1::SubscribeRequest {
        queue_bytes: 64 << 10,
        resume_window: Some(prost_types::Duration {
            seconds: 9,
            nanos: 0,
        }),
        ..request(&[v1::Kind::Exec])
    };
    let mut subscription = subscribe(&hub, asked);
    publisher.refresh();
    let web = pod(7, "web");
    // More than a batch holds, and more than there is room for, before anybody looks.
    for _ in 0..EVENTS {
        publish(&mut publisher, &web, "a");
    }
    publisher.flush();
    let books = final_books(&rest(&mut publisher, &mut subscription).await);
    assert_eq!(books.matched, EVENTS as u64);
    assert!(books.delivered > 0, "{books:?}");
    assert_eq!(books.delivered + books.lost[0].count, books.matched);
}

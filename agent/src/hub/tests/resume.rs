//! A connection breaks, and another one goes on with the stream.

use super::*;

fn asked(kinds: &[v1::Kind]) -> v1::SubscribeRequest {
    v1::SubscribeRequest {
        resume_window: Some(prost_types::Duration {
            seconds: 30,
            nanos: 0,
        }),
        ..request(kinds)
    }
}

fn comms(messages: &[Message]) -> Vec<String> {
    let batches = messages.iter().filter_map(|message| match message {
        Message::Batch(batch) => Some(batch),
        _ => None,
    });
    batches
        .flat_map(|batch| &batch.events)
        .map(|event| event.process.clone().unwrap_or_default().comm)
        .collect()
}

/// What there is up to the end.
async fn rest(publisher: &mut Publisher, subscription: &mut Subscription) -> Vec<Message> {
    publisher.finish(subscription.id(), EndReason::MaxDuration);
    let mut messages = Vec::new();
    while let Some(bytes) = subscription.next().await {
        let response = v1::SubscribeResponse::decode(bytes.0).expect("a response");
        messages.extend(response.message);
    }
    messages
}

fn books(messages: &[Message]) -> v1::KindBooks {
    let Some(Message::Heartbeat(last)) = messages.last() else {
        panic!("{messages:?}")
    };
    assert_eq!(last.end(), EndReason::MaxDuration);
    last.books[0].clone()
}

#[tokio::test]
async fn what_did_not_come_is_sent_again_and_nothing_twice() {
    let (hub, mut publisher) = hub();
    let mut subscription = subscribe(&hub, asked(&[v1::Kind::Exec]));
    publisher.refresh();
    let web = pod(7, "web");
    for comm in ["a", "b", "c"] {
        publish(&mut publisher, &web, comm);
        publisher.flush();
    }
    for _ in 0..3 {
        next_batch(&mut subscription).await;
    }
    // The client got the first of them. What happens meanwhile waits.
    publish(&mut publisher, &web, "d");
    publisher.flush();
    assert_eq!(
        subscription.resume(4),
        Err(TooLate),
        "so many were not sent"
    );
    subscription.resume(1).expect("it is here");
    let messages = rest(&mut publisher, &mut subscription).await;
    assert_eq!(comms(&messages), ["b", "c", "d"]);
    let told = books(&messages);
    assert_eq!((told.matched, told.delivered), (4, 4));
    assert_eq!(told.lost, []);
    // Once more, of all but the last message.
    subscription
        .resume(1 + messages.len() as u64 - 1)
        .expect("it is here");
    let last = subscription.next().await.expect("the last books").0;
    let last = v1::SubscribeResponse::decode(last).expect("a response");
    assert_eq!(last.message, messages.last().cloned());
    assert!(subscription.next().await.is_none());
}

#[tokio::test]
async fn what_is_not_kept_is_lost_and_told() {
    const MESSAGES: usize = 40;
    let (hub, mut publisher) = hub();
    let mut subscription = subscribe(&hub, asked(&[v1::Kind::Exec]));
    publisher.refresh();
    let web = pod(7, "web");
    // A megabyte is kept, and each is a ninth of one.
    let long = "x".repeat(120_000);
    for _ in 0..MESSAGES {
        publish(&mut publisher, &web, &long);
        publisher.flush();
        next_batch(&mut subscription).await;
    }
    subscription.resume(3).expect("it is known what they told");
    let messages = rest(&mut publisher, &mut subscription).await;
    let again = comms(&messages).len() as u64;
    let told = books(&messages);
    assert_eq!(told.matched, MESSAGES as u64);
    assert_eq!(told.delivered, 3 + again);
    let lost = MESSAGES as u64 - 3 - again;
    assert!(0 < again && 0 < lost, "{again} {lost}");
    let stage = LossStage::Connection.into();
    assert_eq!(told.lost, [v1::StageLoss { stage, count: lost }]);
    let losses: Vec<_> = messages
        .iter()
        .filter_map(|message| match message {
            Message::Loss(loss) => Some((loss.stage, loss.count)),
            _ => None,
        })
        .collect();
    assert_eq!(losses, [(stage, lost)]);
    // No books of before, in which they were delivered.
    for message in &messages {
        if let Message::Heartbeat(heartbeat) = message {
            assert!(heartbeat.books[0].delivered <= 3 + again);
        }
    }
    assert_eq!(hub.totals().losses(v1::Kind::Exec, Stage::Connection), lost);
}

#[tokio::test]
async fn who_did_not_ask_for_it_cannot() {
    let (hub, mut publisher) = hub();
    let mut subscription = subscribe(&hub, request(&[v1::Kind::Exec]));
    publisher.refresh();
    publish(&mut publisher, &pod(7, "web"), "a");
    publisher.flush();
    next_batch(&mut subscription).await;
    assert_eq!(subscription.resume(0), Err(TooLate));
    let plain = hub.board().queue_bytes();
    let more = subscribe(&hub, asked(&[v1::Kind::Exec]));
    // What is kept is a part of its queue.
    assert_eq!(hub.board().queue_bytes(), 2 * plain);
    drop(more);
}

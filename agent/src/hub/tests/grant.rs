//! What a subscriber may be told.

use super::*;
use crate::filter::Access;

#[tokio::test]
async fn what_may_not_be_told_is_neither_told_nor_asked_of_the_kernel() {
    let (hub, mut publisher) = hub();
    let asked = request(&[v1::Kind::Exec, v1::Kind::Exit]);
    let parsed = Request::parse(&asked, &Limits::default()).expect("a good request");
    let only = |watch: &[v1::Kind], args: &[v1::Kind]| Access {
        watch: watch.iter().copied().collect(),
        args: args.iter().copied().collect(),
    };
    let grant = Grant {
        everywhere: Access::default(),
        namespaces: [("shop".to_owned(), only(&[v1::Kind::Exec], &[]))].into(),
        peers: [(
            "bank".to_owned(),
            [v1::Kind::TcpReset].into_iter().collect(),
        )]
        .into(),
    };
    let mut subscription = hub
        .subscribe(asked, parsed, v1::Caller::default(), grant)
        .expect("room");
    let web = pod(7, "web");
    let elsewhere = Arc::new(v1::Workload {
        namespace: "bank".into(),
        ..(*pod(8, "till")).clone()
    });
    publisher.refresh();
    // Whom it may not watch it may not know as the other end either.
    let strangers = |kind, namespace| publisher.strangers(1, kind, namespace);
    assert_eq!(strangers(v1::Kind::TcpReset, "bank"), 0);
    assert_eq!(strangers(v1::Kind::TcpReset, "shop"), 1);
    assert_eq!(strangers(v1::Kind::TcpSession, "bank"), 1);
    assert_eq!(
        publisher.strangers(2, v1::Kind::TcpSession, "bank"),
        0,
        "it is somebody else"
    );
    let targets = |publisher: &Publisher, kind, workload| publisher.targets(kind, workload);
    let redacted = targets(&publisher, v1::Kind::Exec, &web);
    assert_eq!((redacted.whole, redacted.redacted), (0, 1));
    assert_eq!(
        targets(&publisher, v1::Kind::Exit, &web),
        Targets::default()
    );
    assert_eq!(
        targets(&publisher, v1::Kind::Exec, &elsewhere),
        Targets::default()
    );
    let demand = hub.demand([(7, &web), (8, &elsewhere)], 64);
    let exec = 1 << v1::Kind::Exec as u32;
    assert_eq!(demand.kinds, exec, "nobody may hear of exits");
    let kinds: Vec<u64> = demand.cgroups.iter().map(|want| want.kinds).collect();
    assert_eq!(kinds, [exec, 0]);
    // A loss of what it may not hear is none of its.
    publisher.refresh();
    let slot = demand.cgroups[0].slot;
    publisher.lose(slot, v1::Kind::Exit, Stage::KernelRing, 3);
    publisher.lose(slot, v1::Kind::Exec, Stage::KernelRing, 5);

    // More is allowed from now on: whoever decides for events decides anew.
    let listener = subscription.listener().clone();
    hub.set_grant(&listener, Grant::all());
    assert!(publisher.is_stale());
    publisher.refresh();
    assert_eq!(targets(&publisher, v1::Kind::Exit, &elsewhere).whole, 1);
    let version = hub.board().version;
    hub.set_grant(&listener, Grant::all());
    assert_eq!(hub.board().version, version, "it is the same");

    // And then nothing: it ends, with its books, and knows why.
    let why = Withdrawn::Denied("jane may no longer".into());
    hub.withdraw(&listener, why.clone());
    publisher.refresh();
    assert_eq!(
        targets(&publisher, v1::Kind::Exec, &web),
        Targets::default()
    );
    let ending = tokio::spawn(async move {
        let mut last = None;
        while let Some(bytes) = subscription.next().await {
            last = v1::SubscribeResponse::decode(bytes.0)
                .expect("a response")
                .message;
        }
        (subscription.withdrawn(), subscription.ended(), last)
    });
    let command = async {
        loop {
            if let Some(command) = publisher.commands().pop() {
                return command;
            }
            tokio::task::yield_now().await;
        }
    };
    let command = tokio::time::timeout(Duration::from_secs(30), command).await;
    let command = command.expect("a command");
    let Command::Finish(id, reason) = command else {
        panic!("{command:?}");
    };
    publisher.finish(id, reason);
    let (withdrawn, ended, last) = ending.await.expect("no panic");
    assert_eq!((withdrawn, ended), (Some(why), Some(EndReason::Permission)));
    let Some(Message::Heartbeat(heartbeat)) = last else {
        panic!("{last:?}");
    };
    let lost = |kind: v1::Kind| {
        let books = heartbeat.books.iter().find(|books| books.kind() == kind);
        let books = books.expect("one for each kind");
        books.lost.iter().map(|loss| loss.count).sum::<u64>()
    };
    assert_eq!((lost(v1::Kind::Exec), lost(v1::Kind::Exit)), (5, 0));
}

//! What is lost, and that it is told.

use dinle_e2e::{
    act::act,
    patience::eventually,
    stream::{Book, Window},
};
use dinle_proto::v1::{Kind, LossStage, SubscribeRequest};

use crate::{Lab, run_some, shop};

const KINDS: [Kind; 2] = [Kind::Exec, Kind::Exit];

#[test]
fn a_ring_that_overflows_loses_what_is_told() {
    /// Children, and the one that runs them.
    const PROCESSES: u64 = 2001;
    let lab = Lab::with(&["--ring-bytes", "65536", "--sensors", "process"]);
    let mut stream = lab.listen();
    assert_eq!(lab.agent.status().ring_bytes, 65536);
    lab.agent.signal(libc::SIGSTOP);
    lab.app.succeed(act(["spawn", "2000"]));
    lab.agent.signal(libc::SIGCONT);
    stream.until("everything is told or lost", |stream| {
        stream.heard.is_some()
            && KINDS
                .iter()
                .all(|&kind| stream.book(kind).matched == PROCESSES)
    });
    stream.heartbeat();

    for kind in KINDS {
        let book = stream.book(kind);
        let lost = book.lost_at(LossStage::KernelRing);
        assert!(lost > 0, "{book:?}");
        assert_eq!(book.lost, [(LossStage::KernelRing, lost)]);
        assert_eq!(
            (book.matched, book.delivered + lost),
            (PROCESSES, PROCESSES)
        );
        let got = stream
            .events
            .iter()
            .filter(|event| event.kind() == kind)
            .count();
        assert_eq!(book.delivered, got as u64);
        assert_eq!(stream.told_lost(kind, LossStage::KernelRing), lost);
    }
    assert_eq!(stream.skipped, 0, "what nobody saw has no number");

    // The node's account is the stream's: there is only one.
    for loss in lab.agent.status().losses {
        assert_eq!(loss.stage(), LossStage::KernelRing);
        assert_eq!(loss.count, stream.book(loss.kind()).lost_at(loss.stage()));
    }
    // What comes after is heard again.
    let last = run_some(&lab.app, 5);
    stream.through_exit(last);
    assert_eq!(stream.book(Kind::Exec).matched, PROCESSES + 5);
}

#[test]
fn a_subscriber_that_does_not_read_loses_only_its_own() {
    const CHILDREN: u64 = 3000;
    const PROCESSES: u64 = CHILDREN + 1;
    // The whole of it fits into the ring: nothing is lost where a slow machine's reader is late.
    let lab = Lab::with(&["--ring-bytes", "16777216", "--sensors", "process"]);
    let request = |queue_bytes| SubscribeRequest {
        queue_bytes,
        ..shop()
    };
    let mut slow = lab
        .agent
        .try_subscribe(Window::Small, request(64 << 10))
        .unwrap();
    let mut fast = lab.agent.subscribe(request(64 << 20));
    // Long arguments make events large.
    let long = "x".repeat(1500);
    let ran = lab
        .app
        .succeed(act(["spawn", &CHILDREN.to_string(), &long]));
    fast.through_exit(ran.pid);

    for kind in KINDS {
        assert_eq!(fast.book(kind), Book::complete(PROCESSES), "{kind:?}");
    }
    assert_eq!((fast.losses.len(), fast.skipped), (0, 0));
    // Nobody has read the other one yet, and its queue is within its bound.
    assert_eq!(slow.events.len(), 0);
    let status = lab.agent.status();
    let books = &status
        .subscriptions
        .iter()
        .find(|one| one.stream_id == slow.plan.stream_id);
    let books = &books.unwrap().books;
    for kind in KINDS {
        let book = Book::of(books, kind);
        assert_eq!(book.matched, PROCESSES);
        assert!(book.lost_at(LossStage::ClientQueue) > 0, "{book:?}");
    }

    slow.until("everything is delivered or lost", |slow| {
        slow.heard.is_some()
            && KINDS.iter().all(|&kind| {
                let book = slow.book(kind);
                (book.matched, book.queued) == (PROCESSES, 0)
            })
    });
    // One more event after the losses, so that each is before some number that came.
    let last = run_some(&lab.app, 1);
    slow.through_exit(last);
    slow.heartbeat();
    let mut lost_in_all = 0;
    for kind in KINDS {
        let book = slow.book(kind);
        let lost = book.lost_at(LossStage::ClientQueue);
        assert_eq!(book.lost, [(LossStage::ClientQueue, lost)]);
        assert_eq!(
            (book.matched, book.delivered + lost),
            (PROCESSES + 1, PROCESSES + 1)
        );
        assert_eq!(slow.told_lost(kind, LossStage::ClientQueue), lost);
        lost_in_all += lost;
    }
    assert_eq!(slow.skipped, lost_in_all, "what was lost has numbers");
    let numbers = 1..=2 * (PROCESSES + 1);
    for loss in &slow.losses {
        let (first, last) = (loss.first_sequence, loss.last_sequence);
        assert!(
            numbers.contains(&first) && numbers.contains(&last),
            "{loss:?}"
        );
        assert!(last - first + 1 >= loss.count, "{loss:?}");
    }

    fast.through_exit(last);
    assert_eq!(fast.book(Kind::Exit), Book::complete(PROCESSES + 1));
    drop(slow);
    eventually("the slow stream is gone", || {
        lab.agent.status().subscriptions.len() == 1
    });
}

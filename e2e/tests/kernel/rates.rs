//! So many events a second of each pod, and the rest is counted.

use std::time::Instant;

use dinle_e2e::{act::act, cgroup::Cgroup, patience::eventually, stream::Stream};
use dinle_proto::v1::{
    Filter, Kind, LossStage, StringMatch, SubscribeRequest, string_match::Pattern,
};

use crate::{Lab, run_some, shop};

/// One a second, and one at once.
const RATE: [&str; 2] = ["--max-pod-events-per-second", "1"];

fn assert_limited(stream: &Stream, kind: Kind, matched: u64, most: u64) {
    let book = stream.book(kind);
    let lost = book.lost_at(LossStage::RateLimit);
    assert_eq!(book.lost, [(LossStage::RateLimit, lost)], "{kind:?}");
    assert_eq!((book.matched, book.delivered + lost), (matched, matched));
    assert!(
        (1..=most).contains(&book.delivered),
        "{book:?}, at most {most}"
    );
    assert_eq!(stream.told_lost(kind, LossStage::RateLimit), lost);
}

#[test]
fn a_pod_has_so_many_events_a_second_and_the_rest_is_counted() {
    /// Children, and the one that runs them.
    const PROCESSES: u64 = 301;
    let lab = Lab::with(&[&["--sensors", "process"], &RATE[..]].concat());
    let (quiet, other) = lab.tree.app("quiet");
    lab.agent.set_pods(&[&lab.pod, &quiet]);
    eventually("the other pod is known", || {
        let workloads = lab.agent.workloads(None);
        workloads.iter().any(|workload| workload.pod == quiet.name)
    });
    let began = Instant::now();
    let mut stream = lab.listen();
    lab.app.succeed(act(["spawn", "300"]));
    let calm = run_some(&other, 1);
    stream.through_exit(calm);
    stream.until("all is told or lost", |stream| {
        stream.book(Kind::Exec).matched == PROCESSES + 1
            && stream.book(Kind::Exit).matched == PROCESSES + 1
    });
    stream.heartbeat();
    // The other pod has a bucket of its own, and so has each kind.
    let most = 3 + began.elapsed().as_secs();
    for kind in [Kind::Exec, Kind::Exit] {
        assert_limited(&stream, kind, PROCESSES + 1, most);
    }
    stream.exec_of(calm);
    stream.exit_of(calm);
    assert_eq!(stream.skipped, 0, "what nobody saw has no number");
}

fn opens(cgroup: &Cgroup, times: u32, path: &str) {
    let times = times.to_string();
    cgroup.succeed(act(["file", "many", &times, "open", path, "0"]));
}

#[test]
fn what_nobody_asked_for_takes_nothing_from_a_pod_s_rate() {
    let lab = Lab::with(&[&["--sensors", "file"], &RATE[..]].concat());
    let below = |prefix: &str| SubscribeRequest {
        kinds: vec![Kind::FileOpen.into()],
        filter: Some(Filter {
            path: vec![StringMatch {
                pattern: Some(Pattern::Prefix(prefix.into())),
            }],
            ..Filter::default()
        }),
        ..shop()
    };
    let mut stream = lab.agent.subscribe(below("/dev/zero"));
    // All of it is elsewhere, and the kernel can tell.
    opens(&lab.app, 500, "/dev/null");
    opens(&lab.app, 1, "/dev/zero");
    stream.until("the open is told", |stream| !stream.events.is_empty());
    stream.heartbeat();
    let book = stream.book(Kind::FileOpen);
    assert_eq!((book.matched, book.delivered), (1, 1), "{book:?}");
    // What is asked for is limited all the same.
    opens(&lab.app, 500, "/dev/zero");
    stream.until("all is told or lost", |stream| {
        stream.book(Kind::FileOpen).matched == 501
    });
    stream.heartbeat();
    let lost = stream.book(Kind::FileOpen).lost_at(LossStage::RateLimit);
    assert!(lost > 0, "{:?}", stream.books);
}

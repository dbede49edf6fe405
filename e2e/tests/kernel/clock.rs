//! Steps of the wall clock, by hours and both ways: times follow the node's clock, and nothing else cares.

use std::{
    env, io,
    time::{Duration, Instant, SystemTime},
};

use dinle_e2e::{
    act::act,
    skipped::skipped,
    stream::{Book, Stream},
};
use dinle_proto::v1::{EndReason, Kind, LossStage, Resume, SubscribeRequest};

use crate::{Lab, only, run_some, shop, span};

/// Set to 1 where the machine is the test's own.
const MAY: &str = "DINLE_SET_CLOCK";

const HOUR: Duration = Duration::from_secs(3600);

/// A wall clock that may be wrong. Dropping it sets it right again.
struct Clock {
    began: Instant,
    right: SystemTime,
}

impl Clock {
    /// `None` where the clock is everybody's; then it says so.
    fn new() -> Option<Self> {
        if env::var(MAY).is_ok_and(|may| may == "1") {
            return Some(Self {
                began: Instant::now(),
                right: SystemTime::now(),
            });
        }
        skipped(&format!(
            "the clock of this machine is not the test's own; `vm --only clock::` runs it in one that is, with {MAY}=1"
        ));
        None
    }

    fn now(&self) -> SystemTime {
        self.right + self.began.elapsed()
    }

    fn ahead(&self, by: Duration) {
        set(self.now() + by);
    }

    fn behind(&self, by: Duration) {
        set(self.now() - by);
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        set(self.now());
    }
}

fn set(time: SystemTime) {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let time = libc::timespec {
        tv_sec: since.as_secs() as libc::time_t,
        tv_nsec: since.subsec_nanos().into(),
    };
    // SAFETY: `time` outlives the call.
    let failed = unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) };
    assert_eq!(failed, 0, "{}", io::Error::last_os_error());
}

/// Waits until the agent has compared its clocks: it does before it answers whoever subscribes.
fn settle(lab: &Lab) {
    drop(lab.listen());
}

/// When the last event was, by what it says.
fn last_time(stream: &Stream) -> SystemTime {
    let time = stream.events.last().unwrap().time.unwrap();
    time.try_into().unwrap()
}

#[test]
fn times_follow_the_clock_of_the_node() {
    let Some(clock) = Clock::new() else { return };
    let lab = Lab::of("process");
    let mut stream = lab.listen();
    let steps: [&dyn Fn(); 4] = [
        &|| clock.ahead(5 * HOUR),
        &|| clock.behind(7 * HOUR),
        &|| clock.ahead(30 * 24 * HOUR),
        &|| clock.ahead(Duration::ZERO),
    ];
    for (number, step) in steps.iter().enumerate() {
        step();
        // What was heard before is of another time.
        stream.heard = None;
        settle(&lab);
        let before = SystemTime::now();
        let last = run_some(&lab.app, 3);
        let after = SystemTime::now();
        stream.through_exit(last);
        let told = last_time(&stream);
        // Both clocks are read one after the other.
        let slack = Duration::from_secs(1);
        assert!(
            before - slack <= told && told <= after + slack,
            "{before:?}, {told:?}, {after:?}"
        );
        let (seconds, _) = stream.heard.unwrap();
        let heard = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap());
        assert!(heard + slack >= before, "{heard:?}");
        let processes = 3 * (number as u64 + 1);
        assert_eq!(stream.book(Kind::Exec), Book::complete(processes));
    }
    assert!(stream.losses.is_empty());
}

#[test]
fn streams_last_as_long_as_they_should() {
    let Some(clock) = Clock::new() else { return };
    let lab = Lab::of("process");
    let lasting = |time| {
        lab.agent.subscribe(SubscribeRequest {
            max_duration: Some(span(time)),
            ..shop()
        })
    };
    let mut long = lasting(HOUR);
    clock.ahead(5 * HOUR);
    let last = run_some(&lab.app, 2);
    long.through_exit(last);
    assert_eq!(long.end, None);
    let mut short = lasting(Duration::from_secs(1));
    clock.behind(5 * HOUR);
    assert_eq!(short.to_end(), EndReason::MaxDuration);
    long.heard = None;
    let last = run_some(&lab.app, 2);
    long.through_exit(last);
    assert_eq!(long.book(Kind::Exec), Book::complete(4));
}

#[test]
fn rate_limits_hold() {
    /// In less than as many seconds, on whatever machine.
    const OPENS: u64 = 200;
    let Some(clock) = Clock::new() else { return };
    let lab = Lab::of("file");
    let mut stream = lab.agent.subscribe(SubscribeRequest {
        max_events_per_second: 1,
        ..only(Kind::FileOpen, shop())
    });
    let lost = |stream: &Stream| stream.book(Kind::FileOpen).lost_at(LossStage::RateLimit);
    let times = OPENS.to_string();
    let (mut opened, mut lost_before) = (0, 0);
    let steps: [&dyn Fn(); 3] = [
        &|| clock.ahead(5 * HOUR),
        &|| clock.behind(5 * HOUR),
        &|| clock.ahead(Duration::ZERO),
    ];
    for step in steps {
        let told = stream.events.len();
        step();
        // What was spent is not owed for hours…
        loop {
            lab.app
                .succeed(act(["file", "many", &times, "open", "/proc/uptime", "0"]));
            opened += OPENS;
            stream.until("all of them are told or lost", |stream| {
                stream.heard.is_some() && stream.book(Kind::FileOpen).matched >= opened
            });
            if stream.events.len() > told {
                break;
            }
        }
        // …and what could have been saved up in hours is not there.
        assert!(lost(&stream) > lost_before, "{:?}", stream.books);
        lost_before = lost(&stream);
    }
    assert_eq!(stream.book(Kind::FileOpen).lost.len(), 1);
}

#[test]
fn a_stream_is_resumed_within_its_window() {
    let Some(clock) = Clock::new() else { return };
    let lab = Lab::of("process");
    for step in [5, -5] {
        let mut stream = lab.agent.subscribe(SubscribeRequest {
            resume_window: Some(span(Duration::from_secs(60))),
            ..shop()
        });
        let first = run_some(&lab.app, 3);
        stream.through_exit(first);
        let resume = Resume {
            stream_id: stream.plan.stream_id,
            token: stream.plan.resume_token.clone(),
            received: stream.received,
        };
        drop(stream);
        match step {
            ..0 => clock.behind(5 * HOUR),
            _ => clock.ahead(5 * HOUR),
        }
        let last = run_some(&lab.app, 4);
        let mut again = lab.agent.subscribe(SubscribeRequest {
            resume: Some(resume),
            ..SubscribeRequest::default()
        });
        assert!(again.plan.resumed);
        again.until("the exit of the last", |again| {
            again.exits().any(|(_, process, _)| process.pid == last)
        });
        assert_eq!(again.execs().count(), 4);
        assert!(again.losses.is_empty());
    }
}

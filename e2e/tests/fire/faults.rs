//! Threads and processes that stand still or die under load: nothing stays attached, streams live on, and books balance afterwards.

use std::{
    fs::{self, File},
    io,
    path::PathBuf,
    process::{Child, Command, Stdio},
    ptr::null_mut,
    time::{Duration, Instant},
};

use dinle_e2e::{
    act::{act, dinle},
    agent::{Agent, temporary},
    bpf,
    cgroup::{Cgroup, Tree},
    patience::{after, eventually},
    pods::Pod,
    stream::{Book, Stream},
};
use dinle_proto::v1::{Kind, LossStage, SubscribeRequest};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    alone, metric,
    overload::{KINDS, Load, assert_balanced, events, frames, in_memory},
    producer::{Counts, Producer},
    shop,
    subscriber::{Pace, Subscribers},
};

/// A reader that stands still for so long is told of: some seconds more than it takes.
const STUCK: Duration = Duration::from_secs(12);

/// A pod, an agent with little room, and somebody who hears everything.
struct Lab {
    agent: Agent,
    app: Cgroup,
    pod: Pod,
    tree: Tree,
    dir: TempDir,
}

impl Lab {
    fn new() -> Self {
        let tree = Tree::new();
        let (pod, app) = tree.app("web");
        let agent = Agent::with_pods(&[&pod], &["--ring-bytes", "65536"]);
        Self {
            agent,
            app,
            pod,
            tree,
            dir: in_memory(),
        }
    }

    /// Everything, with so many events in all.
    fn load(&self, events: u64) -> Load {
        Load::new(&self.tree, &self.app, self.dir.path(), events)
    }

    /// Opens of files that are not there, by a process of its own.
    fn opens(&self, times: u64) -> Producer {
        let work = [("missing", times)];
        Producer::new(&self.tree, &self.app, self.dir.path(), 0, None, &work)
    }

    /// One that loses nothing of its own while it is not read: there is room for all that a test does.
    fn subscribe(&self, kinds: &[Kind]) -> Stream {
        self.agent.subscribe(SubscribeRequest {
            queue_bytes: 32 << 20,
            kinds: kinds.iter().map(|&kind| kind.into()).collect(),
            heartbeat_interval: Some(Duration::from_millis(100).try_into().unwrap()),
            ..shop()
        })
    }

    fn reader(&self) -> libc::pid_t {
        let threads = self.agent.threads();
        let mut readers = threads.iter().filter(|(_, name)| name == "dinle-reader");
        let (id, _) = readers.next().expect("the reader");
        assert_eq!(readers.next(), None, "there is one");
        *id
    }
}

/// A thread of another process that stands still. Dropping it lets it go on.
struct Suspended(libc::pid_t);

impl Suspended {
    fn new(thread: libc::pid_t) -> Self {
        ptrace(libc::PTRACE_SEIZE, thread).expect("a thread that nobody traces");
        ptrace(libc::PTRACE_INTERRUPT, thread).expect("it is traced now");
        let status = wait(thread);
        assert!(libc::WIFSTOPPED(status), "{status:#x}");
        Self(thread)
    }
}

impl Drop for Suspended {
    fn drop(&mut self) {
        let Self(thread) = self;
        if ptrace(libc::PTRACE_DETACH, *thread).is_err() {
            // It was killed, and its process cannot end before whoever traces it has seen that.
            wait(*thread);
        }
    }
}

fn ptrace(request: libc::c_uint, thread: libc::pid_t) -> io::Result<()> {
    let nothing = null_mut::<libc::c_void>();
    // SAFETY: none of the requests reads or writes memory of ours.
    match unsafe { libc::ptrace(request, thread, nothing, nothing) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn wait(thread: libc::pid_t) -> libc::c_int {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
    assert_eq!(waited, thread, "{}", io::Error::last_os_error());
    status
}

#[test]
fn a_reader_that_stands_still_is_told_of_and_its_losses_are_told_once_it_goes_on() {
    let _alone = alone();
    let lab = Lab::new();
    let requests = [Pace::AtOnce, Pace::Slowly, Pace::InBursts, Pace::Hardly].map(|pace| {
        let request = SubscribeRequest {
            kinds: KINDS.map(Into::into).to_vec(),
            ..shop()
        };
        (pace, request)
    });
    let loads = [lab.load(20_000), lab.load(200_000), lab.load(20_000)];
    let streams = Subscribers::start(lab.agent.listen, requests.into_iter());
    let mut watching = lab.subscribe(&[Kind::Exec]);
    let mut produced = Counts::new();
    let [before, during, later] = loads;
    before.run(&mut produced);
    let taken = |kind| frames(&lab.agent.get("/metrics").1, kind);

    let suspended = Suspended::new(lab.reader());
    let frames_before = taken(Kind::FileOpen);
    during.run(&mut produced);
    assert_eq!(taken(Kind::FileOpen), frames_before, "it stands still");
    // Streams live on, and so does everything that asks nothing of the reader.
    for _ in 0..3 {
        watching.heartbeat();
    }
    assert_eq!(lab.agent.status().subscriptions.len(), 5);
    let unavailable = |path: &str| {
        let (status, text) = lab.agent.get(path);
        status == 503 && text.starts_with("the reader has stood still for ")
    };
    after(STUCK, "the agent says that it does not work", || {
        unavailable("/healthz")
    });
    assert!(unavailable("/readyz"));
    let stuck = || metric(&lab.agent.get("/metrics").1, "dinle_reader_stuck");
    assert_eq!(stuck(), 1);
    watching.heartbeat();
    assert!(
        watching.notes[0].contains("nobody is told what happens meanwhile"),
        "{:?}",
        watching.notes
    );

    drop(suspended);
    eventually("the agent says that it works", || {
        lab.agent.get("/healthz").0 == 200
    });
    assert_eq!(lab.agent.get("/readyz").0, 200);
    assert_eq!(stuck(), 0);
    later.run(&mut produced);
    watching.heartbeat();
    assert_eq!(watching.notes, [""; 0]);
    let accounts = streams.finish(Load::finish(&produced));
    let metrics = lab.agent.get("/metrics").1;
    for account in &accounts {
        for (&kind, &count) in &produced {
            assert_balanced(account, kind, count, &metrics);
        }
        let lost = account.book(Kind::FileOpen).lost_at(LossStage::KernelRing);
        assert!(lost > 100_000, "{lost} of {}", events(&produced));
    }
    let log = lab.agent.log();
    assert!(
        log.contains("/healthz and /readyz fail until it goes on"),
        "{log}"
    );
    assert!(
        log.contains("the reader goes on after it stood still"),
        "{log}"
    );
}

#[test]
fn an_agent_whose_reader_stands_still_ends_all_the_same() {
    let _alone = alone();
    let mut lab = Lab::new();
    let stream = lab.subscribe(&[Kind::Exec]);
    let held = lab.agent.held();
    let suspended = Suspended::new(lab.reader());
    lab.agent.signal(libc::SIGTERM);
    eventually("it does not wait", || {
        lab.agent
            .log()
            .contains("the reader stands still, and is not waited for")
    });
    drop(suspended);
    assert!(lab.agent.wait().success());
    eventually("nothing is left in the kernel", || {
        bpf::alive(&held).is_empty()
    });
    drop(stream);
}

#[test]
fn an_agent_that_was_stopped_as_a_whole_goes_on_and_thinks_no_ill_of_its_reader() {
    let _alone = alone();
    let lab = Lab::new();
    let request = SubscribeRequest {
        kinds: KINDS.map(Into::into).to_vec(),
        ..shop()
    };
    let load = lab.load(300_000);
    let requests = [(Pace::AtOnce, request.clone()), (Pace::Hardly, request)];
    let streams = Subscribers::start(lab.agent.listen, requests.into_iter());
    let mut produced = Counts::new();
    lab.agent.signal(libc::SIGSTOP);
    let stopped = Instant::now();
    load.run(&mut produced);
    after(STUCK, "longer than a reader may stand still", || {
        stopped.elapsed() > STUCK
    });
    lab.agent.signal(libc::SIGCONT);
    assert_eq!(lab.agent.get("/healthz"), (200, "ok\n".into()));
    let accounts = streams.finish(Load::finish(&produced));
    assert_eq!(lab.agent.get("/readyz"), (200, "ok\n".into()));
    let metrics = lab.agent.get("/metrics").1;
    for account in &accounts {
        for (&kind, &count) in &produced {
            assert_balanced(account, kind, count, &metrics);
        }
    }
    assert!(!lab.agent.log().contains("stood still"));
}

/// `dinle filetop` and others as a user starts them, with what they print in files.
struct Client {
    child: Child,
    dir: TempDir,
}

impl Client {
    fn start(agent: &Agent, words: &[&str]) -> Self {
        let dir = temporary();
        let file = |name: &str| File::create(dir.path().join(name)).unwrap();
        let child = Command::new(dinle())
            .args(words)
            .args(["--address", &agent.listen.to_string(), "-n", "shop"])
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("err"))
            .spawn()
            .unwrap();
        Self { child, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn out(&self) -> String {
        fs::read_to_string(self.path("out")).unwrap()
    }

    fn err(&self) -> String {
        fs::read_to_string(self.path("err")).unwrap()
    }

    /// With `--raw`: how many events it printed, and how many the last books that it printed say were delivered.
    fn printed(&self) -> (u64, Option<u64>) {
        let (mut events, mut booked) = (0, None);
        let out = self.out();
        // The last line may not be whole yet.
        for line in out
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
        {
            let message: Value = serde_json::from_str(line).unwrap();
            events += message["batch"]["events"].as_array().map_or(0, Vec::len) as u64;
            let delivered = message["heartbeat"]["books"][0]["delivered"].as_str();
            booked = delivered.map(|count| count.parse().unwrap()).or(booked);
        }
        (events, booked)
    }

    fn signal(&self, signal: i32) {
        // SAFETY: has no preconditions. The process is our child and was not waited for.
        let sent = unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
        assert_eq!(sent, 0, "{}", io::Error::last_os_error());
    }

    /// Interrupts it, and waits for its end.
    fn finish(mut self) -> (String, String) {
        self.signal(libc::SIGINT);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.err());
        (self.out(), self.err())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

#[test]
fn a_client_goes_on_with_the_next_agent_when_one_is_killed_under_load_and_says_what_is_missing() {
    let _alone = alone();
    let mut lab = Lab::new();
    let mut opens = lab.opens(1_000_000);
    let client = Client::start(&lab.agent, &["execsnoop", "-o", "json"]);
    let mut stream = lab.subscribe(&[Kind::FileOpen]);
    eventually("the client has subscribed", || {
        lab.agent.status().subscriptions.len() == 2
    });
    lab.agent.settle();
    lab.app.succeed(act(["any", "first"]));
    eventually("the client hears", || client.out().contains("first"));
    opens.go();
    stream.until("events come", |stream| stream.events.len() > 10_000);

    let held = lab.agent.held();
    let addresses = (lab.agent.listen.to_string(), lab.agent.http.to_string());
    lab.agent.signal(libc::SIGKILL);
    lab.agent.wait();
    eventually("nothing is left in the kernel", || {
        bpf::alive(&held).is_empty()
    });
    drop(stream);
    lab.app.succeed(act(["any", "between"]));
    let flags = ["--listen", &addresses.0, "--http", &addresses.1];
    lab.agent = Agent::with_pods(&[&lab.pod], &flags);
    eventually("the client says what is missing", || {
        client.err().contains("what happened meanwhile is not told")
    });
    lab.app.succeed(act(["any", "second"]));
    eventually("the client hears", || client.out().contains("second"));
    opens.finish(&mut Counts::new());
    let (out, err) = client.finish();
    assert!(!out.contains("between"), "{out}");
    assert_eq!(out.lines().count(), 2, "{out}\n{err}");
}

#[test]
fn a_subscriber_that_is_stopped_loses_only_its_own_and_goes_on() {
    let _alone = alone();
    let lab = Lab::new();
    let mut opens = lab.opens(100_000);
    let client = Client::start(
        &lab.agent,
        &[
            "watch",
            "--kinds=file_open",
            "-o=json",
            "--raw",
            "--queue-bytes=65536",
        ],
    );
    let mut stream = lab.subscribe(&[Kind::FileOpen]);
    eventually("the client has subscribed", || {
        lab.agent.status().subscriptions.len() == 2
    });
    let other = |agent: &Agent| {
        let subscriptions = agent.status().subscriptions;
        let found = subscriptions
            .into_iter()
            .find(|one| one.stream_id != stream.plan.stream_id);
        Book::of(&found.unwrap().books, Kind::FileOpen)
    };
    client.signal(libc::SIGSTOP);
    opens.go();
    let mut produced = Counts::new();
    opens.finish(&mut produced);
    let produced = produced[&Kind::FileOpen];
    eventually(
        "everything is in the books of the one that is stopped",
        || other(&lab.agent).matched == produced,
    );
    let stopped = other(&lab.agent);
    assert!(stopped.lost_at(LossStage::ClientQueue) > 0, "{stopped:?}");
    client.signal(libc::SIGCONT);
    // As long as it goes on, it may take its time: it prints thousands of events.
    let mut printed = 0;
    let mut book = other(&lab.agent);
    while (book.queued, book.delivered) != (0, printed) {
        eventually("it reads on", || {
            let before = std::mem::replace(&mut printed, client.printed().0);
            book = other(&lab.agent);
            printed > before || (book.queued, book.delivered) == (0, printed)
        });
    }
    // Who is interrupted tells the books that came last.
    eventually("it gets the books of all of them", || {
        client.printed().1 == Some(book.delivered)
    });
    stream.until("everything is told or lost", |stream| {
        let known = |book: Book| (book.matched, book.queued) == (produced, 0);
        stream.heard.is_some() && known(stream.book(Kind::FileOpen))
    });
    let own = stream.book(Kind::FileOpen);
    assert_eq!(own.lost_at(LossStage::ClientQueue), 0, "{own:?}");
    let ring = own.lost_at(LossStage::KernelRing);
    assert_eq!(own.delivered + ring, produced, "{own:?}");
    let queue = book.lost_at(LossStage::ClientQueue);
    assert_eq!(book.delivered + ring + queue, produced, "{book:?}");
    assert!(book.delivered > 0, "{book:?}");
    let (_, err) = client.finish();
    let books = err
        .lines()
        .find(|line| line.starts_with("books: "))
        .unwrap();
    let books = books.replace(',', "");
    assert!(
        books.contains(&format!("delivered {} ", book.delivered)),
        "{books}"
    );
    assert!(books.contains(&format!("CLIENT_QUEUE {queue}")), "{books}");
}

//! Exporters of an agent that asks the API server what they may be told. Time is the tests' own.

use super::*;
use crate::{auth::fake::Cluster, hub::Listener, workload::fake::runs};

const GROUP: &str = "dinle:exporters";
const USER: &str = "dinle:exporter:audit";
const BOTH: &[&str] = &["process", "process/args"];
const GRACE: Duration = Duration::from_secs(60);
/// Of what was taken away nothing is told after so long.
const WITHDRAWN: Duration = Duration::from_secs(30);
/// The longest pause between two tries.
const TRIED: Duration = Duration::from_secs(45);

struct Guarded {
    stage: Stage,
    cluster: Arc<Cluster>,
    path: PathBuf,
}

impl Guarded {
    /// Pods of these namespaces run here.
    fn new(namespaces: &[&str]) -> Self {
        let mut stage = Stage::new();
        let cluster = Arc::new(Cluster::default());
        let index = stage.context.index.clone();
        stage.context.admission = Admission {
            auth: Some(cluster.auth()),
            grace: GRACE,
            index,
        };
        let path = stage.directory.path().join("audit.jsonl");
        let guarded = Self {
            stage,
            cluster,
            path,
        };
        for namespace in namespaces {
            guarded.add(namespace);
        }
        guarded
    }

    /// A pod begins to run.
    fn add(&self, namespace: &str) {
        let index = &self.stage.context.index;
        runs(index, index.live().len() as u64, namespace);
    }

    async fn begin(&mut self) -> (Arc<Counters>, watch::Sender<bool>, JoinHandle<()>) {
        let path = self.path.clone();
        self.stage.begin(&path).await
    }

    /// Begins it, and waits until it is refused.
    async fn refused(&self, cause: Cause) -> (Arc<Counters>, watch::Sender<bool>, JoinHandle<()>) {
        let path = self.path.display();
        let begun = self.stage.spawn(&format!("file: {{path: {path}}}"));
        until(|| failed(&begun.0, cause) > 0).await;
        assert!(self.listener().is_none() && !begun.0.up());
        begun
    }

    fn listener(&self) -> Option<Arc<Listener>> {
        let board = self.stage.context.hub.board();
        let (_, listener) = board.listeners().next()?;
        Some(listener.clone())
    }

    /// Waits for its stream, no longer than that.
    async fn listens(&mut self, within: Duration) -> Arc<Listener> {
        let began = tokio::time::Instant::now();
        until(|| self.listener().is_some()).await;
        let took = began.elapsed();
        assert!(took <= within, "{took:?}");
        self.stage.publisher.refresh();
        self.listener().expect("one listens")
    }

    /// One more line each: whether it has arguments.
    async fn hears(&mut self, lines_before: u64) -> bool {
        self.stage.publish(1);
        let path = self.path.clone();
        until(|| lines(&path) == lines_before + 1).await;
        let text = std::fs::read_to_string(&path).expect("lines");
        let last = text.lines().last().expect("a line");
        let whole = last.contains("xxx");
        assert_eq!(last.contains(r#""redacted":true"#), !whole, "{last}");
        whole
    }
}

#[tokio::test(start_paused = true)]
async fn an_exporter_is_told_what_its_group_may() {
    let mut guarded = Guarded::new(&["shop"]);
    guarded.cluster.allow(GROUP, "", BOTH);
    let (counters, stop, task) = guarded.begin().await;
    let caller = guarded.listener().expect("one listens").caller.clone();
    assert_eq!(caller.user, USER);
    assert_eq!(caller.groups, [GROUP, "system:authenticated"]);
    assert!(guarded.hears(0).await && guarded.hears(1).await);
    assert!(counters.up());
    assert_eq!(counters.failures().map(|(_, count)| count).sum::<u64>(), 0);
    guarded.stage.end(&stop, task).await;
}

#[tokio::test(start_paused = true)]
async fn arguments_are_left_out_while_it_may_not_see_them() {
    let mut guarded = Guarded::new(&["shop"]);
    guarded.cluster.allow(GROUP, "", &["process"]);
    let (counters, stop, task) = guarded.begin().await;
    assert!(!guarded.hears(0).await);
    let first = guarded.listener().expect("one listens").id;
    // The stream that is there gets them.
    guarded.cluster.allow(GROUP, "", &["process/args"]);
    sleep(WITHDRAWN).await;
    guarded.stage.publisher.refresh();
    assert!(guarded.hears(1).await);
    assert_eq!(guarded.listener().expect("one listens").id, first);
    // It ends when they are taken away, and another one goes on without.
    guarded.cluster.forbid(GROUP, "", "process/args");
    sleep(WITHDRAWN).await;
    assert_ne!(guarded.listens(Duration::ZERO).await.id, first);
    assert!(!guarded.hears(2).await);
    assert!(counters.up());
    assert_eq!(failed(&counters, Cause::Denied), 1);
    guarded.stage.end(&stop, task).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_may_not_listen_asks_until_it_may() {
    let mut guarded = Guarded::new(&["shop"]);
    let (counters, stop, task) = guarded.refused(Cause::Denied).await;
    sleep(10 * TRIED).await;
    assert!(guarded.listener().is_none() && !counters.up());
    let told = counters.told();
    assert!(!told.up && told.problem.contains("may not"), "{told:?}");
    let tries = failed(&counters, Cause::Denied);
    assert!((10..40).contains(&tries), "{tries}");
    guarded.cluster.allow(USER, "shop", BOTH);
    guarded.listens(TRIED).await;
    assert!(guarded.hears(0).await);
    let told = counters.told();
    assert!(told.up && told.problem.is_empty(), "{told:?}");
    guarded.stage.publish_in("bank", 1);
    assert!(guarded.hears(1).await, "and nothing of others between");
    guarded.stage.end(&stop, task).await;
    assert_eq!((lines(&guarded.path), counters.events()), (2, 2));
}

/// What is logged.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("nobody panicked").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Lines in which all of that is.
    fn told(&self, what: &[&str]) -> usize {
        let log = self.0.lock().expect("nobody panicked");
        let text = String::from_utf8_lossy(&log);
        let lines = text.lines();
        lines
            .filter(|line| what.iter().all(|one| line.contains(one)))
            .count()
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_says_once_what_one_may_not_what_is_left_out_and_that_it_ends() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone());
    // The test's tasks run on its own thread.
    let _logged = tracing::subscriber::set_default(subscriber.finish());

    let mut guarded = Guarded::new(&["shop", "bank"]);
    let (_counters, stop, task) = guarded.refused(Cause::Denied).await;
    sleep(10 * TRIED).await;
    let refused = [
        "stream refused",
        USER,
        "PermissionDenied",
        "may not watch process.dinle.dev in all namespaces",
    ];
    assert_eq!(log.told(&refused), 1, "however often it has asked");
    guarded.cluster.allow(USER, "shop", &["process"]);
    guarded.listens(TRIED).await;
    assert_eq!(log.told(&["stream begins", USER]), 1);
    for left_out in ["there: bank", "arguments and paths are left out in shop"] {
        assert_eq!(
            log.told(&["not all is exported", left_out]),
            1,
            "{left_out}"
        );
    }
    guarded.cluster.forbid(USER, "shop", "process");
    sleep(WITHDRAWN).await;
    assert_eq!(log.told(&["stream ends", USER, "PERMISSION"]), 1);
    assert_eq!(log.told(&["its stream had to end", "denied"]), 1);
    guarded.stage.end(&stop, task).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_may_not_listen_ends_when_it_is_told_to() {
    let mut guarded = Guarded::new(&["shop"]);
    let (counters, stop, task) = guarded.refused(Cause::Denied).await;
    guarded.stage.end(&stop, task).await;
    assert_eq!((counters.events(), counters.waiting()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_first_pod_of_its_namespace_is_not_waited_for_as_long_as_a_permission() {
    let mut guarded = Guarded::new(&["bank"]);
    guarded.cluster.allow(USER, "shop", BOTH);
    let (_counters, stop, task) = guarded.refused(Cause::Denied).await;
    sleep(10 * TRIED).await;
    assert!(guarded.listener().is_none());
    guarded.add("shop");
    guarded.listens(Duration::from_secs(2)).await;
    assert!(guarded.hears(0).await);
    guarded.stage.end(&stop, task).await;
}

#[tokio::test(start_paused = true)]
async fn a_permission_that_is_taken_away_ends_its_stream_and_not_the_exporter() {
    let mut guarded = Guarded::new(&["shop"]);
    guarded.cluster.allow(GROUP, "", BOTH);
    let (counters, stop, task) = guarded.begin().await;
    assert!(guarded.hears(0).await);
    sleep(3 * WITHDRAWN).await;
    assert!(guarded.listener().is_some() && counters.up());
    guarded.cluster.forbid(GROUP, "", "process");
    sleep(WITHDRAWN).await;
    assert!(guarded.listener().is_none() && !counters.up());
    assert!(failed(&counters, Cause::Denied) > 0);
    guarded.stage.publisher.refresh();
    guarded.stage.publish(5);
    sleep(WITHDRAWN).await;
    assert_eq!((lines(&guarded.path), counters.waiting()), (1, 0));
    guarded.cluster.allow(GROUP, "", BOTH);
    guarded.listens(TRIED).await;
    assert!(guarded.hears(1).await && counters.up());
    guarded.stage.end(&stop, task).await;
    assert_eq!((lines(&guarded.path), counters.events()), (2, 2));
    assert_eq!(counters.drops().map(|(_, count)| count).sum::<u64>(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_also_while_its_receiver_takes_nothing() {
    let mut guarded = Guarded::new(&["shop"]);
    guarded.cluster.allow(GROUP, "", BOTH);
    let place = guarded.stage.directory.path().join("place");
    std::fs::write(&place, "").expect("a file");
    guarded.path = place.join("audit.jsonl");
    let (counters, stop, task) = guarded.begin().await;
    guarded.stage.publish(10);
    until(|| failed(&counters, Cause::Io) > 0).await;
    guarded.cluster.forbid(GROUP, "", "process");
    sleep(WITHDRAWN).await;
    assert!(guarded.listener().is_none());
    assert_eq!(dropped(&counters, Cause::Ended), 10);
    // What comes later is brought as if nothing had been.
    std::fs::remove_file(&place).expect("removed");
    guarded.cluster.allow(GROUP, "", BOTH);
    guarded.listens(TRIED).await;
    assert!(guarded.hears(0).await && counters.up());
    guarded.stage.end(&stop, task).await;
}

#[tokio::test(start_paused = true)]
async fn without_the_api_server_no_stream_begins_and_one_that_is_there_lives_for_the_grace() {
    let mut guarded = Guarded::new(&["shop"]);
    guarded.cluster.allow(GROUP, "", BOTH);
    guarded.cluster.set_away(true);
    let (counters, stop, task) = guarded.refused(Cause::Unavailable).await;
    assert_eq!(failed(&counters, Cause::Denied), 0);
    guarded.cluster.set_away(false);
    let first = guarded.listens(TRIED).await.id;
    assert!(guarded.hears(0).await && counters.up());

    guarded.cluster.set_away(true);
    sleep(GRACE - Duration::from_secs(1)).await;
    assert!(guarded.hears(1).await && counters.up());
    assert_eq!(guarded.listener().expect("one listens").id, first);
    sleep(WITHDRAWN).await;
    assert!(guarded.listener().is_none() && !counters.up());
    assert_eq!(failed(&counters, Cause::Denied), 0);

    guarded.cluster.set_away(false);
    guarded.listens(TRIED).await;
    assert!(guarded.hears(2).await && counters.up());
    guarded.stage.end(&stop, task).await;
}

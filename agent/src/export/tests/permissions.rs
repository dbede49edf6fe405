//! Exporters of an agent that asks the API server what they may be told. Time is the tests' own.

use super::*;
use crate::{auth::fake::Cluster, hub::Listener, workload::Pod};

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
        let number = index.live().len() as u64;
        let uid = format!("2f1ee1cf-7f5c-4f0e-9b0b-0d5c3a9d8e0{number}");
        let path = format!("/kubepods/burstable/pod{uid}");
        index.pod_applied(Pod {
            uid,
            namespace: namespace.to_owned(),
            name: format!("{namespace}-pod"),
            ..Pod::default()
        });
        index.cgroup_created(10 + number, 1, &path, false);
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
    let tries = failed(&counters, Cause::Denied);
    assert!((10..40).contains(&tries), "{tries}");
    guarded.cluster.allow(USER, "shop", BOTH);
    guarded.listens(TRIED).await;
    assert!(guarded.hears(0).await && counters.up());
    guarded.stage.publish_in("bank", 1);
    assert!(guarded.hears(1).await, "and nothing of others between");
    guarded.stage.end(&stop, task).await;
    assert_eq!((lines(&guarded.path), counters.events()), (2, 2));
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

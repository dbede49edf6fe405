//! What is decided, with answers that a test gives. The API server's own are asked for in a cluster.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize},
};

use dinle_proto::v1;

use super::*;
use crate::filter::Limits;

/// Who may what: (namespace, resource) or (namespace, resource/args).
#[derive(Default)]
struct Answers {
    rules: Mutex<BTreeSet<(&'static str, &'static str)>>,
    away: AtomicBool,
    asked: AtomicUsize,
}

impl Reviews for &'static Answers {
    async fn token(&self, token: &str, _: bool) -> Result<Result<Identity, String>, String> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match self.away.load(Ordering::Relaxed) {
            true => Err("connection refused".to_owned()),
            false if token == "jane's" => Ok(Ok(jane())),
            false => Ok(Err("unknown".to_owned())),
        }
    }

    async fn may(&self, identity: &Identity, question: &Question) -> Result<bool, String> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.away.load(Ordering::Relaxed) {
            return Err("connection refused".to_owned());
        }
        assert_eq!(identity, &jane());
        let args = if question.args { "/args" } else { "" };
        let resource = format!("{}{args}", question.resource);
        let rules = self.rules.lock().expect("no panic");
        // A ClusterRoleBinding holds in each namespace, too.
        Ok(rules.iter().any(|(namespace, what)| {
            *what == resource && ["", &*question.namespace].contains(namespace)
        }))
    }
}

fn jane() -> Identity {
    Identity {
        user: "jane".to_owned(),
        ..Identity::default()
    }
}

fn answers(rules: &[(&'static str, &'static str)]) -> &'static Answers {
    Box::leak(Box::new(Answers {
        rules: Mutex::new(rules.iter().copied().collect()),
        ..Answers::default()
    }))
}

fn selector(namespaces: &[&str], host: v1::HostProcesses) -> Selector {
    let selector = v1::Selector {
        namespaces: namespaces.iter().map(|name| (*name).to_owned()).collect(),
        host_processes: host.into(),
        ..Default::default()
    };
    Selector::parse(Some(&selector), &Limits::default()).expect("a selector")
}

async fn asked(
    rules: &[(&'static str, &'static str)],
    selector: &Selector,
    kinds: &[v1::Kind],
) -> Result<Verdict, Refusal> {
    let auth = Auth::new(answers(rules));
    let known = ["bank", "shop"].map(str::to_owned).into();
    let kinds = kinds.iter().copied().collect();
    auth.verdict(&Who::Certified(jane()), selector, kinds, &known)
        .await
}

fn of(namespace: &str) -> v1::Workload {
    v1::Workload {
        namespace: namespace.to_owned(),
        ..Default::default()
    }
}

const EXEC: v1::Kind = v1::Kind::Exec;
const RESET: v1::Kind = v1::Kind::TcpReset;
const NO_HOST: v1::HostProcesses = v1::HostProcesses::Exclude;
const HOST: v1::HostProcesses = v1::HostProcesses::Include;

#[tokio::test]
async fn of_namespaces_that_are_named_all_must_be_allowed() {
    let shop = selector(&["shop"], NO_HOST);
    let both = selector(&["shop", "bank"], NO_HOST);
    let rules = [("shop", "process"), ("shop", "process/args")];
    let verdict = asked(&rules, &shop, &[EXEC]).await.expect("allowed");
    assert!(verdict.grant.of(&of("shop")).args.contains(EXEC));
    assert!(verdict.grant.of(&of("bank")).watch.is_empty());
    assert_eq!(verdict.notes, [""; 0]);

    let refused = asked(&rules, &both, &[EXEC]).await;
    let expected = "jane may not watch process.dinle.dev in namespace bank";
    assert_eq!(refused, Err(Refusal::Denied(expected.to_owned())));
    let refused = asked(&rules, &shop, &[EXEC, RESET]).await;
    let expected = "jane may not watch tcp.dinle.dev in namespace shop";
    assert_eq!(refused, Err(Refusal::Denied(expected.to_owned())));
    assert!(asked(&[("", "process")], &both, &[EXEC]).await.is_ok());
}

#[tokio::test]
async fn pods_of_other_namespaces_are_named_where_they_may_be_watched_too() {
    let shop = selector(&["shop"], NO_HOST);
    let names = async |rules: &[(&'static str, &'static str)], namespace: &str| {
        let verdict = asked(rules, &shop, &[EXEC, RESET]).await.expect("allowed");
        // It is no permission to watch them.
        assert!(verdict.grant.of(&of(namespace)).watch.is_empty());
        verdict.grant.names(RESET, namespace)
    };
    let own = [("shop", "tcp"), ("shop", "process")];
    assert!(!names(&own, "bank").await);
    assert!(names(&[&own[..], &[("bank", "tcp")]].concat(), "bank").await);
    assert!(!names(&[&own[..], &[("bank", "process")]].concat(), "bank").await);
    assert!(names(&[&own[..], &[("", "tcp")]].concat(), "a new one").await);
    // Of what has no other end nothing is asked.
    let answers = answers(&own);
    let auth = Auth::new(answers);
    let known = ["bank", "shop"].map(str::to_owned).into();
    let kinds = [EXEC].into_iter().collect();
    let who = Who::Certified(jane());
    let verdict = auth.verdict(&who, &shop, kinds, &known);
    assert!(verdict.await.expect("allowed").grant.peers.is_empty());
    assert_eq!(
        answers.asked.load(Ordering::Relaxed),
        2,
        "process and its args"
    );
}

#[tokio::test]
async fn of_all_namespaces_those_are_told_that_are_allowed() {
    let all = selector(&[], NO_HOST);
    let rules = [("", "tcp"), ("shop", "process"), ("shop", "process/args")];
    let Verdict { grant, notes } = asked(&rules, &all, &[EXEC, RESET]).await.expect("some");
    assert!(grant.of(&of("shop")).watch.contains(EXEC));
    assert!(!grant.of(&of("bank")).watch.contains(EXEC));
    assert!(grant.of(&of("bank")).watch.contains(RESET));
    // A namespace that is not known yet.
    assert!(grant.of(&of("")).watch.contains(RESET));
    assert!(!grant.of(&of("")).watch.contains(EXEC));
    assert_eq!(
        notes,
        ["left out, since jane may not watch process.dinle.dev there: bank"]
    );
    let refused = asked(&[("market", "process")], &all, &[EXEC]).await;
    let expected = "jane may not watch process.dinle.dev in all namespaces, nor in any namespace that has pods on this node";
    assert_eq!(refused, Err(Refusal::Denied(expected.to_owned())));
}

#[tokio::test]
async fn processes_outside_pods_take_what_holds_everywhere() {
    let shop = selector(&["shop"], HOST);
    let refused = asked(
        &[("shop", "process"), ("shop", "process/args")],
        &shop,
        &[EXEC],
    )
    .await;
    let expected = "jane may not watch process.dinle.dev in all namespaces";
    assert_eq!(refused, Err(Refusal::Denied(expected.to_owned())));
    let rules = [("", "process"), ("", "process/args")];
    let verdict = asked(&rules, &shop, &[EXEC]).await.expect("allowed");
    assert!(verdict.grant.of(&of("")).args.contains(EXEC));
}

#[tokio::test]
async fn without_the_subresource_arguments_are_left_out() {
    let shop = selector(&["shop"], NO_HOST);
    let rules = [("shop", "process"), ("shop", "tcp")];
    let Verdict { grant, notes } = asked(&rules, &shop, &[EXEC, RESET]).await.expect("some");
    let access = grant.of(&of("shop"));
    assert!(access.watch.contains(EXEC) && !access.args.contains(EXEC));
    // There are none in it.
    assert!(access.args.contains(RESET) && access.args.contains(v1::Kind::Exit));
    assert!(
        notes[0].contains("left out in shop, and filters on them"),
        "{notes:?}"
    );
    assert_eq!(notes.len(), 1);
}

#[tokio::test]
async fn what_holds_everywhere_is_not_asked_of_each_namespace() {
    let answers = answers(&[("", "tcp"), ("", "process"), ("shop", "process/args")]);
    let auth = Auth::new(answers);
    let known = ["bank", "shop"].map(str::to_owned).into();
    let kinds = [EXEC, RESET].into_iter().collect();
    let all = selector(&[], NO_HOST);
    let who = Who::Certified(jane());
    let verdict = auth.verdict(&who, &all, kinds, &known);
    let Verdict { grant, notes } = verdict.await.expect("some");
    assert!(grant.of(&of("shop")).args.contains(EXEC));
    assert!(!grant.of(&of("bank")).args.contains(EXEC));
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert_eq!(
        answers.asked.load(Ordering::Relaxed),
        5,
        "both sensors and the arguments of one, and these of each namespace"
    );
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_much_keeps_nobody_waiting_for_all_of_it() {
    let cluster = Arc::new(fake::Cluster::default());
    let known: BTreeSet<String> = (0..100).map(|number| format!("n{number}")).collect();
    for namespace in &known {
        cluster.allow(
            "jane",
            namespace,
            &["process", "file", "tcp", "block", "drop"],
        );
    }
    cluster.allow("joe", "", &["process", "process/args"]);
    let auth = cluster.auth();
    let all = selector(&[], NO_HOST);
    let took = async |user: &str, kinds| {
        let who = Who::Certified(Identity {
            user: user.to_owned(),
            ..Identity::default()
        });
        let began = tokio::time::Instant::now();
        let verdict = auth.verdict(&who, &all, kinds, &known).await;
        verdict.expect("all of it");
        began.elapsed()
    };
    let (much, little) = tokio::join!(took("jane", all_kinds()), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        took("joe", [EXEC].into_iter().collect()).await
    });
    assert!(much > Duration::from_secs(8), "{much:?}");
    assert!(little < Duration::from_secs(1), "{little:?}");
}

#[tokio::test]
async fn who_could_open_the_socket_may_everything() {
    let auth = Auth::new(answers(&[]));
    let verdict = auth
        .verdict(
            &Who::Local,
            &selector(&[], HOST),
            [EXEC].into_iter().collect(),
            &BTreeSet::new(),
        )
        .await
        .expect("everything");
    assert_eq!(verdict.grant, Grant::all());
    assert_eq!(auth.reviews.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn answers_hold_for_a_time_and_who_does_not_answer_lets_nobody_in() {
    let auth = Auth::new(answers(&[("", "process"), ("", "process/args")]));
    let all = selector(&[], NO_HOST);
    let look = || async {
        let who = auth.review(Token::new("jane's"), false).await?;
        auth.verdict(&who, &all, [EXEC].into_iter().collect(), &BTreeSet::new())
            .await
    };
    let asked = || auth.reviews.asked.load(Ordering::Relaxed);
    look().await.expect("allowed");
    let once = asked();
    assert_eq!(once, 3, "whose token, the sensor, its arguments");
    look().await.expect("allowed");
    assert_eq!(asked(), once, "known by now");
    auth.reviews.away.store(true, Ordering::Relaxed);
    look().await.expect("still known");
    tokio::time::advance(ANSWER_HOLDS).await;
    let refused = auth.counted(look().await).expect_err("nobody knows");
    assert!(
        matches!(&refused, Refusal::Unavailable(why) if why.contains("connection refused")),
        "{refused:?}"
    );
    auth.reviews.away.store(false, Ordering::Relaxed);
    look().await.expect("an error is no answer that holds");
    let stranger = auth.counted(auth.review(Token::new("joe's"), false).await);
    assert_eq!(
        stranger,
        Err(Refusal::Unauthenticated("unknown".to_owned()))
    );
    assert_eq!(
        auth.refusals(),
        [
            ("unauthenticated", 1),
            ("denied", 0),
            ("api_server_unavailable", 1)
        ]
    );
    assert_eq!(format!("{:?}", Token::new("jane's")), "Token(…)");
}

#[test]
fn what_is_taken_away_is_named_and_what_is_added_is_not() {
    let access = |watch: &[v1::Kind], args: &[v1::Kind]| Access {
        watch: watch.iter().copied().collect(),
        args: args.iter().copied().collect(),
    };
    let in_shop = |access| Grant {
        everywhere: Access::default(),
        namespaces: [("shop".to_owned(), access)].into(),
        peers: [].into(),
    };
    let everywhere = |access| Grant {
        everywhere: access,
        namespaces: [].into(),
        peers: [].into(),
    };
    let whole = access(&[EXEC], &[EXEC]);
    let told = |before: &Grant, now: &Grant| taken_away("jane", before, now);
    assert_eq!(told(&in_shop(whole), &in_shop(whole)), None);
    assert_eq!(told(&in_shop(access(&[EXEC], &[])), &in_shop(whole)), None);
    assert_eq!(
        told(&in_shop(whole), &in_shop(access(&[EXEC], &[]))).as_deref(),
        Some("jane may no longer watch process.dinle.dev/args in namespace shop")
    );
    assert_eq!(
        told(&in_shop(whole), &in_shop(Access::default())).as_deref(),
        Some("jane may no longer watch process.dinle.dev in namespace shop")
    );
    // It holds everywhere now, so that nothing was asked of the namespace; or its last pod is gone.
    assert_eq!(told(&in_shop(whole), &everywhere(whole)), None);
    assert_eq!(told(&in_shop(whole), &everywhere(Access::default())), None);
    assert_eq!(
        told(&everywhere(whole), &in_shop(whole)).as_deref(),
        Some("jane may no longer watch process.dinle.dev in all namespaces")
    );
}

//! Answers of an API server that is ill, or of something in its place: whatever they are, nobody gets in by them.

use std::io;

use axum::body::Body;
use http::{Request, Response};
use kube::client::Body as RequestBody;
use serde_json::{Value, json};
use tower::ServiceExt as _;
use tower_test::mock::{Handle, SendResponse, pair};

use super::*;

const AUDIENCE: &str = "dinle";

type Answer = SendResponse<Response<Body>>;

/// What becomes of one question.
type Bad = Box<dyn FnOnce(Answer) + Send>;

fn reviewer() -> (Reviewer, Handle<Request<RequestBody>, Response<Body>>) {
    let (service, handle) = pair();
    let client = Client::new(service.map_response(apiserver::bounded), "default");
    (
        Reviewer::connected(client, vec![AUDIENCE.to_owned()]),
        handle,
    )
}

fn text(code: u16, body: impl Into<Body>) -> Bad {
    let response = Response::builder().status(code).body(body.into());
    let response = response.expect("a response");
    Box::new(move |answer| answer.send_response(response))
}

fn json(code: u16, body: &Value) -> Bad {
    text(code, body.to_string())
}

fn failure(code: u16, reason: &str) -> Bad {
    let mut status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason,
        "message": "no"
    });
    if code == 429 {
        status["details"] = json!({"retryAfterSeconds": 1});
    }
    json(code, &status)
}

/// Answers to any question.
fn bad_answers() -> Vec<(&'static str, Bad)> {
    let html = "<!DOCTYPE html><html><body>502 Bad Gateway</body></html>";
    let busy = Response::builder()
        .status(429)
        .header("Retry-After", "1")
        .header("Content-Type", "text/html")
        .body(Body::from(html))
        .expect("a response");
    let cut = r#"{"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": {"authenticated": true"#;
    let begun = futures::stream::iter([
        Ok(cut.to_owned()),
        Err(io::Error::from(io::ErrorKind::ConnectionReset)),
    ]);
    let endless = futures::stream::repeat_with(|| Ok::<_, io::Error>("x".repeat(1 << 20)));
    let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "allowed"}, "status": {"phase": "Running"}});
    vec![
        ("400", failure(400, "BadRequest")),
        ("401", failure(401, "Unauthorized")),
        ("403", failure(403, "Forbidden")),
        ("404", failure(404, "NotFound")),
        ("410", failure(410, "Expired")),
        ("429", failure(429, "TooManyRequests")),
        (
            "429 of a proxy",
            Box::new(|answer| answer.send_response(busy)),
        ),
        ("500", failure(500, "InternalError")),
        ("500 as text", text(500, "etcd has no leader")),
        ("503", failure(503, "ServiceUnavailable")),
        ("a redirection", text(302, "")),
        (
            "a reset",
            Box::new(|answer: Answer| {
                answer.send_error(io::Error::from(io::ErrorKind::ConnectionReset));
            }),
        ),
        ("a reset within", text(201, Body::from_stream(begun))),
        ("JSON that is cut", text(201, cut)),
        ("nothing", text(201, "")),
        ("a page", text(200, html)),
        ("null", text(200, "null")),
        ("true", text(200, "true")),
        ("a list", text(200, "[]")),
        ("an object without anything", text(200, "{}")),
        ("another object", json(200, &pod)),
        ("a line without end", text(200, Body::from_stream(endless))),
        (
            "no answer",
            Box::new(|answer| {
                // It is kept open for longer than anybody waits.
                tokio::spawn(async move {
                    sleep(4 * PATIENCE).await;
                    drop(answer);
                });
            }),
        ),
    ]
}

fn review(group: &str, kind: &str, status: &Value) -> Bad {
    let version = format!("{group}.k8s.io/v1");
    json(
        201,
        &json!({"kind": kind, "apiVersion": version, "metadata": {}, "spec": {}, "status": status}),
    )
}

#[tokio::test(start_paused = true)]
async fn no_bad_answer_makes_a_token_somebodys() {
    let of = |status: Value| review("authentication", "TokenReview", &status);
    let (user, meant) = (json!({"username": "jane"}), json!([AUDIENCE]));
    let mut answers = bad_answers();
    answers.extend([
        ("no status", of(Value::Null)),
        ("an empty status", of(json!({}))),
        (
            "no",
            of(json!({"authenticated": false, "user": user, "audiences": meant})),
        ),
        ("only a user", of(json!({"user": user, "audiences": meant}))),
        (
            "yes as text",
            of(json!({"authenticated": "true", "user": user, "audiences": meant})),
        ),
        (
            "no audience",
            of(json!({"authenticated": true, "user": user})),
        ),
        (
            "another audience",
            of(json!({"authenticated": true, "user": user, "audiences": ["other"]})),
        ),
        (
            "nobody",
            of(json!({"authenticated": true, "audiences": meant})),
        ),
        (
            "no name",
            of(json!({"authenticated": true, "user": {"username": ""}, "audiences": meant})),
        ),
    ]);
    let (reviewer, mut server) = reviewer();
    for (what, bad) in answers {
        let (answer, ()) = tokio::join!(reviewer.token("jane's", false), async {
            let (request, answer) = server.next_request().await.expect("it asks");
            assert!(request.uri().path().ends_with("/tokenreviews"));
            bad(answer);
        });
        match answer {
            Ok(Ok(identity)) => panic!("{what}: {identity:?} got in"),
            Ok(Err(why)) | Err(why) => assert!(!why.is_empty(), "{what}"),
        }
    }
    let good = of(json!({"authenticated": true, "user": user, "audiences": meant}));
    let (answer, ()) = tokio::join!(reviewer.token("jane's", false), async {
        good(server.next_request().await.expect("it asks").1);
    });
    assert_eq!(answer.expect("an answer").expect("somebody").user, "jane");
}

#[tokio::test(start_paused = true)]
async fn no_bad_answer_lets_anybody_do_anything() {
    let of = |status: Value| review("authorization", "SubjectAccessReview", &status);
    let mut answers = bad_answers();
    answers.extend([
        ("no status", of(Value::Null)),
        ("an empty status", of(json!({}))),
        ("no", of(json!({"allowed": false}))),
        ("yes as text", of(json!({"allowed": "true"}))),
        ("yes as a number", of(json!({"allowed": 1}))),
        ("yes and no", of(json!({"allowed": true, "denied": true}))),
        (
            "an error",
            of(json!({"allowed": false, "evaluationError": "webhook"})),
        ),
    ]);
    let (reviewer, mut server) = reviewer();
    let identity = Identity {
        user: "jane".to_owned(),
        ..Identity::default()
    };
    let question = Question {
        namespace: "shop".to_owned(),
        resource: "process",
        args: false,
    };
    for (what, bad) in answers {
        let (answer, ()) = tokio::join!(reviewer.may(&identity, &question), async {
            let (request, answer) = server.next_request().await.expect("it asks");
            assert!(request.uri().path().ends_with("/subjectaccessreviews"));
            bad(answer);
        });
        assert_ne!(answer, Ok(true), "{what}");
    }
    let good = of(json!({"allowed": true}));
    let (answer, ()) = tokio::join!(reviewer.may(&identity, &question), async {
        good(server.next_request().await.expect("it asks").1);
    });
    assert_eq!(answer, Ok(true));
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_is_all_that_is_known_of_them() {
    let (reviewer, mut server) = reviewer();
    let identity = Identity {
        user: "jane".to_owned(),
        uid: "u1".to_owned(),
        groups: vec!["dev".to_owned(), "system:authenticated".to_owned()],
        extra: [("scopes".to_owned(), vec!["a".to_owned(), "b".to_owned()])].into(),
    };
    let nobody = Identity {
        user: "joe".to_owned(),
        ..Identity::default()
    };
    let question = |namespace: &str, resource, args| Question {
        namespace: namespace.to_owned(),
        resource,
        args,
    };
    let all = json!({
        "user": "jane", "uid": "u1", "groups": ["dev", "system:authenticated"], "extra": {"scopes": ["a", "b"]},
        "resourceAttributes": {"namespace": "shop", "group": "dinle.dev", "resource": "process", "subresource": "args", "verb": "watch"},
    });
    let least = json!({
        "user": "joe", "groups": [], "extra": {},
        "resourceAttributes": {"group": "dinle.dev", "resource": "subscriptions", "verb": "list"},
    });
    let asked = [
        (&identity, question("shop", "process", true), all),
        (&nobody, question("", "subscriptions", false), least),
    ];
    for (identity, question, spec) in asked {
        let (answer, body) = tokio::join!(reviewer.may(identity, &question), async {
            let (request, answer) = server.next_request().await.expect("it asks");
            review(
                "authorization",
                "SubjectAccessReview",
                &json!({"allowed": true}),
            )(answer);
            request.into_body().collect_bytes().await.expect("a body")
        });
        assert_eq!(answer, Ok(true));
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["spec"], spec);
        assert_eq!(body["kind"], "SubjectAccessReview");
    }
    let (_, body) = tokio::join!(reviewer.token("jane's", false), async {
        let (request, answer) = server.next_request().await.expect("it asks");
        review("authentication", "TokenReview", &Value::Null)(answer);
        request.into_body().collect_bytes().await.expect("a body")
    });
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(
        body["spec"],
        json!({"token": "jane's", "audiences": [AUDIENCE]})
    );
}

/// One that may do everything, and answers at once, but about no token.
fn busy() -> Reviewer {
    let service = tower::service_fn(|request: Request<RequestBody>| async move {
        if request.uri().path().ends_with("/tokenreviews") {
            std::future::pending::<()>().await;
        }
        let yes = json!({
            "kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {}, "spec": {}, "status": {"allowed": true}
        });
        let response = Response::builder().status(201);
        Ok::<_, io::Error>(
            response
                .body(Body::from(yes.to_string()))
                .expect("a response"),
        )
    });
    let client = Client::new(service.map_response(apiserver::bounded), "default");
    Reviewer::connected(client, vec![AUDIENCE.to_owned()])
}

#[tokio::test(start_paused = true)]
async fn only_so_much_is_asked_in_a_second_and_whoever_waits_gets_an_answer() {
    let reviewer = busy();
    let jane = Identity::default();
    let questions: Vec<Question> = (0..1000)
        .map(|number| Question {
            namespace: format!("n{number}"),
            resource: "process",
            args: false,
        })
        .collect();
    let began = tokio::time::Instant::now();
    let each = questions
        .iter()
        .map(|question| reviewer.may(&jane, question));
    let answers = futures::future::join_all(each).await;
    assert!(answers.iter().all(|answer| *answer == Ok(true)));
    // The last eight need not wait for their own place to be free again.
    let least = PACE * (1000 / AT_ONCE as u32 - 1);
    let took = began.elapsed();
    assert!(took >= least && took < 2 * least, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn strangers_keep_nobody_waiting_who_is_known() {
    let reviewer = Arc::new(busy());
    for number in 0..10 * AT_ONCE {
        let reviewer = reviewer.clone();
        tokio::spawn(async move { reviewer.token(&format!("false {number}"), false).await });
    }
    sleep(PACE).await;
    assert_eq!(reviewer.strangers.available_permits(), 0);
    let question = Question {
        namespace: "shop".to_owned(),
        resource: "process",
        args: false,
    };
    let jane = Identity::default();
    let answer = timeout(PACE, reviewer.may(&jane, &question)).await;
    assert_eq!(answer, Ok(Ok(true)));
    // It is asked about at once, and there is no answer to that here.
    let known = timeout(PATIENCE - PACE, reviewer.token("jane's", true));
    let (known, ()) = tokio::join!(known, async {
        sleep(2 * PACE).await;
        assert_eq!(reviewer.places.available_permits(), AT_ONCE - 1);
    });
    assert!(known.is_err());
}

//! An API server for tests: it says whose tokens are, and who may what.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::body::Body;
use http::{Request, Response};
use kube::{Client, client::Body as RequestBody};
use serde_json::{Value, json};

use super::{Auth, Reviewer};

const AUDIENCE: &str = "dinle";

/// What it knows.
#[derive(Default)]
pub(crate) struct Cluster {
    users: Mutex<BTreeMap<String, String>>,
    /// User or group, namespace or nothing for all, and what may be watched or listed there.
    rules: Mutex<BTreeSet<[String; 3]>>,
    away: AtomicBool,
}

impl Cluster {
    /// Asks it.
    pub(crate) fn auth(self: &Arc<Self>) -> Arc<Auth> {
        let cluster = self.clone();
        let service = tower::service_fn(move |request: Request<RequestBody>| {
            let cluster = cluster.clone();
            async move {
                if cluster.away.load(Ordering::Relaxed) {
                    return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
                }
                let body = request.into_body().collect_bytes().await;
                let mut review: Value =
                    serde_json::from_slice(&body.expect("a body")).expect("JSON");
                review["status"] = cluster.status(&review["spec"]);
                let response = Response::builder().status(201);
                Ok(response
                    .body(Body::from(review.to_string()))
                    .expect("a response"))
            }
        });
        let client = Client::new(service, "default");
        let reviewer = Reviewer::connected(client, vec![AUDIENCE.to_owned()]);
        Arc::new(Auth::new(reviewer))
    }

    fn status(&self, spec: &Value) -> Value {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if let Some(token) = spec["token"].as_str() {
            let users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            return match users.get(token) {
                Some(user) => {
                    json!({"authenticated": true, "audiences": [AUDIENCE], "user": {"username": user}})
                }
                None => json!({"authenticated": false}),
            };
        }
        let asked = &spec["resourceAttributes"];
        let what = match asked["subresource"].as_str() {
            Some(part) => format!("{}/{part}", text(&asked["resource"])),
            None => text(&asked["resource"]),
        };
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let groups = spec["groups"].as_array().into_iter().flatten();
        let subjects: Vec<String> = groups.chain([&spec["user"]]).map(text).collect();
        // What holds in all namespaces holds in each.
        let places = [String::new(), text(&asked["namespace"])];
        let may = |rule: &[String; 3]| {
            let [subject, place, granted] = rule;
            subjects.contains(subject) && places.contains(place) && *granted == what
        };
        json!({"allowed": rules.iter().any(may)})
    }

    /// From now on that token is theirs; or nobody's.
    pub(crate) fn set_token(&self, token: &str, user: Option<&str>) {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        match user {
            Some(user) => users.insert(token.to_owned(), user.to_owned()),
            None => users.remove(token),
        };
    }

    /// From now on they may do that there.
    pub(crate) fn allow(&self, subject: &str, namespace: &str, what: &[&str]) {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        rules.extend(
            what.iter()
                .map(|what| [subject, namespace, what].map(str::to_owned)),
        );
    }

    /// From now on they may not.
    pub(crate) fn forbid(&self, subject: &str, namespace: &str, what: &str) {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        rules.remove(&[subject, namespace, what].map(str::to_owned));
    }

    /// From now on it answers nobody, or everybody.
    pub(crate) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }
}

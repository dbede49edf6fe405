//! AUTH: who asks, and what they may be told. Both are asked of the API server: tokens by TokenReview, permissions by
//! SubjectAccessReview, on resources that exist for this alone.
//!
//! | what | is the verb `watch` on |
//! |---|---|
//! | events of a sensor | `process`, `file`, `tcp`, `block`, `drop` in the API group `dinle.dev` |
//! | their arguments and paths | its subresource `args` |
//! | who else listens | the verb `list` on `subscriptions` |
//!
//! Each is asked for a namespace, or for all of them, which is needed for processes outside pods.

mod cache;
#[cfg(test)]
pub(crate) mod fake;
mod review;

pub use review::{Reviewer, Reviews};

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use dinle_ebpf::{Kind, Sensor};
use futures::future::join_all;

use crate::{
    event,
    filter::{Access, Grant, Kinds, Selector},
};
use cache::Cache;

/// Group of the resources that permissions are for.
pub const API_GROUP: &str = "dinle.dev";

/// The group of everybody whose name is known, as the API server has it (k8s.io/apiserver/pkg/authentication/group).
pub const AUTHENTICATED: &str = "system:authenticated";

/// How long an answer of the API server holds: for a stream's many questions at once, and for many streams of one user.
const ANSWER_HOLDS: Duration = Duration::from_secs(5);

/// Time between two looks at what an open stream may be told: with [`ANSWER_HOLDS`] and a slow API server below the 30 s in which a permission that is
/// taken away ends it.
pub const LOOK: Duration = Duration::from_secs(10);

/// Answers that are kept, each with about 300 bytes.
pub const ANSWERS_MAX: usize = 4096;

/// Namespaces that are asked about at a time for one request: the questions of others come in between, however many this one has.
const NAMESPACES_AT_ONCE: usize = 2;

/// A caller whose name is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    /// User name.
    pub user: String,
    /// Unique id, where the API server told one.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// What else the API server told of them.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// A process of this node that could open the Unix socket: its mode and its group decide who can.
    Local,
    /// Somebody with a certificate.
    Certified(Identity),
    /// A part of the agent itself that brings elsewhere what it is told.
    Exporter(Identity),
    /// Somebody with a token, which is reviewed again while a stream lives.
    Bearer(Token, Identity),
}

impl Who {
    /// By whose permissions it goes; `None`: all.
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Local => None,
            Self::Certified(identity) | Self::Exporter(identity) | Self::Bearer(_, identity) => {
                Some(identity)
            }
        }
    }
}

/// A secret. Its `Debug` does not tell it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Of a request's header.
    pub fn new(token: &str) -> Self {
        Self(token.to_owned())
    }

    /// The secret itself.
    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Why somebody is not told anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nobody knows who they are.
    #[error("{0}")]
    Unauthenticated(String),
    /// They may not.
    #[error("{0}")]
    Denied(String),
    /// The API server does not answer: nobody is let in who might be a stranger.
    #[error("{0}")]
    Unavailable(String),
}

/// The resource that stands for all streams of an agent.
const SUBSCRIPTIONS: &str = "subscriptions";

/// What is asked of the API server: whether somebody may watch that, or, of [`SUBSCRIPTIONS`], list them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Question {
    /// Empty: all of them.
    pub namespace: String,
    /// The resource: a sensor, or [`SUBSCRIPTIONS`].
    pub resource: &'static str,
    /// Of a sensor, the subresource `args`.
    pub args: bool,
}

impl Question {
    /// What somebody would do with the resource.
    pub fn verb(&self) -> &'static str {
        match self.resource {
            SUBSCRIPTIONS => "list",
            _ => "watch",
        }
    }
}

impl std::fmt::Display for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let args = if self.args { "/args" } else { "" };
        write!(f, "{}.{API_GROUP}{args}", self.resource)?;
        match &*self.namespace {
            "" => write!(f, " in all namespaces"),
            namespace => write!(f, " in namespace {namespace}"),
        }
    }
}

/// Calls and streams that were refused. They only grow.
#[derive(Debug, Default)]
struct Counts {
    unauthenticated: AtomicU64,
    denied: AtomicU64,
    unavailable: AtomicU64,
}

/// What a caller may be told, and what was left out of what they asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What they may be told.
    pub grant: Grant,
    /// One sentence for each thing that they asked for in all namespaces and may not be told in some.
    pub notes: Vec<String>,
}

/// Asks the API server.
pub struct Auth<R = Reviewer> {
    reviews: R,
    /// By what stands for the token, and whether it was somebody's before: such do not wait for strangers'.
    tokens: Cache<([u8; 32], bool), Result<Identity, String>>,
    answers: Cache<(Identity, Question), bool>,
    counts: Counts,
}

impl<R: Reviews> Auth<R> {
    /// With what answers.
    pub fn new(reviews: R) -> Self {
        Self {
            reviews,
            tokens: Cache::new(ANSWER_HOLDS, ANSWERS_MAX),
            answers: Cache::new(ANSWER_HOLDS, ANSWERS_MAX),
            counts: Counts::default(),
        }
    }

    /// How often somebody was refused, by the reason.
    pub fn refusals(&self) -> [(&'static str, u64); 3] {
        let Counts {
            unauthenticated,
            denied,
            unavailable,
        } = &self.counts;
        [
            ("unauthenticated", unauthenticated),
            ("denied", denied),
            ("api_server_unavailable", unavailable),
        ]
        .map(|(reason, count)| (reason, count.load(Ordering::Relaxed)))
    }

    /// How many tokens and how many answers are remembered.
    pub fn cached(&self) -> (usize, usize) {
        (self.tokens.len(), self.answers.len())
    }

    /// Counts what it came to.
    pub fn counted<T>(&self, result: Result<T, Refusal>) -> Result<T, Refusal> {
        if let Err(refusal) = &result {
            let count = match refusal {
                Refusal::Unauthenticated(_) => &self.counts.unauthenticated,
                Refusal::Denied(_) => &self.counts.denied,
                Refusal::Unavailable(_) => &self.counts.unavailable,
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    /// Whose token that is. `known`: somebody's, when it was looked at last.
    pub async fn review(&self, token: Token, known: bool) -> Result<Who, Refusal> {
        let key = (cache::digest(token.secret()), known);
        let ask = self.reviews.token(token.secret(), known);
        let answer = self.tokens.get_or_ask(&key, ask).await.map_err(|error| {
            Refusal::Unavailable(format!(
                "the API server cannot be asked whose token that is: {error}"
            ))
        })?;
        match answer {
            Ok(identity) => Ok(Who::Bearer(token, identity)),
            Err(reason) => Err(Refusal::Unauthenticated(reason)),
        }
    }

    /// What somebody may be told of what they ask for. `known` are the namespaces that have pods here.
    ///
    /// Of namespaces that are named, all must be allowed. Of all namespaces, those are told that are.
    pub async fn verdict(
        &self,
        who: &Who,
        selector: &Selector,
        kinds: Kinds,
        known: &BTreeSet<String>,
    ) -> Result<Verdict, Refusal> {
        let Some(identity) = who.identity() else {
            return Ok(Verdict {
                grant: Grant::all(),
                notes: Vec::new(),
            });
        };
        let sensors = sensors(kinds);
        let named = selector.namespaces();
        let mut grant = Grant::default();
        let mut denied = Vec::new();
        let everywhere = named.is_empty() || selector.wants_host();
        if everywhere {
            let nothing = Access::default();
            let (access, missing) = self.access(identity, "", &sensors, nothing).await?;
            grant.everywhere = access;
            if selector.wants_host() {
                denied.extend(missing);
            }
        }
        let namespaces: Vec<&String> = match named {
            _ if !selector.wants_pods() => Vec::new(),
            // Nothing is left to ask.
            [] if grant.everywhere.includes(whole(&sensors)) => Vec::new(),
            [] => known.iter().collect(),
            named => named.iter().collect(),
        };
        let everywhere = grant.everywhere;
        let each = self.each(identity, &namespaces, &sensors, everywhere);
        for (namespace, access, missing) in each.await? {
            if !named.is_empty() {
                denied.extend(missing);
            }
            grant.namespaces.insert(namespace.clone(), access);
        }
        let Identity { user, .. } = identity;
        if !denied.is_empty() {
            return Err(Refusal::Denied(forbidden(user, &denied)));
        }
        if !named.is_empty() {
            grant.peers = self.peers(identity, kinds, named, known).await?;
        }
        if grant.is_empty() {
            let all = sensors.iter().map(|sensor| Question {
                namespace: String::new(),
                resource: sensor.name(),
                args: false,
            });
            return Err(Refusal::Denied(format!(
                "{}, nor in any namespace that has pods on this node",
                forbidden(user, &all.collect::<Vec<_>>())
            )));
        }
        let notes = notes(user, &grant, kinds);
        Ok(Verdict { grant, notes })
    }

    /// Whether somebody may be told who else listens.
    pub async fn may_list(&self, who: &Who) -> Result<bool, Refusal> {
        let Some(identity) = who.identity() else {
            return Ok(true);
        };
        let question = Question {
            namespace: String::new(),
            resource: SUBSCRIPTIONS,
            args: false,
        };
        self.may(identity, question).await
    }

    /// Of which other namespaces pods may be named at the other end: those where the kind may be watched, too.
    async fn peers(
        &self,
        identity: &Identity,
        kinds: Kinds,
        named: &[String],
        known: &BTreeSet<String>,
    ) -> Result<HashMap<String, Kinds>, Refusal> {
        let having = Kind::ALL.iter().filter(|kind| event::has_peers(**kind));
        let having: Kinds = having.map(|kind| event::proto_kind(*kind)).collect();
        let kinds = kinds.intersection(having);
        let sensors = sensors(kinds);
        if sensors.is_empty() {
            return Ok(HashMap::new());
        }
        let nothing = Access::default();
        let (all, missing) = self.access(identity, "", &sensors, nothing).await?;
        let mut peers = HashMap::from([(String::new(), all.watch)]);
        if missing.is_empty() {
            return Ok(peers);
        }
        let others = known.iter().filter(|namespace| !named.contains(namespace));
        let others: Vec<&String> = others.collect();
        let each = self.each(identity, &others, &sensors, all).await?;
        let each = each.into_iter();
        peers.extend(each.map(|(namespace, access, _)| (namespace.clone(), access.watch)));
        Ok(peers)
    }

    /// What somebody may be told of each of those namespaces, and what they may not even watch there.
    async fn each<'a>(
        &self,
        identity: &Identity,
        namespaces: &[&'a String],
        sensors: &[Sensor],
        everywhere: Access,
    ) -> Result<Vec<(&'a String, Access, Vec<Question>)>, Refusal> {
        let mut told = Vec::with_capacity(namespaces.len());
        for some in namespaces.chunks(NAMESPACES_AT_ONCE) {
            let answers = some.iter().map(|namespace| async {
                let access = self.access(identity, namespace, sensors, everywhere);
                access
                    .await
                    .map(|(access, missing)| (*namespace, access, missing))
            });
            for answer in join_all(answers).await {
                told.push(answer?);
            }
        }
        Ok(told)
    }

    /// What somebody may be told of a namespace, or of all of them if it is empty; and what they may not even watch. What holds everywhere is not
    /// asked for again.
    async fn access(
        &self,
        identity: &Identity,
        namespace: &str,
        sensors: &[Sensor],
        everywhere: Access,
    ) -> Result<(Access, Vec<Question>), Refusal> {
        let mut access = Access::default();
        let mut missing = Vec::new();
        let asked = sensors.iter().map(|sensor| async {
            let question = |args| Question {
                namespace: namespace.to_owned(),
                resource: sensor.name(),
                args,
            };
            let kinds = kinds_of(sensor.name());
            let watch = kinds.difference(everywhere.watch).is_empty()
                || self.may(identity, question(false)).await?;
            let args = watch
                && (kinds.difference(everywhere.args).is_empty()
                    || arguments(*sensor).is_empty()
                    || self.may(identity, question(true)).await?);
            Ok((*sensor, question(false), watch, args))
        });
        for answer in join_all(asked).await {
            let (sensor, question, watch, args) = answer?;
            let kinds = kinds_of(sensor.name());
            if !watch {
                missing.push(question);
                continue;
            }
            access.watch = access.watch.union(kinds);
            let shown = match args {
                true => kinds,
                false => kinds.difference(arguments(sensor)),
            };
            access.args = access.args.union(shown);
        }
        Ok((access, missing))
    }

    async fn may(&self, identity: &Identity, question: Question) -> Result<bool, Refusal> {
        let key = (identity.clone(), question);
        let ask = self.reviews.may(&key.0, &key.1);
        self.answers.get_or_ask(&key, ask).await.map_err(|error| {
            Refusal::Unavailable(format!(
                "the API server cannot be asked whether {} may {} {}: {error}",
                key.0.user,
                key.1.verb(),
                key.1
            ))
        })
    }
}

/// Sensors of all kinds that somebody may ask for.
pub fn all_kinds() -> Kinds {
    Kind::ALL
        .iter()
        .map(|kind| event::proto_kind(*kind))
        .collect()
}

/// What `before` allowed and `now` does not, as one sentence; `None` if nothing was taken away.
pub fn taken_away(user: &str, before: &Grant, now: &Grant) -> Option<String> {
    let lost = |before: Access, now: Access, place: &str| {
        Sensor::ALL.iter().find_map(|sensor| {
            let kinds = kinds_of(sensor.name());
            let gone =
                |before: Kinds, now: Kinds| !before.difference(now).intersection(kinds).is_empty();
            let args = if gone(before.watch, now.watch) {
                ""
            } else if gone(before.args, now.args) {
                "/args"
            } else {
                return None;
            };
            Some(format!(
                "{user} may no longer watch {sensor}.{API_GROUP}{args} in {place}"
            ))
        })
    };
    // Of a namespace that has no pods here any more nothing was asked. What holds everywhere need not hold in it by itself.
    let namespaces = before.namespaces.iter().find_map(|(name, access)| {
        let now = now.namespaces.get(name)?.union(now.everywhere);
        lost(*access, now, &format!("namespace {name}"))
    });
    namespaces.or_else(|| lost(before.everywhere, now.everywhere, "all namespaces"))
}

fn forbidden(user: &str, questions: &[Question]) -> String {
    const TOLD: usize = 8;
    let mut what: Vec<String> = questions
        .iter()
        .take(TOLD)
        .map(ToString::to_string)
        .collect();
    if questions.len() > TOLD {
        what.push(format!("{} more", questions.len() - TOLD));
    }
    format!("{user} may not watch {}", what.join(", "))
}

/// What a Plan says of what is left out of what somebody asked for: of which namespaces, and of which events.
pub fn notes(user: &str, grant: &Grant, kinds: Kinds) -> Vec<String> {
    let hidden = |sensor: &Sensor, access: &Access| {
        let told = access.union(grant.everywhere).watch;
        !kinds_of(sensor.name()).difference(told).is_empty()
    };
    let mut notes = Vec::new();
    for sensor in sensors(kinds) {
        let namespaces = grant.namespaces.iter();
        let namespaces: BTreeSet<&str> = namespaces
            .filter(|(_, access)| hidden(&sensor, access))
            .map(|(name, _)| &**name)
            .collect();
        if !namespaces.is_empty() {
            notes.push(format!(
                "left out, since {user} may not watch {sensor}.{API_GROUP} there: {}",
                namespaces.into_iter().collect::<Vec<_>>().join(", ")
            ));
        }
    }
    notes.extend(redacted(user, grant, kinds));
    notes
}

fn redacted(user: &str, grant: &Grant, kinds: Kinds) -> Option<String> {
    let hidden = |access: &Access| {
        !access
            .watch
            .difference(access.args)
            .intersection(kinds)
            .is_empty()
    };
    let places: BTreeSet<&str> = grant
        .namespaces
        .iter()
        .filter(|(_, access)| hidden(&access.union(grant.everywhere)))
        .map(|(name, _)| &**name)
        .collect();
    let place = match places.len() {
        0 if hidden(&grant.everywhere) => "all namespaces".to_owned(),
        0 => return None,
        _ => places.into_iter().collect::<Vec<_>>().join(", "),
    };
    Some(format!(
        "arguments and paths are left out in {place}, and filters on them match nothing there: {user} may not watch the sensors' subresource args"
    ))
}

fn sensors(kinds: Kinds) -> Vec<Sensor> {
    let asked = |sensor: &&Sensor| !kinds_of(sensor.name()).intersection(kinds).is_empty();
    Sensor::ALL.iter().filter(asked).copied().collect()
}

fn kinds_of(sensor: &str) -> Kinds {
    Kind::ALL
        .iter()
        .filter(|kind| kind.sensor().name() == sensor)
        .map(|kind| event::proto_kind(*kind))
        .collect()
}

/// Kinds of the sensor whose events have arguments or paths.
fn arguments(sensor: Sensor) -> Kinds {
    Kind::ALL
        .iter()
        .filter(|kind| kind.sensor() == sensor && event::has_arguments(**kind))
        .map(|kind| event::proto_kind(*kind))
        .collect()
}

/// All that there is of those sensors.
fn whole(sensors: &[Sensor]) -> Access {
    let all = sensors
        .iter()
        .map(|sensor| kinds_of(sensor.name()))
        .fold(Kinds::default(), Kinds::union);
    Access {
        watch: all,
        args: all,
    }
}

#[cfg(test)]
mod tests;

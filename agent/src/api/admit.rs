//! Who is let in, what they may be told, and whether that still holds while their stream goes on.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use dinle_proto::v1;
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep},
};
use tonic::{Request, Status};

use crate::{
    auth::{self, Auth, Identity, Refusal, Token, Verdict, Who},
    filter::{self, Grant, Selector},
    hub::{Hub, Listener, Withdrawn},
    listen::{Peer, PeerAddress},
    workload::Index,
};

/// Time between two looks for namespaces that are new.
const NEW_NAMESPACES: Duration = Duration::from_secs(1);

/// How callers are admitted.
#[derive(Clone)]
pub struct Admission {
    /// Who asks the API server; `None`: whoever can connect is told everything.
    pub auth: Option<Arc<Auth>>,
    /// How long streams go on while that cannot be asked.
    pub grace: Duration,
    /// Which namespaces there are.
    pub index: Index,
}

/// Somebody who was let in.
pub(super) struct Admitted {
    /// As others are told of them.
    pub(super) caller: v1::Caller,
    /// `None`: nobody was asked.
    who: Option<Who>,
}

impl Admission {
    /// Who asks.
    pub(super) async fn admit<T>(
        &self,
        request: &Request<T>,
    ) -> (v1::Caller, Result<Admitted, Refusal>) {
        let mut caller = caller(request.extensions().get());
        let Some(auth) = &self.auth else {
            return (caller.clone(), Ok(Admitted { caller, who: None }));
        };
        let who = auth.counted(who(auth, request).await);
        if let Ok(who) = &who
            && let Some(Identity { user, groups, .. }) = who.identity()
        {
            caller.user.clone_from(user);
            caller.groups.clone_from(groups);
        }
        let admitted = who.map(|who| Admitted {
            caller: caller.clone(),
            who: Some(who),
        });
        (caller, admitted)
    }

    /// What they may be told of what they ask for.
    pub(super) async fn verdict(
        &self,
        admitted: &Admitted,
        asked: &filter::Request,
    ) -> Result<Verdict, Refusal> {
        match (&self.auth, &admitted.who) {
            (Some(auth), Some(who)) => {
                let verdict = auth
                    .verdict(who, &asked.selector, asked.kinds, &namespaces(&self.index))
                    .await;
                auth.counted(verdict)
            }
            _ => Ok(Verdict {
                grant: Grant::all(),
                notes: Vec::new(),
            }),
        }
    }

    /// What they may be told of anything here.
    pub(super) async fn sight(&self, admitted: &Admitted) -> Result<Grant, Refusal> {
        match (&self.auth, &admitted.who) {
            (Some(auth), Some(who)) => {
                let verdict = auth
                    .verdict(
                        who,
                        &Selector::default(),
                        auth::all_kinds(),
                        &namespaces(&self.index),
                    )
                    .await;
                auth.counted(verdict).map(|verdict| verdict.grant)
            }
            _ => Ok(Grant::all()),
        }
    }

    /// Whether they may be told who else listens.
    pub(super) async fn may_list(&self, admitted: &Admitted) -> Result<bool, Refusal> {
        match (&self.auth, &admitted.who) {
            (Some(auth), Some(who)) => auth.counted(auth.may_list(who).await),
            _ => Ok(true),
        }
    }

    /// Looks again and again whether a stream may go on. Ends with what it returns.
    pub(super) fn guard(&self, admitted: Admitted, hub: &Hub, listener: &Arc<Listener>) -> Guard {
        let Admission { auth, grace, index } = self.clone();
        let (Some(auth), Some(who)) = (auth, admitted.who) else {
            return Guard(None);
        };
        let who = Arc::new(ArcSwap::from_pointee(who));
        let watch = watch(
            auth,
            who.clone(),
            grace,
            index,
            hub.clone(),
            listener.clone(),
        );
        Guard(Some((who, tokio::spawn(watch).abort_handle())))
    }
}

/// A look at permissions that ends when it is dropped. It is those of whoever has the stream now.
pub(super) struct Guard(Option<(Arc<ArcSwap<Who>>, AbortHandle)>);

impl Guard {
    /// The same user has come again, with a token that may be another.
    pub(super) fn follow(&self, admitted: &Admitted) {
        if let (Some((who, _)), Some(now)) = (&self.0, &admitted.who) {
            who.store(Arc::new(now.clone()));
        }
    }
}

#[cfg(test)]
impl Guard {
    /// Of a stream that nobody is asked about.
    pub(super) fn none() -> Self {
        Self(None)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some((_, watch)) = &self.0 {
            watch.abort();
        }
    }
}

async fn watch(
    auth: Arc<Auth>,
    who: Arc<ArcSwap<Who>>,
    grace: Duration,
    index: Index,
    hub: Hub,
    listener: Arc<Listener>,
) {
    // Those of this node itself may everything, always.
    let Some(user) = who.load().identity().map(|identity| identity.user.clone()) else {
        return;
    };
    let mut failing: Option<Instant> = None;
    let mut known = namespaces(&index);
    loop {
        tokio::select! {
            () = sleep(auth::LOOK) => (),
            () = more_namespaces(&index, &known) => (),
        }
        known = namespaces(&index);
        let began = Instant::now();
        let now = who.load_full();
        let again = async {
            let who = match &*now {
                Who::Bearer(token, _) => auth.review(token.clone(), true).await?,
                who => who.clone(),
            };
            let asked = &listener.request;
            auth.verdict(&who, &asked.selector, asked.kinds, &known)
                .await
        };
        let withdrawn = match again.await {
            Ok(Verdict { grant, .. }) => {
                failing = None;
                match auth::taken_away(&user, &listener.grant(), &grant) {
                    Some(what) => Withdrawn::Denied(what),
                    None => {
                        hub.set_grant(&listener, grant);
                        continue;
                    }
                }
            }
            Err(Refusal::Denied(why)) => Withdrawn::Denied(why),
            // Another one was shown meanwhile.
            Err(Refusal::Unauthenticated(_)) if !Arc::ptr_eq(&now, &who.load()) => continue,
            Err(Refusal::Unauthenticated(why)) => Withdrawn::Unauthenticated(why),
            Err(Refusal::Unavailable(why)) => {
                // It may have taken a while until that was known.
                if failing.get_or_insert(began).elapsed() < grace {
                    continue;
                }
                Withdrawn::Unknown(format!(
                    "{why}; for {} s now, and the stream goes no further on trust",
                    grace.as_secs()
                ))
            }
        };
        return hub.withdraw(&listener, withdrawn);
    }
}

/// Comes back when there is a namespace that was not known.
async fn more_namespaces(index: &Index, known: &BTreeSet<String>) {
    loop {
        sleep(NEW_NAMESPACES).await;
        if !namespaces(index).is_subset(known) {
            return;
        }
    }
}

fn namespaces(index: &Index) -> BTreeSet<String> {
    let live = index.live();
    let names = live.iter().map(|live| &live.workload.namespace);
    names.filter(|name| !name.is_empty()).cloned().collect()
}

/// Whoever shows a token is who that says; else it is who the certificate says, or who may open the socket.
async fn who<T>(auth: &Auth, request: &Request<T>) -> Result<Who, Refusal> {
    if let Some(header) = request.metadata().get("authorization") {
        let token = header
            .to_str()
            .ok()
            .and_then(|header| header.split_once(' '));
        return match token {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                auth.review(Token::new(token.trim()), false).await
            }
            _ => Err(Refusal::Unauthenticated(
                "the header `authorization` has to be `Bearer TOKEN`".to_owned(),
            )),
        };
    }
    match request.extensions().get() {
        Some(Peer { certificate: Some(subject), .. }) => Ok(Who::Certified(Identity {
            user: subject.user.clone(),
            // As the API server does (k8s.io/apiserver/pkg/authentication/group).
            groups: subject.groups.iter().cloned().chain(["system:authenticated".to_owned()]).collect(),
            ..Identity::default()
        })),
        Some(Peer { address: PeerAddress::Unix(_), .. }) => Ok(Who::Local),
        _ => Err(Refusal::Unauthenticated(
            "this agent asks who you are: send a token in the header `authorization` (--token-file, or --service-account with --kube)".to_owned(),
        )),
    }
}

/// Who asks, as far as the connection tells.
pub(super) fn caller(peer: Option<&Peer>) -> v1::Caller {
    let Some(Peer {
        address,
        certificate,
    }) = peer
    else {
        return v1::Caller::default();
    };
    let peer = match address {
        PeerAddress::Tcp(address) => address.to_string(),
        PeerAddress::Unix(Some(user)) => format!("unix:{user}"),
        PeerAddress::Unix(None) => "unix:?".to_owned(),
    };
    let subject = certificate.as_deref().cloned().unwrap_or_default();
    v1::Caller {
        peer,
        user: subject.user,
        groups: subject.groups,
    }
}

/// As gRPC has it.
pub(super) fn status(refusal: Refusal) -> Status {
    match refusal {
        Refusal::Unauthenticated(why) => Status::unauthenticated(why),
        Refusal::Denied(why) => Status::permission_denied(why),
        Refusal::Unavailable(why) => Status::unavailable(why),
    }
}

/// How a stream ends that may not go on.
pub(super) fn ended(withdrawn: Withdrawn) -> Status {
    status(match withdrawn {
        Withdrawn::Denied(why) => Refusal::Denied(why),
        Withdrawn::Unauthenticated(why) => Refusal::Unauthenticated(why),
        Withdrawn::Unknown(why) => Refusal::Unavailable(why),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listen::Subject;

    #[test]
    fn who_asks_is_what_the_connection_tells() {
        assert_eq!(caller(None), v1::Caller::default());
        let subject = Subject {
            user: "jane".into(),
            groups: vec!["dev".into(), "ops".into()],
        };
        let peer = Peer {
            address: PeerAddress::Tcp(([10, 0, 0, 7], 41234).into()),
            certificate: Some(Arc::new(subject)),
        };
        let jane = v1::Caller {
            peer: "10.0.0.7:41234".into(),
            user: "jane".into(),
            groups: vec!["dev".into(), "ops".into()],
        };
        assert_eq!(caller(Some(&peer)), jane);
        let peer = Peer {
            address: PeerAddress::Unix(Some(1000)),
            certificate: None,
        };
        assert_eq!(
            caller(Some(&peer)),
            v1::Caller {
                peer: "unix:1000".into(),
                ..v1::Caller::default()
            }
        );
    }
}

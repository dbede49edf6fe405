//! ADMISSION: what somebody who is known may be told, and whether that still holds while their stream goes on. The same for whoever comes over gRPC and
//! for the agent's own exporters.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use dinle_proto::v1;
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep},
};

use crate::{
    auth::{self, Auth, Identity, Who},
    filter::{self, Grant, Selector},
    hub::{Hub, Listener, Withdrawn},
    workload::Index,
};

pub use crate::auth::{Refusal, Verdict};

/// Time between two looks for namespaces that are new.
const NEW_NAMESPACES: Duration = Duration::from_secs(1);

/// All exporters are in this group.
const EXPORTERS: &str = "dinle:exporters";

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
#[derive(Clone)]
pub struct Admitted {
    /// As others are told of them.
    pub caller: v1::Caller,
    /// `None`: nobody was asked.
    who: Option<Who>,
}

impl Admitted {
    /// Whoever it is, as far as the connection tells.
    pub fn unasked(caller: v1::Caller) -> Self {
        Self { caller, who: None }
    }

    /// Somebody who is known, at the other end of that connection.
    pub fn known(mut caller: v1::Caller, who: Who) -> Self {
        if let Some(Identity { user, groups, .. }) = who.identity() {
            caller.user.clone_from(user);
            caller.groups.clone_from(groups);
        }
        Self {
            caller,
            who: Some(who),
        }
    }

    /// An exporter of the agent itself.
    pub fn exporter(name: &str) -> Self {
        let peer = v1::Caller {
            peer: "exporter".to_owned(),
            ..v1::Caller::default()
        };
        let identity = Identity {
            user: format!("dinle:exporter:{name}"),
            groups: [EXPORTERS, auth::AUTHENTICATED].map(str::to_owned).into(),
            ..Identity::default()
        };
        Self::known(peer, Who::Exporter(identity))
    }
}

impl Admission {
    /// What they may be told of what they ask for.
    pub async fn verdict(
        &self,
        admitted: &Admitted,
        asked: &filter::Request,
    ) -> Result<Verdict, Refusal> {
        match (&self.auth, &admitted.who) {
            (Some(auth), Some(who)) => {
                let verdict = auth
                    .verdict(who, &asked.selector, asked.kinds, &self.namespaces())
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
    pub async fn sight(&self, admitted: &Admitted) -> Result<Grant, Refusal> {
        match (&self.auth, &admitted.who) {
            (Some(auth), Some(who)) => {
                let verdict = auth
                    .verdict(
                        who,
                        &Selector::default(),
                        auth::all_kinds(),
                        &self.namespaces(),
                    )
                    .await;
                auth.counted(verdict).map(|verdict| verdict.grant)
            }
            _ => Ok(Grant::all()),
        }
    }

    /// Whether they may be told who else listens.
    pub async fn may_list(&self, admitted: &Admitted) -> Result<bool, Refusal> {
        match (&self.auth, &admitted.who) {
            (Some(auth), Some(who)) => auth.counted(auth.may_list(who).await),
            _ => Ok(true),
        }
    }

    /// Those of which pods run here.
    pub fn namespaces(&self) -> BTreeSet<String> {
        namespaces(&self.index)
    }

    /// Comes back when there is a namespace that was not known.
    pub async fn more_namespaces(&self, known: &BTreeSet<String>) {
        more_namespaces(&self.index, known).await;
    }

    /// Looks again and again whether a stream may go on. Ends with what it returns.
    pub fn guard(&self, admitted: Admitted, hub: &Hub, listener: &Arc<Listener>) -> Guard {
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
pub struct Guard(Option<(Arc<ArcSwap<Who>>, AbortHandle)>);

impl Guard {
    /// The same user has come again, with a token that may be another.
    pub fn follow(&self, admitted: &Admitted) {
        if let (Some((who, _)), Some(now)) = (&self.0, &admitted.who) {
            who.store(Arc::new(now.clone()));
        }
    }
}

#[cfg(test)]
impl Guard {
    /// Of a stream that nobody is asked about.
    pub fn none() -> Self {
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

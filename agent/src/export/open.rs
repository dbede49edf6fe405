//! How an exporter comes to a stream: it asks for one as every user does, and again until it is given one.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};

use super::{
    Context, Spec,
    counters::{Cause, Counters},
    run::{AGAIN, AGAIN_MAX, chance, pause, told},
    series::Store,
};
use crate::{
    admission::{Admission, Admitted, Guard, Refusal, Verdict},
    audit,
    filter::{Limits, Request},
    hub::{Hub, Subscription, Withdrawn},
};

/// Asks for the streams of one exporter, which has one at a time.
pub(super) struct Opening {
    spec: Spec,
    hub: Hub,
    admission: Admission,
    limits: Limits,
    counters: Arc<Counters>,
    /// Where pods that are gone are forgotten also while there is no stream.
    store: Option<Arc<Store>>,
    admitted: Admitted,
    /// What was left out of the last stream.
    notes: Vec<String>,
}

/// Why there is no stream.
struct Refused {
    /// As gRPC has it.
    code: &'static str,
    cause: Cause,
    reason: String,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let (code, cause, reason) = match refusal {
            Refusal::Denied(why) => ("PermissionDenied", Cause::Denied, why),
            Refusal::Unauthenticated(why) => ("Unauthenticated", Cause::Denied, why),
            Refusal::Unavailable(why) => ("Unavailable", Cause::Unavailable, why),
        };
        Self {
            code,
            cause,
            reason,
        }
    }
}

impl Opening {
    pub(super) fn new(
        spec: Spec,
        context: &Context,
        counters: Arc<Counters>,
        store: Option<Arc<Store>>,
    ) -> Self {
        let Context {
            hub,
            admission,
            limits,
            ..
        } = context;
        Self {
            admitted: Admitted::exporter(&spec.name),
            spec,
            hub: hub.clone(),
            admission: admission.clone(),
            limits: *limits,
            counters,
            store,
            notes: Vec::new(),
        }
    }

    /// Opens a stream as soon as it is permitted and there is room for it. `None`: it was told to stop first, or there will never be one.
    pub(super) async fn open(
        &mut self,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<(Subscription, Guard)> {
        tokio::select! {
            biased;
            () = told(stop) => None,
            opened = self.opened() => opened,
        }
    }

    async fn opened(&mut self) -> Option<(Subscription, Guard)> {
        let mut wait = AGAIN;
        let mut said = String::new();
        loop {
            // It was right when the file was read.
            let request = match Request::parse(&self.spec.asked, &self.limits) {
                Ok(request) => request,
                Err(error) => {
                    tracing::error!(exporter = self.spec.name, %error, "no stream");
                    return None;
                }
            };
            let known = self.admission.namespaces();
            let Refused {
                code,
                cause,
                reason,
            } = match self.ask(request).await {
                Ok(opened) => return Some(opened),
                Err(refused) => refused,
            };
            self.counters.refused(cause, &reason);
            if said != reason {
                audit::refused(&self.admitted.caller, &self.spec.asked, code, &reason);
                said = reason;
            }
            if let Some(store) = &self.store {
                store.tick();
            }
            tokio::select! {
                () = sleep(pause(Duration::ZERO, wait, chance())) => {}
                // It may be one of those that it may hear.
                () = self.admission.more_namespaces(&known) => {}
            }
            wait = (2 * wait).min(AGAIN_MAX);
        }
    }

    async fn ask(&mut self, request: Request) -> Result<(Subscription, Guard), Refused> {
        let Self {
            spec,
            hub,
            admission,
            admitted,
            ..
        } = self;
        let Verdict { grant, notes } = admission.verdict(admitted, &request).await?;
        let caller = admitted.caller.clone();
        let subscription = hub
            .subscribe(spec.asked.clone(), request, caller, grant)
            .map_err(|full| Refused {
                code: "ResourceExhausted",
                cause: Cause::Unavailable,
                reason: full.to_string(),
            })?;
        let listener = subscription.listener();
        let guard = admission.guard(admitted.clone(), hub, listener);
        self.counters.opened(listener);
        audit::begins(listener);
        if notes != self.notes {
            for note in &notes {
                tracing::warn!(exporter = self.spec.name, note, "not all is exported");
            }
            self.notes = notes;
        }
        Ok((subscription, guard))
    }

    /// Tells that a stream ended which might not go on.
    pub(super) fn withdrawn(&self, why: Withdrawn) {
        let refusal = match why {
            Withdrawn::Denied(why) => Refusal::Denied(why),
            Withdrawn::Unauthenticated(why) => Refusal::Unauthenticated(why),
            Withdrawn::Unknown(why) => Refusal::Unavailable(why),
        };
        let Refused { cause, reason, .. } = refusal.into();
        self.counters.refused(cause, &reason);
        tracing::error!(
            exporter = self.spec.name,
            cause = cause.name(),
            reason,
            "its stream had to end; it asks for another one"
        );
    }
}

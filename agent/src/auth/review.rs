//! Questions to the API server.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::{OnceCell, Semaphore},
    time::{sleep, timeout},
};

use super::{API_GROUP, Identity, Question};
use crate::apiserver;

#[cfg(test)]
mod tests;

/// Questions that are asked at a time, each of which takes its place for [`PACE`] at least: no more than 80 a second, and as many about strangers' tokens.
const AT_ONCE: usize = 8;
/// See [`AT_ONCE`].
const PACE: Duration = Duration::from_millis(100);
/// How long the API server may take. Longer, and a stream's look at its permissions would come too late.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a question may wait for its turn: as long as the look of a stream may take, all in all. Whoever gives up before takes theirs back.
const TURN: Duration = Duration::from_secs(30);

/// Who answers: the API server, or a test.
pub trait Reviews: Send + Sync + 'static {
    /// Whose token that is, or why it is nobody's; an error if that could not be asked. `known`: it was somebody's before.
    fn token(
        &self,
        token: &str,
        known: bool,
    ) -> impl Future<Output = Result<Result<Identity, String>, String>> + Send;

    /// Whether they may; an error if that could not be asked.
    fn may(
        &self,
        identity: &Identity,
        question: &Question,
    ) -> impl Future<Output = Result<bool, String>> + Send;
}

/// The API server.
pub struct Reviewer {
    /// Connected when it is first needed: an agent can start before its API server.
    client: OnceCell<Client>,
    audiences: Vec<String>,
    places: Arc<Semaphore>,
    /// Of questions for which anybody may be the reason: no flood of false tokens keeps those waiting who are let in already.
    strangers: Arc<Semaphore>,
}

impl Reviewer {
    /// For tokens that are meant for one of `audiences`.
    pub fn new(audiences: Vec<String>) -> Self {
        Self {
            client: OnceCell::new(),
            audiences,
            places: Arc::new(Semaphore::new(AT_ONCE)),
            strangers: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Connected already.
    #[cfg(test)]
    pub(super) fn connected(client: Client, audiences: Vec<String>) -> Self {
        Self {
            client: OnceCell::new_with(Some(client)),
            ..Self::new(audiences)
        }
    }

    async fn client(&self) -> Result<Client, String> {
        let connect = || apiserver::connect(PATIENCE);
        self.client.get_or_try_init(connect).await.cloned()
    }

    /// Asks, when it is its turn.
    async fn ask<T>(
        &self,
        places: &Arc<Semaphore>,
        answer: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, String> {
        let place = timeout(TURN, places.clone().acquire_owned()).await;
        let place = place.map_err(|_| "too much is asked of it at once".to_owned())?;
        let answer = timeout(PATIENCE, answer).await;
        tokio::spawn(async move {
            sleep(PACE).await;
            drop(place);
        });
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => Err(format!(
                "{}; the agent's service account needs the permission to `create` `tokenreviews` and `subjectaccessreviews`",
                status.message
            )),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        }
    }
}

impl Reviews for Reviewer {
    async fn token(&self, token: &str, known: bool) -> Result<Result<Identity, String>, String> {
        let api = Api::<TokenReview>::all(self.client().await?);
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: Some(self.audiences.clone()),
            },
            ..TokenReview::default()
        };
        let params = PostParams::default();
        let places = if known { &self.places } else { &self.strangers };
        let status = self
            .ask(places, api.create(&params, &review))
            .await?
            .status
            .unwrap_or_default();
        let meant = status.audiences.unwrap_or_default();
        let wanted = || self.audiences.join(" or ");
        if status.authenticated != Some(true) {
            // The API server's own words would tell a stranger about its keys.
            return Ok(Err(format!(
                "the API server does not accept that token for the audience {}: it may have expired, or be meant for another",
                wanted()
            )));
        }
        // An authenticator that knows nothing of audiences tells none (KEP 1205): its tokens are for the API server alone.
        if !meant
            .iter()
            .any(|audience| self.audiences.contains(audience))
        {
            return Ok(Err(format!(
                "that token is not meant for the audience {}",
                wanted()
            )));
        }
        let user = status.user.unwrap_or_default();
        let Some(name) = user.username.filter(|name| !name.is_empty()) else {
            return Err("it accepts the token, and does not say whose it is".to_owned());
        };
        Ok(Ok(Identity {
            user: name,
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        }))
    }

    async fn may(&self, identity: &Identity, question: &Question) -> Result<bool, String> {
        let api = Api::<SubjectAccessReview>::all(self.client().await?);
        let Identity {
            user,
            uid,
            groups,
            extra,
        } = identity;
        let Question {
            namespace,
            resource,
            args,
        } = question;
        let filled = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.clone()),
                uid: filled(uid),
                groups: Some(groups.clone()),
                extra: Some(BTreeMap::clone(extra)),
                resource_attributes: Some(ResourceAttributes {
                    namespace: filled(namespace),
                    group: Some(API_GROUP.to_owned()),
                    resource: Some((*resource).to_owned()),
                    subresource: args.then(|| "args".to_owned()),
                    verb: Some(question.verb().to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let params = PostParams::default();
        let status = self
            .ask(&self.places, api.create(&params, &review))
            .await?
            .status
            .unwrap_or_default();
        // An answer that says both is wrong, and lets nobody in.
        Ok(status.allowed && status.denied != Some(true))
    }
}

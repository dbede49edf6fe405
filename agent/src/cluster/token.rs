//! Tokens with which an agent is told who asks.

use std::{
    future::{Ready, ready},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{
    Api, Client, Config,
    api::PostParams,
    client::{Body, ConfigExt as _},
};
use tokio::time::Instant;
use tower::{Layer as _, ServiceExt as _};

use super::{Cluster, root_cause};

/// How long a token of a service account is asked for: the shortest that the API server gives.
const HOLDS: Duration = Duration::from_secs(600);

/// Where a token comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TokenFrom {
    /// There is none: who asks is nobody.
    #[default]
    Nowhere,
    /// A file, read each time: others renew it.
    File(PathBuf),
    /// The user's own, of the kubeconfig.
    User,
    /// A service account, for which the API server is asked.
    ServiceAccount {
        /// Its namespace; `None`: the one that is meant where none is named.
        namespace: Option<String>,
        /// Its name.
        name: String,
        /// For whom the token is meant.
        audience: String,
    },
}

/// The last token of a service account, and since when.
#[derive(Clone, Default)]
pub(super) struct Kept(Arc<Mutex<Option<(Instant, String)>>>);

/// Reads a token out of a file.
///
/// # Errors
/// A sentence for the user.
pub fn token_in(path: &PathBuf) -> Result<String, String> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    match text.trim() {
        "" => Err(format!("there is no token in {}", path.display())),
        token => Ok(token.to_owned()),
    }
}

impl Cluster {
    /// A token for the agents, if they are to get one.
    ///
    /// # Errors
    /// A sentence for the user.
    pub async fn token(&self) -> Result<Option<String>, String> {
        match &self.options.token {
            TokenFrom::Nowhere => Ok(None),
            TokenFrom::File(path) => token_in(path).map(Some),
            TokenFrom::User => of_user(&self.config).await.map(Some),
            TokenFrom::ServiceAccount {
                namespace,
                name,
                audience,
            } => {
                let namespace = namespace.as_ref().unwrap_or(&self.namespace);
                let Kept(kept) = &self.token;
                let fresh = kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some((since, token)) = fresh
                    && since.elapsed() < HOLDS / 2
                {
                    return Ok(Some(token));
                }
                let token = of_service_account(&self.client, namespace, name, audience).await?;
                let made = (Instant::now(), token.clone());
                *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
                Ok(Some(token))
            }
        }
    }
}

async fn of_service_account(
    client: &Client,
    namespace: &str,
    name: &str,
    audience: &str,
) -> Result<String, String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(vec![audience.to_owned()]),
            expiration_seconds: Some(HOLDS.as_secs() as i64),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let params = PostParams::default();
    let answer = accounts.create_token_request(name, &params, &request).await.map_err(|error| match &error {
        kube::Error::Api(status) if status.code == 403 => format!(
            "you may not have a token of service account {namespace}/{name}: it takes the permission to `create` `serviceaccounts/token` there"
        ),
        kube::Error::Api(status) if status.code == 404 => format!("there is no service account {namespace}/{name}"),
        error => format!("the API server gave no token of service account {namespace}/{name}: {}", root_cause(error)),
    })?;
    let token = answer.status.and_then(|status| status.token);
    token.ok_or_else(|| {
        format!("the API server gave no token of service account {namespace}/{name}")
    })
}

/// The token with which requests to the API server are signed: kube adds it to a request that goes nowhere. So programs of the
/// kubeconfig that give credentials are asked, too.
async fn of_user(config: &Config) -> Result<String, String> {
    const NONE: &str = "the kubeconfig has no token of yours (you may be known by a certificate, which an agent is not shown); \
                        name a service account with --service-account";
    let layer = config
        .auth_layer()
        .map_err(|error| format!("the kubeconfig gives no token: {}", root_cause(&error)))?;
    let Some(layer) = layer else {
        return Err(NONE.to_owned());
    };
    let caught = tower::service_fn(catch);
    let request = http::Request::new(Body::empty());
    let header = layer.layer(caught).oneshot(request).await;
    let header = header
        .map_err(|error: tower::BoxError| format!("the kubeconfig gives no token: {error}"))?;
    let header = header.into_body();
    let header = header.as_ref().and_then(|header| header.to_str().ok());
    let token = header.and_then(|header| header.strip_prefix("Bearer "));
    token.map(str::to_owned).ok_or_else(|| NONE.to_owned())
}

type Header = Option<http::HeaderValue>;

fn catch(request: http::Request<Body>) -> Ready<Result<http::Response<Header>, tower::BoxError>> {
    let header = request.headers().get(http::header::AUTHORIZATION);
    ready(Ok(http::Response::new(header.cloned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_users_token_is_the_one_that_the_api_server_gets() {
        let mut config = Config::new(http::Uri::from_static("https://127.0.0.1:1"));
        let error = of_user(&config).await.expect_err("there is none");
        assert!(error.contains("--service-account"), "{error}");
        config.auth_info.token = Some("s3cret".to_owned().into());
        assert_eq!(of_user(&config).await, Ok("s3cret".to_owned()));
        // A name and a password are no token.
        config.auth_info.token = None;
        config.auth_info.username = Some("jane".to_owned());
        config.auth_info.password = Some("pw".to_owned().into());
        let error = of_user(&config).await.expect_err("there is none");
        assert!(error.contains("no token of yours"), "{error}");
    }

    #[test]
    fn a_token_in_a_file_is_read_without_the_end_of_its_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        assert!(
            token_in(&path)
                .expect_err("not there")
                .contains("cannot be read")
        );
        std::fs::write(&path, "\n").expect("written");
        assert!(token_in(&path).expect_err("empty").contains("no token"));
        std::fs::write(&path, "s3cret\n").expect("written");
        assert_eq!(token_in(&path), Ok("s3cret".to_owned()));
    }
}

//! APISERVER: the way to the API server of the agent's own cluster. Whatever comes from there has a bound.

use std::time::Duration;

use http::Response;
use http_body_util::Limited;
use kube::{Client, Config, client::ClientBuilder};
use tower::util::MapResponseLayer;

/// Bytes of one answer. The list of the pods of a large node has about 15 MB, and a watch lasts minutes; more is no answer, but something
/// between that never ends.
pub const ANSWER_BYTES: usize = 64 << 20;

/// A client, with whatever identity the agent has here. An answer may pause for so long.
///
/// # Errors
/// Why there is none: a sentence.
pub async fn connect(patience: Duration) -> Result<Client, String> {
    // A stray kubeconfig in the image must not win over the pod's own service account.
    let mut config = if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        Config::incluster().map_err(|error| error.to_string())?
    } else {
        Config::infer().await.map_err(|error| error.to_string())?
    };
    config.read_timeout = Some(patience);
    config.reset_reader_on_write = true;
    let builder = ClientBuilder::try_from(config).map_err(|error| error.to_string())?;
    Ok(builder.with_layer(&MapResponseLayer::new(bounded)).build())
}

/// The same answer, which fails when it is longer than [`ANSWER_BYTES`].
pub fn bounded<B>(answer: Response<B>) -> Response<Limited<B>> {
    answer.map(|body| Limited::new(body, ANSWER_BYTES))
}

//! Requests that are too large. tonic itself refuses to read them, before the service hears of them; here that becomes what gRPC's other
//! implementations call it, and is counted and told in the log as every refusal.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use dinle_proto::v1;
use http::{Request, Response};
use tonic::{Code, Status, server::NamedService};
use tonic_types::{ErrorDetails, StatusExt as _};
use tower::Service;

use crate::{audit, filter::Bound, hub::Hub, listen::Peer};

use super::admit::caller;

/// A service, and how large its requests may be.
#[derive(Clone)]
pub struct Measured<S> {
    service: S,
    hub: Hub,
    most: usize,
}

impl<S> Measured<S> {
    /// Of a service that reads no more than so many bytes.
    pub fn new(service: S, hub: Hub, most: usize) -> Self {
        Self { service, hub, most }
    }
}

impl<S: NamedService> NamedService for Measured<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, In, Out> Service<Request<In>> for Measured<S>
where
    S: Service<Request<In>, Response = Response<Out>>,
    S::Future: Send + 'static,
    Out: Default,
{
    type Response = Response<Out>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Out>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<In>) -> Self::Future {
        let peer = request.extensions().get::<Peer>().cloned();
        let (hub, most) = (self.hub.clone(), self.most);
        let answer = self.service.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            if !is_too_large(&answer) {
                return Ok(answer);
            }
            let problem = format!(
                "is larger than {most} bytes, and was not read; ask for less, or raise the agent's --max-request-bytes"
            );
            hub.refusals().beyond(Bound::RequestBytes);
            audit::refused(
                &caller(peer.as_ref()),
                &v1::SubscribeRequest::default(),
                "ResourceExhausted",
                &format!("request: {problem}"),
            );
            let details = ErrorDetails::with_bad_request_violation("request", &problem);
            let message = format!("request: {problem}");
            Ok(Status::with_error_details(Code::ResourceExhausted, message, details).into_http())
        })
    }
}

/// Whether tonic did not read it. It tells by a sentence alone; OUT_OF_RANGE is also the service's own word for what cannot be resumed.
fn is_too_large<B>(answer: &Response<B>) -> bool {
    // Of almost every answer: it is no error.
    answer.headers().contains_key(Status::GRPC_STATUS)
        && Status::from_header_map(answer.headers()).is_some_and(|status| {
            status.code() == Code::OutOfRange
                && status
                    .message()
                    .contains("decoded message length too large")
        })
}

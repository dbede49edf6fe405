//! Who asks, as a request over gRPC tells it, and refusals as gRPC has them.

use dinle_proto::v1;
use tonic::{Request, Status};

use crate::{
    admission::{Admission, Admitted},
    auth::{AUTHENTICATED, Auth, Identity, Refusal, Token, Who},
    hub::Withdrawn,
    listen::{Peer, PeerAddress},
};

/// Who asks.
pub(super) async fn admit<T>(
    admission: &Admission,
    request: &Request<T>,
) -> (v1::Caller, Result<Admitted, Refusal>) {
    let caller = caller(request.extensions().get());
    let Some(auth) = &admission.auth else {
        return (caller.clone(), Ok(Admitted::unasked(caller)));
    };
    match auth.counted(who(auth, request).await) {
        Ok(who) => {
            let admitted = Admitted::known(caller, who);
            (admitted.caller.clone(), Ok(admitted))
        }
        Err(refusal) => (caller, Err(refusal)),
    }
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
            groups: subject.groups.iter().cloned().chain([AUTHENTICATED.to_owned()]).collect(),
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
    use std::sync::Arc;

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

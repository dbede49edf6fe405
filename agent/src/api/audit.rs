//! A stream that the log tells of, from its beginning to its end.

use std::{sync::Arc, time::Instant};

use dinle_proto::{
    Encoded,
    v1::{self, subscribe_response::Message},
};
use tonic::Status;

use super::admit::ended;
use crate::{
    admission::{Admitted, Guard},
    audit,
    hub::{Listener, Subscription, TooLate},
};

/// A stream, from its beginning on. Dropping it tells how it ended.
pub(super) struct Audited {
    subscription: Subscription,
    guard: Guard,
    began: Instant,
    bytes: u64,
    told_why: bool,
}

impl Audited {
    /// Tells that it begins.
    pub(super) fn begin(subscription: Subscription, guard: Guard) -> Self {
        audit::begins(subscription.listener());
        Self {
            subscription,
            guard,
            began: Instant::now(),
            bytes: 0,
            told_why: false,
        }
    }

    /// Its listener.
    pub(super) fn listener(&self) -> &Arc<Listener> {
        self.subscription.listener()
    }

    /// Goes on with another connection, and tells that.
    pub(super) fn resume(&mut self, admitted: &Admitted, received: u64) -> Result<(), TooLate> {
        self.subscription.resume(received)?;
        self.guard.follow(admitted);
        audit::resumed(self.subscription.listener(), &admitted.caller, received);
        Ok(())
    }

    /// Puts a message before everything else.
    pub(super) fn begin_with(&mut self, message: Message) {
        self.subscription.begin_with(message);
    }

    /// The next message. Behind the last one of a stream that may not go on comes why.
    pub(super) async fn next(&mut self) -> Option<Result<Encoded, Status>> {
        if let Some(message) = self.subscription.next().await {
            self.bytes += message.0.len() as u64;
            return Some(Ok(message));
        }
        let why = self.subscription.withdrawn()?;
        (!std::mem::replace(&mut self.told_why, true)).then(|| Err(ended(why)))
    }
}

impl Drop for Audited {
    fn drop(&mut self) {
        audit::ends(&self.subscription, self.began, self.bytes);
    }
}

/// Tells that there will be no stream.
pub(super) fn refused(caller: &v1::Caller, asked: &v1::SubscribeRequest, status: &Status) {
    audit::refused(
        caller,
        asked,
        &format!("{:?}", status.code()),
        status.message(),
    );
}

//! TCP sessions tell their sums again and again: what was counted of each already is remembered.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use dinle_proto::v1;

use crate::filter::INTERVAL_MAX;

/// As many as the kernel half remembers; more are counted when they end.
const SESSIONS_MAX: usize = 65_536;
/// A session that goes on tells so at each interval, and one report may be lost. What is silent for so long has ended, and its end was lost.
const SILENT: Duration = INTERVAL_MAX.saturating_mul(3);

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sums {
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) retransmits: u64,
}

/// What is new of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct News {
    pub(super) begins: bool,
    pub(super) sums: Sums,
}

/// Which one: its cgroup and both ends.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key(u64, String, u32, String, u32);

#[derive(Debug, Default)]
pub(super) struct Sessions(HashMap<Key, (Sums, Instant)>);

impl Sessions {
    /// What a report brings that was not counted yet. `before`: the session is older than the count, and what it did till now is not counted.
    pub(super) fn news(&mut self, cgroup: u64, session: &v1::TcpSession, before: bool) -> News {
        let end = |end: &Option<v1::Endpoint>| {
            end.as_ref()
                .map_or_else(Default::default, |end| (end.address.clone(), end.port))
        };
        let ((local, local_port), (remote, remote_port)) =
            (end(&session.local), end(&session.remote));
        let key = Key(cgroup, local, local_port, remote, remote_port);
        let now = Sums {
            sent: session.bytes_sent,
            received: session.bytes_received,
            retransmits: session.retransmits.into(),
        };
        let known = match session.open {
            true => self.0.get(&key).copied(),
            false => self.0.remove(&key),
        };
        if session.open {
            if known.is_none() && self.0.len() >= SESSIONS_MAX {
                return News::default();
            }
            self.0.insert(key, (now, Instant::now()));
        }
        let counted = match known {
            Some((counted, _)) => counted,
            None if before => return News::default(),
            None => Sums::default(),
        };
        News {
            begins: known.is_none(),
            sums: Sums {
                sent: now.sent.saturating_sub(counted.sent),
                received: now.received.saturating_sub(counted.received),
                retransmits: now.retransmits.saturating_sub(counted.retransmits),
            },
        }
    }

    pub(super) fn sweep(&mut self, now: Instant) {
        self.0
            .retain(|_, (_, seen)| now.duration_since(*seen) < SILENT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(port: u32, sent: u64, open: bool) -> v1::TcpSession {
        v1::TcpSession {
            local: Some(v1::Endpoint {
                address: "10.0.0.1".into(),
                port,
                workload: None,
            }),
            bytes_sent: sent,
            open,
            ..v1::TcpSession::default()
        }
    }

    #[test]
    fn each_byte_is_counted_once() {
        let mut sessions = Sessions::default();
        let mut told = |session, before| {
            let News { begins, sums } = sessions.news(7, &session, before);
            (begins, sums.sent)
        };
        assert_eq!(told(session(1, 100, true), false), (true, 100));
        assert_eq!(told(session(1, 150, true), false), (false, 50));
        assert_eq!(told(session(1, 175, false), false), (false, 25));
        // The same ends again: another session.
        assert_eq!(told(session(1, 10, false), false), (true, 10));
        // One that was there before anybody counted.
        assert_eq!(told(session(2, 1000, true), true), (false, 0));
        assert_eq!(told(session(2, 1010, false), true), (false, 10));
        assert_eq!(told(session(3, 1000, false), true), (false, 0));
    }

    #[test]
    fn one_that_tells_as_seldom_as_is_allowed_is_not_forgotten() {
        let mut sessions = Sessions::default();
        sessions.news(7, &session(1, 100, true), false);
        sessions.sweep(Instant::now() + 2 * INTERVAL_MAX);
        let News { begins, sums } = sessions.news(7, &session(1, 150, true), false);
        assert_eq!((begins, sums.sent), (false, 50));
    }
}

//! TCP sessions tell their sums again and again: what was counted of each already is remembered.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use dinle_proto::v1;

/// As many as the kernel half remembers: some 10 MiB. More are counted when they end.
const SESSIONS_MAX: usize = 65_536;
/// A session that goes on tells so at each interval, of an hour at most, and one report may be lost. What is silent for longer has ended, and its
/// end was lost.
const SILENT: Duration = Duration::from_secs(3 * 3600);
/// Time between two looks at who is silent.
const SWEEP: Duration = Duration::from_secs(60);

/// What sessions did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// Bytes.
    pub sent: u64,
    /// Bytes.
    pub received: u64,
    /// Segments that were sent again.
    pub retransmits: u64,
}

/// What is new of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct News {
    /// Nothing was known of it.
    pub first: bool,
    /// It began since there is a count.
    pub begins: bool,
    /// What it did since its last report.
    pub sums: Sums,
}

/// Which one: its node, its cgroup there, and both ends.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key(String, u64, String, u32, String, u32);

/// What a session had done at its last report.
#[derive(Clone, Copy, Debug)]
struct Known {
    sums: Sums,
    lasted: Duration,
    seen: Instant,
}

/// Sessions that are known.
#[derive(Debug)]
pub struct Sessions {
    known: HashMap<Key, Known>,
    swept: Instant,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            swept: Instant::now(),
        }
    }
}

impl Sessions {
    /// What a report of a node brings that was not counted yet. `before`: the session is older than the count, and what it did till now is
    /// not counted.
    pub fn news(
        &mut self,
        node: &str,
        cgroup: u64,
        session: &v1::TcpSession,
        before: bool,
    ) -> News {
        self.news_at(Instant::now(), node, cgroup, session, before)
    }

    fn news_at(
        &mut self,
        seen: Instant,
        node: &str,
        cgroup: u64,
        session: &v1::TcpSession,
        before: bool,
    ) -> News {
        if seen.duration_since(self.swept) >= SWEEP {
            self.swept = seen;
            self.known
                .retain(|_, known| seen.duration_since(known.seen) < SILENT);
        }
        let end = |end: &Option<v1::Endpoint>| {
            end.as_ref()
                .map_or_else(Default::default, |end| (end.address.clone(), end.port))
        };
        let ((local, local_port), (remote, remote_port)) =
            (end(&session.local), end(&session.remote));
        let key = Key(
            node.to_owned(),
            cgroup,
            local,
            local_port,
            remote,
            remote_port,
        );
        let lasted = session
            .duration
            .and_then(|lasted| Duration::try_from(lasted).ok());
        let now = Known {
            sums: Sums {
                sent: session.bytes_sent,
                received: session.bytes_received,
                retransmits: session.retransmits.into(),
            },
            lasted: lasted.unwrap_or_default(),
            seen,
        };
        let known = match session.open {
            true => self.known.get(&key).copied(),
            false => self.known.remove(&key),
        };
        if session.open {
            if known.is_none() && self.known.len() >= SESSIONS_MAX {
                return News::default();
            }
            self.known.insert(key, now);
        }
        // The same ends again, and the end of the one before was lost.
        let known = known.filter(|known| !known.is_followed_by(&now));
        let counted = match known {
            Some(known) => known.sums,
            None if before => {
                return News {
                    first: true,
                    ..News::default()
                };
            }
            None => Sums::default(),
        };
        News {
            first: known.is_none(),
            begins: known.is_none(),
            sums: Sums {
                sent: now.sums.sent - counted.sent,
                received: now.sums.received - counted.received,
                retransmits: now.sums.retransmits - counted.retransmits,
            },
        }
    }
}

impl Known {
    /// The next report is of another session: nothing falls while one goes on.
    fn is_followed_by(&self, next: &Self) -> bool {
        next.sums.sent < self.sums.sent
            || next.sums.received < self.sums.received
            || next.sums.retransmits < self.sums.retransmits
            || next.lasted < self.lasted
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
            let News {
                first,
                begins,
                sums,
            } = sessions.news("n1", 7, &session, before);
            (first, begins, sums.sent)
        };
        assert_eq!(told(session(1, 100, true), false), (true, true, 100));
        assert_eq!(told(session(1, 150, true), false), (false, false, 50));
        assert_eq!(told(session(1, 175, false), false), (false, false, 25));
        // The same ends again: another session.
        assert_eq!(told(session(1, 10, false), false), (true, true, 10));
        // One that was there before anybody counted.
        assert_eq!(told(session(2, 1000, true), true), (true, false, 0));
        assert_eq!(told(session(2, 1010, false), true), (false, false, 10));
        assert_eq!(told(session(3, 1000, false), true), (true, false, 0));
    }

    #[test]
    fn cgroups_of_two_nodes_may_have_the_same_number() {
        let mut sessions = Sessions::default();
        let one = session(1, 100, true);
        for node in ["n1", "n2"] {
            let News { begins, sums, .. } = sessions.news(node, 7, &one, false);
            assert_eq!((begins, sums.sent), (true, 100), "{node}");
        }
    }

    #[test]
    fn the_same_ends_are_another_session_where_something_falls() {
        let lasting = |sent, seconds| v1::TcpSession {
            duration: Some(prost_types::Duration { seconds, nanos: 0 }),
            ..session(1, sent, true)
        };
        let mut sessions = Sessions::default();
        let mut told = |session| {
            let News { begins, sums, .. } = sessions.news("n1", 7, &session, false);
            (begins, sums.sent)
        };
        assert_eq!(told(lasting(100, 10)), (true, 100));
        assert_eq!(told(lasting(100, 11)), (false, 0));
        assert_eq!(told(lasting(30, 12)), (true, 30), "less was sent");
        assert_eq!(told(lasting(500, 2)), (true, 500), "it is younger");
    }

    #[test]
    fn whose_end_was_lost_is_forgotten() {
        let mut sessions = Sessions::default();
        let began = Instant::now();
        let mut told = |seconds, port| {
            let now = began + Duration::from_secs(seconds);
            sessions.news_at(now, "n1", 7, &session(port, 100, true), false);
            sessions.known.len()
        };
        assert_eq!(told(0, 1), 1);
        assert_eq!(told(30, 2), 2);
        assert_eq!(told(2 * 3_600, 2), 2, "it goes on");
        assert_eq!(told(3 * 3_600, 3), 2);
    }
}

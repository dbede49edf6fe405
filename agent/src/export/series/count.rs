//! What an event adds to which series.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};

use dinle_proto::v1::{self, event::Detail};

use super::{BUCKETS, Exemplar, Family, HOST, Inner, Of, Point, SeriesSink, UNKNOWN, Values};
use crate::{errno, sessions::News};

/// Who did it: `namespace/pod`, or `/(host)`.
fn pod(event: &v1::Event) -> String {
    let Some(workload) = &event.workload else {
        return format!("/{UNKNOWN}");
    };
    match (&*workload.pod, workload.state()) {
        ("", v1::IdentityState::Host) => format!("/{HOST}"),
        ("", _) => format!("/{UNKNOWN}"),
        (pod, _) => format!("{}/{pod}", workload.namespace),
    }
}

fn result(error: u32) -> Cow<'static, str> {
    Cow::Borrowed(if error == 0 { "ok" } else { "failed" })
}

fn direction(direction: v1::Direction) -> Cow<'static, str> {
    Cow::Borrowed(match direction {
        v1::Direction::Sent => "sent",
        v1::Direction::Received => "received",
        v1::Direction::Unspecified => "unknown",
    })
}

/// An enum's name without what all of its values begin with, in lower case.
fn plain(name: &'static str, prefix: &str) -> Cow<'static, str> {
    Cow::Owned(name.strip_prefix(prefix).unwrap_or(name).to_lowercase())
}

fn time(event: &v1::Event) -> SystemTime {
    let time = event.time.and_then(|time| SystemTime::try_from(time).ok());
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

fn process(event: &v1::Event) -> Option<Exemplar> {
    let process = event.process.as_ref()?;
    Some(Exemplar {
        labels: vec![
            ("comm", process.comm.clone()),
            ("pid", process.pid.to_string()),
        ],
        time: time(event),
    })
}

fn remote(event: &v1::Event, remote: &Option<v1::Endpoint>) -> Option<Exemplar> {
    let remote = remote.as_ref()?;
    let address = match remote.address.contains(':') {
        true => format!("[{}]:{}", remote.address, remote.port),
        false => format!("{}:{}", remote.address, remote.port),
    };
    Some(Exemplar {
        labels: vec![("remote", address)],
        time: time(event),
    })
}

fn connect_error(error: u32) -> Cow<'static, str> {
    match error {
        0 => "none".into(),
        error => errno::name(error).into(),
    }
}

/// Where what a pod does is counted.
struct Own<'a> {
    families: &'a mut [Family],
    pod: &'a str,
    top: usize,
}

impl Own<'_> {
    fn at(&mut self, of: Of, values: Values, add: u64) -> &mut Point {
        let point = self.families[of as usize].at(self.pod, values, add as f64, self.top);
        point.sum += add;
        point
    }
}

/// Counts an event.
pub(super) fn event(inner: &mut Inner, event: &v1::Event, config: &SeriesSink, began: SystemTime) {
    let pod = pod(event);
    let Inner {
        families, sessions, ..
    } = inner;
    let mut own = Own {
        families,
        pod: &pod,
        top: config.top,
    };
    match &event.detail {
        Some(Detail::Exec(_)) => own.at(Of::Execs, vec![], 1).exemplar = process(event),
        Some(Detail::Exit(exit)) => {
            let how = match (exit.code, exit.signal) {
                (0, 0) => "ok",
                (_, 0) => "failed",
                _ => "signal",
            };
            own.at(Of::Exits, vec![how.into()], 1);
        }
        Some(Detail::Fork(_)) => {
            own.at(Of::Forks, vec![], 1);
        }
        Some(Detail::FileOpen(open)) => {
            own.at(Of::Opens, vec![result(open.error)], 1);
        }
        Some(Detail::FileDelete(delete)) => {
            let method = plain(delete.method().as_str_name(), "DELETE_METHOD_");
            own.at(Of::Deletes, vec![method, result(delete.error)], 1)
                .exemplar = process(event);
        }
        Some(Detail::TcpSession(session)) => {
            let duration = session
                .duration
                .and_then(|duration| Duration::try_from(duration).ok());
            let start = duration.and_then(|duration| time(event).checked_sub(duration));
            let before = session.began_before || start.is_some_and(|start| start < began);
            let News { begins, sums, .. } = sessions.news("", event.cgroup_id, session, before);
            if begins {
                let direction = plain(session.direction().as_str_name(), "TCP_DIRECTION_");
                own.at(Of::Connections, vec![direction], 1).exemplar =
                    remote(event, &session.remote);
            }
            for (direction, bytes) in [("sent", sums.sent), ("received", sums.received)] {
                own.at(Of::TcpBytes, vec![direction.into()], bytes);
            }
            own.at(Of::Retransmits, vec![], sums.retransmits);
        }
        Some(Detail::TcpConnect(connect)) => {
            own.at(Of::ConnectFailures, vec![connect_error(connect.error)], 1)
                .exemplar = remote(event, &connect.remote);
        }
        Some(Detail::TcpReset(reset)) => {
            own.at(Of::Resets, vec![direction(reset.direction())], 1)
                .exemplar = remote(event, &reset.remote);
        }
        Some(Detail::BlockLatency(block)) => {
            let operation = || vec![plain(block.operation().as_str_name(), "BLOCK_OPERATION_")];
            own.at(Of::IoBytes, operation(), block.bytes);
            own.at(Of::IoQueued, operation(), block.queued_ns);
            let buckets = own
                .at(Of::IoDevice, operation(), block.device_ns)
                .buckets
                .get_or_insert_with(|| Box::new([0; BUCKETS]));
            for (own, more) in buckets.iter_mut().zip(&block.buckets) {
                *own += more;
            }
        }
        Some(Detail::DropCount(drop)) => {
            let reason = if drop.reason.is_empty() {
                "unknown".into()
            } else {
                drop.reason.clone().into()
            };
            own.at(Of::Drops, vec![reason], drop.count);
        }
        // Refused when the file was read: another kind tells them added up.
        Some(Detail::TcpRetransmit(_) | Detail::BlockIo(_) | Detail::Drop(_)) | None => {}
    }
}

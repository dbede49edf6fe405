//! AUDIT: a line of the log for each stream that begins, is refused, or ends: who, what, how much, why. All have the target `dinle::audit`.
//! Of who comes over gRPC, and of the agent's own exporters.

use std::time::Instant;

use dinle_proto::v1;

use crate::hub::{Listener, Subscription};

/// A line: what all of them have, then what this one has.
macro_rules! line {
    ($level:ident, $caller:expr, $asked:expr, { $($more:ident),* }, $what:literal) => {{
        let v1::Caller { peer, user, groups } = &$caller;
        let (groups, selector, kinds) = (groups.join(","), selector(&$asked), kinds(&$asked));
        tracing::$level!(target: "dinle::audit", peer, user, groups, selector, kinds, $($more),*, $what);
    }};
}

/// A stream begins.
pub fn begins(listener: &Listener) {
    let stream = listener.id;
    line!(
        info,
        listener.caller,
        listener.asked,
        { stream },
        "stream begins"
    );
}

/// A stream goes on with another connection.
pub fn resumed(listener: &Listener, caller: &v1::Caller, received: u64) {
    let stream = listener.id;
    line!(info, caller, listener.asked, { stream, received }, "stream resumed");
}

/// A stream ends that began then, and whose messages had so many bytes.
pub fn ends(subscription: &Subscription, began: Instant, bytes: u64) {
    let listener = subscription.listener();
    let (mut events, mut lost) = (0, 0);
    for books in listener.books() {
        events += books.delivered;
        lost += books.lost.iter().map(|loss| loss.count).sum::<u64>();
    }
    // A client that goes does not say so: its connection or its stream is closed.
    let reason = subscription.ending().map_or("CLIENT_LEFT", |reason| {
        let name = reason.as_str_name();
        name.strip_prefix("END_REASON_").unwrap_or(name)
    });
    // It did not take its last books.
    let cut = subscription.ending().is_some() && subscription.ended().is_none();
    let seconds = began.elapsed().as_secs_f64();
    let stream = listener.id;
    line!(
        info,
        listener.caller,
        listener.asked,
        { stream, seconds, events, bytes, lost, reason, cut },
        "stream ends"
    );
}

/// There will be no stream.
pub fn refused(caller: &v1::Caller, asked: &v1::SubscribeRequest, code: &str, reason: &str) {
    line!(warn, caller, asked, { code, reason }, "stream refused");
}

/// No longer than a line may be, also of a request that is refused for its length.
fn cut(text: String) -> String {
    const MAX: usize = 1024;
    match text.char_indices().nth(MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn kinds(asked: &v1::SubscribeRequest) -> String {
    // More than there are, and than the line has room for.
    const MAX: usize = 128;
    let names: Vec<String> = asked
        .kinds
        .iter()
        .take(MAX)
        .map(|kind| match v1::Kind::try_from(*kind) {
            Ok(kind) => kind.name(),
            Err(_) => kind.to_string(),
        })
        .collect();
    cut(names.join(","))
}

/// `namespaces=shop pods=web-0,web-1 labels=app=web`; empty where all is asked for.
fn selector(asked: &v1::SubscribeRequest) -> String {
    let Some(v1::Selector {
        namespaces,
        pods,
        label_selector,
        containers,
        owners,
        host_processes,
    }) = &asked.selector
    else {
        return String::new();
    };
    let labels = std::slice::from_ref(label_selector);
    let host = match v1::HostProcesses::try_from(*host_processes) {
        Ok(v1::HostProcesses::Unspecified) => Vec::new(),
        Ok(known) => vec![known.as_str_name().to_owned()],
        Err(_) => vec![host_processes.to_string()],
    };
    let parts = [
        ("namespaces", &namespaces[..]),
        ("pods", pods),
        ("labels", labels),
        ("containers", containers),
        ("owners", owners),
        ("host", &host),
    ];
    let parts = parts.map(|(name, values)| (name, values.join(",")));
    let parts = parts.iter().filter(|(_, values)| !values.is_empty());
    let text: Vec<String> = parts
        .map(|(name, values)| format!("{name}={values}"))
        .collect();
    cut(text.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_a_line() {
        let mut asked = v1::SubscribeRequest {
            kinds: vec![v1::Kind::Exec.into(), v1::Kind::TcpReset.into(), 999],
            selector: Some(v1::Selector {
                namespaces: vec!["shop".into(), "web".into()],
                label_selector: "app=checkout".into(),
                ..v1::Selector::default()
            }),
            ..v1::SubscribeRequest::default()
        };
        assert_eq!(kinds(&asked), "exec,tcp_reset,999");
        assert_eq!(selector(&asked), "namespaces=shop,web labels=app=checkout");
        asked.selector = Some(v1::Selector {
            pods: vec!["ä".repeat(5000)],
            ..v1::Selector::default()
        });
        assert_eq!(selector(&asked).chars().count(), 1025);
        asked.selector = Some(v1::Selector {
            host_processes: 9,
            ..v1::Selector::default()
        });
        assert_eq!(selector(&asked), "host=9");
        asked.selector = None;
        assert_eq!(selector(&asked), "");
        // Refused, and told of all the same.
        asked.kinds = vec![v1::Kind::TcpRetransmit.into(); 1 << 20];
        let told = kinds(&asked);
        assert!(told.starts_with("tcp_retransmit,") && told.ends_with('…'));
        assert_eq!(told.chars().count(), 1025);
    }
}

//! The way of an event without a kernel.

use dinle_ebpf::{Header, TcpConnect, tcp::Ends};
use dinle_proto::v1::{event::Detail, subscribe_response::Message};
use prost::Message as _;
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::*;
use crate::{
    filter::{Access, Grant, Limits, Request},
    hub::Hub,
    workload::Pod,
};

/// A frame of a connect of that cgroup to 10.0.0.7.
fn connect(cgroup_id: u64) -> Vec<u8> {
    let header = Header {
        boot_ns: 1,
        cgroup_id,
        slot: 0,
        kind: Kind::TcpConnect as u16,
        reserved: 0,
    };
    let mut ends = Ends::new_zeroed();
    ends.family = 2;
    ends.remote[..4].copy_from_slice(&[10, 0, 0, 7]);
    let connect = TcpConnect {
        ends,
        ..TcpConnect::new_zeroed()
    };
    [header.as_bytes(), connect.as_bytes()].concat()
}

#[tokio::test]
async fn a_pod_at_the_other_end_is_named_to_those_who_may_know_of_it() {
    let index = Index::new("n1");
    let pod = |uid: &str, namespace: &str, address: &str| Pod {
        uid: uid.to_owned(),
        namespace: namespace.to_owned(),
        name: format!("{namespace}-pod"),
        addresses: vec![address.parse().expect("an address")],
        ..Pod::default()
    };
    let uid = "2f1ee1cf-7f5c-4f0e-9b0b-0d5c3a9d8e00";
    index.pod_applied(pod(uid, "shop", "10.0.0.1"));
    index.pod_applied(pod(
        "2f1ee1cf-7f5c-4f0e-9b0b-0d5c3a9d8e01",
        "bank",
        "10.0.0.7",
    ));
    index.cgroup_created(7, 1, &format!("/kubepods/burstable/pod{uid}"), false);
    let (hub, publisher) = Hub::new(crate::hub::Limits::default(), || ());
    let only = |namespaces: &[&str]| Grant {
        namespaces: namespaces
            .iter()
            .map(|name| {
                let all = Grant::all().everywhere;
                ((*name).to_owned(), Access { ..all })
            })
            .collect(),
        ..Grant::default()
    };
    let asked = v1::SubscribeRequest {
        kinds: vec![v1::Kind::TcpConnect.into()],
        ..Default::default()
    };
    let request = Request::parse(&asked, &Limits::default()).expect("a good request");
    let mut streams = [Grant::all(), only(&["shop"]), only(&["shop", "bank"])].map(|grant| {
        hub.subscribe(asked.clone(), request.clone(), v1::Caller::default(), grant)
            .expect("room")
    });
    let mut router = Router::new(index, publisher, Arc::default(), Arc::default());
    router.refresh();
    router.frame(&connect(7), || ());
    router.publisher.flush();
    let mut told = Vec::new();
    for stream in &mut streams {
        let bytes = stream.next().await.expect("a message").0;
        let message = v1::SubscribeResponse::decode(bytes)
            .expect("a response")
            .message;
        let Some(Message::Batch(batch)) = message else {
            panic!("{message:?}");
        };
        let [event] = &batch.events[..] else {
            panic!("{batch:?}");
        };
        let Some(Detail::TcpConnect(connect)) = &event.detail else {
            panic!("{event:?}");
        };
        let remote = connect.remote.as_ref().expect("an end");
        assert_eq!(remote.address, "10.0.0.7");
        assert_eq!(event.workload.as_ref().expect("a name").namespace, "shop");
        let name = remote.workload.as_ref().map(|name| name.pod.clone());
        told.push((name, event.redacted));
    }
    let bank = || Some("bank-pod".to_owned());
    assert_eq!(told, [(bank(), false), (None, true), (bank(), false)]);
}

#[test]
fn the_other_end_is_named_until_workloads_change() {
    let index = Index::new("n1");
    let mut peers = Peers::default();
    let named = |peers: &mut Peers| {
        let end = |address: &str| {
            Some(v1::Endpoint {
                address: address.to_owned(),
                ..Default::default()
            })
        };
        let mut event = v1::Event {
            detail: Some(Detail::TcpConnect(v1::TcpConnect {
                local: end("10.0.0.1"),
                remote: end("10.0.0.7"),
                ..Default::default()
            })),
            ..Default::default()
        };
        peers.name(&mut event, &index);
        let Some(Detail::TcpConnect(connect)) = event.detail else {
            panic!("a connect stays one")
        };
        assert_eq!(connect.local.and_then(|end| end.workload), None);
        let name = connect.remote.and_then(|end| end.workload);
        name.map(|name| name.pod)
    };
    assert_eq!(named(&mut peers), None);
    index.pod_applied(Pod {
        uid: "uid".to_owned(),
        name: "web".to_owned(),
        addresses: vec!["10.0.0.7".parse().expect("an address")],
        ..Pod::default()
    });
    assert_eq!(named(&mut peers), None, "it is remembered");
    peers.0.clear();
    assert_eq!(named(&mut peers), Some("web".to_owned()));
    assert_eq!(peers.0.len(), 1);
}

#[test]
fn addresses_are_remembered_up_to_a_bound() {
    let index = Index::new("n1");
    let mut peers = Peers::default();
    for number in 0..3 * PEERS_MAX {
        let mut event = v1::Event {
            detail: Some(Detail::TcpReset(v1::TcpReset {
                remote: Some(v1::Endpoint {
                    address: format!("address {number}"),
                    ..Default::default()
                }),
                ..Default::default()
            })),
            ..Default::default()
        };
        peers.name(&mut event, &index);
        assert!(peers.0.len() <= PEERS_MAX);
    }
}

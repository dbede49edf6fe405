//! Bytes of the rings: frames of the sensors, and records of the cgroup tracker.
#![no_main]

use std::{cell::RefCell, collections::HashMap, sync::Arc};

use dinle::{
    event,
    filter::{Access, Grant, Kinds, Limits, Request},
    hub::{self, Hub, Listener, Stage, Subscription},
    kernel::CgroupEvent,
    pipeline::{Router, Stats},
    workload::Index,
};
use dinle_ebpf::{CgroupRecord, Kind};
use dinle_fuzz::{CGROUP, NODE, context};
use dinle_proto::v1::{self, event::Detail};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use tokio::runtime::{Builder, Runtime};

fuzz_target!(|frame: &[u8]| {
    record(frame);
    if let Some(event) = decoded(frame) {
        whole(frame);
        comes_back(&event);
        redacted(event);
    }
    routed(frame);
});

fn decoded(frame: &[u8]) -> Option<v1::Event> {
    let envelope = event::open(frame).ok()?;
    let event = event::decode(&envelope, &context()).ok()?;
    assert_eq!(event.kind, event::proto_kind(envelope.kind) as i32);
    assert_eq!(event.cgroup_id, envelope.header.cgroup_id);
    assert!(!event.redacted);
    Some(event)
}

/// Of what decodes, no part does, and nothing longer.
fn whole(frame: &[u8]) {
    let (_, shorter) = frame.split_last().expect("a frame has a header");
    assert_eq!(decoded(shorter), None);
    assert_eq!(decoded(&[frame, &[0]].concat()), None);
}

fn comes_back(event: &v1::Event) {
    let bytes = event.encode_to_vec();
    assert_eq!(bytes.len(), event.encoded_len());
    assert_eq!(v1::Event::decode(&*bytes).as_ref(), Ok(event));
}

/// No argument and no path is left, and of kinds that have none nothing is gone.
fn redacted(mut event: v1::Event) {
    let before = event.clone();
    event::redact(&mut event);
    assert!(event.redacted);
    comes_back(&event);
    let kind = v1::Kind::try_from(event.kind).ok();
    let kind = Kind::ALL
        .iter()
        .find(|known| Some(event::proto_kind(**known)) == kind);
    if !event::has_arguments(*kind.expect("it was decoded")) {
        assert_eq!(
            v1::Event {
                redacted: true,
                ..before
            },
            event
        );
        return;
    }
    // Those fields alone are texts of what a process does; who it is stays.
    let texts: Vec<&String> = match &event.detail {
        Some(Detail::Exec(exec)) => [&exec.filename, &exec.cwd]
            .into_iter()
            .chain(&exec.args)
            .collect(),
        Some(Detail::FileOpen(open)) => vec![&open.path, &open.filename],
        Some(Detail::FileDelete(delete)) => [&delete.path, &delete.filename, &delete.source]
            .into_iter()
            .chain(&delete.process_args)
            .collect(),
        other => panic!("{other:?} has no arguments"),
    };
    assert!(texts.iter().all(|text| text.is_empty()), "{texts:?}");
    assert_eq!(before.process, event.process);
    let mut again = event.clone();
    event::redact(&mut again);
    assert_eq!(again, event);
}

/// A router with two listeners, one of which may see no arguments. Nobody takes out of their queues.
struct Routed {
    frames: u32,
    router: Router,
    listeners: [Arc<Listener>; 2],
    /// Ends the streams when it is dropped.
    _subscriptions: [Subscription; 2],
    hub: Hub,
    _runtime: Runtime,
}

/// Then there is a new one, before queues are full of large events.
const FRAMES_MAX: u32 = 4096;

impl Routed {
    fn new() -> Self {
        // Streams have timers, which nobody waits for here.
        let runtime = Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        let entered = runtime.enter();
        let (hub, publisher) = Hub::new(hub::Limits::default(), || ());
        let index = Index::new(NODE);
        index.cgroup_created(
            CGROUP,
            1,
            "/kubepods/pod2f1ee1cf-7f5c-4f0e-9b0b-0d5c3a9d8e11",
            false,
        );
        let kinds: Kinds = Kind::ALL
            .iter()
            .map(|&kind| event::proto_kind(kind))
            .collect();
        let subscriptions = [kinds, Kinds::default()].map(|args| {
            let asked = v1::SubscribeRequest {
                kinds: kinds.iter().map(Into::into).collect(),
                ..Default::default()
            };
            let request = Request::parse(&asked, &Limits::default()).expect("a request");
            let grant = Grant {
                everywhere: Access { watch: kinds, args },
                namespaces: HashMap::new(),
                peers: HashMap::new(),
            };
            hub.subscribe(asked, request, v1::Caller::default(), grant)
                .expect("there is room")
        });
        let mut router = Router::new(index, publisher, Arc::<Stats>::default(), Arc::default());
        router.refresh();
        drop(entered);
        Self {
            frames: 0,
            router,
            listeners: [0, 1].map(|one: usize| subscriptions[one].listener().clone()),
            _subscriptions: subscriptions,
            hub,
            _runtime: runtime,
        }
    }

    /// The books of both, which are balanced.
    fn books(&self) -> [Books; 2] {
        [0, 1].map(|one: usize| {
            let mut sums = Books::default();
            for books in self.listeners[one].books() {
                let lost: u64 = books.lost.iter().map(|loss| loss.count).sum();
                assert_eq!(
                    books.matched,
                    books.delivered + books.queued + lost,
                    "{books:?}"
                );
                sums.matched += books.matched;
                sums.lost += lost;
            }
            sums
        })
    }

    /// What the agent could not tell, of all kinds.
    fn agents_losses(&self) -> u64 {
        let kinds = Kind::ALL.iter().map(|&kind| event::proto_kind(kind));
        kinds
            .map(|kind| self.hub.totals().losses(kind, Stage::Agent))
            .sum()
    }
}

/// Sums over all kinds.
#[derive(Default)]
struct Books {
    matched: u64,
    lost: u64,
}

thread_local! {
    static ROUTED: RefCell<Option<Routed>> = const { RefCell::new(None) };
}

/// Whatever comes, both listeners are owed the same, and what cannot be told is counted.
fn routed(frame: &[u8]) {
    ROUTED.with_borrow_mut(|routed| {
        if routed
            .as_ref()
            .is_some_and(|routed| routed.frames == FRAMES_MAX)
        {
            *routed = None;
        }
        let routed = routed.get_or_insert_with(Routed::new);
        routed.frames += 1;
        let (before, uncounted) = (routed.books(), routed.agents_losses());
        routed.router.frame(frame, || ());
        routed.router.publisher.flush();
        let after = routed.books();
        assert_eq!(after[0].matched, after[1].matched);
        let matched = after[0].matched - before[0].matched;
        let counted = routed.agents_losses() - uncounted;
        let Ok(envelope) = event::open(frame) else {
            // It may be of any kind, and counts once for each.
            let kinds = Kind::ALL.len() as u64;
            assert_eq!((counted, after[0].lost - before[0].lost), (kinds, kinds));
            return;
        };
        let decodes = event::decode(&envelope, &context()).is_ok();
        match envelope.header.cgroup_id == CGROUP && decodes {
            // What the kernel adds up is added up further, and told later.
            true if envelope.kind.is_snapshot() => assert_eq!(counted, 0),
            true => assert_eq!((matched, counted), (1, 0)),
            // For those who watch its pod, whom the kernel names, which nobody does here; or for everyone, where it cannot.
            false => {
                let everyone = envelope.kind.is_snapshot() && envelope.header.cgroup_id != CGROUP;
                assert_eq!((matched, counted), (everyone.into(), 1));
            }
        }
        if envelope.kind.is_snapshot() {
            // The same again: two rows of one subject become one.
            routed.router.frame(frame, || ());
        }
    });
}

/// A record of the tracker is what it was made of.
fn record(bytes: &[u8]) {
    let Some(event) = CgroupEvent::parse(bytes) else {
        return;
    };
    let word = |at: usize| {
        let word = bytes[at..at + 8].try_into().expect("eight bytes");
        u64::from_ne_bytes(word)
    };
    match event {
        CgroupEvent::Created {
            id,
            parent_id,
            path,
            ..
        } => {
            assert_eq!((id, parent_id), (word(0), word(8)));
            let longest = bytes.len() - size_of::<CgroupRecord>();
            // A byte that is no UTF-8 becomes three.
            assert!(path.len() <= 3 * longest);
        }
        CgroupEvent::Released { id } => assert_eq!(id, word(0)),
    }
}

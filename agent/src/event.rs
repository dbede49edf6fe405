//! EVENT: what the bytes of a frame mean. Pure: bytes in, message out.

mod block;
mod drop;
mod file;
mod process;
mod redact;
mod symbols;
mod tcp;

pub use redact::{has_arguments, redact};
pub use symbols::Symbols;

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwapOption;

use dinle_ebpf::{Header, Kind, Payload, Task};
use dinle_proto::v1::{self, event::Detail};
use zerocopy::FromBytes as _;

/// Why bytes are no frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Too short for anything.
    #[error("a frame of {len} bytes is shorter than its header of {}", size_of::<Header>())]
    NoHeader {
        /// Bytes of the frame.
        len: usize,
    },
    /// From a newer kernel half.
    #[error("{id} is no kind that this build knows")]
    UnknownKind {
        /// The number.
        id: u16,
    },
    /// The payload is cut.
    #[error("the payload of {kind:?} is {got} bytes, expected {want}")]
    WrongSize {
        /// The kind.
        kind: Kind,
        /// Bytes after the header.
        got: usize,
        /// Bytes that there should be.
        want: usize,
    },
    /// The tail is not as long as its parts.
    #[error("the tail of {kind:?} is {got} bytes, but its parts make {want}")]
    WrongTail {
        /// The kind.
        kind: Kind,
        /// Bytes after the payload.
        got: usize,
        /// What the payload says.
        want: usize,
    },
}

/// What is needed to route a frame before it is decoded.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// The header.
    pub header: Header,
    /// The header's kind, known.
    pub kind: Kind,
    body: &'a [u8],
}

/// Reads a frame's header.
pub fn open(frame: &[u8]) -> Result<Envelope<'_>, DecodeError> {
    let (header, body) =
        Header::read_from_prefix(frame).map_err(|_| DecodeError::NoHeader { len: frame.len() })?;
    let kind = Kind::from_id(header.kind).ok_or(DecodeError::UnknownKind { id: header.kind })?;
    Ok(Envelope { header, kind, body })
}

/// Turns the clock of the kernel's stamps into wall-clock time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// Wall-clock nanoseconds since 1970 at the boot clock's zero.
    pub boot_unix_ns: i128,
}

impl Clock {
    /// The time at that many nanoseconds since boot.
    pub fn at(self, boot_ns: u64) -> prost_types::Timestamp {
        const SECOND: i128 = 1_000_000_000;
        let ns = self.boot_unix_ns + i128::from(boot_ns);
        prost_types::Timestamp {
            seconds: ns.div_euclid(SECOND) as i64,
            nanos: ns.rem_euclid(SECOND) as i32,
        }
    }
}

/// Names that this kernel gives to numbers.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// `enum skb_drop_reason`, without the prefix.
    pub drop_reasons: HashMap<u32, String>,
    /// `enum sk_rst_reason`, without the prefix.
    pub reset_reasons: HashMap<u32, String>,
    /// Functions of the kernel, while somebody asks for them.
    pub symbols: Arc<ArcSwapOption<Symbols>>,
}

/// What is needed to understand a frame, besides the frame.
#[derive(Clone, Debug)]
pub struct Context {
    /// What the kernel's stamps mean.
    pub clock: Clock,
    /// What its numbers mean.
    pub names: Arc<Names>,
}

impl Context {
    /// As of now.
    pub fn new(boot_unix_ns: i128, names: Arc<Names>) -> Self {
        Self {
            clock: Clock { boot_unix_ns },
            names,
        }
    }
}

/// The ends of what an event is about that another pod may have.
pub fn peers(event: &mut v1::Event) -> impl Iterator<Item = &mut v1::Endpoint> {
    let (one, other) = match &mut event.detail {
        Some(Detail::TcpSession(session)) => (session.remote.as_mut(), None),
        Some(Detail::TcpConnect(connect)) => (connect.remote.as_mut(), None),
        Some(Detail::TcpReset(reset)) => (reset.remote.as_mut(), None),
        Some(Detail::TcpRetransmit(segment)) => (segment.remote.as_mut(), None),
        Some(Detail::Drop(drop)) => (drop.source.as_mut(), drop.destination.as_mut()),
        None
        | Some(
            Detail::Exec(_)
            | Detail::Exit(_)
            | Detail::Fork(_)
            | Detail::FileOpen(_)
            | Detail::FileDelete(_)
            | Detail::BlockIo(_)
            | Detail::BlockLatency(_)
            | Detail::DropCount(_),
        ) => (None, None),
    };
    one.into_iter().chain(other)
}

/// Whether events of that kind have other ends.
pub fn has_peers(kind: Kind) -> bool {
    match kind {
        Kind::TcpSession | Kind::TcpConnect | Kind::TcpReset | Kind::TcpRetransmit | Kind::Drop => {
            true
        }
        Kind::Exec
        | Kind::Exit
        | Kind::Fork
        | Kind::FileOpen
        | Kind::FileDelete
        | Kind::BlockIo
        | Kind::BlockLatency
        | Kind::DropCount => false,
    }
}

/// Leaves out the names of pods at other ends that are in other namespaces than this one, and says so.
pub fn hide_peers(event: &mut v1::Event, but: &str) {
    for end in peers(event) {
        end.workload = end.workload.take().filter(|name| name.namespace == but);
    }
    event.redacted = true;
}

/// Who did something, and what.
type Decoded = (Option<Task>, Detail);

/// The event of a frame, but for its workload.
pub fn decode(envelope: &Envelope<'_>, context: &Context) -> Result<v1::Event, DecodeError> {
    let Envelope { header, kind, body } = envelope;
    let Context { clock, names } = context;
    // One arm for each kind and no `_`: a new kind does not compile until it is decoded.
    let (task, detail) = match kind {
        Kind::Exec => process::exec(body),
        Kind::Exit => process::exit(body, header.boot_ns),
        Kind::Fork => process::fork(body),
        Kind::FileOpen => file::open(body),
        Kind::FileDelete => file::delete(body),
        Kind::TcpSession => tcp::session(body, header.boot_ns),
        Kind::TcpConnect => tcp::connect(body),
        Kind::TcpReset => tcp::reset(body, names),
        Kind::TcpRetransmit => tcp::retransmit(body),
        Kind::BlockIo => block::io(body),
        Kind::BlockLatency => block::latency(body),
        Kind::Drop => drop::sample(body, names),
        Kind::DropCount => drop::count(body, names),
    }?;
    Ok(v1::Event {
        redacted: false,
        time: Some(clock.at(header.boot_ns)),
        kind: proto_kind(*kind).into(),
        cgroup_id: header.cgroup_id,
        workload: None,
        // A hook that does not run in somebody's context leaves it empty.
        process: task
            .filter(|task| task.pid != 0)
            .map(|task| process::process(&task, *clock)),
        detail: Some(detail),
    })
}

/// The contract's name of a kind.
pub fn proto_kind(kind: Kind) -> v1::Kind {
    match kind {
        Kind::Exec => v1::Kind::Exec,
        Kind::Exit => v1::Kind::Exit,
        Kind::Fork => v1::Kind::Fork,
        Kind::FileOpen => v1::Kind::FileOpen,
        Kind::FileDelete => v1::Kind::FileDelete,
        Kind::TcpSession => v1::Kind::TcpSession,
        Kind::TcpConnect => v1::Kind::TcpConnect,
        Kind::TcpReset => v1::Kind::TcpReset,
        Kind::TcpRetransmit => v1::Kind::TcpRetransmit,
        Kind::BlockIo => v1::Kind::BlockIo,
        Kind::BlockLatency => v1::Kind::BlockLatency,
        Kind::Drop => v1::Kind::Drop,
        Kind::DropCount => v1::Kind::DropCount,
    }
}

/// The payload and its tail.
fn read<P: Payload>(body: &[u8]) -> Result<(P, &[u8]), DecodeError> {
    P::read_from_prefix(body).map_err(|_| DecodeError::WrongSize {
        kind: P::KIND,
        got: body.len(),
        want: size_of::<P>(),
    })
}

/// Takes a tail apart into parts of these lengths, which must make up all of it.
fn parts<P: Payload, const N: usize>(
    mut tail: &[u8],
    lens: [u16; N],
) -> Result<[&[u8]; N], DecodeError> {
    let want = lens.iter().map(|&len| usize::from(len)).sum();
    if tail.len() != want {
        return Err(DecodeError::WrongTail {
            kind: P::KIND,
            got: tail.len(),
            want,
        });
    }
    Ok(lens.map(|len| {
        let part;
        (part, tail) = tail.split_at(usize::from(len));
        part
    }))
}

/// Path components as the kernel half sends them: innermost first, each with a NUL.
fn components(bytes: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    bytes
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
}

/// Arguments as the kernel half sends them: each ends with a NUL; where they were cut, the last one may not.
fn arguments(bytes: &[u8]) -> Vec<String> {
    let whole = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    let mut args = Vec::with_capacity(1 + whole.iter().filter(|&&byte| byte == 0).count());
    args.extend(whole.split(|&byte| byte == 0).map(utf8));
    args
}

/// Major and minor number of the kernel's `dev_t` (include/linux/kdev_t.h).
fn device(device: u32) -> (u32, u32) {
    (device >> 20, device & 0xf_ffff)
}

/// A string of the kernel's, up to its first NUL. Bytes that are not UTF-8 are replaced, never trusted.
fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(bytes.len());
    utf8(&bytes[..end])
}

/// The same without a NUL. Nearly all of it is ASCII, which is checked much faster than it is repaired.
fn utf8(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => String::from_utf8_lossy(bytes).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_and_the_contract_number_kinds_alike() {
        for &kind in Kind::ALL {
            assert_eq!(kind as i32, proto_kind(kind) as i32, "{kind:?}");
            let name = format!("KIND_{}", format!("{kind:?}").to_uppercase());
            assert!(
                proto_kind(kind)
                    .as_str_name()
                    .replace('_', "")
                    .ends_with(&name.replace('_', "")),
                "{kind:?}"
            );
        }
    }

    #[test]
    fn an_unknown_kind_is_an_error() {
        let mut frame = process::tests::exit_frame();
        frame[20..22].copy_from_slice(&999u16.to_ne_bytes());
        assert_eq!(
            open(&frame).map(|_| ()),
            Err(DecodeError::UnknownKind { id: 999 })
        );
    }

    #[test]
    fn no_part_of_a_frame_decodes_and_no_longer_one_does() {
        for frame in [
            process::tests::exec_frame(),
            process::tests::exit_frame(),
            process::tests::fork_frame(),
            file::tests::open_frame(),
            file::tests::delete_frame(),
        ] {
            let context = Context::new(0, Arc::default());
            let decoded =
                |bytes: &[u8]| open(bytes).and_then(|envelope| decode(&envelope, &context));
            assert!(decoded(&frame).is_ok());
            for len in 0..frame.len() {
                assert!(
                    decoded(&frame[..len]).is_err(),
                    "{len} of {} bytes",
                    frame.len()
                );
            }
            assert!(decoded(&[&frame[..], &[0]].concat()).is_err());
        }
    }

    #[test]
    fn any_bytes_decode_or_fail_but_never_panic() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for round in 0..20_000 {
            let mut frame = match round % 4 {
                0 => process::tests::exec_frame(),
                1 => process::tests::exit_frame(),
                2 => file::tests::open_frame(),
                _ => file::tests::delete_frame(),
            };
            for _ in 0..1 + random() % 8 {
                let at = random() as usize % frame.len();
                frame[at] = random() as u8;
            }
            frame.truncate(random() as usize % (frame.len() + 1));
            if let Ok(envelope) = open(&frame) {
                _ = decode(&envelope, &Context::new(random().into(), Arc::default()));
            }
        }
    }

    #[test]
    fn boot_time_becomes_wall_clock_time() {
        let clock = Clock {
            boot_unix_ns: 1_700_000_000_900_000_000,
        };
        let time = clock.at(200_000_001);
        assert_eq!((time.seconds, time.nanos), (1_700_000_001, 100_000_001));
    }
}

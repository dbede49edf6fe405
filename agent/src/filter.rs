//! What one subscriber asked for: parsed once at the door, matched often, exact.

mod events;
mod grant;
mod labels;
mod pattern;
mod selector;

use std::time::Duration;

use dinle_proto::v1;

pub use events::{Family, Filter, Narrow};
pub use grant::{Access, Grant};
pub use selector::Selector;
pub(crate) use selector::short_kind;

/// Queue of a stream whose client does not ask for one: at 300 bytes an event, about 14,000 events.
const QUEUE_BYTES_DEFAULT: u64 = 4 << 20;
/// Less than this holds too few of the largest events (3 KiB each) to be a queue.
const QUEUE_BYTES_MIN: u64 = 64 << 10;
/// What one client may make the agent hold, unless the agent is configured otherwise.
const QUEUE_BYTES_LIMIT: u64 = 64 << 20;

/// Often enough for a human to notice a dead connection.
const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(2);
/// More often, the books cost more than they tell.
const HEARTBEAT_MIN: Duration = Duration::from_millis(100);
/// Less often, load balancers and port-forwards take the connection for idle.
const HEARTBEAT_MAX: Duration = Duration::from_secs(60);

/// Snapshots for a human who watches.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Longer than this, whoever asks should add up by itself.
pub const INTERVAL_MAX: Duration = Duration::from_secs(3600);

/// A stream whose client is gone takes room from others.
const RESUME_WINDOW_MAX: Duration = Duration::from_secs(60);

/// Bytes of one string: names in Kubernetes are shorter, and so are useful paths.
const TEXT_BYTES_MAX: usize = 1024;

/// A set of kinds. Bit n of [`Kinds::bits`] stands for the kind with the number n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Kinds(u64);

impl Kinds {
    /// Adds a kind.
    pub fn insert(&mut self, kind: v1::Kind) {
        self.0 |= Self::bit(kind);
    }

    /// Whether the kind is in the set.
    pub fn contains(self, kind: v1::Kind) -> bool {
        self.0 & Self::bit(kind) != 0
    }

    /// Whether no kind is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The kinds of both sets.
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The kinds that are in both sets.
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The kinds that are not in the other set.
    pub fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The set as bits.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The kinds in the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = v1::Kind> {
        (0..u64::BITS as i32)
            .filter_map(|number| v1::Kind::try_from(number).ok())
            .filter(move |kind| self.contains(*kind))
    }

    fn bit(kind: v1::Kind) -> u64 {
        // A kind with a number of 64 or more overflows here, loudly in every test that names it.
        1 << kind as u32
    }
}

impl FromIterator<v1::Kind> for Kinds {
    fn from_iter<I: IntoIterator<Item = v1::Kind>>(kinds: I) -> Self {
        let mut set = Self::default();
        for kind in kinds {
            set.insert(kind);
        }
        set
    }
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// Path of the field in the request, such as `filter.comm[2].glob`.
    pub field: String,
    /// What is wrong with its value, and how to mend it.
    pub problem: String,
    /// It would be right for an agent that allows more.
    pub beyond: Option<Bound>,
}

/// A bound of what a single request may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Of its queue.
    QueueBytes,
    /// Of its rate.
    EventsPerSecond,
    /// Of what each event is compared with: elements of a list, bytes of a text.
    Filter,
    /// Of its own size.
    RequestBytes,
}

impl Invalid {
    fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
            beyond: None,
        }
    }

    fn beyond(bound: Bound, field: &str, problem: String) -> Self {
        Self {
            beyond: Some(bound),
            ..Self::new(field, problem)
        }
    }
}

/// What the agent allows a single request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest queue that a stream may ask for, in bytes.
    pub queue_bytes_max: u64,
    /// Events a second that a stream may be sent.
    pub events_per_second_max: Option<u32>,
    /// Elements of one list of a selector or a filter.
    pub elements_max: usize,
}

impl Limits {
    /// More elements would make matching an event slow.
    pub const ELEMENTS: usize = 64;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue_bytes_max: QUEUE_BYTES_LIMIT,
            events_per_second_max: None,
            elements_max: Self::ELEMENTS,
        }
    }
}

/// A `SubscribeRequest` that cannot be wrong any more.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which workloads.
    pub selector: Selector,
    /// Which kinds: at least one.
    pub kinds: Kinds,
    /// The same, and what the filter has to hear to know whose events they are.
    pub heard: Kinds,
    /// Which of their events.
    pub filter: Filter,
    /// Events carry only their cgroup's id.
    pub by_reference: bool,
    /// Bound of the stream's queue in bytes.
    pub queue_bytes: u64,
    /// Time between two heartbeats.
    pub heartbeat: Duration,
    /// Time between two snapshots, and between two reports on a session.
    pub interval: Option<Duration>,
    /// End after so many delivered events.
    pub max_events: Option<u64>,
    /// End after this time.
    pub max_duration: Option<Duration>,
    /// So many events a second.
    pub max_events_per_second: Option<u32>,
    /// For so long the stream is kept when its connection breaks.
    pub resume_window: Option<Duration>,
}

impl Request {
    /// Checks everything that a request says, and fills in what it leaves out.
    pub fn parse(request: &v1::SubscribeRequest, limits: &Limits) -> Result<Self, Invalid> {
        let v1::SubscribeRequest {
            selector,
            kinds,
            filter,
            identity_mode,
            queue_bytes,
            heartbeat_interval,
            max_events,
            max_duration,
            interval,
            max_events_per_second,
            resume_window,
            resume,
        } = request;
        if resume.is_some() {
            return Err(Invalid::new(
                "resume",
                "goes on with a stream in the place of beginning one: leave everything else out",
            ));
        }
        let kinds = parse_kinds(kinds)?;
        let filter = Filter::parse(filter.as_ref(), kinds, limits)?;
        Ok(Self {
            selector: Selector::parse(selector.as_ref(), limits)?,
            kinds,
            heard: kinds.union(filter.hears()),
            filter,
            by_reference: parse_by_reference(*identity_mode)?,
            queue_bytes: parse_queue_bytes(*queue_bytes, limits)?,
            heartbeat: parse_heartbeat(heartbeat_interval.as_ref())?,
            interval: parse_interval(interval.as_ref())?,
            max_events: (*max_events != 0).then_some(*max_events),
            max_duration: parse_max_duration(max_duration.as_ref())?,
            max_events_per_second: parse_rate(*max_events_per_second, limits)?,
            resume_window: parse_resume_window(resume_window.as_ref())?,
        })
    }
}

fn parse_kinds(numbers: &[i32]) -> Result<Kinds, Invalid> {
    if numbers.is_empty() {
        return Err(Invalid::new(
            "kinds",
            format!("is empty; name at least one of {}", known_kinds()),
        ));
    }
    // There are fewer, whatever the agent allows of a filter.
    check_elements("kinds", numbers, &Limits::default())?;
    let mut kinds = Kinds::default();
    for (index, number) in numbers.iter().enumerate() {
        match v1::Kind::try_from(*number) {
            Ok(v1::Kind::Unspecified) => {
                return Err(Invalid::new(
                    format!("kinds[{index}]"),
                    format!("is KIND_UNSPECIFIED; name one of {}", known_kinds()),
                ));
            }
            Ok(kind) => kinds.insert(kind),
            Err(_) => {
                return Err(Invalid::new(
                    format!("kinds[{index}]"),
                    format!(
                        "is {number}, which this agent does not know; it knows {}",
                        known_kinds()
                    ),
                ));
            }
        }
    }
    Ok(kinds)
}

fn known_kinds() -> String {
    let all = Kinds(u64::MAX).iter();
    let names: Vec<_> = all
        .filter(|kind| *kind != v1::Kind::Unspecified)
        .map(|kind| kind.as_str_name())
        .collect();
    names.join(", ")
}

fn parse_by_reference(number: i32) -> Result<bool, Invalid> {
    match v1::IdentityMode::try_from(number) {
        Ok(v1::IdentityMode::Unspecified | v1::IdentityMode::Inline) => Ok(false),
        Ok(v1::IdentityMode::ByReference) => Ok(true),
        Err(_) => Err(Invalid::new(
            "identity_mode",
            format!(
                "is {number}, which this agent does not know; \
                 use IDENTITY_MODE_INLINE or IDENTITY_MODE_BY_REFERENCE"
            ),
        )),
    }
}

fn parse_queue_bytes(bytes: u64, limits: &Limits) -> Result<u64, Invalid> {
    let Limits {
        queue_bytes_max, ..
    } = limits;
    if bytes == 0 {
        return Ok(QUEUE_BYTES_DEFAULT.min(*queue_bytes_max));
    }
    if bytes < QUEUE_BYTES_MIN {
        return Err(Invalid::new(
            "queue_bytes",
            format!("is {bytes}; ask for {QUEUE_BYTES_MIN} or more, or leave it out"),
        ));
    }
    if bytes > *queue_bytes_max {
        return Err(Invalid::beyond(
            Bound::QueueBytes,
            "queue_bytes",
            format!("is {bytes}; this agent allows {queue_bytes_max} at most"),
        ));
    }
    Ok(bytes)
}

fn parse_rate(rate: u32, limits: &Limits) -> Result<Option<u32>, Invalid> {
    match (rate, limits.events_per_second_max) {
        (0, max) => Ok(max),
        (rate, Some(max)) if rate > max => Err(Invalid::beyond(
            Bound::EventsPerSecond,
            "max_events_per_second",
            format!("is {rate}; this agent allows {max} at most"),
        )),
        (rate, _) => Ok(Some(rate)),
    }
}

fn parse_heartbeat(interval: Option<&prost_types::Duration>) -> Result<Duration, Invalid> {
    let Some(interval) = interval else {
        return Ok(HEARTBEAT_DEFAULT);
    };
    let field = "heartbeat_interval";
    let heartbeat = parse_duration(field, interval)?;
    if !(HEARTBEAT_MIN..=HEARTBEAT_MAX).contains(&heartbeat) {
        return Err(Invalid::new(
            field,
            format!(
                "is {heartbeat:?}; ask for {HEARTBEAT_MIN:?} to {HEARTBEAT_MAX:?}, or leave it out"
            ),
        ));
    }
    Ok(heartbeat)
}

fn parse_interval(interval: Option<&prost_types::Duration>) -> Result<Option<Duration>, Invalid> {
    let Some(interval) = interval else {
        return Ok(None);
    };
    let field = "interval";
    let interval = parse_duration(field, interval)?;
    if !(INTERVAL_MIN..=INTERVAL_MAX).contains(&interval) {
        return Err(Invalid::new(
            field,
            format!(
                "is {interval:?}; ask for {INTERVAL_MIN:?} to {INTERVAL_MAX:?}, or leave it out"
            ),
        ));
    }
    Ok(Some(interval))
}

fn parse_resume_window(
    window: Option<&prost_types::Duration>,
) -> Result<Option<Duration>, Invalid> {
    let Some(window) = window else {
        return Ok(None);
    };
    let field = "resume_window";
    let window = parse_duration(field, window)?;
    if window > RESUME_WINDOW_MAX {
        return Err(Invalid::new(
            field,
            format!("is {window:?}; at most {RESUME_WINDOW_MAX:?} are allowed"),
        ));
    }
    Ok((!window.is_zero()).then_some(window))
}

fn parse_max_duration(
    duration: Option<&prost_types::Duration>,
) -> Result<Option<Duration>, Invalid> {
    let Some(duration) = duration else {
        return Ok(None);
    };
    let field = "max_duration";
    let duration = parse_duration(field, duration)?;
    if duration.is_zero() {
        return Err(Invalid::new(
            field,
            "is 0; leave it out for a stream without such a limit",
        ));
    }
    Ok(Some(duration))
}

fn parse_duration(field: &str, duration: &prost_types::Duration) -> Result<Duration, Invalid> {
    Duration::try_from(*duration)
        .map_err(|_| Invalid::new(field, "is negative; time runs forwards"))
}

/// Refuses lists that would make matching slow.
fn check_elements<T>(field: &str, elements: &[T], limits: &Limits) -> Result<(), Invalid> {
    let (count, most) = (elements.len(), limits.elements_max);
    if count > most {
        return Err(Invalid::beyond(
            Bound::Filter,
            field,
            format!(
                "has {count} elements, this agent allows {most}; use globs, or several streams"
            ),
        ));
    }
    Ok(())
}

/// Refuses strings that no name can match.
fn check_text(field: &str, text: &str) -> Result<(), Invalid> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(Invalid::beyond(
            Bound::Filter,
            field,
            format!("is {} bytes long; {TEXT_BYTES_MAX} are allowed", text.len()),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;

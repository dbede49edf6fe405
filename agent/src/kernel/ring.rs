//! The rings, and how their reader sleeps.

use std::{
    borrow::Cow,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Array, MapData, MapError, RingBuf},
};

use dinle_ebpf::{CgroupRecord, Header};
use zerocopy::FromBytes as _;

use super::{LoadError, take_map};

/// One ring of frames.
pub struct Ring(RingBuf<MapData>);

impl Ring {
    /// Hands the oldest record to `f`; `None` if there is none.
    pub fn next<T>(&mut self, f: impl FnOnce(&[u8]) -> T) -> Option<T> {
        self.0.next().map(|record| f(&record))
    }

    /// Hands the oldest record of the tracker's ring to `f`, which gets `None` for one that is malformed.
    pub fn cgroup<T>(&mut self, f: impl FnOnce(Option<CgroupEvent<'_>>) -> T) -> Option<T> {
        self.next(|record| f(CgroupEvent::parse(record)))
    }
}

/// What happened to a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupEvent<'a> {
    /// It was made.
    Created {
        /// Its id.
        id: u64,
        /// Its parent's.
        parent_id: u64,
        /// Its path below the root of the v2 hierarchy.
        path: Cow<'a, str>,
        /// The end of the path is missing.
        path_cut: bool,
    },
    /// It is gone, with everything that ran in it.
    Released {
        /// Its id.
        id: u64,
    },
}

impl<'a> CgroupEvent<'a> {
    /// Reads a record of the tracker; `None` if it is malformed.
    pub fn parse(record: &'a [u8]) -> Option<Self> {
        let (record, path) = CgroupRecord::read_from_prefix(record).ok()?;
        match record.event {
            CgroupRecord::CREATED => Some(Self::Created {
                id: record.id,
                parent_id: record.parent_id,
                path: String::from_utf8_lossy(path.get(..record.path_len.into())?),
                path_cut: record.path_cut != 0,
            }),
            CgroupRecord::RELEASED => Some(Self::Released { id: record.id }),
            _ => None,
        }
    }
}

/// Wall-clock nanoseconds since 1970 at the boot clock's zero.
pub fn boot_unix_ns() -> i128 {
    clock(libc::CLOCK_REALTIME) - clock(libc::CLOCK_BOOTTIME)
}

/// Nanoseconds since boot, suspend included.
pub fn boot_ns() -> u64 {
    u64::try_from(clock(libc::CLOCK_BOOTTIME)).unwrap_or(0)
}

/// CPU time of all of the agent's threads, in nanoseconds since it started.
pub fn cpu_ns() -> u64 {
    u64::try_from(clock(libc::CLOCK_PROCESS_CPUTIME_ID)).unwrap_or(0)
}

fn clock(clock: libc::clockid_t) -> i128 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the struct is valid for writes. The clocks that we ask for exist on every kernel, so that the call cannot fail.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}

/// What the reader thread owns.
pub struct Reader {
    /// Frames of the sensors.
    pub events: Ring,
    /// Records of the cgroup tracker.
    pub cgroups: Ring,
    /// How to wait for more.
    pub sleeper: Sleeper,
    /// More frames than this the ring of the sensors cannot hold.
    pub frames_max: usize,
}

impl Reader {
    pub(super) fn take(ebpf: &mut Ebpf, ring_bytes: u32) -> Result<Self, LoadError> {
        let events = ring(ebpf, "EVENTS")?;
        let cgroups = ring(ebpf, "CGROUPS")?;
        let name = "WAKE";
        let wake = Array::try_from(take_map(ebpf, name)?)
            .map_err(|error| LoadError::Map { name, error })?;
        let sleeper = Sleeper {
            events: duplicate(&events)?,
            cgroups: duplicate(&cgroups)?,
            wake,
            asked: 0,
            nudge: Nudge::new().map_err(LoadError::Nudge)?,
        };
        Ok(Self {
            events,
            cgroups,
            sleeper,
            frames_max: ring_bytes as usize / size_of::<Header>(),
        })
    }
}

fn ring(ebpf: &mut Ebpf, name: &'static str) -> Result<Ring, LoadError> {
    let map = take_map(ebpf, name)?;
    RingBuf::try_from(map)
        .map(Ring)
        .map_err(|error| LoadError::Map { name, error })
}

fn duplicate(ring: &Ring) -> Result<OwnedFd, LoadError> {
    ring.0
        .as_fd()
        .try_clone_to_owned()
        .map_err(LoadError::Nudge)
}

/// Waits for records without a wake-up for each: a wake-up costs the traced process more than the event itself.
///
/// While records keep coming, the reader looks again every [`Sleeper::BUSY`], and the kernel half wakes nobody. Once a look
/// found nothing, the reader asks to be woken by the next record and sleeps for long.
pub struct Sleeper {
    events: OwnedFd,
    cgroups: OwnedFd,
    wake: Array<MapData, u32>,
    /// Waits since the kernel half was asked to wake; 0: it is not asked.
    asked: u32,
    nudge: Nudge,
}

impl Sleeper {
    /// Time between two looks while records keep coming: bounds their delay, and how much the ring must hold.
    pub const BUSY: Duration = Duration::from_millis(2);
    /// A record whose writer read the request to wake just before it was made wakes nobody. This bounds its delay: first…
    pub const FIRST: Duration = Duration::from_millis(1);
    /// …should that writer have been interrupted for longer than that, next…
    pub const SECOND: Duration = Duration::from_millis(100);
    /// …and at last. Records that come later wake the reader; it looks at losses as often as this anyway.
    pub const IDLE: Duration = Duration::from_secs(1);

    /// Waits for as long as makes sense after a look that found records (`busy`) or none.
    pub fn wait(&mut self, busy: bool) -> Result<(), MapError> {
        if busy {
            self.ask_no_more()?;
            self.poll(&[self.cgroups.as_fd(), self.nudge.fd()], Self::BUSY);
            return Ok(());
        }
        let timeout = match self.asked {
            0 => {
                self.wake.set(0, 1u32, 0)?;
                Self::FIRST
            }
            1 => Self::SECOND,
            _ => Self::IDLE,
        };
        self.asked = self.asked.saturating_add(1);
        let fds = [self.events.as_fd(), self.cgroups.as_fd(), self.nudge.fd()];
        if self.poll(&fds, timeout) {
            self.ask_no_more()?;
        }
        Ok(())
    }

    fn ask_no_more(&mut self) -> Result<(), MapError> {
        if std::mem::take(&mut self.asked) == 0 {
            return Ok(());
        }
        self.wake.set(0, 0u32, 0)
    }

    /// What interrupts a wait.
    pub fn nudge(&self) -> Nudge {
        self.nudge.clone()
    }

    fn poll(&self, fds: &[BorrowedFd<'_>], timeout: Duration) -> bool {
        let mut fds: Vec<libc::pollfd> = fds
            .iter()
            .map(|fd| libc::pollfd {
                fd: fd.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        // SAFETY: the array lives through the call and its length is the one that is said.
        let ready = unsafe {
            libc::poll(
                fds.as_mut_ptr(),
                fds.len() as libc::nfds_t,
                timeout.as_millis() as i32,
            )
        };
        self.nudge.clear();
        // A signal that interrupts the wait makes for one more look.
        ready != 0
    }
}

/// Interrupts the reader's wait, from any thread.
#[derive(Clone, Debug)]
pub struct Nudge(Arc<OwnedFd>);

impl Nudge {
    fn new() -> io::Result<Self> {
        // SAFETY: has no preconditions.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave it to us, and to nobody else.
        Ok(Self(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Makes the reader look around now.
    pub fn nudge(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes are read from an array of eight. That the counter is full already is as good as one more.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    fn clear(&self) {
        let mut count = [0; 8];
        // SAFETY: eight bytes are written to an array of eight. An empty counter fails with EAGAIN, which is fine.
        unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes as _;

    fn record(event: u16, path: &str) -> Vec<u8> {
        let record = CgroupRecord {
            id: 7,
            parent_id: 5,
            event,
            path_len: path.len() as u16,
            path_cut: 0,
            reserved: 0,
        };
        [record.as_bytes(), path.as_bytes(), b"\0"].concat()
    }

    #[test]
    fn tracker_records_are_read() {
        let created = CgroupEvent::Created {
            id: 7,
            parent_id: 5,
            path: "/a/b".into(),
            path_cut: false,
        };
        assert_eq!(
            CgroupEvent::parse(&record(CgroupRecord::CREATED, "/a/b")),
            Some(created)
        );
        let released = CgroupEvent::Released { id: 7 };
        assert_eq!(
            CgroupEvent::parse(&record(CgroupRecord::RELEASED, "")),
            Some(released)
        );
    }

    #[test]
    fn a_malformed_tracker_record_is_none() {
        let whole = record(CgroupRecord::CREATED, "/a/b");
        for len in 0..whole.len() - 1 {
            assert_eq!(CgroupEvent::parse(&whole[..len]), None, "{len}");
        }
        assert_eq!(CgroupEvent::parse(&record(9, "/a")), None);
    }
}

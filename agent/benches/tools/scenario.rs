//! What is done, over and over: one operation that a sensor tells of.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, bail, ensure};
use dinle_proto::v1::{self, event::Detail};

use crate::{BASELINE, MEASURED, WARM_UP};

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// fork, exec and exit of a static program that does nothing.
    Exec,
    /// openat and close of a file.
    Open,
    /// creat, close and unlink of a file.
    Unlink,
    /// TCP connect over loopback, 64 bytes each way, close.
    Tcp,
    /// A read of 4 KiB from the disk, without the page cache.
    Read,
}

impl Scenario {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [Self::Exec, Self::Open, Self::Unlink, Self::Tcp, Self::Read];

    /// What `DINLE_BENCH_ONLY` calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Open => "open",
            Self::Unlink => "unlink",
            Self::Tcp => "tcp",
            Self::Read => "read",
        }
    }

    /// In a sentence.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Exec => "fork, exec and exit of a static C program that does nothing",
            Self::Open => "openat and close of a file",
            Self::Unlink => "creat, close and unlink of a file",
            Self::Tcp => "TCP connect over loopback, 64 bytes each way, close",
            Self::Read => "read of 4 KiB with O_DIRECT",
        }
    }

    /// Operations in each measurement, unless told otherwise: some tenths of a second.
    pub(crate) fn ops(self) -> u32 {
        match self {
            Self::Exec => 500,
            Self::Open => 20_000,
            Self::Unlink => 8000,
            Self::Tcp | Self::Read => 2000,
        }
    }

    /// What the agent is asked for.
    pub(crate) fn kinds(self) -> &'static [v1::Kind] {
        match self {
            Self::Exec => &[v1::Kind::Exec, v1::Kind::Exit],
            Self::Open => &[v1::Kind::FileOpen],
            Self::Unlink => &[v1::Kind::FileDelete],
            Self::Tcp => &[v1::Kind::TcpSession],
            Self::Read => &[v1::Kind::BlockIo],
        }
    }

    /// Events that the agent tells of one operation.
    pub(crate) fn events(self) -> u64 {
        match self {
            // The exec, and the exit.
            Self::Exec => 2,
            Self::Open | Self::Unlink | Self::Read => 1,
            // The client's end, and the server's.
            Self::Tcp => 2,
        }
    }

    /// Whose operation an event tells of, if it is one of these.
    pub(crate) fn marker(self, event: &v1::Event) -> Option<&'static str> {
        let known = |text: &str| MARKERS.into_iter().find(|marker| text.contains(marker));
        match (&event.detail, self) {
            (Some(Detail::Exec(exec)), Self::Exec) => known(exec.args.get(1)?),
            (Some(Detail::FileOpen(open)), Self::Open) => known(&open.path),
            (Some(Detail::FileDelete(delete)), Self::Unlink) => known(&delete.path),
            (Some(Detail::TcpSession(session)), Self::Tcp) => {
                let ends = [&session.local, &session.remote].map(|end| end.as_ref());
                let address = |marker| address(marker).to_string();
                MARKERS.into_iter().find(|marker| {
                    ends.iter()
                        .flatten()
                        .any(|end| end.address == address(marker))
                })
            }
            (Some(Detail::BlockIo(_)), Self::Read) => known(&event.process.as_ref()?.comm),
            _ => None,
        }
    }

    /// What a line of another tool has that shows an operation of this marker.
    pub(crate) fn needle(self, marker: &str) -> String {
        match self {
            Self::Exec | Self::Open | Self::Unlink | Self::Read => marker.to_owned(),
            Self::Tcp => address(marker).to_string(),
        }
    }
}

/// Whose operations there are.
const MARKERS: [&str; 3] = [MEASURED, WARM_UP, BASELINE];

/// Loopback addresses by which operations can be told apart.
fn address(marker: &str) -> Ipv4Addr {
    let host = MARKERS.into_iter().position(|known| known == marker);
    Ipv4Addr::new(127, 77, 0, 1 + host.unwrap_or(MARKERS.len()) as u8)
}

/// Descriptor that measured reads have, so that strace shows which they are.
pub(crate) const MEASURED_FD: libc::c_int = 777;

/// Does operations, in a process of its own.
pub(crate) struct Doer {
    scenario: Scenario,
    directory: PathBuf,
    server: Option<SocketAddr>,
}

impl Doer {
    pub(crate) fn new(scenario: Scenario, directory: &Path) -> anyhow::Result<Self> {
        let server = match scenario {
            Scenario::Tcp => Some(serve()?),
            Scenario::Read => {
                let mut file = File::create(directory.join("data"))?;
                file.write_all(&vec![7; READ_FILE])?;
                // What is not on the disk yet is not read from it.
                file.sync_all()?;
                None
            }
            Scenario::Open => {
                for marker in MARKERS {
                    File::create(directory.join(marker))?;
                }
                None
            }
            Scenario::Exec | Scenario::Unlink => None,
        };
        Ok(Self {
            scenario,
            directory: directory.to_owned(),
            server,
        })
    }

    /// Does it that often.
    pub(crate) fn run(&self, marker: &str, count: u32) -> anyhow::Result<()> {
        name_thread(marker);
        match self.scenario {
            Scenario::Exec => self.execute(marker, count),
            Scenario::Open => {
                let path = self.directory.join(marker);
                (0..count).try_for_each(|_| File::open(&path).map(drop))?;
                Ok(())
            }
            Scenario::Unlink => {
                let path = self.directory.join(marker);
                (0..count).try_for_each(|_| {
                    File::create(&path)?;
                    fs::remove_file(&path)
                })?;
                Ok(())
            }
            Scenario::Tcp => self.exchange(marker, count),
            Scenario::Read => self.read(marker, count),
        }
    }

    fn execute(&self, marker: &str, count: u32) -> anyhow::Result<()> {
        let program = self.directory.join(PROGRAM);
        // The standard library uses posix_spawn here, which uses vfork: what is measured is mostly exec and exit.
        let mut command = std::process::Command::new(&program);
        command.arg(marker).args(ARGS);
        for _ in 0..count {
            ensure!(command.status()?.success(), "{} failed", program.display());
        }
        Ok(())
    }

    fn exchange(&self, marker: &str, count: u32) -> anyhow::Result<()> {
        let mut server = self.server.context("a server")?;
        server.set_ip(address(marker).into());
        for _ in 0..count {
            let mut connection = TcpStream::connect(server)?;
            connection.write_all(&[1; MESSAGE])?;
            connection.read_exact(&mut [0; MESSAGE])?;
        }
        Ok(())
    }

    fn read(&self, marker: &str, count: u32) -> anyhow::Result<()> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(self.directory.join("data"))?;
        let fd = if marker == MEASURED {
            // SAFETY: the descriptor is open; the other one is nobody's.
            let fd = unsafe { libc::dup2(file.as_raw_fd(), MEASURED_FD) };
            ensure!(fd == MEASURED_FD, "dup2: {}", io::Error::last_os_error());
            fd
        } else {
            file.as_raw_fd()
        };
        // SAFETY: open, and not owned by anyone: it is closed below.
        let same = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
        let mut buffer = Aligned([0; READ]);
        let places = (READ_FILE / READ) as u64;
        let done = (0..u64::from(count)).try_for_each(|number| {
            same.read_exact_at(&mut buffer.0, number % places * READ as u64)
        });
        if fd == MEASURED_FD {
            drop(same);
        } else {
            std::mem::forget(same);
        }
        Ok(done?)
    }
}

/// Bytes of a message each way.
const MESSAGE: usize = 64;
/// Bytes of a read.
const READ: usize = 4096;
/// Bytes of the file that is read.
const READ_FILE: usize = 4 << 20;

#[repr(align(4096))]
struct Aligned([u8; READ]);

/// Name of the program that is executed.
pub(crate) const PROGRAM: &str = "dinle-noop";

/// More arguments, so that they are 60 bytes or so: a service's usual.
const ARGS: [&str; 2] = ["--config=/etc/service/config.yaml", "--port=8080"];

/// Answers one message on each connection.
fn serve() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("0.0.0.0:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let mut connection = connection;
            let mut message = [0; MESSAGE];
            if connection.read_exact(&mut message).is_ok() {
                _ = connection.write_all(&message);
            }
            // The client closes first.
            _ = connection.read(&mut message);
        }
    });
    Ok(address)
}

/// Tools show a thread's name.
fn name_thread(name: &str) {
    let mut bytes = [0u8; 16];
    let len = name.len().min(15);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    // SAFETY: the string ends with a NUL and outlives the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, bytes.as_ptr()) };
}

/// Reads a name of a scenario.
pub(crate) fn parse(name: &str) -> anyhow::Result<Scenario> {
    match Scenario::ALL.into_iter().find(|one| one.name() == name) {
        Some(scenario) => Ok(scenario),
        None => bail!(
            "there is no scenario {name}; there are {}",
            Scenario::ALL.map(Scenario::name).join(", ")
        ),
    }
}

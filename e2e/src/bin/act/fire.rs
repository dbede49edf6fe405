//! Does much of everything, as fast as it can, and counts what it did: what an agent says of it can be compared to that.
//!
//! Everything that is not counted (what it opens for itself, its own start and end) happens in another cgroup: it enters the one
//! that is watched, says `ready`, waits for a line, does its work, leaves, and prints `NAME COUNT` of what happened.

use std::{
    collections::BTreeMap,
    ffi::{CString, OsStr, OsString},
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, Read as _, Write as _},
    mem::zeroed,
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::ExitCode,
    ptr::{null, null_mut},
};

use super::{block, check, number, path, tcp};

/// `fire INSIDE OUTSIDE DIR CPU DISK [WHAT TIMES]…`: INSIDE and OUTSIDE are cgroups, DIR is for its files, DISK is a disk or `-`.
/// What it does [`TURNS`] times, each time its share of each:
///
/// * `missing`: open a file that is not there; `open`: one that is
/// * `delete`: make a file without opening it, and unlink it
/// * `fork`: a process that ends at once; `exec`: one that executes a program before
/// * `session`: connect, accept, close; `reset`: the same, closed by a RST; `refused`: connect to where nobody listens
/// * `silent`: connect to where nobody answers, in all at the beginning
/// * `datagram`: send one to where nobody listens
/// * `read`: read a sector of the disk
pub(crate) fn run(words: &[OsString]) -> io::Result<ExitCode> {
    let [inside, outside, dir, cpu, disk, work @ ..] = words else {
        return Err(io::Error::other("too few words"));
    };
    let mut wanted = BTreeMap::new();
    for pair in work.chunks_exact(2) {
        wanted.insert(pair[0].to_string_lossy().into_owned(), number(&pair[1]));
    }
    pin(number(cpu))?;
    let mut fire = Fire::new(Path::new(dir), disk)?;
    let (inside, outside) = (procs(inside)?, procs(outside)?);
    let enter = |mut cgroup: &File| cgroup.write_all(b"0");
    enter(&inside)?;
    fire.sockets = Some(Sockets::new()?);
    println!("ready");
    io::stdin().lock().read_line(&mut String::new())?;
    let silent = fire.many_silent(wanted.remove("silent").unwrap_or(0))?;
    for turn in 0..TURNS {
        for (what, &times) in &wanted {
            // The shares add up to the whole.
            let share = times * (turn + 1) / TURNS - times * turn / TURNS;
            fire.repeat(what, share)?;
        }
    }
    fire.wait_for_silence(&silent)?;
    enter(&outside)?;
    drop((silent, fire.sockets.take()));
    for (what, count) in &fire.done {
        println!("{what} {count}");
    }
    println!("retransmitted {}", retransmitted()?);
    Ok(ExitCode::SUCCESS)
}

/// Kinds of work take turns, so that each of them meets a full ring.
const TURNS: u64 = 1000;

fn procs(cgroup: &OsStr) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .open(Path::new(cgroup).join("cgroup.procs"))
}

fn pin(cpu: usize) -> io::Result<()> {
    // SAFETY: zeros are an empty set, which outlives the call.
    unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        libc::CPU_SET(cpu, &mut set);
        check(libc::sched_setaffinity(
            0,
            size_of_val(&set),
            &raw const set,
        ))
    }
}

/// Segments that this network namespace sent again, by the kernel's own account.
fn retransmitted() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/self/net/snmp")?;
    let mut tcp = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let names = tcp.next().unwrap_or_default().split(' ');
    let values = tcp.next().unwrap_or_default().split(' ');
    let found = names.zip(values).find(|(name, _)| *name == "RetransSegs");
    let (_, value) = found.ok_or_else(|| io::Error::other("no RetransSegs"))?;
    value.parse().map_err(io::Error::other)
}

/// The smallest program there is: it ends with 0. It is linked to nothing, so that executing it opens no other file.
#[cfg(target_arch = "x86_64")]
const PROGRAM: (u16, &[u8]) = (
    62,
    // xor edi, edi; mov eax, 60; syscall
    &[0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05],
);
#[cfg(target_arch = "aarch64")]
const PROGRAM: (u16, &[u8]) = (
    183,
    // mov x0, #0; mov x8, #93; svc #0
    &[
        0x00, 0x00, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4,
    ],
);

/// An ELF file of that program (elf(5)): a header, one segment, the code.
fn elf() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let (machine, code) = PROGRAM;
    let len = HEADERS + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |file: &mut Vec<u8>, values: &[u16]| {
        values
            .iter()
            .for_each(|value| file.extend(value.to_le_bytes()));
    };
    let word = |file: &mut Vec<u8>, values: &[u32]| {
        values
            .iter()
            .for_each(|value| file.extend(value.to_le_bytes()));
    };
    let long = |file: &mut Vec<u8>, values: &[u64]| {
        values
            .iter()
            .for_each(|value| file.extend(value.to_le_bytes()));
    };
    // ET_EXEC, of this machine, of this version of ELF; entry, program headers, no sections.
    half(&mut file, &[2, machine]);
    word(&mut file, &[1]);
    long(&mut file, &[BASE + HEADERS, 64, 0]);
    word(&mut file, &[0]);
    half(&mut file, &[64, 56, 1, 0, 0, 0]);
    // PT_LOAD, to be read and executed.
    word(&mut file, &[1, 5]);
    long(&mut file, &[0, BASE, BASE, len, len, 0x1000]);
    file.extend(code);
    file
}

/// Nobody listens there, in a network namespace of its own.
const NOBODY: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 9);

/// Sockets of the cgroup that is watched: one is of the cgroup in which it was made, and what a listener accepts is of the listener's.
struct Sockets {
    listener: TcpListener,
    datagrams: UdpSocket,
}

impl Sockets {
    fn new() -> io::Result<Self> {
        Ok(Self {
            listener: TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?,
            datagrams: UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?,
        })
    }

    fn pair(&self) -> io::Result<(TcpStream, TcpStream)> {
        let client = TcpStream::connect(self.listener.local_addr()?)?;
        let (server, _) = self.listener.accept()?;
        Ok((client, server))
    }

    fn close(&self) -> io::Result<()> {
        // Each end reads the other's end: what is not read when a socket goes is dropped.
        let (mut client, mut server) = self.pair()?;
        client.shutdown(Shutdown::Write)?;
        at_end(&mut server)?;
        drop(server);
        at_end(&mut client)
    }

    fn reset(&self) -> io::Result<()> {
        let (client, mut server) = self.pair()?;
        tcp::reset_on_close(&client)?;
        drop(client);
        match server.read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            other => Err(io::Error::other(format!("read gave {other:?}"))),
        }
    }

    fn refused(&self) -> io::Result<()> {
        tcp::fails(TcpStream::connect(NOBODY), libc::ECONNREFUSED)
    }

    fn datagram(&self) -> io::Result<()> {
        // Not connected: such a socket is not told that nobody is there.
        self.datagrams.send_to(&[0; 10], NOBODY).map(|_| ())
    }
}

fn at_end(stream: &mut TcpStream) -> io::Result<()> {
    match stream.read(&mut [0]) {
        Ok(0) => Ok(()),
        other => Err(io::Error::other(format!("read gave {other:?}"))),
    }
}

struct Fire {
    sockets: Option<Sockets>,
    file: CString,
    missing: CString,
    made: CString,
    program: CString,
    disk: Option<block::Sectors>,
    done: BTreeMap<String, u64>,
}

impl Fire {
    fn new(dir: &Path, disk: &OsStr) -> io::Result<Self> {
        // Whoever connects to nobody hears nothing. Kernels that have this would try more often at first.
        tcp::swallow()?;
        match fs::write("/proc/sys/net/ipv4/tcp_syn_linear_timeouts", "0") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let own = |name: &str| -> PathBuf { dir.join(format!("{name}-{}", std::process::id())) };
        fs::write(own("file"), "")?;
        fs::write(own("program"), elf())?;
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(own("program"), executable)?;
        Ok(Self {
            sockets: None,
            file: path(own("file"))?,
            missing: path(own("missing"))?,
            made: path(own("made"))?,
            program: path(own("program"))?,
            disk: match disk == "-" {
                true => None,
                false => Some(block::Sectors::open(disk)?),
            },
            done: BTreeMap::new(),
        })
    }

    fn did(&mut self, what: &str, times: u64) {
        *self.done.entry(what.to_owned()).or_default() += times;
    }

    fn repeat(&mut self, what: &str, times: u64) -> io::Result<()> {
        let once: fn(&Self) -> io::Result<()> = match what {
            "missing" => Self::open_missing,
            "open" => Self::open,
            "delete" => Self::delete,
            "fork" => Self::fork,
            "exec" => Self::exec,
            "session" => |fire| fire.sockets()?.close(),
            "reset" => |fire| fire.sockets()?.reset(),
            "refused" => |fire| fire.sockets()?.refused(),
            "datagram" => |fire| fire.sockets()?.datagram(),
            "read" => Self::read,
            other => return Err(io::Error::other(format!("`{other}` is no work"))),
        };
        (0..times).try_for_each(|_| once(self))?;
        self.did(what, times);
        Ok(())
    }

    fn open_missing(&self) -> io::Result<()> {
        // SAFETY: the string ends with a NUL and outlives the call.
        let fd = unsafe { libc::open(self.missing.as_ptr(), libc::O_RDONLY) };
        match (fd, io::Error::last_os_error().raw_os_error()) {
            (-1, Some(libc::ENOENT)) => Ok(()),
            other => Err(io::Error::other(format!("open gave {other:?}"))),
        }
    }

    fn open(&self) -> io::Result<()> {
        // SAFETY: the string ends with a NUL and outlives the call; the descriptor is closed once.
        unsafe {
            let fd = libc::open(self.file.as_ptr(), libc::O_RDONLY);
            check(fd)?;
            check(libc::close(fd))
        }
    }

    fn delete(&self) -> io::Result<()> {
        let made = self.made.as_ptr();
        // SAFETY: the string ends with a NUL and outlives the calls.
        unsafe {
            check(libc::mknod(made, libc::S_IFREG | 0o600, 0))?;
            check(libc::unlink(made))
        }
    }

    fn fork(&self) -> io::Result<()> {
        // SAFETY: this process has one thread, and its child does nothing but end.
        let pid = unsafe { libc::fork() };
        check(pid)?;
        if pid == 0 {
            // SAFETY: has no preconditions.
            unsafe { libc::_exit(0) }
        }
        ended(pid)
    }

    fn exec(&self) -> io::Result<()> {
        let (program, mut pid) = (self.program.as_ptr(), 0);
        let argv = [program.cast_mut(), null_mut()];
        let envp = [null_mut()];
        // SAFETY: strings and arrays end as they must and outlive the call.
        let error = unsafe {
            libc::posix_spawn(
                &mut pid,
                program,
                null(),
                null(),
                argv.as_ptr(),
                envp.as_ptr(),
            )
        };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        ended(pid)
    }

    fn sockets(&self) -> io::Result<&Sockets> {
        let sockets = self.sockets.as_ref();
        sockets.ok_or_else(|| io::Error::other("no sockets"))
    }

    fn read(&self) -> io::Result<()> {
        let disk = self.disk.as_ref();
        disk.ok_or_else(|| io::Error::other("no disk"))?.read()
    }

    /// Begins that many connects to where nobody answers.
    fn many_silent(&mut self, times: u64) -> io::Result<Vec<TcpStream>> {
        let sockets: Vec<TcpStream> = (0..times)
            .map(|_| tcp::connecting_to_nobody())
            .collect::<io::Result<_>>()?;
        self.did("silent", times);
        Ok(sockets)
    }

    /// Waits until the kernel has given up on each of them.
    fn wait_for_silence(&self, sockets: &[TcpStream]) -> io::Result<()> {
        for socket in sockets {
            let mut waiting = libc::pollfd {
                fd: socket.as_raw_fd(),
                events: libc::POLLOUT,
                revents: 0,
            };
            // SAFETY: the one element outlives the call.
            check(unsafe { libc::poll(&raw mut waiting, 1, -1) })?;
            match socket.take_error()? {
                Some(error) if error.raw_os_error() == Some(libc::ETIMEDOUT) => {}
                other => return Err(io::Error::other(format!("a connect ended with {other:?}"))),
            }
        }
        Ok(())
    }
}

fn ended(pid: libc::pid_t) -> io::Result<()> {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    check(unsafe { libc::waitpid(pid, &mut status, 0) })?;
    match status {
        0 => Ok(()),
        other => Err(io::Error::other(format!("a child ended with {other}"))),
    }
}

//! Does one thing, as its arguments say. The tests of a kernel run it in place of programs that a machine may not have.

#[path = "act/block.rs"]
mod block;
#[path = "act/drop.rs"]
mod drop_packets;
#[path = "act/file.rs"]
mod file;
#[path = "act/fire.rs"]
mod fire;
#[path = "act/tcp.rs"]
mod tcp;

use std::{
    env,
    ffi::{CString, OsStr, OsString},
    fs, hint,
    io::{self, Read as _},
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio, exit},
    sync::{
        Barrier,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

const USAGE: &str = "act COMMAND
  exit CODE [ANYTHING…]             end with that code
  sleep MILLISECONDS                sleep, then end with 0
  kill SIGNAL                       end by that signal, without a core
  core DIR                          abort in that directory, with a core where the machine makes one
  spawn N [ARG…]                    run `act exit 0 ARG…` that often, one after the other
  threads N                         run that many threads, then end with 0
  threadexit CODE                   end the leading thread first, then the process by another thread
  race CODE                         end both threads at once
  threadexec PROGRAM [ARG…]         execute that in a thread that does not lead
  in DIR PROGRAM [ARG…]             execute that in a directory
  chroot ROOT DIR PROGRAM [ARG…]    the same below another root
  pivot ROOT DIR PROGRAM [ARG…]     the same in a mount namespace that has only that root
  uid UID GID PROGRAM [ARG…]        execute that as another user
  newpid PROGRAM [ARG…]             run that as the first process of a PID namespace
  gate PROGRAM [ARG…]               run that, once standard input has ended
  copy FROM TO                      copy a file
  block PATH HOW [OPERATION TIMES BYTES]…  input and output of a disk, and end with its error number; see act/block.rs
  file OPERATION ARG…               one system call on files, and end with its error number; see act/file.rs
  fire …                            much of everything, counted; see act/fire.rs
  bind FROM TO PROGRAM [ARG…]       execute that in a mount namespace in which FROM is also at TO
  overlay LOWER UPPER WORK MERGED PROGRAM [ARG…]  execute that in a mount namespace in which MERGED is an overlay
  orphan                            run a process that ends before the one that it runs; that one then runs `act exit 0`
  tcp WHAT…                         make TCP connections: see act/tcp.rs
  newnet PROGRAM [ARG…]             execute that in a network namespace of its own
  newnets N PORT                    enter so many of them, one after the other, and send a datagram in each
  holdnet                           the same as newnet, saying `ready`, until standard input ends
  hold                              say `ready`, and stay until standard input ends
  joinnet PID PROGRAM [ARG…]        execute that in the network namespace of a process
  udp N PORT                        send so many datagrams to a port of 127.0.0.1; udp6: of ::1
  udpports N                        send a datagram to each of so many ports of 127.0.0.1
  udpsum N PORT                     the same with a wrong checksum
  udpfull N PORT                    the same to an own socket with little room; end with the number of those that had none
  refused N PORT                    be refused so often at a port of 127.0.0.1
  any [ANYTHING…]                   end with 0";

fn main() -> ExitCode {
    let mut words = env::args_os().skip(1);
    let command = words.next().unwrap_or_default();
    let args: Vec<OsString> = words.collect();
    let done = match (command.to_string_lossy().as_ref(), &args[..]) {
        ("exit", [code, ..]) => exit(number(code)),
        ("any", _) => Ok(ExitCode::SUCCESS),
        ("tcp", what) => tcp::run(what),
        ("sleep", [milliseconds]) => {
            thread::sleep(Duration::from_millis(number::<u64>(milliseconds)));
            Ok(ExitCode::SUCCESS)
        }
        ("kill", [signal]) => limit_core(0).and_then(|()| kill_self(number(signal))),
        ("core", [dir]) => env::set_current_dir(dir)
            .and_then(|()| limit_core(libc::RLIM_INFINITY))
            .and_then(|()| kill_self(libc::SIGABRT)),
        ("spawn", [times, rest @ ..]) => spawn(number(times), rest),
        ("threads", [count]) => threads(number(count)),
        ("threadexit", [code]) => leader_first(number(code)),
        ("race", [code]) => race(number(code)),
        ("threadexec", program) => in_a_thread(program.to_vec()),
        ("in", [dir, program @ ..]) => env::set_current_dir(dir).and_then(|()| execute(program)),
        ("chroot", [root, dir, program @ ..]) => std::os::unix::fs::chroot(root)
            .and_then(|()| env::set_current_dir(dir))
            .and_then(|()| execute(program)),
        ("pivot", [root, dir, program @ ..]) => only_root(Path::new(root))
            .and_then(|()| env::set_current_dir(dir))
            .and_then(|()| execute(program)),
        ("uid", [uid, gid, program @ ..]) => {
            become_user(number(uid), number(gid)).and_then(|()| execute(program))
        }
        ("newpid", program) => new_pid_namespace().and_then(|()| run(program)),
        ("newnet", program) => drop_packets::new_network().and_then(|()| execute(program)),
        ("newnets", [times, port]) => (0..number(times))
            .try_for_each(|_: u32| {
                drop_packets::new_network()?;
                drop_packets::udp(1, number(port)).map(|_| ())
            })
            .map(|()| ExitCode::SUCCESS),
        ("holdnet", []) => drop_packets::new_network().and_then(|()| drop_packets::hold()),
        ("hold", []) => drop_packets::hold(),
        ("joinnet", [pid, program @ ..]) => drop_packets::join_network(number(pid), program),
        ("udp", [times, port]) => drop_packets::udp(number(times), number(port)),
        ("udp6", [times, port]) => drop_packets::udp6(number(times), number(port)),
        ("udpports", [ports]) => drop_packets::udp_ports(number(ports)),
        ("udpsum", [times, port]) => drop_packets::udp_checksum(number(times), number(port)),
        ("udpfull", [times, port]) => drop_packets::udp_full(number(times), number(port)),
        ("refused", [times, port]) => drop_packets::tcp(number(times), number(port)),
        ("gate", program) => io::stdin()
            .read_to_end(&mut Vec::new())
            .and_then(|_| run(program)),
        ("block", words) => block::run(words),
        ("file", words) => file::run(words),
        ("fire", words) => fire::run(words),
        ("bind", [from, to, program @ ..]) => file::bind(from, to).and_then(|()| execute(program)),
        ("overlay", [lower, upper, work, merged, program @ ..]) => {
            file::overlay(lower, upper, work, merged).and_then(|()| execute(program))
        }
        ("copy", [from, to]) => fs::copy(from, to).map(|_| ExitCode::SUCCESS),
        ("orphan", []) => orphan(),
        ("orphan-parent", []) => own(["orphan-child"]).spawn().map(|_| ExitCode::SUCCESS),
        ("orphan-child", []) => orphan_child(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(BROKEN);
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("act {}: {error}", command.display());
        ExitCode::from(BROKEN)
    })
}

/// Unlike any code that a test asks for.
const BROKEN: u8 = 125;

fn number<T: std::str::FromStr>(text: &OsStr) -> T {
    text.to_string_lossy().parse().unwrap_or_else(|_| {
        eprintln!("act: `{}` is no number that fits\n{USAGE}", text.display());
        exit(BROKEN.into())
    })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn path(path: impl AsRef<OsStr>) -> io::Result<CString> {
    CString::new(path.as_ref().as_bytes()).map_err(io::Error::from)
}

/// This program with other arguments, and the same name.
fn own<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let program = env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
    let mut command = Command::new(program);
    command.arg0("act").args(args).stdin(Stdio::null());
    command
}

/// The program, and its arguments from argv[0] on.
fn command(program: &[OsString]) -> Command {
    let mut command = Command::new(program.first().map_or(OsStr::new(""), OsString::as_os_str));
    command.args(program.get(1..).unwrap_or_default());
    command
}

fn execute(program: &[OsString]) -> io::Result<ExitCode> {
    Err(command(program).exec())
}

fn run(program: &[OsString]) -> io::Result<ExitCode> {
    let status = command(program).status()?;
    Ok(ExitCode::from(status.code().unwrap_or(BROKEN.into()) as u8))
}

fn spawn(times: u32, args: &[OsString]) -> io::Result<ExitCode> {
    for _ in 0..times {
        let status = own(["exit", "0"]).args(args).status()?;
        if !status.success() {
            return Err(io::Error::other(format!("a child ended with {status}")));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn limit_core(bytes: libc::rlim_t) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: bytes,
    };
    // SAFETY: `limit` is a valid rlimit.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &limit) })
}

fn kill_self(signal: i32) -> io::Result<ExitCode> {
    // SAFETY: has no preconditions.
    check(unsafe { libc::kill(libc::getpid(), signal) })?;
    Err(io::Error::other("still alive"))
}

fn threads(count: u32) -> io::Result<ExitCode> {
    let together = Barrier::new(count as usize);
    thread::scope(|scope| {
        for _ in 1..count {
            scope.spawn(|| together.wait());
        }
        together.wait();
    });
    Ok(ExitCode::SUCCESS)
}

/// Ends the calling thread alone.
fn exit_thread(code: i32) -> ! {
    // SAFETY: nothing of this thread's stack is used by others.
    unsafe { libc::syscall(libc::SYS_exit, code) };
    unreachable!("SYS_exit does not return")
}

fn leader_first(code: i32) -> io::Result<ExitCode> {
    thread::spawn(move || {
        // A leader that has ended stays a zombie for as long as other threads live.
        let ended = || {
            let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
            stat.rsplit(") ")
                .next()
                .is_some_and(|rest| rest.starts_with('Z'))
        };
        while !ended() {
            thread::yield_now();
        }
        // SAFETY: has no preconditions.
        unsafe { libc::_exit(code) }
    });
    exit_thread(0)
}

fn race(code: i32) -> io::Result<ExitCode> {
    static READY: AtomicU32 = AtomicU32::new(0);
    let end = move || {
        READY.fetch_add(1, Ordering::SeqCst);
        while READY.load(Ordering::SeqCst) < 2 {
            hint::spin_loop();
        }
        exit_thread(code)
    };
    thread::spawn(end);
    end()
}

fn in_a_thread(program: Vec<OsString>) -> io::Result<ExitCode> {
    thread::spawn(move || execute(&program))
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
}

fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: these have no preconditions.
    unsafe {
        check(libc::setresgid(gid, gid, gid))?;
        check(libc::setresuid(uid, uid, uid))
    }
}

fn new_pid_namespace() -> io::Result<()> {
    // SAFETY: has no preconditions.
    check(unsafe { libc::unshare(libc::CLONE_NEWPID) })
}

/// Leaves only `root` to be seen, as a container's runtime does.
fn only_root(root: &Path) -> io::Result<()> {
    let (new, here, slash) = (path(root)?, path(".")?, path("/")?);
    let none = std::ptr::null();
    // SAFETY: all strings end with a NUL and outlive the calls.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS))?;
        let private = libc::MS_REC | libc::MS_PRIVATE;
        check(libc::mount(
            none,
            slash.as_ptr(),
            none,
            private,
            none.cast(),
        ))?;
        check(libc::mount(
            new.as_ptr(),
            new.as_ptr(),
            none,
            libc::MS_BIND,
            none.cast(),
        ))?;
        env::set_current_dir(root)?;
        if libc::syscall(libc::SYS_pivot_root, here.as_ptr(), here.as_ptr()) == 0 {
            return check(libc::umount2(here.as_ptr(), libc::MNT_DETACH));
        }
        // The kernel's first root, as an initramfs is, cannot be pivoted away.
        check(libc::mount(
            here.as_ptr(),
            slash.as_ptr(),
            none,
            libc::MS_MOVE,
            none.cast(),
        ))?;
        check(libc::chroot(here.as_ptr()))
    }
}

/// Comes back when there is no descendant any more.
fn orphan() -> io::Result<ExitCode> {
    let (mut reader, writer) = io::pipe()?;
    // The grandchild has the writing end too, until it ends.
    own(["orphan-parent"]).stdout(writer).status()?;
    reader.read_to_end(&mut Vec::new())?;
    Ok(ExitCode::SUCCESS)
}

fn orphan_child() -> io::Result<ExitCode> {
    let parent_is_act = || {
        let parent = std::os::unix::process::parent_id();
        let arguments = fs::read(format!("/proc/{parent}/cmdline")).unwrap_or_default();
        arguments
            .split(|&byte| byte == 0)
            .any(|arg| arg == b"orphan-parent")
    };
    while parent_is_act() {
        thread::yield_now();
    }
    own(["exit", "0"]).status()?;
    Ok(ExitCode::SUCCESS)
}

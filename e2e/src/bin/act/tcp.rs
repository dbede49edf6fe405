//! What the tests of TCP do: connections that end in each way there is.

use std::{
    ffi::OsString,
    fs,
    io::{self, Read as _, Write as _},
    mem::zeroed,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _},
    process::ExitCode,
    thread,
    time::Duration,
};

use super::{check, drop_packets::new_network, number};

/// How a connection is ended once everything is moved.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// Close at once.
    Close,
    /// Wait for the peer to end it.
    Wait,
    /// Send a RST.
    Reset,
    /// Wait for the end of standard input, then close.
    Hold,
}

pub(super) fn run(args: &[OsString]) -> io::Result<ExitCode> {
    let words: Vec<_> = args.iter().map(|word| word.to_string_lossy()).collect();
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    match (words.as_slice(), args) {
        (["listen", address, _, _, _, how], [_, _, times, receive, send, _]) => listen(
            address,
            number(times),
            (number(receive), number(send)),
            parse(how)?,
        ),
        (["connect", address, _, _, _, how], [_, _, times, send, receive, _]) => connect(
            address,
            number(times),
            (number(send), number(receive)),
            parse(how)?,
        ),
        (["refused", address], _) => refused(address),
        (["blackhole"], _) => blackhole(),
        (["giveup"], _) => give_up(),
        (["unroutable"], _) => unroutable(),
        (["lossy", ..], [_, bytes]) => lossy(number(bytes)),
        (["stuck"], _) => stuck(),
        (["unread"], _) => unread(),
        (["halfclosed"], _) => half_closed(),
        (["overflow"], _) => overflow(),
        _ => return Err(io::Error::other("there is no such command of tcp")),
    }
    .map(|()| ExitCode::SUCCESS)
}

fn parse(how: &str) -> io::Result<How> {
    Ok(match how {
        "close" => How::Close,
        "wait" => How::Wait,
        "reset" => How::Reset,
        "hold" => How::Hold,
        _ => return Err(io::Error::other(format!("`{how}` is no way to end"))),
    })
}

fn send(stream: &mut TcpStream, bytes: usize) -> io::Result<()> {
    stream.write_all(&vec![b'x'; bytes])
}

fn receive(stream: &mut TcpStream, bytes: usize) -> io::Result<()> {
    stream.read_exact(&mut vec![0; bytes])
}

fn end(mut stream: TcpStream, how: How) -> io::Result<()> {
    match how {
        How::Close => {}
        How::Wait => match stream.read(&mut [0]) {
            Ok(0) => {}
            Ok(_) => return Err(io::Error::other("the peer sends more than it should")),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => return Err(error),
        },
        How::Reset => reset_on_close(&stream)?,
        How::Hold => _ = io::stdin().read_to_end(&mut Vec::new())?,
    }
    Ok(())
}

/// Closing it sends a RST.
pub(super) fn reset_on_close(stream: &TcpStream) -> io::Result<()> {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    option(stream, libc::SOL_SOCKET, libc::SO_LINGER, &linger)
}

fn option<T>(
    socket: &impl std::os::fd::AsRawFd,
    level: i32,
    name: i32,
    value: &T,
) -> io::Result<()> {
    // SAFETY: the descriptor is open, and `value` is as large as is said.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    })
}

/// Tells the test.
fn say(word: impl std::fmt::Display) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{word}")?;
    out.flush()
}

/// Prints its port, and serves that many connections, one after the other.
fn listen(
    address: &str,
    times: u32,
    (to_read, to_write): (usize, usize),
    how: How,
) -> io::Result<()> {
    let listener = TcpListener::bind((address, 0))?;
    say(listener.local_addr()?.port())?;
    for _ in 0..times {
        let (mut stream, _) = listener.accept()?;
        receive(&mut stream, to_read)?;
        send(&mut stream, to_write)?;
        if how == How::Hold {
            say("open")?;
        }
        end(stream, how)?;
    }
    Ok(())
}

fn connect(
    address: &str,
    times: u32,
    (to_write, to_read): (usize, usize),
    how: How,
) -> io::Result<()> {
    for _ in 0..times {
        let mut stream = TcpStream::connect(address)?;
        send(&mut stream, to_write)?;
        receive(&mut stream, to_read)?;
        if how == How::Hold {
            say("open")?;
        }
        end(stream, how)?;
    }
    Ok(())
}

/// The connect must fail so.
pub(super) fn fails(connect: io::Result<TcpStream>, errno: i32) -> io::Result<()> {
    match connect {
        Err(error) if error.raw_os_error() == Some(errno) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other("the connect succeeded")),
    }
}

/// Prints the port of which nobody listens, and connects to it.
fn refused(address: &str) -> io::Result<()> {
    let port = TcpListener::bind((address, 0))?.local_addr()?.port();
    say(port)?;
    fails(TcpStream::connect((address, port)), libc::ECONNREFUSED)
}

/// An address of a network that is for documentation: TEST-NET-1.
const NOBODY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PORT: u16 = 9;

fn in_address(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: zeros are a valid address.
    let mut socket: libc::sockaddr_in = unsafe { zeroed() };
    socket.sin_family = libc::AF_INET as libc::sa_family_t;
    socket.sin_addr.s_addr = u32::from(address).to_be();
    // SAFETY: both are addresses of sockets, of the same size.
    unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(socket) }
}

/// Sends what is for [`NOBODY`] out of the loopback, where it comes in again and is dropped: it is for nobody here.
pub(super) fn swallow() -> io::Result<()> {
    new_network()?;
    let mut name = *b"lo\0";
    // SAFETY: zeros are a valid `rtentry`: numbers, and pointers that are null.
    let mut route: libc::rtentry = unsafe { zeroed() };
    route.rt_dst = in_address(NOBODY);
    route.rt_genmask = in_address(Ipv4Addr::BROADCAST);
    route.rt_flags = libc::RTF_UP | libc::RTF_HOST;
    route.rt_dev = name.as_mut_ptr().cast();
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: the descriptor is open; the route and the name in it outlive the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT, &route) })
}

/// A socket that is not connected yet.
fn socket() -> io::Result<TcpStream> {
    // SAFETY: has no preconditions.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: it was made just now.
    Ok(unsafe { TcpStream::from_raw_fd(fd) })
}

fn connect_to_nobody(socket: &TcpStream) -> io::Result<()> {
    // SAFETY: zeros are a valid address.
    let mut to: libc::sockaddr_in = unsafe { zeroed() };
    to.sin_family = libc::AF_INET as libc::sa_family_t;
    to.sin_port = PORT.to_be();
    to.sin_addr.s_addr = u32::from(NOBODY).to_be();
    // SAFETY: the descriptor is open, and the address is as large as is said.
    check(unsafe {
        libc::connect(
            socket.as_raw_fd(),
            std::ptr::from_ref(&to).cast(),
            size_of_val(&to) as libc::socklen_t,
        )
    })
}

/// Connects to where nobody answers; the SYN is sent again once.
fn blackhole() -> io::Result<()> {
    swallow()?;
    // Kernels that have this try more often at first.
    match fs::write("/proc/sys/net/ipv4/tcp_syn_linear_timeouts", "0") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let socket = socket()?;
    option(&socket, libc::IPPROTO_TCP, libc::TCP_SYNCNT, &1_i32)?;
    let failed = connect_to_nobody(&socket).map(|()| socket);
    fails(failed, libc::ETIMEDOUT)
}

/// Connects to where nobody answers, and does not wait.
fn give_up() -> io::Result<()> {
    swallow()?;
    let socket = socket()?;
    socket.set_nonblocking(true)?;
    let failed = connect_to_nobody(&socket).map(|()| socket);
    fails(failed, libc::EINPROGRESS)
}

/// A connect to where nobody answers, which goes on; the SYN is sent again once. Take [`swallow`] first.
pub(super) fn connecting_to_nobody() -> io::Result<TcpStream> {
    let socket = socket()?;
    option(&socket, libc::IPPROTO_TCP, libc::TCP_SYNCNT, &1_i32)?;
    socket.set_nonblocking(true)?;
    match connect_to_nobody(&socket) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        other => Err(io::Error::other(format!("connect gave {other:?}"))),
    }
}

/// Connects to where there is no way.
fn unroutable() -> io::Result<()> {
    new_network()?;
    fails(TcpStream::connect((NOBODY, PORT)), libc::ENETUNREACH)
}

/// Both ends of a connection, the one that connected first.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    Ok((client, server))
}

/// Makes a socket's every packet vanish before it arrives.
fn deafen(socket: &TcpStream) -> io::Result<()> {
    /// BPF_RET of linux/filter.h: keep no bytes.
    const NOTHING: u16 = 6;
    let mut program = [libc::sock_filter {
        code: NOTHING,
        jt: 0,
        jf: 0,
        k: 0,
    }];
    let program = libc::sock_fprog {
        len: 1,
        filter: program.as_mut_ptr(),
    };
    option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

fn info(socket: &TcpStream) -> io::Result<libc::tcp_info> {
    // SAFETY: zeros are a valid `tcp_info`: numbers.
    let mut info: libc::tcp_info = unsafe { zeroed() };
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel writes at most `len` bytes.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            std::ptr::from_mut(&mut info).cast(),
            &mut len,
        )
    })?;
    Ok(info)
}

/// Sends that many bytes to a peer that does not hear them at first. Prints its port, and how many segments were sent again.
fn lossy(bytes: usize) -> io::Result<()> {
    let (mut client, mut server) = pair()?;
    deafen(&server)?;
    send(&mut client, bytes)?;
    while info(&client)?.tcpi_total_retrans < 2 {
        thread::sleep(Duration::from_millis(1));
    }
    option(&server, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0_i32)?;
    receive(&mut server, bytes)?;
    // Everything is acknowledged, so that nothing more is sent.
    while info(&client)?.tcpi_unacked > 0 {
        thread::sleep(Duration::from_millis(1));
    }
    let SocketAddr::V4(local) = client.local_addr()? else {
        return Err(io::Error::other("an address of IPv4"));
    };
    say(format!(
        "{} {}",
        local.port(),
        info(&client)?.tcpi_total_retrans
    ))
}

/// Sends to a peer that never answers, until the kernel gives up.
fn stuck() -> io::Result<()> {
    const PATIENCE_MS: u32 = 300;
    let (mut client, server) = pair()?;
    option(
        &client,
        libc::IPPROTO_TCP,
        libc::TCP_USER_TIMEOUT,
        &PATIENCE_MS,
    )?;
    deafen(&server)?;
    send(&mut client, 1)?;
    match client.read(&mut [0]) {
        Err(error) if error.raw_os_error() == Some(libc::ETIMEDOUT) => Ok(()),
        other => Err(io::Error::other(format!("{other:?}"))),
    }
}

/// Closes while there is something to read: a RST instead of a FIN.
fn unread() -> io::Result<()> {
    let (mut client, server) = pair()?;
    send(&mut client, 5)?;
    while server.peek(&mut [0; 5])? < 5 {}
    drop(server);
    match client.read(&mut [0]) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        other => Err(io::Error::other(format!("{other:?}"))),
    }
}

/// Closes one direction, moves more in the other, then closes that.
fn half_closed() -> io::Result<()> {
    let (mut client, mut server) = pair()?;
    send(&mut client, 11)?;
    client.shutdown(Shutdown::Write)?;
    receive(&mut server, 11)?;
    send(&mut server, 1300)?;
    receive(&mut client, 1300)?;
    drop(server);
    end(client, How::Wait)
}

/// Connects twice where only one fits: the listener answers the other with a RST. Prints the port of that one.
fn overflow() -> io::Result<()> {
    new_network()?;
    fs::write("/proc/sys/net/ipv4/tcp_abort_on_overflow", "1")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    // The kernel makes a socket of a connection only when its first bytes come, and keeps one more than the backlog.
    option(
        &listener,
        libc::IPPROTO_TCP,
        libc::TCP_DEFER_ACCEPT,
        &30_i32,
    )?;
    // SAFETY: has no preconditions.
    check(unsafe { libc::listen(listener.as_raw_fd(), 0) })?;
    let mut both = [
        TcpStream::connect(listener.local_addr()?)?,
        TcpStream::connect(listener.local_addr()?)?,
    ];
    for stream in &mut both {
        stream.set_nonblocking(true)?;
        send(stream, 1)?;
    }
    loop {
        for stream in &mut both {
            let port = stream.local_addr()?.port();
            match stream.read(&mut [0]) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return say(port),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return Err(io::Error::other(format!("{other:?}"))),
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
}

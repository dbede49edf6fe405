//! Packets that a kernel drops.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read as _, Write as _},
    mem,
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::ExitCode,
};

use crate::{check, execute};

/// Enters a new network namespace, which has nothing but a loopback interface that is up.
pub(crate) fn new_network() -> io::Result<()> {
    // SAFETY: has no preconditions.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: zeros are a valid `ifreq`: numbers, and pointers that are null.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the descriptor is open and the request is a whole `ifreq` that outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) })
}

/// Executes the program in the network namespace of a process.
pub(crate) fn join_network(pid: u32, program: &[OsString]) -> io::Result<ExitCode> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    // SAFETY: the descriptor is open.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })?;
    execute(program)
}

/// Says that it is there, and stays until standard input ends.
pub(crate) fn hold() -> io::Result<ExitCode> {
    let mut out = io::stdout();
    out.write_all(b"ready\n")?;
    out.flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(ExitCode::SUCCESS)
}

/// Sends datagrams of 10 bytes to a port.
pub(crate) fn udp(times: u32, port: u16) -> io::Result<ExitCode> {
    // Not connected: such a socket is not told that nobody is there.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    for _ in 0..times {
        socket.send_to(&[0; 10], (Ipv4Addr::LOCALHOST, port))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Sends one datagram to each port from 1 on.
pub(crate) fn udp_ports(ports: u16) -> io::Result<ExitCode> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, u16::MAX))?;
    for port in 1..=ports {
        socket.send_to(&[0; 10], (Ipv4Addr::LOCALHOST, port))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Sends datagrams of 10 bytes to a port of IPv6.
pub(crate) fn udp6(times: u32, port: u16) -> io::Result<ExitCode> {
    let socket = UdpSocket::bind("[::1]:0")?;
    for _ in 0..times {
        socket.send_to(&[0; 10], format!("[::1]:{port}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Connects to a port at which nobody listens.
pub(crate) fn tcp(times: u32, port: u16) -> io::Result<ExitCode> {
    let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    for _ in 0..times {
        match TcpStream::connect(peer) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            other => return Err(io::Error::other(format!("connect gave {other:?}"))),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Sends datagrams of 10 bytes with a wrong checksum.
pub(crate) fn udp_checksum(times: u32, port: u16) -> io::Result<ExitCode> {
    // SAFETY: has no preconditions; what it returns is nobody else's.
    let socket = unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_UDP);
        check(socket)?;
        OwnedFd::from_raw_fd(socket)
    };
    let mut datagram = [0_u8; 18];
    datagram[..2].copy_from_slice(&7000_u16.to_be_bytes());
    datagram[2..4].copy_from_slice(&port.to_be_bytes());
    datagram[4..6].copy_from_slice(&18_u16.to_be_bytes());
    // 0 would mean that there is none, and the right one is another.
    datagram[6..8].copy_from_slice(&0xdead_u16.to_be_bytes());
    let to = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets()),
        },
        sin_zero: [0; 8],
    };
    for _ in 0..times {
        // SAFETY: both buffers outlive the call and are as long as is said.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                datagram.as_ptr().cast(),
                datagram.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as libc::socklen_t,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Sends datagrams to an own socket that has little room, reads what arrived, and ends with the number of those that did not.
pub(crate) fn udp_full(times: u32, port: u16) -> io::Result<ExitCode> {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?;
    let little: libc::c_int = 2048;
    // SAFETY: the value is as long as is said.
    check(unsafe {
        libc::setsockopt(
            receiver.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUF,
            (&raw const little).cast(),
            size_of_val(&little) as libc::socklen_t,
        )
    })?;
    udp(times, port)?;
    receiver.set_nonblocking(true)?;
    let mut arrived = 0;
    while receiver.recv(&mut [0; 16]).is_ok() {
        arrived += 1;
    }
    u8::try_from(times - arrived)
        .map(ExitCode::from)
        .map_err(io::Error::other)
}

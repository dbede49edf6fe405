//! The sensor `tcp`: sessions, failed connects, resets, retransmits.
//!
//! What happens to a connection mostly happens in whatever task a packet or a timer interrupts. So the pod is that of the
//! socket's own cgroup, and the process is remembered from when one was at work on the socket.

mod open;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::generated::{
        bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns,
    },
    macros::{btf_tracepoint, map, raw_tracepoint},
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use dinle_ebpf::{
    Kind, TcpConnect, TcpReset, TcpRetransmit, TcpSession,
    offsets::MISSING,
    tcp::{CONNECTING_MAX, Ends, SOCKETS_MAX, Socket},
};

use crate::{
    call::{self, Call},
    emit,
    kernel::{Object, Ptr, at, increment, offset, read, read_to, zero},
    scope::{self, Subject},
    task::fill_task,
};

// include/net/tcp_states.h
const ESTABLISHED: u32 = 1;
const SYN_SENT: u32 = 2;
const SYN_RECV: u32 = 3;
const FIN_WAIT1: u32 = 4;
const FIN_WAIT2: u32 = 5;
const CLOSE: u32 = 7;
const CLOSE_WAIT: u32 = 8;
const LAST_ACK: u32 = 9;
const LISTEN: u32 = 10;
const CLOSING: u32 = 11;

/// States of a socket whose peer is known and that is neither closed nor one of the small ones that stand for it.
const OPEN: u32 = 1 << ESTABLISHED
    | 1 << SYN_SENT
    | 1 << SYN_RECV
    | 1 << FIN_WAIT1
    | 1 << FIN_WAIT2
    | 1 << CLOSE_WAIT
    | 1 << LAST_ACK
    | 1 << CLOSING;

// include/linux/socket.h
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Kinds that need to know sockets.
const KINDS: u64 = Kind::TcpSession.bit()
    | Kind::TcpConnect.bit()
    | Kind::TcpReset.bit()
    | Kind::TcpRetransmit.bit();

/// Sockets that are open, by address.
#[map]
static SOCKETS: HashMap<u64, Socket> = HashMap::with_max_entries(SOCKETS_MAX, 0);

/// A socket of which nothing is known. Never written.
#[map]
static UNKNOWN: Array<Socket> = Array::with_max_entries(1, 0);

/// In place of an element of `SOCKETS` while that is full.
#[map]
static SPARE: PerCpuArray<Socket> = PerCpuArray::with_max_entries(1, 0);

/// Element 0: how many sessions and connects began while `SOCKETS` was full.
#[map]
static UNREMEMBERED: Array<u64> = Array::with_max_entries(1, 0);

/// Element 0: nanoseconds between two reports on a session that goes on. Written by the agent.
#[map]
static SESSION_INTERVAL: Array<u64> = Array::with_max_entries(1, 0);

// include/trace/events/sock.h: (const struct sock *sk, const int oldstate, const int newstate)
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn tp_btf__inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    let sk = Object::new(ctx.arg(0), true);
    state_changed(sk, ctx.arg(1), ctx.arg(2), false)
}

#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn raw_tracepoint__inet_sock_set_state(ctx: RawTracePointContext) -> i32 {
    let sk = Object::new(ctx.arg(0), false);
    state_changed(sk, ctx.arg(1), ctx.arg(2), false)
}

// The kernel skips a program that runs on the CPU already, as when a packet's work interrupts a process that closes another socket,
// or where tracepoints can be preempted (7.x). One of the first is skipped with each of those, so these make up for it: one after
// the other, both are seldom interrupted at once.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn tp_btf__inet_sock_set_state__again(ctx: BtfTracePointContext) -> i32 {
    let sk = Object::new(ctx.arg(0), true);
    state_changed(sk, ctx.arg(1), ctx.arg(2), true)
}

#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn raw_tracepoint__inet_sock_set_state__again(ctx: RawTracePointContext) -> i32 {
    let sk = Object::new(ctx.arg(0), false);
    state_changed(sk, ctx.arg(1), ctx.arg(2), true)
}

// include/trace/events/tcp.h: (const struct sock *sk, const struct sk_buff *skb), since 6.10 with a reason behind
#[btf_tracepoint(function = "tcp_send_reset")]
pub fn tp_btf__tcp_send_reset(ctx: BtfTracePointContext) -> i32 {
    sent_reset(Call::trampoline(ctx.as_ptr()))
}

#[raw_tracepoint(tracepoint = "tcp_send_reset")]
pub fn raw_tracepoint__tcp_send_reset(ctx: RawTracePointContext) -> i32 {
    sent_reset(Call::trampoline(ctx.as_ptr()))
}

// Arguments are copied: both may be null, and the verifier wants to see that checked before it lets a typed pointer be used.
#[inline(always)]
fn sent_reset(call: Call) -> i32 {
    let position = offset!(reset_reason);
    let reason = match position {
        MISSING => u32::MAX,
        position => call.arg(position) as u32,
    };
    reset(call.arg(0) as Ptr, call.arg(1) as Ptr, reason, SENT)
}

// include/trace/events/tcp.h: (struct sock *sk)
#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn tp_btf__tcp_receive_reset(ctx: BtfTracePointContext) -> i32 {
    reset(ctx.arg(0), core::ptr::null(), u32::MAX, RECEIVED)
}

#[raw_tracepoint(tracepoint = "tcp_receive_reset")]
pub fn raw_tracepoint__tcp_receive_reset(ctx: RawTracePointContext) -> i32 {
    reset(ctx.arg(0), core::ptr::null(), u32::MAX, RECEIVED)
}

// include/trace/events/tcp.h: (const struct sock *sk, const struct sk_buff *skb), since 6.18 (…, int err)
#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn tp_btf__tcp_retransmit_skb(ctx: BtfTracePointContext) -> i32 {
    if offset!(retransmit_err) == 2 && ctx.arg::<i32>(2) != 0 {
        return 0;
    }
    retransmit(ctx.arg(0), ctx.arg(1))
}

#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub fn raw_tracepoint__tcp_retransmit_skb(ctx: RawTracePointContext) -> i32 {
    if offset!(retransmit_err) == 2 && ctx.arg::<i32>(2) != 0 {
        return 0;
    }
    retransmit(ctx.arg(0), ctx.arg(1))
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: this helper has no preconditions.
    unsafe { bpf_ktime_get_boot_ns() }
}

#[inline(always)]
fn state_of(sk: Ptr) -> u32 {
    read::<u8>(sk, offset!(sock_state)) as u32
}

#[inline(always)]
fn is_tcp(sk: Object) -> bool {
    const IPPROTO_TCP: u16 = 6;
    let family: u16 = sk.read(offset!(sock_family));
    sk.read::<u16>(offset!(sock_protocol)) == IPPROTO_TCP
        && (family == AF_INET || family == AF_INET6)
}

/// Id of the cgroup that a socket was made in, or whose listener it comes from; 0 if the kernel does not say.
#[inline(always)]
fn cgroup_of(sk: Object) -> u64 {
    if offset!(sock_cgroup_pointer) != MISSING {
        return sk
            .follow(offset!(sock_cgroup))
            .follow(offset!(cgroup_kn))
            .read(offset!(kernfs_id));
    }
    // The word may hold numbers of cgroup v1 instead: `is_data` of include/linux/cgroup-defs.h.
    let word: u64 = read(sk.address(), offset!(sock_cgroup));
    if word & 3 != 0 {
        return 0;
    }
    let kn: Ptr = read(word as Ptr, offset!(cgroup_kn));
    read(kn, offset!(kernfs_id))
}

/// A process is at work on the socket: it holds the socket's lock. A packet or a timer works on a socket only while nobody does.
#[inline(always)]
fn is_owned(sk: Object) -> bool {
    sk.read::<i32>(offset!(sock_owned)) != 0
}

/// Writes which ends a socket has.
///
/// # Safety
/// `to` is valid, and zeros.
#[inline(always)]
unsafe fn fill_ends(to: *mut Ends, sk: Ptr) {
    // SAFETY: the caller's promise.
    let to = unsafe { &mut *to };
    let family: u16 = read(sk, offset!(sock_family));
    to.family = family;
    // SAFETY: each has room for 16 bytes, of which an IPv4 address takes the first 4.
    unsafe {
        if family == AF_INET6 {
            read_to(&raw mut to.local, sk, offset!(sock_local6));
            read_to(&raw mut to.remote, sk, offset!(sock_remote6));
        } else {
            read_to((&raw mut to.local).cast::<u32>(), sk, offset!(sock_local));
            read_to((&raw mut to.remote).cast::<u32>(), sk, offset!(sock_remote));
        }
    }
    to.local_port = u16::from_be(read(sk, offset!(inet_sport)));
    to.remote_port = u16::from_be(read(sk, offset!(sock_remote_port)));
}

#[inline(always)]
fn widen([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// Takes note of the process that is at work on a socket, unless one is known already.
///
/// # Safety
/// `known` is valid.
#[inline(always)]
unsafe fn learn(known: *mut Socket, sk: Object, cgroup_id: u64) {
    // SAFETY: the caller's promise; the helpers have no preconditions.
    unsafe {
        if (*known).task.pid == 0 && is_owned(sk) && bpf_get_current_cgroup_id() == cgroup_id {
            fill_task(&raw mut (*known).task, Object::current(sk.is_typed()));
        }
    }
}

/// Notes a change of state. The second program of the two notes it only if the first did not.
#[inline(always)]
fn state_changed(sk: Object, old: u32, new: u32, again: bool) -> i32 {
    // A listener comes and goes without a session, and some sockets are closed twice.
    if new == LISTEN || new == CLOSE && (old == LISTEN || old == CLOSE) || !is_tcp(sk) {
        return 0;
    }
    let key = sk.address() as u64;
    let Some((subject, kinds)) = scope::wanted_any(cgroup_of(sk), KINDS) else {
        if new == CLOSE {
            // It may have been in scope before.
            _ = SOCKETS.remove(&key);
        }
        return 0;
    };
    // A socket's states change one after the other, so that the last one tells whether this one was noted.
    let change = ((old & 255) << 8 | new & 255) as u16;
    if again {
        match SOCKETS.get_ptr(&key) {
            // SAFETY: an element that is valid.
            Some(known) => {
                if unsafe { (*known).last } == change {
                    return 0;
                }
            }
            None if new == CLOSE => return 0,
            None => {}
        }
    }
    let begins = old == CLOSE || old == LISTEN;
    let flags = if begins { BPF_ANY } else { BPF_NOEXIST };
    if let Some(unknown) = UNKNOWN.get(0) {
        // That there is no room shows below; that it is known already is as it should be.
        _ = SOCKETS.insert(&key, unknown, flags as u64);
    }
    let known = match SOCKETS.get_ptr_mut(&key) {
        Some(known) => known,
        None => {
            // What is not noted for lack of room is so for both programs.
            if again {
                return 0;
            }
            if begins && let Some(count) = UNREMEMBERED.get_ptr_mut(0) {
                // SAFETY: an element of an array is always valid.
                unsafe { increment(count) };
            }
            if new != CLOSE {
                return 0;
            }
            let Some(spare) = SPARE.get_ptr_mut(0) else {
                return 0;
            };
            // SAFETY: an element of a per-CPU array is valid, and this program's own.
            unsafe { zero(spare) };
            spare
        }
    };
    // SAFETY: an element that is valid. Only what happens to this socket writes to it, one after the other.
    unsafe {
        if (*known).told_boot_ns == 0 {
            (*known).told_boot_ns = now();
        }
        if begins {
            (*known).start_boot_ns = (*known).told_boot_ns;
            (*known).direction = match old {
                LISTEN => TcpSession::ACCEPT,
                _ => TcpSession::CONNECT,
            };
        }
        (*known).last = change;
        learn(known, sk, subject.cgroup_id);
        // The first of the two ends that closes.
        if (*known).flags & (TcpSession::FIN_SENT | TcpSession::FIN_RECEIVED) == 0 {
            match new {
                FIN_WAIT1 => (*known).flags |= TcpSession::FIN_SENT,
                CLOSE_WAIT => (*known).flags |= TcpSession::FIN_RECEIVED,
                _ => {}
            }
        }
        if new == CLOSE && ended(subject, kinds, sk.address(), old, known) {
            _ = SOCKETS.remove(&key);
        }
    }
    0
}

/// Tells how a session or a connect ended. Whether there is nothing more to come of it.
///
/// # Safety
/// `known` is valid.
#[inline(always)]
unsafe fn ended(subject: Subject, kinds: u64, sk: Ptr, old: u32, known: *mut Socket) -> bool {
    // SAFETY: the caller's promise.
    let (start, direction) = unsafe { ((*known).start_boot_ns, (*known).direction) };
    let took = match start {
        0 => 0,
        start => now() - start,
    };
    let error: i32 = read(sk, offset!(sock_err));
    if old == SYN_SENT || old == SYN_RECV && direction == TcpSession::CONNECT {
        // What failed before it was sent is told at the call's return, which knows why.
        if kinds & Kind::TcpConnect.bit() != 0 && !(error == 0 && is_in_connect(sk)) {
            emit::fixed::<TcpConnect>(subject, |connect| {
                // SAFETY: `connect` is a zeroed payload, `known` the caller's promise.
                unsafe {
                    (*connect).task = (*known).task;
                    fill_ends(&raw mut (*connect).ends, sk);
                    (*connect).duration_ns = took;
                    (*connect).error = error as u32;
                }
            });
        }
        return true;
    }
    // The handshake was never finished.
    if old == SYN_RECV {
        return true;
    }
    let how = how_ended(sk, old, error);
    // SAFETY: the caller's promise.
    unsafe { (*known).flags |= how };
    let min_ns = match emit::narrowing(Kind::TcpSession) {
        Some(narrowing) => narrowing.min_ns,
        None => 0,
    };
    if kinds & Kind::TcpSession.bit() != 0 && took >= min_ns {
        // SAFETY: the caller's promise.
        unsafe { tell(subject, sk, old, error, (*known).flags, known) };
    }
    // A RST that we send comes right behind, and wants to know of what.
    if how & TcpSession::RST_SENT != 0 && kinds & Kind::TcpReset.bit() != 0 {
        // SAFETY: the caller's promise.
        unsafe { (*known).closed = old as u16 };
        return false;
    }
    true
}

/// What a socket's last change of state says of a reset. Of one that we send this is all there is: the kernel closes first.
#[inline(always)]
fn how_ended(sk: Ptr, old: u32, error: i32) -> u16 {
    // include/uapi/asm-generic/errno.h
    const EPIPE: i32 = 32;
    const ECONNABORTED: i32 = 103;
    const ECONNRESET: i32 = 104;
    // include/net/sock.h
    const SOCK_DEAD: u64 = 1 << 0;
    const SOCK_DONE: u64 = 1 << 1;
    // tcp_reset of net/ipv4/tcp_input.c sets one of these two.
    if error == ECONNRESET || error == EPIPE && old == CLOSE_WAIT {
        return TcpSession::RST_RECEIVED;
    }
    // tcp_need_reset of net/ipv4/tcp.c.
    let half_closed = old == FIN_WAIT1 || old == FIN_WAIT2;
    let aborted = old == ESTABLISHED || old == CLOSE_WAIT;
    if error == ECONNABORTED && (aborted || half_closed) {
        return TcpSession::RST_SENT;
    }
    // After our FIN a socket goes on as a small one, once the process has closed it or the peer's FIN has come.
    let flags: u64 = read(sk, offset!(sock_flags));
    if error == 0 && (aborted || half_closed && flags & (SOCK_DEAD | SOCK_DONE) == 0) {
        return TcpSession::RST_SENT;
    }
    match old {
        FIN_WAIT1 | FIN_WAIT2 | CLOSING => TcpSession::FIN_SENT,
        CLOSE_WAIT | LAST_ACK => TcpSession::FIN_RECEIVED,
        _ => 0,
    }
}

/// Tells of a session.
///
/// # Safety
/// `known` is valid.
#[inline(always)]
unsafe fn tell(subject: Subject, sk: Ptr, state: u32, error: i32, flags: u16, known: *mut Socket) {
    const SOCK_DONE: u64 = 1 << 1;
    emit::fixed::<TcpSession>(subject, |session| {
        let again: u64 = read(sk, offset!(tcp_bytes_retrans));
        let sent: u64 = read(sk, offset!(tcp_bytes_sent));
        let received: u64 = read(sk, offset!(tcp_bytes_received));
        // A FIN counts as a byte: tcp_fin of net/ipv4/tcp_input.c sets the flag.
        let fin = u64::from(read::<u64>(sk, offset!(sock_flags)) & SOCK_DONE != 0);
        // SAFETY: `session` is a zeroed payload, `known` the caller's promise.
        unsafe {
            (*session).task = (*known).task;
            fill_ends(&raw mut (*session).ends, sk);
            (*session).start_boot_ns = (*known).start_boot_ns;
            (*session).bytes_sent = if sent > again { sent - again } else { 0 };
            (*session).bytes_received = if received > fin { received - fin } else { 0 };
            (*session).retransmits = read(sk, offset!(tcp_total_retrans));
            (*session).srtt_us = read::<u32>(sk, offset!(tcp_srtt)) >> 3;
            (*session).state = state as u16;
            (*session).direction = (*known).direction;
            (*session).flags = flags;
            (*session).error = error as u16;
        }
    });
}

const SENT: u16 = 1;
const RECEIVED: u16 = 2;

#[inline(always)]
fn reset(sk: Ptr, skb: Ptr, reason: u32, direction: u16) -> i32 {
    let socket = Object::new(sk, false);
    let mut state = state_of(sk);
    // Small sockets have no cgroup, and where there is no socket there is none either.
    let whole = (OPEN | 1 << CLOSE | 1 << LISTEN) & (1 << (state & 31)) != 0;
    if sk.is_null() || !whole || !is_tcp(socket) {
        return 0;
    }
    let Some(subject) = scope::wanted(cgroup_of(socket), Kind::TcpReset) else {
        return 0;
    };
    let key = sk as u64;
    let known = SOCKETS.get_ptr_mut(&key);
    let mut closed = false;
    if let Some(known) = known {
        // SAFETY: an element that is valid.
        unsafe {
            learn(known, socket, subject.cgroup_id);
            if (*known).closed != 0 {
                state = u32::from((*known).closed);
                closed = true;
            }
        }
    }
    emit::fixed::<TcpReset>(subject, |reset| {
        // SAFETY: `reset` is a zeroed payload, `known` an element that is valid.
        unsafe {
            if let Some(known) = known {
                (*reset).task = (*known).task;
            }
            fill_ends(&raw mut (*reset).ends, sk);
            if state == LISTEN && !skb.is_null() {
                fill_sender(&raw mut (*reset).ends, skb);
            }
            (*reset).reason = reason;
            (*reset).state = state as u16;
            (*reset).direction = direction;
        }
    });
    if closed {
        _ = SOCKETS.remove(&key);
    }
    0
}

/// Writes who sent a packet to the remote end, and to the local end whom to.
///
/// # Safety
/// `to` is valid.
#[inline(always)]
unsafe fn fill_sender(to: *mut Ends, skb: Ptr) {
    // include/uapi/linux/ip.h and ipv6.h
    const IPV4_SOURCE: u32 = 12;
    const IPV4_DESTINATION: u32 = 16;
    const IPV6_SOURCE: u32 = 8;
    const IPV6_DESTINATION: u32 = 24;
    // SAFETY: the caller's promise.
    let to = unsafe { &mut *to };
    let head: Ptr = read(skb, offset!(skb_head));
    let network: u16 = read(skb, offset!(skb_network));
    let transport: u16 = read(skb, offset!(skb_transport));
    let (ip, tcp) = (at(head, network.into()), at(head, transport.into()));
    if read::<u8>(ip, 0) >> 4 == 6 {
        to.family = AF_INET6;
        to.local = read(ip, IPV6_DESTINATION);
        to.remote = read(ip, IPV6_SOURCE);
    } else {
        to.family = AF_INET;
        to.local = widen(read(ip, IPV4_DESTINATION));
        to.remote = widen(read(ip, IPV4_SOURCE));
    }
    to.remote_port = u16::from_be(read(tcp, 0));
}

#[inline(always)]
fn retransmit(sk: Ptr, skb: Ptr) -> i32 {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    let socket = Object::new(sk, false);
    if !is_tcp(socket) {
        return 0;
    }
    let Some(subject) = scope::wanted(cgroup_of(socket), Kind::TcpRetransmit) else {
        return 0;
    };
    let known = SOCKETS.get_ptr_mut(&(sk as u64));
    if let Some(known) = known {
        // SAFETY: an element that is valid.
        unsafe { learn(known, socket, subject.cgroup_id) };
    }
    emit::fixed::<TcpRetransmit>(subject, |segment| {
        let cb = at(skb, offset!(skb_cb));
        let seq: u32 = read(cb, offset!(cb_seq));
        let end_seq: u32 = read(cb, offset!(cb_end_seq));
        // Eight flags; a second byte, which newer kernels have, holds none that matters.
        let flags: u8 = read(cb, offset!(cb_flags));
        // Both count as a byte.
        let controls = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        // SAFETY: `segment` is a zeroed payload, `known` an element that is valid.
        unsafe {
            if let Some(known) = known {
                (*segment).task = (*known).task;
            }
            fill_ends(&raw mut (*segment).ends, sk);
            (*segment).sequence = seq;
            (*segment).bytes = end_seq.wrapping_sub(seq).wrapping_sub(controls);
            (*segment).state = state_of(sk) as u16;
            (*segment).tcp_flags = flags.into();
        }
    });
    0
}

// Who accepts. struct sock *inet_csk_accept(struct sock *sk, …)
call::exit!(fexit__inet_csk_accept, kretprobe__inet_csk_accept => accepted);

#[inline(always)]
fn accepted(call: Call) -> i32 {
    let sk = call.value(offset!(accept_params)) as Ptr;
    if sk.is_null() {
        return 0;
    }
    let Some(known) = SOCKETS.get_ptr_mut(&(sk as u64)) else {
        return 0;
    };
    // SAFETY: an element that is valid; the helper has no preconditions.
    unsafe {
        if (*known).task.pid == 0 {
            fill_task(&raw mut (*known).task, call.task());
        }
    }
    0
}

/// A connect that a thread is in.
#[repr(C)]
#[derive(Clone, Copy)]
struct Connecting {
    sk: u64,
    address: u64,
    start_boot_ns: u64,
}

/// By thread. One that ends in the call leaves its entry behind.
#[map]
static CONNECTING: LruHashMap<u64, Connecting> = LruHashMap::with_max_entries(CONNECTING_MAX, 0);

// int tcp_v4_connect(struct sock *sk, struct sockaddr *uaddr, int addr_len)
call::entry!(fentry__tcp_v4_connect, kprobe__tcp_v4_connect => connecting);
call::entry!(fentry__tcp_v6_connect, kprobe__tcp_v6_connect => connecting);
call::exit!(fexit__tcp_v4_connect, kretprobe__tcp_v4_connect => connected);
call::exit!(fexit__tcp_v6_connect, kretprobe__tcp_v6_connect => connected);

#[inline(always)]
fn connecting(call: Call) -> i32 {
    let (sk, address) = (call.arg(0), call.arg(1));
    let Some(subject) = scope::wanted(cgroup_of(Object::new(sk as Ptr, false)), Kind::TcpConnect)
    else {
        return 0;
    };
    let connecting = Connecting {
        sk,
        address,
        start_boot_ns: now(),
    };
    // SAFETY: this helper has no preconditions.
    let thread = unsafe { bpf_get_current_pid_tgid() };
    // An LRU map makes room by itself, but the kernel may be at work on it at this moment.
    if CONNECTING.insert(&thread, &connecting, 0).is_err() {
        emit::missed(subject, Kind::TcpConnect);
    }
    0
}

/// The current thread is in a connect of this socket, whose return will be seen.
#[inline(always)]
fn is_in_connect(sk: Ptr) -> bool {
    // SAFETY: this helper has no preconditions; only this thread writes its entry.
    let connecting = unsafe { CONNECTING.get(&bpf_get_current_pid_tgid()) };
    connecting.is_some_and(|connecting| connecting.sk == sk as u64)
}

#[inline(always)]
fn connected(call: Call) -> i32 {
    let result = call.value(offset!(connect_params)) as i32;
    // SAFETY: this helper has no preconditions.
    let thread = unsafe { bpf_get_current_pid_tgid() };
    // SAFETY: only this thread writes its entry.
    let Some(&Connecting {
        sk,
        address,
        start_boot_ns,
    }) = (unsafe { CONNECTING.get(&thread) })
    else {
        return 0;
    };
    _ = CONNECTING.remove(&thread);
    if result >= 0 {
        return 0;
    }
    let sk = sk as Ptr;
    let Some(subject) = scope::wanted(cgroup_of(Object::new(sk, false)), Kind::TcpConnect) else {
        return 0;
    };
    emit::fixed::<TcpConnect>(subject, |connect| {
        // SAFETY: `connect` is a zeroed payload; the helper has no preconditions.
        unsafe {
            fill_task(&raw mut (*connect).task, call.task());
            fill_ends(&raw mut (*connect).ends, sk);
            fill_asked(&raw mut (*connect).ends, address as Ptr);
            (*connect).duration_ns = now() - start_boot_ns;
            (*connect).error = result.unsigned_abs();
        }
    });
    0
}

/// Writes whom a connect asked for: the socket has forgotten it, or never knew.
///
/// # Safety
/// `to` is valid.
#[inline(always)]
unsafe fn fill_asked(to: *mut Ends, address: Ptr) {
    // struct sockaddr_in and sockaddr_in6, of include/uapi/linux/in.h and in6.h
    const PORT: u32 = 2;
    const IPV4: u32 = 4;
    const IPV6: u32 = 8;
    // SAFETY: the caller's promise.
    let to = unsafe { &mut *to };
    let family: u16 = read(address, 0);
    if family == AF_INET6 {
        to.family = family;
        to.remote = read(address, IPV6);
    } else if family == AF_INET {
        to.family = family;
        to.remote = widen(read(address, IPV4));
    }
    to.remote_port = u16::from_be(read(address, PORT));
}

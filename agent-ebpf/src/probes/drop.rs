//! The sensor `drop`: packets that the kernel drops.
//!
//! Mostly nobody's context: whose packet it was is told by its socket, or by the network namespace that it was in.

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_NOEXIST,
    helpers::generated::bpf_get_current_task,
    macros::{btf_tracepoint, map, raw_tracepoint},
    maps::{Array, HashMap, PerCpuHashMap},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use dinle_ebpf::{
    Drop, DropCount, Kind, Payload as _, ScopeEntry,
    drop::{DropKey, DropSum, NETNS_MAX, SUMS_MAX},
    offsets::MISSING,
    tcp::Ends,
};

use crate::{
    emit,
    kernel::{Ptr, add, at, offset, read},
    scope::{self, Subject},
};

/// Drops by cgroup, reason, protocol and port.
#[map]
static DROP_COUNT: PerCpuHashMap<DropKey, DropSum> = PerCpuHashMap::with_max_entries(SUMS_MAX, 0);

/// Element 0 is the turn that drops are counted in. Written by the agent.
#[map]
static DROP_TURN: Array<u32> = Array::with_max_entries(1, 0);

/// Network namespace → the cgroup that stands for its pod.
#[map]
static NETNS: HashMap<u64, u64> = HashMap::with_max_entries(NETNS_MAX, 0);

/// Kinds for which pods are known by their network namespaces.
const KINDS: u64 = Kind::Drop.bit() | Kind::DropCount.bit();

// include/trace/events/skb.h: (struct sk_buff *skb, void *location), since 5.17 with a reason, since 6.11 with a socket
#[btf_tracepoint(function = "kfree_skb")]
pub fn tp_btf__kfree_skb(ctx: BtfTracePointContext) -> i32 {
    dropped(ctx.arg(0), ctx.arg(1), ctx.as_ptr())
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn raw_tracepoint__kfree_skb(ctx: RawTracePointContext) -> i32 {
    dropped(ctx.arg(0), ctx.arg(1), ctx.as_ptr())
}

/// What a program that runs over all tasks is given: `struct bpf_iter__task` of kernel/bpf/task_iter.c.
#[repr(C)]
struct TaskContext {
    meta: Ptr,
    task: Ptr,
}

/// Learns the network namespaces of tasks that run already.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub fn iter__task(ctx: *mut core::ffi::c_void) -> i32 {
    let task: Ptr = read(ctx, core::mem::offset_of!(TaskContext, task) as u32);
    // Behind the last one there is none. Threads are where their process is.
    if !task.is_null() && read::<Ptr>(task, offset!(task_group_leader)) == task {
        learn(task);
    }
    0
}

/// Takes note of the network namespace that a task is in.
#[inline(always)]
pub fn learn(task: Ptr) {
    let cgroups: Ptr = read(task, offset!(task_cgroups));
    let cgroup: Ptr = read(cgroups, offset!(css_set_dfl_cgrp));
    let Some(Wanted { subject, .. }) = wanted(cgroup) else {
        return;
    };
    let net = task_net(task);
    if net != host_net(task) {
        remember(net, cgroup, subject);
    }
}

#[inline(always)]
fn task_net(task: Ptr) -> Ptr {
    let namespaces: Ptr = read(task, offset!(task_nsproxy));
    // A task that has exited has none.
    if namespaces.is_null() {
        return namespaces;
    }
    read(namespaces, offset!(nsproxy_net))
}

/// The network namespace of the node itself: that of its first process. A pod with `hostNetwork` is in it too, and so it says nothing.
#[inline(always)]
fn host_net(task: Ptr) -> Ptr {
    let pid: Ptr = read(task, offset!(task_thread_pid));
    // The outermost PID namespace is that of element 0.
    let namespace: Ptr = read(at(pid, offset!(pid_numbers)), offset!(upid_ns));
    task_net(read(namespace, offset!(pid_namespace_reaper)))
}

/// What a network namespace is known by. The number of its inode is soon used again, so what the kernel salts its hashes with is added:
/// a random number of each. (Cookies, which are never used again, are there since 5.12 only.)
#[inline(always)]
fn key(net: Ptr) -> u64 {
    let salt: u32 = read(net, offset!(net_hash_mix));
    let number: u32 = read(net, offset!(net_inum));
    u64::from(salt) << 32 | u64::from(number)
}

/// Remembers that what happens in the network namespace is the pod's of this cgroup.
#[inline(always)]
fn remember(net: Ptr, cgroup: Ptr, subject: Subject) {
    if net.is_null() {
        return;
    }
    let key = key(net);
    // SAFETY: numbers; a read that races with an update sees the one or the other.
    if let Some(&known) = unsafe { NETNS.get(&key) }
        && let Some(ScopeEntry { slot, .. }) = scope::entry(known)
        // A process of the node that visits a pod's namespace does not take it over.
        && (slot == subject.slot || subject.slot == 0)
    {
        return;
    }
    // Its containers share it, so that it is the pod's.
    let pod = outermost(cgroup, subject);
    // Where there is no room, drops are told by their sockets. The agent sees that it is full, and says so.
    _ = NETNS.insert(&key, &pod, 0);
}

/// The outermost cgroup around that one that is of the same pod.
#[inline(always)]
fn outermost(cgroup: Ptr, subject: Subject) -> u64 {
    /// Below a pod there are containers, and what they divide themselves into.
    const DEPTH: usize = 6;
    let state = offset!(cgroup_self);
    let Subject {
        mut cgroup_id,
        slot,
    } = subject;
    // Slot 0 is of many.
    if slot == 0 || state == MISSING {
        return cgroup_id;
    }
    let mut cgroup = cgroup;
    for _ in 0..DEPTH {
        let parent: Ptr = read(at(cgroup, state), offset!(css_parent));
        if parent.is_null() {
            break;
        }
        // A cgroup's own state is embedded in it.
        cgroup = parent.cast::<u8>().wrapping_sub(state as usize).cast();
        let id = id(cgroup);
        match scope::entry(id) {
            Some(entry) if entry.slot == slot => cgroup_id = id,
            Some(_) | None => break,
        }
    }
    cgroup_id
}

#[inline(always)]
fn id(cgroup: Ptr) -> u64 {
    read(read(cgroup, offset!(cgroup_kn)), offset!(kernfs_id))
}

/// A pod of which drops are wanted.
#[derive(Clone, Copy)]
struct Wanted {
    subject: Subject,
    kinds: u64,
}

#[inline(always)]
fn wanted(cgroup: Ptr) -> Option<Wanted> {
    wanted_of(id(cgroup))
}

#[inline(always)]
fn wanted_of(cgroup_id: u64) -> Option<Wanted> {
    let ScopeEntry { kinds, slot, .. } = scope::entry(cgroup_id)?;
    (kinds & KINDS != 0).then_some(Wanted {
        subject: Subject { cgroup_id, slot },
        kinds,
    })
}

#[inline(always)]
fn dropped(skb: Ptr, location: u64, args: Ptr) -> i32 {
    /// Where the kernel gives no reason.
    const NONE: u32 = u32::MAX;
    /// SKB_NOT_DROPPED_YET of include/net/dropreason-core.h.
    const NOT_DROPPED: u32 = 0;
    let arg = |position: u32| -> u64 {
        if position == MISSING {
            return 0;
        }
        read(args, position * 8)
    };
    let mut reason = NONE;
    if offset!(kfree_skb_reason) != MISSING {
        reason = arg(offset!(kfree_skb_reason)) as u32;
        if reason == NOT_DROPPED || reason == offset!(skb_consumed) {
            return 0;
        }
    }
    let place = Place::of(skb, arg(offset!(kfree_skb_socket)) as Ptr);
    // What goes between processes of one machine (AF_UNIX, netlink) is no packet of a network.
    let ether_type = u16::from_be(read(skb, offset!(skb_protocol)));
    if ether_type == 0 && place.device.is_null() {
        return 0;
    }
    let Some((Wanted { subject, kinds }, attribution)) = place.whose() else {
        return 0;
    };
    let buffer = Buffer::of(skb);
    let bytes = buffer.bytes(skb);
    let Packet { ends, protocol } = Packet::read(buffer, ether_type);
    // The longer one first: the verifier walks what follows for each way that leads out of it.
    if kinds & Kind::Drop.bit() != 0 {
        emit::fixed::<Drop>(subject, |drop| {
            // SAFETY: `drop` is a zeroed payload.
            unsafe {
                (*drop).ends = ends;
                (*drop).location = location;
                (*drop).reason = reason;
                (*drop).bytes = bytes;
                (*drop).netns = read(place.net, offset!(net_inum));
                (*drop).ether_type = ether_type;
                (*drop).protocol = protocol;
                (*drop).attribution = attribution.into();
                if !place.device.is_null() {
                    (*drop).interface = read(place.device, offset!(netdev_name));
                }
            }
        });
    }
    if kinds & Kind::DropCount.bit() != 0 {
        let key = DropKey {
            cgroup_id: subject.cgroup_id,
            reason,
            ether_type,
            protocol,
            port: ends.remote_port,
            attribution,
            turn: DROP_TURN.get(0).copied().unwrap_or_default(),
        };
        count(subject, &key, bytes);
    }
    0
}

#[inline(always)]
fn count(subject: Subject, key: &DropKey, bytes: u32) {
    let mut sum = DROP_COUNT.get_ptr_mut(key);
    if sum.is_none() {
        // Another CPU may have been faster; then this one's part of the row is there too.
        _ = DROP_COUNT.insert(key, &DropSum::default(), BPF_NOEXIST as u64);
        sum = DROP_COUNT.get_ptr_mut(key);
    }
    let Some(sum) = sum else {
        return emit::missed(subject, DropCount::KIND);
    };
    emit::added(subject, DropCount::KIND);
    // SAFETY: `sum` is an element of a map.
    unsafe {
        add(&raw mut (*sum).count, 1);
        add(&raw mut (*sum).bytes, bytes.into());
    }
}

/// Where a packet was when it was dropped.
struct Place {
    /// A socket that can be asked for its cgroup, or null.
    socket: Ptr,
    /// Null where that is not known.
    device: Ptr,
    /// Network namespace; null where that is not known.
    net: Ptr,
}

impl Place {
    /// How a pod is known: [`Drop::attribution`].
    const BY_SOCKET: u16 = 1;
    /// The same.
    const BY_NETWORK_NAMESPACE: u16 = 2;

    #[inline(always)]
    fn of(skb: Ptr, receiver: Ptr) -> Self {
        let mut socket = receiver;
        if socket.is_null() {
            socket = read(skb, offset!(skb_sk));
        }
        let mut device: Ptr = read(skb, offset!(skb_dev));
        let mut net: Ptr = core::ptr::null();
        if !device.is_null() {
            net = read(device, offset!(netdev_net));
        }
        if !socket.is_null() {
            let own: Ptr = read(socket, offset!(socket_net));
            // In a socket's queue the interface's place is taken by something else, which may look like an address.
            if net != own {
                device = core::ptr::null();
            }
            net = own;
            // Neither the request for a connection nor what is left of one is a whole socket (sk_fullsock of include/net/sock.h).
            const TIME_WAIT: u8 = 6;
            const NEW_SYN_RECV: u8 = 12;
            let state: u8 = read(socket, offset!(socket_state));
            if state == TIME_WAIT || state == NEW_SYN_RECV {
                socket = core::ptr::null();
            }
        }
        Self {
            socket,
            device,
            net,
        }
    }

    /// Whose packet it was, if drops are wanted of them, and how that is known.
    #[inline(always)]
    fn whose(&self) -> Option<(Wanted, u16)> {
        let Self { socket, net, .. } = *self;
        if !socket.is_null() {
            let cgroup: Ptr = read(socket, offset!(socket_cgroup));
            // Where cgroup v1 has marked the socket (before 5.15), bit 0 is set, and the rest is no address.
            if !cgroup.is_null()
                && cgroup as u64 & 1 == 0
                && let Some(found) = wanted(cgroup)
            {
                // SAFETY: this helper has no preconditions.
                let task = unsafe { bpf_get_current_task() } as Ptr;
                // SAFETY: numbers; a read that races with an update sees the one or the other.
                if unsafe { NETNS.get(&key(net)) }.is_none() && net != host_net(task) {
                    remember(net, cgroup, found.subject);
                }
                return Some((found, Self::BY_SOCKET));
            }
        }
        if net.is_null() {
            return None;
        }
        // SAFETY: numbers; a read that races with an update sees the one or the other.
        if let Some(&known) = unsafe { NETNS.get(&key(net)) }
            && let Some(found) = wanted_of(known)
        {
            return Some((found, Self::BY_NETWORK_NAMESPACE));
        }
        // The namespace is not known yet. What runs here may have been interrupted by any packet; but if it is in that namespace, the
        // namespace is its pod's.
        // SAFETY: this helper has no preconditions.
        let task = unsafe { bpf_get_current_task() } as Ptr;
        if task_net(task) != net {
            return None;
        }
        learn(task);
        // SAFETY: as above.
        let known = *unsafe { NETNS.get(&key(net)) }?;
        Some((wanted_of(known)?, Self::BY_NETWORK_NAMESPACE))
    }
}

/// What a packet's headers say.
struct Packet {
    ends: Ends,
    protocol: u16,
}

impl Packet {
    #[inline(always)]
    fn read(buffer: Buffer, ether_type: u16) -> Self {
        /// include/uapi/linux/if_ether.h
        const ETH_P_IP: u16 = 0x0800;
        const ETH_P_IPV6: u16 = 0x86dd;
        match ether_type {
            ETH_P_IP => Self::ipv4(buffer),
            ETH_P_IPV6 => Self::ipv6(buffer),
            _ => Self::NONE,
        }
    }

    const NONE: Self = Self {
        ends: Ends {
            local: [0; 16],
            remote: [0; 16],
            local_port: 0,
            remote_port: 0,
            family: 0,
            reserved: 0,
        },
        protocol: 0,
    };

    #[inline(always)]
    fn ipv4(buffer: Buffer) -> Self {
        const AF_INET: u16 = 2;
        const FRAGMENT_OFFSET: u16 = 0x1fff;
        let header: [u8; 20] = buffer.read(buffer.network);
        let mut packet = Self::NONE;
        if header[0] >> 4 != 4 {
            return packet;
        }
        packet.protocol = header[9].into();
        packet.ends.family = AF_INET;
        for i in 0..4 {
            packet.ends.local[i] = header[12 + i];
            packet.ends.remote[i] = header[16 + i];
        }
        if u16::from_be_bytes([header[6], header[7]]) & FRAGMENT_OFFSET == 0 {
            let length = u32::from(header[0] & 0xf) * 4;
            packet.ports(buffer, buffer.network.wrapping_add(length));
        }
        packet
    }

    #[inline(always)]
    fn ipv6(buffer: Buffer) -> Self {
        const AF_INET6: u16 = 10;
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const FRAGMENT: u8 = 44;
        const DESTINATION: u8 = 60;
        /// More than these no sender uses.
        const EXTENSIONS: usize = 4;
        let header: [u8; 40] = buffer.read(buffer.network);
        let mut packet = Self::NONE;
        if header[0] >> 4 != 6 {
            return packet;
        }
        packet.ends.family = AF_INET6;
        packet.ends.local = read_16(&header, 8);
        packet.ends.remote = read_16(&header, 24);
        let mut next = header[6];
        let mut transport = buffer.network.wrapping_add(40);
        let mut first = true;
        for _ in 0..EXTENSIONS {
            if next != HOP_BY_HOP && next != ROUTING && next != FRAGMENT && next != DESTINATION {
                break;
            }
            let extension: [u8; 4] = buffer.read(transport);
            if next == FRAGMENT {
                first = u16::from_be_bytes([extension[2], extension[3]]) & !7 == 0;
                transport = transport.wrapping_add(8);
            } else {
                transport = transport.wrapping_add((u32::from(extension[1]) + 1) * 8);
            }
            next = extension[0];
        }
        packet.protocol = next.into();
        if first {
            packet.ports(buffer, transport);
        }
        packet
    }

    /// Of protocols whose header begins with ports.
    #[inline(always)]
    fn ports(&mut self, buffer: Buffer, transport: u32) {
        const TCP: u16 = 6;
        const UDP: u16 = 17;
        const DCCP: u16 = 33;
        const SCTP: u16 = 132;
        const UDP_LITE: u16 = 136;
        let Self { ends, protocol } = self;
        if matches!(*protocol, TCP | UDP | DCCP | SCTP | UDP_LITE) {
            let ports: [u8; 4] = buffer.read(transport);
            ends.local_port = u16::from_be_bytes([ports[0], ports[1]]);
            ends.remote_port = u16::from_be_bytes([ports[2], ports[3]]);
        }
    }
}

#[inline(always)]
fn read_16(header: &[u8; 40], from: usize) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = header[from + i];
    }
    bytes
}

/// What a packet's buffer holds of it.
#[derive(Clone, Copy)]
struct Buffer {
    head: Ptr,
    /// Places in it, counted from its begin: where the packet begins for whoever has it now, the header of IP, and the end.
    data: u32,
    network: u32,
    tail: u32,
}

impl Buffer {
    #[inline(always)]
    fn of(skb: Ptr) -> Self {
        let head: Ptr = read(skb, offset!(skb_head));
        let mut network = u32::from(read::<u16>(skb, offset!(skb_network_header)));
        // Early on its way in a packet begins with that header, and nobody has taken note of it.
        let data: Ptr = read(skb, offset!(skb_data));
        let data = (data as u64).wrapping_sub(head as u64) as u32;
        if network == 0 || network == u32::from(u16::MAX) {
            network = data;
        }
        Self {
            head,
            data,
            network,
            tail: read(skb, offset!(skb_tail)),
        }
    }

    /// How long the packet is from the header of IP on, which layers above have taken off, and those below have put another before.
    #[inline(always)]
    fn bytes(self, skb: Ptr) -> u32 {
        let Self { data, network, .. } = self;
        let len: u32 = read(skb, offset!(skb_len));
        len.wrapping_add(data).wrapping_sub(network)
    }

    /// Bytes from a place on; zeros for what the buffer does not hold.
    #[inline(always)]
    fn read<const N: usize>(self, from: u32) -> [u8; N] {
        let Self { head, tail, .. } = self;
        if from > tail || tail - from < N as u32 {
            return [0; N];
        }
        read(head, from)
    }
}

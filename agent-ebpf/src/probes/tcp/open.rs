//! Sessions that go on: those that were open before somebody listened, and reports at intervals.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    macros::{map, raw_tracepoint},
    maps::Array,
    programs::RawTracePointContext,
};
use dinle_ebpf::{Kind, TcpSession, offsets::MISSING, tcp::SHARES};

use super::{
    KINDS, OPEN, SESSION_INTERVAL, SOCKETS, SYN_RECV, SYN_SENT, UNKNOWN, cgroup_of, is_tcp, now,
    state_of, tell,
};
use crate::{
    kernel::{Object, Ptr, offset, read},
    scope,
};

/// What an iterator over TCP sockets is called with: `struct bpf_iter__tcp`.
#[repr(C)]
struct Socketed {
    meta: *const c_void,
    sk: Ptr,
}

/// Called for what `SOCKETS` remembers at an address when it may be time: reports on a session that goes on.
#[raw_tracepoint]
pub fn run__report_session(ctx: RawTracePointContext) -> i32 {
    let address: u64 = ctx.arg(0);
    let Some(known) = SOCKETS.get_ptr_mut(&address) else {
        return 0;
    };
    // SAFETY: an element that is valid.
    let told = unsafe { (*known).told_boot_ns };
    let sk = address as Ptr;
    let state = state_of(sk);
    if (OPEN & (1 << (state & 31))) == 0 || !is_tcp(Object::new(sk, false)) {
        // It ended while nobody listened.
        _ = SOCKETS.remove(&address);
        return 0;
    }
    let Some(&interval) = SESSION_INTERVAL.get(0) else {
        return 0;
    };
    let now = now();
    if state == SYN_SENT || state == SYN_RECV || now < told + interval {
        return 0;
    }
    let Some(subject) = scope::wanted(cgroup_of(Object::new(sk, false)), Kind::TcpSession) else {
        return 0;
    };
    // SAFETY: an element that is valid. At worst, when the session ends at this moment, it is another's by now.
    unsafe {
        (*known).told_boot_ns = now;
        tell(subject, sk, state, 0, TcpSession::OPEN, known);
    }
    0
}

/// Where the kernel keeps sockets that are open.
#[repr(C)]
#[derive(Clone, Copy)]
struct Table {
    /// Its first element.
    buckets: u64,
    /// How many it has, less one.
    mask: u64,
}

#[map]
static SOCKET_TABLE: Array<Table> = Array::with_max_entries(1, 0);

/// Over the TCP sockets of the agent's own network namespace, of which it has some: finds the table, which all namespaces share.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub fn iter__tcp(ctx: *mut c_void) -> i32 {
    let ctx: *const Socketed = ctx.cast();
    // SAFETY: the kernel calls this with such a struct.
    let sk = unsafe { (*ctx).sk };
    if sk.is_null() {
        return 0;
    }
    let hashinfo: Ptr = read(read(sk, offset!(sock_net)), offset!(net_hashinfo));
    let Some(table) = SOCKET_TABLE.get_ptr_mut(0) else {
        return 0;
    };
    let buckets: u64 = read(hashinfo, offset!(hashinfo_ehash));
    if buckets != 0 {
        // SAFETY: an element of an array is valid, and all writers write the same.
        unsafe {
            table.write(Table {
                buckets,
                mask: read::<u32>(hashinfo, offset!(hashinfo_mask)).into(),
            });
        }
    }
    0
}

/// Called with each number below `SHARES`: takes note of sessions that are open already, so that they can be reported on. The table holds
/// the sockets of all network namespaces, while the kernel's own iterator stops at the agent's.
#[raw_tracepoint]
pub fn run__find_sessions(ctx: RawTracePointContext) -> i32 {
    /// Steps from bucket to socket to bucket in one share. The table has at least as many buckets as there usually are sockets,
    /// and at most 524,288 of them (thash_entries of net/ipv4/tcp.c): 32 in a share.
    const STEPS: u32 = 72;
    let share: u64 = ctx.arg(0);
    let size = offset!(ehash_bucket_size);
    let node_at = offset!(sock_nulls_node);
    if size == MISSING || node_at == MISSING {
        return 0;
    }
    let Some(&Table { buckets, mask }) = SOCKET_TABLE.get(0) else {
        return 0;
    };
    let mut bucket = share;
    let mut node: u64 = 1;
    for _ in 0..STEPS {
        // The end of a bucket's list is an odd number: include/linux/list_nulls.h.
        if node & 1 != 0 || node == 0 {
            if bucket > mask || buckets == 0 {
                break;
            }
            node = read((buckets + bucket * u64::from(size)) as Ptr, 0);
            bucket += u64::from(SHARES);
            continue;
        }
        note((node - u64::from(node_at)) as Ptr);
        node = read(node as Ptr, 0);
    }
    0
}

/// Remembers a session that was open before.
#[inline(always)]
fn note(sk: Ptr) {
    let state = state_of(sk);
    if OPEN & (1 << (state & 31)) == 0 || !is_tcp(Object::new(sk, false)) {
        return;
    }
    if scope::wanted_any(cgroup_of(Object::new(sk, false)), KINDS).is_none() {
        return;
    }
    let key = sk as u64;
    if let Some(unknown) = UNKNOWN.get(0)
        && SOCKETS.insert(&key, unknown, BPF_NOEXIST as u64).is_ok()
        && let Some(known) = SOCKETS.get_ptr_mut(&key)
    {
        // SAFETY: an element that is valid.
        unsafe { (*known).told_boot_ns = now() };
    }
}

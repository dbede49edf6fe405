//! Where things lie in the kernel's structs. Filled from the running kernel's BTF when the programs are loaded, never at
//! build time; read-only from then on, so that the verifier takes each as a constant and prunes the branches of what is missing.

/// An offset that this kernel does not have.
pub const MISSING: u32 = u32::MAX;

/// Declares each value once: its name, and where BTF has it. Alternatives are tried in order.
///
/// * `"task_struct.mm"`: offset in bytes of a member, anonymous structs and unions seen through.
/// * `"size:upid"`: size in bytes of a type.
/// * `"arg:sched_process_exit:group_dead"`: position of a tracepoint's argument by its name, counted from 0. The names are
///   those of the function `__traceiter_sched_process_exit`, whose first parameter `__data` does not count.
/// * `"param:do_truncate:dentry"`: position of a function's parameter by its name, counted from 0.
/// * `"params:do_truncate"`: how many parameters a function has.
/// * `"enumerator:bpf_func_id:BPF_FUNC_task_pt_regs"`: value of an enumerator.
/// * `"param:vfs_unlink:dentry"`: position of a function's parameter by its name, counted from 0.
/// * `"params:vfs_unlink"`: how many parameters a function has.
/// * `"enumerator:skb_drop_reason:SKB_CONSUMED"`: value of an enum's member.
///
/// With `+8` behind it a value is so much larger.
macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident = $($path:literal)|+;)*) => {
        /// The values, one field each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(C)]
        pub struct Offsets { $($(#[$doc])* pub $name: u32,)* }

        impl Offsets {
            /// Nothing found.
            pub const MISSING: Self = Self { $($name: MISSING,)* };

            /// Each field's name and the places in BTF to look for it.
            pub const PATHS: &'static [(&'static str, &'static [&'static str])] =
                &[$((stringify!($name), &[$($path),+]),)*];

            /// Asks `find` for each path until one is there.
            pub fn resolve(find: impl Fn(&str) -> Option<u32>) -> Self {
                Self { $($name: [$($path),+].into_iter().find_map(&find).unwrap_or(MISSING),)* }
            }

            /// The values in the order of [`Self::PATHS`].
            pub const fn values(&self) -> [u32; Self::PATHS.len()] {
                [$(self.$name),*]
            }
        }
    };
}

offsets! {
    /// A process's parent.
    task_real_parent = "task_struct.real_parent";
    /// Process id.
    task_tgid = "task_struct.tgid";
    /// The thread that stands for its process.
    task_group_leader = "task_struct.group_leader";
    /// When the thread started. Called real_start_time before 5.5.
    task_start_boottime = "task_struct.start_boottime" | "task_struct.real_start_time";
    /// Command name.
    task_comm = "task_struct.comm";
    /// Memory.
    task_mm = "task_struct.mm";
    /// Working directory and root.
    task_fs = "task_struct.fs";
    /// What the threads of a process share.
    task_signal = "task_struct.signal";
    /// How the thread ended.
    task_exit_code = "task_struct.exit_code";
    /// Whether its parent may know that it ended.
    task_exit_state = "task_struct.exit_state";
    /// The thread's `struct pid`.
    task_thread_pid = "task_struct.thread_pid";
    /// Depth of the PID namespace.
    pid_level = "pid.level";
    /// Ids by depth of namespace.
    pid_numbers = "pid.numbers";
    /// Size of an element of those.
    upid_size = "size:upid";
    /// The id in an element.
    upid_nr = "upid.nr";
    /// Beginning of the arguments.
    mm_arg_start = "mm_struct.arg_start";
    /// End of the arguments.
    mm_arg_end = "mm_struct.arg_end";
    /// Path given to execve.
    bprm_filename = "linux_binprm.filename";
    /// Threads that have not exited.
    signal_live = "signal_struct.live";
    /// `SIGNAL_GROUP_EXIT` and others.
    signal_flags = "signal_struct.flags";
    /// Status of a process that exits as a whole.
    signal_group_exit_code = "signal_struct.group_exit_code";
    /// Whether the exit is the process's: newer kernels tell it (6.16).
    exit_group_dead = "arg:sched_process_exit:group_dead";
    /// Root directory.
    fs_root = "fs_struct.root";
    /// Working directory.
    fs_pwd = "fs_struct.pwd";
    /// A path's mount.
    path_mnt = "path.mnt";
    /// A path's entry.
    path_dentry = "path.dentry";
    /// An entry's parent.
    dentry_parent = "dentry.d_parent";
    /// An entry's name.
    dentry_name = "dentry.d_name.name";
    /// A mount's root, from its `struct vfsmount`.
    vfsmount_root = "vfsmount.mnt_root";
    /// Where a `struct vfsmount` lies in its `struct mount`.
    mount_mnt = "mount.mnt";
    /// The mount that a mount is mounted on.
    mount_parent = "mount.mnt_parent";
    /// The entry that a mount is mounted on.
    mount_mountpoint = "mount.mnt_mountpoint";
    /// A cgroup's own subsystem state.
    cgroup_self = "cgroup.self";
    /// A cgroup's entry in cgroupfs.
    cgroup_kn = "cgroup.kn";
    /// A cgroup's hierarchy.
    cgroup_root = "cgroup.root";
    /// Number of a hierarchy: 0 for cgroup v2.
    cgroup_root_id = "cgroup_root.hierarchy_id";
    /// `PF_*` of a task.
    task_flags = "task_struct.flags";
    /// Open files.
    task_files = "task_struct.files";
    /// What a task has to do with io_uring; null for nothing.
    task_io_uring = "task_struct.io_uring";
    /// x86-64: whether the task is in a system call of 32 bits.
    task_status = "task_struct.thread_info.status";
    /// A task's kernel stack: at its end are the registers of user mode.
    task_stack = "task_struct.stack";
    /// Size of those.
    regs_size = "size:pt_regs";
    /// There only where a helper tells where they are (5.15).
    helper_task_pt_regs = "enumerator:bpf_func_id:BPF_FUNC_task_pt_regs";
    /// There only where a helper gives the current task with its type (5.11).
    helper_current_task_btf = "enumerator:bpf_func_id:BPF_FUNC_get_current_task_btf";
    /// The table of open files.
    files_fdt = "files_struct.fdt";
    /// How many places it has.
    fdt_max = "fdtable.max_fds";
    /// Its places.
    fdt_fd = "fdtable.fd";
    /// Where an open file is.
    file_path = "file.f_path";
    /// Its inode.
    file_inode = "file.f_inode";
    /// `FMODE_*` of an open file.
    file_mode = "file.f_mode";
    /// An entry's inode.
    dentry_inode = "dentry.d_inode";
    /// Number of an inode.
    inode_number = "inode.i_ino";
    /// Bytes of a file.
    inode_size = "inode.i_size";
    /// Type and permissions.
    inode_mode = "inode.i_mode";
    /// Its filesystem.
    inode_sb = "inode.i_sb";
    /// A filesystem's device.
    sb_device = "super_block.s_dev";
    /// Namespace of a mount.
    mount_ns = "mount.mnt_ns";
    /// A name in the kernel's memory.
    filename_name = "filename.name";
    /// `O_*` of an open under way.
    open_flag = "open_flags.open_flag";
    /// Permissions of a file that it may make.
    open_mode = "open_flags.mode";
    /// Arguments of do_filp_open, called do_file_open since 7.1.
    open_dfd = "param:do_filp_open:dfd" | "param:do_file_open:dfd";
    /// The name.
    open_pathname = "param:do_filp_open:pathname" | "param:do_file_open:pathname";
    /// How to open.
    open_op = "param:do_filp_open:op" | "param:do_file_open:op";
    /// How many there are.
    open_params = "params:do_filp_open" | "params:do_file_open";
    /// How many parameters do_unlinkat has, or filename_unlinkat.
    unlink_params = "params:do_unlinkat" | "params:filename_unlinkat";
    /// How many do_rmdir has, or filename_rmdir.
    rmdir_params = "params:do_rmdir" | "params:filename_rmdir";
    /// How many do_renameat2 has, or filename_renameat2.
    rename_params = "params:do_renameat2" | "params:filename_renameat2";
    /// Of do_truncate.
    truncate_dentry = "param:do_truncate:dentry";
    /// The new size.
    truncate_length = "param:do_truncate:length";
    /// `ATTR_*`.
    truncate_attrs = "param:do_truncate:time_attrs";
    /// The open file, or null.
    truncate_filp = "param:do_truncate:filp";
    /// How many there are.
    truncate_params = "params:do_truncate";
    /// First argument of a function, in the registers.
    regs_0 = "pt_regs.di" | "pt_regs.regs";
    /// The second.
    regs_1 = "pt_regs.si" | "pt_regs.regs+8";
    /// The third.
    regs_2 = "pt_regs.dx" | "pt_regs.regs+16";
    /// The fourth.
    regs_3 = "pt_regs.cx" | "pt_regs.regs+24";
    /// The fifth.
    regs_4 = "pt_regs.r8" | "pt_regs.regs+32";
    /// The sixth.
    regs_5 = "pt_regs.r9" | "pt_regs.regs+40";
    /// What a function returns.
    regs_return = "pt_regs.ax" | "pt_regs.regs";
    /// First argument of a system call: at its return another register may have its place.
    syscall_0 = "pt_regs.di" | "pt_regs.orig_x0";
    /// The fourth.
    syscall_3 = "pt_regs.r10" | "pt_regs.regs+24";
    /// Number of a system call.
    syscall_number = "pt_regs.orig_ax" | "pt_regs.syscallno";
    /// Parent of a subsystem state.
    css_parent = "cgroup_subsys_state.parent";
    /// The id.
    kernfs_id = "kernfs_node.id";
    /// A socket's cgroup.
    sock_cgroup = "sock.sk_cgrp_data";
    /// There only where that begins with a pointer, and never holds anything else (5.15).
    sock_cgroup_pointer = "sock_cgroup_data.cgroup";
    /// IP protocol of a socket.
    sock_protocol = "sock.sk_protocol";
    /// Error of a socket.
    sock_err = "sock.sk_err";
    /// Whether a task has locked a socket.
    sock_owned = "sock.sk_lock.owned";
    /// Directions that a socket was shut in.
    sock_shutdown = "sock.sk_shutdown";
    /// `SOCK_*` of include/net/sock.h, as bits.
    sock_flags = "sock_common.skc_flags";
    /// Address family of a socket.
    sock_family = "sock_common.skc_family";
    /// State of a socket.
    sock_state = "sock_common.skc_state";
    /// Local address.
    sock_local = "sock_common.skc_rcv_saddr";
    /// Remote address.
    sock_remote = "sock_common.skc_daddr";
    /// Local address of IPv6.
    sock_local6 = "sock_common.skc_v6_rcv_saddr";
    /// Remote address of IPv6.
    sock_remote6 = "sock_common.skc_v6_daddr";
    /// Remote port, in network byte order.
    sock_remote_port = "sock_common.skc_dport";
    /// A socket's network namespace.
    sock_net = "sock_common.skc_net";
    /// A socket's place in the hash table of those that are open.
    sock_nulls_node = "sock_common.skc_nulls_node";
    /// Local port, in network byte order. Unlike `skc_num` it outlives the port's release at the end.
    inet_sport = "inet_sock.inet_sport";
    /// Payload bytes sent, again ones included.
    tcp_bytes_sent = "tcp_sock.bytes_sent";
    /// Payload bytes sent again.
    tcp_bytes_retrans = "tcp_sock.bytes_retrans";
    /// Payload bytes received, and one for a FIN.
    tcp_bytes_received = "tcp_sock.bytes_received";
    /// Segments sent again.
    tcp_total_retrans = "tcp_sock.total_retrans";
    /// Eight times the smoothed round trip time.
    tcp_srtt = "tcp_sock.srtt_us";
    /// TCP's hash tables, in a network namespace.
    net_hashinfo = "net.ipv4.tcp_death_row.hashinfo";
    /// The one of sockets that are open.
    hashinfo_ehash = "inet_hashinfo.ehash";
    /// Its size, less one.
    hashinfo_mask = "inet_hashinfo.ehash_mask";
    /// Size of an element of it.
    ehash_bucket_size = "size:inet_ehash_bucket";
    /// What a protocol keeps of a packet.
    skb_cb = "sk_buff.cb";
    /// A packet's buffer.
    skb_head = "sk_buff.head";
    /// Place of the TCP header in it.
    skb_transport = "sk_buff.transport_header";
    /// Place of the IP header in it.
    skb_network = "sk_buff.network_header";
    /// First sequence number, in what TCP keeps.
    cb_seq = "tcp_skb_cb.seq";
    /// Sequence number behind the last.
    cb_end_seq = "tcp_skb_cb.end_seq";
    /// TCP flags.
    cb_flags = "tcp_skb_cb.tcp_flags";
    /// Why a RST is sent (6.10).
    reset_reason = "arg:tcp_send_reset:reason";
    /// Error of a segment's sending (6.18): before, only those that were sent were told.
    retransmit_err = "arg:tcp_retransmit_skb:err";
    /// Parameters of `inet_csk_accept`.
    accept_params = "params:inet_csk_accept";
    /// Parameters of `tcp_v4_connect`; `tcp_v6_connect` has the same.
    connect_params = "params:tcp_v4_connect";

    // The sensor `block`.
    /// The cgroups that a thread is in.
    task_cgroups = "task_struct.cgroups";
    /// The one of cgroup v2 among them.
    css_set_dfl_cgrp = "css_set.dfl_cgrp";
    /// A cgroup's depth: 0 for the root.
    cgroup_level = "cgroup.level";
    /// A cgroup's ancestors by their depth, itself included. Since 6.1.
    cgroup_ancestors = "cgroup.ancestors";
    /// Their ids. Before 6.1.
    cgroup_ancestor_ids = "cgroup.ancestor_ids";
    /// The cgroup of a subsystem state.
    css_cgroup = "cgroup_subsys_state.cgroup";
    /// Position of the bio: before 5.11 the queue comes first.
    getrq_bio = "arg:block_getrq:bio";
    /// Position of the request: before 5.11 the queue comes first.
    issue_rq = "arg:block_rq_issue:rq";
    /// The same.
    merge_rq = "arg:block_rq_merge:rq";
    /// A bio's operation and flags.
    bio_opf = "bio.bi_opf";
    /// The next bio of the same request.
    bio_next = "bio.bi_next";
    /// What a bio has to do with its cgroup and disk.
    bio_blkg = "bio.bi_blkg";
    /// The cgroup's state of the controller `io`.
    blkg_blkcg = "blkcg_gq.blkcg";
    /// Where a `struct cgroup_subsys_state` lies in that.
    blkcg_css = "blkcg.css";
    /// A request's first bio.
    request_bio = "request.bio";
    /// What of it is not done yet, in bytes.
    request_data_len = "request.__data_len";
    /// Where that begins.
    request_sector = "request.__sector";
    /// When it was made: not set where a disk counts no statistics.
    request_start_time = "request.start_time_ns";
    /// Its queue.
    request_queue = "request.q";
    /// Its disk. Before 5.17.
    request_disk = "request.rq_disk";
    /// A queue's disk. Since 5.17.
    queue_disk = "request_queue.disk";
    /// Number of a disk's driver.
    disk_major = "gendisk.major";
    /// Number of a disk at its driver.
    disk_first_minor = "gendisk.first_minor";
    /// Its name.
    disk_name = "gendisk.disk_name";
    /// Why a packet was dropped, as an argument (5.17).
    kfree_skb_reason = "arg:kfree_skb:reason";
    /// The socket that it came in for, as an argument (6.11).
    kfree_skb_socket = "arg:kfree_skb:rx_sk" | "arg:kfree_skb:rx_sk__nullable";
    /// The reason of what was no drop but used up (6.4).
    skb_consumed = "enumerator:skb_drop_reason:SKB_CONSUMED";
    /// A packet's socket.
    skb_sk = "sk_buff.sk";
    /// A packet's interface. While the packet waits in a socket, other things are there.
    skb_dev = "sk_buff.dev";
    /// Bytes of a packet.
    skb_len = "sk_buff.len";
    /// Ethernet protocol.
    skb_protocol = "sk_buff.protocol";
    /// Where a packet begins in it.
    skb_data = "sk_buff.data";
    /// Where what the buffer holds of the packet ends, counted from its begin.
    skb_tail = "sk_buff.tail";
    /// Where the header of IP begins, counted likewise.
    skb_network_header = "sk_buff.network_header";
    /// Name of an interface.
    netdev_name = "net_device.name";
    /// Network namespace of an interface.
    netdev_net = "net_device.nd_net.net";
    /// Number of a network namespace.
    net_inum = "net.ns.inum";
    /// A random one.
    net_hash_mix = "net.hash_mix";
    /// Network namespace of a socket.
    socket_net = "sock_common.skc_net.net";
    /// State of a socket.
    socket_state = "sock_common.skc_state";
    /// The cgroup in which a socket was made.
    socket_cgroup = "sock.sk_cgrp_data";
    /// A task's namespaces.
    task_nsproxy = "task_struct.nsproxy";
    /// The network's among them.
    nsproxy_net = "nsproxy.net_ns";
    /// PID namespace of an element of ids.
    upid_ns = "upid.ns";
    /// First process of a PID namespace.
    pid_namespace_reaper = "pid_namespace.child_reaper";
}

/// Numbers of system calls, which differ between architectures; [`MISSING`] for those that an architecture does not have.
macro_rules! syscalls {
    ($($name:ident),*) => {
        /// The numbers.
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable,
        )]
        #[repr(C)]
        #[expect(missing_docs, reason = "each is named after its system call")]
        pub struct Syscalls { $(pub $name: u32,)* }

        impl Syscalls {
            /// None.
            pub const MISSING: Self = Self { $($name: MISSING,)* };
        }
    };
}

syscalls!(
    open,
    creat,
    openat,
    openat2,
    unlink,
    unlinkat,
    rmdir,
    rename,
    renameat,
    renameat2,
    truncate,
    ftruncate,
    execve,
    execveat,
    io_uring_enter
);

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
    /// Where a packet's buffer begins.
    skb_head = "sk_buff.head";
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
    /// A task's cgroups.
    task_cgroups = "task_struct.cgroups";
    /// That of cgroup v2 among them.
    css_set_cgroup = "css_set.dfl_cgrp";
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

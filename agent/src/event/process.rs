//! Frames of the sensor `process`.

use dinle_ebpf::{Exec, Exit, Fork, Task};
use dinle_proto::v1::{self, event::Detail};

use super::{Clock, DecodeError, Decoded, arguments, components, parts, read, text};

pub(super) fn exec(body: &[u8]) -> Result<Decoded, DecodeError> {
    let (exec, tail) = read::<Exec>(body)?;
    let Exec {
        task,
        args_bytes,
        filename_len,
        args_len,
        cwd_len,
        flags,
        reserved: _,
    } = exec;
    let [filename, args, cwd] = parts::<Exec, 3>(tail, [filename_len, args_len, cwd_len])?;
    let detail = v1::Exec {
        filename: text(filename),
        args: arguments(args),
        args_truncated: args_bytes > u32::from(args_len),
        args_bytes,
        cwd: directory(cwd, flags),
        cwd_truncated: flags & Exec::CWD_CUT != 0,
        filename_truncated: flags & Exec::FILENAME_CUT != 0,
    };
    Ok((Some(task), Detail::Exec(detail)))
}

pub(super) fn exit(body: &[u8], boot_ns: u64) -> Result<Decoded, DecodeError> {
    let (
        Exit {
            task,
            status,
            reserved: _,
        },
        tail,
    ) = read::<Exit>(body)?;
    let [] = parts::<Exit, 0>(tail, [])?;
    let lived = std::time::Duration::from_nanos(boot_ns.saturating_sub(task.start_boot_ns));
    let detail = v1::Exit {
        code: status >> 8 & 0xff,
        signal: status & 0x7f,
        core_dumped: status & 0x80 != 0,
        // Nanoseconds since boot fit by far.
        duration: prost_types::Duration::try_from(lived).ok(),
    };
    Ok((Some(task), Detail::Exit(detail)))
}

pub(super) fn fork(body: &[u8]) -> Result<Decoded, DecodeError> {
    let (fork, tail) = read::<Fork>(body)?;
    let [] = parts::<Fork, 0>(tail, [])?;
    let Fork {
        task,
        child_start_boot_ns,
        child_pid,
        child_pod_pid,
    } = fork;
    let detail = v1::Fork {
        child_pid,
        child_pod_pid,
        child_start_boot_ns,
    };
    Ok((Some(task), Detail::Fork(detail)))
}

/// The contract's view of a task.
pub(super) fn process(task: &Task, clock: Clock) -> v1::Process {
    let Task {
        start_boot_ns,
        pid,
        tid,
        pod_pid,
        pod_tid,
        ppid,
        uid,
        gid,
        ancestors_len,
        comm,
        parent_comm,
        ancestors,
    } = task;
    v1::Process {
        pid: *pid,
        tid: *tid,
        pod_pid: *pod_pid,
        pod_tid: *pod_tid,
        ppid: *ppid,
        parent_comm: text(parent_comm),
        comm: text(comm),
        uid: *uid,
        gid: *gid,
        start_boot_ns: *start_boot_ns,
        start_time: Some(clock.at(*start_boot_ns)),
        ancestors: ancestors[..ancestors.len().min(*ancestors_len as usize)].to_vec(),
    }
}

/// A working directory of its components.
fn directory(bytes: &[u8], flags: u16) -> String {
    if flags & (Exec::CWD_KNOWN | Exec::CWD_CUT) == 0 {
        return String::new();
    }
    let mut path = String::new();
    for name in components(bytes).rev() {
        path.push('/');
        path.push_str(&String::from_utf8_lossy(name));
    }
    if path.is_empty() { "/".into() } else { path }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use dinle_ebpf::{Header, Kind};
    use zerocopy::IntoBytes as _;

    pub(in crate::event) fn header(kind: Kind) -> Header {
        Header {
            boot_ns: 5_000_000_000,
            cgroup_id: 7,
            slot: 3,
            kind: kind as u16,
            reserved: 0,
        }
    }

    pub(in crate::event) fn task() -> Task {
        let mut task = Task {
            start_boot_ns: 4_500_000_000,
            pid: 100,
            tid: 101,
            pod_pid: 10,
            pod_tid: 11,
            ppid: 99,
            uid: 1000,
            gid: 1001,
            ancestors_len: 2,
            comm: [0; 16],
            parent_comm: [0; 16],
            ancestors: [0; 16],
        };
        task.comm[..3].copy_from_slice(b"cat");
        task.parent_comm[..2].copy_from_slice(b"sh");
        task.ancestors[..2].copy_from_slice(&[99, 1]);
        task
    }

    fn exec(filename: &[u8], args: &[u8], args_bytes: u32, cwd: &[u8], flags: u16) -> Vec<u8> {
        let exec = Exec {
            task: task(),
            args_bytes,
            filename_len: filename.len() as u16,
            args_len: args.len() as u16,
            cwd_len: cwd.len() as u16,
            flags,
            reserved: 0,
        };
        [
            header(Kind::Exec).as_bytes(),
            exec.as_bytes(),
            filename,
            args,
            cwd,
        ]
        .concat()
    }

    pub(in crate::event) fn exec_frame() -> Vec<u8> {
        exec(
            b"/bin/cat",
            b"cat\0/etc/hostname\0three words\0",
            30,
            b"lib\0var\0",
            Exec::CWD_KNOWN,
        )
    }

    pub(in crate::event) fn exit_frame() -> Vec<u8> {
        let exit = Exit {
            task: task(),
            status: 3 << 8,
            reserved: 0,
        };
        [header(Kind::Exit).as_bytes(), exit.as_bytes()].concat()
    }

    pub(in crate::event) fn fork_frame() -> Vec<u8> {
        let fork = Fork {
            task: task(),
            child_start_boot_ns: 4_900_000_000,
            child_pid: 102,
            child_pod_pid: 12,
        };
        [header(Kind::Fork).as_bytes(), fork.as_bytes()].concat()
    }

    fn decoded(frame: &[u8]) -> v1::Event {
        let envelope = super::super::open(frame).expect("a frame");
        super::super::decode(
            &envelope,
            &super::super::Context::new(0, std::sync::Arc::default()),
        )
        .expect("a frame")
    }

    fn decoded_exec(frame: &[u8]) -> v1::Exec {
        match decoded(frame).detail {
            Some(Detail::Exec(exec)) => exec,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_exec_says_what_ran_where_and_who_ran_it() {
        let event = decoded(&exec_frame());
        assert_eq!((event.kind, event.cgroup_id), (v1::Kind::Exec as i32, 7));
        let process = event.process.expect("a process");
        assert_eq!(
            (process.pid, process.tid, process.pod_pid, process.pod_tid),
            (100, 101, 10, 11)
        );
        assert_eq!(
            (process.ppid, &*process.parent_comm, &*process.comm),
            (99, "sh", "cat")
        );
        assert_eq!(
            (process.uid, process.gid, process.start_boot_ns),
            (1000, 1001, 4_500_000_000)
        );
        assert_eq!(process.ancestors, [99, 1]);
        let exec = decoded_exec(&exec_frame());
        assert_eq!(exec.filename, "/bin/cat");
        assert_eq!(exec.args, ["cat", "/etc/hostname", "three words"]);
        assert_eq!((exec.args_bytes, exec.args_truncated), (30, false));
        assert_eq!(
            (&*exec.cwd, exec.cwd_truncated, exec.filename_truncated),
            ("/var/lib", false, false)
        );
    }

    #[test]
    fn what_was_cut_says_so() {
        let exec = decoded_exec(&exec(
            b"/x",
            b"cat\0a lon",
            4000,
            b"b\0a\0",
            Exec::CWD_CUT | Exec::FILENAME_CUT,
        ));
        assert_eq!(exec.args, ["cat", "a lon"]);
        assert_eq!((exec.args_bytes, exec.args_truncated), (4000, true));
        assert_eq!(
            (&*exec.cwd, exec.cwd_truncated, exec.filename_truncated),
            ("/a/b", true, true)
        );
    }

    #[test]
    fn empty_arguments_and_directories_are_told_apart() {
        let none = decoded_exec(&exec(b"/x", b"", 0, b"", 0));
        assert_eq!((none.args.len(), &*none.cwd), (0, ""));
        let one_empty = decoded_exec(&exec(b"/x", b"\0", 1, b"", Exec::CWD_KNOWN));
        assert_eq!(
            (one_empty.args, &*one_empty.cwd),
            (vec![String::new()], "/")
        );
        let inner_empty = decoded_exec(&exec(b"/x", b"a\0\0b\0", 5, b"", Exec::CWD_KNOWN));
        assert_eq!(inner_empty.args, ["a", "", "b"]);
    }

    #[test]
    fn a_fork_names_parent_and_child() {
        let event = decoded(&fork_frame());
        assert_eq!(event.process.map(|parent| parent.pid), Some(100));
        let fork = v1::Fork {
            child_pid: 102,
            child_pod_pid: 12,
            child_start_boot_ns: 4_900_000_000,
        };
        assert_eq!(event.detail, Some(Detail::Fork(fork)));
    }

    #[test]
    fn an_exit_tells_code_signal_and_core() {
        let exit = |status| {
            let mut frame = exit_frame();
            let at = frame.len() - 8;
            frame[at..at + 4].copy_from_slice(&u32::to_ne_bytes(status));
            match decoded(&frame).detail {
                Some(Detail::Exit(v1::Exit {
                    code,
                    signal,
                    core_dumped,
                    duration,
                })) => {
                    let duration = duration.expect("a duration");
                    assert_eq!((duration.seconds, duration.nanos), (0, 500_000_000));
                    (code, signal, core_dumped)
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(exit(0), (0, 0, false));
        assert_eq!(exit(3 << 8), (3, 0, false));
        assert_eq!(exit(9), (0, 9, false));
        assert_eq!(exit(11 | 0x80), (0, 11, true));
    }
}

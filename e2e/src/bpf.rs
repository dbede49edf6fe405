//! What a process holds of the kernel's BPF, and whether it is still there.

use std::{collections::BTreeSet, fs, io};

/// Kinds of objects that have ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// A program.
    Program,
    /// A map.
    Map,
    /// An attachment of a program.
    Link,
}

impl Object {
    const ALL: [Self; 3] = [Self::Program, Self::Map, Self::Link];

    /// What /proc/PID/fdinfo calls its id.
    fn label(self) -> &'static str {
        match self {
            Self::Program => "prog_id:",
            Self::Map => "map_id:",
            Self::Link => "link_id:",
        }
    }

    /// `enum bpf_cmd` of include/uapi/linux/bpf.h.
    fn fd_by_id(self) -> libc::c_long {
        match self {
            Self::Program => 13,
            Self::Map => 14,
            Self::Link => 30,
        }
    }
}

/// What a process holds, by kind and id.
pub type Held = BTreeSet<(Object, u32)>;

/// What a process holds now by a file descriptor.
pub fn held(pid: u32) -> Held {
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("the process's descriptors");
    let mut held = Held::new();
    for info in infos.flatten() {
        // A descriptor that was closed meanwhile holds nothing.
        let text = fs::read_to_string(info.path()).unwrap_or_default();
        for object in Object::ALL {
            let ids = text
                .lines()
                .filter_map(|line| line.strip_prefix(object.label()));
            held.extend(ids.filter_map(|id| Some((object, id.trim().parse().ok()?))));
        }
    }
    held
}

/// How many of one kind.
pub fn count(held: &Held, object: Object) -> usize {
    held.iter().filter(|(kind, _)| *kind == object).count()
}

/// Those that the kernel still has. It frees them a little after their last descriptor.
pub fn alive(held: &Held) -> Held {
    held.iter()
        .filter(|(object, id)| is_alive(*object, *id))
        .copied()
        .collect()
}

fn is_alive(object: Object, id: u32) -> bool {
    /// `union bpf_attr` for these commands.
    #[repr(C)]
    struct Attr {
        id: u32,
        next_id: u32,
        open_flags: u32,
    }
    let attr = Attr {
        id,
        next_id: 0,
        open_flags: 0,
    };
    // SAFETY: `attr` is what these commands read.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            object.fd_by_id(),
            &raw const attr,
            size_of::<Attr>(),
        )
    };
    if fd < 0 {
        let error = io::Error::last_os_error();
        assert_eq!(
            error.raw_os_error(),
            Some(libc::ENOENT),
            "{object:?} {id}: {error}"
        );
        return false;
    }
    // SAFETY: the descriptor is ours, and used by nobody else.
    unsafe { libc::close(fd as libc::c_int) };
    true
}

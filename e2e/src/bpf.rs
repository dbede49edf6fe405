//! What a process holds of the kernel's BPF, and whether it is still there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

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
        .filter(|(object, id)| open(*object, *id).is_some())
        .copied()
        .collect()
}

/// A descriptor of an object; `None` if there is no such object.
fn open(object: Object, id: u32) -> Option<OwnedFd> {
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
    match bpf(object.fd_by_id(), &attr) {
        // SAFETY: the kernel just gave it to us, and to nobody else.
        Ok(fd) => Some(unsafe { OwnedFd::from_raw_fd(fd) }),
        Err(error) => {
            assert_eq!(
                error.raw_os_error(),
                Some(libc::ENOENT),
                "{object:?} {id}: {error}"
            );
            None
        }
    }
}

/// bpf(2).
fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<RawFd> {
    // SAFETY: `attr` is what the command reads, and what it points to outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attr),
            size_of::<T>(),
        )
    };
    match result {
        ..0 => Err(io::Error::last_os_error()),
        result => Ok(result as RawFd),
    }
}

/// How many entries each of a process's hash maps has, by their names. Arrays and rings are as large as they ever are, and of LRU maps the kernel
/// takes out by itself what was not used for longest.
pub fn hashes(pid: u32) -> BTreeMap<String, usize> {
    let held = held(pid);
    let maps = held.iter().filter(|(object, _)| *object == Object::Map);
    let maps = maps.filter_map(|&(object, id)| open(object, id));
    maps.filter_map(|map| {
        let info = Info::of(&map)?;
        info.is_hash()
            .then(|| (info.name(), keys(&map, info.key as usize)))
    })
    .collect()
}

/// The beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct Info {
    kind: u32,
    id: u32,
    key: u32,
    value_entries_flags: [u32; 3],
    name: [u8; 16],
}

impl Info {
    fn of(map: &OwnedFd) -> Option<Self> {
        /// BPF_OBJ_GET_INFO_BY_FD of include/uapi/linux/bpf.h.
        const INFO_BY_FD: libc::c_long = 15;
        #[repr(C)]
        struct Attr {
            fd: u32,
            len: u32,
            info: u64,
        }
        let mut info = Self::default();
        let attr = Attr {
            fd: map.as_raw_fd() as u32,
            len: size_of::<Self>() as u32,
            info: &raw mut info as u64,
        };
        bpf(INFO_BY_FD, &attr).ok()?;
        Some(info)
    }

    fn is_hash(&self) -> bool {
        /// BPF_MAP_TYPE_HASH and BPF_MAP_TYPE_PERCPU_HASH.
        const KINDS: [u32; 2] = [1, 5];
        KINDS.contains(&self.kind)
    }

    fn name(&self) -> String {
        let end = self.name.iter().position(|&byte| byte == 0);
        String::from_utf8_lossy(&self.name[..end.unwrap_or(self.name.len())]).into_owned()
    }
}

fn keys(map: &OwnedFd, size: usize) -> usize {
    /// BPF_MAP_GET_NEXT_KEY.
    const NEXT_KEY: libc::c_long = 4;
    #[repr(C)]
    struct Attr {
        fd: u32,
        unused: u32,
        key: u64,
        next: u64,
    }
    let (mut key, mut next) = (vec![0_u8; size], vec![0_u8; size]);
    let mut count = 0;
    loop {
        let attr = Attr {
            fd: map.as_raw_fd() as u32,
            unused: 0,
            // Before the first there is none.
            key: if count == 0 { 0 } else { key.as_ptr() as u64 },
            next: next.as_mut_ptr() as u64,
        };
        match bpf(NEXT_KEY, &attr) {
            Ok(_) => count += 1,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return count,
            Err(error) => panic!("the keys of a map: {error}"),
        }
        std::mem::swap(&mut key, &mut next);
    }
}

//! Reads the tree of cgroups from cgroupfs.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A cgroup's directory.
pub(super) struct Directory {
    /// The cgroup's id: the directory's inode number.
    pub(super) id: u64,
    /// That of the directory above; 0 for the root.
    pub(super) parent_id: u64,
    /// Path below the root, as the kernel tells it: `/` is the root.
    pub(super) path: String,
    /// Where it is.
    dir: PathBuf,
}

impl Directory {
    /// Whether it is still there.
    pub(super) fn exists(&self) -> bool {
        fs::symlink_metadata(&self.dir).is_ok_and(|metadata| metadata.ino() == self.id)
    }
}

/// All directories from `root` on, parents before children. One that vanishes meanwhile is left out.
pub(super) fn directories(root: &Path) -> io::Result<Vec<Directory>> {
    let metadata = fs::metadata(root).map_err(|error| explain(root, &error))?;
    let mut found = Vec::new();
    let mut queue = VecDeque::from([Directory {
        id: metadata.ino(),
        parent_id: 0,
        path: "/".to_owned(),
        dir: root.to_owned(),
    }]);
    while let Some(parent) = queue.pop_front() {
        let children = children(&parent).map_err(|error| explain(&parent.dir, &error))?;
        queue.extend(children);
        found.push(parent);
    }
    Ok(found)
}

fn children(parent: &Directory) -> io::Result<Vec<Directory>> {
    let Some(entries) = unless_vanished(fs::read_dir(&parent.dir))? else {
        return Ok(Vec::new());
    };
    let mut children = Vec::new();
    for entry in entries {
        let Some(entry) = unless_vanished(entry)? else {
            break;
        };
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let Some(metadata) = unless_vanished(entry.metadata())? else {
            continue;
        };
        let name = entry.file_name();
        children.push(Directory {
            id: metadata.ino(),
            parent_id: parent.id,
            path: format!(
                "{}/{}",
                parent.path.trim_end_matches('/'),
                name.to_string_lossy()
            ),
            dir: entry.path(),
        });
    }
    Ok(children)
}

/// `None` for a cgroup that was removed while it was read: its files are gone, or the kernel says that the device is.
fn unless_vanished<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What reading a directory of a removed cgroup may answer: include/uapi/asm-generic/errno-base.h.
const ENODEV: i32 = 19;

fn explain(dir: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!(
            "read the cgroup directory {}: {error}; is the cgroup v2 hierarchy mounted there, and readable?",
            dir.display()
        ),
    )
}

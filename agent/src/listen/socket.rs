//! A Unix socket in the file system.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _, chown},
        net::{UnixListener as StdListener, UnixStream as StdStream},
    },
    path::{Path, PathBuf},
};

use tokio::net::{UnixListener, UnixStream};

use super::Access;

/// Removes its file when it is dropped.
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Takes the place of a socket at which nobody listens any more, and of nothing else.
    pub(super) fn bind(path: &Path, access: Access) -> io::Result<Self> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(there) if !there.file_type().is_socket() => {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "there is a file of that name, and it is no socket",
                ));
            }
            Ok(_) if StdStream::connect(path).is_ok() => {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "somebody listens there already",
                ));
            }
            Ok(_) => {}
        }
        // Nobody finds it before only those may open it who shall.
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let new = PathBuf::from(name);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = StdListener::bind(&new)?;
        let ready = || {
            if let Some(group) = access.group {
                chown(&new, None, Some(group))?;
            }
            fs::set_permissions(&new, fs::Permissions::from_mode(access.mode))?;
            listener.set_nonblocking(true)?;
            fs::rename(&new, path)
        };
        if let Err(error) = ready() {
            _ = fs::remove_file(&new);
            return Err(error);
        }
        Ok(Self {
            listener: UnixListener::from_std(listener)?,
            path: path.to_owned(),
        })
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        _ = fs::remove_file(&self.path);
    }
}

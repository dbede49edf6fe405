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
        is_dead(path)?;
        // Nobody finds it before only those may open it who shall.
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let new = PathBuf::from(name);
        if is_dead(&new)? {
            fs::remove_file(&new)?;
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

/// Whether there is a socket at which nobody listens any more. An error if there is anything else, but for nothing.
fn is_dead(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
        Ok(there) if !there.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{} is a file, and no socket", path.display()),
            ));
        }
        Ok(_) => {}
    }
    match StdStream::connect(path) {
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "somebody listens there already",
        )),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!(
                "{} is a socket, and whether somebody listens there cannot be found out: {error}",
                path.display()
            ),
        )),
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        _ = fs::remove_file(&self.path);
    }
}

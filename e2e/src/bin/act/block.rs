//! Input and output of disks.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io,
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use super::{check, number};

/// Does operations on a file or disk, each from its beginning, and prints the nanoseconds that each of them took in all.
///
/// * `block PATH HOW [OPERATION TIMES BYTES]…`: HOW is `direct`, `dsync` (direct, each write to the medium) or `buffered`; OPERATION is
///   `read`, `write`, `fsync` or `discard`. Where it fails, the exit code is the error number.
/// * `block roam DIR N PATH BYTES`: makes that many cgroups in DIR, enters one after the other, and does one direct read in each.
pub(crate) fn run(words: &[OsString]) -> io::Result<ExitCode> {
    let done = match words {
        [roam, dir, times, disk, bytes] if roam == "roam" => {
            self::roam(Path::new(dir), number(times), disk, number(bytes))
        }
        [disk, how, operations @ ..] => open(disk, how).and_then(|file| {
            operations.chunks_exact(3).try_for_each(|operation| {
                let [name, times, bytes] = operation else {
                    return Err(io::Error::other("chunks are of three words"));
                };
                let took = repeat(&file, name, number(times), number(bytes))?;
                println!("{}", took.as_nanos());
                Ok(())
            })
        }),
        _ => return Err(io::Error::other("no disk")),
    };
    match done {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => match error.raw_os_error() {
            Some(errno) => Ok(ExitCode::from(errno as u8)),
            None => Err(error),
        },
    }
}

fn open(path: &OsStr, how: &OsStr) -> io::Result<File> {
    let flags = match how.to_string_lossy().as_ref() {
        "direct" => libc::O_DIRECT,
        "dsync" => libc::O_DIRECT | libc::O_DSYNC,
        "buffered" => 0,
        other => return Err(io::Error::other(format!("`{other}` is no way to open"))),
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(flags);
    options.open(path)
}

/// Memory as direct input and output takes it.
struct Aligned(*mut u8, Layout);

impl Aligned {
    fn new(bytes: usize) -> io::Result<Self> {
        const PAGE: usize = 4096;
        let layout = Layout::from_size_align(bytes.max(1), PAGE).map_err(io::Error::other)?;
        // SAFETY: the size is not 0.
        let memory = unsafe { alloc_zeroed(layout) };
        if memory.is_null() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(Self(memory, layout))
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: it was allocated with that layout.
        unsafe { dealloc(self.0, self.1) };
    }
}

fn repeat(file: &File, name: &OsStr, times: u64, bytes: usize) -> io::Result<Duration> {
    let memory = Aligned::new(bytes)?;
    let name = name.to_string_lossy();
    let began = Instant::now();
    for turn in 0..times {
        let at = turn * bytes as u64;
        operation(file, &name, &memory, bytes, at)?;
    }
    Ok(began.elapsed())
}

fn operation(file: &File, name: &str, memory: &Aligned, bytes: usize, at: u64) -> io::Result<()> {
    let (fd, offset) = (file.as_raw_fd(), at as libc::off_t);
    let whole = |done: isize| match done {
        ..0 => Err(io::Error::last_os_error()),
        done if done as usize == bytes => Ok(()),
        done => Err(io::Error::other(format!("{done} of {bytes} bytes"))),
    };
    match name {
        // SAFETY: the memory has that many bytes.
        "read" => whole(unsafe { libc::pread(fd, memory.0.cast(), bytes, offset) }),
        // SAFETY: as above.
        "write" => whole(unsafe { libc::pwrite(fd, memory.0.cast(), bytes, offset) }),
        "fsync" => file.sync_all(),
        "discard" => {
            /// `_IO(0x12, 119)` of include/uapi/linux/fs.h.
            const BLKDISCARD: libc::c_ulong = 0x1277;
            let range = [at, bytes as u64];
            // SAFETY: the range is what this ioctl reads.
            check(unsafe { libc::ioctl(fd, BLKDISCARD as _, range.as_ptr()) })
        }
        other => Err(io::Error::other(format!("`{other}` is no operation"))),
    }
}

/// A disk of which one sector after the other is read.
pub(crate) struct Sectors {
    file: File,
    memory: Aligned,
}

impl Sectors {
    /// What a disk reads at the least, in bytes.
    const BYTES: usize = 512;

    pub(crate) fn open(disk: &OsStr) -> io::Result<Self> {
        Ok(Self {
            file: open(disk, OsStr::new("direct"))?,
            memory: Aligned::new(Self::BYTES)?,
        })
    }

    /// One request.
    pub(crate) fn read(&self) -> io::Result<()> {
        operation(&self.file, "read", &self.memory, Self::BYTES, 0)
    }
}

fn roam(dir: &Path, times: u32, disk: &OsStr, bytes: usize) -> io::Result<()> {
    let file = open(disk, OsStr::new("direct"))?;
    let memory = Aligned::new(bytes)?;
    for turn in 0..times {
        let cgroup = dir.join(turn.to_string());
        fs::create_dir(&cgroup)?;
        fs::write(cgroup.join("cgroup.procs"), "0")?;
        operation(&file, "read", &memory, bytes, 0)?;
    }
    Ok(())
}

//! System calls on files, each as it is: no library opens or retries anything beside it.

use std::{
    ffi::{CString, OsStr, OsString},
    io,
    os::{fd::RawFd, unix::ffi::OsStrExt as _},
    process::ExitCode,
    ptr,
};

use io_uring::{IoUring, opcode, squeue, types};

use super::{check, number, path};

/// Does the operation. The exit code is 0, or the error number that it failed with.
///
/// * `open PATH FLAGS`, `creat PATH`, `openat DIR PATH FLAGS`, `openat2 DIR PATH FLAGS`: FLAGS as a number; DIR `-` is the working directory
/// * `unlink PATH`, `unlinkat DIR PATH`, `rmdir PATH`, `rmdirat DIR PATH`
/// * `rename FROM TO`, `renameat DIR FROM DIR TO`, `exchange FROM TO`
/// * `truncate PATH SIZE`, `ftruncate PATH SIZE`
/// * `uring-open PATH FLAGS`, `uring-unlink PATH`, `uring-rename FROM TO`
/// * `many N OPERATION ARG…`: the operation that often; `%` in its arguments stands for the number, from 0
pub(crate) fn run(words: &[OsString]) -> io::Result<ExitCode> {
    let done = match words {
        [many, times, rest @ ..] if many == "many" => {
            let times: u32 = number(times);
            (0..times).try_for_each(|turn| {
                let words: Vec<OsString> = rest
                    .iter()
                    .map(|word| {
                        word.to_string_lossy()
                            .replace('%', &turn.to_string())
                            .into()
                    })
                    .collect();
                operation(&words)?;
                // Or there would soon be too many.
                // SAFETY: nobody here uses what is beyond standard input, output and errors.
                check(
                    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) } as libc::c_int,
                )
            })
        }
        words => operation(words),
    };
    match done {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => match error.raw_os_error() {
            Some(errno) => Ok(ExitCode::from(errno as u8)),
            None => Err(error),
        },
    }
}

/// Permissions of new files.
const MODE: libc::mode_t = 0o640;

fn operation(words: &[OsString]) -> io::Result<()> {
    let (name, args) = words
        .split_first()
        .ok_or_else(|| io::Error::other("no operation"))?;
    let paths: Vec<CString> = args.iter().map(path).collect::<io::Result<_>>()?;
    let p = |at: usize| paths[at].as_ptr();
    // SAFETY: all strings end with a NUL and outlive the calls, as do the structs that they are given.
    let result = unsafe {
        match (name.to_string_lossy().as_ref(), args.len()) {
            #[cfg(target_arch = "x86_64")]
            ("open", 2) => libc::syscall(libc::SYS_open, p(0), flags(&args[1]), MODE),
            #[cfg(not(target_arch = "x86_64"))]
            ("open", 2) => libc::syscall(
                libc::SYS_openat,
                libc::AT_FDCWD,
                p(0),
                flags(&args[1]),
                MODE,
            ),
            #[cfg(target_arch = "x86_64")]
            ("creat", 1) => libc::syscall(libc::SYS_creat, p(0), MODE),
            ("openat", 3) => libc::syscall(
                libc::SYS_openat,
                directory(&args[0])?,
                p(1),
                flags(&args[2]),
                MODE,
            ),
            ("openat2", 3) => {
                let flags = flags(&args[2]);
                let creates = flags & libc::O_CREAT != 0;
                // Zeros are a valid `open_how`; a mode without O_CREAT is refused.
                let mut how: libc::open_how = std::mem::zeroed();
                how.flags = flags as u64;
                how.mode = if creates { MODE.into() } else { 0 };
                libc::syscall(
                    libc::SYS_openat2,
                    directory(&args[0])?,
                    p(1),
                    &raw mut how,
                    size_of_val(&how),
                )
            }
            #[cfg(target_arch = "x86_64")]
            ("unlink", 1) => libc::syscall(libc::SYS_unlink, p(0)),
            #[cfg(target_arch = "x86_64")]
            ("rmdir", 1) => libc::syscall(libc::SYS_rmdir, p(0)),
            #[cfg(target_arch = "x86_64")]
            ("rename", 2) => libc::syscall(libc::SYS_rename, p(0), p(1)),
            ("unlinkat", 2) => libc::syscall(libc::SYS_unlinkat, directory(&args[0])?, p(1), 0),
            ("rmdirat", 2) => libc::syscall(
                libc::SYS_unlinkat,
                directory(&args[0])?,
                p(1),
                libc::AT_REMOVEDIR,
            ),
            ("renameat", 4) => libc::syscall(
                libc::SYS_renameat2,
                directory(&args[0])?,
                p(1),
                directory(&args[2])?,
                p(3),
                0,
            ),
            ("exchange", 2) => libc::syscall(
                libc::SYS_renameat2,
                libc::AT_FDCWD,
                p(0),
                libc::AT_FDCWD,
                p(1),
                libc::RENAME_EXCHANGE,
            ),
            ("truncate", 2) => {
                libc::syscall(libc::SYS_truncate, p(0), number::<libc::off_t>(&args[1]))
            }
            ("ftruncate", 2) => {
                let fd = libc::open(p(0), libc::O_WRONLY);
                check(fd)?;
                libc::syscall(libc::SYS_ftruncate, fd, number::<libc::off_t>(&args[1]))
            }
            ("uring-open", 2) => uring(
                opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), p(0))
                    .flags(flags(&args[1]))
                    .mode(MODE)
                    .build(),
            )?,
            ("uring-unlink", 1) => {
                uring(opcode::UnlinkAt::new(types::Fd(libc::AT_FDCWD), p(0)).build())?
            }
            ("uring-rename", 2) => uring(
                opcode::RenameAt::new(
                    types::Fd(libc::AT_FDCWD),
                    p(0),
                    types::Fd(libc::AT_FDCWD),
                    p(1),
                )
                .build(),
            )?,
            _ => return Err(io::Error::other("no such operation")),
        }
    };
    check(result as libc::c_int)
}

fn flags(text: &OsStr) -> libc::c_int {
    number(text)
}

/// A descriptor of a directory, which stays open. It is opened with O_PATH, so that its own open can be told from others.
fn directory(dir: &OsStr) -> io::Result<RawFd> {
    if dir == "-" {
        return Ok(libc::AT_FDCWD);
    }
    let dir = CString::new(dir.as_bytes())?;
    // SAFETY: the string ends with a NUL and outlives the call.
    let fd = unsafe { libc::open(dir.as_ptr(), libc::O_PATH | libc::O_DIRECTORY) };
    check(fd)?;
    Ok(fd)
}

/// Has io_uring do it.
fn uring(entry: squeue::Entry) -> io::Result<libc::c_long> {
    let mut ring = IoUring::new(2)?;
    // SAFETY: what the entry points to outlives the wait for its completion.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let done = ring
        .completion()
        .next()
        .ok_or_else(|| io::Error::other("io_uring completed nothing"))?;
    if done.result() < 0 {
        return Err(io::Error::from_raw_os_error(-done.result()));
    }
    Ok(done.result().into())
}

fn own_mounts() -> io::Result<()> {
    // SAFETY: the string is a constant; null pointers are allowed where they are given.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS))?;
        check(libc::mount(
            ptr::null(),
            c"/".as_ptr(),
            ptr::null(),
            libc::MS_REC | libc::MS_PRIVATE,
            ptr::null(),
        ))
    }
}

/// Makes `from` appear at `to` too, for this process and its children alone.
pub(crate) fn bind(from: &OsStr, to: &OsStr) -> io::Result<()> {
    own_mounts()?;
    let (from, to) = (path(from)?, path(to)?);
    // SAFETY: all strings end with a NUL and outlive the call.
    check(unsafe {
        libc::mount(
            from.as_ptr(),
            to.as_ptr(),
            ptr::null(),
            libc::MS_BIND,
            ptr::null(),
        )
    })
}

/// Makes `merged` an overlay, for this process and its children alone.
pub(crate) fn overlay(
    lower: &OsStr,
    upper: &OsStr,
    work: &OsStr,
    merged: &OsStr,
) -> io::Result<()> {
    own_mounts()?;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    let (merged, options) = (path(merged)?, CString::new(options)?);
    // SAFETY: all strings end with a NUL and outlive the call.
    check(unsafe {
        libc::mount(
            c"overlay".as_ptr(),
            merged.as_ptr(),
            c"overlay".as_ptr(),
            0,
            options.as_ptr().cast(),
        )
    })
}

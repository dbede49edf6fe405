//! Frames of the sensor `file`.

use dinle_ebpf::{FileDelete, FileOpen, file::flags};
use dinle_proto::v1::{self, event::Detail};

use super::{DecodeError, Decoded, arguments, components, device, parts, read, text};

/// Set by the kernel for every program of 64 bits, where it means nothing: include/uapi/asm-generic/fcntl.h, arch/arm64/include/uapi/asm/fcntl.h.
const O_LARGEFILE: u32 = if cfg!(target_arch = "aarch64") {
    0o400_000
} else {
    0o100_000
};

/// Permissions in a mode, without the type of the file.
const PERMISSIONS: u32 = 0o7777;

pub(super) fn open(body: &[u8]) -> Result<Decoded, DecodeError> {
    let (open, tail) = read::<FileOpen>(body)?;
    let FileOpen {
        task,
        inode,
        device: dev,
        open_flags,
        mode,
        result,
        filename_len,
        path_len,
        flags: known,
        reserved: _,
    } = open;
    let [filename, path] = parts::<FileOpen, 2>(tail, [filename_len, path_len])?;
    let filename = text(filename);
    let (path, path_source) = path_of(path, &filename, known);
    let (device_major, device_minor) = device(dev);
    let detail = v1::FileOpen {
        path,
        path_source: path_source.into(),
        path_truncated: known & flags::PATH_CUT != 0,
        filename,
        filename_truncated: known & flags::FILENAME_CUT != 0,
        flags: open_flags & !O_LARGEFILE,
        mode: mode & PERMISSIONS,
        fd: (result >= 0 && known & flags::IO_URING == 0).then_some(result),
        error: error(result),
        inode,
        device_major,
        device_minor,
        io_uring: known & flags::IO_URING != 0,
    };
    Ok((Some(task), Detail::FileOpen(detail)))
}

pub(super) fn delete(body: &[u8]) -> Result<Decoded, DecodeError> {
    let (delete, tail) = read::<FileDelete>(body)?;
    let FileDelete {
        task,
        inode,
        size_before,
        device: dev,
        result,
        args_bytes,
        how,
        filename_len,
        path_len,
        source_len,
        args_len,
        flags: known,
    } = delete;
    let lens = [filename_len, source_len, args_len, path_len];
    let [filename, source, args, path] = parts::<FileDelete, 4>(tail, lens)?;
    let filename = text(filename);
    let (path, path_source) = path_of(path, &filename, known);
    let (device_major, device_minor) = device(dev);
    let detail = v1::FileDelete {
        method: method(how).into(),
        path,
        path_source: path_source.into(),
        path_truncated: known & flags::PATH_CUT != 0,
        filename,
        filename_truncated: known & flags::FILENAME_CUT != 0,
        source: text(source),
        source_truncated: known & flags::SOURCE_CUT != 0,
        inode: (known & flags::INODE_KNOWN != 0).then_some(inode),
        device_major,
        device_minor,
        size_before: (known & flags::SIZE_KNOWN != 0).then_some(size_before),
        error: error(result),
        process_args: arguments(args),
        process_args_truncated: args_bytes > u32::from(args_len),
        io_uring: known & flags::IO_URING != 0,
    };
    Ok((Some(task), Detail::FileDelete(detail)))
}

fn error(result: i32) -> u32 {
    if result < 0 { result.unsigned_abs() } else { 0 }
}

fn method(how: u16) -> v1::DeleteMethod {
    match how {
        FileDelete::UNLINK => v1::DeleteMethod::Unlink,
        FileDelete::RMDIR => v1::DeleteMethod::Rmdir,
        FileDelete::RENAME => v1::DeleteMethod::Rename,
        FileDelete::TRUNCATE => v1::DeleteMethod::Truncate,
        FileDelete::OPEN_TRUNCATE => v1::DeleteMethod::OpenTruncate,
        _ => v1::DeleteMethod::Unspecified,
    }
}

/// The absolute path of what the kernel half knows: components of the file, or of the directory that the name is relative to.
fn path_of(bytes: &[u8], filename: &str, known: u16) -> (String, v1::PathSource) {
    let cut = known & flags::PATH_CUT != 0;
    let names: Vec<String> = components(bytes)
        .rev()
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    if known & flags::RESOLVED != 0 {
        return (joined(&names, cut), v1::PathSource::Resolved);
    }
    let absolute = filename.starts_with('/');
    if filename.is_empty() || known & (flags::PATH_KNOWN | flags::PATH_CUT) == 0 && !absolute {
        return (String::new(), v1::PathSource::Unspecified);
    }
    let mut whole = if absolute { Vec::new() } else { names };
    let floor = if cut && !absolute { 1 } else { 0 };
    for part in filename.split('/') {
        match part {
            "" | "." => {}
            // Above the root is the root; above what was cut nobody knows.
            ".." if whole.len() > floor => _ = whole.pop(),
            ".." => {}
            name => whole.push(name.to_owned()),
        }
    }
    (joined(&whole, cut && !absolute), v1::PathSource::Joined)
}

fn joined(names: &[String], cut: bool) -> String {
    let mut path = String::from(if cut { "…" } else { "" });
    for name in names {
        path.push('/');
        path.push_str(name);
    }
    if path.is_empty() { "/".into() } else { path }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::event::process::tests::{header, task};
    use dinle_ebpf::Kind;
    use zerocopy::IntoBytes as _;

    fn open(filename: &[u8], path: &[u8], result: i32, known: u16) -> Vec<u8> {
        let open = FileOpen {
            task: task(),
            inode: 77,
            device: 8 << 20 | 1,
            open_flags: O_LARGEFILE | 0o101,
            mode: 0o100_640,
            result,
            filename_len: filename.len() as u16,
            path_len: path.len() as u16,
            flags: known,
            reserved: 0,
        };
        let head = [header(Kind::FileOpen).as_bytes(), open.as_bytes()].concat();
        [&head, filename, path].concat()
    }

    pub(in crate::event) fn open_frame() -> Vec<u8> {
        open(
            b"app.log",
            b"app.log\0log\0var\0",
            3,
            flags::RESOLVED | flags::PATH_KNOWN,
        )
    }

    pub(in crate::event) fn delete_frame() -> Vec<u8> {
        let (path, source, args) = (&b"b\0tmp\0"[..], &b"a"[..], &b"mv\0a\0b\0"[..]);
        let delete = FileDelete {
            task: task(),
            inode: 78,
            size_before: 4096,
            device: 8 << 20 | 1,
            result: 0,
            args_bytes: 400,
            how: FileDelete::RENAME,
            filename_len: 0,
            source_len: source.len() as u16,
            args_len: args.len() as u16,
            path_len: path.len() as u16,
            flags: flags::RESOLVED | flags::PATH_KNOWN | flags::INODE_KNOWN | flags::SIZE_KNOWN,
        };
        let head = [header(Kind::FileDelete).as_bytes(), delete.as_bytes()].concat();
        [&head, source, args, path].concat()
    }

    fn decoded(frame: &[u8]) -> Detail {
        let body = &frame[size_of::<dinle_ebpf::Header>()..];
        let decoded = match frame[20] {
            4 => super::open(body),
            _ => delete(body),
        };
        decoded.expect("a frame").1
    }

    fn decoded_open(frame: &[u8]) -> v1::FileOpen {
        match decoded(frame) {
            Detail::FileOpen(open) => open,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_open_that_succeeded_has_the_files_own_path() {
        let open = decoded_open(&open_frame());
        assert_eq!(
            (&*open.path, &*open.filename),
            ("/var/log/app.log", "app.log")
        );
        assert_eq!((open.flags, open.mode), (0o101, 0o640));
        assert_eq!((open.fd, open.error, open.inode), (Some(3), 0, 77));
        assert_eq!((open.device_major, open.device_minor), (8, 1));
    }

    #[test]
    fn the_path_of_an_open_that_failed_is_joined() {
        let known = flags::PATH_KNOWN;
        let table: [(&[u8], &[u8], u16, &str); 10] = [
            (b"a", b"log\0var\0", known, "/var/log/a"),
            (b"./a//b", b"log\0var\0", known, "/var/log/a/b"),
            (b"../a", b"log\0var\0", known, "/var/a"),
            (b"../../../a", b"log\0var\0", known, "/a"),
            (b"/a/../b", b"log\0var\0", known, "/b"),
            (b"..", b"var\0", known, "/"),
            (b"a", b"log\0var\0", flags::PATH_CUT, "…/var/log/a"),
            (b"../../a", b"log\0var\0", flags::PATH_CUT, "…/var/a"),
            (b"/a", b"", 0, "/a"),
            (b"a", b"", 0, ""),
        ];
        for (filename, directory, known, expected) in table {
            let open = decoded_open(&open(filename, directory, -2, known));
            assert_eq!(open.path, expected, "{}", String::from_utf8_lossy(filename));
            assert_eq!((open.fd, open.error), (None, 2));
        }
    }

    #[test]
    fn a_deletion_says_what_went_and_how() {
        let Detail::FileDelete(delete) = decoded(&delete_frame()) else {
            panic!("no deletion")
        };
        assert_eq!(delete.method(), v1::DeleteMethod::Rename);
        assert_eq!((&*delete.path, &*delete.source), ("/tmp/b", "a"));
        assert_eq!((delete.inode, delete.size_before), (Some(78), Some(4096)));
        assert_eq!(delete.process_args, ["mv", "a", "b"]);
        assert!(delete.process_args_truncated);
    }
}

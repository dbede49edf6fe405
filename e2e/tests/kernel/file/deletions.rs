//! Who makes the content of files go.

use std::{fs, os::unix::fs::MetadataExt as _};

use dinle_e2e::{act::act_path, stream::Book};
use dinle_proto::v1::{DeleteMethod, Kind, PathSource};

use super::{Files, WRONLY, text};

/// include/uapi/linux/magic.h
const OVERLAYFS_SUPER_MAGIC: i64 = 0x794c_7630;

/// What kind of filesystem a directory is in.
fn filesystem_of(directory: &str) -> i64 {
    let directory = std::ffi::CString::new(directory).unwrap();
    let mut found = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the path ends with a NUL, and the struct is written or stays zeros.
    let found = unsafe {
        assert_eq!(libc::statfs(directory.as_ptr(), found.as_mut_ptr()), 0);
        found.assume_init()
    };
    found.f_type as i64
}

#[test]
fn bind_mounts_and_overlays_have_the_paths_that_the_process_sees() {
    let mut files = Files::new(&[Kind::FileDelete]);
    let act = text(act_path());
    for name in ["from", "to", "lower", "upper", "work", "merged"] {
        files.directory(name);
    }
    files.file("from/bound", 7);
    files.file("lower/below", 8);
    files.file("upper/above", 9);
    let (from, to) = (files.path("from"), files.path("to"));
    let bound = files.path("to/bound");
    let bind = ["bind", &from, &to, &act, "file"];
    assert_eq!(files.within(&bind, &["unlinkat", "-", &bound]), 0);
    let places = ["lower", "upper", "work", "merged"].map(|name| files.path(name));
    let [lower, upper, work, merged] = &places;
    let overlay = ["overlay", lower, upper, work, merged, &act, "file"];
    let (below, above) = (files.path("merged/below"), files.path("merged/above"));
    let overlays = match files.within(&overlay, &["unlinkat", "-", &below]) {
        0 => true,
        error => {
            // Overlays on overlays are refused: tests may run in a container.
            let kernels = fs::read_to_string("/proc/filesystems").unwrap();
            let on_overlay = filesystem_of(lower) == OVERLAYFS_SUPER_MAGIC;
            assert!(
                !kernels.contains("\toverlay\n") || on_overlay,
                "act ended with {error}"
            );
            println!("skipped: this kernel or filesystem makes no overlays");
            false
        }
    };
    if overlays {
        assert_eq!(files.within(&overlay, &["unlinkat", "-", &above]), 0);
    }
    files.settle();
    let known = files.by_functions(Kind::FileDelete);
    let mut paths = vec![(&bound, 7)];
    if overlays {
        paths.extend([(&below, 8), (&above, 9)]);
    }
    for &(path, size) in &paths {
        let (_, delete) = files.delete_of(path);
        assert_eq!((delete.method(), delete.error), (DeleteMethod::Unlink, 0));
        assert_eq!(delete.size_before, known.then_some(size), "{path}");
    }
    // An overlay deletes in the directory below it in turn: that is not told a second time.
    assert_eq!(
        files.stream.book(Kind::FileDelete),
        Book::complete(paths.len() as u64 + 1)
    );
}

#[test]
fn every_way_to_make_content_go_is_told() {
    let mut files = Files::new(&[Kind::FileDelete]);
    let cases: [(&str, &[&str], DeleteMethod); 8] = [
        ("a", &["unlinkat", "-", "%"], DeleteMethod::Unlink),
        ("b", &["unlinkat", "DIR", "b"], DeleteMethod::Unlink),
        (
            "c",
            &["renameat", "-", "other", "-", "%"],
            DeleteMethod::Rename,
        ),
        ("d", &["truncate", "%", "0"], DeleteMethod::Truncate),
        ("e", &["ftruncate", "%", "0"], DeleteMethod::Truncate),
        (
            "f",
            &["openat", "-", "%", "513"],
            DeleteMethod::OpenTruncate,
        ),
        (
            "g",
            &["openat2", "-", "%", "513"],
            DeleteMethod::OpenTruncate,
        ),
        ("h", &["rmdirat", "-", "%"], DeleteMethod::Rmdir),
    ];
    let mut before = Vec::new();
    for (at, (name, words, method)) in cases.iter().enumerate() {
        let path = match method {
            DeleteMethod::Rmdir => files.directory(name),
            _ => files.file(name, 100 + at),
        };
        let other = files.file("other", 1);
        let file = fs::metadata(&path).unwrap();
        let words: Vec<String> = words
            .iter()
            .map(|word| match *word {
                "%" => path.clone(),
                "DIR" => files.root.clone(),
                "other" => other.clone(),
                word => word.to_owned(),
            })
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        assert_eq!(files.act(&words), 0, "{words:?}");
        before.push((path, file, *method));
    }
    files.settle();

    let known = files.by_functions(Kind::FileDelete);
    for (path, file, method) in &before {
        let (event, delete) = files.delete_of(path);
        assert_eq!((delete.method(), delete.error), (*method, 0), "{path}");
        let process = event.process.as_ref().unwrap();
        assert_eq!((process.ppid, &*process.comm), (std::process::id(), "act"));
        assert_eq!(delete.process_args[0], "act");
        if known {
            assert_eq!(delete.path_source(), PathSource::Resolved, "{path}");
            assert_eq!(delete.inode, Some(file.ino()), "{path}");
            assert_eq!(delete.device_minor, libc::minor(file.dev()));
            assert_eq!(delete.size_before, Some(file.len()), "{path}");
        }
        if *method == DeleteMethod::Rename {
            assert!(delete.source.ends_with("other"), "{delete:?}");
        }
    }
    assert_eq!(
        files.stream.book(Kind::FileDelete),
        Book::complete(before.len() as u64 + 1)
    );
}

#[test]
fn what_takes_nothing_away_is_not_told() {
    let mut files = Files::new(&[Kind::FileDelete]);
    let (a, b) = (files.file("a", 10), files.file("b", 20));
    let new = files.path("new");
    let create = (WRONLY | libc::O_CREAT | libc::O_TRUNC).to_string();
    assert_eq!(files.act(&["exchange", &a, &b]), 0);
    assert_eq!(files.act(&["truncate", &a, "5"]), 0);
    assert_eq!(files.act(&["openat", "-", &a, "1"]), 0);
    assert_eq!(files.act(&["openat", "-", &new, &create]), 0);
    files.settle();
    assert_eq!(
        files.stream.book(Kind::FileDelete),
        Book::complete(1),
        "{:#?}",
        files.deletes()
    );
}

#[test]
fn a_deletion_that_fails_says_why() {
    let mut files = Files::new(&[Kind::FileDelete]);
    files.directory("full/inside");
    let full = files.path("full");
    assert_eq!(files.act(&["rmdirat", "-", &full]), libc::ENOTEMPTY);
    files.settle();
    let (_, delete) = files.delete_of(&full);
    assert_eq!(
        (delete.method(), delete.error),
        (DeleteMethod::Rmdir, libc::ENOTEMPTY as u32)
    );
}

#[test]
fn a_replacing_files_name_that_is_cut_says_so() {
    let mut files = Files::new(&[Kind::FileDelete]);
    let (from, to) = (files.file("from", 1), files.file("to", 2));
    // As a process may write it: slashes in a row are one.
    let long = from.replace("/from", &format!("{}from", "/".repeat(300)));
    assert_eq!(files.act(&["renameat", "-", &long, "-", &to]), 0);
    files.settle();
    let by_functions = files.by_functions(Kind::FileDelete);
    let (_, delete) = files.delete_of(&to);
    // Functions are told the file's own name, which is short.
    assert_eq!(delete.source_truncated, !by_functions, "{delete:?}");
    assert_eq!(delete.source.len(), if by_functions { 4 } else { 255 });
}

//! Who opens files.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
};

use dinle_e2e::{
    act::{act, act_path},
    agent::temporary,
    stream::{Book, Stream},
};
use dinle_proto::v1::{
    Filter, Kind, LossStage, PathSource, StringMatch, SubscribeRequest, string_match::Pattern,
};

use super::{Files, RDONLY, WRONLY, below, open, path_of, text};
use crate::{Lab, shop};

#[test]
fn an_open_says_what_was_opened_and_how() {
    let mut files = Files::new(&[Kind::FileOpen]);
    let old = files.file("old", 10);
    let create = (WRONLY | libc::O_CREAT | libc::O_EXCL).to_string();
    let new = ["a", "b", "c"].map(|name| files.path(name));
    assert_eq!(files.act(&["open", &new[0], &create]), 0);
    assert_eq!(files.act(&["openat", "-", &new[1], &create]), 0);
    assert_eq!(files.act(&["openat2", "-", &new[2], &create]), 0);
    assert_eq!(files.act(&["openat", "-", &old, RDONLY]), 0);
    files.settle();

    for path in &new {
        let open = files.open_of(path);
        let file = fs::metadata(path).unwrap();
        assert_eq!(&open.path, path);
        assert_eq!(open.path_source(), PathSource::Resolved);
        assert_eq!((open.flags, open.mode), (create.parse().unwrap(), 0o640));
        // 0, 1 and 2 are there, and act opens nothing else.
        assert_eq!((open.fd, open.error), (Some(3), 0));
        assert_eq!(open.inode, file.ino());
        let device = (open.device_major, open.device_minor);
        assert_eq!(device, (libc::major(file.dev()), libc::minor(file.dev())));
        assert!(!open.path_truncated && !open.filename_truncated && !open.io_uring);
    }
    let open = files.open_of(&old);
    assert_eq!((open.flags, open.mode, open.fd), (0, 0, Some(3)));
    let process = files.opens()[0].0.process.as_ref().unwrap();
    assert_eq!((&*process.comm, &*process.parent_comm).0, "act");
    assert_eq!(process.ppid, std::process::id());
    // Four, and the mark.
    assert_eq!(files.stream.book(Kind::FileOpen), Book::complete(5));
}

#[cfg(target_arch = "x86_64")]
#[test]
fn creat_is_an_open_too() {
    let mut files = Files::new(&[Kind::FileOpen]);
    let path = files.path("new");
    assert_eq!(files.act(&["creat", &path]), 0);
    files.settle();
    let open = files.open_of(&path);
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
    assert_eq!((open.flags, open.mode), (flags as u32, 0o640));
}

#[test]
fn an_open_that_fails_says_why() {
    let mut files = Files::new(&[Kind::FileOpen]);
    let file = files.file("file", 1);
    let exclusive = (WRONLY | libc::O_CREAT | libc::O_EXCL).to_string();
    let (nothing, below, directory) = (
        files.path("nothing"),
        files.path("file/below"),
        files.directory("directory"),
    );
    let attempts = [
        (&nothing, RDONLY, libc::ENOENT),
        (&below, RDONLY, libc::ENOTDIR),
        (&file, &exclusive, libc::EEXIST),
        (&directory, "1", libc::EISDIR),
    ];
    for (path, flags, errno) in attempts {
        assert_eq!(files.act(&["open", path, flags]), errno, "{path}");
    }
    files.settle();
    for (path, _, errno) in attempts {
        let open = files.open_of(path);
        assert_eq!((&open.path, open.path_source()), (path, PathSource::Joined));
        assert_eq!((open.error, open.fd, open.inode), (errno as u32, None, 0));
    }
}

#[test]
fn a_relative_name_becomes_a_path() {
    let mut files = Files::new(&[Kind::FileOpen]);
    let dir = files.directory("one/two");
    files.file("one/two/file", 1);
    symlink("two", files.path("one/link")).unwrap();
    let cases = [
        // From the working directory.
        (vec!["open", "file"], "file", "one/two/file"),
        (
            vec!["open", "./../two//file"],
            "./../two//file",
            "one/two/file",
        ),
        // Links are followed.
        (vec!["open", "../link/file"], "../link/file", "one/two/file"),
    ];
    let run = |files: &Files, words: &[&str]| {
        let program = text(act_path());
        let before = ["in", &dir, &program, "file"];
        files.within(&before, &[words, &[RDONLY]].concat())
    };
    for (words, ..) in &cases {
        assert_eq!(run(&files, words), 0, "{words:?}");
    }
    // From a descriptor's directory.
    let at = files.path("one");
    assert_eq!(files.act(&["openat", &at, "two/./file", RDONLY]), 0);
    assert_eq!(run(&files, &["openat", &at, "../nothing"]), libc::ENOENT);
    files.settle();
    for (_, filename, path) in &cases {
        let open = files.open_of(filename);
        assert_eq!(open.path, files.path(path));
        assert_eq!(open.path_source(), PathSource::Resolved);
    }
    assert_eq!(files.open_of("two/./file").path, files.path("one/two/file"));
    let failed = files.open_of("../nothing");
    assert_eq!(failed.path, files.path("nothing"));
    assert_eq!(failed.path_source(), PathSource::Joined);
}

#[test]
fn a_deep_path_is_whole_and_a_deeper_one_says_that_it_is_cut() {
    /// Components that are told.
    const KEPT: usize = 48;
    let mut files = Files::new(&[Kind::FileOpen]);
    let above = files.root.matches('/').count();
    let deep = |components: usize| {
        let names: Vec<String> = (above..components).map(|n| format!("d{n}")).collect();
        names.join("/")
    };
    let path = files.path(&deep(40));
    fs::create_dir_all(&path).unwrap();
    let directory = (libc::O_RDONLY | libc::O_DIRECTORY).to_string();
    assert_eq!(files.act(&["open", &path, &directory]), 0);
    files.settle();
    let whole = files.open_of(&path);
    assert_eq!((&whole.path, whole.path_truncated), (&path, false));

    // Its path is not below the directory as far as anyone can see.
    let mut everything = files.lab.agent.subscribe(SubscribeRequest {
        kinds: vec![Kind::FileOpen.into()],
        ..shop()
    });
    let path = files.path(&deep(60));
    fs::create_dir_all(&path).unwrap();
    assert_eq!(files.act(&["open", &path, &directory]), 0);
    everything.until("the open", |stream| {
        stream.details(open).any(|(_, open)| open.filename == path)
    });
    let (_, cut) = everything
        .details(open)
        .find(|(_, open)| open.filename == path)
        .unwrap();
    assert!(cut.path_truncated);
    let shown = cut.path.strip_prefix('…').expect("a sign that it is cut");
    assert!(path.ends_with(shown), "{shown}");
    assert!(
        (KEPT - 3..=KEPT).contains(&shown.matches('/').count()),
        "{shown}"
    );
}

#[test]
fn only_the_pods_files_are_told_and_each_once() {
    let mut files = Files::new(&[Kind::FileOpen]);
    let file = files.file("file", 1);
    let (_, other) = files.lab.tree.app("other");
    let command = |n: &str| act(["file", "many", n, "openat", "-", &file, RDONLY]);
    other.succeed(command("29"));
    files.lab.app.succeed(command("23"));
    other.succeed(command("29"));
    files.settle();
    // Where programs can be preempted (7.x), the kernel skips one that a task on the same CPU is in the middle of. The stream is told.
    let skipped = |stream: &Stream| stream.told_lost(Kind::FileOpen, LossStage::KernelSkipped);
    let told = |stream: &Stream| stream.details(open).count() as u64;
    files
        .stream
        .until("each open, or that it was skipped", |stream| {
            told(stream) + skipped(stream) >= 24
        });
    files.stream.heartbeat();
    if skipped(&files.stream) == 0 {
        assert_eq!(files.stream.book(Kind::FileOpen), Book::complete(24));
    } else {
        assert!(told(&files.stream) < 24, "none is told twice");
    }
}

#[test]
fn filters_leave_only_what_was_asked_for() {
    let lab = Lab::of("file");
    let dir = temporary();
    let root = text(fs::canonicalize(dir.path()).unwrap());
    let old = format!("{root}/old");
    fs::write(&old, b"x").unwrap();
    let (new, nothing) = (format!("{root}/new.log"), format!("{root}/nothing"));
    let mark = format!("{root}/mark/.log");
    fs::create_dir(dir.path().join("mark")).unwrap();
    let stream = |filter: Filter| lab.agent.subscribe(below(&root, &[Kind::FileOpen], filter));
    let mut streams = [
        stream(Filter {
            failed: true,
            ..Filter::default()
        }),
        stream(Filter {
            write: true,
            ..Filter::default()
        }),
        stream(Filter {
            create: true,
            ..Filter::default()
        }),
    ];
    let mut globs = lab.agent.subscribe(SubscribeRequest {
        kinds: vec![Kind::FileOpen.into()],
        filter: Some(Filter {
            path: vec![StringMatch {
                pattern: Some(Pattern::Glob(format!("{root}/*.log"))),
            }],
            ..Filter::default()
        }),
        ..shop()
    });
    let run = |path: &str, flags: i32| {
        lab.app
            .run(act(["file", "openat", "-", path, &flags.to_string()]));
    };
    run(&old, libc::O_RDONLY);
    run(&old, libc::O_RDWR);
    run(&new, libc::O_RDONLY | libc::O_CREAT);
    run(&nothing, libc::O_RDONLY);
    // The mark passes every filter: it fails, for writing, and would create.
    run(&format!("{mark}/x/.log"), libc::O_WRONLY | libc::O_CREAT);
    let mark = format!("{mark}/x/.log");
    let expected = [vec![&nothing, &mark], vec![&old, &mark], vec![&new, &mark]];
    for (stream, expected) in streams.iter_mut().zip(expected) {
        stream.until("the mark", |stream| {
            stream.events.iter().any(|event| path_of(event) == mark)
        });
        stream.heartbeat();
        let paths: Vec<&str> = stream.events.iter().map(path_of).collect();
        assert_eq!(paths, expected);
        assert_eq!(stream.book(Kind::FileOpen), Book::complete(2));
    }
    globs.until("the mark", |stream| stream.events.len() == 2);
    let paths: Vec<&str> = globs.events.iter().map(path_of).collect();
    assert_eq!(paths, [&new, &mark]);
}

#[test]
fn what_nobody_asks_for_stays_in_the_kernel() {
    let mut files = Files::new(&[Kind::FileOpen]);
    // As a name, it begins like the directory's.
    let beside = format!("{}-beside", files.root);
    fs::create_dir(&beside).unwrap();
    fs::write(format!("{beside}/file"), b"x").unwrap();
    let inside = files.file("file", 1);
    assert_eq!(
        files.act(&[
            "many",
            "20",
            "openat",
            "-",
            &format!("{beside}/file"),
            RDONLY
        ]),
        0
    );
    assert_eq!(files.act(&["many", "3", "openat", "-", &inside, RDONLY]), 0);
    files.settle();
    fs::remove_dir_all(&beside).unwrap();
    assert_eq!(files.stream.book(Kind::FileOpen), Book::complete(4));
    let (_, metrics) = files.lab.agent.get("/metrics");
    let frames = metrics
        .lines()
        .find(|line| line.starts_with("dinle_frames_total{kind=\"file_open\"}"))
        .unwrap();
    // Three, and the mark.
    assert!(frames.ends_with(" 4"), "{frames}");
}

//! Who opens files, and who makes their content go: by either route, whichever this kernel allows.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
    path::Path,
};

use dinle_e2e::{
    act::{act, act_path, copy},
    agent::temporary,
    stream::{Book, Stream},
};
use dinle_proto::v1::{
    DeleteMethod, Event, FileDelete, FileOpen, Filter, Kind, LossStage, PathSource, StringMatch,
    SubscribeRequest, event::Detail, string_match::Pattern,
};
use tempfile::TempDir;

use crate::{Lab, shop};

const RDONLY: &str = "0";
const WRONLY: i32 = libc::O_WRONLY;

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
}

/// A directory of the test's own, its path without links, and a stream of what happens to files below it.
struct Files {
    lab: Lab,
    root: String,
    stream: Stream,
    _dir: TempDir,
}

impl Files {
    fn new(kinds: &[Kind]) -> Self {
        Self::with(kinds, Filter::default())
    }

    fn with(kinds: &[Kind], filter: Filter) -> Self {
        Self::by(&[], kinds, filter)
    }

    fn by(flags: &[&str], kinds: &[Kind], filter: Filter) -> Self {
        let lab = Lab::with(&[flags, &["--sensors", "file"]].concat());
        let dir = temporary();
        let root = text(fs::canonicalize(dir.path()).unwrap());
        let stream = lab.agent.subscribe(below(&root, kinds, filter));
        Self {
            lab,
            root,
            stream,
            _dir: dir,
        }
    }

    /// A path below the directory.
    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.root)
    }

    /// A file of that many bytes.
    fn file(&self, name: &str, bytes: usize) -> String {
        let path = self.path(name);
        fs::write(&path, vec![b'x'; bytes]).unwrap();
        path
    }

    fn directory(&self, name: &str) -> String {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Runs one operation in the pod. Gives its error number.
    fn act(&self, words: &[&str]) -> i32 {
        self.within(&["file"], words)
    }

    /// The same behind other words of `act`, which change where the process is.
    fn within(&self, before: &[&str], words: &[&str]) -> i32 {
        let ran = self.lab.app.run(act([before, words].concat()));
        ran.status.code().expect("no signal")
    }

    /// Reads everything that has happened so far.
    fn settle(&mut self) {
        let mark = self.path("no-such-file-to-mark-the-end");
        let kind = self.kinds()[0];
        match kind {
            Kind::FileOpen => assert_eq!(self.act(&["open", &mark, RDONLY]), libc::ENOENT),
            // A file that is there: what is not is not told by every route.
            _ => {
                fs::write(&mark, b"x").unwrap();
                assert_eq!(self.act(&["unlinkat", "-", &mark]), 0);
            }
        }
        self.stream.until("the mark", |stream| {
            stream.events.iter().any(|event| path_of(event) == mark)
        });
        self.stream.heartbeat();
    }

    fn kinds(&self) -> Vec<Kind> {
        let capabilities = &self.stream.plan.capabilities;
        capabilities.iter().map(|one| one.kind()).collect()
    }

    fn opens(&self) -> Vec<(&Event, &FileOpen)> {
        self.stream.details(open).collect()
    }

    fn open_of(&self, filename: &str) -> &FileOpen {
        let opens = self.opens();
        let mut found = opens.iter().filter(|(_, open)| open.filename == filename);
        let one = found
            .next()
            .unwrap_or_else(|| panic!("no open of {filename}: {opens:#?}"));
        assert!(found.next().is_none(), "{filename} is opened once");
        one.1
    }

    fn deletes(&self) -> Vec<(&Event, &FileDelete)> {
        self.stream.details(delete).collect()
    }

    fn delete_of(&self, path: &str) -> (&Event, &FileDelete) {
        let deletes = self.deletes();
        let mut found = deletes.iter().filter(|(_, delete)| delete.path == path);
        let one = *found
            .next()
            .unwrap_or_else(|| panic!("no delete of {path}: {deletes:#?}"));
        assert!(
            found.next().is_none(),
            "{path} is deleted once: {deletes:#?}"
        );
        one
    }

    /// The kernel's own functions are heard, not only system calls.
    fn by_functions(&self, kind: Kind) -> bool {
        let mut capabilities = self.stream.plan.capabilities.iter();
        let capability = capabilities
            .find(|one| one.kind() == kind)
            .expect("asked for");
        assert!(capability.available, "{capability:?}");
        capability.hooks.iter().all(|hook| hook.name != "sys_exit")
    }
}

fn below(root: &str, kinds: &[Kind], filter: Filter) -> SubscribeRequest {
    SubscribeRequest {
        kinds: kinds.iter().map(|&kind| kind.into()).collect(),
        filter: Some(Filter {
            path: vec![prefix(&format!("{root}/"))],
            ..filter
        }),
        ..shop()
    }
}

fn prefix(text: &str) -> StringMatch {
    StringMatch {
        pattern: Some(Pattern::Prefix(text.into())),
    }
}

fn open(detail: &Detail) -> Option<&FileOpen> {
    match detail {
        Detail::FileOpen(open) => Some(open),
        _ => None,
    }
}

fn delete(detail: &Detail) -> Option<&FileDelete> {
    match detail {
        Detail::FileDelete(delete) => Some(delete),
        _ => None,
    }
}

fn path_of(event: &Event) -> &str {
    match &event.detail {
        Some(Detail::FileOpen(open)) => &open.path,
        Some(Detail::FileDelete(delete)) => &delete.path,
        _ => "",
    }
}

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
    let open = files.open_of(&path);
    assert_eq!((&open.path, open.path_truncated), (&path, false));

    // Its path is not below the directory as far as anyone can see.
    let mut everything = files.lab.agent.subscribe(SubscribeRequest {
        kinds: vec![Kind::FileOpen.into()],
        ..shop()
    });
    let path = files.path(&deep(60));
    fs::create_dir_all(&path).unwrap();
    assert_eq!(files.act(&["open", &path, &directory]), 0);
    everything.until("the open", |stream| {
        stream
            .details(open_detail)
            .any(|(_, open)| open.filename == path)
    });
    let (_, open) = everything
        .details(open_detail)
        .find(|(_, open)| open.filename == path)
        .unwrap();
    assert!(open.path_truncated);
    let shown = open.path.strip_prefix('…').expect("a sign that it is cut");
    assert!(path.ends_with(shown), "{shown}");
    assert!(
        (KEPT - 3..=KEPT).contains(&shown.matches('/').count()),
        "{shown}"
    );
}

fn open_detail(detail: &Detail) -> Option<&FileOpen> {
    open(detail)
}

#[test]
fn paths_are_those_inside_the_container() {
    let lab = Lab::of("file");
    let dir = temporary();
    let root = text(fs::canonicalize(dir.path()).unwrap());
    fs::create_dir_all(dir.path().join("inner/var/log")).unwrap();
    fs::write(dir.path().join("inner/var/log/app.log.1"), b"lines").unwrap();
    copy(&act_path(), &dir.path().join("inner/act"));
    let inner = format!("{root}/inner");
    let log = "/var/log/app.log.1";
    let mut stream = lab.agent.subscribe(SubscribeRequest {
        kinds: vec![Kind::FileOpen.into(), Kind::FileDelete.into()],
        filter: Some(Filter {
            path: vec![prefix("/var/log/app.")],
            ..Filter::default()
        }),
        ..shop()
    });
    let run = |words: &[&str]| {
        let ran = lab.app.run(act(words));
        assert_eq!(ran.status.code(), Some(0), "{words:?}");
    };
    run(&[
        "chroot",
        &inner,
        "/var",
        "/act",
        "file",
        "open",
        "log/app.log.1",
        RDONLY,
    ]);
    run(&["pivot", &inner, "/", "/act", "file", "open", log, RDONLY]);
    run(&[
        "pivot",
        &inner,
        "/var",
        "/act",
        "file",
        "unlinkat",
        "-",
        "log/app.log.1",
    ]);
    stream.until("both opens and the deletion", |stream| {
        stream.events.len() == 3
    });
    for event in &stream.events {
        assert_eq!(path_of(event), log);
    }
    let (_, deleted) = stream.details(delete).next().unwrap();
    assert_eq!(
        deleted.process_args[..],
        ["/act", "file", "unlinkat", "-", "log/app.log.1"]
    );
    assert!(!deleted.process_args_truncated);
}

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
fn what_io_uring_does_is_seen_or_named_as_unseen() {
    let mut files = Files::new(&[Kind::FileOpen, Kind::FileDelete]);
    let (a, b, c) = (
        files.file("a", 10),
        files.file("b", 20),
        files.file("c", 30),
    );
    match files.act(&["uring-open", &a, RDONLY]) {
        0 => {}
        error => return println!("skipped: no io_uring here (error {error})"),
    }
    // Before 5.11 io_uring does not unlink.
    let deletes =
        files.act(&["uring-unlink", &a]) == 0 && files.act(&["uring-rename", &b, &c]) == 0;
    files.settle();
    let told = |kind| {
        let capabilities = &files.stream.plan.capabilities;
        let capability = capabilities.iter().find(|one| one.kind() == kind).unwrap();
        capability.limits.concat()
    };
    if files.by_functions(Kind::FileOpen) {
        let open = files.open_of(&a);
        assert!(open.io_uring && open.fd.is_none(), "{open:?}");
        assert_eq!((&open.path, open.error), (&a, 0));
    } else {
        assert!(told(Kind::FileOpen).contains("io_uring"));
        assert_eq!(files.opens().len(), 1, "only the mark");
    }
    if files.by_functions(Kind::FileDelete) && deletes {
        for (path, method, size) in [
            (&a, DeleteMethod::Unlink, 10),
            (&c, DeleteMethod::Rename, 30),
        ] {
            let (_, delete) = files.delete_of(path);
            assert!(delete.io_uring, "{delete:?}");
            assert_eq!((delete.method(), delete.size_before), (method, Some(size)));
        }
    } else {
        assert!(told(Kind::FileDelete).contains("io_uring"));
    }
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

/// The same by each way that this kernel has. `function` is how functions may be attached to.
fn by_the_way(ways: &str, function: &[&str]) {
    let kinds = [Kind::FileOpen, Kind::FileDelete];
    let mut files = Files::by(&["--ways", ways], &kinds, Filter::default());
    let used = |kind| {
        let mut capabilities = files.stream.plan.capabilities.iter();
        let capability = capabilities.find(|one| one.kind() == kind).unwrap();
        assert!(capability.available, "{capability:?}");
        let ways = capability.hooks.iter().map(|hook| hook.chosen.clone());
        ways.collect::<Vec<_>>()
    };
    for kind in kinds {
        if files.by_functions(kind) {
            assert!(
                used(kind).iter().all(|way| function.contains(&&**way)),
                "{:?}",
                used(kind)
            );
        } else {
            assert_eq!(used(kind), ["tp_btf"]);
        }
    }
    let (a, b, c) = (
        files.file("a", 10),
        files.file("b", 20),
        files.file("c", 30),
    );
    let nothing = files.path("nothing");
    assert_eq!(files.act(&["openat", "-", &a, RDONLY]), 0);
    assert_eq!(files.act(&["openat", "-", &nothing, RDONLY]), libc::ENOENT);
    assert_eq!(files.act(&["unlinkat", "-", &a]), 0);
    assert_eq!(files.act(&["renameat", "-", &b, "-", &c]), 0);
    assert_eq!(files.act(&["truncate", &c, "0"]), 0);
    files.settle();
    let opened = files.open_of(&a);
    assert_eq!((&opened.path, opened.fd, opened.error), (&a, Some(3), 0));
    let failed = files.open_of(&nothing);
    assert_eq!((failed.fd, failed.error), (None, libc::ENOENT as u32));
    let known = files.by_functions(Kind::FileDelete);
    let told: Vec<_> = files
        .deletes()
        .iter()
        .map(|(_, delete)| (delete.path.clone(), delete.method(), delete.size_before))
        .collect();
    let size = |bytes| known.then_some(bytes);
    assert_eq!(
        told,
        [
            (a, DeleteMethod::Unlink, size(10)),
            (c.clone(), DeleteMethod::Rename, size(30)),
            (c, DeleteMethod::Truncate, size(20)),
        ]
    );
}

#[test]
fn trampolines_and_typed_tracepoints_tell_the_same() {
    by_the_way("tp_btf,fentry,fexit", &["fentry", "fexit"]);
}

#[test]
fn probes_tell_the_same() {
    by_the_way("tp_btf,kprobe,kretprobe", &["kprobe", "kretprobe"]);
}

#[test]
fn system_calls_tell_the_same() {
    by_the_way("tp_btf", &[]);
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

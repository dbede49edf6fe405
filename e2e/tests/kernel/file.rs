//! Who opens files, and who makes their content go: by either route, whichever this kernel allows.

#[path = "file/deletions.rs"]
mod deletions;
#[path = "file/opens.rs"]
mod opens;

use std::{fs, path::Path};

use dinle_e2e::{
    act::{act, act_path, copy},
    agent::temporary,
    skipped::skipped,
    stream::Stream,
};
use dinle_proto::v1::{
    DeleteMethod, Event, FileDelete, FileOpen, Filter, Kind, StringMatch, SubscribeRequest,
    event::Detail, string_match::Pattern,
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
        error => return skipped(&format!("no io_uring here (error {error})")),
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

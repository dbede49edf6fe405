//! The rooms of the agent, and what each may know. Moving a wall means editing this table, with its reason.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A room, and the crates and sibling rooms that it may name.
const ROOMS: &[(&str, &[&str])] = &[
    // All of BPF, and nothing of who listens.
    ("kernel", &["aya", "dinle_ebpf", "zerocopy"]),
    // Pure: bytes in, message out.
    ("event", &["dinle_ebpf", "dinle_proto", "zerocopy"]),
    // Who a cgroup is. Uses the contract's `Workload` itself, so that there is no second shape to keep in step.
    (
        "workload",
        &["apiserver", "dinle_proto", "k8s_openapi", "kube", "tokio"],
    ),
    // The way to the API server, for those who ask it.
    ("apiserver", &["kube"]),
    ("filter", &["dinle_proto"]),
    // Who listens, and what they lost. Knows neither kernel nor gRPC.
    ("hub", &["dinle_proto", "filter", "tokio"]),
    // The way of an event.
    (
        "pipeline",
        &[
            "dinle_ebpf",
            "dinle_proto",
            "event",
            "hub",
            "kernel",
            "workload",
        ],
    ),
    // The way of demand, the other way round.
    (
        "control",
        &[
            "dinle_ebpf",
            "dinle_proto",
            "event",
            "filter",
            "hub",
            "kernel",
            "pipeline",
            "tokio",
            "workload",
        ],
    ),
    // Who may be told what. Asks the API server, and decides; others act on it.
    (
        "auth",
        &[
            "apiserver",
            "dinle_ebpf",
            "dinle_proto",
            "event",
            "filter",
            "k8s_openapi",
            "kube",
            "tokio",
        ],
    ),
    // Who may be told what while their stream goes on: the same for callers and exporters, so that there is no second way to a grant.
    (
        "admission",
        &["auth", "dinle_proto", "filter", "hub", "tokio", "workload"],
    ),
    // Streams in the log.
    ("audit", &["dinle_proto", "hub"]),
    // The contract's messages as text, and its numbers by name, for whoever prints or writes them.
    ("json", &["dinle_proto"]),
    ("errno", &[]),
    // What is new in a report on a TCP session, for whoever adds up.
    ("sessions", &["dinle_proto"]),
    // Subscribers within the agent. As `api` they ask for streams, are admitted, and wait for the kernel; they see no more of the way of events than a
    // client.
    (
        "export",
        &[
            "admission",
            "audit",
            "control",
            "dinle_proto",
            "errno",
            "filter",
            "hub",
            "json",
            "sessions",
            "tokio",
            "tonic",
            "workload",
        ],
    ),
    (
        "api",
        &[
            "admission",
            "audit",
            "auth",
            "control",
            "dinle_proto",
            // Of which it tells how they are.
            "export",
            "filter",
            "hub",
            "listen",
            "tokio",
            "tonic",
            "workload",
        ],
    ),
    (
        "metrics",
        &[
            "auth",
            "control",
            "dinle_ebpf",
            "event",
            "export",
            "hub",
            "listen",
            "pipeline",
            "tokio",
            "workload",
        ],
    ),
    // Where clients connect, and who they are.
    ("listen", &["tokio", "tonic"]),
    // What each of them may be told.
    ("config", &["filter", "hub", "kernel", "listen", "workload"]),
    // Where agents are, and the way to them: for `client`.
    (
        "cluster",
        &[
            "dinle_proto",
            "filter",
            "k8s_openapi",
            "kube",
            "tokio",
            "tonic",
            "workload",
        ],
    ),
    // Talks to the API only: what it lacks, the contract lacks.
    (
        "client",
        &[
            "cluster",
            "dinle_proto",
            "errno",
            "json",
            "sessions",
            "tokio",
            "tonic",
        ],
    ),
];

/// Everything that a room could reach for. `app` and `main` wire the rooms and may name all of it.
const WATCHED: &[&str] = &[
    "admission",
    "api",
    "apiserver",
    "app",
    "audit",
    "auth",
    "aya",
    "client",
    "config",
    "control",
    "dinle_ebpf",
    "dinle_proto",
    "errno",
    "event",
    "export",
    "filter",
    "hub",
    "json",
    "k8s_openapi",
    "kernel",
    "kube",
    "listen",
    "metrics",
    "pipeline",
    "sessions",
    "tokio",
    "tonic",
    "workload",
    "zerocopy",
];

#[test]
fn every_room_keeps_to_its_walls() {
    for (room, allowed) in ROOMS {
        let files = sources(room);
        // A module of the room's own may have the name of another room.
        let own = |name: &str| {
            let mut stems = files.iter().filter_map(|file| file.file_stem());
            stems.any(|stem| stem == name)
        };
        for file in &files {
            for (number, line) in code(file) {
                for name in WATCHED
                    .iter()
                    .filter(|name| !own(name) && !allowed.contains(name))
                {
                    assert!(
                        !names(&line, name),
                        "{}:{number} reaches from `{room}` into `{name}`:\n{line}\nIf it must, say so in ROOMS of {}, with the reason.",
                        file.display(),
                        file!(),
                    );
                }
            }
        }
    }
}

#[test]
fn every_file_is_in_a_room() {
    let src = src();
    let rooms: Vec<PathBuf> = ROOMS.iter().flat_map(|(room, _)| sources(room)).collect();
    let wiring = ["app.rs", "app", "cli.rs", "lib.rs", "main.rs"].map(|name| src.join(name));
    for file in walk(&src) {
        let wires = wiring.iter().any(|wiring| file.starts_with(wiring));
        let known = rooms.contains(&file) || wires || is_test(&file);
        assert!(
            known,
            "{} belongs to no room: add it to ROOMS of {}",
            file.display(),
            file!()
        );
    }
}

#[test]
fn unsafe_stays_in_the_kernel_room() {
    let kernel = sources("kernel");
    for file in walk(&src())
        .into_iter()
        .filter(|file| !kernel.contains(file) && !is_test(file))
    {
        for (number, line) in code(&file) {
            assert!(
                !line.contains("unsafe "),
                "{}:{number}: `unsafe` belongs in the room `kernel`:\n{line}",
                file.display()
            );
        }
    }
}

#[test]
fn the_walls_are_seen() {
    assert!(names("use kube::Client;", "kube"));
    assert!(names("let nudge: kernel::Nudge = x;", "kernel"));
    assert!(names("let x = crate::hub::Hub::new();", "hub"));
    assert!(names("use crate::{event, hub::Hub};", "event"));
    assert!(!names("// the kernel says so", "kernel"));
    assert!(!names("self.kernel.load()", "kernel"));
    assert!(!names("use subhub::Thing;", "hub"));
    assert!(names("use crate::{filter::Kinds, kernel};", "kernel"));
    assert!(!names("use k8s_openapi::api::core;", "api"));
    assert!(!names(
        "use dinle_proto::v1::{self, event::Detail};",
        "event"
    ));
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// `room.rs`, and everything under `room/`, but for tests.
fn sources(room: &str) -> Vec<PathBuf> {
    let mut files = walk(&src().join(room));
    files.push(src().join(format!("{room}.rs")));
    files.retain(|file| !is_test(file));
    files
}

fn is_test(file: &Path) -> bool {
    file.components()
        .any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs")
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else {
            files.push(path);
        }
    }
    files
}

/// Numbered lines without comments, up to the file's own tests. A `use` that spans lines is one.
fn code(file: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(file).expect("a source file");
    let mut code: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line == "#[cfg(test)]" {
            break;
        }
        let line = line.split("//").next().unwrap_or_default();
        match code.last_mut() {
            Some((_, whole)) if open => whole.push_str(line.trim_start()),
            _ => code.push((number, line.to_owned())),
        }
        open = code
            .last()
            .is_some_and(|(_, whole)| is_use(whole) && !whole.contains(';'));
    }
    code
}

fn is_use(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("use ") || line.starts_with("pub use ")
}

/// Whether a line names a crate or room: `name::` at the beginning of a path, or the name in a `use` of what is ours.
fn names(line: &str, name: &str) -> bool {
    let line = line.split("//").next().unwrap_or_default();
    let is_use = is_use(line);
    let is_root = |at: usize| {
        let before = &line[..at];
        if is_use && !before.trim_end().ends_with("use") {
            // Inside of other crates things may be called like our rooms.
            return before.contains("use crate::") && before.ends_with(['{', ' ', ',', ':']);
        }
        if let Some(path) = before.strip_suffix("::") {
            return path.ends_with("crate");
        }
        !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.' || c == '"')
    };
    let mut found = line.match_indices(name).filter(|&(at, _)| is_root(at));
    found.any(|(at, _)| {
        let after = &line[at + name.len()..];
        after.starts_with("::") || is_use && after.starts_with([',', '}', ';'])
    })
}

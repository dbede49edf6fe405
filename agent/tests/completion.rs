//! Completion as shells and kubectl ask for it, where there is no cluster to be heard of.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

/// The program waits for 2 s; the rest is for a busy machine.
const SOON: Duration = Duration::from_secs(8);

/// What the program says to bash.
fn in_bash(kubeconfig: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dinle"))
        .arg("--")
        .args(words)
        .env("_DINLE_COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string())
        .env("KUBECONFIG", kubeconfig)
        .output()
        .expect("the program runs")
}

fn nothing_was_said(output: &Output, began: Instant) {
    let Output { stdout, stderr, .. } = output;
    assert_eq!(String::from_utf8_lossy(stdout), "");
    assert_eq!(String::from_utf8_lossy(stderr), "");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

/// A kubeconfig, written in JSON, for a server and with something about its user.
fn kubeconfig(directory: &Path, server: &str, user: &serde_json::Value) -> std::path::PathBuf {
    let path = directory.join("config");
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
        "clusters": [{ "name": "c", "cluster": { "server": server } }],
        "users": [{ "name": "u", "user": user }],
    });
    fs::write(&path, config.to_string()).expect("written");
    path
}

#[test]
fn a_server_that_never_answers_is_waited_for_a_moment_and_not_spoken_of() {
    let directory = tempfile::tempdir().expect("a directory");
    // Connections are taken by the kernel, and nobody reads them.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let server = format!("http://{}", silent.local_addr().expect("an address"));
    let config = kubeconfig(directory.path(), &server, &serde_json::json!({}));
    let began = Instant::now();
    let output = in_bash(&config, &["dinle", "watch", "--kube", "-n", ""]);
    nothing_was_said(&output, began);
    // What takes no cluster is there all the same.
    let output = in_bash(&config, &["dinle", "watch", "--kube", "--kube-c"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "--kube-context");
}

#[test]
fn a_program_that_asks_for_a_password_is_not_let_at_the_terminal() {
    let directory = tempfile::tempdir().expect("a directory");
    let asks = serde_json::json!({ "exec": {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "/bin/sh",
        "args": ["-c", "echo Password: >&2; cat; exec sleep 20"],
        "interactiveMode": "IfAvailable",
    }});
    let config = kubeconfig(directory.path(), "http://127.0.0.1:9", &asks);
    let began = Instant::now();
    let output = in_bash(&config, &["kubectl-dinle", "watch", "-n", ""]);
    nothing_was_said(&output, began);
}

#[test]
fn there_need_not_be_a_cluster() {
    let began = Instant::now();
    for words in [
        vec!["dinle", "watch", "--kube", "-n", ""],
        vec!["dinle", "tcplife", "--kube-context", ""],
        // One agent, at an address where nobody listens.
        vec!["dinle", "watch", "--address", "127.0.0.1:9", "-p", ""],
        // What it does not know.
        vec!["dinle", "watch", "--frobn"],
    ] {
        let output = in_bash(Path::new("/nonexistent/config"), &words);
        nothing_was_said(&output, began);
    }
}

#[test]
fn by_the_name_that_kubectl_looks_for_it_completes_the_plugin() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = directory.path().join("kubectl_complete-dinle");
    symlink(env!("CARGO_BIN_EXE_dinle"), &program).expect("a link");
    let told = |words: &[&str]| {
        let output = Command::new(&program)
            .args(words)
            .output()
            .expect("it runs");
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
        String::from_utf8(output.stdout).expect("text")
    };
    assert_eq!(told(&["watch", "--kinds", "exe"]), "exec\n:4\n");
    let commands = told(&["tcpl"]);
    assert!(
        commands.starts_with("tcplife\tPrint TCP sessions"),
        "{commands}"
    );
    assert_eq!(told(&["doctor", "x"]), ":4\n");
}

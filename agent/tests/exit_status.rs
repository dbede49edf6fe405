//! What the program says by its exit status, and that its help and docs/clients.md say the same.

use std::{
    net::TcpListener,
    process::{Command, Output},
};

fn dinle(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dinle"))
        .args(arguments)
        .env_remove("DINLE_ADDRESS")
        .output()
        .expect("the program runs")
}

/// Its exit status, after what it said on standard error.
fn status(arguments: &[&str]) -> (i32, String) {
    let Output { status, stderr, .. } = dinle(arguments);
    let code = status.code().expect("no signal ended it");
    (code, String::from_utf8_lossy(&stderr).into_owned())
}

/// An address of this machine where nobody listens.
fn nobody() -> String {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("an address").to_string()
}

#[test]
fn what_is_fine_is_0() {
    assert_eq!(status(&["version"]), (0, String::new()));
    assert_eq!(status(&["watch", "--help"]), (0, String::new()));
}

#[test]
fn what_fails_is_1() {
    let (code, said) = status(&["watch", "--address", &nobody()]);
    assert_eq!(code, 1);
    assert!(
        said.starts_with("dinle: cannot connect to the agent at http://127.0.0.1:"),
        "{said}"
    );
    let missing = ["status", "--kube", "--kubeconfig", "/nonexistent/config"];
    let (code, said) = status(&missing);
    assert_eq!(code, 1);
    assert!(said.starts_with("dinle: --kubeconfig /nonexistent/config: "));
}

#[test]
fn an_address_in_the_environment_does_not_contradict_a_cluster() {
    let asked = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dinle"));
        command
            .args(["status", "--kube", "--kubeconfig", "/nonexistent/config"])
            .args(more)
            .env("DINLE_ADDRESS", "127.0.0.1:9");
        command.status().expect("the program runs").code()
    };
    assert_eq!(asked(&[]), Some(1), "the cluster was asked for");
    assert_eq!(asked(&["--address", "127.0.0.1:9"]), Some(2));
}

#[test]
fn what_cannot_be_asked_for_is_2() {
    for arguments in [
        vec!["watch", "--kinds", "forks"],
        vec!["watch", "--raw", "--address", "n1"],
        vec!["man", "nope"],
        vec!["top", "process", "--interval", "9223372036854775807s"],
        vec!["selftest", "--timeout", "9223372036854775807s"],
        vec!["listen"],
        vec![],
    ] {
        assert_eq!(status(&arguments).0, 2, "{arguments:?}");
    }
}

#[test]
fn a_list_of_pods_and_owners_is_2() {
    let nobody = nobody();
    for command in [
        vec!["watch"],
        vec!["execsnoop"],
        vec!["tcplife"],
        vec!["top", "disk"],
        vec!["workloads"],
    ] {
        let names = ["pod/web-0", "deploy/checkout", "--address", &nobody];
        let (code, said) = status(&[command.as_slice(), &names].concat());
        assert_eq!(code, 2, "{command:?}: {said}");
        assert_eq!(
            said,
            "name pods or owners, not both: `web-0` is a pod and `deploy/checkout` an owner; of an owner's pods, --pod takes those with a name\n"
        );
    }
}

/// 3 takes a cluster: e2e/cluster/test_plugin.py holds it.
#[test]
fn the_help_ends_with_all_of_them() {
    for flag in ["-h", "--help"] {
        let help = String::from_utf8(dinle(&[flag]).stdout).expect("text");
        let (_, end) = help.split_once("Exit status:").expect("it tells of it");
        let told: Vec<_> = end
            .lines()
            .filter_map(|line| line.trim_start().chars().next())
            .collect();
        assert_eq!(told, ['0', '1', '2', '3'], "{help}");
    }
}

#[test]
fn the_documents_say_the_same_as_the_help() {
    let documents = include_str!("../../docs/clients.md");
    for line in dinle::client::EXIT_STATUS.lines().skip(1) {
        let (status, meaning) = line.trim_start().split_once("  ").expect("two columns");
        let row = format!("| {status} | {meaning} |\n");
        assert!(documents.contains(&row), "docs/clients.md lacks {row}");
    }
}

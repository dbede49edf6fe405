//! The commands as a user sees them.

use clap::Parser as _;

use super::*;

mod end_to_end;
mod requests;

/// What main.rs does with the arguments.
#[derive(Debug, clap::Parser)]
#[command(name = "dinle")]
pub(super) struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn parse(arguments: &[&str]) -> Result<Command, clap::Error> {
    Cli::try_parse_from([&["dinle"], arguments].concat()).map(|cli| cli.command)
}

#[test]
fn as_a_plugin_of_kubectl_it_asks_the_cluster() {
    let words = |text: &str| -> Vec<OsString> { text.split(' ').map(OsString::from).collect() };
    let table = [
        (
            "/usr/bin/kubectl-dinle watch -A",
            "/usr/bin/kubectl-dinle watch --kube -A",
        ),
        ("kubectl-dinle tcplife", "kubectl-dinle tcplife --kube"),
        // Flags of all commands come before the command, too.
        (
            "kubectl-dinle --no-color watch -A",
            "kubectl-dinle --no-color watch --kube -A",
        ),
        (
            "kubectl-dinle --color never top disk",
            "kubectl-dinle --color never top --kube disk",
        ),
        (
            "kubectl-dinle --color=never status",
            "kubectl-dinle --color=never status --kube",
        ),
        // Not to a cluster, or not a question at all.
        (
            "kubectl-dinle watch --address n1",
            "kubectl-dinle watch --address n1",
        ),
        (
            "kubectl-dinle watch --address=n1",
            "kubectl-dinle watch --address=n1",
        ),
        ("kubectl-dinle version", "kubectl-dinle version"),
        ("kubectl-dinle help watch", "kubectl-dinle help watch"),
        ("kubectl-dinle --color watch", "kubectl-dinle --color watch"),
        ("kubectl-dinle --no-color", "kubectl-dinle --no-color"),
        ("kubectl-dinle", "kubectl-dinle"),
        ("dinle watch", "dinle watch"),
    ];
    for (given, expected) in table {
        assert_eq!(
            arguments(words(given).into_iter()),
            words(expected),
            "{given}"
        );
    }
}

#[test]
fn an_error_cannot_take_over_the_terminal() {
    let error = anyhow::anyhow!("\u{1b}]0;mine\u{7}no\nsecond line").context("the agent refused");
    assert_eq!(
        printable(&error),
        "the agent refused: \\u{1b}]0;mine\\u{7}no\nsecond line"
    );
}

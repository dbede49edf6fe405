//! Lines as they are given, and what is said to them.

use clap::CommandFactory as _;

use super::{super::tests::Cli, *};

fn words(line: &str) -> Vec<OsString> {
    line.split(' ').map(OsString::from).collect()
}

/// What kubectl is told behind `kubectl dinle`: the values, and the directive.
fn completed(line: &str) -> (Vec<String>, String) {
    let told = for_kubectl(Cli::command(), &words(line));
    let mut lines: Vec<String> = told
        .lines()
        .map(|line| line.split('\t').next().unwrap_or_default().to_owned())
        .collect();
    let directive = lines.pop().expect("a directive");
    (lines, directive)
}

#[test]
fn commands_and_kinds_and_flags_are_known_without_a_cluster() {
    let (values, directive) = completed("tcp");
    assert_eq!(values, ["tcplife", "tcpreset", "tcpretrans"]);
    assert_eq!(directive, ":4");
    let table = [
        ("watch --kinds exe", vec!["exec"]),
        ("watch --kinds exec,ex", vec!["exec,exec", "exec,exit"]),
        ("watch --kinds=for", vec!["fork"]),
        ("watch --kube-c", vec!["--kube-context"]),
        ("watch -o js", vec!["json", "jsonpath="]),
    ];
    for (line, expected) in table {
        assert_eq!(completed(line).0, expected, "{line}");
    }
}

#[test]
fn flags_are_for_those_who_begin_one() {
    let (values, _) = completed("");
    assert!(values.contains(&"watch".to_owned()), "{values:?}");
    assert!(!values.iter().any(|value| value.starts_with('-')));
    let (values, _) = completed("watch --");
    assert!(values.contains(&"--namespace".to_owned()), "{values:?}");
}

#[test]
fn a_value_that_goes_on_has_no_space_behind_it() {
    let found = ["deploy/", "deploy/x"].map(CompletionCandidate::new);
    assert_eq!(cobra("d", &found), "deploy/\ndeploy/x\n:6\n");
    assert_eq!(cobra("d", &[]), ":4\n");
}

#[test]
fn what_is_written_before_says_where_to_look() {
    let scope = |line: &str| Line::new(words(line), None).scope(&Cli::command());
    let table = [
        (
            "dinle watch -n shop,bank --namespace other ",
            vec!["shop", "bank", "other"],
            false,
        ),
        (
            "dinle watch -nshop -p web --agent-namespace ",
            vec!["shop"],
            false,
        ),
        ("dinle top disk -A ", vec![], true),
        (
            "kubectl-dinle tcplife --namespace=shop --kube-context ",
            vec!["shop"],
            false,
        ),
        ("dinle watch -n shop --count ", vec!["shop"], false),
        // Wrong, but the words before are not.
        ("dinle watch -n shop --frobnicate ", vec!["shop"], false),
        // A ranking of nothing yet.
        ("dinle top -n shop -c ", vec!["shop"], false),
    ];
    for (line, namespaces, all) in table {
        let scope = scope(line).unwrap_or_else(|| panic!("{line}"));
        assert_eq!(scope.namespaces, namespaces, "{line}");
        assert_eq!(scope.all_namespaces, all, "{line}");
    }
    for line in ["dinle ", "dinle wat", "dinle -n "] {
        assert!(scope(line).is_none(), "{line}");
    }
    let named = scope("dinle watch --kubeconfig /a/b -n ").expect("a scope");
    assert_eq!(named.connection.kubeconfig(), Some(Path::new("/a/b")));
}

#[test]
fn words_behind_the_cursor_are_not_looked_at() {
    let line = Line::new(words("dinle watch -n sh --kinds exec"), Some(3));
    assert_eq!(line.words(), words("dinle watch -n sh"));
    assert_eq!(line.current(), "sh");
    // zsh leaves the empty word at the cursor out.
    let line = Line::new(words("dinle watch -n"), Some(3));
    assert_eq!(line.words(), words("dinle watch -n "));
}

#[test]
fn what_bash_takes_for_three_words_is_a_flag_and_its_value() {
    let given = words("dinle watch --namespace = sh");
    assert_eq!(
        Line::new(given, None).words(),
        words("dinle watch --namespace sh")
    );
    // It says so itself of the empty value.
    let given = words("dinle watch --namespace ");
    assert_eq!(Line::new(given.clone(), None).words(), given);
}

#[test]
fn contexts_come_from_the_kubeconfig_that_is_named() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let contexts = r#"{"contexts": [
        {"name": "production", "context": {"cluster": "c"}},
        {"name": "preview", "context": {"cluster": "c"}},
        {"name": "home", "context": {"cluster": "c"}}
    ]}"#;
    std::fs::write(file.path(), contexts).expect("written");
    let path = file.path().display();
    let (values, _) = completed(&format!("watch --kubeconfig {path} --kube-context pr"));
    assert_eq!(values, ["preview", "production"]);
    let (values, _) = completed("watch --kubeconfig /nonexistent --kube-context ");
    assert_eq!(values, Vec::<String>::new());
}

#[test]
fn a_cluster_that_is_not_there_is_not_spoken_of() {
    for line in [
        "watch --kubeconfig /nonexistent -n ",
        "top disk --kubeconfig /nonexistent ",
    ] {
        assert_eq!(completed(line), (vec![], ":4".to_owned()), "{line}");
    }
}

#[test]
fn each_shell_has_a_script_that_asks_this_program() {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let script = |program: &str| {
            let mut script = Vec::new();
            register(shell, Some(OsStr::new(program)), &mut script).expect("a Vec takes all");
            String::from_utf8(script).expect("text")
        };
        let named = script("kubectl-dinle");
        assert!(named.contains(VARIABLE), "{shell}: {named}");
        assert!(named.contains("kubectl-dinle"), "{shell}: {named}");
        let found = script("/opt/bin/dinle");
        assert!(found.contains("/opt/bin/dinle"), "{shell}: {found}");
    }
}

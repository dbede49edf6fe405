//! What people write to choose: label selectors, globs, prefixes and owners. One a line, in this order:
//!
//! ```text
//! a label selector
//! another one
//! labels of a pod: key=value,key=value
//! a pattern
//! a text that it may match
//! an owner
//! ```
#![no_main]

use std::collections::HashMap;

use dinle::filter::{Family, Invalid, Limits, Request, Selector};
use dinle_fuzz::{assert_is_a_sentence, events, workloads};
use dinle_proto::v1::{self, event::Detail, string_match::Pattern};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let mut lines = text.split('\n');
    let mut line = || lines.next().unwrap_or_default();
    let (one, other) = (line(), line());
    let pairs = line().split(',').filter_map(|pair| pair.split_once('='));
    let labels = pairs.map(|(key, value)| (key.to_owned(), value.to_owned()));
    both(one, other, labels.collect());
    let (pattern, subject) = (line(), line());
    patterns(pattern, subject);
    names(pattern, line());
});

/// `None`: it was refused, in a sentence, at this field.
fn parsed(field: &str, selector: &v1::Selector) -> Option<Selector> {
    told(field, Selector::parse(Some(selector), &Limits::default()))
}

fn told<T>(field: &str, parsed: Result<T, Invalid>) -> Option<T> {
    let parsed = parsed.inspect_err(|invalid| {
        assert!(
            invalid.field.starts_with(field),
            "{invalid:?} is not about {field}"
        );
        assert_is_a_sentence(&invalid.problem);
    });
    parsed.ok()
}

fn by_labels(text: &str) -> Option<Selector> {
    let selector = v1::Selector {
        label_selector: text.to_owned(),
        ..Default::default()
    };
    parsed("selector.label_selector", &selector)
}

/// Two selectors with a comma between them ask for what both of them ask for.
fn both(one: &str, other: &str, labels: HashMap<String, String>) {
    let (Some(first), Some(second)) = (by_labels(one), by_labels(other)) else {
        return;
    };
    let is_empty = |text: &str| text.trim_ascii().is_empty();
    if is_empty(one) || is_empty(other) {
        return;
    }
    let Some(joined) = by_labels(&format!("{one},{other}")) else {
        assert!(
            one.len() + other.len() >= 1024,
            "{one:?} and {other:?} cannot be joined"
        );
        return;
    };
    for workload in workloads(labels) {
        let expected = first.matches(&workload) && second.matches(&workload);
        assert_eq!(
            joined.matches(&workload),
            expected,
            "{one:?} and {other:?} on {workload:?}"
        );
    }
}

/// Does a filter on paths with that pattern want an open of that path?
fn matches(pattern: Pattern, path: &str) -> Option<bool> {
    let asked = v1::SubscribeRequest {
        kinds: vec![v1::Kind::FileOpen.into()],
        filter: Some(v1::Filter {
            path: vec![v1::StringMatch {
                pattern: Some(pattern),
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    let request = told(
        "filter.path[0].",
        Request::parse(&asked, &Limits::default()),
    )?;
    let open = |event: &&v1::Event| matches!(event.detail, Some(Detail::FileOpen(_)));
    let opens = events().iter().find(open);
    let mut event = opens.expect("there is one of each kind").clone();
    if let Some(Detail::FileOpen(open)) = &mut event.detail {
        path.clone_into(&mut open.path);
    }
    let wanted = request.filter.matches(&event, &mut Family::default());
    if wanted {
        let narrow = request.filter.narrow();
        assert!(
            path.starts_with(&narrow.prefix),
            "the kernel leaves out {path:?}: {narrow:?}"
        );
    }
    Some(wanted)
}

fn patterns(pattern: &str, subject: &str) {
    // Too long is refused by all alike.
    let Some(exact) = matches(Pattern::Exact(pattern.to_owned()), subject) else {
        assert!(pattern.len() > 1024);
        return;
    };
    assert_eq!(exact, pattern == subject);
    let prefix = matches(Pattern::Prefix(pattern.to_owned()), subject);
    assert_eq!(prefix, Some(subject.starts_with(pattern)));
    matches(Pattern::Glob(pattern.to_owned()), subject);
    // With backslashes a glob is the text itself, and with a star behind it a prefix.
    let special = |c: char| "*?[]{}\\,!-".contains(c);
    let literal: String = pattern
        .chars()
        .flat_map(|c| special(c).then_some('\\').into_iter().chain([c]))
        .collect();
    if literal.len() < 1024 {
        assert_eq!(
            matches(Pattern::Glob(literal.clone()), subject),
            Some(exact),
            "{literal:?}"
        );
        assert_eq!(matches(Pattern::Glob(literal + "*"), subject), prefix);
    }
}

/// Patterns of names, and owners.
fn names(pattern: &str, owner: &str) {
    for (field, selector) in [
        (
            "selector.pods[0]",
            v1::Selector {
                pods: vec![pattern.to_owned()],
                ..Default::default()
            },
        ),
        (
            "selector.containers[0]",
            v1::Selector {
                containers: vec![pattern.to_owned()],
                ..Default::default()
            },
        ),
        (
            "selector.namespaces[0]",
            v1::Selector {
                namespaces: vec![pattern.to_owned()],
                ..Default::default()
            },
        ),
        (
            "selector.owners[0]",
            v1::Selector {
                owners: vec![owner.to_owned()],
                ..Default::default()
            },
        ),
    ] {
        let Some(selector) = parsed(field, &selector) else {
            continue;
        };
        for workload in workloads(HashMap::new()) {
            if selector.matches(&workload) {
                assert!(selector.matches_pod(&workload));
                assert!(
                    !workload.pod.is_empty(),
                    "{workload:?} is no pod whose name is known"
                );
            }
        }
    }
}

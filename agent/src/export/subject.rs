//! Subjects of NATS: a pattern, filled in with what an event tells.

use dinle_proto::v1;

const PLACES: [&str; 4] = ["{node}", "{namespace}", "{pod}", "{kind}"];

/// What is wrong with a pattern.
pub(super) fn problem(pattern: &str) -> Option<String> {
    let mut rest = pattern.to_owned();
    for place in PLACES {
        rest = rest.replace(place, "x");
    }
    let token = |token: &str| {
        let fine = |c: char| c.is_ascii_graphic() && !matches!(c, '*' | '>' | '{' | '}');
        !token.is_empty() && token.chars().all(fine)
    };
    let fine = rest.split('.').all(token) && rest.len() <= 200 && !rest.starts_with('$');
    (!fine).then(|| {
        format!(
            "`{pattern}` is no subject: write words with dots between them, such as dinle.{{namespace}}.{{kind}}; there are {}",
            PLACES.join(", ")
        )
    })
}

/// The subject of an event.
pub(super) fn of(pattern: &str, event: &v1::Event) -> String {
    let nobody = v1::WorkloadName::default();
    let workload = event.workload.as_ref().unwrap_or(&nobody);
    // What a name does not have is a word all the same, so that the words after it keep their place. A pod's name may have dots, which part words.
    let word = |name: &str| match name {
        "" => "_".to_owned(),
        name => name
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || c == '-' {
                    c
                } else {
                    '_'
                }
            })
            .collect(),
    };
    let values = [
        word(&workload.node),
        word(&workload.namespace),
        word(&workload.pod),
        event.kind().name(),
    ];
    let mut subject = pattern.to_owned();
    for (place, value) in PLACES.iter().zip(values) {
        subject = subject.replace(place, &value);
    }
    subject
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_says_whose_event_it_is() {
        let mut event = v1::Event {
            kind: v1::Kind::FileDelete.into(),
            workload: Some(v1::WorkloadName {
                node: "n1.example".into(),
                namespace: "shop".into(),
                pod: "web-0".into(),
                ..v1::WorkloadName::default()
            }),
            ..v1::Event::default()
        };
        let pattern = "dinle.{node}.{namespace}.{pod}.{kind}";
        assert_eq!(
            of(pattern, &event),
            "dinle.n1_example.shop.web-0.file_delete"
        );
        event.workload = None;
        assert_eq!(of(pattern, &event), "dinle._._._.file_delete");
    }

    #[test]
    fn a_subject_that_nobody_can_publish_to_is_refused() {
        for fine in ["dinle", "dinle.{kind}", "a-b.{node}_{pod}"] {
            assert_eq!(problem(fine), None, "{fine}");
        }
        for wrong in [
            "",
            "dinle.",
            "dinle..x",
            "dinle.*",
            "dinle.>",
            "a b",
            "dinle.{name}",
            "$SYS.x",
        ] {
            assert!(
                problem(wrong).is_some_and(|problem| problem.contains("{kind}")),
                "{wrong}"
            );
        }
    }
}

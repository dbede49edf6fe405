//! Messages as protobuf JSON, one a line.

use std::io::Write;

use prost_reflect::{Kind, MessageDescriptor};

use super::template::Template;
use crate::json::Schema;

/// Prints messages of one type.
#[derive(Clone, Debug)]
pub(super) struct Json {
    schema: Schema,
    /// Prints this of each instead; with `true` on a terminal.
    template: Option<(Template, bool)>,
}

impl Json {
    /// For the message `dinle.v1.NAME`.
    pub(super) fn of(name: &str) -> anyhow::Result<Self> {
        Ok(Self {
            schema: Schema::of(name)?,
            template: None,
        })
    }

    /// Prints of each message what a template says. An error is a sentence on what the message does not have.
    pub(super) fn through(self, template: Template, terminal: bool) -> Result<Self, String> {
        for names in template.paths() {
            check(self.schema.descriptor(), names)?;
        }
        Ok(Self {
            template: Some((template, terminal)),
            ..self
        })
    }

    /// The message as a JSON value.
    pub(super) fn value(&self, message: &impl prost::Message) -> anyhow::Result<serde_json::Value> {
        self.schema.value(message)
    }

    /// Prints the message as a line.
    pub(super) fn line(
        &self,
        message: &impl prost::Message,
        out: &mut dyn Write,
    ) -> anyhow::Result<()> {
        if let Some((template, terminal)) = &self.template {
            template.print(&self.value(message)?, *terminal, out)?;
            return Ok(());
        }
        self.schema.line(message, out)
    }
}

/// Whether a message has the fields that a path begins with.
fn check(message: &MessageDescriptor, names: &[String]) -> Result<(), String> {
    let Some((name, rest)) = names.split_first() else {
        return Ok(());
    };
    let Some(field) = message.fields().find(|field| field.json_name() == name) else {
        let fields: Vec<_> = message
            .fields()
            .map(|field| field.json_name().to_owned())
            .collect();
        return Err(format!(
            "-o jsonpath: {} has no field `{name}`; it has {}",
            message.name(),
            fields.join(", ")
        ));
    };
    match field.kind() {
        // Times and durations are text, and a map has any names.
        Kind::Message(inner)
            if !field.is_map() && inner.package_name() == message.package_name() =>
        {
            check(&inner, rest)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dinle_proto::v1;

    #[test]
    fn names_are_those_of_protobuf_json() {
        let event = v1::Event {
            time: Some(prost_types::Timestamp {
                seconds: 1_700_000_000,
                nanos: 5_000_000,
            }),
            redacted: false,
            kind: v1::Kind::Exit.into(),
            cgroup_id: 4026,
            workload: Some(v1::WorkloadName {
                node: "node-1".to_owned(),
                namespace: "shop".to_owned(),
                pod: "web-0".to_owned(),
                container: String::new(),
                state: v1::IdentityState::Pod.into(),
            }),
            process: Some(v1::Process {
                pid: 7,
                pod_pid: 1,
                comm: "a\n\u{1b}".to_owned(),
                start_boot_ns: 12,
                ancestors: vec![3, 1],
                ..Default::default()
            }),
            detail: Some(v1::event::Detail::Exit(v1::Exit {
                signal: 9,
                duration: Some(prost_types::Duration {
                    seconds: 1,
                    nanos: 204_000_000,
                }),
                ..Default::default()
            })),
        };
        let mut out = Vec::new();
        let json = Json::of("Event").expect("a message of the contract");
        json.line(&event, &mut out).expect("a Vec takes all");
        assert_eq!(
            String::from_utf8(out).expect("UTF-8"),
            concat!(
                r#"{"time":"2023-11-14T22:13:20.005Z","kind":"KIND_EXIT","cgroupId":"4026","#,
                r#""workload":{"node":"node-1","namespace":"shop","pod":"web-0","state":"IDENTITY_STATE_POD"},"#,
                r#""process":{"pid":7,"podPid":1,"comm":"a\n\u001b","startBootNs":"12","ancestors":[3,1]},"#,
                r#""exit":{"signal":9,"duration":"1.204s"}}"#,
                "\n"
            )
        );
    }

    #[test]
    fn a_message_that_is_not_in_the_contract_is_refused() {
        let error = Json::of("Nothing").expect_err("there is none");
        assert_eq!(
            error.to_string(),
            "the contract that is built in has no message Nothing"
        );
    }

    #[test]
    fn a_field_that_no_message_has_is_refused() {
        let through = |template: &str| {
            let json = Json::of("Event").expect("a message of the contract");
            let template = Template::parse(template).expect("a template");
            json.through(template, false)
        };
        for fine in [
            "{.exec.filename}",
            "{.time}",
            "{.time.seconds}",
            "{@}",
            "{..x}",
        ] {
            assert!(through(fine).is_ok(), "{fine}");
        }
        let table = [
            (
                "{.exec.filname}",
                "-o jsonpath: Exec has no field `filname`; it has filename, args",
            ),
            (
                "{.cgroup_id}",
                "Event has no field `cgroup_id`; it has time, kind, cgroupId",
            ),
            ("{range .exec.argv[*]}{@}{end}", "Exec has no field `argv`"),
            (
                "{range .exec.args[*]}{$.exe}{end}",
                "Event has no field `exe`",
            ),
        ];
        for (template, expected) in table {
            let error = through(template).expect_err(template);
            assert!(error.contains(expected), "{template}: {error}");
        }
    }
}

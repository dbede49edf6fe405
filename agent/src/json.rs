//! Messages of the contract as protobuf JSON: names in lowerCamelCase, enums by name, 64-bit numbers as strings, defaults left out.
//! One form for what the command line prints and what exporters write.

use std::io::{self, Write};

use anyhow::Context as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde::Serialize as _;
use serde_json::ser::{Formatter, Serializer};

/// Control characters that JSON lets through, but a terminal may obey: names of processes and files are chosen by anybody.
struct Harmless;

impl Formatter for Harmless {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        mut text: &str,
    ) -> io::Result<()> {
        // DEL, and C1, of which each begins with this byte.
        while let Some(start) = text.bytes().position(|byte| matches!(byte, 0x7f | 0xc2)) {
            let (plain, rest) = text.split_at(start);
            out.write_all(plain.as_bytes())?;
            let mut rest = rest.chars();
            match rest.next() {
                Some(c) if c.is_control() => write!(out, "\\u{:04x}", u32::from(c))?,
                Some(c) => write!(out, "{c}")?,
                None => {}
            }
            text = rest.as_str();
        }
        out.write_all(text.as_bytes())
    }
}

/// How messages of one type are written.
#[derive(Clone, Debug)]
pub struct Schema(MessageDescriptor);

impl Schema {
    /// For the message `dinle.v1.NAME`.
    pub fn of(name: &str) -> anyhow::Result<Self> {
        let pool = DescriptorPool::decode(dinle_proto::DESCRIPTORS)
            .context("cannot read the contract that is built in")?;
        let descriptor = pool
            .get_message_by_name(&format!("dinle.v1.{name}"))
            .with_context(|| format!("the contract that is built in has no message {name}"))?;
        Ok(Self(descriptor))
    }

    /// What the contract says of it.
    pub fn descriptor(&self) -> &MessageDescriptor {
        &self.0
    }

    /// The message as a JSON value.
    pub fn value(&self, message: &impl prost::Message) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::to_value(self.dynamic(message)?)?)
    }

    /// Writes the message as a line.
    pub fn line(&self, message: &impl prost::Message, out: &mut dyn Write) -> anyhow::Result<()> {
        let mut writer = Serializer::with_formatter(&mut *out, Harmless);
        // Into io::Error, so that a closed pipe stays one.
        self.dynamic(message)?
            .serialize(&mut writer)
            .map_err(io::Error::from)?;
        writeln!(out)?;
        Ok(())
    }

    fn dynamic(&self, message: &impl prost::Message) -> anyhow::Result<DynamicMessage> {
        let mut dynamic = DynamicMessage::new(self.0.clone());
        dynamic
            .transcode_from(message)
            .with_context(|| format!("cannot write a {} as JSON", self.0.name()))?;
        Ok(dynamic)
    }
}

#[cfg(test)]
mod tests {
    use dinle_proto::v1;

    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_written_as_it_is() {
        let schema = Schema::of("Exec").expect("a schema");
        let exec = v1::Exec {
            filename: "a\u{9b}31m\u{7f}\u{1b}é\u{a0}\"\u{85}".to_owned(),
            ..v1::Exec::default()
        };
        let mut line = Vec::new();
        schema.line(&exec, &mut line).expect("a line");
        let line = String::from_utf8(line).expect("text");
        let expected =
            r#"{"filename":"a\u009b31m\u007f\u001bé NBSP\"\u0085"}"#.replace(" NBSP", "\u{a0}");
        assert_eq!(line.trim_end(), expected);
        let read: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(read["filename"], exec.filename);
    }
}

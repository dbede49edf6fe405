//! Messages of the contract as protobuf JSON: names in lowerCamelCase, enums by name, 64-bit numbers as strings, defaults left out.
//! One form for what the command line prints and what exporters write.

use std::io::{self, Write};

use anyhow::Context as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};

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
        // Into io::Error, so that a closed pipe stays one.
        serde_json::to_writer(&mut *out, &self.dynamic(message)?).map_err(io::Error::from)?;
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

//! The contract of Dinle: the messages and services of `dinle/v1`.
//!
//! Everything in [`v1`] and [`server`] is generated from the `.proto` files by the test `bootstrap`, and committed.

/// Messages, and the client.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod v1 {
    include!("gen/dinle.v1.rs");
}

/// The server's half, which sends [`Encoded`] responses.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod server {
    include!("gen/server.rs");
}

/// The descriptors of all of `dinle/v1`, for reflection and JSON.
pub const DESCRIPTORS: &[u8] = include_bytes!("gen/descriptors.bin");

impl v1::Kind {
    /// What users and metrics call it: `tcp_reset`.
    pub fn name(self) -> String {
        let name = self.as_str_name();
        name.strip_prefix("KIND_").unwrap_or(name).to_lowercase()
    }
}

/// A `SubscribeResponse` that is encoded already: the agent encodes an event once, not once for each subscriber.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded(pub bytes::Bytes);

impl Encoded {
    /// Encodes a message.
    pub fn new(message: &v1::SubscribeResponse) -> Self {
        Self(prost::Message::encode_to_vec(message).into())
    }
}

impl prost::Message for Encoded {
    fn encode_raw(&self, buf: &mut impl bytes::BufMut) {
        buf.put_slice(&self.0);
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: prost::encoding::WireType,
        buf: &mut impl bytes::Buf,
        context: prost::encoding::DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        // A server sends these; nobody reads them but clients, as `v1::SubscribeResponse`.
        prost::encoding::skip_field(wire_type, tag, buf, context)
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    #[test]
    fn an_encoded_response_is_the_same_on_the_wire() {
        let message = v1::SubscribeResponse {
            message: Some(v1::subscribe_response::Message::Loss(v1::Loss {
                count: 300,
                ..Default::default()
            })),
        };
        let bytes = Encoded::new(&message).encode_to_vec();
        assert_eq!(
            v1::SubscribeResponse::decode(&bytes[..]).as_ref(),
            Ok(&message)
        );
    }
}

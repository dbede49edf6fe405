//! A gRPC client that counts events and decodes nothing else: what it costs must not hide what the agent can do.

use bytes::{Buf as _, BufMut as _, Bytes};
use dinle_proto::v1;
use http::uri::PathAndQuery;
use prost::{
    Message as _,
    encoding::{WireType, decode_key, decode_varint},
};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};

use crate::Received;

/// Subscribes, and counts until the stream ends.
pub(crate) async fn count(
    address: String,
    request: v1::SubscribeRequest,
) -> anyhow::Result<Received> {
    let channel = Channel::from_shared(address)?.connect().await?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await?;
    let path = PathAndQuery::from_static("/dinle.v1.Observer/Subscribe");
    let request = tonic::Request::new(Bytes::from(request.encode_to_vec()));
    let mut stream = client
        .server_streaming(request, path, Raw)
        .await?
        .into_inner();
    let mut received = Received::default();
    while let Some(message) = stream.message().await? {
        received.add(message)?;
    }
    Ok(received)
}

impl Received {
    /// Counts the events of a SubscribeResponse.
    pub(crate) fn add(&mut self, mut message: Bytes) -> anyhow::Result<()> {
        /// `EventBatch batch = 2` of SubscribeResponse.
        const BATCH: u32 = 2;
        /// `repeated Event events = 2` of EventBatch.
        const EVENTS: u32 = 2;
        let len = message.len() as u64;
        if decode_key(&mut message)?.0 != BATCH {
            return Ok(());
        }
        self.bytes += len;
        decode_varint(&mut message)?;
        while message.has_remaining() {
            let (field, wire_type) = decode_key(&mut message)?;
            let value = decode_varint(&mut message)?;
            if wire_type == WireType::LengthDelimited {
                let len = usize::try_from(value)?;
                anyhow::ensure!(len <= message.len(), "an event is cut");
                message.advance(len);
            }
            self.events += u64::from(field == EVENTS);
        }
        Ok(())
    }
}

/// Messages as bytes.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let len = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(len)))
    }
}

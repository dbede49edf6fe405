//! What events tell, in the names of OpenTelemetry's semantic conventions where there are some, and below `dinle.` else.

use std::time::SystemTime;

use dinle_proto::v1::{self, event::Detail};
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, KeyValue, KeyValueList, any_value::Value,
};

use crate::errno;

/// A list of attributes.
#[derive(Default)]
pub(super) struct Attributes(pub(super) Vec<KeyValue>);

impl Attributes {
    fn add(&mut self, key: impl Into<String>, value: Value) {
        self.0.push(KeyValue {
            key: key.into(),
            value: Some(AnyValue { value: Some(value) }),
            ..KeyValue::default()
        });
    }

    /// Text; none that is empty.
    pub(super) fn text(&mut self, key: impl Into<String>, text: impl Into<String>) {
        let text = text.into();
        if !text.is_empty() {
            self.add(key, Value::StringValue(text));
        }
    }

    /// A number.
    pub(super) fn number(&mut self, key: &str, number: impl TryInto<i64>) {
        self.add(key, Value::IntValue(number.try_into().unwrap_or(i64::MAX)));
    }

    fn switch(&mut self, key: &str, on: bool) {
        if on {
            self.add(key, Value::BoolValue(true));
        }
    }

    fn texts(&mut self, key: &str, texts: &[String]) {
        let values = texts.iter().map(|text| AnyValue {
            value: Some(Value::StringValue(text.clone())),
        });
        let values = values.collect();
        self.add(key, Value::ArrayValue(ArrayValue { values }));
    }
}

/// Any JSON as OpenTelemetry has it.
pub(super) fn value(json: serde_json::Value) -> AnyValue {
    let value = match json {
        serde_json::Value::Null => None,
        serde_json::Value::Bool(on) => Some(Value::BoolValue(on)),
        serde_json::Value::Number(number) => Some(match number.as_i64() {
            Some(number) => Value::IntValue(number),
            None => Value::DoubleValue(number.as_f64().unwrap_or(f64::NAN)),
        }),
        serde_json::Value::String(text) => Some(Value::StringValue(text)),
        serde_json::Value::Array(values) => Some(Value::ArrayValue(ArrayValue {
            values: values.into_iter().map(value).collect(),
        })),
        serde_json::Value::Object(fields) => {
            let values = fields.into_iter().map(|(key, json)| KeyValue {
                key,
                value: Some(value(json)),
                ..KeyValue::default()
            });
            Some(Value::KvlistValue(KeyValueList {
                values: values.collect(),
            }))
        }
    };
    AnyValue { value }
}

/// Who it was: the resource.
pub(super) fn resource(
    node: &str,
    name: &v1::WorkloadName,
    known: Option<&v1::Workload>,
) -> Attributes {
    let mut own = Attributes::default();
    own.text("k8s.node.name", node);
    own.text("k8s.namespace.name", &*name.namespace);
    own.text("k8s.pod.name", &*name.pod);
    own.text("k8s.container.name", &*name.container);
    let Some(known) = known else {
        return own;
    };
    own.text("k8s.pod.uid", &*known.pod_uid);
    own.text("container.id", &*known.container_id);
    let (image, tag) = parted(&known.image);
    own.text("container.image.name", image);
    if let Some(tag) = tag {
        own.texts("container.image.tags", &[tag.to_owned()]);
    }
    // Whose owner is the node is in the node's own files.
    if let Some(owner) = known.owner.as_ref().filter(|owner| owner.kind != "Node") {
        match owner_name(&owner.kind) {
            Some(key) => own.text(key, &*owner.name),
            None => {
                own.text("dinle.k8s.owner.kind", &*owner.kind);
                own.text("dinle.k8s.owner.name", &*owner.name);
            }
        }
        own.text("service.name", &*owner.name);
        own.text("service.namespace", &*name.namespace);
    }
    let mut labels: Vec<_> = known.labels.iter().collect();
    labels.sort();
    for (label, text) in labels {
        own.text(format!("k8s.pod.label.{label}"), text);
    }
    own
}

/// What the conventions call the name of an owner of that kind.
fn owner_name(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "CronJob" => "k8s.cronjob.name",
        "DaemonSet" => "k8s.daemonset.name",
        "Deployment" => "k8s.deployment.name",
        "Job" => "k8s.job.name",
        "ReplicaSet" => "k8s.replicaset.name",
        "ReplicationController" => "k8s.replicationcontroller.name",
        "StatefulSet" => "k8s.statefulset.name",
        _ => return None,
    })
}

/// The name and the tag of an image. The container's runtime may tell a digest alone, or with a name.
fn parted(image: &str) -> (&str, Option<&str>) {
    if image.starts_with("sha256:") {
        return (image, None);
    }
    let image = image.split_once('@').map_or(image, |(name, _)| name);
    match image.rsplit_once(':') {
        // Not the port of a registry.
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (image, None),
    }
}

/// What happened.
pub(super) fn event(event: &v1::Event) -> Attributes {
    let mut own = Attributes::default();
    own.text("dinle.kind", event.kind().name());
    own.number("dinle.cgroup.id", event.cgroup_id);
    own.switch("dinle.redacted", event.redacted);
    if let Some(process) = &event.process {
        own.number("process.pid", process.pid);
        own.number("process.vpid", process.pod_pid);
        own.number("process.parent_pid", process.ppid);
        own.number("process.real_user.id", process.uid);
        own.text("process.executable.name", &*process.comm);
        if let Some(time) = process
            .start_time
            .and_then(|time| SystemTime::try_from(time).ok())
        {
            own.text(
                "process.creation.time",
                humantime::format_rfc3339_millis(time).to_string(),
            );
        }
    }
    match &event.detail {
        Some(Detail::Exec(exec)) => {
            own.text("process.executable.path", &*exec.filename);
            own.texts("process.command_args", &exec.args);
            own.text("process.working_directory", &*exec.cwd);
        }
        Some(Detail::Exit(exit)) => {
            own.number("process.exit.code", exit.code);
            if exit.signal != 0 {
                own.number("dinle.process.exit.signal", exit.signal);
            }
        }
        Some(Detail::Fork(fork)) => own.number("dinle.process.child_pid", fork.child_pid),
        Some(Detail::FileOpen(open)) => {
            file(&mut own, &open.path, &open.filename);
            own.text("file.inode", open.inode.to_string());
            error(&mut own, open.error);
        }
        Some(Detail::FileDelete(delete)) => {
            file(&mut own, &delete.path, &delete.filename);
            own.text(
                "dinle.file.delete.method",
                plain(delete.method().as_str_name(), "DELETE_METHOD_"),
            );
            if let Some(inode) = delete.inode {
                own.text("file.inode", inode.to_string());
            }
            if let Some(size) = delete.size_before {
                own.number("file.size", size);
            }
            error(&mut own, delete.error);
        }
        Some(Detail::TcpSession(session)) => {
            tcp(&mut own, &session.local, &session.remote);
            own.text("network.connection.state", state(session.state()));
            own.number("dinle.tcp.bytes_sent", session.bytes_sent);
            own.number("dinle.tcp.bytes_received", session.bytes_received);
            own.number("dinle.tcp.retransmits", session.retransmits);
            error(&mut own, session.error);
        }
        Some(Detail::TcpConnect(connect)) => {
            tcp(&mut own, &connect.local, &connect.remote);
            error(&mut own, connect.error);
        }
        Some(Detail::TcpReset(reset)) => {
            tcp(&mut own, &reset.local, &reset.remote);
            own.text("network.io.direction", direction(reset.direction()));
            own.text("network.connection.state", state(reset.state()));
            own.text("dinle.tcp.reset.reason", &*reset.reason);
        }
        Some(Detail::TcpRetransmit(again)) => {
            tcp(&mut own, &again.local, &again.remote);
            own.text("network.io.direction", "transmit");
            own.text("network.connection.state", state(again.state()));
            own.number("dinle.tcp.bytes", again.bytes);
        }
        Some(Detail::BlockIo(io)) => {
            own.text("system.device", &*io.disk);
            disk_direction(&mut own, io.operation());
            own.number("dinle.disk.bytes", io.bytes);
            error(&mut own, io.error);
        }
        Some(Detail::BlockLatency(sum)) => {
            own.text("system.device", &*sum.disk);
            disk_direction(&mut own, sum.operation());
            own.number("dinle.disk.operations", sum.count);
            own.number("dinle.disk.bytes", sum.bytes);
        }
        Some(Detail::Drop(drop)) => {
            end(&mut own, "source", &drop.source);
            end(&mut own, "destination", &drop.destination);
            protocol(&mut own, drop.protocol, drop.ether_type);
            own.text("network.interface.name", &*drop.interface);
            own.text("dinle.drop.reason", &*drop.reason);
            own.text("dinle.drop.location", &*drop.location);
            own.number("dinle.drop.bytes", drop.bytes);
        }
        Some(Detail::DropCount(drops)) => {
            protocol(&mut own, drops.protocol, drops.ether_type);
            if drops.port != 0 {
                own.number("destination.port", drops.port);
            }
            own.text("dinle.drop.reason", &*drops.reason);
            own.number("dinle.drop.packets", drops.count);
            own.number("dinle.drop.bytes", drops.bytes);
        }
        None => {}
    }
    own
}

/// An enum's name without what all of its values begin with, in lower case; nothing for none.
pub(super) fn plain(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix).unwrap_or(name) {
        "UNSPECIFIED" => String::new(),
        name => name.to_lowercase(),
    }
}

/// A state as the conventions name it.
fn state(state: v1::TcpState) -> &'static str {
    match state {
        v1::TcpState::Unspecified => "",
        v1::TcpState::Established => "established",
        v1::TcpState::SynSent => "syn_sent",
        v1::TcpState::SynRecv | v1::TcpState::NewSynRecv => "syn_received",
        v1::TcpState::FinWait1 => "fin_wait_1",
        v1::TcpState::FinWait2 => "fin_wait_2",
        v1::TcpState::TimeWait => "time_wait",
        v1::TcpState::Close => "closed",
        v1::TcpState::CloseWait => "close_wait",
        v1::TcpState::LastAck => "last_ack",
        v1::TcpState::Listen => "listen",
        v1::TcpState::Closing => "closing",
    }
}

fn direction(direction: v1::Direction) -> &'static str {
    match direction {
        v1::Direction::Sent => "transmit",
        v1::Direction::Received => "receive",
        v1::Direction::Unspecified => "",
    }
}

fn disk_direction(own: &mut Attributes, operation: v1::BlockOperation) {
    let operation = plain(operation.as_str_name(), "BLOCK_OPERATION_");
    // The convention knows these alone.
    if matches!(&*operation, "read" | "write") {
        own.text("disk.io.direction", &*operation);
    }
    own.text("dinle.disk.operation", operation);
}

fn file(own: &mut Attributes, path: &str, filename: &str) {
    // As the process gave it, where the kernel does not tell more.
    let path = if path.is_empty() { filename } else { path };
    own.text("file.path", path);
    own.text("file.name", path.rsplit('/').next().unwrap_or(path));
}

fn error(own: &mut Attributes, error: u32) {
    if error != 0 {
        own.text("error.type", errno::name(error));
    }
}

fn tcp(own: &mut Attributes, local: &Option<v1::Endpoint>, remote: &Option<v1::Endpoint>) {
    own.text("network.transport", "tcp");
    if let Some(local) = local {
        own.text(
            "network.type",
            if local.address.contains(':') {
                "ipv6"
            } else {
                "ipv4"
            },
        );
    }
    end(own, "network.local", local);
    end(own, "network.peer", remote);
    // What a pod of this node is called, too.
    if let Some(name) = remote.as_ref().and_then(|remote| remote.workload.as_ref()) {
        own.text("dinle.peer.k8s.namespace.name", &*name.namespace);
        own.text("dinle.peer.k8s.pod.name", &*name.pod);
    }
}

fn end(own: &mut Attributes, which: &str, end: &Option<v1::Endpoint>) {
    if let Some(end) = end {
        own.text(format!("{which}.address"), &*end.address);
        if end.port != 0 {
            own.number(&format!("{which}.port"), end.port);
        }
    }
}

fn protocol(own: &mut Attributes, protocol: u32, ether_type: u32) {
    const IPV4: u32 = 0x0800;
    const IPV6: u32 = 0x86dd;
    match protocol {
        6 => own.text("network.transport", "tcp"),
        17 => own.text("network.transport", "udp"),
        _ => {}
    }
    match ether_type {
        IPV4 => own.text("network.type", "ipv4"),
        IPV6 => own.text("network.type", "ipv6"),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_a_name_and_maybe_a_tag() {
        for (image, name, tag) in [
            (
                "registry.example/web:3.2",
                "registry.example/web",
                Some("3.2"),
            ),
            ("localhost:5000/web", "localhost:5000/web", None),
            (
                "localhost:5000/web:3@sha256:ab",
                "localhost:5000/web",
                Some("3"),
            ),
            ("web@sha256:ab", "web", None),
            ("sha256:ab", "sha256:ab", None),
            ("", "", None),
        ] {
            assert_eq!(parted(image), (name, tag), "{image}");
        }
    }

    #[test]
    fn an_owner_is_named_as_the_conventions_say() {
        let keys = |kind: &str| -> Vec<String> {
            let known = v1::Workload {
                owner: Some(v1::Owner {
                    kind: kind.to_owned(),
                    name: "web".to_owned(),
                }),
                ..v1::Workload::default()
            };
            let name = v1::WorkloadName::default();
            let all = resource("n", &name, Some(&known)).0.into_iter();
            all.map(|one| one.key).collect()
        };
        assert_eq!(
            keys("StatefulSet"),
            ["k8s.node.name", "k8s.statefulset.name", "service.name"]
        );
        assert_eq!(
            keys("Rollout"),
            [
                "k8s.node.name",
                "dinle.k8s.owner.kind",
                "dinle.k8s.owner.name",
                "service.name"
            ]
        );
        // A static pod.
        assert_eq!(keys("Node"), ["k8s.node.name"]);
    }
}

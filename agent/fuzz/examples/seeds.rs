//! Writes the seeds anew, from what tests are made of: run it in the repository's root.
//!
//! Certificates are other ones each time; what was found by fuzzing stays.

use std::{fs, path::Path};

use dinle_ebpf::CgroupRecord;
use dinle_fuzz::frames;
use dinle_proto::v1::{self, string_match::Pattern};
use prost::Message as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
};
use zerocopy::IntoBytes as _;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

fn main() -> Result<()> {
    for (kind, frame) in frames() {
        seed("frame", &format!("{kind:?}").to_lowercase(), &frame)?;
    }
    seed("frame", "record", &record())?;
    for (name, request) in requests() {
        seed("request", name, &request.encode_to_vec())?;
    }
    for (name, text) in SELECTORS {
        seed("selector", name, text.as_bytes())?;
    }
    pods()?;
    for (number, path) in (1..).zip(PATHS) {
        let path = path
            .replace("{uid_}", &UID.replace('-', "_"))
            .replace("{uid}", UID)
            .replace("{hash}", "be84997637164a52d9f1fd6acfbda804")
            .replace("{c}", ID);
        seed("cgroup_path", &format!("{number:02}"), path.as_bytes())?;
    }
    certificates()
}

fn seed(target: &str, name: &str, content: &[u8]) -> Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    fs::create_dir_all(&directory)?;
    Ok(fs::write(directory.join(name), content)?)
}

fn record() -> Vec<u8> {
    let path = b"/kubepods/burstable";
    let record = CgroupRecord {
        id: 7,
        parent_id: 5,
        event: CgroupRecord::CREATED,
        path_len: path.len() as u16,
        path_cut: 0,
        reserved: 0,
    };
    [record.as_bytes(), path].concat()
}

fn requests() -> Vec<(&'static str, v1::SubscribeRequest)> {
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let glob = |text: &str| v1::StringMatch {
        pattern: Some(Pattern::Glob(text.to_owned())),
    };
    let prefix = |text: &str| v1::StringMatch {
        pattern: Some(Pattern::Prefix(text.to_owned())),
    };
    let exact = |text: &str| v1::StringMatch {
        pattern: Some(Pattern::Exact(text.to_owned())),
    };
    let of = |kinds: &[v1::Kind], filter: v1::Filter| v1::SubscribeRequest {
        kinds: kinds.iter().map(|&kind| kind.into()).collect(),
        filter: Some(filter),
        ..Default::default()
    };
    let everything = v1::SubscribeRequest {
        selector: Some(v1::Selector {
            namespaces: vec!["shop".into()],
            pods: vec!["checkout-*".into()],
            label_selector: "app=checkout,tier in (web,api),!canary".into(),
            containers: vec!["server".into()],
            owners: vec!["deploy/checkout".into()],
            host_processes: v1::HostProcesses::Include.into(),
        }),
        identity_mode: v1::IdentityMode::ByReference.into(),
        queue_bytes: 1 << 20,
        heartbeat_interval: seconds(1),
        max_events: 10,
        max_duration: seconds(60),
        interval: seconds(5),
        max_events_per_second: 100,
        resume_window: seconds(30),
        ..of(
            &[v1::Kind::Exec, v1::Kind::Exit],
            v1::Filter {
                comm: vec![exact("cat"), glob("py*")],
                uids: vec![1000],
                pids: vec![v1::PidMatch {
                    pid: 99,
                    descendants: true,
                }],
                ..Default::default()
            },
        )
    };
    vec![
        ("everything", everything),
        (
            "exec",
            of(
                &[v1::Kind::Exec],
                v1::Filter {
                    binary: vec![glob("/bin/*")],
                    ..Default::default()
                },
            ),
        ),
        (
            "exit",
            of(
                &[v1::Kind::Exit],
                v1::Filter {
                    exit_failed: true,
                    ..Default::default()
                },
            ),
        ),
        (
            "file",
            of(
                &[v1::Kind::FileOpen],
                v1::Filter {
                    path: vec![prefix("/etc/"), glob("/etc/host*")],
                    write: true,
                    create: true,
                    failed: false,
                    ..Default::default()
                },
            ),
        ),
        (
            "tcp",
            of(
                &[v1::Kind::TcpSession],
                v1::Filter {
                    ports: vec![2, 512],
                    local_ports: vec![2],
                    remote_ports: vec![2],
                    min_duration: seconds(1),
                    ..Default::default()
                },
            ),
        ),
        (
            "drop",
            of(
                &[v1::Kind::Drop, v1::Kind::DropCount],
                v1::Filter {
                    reason: vec![glob("*SOCKET*")],
                    ..Default::default()
                },
            ),
        ),
        (
            "disk",
            of(
                &[v1::Kind::BlockIo, v1::Kind::BlockLatency],
                v1::Filter {
                    disk: vec![exact("vda")],
                    ..Default::default()
                },
            ),
        ),
        (
            "host",
            v1::SubscribeRequest {
                selector: Some(v1::Selector {
                    host_processes: v1::HostProcesses::Only.into(),
                    ..Default::default()
                }),
                ..of(&[v1::Kind::Fork], v1::Filter::default())
            },
        ),
        (
            "resume",
            v1::SubscribeRequest {
                resume: Some(v1::Resume {
                    stream_id: 1,
                    token: vec![7; 16],
                    received: 3,
                }),
                ..Default::default()
            },
        ),
    ]
}

const SELECTORS: [(&str, &str); 6] = [
    (
        "equal",
        "app=checkout\ntier==web\napp=checkout,tier=web\n/etc/*\n/etc/hostname\ndeploy/checkout",
    ),
    (
        "sets",
        "tier in (web,api)\ntier notin (db,),canary\ntier=web,canary=\ncheckout-?\ncheckout-1\nstatefulset/db",
    ),
    ("not", "!canary\n a != b \na=c\n[a-c]x\nbx\nds/agent"),
    (
        "prefix",
        "example.com/team=data\nexample.com/team\nexample.com/team=data\n{ba,z}sh\nzsh\nJob/backup",
    ),
    ("escaped", "a=\n!a\na=\na\\*b\na*b\nrs/a/b"),
    ("wrong", "a in (b\n=x\n\n[a\n\na"),
];

const UID: &str = "2f1ee1cf-7f5c-4f0e-9b0b-0d5c3a9d8e11";
const ID: &str = "4c01db0b339c7e1f8a6d5b2f90e3a1c44c01db0b339c7e1f8a6d5b2f90e3a1c4";

/// One of each runtime and driver.
const PATHS: [&str; 16] = [
    "/kubepods/burstable/pod{uid}/{c}",
    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid_}.slice/cri-containerd-{c}.scope",
    "/system.slice/containerd.service/kubepods-besteffort-pod{uid_}.slice:cri-containerd:{c}",
    "/kubepods-pod{uid_}.slice:cri-containerd:{c}/init.scope",
    "/kubepods.slice/kubepods-pod{uid_}.slice/crio-{c}.scope/container",
    "/system.slice/crio-conmon-{c}.scope",
    "/kubepods.slice/kubepods-pod{uid_}.slice/docker-{c}.scope",
    "/docker/{c}/kubelet/kubepods/pod{uid}/{c}",
    "/machine.slice/libpod-{c}.scope/container",
    "/libpod_parent/libpod-conmon-{c}",
    "/user.slice/user-1000.slice/nerdctl-{c}.scope",
    "/kubepods/besteffort/pod{hash}/{c}",
    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{hash}.slice/cri-containerd-{c}.scope",
    "/kubepods/pod{uid}/{c}/system.slice/docker-{c}.scope",
    "/system.slice/sshd.service",
    "/",
];

/// Those of the demo, and a pod with all that is read.
fn pods() -> Result<()> {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../e2e/demo-pods.json");
    let demo: serde_json::Value = serde_json::from_slice(&fs::read(demo)?)?;
    seed("pods", "demo", demo.to_string().as_bytes())?;
    for (number, pod) in (1..).zip(demo["items"].as_array().into_iter().flatten()) {
        seed(
            "pods",
            &format!("demo-{number}"),
            pod.to_string().as_bytes(),
        )?;
    }
    let status = |name: &str, id: &str| {
        serde_json::json!({"name": name, "image": "app:1", "imageID": "", "ready": true, "restartCount": 1, "containerID": id,
            "lastState": {"terminated": {"exitCode": 1, "containerID": format!("{id}0")}}})
    };
    let full = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "uid": UID, "name": "checkout-5d4f8c7b9-x7k2p", "namespace": "shop",
            "labels": {"app": "checkout", "pod-template-hash": "5d4f8c7b9"},
            "annotations": {"kubernetes.io/config.mirror": "be84997637164a52d9f1fd6acfbda804"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "checkout-5d4f8c7b9", "uid": "o", "controller": true}],
        },
        "spec": {
            "nodeName": dinle_fuzz::NODE,
            "containers": [{"name": "app", "image": "app:1"}],
            "initContainers": [{"name": "setup", "image": "setup:1"}],
            "ephemeralContainers": [{"name": "debugger", "image": "busybox"}],
        },
        "status": {
            "phase": "Running", "podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}],
            "containerStatuses": [status("app", &format!("containerd://{ID}"))],
            "initContainerStatuses": [status("setup", "cri-o://bb")],
            "ephemeralContainerStatuses": [status("debugger", "")],
        },
    });
    seed("pods", "full", full.to_string().as_bytes())?;
    let list = serde_json::json!({"kind": "PodList", "items": [full, {"metadata": {"uid": "u"}}]});
    seed("pods", "list", list.to_string().as_bytes())
}

/// A pair and its authority, of each kind of key that rcgen makes.
fn certificates() -> Result<()> {
    let named = |common: &str, organization: &str| -> Result<CertificateParams> {
        let mut params = CertificateParams::new(vec!["agent.test".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, common);
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
        Ok(params)
    };
    let mut params = named("authority", "dinle")?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let keys = [
        ("p256", KeyPair::generate()?),
        ("p384", KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384)?),
        ("ed25519", KeyPair::generate_for(&PKCS_ED25519)?),
    ];
    for (name, key) in keys {
        let certificate = named("jane", "dev")?.signed_by(&key, &authority)?;
        let all = format!(
            "{}{}{}",
            certificate.pem(),
            key.serialize_pem(),
            authority.pem()
        );
        seed("tls", name, all.as_bytes())?;
        seed("tls", &format!("{name}.der"), certificate.der())?;
    }
    let other = KeyPair::generate()?;
    let mismatch = format!("{}{}", authority.pem(), other.serialize_pem());
    seed("tls", "mismatch", mismatch.as_bytes())?;
    seed(
        "tls",
        "none",
        b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n",
    )
}

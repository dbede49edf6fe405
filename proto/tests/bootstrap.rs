//! Generates `src/gen` and fails if what is committed differs. Needs no protoc.

use std::{collections::BTreeMap, fs, path::Path};

use prost::Message as _;

#[test]
fn generated_code_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = protox::Compiler::new([root])
        .expect("the proto folder")
        .include_imports(true)
        .include_source_info(true)
        .open_files(["workload", "event", "observer"].map(|name| format!("dinle/v1/{name}.proto")))
        .expect("the .proto files compile")
        .file_descriptor_set();
    let out = tempfile_dir();

    // Messages and client, as everybody knows them.
    let messages = out.join("messages");
    fs::create_dir_all(&messages).expect("a temporary folder");
    tonic_prost_build::configure()
        .build_server(false)
        .out_dir(&messages)
        .compile_fds(files.clone())
        .expect("messages generate");
    // The server, whose Subscribe sends what is encoded already.
    let server = out.join("server");
    fs::create_dir_all(&server).expect("a temporary folder");
    tonic_prost_build::configure()
        .build_client(false)
        .extern_path(".dinle.v1", "crate::v1")
        .extern_path(".dinle.v1.SubscribeResponse", "crate::Encoded")
        .out_dir(&server)
        .compile_fds(files.clone())
        .expect("the server generates");

    let generated: BTreeMap<&str, Vec<u8>> = [
        (
            "dinle.v1.rs",
            fs::read(messages.join("dinle.v1.rs")).expect("generated"),
        ),
        (
            "server.rs",
            fs::read(server.join("dinle.v1.rs")).expect("generated"),
        ),
        ("descriptors.bin", without_comments(files).encode_to_vec()),
    ]
    .into();
    fs::remove_dir_all(&out).expect("a temporary folder");
    let mut stale = Vec::new();
    for (name, content) in generated {
        let path = root.join("src/gen").join(name);
        if fs::read(&path).ok().as_ref() != Some(&content) {
            fs::write(&path, content).expect("src/gen is writable");
            stale.push(name);
        }
    }
    assert!(
        stale.is_empty(),
        "the contract changed: {stale:?} in proto/src/gen were written anew, commit them"
    );
}

/// Reflection serves types, not comments; without them the binary is smaller.
fn without_comments(mut files: prost_types::FileDescriptorSet) -> prost_types::FileDescriptorSet {
    for file in &mut files.file {
        file.source_code_info = None;
    }
    files
}

fn tempfile_dir() -> std::path::PathBuf {
    std::env::temp_dir().join(format!("dinle-proto-{}", std::process::id()))
}

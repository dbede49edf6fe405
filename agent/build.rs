//! Builds `agent-ebpf` for the BPF target and leaves the object where `kernel.rs` embeds it from.
//!
//! | variable | meaning |
//! |---|---|
//! | `DINLE_EBPF_PREBUILT=FILE` | embed this object instead of building one |
//! | `DINLE_EBPF_SKIP=1` | embed nothing: for checks and tests of the pure parts, which then need no eBPF toolchain |
//! | `DINLE_EBPF_RUSTC=RUSTC` | use this compiler, with the cargo beside it |
//! | `BPF_LINKER=FILE` | use this bpf-linker |

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, exit},
};

const TARGET: &str = "bpfel-unknown-none";
const PACKAGE: &str = "dinle-ebpf";

fn main() {
    for name in [
        "DINLE_EBPF_PREBUILT",
        "DINLE_EBPF_SKIP",
        "DINLE_EBPF_RUSTC",
        "BPF_LINKER",
        "PATH",
    ] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    for input in [
        "../agent-ebpf/src",
        "../agent-ebpf/Cargo.toml",
        "../Cargo.lock",
    ] {
        println!("cargo:rerun-if-changed={input}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let embedded = out.join("dinle-ebpf.o");
    let built = if env::var_os("DINLE_EBPF_SKIP").is_some() {
        fs::write(&embedded, [])
            .map_err(|error| format!("cannot write {}: {error}", embedded.display()))
    } else if let Some(object) = env::var_os("DINLE_EBPF_PREBUILT") {
        let object = Path::new(&object);
        println!("cargo:rerun-if-changed={}", object.display());
        copy(object, &embedded)
    } else {
        build(&out).and_then(|object| copy(&object, &embedded))
    };
    if let Err(problem) = built {
        println!("cargo:warning=the eBPF programs are not built");
        eprintln!("error: {problem}");
        exit(1);
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to)
        .map(|_| ())
        .map_err(|error| format!("cannot copy the eBPF object {}: {error}", from.display()))
}

/// A compiler that can build for the BPF target.
struct Toolchain {
    cargo: Vec<PathBuf>,
    /// `None`: the cargo finds its own.
    rustc: Option<PathBuf>,
    /// `core` does not come with the compiler, only its source.
    build_std: bool,
}

fn build(out: &Path) -> Result<PathBuf, String> {
    let Toolchain {
        cargo,
        rustc,
        build_std,
    } = toolchain()?;
    let linker = linker()?;
    let target_dir = out.join("ebpf");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    let mut command = Command::new(&cargo[0]);
    command.args(&cargo[1..]);
    // A cargo in a cargo must not inherit what was meant for the outer one.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let kept = ["CARGO_HOME", "RUSTUP_HOME"].contains(&&*text)
            || ["CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR"]
                .iter()
                .any(|kept| text.starts_with(kept));
        if !kept && (text.starts_with("CARGO") || text.starts_with("RUST")) {
            command.env_remove(&name);
        }
    }
    command
        .args([
            "build",
            "--release",
            "--locked",
            "--package",
            PACKAGE,
            "--bin",
            PACKAGE,
        ])
        .args(["--features", "programs", "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .current_dir("..")
        // Inline assembly for BPF is not stable; this makes a stable compiler accept it.
        .env("RUSTC_BOOTSTRAP", "1");
    if let Some(rustc) = rustc {
        command.env("RUSTC", rustc);
    }
    if build_std {
        command.args(["-Z", "build-std=core"]);
    }
    let flags = [
        format!("-Clinker={}", linker.display()),
        "-Cpanic=abort".into(),
        // BTF is made from debug information.
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        format!("--cfg=bpf_target_arch=\"{arch}\""),
    ];
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    let status = command
        .status()
        .map_err(|error| format!("cannot run {}: {error}", cargo[0].display()))?;
    if !status.success() {
        return Err(format!(
            "the eBPF programs do not build ({status}); the compiler's messages are above"
        ));
    }
    Ok(target_dir.join(TARGET).join("release").join(PACKAGE))
}

/// The first of: the compiler that was named, the one that runs this, the system's, rustup's nightly.
fn toolchain() -> Result<Toolchain, String> {
    let mut tried = Vec::new();
    let mut candidates = Vec::new();
    if let Some(rustc) = env::var_os("DINLE_EBPF_RUSTC") {
        let rustc = PathBuf::from(rustc);
        candidates.push((rustc.with_file_name("cargo"), rustc));
    } else {
        let own =
            |name: &str| PathBuf::from(env::var_os(name).expect("cargo names itself and rustc"));
        candidates.push((own("CARGO"), own("RUSTC")));
        candidates.push(("/usr/bin/cargo".into(), "/usr/bin/rustc".into()));
    }
    for (cargo, rustc) in candidates {
        match sysroot(Command::new(&rustc)) {
            Some(root) if has_core(&root) => {
                return Ok(Toolchain {
                    cargo: vec![cargo],
                    rustc: Some(rustc),
                    build_std: false,
                });
            }
            Some(_) => tried.push(format!("{} has no core for {TARGET}", rustc.display())),
            None => tried.push(format!("{} does not run", rustc.display())),
        }
    }
    let mut nightly = Command::new("rustup");
    nightly.args(["run", "nightly", "rustc"]);
    match sysroot(nightly) {
        Some(root) if root.join("lib/rustlib/src/rust/library/core").is_dir() => {
            return Ok(Toolchain {
                cargo: ["rustup", "run", "nightly", "cargo"]
                    .map(PathBuf::from)
                    .into(),
                rustc: None,
                build_std: true,
            });
        }
        Some(_) => tried.push("rustup's nightly has no rust-src".into()),
        None => tried.push("rustup has no nightly".into()),
    }
    Err(format!(
        "no Rust compiler here can build for {TARGET} ({}). On Debian run `apt-get install rustc-web cargo-web libstd-rust-web-dev-bpf`, \
         with rustup `rustup toolchain install nightly --component rust-src`; or set DINLE_EBPF_PREBUILT to an object built \
         elsewhere, or DINLE_EBPF_SKIP=1 to go without.",
        tried.join("; ")
    ))
}

fn sysroot(mut rustc: Command) -> Option<PathBuf> {
    let output = rustc
        .args(["--print", "sysroot"])
        .env_remove("RUSTUP_TOOLCHAIN")
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end()))
}

fn has_core(sysroot: &Path) -> bool {
    let libraries = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    fs::read_dir(libraries).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    })
}

fn linker() -> Result<PathBuf, String> {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let candidates = match env::var_os("BPF_LINKER") {
        Some(named) => vec![PathBuf::from(named)],
        None => [
            Some("bpf-linker".into()),
            home.map(|home| home.join("bin/bpf-linker")),
        ]
        .into_iter()
        .flatten()
        .collect(),
    };
    for linker in &candidates {
        if Command::new(linker)
            .arg("--version")
            .output()
            .is_ok_and(|output| output.status.success())
        {
            return Ok(linker.clone());
        }
    }
    Err(format!(
        "bpf-linker does not run ({} tried). Run `LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 \
         --no-default-features --features llvm-22` (on Debian after `apt-get install llvm-22-dev libpolly-22-dev zlib1g-dev \
         libzstd-dev libxml2-dev`), or set BPF_LINKER.",
        candidates
            .iter()
            .map(|path| path.display().to_string())
            .collect::<Vec<_>>()
            .join(", ")
    ))
}

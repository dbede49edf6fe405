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

use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

const TARGET: &str = "bpfel-unknown-none";
const PACKAGE: &str = "dinle-ebpf";
/// Makes a warning about the kernel half an error.
const DENY_WARNINGS: &str = "DINLE_EBPF_DENY_WARNINGS";

fn main() {
    for name in [
        "DINLE_EBPF_PREBUILT",
        "DINLE_EBPF_SKIP",
        "DINLE_EBPF_RUSTC",
        "BPF_LINKER",
        DENY_WARNINGS,
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
        build(&out).and_then(|object| strip(&object, &embedded))
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

/// Leaves DWARF out: BTF was made from it, and nobody else reads it. It is four fifths of the object, which the agent parses at each start.
fn strip(from: &Path, to: &Path) -> Result<(), String> {
    let object =
        fs::read(from).map_err(|error| format!("cannot read {}: {error}", from.display()))?;
    let stripped = without_dwarf(&object)
        .map_err(|error| format!("{} cannot be stripped: {error}", from.display()))?;
    fs::write(to, stripped).map_err(|error| format!("cannot write {}: {error}", to.display()))
}

fn without_dwarf(object: &[u8]) -> Result<Vec<u8>, object::build::Error> {
    let mut elf = Builder::read(object)?;
    for section in &mut elf.sections {
        section.delete = [&b".debug_"[..], b".rel.debug_"]
            .iter()
            .any(|prefix| section.name.starts_with(prefix));
    }
    // LLVM has one table for names of sections and of symbols, which is kept for the latter.
    let names = elf.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    elf.delete_orphans();
    let mut out = Vec::new();
    elf.write(&mut out)?;
    Ok(out)
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
    let mut flags = vec![
        format!("-Clinker={}", linker.display()),
        "-Cpanic=abort".into(),
        // BTF is made from debug information.
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        format!("--cfg=bpf_target_arch=\"{arch}\""),
    ];
    flags.extend(remapped().map(|(from, to)| format!("--remap-path-prefix={from}={to}")));
    // `make check` looks at this half, too: cargo shows its warnings only when it fails.
    if env::var_os(DENY_WARNINGS).is_some() {
        flags.push("-Dwarnings".into());
    }
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

/// Paths go into BTF, and from there into what the verifier says: the same ones wherever this is built.
fn remapped() -> impl Iterator<Item = (String, &'static str)> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let cargo = env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo = cargo.or_else(|| Some(env::home_dir()?.join(".cargo")));
    [(workspace.map(Path::to_owned), "/dinle"), (cargo, "/cargo")]
        .into_iter()
        .filter_map(|(from, to)| Some((from?.to_string_lossy().into_owned(), to)))
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

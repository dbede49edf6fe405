//! Packages of Debian's archive, of any of its suites and architectures.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::arch::Arch;

/// Where the archive is when the system's own configuration does not name a mirror of it.
const ARCHIVE: &str = "http://deb.debian.org/debian/";
const SECURITY: &str = "http://deb.debian.org/debian-security/";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt with sources and a state of its own, so that the system's stay as they are.
pub(super) struct Apt {
    state: tempfile::TempDir,
}

impl Apt {
    pub(super) fn new(cache: &Path, arch: Arch, suites: &[&str]) -> Result<Self> {
        ensure!(
            Path::new(KEYRING).exists(),
            "{KEYRING} is missing: apt-get install debian-archive-keyring"
        );
        let state = tempfile::Builder::new()
            .prefix("apt-")
            .tempdir_in(cache)
            .with_context(|| format!("cannot make a directory in {}", cache.display()))?;
        let root = state.path();
        for directory in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(root.join(directory))?;
        }
        let (archive, security) = mirrors();
        let sources: String = suites
            .iter()
            .map(|suite| {
                let mirror = if suite.ends_with("-security") {
                    &security
                } else {
                    &archive
                };
                format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n")
            })
            .collect();
        fs::write(root.join("sources.list"), sources)?;
        fs::write(root.join("status"), "")?;
        let root = root.display();
        let arch = arch.debian();
        // What the system does after its own updates is not to be done here. Root may read the state, apt's own user may not.
        let configuration = format!(
            "#clear APT::Update::Post-Invoke;\n\
             #clear APT::Update::Post-Invoke-Success;\n\
             APT::Architecture \"{arch}\";\n\
             APT::Sandbox::User \"root\";\n\
             Acquire::Languages \"none\";\n\
             Dir::Etc::sourcelist \"{root}/sources.list\";\n\
             Dir::Etc::sourceparts \"/dev/null\";\n\
             Dir::State \"{root}\";\n\
             Dir::State::lists \"{root}/lists\";\n\
             Dir::State::status \"{root}/status\";\n\
             Dir::Cache \"{root}/cache\";\n"
        );
        fs::write(state.path().join("apt.conf"), configuration)?;
        Ok(Self { state })
    }

    /// Its directory, which goes with it and has room for more.
    pub(super) fn state(&self) -> &Path {
        self.state.path()
    }

    /// What `program` says, when it succeeds.
    pub(super) fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let root = self.state.path();
        output(
            Command::new(program)
                .arg("-c")
                .arg(root.join("apt.conf"))
                .args(args)
                .current_dir(root),
        )
    }

    /// Unpacks a package into a directory.
    pub(super) fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        self.run("apt-get", &["download", "--quiet", package])?;
        let file = fs::read_dir(self.state.path())?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension() == Some(OsStr::new("deb")))
            .context("apt-get download left no package")?;
        output(Command::new("dpkg-deb").arg("-x").arg(&file).arg(into))?;
        fs::remove_file(&file)?;
        Ok(())
    }
}

/// The system's own mirrors of Debian's archive and of its security updates.
fn mirrors() -> (String, String) {
    let targets = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(RELEASE) $(REPO_URI)",
    ]));
    mirrors_of(targets.as_deref().unwrap_or_default())
}

fn mirrors_of(targets: &str) -> (String, String) {
    let debian = || {
        targets
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(_, uri)| uri.contains("debian"))
    };
    let security =
        debian().find_map(|(release, uri)| Some((release.strip_suffix("-security")?, uri)));
    let archive = security.and_then(|(own, _)| debian().find(|(release, _)| *release == own));
    (
        archive.map_or(ARCHIVE, |(_, uri)| uri).to_owned(),
        security.map_or(SECURITY, |(_, uri)| uri).to_owned(),
    )
}

/// What a command says, when it succeeds.
pub(super) fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| {
        format!(
            "cannot run {program}: kernels come from Debian's archive, which takes apt and dpkg"
        )
    })?;
    ensure!(
        output.status.success(),
        "{program} failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    // apt-get tells as a warning that a suite cannot be had.
    Ok(String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_systems_own() {
        let targets = "bookworm-updates http://mirror.example/debian/\n\
                       bookworm http://mirror.example/debian/\n\
                       stable https://other.example/apt/\n\
                       bookworm-security http://mirror.example/debian-security/\n";
        assert_eq!(
            mirrors_of(targets),
            (
                "http://mirror.example/debian/".to_owned(),
                "http://mirror.example/debian-security/".to_owned()
            )
        );
        let another_system =
            "noble http://archive.example/ubuntu/\nnoble-security http://archive.example/ubuntu/\n";
        assert_eq!(
            mirrors_of(another_system),
            (ARCHIVE.to_owned(), SECURITY.to_owned())
        );
    }
}

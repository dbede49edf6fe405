//! Kernels to boot, from Debian's archive: chosen by pattern, since old versions vanish from it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::apt::{Apt, output};
use super::arch::Arch;

/// One kernel of the matrix.
#[derive(Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What it is called on the command line, and its directory in the cache.
    pub name: &'static str,
    /// What it runs on.
    pub arch: Arch,
    /// What the release of the packages begins with.
    prefix: &'static str,
    /// Suites of the archive that have it.
    suites: &'static [&'static str],
    /// Whether it is booted when none is named.
    pub by_default: bool,
}

/// All of them: the oldest that has what the agent needs, and those that distributions ship since.
pub const KERNELS: &[Kernel] = &[
    Kernel {
        name: "5.10",
        arch: Arch::Amd64,
        prefix: "5.10.",
        suites: &["bullseye", "bullseye-security"],
        by_default: true,
    },
    Kernel {
        name: "6.1",
        arch: Arch::Amd64,
        prefix: "6.1.",
        suites: &["bookworm", "bookworm-security"],
        by_default: false,
    },
    Kernel {
        name: "6.12",
        arch: Arch::Amd64,
        prefix: "6.12.",
        suites: &["trixie", "trixie-security"],
        by_default: false,
    },
    Kernel {
        name: "6.18",
        arch: Arch::Amd64,
        prefix: "6.18.",
        suites: &["trixie-backports", "forky"],
        by_default: false,
    },
    Kernel {
        name: "7.x",
        arch: Arch::Amd64,
        prefix: "7.",
        suites: &["trixie-backports", "forky"],
        by_default: true,
    },
    Kernel {
        name: "6.12-arm64",
        arch: Arch::Arm64,
        prefix: "6.12.",
        suites: &["trixie", "trixie-security"],
        by_default: false,
    },
];

/// Packages that begin so hold a kernel. From 6.19 on, `linux-image-…` is empty and refers to `linux-binary-…`.
const KINDS: [&str; 2] = [BINARY, "linux-image-"];
const BINARY: &str = "linux-binary-";
/// Kernels for virtual machines: small, and with all that the agent needs built in.
const FLAVOUR: &str = "-cloud-";
/// Some are there without a signature only.
const UNSIGNED: &str = "-unsigned";
/// How many releases are tried, newest first: some are listed and gone.
const TRIES: usize = 6;

/// How the kernel's image is called in a package and in the cache, before its release.
const IMAGE: &str = "vmlinuz-";

/// Modules that the machines' disks and the tests of file systems need, in the order in which they are loaded. What a kernel has built in, its package lacks.
const MODULES: [&str; 8] = [
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "loop",
    "overlay",
];
/// How their directory is called in the cache, before the release.
const MODULES_OF: &str = "modules-";
/// From 6.19 on they have a package of their own.
const MODULES_PACKAGE: &str = "linux-modules-";

impl Kernel {
    /// The kernel's image: the newest in `cache`, or else, or with `refresh`, the newest in the archive.
    pub fn image(&self, cache: &Path, refresh: bool) -> Result<PathBuf> {
        let cache = cache.join(self.name);
        fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
        let cached = newest_image(&cache)?;
        let complete = cached
            .as_ref()
            .is_some_and(|image| modules_of(image).is_dir());
        if (refresh || !complete)
            && let Err(error) = self.fetch(&cache)
        {
            if refresh || cached.is_none() {
                return Err(error);
            }
            eprintln!(
                "{}: its modules cannot be had, so that it has no disk: {error:#}",
                self.name
            );
        }
        newest_image(&cache)?.with_context(|| format!("no {IMAGE}* in {}", cache.display()))
    }

    fn flavour(&self) -> String {
        format!("{FLAVOUR}{}", self.arch.debian())
    }

    fn fetch(&self, cache: &Path) -> Result<()> {
        let apt = Apt::new(cache, self.arch, self.suites)?;
        let updated = apt.run("apt-get", &["update", "--quiet"])?;
        let listed = apt.run("apt-cache", &["pkgnames", "linux-"])?;
        let releases = self.releases(listed.lines());
        ensure!(
            !releases.is_empty(),
            "no package of {} is in {}:\n{updated}",
            self.name,
            self.suites.join(", ")
        );
        let mut refused = Vec::new();
        for Release { name, packages } in releases {
            let image = cache.join(format!("{IMAGE}{name}{}", self.flavour()));
            if image.exists() && modules_of(&image).is_dir() {
                return Ok(());
            }
            for package in packages {
                match unpack(&apt, package, &image) {
                    Ok(()) => return Ok(()),
                    Err(error) => refused.push(format!("{package}: {error:#}")),
                }
            }
        }
        bail!(
            "none of the newest packages of {} can be had:\n{}",
            self.name,
            refused.join("\n")
        )
    }

    /// Releases of this kernel, the newest first.
    fn releases<'a>(&self, listed: impl Iterator<Item = &'a str>) -> Vec<Release<'a>> {
        let flavour = self.flavour();
        let mut releases = BTreeMap::<Vec<u32>, Release<'a>>::new();
        for package in listed {
            let signed = package.strip_suffix(UNSIGNED).unwrap_or(package);
            let name = KINDS
                .iter()
                .find_map(|kind| signed.strip_prefix(kind)?.strip_suffix(flavour.as_str()));
            if let Some(name) = name.filter(|name| name.starts_with(self.prefix)) {
                let release = releases.entry(numbers(name)).or_insert(Release {
                    name,
                    packages: Vec::new(),
                });
                release.packages.push(package);
            }
        }
        for Release { packages, .. } in releases.values_mut() {
            // By name, a binary comes before an image and what is signed before what is not.
            packages.sort_unstable();
            if packages.iter().any(|package| package.starts_with(BINARY)) {
                packages.retain(|package| package.starts_with(BINARY));
            }
        }
        releases.into_values().rev().take(TRIES).collect()
    }
}

/// Where the modules of a kernel in the cache are.
fn modules_of(image: &Path) -> PathBuf {
    let name = image.file_name().unwrap_or_default().to_string_lossy();
    let release = name.strip_prefix(IMAGE).unwrap_or(&name);
    image.with_file_name(format!("{MODULES_OF}{release}"))
}

/// The modules of a kernel in the cache, in the order in which they are loaded. None if it has all built in, or they could not be had.
pub fn modules(image: &Path) -> Vec<PathBuf> {
    let directory = modules_of(image);
    let files = MODULES.map(|name| directory.join(format!("{name}.ko")));
    files.into_iter().filter(|file| file.exists()).collect()
}

/// Packages of one release, the best first.
#[derive(Debug, PartialEq, Eq)]
struct Release<'a> {
    name: &'a str,
    packages: Vec<&'a str>,
}

/// The numbers in a release, to tell the newer of two.
fn numbers(release: &str) -> Vec<u32> {
    release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

fn newest_image(directory: &Path) -> Result<Option<PathBuf>> {
    let mut images = Vec::new();
    for entry in
        fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?
    {
        let path = entry?.path();
        if let Some(release) = path
            .file_name()
            .and_then(OsStr::to_str)
            .and_then(|name| name.strip_prefix(IMAGE))
        {
            images.push((numbers(release), path));
        }
    }
    Ok(images.into_iter().max().map(|(_, path)| path))
}

/// Puts the image of a package at `to`, and its modules beside it: both or none.
fn unpack(apt: &Apt, package: &str, to: &Path) -> Result<()> {
    let root = apt.state();
    let files = root.join("files");
    if files.exists() {
        fs::remove_dir_all(&files)?;
    }
    apt.unpack(package, &files)?;
    if let Some(release) = package.strip_prefix(BINARY) {
        apt.unpack(&format!("{MODULES_PACKAGE}{release}"), &files)?;
    }
    let image =
        find(&files, &|name| name.starts_with("vmlinuz"))?.context("there is no kernel in it")?;
    let modules = root.join("modules");
    fs::create_dir_all(&modules)?;
    for name in MODULES {
        let (plain, small) = (format!("{name}.ko"), format!("{name}.ko.xz"));
        if let Some(module) = find(&files, &|name| name == plain || name == small)? {
            let copy = modules.join(module.file_name().unwrap_or_default());
            fs::copy(&module, &copy)?;
            if copy.extension() == Some(OsStr::new("xz")) {
                output(Command::new("xz").arg("-d").arg(&copy))?;
            }
        }
    }
    let place = modules_of(to);
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    fs::rename(&modules, &place)
        .with_context(|| format!("cannot move the modules to {}", place.display()))?;
    fs::rename(&image, to).with_context(|| format!("cannot move the image to {}", to.display()))
}

/// A file below a directory whose name is wanted.
fn find(directory: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        // Packages link `build` and `source` to what may not be there.
        if entry.file_type()?.is_dir() {
            if let Some(found) = find(&path, wanted)? {
                return Ok(Some(found));
            }
        } else if entry.file_type()?.is_file() && entry.file_name().to_str().is_some_and(wanted) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(name: &str) -> &'static Kernel {
        KERNELS
            .iter()
            .find(|kernel| kernel.name == name)
            .expect("a kernel of the table")
    }

    #[test]
    fn the_newest_release_is_first_and_signed_if_it_can_be() {
        let listed = [
            "linux-image-5.10.0-9-cloud-amd64",
            "linux-image-5.10.0-46-cloud-amd64-unsigned",
            "linux-image-5.10.0-46-cloud-amd64",
            "linux-image-5.10.0-46-amd64",
            "linux-image-5.10.0-46-cloud-amd64-dbg",
            "linux-image-6.1.0-0.deb11.52-cloud-amd64",
            "linux-image-cloud-amd64",
            "linux-headers-5.10.0-46-cloud-amd64",
        ];
        assert_eq!(kernel("6.12-arm64").releases(listed.into_iter()), []);
        assert_eq!(
            kernel("5.10").releases(listed.into_iter()),
            [
                Release {
                    name: "5.10.0-46",
                    packages: vec![
                        "linux-image-5.10.0-46-cloud-amd64",
                        "linux-image-5.10.0-46-cloud-amd64-unsigned"
                    ],
                },
                Release {
                    name: "5.10.0-9",
                    packages: vec!["linux-image-5.10.0-9-cloud-amd64"]
                },
            ]
        );
    }

    #[test]
    fn an_empty_image_is_left_out() {
        let listed = [
            "linux-image-7.3.4+deb13-cloud-amd64",
            "linux-binary-7.3.4+deb13-cloud-amd64",
            "linux-modules-7.3.4+deb13-cloud-amd64",
        ];
        assert_eq!(
            kernel("7.x").releases(listed.into_iter()),
            [Release {
                name: "7.3.4+deb13",
                packages: vec!["linux-binary-7.3.4+deb13-cloud-amd64"]
            }]
        );
    }

    #[test]
    fn only_some_releases_are_tried() {
        let listed: Vec<String> = (1..=20)
            .map(|i| format!("linux-image-6.1.0-{i}-cloud-amd64"))
            .collect();
        let releases = kernel("6.1").releases(listed.iter().map(String::as_str));
        let names: Vec<&str> = releases.iter().map(|release| release.name).collect();
        assert_eq!(
            names,
            [
                "6.1.0-20", "6.1.0-19", "6.1.0-18", "6.1.0-17", "6.1.0-16", "6.1.0-15"
            ]
        );
    }

    #[test]
    fn the_newest_image_in_the_cache_is_by_number() {
        let cache = tempfile::tempdir().expect("a directory");
        assert_eq!(newest_image(cache.path()).expect("a listing"), None);
        for release in ["6.12.9", "6.12.117+deb13-cloud-amd64", "6.12.20"] {
            fs::write(cache.path().join(format!("{IMAGE}{release}")), "").expect("a file");
        }
        fs::write(cache.path().join("config-6.13.0"), "").expect("a file");
        let newest = newest_image(cache.path())
            .expect("a listing")
            .expect("an image");
        assert_eq!(
            newest.file_name(),
            Some(OsStr::new("vmlinuz-6.12.117+deb13-cloud-amd64"))
        );
    }
}

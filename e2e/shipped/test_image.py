"""The image, built from Dockerfile without Docker and without a registry: Debian, just bootstrapped, stands in for the base.

Tools that this machine has are used in there, too, where they run: building them takes longer than the image.

Environment:
  DINLE_IMAGE_TWICE=1   build the binary once more, elsewhere and with tools built anew, and expect the same bytes: a quarter of an hour
"""

import hashlib
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
WORK = ROOT / "target/image"
TOOLS = WORK / "tools"
BASE = "docker.io/library/debian:bookworm"
# The files of the image, and that each is there for a reason.
FILES = {
    "dinle",
    "etc/ssl/certs/ca-certificates.crt",
    "usr/share/licenses/dinle/LICENSE",
    "usr/share/licenses/dinle/LICENSE-GPL-2.0",
    "usr/share/licenses/dinle/LICENSE-MIT",
    "usr/share/licenses/dinle/ca-certificates",
    "usr/share/licenses/dinle/others",
    "usr/share/sbom/dinle.cdx.json",
}
TWICE = os.environ.get("DINLE_IMAGE_TWICE")
# Of what a node fetches, and of what it then keeps.
LIMIT_BYTES, UNPACKED_BYTES = 25_000_000, 32_000_000


def run(*command: str | Path, **more) -> str:
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, cwd=ROOT, **more)
    assert done.returncode == 0, f"{' '.join(map(str, command))} ended with {done.returncode}"
    return done.stdout


def buildah(*arguments: str | Path) -> str:
    """buildah with a store of its own."""
    return run("buildah", "--root", WORK / "store", "--runroot", WORK / "run", *arguments)


def base() -> None:
    root = WORK / "debian"
    run("e2e/debian", root)
    container = buildah("from", "scratch").strip()
    buildah("add", "--quiet", container, root, "/")
    buildah("commit", "--quiet", "--rm", container, BASE)
    shutil.rmtree(root)


def tools() -> None:
    """What cargo has installed for `e2e/setup dist`; a copy, so that what is built in there stays in there."""
    TOOLS.mkdir()
    home = Path(os.environ.get("CARGO_HOME", "~/.cargo")).expanduser()
    path = f"{home}/bin:{os.environ['PATH']}"
    for name in ["bpf-linker", "cargo-cyclonedx"]:
        if tool := shutil.which(name, path=path):
            shutil.copy(tool, TOOLS)


@pytest.fixture(scope="module")
def image():
    """The image as an OCI layout, and its root unpacked."""
    clean()
    WORK.mkdir(parents=True)
    try:
        base()
        tools()
        arguments = ["--isolation", "chroot", "--pull-never", "--timestamp", "0", "--volume", f"{TOOLS}:/root/.cargo/bin"]
        # Keeping what is built on the way, gigabytes, takes minutes.
        arguments.append(f"--layers={str(bool(TWICE)).lower()}")
        buildah("bud", *arguments, "--tag", "dinle", ".")
        if TWICE:
            # Out of the cache.
            buildah("bud", *arguments, "--target", "build", "--tag", "build", ".")
        buildah("push", "--quiet", "dinle", f"oci:{WORK / 'oci'}:dinle")
        yield Image(WORK / "oci")
    finally:
        clean()


def clean() -> None:
    if WORK.exists():
        buildah("rm", "--all")
        buildah("rmi", "--all", "--force")
        shutil.rmtree(WORK)


class Image:
    def __init__(self, layout: Path):
        self.layout = layout
        self.manifest = self.blob(json.loads((layout / "index.json").read_text())["manifests"][0])
        self.config = self.blob(self.manifest["config"])
        self.root = layout.parent / "root"
        self.files = {}
        for layer in self.manifest["layers"]:
            with tarfile.open(self.path(layer)) as archive:
                self.files |= {entry.name: entry for entry in archive.getmembers()}
            self.root.mkdir(exist_ok=True)
            run("tar", "-xf", self.path(layer), "-C", self.root)

    def path(self, described: dict) -> Path:
        return self.layout / "blobs" / described["digest"].replace(":", "/")

    def blob(self, described: dict) -> dict:
        return json.loads(self.path(described).read_text())

    def text(self, path: str) -> str:
        return (self.root / path).read_text()


def test_it_has_what_it_needs_and_nothing_else(image):
    files = {name for name, entry in image.files.items() if not entry.isdir()}
    assert files == FILES
    size = sum(layer["size"] for layer in image.manifest["layers"])
    unpacked = sum(entry.size for entry in image.files.values())
    print(f"{size / 2**20:.1f} MiB, {unpacked / 2**20:.1f} MiB unpacked")
    assert size < LIMIT_BYTES
    assert unpacked < UNPACKED_BYTES


def test_nothing_in_it_can_be_written(image):
    for name, entry in image.files.items():
        assert not entry.mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH), name
        assert (entry.uid, entry.gid) == (0, 0), name
        assert not entry.mode & (stat.S_ISUID | stat.S_ISGID), name


def test_it_is_labelled_and_starts_the_program(image):
    config = image.config["config"]
    assert config["Entrypoint"] == ["/dinle"]
    assert config["Labels"]["org.opencontainers.image.title"] == "Dinle"
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    assert (image.config["os"], image.config["architecture"]) == ("linux", architecture)


def test_the_program_needs_nothing_else(image):
    version = run("chroot", image.root, "/dinle", "version")
    assert re.fullmatch(r"dinle \d+\.\d+\.\d+\n", version)


def test_its_programs_load_into_this_kernel(image):
    if os.geteuid() != 0:
        pytest.skip("only root may load eBPF programs")
    told = run(image.root / "dinle", "agent", "--check")
    kinds = [line.split("\t") for line in told.splitlines() if line.startswith("KIND\t")]
    assert {kind[1] for kind in kinds} >= {"exec", "file_delete", "tcp_session", "block_io", "drop"}
    assert {kind[2] for kind in kinds} == {"ok"}, told


def test_the_sbom_lists_what_is_linked(image):
    bom = json.loads(image.text("usr/share/sbom/dinle.cdx.json"))
    assert bom["bomFormat"] == "CycloneDX"
    components = {component["name"]: component for component in bom["components"]}
    assert {"aya", "tonic", "kube", "tokio", "ring"} <= set(components)
    assert bom["metadata"]["component"]["name"] == "dinle"
    locked = set(re.findall(r'name = "([^"]+)"\nversion = "([^"]+)"', (ROOT / "Cargo.lock").read_text()))
    for component in bom["components"]:
        assert (component["name"], component["version"]) in locked
    # What differs from build to build.
    assert "serialNumber" not in bom and "path+file:///src/" not in json.dumps(bom)


def test_the_licences_of_all_that_is_linked_are_there(image):
    others = image.text("usr/share/licenses/dinle/others")
    components = json.loads(image.text("usr/share/sbom/dinle.cdx.json"))["components"]
    foreign = [part for part in components if not part["name"].startswith("dinle")]
    assert len(foreign) > 100
    for part in foreign:
        assert f"\n  {part['name']} {part['version']}: " in others
    for words in ["Apache License", "Permission is hereby granted", "Redistributions in binary form", "UNICODE LICENSE V3"]:
        assert words in others


@pytest.mark.skipif(not TWICE, reason="DINLE_IMAGE_TWICE is not set: another build takes minutes")
def test_another_build_elsewhere_gives_the_same_bytes(image):
    container = buildah("from", "--pull-never", "build").strip()
    buildah("run", "--isolation", "chroot", container, "--", "sh", "-c",
            "mkdir -p /home/another && cp -a /src /home/another/dinle && cd /home/another/dinle && rm -rf target && e2e/dist '' /again")
    mounted = Path(buildah("mount", container).strip())
    for name in FILES:
        first, again = ((root / name).read_bytes() for root in (image.root, mounted / "again"))
        assert hashlib.sha256(again).hexdigest() == hashlib.sha256(first).hexdigest(), name

"""The manifest of the kubectl plugin: what krew would refuse, and what its users are told."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
VERSION = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
# The two things that krew-release-bot puts in.
TAG = re.compile(r"\{\{ *\.TagName *\}\}")
ARCHIVE = re.compile(r'^( *)\{\{ *addURIAndSha "(?P<uri>[^"]+)" \.TagName *\}\}$', re.MULTILINE)
# What krew's index/types.go knows; it reads strictly.
SPEC = {"version", "shortDescription", "description", "caveats", "homepage", "platforms"}
PLATFORM = {"uri", "sha256", "selector", "files", "license", "bin"}


@pytest.fixture
def manifest() -> dict:
    """The manifest of this version, as the bot would write it."""
    template = (ROOT / ".krew.yaml").read_text()

    # It knows nothing of the depth at which it writes.
    def archive(match: re.Match) -> str:
        return f"{match[1]}uri: {match['uri']}\n    sha256: {'0' * 64}"

    return yaml.safe_load(TAG.sub(f"v{VERSION}", ARCHIVE.sub(archive, template)))


def test_krew_knows_every_field(manifest):
    assert (manifest["apiVersion"], manifest["kind"]) == ("krew.googlecontainertools.github.com/v1alpha2", "Plugin")
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(manifest["spec"]) <= SPEC
    for platform in manifest["spec"]["platforms"]:
        assert set(platform) <= PLATFORM


def test_what_krew_asks_for_is_there(manifest):
    spec = manifest["spec"]
    assert manifest["metadata"] == {"name": "dinle"}
    assert re.fullmatch(r"v\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?", spec["version"])
    short = spec["shortDescription"]
    # What `kubectl krew search` has room for.
    assert short and "\n" not in short and len(short) <= 50, short
    # By it the bot knows whose plugin it is.
    assert spec["homepage"] == "https://github.com/dinle/dinle"


def test_each_platform_has_its_own_archive_with_the_program_and_its_licence(manifest):
    platforms = {}
    for platform in manifest["spec"]["platforms"]:
        labels = platform["selector"]["matchLabels"]
        platforms[labels["os"], labels["arch"]] = platform["uri"]
        assert set(platform["selector"]) == {"matchLabels"} and set(labels) == {"os", "arch"}
        assert platform["bin"] == "kubectl-dinle"
        assert [file["from"] for file in platform["files"]] == ["kubectl-dinle", "LICENSE"]
        assert {file["to"] for file in platform["files"]} == {"."}
    base = f"https://github.com/dinle/dinle/releases/download/v{VERSION}/kubectl-dinle"
    assert platforms == {("linux", arch): f"{base}_linux_{arch}.tar.gz" for arch in ("amd64", "arm64")}

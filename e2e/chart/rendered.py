"""What the chart renders, by Helm's own code."""

import os
from pathlib import Path

import pytest
import yaml

helm_python = pytest.importorskip("helm_python", reason="Helm's library is packaged for x86-64 alone")

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "charts/dinle"
SCENARIOS = sorted((CHART / "scenarios").glob("*.yaml"))

# What is kept beside the tests and made of the chart is written anew in the place of being compared.
RENEW = "DINLE_RENEW"


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text()) or {}


def texts(values: dict | None = None, name: str = "dinle", namespace: str = "dinle") -> dict[str, str]:
    """What each template renders, the empty ones left out."""
    rendered = helm_python.Chart.load(CHART).render(values, name=name, namespace=namespace)
    return {name: text.strip() + "\n" for name, text in sorted(rendered.items()) if text.strip()}


def objects(values: dict | None = None, **release: str) -> list[dict]:
    rendered = texts(values, **release)
    manifests = [text for name, text in rendered.items() if name.endswith(".yaml")]
    return [object for text in manifests for object in yaml.safe_load_all(text) if object]


def by_kind(values: dict | None = None, **release: str) -> dict[str, dict]:
    """The objects of the release itself, without those of its test."""
    own = [object for object in objects(values, **release) if not is_test(object)]
    kinds = {object["kind"]: object for object in own}
    assert len(kinds) == len(own)
    return kinds


def is_test(object: dict) -> bool:
    return (object["metadata"].get("annotations") or {}).get("helm.sh/hook") == "test"


def check_kept(path: Path, text: str) -> None:
    """The file holds this text, or is given it."""
    if os.environ.get(RENEW):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    kept = path.read_text() if path.exists() else ""
    assert kept == text, (
        f"{path.relative_to(ROOT)} is not what the chart gives now; if the difference is wanted: {RENEW}=1 e2e/run-tests chart"
    )

"""The book: its pages, its links, and that what is made of the code is made of this code."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import reference
from node import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
# Outside of the book, with links all the same.
OTHERS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!\\)\[(?:[^\[\]]|\\\[|\\\]|!\[[^\]]*\]\([^)]*\))*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)


def prose(path) -> str:
    """The text without what is code."""
    return re.sub(r"`[^`\n]*`", "``", FENCE.sub("", path.read_text()))


def anchors(path) -> set[str]:
    """What can be linked to, as mdBook and GitHub name it."""
    found, seen = set(), {}
    for heading in HEADING.findall(FENCE.sub("", path.read_text())):
        # A link in a heading is its text.
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = reference.anchor(text.replace("`", ""))
        found.add(f"{name}-{seen[name]}" if name in seen else name)
        seen[name] = seen.get(name, 0) + 1
    return found


def links(path) -> list[str]:
    return LINK.findall(prose(path))


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_each_link_leads_somewhere(page):
    wrong = []
    for link in links(page):
        target, _, fragment = link.partition("#")
        if target.startswith("http"):
            # Whether others are there is not asked; of ours, what is in this tree is.
            if not re.fullmatch(r"https?://[\w.-]+(/[\w./~%@:+=?&,-]*)?", target):
                wrong.append(f"{link}: not an address")
            path = target.removeprefix(f"{reference.BLOB}/")
            if path != target and not (ROOT / path).exists():
                wrong.append(f"{link}: there is no {path} here")
            continue
        if target.startswith(("mailto:", "<")):
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists():
            wrong.append(f"{link}: there is no such file")
        elif page in PAGES and not file.is_relative_to(DOCS):
            wrong.append(f"{link}: outside of the book; link to {reference.BLOB}/{file.relative_to(ROOT)}")
        elif fragment and file.suffix == ".md" and fragment not in anchors(file):
            wrong.append(f"{link}: it has no such heading; it has {sorted(anchors(file))}")
    assert not wrong, "\n".join(wrong)


def test_each_page_is_in_the_table_of_contents_once():
    listed = links(DOCS / "SUMMARY.md")
    assert len(listed) == len(set(listed))
    assert {(DOCS / link).resolve() for link in listed} == {page for page in PAGES if page.name != "SUMMARY.md"}


def test_the_book_can_be_built_and_its_links_lead_somewhere():
    mdbook = shutil.which("mdbook", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not mdbook:
        pytest.skip("mdbook is packaged for x86-64 alone (cargo install --locked mdbook); pages and links are checked without it")
    done = subprocess.run([mdbook, "build", DOCS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "WARN" not in done.stderr and "ERROR" not in done.stderr, done.stderr
    book = ROOT / "target/book"
    pages = {page: page.read_text() for page in book.rglob("*.html") if page.name not in ("print.html", "404.html", "toc.html")}
    assert len(pages) >= len(PAGES) - 1
    names = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in pages.items()}
    wrong = []
    for page, text in pages.items():
        main = text.split("<main>", 1)[1].split("</main>", 1)[0]
        for link in re.findall(r'<a [^>]*href="([^"]+)"', main):
            target, _, fragment = link.partition("#")
            if "://" in target:
                continue
            file = (page.parent / target).resolve() if target else page
            if not file.exists() or fragment and fragment not in names.get(file, set()):
                wrong.append(f"{page.relative_to(book)}: {link}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ["api", "values", "metrics", "cli"])
def test_the_reference_is_of_what_is_there(name):
    reference.check_kept(reference.REFERENCE / f"{name}.md", getattr(reference, name)())


def test_pages_for_man_say_what_the_help_says(tmp_path):
    def man(*arguments) -> subprocess.CompletedProcess:
        return subprocess.run([reference.binary(), "man", *arguments], capture_output=True, text=True, timeout=60)

    assert man("--directory", tmp_path / "new/man1").returncode == 0
    pages = {page.name: page.read_text() for page in (tmp_path / "new/man1").iterdir()}
    assert set(pages) == {"dinle.1", *(f"dinle-{name.replace(' ', '-')}.1" for name in reference.commands())}
    for name in reference.commands():
        page = pages[f"dinle-{name.replace(' ', '-')}.1"].replace("\\-", "-")
        flags = set(re.findall(r"^ {2,6}(?:-\w, )?(--[\w-]+)", reference.help_of(*name.split()), re.MULTILINE))
        assert flags and not {flag for flag in flags if flag not in page}, name
    one = man("top")
    assert (one.returncode, one.stdout) == (0, pages["dinle-top.1"])
    wrong = man("nope")
    assert wrong.returncode == 2 and "there is no command nope" in wrong.stderr


def test_each_message_is_told_of():
    text = (reference.REFERENCE / "api.md").read_text()
    undescribed = re.findall(r"^\| `(\w+)` \|.*\|  \|$", text, re.MULTILINE)
    assert not undescribed, "fields without a comment in the contract"


def rows(page, heading: str) -> list[list[str]]:
    """Cells of the first table under a heading."""
    section = re.split(r"^#+ ", page.read_text().split(f"{heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def sources() -> list:
    found = [path for room in ("agent/src", "agent-ebpf/src") for path in (ROOT / room).rglob("*.rs")]
    return [path for path in found if "tests" not in path.parts and path.name != "tests.rs"]


def code(path) -> str:
    return path.read_text().split("\n#[cfg(test)]\nmod tests {")[0]


PAGE = DOCS / "add-a-sensor.md"
# Tests find out by themselves, and these are made of what is there.
MADE = {"charts/dinle/README.md", "docs/kernels.md", *(f"docs/reference/{page.name}" for page in reference.REFERENCE.glob("*.md"))}


def listed(heading: str) -> set[str]:
    """The files of a table of that page."""
    names = [row[0] for row in rows(PAGE, heading)]
    assert len(names) == len(set(names)), names
    return set(names)


def same(told: set[str], found: set[str]) -> None:
    assert told == found, f"not told: {sorted(found - told)}; told, and not so: {sorted(told - found)}"


def test_whoever_adds_a_kind_is_told_of_each_place():
    table = (ROOT / "agent-ebpf/src/lib.rs").read_text().split("\nkinds! {\n", 1)[1].split("\n}\n", 1)[0]
    kinds = re.findall(r"^    (\w+) = \d+ of (\w+)", table, re.MULTILINE)
    assert len(kinds) > 10
    naming = [
        {path for path in sources() if re.search(rf"\b(Kind|Detail|Self)::{kind}\b|^    {kind} = \d", code(path), re.MULTILINE)}
        for kind, _ in kinds
    ]
    everywhere = {str(path.relative_to(ROOT)) for path in set.intersection(*naming)}
    same(listed("## 4. What the compiler asks for"), everywhere)
    # As people write it.
    names = [re.sub(r"(?<!^)([A-Z])", r"_\1", kind).lower() for kind, _ in kinds]
    same(listed("### Where its name is, too"), {name for name, text in written().items() if names_in_one_place(text, names)})


def written() -> dict[str, str]:
    """What people wrote, by the file."""
    found = [path for room in ("charts/dinle", "docs") for path in (ROOT / room).rglob("*") if path.is_file() and path != PAGE]
    texts = {path: path.read_text() for path in [*found, ROOT / "README.md"]} | {path: code(path) for path in sources()}
    return {name: text for path, text in texts.items() if (name := str(path.relative_to(ROOT))) not in MADE}


def names_in_one_place(text: str, names: list[str]) -> bool:
    """Within a few lines: each of them is a word that is used for other things, too."""
    if not all(name in text for name in names):
        return False
    lines = text.splitlines()
    places = ("\n".join(lines[start : start + 12]) for start in range(len(lines)))
    return any(all(re.search(rf"\b{name}\b", place) for name in names) for place in places)


def test_whoever_adds_a_sensor_is_told_of_each_place():
    sensors = json.loads((ROOT / "charts/dinle/values.schema.json").read_text())
    sensors = sensors["properties"]["sensors"]["items"]["enum"]
    found = {name for name, text in written().items() if names_in_one_place(text, sensors)}
    same(listed("## 5. What a new sensor asks for besides"), found)


def test_symptoms_are_in_the_words_of_the_program():
    """What a page quotes, but for what stands in the place of `…`."""
    said = "".join(re.sub(r"\\\n\s*", "", code(path)) for path in sources())
    page = (DOCS / "troubleshooting.md").read_text()
    quoted = [quote for line in page.splitlines() if line.startswith("| ") for quote in re.findall(r"`([^`]+)`", line.split(" | ")[0])]
    fixed = [part.strip() for quote in quoted for part in quote.split("…")]
    # One word may be anywhere, and is not what is searched for.
    fixed = [part for part in fixed if " " in part]
    assert len(fixed) > 8
    wrong = [part for part in fixed if part not in said]
    assert not wrong, f"the program does not say {wrong}"


def test_files_that_a_page_names_are_there():
    for page in (DOCS / "add-a-sensor.md", DOCS / "release.md"):
        named = re.findall(r"`((?:agent|agent-ebpf|charts|docs|e2e|proto)/[\w./-]+|Cargo\.toml|CHANGELOG\.md|Dockerfile)`", page.read_text())
        assert named
        for name in named:
            assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_the_keys_of_the_live_view_are_those_of_its_help():
    source = (ROOT / "agent/src/client/top/live/draw.rs").read_text()
    table = source.split("const HELP", 1)[1].split("];", 1)[0]
    keys = re.findall(r'\("([^"]+)",\s*"([^"]+)"\)', table, re.DOTALL)
    told = [tuple(line.strip("| ").split(" | ")) for line in (DOCS / "top.md").read_text().splitlines()]
    assert len(keys) > 10
    assert [key for key in keys if key not in told] == []


def test_each_loss_has_a_name_in_the_book():
    contract = (ROOT / "proto/dinle/v1/observer.proto").read_text()
    stages = set(re.findall(r"LOSS_STAGE_(\w+) = [1-9]", contract))
    assert {row[0] for row in rows(DOCS / "concepts.md", "## When something is lost")} == stages
    tuning = (DOCS / "tuning.md").read_text()
    assert {stage for stage in stages if f"| `{stage}` |" not in tuning} == set()


def test_the_changelog_tells_of_this_version():
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    text = (ROOT / "CHANGELOG.md").read_text()
    assert text.index("## [Unreleased]") and version in text

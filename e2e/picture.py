"""Draws docs/picture.svg of docs/cases.md: nothing is in the picture that is not in the text."""

import re
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CASES = ROOT / "docs/cases.md"
PICTURE = ROOT / "docs/picture.svg"

# A marker with the number of lines to show, and the block below it.
SHOWN = re.compile(r"<!-- picture: (\d+) -->\n```console\n(.*?)```", re.DOTALL)

FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SIZE = 14
# What most monospaced fonts advance by; textLength sees to the others.
ADVANCE = SIZE * 0.602
LINE = 20
MARGIN = 20
BAR = 34

BACKGROUND, FRAME, TEXT = "#0d1117", "#444c56", "#e6edf3"
FAINT, QUESTION, PROMPT, POD, ANSWER = "#8b949e", "#e3b341", "#7ee787", "#79c0ff", "#ffa198"
# What answers the question.
ANSWERS = {"METHOD", "REASON", "REQ/s", "AVG(ms)"}
PODS = {"NODE", "POD"}

# Text and its colour, and whether it is bold.
Span = tuple[str, str, bool]


def table(lines: list[str]) -> list[list[Span]]:
    """A header and its rows, with columns as narrow as these rows allow. Columns of numbers stay on the right."""
    names = lines[0].split()
    rows = [line.split(None, len(names) - 1) for line in lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    drawn = []
    for row in rows:
        spans = []
        for name, cell, width, title in zip(names, row, widths, rows[0]):
            of_numbers = re.search(r"/s$|\(ms\)$", title)
            text = cell.rjust(width) if of_numbers else cell.ljust(width)
            colour = FAINT if row is rows[0] else POD if name in PODS else ANSWER if name in ANSWERS else TEXT
            spans.append((text + "  ", colour, row is rows[0]))
        drawn.append(spans)
    return drawn


def screen(text: str) -> list[list[Span]]:
    """The lines of the terminal: of each block that is marked, its question, the command, and its first lines."""
    drawn = []
    for block in SHOWN.finditer(text):
        question = re.findall(r"^## (.*)$", text[: block.start()], re.MULTILINE)[-1]
        command, *printed = block[2].splitlines()
        books = [line for line in printed if "books: " in line]
        rows = [line for line in printed if line and line not in books]
        # The header, and the first of its rows.
        shown = rows[: int(block[1]) + 1]
        if drawn:
            drawn.append([])
        drawn.append([(f"# {question}", QUESTION, False)])
        drawn.append([("$ ", PROMPT, True), (command[2:], TEXT, True)])
        drawn += table(shown)
        if any(line.split() != shown[0].split() for line in rows[len(shown) :]):
            drawn.append([("…", FAINT, False)])
        drawn += [[(line, FAINT, False)] for line in books]
    return drawn


def svg(text: str) -> str:
    """The picture, as a file."""
    lines = screen(text)
    columns = max(sum(len(span[0]) for span in line) for line in lines)
    width = round(columns * ADVANCE) + 2 * MARGIN
    height = BAR + len(lines) * LINE + MARGIN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">',
        "<title>A terminal in which kubectl dinle answers questions about pods</title>",
        f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8" fill="{BACKGROUND}" stroke="{FRAME}"/>',
        *(
            f'<circle cx="{MARGIN + 18 * place}" cy="{BAR // 2}" r="5" fill="{colour}"/>'
            for place, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
        ),
        f'<g font-family="{FONT}" font-size="{SIZE}" xml:space="preserve">',
    ]
    for number, line in enumerate(lines):
        y = BAR + number * LINE + SIZE
        column = 0
        for shown, colour, bold in line:
            stripped = shown.strip()
            if stripped:
                x = MARGIN + (column + len(shown) - len(shown.lstrip())) * ADVANCE
                weight = ' font-weight="bold"' if bold else ""
                out.append(
                    f'<text x="{x:.1f}" y="{y}" fill="{colour}"{weight} textLength="{len(stripped) * ADVANCE:.1f}"'
                    f' lengthAdjust="spacingAndGlyphs">{escape(stripped)}</text>'
                )
            column += len(shown)
    return "\n".join([*out, "</g>", "</svg>", ""])

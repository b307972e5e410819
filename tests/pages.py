"""The pages of this project, as tests read them: blocks, tables, commands, links, headings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in sorted(
        [
            ROOT / "README.md",
            *ROOT.glob("adapters/*.md"),
            *ROOT.glob("patches/README.md"),
            *ROOT.glob("topk_plugin/**/README.md"),
            *ROOT.glob("tests/**/README.md"),
        ]
    )
}
"""By their path in the checkout."""

_FENCE = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```(\w*)\n(.*?)^```$\n?", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block, and what an HTML comment just above says of it."""

    page: str
    line: int
    mark: str
    language: str
    text: str


class Table(NamedTuple):
    """A table below a heading; cells without the marks of code."""

    heading: str
    head: list[str]
    rows: list[list[str]]


def blocks(page: str) -> list[Block]:
    text = PAGES[page].read_text()
    return [
        Block(page, text[: found.start()].count("\n") + 1, *(part or "" for part in found.groups()))
        for found in _FENCE.finditer(text)
    ]


def prose(page: str) -> str:
    """A page without its blocks."""
    return _FENCE.sub("", PAGES[page].read_text())


def files(*pages: str) -> dict[str, str]:
    """The files that pages show, those of later ones in the place of earlier ones."""
    return {
        block.mark.removeprefix("file: "): block.text
        for page in pages
        for block in blocks(page)
        if block.mark.startswith("file: ")
    }


def shell(page: str) -> list[list[str]]:
    """The words of each command in a page's sh blocks."""
    shown = [b.text.replace("\\\n", " ") for b in blocks(page) if b.language == "sh"]
    lines = [line for text in shown for line in text.splitlines()]
    return [words for line in lines for words in commands(line)]


def commands(line: str) -> Iterator[list[str]]:
    """The words of each command on a line, without what is said to the reader."""
    words = shlex.split(line, comments=True)
    command: list[str] = []
    for word in words:
        if word in ("&&", "|"):
            yield command
            command = []
        else:
            command.append(word)
    if command:
        yield command


def code(page: str) -> list[str]:
    """What a page's prose sets as code, on one line."""
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose(page))]


def tables(page: str) -> list[Table]:
    heading, found, lines = "", [], [*prose(page).splitlines(), ""]
    table: list[list[str]] = []
    for line in lines:
        if line.startswith("|"):
            table.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
        elif table:
            found.append(Table(heading, table[0], table[2:]))
            table = []
        if line.startswith("#"):
            heading = line.lstrip("# ")
    return found


def table(page: str, first: str) -> list[list[str]]:
    """The rows of the one table whose first column is called ``first``."""
    [rows] = [table.rows for table in tables(page) if table.head[0] == first]
    return rows


def links(path: Path) -> list[str]:
    """The targets of a page's links and images that are not on the web."""
    text = _FENCE.sub("", path.read_text())
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in found if not re.match(r"\w+:", target)]


def anchors(path: Path) -> set[str]:
    """What the headings of a page are called in links."""
    text = _FENCE.sub("", path.read_text())
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", h.lower()).replace(" ", "-") for h in headings}

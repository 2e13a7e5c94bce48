"""A card as Markdown: facts between markers, and everything else as its owner left it."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nbdeploy.card_blocks import (
    Bars,
    Code,
    Details,
    Fence,
    Items,
    Mark,
    Section,
    Strong,
    Table,
    Text,
    number,
    one_line,
    visible,
)

Part = Section | str  # a section of ours, or Markdown of the user's

_MARKER = re.compile(r"^<!-- nbdeploy:facts (begin|end) ([a-z]+) -->[ \t]*$")
_NOTE = "<!-- What stands between these markers is written anew by nbdeploy.card; write outside of them. -->"
_HEADING = re.compile(r"^ {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
# What means something inside a line: emphasis, code, links, HTML, tables, strikes, formulas, addresses.
_SPECIAL = re.compile(r"[\\`*_\[\]|~$!@]")
_PLAIN_CODE = re.compile(r"[^`|<>&\\$\[\]\n]+")


def merge(before: str, sections: Sequence[Section], own: Mapping[str, str]) -> list[Part]:
    """Our sections, and the user's text of the card as it was, in its place.

    Parameters
    ----------
    before : str
        The former ``card.md``; '' where there was none.
    sections : sequence of Section
        What is to be between our markers now. Those that are new come after the one that precedes them here.
    own : mapping
        Heading to Markdown: the sections that the user passes. One that is there already is replaced.
    """
    known = {section.key: section for section in sections}
    parts: list[Part] = []
    for part in _split(before):
        if isinstance(part, str):
            parts.append(part)
        elif part[0] in known and known[part[0]] not in parts:
            parts.append(known[part[0]])
    for i, section in enumerate(sections):
        if section not in parts:
            place = parts.index(sections[i - 1]) + 1 if i else 0
            parts.insert(place, section)
    for title, text in own.items():
        _place(parts, one_line(title, 120).lstrip("# ") or "Notes", _demoted(text), after=sections[0])
    return [part for part in parts if not isinstance(part, str) or part.strip()]


def titles(parts: Sequence[Part]) -> dict[str, str]:
    """The user's own sections: heading (of the first or second level) to the Markdown below it."""
    found: dict[str, str] = {}
    for part in parts:
        if isinstance(part, str):
            lines = part.split("\n")
            for at, end, title in _under_headings(lines):
                found[title] = "\n".join(lines[at + 1 : end]).strip("\n")
    return found


def render(parts: Sequence[Part]) -> str:
    """The whole ``card.md``."""
    blocks = [part.strip("\n") if isinstance(part, str) else _section(part) for part in parts]
    return "\n\n".join(blocks) + "\n"


def escaped(text: object, longest: int = 400) -> str:
    """Any text as Markdown that shows it and means nothing else."""
    line = one_line(text, longest)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = _SPECIAL.sub(r"\\\g<0>", line)
    # Addresses that GitHub would turn into links by themselves.
    return re.sub(r"(?i)(https?|ftp|mailto|xmpp|javascript|data):", r"\1\\:", re.sub(r"(?i)\bwww\.", r"www\\.", line))


# -- ours ---------------------------------------------------------------------------------------------------


def _section(section: Section) -> str:
    level = "#" if section.key == "summary" else "##"
    body = "\n\n".join(_block(block) for block in section.blocks)
    note = f"{_NOTE}\n" if section.key == "summary" else ""
    return (
        f"<!-- nbdeploy:facts begin {section.key} -->\n{note}{level} {escaped(section.title)}\n\n{body}\n"
        f"<!-- nbdeploy:facts end {section.key} -->"
    )


def _block(block: Any) -> str:
    render_one: dict[type, Callable[[Any], str]] = {
        Text: lambda it: f"*{_said(it.spans)}*" if it.quiet else _said(it.spans),
        Items: lambda it: "\n".join(f"- {_said(line)}" for line in it.lines),
        Table: _table,
        Fence: _fence,
        Details: lambda it: (
            f"<details>\n<summary>{html.escape(one_line(it.summary))}</summary>\n\n"
            + "\n\n".join(_block(inner) for inner in it.blocks)
            + "\n\n</details>"
        ),
        Bars: _bars,
    }
    return render_one[type(block)](block)


def _said(spans: Any) -> str:
    words = []
    for span in spans if isinstance(spans, tuple) else (spans,):
        if isinstance(span, Code):
            line = one_line(span.text, 400)
            words.append(f"`{line}`" if _PLAIN_CODE.fullmatch(line) else escaped(line) or "''")
        elif isinstance(span, Strong):
            words.append(f"**{escaped(span.text)}**")
        elif isinstance(span, Mark):
            words.append("✓" if span.good else "✗")
        else:
            text = str(span)
            lead, trail = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
            words.append(
                f"{lead and ' '}{escaped(text, 2_000)}{trail and ' '}" if text.strip() else " " if text else ""
            )
    return "".join(words)


def _table(table: Table) -> str:
    width = len(table.rows[0]) if table.rows else len(table.head)
    head = table.head or ("",) * width
    rule = "|".join("---:" if i in table.numbers else "---" for i in range(width))
    lines = [f"| {' | '.join(escaped(cell) for cell in head)} |", f"|{rule}|"]
    lines += [f"| {' | '.join(_said(cell) for cell in row)} |" for row in table.rows]
    return "\n".join(lines)


def _fence(fence: Fence) -> str:
    longest = max((len(run) for run in re.findall(r"`+", fence.text)), default=0)
    ticks = "`" * max(3, longest + 1)
    lines = visible(fence.text).split("\n")
    # A line that looks like one of our markers must not end our part.
    kept = "\n".join(f" {line}" if _MARKER.match(line) else line for line in lines)
    return f"{ticks}{fence.language}\n{kept}\n{ticks}"


def _bars(bars: Bars) -> str:
    rows = tuple((Code(name), number(round(mean, 5)), number(round(std, 5))) for name, mean, std in bars.bars)
    return _table(Table(rows, ("Column", bars.unit[0].upper() + bars.unit[1:], "±"), frozenset({1, 2})))


# -- the user's ---------------------------------------------------------------------------------------------


def _split(text: str) -> list[str | tuple[str]]:
    """The user's text, and in its place the key of each part of ours.

    A marker without its partner is dropped and what follows it is kept: no text of the user's is ever lost to one.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    parts: list[str | tuple[str]] = []
    held: list[str] = []
    at = 0
    while at < len(lines):
        marker = _MARKER.match(lines[at])
        if marker is None:
            held.append(lines[at])
        elif marker[1] == "begin" and (end := _end_of(lines, at, marker[2])) is not None:
            parts += ["\n".join(held), (marker[2],)]
            held, at = [], end
        at += 1
    return [part for part in [*parts, "\n".join(held)] if not isinstance(part, str) or part.strip()]


def _end_of(lines: Sequence[str], begin: int, key: str) -> int | None:
    for at in range(begin + 1, len(lines)):
        if marker := _MARKER.match(lines[at]):
            return at if (marker[1], marker[2]) == ("end", key) else None
    return None


def _heads(lines: Sequence[str]) -> list[tuple[int, str]]:
    """Where headings of the first and second level stand, outside of code."""
    found, fence = [], ""
    for at, line in enumerate(lines):
        if mark := _FENCE.match(line):
            if not fence:
                fence = mark[1]
            elif mark[1].startswith(fence) and not line.strip(" `~"):
                fence = ""
        elif not fence and (head := _HEADING.match(line)) and len(head[1]) <= 2:
            found.append((at, (head[2] or "").strip()))
    return found


def _under_headings(lines: Sequence[str]) -> list[tuple[int, int, str]]:
    """Per heading of the first or second level where it stands, where what is below it ends, and its text."""
    heads = _heads(lines)
    ends = [at for at, _ in heads[1:]] + [len(lines)]
    return [(at, end, title) for (at, title), end in zip(heads, ends, strict=False)]


def _demoted(text: str) -> str:
    """Markdown for below a heading: its own headings start at the third level, and no line is a marker."""
    lines = str(text).replace("\r\n", "\n").strip("\n").split("\n")
    for at, _ in _heads(lines):
        lines[at] = f"### {lines[at].strip().lstrip('#').strip()}"
    return "\n".join(f" {line}" if _MARKER.match(line) else line for line in lines)


def _place(parts: list[Part], title: str, text: str, after: Section) -> None:
    """Put a section of the user's where it was, or behind what they wrote after our first."""
    block = f"## {title}\n\n{text}"
    for i, part in enumerate(parts):
        if isinstance(part, str):
            lines = part.split("\n")
            for at, end, found in _under_headings(lines):
                if found == title:
                    rest = "\n".join(lines[end:])
                    parts[i] = "\n".join([*lines[:at], block, *([f"\n{rest}"] if rest.strip() else [])])
                    return
    place = parts.index(after) + 1
    if place < len(parts) and isinstance(parts[place], str):
        parts[place] = f"{str(parts[place]).rstrip()}\n\n{block}"
    else:
        parts.insert(place, block)

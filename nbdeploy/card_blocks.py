"""The pieces of a card, before they become Markdown or HTML, and text that is safe to read in both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

Said = Any  # one Span, or a tuple of them


@dataclass(frozen=True)
class Code:
    """A name or a value as it is written in code."""

    text: str


@dataclass(frozen=True)
class Strong:
    """Words that matter most."""

    text: str


@dataclass(frozen=True)
class Mark:
    """A tick or a cross."""

    good: bool


@dataclass(frozen=True)
class Text:
    """A paragraph; a quiet one says what is absent, and how to get it."""

    spans: tuple[Any, ...]
    quiet: bool = False


@dataclass(frozen=True)
class Items:
    """A list of points."""

    lines: tuple[Said, ...]


@dataclass(frozen=True)
class Table:
    """Rows of cells. Without `head` it is a list of facts: name and value."""

    rows: tuple[tuple[Said, ...], ...]
    head: tuple[str, ...] = ()
    numbers: frozenset[int] = frozenset()  # columns aligned to the right


@dataclass(frozen=True)
class Fence:
    """Code, or lines to copy."""

    text: str
    language: str = ""


@dataclass(frozen=True)
class Details:
    """What is folded away until it is asked for."""

    summary: str
    blocks: tuple[Any, ...]


@dataclass(frozen=True)
class Bars:
    """Importance as a plot: (name, mean, standard deviation), and what a bar's length means."""

    bars: tuple[tuple[str, float, float], ...]
    unit: str


@dataclass(frozen=True)
class Section:
    """One part of a card. `key` is stable; the text between its markers in ``card.md`` is ours."""

    key: str
    title: str
    blocks: tuple[Any, ...]


def one_line(value: object, longest: int = 200) -> str:
    """`value` as text on one line, short, with what cannot be seen (controls, direction marks) spelled out."""
    text = " ".join(str(value)[: longest * 4].split())
    if not text.isprintable():
        text = "".join(char if char.isprintable() else f"u{ord(char):04x}" for char in text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def visible(text: str) -> str:
    """Code as it is, its lines too, with what reverses or hides text spelled out."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(char if char.isprintable() or char in "\n\t" else f"u{ord(char):04x}" for char in text)


def number(value: Any) -> str:
    """A number in as many digits as it takes to read it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return one_line(value, 80)
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 64 else "beyond 64 bits"
    if not math.isfinite(value):
        return str(value)
    return str(int(value)) if value.is_integer() and abs(value) < 1e9 else f"{value:.6g}"

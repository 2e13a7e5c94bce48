"""The pictures of a comparison: small SVG texts, drawn in the colours of the notebook's theme."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WIDTH, HEIGHT = 560, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 26, 34
MAX_POINTS = 300  # of a cloud
MAX_BARS = 8
BINS = 30

# JupyterLab's colours follow its theme; elsewhere the text's own colour, and one that is seen on light and dark.
INK = "var(--jp-ui-font-color1,currentColor)"
FAINT = "var(--jp-border-color1,rgba(128,128,128,.6))"
LIVE = "var(--jp-ui-font-color2,#808080)"
CANDIDATE = "var(--jp-brand-color1,#2196f3)"


@dataclass(frozen=True)
class _Scale:
    """From what is drawn to where."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _scale(values: Any, start: float, end: float) -> _Scale:
    held = np.asarray(values, dtype=float)
    low, high = float(held.min()), float(held.max())
    if not high > low:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    return _Scale(low, high, start, end)


def over_time(
    when: Sequence[str], estimates: Sequence[float], lows: Sequence[float], highs: Sequence[float], title: str
) -> str:
    """A difference as it was known at each look, with the interval that holds at all of them.

    Parameters
    ----------
    when : sequence of str
        What each look is called; the first and the last are shown.
    """
    x = _scale([0, len(when) - 1], _LEFT, WIDTH - _RIGHT)
    # The first intervals are so wide that nothing else could be seen.
    seen = [abs(end) for end in (*lows[len(lows) // 4 :], *highs[len(highs) // 4 :], *estimates)]
    most = max(seen) or 1.0
    y = _Scale(-most, most, HEIGHT - _BOTTOM, _TOP)

    def at(value: float) -> float:
        return y(min(most, max(-most, value)))

    upper = [f"{x(i):.1f},{at(value):.1f}" for i, value in enumerate(highs)]
    lower = [f"{x(i):.1f},{at(value):.1f}" for i, value in reversed(list(enumerate(lows)))]
    middle = " ".join(f"{x(i):.1f},{at(value):.1f}" for i, value in enumerate(estimates))
    parts = [
        f'<polygon points="{" ".join(upper + lower)}" fill="{CANDIDATE}" fill-opacity=".2"/>',
        _line(_LEFT, at(0), WIDTH - _RIGHT, at(0), FAINT),
        f'<polyline points="{middle}" fill="none" stroke="{CANDIDATE}" stroke-width="2"/>',
        *_ticks(y),
        _text(_LEFT, HEIGHT - 12, when[0]),
        _text(WIDTH - _RIGHT, HEIGHT - 12, when[-1], "end"),
    ]
    return _drawing(title, parts)


def histograms(live: Any, candidate: Any, names: tuple[str, str], title: str) -> str:
    """The distributions of two sets of numbers, each as shares."""
    both = np.concatenate([live, candidate])
    low, high = (float(end) for end in np.quantile(both, (0.005, 0.995)))
    if not high > low:
        low, high = float(both.min()), float(both.max())
    x = _scale([low, high], _LEFT, WIDTH - _RIGHT)
    edges = np.linspace(x.low, x.high, BINS + 1)
    # What lies beyond the picture is in its first and its last column.
    shares = [np.histogram(np.clip(side, x.low, x.high), edges)[0] / len(side) for side in (live, candidate)]
    y = _scale([0, *np.concatenate(shares)], HEIGHT - _BOTTOM, _TOP)
    parts = [*_ticks(y, _percent), _text(_LEFT, HEIGHT - 12, short(x.low)),
             _text(WIDTH - _RIGHT, HEIGHT - 12, short(x.high), "end"), *_legend(names)]  # fmt: skip
    for share, colour in zip(shares, (LIVE, CANDIDATE), strict=True):
        corners = [f"{x(edge):.1f},{y(height):.1f}" for i, height in enumerate(share) for edge in edges[i : i + 2]]
        parts.append(f'<polyline points="{" ".join(corners)}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return _drawing(title, parts)


def bars(
    labels: Sequence[str], live: Sequence[float], candidate: Sequence[float], names: tuple[str, str], title: str
) -> str:
    """The shares of the commonest categories in two sets of answers."""
    labels, live, candidate = labels[:MAX_BARS], live[:MAX_BARS], candidate[:MAX_BARS]
    y = _scale([0, *live, *candidate], HEIGHT - _BOTTOM, _TOP)
    slot = (WIDTH - _LEFT - _RIGHT) / len(labels)
    wide = min(40.0, slot * 0.36)
    parts = [*_ticks(y, _percent), *_legend(names)]
    for i, label in enumerate(labels):
        middle = _LEFT + slot * (i + 0.5)
        for left, share, colour in ((middle - wide, live[i], LIVE), (middle, candidate[i], CANDIDATE)):
            parts.append(f'<rect x="{left:.1f}" y="{y(share):.1f}" width="{wide:.1f}" '
                         f'height="{max(0.0, y(0) - y(share)):.1f}" fill="{colour}"/>')  # fmt: skip
        parts.append(_text(middle, HEIGHT - 12, _cut(label, max(3, int(slot / 8))), "middle"))
    return _drawing(title, parts)


def cloud(live: Any, candidate: Any, names: tuple[str, str], title: str) -> str:
    """The two answers to each row: on the line where they are equal."""
    step = math.ceil(len(live) / MAX_POINTS)
    live, candidate = live[::step], candidate[::step]
    both = np.concatenate([live, candidate])
    x, y = _scale(both, _LEFT, WIDTH - _RIGHT), _scale(both, HEIGHT - _BOTTOM, _TOP)
    parts = [_line(x(x.low), y(y.low), x(x.high), y(y.high), FAINT), *_ticks(y),
             _text(_LEFT, HEIGHT - 12, short(x.low)), _text(WIDTH - _RIGHT, HEIGHT - 12, short(x.high), "end"),
             _text((_LEFT + WIDTH) / 2, HEIGHT - 12, names[0], "middle"), _text(_LEFT + 6, _TOP + 12, names[1])]  # fmt: skip
    parts += [
        f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.5" fill="{CANDIDATE}" fill-opacity=".5"/>'
        for a, b in zip(live, candidate, strict=True)
    ]
    return _drawing(title, parts)


# -- parts --------------------------------------------------------------------------------------------------


def short(value: float) -> str:
    """A number as a person reads it."""
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.3g}"
    rounded = f"{value:,.{max(0, 3 - len(str(int(abs(value)))))}f}" if abs(value) >= 1 else f"{value:.3g}"
    return rounded.rstrip("0").rstrip(".") if "." in rounded else rounded


def _drawing(title: str, parts: Sequence[str]) -> str:
    told = html.escape(title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        f'aria-label="{told}" style="max-width:100%;height:auto;font:11px system-ui,sans-serif">'
        f"{_text(_LEFT, 14, title, bold=True)}{''.join(parts)}</svg>"
    )


def _ticks(y: _Scale, told: Callable[[float], str] | None = None) -> list[str]:
    values = (y.low, (y.low + y.high) / 2, y.high)
    marks = [_line(_LEFT - 4, y(value), _LEFT, y(value), FAINT) for value in values]
    named = [_text(_LEFT - 8, y(value) + 4, (told or short)(value), "end") for value in values]
    return [_line(_LEFT, _TOP, _LEFT, HEIGHT - _BOTTOM, FAINT), *marks, *named]


def _legend(names: tuple[str, str]) -> list[str]:
    found, right = [], float(WIDTH - _RIGHT)
    for name, colour in zip(reversed(names), (CANDIDATE, LIVE), strict=True):
        told = _cut(name, 20)
        found.append(_text(right, 14, told, "end"))
        right -= 7.0 * len(told) + 6
        found.append(f'<rect x="{right - 10:.1f}" y="5" width="10" height="10" fill="{colour}"/>')
        right -= 22
    return found


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", *, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{INK}" text-anchor="{anchor}"{weight}>{html.escape(text)}</text>'


def _percent(value: float) -> str:
    return f"{value:.0%}" if value >= 0.1 or not value else f"{value:.1%}"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"

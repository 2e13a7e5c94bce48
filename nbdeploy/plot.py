"""Every picture: small SVG texts that are read on light and dark, under 60 kB whatever is drawn.

All of them have a version in the same colour, and those over time the same axis.
"""

from __future__ import annotations

import html
import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

WIDTH, HEIGHT = 560, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 42, 34
MAX_POINTS = 300  # of a cloud
MAX_BARS = 8
MAX_LINES = 12
BINS = 30

# JupyterLab's colours follow its theme; elsewhere the text's own colour, and one that is seen on light and dark.
INK = "var(--jp-ui-font-color1,currentColor)"
FAINT = "var(--jp-border-color1,rgba(128,128,128,.6))"
GRID = "var(--jp-border-color2,rgba(128,128,128,.25))"
NEUTRAL = "var(--jp-ui-font-color2,#808080)"
# Four of M. Okabe and K. Ito's colours (2008) and two more: each has a contrast of 3 to 1 on white and on JupyterLab's
# dark grey, and they are told apart without red, green or blue cones.
VERSIONS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7e5be5", "#7f6c33")

_POINTS = 900  # of all lines of a picture together
_DOTTED = 60  # up to so many points of a picture have a mark that tells its value
_EVENTS = 40
_SIZES = {False: 5.6, True: 6.2}  # how wide a letter is, about


def colour(version: str) -> str:
    """The colour of a version, the same in every picture; '' has a neutral one.

    There are six: v7 has the colour of v1.
    """
    if not version:
        return NEUTRAL
    found = re.fullmatch(r"v(\d{1,18})", version)
    return VERSIONS[(int(found[1]) - 1 if found else zlib.crc32(version.encode("utf-8", "replace"))) % len(VERSIONS)]


@dataclass(frozen=True, eq=False)
class Line:
    """What one line shows over time.

    Attributes
    ----------
    times : sequence
        Moments of any kind that pandas knows, UTC where they do not say; in any order.
    values : sequence of float
        One for each of them; NaN is a gap.
    low, high : sequence of float, optional
        The ends of an interval around each value, drawn as a band; NaN where there is none.
    version : str
        Whose colour it has.
    dashed : bool
        For what is only estimated.
    """

    name: str
    times: Sequence[Any]
    values: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    version: str = ""
    dashed: bool = False


def over_time(
    lines: Sequence[Line],
    title: str,
    *,
    unit: str = "",
    limit: float | None = None,
    events: Sequence[tuple[datetime, str]] = (),
    span: tuple[Any, Any] | None = None,
    limit_name: str = "",
    from_zero: bool = False,
) -> str:
    """Lines over time, in UTC. Of many points of a line those that are seen are drawn, of many lines the first 12.

    Parameters
    ----------
    unit : str
        After the numbers of the axis, such as ``%`` or ``ms``.
    limit : float, optional
        A dashed line at this value, called `limit_name`.
    events : sequence of (moment, text)
        Marks across the picture; the 40 newest.
    span : tuple of moments, optional
        From when to when. Without it, from the first moment to the last.
    from_zero : bool
        The axis of the values begins at 0, as for counts.
    """
    drawn = [_held(line, max(20, _POINTS // max(1, min(len(lines), MAX_LINES)))) for line in lines[:MAX_LINES]]
    marks = [(_nanoseconds([when])[0], text) for when, text in events]
    ends = _nanoseconds(span) if span is not None else np.concatenate([held[0] for held in drawn] or [np.zeros(0)])
    if not len(ends):
        return _drawing(title, [_text((_LEFT + WIDTH) / 2, HEIGHT / 2, "nothing to show yet", "middle")])
    legend, more = _legend([(_known(line), colour(line.version), line.dashed) for line in lines[:MAX_LINES]])
    top = _TOP + more + (14 if marks else 0)  # the first row of their names is above all lines
    x = _wide(_scale(ends, _LEFT, WIDTH - _RIGHT), one=len(np.unique(ends)) < 2)
    y, grid = _upright(drawn, [limit, 0.0 if from_zero else None], HEIGHT + more - _BOTTOM, top)
    parts = [*_ticks(y, grid, lambda value: f"{short(value)}{unit and ' ' + unit}"), *_time_axis(x, y), *legend]
    parts += _events(marks, x, y)
    few = sum(len(held[0]) for held in drawn) <= _DOTTED
    for line, held in zip(lines, drawn, strict=False):
        parts += _line_parts(line, held, x, y, unit, few=few)
    if limit is not None and math.isfinite(limit):
        parts += [_line(_LEFT, y(limit), WIDTH - _RIGHT, y(limit), INK, more='stroke-dasharray="6 4"'),
                  _text(_LEFT + 4, y(limit) - 4, _cut(limit_name, 40))]  # fmt: skip
    return _drawing(title, parts, HEIGHT + more)


def histograms(live: Any, candidate: Any, names: tuple[str, str], title: str) -> str:
    """The distributions of two sets of numbers, each as shares; `names` are those of two versions."""
    both = np.concatenate([live, candidate])
    low, high = (float(end) for end in np.quantile(both, (0.005, 0.995)))
    if not high > low:
        low, high = float(both.min()), float(both.max())
    x = _scale([low, high], _LEFT, WIDTH - _RIGHT)
    edges = np.linspace(x.low, x.high, BINS + 1)
    # What lies beyond the picture is in its first and its last column.
    shares = [np.histogram(np.clip(side, x.low, x.high), edges)[0] / len(side) for side in (live, candidate)]
    y = _scale([0, *np.concatenate(shares)], HEIGHT - _BOTTOM, _TOP)
    parts = [*_ticks(y, _nice(y), _percent), _text(_LEFT, HEIGHT - 12, short(x.low)),
             _text(WIDTH - _RIGHT, HEIGHT - 12, short(x.high), "end"), *_pair(names)]  # fmt: skip
    for share, name in zip(shares, names, strict=True):
        corners = [f"{x(edge):.1f},{y(height):.1f}" for i, height in enumerate(share) for edge in edges[i : i + 2]]
        parts.append(f'<polyline points="{" ".join(corners)}" fill="none" stroke="{colour(name)}" stroke-width="2"/>')
    return _drawing(title, parts)


def bars(
    labels: Sequence[str], live: Sequence[float], candidate: Sequence[float], names: tuple[str, str], title: str
) -> str:
    """The shares of the commonest categories in two sets of answers; `names` are those of two versions."""
    labels, live, candidate = labels[:MAX_BARS], live[:MAX_BARS], candidate[:MAX_BARS]
    y = _scale([0, *live, *candidate], HEIGHT - _BOTTOM, _TOP)
    slot = (WIDTH - _LEFT - _RIGHT) / len(labels)
    wide = min(40.0, slot * 0.36)
    parts = [*_ticks(y, _nice(y), _percent), *_pair(names)]
    for i, label in enumerate(labels):
        middle = _LEFT + slot * (i + 0.5)
        for left, share, name in ((middle - wide, live[i], names[0]), (middle, candidate[i], names[1])):
            parts.append(f'<rect x="{left:.1f}" y="{y(share):.1f}" width="{wide:.1f}" '
                         f'height="{max(0.0, y(0) - y(share)):.1f}" fill="{colour(name)}"/>')  # fmt: skip
        parts.append(_text(middle, HEIGHT - 12, _cut(label, max(3, int(slot / 8))), "middle"))
    return _drawing(title, parts)


def cloud(live: Any, candidate: Any, names: tuple[str, str], title: str) -> str:
    """The two answers to each row: on the line where they are equal. `names` are those of two versions."""
    step = math.ceil(len(live) / MAX_POINTS)
    live, candidate = live[::step], candidate[::step]
    both = np.concatenate([live, candidate])
    x, y = _scale(both, _LEFT, WIDTH - _RIGHT), _scale(both, HEIGHT - _BOTTOM, _TOP)
    parts = [_line(x(x.low), y(y.low), x(x.high), y(y.high), FAINT), *_ticks(y, _nice(y), short),
             _text(_LEFT, HEIGHT - 12, short(x.low)), _text(WIDTH - _RIGHT, HEIGHT - 12, short(x.high), "end"),
             _text((_LEFT + WIDTH) / 2, HEIGHT - 12, names[0], "middle"), _text(_LEFT + 6, _TOP + 12, names[1])]  # fmt: skip
    parts += [
        f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.5" fill="{colour(names[1])}" fill-opacity=".5"/>'
        for a, b in zip(live, candidate, strict=True)
    ]
    return _drawing(title, parts)


def short(value: float) -> str:
    """A number as a person reads it."""
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.3g}"
    rounded = f"{value:,.{max(0, 3 - len(str(int(abs(value)))))}f}" if abs(value) >= 1 else f"{value:.3g}"
    return rounded.rstrip("0").rstrip(".") if "." in rounded else rounded


# -- lines over time ----------------------------------------------------------------------------------------

_Held = tuple[Any, Any, Any, Any]  # moments in nanoseconds, values, and the ends of the intervals


def _nanoseconds(moments: Any) -> Any:
    """Moments as numbers; NaN for what is none."""
    found = pd.to_datetime(pd.Series(list(moments), dtype=object), utc=True, errors="coerce").dt.as_unit("ns")
    held = found.dt.tz_localize(None).to_numpy("datetime64[ns]").astype("int64").astype(float)
    held[found.isna().to_numpy()] = np.nan
    return held


def _held(line: Line, at_most: int) -> _Held:
    """A line by its time, thinned out: of the points at one place the lowest and the highest."""
    when, values = _nanoseconds(line.times), np.asarray(line.values, dtype=float)
    ends = [np.full(len(values), np.nan) if end is None else np.asarray(end, dtype=float)
            for end in (line.low, line.high)]  # fmt: skip
    values = np.where(np.isfinite(values), values, np.nan)
    order = np.argsort(when, kind="stable")
    order = order[np.isfinite(when[order])]
    if len(order) > at_most:
        when_sorted = when[order]
        first, last = when_sorted[0], when_sorted[-1]
        slots = ((when_sorted - first) / ((last - first) or 1) * (at_most // 2 - 1)).astype(int)
        begins = np.flatnonzero(np.diff(slots, prepend=-1))
        kept: set[int] = set()
        for start, stop in zip(begins, [*begins[1:], len(order)], strict=True):
            some = values[order[start:stop]]
            # Of what is all missing, one point is the gap.
            places = (np.nanargmin(some), np.nanargmax(some)) if np.isfinite(some).any() else (0,)
            kept.update(int(start) + int(place) for place in places)
        order = order[sorted(kept)]
    found = [each[order] for each in (when, values, *ends)]
    return found[0], found[1], found[2], found[3]


def _upright(
    drawn: Sequence[_Held], seen: Sequence[float | None], bottom: float, top: float
) -> tuple[_Scale, list[float]]:
    """The scale of the values and of what else is to be `seen`, and where it has marks. Intervals that would hide all else are cut off."""
    values = [held[1] for held in drawn]
    for held, q in ((2, 0.1), (3, 0.9)):
        ends = np.concatenate([line[held] for line in drawn] or [np.zeros(0)])
        ends = ends[np.isfinite(ends)]
        if len(ends):
            values.append(np.quantile(ends, [q]))
    values.append(np.array([np.nan if each is None else each for each in seen], dtype=float))
    every = np.concatenate(values)
    every = every[np.isfinite(every)]
    if not len(every):
        every = np.array([0.0, 1.0])
    around = _scale(every, bottom, top)
    room = 0.06 * (around.high - around.low)
    low = around.low if around.low == 0 else around.low - room
    y = _Scale(low, around.high + room, bottom, top)
    return y, _nice(y)


def _line_parts(line: Line, held: _Held, x: _Scale, y: _Scale, unit: str, *, few: bool) -> list[str]:
    when, values, low, high = held
    stroke = colour(line.version)
    dash = ' stroke-dasharray="4 3"' if line.dashed else ""
    inside = (when >= x.low) & (when <= x.high)
    parts = []
    for run in _runs(inside & np.isfinite(low) & np.isfinite(high) & np.isfinite(values)):
        ends = [[f"{x(when[i]):.1f},{y.inside(end[i]):.1f}" for i in run] for end in (high, low)]
        if len(run) == 1:  # a band of no width is not seen
            at = x(when[run[0]])
            parts.append(
                _line(at, y.inside(low[run[0]]), at, y.inside(high[run[0]]), stroke, more='stroke-opacity=".45"')
            )
        else:
            parts.append(f'<polygon points="{" ".join(ends[0] + ends[1][::-1])}" fill="{stroke}" fill-opacity=".18"/>')
    for run in _runs(inside & np.isfinite(values)):
        if len(run) > 1:
            points = " ".join(f"{x(when[i]):.1f},{y(values[i]):.1f}" for i in run)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{stroke}" stroke-width="2"{dash}/>')
        for i in run if few or len(run) == 1 else ():
            between = f" ({short(low[i])} to {short(high[i])})" if math.isfinite(low[i] + high[i]) else ""
            told = f"{_cut(line.name, 40)}, {_moment(when[i])}: {short(values[i])}{unit and ' ' + unit}{between}"
            parts.append(f'<circle cx="{x(when[i]):.1f}" cy="{y(values[i]):.1f}" r="2.5" fill="{stroke}">'
                         f"<title>{_told(told)}</title></circle>")  # fmt: skip
    return parts


def _runs(kept: Any) -> list[Any]:
    """The places where `kept` holds, those that follow one another together."""
    places = np.flatnonzero(kept)
    return np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if len(places) else []


def _events(marks: Sequence[tuple[float, str]], x: _Scale, y: _Scale) -> list[str]:
    parts: list[str] = []
    taken = [-math.inf] * 3  # how far right the names in each row of names reach
    shown = sorted(mark for mark in marks if x.low <= mark[0] <= x.high)[-_EVENTS:]
    for when, text in shown:
        at = x(when)
        parts.append(f'<g stroke-dasharray="2 3"><title>{_told(f"{_moment(when)}: {_cut(text, 80)}")}</title>'
                     f"{_line(at, y.start, at, y.end, INK)}</g>")  # fmt: skip
        name = _cut(text, 24)
        left = min(at + 4, WIDTH - _RIGHT - len(name) * _SIZES[False])
        row = next((row for row, reached in enumerate(taken) if left > reached + 6), None)
        if row is not None and name:
            taken[row] = left + len(name) * _SIZES[False]
            parts.append(_text(left, y.end - 4 + 12 * row, name))
    return parts


# -- the axis of time ---------------------------------------------------------------------------------------

_SECOND = 1_000_000_000
_STEPS = [
    seconds * _SECOND
    for minutes in (1, 60, 3600, 86_400)
    for seconds in {1: (1, 5, 15, 30), 60: (60, 300, 900, 1800), 3600: (3600, 10_800, 21_600, 43_200),
                    86_400: (86_400, 172_800, 604_800, 1_209_600)}[minutes]
]  # fmt: skip
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAY = 86_400 * _SECOND
_MOST_TICKS = 7


def _time_axis(x: _Scale, y: _Scale) -> list[str]:
    parts = [_line(_LEFT, y.start, WIDTH - _RIGHT, y.start, FAINT)]
    taken = -math.inf  # how far right the names reach
    for when, text in time_ticks(x.low, x.high):
        at, wide = x(when), len(text) * _SIZES[False]
        anchor, left = "middle", at - wide / 2
        if at < _LEFT + 14:
            anchor, left = "start", at
        elif at > WIDTH - _RIGHT - 14:
            anchor, left = "end", at - wide
        parts.append(_line(at, y.start, at, y.start + 4, FAINT))
        if left > taken + 4:
            parts.append(_text(at, y.start + 17, text, anchor))
            taken = left + wide
    return [*parts, _text(4, y.start + 17, "UTC", faint=True)]


def time_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Where an axis from `low` to `high`, in nanoseconds, is marked, and how.

    At whole seconds, minutes, hours, days, months or years, at most eight; what does not change is told once.
    """
    step = next((step for step in _STEPS if (high - low) / step <= _MOST_TICKS), 0)
    if step:
        # Weeks begin on Mondays; the epoch was a Thursday.
        begin = 4 * _DAY if step >= 7 * _DAY else 0
        places = [begin + n * step for n in range(math.ceil((low - begin) / step), int((high - begin) // step) + 1)]
    else:
        places = _months(low, high)
    found, before = [], None
    for place in places:
        moment = pd.Timestamp(int(place))
        found.append((float(place), _tick(moment, step, before)))
        before = moment
    return found


def _tick(moment: Any, step: int, before: Any) -> str:
    day = f"{moment.day} {_MONTHS[moment.month - 1]}"
    if not step:
        new = before is None or before.year != moment.year
        return f"{moment.year}" if new and before is not None and moment.month == 1 else (
            f"{_MONTHS[moment.month - 1]} {moment.year}" if new else _MONTHS[moment.month - 1])  # fmt: skip
    if step >= _DAY:
        return f"{day} {moment.year}" if before is None or before.year != moment.year else day
    clock = f"{moment:%H:%M:%S}" if step < 60 * _SECOND else f"{moment:%H:%M}"
    if before is None or before.date() != moment.date():
        return day if before is not None and moment == moment.normalize() else f"{day} {clock}"
    return clock


def _months(low: float, high: float) -> list[int]:
    start, end = (pd.Timestamp(int(place)) for place in (low, high))
    months = (end.year - start.year) * 12 + end.month - start.month
    step = next((step for step in (1, 2, 3, 6) if months / step <= _MOST_TICKS), 0)
    step = step or 12 * max(1, math.ceil(months / 12 / _MOST_TICKS))
    first = start.year * 12 + start.month - 1
    found = []
    for month in range(-(-first // step) * step, end.year * 12 + end.month, step):
        place = pd.Timestamp(year=month // 12, month=month % 12 + 1, day=1).value
        if low <= place <= high:
            found.append(int(place))
    return found


def _moment(when: float) -> str:
    return f"{pd.Timestamp(int(when)):%Y-%m-%d %H:%M:%S} UTC"


# -- parts --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scale:
    """From what is drawn to where."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return float(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start))

    def inside(self, value: float) -> float:
        """The same, at the edge for what lies beyond it."""
        return self(min(self.high, max(self.low, value)))


def _scale(values: Any, start: float, end: float) -> _Scale:
    held = np.asarray(values, dtype=float)
    held = held[np.isfinite(held)]
    low, high = float(held.min()), float(held.max())
    if not high > low:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    return _Scale(low, high, start, end)


def _wide(x: _Scale, *, one: bool) -> _Scale:
    """The scale of time; around a single moment it is two hours long."""
    if not one:
        return x
    middle = (x.low + x.high) / 2
    return _Scale(middle - 3600 * _SECOND, middle + 3600 * _SECOND, x.start, x.end)


def _nice(y: _Scale) -> list[float]:
    """Three to six round numbers on a scale."""
    rough = (y.high - y.low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(n for n in (1, 2, 2.5, 5, 10) if n * power >= rough * 0.999)
    return [n * step for n in range(math.ceil(y.low / step - 1e-9), math.floor(y.high / step + 1e-9) + 1)]


def _drawing(title: str, parts: Sequence[str], height: float = HEIGHT) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img" '
        f'aria-label="{_told(_cut(title, 200))}" style="max-width:100%;height:auto;font:11px system-ui,sans-serif">'
        f"{_text(_LEFT, 14, _cut(title, 80), bold=True)}{''.join(parts)}</svg>"
    )


def _ticks(y: _Scale, values: Sequence[float], told: Callable[[float], str]) -> list[str]:
    marks = [_line(_LEFT, y(value), WIDTH - _RIGHT, y(value), GRID) for value in values]
    named = [_text(_LEFT - 8, y(value) + 4, _cut(told(value), 11), "end") for value in values]
    return [*marks, *named]


def _known(line: Line) -> str:
    return _cut(line.name, 24)


def _pair(names: tuple[str, str]) -> list[str]:
    return _legend([(_cut(name, 24), colour(name), False) for name in names])[0]


def _legend(names: Sequence[tuple[str, str, bool]]) -> tuple[list[str], int]:
    """The names with their colours, in as many rows as they need, and how much lower the picture begins for that."""
    found, left, row = [], float(_LEFT), 0
    for name, shade, dashed in names:
        if not name:
            continue
        wide = 18 + len(name) * _SIZES[False] + 14
        if left > _LEFT and left + wide > WIDTH - _RIGHT:
            left, row = float(_LEFT), row + 1
        dash = 'stroke-width="3" stroke-dasharray="4 2"' if dashed else 'stroke-width="3"'
        found += [_line(left, 26 + 14 * row, left + 14, 26 + 14 * row, shade, more=dash),
                  _text(left + 18, 30 + 14 * row, name)]  # fmt: skip
        left += wide
    return found, 14 * row


def _line(x1: float, y1: float, x2: float, y2: float, shade: str, *, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{shade}"{more and " " + more}/>'


def _text(x: float, y: float, text: str, anchor: str = "start", *, bold: bool = False, faint: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    shade = NEUTRAL if faint else INK
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{shade}" text-anchor="{anchor}"{weight}>{_told(text)}</text>'


def _told(text: str) -> str:
    """A text without meaning to what reads markup; what cannot be printed is spelled out."""
    if not text.isprintable():
        text = "".join(char if char.isprintable() else f"u{ord(char):04x}" for char in text)
    return html.escape(text)


def _percent(value: float) -> str:
    return f"{short(100 * value)} %"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"

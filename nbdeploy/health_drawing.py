"""How the health of a deployment looks: one page of HTML and SVG that needs no kernel, and the same as text."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nbdeploy import plot
from nbdeploy.health_facts import HealthFacts
from nbdeploy.health_windows import told
from nbdeploy.panel_static import STATES, escaped, plain
from nbdeploy.routing import shares

MAX_PAGE = 58_000  # bytes
MAX_VERSIONS, MAX_REASONS, MAX_EVENTS, MAX_ALERTS = 6, 6, 12, 8
WIDE = 48  # characters of a line of blocks

_BLOCKS = "▁▂▃▄▅▆▇█"
_FONT = "var(--jp-ui-font-family,system-ui,sans-serif)"
_FAINT = "color:var(--jp-ui-font-color2,#808080)"
_BORDER = "1px solid var(--jp-border-color2,rgba(128,128,128,.3))"
_BAD, _GOOD = "var(--jp-error-color1,#d32f2f)", "var(--jp-success-color1,#388e3c)"
_CELL = f"text-align:left;white-space:nowrap;padding:2px 14px 2px 0;border-bottom:{_BORDER}"
_COLUMNS = ("version", "share", "requests", "errors", "refused", "p50", "p99")


def page(health: HealthFacts) -> str:
    """Everything at a glance, below 60 kB."""
    made = ""
    for versions, events in ((MAX_VERSIONS, MAX_EVENTS), (4, 6), (2, 2), (1, 0)):
        made = _page(health, versions, events)
        if len(made.encode()) <= MAX_PAGE:
            break
    return made


def text(health: HealthFacts) -> str:
    """The same for a terminal; what came with requests shows as what it is."""
    lines = [plain(_headline(health)), plain(health.sentence)]
    numbers = health.numbers
    unit, seconds = health.windows.unit
    rows: list[tuple[str, str, str, str]] = []
    for version in _versions(health, MAX_VERSIONS):
        rate = _by_window(health, version, "requests", per=seconds)
        rows.append((f"requests/{unit}", version, _blocks(rate), _range(rate)))
    for version in _versions(health, MAX_VERSIONS):
        slow = [1000 * value for value in _by_window(health, version, "p99")]
        rows.append(("p99 ms", version, _blocks(slow), _range(slow)))
    for reason, counts in _reasons(health, seconds):
        total = sum(found.get(reason, 0) for found in numbers["reasons"]) if len(numbers) else 0
        rows.append((f"errors/{unit}", reason, _blocks(counts), f"{total:,} in all"))
    for version, shown in _drift(health).items():
        rows.append(("drift %", version, _blocks([value for _, value in shown]), _range([value for _, value in shown])))
    rows += [(_metric(health), line.name, _blocks(_values(line)), _range(_values(line))) for line in _quality(health)]
    rows = [(plain(one), plain(two), three, four) for one, two, three, four in rows if three.strip()]
    wide = [max((len(row[place]) for row in rows), default=0) for place in (0, 1, 2)]
    lines += ["  " + "  ".join([*(row[i].ljust(wide[i]) for i in (0, 1, 2)), row[3]]).rstrip() for row in rows]
    lines.append(f"  log: {health.log.text}")
    lines += [f"  {plain(note)}" for note in _notes(health)]
    return "\n".join(lines)


def _page(health: HealthFacts, versions: int, events: int) -> str:
    marks = list(health.events[-events:]) if events else []
    pictures = [
        _traffic(health, versions, marks), _latency(health, versions, marks), _errors(health, marks),
        _drifting(health, marks), _quality_picture(health, marks),
    ]  # fmt: skip
    numbers = f'{_table(health, versions)}<div style="margin:4px 0"><b>Log</b> {escaped(health.log.text)}</div>'
    cells = "".join(
        f'<div style="min-width:0;padding:6px 8px;border:{_BORDER};border-radius:4px;overflow-x:auto">{each}</div>'
        for each in (*pictures, numbers)
        if each
    )
    state = health.state
    tone = _GOOD if state == "live" else _BAD
    return (
        f'<div class="nbdeploy-watch" style="font:13px/1.5 {_FONT};color:var(--jp-ui-font-color1,inherit)">'
        f'<div><b style="font-size:16px">{escaped(health.name)}</b> &nbsp;{escaped(_served(health))}&nbsp; '
        f'<span style="color:{tone}">{STATES.get(state, "○")} {escaped(state)}</span> '
        f'<span style="{_FAINT}">{escaped(_since(health))}</span></div>'
        f"{_said(health)}"
        f'<div style="display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,350px),1fr));gap:8px;margin:8px 0;align-items:start">'
        f"{cells}</div>" + "".join(f'<div style="{_FAINT}">{escaped(note)}</div>' for note in _notes(health)) + "</div>"
    )


# -- words --------------------------------------------------------------------------------------------------


def _headline(health: HealthFacts) -> str:
    return f"{health.name}  {_served(health)}  {STATES.get(health.state, '○')} {health.state} {_since(health)}".rstrip()


def _served(health: HealthFacts) -> str:
    told_shares = shares(health.shares) if len(health.shares) > 1 else health.version
    return ", ".join([told_shares or "nothing is live", *(f"shadow {version}" for version in health.shadow)])


def _since(health: HealthFacts) -> str:
    return f"since {health.since:%Y-%m-%d %H:%M} UTC" if health.since is not None else ""


def _said(health: HealthFacts) -> str:
    problems = health.problems
    if len(problems) < 2:
        tone = _BAD if problems or health.state == "stopped" else _GOOD
        return f'<div style="margin:4px 0;font-weight:600;color:{tone}">{escaped(health.sentence)}</div>'
    items = "".join(f"<li>{escaped(each.text[0].upper() + each.text[1:])}</li>" for each in problems)
    return f'<ul style="margin:4px 0;padding-left:20px;font-weight:600;color:{_BAD}">{items}</ul>'


def _notes(health: HealthFacts) -> list[str]:
    every = told(health.windows.step)
    notes = [f"{health.start:%Y-%m-%d %H:%M} to {health.end:%Y-%m-%d %H:%M} UTC, a point each {every}."]
    notes += [f"Fires since {each.since}: {each.rule} ({each.said})" for each in health.alerts[:MAX_ALERTS]]
    if (more := len(health.alerts) - MAX_ALERTS) > 0:
        notes.append(f"and {more} more alerts: nbdeploy alerts {health.name}")
    return [*notes, *health.notes]


def _range(values: Sequence[float]) -> str:
    held = [value for value in values if math.isfinite(value)]
    return f"{plot.short(held[-1])} at last, {plot.short(max(held))} at most" if held else "nothing"


def _blocks(values: Sequence[float]) -> str:
    """A line of blocks, one for each value or few of them; a blank where there is none."""
    held = np.array(values, dtype=float)
    if len(held) > WIDE:
        parts = [part[np.isfinite(part)] for part in np.array_split(held, WIDE)]
        held = np.array([part.max() if len(part) else np.nan for part in parts])
    finite = held[np.isfinite(held)]
    top = float(finite.max()) if len(finite) else 0.0
    places = [-1 if not math.isfinite(value) else 0 if top <= 0 or value <= 0
              else math.ceil(value / top * len(_BLOCKS)) - 1 for value in held]  # fmt: skip
    return "".join(_BLOCKS[min(place, len(_BLOCKS) - 1)] if place >= 0 else " " for place in places)


def _table(health: HealthFacts, versions: int) -> str:
    chosen = _versions(health, versions)
    if not chosen:
        return ""
    rows = []
    for version in chosen:
        counted = health.totals.get(version)
        share = f"{health.shares[version]:g} %" if version in health.shares else ""
        cells = [version, share]
        cells += ["0", "", "", "", ""] if counted is None else [
            f"{counted.requests:,}", _part(counted.errors, counted.requests), _part(counted.refused, counted.requests),
            _milliseconds(counted.quantile(0.5)), _milliseconds(counted.quantile(0.99)),
        ]  # fmt: skip
        rows.append(cells)
    head = "".join(f'<th style="{_CELL}">{name}</th>' for name in _COLUMNS)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{escaped(cell)}</td>' for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<table style="border-collapse:collapse;margin:4px 0;font:inherit;color:inherit"><tr>{head}</tr>{body}</table>'
    )


def _part(count: int, whole: int) -> str:
    return f"{count:,} ({count / whole:.1%})" if count and whole else f"{count:,}"


def _milliseconds(seconds: float) -> str:
    return f"{plot.short(1000 * seconds)} ms" if math.isfinite(seconds) else ""


# -- pictures -----------------------------------------------------------------------------------------------

Marks = Sequence[tuple[Any, str]]


def _traffic(health: HealthFacts, versions: int, marks: Marks) -> str:
    unit, seconds = health.windows.unit
    lines = [
        plot.Line(version, _times(health), _by_window(health, version, "requests", per=seconds), version=version)
        for version in _versions(health, versions)
    ]
    return _picture(health, lines, f"Requests per {unit}", marks)


def _latency(health: HealthFacts, versions: int, marks: Marks) -> str:
    lines = []
    for version in _versions(health, versions):
        for key, dashed in (("p99", False), ("p50", True)):
            values = [1000 * value for value in _by_window(health, version, key)]
            lines.append(plot.Line(f"{version} {key}", _times(health), values, version=version, dashed=dashed))
    return _picture(health, lines, "Time to answer", marks, unit="ms")


def _errors(health: HealthFacts, marks: Marks) -> str:
    unit, seconds = health.windows.unit
    found = _reasons(health, seconds)
    if not found:
        return _without("Errors by reason", "No errors, and nothing was refused.")
    # The colours of versions mean versions, so those that no version here has come first.
    taken = {plot.colour(version) for version in _versions(health, MAX_VERSIONS)}
    colours = sorted(
        (f"v{number}" for number in range(1, MAX_REASONS + 1)), key=lambda each: plot.colour(each) in taken
    )
    lines = [
        plot.Line(reason, _times(health), values, version=colours[number])
        for number, (reason, values) in enumerate(found)
    ]
    return _picture(health, lines, f"Errors and refusals by reason, per {unit}", marks)


def _drifting(health: HealthFacts, marks: Marks) -> str:
    title = f"Columns that drift; all of it does from {health.drift_limit:.0%} on"
    trend = health.trend
    if trend is None:
        return ""
    lines = [
        plot.Line(version, [when for when, _ in shown], [value for _, value in shown], version=version)
        for version, shown in _drift(health).items()
    ]
    waiting = trend.missing
    if any(map(_says, lines)):
        limit = 100 * health.drift_limit
        drawn = _picture(health, lines, title, marks, unit="%", limit=limit)
        note = f"{waiting} of {len(trend.known)} windows are not measured yet." if waiting else ""
        return drawn + (f'<div style="{_FAINT}">{escaped(note)}</div>' if note else "")
    if trend.trouble:
        return _without(title, f"Not measured: {trend.trouble}")
    if waiting:
        return _without(title, f"{waiting} of {len(trend.known)} windows are not measured yet.")
    return _without(title, "Too few rows were asked in any window for a verdict.")


def _quality_picture(health: HealthFacts, marks: Marks) -> str:
    title = f"Quality: {_metric(health)}" if health.quality is not None else "Quality"
    lines = _quality(health)
    if not lines:
        return _without(title, health.quality_note)
    gate = health.quality.gate.get(health.version)
    times = 100 if health.quality.points else 1
    limit = None if gate is None else times * float(gate)
    unit = "%" if health.quality.points else ""
    return _picture(health, lines, title, marks, unit=unit, limit=limit, limit_name="in the gate", from_zero=False)


def _picture(
    health: HealthFacts, lines: Sequence[plot.Line], title: str, marks: Marks, *, unit: str = "",
    limit: float | None = None, limit_name: str = "", from_zero: bool = True,
) -> str:  # fmt: skip
    if not any(map(_says, lines)):
        return _without(title, "Nothing yet.")
    drawn = plot.over_time(
        lines,
        title,
        unit=unit,
        limit=limit,
        limit_name=limit_name,
        events=marks,
        span=(health.start, health.end),
        from_zero=from_zero,
    )
    return drawn.replace("<svg ", '<svg preserveAspectRatio="xMinYMin" ', 1)


def _values(line: plot.Line) -> list[float]:
    return [float(value) for value in line.values]  # noqa: PD011 - it is no frame


def _says(line: plot.Line) -> bool:
    return any(map(math.isfinite, _values(line)))


def _without(title: str, why: str) -> str:
    return f'<div><b>{html.escape(title)}</b></div><div style="{_FAINT}">{escaped(why)}</div>'


# -- numbers ------------------------------------------------------------------------------------------------


def _versions(health: HealthFacts, at_most: int) -> list[str]:
    """The versions to show: those in traffic, then those that were asked most, by their number."""
    asked = sorted(health.totals, key=lambda version: -health.totals[version].requests)
    chosen = list(dict.fromkeys([*health.shares, *asked]))[:at_most]
    return sorted(chosen, key=lambda version: (len(version), version))


def _times(health: HealthFacts) -> list[pd.Timestamp]:
    return [pd.Timestamp((start + end) / 2, unit="s", tz="UTC") for start, end in health.windows.spans]


def _by_window(health: HealthFacts, version: str, key: str, per: float = 0.0) -> list[float]:
    """One number for each window; NaN where the version was not there. With `per`, for so many seconds."""
    mine = health.numbers[health.numbers["version"] == version]
    values = mine[key] / mine["seconds"] * per if per else mine[key]
    found = dict(zip(mine["start"].to_list(), values.astype(float).to_list(), strict=True))
    return [found.get(pd.Timestamp(start, unit="s", tz="UTC"), math.nan) for start, _ in health.windows.spans]


def _reasons(health: HealthFacts, per: float) -> list[tuple[str, list[float]]]:
    """How often each reason came in each window, the commonest first."""
    totals: dict[str, int] = {}
    by_start: dict[Any, dict[str, float]] = {}
    there: set[Any] = set()
    for row in health.numbers.to_dict("records"):
        there.add(row["start"])
        for reason, count in row["reasons"].items():
            totals[reason] = totals.get(reason, 0) + count
            held = by_start.setdefault(row["start"], {})
            held[reason] = held.get(reason, 0.0) + count / row["seconds"] * per
    chosen = sorted(totals, key=lambda reason: -totals[reason])[:MAX_REASONS]
    starts = [pd.Timestamp(start, unit="s", tz="UTC") for start, _ in health.windows.spans]
    return [
        (reason, [by_start.get(start, {}).get(reason, 0.0) if start in there else math.nan for start in starts])
        for reason in chosen
    ]


def _drift(health: HealthFacts) -> Mapping[str, list[tuple[pd.Timestamp, float]]]:
    """By version, the percent of drifted columns of each of its windows; NaN where another was live."""
    known = health.trend.known if health.trend is not None else []
    found: dict[str, list[tuple[pd.Timestamp, float]]] = {}
    for version in dict.fromkeys(each.version for each in known if each.version):
        found[version] = [
            (pd.Timestamp((each.start + each.end) / 2, unit="s", tz="UTC"),
             100 * each.share if each.version == version and each.measured else math.nan)
            for each in known
        ]  # fmt: skip
    return found


def _metric(health: HealthFacts) -> str:
    return plain(str(getattr(health.quality, "metric", "") or "quality"))


def _quality(health: HealthFacts) -> list[plot.Line]:
    windows = getattr(health.quality, "windows", None)
    if windows is None or not len(windows):
        return []
    times = 100 if health.quality.points else 1
    lines = []
    for (version, estimated), mine in windows.groupby(["version", "estimated"], sort=True):
        # Its windows begin where the clock's do, so the first and the last may reach beyond the page.
        middle = (mine["start"] + (mine["end"] - mine["start"]) / 2).clip(health.start, health.end)
        name = f"{version}, estimated" if estimated else str(version)
        value, low, high = (list(times * mine[key]) for key in ("value", "low", "high"))
        lines.append(plot.Line(name, list(middle), value, low, high, version=str(version), dashed=bool(estimated)))
    return lines

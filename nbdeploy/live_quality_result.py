"""The noun: how good answers were over time, and how it reads in a notebook, a terminal and JSON."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pandas as pd

from nbdeploy.drift_columns import shortened, visible
from nbdeploy.plot import short

COLUMNS = ("start", "end", "version", "metric", "value", "low", "high", "labelled", "rows", "estimated")
SHOWN = 14  # of the windows, the newest

_HEAD = ("window", "version", "value", "95 % sure", "labelled", "of rows", "")
_STYLE = """<style>
.nbdeploy-quality{font-size:13px;color:var(--jp-content-font-color1,inherit);overflow-x:auto}
.nbdeploy-quality p{margin:6px 0;max-width:56em}
.nbdeploy-quality table{font-size:inherit;border-collapse:collapse;margin:6px 0}
.nbdeploy-quality th,.nbdeploy-quality td{text-align:right!important;padding:4px 10px 4px 8px;white-space:nowrap;
border-bottom:1px solid var(--jp-border-color2,rgba(128,128,128,.35));font-variant-numeric:tabular-nums}
.nbdeploy-quality th:first-child,.nbdeploy-quality td:first-child{text-align:left!important}
</style>"""


@dataclass(frozen=True, eq=False)
class Quality:
    """How good the answers of a deployment were over time, by what turned out to be true.

    Attributes
    ----------
    deployment : str
    metric : str
        In which it is measured.
    every : str
        How long a window is.
    since : str
        From when on, ISO 8601 in UTC; '' for all that the log holds.
    sentence : str
        What there is to say, in one sentence.
    windows : DataFrame
        A row for each window and version that was asked in it, in the order of time: ``start`` and ``end`` (UTC, by the
        time of the prediction), ``version``, ``metric``, its ``value`` with the ends of its interval for 95 %, ``low``
        and ``high``, on how many ``labelled`` rows of how many ``rows``, and whether it is only ``estimated``. NaN where
        nothing can be said.
    gate : dict
        What its gate has measured of each version in this metric, as far as it has.
    version : str
        What the sentence is about.
    plot : str
        The picture, SVG.
    """

    deployment: str
    metric: str
    every: str
    since: str
    sentence: str
    windows: pd.DataFrame
    gate: Mapping[str, float]
    version: str
    created: datetime
    points: bool = field(default=False, repr=False)  # whether values read as percents
    plot: str = field(default="", repr=False)  # every text in it is escaped

    @property
    def estimated(self) -> bool:
        """Whether some of it is only estimated, for want of labels."""
        return bool(self.windows["estimated"].any())

    def to_dict(self) -> dict[str, Any]:
        """Everything but the picture, as JSON types; null where a number is none."""
        told = self.windows.assign(
            **{end: self.windows[end].map(lambda when: when.isoformat()) for end in ("start", "end")}
        )
        windows: list[dict[str, Any]] = json.loads(told.to_json(orient="records"))
        return {
            "deployment": self.deployment,
            "metric": self.metric,
            "every": self.every,
            "since": self.since,
            "version": self.version,
            "sentence": self.sentence,
            "estimated": self.estimated,
            "gate": dict(self.gate),
            "windows": windows,
            "created": self.created.isoformat(),
        }

    def __repr__(self) -> str:
        cells = [_HEAD, *self._cells(SHOWN)]
        widths = [max(len(cell[i]) for cell in cells) for i in range(len(_HEAD))]
        lines = [visible(self.sentence)]
        for first, *others in cells:
            told = "  ".join(cell.rjust(width) for cell, width in zip(others[:-1], widths[1:], strict=False))
            lines.append(f"  {first:<{widths[0]}}  {told}  {others[-1]}".rstrip())
        if len(self.windows) > SHOWN:
            lines.append(f"  All {len(self.windows):,} rows: .windows")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(_row("td", cells) for cells in self._cells(SHOWN))
        more = f"<p>All {len(self.windows):,} rows: .windows</p>" if len(self.windows) > SHOWN else ""
        return (
            f'{_STYLE}<div class="nbdeploy-quality"><p><b>{html.escape(visible(self.sentence))}</b></p>'
            f"{self.plot}<table>{_row('th', _HEAD)}{rows}</table>{more}</div>"
        )

    def _cells(self, most: int) -> list[tuple[str, ...]]:
        found: list[tuple[str, ...]] = []
        for row in self.windows.tail(most).itertuples(index=False):
            between = "" if math.isnan(row.low + row.high) else f"{self.told(row.low)} to {self.told(row.high)}"
            found.append((
                window_words(row.start, row.end), shortened(visible(row.version), 20), self.told(row.value), between,
                f"{row.labelled:,}", f"{row.rows:,}", "estimated" if row.estimated else "",
            ))  # fmt: skip
        return found

    def told(self, value: float) -> str:
        """A value of the metric in words; '' for none."""
        return number_words(value, points=self.points)


def number_words(value: float, *, points: bool) -> str:
    """A value of a metric in words: a percentage, where it is a share; '' for none."""
    if math.isnan(value):
        return ""
    return f"{100 * value:.1f} %" if points else short(value)


def window_words(start: pd.Timestamp, end: pd.Timestamp) -> str:
    """A window, as short as it is clear: ``2026-07-14``, or with the hours."""
    if start == start.normalize() and end - start == pd.Timedelta(days=1):
        return f"{start:%Y-%m-%d}"
    if start == start.normalize() and end == end.normalize():
        return f"{start:%Y-%m-%d} to {end - pd.Timedelta(days=1):%m-%d}"
    precise = "%H:%M" if start.second == end.second == 0 else "%H:%M:%S"
    return f"{start:%Y-%m-%d} {start:{precise}} to {end:{precise}}"


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

"""The noun: what came of comparing two versions, and how it reads in a notebook, a terminal and JSON."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pandas as pd

from nbdeploy.drift_columns import shortened, visible
from nbdeploy.plot import short

if TYPE_CHECKING:
    from nbdeploy.release_statistics import Difference

COLUMNS = ("difference", "low", "high", "how")  # of the table, after those of the two versions
SHOWN_ROWS = 10
SHOWN_COLUMNS = 12
_LONGEST = 60

# Colours are JupyterLab's, so that they follow its theme.
_STYLE = """<style>
.nbdeploy-comparison{font-size:13px;color:var(--jp-content-font-color1,inherit);overflow-x:auto}
.nbdeploy-comparison p{margin:6px 0;max-width:56em}
.nbdeploy-comparison table{font-size:inherit;border-collapse:collapse;margin:6px 0}
.nbdeploy-comparison th,.nbdeploy-comparison td{text-align:right!important;padding:4px 10px 4px 8px;white-space:nowrap;
border-bottom:1px solid var(--jp-border-color2,rgba(128,128,128,.35));font-variant-numeric:tabular-nums}
.nbdeploy-comparison th:first-child,.nbdeploy-comparison td:first-child,.nbdeploy-comparison .how{
text-align:left!important}
.nbdeploy-comparison .how{white-space:normal;min-width:15em}
.nbdeploy-comparison .better{color:var(--jp-success-color1,#388e3c)}
.nbdeploy-comparison .worse{color:var(--jp-error-color1,#d32f2f)}
</style>"""


@dataclass(frozen=True, eq=False)
class Comparison:
    """What came of comparing a version that gets traffic, or only listens, with the live one.

    Attributes
    ----------
    deployment, live, candidate : str
        What was compared: `candidate` with `live`, two versions.
    kind : str
        ``canary``: each answered rows of its own. ``shadow``: the candidate answered rows that live answered too.
    since : str
        From when on, ISO 8601 in UTC; '' for all that the log holds.
    verdict : str
        ``better``, ``worse`` or ``undecided``, of the candidate. It may be looked at as often as one likes.
    sentence : str
        What there is to say, in one sentence.
    table : DataFrame
        Indexed by measure: its value for either version, their ``difference`` (candidate minus live) with the ends of
        its interval, and ``how`` these were found.
    rows : DataFrame
        Of a shadow the rows whose answers differ most: the inputs, an answer of each version, the prediction id.
    difference : Difference or None
        In the metric, where there are labels enough.
    created : datetime
        When, in UTC.
    """

    deployment: str
    live: str
    candidate: str
    kind: str
    since: str
    verdict: str
    sentence: str
    table: pd.DataFrame
    rows: pd.DataFrame
    difference: Difference | None
    created: datetime
    plot: str = field(default="", repr=False)  # SVG, in which every text is escaped

    def to_dict(self) -> dict[str, Any]:
        """Everything but the picture, as JSON types; null where a number is none."""
        return {
            "deployment": self.deployment,
            "live": self.live,
            "candidate": self.candidate,
            "kind": self.kind,
            "since": self.since,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "table": _records(self.table.reset_index()),
            "rows": _records(self.rows),
            "difference": asdict(self.difference) if self.difference is not None else None,
            "created": self.created.isoformat(),
        }

    def __repr__(self) -> str:
        cells = [("", *self.table.columns[:2], *COLUMNS), *self._cells()]
        widths = [max(len(cell[i]) for cell in cells) for i in range(6)]
        lines = [visible(self.sentence)]
        for measure, *values, how in cells:
            told = "  ".join(map(str.rjust, values, widths[1:]))
            lines.append(f"  {measure:<{widths[0]}}  {told}  {how}".rstrip())
        if len(self.rows):
            lines.append(f"  The {len(self.rows)} rows that differ most: .rows")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = ("", *self.table.columns[:2], *COLUMNS)
        title = f"{self.deployment}: {self.candidate} against {self.live}{f' since {self.since}' if self.since else ''}"
        parts = [f"<p>{html.escape(visible(title))}</p>",
                 f'<p class="{html.escape(self.verdict)}"><b>{html.escape(visible(self.sentence))}</b></p>',
                 self.plot, _table(head, self._cells())]  # fmt: skip
        if len(self.rows):
            shown = self.rows.iloc[:SHOWN_ROWS, -SHOWN_COLUMNS:]
            told = [tuple(_cell(value) for value in row) for row in shown.itertuples(index=False, name=None)]
            parts += ["<p>The rows that differ most</p>", _table([_cell(str(label)) for label in shown.columns], told)]
            if len(shown) < len(self.rows) or shown.shape[1] < self.rows.shape[1]:
                parts.append("<p>All of them: .rows</p>")
        return f'{_STYLE}<div class="nbdeploy-comparison">{"".join(parts)}</div>'

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (visible(str(measure)), *("" if math.isnan(value) else short(value) for value in values[:5]), visible(values[5]))
            for measure, *values in self.table.itertuples(name=None)
        ]  # fmt: skip


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    last = len(head) - 1 if head[-1] == COLUMNS[-1] else -1

    def line(tag: str, cells: Sequence[str]) -> str:
        told = (f"<{tag}{' class=how' * (i == last)}>{html.escape(cell)}</{tag}>" for i, cell in enumerate(cells))
        return f"<tr>{''.join(told)}</tr>"

    return f"<table>{line('th', head)}{''.join(line('td', row) for row in rows)}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else short(value)
    return shortened(visible(str(value)), _LONGEST)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", date_format="iso", default_handler=str))
    return found

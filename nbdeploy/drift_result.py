"""The noun: what came of a drift measurement, and how it reads in a notebook, a terminal and JSON."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from nbdeploy import report_view
from nbdeploy.drift_columns import shortened, visible

MIN_ROWS = 30  # below it, on either side, a column gets no verdict

_SHOWN = 30  # columns in the inline table


@dataclass(frozen=True, eq=False)
class DriftReport:
    """What came of comparing a window of the log with the training data.

    Attributes
    ----------
    deployment, version, since : str
        What was compared.
    rows_reference, rows_current : int
        Rows on each side, before sampling.
    sampled : bool
        Whether a side was larger than what was compared. Categories are counted on all rows all the same,
        and so is a number whose sampled distance is near its threshold.
    drifted : bool
        Whether the data set drifts: at least `drift_share` of the judged columns do.
    share, drift_share : float
        The share of judged columns that drift, and the share from which the data set does.
    columns : DataFrame
        Indexed by column, most drifted first: ``drifted`` (True, False, or None for no verdict), ``method``
        (or why there is no verdict), ``score``, ``threshold``.
    html_path : Path or None
        Evidently's whole report.
    created : datetime
        When, in UTC.
    """

    deployment: str
    version: str
    since: str
    rows_reference: int
    rows_current: int
    sampled: bool
    drifted: bool
    share: float
    drift_share: float
    columns: pd.DataFrame
    html_path: Path | None
    created: datetime
    page: bytes = field(default=b"", repr=False)  # what the live view shows, compressed, without the bundle
    bundle: report_view.Bundle | None = field(default=None, repr=False)

    @property
    def verdict(self) -> str:
        """One of ``"drift"``, ``"no drift"`` and ``"no verdict"``."""
        if self.columns["drifted"].isna().all():
            return "no verdict"
        return "drift" if self.drifted else "no drift"

    @property
    def summary(self) -> str:
        """One line of plain text."""
        judged = self.columns["drifted"].dropna()
        window = f" since {self.since}" if self.since else ""
        if len(judged):
            overall = f"{self.verdict} overall, {int(judged.sum())} of {len(judged)} columns drifted"
            found = f"{overall} (it takes {self.drift_share:.0%})"
        else:
            found = "no verdict, no column can be judged"
        return (
            f"{self.deployment} {self.version}{window}: {found}; "
            f"{self.rows_current:,} rows asked, {self.rows_reference:,} learned from"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the page, as JSON types."""
        return {
            "deployment": self.deployment,
            "version": self.version,
            "since": self.since,
            "rows_reference": self.rows_reference,
            "rows_current": self.rows_current,
            "sampled": self.sampled,
            "drifted": self.drifted,
            "verdict": self.verdict,
            "share": self.share,
            "drift_share": self.drift_share,
            "columns": [
                {
                    "column": str(name),
                    "drifted": None if pd.isna(drifted) else bool(drifted),
                    "method": method,
                    "score": None if math.isnan(score) else float(score),
                    "threshold": None if math.isnan(threshold) else float(threshold),
                }
                for name, drifted, method, score, threshold in self.columns.itertuples(name=None)
            ],
            "html_path": str(self.html_path) if self.html_path else None,
            "created": self.created.isoformat(),
        }

    def __repr__(self) -> str:
        cells = self._cells()
        width = max((len(cell[0]) for cell in cells), default=0)
        lines = [visible(self.summary)]
        lines += [f"  {name:<{width}}  {word:<10}  {score:>8}  {method}" for name, word, method, score, _ in cells]
        if hidden := len(self.columns) - len(cells):
            lines.append(f"  and {hidden} more in .columns")
        if self.html_path:
            lines.append(f"  Full report: {visible(str(self.html_path))}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        hidden = len(self.columns) - len(cells := self._cells())
        return report_view.verdict_table(
            visible(self.summary),
            ("Column", "Verdict", "Method", "Score", "Threshold"),
            cells,
            more=f"and {hidden} more in .columns" if hidden else "",
            link=self.html_path,
        )

    def _ipython_display_(self) -> None:
        static = {"text/html": self._repr_html_(), "text/plain": repr(self)}
        report_view.show(static, self.page, self.bundle, title=f"Drift of {self.deployment} {self.version}")

    def _cells(self) -> list[tuple[str, str, str, str, str]]:
        words = {True: "drift", False: "no drift"}
        return [
            (
                shortened(visible(str(name)), 60),
                words.get(drifted, "no verdict"),
                shortened(visible(method), 120),
                _number(score),
                _number(threshold),
            )
            for name, drifted, method, score, threshold in self.columns.head(_SHOWN).itertuples(name=None)
        ]


@dataclass(frozen=True)
class Verdict:
    """What is said of one column; ``drifted`` is None when nothing is, and ``method`` then says why."""

    drifted: bool | None
    method: str
    score: float = math.nan
    threshold: float = math.nan

    @property
    def excess(self) -> float:
        """How far past its threshold: above 1 drifts, for distances and p-values alike."""
        if self.drifted is None or math.isnan(self.score):
            return -1.0
        if is_p_value(self.method):
            return self.threshold / max(self.score, 1e-12)
        return self.score / self.threshold


def verdict_frame(verdicts: Mapping[Hashable, Verdict]) -> pd.DataFrame:
    """The frame that `DriftReport.columns` is: most drifted first, those without a verdict last."""
    ranked = sorted(verdicts.items(), key=lambda item: (item[1].drifted is None, not item[1].drifted, -item[1].excess))
    rows = [verdict for _, verdict in ranked]
    return pd.DataFrame(
        {
            "drifted": [verdict.drifted for verdict in rows],
            "method": [verdict.method for verdict in rows],
            "score": [verdict.score for verdict in rows],
            "threshold": [verdict.threshold for verdict in rows],
        },
        index=pd.Index([column for column, _ in ranked], name="column", tupleize_cols=False),
    )


def is_p_value(method: str) -> bool:
    """Whether a method's score drifts when it is small."""
    return method.endswith("p_value")


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4g}"

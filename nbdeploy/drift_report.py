"""What a deployment was asked, against what its model learned from: a verdict per column, by Evidently."""

from __future__ import annotations

import html
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from nbdeploy import home, report_view
from nbdeploy.errors import DriftError

MIN_ROWS = 30  # below it, on either side, a column gets no verdict
DRIFT_SHARE = 0.5  # Evidently's own default: a data set drifts when half of its columns do

_log = logging.getLogger(__name__)
_SHOWN = 30  # columns in the inline table
_SURE = 1000  # rows from which the log alone says what kind a column is


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
    page: bytes = field(default=b"", repr=False)  # what the live view shows, compressed

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
        found = (
            f"{int(judged.sum())} of {len(judged)} columns drifted"
            if len(judged)
            else f"no column has the {MIN_ROWS} rows on each side that a verdict needs"
        )
        return (
            f"{self.deployment} {self.version}{window}: {self.verdict}, {found} "
            f"({self.rows_current:,} rows asked, {self.rows_reference:,} learned from)"
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
        lines = [_visible(self.summary)]
        rows = self._rows()
        width = max((len(row[0]) for row in rows), default=0)
        lines += [f"  {name:<{width}}  {verdict:<10}  {score:>8}  {method}" for name, verdict, score, _, method in rows]
        if hidden := len(self.columns) - len(rows):
            lines.append(f"  and {hidden} more in .columns")
        return "\n".join([*lines, f"Full report: {_visible(str(self.html_path))}"] if self.html_path else lines)

    def _repr_html_(self) -> str:
        return _summary_html(self)

    def _ipython_display_(self) -> None:
        static = {"text/html": report_view.HIDE_DEAD_WIDGET + _summary_html(self), "text/plain": repr(self)}
        report_view.show(static, self.page, _bundle, title=f"Drift of {self.deployment} {self.version}")

    def _rows(self) -> list[tuple[str, str, str, str, str]]:
        words = {True: "drift", False: "no drift"}
        return [
            (
                _shortened(_visible(str(name)), 60),
                words.get(drifted, "no verdict"),
                _number(score),
                _number(threshold),
                _shortened(_visible(method), 120),
            )
            for name, drifted, method, score, threshold in self.columns.head(_SHOWN).itertuples(name=None)
        ]


def measure(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    *,
    name: str,
    version: str,
    since: str = "",
    html_path: Path | None = None,
    max_rows: int = 50_000,
    seed: int = 0,
) -> DriftReport:
    """Compare every column of `current` with the same column of `reference`.

    Methods and thresholds are Evidently's defaults for the whole frames, whatever is sampled. A column
    that cannot be compared gets no verdict, and ``method`` says why; so does one with fewer than
    `MIN_ROWS` values on either side.

    Parameters
    ----------
    reference, current : DataFrame
        What the model learned from, and what it was asked. Predictions may be a column like any other.
    name, version, since : str
        What the report says it is about.
    html_path : Path, optional
        Where to write Evidently's whole report.
    max_rows : int
        Rows of each side to compare; more are sampled.
    seed : int
        Of the sample: the same seed, the same rows.

    Returns
    -------
    DriftReport

    Raises
    ------
    DriftError
        A side is empty, there is no common column, or the report cannot be written.
    """
    reference, current = (side.loc[:, ~side.columns.duplicated()] for side in (reference, current))
    _check(reference, current, name, version, since)
    picks = tuple(_sample(len(side), max_rows, seed + i) for i, side in enumerate((reference, current)))
    verdicts: dict[Any, _Verdict] = {}
    pairs: dict[str, _Pair] = {}
    with _quiet():
        for column in [*reference.columns, *(c for c in current.columns if c not in reference.columns)]:
            try:
                pair = _pair(reference, current, column, picks)
            except Exception as error:  # noqa: BLE001 - one odd column must not cost the others their verdict
                pair = f"not compared: {type(error).__name__} while reading it"
            if isinstance(pair, str):
                verdicts[column] = _Verdict(None, pair)
            else:
                pairs[_unique(_inert(str(column)), pairs)] = pair
        page, found = _evaluate(pairs) if pairs else ("", {})
    for label, pair in pairs.items():
        verdicts[pair.column] = found[label] if pair.rows >= MIN_ROWS else _Verdict(None, _too_few(pair.rows))
    columns = _table(verdicts)
    judged = columns["drifted"].dropna()
    share = float(judged.sum()) / len(judged) if len(judged) else 0.0
    report = DriftReport(
        deployment=name,
        version=version,
        since=since,
        rows_reference=len(reference),
        rows_current=len(current),
        sampled=max(len(reference), len(current)) > max_rows,
        drifted=bool(len(judged)) and share >= DRIFT_SHARE,
        share=share,
        drift_share=DRIFT_SHARE,
        columns=columns,
        html_path=html_path if page else None,
        created=datetime.now(timezone.utc),
    )
    return _with_page(report, page) if page else report


def warm() -> None:
    """Import Evidently, which takes seconds; meant for a background thread."""
    os.environ.setdefault("DO_NOT_TRACK", "1")  # Evidently's own switch for its telemetry
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import evidently.legacy.metrics
        import evidently.legacy.report  # noqa: F401

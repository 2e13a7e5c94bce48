"""The noun: what came of a drift measurement, and how it reads in a notebook, a terminal and JSON."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from nbdeploy import report_view
from nbdeploy.drift_columns import shortened, visible

MIN_ROWS = 30  # below it, on either side, a column gets no verdict

_SHOWN = 30  # columns in the inline table
_TOLD = 6  # sentences above it
_LONGEST = 240  # characters of one
_WORDS = {True: "drift", False: "no drift"}


@dataclass(frozen=True, eq=False)
class DriftReport:
    """What came of comparing a window of the log with the training data.

    Attributes
    ----------
    deployment, version, since, until : str
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
        (or why there is no verdict), ``score``, ``threshold``; ``effect``, how large the difference is, and
        ``effect_size``, which measure that is; ``error``, how far the score may be off as it is one of a sample (0 of
        all rows, NaN where it is not known). See docs/drift.md.
    html_path : Path or None
        Evidently's whole report; None where none was made.
    created : datetime
        When, in UTC.
    against : str
        What it was compared with: ``reference``, a version, or a window of the log.
    changes : tuple of str
        What changed, a sentence per column, what changed most first.
    groups : mapping of str to Group
        By value of the column `by`, the largest first.
    by : str
    compared : int
        Rows of a sampled side that were compared; 0 where nothing was sampled.
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
    against: str = "reference"
    changes: tuple[str, ...] = ()
    groups: Mapping[str, Group] = field(default_factory=dict)
    by: str = ""
    compared: int = 0
    until: str = ""
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
        window = "".join(f" {word} {at}" for word, at in (("since", self.since), ("until", self.until)) if at)
        if len(judged):
            overall = f"{self.verdict} overall, {int(judged.sum())} of {len(judged)} columns drifted"
            found = f"{overall} (it takes {self.drift_share:.0%})"
        else:
            found = "no verdict, no column can be judged"
        beside = "learned from" if self.against == "reference" else f"of {self.against}"
        return (
            f"{self.deployment} {self.version}{window}: {found}; "
            f"{self.rows_current:,} rows asked, {self.rows_reference:,} {beside}"
        )

    @property
    def sampling(self) -> str:
        """How far what was measured on a sample may be off, in words; empty where nothing was sampled."""
        if not self.compared:
            return ""
        # Dvoretzky, Kiefer and Wolfowitz, with Massart's constant.
        off = math.sqrt(math.log(2 / 0.05) / (2 * self.compared))
        return (
            f"Numbers were compared on {self.compared:,} rows of a side, drawn at random: any share of them is off by at "
            f"most {100 * off:.1f} points (95 % sure). Categories were counted on all rows."
        )

    def judged(self) -> DriftReport:
        """The same, with the verdict that follows from its columns."""
        share = share_of(self.columns)
        return replace(
            self, share=share, drifted=bool(self.columns["drifted"].notna().any()) and share >= self.drift_share
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the page, as JSON types."""
        return {
            "deployment": self.deployment,
            "version": self.version,
            "since": self.since,
            "until": self.until,
            "rows_reference": self.rows_reference,
            "rows_current": self.rows_current,
            "sampled": self.sampled,
            "drifted": self.drifted,
            "verdict": self.verdict,
            "share": self.share,
            "drift_share": self.drift_share,
            "against": self.against,
            "changes": list(self.changes),
            "sampling": self.sampling,
            "columns": _told(self.columns),
            "by": self.by,
            "groups": [group.to_dict() for group in self.groups.values()],
            "html_path": str(self.html_path) if self.html_path else None,
            "created": self.created.isoformat(),
        }

    def __repr__(self) -> str:
        cells = self._cells()
        width = max((len(cell[0]) for cell in cells), default=0)
        lines = [visible(self.summary), *(f"  {change}" for change in self._changes())]
        lines += [f"  {name:<{width}}  {word:<10}  {score:>8}  {method}" for name, word, method, score, *_ in cells]
        if hidden := len(self.columns) - len(cells):
            lines.append(f"  and {hidden} more in .columns")
        if self.groups:
            lines.append(f"By {visible(self.by)}:")
            groups = self._group_cells()
            width = max(len(cell[0]) for cell in groups)
            lines += [f"  {value:<{width}}  {word:<10}  {share:>8}  {most}" for value, word, most, share, _ in groups]
        if self.sampling:
            lines.append(f"  {self.sampling}")
        if self.html_path:
            lines.append(f"  Full report: {visible(str(self.html_path))}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        hidden = len(self.columns) - len(cells := self._cells())
        more = [f"and {hidden} more in .columns"] if hidden else []
        return report_view.verdict_table(
            visible(self.summary),
            ("Column", "Verdict", "Method", "Score", "Threshold", "Effect"),
            cells,
            notes=self._changes(),
            more=" ".join([*more, self.sampling]).strip(),
            below=(f"By {visible(self.by)}", ("Group", "Verdict", "What changed most", "Drifted", "Rows"),
                   self._group_cells()) if self.groups else None,
            link=self.html_path,
        )  # fmt: skip

    def _ipython_display_(self) -> None:
        static = {"text/html": self._repr_html_(), "text/plain": repr(self)}
        report_view.show(static, self.page, self.bundle, title=f"Drift of {self.deployment} {self.version}")

    def _changes(self) -> list[str]:
        told = [shortened(visible(change), _LONGEST) for change in self.changes[:_TOLD]]
        hidden = len(self.changes) - len(told)
        return [*told, f"and {hidden} more in .changes"] if hidden else told

    def _cells(self) -> list[tuple[str, ...]]:
        shown = self.columns.head(_SHOWN)
        return [
            (
                shortened(visible(str(name)), 60),
                _WORDS.get(drifted, "no verdict"),
                shortened(visible(method), 120),
                _number(score),
                _number(threshold),
                _number(effect),
            )
            for name, drifted, method, score, threshold, effect in zip(
                shown.index, *(shown[key] for key in ("drifted", "method", "score", "threshold", "effect")), strict=True
            )
        ]

    def _group_cells(self) -> list[tuple[str, ...]]:
        return [
            (
                shortened(visible(group.value), 60),
                group.verdict,
                shortened(visible(group.most), 160),
                f"{int(group.columns['drifted'].dropna().sum())} of {len(group.columns['drifted'].dropna())}",
                f"{group.rows_current:,}",
            )
            for group in self.groups.values()
        ]


@dataclass(frozen=True, eq=False)
class Group:
    """The verdicts of the rows that have one value in the column a report was grouped by.

    Attributes
    ----------
    value : str
    rows_reference, rows_current : int
        Of all rows; estimated from the sample where they were not counted.
    columns : DataFrame
        As `DriftReport.columns`.
    changes : tuple of str
    """

    value: str
    rows_reference: int
    rows_current: int
    columns: pd.DataFrame
    changes: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """The share of judged columns that drift."""
        return share_of(self.columns)

    @property
    def verdict(self) -> str:
        """One of ``"drift"``, ``"no drift"`` and ``"no verdict"``."""
        if self.columns["drifted"].isna().all():
            return "no verdict"
        return "drift" if self.share >= 0.5 else "no drift"

    @property
    def most(self) -> str:
        """What changed most, or why nothing can be said."""
        if self.changes:
            return self.changes[0]
        return str(self.columns["method"].iloc[0]) if self.verdict == "no verdict" and len(self.columns) else ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "rows_reference": self.rows_reference,
            "rows_current": self.rows_current,
            "verdict": self.verdict,
            "share": self.share,
            "changes": list(self.changes),
            "columns": _told(self.columns),
        }

    def __repr__(self) -> str:
        return f"Group({self.value}: {self.verdict}, {self.rows_current:,} rows asked)"


@dataclass(frozen=True)
class Verdict:
    """What is said of one column; ``drifted`` is None when nothing is, and ``method`` then says why."""

    drifted: bool | None
    method: str
    score: float = math.nan
    threshold: float = math.nan
    effect: float = math.nan
    effect_size: str = ""
    error: float = math.nan

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
            "effect": [verdict.effect for verdict in rows],
            "effect_size": [verdict.effect_size for verdict in rows],
            "error": [verdict.error for verdict in rows],
        },
        index=pd.Index([column for column, _ in ranked], name="column", tupleize_cols=False),
    )


def share_of(columns: pd.DataFrame) -> float:
    """The share of judged columns that drift."""
    judged = columns["drifted"].dropna()
    return float(judged.sum()) / len(judged) if len(judged) else 0.0


def is_p_value(method: str) -> bool:
    """Whether a method's score drifts when it is small."""
    return method.endswith("p_value")


def _told(columns: pd.DataFrame) -> list[dict[str, Any]]:
    """The verdicts as JSON types."""
    numbers = ("score", "threshold", "effect", "error")
    return [
        {
            "column": str(name),
            "drifted": None if pd.isna(row["drifted"]) else bool(row["drifted"]),
            "method": row["method"],
            **{key: None if math.isnan(row[key]) else float(row[key]) for key in numbers},
            "effect_size": row["effect_size"],
        }
        for name, row in zip(columns.index, columns.to_dict("records"), strict=True)
    ]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4g}"

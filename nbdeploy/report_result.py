"""The noun: what a report found in a window of the log, and how it reads in a notebook, a terminal and JSON."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from nbdeploy import report_view
from nbdeploy.drift_columns import shortened, visible

_SHOWN = 30  # rows of each table inline
_CELL = 60  # characters of a cell

TESTS = ("test", "column", "passed", "found", "expected")
METRICS = ("metric", "column", "value", "reference")


@dataclass(frozen=True, eq=False)
class WindowReport:
    """What Evidently found in a window of a deployment's log.

    Attributes
    ----------
    deployment, version, preset, since, until : str
        What it is about; `preset` is ``metrics`` where only metrics were asked for.
    rows_current, rows_reference : int
        Rows of the window (with labels, where the report needs them) and of the training sample, before sampling.
    sampled : bool
        Whether not all of them were looked at.
    columns : DataFrame
        What each column holds, see `nbdeploy.report_frames.Sides.facts`; indexed by column.
    metrics : DataFrame
        What Evidently measured: ``metric``, ``column``, ``value``, ``reference``.
    tests : DataFrame
        ``test``, ``column``, ``passed``, ``found``, ``expected``: those that failed first. Empty where none were made.
    left_out : mapping
        Why a column is not in the report.
    html_path : Path or None
        Evidently's whole report.
    workspace : Path or None
        The Evidently workspace that has it too.
    created : datetime
        When, in UTC.
    """

    deployment: str
    version: str
    preset: str
    since: str
    until: str
    rows_current: int
    rows_reference: int
    sampled: bool
    columns: pd.DataFrame
    metrics: pd.DataFrame
    tests: pd.DataFrame
    left_out: Mapping[str, str]
    html_path: Path | None
    workspace: Path | None
    created: datetime
    page: bytes = field(default=b"", repr=False)  # what the live view shows, compressed, without the bundle
    bundle: report_view.Bundle | None = field(default=None, repr=False)

    @property
    def passed(self) -> bool:
        """Whether no test failed. A report without tests passes."""
        return bool(self.tests["passed"].all())

    @property
    def title(self) -> str:
        return f"{self.preset.capitalize()} of {self.deployment} {self.version}"

    @property
    def summary(self) -> str:
        """One line of plain text."""
        window = (f" since {self.since}" if self.since else "") + (f" until {self.until}" if self.until else "")
        failed = int((~self.tests["passed"].astype(bool)).sum())
        found = f"{failed} of {len(self.tests)} tests failed" if failed else f"all {len(self.tests)} tests passed"
        tests = f"{found}; " if len(self.tests) else ""
        rows = f"{self.rows_current:,} rows asked"
        if self.rows_reference:
            rows += f", {self.rows_reference:,} learned from"
        sample = ", a sample of them looked at" if self.sampled else ""
        return f"{self.deployment} {self.version}{window}, {self.preset}: {tests}{rows}{sample}"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the page, as JSON types."""
        return {
            "deployment": self.deployment, "version": self.version, "preset": self.preset,
            "since": self.since, "until": self.until,
            "rows_current": self.rows_current, "rows_reference": self.rows_reference, "sampled": self.sampled,
            "passed": self.passed,
            "columns": _records(self.columns.reset_index()),
            "metrics": _records(self.metrics),
            "tests": _records(self.tests),
            "left_out": dict(self.left_out),
            "html_path": str(self.html_path) if self.html_path else None,
            "workspace": str(self.workspace) if self.workspace else None,
            "created": self.created.isoformat(),
        }  # fmt: skip

    def __repr__(self) -> str:
        lines = [visible(self.summary)]
        for head, cells, more in self._tables():
            widths = [max(len(row[place]) for row in [head, *cells]) for place in range(len(head))]
            lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in [head, *cells]]
            lines += [f"  {more}"] if more else []
        lines += [f"  {visible(line)}" for line in self._notes()]
        if self.html_path:
            lines.append(f"  Full report: {visible(str(self.html_path))}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        parts = [
            report_view.verdict_table(
                "" if place else visible(self.summary), head, cells, more=more, plain=head[1] != "Verdict"
            )
            for place, (head, cells, more) in enumerate(self._tables())
        ]
        parts = [parts[0], *(f'<div style="margin-top:12px">{part}</div>' for part in parts[1:])]
        parts += [f'<p class="nbdeploy-static">{html.escape(visible(line))}</p>' for line in self._notes()]
        if self.html_path:
            parts.append(f'<p class="nbdeploy-static">Full report: {report_view.link_to(self.html_path)}</p>')
        return "".join(parts)

    def _ipython_display_(self) -> None:
        static = {"text/html": self._repr_html_(), "text/plain": repr(self)}
        report_view.show(static, self.page, self.bundle, title=self.title)

    def _tables(self) -> list[tuple[tuple[str, ...], list[tuple[str, ...]], str]]:
        """Head, cells, and what is not shown, of each table that has rows; at least one."""
        made: list[tuple[tuple[str, ...], list[tuple[str, ...]], str]] = []
        rows: list[tuple[str, ...]]
        if len(self.tests):
            rows = [
                (_cell(test if not column else f"{column}: {test}"), "passed" if passed else "failed", _cell(found), _cell(expected))
                for test, column, passed, found, expected in self.tests.head(_SHOWN).itertuples(index=False)
            ]  # fmt: skip
            made.append((("Test", "Verdict", "Found", "Expected"), rows, _more(self.tests, "tests")))
        if len(self.metrics) and self.preset not in ("summary", "quality", "drift"):
            rows = [
                (_cell(metric if not column else f"{column}: {metric}"), _cell(value), _cell(reference))
                for metric, column, value, reference in self.metrics.head(_SHOWN).itertuples(index=False)
            ]
            made.append((("Metric", "Value", "Reference"), rows, _more(self.metrics, "metrics")))
        if self.preset in ("summary", "quality") or not made:
            has_reference = "typical_reference" in self.columns
            head = ("Column", "Kind", "Mean or most common", *(["Learned from"] if has_reference else []), "Missing", "Distinct", "Low", "High")  # fmt: skip
            rows = [
                (_cell(name), fact["kind"], _cell(fact["typical"]), *([_cell(fact["typical_reference"])] if has_reference else []),
                 f"{fact['missing']:.1%}", f"{fact['distinct']:,}", _cell(fact["low"]), _cell(fact["high"]))
                for name, fact in zip(self.columns.index[:_SHOWN], self.columns.head(_SHOWN).to_dict("records"), strict=True)
            ]  # fmt: skip
            made.append((head, rows, _more(self.columns, "columns")))
        return made

    def _notes(self) -> list[str]:
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            by_reason.setdefault(reason, []).append(shortened(name, 40))
        lines = []
        for reason, names in by_reason.items():
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            lines.append(f"Left out: {', '.join(names[:8])}{more} ({shortened(reason, 120)})")
        if self.workspace:
            lines.append(f"In the workspace {self.workspace}: evidently ui --workspace {self.workspace}")
        return lines


def _more(frame: pd.DataFrame, what: str) -> str:
    return f"and {len(frame) - _SHOWN} more in .{what}" if len(frame) > _SHOWN else ""


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return shortened(visible(str(value)), _CELL)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON types; what is no number is null."""
    return [{str(key): _plain(value) for key, value in row.items()} for row in frame.to_dict("records")]


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""What a deployment was asked, against what its model learned from: a verdict per column, by Evidently."""

from __future__ import annotations

import gc
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nbdeploy import home, report_view
from nbdeploy.drift_columns import Pair, Sides, inert, pair_up, visible
from nbdeploy.drift_result import MIN_ROWS, DriftReport, Verdict, is_p_value, verdict_frame
from nbdeploy.errors import DriftError, NbdeployError

__all__ = ["DRIFT_SHARE", "MIN_ROWS", "PLOTTED_ROWS", "DriftReport", "measure", "warm"]

PLOTTED_ROWS = 20_000  # of each side in Evidently's plots
DRIFT_SHARE = 0.5  # Evidently's own default: a data set drifts when half of its columns do

_log = logging.getLogger(__name__)


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
    with quiet():
        pairs, reasons = pair_up(reference, current, max_rows=max_rows, seed=seed)
        page, found = _evaluate(pairs) if pairs else ("", {})
    verdicts = {column: Verdict(None, reason) for column, reason in reasons.items()}
    for label, pair in pairs.items():
        few = min(pair.counts)
        verdicts[pair.column] = (
            found[label] if few >= MIN_ROWS else Verdict(None, f"too few rows: {few} of the {MIN_ROWS} it takes")
        )
    columns = verdict_frame(verdicts)
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
    return _publish(report, page) if page else report


def warm() -> None:
    """Import Evidently, which takes seconds; meant for a background thread."""
    os.environ.setdefault("DO_NOT_TRACK", "1")  # Evidently's own switch for its telemetry
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import evidently.legacy.metrics
        import evidently.legacy.report  # noqa: F401


def _check(reference: pd.DataFrame, current: pd.DataFrame, name: str, version: str, since: str) -> None:
    if not len(reference):
        msg = f"The reference of {name} {version} has no rows"
        raise DriftError(msg, "Save the version again with its frame.")
    if not len(current):
        window = f" since {since}" if since else ""
        msg = f"{name} {version} has answered nothing{window}"
        raise DriftError(msg, "Ask it first, or look at a longer window.")
    if not {*reference.columns} & {*current.columns}:
        sides = [", ".join(visible(str(column)) for column in side.columns[:5]) for side in (reference, current)]
        msg = f"No column of the reference ({sides[0]}) is among those asked about ({sides[1]})"
        raise DriftError(msg)


def _evaluate(pairs: dict[str, Pair]) -> tuple[str, dict[str, Verdict]]:
    """Evidently's page and a verdict for every pair, though some of them are more than it can do."""
    warm()
    failed: dict[str, Verdict] = {}
    for way in (_by_table, _by_column):
        try:
            return way(pairs)
        except Exception as error:  # noqa: BLE001 - the next way is another part of Evidently
            _log.info("Evidently failed %s: %s", way.__name__, error)
        failed = _failing(way, pairs)
        if good := {label: pair for label, pair in pairs.items() if label not in failed}:
            with suppress(Exception):
                page, found = way(good)
                return page, {**found, **failed}
    return "", failed


def _failing(way: Callable[[dict[str, Pair]], object], pairs: dict[str, Pair]) -> dict[str, Verdict]:
    failed = {}
    for label, pair in pairs.items():
        try:
            way({label: pair})
        except Exception as error:  # noqa: BLE001 - the reason is shown instead of a verdict
            failed[label] = Verdict(None, f"not compared: {inert(' '.join(str(error).split()))}")
    return failed


def _by_table(pairs: dict[str, Pair]) -> tuple[str, dict[str, Verdict]]:
    """Evidently's drift table alone: its preset computes each distance three times and draws each plot twice."""
    from evidently.legacy.metrics import DataDriftTable
    from evidently.legacy.pipeline.column_mapping import ColumnMapping
    from evidently.legacy.report import Report

    table = DataDriftTable(
        columns=list(pairs), per_column_stattest={label: _test(pair) for label, pair in pairs.items()}
    )
    report = Report(metrics=[table])
    report.run(
        reference_data=_plotted(pairs, 0),
        current_data=_plotted(pairs, 1),
        column_mapping=ColumnMapping(
            target=None,
            prediction=None,
            numerical_features=_of_kind(pairs, "num"),
            categorical_features=_of_kind(pairs, "cat"),
            text_features=_of_kind(pairs, "text"),
        ),
    )
    found = table.get_result().drift_by_columns
    return report.get_html(), {
        label: _verdict(
            found[label].drift_detected,
            found[label].stattest_name,
            found[label].drift_score,
            found[label].stattest_threshold,
        )
        for label in pairs
    }


def _plotted(pairs: dict[str, Pair], side: int) -> pd.DataFrame:
    """Rows for the plots, evenly spaced: the table's verdicts come from `_test`, not from these."""
    frame = pd.DataFrame({label: pair.sample[side] for label, pair in pairs.items()})
    few = frame.iloc[np.linspace(0, len(frame) - 1, min(len(frame), PLOTTED_ROWS)).astype(int)]
    return few.reset_index(drop=True) if few.notna().any().all() else frame


def _by_column(pairs: dict[str, Pair]) -> tuple[str, dict[str, Verdict]]:
    """Evidently's public metrics, one for each column, should the table be gone: all methods on the sample."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    definition = DataDefinition(
        numerical_columns=_of_kind(pairs, "num"),
        categorical_columns=_of_kind(pairs, "cat"),
        text_columns=_of_kind(pairs, "text"),
    )
    reference, current = (
        Dataset.from_pandas(
            pd.DataFrame({label: pair.sample[side] for label, pair in pairs.items()}), data_definition=definition
        )
        for side in (0, 1)
    )
    run = Report([ValueDrift(column=label) for label in pairs], include_tests=True).run(current, reference)
    made = run.dict()
    scores = {metric["config"]["column"]: metric["value"] for metric in made["metrics"]}
    found = {}
    for test in made["tests"]:
        asked = test["metric_config"]["params"]
        drifted = str(test["status"]).rpartition(".")[2] == "FAIL"
        found[asked["column"]] = _verdict(drifted, asked["method"], scores[asked["column"]], asked["threshold"])
    return run.get_html_str(as_iframe=False), found


def _test(pair: Pair) -> Any:
    """The test that Evidently chooses for the whole pair, asked about the pair whatever it is called with."""
    from evidently.legacy.calculations.stattests import get_stattest
    from evidently.legacy.core import ColumnType

    # What it chooses by: more than 1,000 values in the reference or not, and how many differ, up to six.
    like_reference = pd.Series(np.resize(pair.distinct.to_numpy(), min(pair.counts[0], 1001)))
    return _careful_test()(get_stattest(like_reference, pair.distinct, ColumnType(pair.kind), None), pair)


@lru_cache(maxsize=1)
def _careful_test() -> Any:
    from evidently.legacy.calculations.stattests import StatTest

    class Careful(StatTest):  # type: ignore[misc]
        """A test of all rows where a sample might mislead: of categories, for p-values, and near the threshold."""

        def __init__(self, test: Any, pair: Pair) -> None:
            super().__init__(test.name, test.display_name, test.allowed_feature_types, test.default_threshold)
            self.test, self.pair = test, pair

        def __call__(self, _reference: Any, _current: Any, kind: Any, threshold: Any, **_: Any) -> Any:
            def ask(sides: Sides) -> Any:
                return self.test(*(side.dropna() for side in sides), kind, threshold)

            if not self.pair.sampled:
                return ask(self.pair.sample)
            if self.pair.kind == "cat" or is_p_value(self.display_name):
                return ask(self.pair.whole())
            result = ask(self.pair.sample)
            near = _is_near(result.drift_score, result.actual_threshold, self.pair.kind)
            return ask(self.pair.whole()) if near else result

    return Careful


def _is_near(score: float, threshold: float, kind: str) -> bool:
    return abs(score - threshold) < 0.02 if kind == "text" else threshold / 2 < score < threshold * 2


def _of_kind(pairs: dict[str, Pair], kind: str) -> list[str]:
    return [label for label, pair in pairs.items() if pair.kind == kind]


def _verdict(drifted: object, method: str, score: float, threshold: float) -> Verdict:
    if not math.isfinite(score):
        return Verdict(None, f"not compared: {method} gave no number")
    return Verdict(bool(drifted), method, float(score), float(threshold))


def _publish(report: DriftReport, page: str) -> DriftReport:
    title = f"Drift of {report.deployment} {report.version}"
    note = visible(report.summary)
    if max(report.rows_reference, report.rows_current) > PLOTTED_ROWS:
        note = f"{note}. Plots show up to {PLOTTED_ROWS:,} rows of each side."
    sealed = report_view.seal(defused(page), title=title, note=note)
    if report.html_path:
        try:
            home.private_folder(report.html_path.parent)
            home.write_atomic(report.html_path, sealed.encode())
        except (OSError, NbdeployError) as error:
            msg = f"{report.html_path} cannot be written: {getattr(error, 'strerror', '') or error}"
            raise DriftError(msg) from error
    bundle = library()
    return replace(report, page=report_view.pack(sealed, bundle), bundle=bundle)


def defused(page: str) -> str:
    """Escape what could end the script that holds a page's data: JSON reads the same without a single ``<``."""
    start = page.index("<script>") + len("<script>")
    # The data comes before the element that the report is drawn in, whatever the data says.
    end = page.rindex("</script>", 0, page.rindex('<div id="root_'))
    return page[:start] + page[start:end].replace("<", "\\u003c") + page[end:]


def library() -> report_view.Bundle:
    """The JavaScript that is the same in every page of Evidently's."""
    import evidently

    return report_view.Bundle(Path(evidently.__path__[0], "nbextension", "static", "index.js"))


@contextmanager
def quiet() -> Iterator[None]:
    """A while without warnings from Evidently's arithmetic, without side effects, and without garbage collection.

    Evidently's text test seeds NumPy's global random state; the user's is put back. Its plots make a million
    small objects that all stay, and collecting them over and over takes a fifth of the time.
    """
    state = np.random.get_state()  # noqa: NPY002 - the state that Evidently changes is the global one
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if collecting:
            gc.enable()
        np.random.set_state(state)  # noqa: NPY002 - see above

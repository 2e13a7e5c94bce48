"""What a deployment was asked, against what its model learned from: a verdict per column, by Evidently."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nbdeploy import home, report_view
from nbdeploy.drift_columns import Pair, by_label, pair_up, visible
from nbdeploy.drift_result import MIN_ROWS, DriftReport, Group, Verdict, verdict_frame
from nbdeploy.drift_sides import Side
from nbdeploy.drift_tests import failed, judged, test_of, verdict_of, warm
from nbdeploy.drift_words import Change, Seen, change_of, emptied
from nbdeploy.errors import DriftError, NbdeployError, did_you_mean

__all__ = ["DRIFT_SHARE", "MIN_ROWS", "PLOTTED_ROWS", "DriftReport", "Seen", "Side", "measure", "warm"]

PLOTTED_ROWS = 20_000  # of each side in Evidently's plots
DRIFT_SHARE = 0.5  # Evidently's own default: a data set drifts when half of its columns do

MAX_GROUPS = 12  # that get verdicts of their own, the largest ones

_log = logging.getLogger(__name__)


def measure(
    reference: pd.DataFrame | Side,
    current: pd.DataFrame | Side,
    *,
    name: str,
    version: str,
    since: str = "",
    until: str = "",
    html_path: Path | None = None,
    max_rows: int = 50_000,
    seed: int = 0,
    page: bool = True,
    columns: Collection[Hashable] | None = None,
    by: Hashable = None,
    against: str = "reference",
    seen: Seen | None = None,
    left_out: Mapping[Hashable, str] | None = None,
) -> DriftReport:
    """Compare every column of `current` with the same column of `reference`.

    Methods and thresholds are Evidently's defaults for the whole frames, whatever is sampled. A column
    that cannot be compared gets no verdict, and ``method`` says why; so does one with fewer than
    `MIN_ROWS` values on either side.

    Parameters
    ----------
    reference, current : DataFrame or Side
        What the model learned from, and what it was asked: all rows, or a sample of them and what is known of all.
        Predictions may be a column like any other.
    name, version, since, until : str
        What the report says it is about.
    html_path : Path, optional
        Where to write Evidently's whole report.
    max_rows : int
        Rows of each side to compare; more are sampled.
    seed : int
        Of the sample: the same seed, the same rows.
    page : bool
        Make Evidently's whole report. Without it there are verdicts and sentences, nothing is drawn, and no file is written.
    columns : collection, optional
        Judge these alone.
    by : hashable, optional
        A column whose most frequent values get verdicts of their own, up to 12, of the rows that are compared here.
    against : str
        What the reference is: ``reference``, a version, or a window of the log.
    seen : Seen, optional
        What the sentences call it.
    left_out : mapping, optional
        Columns that neither side has, with the reason; they get no verdict.

    Returns
    -------
    DriftReport

    Raises
    ------
    DriftError
        A side is empty, there is no common column, `by` is none of them, or the report cannot be written.
    """
    sides = Side.of(reference), Side.of(current)
    _check(sides, name, version, since)
    told = seen or Seen()
    with quiet():
        groups = _groups(sides, by, columns, max_rows=max_rows, seed=seed, seen=told) if by is not None else {}
        if columns is not None:
            sides = _chosen(sides, columns)
        pairs, reasons = pair_up(*sides, max_rows=max_rows, seed=seed)
        found, drawn = _evaluate(pairs, page=page)
    verdicts = _by_column_name(pairs, found, {**reasons, **(left_out or {})})
    frame = verdict_frame(verdicts)
    sampled = any(side.sampled or len(side.frame) > max_rows for side in sides)
    report = DriftReport(
        deployment=name,
        version=version,
        since=since,
        rows_reference=sides[0].rows,
        rows_current=sides[1].rows,
        sampled=sampled,
        drifted=False,
        share=0.0,
        drift_share=DRIFT_SHARE,
        columns=frame,
        html_path=html_path if drawn else None,
        created=datetime.now(timezone.utc),
        against=against,
        changes=_changes(pairs, found, sides, reasons, told),
        until=until,
        groups=groups,
        by="" if by is None else str(by),
        compared=min(max_rows, *(len(side.frame) for side in sides if side.sampled or len(side.frame) > max_rows))
        if sampled else 0,
    ).judged()  # fmt: skip
    return _publish(report, drawn) if drawn else report


def _check(sides: tuple[Side, Side], name: str, version: str, since: str) -> None:
    if not sides[0].rows:
        msg = f"The reference of {name} {version} has no rows"
        raise DriftError(msg, "Save the version again with its frame.")
    if not sides[1].rows:
        window = f" since {since}" if since else ""
        msg = f"{name} {version} has answered nothing{window}"
        raise DriftError(msg, "Ask it first, or look at a longer window.")
    if not {*sides[0].frame.columns} & {*sides[1].frame.columns}:
        names = [", ".join(visible(str(column)) for column in side.frame.columns[:5]) for side in sides]
        msg = f"No column of the reference ({names[0]}) is among those asked about ({names[1]})"
        raise DriftError(msg)


def _chosen(sides: tuple[Side, Side], columns: Collection[Hashable]) -> tuple[Side, Side]:
    chosen = tuple(
        replace(side, frame=side.frame[[name for name in side.frame.columns if name in columns]]) for side in sides
    )
    return chosen[0], chosen[1]


def _by_column_name(
    pairs: dict[str, Pair], found: dict[str, Verdict], reasons: dict[Hashable, str]
) -> dict[Hashable, Verdict]:
    verdicts = {column: Verdict(None, reason) for column, reason in reasons.items()}
    return verdicts | {pair.column: found[label] for label, pair in pairs.items()}


def _changes(
    pairs: dict[str, Pair],
    found: dict[str, Verdict],
    sides: tuple[Side, Side],
    reasons: dict[Hashable, str],
    seen: Seen,
) -> tuple[str, ...]:
    """What changed most first."""
    told: list[Change] = []
    for label, pair in pairs.items():
        verdict = found[label]
        if min(pair.counts) >= MIN_ROWS:
            change = change_of(pair, drifted=bool(verdict.drifted), effect=verdict.effect, seen=seen)
            told += [change] if change else []
    told += [change for column in reasons if (change := emptied(column, sides))]
    return tuple(change.sentence for change in sorted(told, key=lambda change: -change.weight))


# -- groups -------------------------------------------------------------------------------------------------


def _groups(
    sides: tuple[Side, Side],
    by: Hashable,
    columns: Collection[Hashable] | None,
    *,
    max_rows: int,
    seed: int,
    seen: Seen,
) -> dict[str, Group]:
    """Verdicts of the rows of each of the most frequent values of a column, without Evidently's pages."""
    for side, place in zip(sides, ("reference", "window"), strict=True):
        if by not in side.frame.columns:
            known = [str(column) for column in side.frame.columns]
            msg = f"by={str(by)!r} is no column of the {place} that can be compared"
            raise DriftError(msg, did_you_mean(str(by), known) or f"It has {', '.join(known[:10])}.")
    few = [
        side.frame if len(side.frame) <= max_rows else side.frame.sample(max_rows, random_state=seed).sort_index()
        for side in sides
    ]
    labels = [by_label(frame[by]) for frame in few]
    rows = [labels[i].value_counts() if not side.sampled and len(few[i]) == side.rows else _all_rows(side, by, labels[i])
            for i, side in enumerate(sides)]  # fmt: skip
    made = {}
    for label in labels[1].value_counts().index[:MAX_GROUPS]:
        parts = [
            frame[(group == label).to_numpy()].drop(columns=[by]) for frame, group in zip(few, labels, strict=True)
        ]
        made_of = [Side(part, len(part), partial=side.partial) for part, side in zip(parts, sides, strict=True)]
        group_sides = made_of[0], made_of[1]
        if columns is not None:
            group_sides = _chosen(group_sides, columns)
        pairs, reasons = pair_up(*group_sides, max_rows=max_rows, seed=seed)
        short = min(map(len, parts))
        reasons = {c: f"too few rows: {short} of the {MIN_ROWS} it takes" if short < MIN_ROWS else r
                   for c, r in reasons.items()}  # fmt: skip
        found = judged(pairs)
        made[str(label)] = Group(
            str(label),
            int(rows[0].get(label, 0)),
            int(rows[1].get(label, 0)),
            verdict_frame(_by_column_name(pairs, found, reasons)),
            _changes(pairs, found, group_sides, reasons, seen) if short >= MIN_ROWS else (),
        )
    return made


def _all_rows(side: Side, by: Hashable, labels: pd.Series) -> pd.Series:
    """How many of all rows each group has: counted, or else by its share of the sample."""
    if side.sampled and by in side.counts:
        counts = side.counts[by]
        return pd.Series(counts.to_numpy(), index=by_label(pd.Series(counts.index)).to_numpy()).groupby(level=0).sum()
    return (labels.value_counts() * (side.rows / max(len(labels), 1))).round()


# -- Evidently's page ---------------------------------------------------------------------------------------


def _evaluate(pairs: dict[str, Pair], *, page: bool) -> tuple[dict[str, Verdict], str]:
    """A verdict for every pair, and Evidently's page of those that it can draw."""
    if not pairs:
        return {}, ""
    warm()
    tests: dict[str, Any] = {}
    try:
        found = judged(pairs, tests)
    except ImportError as error:
        _log.info("Evidently's tests are gone: %s", error)
        found = {}
    if not page and found:
        return found, ""
    table = partial(_by_table, tests)
    for way in (table, _by_column):
        good = pairs
        for _ in range(2):
            try:
                drawn, said = way(good)
            except Exception as error:  # noqa: BLE001 - the next way is another part of Evidently
                _log.info("Evidently failed %s: %s", "_by_table" if way is table else "_by_column", error)
            else:
                unjudged = {label: said[label] for label in good if label not in found or found[label].drifted is None}
                return {**found, **unjudged}, drawn if page else ""
            bad = _failing(way, good)
            found = {**bad, **found}
            good = {label: pair for label, pair in good.items() if label not in bad}
            if not good:
                break
    return found, ""


def _failing(way: Callable[[dict[str, Pair]], object], pairs: dict[str, Pair]) -> dict[str, Verdict]:
    found = {}
    for label, pair in pairs.items():
        try:
            way({label: pair})
        except Exception as error:  # noqa: BLE001 - the reason is shown instead of a verdict
            found[label] = failed(error)
    return found


def _by_table(tests: dict[str, Any], pairs: dict[str, Pair]) -> tuple[str, dict[str, Verdict]]:
    """Evidently's drift table alone: its preset computes each distance three times and draws each plot twice."""
    from evidently.legacy.metrics import DataDriftTable
    from evidently.legacy.pipeline.column_mapping import ColumnMapping
    from evidently.legacy.report import Report

    table = DataDriftTable(
        columns=list(pairs),
        per_column_stattest={label: tests.get(label) or test_of(pair) for label, pair in pairs.items()},
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
        label: verdict_of(
            pair,
            found[label].drift_detected,
            found[label].stattest_name,
            found[label].drift_score,
            found[label].stattest_threshold,
        )
        for label, pair in pairs.items()
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
        column = asked["column"]
        found[column] = verdict_of(pairs[column], drifted, asked["method"], scores[column], asked["threshold"])
    return run.get_html_str(as_iframe=False), found


def _of_kind(pairs: dict[str, Pair], kind: str) -> list[str]:
    return [label for label, pair in pairs.items() if pair.kind == kind]


def _publish(report: DriftReport, page: str) -> DriftReport:
    title = f"Drift of {report.deployment} {report.version}"
    note = visible(" ".join([f"{report.summary}.", *report.changes[:3], report.sampling]))
    if max(report.rows_reference, report.rows_current) > PLOTTED_ROWS:
        note = f"{note} Plots show up to {PLOTTED_ROWS:,} rows of each side."
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

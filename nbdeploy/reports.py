"""Reports on a window of the log: its quality, a summary, how right the answers were, by Evidently."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd

from nbdeploy import (
    evidently_report,
    evidently_workspace,
    label_log,
    log_sample,
    model_store,
    notebook_run,
    prediction_log,
    report_frames,
    report_labels,
    watching,
)
from nbdeploy.answers import PREDICTION
from nbdeploy.errors import ReportError, did_you_mean
from nbdeploy.evidently_report import PRESETS
from nbdeploy.home import reports_folder
from nbdeploy.model_store import ModelVersion
from nbdeploy.notebook_run import Executed
from nbdeploy.report_frames import Sides
from nbdeploy.report_result import WindowReport
from nbdeploy.signature import Signature


def report(
    name: str,
    preset: str | None = None,
    metrics: Sequence[Any] = (),
    *,
    since: Any = None,
    until: Any = None,
    version: str | None = None,
    max_rows: int = 50_000,
    html_path: Path | str | None = None,
    workspace: Path | str | None = None,
    notebook: Path | str | bool | None = None,
    parameters: Mapping[str, object] | None = None,
) -> WindowReport | Executed:
    """Let Evidently report on what a version was asked, beside what it learned from.

    What is private, and what is an array, is in no report.

    Parameters
    ----------
    preset : {"quality", "summary", "classification", "regression", "text", "drift"}, optional
        ``quality``, which is what there is without `metrics`, is the summary with tests: missing values, repeated rows,
        values outside the range of training, unseen categories, columns that have become constant. ``classification``
        and ``regression`` judge the answers by their labels, ``text`` describes columns of text.
    metrics : sequence
        Metrics of Evidently's, with or without tests of yours, beside the preset or alone; or their names, as
        ``"ValueDrift:column=carrier"``. They are about the columns' own names.
    since, until : str, datetime or timedelta, optional
        The window of the log; all of it by default.
    version : str, optional
        By default the live one.
    max_rows : int
        Rows of each side that are looked at, a reproducible sample of more.
    html_path : path, optional
        Where Evidently's whole page goes; by default ``nbdeploy-reports/NAME/`` in the working directory.
    workspace : path, optional
        An Evidently workspace that gets it too, for ``evidently ui --workspace``; a notebook gets it as its parameter
        ``workspace``.
    notebook : path or True, optional
        Run this notebook instead, by Papermill, and keep it and its page in a dated folder below
        ``nbdeploy-reports/NAME/``; True is the one on drift that comes with nbdeploy.
    parameters : mapping, optional
        Of the notebook.

    Returns
    -------
    WindowReport or Executed
        ``.passed``, ``.tests``, ``.metrics``, ``.columns``, ``.html_path``; of a notebook ``.passed``, ``.notebook``,
        ``.html``.

    Raises
    ------
    ReportError
        The report does not fit the model or its log, or Evidently cannot make it.
    NotebookError
        The notebook cannot be run, or a parameter does not fit it. What it raises is in the result.
    NotFound
    """
    watching.must_be_known(name)
    if notebook or parameters:
        options = {
            "preset": preset,
            "metrics": metrics,
            "version": version,
            "html_path": html_path,
        }
        if unused := [key for key, value in options.items() if value]:
            msg = f"a notebook decides by itself what it reports: {unused[0]} is not for it"
            raise ReportError(msg, "Leave it out, or give the notebook a parameter.")
        if workspace:  # it runs in a folder of its own
            parameters = {**(parameters or {}), "workspace": str(evidently_workspace.place_of(workspace))}
        return _notebook(name, notebook or True, parameters, (since, until))
    _check(preset, max_rows)
    if workspace:
        evidently_workspace.place_of(workspace)
    subject = model_store.get(name, version or watching.live_version(name))
    asked = [_metric(metric) for metric in ([metrics] if isinstance(metrics, str) else metrics)]
    preset = preset or ("" if asked else "quality")
    task = preset if preset in ("classification", "regression") else evidently_report.needs_labels(asked)
    current, rows, learned, left_out = _sides(subject, (since, until), max_rows, labelled=bool(task))
    reference: pd.DataFrame | None = learned
    judged = None
    if task:
        current, reference, judged = report_labels.judged(subject, task, current, learned)
        rows = len(current)
    kinds = {} if judged is None else judged.kinds
    sides = report_frames.prepare(
        current, reference, max_rows=max_rows, left_out=left_out, kinds=kinds, by_distribution=preset == "drift"
    )
    if judged is not None:
        judged = judged.shown(sides)
    _fits(subject, preset, sides)
    found = evidently_report.evaluate(sides, preset, asked, judged)
    made = WindowReport(
        deployment=name, version=subject.version, preset=preset or "metrics",
        since=_words(since), until=_words(until), rows_current=rows,
        rows_reference=found.sides.rows_reference, sampled=sides.sampled or len(current) < rows, columns=found.sides.facts(),
        metrics=found.metrics, tests=found.tests, left_out=found.sides.left_out, html_path=None, workspace=None,
        created=datetime.now(timezone.utc),
    )  # fmt: skip
    path = Path(html_path) if html_path else _default_path(made)
    page, bundle = evidently_report.publish(found, path, title=made.title, note=made.summary)
    made = replace(made, html_path=path, page=page, bundle=bundle)
    if workspace:
        place = evidently_workspace.add(
            workspace, name, found.snapshot, title=made.title, version=made.version, preset=made.preset
        )
        made = replace(made, workspace=place)
    return made


def _notebook(
    name: str,
    notebook: Path | str | bool,
    parameters: Mapping[str, object] | None,
    window: tuple[Any, Any],
) -> Executed:
    path = None if notebook is True else Path(str(notebook))
    if path is not None and path.name == notebook_run.DEFAULT and not path.exists():
        path = None  # the one that comes with nbdeploy, wherever that is
    return notebook_run.report_notebook(name, path, parameters, since=window[0], until=window[1])


# -- what may be asked --------------------------------------------------------------------------------------


def _check(preset: str | None, max_rows: int) -> None:
    if preset is not None and preset not in PRESETS:
        msg = f"there is no report {str(preset)[:60]!r}"
        raise ReportError(msg, did_you_mean(str(preset), PRESETS))
    if max_rows < 1:
        msg = f"a report on {max_rows} rows has nothing to look at"
        raise ReportError(msg, "Give max_rows=1 or more.")


def _metric(metric: Any) -> Any:
    if isinstance(metric, str):
        return evidently_report.metric_of(metric)
    if evidently_report.is_metric(metric):
        return metric
    msg = f"{type(metric).__name__} is no metric of Evidently's"
    if isinstance(metric, type):
        msg, hint = f"{metric.__name__} is a class", f"Make one: {metric.__name__}(...)."
    else:
        hint = "Pass objects of evidently.metrics or evidently.presets, or names such as 'RowCount'."
    raise ReportError(msg, hint)


def _fits(subject: ModelVersion, preset: str, sides: Sides) -> None:
    if not sides.columns:
        msg = f"{subject.tag} has no column that can be shown: {'; '.join(sorted({*sides.left_out.values()}))}"
        raise ReportError(msg, "See its predictions: nbdeploy.predictions(...).")
    if preset == "text" and not sides.of("text"):
        msg = f"{subject.tag} has no column of text for the text report"
        raise ReportError(msg, "Its categories are in the summary: preset='summary'.")
    if preset == "drift" and not sides.of("number", "category", "text"):
        msg = f"{subject.tag} has no column whose distribution can be compared"
        raise ReportError(msg, "See the summary: preset='summary'.")


# -- both sides ---------------------------------------------------------------------------------------------


def _sides(
    subject: ModelVersion, window: tuple[Any, Any], max_rows: int, *, labelled: bool
) -> tuple[pd.DataFrame, int, pd.DataFrame, dict[str, str]]:
    """The window, how many rows it has, and the training sample, without what is private.

    Of a window with more than `max_rows` rows there is a sample, unless it is about labels, which few rows may have; then
    the log's labels and probabilities are columns too.
    """
    signature = subject.signature
    shown = [column for column in signature.columns if not column.private and not column.shape]
    names = [column.name for column in shown]
    left_out = {
        column.name: "private" if column.private else "an array in each row"
        for column in signature.columns
        if column not in shown
    }
    logged = [column.name for column in signature.logged]
    own = {word: prediction_log.own_column(word, logged) for word in ("prediction", "probabilities", "label")}
    if labelled:
        log = prediction_log.read(
            subject.name,
            _signature_of(subject),
            *window,
            label_log.read(subject.name),
            version=subject.version,
            proba=True,
        )
        rows, current = len(log), log[[*names, own["probabilities"], own["label"]]] if len(log) else log
        answers = log[own["prediction"]] if len(log) else log
    else:
        sample = log_sample.take(
            subject.name, _signature_of(subject), max_rows, columns=names, own=["prediction"], since=window[0],
            until=window[1], version=subject.version, count=False,
        )  # fmt: skip
        rows, current = sample.rows, sample.inputs
        answers = pd.Series(sample.predictions, index=current.index)
    if not rows:
        raise _unasked(subject, window)
    expected = subject.expected
    reference = subject.reference[[column.label for column in shown]].set_axis(names, axis=1)
    if PREDICTION in expected and pd.api.types.is_scalar(expected[PREDICTION].iloc[0]):
        current = current.assign(**{own["prediction"]: answers})
        reference = reference.assign(**{own["prediction"]: expected[PREDICTION].to_numpy()})
    else:
        left_out[own["prediction"]] = "an answer of several values"
    order = [*names, *(each for each in current.columns if each not in names)]
    return current[order].reset_index(drop=True), rows, reference.reset_index(drop=True), left_out


def _signature_of(subject: ModelVersion) -> Callable[[str], Signature | None]:
    return lambda version: subject.signature if version == subject.version else None


def _unasked(subject: ModelVersion, window: tuple[Any, Any]) -> ReportError:
    words = "".join(
        f" {word} {when}" for word, when in zip(("since", "until"), window, strict=True) if when is not None
    )
    msg = f"{subject.tag} has answered no request{words}"
    return ReportError(msg, f"Ask it something first: nbdeploy.predict({subject.name!r}, X_new).")


def _words(when: Any) -> str:
    return "" if when is None else str(when)


def _default_path(made: WindowReport) -> Path:
    return reports_folder(made.deployment) / f"{made.preset}-{made.version}-{made.created:%Y%m%dT%H%M%S}.html"

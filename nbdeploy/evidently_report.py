"""Evidently's presets, metrics and tests on two sides that are ready for it: its page, its numbers, its verdicts."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from nbdeploy import drift_report, home, report_view
from nbdeploy.drift_columns import inert, shortened
from nbdeploy.drift_result import MIN_ROWS, is_p_value
from nbdeploy.errors import NbdeployError, ReportError, did_you_mean
from nbdeploy.report_frames import Kind, Sides, Task
from nbdeploy.report_result import METRICS, TESTS

PRESETS = ("quality", "summary", "classification", "regression", "text", "drift")

# What the window may differ in from what was learned, in shares of the rows or of a column's values.
MORE_MISSING = 0.01
MORE_DUPLICATES = 0.05
OUTSIDE = 0.01

_DESCRIBED = ("length", "words", "sentences", "non letters %")  # of each text


@dataclass(frozen=True)
class Evaluated:
    """What came of it: the page, sealed by `publish`, the snapshot for a workspace, and the tables."""

    html: str
    snapshot: Any
    metrics: pd.DataFrame
    tests: pd.DataFrame
    sides: Sides


@dataclass(frozen=True)
class _Request:
    preset: str
    metrics: tuple[Any, ...] = ()
    task: Task | None = None


def evaluate(sides: Sides, preset: str, metrics: Sequence[Any] = (), task: Task | None = None) -> Evaluated:
    """Let Evidently look at both sides.

    Parameters
    ----------
    preset : str
        One of `PRESETS`, or '' for `metrics` alone.
    metrics : sequence
        Evidently's own objects, made by `metric_of` or by a user, for the columns' own names.
    task : Task, optional
        What labels are compared with what.

    Raises
    ------
    ReportError
        Evidently cannot compute a metric, or not the preset for any column.
    """
    drift_report.warm()
    if preset == "drift":
        sides = sides.without(_incomparable(sides))
    request = _Request(preset, tuple(_renamed(metric, sides) for metric in metrics), task)
    with drift_report.quiet():
        sides, run = _run_on_what_works(sides, request)
        page = run.get_html_str(as_iframe=False)
        told = run.dict()
    return Evaluated(page, run, _metrics(told, run, sides), _tests(told, sides), sides)


def publish(found: Evaluated, path: Path | None, *, title: str, note: str) -> tuple[bytes, report_view.Bundle]:
    """Seal the page, write it to `path`, and return what a live view shows.

    Raises
    ------
    ReportError
        It cannot be written.
    """
    sealed = report_view.seal(drift_report.defused(found.html), title=title, note=note)
    if path is not None:
        try:
            home.private_folder(path.parent)
            home.write_atomic(path, sealed.encode())
        except (OSError, NbdeployError) as error:
            msg = f"{path} cannot be written: {getattr(error, 'strerror', '') or error}"
            raise ReportError(msg) from error
    bundle = drift_report.library()
    return report_view.pack(sealed, bundle), bundle


def metric_of(text: str) -> Any:
    """One of Evidently's metrics by its name, as a command line says it.

    Parameters
    ----------
    text : str
        ``RowCount``, ``ValueDrift:column=carrier``, ``QuantileValue:column=distance,quantile=0.9``; or, where a value
        has a comma, ``InListValueCount:{"column": "carrier", "values": ["AA", "UA"]}``. Values are JSON, or else text.
        Names are looked up among Evidently's metrics; nothing is evaluated.

    Raises
    ------
    ReportError
        There is no such metric, or it takes other arguments.
    """
    drift_report.warm()
    from evidently import metrics

    name, _, rest = text.partition(":")
    known = {
        key: value
        for key, value in vars(metrics).items()
        if inspect.isclass(value)
        and value.__module__.startswith("evidently.metrics.")
        and not inspect.isabstract(value)
    }
    if name not in known:
        msg = f"Evidently has no metric {shortened(name, 60)!r}"
        raise ReportError(msg, did_you_mean(name, known))
    try:
        return known[name](**_arguments(rest))
    except (ValueError, TypeError) as error:
        msg = f"{name} does not take {shortened(rest, 100) or 'nothing'!r}: {shortened(str(error), 200)}"
        raise ReportError(msg, f"Write NAME:key=value,key=value, for example {name}:column=COLUMN.") from error


def needs_labels(metrics: Sequence[Any]) -> str:
    """The task that one of the metrics is about, '' where none is."""
    for metric in metrics:
        for task in ("classification", "regression"):
            if type(metric).__module__.endswith(f".{task}"):
                return task
    return ""


def is_metric(value: Any) -> bool:
    """Whether it is one of Evidently's metrics, or a container of some, such as its presets."""
    drift_report.warm()
    from evidently.core.container import MetricContainer
    from evidently.core.metric_types import Metric

    return isinstance(value, (Metric, MetricContainer))


# -- what Evidently is asked --------------------------------------------------------------------------------


def _run(sides: Sides, request: _Request) -> Any:
    from evidently import Report

    # Its own default tests are against the reference, of which a task's quality is a fair one and a count of rows is not.
    tested = request.preset in ("classification", "regression", "drift") and sides.reference is not None
    current = _dataset(sides.current, sides, request)
    reference = None if sides.reference is None else _dataset(sides.reference, sides, request)
    return Report([*_preset(sides, request), *request.metrics], include_tests=tested).run(current, reference)


def _dataset(frame: pd.DataFrame, sides: Sides, request: _Request) -> Any:
    from evidently import BinaryClassification, DataDefinition, Dataset, MulticlassClassification, Regression

    more: dict[str, Any] = {}
    if (task := request.task) is not None and task.kind == "regression":
        more["regression"] = [Regression(target=task.target, prediction=task.prediction)]
    elif task is not None and len(task.classes) == 2:
        more["classification"] = [
            BinaryClassification(
                target=task.target, prediction_labels=task.prediction, prediction_probas=task.scores or None,
                pos_label=task.classes[-1],
            )
        ]  # fmt: skip
    elif task is not None:
        more["classification"] = [MulticlassClassification(target=task.target, prediction_labels=task.prediction)]
    definition = DataDefinition(
        numerical_columns=sides.of("number"), categorical_columns=sides.of("category"), text_columns=sides.of("text"),
        datetime_columns=sides.of("moment"), **more,
    )  # fmt: skip
    made = Dataset.from_pandas(frame.copy(), data_definition=definition)
    if request.preset == "text":
        made.add_descriptors(_descriptors(sides))
    return made


def _descriptors(sides: Sides) -> list[Any]:
    """Those that need neither a model nor a dictionary from elsewhere."""
    from evidently.descriptors import NonLetterCharacterPercentage, SentenceCount, TextLength, WordCount

    makers = (TextLength, WordCount, SentenceCount, NonLetterCharacterPercentage)
    return [
        maker(label, alias=f"{label}: {what}")
        for label in sides.of("text")
        for maker, what in zip(makers, _DESCRIBED, strict=True)
    ]


def _preset(sides: Sides, request: _Request) -> list[Any]:
    from evidently import presets

    if request.preset in ("summary", "quality"):
        # Evidently 0.7 takes the earliest moment of a column for a number, and a page with a summary of a text stays blank.
        shown = presets.DataSummaryPreset(columns=sides.of("number", "category"))
        return [shown, *(_quality(sides) if request.preset == "quality" else [])]
    if request.preset == "drift":
        return [presets.DataDriftPreset(columns=sides.of("number", "category", "text"))]
    makers = {
        "classification": presets.ClassificationPreset,
        "regression": presets.RegressionPreset,
        "text": presets.TextEvals,
    }
    return [makers[request.preset]()] if request.preset else []


def _quality(sides: Sides) -> list[Any]:
    """Metrics with tests of what the reference says is usual."""
    from evidently import metrics
    from evidently.tests import lte

    current, reference = sides.current, sides.reference
    asked: list[Any] = []
    learned = reference if reference is not None else current.iloc[:0]
    for column in sides.columns:
        label, past = column.label, learned[column.label]
        usual = float(past.isna().mean()) if len(past) else 0.0
        asked.append(metrics.MissingValueCount(column=label, share_tests=[lte(round(usual + MORE_MISSING, 4))]))
        if not past.notna().any() or not current[label].notna().any():
            continue
        if column.kind == "number":
            low, high = float(past.min()), float(past.max())
            asked.append(metrics.OutRangeValueCount(column=label, left=low, right=high, share_tests=[lte(OUTSIDE)]))
        elif column.kind == "category":
            values = sides.known[label]
            asked.append(metrics.OutListValueCount(column=label, values=values, share_tests=[lte(OUTSIDE)]))
    usual = float(learned.duplicated().mean()) if len(learned) else 0.0
    asked.append(metrics.DuplicatedRowCount(tests=[lte(int((usual + MORE_DUPLICATES) * len(current)))]))
    if len(current) >= MIN_ROWS:  # of a few rows most columns are
        constant = sum(_is_constant(past) for _, past in learned.items())
        asked.append(metrics.ConstantColumnsCount(tests=[lte(constant)]))
    return asked


def _is_constant(values: pd.Series) -> bool:
    held = values.dropna()
    return bool(len(held)) and bool((held == held.iloc[0]).all())


def _renamed(metric: Any, sides: Sides) -> Any:
    """A user's metric, for the columns as they are called here."""
    held = (
        vars(metric) if not hasattr(metric, "__fields__") else {key: getattr(metric, key) for key in metric.__fields__}
    )
    changes: dict[str, Any] = {}
    for key in ("column", "column_name", "by_column"):
        if isinstance(held.get(key), str):
            changes[key] = _known(held[key], metric, sides)
    if isinstance(held.get("columns"), list):
        changes["columns"] = [_known(name, metric, sides) for name in held["columns"]]
    changes = {key: value for key, value in changes.items() if value != held[key]}
    return metric.copy(update=changes) if changes else metric


def _known(name: str, metric: Any, sides: Sides) -> str:
    label = sides.label_of(name)
    if label is not None:
        return label
    msg = f"{type(metric).__name__} asks for the column {shortened(name, 60)!r}"
    if name in sides.left_out:
        msg += f", which is in no report: {sides.left_out[name]}"
        raise ReportError(msg, did_you_mean("", [column.name for column in sides.columns]))
    msg += ", and there is none"
    raise ReportError(msg, did_you_mean(name, [column.name for column in sides.columns]))


def _incomparable(sides: Sides) -> dict[str, str]:
    """Why Evidently finds no drift in a column, where that is known before it is asked."""
    reasons = dict.fromkeys(sides.of("moment"), "dates, which nbdeploy.drift compares")
    for side, words in ((sides.current, "in the window"), (sides.reference, "in the reference")):
        if side is not None:
            reasons |= {label: f"not compared: no values {words}" for label in side if not side[label].notna().any()}
    return reasons


# -- what it cannot do --------------------------------------------------------------------------------------


def _run_on_what_works(sides: Sides, request: _Request) -> tuple[Sides, Any]:
    """Evidently's run on all columns, or on those that it does not fail for."""
    kinds: list[tuple[Kind, ...]] = [("number", "category", "moment"), ("text",)]  # texts last: one may take seconds
    while True:
        try:
            return sides, _run(sides, request)
        except Exception as error:
            _blame_metrics(sides, request)
            if request.preset == "classification" and sides.reference is not None:
                told = {**sides.left_out, "the training sample": "its classes are others"}
                sides = replace(sides, reference=None, rows_reference=0, left_out=told)
                continue
            reasons: dict[str, str] = {}
            while kinds and not reasons and request.preset in ("summary", "quality", "drift"):
                reasons = _failing(sides, request.preset, kinds.pop(0))
            if not reasons or len(reasons) == len(sides.columns):
                raise _failure(request.preset or "metric", error) from error
        sides = sides.without(reasons)


def _blame_metrics(sides: Sides, request: _Request) -> None:
    """Raise where a user's metric fails by itself."""
    for metric in request.metrics:
        try:
            _run(sides, _Request("", (metric,), request.task))
        except Exception as error:
            raise _metric_failure(metric, sides, error) from error


def _failing(sides: Sides, preset: str, kinds: tuple[Kind, ...]) -> dict[str, str]:
    """Why the preset fails for a column, by label."""
    reasons = {}
    for label in sides.of(*kinds):
        others = {each.label: "" for each in sides.columns if each.label != label}
        try:
            _run(sides.without(others), _Request(preset))
        except Exception as error:  # noqa: BLE001 - the reason is shown instead
            reasons[label] = f"Evidently fails: {type(error).__name__}"
    return reasons


def _metric_failure(metric: Any, sides: Sides, error: Exception) -> ReportError:
    """Without the values that some of Evidently's errors are made of."""
    label = getattr(metric, "column", None)
    column = next((each for each in sides.columns if each.label == label), None)
    about = f" of {column.label!r}, whose values are of the kind {column.kind}" if column else ""
    what = "a target or a prediction is missing" if error.args[:1] == (None,) else type(error).__name__
    return ReportError(f"Evidently cannot compute {type(metric).__name__}{about}: {what}", "See its documentation.")


def _failure(what: str, error: Exception) -> ReportError:
    told = inert(" ".join(f"{type(error).__name__} {error}".split()), 200)
    return ReportError(f"Evidently cannot make the {what} report of this window: {told}", "Try another preset.")


# -- what it says -------------------------------------------------------------------------------------------


def _metrics(told: Mapping[str, Any], run: Any, sides: Sides) -> pd.DataFrame:
    names = {column.label: column.name for column in sides.columns}
    reference = {key: result.to_dict() for key, result in run.context._reference_metrics.items()}  # noqa: SLF001
    rows = []
    for metric in told["metrics"]:
        config = metric["config"]
        label = config.get("column") or ""
        past = (reference.get(metric["id"]) or {}).get("value")
        rows.append((_named(config), names.get(label, label), _value(metric["value"]), _value(past)))
    return pd.DataFrame(rows, columns=[*METRICS]).astype(object)


def _named(config: Mapping[str, Any]) -> str:
    """A metric with what it was given, in short."""
    kind = str(config["type"]).rpartition(":")[2]
    more = {
        key: value
        for key, value in config.items()
        if key in ("quantile", "left", "right", "method", "threshold", "column_type", "label") and value is not None
    }
    told = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {getattr(value, 'value', value)}"
        for key, value in more.items()
    )
    return f"{kind} ({told})" if told else kind


def _value(value: Any) -> Any:
    """A number, or what several are in one line."""
    if isinstance(value, Mapping):
        if {*value} == {"count", "share"}:
            return f"{float(value['count']):g} ({float(value['share']):.2%})"
        if {*value} == {"mean", "std"}:
            return f"{float(value['mean']):.4g} ± {float(value['std']):.4g}"
        several = value.get("counts", value)
        if isinstance(several, Mapping):
            told = [f"{key} {float(each):.4g}" if _is_number(each) else str(key) for key, each in several.items()]
            return ", ".join(told[:8]) + (f" and {len(told) - 8} more" if len(told) > 8 else "")
    return float(value) if _is_number(value) else "" if value is None else shortened(str(value), 200)


def _is_number(value: Any) -> bool:
    return pd.api.types.is_number(value) and not isinstance(value, bool)


_WORDS = {
    "MissingValueCount": "missing values", "OutRangeValueCount": "outside the range of training",
    "OutListValueCount": "unseen in training", "DuplicatedRowCount": "repeated rows",
    "ConstantColumnsCount": "columns that are constant",
}  # fmt: skip


_SHARES = ("MissingValueCount", "OutRangeValueCount", "OutListValueCount")
_EXPECTED = {
    "Less or Equal": "at most ", "Less": "below ", "Greater or Equal": "at least ", "Greater": "above ", "Equal": "",
}  # fmt: skip


def _tests(told: Mapping[str, Any], sides: Sides) -> pd.DataFrame:
    names = {column.label: column.name for column in sides.columns}
    values = {metric["id"]: metric for metric in told["metrics"]}
    rows, judged = [], set()
    for test in told["tests"]:
        config = test["metric_config"]["params"]
        kind, label = str(config["type"]).rpartition(":")[2], config.get("column") or ""
        judged.add(test["metric_config"]["metric_id"])
        passed = str(getattr(test["status"], "value", test["status"])) in ("SUCCESS", "WARNING")
        found, expected = _compared(kind, test, values.get(test["metric_config"]["metric_id"], {}).get("value"))
        what = _WORDS.get(kind) or (f"drift, {config.get('method')}" if kind == "ValueDrift" else kind)
        if kind == "ValueDrift":
            found, expected = _drifted(values[test["metric_config"]["metric_id"]])[1:]
        rows.append((what, names.get(label, label), passed, found, expected))
    for key, metric in values.items():  # a drift has a threshold of its own, also where no tests were asked for
        if key not in judged and metric["config"]["type"].endswith(":ValueDrift"):
            passed, found, expected = _drifted(metric)
            label = metric["config"]["column"]
            rows.append((f"drift, {metric['config'].get('method')}", names.get(label, label), passed, found, expected))
    frame = pd.DataFrame(rows, columns=[*TESTS]).drop_duplicates().astype({"passed": object})
    return frame.sort_values("passed", key=lambda held: held.astype(bool), kind="stable").reset_index(drop=True)


def _drifted(metric: Mapping[str, Any]) -> tuple[bool, str, str]:
    score, threshold = float(metric["value"]), float(metric["config"]["threshold"])
    p_value = is_p_value(str(metric["config"]["method"]))
    passed = score >= threshold if p_value else score < threshold
    return passed, f"{score:.4g}", f"{'at least' if p_value else 'below'} {threshold:.4g}"


def _compared(kind: str, test: Mapping[str, Any], value: Any) -> tuple[str, str]:
    """What a test found and what it expected, out of the sentences that Evidently makes of them."""
    expected = " ".join(str(test["name"]).rpartition(": ")[2].split())
    meaning = next((words for words in _EXPECTED if expected.startswith(words)), "")
    threshold = (test.get("test_config") or {}).get("threshold")
    if meaning and _is_number(threshold):
        shown = f"{threshold:.2%}" if kind in _SHARES else f"{threshold:.4g}"
    else:
        shown = expected.removeprefix(meaning).strip()
    expected = inert(f"{_EXPECTED.get(meaning, '')}{shown}")
    if isinstance(value, Mapping) and {*value} == {"count", "share"}:
        return f"{float(value['count']):,.0f} ({float(value['share']):.2%})", expected
    if _is_number(value):
        return f"{float(value):.4g}", expected
    described = " ".join(str(test["description"]).split())
    found = re.search(r"Actual value (\S+)", described)
    return inert(found[1] if found else described), expected


def _arguments(text: str) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        return dict(json.loads(text))
    found = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.strip().isidentifier():
            msg = f"{part!r} is no key=value"
            raise ValueError(msg)
        try:
            found[key.strip()] = json.loads(value)
        except ValueError:
            found[key.strip()] = value
    return found

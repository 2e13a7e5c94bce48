"""What the gate that comes with nbdeploy measures, as functions: for its notebook, and for gates of your own."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nbdeploy.errors import GateError
from nbdeploy.signature import Signature
from nbdeploy.signature_values import Column

MAX_HARD_ROWS = 200
UNSEEN = ("no such value \N{SNOWMAN}", "", "x" * 10_000)
_ROUNDING = 1e-6  # of the largest value: what other batch sizes may change in single precision


# -- the same answers ---------------------------------------------------------------------------------------


def differing(ours: pd.Series, theirs: pd.Series, tolerance: float = 1e-9) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which answers are not the same, row by row: numbers within a tolerance, everything else to the letter."""
    if pd.api.types.is_numeric_dtype(ours) and pd.api.types.is_numeric_dtype(theirs):
        left, right = ours.astype(float), theirs.astype(float)
        return np.asarray(~np.isclose(left, right, rtol=tolerance, atol=tolerance, equal_nan=True))
    pairs = zip(ours, theirs, strict=True)
    return np.array([not _same(one, other, tolerance) for one, other in pairs], dtype=bool)


def unstable(asked: Sequence[pd.DataFrame], tolerance: float = 1e-9) -> int:
    """How many rows were answered in more than one way; the frames hold answers to the same rows, by their index.

    A number may move by a millionth of the largest one: in single precision another batch size adds up in another order.
    """
    first, *others = (frame.drop(columns=["prediction_id", "version"], errors="ignore") for frame in asked)
    moved = np.zeros(len(first), dtype=bool)
    for frame in others:
        again = frame.loc[first.index]
        for column in first.columns:
            ours, theirs = first[column], again[column]
            if pd.api.types.is_float_dtype(ours) and pd.api.types.is_float_dtype(theirs):
                x, z = ours.to_numpy(float), theirs.to_numpy(float)
                seen = np.abs(x[np.isfinite(x)])
                largest = float(seen.max()) if len(seen) else 0.0
                moved |= ~np.isclose(x, z, rtol=tolerance, atol=max(tolerance, _ROUNDING * largest), equal_nan=True)
            else:
                moved |= differing(ours, theirs, max(tolerance, _ROUNDING))
    return int(moved.sum())


def _same(ours: Any, theirs: Any, tolerance: float) -> bool:
    if isinstance(ours, (list, tuple, np.ndarray)):  # a model that answers each row with several values
        several = isinstance(theirs, (list, tuple, np.ndarray)) and len(ours) == len(theirs)
        return several and all(_same(one, other, tolerance) for one, other in zip(ours, theirs, strict=True))
    if isinstance(ours, dict):
        alike = isinstance(theirs, dict) and ours.keys() == theirs.keys()
        return alike and all(_same(ours[key], theirs[key], tolerance) for key in ours)
    if isinstance(ours, (float, np.floating)):
        if theirs is None or not isinstance(theirs, (int, float, np.number)):
            return theirs is None and not np.isfinite(ours)  # JSON has no NaN and no Infinity
        return bool(np.isclose(float(ours), float(theirs), rtol=tolerance, atol=tolerance, equal_nan=True))
    return str(ours) == str(theirs)


# -- good answers -------------------------------------------------------------------------------------------


def row_scores(task: str, truth: Any, predicted: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """How good each answer is; 1 is right, and more is better, so that rows can be compared and averaged.

    Of a class, whether it is the true one. Of a number, 1 less its error, in units of the mean error of who always
    answers the median: 0 is no better than that.
    """
    y, p = np.asarray(truth), np.asarray(predicted)
    if task != "regression":
        alike = y.dtype == p.dtype or (y.dtype.kind in "biuf" and p.dtype.kind in "biuf")
        same = y == p if alike else y.astype(str) == p.astype(str)
        return np.asarray(same, dtype=float)
    y, p = y.astype(float), p.astype(float)
    naive = float(np.mean(np.abs(y - np.median(y))))
    return np.asarray(1.0 - np.abs(y - p) / (naive or 1.0), dtype=float)


@dataclass(frozen=True)
class Interval:
    """A mean, and where it is with the wished confidence.

    Attributes
    ----------
    mean, low, high : float
    rows : int
        What it was measured on.
    """

    mean: float
    low: float
    high: float
    rows: int

    def __str__(self) -> str:
        return f"{self.mean:+.4g}, from {self.low:+.4g} to {self.high:+.4g} on {self.rows:,} rows"


def difference(ours: Any, theirs: Any, confidence: float = 0.95) -> Interval:
    """How much better `ours` is than `theirs` on the same rows: the mean of the differences, by Student's t.

    What both get right or wrong alike cancels out, so that it takes fewer rows than two scores side by side.

    Parameters
    ----------
    ours, theirs : array of numbers
        A score per row, of the same rows; see `row_scores`.
    confidence : float
        Of the interval, two-sided.
    """
    from scipy import stats

    paired = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    rows, mean = len(paired), float(paired.mean()) if len(paired) else math.nan
    if rows < 2:
        return Interval(mean, -math.inf, math.inf, rows)
    error = float(paired.std(ddof=1)) / math.sqrt(rows)
    if error == 0.0:  # the same answers throughout; Student's t of no spread is no number
        return Interval(mean, mean, mean, rows)
    low, high = stats.t.interval(confidence, rows - 1, loc=mean, scale=error)
    return Interval(mean, float(low), float(high), rows)


@dataclass(frozen=True)
class Slice:
    """The rows that share a value of one column, and their mean score."""

    column: str
    value: str
    score: float
    rows: int


def slices(column: pd.Series, scores: Any, min_rows: int = 50, bins: int = 4) -> list[Slice]:
    """The mean score of each value of a column, the worst first.

    A value with fewer rows than `min_rows` is left out: its score would be noise. Missing values are one more, and a
    number with many values is cut into `bins` of as many rows each.

    Parameters
    ----------
    scores : array of numbers
        One per row; see `row_scores`.
    """
    values = column.reset_index(drop=True)
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values) and values.nunique() > 20:
        values = pd.qcut(values.astype(float), bins, duplicates="drop")
    named = values.astype(object).where(values.notna(), "missing").map(str)
    frame = pd.DataFrame({"value": named, "score": np.asarray(scores, dtype=float)})
    told = frame.groupby("value")["score"].agg(["mean", "size"])
    kept = told[told["size"] >= min_rows].sort_values(["mean", "size"])
    return [
        Slice(str(column.name), str(value), float(mean), int(size))
        for value, mean, size in kept.itertuples(index=True, name=None)
    ]


def calibration_error(truth: Any, probabilities: Any, classes: Sequence[Any], bins: int = 10) -> float:
    """The expected calibration error of the class that is answered: how far its probability is from how often it is right.

    The rows are put into bins of about as many each by the probability of their answer; the gaps are averaged. 0 is
    perfect.
    """
    chances = np.asarray(probabilities, dtype=float)
    answered = np.array([str(one) for one in classes], dtype=object)[chances.argmax(axis=1)]
    right = answered == np.array([str(one) for one in np.asarray(truth)], dtype=object)
    confidence = chances.max(axis=1)
    # Rows of the same probability stay together, whichever order they came in.
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, bins + 1)))[1:-1] if len(confidence) else np.array([])
    part = np.searchsorted(edges, confidence, side="left")
    gaps = [
        abs(float(confidence[part == one].mean()) - float(right[part == one].mean())) * int((part == one).sum())
        for one in np.unique(part)
    ]
    return float(sum(gaps)) / max(1, len(confidence))


# -- under load ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """What several clients at once have seen.

    Attributes
    ----------
    milliseconds : array
        Of each request that was answered.
    failures : list of str
        What went wrong with the others.
    """

    milliseconds: np.ndarray[Any, np.dtype[np.float64]]
    failures: list[str]

    def quantile(self, share: float) -> float:
        """Milliseconds within which this share of the requests was answered; NaN where none was."""
        return float(np.quantile(self.milliseconds, share)) if len(self.milliseconds) else math.nan


def load(ask: Callable[[int], None], clients: int = 4, requests: int = 30) -> Load:
    """Ask from several threads at once.

    Parameters
    ----------
    ask : callable
        Sends the request with this number, and raises where it fails.
    clients, requests : int
        How many threads, and how many requests of each.
    """
    taken: list[float] = []
    failures: list[str] = []

    def client(first: int) -> None:
        for number in range(first, clients * requests, clients):
            begin = time.perf_counter()
            try:
                ask(number)
            except Exception as error:  # noqa: BLE001 - whatever it is, the request has failed
                failures.append(f"{type(error).__name__}: {error}")
            else:
                taken.append((time.perf_counter() - begin) * 1000)

    threads = [threading.Thread(target=client, args=(first,)) for first in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Load(np.array(taken), failures)


# -- hard rows ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hard:
    """A row that fits the signature and is unlike those of training.

    Attributes
    ----------
    kind : str
        ``nulls``, ``unseen categories`` or ``extreme values``.
    about : str
        Which column, and what stands there.
    """

    kind: str
    about: str
    record: Mapping[str, Any]


def hard_rows(signature: Signature, record: Mapping[str, Any], reach: float = 10.0) -> list[Hard]:
    """Rows that a service has to cope with: `record` with one column at a time, and then all, made hard.

    Nulls where the signature allows them; categories and texts that training has not seen; numbers and dates beyond
    the range of training by `reach` times its width.
    """
    rows = [
        Hard(kind, f"{column.name} {what}", {**record, column.name: value})
        for column in signature.columns
        for kind, what, value in _hard_values(column, reach)
    ][:MAX_HARD_ROWS]
    nullable = [column.name for column in signature.columns if column.nullable and not column.shape]
    if len(nullable) > 1:
        rows.append(Hard("nulls", "every column that may be null", {**record, **dict.fromkeys(nullable)}))
    return rows


def _hard_values(column: Column, reach: float) -> Iterator[tuple[str, str, Any]]:
    if column.shape:
        return
    if column.nullable:
        yield "nulls", "null", None
    if column.kind == "string" or (column.kind == "category" and not _numeric(column.categories)):
        for value, what in zip(UNSEEN, ("unseen", "empty", "of 10,000 characters"), strict=True):
            yield "unseen categories", what, value
    elif column.kind in ("int", "float"):
        yield from _far_numbers(column, reach)
    elif column.kind in ("datetime", "date") and isinstance(column.minimum, str) and isinstance(column.maximum, str):
        yield from _far_moments(column, column.minimum, column.maximum, reach)


def _far_numbers(column: Column, reach: float) -> Iterator[tuple[str, str, Any]]:
    low, high = column.minimum, column.maximum
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)):
        return
    width = float(high) - float(low) or max(1.0, abs(float(high)))
    for what, value in (("far below", low - reach * width), ("far above", high + reach * width)):
        if column.kind == "float":
            if math.isfinite(value):
                yield "extreme values", what, float(value)
            continue
        try:
            limits = np.iinfo(column.dtype.lower())
        except ValueError:  # an extension type of another name
            limits = np.iinfo("int32")
        yield "extreme values", what, int(min(max(value, int(limits.min)), int(limits.max), key=float))


def _far_moments(column: Column, low: str, high: str, reach: float) -> Iterator[tuple[str, str, Any]]:
    first, last = pd.Timestamp(low), pd.Timestamp(high)
    width = max(last - first, pd.Timedelta(days=1))
    years = pd.Timedelta(days=min(reach * width / pd.Timedelta(days=1), 100 * 365.0))
    for what, value in (("far before", first - years), ("far after", last + years)):
        told = value.floor("s")
        yield "extreme values", what, told.date().isoformat() if column.kind == "date" else told.isoformat()


def _numeric(categories: Sequence[Any] | None) -> bool:
    return bool(categories) and all(isinstance(one, (int, float)) for one in categories or ())


def finite(answer: Any) -> bool:
    """Whether an answer, as JSON has it, is one: no null, and no number that is none, at any depth."""
    if isinstance(answer, Mapping):
        return all(map(finite, answer.values()))
    if isinstance(answer, (list, tuple)):
        return all(map(finite, answer))
    return answer is not None and not (isinstance(answer, float) and not math.isfinite(answer))


# -- scores by name -----------------------------------------------------------------------------------------

DEFAULTS = {"classification": "accuracy", "regression": "r2"}


def scorers() -> dict[str, Callable[[Any, Any], float]]:
    """The scores that need answers alone, by scikit-learn's names; more is better."""
    from sklearn import metrics

    return {
        "accuracy": metrics.accuracy_score,
        "balanced_accuracy": metrics.balanced_accuracy_score,
        "f1_macro": lambda y, p: metrics.f1_score(y, p, average="macro"),
        "r2": metrics.r2_score,
        "neg_mean_absolute_error": lambda y, p: -metrics.mean_absolute_error(y, p),
        "neg_root_mean_squared_error": lambda y, p: -metrics.root_mean_squared_error(y, p),
    }


def score(metric: str, truth: Any, predicted: Any) -> float:
    """One of `scorers`.

    Raises
    ------
    GateError
        There is no such score.
    """
    known = scorers()
    if metric not in known:
        msg = f"unknown metric {metric[:60]!r}"
        raise GateError(msg, f"Known are {', '.join([*known, 'roc_auc'])}.")
    return float(known[metric](truth, predicted))


def ranking(truth: Any, probabilities: Any, classes: Sequence[Any]) -> float:
    """The area under the ROC curve; of several classes, each against the rest."""
    from sklearn import metrics

    chances = np.asarray(probabilities, dtype=float)
    if chances.shape[1] > 2:
        return float(metrics.roc_auc_score(truth, chances, multi_class="ovr", labels=list(classes)))
    return float(metrics.roc_auc_score(np.asarray(truth) == classes[-1], chances[:, -1]))

"""Scores of answers with intervals, and whether they have changed: functions of arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from nbdeploy.answer_metrics import Metric, Values
from nbdeploy.release_statistics import CONFIDENCE, MIN_ROWS, Interval, proportion

FEW = 10  # labels with fewer of which no interval is told, but of a share of hits


def scored(metric: Metric, truth: Values, answers: Values) -> Interval:
    """A score with its interval for 95 %; NaN for what these rows do not tell.

    Accuracy has Wilson's interval. Any other metric has that of the delta method: the score varies as the mean of what
    each row adds to it (F. R. Hampel, 1974), which Student's t turns into an interval. Fewer than ten rows have none.

    Parameters
    ----------
    truth, answers : array
        Classes as 0, 1, 2 …, for ``auc`` the scores of the class that is true, or numbers.
    """
    rows = len(truth)
    if not rows:
        return Interval(math.nan, math.nan, math.nan)
    if metric.name == "accuracy":
        return proportion(int((truth == answers).sum()), rows)
    if not _is_defined(metric, truth):
        return Interval(math.nan, math.nan, math.nan)
    score = metric.score(truth, answers)
    if rows < FEW or not math.isfinite(score):
        return Interval(score, math.nan, math.nan)
    width = float(stats.t.ppf((1 + CONFIDENCE) / 2, rows - 1)) * math.sqrt(spread(metric, truth, answers) / rows)
    least, most = (0.0, 1.0) if metric.points else (-math.inf if metric.name == "r2" else 0.0, math.inf)
    return Interval(score, max(least, score - width), min(1.0 if metric.name == "r2" else most, score + width))


def spread(metric: Metric, truth: Values, answers: Values) -> float:
    """The variance of a score, times the rows. Rows that are all right do not prove that all will be."""
    found = float(np.var(_INFLUENCES[metric.name](truth, answers)))
    if metric.points:
        one_more = 1 / (len(truth) + 2)
        found = max(found, one_more * (1 - one_more))
    return found


def _is_defined(metric: Metric, truth: Values) -> bool:
    return metric.name not in ("auc", "r2") or bool(np.ptp(truth.astype(float)) > 0)


# -- what each row adds to a score --------------------------------------------------------------------------


def _accuracy(truth: Values, answers: Values) -> Values:
    return np.asarray(truth == answers, dtype=float)


def _balanced(truth: Values, answers: Values) -> Values:
    classes, places, counts = np.unique(truth, return_inverse=True, return_counts=True)
    right = (truth == answers).astype(float)
    recalls = np.bincount(places, right) / counts
    return np.asarray((right - recalls[places]) * len(truth) / counts[places] / len(classes))


def _f1(truth: Values, answers: Values) -> Values:
    classes, places = np.unique(np.concatenate([truth, answers]), return_inverse=True)
    true, answered = np.split(places, 2)
    both = np.bincount(places) / len(truth)
    hits = np.bincount(true[true == answered], minlength=len(classes)) / len(truth)
    each = 2 * hits / both**2  # its F1, by how often it is true or answered
    return np.asarray(((true == answered) * 2 / both[true] - each[true] - each[answered]) / len(classes))


def _auc(truth: Values, scores: Values) -> Values:
    from nbdeploy.answer_metrics import METRICS

    influence = METRICS["auc"].influence
    assert influence is not None
    return influence(truth, scores)


def _rmse(truth: Values, answers: Values) -> Values:
    squares = (truth - answers) ** 2
    return np.asarray(squares / (2 * math.sqrt(squares.mean()) or 1.0))


def _r2(truth: Values, answers: Values) -> Values:
    squares, around = (truth - answers) ** 2, (truth - truth.mean()) ** 2
    return np.asarray((squares.mean() / around.mean() * around - squares) / around.mean())


_INFLUENCES: dict[str, Callable[[Values, Values], Values]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced,
    "f1": _f1,
    "auc": _auc,
    "mae": lambda truth, answers: np.abs(truth - answers),
    "rmse": _rmse,
    "r2": _r2,
}


# -- a change -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """Where a score has changed.

    Attributes
    ----------
    place : int
        The first window after the change, among those that were given.
    before, after : Interval
        The score of all rows before it, and of all from it on.
    """

    place: int
    before: Interval
    after: Interval


def changed(metric: Metric, windows: Sequence[tuple[Values, Values]]) -> Change | None:
    """Where the score of windows, in the order of time, has changed most; None where that may be chance.

    The windows are cut in two wherever 50 labels are on either side, and the cut with the largest difference counts: it
    has to be significant after Bonferroni's correction for the number of cuts. Where windows of one side differ among
    themselves more than their rows explain, as weekdays do, the difference has to be as much larger.
    """
    sizes = np.array([len(truth) for truth, _ in windows], dtype=float)
    scores = np.array([scored(metric, *window).estimate for window in windows])
    sizes[~np.isfinite(scores)] = 0
    scores = np.nan_to_num(scores)
    before, total = np.cumsum(sizes)[:-1], sizes.sum()
    cuts = np.flatnonzero((before >= MIN_ROWS) & (total - before >= MIN_ROWS) & (sizes[1:] > 0))
    if not len(cuts):
        return None
    truth, answers = (np.concatenate([window[side] for window in windows]) for side in (0, 1))
    if not _is_defined(metric, truth):
        return None
    each = spread(metric, truth, answers)
    sums = np.cumsum(sizes * scores)
    left = sums[cuts] / before[cuts]
    right = (sums[-1] - sums[cuts]) / (total - before[cuts])
    away = np.abs(right - left) / np.sqrt((each or 1e-300) * (1 / before[cuts] + 1 / (total - before[cuts])))
    best = int(np.argmax(away))
    place = int(cuts[best]) + 1
    around = np.where(np.arange(len(sizes)) < place, left[best], right[best])
    freedom = int((sizes > 0).sum()) - 2
    uneven = float((sizes * (scores - around) ** 2).sum()) / (each or 1e-300) / freedom if freedom > 0 else 1.0
    chance = 1 - (1 - CONFIDENCE) / 2 / len(cuts)
    least = float(stats.t.ppf(chance, freedom) if uneven > 1 and freedom > 0 else stats.norm.ppf(chance))
    if away[best] / math.sqrt(max(1.0, uneven)) <= least:
        return None
    sides = [
        [np.concatenate([w[side] for w in part]) for side in (0, 1)] for part in (windows[:place], windows[place:])
    ]
    return Change(place, scored(metric, *sides[0]), scored(metric, *sides[1]))

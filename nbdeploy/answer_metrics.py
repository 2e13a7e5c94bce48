"""How good answers are: the metrics in which versions are compared, and measured over time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from nbdeploy.errors import CompareError, NbdeployError, did_you_mean

Values = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Metric:
    """One way to score answers.

    Attributes
    ----------
    task : str
        For which it is.
    score : callable
        Of the truths and the answers, arrays of the same length.
    each : callable, optional
        The score is the mean of what this gives for each row.
    influence : callable, optional
        How much each row moves the score away from its expectation: the score varies as the mean of this does.
    larger_is_better, points : bool
        `points`: it is a share, and differences of it are told in percentage points.
    """

    name: str
    words: str
    task: str
    score: Callable[[Values, Values], float]
    each: Callable[[Values, Values], Values] | None = None
    influence: Callable[[Values, Values], Values] | None = None
    larger_is_better: bool = True
    points: bool = False


def _right(truth: Values, answers: Values) -> Values:
    return np.asarray(truth == answers, dtype=float)


def _off(truth: Values, answers: Values) -> Values:
    return np.asarray(np.abs(truth - answers), dtype=float)


def _counts(truth: Values, answers: Values) -> tuple[Values, Values, Values]:
    """Of each class, how often it was right, true and answered. Classes are 0, 1, 2 …."""
    size = int(max(truth.max(), answers.max())) + 1
    hits = np.bincount(truth[truth == answers], minlength=size)
    return hits, np.bincount(truth, minlength=size), np.bincount(answers, minlength=size)


def _balanced(truth: Values, answers: Values) -> float:
    hits, true, _ = _counts(truth, answers)
    return float(np.mean(hits[true > 0] / true[true > 0]))


def _f1(truth: Values, answers: Values) -> float:
    hits, true, answered = _counts(truth, answers)
    seen = true + answered > 0
    return float(np.mean(2 * hits[seen] / (true + answered)[seen]))


def _auc(truth: Values, scores: Values) -> float:
    # The share of pairs in the right order: what Mann and Whitney count.
    positive = truth.astype(bool)
    ranks, several = stats.rankdata(scores)[positive].sum(), int(positive.sum())
    return float((ranks - several * (several + 1) / 2) / (several * (len(truth) - several)))


def _auc_influence(truth: Values, scores: Values) -> Values:
    # E. R. DeLong, D. M. DeLong and D. L. Clarke-Pearson (1988): what share of the other class each row is right of;
    # by ranks, as X. Sun and W. Xu (2014) do.
    found = stats.rankdata(scores)
    positive = truth.astype(bool)
    several, others = int(positive.sum()), int((~positive).sum())
    found[positive] = (found[positive] - stats.rankdata(scores[positive])) / others
    found[~positive] = 1 - (found[~positive] - stats.rankdata(scores[~positive])) / several
    return np.asarray((found - found[positive].mean()) * len(truth) / np.where(positive, several, others))


def _rmse(truth: Values, answers: Values) -> float:
    return float(np.sqrt(np.mean((truth - answers) ** 2)))


def _r2(truth: Values, answers: Values) -> float:
    spread = float(np.sum((truth - truth.mean()) ** 2))
    return 1 - float(np.sum((truth - answers) ** 2)) / spread if spread else float("nan")


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "accuracy", "classification", lambda y, p: float(_right(y, p).mean()), _right, points=True),
        Metric("balanced_accuracy", "balanced accuracy", "classification", _balanced, points=True),
        Metric("f1", "macro F1", "classification", _f1, points=True),
        Metric("auc", "area under the ROC curve", "classification", _auc, influence=_auc_influence, points=True),
        Metric(
            "mae", "mean absolute error", "regression", lambda y, p: float(_off(y, p).mean()), _off,
            larger_is_better=False,
        ),
        Metric("rmse", "root mean squared error", "regression", _rmse, larger_is_better=False),
        Metric("r2", "R²", "regression", _r2),
    )
}  # fmt: skip
# As the default gate and scikit-learn's scorers call them.
_OTHER_NAMES = {
    "roc_auc": "auc", "f1_macro": "f1", "neg_mean_absolute_error": "mae", "neg_root_mean_squared_error": "rmse",
}  # fmt: skip
DEFAULTS = {"classification": "accuracy", "regression": "mae"}


# What a gate calls them, and whether it has them negated, so that more is better.
GATE_NAMES = {
    "accuracy": {"accuracy": 1}, "balanced_accuracy": {"balanced_accuracy": 1}, "f1": {"f1_macro": 1, "f1": 1},
    "auc": {"roc_auc": 1, "auc": 1}, "r2": {"r2": 1}, "mae": {"neg_mean_absolute_error": -1, "mae": 1},
    "rmse": {"neg_root_mean_squared_error": -1, "rmse": 1},
}  # fmt: skip


def metric_of(name: str | None, task: str, error: type[NbdeployError] = CompareError) -> Metric:
    """The metric of that name, or the usual one of a task.

    Raises
    ------
    CompareError, or whatever `error` is
        There is none of that name, or it does not fit the task.
    """
    found = METRICS.get(_OTHER_NAMES.get(name, name) if name else DEFAULTS[task])
    fitting = [metric.name for metric in METRICS.values() if metric.task == task]
    if found is None:
        msg = f"{name!r:.80} is no metric"
        raise error(msg, did_you_mean(str(name), fitting))
    if found.task != task:
        msg = f"{found.name} is a metric for {found.task}, and this model does {task}"
        raise error(msg, f"Use one of {', '.join(fitting)}.")
    return found

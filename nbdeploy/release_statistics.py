"""What the answers of two versions say about the versions: differences with intervals, and how sure they are.

Everything here is a function of arrays. ``live`` comes first, ``candidate`` second, and a difference is candidate
minus live. Intervals are for 95 % unless told otherwise.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from nbdeploy.answer_metrics import Metric, Values
from nbdeploy.errors import CompareError

CONFIDENCE = 0.95
MIN_ROWS = 50  # of each version: with fewer its spread is not known, and nothing is said
RESAMPLES = 999
# At how many rows of each version (or of pairs) the interval that holds at every look is the narrowest.
_TUNED_FOR = 500


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval that holds it with the confidence that was asked for."""

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Sequential(Interval):
    """An interval that holds at every look: with this confidence the truth never leaves it, however often one looks.

    Attributes
    ----------
    p : float
        Below 0.05 exactly where the interval for 95 % excludes zero. As valid at every look as the interval.
    """

    p: float


@dataclass(frozen=True)
class Sample:
    """What is needed of one version's rows to tell how sure its score is.

    Attributes
    ----------
    spread : float
        The variance of the score, times the rows.
    """

    score: float
    rows: int
    spread: float


@dataclass(frozen=True)
class Difference:
    """Candidate minus live in one metric.

    Attributes
    ----------
    interval : Interval
        For a single look at the rows.
    sequential : Sequential
        For as many looks as one likes.
    rows : tuple of int
        Of the live version and of the candidate.
    """

    metric: str
    live: float
    candidate: float
    interval: Interval
    sequential: Sequential
    rows: tuple[int, int]


@dataclass(frozen=True)
class Distance:
    """How far two sets of answers are apart.

    Attributes
    ----------
    measure : str
        What `effect` is.
    effect : float
        Of numbers, Wasserstein's distance in standard deviations of the live answers. Of categories, Cramér's V as it
        would be with as many rows of either version: a small canary looks no more alike than a large one.
    size : str
        ``none``, ``small``, ``medium`` or ``large``, by Cohen's conventions.
    test : str
        What `p` is of; for a single look.
    """

    measure: str
    effect: float
    size: str
    test: str
    p: float


# -- differences --------------------------------------------------------------------------------------------


def proportion(hits: int, rows: int, confidence: float = CONFIDENCE) -> Interval:
    """A share with Wilson's score interval."""
    if not rows:
        return Interval(math.nan, 0.0, 1.0)
    found = stats.binomtest(hits, rows).proportion_ci(confidence, method="wilson")
    return Interval(hits / rows, float(found.low), float(found.high))


def proportions(hits: tuple[int, int], rows: tuple[int, int], confidence: float = CONFIDENCE) -> Interval:
    """The difference of two independent shares, with Newcombe's hybrid score interval.

    R. G. Newcombe (1998), Interval estimation for the difference between independent proportions, method 10.
    """
    live, candidate = (proportion(h, n, confidence) for h, n in zip(hits, rows, strict=True))
    gap = candidate.estimate - live.estimate
    below = math.hypot(candidate.estimate - candidate.low, live.high - live.estimate)
    above = math.hypot(candidate.high - candidate.estimate, live.estimate - live.low)
    return Interval(gap, gap - below, gap + above)


def difference(
    metric: Metric,
    live: tuple[Values, Values],
    candidate: tuple[Values, Values],
    *,
    paired: bool = False,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Difference:
    """How much more the candidate has of a metric.

    Accuracy has Newcombe's interval, a mean Welch's, pairs Student's, the area under the curve DeLong's, and any other
    metric a percentile bootstrap. It is the same at every call.

    Parameters
    ----------
    live, candidate : tuple of array
        The truths and the answers: classes as 0, 1, 2 …, for ``auc`` the scores of the class that is true.
    paired : bool
        Both answered the same rows, in the same order.

    Raises
    ------
    CompareError
        The metric is not defined on these rows.
    """
    _must_be_defined(metric, live, candidate)
    scores = metric.score(*live), metric.score(*candidate)
    rows = len(live[0]), len(candidate[0])
    if metric.influence is not None:
        interval, spreads = _by_influence(metric, live, candidate, paired=paired, confidence=confidence)
    elif metric.each is None:
        interval, spreads = _bootstrapped(metric, live, candidate, paired=paired, confidence=confidence, seed=seed)
    else:
        each = metric.each(*live), metric.each(*candidate)
        shares = metric.points
        if paired:
            gaps = each[1] - each[0]
            interval = _mean_of(gaps, confidence)
            spreads = (_spread(gaps, shares=shares, least=-1.0),)
        else:
            interval = _mean_difference(*each, confidence, shares=shares)
            spreads = tuple(_spread(values, shares=shares) for values in each)
    if paired:
        sequential = at_every_look(interval.estimate, spreads[0] / rows[0], rows[0], confidence)
    else:
        sequential = between(Sample(scores[0], rows[0], spreads[0]), Sample(scores[1], rows[1], spreads[1]), confidence)
    return Difference(metric.name, *scores, interval, sequential, rows)


def _must_be_defined(metric: Metric, *sides: tuple[Values, Values]) -> None:
    for truth, _ in sides:
        if metric.name in ("auc", "r2") and len(np.unique(truth)) < 2:
            msg = f"{metric.words} is not defined where all labels are the same"
            raise CompareError(msg, "Wait for other labels, or choose another metric.")


def _mean_of(values: Values, confidence: float) -> Interval:
    if not np.ptp(values):  # Student's interval would warn, and have no width all the same
        return Interval(float(values[0]), float(values[0]), float(values[0]))
    found = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    return Interval(float(values.mean()), float(found.low), float(found.high))


def _mean_difference(live: Values, candidate: Values, confidence: float, *, shares: bool) -> Interval:
    if shares:
        hits = int(live.sum()), int(candidate.sum())
        return proportions(hits, (len(live), len(candidate)), confidence)
    gap = float(candidate.mean() - live.mean())
    if not np.ptp(live) and not np.ptp(candidate):
        return Interval(gap, gap, gap)
    found = stats.ttest_ind(candidate, live, equal_var=False).confidence_interval(confidence)
    return Interval(gap, float(found.low), float(found.high))


def _spread(values: Values, *, shares: bool, least: float = 0.0) -> float:
    """The variance; of shares with one more row at either end, since no rows that agree prove that all will."""
    if shares:
        values = np.concatenate([values, [least, 1.0]])
        return float(values.var())
    return float(values.var(ddof=1))


def _by_influence(
    metric: Metric, live: tuple[Values, Values], candidate: tuple[Values, Values], *, paired: bool, confidence: float
) -> tuple[Interval, tuple[float, ...]]:  # fmt: skip
    assert metric.influence is not None
    was, now = metric.influence(*live), metric.influence(*candidate)
    spreads = (float((now - was).var()),) if paired else (float(was.var()), float(now.var()))
    variance = sum(spread / rows for spread, rows in zip(spreads, (len(was), len(now)), strict=False))
    gap = metric.score(*candidate) - metric.score(*live)
    width = float(stats.norm.ppf((1 + confidence) / 2)) * math.sqrt(variance)
    return Interval(gap, gap - width, gap + width), spreads


def _bootstrapped(
    metric: Metric, live: tuple[Values, Values], candidate: tuple[Values, Values], *, paired: bool, confidence: float,
    seed: int,
) -> tuple[Interval, tuple[float, ...]]:  # fmt: skip
    def scores(here: Values, there: Values | None = None) -> tuple[float, float, float]:
        there = here if there is None else there
        was, now = metric.score(live[0][here], live[1][here]), metric.score(candidate[0][there], candidate[1][there])
        return now - was, was, now

    sizes = [len(live[0])] if paired else [len(live[0]), len(candidate[0])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        made = stats.bootstrap(
            [np.arange(size) for size in sizes], scores, vectorized=False, method="percentile",
            confidence_level=confidence, n_resamples=max(199, min(RESAMPLES, 40_000_000 // sum(sizes))),
            batch=max(1, 2_000_000 // sum(sizes)), rng=np.random.default_rng(seed),
        )  # fmt: skip
    found = made.bootstrap_distribution.reshape(3, -1)
    gaps, *drawn = found[:, np.isfinite(found).all(axis=0)]  # drawn labels that are all the same have no R²
    ends = np.quantile(gaps, [(1 - confidence) / 2, (1 + confidence) / 2])
    interval = Interval(metric.score(*candidate) - metric.score(*live), *map(float, ends))
    if paired:
        return interval, (float(gaps.var()) * sizes[0],)
    return interval, tuple(float(each.var()) * size for each, size in zip(drawn, sizes, strict=True))


# -- at every look ------------------------------------------------------------------------------------------


def between(live: Sample, candidate: Sample, confidence: float = CONFIDENCE) -> Sequential:
    """The difference of two independent scores, with an interval that holds at every look.

    Of each version the larger counts: its own spread or that of both together. Few rows with a long tail look too
    alike, and would raise alarms; where the versions are equal, both together know better.
    """
    rows = live.rows + candidate.rows
    both = (live.spread * live.rows + candidate.spread * candidate.rows) / rows
    variance = max(live.spread, both) / live.rows + max(candidate.spread, both) / candidate.rows
    return at_every_look(
        candidate.score - live.score, variance, live.rows * candidate.rows / rows * 2, confidence
    )  # fmt: skip


def at_every_look(estimate: float, variance: float, rows: float, confidence: float = CONFIDENCE) -> Sequential:
    """An interval around an estimate that may be looked at after every row, with the p-value that belongs to it.

    It is the asymptotic confidence sequence of I. Waudby-Smith, D. Arbour, R. Sinha, E. H. Kennedy and A. Ramdas
    (2024), Time-uniform central limit theory and asymptotic confidence sequences, equation 6: H. Robbins' normal
    mixture (1970) with estimated variance. With Gaussian rows of known variance the chance that it ever excludes the
    truth is at most ``1 - confidence``; with others that holds in the limit, hence `MIN_ROWS`. A difference of two
    means is a Brownian motion in the time ``1 / variance``, whatever the shares of traffic, so it holds for it too.

    Parameters
    ----------
    rows : float
        By which `variance` shrank: it only says for how many rows the interval is narrowest.
    """
    if not variance > 0:
        return Sequential(estimate, estimate, estimate, 1.0 if estimate == 0 else 0.0)
    alpha = 1 - confidence
    tuned = -2 * math.log(alpha)
    mixture = rows * (tuned + math.log(tuned + 1)) / _TUNED_FOR  # the variance of the normal mixture, in `variance`
    shrunk, deviation = math.log1p(mixture), math.sqrt(variance)
    width = deviation * math.sqrt((1 + mixture) / mixture * (tuned + shrunk))
    away = estimate / deviation
    evidence = mixture / (1 + mixture) * away * away / 2 - shrunk / 2
    return Sequential(estimate, estimate - width, estimate + width, math.exp(-max(0.0, evidence)))


# -- distances ----------------------------------------------------------------------------------------------


def distance_of_numbers(live: Values, candidate: Values) -> Distance:
    """How far apart the distributions of two sets of numbers are."""
    spread = float(live.std()) or float(candidate.std())
    effect = float(stats.wasserstein_distance(live, candidate))
    p = float(stats.ks_2samp(live, candidate, method="asymp").pvalue)
    return _sized("Wasserstein's distance, in standard deviations", effect / (spread or 1.0), (0.1, 0.5, 0.8),
                  "Kolmogorov-Smirnov", p)  # fmt: skip


def distance_of_categories(live: Sequence[Any], candidate: Sequence[Any]) -> Distance:
    """How far apart the frequencies of two sets of categories are. Those with few rows count as one."""
    codes = {value: code for code, value in enumerate(dict.fromkeys([*live, *candidate]))}
    table = np.array([np.bincount([codes[v] for v in side], minlength=len(codes)) for side in (live, candidate)])
    expected = table.sum(axis=0) * table.sum(axis=1).min() / table.sum()
    if (few := expected < 5).sum() > 1:
        table = np.column_stack([table[:, ~few], table[:, few].sum(axis=1)])
    if table.shape[1] < 2:
        return Distance("Cramér's V", 0.0, "none", "chi-squared", 1.0)
    shares = table / table.sum(axis=1, keepdims=True)
    effect = math.sqrt(float(np.sum((shares[1] - shares[0]) ** 2 / (shares[1] + shares[0]))) / 2)
    p = float(stats.chi2_contingency(table, correction=False).pvalue)
    return _sized("Cramér's V", effect, (0.1, 0.3, 0.5), "chi-squared", p)


def _sized(measure: str, effect: float, bounds: tuple[float, float, float], test: str, p: float) -> Distance:
    # What chance explains is none, whatever it measures.
    place = sum(effect >= bound for bound in bounds) if p < 1 - CONFIDENCE else 0
    return Distance(measure, effect, ("none", "small", "medium", "large")[place], test, p)


# -- row by row ---------------------------------------------------------------------------------------------


def agreement(live: Values, candidate: Values, tolerance: float | None = None) -> tuple[Interval, Values]:
    """The share of rows whose two answers agree, with Wilson's interval; and how far the answers of each are apart.

    Parameters
    ----------
    tolerance : float or None
        Numbers agree that differ by no more. None: they are categories, and differ by 0 or 1.
    """
    apart = (live != candidate).astype(float) if tolerance is None else np.abs(candidate - live)
    return proportion(int((apart <= (tolerance or 0.0)).sum()), len(apart)), apart


def most_different(apart: Values, at_most: int) -> list[int]:
    """The places of the rows that are furthest apart, those first; none that are not apart at all."""
    order = np.argsort(-apart, kind="stable")[:at_most]
    return [int(place) for place in order if apart[place] > 0]

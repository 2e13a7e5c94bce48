"""What the labels say about two versions: which is better, by how much, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from nbdeploy import plot, release_statistics
from nbdeploy.answer_metrics import Metric, Values, metric_of
from nbdeploy.comparison_sides import Answers, Lines, Subject, category, count, is_number, joined, numbers_of, percent
from nbdeploy.errors import CompareError
from nbdeploy.plot import short
from nbdeploy.release_statistics import MIN_ROWS, Difference, Sequential

LOOKS = 60  # of the picture over time

# What less and more of a metric is; {} is by how much.
_WORDS = {
    "accuracy": ("is right {} less often", "is right {} more often"),
    "mae": ("is {} nearer to the truth on average", "is {} further from the truth on average"),
}


@dataclass(frozen=True)
class Measured:
    """What the labels say.

    Attributes
    ----------
    sentence : str
        Without an end. It tells also why the labels say nothing.
    difference : Difference or None
        None where they say nothing.
    plot : callable
        Draws the picture, '' where there is none.
    """

    sentence: str
    metric: Metric
    difference: Difference | None = None
    plot: Callable[[], str] = str

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``undecided``, as valid at every look as the interval that it is told by."""
        if self.difference is None or not self.difference.sequential.excludes_zero:
            return "undecided"
        more = self.difference.sequential.low > 0
        return "better" if more == self.metric.larger_is_better else "worse"


def measured(about: Subject, lines: Lines, classes: Sequence[Any] | None, wanted: str | None) -> Measured | None:
    """What the labels say, with its lines; None where answers have several values, which no metric here is for.

    Raises
    ------
    CompareError
        The wanted metric cannot be measured, or the labels are of something else.
    """
    if not about.task:
        if wanted:
            msg = f"{wanted!r:.80} cannot be measured: an answer of {about.name} is no single value"
            raise CompareError(msg, "Leave out the metric; the answers are compared all the same.")
        return None
    metric = metric_of(wanted, about.task)
    live, candidate = (_labelled(side, metric) for side in about.sides)
    if about.shadow:
        live, candidate = joined(live, candidate)
    few = min((candidate, live), key=len)
    if not len(live) and not len(candidate):
        if wanted:
            what = "no labelled row with probabilities" if metric.name == "auc" else "no label"
            msg = f"{metric.name} cannot be measured: {about.name} has {what} in this window"
            raise CompareError(msg, f"Say what turned out to be true: nbdeploy.label({about.name!r}, ...).")
        return Measured(f"nothing is labelled yet, so whether {about.candidate.version} is better is not known", metric)
    if len(few) < MIN_ROWS:
        told = f"{count(len(few), 'prediction')} of {few.version} {'is' if len(few) == 1 else 'are'} labelled"
        return Measured(f"{told}, too few to say which version is better: {MIN_ROWS} are needed", metric)
    arrays = _arrays(about.name, metric, (live, candidate), classes)
    found = release_statistics.difference(metric, arrays[0], arrays[1], paired=about.shadow)
    _add(lines, metric, found, paired=about.shadow)
    rows = len(live) if about.shadow else len(live) + len(candidate)
    sentence = f"{_words(metric, found, about.versions)} on {count(rows, 'labelled prediction')}"
    drawn = partial(_over_time, about, metric, (live.times, candidate.times), arrays)
    return Measured(sentence, metric, found, drawn if metric.each is not None else str)


def _labelled(side: Answers, metric: Metric) -> Answers:
    kept = [i for i, (label, said) in enumerate(zip(side.labels, side.predictions, strict=True))
            if label is not None and category(said) != ""]  # fmt: skip
    if metric.name == "auc":
        kept = [i for i in kept if side.scores is not None and not math.isnan(side.scores[i])]
    elif metric.task == "regression":
        kept = [i for i in kept if is_number(side.predictions[i]) and not _is_none(side.labels[i])]
    return side.at(kept)


def _is_none(label: Any) -> bool:
    """Whether a label is a number and none to reckon with; of what is no number there is a word to say."""
    return not isinstance(label, (str, bool)) and not is_number(label)


def _arrays(
    name: str, metric: Metric, sides: tuple[Answers, Answers], classes: Sequence[Any] | None
) -> list[tuple[Values, Values]]:
    """Truths and answers of each side, as `release_statistics.difference` takes them."""
    labels = [label for side in sides for label in side.labels]
    if metric.task == "regression":
        if any(isinstance(label, (str, bool)) for label in labels):
            odd = next(label for label in labels if isinstance(label, (str, bool)))
            msg = f"{metric.name} needs numbers, and {name} has labels like {odd!r:.40}"
            raise CompareError(msg, f"Label its predictions with numbers: nbdeploy.label({name!r}, ...).")
        return [(numbers_of(side.labels), numbers_of(side.predictions)) for side in sides]
    known = {*(classes or ()), *(value for side in sides for value in side.predictions)}
    if known.isdisjoint(labels):
        shown = ", ".join(sorted(f"{value!r:.20}" for value in known)[:4])
        msg = f"no label of {name} is one of its answers: its labels are like {labels[0]!r:.40}"
        raise CompareError(msg, f"Label its predictions with what it answers: {shown}.")
    if metric.name == "auc":
        if classes is None or len(classes) != 2:
            msg = f"auc is for two classes, and {name} has {len(classes or ())}"
            raise CompareError(msg, "Use accuracy, balanced_accuracy or f1.")
        return [(np.array([label == classes[-1] for label in side.labels]), np.asarray(side.scores)) for side in sides]
    codes = {value: code for code, value in enumerate(dict.fromkeys([*known, *labels]))}
    return [(np.array([codes[v] for v in side.labels]), np.array([codes[v] for v in side.predictions]))
            for side in sides]  # fmt: skip


def _words(metric: Metric, found: Difference, versions: tuple[str, str]) -> str:
    live, candidate = versions
    scale, unit = (100, " points") if metric.points else (1, "")
    estimate, low, high = (
        scale * end for end in (found.sequential.estimate, found.sequential.low, found.sequential.high)
    )
    if not found.sequential.excludes_zero:
        scores = [percent(score) if metric.points else short(score) for score in (found.candidate, found.live)]
        return (f"{candidate} and {live} cannot be told apart yet by their {metric.words}, {scores[0]} and {scores[1]} "
                f"(95 % sure that the difference is between {_brief(low)} and {_brief(high)}{unit})")  # fmt: skip
    less, more = _WORDS.get(metric.name, (f"has {{}} less {metric.words}", f"has {{}} more {metric.words}"))
    told = (more if estimate > 0 else less).format(f"{_brief(abs(estimate))}{unit}")
    near, far = sorted((abs(low), abs(high)))
    return f"{candidate} {told} than {live} (95 % sure between {_brief(near)} and {_brief(far)})"


def _brief(value: float) -> str:
    return short(float(f"{value:.2g}") if abs(value) < 10 else round(value, 1))


def _add(lines: Lines, metric: Metric, found: Difference, *, paired: bool) -> None:
    if metric.each is not None:
        how = "Student, pairs" if paired else "Newcombe" if metric.points else "Welch"
    else:
        how = "bootstrap" if metric.influence is None else "DeLong"
    lines.add_counts("labelled predictions", *found.rows)
    lines.add(metric.words, found.live, found.candidate, found.interval, f"95 % for one look ({how})")
    lines.add(f"{metric.words}, at every look", found.live, found.candidate, found.sequential,
              f"95 % for all looks (confidence sequence), p = {found.sequential.p:.2g}")  # fmt: skip


def _over_time(
    about: Subject, metric: Metric, times: tuple[Values, Values], arrays: Sequence[tuple[Values, Values]]
) -> str:
    """The difference as it was known at each of some moments."""
    orders = [np.argsort(time, kind="stable") for time in times]
    if about.shadow:
        orders[1] = orders[0]
    held = [(truth[order], answer[order]) for (truth, answer), order in zip(arrays, orders, strict=True)]
    sorted_times = [times[0][orders[0]], times[0 if about.shadow else 1][orders[1]]]
    moments = np.sort(np.concatenate(sorted_times))
    looks: list[tuple[Any, Sequential]] = []
    for place in np.unique(np.linspace(0, len(moments) - 1, LOOKS).astype(int)):
        counts = [int(np.searchsorted(time, moments[place], side="right")) for time in sorted_times]
        if min(counts) >= MIN_ROWS:
            live, candidate = ((truth[:n], answer[:n]) for (truth, answer), n in zip(held, counts, strict=True))
            seen = release_statistics.difference(metric, live, candidate, paired=about.shadow)
            looks.append((moments[place], seen.sequential))
    scale, unit = (100, ", in points") if metric.points else (1, "")
    estimates, lows, highs = ([scale * getattr(seen, end) for _, seen in looks] for end in ("estimate", "low", "high"))
    title = f"{about.candidate.version} minus {about.live.version}: {metric.words}{unit}, 95 % sure at every look"
    version = about.candidate.version
    line = plot.Line("", [moment for moment, _ in looks], estimates, lows, highs, version)
    return plot.over_time([line], title, limit=0.0, limit_name="no difference")

"""How good the answers of a deployment were over time, by version, and whether that is what its gate had measured."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nbdeploy import gate_evidence, label_log, model_store, plot, prediction_log, routing
from nbdeploy.errors import NbdeployError, QualityError
from nbdeploy.gate_evidence import Evidence
from nbdeploy.live_quality_result import COLUMNS, Quality, number_words
from nbdeploy.model_store import ModelVersion
from nbdeploy.watching import live_version, must_be_known

if TYPE_CHECKING:
    from nbdeploy.answer_metrics import Metric
    from nbdeploy.live_quality_rows import Held, Question

NEEDS = "quality is measured with SciPy, which is not installed: pip install 'nbdeploy[lab]'"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_MICRO = 1_000_000
LOOK_BACK = 30  # days before the window whose labels tell whether probabilities are honest

__all__ = ["Quality", "quality"]


def quality(
    name: str,
    metric: str | None = None,
    every: Any = "1d",
    since: Any = None,
    *,
    until: Any = None,
    version: str | None = None,
) -> Quality:
    """How good the answers of `name` were over time, by what turned out to be true, for each version.

    Each prediction counts in the window in which it was made, whenever its label came. Where labels are missing, the
    accuracy of classifiers whose probabilities are known to be honest is estimated from these, and is called so. Of the
    log only the answers are read, not the inputs.

    Parameters
    ----------
    metric : str, optional
        ``accuracy``, ``balanced_accuracy``, ``f1`` or ``auc``; ``mae``, ``rmse`` or ``r2``. By default what the gate of
        the live version has measured, or else accuracy or the mean absolute error. ``auc`` counts the rows of which
        probabilities were asked for.
    every : str or timedelta
        How long a window is: ``"6h"``, ``"1d"``, ``"1w"``. Windows begin at multiples of it in UTC, weeks on Mondays.
    since, until : str, datetime or timedelta, optional
        ``"24h"``, ``"7d"`` ago, or a moment; by default all that the log holds.
    version : str, optional
        Only this one.

    Returns
    -------
    Quality

    Raises
    ------
    QualityError
        Nothing was asked in this time; or nothing is labelled and nothing can be estimated; the metric does not fit;
        `every` is no duration, or gives more than 1,000 windows.
    NotFound
        The deployment or the version is unknown.
    """
    if importlib.util.find_spec("scipy") is None:
        raise QualityError(NEEDS)
    from nbdeploy.live_quality_rows import Question, Reader

    must_be_known(name)
    micro, words = _duration(every)
    saved = {each.version: each for each in model_store.versions(name)}
    if version is not None:
        model_store.get(name, version)
    about = version or live_version(name) or next(iter(saved), "")
    window = tuple(None if each is None else datetime.fromtimestamp(each, timezone.utc)
                   for each in map(prediction_log.moment, (since, until)))  # fmt: skip
    question = Question(name, micro, words, window[0], window[1], version or "")
    evidence = {each: gate_evidence.found(name, saved[each].digest) for each in saved}
    chosen = _metric(question, metric, saved.get(about), evidence.get(about, []))
    labels, signatures = label_log.read(name), {each: saved[each].signature for each in saved}
    reader = Reader(question, chosen, labels, signatures)
    if not reader.read():
        times = zip(("since", "until"), window, strict=True)
        span = "".join(f" {word} {when:%Y-%m-%d %H:%M}" for word, when in times if when)
        msg = f"{name}:{version} has answered no request{span}" if version else f"{name} has answered no request{span}"
        raise QualityError(msg, f"Ask it something first: nbdeploy.predict({name!r}, X_new); or take a longer time.")
    known = {each: (saved.get(each), evidence.get(each, [])) for each in reader.held}

    @cache
    def earlier() -> Mapping[str, Held]:
        """What was labelled before this time: whether probabilities are honest."""
        if question.since is None or not labels:
            return {}
        before = replace(question, every=LOOK_BACK * 86_400 * _MICRO, until=question.since,
                         since=question.since - timedelta(days=LOOK_BACK))  # fmt: skip
        return Reader(before, chosen, labels, signatures).read()

    return _Made(question, chosen, reader.held, known, about, earlier=earlier).quality()


def _duration(every: Any) -> tuple[int, str]:
    """Microseconds of a window, and how they are told."""
    seconds = math.nan
    if isinstance(every, timedelta):
        seconds = every.total_seconds()
    elif isinstance(every, str) and (parts := re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*([smhdw])\s*", every)):
        seconds = float(parts[1]) * _UNITS[parts[2]]
    if not seconds >= 1 or seconds > 1e10:
        msg = f"every={every!r:.80} is no duration"
        raise QualityError(msg, "Say 1h, 6h, 1d or 1w.")
    unit = next(unit for unit in ("w", "d", "h", "m", "s") if seconds % _UNITS[unit] == 0 or unit == "s")
    return round(seconds * _MICRO), f"{seconds / _UNITS[unit]:g}{unit}"


def _metric(question: Question, wanted: str | None, version: ModelVersion | None, evidence: list[Evidence]) -> Metric:
    """The metric that is wanted, or the one that the version's gate has measured, or the usual one of its task."""
    from nbdeploy.answer_metrics import METRICS, metric_of
    from nbdeploy.live_quality_rows import task_of

    signature = version.signature if version is not None else None
    several = signature is not None and (signature.several or len(signature.outputs) > 1)
    task: str = "" if several else signature.task if signature is not None else "other"
    if task == "other":
        task = task_of(question)
    if not task:
        msg = f"the quality of {question.name} cannot be measured: an answer of it is no single value"
        raise QualityError(msg, "Read what was asked and answered: nbdeploy.predictions(...).")
    if wanted is None:
        usual = [each for each in METRICS.values() if each.task == task and each.name != "auc"]
        for one in evidence:
            for each in usual:
                if not math.isnan(_measured([one], each)[0]):
                    return each
    return metric_of(wanted, task, QualityError)


def _measured(evidence: list[Evidence], metric: Metric) -> tuple[float, bool]:
    """What the newest gate that has measured it found, and whether on rows that the version was fitted on."""
    from nbdeploy.answer_metrics import GATE_NAMES

    names = GATE_NAMES[metric.name]
    for one in evidence:
        for check in one.checks:
            if check.name in names and not isinstance(check.value, bool) and math.isfinite(check.value):
                fitted = one.gate == gate_evidence.DEFAULT and not one.parameters.get("data")
                return float(check.value) * names[check.name], fitted
    return math.nan, False


class _Made:
    """A `Quality` while it is made."""

    def __init__(
        self,
        question: Question,
        metric: Metric,
        held: Mapping[str, Held],
        known: Mapping[str, tuple[ModelVersion | None, list[Evidence]]],
        about: str,
        *,
        earlier: Callable[[], Mapping[str, Held]],
    ) -> None:
        self._question, self._name, self._metric, self._held, self._known = question, question.name, metric, held, known
        self._earlier = earlier
        if about not in held:  # the one that was asked most
            about = max(held, key=lambda each: sum(held[each].rows.values()))
        self._about = about
        self._labelled = {version: each.labelled() for version, each in held.items()}
        self._why: dict[str, str] = {}  # by version, why nothing is estimated
        self._based: dict[str, str] = {}  # by version, how its probabilities were checked
        self.gate: dict[str, float] = {}
        self._fitted: dict[str, bool] = {}
        for each in held:
            value, fitted = _measured(known[each][1], metric)
            if not math.isnan(value):
                self.gate[each], self._fitted[each] = value, fitted

    def quality(self) -> Quality:
        rows = [row for version in self._held for row in self._rows(version)]
        frame = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values(
            ["start", "version"], kind="stable", ignore_index=True
        )
        if frame["value"].isna().all():
            self._nothing()
        return Quality(
            self._name, self._metric.name, self._question.words,
            "" if self._question.since is None else self._question.since.isoformat(timespec="seconds"),
            self._sentence(frame), frame, self.gate, self._about, datetime.now(timezone.utc), self._metric.points,
            self._plot(frame),
        )  # fmt: skip

    def _rows(self, version: str) -> list[tuple[Any, ...]]:
        from nbdeploy.live_quality_scores import FEW, scored

        held = self._held[version]
        places, truth, answers = self._labelled[version]
        sure_places, sure, right = held.confidence()
        known = self._calibration(version, sure, right)
        found = []
        for window in sorted(held.rows):
            first, last = np.searchsorted(places, [window, window + 1])
            score = scored(self._metric, truth[first:last], answers[first:last])
            labelled, estimate = int(last - first), False
            if labelled < FEW and known is not None:
                from nbdeploy.live_quality_estimate import estimated

                begin, end = np.searchsorted(sure_places, [window, window + 1])
                guess = estimated(sure[begin:end], held.rows[window], known)
                if not math.isnan(guess.estimate):
                    score, estimate = guess, True
            ends = (pd.Timestamp(self._question.begins(at), unit="us", tz="UTC") for at in (window, window + 1))
            found.append((*ends, version, self._metric.name, score.estimate, score.low, score.high, labelled,
                          held.rows[window], estimate))  # fmt: skip
        return found

    def _calibration(self, version: str, sure: Any, right: Any) -> Any:
        """How honest the version's probabilities are; None where nothing is to be estimated from them."""
        if self._metric.name != "accuracy":
            self._why[version] = "only the accuracy of classifiers can be estimated"
            return None
        if not len(sure):
            self._why[version] = "nobody has asked it for probabilities (proba=True)"
            return None
        from nbdeploy.live_quality_estimate import MIN_ESTIMATED, MIN_LABELLED, calibration

        labelled = np.isfinite(right)
        if int(labelled.sum()) < MIN_LABELLED and version in self._earlier():
            _, before, was_right = self._earlier()[version].confidence()
            sure, right = np.concatenate([before, sure]), np.concatenate([was_right, right])
            labelled = np.isfinite(right)
        known = calibration(*self._known[version], sure[labelled], right[labelled])
        few = f"too few rows of it have probabilities: {MIN_ESTIMATED} of a window, and half of it, are needed"
        self._why[version] = known.why_not or few
        self._based[version] = known.words
        return None if known.why_not else known

    def _nothing(self) -> None:
        name, about = self._name, self._about
        if len(self._labelled[about][0]):
            rows = len(self._labelled[about][0])
            msg = (
                f"{self._metric.name} of {name}:{about} cannot be measured on {rows:,} labelled predictions of one kind"
            )
            raise QualityError(msg, f"Label more of them: nbdeploy.label({name!r}, ...).")
        what = "has no labelled prediction with probabilities" if self._metric.name == "auc" else "has no label"
        msg = f"{name}:{about} {what} in this time, and nothing can be estimated: {self._why[about]}"
        raise QualityError(msg, f"Say what turned out to be true: nbdeploy.label({name!r}, ...).")

    # -- in words -----------------------------------------------------------------------------------------

    def _told(self, value: float) -> str:
        return number_words(value, points=self._metric.points)

    def _sentence(self, frame: pd.DataFrame) -> str:
        from nbdeploy.live_quality_scores import scored

        mine = frame[frame["version"] == self._about]
        parts = []
        _, truth, answers = self._labelled[self._about]
        whole = scored(self._metric, truth, answers)
        if math.isnan(whole.estimate):
            parts.append(f"nothing that {self._about} of {self._name} answered in this time is labelled yet")
        else:
            parts.append(self._measured_words(whole))
        estimates = mine[mine["estimated"]]
        if len(estimates):
            mean = float(np.average(estimates["value"], weights=estimates["rows"]))
            count = len(estimates)
            where = f"its {self._metric.words} is estimated at {self._told(mean)} in {count} window{'' if count == 1 else 's'} "
            parts.append(f"{where}without labels, from its own probabilities (checked {self._based[self._about]})")
        elif math.isnan(whole.estimate):
            parts.append(f"nothing is estimated: {self._why[self._about]}")
        others = []
        for version, (_, true, said) in self._labelled.items():
            score = scored(self._metric, true, said)
            if version != self._about and not math.isnan(score.estimate):
                others.append(f"{version} has {self._told(score.estimate)} on {len(true):,}")
        parts += others[:3]
        return "; ".join(parts) + "."

    def _measured_words(self, whole: Any) -> str:
        """What the labels say of one version: whether it has changed, and how it stands to its gate."""
        from nbdeploy.live_quality_scores import changed

        places, truth, answers = self._labelled[self._about]
        cuts = np.flatnonzero(np.diff(places)) + 1
        change = changed(self._metric, list(zip(np.split(truth, cuts), np.split(answers, cuts), strict=True)))
        head, now = f"{self._metric.words} of {self._about}", whole
        on = f"on {len(truth):,} labelled predictions"
        if change is None:
            told = f"{head} is {self._told(whole.estimate)}"
        else:
            now = change.after
            moved = "fell" if now.estimate < change.before.estimate else "rose"
            first = int(np.concatenate([[0], cuts])[change.place])
            start = self._question.begins(int(places[first]))
            on = f"on {len(truth) - first:,} labelled predictions since then"
            told = f"{head} {moved} from {self._told(change.before.estimate)} to {self._told(now.estimate)} since {_day(start)}"
            if not self._metric.points:
                better = (moved == "rose") == self._metric.larger_is_better
                told += f", which is {'better' if better else 'worse'}"
        if math.isnan(now.low):
            told += f" ({on}, too few to say how sure that is)"
        else:
            still = "now " if change is not None else ""
            told += f" (95 % sure that it is {still}between {self._told(now.low)} and {self._told(now.high)}, {on})"
        return told + self._gate_words(now)

    def _gate_words(self, now: Any) -> str:
        if self._about not in self.gate:
            return ""
        was = self.gate[self._about]
        fitted = " on rows that it was fitted on, which flatters" if self._fitted[self._about] else ""
        told = f"; its gate had measured {self._told(was)}{fitted}"
        if now.high < was:
            return f"{told}, which is surely more"
        return f"{told}, which is surely less" if now.low > was else told

    # -- the picture --------------------------------------------------------------------------------------

    def _plot(self, frame: pd.DataFrame) -> str:
        scale, unit = (100.0, "%") if self._metric.points else (1.0, "")
        step = pd.Timedelta(self._question.every, unit="us")
        lines = []
        for version in sorted(self._held, key=lambda each: each != self._about):
            mine = frame[frame["version"] == version].set_index("start")
            every = pd.date_range(mine.index[0], mine.index[-1], freq=step)
            for only in (False, True):
                some = mine[mine["estimated"] == only]
                if some["value"].isna().all():
                    continue
                held = some[["value", "low", "high"]].astype(float).reindex(every) * scale
                name = f"{version}, estimated" if only else version
                lines.append(plot.Line(name, list(every + step / 2), held["value"].tolist(), held["low"].tolist(),
                                       held["high"].tolist(), version, dashed=only))  # fmt: skip
        gate = self.gate.get(self._about)
        return plot.over_time(
            lines, f"{self._name}: {self._metric.words}, every {self._question.words}", unit=unit,
            limit=None if gate is None else gate * scale,
            limit_name="" if gate is None else f"gate of {self._about}: {self._told(gate)}",
            events=events(self._name), span=(frame["start"].iloc[0], frame["end"].max()),
        )  # fmt: skip


def events(name: str) -> list[tuple[datetime, str]]:
    """What happened to the traffic of a deployment, for a picture over time."""
    try:
        steps = routing.history(name)
    except NbdeployError:  # no reason not to draw the rest
        return []
    found = []
    for step in steps:
        with_time = pd.to_datetime(str(step.get("time") or ""), utc=True, errors="coerce")
        if with_time is not pd.NaT:
            found.append((with_time.to_pydatetime(), f"{step['action']} {step.get('to') or ''}".strip()))
    return found


def _day(micro: int) -> str:
    """A moment as people write it: 14 July 2026, with the hour where it is not midnight."""
    when = pd.Timestamp(micro, unit="us")
    hour = "" if when == when.normalize() else f", {when:%H:%M}"
    return f"{when.day} {_MONTHS[when.month - 1]} {when.year}{hour}"


_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
           "December")  # fmt: skip

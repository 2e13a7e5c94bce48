"""Measure what a rule of alerts is about, in each of its windows, and judge it by them.

What the service counts is read from its numbers on the disk, the rest from its log: no service has to run. Whatever cannot be
known is said to be unknown: it neither fires nor is it over.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd

from nbdeploy import drift_windows, live_quality, model_store, numbers_log, prediction_log, watching
from nbdeploy.alert_delivery import data
from nbdeploy.alert_rules import ENOUGH, Rule, duration
from nbdeploy.answer_metrics import DEFAULTS, metric_of
from nbdeploy.answers import PREDICTION
from nbdeploy.counted_numbers import Counted
from nbdeploy.drift_result import is_p_value
from nbdeploy.errors import AlertError, DriftError, NbdeployError, NotFound, QualityError, did_you_mean
from nbdeploy.model_store import ModelVersion

if TYPE_CHECKING:
    from nbdeploy.drift_result import DriftReport
    from nbdeploy.signature import Signature

FIRING, OK, NO_DATA, FAILED = "firing", "ok", "no data", "failed"

MIN_LABELS = 30  # of fewer, a score is mostly chance
MAX_NAMED = 5  # columns

_WHOLE = timedelta(seconds=9_000_000_000)  # windows begin at multiples of it: one that holds all times since 1970


@dataclass(frozen=True)
class Reading:
    """What a measure was in one window.

    Attributes
    ----------
    value : float, bool or None
        None where it is not known.
    said : str
        What it was made of, or why it is not known.
    failed : bool
        Whether it is not known because something is wrong, and not because nothing was there to measure.
    """

    value: float | bool | None
    said: str = ""
    failed: bool = False


@dataclass(frozen=True)
class Judged:
    """What came of a rule: ``firing``, ``ok``, ``no data`` or ``failed``, and in words why."""

    state: str
    said: str
    measured: tuple[float | bool | None, ...] = field(default=())  # by window, the newest first


class Measuring:
    """What the rules of one deployment need to know, at one moment; each is measured once.

    Parameters
    ----------
    now : datetime
        Where the newest window ends.
    """

    def __init__(self, name: str, now: datetime) -> None:
        self._name, self._now = name, now
        self._numbers: dict[tuple[datetime, datetime], dict[str, Counted]] = {}
        self._reports: dict[tuple[str, datetime, datetime], DriftReport | Reading] = {}

    def judge(self, rule: Rule) -> Judged:
        """Whether `rule` fires: when each of its windows breaks the limit. One that does not is enough to say that it is ok."""
        read = self._reader(rule)
        readings: list[Reading] = []
        for number in range(rule.windows):
            end = self._now - timedelta(seconds=rule.window * number)
            start = end - timedelta(seconds=rule.window)
            try:
                reading = read(rule, start, end)
            except NbdeployError as error:
                reading = Reading(None, str(error), failed=True)
            except Exception as error:  # noqa: BLE001 - one rule must not cost the others their judgement
                reading = Reading(None, f"{type(error).__name__}: {error}", failed=True)
            readings.append(reading)
            if reading.value is not None and not rule.breaks(reading.value):
                break  # older ones cannot change that
        values = tuple(each.value for each in readings)
        last = readings[-1]
        if last.value is not None and not rule.breaks(last.value):
            return Judged(OK, _said(rule, readings[-1:], number=len(readings)), values)
        if unknown := [each for each in readings if each.value is None]:
            state = FAILED if any(each.failed for each in unknown) else NO_DATA
            return Judged(state, _line(next(each.said for each in unknown if each.failed or state == NO_DATA)), values)
        return Judged(FIRING, _said(rule, readings), values)

    def _reader(self, rule: Rule) -> Callable[[Rule, datetime, datetime], Reading]:
        if rule.measure.startswith("quality"):
            return self._quality
        if rule.measure.startswith("drift"):
            return self._drift
        if rule.measure == "log.unreadable":
            return self._unreadable
        return self._counted

    # -- what the service counts ------------------------------------------------------------------------

    def _counted(self, rule: Rule, start: datetime, end: datetime) -> Reading:
        if (start, end) not in self._numbers:
            self._numbers[start, end] = numbers_log.window(self._name, start, end)
        found = self._numbers[start, end]
        parts = [found[rule.version]] if rule.version in found else [] if rule.version else list(found.values())
        counted = Counted.sum(rule.version, parts) if parts else None
        requests = counted.requests if counted else 0
        of = f"{requests:,} request{'' if requests == 1 else 's'}"
        if rule.measure == "requests":
            return self._requests(rule, requests, start)
        if rule.measure == "log.dropped":
            return Reading(
                float(counted.dropped if counted else 0), f"{counted.rows if counted else 0:,} rows were answered"
            )
        if counted is None or not requests:
            return Reading(None, f"no request {_when(rule)}")
        if rule.measure in ENOUGH:
            if requests < ENOUGH[rule.measure]:
                return Reading(None, f"{of} {_when(rule)}, and it takes {ENOUGH[rule.measure]}")
            return Reading(counted.quantile(int(rule.measure[1:]) / 100) * 1000, f"of {of}")
        several = counted.errors if rule.measure == "error_rate" else counted.refused
        return Reading(several / requests, f"{several:,} of {of}")

    def _requests(self, rule: Rule, requests: int, start: datetime) -> Reading:
        # As long as it was not there in the whole window, few requests say nothing.
        if rule.breaks(float(requests)) and rule.comparison in ("<", "<="):
            if self._began is None:
                return Reading(None, "its service has never run")
            if self._began > start:
                return Reading(None, f"its service first ran {self._began:%Y-%m-%d %H:%M} UTC, within the window")
        return Reading(float(requests))

    @cached_property
    def _began(self) -> datetime | None:
        spans = numbers_log.running(self._name)
        return datetime.fromtimestamp(spans[0][0], timezone.utc) if spans else None

    # -- what the log says ------------------------------------------------------------------------------

    def _unreadable(self, _rule: Rule, _start: datetime, _end: datetime) -> Reading:
        return Reading(float(prediction_log.unreadable(self._name)), "")

    def _drift(self, rule: Rule, start: datetime, end: datetime) -> Reading:
        subject = self._subject(rule)
        must_fit(rule, subject)
        key = (subject.version, start, end)
        if key not in self._reports:
            self._reports[key] = self._report(rule, *key)
        report = self._reports[key]
        if isinstance(report, Reading):
            return report
        return _of_column(rule, report) if rule.column is not None else _of_all(rule, report)

    def _report(self, rule: Rule, version: str, start: datetime, end: datetime) -> DriftReport | Reading:
        if importlib.util.find_spec("evidently") is None:
            return Reading(
                None, "drift is measured by Evidently, which is not installed: pip install 'nbdeploy[lab]'", failed=True
            )
        try:
            if version == watching.live_version(self._name):
                return watching.drift(self._name, start, until=end, page=False)
            return drift_windows.drift(self._name, version, self._signature, since=start, until=end, page=False)
        except DriftError as error:
            if prediction_log.read(self._name, since=start, until=end, version=version).empty:
                return Reading(None, f"{version} was asked nothing {_when(rule)}")
            return Reading(None, str(error), failed=True)

    def _signature(self, version: str) -> Signature | None:
        with suppress(NotFound):
            return model_store.get(self._name, version).signature
        return None

    def _quality(self, rule: Rule, start: datetime, end: datetime) -> Reading:
        subject = self._subject(rule)
        must_fit(rule, subject)
        if importlib.util.find_spec("scipy") is None:
            return Reading(None, live_quality.NEEDS, failed=True)
        try:
            found = live_quality.quality(
                self._name, rule.metric, every=_WHOLE, since=start, until=end, version=subject.version
            )
        except QualityError as error:  # nothing was asked, or nothing is labelled
            return Reading(None, error.message)
        return _of_quality(rule, found.windows)

    def _subject(self, rule: Rule) -> ModelVersion:
        return model_store.get(self._name, rule.version or watching.live_version(self._name))


def must_fit(rule: Rule, subject: ModelVersion) -> None:
    """Raise `AlertError` for a rule of what this version cannot have: another column, a metric of another task."""
    signature = subject.signature
    if rule.measure.startswith("quality"):
        if signature.several or len(signature.outputs) > 1:
            msg = f"an answer of {subject.tag} is no single value, which quality is measured of"
            raise AlertError(msg)
        if signature.task in DEFAULTS:
            metric_of(rule.metric, signature.task, AlertError)
    if rule.column is None:
        return
    compared = [str(column.name) for column in signature.columns if not column.private and not column.shape]
    if rule.column not in [*compared, PREDICTION, signature.target]:
        msg = f"{subject.tag} has no column {data(rule.column)!r} that can be compared"
        raise AlertError(msg, data(did_you_mean(rule.column, compared)))


# -- helpers ------------------------------------------------------------------------------------------------


def _of_all(rule: Rule, report: DriftReport) -> Reading:
    judged = report.columns["drifted"].dropna()
    if not len(judged):
        return Reading(None, f"too few rows for a verdict: {report.rows_current:,} {_when(rule)}")
    drifted = [str(column) for column in judged.index[judged.astype(bool)]]
    named = ", ".join(map(data, drifted[:MAX_NAMED])) + (
        f" and {len(drifted) - MAX_NAMED} more" if drifted[MAX_NAMED:] else ""
    )
    said = f"{len(drifted)} of {len(judged)} columns drift{f': {named}' if named else ''}"
    return Reading(report.share if rule.comparison else report.drifted, said)


def _of_column(rule: Rule, report: DriftReport) -> Reading:
    names = {str(column): column for column in report.columns.index}
    if rule.column not in names:
        msg = f"{report.version} has no column {data(str(rule.column))!r} that can be compared"
        return Reading(None, f"{msg}. {data(did_you_mean(str(rule.column), names))}", failed=True)
    row = report.columns.loc[names[rule.column]]
    if pd.isna(row["drifted"]):
        few = str(row["method"]).startswith("too few")
        return Reading(None, f"no verdict: {data(str(row['method']))}", failed=not few)
    small = is_p_value(str(row["method"]))
    if rule.comparison and small == (rule.comparison in (">", ">=")):
        way = "<" if small else ">"
        said = f"{row['method']} gives {'a p-value' if small else 'a distance'}: write {way}, or drift without a number"
        return Reading(None, said, failed=True)
    said = f"{row['method']} {row['score']:.3g}, threshold {row['threshold']:.3g}"
    return Reading(float(row["score"]) if rule.comparison else bool(row["drifted"]), said)


def _of_quality(rule: Rule, windows: pd.DataFrame) -> Reading:
    measured = windows[~windows["estimated"].astype(bool) & (windows["labelled"] > 0) & windows["value"].notna()]
    labelled = int(measured["labelled"].sum())
    if labelled < MIN_LABELS:
        return Reading(None, f"{labelled:,} labelled predictions {_when(rule)}, and it takes {MIN_LABELS}")
    return Reading(
        float(measured["value"].iloc[0]), f"{measured['metric'].iloc[0]} of {labelled:,} labelled predictions"
    )


def _said(rule: Rule, readings: list[Reading], number: int = 0) -> str:
    """The values of some windows, the newest first; `number` is that of a single older one."""
    told = [
        f"{_value(rule, each.value)}{f' ({each.said})' if each.said else ''}"
        for each in readings
        if each.value is not None
    ]
    if not rule.about.timed:
        return _line(told[0])
    if number > 1:
        return _line(f"{told[0]} in the {'window' if number == 2 else f'{number - 1} windows'} before")
    return _line(
        f"{', and before that '.join(told)} {_when(rule)}"
        if len(told) == 1
        else f"{', before that '.join(told)}, each in {duration(rule.window)}"
    )


def _value(rule: Rule, value: float | bool) -> str:
    if isinstance(value, bool) or not math.isfinite(value):
        return rule.told(value) if isinstance(value, bool) else str(value)
    digits = 6 if rule.about.kind == "count" else 3
    rounded = float(f"{value:.{digits}g}") if rule.about.kind != "count" else value
    return rule.told(rounded)


def _when(rule: Rule) -> str:
    return f"in {duration(rule.window)}"


def _line(text: str) -> str:
    return " ".join(str(text).split())[:600]

"""One page on how a deployment does: traffic, times, errors, drift, quality and its log, from what is on the disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any

from nbdeploy import alert_store, deployment, live_quality, numbers_log, prediction_log, routing
from nbdeploy.deployment import Deployment
from nbdeploy.drift_report import DRIFT_SHARE
from nbdeploy.errors import InputError, NbdeployError
from nbdeploy.health_drift import MOST, DriftTrend
from nbdeploy.health_facts import LogState
from nbdeploy.health_result import Health, in_kernel
from nbdeploy.health_verdict import Problem, of_numbers, of_quality, of_silence
from nbdeploy.health_windows import DAY, Span, Windows, frame, seconds_of, windows
from nbdeploy.home import home, read_json
from nbdeploy.log_segments import place
from nbdeploy.numbers_log import Interval
from nbdeploy.routing import Traffic
from nbdeploy.service_start import SPEC_FILE
from nbdeploy.watching import must_be_known

__all__ = ["Health", "watch"]

NOW = 120.0  # seconds: a window that ends so late tells how it is now
MOST_QUALITY = 24  # windows, where nobody says how long they are


def watch(
    name: str, since: Any = "24h", until: Any = None, every: Any = None, *, drift: bool = True, progress: bool = True
) -> Health:
    """How a deployment does, on one page. The service need not run, and no worker is asked.

    Traffic, times and errors come from the numbers that its supervisor keeps minute by minute; drift and quality from
    the prediction log. In a notebook the page is there at once, and the drift is added when it is measured. Elsewhere
    it is measured first. Each window that is over is measured once.

    Parameters
    ----------
    since, until : str, datetime or timedelta, optional
        ``"24h"``, ``"7d"`` ago, or a moment (UTC unless it says otherwise). ``since=None`` takes all that is kept.
    every : str or timedelta, optional
        How long each window is: ``"5m"``, ``"1h"``, ``"1d"``; a minute or more, at most 400 windows. By default some
        that fits; drift is then measured in eight windows or less. At most 30 windows, the newest, have a drift.
    drift : bool
        Measure the drift.
    progress : bool
        Show a bar while it is measured.

    Returns
    -------
    Health
        ``.well``, ``.sentence``, ``.problems``, ``.numbers``, ``.drift``, ``.quality``, ``.log``.

    Raises
    ------
    NotFound
        Nothing is saved, runs or was logged as `name`.
    InputError
        `since` is not before `until`, or `every` is no length of time, or makes too many windows.
    NbdeployError
        `since` or `until` is no time.
    """
    must_be_known(name)
    now = time.time()
    length = seconds_of(every)
    end = min(prediction_log.moment(until) or now, now)
    start = prediction_log.moment(since)
    if start is None:
        start = _first(name, end)
    if not start < end:
        msg = f"since={since!r} is not before {f'until={until!r}' if until is not None else 'now'}"
        raise InputError(msg, hint="Write since='24h', say.")
    where = windows(start, end, length)
    traffic, running = routing.traffic(name), deployment.find(name)
    found, ran = numbers_log.intervals(name, start, end), numbers_log.running(name, start, end)
    state = running.state if running is not None else "stopped"
    is_now = end > now - NOW
    if running is not None and is_now and not ran:
        ran = [(max(start, datetime.fromisoformat(running.since).timestamp()), end)]
    history = routing.history(name)
    log = _log(name, found, running)
    quality, note = _quality(name, start, end, length)
    alerts, trouble = _firing(name)
    health = Health(
        name=name, version=traffic.live or "", state=state, since=_since(name, running), shares=dict(traffic.weights),
        shadow=traffic.shadow, start=_moment(start), end=_moment(end), windows=where,
        numbers=frame(found, where, ran, traffic.weights if running is not None else ()),
        totals=numbers_log.total(found),
        trend=_trend(name, start, end, length, history) if drift else None, drift_limit=DRIFT_SHARE,
        quality=quality, quality_note=note, log=log,
        events=_events(history, start, end), alerts=alerts,
        notes=(*_notes(name, found), *trouble),
        found=(*_problems(found, ran if running is not None else [], log, traffic, (start, end), is_now=is_now),
               *of_quality(quality, traffic.live or ""),
               *(Problem("alert", f"an alert fires: {each.rule}") for each in alerts)),
    )  # fmt: skip
    if drift and not in_kernel():
        health.measure(progress=progress)
    return health


# -- facts --------------------------------------------------------------------------------------------------


def _first(name: str, end: float) -> float:
    """When what is kept begins."""
    spans = numbers_log.running(name, until=end)
    times = [when for when, _ in _steps(routing.history(name))]
    return min([began for began, _ in spans[:1]] + [when for when in times if when < end], default=end - DAY)


def _since(name: str, running: Deployment | None) -> datetime | None:
    if running is not None:
        return datetime.fromisoformat(running.since)
    spans = numbers_log.running(name)
    return _moment(spans[-1][1]) if spans else None


def _log(name: str, found: Sequence[Interval], running: Deployment | None) -> LogState:
    size = 0
    for path in place(name).rglob("*"):
        with suppress(OSError):  # sealed or removed meanwhile
            size += path.stat().st_size if path.is_file() else 0
    days = None
    if running is not None:
        days = running.options.log_days
    else:
        with suppress(NbdeployError, KeyError, TypeError, ValueError):
            days = float((read_json(home() / "run" / name / SPEC_FILE) or {})["options"]["log_days"])
    dropped = sum(each.facts["dropped"] for each in found)
    return LogState(prediction_log.size(name), prediction_log.unreadable(name), size, dropped, days)


def _trend(
    name: str, start: float, end: float, length: float | None, history: Sequence[Mapping[str, Any]]
) -> DriftTrend:
    step = windows(start, end, length, MOST).step
    # Whole windows, also the first: what was measured of it holds the next time too.
    return DriftTrend(name, Windows(start // step * step, end, step), _live(history))


def _live(history: Sequence[Mapping[str, Any]]) -> Callable[[float], str]:
    """Which version was live at a moment."""
    released = [(when, str(step.get("to"))) for when, step in _steps(history)
                if step.get("action") in ("served", "promote", "rollback")]  # fmt: skip

    def at(when: float) -> str:
        return next((version for since, version in released if since <= when), "")

    return at


def _steps(history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[float, Mapping[str, Any]]]:
    for step in history:
        with suppress(KeyError, TypeError, ValueError):
            yield datetime.fromisoformat(step["time"]).timestamp(), step


def _events(history: Sequence[Mapping[str, Any]], start: float, end: float) -> list[tuple[datetime, str]]:
    words = {"served": "{to} served", "promote": "{to} promoted", "rollback": "back to {to}", "traffic": "{to}",
             "guard": "guard: {why}", "rollout": "rollout: {why}"}  # fmt: skip
    found = []
    for when, step in _steps(history):
        if start <= when <= end and (said := words.get(str(step.get("action")))):
            found.append((when, said.replace("{to}", str(step.get("to"))).replace("{why}", str(step.get("why")))))
    return [(_moment(when), said) for when, said in sorted(found, key=lambda event: event[0])]


def _problems(
    found: Sequence[Interval], running: Sequence[Span], log: LogState, traffic: Traffic, span: Span, *, is_now: bool
) -> Iterator[Problem]:
    start, end = span
    yield from of_numbers(found, start, end)
    if is_now:
        yield from of_silence(found, running, end)
    if log.unreadable:
        yield Problem(
            "log", f"{log.unreadable:,} {'line' if log.unreadable == 1 else 'lines'} of the log cannot be read"
        )
    tripped = (traffic.guard or {}).get("tripped")
    if tripped and start <= datetime.fromisoformat(tripped["time"]).timestamp() <= end:
        yield Problem("guard", f"{tripped['version']} was taken out of traffic: {tripped['why']}")


def _notes(name: str, found: Sequence[Interval]) -> Iterator[str]:
    if not found and not numbers_log.running(name):
        yield "No numbers are kept yet: a service writes them down once a minute."


def _firing(name: str) -> tuple[list[Any], list[str]]:
    """The alerts that fire, as the last look found them; and why that cannot be told."""
    try:
        return list(alert_store.firing(name)), []
    except (NbdeployError, OSError) as error:  # somebody's editor was at the file
        return [], [f"The alerts cannot be read: {error}"]


def _quality(name: str, start: float, end: float, length: float | None) -> tuple[Any, str]:
    """What the labels say of this time, or why they say nothing."""
    step = windows(start, end, length, MOST_QUALITY).step
    try:
        return live_quality.quality(name, every=timedelta(seconds=step), since=_moment(start), until=_moment(end)), ""
    except (NbdeployError, ImportError) as error:
        return None, str(error)


def _moment(when: float) -> datetime:
    return datetime.fromtimestamp(when, timezone.utc)

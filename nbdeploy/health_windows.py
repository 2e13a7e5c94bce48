"""What a deployment was asked, in windows of equal length: the points of the pictures over time."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pandas as pd

from nbdeploy.counted_numbers import Counted
from nbdeploy.errors import InputError
from nbdeploy.numbers_log import Interval, total

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
STEPS = (MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR,
         12 * HOUR, DAY, 2 * DAY, 7 * DAY, 14 * DAY, 28 * DAY)  # fmt: skip
MOST = 60  # windows, where nobody says how long they are
LIMIT = 400

_LEAST = 0.25  # of a window
Span = tuple[float, float]


@dataclass(frozen=True)
class Windows:
    """A stretch of time, cut into windows whose ends are round moments, in seconds since the epoch."""

    start: float
    end: float
    step: float

    @property
    def spans(self) -> list[Span]:
        """From when to when each window is. The first and the last end where the stretch does."""
        first, last = math.floor(self.start / self.step), max(1, math.ceil(self.end / self.step))
        edges = [self.start, *(number * self.step for number in range(first + 1, last)), self.end]
        # What is too short to have a rate belongs to its neighbour.
        if len(edges) > 2 and edges[-1] - edges[-2] < _LEAST * self.step:
            del edges[-2]
        if len(edges) > 2 and edges[1] - edges[0] < _LEAST * self.step:
            del edges[1]
        return [*pairwise(edges)]

    @property
    def unit(self) -> tuple[str, float]:
        """What a rate is of, and how many seconds that has."""
        return ("minute", MINUTE) if self.step < HOUR else ("hour", HOUR) if self.step < DAY else ("day", DAY)


def windows(start: float, end: float, every: float | None = None, most: int = MOST) -> Windows:
    """Cut a stretch of time into windows of `every` seconds, or into `most` at most.

    Raises
    ------
    InputError
        They would be too many.
    """
    if every is None:
        every = next((step for step in STEPS if (end - start) / step <= most), STEPS[-1])
        while (end - start) / every > most:
            every *= 2
    elif (end - start) / every > LIMIT:
        msg = f"windows of {told(every)} over {told(end - start)} are {math.ceil((end - start) / every):,}"
        raise InputError(msg, hint=f"At most {LIMIT} can be shown: take longer ones, or less time.")
    return Windows(start, end, every)


def seconds_of(every: Any) -> float | None:
    """A length of time in seconds, from ``"5m"``, ``"1h"``, ``"1d"`` or a timedelta; None stays None.

    Raises
    ------
    InputError
        It is none of these, or less than a minute.
    """
    if every is None or every == "":
        return None
    found = math.nan
    if isinstance(every, timedelta):
        found = every.total_seconds()
    elif isinstance(every, str) and (parts := re.fullmatch(r"\s*(\d{1,6}(?:\.\d+)?)\s*([smhdw])\s*", every)):
        found = float(parts[1]) * {"s": 1, "m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}[parts[2]]
    if not found >= MINUTE:
        msg = f"every={every!r} is no length of time of a minute or more"
        raise InputError(msg, hint="Write 5m, 1h or 1d.")
    return found


def told(seconds: float) -> str:
    """A length of time in words."""
    for size, name in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= 2 * size or (seconds >= size and seconds % size == 0):
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"


def frame(found: Sequence[Interval], where: Windows, running: Iterable[Span], used: Iterable[str] = ()) -> pd.DataFrame:
    """The numbers of each version in each window in which it was there to be asked.

    Parameters
    ----------
    running : iterable of (from, to)
        When the service ran. Beyond it there is no row, unless something was counted.
    used : iterable of str
        Versions that may be asked now: they have rows up to the end though nobody asks them.

    Returns
    -------
    DataFrame
        ``start``, ``end`` (UTC), ``seconds`` between them, ``version``, ``requests``, ``errors``, ``refused``,
        ``rows``, ``dropped``, ``p50``, ``p99`` (seconds) and ``reasons``, a dict; by window, then version.
    """
    spans, ran = where.spans, list(running)
    starts = [start for start, _ in spans]
    by_window: dict[int, list[Interval]] = {}
    for each in found:
        # By its middle: a minute is read a moment after its end.
        number = bisect_right(starts, (each.began + each.ended) / 2) - 1
        by_window.setdefault(max(0, number), []).append(each)
    sums = {number: total(some) for number, some in by_window.items()}
    seen: dict[str, list[int]] = {}
    for number, counted in sums.items():
        for version in counted:
            seen.setdefault(version, []).append(number)
    last = {version: len(spans) - 1 for version in used} | {
        version: max(numbers) for version, numbers in seen.items() if version not in set(used)
    }
    first_seen = {version: min(seen.get(version, [0])) for version in last}
    rows = []
    for number, (began, ended) in enumerate(spans):
        there = any(a < ended and b > began for a, b in ran)
        for version in last:
            counted_here = sums.get(number, {}).get(version)
            if counted_here is None and not (there and first_seen[version] <= number <= last[version]):
                continue
            rows.append(_row(began, ended, version, counted_here))
    columns = ["start", "end", "seconds", "version", "requests", "errors", "refused", "rows", "dropped", "p50", "p99",
               "reasons"]  # fmt: skip
    made = pd.DataFrame(rows, columns=columns)
    return made.assign(**{key: pd.to_datetime(made[key], unit="s", utc=True) for key in ("start", "end")})


def _row(began: float, ended: float, version: str, counted: Counted | None) -> tuple[Any, ...]:
    seconds = max(ended - began, 1.0)
    if counted is None:
        return began, ended, seconds, version, 0, 0, 0, 0, 0, math.nan, math.nan, {}
    return (
        began, ended, seconds, version, counted.requests, counted.errors, counted.refused, counted.rows, counted.dropped,
        counted.quantile(0.5), counted.quantile(0.99), dict(counted.reasons),
    )  # fmt: skip

"""What each version of a deployment answered, minute by minute, kept on the disk with no notebook open.

Workers count from zero at each start of a service, in files that are gone when it has ended. Once a minute its supervisor
appends here what was counted since: one line of JSON in a file per day, ``NBDEPLOY_HOME/numbers/NAME/2026-01-31.jsonl``.
How far it is stands beside the counters, so both begin anew together, and what was not yet written is written by whoever
comes next. docs/watch.md has the format.
"""

from __future__ import annotations

import fcntl
import math
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from nbdeploy.counted_numbers import COUNTS, Counted, Facts, difference, is_facts, larger, totals_of
from nbdeploy.errors import NbdeployError
from nbdeploy.home import check_name, folder, home, write_note
from nbdeploy.worker_numbers import counted

if TYPE_CHECKING:
    import pandas as pd

INTERVAL = 60.0  # seconds between two lines
VARIABLE = "NBDEPLOY_NUMBERS_SECONDS"  # another interval, from the environment
HEARTBEAT = 300.0  # seconds between two lines that say no more than that the service runs
DAYS, MAX_BYTES = 90, 128 << 20
MARK, LOCK = "logged.json", ".logged.lock"  # beside the counters

_BUSY = 2.0  # seconds to wait for whoever else writes; what is not written now comes with the next line


@dataclass(frozen=True, slots=True)
class Interval:
    """What one version was asked between two looks at the counters, in seconds since the epoch."""

    version: str
    began: float
    ended: float
    facts: Facts  # as they stand in the line: of most of very many lines, only the sum is wanted

    @property
    def requests(self) -> int:
        return int(self.facts["requests"])

    @property
    def numbers(self) -> Counted:
        return Counted.of(self.version, [self.facts])


# -- writing ------------------------------------------------------------------------------------------------


def interval() -> float:
    """Seconds between two lines."""
    with suppress(ValueError):
        return max(0.1, float(os.environ.get(VARIABLE, INTERVAL)))
    return INTERVAL


def record(
    name: str,
    *,
    began: float | None = None,
    alive: bool = False,
    ending: bool = False,
    days: float = DAYS,
    max_bytes: int = MAX_BYTES,
) -> bool:
    """Append what was counted since the last line; whether there was something, and the disk took it.

    Any process may, at any time: nothing is counted twice, and what could not be written comes with the next line.
    It raises nothing for what the disk does: no service is to suffer from its numbers.

    Parameters
    ----------
    began : float, optional
        When the counters were looked at before; by default when the last line was written.
    alive : bool
        Say that the service runs, though nothing was counted, where that was not said for `HEARTBEAT` seconds.
    ending : bool
        Say so in any case: it is the last line of this run of the service.
    days, max_bytes : float, int
        The newest files that are kept: so many, and so many bytes.
    """
    try:
        metrics = home() / "run" / check_name(name) / "metrics"
        if not metrics.is_dir():
            return False
        with _alone(metrics):
            written = _record(name, metrics, began, beats=0.0 if ending else HEARTBEAT if alive else math.inf)
            if written:
                _expire(_place(name), days, max_bytes)
            return written
    except (OSError, NbdeployError, ValueError, TypeError, LookupError):
        return False


def _record(name: str, metrics: Path, began: float | None, *, beats: float) -> bool:
    now, mark = time.time(), _mark(metrics)
    if mark is None:
        # The name of this run of the service is kept before its first line: a line written again replaces it.
        mark = {"run": secrets.token_hex(4), "n": 0, "time": 0.0, "totals": {}}
        write_note(metrics / MARK, orjson.dumps(mark))
    totals = totals_of(counted(metrics, shadows=False))
    news = difference(totals, mark["totals"])
    if not news and (beats == math.inf or (mark["n"] and 0 <= now - mark["time"] < beats)):
        return False
    ended = _last_counted(metrics, now) if news else now
    started = min(ended, began or mark["time"] or ended)
    line = {"time": round(ended, 3), "from": round(started, 3), "run": mark["run"], "n": mark["n"] + 1,
            "versions": news}  # fmt: skip
    _append(_place(name) / f"{_day(ended)}.jsonl", orjson.dumps(line))
    totals = larger(totals, mark["totals"])
    write_note(metrics / MARK, orjson.dumps({**mark, "n": mark["n"] + 1, "time": now, "totals": totals}))
    return True


def _append(path: Path, line: bytes) -> None:
    descriptor = os.open(path, os.O_APPEND | os.O_CREAT | os.O_RDWR, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        body = (b"\n" if torn else b"") + line + b"\n"
        if os.write(descriptor, body) != len(body):
            msg = f"{path} took half a line"
            raise OSError(msg)
    finally:
        os.close(descriptor)


def _expire(where: Path, days: float, max_bytes: int) -> None:
    """Remove the oldest files. They are counted, not dated: a clock that jumps removes nothing."""
    files = sorted(where.glob("*.jsonl"), reverse=True)
    held = 0
    for number, path in enumerate(files):
        with suppress(OSError):
            held += path.stat().st_size
            if number and (number >= days or held > max_bytes):
                path.unlink()


def _last_counted(metrics: Path, now: float) -> float:
    """When somebody counted last: a service that was killed may have left its counters long ago."""
    times = [0.0]
    for path in metrics.glob("*.json"):
        if path.name != MARK:
            with suppress(OSError):
                times.append(path.stat().st_mtime)
    newest = max(times)
    return newest if 0 < newest < now else now


@contextmanager
def _alone(metrics: Path) -> Iterator[None]:
    descriptor = os.open(metrics / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        deadline = time.monotonic() + _BUSY
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


# -- reading ------------------------------------------------------------------------------------------------


def read(name: str, since: Any = None, until: Any = None) -> pd.DataFrame:
    """What a deployment was asked, minute by minute, oldest first: one row for each minute and version that had something.

    The service need not run. Where it does, what was counted since the last line is the last row of each version.

    Parameters
    ----------
    since, until : str, datetime or timedelta, optional
        ``"24h"``, ``"7d"`` ago, or a moment (UTC unless it says otherwise). A minute counts where it ends.

    Returns
    -------
    DataFrame
        ``time``, when the minute ended, and ``began`` (UTC); ``version``; ``requests`` for predictions, ``errors``
        (a status of 500 or more) and ``refused`` (400 to 499) among them; ``rows`` answered; ``p50`` and ``p99``, the
        seconds that they took, NaN without requests; ``dropped``, rows that the prediction log lost; ``reasons``, a
        dict: how often which reason led to a 4xx or 5xx, on any route. All are of that minute alone.

    Raises
    ------
    NbdeployError
        `since` or `until` is no time.
    InvalidName
    """
    import pandas as pd

    found = intervals(name, since, until)
    numbers = [each.numbers for each in found]
    frame = pd.DataFrame(
        {
            "time": pd.to_datetime([each.ended for each in found], unit="s", utc=True),
            "began": pd.to_datetime([each.began for each in found], unit="s", utc=True),
            "version": pd.Series([each.version for each in found], dtype=object),
            **{key: pd.Series([getattr(each, key) for each in numbers], dtype="int64") for key in COUNTS},
            "p50": pd.Series([each.quantile(0.5) for each in numbers], dtype="float64"),
            "p99": pd.Series([each.quantile(0.99) for each in numbers], dtype="float64"),
            "reasons": pd.Series([dict(each.reasons) for each in numbers], dtype=object),
        }
    )
    order = ["time", "began", "version", "requests", "errors", "refused", "rows", "p50", "p99", "dropped", "reasons"]
    return frame[order]


def window(name: str, since: Any = None, until: Any = None) -> dict[str, Counted]:
    """What each version was asked in a window, as one. A version that was asked nothing is not in it.

    Parameters and errors are those of `read`.
    """
    return total(intervals(name, since, until))


def total(parts: Iterable[Interval]) -> dict[str, Counted]:
    """The sum of some intervals, by version."""
    by_version: dict[str, list[Facts]] = {}
    for each in parts:
        by_version.setdefault(each.version, []).append(each.facts)
    return {version: Counted.of(version, held) for version, held in sorted(by_version.items(), key=_by_number)}


def intervals(name: str, since: Any = None, until: Any = None) -> list[Interval]:
    """What `read` makes a frame of."""
    start, end = _moment(since, -math.inf), _moment(until, math.inf)
    metrics = home() / "run" / check_name(name) / "metrics"
    for _ in range(20):
        mark = _mark(metrics)
        found = _rest(metrics, mark)
        lines = _lines(name, start, end)
        if _same(mark, _mark(metrics)):  # else somebody wrote meanwhile
            break
    for line in lines:
        # Beyond the mark is what was written by somebody who was killed right then: it is part of the rest.
        if mark is None or line.run != mark["run"] or line.number <= mark["n"]:
            found += line.parts
    return sorted((each for each in found if start < each.ended <= end), key=lambda each: (each.ended, each.version))


def running(name: str, since: Any = None, until: Any = None) -> list[tuple[float, float]]:
    """When the service ran, as far as it is known: from and to, in seconds since the epoch, oldest first.

    It is known to `HEARTBEAT` seconds. With it, "nobody asked" and "nobody was there to answer" can be told apart.

    Parameters and errors are those of `read`.
    """
    start, end = _moment(since, -math.inf), _moment(until, math.inf)
    spans: dict[str, list[list[float]]] = {}
    held = _lines(name, start - 3 * HEARTBEAT, end + 3 * HEARTBEAT)
    for line in sorted(held, key=lambda line: line.ended):
        mine = spans.setdefault(line.run, [])
        if mine and line.began - mine[-1][1] <= 3 * HEARTBEAT:
            mine[-1][1] = line.ended
        else:
            mine.append([line.began, line.ended])
    mark, now = _mark(home() / "run" / check_name(name) / "metrics"), time.time()
    if mark is not None and (mine := spans.get(mark["run"], [])) and now - mine[-1][1] <= 2 * HEARTBEAT:
        mine[-1][1] = max(now, mine[-1][1])  # the next line is to come
    clipped = [(max(began, start), min(ended, end)) for mine in spans.values() for began, ended in mine]
    return sorted((began, ended) for began, ended in clipped if began <= ended)


@dataclass(frozen=True)
class _Line:
    run: str
    number: int
    began: float
    ended: float
    parts: tuple[Interval, ...]

    @classmethod
    def from_bytes(cls, text: bytes) -> _Line:
        held = orjson.loads(text)
        began, ended, versions = float(held["from"]), float(held["time"]), held["versions"]
        if not all(map(is_facts, versions.values())):
            raise ValueError
        parts = tuple(Interval(version, began, ended, facts) for version, facts in versions.items())
        return cls(str(held["run"]), int(held["n"]), began, ended, parts)

    @property
    def size(self) -> int:
        return sum(part.facts["requests"] + part.facts["rows"] for part in self.parts)


def _moment(when: Any, default: float) -> float:
    if isinstance(when, (int, float)):
        return float(when)
    from nbdeploy.prediction_log import moment

    found = moment(when)
    return default if found is None else found


def _rest(metrics: Path, mark: Mapping[str, Any] | None) -> list[Interval]:
    """What the counters have and no line has yet."""
    news = difference(totals_of(counted(metrics, shadows=False)), mark["totals"] if mark else {})
    if not news:
        return []
    ended = _last_counted(metrics, time.time())
    began = max(mark["time"] if mark else 0.0, ended - interval())
    return [Interval(version, min(began, ended), ended, facts) for version, facts in news.items()]


def _lines(name: str, start: float, end: float) -> list[_Line]:
    """The lines of a window. What is torn or no line is left out."""
    found: dict[tuple[str, int], _Line] = {}
    first, last = (_day(limit) if math.isfinite(limit) else "" for limit in (start, end))
    for path in sorted((home() / "numbers" / check_name(name)).glob("*.jsonl")):
        if path.stem < first or (last and path.stem > last):
            continue
        with suppress(OSError):  # expired meanwhile
            for text in path.read_bytes().splitlines():
                with suppress(ValueError, TypeError, LookupError, AttributeError):
                    line = _Line.from_bytes(text)
                    known = found.get((line.run, line.number))
                    # One that was written again has all that the first one had.
                    if start < line.ended <= end and (known is None or line.size >= known.size):
                        found[line.run, line.number] = line
    return [*found.values()]


# -- places -------------------------------------------------------------------------------------------------


def _place(name: str) -> Path:
    return folder("numbers", check_name(name))


def _mark(metrics: Path) -> dict[str, Any] | None:
    """How far the lines of this run of the service are."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        held = orjson.loads((metrics / MARK).read_bytes())
        return {
            "run": str(held["run"]),
            "n": int(held["n"]),
            "time": float(held["time"]),
            "totals": dict(held["totals"]),
        }
    return None


def _same(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    return (one and (one["run"], one["n"])) == (other and (other["run"], other["n"]))


def _by_number(item: tuple[str, Any]) -> tuple[int, str]:
    version = item[0]
    return (int(version[1:]) if version[1:].isdecimal() else 0), version


def _day(when: float) -> str:
    return datetime.fromtimestamp(when, timezone.utc).strftime("%Y-%m-%d")

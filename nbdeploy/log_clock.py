"""A clock of the log's own: it orders and ages what is kept, and a jump of the machine's clock does not move it.

While the machine runs, the log's time advances as its uptime does. Time in which it was off is known by the wall clock
alone, and counts only when that has run for a day without a jump. So the log's time is never ahead of the time that has
really passed, but for a clock that was set wrong while the machine was off, and stayed so for a day.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from nbdeploy.errors import NbdeployError
from nbdeploy.home import read_json, write_json

DAY = 86_400.0
JUMP = 600.0  # seconds by which wall clock and uptime may disagree between two looks: slow corrections are no jumps


@dataclass(frozen=True)
class Moment:
    """What the clocks said at one moment, in seconds.

    Attributes
    ----------
    log : float
        The log's own time. Where it started it was the wall clock's.
    wall, uptime : float
        Since the epoch; since the machine started.
    boot : str
        Which start of the machine it was; '' where that cannot be known.
    gap : float or None
        What the wall clock says the machine was off for, as long as that does not count yet.
    steady : float
        The uptime since which the wall clock has not jumped.
    """

    log: float
    wall: float
    uptime: float
    boot: str = ""
    gap: float | None = None
    steady: float = 0.0


def advance(before: Moment, wall: float, uptime: float, boot: str = "") -> Moment:
    """The moment after `before` at which the machine's clocks say `wall` and `uptime`. Its `log` is never smaller."""
    if boot != before.boot or uptime < before.uptime:  # the machine was started again
        off = (before.gap or 0.0) + wall - before.wall
        return replace(before, wall=wall, uptime=uptime, boot=boot, gap=off, steady=uptime)
    passed = uptime - before.uptime
    jump = wall - before.wall - passed
    gap, steady = before.gap, before.steady
    if abs(jump) > JUMP:
        gap, steady = None if gap is None else gap + jump, uptime
    log = before.log + passed
    if gap is not None and uptime - steady >= DAY:
        log, gap = log + max(0.0, gap), None
    return Moment(log, wall, uptime, boot, gap, steady)


class LogClock:
    """The clock of one deployment's log, kept in a file.

    Parameters
    ----------
    path : Path
        Where it is kept. A file that cannot be read or written is as good as none.
    newest : callable
        The log's time of the newest segment that is there, or None: where the clock goes on without its file.
    wall, uptime : callable
        The machine's clocks; `uptime` gives the name of its start too.
    """

    def __init__(
        self,
        path: Path,
        newest: Callable[[], float | None] = lambda: None,
        *,
        wall: Callable[[], float] = time.time,
        uptime: Callable[[], tuple[float, str]] | None = None,
    ) -> None:
        self._path, self._wall, self._uptime = path, wall, uptime or machine_uptime
        self._moment = self._kept()
        if self._moment is None:
            seconds, boot = self._uptime()
            started = newest()
            self._moment = Moment(self._wall() if started is None else started, self._wall(), seconds, boot)

    def now(self) -> float:
        """The log's time, in seconds. Never smaller than before."""
        assert self._moment is not None
        self._moment = advance(self._moment, self._wall(), *self._uptime())
        return self._moment.log

    def save(self) -> None:
        """Keep it. Several processes may: the time that is ahead stays."""
        self.now()
        assert self._moment is not None
        if (kept := self._kept()) is not None and kept.log > self._moment.log:
            self._moment = replace(self._moment, log=kept.log)
            if kept.boot == self._moment.boot and kept.uptime <= self._moment.uptime:
                # Its time may have the gap in it already, which must not be added twice.
                self._moment = replace(self._moment, gap=kept.gap, steady=kept.steady)
        with suppress(OSError):
            write_json(self._path, asdict(self._moment))

    def _kept(self) -> Moment | None:
        with suppress(OSError, NbdeployError, TypeError, ValueError):
            return _moment(read_json(self._path))
        return None


def machine_uptime() -> tuple[float, str]:
    """Seconds since the machine started, and a name for that start."""
    with suppress(OSError, ValueError, IndexError):
        # Not by a clock of the process, which what fakes the wall clock fakes too.
        seconds = float(Path("/proc/uptime").read_text().split()[0])
        return seconds, Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return time.monotonic(), ""


def _moment(kept: Any) -> Moment | None:
    if not isinstance(kept, dict):
        return None
    known = {each.name: kept[each.name] for each in fields(Moment) if each.name in kept}
    numbers = [known.get(name) for name in ("log", "wall", "uptime", "steady")]
    if not all(isinstance(n, (int, float)) and n == n for n in numbers) or not isinstance(known.get("boot"), str):
        return None
    return Moment(**known) if isinstance(known.get("gap"), (int, float, type(None))) else None

"""What is known of how a deployment does, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd

from nbdeploy.counted_numbers import Counted
from nbdeploy.health_drift import DriftTrend, newest
from nbdeploy.health_verdict import Problem, sentence
from nbdeploy.health_windows import Windows


@dataclass(frozen=True)
class LogState:
    """What is kept of what was asked.

    Attributes
    ----------
    rows, unreadable : int
        Rows that users asked for, and lines that a fault of the disk has damaged.
    size : int
        Bytes of all its files.
    dropped : int
        Rows that were answered in this time and are not in it.
    days : float or None
        How long it is kept; None where that is not known.
    """

    rows: int = 0
    unreadable: int = 0
    size: int = 0
    dropped: int = 0
    days: float | None = None

    @property
    def text(self) -> str:
        """One line."""
        if not self.rows and not self.size:
            return "nothing was logged yet"
        units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes"))
        scale, unit = next((pair for pair in units if self.size >= pair[0]), (1, "bytes"))
        told = [f"{self.rows:,} {'row' if self.rows == 1 else 'rows'}", f"{self.size / scale:.3g} {unit} on the disk"]
        told.append(f"{self.dropped:,} lost" if self.dropped else "none lost")
        told.append(f"{self.unreadable:,} unreadable" if self.unreadable else "none unreadable")
        told += [f"kept {self.days:g} days"] if self.days is not None else []
        return ", ".join(told)


@dataclass(frozen=True, eq=False)
class HealthFacts:
    """How a deployment does: what it was asked over some time, how it answered, and whether something is wrong.

    Attributes
    ----------
    name, version, state : str
        The deployment, its live version ('' where none is), and ``live``, ``starting`` or ``stopped``.
    since : datetime or None
        Since when it is in that state, as far as it is known.
    shares : mapping of float
        Percent of the requests by version.
    shadow : tuple of str
        Versions that answer into the log only.
    start, end : datetime
        Of the time that is looked at, UTC.
    windows : Windows
        How it is cut.
    numbers : DataFrame
        ``start``, ``end``, ``seconds``, ``version``, ``requests``, ``errors``, ``refused``, ``rows``, ``dropped``,
        ``p50``, ``p99`` (seconds) and ``reasons``, a dict: one row for each window and version.
    totals : mapping of Counted
        The same for all of it, by version.
    quality : Quality or None
        What `nbdeploy.quality` says of this time.
    log : LogState
    quality_note : str
        Why there is none.
    events : list of (datetime, str)
        What happened to the traffic.
    alerts : list
        Rules that fire.
    notes : tuple of str
        What could not be told.
    trend : DriftTrend or None
    drift_limit : float
        The share of drifted columns that is drift of the whole.
    found : tuple of Problem
        What is wrong, beside drift.
    """

    name: str
    version: str
    state: str
    since: datetime | None
    shares: Mapping[str, float]
    shadow: tuple[str, ...]
    start: datetime
    end: datetime
    windows: Windows
    numbers: pd.DataFrame
    totals: Mapping[str, Counted]
    trend: DriftTrend | None
    drift_limit: float
    quality: Any
    quality_note: str
    log: LogState
    events: list[tuple[datetime, str]]
    alerts: list[Any]
    notes: tuple[str, ...]
    found: tuple[Problem, ...]

    @property
    def problems(self) -> list[Problem]:
        """What is wrong, as far as it is known."""
        problems = list(self.found)
        last = newest(self.trend.known) if self.trend is not None else None
        if last is not None and last.drifted:
            which = f": {', '.join(last.columns)} first" if last.columns else ""
            problems.append(
                Problem("drift", f"drift in {last.share:.0%} of the columns of {last.version} lately{which}")
            )
        return problems

    @property
    def well(self) -> bool:
        """Whether it runs and nothing is wrong."""
        return self.state == "live" and not self.problems

    @property
    def sentence(self) -> str:
        """One sentence of plain text: that all is well, or what is not."""
        asked = any(counted.requests for counted in self.totals.values())
        return sentence(self.problems, running=self.state != "stopped", asked=asked)

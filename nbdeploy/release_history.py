"""What happened to the traffic of a deployment, as a frame that shows the shares over time in a notebook."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

import pandas as pd

from nbdeploy import plot

COLUMNS = ["time", "who", "action", "from", "to", "why", "evidence"]
_WHOLE = frozenset({"served", "promote", "rollback"})  # after which one version has all


class History(pd.DataFrame):  # type: ignore[misc] # pandas has no types here
    """What happened, newest first; a frame like any other, with a picture above it in a notebook."""

    @classmethod
    def of(cls, steps: Iterable[Mapping[str, Any]]) -> History:
        """The steps of `nbdeploy.routing.history`."""
        found = pd.DataFrame(steps, columns=COLUMNS).fillna("")
        return cls(found.assign(time=pd.to_datetime(found["time"], utc=True, format="ISO8601").dt.floor("s")))

    def _repr_html_(self) -> str | None:
        return f"{picture(self)}{super()._repr_html_()}"


def picture(steps: pd.DataFrame, now: datetime | None = None) -> str:
    """The share of each version over time; '' where nothing is known of it.

    Parameters
    ----------
    steps : DataFrame
        As `History` has them.
    now : datetime, optional
        Where the picture ends.
    """
    moments: dict[str, list[Any]] = {}
    shares: dict[str, list[float]] = {}
    held: dict[str, float] = {}
    events, ends = [], pd.Timestamp(now or datetime.now(timezone.utc))
    taken = steps.iloc[::-1]
    for when, action, to in zip(taken["time"], taken["action"], taken["to"], strict=True):
        after = _weights(str(action), str(to))
        if after is None:
            continue
        for version in {*held, *after}:
            before, share = held.get(version, 0.0), after.get(version, 0.0)
            if before != share:
                # A gap first where it had none, so that no line is drawn along nothing.
                moments.setdefault(version, []).extend([when] * (2 if before else 3))
                shares.setdefault(version, []).extend([before, share] if before else [math.nan, 0.0, share])
        held = {version: share for version, share in after.items() if share}
        if action in _WHOLE:
            events.append((when, f"{action} {to}"))
    if not held:
        return ""
    for version, share in held.items():
        moments[version].append(ends)
        shares[version].append(share)
    names = sorted(moments, key=lambda name: (len(name), name))
    lines = [plot.Line(name, moments[name], shares[name], version=name) for name in names]
    return plot.over_time(lines, "Share of the requests", unit="%", events=events, span=(taken["time"].iloc[0], ends))


def _weights(action: str, to: str) -> dict[str, float] | None:
    """Percent by version after a step; None where it changed none."""
    told = {version: float(share) for version, share in re.findall(r"\b(v\d+) (\d+(?:\.\d+)?) %", to)}
    if told:
        return told
    return {to: 100.0} if action in _WHOLE and re.fullmatch(r"v\d+", to) else None

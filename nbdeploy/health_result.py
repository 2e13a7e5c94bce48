"""The noun: how a deployment does, and how that shows in a notebook, a terminal and JSON."""

from __future__ import annotations

import math
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nbdeploy import health_drawing
from nbdeploy.counted_numbers import Counted
from nbdeploy.health_drift import frame_of
from nbdeploy.health_facts import HealthFacts
from nbdeploy.progress import steps

AGAIN = 1.5  # seconds between two pictures of a measurement that goes on


@dataclass(frozen=True, eq=False, repr=False)
class Health(HealthFacts):
    """How a deployment does: what it was asked over some time, how it answered, and whether something is wrong."""

    @property
    def drift(self) -> pd.DataFrame:
        """The share of drifted columns by window; what is not measured yet is measured now, which takes seconds.

        ``start``, ``end`` (UTC), ``version``, the live one, ``share``, NaN without a verdict, ``drifted``, ``rows`` and
        ``columns``, the worst of them. Empty where no drift was asked for.
        """
        self.measure()
        return frame_of(self.trend.known if self.trend is not None else [])

    def measure(self, *, progress: bool = False) -> None:
        """Measure the drift of the windows that nobody has measured yet."""
        if self.trend is None or not self.trend.missing:
            return
        names = [f"window {number + 1}" for number in range(self.trend.missing)]
        with steps(f"drift of {self.name}", names, progress) as step:
            left = iter(names)
            step(next(left))
            self.trend.complete(lambda _done: step(next(left, "")))

    def to_dict(self) -> dict[str, Any]:
        """All numbers, as JSON types; the drift as far as it is measured."""
        quality = self.quality.to_dict() if self.quality is not None else None
        drift = frame_of(self.trend.known if self.trend is not None else [])
        return {
            "name": self.name, "version": self.version, "state": self.state,
            "since": self.since.isoformat() if self.since is not None else None,
            "well": self.well, "sentence": self.sentence,
            "problems": [{"kind": each.kind, "text": each.text} for each in self.problems],
            "shares": dict(self.shares), "shadow": list(self.shadow),
            "start": self.start.isoformat(), "end": self.end.isoformat(), "every": self.windows.step,
            "totals": {version: _facts(counted) for version, counted in self.totals.items()},
            "windows": _records(self.numbers), "drift": _records(drift), "quality": quality,
            "log": {"rows": self.log.rows, "bytes": self.log.size, "dropped": self.log.dropped,
                    "unreadable": self.log.unreadable, "days": self.log.days},
            "events": [{"time": when.isoformat(), "what": what} for when, what in self.events],
            "alerts": [each.to_dict() for each in self.alerts], "notes": list(self.notes),
        }  # fmt: skip

    def __repr__(self) -> str:
        return health_drawing.text(self)

    def _repr_html_(self) -> str:
        return health_drawing.page(self)

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if self.trend is None or not self.trend.missing or not in_kernel():
            display(self._shown(), raw=True)
            return
        handle = display(self._shown(), raw=True, display_id=True)
        threading.Thread(target=self._follow, args=(handle,), name="nbdeploy-watch", daemon=True).start()

    def _follow(self, handle: Any) -> None:
        """Measure the drift, and show how far it is."""
        shown = time.monotonic()

        def on_each(_done: int) -> None:
            nonlocal shown
            if time.monotonic() - shown > AGAIN:
                handle.update(self._shown(), raw=True)
                shown = time.monotonic()

        assert self.trend is not None
        with suppress(Exception):  # the kernel ends: the page stays as it is
            self.trend.complete(on_each)
            handle.update(self._shown(), raw=True)

    def _shown(self) -> dict[str, str]:
        return {"text/html": self._repr_html_(), "text/plain": repr(self)}


def in_kernel() -> bool:
    """Whether this runs in a notebook's kernel, which can show something again."""
    ipython = sys.modules.get("IPython")
    return hasattr(ipython and ipython.get_ipython(), "kernel")


def _facts(counted: Counted) -> dict[str, Any]:
    return {
        "requests": counted.requests, "errors": counted.errors, "refused": counted.refused, "rows": counted.rows,
        "dropped": counted.dropped, "reasons": dict(counted.reasons),
        "p50": _number(counted.quantile(0.5)), "p99": _number(counted.quantile(0.99)),
    }  # fmt: skip


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {key: value.isoformat() if isinstance(value, pd.Timestamp) else _number(value) for key, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value

"""How the drift of a deployment went: its share of drifted columns, window by window.

A window that is over never changes, so what was measured is kept on the disk, and measured once. The rest takes Evidently,
which takes its time: whoever shows it shows first what is known.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nbdeploy import drift_windows, model_store
from nbdeploy.drift_columns import shortened, visible
from nbdeploy.errors import DriftError, NbdeployError, NotFound
from nbdeploy.health_windows import Windows
from nbdeploy.home import check_name, folder, read_json, write_json
from nbdeploy.signature import Signature

if TYPE_CHECKING:
    from nbdeploy.drift_result import DriftReport

MOST = 8  # windows, where nobody says how long they are
LIMIT = 30  # else the newest
KEPT = 2_000  # measurements on the disk
SETTLED = 120.0  # seconds after a window's end: what is still on its way into the log is there
NAMED = 3  # columns


@dataclass(frozen=True)
class DriftWindow:
    """The drift of one window, in seconds since the epoch.

    Attributes
    ----------
    version : str
        Which one was live at its end, and is measured; '' where none was.
    share : float
        Of the columns that can be judged, those that drift; NaN where none can be, or nobody asked.
    drifted : bool
        Whether that is drift of the whole.
    rows : int
        How many were asked; 0 where nobody asked.
    columns : tuple of str
        Those that drift most, as text that shows.
    measured : bool
    """

    start: float
    end: float
    version: str
    share: float = math.nan
    drifted: bool = False
    rows: int = 0
    columns: tuple[str, ...] = ()
    measured: bool = False


class DriftTrend:
    """The drift of all windows of a stretch of time, measured when somebody wants it.

    Parameters
    ----------
    live : callable
        Which version was live at a moment; '' where none was.
    measure : callable
        The drift of a window.
    """

    def __init__(
        self,
        name: str,
        where: Windows,
        live: Callable[[float], str],
        measure: Callable[[str, DriftWindow], DriftWindow] | None = None,
    ) -> None:
        self.name, self._measure = name, measure or measured
        self._lock = threading.Lock()
        self.trouble = ""
        spans = [(start, end) for start, end in where.spans if end > start][-LIMIT:]
        kept = _kept(name)
        self._windows = [_known(kept, DriftWindow(start, end, live(end))) for start, end in spans]

    @property
    def known(self) -> list[DriftWindow]:
        """Every window, oldest first, as far as it is measured."""
        return list(self._windows)

    @property
    def missing(self) -> int:
        """How many windows are not measured yet."""
        return 0 if self.trouble else sum(not each.measured for each in self._windows)

    def complete(self, on_each: Callable[[int], None] = lambda _done: None) -> list[DriftWindow]:
        """Measure what is missing, the newest first; `on_each` is called with how many are done. Another thread waits."""
        with self._lock:
            for place in reversed(range(len(self._windows))):
                if self._windows[place].measured or self.trouble:
                    continue
                try:
                    found = self._measure(self.name, self._windows[place])
                except (NbdeployError, ImportError, OSError) as error:
                    self.trouble = str(error) or type(error).__name__
                    break
                self._windows[place] = found
                if found.end + SETTLED < time.time():
                    _keep(self.name, found)
                on_each(len(self._windows) - self.missing)
        return self.known


def frame_of(found: Sequence[DriftWindow]) -> pd.DataFrame:
    """What is measured: ``start``, ``end`` (UTC), ``version``, ``share``, ``drifted``, ``rows`` and ``columns``."""
    rows = [(each.start, each.end, each.version, each.share, each.drifted, each.rows, list(each.columns))
            for each in found if each.measured]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["start", "end", "version", "share", "drifted", "rows", "columns"])
    return frame.assign(**{key: pd.to_datetime(frame[key], unit="s", utc=True) for key in ("start", "end")})


def measured(name: str, window: DriftWindow) -> DriftWindow:
    """Measure the drift of one window.

    Raises
    ------
    NbdeployError
        It cannot be measured, and no other window can.
    ImportError
        Evidently is not installed.
    """
    nothing = replace(window, measured=True)
    if not window.version:
        return nothing
    start, end = (datetime.fromtimestamp(moment, timezone.utc) for moment in (window.start, window.end))
    try:
        report = _report(name, window.version, start, end)
    except (DriftError, NotFound):  # nobody asked, or the version was deleted
        return nothing
    names = [str(column) for column, found in report.columns["drifted"].items() if found is True or found == 1]
    return replace(
        window,
        share=math.nan if report.verdict == "no verdict" else float(report.share),
        drifted=bool(report.drifted),
        rows=int(report.rows_current),
        columns=tuple(shortened(visible(column), 40) for column in names[:NAMED]),
        measured=True,
    )


def _report(name: str, version: str, start: datetime, end: datetime) -> DriftReport:
    def signature_of(answered_by: str) -> Signature | None:
        with suppress(NotFound):
            return model_store.get(name, answered_by).signature
        return None

    return drift_windows.drift(name, version, signature_of, since=start, until=end, page=False)


# -- what is kept -------------------------------------------------------------------------------------------


def _key(window: DriftWindow) -> str:
    return f"{window.version} {window.start:.0f} {window.end:.0f}"


def _known(kept: dict[str, Any], window: DriftWindow) -> DriftWindow:
    with suppress(KeyError, TypeError, ValueError, AttributeError):
        held = kept[_key(window)]
        share = held["share"]
        return replace(
            window, share=math.nan if share is None else float(share), drifted=bool(held["drifted"]),
            rows=int(held["rows"]), columns=tuple(visible(str(each)) for each in held["columns"][:NAMED]), measured=True,
        )  # fmt: skip
    return window


def _keep(name: str, window: DriftWindow) -> None:
    """Keep one more; of two who write at once, one measures it again some day."""
    facts = {key: value for key, value in asdict(window).items() if key in ("share", "drifted", "rows", "columns")}
    facts["share"] = None if math.isnan(window.share) else window.share
    with suppress(OSError, NbdeployError):
        held = {**_kept(name), _key(window): facts}
        write_json(_place(name), dict(list(held.items())[-KEPT:]))


def _kept(name: str) -> dict[str, Any]:
    with suppress(OSError, NbdeployError):
        held = read_json(_place(name))
        if isinstance(held, dict):
            return held
    return {}


def _place(name: str) -> Path:
    return folder("health") / f"{check_name(name)}-drift.json"


def newest(found: Sequence[DriftWindow]) -> DriftWindow | None:
    """The newest window that can be judged."""
    return next((each for each in reversed(found) if each.measured and not math.isnan(each.share)), None)

"""Evidently, loaded in the background of a notebook, so that the first report does not wait for it."""

from __future__ import annotations

import importlib.util
import threading

from nbdeploy.drift_tests import load

PAUSE = 3.0  # seconds: whoever deploys asks something first, and a notebook that only deploys never pays

_started = threading.Event()
_done = threading.Event()


def in_background(after: float = PAUSE) -> None:
    """Import Evidently in a thread of its own, once in a process, `after` so many seconds; at once comes back.

    It takes the interpreter's lock like any import, in slices: a cell that runs meanwhile is slower, and is not kept
    waiting (docs/benchmarks.md). The filters for warnings are those of the process, and are left alone; where they
    make an import fail, the first report imports it again, without.
    """
    if _started.is_set() or importlib.util.find_spec("evidently") is None:
        return
    _started.set()
    threading.Thread(target=_load, args=(after,), name="nbdeploy-warming", daemon=True).start()


def done() -> bool:
    """Whether it has been tried."""
    return _done.is_set()


def _load(after: float) -> None:
    threading.Event().wait(after)
    try:
        load()
    except Exception:  # noqa: BLE001 - the first report says what is wrong with it
        return
    finally:
        _done.set()

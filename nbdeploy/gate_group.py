"""Several gates of one version: side by side where cores allow, on a service that may have to be started for them."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from nbdeploy.errors import GateError
from nbdeploy.gate import GateRun, Job
from nbdeploy.gate_parameters import JSON
from nbdeploy.gate_result import GateResult
from nbdeploy.notebook_thread import show_progress

Served = Callable[[Callable[[], None]], AbstractContextManager[Mapping[str, JSON]]]


class GateRuns:
    """Gates that run in the background, as many at once as there are cores. They end with their caller.

    Parameters
    ----------
    jobs : sequence of Job
        What `nbdeploy.gate.prepare` found fit to run.
    served : callable
        A context in which the service answers; it gives the parameters that say where. It gets a function to call
        while it waits.
    on_progress : callable, optional
        Called with the cells done and their total, of all gates together.
    shown : bool
        Whether `wait` shows a bar for each.

    Attributes
    ----------
    done : bool
        Whether there is a verdict, or a reason why there is none.
    progress : tuple of int
        How many cells are done, and how many there are, of all gates together.
    state : str
        What the gate that is least far is doing.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        served: Served,
        *,
        on_progress: Callable[[int, int], None] | None = None,
        shown: bool = True,
        at_once: int = 0,
    ) -> None:
        self._places = [_Place(job, self._on_progress, one_of_several=len(jobs) > 1) for job in jobs]
        self._served = served
        self._told, self._shown = on_progress, shown
        self._at_once = at_once or min(_cores(), len(jobs))
        self._cancelled = False
        self._result: GateResult | None = None
        self._error: BaseException | None = None
        self._ended = threading.Event()
        atexit.register(self.cancel)
        threading.Thread(target=self._run, name="nbdeploy-gates", daemon=True).start()

    @property
    def done(self) -> bool:
        return self._ended.is_set()

    @property
    def progress(self) -> tuple[int, int]:
        each = [place.progress for place in self._places]
        return sum(done for done, _ in each), sum(total for _, total in each)

    @property
    def state(self) -> str:
        slowest = min(self._places, key=lambda place: place.progress[0] - place.progress[1])
        return slowest.state

    def result(self, timeout: float | None = None) -> GateResult:
        """Return the verdict, after waiting for it at most `timeout` seconds, or raise what prevented it."""
        if not self._ended.wait(timeout):
            msg = f"The gates are still running after {timeout} s: {self.state}"
            raise TimeoutError(msg)
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def wait(self) -> GateResult:
        """Wait for the verdict under progress bars. An interrupt ends everything before it is raised again."""
        try:
            if self._shown:
                show_progress({place.title: place for place in self._places}, self._ended.wait)
            return self.result()
        except BaseException:
            self.cancel()
            self._ended.wait(20)
            raise

    def cancel(self) -> None:
        """Kill the gates' kernels, and end the service that was started for them."""
        self._cancelled = True
        for place in self._places:
            if place.run is not None:
                place.run.cancel()

    def __repr__(self) -> str:
        done, total = self.progress
        return repr(self._result) if self._result else f"Gates running, {done} of {total} cells: {self.state}"

    def _run(self) -> None:
        try:
            with self._served(self._on_wait) as values:
                self._result = GateResult.of(self._verdicts(values))
        except BaseException as error:  # noqa: BLE001 - result() raises it, in the thread that asks
            self._error = error
        finally:
            atexit.unregister(self.cancel)
            self._ended.set()

    def _on_wait(self) -> None:
        if self._cancelled:
            msg = "The gates were cancelled before there was a service to ask"
            raise GateError(msg)

    def _verdicts(self, values: Mapping[str, JSON]) -> list[GateResult]:
        waiting, running = [*self._places], list[_Place]()
        try:
            while waiting or running:
                while waiting and len(running) < self._at_once:
                    running.append(waiting.pop(0).start(values))
                    if self._cancelled:  # it may not have seen this one
                        self.cancel()
                time.sleep(0.02)
                running = [place for place in running if not place.ended]
                for place in self._places:
                    place.raise_error()
        except BaseException:
            self.cancel()
            raise
        finally:
            for place in running:
                place.wait(15)
        return [place.verdict() for place in self._places]

    def _on_progress(self) -> None:
        if self._told is not None:
            try:
                self._told(*self.progress)
            except Exception:  # who watches must not change what is seen
                logging.getLogger("nbdeploy.gate").exception("on_progress raised")


class _Place:
    """One gate among several, before and while it runs."""

    def __init__(self, job: Job, on_progress: Callable[[], None], *, one_of_several: bool) -> None:
        self.job = job
        self._one_of_several = one_of_several
        self.run: GateRun | None = None
        self._on_progress = on_progress

    @property
    def title(self) -> str:
        return self.job.title + (f" by {self.job.path.name}" if self._one_of_several else "")

    @property
    def progress(self) -> tuple[int, int]:
        done, total = self.run.progress if self.run is not None else (0, 0)
        return done, total or len(self.job.source["cells"])

    @property
    def state(self) -> str:
        return self.run.state if self.run is not None else "starting"

    @property
    def ended(self) -> bool:
        return self.run is not None and self.run.done

    def start(self, values: Mapping[str, JSON]) -> _Place:
        self.run = GateRun(self.job.told(values), lambda _done, _total: self._on_progress(), shown=False)
        return self

    def raise_error(self) -> None:
        """Raise what kept this one from a verdict: the others need not go on then."""
        if self.ended:
            self.verdict()

    def wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.ended and time.monotonic() < deadline:
            time.sleep(0.02)

    def verdict(self) -> GateResult:
        assert self.run is not None
        return self.run.result()


def _cores() -> int:
    """How many of the machine's cores this process may use."""
    with_affinity: Any = getattr(os, "sched_getaffinity", None)
    return len(with_affinity(0)) if with_affinity is not None else os.cpu_count() or 1

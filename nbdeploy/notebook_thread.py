"""A notebook that runs in a thread of its own, watched and stopped from another: what gates and all others share."""

from __future__ import annotations

import atexit
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from nbdeploy.gate_runner import Recording
    from nbdeploy.gate_secrets import Secrets

Result = TypeVar("Result")

MAX_OUTPUT = 20_000_000  # bytes


class Watched(Protocol):
    """What a bar shows."""

    @property
    def progress(self) -> tuple[int, int]: ...

    @property
    def state(self) -> str: ...


class NotebookThread(ABC, Generic[Result]):
    """A notebook's run. It ends with its caller: no kernel outlives the process.

    Attributes
    ----------
    done : bool
        Whether there is a result, or a reason why there is none.
    progress : tuple of int
        How many of its cells are done, and how many there are.
    state : str
        What it is doing: the heading above the current cell.
    """

    noun = "notebook"

    def __init__(self, title: str, on_progress: Callable[[int, int], None] | None, shown: bool) -> None:
        self.progress = (0, 0)
        self.state = "starting"
        self._title = title
        self._on_progress = on_progress
        self._shown = shown
        self._recording: Recording | None = None
        self._cancelled = False
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._ended = threading.Event()
        atexit.register(self.cancel)
        threading.Thread(target=self._run, name=f"nbdeploy-{self.noun}", daemon=True).start()

    @abstractmethod
    def _work(self) -> Result: ...

    @property
    def done(self) -> bool:
        return self._ended.is_set()

    def result(self, timeout: float | None = None) -> Result:
        """Return the result, after waiting for it at most `timeout` seconds, or raise what prevented it."""
        if not self._ended.wait(timeout):
            msg = f"The {self.noun} is still running after {timeout} s: {self.state}"
            raise TimeoutError(msg)
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def wait(self) -> Result:
        """Wait for the result under a progress bar. An interrupt kills the kernel before it is raised again."""
        try:
            if self._shown:
                show_progress({self._title: self}, self._ended.wait)
            return self.result()
        except BaseException:
            self.cancel()
            if self._recording is not None:  # else there is no kernel, and none will be started
                self._ended.wait(15)
            raise

    def cancel(self) -> None:
        """Kill the kernel; the result then says that it was cancelled."""
        self._cancelled = True
        if self._recording is not None and not self.done:
            self._recording.cancelled = True
            self._recording.leash.cut()

    def __repr__(self) -> str:
        done, total = self.progress
        running = f"{self.noun.capitalize()} running, {done} of {total} cells: {self.state}"
        return repr(self._result) if self._result else running

    def _executed(
        self,
        source: Mapping[str, Any],
        path: Path,
        parameters: Mapping[str, Any],
        *,
        nonce: str,
        folder: Path,
        env: Mapping[str, str],
        timeout: float,
        hidden: Secrets,
    ) -> Recording:
        """Run `source`, which stands in `path`, and return what was heard of it, without secrets."""
        from nbdeploy import gate_runner

        notebook = gate_runner.load(source, path)
        self._recording = recording = gate_runner.Recording(nonce, MAX_OUTPUT, self._on_cell)
        if self._cancelled:  # before there was anything to cancel
            self.cancel()
        gate_runner.execute(notebook, parameters, recording, folder=folder, env=env, timeout=timeout)
        recording.hide(hidden)
        return recording

    def _on_cell(self, done: int, total: int, heading: str) -> None:
        self.state = heading or self.state
        self.progress = (done, total)
        if self._on_progress is not None:
            try:
                self._on_progress(done, total)
            except Exception:  # who watches must not change what is seen
                logging.getLogger("nbdeploy.gate").exception("on_progress raised")

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - result() raises it, in the thread that asks
            self._error = error
        finally:
            atexit.unregister(self.cancel)
            self._ended.set()


def show_progress(bars: Mapping[str, Watched], ended: Callable[[float], bool]) -> None:
    """Draw one bar for each title until `ended`, which waits for that many seconds, says so.

    Drawn in the caller's thread: a widget belongs to the cell that runs.
    """
    from tqdm.auto import tqdm

    with ExitStack() as open_bars:
        drawn = [
            (open_bars.enter_context(tqdm(desc=title, unit="cell", total=1, position=place)), watched)
            for place, (title, watched) in enumerate(bars.items())
        ]
        over = False
        while not over:
            over = ended(0.1)
            for bar, watched in drawn:
                done, total = watched.progress
                if (bar.n, bar.total, bar.postfix) != (done, total or 1, watched.state):
                    bar.n, bar.total = done, total or 1
                    bar.set_postfix_str(watched.state, refresh=False)
                    bar.refresh()

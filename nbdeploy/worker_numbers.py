"""The numbers of a deployment's workers: each has a file of its own, and reads those of the others.

A file is replaced whole, so a reader sees old or new numbers. A disk that refuses keeps the old ones there; a worker's
own are always right in its own answers.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from nbdeploy import processes
from nbdeploy.home import note_in_work, write_note

INTERVAL = 0.25  # seconds between two writes
# The bounds of histograms of seconds. They stand here for whoever reads them and must not load pandas.
SECONDS = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 0.75,
    1, 2.5, 5, 10, 30, 60,
)  # fmt: skip
SHADOW = "shadow-"  # begins the label of a process whose answers nobody gets
ENDED = "ended.json"
MAX_ENDED = 1_000  # names of files that are counted in ENDED already, and may still be there

# By metric, by labels: a number, or a histogram's counts and its sum.
Numbers = dict[str, dict[tuple[str, ...], list[float]]]
Ended = tuple[Numbers, Numbers]  # of those that answered users, and of shadows


def add(found: dict[tuple[str, ...], list[float]], key: tuple[str, ...], numbers: Sequence[float]) -> None:
    """Add `numbers` to those that `found` has at `key`."""
    held = found.get(key)
    if held is None:
        found[key] = list(numbers)
    elif len(held) == len(numbers):  # other buckets are of another nbdeploy, which a worker was restarted with
        found[key] = [one + other for one, other in zip(held, numbers, strict=True)]


@dataclass(frozen=True)
class Worker:
    """One worker's numbers as they stood when its file was written.

    Attributes
    ----------
    began : float
        Seconds since the epoch.
    started : float
        What `processes.started` says of `pid`: with it the identity of the process.
    """

    label: str
    pid: int
    started: float
    began: float
    numbers: Numbers
    closed: bool = False

    def to_bytes(self) -> bytes:
        numbers = {name: list(found.items()) for name, found in self.numbers.items()}
        return orjson.dumps({"label": self.label, "pid": self.pid, "started": self.started, "began": self.began,
                             "numbers": numbers, "closed": self.closed})  # fmt: skip

    @classmethod
    def from_bytes(cls, body: bytes) -> Worker:
        held = orjson.loads(body)
        return cls(**{**held, "numbers": _parsed(held["numbers"])})

    @property
    def is_shadow(self) -> bool:
        return self.label.startswith(SHADOW)

    @property
    def alive(self) -> bool:
        return not self.closed and self.started > 0 and abs(processes.started(self.pid) - self.started) < 0.05


class Share:
    """The file of this worker, and what all files together say.

    Parameters
    ----------
    folder : Path or None
        Without one there are no files, and no other worker.
    label : str
        What this worker is called in its metrics.
    numbers : callable
        What it has counted so far.
    """

    def __init__(self, folder: Path | None, label: str, numbers: Callable[[], Numbers]) -> None:
        self._folder, self._label, self._numbers = folder, label, numbers
        self._began, self._started = time.time(), processes.started(os.getpid())
        self._ending = threading.Event()
        self._written = b""
        self._path = folder / f"worker-{os.getpid()}-{secrets.token_hex(4)}.json" if folder is not None else None
        self._writer: threading.Thread | None = None
        self._within: int | None = None
        self._parent = os.getppid()
        self._closed = False
        if folder is not None:
            with suppress(OSError):
                self._within = _opened(folder)
                _fold(folder)
            self._write()
            self._writer = threading.Thread(target=self._keep_writing, name="metrics", daemon=True)
            self._writer.start()

    def counted(self) -> Numbers:
        """What every worker has counted, those that ended too."""
        others, ended = self._others()
        return _sum([*ended, self._own().numbers, *(other.numbers for other in others)])

    def living(self) -> list[Worker]:
        """The workers that answer now, the eldest first."""
        own = [] if self._ending.is_set() else [self._own()]
        return sorted([*(each for each in self._others()[0] if each.alive), *own], key=lambda one: one.began)

    def close(self) -> None:
        """Write the numbers for the last time."""
        self._ending.set()
        if self._writer is not None:
            self._writer.join(2)
        self._write()
        if self._within is not None:
            os.close(self._within)
            self._within, self._closed = None, True

    def _own(self) -> Worker:
        return Worker(
            self._label, os.getpid(), self._started, self._began, self._numbers(), closed=self._ending.is_set()
        )

    def _keep_writing(self) -> None:
        while not self._ending.wait(INTERVAL):
            self._write()

    def _write(self) -> None:
        if self._path is None or self._closed:
            return
        body = self._own().to_bytes()
        if body == self._written:
            return
        with suppress(OSError):  # a full disk, or a folder that is gone: nobody else sees the newest numbers
            try:
                write_note(self._path, body, within=self._within)
            except FileNotFoundError:
                # Another folder is in its place. Where our service has ended, it is that of the next one.
                if os.getppid() != self._parent:
                    return
                write_note(self._path, body)
                former, self._within = self._within, _opened(self._path.parent)
                if former is not None:
                    os.close(former)
            self._written = body

    def _others(self) -> tuple[list[Worker], Ended]:
        if self._folder is None:
            return [], ({}, {})
        found = [(path.name, worker) for path, worker in _workers(self._folder) if path != self._path]
        # Read last: a file that was folded into it meanwhile is named in it.
        folded, ended = _read_ended(self._folder)
        return [worker for name, worker in found if name not in folded], ended


def counted(folder: Path, *, shadows: bool | None = None) -> Numbers:
    """What the workers that share `folder` have counted, those that ended too, as far as their files say.

    Parameters
    ----------
    shadows : bool, optional
        Only what was counted by shadows, or only what was not. By default all.
    """
    workers = _workers(folder)
    folded, ended = _read_ended(folder)  # last, as in `Share`
    found = [(each.is_shadow, each.numbers) for path, each in workers if path.name not in folded]
    return _sum(numbers for is_shadow, numbers in [*enumerate(ended), *found] if shadows in (None, is_shadow))


def _opened(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _sum(parts: Iterable[Numbers]) -> Numbers:
    whole: Numbers = {}
    for numbers in parts:
        for name, found in numbers.items():
            sums = whole.setdefault(name, {})
            for key, one in found.items():
                add(sums, key, one)
    return whole


def gauges_of(living: Sequence[Worker]) -> Numbers:
    """The sums of what the living workers have now, and what each of their processes uses."""
    whole: Numbers = {}
    for worker in living:
        for name, found in worker.numbers.items():
            for key, one in found.items():
                add(whole.setdefault(name, {}), key, one)
        for version in {key[0] for key in worker.numbers.get("nbdeploy_workers", {})}:
            for name, value in _usage(worker):
                whole.setdefault(name, {})[version, worker.label] = [value]
    for key in whole.get("nbdeploy_info", {}):
        whole["nbdeploy_info"][key] = [1]
    return whole


def _usage(worker: Worker) -> Iterator[tuple[str, float]]:
    import psutil

    yield "nbdeploy_worker_start_time_seconds", worker.began
    with suppress(psutil.Error):
        process = psutil.Process(worker.pid)
        with process.oneshot():
            times = process.cpu_times()
            yield "nbdeploy_worker_resident_memory_bytes", process.memory_info().rss
            yield "nbdeploy_worker_cpu_seconds", times.user + times.system
            yield "nbdeploy_worker_open_fds", process.num_fds()


def _fold(folder: Path) -> None:
    """Sum the files of workers that ended into one, so that a service that restarts often does not collect them."""
    with _lock(folder):
        folded, ended = _read_ended(folder)
        gone = [(path, worker) for path, worker in _workers(folder) if not worker.alive]
        for path, worker in gone:
            if path.name not in folded:
                for name, found in worker.numbers.items():
                    for key, one in found.items():
                        add(ended[worker.is_shadow].setdefault(name, {}), key, one)
        if gone:
            names = [*folded, *(path.name for path, _ in gone if path.name not in folded)]
            users, shadows = ({name: list(found.items()) for name, found in each.items()} for each in ended)
            facts = {"folded": names[-MAX_ENDED:], "numbers": users, "shadows": shadows}
            write_note(folder / ENDED, orjson.dumps(facts))
        for path, _ in gone:
            path.unlink(missing_ok=True)
            note_in_work(path).unlink(missing_ok=True)


def _workers(folder: Path) -> list[tuple[Path, Worker]]:
    found = []
    for path in sorted(folder.glob("worker-*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # torn: its worker writes it again
            found.append((path, Worker.from_bytes(path.read_bytes())))
    return found


def _read_ended(folder: Path) -> tuple[list[str], Ended]:
    try:
        held = orjson.loads((folder / ENDED).read_bytes())
        return held["folded"], (_parsed(held["numbers"]), _parsed(held.get("shadows", {})))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [], ({}, {})


def _parsed(numbers: Mapping[str, Any]) -> Numbers:
    return {name: {tuple(key): one for key, one in found} for name, found in numbers.items()}


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

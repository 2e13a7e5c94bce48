"""What a worker hands to the shadows: the requests that it has answered, as far as they keep up."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from nbdeploy.exchange import Asked
from nbdeploy.shadow_frames import Frame, connect, socket_path
from nbdeploy.worker_numbers import Numbers, Share

BUDGET = 8 << 20  # bytes that wait for one shadow; what is larger alone is never handed on
MAX_WAITING = 1_000  # requests, the same
TOGETHER = 32  # requests of one system call
# Seconds that a request waits for others: fewer system calls here, larger model calls there.
GATHER = 0.005
PAUSE = 0.1  # seconds between two tries to reach a shadow

logger = logging.getLogger("bentoml.nbdeploy")


class ShadowFeed:
    """Hands requests to the processes of the shadows; see `nbdeploy.shadow_worker`.

    Nothing here waits, and nothing raises: a shadow that is not there, hangs or is slower than the users ask loses
    requests, and they are counted. All of it happens in the event loop's thread.

    Parameters
    ----------
    folder : Path
        Where the shadows' sockets are.
    budget_bytes : int
        How much may wait for one shadow.
    metrics, worker
        Where the workers of the deployment leave their numbers, and which one this is.

    Attributes
    ----------
    sent, dropped : dict of int
        Requests by the shadow's version. What a shadow had been sent when it died counts as sent.
    """

    def __init__(
        self, folder: Path, *, budget_bytes: int = BUDGET, metrics: Path | None = None, worker: str = ""
    ) -> None:
        self._folder, self._budget = folder, budget_bytes
        self._pipes: dict[str, _Pipe] = {}
        self.sent: dict[str, int] = {}
        self.dropped: dict[str, int] = {}
        self._metrics, self._worker = metrics, worker
        self._share: Share | None = None

    def set_versions(self, versions: Sequence[str]) -> None:
        """Feed these shadows from now on, and no others."""
        for version in [*self._pipes]:
            if version not in versions:
                self._pipes.pop(version).close()
        if versions and self._share is None and self._metrics is not None:  # most deployments never have a shadow
            self._share = Share(self._metrics, self._worker, self._numbers)
        for version in versions:
            if version not in self._pipes:
                for counts in (self.sent, self.dropped):
                    counts.setdefault(version, 0)
                path = socket_path(self._folder, version)
                pipe = _Pipe(path, self._budget, self._count(self.sent, version), self._count(self.dropped, version))
                self._pipes[version] = pipe
                with suppress(RuntimeError):  # the loop does not run yet: the first request begins it
                    pipe.begin()

    def offer(self, asked: Asked, request: str, rows: int) -> None:
        """Hand on a request of a user that has been answered; `request` is its id."""
        if not self._pipes:
            return
        try:
            parts = Frame(asked, request, rows).parts
            size = sum(map(len, parts))
        except Exception:  # noqa: BLE001 - a shadow is not worth an answer
            for version in self._pipes:
                self.dropped[version] += 1
            return
        for version, pipe in self._pipes.items():
            try:
                pipe.put(parts, size)
            except Exception as error:  # noqa: BLE001 - the same
                self.dropped[version] += 1
                logger.warning("nothing reaches the shadow %s: %s", version, type(error).__name__)

    def close(self) -> None:
        """Let go of every shadow. What still waits is lost."""
        self.set_versions(())
        if self._share is not None:
            self._share.close()

    @staticmethod
    def _count(counts: dict[str, int], version: str) -> Callable[[int], None]:
        def count(requests: int) -> None:
            counts[version] += requests

        return count

    def _numbers(self) -> Numbers:
        told: dict[tuple[str, ...], list[float]] = {}
        for fate, counts in (("sent", self.sent), ("dropped", self.dropped)):
            told |= {(version, fate): [count] for version, count in [*counts.items()]}
        return {"nbdeploy_shadow_requests": told, "nbdeploy_workers": {}}  # this is no further worker


class _Pipe:
    """The connection to one shadow, and what waits to go through it."""

    def __init__(self, path: Path, budget: int, sent: Callable[[int], None], dropped: Callable[[int], None]) -> None:
        self._path, self._budget, self._sent, self._dropped = path, budget, sent, dropped
        self._loop: asyncio.AbstractEventLoop | None = None
        self._socket: socket.socket | None = None
        self._waiting: deque[tuple[tuple[bytes, ...], int]] = deque()
        self._held = self._gone = 0  # bytes that wait, and bytes of the first one that went already
        self._due: asyncio.TimerHandle | None = None  # of the next try to connect, or to send
        self._is_full = False  # the loop tells when there is room again

    def begin(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._connect()

    def put(self, parts: tuple[bytes, ...], size: int) -> None:
        if self._loop is None:
            self.begin()
        if self._socket is None or self._held + size > self._budget or len(self._waiting) >= MAX_WAITING:
            self._dropped(1)
            return
        self._waiting.append((parts, size))
        self._held += size
        if self._due is None and not self._is_full:
            assert self._loop is not None
            self._due = self._loop.call_later(GATHER, self._send)

    def close(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if self._socket is not None:
            assert self._loop is not None
            with suppress(RuntimeError):  # the loop is closed
                self._loop.remove_reader(self._socket)
                self._loop.remove_writer(self._socket)
            self._socket.close()
            self._socket = None
        self._dropped(len(self._waiting))
        self._waiting.clear()
        self._held = self._gone = 0
        self._is_full = False

    def _connect(self) -> None:
        assert self._loop is not None
        try:
            self._socket = connect(self._path)
        except OSError:
            self._due = self._loop.call_later(PAUSE, self._connect)
            return
        self._due = None
        self._loop.add_reader(self._socket, self._hear)

    def _hear(self) -> None:
        # A shadow says nothing. What can be read is its end.
        assert self._socket is not None
        with suppress(BlockingIOError, InterruptedError):
            with suppress(ConnectionError):
                if self._socket.recv(4096):
                    return
            self._lose()

    def _lose(self) -> None:
        assert self._loop is not None
        self.close()
        self._due = self._loop.call_later(PAUSE, self._connect)

    def _send(self) -> None:
        """Send what the kernel takes at once: never more than a socket's buffer holds, so it takes no time."""
        assert self._loop is not None
        assert self._socket is not None
        self._due = None
        views, skip = [], self._gone
        for parts, _ in islice(self._waiting, TOGETHER):
            for part in parts:
                if skip >= len(part):
                    skip -= len(part)
                    continue
                views.append(memoryview(part)[skip:])
                skip = 0
        try:
            self._took(self._socket.sendmsg(views))
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._lose()
            return
        if bool(self._waiting) is not self._is_full:
            self._is_full = not self._is_full
            if self._is_full:
                self._loop.add_writer(self._socket, self._send)
            else:
                self._loop.remove_writer(self._socket)

    def _took(self, count: int) -> None:
        count += self._gone
        while self._waiting and count >= self._waiting[0][1]:
            size = self._waiting.popleft()[1]
            count -= size
            self._held -= size
            self._sent(1)
        self._gone = count

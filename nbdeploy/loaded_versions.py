"""The versions that one worker has loaded: it follows the traffic file, and tells what it has applied.

A change is applied whole: while what it needs is being loaded, requests are answered as before, and then by the new
traffic from one request to the next.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import logging
import os
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from nbdeploy import routing
from nbdeploy.endpoint import Endpoint
from nbdeploy.errors import NbdeployError
from nbdeploy.home import write_note
from nbdeploy.routing import Traffic

LOOK_EVERY = 0.02  # seconds between two looks at the traffic file
START_SECONDS = 15.0  # for a worker that begins to have all that the traffic names, before it answers
LOAD_TIMEOUT = 110.0  # seconds; who waits for the acknowledgement waits a little longer
COLLECT_AFTER = (1.0, 4.0)  # seconds
DRAIN = 90.0  # seconds for requests of a version that is being unloaded

logger = logging.getLogger("bentoml.nbdeploy")


class State(Enum):
    """How far a version is in one worker. One that is not mentioned is not there."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True)
class Plan:
    """What a worker does next.

    Attributes
    ----------
    load : str
        The version to load now; '' for none. They are loaded one after the other.
    serve : bool
        Whether requests can go by the wanted traffic from now on.
    unload : tuple of str
    """

    load: str = ""
    serve: bool = False
    unload: tuple[str, ...] = ()


def plan(wanted: Traffic, states: Mapping[str, State], serving: frozenset[str]) -> Plan:
    """What to do so that requests go as `wanted` says, without ever leaving one unanswered.

    What answers now stays until all that is needed is ready, or has failed: the live version must be ready; a
    candidate that failed leaves its share to the live one. The only version that is ready is never unloaded, nor is
    one that answers.

    Parameters
    ----------
    states : mapping
        Of every version that is there.
    serving : frozenset of str
        The versions that requests go to now.
    """
    if wanted.live is None:
        return Plan()
    needed = (wanted.live, *wanted.candidates)
    asked = (*needed, *wanted.warm)
    settled = all(states.get(version) in (State.READY, State.FAILED) for version in needed)
    serve = settled and states[wanted.live] is State.READY
    kept = {*asked, *(wanted.before[-1:])}
    in_use = frozenset(version for version in needed if states.get(version) is State.READY) if serve else serving
    ready = [version for version, state in states.items() if state is State.READY]
    unload = [version for version in ready if version not in kept | in_use]
    if len(unload) == len(ready):
        unload = unload[1:]
    busy = State.LOADING in states.values()
    missing = [version for version in (*asked, *(wanted.before[-1:] if serve else ())) if version not in states]
    return Plan("" if busy or not missing else missing[0], serve, tuple(unload))


@dataclass
class _Loaded:
    state: State
    endpoint: Endpoint | None = None
    why: str = ""
    work: asyncio.Task[None] | None = field(default=None, repr=False)


class LoadedVersions:
    """Loads and unloads what the traffic file asks for, and has requests routed by it.

    Everything but the loading itself happens in the event loop's thread.

    Parameters
    ----------
    endpoint : Endpoint
        The version that the worker has started with.
    place : Path
        The traffic file.
    since : int
        The generation from which on it is followed: what is older belongs to an earlier service.
    load : callable
        Loads a version, in another thread; what it raises is the reason why it is not there.
    route : callable
        Has requests go by a traffic, to these endpoints.
    note : Path, optional
        Where this worker acknowledges the generation that it has applied.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        place: Path,
        *,
        since: int,
        load: Callable[[str], Endpoint],
        route: Callable[[Traffic, Mapping[str, Endpoint]], None],
        note: Path | None = None,
    ) -> None:
        self._place, self._since, self._load, self._route, self._note = place, since, load, route, note
        self._versions = {endpoint.version: _Loaded(State.READY, endpoint)}
        self._serving = frozenset({endpoint.version})
        self._wanted = Traffic(endpoint.name)
        self._applied = -1
        self._in_force = Traffic(endpoint.name)
        self._seen: tuple[int, int, int] | None = None
        self._arrived = asyncio.Event()  # nothing that requests need is being loaded

    async def follow(self) -> None:
        """Follow the file until cancelled."""
        while True:
            try:
                self.look()
            except (OSError, NbdeployError) as error:  # a disk, or somebody's editor
                logger.warning("the traffic cannot be read, and stays as it is: %s", error)
            await asyncio.sleep(LOOK_EVERY)

    async def settle(self, seconds: float = START_SECONDS) -> None:
        """Wait until requests can go as the traffic says, so that a new worker sends nobody to another version.

        What fails, or takes longer, holds up nobody: the others answer for it.
        """
        if self._wanted.live is not None:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), seconds)

    def look(self) -> None:
        """Take up a change of the file."""
        try:
            about = self._place.stat()
        except FileNotFoundError:
            return
        seen = (about.st_mtime_ns, about.st_ino, about.st_size)
        if seen == self._seen:
            return
        try:
            wanted = routing.read(self._place)
        except NbdeployError:
            self._seen = seen  # it is told once, and looked at again when it has changed
            raise
        self._seen = seen
        if wanted.live is None or wanted.generation < self._since or wanted.generation == self._wanted.generation:
            return
        self._wanted = wanted
        for version in [v for v, held in self._versions.items() if held.state is State.FAILED]:
            del self._versions[version]  # somebody may have mended it
        self._step()

    def _step(self) -> None:
        """Do what can be done now; what is being loaded calls again when it is there."""
        while True:
            states = {version: held.state for version, held in self._versions.items()}
            todo = plan(self._wanted, states, self._serving)
            if todo.serve and self._applied != self._wanted.generation:
                self._apply()
                continue
            if not todo.unload and not todo.load:
                break
            for version in todo.unload:
                self._unload(version)
            if todo.unload:
                self._picture()
            if todo.load:
                held = self._versions[todo.load] = _Loaded(State.LOADING)
                held.work = asyncio.create_task(self._bring(todo.load, held))
        needed = (self._wanted.live, *self._wanted.candidates)
        if all(version in states and states[version] is not State.LOADING for version in needed):
            self._arrived.set()
        self._acknowledge()

    def _apply(self) -> None:
        self._in_force = self._wanted
        self._applied = self._wanted.generation
        ready = {endpoint.version for endpoint in self.endpoints}
        self._serving = frozenset(ready.intersection((self._wanted.live, *self._wanted.candidates)))
        self._picture()

    def _picture(self) -> None:
        """Have the application see what is loaded."""
        if self._in_force.live is not None:
            self._route(self._in_force, {endpoint.version: endpoint for endpoint in self.endpoints})

    async def _bring(self, version: str, held: _Loaded) -> None:
        before = _resident()
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(None, self._load, version)
        try:
            held.endpoint = await asyncio.wait_for(asyncio.shield(work), LOAD_TIMEOUT)
            held.state = State.READY
            self._picture()
            gc.freeze()  # it stays: the collector need not look at it in the middle of a request
            logger.info("%s is loaded, with %d MB", version, max(0, _resident() - before) >> 20)
        except asyncio.TimeoutError:
            held.why = f"it was not loaded within {LOAD_TIMEOUT:.0f} s"
            work.add_done_callback(_close_late)
        except Exception as error:  # noqa: BLE001 - whatever a model's library raises
            held.why = str(error) if isinstance(error, NbdeployError) else f"{type(error).__name__}: {error}"
        if held.why:
            held.state = State.FAILED
            logger.error("%s is not loaded: %s", version, held.why)
        self._step()

    def _unload(self, version: str) -> None:
        held = self._versions.pop(version)
        if held.endpoint is not None:
            task = asyncio.create_task(_end(held.endpoint))
            _ending.add(task)
            task.add_done_callback(_ending.discard)

    def _acknowledge(self) -> None:
        if self._note is None or self._wanted.live is None:
            return
        states = {version: held.state for version, held in self._versions.items()}
        asked = {self._wanted.live, *self._wanted.candidates, *self._wanted.warm}
        if any(states.get(version) not in (State.READY, State.FAILED) for version in asked):
            return
        with suppress(OSError):  # who waits for it says that it has not come
            told = {
                "generation": self._wanted.generation, "applied": self._applied == self._wanted.generation, "pid": os.getpid(),
                "loaded": sorted(v for v, state in states.items() if state is State.READY),
                "failed": {v: held.why for v, held in self._versions.items() if held.state is State.FAILED},
                "memory": _resident(),
            }  # fmt: skip
            write_note(self._note, json.dumps(told).encode())

    @property
    def endpoints(self) -> list[Endpoint]:
        """All that is loaded."""
        return [held.endpoint for held in self._versions.values() if held.endpoint is not None]


_ending: set[asyncio.Task[None]] = set()


async def _end(endpoint: Endpoint) -> None:
    """Close a version when its last request is answered, and give its memory back."""
    waited = 0.0
    while endpoint.in_use and waited < DRAIN:
        await asyncio.sleep(0.05)
        waited += 0.05
    await asyncio.get_running_loop().run_in_executor(None, endpoint.close)
    del endpoint
    # A look at every object takes a tenth of a second: not right after a change, and not in all workers at once.
    await asyncio.sleep(random.uniform(*COLLECT_AFTER))  # noqa: S311 - nobody is to guess it
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _close_late(work: asyncio.Future[Any]) -> None:
    # It was given up, and is there after all.
    if not work.cancelled() and work.exception() is None:
        work.result().close()


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)

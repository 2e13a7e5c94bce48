"""A shadow: a version that answers what users asked the live one, in a process of its own.

Run by the supervisor as ``python -m nbdeploy.shadow_worker VERSION``. What it answers goes into the log, under the ids of
the live version's answers, and nowhere else. Whatever it does, hang, crash or eat memory, happens to this process, which
has a lower priority than those that users wait for. It takes no more than it can answer: what it does not read waits
in `nbdeploy.shadow_feed`, and is dropped and counted there.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from nbdeploy import model_store
from nbdeploy.batching import Overloaded
from nbdeploy.endpoint import Endpoint
from nbdeploy.errors import InputError, NbdeployError
from nbdeploy.exchange import Asked, Refused, Route
from nbdeploy.home import folder, read_json, write_json
from nbdeploy.request_body import Unreadable
from nbdeploy.route_table import all_routes
from nbdeploy.serve_options import SPEC, ServeOptions
from nbdeploy.shadow_frames import Frame, Torn, is_own, listen, read_frame, socket_path
from nbdeploy.worker_numbers import SHADOW

PURPOSE = "shadow"
MAX_REQUESTS, MAX_ROWS, MAX_BYTES = 256, 20_000, 32 << 20  # in flight; one that is larger goes alone
NICER = 10
FIRST_TO_GO = 500  # of 1000, when the machine has no memory left
SELDOM = 60.0  # seconds between two lines of one kind: a shadow that always fails must not fill the disk
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG

logger = logging.getLogger("bentoml.nbdeploy")


class Shadow:
    """Reads frames from the workers of a deployment, and has one version answer them.

    Parameters
    ----------
    endpoint : Endpoint
        The version.
    max_requests, max_rows, max_bytes : int
        How much is in flight at once. Beyond it nothing is read.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        max_requests: int = MAX_REQUESTS,
        max_rows: int = MAX_ROWS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.endpoint = endpoint
        self._limits = (max_requests, max_rows, max_bytes)
        self._held = (0, 0, 0)
        self._freed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._routes: Mapping[str, Route] = {
            route.path: route for route in all_routes(endpoint, token=False) if route.read is not None
        }
        # A client of the Open Inference Protocol or of TensorFlow Serving may name the version that it asks.
        self._names_version = re.compile(rf"(/v[12]/models/{re.escape(endpoint.name)}/versions/)[^/:]+")

    async def serve(self, listener: socket.socket) -> None:
        """Answer whoever connects, until the process ends."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError:  # no descriptor left
                await asyncio.sleep(0.1)
                continue
            if is_own(connection):
                self._keep(self._hear(connection))
            else:
                connection.close()

    async def _hear(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        try:
            while (frame := await read_frame(reader, self.endpoint.options.max_body)) is not None:
                size = (1, frame.rows, len(frame.asked.body))
                while self._held[0] and any(h + s > m for h, s, m in zip(self._held, size, self._limits, strict=True)):
                    self._freed.clear()
                    await self._freed.wait()
                self._hold(size, 1)
                self._keep(self._answer(frame, size))
        except (Torn, ConnectionError) as error:
            logger.warning("the shadow %s lets go of a worker: %s", self.endpoint.version, error)
        finally:
            writer.close()

    async def _answer(self, frame: Frame, size: tuple[int, int, int]) -> None:
        endpoint, begun = self.endpoint, time.perf_counter()
        endpoint.metrics.arrived()
        path, status, reason = "other", 200, ""
        try:
            route = self._route(frame.asked)
            path = route.path
            # The same patience as users have.
            await asyncio.wait_for(self._logged(route, frame), endpoint.options.timeout)
        except Refused as refused:
            status, reason = refused.status, refused.reason
        except Unreadable:
            status, reason = 400, "unreadable"
        except InputError:
            status, reason = 422, "signature"
        except asyncio.TimeoutError:
            status, reason = 504, "deadline"
        except Exception as error:  # noqa: BLE001 - a model may raise anything
            endpoint.complain(f"the shadow {endpoint.version} failed", error)
            status, reason = 500, "model"
        finally:
            endpoint.metrics.finished(path, status, reason, time.perf_counter() - begun)
            self._hold(size, -1)

    def _route(self, asked: Asked) -> Route:
        paths = (asked.path, self._names_version.sub(rf"\g<1>{self.endpoint.version}", asked.path))
        found = (self._routes.get(path) or self._routes.get(path.rstrip("/")) for path in paths)
        route = next(filter(None, found), None)
        if route is None or route.method != asked.method:
            raise Refused(404, "this version has no such route")
        return route

    async def _logged(self, route: Route, frame: Frame) -> None:
        assert route.read is not None
        question = replace(route.read(frame.asked), purpose=PURPOSE, request=frame.request)
        while True:
            try:
                await self.endpoint.answer(question)
            except Overloaded:  # that it is slow is no error: it reads no more meanwhile
                await asyncio.sleep(0.1)
            else:
                return

    def _hold(self, size: tuple[int, int, int], sign: int) -> None:
        requests, rows, held = self._held
        self._held = (requests + sign * size[0], rows + sign * size[1], held + sign * size[2])
        self._freed.set()

    def _keep(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def note_path(name: str, version: str) -> Path:
    """Where the shadow `version` of a deployment says that it answers, or why it does not."""
    return folder("run", name, "applied") / f"shadow-{version}.json"


def main() -> None:
    """Answer until the supervisor ends it, or is gone."""
    version = sys.argv[1]
    spec = read_json(Path(os.environ[SPEC]))
    _step_back(spec.get("supervisor") or os.getppid())
    _log_seldom()

    def tell(failed: str) -> None:
        told = {"generation": 0, "ready": not failed, "pid": os.getpid(), "failed": failed}
        write_json(note_path(spec["name"], version), told)

    try:
        shadow = Shadow(_endpoint(spec, version))
        listener = listen(socket_path(Path(spec["folder"]), version))
    except BaseException as error:  # noqa: BLE001 - a library in Rust panics, a model may exit
        said = error.message if isinstance(error, NbdeployError) else f"{type(error).__name__}: {error}"
        logger.error("the shadow %s cannot start: %s", version, said)  # noqa: TRY400 - the traceback follows where it helps
        if not isinstance(error, NbdeployError):
            traceback.print_exc()
        tell(said or "it ended")
        sys.exit(1)
    _run_when_idle()
    with closing(listener):
        tell("")
        logger.info("%s:%s answers as a shadow, process %d", spec["name"], version, os.getpid())
        asyncio.run(shadow.serve(listener))


# -- helpers ------------------------------------------------------------------------------------------------


def _endpoint(spec: Mapping[str, Any], version: str) -> Endpoint:
    """The version, which has to be the one that was saved, and to answer as it did then."""
    found = model_store.get(spec["name"], version)
    return Endpoint(
        found.name, found.version, found.path, found.files, ServeOptions.from_dict(spec["options"]),
        folder=Path(spec["metrics"]) if "metrics" in spec else None, worker=f"{SHADOW}{version}", leads=False,
    )  # fmt: skip


def _step_back(parent: int) -> None:
    """Let everybody else go first, and end with `parent` even while a model hangs."""
    import psutil

    with suppress(OSError):
        os.nice(NICER)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(FIRST_TO_GO))
    if hasattr(psutil, "IOPRIO_CLASS_BE"):
        with suppress(psutil.Error, OSError):
            psutil.Process().ionice(psutil.IOPRIO_CLASS_BE, 7)
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _run_when_idle() -> None:
    """From now on a worker that wakes up has this process's core at once. To load, it must not wait for an idle one."""
    if hasattr(os, "SCHED_IDLE"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _end_with(parent: int) -> None:
    # Nobody waits for its answers: it ends at once, as it does on SIGTERM.
    while os.getppid() == parent:
        time.sleep(0.25)
    os._exit(1)


class _Seldom(logging.Filter):
    """Passes a message of one kind, whatever it says in particular, once in a while."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._again: dict[Any, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now, kind = self._clock(), (record.msg, record.levelno)
        if now < self._again.get(kind, 0.0):
            return False
        self._again[kind] = now + SELDOM
        return True


def _log_seldom() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(levelname)s] [shadow] %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(_Seldom())


if __name__ == "__main__":
    main()

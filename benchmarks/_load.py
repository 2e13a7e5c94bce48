"""Servers that are started, paused and ended by their process ids, and the load that they get: wrk, or one connection."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from typing_extensions import Self

SCRIPT = Path(__file__).with_name("serving_peers") / "rotate.lua"
JSON = "application/json"
START_SECONDS = 120


def cache() -> Path:
    """Where the environments of the peers are kept."""
    return Path(os.environ.get("NBDEPLOY_BENCH") or "~/.cache/nbdeploy-bench").expanduser()


def python_of(venv: str) -> str:
    """The Python of a peer's environment, which is made at first use and again when its requirements change."""
    if not venv:
        return sys.executable
    requirements = Path(__file__).with_name("serving_peers") / f"{venv}.txt"
    wanted = requirements.read_text() + requirements.with_name("common.txt").read_text() + sys.version
    digest = hashlib.sha256(wanted.encode()).hexdigest()
    place = cache() / venv
    python, made = place / "bin" / "python", place / "made-of"
    if not made.is_file() or made.read_text() != digest:
        if sys.version_info < (3, 11):
            msg = "The pinned versions of the peers need Python 3.11 or later."
            raise SystemExit(msg)
        print(f"installing {venv} into {place}, once", file=sys.stderr, flush=True)
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        quiet = ["--quiet", "--quiet", "--disable-pip-version-check"]
        subprocess.run([python, "-m", "pip", "install", *quiet, "-r", requirements], check=True, env=env)
        made.write_text(digest)
    return str(python)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(closing(socket.create_server(("127.0.0.1", 0)))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


class Failed(Exception):
    """A server does not do what it should; what it said is in the message."""


@dataclass
class Server:
    """A service that answers at `port`, with all of its processes.

    Attributes
    ----------
    seconds : float
        From the start of its first process to its first answer.
    """

    port: int
    log: Path
    seconds: float = 0.0
    processes: list[psutil.Process] = field(default_factory=list)

    def adopt(self, pid: int) -> None:
        """Take the process and its descendants as they are now."""
        with suppress(psutil.Error):
            first = psutil.Process(pid)
            known = {each.pid for each in self.processes}
            self.processes += [each for each in [first, *first.children(recursive=True)] if each.pid not in known]

    def pause(self) -> None:
        self._each("suspend", self.processes)

    def resume(self) -> None:
        self._each("resume", reversed(self.processes))

    def memory(self) -> tuple[float, float]:
        """Megabytes of its largest process, the worker: resident, and its own alone."""
        most = max((each.memory_full_info() for each in self.processes if each.is_running()), key=lambda m: m.rss)
        return most.rss / 2**20, most.uss / 2**20

    def cpu_seconds(self) -> float:
        """Processor time that all of its processes have used."""
        times = [each.cpu_times() for each in self.processes if each.is_running()]
        return sum(each.user + each.system for each in times)

    def settle(self, seconds: float = 10) -> None:
        """Return when it has nothing to do any more: it goes on with what its clients asked before they left."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            used = self.cpu_seconds()
            time.sleep(0.1)
            if self.cpu_seconds() - used <= 0.01:
                return

    def end(self) -> None:
        """End every process of it: the first one politely, and after 5 seconds all by SIGKILL."""
        for each in list(self.processes):
            self.adopt(each.pid)
        self.resume()
        self._each("terminate", self.processes[:1])
        _, alive = psutil.wait_procs(self.processes, timeout=5)
        self._each("kill", alive)
        psutil.wait_procs(alive, timeout=5)

    @staticmethod
    def _each(what: str, processes: Any) -> None:
        for each in processes:
            with suppress(psutil.Error):
                getattr(each, what)()


@contextmanager
def serving(
    command: Sequence[str], port: int, ready: str, *, env: dict[str, str], folder: Path, detached: bool = False
) -> Iterator[Server]:
    """A server that is ready; ended after the block whatever happens.

    Parameters
    ----------
    detached : bool
        The command ends by itself; the last number that it prints is the id of the process that it leaves behind.
    """
    server = Server(port, folder / "said.txt")
    begun = time.perf_counter()
    with server.log.open("ab") as said:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if detached else said,
            stderr=said, start_new_session=True,
        )  # fmt: skip
    try:
        server.adopt(process.pid)
        while not answers(port, ready):
            if (process.poll() or 0) or (process.poll() == 0 and not detached):
                msg = f"{' '.join(command)} ended: {server.log.read_text(errors='replace')[-1500:]}"
                raise Failed(msg)
            if time.perf_counter() - begun > START_SECONDS:
                msg = f"{' '.join(command)} is not ready: {server.log.read_text(errors='replace')[-1500:]}"
                raise Failed(msg)
            time.sleep(0.005)
        server.seconds = time.perf_counter() - begun
        if detached:
            said_at_last = process.communicate(timeout=START_SECONDS)[0]
            pid = int(re.findall(rb"\d+", said_at_last)[-1])
            server.processes.clear()
            server.adopt(pid)
        else:
            server.adopt(process.pid)
        yield server
    finally:
        server.end()
        process.wait(10)
        if process.stdout:
            process.stdout.close()


def answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def wrk(port: int, path: str, bodies: Path, *, connections: int, seconds: float, least: int = 1) -> dict[str, float]:
    """What `connections` clients get that ask again as soon as they are answered: requests a second, latencies in ms.

    Raises
    ------
    Failed
        Anything but a 2xx came back, or fewer than `least` answers: a run with errors is no result.
    """
    if shutil.which("wrk") is None:
        msg = "The load comes from wrk: install the package wrk (apt-get install wrk, brew install wrk)."
        raise SystemExit(msg)
    said = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s", "-s", str(SCRIPT),
         f"http://127.0.0.1:{port}{path}", "--", str(bodies), JSON],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    facts = json.loads(said.rpartition("RESULT ")[2])
    if facts["bad"] or facts["requests"] < least:
        msg = f"{facts['bad']} of {facts['requests']} requests to {path} failed"
        raise Failed(msg)
    rate = facts["requests"] / max(facts["seconds"], 1e-9)
    return {
        "requests": facts["requests"],
        "rate": rate,
        "p50": facts["p50"] / 1000,
        "p99": facts["p99"] / 1000,
        "max": facts["max"] / 1000,
    }


class Client:
    """One connection that is kept, and bodies that are bytes already."""

    def __init__(self, port: int, path: str, media: str = JSON) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._path, self._headers = path, {"Content-Type": media}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(self, body: bytes, **headers: str) -> tuple[float, bytes]:
        """Seconds from the first byte sent to the last one received, and the answer.

        Raises
        ------
        Failed
            It is not a 200.
        """
        begun = time.perf_counter()
        self._connection.request("POST", self._path, body, self._headers | headers)
        response = self._connection.getresponse()
        answer = response.read()
        taken = time.perf_counter() - begun
        if response.status != http.HTTPStatus.OK:
            msg = f"{self._path} answered {response.status}: {answer[:500]!r}"
            raise Failed(msg)
        return taken, answer


class Bare:
    """``model.predict`` in a process of its own, one call at a time."""

    def __init__(self, folder: Path) -> None:
        program = Path(__file__).with_name("serving_peers") / "bare_predict.py"
        self._process = subprocess.Popen(
            [sys.executable, program, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.seconds()  # it is ready when it has answered

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.terminate()

    def seconds(self) -> float:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

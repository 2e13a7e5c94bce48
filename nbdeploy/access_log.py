"""One JSON line per request, and what ties it to its caller: the request's id and the trace that it belongs to."""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson

from nbdeploy.exchange import new_request

INTERVAL = 0.25  # seconds between two writes
MAX_WAITING = 20_000  # lines that a reader who does not read may hold up
MAX_TEXT = 256
MAX_FILE = 64 << 20
CHUNK = 4096  # a pipe takes as much at once on Linux, so lines of several workers never mix; files take any amount

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")


def request_id(headers: Mapping[str, str]) -> str:
    """The id of a request: its ``X-Request-ID`` where that is a plain word, else a new one.

    Parameters
    ----------
    headers : mapping
        With lower-case names.

    Returns
    -------
    str
        1 to 128 letters, digits and ``._:/+=@-``: safe in a header, in a log line and in a shell.
    """
    given = headers.get("x-request-id")
    return given if given is not None and _REQUEST_ID.fullmatch(given) else new_request()


def trace_of(headers: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The trace that a request belongs to, as W3C Trace Context has it.

    Parameters
    ----------
    headers : mapping
        With lower-case names.

    Returns
    -------
    trace : str
        The trace's id, 32 hexadecimal digits; '' where ``traceparent`` is absent or not as version 00 demands.
    headers : dict
        What the answer has of it: ``traceparent``, and ``tracestate`` where it is printable and of at most 512
        characters, as they came. Nothing where there is no trace.
    """
    parent = headers.get("traceparent")
    if parent is None:
        return "", {}
    found = _TRACEPARENT.fullmatch(parent)
    if found is None:
        return "", {}
    back = {"traceparent": parent}
    state = headers.get("tracestate")
    if state is not None and _TRACESTATE.fullmatch(state):
        back["tracestate"] = state
    return found[1], back


class AccessLog:
    """Where the lines go. `write` never waits and never raises: a thread writes four times a second.

    A process that is killed loses the lines of its last 0.25 s. Where nobody takes the lines (a full disk, a pipe that
    nobody reads), 20,000 are kept; later ones are lost, and counted in `dropped`.

    Parameters
    ----------
    path : Path, optional
        A file, which several workers may share. At 64 MiB it is renamed to ``<name>.1``. By default the standard
        output, which is the service's log.

    Attributes
    ----------
    dropped : int
        Lines that were lost.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.dropped = 0
        self._path = path
        self._lines: deque[tuple[Any, ...]] = deque()
        self._unsent = b""
        self._descriptor: int | None = None
        if path is None and sys.__stdout__ is not None:  # None: there was none when Python began
            with suppress(OSError):  # a copy: whoever closes the standard output later must not hand us another file
                self._descriptor = os.dup(1)
        self._ending = threading.Event()
        self._turn = threading.Lock()  # one writes at a time: the thread, or `flush`
        self._writer: threading.Thread | None = None

    def write(
        self,
        *,
        request_id: str,
        trace: str,
        method: str,
        path: str,
        route: str,
        status: int,
        reason: str,
        seconds: float,
        rows: int,
        bytes_in: int,
        bytes_out: int,
        client: str,
        version: str,
    ) -> None:
        """Add one request. Of `path`, which must come without its query, and of every other text 256 characters count.

        `client` is the caller's address; `seconds` from the headers to the answer.
        """
        if len(self._lines) >= MAX_WAITING:
            self.dropped += 1
            return
        self._lines.append((time.time(), request_id, trace, method[:MAX_TEXT], path[:MAX_TEXT], route[:MAX_TEXT], status,
                            reason, seconds, rows, bytes_in, bytes_out, client[:MAX_TEXT], version))  # fmt: skip
        if self._writer is None:  # not before the first line: a process may be forked before it serves
            self._writer = threading.Thread(target=self._keep_writing, name="access-log", daemon=True)
            self._writer.start()

    def flush(self) -> None:
        """Write what waits."""
        with self._turn, suppress(OSError):
            if self._path is not None:
                self._open(self._path)
            while self._unsent or self._lines:
                if not self._unsent:
                    self._unsent = self._next()
                if self._descriptor is None:
                    return
                # What is not taken now is the first to go next time: no line is torn.
                self._unsent = self._unsent[os.write(self._descriptor, self._unsent) :]

    def close(self) -> None:
        """Write what waits, and no more."""
        self._ending.set()
        if self._writer is not None:
            self._writer.join(2)
            if self._writer.is_alive():  # nobody reads the pipe that it writes to
                return
        self.flush()
        with self._turn:
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor = None

    def _keep_writing(self) -> None:
        while not self._ending.wait(INTERVAL):
            self.flush()

    def _next(self) -> bytes:
        lines: list[bytes] = []
        size = 0
        while self._lines and size < CHUNK - 1024:
            line = _line(self._lines[0])
            if lines and size + len(line) > CHUNK:
                break
            self._lines.popleft()
            lines.append(line)
            size += len(line)
        return b"".join(lines)

    def _open(self, path: Path) -> None:
        if self._descriptor is None:
            self._descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        held = os.fstat(self._descriptor)
        if held.st_size >= MAX_FILE:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)  # of several workers one renames it
            with suppress(OSError):
                if path.stat().st_ino == held.st_ino:
                    os.replace(path, path.with_name(f"{path.name}.1"))
        try:
            moved = path.stat().st_ino != held.st_ino
        except FileNotFoundError:
            moved = True
        if moved and not self._unsent:
            os.close(self._descriptor)
            self._descriptor = None
            self._descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)


def _line(entry: tuple[Any, ...]) -> bytes:
    when, request, trace, method, path, route, status, reason, seconds, rows, came, went, client, version = entry
    line = {
        "time": datetime.fromtimestamp(when, timezone.utc).isoformat(timespec="milliseconds"),
        "request_id": request,
        "trace": trace or None,
        "method": method,
        "path": path,
        "route": route,
        "status": status,
        "reason": reason or None,
        "seconds": round(seconds, 6),
        "rows": rows,
        "bytes_in": came,
        "bytes_out": went,
        "client": client,
        "version": version,
    }
    with suppress(TypeError):  # a lone surrogate
        body = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        if body.isascii():
            return body
    # Beyond ASCII there are characters that a terminal obeys.
    return json.dumps(line).encode() + b"\n"

"""How a user's request travels to a shadow: as one frame, through a Unix socket beside the deployment's other files."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from nbdeploy.exchange import Asked

# What the reading of a body needs; no shadow learns who asked, or with which token.
HEADERS = ("content-type", "inference-header-content-length")
MAX_FACTS = 256 << 10  # bytes: the head of a request is at most 64 KiB, and JSON may write a byte as six
MARK = b"nbd1"
LONGEST_ADDRESS = 100  # bytes; the kernel's own limit is 108, on macOS 104

_PREFIX = struct.Struct("!4sII")
_REQUEST = re.compile(r"[0-9a-f]{16}")


class Torn(Exception):
    """What came is no frame, is larger than one may be, or has no end."""


@dataclass(frozen=True)
class Frame:
    """One request of a user, and what the live version has said of it.

    Attributes
    ----------
    request : str
        The id of the request, of which its rows' ids are made.
    rows : int
        As many as the live version read.
    """

    asked: Asked
    request: str
    rows: int

    @property
    def parts(self) -> tuple[bytes, ...]:
        """The bytes of the frame. A large body is not copied.

        Raises
        ------
        ValueError, TypeError
            No frame can hold it.
        """
        asked = self.asked
        headers = {name: asked.headers[name] for name in HEADERS if name in asked.headers}
        facts = orjson.dumps([asked.method, asked.path, dict(asked.query), headers, self.request, self.rows])
        if len(facts) > MAX_FACTS:
            msg = "the head of the request is too large"
            raise ValueError(msg)
        head = _PREFIX.pack(MARK, len(facts), len(asked.body)) + facts
        return (head + asked.body,) if len(asked.body) <= 16 << 10 else (head, asked.body)


async def read_frame(reader: asyncio.StreamReader, max_body: int) -> Frame | None:
    """The next frame, or None where the stream ends.

    Raises
    ------
    Torn
        Nothing that follows can be understood.
    """
    try:
        prefix = await reader.readexactly(_PREFIX.size)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            msg = "the stream ends within a frame"
            raise Torn(msg) from None
        return None
    mark, facts, body = _PREFIX.unpack(prefix)
    if mark != MARK or facts > MAX_FACTS or body > max_body:
        msg = "no frame" if mark != MARK else f"a frame of {facts + body} bytes"
        raise Torn(msg)
    try:
        return _frame(orjson.loads(await reader.readexactly(facts)), await reader.readexactly(body))
    except asyncio.IncompleteReadError:
        msg = "the stream ends within a frame"
        raise Torn(msg) from None
    except (ValueError, TypeError):
        msg = "a frame that says nothing"
        raise Torn(msg) from None


def _frame(facts: Any, body: bytes) -> Frame:
    method, path, query, headers, request, rows = facts
    texts = (method, path, request)
    maps: tuple[Mapping[str, Any], ...] = (query, headers)
    if not all(isinstance(each, str) for each in texts) or not all(isinstance(each, dict) for each in maps):
        raise TypeError
    if not all(isinstance(value, str) for each in maps for value in each.values()):
        raise TypeError
    if not _REQUEST.fullmatch(request) or type(rows) is not int or rows < 0:
        raise ValueError
    return Frame(Asked(method, path, query, headers, body), request, rows)


# -- the socket ---------------------------------------------------------------------------------------------


def socket_path(folder: Path, version: str) -> Path:
    """Where the shadow `version` listens."""
    return folder / f"shadow-{version}.sock"


def listen(path: Path) -> socket.socket:
    """A listening socket at `path`, which is this user's alone and replaces what a dead process left there."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(new) as address:
            listener.bind(address)
        new.chmod(0o600)
        listener.listen(64)
        listener.settimeout(0)
        os.replace(new, path)  # who finds it is heard
    except BaseException:
        listener.close()
        raise
    return listener


def connect(path: Path) -> socket.socket:
    """A connection that never blocks, to whoever listens at `path`.

    Raises
    ------
    OSError
        Nobody does, or they accept nobody at the moment.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(0)
        with _short(path) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def is_own(connection: socket.socket) -> bool:
    """Whether the other end is a process of this user, as far as the platform tells; the folder is private anyway."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", told)[1] == os.getuid())


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """`path` in a form that the address of a socket can hold, however deep it is."""
    if len(os.fsencode(path)) <= LONGEST_ADDRESS:
        yield str(path)
    elif os.path.isdir("/proc/self/fd"):  # noqa: PTH112  what the kernel offers, not a file
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{descriptor}/{path.name}"
        finally:
            os.close(descriptor)
    else:  # the processes of a deployment work in the folder of its sockets
        yield os.path.relpath(path)

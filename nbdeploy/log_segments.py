"""The files of a log: segments of lines that one process writes, and the Parquet files that they become.

A deployment's folder holds ``TIME-TOKEN.jsonl`` (TIME is the log's own, in milliseconds), beside it ``TIME-TOKEN.frames``
where rows came as Arrow, and below ``parquet/VERSION/day=…/`` files whose names begin with that of their segment. As long as a segment's lines are there they count, and its
Parquet files do not: removing the lines is what makes them count.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, final

import orjson

from nbdeploy.home import check_name, home
from nbdeploy.log_clock import LogClock
from nbdeploy.log_tables import Header, unpacked

LINES, FRAMES, SPOILT, PARQUET, CLOCK = ".jsonl", ".frames", ".unreadable", "parquet", "clock.json"
CHUNK = 4 << 20  # bytes of lines that are parsed at a time


def place(name: str) -> Path:
    """The folder of a deployment's log. It may be missing."""
    return home() / "predictions" / check_name(name)


def new_path(where: Path, log_time: float, after: Path | None = None) -> Path:
    """A name for a new segment; they sort by the log's time, and one `after` another also within a millisecond."""
    first = 0 if after is None else _milliseconds(after.name) + 1
    return where / f"{max(first, int(log_time * 1000)):013d}-{secrets.token_hex(4)}{LINES}"


def begun(stem: str) -> float:
    """The log's time at which the segment of this name was begun; 0 where the name does not say."""
    return _milliseconds(stem) / 1000


def _milliseconds(stem: str) -> int:
    found = re.match(r"\d{13}", stem)
    return int(found[0]) if found else 0


def clock_of(where: Path) -> LogClock:
    """The clock of the log in this folder."""

    def newest() -> float | None:
        there = [*where.glob(f"*{LINES}"), *where.glob(f"labels/*{LINES}"), *parquet_files(where)]
        return max((begun(path.name) for path in there), default=0.0) or None

    return LogClock(where / CLOCK, newest)


def lines_files(where: Path) -> list[Path]:
    """The segments whose lines are still there, oldest first."""
    return sorted(where.glob(f"*{LINES}"))


def parquet_files(where: Path) -> list[Path]:
    """All Parquet files, oldest segment first."""
    return sorted((where / PARQUET).glob("*/*/*.parquet"), key=lambda path: path.name)


def stem_of(path: Path) -> str:
    """The name of the segment that a file belongs to."""
    return path.name.lstrip(".").partition(".")[0]


@dataclass(frozen=True)
class Day:
    """Where the rows of one version and day of a segment go.

    A version's name is no path: what is not plain is spelled in base 32.
    """

    version: str
    day: str
    label: str = "day"

    def path(self, where: Path, stem: str) -> Path:
        plain = re.fullmatch(r"v\d{1,18}", self.version)
        version = (
            self.version if plain else "x" + base64.b32encode(self.version.encode("utf-8", "replace")[:60]).decode()
        )
        return where / PARQUET / version.rstrip("=").lower() / f"{self.label}={self.day}" / f"{stem}.parquet"


def day_of(seconds: float) -> str:
    """The day in UTC."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError):
        return "1970-01-01"


def day_in(path: Path) -> str:
    """The day of all rows of a Parquet file."""
    return path.parent.name.rpartition("=")[2]


# -- who works on a segment ---------------------------------------------------------------------------------


def hold(descriptor: int) -> bool:
    """Mark an open segment as in use until it is closed; False where another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: then nobody else gets one either
        return True
    return True


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold a segment that nobody writes, seals or removes meanwhile; False where somebody does, or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield os.fstat(descriptor).st_nlink > 0
    finally:
        os.close(descriptor)


# -- lines --------------------------------------------------------------------------------------------------


@final
class Frames:
    """The file of a segment whose Arrow streams the lines refer to."""

    def __init__(self, lines: Path) -> None:
        self._lines, self._descriptor = lines, -1

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def table(self, told: Any) -> Any:
        """The table that a line tells of; None where there is none.

        Raises
        ------
        FileNotFoundError
            The segment is gone.
        """
        if not isinstance(told, dict) or not all(isinstance(told.get(key), int) for key in ("at", "bytes", "crc")):
            return None
        try:
            if self._descriptor < 0:
                self._descriptor = os.open(self._lines.with_suffix(FRAMES), os.O_RDONLY)
            if not 0 < told["bytes"] <= os.fstat(self._descriptor).st_size:
                return None
            return unpacked(os.pread(self._descriptor, told["bytes"], told["at"]), told["crc"])
        except FileNotFoundError:
            if not self._lines.exists():
                raise
        except (OSError, OverflowError):
            pass
        return None


def parsed(line: bytes, frames: Frames) -> dict[str, Any] | None:
    """The entry of a line, with its ``purpose``, and ``frame`` as a table; None where it is none."""
    entry = _loaded(line)
    if not isinstance(entry, dict) or not entry.keys() >= _KEYS:
        return None
    outputs, scores, inputs = entry["outputs"], entry.get("probabilities"), entry.get("inputs", {})
    if not isinstance(outputs, list) or not isinstance(entry["time"], (int, float)) or isinstance(entry["time"], bool):
        return None
    if not isinstance(entry["version"], str) or not isinstance(entry["request"], str) or not isinstance(inputs, dict):
        return None
    for each in (scores, entry.get("part")):  # one value per row, where they are there
        if each is not None and (not isinstance(each, list) or len(each) != len(outputs)):
            return None
    if not 0 <= entry["time"] < 1e11:
        return None
    # Older lines have a boolean for the only purpose that there was.
    entry.setdefault("purpose", "gate" if entry.pop("gate", False) else "")
    if not isinstance(entry["purpose"], str):
        return None
    if "frame" in entry:
        entry["frame"] = frames.table(entry["frame"])
        whole = entry["frame"] is not None and entry["frame"].num_rows in (len(outputs), 0)
        return entry if whole else None
    whole = all(isinstance(values, list) and len(values) == len(outputs) for values in inputs.values())
    return entry if whole and "inputs" in entry else None


def _loaded(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            return json.loads(line)  # has Infinity
        except (ValueError, RecursionError):
            return None


_KEYS = {"time", "version", "request", "outputs"}


@dataclass
class Chunk:
    """Some lines of a segment.

    Attributes
    ----------
    header : Header
        Of the segment, as far as it is known.
    entries : list of dict
    unreadable : int
        How many of the lines are none.
    end : int
        The place after the last of them in the file.
    """

    header: Header
    entries: list[dict[str, Any]]
    unreadable: int
    end: int


def chunks(path: Path, start: int = 0, header: Header | None = None, size: int = CHUNK) -> Iterator[Chunk]:
    """The whole lines of a segment from the byte `start`. One that is not finished is not read.

    Raises
    ------
    FileNotFoundError
        It is gone.
    """
    with path.open("rb") as file, Frames(path) as frames:
        file.seek(start)
        chunk, held = Chunk(header or Header(), [], 0, start), 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            chunk.end += len(line)
            held += len(line)
            if (entry := parsed(line, frames)) is not None:
                chunk.entries.append(entry)
            elif (found := _header(line)) is not None:
                if chunk.entries:
                    yield chunk
                chunk = Chunk(found, [], chunk.unreadable if not chunk.entries else 0, chunk.end)
            else:
                chunk.unreadable += 1
            if held >= size:
                yield chunk
                chunk, held = Chunk(chunk.header, [], 0, chunk.end), 0
        yield chunk


def _header(line: bytes) -> Header | None:
    with suppress(orjson.JSONDecodeError):
        return Header.from_dict(orjson.loads(line))
    return None

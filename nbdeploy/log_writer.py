"""One process's place in the log of a deployment."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import orjson
import pandas as pd

from nbdeploy.answers import Output
from nbdeploy.errors import NbdeployError
from nbdeploy.home import check_name, private_folder
from nbdeploy.log_clock import DAY, LogClock
from nbdeploy.log_keeping import expire, sealable
from nbdeploy.log_segments import FRAMES, clock_of, hold, new_path, place
from nbdeploy.log_tables import Header, frame_table, packed
from nbdeploy.log_values import MAX_ELEMENTS, MAX_TEXT, hash_key, hashed, logged_columns, may_be_large, summarised
from nbdeploy.signature import Column, json_column, jsonable

SEGMENT_BYTES = 64 << 20
SMALLEST_SEGMENT = 64 << 10
ROUND = 60.0  # seconds between two looks at what there is to seal and to remove
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds without a try after a disk has refused
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_OPTION = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY


@dataclass(frozen=True)
class Entry:
    """One answered request.

    Attributes
    ----------
    version : str
        Which version answered.
    request : str
        The rows' ids are ``f"{request}-{row}"``.
    inputs : mapping of sequence
        JSON values by column; empty where `frame` is given.
    outputs : sequence
        One JSON value per row.
    probabilities : sequence, optional
        Per row the classes' probabilities.
    purpose : str
        Why it was asked, where no user asked: ``gate``, or ``shadow`` for the answer of a version that only listens. It
        is kept, and counts nowhere as a prediction.
    time : float
        Seconds since the epoch; 0 for now.
    frame : DataFrame, optional
        The rows, where they did not come as JSON.
    part : sequence of int
        Where these are some rows of the request: which.
    """

    version: str
    request: str
    inputs: Mapping[str, Sequence[Any]]
    outputs: Sequence[Any]
    probabilities: Sequence[Any] | None = None
    purpose: str = ""
    time: float = 0.0
    frame: pd.DataFrame | None = None
    part: Sequence[int] = ()


@final
class LogWriter:
    """One process's place in the log of a deployment.

    What a model call answered is one ``write()`` before the answers are sent, so an answered prediction survives a
    killed process; it is not fsynced, so it may not survive a power cut. A disk that refuses never fails a prediction:
    `dropped` counts what was lost, and after a pause of 0.1 s, later up to 5 s, it is tried again.

    Private columns are never written: of those that are hashed the hash is, of the others nothing, whatever is handed
    in. A segment that is deleted while it is written to is followed by a new one.

    Parameters
    ----------
    name : str
        Of the deployment.
    columns : sequence of Column
        Those of the signature, private ones too. Without them every input is logged as it comes.
    outputs : sequence of Output
        Those of the signature: they make a prediction's type in Parquet.
    required : bool
        Whether what is not logged must not be answered. Kept for whoever asks: `write` tells it in any case.
    max_bytes, days
        How large the deployment's whole log may grow, and how long it is kept.
    keep_every : float or None
        Seconds between two looks, in the background, at what there is to seal and to remove; the first comes so long
        after the first write. None: never.
    workers : int
        How many processes write the log at once: all their segments in use together have an eighth of `max_bytes`.

    Attributes
    ----------
    dropped : int
        Rows that were answered and not logged.
    failing : str
        Why the last write failed; '' where it did not.
    rows_written, bytes_written : int
    """

    def __init__(
        self,
        name: str,
        columns: Sequence[Column] = (),
        *,
        outputs: Sequence[Output] = (),
        required: bool = False,
        max_bytes: int = 10 << 30,
        days: float = 90.0,
        keep_every: float | None = ROUND,
        workers: int = 1,
    ) -> None:
        self.name, self.required = check_name(name), required
        self.dropped = self.rows_written = self.bytes_written = 0
        self.failing = ""
        self._max_bytes, self._days, self._keep_every = max_bytes, days, keep_every
        self._segment_bytes = max(SMALLEST_SEGMENT, min(SEGMENT_BYTES, max_bytes // (8 * max(1, workers))))
        self._logged = logged_columns(columns)
        self._columns = {column.name: column for column in self._logged}
        self._header = Header(tuple(self._logged) if columns else None, tuple(outputs))
        self._hashed = {column.name: column for column in columns if column.hashed}
        self._chosen = None if not any(c.private for c in columns) else [column.name for column in self._logged]
        self._infinite = None if not columns else [c.name for c in self._logged if c.kind == "float" and not c.finite]
        self._large = [c for c in self._logged if may_be_large(c) and not c.hashed]
        self._look_from = 2 * MAX_ELEMENTS if any(column.shape for column in columns) else MAX_TEXT
        self._key: bytes | None = None
        self._clock: LogClock | None = None
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._path: Path | None = None
        self._frames_descriptor: int | None = None
        self._written = self._framed = self._framing = 0  # bytes of lines; of frames, and of those not yet referred to
        self._until = 0.0  # by the monotonic clock: when the segment has lasted a day
        self._pause, self._again = 0.0, 0.0
        self._closed = threading.Event()
        self._keeper: threading.Thread | None = None

    def write(self, entries: Sequence[Entry]) -> bool:
        """`write_each`; whether all of it is in the log."""
        return all(self.write_each(entries))

    def write_each(self, entries: Sequence[Entry]) -> list[bool]:
        """Append what a model call answered; which entries are in the log. The rows of the others count as `dropped`.

        Where the disk refuses, none is, unless the process is killed in the midst of it. An entry that no line can
        hold is missing alone.
        """
        rows = sum([len(entry.outputs) for entry in entries])
        with self._lock:
            if self._pause and time.monotonic() < self._again:
                self.dropped += rows
                return [False] * len(entries)
            try:
                if self._hashed and self._key is None:
                    self._key = hash_key(self.name)
                frames = self._frames(entries) if any(e.frame is not None for e in entries) else {}
                if frames:
                    self._ready(sum(map(len, frames.values())))
                lines = self._lines(entries, self._placed(frames) if frames else {})
                if data := b"".join(lines):
                    if not frames:
                        self._ready(len(data))
                    self._append(data)
            except (OSError, NbdeployError) as error:
                self._refused(error)
                self.dropped += rows
                return [False] * len(entries)
            self._pause = 0.0
            lost = 0
            if all(lines):
                self.failing = ""
            else:
                lost = sum(len(entry.outputs) for entry, line in zip(entries, lines, strict=True) if not line)
            self.dropped += lost
            self.rows_written += rows - lost
        return [*map(bool, lines)]

    def rotate(self) -> None:
        """Finish the segment: the next write begins another."""
        with self._lock:
            self._end_segment()

    def close(self) -> None:
        """Finish the segment, and the work in the background. A later write begins anew."""
        self._closed.set()
        self.rotate()
        keeper, self._keeper = self._keeper, None
        if keeper is not None and keeper is not threading.current_thread():
            keeper.join(5)

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- lines ----------------------------------------------------------------------------------------------

    def _frames(self, entries: Sequence[Entry]) -> dict[int, memoryview]:
        """The Arrow streams of the entries that came as frames, by their places."""
        found: dict[int, memoryview] = {}
        if self._header.columns is None:
            return found
        for place_, entry in enumerate(entries):
            if entry.frame is not None:
                with suppress(Exception):  # then its line is lost, and says so
                    found[place_] = packed(frame_table(self._header, self._hashed_frame(entry.frame)))
        return found

    def _lines(self, entries: Sequence[Entry], placed: Mapping[int, dict[str, int]]) -> list[bytes]:
        """The line of each entry; an empty one where no line can hold it."""
        lines = []
        for place_, entry in enumerate(entries):
            try:
                lines.append(self._line(entry, placed.get(place_)))
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not cost anybody an answer
                self.failing = f"{type(error).__name__} while what was answered is written"
                lines.append(b"")
        return lines

    def _line(self, entry: Entry, frame: dict[str, int] | None) -> bytes:
        told: dict[str, Any] = {
            "time": entry.time or time.time(), "version": entry.version, "request": entry.request,
        }  # fmt: skip
        inputs = entry.inputs
        if frame is not None:
            told["frame"] = frame
        elif entry.frame is not None:
            if self._header.columns is not None:
                msg = "these rows do not fit the columns"
                raise TypeError(msg)
            told["inputs"] = inputs = {str(name): jsonable(series) for name, series in entry.frame.items()}
        elif self._chosen is not None or self._large:
            told["inputs"] = inputs = self._allowed(inputs)
        else:
            told["inputs"] = inputs
        told["outputs"] = entry.outputs
        if entry.probabilities is not None:
            told["probabilities"] = entry.probabilities
        if entry.part:
            told["part"] = entry.part
        if entry.purpose:
            told["purpose"] = entry.purpose
        line = self._dumped(told)
        if len(line) > self._look_from and "inputs" in told:
            # Only a long line can hold a long value.
            told["inputs"] = {name: summarised(self._columns.get(name), each) for name, each in inputs.items()}
            line = self._dumped(told)
        return line

    def _dumped(self, told: dict[str, Any]) -> bytes:
        inputs = told.get("inputs", {})
        looked = inputs.values() if self._infinite is None else [inputs[n] for n in self._infinite if n in inputs]
        if looked and any(map(_holds_infinity, looked)):  # which orjson would write as null
            return json.dumps(told, default=_plain).encode() + b"\n"
        try:
            return orjson.dumps(told, option=_OPTION)
        except TypeError:  # an integer beyond 64 bits, a lone surrogate
            return json.dumps(told, default=_plain).encode() + b"\n"

    def _allowed(self, inputs: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        chosen = self._chosen if self._chosen is not None else [*inputs]
        found = {name: inputs[name] for name in chosen if name in inputs}
        for name, column in self._hashed.items():
            if name in found:
                assert self._key is not None
                found[name] = hashed(self._key, column, found[name])
        for column in self._large:
            if column.name in found:
                found[column.name] = summarised(column, found[column.name])
        return found

    def _hashed_frame(self, frame: pd.DataFrame) -> pd.DataFrame:
        for name, column in self._hashed.items():
            label = column.label if column.label in frame.columns else name
            if label in frame.columns:
                assert self._key is not None
                told = hashed(self._key, column, json_column(column, frame[label]))
                frame = frame.copy(deep=False)
                frame[label] = told
        return frame

    # -- segments -------------------------------------------------------------------------------------------

    def _ready(self, more: int) -> None:
        """Have a segment to which so many bytes can be written."""
        descriptor = self._descriptor
        if descriptor is not None and (
            self._written + self._framed + more > self._segment_bytes
            or time.monotonic() > self._until
            or os.fstat(descriptor).st_nlink == 0
        ):
            self._end_segment()
        if self._descriptor is None:
            self._begin_segment(more)

    def _placed(self, frames: Mapping[int, memoryview]) -> dict[int, dict[str, int]]:
        """Write frames beside the lines that are going to refer to them, and tell what these say."""
        assert self._path is not None
        if self._frames_descriptor is None:
            flags = os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_WRONLY
            self._frames_descriptor = os.open(self._path.with_suffix(FRAMES), flags, 0o600)
            os.fchmod(self._frames_descriptor, 0o600)
        told, at = {}, self._framing
        for place_, stream in frames.items():
            _write(self._frames_descriptor, stream)
            told[place_] = {"at": at, "bytes": len(stream), "crc": zlib.crc32(stream)}
            at += len(stream)
        self._framing = at
        return told

    def _append(self, data: bytes) -> None:
        assert self._descriptor is not None
        if not self._written:
            data = orjson.dumps(self._header.to_dict(), option=_OPTION) + data
        _write(self._descriptor, data)
        self._written += len(data)
        self.bytes_written += len(data) + self._framing - self._framed
        self._framed = self._framing

    def _begin_segment(self, room: int) -> None:
        where = place(self.name)
        private_folder(where)
        if self._clock is None:
            self._clock = clock_of(where)
            self._clock.save()
        with suppress(OSError):
            room = max(room, self._segment_bytes)
            expire(
                self.name, self._clock.now(), days=self._days, max_bytes=self._max_bytes, room=room,
                segment=self._segment_bytes,
            )  # fmt: skip
        for _ in range(100):
            path = new_path(where, self._clock.now(), self._path)
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_WRONLY, 0o600)
            # Whoever seals may have taken the empty file for one that is left over.
            if hold(descriptor) and os.fstat(descriptor).st_nlink:
                os.fchmod(descriptor, 0o600)  # whatever the umask was
                self._descriptor, self._path = descriptor, path
                self._written = self._framed = self._framing = 0
                self._until = time.monotonic() + DAY
                self._start_keeper()
                return
            os.close(descriptor)
        msg = f"no segment can be begun in {where}"
        raise NbdeployError(msg)

    def _end_segment(self) -> None:
        descriptors = (self._frames_descriptor, self._descriptor)
        self._frames_descriptor = self._descriptor = None
        for descriptor in descriptors:
            if descriptor is not None:
                with suppress(OSError):  # what a network's disk says only now
                    os.close(descriptor)

    def _refused(self, error: Exception) -> None:
        """Take back what is torn, and wait before the next try."""
        self.failing = f"{error.strerror or error}" if isinstance(error, OSError) else str(error)
        self._pause = min(max(FIRST_PAUSE, 2 * self._pause), LONGEST_PAUSE)
        self._again = time.monotonic() + self._pause
        if self._descriptor is None:
            return
        whole = False
        with suppress(OSError):
            os.ftruncate(self._descriptor, self._written)
            self._framing = self._framed
            if self._frames_descriptor is not None:
                os.ftruncate(self._frames_descriptor, self._framed)
            whole = isinstance(error, OSError) and error.errno in _FULL and self._written > 0
        if not whole:  # readers skip a last line that is not finished
            if not self._written and self._path is not None:
                for path in (self._path, self._path.with_suffix(FRAMES)):
                    with suppress(OSError):
                        os.unlink(path)
            self._end_segment()

    # -- in the background ----------------------------------------------------------------------------------

    def _start_keeper(self) -> None:
        if self._keep_every is not None and self._keeper is None:
            self._closed.clear()
            self._keeper = threading.Thread(target=self._tend, name="log keeper", daemon=True)
            self._keeper.start()

    def _tend(self) -> None:
        """Again and again: end what has lasted a day, remove what is too old, and seal what is finished."""
        clock: LogClock | None = None  # not the writer's, which nobody else may use
        next_try = 0.0
        while not self._closed.wait(self._keep_every):
            with suppress(OSError, NbdeployError):
                clock = clock or clock_of(place(self.name))
                if self._descriptor is not None and time.monotonic() > self._until:
                    self.rotate()
                clock.save()
                expire(
                    self.name, clock.now(), days=self._days, max_bytes=self._max_bytes, segment=self._segment_bytes
                )  # fmt: skip
                if time.monotonic() >= next_try and sealable(self.name) and not self._seal():
                    next_try = time.monotonic() + 10 * ROUND

    def _seal(self) -> bool:
        # In a process of its own: here it would take time and memory from whoever asks for predictions.
        child = subprocess.Popen(
            [sys.executable, "-m", "nbdeploy.log_keeping", self.name], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        try:
            while child.poll() is None and not self._closed.wait(0.2):
                pass
        finally:
            child.kill()
            code = child.wait()
            assert child.stdin is not None
            child.stdin.close()
        return code == 0


def _write(descriptor: int, data: bytes | memoryview) -> None:
    written = os.write(descriptor, data)
    if written != len(data):
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} after {written} bytes of {len(data)}")


def _holds_infinity(values: Sequence[Any]) -> bool:
    # A column is of cells or of single values, so its first tells which. Floats may come after integers.
    first = next((value for value in values if value is not None), None)
    if isinstance(first, (list, dict)):
        return any(_holds_infinity(v.get("values", ()) if isinstance(v, dict) else v) for v in values if v)
    return any(isinstance(value, (float, np.floating)) and math.isinf(value) for value in values)


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(type(value).__name__)

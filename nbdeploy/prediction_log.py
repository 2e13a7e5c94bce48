"""What was asked, by which version it was answered, with what: append-only segments, one writer each."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd

from nbdeploy.errors import NbdeployError
from nbdeploy.home import check_name, folder
from nbdeploy.signature import Signature, build_column

SEGMENT_BYTES = 64 << 20


class LogWriter:
    """One process's place in the log of a deployment.

    A request's line is written with one ``write()`` before its answer is sent, so an answered
    prediction survives a killed process; it is not fsynced, so it may not survive a power cut.
    A disk that refuses never fails a prediction: `dropped` counts what was lost.
    A segment that is deleted while it is written to is followed by a new one.
    """

    def __init__(self, name: str) -> None:
        self._name = check_name(name)
        folder("predictions", self._name)
        self._descriptor: int | None = None
        self._written = 0
        self.dropped = 0

    def write(
        self,
        version: str,
        request: str,
        inputs: Mapping[str, Sequence[Any]],
        predictions: Sequence[Any],
        probabilities: Sequence[Any] | None = None,
        *,
        gate: bool = False,
    ) -> bool:
        """Append one answered request; False, and counted in `dropped`, where the disk refuses.

        `gate` marks a question that a gate asked: it is kept, and `read` leaves it out.
        """
        entry = {"time": time.time(), "version": version, "request": request, "inputs": inputs, "outputs": predictions}
        if probabilities is not None:
            entry["probabilities"] = probabilities
        if gate:
            entry["gate"] = True
        if any(map(_holds_infinity, inputs.values())):  # which orjson would write as null
            line = json.dumps(entry, default=np.ndarray.tolist).encode() + b"\n"
        else:
            line = orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)
        try:
            if self._descriptor is None or self._written + len(line) > SEGMENT_BYTES or self._is_deleted():
                self._open_segment()
            if os.write(self._descriptor, line) != len(line):  # type: ignore[arg-type]
                # A torn line ends this segment: readers skip an unfinished last line.
                self.close()
                self.dropped += len(predictions)
                return False
        except OSError:
            self.close()
            self.dropped += len(predictions)
            return False
        self._written += len(line)
        return True

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _is_deleted(self) -> bool:
        return self._descriptor is not None and os.fstat(self._descriptor).st_nlink == 0

    def _open_segment(self) -> None:
        self.close()
        path = folder("predictions", self._name) / f"{time.time_ns()}-{os.getpid()}.jsonl"
        self._descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_WRONLY, 0o600)
        self._written = 0


def new_request_id() -> str:
    """The id of one request, of which its rows' ids are made."""
    return secrets.token_hex(8)


def prediction_ids(request: str, count: int) -> list[str]:
    """The ids of a request's rows."""
    return [f"{request}-{row}" for row in range(count)]


def read(
    name: str,
    signature_of: Callable[[str], Signature | None],
    since: Any = None,
    until: Any = None,
) -> pd.DataFrame:
    """The log as a frame, oldest first, without what gates asked.

    Columns: the inputs with the dtypes of the version that answered, then ``prediction``,
    ``prediction_id``, ``version`` and ``time`` (UTC); see `own_column` for where an input has that name.
    """
    start, end = moment(since), moment(until)
    by_version: dict[str, list[dict[str, Any]]] = {}
    for entry in _entries(name, start):
        if (start is None or entry["time"] >= start) and (end is None or entry["time"] < end):
            by_version.setdefault(entry["version"], []).append(entry)
    frames = [_frame(version, entries, signature_of(version)) for version, entries in by_version.items()]
    if not frames:
        return pd.DataFrame(columns=["prediction", "prediction_id", "version", "time"])
    whole = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
    # Not by a column: what is the log's time in one version's rows may be an input in another's.
    seconds = np.concatenate([_seconds(entries) for entries in by_version.values()])
    return whole.iloc[np.argsort(seconds, kind="stable")].reset_index(drop=True)


def moment(when: Any) -> float | None:
    """Seconds since the epoch from ``"24h"``, ``"7d"``, ``"30m"``, a timedelta, a datetime or ISO 8601 text.

    Raises
    ------
    NbdeployError
        It is none of these.
    """
    if when is None or when == "":
        return None
    if isinstance(when, str) and (parts := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*", when)):
        unit = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[parts[2]]
        return time.time() - float(parts[1]) * unit
    if isinstance(when, timedelta):
        return time.time() - when.total_seconds()
    try:
        parsed = when if isinstance(when, datetime) else pd.Timestamp(when).to_pydatetime()
        return float((parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)).timestamp())
    except (ValueError, TypeError) as error:
        msg = f"{when!r} is not a time"
        raise NbdeployError(msg, "Say how long ago (30m, 24h, 7d) or when (2026-01-31T08:00, UTC).") from error


def own_column(label: str, inputs: Sequence[str]) -> str:
    """What the log calls a column of its own: `label`, with underscores until no input has that name."""
    while label in inputs:
        label += "_"
    return label


def size(name: str) -> int:
    """How many rows the log holds, without what gates asked. What was counted once is not read again."""
    return sum(rows for rows, _ in _counts(name))


def unreadable(name: str) -> int:
    """How many lines of the log cannot be read. They are left out everywhere else."""
    return sum(lines for _, lines in _counts(name))


_counted: dict[Path, tuple[int, int, int]] = {}  # of a segment: bytes read so far, rows and unreadable lines in them


def _counts(name: str) -> Iterator[tuple[int, int]]:
    for path in folder("predictions", check_name(name)).glob("*.jsonl"):
        with suppress(FileNotFoundError):  # deleted meanwhile
            yield _count(path)


def _count(path: Path) -> tuple[int, int]:
    offset, rows, bad = _counted.get(path, (0, 0, 0))
    if path.stat().st_size != offset:
        with path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if line.endswith(b"\n"):
                    offset += len(line)
                    entry = _parsed(line)
                    bad += entry is None
                    rows += 0 if entry is None or entry.get("gate") else len(entry["outputs"])
        _counted[path] = offset, rows, bad
    return rows, bad


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            entry = json.loads(line)  # has Infinity
        except (ValueError, RecursionError):
            return None
    return entry if isinstance(entry, dict) and entry.keys() >= _KEYS and _is_whole(entry) else None


_KEYS = {"time", "version", "request", "inputs", "outputs"}


def _is_whole(entry: dict[str, Any]) -> bool:
    inputs, outputs = entry["inputs"], entry["outputs"]
    if not isinstance(inputs, dict) or not isinstance(outputs, list) or not isinstance(entry["time"], (int, float)):
        return False
    if not isinstance(entry["version"], str) or not isinstance(entry["request"], str):
        return False
    return all(isinstance(values, list) and len(values) == len(outputs) for values in inputs.values())


def _holds_infinity(values: Sequence[Any]) -> bool:
    # A column is of one type, so its first value tells whether to look.
    first = next((value for value in values if value is not None), None)
    if isinstance(first, (list, dict)):
        return any(_holds_infinity(v["values"] if isinstance(v, dict) else v) for v in values if v)
    return isinstance(first, float) and (math.inf in values or -math.inf in values)


def _entries(name: str, start: float | None) -> Iterator[dict[str, Any]]:
    for path in sorted(folder("predictions", check_name(name)).glob("*.jsonl")):
        with suppress(FileNotFoundError):  # deleted meanwhile
            if start is None or path.stat().st_mtime >= start:
                yield from _lines(path)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                entry = _parsed(line)
                if entry is not None and not entry.get("gate"):
                    yield entry


def _frame(version: str, entries: Sequence[dict[str, Any]], signature: Signature | None) -> pd.DataFrame:
    known = {c.name: c for c in signature.columns} if signature else {}
    names = list(entries[0]["inputs"])  # without private columns
    data: dict[Any, Any] = {}
    for name in names:
        values = [value for entry in entries for value in entry["inputs"][name]]
        data[name] = build_column(known[name], values) if name in known else values
    counts = [len(entry["outputs"]) for entry in entries]
    frame = pd.DataFrame(data)
    outputs = [value for entry in entries for value in entry["outputs"]]
    counted = list(zip(entries, counts, strict=True))
    own = {
        "prediction": pd.Series(outputs, index=frame.index),
        "prediction_id": [i for entry, n in counted for i in prediction_ids(entry["request"], n)],
        "version": version,
        "time": pd.to_datetime(pd.Series(_seconds(entries)), unit="s", utc=True),
    }
    for label, values in own.items():
        frame[own_column(label, names)] = values
    return frame


def _seconds(entries: Sequence[dict[str, Any]]) -> np.ndarray[Any, Any]:
    return np.repeat([float(entry["time"]) for entry in entries], [len(entry["outputs"]) for entry in entries])

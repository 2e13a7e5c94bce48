"""What was asked, by which version it was answered, with what: append-only segments, one writer each."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import orjson
import pandas as pd

from nbdeploy.errors import NbdeployError
from nbdeploy.home import check_name, folder
from nbdeploy.signature import Signature, build_series

SEGMENT_BYTES = 64 << 20


class LogWriter:
    """One process's place in the log of a deployment.

    A request's line is written with one ``write()`` before its answer is sent, so an answered
    prediction survives a killed process; it is not fsynced, so it may not survive a power cut.
    A disk that refuses never fails a prediction: `dropped` counts what was lost.
    """

    def __init__(self, name: str) -> None:
        self._folder = folder("predictions", check_name(name))
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
        line = orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)
        try:
            if self._descriptor is None or self._written + len(line) > SEGMENT_BYTES:
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

    def _open_segment(self) -> None:
        self.close()
        path = self._folder / f"{time.time_ns()}-{os.getpid()}.jsonl"
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
    ``prediction_id``, ``version`` and ``time`` (UTC); with a trailing underscore where an input has that name.
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
    order = own_column("time", [name for name in whole.columns if f"{name}_" in whole.columns])
    return whole.sort_values(order, kind="stable", ignore_index=True)


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
    """What the log calls a column of its own: `label`, or `label_` where the model has an input of that name."""
    return f"{label}_" if label in inputs else label


def size(name: str) -> int:
    """How many rows the log holds, without what gates asked. What was counted once is not read again."""
    return sum(_count(path) for path in folder("predictions", check_name(name)).glob("*.jsonl"))


_counted: dict[Path, tuple[int, int]] = {}  # of a segment: bytes read so far, rows in them


def _count(path: Path) -> int:
    offset, rows = _counted.get(path, (0, 0))
    if path.stat().st_size != offset:
        with path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if line.endswith(b"\n"):
                    offset += len(line)
                    entry = orjson.loads(line)
                    rows += 0 if entry.get("gate") else len(entry["outputs"])
        _counted[path] = offset, rows
    return rows


def _entries(name: str, start: float | None) -> Iterator[dict[str, Any]]:
    for path in sorted(folder("predictions", check_name(name)).glob("*.jsonl")):
        if start is None or path.stat().st_mtime >= start:
            yield from _lines(path)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                entry = orjson.loads(line)
                if not entry.get("gate"):
                    yield entry


def _frame(version: str, entries: Sequence[dict[str, Any]], signature: Signature | None) -> pd.DataFrame:
    names = signature.names if signature else list(entries[0]["inputs"])
    data: dict[Any, Any] = {}
    for name in names:
        values = [value for entry in entries for value in entry["inputs"][name]]
        column = next((c for c in signature.columns if c.name == name), None) if signature else None
        data[name] = build_series(column, values) if column else values
    counts = [len(entry["outputs"]) for entry in entries]
    frame = pd.DataFrame(data)
    outputs = [value for entry in entries for value in entry["outputs"]]
    counted = list(zip(entries, counts, strict=True))
    seconds = [entry["time"] for entry, n in counted for _ in range(n)]
    own = {
        "prediction": pd.Series(outputs, index=frame.index),
        "prediction_id": [i for entry, n in counted for i in prediction_ids(entry["request"], n)],
        "version": version,
        "time": pd.to_datetime(pd.Series(seconds), unit="s", utc=True),
    }
    for label, values in own.items():
        frame[own_column(label, names)] = values
    return frame

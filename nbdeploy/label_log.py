"""What turned out to be true: labels of predictions, each kept, the last of one prediction counts."""

from __future__ import annotations

import datetime as dt
import fcntl
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd

from nbdeploy.errors import InputError, NbdeployError
from nbdeploy.home import check_name, private_folder, sync_folder
from nbdeploy.log_clock import DAY
from nbdeploy.log_segments import CLOCK, LINES, begun, clock_of, new_path, place
from nbdeploy.signature import problem, shown

MAX_LABELS = 10_000  # of one request
MAX_TEXT = 1_000  # characters of a label
MAX_PROBLEMS = 100
FILE_BYTES = 8 << 20
ID = re.compile(r"[0-9a-f]{16}-(?:0|[1-9]\d{0,8})", re.ASCII)


@dataclass(frozen=True)
class Labelled:
    """How many labels were added to the log of a deployment."""

    name: str
    labels: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __repr__(self) -> str:
        return f"{self.labels} label{'' if self.labels == 1 else 's'} for {self.name}"


def add(name: str, labels: Mapping[str, Any]) -> Labelled:
    """Keep labels by prediction id. When this returns they are on the disk, also after a power cut.

    Whether there is such a prediction is not looked up: its line may not be readable yet, or be gone by age. A label
    of an unknown one is kept, and shows nowhere.

    Parameters
    ----------
    labels : mapping
        Prediction id to a JSON value: a string, a number, a boolean; None takes a label back.

    Raises
    ------
    InputError
        One is none; nothing is kept then.
    OSError, NbdeployError
        The disk refuses; nothing of this call is read then.
    """
    if problems := list(islice(label_problems(labels), MAX_PROBLEMS)):
        first = problems[0]
        msg = f"{first['column']!s:.80}: expected {first['expected']}, got {first['got']}"
        raise InputError(msg, problems, first["hint"])
    where = place(name)
    private_folder(where)
    items, now, lines = iter(labels.items()), time.time(), []
    while some := dict(islice(items, MAX_LABELS)):
        lines.append(orjson.dumps({"time": now, "labels": some}, option=orjson.OPT_APPEND_NEWLINE))
    if lines:
        _append(where, b"".join(lines))
    return Labelled(check_name(name), len(labels))


def label_problems(labels: Mapping[Any, Any]) -> Iterator[dict[str, Any]]:
    """What in `labels` is no label, or not of a prediction id."""
    for key, value in labels.items():
        column = key[:80] if isinstance(key, str) else str(key)[:80]
        if not isinstance(key, str) or not ID.fullmatch(key):
            yield problem(None, column, "a prediction id", shown(key) if isinstance(key, str) else type(key).__name__,
                          "Send what `prediction_ids` had in the answer.")  # fmt: skip
        elif hint := _fault(value):
            yield problem(None, column, "a string, a number, true, false or null", shown(value), hint.strip())


def _fault(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return "It holds half a character."
        return "" if len(value) <= MAX_TEXT else f"At most {MAX_TEXT} characters."
    if isinstance(value, int):
        return "" if -(2**63) <= value < 2**64 else "At most 64 bits."
    if isinstance(value, float):
        return "" if math.isfinite(value) else "A number that is finite."
    return " "


def pairs(labels: Any) -> dict[str, Any]:
    """Labels by prediction id from what a user has: a series indexed by prediction id, or a frame.

    Parameters
    ----------
    labels : Series, DataFrame or mapping
        A frame has the columns ``prediction_id`` and ``label``; where the first is missing its index counts. Missing
        labels are left out.

    Raises
    ------
    InputError
        It is something else.
    """
    if hasattr(labels, "to_pandas"):  # Polars, Arrow
        labels = labels.to_pandas()
    if isinstance(labels, pd.DataFrame):
        if "label" not in labels.columns:
            msg = f"the frame of labels has the columns {', '.join(map(str, labels.columns))[:200]} and no 'label'"
            raise InputError(msg, hint="Name its columns prediction_id and label.")
        ids = labels["prediction_id"] if "prediction_id" in labels.columns else labels.index
        labels = pd.Series(labels["label"].to_numpy(), index=ids, dtype=labels["label"].dtype)
    if isinstance(labels, pd.Series):
        held = labels[labels.notna().to_numpy()]
        return dict(zip(held.index, map(_plain, held.tolist()), strict=True))
    if isinstance(labels, Mapping):
        return {key: _plain(value) for key, value in labels.items()}
    msg = f"labels is a {type(labels).__name__}"
    raise InputError(msg, hint="Pass a series indexed by prediction_id, or a frame with prediction_id and label.")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return value.isoformat() if isinstance(value, dt.date) else value


def read(name: str) -> dict[str, Any]:
    """The labels of a deployment by prediction id: of each prediction the last one, as it was given."""
    found: dict[str, Any] = {}
    for entry in history(name):
        found.update(entry["labels"])
    return {key: value for key, value in found.items() if value is not None}


def history(name: str) -> Iterator[dict[str, Any]]:
    """All that was ever said, in this order: ``time`` in seconds, and ``labels`` by prediction id."""
    for path in _files(place(name)):
        with suppress(FileNotFoundError), path.open("rb") as file:  # removed meanwhile
            for line in file:
                if line.endswith(b"\n") and (entry := _parsed(line)) is not None:
                    yield entry


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("labels"), dict):
        return None
    return None if not isinstance(entry.get("time"), (int, float)) or any(label_problems(entry["labels"])) else entry


# -- files --------------------------------------------------------------------------------------------------


def _files(where: Path) -> list[Path]:
    return sorted((where / "labels").glob(f"*{LINES}"))


def _append(where: Path, lines: bytes) -> None:
    folder = where / "labels"
    private_folder(folder)
    with _locked(folder):
        path, made = _current(where, len(lines))
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600)
        try:
            os.fchmod(descriptor, 0o600)  # whatever the umask was
            _write(descriptor, lines, _whole_end(descriptor))
        finally:
            os.close(descriptor)
        if made:
            sync_folder(folder)
            sync_folder(where)


def _write(descriptor: int, lines: bytes, end: int) -> None:
    """All of `lines` or, where the disk refuses, none."""
    try:
        left = memoryview(lines)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    except BaseException:
        with suppress(OSError):
            os.ftruncate(descriptor, end)
        raise


def _current(where: Path, more: int) -> tuple[Path, bool]:
    """The file to write to, and whether it is new: one takes a day's labels, up to 8 MiB or one call's."""
    files, clock = _files(where), clock_of(where)
    now = clock.now()
    if not (where / CLOCK).exists():
        clock.save()
    with suppress(FileNotFoundError):  # removed meanwhile
        if files and files[-1].stat().st_size + more <= FILE_BYTES and now - begun(files[-1].name) <= DAY:
            return files[-1], False
    return new_path(where / "labels", now, files[-1] if files else None), True


def _whole_end(descriptor: int) -> int:
    """The place after the last whole line; what a killed process left after it is cut off."""
    end = os.lseek(descriptor, 0, os.SEEK_END)
    whole = end
    while whole:
        start = max(0, whole - (64 << 10))
        found = os.pread(descriptor, whole - start, start).rfind(b"\n")
        if found >= 0:
            whole = start + found + 1
            break
        whole = start
    if whole < end:
        os.ftruncate(descriptor, whole)
    return whole


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process, and one thread of it, at a time."""
    descriptor = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            msg = f"the labels in {folder} cannot be locked: {error.strerror}"
            raise NbdeployError(msg, "Set NBDEPLOY_HOME to a folder on a disk of this machine.") from error
        yield
    finally:
        os.close(descriptor)

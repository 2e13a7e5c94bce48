"""What turned out to be true: labels of predictions, each kept, the last of one prediction counts."""

from __future__ import annotations

import datetime as dt
import fcntl
import html
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd

from nbdeploy.errors import InputError, NbdeployError
from nbdeploy.home import private_folder, sync_folder
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
    """What became of some labels.

    Attributes
    ----------
    labels : int
        How many predictions were labelled. Each of them is `new`, `changed` or the same as before.
    new : int
        Of them, those that had no label.
    changed : int
        Of them, those that had another one. That is kept too; the last one counts.
    repeated : int
        Labels that say what an earlier one had said, and those that a later one of the same call has replaced.
    unknown : int
        Ids, or keys, of which the log has no prediction. Labels by id are kept all the same, and count when the
        prediction is there; of a key there is nothing to keep.
    missing : int
        Rows without a label, which were left out.
    """

    name: str
    labels: int
    new: int = 0
    changed: int = 0
    repeated: int = 0
    unknown: int = 0
    missing: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __repr__(self) -> str:
        head = f"{self.labels:,} label{'' if self.labels == 1 else 's'} for {self.name}"
        counts = {
            "new": self.new, "changed": self.changed, "repeated": self.repeated,
            "of no prediction in its log": self.unknown, "left out for want of a label": self.missing,
        }  # fmt: skip
        told = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        return f"{head}: {told}" if told else head

    def _repr_html_(self) -> str:
        return f"<div>{html.escape(repr(self))}</div>"


@dataclass(frozen=True, eq=False)
class Given:
    """Labels by prediction id as they came, and what did not become one.

    Attributes
    ----------
    labels : dict
    repeated, unknown, missing : int
        See `Labelled`.
    """

    labels: dict[str, Any]
    repeated: int = 0
    unknown: int = 0
    missing: int = 0


def add(name: str, labels: Mapping[str, Any]) -> int:
    """Keep labels by prediction id. When this returns they are on the disk, also after a power cut.

    Whether there is such a prediction is not looked up: it may be gone by age, and to know is to read the log. A label
    of an unknown one is kept, and shows nowhere.

    Parameters
    ----------
    labels : mapping
        Prediction id to a JSON value: a string, a number, a boolean; None takes a label back.

    Returns
    -------
    int
        How many there are.

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
    return len(labels)


def label_problems(labels: Mapping[Any, Any]) -> Iterator[dict[str, Any]]:
    """What in `labels` is no label, or not of a prediction id."""
    for key, value in labels.items():
        if not isinstance(key, str) or not ID.fullmatch(key):
            column = key[:80] if isinstance(key, str) else str(key)[:80]
            yield problem(None, column, "a prediction id", shown(key) if isinstance(key, str) else type(key).__name__,
                          "Send what `prediction_ids` had in the answer.")  # fmt: skip
        elif not isinstance(value, bool) and (hint := _fault(value)):
            yield problem(None, key[:80], "a string, a number, true, false or null", shown(value), hint.strip())


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


def given(labels: Any, target: str = "", known: Sequence[str] = ()) -> Given:
    """Labels by prediction id from what a user has: a series indexed by prediction id, a frame, or a mapping.

    Parameters
    ----------
    labels : Series, DataFrame or mapping
        A frame has the column ``prediction_id``, else its index counts, and one of labels. Missing labels are left
        out; of several labels of one prediction the last counts.
    target, known : see `label_column`

    Raises
    ------
    InputError
        It is something else.
    """
    labels = as_pandas(labels)
    if isinstance(labels, pd.DataFrame):
        column = label_column(labels, target, known, ["prediction_id"])
        ids = column_of(labels, "prediction_id") if "prediction_id" in labels.columns else labels.index
        held = column_of(labels, column)
        labels = pd.Series(held.to_numpy(), index=ids, dtype=held.dtype)
    if isinstance(labels, pd.Series):
        held = labels[labels.notna().to_numpy()]
        found = dict(zip(held.index, plain_values(held), strict=True))
        return Given(found, repeated=len(held) - len(found), missing=len(labels) - len(held))
    if isinstance(labels, Mapping):
        return Given({key: _plain(value) for key, value in labels.items()})
    msg = f"labels is a {type(labels).__name__}"
    raise InputError(msg, hint="Pass a series indexed by prediction_id, or a frame with prediction_id and label.")


def as_pandas(labels: Any) -> Any:
    """Frames and series of Polars and Arrow as those of pandas; anything else as it is."""
    return labels.to_pandas() if hasattr(labels, "to_pandas") else labels


def keyed_frame(labels: Any, keys: Sequence[str], label: str) -> pd.DataFrame:
    """Labels as a frame that has the keys as columns, as far as they are columns or levels of the index.

    Parameters
    ----------
    label : str
        What a series becomes a column of.

    Raises
    ------
    InputError
        It is no frame and no series.
    """
    frame = as_pandas(labels)
    if isinstance(frame, pd.Series):
        frame = frame.to_frame(label)
    if not isinstance(frame, pd.DataFrame):
        msg = f"labels is a {type(labels).__name__}, and to be joined it has to be a frame"
        raise InputError(msg, hint="Pass a frame with the columns of on= and one of labels.")
    levels = [key for key in keys if key in frame.index.names and key not in frame.columns]
    return frame.reset_index(level=levels) if levels else frame


def label_column(frame: pd.DataFrame, target: str, known: Sequence[str], keys: Sequence[str]) -> str:
    """The column of a frame that holds the labels: `target`; else ``label``; else the first that is a name of `known`.

    Parameters
    ----------
    target : str
        What the user says; '' says nothing.
    known : sequence of str
        What the outcome is called in training.
    keys : sequence of str
        Columns that hold something else.

    Raises
    ------
    InputError
        There is none.
    """
    wanted = [target] if target else [name for name in ("label", *known) if name and name not in keys]
    for name in wanted:
        if name in frame.columns and name not in keys:
            return name
    shown = ", ".join(map(str, frame.columns))[:200]
    msg = f"the frame of labels has the columns {shown} and no {wanted[0]!r:.80}"
    raise InputError(msg, hint="Call its column of labels label, or name it: target='late', say.")


def column_of(frame: pd.DataFrame, name: str) -> pd.Series:
    """The column of that name.

    Raises
    ------
    InputError
        There are several.
    """
    found = frame[name]
    if isinstance(found, pd.DataFrame):
        msg = f"the frame of labels has {found.shape[1]} columns {name!r:.80}"
        raise InputError(msg, hint="Keep one of them.")
    return found


def plain_values(series: pd.Series) -> list[Any]:
    """The values of a series as labels: plain ones, moments as their ISO 8601 text."""
    return [_plain(value) for value in series.tolist()]


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
    if not isinstance(entry.get("time"), (int, float)):
        return None
    return entry if _are_plain(entry["labels"]) or not any(label_problems(entry["labels"])) else None


def _are_plain(labels: Mapping[str, Any]) -> bool:
    """Whether these labels, which were JSON, are all such as one sees at once; of others nothing is said."""
    if not {*map(type, labels.values())} <= _PLAIN:
        return False
    told = " ".join(labels) + " "
    return told.count(" ") == len(labels) and _IDS.fullmatch(told) is not None


_PLAIN = frozenset({bool, int, type(None)})
_IDS = re.compile(rf"(?:{ID.pattern} )*", re.ASCII)


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

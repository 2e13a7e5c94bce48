"""What was asked, by which version it was answered, with what: read from segments of lines and from Parquet alike.

Who writes it is `nbdeploy.log_writer`; what becomes of it, `nbdeploy.log_keeping`. docs/log.md has the format.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nbdeploy.errors import NbdeployError
from nbdeploy.log_frames import frame_of, moments
from nbdeploy.log_keeping import META, seal, tables
from nbdeploy.log_segments import (
    SPOILT,
    Chunk,
    Day,
    chunks,
    day_in,
    day_of,
    lines_files,
    parquet_files,
    place,
    stem_of,
)
from nbdeploy.log_tables import OWN, Header, own_column, with_purpose
from nbdeploy.log_values import logged_columns
from nbdeploy.log_writer import Entry, LogWriter
from nbdeploy.signature import Signature

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Entry",
    "LogWriter",
    "moment",
    "new_request_id",
    "own_column",
    "prediction_ids",
    "read",
    "seal",
    "size",
    "unreadable",
]


def new_request_id() -> str:
    """The id of one request, of which its rows' ids are made."""
    return secrets.token_hex(8)


def prediction_ids(request: str, count: int) -> list[str]:
    """The ids of a request's rows."""
    return [f"{request}-{row}" for row in range(count)]


def read(
    name: str,
    signature_of: Callable[[str], Signature | None] = lambda _version: None,
    since: Any = None,
    until: Any = None,
    labels: Mapping[str, Any] | None = None,
    *,
    purpose: str = "",
    version: str = "",
    proba: bool = False,
) -> pd.DataFrame:
    """The log as a frame, oldest first: what users asked, or what was asked for another purpose.

    Columns: the inputs with the dtypes of the version that answered, then ``prediction``, ``prediction_id``,
    ``version``, ``time`` (UTC) and, where `labels` are given, ``label``; see `own_column` for where an input has such
    a name. A hashed column holds the hashes, a large cell its digest and summary; see docs/log.md.

    Parameters
    ----------
    signature_of : callable
        The signature of a version: asked only where the log itself does not say what its columns are.
    since, until : see `moment`
    labels : mapping, optional
        The label of each prediction id.
    purpose : str
        Why the rows were asked, and no others are read: ``""`` by a user, ``"gate"``, ``"shadow"``. A shadow's row has
        the ``prediction_id`` of the row that it shadows.
    version : str
        What this version answered, and nothing else.
    proba : bool
        Add the column ``probabilities`` before ``label``: per row a list, or None where they were not asked for.
    """
    start, end = moment(since), moment(until)
    by_version: dict[str, list[_Part]] = {}
    for part in _parts(name, start, end, purpose, version):
        by_version.setdefault(part.version, []).append(part)
    frames, times = [], []
    for answered_by, parts in by_version.items():
        for header, alike in _alike(parts, signature_of(answered_by)):
            frames.append(frame_of(header, [part.table for part in alike], labels, proba=proba))
            times += [moments(part.table) for part in alike]
    if not frames:
        own = ["prediction", "prediction_id", "version", "time", *(["probabilities"] if proba else [])]
        return pd.DataFrame(columns=own if labels is None else [*own, "label"])
    whole = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
    # Not by a column: what is the log's time in one version's rows may be an input in another's.
    order = np.argsort(np.concatenate(times), kind="stable")
    return whole.iloc[order].reset_index(drop=True)


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


def size(name: str) -> int:
    """How many rows users have asked for, as far as the log holds them. What was counted once is not read again."""
    return sum(rows for rows, _ in _counts(name))


def unreadable(name: str) -> int:
    """How many lines of the log cannot be read. They are left out everywhere else."""
    return sum(lines for _, lines in _counts(name))


# -- counts -------------------------------------------------------------------------------------------------


@dataclass
class _Counted:
    end: int = 0
    header: Header | None = None
    rows: int = 0
    unreadable: int = 0


_counted: dict[tuple[Path, int], _Counted] = {}  # by file and inode: what of a segment has been read
_sealed: dict[Path, tuple[int, int]] = {}  # which never change


def _counts(name: str) -> Iterator[tuple[int, int]]:
    where = place(name)
    for path in _sources(where):
        with suppress(FileNotFoundError):  # deleted meanwhile
            yield _count_sealed(path) if path.suffix == ".parquet" else _count(path)
    for path in where.glob(f"*{SPOILT}"):
        with suppress(FileNotFoundError):
            yield _count(path)


def _count(path: Path) -> tuple[int, int]:
    about = path.stat()
    known = _counted.setdefault((path, about.st_ino), _Counted())
    if about.st_size != known.end:
        for chunk in chunks(path, known.end, known.header):
            known.end, known.header = chunk.end, chunk.header
            known.unreadable += chunk.unreadable
            known.rows += sum(len(entry["outputs"]) for entry in chunk.entries if not entry["purpose"])
    return known.rows, known.unreadable


def _count_sealed(path: Path) -> tuple[int, int]:
    if path not in _sealed:
        _sealed[path] = 0, 1  # where it cannot be read
        found = _opened(path)
        if found is not None:
            with found as file:
                told = json.loads((file.metadata.metadata or {}).get(META + b"-counts", b"{}"))
                _sealed[path] = int(told.get("rows", file.metadata.num_rows)), int(told.get("unreadable", 0))
    return _sealed[path]


def _opened(path: Path) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path, pre_buffer=False)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError):
        return None


# -- rows ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    version: str
    header: Header
    table: pa.Table


def _sources(where: Path) -> list[Path]:
    """What counts: segments' lines, and the Parquet files of the segments whose lines are gone."""
    # In this order: what is sealed in between is then missed by neither.
    lines = lines_files(where)
    there = {stem_of(path) for path in lines}
    return [*lines, *(path for path in parquet_files(where) if stem_of(path) not in there)]


def _parts(name: str, start: float | None, end: float | None, purpose: str, version: str) -> list[_Part]:
    where = place(name)
    done: dict[str, list[_Part]] = {}  # by file: what was read already stays read when the list is made again
    while True:
        sources = _sources(where)
        gone = False
        for path in sources:
            key = f"{path.parent}/{path.name}"
            sealed = path.suffix == ".parquet"
            if key in done or (sealed and not _may_hold(path, start, end, version)):
                continue
            try:
                found = _read_sealed(path) if sealed else _read_lines(path, purpose, version)
                done[key] = [part for each in found if (part := _window(each, start, end, purpose)) is not None]
            except FileNotFoundError:
                gone = True  # sealed or removed meanwhile
        if not gone:
            break
    lines = {stem_of(Path(key)) for key in done if key.endswith(".jsonl")}
    # Of a segment that was read as lines and then sealed, the lines count.
    return [p for k, parts in done.items() if k.endswith(".jsonl") or stem_of(Path(k)) not in lines for p in parts]


def _may_hold(path: Path, start: float | None, end: float | None, version: str) -> bool:
    day = day_in(path)
    if version and path.parent.parent.name != Day(version, "").path(path, "").parent.parent.name:
        return False
    return (start is None or day >= day_of(start)) and (end is None or day <= day_of(end))


def _read_lines(path: Path, purpose: str, version: str) -> Iterator[_Part]:
    for chunk in chunks(path):
        kept = [e for e in chunk.entries if e["purpose"] == purpose and version in ("", e["version"])]
        told = Chunk(chunk.header, kept, 0, chunk.end)
        for day, header, table in tables(told):
            yield _Part(day.version, header, table)


def _read_sealed(path: Path) -> Iterator[_Part]:
    import pyarrow as pa

    found = _opened(path)
    if found is None:
        return
    with found as file:
        try:
            # Arrow's own threads make a short-lived process abort at its exit now and then.
            table = file.read(use_threads=False)
            header = Header.from_dict(json.loads((table.schema.metadata or {}).get(META, b"{}"))) or Header()
        except (pa.ArrowException, OSError, ValueError):
            return
    if table.num_columns >= len(OWN) and table.num_rows:
        yield _Part(table.column(table.num_columns - 3)[0].as_py(), header, with_purpose(table))


def _window(part: _Part, start: float | None, end: float | None, purpose: str) -> _Part | None:
    import pyarrow.compute as pc

    table = part.table
    keep = pc.equal(table.column(table.num_columns - 1), purpose).to_numpy()
    if start is not None or end is not None:
        times = moments(table) / 1e6
        keep &= (times >= (start if start is not None else -np.inf)) & (times < (end if end is not None else np.inf))
    if keep.all():
        return part
    return _Part(part.version, part.header, table.filter(keep)) if keep.any() else None


def _alike(parts: list[_Part], signature: Signature | None) -> Iterator[tuple[Header, list[_Part]]]:
    """The parts of one version by their columns, each with what is known about these."""
    fallback = Header(tuple(logged_columns(signature.columns)), signature.outputs) if signature else Header()
    groups: dict[tuple[str, ...], list[_Part]] = {}
    for part in parts:
        groups.setdefault(tuple(part.table.column_names), []).append(part)
    for alike in groups.values():
        known = next((part.header for part in alike if part.header.columns is not None), fallback)
        yield known, alike

"""What was asked, by which version it was answered, with what: read from segments of lines and from Parquet alike.

Who writes it is `nbdeploy.log_writer`; what becomes of it, `nbdeploy.log_keeping`. docs/log.md has the format.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
from nbdeploy.log_tables import OWN, Header, own_column
from nbdeploy.log_values import logged_columns
from nbdeploy.log_writer import Entry, LogWriter
from nbdeploy.signature import Signature

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Entry",
    "LogWriter",
    "Rows",
    "alike_in",
    "moment",
    "new_request_id",
    "own_column",
    "prediction_ids",
    "read",
    "scan",
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
    by_version: dict[str, list[Rows]] = {}
    for part in scan(name, since=since, until=until, purpose=purpose, version=version):
        by_version.setdefault(part.version, []).append(part)
    frames, times = [], []
    for answered_by, parts in by_version.items():
        for header, alike in alike_in(parts, signature_of(answered_by)):
            frames.append(frame_of(header, [part.table for part in alike], labels, proba=proba))
            times += [moments(part.table) for part in alike]
    if not frames:
        own = ["prediction", "prediction_id", "version", "time", *(["probabilities"] if proba else [])]
        return pd.DataFrame(columns=own if labels is None else [*own, "label"])
    whole = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
    # Not by a column: what is the log's time in one version's rows may be an input in another's.
    order = np.argsort(np.concatenate(times), kind="stable")
    return whole.iloc[order].reset_index(drop=True)


@dataclass(frozen=True)
class Rows:
    """Some rows of the log that one version answered, as Arrow has them.

    Attributes
    ----------
    version : str
    header : Header
        What is known about their columns.
    table : pyarrow.Table
        The inputs that were asked for, in their order, then the log's own columns.
    own : mapping
        What the log's own columns (`nbdeploy.log_tables.OWN`) are called in `table`.
    """

    version: str
    header: Header
    table: pa.Table
    own: Mapping[str, str]


def scan(
    name: str,
    *,
    columns: Collection[str] | None = None,
    own: Collection[str] = OWN,
    since: Any = None,
    until: Any = None,
    purpose: str = "",
    version: str = "",
    batch: int = 1 << 16,
) -> Iterator[Rows]:
    """The log in pieces, in no particular order: what a log takes that is larger than memory.

    Of Parquet only the `columns` and `own` ones are read, and neither files of other days and versions nor row groups of
    other times are. Lines are read whole, a segment (64 MiB) at a time.

    Parameters
    ----------
    columns : collection of str, optional
        Inputs; by default all. What a version has no column for is left out.
    own : collection of str
        Which of the log's own columns.
    since, until : see `moment`
    purpose, version : see `read`
    batch : int
        Rows of a piece, at most, where they come from Parquet.
    """
    where, window = place(name), _Window(moment(since), moment(until), purpose, version)
    wanted = _Wanted(None if columns is None else frozenset(columns), frozenset(own))
    done: set[str] = set()  # by file: what was read already stays read when the list is made again
    lines: set[str] = set()  # of a segment that was read as lines and then sealed, the lines count
    while True:
        gone = False
        for path in _sources(where):
            key = f"{path.parent}/{path.name}"
            sealed = path.suffix == ".parquet"
            if key in done or (sealed and (stem_of(path) in lines or not window.may_hold(path))):
                continue
            try:
                if sealed:
                    yield from _read_sealed(path, wanted, window, batch)
                else:
                    found = list(_read_lines(path, wanted, window))
                    lines.add(stem_of(path))
                    yield from found
                done.add(key)
            except FileNotFoundError:
                gone = True  # sealed or removed meanwhile
        if not gone:
            return


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


def _sources(where: Path) -> list[Path]:
    """What counts: segments' lines, and the Parquet files of the segments whose lines are gone."""
    # In this order: what is sealed in between is then missed by neither.
    lines = lines_files(where)
    there = {stem_of(path) for path in lines}
    return [*lines, *(path for path in parquet_files(where) if stem_of(path) not in there)]


@dataclass(frozen=True)
class _Wanted:
    columns: frozenset[str] | None
    own: frozenset[str]

    def inputs(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if self.columns is None or name in self.columns]


@dataclass(frozen=True)
class _Window:
    start: float | None
    end: float | None
    purpose: str
    version: str

    @property
    def bounded(self) -> bool:
        return self.start is not None or self.end is not None

    def may_hold(self, path: Path) -> bool:
        """Whether a Parquet file may hold such rows, by its place alone."""
        day = day_in(path)
        if self.version and path.parent.parent.name != Day(self.version, "").path(path, "").parent.parent.name:
            return False
        return (self.start is None or day >= day_of(self.start)) and (self.end is None or day <= day_of(self.end))

    def row_groups(self, file: Any, time_column: int) -> list[int]:
        """Those that may hold such rows, by what is known of their times."""
        found = []
        for group in range(file.metadata.num_row_groups):
            about = file.metadata.row_group(group).column(time_column).statistics if self.bounded else None
            if about is not None and about.has_min_max:
                first, last = about.min.timestamp(), about.max.timestamp()
                if (self.start is not None and last < self.start) or (self.end is not None and first >= self.end):
                    continue
            found.append(group)
        return found

    def keep(self, rows: Rows, wanted: _Wanted) -> Rows | None:
        """The rows that it holds, with the columns that are wanted."""
        import pyarrow.compute as pc

        table = rows.table
        purposes = table.column(rows.own["purpose"])
        if purposes.type == "bool":  # in older files it says whether a gate asked
            purposes = pc.if_else(purposes, "gate", "")
            place = table.schema.get_field_index(rows.own["purpose"])
            table = table.set_column(place, rows.own["purpose"], purposes)
        keep = pc.equal(purposes, self.purpose).to_numpy()
        if self.bounded:
            times = table.column(rows.own["time"]).cast("int64").to_numpy() / 1e6
            keep &= (times >= (-np.inf if self.start is None else self.start)) & (
                times < (np.inf if self.end is None else self.end)
            )
        if not keep.any():
            return None
        own = {label: name for label, name in rows.own.items() if label in wanted.own}
        drop = [name for label, name in rows.own.items() if label not in own]
        kept = table.drop_columns(drop) if drop else table
        return Rows(rows.version, rows.header, kept if keep.all() else kept.filter(keep), own)


def _read_lines(path: Path, wanted: _Wanted, window: _Window) -> Iterator[Rows]:
    for chunk in chunks(path):
        kept = []
        for entry in chunk.entries:
            if entry["purpose"] != window.purpose or window.version not in ("", entry["version"]):
                continue
            if wanted.columns is not None:
                for key in {"inputs", "frame"} & entry.keys():
                    held = entry[key]
                    names = wanted.inputs(list(held) if key == "inputs" else held.column_names)
                    entry[key] = {name: held[name] for name in names} if key == "inputs" else held.select(names)
            kept.append(entry)
        for day, header, table in tables(Chunk(chunk.header, kept, 0, chunk.end)):
            own = dict(zip(OWN, table.column_names[-len(OWN) :], strict=True))
            if (rows := window.keep(Rows(day.version, header, table, own), wanted)) is not None:
                yield rows


def _read_sealed(path: Path, wanted: _Wanted, window: _Window, batch: int) -> Iterator[Rows]:
    import pyarrow as pa

    found = _opened(path)
    if found is None:
        return
    with found as file:
        try:
            schema = file.schema_arrow
            header = Header.from_dict(json.loads((schema.metadata or {}).get(META, b"{}"))) or Header()
            if len(schema.names) < len(OWN):
                return
            inputs = wanted.inputs(schema.names[: -len(OWN)])
            needed = {*wanted.own, "version", "purpose", *(["time"] if window.bounded else [])}
            told = zip(OWN, schema.names[-len(OWN) :], strict=True)
            own = {label: name for label, name in told if label in needed}
            names = [*inputs, *own.values()]
            fields = pa.schema([schema.field(name) for name in names])
            groups = window.row_groups(file, file.metadata.num_columns - 2)
            # Arrow's own threads make a short-lived process abort at its exit now and then.
            for read in file.iter_batches(batch, groups, names, use_threads=False) if groups else ():
                # A name with a dot may have brought others along.
                table = pa.Table.from_arrays([read.column(name) for name in names], schema=fields)
                version = table.column(own["version"])[0].as_py()
                if (rows := window.keep(Rows(version, header, table, own), wanted)) is not None:
                    yield rows
        except (pa.ArrowException, OSError, ValueError):
            return


def alike_in(parts: Iterable[Rows], signature: Signature | None) -> Iterator[tuple[Header, list[Rows]]]:
    """The parts of one version by their columns, each with what is known about these."""
    fallback = Header(tuple(logged_columns(signature.columns)), signature.outputs) if signature else Header()
    groups: dict[tuple[str, ...], list[Rows]] = {}
    for part in parts:
        groups.setdefault(tuple(part.table.column_names), []).append(part)
    for alike in groups.values():
        known = next((part.header for part in alike if part.header.columns is not None), fallback)
        yield known, alike

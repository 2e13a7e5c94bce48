"""What becomes of the segments that nobody writes any more: they are sealed as Parquet, and removed when it is time.

As a program, ``python -m nbdeploy.log_keeping NAME`` seals at the lowest priority, until its standard input ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbdeploy.errors import NbdeployError
from nbdeploy.home import private_folder, sync_folder
from nbdeploy.log_clock import DAY
from nbdeploy.log_segments import (
    FRAMES,
    LINES,
    PARQUET,
    SPOILT,
    Chunk,
    Day,
    begun,
    chunks,
    claimed,
    day_of,
    lines_files,
    parquet_files,
    place,
    stem_of,
)
from nbdeploy.log_tables import Header, as_text, holds_json, own_column, table_of

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 50_000  # of a row group
META = b"nbdeploy"  # in the metadata of a Parquet file: its `Header`, and the counts
TEMPORARY = ".tmp"


# -- sealing ------------------------------------------------------------------------------------------------


def seal(name: str) -> int:
    """Turn the segments of a deployment's log that nobody writes any more into Parquet; how many there were.

    A process killed at any moment loses nothing and doubles nothing: a segment's lines are removed when its Parquet
    files are safely on the disk, and until then they are what counts. Two processes never work on the same segment.

    Raises
    ------
    NbdeployError
        A segment could not be sealed, and stays as it is; the others are sealed.
    """
    where, count, failed = place(name), 0, ""
    for path in lines_files(where):
        with claimed(path) as free:
            try:
                if free:
                    _seal(where, path)
                    count += 1
            except (OSError, NbdeployError, ValueError, TypeError, LookupError) as error:  # Arrow's own are among them
                failed = failed or f"{path.name}: {type(error).__name__}: {error}"
    for frames in where.glob(f"*{FRAMES}"):
        if not any(frames.with_suffix(suffix).exists() for suffix in (LINES, SPOILT)):
            frames.unlink(missing_ok=True)  # whoever sealed it was killed right then
    if failed:
        msg = f"the log of {name!r} cannot be sealed yet: {failed}"
        raise NbdeployError(msg, "What is not sealed can be read all the same.")
    return count


def sealable(name: str) -> bool:
    """Whether there is a segment that nobody writes any more."""
    for path in lines_files(place(name)):
        with claimed(path) as free:
            if free:
                return True
    return False


class _Mixed(Exception):
    """A column's values are of several kinds."""


def _seal(where: Path, path: Path) -> None:
    stem = path.name.removesuffix(LINES)
    texts: set[str] = set()
    while True:
        files = _Files(where, stem, texts)
        try:
            unreadable = 0
            for chunk in chunks(path):
                unreadable += chunk.unreadable
                for day, header, table in tables(chunk):
                    files.write(day, header, table)
            made = files.close(unreadable)
        except _Mixed as mixed:
            files.discard()
            texts.add(str(mixed))
            continue
        except BaseException:
            files.discard()
            raise
        break
    if made or not unreadable:
        os.unlink(path)
        if (frames := path.with_suffix(FRAMES)).exists():
            sync_folder(where)  # after a power cut no lines must refer to frames that are gone
            frames.unlink(missing_ok=True)
    else:  # kept for whoever wants to look, and never looked at again here
        os.replace(path, path.with_suffix(SPOILT))


def tables(chunk: Chunk) -> Iterator[tuple[Day, Header, pa.Table]]:
    """The entries of a chunk as tables: one for each version, day and set of columns."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for entry in chunk.entries:
        names = tuple(entry["frame"].column_names if "frame" in entry else entry["inputs"])
        kinds = entry["frame"].schema.to_string() if "frame" in entry else None
        groups.setdefault((entry["version"], day_of(entry["time"]), names, kinds), []).append(entry)
    for (version, day, names, _), entries in groups.items():
        yield Day(version, day, own_column("day", names)), chunk.header, table_of(chunk.header, version, entries)


class _Files:
    """The Parquet files of one segment while they are written."""

    def __init__(self, where: Path, stem: str, texts: set[str]) -> None:
        self._where, self._stem, self._texts = where, stem, texts
        self._writers: dict[Path, Any] = {}
        self._schemas: dict[Path, Any] = {}
        self._rows: dict[Path, int] = {}
        self._held: dict[Path, list[pa.Table]] = {}

    def write(self, day: Day, header: Header, table: pa.Table) -> None:
        import pyarrow as pa

        path = day.path(self._where, self._stem)
        table = as_text(table, [name for name in table.column_names if name in self._texts])
        schema = self._schemas.get(path)
        if schema is None:
            private_folder(path.parent)
            about = json.dumps(header.to_dict()).encode()
            self._schemas[path] = schema = table.schema.with_metadata({META: about})
        elif table.column_names != schema.names:
            # Other inputs in the same segment: only after damage to what says which they are. They get a file beside it.
            number = sum(other.parent == path.parent for other in self._schemas)
            twin = next(
                (p for p, s in self._schemas.items() if p.parent == path.parent and s.names == table.column_names), None
            )
            path = twin or path.with_name(f"{self._stem}.{number}.parquet")
            if twin is None:
                about = json.dumps(header.to_dict()).encode()
                self._schemas[path] = table.schema.with_metadata({META: about})
            schema = self._schemas[path]
        for ours, theirs in zip(schema, table.schema, strict=True):
            if ours.type != theirs.type or holds_json(ours) != holds_json(theirs):
                raise _Mixed(ours.name)
        asked = table.column(table.num_columns - 1).to_pylist().count("")  # by users, which is what counts
        self._rows[path] = self._rows.get(path, 0) + asked
        held = self._held.setdefault(path, [])
        held.append(table.replace_schema_metadata(schema.metadata))
        if sum(each.num_rows for each in held) >= ROWS:
            self._flush(path, pa.concat_tables(held))
            held.clear()

    def close(self, unreadable: int) -> list[Path]:
        """Put the files in their places, safely on the disk."""
        import pyarrow as pa

        for path, held in self._held.items():
            if held:
                self._flush(path, pa.concat_tables(held))
        for path, writer in self._writers.items():
            counts = {"rows": self._rows[path], "unreadable": unreadable}
            writer.add_key_value_metadata({META + b"-counts": json.dumps(counts)})
            writer.close()
            unreadable = 0  # told once
        for path in self._writers:
            descriptor = os.open(_temporary(path), os.O_RDONLY)
            try:
                os.fchmod(descriptor, 0o600)  # whatever the umask was
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(_temporary(path), path)
        for folder in {parent for path in self._writers for parent in (path.parent, *path.parents[1:4])}:
            sync_folder(folder)
        return [*self._writers]

    def discard(self) -> None:
        for path, writer in self._writers.items():
            with suppress(Exception):
                writer.close()
            with suppress(OSError):
                os.unlink(_temporary(path))

    def _flush(self, path: Path, table: pa.Table) -> None:
        from pyarrow import parquet

        if path not in self._writers:
            with suppress(FileNotFoundError):
                os.unlink(_temporary(path))
            os.close(os.open(_temporary(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            self._writers[path] = parquet.ParquetWriter(_temporary(path), self._schemas[path], compression="zstd")
        self._writers[path].write_table(table)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}{TEMPORARY}")  # which no reader of a folder of Parquet files looks at


# -- retention ----------------------------------------------------------------------------------------------


def expire(name: str, now: float, *, days: float, max_bytes: int, room: int = 0, segment: int = 0) -> int:
    """Remove the oldest segments of a log, whole, until it is within its bounds; how many were removed.

    Parameters
    ----------
    now : float
        The log's time, in seconds.
    days : float
        A segment is removed when the last thing that it can hold is older: a segment takes a day at most.
    max_bytes, room : int
        All files together take at most `max_bytes` less `room`, which is about to be written.
    segment : int
        Bytes that a segment in use counts as, at least: what it is going to have. It is never removed.
    """
    where, removed = place(name), 0
    held = _sizes(where, segment)
    total = sum(size for _, size, _ in held)
    for stem, size, files in held:
        old = now - (begun(stem) + DAY) > days * DAY and begun(stem) > 0
        if not old and total + room <= max_bytes:
            continue
        if files and _remove(files):
            total -= size
            removed += 1
    return removed


def _sizes(where: Path, segment: int) -> list[tuple[str, int, list[Path]]]:
    """Of each segment its name, bytes and files, oldest first; of one that is in use, no file."""
    files: dict[str, list[Path]] = {}
    labels = sorted((where / "labels").glob(f"*{LINES}"))
    loose = [*where.glob(f"*{SPOILT}"), *where.glob(f"*{FRAMES}"), *(where / PARQUET).glob(f"*/*/.*{TEMPORARY}")]
    for path in [*lines_files(where), *labels, *parquet_files(where), *loose]:
        files.setdefault(stem_of(path), []).append(path)
    found: list[tuple[str, int, list[Path]]] = []
    for stem, paths in sorted(files.items()):
        size = sum(map(_size, paths))
        lines = next((path for path in paths if path.suffix == LINES and path not in labels[:-1]), None)
        if lines is not None and lines in labels:  # labels still come there
            found.append((stem, size, []))
            continue
        used = False
        if lines is not None and lines.exists():
            with claimed(lines) as free:
                used = not free
        found.append((stem, max(size, segment), []) if used else (stem, size, paths))
    return found


def _remove(files: list[Path]) -> bool:
    """Remove a segment, its lines last: they are what counts."""
    lines = next((path for path in files if path.suffix == LINES), None)
    try:
        if lines is None:
            _unlink(files)
            return True
        with claimed(lines) as free:
            if free:
                _unlink([*(path for path in files if path != lines), lines])
            return free
    except OSError:
        return False


def _unlink(files: list[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)
        if PARQUET in path.parts:
            for folder in (path.parent, path.parent.parent):
                with suppress(OSError):  # it holds more
                    folder.rmdir()


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


# -- as a process of its own --------------------------------------------------------------------------------


def main(name: str) -> int:
    """Seal `name`'s log without getting in anybody's way; end when whoever started this does."""
    with suppress(OSError):
        os.nice(19)
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        seal(name)
    except (OSError, NbdeployError) as error:
        sys.stderr.write(f"nbdeploy: {error}\n")
        return 1
    return 0


def _end_with_input() -> None:
    while os.read(0, 1 << 10):  # not sys.stdin, whose lock a thread must not hold at the end
        pass
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""A log of any size as a sample of its rows, with how often each value stands in all of them, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nbdeploy.log_frames import series_of
from nbdeploy.log_tables import holds_json, json_values
from nbdeploy.prediction_log import Rows, alike_in, scan
from nbdeploy.signature import Signature

if TYPE_CHECKING:
    import pyarrow as pa

MAX_VALUES = 100_000  # different values of a column that are counted
MAX_NUMBERS = 1_000  # of numbers: of those with more only some are looked at

Counts = dict[str, pd.Series]


@dataclass(frozen=True)
class Sample:
    """Some rows of the log, and what is known of all that were looked at.

    Attributes
    ----------
    rows : int
        How many were looked at.
    inputs : DataFrame
        Those of a uniform sample without replacement, in the order of the log's files, with the dtypes of training.
    predictions : list
        What was answered, as JSON has it; empty where it was not asked for.
    ids : list of str
        Prediction ids, likewise.
    counts : dict
        By input, and of ``prediction`` under the empty name, how often each value stands in all rows. A column with more than
        100,000 different values, or 1,000 different numbers, is not there.
    present : dict
        By the same names, how many of all rows have a value.
    """

    rows: int
    inputs: pd.DataFrame
    predictions: list[Any]
    ids: list[str]
    counts: Counts
    present: dict[str, int]


def take(
    name: str,
    signature_of: Callable[[str], Signature | None],
    at_most: int,
    *,
    columns: Collection[str],
    own: Collection[str] = ("prediction", "prediction_id"),
    since: Any = None,
    until: Any = None,
    purpose: str = "",
    version: str = "",
    seed: int = 0,
    count: bool = True,
) -> Sample:
    """Read a window of the log once, and keep `at_most` of its rows, each as likely as any other.

    It holds twice the sample and a piece of the log, whatever the log's size.

    Parameters
    ----------
    columns, own, since, until, purpose, version : see `nbdeploy.prediction_log.scan`
    seed : int
        The same seed and the same files give the same rows.
    count : bool
        Count the values of all rows too.
    """
    kept, tallies, rows = _Reservoir(at_most, seed), dict[str, _Tally](), 0
    for part in scan(name, columns=columns, own=own, since=since, until=until, purpose=purpose, version=version):
        rows += part.table.num_rows
        if count:
            for field in part.table.schema:
                label = "" if field.name == part.own.get("prediction") else field.name
                if label == "" or field.name not in part.own.values():
                    tallies.setdefault(label, _Tally()).add(field, part.table.column(field.name))
        kept.add(part)
    counts = {label: found for label, tally in tallies.items() if (found := tally.counts()) is not None}
    inputs, predictions, ids = _frames(kept.parts(), signature_of)
    return Sample(rows, inputs, predictions, ids, counts, {label: each.present for label, each in tallies.items()})


def _frames(
    parts: list[Rows], signature_of: Callable[[str], Signature | None]
) -> tuple[pd.DataFrame, list[Any], list[str]]:
    by_version: dict[str, list[Rows]] = {}
    for part in parts:
        by_version.setdefault(part.version, []).append(part)
    frames, predictions, ids = [], list[Any](), list[str]()
    for version, held in by_version.items():
        for header, alike in alike_in(held, signature_of(version)):
            tables, own = [part.table for part in alike], alike[0].own
            names = [each for each in tables[0].column_names if each not in own.values()]
            data = {n: series_of(header.column(n), [t.field(n) for t in tables], [t.column(n) for t in tables])
                    for n in names}  # fmt: skip
            frames.append(pd.DataFrame(data, index=pd.RangeIndex(sum(table.num_rows for table in tables))))
            for label, told in (("prediction", predictions), ("prediction_id", ids)):
                if label in own:
                    told += [v for t in tables for v in json_values(t.field(own[label]), t.column(own[label]))]
    if not frames:
        return pd.DataFrame(), [], []
    return frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True), predictions, ids


class _Reservoir:
    """The rows with the smallest of random keys, which is a uniform sample without replacement."""

    def __init__(self, at_most: int, seed: int) -> None:
        self._at_most, self._random = at_most, np.random.default_rng(seed)
        self._bound, self._held = 1.0, 0
        self._parts: list[tuple[Any, Rows]] = []

    def add(self, rows: Rows) -> None:
        keys = self._random.random(rows.table.num_rows)
        if self._bound < 1:
            below = keys < self._bound
            rows, keys = _filtered(rows, below), keys[below]
        if len(keys):
            self._parts.append((keys, rows))
            self._held += len(keys)
        if self._held > 2 * self._at_most + (1 << 14):
            self._compact()

    def parts(self) -> list[Rows]:
        self._compact()
        return [rows for _, rows in self._parts]

    def _compact(self) -> None:
        if self._held <= self._at_most:
            return
        keys = np.concatenate([each for each, _ in self._parts])
        self._bound = float(np.partition(keys, self._at_most)[self._at_most])
        kept = [(keys, rows, keys < self._bound) for keys, rows in self._parts]
        self._parts = [(keys[below], _filtered(rows, below)) for keys, rows, below in kept if below.any()]
        self._held = sum(len(keys) for keys, _ in self._parts)


def _filtered(rows: Rows, keep: Any) -> Rows:
    return Rows(rows.version, rows.header, rows.table.filter(keep), rows.own)


class _Tally:
    """How often each value of a column was met, as long as there are not too many."""

    def __init__(self) -> None:
        self.present = 0
        self._tables: dict[tuple[str, bool], list[pa.Table]] = {}  # by type: versions may differ in theirs
        self._fields: dict[tuple[str, bool], pa.Field] = {}
        self._held, self._over = 0, False

    def add(self, field: pa.Field, column: Any) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        self.present += len(column) - column.null_count
        kind = column.type
        if self._over or pa.types.is_temporal(kind) or pa.types.is_nested(kind):
            self._over = True
            return
        found = pc.value_counts(column.combine_chunks())
        key = (str(kind), holds_json(field))
        self._fields[key] = field
        self._tables.setdefault(key, []).append(
            pa.table({"value": found.field("values"), "count": found.field("counts")})
        )
        self._held += len(found)
        most = MAX_NUMBERS if pa.types.is_primitive(kind) else MAX_VALUES
        if self._held > 4 * most:
            self._merge()
            self._over = self._held > most
            if self._over:
                self._tables = {}

    def _merge(self) -> None:
        import pyarrow as pa

        self._tables = {
            key: [
                pa.concat_tables(each)
                .group_by("value", use_threads=False)
                .aggregate([("count", "sum")])
                .rename_columns(["value", "count"])
            ]
            for key, each in self._tables.items()
        }
        self._held = sum(table.num_rows for each in self._tables.values() for table in each)

    def counts(self) -> pd.Series | None:
        """By value, nulls left out; None where there are too many, or values that cannot be told apart."""
        if self._over or not self._tables:
            return None
        self._merge()
        numbers = any(key[0] in _NUMBERS for key in self._tables)
        if self._held > (MAX_NUMBERS if numbers else MAX_VALUES):
            return None
        found: dict[Any, int] = {}
        for key, (table,) in self._tables.items():
            for value, many in zip(
                json_values(self._fields[key], table.column("value")), table.column("count").to_pylist(), strict=True
            ):
                if isinstance(value, (list, dict)):
                    return None
                if value is not None:
                    found[value] = found.get(value, 0) + many
        return pd.Series(list(found.values()), index=pd.Index(list(found), dtype=object), dtype="int64")


_NUMBERS = {*(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float", "double"}

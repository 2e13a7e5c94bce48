"""What a model takes and gives: names, types, ranges and categories, and the check of rows against them."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, Literal

import numpy as np
import pandas as pd

from nbdeploy.answers import Output
from nbdeploy.errors import InputError, SaveError, did_you_mean
from nbdeploy.signature_tensors import build_cells, cell_problems, jsonable_cells
from nbdeploy.signature_values import (
    MAX_SHOWN,
    Column,
    Kind,
    build_series,
    json_problem,
    jsonable,
    kind_of,
    plain,
    plain_values,
    problem,
    quick_array,
    restore_missing,
    shape_text,
    short,
    shown,
    value_problems,
)

__all__ = [
    "MAX_CATEGORIES",
    "MAX_PROBLEMS",
    "Column",
    "Kind",
    "Output",
    "Signature",
    "Task",
    "build_column",
    "build_series",
    "json_column",
    "jsonable",
    "problem",
    "refusal",
    "restore_missing",
    "seen",
    "shown",
]

Task = Literal["classification", "regression", "other"]

MAX_CATEGORIES = 200  # more distinct strings than this are free text, not categories
MAX_PROBLEMS = 100
MAX_HINTS = 3  # a hint costs a search through all names
MAX_SEARCHED = 60


@dataclass(frozen=True)
class Signature:
    """The inputs of a model and what comes out.

    Attributes
    ----------
    columns : tuple of Column
        In the order of the training frame. The order in a request is free.
    container : str
        What the model is handed: see `nbdeploy.containers.Training`.
    detail : str
        What makes the same container again: a dtype, a class, a schema.
    task : str
        ``classification``, ``regression`` or ``other``.
    outputs : tuple of Output
        What a prediction is; several where they have names.
    classes : tuple or None
        The classes, in the order of the probabilities; a tuple of such tuples for several targets.
    example : dict
        A real row of the training frame, as JSON.
    target : str
        What is predicted, where the name is known.
    """

    columns: tuple[Column, ...]
    container: str = "frame"
    detail: str = ""
    task: Task = "other"
    outputs: tuple[Output, ...] = (Output(),)
    classes: tuple[Any, ...] | None = None
    example: Mapping[str, Any] | None = None
    target: str = ""

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    @property
    def nonfinite(self) -> bool:
        """Whether Infinity may come in some column: its rows need a JSON that can say so."""
        return any(not column.finite for column in self.columns)

    @property
    def several(self) -> bool:
        """Whether there are classes of several targets."""
        return bool(self.classes) and isinstance(self.classes[0], tuple)  # type: ignore[index]

    @property
    def has_private(self) -> bool:
        """Whether the values of some column must not be told."""
        return any(column.private for column in self.columns)

    @property
    def logged(self) -> list[Column]:
        """The columns that the log holds in some form: all but private ones that are not hashed."""
        return [column for column in self.columns if not column.private or column.hashed]

    def reads_as(self, other: Signature) -> bool:
        """Whether both find the same in every body of JSON, and give answers of the same form.

        What training saw of a column counts only where it decides what may stand there: in categoricals.
        """
        mine, theirs = (
            replace(each, columns=tuple(map(_unseen, each.columns)), example=None, target="") for each in (self, other)
        )
        return mine == theirs

    def shown(self) -> Signature:
        """The signature as anybody may see it: of private columns the name and the type, and no value."""
        if not self.has_private:
            return self
        columns = tuple(
            replace(c, minimum=None, maximum=None, categories=None, longest=None) if c.private else c
            for c in self.columns
        )
        private = {c.name: c for c in columns if c.private}
        told = {
            name: _stand_in(private[name]) if name in private else value for name, value in (self.example or {}).items()
        }
        return replace(self, columns=columns, example=told)

    def with_private(self, names: Sequence[str] | Mapping[str, str]) -> Signature:
        """A copy in which the columns of these names are private.

        Parameters
        ----------
        names : list of str, or mapping
            Of a mapping, the values say what the log holds: nothing (``drop``, which is what a list says) or a keyed
            hash of each value (``hash``). In a list, ``NAME=hash`` says the same.

        Raises
        ------
        SaveError
            There is no such column, or another word for what the log holds.
        """
        wanted = {}
        for name, how in _private_names(names, self.names):
            if name not in self.names:
                msg = f"private names {name[:80]!r}, and X has no such column"
                raise SaveError(msg, did_you_mean(name, self.names))
            if how not in ("drop", "hash"):
                msg = f"private says {how[:80]!r} of the column {name[:80]!r}"
                raise SaveError(msg, "Say 'drop' or 'hash'.")
            wanted[name] = how
        columns = (replace(c, private=c.name in wanted, hashed=wanted.get(c.name) == "hash") for c in self.columns)
        return replace(self, columns=tuple(columns))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Signature:
        columns = tuple(
            Column(
                **{**column, "categories": _tuple(column.get("categories")), "shape": tuple(column.get("shape", ()))}
            )
            for column in value["columns"]
        )
        outputs = tuple(Output(**{**output, "shape": tuple(output["shape"])}) for output in value["outputs"])
        classes = _tuple(value["classes"])
        if classes and isinstance(classes[0], list):
            classes = tuple(map(tuple, classes))
        return cls(**{**value, "columns": columns, "outputs": outputs, "classes": classes})

    def table(self) -> pd.DataFrame:
        """The columns as a frame, for people."""
        rows = [
            {"column": c.name, "type": type_text(c), "nulls": c.nullable, "seen": seen(c)} for c in self.shown().columns
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=["column", "type", "nulls", "seen"]).set_index("column")

    def __repr__(self) -> str:
        inputs = ", ".join(f"{c.name}: {type_text(c)}{'?' if c.nullable else ''}" for c in self.columns)
        outputs = ", ".join(f"{o.name or self.target or self.task}: {o.dtype}{_sizes(o.shape)}" for o in self.outputs)
        return f"Signature({inputs} -> {outputs})"

    def _repr_html_(self) -> str:
        return str(self.table().to_html(escape=True, border=0))

    # -- out: frames to JSON ------------------------------------------------------------------------

    def encode(self, frame: pd.DataFrame) -> dict[str, Any] | list[dict[str, Any]]:
        """What `decode` takes, from a frame whose columns are this signature's, in any order.

        The ``{"columns", "data"}`` form; a list of records for the one signature whose own columns have these names.

        Raises
        ------
        InputError
            A column is missing, unknown or doubled, or holds what JSON cannot carry.
        """
        labels = list(map(str, frame.columns))
        if problems := self.name_problems(labels):
            raise refusal(problems)
        lists = [json_column(c, frame.iloc[:, labels.index(c.name)]) for c in self.columns]
        if found := [p for p in map(json_problem, self.columns, lists) if p]:
            raise refusal(found[:MAX_PROBLEMS])
        rows = zip(*lists, strict=True)
        if set(self.names) == _SPLIT:
            return [dict(zip(self.names, row, strict=True)) for row in rows]
        return {"columns": self.names, "data": list(map(list, rows))}

    # -- in: JSON to frames -------------------------------------------------------------------------

    def decode(self, payload: Any) -> pd.DataFrame:
        """Turn parsed JSON into the frame that the model was trained on, dtype for dtype: `check`, then `build`."""
        return self.build(self.check(payload))

    def check(self, payload: Any) -> dict[str, list[Any]]:
        """The values of each column in parsed JSON, all of which may stand there.

        Parameters
        ----------
        payload : dict or list
            One record, a list of records, or ``{"columns": [...], "data": [[...], ...]}``.

        Raises
        ------
        InputError
            With one problem per fault, at most 100.
        """
        if (one := self._one_plain(payload)) is not None:
            return one
        lists = self._columns_of(payload)
        problems: list[dict[str, Any]] = []
        for column in self.columns:
            look = cell_problems if column.shape else value_problems
            problems += look(column, lists[column.name], MAX_PROBLEMS - len(problems))
            if len(problems) >= MAX_PROBLEMS:
                break
        if problems:
            raise refusal(problems)
        return lists

    def build(self, lists: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
        """The frame of checked values, dtype for dtype.

        Raises
        ------
        InputError
            A value is beyond what its dtype can hold.
        """
        if self._one_dtype is not None:  # one array for all: a tenth of the time of one for each
            with suppress(ValueError, TypeError, OverflowError):  # below it is found out which one it was
                values = np.array([lists[name] for name in self.names], dtype=self._one_dtype)
                return pd.DataFrame(values.T, columns=self._labels.copy(deep=True), copy=False)
        held: dict[int, Any] = {}
        for i, column in enumerate(self.columns):
            try:
                quick = None if column.shape else quick_array(column, lists[column.name])
                held[i] = build_column(column, lists[column.name]) if quick is None else quick
            except (ValueError, TypeError, OverflowError) as error:
                told = "values that do not" if column.private else f"values that {error}"
                raise refusal([problem(None, column.name, column.expected, told)]) from (
                    None if column.private else error
                )
        # Not copied into blocks by type: that costs more than all the rest.
        frame = pd.DataFrame(held, copy=False)
        frame.columns = self._labels.copy(deep=True)  # a model may write into its labels
        return frame

    @cached_property
    def _one_dtype(self) -> np.dtype[Any] | None:
        """NumPy's dtype of all columns, where they have one dtype of numbers."""
        first = self.columns[0]
        if any(column.shape or column.dtype != first.dtype for column in self.columns):
            return None
        dtype = pd.api.types.pandas_dtype(first.dtype)
        return dtype if isinstance(dtype, np.dtype) and dtype.kind in "iuf" else None

    @cached_property
    def _labels(self) -> pd.Index:
        return pd.Index([column.label for column in self.columns])

    def _one_plain(self, payload: Any) -> dict[str, list[Any]] | None:
        """The values of one record that is as plain as most are; None for all that needs a closer look."""
        if len(payload) != 1 if isinstance(payload, list) else not isinstance(payload, dict):
            return None
        record = payload[0] if isinstance(payload, list) else payload
        if self._plain is None or not isinstance(record, dict) or len(record) != len(self._plain):
            return None
        found = {}
        for name, types, low, high in self._plain:
            value = record.get(name, _NO_VALUE)
            # NaN is in no range.
            if type(value) not in types or (low is not None and not low <= value <= high):
                return None
            found[name] = [value]
        return found

    @cached_property
    def _plain(self) -> list[tuple[str, frozenset[type], Any, Any]] | None:
        if any(column.shape for column in self.columns):
            return None
        found = [plain_values(column) for column in self.columns]
        if None in found:
            return None
        return [(column.name, *rule) for column, rule in zip(self.columns, found, strict=True) if rule is not None]

    def _columns_of(self, payload: Any) -> dict[str, list[Any]]:
        if isinstance(payload, dict) and self._is_split(payload):
            return self._from_split(payload["columns"], payload["data"])
        records = [payload] if isinstance(payload, dict) else payload
        if not isinstance(records, list):
            raise refusal(
                [problem(None, None, "a record, a list of records, or columns and data", self._told(payload))]
            )
        if not records:
            raise refusal([problem(None, None, "at least one row", "an empty list")])
        if self.container in UNNAMED and not isinstance(records[0], dict):
            # Nobody gave these columns names, so nobody need send them: each entry is a row.
            return self._from_split(self.names, [[row] for row in records] if len(self.columns) == 1 else records)
        names = set(self.names)
        problems: list[dict[str, Any]] = []
        for row, record in enumerate(records):
            if not isinstance(record, dict):
                problems.append(problem(row, None, "a record (an object with one key per column)", self._told(record)))
            elif record.keys() != names:
                told = self._column_problems(set(record), row, hints=0 if problems else MAX_HINTS)
                problems += islice(told, MAX_PROBLEMS - len(problems))
            if len(problems) >= MAX_PROBLEMS:
                break
        if problems:
            raise refusal(problems[:MAX_PROBLEMS])
        return {name: [record[name] for record in records] for name in self.names}

    def _told(self, value: Any) -> str:
        # What stands where a row should may be a private value.
        return kind_of(value) if self.has_private else shown(value)

    def _is_split(self, payload: dict[str, Any]) -> bool:
        return payload.keys() == _SPLIT and set(self.names) != _SPLIT

    def _from_split(self, columns: Any, data: Any) -> dict[str, list[Any]]:
        if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
            raise refusal([problem(None, None, "'columns' as a list of names", self._told(columns))])
        if not isinstance(data, list) or not data:
            raise refusal([problem(None, None, "'data' as a list of at least one row", self._told(data))])
        problems = [*islice(self._column_problems(set(columns), row=None), MAX_PROBLEMS), *_doubled(columns)]
        width = len(columns)
        for row, values in enumerate(data):
            if not isinstance(values, list) or len(values) != width:
                got = f"{len(values)} values" if isinstance(values, list) else self._told(values)
                problems.append(problem(row, None, f"a list of {width} values", got))
            if len(problems) >= MAX_PROBLEMS:
                break
        if problems:
            raise refusal(problems[:MAX_PROBLEMS])
        lists = dict(zip(columns, map(list, zip(*data, strict=True)), strict=True))
        return {name: lists[name] for name in self.names}

    def name_problems(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Which columns among `names` are missing, unknown or doubled: the first 100."""
        found = [*islice(self._column_problems(set(names), row=None), MAX_PROBLEMS), *_doubled(names)]
        return found[:MAX_PROBLEMS]

    def _column_problems(self, given: set[str], row: int | None, hints: int = MAX_HINTS) -> Iterator[dict[str, Any]]:
        names = self.names
        missing = [name for name in names if name not in given]
        unknown = sorted(map(str, given - set(names)))
        for i, column in enumerate(c for c in self.columns if c.name not in given):
            sent = _closest(column.name, unknown) if i < hints else ""
            yield problem(row, column.name, column.expected, "no such column", f"You sent {sent!r}." if sent else "")
        for i, name in enumerate(unknown):
            meant = (_closest(name, missing) or _closest(name, names)) if i < hints else ""
            yield problem(row, short(name), "only the model's columns", "an unknown column",
                          f"Did you mean {meant!r}?" if meant else "")  # fmt: skip

    def novelties(self, frame: pd.DataFrame) -> list[dict[str, Any]]:
        """What in `frame` the training frame never held: unseen categories and values out of range, per column."""
        found = []
        for column in self.columns:
            if column.private or column.shape:
                continue
            series = frame[column.label]
            if column.categories is not None:
                unseen = series[~series.isin(column.categories) & series.notna()]
                expected = "a category seen in training"
            elif column.minimum is not None:
                low, high = column.minimum, column.maximum
                if column.kind == "datetime":
                    low, high = pd.Timestamp(low), pd.Timestamp(high)
                unseen = series[((series < low) | (series > high)) & series.notna()]
                expected = f"{column.minimum} to {column.maximum}"
            else:
                continue
            if len(unseen):
                row = int(np.flatnonzero(frame.index == unseen.index[0])[0])
                found.append(problem(row, column.name, expected, shown(plain(unseen.iloc[0])), f"{len(unseen)} rows"))
            if len(found) >= MAX_PROBLEMS:
                break
        return found


def json_column(column: Column, series: pd.Series) -> list[Any]:
    """One column as plain JSON values: what `build_column` takes."""
    return jsonable_cells(column, series.tolist()) if column.shape else jsonable(series)


def build_column(column: Column, values: Sequence[Any]) -> pd.Series:
    """Checked JSON values as the training data's cells, dtype for dtype."""
    return build_cells(column, values) if column.shape else build_series(column, values)


def type_text(column: Column) -> str:
    """Its type in a word, with the shape where a cell holds several."""
    return column.kind + _sizes(column.shape)


def refusal(problems: Sequence[dict[str, Any]]) -> InputError:
    """The error that sums `problems` up in a line."""
    first = problems[0]
    where = f"column {first['column']!r}: " if first["column"] is not None else ""
    row = f"row {first['row']}, " if first["row"] is not None else ""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return InputError(f"{row}{where}expected {first['expected']}, got {first['got']}{more}", problems, first["hint"])


_SPLIT = {"columns", "data"}
_NO_VALUE = object()
UNNAMED = ("array", "vector", "tensor", "list", "series", "sparse")  # their columns have no names of their own


def _private_names(given: Sequence[str] | Mapping[str, str], columns: Sequence[str]) -> Iterator[tuple[str, str]]:
    if isinstance(given, Mapping):
        yield from ((str(name), str(how)) for name, how in given.items())
        return
    for name in map(str, given):
        before, equals, how = name.rpartition("=")
        yield (before, how) if equals and name not in columns else (name, "drop")


def _tuple(values: Any) -> Any:
    return None if values is None else tuple(values)


def _sizes(shape: Sequence[int | None]) -> str:
    return f"[{shape_text(shape)}]" if shape else ""


def _stand_in(column: Column) -> Any:
    if column.nullable:
        return None
    if column.cells == "sparse":
        return {"indices": [], "values": []}
    one = _stand_in_value(column)
    for size in reversed(column.shape):
        one = [one] * (1 if size is None else size)
    return one


def _stand_in_value(column: Column) -> Any:
    if column.kind == "category" and column.category_dtype == "bool":
        return False
    if column.kind == "category" and column.category_dtype.lower().startswith(("int", "uint", "float")):
        return 0
    return {"int": 0, "float": 0.0, "bool": False, "datetime": "2000-01-01T00:00:00" + "Z" * column.zoned,
            "date": "2000-01-01"}.get(column.kind, "private")  # fmt: skip


def _doubled(names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        problem(None, short(name), "each column once", "the same column twice")
        for name in sorted(name for name, count in Counter(names).items() if count > 1)[:MAX_PROBLEMS]
    ]


def _closest(word: str, known: Sequence[str]) -> str:
    # Names of any number and length may come from outside.
    if len(word) > MAX_SHOWN:
        return ""
    candidates = [name for name in known[:MAX_SEARCHED] if len(name) <= MAX_SHOWN]
    return next(iter(difflib.get_close_matches(word, candidates, n=1)), "")


def _unseen(column: Column) -> Column:
    kept = column.categories if column.kind == "category" else None
    return replace(column, minimum=None, maximum=None, categories=kept, longest=None)


def seen(column: Column) -> str:
    """What training saw in a column, for people: categories, a range, or how long its texts are."""
    if column.categories is not None:
        text = ", ".join(map(str, column.categories[:6]))
        return text + (f", … ({len(column.categories)})" if len(column.categories) > 6 else "")
    if column.longest is not None:
        return f"up to {column.longest} characters"
    return "" if column.minimum is None else f"{column.minimum} … {column.maximum}"

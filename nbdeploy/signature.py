"""What a model takes and gives: names, types, ranges and categories, and the check of rows against them."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import pandas as pd

from nbdeploy.errors import InputError, SaveError
from nbdeploy.signature_values import (
    MAX_SHOWN,
    Column,
    Kind,
    build_series,
    json_problem,
    jsonable,
    missing_of,
    plain,
    problem,
    restore_missing,
    short,
    shown,
    value_problems,
)

__all__ = [
    "MAX_CATEGORIES",
    "MAX_PROBLEMS",
    "Column",
    "Kind",
    "Signature",
    "Task",
    "build_series",
    "infer_columns",
    "jsonable",
    "problem",
    "refusal",
    "restore_missing",
    "shown",
]

Task = Literal["classification", "regression", "other"]

MAX_CATEGORIES = 200  # more distinct strings than this are free text, not categories
MAX_PROBLEMS = 100
MAX_HINTS = 10  # a hint costs a search through all names
MAX_SEARCHED = 200


@dataclass(frozen=True)
class Signature:
    """The inputs of a model and what comes out.

    Attributes
    ----------
    columns : tuple of Column
        In the order of the training frame. The order in a request is free.
    container : str
        ``frame`` or ``array``: what the model's ``predict`` is handed.
    task : str
        ``classification``, ``regression`` or ``other``.
    output : str
        The dtype of the predictions.
    classes : tuple or None
        The classes, in the order of the probabilities.
    example : dict
        A real row of the training frame, as JSON.
    target : str
        What is predicted, where the name is known.
    """

    columns: tuple[Column, ...]
    container: Literal["frame", "array"] = "frame"
    task: Task = "other"
    output: str = "object"
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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Signature:
        columns = tuple(
            Column(**{**column, "categories": None if column["categories"] is None else tuple(column["categories"])})
            for column in value["columns"]
        )
        classes = None if value["classes"] is None else tuple(value["classes"])
        return cls(**{**value, "columns": columns, "classes": classes})

    def table(self) -> pd.DataFrame:
        """The columns as a frame, for people."""
        rows = [
            {"column": c.name, "type": c.kind, "nulls": c.nullable, "seen": _seen(c)} for c in self.columns
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=["column", "type", "nulls", "seen"]).set_index("column")

    def __repr__(self) -> str:
        inputs = ", ".join(f"{c.name}: {c.kind}{'?' if c.nullable else ''}" for c in self.columns)
        return f"Signature({inputs} -> {self.target or self.task}: {self.output})"

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
        problems = [*islice(self._column_problems(set(labels), row=None), MAX_PROBLEMS), *_doubled(labels)]
        if problems:
            raise refusal(problems[:MAX_PROBLEMS])
        lists = [jsonable(frame.iloc[:, labels.index(name)]) for name in self.names]
        if found := [p for p in map(json_problem, self.columns, lists) if p]:
            raise refusal(found[:MAX_PROBLEMS])
        rows = zip(*lists, strict=True)
        if set(self.names) == _SPLIT:
            return [dict(zip(self.names, row, strict=True)) for row in rows]
        return {"columns": self.names, "data": list(map(list, rows))}

    # -- in: JSON to frames -------------------------------------------------------------------------

    def decode(self, payload: Any) -> pd.DataFrame:
        """Turn parsed JSON into the frame that the model was trained on, dtype for dtype.

        Parameters
        ----------
        payload : dict or list
            One record, a list of records, or ``{"columns": [...], "data": [[...], ...]}``.

        Raises
        ------
        InputError
            With one problem per fault, at most 100.
        """
        lists = self._columns_of(payload)
        problems: list[dict[str, Any]] = []
        series: dict[str | int, pd.Series] = {}
        for column in self.columns:
            values = lists[column.name]
            problems += value_problems(column, values, MAX_PROBLEMS - len(problems))
            if len(problems) >= MAX_PROBLEMS:
                break
            if not problems:
                try:
                    series[column.label] = build_series(column, values)
                except (ValueError, TypeError, OverflowError) as error:
                    problems.append(problem(None, column.name, column.expected, f"values that {error}"))
        if problems:
            raise refusal(problems)
        return pd.DataFrame(series, columns=[c.label for c in self.columns])

    def _columns_of(self, payload: Any) -> dict[str, list[Any]]:
        if isinstance(payload, dict) and self._is_split(payload):
            return self._from_split(payload["columns"], payload["data"])
        records = [payload] if isinstance(payload, dict) else payload
        if not isinstance(records, list):
            raise refusal([problem(None, None, "a record, a list of records, or columns and data", shown(payload))])
        if not records:
            raise refusal([problem(None, None, "at least one row", "an empty list")])
        names = set(self.names)
        problems: list[dict[str, Any]] = []
        for row, record in enumerate(records):
            if not isinstance(record, dict):
                problems.append(problem(row, None, "a record (an object with one key per column)", shown(record)))
            elif record.keys() != names:
                told = self._column_problems(set(record), row, hints=0 if problems else MAX_HINTS)
                problems += islice(told, MAX_PROBLEMS - len(problems))
            if len(problems) >= MAX_PROBLEMS:
                break
        if problems:
            raise refusal(problems[:MAX_PROBLEMS])
        return {name: [record[name] for record in records] for name in self.names}

    def _is_split(self, payload: dict[str, Any]) -> bool:
        return payload.keys() == _SPLIT and set(self.names) != _SPLIT

    def _from_split(self, columns: Any, data: Any) -> dict[str, list[Any]]:
        if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
            raise refusal([problem(None, None, "'columns' as a list of names", shown(columns))])
        if not isinstance(data, list) or not data:
            raise refusal([problem(None, None, "'data' as a list of at least one row", shown(data))])
        problems = [*islice(self._column_problems(set(columns), row=None), MAX_PROBLEMS), *_doubled(columns)]
        width = len(columns)
        for row, values in enumerate(data):
            if not isinstance(values, list) or len(values) != width:
                got = f"{len(values)} values" if isinstance(values, list) else shown(values)
                problems.append(problem(row, None, f"a list of {width} values", got))
            if len(problems) >= MAX_PROBLEMS:
                break
        if problems:
            raise refusal(problems[:MAX_PROBLEMS])
        lists = dict(zip(columns, map(list, zip(*data, strict=True)), strict=True))
        return {name: lists[name] for name in self.names}

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

    # -- for OpenAPI ----------------------------------------------------------------------------------

    def json_schema(self) -> dict[str, Any]:
        """JSON Schema of one record. Ranges and categories are notes: what training saw, not what is refused."""
        return {
            "type": "object",
            "properties": {column.name: _column_schema(column) for column in self.columns},
            "required": self.names,
            "additionalProperties": False,
            "example": dict(self.example or {}),
        }


def infer_columns(X: pd.DataFrame) -> tuple[Column, ...]:
    """The columns of a training frame.

    Raises
    ------
    SaveError
        The frame is empty, has duplicate or nested column labels, or a column of a type that cannot travel as JSON.
    """
    if X.columns.nlevels > 1:
        msg = "the training frame has MultiIndex columns"
        raise SaveError(msg, "Flatten them: X.columns = ['_'.join(map(str, c)) for c in X.columns].")
    if not len(X.columns) or not len(X):
        msg = f"the training frame is empty ({len(X)} rows, {len(X.columns)} columns)"
        raise SaveError(msg, "Pass the frame that the model was fitted on.")
    names = [str(label) for label in X.columns]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        msg = f"the training frame has the column {doubled[0]!r} twice"
        raise SaveError(msg, "Rename one of them.")
    return tuple(_infer_column(label, X.iloc[:, i]) for i, label in enumerate(X.columns))


def refusal(problems: Sequence[dict[str, Any]]) -> InputError:
    """The error that sums `problems` up in a line."""
    first = problems[0]
    where = f"column {first['column']!r}: " if first["column"] is not None else ""
    row = f"row {first['row']}, " if first["row"] is not None else ""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return InputError(f"{row}{where}expected {first['expected']}, got {first['got']}{more}", problems, first["hint"])


_SPLIT = {"columns", "data"}


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


# -- inference ------------------------------------------------------------------------------------------


def _infer_column(label: Any, series: pd.Series) -> Column:
    integer_label = isinstance(label, (int, np.integer)) and not isinstance(label, bool)
    if not integer_label and not isinstance(label, str):
        msg = f"column label {label!r} is a {type(label).__name__}"
        raise SaveError(msg, "Name the columns with strings.")
    kind = _kind(label, series)
    nullable = bool(series.isna().any())
    present = series.dropna()
    finite, minimum, maximum, categories = True, None, None, None
    if kind in ("int", "float") and len(present):
        numbers = present.to_numpy(dtype="float64")
        finite = bool(np.isfinite(numbers).all())
        numbers = numbers[np.isfinite(numbers)]
        if len(numbers):
            minimum, maximum = (
                plain(present.min() if finite else numbers.min()),
                plain(present.max() if finite else numbers.max()),
            )
    elif kind == "datetime" and len(present):
        minimum, maximum = present.min().isoformat(), present.max().isoformat()
    elif kind == "category":
        categories = _categories(label, series)
    elif kind == "string":
        distinct = present.unique()
        categories = tuple(sorted(map(str, distinct))) if len(distinct) <= MAX_CATEGORIES else None
    ordered = bool(series.cat.ordered) if kind == "category" else False
    return Column(
        str(label), kind, str(series.dtype), nullable, finite, minimum, maximum, categories, ordered, integer_label,
        missing_of(series),
    )  # fmt: skip


def _categories(label: Any, series: pd.Series) -> tuple[Any, ...]:
    held = series.cat.categories.tolist()
    if odd := [value for value in held if not isinstance(value, (str, int, float))]:
        msg = f"column {label!r} has categories of type {type(odd[0]).__name__}, which cannot travel as JSON"
        raise SaveError(msg, "Turn them into strings or numbers before fitting.")
    return tuple(held)


def _kind(label: Any, series: pd.Series) -> Kind:
    dtype = series.dtype
    types = pd.api.types
    if isinstance(dtype, pd.SparseDtype):
        msg = f"column {label!r} is sparse, which cannot travel as JSON"
        raise SaveError(msg, "Make it dense before fitting: X.sparse.to_dense().")
    checks: list[tuple[Callable[[Any], bool], Kind]] = [
        (lambda d: isinstance(d, pd.CategoricalDtype), "category"),
        (types.is_bool_dtype, "bool"),
        (types.is_integer_dtype, "int"),
        (types.is_float_dtype, "float"),
        (types.is_datetime64_any_dtype, "datetime"),
    ]
    for matches, kind in checks:
        if matches(dtype):
            return kind
    if types.is_string_dtype(dtype) or dtype == np.dtype(object):
        held = types.infer_dtype(series, skipna=True)
        if held in ("string", "empty"):
            return "string"
        msg = f"column {label!r} has the dtype {dtype} and holds {held} values"
        raise SaveError(msg, "Give it one plain type with astype(...) before fitting.")
    msg = f"column {label!r} has the dtype {dtype}, which cannot travel as JSON"
    raise SaveError(msg, "Turn it into numbers, strings or datetimes before fitting.")


def _seen(column: Column) -> str:
    if column.categories is not None:
        text = ", ".join(map(str, column.categories[:6]))
        return text + (f", … ({len(column.categories)})" if len(column.categories) > 6 else "")
    return "" if column.minimum is None else f"{column.minimum} … {column.maximum}"


def _column_schema(column: Column) -> dict[str, Any]:
    basic = {"int": "integer", "float": "number", "bool": "boolean", "string": "string",
             "datetime": "string", "category": "string"}[column.kind]  # fmt: skip
    if column.kind == "category" and column.categories and not isinstance(column.categories[0], str):
        basic = "number"
    schema: dict[str, Any] = {"type": basic}
    if column.kind == "datetime":
        schema["format"] = "date-time"
    if column.nullable:
        schema["type"] = [basic, "null"]
    if seen := _seen(column):
        schema["description"] = f"Seen in training: {seen}"
    return schema

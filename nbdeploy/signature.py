"""What a model takes and gives: names, types, ranges and categories, and the check of rows against them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from nbdeploy.errors import InputError, SaveError, did_you_mean

Kind = Literal["int", "float", "bool", "string", "category", "datetime"]
Task = Literal["classification", "regression", "other"]

MAX_CATEGORIES = 200  # more distinct strings than this are free text, not categories
MAX_PROBLEMS = 100
MAX_SHOWN = 80


@dataclass(frozen=True)
class Column:
    """One input column.

    Attributes
    ----------
    name : str
        The key in JSON.
    kind : str
        ``int``, ``float``, ``bool``, ``string``, ``category`` or ``datetime``.
    dtype : str
        The pandas dtype that the model was trained on and will get.
    nullable : bool
        Whether the training frame had missing values here. Where it had none, a null is refused.
    finite : bool
        Whether every training value was finite. Where it was, Infinity is refused.
    minimum, maximum : float, str or None
        The range seen in training; a value outside is served.
    categories : tuple or None
        The distinct values seen in training, up to 200; an unseen one is served.
    ordered : bool
        For categoricals, whether the order means something.
    integer_label : bool
        The frame's own label is the integer behind `name`.
    """

    name: str
    kind: Kind
    dtype: str
    nullable: bool = False
    finite: bool = True
    minimum: float | str | None = None
    maximum: float | str | None = None
    categories: tuple[Any, ...] | None = None
    ordered: bool = False
    integer_label: bool = False

    @property
    def label(self) -> str | int:
        return int(self.name) if self.integer_label else self.name

    @property
    def expected(self) -> str:
        """How a problem names what belongs here."""
        words = {"string": "a string", "category": "a category", "int": "an integer", "float": "a number",
                 "bool": "true or false", "datetime": "an ISO 8601 date and time"}[self.kind]  # fmt: skip
        return f"{words} or null" if self.nullable else words


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

    def encode(self, frame: pd.DataFrame) -> dict[str, Any]:
        """The ``{"columns", "data"}`` form of a frame whose columns are this signature's, in any order.

        Raises
        ------
        InputError
            A column is missing or unknown.
        """
        given = {str(label): label for label in frame.columns}
        problems = [*self._column_problems(set(given), row=None)]
        if problems:
            raise refusal(problems)
        lists = [jsonable(frame[given[name]]) for name in self.names]
        return {"columns": self.names, "data": list(map(list, zip(*lists, strict=True)))}

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
            problems += _value_problems(column, values, MAX_PROBLEMS - len(problems))
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
                problems += self._column_problems(set(record), row)
            if len(problems) >= MAX_PROBLEMS:
                break
        if problems:
            raise refusal(problems[:MAX_PROBLEMS])
        return {name: [record[name] for record in records] for name in self.names}

    def _is_split(self, payload: dict[str, Any]) -> bool:
        return payload.keys() == {"columns", "data"} and set(self.names) != {"columns", "data"}

    def _from_split(self, columns: Any, data: Any) -> dict[str, list[Any]]:
        if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
            raise refusal([problem(None, None, "'columns' as a list of names", shown(columns))])
        if not isinstance(data, list) or not data:
            raise refusal([problem(None, None, "'data' as a list of at least one row", shown(data))])
        problems = [*self._column_problems(set(columns), row=None)]
        doubled = (
            sorted({name for name in columns if columns.count(name) > 1}) if len(set(columns)) < len(columns) else []
        )
        problems += [problem(None, name, "each column once", "the same column twice") for name in doubled]
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

    def _column_problems(self, given: set[str], row: int | None) -> Iterator[dict[str, Any]]:
        names = set(self.names)
        unknown = sorted(map(str, given - names))
        for column in self.columns:
            if column.name not in given:
                sent = difflib.get_close_matches(column.name, unknown, n=1)
                yield problem(row, column.name, column.expected, "no such column",
                              f"You sent {_short(sent[0])!r}." if sent else "")  # fmt: skip
        for name in unknown:
            yield problem(row, _short(name), "only the model's columns", "an unknown column",
                          did_you_mean_one(name, names - given) or did_you_mean_one(name, names))  # fmt: skip

    def novelties(self, frame: pd.DataFrame) -> list[dict[str, Any]]:
        """What in `frame` the training frame never held: unseen categories and values out of range, per column."""
        found = []
        for column in self.columns:
            series = frame[column.label]
            if column.categories is not None:
                unseen = series[~series.isin(column.categories) & series.notna()]
                expected = "a category seen in training"
            elif column.kind in ("int", "float") and column.minimum is not None:
                unseen = series[(series < column.minimum) | (series > column.maximum)]
                expected = f"{column.minimum} to {column.maximum}"
            else:
                continue
            if len(unseen):
                row = int(np.flatnonzero(frame.index == unseen.index[0])[0])
                found.append(problem(row, column.name, expected, shown(_plain(unseen.iloc[0])), f"{len(unseen)} rows"))
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


def jsonable(values: pd.Series | np.ndarray[Any, Any]) -> list[Any]:
    """A column as plain JSON values: nulls for missing, ISO 8601 for datetimes."""
    series = pd.Series(values)
    missing = (
        series.isna().to_numpy() if series.dtype != object or not _holds_lists(series) else np.zeros(len(series), bool)
    )
    if isinstance(series.dtype, pd.CategoricalDtype):
        series = series.astype(object)
    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        out: list[Any] = [None if m else value.isoformat() for value, m in zip(series, missing, strict=True)]
    else:
        out = [_plain(value) for value in series.tolist()]
    if missing.any():
        out = [None if m else value for value, m in zip(out, missing, strict=True)]
    return out


def build_series(column: Column, values: Sequence[Any]) -> pd.Series:
    """Checked JSON values as the training frame's dtype."""
    values = [None if value != value else value for value in values]
    if column.kind == "datetime":
        tz = ", " in column.dtype
        parsed = pd.to_datetime(pd.Series(values, dtype=object), format="ISO8601", utc=tz)
        return parsed.astype(column.dtype)
    if column.kind == "category":
        known = list(column.categories or ())
        present = set(known)
        known += [value for value in dict.fromkeys(values) if value is not None and value not in present]
        return pd.Series(pd.Categorical(values, categories=known, ordered=column.ordered))
    if column.kind == "float" and column.nullable and not _extension(column):
        values = [math.nan if value is None else value for value in values]
    if column.kind == "int":
        values = [None if value is None else int(value) for value in values]
    return pd.Series(values, dtype=column.dtype)


def problem(row: int | None, column: str | None, expected: str, got: str, hint: str = "") -> dict[str, Any]:
    """One entry of a 4xx body's ``problems``."""
    return {"row": row, "column": column, "expected": expected, "got": got, "hint": hint}


def refusal(problems: Sequence[dict[str, Any]]) -> InputError:
    """The error that sums `problems` up in a line."""
    first = problems[0]
    where = f"column {first['column']!r}: " if first["column"] is not None else ""
    row = f"row {first['row']}, " if first["row"] is not None else ""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return InputError(f"{row}{where}expected {first['expected']}, got {first['got']}{more}", problems, first["hint"])


def shown(value: Any) -> str:
    """A JSON value as an error names it: typed, short, never nested."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the string {_short(value)!r}"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity"
    if isinstance(value, (int, float)):
        # Integers of thousands of digits must neither be formatted nor echoed.
        return (
            "an integer beyond 64 bits" if isinstance(value, int) and value.bit_length() > 64 else f"the number {value}"
        )
    return f"a list of {len(value)}" if isinstance(value, list) else "an object"


def did_you_mean_one(word: str, known: Any) -> str:
    """Like `did_you_mean`, and '' where no word is close."""
    hint = did_you_mean(word, known)
    return hint if hint.startswith("Did you mean") else ""


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
                _plain(present.min() if finite else numbers.min()),
                _plain(present.max() if finite else numbers.max()),
            )
    elif kind == "datetime" and len(present):
        minimum, maximum = present.min().isoformat(), present.max().isoformat()
    elif kind == "category":
        categories = tuple(_plain(value) for value in series.cat.categories)
    elif kind == "string":
        distinct = present.unique()
        categories = tuple(sorted(map(str, distinct))) if len(distinct) <= MAX_CATEGORIES else None
    ordered = bool(series.cat.ordered) if kind == "category" else False
    return Column(
        str(label), kind, str(series.dtype), nullable, finite, minimum, maximum, categories, ordered, integer_label
    )


def _kind(label: Any, series: pd.Series) -> Kind:
    dtype = series.dtype
    types = pd.api.types
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


# -- checks of values -------------------------------------------------------------------------------------

_PLAIN_TYPES: dict[str, frozenset[type]] = {
    "int": frozenset({int}),
    "float": frozenset({int, float}),
    "bool": frozenset({bool}),
    "string": frozenset({str}),
}


def _value_problems(column: Column, values: Sequence[Any], limit: int) -> list[dict[str, Any]]:
    types = set(map(type, values))
    if column.kind in ("string", "bool") and types <= _PLAIN_TYPES[column.kind]:
        return []
    if column.kind in ("int", "float") and types <= _PLAIN_TYPES[column.kind] and _all_fit(column, values):
        return []
    found = []
    for row, value in enumerate(values):
        if hint := _fault(column, value):
            found.append(problem(row, column.name, column.expected, shown(value), hint.strip()))
            if len(found) >= limit:
                break
    return found


def _all_fit(column: Column, values: Sequence[Any]) -> bool:
    low, high = _bounds(column)
    smallest, largest = min(values), max(values)  # NaN poisons either comparison below, and is then found row by row
    return bool(low <= smallest and largest <= high and all(value == value for value in values))


def _bounds(column: Column) -> tuple[float | int, float | int]:
    dtype = _numpy_dtype(column)
    if column.kind == "int":
        info = np.iinfo(dtype)
        return int(info.min), int(info.max)
    limit = float(np.finfo(dtype).max)
    return (-limit, limit) if column.finite else (-math.inf, math.inf)


def _numpy_dtype(column: Column) -> np.dtype[Any]:
    dtype = pd.api.types.pandas_dtype(column.dtype)
    if isinstance(dtype, np.dtype):
        return dtype
    plain = getattr(dtype, "numpy_dtype", None)
    return plain if isinstance(plain, np.dtype) else np.dtype("int64" if column.kind == "int" else "float64")


def _fault(column: Column, value: Any) -> str:
    """'' where `value` may stand in `column`, else a hint (a blank where there is nothing to advise)."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "" if column.nullable else "The training frame has no missing value here."
    if column.kind in ("int", "float"):
        return _number_fault(column, value)
    if column.kind == "bool":
        return "" if isinstance(value, bool) else " "
    if column.kind == "category":
        sample = column.categories[0] if column.categories else ""
        if isinstance(sample, str):
            return "" if isinstance(value, str) else "Send it as a string."
        return "" if isinstance(value, (int, float)) and math.isfinite(value) else " "
    if not isinstance(value, str):
        return f'Send it as a string: "{value}".' if isinstance(value, (int, float)) and _is_small(value) else " "
    return "" if column.kind == "string" else _datetime_fault(value)


def _number_fault(column: Column, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"Send {_short(value)} without the quotes." if isinstance(value, str) and _is_number(value) else " "
    low, high = _bounds(column)
    if column.kind == "int" and isinstance(value, float) and not (math.isfinite(value) and value.is_integer()):
        return "The training frame has whole numbers here."
    if not low <= value <= high:
        return f"The model's type here is {column.dtype}."
    return ""


def _datetime_fault(value: str) -> str:
    try:
        pd.Timestamp(pd.to_datetime(value, format="ISO8601"))
    except (ValueError, TypeError, OverflowError):
        return "For example 2013-01-31T08:15:00."
    return ""


def _is_number(text: str) -> bool:
    try:
        return len(text) < 40 and math.isfinite(float(text))
    except ValueError:
        return False


def _is_small(value: float) -> bool:
    return not isinstance(value, int) or value.bit_length() <= 64


def _short(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def _extension(column: Column) -> bool:
    return not isinstance(pd.api.types.pandas_dtype(column.dtype), np.dtype)


def _holds_lists(series: pd.Series) -> bool:
    return bool(len(series)) and isinstance(series.iloc[0], (list, tuple, np.ndarray))


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, (pd.Timestamp, np.datetime64)):
        return pd.Timestamp(value).isoformat()
    return value

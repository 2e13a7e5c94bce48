"""One column of a signature: what it takes, and its values between JSON and pandas."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import pandas as pd

Kind = Literal["int", "float", "bool", "string", "category", "datetime", "date"]

MAX_SHOWN = 80


@dataclass(frozen=True)
class Column:
    """One input column.

    Attributes
    ----------
    name : str
        The key in JSON.
    kind : str
        ``int``, ``float``, ``bool``, ``string``, ``category``, ``datetime`` or ``date``.
    dtype : str
        The pandas dtype that the model was trained on and will get; of a column of arrays, their NumPy dtype.
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
    missing : str
        Which missing value an object column held in training: ``None``, ``nan`` or ``NA``; ``nan`` for Arrow's
        floats that held it; '' for every other column, whose dtype has only one. Where a column held several,
        the most frequent one.
    longest : int or None
        Characters of the longest string seen in training; a longer one is served.
    shape : tuple of int or None
        Of one cell: ``()`` for a single value, ``(28, 28)`` for an image. None where rows differ.
    cells : str
        ``value``; or what a cell with a shape is: ``array``, ``list`` or ``sparse`` (one row of a matrix).
    category_dtype : str
        For categoricals, the dtype of the categories themselves.
    private : bool
        Its values are never logged and never shown; see `Signature.shown`.
    hashed : bool
        Of a private column, whether the log holds a keyed hash of each value. Otherwise it holds nothing.
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
    missing: str = ""
    longest: int | None = None
    shape: tuple[int | None, ...] = ()
    cells: Literal["value", "array", "list", "sparse"] = "value"
    category_dtype: str = ""
    private: bool = False
    hashed: bool = False

    @property
    def element(self) -> Any:
        """NumPy's dtype of its values; `object` for strings and everything that NumPy has no type for."""
        return object if self.kind in ("string", "category", "date") else self.dtype

    @property
    def zoned(self) -> bool:
        """Whether its datetimes have a time zone. A value without an offset is then refused, and vice versa."""
        return self.kind == "datetime" and ", " in self.dtype

    @property
    def label(self) -> str | int:
        return int(self.name) if self.integer_label else self.name

    @property
    def expected(self) -> str:
        """How a problem names what belongs here."""
        words = {"string": "a string", "category": "a category", "int": "an integer", "float": "a number",
                 "bool": "true or false", "datetime": "an ISO 8601 date and time", "date": "an ISO 8601 date"}[self.kind]  # fmt: skip
        if self.shape:
            many = {"int": "integers", "float": "numbers", "bool": "booleans", "string": "strings"}[self.kind]
            words = f"a list of {many} of shape {shape_text(self.shape)}"
        if self.zoned:
            words += " with its offset"
        return f"{words} or null" if self.nullable else words


def jsonable(values: pd.Series | np.ndarray[Any, Any]) -> list[Any]:
    """A column, or an array of predictions, as plain JSON values: nulls for missing, ISO 8601 for datetimes."""
    if isinstance(values, np.ndarray) and values.ndim > 1:
        found: list[Any] = values.tolist()
        return found
    series = pd.Series(values)
    missing = (
        series.isna().to_numpy() if series.dtype != object or not _holds_lists(series) else np.zeros(len(series), bool)
    )
    if isinstance(series.dtype, pd.CategoricalDtype):
        series = series.astype(object)
    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        out: list[Any] = [None if m else value.isoformat() for value, m in zip(series, missing, strict=True)]
    else:
        out = [plain(value) for value in series.tolist()]
    if missing.any():
        out = [None if m else value for value, m in zip(out, missing, strict=True)]
    return out


def json_problem(column: Column, values: Sequence[Any]) -> dict[str, Any] | None:
    """The first of `values`, which came from `jsonable`, that JSON cannot carry, as a problem."""
    if column.shape or all(map(_travels, _hardest(values))):
        return None
    for row, value in enumerate(values):
        if not _travels(value):
            told = kind_of if column.private else shown
            got = told(value) if isinstance(value, (str, int, list, dict)) else f"a {type(value).__name__}"
            return problem(row, column.name, column.expected, got, "JSON cannot carry it.")
    return None


def _hardest(values: Sequence[Any]) -> Sequence[Any]:
    # All strings at once, all integers by their extremes: one look each instead of one per row.
    types = set(map(type, values))
    if types == {str}:
        return ["".join(values)]
    return [min(values), max(values)] if types == {int} else [] if types == {float} else values


def _travels(value: Any) -> bool:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
        return True
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    return value is None or isinstance(value, float)


def missing_of(series: pd.Series) -> str:
    """The missing value of an object column, by name. See `Column.missing`."""
    if _is_arrow_float(series.dtype):
        gaps, nulls = int(plain_floats(series).isna().sum()), int(series.isna().sum())
        return "nan" if gaps > 2 * nulls else ""
    if series.dtype != object:
        return ""
    held = [_missing_name(value) for value in series[series.isna()]]
    return max(sorted(set(held)), key=held.count) if held else ""


def restore_missing(series: pd.Series, column: Column) -> pd.Series:
    """`series` with the missing value that the training frame had, where its dtype allows several."""
    if not column.missing or column.dtype != "object" or not series.isna().any():
        return series
    values = series.astype(object).to_numpy(copy=True)
    values[series.isna().to_numpy()] = MISSING.get(column.missing)
    return pd.Series(values, index=series.index, name=series.name, dtype=object)


MISSING: dict[str, Any] = {"None": None, "nan": math.nan, "NA": pd.NA}


def _missing_name(value: Any) -> str:
    return next((name for name, known in MISSING.items() if value is known), "nan")


def quick_array(column: Column, values: Sequence[Any]) -> Any:
    """What `build_series` gives, as an array and at a tenth of the time; None for columns that need more."""
    make = _quick_maker(column.dtype, column.kind, column.nullable)
    return None if make is None else make(values)


@cache
def _quick_maker(name: str, kind: Kind, nullable: bool) -> Callable[[Sequence[Any]], Any] | None:
    dtype = pd.api.types.pandas_dtype(name)
    if isinstance(dtype, np.dtype):
        # Among NumPy's own, floats alone have a gap, which None becomes.
        plain = kind == "float" or (kind in ("int", "bool", "string") and not nullable)
        return partial(np.array, dtype=dtype) if plain else None
    if isinstance(dtype, pd.StringDtype) and dtype.storage == "pyarrow":
        import pyarrow as pa

        text = pa.large_string()
        return lambda values: dtype.__from_arrow__(pa.array(values, text, from_pandas=True))
    return None


def build_series(column: Column, values: Sequence[Any]) -> pd.Series:
    """Checked JSON values, one per cell, as the training frame's dtype."""
    values = [None if value != value else value for value in values]
    if column.kind == "datetime":
        parsed = pd.to_datetime(pd.Series(values, dtype=object), format="ISO8601", utc=column.zoned)
        return parsed.astype(column.dtype)
    if column.kind == "date":
        days = [None if value is None else dt.date.fromisoformat(value) for value in values]
        return restore_missing(pd.Series(days, dtype=column.dtype), column)
    if column.kind == "category":
        if column.category_dtype.lower().startswith("float"):  # pandas makes NaN of integers beyond 64 bits
            values = [None if value is None else float(value) for value in values]
        known = list(column.categories or ())
        present = set(known)
        known += [value for value in dict.fromkeys(values) if value is not None and value not in present]
        return pd.Series(pd.Categorical(values, categories=_index(known, column), ordered=column.ordered))
    if column.kind == "float" and column.nullable and not _extension(column):
        values = [math.nan if value is None else value for value in values]
    if column.kind == "int":
        values = [None if value is None else int(value) for value in values]
    if column.missing == "nan" and column.dtype.endswith("[pyarrow]"):
        return _arrow_floats(column, values)
    return restore_missing(pd.Series(values, dtype=column.dtype), column)


def _arrow_floats(column: Column, values: Sequence[Any]) -> pd.Series:
    # pandas would make nulls of NaN.
    import pyarrow as pa

    dtype: Any = pd.api.types.pandas_dtype(column.dtype)
    array = pa.array([math.nan if value is None else value for value in values], type=dtype.pyarrow_dtype)
    return pd.Series(pd.arrays.ArrowExtensionArray(array))


def _is_arrow_float(dtype: Any) -> bool:
    return isinstance(dtype, pd.ArrowDtype) and dtype.kind == "f"


def plain_floats(series: pd.Series) -> pd.Series:
    """`series`; Arrow's floats, among which NaN is not null, as NumPy's."""
    if not _is_arrow_float(series.dtype):
        return series
    return pd.Series(series.to_numpy(dtype="float64", na_value=math.nan), index=series.index)


def _index(known: list[Any], column: Column) -> Any:
    # The categories' own dtype is part of a categorical's.
    return pd.Index(known, dtype=column.category_dtype) if column.category_dtype else known


def dtype_text(dtype: Any) -> str:
    """A pandas dtype as text of which pandas makes the same dtype again."""
    if isinstance(dtype, pd.StringDtype) and dtype.na_value is pd.NA:
        return f"string[{dtype.storage}]"
    # "string[pyarrow]" is a StringDtype; Arrow's own strings have a second name.
    return "utf8[pyarrow]" if isinstance(dtype, pd.ArrowDtype) and str(dtype) == "string[pyarrow]" else str(dtype)


def shape_text(shape: Sequence[int | None]) -> str:
    """``28 x 28 x 3``; ``?`` for a size that differs from row to row."""
    return " x ".join("?" if size is None else str(size) for size in shape) or "a single value"


def problem(row: int | None, column: str | None, expected: str, got: str, hint: str = "") -> dict[str, Any]:
    """One entry of a 4xx body's ``problems``."""
    return {"row": row, "column": column, "expected": expected, "got": got, "hint": hint}


def shown(value: Any) -> str:
    """A JSON value as an error names it: typed, short, never nested."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the string {short(value)!r}"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity"
    if isinstance(value, (int, float)):
        # Integers of thousands of digits must neither be formatted nor echoed.
        return (
            "an integer beyond 64 bits" if isinstance(value, int) and value.bit_length() > 64 else f"the number {value}"
        )
    return f"a list of {len(value)}" if isinstance(value, list) else "an object"


def kind_of(value: Any) -> str:
    """What `shown` says without the value itself: what a problem may tell of a private column."""
    if value is None or isinstance(value, (list, dict)):
        return shown(value)
    return "true or false" if isinstance(value, bool) else "a string" if isinstance(value, str) else "a number"


# -- checks of values -------------------------------------------------------------------------------------

_PLAIN_TYPES: dict[str, frozenset[type]] = {
    "int": frozenset({int}),
    "float": frozenset({int, float}),
    "bool": frozenset({bool}),
    "string": frozenset({str}),
}


def value_problems(column: Column, values: Sequence[Any], limit: int) -> list[dict[str, Any]]:
    """What in `values`, which came as JSON, may not stand in `column`: the first `limit` problems."""
    types = set(map(type, values))
    if column.kind in ("string", "bool") and types <= _PLAIN_TYPES[column.kind]:
        return []
    if column.kind in ("int", "float") and types <= _PLAIN_TYPES[column.kind] and _all_fit(column, values):
        return []
    if column.kind == "datetime" and types <= {str} and _all_datetimes(column, values):
        return []
    found = []
    for row in _suspects(column, values) if column.kind == "datetime" else range(len(values)):
        if hint := _fault(column, value := values[row]):
            got, hint = (kind_of(value), "") if column.private else (shown(value), hint.strip())
            found.append(problem(row, column.name, column.expected, got, hint))
            if len(found) >= limit:
                break
    return found


def plain_values(column: Column) -> tuple[frozenset[type], Any, Any] | None:
    """The types, and the range where there is one, of values that may stand in `column` without a closer look.

    None for columns whose every value needs one. A value that is not among them may be right all the same.
    """
    types = _PLAIN_TYPES.get(column.kind)
    if types is None:
        return None
    return (types, *_bounds(column)) if column.kind in ("int", "float") else (types, None, None)


def _suspects(column: Column, values: Sequence[Any], start: int = 0) -> Iterator[int]:
    """The rows that may be at fault, a few among many: a look at each alone costs pandas a hundred times as much."""
    if len(values) <= 8:
        yield from range(start, start + len(values))
        return
    half = len(values) // 2
    for part, at in ((values[:half], start), (values[half:], start + half)):
        told = [value for value in part if value is not None] if column.nullable else part
        if not (set(map(type, told)) <= {str} and _all_datetimes(column, told)):
            yield from _suspects(column, part, at)


def _all_fit(column: Column, values: Sequence[Any]) -> bool:
    low, high = _bounds(column)
    smallest, largest = min(values), max(values)  # NaN poisons either comparison below, and is then found row by row
    return bool(low <= smallest and largest <= high and all(value == value for value in values))


def _bounds(column: Column) -> tuple[float | int, float | int]:
    return _bounds_of(column.kind, column.dtype, column.finite)


@cache
def _bounds_of(kind: Kind, name: str, finite: bool) -> tuple[float | int, float | int]:
    dtype = _numpy_dtype(kind, name)
    if kind == "int":
        info = np.iinfo(dtype)
        return int(info.min), int(info.max)
    limit = float(np.finfo(dtype).max)
    return (-limit, limit) if finite else (-math.inf, math.inf)


def _numpy_dtype(kind: Kind, name: str) -> np.dtype[Any]:
    dtype = pd.api.types.pandas_dtype(name)
    if isinstance(dtype, np.dtype):
        return dtype
    plain = getattr(dtype, "numpy_dtype", None)
    return plain if isinstance(plain, np.dtype) else np.dtype("int64" if kind == "int" else "float64")


def _fault(column: Column, value: Any) -> str:
    """'' where `value` may stand in `column`, else a hint (a blank where there is nothing to advise)."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "" if column.nullable else "The training frame has no missing value here."
    if column.kind in ("int", "float"):
        return _number_fault(column, value)
    if column.kind == "bool":
        return "" if isinstance(value, bool) else " "
    if column.kind == "category":
        return _category_fault(column, value)
    if not isinstance(value, str):
        return f'Send it as a string: "{value}".' if isinstance(value, (int, float)) and _is_small(value) else " "
    if column.kind == "date":
        return _date_fault(value)
    return "" if column.kind == "string" else _datetime_fault(column, value)


def _number_fault(column: Column, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"Send {short(value)} without the quotes." if isinstance(value, str) and _is_number(value) else " "
    low, high = _bounds(column)
    if column.kind == "int" and isinstance(value, float) and not (math.isfinite(value) and value.is_integer()):
        return "The training frame has whole numbers here."
    # An integer beyond 64 bits comes as the nearest float, which may be the lowest of them.
    if not low <= value <= high or (column.kind == "int" and isinstance(value, float) and value <= -(2.0**63)):
        return f"The model's type here is {column.dtype}."
    return ""


def _category_fault(column: Column, value: Any) -> str:
    sample = column.categories[0] if column.categories else ""
    if isinstance(sample, str):
        return "" if isinstance(value, str) else "Send it as a string."
    if isinstance(sample, bool):
        return "" if isinstance(value, bool) else " "
    whole = column.category_dtype.lower().startswith(("int", "uint"))
    number = column.category_dtype.lower().startswith("float")
    dtype = column.category_dtype if whole or number else "float64"
    return _number_fault(Column(column.name, "int" if whole else "float", dtype), value)


# ISO 8601 as JSON Schema's date-time has it; seconds and time may be missing, and a blank may stand for the T.
_MOMENT = re.compile(
    r"(?!0000)\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?P<offset>Z|[+-]\d\d(?::?\d\d)?)?)?", re.ASCII
)


def _all_datetimes(column: Column, values: Sequence[str]) -> bool:
    for value in values:
        found = _MOMENT.fullmatch(value)
        if found is None or (found["offset"] is not None) is not column.zoned:
            return False
    try:
        return not build_series(column, values).isna().any()
    except (ValueError, TypeError, OverflowError):
        return False


def _datetime_fault(column: Column, value: str) -> str:
    example = f"For example 2013-01-31T08:15:00{'+01:00' if column.zoned else ''}."
    found = _MOMENT.fullmatch(value)
    if found is None:
        return example
    if (found["offset"] is not None) is not column.zoned:
        return (
            f"The training frame has a time zone here. {example}"
            if column.zoned
            else "The training frame has no time zone here: send the local time, without an offset."
        )
    try:
        return example if build_series(column, [value]).isna().any() else ""
    except pd.errors.OutOfBoundsDatetime:
        return f"The model's type here is {column.dtype}."
    except (ValueError, TypeError, OverflowError):
        return example


def _date_fault(value: str) -> str:
    try:
        dt.date.fromisoformat(value if re.fullmatch(r"\d{4}-\d\d-\d\d", value, re.ASCII) else "")
    except ValueError:
        return "For example 2013-01-31."
    return ""


def _is_number(text: str) -> bool:
    try:
        return len(text) < 40 and math.isfinite(float(text))
    except ValueError:
        return False


def _is_small(value: float) -> bool:
    return not isinstance(value, int) or value.bit_length() <= 64


def short(text: str) -> str:
    """`text` cut to what an error may quote."""
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def _extension(column: Column) -> bool:
    return not isinstance(pd.api.types.pandas_dtype(column.dtype), np.dtype)


def _holds_lists(series: pd.Series) -> bool:
    return bool(len(series)) and isinstance(series.iloc[0], (list, tuple, np.ndarray))


def plain(value: Any) -> Any:
    """One cell as JSON has it, as far as JSON has it."""
    if isinstance(value, np.datetime64):
        value = pd.Timestamp(value)
    elif isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    return value.isoformat() if isinstance(value, dt.date) else value

"""What comes out of a model, one answer per row: as arrays, as JSON, as columns of a frame, on disk and compared."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nbdeploy.errors import SaveError
from nbdeploy.signature_values import jsonable, plain

TOLERANCE = 1e-9  # relative; classes, strings and integers must match exactly
PREDICTION = "prediction"
STRING = "string"

# One array whose first axis is the rows, or one per output that has a name.
Predicted = np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]]
# Shape (rows, classes), or one of these for each of several targets.
Probabilities = np.ndarray[Any, Any] | list[np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Output:
    """One output of a model.

    Attributes
    ----------
    name : str
        '' for the only one of a model that gives it no name.
    dtype : str
        NumPy's name; ``string`` for text of any length, ``object`` for mixed or nested values.
    shape : tuple of int or None
        Of one row's value: ``()`` for a single value, ``(3,)`` for three. None where rows differ.
    """

    name: str = ""
    dtype: str = "object"
    shape: tuple[int | None, ...] = ()

    @property
    def column(self) -> str:
        """The name of its column in a frame of answers."""
        taken = "_" if self.name == "id" else ""  # prediction_id is the answer's own
        return f"{PREDICTION}_{self.name}{taken}" if self.name else PREDICTION

    @property
    def as_json(self) -> bool:
        """Whether its values are stored as JSON text: no one NumPy dtype holds them."""
        return self.dtype == "object" or (self.dtype == STRING and bool(self.shape))


def predicted(raw: Any, rows: int, method: str) -> Predicted:
    """A model's raw answer to `rows` rows as arrays.

    Parameters
    ----------
    raw
        An array, series, list, frame, or mapping of names to arrays.

    Raises
    ------
    SaveError
        It is not one answer per row.
    """
    if isinstance(raw, Mapping) or hasattr(raw, "columns"):
        named = dict(raw) if isinstance(raw, Mapping) else _columns_of(raw)
        names = list(map(str, named if isinstance(raw, Mapping) else getattr(raw, "column_names", raw.columns)))
        if doubled := [name for i, name in enumerate(names) if name in names[:i]]:
            msg = f"the model's {method} gives the output {doubled[0]!r} twice"
            raise SaveError(msg, "Give each of its outputs a name of its own.")
        return {str(name): _rows_of(values, rows, f"{method}, output {name!r},") for name, values in named.items()}
    return _rows_of(raw, rows, method)


def outputs_of(values: Predicted) -> tuple[Output, ...]:
    """What each output is, from one answer."""
    named = values if isinstance(values, dict) else {"": values}
    return tuple(_output(name, array) for name, array in named.items())


def rows_of(values: Predicted) -> list[Any]:
    """One plain JSON value per row: a value, a nested list, or an object where outputs have names."""
    if not isinstance(values, dict):
        return _json_rows(values)
    columns = [_json_rows(array) for array in values.values()]
    return [dict(zip(values, row, strict=True)) for row in zip(*columns, strict=True)]


def score_rows(scores: Probabilities | None) -> list[Any] | None:
    """Per row the classes' probabilities as JSON: a list, a list of lists for several targets."""
    if scores is None or isinstance(scores, np.ndarray):
        return None if scores is None else scores.tolist()
    return [list(row) for row in zip(*(block.tolist() for block in scores), strict=True)]


def scores_of(rows: Sequence[Any] | None, *, several: bool) -> Probabilities | None:
    """What `score_rows` was given."""
    if rows is None or not several:
        return None if rows is None else np.asarray(rows)
    return [np.asarray(block) for block in zip(*rows, strict=True)]


def frame_of(
    values: Predicted, scores: Probabilities | None = None, classes: tuple[Any, ...] | None = None
) -> pd.DataFrame:
    """Predictions, and probabilities where there are some, as one frame.

    ``prediction`` (``prediction_<name>`` where outputs have names) holds values, or arrays where one answer has
    several; then one ``probability_<class>`` per class, ``probability_<output>_<class>`` with several outputs.
    """
    named = values if isinstance(values, dict) else {"": values}
    # Text stays as the model gave it: pandas would look for a type of its own.
    data = {
        Output(name).column: cells(array) if array.ndim > 1 or array.dtype == object else _texts(array)
        for name, array in named.items()
    }
    frame = pd.DataFrame(data)
    return frame if scores is None else frame.join(scores_frame(scores, classes))


def scores_frame(scores: Probabilities, classes: tuple[Any, ...] | None) -> pd.DataFrame:
    """The columns of probabilities in `frame_of`'s frame."""
    several = isinstance(scores, list)
    data: dict[str, Any] = {}
    for i, block in enumerate(scores if isinstance(scores, list) else [scores]):
        labels = (classes[i] if several else classes) if classes is not None else range(block.shape[1])
        prefix = f"probability_{i}_" if several else "probability_"
        data |= {f"{prefix}{label}": block[:, k] for k, label in enumerate(labels)}
    return pd.DataFrame(data)


def from_json(rows: Sequence[Any], outputs: Sequence[Output]) -> pd.DataFrame:
    """The columns of `frame_of` from JSON rows, with the dtypes of `outputs`."""
    data = {}
    for output in outputs:
        held = [row[output.name] for row in rows] if output.name else list(rows)
        data[output.column] = _typed(held, output)
    return pd.DataFrame(data)


def store(frame: pd.DataFrame, outputs: Sequence[Output]) -> pd.DataFrame:
    """`frame_of`'s frame as Parquet can hold it: arrays flattened to lists, mixed and nested values as JSON text."""
    stored = frame.copy()
    for output in outputs:
        held = frame[output.column].tolist()
        if output.as_json:
            stored[output.column] = pd.Series(stored_cells(held, output), dtype=object)
        elif output.shape:
            stored[output.column] = pd.Series([value.ravel() for value in held], dtype=object)
    return stored


def stored_cells(values: Sequence[Any], output: Output) -> list[str]:
    """The values of an output that one NumPy dtype cannot hold, as JSON text."""
    assert output.as_json
    return [json.dumps(nested(value)) for value in values]


def from_stored(held: list[Any], output: Output) -> pd.Series:
    """The column of an output from what `store` made of its values."""
    return _typed([json.loads(text) for text in held] if output.as_json else held, output)


def restore(frame: pd.DataFrame, outputs: Sequence[Output]) -> pd.DataFrame:
    """What `store` was given."""
    for output in outputs:
        frame[output.column] = from_stored(frame[output.column].tolist(), output)
    return frame


def first_difference(expected: pd.DataFrame, got: pd.DataFrame, tolerance: float = TOLERANCE) -> str:
    """Where two frames of answers first differ, in words, or ''. Numbers may differ by `tolerance`, relatively."""
    for name in expected.columns:
        if name not in got:
            return f"column {name!r} is missing"
        want, have = expected[name].to_numpy(), got[name].to_numpy()
        if len(want) != len(have):
            return f"{len(have)} rows, expected {len(want)}"
        if want.dtype.kind == "f" and have.dtype.kind in "fiu":
            same = np.isclose(have.astype(float), want, rtol=tolerance, atol=tolerance * 1e-3, equal_nan=True)
        else:
            same = np.array([alike(a, b, tolerance) for a, b in zip(want, have, strict=True)], dtype=bool)
        if not same.all():
            row = int(np.flatnonzero(~same)[0])
            return (
                f"row {row}, column {name!r}: {_shown(have[row])} ({_dtype(got[name], have[row])}) "
                f"instead of {_shown(want[row])} ({_dtype(expected[name], want[row])})"
            )
        if want.dtype.kind in "biuf" and have.dtype != want.dtype:
            return (
                f"row 0, column {name!r}: {_shown(have[0])} ({have.dtype}) instead of {_shown(want[0])} ({want.dtype})"
            )
    return ""


def alike(want: Any, got: Any, tolerance: float = TOLERANCE) -> bool:
    """Whether two cells say the same: numbers nearly, all else exactly, lists and objects part by part.

    A date is its ISO 8601 text, which is what JSON has of it.
    """
    want, got = (plain(value) if isinstance(value, (dt.date, np.generic)) else value for value in (want, got))
    if isinstance(want, dict) or isinstance(got, dict):
        both = isinstance(want, dict) and isinstance(got, dict) and want.keys() == got.keys()
        return both and all(alike(want[key], got[key], tolerance) for key in want)
    sequences = (np.ndarray, list, tuple)
    if isinstance(want, sequences) or isinstance(got, sequences):
        if not isinstance(want, sequences) or not isinstance(got, sequences) or len(want) != len(got):
            return False
        try:
            a, b = np.asarray(want), np.asarray(got)
        except ValueError:  # lists of different lengths
            return all(alike(x, y, tolerance) for x, y in zip(want, got, strict=True))
        if a.dtype.kind == "f" and b.dtype.kind in "fiu":
            close = a.shape == b.shape and np.isclose(b, a, rtol=tolerance, atol=tolerance * 1e-3, equal_nan=True).all()
            return bool(close)
        return all(alike(x, y, tolerance) for x, y in zip(want, got, strict=True))
    if isinstance(want, float) and isinstance(got, (int, float)) and not isinstance(got, bool):
        return bool(np.isclose(got, want, rtol=tolerance, atol=tolerance * 1e-3, equal_nan=True))
    return bool(want == got) or (want is got) or bool(want != want and got != got)


def cells(values: Sequence[Any] | np.ndarray[Any, Any]) -> pd.Series:
    """A column of any objects, arrays and lists among them: one per cell."""
    held = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        held[i] = value
    return pd.Series(held, dtype=object)


# -- helpers ------------------------------------------------------------------------------------------------


def _columns_of(frame: Any) -> dict[str, Any]:
    if isinstance(frame, pd.DataFrame):
        return {str(label): frame.iloc[:, i] for i, label in enumerate(frame.columns)}
    if hasattr(frame, "column_names"):  # an Arrow table
        return {name: _with_gaps(frame.column(name)) for name in frame.column_names}
    return {str(name): _with_gaps(frame[name]) for name in frame.columns}  # Polars


def _with_gaps(values: Any) -> Any:
    """A column of Polars or Arrow; among its integers and booleans a missing one stays None, and they do not change."""
    array = values.to_numpy()
    kind = str(getattr(values, "type", getattr(values, "dtype", ""))).lower()
    if array.dtype.kind in "fO" and kind.startswith(("int", "uint", "bool")):
        return np.array(values.to_list() if hasattr(values, "to_list") else values.to_pylist(), dtype=object)
    return array


def _rows_of(raw: Any, rows: int, method: str) -> np.ndarray[Any, Any]:
    values = _array(raw)
    if values.dtype == object and values.ndim == 1 and (gaps := np.asarray(pd.isna(values))).any():
        values = values.copy()
        values[gaps] = None  # JSON has but one missing value
    if not values.ndim or len(values) != rows:
        nothing = raw is None or isinstance(raw, (Iterator, Coroutine))
        got = f"a {type(raw).__name__}" if nothing else f"{len(values)} rows" if values.ndim else "one value"
        msg = f"the model's {method} answers {rows} rows with {got}"
        raise SaveError(msg, "It must give one answer per row.")
    return values


def _array(raw: Any) -> np.ndarray[Any, Any]:
    if isinstance(raw, np.ma.MaskedArray) and np.ma.is_masked(raw):
        if raw.dtype.kind != "f":
            msg = f"the model answers with a masked array of {raw.dtype}, which has no missing value"
            raise SaveError(msg, "Fill it: answers.filled(...).")
        raw = raw.filled(np.nan)
    if isinstance(raw, np.ndarray):
        return np.asarray(raw)  # a subclass such as np.matrix has rules of its own
    if isinstance(raw, (pd.Series, pd.api.extensions.ExtensionArray)):
        return _from_extension(pd.Series(raw)) if _extended(raw.dtype) else np.asarray(raw)
    if hasattr(raw, "null_count"):  # a series of Polars, an array of Arrow
        return np.asarray(_with_gaps(raw))
    if hasattr(raw, "detach"):  # a tensor
        return np.asarray(raw.detach().cpu().numpy())
    if hasattr(raw, "toarray"):  # a sparse matrix
        return np.asarray(raw.toarray())
    try:
        values = np.asarray(raw)
    except ValueError:  # lists of different lengths
        values = np.empty(len(raw), dtype=object)
        values[:] = raw
    if values.dtype.kind == "U" and not isinstance(raw, pd.Index):
        mixed = np.asarray(raw, dtype=object)
        # NumPy makes text of the numbers among strings.
        return values if all(isinstance(value, str) for value in mixed.ravel()) else mixed
    return values


def _extended(dtype: Any) -> bool:
    return isinstance(dtype, pd.api.extensions.ExtensionDtype)


def _from_extension(series: pd.Series) -> np.ndarray[Any, Any]:
    plain_dtype = getattr(series.dtype, "numpy_dtype", None)
    if isinstance(plain_dtype, np.dtype) and plain_dtype.kind in "biuf" and not series.isna().any():
        return np.asarray(series.to_numpy(dtype=plain_dtype))
    whole = pd.api.types.is_integer_dtype(series.dtype) or pd.api.types.is_bool_dtype(series.dtype)
    # pandas may make floats of integers with gaps.
    return np.asarray(series.astype(object) if whole else series)


def _json_rows(values: np.ndarray[Any, Any]) -> list[Any]:
    if values.ndim == 1 and (values.dtype.kind in "biuU" or (values.dtype.kind == "f" and not np.isnan(values).any())):
        return list(values.tolist())
    if values.dtype.kind == "M" and values.ndim > 1:  # of nanoseconds NumPy makes numbers
        text = np.datetime_as_string(values).astype(object)
        text[np.isnat(values)] = None
        return list(text.tolist())
    rows = jsonable(values)
    return [nested(row) for row in rows] if values.dtype == object else rows


def _texts(array: np.ndarray[Any, Any]) -> Any:
    return cells(array.tolist()) if array.dtype.kind == "U" else array


def _output(name: str, array: np.ndarray[Any, Any]) -> Output:
    if array.dtype == object and array.ndim == 1 and len(array):
        kinds = {(v.dtype, v.ndim) if isinstance(v, np.ndarray) else None for v in array}
        one = kinds.pop()
        if not kinds and one is not None and one[0].kind in "biuf" and one[1] == 1:  # vectors of several lengths
            return Output(name, str(one[0]), (None,))
    return Output(name, _dtype_of(array), tuple(array.shape[1:]))


def _dtype_of(array: np.ndarray[Any, Any]) -> str:
    textual = array.dtype.kind == "U" or (array.dtype == object and all(isinstance(v, str) for v in array.ravel()))
    return STRING if textual else str(array.dtype)


def _typed(held: list[Any], output: Output) -> pd.Series:
    if output.shape and not output.as_json:
        shape = tuple(-1 if size is None else size for size in output.shape)
        return cells([_as_dtype(np.asarray(value), output.dtype).reshape(shape) for value in held])
    if output.shape:
        return cells([_array_of(value, output) for value in held])
    if output.dtype in ("object", STRING):
        return cells(held)
    if np.dtype(output.dtype).kind == "M":
        moments = [np.datetime64("NaT") if value is None or value is pd.NaT else np.datetime64(value) for value in held]
        return pd.Series(np.array(moments).astype(output.dtype))
    missing = [value is None for value in held]
    if any(missing):  # JSON has no NaN
        if np.dtype(output.dtype).kind != "f":
            return cells(held)
        held = [np.nan if gap else value for value, gap in zip(held, missing, strict=True)]
    return pd.Series(_as_dtype(np.asarray(held), output.dtype))


def _as_dtype(array: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """`array` with a dtype, unless that would change its values: another version of a model may answer otherwise."""
    try:
        changed = array.astype(dtype)
    except (OverflowError, TypeError, ValueError):
        return array
    # A float holds what JSON says of it as well as it can; moments came as texts.
    counted = np.dtype(dtype).kind in "biu" and array.dtype.kind in "biuf"
    return changed if not counted or bool((changed == array).all()) else array


def _array_of(value: Any, output: Output) -> Any:
    """Nested lists as the array of text or objects that they were."""
    if None in output.shape:
        return value
    if output.dtype == STRING:
        return np.asarray(value, dtype=str)
    shape = tuple(size for size in output.shape if size is not None)
    array = np.empty(shape, dtype=object)
    for place in np.ndindex(shape):
        part = value
        for index in place:
            part = part[index]
        array[place] = part
    return array


def nested(value: Any) -> Any:
    """A cell of any depth as JSON has it, as far as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): nested(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [nested(part) for part in value]
    value = plain(value)
    return [nested(part) for part in value] if isinstance(value, list) else value


def _shown(value: Any) -> str:
    return " ".join(f"{value!s:.80}".split())


def _dtype(column: pd.Series, value: Any) -> str:
    return str(value.dtype) if isinstance(value, np.ndarray) else str(column.dtype)

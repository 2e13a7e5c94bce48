"""Cells that hold arrays, images or sparse rows: their check and their way between JSON, frames and Parquet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from nbdeploy.signature_values import Column, kind_of, plain, problem, shape_text, shown

_KINDS = {"int": "iu", "float": "iuf", "bool": "b", "string": "U"}


def jsonable_cells(column: Column, values: Sequence[Any]) -> list[Any]:
    """Cells as nested lists, sparse rows as ``{"indices": [...], "values": [...]}``, null for a missing one."""
    if column.cells == "sparse":
        return [
            {"indices": row.indices.tolist(), "values": row.data.tolist()} if hasattr(row, "tocsr") else row
            for row in values
        ]
    return [None if value is None else _listed(value) for value in values]


def cell_problems(column: Column, values: Sequence[Any], limit: int) -> list[dict[str, Any]]:
    """What in `values`, which came as JSON, is not a cell of `column`: the first `limit` problems."""
    found = []
    for row, value in enumerate(values):
        if hint := _fault(column, value):
            got, hint = (kind_of(value), "") if column.private else (_got(value), hint.strip())
            found.append(problem(row, column.name, column.expected, got, hint))
            if len(found) >= limit:
                break
    return found


def build_cells(column: Column, values: Sequence[Any]) -> pd.Series:
    """Checked JSON cells as the training data's cells."""
    held = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        held[i] = value if value is None else _cell(column, value)
    return pd.Series(held, dtype=object)


def flat_cells(column: Column, values: Sequence[Any]) -> pd.Series:
    """Cells as Parquet can hold them: flat lists, or indices and values."""
    flat: list[Any]
    if column.cells == "sparse":
        flat = [{"indices": row.indices, "values": row.data} for row in values]
    elif column.shape.count(None) > 1:  # its size alone does not tell its shape
        flat = [None if v is None else np.asarray(v).tolist() for v in values]
    else:
        flat = [None if v is None else np.asarray(v, dtype=_numpy(column)).ravel() for v in values]
    held = np.empty(len(flat), dtype=object)
    held[:] = flat
    return pd.Series(held, dtype=object)


def restored_cells(column: Column, values: Sequence[Any]) -> pd.Series:
    """What `flat_cells` was given."""
    if column.shape.count(None) > 1:
        values = [None if v is None else _lists(v) for v in values]
    return build_cells(column, values)


def stacked(column: Column, values: Sequence[Any]) -> Any:
    """All cells as one array whose first axis is the rows, or as one sparse matrix."""
    if column.cells == "sparse":
        from scipy import sparse

        return sparse.vstack([*values], format="csr")
    return _of_dtype(np.stack([*values]), column)


# -- helpers ------------------------------------------------------------------------------------------------


def _numpy(column: Column) -> Any:
    return object if column.kind == "string" else np.dtype(column.dtype)


def _of_dtype(array: np.ndarray[Any, Any], column: Column) -> np.ndarray[Any, Any]:
    dtype = np.dtype(column.dtype)
    if dtype.kind != "U":
        return array.astype(_numpy(column), copy=False)
    text = array.astype(str)  # as wide as its longest text, and no narrower than in training
    return text.astype(dtype) if text.dtype.itemsize < dtype.itemsize else text


def _lists(value: Any) -> Any:
    return [_lists(part) for part in value] if isinstance(value, (list, np.ndarray)) else value


def _listed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def _cell(column: Column, value: Any) -> Any:
    if column.cells == "sparse":
        return _sparse_row(column, value)
    array = np.asarray(value, dtype=_numpy(column))
    if column.shape.count(None) < 2:
        array = array.reshape(tuple(-1 if size is None else size for size in column.shape))
    return array.tolist() if column.cells == "list" else _of_dtype(array, column)


def _sparse_row(column: Column, value: Any) -> Any:
    from scipy import sparse

    (width,) = column.shape
    dtype = np.dtype(column.dtype)
    if isinstance(value, dict):
        indices, data = np.asarray(value["indices"], dtype=np.int32), np.asarray(value["values"], dtype=dtype)
    else:
        dense = np.asarray(value, dtype=dtype)
        indices = np.flatnonzero(dense).astype(np.int32)
        data = dense[indices]
    return sparse.csr_array((data, indices, np.array([0, len(indices)], dtype=np.int32)), shape=(1, width))


def _fault(column: Column, value: Any) -> str:
    """'' where `value` may be a cell of `column`, else a hint (a blank where there is nothing to advise)."""
    if value is None:
        return "" if column.nullable else "The training data has no missing value here."
    if column.cells == "sparse" and isinstance(value, dict):
        return _sparse_fault(column, value)
    if not isinstance(value, list):
        return " "
    try:
        array = np.asarray(value)
    except ValueError:
        return "Its inner lists have different lengths."
    except OverflowError:
        return f"The model's type here is {column.dtype}."
    if array.ndim != len(column.shape) or any(
        size not in (None, got) for size, got in zip(column.shape, array.shape, strict=True)
    ):
        return f"Its shape is {shape_text(array.shape)}."
    return _numbers_fault(column, array, value)


def _numbers_fault(column: Column, array: np.ndarray[Any, Any], value: Any) -> str:
    if not array.size:
        return ""
    if column.kind == "float" and not column.finite and array.dtype.kind == "O" and _only_gaps(array):
        return ""
    if not _are_of_kind(column, array, value):
        return f"Each of its values must be {_one(column)}."
    if column.kind == "int":
        limits = np.iinfo(np.dtype(column.dtype))
        # Among floats NumPy rounds the integers, so each is looked at as it came.
        numbers = np.asarray(_flat(value), dtype=object) if array.dtype.kind == "f" else array
        if int(numbers.min()) < limits.min or int(numbers.max()) > limits.max:
            return f"The model's type here is {column.dtype}."
    if column.kind == "float":
        floats = array.astype("float64")
        if column.finite and not np.isfinite(floats).all():
            return "The training data has only finite numbers here."
        finite = floats[np.isfinite(floats)]
        if finite.size and float(np.abs(finite).max()) > float(np.finfo(np.dtype(column.dtype)).max):
            return f"The model's type here is {column.dtype}."
    return ""


def _sparse_fault(column: Column, value: dict[str, Any]) -> str:
    indices, values = value.get("indices"), value.get("values")
    if value.keys() != {"indices", "values"} or not isinstance(indices, list) or not isinstance(values, list):
        return 'Send a list, or {"indices": [...], "values": [...]}.'
    (width,) = column.shape
    assert width is not None
    if len(indices) != len(values):
        return f"It has {len(indices)} indices and {len(values)} values."
    if not all(type(i) is int and 0 <= i < width for i in indices) or len(set(indices)) != len(indices):
        return f"Indices are whole numbers from 0 to {width - 1}, each once."
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):
        return f"Each of its values must be {_one(column)}."
    return _numbers_fault(column, array, values) if array.ndim == 1 else " "


def _holds_bool(value: Any) -> bool:
    # NumPy takes True for 1 among numbers.
    if isinstance(value, list):
        return any(map(_holds_bool, value)) if value and isinstance(value[0], list) else bool in set(map(type, value))
    return False


def _are_of_kind(column: Column, array: np.ndarray[Any, Any], value: Any) -> bool:
    if column.kind == "string":
        return _are_texts(value)
    fits = array.dtype.kind in _KINDS[column.kind] or (column.kind == "int" and _are_whole(array, value))
    return fits and not (column.kind in ("int", "float") and _holds_bool(value))


def _are_texts(value: Any) -> bool:
    # NumPy makes text of the numbers among strings.
    return all(map(_are_texts, value)) if isinstance(value, list) else isinstance(value, str)


def _are_whole(array: np.ndarray[Any, Any], value: Any) -> bool:
    # An integer beyond 64 bits comes as the nearest float, which may be the lowest of them.
    return array.dtype.kind == "f" and all(
        isinstance(v, int) or (math.isfinite(v) and v.is_integer() and v > -(2.0**63)) for v in _flat(value)
    )


def _flat(value: Any) -> list[Any]:
    return [part for each in value for part in _flat(each)] if isinstance(value, list) else [value]


def _only_gaps(array: np.ndarray[Any, Any]) -> bool:
    return array.dtype == object and all(
        v is None or (isinstance(v, (int, float)) and not isinstance(v, bool)) for v in array.ravel()
    )


def _one(column: Column) -> str:
    return {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "a string"}[column.kind]


def _got(value: Any) -> str:
    if not isinstance(value, list):
        return shown(value)
    sizes: list[int] = []
    while isinstance(value, list) and len(sizes) < 8:
        sizes.append(len(value))
        value = value[0] if value else None
    return f"a list of shape {shape_text(sizes)}"


def infer_cells(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    """What a column of arrays, shape (rows, ...), is: the facts of its `Column`."""
    kind = {"b": "bool", "i": "int", "u": "int", "f": "float", "U": "string", "O": "string"}[values.dtype.kind]
    facts: dict[str, Any] = {"kind": kind, "dtype": values.dtype.str if values.dtype.kind == "U" else str(values.dtype)}
    if kind in ("int", "float") and values.size:
        low, high, finite = math.inf, -math.inf, True
        for block in np.array_split(values, max(1, values.nbytes >> 26)):  # an image set may fill the memory as it is
            numbers = block[np.isfinite(block)] if kind == "float" else block
            finite = finite and numbers.size == block.size
            if numbers.size:
                low, high = min(low, plain(numbers.min())), max(high, plain(numbers.max()))
        facts |= {"finite": finite}
        if low <= high:
            facts |= {"minimum": low, "maximum": high}
    if kind == "string" and values.size:
        facts["longest"] = max(len(str(text)) for text in values.ravel()[:100_000])
    return facts

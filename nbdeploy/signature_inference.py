"""The columns of a signature, from the frame that a model was trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from nbdeploy.errors import SaveError
from nbdeploy.signature import MAX_CATEGORIES, Column, Kind
from nbdeploy.signature_tensors import infer_cells
from nbdeploy.signature_values import dtype_text, missing_of, plain, plain_floats


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
    return tuple(infer_column(label, X.iloc[:, i]) for i, label in enumerate(X.columns))


def infer_column(label: Any, series: pd.Series) -> Column:
    """One column of a training frame; see `infer_columns`."""
    integer_label = isinstance(label, (int, np.integer)) and not isinstance(label, bool)
    if not integer_label and not isinstance(label, str):
        msg = f"column label {label!r} is a {type(label).__name__}"
        raise SaveError(msg, "Name the columns with strings.")
    if _holds_arrays(series):
        return _infer_array_column(label, series, integer_label=integer_label)
    kind = _kind(label, series)
    numeric = plain_floats(series)
    nullable = bool(numeric.isna().any())
    present = numeric.dropna()
    facts: dict[str, Any] = {}
    if kind in ("int", "float") and len(present):
        numbers = present.to_numpy(dtype="float64")
        finite = bool(np.isfinite(numbers).all())
        numbers = numbers[np.isfinite(numbers)]
        facts["finite"] = finite
        if len(numbers):
            held = present if finite else numbers
            facts |= {"minimum": plain(held.min()), "maximum": plain(held.max())}
    elif kind in ("datetime", "date") and len(present):
        facts |= {"minimum": present.min().isoformat(), "maximum": present.max().isoformat()}
    elif kind == "category":
        facts["categories"] = _categories(label, series)
        facts["category_dtype"] = dtype_text(series.cat.categories.dtype)
        facts["ordered"] = bool(series.cat.ordered)
    elif kind == "string":
        distinct = present.unique()
        facts["categories"] = tuple(sorted(map(str, distinct))) if len(distinct) <= MAX_CATEGORIES else None
        facts["longest"] = max((len(text) for text in distinct), default=0)
    return Column(
        str(label), kind, dtype_text(series.dtype), nullable, integer_label=integer_label, missing=missing_of(series),
        **facts,
    )  # fmt: skip


def _holds_arrays(series: pd.Series) -> bool:
    return series.dtype == object and isinstance(next((v for v in series if v is not None), None), (list, np.ndarray))


def _infer_array_column(label: Any, series: pd.Series, *, integer_label: bool) -> Column:
    present = [value for value in series if value is not None]
    odd = next((v for v in present if not isinstance(v, type(present[0]))), None)
    try:
        arrays = [np.asarray(value) for value in present]
    except ValueError:  # lists of different lengths
        arrays = []
    ranks = {array.ndim for array in arrays}
    kinds = {array.dtype.kind for array in arrays if array.size}
    alike = any(kinds <= set(same) for same in ("b", "iuf", "U"))
    if odd is not None or not arrays or len(ranks) > 1 or 0 in ranks or not alike:
        msg = f"column {label!r} holds lists or arrays of different kinds"
        raise SaveError(msg, "Give all its cells one type and one number of dimensions.")
    flat = np.concatenate([array.ravel() for array in arrays if array.size] or [np.zeros(0)])
    shapes = [array.shape for array in arrays]
    shape = tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True))
    return Column(
        str(label), nullable=len(present) < len(series), integer_label=integer_label, shape=shape,
        cells="list" if isinstance(present[0], list) else "array", **infer_cells(flat.reshape(-1, 1)),
    )  # fmt: skip


def _categories(label: Any, series: pd.Series) -> tuple[Any, ...]:
    held = series.cat.categories.tolist()
    if odd := [value for value in held if not isinstance(value, (str, int, float))]:
        msg = f"column {label!r} has categories of type {type(odd[0]).__name__}, which cannot travel as JSON"
        raise SaveError(msg, "Turn them into strings or numbers before fitting.")
    if len({isinstance(value, str) for value in held}) > 1:
        msg = f"column {label!r} has strings and numbers among its categories"
        raise SaveError(msg, "Turn all of them into strings before fitting.")
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
        (lambda d: str(d).startswith("date32"), "date"),  # which pandas 2 also takes for a datetime
        (types.is_datetime64_any_dtype, "datetime"),
    ]
    for matches, kind in checks:
        if matches(dtype) and _comes_back(dtype):
            return kind
    if (types.is_string_dtype(dtype) and _comes_back(dtype)) or dtype == np.dtype(object):
        held = types.infer_dtype(series, skipna=True)
        if held in ("string", "empty"):
            return "string"
        if held == "date":
            return "date"
        msg = f"column {label!r} has the dtype {dtype} and holds {held} values"
        raise SaveError(msg, "Give it one plain type with astype(...) before fitting.")
    msg = f"column {label!r} has the dtype {dtype}, which cannot travel as JSON"
    raise SaveError(msg, "Turn it into numbers, strings or datetimes before fitting.")


def _comes_back(dtype: Any) -> bool:
    # A dtype that its text does not name could not be handed to the model again.
    if isinstance(dtype, (np.dtype, pd.CategoricalDtype, pd.StringDtype)):
        return True
    try:
        return bool(pd.api.types.pandas_dtype(dtype_text(dtype)) == dtype)
    except (TypeError, NotImplementedError):
        return False

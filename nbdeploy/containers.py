"""What a model's training data comes in, and how rows are handed to it again: the same container, dtype for dtype.

Everywhere else rows are a frame: one column per input, whose cells are values, or arrays (an image, an embedding, a
row of a sparse matrix). A `Training` reads any container into such a frame; `hand` turns a frame back.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from nbdeploy.errors import SaveError
from nbdeploy.signature import Signature
from nbdeploy.signature_inference import infer_column, infer_columns
from nbdeploy.signature_tensors import infer_cells, stacked
from nbdeploy.signature_values import MISSING, Column, missing_of

MAX_REFERENCE_ROWS = 10_000
MAX_REFERENCE_BYTES = 64 << 20  # of cells that are arrays: a sample of images must not be gigabytes
MAX_ARRAY_COLUMNS = 1_000  # a wider array is one input of that many numbers, not as many inputs
TENSOR = "x"


@dataclass(frozen=True)
class Training:
    """The training data of a version.

    Attributes
    ----------
    container : str
        What the model is handed: ``frame``, ``series``, ``array`` (of any rank), ``vector`` (of one), ``tensor``
        (PyTorch's, of any rank), ``list``, ``dict`` (of arrays), ``sparse``, ``polars`` or ``arrow``.
    detail : str
        What makes the same container again: a dtype, a class, a schema.
    parts : DataFrame or dict
        The data: a frame, or arrays and sparse matrices by the name of their column.
    missing : mapping
        Of an array of objects, which missing value each column held; see `Column.missing`.
    """

    container: str
    detail: str
    parts: pd.DataFrame | dict[str, Any]
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        if isinstance(self.parts, pd.DataFrame):
            return len(self.parts)
        return int(next(iter(self.parts.values())).shape[0])

    def columns(self) -> tuple[Column, ...]:
        """What each input is; each is read once, one after the other.

        Raises
        ------
        SaveError
            It is empty, has doubled or nested labels, or holds what cannot travel as JSON.
        """
        if isinstance(self.parts, pd.DataFrame):
            return tuple(replace(c, missing=self.missing.get(c.name, c.missing)) for c in infer_columns(self.parts))
        found = (_column(name, part) for name, part in self.parts.items())
        return tuple(replace(c, missing=self.missing.get(c.name, c.missing)) for c in found)

    def whole(self) -> pd.DataFrame:
        """All rows as a frame."""
        if isinstance(self.parts, pd.DataFrame):
            return self.parts
        every = np.arange(self.rows)
        return pd.DataFrame({name: _rows(part, every) for name, part in self.parts.items()})

    def sample(self) -> tuple[np.ndarray[Any, Any], pd.DataFrame]:
        """Positions and rows of a reproducible sample: at most 10,000 rows, 64 MB where cells are arrays."""
        if isinstance(self.parts, pd.DataFrame):
            rows = sample_rows(self.rows)
            return rows, self.parts.iloc[rows].reset_index(drop=True)
        per_row = sum(_bytes(part) for part in self.parts.values()) // max(1, self.rows) + 1
        rows = sample_rows(self.rows, min(MAX_REFERENCE_ROWS, max(20, MAX_REFERENCE_BYTES // per_row)))
        return rows, pd.DataFrame({name: _rows(part, rows) for name, part in self.parts.items()})


def read(X: Any) -> Training:
    """Training data of any kind.

    Raises
    ------
    SaveError
        It is none that a model could be asked with over HTTP.
    """
    if X is None:
        msg = "a version needs the data that the model was fitted on"
        raise SaveError(msg, "Pass X=X_train (in the magic: --data X_train).")
    if isinstance(X, pd.DataFrame):
        return Training("frame", "", X)
    if isinstance(X, pd.Series):
        return Training("series", "" if X.name is None else str(X.name), pd.DataFrame({_series_label(X): X}))
    if _is_from(X, "polars"):
        return _polars(X)
    if _is_from(X, "pyarrow"):
        return _arrow(X, "arrow")
    if hasattr(X, "tocsr"):
        return Training("sparse", _name_of(X), {TENSOR: _checked_sparse(X)})
    if isinstance(X, Mapping):
        return _mapping(X)
    if _is_from(X, "torch"):
        return replace(_array(_numpy(X)), container="tensor")
    return _list(X) if isinstance(X, (list, tuple)) else _array(X)


def hand(frame: pd.DataFrame, signature: Signature, *, fresh: bool = False) -> Any:
    """A copy of `frame`, which has the signature's columns and dtypes, in the container of the training data.

    `fresh` says that nobody needs `frame` afterwards, so that no copy is needed.
    """
    how, columns = signature.container, signature.columns
    if how == "frame":
        return frame if fresh else frame.copy()
    first = columns[0]
    values = frame.iloc[:, 0]
    if how == "series":
        return values.rename(first.label if signature.detail else None).copy()
    if how == "list":
        return values.tolist()
    if how == "sparse":
        from scipy import sparse

        return getattr(sparse, signature.detail)(stacked(first, values))
    if how == "tensor":
        import torch

        return torch.as_tensor(_handed_array(frame, signature))
    if how in ("array", "vector"):
        return _handed_array(frame, signature)
    if how == "dict":
        return _handed_dict(frame, signature)
    return _table(frame, signature)


def sample_rows(count: int, limit: int = MAX_REFERENCE_ROWS) -> np.ndarray[Any, Any]:
    """The positions of a reproducible sample of at most `limit` rows, in order."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, limit, replace=False))


# -- reading ------------------------------------------------------------------------------------------------


def _list(X: Sequence[Any]) -> Training:
    if not X or not all(isinstance(value, (str, dict)) for value in X):
        return _array(X)
    if isinstance(X[0], dict):
        msg = "X is a list of records"
        raise SaveError(msg, "Pass pd.DataFrame(X), and a model that takes a frame.")
    return Training("list", "", pd.DataFrame({TENSOR: pd.Series(list(X), dtype=object)}))


def _array(X: Any) -> Training:
    array = np.asarray(X)
    if not array.ndim or array.dtype.names or array.dtype.kind not in "biufUOM":
        what = f"{array.ndim} dimensions" if not array.ndim else f"the dtype {array.dtype}"
        msg = f"X is a {type(X).__name__} with {what}"
        raise SaveError(msg, "Pass a frame, a series, or an array of numbers, booleans, strings or datetimes.")
    if not len(array):
        msg = "X has no row"
        raise SaveError(msg, "Pass the data that the model was fitted on.")
    detail = _dtype_name(array.dtype)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)  # Parquet has no other
    if array.ndim == 1:
        return Training("vector", detail, pd.DataFrame({TENSOR: _plain_series(array)}), _gaps({TENSOR: array}))
    if array.ndim == 2 and array.shape[1] <= MAX_ARRAY_COLUMNS:
        return Training("array", detail, *_array_columns(array))
    if array.dtype.kind in "OM":
        msg = f"X is an array of {array.ndim} dimensions with the dtype {array.dtype}"
        raise SaveError(msg, "Give it a numeric dtype, or pass a frame.")
    return Training("array", detail, {TENSOR: array})


def _array_columns(array: np.ndarray[Any, Any]) -> tuple[pd.DataFrame, dict[str, str]]:
    names = [f"{TENSOR}{i}" for i in range(array.shape[1])]
    if array.dtype.kind not in "UO":
        return pd.DataFrame(array, columns=names), {}
    columns = {name: array[:, i] for i, name in enumerate(names)}
    return pd.DataFrame({name: _plain_series(column) for name, column in columns.items()}), _gaps(columns)


def _gaps(columns: Mapping[str, Any]) -> dict[str, str]:
    objects = {name: part for name, part in columns.items() if part.ndim == 1 and part.dtype == object}
    held = {name: missing_of(pd.Series(part, dtype=object)) for name, part in objects.items()}
    return {name: gap for name, gap in held.items() if gap}


def _plain_series(array: np.ndarray[Any, Any]) -> pd.Series:
    if array.dtype.kind not in "UO":
        return pd.Series(array, copy=False)
    series = pd.Series(array, dtype=object)
    held = pd.api.types.infer_dtype(series, skipna=True)
    # Text stays as it is, with its own missing value: pandas would look for a type of its own.
    if held in ("string", "empty"):
        return series
    whole = {"integer": "Int64", "boolean": "boolean"}.get(held)
    return series.astype(whole) if whole and series.isna().any() else series.infer_objects()


def _dtype_name(dtype: np.dtype[Any]) -> str:
    return dtype.str if dtype.kind == "U" or not dtype.isnative else str(dtype)


def _series_label(series: pd.Series) -> str | int:
    if series.name is None:
        return TENSOR
    return series.name if isinstance(series.name, int) and not isinstance(series.name, bool) else str(series.name)


def _numpy(tensor: Any) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(tensor.detach().cpu().numpy())
    except (TypeError, RuntimeError) as error:
        msg = f"X is a tensor of {tensor.dtype}, which NumPy does not have"
        raise SaveError(msg, "Pass X.float().") from error


def _mapping(X: Mapping[Any, Any]) -> Training:
    parts: dict[str, Any] = {}
    details: dict[str, str] = {}
    for label, given in X.items():
        tensor = _is_from(given, "torch")
        array = _numpy(given) if tensor else np.asarray(given)
        allowed = "biufUOM" if array.ndim == 1 else "biufU"
        if not isinstance(label, str) or not array.ndim or array.dtype.kind not in allowed:
            msg = f"the input {label!r} of X is a {type(given).__name__} of dtype {array.dtype}"
            raise SaveError(msg, "Pass a dict of names to arrays whose first axis is the rows.")
        details[label] = "tensor" if tensor else _dtype_name(array.dtype)
        parts[label] = array.astype(array.dtype.newbyteorder("="), copy=False)
    lengths = {len(array) for array in parts.values()}
    if len(lengths) != 1 or 0 in lengths:
        msg = f"the inputs of X have {sorted(lengths)} rows"
        raise SaveError(msg, "Give every input one entry per row.")
    return Training("dict", json.dumps(details), parts, _gaps(parts))


def _polars(X: Any) -> Training:
    import polars as pl

    if isinstance(X, pl.LazyFrame):
        msg = "X is a Polars LazyFrame"
        raise SaveError(msg, "Pass X.collect().")
    if isinstance(X, pl.Series):
        msg = "X is a Polars Series"
        raise SaveError(msg, "Pass a Polars DataFrame, X.to_frame().")
    return _arrow(X.to_arrow(compat_level=pl.CompatLevel.oldest()), "polars")


def _arrow(X: Any, container: str) -> Training:
    import pyarrow as pa

    table = X if isinstance(X, pa.Table) else pa.table(X) if isinstance(X, pa.RecordBatch) else None
    if table is None:
        msg = f"X is a {type(X).__name__}"
        raise SaveError(msg, "Pass an Arrow Table.")
    names = table.column_names
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        msg = f"the training table has the column {doubled[0]!r} twice"
        raise SaveError(msg, "Rename one of them.")
    schema = table.schema.remove_metadata() if container == "arrow" else table.schema
    detail = base64.b64encode(schema.serialize().to_pybytes()).decode()

    def backed(kind: Any) -> Any:
        return None if pa.types.is_dictionary(kind) or pa.types.is_nested(kind) else pd.ArrowDtype(kind)

    return Training(container, detail, table.to_pandas(types_mapper=backed, ignore_metadata=True))


def _checked_sparse(X: Any) -> Any:
    if X.ndim != 2 or not X.shape[0] or X.dtype.kind not in "biuf":
        msg = f"X is a sparse matrix of shape {X.shape} and dtype {X.dtype}"
        raise SaveError(msg, "Pass rows of numbers.")
    return X.tocsr()


def _column(name: str, part: Any) -> Column:
    if hasattr(part, "tocsr"):
        return Column(name, shape=(part.shape[1],), cells="sparse", **infer_cells(part.data.reshape(-1, 1)))
    if part.ndim > 1:
        return Column(name, shape=tuple(part.shape[1:]), cells="array", **infer_cells(part))
    return infer_column(name, _plain_series(part))


def _rows(part: Any, rows: np.ndarray[Any, Any]) -> Any:
    if hasattr(part, "tocsr"):
        from scipy import sparse

        held = np.empty(len(rows), dtype=object)
        for i, row in enumerate(rows):
            start, end = part.indptr[row : row + 2]
            indices = part.indices[start:end]
            where = np.array([0, len(indices)], dtype=np.int32)
            held[i] = sparse.csr_array((part.data[start:end], indices, where), shape=(1, part.shape[1]))
        return held
    if part.ndim == 1:
        return _plain_series(part[rows])
    held = np.empty(len(rows), dtype=object)
    for i, row in enumerate(rows):
        held[i] = part[row].copy()
    return held


def _bytes(part: Any) -> int:
    return int(part.data.nbytes + part.indices.nbytes if hasattr(part, "tocsr") else part.nbytes)


# -- handing over -------------------------------------------------------------------------------------------


def _handed_array(frame: pd.DataFrame, signature: Signature) -> np.ndarray[Any, Any]:
    first = signature.columns[0]
    if first.shape:
        stack = stacked(first, frame.iloc[:, 0])
        return np.asarray(stack.astype(signature.detail, copy=False) if _is_foreign(signature.detail) else stack)
    # A single column is a vector, unless it is the first of an array.
    held = frame.iloc[:, 0] if first.name == TENSOR else frame
    if signature.detail == "object":
        return _objects(frame, signature).reshape(held.shape)
    return _of_dtype(held, signature.detail)


def _of_dtype(values: Any, name: str) -> np.ndarray[Any, Any]:
    dtype = np.dtype(name or values.to_numpy().dtype)
    if dtype.kind != "U":
        return np.asarray(values.to_numpy(dtype=dtype, copy=True))
    array = values.to_numpy(dtype=str)  # as wide as its longest text, and no narrower than in training
    return np.asarray(array.astype(dtype) if array.dtype.itemsize < dtype.itemsize else array)


def _objects(frame: pd.DataFrame, signature: Signature) -> np.ndarray[Any, Any]:
    return np.column_stack([_object(frame[c.label], c) for c in signature.columns])


def _object(values: pd.Series, column: Column) -> np.ndarray[Any, Any]:
    array = np.array(values.to_numpy(dtype=object), dtype=object)
    if column.missing:
        array[values.isna().to_numpy()] = MISSING[column.missing]
    return array


def _is_foreign(name: str) -> bool:
    return bool(name) and not np.dtype(name).isnative


def _handed_dict(frame: pd.DataFrame, signature: Signature) -> dict[str, Any]:
    details = json.loads(signature.detail or "{}")
    found: dict[str, Any] = {}
    for column in signature.columns:
        values, detail = frame[column.label], details.get(column.name, "")
        dtype = str(column.element) if detail in ("", "tensor") and column.element is not object else detail
        if column.shape:
            array = stacked(column, values)
            array = array.astype(dtype, copy=False) if _is_foreign(dtype) else array
        elif dtype in ("", "object"):
            array = _object(values, column)
        else:
            array = _of_dtype(values, dtype)
        if detail == "tensor":
            import torch

            array = torch.as_tensor(array)
        found[column.name] = array
    return found


def _table(frame: pd.DataFrame, signature: Signature) -> Any:
    import pyarrow as pa

    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(signature.detail)))
    arrays = []
    for column, kept in zip(signature.columns, schema, strict=True):
        values = frame[column.label]
        if pa.types.is_dictionary(kept.type):
            words = values.astype(object).where(values.notna(), None)
            arrays.append(pa.array(words, type=kept.type.value_type, from_pandas=True).dictionary_encode())
        else:
            arrays.append(pa.array(values, type=kept.type, from_pandas=True))
    if signature.container == "polars":
        return _polars_frame(arrays, schema)
    types = [(a.cast(each.type) if a.type != each.type else a) for a, each in zip(arrays, schema, strict=True)]
    return pa.Table.from_arrays(types, schema=schema)


def _polars_frame(arrays: list[Any], schema: Any) -> Any:
    import polars as pl
    import pyarrow as pa

    # An empty table of the same schema knows Polars' own types, an Enum's categories among them.
    like = pl.from_arrow(schema.empty_table())
    plain = [a.dictionary_decode() if pa.types.is_dictionary(a.type) else a for a in arrays]
    frame = pl.from_arrow(pa.Table.from_arrays(plain, names=schema.names))
    assert isinstance(frame, pl.DataFrame)
    assert isinstance(like, pl.DataFrame)
    return frame.cast(like.schema)


def _name_of(X: Any) -> str:
    from scipy import sparse

    # csr_matrix, coo_array, ...: by SciPy's own name, not that of a subclass.
    return str(next(cls.__name__ for cls in type(X).__mro__ if getattr(sparse, cls.__name__, None) is cls))


def _is_from(thing: Any, package: str) -> bool:
    # Without importing it: a thing of a package that was never imported cannot be.
    return package in sys.modules and any(cls.__module__.partition(".")[0] == package for cls in type(thing).__mro__)

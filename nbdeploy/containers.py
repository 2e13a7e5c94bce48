"""What a model's training data comes in, and how rows are handed to it again: the same container, dtype for dtype.

Everywhere else rows are a frame: one column per input, whose cells are values, or arrays (an image, an embedding, a
row of a sparse matrix). A `Training` reads any container into such a frame; `hand` turns a frame back.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nbdeploy.errors import SaveError
from nbdeploy.signature import Signature, infer_column, infer_columns
from nbdeploy.signature_tensors import infer_cells, stacked
from nbdeploy.signature_values import Column

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
        What the model is handed: ``frame``, ``series``, ``array`` (of any rank), ``vector`` (of one), ``list``,
        ``dict`` (of arrays), ``sparse``, ``polars`` or ``arrow``.
    detail : str
        What makes the same container again: a dtype, a class, a schema.
    parts : DataFrame or dict
        The data: a frame, or arrays and sparse matrices by the name of their column.
    """

    container: str
    detail: str
    parts: pd.DataFrame | dict[str, Any]

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
            return infer_columns(self.parts)
        return tuple(_column(name, part) for name, part in self.parts.items())

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
        return Training("series", "" if X.name is None else str(X.name), pd.DataFrame({str(X.name or TENSOR): X}))
    if _is_from(X, "polars"):
        return _polars(X)
    if _is_from(X, "pyarrow"):
        return _arrow(X, "arrow")
    if hasattr(X, "tocsr"):
        return Training("sparse", _name_of(X), {TENSOR: _checked_sparse(X)})
    if isinstance(X, Mapping):
        return _mapping(X)
    if isinstance(X, (list, tuple)) and X and all(isinstance(value, (str, dict)) for value in X):
        if isinstance(X[0], dict):
            msg = "X is a list of records"
            raise SaveError(msg, "Pass pd.DataFrame(X), and a model that takes a frame.")
        return Training("list", "", pd.DataFrame({TENSOR: pd.Series(list(X), dtype=object)}))
    return _array(X)


def hand(frame: pd.DataFrame, signature: Signature) -> Any:
    """A copy of `frame`, which has the signature's columns and dtypes, in the container of the training data."""
    how, columns = signature.container, signature.columns
    if how == "frame":
        return frame.copy()
    first = columns[0]
    values = frame.iloc[:, 0]
    if how == "series":
        return values.rename(signature.detail or None).copy()
    if how == "list":
        return values.tolist()
    if how == "vector":
        return values.to_numpy(dtype=signature.detail, copy=True)
    if how == "sparse":
        from scipy import sparse

        return getattr(sparse, signature.detail)(stacked(first, values))
    if how == "array":
        return stacked(first, values) if first.shape else frame.to_numpy(dtype=signature.detail or None, copy=True)
    if how == "dict":
        return {
            c.name: stacked(c, frame[c.label]) if c.shape else frame[c.label].to_numpy(dtype=c.element, copy=True)
            for c in columns
        }
    return _table(frame, signature)


def sample_rows(count: int, limit: int = MAX_REFERENCE_ROWS) -> np.ndarray[Any, Any]:
    """The positions of a reproducible sample of at most `limit` rows, in order."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, limit, replace=False))


# -- reading ------------------------------------------------------------------------------------------------


def _array(X: Any) -> Training:
    array = X.detach().cpu().numpy() if _is_from(X, "torch") else np.asarray(X)
    if not array.ndim or array.dtype.names or array.dtype.kind not in "biufUOM":
        what = f"{array.ndim} dimensions" if not array.ndim else f"the dtype {array.dtype}"
        msg = f"X is a {type(X).__name__} with {what}"
        raise SaveError(msg, "Pass a frame, a series, or an array of numbers, booleans, strings or datetimes.")
    if not len(array):
        msg = "X has no row"
        raise SaveError(msg, "Pass the data that the model was fitted on.")
    detail = "" if array.dtype.kind == "U" else str(array.dtype)
    if array.ndim == 1:
        return Training("vector", detail or "str", pd.DataFrame({TENSOR: _plain_series(array)}))
    if array.ndim == 2 and array.shape[1] <= MAX_ARRAY_COLUMNS:
        names = [f"{TENSOR}{i}" for i in range(array.shape[1])]
        frame = pd.DataFrame(array, columns=names)
        return Training("array", detail or "str", frame.infer_objects() if array.dtype == object else frame)
    if array.dtype.kind in "OM":
        msg = f"X is an array of {array.ndim} dimensions with the dtype {array.dtype}"
        raise SaveError(msg, "Give it a numeric dtype, or pass a frame.")
    return Training("array", detail, {TENSOR: array})


def _plain_series(array: np.ndarray[Any, Any]) -> pd.Series:
    return pd.Series(array, dtype=object if array.dtype.kind == "U" else None, copy=False)


def _mapping(X: Mapping[Any, Any]) -> Training:
    parts: dict[str, Any] = {}
    for label, given in X.items():
        array = given.detach().cpu().numpy() if _is_from(given, "torch") else np.asarray(given)
        if not isinstance(label, str) or not array.ndim or array.dtype.kind not in "biufUO":
            msg = f"the input {label!r} of X is a {type(given).__name__} of dtype {array.dtype}"
            raise SaveError(msg, "Pass a dict of names to arrays whose first axis is the rows.")
        parts[label] = array
    lengths = {len(array) for array in parts.values()}
    if len(lengths) != 1 or 0 in lengths:
        msg = f"the inputs of X have {sorted(lengths)} rows"
        raise SaveError(msg, "Give every input one entry per row.")
    return Training("dict", "", parts)


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
        return None if pa.types.is_dictionary(kind) else pd.ArrowDtype(kind)

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


def _table(frame: pd.DataFrame, signature: Signature) -> Any:
    import pyarrow as pa

    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(signature.detail)))
    arrays = []
    for column, field in zip(signature.columns, schema, strict=True):
        values = frame[column.label]
        if pa.types.is_dictionary(field.type):
            words = values.astype(object).where(values.notna(), None)
            arrays.append(pa.array(words, type=field.type.value_type, from_pandas=True).dictionary_encode())
        else:
            arrays.append(pa.array(values, type=field.type, from_pandas=True))
    if signature.container == "polars":
        return _polars_frame(arrays, schema)
    types = [(a.cast(field.type) if a.type != field.type else a) for a, field in zip(arrays, schema, strict=True)]
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

"""Frames of the log: the training data's dtypes, whether the rows come from lines or from Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nbdeploy.log_tables import OWN, Header, holds_json, json_values, own_column
from nbdeploy.log_values import is_digest
from nbdeploy.signature import Column, build_column, build_series, restore_missing

if TYPE_CHECKING:
    import pyarrow as pa


def frame_of(
    header: Header, tables: Sequence[pa.Table], labels: Mapping[str, Any] | None = None, *, proba: bool = False
) -> pd.DataFrame:
    """The rows of tables of one version, which have the same columns, as the log shows them.

    Parameters
    ----------
    labels : mapping, optional
        The label of each prediction id; adds the column ``label``.
    proba : bool
        Adds the column ``probabilities``.
    """
    names = tables[0].column_names
    inputs = names[: -len(OWN)]
    own = dict(zip(OWN, names[-len(OWN) :], strict=True))
    data: dict[Any, Any] = {name: series_of(header.column(name), [table.field(name) for table in tables],
                                          [table.column(name) for table in tables]) for name in inputs}  # fmt: skip
    frame = pd.DataFrame(data)
    ids = [value for table in tables for value in table.column(own["prediction_id"]).to_pylist()]
    predicted = [v for t in tables for v in json_values(t.field(own["prediction"]), t.column(own["prediction"]))]
    frame[own["prediction"]] = pd.Series(predicted, index=pd.RangeIndex(len(ids)))
    frame[own["prediction_id"]] = ids
    frame[own["version"]] = [value for table in tables for value in table.column(own["version"]).to_pylist()]
    times = [table.column(own["time"]).to_pandas().astype("datetime64[ns, UTC]") for table in tables]
    frame[own["time"]] = pd.concat(times, ignore_index=True)
    if proba:
        label = own["probabilities"]
        told = [value for table in tables for value in json_values(table.field(label), table.column(label))]
        frame[label] = pd.Series(told, index=frame.index, dtype=object)
    if labels is not None:
        frame[own_column("label", inputs)] = pd.Series([labels.get(i) for i in ids], index=frame.index)
    return frame


def moments(table: pa.Table) -> Any:
    """The log's time of each row, in microseconds."""
    return table.column(table.num_columns - 2).combine_chunks().to_numpy(zero_copy_only=False).astype("int64")


def series_of(column: Column | None, told: Sequence[pa.Field], arrays: Sequence[Any]) -> pd.Series:
    """The training data's cells, dtype for dtype; plain objects where the values are not what the column says."""
    import pyarrow as pa

    plain = column is not None and not column.shape and not any(map(holds_json, told))
    if plain and len({array.type for array in arrays}) == 1:
        assert column is not None
        whole = pa.chunked_array([chunk for array in arrays for chunk in array.chunks], type=arrays[0].type)
        if (made := _quick(column, whole)) is not None:
            return made
    values = [value for field, array in zip(told, arrays, strict=True) for value in json_values(field, array)]
    if column is None:
        return pd.Series(values)
    try:
        if not column.shape:
            return build_series(column, values)
        held = build_column(column, [None if is_digest(value) else value for value in values])
    except (ValueError, TypeError, OverflowError, KeyError):
        return pd.Series(values, dtype=object)
    for row, value in enumerate(values):
        if is_digest(value):
            held[row] = value
    return held


def _quick(column: Column, array: Any) -> pd.Series | None:
    """The column without a detour by Python's objects, where there is a way."""
    dtype = pd.api.types.pandas_dtype(column.dtype) if column.kind != "category" else None
    if isinstance(dtype, pd.ArrowDtype) and column.kind != "date" and column.missing != "nan":
        return pd.Series(pd.arrays.ArrowExtensionArray(array.cast(dtype.pyarrow_dtype)))
    if isinstance(dtype, np.dtype) and dtype.kind in "biuf" and (dtype.kind == "f" or not array.null_count):
        return pd.Series(array.to_numpy().astype(dtype, copy=False))
    if column.kind == "datetime":
        return array.to_pandas().astype(column.dtype)
    if column.kind == "date":
        return restore_missing(pd.Series(array.to_pylist(), dtype=column.dtype), column)
    if column.kind == "category":
        return build_series(column, array.to_pylist())
    return build_series(column, array.to_pylist()) if column.kind == "string" else None

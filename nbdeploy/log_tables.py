"""Answered requests as Arrow tables, with a native type per column: what Parquet holds."""

from __future__ import annotations

import datetime as dt
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pandas as pd

from nbdeploy.answers import STRING, Output
from nbdeploy.log_values import is_digest, may_be_large, summarised
from nbdeploy.signature import Column, build_series, json_column

if TYPE_CHECKING:
    import pyarrow as pa

OWN = ("prediction", "probabilities", "prediction_id", "version", "time", "purpose")
AS_JSON = {b"nbdeploy": b"json"}  # of a column whose values are JSON text


@dataclass(frozen=True)
class Header:
    """What the rows of a segment are: its first line, and in the metadata of every Parquet file.

    Attributes
    ----------
    columns : tuple of Column
        The inputs as they are logged. None where it is not known, after damage: their values are then any JSON.
    outputs : tuple of Output
        What a prediction is.
    """

    columns: tuple[Column, ...] | None = None
    outputs: tuple[Output, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"nbdeploy": 1, "outputs": [asdict(output) for output in self.outputs]}
        if self.columns is not None:
            found["columns"] = [_told(column) for column in self.columns]
        return found

    @classmethod
    def from_dict(cls, value: Any) -> Header | None:
        """The header in `value`, or None where it is none."""
        if not isinstance(value, dict) or value.get("nbdeploy") != 1:
            return None
        try:
            columns = None
            if value.get("columns") is not None:
                columns = tuple(_column(column) for column in value["columns"])
                for column in columns:
                    stored_type(column)
            outputs = [Output(**{**output, "shape": tuple(output["shape"])}) for output in value["outputs"]]
            return cls(columns, tuple(outputs))
        except (TypeError, ValueError, KeyError, AttributeError):
            return None

    def column(self, name: str) -> Column | None:
        return next((column for column in self.columns or () if column.name == name), None)


def _told(column: Column) -> dict[str, Any]:
    return {f.name: getattr(column, f.name) for f in fields(column) if getattr(column, f.name) != f.default}


def _column(value: Mapping[str, Any]) -> Column:
    known = {f.name for f in fields(Column)}
    held = {key: each for key, each in value.items() if key in known}
    categories = held.get("categories")
    held |= {"categories": None if categories is None else tuple(categories), "shape": tuple(held.get("shape", ()))}
    if not isinstance(held.get("name"), str):
        msg = "a column's name is no text"
        raise TypeError(msg)
    return Column(**held)


def own_column(label: str, inputs: Iterable[str]) -> str:
    """What the log calls a column of its own: `label`, with underscores until no input has that name."""
    taken = set(inputs)
    while label in taken:
        label += "_"
    return label


def own_names(inputs: Sequence[str]) -> dict[str, str]:
    """What the log's own columns are called among these inputs."""
    return {label: own_column(label, inputs) for label in OWN}


# -- stored: into Arrow -------------------------------------------------------------------------------------


def stored_type(column: Column) -> pa.DataType:
    """Arrow's type for the values of a column. Cells with a shape are JSON text."""
    import pyarrow as pa

    if column.shape or column.kind == "string":
        return pa.string()
    if column.kind == "date":
        return pa.date32()
    return _type_of((column.category_dtype or "object") if column.kind == "category" else column.dtype)


@lru_cache(maxsize=256)
def _type_of(dtype: str) -> pa.DataType:
    import pyarrow as pa

    kind = pa.array(pd.Series([], dtype=dtype), from_pandas=True).type
    if pa.types.is_null(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return pa.float32() if pa.types.is_float16(kind) else kind


def stored_values(column: Column | None, values: Sequence[Any]) -> pa.Array:
    """JSON values as Arrow has them; as JSON text where they are not what the column says."""
    import pyarrow as pa

    if column is None or column.shape:
        return _texts(values)
    kind = stored_type(column)
    try:
        if column.kind == "int":
            values = [None if v is None else int(v) for v in values]
        elif column.kind == "datetime":
            return pa.array(build_series(column, values), type=kind, from_pandas=True)
        elif column.kind == "date":
            values = [None if v is None else dt.date.fromisoformat(v) for v in values]
        return pa.array(values, type=kind, from_pandas=True)
    except (pa.ArrowException, ValueError, TypeError, OverflowError, AttributeError):
        return _texts(values)


def stored_series(column: Column, series: pd.Series) -> pa.Array:
    """A column of a frame as Arrow has it, large cells by their digest."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.shape:
        cells = series.tolist()
        if may_be_large(column):
            cells = list(summarised(column, cells))
        digests = [is_digest(cell) for cell in cells]
        plain = iter(
            json_column(column, pd.Series([c for c, d in zip(cells, digests, strict=True) if not d], dtype=object))
        )
        return _texts([cell if digest else next(plain) for cell, digest in zip(cells, digests, strict=True)])
    try:
        array = pa.array(series, from_pandas=True)
        array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
        array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
        array = array.cast(stored_type(column))
    except (pa.ArrowException, ValueError, TypeError):
        return stored_values(column, summarised(column, json_column(column, series)))
    if pa.types.is_string(array.type) and len(array) and (pc.max(pc.binary_length(array)).as_py() or 0) > _LONG:
        return stored_values(column, summarised(column, array.to_pylist()))
    return array


_LONG = 64 << 10


def _texts(values: Sequence[Any]) -> pa.Array:
    import pyarrow as pa

    return pa.array([None if value is None else _text(value) for value in values], type=pa.string())


def _text(value: Any) -> str:
    # Only orjson is strict, and it makes null of Infinity.
    if _is_finite(value):
        try:
            return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()
        except TypeError:
            pass
    return json.dumps(value, default=str)


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return all(map(_is_finite, value.values())) if isinstance(value, dict) else True


# -- frames that came as such -------------------------------------------------------------------------------


def packed(table: pa.Table) -> memoryview:
    """A table as an Arrow IPC stream."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def unpacked(stream: bytes, checksum: int) -> pa.Table | None:
    """What `packed` was given; None where the stream is not what its CRC-32 says."""
    import pyarrow as pa

    if zlib.crc32(stream) != checksum:  # before anything looks at what may be damaged
        return None
    try:
        with pa.ipc.open_stream(stream) as reader:
            return reader.read_all()
    except (ValueError, pa.ArrowException):
        return None


# -- entries into tables ------------------------------------------------------------------------------------


def table_of(header: Header, version: str, entries: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The rows of entries of one version that have the same inputs, as one table.

    Parameters
    ----------
    entries : sequence of mapping
        As `nbdeploy.log_segments.parsed` gives them: none or all of them with a ``frame``.
    """
    import pyarrow as pa

    names, arrays, told = [], [], []
    if "frame" in entries[0]:
        whole = pa.concat_tables([entry["frame"] for entry in entries]).combine_chunks()
        for name in whole.column_names:
            held = whole.column(name)
            names.append(name)
            arrays.append(held)
            told.append(whole.schema.field(name).metadata)
    else:
        for name in entries[0]["inputs"]:
            column = header.column(name)
            values = [value for entry in entries for value in entry["inputs"][name]]
            array = stored_values(column, values)
            names.append(name)
            arrays.append(array)
            told.append(AS_JSON if is_text(column, array.type) else None)
    own = own_names(names)
    counts = [len(entry["outputs"]) for entry in entries]
    outputs = [value for entry in entries for value in entry["outputs"]]
    scores: list[Any] = [
        score for entry, n in zip(entries, counts, strict=True) for score in entry.get("probabilities") or [None] * n
    ]
    rows = sum(counts)
    predictions, predicted_text = _predictions(header.outputs, outputs)
    chances = _scores(scores)
    ids = [f"{e['request']}-{row}" for e, n in zip(entries, counts, strict=True) for row in e.get("part") or range(n)]
    seconds = np.repeat([float(entry["time"]) for entry in entries], counts)
    moments = pa.array((seconds * 1e6).round().astype("int64"), type=pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    purposes = [entry["purpose"] for entry, n in zip(entries, counts, strict=True) for _ in range(n)]
    versions = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, "int32")), pa.array([version]))
    held_own = {
        "prediction": predictions, "probabilities": chances, "prediction_id": pa.array(ids, pa.string()),
        "version": versions.cast(pa.string()), "time": moments, "purpose": pa.array(purposes, pa.string()),
    }  # fmt: skip
    for label, array in held_own.items():
        names.append(own[label])
        arrays.append(array)
        text = predicted_text if label == "prediction" else label == "probabilities" and pa.types.is_string(array.type)
        told.append(AS_JSON if text else None)
    schema = pa.schema(
        [pa.field(name, array.type, metadata=meta) for name, array, meta in zip(names, arrays, told, strict=True)]
    )
    return pa.Table.from_arrays(arrays, schema=schema)


def frame_table(header: Header, frame: pd.DataFrame) -> pa.Table:
    """The rows of a frame, whose columns are the header's by name or label, as `packed` takes them."""
    import pyarrow as pa

    held = {str(label): i for i, label in enumerate(frame.columns)}
    columns = [column for column in header.columns or () if column.name in held]
    arrays = [stored_series(column, frame.iloc[:, held[column.name]]) for column in columns]
    listed = [
        pa.field(column.name, array.type, metadata=AS_JSON if is_text(column, array.type) else None)
        for column, array in zip(columns, arrays, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=pa.schema(listed))


def is_text(column: Column | None, kind: pa.DataType) -> bool:
    """Whether a column's values were stored as JSON text."""
    return column is None or bool(column.shape) or kind != stored_type(column)


def _predictions(outputs: Sequence[Output], values: Sequence[Any]) -> tuple[pa.Array, bool]:
    """The predictions, and whether they are JSON text."""
    import pyarrow as pa

    kind = _output_type(outputs)
    if kind is not None and not (pa.types.is_integer(kind) and any(isinstance(v, float) for v in values)):
        try:
            return pa.array(values, type=kind), False
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            pass
    return _texts(values), True


def _output_type(outputs: Sequence[Output]) -> pa.DataType | None:
    """Arrow's type for predictions that are single plain values; None where they are JSON text."""
    import pyarrow as pa

    if len(outputs) != 1 or outputs[0].name or outputs[0].shape:
        return None
    if outputs[0].dtype == STRING:
        return pa.string()
    try:
        dtype = np.dtype(outputs[0].dtype)
    except TypeError:
        return None
    if dtype.kind in "biu":
        return pa.from_numpy_dtype(dtype)
    return (pa.float32() if dtype.itemsize <= 4 else pa.float64()) if dtype.kind == "f" else None


def _scores(values: Sequence[Any]) -> pa.Array:
    import pyarrow as pa

    try:
        return pa.array(values, type=pa.list_(pa.float64()))
    except (pa.ArrowException, ValueError, TypeError):
        return _texts(values)


# -- out of Arrow ---------------------------------------------------------------------------------------------


def json_values(field: pa.Field, array: Any) -> list[Any]:
    """The values of an Arrow column as JSON has them."""
    import pyarrow as pa

    values: list[Any] = array.to_pylist() if not pa.types.is_timestamp(array.type) else array.to_pandas().tolist()
    if holds_json(field):
        return [None if value is None else _loaded(value) for value in values]
    if pa.types.is_timestamp(array.type):
        return [None if value is pd.NaT else value.isoformat() for value in values]
    return [value.isoformat() for value in values] if pa.types.is_date(array.type) else values


def as_text(table: pa.Table, names: Iterable[str]) -> pa.Table:
    """The same rows with the values of some columns as JSON text."""
    import pyarrow as pa

    for name in names:
        field = table.field(name)
        if not holds_json(field):
            array = _texts(json_values(field, table.column(name)))
            place = table.schema.get_field_index(name)
            table = table.set_column(place, pa.field(name, array.type, metadata=AS_JSON), array)
    return table


def holds_json(field: pa.Field) -> bool:
    """Whether the values of an Arrow column are JSON text."""
    return bool((field.metadata or {}).get(b"nbdeploy") == b"json")


def _loaded(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)  # has Infinity

"""Rows and answers as Arrow IPC streams: no text in between, dtype for dtype.

A body comes from anybody: it is bounded before it is decoded, and every buffer is validated before it is read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nbdeploy import answers
from nbdeploy.answers import Output, Predicted, Probabilities
from nbdeploy.errors import InputError
from nbdeploy.request_body import MAX_ROWS, Unreadable
from nbdeploy.signature import MAX_PROBLEMS, Column, Signature, build_column, json_column, problem, refusal

MEDIA = "application/vnd.apache.arrow.stream"
MAX_TEXT_BYTES = 256 << 20  # of one column, when each row has its own
MAX_CELLS = 10_000_000  # of one column: a list of bits is eight times as long as its bytes
MAX_RANK = 8


def read(body: bytes, signature: Signature) -> pd.DataFrame:
    """The rows of a body as the frame that the model was trained on.

    Raises
    ------
    Unreadable
        It is no Arrow IPC stream, or a compressed one.
    InputError
        The rows do not fit the signature.
    """
    problems: list[dict[str, Any]] = []
    table = _table(body, lambda schema: _check_types(schema, signature))
    if not table.num_rows:
        raise refusal([problem(None, None, "at least one row", "an empty table")])
    series: dict[str | int, pd.Series] = {}
    for column in signature.columns:
        try:
            series[column.label] = _series(column, table.column(column.name))
        except InputError as error:
            problems += error.problems
        except (pa.ArrowException, ValueError, TypeError, KeyError, OverflowError) as error:
            # Valid buffers can still hold what no value is: an unknown time zone, a moment beyond all calendars.
            said = "values that cannot be read" if column.private else " ".join(str(error).split())[:120]
            problems.append(problem(None, column.name, column.expected, said))
        if len(problems) >= MAX_PROBLEMS:
            break
    if problems:
        raise refusal(problems[:MAX_PROBLEMS])
    return pd.DataFrame(series, columns=[c.label for c in signature.columns])


def write_rows(frame: pd.DataFrame, signature: Signature) -> bytes:
    """What `read` takes, from a frame that has the signature's columns, in any order.

    Raises
    ------
    InputError
        A column is missing, unknown or doubled, or Arrow cannot hold it.
    """
    labels = list(map(str, frame.columns))
    if problems := signature.name_problems(labels):
        raise refusal(problems)
    arrays = []
    for column in signature.columns:
        values = frame.iloc[:, labels.index(column.name)]
        try:
            held = pa.array(json_column(column, values)) if column.shape else pa.array(values, from_pandas=True)
        except (pa.ArrowException, UnicodeEncodeError) as error:
            said = " ".join(str(error).split())[:120]
            raise refusal(
                [problem(None, column.name, column.expected, f"values that Arrow cannot hold: {said}")]
            ) from error
        arrays.append(held.combine_chunks() if isinstance(held, pa.ChunkedArray) else held)
    return _stream(pa.Table.from_arrays(arrays, names=signature.names))


def write_answers(
    values: Predicted,
    scores: Probabilities | None,
    classes: tuple[Any, ...] | None,
    request: str,
    version: str,
    *,
    versions: Sequence[str] = (),
) -> bytes:
    """The answer to a body: the columns of `nbdeploy.answers.frame_of`, ``prediction_id`` and ``version``.

    `versions` are those of the rows, where several have answered.
    """
    frame = answers.frame_of(values, scores, classes)
    arrays, names = [], []
    named = values if isinstance(values, dict) else {"": values}
    for output, array in zip(answers.outputs_of(values), named.values(), strict=True):
        arrays.append(_answer_array(output, array))
        names.append(output.column)
    for name in frame.columns[len(names) :]:
        arrays.append(pa.array(frame[name].to_numpy()))
        names.append(str(name))
    rows = pa.array(np.arange(len(frame))).cast(pa.string())
    ids = pc.binary_join_element_wise(pa.scalar(request), rows, "-")  # those of `Answer.ids`
    one = pa.DictionaryArray.from_arrays(np.zeros(len(frame), dtype="int32"), [version])
    arrays += [ids, pa.array(versions).dictionary_encode() if versions else one]
    return _stream(pa.Table.from_arrays(arrays, names=[*names, "prediction_id", "version"]))


def read_answers(body: bytes, outputs: Sequence[Output]) -> pd.DataFrame:
    """What `write_answers` was given, as a frame with the dtypes of `outputs`.

    Raises
    ------
    Unreadable
        It is no Arrow IPC stream.
    """
    table = _table(body)
    known = {output.column: output for output in outputs}
    data = {}
    for name in table.column_names:
        column = table.column(name)
        output = known.get(name)
        if output is None:
            data[name] = column.to_pandas() if name != "version" else pd.Series(column.to_pylist())
        elif output.as_json or output.dtype == answers.STRING:
            data[name] = answers.from_stored(column.to_pylist(), output)
        elif output.shape:
            data[name] = answers.from_stored(column.to_numpy(zero_copy_only=False).tolist(), output)
        else:
            data[name] = pd.Series(column.to_numpy())
    return pd.DataFrame(data)


# -- helpers ------------------------------------------------------------------------------------------------


def _stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _answer_array(output: Output, array: np.ndarray[Any, Any]) -> Any:
    if output.as_json:
        return pa.array(answers.stored_cells(list(array), output), type=pa.string())
    if output.shape and output.dtype != answers.STRING:
        flat = array.reshape(len(array), -1)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
    return pa.array(array.tolist() if array.dtype.kind in "OU" else array)


def _table(body: bytes, check: Callable[[pa.Schema], None] = lambda _: None) -> pa.Table:
    """The stream as a table; `check` looks at the types before anything of theirs is read."""
    source = pa.py_buffer(body)
    try:
        _refuse_compressed(source)
        with pa.ipc.open_stream(source) as reader:
            list(map(str, reader.schema.names))  # a name may be no UTF-8
            check(reader.schema)
            batches, rows = [], 0
            for batch in reader:
                rows += batch.num_rows
                if rows > MAX_ROWS:
                    msg = f"the stream has more than {MAX_ROWS:,} rows"
                    raise Unreadable(msg)
                batch.validate()
                _refuse_swollen(batch)
                batch.validate(full=True)
                batches.append(batch)
            return pa.Table.from_batches(batches, schema=reader.schema)
    except (pa.ArrowException, OSError, EOFError, ValueError, struct.error, IndexError, UnicodeDecodeError) as error:
        if isinstance(error, InputError):
            raise
        said = " ".join(str(error).split())[:120]
        msg = f"the body is not an Arrow IPC stream: {said}"
        raise Unreadable(msg) from error


def _check_types(schema: pa.Schema, signature: Signature) -> None:
    """Refuse names and types that do not fit, and types whose few bytes may stand for gigabytes."""
    if problems := signature.name_problems(schema.names):
        raise refusal(problems)
    for column in signature.columns:
        kind = schema.field(column.name).type
        fits = _holds_cells(kind, column) if column.shape else _fits(column, _written_out(kind))
        if not fits:
            problems.append(problem(None, column.name, column.expected, f"a column of type {str(kind)[:60]}"))
    if problems:
        raise refusal(problems[:MAX_PROBLEMS])


def _holds_cells(kind: Any, column: Column) -> bool:
    """Whether its cells are lists, of any depth, of plain values that are all in the stream; of a sparse row, two."""
    types = pa.types
    if column.cells == "sparse" and types.is_struct(kind):
        parts = {field.name: field.type for field in kind}
        dense = replace(column, cells="array")
        return parts.keys() == {"indices", "values"} and all(_holds_cells(part, dense) for part in parts.values())
    depth = 0
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    plain = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    return 0 < depth <= MAX_RANK and (plain or types.is_string(kind) or types.is_large_string(kind))


def _written_out(kind: Any) -> Any:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _refuse_swollen(batch: pa.RecordBatch) -> None:
    """Refuse what is small in the stream and large when each row has its own: texts that rows share, lists of bits."""
    for name, held in zip(batch.schema.names, batch.columns, strict=True):
        kind = held.type
        if pa.types.is_dictionary(kind) and _is_text(kind.value_type):
            lengths = pc.binary_length(held.dictionary)
            written = _sum(lengths.take(held.indices.drop_null()))
        elif pa.types.is_string_view(kind):
            # The length is the first of a view's four numbers; Arrow has no function for it.
            views = np.frombuffer(held.buffers()[1], dtype="int32").reshape(-1, 4)
            written = _sum(pa.array(views[held.offset : held.offset + len(held), 0]))
        else:
            written = 0
            count = max(map(_values, held.flatten() if pa.types.is_struct(kind) else [held]), default=0)
            if count > MAX_CELLS:
                got = f"{count:,} values"
                raise refusal([problem(None, name[:80], f"at most {MAX_CELLS:,} values", got)])
        if written > MAX_TEXT_BYTES:
            got = f"texts of {written:,} bytes"
            raise refusal([problem(None, name[:80], f"texts of at most {MAX_TEXT_BYTES:,} bytes together", got)])


def _values(held: Any) -> int:
    """How many values there are in lists of any depth."""
    while hasattr(held.type, "value_type") and not pa.types.is_dictionary(held.type):
        held = held.flatten()
    return len(held)


def _is_text(kind: Any) -> bool:
    return any(is_a(kind) for is_a in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _sum(lengths: Any) -> int:
    if pc.min(lengths).as_py() is not None and pc.min(lengths).as_py() < 0:
        msg = "a text of negative length"
        raise ValueError(msg)
    return int(pc.sum(lengths.cast(pa.int64())).as_py() or 0)


def _refuse_compressed(source: Any) -> None:
    # A few bytes of a compressed buffer may stand for gigabytes, which Arrow would allocate. Its Python API does not
    # tell of compression; the message's own header, a flatbuffer, does: RecordBatch.compression. Before that there was
    # an experimental form, in a batch's own metadata.
    for message in pa.ipc.MessageReader.open_stream(source):
        if message.type in ("record batch", "dictionary") and _is_compressed(bytes(message.metadata)):
            msg = "its buffers are compressed; send them as they are"
            raise ValueError(msg)


def _is_compressed(metadata: bytes) -> bool:
    message = struct.unpack_from("<I", metadata, 0)[0]
    if _field(metadata, message, 4):
        return True
    kind = _field(metadata, message, 1)
    header = _follow(metadata, _field(metadata, message, 2))
    if header and metadata[kind] == 2:  # DictionaryBatch: its data is the RecordBatch
        header = _follow(metadata, _field(metadata, header, 1))
    return bool(header and _field(metadata, header, 3))


def _field(data: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffer's table is, or 0."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", data, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", data, vtable + 4 + 2 * number)[0]
    return table + offset if offset else 0


def _follow(data: bytes, place: int) -> int:
    return place + int(struct.unpack_from("<I", data, place)[0]) if place else 0


# -- columns ------------------------------------------------------------------------------------------------


def _series(column: Column, held: Any) -> pd.Series:
    kind = held.type
    if pa.types.is_dictionary(kind):
        held = held.cast(kind.value_type)
    if column.kind == "string" and not column.shape and (texts := _texts(column, held)) is not None:
        return texts
    fast = not column.shape and column.kind in ("int", "float", "bool") and _is_numpy(column.dtype)
    values = _numbers(column, held) if fast and not held.null_count else None
    # Whatever is not plain numbers goes the way of JSON: one check, one way to each dtype.
    return _checked(column, _as_json(held)) if values is None else pd.Series(values)


def _texts(column: Column, held: Any) -> pd.Series | None:
    """Plain texts without a detour; None where there is more to look at."""
    if not (pa.types.is_string(held.type) or pa.types.is_large_string(held.type)):
        return None
    if held.null_count and not column.nullable:
        return None
    dtype = pd.api.types.pandas_dtype(column.dtype)
    if isinstance(dtype, pd.StringDtype) and dtype.storage == "pyarrow":
        return pd.Series(dtype.__from_arrow__(held.cast(pa.large_string())), copy=False)
    if dtype == np.dtype(object) and not held.null_count:
        return pd.Series(held.to_numpy(), dtype=object)
    return None


def _numbers(column: Column, held: Any) -> np.ndarray[Any, Any] | None:
    """The numbers as they are wanted; None where one of them is not, or Arrow cannot cast them without loss."""
    try:
        values: np.ndarray[Any, Any] = held.cast(pa.from_numpy_dtype(np.dtype(column.dtype))).to_numpy()
    except pa.ArrowException:
        return None
    if column.kind == "float":
        missing = np.isnan(values)
        if (missing.any() and not column.nullable) or (column.finite and not np.isfinite(values[~missing]).all()):
            return None
    return values


def _checked(column: Column, values: list[Any]) -> pd.Series:
    lists = Signature((column,)).check({"columns": [column.name], "data": [[value] for value in values]})
    return build_column(column, lists[column.name])


def _as_json(held: Any) -> list[Any]:
    kind = held.type
    if pa.types.is_timestamp(kind):
        return [None if value is pd.NaT else value.isoformat() for value in held.to_pandas()]
    if pa.types.is_date(kind):
        return [None if value is None else value.isoformat() for value in held.cast(pa.date32()).to_pylist()]
    listed: list[Any] = held.to_pylist()
    return listed


def _fits(column: Column, kind: Any) -> bool:
    types = pa.types
    if types.is_null(kind):
        return True
    textual = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    number = types.is_integer(kind) or types.is_floating(kind)
    fits: dict[str, bool] = {
        "int": number, "float": number, "bool": types.is_boolean(kind), "string": textual,
        "datetime": types.is_timestamp(kind) or types.is_date(kind) or textual,
        "date": types.is_date(kind) or textual, "category": textual or number or types.is_boolean(kind),
    }  # fmt: skip
    return fits[column.kind]


def _is_numpy(dtype: str) -> bool:
    return isinstance(pd.api.types.pandas_dtype(dtype), np.dtype)

"""One digest for a whole training frame, read in blocks: the same data has the same one, in any process."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nbdeploy.errors import SaveError

ROWS = 65_536  # of one block of a column: part of the digest's definition
BYTES = 8 << 20  # of one block of an array: not part of it
Hash = Any


def training_digest(X: Any) -> str:
    """A digest of what a model was trained on, as 64 hexadecimal digits.

    Taken as they are: a DataFrame, Series, array of any rank, sparse matrix, Arrow or Polars table, tensor, mapping of
    such, or a sequence of values. It depends on the values, their types, the order and the names of columns; not on
    the index, on how memory is laid out, on the bytes behind a NaN, or on the machine. No copy of more than about
    64 MB is made at a time, unless one value or one row is larger.

    Parameters
    ----------
    X : DataFrame, Series, ndarray, sparse matrix, pyarrow.Table, polars.DataFrame, mapping or sequence
        None has a digest too.

    Raises
    ------
    SaveError
        A value is neither a number, a string, a date nor anything else that can be pickled.
    """
    hasher = hashlib.blake2b(digest_size=32)
    _add(hasher, X)
    return str(hasher.hexdigest())


def _add(hasher: Hash, X: Any) -> None:
    found = _as_columns(X)
    if found is not None:
        _add_columns(hasher, *found)
    elif hasattr(X, "tocsr"):
        _add_sparse(hasher, X)
    elif isinstance(X, Mapping):
        _say(hasher, "mapping", len(X))
        for key, value in sorted(X.items(), key=lambda item: _encoded(item[0])):
            hasher.update(_encoded(key))
            _add(hasher, value)
    elif isinstance(X, Sequence) and not isinstance(X, (str, bytes)):
        _say(hasher, "sequence", type(X).__name__, len(X))
        for start in range(0, len(X), ROWS):
            part = list(X[start : start + ROWS])
            values = np.empty(len(part), dtype=object)
            values[:] = part
            _add_objects(hasher, values)
    elif isinstance(X, np.ndarray) or hasattr(X, "__array__"):
        array = np.asarray(X.detach().cpu() if hasattr(X, "detach") else X)
        _say(hasher, "array", array.shape, _dtype(array.dtype))
        _add_array(hasher, array)
    else:
        _say(hasher, "value")
        hasher.update(_encoded(X))


def _as_columns(X: Any) -> tuple[str, tuple[int, ...], list[tuple[Any, Any]]] | None:
    """Kind, shape and named columns of what has columns or is one."""
    module = type(X).__module__.partition(".")[0]
    if module == "pandas":
        if hasattr(X, "columns"):
            return "frame", X.shape, [(name, X.iloc[:, i]) for i, name in enumerate(X.columns)]
        if hasattr(X, "to_frame"):
            return "series", X.shape, [(X.name, X if hasattr(X, "iloc") else X.to_series())]
        if hasattr(X, "dtype"):  # one of pandas' own arrays
            import pandas as pd

            return "series", X.shape, [(None, pd.Series(X))]
    if module == "polars":
        table = X.collect() if hasattr(X, "collect") else X
        columns = table.get_columns() if hasattr(table, "get_columns") else [table]
        return type(table).__name__, table.shape, [(one.name, one.to_arrow()) for one in columns]
    if module == "pyarrow" and hasattr(X, "column_names"):
        return "table", X.shape, list(zip(X.column_names, X.columns, strict=True))
    if module == "pyarrow" and hasattr(X, "to_pylist"):
        return "series", (len(X),), [(None, X)]
    return None


def _add_columns(hasher: Hash, kind: str, shape: Any, columns: list[tuple[Any, Any]]) -> None:
    """Block by block through all columns: the columns of a frame may lie side by side in memory."""
    _say(hasher, kind, shape, len(columns))
    hashers = [hashlib.blake2b(digest_size=32) for _ in columns]
    for (name, values), one in zip(columns, hashers, strict=True):
        dtype = getattr(values, "dtype", getattr(values, "type", None))
        one.update(_encoded(name))
        _say(one, str(dtype))
        categories = getattr(dtype, "categories", None)
        if categories is not None:
            _add(one, np.asarray(categories))
    parts = [_quick(values) for _, values in columns]
    for start in range(0, shape[0], ROWS):
        for part, one in zip(parts, hashers, strict=True):
            _add_block(one, part, start, min(start + ROWS, shape[0]))
    for one in hashers:
        hasher.update(one.digest())


def _quick(values: Any) -> Any:
    """A view as an array where there is one: slicing a Series is slow."""
    return values.to_numpy() if isinstance(getattr(values, "dtype", None), np.dtype) else values


def _add_block(hasher: Hash, values: Any, start: int, stop: int) -> None:
    if isinstance(values, np.ndarray):
        part = values[start:stop]
        _add_objects(hasher, part) if part.dtype == object else _add_array(hasher, part)
    elif hasattr(values, "iloc"):
        _add_extension(hasher, values.iloc[start:stop])
    else:
        _add_arrow(hasher, values.slice(start, stop - start))


def _add_extension(hasher: Hash, part: Any) -> None:
    """A block of a Series of one of pandas' own types."""
    import pandas as pd

    dtype = part.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        _say(hasher, bool(dtype.ordered))
        _add_array(hasher, part.cat.codes.to_numpy().astype(np.int64))
    elif isinstance(dtype, pd.DatetimeTZDtype):
        _add_array(hasher, part.dt.tz_convert(None).to_numpy())
    elif isinstance(dtype, (pd.SparseDtype, pd.PeriodDtype, pd.IntervalDtype)):
        values = np.asarray(part)
        _add_objects(hasher, values) if values.dtype == object else _add_array(hasher, values)
    elif hasattr(part.array, "__arrow_array__"):  # strings, nullable numbers, Arrow's own
        import pyarrow as pa

        _add_arrow(hasher, pa.array(part))
    else:
        _add_objects(hasher, part.to_numpy(dtype=object))


def _add_arrow(hasher: Hash, part: Any) -> None:
    """A block of an Arrow column: which are missing, then the values with those at zero."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(part, pa.ChunkedArray):
        part = part.combine_chunks()
        part = part.combine_chunks() if isinstance(part, pa.ChunkedArray) else part
    if isinstance(part, pa.ExtensionArray):
        part = part.storage
    kind = part.type
    if pa.types.is_dictionary(kind):
        return _add_arrow(hasher, part.dictionary_decode())
    if any(is_text(kind) for is_text in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        return _add_text(hasher, part)
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        part = part.view(pa.int32() if kind.bit_width == 32 else pa.int64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        values = np.empty(len(part), dtype=object)
        values[:] = part.to_pylist()
        return _add_values(hasher, values)
    missing = part.is_null().to_numpy(zero_copy_only=False)
    if missing.any() and not pa.types.is_floating(part.type):  # else they are NaN
        part = pc.fill_null(part, pa.scalar(False if pa.types.is_boolean(part.type) else 0, part.type))
    hasher.update(np.packbits(missing).data)
    return _add_array(hasher, part.to_numpy(zero_copy_only=False))


def _add_text(hasher: Hash, part: Any) -> None:
    """Strings: which are missing, their lengths, their bytes. The same from Arrow and from objects."""
    import pyarrow as pa
    import pyarrow.compute as pc

    hasher.update(b"s")
    hasher.update(np.packbits(part.is_null().to_numpy(zero_copy_only=False)).data)
    part = pc.fill_null(part.cast(pa.large_string()), "")
    offsets = np.frombuffer(part.buffers()[1], dtype="<i8", count=len(part) + 1 + part.offset)[part.offset :]
    hasher.update(np.diff(offsets).astype("<i8").data)
    if offsets[-1] > offsets[0]:
        hasher.update(memoryview(part.buffers()[2])[offsets[0] : offsets[-1]])


def _add_objects(hasher: Hash, values: np.ndarray[Any, Any]) -> None:
    import pyarrow as pa

    try:
        part = pa.array(values, from_pandas=True) if values.ndim == 1 else None
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError, ValueError):
        part = None  # of several types
    is_text = part is not None and (pa.types.is_string(part.type) or pa.types.is_large_string(part.type))
    # Arrow takes bytes among strings as text.
    if is_text and not any(type(value) is bytes for value in values):
        _add_text(hasher, part)
    else:
        _add_values(hasher, values)


def _add_values(hasher: Hash, values: np.ndarray[Any, Any]) -> None:
    hasher.update(b"o")
    for value in values.ravel(order="C"):
        hasher.update(_encoded(value))


def _add_sparse(hasher: Hash, X: Any) -> None:
    if X.format not in {"csr", "csc", "bsr", "coo", "dia"}:
        X = X.tocsr()
    _say(hasher, "sparse", X.format, X.shape, _dtype(X.dtype))
    for name in ("data", "indices", "indptr", "row", "col", "offsets"):
        part = getattr(X, name, None)
        if isinstance(part, np.ndarray):
            _say(hasher, name, part.shape)
            for start in range(0, len(part), ROWS * 16):
                block = part[start : start + ROWS * 16]
                _add_array(hasher, block if name == "data" else block.astype(np.int64))


def _add_array(hasher: Hash, array: np.ndarray[Any, Any]) -> None:
    if array.dtype.kind in "OT" and array.size:  # objects, and numpy's strings of any length
        rows = array.reshape(1) if array.ndim == 0 else array
        step = max(1, ROWS * len(rows) // rows.size)  # the same whatever the layout: blocks of objects are told apart
        for start in range(0, len(rows), step):
            _add_objects(hasher, rows[start : start + step].astype(object).ravel(order="C"))
        return
    for block in _blocks(array):
        if block.dtype.names:
            for name in block.dtype.names:
                _add_array(hasher, block[name])
        else:
            hasher.update(_canonical(block).view(np.uint8).data)


def _blocks(array: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """The values in C order, as flat arrays of at most about `BYTES`."""
    if array.size == 0:
        return
    if array.flags.c_contiguous or array.ndim < 2:
        flat = array.reshape(-1)
        step = max(1, BYTES // max(1, array.itemsize))
        for start in range(0, len(flat), step):
            yield np.ascontiguousarray(flat[start : start + step])
        return
    row = array.nbytes // len(array)
    if row > BYTES:
        for one in array:
            yield from _blocks(one)
        return
    step = max(1, BYTES // max(1, row))
    for start in range(0, len(array), step):
        yield np.ascontiguousarray(array[start : start + step]).reshape(-1)


def _canonical(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Little-endian, with one NaN."""
    kind = block.dtype.kind
    if block.dtype.itemsize == 0:  # empty strings
        return np.zeros(0, np.uint8)
    if kind in "fc" and block.dtype.itemsize > (8 if kind == "f" else 16):
        # Long doubles have bytes that mean nothing, and differ between machines: two doubles say the same.
        parts = block.view(block.real.dtype) if kind == "c" else block
        high = parts.astype("<f8")
        with np.errstate(invalid="ignore"):
            return _canonical(np.concatenate([high, (parts - high).astype("<f8")]))
    if not block.dtype.isnative or block.dtype.str.startswith(">"):
        block = block.astype(block.dtype.newbyteorder("<"))
    if kind == "c":
        block = block.view(block.real.dtype)
    if kind in "fc":
        missing = np.isnan(block)
        if missing.any():
            block = np.where(missing, block.dtype.type(np.nan), block)
    return block


def _dtype(dtype: np.dtype[Any]) -> str:
    return str(dtype.descr if dtype.names else dtype.str.lstrip("<>|="))


def _say(hasher: Hash, *facts: Any) -> None:
    text = json.dumps(facts, default=str).encode()
    hasher.update(len(text).to_bytes(8, "little") + text)


def _encoded(value: Any) -> bytes:
    """One value with its type and its length, so that no two run together."""
    kind, data = _kind_and_data(value)
    return f"{kind}:{len(data)}:".encode() + data


def _kind_and_data(value: Any) -> tuple[str, bytes]:
    if value is None or (isinstance(value, (float, np.floating)) and value != value):
        return "missing", b""
    for types, kind, data_of in PLAIN:
        if isinstance(value, types):
            return kind, data_of(value)
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if type(value).__name__ in {"NAType", "NaTType"}:
        return "missing", b""
    if isinstance(value, np.ndarray) or hasattr(value, "iloc"):
        return "array", training_digest(value).encode()
    if name.partition(".")[0] in {"datetime", "decimal", "fractions", "uuid", "numpy", "pandas", "pathlib"}:
        return name, str(value).encode()
    try:
        return name, pickle.dumps(value, protocol=4)
    except Exception as error:
        msg = f"a {name} of the training data has no digest: {type(error).__name__}: {error}"
        raise SaveError(msg, "Pass numbers, strings, dates, or arrays of them.") from error


PLAIN: tuple[tuple[Any, str, Callable[[Any], bytes]], ...] = (
    (str, "str", lambda value: value.encode("utf-8", "surrogatepass")),
    ((bool, np.bool_), "bool", lambda value: b"1" if value else b"0"),
    ((bytes, bytearray), "bytes", bytes),
    ((int, np.integer), "int", lambda value: str(int(value)).encode()),
    ((float, np.floating), "float", lambda value: float(value).hex().encode()),
    (Mapping, "mapping", lambda value: b"".join(sorted(_encoded(k) + _encoded(v) for k, v in value.items()))),
    ((set, frozenset), "set", lambda value: b"".join(sorted(map(_encoded, value)))),
    (list, "list", lambda value: b"".join(map(_encoded, value))),
    (tuple, "tuple", lambda value: b"".join(map(_encoded, value))),
)

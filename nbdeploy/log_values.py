"""What the log holds of a value: itself, a keyed hash of it, or its digest and a summary."""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import secrets
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd

from nbdeploy.home import check_name, folder, sync_folder
from nbdeploy.signature import Column, build_column, json_column

MAX_ELEMENTS = 1_000  # of a cell; a larger one is logged by its digest
MAX_TEXT = 64 << 10  # characters of a string; the same
TOLD = 200  # characters that a long string's digest keeps of it
HASH_DIGITS = 16


def logged_columns(columns: Sequence[Column]) -> list[Column]:
    """What the log holds of the columns: all but private ones, and of hashed ones their hashes."""
    # What was seen in training is none of the log's business; a categorical's dtype is made of its categories.
    return [
        Column(c.name, "string", "object", nullable=True, hashed=True)
        if c.hashed
        else replace(c, minimum=None, maximum=None, longest=None, categories=c.categories if c.kind == "category" else None)
        for c in columns
        if not c.private or c.hashed
    ]  # fmt: skip


# -- private values -----------------------------------------------------------------------------------------


def hash_key(name: str) -> bytes:
    """The secret of a deployment with which private values are hashed; made when there is none. Not in the log's folder.

    Raises
    ------
    OSError, NbdeployError
        The disk refuses.
    """
    path = folder("keys") / f"{check_name(name)}.key"
    try:
        return path.read_bytes()
    except FileNotFoundError:
        pass
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)  # whatever the umask was
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
        _link(temporary, path)
        sync_folder(path.parent)
    finally:
        os.unlink(temporary)
    return path.read_bytes()


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return  # another process was first, and its key is the one


def hashed(key: bytes, column: Column, values: Sequence[Any]) -> list[str | None]:
    """Per value 16 hexadecimal digits of its HMAC-SHA256: equal values of a column give equal ones; nulls stay null."""
    if column.kind == "datetime" or column.shape:  # one moment has many texts
        values = json_column(column, build_column(column, values))
    return [None if value is None or value != value else _hash(key, column, value) for value in values]


def _hash(key: bytes, column: Column, value: Any) -> str:
    text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY) if not _is_number(value) else _digits(column, value)
    return hmac.digest(key, column.name.encode() + b"\0" + text, "sha256").hex()[:HASH_DIGITS]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _digits(column: Column, value: Any) -> bytes:
    """A number as the column has it, in one spelling: JSON knows no types, and 3, 3.0 and -0.0 are numbers of it."""
    dtype = None if column.shape else _float_type(column.category_dtype if column.kind == "category" else column.dtype)
    if dtype is not None:
        with np.errstate(over="ignore"):
            value = float(dtype.type(value))
    if isinstance(value, (float, np.floating)):
        value = float(value)
        return repr(value).encode() if not value.is_integer() else str(int(value)).encode()
    return str(int(value)).encode()


@cache
def _float_type(name: str) -> np.dtype[Any] | None:
    """NumPy's type of a column's floats; None where it has none."""
    dtype = pd.api.types.pandas_dtype(name or "object")
    plain = dtype if isinstance(dtype, np.dtype) else getattr(dtype, "numpy_dtype", None)
    return plain if isinstance(plain, np.dtype) and plain.kind == "f" else None


# -- large values -------------------------------------------------------------------------------------------


def may_be_large(column: Column) -> bool:
    """Whether a cell may have more than 1,000 elements, by its shape alone."""
    return bool(column.shape) and (
        column.cells == "sparse" or None in column.shape or math.prod(n or 0 for n in column.shape) > MAX_ELEMENTS
    )


def summarised(column: Column | None, values: Sequence[Any]) -> Sequence[Any]:
    """`values` with the digest of each that is large in its place."""
    if column is None or not column.shape:
        return [_text_digest(v) if isinstance(v, str) and len(v) > MAX_TEXT else v for v in values]
    digest = _sparse_digest if column.cells == "sparse" else _array_digest
    return [v if v is None or is_digest(v) else digest(column, v) for v in values]


def is_digest(value: Any) -> bool:
    """Whether `value` stands in the place of a large cell."""
    return isinstance(value, dict) and "sha256" in value


def _text_digest(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"sha256:{digest} ({len(text)} characters) {text[:TOLD]}…"


def _array_digest(column: Column, value: Any) -> Any:
    texts = column.kind == "string"
    array = np.asarray(value, dtype=object if texts else column.dtype)
    if array.size <= MAX_ELEMENTS:
        return value
    if texts:
        content = orjson.dumps(array.ravel().tolist())
        return {"sha256": hashlib.sha256(content).hexdigest(), "dtype": "string", "shape": list(array.shape)}
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    digest = hashlib.sha256(array.data).hexdigest()
    return {"sha256": digest, "dtype": column.dtype, "shape": list(array.shape), **_summary(array)}


def _sparse_digest(column: Column, value: Any) -> Any:
    row = value if hasattr(value, "indices") else build_column(column, [value]).iloc[0]
    if row.nnz <= MAX_ELEMENTS:
        return value if not hasattr(value, "indices") else json_column(column, pd.Series([value], dtype=object))[0]
    row = row.copy()
    row.sort_indices()
    content = row.indices.astype("<i4").tobytes() + row.data.astype(row.dtype.newbyteorder("<")).tobytes()
    facts = {"sha256": hashlib.sha256(content).hexdigest(), "dtype": column.dtype, "shape": list(column.shape)}
    return {**facts, "stored": int(row.nnz), **_summary(row.data)}


def _summary(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    numbers = array[np.isfinite(array)] if array.dtype.kind == "f" else array
    if not numbers.size:
        return {"min": None, "max": None, "mean": None}
    least, most = numbers.min().item(), numbers.max().item()
    return {"min": least, "max": most, "mean": float(numbers.mean(dtype="float64"))}

"""Tensors of the Open Inference Protocol, as JSON or as bytes, and the columns and answers that they are.

Every size that a request claims is compared with the bytes that came before anything is made of it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd

from nbdeploy import answers
from nbdeploy.exchange import Answer, dump
from nbdeploy.protocol_parts import (
    check_columns,
    dtype_of,
    is_matrix,
    only_keys,
    proba_names,
    problems_of,
    refuse_many,
    reject,
)
from nbdeploy.signature import MAX_PROBLEMS, Column, Signature, problem, refusal
from nbdeploy.signature_values import kind_of, short

BYTES = "BYTES"
DATATYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
    BYTES: "string",
}  # fmt: skip
DATATYPE_OF = {dtype: datatype for datatype, dtype in DATATYPES.items()}
MAX_RANK = 32
FEW_VALUES = 4_096  # so many go as lists, in one model call with others; more stay arrays
_CONTENT = ("np", "pd", "str")  # MLServer's words for what a tensor is anyhow


@dataclass(frozen=True)
class Tensor:
    """One named array; of strings, and of what came as JSON, the values are a flat list in row-major order."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: np.ndarray[Any, Any] | list[Any]


# -- in: requests to tensors --------------------------------------------------------------------------------


def read_tensors(inputs: Any, rest: memoryview) -> list[Tensor]:
    """The tensors of a request.

    Parameters
    ----------
    inputs : list of dict
        As the JSON has them.
    rest : memoryview
        The bytes behind the JSON, in the order of `inputs`.

    Raises
    ------
    Refused
        One is not what it claims to be.
    """
    if not isinstance(inputs, list) or not inputs:
        reject("'inputs' as a list of at least one tensor", _kind(inputs))
    found = []
    for facts in inputs:
        if not isinstance(facts, dict):
            reject("each of 'inputs' as an object", _kind(facts))
        tensor, used = _tensor(facts, rest)
        found.append(tensor)
        rest = rest[used:]
    if len(rest):
        reject("as many bytes behind the JSON as the tensors' 'binary_data_size' say", f"{len(rest)} more")
    return found


def _tensor(facts: Mapping[str, Any], rest: memoryview) -> tuple[Tensor, int]:
    name, datatype, shape = facts.get("name"), facts.get("datatype"), facts.get("shape")
    if not isinstance(name, str):
        reject("each of 'inputs' with a 'name'", _kind(name))
    only_keys(facts, ("name", "datatype", "shape", "parameters", "data"))
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        got = short(datatype) if isinstance(datatype, str) else _kind(datatype)
        hint = "Send it as FP32." if datatype == "BF16" else ""
        reject(f"a 'datatype' among {', '.join(DATATYPES)}", got, hint, column=short(name))
    sizes = _sizes(name, shape)
    size = _binary_size(name, facts.get("parameters"))
    if size is None:
        if "data" not in facts:
            reject("'data', or the parameter 'binary_data_size'", "neither", column=short(name))
        return Tensor(name, datatype, sizes, _from_json(name, datatype, sizes, facts["data"])), 0
    if "data" in facts:
        reject("either 'data' or the parameter 'binary_data_size'", "both", column=short(name))
    if size > len(rest):
        reject(f"{size} bytes behind the JSON", f"{len(rest)}", column=short(name))
    read = _texts if datatype == BYTES else _numbers
    return Tensor(name, datatype, sizes, read(name, datatype, sizes, rest[:size])), size


def _sizes(name: str, shape: Any) -> tuple[int, ...]:
    sizes = shape if isinstance(shape, list) and len(shape) <= MAX_RANK else []
    if not sizes or not all(type(size) is int and 0 < size < 2**31 for size in sizes):
        reject(f"a 'shape' of 1 to {MAX_RANK} sizes from 1", _kind(shape), column=short(name))
    return tuple(sizes)


def _binary_size(name: str, parameters: Any) -> int | None:
    if parameters is None:
        return None
    if not isinstance(parameters, dict):
        reject("'parameters' as an object", _kind(parameters), column=short(name))
    if any(key.startswith("shared_memory") for key in parameters):
        reject("the tensor in the body", "shared memory", column=short(name))
    if (content := parameters.get("content_type", "np")) not in _CONTENT:
        reject(f"a 'content_type' among {', '.join(_CONTENT)}", _kind(content), column=short(name))
    size = parameters.get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        reject("'binary_data_size' as a number of bytes", _kind(size), column=short(name))
    return size


def _numbers(name: str, datatype: str, shape: tuple[int, ...], data: memoryview) -> np.ndarray[Any, Any]:
    dtype = np.dtype(DATATYPES[datatype]).newbyteorder("<")
    if math.prod(shape) * dtype.itemsize != len(data):
        got = f"{len(data)} bytes"
        reject(f"{math.prod(shape) * dtype.itemsize} bytes for its shape and datatype", got, column=short(name))
    if datatype == "BOOL" and np.frombuffer(data, dtype="uint8").max() > 1:
        reject("0 or 1 for each boolean", "another byte", column=short(name))
    values: np.ndarray[Any, Any] = np.frombuffer(data, dtype=dtype).reshape(shape)
    return values


def _texts(name: str, _datatype: str, shape: tuple[int, ...], data: memoryview) -> list[Any]:
    count, size, place = math.prod(shape), len(data), 0
    texts: list[Any] = []
    if 4 * count <= size:
        held = bytes(data)
        try:
            while place < size and len(texts) < count:
                end = place + 4 + struct.unpack_from("<I", held, place)[0]
                texts.append(held[place + 4 : end].decode())
                place = end
        except struct.error:
            place = size + 1
        except UnicodeDecodeError:
            reject("strings in UTF-8", "other bytes", column=short(name))
    if place != size or len(texts) != count:
        expected = f"{count} strings, each behind its length in 4 bytes"
        reject(expected, f"{size} bytes that are not", column=short(name))
    return texts


def _from_json(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> list[Any]:
    if not isinstance(data, list):
        reject("'data' as a list", _kind(data), column=short(name))
    flat = data
    if isinstance(data[0] if data else None, list):  # nested: as its shape says, all the way
        level: list[Any] = [data]
        for size in shape:
            if not all(isinstance(part, list) and len(part) == size for part in level):
                reject("'data' nested as its shape says, or flat", "another nesting", column=short(name))
            level = [*chain.from_iterable(level)]
        flat = level
    if len(flat) != math.prod(shape):
        reject(f"{math.prod(shape)} values for its shape", f"{len(flat)}", column=short(name))
    if not _agree(datatype, flat):
        reject(f"values of {datatype}, or null", "others", column=short(name))
    return flat


def _agree(datatype: str, values: list[Any]) -> bool:
    """Whether each of `values` is one of `datatype`, or null."""
    types: set[type] = set(map(type, values))
    held = [value for value in values if value is not None] if type(None) in types else values
    types -= {type(None)}
    if datatype in (BYTES, "BOOL"):
        return types <= {str if datatype == BYTES else bool}
    dtype = np.dtype(DATATYPES[datatype])
    if dtype.kind == "f":
        largest = float(np.finfo(dtype).max)
        # NaN and Infinity have a place in every float; the column says whether they may stand there.
        return types <= {int, float} and not any(largest < abs(value) < math.inf for value in held)
    info = np.iinfo(dtype)
    return types <= {int} and (not held or bool(info.min <= min(held) and max(held) <= info.max))


# -- in: tensors to columns ---------------------------------------------------------------------------------


def columns_of(tensors: Sequence[Tensor], signature: Signature) -> tuple[dict[str, list[Any]] | None, Any, int]:
    """What a `Question` takes: columns or a frame, one of them None, and the number of rows.

    Raises
    ------
    InputError
        The tensors do not fit the signature.
    """
    if is_matrix(signature) and len(tensors) == 1 and len(tensors[0].shape) == 2:
        tensors = _split(tensors[0], signature)
    if problems := signature.name_problems([tensor.name for tensor in tensors]):
        raise refusal(problems)
    given = {tensor.name: tensor for tensor in tensors}
    rows = given[signature.columns[0].name].shape[0]
    refuse_many(rows)
    for column in signature.columns:
        problems += _shape_problems(column, given[column.name], rows)
    if problems:
        raise refusal(problems[:MAX_PROBLEMS])
    arrays = any(isinstance(tensor.data, np.ndarray) for tensor in tensors)
    if arrays and sum(math.prod(tensor.shape) for tensor in tensors) > FEW_VALUES:
        return None, _frame(given, signature, rows), rows
    return check_columns(signature, {c.name: _cells(c, given[c.name], rows) for c in signature.columns}), None, rows


def _frame(given: Mapping[str, Tensor], signature: Signature, rows: int) -> pd.DataFrame:
    series: dict[str | int, pd.Series] = {}
    problems: list[dict[str, Any]] = []
    for column in signature.columns:
        held = _fast(column, given[column.name], rows)
        if held is None:
            cells = _cells(column, given[column.name], rows)
            problems += problems_of(column, cells, MAX_PROBLEMS - len(problems))
            if len(problems) >= MAX_PROBLEMS:
                break
            if not problems:
                held = Signature((column,)).build({column.name: cells})[column.label]
        series[column.label] = held
    if problems:
        raise refusal(problems)
    return pd.DataFrame(series, columns=[c.label for c in signature.columns])


def _split(tensor: Tensor, signature: Signature) -> list[Tensor]:
    """The columns of an array whose columns nobody named."""
    rows, width = tensor.shape
    if width != len(signature.columns):
        expected = f"a tensor of shape [-1, {len(signature.columns)}]"
        raise refusal([problem(None, short(tensor.name), expected, f"the shape [{rows}, {width}]")])
    values = tensor.data
    return [
        Tensor(name, tensor.datatype, (rows,), values[:, i] if isinstance(values, np.ndarray) else values[i::width])
        for i, name in enumerate(signature.names)
    ]


def _shape_problems(column: Column, tensor: Tensor, rows: int) -> list[dict[str, Any]]:
    dtype = dtype_of(column)
    numeric = dtype not in ("string", "bool")
    fits = DATATYPES[tensor.datatype] not in ("string", "bool") if numeric else DATATYPES[tensor.datatype] == dtype
    if not fits:
        wanted = f"a tensor of {DATATYPE_OF[dtype]}" + (", or of other numbers" if numeric else "")
        return [problem(None, column.name, wanted, tensor.datatype)]
    inner = tensor.shape[1:]
    same = len(inner) == len(column.shape) and all(
        want in (None, got) for want, got in zip(column.shape, inner, strict=True)
    )
    if tensor.shape[0] == rows and (same or (not column.shape and inner == (1,))):
        return []
    sizes = ", ".join(map(str, (rows, *(-1 if size is None else size for size in column.shape))))
    return [problem(None, column.name, f"a tensor of shape [{sizes}]", f"the shape {[*tensor.shape]}")]


def _cells(column: Column, tensor: Tensor, rows: int) -> list[Any]:
    """One JSON value per row."""
    values = tensor.data
    if isinstance(values, np.ndarray):
        listed: list[Any] = (values if column.shape else values.reshape(rows)).tolist()
        return listed
    for size in reversed(tensor.shape[1:] if column.shape else ()):
        values = [values[i : i + size] for i in range(0, len(values), size)]
    return values


def _fast(column: Column, tensor: Tensor, rows: int) -> pd.Series | None:
    """The cells without a Python object per number; None where one of them may not stand there, or is no number."""
    values = tensor.data
    plain = isinstance(pd.api.types.pandas_dtype(column.dtype), np.dtype)
    if not isinstance(values, np.ndarray) or not plain or column.cells == "sparse":
        return None
    if column.kind not in ("int", "float", "bool"):
        return None
    cast = _cast(column, values)
    if cast is None:
        return None
    if not column.shape:
        return pd.Series(cast.reshape(rows))
    held = np.empty(rows, dtype=object)
    for row in range(rows):
        held[row] = cast[row].tolist() if column.cells == "list" else cast[row]
    return pd.Series(held, dtype=object)


def _cast(column: Column, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    dtype = np.dtype(column.dtype)
    if column.kind == "bool":
        return values.astype(dtype)
    if column.kind == "int":
        if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.floor(values)).all()):
            return None
        info = np.iinfo(dtype)
        if int(values.min()) < int(info.min) or int(values.max()) > int(info.max):
            return None
        return values.astype(dtype)
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    finite = np.isfinite(values)
    if not np.isfinite(cast[finite]).all() or (column.finite and np.isinf(values).any()):
        return None
    missing = np.isnan(values).any()
    return None if missing and (column.finite if column.shape else not column.nullable) else cast


# -- out ----------------------------------------------------------------------------------------------------


def outputs_of(answer: Answer, signature: Signature) -> dict[str, Tensor]:
    """The outputs of an answer by name, and the probabilities where they were asked for."""
    if answer.raw is not None:
        named = answer.raw if isinstance(answer.raw, dict) else {"": answer.raw}
    else:
        rows = answer.values  # noqa: PD011  not pandas
        named = {o.name: _array([row[o.name] for row in rows] if o.name else rows, o) for o in answer.outputs}
    mixed = {output.name for output in answer.outputs if output.dtype == "object"}
    found = {
        name or answers.PREDICTION: array.astype(object) if name in mixed else array for name, array in named.items()
    }
    scores = answer.raw_scores
    if scores is None:
        scores = answers.scores_of(answer.scores, several=signature.several)
    if scores is not None:
        blocks = scores if isinstance(scores, list) else [scores]
        found |= {name: block for (name, _), block in zip(proba_names(signature), blocks, strict=True)}
    return {name: _output(name, array) for name, array in found.items()}


def encode(tensor: Tensor) -> bytes:
    """The values as the bytes behind the JSON. A missing string is an empty one."""
    if isinstance(tensor.data, np.ndarray):
        return tensor.data.astype(tensor.data.dtype.newbyteorder("<"), copy=False).tobytes()
    parts = [("" if value is None else value).encode("utf-8", "replace") for value in tensor.data]
    return b"".join(chain.from_iterable((struct.pack("<I", len(part)), part) for part in parts))


def listed(tensor: Tensor) -> list[Any]:
    """The values as the JSON's flat list. Not finite is null."""
    return tensor.data.ravel().tolist() if isinstance(tensor.data, np.ndarray) else tensor.data


def _array(rows: list[Any], output: answers.Output) -> np.ndarray[Any, Any]:
    """JSON rows as an array: of the output's dtype where they are numbers of its kind, else an object per row."""
    held = np.empty(len(rows), dtype=object)
    for i, row in enumerate(rows):
        held[i] = row
    if None in output.shape or output.dtype == "object":
        return held
    if output.dtype == answers.STRING:
        return np.asarray(rows, dtype=object) if output.shape else held
    dtype = np.dtype(output.dtype)
    try:
        # Among floats, None is NaN.
        array: np.ndarray[Any, Any] = np.asarray(rows, dtype="float64" if dtype.kind == "f" else None)
    except (ValueError, TypeError):  # the model says something else than it did when it was saved
        return held
    if array.dtype.kind == dtype.kind or array.dtype.kind + dtype.kind in ("iu", "ui"):
        return array.astype(dtype)
    return array if array.dtype.kind in "biuf" else held


def _output(name: str, array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype("float64")
    if array.dtype.kind in "biuf":
        return Tensor(name, DATATYPE_OF[array.dtype.newbyteorder("=").name], array.shape, array)
    if array.dtype.kind == "M":
        texts = np.datetime_as_string(array).astype(object)
        texts[np.isnat(array)] = None
        array = texts
    if array.dtype.kind == "U" or all(isinstance(value, (str, type(None))) for value in array.flat):
        return Tensor(name, BYTES, array.shape, array.ravel().tolist())
    # Rows of several kinds or sizes have no tensor: what is no text is its JSON.
    return Tensor(name, BYTES, (len(array),), [_json_text(row) for row in array])


def _json_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return dump(answers.nested(value)).decode()


# -- helpers ------------------------------------------------------------------------------------------------


def _kind(value: Any) -> str:
    # Without the value, which may be of a private column.
    return kind_of(value)

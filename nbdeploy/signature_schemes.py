"""A signature in the languages of others: JSON Schema, and the signature of an MLflow model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nbdeploy.answers import STRING, Output
from nbdeploy.errors import SaveError
from nbdeploy.signature import Column, Signature, seen

OWN = "x-nbdeploy"  # what JSON Schema has no word for: a column's dtype, its container, its missing value
_TYPES = {"int": "integer", "float": "number", "bool": "boolean"}
_KINDS = {"integer": "int", "number": "float", "boolean": "bool", "string": "string"}
_DTYPES = {"int": "int64", "float": "float64", "bool": "bool", "string": "object", "datetime": "datetime64[ns]",
           "date": "object"}  # fmt: skip
_NULLABLE = {"int": "Int64", "bool": "boolean"}  # NumPy's own have no missing value


def json_schema(signature: Signature) -> dict[str, Any]:
    """JSON Schema of one record. Ranges and categories are notes: what training saw, not what is refused."""
    shown = signature.shown()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {column.name: _property(column) for column in shown.columns},
        "required": signature.names,
        "additionalProperties": False,
        "example": dict(shown.example or {}),
    }


def from_json_schema(schema: Mapping[str, Any]) -> Signature:
    """The signature of records that fit a JSON Schema of an object with plain or array properties.

    What `json_schema` wrote comes back with its dtypes. Of another's schema, types, nulls, formats, enums, bounds,
    lengths and the sizes of arrays are read; a property that is not required may be null.

    Raises
    ------
    SaveError
        It describes no object, or a property that no column can hold.
    """
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, Mapping) or not properties:
        msg = "this JSON Schema does not describe an object with properties"
        raise SaveError(msg, "A record is an object with one property per column.")
    required = schema.get("required", [])
    columns = tuple(_from_property(name, facts, name in required) for name, facts in properties.items())
    example = schema.get("example") or next(iter(schema.get("examples", [])), None)
    return Signature(columns=columns, example=example or None)


def to_mlflow(signature: Signature) -> dict[str, Any]:
    """The signature as MLflow's ``ModelSignature.from_dict`` takes it.

    MLflow knows fewer types: small integers become ``integer`` or ``long``, categories strings, dates datetimes. An
    array without names is a tensor; its values cannot be null.
    """
    return {
        "inputs": json.dumps(_mlflow_inputs(signature)),
        "outputs": json.dumps(_mlflow_outputs(signature.outputs)),
        "params": None,
    }


def from_mlflow(found: Any) -> Signature:
    """The signature of an MLflow model, from its ``ModelSignature`` or that as a dict.

    Raises
    ------
    SaveError
        It has no inputs, or one that no column can hold.
    """
    facts = found.to_dict() if hasattr(found, "to_dict") else found
    inputs = _parsed(facts.get("inputs"))
    if not inputs:
        msg = "this MLflow signature has no inputs"
        raise SaveError(msg, "Log the model with an input example, or pass X=.")
    tensors = [each for each in inputs if each.get("type") == "tensor"]
    if len(tensors) == 1 and not tensors[0].get("name"):
        columns = _tensor_columns(tensors[0]["tensor-spec"])
        container = "array"
    else:
        columns = tuple(_from_mlflow(each, i) for i, each in enumerate(inputs))
        container = "dict" if tensors else "frame"
    outputs = tuple(_mlflow_to_output(each) for each in _parsed(facts.get("outputs")) or [])
    return Signature(columns=columns, container=container, outputs=outputs or (Output(),))


# -- JSON Schema --------------------------------------------------------------------------------------------


def _property(column: Column) -> dict[str, Any]:
    basic = _TYPES.get(column.kind, "string")
    if column.kind == "category" and column.categories and not isinstance(column.categories[0], str):
        basic = "boolean" if isinstance(column.categories[0], bool) else "number"
    # A NaN in an array is a null in JSON.
    schema: dict[str, Any] = {"type": [basic, "null"] if column.shape and not column.finite else basic}
    if column.kind in ("datetime", "date"):
        schema["format"] = "date-time" if column.kind == "datetime" else "date"
    for size in reversed(column.shape):
        bounds = {} if size is None else {"minItems": size, "maxItems": size}
        schema = {"type": "array", "items": schema, **bounds}
    if column.cells == "sparse":
        lists = {"indices": {"type": "array"}, "values": {"type": "array"}}
        sparse = {"type": "object", "properties": lists, "required": [*lists], "additionalProperties": False}
        schema = {"anyOf": [schema, sparse]}
    elif column.nullable:
        schema["type"] = [schema["type"], "null"]
    if told := seen(column):
        schema["description"] = f"Seen in training: {told}"
    kept = {"kind": column.kind, "dtype": column.dtype, "cells": column.cells, "missing": column.missing,
            "ordered": column.ordered, "finite": column.finite, "private": column.private,
            "integer_label": column.integer_label, "minimum": column.minimum, "maximum": column.maximum,
            "longest": column.longest, "category_dtype": column.category_dtype,
            "categories": None if column.categories is None else list(column.categories)}  # fmt: skip
    return {**schema, OWN: kept}


def _from_property(name: str, facts: Any, required: bool) -> Column:
    if not isinstance(facts, Mapping):
        raise _unfit(name, facts)
    inner, nullable = _without_null(name, facts)
    nullable = nullable or not required
    shape: list[int | None] = []
    while inner.get("type") == "array":
        low, high = inner.get("minItems"), inner.get("maxItems")
        shape.append(low if isinstance(low, int) and low == high else None)
        items = inner.get("items")
        if not isinstance(items, Mapping):
            raise _unfit(name, facts)
        inner, _ = _without_null(name, items)
    own = facts.get(OWN)
    if isinstance(own, Mapping):
        kept = {**own, "categories": None if own.get("categories") is None else tuple(own["categories"])}
        try:
            return Column(name, nullable=nullable, shape=tuple(shape), **kept)
        except TypeError as error:
            raise _unfit(name, facts) from error
    kind = _kind_of(name, inner)
    words = inner.get("enum")
    dtype = str(np.dtype(_DTYPES[kind])) if shape or not nullable else _NULLABLE.get(kind, _DTYPES[kind])
    return Column(
        name, kind, dtype, nullable, shape=tuple(shape), cells="list" if shape else "value",  # type: ignore[arg-type]
        minimum=inner.get("minimum"), maximum=inner.get("maximum"), longest=inner.get("maxLength"),
        categories=tuple(word for word in words if word is not None) if words and kind == "string" else None,
        missing="None" if nullable and dtype == "object" and not shape else "",
    )  # fmt: skip


def _without_null(name: str, facts: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """A property's schema without the null that it may be, and whether it may."""
    for word in ("anyOf", "oneOf"):
        if choices := facts.get(word):
            if not isinstance(choices, list) or not all(isinstance(choice, Mapping) for choice in choices):
                raise _unfit(name, facts)
            others = [choice for choice in choices if choice.get("type") != "null"]
            if OWN in facts and others:  # a sparse row: a list, or indices and values
                return others[0], len(others) < len(choices)
            if len(others) != 1:
                raise _unfit(name, facts)
            return others[0], len(others) < len(choices)
    kinds = facts.get("type")
    if isinstance(kinds, Sequence) and not isinstance(kinds, str):
        others = [kind for kind in kinds if kind != "null"]
        if len(others) != 1:
            raise _unfit(name, facts)
        return {**facts, "type": others[0]}, "null" in kinds
    if kinds is None and facts.get("enum"):
        return {**facts, "type": "string"}, None in facts["enum"]
    return facts, bool(facts.get("nullable"))  # as OpenAPI 3.0 has it


def _kind_of(name: str, facts: Mapping[str, Any]) -> str:
    if facts.get("type") == "string" and facts.get("format") in ("date", "date-time"):
        return "date" if facts["format"] == "date" else "datetime"
    kind = _KINDS.get(str(facts.get("type")))
    if kind is None:
        raise _unfit(name, facts)
    return kind


def _unfit(name: str, facts: Any) -> SaveError:
    return SaveError(
        f"the property {name!r} is none that a column can hold: {json.dumps(facts, default=str):.120}",
        "Use integer, number, boolean, string, or arrays of these, each with or without null.",
    )


# -- MLflow -------------------------------------------------------------------------------------------------

_MLFLOW_KINDS = {"boolean": ("bool", "bool"), "integer": ("int", "int32"), "long": ("int", "int64"),
                 "float": ("float", "float32"), "double": ("float", "float64"), "string": ("string", "object"),
                 "datetime": ("datetime", "datetime64[ns]")}  # fmt: skip


def _mlflow_inputs(signature: Signature) -> list[dict[str, Any]]:
    columns = signature.columns
    if signature.container in ("array", "vector", "sparse"):
        first = columns[0]
        shape = [-1, *(-1 if size is None else size for size in first.shape)]
        if not first.shape and signature.container == "array":
            shape = [-1, len(columns)]
        dtype = signature.detail if not first.shape and signature.detail else first.dtype
        return [_tensor(dtype, shape)]
    if signature.container == "dict":
        return [_tensor(c.dtype, [-1, *(-1 if s is None else s for s in c.shape)], c.name) for c in columns]
    return [{**_mlflow_type(c), "name": c.name, "required": not c.nullable} for c in columns]


def _tensor(dtype: str, shape: list[int], name: str = "") -> dict[str, Any]:
    kind = np.dtype(dtype)
    spec = {"dtype": "str" if kind.kind in "OU" else str(kind), "shape": shape}
    return {"type": "tensor", "tensor-spec": spec, **({"name": name} if name else {})}


def _mlflow_type(column: Column) -> dict[str, Any]:
    held: dict[str, Any] = {"type": _mlflow_word(column)}
    for _ in column.shape:
        held = {"type": "array", "items": held}
    return held


def _mlflow_word(column: Column) -> str:
    if column.kind == "int":
        return "integer" if str(column.dtype).lower().lstrip("u") in ("int8", "int16", "int32") else "long"
    if column.kind == "float":
        return "float" if "32" in column.dtype or "16" in column.dtype else "double"
    if column.kind == "category" and column.categories and not isinstance(column.categories[0], str):
        return "boolean" if isinstance(column.categories[0], bool) else "double"
    return {"bool": "boolean", "datetime": "datetime", "date": "datetime"}.get(column.kind, "string")


def _mlflow_outputs(outputs: Sequence[Output]) -> list[dict[str, Any]]:
    if all(output.dtype in ("object", STRING) and not output.shape for output in outputs):
        return [{"type": "string", "required": True, **({"name": o.name} if o.name else {})} for o in outputs]
    # MLflow has either columns or tensors, never both.
    shapes = [[-1, *(-1 if size is None else size for size in output.shape)] for output in outputs]
    return [_tensor(_numpy_name(o.dtype), shape, o.name) for o, shape in zip(outputs, shapes, strict=True)]


def _numpy_name(dtype: str) -> str:
    return "object" if dtype == STRING else dtype


def _parsed(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _from_mlflow(facts: Mapping[str, Any], place: int) -> Column:
    name = str(facts.get("name") or f"x{place}")
    if facts.get("type") == "tensor":
        spec = facts["tensor-spec"]
        (column,) = _tensor_columns({**spec, "shape": [-1, 1, *spec["shape"][1:]]}, single=name)
        return Column(
            name, column.kind, column.dtype, shape=column.shape[1:], cells="array" if column.shape[1:] else "value"
        )
    nullable = not facts.get("required", True)
    inner = facts
    shape: tuple[int | None, ...] = ()
    while inner.get("type") == "array":
        inner, shape = inner["items"], (*shape, None)
    word = str(inner.get("type"))
    if word not in _MLFLOW_KINDS:
        msg = f"the input {name!r} of this MLflow signature is a {word}"
        raise SaveError(msg, "A column holds numbers, booleans, strings, datetimes, or lists of these.")
    kind, dtype = _MLFLOW_KINDS[word]
    dtype = _NULLABLE.get(kind, dtype) if nullable and not shape else dtype
    return Column(name, kind, dtype, nullable, shape=shape, cells="list" if shape else "value")  # type: ignore[arg-type]


def _tensor_columns(spec: Mapping[str, Any], single: str = "") -> tuple[Column, ...]:
    dtype = np.dtype("O" if spec["dtype"] in ("str", "object") else spec["dtype"])
    kind: Any = {"b": "bool", "i": "int", "u": "int", "f": "float", "M": "datetime", "U": "string", "O": "string"}.get(
        dtype.kind
    )
    if kind is None:
        msg = f"an input of this MLflow signature is a tensor of {dtype}"
        raise SaveError(msg, "A column holds numbers, booleans, strings, datetimes, or lists of these.")
    inner = tuple(None if size == -1 else int(size) for size in spec["shape"][1:])
    if len(inner) == 1 and inner[0] is not None and not single:
        return tuple(Column(f"x{i}", kind, str(dtype)) for i in range(inner[0]))
    return (Column(single or "x", kind, str(dtype), shape=inner, cells="array" if inner else "value"),)


def _mlflow_to_output(facts: Mapping[str, Any]) -> Output:
    name = str(facts.get("name") or "")
    if facts.get("type") == "tensor":
        spec = facts["tensor-spec"]
        textual = spec["dtype"] in ("str", "object")
        shape = tuple(None if size == -1 else int(size) for size in spec["shape"][1:])
        return Output(name, STRING if textual else str(spec["dtype"]), shape)
    kind = _MLFLOW_KINDS.get(str(facts.get("type")))
    return Output(name, "object" if kind is None else STRING if kind[0] == "string" else kind[1])

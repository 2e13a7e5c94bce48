"""The OpenAPI document of a deployment: every route of every protocol, with the columns of its model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nbdeploy.answers import STRING, Output
from nbdeploy.exchange import JSON, Served
from nbdeploy.protocol_parts import input_slots, is_matrix, version_number
from nbdeploy.signature import UNNAMED, Column, Signature
from nbdeploy.signature_schemes import OWN, json_schema
from nbdeploy.tensor_body import DATATYPE_OF

ARROW = "application/vnd.apache.arrow.stream"
OCTETS = "application/octet-stream"
BEARER = "bearer"
_TEXT = {"text/plain": {"schema": {"type": "string"}}}
_ERRORS = {
    400: "The body cannot be read: it is not JSON, nested too deeply, or not in the form of this protocol",
    401: "The token is missing or wrong",
    403: "A web page of another site may not call this service, or nobody may choose a version",
    404: "No such version is served",
    405: "This route has another method; Allow names it",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is of another media type, or compressed",
    421: "The service is not called by this Host",
    422: "The body can be read and does not fit the model's signature",
    431: "The headers are too large",
    500: "The model failed on rows that fit its signature",
    501: "What this needs is not installed where the service runs",
    503: "Too much is waiting, or the answer cannot be logged",
    504: "No answer in time",
}
_RETRY = {
    "Retry-After": {"description": "Seconds after which to ask again.", "schema": {"type": "integer", "minimum": 1}}
}
_CHALLENGE = {"WWW-Authenticate": {"description": "Always Bearer.", "schema": {"type": "string"}}}
_ALLOW = {"Allow": {"description": "The methods of this route.", "schema": {"type": "string"}}}
_LOCAL = r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?)?$"
# Of one deployment several versions may answer.
_VERSION = {
    "name": "version", "in": "query", "required": False, "schema": {"type": "string", "pattern": "^v[1-9][0-9]{0,3}$"},
    "description": "Which of the versions that are served answers, where the deployment lets requests choose.",
}  # fmt: skip
_BODIES = (400, 408, 413, 415, 422, 500, 503, 504)
_ALWAYS = (403, 404, 405, 421, 431)


def openapi(served: Served, *, token: bool = False) -> dict[str, Any]:
    """The OpenAPI 3.1 document of all that is answered.

    What is refused is constrained: types, nulls, the bounds of dtypes, sizes of arrays, names. What is served although
    training never saw it is told: ranges in descriptions, categories among examples. Of private columns there is only
    the name and the type. Examples are a real row.

    Parameters
    ----------
    token : bool
        Whether a request needs a token.
    """
    signature = served.signature
    columns = len(signature.columns)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": served.name,
            "version": served.version,
            "description": f"Predicts {signature.target or 'one value'} ({signature.task}) from {columns} columns.",
        },
        "paths": {},
        "components": {"schemas": _schemas(served), "parameters": {"version": _VERSION}},
    }
    if token:
        document["components"]["securitySchemes"] = {BEARER: {"type": "http", "scheme": "bearer"}}
    for method, path, operation, is_open in _operations(served):
        if token and not is_open:
            operation["security"] = [{BEARER: []}]
            operation["responses"]["401"] = {**_refused(401, "Refusal"), "headers": _CHALLENGE}
        operation["responses"] = dict(sorted(operation["responses"].items()))
        operation["parameters"] = [*operation.get("parameters", ()), {"$ref": "#/components/parameters/version"}]
        document["paths"].setdefault(path, {})[method] = operation
    return document


def examples(served: Served) -> dict[str, tuple[str, dict[str, Any]]]:
    """Per protocol a path and the body that asks for the example row there; no entry where a protocol cannot."""
    row = dict(served.signature.shown().example or {})
    if not row:
        return {}
    split = {"columns": list(row), "data": [list(row.values())]}
    found: dict[str, tuple[str, dict[str, Any]]] = {
        "nbdeploy": ("/predict", row),
        "MLflow": ("/invocations", {"dataframe_split": split}),
        "Open Inference Protocol": (f"/v2/models/{served.name}/infer", {"inputs": _tensors(served.signature, row)}),
        "TensorFlow Serving": (f"/v1/models/{served.name}:predict", {"instances": [row]}),
        "BentoML": ("/bentoml/predict", {"rows": [row]}),
    }
    if any(column.cells == "sparse" for column in served.signature.columns):
        del found["Open Inference Protocol"]
    return found


def _tensors(signature: Signature, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    slots = input_slots(signature)
    cells = [list(row.values())] if is_matrix(signature) else [row[slot.name] for slot in slots]
    return [
        {"name": slot.name, "shape": [1, *np.shape(cell)], "datatype": DATATYPE_OF[slot.dtype],
         "data": np.asarray(cell, dtype=object).ravel().tolist()}
        for slot, cell in zip(slots, cells, strict=True)
    ]  # fmt: skip


# -- routes -------------------------------------------------------------------------------------------------

# Method, path, operation, whether it is answered without a token.
_Operation = tuple[str, str, dict[str, Any], bool]


def _operations(served: Served) -> list[_Operation]:
    return [*_own(served), *_mlflow(served), *_inference(served), *_tensorflow(served), *_bentoml(served)]


def _own(served: Served) -> list[_Operation]:
    rows = {JSON: _rows_body(served.signature)}
    arrow = {"schema": {"description": "An Arrow IPC stream, uncompressed, with the model's columns."}}
    answers = {JSON: _ref("Answer"), ARROW: {"schema": {"description": "An Arrow IPC stream: a row per prediction."}}}
    labels = {
        "schema": {
            "type": "object",
            "properties": {"labels": {"type": "object", "minProperties": 1, "maxProperties": 10_000}},
            "required": ["labels"],
            "additionalProperties": False,
        },
        "example": {"labels": {"9f86d081884c7d65-0": (served.signature.classes or [1.5])[0]}},
    }
    kept = {JSON: {"schema": _object({"labels": {"type": "integer", "description": "How many were kept."}})}}
    return [
        _post("/predict", "predict", "Predict one or many rows", {**rows, ARROW: arrow}, answers, parameters=_proba(served)),
        _post("/explain", "explain", "Split the answer to each row into one contribution per column; 100 rows at most",
              rows, {JSON: _ref("Explanation")}, errors=(501,)),
        _post("/labels", "labels", "Say what turned out to be true, by prediction id", {JSON: labels}, kept),
        _get("/signature", "signature", "Names, types, nulls, ranges and categories of the inputs, and what comes out"),
        _get("/card", "card", "The model card", {"text/html": {"schema": {"type": "string"}}}),
        _get("/metrics", "metrics", "Prometheus metrics", _TEXT),
        _get("/openapi.json", "openapi", "This document"),
        *(_get(path, path[1:], "Health", _TEXT, is_open=True) for path in ("/livez", "/readyz", "/healthz")),
    ]  # fmt: skip


def _mlflow(served: Served) -> list[_Operation]:
    tag = "MLflow"
    body = {
        "schema": {"type": "object", "description": "Exactly one of these, and params.",
                   "properties": {name: {} for name in ("dataframe_split", "dataframe_records", "inputs", "instances")}
                   | {"params": {"type": ["object", "null"]}}, "additionalProperties": False},
        **_with_example(served, tag),
    }  # fmt: skip
    csv = {"schema": {"type": "string", "description": "One line of names, then one line per row."}}
    answer = {JSON: {"schema": _object({"predictions": {"type": "array"}})}}
    return [
        _post("/invocations", "invocations", "MLflow's and SageMaker's predict",
              {JSON: body, "text/csv": csv, "application/csv": csv}, answer, parameters=_proba(served), tag=tag),
        *(_get(path, path[1:], "Health", _TEXT, is_open=True, tag=tag) for path in ("/ping", "/health")),
        _get("/version", "version", "The version of nbdeploy", _TEXT, tag=tag),
    ]  # fmt: skip


def _inference(served: Served) -> list[_Operation]:
    tag = "Open Inference Protocol"
    tensor = _object(
        {"name": {"type": "string"}, "shape": {"type": "array", "items": {"type": "integer"}},
         "datatype": {"type": "string"}, "parameters": {"type": "object"}, "data": {"type": "array"}},
        required=("name", "shape", "datatype"),
    )  # fmt: skip
    body = {"schema": _object({
        "id": {"type": ["string", "null"]}, "inputs": {"type": "array", "minItems": 1, "items": tensor},
        "outputs": {"type": ["array", "null"], "items": {"type": "object"}}, "parameters": {"type": ["object", "null"]},
    }, required=("inputs",)), **_with_example(served, tag)}  # fmt: skip
    answer = {"schema": _object({
        "model_name": {"type": "string"}, "model_version": {"type": "string"}, "id": {"type": "string"},
        "outputs": {"type": "array", "items": tensor},
    })}  # fmt: skip
    binary = {
        "schema": {"description": "The JSON, then the tensors' bytes; Inference-Header-Content-Length parts them."}
    }
    length = {
        "name": "Inference-Header-Content-Length", "in": "header", "schema": {"type": "integer", "minimum": 1},
        "description": "Bytes of the JSON before binary tensors.",
    }  # fmt: skip
    index = {JSON: {"schema": {"type": "array", "items": {"type": "object"}}}}
    found = [
        _get("/v2", "v2_server", "Name, version and extensions", tag=tag),
        _get("/v2/health/live", "v2_live", "Health", is_open=True, tag=tag),
        _get("/v2/health/ready", "v2_ready", "Health", is_open=True, tag=tag),
        _post("/v2/repository/index", "v2_index", "The models", {}, index, tag=tag),
    ]
    for path, word in _versions(f"/v2/models/{served.name}", served):
        found += [
            _get(path, f"v2_model{word}", "Inputs and outputs as tensors", tag=tag),
            _get(f"{path}/ready", f"v2_model_ready{word}", "Health", is_open=True, tag=tag),
            _post(f"{path}/infer", f"v2_infer{word}", "Predict", {JSON: body, OCTETS: binary},
                  {JSON: answer, OCTETS: binary}, parameters=[length, *_proba(served)], tag=tag),
        ]  # fmt: skip
    return found


def _tensorflow(served: Served) -> list[_Operation]:
    tag = "TensorFlow Serving"
    name = {"type": "string", "enum": ["serving_default", ""]}
    body = {
        "schema": {
            "type": "object",
            "description": "Either instances, a list of rows, or inputs, a list per column.",
            "properties": {"instances": {"type": "array"}, "inputs": {}, "signature_name": name},
            "additionalProperties": False,
        },
        **_with_example(served, tag),
    }
    answer = {JSON: {"schema": {"type": "object", "properties": {"predictions": {"type": "array"}, "outputs": {}}}}}
    found = []
    for path, word in _versions(f"/v1/models/{served.name}", served):
        found += [
            _post(
                f"{path}:predict",
                f"v1_predict{word}",
                "Predict",
                {JSON: body},
                answer,
                parameters=_proba(served),
                tag=tag,
            ),
            _get(path, f"v1_status{word}", "The state of the model", tag=tag),
            _get(f"{path}/metadata", f"v1_metadata{word}", "Inputs and outputs as tensors", tag=tag),
        ]
    return found


def _bentoml(served: Served) -> list[_Operation]:
    body = {
        "schema": {
            "type": "object", "description": "Either rows or frame.",
            "properties": {"rows": _rows_body(served.signature)["schema"], "frame": {"type": "array"},
                           "proba": {"type": "boolean"}},
            "additionalProperties": False,
        },
        **_with_example(served, "BentoML"),
    }  # fmt: skip
    return [
        _post("/bentoml/predict", "bentoml_predict", "What BentoML's client calls", {JSON: body},
              {JSON: _ref("Answer")}, parameters=_proba(served), tag="BentoML"),
        _get("/schema.json", "bentoml_schema", "What BentoML's client reads first", tag="BentoML"),
    ]  # fmt: skip


def _post(
    path: str, name: str, summary: str, bodies: Mapping[str, Any], answer: Mapping[str, Any],
    *, parameters: Sequence[dict[str, Any]] = (), errors: Sequence[int] = (), tag: str = "",
) -> _Operation:  # fmt: skip
    refusal = "MlflowRefusal" if path == "/invocations" else "Refusal"
    responses = {str(code): _refused(code, refusal) for code in (*_ALWAYS, *_BODIES, *errors)}
    responses["200"] = {"description": "Answered", "content": dict(answer)}
    operation: dict[str, Any] = {"summary": summary, "operationId": name, "tags": [tag or "nbdeploy"]}
    if parameters:
        operation["parameters"] = list(parameters)
    if bodies:
        operation["requestBody"] = {"required": True, "content": dict(bodies)}
    return "post", path, {**operation, "responses": responses}, False


def _get(
    path: str, name: str, summary: str, answer: Mapping[str, Any] | None = None, *, is_open: bool = False, tag: str = ""
) -> _Operation:
    content = {JSON: {"schema": {"type": "object"}}} if answer is None else dict(answer)
    responses = {"200": {"description": "Yes", "content": content}}
    responses |= {str(code): _refused(code, "Refusal") for code in (*_ALWAYS, 400, 500, 503)}
    operation = {"summary": summary, "operationId": name, "tags": [tag or "nbdeploy"], "responses": responses}
    return "get", path, operation, is_open


def _versions(base: str, served: Served) -> list[tuple[str, str]]:
    paths = dict.fromkeys(
        (base, f"{base}/versions/{version_number(served.version)}", f"{base}/versions/{served.version}")
    )
    return [(path, f"_{i}" if i else "") for i, path in enumerate(paths)]


def _with_example(served: Served, tag: str) -> dict[str, Any]:
    found = examples(served)
    return {"example": found[tag][1]} if tag in found else {}


def _proba(served: Served) -> list[dict[str, Any]]:
    if not served.signature.classes:
        return []
    return [{"name": "proba", "in": "query", "schema": {"type": "boolean", "default": False},
             "description": "Add the probabilities of the classes."}]  # fmt: skip


def _refused(code: int, schema: str) -> dict[str, Any]:
    headers = {503: {"headers": _RETRY}, 405: {"headers": _ALLOW}}.get(code, {})
    return {"description": _ERRORS[code], "content": {JSON: _ref(schema)}, **headers}


# -- rows and answers ---------------------------------------------------------------------------------------


def _rows_body(signature: Signature) -> dict[str, Any]:
    """One record, a list of records, or columns and data; bare rows too where nobody named the columns."""
    example = _example(signature)
    width = {"minItems": len(signature.columns), "maxItems": len(signature.columns)}
    names = {"type": "array", "items": {"type": "string", "enum": signature.names}, "uniqueItems": True, **width}
    split = _object({
        "columns": names,
        "data": {"type": "array", "minItems": 1, "items": {"type": "array", **width}, "description": "In their order."},
    })  # fmt: skip
    row = {"$ref": "#/components/schemas/Row"}
    forms = [row, {"type": "array", "minItems": 1, "items": row}, split]
    examples = {
        "record": {"summary": "One record", "value": example},
        "records": {"summary": "A list of records", "value": [example]},
        "split": {"summary": "Columns and data", "value": {"columns": list(example), "data": [[*example.values()]]}},
    }
    # A sparse row is an object, and so in a list a record.
    if signature.container in UNNAMED and not any(column.cells == "sparse" for column in signature.columns):
        cells = [column_schema(column) for column in signature.shown().columns]
        bare = cells[0] if len(cells) == 1 else {"type": "array", "prefixItems": cells, **width}
        forms.append({"type": "array", "minItems": 1, "items": bare})
        values = [*example.values()]
        examples["bare"] = {"summary": "Rows without names", "value": values if len(cells) == 1 else [values]}
    return {"schema": {"anyOf": forms}, "examples": examples}


def column_schema(column: Column) -> dict[str, Any]:
    """JSON Schema of one cell: what is not refused."""
    schema = dict(json_schema(Signature((column,)))["properties"][column.name])
    del schema[OWN]
    bounds = _bounds(column)
    if column.kind == "datetime":
        schema["format"] = "date-time" if column.zoned else "date-time-local"
        if not column.zoned:  # few know this format
            schema["pattern"] = _LOCAL
    if column.kind == "category" and (kind := _category_type(column)):
        schema["type"] = [kind, "null"] if column.nullable else kind
    inner = schema["anyOf"][0] if "anyOf" in schema else schema
    while "items" in inner:
        inner = inner["items"]
    inner |= bounds
    if column.categories and not column.shape:
        schema["examples"] = list(column.categories[:6])
    elif isinstance(column.minimum, (int, float)) and not column.shape and math.isfinite(column.minimum):
        schema["examples"] = [column.minimum, column.maximum]
    if column.nullable and "format" in schema:  # a format says nothing of null
        text = {name: schema.pop(name) for name in ("format", "pattern") if name in schema}
        del schema["type"]
        schema = {"anyOf": [{"type": "string", **text}, {"type": "null"}], **schema}
    return schema


def _category_type(column: Column) -> str:
    word = column.category_dtype.lower()
    types = {"int": "integer", "uint": "integer", "float": "number", "bool": "boolean"}
    return next((kind for start, kind in types.items() if word.startswith(start)), "")


def _bounds(column: Column) -> dict[str, Any]:
    dtype = column.category_dtype if column.kind == "category" else column.dtype
    if column.kind not in ("int", "float", "category") or not dtype:
        return {}
    plain = pd.api.types.pandas_dtype(dtype)
    plain = plain if isinstance(plain, np.dtype) else getattr(plain, "numpy_dtype", np.dtype(object))
    if plain.kind in "iu":
        return {"minimum": int(np.iinfo(plain).min), "maximum": int(np.iinfo(plain).max)}
    if plain.kind != "f":
        return {}
    largest = float(np.finfo(plain).max)
    return {"minimum": -largest, "maximum": largest}


def _schemas(served: Served) -> dict[str, Any]:
    signature = served.signature
    shown = signature.shown()
    predictions = {"type": "array", "items": _output_schema(signature.outputs),
                   "description": "One per row; null where the model's value is not finite."}  # fmt: skip
    answer = {"predictions": predictions, "prediction_ids": {"type": "array", "items": {"type": "string"}},
              "version": {"type": "string"}, "probabilities": {"type": "array"}, "classes": {"type": "array"}}  # fmt: skip
    several = {"description": "A number, or one per entry of classes."}
    explanation = {
        "output": {"type": "string", "description": "What is explained."},
        "base": {**several, "description": f"Its mean over training rows. {several['description']}"},
        "values": {"type": "array", "description": "What it is for each row."},
        "contributions": {"type": "array", "items": {"type": "object", "additionalProperties": several}},
        "classes": {"type": "array", "description": "What each number is of, where there are several."},
        "method": {"type": "string"}, "background_rows": {"type": "integer"}, "version": {"type": "string"},
    }  # fmt: skip
    problem = {name: {"type": "string"} for name in ("expected", "got", "hint")}
    places = {"row": {"type": ["integer", "null"]}, "column": {"type": ["string", "null"]}}
    refusal = {
        "error": {"type": "string", "description": "One line."},
        "problems": {"type": "array", "maxItems": 100, "items": _object({**places, **problem})},
    }
    row = _object({column.name: column_schema(column) for column in shown.columns}) | {"example": _example(signature)}
    return {
        "Row": row,
        "Answer": _object(answer, required=("predictions", "prediction_ids", "version")),
        "Explanation": _object(explanation, required=[name for name in explanation if name != "classes"]),
        "Refusal": _object(refusal),
        "MlflowRefusal": _object({**refusal, "error_code": {"type": "string"}, "message": {"type": "string"}}),
    }


def _output_schema(outputs: Sequence[Output]) -> dict[str, Any]:
    if len(outputs) == 1 and not outputs[0].name:
        return _value_schema(outputs[0])
    return _object({output.name: _value_schema(output) for output in outputs})


def _value_schema(output: Output) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": ["string", "null"]} if output.dtype == STRING else {}
    if output.dtype not in (STRING, "object"):
        kind = {"b": "boolean", "i": "integer", "u": "integer", "f": ["number", "null"]}.get(
            np.dtype(output.dtype).kind
        )
        schema = {"type": kind} if kind else {"type": ["string", "null"]}
    for size in reversed(output.shape):
        bounds = {} if size is None else {"minItems": size, "maxItems": size}
        schema = {"type": "array", "items": schema, **bounds}
    return schema


def _example(signature: Signature) -> dict[str, Any]:
    return dict(signature.shown().example or {})


def _object(properties: Mapping[str, Any], required: Sequence[str] | None = None) -> dict[str, Any]:
    wanted = list(properties) if required is None else list(required)
    return {"type": "object", "properties": dict(properties), "required": wanted, "additionalProperties": False}


def _ref(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{name}"}}

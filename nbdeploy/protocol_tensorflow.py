"""TensorFlow Serving's REST protocol: predict in rows and in columns, status and metadata."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from nbdeploy.exchange import Answer, Asked, Question, Reply, Route, Served, dump, dump_exact
from nbdeploy.protocol_parts import (
    Slot,
    ask,
    check_rows,
    check_tensors,
    input_slots,
    naming,
    only_keys,
    output_slots,
    read_object,
    reject,
    rows_of,
    version_number,
    wants_proba,
)
from nbdeploy.signature import Signature, problem, refusal, shown

ROWS, COLUMNS, SIGNATURE_NAME, DEFAULT = "instances", "inputs", "signature_name", "serving_default"
B64 = "b64"

_TYPES = {"bool": "DT_BOOL", "float16": "DT_HALF", "float32": "DT_FLOAT", "float64": "DT_DOUBLE", "string": "DT_STRING"}


def routes(served: Served) -> list[Route]:
    """``POST /v1/models/NAME[/versions/N]:predict``, and ``GET`` of the same without ``:predict``, or ``/metadata``."""
    number = version_number(served.version)

    def read(asked: Asked) -> Question:
        return _read(asked, served.signature)

    def status(_asked: Asked) -> Reply:
        state = {"version": number, "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        return Reply(dump({"model_version_status": [state]}))

    def metadata(_asked: Asked) -> Reply:
        return Reply(dump(_metadata(served, number)))

    base = f"/v1/models/{served.name}"
    found = []
    for path in dict.fromkeys((base, f"{base}/versions/{number}", f"{base}/versions/{served.version}")):
        found += [
            Route("POST", f"{path}:predict", read=read),
            Route("GET", path, show=status),
            Route("GET", f"{path}/metadata", show=metadata),
        ]
    return found


def _read(asked: Asked, signature: Signature) -> Question:
    value = read_object(asked.body)
    given = [form for form in (ROWS, COLUMNS) if form in value]
    if len(given) != 1:
        got = "both" if given else "neither"
        reject(f"an object with either {ROWS!r} or {COLUMNS!r}", got)
    only_keys(value, (given[0], SIGNATURE_NAME))
    if (name := value.get(SIGNATURE_NAME, DEFAULT)) not in (DEFAULT, ""):
        raise refusal([problem(None, None, f"the signature_name {DEFAULT!r}", shown(name))])
    held = value[given[0]]
    if f'"{B64}"'.encode() in asked.body and B64 not in signature.names:
        held = _decoded(held)
    proba = wants_proba(asked, signature)
    if given[0] == ROWS:
        return ask(asked, check_rows(signature, held), _write_rows, proba=proba)
    return ask(asked, check_tensors(signature, held), _write_columns, proba=proba)


def _decoded(value: Any) -> Any:
    """`value` with each ``{"b64": ...}`` as the text whose UTF-8 it is; what is none stays, and is refused as such."""
    if isinstance(value, list):
        return [_decoded(part) for part in value]
    if not isinstance(value, dict):
        return value
    if value.keys() != {B64} or not isinstance(value[B64], str):
        return {key: _decoded(part) for key, part in value.items()}
    try:
        return base64.b64decode(value[B64], validate=True).decode()
    except (binascii.Error, ValueError):
        return value


def _write_rows(answer: Answer) -> Reply:
    return Reply(dump_exact({"predictions": rows_of(answer)}), headers=naming(answer))


def _write_columns(answer: Answer) -> Reply:
    rows = rows_of(answer)
    named = answer.scores is not None or any(output.name for output in answer.outputs)
    outputs = {name: [row[name] for row in rows] for name in rows[0]} if named else rows
    return Reply(dump_exact({"outputs": outputs}), headers=naming(answer))


def _metadata(served: Served, number: str) -> dict[str, Any]:
    signature = {
        "inputs": {slot.name: _tensor(slot) for slot in input_slots(served.signature)},
        "outputs": {slot.name: _tensor(slot) for slot in output_slots(served.signature)},
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {"name": served.name, "signature_name": "", "version": number},
        "metadata": {"signature_def": {"signature_def": {DEFAULT: signature}}},
    }


def _tensor(slot: Slot) -> dict[str, Any]:
    sizes = [{"size": str(size), "name": ""} for size in (-1, *slot.shape)]
    return {
        "dtype": _TYPES.get(slot.dtype, f"DT_{slot.dtype.upper()}"),
        "tensor_shape": {"dim": sizes, "unknown_rank": False},
        "name": slot.name,
    }

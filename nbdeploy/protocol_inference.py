"""The Open Inference Protocol, version 2, over HTTP: what KServe and Triton's clients speak, binary tensors too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

from nbdeploy.exchange import JSON, Answer, Asked, Question, Refused, Reply, Route, Served, dump, dump_exact
from nbdeploy.protocol_parts import (
    Slot,
    input_slots,
    naming,
    only_keys,
    output_slots,
    proba_names,
    purpose_of,
    read_object,
    reject,
    version_number,
    wants_proba,
)
from nbdeploy.signature import Signature, problem, refusal, shown
from nbdeploy.signature_values import short
from nbdeploy.tensor_body import DATATYPE_OF, columns_of, encode, listed, outputs_of, read_tensors

OCTETS = "application/octet-stream"
HEADER = "Inference-Header-Content-Length"
# What would change the meaning of a request, and is not done here. Other parameters are hints.
_NOT_DONE = ("sequence_id", "sequence_start", "sequence_end", "classification", "shared_memory")


def routes(served: Served) -> list[Route]:
    """All under ``/v2``: health, metadata and ``infer``, each model route also with ``/versions/N``."""
    number = version_number(served.version)
    about = {
        "name": served.name, "versions": [number], "platform": "nbdeploy",
        "inputs": [_about(slot) for slot in input_slots(served.signature)],
        "outputs": [_about(slot) for slot in output_slots(served.signature)],
    }  # fmt: skip
    server = {"name": "nbdeploy", "version": version("nbdeploy"), "extensions": ["binary_tensor_data"]}
    index = [{"name": served.name, "version": number, "state": "READY", "reason": ""}]
    found = [
        Route("GET", "/v2", show=_shows(server)),
        Route("GET", "/v2/health/live", show=_shows({"live": True}), open=True),
        Route("GET", "/v2/health/ready", show=_shows({"ready": True}), open=True),
        Route("POST", "/v2/repository/index", show=_shows(index), media=()),
    ]

    def read(asked: Asked) -> Question:
        return _read(asked, served)

    base = f"/v2/models/{served.name}"
    for path in dict.fromkeys((base, f"{base}/versions/{number}", f"{base}/versions/{served.version}")):
        found += [
            Route("GET", path, show=_shows(about)),
            Route("GET", f"{path}/ready", show=_shows({"name": served.name, "ready": True}), open=True),
            Route("POST", f"{path}/infer", read=read, media=()),
        ]
    return found


def _shows(value: Any) -> Any:
    body = dump(value)
    return lambda _asked: Reply(body)


def _about(slot: Slot) -> dict[str, Any]:
    return {"name": slot.name, "datatype": DATATYPE_OF[slot.dtype], "shape": [-1, *slot.shape]}


# -- in -----------------------------------------------------------------------------------------------------


def _read(asked: Asked, served: Served) -> Question:
    # Triton's own client names no media type.
    if asked.media not in ("", JSON, OCTETS):
        expected = f"{JSON} or {OCTETS}"
        raise Refused(415, f"the body must be {expected}", [problem(None, None, expected, short(asked.media))])
    body = memoryview(asked.body)
    length = _header_length(asked, len(body))
    value = read_object(asked.body[:length])
    only_keys(value, ("id", "inputs", "outputs", "parameters", "model_name", "model_version"))
    given = value.get("id")
    if not isinstance(given, (str, type(None))):
        reject("'id' as a string", shown(given))
    parameters = _parameters(value.get("parameters"))
    signature = served.signature
    wanted = _wanted(value.get("outputs"), signature, binary=_flag(parameters, "binary_data_output"))
    names = {name for name, _ in proba_names(signature)}
    proba = wants_proba(asked, signature, parameters.get("proba")) or bool(names & (wanted or {}).keys())
    columns, frame, rows = columns_of(read_tensors(value.get("inputs"), body[length:]), signature)
    write = partial(
        _write, served=served, given=given, wanted=wanted,
        binary=_flag(parameters, "binary_data_output"),
    )  # fmt: skip
    return Question(columns, rows, write, proba=proba, purpose=purpose_of(asked), frame=frame)


def _header_length(asked: Asked, size: int) -> int:
    told = asked.headers.get(HEADER.lower())
    if told is None:
        return size
    if not re.fullmatch(r"\d{1,12}", told, re.ASCII) or not 0 < int(told) <= size:
        reject(f"{HEADER} from 1 to {size}", short(told))
    return int(told)


def _parameters(value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        reject("'parameters' as an object", shown(value))
    if unfit := sorted(key for key in value if key.startswith(_NOT_DONE)):
        reject("a request of its own, with its tensors in the body", f"the parameter {short(unfit[0])!r}")
    return value


def _flag(parameters: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        reject(f"{name!r} as true or false", shown(value))
    return value


def _wanted(outputs: Any, signature: Signature, *, binary: bool) -> dict[str, bool] | None:
    """Which outputs to send, and whether as bytes; None for all."""
    if outputs is None or outputs == []:
        return None
    if not isinstance(outputs, list):
        reject("'outputs' as a list", shown(outputs))
    known = [slot.name for slot in output_slots(signature)]
    found: dict[str, bool] = {}
    for each in outputs:
        name = each.get("name") if isinstance(each, dict) else None
        if not isinstance(name, str):
            reject("each of 'outputs' as an object with a 'name'", shown(each))
        only_keys(each, ("name", "parameters"))
        if name not in known:
            words = ", ".join(known[:10])
            raise refusal([problem(None, None, f"an output among {words}", f"the output {short(name)!r}")])
        if name in found:
            reject("each output once", f"the output {short(name)!r} twice")
        found[name] = _flag(_parameters(each.get("parameters")), "binary_data", binary)
    return found


# -- out ----------------------------------------------------------------------------------------------------


def _write(answer: Answer, *, served: Served, given: str | None, wanted: dict[str, bool] | None, binary: bool) -> Reply:
    tensors = outputs_of(answer, served.signature)
    if wanted is None:
        wanted = dict.fromkeys(tensors, binary)
    outputs, parts = [], []
    for name, as_bytes in wanted.items():
        tensor = tensors[name]
        facts: dict[str, Any] = {"name": name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if as_bytes:
            parts.append(encode(tensor))
            facts["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            facts["data"] = listed(tensor)
        outputs.append(facts)
    head = dump_exact({
        "model_name": served.name, "model_version": version_number(answer.version), "id": given or answer.request,
        "outputs": outputs,
    })  # fmt: skip
    if not parts:
        return Reply(head, headers=naming(answer))
    return Reply(b"".join([head, *parts]), OCTETS, headers={**naming(answer), HEADER: str(len(head))})

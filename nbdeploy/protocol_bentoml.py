"""What BentoML's own client looks for: a schema of the calls, and the route that they go to."""

from __future__ import annotations

from typing import Any

from nbdeploy.exchange import Answer, Asked, Question, Reply, Route, Served, dump, dump_exact
from nbdeploy.protocol_parts import (
    ask,
    check_rows,
    check_table,
    naming,
    only_keys,
    read_object,
    reject,
    told_by,
    wants_proba,
)
from nbdeploy.signature import Signature

PATH = "/bentoml/predict"
ROWS, FRAME, PROBA = "rows", "frame", "proba"


def routes(served: Served) -> list[Route]:
    """``GET /schema.json``, and ``POST /bentoml/predict`` for the calls in it."""

    def read(asked: Asked) -> Question:
        return _read(asked, served.signature)

    def schema(_asked: Asked) -> Reply:
        return Reply(dump(_schema(served)))

    return [Route("GET", "/schema.json", show=schema), Route("POST", PATH, read=read)]


def _read(asked: Asked, signature: Signature) -> Question:
    value = read_object(asked.body)
    given = [word for word in (ROWS, FRAME) if word in value]
    if len(given) != 1:
        reject(f"an object with either {ROWS!r} or {FRAME!r}", "both" if given else "neither")
    only_keys(value, (given[0], PROBA))
    proba = wants_proba(asked, signature, value.get(PROBA))
    held = value[given[0]]
    if given[0] == ROWS and isinstance(held, dict):
        split = held.keys() == {"columns", "data"} and set(signature.names) != held.keys()
        columns = check_table(signature, held["columns"], held["data"]) if split else check_rows(signature, [held])
    else:
        columns = check_rows(signature, held)
    return ask(asked, columns, _write, proba=proba)


def _write(answer: Answer) -> Reply:
    return Reply(dump_exact(told_by(answer)), headers=naming(answer))


def _schema(served: Served) -> dict[str, Any]:
    doc = (
        "The model's answers: 'predictions', 'prediction_ids' and 'version'; with proba=True also 'probabilities' and "
        "'classes'."
    )
    # A value without a type is sent as it is: BentoML's client would make a frame of a list, and so hide a gap in it.
    calls = {
        "predict": (ROWS, {"title": "One record, a list of records, or columns and data"}, doc),
        "predict_frame": (FRAME, {"title": "A DataFrame", "type": "dataframe", "orient": "records"}, doc),
    }
    return {
        "name": served.name,
        "type": "service",
        "routes": [
            {
                "name": name,
                "route": PATH,
                "doc": told,
                "batchable": False,
                "input": {
                    "title": "Input",
                    "type": "object",
                    "properties": {word: kind, PROBA: {"title": "Proba", "type": "boolean", "default": False}},
                    "required": [word],
                },
                "output": {"type": "object"},
                "is_task": False,
            }
            for name, (word, kind, told) in calls.items()
        ],
        "paths": {PATH: {"mounted": False}},
    }

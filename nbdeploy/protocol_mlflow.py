"""MLflow's scoring protocol: ``/invocations`` in all its input forms, and ``/ping``, which is SageMaker's too."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, NoReturn

from nbdeploy.csv_body import read_csv
from nbdeploy.exchange import JSON, Answer, Asked, Question, Refused, Reply, Route, Served, dump, dump_exact
from nbdeploy.protocol_parts import (
    ask,
    check_rows,
    check_table,
    check_tensors,
    naming,
    only_keys,
    read_object,
    reject,
    rows_of,
    wants_proba,
)
from nbdeploy.signature import Signature, problem, refusal, shown
from nbdeploy.signature_values import kind_of, short

CSV = ("text/csv", "application/csv")
FORMS = ("dataframe_split", "dataframe_records", "inputs", "instances")
PARAMS = "params"

# MLflow's own words for a status.
_CODES = {
    400: "BAD_REQUEST", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "ENDPOINT_NOT_FOUND",
    408: "DEADLINE_EXCEEDED", 500: "INTERNAL_ERROR", 501: "NOT_IMPLEMENTED", 503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}  # fmt: skip


def routes(served: Served) -> list[Route]:
    """``POST /invocations``, ``GET /ping``, ``/health`` and ``/version``."""

    def read(asked: Asked) -> Question:
        return _read(asked, served.signature)

    return [
        Route("POST", "/invocations", read=read, media=(), refuse=_refusal),
        *(Route("GET", path, show=_alive, open=True) for path in ("/ping", "/health")),
        Route("GET", "/version", show=_version),
    ]


def _read(asked: Asked, signature: Signature) -> Question:
    media = _media(asked)
    if media == JSON:
        columns, proba = _json(asked, signature)
        return ask(asked, columns, _write, proba=proba)
    return ask(asked, read_csv(asked.body, signature), _write, proba=wants_proba(asked, signature))


def _media(asked: Asked) -> str:
    known = (JSON, *CSV)
    if asked.media not in known:
        # A few bytes of Parquet may stand for gigabytes, and damaged ones end the process that reads them.
        hint = "Send large tables to /predict, as an Arrow stream." if "parquet" in asked.media else ""
        _unsupported(f"one of {', '.join(known)}", asked.media or "no media type", hint)
    for part in asked.headers.get("content-type", "").split(";")[1:]:
        name, _, value = part.partition("=")
        name, value = name.strip().lower(), value.strip().strip('"').lower()
        if name == "charset" and value not in ("utf-8", "utf8"):
            _unsupported("UTF-8", f"charset={value}")
        if name and name != "charset":
            hint = f"Say it in the body: {{{FORMS[0]!r}: ...}}." if name == "format" else ""
            _unsupported("a media type without other parameters than charset", f"{name}={value}", hint)
    return asked.media


def _unsupported(expected: str, got: str, hint: str = "") -> NoReturn:
    got = short(got)
    error = f"expected {expected}, got {got}. {hint}".rstrip()
    raise Refused(415, error, [problem(None, None, expected, got, hint)])


def _json(asked: Asked, signature: Signature) -> tuple[dict[str, list[Any]], bool]:
    value = read_object(asked.body)
    given = [form for form in FORMS if form in value]
    if len(given) != 1:
        got = " and ".join(map(repr, given)) or "none of them"
        reject(f"an object with exactly one of {', '.join(map(repr, FORMS))}", got)
    only_keys(value, (given[0], PARAMS))
    proba = _proba(asked, signature, value.get(PARAMS))
    held = value[given[0]]
    if given[0] == "dataframe_split":
        return _split(signature, held), proba
    if given[0] == "dataframe_records":
        return check_rows(signature, held), proba
    return check_tensors(signature, held), proba


def _proba(asked: Asked, signature: Signature, params: Any) -> bool:
    if params is None:
        return wants_proba(asked, signature)
    if not isinstance(params, dict):
        reject("'params' as an object", shown(params))
    if unknown := sorted(params.keys() - {"proba"}):
        expected = problem(None, None, "no parameter but 'proba'", f"the parameter {short(unknown[0])!r}")
        raise refusal([expected])
    return wants_proba(asked, signature, params.get("proba"))


def _split(signature: Signature, held: Any) -> dict[str, list[Any]]:
    if not isinstance(held, dict) or "data" not in held:
        reject("'dataframe_split' as an object with 'columns' and 'data'", kind_of(held))
    only_keys(held, ("columns", "data", "index"))
    rows, index = held["data"], held.get("index")
    columns = check_table(signature, held.get("columns"), rows)
    # pandas sends its labels along; a model never sees them.
    if index is not None and (not isinstance(index, list) or len(index) != len(rows)):
        got = f"{len(index)} labels" if isinstance(index, list) else shown(index)
        reject(f"'index' as a list of {len(rows)} labels", got)
    return columns


def _write(answer: Answer) -> Reply:
    return Reply(dump_exact({"predictions": rows_of(answer)}), headers=naming(answer))


def _refusal(refused: Refused) -> bytes:
    code = _CODES.get(refused.status, "INVALID_PARAMETER_VALUE")
    return dump({"error_code": code, "message": refused.error, "error": refused.error, "problems": refused.problems})


def _alive(_asked: Asked) -> Reply:
    return Reply(b"\n", "text/plain; charset=utf-8")


def _version(_asked: Asked) -> Reply:
    return Reply(version("nbdeploy").encode(), "text/plain; charset=utf-8")

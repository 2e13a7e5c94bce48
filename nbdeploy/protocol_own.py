"""Our own routes: predictions as JSON or Arrow, explanations, and what the service says about itself."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbdeploy import arrow_body, explanations
from nbdeploy.exchange import JSON, Answer, Asked, Question, Refused, Reply, Route, Served, dump, dump_exact
from nbdeploy.protocol_parts import purpose_of, told_by
from nbdeploy.request_body import read_rows
from nbdeploy.serve_options import MIB
from nbdeploy.serving_docs import openapi
from nbdeploy.serving_page import index_page
from nbdeploy.signature import problem

if TYPE_CHECKING:
    from nbdeploy.endpoint import Endpoint

HTML = "text/html; charset=utf-8"
_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'self'"
)


def routes(endpoint: Endpoint, *, token: bool) -> list[Route]:
    """The routes of `endpoint`; `token` says whether they need one."""
    served = endpoint.served

    async def explain(asked: Asked) -> Reply:
        if not explanations.available():
            raise Refused(501, explanations.NEEDED)
        return Reply(dump(await endpoint.explain(lambda: read_rows(asked.body, served.signature))))

    def card(_asked: Asked) -> Reply:
        from nbdeploy import card_html

        page = card_html.served(served.name, served.version, endpoint.place)
        return Reply(page.encode(), HTML, headers={"Content-Security-Policy": card_html.POLICY})

    def metrics(_asked: Asked) -> Reply:
        return Reply(*endpoint.metrics.render())

    facts = {"name": served.name, "version": served.version, **served.signature.shown().to_dict()}
    document = Reply(dump(openapi(served, token=token)))
    page = index_page(served, token=token).encode()
    health = Reply(b"\n", "text/plain; charset=utf-8")
    return [
        Route("POST", "/predict", read=partial(read, served), media=(JSON, arrow_body.MEDIA)),
        Route("POST", "/explain", show=explain, limit=2 * MIB),
        Route("GET", "/signature", show=_always(Reply(dump(facts)))),
        Route("GET", "/card", show=card, threaded=True),
        Route("GET", "/metrics", show=metrics, threaded=True),
        Route("GET", "/openapi.json", show=_always(document)),
        Route("GET", "/docs.json", show=_always(document)),
        Route("GET", "/", show=_always(Reply(page, HTML, headers={"Content-Security-Policy": _POLICY}))),
        *(Route("GET", path, show=_always(health), open=True) for path in ("/livez", "/readyz", "/healthz")),
        *_swagger_files(),
    ]


def read(served: Served, asked: Asked) -> Question:
    """One ``/predict`` body: JSON, or an Arrow IPC stream.

    Raises
    ------
    Unreadable
        The body is not JSON, or no such stream.
    InputError
        The rows do not fit the signature.
    Refused
        ``proba`` is no boolean, or there are no probabilities.
    """
    proba = _proba(served, asked.query.get("proba", "false").lower())
    purpose = purpose_of(asked)
    if asked.media == arrow_body.MEDIA:
        frame = arrow_body.read(asked.body, served.signature)
        return Question(None, len(frame), _write_arrow, proba, purpose, frame)
    columns = read_rows(asked.body, served.signature)
    rows = len(next(iter(columns.values())))
    return Question(columns, rows, _write, proba, purpose)


def _write(answer: Answer) -> Reply:
    return Reply(dump_exact(told_by(answer)))


def _write_arrow(answer: Answer) -> Reply:
    assert answer.raw is not None
    body = arrow_body.write_answers(
        answer.raw, answer.raw_scores, answer.classes, answer.request, answer.version, versions=answer.versions
    )
    return Reply(body, arrow_body.MEDIA)


def _proba(served: Served, wanted: str) -> bool:
    if wanted not in ("true", "false", "1", "0"):
        fault = problem(None, None, "proba=true or proba=false", f"proba={wanted[:40]}")
        raise Refused(422, "proba must be true or false", [fault])
    proba = wanted in ("true", "1")
    if proba and served.signature.classes is None:
        fault = problem(None, None, "no 'proba' parameter", "proba=true")
        raise Refused(422, "this model has no probabilities", [fault])
    return proba


def _swagger_files() -> Iterator[Route]:
    """Swagger UI's files, which BentoML ships: no page of ours calls a third party."""
    bentoml = find_spec("bentoml")
    if bentoml is None or bentoml.origin is None:
        return
    for path in (Path(bentoml.origin).parent / "_internal" / "server" / "static_content").glob("*"):
        media = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        yield Route("GET", f"/static_content/{path.name}", show=partial(_file, path, media), threaded=True)


def _file(path: Path, media: str, _asked: Asked) -> Reply:
    return Reply(path.read_bytes(), media, headers={"Cache-Control": "max-age=3600"})


def _always(reply: Reply) -> Any:
    return lambda _asked: reply

"""What answers requests inside the BentoML worker: a plain base class and an ASGI application.

Loads nothing of the notebook side. The class that BentoML runs is in a generated file that
subclasses `Predictor` (see `nbdeploy.model_store.service_source`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from nbdeploy import answers, arrow_body, artifact, explanations, prediction_log, requirements
from nbdeploy.batching import Batcher, Overloaded
from nbdeploy.errors import InputError, NbdeployError, RehearsalError, ServiceError
from nbdeploy.home import read_json, write_json
from nbdeploy.request_body import Unreadable, parse_json, refuse_doubled_keys
from nbdeploy.serving_docs import index_page, openapi
from nbdeploy.serving_metrics import Metrics
from nbdeploy.signature import Column, Signature, json_column, problem

SPEC = "NBDEPLOY_SPEC"  # the file that tells a worker what to serve; without it, the version stands in its Bento
MAX_BODY_BYTES = 64 << 20
INLINE_BYTES = 16 << 10  # a larger body is parsed in a thread, so that it holds nobody up
WARM_ROWS = 200
GATE_HEADER = "x-nbdeploy-purpose"  # "gate": answered and logged as any request, but no user's question

# What BentoML adds to each request and nobody asked for is off; our own metrics and log take its place.
BENTOML_OPTIONS: dict[str, Any] = {
    "traffic": {"timeout": 60},
    "logging": {"access": {"enabled": False}},
    "metrics": {"enabled": False},
    "tracing": {"excluded_urls": ".*"},
}

logger = logging.getLogger("bentoml.nbdeploy")


@dataclass(frozen=True)
class Question:
    """The checked rows of one request: values by column, whether probabilities are wanted, whether a gate asks."""

    columns: dict[str, list[Any]] | None
    rows: int
    proba: bool = False
    gate: bool = False
    frame: pd.DataFrame | None = None  # instead of values, where the rows came as an Arrow stream


class Predictor:
    """One worker's share of a deployment: the loaded version, its log and its metrics.

    Subclasses, which are generated, set `app` and `tag`. Raises when the version cannot be loaded,
    is not the one that was saved, or does not reproduce its expected outputs: a worker that would
    answer wrongly never starts.
    """

    app: Starlette
    tag: str

    def __init__(self) -> None:
        spec = read_json(Path(os.environ[SPEC])) if os.environ.get(SPEC) else _bento_spec(self.tag)
        if parent := spec.get("supervisor"):
            threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
        try:
            self._start(spec)
        except NbdeployError as error:
            _tell(spec, error)
            raise
        except Exception as error:
            # Without this the starter would only see the web server's last words.
            message = f"the service cannot start: {type(error).__name__}: {error}"
            _tell(spec, RehearsalError(message, "See error.details.", traceback.format_exc()))
            raise

    def _start(self, spec: dict[str, Any]) -> None:
        self.name, self.version = spec["name"], spec["version"]
        before = frozenset(sys.modules)
        self.model = artifact.rehearse(Path(spec["path"]), spec["files"], spec.get("rows", WARM_ROWS))
        if spec.get("outcome") and spec.get("rows", WARM_ROWS) is None:  # this start is the rehearsal
            found = requirements.loaded(before, self.model.modules)
            write_json(Path(spec["outcome"]), {"loaded": [each.to_dict() for each in found]})
        self.signature: Signature = self.model.signature
        self.log = prediction_log.LogWriter(self.name)
        self.metrics = Metrics(self.version, self.log)
        # One model call at a time: few models promise that predict may run in two threads at once.
        self._batcher = Batcher[Question, bytes](self._answers, together=not self.model.unbatched)
        self.place = Path(spec["path"])
        # Each call of an explanation takes its turn with the predictions; SHAP is loaded by the first one.
        reference = artifact.read_reference(self.place, self.signature)
        self.explainer = explanations.Explainer(
            self.model, reference, call=lambda work: self._batcher.thread.submit(work).result()
        )
        self.explaining = ThreadPoolExecutor(1, thread_name_prefix="explain")
        self.app.state.predictor = self

    def read(self, body: bytes, *, arrow: bool = False, proba: bool = False, gate: bool = False) -> Question:
        """One ``/predict`` body: JSON, or an Arrow IPC stream.

        Raises
        ------
        Unreadable
            The body is not JSON, or no such stream.
        InputError
            The rows do not fit the signature.
        """
        if arrow:
            frame = arrow_body.read(body, self.signature)
            return Question(None, len(frame), proba, gate, frame)
        payload = parse_json(body)
        values = self.signature.check(payload)
        refuse_doubled_keys(body, payload, self.signature)
        return Question(values, len(next(iter(values.values()))), proba, gate)

    async def answer(self, question: Question) -> bytes:
        """The answer to one request, in the log before it is returned; with others in flight in one model call.

        Raises
        ------
        InputError
            The rows fit the signature, and the model cannot answer them.
        Overloaded
            Too much is waiting already.
        """
        return await self._batcher.answer(question, question.rows)

    def _answers(self, questions: list[Question]) -> list[bytes]:
        """The bodies of the answers. Nothing is logged before all are there: a batch that fails is tried again."""
        try:
            told = [question for question in questions if question.columns is not None]
            bodies = dict(zip(map(id, told), self._bodies(told), strict=True)) if told else {}
            # A stream is large, and goes alone: its frame is there already.
            bodies |= {id(each): self._stream(each) for each in questions if each.columns is None}
        except Exception as error:
            if len(questions) > 1:  # whose fault it is shows when each is asked alone
                raise
            raise self._blamed(error, questions[0]) from (None if self.signature.has_private else error)
        for question in questions:
            request, values, scores, _ = bodies[id(question)]
            inputs = {c.name: self._asked(question, c) for c in self.signature.logged}
            self.log.write(self.version, request, inputs, values, scores, gate=question.gate)
        self.metrics.answered([question.rows for question in questions], self._batcher.waiting_rows)
        return [bodies[id(question)][3] for question in questions]

    def _asked(self, question: Question, column: Column) -> list[Any]:
        if question.columns is not None:
            return question.columns[column.name]
        assert question.frame is not None
        return json_column(column, question.frame[column.label])

    def _stream(self, question: Question) -> tuple[str, list[Any], list[Any] | None, bytes]:
        assert question.frame is not None
        predictions = self.model.predict(question.frame)
        scores = self.model.probabilities(question.frame) if question.proba else None
        request = prediction_log.new_request_id()
        ids = prediction_log.prediction_ids(request, question.rows)
        body = arrow_body.write_answers(predictions, scores, self.signature.classes, ids, self.version)
        return request, answers.rows_of(predictions), answers.score_rows(scores), body

    def _bodies(self, questions: list[Question]) -> list[tuple[str, list[Any], list[Any] | None, bytes]]:
        frame = self.signature.build(_joined(questions))
        predictions = iter(answers.rows_of(self.model.predict(frame)))
        wanted = np.repeat([question.proba for question in questions], [question.rows for question in questions])
        scores: Iterator[Any] = iter(())
        if wanted.any():
            rows = frame if wanted.all() else frame[wanted].reset_index(drop=True)
            scores = iter(answers.score_rows(self.model.probabilities(rows)) or ())
        bodies = []
        for question in questions:
            values = [*islice(predictions, question.rows)]
            chances = [*islice(scores, question.rows)] if question.proba else None
            request = prediction_log.new_request_id()
            bodies.append((request, values, chances, self._body(request, values, chances)))
        return bodies

    def _body(self, request: str, values: list[Any], scores: list[Any] | None) -> bytes:
        answer = {
            "predictions": values,
            "prediction_ids": prediction_log.prediction_ids(request, len(values)),
            "version": self.version,
        }
        if scores is not None:
            answer |= {"probabilities": scores, "classes": list(self.signature.classes or ())}
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)

    def _blamed(self, error: Exception, question: Question) -> Exception:
        """The refusal of rows that the model cannot answer though it answers its example; else the error itself."""
        if isinstance(error, InputError) or not self._answers_its_example(proba=question.proba):
            return error
        # What a model complains about may quote the row.
        private = self.signature.has_private
        said = type(error).__name__ if private else " ".join(f"{type(error).__name__}: {error}".split())[:400]
        logger.warning(
            "the model answers its example, and not these rows: %s", said, exc_info=None if private else error
        )
        msg = f"the model cannot answer these rows: {said}"
        general = problem(None, None, "rows that the model can answer", said)
        frame = question.frame if question.columns is None else self.signature.build(question.columns)
        return InputError(msg, self.signature.novelties(frame) or [general])

    def complain(self, what: str, error: Exception) -> None:
        """Write a failure to the log of the service, without what may quote a private value."""
        private = self.signature.has_private
        logger.error("%s: %s", what, type(error).__name__, exc_info=None if private else error)

    def _answers_its_example(self, *, proba: bool) -> bool:
        """Whether the model still answers a row of its training frame: then other rows are to blame."""
        try:
            frame = self.signature.decode(self.signature.example)
            scores = self.model.probabilities(frame) if proba else None
            orjson.dumps([answers.rows_of(self.model.predict(frame)), answers.score_rows(scores)])
        except Exception:  # noqa: BLE001 - whatever it is, the caller logs the failure that matters
            return False
        return True


def _joined(questions: list[Question]) -> dict[str, list[Any]]:
    held = [question.columns for question in questions if question.columns is not None]
    return {name: [*chain.from_iterable(values[name] for values in held)] for name in held[0]}


def application() -> Starlette:
    """The routes of a deployment, as one ASGI application."""
    return Starlette(
        routes=[
            Route("/predict", predict, methods=["POST"]),
            Route("/explain", explain, methods=["POST"]),
            Route("/signature", signature, methods=["GET"]),
            Route("/card", card, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
            Route("/openapi.json", openapi_document, methods=["GET"]),
            Route("/docs.json", openapi_document, methods=["GET"]),
            Route("/", index, methods=["GET"]),
            Elsewhere("/{path:path}", _nowhere),
        ],
        exception_handlers={HTTPException: http_error},
    )


class Elsewhere(Route):
    """What no route answers. A partial match, so that every other route, BentoML's own too, comes first."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        # Without the last slash it may be a route: Starlette then redirects.
        elsewhere = match != Match.NONE and not scope["path"].endswith("/")
        return (Match.PARTIAL if elsewhere else Match.NONE), child

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (await _nowhere(Request(scope)))(scope, receive, send)


async def _nowhere(_request: Request) -> Response:
    return refuse(404, "there is no such route; see /openapi.json")


async def http_error(_request: Request, error: Exception) -> Response:
    """Starlette's own refusals, as JSON: a method that a route does not have."""
    assert isinstance(error, HTTPException)
    response = refuse(error.status_code, str(error.detail))
    response.headers.update(error.headers or {})
    return response


async def predict(request: Request) -> Response:
    """One record, many, or columns with data."""
    predictor = _predictor(request)
    started = time.perf_counter()
    response = await _predict(predictor, request)
    predictor.metrics.observe(response.status_code, time.perf_counter() - started)
    return response


async def _predict(predictor: Predictor, request: Request) -> Response:
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media not in ("application/json", arrow_body.MEDIA):
        return refuse(415, f"the body must be application/json or {arrow_body.MEDIA}, not {media[:60] or 'untyped'}")
    arrow = media == arrow_body.MEDIA
    wanted = request.query_params.get("proba", "false").lower()
    if wanted not in ("true", "false", "1", "0"):
        return refuse(
            422,
            "proba must be true or false",
            [problem(None, None, "proba=true or proba=false", f"proba={wanted[:40]}")],
        )
    proba = wanted in ("true", "1")
    if proba and predictor.signature.classes is None:
        expected = problem(None, None, "no 'proba' parameter", "proba=true")
        return refuse(422, "this model has no probabilities", [expected])
    try:
        body = await _bounded_body(request)
    except ServiceError as error:
        return refuse(413, str(error))
    try:
        gate = request.headers.get(GATE_HEADER, "") == "gate"
        # Only the model waits for its turn: what cannot be answered is refused while it works.
        if len(body) <= INLINE_BYTES:
            question = predictor.read(body, arrow=arrow, proba=proba, gate=gate)
        else:
            question = await run_in_threadpool(predictor.read, body, arrow=arrow, proba=proba, gate=gate)
        answer = await predictor.answer(question)
    except Unreadable as error:
        return refuse(400, str(error))
    except InputError as error:
        return refuse(422, str(error), error.problems)
    except Overloaded as error:
        return _busy(error)
    except Exception as error:  # noqa: BLE001  a model may raise anything; it is logged
        predictor.complain("the model failed on rows that fit its signature", error)
        return refuse(500, "the model failed; see the log of the service")
    return Response(answer, media_type=media)


async def explain(request: Request) -> Response:
    """What each column adds to the answer to each row of a ``/predict`` body. It is not logged."""
    predictor = _predictor(request)
    if not predictor.explainer.available:
        return refuse(501, explanations.NEEDED)
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        return refuse(415, f"the body must be application/json, not {media[:60] or 'untyped'}")
    try:
        question = await run_in_threadpool(predictor.read, await _bounded_body(request))
        frame = predictor.signature.build(question.columns or {})
        work = asyncio.get_running_loop().run_in_executor(predictor.explaining, predictor.explainer.explain, frame)
        found = await work
    except ServiceError as error:
        return refuse(413, str(error))
    except Unreadable as error:
        return refuse(400, str(error))
    except InputError as error:
        return refuse(422, str(error), error.problems)
    except Exception as error:  # noqa: BLE001  the same
        predictor.complain("rows that fit the signature could not be explained", error)
        return refuse(500, "the explanation failed; see the log of the service")
    return _json(200, {**found, "version": predictor.version})


async def card(request: Request) -> Response:
    """The model card, as its owner left it, else the facts."""
    from nbdeploy import card_html

    predictor = _predictor(request)
    page = await run_in_threadpool(card_html.served, predictor.name, predictor.version, predictor.place)
    return HTMLResponse(page, headers={"Content-Security-Policy": card_html.POLICY})


async def signature(request: Request) -> Response:
    """What goes in and what comes out."""
    predictor = _predictor(request)
    return _json(200, {"name": predictor.name, "version": predictor.version, **predictor.signature.shown().to_dict()})


async def metrics(request: Request) -> Response:
    """Prometheus text."""
    text, media = await run_in_threadpool(_predictor(request).metrics.render)
    return Response(text, media_type=media)


async def openapi_document(request: Request) -> Response:
    """The OpenAPI document."""
    predictor = _predictor(request)
    return _json(200, openapi(predictor.name, predictor.version, predictor.signature))


async def index(request: Request) -> Response:
    """The front page."""
    predictor = _predictor(request)
    return HTMLResponse(index_page(predictor.name, predictor.version, predictor.signature))


def _busy(error: Overloaded) -> Response:
    response = refuse(503, str(error))
    response.headers["Retry-After"] = str(error.retry_after)
    return response


def refuse(status: int, error: str, problems: list[dict[str, Any]] | None = None) -> Response:
    """The body of every 4xx: one line, and the problems one by one."""
    return _json(status, {"error": error, "problems": problems or []})


# -- helpers ------------------------------------------------------------------------------------------------


def _predictor(request: Request) -> Predictor:
    predictor: Predictor = request.app.state.predictor
    return predictor


def _json(status: int, value: Any) -> Response:
    # NaN in a fact becomes null; a lone surrogate from a client is replaced rather than refused.
    try:
        body = orjson.dumps(value)
    except (TypeError, ValueError):
        body = json.dumps(value, default=str).encode("utf-8", "replace")
    return Response(body, status_code=status, media_type="application/json")


async def _bounded_body(request: Request) -> bytes:
    blocks, total = [], 0
    async for block in request.stream():
        total += len(block)
        if total > MAX_BODY_BYTES:
            msg = f"the body is larger than {MAX_BODY_BYTES >> 20} MiB"
            raise ServiceError(msg, "Send fewer rows at a time.")
        blocks.append(block)
    return b"".join(blocks)


def _tell(spec: dict[str, Any], error: NbdeployError) -> None:
    # For who started this worker and waits for it.
    if spec.get("outcome"):
        with suppress(OSError):
            write_json(Path(spec["outcome"]), error.to_dict() | {"message": error.message, "hint": error.hint})


def _bento_spec(tag: str) -> dict[str, Any]:
    import bentoml

    from nbdeploy.model_store import recorded_files

    name, _, version = tag.partition(":")
    stored = bentoml.models.get(tag)
    return {"name": name, "version": version, "path": stored.path, "files": recorded_files(name, version)}


def _end_with_parent(parent: int) -> None:
    # A supervisor that was killed cannot tell its workers: they look. The grace is uvicorn's to finish requests.
    while os.getppid() == parent:
        time.sleep(0.25)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3)
    os._exit(1)

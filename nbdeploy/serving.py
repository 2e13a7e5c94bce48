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
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from nbdeploy import artifact, prediction_log
from nbdeploy.errors import InputError, NbdeployError, ServiceError
from nbdeploy.home import read_json, write_json
from nbdeploy.serving_docs import index_page, openapi
from nbdeploy.serving_metrics import Metrics
from nbdeploy.signature import Signature, jsonable, problem

SPEC = "NBDEPLOY_SPEC"  # the file that tells a worker what to serve; without it, the version stands in its Bento
MAX_BODY_BYTES = 64 << 20
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


class Unreadable(Exception):
    """A body that is not JSON."""


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
        self.name, self.version = spec["name"], spec["version"]
        try:
            self.model = artifact.rehearse(Path(spec["path"]), spec["files"], spec.get("rows", WARM_ROWS))
        except NbdeployError as error:
            if spec.get("outcome"):
                write_json(Path(spec["outcome"]), error.to_dict() | {"message": error.message, "hint": error.hint})
            raise
        self.signature: Signature = self.model.signature
        self.log = prediction_log.LogWriter(self.name)
        self.metrics = Metrics(self.version, self.log)
        # One model call at a time: few models promise that predict may run in two threads at once.
        self._one = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.app.state.predictor = self

    def answer(self, body: bytes, *, proba: bool, gate: bool = False) -> bytes:
        """The answer to one ``/predict`` body, in the log before it is returned.

        Raises
        ------
        Unreadable
            The body is not JSON.
        InputError
            The rows do not fit the signature, or hold what the model was never taught and cannot answer.
        """
        frame = self.signature.decode(parse_json(body))
        try:
            predictions = self.model.predict(frame)
            probabilities = self.model.probabilities(frame) if proba else None
        except Exception as error:
            if news := self.signature.novelties(frame):
                msg = f"the model cannot answer these rows: {type(error).__name__}: {error}"
                raise InputError(msg, news) from error
            raise
        if proba and probabilities is None:
            msg = "this model has no probabilities"
            raise InputError(msg, [problem(None, None, "no 'proba' parameter", "proba=true")])
        values = jsonable(predictions) if predictions.ndim == 1 else predictions.tolist()
        scores = None if probabilities is None else probabilities.tolist()
        request = prediction_log.new_request_id()
        inputs = {column.name: jsonable(frame[column.label]) for column in self.signature.columns}
        self.log.write(self.version, request, inputs, values, scores, gate=gate)
        self.metrics.answered(len(values))
        answer = {
            "predictions": values,
            "prediction_ids": prediction_log.prediction_ids(request, len(values)),
            "version": self.version,
        }
        if scores is not None:
            answer |= {"probabilities": scores, "classes": list(self.signature.classes or ())}
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)

    async def answer_in_turn(self, body: bytes, *, proba: bool, gate: bool) -> bytes:
        """`answer`, on the model's own thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._one, lambda: self.answer(body, proba=proba, gate=gate)
        )


def application() -> Starlette:
    """The routes of a deployment, as one ASGI application."""
    return Starlette(
        routes=[
            Route("/predict", predict, methods=["POST"]),
            Route("/signature", signature, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
            Route("/openapi.json", openapi_document, methods=["GET"]),
            Route("/docs.json", openapi_document, methods=["GET"]),
            Route("/", index, methods=["GET"]),
        ],
    )


async def predict(request: Request) -> Response:
    """One record, many, or columns with data."""
    predictor = _predictor(request)
    started = time.perf_counter()
    response = await _predict(predictor, request)
    predictor.metrics.observe(response.status_code, time.perf_counter() - started)
    return response


async def _predict(predictor: Predictor, request: Request) -> Response:
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        return refuse(415, f"the body must be application/json, not {media[:60] or 'untyped'}")
    wanted = request.query_params.get("proba", "false").lower()
    if wanted not in ("true", "false", "1", "0"):
        return refuse(422, "proba must be true or false")
    try:
        body = await _bounded_body(request)
    except ServiceError as error:
        return refuse(413, str(error))
    try:
        gate = request.headers.get(GATE_HEADER, "") == "gate"
        answer = await predictor.answer_in_turn(body, proba=wanted in ("true", "1"), gate=gate)
    except Unreadable as error:
        return refuse(400, str(error))
    except InputError as error:
        return refuse(422, str(error), error.problems)
    except Exception:
        logger.exception("the model failed on rows that fit its signature")
        return refuse(500, "the model failed; see the log of the service")
    return Response(answer, media_type="application/json")


async def signature(request: Request) -> Response:
    """What goes in and what comes out."""
    predictor = _predictor(request)
    return _json(200, {"name": predictor.name, "version": predictor.version, **predictor.signature.to_dict()})


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


def refuse(status: int, error: str, problems: list[dict[str, Any]] | None = None) -> Response:
    """The body of every 4xx: one line, and the problems one by one."""
    return _json(status, {"error": error, "problems": problems or []})


def parse_json(body: bytes) -> Any:
    """Parse JSON; NaN and Infinity, which are not JSON, come through so that their column can be named.

    Raises
    ------
    Unreadable
        With the place of the fault.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as strict:
        try:
            value = json.loads(body)
            json.dumps(value, ensure_ascii=False).encode()  # refuses lone surrogates, which no log could hold
        except (ValueError, RecursionError):
            msg = f"the body is not JSON: {strict}"
            raise Unreadable(msg) from strict
        return value


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

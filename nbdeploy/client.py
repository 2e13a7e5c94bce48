"""Asking a service over HTTP, a frame at a time."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import orjson
import pandas as pd

from nbdeploy import answers, arrow_body, containers
from nbdeploy.credentials import Key
from nbdeploy.errors import InputError, SaveError, ServiceError
from nbdeploy.signature import UNNAMED, Signature

JSON = "application/json"
JSON_ROWS = 20  # more travel as an Arrow stream
CHUNK_ROWS = 5_000
CHUNK_CELLS = 200_000
TIMEOUT = 60.0
RETRY_PAUSES = (0.0, 0.05, 0.2, 0.5, 1.0, 2.0)  # seconds; a worker that died is replaced meanwhile
TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # what the name of a header may be
VISIBLE = re.compile(r"[!-~]([ -~]*[!-~])?")
# Refusals that are about who asks, and not about the rows.
CLOSED = {
    401: "Its token belongs into NBDEPLOY_TOKEN, or into a file named by token_file=.",
    403: "Ask it from outside of a web page, or serve it with origins=.",
    421: "Ask it by another name, or serve it with allowed_hosts=.",
}


def predict(
    http: httpx.Client, name: str, X: Any, *, proba: bool = False, headers: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """The service's answers to `X`, with the index of `X`. See `nbdeploy.predict`."""
    http.headers.update(_checked_headers(headers or {}))
    signature = _signature(_get(http, name, "/signature"))
    frame = frame_of(X, signature)
    if not len(frame):
        msg = f"there is no row to ask {name!r} about"
        raise InputError(msg)
    parts = []
    rows = max(1, min(CHUNK_ROWS, CHUNK_CELLS // max(1, frame.shape[1])))
    for start in range(0, len(frame), rows):
        parts += _ask(http, name, signature, frame.iloc[start : start + rows], start=start, proba=proba)
    answers = pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]
    return answers.set_axis(frame.index)


def _checked_headers(headers: Mapping[Any, Any]) -> dict[str, str]:
    for name, value in headers.items():
        texts = isinstance(name, str) and isinstance(value, str)
        if not (texts and TOKEN.fullmatch(name) and VISIBLE.fullmatch(value)):
            msg = f"{name!r:.60} cannot be sent as a header with the value {value!r:.60}"
            raise InputError(msg, hint="Both are text of visible ASCII characters, the value also with spaces inside.")
    return dict(headers)


def _signature(facts: dict[str, Any]) -> Signature:
    return Signature.from_dict({key: value for key, value in facts.items() if key not in ("name", "version")})


def connect(url: str, key: Key) -> httpx.Client:
    """An HTTP client for the service at `url`. Close it."""
    # What a gate notebook asks is marked, so that it is not taken for what users ask.
    gate = {"X-NBDeploy-Purpose": "gate"} if os.environ.get("NBDEPLOY_GATE_NONCE") else {}
    # Without TLS httpx would read every certificate of the machine for nothing; no redirect, which could need them, is
    # followed. No proxy of the environment is asked.
    verify = key.tls or not url.lower().startswith("http:")
    return httpx.Client(base_url=url, timeout=TIMEOUT, trust_env=False, headers={**gate, **key.headers}, verify=verify)


class _TooLarge(InputError):
    """A body beyond the service's limit."""


def _ask(
    http: httpx.Client, name: str, signature: Signature, chunk: pd.DataFrame, *, start: int, proba: bool
) -> list[pd.DataFrame]:
    body, media = body_of(signature, chunk)
    # One id however often it is tried: the same version answers.
    headers = {"Content-Type": media, "X-Request-ID": secrets.token_hex(8)}
    params = {"proba": "true"} if proba else {}
    try:
        response = _answered(name, lambda: http.post("/predict", params=params, content=body, headers=headers), start)
    except _TooLarge:
        if len(chunk) == 1:
            raise
        half = len(chunk) // 2
        return [
            *_ask(http, name, signature, chunk.iloc[:half], start=start, proba=proba),
            *_ask(http, name, signature, chunk.iloc[half:], start=start + half, proba=proba),
        ]
    if media == arrow_body.MEDIA:
        return [arrow_body.read_answers(response.content, signature.outputs)]
    return [_answers(orjson.loads(response.content), signature)]


def body_of(signature: Signature, chunk: pd.DataFrame) -> tuple[bytes, str]:
    """What ``/predict`` takes for these rows, and its media type.

    Raises
    ------
    InputError
        A column is missing, unknown or doubled, or holds what cannot travel.
    """
    if len(chunk) > JSON_ROWS:
        # What Arrow cannot hold, a string among numbers say, goes as JSON: its refusal names the row.
        with suppress(InputError):
            return arrow_body.write_rows(chunk, signature), arrow_body.MEDIA
    payload = signature.encode(chunk)
    try:
        # orjson would write Infinity as null. As it is, the service takes it or names its column.
        return json.dumps(payload).encode() if _holds_infinity(chunk) else orjson.dumps(payload), JSON
    except (TypeError, ValueError) as error:
        msg = f"these rows cannot travel as JSON: {error}"
        raise InputError(msg) from error


def _holds_infinity(frame: pd.DataFrame) -> bool:
    return any(_infinite(frame.iloc[:, i]) for i in range(frame.shape[1]))


def _infinite(column: pd.Series) -> bool:
    first = next((value for value in column if value is not None), None) if column.dtype == object else None
    if hasattr(first, "shape") or isinstance(first, list):  # arrays, sparse rows
        return any(np.isinf(_numbers(v)).any() for v in column if v is not None)
    if pd.api.types.is_float_dtype(column.dtype):
        return bool(np.isinf(column.to_numpy(dtype="float64", na_value=math.nan)).any())
    values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
    if values.dtype.kind not in "fO":
        return False
    return any(isinstance(value, (float, np.floating)) and math.isinf(value) for value in values.tolist())


def _numbers(value: Any) -> Any:
    held = value.data if hasattr(value, "tocsr") else np.asarray(value)
    return held if held.dtype.kind == "f" else np.zeros(0)


def _answers(answer: dict[str, Any], signature: Signature) -> pd.DataFrame:
    outputs = answers.from_json(answer["predictions"], signature.outputs)
    scores = answers.scores_of(answer.get("probabilities"), several=signature.several)
    if scores is not None:
        outputs = outputs.join(answers.scores_frame(scores, signature.classes))
    return outputs.assign(prediction_id=answer["prediction_ids"], version=answer.get("versions", answer["version"]))


def _get(http: httpx.Client, name: str, path: str) -> dict[str, Any]:
    facts: dict[str, Any] = orjson.loads(_answered(name, lambda: http.get(path), 0).content)
    return facts


def _answered(name: str, send: Callable[[], httpx.Response], start: int) -> httpx.Response:
    try:
        response = _sent(send)
        if response.status_code == httpx.codes.OK:
            if response.headers.get("content-type") != arrow_body.MEDIA:
                orjson.loads(response.content)
            return response
        answer: dict[str, Any] = orjson.loads(response.content)
    except httpx.HTTPError as error:
        msg = f"{name!r} does not answer: {type(error).__name__}: {error}"
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise ServiceError(msg, "SSL_CERT_FILE names the certificates to trust.") from error
        raise ServiceError(msg, f"See %deploy status {name} and %deploy logs {name}.") from error
    except orjson.JSONDecodeError as error:
        msg = f"{name!r} answered with status {response.status_code} and no JSON"
        raise ServiceError(msg, "Is this the URL of a deployment?") from error
    if response.status_code in CLOSED:
        msg = f"{name!r} does not answer this caller: {answer.get('error')}"
        raise ServiceError(msg, CLOSED[response.status_code])
    if 400 <= response.status_code < 500:
        raise _refused(name, response.status_code, answer, start)
    said = f"{name!r} failed with status {response.status_code}: {answer.get('error')}"
    raise ServiceError(said, f"See %deploy logs {name}.")


def _sent(send: Callable[[], httpx.Response]) -> httpx.Response:
    """What the service answers, also where the worker that was asked dies: another one is asked again.

    A question that was answered right then, with the answer on its way, is then in the log twice.
    """
    pauses = iter(RETRY_PAUSES)
    while True:
        try:
            return send()
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError, httpx.ConnectError) as error:
            pause = next(pauses, None)
            if pause is None or _is_refused(error):
                raise
        time.sleep(pause)


def _is_refused(error: httpx.TransportError) -> bool:
    # Nobody listens there, or nobody whom we trust: that does not pass in a moment.
    return isinstance(error, httpx.ConnectError) and "reset" not in str(error).lower()


def _refused(name: str, status: int, answer: dict[str, Any], start: int) -> InputError:
    said, problems = str(answer.get("error")), answer.get("problems", [])
    hint = problems[0].get("hint", "") if problems else ""
    if hint:  # part of what the service says, and of what this error will say
        said = said.removesuffix(hint).rstrip()
    if start and problems and (row := problems[0].get("row")) is not None:
        said = said.replace(f"row {row}, ", f"row {row + start}, ", 1)
    problems = [{**p, "row": p["row"] + start} if p.get("row") is not None else p for p in problems]
    kind = _TooLarge if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE else InputError
    return kind(f"{name!r} refused: {said}", problems, hint)


def frame_of(X: Any, signature: Signature) -> pd.DataFrame:
    """The rows of whatever a user passes, with the columns of `signature` as far as it has them.

    Raises
    ------
    InputError
        It is nothing that has rows.
    """
    if isinstance(X, pd.DataFrame):
        return X
    if isinstance(X, dict) and not any(hasattr(value, "__array__") or isinstance(value, list) for value in X.values()):
        return pd.DataFrame([X])
    if isinstance(X, pd.Series) and set(map(str, X.index)) == set(signature.names):
        return X.to_frame().T.infer_objects()
    if isinstance(X, list) and X and isinstance(X[0], dict):
        return pd.DataFrame(X)
    if hasattr(X, "__len__") and not hasattr(X, "tocsr") and len(X) == 0:
        return pd.DataFrame(columns=signature.names)
    labels = [column.label for column in signature.columns]
    try:
        if not signature.columns[0].shape and len(labels) > 1 and isinstance(X, (list, tuple, np.ndarray)):
            return pd.DataFrame(X, columns=labels)
        rows = containers.read(X)
        frame = rows.whole()
    except (SaveError, ValueError, TypeError) as error:
        shape = getattr(X, "shape", None)
        got = f"a {type(X).__name__}" + (f" of shape {shape}" if shape is not None else "")
        msg = f"expected rows of {_wanted(signature)}, got {got}"
        raise InputError(
            msg, hint="Pass what the model was trained on: the same container, with the same columns."
        ) from error
    if rows.container in UNNAMED and frame.shape[1] == len(labels):
        frame.columns = pd.Index(labels)
    return frame


def _wanted(signature: Signature) -> str:
    first = signature.columns[0]
    one = len(signature.columns) == 1
    return first.expected if one else f"{len(signature.columns)} values"

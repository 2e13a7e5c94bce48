"""Asking a service over HTTP, a frame at a time."""

from __future__ import annotations

import os
from typing import Any

import httpx
import orjson
import pandas as pd

from nbdeploy.artifact import outputs_frame
from nbdeploy.errors import InputError, ServiceError
from nbdeploy.signature import Signature

CHUNK_ROWS = 5_000
TIMEOUT = 60.0


def predict(url: str, name: str, X: Any, *, proba: bool = False) -> pd.DataFrame:
    """The service's answers to `X`, with the index of `X`. See `nbdeploy.predict`."""
    with _connect(url) as http:
        signature = Signature.from_dict(
            {k: v for k, v in _get(http, name, "/signature").items() if k not in ("name", "version")}
        )
        frame = _frame(X, signature)
        if not len(frame):
            msg = f"there is no row to ask {name!r} about"
            raise InputError(msg)
        parts = []
        for start in range(0, len(frame), CHUNK_ROWS):
            chunk = frame.iloc[start : start + CHUNK_ROWS]
            parts.append(_ask(http, name, signature, chunk, start=start, proba=proba))
    answers = pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]
    return answers.set_axis(frame.index)


def signature(url: str, name: str) -> Signature:
    """What the service says that it takes."""
    with _connect(url) as http:
        facts = _get(http, name, "/signature")
    return Signature.from_dict({key: value for key, value in facts.items() if key not in ("name", "version")})


def _connect(url: str) -> httpx.Client:
    # What a gate notebook asks is marked, so that it is not taken for what users ask.
    headers = {"X-NBDeploy-Purpose": "gate"} if os.environ.get("NBDEPLOY_GATE_NONCE") else {}
    return httpx.Client(base_url=url, timeout=TIMEOUT, trust_env=False, headers=headers)


def _ask(
    http: httpx.Client, name: str, signature: Signature, chunk: pd.DataFrame, *, start: int, proba: bool
) -> pd.DataFrame:
    body = orjson.dumps(signature.encode(chunk))
    answer = _json(
        name,
        lambda: http.post(
            "/predict", params={"proba": "true"} if proba else {}, content=body,
            headers={"Content-Type": "application/json"},
        ),
        start,
    )  # fmt: skip
    outputs = outputs_frame(
        answer["predictions"], answer.get("probabilities"), tuple(answer.get("classes", ())) or None
    )
    if signature.output != "object" and outputs["prediction"].notna().all():
        outputs["prediction"] = outputs["prediction"].astype(signature.output)
    return outputs.assign(prediction_id=answer["prediction_ids"], version=answer["version"])


def _get(http: httpx.Client, name: str, path: str) -> dict[str, Any]:
    return _json(name, lambda: http.get(path), 0)


def _json(name: str, send: Any, start: int) -> dict[str, Any]:
    try:
        response = send()
        answer: dict[str, Any] = orjson.loads(response.content)
    except httpx.HTTPError as error:
        msg = f"{name!r} does not answer: {type(error).__name__}: {error}"
        raise ServiceError(msg, f"See %deploy status {name} and %deploy logs {name}.") from error
    except orjson.JSONDecodeError as error:
        msg = f"{name!r} answered with status {response.status_code} and no JSON"
        raise ServiceError(msg, "Is this the URL of a deployment?") from error
    if response.status_code == httpx.codes.OK:
        return answer
    problems = [{**p, "row": p["row"] + start} if p.get("row") is not None else p for p in answer.get("problems", [])]
    if 400 <= response.status_code < 500:
        msg_0 = f"{name!r} refused: {answer.get('error')}"
        raise InputError(msg_0, problems, problems[0]["hint"] if problems else "")
    msg_0 = f"{name!r} failed with status {response.status_code}: {answer.get('error')}"
    raise ServiceError(msg_0,
                       f"See %deploy logs {name}.")  # fmt: skip


def _frame(X: Any, signature: Signature) -> pd.DataFrame:
    if isinstance(X, pd.DataFrame):
        return X
    if isinstance(X, pd.Series):
        return X.to_frame().T.infer_objects()
    if isinstance(X, dict):
        return pd.DataFrame([X])
    if isinstance(X, list) and X and isinstance(X[0], dict):
        return pd.DataFrame(X)
    return pd.DataFrame(X, columns=[column.label for column in signature.columns])

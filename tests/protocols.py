"""A model behind the routes of one protocol, without HTTP: what is asked, answered by the model, and written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nbdeploy import answers
from nbdeploy.errors import InputError
from nbdeploy.exchange import Answer, Asked, Question, Refused, Reply, Route, Served, refusal_body
from nbdeploy.request_body import Unreadable
from nbdeploy.signature import Signature
from nbdeploy.signature_inference import infer_columns

FLIGHTS = pd.DataFrame(
    {
        "month": pd.Series([1, 2, 3], dtype="int32"),
        "delay": [1.5, float("nan"), -3.0],
        "distance": pd.Series([100.0, 200.5, 300.0], dtype="float32"),
        "late": [True, False, True],
        "carrier": pd.Categorical(["UA", "AA", "UA"]),
        "tailnum": pd.Series(["N1", None, "N3"], dtype=object),
        "when": pd.to_datetime(["2013-01-01T05:00", "2013-01-02T06:00", "2013-01-03T07:00"]),
    }
)
RECORD = {
    "month": 1, "delay": 1.5, "distance": 100.0, "late": True, "carrier": "UA", "tailnum": "N1",
    "when": "2013-01-01T05:00:00",
}  # fmt: skip
CLASSES = ("early", "late")


def flights_model(X: pd.DataFrame) -> np.ndarray:
    """Says "late" for those that left late."""
    pd.testing.assert_series_equal(X.dtypes, FLIGHTS.dtypes)
    return np.where(X["delay"].fillna(0) > 0, "late", "early").astype(object)


def chances(X: pd.DataFrame) -> np.ndarray:
    late = (X["delay"].fillna(0) > 0).to_numpy(dtype=float)
    return np.column_stack([1 - late, late])


def flights_signature(**changes: Any) -> Signature:
    facts = {"outputs": (answers.Output("", answers.STRING),), "classes": CLASSES, "task": "classification"}
    return Signature(columns=infer_columns(FLIGHTS), **(facts | changes))


@dataclass
class Face:
    """The routes of one protocol around `model`; `ask` is what HTTP would do."""

    routes: Callable[[Served], list[Route]]
    signature: Signature
    model: Callable[[pd.DataFrame], Any]
    chances: Callable[[pd.DataFrame], Any] | None = None
    name: str = "flights"
    version: str = "v3"

    def __post_init__(self) -> None:
        served = Served(self.name, self.version, self.signature)
        self.table = {(route.method, route.path): route for route in self.routes(served)}

    def question(
        self, path: str, body: Any, media: str = "application/json", query: Mapping[str, str] = {}, **headers: str
    ) -> Question:
        route = self.table["POST", path]
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {key.replace("_", "-").lower(): value for key, value in headers.items()}
        if media:
            named["content-type"] = media
        asked = Asked("POST", path, query, named, data)
        assert route.read is not None
        if route.media and asked.media not in route.media:
            raise Refused(415, "media")
        return route.read(asked)

    def answer(self, question: Question) -> Reply:
        frame = self.signature.build(question.columns) if question.frame is None else question.frame
        assert len(frame) == question.rows
        raw = answers.predicted(self.model(frame), question.rows, "predict")
        scores = self.chances(frame) if question.proba and self.chances else None
        facts = ("f00d", self.version, self.signature.outputs, self.signature.classes, question.rows)
        if question.frame is not None:
            return question.write(Answer(*facts, raw=raw, raw_scores=scores))
        given = {"given": answers.rows_of(raw), "given_scores": answers.score_rows(scores)}
        return question.write(Answer(*facts, **given))

    def post(self, path: str, body: Any, *args: Any, **kwargs: Any) -> Reply:
        try:
            return self.answer(self.question(path, body, *args, **kwargs))
        except Refused as error:
            refused = error
        except Unreadable as error:
            refused = Refused(400, str(error))
        except InputError as error:
            refused = Refused(422, str(error), error.problems)
        write = self.table["POST", path].refuse or refusal_body
        return Reply(write(refused), status=refused.status)

    def ask(self, *args: Any, **kwargs: Any) -> tuple[int, Any]:
        """The status and the parsed body."""
        reply = self.post(*args, **kwargs)
        return reply.status, json.loads(reply.body)

    def get(self, path: str) -> Any:
        show = self.table["GET", path].show
        assert show is not None
        reply = show(Asked("GET", path, {}, {}))
        return json.loads(reply.body) if reply.media == "application/json" else reply.body

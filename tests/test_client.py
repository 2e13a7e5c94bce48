"""The client sends what the frame holds, in requests that a service takes, and says what was refused once."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
import numpy as np
import orjson
import pandas as pd
import pytest

import nbdeploy
from nbdeploy import arrow_body, client
from nbdeploy.credentials import Key
from nbdeploy.signature import Column, Output, Signature
from nbdeploy.signature_inference import infer_columns
from services import running


class Told:
    """Stands in for a service: counts requests and cells, and answers each row with its number."""

    def __init__(self, signature: Signature, most_bytes: int = 1 << 30) -> None:
        self.signature, self.most_bytes = signature, most_bytes
        self.bodies: list[bytes] = []
        self.sizes: list[int] = []
        self.sent: list[str | None] = []
        self.refusal: dict[str, Any] | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/signature":
            return httpx.Response(200, json={"name": "told", "version": "v1", **self.signature.to_dict()})
        if len(request.content) > self.most_bytes:
            return httpx.Response(413, json={"error": "the body is too large", "problems": []})
        self.bodies.append(request.content)
        self.sent.append(request.headers.get("X-Client-ID"))
        if self.refusal is not None:
            return httpx.Response(422, json=self.refusal)
        if request.headers["content-type"] == arrow_body.MEDIA:
            first = arrow_body.read(request.content, self.signature).iloc[:, 0]
            self.sizes.append(len(first))
            values = first.to_numpy() if first.dtype == "int64" else np.zeros(len(first), dtype="int64")
            body = arrow_body.write_answers(values, None, None, "i", "v1")
            return httpx.Response(200, content=body, headers={"content-type": arrow_body.MEDIA})
        rows = json.loads(request.content)["data"]
        self.sizes.append(len(rows))
        answers = [row[0] if isinstance(row[0], int) else 0 for row in rows]
        return httpx.Response(200, json={"predictions": answers, "prediction_ids": ["i"] * len(rows), "version": "v1"})


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Any:
    def stand_in(frame: pd.DataFrame, **options: Any) -> Told:
        service = Told(Signature(infer_columns(frame), outputs=(Output(dtype="int64"),)), **options)
        transport = httpx.MockTransport(service)
        monkeypatch.setattr(client, "connect", lambda url, _key: httpx.Client(base_url=url, transport=transport))
        return service

    return stand_in


def ask(X: Any) -> pd.DataFrame:
    with client.connect("http://told", Key()) as http:
        return client.predict(http, "told", X)


def test_a_wide_frame_is_sent_in_requests_of_few_cells(told: Any) -> None:
    frame = pd.DataFrame({f"x{i}": np.arange(250) for i in range(2000)})
    service = told(frame)

    answers = ask(frame)

    assert list(answers["prediction"]) == list(range(250))
    assert sum(service.sizes) == 250
    assert max(service.sizes) * 2000 <= 200_000


def test_what_is_too_large_is_sent_in_halves(told: Any) -> None:
    frame = pd.DataFrame({"i": range(100), "text": ["x" * 1000] * 100})
    service = told(frame, most_bytes=20_000)

    assert list(ask(frame)["prediction"]) == list(range(100))
    assert len(service.bodies) == 8

    with pytest.raises(nbdeploy.InputError, match="too large"):
        ask(frame.head(1).assign(text="x" * 30_000))


@pytest.mark.parametrize("dtype", ["float64", "float32", "object", "Float64"])
def test_infinity_is_sent_as_it_is(told: Any, dtype: str) -> None:
    frame = pd.DataFrame({"x": pd.Series([1.0, 2.0])})
    service = told(frame)

    ask(pd.DataFrame({"x": pd.Series([1.5, math.inf, -math.inf], dtype=dtype)}))

    (body,) = service.bodies
    assert [row[0] for row in json.loads(body)["data"]] == [1.5, math.inf, -math.inf]


def test_without_infinity_the_body_is_strict_json(told: Any) -> None:
    frame = pd.DataFrame({"x": [1.0, math.nan], "s": ["a", None]})
    service = told(frame)

    ask(frame)

    assert orjson.loads(service.bodies[0])["data"] == [[1.0, "a"], [None, None]]


@pytest.mark.parametrize(
    ("X", "says"),
    [
        (np.zeros((2, 3)), "rows of 2 values"),
        (np.zeros((2, 2, 2)), "rows of 2 values"),
        (5, "rows of 2 values"),
        (pd.DataFrame([[1, 2, 3]], columns=["a", "b", "b"]), "'b'"),
        (pd.DataFrame({"a": [1], "b": [object()]}), ""),
    ],
)
def test_what_is_no_table_of_the_right_width_is_one_line(told: Any, X: Any, says: str) -> None:
    service = told(pd.DataFrame({"a": [1, 2], "b": [1, 2]}))

    with pytest.raises(nbdeploy.InputError) as refused:
        ask(X)

    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not service.bodies


def test_a_refusal_says_its_hint_once_and_counts_rows_of_the_whole_frame(told: Any) -> None:
    frame = pd.DataFrame({"a": range(6000)})
    service = told(frame)
    with pytest.raises(nbdeploy.InputError) as local:
        Signature((Column("a", "int", "int64"),)).decode([{"a": None}])
    service.refusal = {"error": str(local.value), "problems": local.value.problems}
    hint = local.value.hint
    assert hint

    with pytest.raises(nbdeploy.InputError) as refused:
        ask(frame)

    assert str(refused.value).count(hint) == 1
    assert refused.value.hint == hint

    later = client._refused("told", 422, service.refusal, 5000)
    assert "row 5000, column 'a'" in str(later)
    assert later.problems[0]["row"] == 5000


def test_several_predictions_per_row_are_served_asked_and_validated() -> None:
    from sklearn.linear_model import LinearRegression

    X = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=list("abc"))
    model = LinearRegression().fit(X, np.column_stack([X["a"] + X["b"], X["c"] * 2]))

    with running(model, "several", X) as (service, home), pytest.MonkeyPatch.context() as patch:
        patch.setenv("NBDEPLOY_HOME", str(home))
        patch.setenv("BENTOML_HOME", str(home.parent / "bentoml"))
        answers = nbdeploy.predict("several", X.head(4))
        result = nbdeploy.validate("several", parameters={"requests": 2}, progress=False)

    assert service.url
    assert all(value.dtype == "float64" and value.shape == (2,) for value in answers["prediction"])
    np.testing.assert_allclose(answers["prediction"].tolist(), model.predict(X.head(4)), rtol=1e-12)
    assert result.passed, result
    assert "rows with another prediction" in [one.name for one in result.checks]


def test_rows_with_lists_of_several_lengths_are_answers() -> None:
    answer = {"predictions": [[1], [1, 2]], "prediction_ids": ["a", "b"], "version": "v1"}

    assert client._answers(answer, Signature((), outputs=(Output(dtype="object"),)))["prediction"].tolist() == [
        [1],
        [1, 2],
    ]


def test_what_a_caller_sends_along_comes_with_every_request_and_is_refused_where_no_header_can_hold_it(told):
    frame = pd.DataFrame({"n": range(3)})
    service = told(frame)
    with client.connect("http://told", Key()) as http:
        client.predict(http, "told", frame, headers={"X-Client-ID": "desk 7"})
        for headers in ({"X-Client-ID": "a\r\nHost: b"}, {"X-Client-ID": 7}, {"X Client": "7"}, {"X-Client-ID": "ü"}):
            with pytest.raises(nbdeploy.InputError, match="cannot be sent as a header"):
                client.predict(http, "told", frame, headers=headers)

    assert service.sent == ["desk 7"]

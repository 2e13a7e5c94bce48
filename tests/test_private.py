"""The values of private columns are in no log, no error, no page and no report."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression
from starlette.testclient import TestClient

import nbdeploy
from nbdeploy import drift_report, prediction_log
from nbdeploy.errors import InputError, SaveError
from nbdeploy.signature_inference import infer_columns

PRIVATE = ["tailnum", "group", "wealth", "born", "when", "vector"]
TRAINED = "TRAINED"  # in every private text that was learned from
CANARY = "CANARY"  # in every private text that is asked about
NUMBER, DAY, MOMENT = 7_777_123, "1977-07-17", "1987-08-17T08:17:27"
SECRETS = [
    CANARY,
    str(NUMBER),
    DAY,
    MOMENT,
    "7777.125",
    TRAINED,
    "908172635",
    "9081.72635",
]  # the last two are of training rows


def training(rows: int) -> pd.DataFrame:
    i = np.arange(rows)
    return pd.DataFrame(
        {
            "delay": i % 60 / 2,
            "origin": [("EWR", "JFK")[k % 2] for k in i],
            "tailnum": [f"{TRAINED}-{k}" for k in i],
            "group": pd.Categorical([f"{TRAINED}-{k % 3}" for k in i]),
            "wealth": 908_172_635,
            "born": pd.Series([pd.Timestamp("1942-04-20").date()] * rows, dtype=object),
            "when": pd.to_datetime(["1942-04-20T04:24:24"] * rows),
            "vector": [np.full(2, 9081.72635)] * rows,
        }
    )


def asked(rows: int) -> pd.DataFrame:
    frame = training(rows).assign(wealth=NUMBER, when=pd.Timestamp(MOMENT), vector=[np.full(2, 7777.125)] * rows)
    return frame.assign(
        tailnum=[f"{CANARY}-{k}" for k in range(rows)], group=pd.Categorical([f"{CANARY}-{k % 5}" for k in range(rows)]),
        born=pd.Series([pd.Timestamp(DAY).date()] * rows, dtype=object),
    )  # fmt: skip


class Quoting:
    """Complains by quoting the row, as models do."""

    def predict(self, X):
        if (X["delay"] < 0).any():
            msg = f"cannot answer {X.to_dict('records')}"
            raise ValueError(msg)
        return X["delay"].to_numpy() > 15


@pytest.fixture
def service(home: Path, monkeypatch: pytest.MonkeyPatch) -> nbdeploy.Deployment:
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    return nbdeploy.deploy(Quoting(), "flights", training(300), private=PRIVATE, progress=False)


def bodies(rows: pd.DataFrame) -> list[dict]:
    plain = rows.drop(columns=["born", "when"])
    return [{**record, "born": DAY, "when": MOMENT} for record in json.loads(plain.to_json(orient="records"))]


def post(service: nbdeploy.Deployment, body: object) -> httpx.Response:
    headers = {"Content-Type": "application/json"}
    content = body if isinstance(body, (str, bytes)) else json.dumps(body)
    return httpx.post(f"{service.url}/predict", content=content, headers=headers, timeout=30)


def leaks(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def written(home: Path) -> dict[str, str]:
    """Everything on disk but the versions themselves and BentoML's copies of them."""
    return {
        str(path.relative_to(home)): path.read_bytes().decode(errors="replace")
        for path in home.rglob("*")
        if path.is_file() and not path.is_socket()
    }


@pytest.mark.parametrize("requests", [500, pytest.param(5_000, marks=pytest.mark.slow)])
def test_no_private_value_is_logged_or_shown(requests, service, home, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    sent = bodies(asked(requests))
    with httpx.Client(base_url=service.url, timeout=30) as http:
        for body in sent:
            assert http.post("/predict", json=body).status_code == 200

    told = nbdeploy.predictions("flights")
    assert len(told) == requests
    assert list(told.columns) == ["delay", "origin", "prediction", "prediction_id", "version", "time", "label"]
    report = nbdeploy.drift("flights", html_path=tmp_path / "drift.html")
    assert not set(PRIVATE) & set(report.columns.index)
    assert nbdeploy.card("flights") is not None
    nbdeploy.stop("flights")
    files = written(home)
    assert any(name.startswith("predictions") for name in files)
    assert {name: found for name, text in files.items() if (found := leaks(text))} == {}
    pages = {path.name: path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()}
    assert {name: found for name, text in pages.items() if (found := leaks(text))} == {}


def test_hashed_columns_are_joinable_in_the_log_and_nowhere_told(home, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    monkeypatch.chdir(tmp_path)
    hidden = {**dict.fromkeys(PRIVATE, "hash"), "wealth": "drop"}
    service = nbdeploy.deploy(Quoting(), "flights", training(300), private=hidden, progress=False)
    rows = asked(30)
    for body in bodies(rows):
        assert post(service, body).status_code == 200
    nbdeploy.predict("flights", rows)  # as Arrow

    told = nbdeploy.predictions("flights")
    assert len(told) == 60
    assert "wealth" not in told
    for name, distinct in {"tailnum": 30, "group": 5, "born": 1, "when": 1, "vector": 1}.items():
        assert told[name].str.fullmatch("[0-9a-f]{16}").all()
        assert told[name].nunique() == distinct, name
    report = nbdeploy.drift("flights", html_path=tmp_path / "drift.html")
    assert not set(PRIVATE) & set(report.columns.index)
    nbdeploy.stop("flights")
    prediction_log.seal("flights")
    assert len(nbdeploy.predictions("flights")) == 60
    files = {name: text for name, text in written(home).items() if name.startswith(("predictions", "keys"))}
    assert any(name.endswith(".parquet") for name in files)
    assert {name: found for name, text in files.items() if (found := leaks(text))} == {}
    assert leaks((tmp_path / "drift.html").read_text()) == []


@pytest.mark.parametrize(
    ("private", "said"),
    [({"tailnum": "hide"}, "'hide'"), ({"tailnumber": "hash"}, "tailnumber"), (["tailnum=has"], "'has'")],
)
def test_what_is_said_of_a_private_column_is_checked(private, said):
    with pytest.raises(SaveError, match=said):
        nbdeploy.save(Quoting(), "flights", training(30), private=private, progress=False)


def test_a_list_may_say_hash_and_a_name_with_an_equals_sign_is_a_name():
    frame = training(3)[["delay", "origin"]].assign(**{"a=hash": 1.0})
    signature = nbdeploy.Signature(infer_columns(frame)).with_private(["origin=hash", "a=hash"])
    assert [(c.name, c.private, c.hashed) for c in signature.columns] == [
        ("delay", False, False), ("origin", True, True), ("a=hash", True, False),
    ]  # fmt: skip
    assert [c.name for c in signature.logged] == ["delay", "origin"]
    assert leaks(repr(signature.shown())) == []


def test_no_page_shows_what_was_learned_from_a_private_column(service):
    for path in ("/signature", "/openapi.json", "/docs.json", "/", "/metrics", "/card"):
        response = httpx.get(f"{service.url}{path}", timeout=30)
        assert response.status_code == 200, path
        assert leaks(response.text) == [], path
    (version,) = nbdeploy.versions("flights")
    for shown in (repr(version), repr(version.signature), version.signature._repr_html_()):
        assert leaks(shown) == []
    assert leaks(str(nbdeploy.status("flights"))) == []
    card = nbdeploy.card("flights")
    assert leaks(str(card) + getattr(card, "_repr_html_", str)()) == []
    example = json.loads(httpx.get(f"{service.url}/signature").text)["example"]
    assert post(service, example).status_code == 200  # with stand-ins for the private values


def test_no_panel_shows_what_was_learned_from_a_private_column(service):
    from nbdeploy import panel_parts

    shown = nbdeploy.panel("flights")

    said = [str(widget.get_state()) for widget in panel_parts._with_children(shown.box)]
    assert leaks(" ".join(said)) == []
    assert len(said) > 10


WRONG = {
    "type of a text": {"tailnum": 4242}, "type of a number": {"wealth": f"{CANARY}"}, "number as text": {"wealth": str(NUMBER)},
    "fraction": {"wealth": NUMBER + 0.5}, "too large": {"wealth": NUMBER * 10**15}, "category": {"group": NUMBER},
    "date": {"born": f"{DAY}x"}, "datetime": {"when": f"{MOMENT}+25:00"}, "offset": {"when": f"{MOMENT}Z"},
    "beyond": {"when": f"9{MOMENT}"}, "vector": {"vector": NUMBER}, "vector as text": {"vector": CANARY},
    "vector of texts": {"vector": [CANARY, CANARY]}, "shape": {"vector": [7777.125] * 3}, "null": {"tailnum": None},
    "list": {"tailnum": [CANARY]}, "object": {"tailnum": {CANARY: CANARY}}, "model error": {"delay": -1.0},
    "unseen": {"delay": -1.0, "origin": "LGA"},
}  # fmt: skip


def test_no_error_quotes_a_private_value(service, home):
    good = bodies(asked(1))[0]
    assert post(service, good).status_code == 200

    for what, change in WRONG.items():
        answer = post(service, {**good, **change})
        assert answer.status_code == 422, (what, answer.text)
        assert leaks(answer.text) == [], what
        assert leaks(post(service, [good, {**good, **change}]).text) == [], what
    for body in (
        json.dumps(good)[:-1],
        json.dumps(good) + CANARY,
        json.dumps(good)[:-1] + f', "tailnum": "{CANARY}"}}',
    ):
        answer = post(service, body)
        assert 400 <= answer.status_code < 500
        assert leaks(answer.text) == []
    with pytest.raises(InputError) as refused:
        nbdeploy.predict("flights", asked(2).assign(delay=-1.0))
    assert leaks(f"{refused.value} {refused.value.details} {refused.value.problems}") == []
    with pytest.raises(InputError) as refused:
        nbdeploy.predict("flights", asked(2).assign(tailnum=pd.Series([f"{CANARY}\ud800"] * 2, dtype=object)))
    assert leaks(f"{refused.value} {refused.value.problems}") == []

    nbdeploy.stop("flights")
    time.sleep(0.2)
    assert {name: found for name, text in written(home).items() if (found := leaks(text))} == {}
    assert leaks(str(nbdeploy.logs("flights"))) == []


def test_an_unknown_private_column_is_refused_with_the_name_that_was_meant():
    with pytest.raises(SaveError, match="tailnum"):
        nbdeploy.save(Quoting(), "flights", training(30), private=["tailnumber"], progress=False)

    assert nbdeploy.status().empty


def test_a_text_alone_is_not_taken_for_its_letters():
    with pytest.raises(SaveError):
        nbdeploy.save(Quoting(), "flights", training(30), private="tailnum", progress=False)


@pytest.mark.parametrize("how", ["drop", "hash"])
def test_drift_finds_the_logs_own_columns_though_a_private_one_has_their_name(how, monkeypatch):
    rows = pd.DataFrame({"version": range(20), "prediction": range(20), "x": np.arange(20.0)})
    model = LinearRegression().fit(rows, rows["x"])
    nbdeploy.save(model, "named", rows, rows["x"], private={"version": how, "prediction": how}, progress=False)
    app = nbdeploy.asgi("named")
    with TestClient(app) as client:
        assert client.post("/predict", json={"version": 3, "prediction": 3, "x": 1.5}).status_code == 200
    app.close()
    measured = []
    monkeypatch.setattr(drift_report, "measure", lambda *sides, **_: measured.append(sides))

    nbdeploy.drift("named")

    ((reference, current),) = measured
    assert list(reference.frame) == list(current.frame)
    assert current.frame["x"].tolist() == [1.5]

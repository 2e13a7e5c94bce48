"""What BentoML's own client finds and sends."""

from __future__ import annotations

import pandas as pd
import pytest

from nbdeploy import protocol_bentoml
from nbdeploy.signature import Signature
from nbdeploy.signature_inference import infer_columns
from protocols import RECORD, Face, chances, flights_model, flights_signature

PATH = "/bentoml/predict"
TOLD = {"predictions": ["late"], "prediction_ids": ["f00d-0"], "version": "v3"}


@pytest.fixture(scope="module")
def face() -> Face:
    return Face(protocol_bentoml.routes, flights_signature(), flights_model, chances)


@pytest.mark.parametrize(
    "body",
    [
        {"rows": RECORD},
        {"rows": [RECORD]},
        {"rows": {"columns": [*RECORD], "data": [[*RECORD.values()]]}},
        {"frame": [RECORD]},
        {"rows": [RECORD], "proba": False},
    ],
)
def test_every_form_of_predict_is_taken_and_answered_as_predict_does(face, body):
    assert face.ask(PATH, body) == (200, TOLD)


def test_probabilities_come_with_their_classes(face):
    more = {"probabilities": [[0.0, 1.0]], "classes": ["early", "late"]}
    assert face.ask(PATH, {"rows": [RECORD], "proba": True}) == (200, TOLD | more)


def test_columns_of_these_very_names_are_a_record():
    frame = pd.DataFrame({"columns": [1, 2], "data": [3, 4]})
    face = Face(protocol_bentoml.routes, Signature(columns=infer_columns(frame)), lambda X: X["data"])

    assert face.ask(PATH, {"rows": {"columns": 1, "data": 4}})[1]["predictions"] == [4]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ([RECORD], 400, "a JSON object"),
        ({}, 400, "neither"),
        ({"rows": [RECORD], "frame": [RECORD]}, 400, "both"),
        ({"rows": [RECORD], "x": 1}, 400, "the key 'x'"),
        ({"rows": [RECORD], "proba": 1}, 422, "proba"),
        ({"rows": []}, 422, "at least one row"),
        ({"rows": 1}, 422, "a list of rows"),
        ({"frame": RECORD}, 422, "a list of rows"),
        ({"rows": [{**RECORD, "month": "1"}]}, 422, "row 0, column 'month'"),
        ({"rows": {"columns": 1, "data": 2}}, 422, "'columns' as a list of names"),
    ],
)
def test_what_does_not_fit_is_named(face, body, status, says):
    got, told = face.ask(PATH, body)

    assert (got, says in told["error"]) == (status, True), told


def test_the_schema_has_what_the_client_looks_for(face):
    schema = face.get("/schema.json")

    assert [route["name"] for route in schema["routes"]] == ["predict", "predict_frame"]
    for route in schema["routes"]:
        assert ("POST", route["route"]) in face.table
        assert route["input"]["required"][0] in route["input"]["properties"]

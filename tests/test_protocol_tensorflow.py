"""TensorFlow Serving's REST protocol, as its documentation has it: rows, columns, status and metadata."""

from __future__ import annotations

import base64
import json

import numpy as np
import pandas as pd
import pytest

from nbdeploy import answers, protocol_tensorflow
from nbdeploy.signature import Signature
from nbdeploy.signature_inference import infer_columns
from protocols import RECORD, Face, chances, flights_model, flights_signature

PATH = "/v1/models/flights:predict"
COLUMNS = {name: [value] for name, value in RECORD.items()}


@pytest.fixture(scope="module")
def face() -> Face:
    return Face(protocol_tensorflow.routes, flights_signature(), flights_model, chances)


def encoded(text: str) -> dict[str, str]:
    return {"b64": base64.b64encode(text.encode()).decode()}


def test_rows_give_predictions_and_columns_give_outputs(face):
    assert face.ask(PATH, {"instances": [RECORD]}) == (200, {"predictions": ["late"]})
    assert face.ask(PATH, {"inputs": COLUMNS}) == (200, {"outputs": ["late"]})
    assert face.ask(PATH, {"signature_name": "serving_default", "inputs": COLUMNS})[0] == 200


def test_a_version_may_be_named_by_number_or_by_name(face):
    for version in ("3", "v3"):
        assert face.ask(f"/v1/models/flights/versions/{version}:predict", {"instances": [RECORD]})[0] == 200
        status = face.get(f"/v1/models/flights/versions/{version}")
        assert status["model_version_status"][0]["version"] == "3"
    assert ("POST", "/v1/models/flights/versions/2:predict") not in face.table


def test_the_only_input_needs_no_name():
    """The documentation's own example, half plus three."""
    signature = Signature(columns=infer_columns(pd.DataFrame({"x": [1.0, 2.0]})))
    face = Face(protocol_tensorflow.routes, signature, lambda X: X["x"] / 2 + 3)

    assert face.ask(PATH, {"instances": [1.0, 2.0, 5.0]}) == (200, {"predictions": [3.5, 4.0, 5.5]})
    assert face.ask(PATH, {"inputs": [1.0, 2.0]}) == (200, {"outputs": [3.5, 4.0]})
    assert face.ask(PATH, {"inputs": {"x": [1.0]}}) == (200, {"outputs": [3.5]})


def test_tensors_are_nested_lists():
    images = np.arange(12, dtype="uint8").reshape(3, 2, 2)
    frame = pd.DataFrame({"tag": ["a", "b", "c"], "sensor": answers.cells(list(images))})
    face = Face(
        protocol_tensorflow.routes,
        Signature(columns=infer_columns(frame)),
        lambda X: np.stack(X["sensor"]).max(axis=(1, 2)),
    )

    rows = [{"tag": "a", "sensor": [[1, 2], [3, 4]]}, {"tag": "b", "sensor": [[4, 5], [6, 8]]}]
    columns = {"tag": ["a", "b"], "sensor": [[[1, 2], [3, 4]], [[4, 5], [6, 8]]]}
    assert face.ask(PATH, {"instances": rows}) == (200, {"predictions": [4, 8]})
    assert face.ask(PATH, {"inputs": columns}) == (200, {"outputs": [4, 8]})


def test_named_outputs_are_objects_in_rows_and_one_object_in_columns():
    outputs = (answers.Output("a", "int64"), answers.Output("b", "float64"))
    face = Face(
        protocol_tensorflow.routes, flights_signature(outputs=outputs, classes=None), lambda X: {"a": np.arange(len(X)), "b": np.ones(len(X))}
    )  # fmt: skip

    two = {"instances": [RECORD, RECORD]}
    assert face.ask(PATH, two) == (200, {"predictions": [{"a": 0, "b": 1.0}, {"a": 1, "b": 1.0}]})
    assert face.ask(PATH, {"inputs": COLUMNS}) == (200, {"outputs": {"a": [0], "b": [1.0]}})


def test_probabilities_are_one_more_output(face):
    told = face.ask(PATH, {"instances": [RECORD]}, query={"proba": "true"})
    assert told == (200, {"predictions": [{"prediction": "late", "probabilities": [0.0, 1.0]}]})
    told = face.ask(PATH, {"inputs": COLUMNS}, query={"proba": "1"})
    assert told == (200, {"outputs": {"prediction": ["late"], "probabilities": [[0.0, 1.0]]}})
    assert face.ask(PATH, {"inputs": COLUMNS}, query={"proba": "maybe"})[0] == 422


def test_text_may_come_as_base64(face):
    rows = [RECORD | {"tailnum": encoded("Nº1"), "carrier": encoded("UA")}]
    assert face.question(PATH, {"instances": rows}).columns["tailnum"] == ["Nº1"]
    assert face.question(PATH, {"inputs": {**COLUMNS, "tailnum": [encoded("x")]}}).columns["tailnum"] == ["x"]


@pytest.mark.parametrize("odd", [{"b64": "?"}, {"b64": "/w=="}, {"b64": 1}, {"b64": "eA==", "c": 1}, {"b64": None}])
def test_base64_of_no_text_is_refused(face, odd):
    status, told = face.ask(PATH, {"instances": [RECORD | {"tailnum": odd}]})

    assert (status, "column 'tailnum': expected a string or null, got an object" in told["error"]) == (422, True)


def test_base64_is_no_number(face):
    assert face.ask(PATH, {"instances": [RECORD | {"month": encoded("1")}]})[0] == 422


def test_a_column_of_that_name_stays_a_column():
    face = Face(
        protocol_tensorflow.routes,
        Signature(columns=infer_columns(pd.DataFrame({"b64": ["a", "b"]}))),
        lambda X: X["b64"],
    )

    assert face.ask(PATH, {"instances": [{"b64": "eA=="}]}) == (200, {"predictions": ["eA=="]})


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"nonsense", 400, "not JSON"),
        ([1], 400, "a JSON object"),
        ({}, 400, "neither"),
        ({"instances": [RECORD], "inputs": COLUMNS}, 400, "both"),
        ({"instances": [RECORD], "params": {}}, 400, "the key 'params'"),
        ({"instances": [RECORD], "signature_name": "regress"}, 422, "signature_name"),
        ({"instances": [RECORD], "signature_name": 7}, 422, "signature_name"),
        ({"instances": RECORD}, 422, "a list of rows"),
        ({"instances": []}, 422, "at least one row"),
        ({"instances": [[1, 2]]}, 422, "a record"),
        ({"instances": [RECORD, {}]}, 422, "row 1, column 'month'"),
        ({"instances": [RECORD | {"x": 1}]}, 422, "an unknown column"),
        ({"instances": [RECORD | {"distance": float("nan")}]}, 422, "got NaN"),
        ({"inputs": {**COLUMNS, "month": [1, 2]}}, 422, "column 'delay': expected 2 values, as in 'month', got 1 values"),
        ({"inputs": 1}, 422, "a list of rows"),
        (b'{"instances": [{"month": 1, "month": 2}], "instances": []}', 422, "twice"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error(face, body, status, says):
    got, told = face.ask(PATH, body)

    assert (got, says in told["error"]) == (status, True), told
    assert isinstance(told["error"], str)


def test_status_and_metadata_have_the_documented_form(face):
    assert face.get("/v1/models/flights") == {
        "model_version_status": [
            {"version": "3", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }
    found = face.get("/v1/models/flights/metadata")
    assert found["model_spec"] == {"name": "flights", "signature_name": "", "version": "3"}
    signature = found["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    types = {name: each["dtype"] for name, each in signature["inputs"].items()}
    assert types == {
        "month": "DT_INT32", "delay": "DT_DOUBLE", "distance": "DT_FLOAT", "late": "DT_BOOL", "carrier": "DT_STRING",
        "tailnum": "DT_STRING", "when": "DT_STRING",
    }  # fmt: skip
    assert signature["outputs"]["probabilities"]["tensor_shape"]["dim"][1]["size"] == "2"
    assert json.dumps(found)

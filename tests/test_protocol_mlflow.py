"""MLflow's scoring protocol: every input form, its answers and errors, by the rules of /predict."""

from __future__ import annotations

import json
import math
import time
import tracemalloc

import numpy as np
import pandas as pd
import pytest

from nbdeploy import answers, csv_body, protocol_mlflow
from nbdeploy.signature import Signature
from nbdeploy.signature_inference import infer_columns
from protocols import CLASSES, FLIGHTS, RECORD, Face, chances, flights_model, flights_signature

PATH = "/invocations"
COLUMNS = {name: [value] for name, value in RECORD.items()}
SPLIT = {"columns": [*RECORD], "data": [[*RECORD.values()]]}


@pytest.fixture(scope="module")
def face() -> Face:
    return Face(protocol_mlflow.routes, flights_signature(), flights_model, chances)


def array_face(X: np.ndarray, model=lambda X: X.to_numpy().sum(axis=1), **facts) -> Face:
    frame = pd.DataFrame(X, columns=[f"x{i}" for i in range(X.shape[1])])
    signature = Signature(columns=infer_columns(frame), container="array", detail=str(X.dtype), **facts)
    return Face(protocol_mlflow.routes, signature, model)


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": SPLIT},
        {"dataframe_split": SPLIT | {"index": [7]}},
        {"dataframe_split": {"columns": [*RECORD][::-1], "data": [[*RECORD.values()][::-1]]}},
        {"dataframe_records": [RECORD]},
        {"inputs": COLUMNS},
        {"inputs": [RECORD]},
        {"inputs": RECORD},
        {"instances": [RECORD]},
        {"instances": COLUMNS},
        {"inputs": COLUMNS, "params": {}},
        {"inputs": COLUMNS, "params": None},
    ],
)
def test_every_json_form_is_the_same_question(face, body):
    assert face.question(PATH, body).columns == COLUMNS
    assert face.ask(PATH, body) == (200, {"predictions": ["late"]})


def test_rows_and_bare_values_are_enough_where_names_are_not_needed():
    one = Face(
        protocol_mlflow.routes,
        Signature(columns=infer_columns(pd.DataFrame({"text": ["a", "b"]}))),
        lambda X: X["text"],
    )
    many = array_face(np.arange(6.0).reshape(2, 3))

    assert one.ask(PATH, {"inputs": ["x", "y"]}) == (200, {"predictions": ["x", "y"]})
    assert many.ask(PATH, {"inputs": [[1, 2, 3], [4, 5, 6]]}) == (200, {"predictions": [6.0, 15.0]})
    assert many.ask(PATH, {"inputs": {"x0": [1], "x1": [2], "x2": [3]}}) == (200, {"predictions": [6.0]})
    # What pandas makes of an array without names, and sends for it.
    for columns in ({"columns": [0, 1, 2]}, {}):
        split = {"dataframe_split": {"data": [[1, 2, 3]], **columns}}
        assert many.ask(PATH, split) == (200, {"predictions": [6.0]})


def test_an_image_is_a_nested_list():
    images = np.arange(8, dtype="uint8").reshape(2, 2, 2)
    frame = pd.DataFrame({"x": answers.cells(list(images))})
    signature = Signature(columns=infer_columns(frame), container="array", detail="uint8")
    face = Face(protocol_mlflow.routes, signature, lambda X: np.stack(X["x"]).sum(axis=(1, 2)))

    assert face.ask(PATH, {"inputs": images.tolist()}) == (200, {"predictions": [6, 22]})
    assert face.ask(PATH, {"instances": images.tolist()}) == (200, {"predictions": [6, 22]})


def test_probabilities_come_where_params_ask_for_them(face):
    status, told = face.ask(PATH, {"inputs": COLUMNS, "params": {"proba": True}})

    assert (status, told) == (200, {"predictions": [{"prediction": "late", "probabilities": [0.0, 1.0]}]})
    assert face.ask(PATH, {"inputs": COLUMNS}, query={"proba": "true"}) == (status, told)
    assert face.ask(PATH, FLIGHTS.to_csv(index=False).encode(), "text/csv", {"proba": "1"})[1]["predictions"][0] == told["predictions"][0]  # fmt: skip


def test_named_outputs_are_objects_and_keep_their_names_beside_probabilities():
    outputs = (answers.Output("probabilities", "int64"), answers.Output("b", "float64", (2,)))
    signature = flights_signature(outputs=outputs)
    face = Face(
        protocol_mlflow.routes,
        signature,
        lambda X: {"probabilities": np.arange(len(X)), "b": np.ones((len(X), 2))},
        chances,
    )

    row = {"probabilities": 0, "b": [1.0, 1.0]}
    assert face.ask(PATH, {"inputs": [RECORD]}) == (200, {"predictions": [row]})
    told = face.ask(PATH, {"inputs": [RECORD], "params": {"proba": True}})
    assert told == (200, {"predictions": [row | {"probabilities_": [0.0, 1.0]}]})


def test_the_answer_names_its_request_and_version(face):
    headers = face.post(PATH, {"inputs": COLUMNS}).headers

    assert headers == {"X-NBDeploy-Request": "f00d", "X-NBDeploy-Version": "v3"}


def test_a_gate_is_told_from_users(face):
    assert face.question(PATH, {"inputs": COLUMNS}, X_NBDeploy_Purpose="gate").purpose == "gate"
    assert face.question(PATH, {"inputs": COLUMNS}).purpose == ""
    assert face.question(PATH, {"inputs": COLUMNS}, X_NBDeploy_Purpose="shadow").purpose == ""


# -- CSV ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "media", ["text/csv", "application/csv", "text/csv; charset=utf-8", 'text/csv;charset="UTF-8"']
)
def test_csv_as_pandas_writes_it_comes_back_dtype_for_dtype(face, media):
    question = face.question(PATH, FLIGHTS.to_csv(index=False).encode(), media)

    pd.testing.assert_frame_equal(face.signature.build(question.columns), FLIGHTS, check_categorical=False)


def test_csv_carries_lists_dates_and_numbered_categories():
    frame = pd.DataFrame(
        {
            "v": answers.cells([np.array([1.5, 2.0]), np.array([3.0, 4.0])]),
            "c": pd.Categorical([1, 2]),
            "b": pd.Categorical([True, False]),
            "n": pd.array([1, None], dtype="Int64"),
            "f": pd.array([True, None], dtype="boolean"),
        }
    )
    face = Face(protocol_mlflow.routes, Signature(columns=infer_columns(frame)), lambda X: np.arange(len(X)))
    body = b'v,c,b,n,f\n"[1.5, 2]",1,True,1,true\n"[3, 4]",2,False,,\n'

    again = face.signature.build(face.question(PATH, body, "text/csv").columns)

    assert again["v"][1].tolist() == [3.0, 4.0]
    pd.testing.assert_frame_equal(again.drop(columns="v"), frame.drop(columns="v"))


def test_numbers_in_csv_are_read_as_python_writes_them(face):
    texts = ["0", "-7", "+3", ".5", "-.5", "5.", "1e3", "1E-3", "00012", "nan", "NaN", ""]
    rows = [{**RECORD, "delay": text} for text in texts]
    body = "\n".join([",".join(RECORD), *(",".join(map(str, row.values())) for row in rows)]).encode()

    told = face.question(PATH, body, "text/csv").columns["delay"]

    assert told[:9] == [0, -7, 3, 0.5, -0.5, 5.0, 1000.0, 0.001, 12]
    assert math.isnan(told[9])
    assert math.isnan(told[10])
    assert told[11] is None


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "no header"),
        (b"\n\n", 400, "no header"),
        (b"\xff\xfe", 400, "not CSV in UTF-8"),
        (b'a,"b', 400, "not CSV"),
        (b"a,b\n1,2", 422, "column 'month'"),
        (b"month\n", 422, "at least one row"),
        (b"month,month\n1,1", 422, "no such column"),
    ],
)
def test_bad_csv_is_refused(face, body, status, says):
    got, told = face.ask(PATH, body, "text/csv")

    assert (got, says in told["error"]) == (status, True), told


@pytest.mark.parametrize(
    ("column", "cell", "says"),
    [
        ("month", "1.5", "row 0, column 'month': expected an integer, got the number 1.5"),
        ("month", "99999999999999999999", "column 'month'"),
        ("month", "1_0", "got the string '1_0'"),
        ("month", "", "row 0, column 'month': expected an integer, got null"),
        ("distance", "abc", "got the string 'abc'"),
        ("distance", "nan", "row 0, column 'distance'"),
        ("distance", "inf", "got Infinity"),
        ("distance", "1e400", "got the string '1e400'"),
        ("late", "1", "expected true or false, got the string '1'"),
        ("carrier", "", "expected a category, got null"),
        ("when", "now", "column 'when'"),
    ],
)
def test_a_bad_cell_of_csv_is_named(face, column, cell, says):
    row = {**{name: str(value) for name, value in RECORD.items()}, column: cell}
    body = f"{','.join(row)}\n{','.join(row.values())}\n".encode()

    status, told = face.ask(PATH, body, "text/csv")

    assert (status, says in told["error"]) == (422, True), told
    assert told["error_code"] == "INVALID_PARAMETER_VALUE"
    assert told["message"] == told["error"]


def test_integers_of_64_bits_keep_every_digit_in_csv():
    whole = pd.DataFrame({"u": np.array([2**64 - 1, 2**64 - 2], "uint64"), "i": np.array([-(2**63), 2**63 - 1])})
    face = Face(protocol_mlflow.routes, Signature(columns=infer_columns(whole)), lambda X: np.arange(len(X)))

    columns = face.question(PATH, whole.to_csv(index=False).encode(), "text/csv").columns

    assert columns == {"u": [2**64 - 1, 2**64 - 2], "i": [-(2**63), 2**63 - 1]}
    assert face.ask(PATH, f"u,i\n{2**64},0\n".encode(), "text/csv")[0] == 422


def test_a_long_cell_of_csv_takes_no_longer_than_its_length_says():
    frame = pd.DataFrame({"n": [1.5, 2.5], "text": ["a", "b"]})
    face = Face(protocol_mlflow.routes, Signature(columns=infer_columns(frame)), lambda X: X["n"])
    started = time.perf_counter()

    for cell in ("1" * 1_000_000 + "x", "1" * 1_000_000, "." + "1" * 1_000_000 + "x"):
        assert face.ask(PATH, f"n,text\n{cell},a\n".encode(), "text/csv")[0] == 422
    assert face.ask(PATH, b"n,text\n0." + b"3" * 1_000_000 + b",a", "text/csv") == (200, {"predictions": [1 / 3]})
    assert face.question(PATH, b"n,text\n1," + b"x" * 1_000_000, "text/csv").columns["text"] == ["x" * 1_000_000]
    assert time.perf_counter() - started < 5


def test_csv_of_too_many_rows_or_cells_is_refused_before_it_takes_memory(face, monkeypatch):
    body = FLIGHTS.to_csv(index=False).encode()
    monkeypatch.setattr(csv_body, "MAX_ROWS", 1)
    status, told = face.ask(PATH, body, "text/csv")
    assert (status, "expected at most 1 rows, got more" in told["error"]) == (422, True), told

    tracemalloc.start()
    status, told = face.ask(PATH, b"a\n" * 9_000_000, "text/csv")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (status, "at most 8,000,000" in told["error"]) == (400, True), told
    assert peak < 100e6


def test_csv_without_its_header_tells_no_private_value():
    frame = pd.DataFrame({"name": ["a", "b"], "age": [1, 2]})
    private = Signature(columns=infer_columns(frame)).with_private({"name": "drop"})
    open_ = Signature(columns=infer_columns(frame))
    told = {}
    for signature in (private, open_):
        face = Face(protocol_mlflow.routes, signature, lambda X: np.arange(len(X)))
        for body in (b"CANARY,77\nother,78\n", b"name,age,CANARY\na,1,2\n", b"CANARY,CANARY\n1,2\n"):
            status, answer = face.ask(PATH, body, "text/csv")
            assert status == 422
            told.setdefault(signature.has_private, []).append(json.dumps(answer))

    assert "CANARY" not in "".join(told[True])
    assert ["the 2nd column" in told[True][0], "the 3rd column" in told[True][1]] == [True, True]
    assert all("CANARY" in text for text in told[False])


def test_a_row_of_csv_of_another_width_is_named(face):
    body = FLIGHTS.to_csv(index=False).encode() + b"1,2\n"

    status, told = face.ask(PATH, body, "text/csv")

    assert status == 422
    assert told["problems"][0] == {"row": 3, "column": None, "expected": "a list of 7 values", "got": "2 values", "hint": ""}  # fmt: skip


# -- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("media", "says"),
    [
        ("application/json; format=pandas-split", "dataframe_split"),
        ("application/json; charset=latin-1", "UTF-8"),
        ("text/plain", "got text/plain"),
        ("application/vnd.apache.parquet", "as an Arrow stream"),
        ("", "no media type"),
    ],
)
def test_another_media_type_is_refused_with_advice(face, media, says):
    status, told = face.ask(PATH, {"inputs": COLUMNS}, media)

    assert (status, says in told["error"]) == (415, True), told


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "not JSON"),
        (b"", 400, "not JSON"),
        ([RECORD], 400, "a JSON object, got a list of 1"),
        (SPLIT, 400, "exactly one of 'dataframe_split'"),
        ({}, 400, "none of them"),
        ({"inputs": COLUMNS, "instances": [RECORD]}, 400, "'inputs' and 'instances'"),
        ({"inputs": COLUMNS, "signature_name": "x"}, 400, "the key 'signature_name'"),
        ({"messages": []}, 400, "exactly one of"),
        ({"inputs": COLUMNS, "params": [1]}, 400, "'params' as an object"),
        ({"inputs": COLUMNS, "params": {"top_k": 1}}, 422, "the parameter 'top_k'"),
        ({"inputs": COLUMNS, "params": {"proba": 1}}, 422, "proba as true or false"),
        ({"inputs": COLUMNS, "params": {"proba": "true"}}, 422, "proba as true or false"),
        ({"dataframe_split": [RECORD]}, 400, "'dataframe_split' as an object"),
        ({"dataframe_split": SPLIT | {"dtype": 1}}, 400, "the key 'dtype'"),
        ({"dataframe_split": SPLIT | {"index": [1, 2]}}, 400, "'index' as a list of 1 labels, got 2 labels"),
        ({"dataframe_split": {"data": [[1]]}}, 422, "'columns' as a list of names, got null"),
        ({"dataframe_split": SPLIT | {"columns": [None]}}, 422, "'columns' as a list of names"),
        ({"dataframe_split": SPLIT | {"columns": [True]}}, 422, "'columns' as a list of names"),
        ({"dataframe_split": SPLIT | {"columns": [10**400]}}, 422, "no such column"),
        ({"dataframe_split": SPLIT | {"columns": ["month"] * 7}}, 422, "no such column"),
        ({"dataframe_split": SPLIT | {"data": []}}, 422, "at least one row"),
        ({"dataframe_split": SPLIT | {"data": [[1]]}}, 422, "a list of 7 values, got 1 values"),
        ({"dataframe_split": SPLIT | {"data": [RECORD]}}, 422, "a list of 7 values, got an object"),
        ({"dataframe_records": RECORD}, 422, "a list of rows, got an object"),
        ({"dataframe_records": []}, 422, "at least one row"),
        ({"dataframe_records": [1]}, 422, "a record"),
        ({"inputs": {}}, 422, "no such column"),
        ({"inputs": {**COLUMNS, "carier": ["UA"]}}, 422, "an unknown column"),
        ({"inputs": {**COLUMNS, "month": []}}, 422, "column 'month': expected a list with one value per row, got an empty"),
        ({"inputs": {**COLUMNS, "month": 1}}, 422, "a list with one value per row, got the number 1"),
        ({"inputs": {**COLUMNS, "delay": [1, 2]}}, 422, "column 'delay': expected 1 values, as in 'month', got 2 values"),
        ({"inputs": {**COLUMNS, "month": ["1"]}}, 422, "row 0, column 'month': expected an integer"),
        ({"inputs": {**COLUMNS, "month": [None]}}, 422, "got null"),
        ({"inputs": {**COLUMNS, "month": [[1]]}}, 422, "got a list of 1"),
        ({"inputs": {**COLUMNS, "distance": [math.nan]}}, 422, "got NaN"),
        ({"inputs": {**COLUMNS, "distance": [math.inf]}}, 422, "got Infinity"),
        ({"inputs": {**COLUMNS, "distance": [10**400]}}, 422, "column 'distance'"),
        ({"inputs": [[*RECORD.values()]]}, 422, "a record"),
        ({"inputs": 3}, 422, "a list of rows, got a number"),
        ({"inputs": None}, 422, "a list of rows, got null"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(face, body, status, says):
    got, told = face.ask(PATH, body)

    assert (got, says in told["error"]) == (status, True), told
    if got == 422:
        assert {"row", "column", "expected", "got", "hint"} == told["problems"][0].keys()


def test_a_key_that_stands_twice_is_refused_wherever_it_stands(face):
    inner = json.dumps(COLUMNS)
    for body in (
        f'{{"inputs": {inner[:-1]}, "month": [1]}}}}',
        f'{{"inputs": {inner}, "inputs": {inner}}}',
        f'{{"inputs": {inner}, "params": {{"proba": false, "proba": true}}}}',
    ):
        status, told = face.ask(PATH, body.encode())
        assert (status, "twice" in told["error"]) == (422, True), told


def test_nesting_is_bounded(face):
    status, told = face.ask(PATH, b'{"inputs": ' + b"[" * 10_000 + b"]" * 10_000 + b"}")

    assert (status, "nested" in told["error"]) == (400, True), told


def test_a_model_without_probabilities_says_so():
    face = Face(protocol_mlflow.routes, flights_signature(classes=None), flights_model)

    status, told = face.ask(PATH, {"inputs": COLUMNS, "params": {"proba": True}})

    assert (status, "no probabilities" in told["error"]) == (422, True)
    assert face.ask(PATH, {"inputs": COLUMNS, "params": {"proba": False}})[0] == 200


def test_what_a_private_column_was_sent_is_not_told():
    face = Face(protocol_mlflow.routes, flights_signature().with_private(["tailnum"]), flights_model)

    for body in ({"inputs": "canary"}, {"dataframe_split": {**SPLIT, "data": ["canary"]}},
                 {"inputs": {**COLUMNS, "tailnum": "canary"}}, {"inputs": {**COLUMNS, "tailnum": [{"canary": 1}]}},
                 {"dataframe_split": {**SPLIT, "data": [*[*RECORD.values()][:5], ["canary"], "2013"]}}):  # fmt: skip
        status, told = face.ask(PATH, body)
        assert status == 422
        assert "canary" not in json.dumps(told)


def test_health_is_open_and_needs_no_model(face):
    for path in ("/ping", "/health"):
        assert face.table["GET", path].open
        assert face.get(path) == b"\n"
    assert face.get("/version").decode()[0].isdigit()
    assert face.signature.classes == CLASSES

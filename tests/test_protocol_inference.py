"""The Open Inference Protocol: tensors as JSON and as bytes are the same columns, and every size is checked."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbdeploy import answers, protocol_inference, tensor_body
from nbdeploy.exchange import Reply
from nbdeploy.signature import Signature
from nbdeploy.signature_inference import infer_columns
from protocols import FLIGHTS, RECORD, Face, chances, flights_model, flights_signature

PATH = "/v2/models/flights/infer"
DATATYPES = {"month": "INT32", "delay": "FP64", "distance": "FP32", "late": "BOOL"}
HEADER = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def face() -> Face:
    return Face(protocol_inference.routes, flights_signature(), flights_model, chances)


def tensor(name: str, data: Any, datatype: str = "", shape: Any = None, **more: Any) -> dict[str, Any]:
    datatype = datatype or DATATYPES.get(name, "BYTES")
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data, **more}


def record(**changes: dict[str, Any]) -> list[dict[str, Any]]:
    return [changes.get(name) or tensor(name, [value]) for name, value in RECORD.items()]


def strings(*values: str | bytes) -> bytes:
    parts = [value.encode() if isinstance(value, str) else value for value in values]
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def binary(arrays: dict[str, np.ndarray], **more: Any) -> tuple[bytes, dict[str, str]]:
    """The body and headers of a request whose tensors are bytes; arrays of objects are strings."""
    inputs, parts = [], []
    for name, array in arrays.items():
        textual = array.dtype == object
        parts.append(strings(*array.ravel()) if textual else array.tobytes())
        datatype = "BYTES" if textual else tensor_body.DATATYPE_OF[array.dtype.name]
        size = {"binary_data_size": len(parts[-1])}
        inputs.append({"name": name, "datatype": datatype, "shape": [*array.shape], "parameters": size})
    head = json.dumps({"inputs": inputs, **more}).encode()
    return head + b"".join(parts), {HEADER: str(len(head))}


def outputs_of(reply: Reply) -> dict[str, Any]:
    return {each["name"]: each for each in json.loads(reply.body)["outputs"]}


def many(rows: int) -> dict[str, np.ndarray]:
    texts = FLIGHTS["when"].dt.strftime("%Y-%m-%dT%H:%M:%S").to_numpy(dtype=object)
    return {
        "month": np.resize(FLIGHTS["month"].to_numpy(), rows),
        "delay": np.resize(FLIGHTS["delay"].to_numpy(), rows),
        "distance": np.resize(FLIGHTS["distance"].to_numpy(), rows),
        "late": np.resize(FLIGHTS["late"].to_numpy(), rows),
        "carrier": np.resize(np.array(["UA", "AA", "UA"], dtype=object), rows),
        "tailnum": np.resize(np.array(["N1", "N2", "N3"], dtype=object), rows),
        "when": np.resize(texts, rows),
    }


# -- what is answered ---------------------------------------------------------------------------------------


def test_tensors_as_json_are_the_columns_of_a_record(face):
    assert face.question(PATH, {"inputs": record()}).columns == {name: [value] for name, value in RECORD.items()}
    status, told = face.ask(PATH, {"inputs": record(), "id": "seven"})
    assert status == 200
    assert told == {
        "model_name": "flights", "model_version": "3", "id": "seven",
        "outputs": [{"name": "prediction", "datatype": "BYTES", "shape": [1], "data": ["late"]}],
    }  # fmt: skip
    assert face.ask(PATH, {"inputs": record()})[1]["id"] == "f00d"


def test_a_single_value_per_row_may_have_an_axis_of_its_own(face):
    inputs = [{**each, "shape": [1, 1]} for each in record()]
    nested = [{**each, "shape": [1, 1], "data": [each["data"]]} for each in record()]

    assert face.question(PATH, {"inputs": inputs}).columns == face.question(PATH, {"inputs": nested}).columns


@pytest.mark.parametrize("rows", [1, 30, 3000])
def test_bytes_are_the_same_rows_as_json(face, rows):
    arrays = many(rows)
    body, headers = binary(arrays)
    told = face.question(PATH, body, "application/octet-stream", **headers)
    frame = face.signature.build(told.columns) if told.frame is None else told.frame

    assert (told.frame is None) == (rows < 3000)
    wanted = pd.concat(
        [FLIGHTS.assign(tailnum=pd.Series(["N1", "N2", "N3"], dtype=object))] * (rows // 3 + 1), ignore_index=True
    )[:rows]
    pd.testing.assert_frame_equal(frame, wanted, check_categorical=False)
    assert face.post(PATH, body, "application/octet-stream", **headers).status == 200


def test_every_numeric_datatype_is_a_number():
    frame = pd.DataFrame({"i": pd.Series([1, 2], dtype="int16"), "f": pd.Series([1.0, 2.0])})
    signature = Signature(columns=infer_columns(frame), outputs=(answers.Output("", "float64"),))
    face = Face(protocol_inference.routes, signature, lambda X: X["f"])
    kinds = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]
    for rows in (2, 5_000):
        for kind in kinds:
            values = np.resize(np.array([3, 4], dtype=kind), rows)
            body, headers = binary({"i": values, "f": values})
            told = face.question(PATH, body, "", **headers)
            again = frame.iloc[:0] if told.frame is None else told.frame
            assert again.dtypes.equals(frame.dtypes)
            status, answer = face.ask(PATH, body, "", **headers)
            assert (status, answer["outputs"][0]["data"][:2]) == (200, [3.0, 4.0])


@pytest.mark.parametrize("rows", [2, 3_000])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_an_array_without_names_may_come_as_one_tensor(rows, as_bytes):
    X = np.arange(3 * rows, dtype="float32").reshape(rows, 3)
    columns = infer_columns(pd.DataFrame(X, columns=["x0", "x1", "x2"]))
    signature = Signature(
        columns=columns, container="array", detail="float32", outputs=(answers.Output("", "float32"),)
    )
    face = Face(protocol_inference.routes, signature, lambda X: X.to_numpy().sum(axis=1))

    assert face.get("/v2/models/flights")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    if as_bytes:
        body, headers = binary({"input-0": X})
    else:
        body, headers = {"inputs": [tensor("x", X.tolist(), "FP32", [rows, 3])]}, {}
    status, told = face.ask(PATH, body, "application/octet-stream", **headers)
    assert (status, told["outputs"][0]["data"][1]) == (200, 12.0)
    by_column = {"inputs": [tensor(f"x{i}", X[:, i].tolist(), "FP32") for i in range(3)]}
    assert face.ask(PATH, by_column)[1]["outputs"] == told["outputs"]
    wide = {"inputs": [tensor("x", [1.0] * 4, "FP32", [1, 4])]}
    assert face.ask(PATH, wide)[0] == 422


@pytest.mark.parametrize("rows", [1, 2_000])
def test_images_stay_arrays(rows):
    images = np.random.default_rng(0).integers(0, 255, (rows, 4, 4, 3), dtype="uint8")
    frame = pd.DataFrame({"image": answers.cells(list(images)), "n": np.arange(rows)})
    signature = Signature(columns=infer_columns(frame), outputs=(answers.Output("", "uint8", (48,)),))
    face = Face(protocol_inference.routes, signature, lambda X: np.stack(X["image"]).reshape(len(X), -1))
    body, headers = binary({"image": images, "n": np.arange(rows)}, parameters={"binary_data_output": True})

    told = face.question(PATH, body, "", **headers)
    if rows > 1:
        assert told.frame["image"][0].dtype == "uint8"
    reply = face.post(PATH, body, "", **headers)
    size = int(reply.headers[HEADER])
    facts = json.loads(reply.body[:size])["outputs"][0]
    assert (facts["datatype"], facts["shape"]) == ("UINT8", [rows, 48])
    np.testing.assert_array_equal(np.frombuffer(reply.body[size:], "uint8").reshape(images.shape), images)
    other = binary({"image": images[:, :3], "n": np.arange(rows)})
    assert face.ask(PATH, other[0], "", **other[1])[0] == 422


def test_lists_sparse_rows_and_texts_come_as_tensors_too():
    from scipy import sparse

    matrix = sparse.csr_array(np.eye(2, 3))
    rows = [matrix[[i]] for i in range(2)]
    signature = Signature(
        columns=(
            *infer_columns(pd.DataFrame({"v": answers.cells([[1, 2], [3]]), "w": answers.cells([np.array(["a", "b"])] * 2)})),
            infer_columns(pd.DataFrame({"s": [0.5, 1.0]}))[0].__class__("s", "float", "float64", shape=(3,), cells="sparse"),
        )
    )  # fmt: skip
    face = Face(protocol_inference.routes, signature, lambda X: [row.sum() for row in X["s"]])
    arrays = {"v": np.arange(4), "w": np.array(["a", "b"] * 2, dtype=object), "s": np.eye(2, 3)}
    shaped = {name: array.reshape(2, -1) for name, array in arrays.items()}
    body, headers = binary(shaped)

    told = face.question(PATH, body, "", **headers)
    again = signature.build(told.columns)
    assert again["v"].tolist() == [[0, 1], [2, 3]]
    assert again["w"][0].tolist() == ["a", "b"]
    np.testing.assert_array_equal(sparse.vstack([*again["s"]]).toarray(), sparse.vstack(rows).toarray())
    large, headers = binary({name: np.concatenate([array] * 1000) for name, array in shaped.items()})
    assert len(face.question(PATH, large, "", **headers).frame) == 2000


# -- what comes back ----------------------------------------------------------------------------------------


def test_probabilities_come_by_name_or_by_parameter(face):
    by_name = face.ask(PATH, {"inputs": record(), "outputs": [{"name": "probabilities"}]})[1]["outputs"]
    assert by_name == [{"name": "probabilities", "datatype": "FP64", "shape": [1, 2], "data": [0.0, 1.0]}]
    both = face.ask(PATH, {"inputs": record(), "parameters": {"proba": True}})[1]["outputs"]
    assert [each["name"] for each in both] == ["prediction", "probabilities"]
    assert face.ask(PATH, {"inputs": record()}, query={"proba": "true"})[1]["outputs"] == both
    assert [each["name"] for each in face.ask(PATH, {"inputs": record()})[1]["outputs"]] == ["prediction"]


def test_each_output_is_bytes_or_json_as_asked(face):
    wanted = [{"name": "probabilities", "parameters": {"binary_data": True}}, {"name": "prediction"}]
    reply = face.post(PATH, {"inputs": record(), "outputs": wanted})
    size = int(reply.headers[HEADER])
    first, second = json.loads(reply.body[:size])["outputs"]
    assert reply.media == "application/octet-stream"
    assert first == {
        "name": "probabilities",
        "datatype": "FP64",
        "shape": [1, 2],
        "parameters": {"binary_data_size": 16},
    }
    assert np.frombuffer(reply.body[size:]).tolist() == [0.0, 1.0]
    assert second["data"] == ["late"]
    # What one output says goes before what is said for all.
    wanted = [{"name": "prediction", "parameters": {"binary_data": False}}]
    reply = face.post(PATH, {"inputs": record(), "outputs": wanted, "parameters": {"binary_data_output": True}})
    assert (reply.media, HEADER in reply.headers) == ("application/json", False)
    reply = face.post(PATH, {"inputs": record(), "parameters": {"binary_data_output": True}})
    assert reply.body[int(reply.headers[HEADER]) :] == strings("late")


@pytest.mark.parametrize("rows", [1, 3_000])
@pytest.mark.parametrize(
    ("output", "raw", "datatype", "shape", "first"),
    [
        (answers.Output("", "float32"), lambda n: np.full(n, 1.5, "float32"), "FP32", [], 1.5),
        (answers.Output("", "float64"), lambda n: np.full(n, np.inf), "FP64", [], None),
        (answers.Output("", "bool"), lambda n: np.ones(n, bool), "BOOL", [], True),
        (answers.Output("", "int64"), np.arange, "INT64", [], 0),
        (answers.Output("", "float64", (2,)), lambda n: np.ones((n, 2)), "FP64", [2], 1.0),
        (answers.Output("", "object"), lambda n: answers.cells([{"a": 1}] * n).to_numpy(), "BYTES", [], '{"a":1}'),
        (answers.Output("", "object"), lambda n: np.array([None] * n, dtype=object), "BYTES", [], None),
        (answers.Output("", "int64", (None,)), lambda n: answers.cells([[1, 2]] * n).to_numpy(), "BYTES", [], "[1,2]"),
        (answers.Output("", answers.STRING, (2,)), lambda n: np.array([["a", "b"]] * n), "BYTES", [2], "a"),
        (answers.Output("", "datetime64[s]"), lambda n: np.array(["2013-01-01"] * n, "M8[s]"), "BYTES", [], "2013-01-01T00:00:00"),
    ],
)  # fmt: skip
def test_every_kind_of_answer_is_a_tensor(rows, output, raw, datatype, shape, first):
    face = Face(protocol_inference.routes, flights_signature(outputs=(output,), classes=None), lambda X: raw(len(X)))
    body, headers = binary(many(rows))

    told = outputs_of(face.post(PATH, body, "", **headers))["prediction"]
    assert (told["datatype"], told["shape"], told["data"][0]) == (datatype, [rows, *shape], first)
    reply = face.post(PATH, *_asking_for_bytes(many(rows)))
    head = json.loads(reply.body[: int(reply.headers[HEADER])])["outputs"][0]
    assert head["parameters"]["binary_data_size"] == len(reply.body) - int(reply.headers[HEADER])


def _asking_for_bytes(arrays: dict[str, np.ndarray]) -> tuple[Any, ...]:
    inputs = [tensor(name, array.tolist()) for name, array in arrays.items()]
    inputs = [each if each["name"] != "delay" else {**each, "data": [1.0] * len(each["data"])} for each in inputs]
    return ({"inputs": inputs, "parameters": {"binary_data_output": True}},)


def test_several_targets_have_a_tensor_of_probabilities_each():
    classes = (("a", "b"), ("x", "y", "z"))
    signature = flights_signature(outputs=(answers.Output("", answers.STRING, (2,)),), classes=classes)
    face = Face(
        protocol_inference.routes,
        signature,
        lambda X: np.array([["a", "x"]] * len(X)),
        lambda X: [np.full((len(X), 2), 0.5), np.full((len(X), 3), 1 / 3)],
    )

    told = face.ask(PATH, {"inputs": record(), "parameters": {"proba": True}})[1]["outputs"]
    assert [(each["name"], each["shape"]) for each in told[1:]] == [
        ("probabilities_0", [1, 2]),
        ("probabilities_1", [1, 3]),
    ]
    assert [each["name"] for each in face.get("/v2/models/flights")["outputs"][1:]] == [
        "probabilities_0",
        "probabilities_1",
    ]


# -- facts --------------------------------------------------------------------------------------------------


def test_metadata_and_health(face):
    assert face.get("/v2")["extensions"] == ["binary_tensor_data"]
    for path in ("/v2/models/flights", "/v2/models/flights/versions/3", "/v2/models/flights/versions/v3"):
        about = face.get(path)
        assert (about["name"], about["versions"], about["platform"]) == ("flights", ["3"], "nbdeploy")
        assert about["inputs"][0] == {"name": "month", "datatype": "INT32", "shape": [-1]}
        assert about["outputs"][1] == {"name": "probabilities", "datatype": "FP64", "shape": [-1, 2]}
        assert face.get(f"{path}/ready") == {"name": "flights", "ready": True}
        assert face.table["GET", f"{path}/ready"].open
        assert not face.table["GET", path].open
    assert face.get("/v2/health/live") == {"live": True}
    assert face.get("/v2/health/ready") == {"ready": True}


# -- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "not JSON"),
        ([], 400, "a JSON object"),
        ({}, 400, "'inputs' as a list"),
        ({"inputs": []}, 400, "'inputs' as a list"),
        ({"inputs": [1]}, 400, "as an object, got a number"),
        ({"inputs": record(), "x": 1}, 400, "the key 'x'"),
        ({"inputs": record(), "id": 7}, 400, "'id' as a string"),
        ({"inputs": record(), "parameters": []}, 400, "'parameters' as an object"),
        ({"inputs": record(), "parameters": {"sequence_id": 1}}, 400, "sequence_id"),
        ({"inputs": record(), "parameters": {"binary_data_output": 1}}, 400, "'binary_data_output' as true or false"),
        ({"inputs": record(), "parameters": {"proba": 1}}, 422, "proba"),
        ({"inputs": record(), "outputs": "prediction"}, 400, "'outputs' as a list"),
        ({"inputs": record(), "outputs": ["prediction"]}, 400, "an object with a 'name'"),
        ({"inputs": record(), "outputs": [{"name": "x"}]}, 422, "an output among prediction"),
        ({"inputs": record(), "outputs": [{"name": "prediction"}] * 2}, 400, "twice"),
        ({"inputs": record(), "outputs": [{"name": "prediction", "parameters": {"classification": 2}}]}, 400, "classification"),
        ({"inputs": record()[1:]}, 422, "column 'month': expected an integer, got no such column"),
        ({"inputs": [*record(), tensor("x", [1], "INT8")]}, 422, "an unknown column"),
        ({"inputs": [*record(), record()[0]]}, 422, "the same column twice"),
        ({"inputs": record(month={"name": 1})}, 400, "with a 'name'"),
        ({"inputs": record(month=tensor("month", [1], "BF16"))}, 400, "BF16"),
        ({"inputs": record(month=tensor("month", [1], "int32"))}, 400, "'datatype'"),
        ({"inputs": record(month=tensor("month", [1], "INT32", x=1))}, 400, "the key 'x'"),
        ({"inputs": record(month=tensor("month", [1], "INT32", [2]))}, 400, "2 values for its shape"),
        ({"inputs": record(month=tensor("month", [1], "INT32", [-1]))}, 400, "'shape'"),
        ({"inputs": record(month=tensor("month", [1], "INT32", [True]))}, 400, "'shape'"),
        ({"inputs": record(month=tensor("month", [1], "INT32", [2**40]))}, 400, "'shape'"),
        ({"inputs": record(month=tensor("month", [1], "INT32", [1] * 33))}, 400, "'shape'"),
        ({"inputs": record(month=tensor("month", [1], "INT32", [2**30] * 32))}, 400, "values for its shape"),
        ({"inputs": record(month=tensor("month", [1, 2], "INT32", [2]))}, 422, "'delay': expected a tensor of shape [2]"),
        ({"inputs": record(month=tensor("month", [1, 2], "INT32", [1, 2]))}, 422, "a tensor of shape [1], got the shape [1, 2]"),
        ({"inputs": record(month=tensor("month", [[1], 2], "INT32", [1, 2]))}, 400, "nested as its shape says"),
        ({"inputs": record(month=tensor("month", 1, "INT32", [1]))}, 400, "'data' as a list"),
        ({"inputs": record(month={"name": "month", "datatype": "INT32", "shape": [1]})}, 400, "'data', or the parameter"),
        ({"inputs": record(month=tensor("month", ["1"]))}, 400, "values of INT32"),
        ({"inputs": record(month=tensor("month", [True]))}, 400, "values of INT32"),
        ({"inputs": record(month=tensor("month", [2**31]))}, 400, "values of INT32"),
        ({"inputs": record(month=tensor("month", [2**31], "INT64"))}, 422, "row 0, column 'month'"),
        ({"inputs": record(month=tensor("month", [1.5], "FP32"))}, 422, "got the number 1.5"),
        ({"inputs": record(month=tensor("month", [None]))}, 422, "got null"),
        ({"inputs": record(month=tensor("month", ["1"], "BYTES"))}, 422, "a tensor of INT32, or of other numbers, got BYTES"),
        ({"inputs": record(late=tensor("late", [1], "INT8"))}, 422, "a tensor of BOOL, got INT8"),
        ({"inputs": record(late=tensor("late", [1]))}, 400, "values of BOOL"),
        ({"inputs": record(carrier=tensor("carrier", [1], "INT8"))}, 422, "a tensor of BYTES, got INT8"),
        ({"inputs": record(distance=tensor("distance", [float("nan")]))}, 422, "got NaN"),
        ({"inputs": record(distance=tensor("distance", [1e300]))}, 400, "values of FP32"),
        ({"inputs": record(distance=tensor("distance", [1e300], "FP64"))}, 422, "column 'distance'"),
        ({"inputs": record(distance=tensor("distance", [10**400], "FP64"))}, 400, "values of FP64"),
        ({"inputs": record(when=tensor("when", ["now"]))}, 422, "column 'when'"),
        ({"inputs": record(month=tensor("month", [1], parameters={"shared_memory_region": "x"}))}, 400, "shared memory"),
        ({"inputs": record(tailnum=tensor("tailnum", ["eA=="], parameters={"content_type": "base64"}))}, 400, "content_type"),
        ({"inputs": record(month=tensor("month", [1], parameters={"binary_data_size": 4}))}, 400, "either 'data' or"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(face, body, status, says):
    got, told = face.ask(PATH, body)

    assert (got, says in told["error"]) == (status, True), told
    if got == 422:
        assert told["problems"]


def bad_binary(change: str) -> tuple[bytes, dict[str, str]]:
    """A good request of one row in bytes, with one thing wrong."""
    arrays = {name: array[:1] for name, array in many(3).items()}
    body, headers = binary(arrays)
    size = int(headers[HEADER])
    head = json.loads(body[:size])
    by_name = {each["name"]: each for each in head["inputs"]}
    rest = body[size:]
    if change == "more":
        rest += b"x"
    elif change == "less":
        rest = rest[:-1]
    elif change == "size":
        by_name["month"]["parameters"]["binary_data_size"] = 2**62
    elif change == "negative":
        by_name["month"]["parameters"]["binary_data_size"] = -4
    elif change == "shape":
        by_name["month"]["shape"] = [2]
    elif change == "huge":
        by_name["tailnum"]["shape"] = [2**31 - 1] * 32
    elif change == "bool":
        rest = rest[:16] + b"\x02" + rest[17:]
    elif change == "string":
        rest = rest.replace(strings("UA"), struct.pack("<I", 2**32 - 1) + b"UA")
    elif change == "utf-8":
        rest = rest.replace(b"UA", b"\xff\xfe")
    text = json.dumps(head).encode()
    return text + rest, {HEADER: str(len(text))}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("more", "1 more"),
        ("less", "behind the JSON"),
        ("size", f"{2**62} bytes behind the JSON"),
        ("negative", "'binary_data_size' as a number of bytes"),
        ("shape", "8 bytes for its shape and datatype, got 4 bytes"),
        ("huge", "strings, each behind its length"),
        ("bool", "0 or 1 for each boolean"),
        ("string", "1 strings, each behind its length"),
        ("utf-8", "strings in UTF-8"),
    ],
)
def test_bytes_that_are_not_what_they_claim_are_refused(face, change, says):
    body, headers = bad_binary(change)

    status, told = face.ask(PATH, body, "", **headers)

    assert (status, says in told["error"]) == (400, True), told


@pytest.mark.parametrize("length", ["", "0", "-1", "x", "1e3", "99999999", "9" * 400, "1" * 5000, "³"])
def test_a_length_that_is_none_is_refused(face, length):
    body, _ = bad_binary("")

    status, told = face.ask(PATH, body, "", **{HEADER: length})

    assert (status, HEADER in told["error"]) == (400, True), told


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_media_type_that_a_page_may_send_unasked_is_refused(face, media):
    assert face.ask(PATH, {"inputs": record()}, media)[0] == 415


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("month", np.array([2**40], dtype="int64"), "column 'month'"),
        ("month", np.array([1.5]), "got the number 1.5"),
        ("month", np.array([np.nan]), "got NaN"),
        ("month", np.array([np.inf]), "got Infinity"),
        ("distance", np.array([np.nan], dtype="float32"), "got NaN"),
        ("distance", np.array([-np.inf], dtype="float32"), "got Infinity"),
        ("distance", np.array([1e300]), "column 'distance'"),
        ("carrier", np.array(["UA"] * 2, dtype=object).reshape(1, 2), "a tensor of shape"),
        ("when", np.array(["today"], dtype=object), "column 'when'"),
    ],
)
@pytest.mark.parametrize("rows", [3, 3_000])
def test_a_bad_value_among_many_is_named_however_it_comes(face, rows, column, values, says):
    arrays = many(rows)
    if values.ndim > 1:
        arrays[column] = np.repeat(values, rows, axis=0)
        wanted = None
    else:
        arrays[column] = arrays[column].astype(values.dtype)
        arrays[column][rows - 1] = values[0]
        wanted = rows - 1
    body, headers = binary(arrays)

    status, told = face.ask(PATH, body, "", **headers)

    assert (status, says in told["error"], told["problems"][0]["row"]) == (422, True, wanted), told


def test_nan_is_a_missing_value_where_training_had_some(face):
    arrays = many(3_000)
    assert np.isnan(arrays["delay"]).any()
    body, headers = binary(arrays)

    assert face.question(PATH, body, "", **headers).frame["delay"].isna().sum() == 1_000


def test_a_private_value_is_not_told():
    face = Face(protocol_inference.routes, flights_signature().with_private(["month", "tailnum"]), flights_model)

    for body in (
        record(month=tensor("month", [424242.5], "FP64")),
        record(tailnum=tensor("tailnum", "424242", shape=[1])),
    ):
        status, told = face.ask(PATH, {"inputs": body})
        assert status in (400, 422)
        assert "424242" not in json.dumps(told)


VALUES = st.one_of(
    st.floats(width=64), st.integers(-(2**40), 2**40).map(float), st.sampled_from([0.0, -1.0, 1e39, 255.0, 256.0])
)


@settings(max_examples=150, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=6), st.sampled_from(["uint8", "int32", "float32", "float64"]))
def test_the_fast_way_of_bytes_says_what_the_way_of_json_says(values, dtype):
    frame = pd.DataFrame({"a": pd.Series([1, 2], dtype=dtype)})
    signature = Signature(columns=infer_columns(frame), outputs=(answers.Output("", dtype),))
    face = Face(protocol_inference.routes, signature, lambda X: X["a"])
    few = binary({"a": np.array(values)})
    rows = np.concatenate([np.array(values), np.ones(tensor_body.FEW_VALUES)])

    told = face.post(PATH, few[0], "", **few[1])
    body, headers = binary({"a": rows})
    large = face.post(PATH, body, "", **headers)

    assert told.status == large.status
    if told.status == 422:
        assert json.loads(told.body)["problems"] == json.loads(large.body)["problems"]
    else:
        assert outputs_of(told)["prediction"]["data"] == outputs_of(large)["prediction"]["data"][: len(values)]

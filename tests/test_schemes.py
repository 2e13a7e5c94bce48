"""A signature survives JSON Schema, and MLflow and nbdeploy read each other's."""

from __future__ import annotations

import importlib.util
import json
import re
import warnings
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest

from nbdeploy import containers
from nbdeploy.answers import Output, outputs_of
from nbdeploy.artifact import example_row
from nbdeploy.errors import SaveError
from nbdeploy.signature import Signature
from nbdeploy.signature_schemes import from_json_schema, from_mlflow, json_schema, to_mlflow

PAGE = Path(__file__).parent.parent / "docs" / "signature.md"
FRAME = pd.DataFrame(
    {
        "i": np.array([1, 2, 3], "int16"),
        "f": [0.5, np.nan, np.inf],
        "b": [True, False, True],
        "s": pd.Series(["x", None, "y"], dtype=object),
        "c": pd.Categorical(["lo", "hi", "lo"], categories=["lo", "hi"], ordered=True),
        "n": pd.Categorical([3, 1, 3]),
        "flag": pd.Categorical([True, False, True]),
        "t": pd.to_datetime(["2020-01-01", None, "2021-01-01"]),
        "zoned": pd.to_datetime(["2020-01-01"] * 3, utc=True),
        "I": pd.array([1, None, 2], dtype="Int64"),
        "embedding": [np.ones(3, "float32")] * 3,
        "ragged": [[1, 2], [3], []],
        "gap": [[1.0], None, [2.0]],
    }
)
IMAGES = np.zeros((4, 8, 8, 3), "uint8")


def signature(X, example=True, **more):
    training = containers.read(X)
    columns = training.columns()
    row = example_row(training.sample()[1], columns) if example else None
    return Signature(columns, training.container, training.detail, example=row, **more)


# -- JSON Schema


def test_a_signature_comes_back_from_its_json_schema():
    ours = signature(FRAME)

    again = from_json_schema(json.loads(json.dumps(json_schema(ours))))

    assert again.columns == ours.columns
    assert again.example == ours.example


@pytest.mark.parametrize("container", ["array", "sparse", "dict"])
def test_arrays_and_sparse_rows_come_back_too(container):
    from scipy import sparse

    X = {"array": IMAGES, "sparse": sparse.csr_array(np.eye(3)), "dict": {"a": IMAGES, "b": np.arange(4)}}[container]
    ours = signature(X)

    assert from_json_schema(json_schema(ours)).columns == ours.columns


def test_a_row_of_the_training_frame_fits_the_schema_and_another_does_not():
    schema = json_schema(signature(FRAME))
    jsonschema.Draft202012Validator.check_schema(schema)
    good = schema["example"]
    jsonschema.validate(good, schema)

    for column, bad in [("i", "1"), ("b", 1), ("embedding", [1, 2]), ("ragged", 3), ("i", None), ("flag", 1), ("t", 1)]:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**good, column: bad}, schema)
    jsonschema.validate({**good, "s": None, "I": None, "gap": None, "t": None}, schema)


def test_a_schema_of_somebody_else_is_read():
    theirs = {
        "type": "object",
        "properties": {
            "age": {"type": "integer", "minimum": 18, "maximum": 99},
            "score": {"type": ["number", "null"]},
            "kind": {"enum": ["a", "b", None]},
            "name": {"type": "string", "maxLength": 5},
            "day": {"type": "string", "format": "date"},
            "at": {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]},
            "old": {"type": "boolean", "nullable": True},
            "image": {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "array", "items": {"type": "number"}}},
            "maybe": {"type": "integer"},
        },
        "required": ["age", "score", "kind", "name", "day", "at", "old", "image"],
        "examples": [{"age": 20}],
    }  # fmt: skip

    read = from_json_schema(theirs)

    found = {c.name: (c.kind, c.dtype, c.nullable, c.shape) for c in read.columns}
    assert found == {
        "age": ("int", "int64", False, ()),
        "score": ("float", "float64", True, ()),
        "kind": ("string", "object", True, ()),
        "name": ("string", "object", False, ()),
        "day": ("date", "object", False, ()),
        "at": ("datetime", "datetime64[ns]", True, ()),
        "old": ("bool", "boolean", True, ()),
        "image": ("float", "float64", False, (2, None)),
        "maybe": ("int", "Int64", True, ()),
    }
    by_name = {c.name: c for c in read.columns}
    assert (by_name["age"].minimum, by_name["age"].maximum) == (18, 99)
    assert by_name["kind"].categories == ("a", "b")
    assert by_name["name"].longest == 5
    assert read.example == {"age": 20}
    row = {"age": 20, "score": None, "kind": "a", "name": "x", "day": "2020-01-01", "at": None, "old": None,
           "image": [[1], [2]], "maybe": None}  # fmt: skip
    assert len(read.decode(row)) == 1


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "array"},
        {"type": "object"},
        {"type": "object", "properties": {}},
        {"type": "object", "properties": []},
        {"type": "object", "properties": {"a": {}}},
        {"type": "object", "properties": {"a": 1}},
        {"type": "object", "properties": {"a": True}},
        {"type": "object", "properties": {"a": {"type": "object"}}},
        {"type": "object", "properties": {"a": {"type": ["integer", "string"]}}},
        {"type": "object", "properties": {"a": {"anyOf": [{"type": "integer"}, {"type": "string"}]}}},
        {"type": "object", "properties": {"a": {"anyOf": [1, {"type": "string"}]}}},
        {"type": "object", "properties": {"a": {"anyOf": 3}}},
        {"type": "object", "properties": {"a": {"$ref": "#/b"}}},
        {"type": "object", "properties": {"a": {"type": "array"}}},
        {"type": "object", "properties": {"a": {"type": "array", "items": 3}}},
        {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "object"}}}},
        {"type": "object", "properties": {"a": {"type": "integer", "x-nbdeploy": {"kind": "int", "what": 1}}}},
    ],
)
def test_what_is_no_schema_of_a_record_is_refused_in_a_line(schema):
    with pytest.raises(SaveError) as refused:
        from_json_schema(schema)

    assert "\n" not in str(refused.value)


def test_a_schema_tells_no_value_of_a_private_column():
    shown = json.dumps(json_schema(signature(FRAME).with_private(["c", "s", "i"])))

    assert "lo" not in re.findall(r'"(\w+)"', shown)


# -- MLflow


def needs_mlflow():
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip("needs mlflow")


@pytest.fixture
def mlflow_signature():
    needs_mlflow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.models import ModelSignature
    return ModelSignature.from_dict


def enforced(theirs, rows):
    """What MLflow makes of `rows` before its model is asked; it raises where they do not fit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.models.utils import _enforce_schema

        return _enforce_schema(rows, theirs.inputs)


def test_mlflow_reads_the_signature_of_a_frame_and_takes_its_rows(mlflow_signature):
    frame = FRAME[["i", "f", "b", "s", "t"]].dropna().assign(i=lambda X: X["i"].astype("int32"), l=2**40, word="x")
    outputs = (Output("", "float64"),)

    theirs = mlflow_signature(to_mlflow(signature(frame, outputs=outputs)))

    assert theirs.inputs.input_names() == list(frame.columns)
    assert [t.name for t in theirs.inputs.input_types()] == [
        "integer", "double", "boolean", "string", "datetime", "long", "string",
    ]  # fmt: skip
    assert len(enforced(theirs, frame)) == len(frame)
    with pytest.raises(Exception, match=r"(?i)missing"):
        enforced(theirs, frame.drop(columns="i"))


def test_mlflow_reads_every_column_that_it_has_a_word_for(mlflow_signature):
    theirs = mlflow_signature(to_mlflow(signature(FRAME)))

    assert theirs.inputs.input_names() == list(FRAME.columns)
    assert theirs.inputs.optional_input_names() == ["f", "s", "t", "I", "gap"]


@pytest.mark.parametrize(
    "X",
    [IMAGES, np.zeros((4, 3), "float32"), np.arange(4), np.array(["a", "b"]), {"a": IMAGES, "b": np.arange(4)}],
    ids=["images", "matrix", "vector", "words", "dict"],
)
def test_mlflow_reads_the_signature_of_arrays_and_takes_them(X, mlflow_signature):
    theirs = mlflow_signature(to_mlflow(signature(X)))

    took = enforced(theirs, X)

    assert took is not None
    again = from_mlflow(theirs)
    assert [(c.kind, c.shape) for c in again.columns] == [(c.kind, c.shape) for c in signature(X).columns]


@pytest.mark.parametrize(
    ("y", "told"),
    [
        (np.zeros(3), "float64"),
        (np.zeros((3, 2), "float32"), "float32"),
        (np.array(["a", "b", "c"]), "string"),
        ({"mean": np.zeros(3), "label": np.array(list("abc"))}, "float64"),
    ],
)
def test_outputs_go_to_mlflow_and_back(y, told, mlflow_signature):
    outputs = outputs_of(y)

    again = from_mlflow(mlflow_signature(to_mlflow(signature(FRAME[["b"]], outputs=outputs))))

    assert again.outputs == outputs
    assert again.outputs[0].dtype == told


def test_what_mlflow_infers_of_data_has_our_types():
    needs_mlflow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.models import infer_signature

        frame = FRAME[["b", "t"]].assign(
            i=np.arange(3, dtype="int32"), k=np.arange(3), f=[0.5, 1, 2], s=["a", "b", "c"], e=[[1.0, 2.0]] * 3
        )
        theirs = infer_signature(frame, np.zeros(3))
        arrays = infer_signature(IMAGES, np.zeros((4, 2)))
        named = infer_signature({"a": IMAGES, "b": np.arange(4.0)}, np.zeros(4))

    read = from_mlflow(theirs)
    assert [(c.name, c.kind) for c in read.columns] == [
        ("b", "bool"), ("t", "datetime"), ("i", "int"), ("k", "int"), ("f", "float"), ("s", "string"), ("e", "float"),
    ]  # fmt: skip
    assert {c.name: c.dtype for c in read.columns}["i"] == "int32"
    assert read.columns[-1].shape == (None,)
    assert read.outputs[0].dtype == "float64"
    (image,) = from_mlflow(arrays.to_dict()).columns
    assert (image.dtype, image.shape) == ("uint8", (8, 8, 3))
    assert from_mlflow(arrays).container == "array"
    found = from_mlflow(named)
    assert found.container == "dict"
    assert [(c.name, c.dtype, c.shape) for c in found.columns] == [("a", "uint8", (8, 8, 3)), ("b", "float64", ())]


@pytest.mark.parametrize(
    "theirs",
    [
        {"inputs": None},
        {"inputs": "[]"},
        {"inputs": '[{"type": "binary", "name": "a"}]'},
        {"inputs": '[{"type": "object", "name": "a", "properties": {}}]'},
        {"inputs": '[{"type": "tensor", "tensor-spec": {"dtype": "complex64", "shape": [-1, 2]}}]'},
    ],
)
def test_an_mlflow_signature_that_no_column_can_hold_is_refused_in_a_line(theirs):
    with pytest.raises(SaveError) as refused:
        from_mlflow(theirs)

    assert "\n" not in str(refused.value)


# -- the page


def test_the_code_on_the_page_runs():
    scope: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert blocks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks:
            exec(block, scope)

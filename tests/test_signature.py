"""What a model takes is read from its training frame, and rows are checked against it."""

from __future__ import annotations

import math
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbdeploy.errors import InputError, SaveError
from nbdeploy.signature import Signature, infer_columns, jsonable

FRAME = pd.DataFrame(
    {
        "count": pd.Series([1, 2, 3], dtype="int64"),
        "small": pd.Series([1, 2, 3], dtype="int8"),
        "size": [0.5, 1.5, 2.5],
        "gap": [0.5, math.nan, 2.5],
        "flag": [True, False, True],
        "word": ["a", "b", "c"],
        "kind": pd.Categorical(["x", "y", "x"], categories=["x", "y", "z"]),
        "when": pd.to_datetime(["2013-01-01T05:00", "2013-01-02T00:00", "2013-01-03T00:00"]),
        "maybe": pd.array([1, None, 3], dtype="Int64"),
    }
)
SIGNATURE = Signature(columns=infer_columns(FRAME))
GOOD = {"count": 1, "small": 1, "size": 0.5, "gap": None, "flag": True, "word": "a", "kind": "x",
        "when": "2013-01-01T05:00:00", "maybe": None}  # fmt: skip


def records(frame: pd.DataFrame) -> list[dict[str, object]]:
    columns = [jsonable(frame[name]) for name in frame.columns]
    return [dict(zip(frame.columns, row, strict=True)) for row in zip(*columns, strict=True)]


def test_names_kinds_nulls_ranges_and_categories_come_from_the_frame():
    by_name = {column.name: column for column in SIGNATURE.columns}

    assert [c.kind for c in SIGNATURE.columns] == [
        "int", "int", "float", "float", "bool", "string", "category", "datetime", "int",
    ]  # fmt: skip
    assert [name for name, c in by_name.items() if c.nullable] == ["gap", "maybe"]
    assert (by_name["size"].minimum, by_name["size"].maximum) == (0.5, 2.5)
    assert by_name["word"].categories == ("a", "b", "c")
    assert by_name["kind"].categories == ("x", "y", "z")


def test_a_signature_survives_json():
    assert Signature.from_dict(SIGNATURE.to_dict()) == SIGNATURE


def test_what_goes_out_as_json_comes_back_with_the_same_dtypes_and_values():
    pd.testing.assert_frame_equal(SIGNATURE.decode(records(FRAME)), FRAME)


def test_the_three_json_forms_mean_the_same():
    one, many = SIGNATURE.decode(GOOD), SIGNATURE.decode([GOOD])
    split = SIGNATURE.decode({"columns": list(GOOD), "data": [list(GOOD.values())]})

    pd.testing.assert_frame_equal(one, many)
    pd.testing.assert_frame_equal(one, split)


def test_column_order_is_free():
    shuffled = dict(reversed(GOOD.items()))

    pd.testing.assert_frame_equal(SIGNATURE.decode(shuffled), SIGNATURE.decode(GOOD))


def test_an_unseen_category_and_a_value_out_of_range_are_served():
    frame = SIGNATURE.decode({**GOOD, "kind": "new", "word": "new", "size": 1e9})

    assert frame.loc[0, "kind"] == "new"
    assert [news["column"] for news in SIGNATURE.novelties(frame)] == ["size", "word", "kind"]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("count", None), ("count", "1"), ("count", 1.5), ("count", True), ("count", 2**63), ("count", 10**400),
        ("count", math.inf), ("count", [1]), ("count", {}), ("small", 128), ("size", None), ("size", math.nan),
        ("size", math.inf), ("size", -math.inf), ("size", 10**400), ("size", "0.5"), ("size", True), ("size", [0.5]),
        ("gap", math.inf), ("flag", 1), ("flag", "true"), ("flag", None), ("word", 1), ("word", None), ("word", ["a"]),
        ("kind", 1), ("kind", None), ("when", "yesterday"), ("when", 1357016400), ("when", "2013-13-01"),
        ("when", "9" * 400), ("maybe", 1.5), ("maybe", "1"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_refused_by_row_and_column(column, value):
    with pytest.raises(InputError) as refused:
        SIGNATURE.decode([GOOD, {**GOOD, column: value}])

    (problem,) = refused.value.problems
    assert (problem["row"], problem["column"]) == (1, column)
    assert problem["expected"]
    assert len(problem["got"]) < 120


def test_a_float_column_takes_integers_and_an_integer_column_whole_floats():
    frame = SIGNATURE.decode({**GOOD, "size": 2, "count": 2.0})

    assert frame.loc[0, "size"] == 2.0
    assert frame["count"].dtype == np.int64


def test_a_misspelt_column_gets_a_suggestion():
    misspelt = {("wrod" if name == "word" else name): value for name, value in GOOD.items()}

    with pytest.raises(InputError) as refused:
        SIGNATURE.decode(misspelt)

    by_column = {problem["column"]: problem for problem in refused.value.problems}
    assert by_column["wrod"]["hint"] == "Did you mean 'word'?"
    assert by_column["word"]["hint"] == "You sent 'wrod'."


@pytest.mark.parametrize(
    "payload",
    [
        [], {}, 1, "text", None, True, [1], [[1, 2]], [None], {"columns": [], "data": []}, {"columns": list(GOOD)},
        {"columns": list(GOOD), "data": []}, {"columns": list(GOOD), "data": [[1]]}, {"columns": list(GOOD), "data": 3},
        {"columns": 5, "data": [[1]]}, {"columns": [1], "data": [[1]]}, {"columns": [*GOOD, "word"], "data": [[1] * 10]},
    ],
)  # fmt: skip
def test_what_is_no_row_is_refused(payload):
    with pytest.raises(InputError) as refused:
        SIGNATURE.decode(payload)

    assert refused.value.problems


def test_problems_are_bounded():
    with pytest.raises(InputError) as refused:
        SIGNATURE.decode([{**GOOD, "count": "x" * 10_000, "size": "y"}] * 5_000)

    assert len(refused.value.problems) == 100
    assert len(str(refused.value)) < 400


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(st.sampled_from([*GOOD, "extra"]), values) | values)
def test_any_json_is_either_decoded_or_refused(payload):
    row = {**GOOD, **payload} if isinstance(payload, dict) else payload
    with suppress(InputError):
        frame = SIGNATURE.decode(row)

        assert list(frame.dtypes.astype(str)) == list(FRAME.dtypes.astype(str))


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (pd.DataFrame(), "empty"),
        (pd.DataFrame({"a": []}), "empty"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "'a' twice"),
        (pd.DataFrame([[1]], columns=pd.MultiIndex.from_tuples([("a", "b")])), "MultiIndex"),
        (pd.DataFrame({"a": [1, "x"]}), "mixed"),
        (pd.DataFrame({"a": [[1], [2]]}), "holds"),
        (pd.DataFrame({"a": pd.to_timedelta([1, 2])}), "timedelta"),
        (pd.DataFrame([[1]], columns=[1.5]), "float"),
    ],
)
def test_a_frame_that_cannot_become_a_signature_says_why(frame, says):
    with pytest.raises(SaveError, match=says):
        infer_columns(frame)


def test_integer_labels_come_back_as_integers():
    frame = pd.DataFrame([[1.0, 2.0]], columns=[0, 1])
    signature = Signature(columns=infer_columns(frame))

    pd.testing.assert_frame_equal(signature.decode({"0": 1.0, "1": 2.0}), frame)

"""What a model takes is read from its training frame, and rows are checked against it."""

from __future__ import annotations

import decimal
import difflib
import math
import time
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbdeploy.errors import InputError, SaveError
from nbdeploy.signature import Signature, jsonable
from nbdeploy.signature_inference import infer_columns

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
        (pd.DataFrame({"a": [[1], ["x"]]}), "holds"),
        (pd.DataFrame({"a": [[1], [[2]]]}), "holds"),
        (pd.DataFrame({"a": [{}, {}]}), "holds"),
        (pd.DataFrame({"a": pd.to_timedelta([1, 2])}), "timedelta"),
        (pd.DataFrame([[1]], columns=[1.5]), "float"),
    ],
)
def test_a_frame_that_cannot_become_a_signature_says_why(frame, says):
    with pytest.raises(SaveError, match=says):
        infer_columns(frame)


@pytest.mark.parametrize("text", ["", "NaT", "nan", "now", "today", " 2013-01-01", "\u0661\u0662"])
def test_what_pandas_takes_for_a_time_and_people_do_not_is_refused(text):
    with pytest.raises(InputError) as refused:
        SIGNATURE.decode({**GOOD, "when": text})

    (problem,) = refused.value.problems
    assert (problem["row"], problem["column"]) == (0, "when")
    assert "2013" in problem["hint"]


ZONED = Signature(
    columns=infer_columns(pd.DataFrame({"when": pd.to_datetime(["2013-01-01", None]).tz_localize("Europe/Paris")}))
)


@pytest.mark.parametrize(
    ("signature", "text", "says"),
    [
        (SIGNATURE, "2013-01-01T05:00:00+01:00", "no time zone"),
        (SIGNATURE, "2013-01-01T05:00:00Z", "no time zone"),
        (SIGNATURE, "2013-01-01 05:00-0500", "no time zone"),
        (ZONED, "2013-01-01T05:00:00", "has a time zone"),
        (ZONED, "2013-01-31", "has a time zone"),
        (ZONED, "2013-13-01T05:00:00+01:00", "For example"),
        (ZONED, "9999-01-01T05:00:00+99:00", "For example"),
    ],
)
def test_an_offset_must_come_where_the_training_frame_has_a_time_zone_and_only_there(signature, text, says):
    good = {**GOOD, "when": "2013-01-01"} if signature is SIGNATURE else {"when": "2013-01-01T00:00:00+01:00"}
    with pytest.raises(InputError) as refused:
        signature.decode([good, {**good, "when": text}])

    (problem,) = refused.value.problems
    assert (problem["row"], problem["column"]) == (1, "when")
    assert says in problem["hint"]


def test_offsets_may_be_mixed():
    frame = ZONED.decode([{"when": "2013-07-01T00:00:00+02:00"}, {"when": "2013-01-01T00:00Z"}, {"when": None}])

    assert str(frame["when"].dtype) == ZONED.columns[0].dtype
    assert frame["when"].dt.hour.tolist()[:2] == [0, 1]


def test_a_date_that_the_dtype_cannot_hold_is_refused_by_row_and_column():
    frame = pd.DataFrame({"when": pd.to_datetime(["2013-01-01"]).astype("datetime64[ns]")})

    with pytest.raises(InputError, match=r"row 1, column 'when'.*datetime64\[ns\]"):
        Signature(columns=infer_columns(frame)).decode([{"when": "2013-01-01"}, {"when": "1600-01-01"}])


def test_a_date_out_of_range_is_a_novelty_and_novelties_are_bounded():
    frame = SIGNATURE.decode({**GOOD, "when": "2020-01-01"})
    wide = pd.DataFrame(np.zeros((1, 150)))

    assert [news["column"] for news in SIGNATURE.novelties(frame)] == ["when"]
    assert len(Signature(columns=infer_columns(wide)).novelties(wide + 1)) == 100


@pytest.mark.parametrize("form", ["record", "records", "split"])
def test_50_000_unknown_keys_are_refused_without_50_000_searches(form, monkeypatch):
    searches = []
    closest = difflib.get_close_matches
    monkeypatch.setattr(difflib, "get_close_matches", lambda *a, **k: searches.append(1) or closest(*a, **k))
    keys = [f"count{i}" for i in range(50_000)]
    payload = {
        "record": dict.fromkeys(keys, 1),
        "records": [dict.fromkeys(keys[:500], 1)] * 100,
        "split": {"columns": keys * 2, "data": [[1]]},
    }[form]

    started = time.perf_counter()
    with pytest.raises(InputError) as refused:
        SIGNATURE.decode(payload)

    assert time.perf_counter() - started < 2
    assert len(refused.value.problems) == 100
    assert len(searches) <= 30


def test_a_frame_with_a_doubled_column_is_refused_by_name():
    doubled = pd.concat([FRAME, FRAME[["word"]]], axis=1)

    with pytest.raises(InputError, match="column 'word': expected each column once"):
        SIGNATURE.encode(doubled)


@pytest.mark.parametrize(
    "cell", [decimal.Decimal(1), pd.Period("2013"), pd.Timedelta(1), 1j, b"x", 2**70, "\ud800", [1]], ids=repr
)
def test_a_cell_that_json_cannot_carry_is_refused_by_row_and_column(cell):
    frame = FRAME.assign(word=pd.Series(["a", cell, "c"], dtype=object))

    with pytest.raises(InputError) as refused:
        SIGNATURE.encode(frame)

    (problem,) = refused.value.problems
    assert (problem["row"], problem["column"]) == (1, "word")


def test_infinity_is_known_to_come_only_where_training_had_it():
    infinite = pd.DataFrame({"size": [1.0, math.inf]})

    assert not SIGNATURE.nonfinite
    assert Signature(columns=infer_columns(infinite)).nonfinite


def test_integer_labels_come_back_as_integers():
    frame = pd.DataFrame([[1.0, 2.0]], columns=[0, 1])
    signature = Signature(columns=infer_columns(frame))

    pd.testing.assert_frame_equal(signature.decode({"0": 1.0, "1": 2.0}), frame)

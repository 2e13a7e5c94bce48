"""Rows and answers as Arrow streams: the same rules as for JSON, and no dtype is lost on the way."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbdeploy
from nbdeploy import answers, arrow_body
from nbdeploy.arrow_body import MEDIA, read, read_answers, write_answers, write_rows
from nbdeploy.errors import InputError
from nbdeploy.request_body import Unreadable
from nbdeploy.signature import Signature
from nbdeploy.signature_inference import infer_columns

SERVICE_PAGE = Path(__file__).parent.parent / "docs" / "service.md"

FRAME = pd.DataFrame(
    {
        "count": pd.Series([1, 2, 3], dtype="int32"),
        "small": pd.Series([1, 2, 3], dtype="uint8"),
        "size": [0.5, 1.5, 2.5],
        "half": pd.Series([0.5, 1.5, 2.5], dtype="float32"),
        "gap": [0.5, math.nan, 2.5],
        "wild": [math.inf, math.nan, 1.0],
        "flag": [True, False, True],
        "word": pd.Series(["a", None, "c"], dtype=object),
        "kind": pd.Categorical(["x", "y", "x"], categories=["x", "y", "z"], ordered=True),
        "when": pd.to_datetime(["2013-01-01T05:00", "2013-01-02T00:00", None]),
        "zoned": pd.to_datetime(["2013-01-01T05:00", "2013-01-02T00:00", None]).tz_localize("Europe/Paris"),
        "day": pd.Series([dt.date(2013, 1, 1), dt.date(2013, 1, 2), dt.date(2013, 1, 3)], dtype=object),
        "maybe": pd.array([1, None, 3], dtype="Int64"),
        "yes": pd.array([True, None, False], dtype="boolean"),
        "text": pd.array(["a", pd.NA, "c"], dtype="string"),
    }
)
SIGNATURE = Signature(columns=infer_columns(FRAME))


def stream(table: pa.Table, **options) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, **options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def test_rows_come_back_dtype_for_dtype():
    pd.testing.assert_frame_equal(read(write_rows(FRAME, SIGNATURE), SIGNATURE), FRAME)


def test_cells_that_are_arrays_travel_too():
    frame = pd.DataFrame({"image": list(np.arange(12, dtype="uint8").reshape(3, 2, 2)), "n": [1, 2, 3]})
    signature = Signature(columns=infer_columns(frame))

    again = read(write_rows(frame, signature), signature)

    np.testing.assert_array_equal(np.stack(again["image"]), np.stack(frame["image"]))
    assert again["image"][0].dtype == "uint8"


@pytest.mark.parametrize("kind", [pa.int64(), pa.int8(), pa.float64()])
def test_numbers_of_another_width_are_taken_where_nothing_is_lost(kind):
    signature = Signature(columns=infer_columns(pd.DataFrame({"count": pd.Series([1, 2], dtype="int32")})))

    assert read(stream(pa.table({"count": pa.array([1, 2], kind)})), signature)["count"].dtype == "int32"


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("count", pa.array([1, 2**40, 3]), "row 1, column 'count'.*int32"),
        ("count", pa.array([1.0, 2.5, 3.0]), "row 1, column 'count'.*the number 2.5"),
        ("count", pa.array([1, None, 3]), "row 1, column 'count'.*null"),
        ("count", pa.array([True, False, True]), "column 'count'.*a column of type bool"),
        ("small", pa.array([1, -2, 3]), "row 1, column 'small'"),
        ("size", pa.array([0.5, math.nan, 1.0]), "row 1, column 'size'.*NaN"),
        ("size", pa.array([0.5, 1.0, math.inf]), "row 2, column 'size'.*Infinity"),
        ("half", pa.array([0.5, 1e300, 1.0]), "row 1, column 'half'"),
        ("size", pa.array(["a", "b", "c"]), "column 'size'.*a column of type string"),
        ("flag", pa.array([1, 0, 1]), "column 'flag'.*a column of type int64"),
        ("word", pa.array([1, 2, 3]), "column 'word'.*a column of type int64"),
        ("when", pa.array([1, 2, 3]), "column 'when'.*a column of type int64"),
        ("zoned", pa.array([0, 1, 2], pa.timestamp("ns")), "column 'zoned'"),
        ("kind", pa.array([[1]] * 3), "column 'kind'.*a column of type list"),
    ],
)
def test_what_json_may_not_say_arrow_may_not_say_either(column, values, says):
    table = pa.Table.from_pandas(FRAME, preserve_index=False)
    table = table.set_column(FRAME.columns.get_loc(column), column, values)

    with pytest.raises(InputError, match=says):
        read(stream(table), SIGNATURE)


def test_missing_unknown_doubled_columns_and_no_rows_are_refused():
    table = pa.Table.from_pandas(FRAME, preserve_index=False)
    doubled = pa.Table.from_arrays([*table.columns, table.column(0)], names=[*table.column_names, "count"])

    for wrong in (table.drop_columns(["word"]), table.append_column("more", pa.array([1, 2, 3])), doubled, table[:0]):
        with pytest.raises(InputError):
            read(stream(wrong), SIGNATURE)
    pd.testing.assert_frame_equal(read(stream(table.select(table.column_names[::-1])), SIGNATURE), FRAME)


def test_bombs_are_refused_before_they_are_decoded():
    small = Signature(columns=infer_columns(pd.DataFrame({"a": [0.0, None]})))
    zeros = pa.table({"a": np.zeros(10_000_000)})
    encoded = pa.RunEndEncodedArray.from_arrays(pa.array([2**31 - 1], pa.int32()), pa.array([1.0]))

    with pytest.raises(Unreadable, match="compressed"):
        read(stream(zeros, options=pa.ipc.IpcWriteOptions(compression="zstd")), small)
    with pytest.raises(Unreadable, match="more than 1,000,000 rows"):
        read(stream(pa.table({"a": pa.nulls(20_000_000)})), small)
    with pytest.raises((Unreadable, InputError)):
        read(stream(pa.table({"a": encoded})), small)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_stream_is_refused_or_read_and_nothing_else(data):
    body = bytearray(write_rows(FRAME, SIGNATURE))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    body = bytes(body[: data.draw(st.integers(0, len(body)))]) if data.draw(st.booleans()) else bytes(body)

    with suppress(Unreadable, InputError):
        assert len(read(body, SIGNATURE)) >= 1


@pytest.mark.parametrize(
    "values",
    [
        np.array([1.5, np.nan, np.inf], dtype="float32"),
        np.array([1, 2, 3], dtype="int8"),
        np.array([True, False, True]),
        np.array(["a", "b", "ü"], dtype=object),
        np.arange(12.0, dtype="float32").reshape(3, 2, 2),
        {"low": np.array([1.0, 2.0, 3.0]), "high": np.array([1, 2, 3])},
        np.array([{"label": "x", "score": 0.5}] * 3, dtype=object),
        np.array(["2013-01-01", "2014-01-01", "2015-01-01"], dtype="datetime64[ns]"),
    ],
    ids=["floats", "integers", "booleans", "text", "arrays", "named", "objects", "datetimes"],
)
def test_answers_come_back_dtype_for_dtype(values):
    scores = np.array([[0.25, 0.75]] * 3)

    body = write_answers(values, scores, (False, True), "i", "v1")
    again = read_answers(body, answers.outputs_of(values))

    want = answers.frame_of(values, scores, (False, True))
    assert answers.first_difference(want, again, 0) == ""
    assert again["prediction_id"].tolist() == ["i-0", "i-1", "i-2"]
    assert set(again["version"]) == {"v1"}


def test_a_service_answers_a_stream_with_a_stream_and_logs_it(flight_model, flights):
    features, _ = flights
    service = nbdeploy.deploy(flight_model, "flights", *flights)
    few, many = features.head(5), features.head(300)

    asked = nbdeploy.predict("flights", many, proba=True)  # by Arrow
    stranger = httpx.post(
        f"{service.url}/predict", content=stream(pa.Table.from_pandas(few, preserve_index=False)), headers={"Content-Type": MEDIA}
    )  # fmt: skip
    refused = httpx.post(f"{service.url}/predict", content=b"ARROW1", headers={"Content-Type": MEDIA})

    np.testing.assert_array_equal(asked["prediction"], flight_model.predict(many))
    np.testing.assert_array_equal(asked["probability_True"], flight_model.predict_proba(many)[:, 1])
    assert asked["prediction"].dtype == flight_model.predict(many).dtype
    assert stranger.headers["content-type"] == MEDIA
    table = pa.ipc.open_stream(stranger.content).read_all()
    assert table.column("prediction").to_pylist() == flight_model.predict(few).tolist()
    assert (refused.status_code, list(json.loads(refused.content))) == (400, ["error", "problems"])
    (example,) = (
        code for code in re.findall(r"```python\n(.*?)```", SERVICE_PAGE.read_text(), re.DOTALL) if "sink" in code
    )
    names = {
        "url": service.url,
        "table": pa.Table.from_pandas(few, preserve_index=False),
        "pyarrow": pa,
        "httpx": httpx,
    }
    exec(example, names)
    assert len(pa.ipc.open_stream(names["answer"].content).read_pandas()) == 5
    log = nbdeploy.predictions("flights")
    assert len(log) == 310
    pd.testing.assert_frame_equal(log[list(features.columns)].head(300), many.reset_index(drop=True))
    assert arrow_body.MEDIA == "application/vnd.apache.arrow.stream"


def test_a_dictionary_that_would_swell_to_gigabytes_is_refused_before_it_does():
    signature = Signature(infer_columns(pd.DataFrame({"word": ["a", "b"]})))
    indices = pa.array(np.zeros(1_000_000, dtype="int32"))
    swollen = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * 1_000_000]))
    small = pa.DictionaryArray.from_arrays(indices.slice(0, 5), pa.array(["x" * 1_000]))

    with pytest.raises(InputError, match=r"word.*at most"):
        read(stream(pa.table({"word": swollen})), signature)
    assert len(read(stream(pa.table({"word": small})), signature)) == 5


def test_texts_that_many_rows_share_are_refused_before_they_are_written_out():
    signature = Signature(infer_columns(pd.DataFrame({"word": ["a", "b"]})))
    one = pa.array(["x" * 1_000_000]).cast(pa.string_view())
    validity, view, text = one.buffers()
    views = pa.Array.from_buffers(pa.string_view(), 300, [validity, pa.py_buffer(view.to_pybytes()[:16] * 300), text])
    few = pa.array(["a", "bc"]).cast(pa.string_view())

    with pytest.raises(InputError, match=r"word.*at most"):
        read(stream(pa.table({"word": views})), signature)
    assert read(stream(pa.table({"word": few})), signature)["word"].tolist() == ["a", "bc"]


def test_cells_hold_plain_values_alone_and_not_millions_for_nothing():
    signature = Signature(infer_columns(pd.DataFrame({"image": [np.zeros(3), np.ones(3)]})))
    nothing = pa.FixedSizeListArray.from_arrays(pa.nulls(20_000_000), 1_000_000)
    bits = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(16_000_000, dtype=bool)), 1_000_000)
    overlapping = pa.ListViewArray.from_arrays(pa.array([0, 0]), pa.array([3, 3]), pa.array([1.0, 2.0, 3.0]))

    for held in (nothing, overlapping):
        with pytest.raises(InputError, match="a column of type"):
            read(stream(pa.table({"image": held})), signature)
    with pytest.raises(InputError, match="10,000,000 values"):
        read(stream(pa.table({"image": bits})), signature)


def test_a_batch_with_metadata_of_its_own_is_refused_for_that_was_compression_once():
    signature = Signature(infer_columns(pd.DataFrame({"a": [1.0, 2.0]})))
    batch = pa.record_batch({"a": pa.array([1.0])})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch, custom_metadata={"ARROW:experimental_compression": "zstd"})

    with pytest.raises(Unreadable, match="compressed"):
        read(sink.getvalue().to_pybytes(), signature)


def test_a_sparse_row_is_its_places_and_its_values():
    from scipy import sparse

    from nbdeploy import containers

    rows = containers.read(sparse.csr_matrix(np.eye(3)))
    signature = Signature(rows.columns(), rows.container, rows.detail)
    frame = rows.whole()

    again = read(write_rows(frame, signature), signature)

    assert [cell.toarray().tolist() for cell in again["x"]] == [cell.toarray().tolist() for cell in frame["x"]]

"""The digest of a training frame: what changes it, and what does not."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import time
import tracemalloc
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from nbdeploy.data_digest import ROWS, training_digest
from nbdeploy.errors import SaveError

FRAME = """
import numpy as np, pandas as pd
def frame(rows=200_000):
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=rows)
    numbers[::5] = np.nan
    words = rng.choice(["AA", "Grün", "", "x" * 50], rows)
    return pd.DataFrame({
        "f": numbers, "f32": numbers.astype("f4"), "i": rng.integers(-5, 5, rows), "b": numbers > 0,
        "s": words, "o": pd.Series(words, dtype=object), "mixed": pd.Series([1, "a", None, 2.5, b"x"] * (rows // 5), dtype=object),
        "c": pd.Categorical(words), "t": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 999, rows), unit="h"),
        "tz": (pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 999, rows), unit="h")).tz_localize("Europe/Berlin"),
        "I": pd.array(rng.integers(0, 9, rows), dtype="Int64"), "B": pd.array(numbers > 0, dtype="boolean"),
        "p": pd.period_range("2020-01", periods=rows, freq="h"),
    })
"""
exec(FRAME)


def test_it_is_the_same_in_every_process():
    code = (
        FRAME
        + "\nfrom nbdeploy.data_digest import training_digest\nprint(training_digest(frame()), training_digest({'x', 'y', 'z'}))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{training_digest(frame())} {training_digest({'x', 'y', 'z'})}\n"}  # noqa: F821


def test_index_layout_and_copies_do_not_matter():
    whole = frame(1000)  # noqa: F821
    digest = training_digest(whole)
    assert training_digest(whole.set_axis(range(7, 1007))) == digest
    assert training_digest(whole.copy()) == digest
    assert training_digest(pd.concat([whole.iloc[:300], whole.iloc[300:]])) == digest
    numbers = np.arange(300_000.0).reshape(-1, 3)
    assert training_digest(numbers) == training_digest(np.asfortranarray(numbers))
    assert training_digest(numbers) == training_digest(np.hstack([numbers, numbers])[:, :3])
    assert training_digest(numbers) == training_digest(numbers.astype(">f8"))
    cube = np.arange(24.0).reshape(2, 3, 4)
    assert training_digest(cube) == training_digest(np.asfortranarray(cube))
    assert training_digest(pd.DataFrame(numbers)) == training_digest(
        pd.DataFrame({i: numbers[:, i].copy() for i in range(3)})
    )
    words = np.array([["a", "b", None]] * 70_000, dtype=object)
    assert training_digest(words) == training_digest(np.asfortranarray(words))


def test_every_cell_name_type_and_order_matters():
    whole = frame(1000)  # noqa: F821
    seen = {training_digest(whole)}

    def others():
        for name in whole:
            changed = whole.copy()
            changed[name] = pd.concat([changed[name].iloc[1:], changed[name].iloc[:1]], ignore_index=True)
            if name != "mixed":
                yield changed
        yield whole.rename(columns={"f": "g"})
        yield whole.rename(columns={"f": 0})
        yield whole.rename(columns={"f": "0"})
        yield whole[whole.columns[::-1]]
        yield whole.iloc[::-1]
        yield whole.iloc[:-1]
        yield whole.astype({"i": "int32"})
        yield whole.astype({"f": "f4"})
        yield whole.assign(c=whole["c"].cat.as_ordered())
        yield whole.assign(mixed=[1, "a", None, 2.5, "x"] * 200)
        yield whole["f"]
        yield whole["f"].rename("g")
        yield whole["f"].to_numpy()
        yield whole["f"].to_numpy()[:, None]
        yield whole[["f"]]
        yield whole["o"].tolist()
        yield tuple(whole["o"])

    for i, other in enumerate(others()):
        digest = training_digest(other)
        assert digest not in seen, i
        seen.add(digest)


def test_strings_do_not_run_together():
    assert training_digest(["ab", "c"]) != training_digest(["a", "bc"])
    assert training_digest(["", "a"]) != training_digest(["a", ""])
    assert training_digest(["", "a"]) != training_digest([None, "a"])
    assert training_digest(["a", b"a"]) != training_digest(["a", "a"])
    assert training_digest(["1", 1]) != training_digest([1, "1"])
    assert training_digest([[1], [2, 3]]) != training_digest([[1, 2], [3]])
    assert training_digest(["\ud800"]) != training_digest(["\ud801"])


def test_what_is_behind_a_nan_does_not_matter():
    one, other = np.array([1.0, np.nan]), np.array([1.0, 0.0])
    other.view("u8")[1] = 0xFFF8000000000123
    assert np.isnan(other[1])
    assert training_digest(one) == training_digest(other)
    assert training_digest(np.array([0.0])) != training_digest(np.array([-0.0]))
    assert training_digest([None, "a"]) == training_digest([float("nan"), "a"])


@pytest.mark.parametrize(
    "dtype", ["f2", "f4", "f8", "g", "F", "D", "G", "?", "i1", "u8", "S5", "U7", "M8[s]", "m8[ns]", "i4,f8"]
)
def test_every_type_of_array_has_a_digest(dtype):
    array = np.zeros(9, dtype) if "," in dtype or dtype[0] in "Mm" else np.arange(9).astype(dtype)
    assert training_digest(array) == training_digest(array.copy()) == training_digest(np.repeat(array, 2)[::2])
    assert training_digest(array) != training_digest(array[:-1])
    assert training_digest(array[:0])
    assert training_digest(array.reshape(3, 3)) == training_digest(np.asfortranarray(array.reshape(3, 3)))
    assert training_digest(np.array(5.0))


def test_sparse_matrices_tables_tensors_and_mappings_have_digests():
    import pyarrow as pa
    from scipy import sparse

    matrix = sparse.random_array((500, 20), density=0.1, rng=np.random.default_rng(0), format="csr")
    wide = matrix.copy()
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    assert training_digest(matrix) == training_digest(wide)
    assert len({training_digest(matrix.asformat(name)) for name in ("csr", "csc", "coo", "bsr")}) == 4
    assert training_digest(sparse.eye_array(5).todia()) != training_digest(sparse.eye_array(5, k=1).todia())
    assert training_digest(matrix.tolil()) == training_digest(matrix.tolil())
    table = pa.table(
        {
            "a": [1, None, 3],
            "s": ["x", None, "z"],
            "b": [True, None, False],
            "t": [dt.date(2020, 1, 1)] * 3,
            "l": [[1], [], None],
        }
    )
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert training_digest(table) == training_digest(chunked)
    assert training_digest(table) != training_digest(table.slice(0, 2))
    assert training_digest(table["s"].dictionary_encode()) != training_digest(table["s"])
    one, other = {"a": np.arange(3), "b": [1, 2]}, {"b": [1, 2], "a": np.arange(3)}
    assert training_digest(one) == training_digest(other)
    assert training_digest({**one, "a": np.arange(4)}) != training_digest(one)
    odd = [
        Decimal("1.5"),
        dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc),
        {"b": 1, "a": (2,)},
        {3, 4},
        pd.NaT,
        pd.Timestamp("2020"),
        1 + 2j,
    ]
    assert training_digest(odd) == training_digest(list(odd))
    assert training_digest(None) != training_digest([])
    assert training_digest(pd.Index([1, 2], name="a"))
    assert training_digest(pd.DataFrame({("a", 1): [1], ("a", 2): [2]}))
    assert training_digest(pd.DataFrame({"a": pd.arrays.SparseArray([0, 0, 1])}))
    assert training_digest(pd.DataFrame())


def test_polars_frames_have_digests():
    pl = pytest.importorskip("polars")
    table = pl.DataFrame(
        {
            "a": [1, None],
            "s": ["x", "y"],
            "c": pl.Series(["x", "y"], dtype=pl.Categorical),
            "d": [dt.date(2020, 1, 1)] * 2,
        }
    )
    assert training_digest(table) == training_digest(table.clone()) == training_digest(table.lazy())
    assert training_digest(pl.concat([table[:1], table[1:]], rechunk=False)) == training_digest(table)
    assert training_digest(table) != training_digest(table.rename({"a": "b"}))
    assert training_digest(table["s"]) != training_digest(table["s"].reverse())


def test_tensors_have_digests():
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6.0, requires_grad=True).reshape(2, 3)
    assert training_digest(tensor) == training_digest(np.arange(6, dtype="f4").reshape(2, 3))


def test_what_cannot_be_stored_is_named():
    import threading

    with pytest.raises(SaveError, match=r"a _thread\.lock of the training data has no digest"):
        training_digest([threading.Lock()])


def test_a_million_rows_take_no_copy_and_little_time():
    rng = np.random.default_rng(0)
    rows = 1_000_000
    numbers = pd.DataFrame(rng.normal(size=(rows, 8)))
    words = pd.DataFrame({"s": rng.choice(["AA", "United Airlines"], rows).astype(object)}, dtype=object)
    training_digest(words.head(ROWS))  # the imports
    started = time.perf_counter()
    training_digest(words)
    assert time.perf_counter() - started < 1.5
    started = time.perf_counter()
    training_digest(numbers)
    assert time.perf_counter() - started < 1.5
    tracemalloc.start()
    try:
        training_digest(numbers)
        training_digest(np.asfortranarray(numbers.to_numpy()[:, :1]))
        assert tracemalloc.get_traced_memory()[1] < 64e6
    finally:
        tracemalloc.stop()

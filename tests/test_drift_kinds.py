"""Columns of every kind: the verdict is that of bare Evidently wherever it has one, and there is one where it trips."""

from __future__ import annotations

import datetime as dt
import decimal
import warnings
from functools import cache

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from nbdeploy.drift_report import measure

ROWS = (400, 1500)  # below and above the 1,000 values at which Evidently goes from p-values to distances


def normal(side, rows, *, at=0.0, scale=1.0):
    return np.random.default_rng(side).normal(at, scale, rows)


def pick(side, rows, values, tilt=1.0):
    """Values, the first ones more often where there is a tilt."""
    return np.array(values, dtype=object)[(np.random.default_rng(side).random(rows) ** tilt * len(values)).astype(int)]


def gaps(values, share, side):
    return pd.Series(values).mask(np.random.default_rng(side + 7).random(len(values)) < share)


def words(side, rows, *, drifted):
    rng = np.random.default_rng(side)
    vocabulary = np.array(["gate", "late", "cloud", "crew", "fuel", "storm", "taxi", "queue", "ice", "wind"])
    chosen = rng.integers(5 * side * drifted, 10, (rows, 6))
    return [f"{' '.join(vocabulary[row])} n{i}" for i, row in enumerate(chosen)]


# side is 0 of the reference and 1 of the window.
AGREED = {
    "normal": normal,
    "shifted": lambda s, n: normal(s, n, at=s),
    "hardly shifted": lambda s, n: normal(s, n, at=0.02 * s),
    "wider": lambda s, n: normal(s, n, scale=1 + 2 * s),
    "lognormal": lambda s, n: np.exp(normal(s, n)),
    "lognormal shifted": lambda s, n: np.exp(normal(s, n, at=0.6 * s)),
    "heavy tails": lambda s, n: np.random.default_rng(s).standard_cauchy(n),
    "zero inflated": lambda s, n: np.where(normal(s, n) > 1 - 1.5 * s, np.exp(normal(s + 5, n)), 0.0),
    "a share": lambda s, n: np.random.default_rng(s).beta(2 + s, 5, n),
    "float32": lambda s, n: normal(s, n, at=s).astype("float32"),
    "float16": lambda s, n: normal(s, n).astype("float16"),
    "int64": lambda s, n: np.random.default_rng(s).poisson(30 + 8 * s, n),
    "int32": lambda s, n: np.random.default_rng(s).poisson(30, n).astype("int32"),
    "int16": lambda s, n: np.random.default_rng(s).poisson(30 + 8 * s, n).astype("int16"),
    "negative": lambda s, n: -np.random.default_rng(s).poisson(30, n),
    "few whole numbers": lambda s, n: np.random.default_rng(s).integers(0, 4 + 2 * s, n),
    "ten whole numbers": lambda s, n: np.random.default_rng(s).integers(0, 10, n),
    "eleven whole numbers": lambda s, n: np.random.default_rng(s).integers(0, 11, n),
    "zeros and ones": lambda s, n: (np.random.default_rng(s).random(n) < 0.3 + 0.4 * s).astype(int),
    "few floats": lambda s, n: np.random.default_rng(s).integers(0, 4, n) / 2,
    "eight floats": lambda s, n: np.random.default_rng(s).integers(0, 8 + 4 * s, n) / 2,
    "with NaN": lambda s, n: gaps(normal(s, n, at=s), 0.3, s),
    "mostly NaN": lambda s, n: gaps(normal(s, n), 0.8, s),
    "whole numbers with NaN": lambda s, n: gaps(np.random.default_rng(s).poisson(30, n).astype(float), 0.2, s),
    "with infinity": lambda s, n: np.where(np.arange(n) % 9 == 0, np.inf, normal(s, n)),
    "with minus infinity": lambda s, n: np.where(np.arange(n) % 9 == 0, -np.inf, normal(s, n, at=s)),
    "constant": lambda _, n: np.ones(n),
    "another constant": lambda s, n: np.full(n, 1.0 + s),
    "constant text": lambda _, n: ["a"] * n,
    "tiny": lambda s, n: normal(s, n, at=s) * 1e-6,
    "large": lambda s, n: normal(s, n, at=s) * 1e9,
    "bool": lambda s, n: np.random.default_rng(s).random(n) < 0.5,
    "bool drifted": lambda s, n: np.random.default_rng(s).random(n) < 0.3 + 0.4 * s,
    "two words": lambda s, n: pick(s, n, ["yes", "no"], 1 + s),
    "words": lambda s, n: pick(s, n, ["AA", "B6", "DL", "UA", "WN"]),
    "words drifted": lambda s, n: pick(s, n, ["AA", "B6", "DL", "UA", "WN"], 1 + 2 * s),
    "new words": lambda s, n: pick(s, n, ["AA", "B6", "DL"] + ["XX"] * s),
    "other words": lambda s, n: pick(s, n, ["AA", "B6"] if not s else ["XX", "YY"]),
    "words with None": lambda s, n: gaps(pick(s, n, ["AA", "B6", "DL"]), 0.3, s).where(lambda v: v.notna(), None),
    "empty words": lambda s, n: pick(s, n, ["", "a", "b"], 1 + s),
    "accents": lambda s, n: pick(s, n, ["é", "ß", "日本", "🛫"], 1 + s),
    "markup": lambda s, n: pick(s, n, ["<b>", "&amp;", "</script>", "`x`"], 1 + s),
    "numbers as words": lambda s, n: pick(s, n, [str(i) for i in range(20)], 1 + s),
    "dates as words": lambda s, n: pick(s, n, [f"2026-01-{i + 1:02d}" for i in range(20)]),
    "many words": lambda s, n: pick(s, n, [f"w{i}" for i in range(n // 8)]),
    "categorical": lambda s, n: pd.Categorical(pick(s, n, ["x", "y", "z"], 1 + s), ["x", "y", "z"]),
    "categorical with more": lambda s, n: pd.Categorical(pick(s, n, ["x", "y"]), ["x", "y", "z"]),
    "ordered": lambda s, n: pd.Categorical(pick(s, n, ["x", "y", "z"]), ["x", "y", "z"], ordered=True),
    "categorical numbers": lambda s, n: pd.Categorical(np.random.default_rng(s).integers(0, 3 + s, n)),
    "bins": lambda s, n: pd.cut(normal(s, n, at=s), [-9, -1, 0, 1, 9]),
    "string": lambda s, n: pd.array(pick(s, n, ["a", "b", "c"], 1 + s), dtype="string"),
    "string[pyarrow]": lambda s, n: pd.array(pick(s, n, ["a", "b", "c"]), dtype="string[pyarrow]"),
    "int64[pyarrow]": lambda s, n: pd.array(np.random.default_rng(s).poisson(30 + 8 * s, n), dtype="int64[pyarrow]"),
}  # fmt: skip

# Evidently takes a thousand bootstraps of every text of a short reference.
TEXTS = {"text": lambda s, n: words(s, n, drifted=False), "text drifted": lambda s, n: words(s, n, drifted=True)}

MOMENTS = pd.Timestamp("2026-01-01")


def hours(side, rows):
    return pd.Series(MOMENTS + pd.to_timedelta(np.random.default_rng(side).integers(0, 500, rows) + 400 * side, "h"))


def arrow(kind, values):
    return pd.array(values, dtype=pd.ArrowDtype(kind))


# What bare Evidently leaves out, or trips on; what is said of each here, drifted as they are.
TRIPS = {
    "datetime64": (hours, "dates as days"),
    "datetime64 of a zone": (lambda s, n: hours(s, n).dt.tz_localize("Europe/Berlin"), "dates as days"),
    "datetimes": (lambda s, n: [moment.to_pydatetime() for moment in hours(s, n)], "dates as days"),
    "dates": (lambda s, n: pd.Series(hours(s, n).dt.date, dtype=object), "dates as days"),
    "periods": (lambda s, n: hours(s, n).dt.to_period("D"), "dates as days"),
    "timestamp[pyarrow]": (lambda s, n: arrow(pa.timestamp("us"), hours(s, n)), "dates as days"),
    "date32[pyarrow]": (lambda s, n: arrow(pa.date32(), hours(s, n).dt.date), "dates as days"),
    "timedelta64": (lambda s, n: hours(s, n) - MOMENTS, "durations as seconds"),
    "duration[pyarrow]": (lambda s, n: arrow(pa.duration("us"), hours(s, n) - MOMENTS), "durations as seconds"),
    "times": (lambda s, n: [dt.time(int(h)) for h in np.random.default_rng(s).integers(8 * s, 12 + 8 * s, n)],
              "times as seconds"),
    "Int64": (lambda s, n: pd.array([None if i % 7 == 0 else i % 50 + 30 * s for i in range(n)], dtype="Int64"), ""),
    "Float64": (lambda s, n: pd.array(normal(s, n, at=s), dtype="Float64"), ""),
    "boolean": (lambda s, n: pd.array([None if i % 5 == 0 else i % (2 + 3 * s) == 0 for i in range(n)], dtype="boolean"), ""),
    "True, False, None": (lambda s, n: [None if i % 3 == 0 else i % (4 + 9 * s) < 2 for i in range(n)], ""),
    "uint8": (lambda s, n: (np.arange(n) % 100 + 60 * s).astype("uint8"), ""),
    "sparse": (lambda s, n: pd.arrays.SparseArray(np.where(np.arange(n) % 2 == 0, np.arange(n) % 9 + 9.0 * s, 0.0)), ""),
    "double[pyarrow]": (lambda s, n: pd.array(normal(s, n, at=s), dtype="double[pyarrow]"), ""),
    "decimals": (lambda s, n: [decimal.Decimal(i % 50 + 30 * s) / 4 for i in range(n)], ""),
    "decimal128[pyarrow]": (lambda s, n: arrow(pa.decimal128(9, 2), [decimal.Decimal(i % 50 + 30 * s) for i in range(n)]), ""),
    "whole numbers as objects": (lambda s, n: pd.Series([i % 50 + 30 * s for i in range(n)], dtype=object), ""),
    "mixed": (lambda s, n: pd.Series([i % 3 if i % 2 else f"w{i % 4 + 2 * s}" for i in range(n)]), ""),
    "bytes": (lambda s, n: [b"ab\xff"[i % 3 : i % 3 + 1] if not s else b"x" for i in range(n)], ""),
    "intervals": (lambda s, n: pd.Series(pd.cut(normal(s, n, at=2 * s), [-9, -1, 0, 1, 9])).astype(object), ""),
    "very large whole numbers": (lambda s, n: 2**60 + np.arange(n) % 50 + 2**59 * s, ""),
    "all null": (lambda _, n: [np.nan] * n, "not compared: no values"),
    "all None": (lambda _, n: [None] * n, "not compared: no values"),
    "null in the window": (lambda s, n: normal(0, n) if not s else [np.nan] * n, "not compared: no values in the window"),
    "all infinite": (lambda _, n: [np.inf] * n, "not compared: no values"),
    "complex": (lambda s, n: normal(s, n) * 1j, "not compared: values that are neither"),
    "lists": (lambda _, n: [[1, 2]] * n, "not compared: values that are neither"),
    "dictionaries": (lambda _, n: [{"a": 1}] * n, "not compared: values that are neither"),
}  # fmt: skip


def made(kinds, side, rows):
    return pd.DataFrame({name: pd.Series(make(side, rows)).reset_index(drop=True) for name, make in kinds.items()})


def bare(reference, current):
    """The method and the verdict of each column that Evidently's own preset judges."""
    from evidently import Report
    from evidently.presets import DataDriftPreset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = Report([DataDriftPreset()], include_tests=True).run(current, reference).dict()
    asked = [(test["metric_config"]["params"], test["status"]) for test in run["tests"] if test["id"] == "drift"]
    return {params["column"]: (params["method"], str(status).endswith("FAIL")) for params, status in asked}


@cache
def compared(rows):
    """What bare Evidently says of every kind that it takes, and what is said here."""
    kinds = AGREED | TEXTS if rows == max(ROWS) else AGREED
    reference, current = made(kinds, 0, rows), made(kinds, 1, rows)
    return bare(reference, current), measure(reference, current, name="n", version="v1", page=False).columns


@pytest.mark.parametrize(
    ("rows", "kind"), [(rows, kind) for rows in ROWS for kind in (AGREED | TEXTS if rows == max(ROWS) else AGREED)]
)
def test_the_verdict_is_that_of_bare_evidently(rows, kind):
    evidently, ours = compared(rows)

    assert (ours.loc[kind, "method"], ours.loc[kind, "drifted"]) == evidently[kind]


@pytest.mark.parametrize("rows", ROWS)
def test_there_are_forty_kinds_and_drift_in_a_good_part_of_them(rows):
    evidently, ours = compared(rows)

    assert len(evidently) >= 40
    assert 10 <= sum(drifted for _, drifted in evidently.values()) <= len(evidently) - 10
    assert ours["effect"].notna().all()
    assert ours["effect"].abs().max() <= 1


@pytest.fixture(scope="module")
def answered():
    kinds = {name: make for name, (make, _) in TRIPS.items()}
    reference, current = made(kinds, 0, 400), made(kinds, 1, 400)
    return measure(reference, current, name="n", version="v1", page=False)


@pytest.mark.parametrize("kind", TRIPS)
def test_where_bare_evidently_trips_there_is_a_verdict_or_a_clear_reason(answered, kind):
    reason = TRIPS[kind][1]
    row = answered.columns.loc[kind]

    if reason.startswith("not compared"):
        assert row["drifted"] is None
        assert row["method"].startswith(reason)
    else:
        assert row["drifted"] == np.True_
        assert row["method"].startswith(reason)
        assert row["score"] == row["score"]


@pytest.mark.parametrize("kind", ["datetime64", "Int64", "mixed", "all null", "decimals", "lists"])
def test_bare_evidently_does_trip_on_them(kind):
    make = TRIPS[kind][0]
    reference, current = (pd.DataFrame({"x": make(side, 400), "y": np.arange(400.0)}) for side in (0, 1))

    try:
        judged = bare(reference, current)
    except Exception:
        judged = {}
    assert "x" not in judged


def test_moments_durations_and_times_are_said_in_words(answered):
    told = {change.split("`")[1]: change for change in answered.changes}

    assert told["datetime64"].startswith("`datetime64`: 2026-01-17 to 2026-02-07; the model has seen 2026-01-01")
    assert told["dates"] == "`dates`: 2026-01-17 to 2026-02-07; the model has seen 2026-01-01 to 2026-01-21"
    assert "; the model has seen 1 h to 20.8 d" in told["timedelta64"]
    assert told["times"] == "`times`: 08:00 to 19:00; the model has seen 00:00 to 11:00"
    assert told["null in the window"].endswith("always missing, instead of 0 %")


def test_how_much_later_longer_and_higher_is_said_with_both_medians():
    when = hours(0, 400)
    reference = pd.DataFrame({"when": when, "took": when - MOMENTS, "x": np.arange(400.0)})
    current = pd.DataFrame(
        {"when": when + pd.Timedelta("4D"), "took": (when - MOMENTS) * 1.3, "x": np.arange(400.0) + 90}
    )

    told = "\n".join(measure(reference, current, name="n", version="v1", page=False).changes)

    assert "4 d later in the middle (median 2026-01-16 instead of 2026-01-12)" in told
    assert " d higher in the middle (median 1" in told
    assert "90 higher in the middle (median 290 instead of 200)" in told

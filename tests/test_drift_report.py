"""Drift: the verdicts are Evidently's, the page is inert, and what cannot be judged is said."""

from __future__ import annotations

import decimal
import gc
import logging
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest

from nbdeploy.drift_report import measure
from nbdeploy.errors import DriftError


def told(reference, current, **options):
    return measure(reference, current, **{"name": "flights", "version": "v1", **options})


def mixed(rows, *, seed, shift=0.0):
    """Columns of every kind that Evidently judges; with a shift, every second of them drifts."""
    rng = np.random.default_rng(seed)
    gaps = rng.normal(shift, 1, rows)
    gaps[rng.random(rows) < 0.3] = np.nan
    return pd.DataFrame({
        "normal": rng.normal(0, 1, rows),
        "shifted": rng.normal(shift, 1, rows),
        "skewed": rng.lognormal(0, 1, rows),
        "gaps": gaps,
        "count": rng.poisson(30 + 10 * shift, rows),
        "few": rng.integers(0, 4, rows),
        "flag": rng.random(rows) < 0.5 + 0.3 * shift,
        "carrier": rng.choice(["AA", "B6", "DL", "UA"], rows),
        "origin": rng.choice(["EWR", "JFK", "LGA"], rows, p=[0.2 + shift / 2, 0.4 - shift / 4, 0.4 - shift / 4]),
        "class": pd.Categorical(rng.choice(["x", "y"], rows)),
        "constant": 1.0,
    })  # fmt: skip


def bare(reference, current):
    """What Evidently's own preset says: the drifted columns and each one's method."""
    from evidently import Report
    from evidently.presets import DataDriftPreset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = Report([DataDriftPreset()], include_tests=True).run(current, reference).dict()
    tests = [test for test in run["tests"] if test["id"] == "drift"]
    verdicts = {}
    for test in tests:
        asked = test["metric_config"]["params"]
        verdicts[asked["column"]] = (asked["method"], str(test["status"]).endswith("FAIL"))
    return verdicts


def verdicts_of(report):
    return {name: (row["method"], row["drifted"]) for name, row in report.columns.iterrows()}


# Verdicts


@pytest.mark.parametrize("rows", [300, 3000])
def test_methods_and_verdicts_are_those_of_bare_evidently(rows):
    reference, current = mixed(rows, seed=0), mixed(rows, seed=1, shift=0.5)

    assert verdicts_of(told(reference, current)) == bare(reference, current)


def test_sampling_changes_neither_method_nor_verdict():
    reference, current = mixed(6000, seed=0), mixed(6000, seed=1, shift=0.5)
    reference["sparse"] = current["sparse"] = np.where(np.arange(6000) % 4 == 0, reference["normal"], np.nan)
    reference["border"] = reference["normal"] * 1.0
    current["border"] = reference["normal"] + 0.103  # within what a sample of 1,200 can tell apart
    many = np.arange(6000) % 1500  # so many categories that a sample alone looks drifted
    reference["many"], current["many"] = [f"c{i}" for i in many], [f"c{i}" for i in many[::-1]]

    sampled = told(reference, current, max_rows=1200)

    assert sampled.sampled
    assert (sampled.rows_reference, sampled.rows_current) == (6000, 6000)
    assert verdicts_of(sampled) == bare(reference, current)


def test_the_same_seed_gives_the_same_report():
    reference, current = mixed(3000, seed=0), mixed(3000, seed=1, shift=0.5)

    first, again, other = (told(reference, current, max_rows=1500, seed=seed) for seed in (3, 3, 4))

    pd.testing.assert_frame_equal(first.columns, again.columns)
    assert not first.columns["score"].equals(other.columns["score"].reindex(first.columns.index))


def test_a_data_set_drifts_when_half_of_its_columns_do():
    reference, current = mixed(1500, seed=0)[["normal", "skewed"]], mixed(1500, seed=1)[["normal", "skewed"]]

    still = told(reference, current)
    half = told(reference, current.assign(normal=current["normal"] + 1))

    assert (still.drifted, still.share, still.verdict) == (False, 0.0, "no drift")
    assert (half.drifted, half.share, half.verdict) == (True, 0.5, "drift")
    assert half.drift_share == 0.5


def test_the_most_drifted_columns_come_first():
    reference = mixed(1500, seed=0)[["normal", "skewed", "gaps"]]
    current = reference.assign(skewed=reference["skewed"] + 9, gaps=reference["gaps"] + 1)

    assert list(told(reference, current).columns.index) == ["skewed", "gaps", "normal"]


def test_too_few_rows_are_said_not_judged(tmp_path):
    reference, current = mixed(1500, seed=0), mixed(12, seed=1, shift=0.5)

    report = told(reference, current, html_path=tmp_path / "drift.html")

    assert (report.drifted, report.verdict) == (False, "no verdict")
    assert set(report.columns["drifted"]) == {None}
    assert report.columns.loc["normal", "method"] == "too few rows: 12 of the 30 it takes"
    assert report.html_path.exists()  # the distributions can be looked at all the same
    assert "no verdict" in repr(report)


def test_a_column_with_few_values_gets_no_verdict_and_the_others_do():
    reference, current = mixed(1500, seed=0), mixed(1500, seed=1)
    current["gaps"] = current["gaps"].where(current.index < 10)

    columns = told(reference, current).columns

    assert columns.loc["gaps", "drifted"] is None
    assert "too few rows" in columns.loc["gaps", "method"]
    assert columns["drifted"].notna().sum() == len(columns) - 1


# Columns of every kind


def odd(rows):
    index = np.arange(rows)
    return {
        "Int64": pd.array([None if i % 7 == 0 else i % 50 for i in index], dtype="Int64"),
        "Float64": pd.array(index * 0.5, dtype="Float64"),
        "boolean": pd.array([None if i % 5 == 0 else i % 2 == 0 for i in index], dtype="boolean"),
        "string": pd.array([f"s{i % 9}" for i in index], dtype="string"),
        "category of numbers": pd.Categorical(index % 3),
        "uint8": (index % 200).astype("uint8"),
        "decimals": [decimal.Decimal(int(i)) / 4 for i in index],
        "mixed": [i % 3 if i % 2 else f"{i % 4}" for i in index],
        "bool or none": [None if i % 3 == 0 else i % 2 == 0 for i in index],
        "infinite": np.where(index % 10 == 0, np.inf, index * 1.0),
        "text": [f"flight {i} from {i % 11} is late again" for i in index],
        "empty strings": ["" if i % 2 else "a" for i in index],
        "index": index * 2.0,
        "per": index * 3.0,
        "target": index % 2,
        "prediction": index * 0.1,
        "id": index,
        7: index * 1.5,
    }


def test_every_kind_of_column_gets_a_verdict():
    columns = told(pd.DataFrame(odd(400)), pd.DataFrame(odd(400))).columns

    assert columns["drifted"].eq(False).all(), columns
    assert 7 in columns.index


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([None] * 60, "no values"),
        ([np.nan] * 60, "no values"),
        ([np.inf] * 60, "no values"),
        ([[1, 2]] * 60, "neither numbers nor text"),
        ([{"a": 1}] * 60, "neither numbers nor text"),
        ([1j] * 60, "neither numbers nor text"),
        ([f"{i // 10} {i % 10}" for i in range(60)], "empty vocabulary"),  # too short for Evidently's text test
    ],
)
def test_a_column_that_cannot_be_compared_says_why_and_costs_the_others_nothing(values, reason):
    frame = pd.DataFrame({"odd": pd.Series(values), "even": np.arange(60.0)})

    columns = told(frame, frame).columns

    assert columns.loc["odd", "drifted"] is None
    assert reason in columns.loc["odd", "method"]
    assert columns.loc["even", "drifted"] == np.False_


def test_a_column_on_one_side_only_is_named():
    base = pd.DataFrame({"both": np.arange(60.0)})

    columns = told(base.assign(old=1.0), base.assign(new=1.0)).columns

    assert columns.loc["old", "method"] == "not compared: only in the reference"
    assert columns.loc["new", "method"] == "not compared: not in the reference"


@pytest.mark.parametrize("as_logged", [str, float, lambda value: float(value) if value else None])
def test_a_log_that_turned_numbers_into_another_type_is_not_drift(as_logged):
    reference = pd.DataFrame({"x": np.arange(500) % 40 + 1})

    report = told(reference, pd.DataFrame({"x": [as_logged(value) for value in reference["x"]]}))

    assert not report.drifted
    assert report.verdict == "no drift"


def test_a_short_window_of_many_categories_is_not_taken_for_free_text():
    reference = pd.DataFrame({"dest": [f"airport{i % 40}" for i in range(2000)]})
    current = pd.DataFrame({"dest": [f"airport{i}" for i in range(35)]})

    assert told(reference, current).columns.loc["dest", "method"] == "Jensen-Shannon distance"


def test_the_frames_the_random_state_and_the_collector_are_left_as_they_were():
    reference, current = mixed(300, seed=0), mixed(300, seed=1)
    reference["text"] = current["text"] = [f"words {i} more words" for i in range(300)]
    before = reference.copy(), current.copy()
    np.random.seed(5)  # noqa: NPY002 - the global state that a user may rely on
    expected = np.random.RandomState(5).rand()

    told(reference, current, max_rows=100)

    pd.testing.assert_frame_equal(reference, before[0])
    pd.testing.assert_frame_equal(current, before[1])
    assert np.random.rand() == expected  # noqa: NPY002 - the same
    assert gc.isenabled()


# What there is to compare


@pytest.mark.parametrize(
    ("reference", "current", "message"),
    [
        ({"a": []}, {"a": [1]}, "The reference of flights v1 has no rows. Save"),
        ({"a": [1]}, {"a": []}, "flights v1 has answered nothing since 24h. Ask it first"),
        ({"a": [1]}, {"b": [1]}, r"No column of the reference \(a\) is among those asked about \(b\)"),
    ],
)
def test_nothing_to_compare_is_one_line(reference, current, message):
    with pytest.raises(DriftError, match=message) as raised:
        told(pd.DataFrame(reference), pd.DataFrame(current), since="24h")
    assert "\n" not in str(raised.value)


def test_a_report_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    frame = mixed(60, seed=0)

    with pytest.raises(DriftError, match="cannot be written"):
        told(frame, frame, html_path=tmp_path / "file" / "drift.html")


# Which part of Evidently


def test_the_table_is_made_once_and_no_fall_back_is_needed(caplog):
    with caplog.at_level(logging.INFO, logger="nbdeploy.drift_report"):
        told(mixed(300, seed=0), mixed(300, seed=1))

    assert caplog.records == []


def test_when_the_table_is_gone_the_public_metrics_give_the_same_verdicts(monkeypatch, tmp_path, caplog):
    import evidently.legacy.metrics

    reference, current = mixed(1500, seed=0), mixed(1500, seed=1, shift=0.5)
    usual = told(reference, current)
    monkeypatch.delattr(evidently.legacy.metrics, "DataDriftTable")

    with caplog.at_level(logging.INFO, logger="nbdeploy.drift_report"):
        fallen = told(reference, current, html_path=tmp_path / "drift.html")

    assert "DataDriftTable" in caplog.text
    assert verdicts_of(fallen) == verdicts_of(usual)
    assert "Content-Security-Policy" in fallen.html_path.read_text()
    assert fallen.page


def test_importing_the_module_loads_neither_evidently_nor_widgets():
    code = "import nbdeploy.drift_report, sys; print({'evidently', 'anywidget', 'IPython'} & set(sys.modules))"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"

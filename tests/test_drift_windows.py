"""Drift of a deployment's own log: of which window, against what, which columns, and what it says in words."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import nbdeploy
from nbdeploy import drift_report, drift_windows, label_log, log_sample, model_store, prediction_log, routing, watching
from nbdeploy.__main__ import main
from nbdeploy.errors import DriftError, NotFound
from nbdeploy.log_segments import place
from nbdeploy.prediction_log import Entry, LogWriter, new_request_id
from services import own_home

NAME = "flights"
NOW = pd.Timestamp("2026-06-15T12:00", tz="UTC")
DAY = 86400.0


@pytest.fixture(autouse=True, scope="module")
def importable():
    """The rehearsal's own process finds the model's class in this module."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), *([before] if before else [])])
    yield
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


class Late:
    """Late is what left late."""

    def __init__(self, limit):
        self.limit = limit

    def predict(self, X):
        return (X["dep_delay"] > self.limit).to_numpy()


def flights(rows, *, month=1, seed=0, delay=18.0, carriers=("AA", "DL", "UA"), missing=0.0):
    rng = np.random.default_rng(seed)
    begin = pd.Timestamp(f"2026-{month:02d}-01")
    return pd.DataFrame({
        "month": np.full(rows, month),
        "dep_delay": rng.normal(delay, 5, rows).round(1),
        "carrier": rng.choice(list(carriers), rows),
        "dest": np.where(rng.random(rows) < missing, None, rng.choice(["ATL", "BOS", "LAX"], rows)),
        "when": begin + pd.to_timedelta(rng.integers(0, 27 * 24, rows), unit="h"),
        "distance": rng.lognormal(6, 1, rows).round(1),
    })  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A home with v1, which has seen January, and v2, which has seen February."""
    with own_home() as home:
        for month, limit in ((1, 15), (2, 20)):
            X = flights(2000, month=month, seed=month)
            nbdeploy.save(Late(limit), NAME, X, pd.Series(X["dep_delay"] > 15, name="late"), progress=False)
        kept = tmp_path_factory.mktemp("saved")
        shutil.copytree(home.parent, kept / "base", symlinks=True)
        yield kept / "base"


@pytest.fixture
def deployment(home, saved):
    """The same in the test's own home."""
    shutil.copytree(saved, home.parent, symlinks=True, dirs_exist_ok=True)
    routing.go_live(NAME, "v1", "the test's")
    return NAME


def log(frame, *, version="v1", at=NOW, purpose="", parts=1, answers=None):
    """Let `version` have answered these rows, at one moment for each part; the prediction ids."""
    signature = model_store.get(NAME, version).signature
    writer = LogWriter(NAME, signature.columns, outputs=signature.outputs, keep_every=None)
    limit = {"v1": 15, "v2": 20}[version]
    ids = []
    for i, part in enumerate(np.array_split(np.arange(len(frame)), parts)):
        rows = frame.iloc[part].reset_index(drop=True)
        outputs = (rows["dep_delay"] > limit).tolist() if answers is None else answers
        request = new_request_id()
        moment = pd.Timestamp(at).timestamp() + i * DAY
        assert writer.write([Entry(version, request, {}, outputs, purpose=purpose, time=moment, frame=rows)])
        ids += prediction_log.prediction_ids(request, len(rows))
    writer.close()
    return ids


def drift(**options):
    return watching.drift(NAME, **{"page": False, **options})


def sentence(report, column):
    (found,) = [change for change in report.changes if change.startswith(f"`{column}`:")]
    return found.removeprefix(f"`{column}`: ")


# In words


def test_what_changed_most_is_said_in_words_and_first(deployment):
    log(flights(600, month=7, seed=5, delay=30, carriers=("AA", "DL", "B6"), missing=0.2))

    report = drift()

    assert sentence(report, "month") == "all July; the model has seen only January"
    assert re.match(
        r"1[12]\S* higher in the middle \(median (29|30)\S* instead of 1[78]", sentence(report, "dep_delay")
    )
    assert "a new value (B6), 3" in sentence(report, "carrier")
    assert sentence(report, "dest").endswith("% missing instead of 0 %")
    assert sentence(report, "when") == "2026-07-01 to 2026-07-27; the model has seen 2026-01-01 to 2026-01-27"
    assert not any(change.startswith("`distance`") for change in report.changes)
    assert report.changes[0].startswith(("`month`", "`when`"))
    assert "all July" in repr(report)
    assert "<code>month</code>: all July" in report._repr_html_()
    assert report.to_dict()["changes"] == list(report.changes)


def test_the_predictions_are_compared_and_said_as_what_the_model_said(deployment):
    log(flights(600, seed=5, delay=60))

    report = drift()

    assert report.columns.loc["prediction", "drifted"]
    assert sentence(report, "prediction").startswith("all True, instead of")


def test_where_nothing_changed_nothing_is_said(deployment):
    log(flights(2000, seed=9))

    report = drift()

    assert (report.verdict, report.changes) == ("no drift", ())


def test_an_effect_size_says_how_large_a_difference_is_whatever_the_number_of_rows(deployment):
    log(flights(3000, seed=9, delay=30, carriers=("AA", "DL", "UA", "B6")))

    columns = drift().columns

    assert columns.loc["dep_delay", "effect_size"] == "Cliff's delta"
    assert columns.loc["dep_delay", "effect"] == pytest.approx(0.91, abs=0.03)  # of normals 12 / (5 √2) apart
    assert columns.loc["carrier", "effect_size"] == "total variation"
    assert columns.loc["carrier", "effect"] == pytest.approx(0.25, abs=0.03)
    assert abs(columns.loc["distance", "effect"]) < 0.05


# Of which window, against what


def test_a_window_is_held_against_training_another_version_and_another_window(deployment):
    log(flights(400, seed=3), at=NOW - pd.Timedelta(days=10))
    log(flights(400, seed=4, delay=40), at=NOW)
    log(flights(300, seed=5, delay=40), version="v2", at=NOW)
    since = NOW - pd.Timedelta(days=1)

    training, version, its_own, before = (
        drift(since=since, against=against)
        for against in ("reference", "v2", "v2:reference", (NOW - pd.Timedelta(days=20), since))
    )

    assert [report.against for report in (training, version, its_own)] == ["reference", "v2", "v2:reference"]
    assert [r.rows_reference for r in (training, version, its_own, before)] == [2000, 300, 2000, 400]
    assert {r.rows_current for r in (training, version, its_own, before)} == {400}
    assert training.columns.loc["dep_delay", "drifted"]
    assert not version.columns.loc["dep_delay", "drifted"]
    assert sentence(its_own, "month") == "all January; v2 has seen only February"
    assert before.columns.loc["dep_delay", "drifted"]
    assert "400 of 2026-05-26" in before.summary


def test_a_shadow_is_compared_by_what_it_answered_unseen(deployment):
    log(flights(400, seed=4))
    log(flights(350, seed=5), version="v2", purpose="shadow")

    assert drift(against="v2").rows_reference == 350


def test_a_window_from_before_the_live_version_is_compared_by_its_inputs_alone(deployment):
    log(flights(400, seed=4), version="v2", at=NOW - pd.Timedelta(days=10))
    log(flights(400, seed=4), at=NOW)

    report = drift(since=NOW - pd.Timedelta(days=1), against=(None, NOW - pd.Timedelta(days=1)))

    assert report.rows_reference == 400
    assert "prediction" not in report.columns.index
    assert not report.columns.loc["dep_delay", "drifted"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"flights:v1 has answered no request\. Ask it something first"),
        ({"since": "1h"}, r"flights:v1 has answered no request since 1h\."),
    ],
)
def test_a_window_with_nothing_in_it_is_one_line(deployment, options, message):
    if options:
        log(flights(40), at=NOW)
    with pytest.raises(DriftError, match=message) as raised:
        drift(**options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"against": "yesterday"}, DriftError, "is neither 'reference', a version nor a window. Say against='v2'"),
        ({"against": "7d..14d"}, DriftError, "the window 7d..14d ends before it begins"),
        ({"against": "20d..soon"}, nbdeploy.NbdeployError, "'soon' is not a time"),
        ({"against": "v9"}, NotFound, "no version 'v9'"),
        (
            {"against": "v2"},
            DriftError,
            "flights:v2 has answered no request. Compare with what it learned from: against='v2:ref",
        ),
        ({"against": "900d..800d"}, DriftError, "flights was asked nothing since 900d until 800d"),
        ({"columns": ["carier"]}, DriftError, "has no column 'carier' that can be compared. Did you mean 'carrier'"),
        ({"columns": []}, DriftError, "columns= names none"),
        ({"by": "carier"}, DriftError, "by='carier' is no column of the .* Did you mean 'carrier'"),
        ({"max_rows": 0}, DriftError, "has nothing to compare"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_what_to_do(deployment, options, error, message):
    log(flights(40))
    with pytest.raises(error, match=message) as raised:
        drift(**options)
    assert "\n" not in str(raised.value)


def test_an_unknown_deployment_is_named_with_the_closest_one(deployment):
    with pytest.raises(NotFound, match="flights"):
        watching.drift("flight")


# Labels


def test_labels_are_compared_with_those_of_training_and_missing_ones_are_no_news(deployment):
    ids = log(flights(600, seed=5))
    label_log.add(NAME, dict.fromkeys(ids[:200], True))

    report = drift()

    assert report.columns.loc["late", "drifted"]
    assert sentence(report, "late").startswith("all True, instead of")
    assert "missing" not in sentence(report, "late")


def test_a_few_labels_are_too_few(deployment):
    ids = log(flights(600, seed=5))
    label_log.add(NAME, dict.fromkeys(ids[:7], True))

    assert drift().columns.loc["late", "method"] == "too few rows: 7 of the 30 it takes"


def test_many_labels_are_read_only_when_they_are_asked_for(deployment, monkeypatch):
    ids = log(flights(600, seed=5))
    label_log.add(NAME, dict.fromkeys(ids, True))
    monkeypatch.setattr(drift_windows, "LABEL_BYTES", 1000)

    unasked, asked = drift(), drift(columns=["late"])

    assert unasked.columns.loc["late", "drifted"] is None
    assert "MB of labels are read only when asked for, by columns=['late']" in unasked.columns.loc["late", "method"]
    assert asked.columns.loc["late", "drifted"]


def test_labels_that_nobody_asked_for_are_not_read(deployment, monkeypatch):
    ids = log(flights(60))
    label_log.add(NAME, dict.fromkeys(ids, True))
    monkeypatch.setattr(label_log, "history", lambda _name: pytest.fail("the labels were read"))

    assert list(drift(columns=["carrier"]).columns.index) == ["carrier"]


# Columns and groups


def test_only_the_columns_that_are_asked_for_are_read(deployment, monkeypatch):
    log(flights(400))
    prediction_log.seal(NAME)
    asked = []
    scan = log_sample.scan
    monkeypatch.setattr(
        log_sample, "scan", lambda name, **how: (asked.append((how["columns"], how["own"])), scan(name, **how))[1]
    )

    report = drift(columns=["carrier", "prediction"], by="dest")

    assert asked == [(["carrier", "dest"], ["prediction"])]
    assert set(report.columns.index) == {"carrier", "prediction"}


def test_each_group_has_verdicts_of_its_own_the_largest_first_and_too_few_rows_are_said(deployment):
    few = flights(15, seed=6).assign(carrier="B6")
    worse = flights(300, seed=7, delay=60).assign(carrier="UA")
    log(pd.concat([flights(500, seed=5, carriers=("DL",)), worse, few], ignore_index=True))

    report = drift(by="carrier")

    assert list(report.groups) == ["DL", "UA", "B6"]
    assert [group.rows_current for group in report.groups.values()] == [500, 300, 15]
    assert not report.groups["DL"].columns.loc["dep_delay", "drifted"]
    assert report.groups["UA"].columns.loc["dep_delay", "drifted"]
    assert report.groups["B6"].verdict == "no verdict"
    assert "too few rows" in report.groups["B6"].most
    assert "carrier" not in report.groups["UA"].columns.index
    assert "By carrier" in repr(report)
    assert "<td>UA</td>" in report._repr_html_()
    assert [group["value"] for group in report.to_dict()["groups"]] == ["DL", "UA", "B6"]


# From 100 rows to more than fit


def test_of_a_log_that_is_sampled_categories_are_exact_and_the_error_of_numbers_is_said(deployment):
    log(flights(6000, seed=5, delay=19, carriers=("AA", "DL", "UA", "B6")), parts=3)
    prediction_log.seal(NAME)

    whole, sampled = drift(), drift(max_rows=1500)

    assert not whole.sampling
    assert "1,500 rows" in sampled.sampling
    assert "at most 3.5 points (95 % sure)" in sampled.sampling  # √(ln 40 / 3000)
    assert sampled.sampling in repr(sampled)
    assert sampled.rows_current == 6000
    exact = ["carrier", "dest", "prediction", "month"]
    assert (sampled.columns.loc[exact, "score"] == whole.columns.loc[exact, "score"]).all()
    assert (sampled.columns.loc[exact, "error"] == 0).all()
    assert sampled.columns["drifted"].reindex(whole.columns.index).equals(whole.columns["drifted"])
    off = (sampled.columns["score"] - whole.columns["score"].reindex(sampled.columns.index)).abs()
    numbers = ["dep_delay", "distance"]
    assert (off[numbers] <= sampled.columns.loc[numbers, "error"]).all()
    assert sampled.columns.equals(drift(max_rows=1500).columns)  # the same rows each time


def test_a_sample_of_the_log_has_every_row_equally_often(home, deployment):
    log(pd.DataFrame({**flights(3000), "dep_delay": np.arange(3000.0)}), parts=6)
    counts = np.zeros(3000)
    for seed in range(60):
        taken = log_sample.take(NAME, lambda _: None, 500, columns=["dep_delay"], own=(), seed=seed, count=False)
        assert (len(taken.inputs), taken.rows) == (500, 3000)
        counts[taken.inputs["dep_delay"].astype(int)] += 1
    assert counts.sum() == 60 * 500
    by_part = counts.reshape(6, 500).sum(axis=1)
    assert np.abs(by_part - 5000).max() < 5 * np.sqrt(5000 * 5 / 6)


def test_counts_of_a_log_are_those_of_all_its_rows_and_too_many_values_have_none(deployment, monkeypatch):
    monkeypatch.setattr(log_sample, "MAX_VALUES", 50)
    frame = flights(4000, seed=3, missing=0.1)
    frame["carrier"] = [f"c{i % 700}" for i in range(4000)]
    log(frame, parts=4)

    taken = log_sample.take(NAME, lambda _: None, 100, columns=list(frame.columns))

    assert taken.counts["dest"].to_dict() == frame["dest"].value_counts().to_dict()
    assert taken.counts["month"].to_dict() == {1: 4000}
    assert taken.counts[""].sum() == 4000
    assert not {"carrier", "when", "distance"} & taken.counts.keys()
    assert taken.present["dest"] == frame["dest"].notna().sum()


def test_a_day_of_many_opens_no_file_of_another_day(deployment, monkeypatch):
    log(flights(1000), parts=10, at="2026-03-01T10:00Z")
    prediction_log.seal(NAME)
    opened = []
    before = prediction_log._opened
    monkeypatch.setattr(prediction_log, "_opened", lambda path: (opened.append(path.parent.name), before(path))[1])

    report = drift(since="2026-03-04", until="2026-03-05")

    assert report.rows_current == 100
    assert set(opened) <= {"day=2026-03-04", "day=2026-03-05"}
    assert len(list(place(NAME).glob("parquet/v1/*"))) == 10


def test_row_groups_of_another_hour_are_not_read(home, deployment):
    from nbdeploy.prediction_log import _Window

    class File:
        class metadata:  # noqa: N801 - as pyarrow has it
            num_row_groups = 3

            @staticmethod
            def row_group(group):
                stats = type("S", (), {"has_min_max": True, "min": NOW + pd.Timedelta(hours=group),
                                       "max": NOW + pd.Timedelta(hours=group, minutes=50)})  # fmt: skip
                return type("G", (), {"column": staticmethod(lambda _: type("C", (), {"statistics": stats}))})

    start = NOW.timestamp() + 3600
    assert _Window(start, start + 1800, "", "").row_groups(File, 0) == [1]
    assert _Window(None, None, "", "").row_groups(File, 0) == [0, 1, 2]


# Without a page, and in a shell


def test_without_a_page_nothing_is_drawn_or_written_and_the_verdicts_are_the_same(deployment, tmp_path, monkeypatch):
    log(flights(400, seed=4, delay=30))
    with_page = watching.drift(NAME, html_path=tmp_path / "drift.html")
    monkeypatch.setattr(drift_report, "_by_table", lambda *_: pytest.fail("a page was drawn"))
    monkeypatch.chdir(tmp_path)

    report = drift()

    assert report.columns.equals(with_page.columns)
    assert report.html_path is None
    assert not report.page
    assert [path.name for path in tmp_path.iterdir()] == ["drift.html"]


def test_a_shell_takes_the_same(deployment, tmp_path):
    log(flights(400, seed=4, delay=40, month=7), at=NOW)
    log(flights(400, seed=4), at=NOW - pd.Timedelta(days=10))
    said = io.StringIO()
    window = f"{NOW - pd.Timedelta(days=20):%Y-%m-%d}..{NOW - pd.Timedelta(days=1):%Y-%m-%d}"
    with redirect_stdout(said):
        code = main(["--json", "drift", NAME, "--since", f"{NOW - pd.Timedelta(hours=1):%Y-%m-%dT%H:%M}", "--against",
                     window, "--columns", "dep_delay", "--columns", "month", "--by", "carrier", "--no-page",
                     "--fail-on-drift"])  # fmt: skip
    told = json.loads(said.getvalue())
    assert code == 1
    assert told["against"] == window
    assert {column["column"] for column in told["columns"]} == {"dep_delay", "month"}
    assert f"`month`: all July; {window} had only January" in told["changes"]
    assert {group["value"] for group in told["groups"]} == {"AA", "DL", "UA"}
    assert Path(told["html_path"] or tmp_path) == tmp_path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_report_on_a_log_of_two_million_rows_holds_a_piece_of_it_at_a_time():
    benchmark = Path(__file__).parent.parent / "benchmarks" / "drift.py"
    done = subprocess.run(
        [sys.executable, str(benchmark), "--log", "2000000"], capture_output=True, text=True, check=True
    )

    rows, peak, before = re.search(
        r"all of it +(\S+) rows .* (\d+) MB at its peak \((\d+) before", done.stdout
    ).groups()
    assert rows == "2,000,000"
    assert int(peak) - int(before) < 400

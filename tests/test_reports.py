"""A report says what Evidently finds in a window of the log, shows nothing private, and refuses in one line."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as scores
from sklearn.linear_model import LinearRegression

import nbdeploy
from nbdeploy import evidently_report, model_store, prediction_log, report_frames, routing
from nbdeploy.__main__ import main
from nbdeploy.errors import NotFound, ReportError
from nbdeploy.prediction_log import Entry, LogWriter
from services import own_home

NAME = "flight-delay"
EVIL = "</script><script>alert(1)</script>"
CANARY = "Zq7Private"
ALIKE, JULY, UNLABELLED, NOTHING = (pd.Timestamp(f"2026-11-0{day}T12:00Z").timestamp() for day in (1, 2, 3, 4))
PRESETS = ("quality", "summary", "classification", "text", "drift")


def at(when):
    """The window of one of the days above."""
    day = pd.Timestamp(when, unit="s", tz="UTC")
    return {"since": day - pd.Timedelta("1h"), "until": day + pd.Timedelta("1h")}


def asked(name, model, rows, when, proba=True):
    signature = model_store.get(name, "v1").signature
    request = prediction_log.new_request_id()
    chances = model.predict_proba(rows).tolist() if proba else None
    with LogWriter(name, signature.columns, outputs=signature.outputs, keep_every=None) as log:
        assert log.write([Entry("v1", request, {}, model.predict(rows).tolist(), chances, frame=rows, time=when)])
    return [f"{request}-{row}" for row in range(len(rows))]


def more(X):
    """With columns that a report must not show, must not trip on, or must not let run."""
    rows = np.arange(len(X))
    return X.assign(
        **{EVIL: np.where(rows % 3, EVIL, "<img src=x onerror=alert(1)>")},
        passenger=[f"{CANARY} {row}" for row in rows],
        tail=[f"{CANARY}-{row % 50}" for row in rows],
        note=[f"flight {row} to {place} is on its way, they said" for row, place in zip(rows, X["dest"], strict=True)],
        booked=pd.Timestamp("2013-01-01") + pd.to_timedelta(rows % 400, "h"),
        gate=np.where(rows % 10, rows % 40, np.nan),
        remark=pd.Series([None] * len(X), dtype=object),
    )


@pytest.fixture(scope="module")
def _airline(sample_flights, _fitted):
    with own_home() as home:
        X, y = sample_flights(1)
        nbdeploy.save(_fitted, NAME, more(X), y, private={"passenger": "drop", "tail": "hash"}, progress=False)
        routing.go_live(NAME, "v1", "test")
        numbers = X[["dep_delay", "distance"]]
        line = LinearRegression().fit(numbers, X["hour"])
        nbdeploy.save(line, "hours", numbers, X["hour"], progress=False)
        july, late = sample_flights(7)
        asked(NAME, _fitted, more(X), ALIKE)
        ids = asked(NAME, _fitted, more(july), JULY)
        asked(NAME, _fitted, more(july), UNLABELLED)
        nbdeploy.label(NAME, dict(zip(ids[:1200], late.tolist(), strict=False)))
        ids = asked("hours", line, july[["dep_delay", "distance"]], JULY, proba=False)
        nbdeploy.label("hours", dict(zip(ids, july["hour"].tolist(), strict=True)))
        ids = asked("hours", line, numbers, ALIKE, proba=False)
        nbdeploy.label("hours", dict.fromkeys(ids[:5], "noon"))
        yield home


@pytest.fixture(scope="module")
def _fitted(sample_flights):
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    X, y = sample_flights(1)
    columns = make_column_transformer(
        (StandardScaler(), [*X.select_dtypes("number")]),
        (OneHotEncoder(handle_unknown="ignore"), ["carrier", "origin", "dest"]),
    )
    return make_pipeline(columns, LogisticRegression(max_iter=1000)).fit(more(X), y)


@pytest.fixture
def airline(_airline, monkeypatch, tmp_path):
    monkeypatch.setenv("NBDEPLOY_HOME", str(_airline))
    monkeypatch.setenv("BENTOML_HOME", str(_airline.parent / "bentoml"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def every_report(_airline, tmp_path_factory):
    """A report by each preset, with its workspace."""
    folder, told = tmp_path_factory.mktemp("reports"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NBDEPLOY_HOME", str(_airline))
        patch.setenv("BENTOML_HOME", str(_airline.parent / "bentoml"))
        patch.chdir(folder)
        for preset in PRESETS:
            told[preset] = nbdeploy.report(NAME, preset, workspace=folder / preset, **at(JULY)), folder / preset
    return told


def failed(report):
    return {(row.column, row.test) for row in report.tests.itertuples() if not row.passed}


# What is found


def test_quality_names_what_training_has_not_seen(airline, every_report):
    report = every_report["quality"][0]

    assert failed(report) == {("month", "outside the range of training"), ("dest", "unseen in training")}
    assert not report.passed
    assert "2 of" in report.summary
    assert report.tests.iloc[0].to_dict()["expected"] == "at most 1.00%"
    assert report.tests.iloc[0].to_dict()["found"] == "2,000 (100.00%)"


def test_quality_of_what_was_learned_passes(airline):
    report = nbdeploy.report(NAME, "quality", **at(ALIKE))

    assert report.passed
    assert len(report.tests) > 20
    assert (report.rows_current, report.rows_reference, report.sampled) == (2000, 2000, False)


def test_quality_finds_gaps_and_repeated_rows():
    learned = pd.DataFrame({"a": np.arange(200.0), "b": np.where(np.arange(200) % 4, 1.0 + np.arange(200), np.nan)})
    asked_now = pd.concat([learned.head(50).assign(a=np.nan)] * 4)

    sides = report_frames.prepare(asked_now, learned, max_rows=1000)
    tests = evidently_report.evaluate(sides, "quality").tests

    bad = tests[~tests["passed"].astype(bool)]
    assert {*zip(bad["column"], bad["test"], strict=True)} == {("a", "missing values"), ("", "repeated rows"), ("", "columns that are constant")}  # fmt: skip


def test_a_summary_says_what_each_column_holds(airline, every_report):
    report = every_report["summary"][0]
    facts = report.columns

    assert report.passed
    assert len(report.tests) == 0
    assert (facts.loc["month", "typical"], facts.loc["month", "typical_reference"]) == (7, 1)
    assert facts.loc["gate", "missing"] == pytest.approx(0.1)
    assert facts.loc["booked", ["kind", "low"]].tolist() == ["moment", "2013-01-01 00:00"]
    assert facts.loc["note", "kind"] == "text"
    assert facts.loc["origin", ["kind", "distinct"]].tolist() == ["category", 3]
    assert report.left_out == {"passenger": "private", "tail": "private", "remark": "no values"}
    assert "Left out: passenger, tail (private)" in repr(report)


def test_answers_are_judged_by_their_labels_beside_those_of_training(airline, every_report):
    report = every_report["classification"][0]
    log = nbdeploy.predictions(NAME, **at(JULY)).dropna(subset="label")
    measured = report.metrics.set_index("metric")
    version = model_store.get(NAME, "v1")

    assert report.rows_current == len(log) == 1200
    right = scores.accuracy_score(log["label"].astype(bool), log["prediction"].astype(bool))
    assert measured.loc["Accuracy", "value"] == pytest.approx(right)
    assert measured.loc["Accuracy", "reference"] == pytest.approx(
        (version.labels == version.expected["prediction"]).mean()
    )
    assert 0.5 < measured.loc["RocAuc", "value"] < 1


def test_numbers_are_judged_as_numbers(airline):
    report = nbdeploy.report("hours", "regression", version="v1", **at(JULY))
    log = nbdeploy.predictions("hours", **at(JULY))

    value = report.metrics.set_index("metric").loc["RMSE", "value"]
    assert value == pytest.approx(((log["label"].astype(float) - log["prediction"]) ** 2).mean() ** 0.5)


def test_texts_are_described(airline, every_report):
    measured = every_report["text"][0].metrics.set_index(["column", "metric"])["value"]

    assert measured["note: words", "MeanValue"] == pytest.approx(9)
    assert measured["note: length", "MinValue"] > 30


def test_drift_has_the_verdicts_of_the_verb(airline, every_report):
    tests = every_report["drift"][0].tests
    tests = tests[tests["test"].str.startswith("drift")]
    judged = nbdeploy.drift(NAME, **at(JULY)).columns["drifted"].dropna()

    verdicts = dict(zip(tests["column"], ~tests["passed"].astype(bool), strict=True))
    said = {str(name): bool(drifted) for name, drifted in judged.items()}
    assert verdicts == {name: said[name] for name in verdicts}
    assert set(said) - set(verdicts) == {"booked", "late"}  # dates, and labels
    assert verdicts["month"]


def test_any_metric_or_test_of_evidentlys_is_taken(airline):
    from evidently.metrics import MeanValue, UniqueValueCount, ValueDrift
    from evidently.tests import gte, lte

    mine = [
        MeanValue(column="dep_delay", tests=[lte(1), gte(-1000)]),
        ValueDrift(column="carrier"),
        UniqueValueCount(column=EVIL),
    ]
    report = nbdeploy.report(NAME, metrics=mine, **at(JULY))

    assert (report.preset, report.passed) == ("metrics", False)
    assert failed(report) == {("dep_delay", "MeanValue")}
    assert [*report.tests["passed"]] == [False, True, True]
    assert [*report.metrics["column"]] == ["dep_delay", "carrier", EVIL]


def test_a_metric_by_its_name_is_the_same_metric(airline):
    from evidently.metrics import InListValueCount, QuantileValue

    names = [
        "QuantileValue:column=distance,quantile=0.9",
        'InListValueCount:{"column": "carrier", "values": ["AA", "UA"]}',
    ]
    objects = [QuantileValue(column="distance", quantile=0.9), InListValueCount(column="carrier", values=["AA", "UA"])]

    by_name, by_object = (nbdeploy.report(NAME, metrics=each, **at(JULY)).metrics for each in (names, objects))

    pd.testing.assert_frame_equal(by_name, by_object)
    assert by_name.loc[0, "value"] == pytest.approx(nbdeploy.predictions(NAME, **at(JULY))["distance"].quantile(0.9))


def test_a_metric_about_the_answers_looks_at_the_labelled_rows(airline):
    report = nbdeploy.report(NAME, metrics=["F1Score"], **at(JULY))

    assert report.rows_current == 1200


def test_a_large_window_is_sampled_and_says_so(airline):
    report = nbdeploy.report(NAME, "summary", max_rows=500, **at(JULY))

    assert report.sampled
    assert "2,000 rows asked, 2,000 learned from, a sample of them looked at" in repr(report)
    assert report.metrics.set_index("metric").loc["RowCount", "value"] == 500


# Columns of every kind


def odd(rows, seed=0):
    chance = np.random.default_rng(seed)
    index = np.arange(rows)
    return pd.DataFrame({
        "Int64": pd.array([None if i % 7 == 0 else i % 50 for i in index], dtype="Int64"),
        "boolean": pd.array([None if i % 5 == 0 else i % 2 == 0 for i in index], dtype="boolean"),
        "string": pd.array([f"s{i % 9}" for i in index], dtype="string"),
        "category": pd.Categorical.from_codes(chance.integers(-1, 3, rows), ["a", "b", "c"]),
        "mixed": [i % 3 if i % 2 else f"{i % 4}" for i in index],
        "infinite": np.where(index % 10 == 0, np.inf, index * 1.0),
        "huge": np.full(rows, 1e308),
        "constant": 1.0,
        "one": [1.0] + [np.nan] * (rows - 1),
        "none": [None] * rows,
        "many": [f"c{i % 40}" for i in index],
        "zoned": pd.date_range("2026-01-01", periods=rows, freq="h", tz="Europe/Berlin"),
        "days": pd.date_range("2026-01-01", periods=rows).date,
        "lasting": pd.to_timedelta(index, "s"),
        "free": [f"words {i} and {chr(97 + i % 26) * 5} more words" for i in index],
        "lists": [[1, 2]] * rows,
        "target": index % 2,
        7: index * 1.5,
    })  # fmt: skip


@pytest.mark.parametrize("preset", ["quality", pytest.param("drift", marks=pytest.mark.slow)])
def test_every_kind_of_column_is_in_the_report_or_it_says_why_not(preset):
    sides = report_frames.prepare(odd(300, 1), odd(400), max_rows=5000, by_distribution=preset == "drift")
    if preset == "drift":  # of few texts it takes seconds each
        sides = sides.without(dict.fromkeys(sides.of("text"), "too long"))
    found = evidently_report.evaluate(sides, preset)

    assert set(found.sides.left_out) <= {"none", "lists", "one", "huge", "zoned", "days", "free"}
    assert {"none", "lists"} <= set(found.sides.left_out)
    assert "7" in found.sides.facts().index
    assert found.html


def test_new_categories_are_counted_however_many_there_are():
    learned = pd.DataFrame({"c": [f"old{i % 300}" for i in range(3000)]})
    now = pd.DataFrame({"c": [f"old{i % 300}" for i in range(900)] + [f"new{i % 80}" for i in range(100)]})

    tests = evidently_report.evaluate(report_frames.prepare(now, learned, max_rows=9000), "quality").tests

    assert tests.set_index("test").loc["unseen in training", "found"] == "100 (10.00%)"


def test_names_that_look_the_same_stay_two():
    other = "\u2039a\u203a"  # what "<a>" is shown as
    frame = pd.DataFrame({"<a>": [1.0, 2.0], other: [3.0, 4.0]})

    facts = report_frames.prepare(frame, None, max_rows=9).facts()

    assert facts["typical"].to_dict() == {"<a>": 1.5, other: 3.5}


def test_a_class_that_training_did_not_have_costs_the_reference_and_not_the_report():
    now = pd.DataFrame({"label": ["a", "b", "c"] * 20, "said": ["a", "c", "c"] * 20})
    learned = now[now["label"] != "c"].assign(said="a")
    task = report_frames.Task("classification", "label", "said", "", ("a", "b", "c"))

    sides = report_frames.prepare(now, learned, max_rows=999, kinds=task.kinds)
    found = evidently_report.evaluate(sides, "classification", (), task)

    assert found.sides.left_out == {"the training sample": "its classes are others"}
    assert found.metrics.set_index("metric").loc["Accuracy", "value"] == pytest.approx(2 / 3)


# Bad input


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (NAME, {"preset": "qualty"}, r"there is no report 'qualty'\. Did you mean 'quality'"),
        (NAME, {"preset": "regression"}, r"flight-delay:v1 is a classification model, which a regression report does not fit"),
        (NAME, {"metrics": ["RMSE"]}, "is a classification model, which a regression report does not fit"),
        (NAME, {"preset": "classification", **at(UNLABELLED)}, r"in this window is labelled.*nbdeploy\.label"),
        ("hours", {"preset": "text", "version": "v1"}, "no column of text for the text report"),
        ("hours", {"preset": "regression", "version": "v1", **at(ALIKE)}, "needs numbers, and hours has labels.*'noon'"),
        (NAME, at(NOTHING), r"flight-delay:v1 has answered no request since 2026"),
        (NAME, {"max_rows": 0}, "0 rows has nothing to look at"),
        (NAME, {"metrics": ["ValueDrft:column=carrier"]}, r"no metric 'ValueDrft'\. Did you mean 'ValueDrift'"),
        (NAME, {"metrics": ["ValueDrift:column=carier"]}, r"column 'carier', and there is none\. Did you mean 'carrier'"),
        (NAME, {"metrics": ["MeanValue:colum=hour"]}, "MeanValue does not take 'colum=hour'"),
        (NAME, {"metrics": ["MeanValue:hour"]}, "MeanValue does not take 'hour'.*NAME:key=value"),
        (NAME, {"metrics": ["MeanValue:column=carrier"]}, "cannot compute MeanValue of 'carrier'.*the kind category"),
        (NAME, {"metrics": ["MeanValue:column=passenger"]}, "'passenger', which is in no report: private"),
        (NAME, {"metrics": ["os.system:command=true"]}, "Evidently has no metric 'os.system'"),
        (NAME, {"metrics": [3]}, "int is no metric"),
        (NAME, {"metrics": ["RowCount"], "workspace": "a::b"}, "cannot be a workspace"),
        (NAME, {"notebook": True, "preset": "summary"}, "a notebook decides by itself what it reports: preset"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(airline, name, options, message):
    with pytest.raises(ReportError, match=message) as raised:
        nbdeploy.report(name, **options)
    assert "\n" not in str(raised.value)
    assert CANARY not in str(raised.value)


def test_an_unknown_deployment_and_version_are_named(airline):
    with pytest.raises(NotFound, match="flight-delay"):
        nbdeploy.report("flight-dely")
    with pytest.raises(NotFound, match="v9"):
        nbdeploy.report(NAME, version="v9")


def test_what_cannot_be_written_is_one_line(airline):
    (airline / "file").write_text("")

    with pytest.raises(ReportError, match="cannot be written"):
        nbdeploy.report(NAME, metrics=["RowCount"], html_path=airline / "file" / "page.html", **at(JULY))
    with pytest.raises(ReportError, match="cannot be written"):
        nbdeploy.report(NAME, metrics=["RowCount"], workspace=airline / "file", **at(JULY))


# What it shows, and to whom


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_private_is_in_nothing_that_a_report_makes(airline, every_report, preset):
    report, workspace = every_report[preset]
    hashes = {*nbdeploy.predictions(NAME, **at(JULY))["tail"].head(50)}

    shown = [repr(report), report._repr_html_(), json.dumps(report.to_dict(), allow_nan=False)]
    written = [report.html_path.read_text(), *(path.read_text() for path in workspace.rglob("*.json"))]
    assert len(written) == 3
    for text in [*shown, *written]:
        assert CANARY not in text
        assert not any(each in text for each in hashes)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_string_of_the_data_is_markup_anywhere(every_report, preset):
    report, workspace = every_report[preset]

    page = report.html_path.read_text()
    head = page[: page.index('<div id="root_')]
    assert head.count("<script>") == head.count("</script>")
    for text in [page, report._repr_html_(), *(path.read_text() for path in workspace.rglob("*.json"))]:
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "\\u003cimg src=x" not in text


@pytest.mark.browser
def test_every_page_draws_itself_in_a_browser(tmp_path, lab_browser):
    chance, errors = np.random.default_rng(0), []
    frame = odd(300)[["Int64", "category", "one", "zoned", "free", "string"]].assign(
        label=chance.choice(["yes", "no"], 300), said=chance.choice(["yes", "no"], 300),
        true=chance.normal(size=300), guess=chance.normal(size=300),
    )  # fmt: skip
    tasks = {
        "classification": report_frames.Task("classification", "label", "said", "", ("no", "yes")),
        "regression": report_frames.Task("regression", "true", "guess"),
    }
    now = frame.assign(said="yes", string="new")
    sides = report_frames.prepare(now, frame, max_rows=999)
    with lab_browser.new_page() as page:
        page.on("pageerror", lambda error: errors.append(str(error)))
        for preset in ("quality", "text", *tasks):
            path = tmp_path / f"{preset}.html"
            found = evidently_report.evaluate(sides, preset, (), tasks.get(preset))
            evidently_report.publish(found, path, title=preset, note=preset)
            page.goto(path.as_uri())
            page.wait_for_function("() => document.querySelector('[id^=root_]')?.innerText.length > 50")
            assert not found.sides.left_out
    assert errors == []


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_all_that_is_written_is_this_users_alone(airline, umask):
    before = os.umask(umask)
    try:
        nbdeploy.report(NAME, metrics=["RowCount"], workspace=airline / "workspace", **at(JULY))
    finally:
        os.umask(before)

    for path in [*(airline / "workspace").rglob("*"), *(airline / "nbdeploy-reports").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_what_a_notebook_keeps_is_small(airline, every_report):
    wide = pd.DataFrame({f"column {i}": np.arange(60.0) for i in range(400)})
    report = every_report["quality"][0]
    facts = report_frames.prepare(wide, wide, max_rows=99).facts()
    tests = pd.concat([report.tests] * 50)
    large = type(report)(**{**vars(report), "columns": facts, "tests": tests})

    assert len(report._repr_html_()) < 20_000
    assert len(large._repr_html_()) + len(repr(large)) < 60_000


def test_nothing_is_loaded_before_it_is_needed():
    code = "import nbdeploy.reports, sys; print({'evidently', 'anywidget', 'IPython', 'papermill'} & set(sys.modules))"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# In a shell, as a notebook, in Evidently's own UI


def test_the_exit_code_tells_of_a_failed_test_only_where_asked(airline, capsys):
    window = ["--since", "2026-11-02", "--until", "2026-11-02T23:00"]

    month = ["--metric", "ValueDrift:column=month"]
    assert main(["report", NAME, *month, *window]) == 0
    assert main(["report", NAME, *month, "--fail", *window]) == 1
    assert main(["report", NAME, *month, "--fail", "--since", "2026-11-01", "--until", "2026-11-02"]) == 0
    capsys.readouterr()
    assert main(["--json", "report", NAME, "--metric", "RowCount", *month, *window]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["preset"], told["passed"], told["metrics"][0]["value"]) == ("metrics", False, 2000)


def test_a_notebook_may_be_the_report_and_one_that_fails_is_kept(airline, capsys):
    import nbformat

    cells = [nbformat.v4.new_code_cell("name = ''\nsince = ''\ntop = 0", metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell("print(name, since, top * 2)\n1 / 0")]  # fmt: skip
    nbformat.write(nbformat.v4.new_notebook(cells=cells), airline / "mine.ipynb")

    assert main(["--json", "report", NAME, "--notebook", "mine.ipynb", "--since", "7d", "--param", "top=21"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert "ZeroDivisionError" in told["error"]
    assert f"{NAME} 7d 42" in Path(told["html"]).read_text()
    with pytest.raises(nbdeploy.NbdeployError, match="'workspace'"):  # it declares none
        nbdeploy.report(NAME, notebook="mine.ipynb", workspace=airline / "workspace")
    assert Path(told["notebook"]).parent.parent == airline / "nbdeploy-reports" / NAME


def test_evidentlys_ui_shows_the_history_of_a_deployment(airline):
    workspace = airline / "workspace"
    for options in ({"metrics": ["RowCount"]}, {"preset": "text"}):
        report = nbdeploy.report(NAME, **options, workspace=workspace, **at(JULY))
    assert f"evidently ui --workspace {workspace}" in repr(report)
    nbdeploy.report("hours", metrics=["ColumnCount"], version="v1", workspace=workspace, **at(JULY))

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [Path(sys.executable).parent / "evidently", "ui", "--workspace", workspace, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as client:
            projects = _answer(client, process)
            ids = {project["name"]: project["id"] for project in projects}
            told = client.get(f"/api/projects/{ids[NAME]}/snapshots")
        assert set(ids) == {NAME, "hours"}
        assert sorted(each["name"] for each in told.json()) == ["Metrics of flight-delay v1", "Text of flight-delay v1"]
        assert CANARY not in told.text
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def _answer(client, process):
    deadline = time.monotonic() + 60
    while True:
        try:
            return client.get("/api/projects").json()
        except httpx.TransportError:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.2)

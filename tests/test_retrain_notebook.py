"""The story of a retraining on real flights, and the report that can be mailed: what they claim is so."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import nbformat
import papermill
import pytest

import nbdeploy
from nbdeploy import gate_evidence, notebook_run, prediction_log, routing
from nbdeploy.prediction_log import Entry, LogWriter

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
# In the test's own home, and as patient as a machine that does other things too.
PARAMETERS = {"stage": "", "pace": 0.05, "slow_ms": 30_000.0}
PAYLOAD = "</script><script>parent.document.title='x'</script><img src=x onerror=alert(1)>"
LARGEST_OUTPUT, LARGEST_NOTEBOOK = 60_000, 600_000  # bytes


def of(cell, notebook):
    return next(each for each in notebook.cells if each.id == cell)


def said(cell, notebook):
    return "".join(str(output.get("data", output)) for output in of(cell, notebook).outputs)


@pytest.mark.timeout(300)
def test_the_story_of_a_retraining_keeps_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    for name in ("train.ipynb", "retrain.ipynb"):
        shutil.copy(NOTEBOOKS / name, name)

    papermill.execute_notebook("retrain.ipynb", "executed.ipynb", PARAMETERS, progress_bar=False, cwd=str(tmp_path))

    assert nbdeploy.history("air-time")["action"].tolist() == ["promote", "traffic", "gates", "served"]
    assert nbdeploy.traffic("air-time").weights == {"v2": 100}
    assert nbdeploy.status("air-time").loc["air-time", "state"] == "stopped"
    second, first = nbdeploy.versions("air-time")
    told = second.provenance["retrained"]
    assert told["of"] == "v1"
    assert second.provenance["rows"] == told["rows"] == 17_369
    assert "retrained" not in first.provenance
    assert [one.passed for one in gate_evidence.found("air-time", second.digest)] == [True]

    months = nbdeploy.predictions("air-time").assign(off=lambda log: (log["prediction"] - log["label"]).abs())
    off = months.groupby(["version", "month"])["off"].mean()
    assert off["v1", 1] < 9
    assert off["v1", 7] > 15
    assert off["v2", 8] < 9

    executed = nbformat.read("executed.ipynb", as_version=4)
    assert "all July; the model has seen only January" in said("drift", executed)
    assert "mean absolute error of v1 " in said("quality", executed)
    assert "its gate had measured 7.78, which is surely less" in said("quality", executed)
    assert "passed its gate on 4,342 newer rows; it is a candidate without traffic" in said("retrain", executed)
    assert "v2 is " in said("canary-compare", executed)
    assert "nearer to the truth on average than v1" in said("canary-compare", executed)
    after = said("after", executed)
    assert "<svg" in after
    assert len(after) < LARGEST_OUTPUT
    kept = list((tmp_path / "nbdeploy-reports" / "air-time").glob("*-train/train.*"))
    assert {path.suffix for path in kept} == {".ipynb", ".html"}
    assert max(len(json.dumps(cell.get("outputs", []))) for cell in executed.cells) < LARGEST_OUTPUT
    assert Path("executed.ipynb").stat().st_size < LARGEST_NOTEBOOK

    # The report that comes with nbdeploy, on the same log.
    report = nbdeploy.report(
        "air-time", notebook=True, since="1h", parameters={"by": "origin"}, workspace=tmp_path / "workspace"
    )
    assert report.passed, report
    assert len(list((tmp_path / "workspace").glob("*/snapshots/*.json"))) == 2  # of the drift and of the data
    page = report.html.read_text()
    shown = page[page.index("<main>") :]
    assert "nbdeploy.drift(" not in shown
    assert "all August; the model has seen only July" in shown
    assert "widget-state" not in page
    assert "month: outside the range of training" in shown
    assert "By origin" in shown
    assert "mean absolute error of v2" in shown
    assert "What has changed?" in shown
    assert report.html.stat().st_size < LARGEST_NOTEBOOK


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_report_on_nothing_says_so_and_one_on_hostile_values_shows_them_as_text(
    tmp_path, monkeypatch, flights, flight_model
):
    monkeypatch.chdir(tmp_path)
    X, y = flights
    columns = nbdeploy.save(flight_model, "flight-delay", X, y, progress=False).signature
    routing.go_live("flight-delay", "v1", "test")
    report = notebook_run.report_notebook("flight-delay", progress=False)
    assert report.passed, report
    assert "has answered no request" in report.html.read_text()

    asked = X.head(300).assign(carrier=PAYLOAD)
    with LogWriter("flight-delay", columns.columns, outputs=columns.outputs, keep_every=None) as log:
        cells = {column: asked[column].tolist() for column in asked}
        assert log.write([Entry("v1", prediction_log.new_request_id(), cells, [True] * len(asked), time=time.time())])
    report = notebook_run.report_notebook("flight-delay", parameters={"by": "carrier"}, progress=False)
    assert report.passed, report
    page = report.html.read_text()
    assert "onerror" in page
    assert PAYLOAD not in page
    assert "<img src=x" not in page

"""The story of the quickstart, by Papermill and as a user sees it in JupyterLab."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import nbformat
import papermill
import psutil
import pytest

import nbdeploy
from nbdeploy import processes

QUICKSTART = Path(__file__).parent.parent / "notebooks" / "quickstart.ipynb"
MAX_NOTEBOOK_BYTES = 60_000  # of a drift report
PAYLOAD = "</script><script>parent.document.title='x'</script>"


@pytest.mark.timeout(240)
def test_the_quickstart_runs_from_training_to_drift(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")

    papermill.execute_notebook(str(QUICKSTART), "executed.ipynb", progress_bar=False, cwd=str(tmp_path))

    status = nbdeploy.status("flight-delay").loc["flight-delay"]
    assert (status["state"], status["version"], status["predictions"]) == ("live", "v1", 28_293 + 5)
    report = nbdeploy.drift("flight-delay", html_path=tmp_path / "again.html")
    assert {"month", "dep_delay"} <= set(report.columns.index[report.columns["drifted"].eq(True)])
    evidence = (tmp_path / "nbdeploy-reports").rglob("drift-*.html")
    assert list(evidence)
    gates = list((Path(nbdeploy.home.home()) / "gates").rglob("*.json"))
    assert json.loads(gates[0].read_text())["passed"]
    executed = nbformat.read("executed.ipynb", as_version=4)
    for cell in executed.cells:
        if cell.source.startswith("%deploy drift"):
            assert len(json.dumps(cell.outputs)) < MAX_NOTEBOOK_BYTES


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_the_quickstart_in_jupyterlab_goes_live_and_outlives_its_kernel(lab):
    name = lab.copy(QUICKSTART)
    lab.open(name)
    lab.run_all(timeout=240)

    cells = nbformat.read(QUICKSTART, as_version=4).cells
    at = {cell.source.split()[1]: number for number, cell in enumerate(cells) if cell.source.startswith("%deploy ")}
    panel, drift = lab.output(at["model"]), lab.output(at["drift"])

    # A live panel, and a URL that answers from outside the notebook.
    panel.get_by_role("button", name="Validate").wait_for()
    service = nbdeploy.status("flight-delay").loc["flight-delay"]
    row = httpx.get(f"{service['url']}/signature").json()["example"]
    assert httpx.post(f"{service['url']}/predict", json=row).json()["version"] == "v1"

    # Evidently's own report, drawn inside its frame.
    drift.scroll_into_view_if_needed()
    frame = drift.frame_locator("iframe").first
    frame.get_by_text("Drift is detected for").first.wait_for(timeout=60_000)
    sandbox = drift.locator("iframe").first.get_attribute("sandbox")
    assert sandbox == "allow-scripts"
    assert len(json.dumps(lab.outputs(at["drift"]))) < MAX_NOTEBOOK_BYTES
    lab.shot("quickstart-drift")

    # The kernel goes, the service stays, and another notebook finds it and ends it.
    lab.restart_kernel()
    assert httpx.post(f"{service['url']}/predict", json=row).status_code == 200
    other = lab.write("other.ipynb", "%load_ext nbdeploy", "%deploy status", "%deploy stop flight-delay")
    lab.open(other)
    family = processes.family(int(service["pid"]), psutil.Process(int(service["pid"])).environ()[processes.IDENTITY])
    assert len(family) >= 2
    lab.run_all()
    assert "flight-delay" in lab.output(1).inner_text()
    assert "live" in lab.output(1).inner_text()
    assert not [process for process in family if process.is_running()]


@pytest.mark.browser
@pytest.mark.timeout(240)
def test_a_category_that_carries_a_script_changes_nothing_in_the_page(lab, flight_model, flights):
    features, late = flights
    service = nbdeploy.deploy(flight_model, "flight-delay", features, late)
    ask = features.assign(carrier=PAYLOAD).head(200)
    nbdeploy.predict("flight-delay", ask)
    name = lab.write("drift.ipynb", "%load_ext nbdeploy", "%deploy drift flight-delay", "%deploy panel flight-delay",
                     "%deploy predictions flight-delay")  # fmt: skip
    lab.open(name)
    title = lab.page.title()

    lab.run_all()
    frame = lab.output(1).frame_locator("iframe").first
    frame.get_by_text("Drift is detected for").first.wait_for(timeout=60_000)

    assert lab.page.title() == title
    assert lab.page.evaluate("document.title") != "x"
    assert frame.locator("body").evaluate("document.title") != "x"
    (saved,) = list(lab.folder.rglob("*.html"))
    assert PAYLOAD not in saved.read_text()
    with lab.page.context.expect_page() as opened:
        lab.page.evaluate(
            "html => { const w = window.open('about:blank'); w.document.write(html); }", saved.read_text()
        )
    opened.value.wait_for_timeout(1500)
    assert lab.page.evaluate("document.title") != "x"
    nbdeploy.stop(service.name)

"""The story of releases, by Papermill and in JupyterLab: what it claims is so, and its client ends with it."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import nbformat
import papermill
import psutil
import pytest

import nbdeploy
from kernels import kernel
from nbdeploy import gate_evidence

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "release_strategies.ipynb"
# In the test's own home, and as patient as a machine that does other things too.
PARAMETERS = {"stage": "", "desks": 30, "pause": 2.0, "look": 3.0, "slow_ms": 30_000.0}
LARGEST_OUTPUT, LARGEST_NOTEBOOK = 60_000, 1_500_000  # bytes
STORY = ["promote", "rollback", "guard", "traffic", "promote", "traffic", "guard", "gates", "traffic", "served"]


def of(cell, notebook):
    return next(each for each in notebook.cells if each.id == cell)


def source(cell):
    return of(cell, nbformat.read(NOTEBOOK, as_version=4)).source


def airlines():
    """Those of this test: others may play the story at the same time."""
    here = os.environ["NBDEPLOY_HOME"]
    found = psutil.process_iter(["cmdline", "environ"])
    mine = [each for each in found if (each.info["environ"] or {}).get("NBDEPLOY_HOME") == here]
    return [each for each in mine if "airline.py" in (each.info["cmdline"] or [])]


@pytest.mark.timeout(400)
def test_the_story_of_releases_keeps_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")

    papermill.execute_notebook(
        str(NOTEBOOK), "executed.ipynb", PARAMETERS, progress_bar=False, cwd=str(tmp_path), log_output=False
    )

    history = nbdeploy.history("flight-delay")
    assert history["action"].tolist() == STORY
    guarded = history.loc[2]
    assert re.search(r"^v4 was taken out of traffic: \d+ of \d+ requests were refused or failed", guarded["why"])
    for evidence in history.loc[history["action"] == "promote", "evidence"]:
        assert all(Path(path).is_file() for path in evidence.split(", "))
    assert nbdeploy.traffic("flight-delay").weights == {"v2": 100}
    digests = {version.version: version.digest for version in nbdeploy.versions("flight-delay")}
    assert [each.passed for each in gate_evidence.found("flight-delay", digests["v3"])] == [False]
    assert not gate_evidence.found("flight-delay", digests["v4"])
    assert nbdeploy.status("flight-delay").loc["flight-delay", "state"] == "stopped"

    executed = nbformat.read("executed.ipynb", as_version=4)
    said = "".join(output.get("text", "") for output in of("proof", executed).outputs)
    counts = re.search(r"([\d,]+) requests were answered, (\d+) refused, 0 failed", said)
    assert int(counts[1].replace(",", "")) > 200
    assert 0 < int(counts[2]) < 100
    assert "and 0 others" in said
    assert "v2 is right" in json.dumps(of("compare", executed).outputs)
    assert not airlines()
    assert Path("executed.ipynb").stat().st_size < LARGEST_NOTEBOOK
    assert max(len(json.dumps(cell.get("outputs", []))) for cell in executed.cells) < LARGEST_OUTPUT


@pytest.mark.timeout(120)
def test_the_airline_is_not_interrupted_and_ends_with_its_kernel(tmp_path):
    with kernel(tmp_path) as started:
        started.run("desks, pause = 2, 0.5")
        started.run(source("airline-program"))
        started.run(source("airline"))
        (airline,) = airlines()

        os.kill(started.pid, signal.SIGINT)
        time.sleep(1)
        assert airline.is_running()

        os.kill(started.pid, signal.SIGKILL)
        airline.wait(20)
        assert not airlines()


@pytest.mark.browser
@pytest.mark.timeout(400)
def test_the_story_of_releases_in_jupyterlab(lab):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    of("parameters", notebook).source = "\n".join(f"{name} = {value!r}" for name, value in PARAMETERS.items())
    nbformat.write(notebook, lab.folder / NOTEBOOK.name)
    lab.open(NOTEBOOK.name)
    lab.run_all(timeout=340)

    at = {cell.id: number for number, cell in enumerate(notebook.cells)}
    assert "v2 passed its gate" in lab.output(at["gate"]).inner_text()
    assert "v3 failed its gate" in lab.output(at["third-gate"]).inner_text()
    assert "v4 was taken out of traffic" in lab.output(at["fourth-guard"]).inner_text()
    assert lab.output(at["compare"]).locator("svg[role=img]").is_visible()
    everything = os.environ.get("LAB_SHOTS")
    for width in (1280, 900):
        lab.set_viewport(width, 900)
        for theme in ("light", "dark") if everything else ("light",):
            lab.set_theme(theme)
            for cell, number in at.items():
                if lab.output(number).count() and everything:
                    lab.shot(f"{number:02}-{cell}-{theme}-{width}", lab.cell(number))
    assert lab.page_errors == []

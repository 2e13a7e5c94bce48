"""Nothing that others sent runs as script or becomes markup: thirty strings, in every place, in every view, in a browser."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import nbdeploy
from gates import write_gate
from hostile import DETECT, NOTHING, Echo, canary, payloads, words
from nbdeploy import drift_report, evidently_report, report_frames, routing

pytestmark = pytest.mark.browser

NAME = "hostile"
# What a cell shows, and how many of the strings it shows at least, in words: tables show their first rows.
VIEWS = {
    "status": (f"nbdeploy.status('{NAME}')", 0),
    "signature": (f"nbdeploy.versions('{NAME}')[0].signature", 30),
    "predictions": (f"nbdeploy.predictions('{NAME}').iloc[:60, :6]", 20),
    "logs": (f"print(nbdeploy.logs('{NAME}', 300))", 30),
    "logs by the magic": (f"%deploy logs {NAME}", 30),
    "history": (f"nbdeploy.history('{NAME}').head(60)", 10),
    "traffic": (f"nbdeploy.traffic('{NAME}')", 0),
    "gate": (f"nbdeploy.validate('{NAME}', 'v1', notebook='gate.ipynb', progress=False)", 30),
    "compare": (f"nbdeploy.compare('{NAME}', 'v2')", 0),
    "card": (f"nbdeploy.card('{NAME}')", 30),
    "drift": (f"nbdeploy.drift('{NAME}')", 25),
    "data quality": (f"nbdeploy.report('{NAME}')", 25),
    "classification": (f"nbdeploy.report('{NAME}', 'classification')", 1),
    "quality": (f"nbdeploy.quality('{NAME}')", 0),
    "alerts": (f"nbdeploy.alerts('{NAME}')", 0),
    "watch": (f"nbdeploy.watch('{NAME}', progress=False)", 0),
    "panel": (f"nbdeploy.panel('{NAME}')", 30),
}
# Those that take long, for the whole count.
MORE = {
    "drift by a column": (f"nbdeploy.drift('{NAME}', by=PAYLOADS[3], columns=['x', PAYLOADS[4]])", 10),
    "drift by Evidently": (f"nbdeploy.report('{NAME}', 'drift')", 25),
    "a notebook's page": (f"nbdeploy.report('{NAME}', notebook='raises.ipynb')", 1),
}
SMALL = ("drift", "data quality", "classification", "drift by Evidently", "compare", "quality", "watch")

SETUP = """
import json
import nbdeploy
import pandas as pd
%load_ext nbdeploy
PAYLOADS = json.load(open('payloads.json'))
"""

ERRORS = f"""
for each in PAYLOADS:
    try:
        nbdeploy.predict('{NAME}', nbdeploy.versions('{NAME}')[0].reference.head(1).assign(x=each))
    except nbdeploy.NbdeployError:
        get_ipython().showtraceback()
"""

RETRAIN = f"""
try:
    nbdeploy.retrain('{NAME}', 'raises.ipynb', progress=False)
except nbdeploy.NbdeployError:
    get_ipython().showtraceback()
"""
UNSAFE = """
import html
from IPython.display import HTML, display
display(HTML(f'<iframe sandbox="allow-scripts" srcdoc="{html.escape(PAYLOADS[2])}"></iframe>'))
for each in PAYLOADS:
    display(HTML(each))
"""


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture
def server():
    with canary() as found:
        yield found


def rows(strings, count, first=0):
    """A column called by each string, with all of them as values; and a number."""
    place = np.arange(count) + first
    columns = {name: [strings[(i // 2 + j) % len(strings)] for i in place] for j, name in enumerate(strings)}
    return pd.DataFrame({"x": place.astype(float), **columns})


def deployed(strings):
    """A service of two versions that was asked and labelled, with a history."""
    X = rows(strings, 120)
    y = pd.Series([strings[i % 30] for i in range(120)], name=strings[2])
    for _ in range(2):
        nbdeploy.save(Echo(strings), NAME, X, y, metrics={strings[0]: strings[1]}, progress=False)
    routing.go_live(NAME, "v1", strings[0])
    routing.change(NAME, lambda old: old.split(v1=50, v2=50), action="traffic", why=strings[1])
    for string in strings:
        routing.change(NAME, lambda old: replace(old, pin=not old.pin), action="traffic", why=string)
    nbdeploy.serve(NAME, progress=False)
    # Some values are new, and each answer is one of the strings.
    asked = rows([*strings[5:], *strings[:5]], 240, first=37).set_axis(X.columns, axis=1)
    told = []
    while {version for answers in told for version in answers["version"]} != {"v1", "v2"}:  # a request has one answerer
        told.append(nbdeploy.predict(NAME, asked))
        assert len(told) < 40
    answers = pd.concat(told, ignore_index=True)
    truth = pd.Series([strings[i % 30] for i in range(len(answers))], index=answers["prediction_id"])
    nbdeploy.label(NAME, truth)
    nbdeploy.alert(NAME, "drift.share > 0.01")


def everywhere(page):
    """What was seen in each frame: of JupyterLab's own page in the outputs, of any other in all of it."""
    return [frame.evaluate(DETECT, ".jp-OutputArea" if frame is page.main_frame else "") for frame in page.frames]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("views", [VIEWS, pytest.param(VIEWS | MORE, marks=pytest.mark.slow)], ids=["most", "all"])
def test_no_string_of_others_runs_in_any_view_in_jupyterlab(lab, server, views):
    host, asked = server
    strings = payloads(host)
    assert len(strings) == 30
    deployed(strings)
    (lab.folder / "payloads.json").write_text(json.dumps(strings))
    write_gate(lab.folder / "gate.ipynb", *gate_cells())
    write_gate(
        lab.folder / "raises.ipynb",
        ("data = ''", "parameters"),
        *gate_cells(),
        "raise RuntimeError(' '.join(PAYLOADS))",
    )
    lab.open(lab.write("views.ipynb", SETUP, *(source for source, _ in views.values())))
    title = lab.page.title()

    lab.run_all(timeout=240)
    for place, name in enumerate(views, 1):
        text = json.dumps(lab.outputs(place), ensure_ascii=False)
        if name in SMALL:
            assert len(text) < 60_000, name
    lab.wait_for(lab.output(1 + [*views].index("panel")).locator(".nbdeploy-panel").first)
    frames = reports_in(lab)
    if views is not VIEWS:
        lab.insert_and_run(RETRAIN)
        assert words(lab.output(-1).inner_text())
    lab.insert_and_run(ERRORS)

    shown = {name: lab.output(place).inner_text() for place, name in enumerate(views, 1)}
    few = {name: len(words(shown[name])) for name, (_, least) in views.items() if len(words(shown[name])) < least}
    assert not few
    assert all(words(frame.locator("body").inner_text()) for frame in frames)
    assert len(words(lab.output(-1).inner_text())) == 30
    assert everywhere(lab.page) == [NOTHING] * len(lab.page.frames)
    assert (lab.page.title(), asked) == (title, [])

    # And it would have been seen.
    lab.insert_and_run(UNSAFE)
    lab.page.wait_for_function("() => window.__pwned")
    lab.page.wait_for_timeout(300)
    seen, *inside = everywhere(lab.page)
    assert any(each["ran"] and each["marked"] for each in inside)
    assert seen["ran"] == 1
    assert seen["marked"] > 15
    assert seen["handlers"]
    assert {"/img", "/style", "/link"} & {*asked}


def gate_cells():
    return (
        "import json\nPAYLOADS = json.load(open('payloads.json'))",
        "import nbdeploy\nfor each in PAYLOADS:\n    nbdeploy.check(each, 1, at_least=0, detail=each)\n    print(each)",
    )


def reports_in(lab):
    """The frames of Evidently's pages, once each has drawn its report."""
    lab.page.wait_for_function(
        "() => document.querySelectorAll('.jp-OutputArea iframe').length >= 3"
        " && !document.body.innerText.includes('Loading the full report')",
        timeout=90_000,
    )
    frames = [frame for frame in lab.page.frames if frame is not lab.page.main_frame]
    for frame in frames:
        frame.locator(".nbdeploy-note").wait_for(timeout=60_000)
        frame.wait_for_function("() => document.querySelector('[id^=root_]')?.innerText.length > 50", timeout=60_000)
    return frames


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_string_runs_in_a_page_that_it_has_for_itself(lab_browser, server, tmp_path):
    """One of them might have spoilt what another would have done."""
    host, asked = server
    for place, string in enumerate(payloads(host)):
        learned = pd.DataFrame(
            {string: np.arange(200.0), "c": [string, "b"] * 100, "new": "a", "t": texts(string, "word")}
        )
        now = learned.assign(new=string, t=texts(string, "other"))
        drift = drift_report.measure(
            learned, now, name=string, version=string, since=string, html_path=tmp_path / f"drift-{place}.html"
        )
        found = evidently_report.evaluate(report_frames.prepare(now, learned, max_rows=999), "quality")
        report = tmp_path / f"report-{place}.html"
        evidently_report.publish(found, report, title=string, note=string)
        with lab_browser.new_page() as page:
            for path in (drift.html_path, report):
                page.goto(path.as_uri())
                page.wait_for_function("() => document.querySelector('[id^=root_]')?.innerText.length > 50")
                assert words(page.locator("body").inner_text()) == {place}
                assert page.evaluate(DETECT, "") == NOTHING, (string, path)
            page.set_content(f"<!doctype html><title>t</title>{drift._repr_html_()}")
            assert page.evaluate(DETECT, "body") == NOTHING, string
    assert asked == []


def texts(string, word):
    return [f"{string} {word}{i} and {word}" for i in range(200)]

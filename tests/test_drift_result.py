"""What a drift report writes and shows: small, whole, private, and never run by what is in the data."""

from __future__ import annotations

import base64
import datetime as dt
import gzip
import json
import stat
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from nbdeploy import drift_report, report_view
from nbdeploy.drift_report import measure
from test_drift_report import mixed, told
from test_report_view import HARNESS

PAYLOADS = [
    "</script><script>parent.document.title='gone';window.gone=1</script>",
    "<img src=x onerror=\"window.gone=1;document.title='gone'\">",
    "<svg onload=window.gone=1>",
    "javascript:window.gone=1",
    '<a href="javascript:window.gone=1">x</a>',
    "${window.gone=1}`;window.gone=1;`",
    "\u2028window.gone=1//\u2029",
    '"};window.gone=1;var x={"',
    "<!--<script>window.gone=1",
    "&lt;img src=x onerror=window.gone=1&gt;",
    "<iframe srcdoc='<script>parent.gone=1</script>'>",
    "<style>@import 'http://evil.invalid/x.css'</style>",
    "\\u003c/script>\\x3cscript>window.gone=1",
]


# What is written and shown


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "reports" / "drift.html"
    return told(mixed(1500, seed=0), mixed(1500, seed=1, shift=0.5), since="24h", html_path=path)


def test_the_page_is_private_whole_and_alone_in_its_folder(report):
    assert stat.S_IMODE(report.html_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(report.html_path.parent.stat().st_mode) == 0o700
    assert list(report.html_path.parent.iterdir()) == [report.html_path]
    assert "drawDashboard" in report.html_path.read_text()


def test_the_dictionary_is_json_with_every_column(report):
    made = json.loads(json.dumps(report.to_dict(), allow_nan=False))

    assert made["html_path"] == str(report.html_path)
    assert [column["column"] for column in made["columns"]] == list(report.columns.index)
    assert {type(column["drifted"]) for column in made["columns"]} == {bool}
    assert dt.datetime.fromisoformat(made["created"]).tzinfo


def test_the_text_names_every_column_and_the_page(report):
    text = repr(report)

    assert "flights v1 since 24h" in text
    assert all(column in text for column in report.columns.index)
    assert str(report.html_path) in text


def test_a_notebook_holds_less_than_60_kb_of_a_wide_report_in_groups(monkeypatch):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({f"{'long ' * 20}{i}": np.arange(400.0) for i in range(100)})
    frame["group"] = [f"{'a long name ' * 9}{i}" for i in rng.integers(0, 14, 400)]
    words = [f"{'a long word ' * 8}{i}" for i in rng.integers(0, 9, 400)]
    wide = told(
        frame.assign(words="a"),
        (frame.drop(columns="group") + 200).assign(group=frame["group"], words=words),
        by="group",
    )
    displayed, shell = [], SimpleNamespace(kernel=object())
    monkeypatch.setattr("IPython.display.display", lambda shown, **_: displayed.append(shown))
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)

    wide._ipython_display_()

    static, widget = displayed
    saved = json.dumps([static, widget._repr_mimebundle_()[0], widget.get_state()], default=str)
    assert len(saved.encode()) < 60_000
    assert "and 72 more in .columns" in static["text/plain"]
    assert "and 95 more in .changes" in static["text/plain"]
    assert len(wide.groups) == 12
    assert "drawDashboard" not in saved


def test_a_report_without_a_verdict_is_json_too():
    report = told(mixed(40, seed=0), mixed(12, seed=1), page=False)

    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["drifted"] is False


# P7: no data ever runs as script or markup


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A report with every payload as column name, category value (on either side), free text, name and version."""
    rows = len(PAYLOADS) * 20
    values = [PAYLOADS[i % len(PAYLOADS)] for i in range(rows)]
    reference = pd.DataFrame({payload: np.arange(rows) % 50 + 0.5 for payload in PAYLOADS})
    reference["value"], reference["new"] = values, "a"
    reference["text"] = [f"{value} word{i}" for i, value in enumerate(values)]
    current = reference.assign(new=values, text=[f"{value} other{i}" for i, value in enumerate(values)])
    path = tmp_path_factory.mktemp("hostile") / "drift.html"
    return measure(
        reference, current, name=PAYLOADS[0], version=PAYLOADS[1], since=PAYLOADS[2], html_path=path, by="value",
        against=PAYLOADS[3],
    )  # fmt: skip


def test_different_values_stay_different_and_the_verdict_is_that_of_harmless_ones():
    hostile = [*PAYLOADS, *(payload.replace("<", "\u2039") for payload in PAYLOADS), "x" * 500, "x" * 499 + "y"]
    distinct = list(dict.fromkeys(hostile))
    reference, current = [f"{i % len(distinct)}k" for i in range(1500)], [f"{i % 9}k" for i in range(1500)]

    def scores(values):
        frames = [pd.DataFrame({"c": [values[int(code[:-1])] for code in side]}) for side in (reference, current)]
        return told(*frames).columns["score"].item()

    assert scores(distinct) == pytest.approx(scores([f"v{i}" for i in range(len(distinct))]))


def test_a_value_that_ends_a_script_could_not_though_it_were_not_inert():
    page = '<script>\nvar x = {"a": "</script><script>1"};\n</script></head><body><div id="root_x"></div>'

    assert drift_report.defused(page).count("</script>") == 1


def test_no_markup_of_the_data_is_in_the_notebook_or_the_page(hostile):
    for text in (hostile._repr_html_(), hostile.html_path.read_text()):
        for payload in PAYLOADS:
            if "<" in payload:
                assert payload not in text
    assert len(hostile.groups) == 12
    assert hostile.changes


def watched(page):
    """What a page must not do, gathered while it is looked at."""
    seen = []
    page.on("dialog", lambda dialog: (seen.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: seen.append(request.url) if request.url.startswith("http") else None)
    page.on("popup", lambda popup: seen.append(popup.url))
    return seen


def opened(frame):
    """Open the details of some rows, so that their plots and texts are drawn as well."""
    frame.locator("tbody tr").first.wait_for()
    for button in frame.locator("tbody tr button").all()[:4]:
        button.click()
    frame.locator(".js-plotly-plot").first.wait_for()


@pytest.fixture
def chromium_page(lab_browser):
    with lab_browser.new_page(viewport={"width": 1280, "height": 900}) as page:
        yield page


@pytest.mark.browser
def test_nothing_runs_in_the_saved_page(chromium_page, hostile):
    seen, errors = watched(chromium_page), []
    chromium_page.on("pageerror", lambda error: errors.append(str(error)))

    chromium_page.goto(hostile.html_path.as_uri())
    opened(chromium_page)

    assert [frame.evaluate("() => window.gone") for frame in chromium_page.frames] == [None]
    assert chromium_page.title().startswith("Drift of </script>")
    assert (seen, errors) == ([], [])
    assert "\u2039img src=x onerror" in chromium_page.locator("body").inner_text()  # legible all the same


@pytest.mark.browser
def test_nothing_runs_in_the_notebook_or_its_iframe(chromium_page, hostile):
    seen = watched(chromium_page)
    widget = report_view.view(hostile.page, hostile.bundle, title="t")
    parts = {"page": hostile.page, "bundle": hostile.bundle.packed()}
    encoded = {name: base64.b64encode(value).decode() for name, value in parts.items()}

    chromium_page.set_content(f"<!doctype html><title>notebook</title>{hostile._repr_html_()}<main></main>")
    chromium_page.evaluate(HARNESS, [widget._esm, "t", encoded])
    opened(chromium_page.frame_locator("iframe"))

    assert [frame.evaluate("() => window.gone") for frame in chromium_page.frames] == [None, None]
    assert chromium_page.title() == "notebook"
    assert seen == []
    assert len(gzip.decompress(hostile.page)) < 2_000_000


CELL = """
import numpy as np, pandas as pd
from pathlib import Path
from nbdeploy.drift_report import measure
rng = np.random.default_rng(0)
evil = "</script><script>parent.document.title='gone'</script>"
def frame(shift):
    return pd.DataFrame({"dep_delay": rng.normal(shift, 1, 1500), "distance": rng.lognormal(6, 1, 1500),
        "carrier": rng.choice(["AA", "B6", evil], 1500), "dest": rng.choice(["ATL", "BOS", "LAX"], 1500),
        "month": rng.integers(1, 3, 1500) + int(shift) * 6, "when": pd.Timestamp("2026-01-01")})
measure(frame(0), frame(1), name="flight-delay", version="v1", since="24h", html_path=Path("reports/drift.html"))
"""


@pytest.mark.browser
def test_in_jupyterlab_the_report_is_live_small_in_the_file_and_whole_when_the_kernel_is_gone(lab):
    name = lab.write("drift.ipynb", CELL)
    lab.open(name).run_all()
    output = lab.output(0)
    frame = output.frame_locator("iframe")

    frame.get_by_text("Data Drift Summary").wait_for()
    lab.page.wait_for_function("() => parseInt(document.querySelector('.jp-OutputArea iframe').style.height) > 500")
    for theme in ("light", "dark"):
        lab.set_theme(theme)
        for width in (1280, 900):
            lab.set_viewport(width, 1100)
            lab.page.wait_for_timeout(300)
            lab.shot(f"drift-{theme}-{width}")
            assert frame.locator("html").evaluate("(page) => page.scrollWidth <= page.clientWidth")
            table = output.locator(".nbdeploy-static table").bounding_box()
            assert table["x"] + table["width"] <= width
    assert "gone" not in lab.page.title()
    assert output.get_by_role("link", name="drift.html").get_attribute("href")

    lab.save()
    assert (lab.folder / name).stat().st_size < 60_000
    lab.shutdown_kernel()
    lab.page.reload()
    lab.page.wait_for_selector(".nbdeploy-static table")
    lab.wait_ready()
    lab.page.get_by_text("Loading widget").wait_for(state="hidden")
    assert lab.page.get_by_text("Error displaying widget").filter(visible=True).count() == 0
    lab.shot("drift-no-kernel")

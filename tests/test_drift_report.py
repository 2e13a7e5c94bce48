"""Drift: the verdicts are Evidently's, the page is inert, and what cannot be judged is said."""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import gc
import gzip
import json
import logging
import stat
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from nbdeploy import drift_report, report_view
from nbdeploy.drift_report import measure
from nbdeploy.errors import DriftError
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
    assert set(report.columns["method"]) == {"too few rows: 12 of the 30 it takes"}
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
        ([dt.datetime(2026, 1, 1)] * 60, "dates"),  # noqa: DTZ001
        (list(pd.date_range("2026-01-01", periods=60)), "dates"),
        (list(pd.timedelta_range("1h", periods=60)), "dates"),
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


def test_a_notebook_holds_less_than_60_kb_of_a_wide_report(monkeypatch):
    frame = pd.DataFrame({f"{'long ' * 20}{i}": np.arange(60.0) for i in range(100)})
    wide = told(frame, frame + 5)
    displayed, shell = [], SimpleNamespace(kernel=object())
    monkeypatch.setattr("IPython.display.display", lambda shown, **_: displayed.append(shown))
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)

    wide._ipython_display_()

    static, widget = displayed
    saved = json.dumps([static, widget._repr_mimebundle_()[0], widget.get_state()], default=str)
    assert len(saved.encode()) < 60_000
    assert "and 70 more in .columns" in static["text/plain"]
    assert "drawDashboard" not in saved


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
    return measure(reference, current, name=PAYLOADS[0], version=PAYLOADS[1], since=PAYLOADS[2], html_path=path)


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

    assert drift_report._defused(page).count("</script>") == 1


def test_no_markup_of_the_data_is_in_the_notebook_or_the_page(hostile):
    for text in (hostile._repr_html_(), hostile.html_path.read_text()):
        for payload in PAYLOADS:
            if "<" in payload:
                assert payload not in text


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
            lab.shot(f"drift-{theme}-{width}")
            table = output.locator(".nbdeploy-static table").bounding_box()
            assert table["x"] + table["width"] <= width
    assert "gone" not in lab.page.title()
    assert output.get_by_role("link", name="drift.html").get_attribute("href")

    lab.save()
    assert (lab.folder / name).stat().st_size < 60_000
    lab.shutdown_kernel()
    lab.page.reload()
    lab.page.wait_for_selector(".nbdeploy-static table")
    lab.page.wait_for_timeout(1000)
    assert lab.page.get_by_text("Error displaying widget").filter(visible=True).count() == 0
    lab.shot("drift-no-kernel")

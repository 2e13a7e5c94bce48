"""The panel without a browser: its buttons are clicked in Python, its static table is read as text."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser

import nbformat
import pandas as pd
import pytest

import nbdeploy
from nbdeploy import (
    model_store,
    panel_form,
    panel_parts,
    panel_static,
    panel_view,
    routing,
    validation,
    watching,
    workflow,
)
from nbdeploy.errors import DriftError, NotFound
from nbdeploy.panel_static import Facts, Snapshot
from nbdeploy.signature import Column, Signature

PAYLOADS = [
    "<script>document.title='x'</script>",
    "</script><script>document.title='x'</script>",
    "<img src=x onerror=document.title='x'>",
    "'\"><svg onload=document.title='x'>",
    "&lt;b&gt;",
    "</pre></style><b>",
]
SIGNATURE = Signature(
    columns=(
        Column("day", "int", "int64", minimum=1, maximum=31),
        Column("delay", "float", "float64", nullable=True, minimum=-20.0, maximum=301.5),
        Column("origin", "string", "object", categories=("EWR", "JFK", "LGA")),
        Column("weekend", "bool", "bool"),
        Column("size", "category", "category", categories=(1, 2, 3)),
        Column("when", "datetime", "datetime64[ns]", minimum="2013-01-01T05:00:00", maximum="2013-01-31T23:00:00"),
    ),
    task="classification",
    classes=(False, True),
    example={"day": 7, "delay": 2.5, "origin": "JFK", "weekend": False, "size": 2, "when": "2013-01-07T08:15:00"},
    target="late",
)


def wait_for(holds, seconds=20):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def shown(view):
    """What a panel's HTML widgets say, as text."""
    text = []
    parser = HTMLParser()
    parser.handle_data = text.append
    for widget in panel_parts._with_children(view.box):
        if type(widget).__name__ == "HTML":
            parser.feed(widget.value)
    return " ".join(text)


def typed(view, first):
    """Type into the first field, as the browser tells it."""
    view._form.set_state({"values": [first, *panel_form.texts(SIGNATURE)[1:]]})


class Tags(HTMLParser):
    def __init__(self, markup):
        super().__init__()
        self.found = []
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def disk(monkeypatch):
    """What the panel finds: change it, and it has changed on disk."""

    class Disk:
        state, version, predictions = "live", "v1", 3
        signature = SIGNATURE
        digest = "d1"

    def status(name=None):
        if name not in (None, "flights"):
            msg = f"no model is saved as {name!r}"
            raise NotFound(msg)
        live = Disk.state == "live"
        row = {
            "name": "flights", "state": Disk.state, "version": Disk.version, "candidates": "v2",
            "url": "http://127.0.0.1:4711" if live else "", "pid": 12 if live else 0,
            "since": "2026-01-31T08:15:00+00:00" if live else "", "predictions": Disk.predictions,
        }  # fmt: skip
        return pd.DataFrame([row]).set_index("name")

    monkeypatch.setattr(workflow, "status", status)
    monkeypatch.setattr(model_store, "get", lambda _name, _version: Disk)
    return Disk


# A real deployment


def test_its_buttons_work_on_a_real_deployment(flights, flight_model):
    X, y = flights
    nbdeploy.deploy(flight_model, "flight-delay", X=X, y=y, progress=False)
    view = nbdeploy.panel("flight-delay")
    assert "flight-delay v1 ● live" in shown(view)
    assert view.serve.disabled
    assert not view.stop.disabled

    view.predict.click()
    wait_for(lambda: "late: " in shown(view) and "probability" in shown(view))
    wait_for(lambda: "predictions  1 " in shown(view) + " ")

    nbdeploy.stop("flight-delay")
    view.refresh()
    assert "○ stopped" in shown(view)
    assert (view.stop.disabled, view.predict.disabled, view.validate.disabled, view.serve.disabled) == (
        True,
        True,
        True,
        False,
    )

    view.serve.click()
    wait_for(lambda: "● live" in shown(view))
    view.stop.click()
    wait_for(lambda: "○ stopped" in shown(view))
    assert nbdeploy.status("flight-delay")["state"].tolist() == ["stopped"]


def test_an_unknown_name_is_refused_at_once():
    with pytest.raises(NotFound, match="no model is saved as 'flihgt'"):
        nbdeploy.panel("flihgt")


def test_without_a_name_and_without_a_model_it_says_how_to_start():
    view = nbdeploy.panel()

    assert "Nothing is saved yet" in shown(view)
    assert "Nothing is saved yet" in repr(view)


# Buttons


def test_a_button_works_in_the_background_and_says_so(disk, monkeypatch):
    go = threading.Event()

    def validate(_name, *, wait, progress, on_progress):
        assert (wait, progress) == (False, False)

        class Run:
            def result(self):
                on_progress(4, 12)
                go.wait(20)
                return "passed all 12"

        return Run()

    monkeypatch.setattr(validation, "validate", validate)
    view = nbdeploy.panel("flights")
    view.validate.click()
    wait_for(lambda: "4 of 12 cells" in shown(view))
    assert view.validate.disabled
    assert not view.stop.disabled
    wait_for(lambda: "Validating … 1 s" in shown(view))

    go.set()
    wait_for(lambda: not view.validate.disabled)
    assert "Validating" not in shown(view)
    assert "passed all 12" in view._output.outputs[0]["data"]["text/plain"]
    assert "passed all 12" in repr(view)


@pytest.mark.parametrize(
    "error,text",
    [
        (DriftError("flights:v1 has answered no request", "Ask it something first."), "flights:v1 has answered no request. Ask it something first."),
        (RuntimeError("out of\nluck"), "RuntimeError: out of luck"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)  # fmt: skip
def test_an_error_becomes_one_line_of_text(disk, monkeypatch, error, text):
    def drift(_name):
        raise error

    monkeypatch.setattr(watching, "drift", drift)
    view = nbdeploy.panel("flights")
    view.drift.click()

    wait_for(lambda: text in shown(view))
    wait_for(lambda: not view.drift.disabled)
    assert "Traceback" not in shown(view)
    assert "nbdeploy-busy" not in view.drift._dom_classes


def test_an_error_of_a_prediction_stands_beside_its_button(disk, monkeypatch):
    def predict(_name, rows, *, proba):
        assert (rows[0]["day"], proba) == ("seven", True)
        msg = "row 0, column 'day': expected an integer, got the string 'seven'"
        raise nbdeploy.InputError(msg)

    monkeypatch.setattr(workflow, "predict", predict)
    view = nbdeploy.panel("flights")
    typed(view, "seven")
    view.predict.click()

    wait_for(lambda: "got the string 'seven'" in view._answer.value.replace("&#x27;", "'"))


def test_a_click_on_a_button_that_makes_no_sense_does_nothing(disk, monkeypatch):
    monkeypatch.setattr(workflow, "serve", lambda *_args, **_options: pytest.fail("it is live already"))
    view = nbdeploy.panel("flights")

    view.serve.click()

    assert "Starting" not in shown(view)


# What it shows


def test_it_follows_the_disk(disk):
    view = nbdeploy.panel("flights")
    assert view._link.url == "http://127.0.0.1:4711"

    disk.state, disk.predictions = "stopped", 1234
    view.refresh()

    assert "○ stopped" in shown(view)
    assert "1,234" in shown(view)
    assert view._link.url == ""


def test_another_version_gets_another_form(disk):
    view = nbdeploy.panel("flights")
    typed(view, "8")
    view.refresh()
    assert view._form.get_state("values")["values"][0] == "8"

    disk.version, disk.digest = "v2", "d2"
    disk.signature = Signature(columns=(Column("hour", "int", "int64"),), example={"hour": 5})
    view.refresh()

    assert [one["name"] for one in view._form.fields] == ["hour"]
    assert view._form.get_state("values") == {"values": ["5"]}


def test_when_its_versions_are_gone_it_says_so(disk, monkeypatch):
    view = nbdeploy.panel("flights")

    def gone(_name=None):
        msg = "no model is saved as 'flights'"
        raise NotFound(msg)

    monkeypatch.setattr(workflow, "status", gone)
    view.refresh()

    assert "no model is saved as 'flights'" in shown(view)
    assert view.predict.disabled


def test_the_overview_lists_all_and_shows_the_chosen_one(disk):
    view = nbdeploy.panel()

    assert view.choice.options == ("flights",)
    assert view.chosen.name == "flights"
    disk.predictions = 77
    view.refresh()
    assert shown(view).count("77") == 2
    assert repr(view).startswith("flights  ● live  v1  v2")


def test_a_closed_view_lets_go_and_can_be_shown_again(disk, capsys):
    view = nbdeploy.panel("flights")
    former = view._link
    view.close()
    view.refresh()
    assert former.comm is None

    view._ipython_display_()

    assert "● live" in shown(view)
    assert "flights" in capsys.readouterr().out
    view.close()


def test_the_watcher_ends_with_its_last_view_and_survives_one_that_fails():
    looks = []

    class Failing:
        def refresh(self):
            looks.append(1)
            raise RuntimeError

    watch, screen = panel_parts.Watch(pause=0.01), Failing()
    watch.add(screen)
    wait_for(lambda: len(looks) > 2)
    assert watch.thread.daemon

    watch.discard(screen)
    wait_for(lambda: watch.thread is None)


def test_nobody_looks_for_a_cell_that_was_deleted(disk):
    screen = panel_parts.Screen(nbdeploy.panel("flights"))
    looks = []
    screen._view.refresh = lambda: looks.append(1)

    screen.refresh()
    screen.seen(1)
    screen.refresh()
    screen.seen(-1)
    screen.refresh()

    assert len(looks) == 2


# The static table


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_untrusted_becomes_markup(payload):
    facts = Facts(payload, payload, payload, payload, payload, 1, payload, 5)
    snapshot = Snapshot(facts, (facts,), payload)
    clean = Facts("a", "b", "c", "d", "e", 1, "f", 5)
    plain = Snapshot(clean, (clean,), "g")

    def tags(text):
        return [tag for tag, _ in Tags(text).found]

    assert tags(snapshot.markup()) == tags(plain.markup())
    for render in (panel_static.title, panel_static.facts_list):
        assert tags(render(facts)) == tags(render(clean))
    assert tags(panel_static.error_box(payload)) == tags(panel_static.error_box("g"))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_an_answer_an_error_and_a_log_stay_text_in_the_widgets(disk, monkeypatch, payload):
    def tags(view):
        values = [w.value for w in panel_parts._with_children(view.box) if type(w).__name__ == "HTML"]
        return sorted(tag for value in values for tag, _ in Tags(value).found)

    answers = []

    def predict(_name, _rows, *, proba):
        return pd.DataFrame([{"prediction": answers[-1], f"probability_{answers[-1]}": 1.0, "version": answers[-1]}])

    def drift(_name):
        raise DriftError(answers[-1])

    monkeypatch.setattr(workflow, "predict", predict)
    monkeypatch.setattr(watching, "drift", drift)
    monkeypatch.setattr(workflow, "logs", lambda _name, _lines: answers[-1])
    found = []
    for text in ("harmless", payload):
        answers.append(text)
        view = nbdeploy.panel("flights")
        view.predict.click()
        view.drift.click()
        wait_for(lambda view=view: not view.predict.disabled and not view.drift.disabled)
        found.append(tags(view))

    assert found[0] == found[1]


def test_a_log_line_loses_escape_sequences_and_what_hides_text():
    assert panel_static.plain("\x1b[31mred\x1b[0m \x1b]0;title\x07a\u202eb\x00c\td\r\ne") == "red abc\td\ne"


def test_the_static_table_reads_well_without_style():
    facts = Facts("flights", "live", "v1", "", "http://127.0.0.1:4711", 12, "2026-01-31T08:15:00+00:00", 3)
    snapshot = Snapshot(facts, result="passed")

    assert "URL          http://127.0.0.1:4711" in snapshot.text()
    assert "2026-01-31 08:15 UTC" in snapshot.text()
    assert "candidates" not in snapshot.text()
    markup = snapshot.markup(datetime(2026, 2, 1, tzinfo=timezone.utc))
    assert "As it was at 2026-02-01 00:00:00 UTC" in markup
    assert "Disconnected? Run this cell again" in markup


def test_how_long_ago():
    now = datetime(2026, 2, 1, tzinfo=timezone.utc)
    steps = [(5, "less than a minute"), (60, "1 minute"), (7300, "2 hours"), (3 * 86400, "3 days")]

    assert [panel_static.ago((now - timedelta(seconds=s)).isoformat(), now) for s, _ in steps] == [t for _, t in steps]
    assert panel_static.ago("yesterday") == ""


# The form


def test_the_form_starts_with_the_example_and_sends_it_back_typed():
    typed = panel_form.texts(SIGNATURE)

    assert typed == ["7", "2.5", "JFK", "false", "2", "2013-01-07T08:15:00"]
    assert panel_form.record(SIGNATURE, typed) == SIGNATURE.example


def test_what_does_not_fit_is_sent_as_typed_and_nothing_is_null():
    row = panel_form.record(SIGNATURE, ["seven", " ", "", "maybe", "9", ""])

    assert row == {"day": "seven", "delay": None, "origin": "", "weekend": "maybe", "size": "9", "when": None}
    odd = [panel_form.record(SIGNATURE, [text])["day"] for text in ("1_0", "NaN", "true", "9" * 5000, "1e3", "-4")]
    assert odd == ["1_0", "NaN", "true", "9" * 5000, 1000.0, -4]


@pytest.mark.parametrize("value", [1234.5678, 0.1 + 0.2, 1e-7, 1e22, -0.0, 3.0, 123456.0])
def test_a_number_is_shown_and_sent_to_the_last_digit(value):
    signature = Signature(columns=(Column("x", "float", "float64"),), example={"x": 0.5})

    (text,) = panel_form.texts(Signature(columns=signature.columns, example={"x": value}))

    assert float(text) == value
    assert panel_form.record(signature, [text]) == {"x": value}
    answered = pd.DataFrame({"prediction": [value]})
    assert panel_form.answer(signature, answered)[0] == f"prediction: {text}"


@pytest.mark.parametrize("text", ["x" * 5000, "two\nlines", ""])
def test_a_text_that_nobody_changed_is_sent_whole(text):
    signature = Signature(columns=(Column("s", "string", "object", nullable=True),), example={"s": text})

    assert panel_form.record(signature, panel_form.texts(signature)) == {"s": text}
    assert panel_form.record(signature, [text.replace("\n", "")]) == {"s": text}


def test_hints_tell_type_range_and_categories():
    assert [one["hint"] for one in panel_form.fields(SIGNATURE)] == [
        "whole number, 1 to 31",
        "number, -20 to 301.5, or empty",
        "text: EWR, JFK, LGA",
        "true or false",
        "category: 1, 2, 3",
        "date and time, 2013-01-01 05:00 to 2013-01-31 23:00",
    ]


def test_a_wide_model_shows_some_fields_and_sends_all_columns():
    names = [f"x{i}" for i in range(500)]
    wide = Signature(columns=tuple(Column(n, "float", "float64") for n in names), example=dict.fromkeys(names, 1.5))

    assert len(panel_form.fields(wide)) == panel_form.MAX_FIELDS
    row = panel_form.record(wide, ["2.5"] * panel_form.MAX_FIELDS)
    assert (len(row), row["x0"], row["x499"]) == (500, 2.5, 1.5)


# The saved notebook


def test_a_saved_notebook_holds_a_readable_table_and_little_else(tmp_path, flights, flight_model):
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter

    X, y = flights
    nbdeploy.save(flight_model, "flight-delay", X=X, y=y, progress=False)
    routing.go_live("flight-delay", "v1", "first release " * 30)
    routing.change("flight-delay", lambda old: old.split(v1=90, v2=10), action="traffic", why="a canary " * 30)
    source = "import nbdeploy\nnbdeploy.panel('flight-delay')"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])

    NotebookClient(notebook, timeout=60, kernel_name="python3").execute(cwd=tmp_path)

    static, live = notebook.cells[0].outputs
    assert "flight-delay" in static["data"]["text/html"]
    assert "stopped" in static["data"]["text/plain"]
    assert "v1 live 90 %" in static["data"]["text/plain"]
    assert live["data"]["text/plain"] == ""
    assert notebook.metadata["widgets"]
    assert len(nbformat.writes(notebook).encode()) < 60_000
    page, _ = HTMLExporter(template_name="lab").from_notebook_node(notebook)
    assert "Run this cell again for the live panel" in page


def test_the_scripts_are_small():
    scripts = [panel_parts._source(name) for name in ("panel_link.js", "panel_form.js", "panel_traffic.js")]

    assert sum(map(len, scripts)) < 10_000


def test_the_panel_is_what_nbdeploy_offers():
    assert nbdeploy.panel is panel_view.panel

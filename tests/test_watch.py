"""One page says how a deployment does, from what is on the disk: whether or not it runs, and whoever looks."""

from __future__ import annotations

import json
import math
import os
import re
import time
from dataclasses import replace
from datetime import datetime, timezone
from html.parser import HTMLParser
from itertools import pairwise
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pytest

import nbdeploy
from asking import Adder
from nbdeploy import health_drift, health_page, health_result, numbers_log, routing
from nbdeploy import home as places
from nbdeploy.__main__ import main
from nbdeploy.counted_numbers import Counted
from nbdeploy.errors import DriftError, InputError, NbdeployError, NotFound
from nbdeploy.health_drift import DriftTrend, DriftWindow
from nbdeploy.health_verdict import of_numbers, of_quality, of_silence, sentence
from nbdeploy.health_windows import DAY, HOUR, MINUTE, frame, seconds_of, windows
from nbdeploy.numbers_log import Interval
from nbdeploy.worker_numbers import SECONDS
from services import own_home

NAME = "flight-delay"
HOSTILE = "\x1b[2J</svg><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def served():
    """A service that has answered, in a home of its own; ended by the last test."""
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), path or ""])
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.normal(size=400), "b": rng.normal(size=400)})
    try:
        with own_home() as home:
            inside = {name: os.environ[name] for name in ("NBDEPLOY_HOME", "BENTOML_HOME")}
            service = nbdeploy.deploy(Adder(1), "adder", X, progress=False)
            for _ in range(10):
                nbdeploy.predict("adder", X.head(40).assign(a=lambda frame: frame["a"] + 5))
            with nbdeploy.connect("adder") as http:
                for _ in range(4):
                    http.post("/predict", json=[{"a": HOSTILE}])
            deadline = time.monotonic() + 10
            while sum(each.requests for each in numbers_log.window("adder").values()) < 14:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield SimpleNamespace(service=service, home=home, inside=inside)
            os.environ.update(inside)
            nbdeploy.stop("adder")
    finally:
        os.environ.pop("PYTHONPATH") if path is None else os.environ.update(PYTHONPATH=path)


@pytest.fixture
def adder(served, monkeypatch):
    for name, value in served.inside.items():
        monkeypatch.setenv(name, value)
    return served.service


@pytest.fixture
def known(home, monkeypatch):
    """A deployment without a model, for what is read from files alone."""
    monkeypatch.setattr(health_page, "must_be_known", lambda name: None)
    routing.go_live(NAME, "v1", "")


def numbers(version="v1", requests=10, errors=0, refused=0, slow=False, dropped=0, reasons=None):
    seconds = [0] * (len(SECONDS) + 1)
    seconds[-4 if slow else 5] = requests
    return Counted(version, requests, errors, refused, requests, SECONDS, tuple(seconds), dropped, reasons or {})


def interval(minutes_ago, *, now=0.0, **facts):
    made = numbers(**facts)
    return Interval(made.version, now - 60 * minutes_ago - 60, now - 60 * minutes_ago, made.facts)


def write(minutes_ago, versions, run="aa", n=None):
    """A line of numbers as a supervisor wrote it."""
    when = time.time() - 60 * minutes_ago
    facts = {each.version: each.facts for each in versions}
    day = datetime.fromtimestamp(when, timezone.utc).strftime("%Y-%m-%d")
    line = {"time": when, "from": when - 60, "run": run, "n": n or int(when), "versions": facts}
    with (places.folder("numbers", NAME) / f"{day}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


class Tags(HTMLParser):
    """The elements of a page, and the names of their attributes."""

    def __init__(self, text):
        super().__init__()
        self.names, self.attributes = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}


def page_of(health):
    made = health._repr_html_()
    assert len(made.encode()) < 60_000
    tags = Tags(made)
    assert not tags.names & {"script", "img", "iframe", "link", "a", "object", "foreignobject"}
    assert not [name for name in tags.attributes if name.startswith("on") or name in {"href", "src", "xlink:href"}]
    for drawing in re.findall("<svg.*?</svg>", made, re.DOTALL):
        ET.fromstring(drawing)
    return made


# -- a service ---------------------------------------------------------------------------------------------------


def test_the_page_of_a_running_service_tells_its_traffic_times_errors_drift_and_log(adder):
    health = nbdeploy.watch("adder", since="1h", progress=False)

    assert (health.name, health.version, health.state, dict(health.shares)) == ("adder", "v1", "live", {"v1": 100})
    assert health.since == datetime.fromisoformat(adder.since)
    assert health.numbers[["requests", "refused", "rows"]].sum().tolist() == [14, 4, 400]
    assert health.totals["v1"].reasons == {"signature": 4}
    assert health.log.rows == 400
    assert (health.log.dropped, health.log.unreadable, health.log.days) == (0, 0, 90)
    assert health.log.size > 1000
    drift = health.drift
    assert drift["share"].max() > 0
    assert drift.loc[drift["share"].idxmax(), "columns"][0] in ("a", "prediction")
    page, text = page_of(health), repr(health)
    for told in ("adder", "live", "Requests per minute", "Time to answer", "Errors and refusals by reason", "signature",
                 "Columns that drift", "Quality", "400 rows"):  # fmt: skip
        assert told in page
    for told in ("adder", "● live", "requests/minute", "p99 ms", "signature", "drift %", "400 rows", "█"):
        assert told in text


def test_the_shell_prints_it_and_gives_all_numbers_as_json(adder, capsys):
    assert main(["--json", "watch", "adder", "--since", "1h"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["totals"]["v1"]["requests"] == 14
    assert sum(each["requests"] for each in told["windows"]) == 14
    assert told["log"]["rows"] == 400
    assert max(each["share"] or 0 for each in told["drift"]) > 0  # measured before it is printed
    assert (told["state"], told["well"]) == ("live", not told["problems"])

    assert main(["watch", "adder", "--no-drift"]) == 0
    said = capsys.readouterr().out
    assert "requests/" in said
    assert "drift" not in said


def test_in_a_notebook_the_page_is_there_at_once_and_the_drift_comes_later(adder, monkeypatch):
    shown, ended = [], []

    class Handle:
        def update(self, data, *, raw):
            shown.append(data["text/html"])
            ended.append(True)

    def display(data, *, raw, display_id=None):
        shown.append(data["text/html"])
        return Handle()

    for module in (health_page, health_result):
        monkeypatch.setattr(module, "in_kernel", lambda: True)
    monkeypatch.setattr("IPython.display.display", display)
    nbdeploy.watch("adder", since="30m")._ipython_display_()
    assert "are not measured yet" in shown[0]
    deadline = time.monotonic() + 60
    while not ended and time.monotonic() < deadline:
        time.sleep(0.05)

    assert "not measured yet" not in shown[-1]
    assert "Columns that drift" in shown[-1]


def test_quality_is_on_the_page_once_there_are_labels_and_so_is_what_fires(adder):
    assert "nbdeploy.label" in repr(nbdeploy.watch("adder", drift=False)) + page_of(
        nbdeploy.watch("adder", drift=False)
    )
    known = nbdeploy.predictions("adder").set_index("prediction_id")
    nbdeploy.label("adder", known["prediction"] + 3.0)
    nbdeploy.alert("adder", "requests > 13 over 1h")
    nbdeploy.alerts("adder")
    try:
        health = nbdeploy.watch("adder", since="1h", drift=False)
        page = page_of(health)
        assert health.quality.windows["value"].dropna().tolist() == [pytest.approx(3.0)]
        assert "<circle" in page[page.index("Quality: mae") :]  # though its window may reach beyond the page
        assert "mae" in repr(health)
        assert "alert" in kinds(health.problems)
        for told in (page, repr(health)):
            assert "requests" in told
            assert "13" in told
        assert health.to_dict()["alerts"][0]["rule"]
    finally:
        nbdeploy.alert("adder", "requests > 13 over 1h", off=True)


def test_when_it_is_stopped_its_history_is_still_told(served, adder):
    nbdeploy.stop("adder")
    try:
        health = nbdeploy.watch("adder", since="1h", drift=False)
        assert health.state == "stopped"
        assert health.totals["v1"].requests == 14
        assert health.since is not None
        assert not health.well
        assert "stopped" in page_of(health)
        assert "Columns that drift" not in page_of(health)
    finally:
        nbdeploy.serve("adder", progress=False)


def test_what_is_saved_and_was_never_served_has_a_page_that_says_so(importable):
    nbdeploy.save(Adder(1), "adder", pd.DataFrame({"a": [1.0, 2.0]}), progress=False)

    health = nbdeploy.watch("adder", progress=False)

    assert health.state == "stopped"
    assert "nothing was logged yet" in page_of(health)
    assert "No numbers are kept yet" in repr(health)
    assert health.drift["rows"].sum() == 0
    with pytest.raises(NotFound, match="addr"):
        nbdeploy.watch("addr")


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]))


def test_what_makes_no_sense_is_said_in_a_line(known):
    for wrong, message in (
        ({"every": "soon"}, "no length of time"), ({"every": "10s"}, "a minute or more"),
        ({"every": "1m", "since": "7d"}, "10,080"), ({"since": "1h", "until": "2h"}, "is not before"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message) as told:
            nbdeploy.watch(NAME, **wrong)
        assert "\n" not in str(told.value)
    with pytest.raises(NbdeployError, match="is not a time"):
        nbdeploy.watch(NAME, since="yesterdayish")


# -- the page ----------------------------------------------------------------------------------------------------


def test_nothing_of_what_was_asked_or_is_kept_becomes_markup(known, monkeypatch):
    for minute in range(30):
        write(minute, [numbers(HOSTILE, reasons={HOSTILE: 3, "model": 2}), numbers("v1")])

    def measure(_name, window):
        return replace(window, share=0.9, drifted=True, rows=100, columns=(HOSTILE,), measured=True)

    monkeypatch.setattr(health_drift, "measured", measure)
    routing.change(NAME, lambda old: old.split(v1=50, v2=50), action="traffic", to=HOSTILE, why=HOSTILE)

    health = nbdeploy.watch(NAME, since="1h")

    page = page_of(health)
    assert "&lt;script&gt;" in page
    assert "\x1b" not in repr(health)


def test_the_page_is_small_whatever_there_is_to_show(known, monkeypatch):
    rng = np.random.default_rng(0)
    versions = [f"v{number}" for number in range(1, 15)]
    reasons = ["model", "overload", "deadline", "signature", "size", "media", "token", "slow"]
    for minute in range(0, 24 * 60, 8):
        write(minute, [numbers(version, int(rng.integers(1, 1000)), slow=bool(rng.random() < 0.5),
                               reasons={reason: int(rng.integers(1, 50)) for reason in reasons}) for version in versions])  # fmt: skip
    for number in range(100):
        routing.change(NAME, lambda old, n=number: old.to_live(versions[n % 14]), action="promote", why="because " * 50)
    monkeypatch.setattr(health_drift, "measured", lambda _name, window: replace(window, share=0.3, measured=True))

    health = nbdeploy.watch(NAME, every="10m")

    assert len(page_of(health).encode()) < 58_000
    assert len(health.numbers) > 1000


def test_the_drift_of_a_window_is_that_of_the_version_that_was_live_at_its_end(known, monkeypatch):
    asked = []

    def measure(_name, window):
        asked.append((window.version, window.end))
        return replace(window, share=0.1, rows=50, measured=True)

    monkeypatch.setattr(health_drift, "measured", measure)
    routing.change(NAME, lambda old: old.to_live("v2"), action="promote")
    now = time.time()
    steps = json.loads(routing.path(NAME).read_text())
    for step, hours in zip(steps["history"], (20, 6), strict=True):
        step["time"] = datetime.fromtimestamp(now - hours * HOUR, timezone.utc).isoformat()
    routing.path(NAME).write_text(json.dumps(steps))

    health = nbdeploy.watch(NAME)

    assert [end for _, end in asked] == sorted((end for _, end in asked), reverse=True)  # the newest first
    for version, end in asked:
        assert version == ("v2" if end >= now - 6 * HOUR else "v1" if end >= now - 20 * HOUR else "")
    assert {text for _, text in health.events} == {"v1 served", "v2 promoted"}
    assert set(health.drift["version"]) == {"", "v1", "v2"}
    asked.clear()
    nbdeploy.watch(NAME)
    assert len(asked) <= 1  # the last window is not over


def test_a_drift_that_cannot_be_measured_is_told_and_the_rest_is_shown(known, monkeypatch):
    write(10, [numbers("v1")])

    def broken(_name, _window):
        msg = "no module named evidently"
        raise ImportError(msg)

    monkeypatch.setattr(health_drift, "measured", broken)
    health = nbdeploy.watch(NAME)
    assert "Not measured: no module named evidently" in page_of(health)
    assert health.drift.empty


def test_a_window_in_which_nobody_asked_has_no_drift_and_is_no_trouble(home, monkeypatch):
    def nobody(*_all):
        msg = "nothing was asked"
        raise DriftError(msg, "")

    monkeypatch.setattr(health_drift, "_report", nobody)
    trend = DriftTrend(NAME, windows(0, 8 * HOUR, HOUR), lambda _when: "v1")
    assert trend.missing == 8
    assert all(math.isnan(each.share) and each.measured for each in trend.complete())
    assert DriftTrend(NAME, windows(0, 8 * HOUR, HOUR), lambda _when: "v1").missing == 0


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"v1 0 3600": 7}', b'{"v1 0 3600": {"share": "x"}}', b"\xff"])
def test_measurements_that_were_damaged_are_made_again(home, damage):
    places.folder("health").joinpath(f"{NAME}-drift.json").write_bytes(damage)
    assert DriftTrend(NAME, windows(0, HOUR, HOUR), lambda _when: "v1").missing == 1


def test_a_version_that_nobody_asked_in_that_time_takes_no_line_of_the_text(known):
    write(10, [numbers("v1")])
    routing.change(NAME, lambda old: old.to_live("v2"), action="promote")
    text = repr(nbdeploy.watch(NAME, since="1h", drift=False))
    assert re.search(r"requests/minute +v1 ", text)
    assert not re.search(r"requests/minute +v2 ", text)


# -- windows -----------------------------------------------------------------------------------------------------


def test_windows_end_at_round_moments_and_are_never_too_many():
    for length in (60, HOUR, 5 * HOUR, DAY, 7 * DAY, 90 * DAY, 5000 * DAY):
        where = windows(1_700_000_123.0, 1_700_000_123.0 + length)
        spans = where.spans
        assert len(spans) <= 62
        assert (spans[0][0], spans[-1][1]) == (where.start, where.end)
        assert all(one[1] == other[0] and one[1] % where.step == 0 for one, other in pairwise(spans))
        assert len(spans) == 1 or min(end - start for start, end in spans) >= 0.25 * where.step
    assert seconds_of("1.5h") == 5400
    assert windows(0, DAY, HOUR).unit == ("hour", HOUR)


def test_a_version_has_a_number_where_it_was_there_and_none_where_nobody_was():
    where = windows(0, 10 * HOUR, HOUR)
    found = [Interval("v1", h * HOUR, h * HOUR + 60, numbers("v1").facts) for h in (1, 3)]
    found += [Interval("v2", 6 * HOUR, 6 * HOUR + 60, numbers("v2", 7).facts)]

    made = frame(found, where, running=[(0, 4 * HOUR), (6 * HOUR, 10 * HOUR)], used=["v2"])

    hours = made.assign(hour=made["start"].dt.hour).set_index("version")
    assert hours.loc["v1", "hour"].tolist() == [1, 2, 3]  # v1 is gone when v2 answers
    assert hours.loc["v1", "requests"].tolist() == [10, 0, 10]
    assert hours.loc["v2", "hour"].tolist() == [6, 7, 8, 9]
    assert hours.loc["v2", "requests"].tolist() == [7, 0, 0, 0]
    assert frame([], where, []).empty


# -- what is wrong -----------------------------------------------------------------------------------------------


def kinds(problems):
    return [each.kind for each in problems]


def test_all_is_well_where_nothing_is_wrong():
    calm = [interval(m, requests=100, errors=m % 50 == 0, refused=1) for m in range(1400)]
    assert of_numbers(calm, -DAY, 0) == []
    assert of_numbers([], -DAY, 0) == []
    assert sentence([], running=True, asked=True) == "All is well."
    assert "nobody has asked" in sentence([], running=True, asked=False)
    assert "stopped" in sentence([], running=False, asked=True)


def test_errors_that_went_up_are_told_with_their_reason_and_those_that_never_were_are_not():
    before = [interval(m, requests=100, errors=0) for m in range(300, 1400)]
    after = [
        interval(m, requests=100, errors=5, reasons={"model": 4, "overload": 1, "signature": 9}) for m in range(300)
    ]
    (found,) = of_numbers(before + after, -DAY, 0)
    assert found.kind == "errors"
    assert "5.0%" in found.text
    assert "'model'" in found.text
    steady = [interval(m, requests=100, errors=8, reasons={"model": 8}) for m in range(1400)]
    (found,) = of_numbers(steady, -DAY, 0)
    assert "8.0% of the requests failed" in found.text
    assert of_numbers([interval(1, requests=4, errors=4)], -DAY, 0) == []  # four are no trend


def test_refusals_slow_answers_and_lost_rows_are_told():
    before = [interval(m, requests=100) for m in range(300, 1400)]
    refused = [interval(m, requests=100, refused=40, reasons={"signature": 40}) for m in range(60)]
    assert kinds(of_numbers(before + refused, -DAY, 0)) == ["refusals"]
    slow = [interval(m, requests=100, slow=True) for m in range(60)]
    assert kinds(of_numbers(before + slow, -DAY, 0)) == ["slow"]
    lost = [interval(1, dropped=3)]
    assert "lost 3 rows" in of_numbers(lost, -DAY, 0)[0].text


def test_silence_counts_where_it_is_longer_than_ever_before():
    now, always = 0.0, [(-DAY, 0.0)]
    busy = [interval(m) for m in range(200, 1400)]
    (found,) = of_silence(busy, always, now)
    assert "nobody has asked for 3 h" in found.text
    nightly = [interval(m) for m in (1380, 700)]
    assert of_silence(nightly, always, now) == []
    assert of_silence([interval(m) for m in range(50, 400)], always, now) == []  # less than an hour
    assert of_silence(busy, [(-1800, 0.0)], now) == []  # it was started half an hour ago
    assert of_silence([], always, now) == []


def test_quality_fell_where_its_interval_leaves_no_doubt():
    def quality(values, metric="accuracy", gate=None, *, estimated=False):
        rows = [("v1", value, value - 0.02, value + 0.02, estimated) for value in values]
        made = pd.DataFrame(rows, columns=["version", "value", "low", "high", "estimated"])
        told = "{:.2f}".format
        return SimpleNamespace(windows=made, metric=metric, gate={} if gate is None else {"v1": gate}, told=told)

    (found,) = of_quality(quality([0.9, 0.8], gate=0.88), "v1")
    assert "accuracy of v1 is 0.80, 0.88 in its gate" in found.text
    assert of_quality(quality([0.9, 0.87], gate=0.88), "v1") == []
    assert kinds(of_quality(quality([0.9, 0.8]), "v1")) == ["quality"]
    assert of_quality(quality([0.9]), "v1") == []
    assert of_quality(quality([0.9, 0.8], "mae", gate=0.88), "v1") == []
    assert kinds(of_quality(quality([0.8, 0.95], "mae", gate=0.88), "v1")) == ["quality"]
    assert of_quality(quality([0.9, 0.1], gate=0.9, estimated=True), "v1") == []
    assert of_quality(quality([0.9, 0.1], gate=0.9), "v2") == []
    assert of_quality(None, "v1") == []


def test_a_drift_is_told_first_of_the_newest_window(known, monkeypatch):
    def measure(_name, window):
        return replace(window, share=0.6, drifted=True, rows=99, columns=("month",), measured=True)

    monkeypatch.setattr(health_drift, "measured", measure)
    health = nbdeploy.watch(NAME)
    assert kinds(health.problems) == ["drift"]
    assert "60% of the columns" in health.sentence
    assert "month" in health.sentence
    assert MINUTE == 60
    assert DriftWindow(0, 1, "v1").measured is False

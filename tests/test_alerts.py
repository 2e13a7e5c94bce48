"""Rules that a deployment is watched by: what they say, when they fire, and that each event is told once."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from aiosmtpd.controller import Controller
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LinearRegression

import nbdeploy
from nbdeploy import (
    __main__,
    alert_delivery,
    alert_measures,
    alert_rules,
    alert_store,
    alerting,
    home,
    model_store,
    routing,
)
from nbdeploy.alert_rules import parse
from nbdeploy.errors import AlertError, NotFound, RuleError
from nbdeploy.panel_static import Facts, facts_list
from nbdeploy.prediction_log import Entry, LogWriter, new_request_id
from services import own_home

DOCS = Path(__file__).parent.parent / "docs" / "alerts.md"
CANARY = "S3CR3T-c4nary"
SHOP, LATE = "shop", "late"


@pytest.fixture(scope="module")
def _saved():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.normal(size=2000), "b": rng.normal(size=2000)})
    with own_home() as place:
        y = X["a"] + X["b"]
        nbdeploy.save(LinearRegression().fit(X, y), SHOP, X, y, progress=False)
        routing.go_live(SHOP, "v1", "a test")
        yield place


@pytest.fixture(autouse=True)
def shop(_saved, monkeypatch, tmp_path):
    """A deployment that was saved and is live, and never ran."""
    shutil.copytree(_saved, tmp_path / "home")
    monkeypatch.setenv("NBDEPLOY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BENTOML_HOME", str(_saved.parent / "bentoml"))
    return tmp_path / "home"


def counted(minutes_ago, *, name=SHOP, version="v1", requests=0, **facts):
    """What a service has counted in the minute that ended so long ago."""
    ended = time.time() - 60 * minutes_ago
    held = {"requests": requests, "errors": 0, "refused": 0, "rows": requests, "dropped": 0, "reasons": {},
            "seconds": {"0.01": requests} if requests else {}, **facts}  # fmt: skip
    line = {"time": ended, "from": ended - 60, "run": "r", "n": time.monotonic_ns(), "versions": {version: held}}
    path = home.folder("numbers", name) / f"{datetime.fromtimestamp(ended, timezone.utc):%Y-%m-%d}.jsonl"
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def forget():
    for path in home.folder("numbers", SHOP).glob("*.jsonl"):
        path.unlink()


def asked(rows, *, name=SHOP, minutes_ago=1.0, version="v1"):
    """Rows of ``a`` and ``b`` in the log; their prediction ids."""
    signature = model_store.get(SHOP, version).signature
    when, ids = time.time() - 60 * minutes_ago, []
    with LogWriter(name, signature.columns, outputs=signature.outputs, keep_every=None) as log:
        for a, b in rows:
            ids.append(new_request_id())
            assert log.write([Entry(version, ids[-1], {"a": [float(a)], "b": [float(b)]}, [a + b], time=when)])
    return [f"{each}-0" for each in ids]


def look(name=SHOP, **more):
    return nbdeploy.alerts(name, **more)


def only(found):
    (one,) = found.alerts
    return one


def ask(*words):
    return __main__.main(["alert", SHOP, *words])


class Hook:
    """A webhook on loopback, and what it was sent."""

    def __init__(self):
        self.got, self.status = [], 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if outer.status == 200:
                    outer.got.append((body["type"], body["title"], body["message"]))
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://user:{CANARY}@127.0.0.1:{self.server.server_port}/{CANARY}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def titles(self):
        return [title for _, title, _ in self.got]

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def hook():
    made = Hook()
    yield made
    made.close()


@pytest.fixture
def mail():
    class Sink:
        def __init__(self):
            self.got = []

        async def handle_DATA(self, _server, _session, envelope):  # noqa: N802  what aiosmtpd calls
            self.got.append(envelope)
            return "250 OK"

    class AnyPort(Controller):
        def _trigger_server(self):
            self.port = self.server.sockets[0].getsockname()[1]
            super()._trigger_server()

    sink = Sink()
    controller = AnyPort(sink, hostname="127.0.0.1", port=0)
    controller.start()
    sink.url = (
        f"mailto://mail.example:{controller.port}/?smtp=127.0.0.1&mode=insecure&from=nb@mail.example&to=me@mail.example"
    )
    yield sink
    controller.stop()


# What a rule says


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("drift.share > 0.3 for 2 windows", "drift.share > 30% over 1h for 2 windows"),
        ("error_rate>2%", "error_rate > 2% over 1h"),
        ("  refused_rate >= .5 over 1.5h ", "refused_rate >= 50% over 90m"),
        ("drift", "drift over 1h"),
        ("drift('dep_delay') over 2w", 'drift("dep_delay") over 14d'),
        ('drift("a \\"b\\" \\\\") > 1e-2', 'drift("a \\"b\\" \\\\") > 0.01 over 1h'),
        ("p99 > 0.2s of v2", "p99 > 200 ms of v2 over 1h"),
        ("p50 < 7 for 1 window over 1d", "p50 < 7 ms over 1d"),
        ("requests < 1 over 1h", "requests < 1 over 1h"),
        ("quality < 0.9 over 7d", "quality < 0.9 over 7d"),
        ("quality.accuracy < 90% over 7d of v12", "quality.accuracy < 90% of v12 over 7d"),
        ("quality.r2 <= -0.5", "quality.r2 <= -0.5 over 1h"),
        ("log.dropped > 0", "log.dropped > 0 over 1h"),
        ("log.unreadable > 0", "log.unreadable > 0"),
    ],
)
def test_a_rule_is_kept_in_one_way(text, kept):
    assert parse(text).text == kept
    assert parse(kept) == parse(text)


@pytest.mark.parametrize(
    ("text", "at", "says"),
    [
        ("drift.shares > 0.3", "drift.shares", "'drift.shares' is no measure. Did you mean 'drift.share'?"),
        ("quality.accurcy < 1", "quality.accurcy", "Did you mean 'quality.accuracy'?"),
        ("error_rate > 2", "2", "error_rate is a share, from 0 to 1. Two percent is 0.02, or 2%."),
        ("error_rate > 101%", "101", "is a share"),
        ("p99 > -1", "-1", "never below 0"),
        ("p99 > 61s", "61", "no time so long"),
        ("p99 > 5 %", "%", "p99 is not measured in %"),
        ("p99 > 1e999", "1e999", "beyond any number"),
        ("p99 = 3", "=", "'=' is not expected here. Expected: one of > >= < <=."),
        ("p99 > fast", "fast", "Expected: a number"),
        ("error_rate", "", "error_rate is compared with nothing. For example error_rate > 2%."),
        ("error_rate >", "", "the rule ends too early. Expected: a number."),
        ("error_rate > 2% over 1y", "1y", "Expected: a duration, 30m or 7d say."),
        ("error_rate > 2% over 5s", "5s", "a window is from 1m to 366d long"),
        ("error_rate > 2% over 9999999999999999999999d", "9999999999999999999999d", "a window is from"),
        ("error_rate > 2% for 0 windows", "0", "1 to 100 windows"),
        ("error_rate > 2% for 2", "", "Expected: the word windows."),
        ("error_rate > 2% over 1h over 2h", "2h", "it says twice how long a window is"),
        ("error_rate > 2% twice", "twice", "'twice' is not expected here"),
        ("error_rate > 2% of 2", "2", "Expected: a version"),
        ("drift > 0.3", "drift", "'drift' is a verdict, not a number"),
        ("drift(carrier) > 1", "carrier", "Expected: a column's name in quotes"),
        ("drift('carrier", "'", "Expected: a column's name in quotes"),
        ("p99('carrier') > 1", "p99", "p99 is not of a column"),
        ("log.unreadable > 0 over 1h", "1h", "of this moment"),
        ("> 3", ">", "Expected: a measure"),
    ],
)
def test_a_rule_that_does_not_parse_shows_the_spot(text, at, says, capsys):
    with pytest.raises(RuleError) as raised:
        parse(text)

    message, rule, mark = str(raised.value).split("\n")
    assert says in message
    assert rule == f"  {text}"
    assert mark.strip() == "^" * max(1, len(at))
    assert mark.index("^") - 2 == (text.rindex(at) if at else len(text))

    assert ask(text) == 1
    shell = capsys.readouterr()
    assert (shell.out, shell.err) == ("", f"nbdeploy: {raised.value}\n")
    assert __main__.main(["--json", "alert", SHOP, text]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["rule"], facts["error"]) == ("RuleError", text, message)
    assert text[facts["position"] :][: len(at)] == at


def test_in_a_notebook_the_spot_stands_under_the_message():
    with pytest.raises(RuleError) as raised:
        nbdeploy.alert(SHOP, "eror_rate > 2%")

    lines = re.sub(r"\x1b\[\d+m", "", "\n".join(raised.value._render_traceback_())).split("\n")
    assert lines == [
        "RuleError: 'eror_rate' is no measure",
        "  eror_rate > 2%",
        "  ^^^^^^^^^",
        "  Did you mean 'error_rate'?",
    ]


def test_the_mark_stands_under_the_spot_though_characters_are_wide_or_unseen():
    for text, width in (("drift('日本') > x", 16), ("drift('a\tb\x1b[2J') > x", 19)):
        with pytest.raises(RuleError) as raised:
            parse(text)
        _, rule, mark = str(raised.value).split("\n")
        assert rule.isprintable()
        assert mark == " " * (2 + width) + "^"


@pytest.mark.parametrize("text", ["", " ", "\n", "x" * 501, "drift('\ud800')", None, 3, b"drift"])
def test_what_is_hardly_a_rule_is_refused(text):
    with pytest.raises(AlertError):
        parse(text)


WORDS = [
    *alert_rules.MEASURES, "of", "over", "for", "windows", "window", "v2", "1h", "30m", "2", "0.5", "%", "ms", "s", ">", ">=",
    "<", "(", ")", '"a"', "'b'", "\\", '"', "'", "-", "1e9", "\t", "\n", "日",
]  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)))
def test_any_text_is_a_rule_or_an_error_of_ours(text):
    found = read(text)
    if isinstance(found, RuleError):
        assert str(found).count("\n") == 2
        assert 0 <= found.position <= len(found.rule)
    elif isinstance(found, AlertError):
        assert "\n" not in str(found)
    else:
        assert parse(found.text) == found


def read(text):
    try:
        return parse(text)
    except AlertError as error:
        return error


@settings(deadline=None, max_examples=200)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.floats(0, 1), st.sampled_from([">", ">=", "<", "<="]),
    st.integers(60, 10**6), st.integers(1, 100),
)  # fmt: skip
def test_a_rule_survives_its_own_text(column, limit, comparison, seconds, windows):
    rules = [
        alert_rules.Rule("drift", comparison, limit, column=column, window=seconds, windows=windows),
        alert_rules.Rule("error_rate", comparison, round(limit, 12), version="v3", window=seconds, windows=windows),
        alert_rules.Rule("p99", comparison, limit * 1000, window=seconds),
    ]
    assert [parse(rule.text) for rule in rules] == rules


def test_the_grammar_in_the_docs_is_the_grammar():
    page = DOCS.read_text()
    assert alert_rules.GRAMMAR.strip() in page
    assert all(f"`{name}`" in page or name.startswith("quality.") for name in alert_rules.MEASURES)
    assert all(f"`{name.partition('.')[2]}`" in page for name in alert_rules.MEASURES if name.startswith("quality."))


# What is kept


def test_rules_are_kept_listed_and_removed(shop):
    assert repr(nbdeploy.alert(SHOP)) == "shop has no rules"
    nbdeploy.alert(SHOP, "error_rate > 2%")
    nbdeploy.alert(SHOP, "p99 > 200", to="env:A_HOOK")
    kept = nbdeploy.alert(SHOP, "error_rate > 0.02 over 60m", to=["env:A_HOOK", "json://127.0.0.1:9/x"])

    assert list(kept) == ["error_rate > 2% over 1h", "p99 > 200 ms over 1h"]
    assert kept.to == (("env:A_HOOK", "json://127.0.0.1"), ("env:A_HOOK",))
    assert kept.to_dict()["rules"][1] == {"number": 2, "rule": "p99 > 200 ms over 1h", "to": ["env:A_HOOK"]}
    assert "env:A_HOOK" in repr(kept)
    assert "p99 &gt; 200 ms" in kept._repr_html_()
    assert nbdeploy.alert(SHOP, "1").to == kept.to  # without targets these stay

    assert list(nbdeploy.alert(SHOP, "error_rate > 2%", off=True)) == ["p99 > 200 ms over 1h"]
    assert list(nbdeploy.alert(SHOP, "1", off=True)) == []
    for path in (shop / "alerts").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        ({"rule": "drift('c')"}, AlertError, "shop:v1 has no column 'c' that can be compared. Known: a, b."),
        (
            {"rule": "quality.accuracy < 1%"},
            AlertError,
            "accuracy is a metric for classification, and this model does regression",
        ),
        ({"rule": "p99 > 1 of v7"}, AlertError, "there is no shop:v7. Known: v1."),
        (
            {"rule": "p99 > 1", "to": "mailt://me"},
            AlertError,
            "mailt:// is no kind of address that Apprise knows. Did you mean 'mailto'?",
        ),
        ({"rule": "p99 > 1", "to": ""}, AlertError, "a target of alerts is text"),
        ({"rule": "p99 > 1", "to": "env:a b"}, AlertError, "what follows env: is no name of a variable"),
        ({"rule": "p99 > 1", "to": "slack://nothing"}, AlertError, "slack://… is an address that Apprise cannot read"),
        ({"rule": "p99 > 1", "off": True}, NotFound, "'shop' has no rules"),
        ({"rule": "7", "off": True}, NotFound, "'shop' has no rules"),
        ({"off": True}, AlertError, "which rule is not said"),
        ({"to": "env:X"}, AlertError, "which rule is not said"),
    ],
)
def test_a_rule_that_means_nothing_here_is_not_kept(words, kind, says):
    with pytest.raises(kind, match=re.escape(says)) as raised:
        nbdeploy.alert(SHOP, **words)
    assert "\n" not in str(raised.value)
    assert not len(nbdeploy.alert(SHOP))


def test_a_notebook_and_a_shell_say_the_same(capsys, monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    shell = InteractiveShell()
    shell.run_line_magic("load_ext", "nbdeploy")
    kept = shell.run_line_magic("deploy", "alert shop 'drift(\"a\") > 0.1 for 2 windows' --to env:A --to env:B")
    assert (kept.rules, kept.to) == (('drift("a") > 0.1 over 1h for 2 windows',), (("env:A", "env:B"),))
    assert ask('drift("a") > 0.1 for 2 windows', "--to", "env:A", "--to", "env:B") == 0
    assert capsys.readouterr().out == f"{kept!r}\n"
    assert shell.run_line_magic("deploy", "alert shop 1 --off").rules == ()
    with pytest.raises(RuleError):
        shell.run_line_magic("deploy", "alert shop 'p98 > 1'")
    shell.run_line_magic("unload_ext", "nbdeploy")


def test_unknown_deployments_and_those_without_rules_say_so(capsys):
    for words, says in ((["alert", "shopp", "p99 > 1"], "Did you mean 'shop'?"), (["alerts", "shopp"], "Did you mean 'shop'?"),
                        (["alerts", SHOP], "'shop' has no rules of alerts. Set one: nbdeploy alert shop")):  # fmt: skip
        assert __main__.main(words) == 1
        assert says in capsys.readouterr().err
    assert __main__.main(["alerts"]) == 0
    assert capsys.readouterr().out == "no deployment has rules\n"


def test_files_that_hold_something_else_are_named(shop):
    nbdeploy.alert(SHOP, "log.unreadable > 0")
    for name, content, call in (("state.json", "[]", look), ("state.json", '{"firing": {"x": {}}}', look),
                                ("rules.json", '{"rules": 3}', look), ("rules.json", "{", lambda: nbdeploy.alert(SHOP))):  # fmt: skip
        path = shop / "alerts" / SHOP / name
        before = path.read_text() if path.exists() else None
        path.write_text(content)
        with pytest.raises(nbdeploy.NbdeployError, match=re.escape(str(path))):
            call()
        assert "cannot be read" in nbdeploy.status(SHOP).loc[SHOP, "alerts"]
        path.write_text(before) if before else path.unlink()
    assert look().exit_code == 0


# When it fires


@pytest.mark.parametrize(
    ("rule", "facts", "fires", "said"),
    [
        ("error_rate > 2%", {"requests": 200, "errors": 10}, True, "5% (10 of 200 requests) in 1h"),
        ("error_rate > 5%", {"requests": 200, "errors": 10}, False, "5% (10 of 200 requests) in 1h"),
        ("error_rate >= 5%", {"requests": 200, "errors": 10}, True, "5% (10 of 200 requests) in 1h"),
        ("refused_rate > 2%", {"requests": 200, "refused": 10}, True, "5% (10 of 200 requests) in 1h"),
        ("p50 < 7.5", {"requests": 10, "seconds": {"0.005": 10}}, True, "4 ms (of 10 requests) in 1h"),
        ("p99 > 200", {"requests": 300, "seconds": {"0.01": 290, "0.5": 10}}, True, "455 ms (of 300 requests) in 1h"),
        ("p99 > 500", {"requests": 300, "seconds": {"0.01": 290, "0.5": 10}}, False, "455 ms (of 300 requests) in 1h"),
        ("requests > 100", {"requests": 300}, True, "300 in 1h"),
        ("log.dropped > 0", {"requests": 3, "dropped": 2}, True, "2 (3 rows were answered) in 1h"),
        ("error_rate > 2% of v1", {"requests": 200, "errors": 10}, True, "5% (10 of 200 requests) in 1h"),
    ],
)
def test_a_rule_of_what_was_counted_fires(rule, facts, fires, said, capsys):
    counted(10, **facts)
    counted(70, requests=1000)  # before the window
    nbdeploy.alert(SHOP, rule)

    found = only(look())

    assert (found.state, found.said) == ("firing" if fires else "ok", said)
    assert __main__.main(["alerts", SHOP]) == int(fires)
    assert capsys.readouterr().out.startswith(f"1 rule: {int(fires)} firing\n  {found.state}")
    assert __main__.main(["--json", "alerts", SHOP]) == int(fires)
    facts = json.loads(capsys.readouterr().out)
    assert (facts["firing"], facts["exit_code"], facts["alerts"][0]["said"]) == (fires, fires, said)


def test_all_versions_count_together_unless_one_is_named():
    counted(5, requests=100, errors=0)
    counted(5, version="v2", requests=100, errors=50)
    for rule in ("error_rate > 20%", "error_rate > 20% of v1"):
        nbdeploy.alert(SHOP, rule)
    assert [alert.state for alert in look().alerts] == ["firing", "ok"]
    assert alert_store.firing(SHOP)[0].said == "25% (50 of 200 requests) in 1h"


def test_it_takes_every_one_of_the_windows():
    nbdeploy.alert(SHOP, "error_rate > 2% for 3 windows")
    counted(10, requests=100, errors=10)
    counted(70, requests=100, errors=20)
    assert (only(look()).state, only(look()).said) == ("no data", "no request in 1h")

    counted(130, requests=100, errors=1)
    assert (only(look()).state, only(look()).said) == ("ok", "1% (1 of 100 requests) in the 2 windows before")

    counted(131, requests=10, errors=10)
    found = only(look())
    assert (found.state, found.measured) == ("firing", (0.1, 0.2, 0.1))
    assert (
        found.said
        == "10% (10 of 100 requests), before that 20% (20 of 100 requests), before that 10% (11 of 110 requests), each in 1h"
    )


def test_what_is_not_known_neither_fires_nor_is_over(capsys):
    nbdeploy.alert(SHOP, "error_rate > 2%")
    nbdeploy.alert(SHOP, "p99 > 1")
    counted(10, requests=99, errors=50)
    first, slow = look().alerts
    assert (slow.state, slow.said) == ("no data", "99 requests in 1h, and it takes 100")

    forget()
    found = look()

    assert [alert.state for alert in found.alerts] == ["no data", "no data"]
    assert found.alerts[0].word == "firing, no data now"
    assert [alert.event for alert in found.firing] == [first.event]
    assert found.exit_code == 1
    counted(10, requests=99)
    assert (look().exit_code, look().alerts[0].state) == (0, "ok")


def test_no_traffic_fires_once_it_could_have_come():
    nbdeploy.alert(SHOP, "requests < 1 over 1h")
    assert (only(look()).state, only(look()).said) == ("no data", "its service has never run")
    counted(30)
    assert only(look()).state == "no data"
    assert "within the window" in only(look()).said
    counted(90, requests=5)
    assert (only(look()).state, only(look()).said) == ("firing", "0 in 1h")
    counted(1, requests=1)
    assert only(look()).recovered


def test_drift_is_judged_by_the_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rules = [
        "drift.share > 0.3",
        "drift",
        "drift('a')",
        "drift('a') > 0.1",
        "drift('a') < 0.1",
        "drift('prediction') for 2 windows",
    ]
    for rule in rules:
        nbdeploy.alert(SHOP, rule)
    assert {(alert.state, alert.said) for alert in look().alerts[:5]} == {("no data", "v1 was asked nothing in 1h")}

    asked(np.random.default_rng(1).normal(size=(12, 2)))
    assert {alert.state for alert in look().alerts} == {"no data"}
    assert look().exit_code == 0

    alike = stats.norm.ppf(np.linspace(0.002, 0.998, 250))
    asked(np.stack([alike + 4, alike[::-1]], axis=1))
    share, overall, column, distance, p_value, twice = look().alerts
    assert share.state == overall.state == column.state == distance.state == "firing"
    assert share.said == "66.7% (2 of 3 columns drift: a, prediction) in 1h"
    assert re.fullmatch(r"drift \(Wasserstein distance \(normed\) [\d.]+, threshold 0.1\) in 1h", column.said)
    assert (p_value.state, "write >" in p_value.said) == ("failed", True)
    assert (twice.state, twice.said) == ("no data", "v1 was asked nothing in 1h")
    assert not list(tmp_path.glob("nbdeploy-reports/**/*.html"))


def test_quality_is_judged_by_the_labels():
    for rule in ("quality.rmse > 1.5 over 1d", "quality < 1 of v1 over 1d", "quality.r2 < 0.5 over 1d"):
        nbdeploy.alert(SHOP, rule)
    assert {alert.state for alert in look().alerts} == {"no data"}
    ids = asked(np.random.default_rng(3).normal(size=(200, 2)))
    assert "has no label" in look().alerts[0].said
    nbdeploy.label(SHOP, dict.fromkeys(ids[:29], 2.0))
    assert look().alerts[0].said == "29 labelled predictions in 1d, and it takes 30"
    assert look().exit_code == 0

    nbdeploy.label(SHOP, dict.fromkeys(ids[:150], 2.0))
    rmse, mae, r2 = look().alerts
    assert (rmse.state, mae.state) == ("firing", "ok")
    assert re.fullmatch(r"2.\d+ \(rmse of 150 labelled predictions\) in 1d", rmse.said)
    assert r2.state == "no data"  # labels that are all alike


def test_what_is_estimated_is_not_compared():
    columns = ["metric", "value", "labelled", "estimated"]
    for estimated, state in ((False, 0.5), (True, None)):
        windows = pd.DataFrame([["accuracy", 0.5, 40, estimated]], columns=columns)
        assert alert_measures._of_quality(parse("quality < 1"), windows).value == state


def test_a_version_that_is_not_live_has_its_own_drift(shop):
    nbdeploy.alert(SHOP, "drift.share > 0.3 of v1")
    asked(np.random.default_rng(2).normal(9, 1, size=(60, 2)))
    (shop / "traffic" / f"{SHOP}.json").unlink()
    found = only(look())
    assert (found.state, found.said[:27]) == ("firing", "100% (3 of 3 columns drift:")


def test_damaged_lines_of_the_log_are_counted(shop):
    nbdeploy.alert(SHOP, "log.unreadable > 0")
    asked([(1, 2)] * 3)
    assert only(look()).state == "ok"
    (segment,) = (path for path in shop.rglob("*.jsonl") if path.stat().st_size)
    with segment.open("ab") as file:
        file.write(b"{torn\n")
    assert (only(look()).state, only(look()).said) == ("firing", "1")


def test_a_rule_that_cannot_be_measured_is_told_apart(capsys):
    nbdeploy.alert(SHOP, "drift")
    kept = home.read_json(home.folder("alerts", SHOP) / "rules.json")
    for text in ("drift of v9", "eror_rate > 2%"):  # its version was deleted; it is of another nbdeploy
        kept["rules"][0]["text"] = text
        home.write_json(home.folder("alerts", SHOP) / "rules.json", kept)
        assert __main__.main(["alerts", SHOP]) == 3
        assert capsys.readouterr().out.startswith("1 rule: 0 firing, 1 failed\n")


# How it is told


def test_an_event_is_told_once_and_once_that_it_is_over(hook):
    nbdeploy.alert(SHOP, "error_rate > 2%", to=hook.url)
    counted(10, requests=100, errors=1)
    assert look().deliveries == ()

    counted(9, requests=100, errors=50)
    first = look()
    again = look()

    assert [(one.what, one.delivered) for one in first.deliveries] == [("alert", True)]
    assert again.deliveries == ()
    assert only(again).event == only(first).event
    assert [(kind, title) for kind, title, _ in hook.got] == [("failure", "FIRING: shop: error_rate > 2% over 1h")]
    assert hook.got[0][2].splitlines()[:2] == ["error_rate > 2% over 1h", "measured: 25.5% (51 of 200 requests) in 1h"]

    forget()
    counted(8, requests=100)
    assert only(look()).recovered
    assert look().deliveries == ()

    assert hook.titles[1:] == ["RECOVERED: shop: error_rate > 2% over 1h"]
    assert {re.search(r"event: ([0-9a-f]{16})", message)[1] for _, _, message in hook.got} == {only(first).event}

    counted(7, requests=100, errors=100)
    assert only(look()).event != only(first).event
    assert len(hook.got) == 3


def test_what_nobody_took_is_told_at_the_next_look_in_order(hook):
    other = "json://127.0.0.1:9/"  # nobody listens there
    nbdeploy.alert(SHOP, "error_rate > 2%", to=[hook.url, other])
    hook.status = 503
    counted(10, requests=10, errors=10)
    found = look()
    assert [(one.delivered, one.why) for one in found.deliveries] == [
        (False, "it was refused with status 503"), (False, "there was no connection"),
    ]  # fmt: skip
    assert found.exit_code == 1

    forget()
    counted(10, requests=10)
    found = look()
    assert (found.exit_code, found.firing, hook.got) == (3, (), [])

    hook.status = 200
    assert look().exit_code == 3  # the other one
    assert [title.split(":")[0] for title in hook.titles] == ["FIRING", "RECOVERED"]
    nbdeploy.alert(SHOP, "1", to=hook.url)
    assert (look().exit_code, len(hook.got)) == (0, 2)


def test_mail_is_plain_text_in_which_data_means_nothing(mail):
    column = "<b>@everyone</b> [x](javascript:alert(1)) https://evil.example\r\nBcc: you@evil.example"
    X = pd.DataFrame({column: np.random.default_rng(0).normal(size=500)})
    nbdeploy.save(LinearRegression().fit(X, X[column]), "odd", X, X[column], progress=False)
    routing.go_live("odd", "v1", "a test")
    signature = model_store.get("odd", "v1").signature
    with LogWriter("odd", signature.columns, outputs=signature.outputs, keep_every=None) as log:
        for value in np.random.default_rng(1).normal(9, 1, size=50):
            assert log.write([Entry("v1", new_request_id(), {signature.columns[0].name: [value]}, [value])])
    quoted = column.replace('"', '\\"')
    nbdeploy.alert("odd", f'drift("{quoted}")', to=mail.url)

    assert [one.delivered for one in look("odd").deliveries] == [True]

    (envelope,) = mail.got
    import email
    import email.policy

    message = email.message_from_bytes(envelope.content, policy=email.policy.default)
    text = message.get_content()
    assert envelope.rcpt_tos == ["me@mail.example"]
    assert message["Bcc"] is None
    assert message.get_content_type() == "text/plain"
    for told in (text, message["Subject"]):
        assert "FIRING" in message["Subject"]
        assert not re.search(r"[<>]b>|@everyone|javascript:|https://evil", told)
        assert "everyone" in told


def test_looks_at_the_same_time_tell_it_once(hook):
    nbdeploy.alert(SHOP, "error_rate > 2%", to=hook.url)
    counted(10, requests=10, errors=10)
    code = "import nbdeploy, sys; sys.stdin.read(); print(len(nbdeploy.alerts('shop').deliveries))"
    root = str(Path(nbdeploy.__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        for _ in range(2)
    ]

    told = [int(one.communicate(timeout=120)[0]) for one in running]

    assert (sorted(told), len(hook.got)) == ([0, 1], 1)


def test_a_target_in_the_environment_is_read_when_it_is_told(hook, monkeypatch):
    nbdeploy.alert(SHOP, "error_rate > 2%", to="env:SHOP_HOOK")
    counted(10, requests=10, errors=10)
    (first,) = look().deliveries
    assert (first.delivered, first.to) == (False, "env:SHOP_HOOK")
    assert first.why.startswith("the variable SHOP_HOOK is not set.")
    monkeypatch.setenv("SHOP_HOOK", "nonsense")
    assert "no kind of address" in look().deliveries[0].why

    monkeypatch.setenv("SHOP_HOOK", hook.url)
    assert [one.delivered for one in look().deliveries] == [True]
    assert len(hook.got) == 1


def test_a_target_that_comes_later_is_told_of_what_fires(hook):
    nbdeploy.alert(SHOP, "error_rate > 2%")
    counted(10, requests=10, errors=10)
    assert (look().exit_code, look().deliveries) == (1, ())
    nbdeploy.alert(SHOP, "1", to=hook.url)
    assert [one.delivered for one in look().deliveries] == [True]
    assert look().deliveries == ()


def test_a_rule_that_was_removed_is_not_told_any_more(hook):
    nbdeploy.alert(SHOP, "error_rate > 2%", to=hook.url)
    nbdeploy.alert(SHOP, "p99 > 1000")
    hook.status = 500
    counted(10, requests=10, errors=10)
    look()
    assert len(alerting.state(SHOP)) == 1
    nbdeploy.alert(SHOP, "1", off=True)
    hook.status = 200
    assert alerting.state(SHOP) == []
    assert (look().deliveries, hook.got) == ((), [])


def test_a_dry_run_tells_nobody_and_leaves_no_trace(hook, shop):
    nbdeploy.alert(SHOP, "error_rate > 2%", to=hook.url)
    counted(10, requests=10, errors=10)
    found = look(dry_run=True)
    assert (found.exit_code, found.dry_run, only(found).state) == (1, True, "firing")
    assert (hook.got, [path.name for path in (shop / "alerts" / SHOP).iterdir()]) == ([], ["rules.json"])
    assert "dry run: nobody was told" in repr(found)


def test_a_full_disk_is_told_though_it_cannot_be_noted(hook, monkeypatch):
    nbdeploy.alert(SHOP, "log.dropped > 0", to=hook.url)
    counted(10, requests=10, dropped=4)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(alert_store, "write_json", full)
        found = look()
    assert [one.delivered for one in found.deliveries] == [True]
    assert (
        "No space left on device, so it will be told again" in " ".join(found.trouble).replace(": No", " No")
        or found.trouble
    )
    assert len(hook.got) == 1
    assert [one.delivered for one in look().deliveries] == [True]
    assert look().deliveries == ()


def test_a_look_that_is_killed_before_it_tells_is_made_up_for(hook, monkeypatch):
    nbdeploy.alert(SHOP, "error_rate > 2%", to=hook.url)
    counted(10, requests=10, errors=10)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(alert_delivery, "send", killed)
        with pytest.raises(KeyboardInterrupt):
            look()
    (event,) = alerting.state(SHOP)
    assert [one.delivered for one in look().deliveries] == [True]
    assert f"event: {event.event}" in hook.got[0][2]
    assert (look().deliveries, len(hook.got)) == ((), 1)


def test_what_waits_is_bounded(monkeypatch, hook):
    monkeypatch.setattr(alert_store, "MAX_WAITING", 3)
    hook.status = 500
    nbdeploy.alert(SHOP, "error_rate > 2%", to=hook.url)
    for errors in (10, 0, 10, 0, 10):
        forget()
        counted(10, requests=10, errors=errors)
        found = look()
    assert any("were given up" in trouble for trouble in found.trouble)
    hook.status = 200
    look()
    assert [title.split(":")[0] for title in hook.titles] == ["FIRING", "RECOVERED", "FIRING"]


def test_all_deployments_that_have_rules_are_looked_at(shop, capsys):
    asked([(1.0, 2.0)], name=LATE)
    nbdeploy.alert(SHOP, "error_rate > 2%")
    nbdeploy.alert(LATE, "error_rate > 2%")
    counted(10, requests=10, errors=10, name=LATE)
    found = look(None)
    assert [(alert.name, alert.state) for alert in found.alerts] == [(LATE, "firing"), (SHOP, "no data")]

    (shop / "alerts" / LATE / "state.json").write_text("{")
    found = look(None)
    assert [alert.name for alert in found.alerts] == [SHOP]
    assert (found.exit_code, found.trouble[0].startswith("late: ")) == (3, True)


def test_an_address_is_never_shown_whole(hook, shop, capsys, caplog):
    caplog.set_level(1)
    dead = f"jsons://me:{CANARY}@127.0.0.1:9/{CANARY}?x={CANARY}"
    bad = [f"slack://{CANARY}", f"{CANARY}", f"mailto://{CANARY}", f"nope://{CANARY}", f"env:{CANARY}!", f"{CANARY}:x"]

    kept = nbdeploy.alert(
        SHOP, "error_rate > 2%", to=[hook.url, dead, f"tgram://123456789:{'a' * 20}{CANARY.replace('-', '_')}/77"]
    )
    counted(10, requests=10, errors=10)
    hook.status = 404
    found = look()
    said = [
        repr(kept),
        kept._repr_html_(),
        json.dumps(kept.to_dict()),
        repr(found),
        found._repr_html_(),
        json.dumps(found.to_dict()),
    ]
    for each in bad:
        assert __main__.main(["alert", SHOP, "p99 > 3", "--to", each]) == 1
        if "://" in each:
            assert __main__.main(["alert", SHOP, "p99 > 3", each]) == 2  # --to is missing
    assert __main__.main(["alert", SHOP]) == 0
    assert __main__.main(["alerts", SHOP]) == 1
    captured = capsys.readouterr()
    said += [captured.out, captured.err, caplog.text, str(nbdeploy.status()), repr(nbdeploy.history(SHOP))]

    assert not [text for text in said if CANARY in text or CANARY.replace("-", "_") in text]
    assert "json://127.0.0.1" in said[0]
    assert "tgram://…" in said[0]
    holders = [path for path in shop.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert holders == [shop / "alerts" / SHOP / "rules.json"]
    assert stat.S_IMODE(holders[0].stat().st_mode) == 0o600
    assert logging.getLogger("urllib3").propagate


# Who shows it


def test_the_panel_and_status_show_what_fires():
    name = "drift('<img src=x onerror=alert(1)>')"
    assert nbdeploy.status(SHOP).loc[SHOP, "alerts"] == ""
    nbdeploy.alert(SHOP, "error_rate > 2%")
    assert nbdeploy.status(SHOP).loc[SHOP, "alerts"] == "1 rule, not looked at yet"
    look()
    assert nbdeploy.status(SHOP).loc[SHOP, "alerts"].startswith("none of 1 rule fires (as of 20")
    counted(10, requests=10, errors=10)
    look()

    panel = nbdeploy.panel(SHOP)
    try:
        for text in (panel.snapshot().text(), nbdeploy.panel().snapshot().text()):
            assert "1 alert firing: error_rate > 2% over 1h (as of 20" in text
        assert "1 alert firing: error_rate &gt; 2% over 1h" in panel.snapshot().markup()
        assert '<span class="nbdeploy-firing" role="status">' in panel._list.value
    finally:
        panel.close()
    hostile = facts_list(Facts("x", alerts=f"1 alert firing: {name}"))
    assert "<img" not in hostile
    assert "nbdeploy-firing" in hostile


def test_the_result_in_a_notebook_is_escaped():
    from nbdeploy.alert_result import Alert, Alerts, Delivery

    hostile = "<script>alert(1)</script>\u202e"
    found = Alerts(
        (Alert("n", hostile, "firing", hostile, hostile, hostile),), (Delivery("n", hostile, hostile, hostile, False, hostile),), (hostile,)
    )  # fmt: skip
    shown = found._repr_html_()
    assert "<script" not in shown
    assert "\u202e" not in shown + repr(found)
    assert 'class="firing"' in shown

"""Rules that a deployment is watched by: which are kept, when they fire, and who shows it."""

from __future__ import annotations

import json
import re
import shutil
import stat

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import LinearRegression

import nbdeploy
from nbdeploy import __main__, alert_measures, alert_store, home, routing
from nbdeploy.alert_result import Alert, Alerts, Delivery
from nbdeploy.alert_rules import parse
from nbdeploy.errors import AlertError, NotFound
from nbdeploy.panel_static import Facts, facts_list
from services import own_home
from watched import SHOP, asked, counted, forget, look, only


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
    hostile = "<script>alert(1)</script>\u202e"
    found = Alerts(
        (Alert("n", hostile, "firing", hostile, hostile, hostile),), (Delivery("n", hostile, hostile, hostile, False, hostile),), (hostile,)
    )  # fmt: skip
    shown = found._repr_html_()
    assert "<script" not in shown
    assert "\u202e" not in shown + repr(found)
    assert 'class="firing"' in shown

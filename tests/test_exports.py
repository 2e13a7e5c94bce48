"""What is exported is what the other tools take, by their own word: promtool's, and Grafana's own classes."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from sklearn.linear_model import LinearRegression

import nbdeploy
from nbdeploy import __main__, exports_prometheus, version_numbers
from nbdeploy.alert_rules import parse
from nbdeploy.errors import InputError
from services import own_home

NAME = "shop"
PROMTOOL = shutil.which("promtool") or shutil.which("promtool", path=str(Path(sys.executable).parent))
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not there: make promtool, or the package prometheus"
)

X = pd.DataFrame({"a": [float(n % 7) for n in range(200)], "<b>: #": [float(n % 5) for n in range(200)]})
TOLD = [
    "error_rate > 2%", "refused_rate >= 10% over 30m for 3 windows", "p99 > 200 over 10m", "p50 < 1ms of v1",
    "requests < 1 over 2h", "requests > 1000 of v1", "log.dropped > 0 of v1 over 1d",
]  # fmt: skip
UNTOLD = ["drift.share > 0.3", "drift('<b>: #') for 2 windows", "quality < 1", "log.unreadable > 0"]


@pytest.fixture(scope="module")
def _saved():
    with own_home() as place:
        nbdeploy.save(LinearRegression().fit(X, X["a"]), NAME, X, X["a"], progress=False)
        yield place


@pytest.fixture
def shop(_saved, monkeypatch, tmp_path):
    shutil.copytree(_saved, tmp_path / "home")
    monkeypatch.setenv("NBDEPLOY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BENTOML_HOME", str(_saved.parent / "bentoml"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rules(shop):
    for rule in [*TOLD, *UNTOLD]:
        nbdeploy.alert(NAME, rule)
    return nbdeploy.export(NAME, "prometheus", "out/").files[0]


def promtool(*words):
    done = subprocess.run([PROMTOOL, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Where it goes


def test_a_file_is_written_once(shop, capsys):
    nbdeploy.alert(NAME, "error_rate > 2%")
    made = nbdeploy.export(NAME, "prometheus", "out")
    assert made.files == (shop / "out" / "shop.rules.yml",)
    assert stat.S_IMODE(made.files[0].stat().st_mode) == 0o600
    assert nbdeploy.export(NAME, "prometheus", "mine.yaml").files == (shop / "mine.yaml",)
    assert nbdeploy.export(NAME, "grafana").files == (shop / "shop.dashboard.json",)
    before = made.files[0].read_text()

    assert __main__.main(["export", NAME, "prometheus", "out"]) == 1
    assert "is there already. Choose another place, or overwrite it: --overwrite." in capsys.readouterr().err
    nbdeploy.alert(NAME, "p99 > 3")
    assert __main__.main(["--json", "export", NAME, "prometheus", "out", "--overwrite"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == [str(made.files[0])]
    assert made.files[0].read_text() != before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["prometeus"], "'prometeus' is nothing that a deployment is exported to. Did you mean 'prometheus'?"),
        (["prometheus"], "'shop' has no rules of alerts to export. Set one: nbdeploy alert shop"),
        (["grafana", "/proc/x/y"], "cannot be"),
    ],
)
def test_what_cannot_be_exported_says_so(shop, words, says, capsys):
    assert __main__.main(["export", NAME, *words]) == 1
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


# Prometheus


def test_rules_that_metrics_cannot_tell_are_named_and_left_out(shop, rules):
    text = rules.read_text()
    held = yaml.safe_load(text)["groups"][0]["rules"]
    assert [rule["labels"]["rule"] for rule in held] == [parse(rule).text for rule in TOLD]
    for rule in UNTOLD:
        assert f"# not exported, for Prometheus does not see it: {parse(rule).text}\n" in text
    again = nbdeploy.export(NAME, "prometheus", "again")
    assert len(again.notes) == len(UNTOLD) + 1
    assert parse(UNTOLD[1]).text in repr(again)
    assert "<b>" not in again._repr_html_()

    for number in range(len(TOLD), 0, -1):
        nbdeploy.alert(NAME, str(number), off=True)
    with pytest.raises(InputError, match="Prometheus can judge none of the rules of 'shop'"):
        nbdeploy.export(NAME, "prometheus", "none")


@needs_promtool
def test_promtool_takes_the_rules(rules):
    assert f"{len(TOLD)} rules found" in promtool("check", "rules", rules)


REQUESTS = 'nbdeploy_requests_total{job="j",instance="%s",version="%s",route="%s",status="%s"}'
BUCKET = 'nbdeploy_request_seconds_bucket{job="j",instance="a",version="v1",route="/predict",le="%s"}'
INFO = 'nbdeploy_info{job="j",instance="%s",version="v1",name="%s"}'


@needs_promtool
def test_the_rules_fire_in_prometheus_when_they_do_here(rules, tmp_path):
    def series(**values):
        return [{"series": name, "values": told} for name, told in values.items()]

    # Ten requests a minute for an hour, of which one is an error and two are refused; then none.
    busy = {
        INFO % ("a", NAME): "1x240",
        REQUESTS % ("a", "v1", "/predict", "200"): "0+7x60 420x180",
        REQUESTS % ("a", "v1", "/predict", "500"): "0+1x60 60x180",
        REQUESTS % ("a", "v1", "/predict", "422"): "0+2x60 120x180",
        REQUESTS % ("a", "v1", "/metrics", "500"): "0+500x240",  # is no request for a prediction
        BUCKET % "0.1": "0+5x60 300x180",
        BUCKET % "0.5": "0+10x60 600x180",
        BUCKET % "+Inf": "0+10x60 600x180",
        'nbdeploy_request_seconds_count{job="j",instance="a",version="v1",route="/predict"}': "0+10x60 600x180",
        'nbdeploy_log_drops_total{job="j",instance="a",version="v1"}': "0x30 4x210",
        # Of another deployment, which is in much worse state.
        INFO % ("b", "other"): "1x240",
        REQUESTS % ("b", "v1", "/predict", "500"): "0+10x240",
    }
    calm = {INFO % ("a", NAME): "1x240", REQUESTS % ("a", "v1", "/predict", "200"): "0+3x240"}
    fresh = {INFO % ("a", NAME): "1x240"}  # nobody has asked it anything
    gone = {INFO % ("a", NAME): "1x10 stale"}

    def fire(*rules):
        return [{"labels": f'{{rule="{rule}"}}', "value": 1} for rule in rules]

    def at(when, *rules):
        return {"eval_time": when, "expr": 'sum by (rule) (ALERTS{alertstate="firing"})', "exp_samples": fire(*rules)}

    error, refused, p99, _, nobody, _, dropped = (parse(rule).text for rule in TOLD)
    tests = [
        (busy, [at("20m", error, p99), at("65m", error, refused, dropped), at("4h", nobody, dropped)]),
        (calm, [at("4h")]),
        (fresh, [at("3h", nobody)]),
        (gone, [at("4h", nobody)]),
    ]
    page = {
        "rule_files": [str(rules)],
        "evaluation_interval": "1m",
        "tests": [
            {"interval": "1m", "input_series": series(**values), "promql_expr_test": expected}
            for values, expected in tests
        ],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(page))

    assert "SUCCESS" in promtool("test", "rules", tmp_path / "test.yml")


@needs_promtool
def test_texts_are_data_in_every_language(shop, tmp_path):
    for hostile in ('a"} or vector(1) or x{y="', "{{ $labels }}", "\\", "日本\n- alert: x", "'"):
        rule = parse("error_rate > 2% of v1")
        one = exports_prometheus._alerting(hostile, rule)
        path = tmp_path / "hostile.yml"
        path.write_text(yaml.safe_dump({"groups": [{"name": hostile, "rules": [one]}]}, allow_unicode=True))
        assert "1 rules found" in promtool("check", "rules", path)
        assert yaml.safe_load(path.read_text())["groups"][0]["rules"][0]["labels"]["deployment"] == hostile
        assert f"name={json.dumps(hostile)}" in one["expr"]


def test_the_routes_are_those_whose_requests_count():
    routes = ["/predict", "/invocations", "/bentoml/predict", "/v1/models/x:predict", "/v2/models/x/infer", "/labels", "/metrics",
              "/", "/explain", "other", "/signature"]  # fmt: skip
    pattern = re.compile(exports_prometheus.ROUTES)
    assert [bool(pattern.fullmatch(route)) for route in routes] == [version_numbers.predicts(route) for route in routes]


# Grafana


def queries(dashboard):
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_grafanas_own_classes_read_the_dashboard_whole(shop):
    pytest.importorskip("grafana_foundation_sdk", reason="needs Python 3.11")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    nbdeploy.alert(NAME, "p99 > 200")
    nbdeploy.alert(NAME, "error_rate > 2%")
    text = nbdeploy.export(NAME, "grafana").files[0].read_text()

    held = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(json.loads(text))))

    assert lacking(json.loads(text), held) == []  # what they do not know they drop
    dashboard = json.loads(text)
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    limits = {
        panel["title"]: panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1:] for panel in dashboard["panels"]
    }
    assert limits["Time to answer"] == [{"value": 0.2, "color": "red"}]
    assert limits["Errors"] == [{"value": 0.02, "color": "red"}]
    assert limits["Rows"] == []
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "instance", "version"}


def lacking(ours, theirs, where=""):
    """The places of `ours` that are not in `theirs`."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [each for key in ours for each in lacking(ours[key], theirs.get(key), f"{where}.{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [
            each
            for n, (one, other) in enumerate(zip(ours, theirs, strict=True))
            for each in lacking(one, other, f"{where}[{n}]")
        ]
    return [] if ours == theirs else [f"{where}: {ours!r:.60} became {theirs!r:.60}"]


@needs_promtool
def test_every_query_of_the_dashboard_parses(shop, tmp_path):
    dashboard = json.loads(nbdeploy.export(NAME, "grafana").files[0].read_text())
    found = [
        re.sub(r"\$__rate_interval", "5m", query).replace("$instance", ".*").replace("$version", ".*")
        for query in queries(dashboard)
    ]
    rules = [{"record": f"x:{number}", "expr": query} for number, query in enumerate(found)]
    (tmp_path / "x.yml").write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": rules}]}))

    assert f"{len(rules)} rules found" in promtool("check", "rules", tmp_path / "x.yml")
    assert not [query for query in found if "$" in query]

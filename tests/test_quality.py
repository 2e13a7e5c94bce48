"""Live quality is what labels prove, by the time of the prediction, and never more than that."""

from __future__ import annotations

import hashlib
import html
import json
import re
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

import nbdeploy
from nbdeploy import __main__, label_log, plot, prediction_log, routing
from nbdeploy.answer_metrics import METRICS
from nbdeploy.answers import Output
from nbdeploy.errors import NotFound, QualityError
from nbdeploy.live_quality_result import COLUMNS
from nbdeploy.live_quality_scores import changed, scored
from nbdeploy.prediction_log import Entry, LogWriter
from nbdeploy.release_statistics import proportion
from services import own_home, running

NAME = "shop"
START = pd.Timestamp("2026-07-06", tz="UTC")  # a Monday
EVIL = '</td><script>alert(1)</script>"><img src=x onerror=alert(2)>'


def chance(a, slope=2.0):
    return 1 / (1 + np.exp(-slope * np.asarray(a)))


@pytest.fixture(scope="module")
def _shop():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.normal(size=3_000), "time": rng.normal(size=3_000)})
    y = pd.Series(rng.random(3_000) < chance(X["a"]), name="late")
    with own_home() as home:
        model = LogisticRegression().fit(X, y)
        for _ in range(2):
            nbdeploy.save(model, NAME, X, y, progress=False)
        routing.go_live(NAME, "v1", "test")
        yield home, model


@pytest.fixture
def shop(_shop, monkeypatch, tmp_path):
    home, model = _shop
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.setenv("NBDEPLOY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BENTOML_HOME", str(home.parent / "bentoml"))
    return Shop(model)


class Shop:
    """A deployment without a service: what it was asked, and what turned out to be true."""

    def __init__(self, model):
        self._model, self._rng = model, np.random.default_rng(1)

    def ask(self, day, rows=200, version="v1", *, slope=2.0, proba=False, labelled=1.0, hour=12, name=NAME):
        """Rows of one day; the truth follows the inputs less, the smaller `slope` is. The model thinks that it is 2."""
        signature = nbdeploy.versions(NAME)[0].signature
        a = self._rng.normal(size=rows)
        X = pd.DataFrame({"a": a, "time": a})
        said = self._model.predict(X)
        truth = self._rng.random(rows) < chance(a, slope)
        request = prediction_log.new_request_id()
        when = (START + pd.Timedelta(days=day, hours=hour)).timestamp()
        writer = LogWriter(name, signature.columns, outputs=signature.outputs, keep_every=None)
        chances = self._model.predict_proba(X).tolist() if proba else None
        assert writer.write([Entry(version, request, X.to_dict("list"), said.tolist(), chances, time=when)])
        writer.close()
        known = {f"{request}-{k}": bool(truth[k]) for k in range(rows) if self._rng.random() < labelled}
        if known:
            label_log.add(name, known)
        return said, truth


def log_numbers(name, days, off, rows=120, seed=0, *, values=None, labels=None, versions=("v1",)):
    """A deployment of which only the log is there."""
    rng = np.random.default_rng(seed)
    writer = LogWriter(name, (), outputs=(Output("", "float64"),), keep_every=None)
    for day, each in zip(days, off, strict=True):
        for version in versions:
            truth = rng.gamma(2, 10, rows)
            said = (truth + rng.normal(0, each, rows)).tolist() if values is None else values
            request = prediction_log.new_request_id()
            when = (START + pd.Timedelta(days=day)).timestamp()
            writer.write([Entry(version, request, {"a": [1.0] * len(said)}, said, time=when)])
            told = truth.tolist() if labels is None else labels
            label_log.add(name, dict(zip(prediction_log.prediction_ids(request, len(told)), told, strict=True)))
    writer.close()


def evidence(version, checks, *, data="", gate="validate.ipynb", minutes=0):
    """What a gate has found, as it is kept."""
    digest = next(each.digest for each in nbdeploy.versions(NAME) if each.version == version)
    folder = nbdeploy.home.folder("gates", NAME, digest[:16])
    notebook = folder / f"{minutes}.ipynb"
    notebook.write_bytes(b"{}")
    told = {
        "deployment": NAME, "digest": digest, "gate": gate, "gate_digest": "0" * 64, "reason": "", "passed": True,
        "started": f"2026-07-01T00:{minutes:02d}:00+00:00", "parameters": {"data": data},
        "notebook_digest": hashlib.sha256(b"{}").hexdigest(),
        "checks": [{"name": name, "value": value, "at_least": None if value is True else -1e9, "at_most": None} for name, value in checks.items()],
    }  # fmt: skip
    (folder / f"{minutes}.json").write_text(json.dumps(told))


# What is measured


def test_a_prediction_counts_when_it_was_made_whenever_its_label_came(shop):
    said, truth = zip(*(shop.ask(day) for day in (0, 1, 3)), strict=True)
    made = nbdeploy.quality(NAME)

    assert list(made.windows.columns) == list(COLUMNS)
    assert made.windows["start"].tolist() == [START + pd.Timedelta(days=day) for day in (0, 1, 3)]
    assert (made.windows["end"] - made.windows["start"]).eq(pd.Timedelta("1D")).all()
    for row, answers, true in zip(made.windows.itertuples(), said, truth, strict=True):
        wilson = proportion(int((answers == true).sum()), 200)
        assert (row.value, row.low, row.high) == (wilson.estimate, wilson.low, wilson.high)
    assert made.windows[["labelled", "rows"]].to_numpy().tolist() == [[200, 200]] * 3
    assert not made.estimated


def test_late_and_partial_labels_make_windows_surer_as_they_come(shop):
    shop.ask(0, labelled=0.1)
    shop.ask(1)
    first, second = nbdeploy.quality(NAME).windows.itertuples()
    assert first.labelled < 40
    assert first.high - first.low > 2 * (second.high - second.low)


def test_versions_are_measured_apart_and_have_their_colours(shop):
    for day in range(4):
        shop.ask(day, version="v1")
        shop.ask(day, 60, version="v2", slope=0.0)
    nbdeploy.traffic(NAME, v1=90, v2=10, progress=False)
    made = nbdeploy.quality(NAME)

    assert made.windows["version"].tolist() == ["v1", "v2"] * 4
    assert made.windows.groupby("version")["value"].mean()["v1"] > 0.7
    assert re.search(r"; v2 has [\d.]+ % on 240\.$", made.sentence)
    assert plot.colour("v1") in made.plot
    assert plot.colour("v2") in made.plot
    assert {*nbdeploy.quality(NAME, version="v2").windows["version"]} == {"v2"}


def test_windows_begin_at_multiples_and_weeks_on_mondays(shop):
    for day, hour in ((0, 1), (0, 7), (2, 23), (8, 0)):
        shop.ask(day, 40, hour=hour)
    assert nbdeploy.quality(NAME, every="1w").windows["start"].tolist() == [START, START + pd.Timedelta("7D")]
    hours = nbdeploy.quality(NAME, every=pd.Timedelta("6h"), until=START + pd.Timedelta("1D"))
    assert hours.windows["start"].tolist() == [START, START + pd.Timedelta("6h")]
    assert hours.every == "6h"


def test_a_window_of_the_log_is_all_that_is_read(shop, monkeypatch):
    for day in range(3):
        shop.ask(day)
    prediction_log.seal(NAME)
    asked, seen = [], []
    real = prediction_log.scan

    def scan(name, **options):
        asked.append(options)
        for rows in real(name, **options):
            seen.append((rows.table.num_rows, rows.table.column_names))
            yield rows

    monkeypatch.setattr(prediction_log, "scan", scan)
    nbdeploy.quality(NAME, "f1", since=START + pd.Timedelta("1D"), until=START + pd.Timedelta("2D"))
    assert asked[-1]["columns"] == ()
    assert seen == [(200, ["prediction", "prediction_id", "version", "time_"])]


def test_errors_of_numbers_are_measured_too():
    log_numbers("taxi", range(8), [4.0] * 4 + [8.0] * 4)
    made = nbdeploy.quality("taxi")
    assert (made.metric, made.version) == ("mae", "v1")
    assert re.match(
        r"mean absolute error of v1 rose from 3\.\d+ to 6\.\d+ since 10 July 2026, which is worse \(95 % sure that it is now "
        r"between", made.sentence,
    )  # fmt: skip
    assert nbdeploy.quality("taxi", "r2").windows["value"].between(-1, 1).all()
    with pytest.raises(QualityError, match="accuracy is a metric for classification, and this model does regression"):
        nbdeploy.quality("taxi", "accuracy")


# How sure that is


@pytest.mark.parametrize("name", METRICS)
def test_an_interval_holds_the_truth_as_often_as_it_says(name):
    metric, rng = METRICS[name], np.random.default_rng(0)

    def sample(rows):
        if metric.task == "regression":
            truth = rng.gamma(2, 10, rows)
            return truth, truth + rng.standard_t(6, rows) * 5
        truth = rng.choice(3, rows, p=[0.6, 0.3, 0.1])
        if name == "auc":
            return truth > 0, (truth > 0) + rng.normal(0, 1, rows)
        return truth, np.where(rng.random(rows) < 0.75, truth, rng.integers(0, 3, rows))

    true = metric.score(*sample(400_000))
    held = [scored(metric, *sample(250)) for _ in range(300)]
    assert 0.91 <= np.mean([each.low <= true <= each.high for each in held]) <= 0.985


def test_few_labels_have_no_interval_or_a_wide_one():
    ones = np.ones(4, dtype=int)
    assert scored(METRICS["accuracy"], ones, ones).low < 0.6
    assert np.isnan(scored(METRICS["f1"], ones, ones).low)
    assert np.isnan(scored(METRICS["auc"], ones > 0, ones * 0.5).estimate)
    right = np.arange(40) % 2
    assert scored(METRICS["balanced_accuracy"], right, right).low < 0.99  # no rows that are right prove that all are


@pytest.mark.parametrize("uneven", [0.0, 0.08])
def test_what_has_not_changed_is_seldom_said_to(uneven):
    rng, said = np.random.default_rng(0), 0
    for _ in range(200):
        windows = []
        for _ in range(20):
            right = rng.random(60) < 0.75 + rng.normal(0, uneven)
            windows.append((right.astype(int), np.ones(60, dtype=int)))
        said += changed(METRICS["accuracy"], windows) is not None
    assert said <= 16  # 5 % and what chance adds


def test_a_fall_is_told_with_its_day(shop):
    for day in range(12):
        shop.ask(day, 300, slope=2.0 if day < 7 else 0.4)
    made = nbdeploy.quality(NAME)
    assert re.fullmatch(
        r"accuracy of v1 fell from 7\d\.\d % to 5\d\.\d % since 13 July 2026 \(95 % sure that it is now between [\d.]+ % "
        r"and [\d.]+ %, on 1,500 labelled predictions since then\)\.", made.sentence,
    )  # fmt: skip
    assert re.match(r"accuracy of v1 is 7\d\.\d % \(95 % sure", nbdeploy.quality(NAME, until="2026-07-13").sentence)


# What the gate had measured


def test_it_is_compared_with_what_the_gate_measured(shop):
    evidence("v1", {"accuracy": 0.5}, minutes=1)
    evidence("v1", {"accuracy": 0.9, "schema": True, "calibration error": 0.01}, data="x.parquet", minutes=2)
    evidence("v1", {"mine": 0.1}, gate="mine.ipynb", minutes=3)
    for day in range(4):
        shop.ask(day)
    made = nbdeploy.quality(NAME)

    assert made.gate == {"v1": 0.9}
    assert made.sentence.endswith("; its gate had measured 90.0 %, which is surely more.")
    assert "gate of v1: 90.0 %" in made.plot
    evidence("v1", {"accuracy": 0.99}, minutes=4)
    assert nbdeploy.quality(NAME).sentence.endswith(
        "; its gate had measured 99.0 % on rows that it was fitted on, which flatters, which is surely more."
    )


def test_the_metric_is_that_of_the_gate_if_nobody_says_another(shop):
    evidence("v1", {"f1_macro": 0.7, "roc_auc": 0.8}, data="x.parquet")
    shop.ask(0)
    made = nbdeploy.quality(NAME)
    assert (made.metric, made.gate) == ("f1", {"v1": 0.7})
    assert nbdeploy.quality(NAME, "accuracy").gate == {}


# Without labels


def test_honest_probabilities_estimate_what_is_not_labelled_yet(shop):
    for day in range(3):
        shop.ask(day, 400, proba=True)
    said, truth = shop.ask(3, 400, proba=True, labelled=0)
    made = nbdeploy.quality(NAME)

    assert made.windows["estimated"].tolist() == [False, False, False, True]
    last = made.windows.iloc[-1]
    assert last["low"] <= (said == truth).mean() <= last["high"]
    assert (last["labelled"], last["rows"]) == (0, 400)
    assert re.search(
        r"; its accuracy is estimated at [\d.]+ % in 1 window without labels, from its own probabilities \(checked on "
        r"1,200 labelled predictions\)\.$", made.sentence,
    )  # fmt: skip
    assert "v1, estimated" in made.plot
    assert "stroke-dasharray" in made.plot
    assert repr(made).splitlines()[-1].endswith("estimated")
    # Labels from before the window say the same of it.
    late = nbdeploy.quality(NAME, since=START + pd.Timedelta("3D"))
    assert late.windows["value"].tolist() == [last["value"]]
    assert "checked on 1,200 labelled predictions" in late.sentence


def test_probabilities_that_turned_out_wrong_estimate_nothing(shop):
    for day in range(3):
        shop.ask(day, 400, proba=True, slope=0.2)
    shop.ask(3, 400, proba=True, labelled=0)
    assert not nbdeploy.quality(NAME).estimated
    with pytest.raises(
        QualityError,
        match=r"shop:v1 has no label in this time, and nothing can be estimated: its probabilities are off by [\d.]+ % on "
        r"average on 1,200 labelled predictions, more than 5\.0 %\. Say what turned out to be true",
    ):
        nbdeploy.quality(NAME, since=START + pd.Timedelta("3D"))


def test_a_few_labels_speak_against_probabilities_but_not_for_them(shop):
    shop.ask(0, 120, proba=True, slope=-2.0)
    shop.ask(1, 400, proba=True, labelled=0)
    assert not nbdeploy.quality(NAME).estimated


def test_without_any_label_it_says_how_probabilities_were_checked(shop):
    shop.ask(0, 400, proba=True, labelled=0)
    assert "(checked on rows that it was fitted on, which flatters)" in nbdeploy.quality(NAME).sentence
    evidence("v1", {"calibration error": 0.02}, data="x.parquet")
    assert "(checked on the rows of its gate)" in nbdeploy.quality(NAME).sentence
    evidence("v1", {"calibration error": 0.2}, data="x.parquet", minutes=1)
    with pytest.raises(QualityError, match=r"off by 20\.0 % on average on the rows of its gate"):
        nbdeploy.quality(NAME)


def test_probabilities_of_a_few_rows_estimate_nothing(shop):
    shop.ask(0, 400, labelled=0)
    with pytest.raises(QualityError, match=r"nobody has asked it for probabilities \(proba=True\)"):
        nbdeploy.quality(NAME)
    shop.ask(0, 100, proba=True, labelled=0)
    with pytest.raises(QualityError, match="too few rows of it have probabilities"):
        nbdeploy.quality(NAME)
    with pytest.raises(QualityError, match="only the accuracy of classifiers can be estimated"):
        nbdeploy.quality(NAME, "f1")


def test_numbers_are_not_estimated():
    log_numbers("taxi", [0], [4.0], labels=[])
    with pytest.raises(QualityError, match="taxi:v1 has no label in this time, and nothing can be estimated: only the"):
        nbdeploy.quality("taxi")


# What cannot be measured is one line


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"metric": "mae"}, "mae is a metric for regression, and this model does classification"),
        ({"metric": "acuracy"}, r"'acuracy' is no metric\. Did you mean 'accuracy'\?"),
        ({"metric": EVIL}, "is no metric"),
        ({"metric": "auc"}, "shop:v1 has no labelled prediction with probabilities in this time"),
        ({"every": "daily"}, r"every='daily' is no duration\. Say 1h, 6h, 1d or 1w\."),
        ({"every": 5}, "every=5 is no duration"),
        ({"every": "0d"}, "every='0d' is no duration"),
        ({"every": "1s"}, r"every=1s gives 86,401 windows or more for shop, and 1,000 are the most"),
        ({"since": "2027-01-01"}, "shop has answered no request since 2027-01-01 00:00"),
        ({"version": "v2", "until": "2026-08-01"}, "shop:v2 has answered no request until 2026-08-01 00:00"),
        ({"since": "yesterdayish"}, "'yesterdayish' is not a time"),
    ],
)
def test_what_cannot_be_measured_is_one_line(shop, options, told):
    for day in (0, 1):
        shop.ask(day, 40)
    with pytest.raises(nbdeploy.NbdeployError, match=told) as refused:
        nbdeploy.quality(NAME, **options)
    assert "\n" not in str(refused.value)


def test_unknown_names_are_not_found(shop):
    shop.ask(0, 40)
    with pytest.raises(NotFound, match="shopp"):
        nbdeploy.quality("shopp")
    with pytest.raises(NotFound, match=r"'shop' has no version 'v9'"):
        nbdeploy.quality(NAME, version="v9")


def test_labels_of_something_else_are_refused(shop):
    shop.ask(0, 40, labelled=0)
    ids = nbdeploy.predictions(NAME)["prediction_id"]
    nbdeploy.label(NAME, dict.fromkeys(ids, EVIL))
    with pytest.raises(
        QualityError, match="no label of shop is one of its answers: its labels are like '</td><script>"
    ):
        nbdeploy.quality(NAME)
    log_numbers("taxi", [0], [1.0], labels=["late"] * 120)
    with pytest.raises(QualityError, match="mae needs numbers, and taxi has labels like 'late'"):
        nbdeploy.quality("taxi")
    log_numbers("several", [0], [1.0], values=[[1.0, 2.0]] * 9, labels=[1.0] * 9)
    with pytest.raises(QualityError, match="the quality of several cannot be measured: an answer of it is no single"):
        nbdeploy.quality("several")


# How it reads


def test_its_page_is_small_whole_and_shows_markup_as_text(monkeypatch):
    values = [EVIL, "fine"] * 30
    for version in ("v1", EVIL):
        log_numbers("shop", range(300), [1.0] * 300, values=values, labels=values[::-1], versions=[version])
    made = nbdeploy.quality("shop")
    page = made._repr_html_()

    assert len(page.encode()) < 60_000
    assert not re.search(r"<(script|img)", page)
    assert {element.tag.rpartition("}")[2] for element in ET.fromstring(made.plot).iter()} <= {
        "svg", "text", "title", "line", "polyline", "polygon", "circle", "g",
    }  # fmt: skip
    assert html.escape(made.sentence) in page
    assert repr(made).splitlines()[0] == made.sentence
    assert len(repr(made).splitlines()) == 17
    told = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert len(told["windows"]) == 600
    assert (told["metric"], told["estimated"], told["sentence"]) == ("accuracy", False, made.sentence)


def test_what_happened_to_the_traffic_is_marked(shop):
    now = pd.Timestamp.now("UTC")
    for day in range((now - START).days - 1, (now - START).days + 2):
        shop.ask(day, 60)
    nbdeploy.traffic(NAME, v1=90, v2=10, progress=False)
    assert "traffic v1 90 %, v2 10 %" in nbdeploy.quality(NAME).plot


def test_the_verb_measures_and_tells_json(shop, capsys):
    shop.ask(0)
    shop.ask(0, version="v2")
    assert __main__.main(["--json", "quality", NAME, "v2", "--metric", "f1", "--every", "1w"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(row["version"], row["metric"], row["labelled"]) for row in told["windows"]] == [("v2", "f1", 200)]
    assert __main__.main(["quality", NAME, "--every", "never"]) == 1
    assert "every='never' is no duration" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_service_is_measured_against_its_real_gate(flight_model, sample_flights):
    X, y = sample_flights(1)
    later, late = sample_flights(7)
    with running(flight_model, "flight-delay", X, y) as (_service, _home):
        assert nbdeploy.validate("flight-delay", progress=False).passed
        given = nbdeploy.predict("flight-delay", later.head(2_000), proba=True)
        nbdeploy.label("flight-delay", pd.Series(late.head(2_000).to_numpy(), index=given["prediction_id"]))
        made = nbdeploy.quality("flight-delay")
    right = (given["prediction"].to_numpy() == late.head(2_000).to_numpy()).mean()
    assert made.windows["value"].tolist() == [pytest.approx(right)]
    assert 0.5 < made.gate["v1"] <= 1
    assert "its gate had measured" in made.sentence

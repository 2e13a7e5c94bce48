"""A comparison says what the log proves of two versions, in words, and no more than that."""

from __future__ import annotations

import html
import json
import re
import time
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LinearRegression

import nbdeploy
from nbdeploy import label_log, model_store, plot, prediction_log, routing
from nbdeploy.comparison import Answers, of
from nbdeploy.errors import CompareError, NotFound
from nbdeploy.prediction_log import Entry, LogWriter
from nbdeploy.version_numbers import VersionNumbers
from services import running

NAME = "flight-delay"
START = pd.Timestamp("2026-11-01").value
VOID = {"circle", "line", "polygon", "polyline", "rect", "img", "br"}


def classes(version, rows, right, *, labelled=1.0, seed=0, truth=None, **more):
    rng = np.random.default_rng(seed)
    truth = rng.random(rows) < 0.25 if truth is None else truth
    said = np.where(rng.random(rows) < right, truth, ~truth)
    return answers(version, said.tolist(), truth.tolist(), rng, labelled, **more)


def numbers(version, rows, off, *, labelled=1.0, seed=0, truth=None, **more):
    rng = np.random.default_rng(seed)
    truth = rng.gamma(2, 10, rows) if truth is None else truth
    return answers(version, (truth + rng.normal(0, off, rows)).tolist(), truth.tolist(), rng, labelled, **more)


def answers(version, said, truth, rng, labelled=1.0, *, ids=None, carrier="AA", counted=None, scores=None):
    rows = len(said)
    labels = [label if rng.random() < labelled else None for label in truth]
    times = np.sort(START + rng.integers(0, 10**15, rows)).astype("datetime64[ns]")
    frame = pd.DataFrame({"carrier": [carrier] * rows, "distance": rng.normal(size=rows)})
    return Answers(
        version, frame, said, ids or [f"{version}{row}-0" for row in range(rows)], times, labels, scores, counted
    )


def canary(live, candidate, task="classification", **more):
    return of(NAME, live, candidate, shadow=False, task=task, **more)


def shadow(live, candidate, task="classification", **more):
    return of(NAME, live, candidate, shadow=True, task=task, **more)


def counted(version, requests, errors=0, slow=0):
    return VersionNumbers(version, requests, errors, 0, requests, (0.01, 0.1), (requests - slow, slow, 0))


class Strict(HTMLParser):
    """Every element that is opened is closed; which there are."""

    def __init__(self, text):
        super().__init__()
        self.seen, self.open = set(), []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        assert not any(name.startswith("on") or (value or "").startswith("javascript") for name, value in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


# What the labels say


def test_a_better_canary_can_be_promoted():
    made = canary(classes("v1", 6_000, 0.8), classes("v2", 1_500, 0.88, seed=1))

    found = re.fullmatch(
        r"v2 is right (.+) points more often than v1 \(95 % sure between (.+) and (.+)\) on 7,500 labelled predictions; "
        r"it can be promoted on that account\.", made.sentence,
    )  # fmt: skip
    estimate, low, high = map(float, found.groups())
    assert 0 < low < estimate < high
    assert estimate == pytest.approx(100 * made.difference.sequential.estimate, abs=0.1)
    assert low == pytest.approx(100 * made.difference.sequential.low, abs=0.1)
    assert made.verdict == "better"
    row = made.table.loc["accuracy"]
    assert (row["v1"], row["v2"]) == pytest.approx((0.8, 0.88), abs=0.03)
    assert row["low"] < row["difference"] < row["high"]
    assert made.table.loc["accuracy, at every look", "low"] < row["low"]


def test_a_worse_canary_should_not():
    made = canary(classes("v1", 6_000, 0.88), classes("v2", 1_500, 0.8, seed=1))
    assert re.match(r"v2 is right .+ points less often than v1 \(95 % sure between", made.sentence)
    assert made.sentence.endswith("it should not be promoted on that account.")
    assert made.verdict == "worse"


def test_versions_that_are_alike_are_not_told_apart():
    made = canary(classes("v1", 3_000, 0.8), classes("v2", 600, 0.8, seed=1))
    assert made.sentence.startswith("v2 and v1 cannot be told apart yet by their accuracy, ")
    assert made.sentence.endswith("more labels may tell.")
    assert made.verdict == "undecided"


def test_what_is_less_for_the_better_is_told_so():
    nearer = canary(numbers("v1", 2_000, 10), numbers("v2", 2_000, 6, seed=1), "regression")
    assert re.match(r"v2 is [\d.]+ nearer to the truth on average than v1 \(95 % sure between", nearer.sentence)
    assert (nearer.verdict, nearer.difference.metric) == ("better", "mae")
    further = canary(numbers("v1", 2_000, 6), numbers("v2", 2_000, 10, seed=1), "regression", metric="rmse")
    assert re.match(r"v2 has [\d.]+ more root mean squared error than v1", further.sentence)
    assert further.verdict == "worse"


def test_too_few_labels_are_no_verdict_whatever_they_say():
    made = canary(classes("v1", 4_000, 0.5), classes("v2", 49, 1.0, seed=1))
    assert made.sentence == "v2 has given 49 predictions, too few to compare: 50 are needed."
    made = canary(classes("v1", 4_000, 0.5), classes("v2", 4_000, 1.0, labelled=0.01, seed=1))
    assert re.search(
        r"; \d\d predictions of v2 are labelled, too few to say which version is better: 50 are needed\.$",
        made.sentence,
    )
    assert made.verdict == "undecided"
    assert made.difference is None


def test_without_labels_the_answers_tell_what_they_can():
    made = canary(classes("v1", 3_000, 1.0, labelled=0), classes("v2", 900, 0.5, labelled=0, seed=1))
    assert re.fullmatch(
        r"v2's answers are distributed somewhat differently from those of v1, 5\d\.\d % False instead of 7\d\.\d %; "
        r"nothing is labelled yet, so whether v2 is better is not known\.", made.sentence,
    )  # fmt: skip
    assert made.verdict == "undecided"
    assert made.table.loc["distance of the answers", "how"].startswith("Cramér's V: ")
    made = canary(numbers("v1", 900, 1, labelled=0), numbers("v2", 900, 1, labelled=0, seed=1), "regression")
    assert made.sentence.startswith("v2's answers are distributed as those of v1, ")


def test_a_version_that_fails_more_often_is_worse_whatever_the_labels_say():
    live, better = classes("v1", 6_000, 0.7), classes("v2", 1_500, 0.95, seed=1)
    sides = [
        Answers(**{**vars(side), "numbers": counted(side.version, requests, errors)})
        for side, requests, errors in ((live, 6_000, 6), (better, 1_500, 60))
    ]
    made = canary(*sides)
    assert made.verdict == "worse"
    assert (
        "; it fails more often, in 4.0 % of the requests instead of 0.1 %; it should not be promoted." in made.sentence
    )
    assert made.table.loc["share of errors", "v2"] == 0.04


def test_one_error_is_no_complaint_and_slowness_is_one():
    sides = (
        classes("v1", 2_000, 0.8, counted=counted("v1", 2_000)),
        classes("v2", 60, 0.8, counted=counted("v2", 60, 1)),
    )
    assert "fails" not in canary(*sides).sentence
    sides = [classes(v, 900, 0.8, counted=counted(v, 900, slow=slow)) for v, slow in (("v1", 0), ("v2", 90))]
    made = canary(*sides)
    assert re.search(r"; it is slower, 99 % within [\d.]+ ms instead of 9.9 ms; more labels", made.sentence)
    assert made.verdict == "undecided"


def test_auc_counts_the_rows_with_probabilities():
    rng = np.random.default_rng(3)
    sides = []
    for version, noise in (("v1", 1.5), ("v2", 0.4)):
        truth = rng.random(1_000) < 0.4
        scores = truth + rng.normal(0, noise, 1_000)
        scores[:100] = np.nan
        sides.append(answers(version, (scores > 0.5).tolist(), truth.tolist(), rng, scores=scores))
    made = canary(*sides, metric="auc", classes=(False, True))
    assert made.verdict == "better"
    assert made.difference.rows == (900, 900)
    with pytest.raises(CompareError, match="auc is for two classes, and flight-delay has 3"):
        canary(*sides, metric="auc", classes=(False, True, "?"))
    with pytest.raises(
        CompareError, match="auc cannot be measured: flight-delay has no labelled row with probabilities"
    ):
        canary(classes("v1", 90, 0.8), classes("v2", 90, 0.8), metric="auc", classes=(False, True))


# What cannot be compared


def test_labels_of_something_else_are_refused():
    live, candidate = classes("v1", 90, 0.8), classes("v2", 90, 0.8)
    other = [Answers(**{**vars(side), "labels": ["late"] * 90}) for side in (live, candidate)]
    with pytest.raises(
        CompareError, match=r"no label of flight-delay is one of its answers: its labels are like 'late'"
    ):
        canary(*other)
    live, candidate = numbers("v1", 90, 1), numbers("v2", 90, 1)
    other = [Answers(**{**vars(side), "labels": ["late"] * 90}) for side in (live, candidate)]
    with pytest.raises(CompareError, match=r"mae needs numbers, and flight-delay has labels like 'late'"):
        canary(*other, "regression")


def test_a_metric_that_does_not_fit_is_refused():
    sides = numbers("v1", 90, 1), numbers("v2", 90, 1)
    with pytest.raises(CompareError, match=r"accuracy is a metric for classification, and this model does regression"):
        canary(*sides, "regression", metric="accuracy")
    with pytest.raises(CompareError, match=r"'maee' is no metric\. Did you mean 'mae'\?"):
        canary(*sides, "regression", metric="maee")
    with pytest.raises(CompareError, match=r"f1 cannot be measured: flight-delay has no label in this window"):
        canary(classes("v1", 90, 1, labelled=0), classes("v2", 90, 1, labelled=0), metric="f1")


def test_several_values_per_answer_are_compared_without_a_metric():
    rng = np.random.default_rng(0)
    sides = [
        answers(v, [{"late": bool(x), "by": [1, 2]} for x in rng.random(80) < 0.5], [1] * 80, rng) for v in ("v1", "v2")
    ]
    assert canary(*sides, "other").verdict == "undecided"
    with pytest.raises(CompareError, match="'mae' cannot be measured: an answer of flight-delay is no single value"):
        canary(*sides, "other", metric="mae")


@pytest.mark.parametrize("empty", ["v1", "v2"])
def test_no_request_is_one_line(empty):
    sides = [classes(v, 0 if v == empty else 90, 0.8) for v in ("v1", "v2")]
    with pytest.raises(CompareError, match=rf"{empty} of flight-delay has answered no request since 2026-11-02\. Ask"):
        canary(*sides, since="2026-11-02")


def test_answers_that_are_no_numbers_do_no_harm():
    live, candidate = numbers("v1", 200, 1), numbers("v2", 200, 1, seed=1)
    said = [float("nan"), float("inf"), None, *candidate.predictions[3:]]
    for compared in (canary, shadow):
        other = Answers(**{**vars(candidate), "predictions": said, "ids": live.ids})
        made = compared(live, other, "regression")
        json.dumps(made.to_dict(), allow_nan=False)
        Strict(made._repr_html_())
    assert len(made.rows) == 20


def test_a_shadow_that_answers_only_what_live_does_not_says_so():
    rows = [None, 1.0] * 100
    live, candidate = (answers(v, said, [1.0] * 200, np.random.default_rng(0), ids=IDS[:200])
                       for v, said in (("v1", rows), ("v2", rows[::-1])))  # fmt: skip
    made = shadow(live, candidate, "regression")

    assert made.sentence.startswith("to no row are both answers numbers")
    assert len(made.rows) == 20
    Strict(made._repr_html_())


@pytest.mark.parametrize("metric", ["mae", "rmse", "r2"])
@pytest.mark.parametrize("compared", [canary, shadow])
def test_numbers_too_large_to_reckon_with_are_left_out(compared, metric):
    live, candidate = (numbers(v, 200, off, ids=IDS[:200]) for v, off in (("v1", 9), ("v2", 1)))
    labels, said = [1e308, -1e308, *live.labels[2:]], [*candidate.predictions[:-2], 1e308, -1e308]

    made = compared(
        Answers(**{**vars(live), "labels": labels}), Answers(**{**vars(candidate), "predictions": said}),
        "regression", metric=metric,
    )  # fmt: skip

    assert made.verdict == "better"
    assert made.difference.rows in ((198, 198), (196, 196))
    json.dumps(made.to_dict(), allow_nan=False)


# Shadows


IDS = [f"{row:016x}-0" for row in range(2_000)]


def test_a_shadow_is_compared_row_by_row_whatever_the_order():
    truth = np.random.default_rng(0).random(2_000) < 0.25
    live = classes("v1", 2_000, 1.0, truth=truth, ids=IDS, labelled=0)
    other = classes("v3", 1_500, 0.9, truth=truth[:1_500][::-1], ids=IDS[:1_500][::-1], labelled=0)

    made = shadow(live, other)

    assert re.match(r"v3 answers as v1 does in (89|90)\.\d % of 1,500 rows \(95 % sure between 8\d\.\d % and 9\d\.\d %\); "
                    r"nothing is labelled yet", made.sentence)  # fmt: skip
    rate = made.table.loc["answers that agree"]
    assert rate["low"] < rate["difference"] < rate["high"]
    assert list(made.rows.columns) == ["carrier", "distance", "v1", "v3", "prediction_id"]
    assert (made.rows["v1"] != made.rows["v3"]).all()
    by_id = dict(zip(live.ids, live.predictions, strict=True))
    assert [by_id[key] for key in made.rows["prediction_id"]] == made.rows["v1"].tolist()


def test_of_numbers_the_rows_that_are_furthest_apart_come_first():
    truth = np.random.default_rng(0).gamma(2, 10, 2_000)
    live = numbers("v1", 2_000, 0.5, truth=truth, ids=IDS, labelled=0)
    other = numbers("v3", 2_000, 0.5, truth=truth, ids=IDS, labelled=0, seed=5)
    said = [*other.predictions[:-1], 1e6]

    made = shadow(live, Answers(**{**vars(other), "predictions": said}), "regression")

    assert made.rows["prediction_id"].iloc[0] == IDS[-1]
    apart = (made.rows["v1"] - made.rows["v3"]).abs()
    assert apart.is_monotonic_decreasing
    assert re.match(
        r"v3 answers as v1 does within [\d.]+ in 7\d\.\d % of 2,000 rows .+, [\d.]+ apart on average; ", made.sentence
    )


def test_a_labelled_shadow_is_judged_by_pairs():
    truth = np.random.default_rng(0).random(2_000) < 0.25
    live = classes("v1", 2_000, 0.90, truth=truth, ids=IDS, seed=1)
    said = [t if i % 10 == 0 else p for i, (p, t) in enumerate(zip(live.predictions, truth.tolist(), strict=True))]
    made = shadow(live, Answers(**{**vars(live), "version": "v3", "predictions": said}))
    assert made.verdict == "better"
    assert "; v3 is right 0." in made.sentence
    assert made.table.loc["accuracy", "how"].endswith("(Student, pairs)")
    unpaired = canary(live, Answers(**{**vars(live), "version": "v3", "predictions": said}))
    assert unpaired.verdict == "undecided"


def test_rows_that_only_one_answered_are_left_out():
    with pytest.raises(CompareError, match="v3 of flight-delay has shadowed no answer of v1"):
        shadow(classes("v1", 90, 0.8), classes("v3", 90, 0.8))


# How it reads


@pytest.fixture(params=["labels", "answers", "numbers", "shadow", "shadow numbers"])
def made(request):
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'
    if "numbers" in request.param:
        live, other = numbers("v1", 3_000, 1, carrier=evil), numbers("v2", 3_000, 2, carrier=evil, seed=1)
    else:
        live, other = classes("v1", 3_000, 0.8, carrier=evil), classes("v2", 3_000, 0.9, carrier=evil, seed=1)
        said = [[evil if value else "fine" for value in side.predictions] for side in (live, other)]
        live, other = (Answers(**{**vars(s), "predictions": p, "labels": [evil if v else "fine" for v in s.labels]})
                       for s, p in zip((live, other), said, strict=True))  # fmt: skip
    if request.param != "labels":
        live, other = (Answers(**{**vars(s), "labels": [None] * 3_000}) for s in (live, other))
    task = "regression" if "numbers" in request.param else "classification"
    if "shadow" in request.param:
        return shadow(live, Answers(**{**vars(other), "ids": live.ids}), task)
    return canary(live, other, task)


def test_its_page_is_small_whole_and_shows_markup_as_text(made):
    page = made._repr_html_()

    assert len(page) < 60_000
    seen = Strict(page).seen
    assert seen <= {"style", "div", "p", "b", "table", "tr", "th", "td", "svg", "g", "text", "title", *VOID} - {
        "img",
        "br",
    }
    ET.fromstring(made.plot)  # whole XML
    assert 'role="img"' in made.plot
    assert set(re.findall(r"(?:fill|stroke)=\"([^\"]+)\"", made.plot)) <= {
        "none", plot.INK, plot.FAINT, plot.GRID, plot.NEUTRAL, plot.colour("v1"), plot.colour("v2")
    }  # fmt: skip
    assert html.escape(made.sentence) in page


def test_its_text_has_the_sentence_and_every_measure(made):
    lines = repr(made).splitlines()
    assert lines[0] == made.sentence
    for measure in made.table.index:
        assert any(line.strip().startswith(str(measure)) for line in lines)


def test_its_dictionary_is_json(made):
    told = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert (told["live"], told["candidate"], told["sentence"]) == ("v1", "v2", made.sentence)
    assert [row["measure"] for row in told["table"]] == made.table.index.tolist()
    assert len(told["rows"]) == len(made.rows)


# Through a real deployment


class Shop:
    """Two versions of a deployment, without a service."""

    def __init__(self):
        X = pd.DataFrame({"a": np.arange(40.0), "v1": np.arange(40.0)})
        model = LinearRegression().fit(X, X["a"] * 2)
        for _ in range(3):
            nbdeploy.save(model, "shop", X, X["a"] * 2, progress=False)
        routing.go_live("shop", "v1", "test")

    def give(self, version, values, purpose="", when=0.0, requests=None):
        requests = requests or [prediction_log.new_request_id() for _ in values]
        signature = model_store.get("shop", version).signature
        with LogWriter("shop", signature.columns, outputs=signature.outputs, keep_every=None) as log:
            assert log.write([
                Entry(version, request, {"a": [1.0], "v1": [value]}, [value], purpose=purpose, time=when)
                for request, value in zip(requests, values, strict=True)
            ])  # fmt: skip
        return requests


@pytest.fixture(scope="module")
def _shop():
    from services import own_home

    with own_home() as home:
        Shop()
        yield home


@pytest.fixture
def shop(_shop, monkeypatch, tmp_path):
    import shutil

    shutil.copytree(_shop, tmp_path / "home")
    monkeypatch.setenv("NBDEPLOY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BENTOML_HOME", str(_shop.parent / "bentoml"))
    return object.__new__(Shop)


def test_what_there_is_nothing_to_compare_with_is_one_line(shop):
    with pytest.raises(NotFound, match="shopp"):
        nbdeploy.compare("shopp")
    with pytest.raises(NotFound, match=r"'shop' has no version 'v9'"):
        nbdeploy.compare("shop", "v9")
    with pytest.raises(CompareError, match=r"'shop' has nothing to compare with v1: it alone gets traffic"):
        nbdeploy.compare("shop")
    with pytest.raises(CompareError, match=r"shop:v1 is the live version"):
        nbdeploy.compare("shop", "v1")
    nbdeploy.traffic("shop", v1=80, v2=10, v3=10, progress=False)
    with pytest.raises(CompareError, match=r"'shop' has several versions to compare with v1\. Name one: v2, v3"):
        nbdeploy.compare("shop")
    with pytest.raises(CompareError, match=r"v2 of shop has answered no request since 20.+\. Ask the deployment first"):
        nbdeploy.compare("shop", "v2")


def test_a_deployment_without_a_live_version_has_nothing_to_compare(home):
    X = pd.DataFrame({"a": np.arange(40.0)})
    nbdeploy.save(LinearRegression().fit(X, X["a"]), "shop", X, progress=False)
    with pytest.raises(CompareError, match=r"'shop' has no live version to compare with\. Serve one first"):
        nbdeploy.compare("shop")


def test_a_canary_is_compared_since_it_got_its_share(shop):
    rng = np.random.default_rng(0)
    shop.give("v1", rng.normal(100, 1, 300).tolist(), when=time.time() - 3_600)
    nbdeploy.traffic("shop", v1=90, v2=10, progress=False)
    time.sleep(0.01)
    shop.give("v1", rng.normal(0, 1, 300).tolist())
    shop.give("v1", rng.normal(50, 1, 60).tolist(), purpose="gate")
    shop.give("v2", rng.normal(0, 1, 100).tolist())
    shop.give("v2", rng.normal(50, 1, 100).tolist(), purpose="shadow")

    made = nbdeploy.compare("shop")

    assert (made.kind, made.live, made.candidate) == ("canary", "v1", "v2")
    assert made.table.loc["predictions"].tolist()[:2] == [300, 100]
    assert "distributed as those of v1" in made.sentence
    assert pd.Timestamp(made.since) > pd.Timestamp.now("UTC") - pd.Timedelta("1m")
    assert nbdeploy.compare("shop", since="2h").table.loc["predictions", "v1"] == 600
    # Another share is another canary.
    nbdeploy.traffic("shop", v1=50, v2=50, progress=False)
    with pytest.raises(CompareError, match="v2 of shop has answered no request since"):
        nbdeploy.compare("shop")
    # What comes later for another version is not this one's beginning.
    shop.give("v1", [0.0] * 60)
    shop.give("v2", [0.0] * 60)
    nbdeploy.traffic("shop", shadow=["v3"], progress=False)
    assert nbdeploy.compare("shop", "v2", since="1h").kind == "canary"


def test_a_time_in_which_the_shares_changed_is_told(shop):
    rng = np.random.default_rng(0)
    nbdeploy.traffic("shop", v1=90, v2=10, progress=False)
    time.sleep(0.01)
    for version in ("v1", "v2"):
        shop.give(version, rng.normal(0, 1, 100).tolist())
    assert "the shares changed" not in nbdeploy.compare("shop").sentence
    nbdeploy.traffic("shop", v1=50, v2=50, progress=False)
    for version in ("v1", "v2"):
        shop.give(version, rng.normal(0, 1, 100).tolist(), when=time.time() + 1)

    assert "the shares changed" not in nbdeploy.compare("shop").sentence
    assert "the shares changed in this time" in nbdeploy.compare("shop", since="1h").sentence


def test_what_was_a_canary_and_a_shadow_is_compared_since_it_was_a_canary(shop):
    nbdeploy.traffic("shop", v1=90, v3=10, progress=False)
    shop.give("v1", [0.0] * 60)
    shop.give("v3", [0.0] * 60)
    for shadows, weights in ((["v3"], {"v1": 100}), ([], {})):
        nbdeploy.traffic("shop", shadow=shadows, progress=False, **weights)
    assert nbdeploy.compare("shop", "v3").table.loc["predictions", "v3"] == 60


def test_a_shadow_is_compared_with_the_live_answers_of_the_same_requests(shop):
    nbdeploy.traffic("shop", shadow=["v3"], progress=False)
    values = np.arange(80.0)
    requests = shop.give("v1", values.tolist())
    shop.give("v3", [*values[:79].tolist(), 500.0], purpose="shadow", requests=requests)
    for sealed in (False, True):
        made = nbdeploy.compare("shop")

        assert (made.kind, made.candidate) == ("shadow", "v3")
        assert made.table.loc["predictions"].tolist()[:2] == [80, 80]
        assert "in 98.8 % of 80 rows" in made.sentence
        assert made.rows[["a", "v1", "v1_", "v3"]].to_numpy().tolist() == [[1.0, 79.0, 79.0, 500.0]]
        label_log.add("shop", {f"{request}-0": value for request, value in zip(requests, values.tolist(), strict=True)})
        assert "cannot be told apart" in nbdeploy.compare("shop", metric="mae").sentence
        if not sealed:
            assert prediction_log.seal("shop")


def test_a_real_shadow_is_compared_with_what_was_answered(flight_model, sample_flights):
    X, y = sample_flights(1)
    with running(flight_model, "echo", X, y) as (_service, _home):
        nbdeploy.save(DummyClassifier(strategy="constant", constant=True).fit(X, y), "echo", X, y, progress=False)
        nbdeploy.traffic("echo", shadow=["v2"], progress=False)
        given = []
        deadline = time.monotonic() + 60  # a shadow loads in its own time, and misses what is asked before
        while time.monotonic() < deadline and len(prediction_log.read("echo", purpose="shadow")) < 100:
            given.append(nbdeploy.predict("echo", X.iloc[len(given) % 900 :].head(20)))
            time.sleep(0.2)

        made = nbdeploy.compare("echo")

    assert (made.kind, made.candidate) == ("shadow", "v2")
    rows = int(made.table.loc["predictions", "v2"])
    assert 100 <= rows == made.table.loc["predictions", "v1"]
    assert (made.rows["v1"] == False).all()  # noqa: E712 - the live answer to each row where they differ
    assert made.rows["v2"].all()
    answers = pd.concat(given).set_index("prediction_id")["prediction"]
    assert not answers[made.rows["prediction_id"]].any()
    assert made.table.loc["share of True", "v2"] == 1


def test_a_real_canary_with_labels_is_found_better(flight_model, sample_flights):
    X, y = sample_flights(1)
    with running(DummyClassifier(strategy="constant", constant=True).fit(X, y), "race", X, y) as (_service, _home):
        nbdeploy.save(flight_model, "race", X, y, progress=False)
        nbdeploy.traffic("race", v1=50, v2=50, progress=False)
        asked, late = X.head(400), y.head(400)
        given = pd.concat([nbdeploy.predict("race", asked.iloc[i : i + 2], proba=True) for i in range(0, 400, 2)])
        labels = pd.Series(late.to_numpy(), index=given["prediction_id"])
        nbdeploy.label("race", labels)

        made = nbdeploy.compare("race")
        by_auc = nbdeploy.compare("race", metric="auc")

    shares = given["version"].value_counts()
    assert made.table.loc["predictions"].tolist()[:2] == [shares["v1"], shares["v2"]]
    right = (given["prediction"].to_numpy() == late.to_numpy())[(given["version"] == "v2").to_numpy()].mean()
    assert made.table.loc["accuracy", "v2"] == pytest.approx(right)
    assert made.verdict == by_auc.verdict == "better"
    assert re.match(
        r"v2 is right [\d.]+ points more often than v1 \(95 % sure between .+ on 400 labelled", made.sentence
    )
    assert made.table.loc["requests since the start", "v2"] > 0

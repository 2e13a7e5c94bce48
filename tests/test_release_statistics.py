"""What is said of two versions is as sure as it says, however often one looks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference

from nbdeploy.answer_metrics import METRICS, metric_of
from nbdeploy.errors import CompareError
from nbdeploy.release_statistics import (
    MIN_ROWS,
    Sample,
    agreement,
    at_every_look,
    between,
    difference,
    distance_of_categories,
    distance_of_numbers,
    most_different,
    proportion,
    proportions,
)

ALPHA = 0.05


def classes(rng, rows, right, positive=0.3):
    truth = (rng.random(rows) < positive).astype(int)
    return truth, np.where(rng.random(rows) < right, truth, 1 - truth)


# Metrics


def test_the_metrics_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    truth, answers = rng.integers(0, 4, 500), rng.integers(0, 5, 500)
    y, p = rng.normal(size=500), rng.normal(size=500)
    scores = np.round(rng.random(500), 2)  # with ties
    expected = {
        "accuracy": reference.accuracy_score(truth, answers), "f1": reference.f1_score(truth, answers, average="macro"),
        "mae": reference.mean_absolute_error(y, p), "rmse": reference.root_mean_squared_error(y, p),
        "r2": reference.r2_score(y, p), "auc": reference.roc_auc_score(truth == 0, scores),
    }  # fmt: skip
    given_ = {"accuracy": (truth, answers), "f1": (truth, answers), "auc": (truth == 0, scores)}

    for name, value in expected.items():
        assert METRICS[name].score(*given_.get(name, (y, p))) == pytest.approx(value), name
    with pytest.warns(UserWarning, match="classes not in y_true"):
        balanced = reference.balanced_accuracy_score(truth, answers)
    assert METRICS["balanced_accuracy"].score(truth, answers) == pytest.approx(balanced)


def test_a_metric_has_to_fit_the_task():
    assert metric_of(None, "classification").name == "accuracy"
    assert metric_of(None, "regression").name == "mae"
    assert metric_of("roc_auc", "classification").name == "auc"
    with pytest.raises(
        CompareError, match=r"accuracy is a metric for classification, and this model does regression\. "
    ):
        metric_of("accuracy", "regression")
    with pytest.raises(CompareError, match=r"'acuracy' is no metric\. Did you mean 'accuracy'\?"):
        metric_of("acuracy", "classification")


@pytest.mark.parametrize("name, truth", [("auc", np.ones(60)), ("r2", np.ones(60))])
def test_a_metric_that_is_not_defined_says_so(name, truth):
    side = truth, np.linspace(0, 1, 60)
    with pytest.raises(CompareError, match="is not defined where all labels are the same"):
        difference(METRICS[name], side, side)


@pytest.mark.parametrize("paired", [False, True])
def test_a_metric_that_many_a_draw_of_the_rows_lacks_is_measured_by_the_others(paired):
    truth, said = np.r_[1.0, np.zeros(59)], np.linspace(0, 1, 60)

    found = difference(METRICS["r2"], (truth, said), (truth, said / 2), paired=paired)

    assert found.interval.low < found.interval.estimate < found.interval.high
    assert np.isfinite([found.interval.low, found.interval.high, found.sequential.low, found.sequential.high]).all()


# Intervals


def test_shares_have_the_published_intervals():
    # Newcombe (1998), table II: (a) 56/70 - 48/80, (h) 10/10 - 0/10
    found = proportions((48, 56), (80, 70))
    assert (found.estimate, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    found = proportions((0, 10), (10, 10))
    assert (found.low, found.high) == pytest.approx((0.6075, 1.0), abs=1e-4)
    # Wilson's interval of 81/263, in the same author's paper on single proportions
    found = proportion(81, 263)
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert (proportion(0, 0).low, proportion(0, 0).high) == (0, 1)


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(2)
    held = dict.fromkeys(("accuracy", "mae", "pairs"), 0)
    for _ in range(400):
        live, candidate = classes(rng, 300, 0.8), classes(rng, 200, 0.85)
        found = difference(METRICS["accuracy"], live, candidate).interval
        held["accuracy"] += found.low <= 0.05 <= found.high
        y = rng.normal(size=300)
        off, more = np.abs(rng.normal(0, 1, 300)), np.abs(rng.normal(0, 1, 300)) + 0.1
        found = difference(METRICS["mae"], (y, y + off), (y, y + more)).interval
        held["mae"] += found.low <= 0.1 <= found.high
        found = difference(
            METRICS["mae"], (y, y + off), (y, y + off + rng.normal(0.1, 0.05, 300)), paired=True
        ).interval
        held["pairs"] += found.low <= 0.1 <= found.high
    for share in held.values():
        assert stats.binomtest(share, 400, 0.95).pvalue > 0.001


def test_the_bootstrap_finds_the_spread_that_theory_does():
    rng = np.random.default_rng(3)
    live, candidate = classes(rng, 2_000, 0.8), classes(rng, 1_000, 0.8)

    found = difference(METRICS["balanced_accuracy"], live, candidate)

    variance = sum(0.16 / 4 / n for rows in (2_000, 1_000) for n in (0.3 * rows, 0.7 * rows))
    assert found.interval.high - found.interval.low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.1)
    assert found.interval.low < found.interval.estimate < found.interval.high
    assert found.interval.estimate == pytest.approx(found.candidate - found.live)
    assert difference(METRICS["balanced_accuracy"], live, candidate) == found


def test_the_spread_of_the_area_under_the_curve_is_that_of_the_bootstrap():
    rng = np.random.default_rng(12)
    truth = rng.random(800) < 0.3
    live, candidate = truth + rng.normal(0, 1, 800), np.round(truth + rng.normal(0, 1.2, 800), 1)
    drawn = []
    for _ in range(600):
        rows = rng.integers(0, 800, 800)
        drawn.append([METRICS["auc"].score(truth[rows], side[rows]) for side in (live, candidate)])
    alone, other = np.array(drawn).T
    for paired, spread in ((True, (other - alone).std()), (False, math.hypot(alone.std(), other.std()))):
        found = difference(METRICS["auc"], (truth, live), (truth, candidate), paired=paired).interval
        assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.1)


@pytest.mark.parametrize("name", ["auc", "f1", "rmse", "r2"])
@pytest.mark.parametrize("paired", [True, False])
def test_a_better_candidate_is_found_by_every_metric(name, paired):
    rng = np.random.default_rng(4)
    y = rng.random(1_500) if METRICS[name].task == "regression" else (rng.random(1_500) < 0.3).astype(int)
    if name == "f1":
        live, candidate = (np.where(rng.random(1_500) < right, y, 1 - y) for right in (0.7, 0.85))
    else:
        live, candidate = y + rng.normal(0, 1.2, 1_500), y + rng.normal(0, 0.6, 1_500)
    other = (y, candidate) if paired else (y[:900], candidate[:900])

    found = difference(METRICS[name], (y, live), other, paired=paired)

    sign = 1 if METRICS[name].larger_is_better else -1
    for interval in (found.interval, found.sequential):
        assert interval.excludes_zero
        assert sign * interval.estimate > 0
    same = difference(METRICS[name], (y, live), (y, live), paired=paired)
    assert not same.sequential.excludes_zero
    assert same.interval.estimate == 0


def test_pairs_know_more_than_two_samples():
    rng = np.random.default_rng(5)
    y = rng.normal(size=800)
    live = y + rng.normal(0, 1, 800)
    candidate = y + (live - y) * 0.9

    alone = difference(METRICS["mae"], (y, live), (y, candidate)).sequential
    together = difference(METRICS["mae"], (y, live), (y, candidate), paired=True).sequential

    assert together.high - together.low < (alone.high - alone.low) / 2
    assert together.excludes_zero > alone.excludes_zero


def test_answers_that_are_all_the_same_are_no_proof():
    right = np.ones(MIN_ROWS, dtype=int)
    live, candidate = (right, right), (np.tile(right, 4), np.tile(right, 4))
    for paired, other in ((False, candidate), (True, live)):
        found = difference(METRICS["accuracy"], live, other, paired=paired)
        assert found.sequential.low < 0 < found.sequential.high
    y = np.arange(MIN_ROWS, dtype=float)
    found = difference(METRICS["mae"], (y, y + 1), (y, y + 1))
    assert (found.interval.low, found.interval.high, found.sequential.p) == (0, 0, 1)


# At every look


def alarms(draw, *, share, rows, runs, seed, looked=between):
    """How many runs of a growing log raise an alarm at some row; the versions are alike if `draw` says so."""
    rng, found = np.random.default_rng(seed), 0
    for _ in range(runs):
        new = rng.random(rows) < share
        values = np.where(new, draw(rng, rows, candidate=True), draw(rng, rows, candidate=False))
        arms = []
        for mine in (~new, new):
            n = np.cumsum(mine)
            total, squares = np.cumsum(values * mine), np.cumsum(values**2 * mine)
            n_ = np.maximum(n, 2)
            arms.append((n, total / n_, np.maximum(0, squares / n_ - (total / n_) ** 2) * n_ / (n_ - 1)))
        enough = np.flatnonzero((arms[0][0] >= MIN_ROWS) & (arms[1][0] >= MIN_ROWS))
        for look in enough:
            if looked(*(Sample(float(m[look]), int(n[look]), float(v[look])) for n, m, v in arms)).excludes_zero:
                found += 1
                break
    return found


def binary(rng, rows, *, candidate):
    return (rng.random(rows) < 0.9).astype(float)


def skewed(rng, rows, *, candidate):
    return rng.lognormal(0, 1.2, rows)


def better(rng, rows, *, candidate):
    return (rng.random(rows) < (0.9 if candidate else 0.75)).astype(float)


def once(live, candidate):
    """The interval for one look, which is wrong at every look."""
    width = 1.96 * math.sqrt(live.spread / live.rows + candidate.spread / candidate.rows)
    gap = candidate.score - live.score
    return at_every_look(gap, 0, 1) if abs(gap) > width else at_every_look(0, 1, 1)


@pytest.mark.parametrize("draw", [binary, skewed])
@pytest.mark.parametrize("share", [0.5, 0.1])
def test_looking_after_every_row_raises_no_more_false_alarms_than_it_says(draw, share):
    assert alarms(draw, share=share, rows=2_500, runs=200, seed=6) <= ALPHA * 200


def test_an_interval_for_one_look_would_raise_far_more():
    assert alarms(binary, share=0.5, rows=2_500, runs=60, seed=6, looked=once) > 4 * ALPHA * 60


def test_a_real_difference_is_found_though_one_looks_after_every_row():
    assert alarms(better, share=0.3, rows=2_500, runs=40, seed=7) == 40


def test_the_test_of_a_metric_stays_valid_and_finds_differences():
    rng = np.random.default_rng(8)
    seen = {0.8: 0, 0.9: 0}
    for right in seen:
        for _ in range(100):
            live, candidate = classes(rng, 2_000, 0.8), classes(rng, 1_000, right)
            for n in range(MIN_ROWS, 1_001, 50):
                sides = [(truth[: n * k], answers[: n * k]) for (truth, answers), k in ((live, 2), (candidate, 1))]
                if difference(METRICS["accuracy"], *sides).sequential.excludes_zero:
                    seen[right] += 1
                    break
    assert seen[0.8] <= 5
    assert seen[0.9] == 100


@settings(max_examples=200, deadline=None)
@given(st.floats(-5, 5), st.floats(1e-6, 1e3), st.integers(50, 10**6))
def test_the_p_value_and_the_interval_say_the_same(estimate, variance, rows):
    found = at_every_look(estimate * math.sqrt(variance), variance, rows)

    assert found.excludes_zero == (found.p < ALPHA)
    assert 0 <= found.p <= 1
    assert found.high - found.low > 2 * 1.96 * math.sqrt(variance)


@pytest.mark.parametrize("unit", [1e-150, 1e90, 1e150])
def test_an_interval_that_holds_at_every_look_has_no_unit(unit):
    plain, found = at_every_look(0.3, 0.01, 500), at_every_look(0.3 * unit, 0.01 * unit**2, 500)

    assert (found.low / unit, found.high / unit, found.p) == pytest.approx((plain.low, plain.high, plain.p))


def test_more_rows_narrow_the_interval():
    widths = [(found := at_every_look(0.1, 1 / n, n)).high - found.low for n in (100, 1_000, 10_000, 100_000)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < widths[0] / 20


# Distances


def test_numbers_have_the_same_distance_on_any_scale():
    rng = np.random.default_rng(9)
    live = rng.normal(0, 1, 3_000)
    sizes = []
    for shift in (0, 0.2, 0.65, 2):
        candidate = rng.normal(shift, 1, 2_000)
        found = distance_of_numbers(live, candidate)
        again = distance_of_numbers(1_000 * live + 7, 1_000 * candidate + 7)
        assert found.effect == pytest.approx(again.effect)
        assert found.effect == pytest.approx(max(shift, 0.03), abs=0.05)
        sizes.append(found.size)
    assert sizes == ["none", "small", "medium", "large"]


def test_a_wider_distribution_is_told_though_its_mean_is_the_same():
    rng = np.random.default_rng(10)
    assert distance_of_numbers(rng.normal(0, 1, 2_000), rng.normal(0, 3, 2_000)).size == "large"
    assert distance_of_numbers(np.ones(100), np.ones(90)).size == "none"
    assert distance_of_numbers(np.ones(100), np.full(90, 2.0)).size == "large"


def test_categories_have_a_distance():
    assert distance_of_categories(["a", "b"] * 500, ["b", "a"] * 300).effect == pytest.approx(0)
    found = distance_of_categories(["a"] * 900 + ["b"] * 100, ["a"] * 500 + ["b"] * 500)
    assert found.size == "medium"
    assert found.p < 1e-9
    small = distance_of_categories(["a"] * 90_000 + ["b"] * 10_000, ["a"] * 50 + ["b"] * 50)
    assert small.effect == pytest.approx(found.effect)
    assert distance_of_categories([True] * 100, [False] * 100).effect == pytest.approx(1)
    assert distance_of_categories([True] * 100, [True] * 60).size == "none"


def test_rare_categories_do_not_make_a_difference_of_chance():
    rng = np.random.default_rng(11)
    found = 0
    for _ in range(200):
        live, candidate = (rng.zipf(1.6, n).tolist() for n in (2_000, 100))
        found += distance_of_categories(live, candidate).p < ALPHA
    assert stats.binomtest(found, 200, ALPHA).pvalue > 0.001


# Row by row


def test_rows_agree_within_the_tolerance():
    live, candidate = np.array([1.0, 2.0, 3.0, math.nan]), np.array([1.05, 2.5, 3.0, 4.0])
    rate, apart = agreement(live, candidate, 0.1)
    assert rate.estimate == 0.5
    assert apart[:3] == pytest.approx([0.05, 0.5, 0])
    rate, apart = agreement(np.array(["a", "b"], object), np.array(["a", "c"], object))
    assert (rate.estimate, apart.tolist()) == (0.5, [0, 1])


def test_the_rows_that_differ_most_come_first_and_equal_ones_never():
    assert most_different(np.array([0.0, 3, 1, 0, 3]), 10) == [1, 4, 2]
    assert most_different(np.array([0.0, 3, 1, 0, 3]), 1) == [1]
    assert most_different(np.zeros(5), 10) == []

"""What the default gate measures, on rows whose answer is known."""

from __future__ import annotations

import json
import math
import threading
import time

import numpy as np
import pandas as pd
import pytest

from nbdeploy import gate_checks
from nbdeploy.errors import GateError
from nbdeploy.signature import Signature
from nbdeploy.signature_inference import infer_columns

RANDOM = np.random.default_rng(0)


# The same answers -----------------------------------------------------------------------------------------------------


def frame(values, **more):
    return pd.DataFrame({"prediction": values, **more, "prediction_id": "x", "version": "v1"})


def test_numbers_are_the_same_within_a_tolerance_and_all_else_to_the_letter():
    assert gate_checks.differing(pd.Series([1.0, np.nan]), pd.Series([1.0 + 1e-12, np.nan])).tolist() == [False, False]
    assert gate_checks.differing(pd.Series(["a", "b"]), pd.Series(["a", "B"])).tolist() == [False, True]
    nested = pd.Series([np.array([1.0, 2.0]), {"a": 1.0}, np.array([1.0])])
    told = pd.Series([[1.0, 2.0], {"a": 1.5}, [1.0, 2.0]])
    assert gate_checks.differing(nested, told).tolist() == [False, True, True]


def test_a_row_that_is_answered_in_two_ways_is_counted_wherever_it_stands():
    first = frame([1.0, 2.0, 3.0])
    assert gate_checks.unstable([first, first.iloc[::-1]]) == 0
    assert gate_checks.unstable([first, frame([1.0, 2.0, 3.1]), frame([0.0, 2.0, 3.0]).iloc[::-1]]) == 2
    assert gate_checks.unstable([frame(["a", "b"]), frame(["a", "c"])]) == 1


def test_what_adding_up_in_another_order_moves_is_no_other_answer():
    values = RANDOM.normal(0, 1e6, 50).astype("float32")
    moved = values + np.float32(0.05)
    assert gate_checks.unstable([frame(values), frame(moved)]) == 0
    assert gate_checks.unstable([frame(values), frame(values * np.float32(1.001))]) > 0


# Better than live -----------------------------------------------------------------------------------------------------


def test_a_row_scores_1_where_it_is_right():
    assert gate_checks.row_scores("classification", ["a", "b"], ["a", "a"]).tolist() == [1.0, 0.0]
    assert gate_checks.row_scores("classification", [1, 0], [1.0, 1.0]).tolist() == [1.0, 0.0]
    assert gate_checks.row_scores("classification", [True, False], np.array(["True", "True"])).tolist() == [1.0, 0.0]
    truth = np.array([0.0, 1.0, 2.0, 3.0])
    scores = gate_checks.row_scores("regression", truth, truth)
    assert scores.tolist() == [1.0] * 4
    assert gate_checks.row_scores("regression", truth, np.full(4, np.median(truth))).mean() == pytest.approx(0.0)
    assert np.isfinite(gate_checks.row_scores("regression", [2.0, 2.0], [2.0, 3.0])).all()


def test_the_interval_of_a_paired_difference_is_that_of_scipy():
    from scipy import stats

    ours, theirs = RANDOM.normal(0.1, 1, 200), RANDOM.normal(0, 1, 200)
    told = gate_checks.difference(ours, theirs)
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (told.low, told.high) == pytest.approx((expected.low, expected.high))
    assert told.mean == pytest.approx((ours - theirs).mean())
    assert told.rows == 200


def test_the_interval_holds_the_true_difference_as_often_as_it_says():
    inside = 0
    for seed in range(400):
        random = np.random.default_rng(seed)
        shared = random.normal(0, 3, 60)
        told = gate_checks.difference(shared + random.normal(0.2, 1, 60), shared)
        inside += told.low <= 0.2 <= told.high
    assert 0.92 <= inside / 400 <= 0.98


def test_the_same_answers_are_no_worse_and_one_row_proves_nothing():
    same = gate_checks.difference(np.ones(5), np.ones(5))
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)
    assert gate_checks.difference([1.0], [1.0]).low == -math.inf
    assert math.isnan(gate_checks.difference([], []).mean)


# Slices ---------------------------------------------------------------------------------------------------------------


def test_the_worst_value_comes_first_and_a_rare_one_does_not_count():
    carrier = pd.Series(["AA"] * 60 + ["UA"] * 60 + ["OO"] * 3 + [None] * 60, name="carrier")
    scores = np.r_[np.ones(60), np.zeros(30), np.ones(30), np.zeros(3), np.full(60, 0.8)]
    told = gate_checks.slices(carrier, scores, min_rows=50)
    assert [(one.value, one.rows) for one in told] == [("UA", 60), ("missing", 60), ("AA", 60)]
    assert told[0].score == pytest.approx(0.5)
    assert told[1].score == pytest.approx(0.8)
    assert gate_checks.slices(carrier, scores, min_rows=100) == []


def test_a_number_with_many_values_is_sliced_into_quarters():
    distance = pd.Series(np.arange(400.0), name="distance")
    told = gate_checks.slices(distance, (distance >= 100).astype(float), min_rows=50)
    assert len(told) == 4
    assert [one.score for one in told] == [0.0, 1.0, 1.0, 1.0]
    assert {one.rows for one in told} == {100}


# Calibration ----------------------------------------------------------------------------------------------------------


def test_probabilities_that_come_true_are_calibrated_and_bold_ones_are_not():
    chance = RANDOM.uniform(0, 1, 20_000)
    truth = RANDOM.uniform(0, 1, 20_000) < chance
    honest = np.column_stack([1 - chance, chance])
    assert gate_checks.calibration_error(truth, honest, (False, True)) < 0.02
    bold = np.column_stack([chance < 0.5, chance >= 0.5]).astype(float)
    wrong = float((truth != (chance >= 0.5)).mean())
    assert gate_checks.calibration_error(truth, bold, (False, True)) == pytest.approx(wrong)


def test_calibration_takes_classes_of_any_kind_and_few_rows():
    chances = [[0.9, 0.05, 0.05], [0.1, 0.8, 0.1]]
    assert gate_checks.calibration_error(["x", "y"], chances, ("x", "y", "z")) == pytest.approx(0.15)
    assert gate_checks.calibration_error([0, 1], chances, (0, 1, 2)) == pytest.approx(0.15)


def test_rows_of_one_probability_are_one_group_in_whichever_order_they_came():
    always_half = np.full((200, 2), 0.5)
    assert gate_checks.calibration_error([0] * 100 + [1] * 100, always_half, (0, 1)) == pytest.approx(0.0)


# Under load -----------------------------------------------------------------------------------------------------------


def test_clients_ask_at_once_and_a_failure_is_no_latency():
    at_once, most, lock = set(), [0], threading.Lock()

    def ask(number):
        with lock:
            at_once.add(threading.get_ident())
            most[0] = max(most[0], len(at_once))
        time.sleep(0.02)
        with lock:
            at_once.discard(threading.get_ident())
        if number == 5:
            raise OSError(111, "refused")

    told = gate_checks.load(ask, clients=4, requests=3)
    assert most[0] == 4
    assert len(told.milliseconds) == 11
    assert told.failures == ["ConnectionRefusedError: [Errno 111] refused"]
    assert 20 <= told.quantile(0.99) < 1000
    assert math.isnan(gate_checks.load(lambda _number: 1 / 0, 1, 2).quantile(0.5))


# Hard rows ------------------------------------------------------------------------------------------------------------

TRAINED = pd.DataFrame(
    {
        "delay": [1.0, 9.0],
        "seats": np.array([1, 200], dtype="uint8"),
        "gap": [1.0, None],
        "carrier": pd.Categorical(["AA", "UA"]),
        "text": ["a", None],
        "day": pd.to_datetime(["2013-01-01", "2013-02-01"]),
        "late": [True, False],
        "image": [np.zeros((2, 2)), np.ones((2, 2))],
    }
)


def test_hard_rows_fit_the_signature_and_change_what_they_say():
    signature = Signature(infer_columns(TRAINED))
    payload = signature.encode(TRAINED.head(1))
    record = dict(zip(payload["columns"], payload["data"][0], strict=True))
    rows = gate_checks.hard_rows(signature, record)
    told = {one.about: one for one in rows}

    for one in rows:
        signature.decode([json.loads(json.dumps(one.record))])  # nothing here is for the service to refuse
    assert told["delay far below"].record["delay"] == -79.0
    assert told["delay far above"].record["delay"] == 89.0
    assert told["seats far above"].record["seats"] == 255
    assert told["gap null"].kind == "nulls"
    assert told["text null"].record["text"] is None
    assert told["carrier unseen"].kind == "unseen categories"
    assert len(told["text of 10,000 characters"].record["text"]) == 10_000
    assert told["day far after"].record["day"].startswith("2013-12")
    assert told["every column that may be null"].record["gap"] is None
    assert not [about for about in told if about.startswith(("late", "image"))]
    assert {one.kind for one in rows} == {"nulls", "unseen categories", "extreme values"}


def test_there_are_never_more_hard_rows_than_a_gate_has_time_for():
    wide = Signature(infer_columns(pd.DataFrame(RANDOM.normal(size=(5, 300)), columns=[f"c{i}" for i in range(300)])))
    assert len(gate_checks.hard_rows(wide, {})) == gate_checks.MAX_HARD_ROWS


def test_a_finite_answer_is_one_at_any_depth():
    assert gate_checks.finite([1, "late", True, {"a": [0.5]}])
    assert not gate_checks.finite([None])
    assert not gate_checks.finite([{"a": [float("nan")]}])
    assert not gate_checks.finite([[1.0, float("inf")]])


# Scores by name -------------------------------------------------------------------------------------------------------


def test_scores_are_scikit_learn_s_and_an_unknown_one_is_named():
    truth, told = [1.0, 2.0, 3.0], [1.0, 2.0, 4.0]
    assert gate_checks.score("neg_mean_absolute_error", truth, told) == pytest.approx(-1 / 3)
    assert gate_checks.score("accuracy", [1, 0], [1, 1]) == 0.5
    with pytest.raises(GateError, match=r"unknown metric 'acuracy'\. Known are accuracy"):
        gate_checks.score("acuracy", [1], [1])


def test_a_ranking_is_the_area_under_the_curve_for_two_classes_and_for_more():
    assert gate_checks.ranking(np.array(["a", "b"]), [[0.9, 0.1], [0.2, 0.8]], ("a", "b")) == 1.0
    three = np.eye(3)[[0, 1, 2, 0]] * 0.8 + 0.2 / 3
    assert gate_checks.ranking(np.array([0, 1, 2, 0]), three, (0, 1, 2)) == 1.0

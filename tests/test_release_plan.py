"""What a guard and a rollout decide: rules about pure functions."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdeploy.release_plan import (
    DOUBT,
    GuardRules,
    Rollout,
    Run,
    Verdict,
    at_most,
    gained,
    is_above,
    judge,
    next_step,
    slow,
)
from nbdeploy.version_numbers import VersionNumbers

BOUNDS = (0.01, 0.1, 0.25, 1.0)
OVER = 30 * 60  # seconds after which a run of 30 minutes is over


def numbers(requests=0, errors=0, slow=0, version="v2", refused=0):
    """Requests that took some milliseconds, but for those that took half a second."""
    return VersionNumbers(version, requests, errors, refused, requests, BOUNDS, (0, requests - slow, 0, slow, 0))


def rollout(**changes):
    return replace(Rollout("v2", "v1", (1.0, 10.0, 50.0, 100.0), 10, Run(1000.0)), **changes)


# -- evidence -----------------------------------------------------------------------------------------------


def test_one_error_among_three_requests_is_no_breach():
    assert judge(GuardRules(error_rate=0.02), numbers(3, 1), None, None, 10).kind == "go on"


def test_errors_that_chance_does_not_explain_are_a_breach_that_says_so():
    verdict = judge(GuardRules(error_rate=0.02), numbers(100, 20), numbers(900, 1, version="v1"), None, 10)

    assert verdict.kind == "breach"
    assert verdict.why == "20 of 100 answers were errors (20 %), above 2 %; v1 has 0.111 %"


def test_a_canary_that_refuses_what_the_live_version_answers_breaks_the_limit_for_errors():
    rules, live = GuardRules(error_rate=0.02), numbers(900, version="v1", refused=9)

    found = judge(rules, numbers(100, refused=30), live, None, 10)

    assert found.kind == "breach"
    assert found.why == "30 of 100 requests were refused or failed (30 %), above the 1 % that v1 refuses and 2 %"


def test_what_both_versions_refuse_the_clients_are_to_blame_for():
    rules = GuardRules(error_rate=0.02)

    for share in (0.01, 0.1, 0.5, 1):
        canary, live = numbers(100, refused=int(100 * share)), numbers(900, version="v1", refused=int(900 * share))
        assert judge(rules, canary, live, None, 10).kind == "go on"
        assert judge(rules, canary, live, None, OVER).kind == "clean"


def test_refusals_say_nothing_where_the_live_version_was_asked_little():
    few = numbers(2, version="v1")

    assert judge(GuardRules(error_rate=0.02), numbers(10, refused=3), few, None, 10).kind == "go on"
    assert judge(GuardRules(error_rate=0.02), numbers(10, refused=3), None, None, 10).kind == "go on"


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_the_ends_of_what_is_possible_enclose_what_was_counted(count, more):
    share = at_most(count, count + more)

    assert count <= share * (count + more) + 1e-9
    assert not is_above(count, count + more, share)


@pytest.mark.parametrize("limit", [0.001, 0.02, 0.3])
def test_a_share_at_its_limit_is_rarely_called_above_it_however_often_one_looks(limit):
    random = np.random.default_rng(0)
    runs, looks = 2000, 1000
    counts = np.cumsum(random.random((runs, looks)) < limit, axis=1)
    wrong = sum(any(is_above(int(counts[run, i]), i + 1, limit) for i in _jumps(counts[run])) for run in range(runs))

    assert wrong / runs <= DOUBT


def _jumps(counts):
    """The looks at which a count went up: only there a share can come to be above its limit."""
    return np.flatnonzero(np.diff(counts, prepend=0))


@pytest.mark.parametrize(("limit", "rate", "within"), [(0.02, 0.1, 200), (0.02, 0.5, 20), (0.0, 0.01, 1000)])
def test_a_share_well_above_its_limit_is_found_soon(limit, rate, within):
    random = np.random.default_rng(0)
    counts = np.cumsum(random.random((200, within)) < rate, axis=1)

    found = [any(is_above(int(count), i + 1, limit) for i, count in enumerate(run)) for run in counts]

    assert np.mean(found) > 0.95


@given(st.integers(0, 5000), st.integers(0, 5000), st.floats(0, 0.99))
def test_more_errors_never_look_better(errors, more, limit):
    total = errors + more
    if is_above(errors, total, limit) and more:
        assert is_above(errors + 1, total, limit)
    if is_above(errors, total, limit):
        assert errors > limit * total


def test_a_million_requests_are_counted_too():
    assert is_above(25_000, 1_000_000, 0.02)
    assert not is_above(20_000, 1_000_000, 0.02)


def test_slow_requests_are_those_that_surely_were():
    found = VersionNumbers("v2", 15, 0, 0, 15, BOUNDS, (1, 2, 3, 4, 5))

    assert [slow(found, limit) for limit in (0.01, 0.05, 0.1, 0.2, 1.0, 5.0)] == [14, 12, 12, 9, 5, 0]


def test_a_slow_canary_breaks_the_limit_for_p99_only_after_a_hundred_requests():
    rules = GuardRules(p99_ms=200)

    assert judge(rules, numbers(99, slow=50), None, None, 10).kind == "go on"
    found = judge(rules, numbers(200, slow=50), numbers(900, version="v1"), None, 10)
    assert (found.kind, found.why) == ("breach", "p99 is 970 ms over 200 requests, above 200 ms; v1 has 99.1 ms")


def test_a_hundredth_of_slow_requests_keeps_the_limit_for_p99():
    assert judge(GuardRules(p99_ms=200), numbers(10_000, slow=100), None, None, OVER).kind == "clean"


def test_drift_above_its_limit_is_a_breach():
    rules = GuardRules(drift=0.3)

    assert judge(rules, numbers(900), None, 0.3, 10).kind == "go on"
    found = judge(rules, numbers(900), None, 0.5, 10)
    assert (found.kind, found.why) == ("breach", "50 % of its columns drifted from its training data, above 30 %")


# -- clean --------------------------------------------------------------------------------------------------


def test_a_run_is_clean_when_its_time_is_over_and_enough_came():
    rules = GuardRules(error_rate=0.02, p99_ms=200, drift=0.5)

    assert judge(rules, numbers(2000, 3), None, 0.1, OVER - 1) == Verdict("go on")
    assert judge(rules, numbers(2000, 3), None, 0.1, OVER) == Verdict(
        "clean", "clean for 30 min: 2,000 requests, 0.15 % errors, p99 99.1 ms, 10 % of the columns drifted"
    )


@pytest.mark.parametrize(("rules", "canary", "drift", "why"), [
    (GuardRules(error_rate=0.02), numbers(), None, "but a verdict takes 30 requests, and fewer came"),
    (GuardRules(error_rate=0.02), numbers(29), None, "but a verdict takes 30 requests, and fewer came"),
    (GuardRules(error_rate=0.02, min_requests=500), numbers(499), None, "a verdict takes 500 requests"),
    (GuardRules(p99_ms=200), numbers(99), None, "a verdict takes 100 requests"),
    (GuardRules(error_rate=0.02), numbers(40, 1), None, "errors are above 2 %, perhaps by chance"),
    (GuardRules(p99_ms=200), numbers(150, slow=2), None, "p99 is above 200 ms, perhaps by chance"),
    (GuardRules(drift=0.5), numbers(900), None, "its drift is not known"),
])  # fmt: skip
def test_a_run_without_enough_evidence_waits_and_says_for_what(rules, canary, drift, why):
    verdict = judge(rules, canary, None, drift, OVER)

    assert verdict.kind == "go on"
    assert why in verdict.why
    assert verdict.why.startswith("30 min are over")


def test_every_breach_comes_before_every_other_verdict():
    limits = {"error_rate": 0.02, "p99_ms": 200, "drift": 0.5}
    bad = {"error_rate": numbers(200, 100), "p99_ms": numbers(200, slow=100), "drift": numbers(200)}
    for used in itertools.chain.from_iterable(itertools.combinations(limits, n) for n in (1, 2, 3)):
        rules = GuardRules(**{limit: limits[limit] for limit in used})
        for broken, elapsed in itertools.product(limits, (0, OVER)):
            verdict = judge(rules, bad[broken], None, 0.9 if broken == "drift" else 0.1, elapsed)
            expected = "breach" if broken in used else "clean" if elapsed else "go on"
            assert verdict.kind == expected, (used, broken, elapsed)


def test_a_service_that_began_anew_is_counted_from_zero():
    assert gained("v2", numbers(50, 5), numbers(100, 5)) == numbers(50, 5)
    assert gained("v2", numbers(150, 8), numbers(100, 5)).requests == 50
    assert gained("v2", None, numbers(100, 5)).requests == 0


# -- steps --------------------------------------------------------------------------------------------------


def test_a_rollout_goes_on_only_after_a_clean_step():
    steps = (1.0, 10.0, 50.0, 100.0)
    for at, paused, kind in itertools.product(range(3), (False, True), ("go on", "clean", "breach")):
        action = next_step(rollout(at=at, paused=paused), Verdict(kind, "why"))
        if kind == "breach":
            expected = "abort", 0.0  # a pause does not keep a bad version in traffic
        elif paused or kind == "go on":
            expected = "wait", steps[at]
        else:
            expected = "promote" if at == 2 else "raise", steps[at + 1]
        assert (action.kind, action.share) == expected, (at, paused, kind)


def test_a_rollout_that_ends_below_100_is_done_after_its_last_step():
    short = rollout(steps=(1.0, 10.0), at=1)

    assert next_step(short, Verdict("go on")).kind == "wait"
    assert next_step(short, Verdict("clean", "why")).kind == "done"


def test_while_paused_no_time_passes():
    paused = rollout().stopped(1200.0)

    assert paused.run.spent == 200
    assert paused.going(9000.0).run.elapsed(9100.0) == 300


def test_what_nobody_looked_at_does_not_count():
    assert Run(1000.0, spent=50).shifted(500).elapsed(1700.0) == 250


@given(st.lists(st.tuples(st.floats(0, 1e4), st.sampled_from(["stop", "go", "shift"])), max_size=20))
def test_the_time_of_a_step_is_the_time_it_ran(moves):
    now, ran, step = 1000.0, 0.0, rollout()
    for seconds, move in moves:
        now += seconds
        if move == "shift":
            step = replace(step, run=step.run.shifted(seconds))
        elif not step.paused:
            ran += seconds
        if move == "stop" and not step.paused:
            step = step.stopped(now)
        elif move == "go" and step.paused:
            step = step.going(now)

    assert step.paused or step.run.elapsed(now) == pytest.approx(ran)
    assert not step.paused or step.run.spent == pytest.approx(ran)


def test_a_rollout_is_over_when_somebody_else_decided():
    step = rollout(at=1)

    assert step.overruled("v1", {"v1": 90.0, "v2": 10.0}) == ""
    assert step.overruled("v2", {"v2": 100.0}) == "v2 became live"
    assert step.overruled("v1", {"v1": 80.0, "v2": 20.0}) == "the traffic was changed to v1=80 v2=20"
    assert step.overruled("v1", {"v1": 100.0}) == "the traffic was changed to v1=100"
    assert step.overruled("v1", {"v1": 85.0, "v2": 10.0, "v3": 5.0}) == "the traffic was changed to v1=85 v2=10 v3=5"


@given(
    st.floats(0, 2e9), st.floats(0, 1e6), st.integers(0, 10**9), st.integers(0, 3), st.booleans(), st.text(max_size=9)
)
def test_what_is_stored_is_read_again(since, spent, requests, at, paused, said):
    run = Run(since, spent, {"v1": numbers(requests, version="v1"), "v2": numbers(requests)}, 2, said)
    step = rollout(run=run, at=at, paused=paused)
    rules = GuardRules(0.02, 200, 0.5, 0.05, "promote", 10)

    assert Rollout.from_dict(json.loads(json.dumps(step.to_dict()))) == step
    assert GuardRules.from_dict(json.loads(json.dumps(rules.to_dict()))) == rules


def test_rules_of_another_nbdeploy_are_read_as_far_as_they_are_known():
    assert GuardRules.from_dict({"error_rate": 0.1, "phase_of_the_moon": "full"}) == GuardRules(error_rate=0.1)


def test_rules_and_rollouts_say_what_they_are():
    rules = GuardRules(0.02, 200, 0.5, 0.5, "promote")

    assert str(rules) == (
        "errors at most 2 %, p99 at most 200 ms, drift in at most 50 % of the columns; a clean run of 30 s promotes it"
    )
    assert str(rollout(at=1).stopped(1000)) == "v2: 1 %, 10 % (now), 50 %, 100 %; 10 min each, paused"

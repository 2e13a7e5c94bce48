"""A split is exact, and who has a version keeps it wherever its weight allows."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from math import sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbdeploy.traffic_split import SLOTS, assign, key_of, pack, slot_of, unpack

KEYS = [f"client {i}".encode() for i in range(100_000)]


def versions_of(slots, keys=KEYS, name="flight-delay"):
    return [slots[slot_of(name, key)] for key in keys]


@pytest.mark.parametrize("percent", [1, 10, 50])
def test_a_split_is_exact_in_slots_and_fair_in_keys(percent):
    slots = assign({"v1": 100 - percent, "v2": percent})
    assert Counter(slots)["v2"] == percent * SLOTS / 100
    got, share = Counter(versions_of(slots))["v2"], percent / 100
    assert abs(got - share * len(KEYS)) <= 3 * sqrt(len(KEYS) * share * (1 - share))


def test_a_canary_that_grows_keeps_everybody_it_has():
    slots, had = assign({"v1": 100.0}), set()
    for percent in (0.01, 1, 10, 50, 99.99):
        slots = assign({"v1": 100 - percent, "v2": percent}, slots)
        has = {slot for slot, version in enumerate(slots) if version == "v2"}
        assert had < has
        had = has


def test_a_version_whose_weight_stays_keeps_exactly_its_keys():
    before = assign({"v1": 60, "v2": 10, "v3": 30})
    after = assign({"v1": 20, "v2": 50, "v3": 30}, before)
    assert [i for i, v in enumerate(before) if v == "v3"] == [i for i, v in enumerate(after) if v == "v3"]


def test_a_canary_that_comes_back_meets_its_old_keys():
    first = assign({"v1": 90, "v2": 10})
    again = assign({"v1": 90, "v2": 10}, assign({"v1": 100}, first))
    assert first == again


def test_two_deployments_have_different_canary_keys():
    slots = assign({"v1": 90, "v2": 10})
    one, other = versions_of(slots, KEYS[:10_000], "one"), versions_of(slots, KEYS[:10_000], "other")
    both = sum(a == b == "v2" for a, b in zip(one, other, strict=True))
    assert 50 < both < 150  # a hundredth, as for independent draws


def test_the_split_is_the_same_in_every_process_and_after_every_restart():
    slots = assign({"v1": 90, "v2": 10})
    assert unpack(json.loads(json.dumps(pack(slots)))) == slots
    # Written down once: another hash, or another order, would send people elsewhere after an upgrade.
    assert [slot_of("flight-delay", key) for key in (b"AA", b"UA", b"\0")] == [3732, 2482, 4716]
    assert [i for i, v in enumerate(slots) if v == "v2"][:5] == [13, 32, 54, 58, 73]


@given(st.lists(st.integers(0, SLOTS), min_size=1, max_size=3), st.lists(st.integers(0, SLOTS), min_size=1, max_size=3))
@settings(max_examples=50, deadline=None)
def test_any_change_of_weights_is_exact_and_moves_no_more_than_it_must(first, second):
    def weights(cuts):
        edges = [0, *sorted(cuts), SLOTS]
        return {f"v{i + 1}": (b - a) / 100 for i, (a, b) in enumerate(itertools.pairwise(edges)) if b > a}

    before = assign(weights(first))
    after = assign(weights(second), before)
    had, has = Counter(before), Counter(after)
    assert {v: count / 100 for v, count in has.items()} == weights(second)
    moved = sum(a != b for a, b in zip(before, after, strict=True))
    assert moved == sum(max(0, has[v] - had[v]) for v in has)


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [(1, 1.0, "float"), (True, 1, "bool"), (None, float("nan"), "float"),
     ("2013-01-31T08:15:00", "2013-01-31 08:15", "datetime"), ("2013-01-31T08:15:00Z", "2013-01-31T09:15:00+01:00", "datetime")],
)  # fmt: skip
def test_a_value_is_one_key_however_it_is_written(one, other, kind):
    assert key_of(one, kind) == key_of(other, kind)


@pytest.mark.parametrize("moment", ["0001-01-01", "1500-01-01T12:00:00", "9999-12-31T23:59:59Z"])
def test_moments_far_away_are_keys_too(moment):
    assert key_of(moment, "datetime") != key_of("2013-01-31T08:15:00", "datetime")


def test_different_values_are_different_keys():
    values = [None, 0, 1, 1.5, -1, 2**63, "", "0.5", "AA", "aa", "é", "\ud800"]
    assert len({key_of(value, "string") for value in values}) == len(values)

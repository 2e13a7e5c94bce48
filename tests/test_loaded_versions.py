"""What a worker does next never leaves a request unanswered, whatever is loaded, missing or broken."""

from __future__ import annotations

from itertools import product

import pytest

from nbdeploy.loaded_versions import Plan, State, plan
from nbdeploy.routing import Traffic

NAMES = ("v1", "v2", "v3")
LOADING, READY, FAILED = State.LOADING, State.READY, State.FAILED


def traffics():
    for live in NAMES:
        others = [name for name in NAMES if name != live]
        for canary, before, warm in product([(), *((o,) for o in others), tuple(others)], [(), *((o,) for o in NAMES)],
                                            [(), *((o,) for o in others)]):  # fmt: skip
            weights = {live: 100 - 10 * len(canary), **dict.fromkeys(canary, 10)}
            yield Traffic("x", 7, live, weights, before=before, warm=warm)


def states():
    for each in product([None, LOADING, READY, FAILED], repeat=len(NAMES)):
        yield {name: state for name, state in zip(NAMES, each, strict=True) if state is not None}


def moments():
    """Every traffic with everything that can be there, and everything that can be answering."""
    for wanted, there in product(traffics(), states()):
        ready = [name for name, state in there.items() if state is READY]
        for serving in {frozenset(ready[:1]), frozenset(ready[1:2]), frozenset(ready)}:
            if serving:
                yield wanted, there, serving


def test_what_answers_and_what_is_the_last_one_ready_is_never_unloaded():
    count = 0
    for wanted, there, serving in moments():
        todo = plan(wanted, there, serving)
        ready = {name for name, state in there.items() if state is READY}
        answering = {v for v in (wanted.live, *wanted.candidates) if v in ready} if todo.serve else serving
        assert not answering & set(todo.unload), (wanted, there, serving, todo)
        assert ready - set(todo.unload)
        count += 1
    assert count > 3_000


def test_requests_go_by_the_new_traffic_only_when_all_that_it_needs_is_there_or_has_failed():
    for wanted, there, serving in moments():
        needed = {wanted.live, *wanted.candidates}
        settled = all(there.get(name) in (READY, FAILED) for name in needed)
        assert plan(wanted, there, serving).serve == (settled and there[wanted.live] is READY)


def test_nothing_is_loaded_twice_or_beside_another_load():
    for wanted, there, serving in moments():
        load = plan(wanted, there, serving).load
        assert not load or (load not in there and LOADING not in there.values())


def test_the_version_live_before_is_kept_and_what_nobody_needs_is_not():
    wanted = Traffic("x", 7, "v2", {"v2": 100.0}, before=("v1",))
    there = {"v1": READY, "v2": READY, "v3": READY}
    assert plan(wanted, there, frozenset({"v2"})) == Plan("", serve=True, unload=("v3",))
    assert plan(wanted, {"v2": READY}, frozenset({"v2"})) == Plan("v1", serve=True, unload=())


@pytest.mark.parametrize("fails", [(), ("v2",), ("v3",), ("v2", "v3")])
def test_step_by_step_every_traffic_is_reached_or_left_as_it_was(fails):
    for wanted, first in product(traffics(), NAMES):
        there, serving = {first: READY}, frozenset({first})
        for _ in range(20):
            todo = plan(wanted, there, serving)
            if todo.serve:
                serving = frozenset(v for v in (wanted.live, *wanted.candidates) if there[v] is READY)
                todo = plan(wanted, there, serving)
            for gone in todo.unload:
                del there[gone]
            if not todo.load:
                break
            there[todo.load] = FAILED if todo.load in fails and todo.load != first else READY
        else:
            pytest.fail(f"no end: {wanted}")
        if there.get(wanted.live) is READY:
            assert wanted.live in serving
            assert {name for name, state in there.items() if state is READY} <= {
                *wanted.used,
                *wanted.before,
                *wanted.warm,
            }
        else:
            assert serving == {first}

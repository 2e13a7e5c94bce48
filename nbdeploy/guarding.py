"""Guard a canary, and roll a version out step by step: carried out by the service itself, with no notebook open.

What is asked for stands in the traffic file; `nbdeploy.guardian` does it, one process beside the workers.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nbdeploy import deployment, model_store, releases, routing, version_numbers
from nbdeploy.errors import DriftError, InputError, ReleaseError, ServiceError
from nbdeploy.home import check_name
from nbdeploy.release_plan import FULL, GuardRules, Rollout, Run
from nbdeploy.routing import Traffic
from nbdeploy.watching import must_be_known
from nbdeploy.worker_numbers import SECONDS

MINUTES = 30.0
REQUESTS = 30
STEPS = (1, 10, 50, 100)


def guard(
    name: str,
    *,
    error_rate: float | None = None,
    p99_ms: float | None = None,
    drift: float | None = None,
    canary_minutes: float = MINUTES,
    then: str = "",
    min_requests: int = REQUESTS,
    off: bool = False,
) -> Traffic:
    """Take a canary out of traffic by itself when it breaks a limit; or, with a name alone, show what holds.

    It holds from now on, for the canary that runs and for those that come, as long as the service runs. A limit is broken
    only when chance does not explain what was counted: one error among three requests says nothing. A canary that is taken
    out leaves its share to the live version, and `history` says why.

    Parameters
    ----------
    error_rate : float, optional
        The largest share of its answers with a status of 500 or more: 0.02 is 2 %. A model that fails on some rows refuses
        them, so what it refuses more than the live version counts too.
    p99_ms : float, optional
        The milliseconds in which all but a hundredth of its requests are answered. It counts from the next of the bounds
        of ``nbdeploy_request_seconds`` on, and takes 100 requests.
    drift : float, optional
        The largest share of its columns that may drift from its training data, measured by Evidently about once a
        minute from the 500th row on.
    canary_minutes : float
        How long a clean run is.
    then : {"", "promote"}
        What follows a clean run: a promotion, which needs a passed gate as any other; or nothing but an entry in `history`.
    min_requests : int
        What a clean run takes at least. With fewer it waits.
    off : bool
        Stop guarding.

    Returns
    -------
    Traffic
        Its `guard` holds the ``rules``, a run for each canary in ``watch``, and in ``tripped`` which canary was taken out
        last, when and why, until another comes.

    Raises
    ------
    InputError
        A value means nothing, or no limit is given.
    NotFound
    ReleaseError
        There is no guard to switch off.
    """
    check_name(name)
    must_be_known(name)
    rules = GuardRules(error_rate, p99_ms, drift, canary_minutes, then, min_requests)
    if off:
        return routing.change(name, _unguarded, action="guard", why="off")
    if rules == GuardRules(canary_minutes=MINUTES, min_requests=REQUESTS):
        return routing.traffic(name)
    rules = _checked(rules)

    def edit(old: Traffic) -> Traffic:
        if old.live is None:
            raise _nothing_live(name)
        facts = {"rules": rules.to_dict(), "told": str(rules), "watch": {}, "tripped": None, "refused": None}
        return replace(old, guard=facts)

    return routing.change(name, edit, action="guard", why=str(rules))


def rollout(
    name: str,
    version: str | None = None,
    *,
    steps: Sequence[float] | str = STEPS,
    minutes: float = 10,
    pause: bool = False,
    resume: bool = False,
    abort: bool = False,
) -> Traffic:
    """Give a version more and more of the traffic, step by step, as long as it does well.

    The first step is taken now; the service takes the others, also over restarts. A step is left after `minutes` of a clean
    run, by the limits of `guard`, or 2 % of errors where there is none. A version that breaks one is taken out, and the
    rollout is over. So it is when somebody changes the traffic by hand: that counts.

    Parameters
    ----------
    version : str, optional
        ``"v2"``. Without one and without an order, what runs is returned.
    steps : sequence of float or str
        Percent, each more than the one before, also as ``"1,10,50,100"``. 100 is a promotion, so it needs a passed gate,
        and that from the start. A rollout that ends below leaves the version with its last share.
    minutes : float
        How long a step takes at least. Time in which the service does not run does not count.
    pause, resume, abort : bool
        Of the rollout that runs. A paused one keeps its share, and is still watched; an aborted one leaves all to the live
        version.

    Returns
    -------
    Traffic
        Its `rollout` says how far it is, and in ``run`` ``said`` what it waits for.

    Raises
    ------
    GateError
        A step is 100 and the version has no passed gate. Nothing is changed.
    InputError
        The steps or the minutes mean nothing.
    NotFound
    ReleaseError
        The version is live, another rollout runs, or there is none to pause, resume or abort.
    ServiceError
        The service does not run.
    """
    check_name(name)
    must_be_known(name)
    orders = [order for order, given in (("pause", pause), ("resume", resume), ("abort", abort)) if given]
    if len(orders) > 1:
        msg = f"{' and '.join(orders)} at once"
        raise InputError(msg, hint="Say one of them.")
    if orders:
        return _ordered(name, orders[0], version)
    if version is None:
        return routing.traffic(name)
    return _started(name, version, _steps(steps), _positive("minutes", minutes))


def _started(name: str, version: str, steps: tuple[float, ...], minutes: float) -> Traffic:
    before = routing.traffic(name)
    if before.live is None:
        raise _nothing_live(name)
    chosen = model_store.get(name, version).version
    if chosen == before.live:
        msg = f"{name}:{chosen} is live already"
        raise ReleaseError(msg, f"What there is: %deploy versions {name}.")
    if before.rollout is not None:
        msg = f"a rollout of {name}:{before.rollout['version']} runs already"
        raise ReleaseError(msg, f"Abort it first: %deploy rollout {name} --abort.")
    if others := [other for other in before.candidates if other != chosen]:
        msg = f"{name}:{others[0]} has {before.share(others[0]):g} % of the traffic"
        raise ReleaseError(msg, f"End that first: %deploy traffic {name} {before.live}=100.")
    if deployment.find(name) is None:
        msg = f"{name!r} does not run, and nobody would roll {chosen} out"
        raise ServiceError(msg, f"Serve it first: %deploy serve {name}.")
    if steps[-1] >= FULL:
        releases.must_be_promotable(name, chosen)
    plan = Rollout(chosen, before.live, steps, minutes, Run(0.0))
    weights: dict[str, Any] = plan.weights
    after = releases.traffic(name, why=f"rollout of {plan}", **weights)
    # Of the numbers only what comes from now on counts.
    begun = replace(plan, run=Run(time.time(), baseline=version_numbers.read(name)))

    def edit(old: Traffic) -> Traffic:
        if begun.overruled(old.live, old.weights) or old.rollout is not None:
            msg = f"the traffic of {name!r} was changed meanwhile"
            raise ReleaseError(msg, f"See %deploy history {name}, and try again.")
        guard = {**old.guard, "tripped": None} if old.guard is not None else None
        return replace(old, rollout=begun.to_dict(), guard=guard, memory=after.memory)

    return routing.change(name, edit)


def _ordered(name: str, order: str, version: str | None) -> Traffic:
    now = time.time()

    def edit(old: Traffic) -> Traffic:
        if old.rollout is None:
            msg = f"there is no rollout of {name!r} to {order}"
            raise ReleaseError(msg, f"Start one: %deploy rollout {name} VERSION.")
        running = Rollout.from_dict(old.rollout)
        if version is not None and version != running.version:
            msg = f"the rollout that runs is of {name}:{running.version}, not of {version}"
            raise ReleaseError(msg, f"To {order} it: %deploy rollout {name} --{order}.")
        if order == "abort":
            return replace(old, rollout=None)
        if (order == "pause") == running.paused:
            state = "is paused already" if running.paused else "is not paused"
            msg = f"the rollout of {name}:{running.version} {state}"
            raise ReleaseError(msg, f"See it: %deploy traffic {name}.")
        changed = running.stopped(now) if order == "pause" else running.going(now)
        return replace(old, rollout=changed.to_dict())

    held = routing.traffic(name)
    what = f"rollout of {held.rollout['version']}" if held.rollout is not None else "rollout"
    told = {"pause": "paused", "resume": "resumed", "abort": "aborted"}[order]
    after = routing.change(name, edit, action="rollout", why=f"{what}: {told}")
    if order != "abort" or after.live is None or held.rollout is None:
        return after
    weights: dict[str, Any] = {after.live: FULL}
    return releases.traffic(name, why=f"{what}: aborted", **weights)


def _unguarded(old: Traffic) -> Traffic:
    if old.guard is None:
        msg = f"{old.name!r} has no guard to switch off"
        raise ReleaseError(msg, f"Set one: %deploy guard {old.name} --error-rate 0.02.")
    return replace(old, guard=None)


def _nothing_live(name: str) -> ReleaseError:
    return ReleaseError(f"{name!r} has no live version yet", f"Serve one first: %deploy serve {name}.")


# -- what means something -----------------------------------------------------------------------------------


def _checked(rules: GuardRules) -> GuardRules:
    if rules.error_rate is None and rules.p99_ms is None and rules.drift is None:
        msg = "a guard without a limit guards nothing"
        raise InputError(msg, hint="Give error_rate=, p99_ms= or drift=, for example error_rate=0.02.")
    if rules.then not in {"", "promote"}:
        msg = f"then={rules.then!r:.40} is nothing that can follow a clean run"
        raise InputError(msg, hint="It is 'promote', or ''.")
    least: Any = rules.min_requests
    if type(least) is not int or least < 1:
        msg = f"min_requests={rules.min_requests!r:.40} is no number of requests"
        raise InputError(msg, hint="It is a whole number from 1 on.")
    if rules.drift is not None and importlib.util.find_spec("evidently") is None:
        msg = "drift is measured by Evidently, which is not installed"
        raise DriftError(msg, "pip install 'nbdeploy[lab]'.")
    p99 = None if rules.p99_ms is None else _positive("p99_ms", rules.p99_ms)
    if p99 is not None and p99 > SECONDS[-1] * 1000:
        msg = f"p99_ms={p99:g} is longer than what is told apart"
        raise InputError(msg, hint=f"The most is {SECONDS[-1] * 1000:g}.")
    return replace(
        rules, p99_ms=p99, error_rate=_share("error_rate", rules.error_rate), drift=_share("drift", rules.drift),
        canary_minutes=_positive("canary_minutes", rules.canary_minutes),
    )  # fmt: skip


def _share(what: str, value: Any) -> float | None:
    if value is None:
        return None
    number = _number(value)
    if not 0 <= number < 1:
        msg = f"{what}={value!r:.40} is no share from 0 to 1"
        raise InputError(msg, hint=f"2 % is {what}=0.02.")
    return number


def _positive(what: str, value: Any) -> float:
    number = _number(value)
    if not 0 < number < math.inf:
        msg = f"{what}={value!r:.40} is not more than 0"
        raise InputError(msg, hint="It is a number above 0.")
    return number


def _number(value: Any) -> float:
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _steps(steps: Sequence[float] | str) -> tuple[float, ...]:
    told = steps.split(",") if isinstance(steps, str) else list(steps)
    numbers = [_number(step) for step in told]
    shown = ", ".join(str(step)[:20] for step in told[:12])
    hint = f"For example steps={list(STEPS)}."
    if not numbers or any(not 0 < step <= FULL or abs(step * 100 - round(step * 100)) > 1e-6 for step in numbers):
        msg = f"the steps {shown or '(none)'} are not percent above 0, up to 100, with at most two decimals"
        raise InputError(msg, hint=hint)
    if any(later <= step for step, later in itertools.pairwise(numbers)):
        msg = f"the steps {shown} do not go up"
        raise InputError(msg, hint=hint)
    if numbers[0] >= FULL:
        msg = "a rollout to 100 % at once is a promotion"
        raise InputError(msg, hint="Use promote, or begin with fewer.")
    return tuple(round(step, 2) for step in numbers)

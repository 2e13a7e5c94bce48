"""Releases: who answers whom, changed without losing a request.

A change has two steps. First every worker loads what it needs beside what answers now; only when all have it, requests go
by the new traffic. So what cannot be loaded changes nothing. Both steps end when every worker has acknowledged.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from nbdeploy import deployment, gate_evidence, model_store, processes, rehearsal, routing
from nbdeploy.errors import GateError, InputError, NbdeployError, NotFound, ReleaseError, did_you_mean
from nbdeploy.home import check_name, lock
from nbdeploy.model_store import ModelVersion
from nbdeploy.progress import Step, steps
from nbdeploy.release_history import History
from nbdeploy.routing import Traffic
from nbdeploy.signature_change import incompatibilities, output_changes
from nbdeploy.version_choice import HEADER, sticky_by
from nbdeploy.watching import must_be_known

if TYPE_CHECKING:
    from collections.abc import Iterator

LOAD_SECONDS = 130.0  # for all workers to load a version
SWITCH_SECONDS = 30.0  # for all workers to apply a change of what they have loaded
STEPS = ["rehearse", "load", "switch"]


def traffic(
    name: str,
    *,
    shadow: Sequence[str] | None = None,
    sticky: str | None = None,
    pin: bool | None = None,
    allow_signature_change: bool = False,
    why: str = "",
    progress: bool = True,
    **weights: float,
) -> Traffic:
    """Say which version answers whom; or, with a name alone, return who does.

    What is not said stays as it is. It returns when every worker of a running service has acknowledged.

    Parameters
    ----------
    **weights : float
        Percent by version, ``v1=90, v2=10``, together 100, at most two decimals. The live version keeps a share; to
        replace it is `promote`. A change moves as few askers as it has to from one version to another.
    shadow : list of str, optional
        Versions that answer into the log only, in processes of their own: ``["v3"]``. ``[]`` ends it.
    sticky : str, optional
        What keeps an asker with one version: a column, row by row, or a header, ``X-Client-ID`` say; one that does
        not begin with ``X-`` as ``header:Name``. ``""`` ends it, and each request is drawn by its ``X-Request-ID``.
    pin : bool, optional
        Whether a request may name its version, ``?version=v2``. At first it may.
    allow_signature_change : bool
        Let a version answer that refuses what the live one takes.
    why : str
        For the history.

    Raises
    ------
    InputError
        The weights do not sum to 100, or a name in them means nothing.
    NotFound
        A version or the deployment is unknown.
    ReleaseError
        A version cannot be loaded, or its signature does not fit. Nothing is changed then; where it is a shadow, all but
        this is.
    ServiceError
        A worker has not acknowledged in time; the change is written, and it says which.
    """
    check_name(name)
    if not weights and shadow is None and sticky is None and pin is None:
        must_be_known(name)
        return routing.traffic(name)
    with _releasing(name, "traffic", progress) as (before, step):
        shares = _checked_weights(name, weights, before)
        live = model_store.get(name, before.live)
        named = [shadow] if isinstance(shadow, str) else shadow or ()
        shadows = before.shadow if shadow is None else tuple(dict.fromkeys(named))
        for version in sorted({*shares, *shadows}.difference(before.used)):  # what is there was let in
            _must_fit(model_store.get(name, version), live, allowed=allow_signature_change)
        wanted = before.split(**shares) if weights else before
        wanted = replace(
            wanted, shadow=shadows, sticky=before.sticky if sticky is None else sticky or "",
            pin=before.pin if pin is None else bool(pin),
        )  # fmt: skip
        if double := set(wanted.shadow) & set(wanted.weights):
            msg = f"{name}:{min(double)} cannot answer and shadow at the same time"
            raise InputError(msg, hint="Give it a share, or name it in shadow=, not both.")
        _must_be_sticky(wanted.sticky, live, [model_store.get(name, version) for version in wanted.candidates])
        held = _prepare(before, [version for version in wanted.candidates if version not in before.weights], step)
        step("switch")

        def edit(old: Traffic) -> Traffic:
            # Weights that were not said stay what they are now: a guard may have changed them meanwhile.
            split = old.split(**shares) if weights else old
            return replace(split, shadow=wanted.shadow, sticky=wanted.sticky, pin=wanted.pin, warm=())

        to = routing.shares(wanted.weights)
        told = "; ".join(
            filter(None, [to, *(f"shadow {v}" for v in wanted.shadow), wanted.sticky and f"sticky by {wanted.sticky}"])
        )
        now = time.time()
        after = _switched(routing.change(name, edit, action="traffic", to=told, why=why), before, step, held)
        _await_shadows(after, [version for version in after.shadow if version not in before.shadow], now, step)
        return after


def promote(
    name: str,
    version: str,
    *,
    force: str = "",
    allow_signature_change: bool = False,
    why: str = "",
    progress: bool = True,
) -> Traffic:
    """Make a version the live one, with all requests. No request fails; `rollback` takes it back.

    It needs a passed gate: of this very version by its digest, with what the deployment asks of its gates now; see
    `validate`. It returns when every worker answers with it, and the version before stays loaded.

    Parameters
    ----------
    version : str
        ``"v2"``.
    force : str
        Why it is promoted without that gate. It is written into the history.
    allow_signature_change : bool
        Promote it though it refuses what the live one takes.
    why : str
        For the history.

    Raises
    ------
    GateError
        There is no such gate.
    NotFound, ReleaseError
        It is unknown, is live already, cannot be loaded, or does not fit. Nothing is changed then.
    ServiceError
        A worker has not acknowledged in time; the change is written, and it says which.
    """
    check_name(name)
    with _releasing(name, "promote", progress) as (before, step):
        chosen = _version(name, version)
        if chosen.version == before.live:
            msg = f"{chosen.tag} is live already"
            raise ReleaseError(msg, _what_else(before))
        evidence = must_be_promotable(name, chosen.version, force)
        _must_fit(chosen, model_store.get(name, before.live), allowed=allow_signature_change)
        held = _prepare(before, [chosen.version], step)
        step("switch")
        said = f"forced: {force}" + (f"; {why}" if why else "") if force else why
        after = routing.change(
            name, lambda old: replace(old.to_live(chosen.version), warm=()), action="promote", why=said,
            evidence=", ".join(evidence),
        )  # fmt: skip
        return _switched(after, before, step, held)


def rollback(name: str, *, why: str = "", progress: bool = True) -> Traffic:
    """Go back to the version that was live before; twice means two back. No request fails.

    A canary ends with it. It needs no gate, and is instant where the version is still loaded, as the last one is.

    Raises
    ------
    NotFound
    ReleaseError
        Nothing was live before, or it cannot be loaded. Nothing is changed then.
    ServiceError
        A worker has not acknowledged in time; the change is written, and it says which.
    """
    check_name(name)
    with _releasing(name, "rollback", progress) as (before, step):
        saved = {version.version for version in model_store.versions(name)}
        target = before.back(saved.__contains__)
        if target is None or target.live is None:
            msg = f"nothing was live before {name}:{before.live}"
            raise ReleaseError(msg, f"What there is: %deploy versions {name}.")
        held = _prepare(before, [target.live], step, rehearsed=False)
        step("switch")

        def edit(old: Traffic) -> Traffic:
            gone = old.back(saved.__contains__)
            assert gone is not None
            return replace(gone, warm=())

        return _switched(routing.change(name, edit, action="rollback", why=why), before, step, held)


def history(name: str) -> History:
    """What happened to the traffic of `name`, newest first.

    Returns
    -------
    History
        A frame: ``time`` (UTC), ``who``, ``action``, ``from``, ``to``, ``why`` and ``evidence``, the executed notebook that a
        promotion rests on. A notebook shows the shares over time above it.
    """
    must_be_known(name)
    return History.of(routing.history(name))


def must_be_promotable(name: str, version: str, force: str = "") -> list[str]:
    """The evidence that allows to promote a version; none with `force`.

    Raises
    ------
    GateError
        There is none that holds for its digest and what the deployment asks of its gates now.
    """
    chosen = model_store.get(name, version)
    if force:
        return []
    found = gate_evidence.found(name, chosen.digest)
    evidence, lacking = gate_evidence.standing(
        chosen.digest, routing.traffic(name).gates, found, name=name, version=version
    )
    if lacking:
        raise GateError(lacking)
    return [str(path) for path in evidence]


# -- what a change must hold to ---------------------------------------------------------------------------------


def _version(name: str, version: str) -> ModelVersion:
    if not version:
        msg = f"which version of {name!r} is not said"
        known = ", ".join(known.version for known in model_store.versions(name))
        raise NotFound(msg, f"Name one: {known or 'none is saved'}.")
    return model_store.get(name, version)


def _checked_weights(name: str, weights: Mapping[str, Any], before: Traffic) -> dict[str, float]:
    saved = [version.version for version in model_store.versions(name)]
    shares: dict[str, float] = {}
    for version, weight in weights.items():
        if not re.fullmatch(r"v[1-9]\d*", version):
            msg = f"{version!r} is neither a version nor an option of traffic"
            raise InputError(msg, hint=did_you_mean(version, [*saved, "shadow", "sticky", "pin"]))
        model_store.get(name, version)
        try:
            share = float(weight)
        except (TypeError, ValueError):
            share = -1.0
        if isinstance(weight, bool) or not 0 <= share <= 100 or abs(share * 100 - round(share * 100)) > 1e-6:
            msg = f"{version}={weight!r:.40} is no percentage with at most two decimals"
            raise InputError(msg, hint="For example v1=90 v2=10.")
        if share:
            shares[version] = round(share, 2)
    if not weights:
        return dict(before.weights)
    if abs(sum(shares.values()) - 100) > 1e-6:
        told = " + ".join(f"{version}={share:g}" for version, share in shares.items()) or "nothing"
        msg = f"the weights of {name!r} sum to {sum(shares.values()):g}, not 100: {told}"
        raise InputError(msg, hint="For example v1=90 v2=10.")
    if not shares.get(before.live or ""):
        newest = max(shares, key=lambda version: shares[version])
        msg = f"{name}:{before.live} is live and would get no request"
        raise ReleaseError(msg, f"Replace it by a promotion: %deploy promote {name} {newest}.")
    return shares


def _must_fit(version: ModelVersion, live: ModelVersion, *, allowed: bool) -> None:
    if allowed or version.version == live.version:
        return
    if changes := incompatibilities(live.signature, version.signature):
        more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
        msg = f"{version.tag} cannot answer who asks {live.version}: {changes[0]}{more}"
        raise ReleaseError(msg, "If that is meant: allow_signature_change=True (--allow-signature-change).")


def _must_be_sticky(sticky: object, live: ModelVersion, candidates: Sequence[ModelVersion]) -> None:
    if not sticky:
        return
    if not isinstance(sticky, str):
        msg = f"sticky={sticky!r:.40} is no name of a column or a header"
        raise InputError(msg, hint="For example sticky='X-Client-ID'.")
    header, column = sticky_by(sticky, live.signature)
    named = re.fullmatch(r"[a-z0-9!#$%&'*+.^_`|~-]{1,100}", header) is not None
    if column is None and not named:
        known = [each.name for each in live.signature.columns if not each.shape]
        msg = f"{live.tag} has no column {sticky!r} to be sticky by"
        raise InputError(msg, hint=f"{did_you_mean(sticky, known)} A header is named X-… or {HEADER}….")
    for version in candidates if column is not None else ():
        # The rows of one request are answered by several, in one answer.
        if changes := output_changes(live.signature, version.signature):
            msg = f"{version.tag} and {live.version} cannot answer rows of one request: {changes[0]}"
            raise ReleaseError(msg, f"Be sticky by a header, not by {sticky!r}: sticky='X-Client-ID'.")


def _what_else(before: Traffic) -> str:
    others = before.candidates
    if others:
        return f"To end its canary: %deploy traffic {before.name} {before.live}=100."
    return f"What there is: %deploy versions {before.name}."


# -- the two steps ----------------------------------------------------------------------------------------------


@contextmanager
def _releasing(name: str, verb: str, progress: bool) -> Iterator[tuple[Traffic, Step]]:
    """One change at a time: the traffic before it, and the progress."""
    must_be_known(name)
    with lock("release", name), steps(verb, STEPS, progress) as step:
        before = routing.traffic(name)
        if before.live is None:
            msg = f"{name!r} has no live version yet"
            raise ReleaseError(msg, f"Serve one first: %deploy serve {name}.")
        yield before, step


def _prepare(before: Traffic, versions: Sequence[str], step: Step, *, rehearsed: bool = True) -> dict[str, int]:
    """Have every worker load `versions` beside what answers; where one cannot, all is as it was.

    Returns
    -------
    dict
        How many bytes each worker held before.
    """
    name = before.name
    running = deployment.find(name)
    if running is None:
        return {}
    acknowledged = deployment.acknowledged(name)
    held = {worker: processes.resident(ack["pid"]) for worker, ack in acknowledged.items()}
    told = acknowledged.values()
    missing = [version for version in versions if not told or any(version not in ack["loaded"] for ack in told)]
    if not missing:
        return held
    try:
        if rehearsed:
            step("rehearse")
            for version in missing:
                # Whatever it does, it does it in a process of its own first.
                rehearsal.rehearse(model_store.get(name, version), on_wait=step, timeout=LOAD_SECONDS)
        step("load")
        prepared = routing.change(name, lambda old: replace(old, warm=tuple(missing)))
        deployment.await_applied(running, prepared.generation, LOAD_SECONDS, step, missing)
    except BaseException as error:
        routing.change(name, lambda old: replace(old, warm=()))
        if isinstance(error, NbdeployError) and not isinstance(error, ReleaseError):
            msg = f"{name}:{missing[0]} cannot take requests: {error.message}"
            raise ReleaseError(
                msg, error.hint or f"Nothing was changed. See %deploy logs {name}.", error.details
            ) from error
        raise
    return held


def _switched(after: Traffic, before: Traffic, step: Step, held: Mapping[str, int]) -> Traffic:
    running = deployment.find(after.name)
    if running is None or after.generation == before.generation:
        return after
    now = deployment.await_applied(running, after.generation, SWITCH_SECONDS, step)
    memory = tuple((held.get(worker, 0), ack["memory"]) for worker, ack in sorted(now.items()))
    return replace(after, memory=memory)


def _await_shadows(after: Traffic, versions: Sequence[str], since: float, step: Step) -> None:
    """Wait until new shadows answer. One that cannot is none: nobody would look for its rows."""
    running = deployment.find(after.name)
    if running is None:
        return
    for version in versions:
        try:
            deployment.await_shadow(running, version, since, LOAD_SECONDS, step)
        except BaseException as error:
            why = error.message if isinstance(error, NbdeployError) else type(error).__name__
            edit = partial(Traffic.unshadowed, version=version)
            routing.change(after.name, edit, action="traffic", to=f"no shadow {version}", why=why)
            raise

"""Two versions of a deployment compared by what they answered: a canary with the live one, or a shadow row by row."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np

from nbdeploy import label_log, model_store, prediction_log, routing, version_numbers
from nbdeploy.comparison_result import Comparison
from nbdeploy.comparison_sides import Answers, Lines, Subject, count, joined, percent
from nbdeploy.errors import CompareError
from nbdeploy.model_store import ModelVersion
from nbdeploy.plot import short
from nbdeploy.routing import Traffic
from nbdeploy.version_numbers import VersionNumbers
from nbdeploy.watching import must_be_known

if TYPE_CHECKING:
    from nbdeploy.comparison_labels import Measured

NEEDS = "versions are compared with SciPy, which is not installed: pip install 'nbdeploy[lab]'"
MIN_ERRORS = 3  # one or two may be anything
MIXED = "the shares changed in this time, so what differs may be when each was asked: leave out since to be sure"
MIN_TIMED, SLOWER = 500, 1.5  # requests of which a 99th percentile says something, and when it is worth a word

__all__ = ["Answers", "Comparison", "compare", "of"]


def compare(name: str, version: str | None = None, *, since: Any = None, metric: str | None = None) -> Comparison:
    """Compare a version that gets traffic, or only listens, with the live one by what they answered.

    Where predictions have labels, the difference in a metric tells which version is better, with a test that may be
    looked at every hour. Else it is told how far their answers are apart; of a shadow, which answered what the live
    version answered too, row by row. Errors and times are those since the service was started.

    Parameters
    ----------
    version : str, optional
        ``"v2"``; by default the candidate or, where there is none, the shadow.
    since : str, datetime or timedelta, optional
        ``"24h"``, ``"7d"`` ago, or a moment; by default when the candidate got its present share of the traffic.
    metric : str, optional
        ``accuracy``, ``balanced_accuracy``, ``f1`` or ``auc``; ``mae``, ``rmse`` or ``r2``. By default accuracy, or the
        mean absolute error. ``auc`` counts the rows of which probabilities were asked for.

    Returns
    -------
    Comparison
        With too little data too: it says so.

    Raises
    ------
    CompareError
        There is nothing to compare, or the metric does not fit.
    NotFound
        The deployment or the version is unknown.
    """
    must_be_known(name)
    traffic = routing.traffic(name)
    live, chosen = _versions(name, traffic, version)
    shadow = chosen.version in traffic.shadow
    shared = None if shadow else _began(name, chosen.version)
    began = prediction_log.moment(since) if since is not None else shared
    mixed = began is not None and shared is not None and shared > began
    window = None if began is None else datetime.fromtimestamp(began, timezone.utc)
    labels = label_log.read(name)
    sides = [
        _answers(
            each,
            window,
            "shadow" if listens else "",
            labels,
            version_numbers.read(name, shadows=listens).get(each.version),
        )
        for each, listens in ((live, False), (chosen, shadow))
    ]
    signature = chosen.signature
    return of(
        name, sides[0], sides[1], shadow=shadow, task=signature.task, classes=signature.classes, metric=metric,
        since=window.isoformat(timespec="seconds") if window is not None else "", mixed=mixed,
    )  # fmt: skip


def _versions(name: str, traffic: Traffic, wanted: str | None) -> tuple[ModelVersion, ModelVersion]:
    """The live version, and the one to compare with it."""
    if traffic.live is None:
        msg = f"{name!r} has no live version to compare with"
        raise CompareError(msg, f"Serve one first: %deploy serve {name}.")
    live = model_store.get(name, traffic.live)
    others = traffic.candidates or traffic.shadow
    if wanted is not None:
        chosen = model_store.get(name, wanted)
        if chosen.version == live.version:
            msg = f"{chosen.tag} is the live version, which the others are compared with"
            hint = f"Name another one: {', '.join(others)}." if others else f"What there is: %deploy versions {name}."
            raise CompareError(msg, hint)
        return live, chosen
    if not others:
        msg = f"{name!r} has nothing to compare with {live.version}: it alone gets traffic, and nothing shadows it"
        raise CompareError(msg, f"Give a version a share: %deploy traffic {name} {live.version}=90 VERSION=10.")
    if len(others) > 1:
        msg = f"{name!r} has several versions to compare with {live.version}"
        raise CompareError(msg, f"Name one: {', '.join(others)}.")
    return live, model_store.get(name, others[0])


def _began(name: str, version: str) -> float | None:
    """When `version` got the share of the traffic that it has, or had last."""
    named = re.compile(rf"(?<!shadow )\b{re.escape(version)}\b")
    for step in routing.history(name):
        if step["action"] in ("traffic", "rollout") and named.search(str(step.get("to") or "")):
            return prediction_log.moment(step["time"])
    return None


def _answers(
    version: ModelVersion,
    window: datetime | None,
    purpose: str,
    labels: Mapping[str, Any],
    numbers: VersionNumbers | None,
) -> Answers:
    """What the log holds of a version."""
    signature = version.signature
    frame = prediction_log.read(
        version.name, lambda _version: signature, window, purpose=purpose, version=version.version, proba=True
    )
    logged = [column.name for column in signature.logged]
    own = {
        label: prediction_log.own_column(label, logged)
        for label in ("prediction", "prediction_id", "time", "probabilities")
    }
    ids = frame[own["prediction_id"]].tolist()
    inputs = frame[[name for name in logged if name in frame.columns]]
    chances = frame[own["probabilities"]].tolist()
    # The probability of the last class; with several targets there is no such thing.
    plain = [row[-1] if isinstance(row, list) and row and isinstance(row[-1], float) else math.nan for row in chances]
    return Answers(
        version.version, inputs, frame[own["prediction"]].tolist(), ids, frame[own["time"]].to_numpy("datetime64[ns]"),
        [labels.get(key) for key in ids], np.array(plain, dtype=float), numbers,
    )  # fmt: skip


# -- what is said -------------------------------------------------------------------------------------------


def of(
    name: str,
    live: Answers,
    candidate: Answers,
    *,
    shadow: bool,
    task: str,
    classes: Sequence[Any] | None = None,
    metric: str | None = None,
    since: str = "",
    mixed: bool = False,
) -> Comparison:
    """What the answers of two versions say; see `compare`.

    Parameters
    ----------
    shadow : bool
        The candidate answered rows that `live` answered: they are told by their ids, and others are left out.
    task : str
        ``classification``, ``regression`` or ``other``.
    classes : sequence, optional
        What a label may be, in the order of the probabilities.
    mixed : bool
        The shares of the traffic changed in this time.

    Raises
    ------
    CompareError
        Nothing can be said: no rows, a metric that does not fit, labels that are of something else.
    """
    if importlib.util.find_spec("scipy") is None:
        raise CompareError(NEEDS)
    from nbdeploy import comparison_answers, comparison_labels
    from nbdeploy.release_statistics import MIN_ROWS

    window = f" since {since}" if since else ""
    for side in (candidate, live):
        if not len(side):
            msg = f"{side.version} of {name} has answered no request{window}"
            raise CompareError(msg, f"Ask the deployment first: nbdeploy.predict({name!r}, X_new).")
    if shadow:
        live, candidate = joined(live, candidate)
        if not len(live):
            msg = f"{candidate.version} of {name} has shadowed no answer of {live.version}{window}"
            raise CompareError(msg, "Ask the deployment first, or look at a longer window.")
    about = Subject.of(name, live, candidate, shadow=shadow, task=task)
    lines = Lines(about.versions)
    lines.add_counts("predictions", len(live), len(candidate))
    measured = comparison_labels.measured(about, lines, classes, metric)
    apart = comparison_answers.apart(about, lines)
    failing, complaint = _counted(about, lines)
    few = min((candidate, live), key=len)
    if len(few) < MIN_ROWS:
        said = [
            f"{few.version} has given {count(len(few), 'prediction')}{window}, too few to compare: {MIN_ROWS} are needed"
        ]
    elif measured is None:
        said = [apart.sentence]
    elif measured.difference is not None:
        said = [apart.sentence, measured.sentence] if shadow else [measured.sentence]
    else:
        said = [apart.sentence, measured.sentence]
    verdict = "worse" if failing else measured.verdict if measured is not None else "undecided"
    said += [complaint, _advice(verdict, measured, failing=failing), MIXED if mixed else ""]
    drawn = measured.plot() if measured is not None else ""
    return Comparison(
        name, live.version, candidate.version, "shadow" if shadow else "canary", since, verdict,
        "; ".join(filter(None, said)) + ".", lines.frame(), apart.rows, measured.difference if measured else None,
        datetime.now(timezone.utc), drawn or apart.plot,
    )  # fmt: skip


def _counted(about: Subject, lines: Lines) -> tuple[bool, str]:
    """Errors and times since the start; whether the candidate surely fails more often, and what there is to complain."""
    from nbdeploy.release_statistics import proportions

    was, now = (side.numbers for side in about.sides)
    if was is None or now is None or not was.requests or not now.requests:
        return False, ""
    errors = proportions((was.errors, now.errors), (was.requests, now.requests))
    lines.add_counts("requests since the start", was.requests, now.requests)
    lines.add("share of errors", was.error_rate, now.error_rate, errors, "95 % for one look (Newcombe)")
    for label, q in (("median seconds", 0.5), ("seconds, 99th percentile", 0.99)):
        lines.add(label, was.quantile(q), now.quantile(q))
    failing = errors.low > 0 and now.errors >= MIN_ERRORS
    said = []
    if failing:
        told = f"{percent(now.error_rate)} of the requests instead of {percent(was.error_rate)}"
        said.append(f"it fails more often, in {told}")
    before, after = was.quantile(0.99), now.quantile(0.99)
    if min(was.requests, now.requests) >= MIN_TIMED and after > SLOWER * before:
        said.append(f"it is slower, 99 % within {short(1000 * after)} ms instead of {short(1000 * before)} ms")
    return failing, "; ".join(said)


def _advice(verdict: str, measured: Measured | None, *, failing: bool) -> str:
    if failing:
        return "it should not be promoted"
    if verdict == "better":
        return "it can be promoted on that account"
    if verdict == "worse":
        return "it should not be promoted on that account"
    return "more labels may tell" if measured is not None and measured.difference is not None else ""

"""Two versions of a deployment compared by what they answered: a canary with the live one, or a shadow row by row."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from nbdeploy.comparison_plot import short
from nbdeploy.comparison_result import Comparison
from nbdeploy.comparison_sides import Answers, Lines, Subject, count, joined, percent
from nbdeploy.errors import CompareError

if TYPE_CHECKING:
    from nbdeploy.comparison_labels import Measured

NEEDS = "versions are compared with SciPy, which is not installed: pip install 'nbdeploy[lab]'"
MIN_ERRORS = 3  # one or two may be anything
MIN_TIMED, SLOWER = 500, 1.5  # requests of which a 99th percentile says something, and when it is worth a word

__all__ = ["Answers", "of"]


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
    said += [complaint, _advice(verdict, measured, failing=failing)]
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

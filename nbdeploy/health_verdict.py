"""Whether a deployment does well, in words: what is wrong with it, found in its own numbers. Pure functions of facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nbdeploy.counted_numbers import Counted
from nbdeploy.health_windows import DAY, HOUR, MINUTE, Span, told
from nbdeploy.numbers_log import Interval

LEAST_ERRORS = 5
ERROR_RATE, HIGH_ERROR_RATE = 0.01, 0.05
LEAST_REFUSED, REFUSED_RATE = 20, 0.1
TIMES = 3.0  # so much worse than before is worth a word
LEAST_TIMED, SLOW = 100, 0.05
QUIET = HOUR
SERVER_REASONS = frozenset(
    {"overload", "log", "deadline", "model", "failed", "missing"}
)  # with a status of 500 or more
SMALL_IS_GOOD = frozenset({"mae", "rmse"})
LEAST_BEFORE = 30  # requests that make a "before"


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Attributes
    ----------
    kind : str
        ``errors``, ``refusals``, ``slow``, ``quiet``, ``drift``, ``quality``, ``log``, ``alert`` or ``guard``.
    text : str
        A clause of plain text; where it names what was asked, it is data.
    """

    kind: str
    text: str


def recent(start: float, end: float) -> float:
    """Since when something counts as new, of a stretch of time."""
    return end - min(DAY, max(10 * MINUTE, (end - start) / 8))


def of_numbers(found: Sequence[Interval], start: float, end: float) -> list[Problem]:
    """What the numbers of all versions together say."""
    since = recent(start, end)
    new = _all([each for each in found if each.ended > since])
    old = _all([each for each in found if each.ended <= since])
    lately = f"in the last {told(end - since)}"
    problems = []
    for kind, key, least, rate in (
        ("errors", "errors", LEAST_ERRORS, ERROR_RATE),
        ("refusals", "refused", LEAST_REFUSED, REFUSED_RATE),
    ):
        count, before = int(getattr(new, key)), int(getattr(old, key))
        now = count / new.requests if new.requests else 0.0
        then = before / old.requests if old.requests else 0.0
        up = count >= least and now >= rate and (old.requests < LEAST_BEFORE or now >= TIMES * then)
        if up:
            earlier = f", {then:.1%} before" if old.requests >= LEAST_BEFORE else ""
            problems.append(
                Problem(kind, f"{kind} are up: {now:.1%} of the requests {lately}{earlier}{_most(new, kind)}")
            )
        elif kind == "errors" and count + before >= LEAST_ERRORS:
            overall = (count + before) / (new.requests + old.requests)
            if overall >= HIGH_ERROR_RATE:
                problems.append(Problem(kind, f"{overall:.1%} of the requests failed{_most(_all(found), kind)}"))
    if min(new.requests, old.requests) >= LEAST_TIMED:
        now, then = new.quantile(0.99), old.quantile(0.99)
        if now >= SLOW and now >= TIMES * then:
            problems.append(
                Problem("slow", f"answers are slow: p99 is {1000 * now:.0f} ms {lately}, {1000 * then:.0f} ms before")
            )
    dropped = sum(each.facts["dropped"] for each in found)
    if dropped:
        problems.append(Problem("log", f"the log lost {dropped:,} {'row' if dropped == 1 else 'rows'}"))
    return problems


def of_silence(found: Sequence[Interval], running: Sequence[Span], now: float) -> list[Problem]:
    """Whether nobody asks any more, though somebody did: for longer than ever in between, and an hour at least.

    Parameters
    ----------
    running : sequence of (from, to)
        When the service ran; it still does.
    """
    asked = [each for each in found if each.requests]
    if not asked or not running:
        return []
    last = max(each.ended for each in asked)
    since = max(last, running[-1][0])
    quiet = now - since
    longest, before = 0.0, None
    for each in sorted(asked, key=lambda each: each.ended):
        if before is not None:
            longest = max(longest, each.began - before)
        before = each.ended
    if quiet < QUIET or quiet < TIMES * longest:
        return []
    return [Problem("quiet", f"nobody has asked for {told(quiet)}")]


def of_quality(quality: Any, version: str) -> list[Problem]:
    """Whether the newest labels of the live version say that it has become worse: than in its gate, or than at first.

    Only where the intervals leave no doubt, and never by an estimate.
    """
    if quality is None:
        return []
    windows = quality.windows
    known = windows[(windows["version"] == version) & ~windows["estimated"].astype(bool) & windows["low"].notna()]
    gate = quality.gate.get(version)
    if not len(known) or (gate is None and len(known) < 2):
        return []
    first, last = known.iloc[0], known.iloc[-1]
    if quality.metric in SMALL_IS_GOOD:
        worse = last["low"] > (first["high"] if gate is None else gate)
    else:
        worse = last["high"] < (first["low"] if gate is None else gate)
    if not worse:
        return []
    before = f"it was {quality.told(first['value'])}" if gate is None else f"{quality.told(gate)} in its gate"
    return [
        Problem("quality", f"quality fell: {quality.metric} of {version} is {quality.told(last['value'])}, {before}")
    ]


def sentence(problems: Sequence[Problem], *, running: bool, asked: bool) -> str:
    """One sentence for all of it."""
    if problems:
        text = "; ".join(problem.text for problem in problems)
        return f"{text[0].upper()}{text[1:]}."
    if not running:
        return "It is stopped; nobody is answered."
    return "All is well." if asked else "All is well; nobody has asked yet."


def _all(found: Sequence[Interval]) -> Counted:
    return Counted.of("", [each.facts for each in found])


def _most(counted: Counted, kind: str) -> str:
    wanted = {reason: n for reason, n in counted.reasons.items() if (reason in SERVER_REASONS) == (kind == "errors")}
    if not wanted:
        return ""
    return f", most by {max(wanted, key=lambda reason: wanted[reason])!r}"


SERVER_REASONS = frozenset(
    {"overload", "log", "deadline", "model", "failed", "missing"}
)  # with a status of 500 or more

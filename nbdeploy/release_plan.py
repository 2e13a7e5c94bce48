"""What a guard and a rollout do next: pure functions of what they were told, what was counted, and how long it took.

A limit counts as broken only when the evidence says so: a bound for a binomial share that holds at every look (Robbins,
1970), since the guardian looks every second. A canary that keeps a limit is taken out by mistake in at most one run of a
hundred, however long it is looked at.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from nbdeploy.version_numbers import VersionNumbers

DOUBT = 0.01  # how often a run that keeps a limit may be taken for one that breaks it
P99_REQUESTS = 100  # of fewer, the slowest hundredth is nobody
DRIFT_ROWS = 500  # of fewer, a distance from the training data is mostly chance
FULL = 100.0
EXACT = 0.005  # percent: weights have two decimals

Baseline = Mapping[str, VersionNumbers]


@dataclass(frozen=True)
class GuardRules:
    """What a canary must keep.

    Attributes
    ----------
    error_rate : float or None
        The largest share of its answers with a status of 500 or more; and of those that it refuses more than the live
        version does.
    p99_ms : float or None
        In how many milliseconds all but a hundredth of its requests are answered.
    drift : float or None
        The largest share of columns that may drift from its training data.
    canary_minutes : float
        How long a run is that can be called clean.
    then : {"", "promote"}
        What follows a clean run.
    min_requests : int
        Fewer say nothing: the run is not clean, and waits.
    """

    error_rate: float | None = None
    p99_ms: float | None = None
    drift: float | None = None
    canary_minutes: float = 30.0
    then: str = ""
    min_requests: int = 30

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> GuardRules:
        return cls(**{name: facts[name] for name in (one.name for one in fields(cls)) if name in facts})

    @property
    def enough(self) -> int:
        """How many requests a clean run has."""
        return max(self.min_requests, P99_REQUESTS) if self.p99_ms is not None else self.min_requests

    def __str__(self) -> str:
        told = [f"errors at most {_percent(self.error_rate)}"] if self.error_rate is not None else []
        told += [f"p99 at most {self.p99_ms:g} ms"] if self.p99_ms is not None else []
        told += [f"drift in at most {_percent(self.drift)} of the columns"] if self.drift is not None else []
        after = "promotes it" if self.then == "promote" else "is noted"
        return f"{', '.join(told)}; a clean run of {_minutes(self.canary_minutes)} {after}"


# What holds for a rollout where no guard says otherwise.
DEFAULT = GuardRules(error_rate=0.02)


@dataclass(frozen=True)
class Run:
    """A time during which one canary is looked at.

    Attributes
    ----------
    since : float
        When it began, or went on, in seconds since the epoch.
    spent : float
        Seconds before that.
    baseline : mapping of VersionNumbers
        What had been counted when it began.
    number : int
        How many clean runs of this canary came before.
    said : str
        Why it is not over, though its time is.
    """

    since: float
    spent: float = 0.0
    baseline: Baseline = field(default_factory=dict)
    number: int = 0
    said: str = ""

    def elapsed(self, now: float) -> float:
        """Seconds in which it was looked at."""
        return self.spent + max(0.0, now - self.since)

    def shifted(self, seconds: float) -> Run:
        """The same, though nobody looked for some seconds: those do not count."""
        return replace(self, since=self.since + seconds)

    def counted(self, version: str, numbers: Baseline) -> VersionNumbers:
        """What `version` has done in this run."""
        return gained(version, numbers.get(version), self.baseline.get(version))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Run:
        baseline = {version: _numbers(numbers) for version, numbers in facts["baseline"].items()}
        return cls(float(facts["since"]), float(facts["spent"]), baseline, int(facts["number"]), str(facts["said"]))


@dataclass(frozen=True)
class Rollout:
    """A version on its way to more and more of the traffic.

    Attributes
    ----------
    version, live : str
        Who gets more, and from whom.
    steps : tuple of float
        Percent, each more than the one before; 100 is a promotion.
    minutes : float
        How long a step takes at least.
    at : int
        The step it is at.
    run : Run
        Of this step.
    paused : bool
        Whether its time stands still.
    """

    version: str
    live: str
    steps: tuple[float, ...]
    minutes: float
    run: Run
    at: int = 0
    paused: bool = False

    @property
    def share(self) -> float:
        """Percent that the version has at this step."""
        return self.steps[self.at]

    @property
    def weights(self) -> dict[str, float]:
        """The traffic at this step."""
        return {self.live: round(FULL - self.share, 2), self.version: self.share}

    def next(self, now: float, numbers: Baseline) -> Rollout:
        """The same, a step further."""
        return replace(self, at=self.at + 1, run=Run(now, baseline=numbers))

    def stopped(self, now: float, said: str = "") -> Rollout:
        """The same, paused."""
        run = replace(self.run, since=now, spent=self.run.elapsed(now), said=said)
        return replace(self, paused=True, run=run)

    def going(self, now: float) -> Rollout:
        """The same, resumed."""
        return replace(self, paused=False, run=replace(self.run, since=now, said=""))

    def overruled(self, live: str | None, weights: Mapping[str, float]) -> str:
        """Why it is over, where the traffic is not what it set; '' where it is."""
        if live != self.live:
            return f"{live} became live"
        found, own = dict(weights), self.weights
        if {*found} == {*own} and all(abs(found[version] - own[version]) <= EXACT for version in own):
            return ""
        told = " ".join(f"{version}={weight:g}" for version, weight in found.items())
        return f"the traffic was changed to {told}"

    def to_dict(self) -> dict[str, Any]:
        return {"version": self.version, "live": self.live, "steps": list(self.steps), "minutes": self.minutes,
                "at": self.at, "paused": self.paused, "run": self.run.to_dict(), "told": str(self)}  # fmt: skip

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Rollout:
        return cls(facts["version"], facts["live"], tuple(map(float, facts["steps"])), float(facts["minutes"]),
                   Run.from_dict(facts["run"]), int(facts["at"]), bool(facts["paused"]))  # fmt: skip

    def __str__(self) -> str:
        told = [f"{step:g} %" + (" (now)" if i == self.at else "") for i, step in enumerate(self.steps)]
        return f"{self.version}: {', '.join(told)}; {_minutes(self.minutes)} each" + (", paused" if self.paused else "")


@dataclass(frozen=True)
class Verdict:
    """What is to be thought of a run, and why in one line."""

    kind: Literal["go on", "breach", "clean"]
    why: str = ""


@dataclass(frozen=True)
class Action:
    """What a rollout does next."""

    kind: Literal["wait", "raise", "promote", "abort", "done"]
    share: float = 0.0
    why: str = ""


def judge(
    rules: GuardRules, canary: VersionNumbers, live: VersionNumbers | None, drift: float | None, elapsed: float
) -> Verdict:
    """What `rules` say of a run.

    Parameters
    ----------
    canary, live : VersionNumbers
        What both did in this run. The live one's is for comparison, in the reason.
    drift : float or None
        The share of the canary's columns that drifted; None where that is not known.
    elapsed : float
        Seconds since the run began.
    """
    for broken in (_errors(rules, canary, live), _slowness(rules, canary, live), _drifted(rules, drift)):
        if broken:
            return Verdict("breach", broken)
    if elapsed < rules.canary_minutes * 60:
        return Verdict("go on")
    if doubt := _doubt(rules, canary, live, drift):
        return Verdict("go on", f"{_minutes(rules.canary_minutes)} are over, but {doubt}")
    told = f"{canary.requests:,} requests, {_percent(canary.error_rate)} errors"
    if sum(canary.seconds):
        told += f", p99 {_milliseconds(canary)}"
    if drift is not None:
        told += f", {_percent(drift)} of the columns drifted"
    return Verdict("clean", f"clean for {_minutes(elapsed / 60)}: {told}")


def next_step(rollout: Rollout, verdict: Verdict) -> Action:
    """What `rollout` does after `verdict` on its step, in which a run is as long as the step."""
    if verdict.kind == "breach":
        return Action("abort", why=verdict.why)
    if rollout.paused or verdict.kind == "go on":
        return Action("wait", rollout.share, rollout.run.said if rollout.paused else verdict.why)
    if rollout.at == len(rollout.steps) - 1:
        return Action("done", rollout.share, verdict.why)
    share = rollout.steps[rollout.at + 1]
    return Action("promote" if share >= FULL else "raise", share, verdict.why)


def is_above(count: int, of: int, limit: float) -> bool:
    """Whether `count` of `of` shows a share above `limit`, at whatever moment one asks.

    The lower end of a confidence sequence for a binomial share, with a uniform prior, is above `limit`. Under the limit that
    happens in at most `DOUBT` of all sequences, at any of their moments.
    """
    if count <= limit * of:
        return False
    return limit <= 0 or not _may_be(count, of, limit)


def at_most(count: int, of: int) -> float:
    """The upper end of that confidence sequence: the largest share that `count` of `of` leaves possible."""
    low, high = (count / of if of else 1.0), 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if _may_be(count, of, middle) else (low, middle)
    return high


def slow(numbers: VersionNumbers, seconds: float) -> int:
    """How many requests surely took longer than `seconds`: those in buckets that begin there or later."""
    return sum(numbers.seconds[bisect_left(numbers.bounds, seconds) + 1 :])


def gained(version: str, now: VersionNumbers | None, earlier: VersionNumbers | None) -> VersionNumbers:
    """What was counted between `earlier` and `now`; where the service began anew in between, since then."""
    if now is None:
        return VersionNumbers(version, 0, 0, 0, 0, (), ())
    return now.minus(earlier) if earlier is not None else now


def _may_be(count: int, of: int, share: float) -> bool:
    chance = math.lgamma(of + 1) - math.lgamma(count + 1) - math.lgamma(of - count + 1)
    chance += count * math.log(share) + (of - count) * math.log1p(-share)
    return math.log(of + 1) + chance > math.log(DOUBT)


# -- each limit ---------------------------------------------------------------------------------------------


def _errors(rules: GuardRules, canary: VersionNumbers, live: VersionNumbers | None) -> str:
    if rules.error_rate is None:
        return ""
    limit = _percent(rules.error_rate)
    if is_above(canary.errors, canary.requests, rules.error_rate):
        beside = f"; {live.version} has {_percent(live.error_rate)}" if live is not None and live.requests else ""
        told = f"{canary.errors:,} of {canary.requests:,} answers were errors ({_percent(canary.error_rate)})"
        return f"{told}, above {limit}{beside}"
    # A model that fails on some rows refuses them. Which of them the client is to blame for, the live version tells: both
    # get the same requests.
    if live is None or not live.requests:
        return ""
    bad = canary.errors + canary.refused
    if not is_above(bad, canary.requests, rules.error_rate + at_most(live.refused, live.requests)):
        return ""
    told = f"{bad:,} of {canary.requests:,} requests were refused or failed ({_percent(bad / canary.requests)})"
    return f"{told}, above the {_percent(_refusals(live))} that {live.version} refuses and {limit}"


def _doubt(rules: GuardRules, canary: VersionNumbers, live: VersionNumbers | None, drift: float | None) -> str:
    """Why a run that breaks no limit is not clean either."""
    if canary.requests < rules.enough:
        return f"a verdict takes {rules.enough} requests, and fewer came"
    if rules.error_rate is not None:
        if canary.errors > rules.error_rate * canary.requests:
            return f"errors are above {_percent(rules.error_rate)}, perhaps by chance"
        bad = (canary.errors + canary.refused) / canary.requests
        if live is not None and live.requests and bad > rules.error_rate + _refusals(live):
            return f"it refuses more than {live.version} does, perhaps by chance"
    if rules.p99_ms is not None and 100 * slow(canary, rules.p99_ms / 1000) > sum(canary.seconds):
        return f"p99 is above {rules.p99_ms:g} ms, perhaps by chance"
    return "its drift is not known" if rules.drift is not None and drift is None else ""


def _refusals(numbers: VersionNumbers) -> float:
    return numbers.refused / numbers.requests if numbers.requests else 0.0


def _slowness(rules: GuardRules, canary: VersionNumbers, live: VersionNumbers | None) -> str:
    asked = sum(canary.seconds)
    if rules.p99_ms is None or asked < P99_REQUESTS or not is_above(slow(canary, rules.p99_ms / 1000), asked, 0.01):
        return ""
    beside = f"; {live.version} has {_milliseconds(live)}" if live is not None and any(live.seconds) else ""
    return f"p99 is {_milliseconds(canary)} over {asked:,} requests, above {rules.p99_ms:g} ms{beside}"


def _drifted(rules: GuardRules, drift: float | None) -> str:
    if rules.drift is None or drift is None or drift <= rules.drift:
        return ""
    return f"{_percent(drift)} of its columns drifted from its training data, above {_percent(rules.drift)}"


def _numbers(facts: Mapping[str, Any]) -> VersionNumbers:
    known = {name: facts[name] for name in (one.name for one in fields(VersionNumbers))}
    return VersionNumbers(**{**known, "bounds": tuple(known["bounds"]), "seconds": tuple(known["seconds"])})


def _percent(share: float | None) -> str:
    return f"{100 * (share or 0):.3g} %"


def _milliseconds(numbers: VersionNumbers) -> str:
    return f"{1000 * numbers.quantile(0.99):.3g} ms"


def _minutes(minutes: float) -> str:
    return f"{minutes * 60:.3g} s" if minutes < 1 else f"{minutes:.3g} min"

"""Sums and differences of what the workers of a deployment count, by version, as plain facts that JSON can hold."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nbdeploy import version_numbers
from nbdeploy.version_numbers import VersionNumbers
from nbdeploy.worker_numbers import SECONDS, Numbers

COUNTS = ("requests", "errors", "refused", "rows", "dropped")

_PLACES = {f"{bound:g}": place for place, bound in enumerate((*SECONDS, math.inf))}
_KEYS = {*COUNTS, "seconds", "reasons"}

# By what is counted: a number, or numbers by reason or by the upper end of a bucket.
Facts = dict[str, Any]
Totals = dict[str, Facts]  # by version


@dataclass(frozen=True)
class Counted(VersionNumbers):
    """What one version was asked in some time.

    Attributes
    ----------
    dropped : int
        Rows answered that the prediction log lost.
    reasons : mapping of int
        How often what was asked, by any route, got a 4xx or 5xx for each reason; see docs/metrics.md.
    """

    dropped: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, version: str, parts: Sequence[Facts]) -> Counted:
        """All of `parts` as one."""
        seconds: dict[str, int] = {}
        reasons: dict[str, int] = {}
        for part in parts:
            for sums, found in ((seconds, part["seconds"]), (reasons, part["reasons"])):
                for key, count in found.items():
                    sums[key] = sums.get(key, 0) + count
        counts = {key: sum(part[key] for part in parts) for key in COUNTS}
        buckets = [0] * (len(SECONDS) + 1)
        for bound, count in seconds.items():
            # One of another nbdeploy, with other buckets, counts in the next larger one.
            place = _PLACES.get(bound)
            buckets[bisect_left(SECONDS, float(bound)) if place is None else place] += count
        return cls(version=version, **counts, bounds=SECONDS, seconds=tuple(buckets), reasons=reasons)

    @classmethod
    def sum(cls, version: str, parts: Sequence[Counted]) -> Counted:
        """All of `parts` as one."""
        return cls.of(version, [part.facts for part in parts])

    @property
    def facts(self) -> Facts:
        """The same as JSON holds it."""
        seconds = {bound: count for bound, count in zip(_PLACES, self.seconds, strict=True) if count}
        return {**{key: getattr(self, key) for key in COUNTS}, "seconds": seconds, "reasons": dict(self.reasons)}


def is_facts(found: Any) -> bool:
    """Whether this is what `Counted.facts` gives: a line may hold anything after a fault of the disk."""
    # There may be a hundred thousand of them, so this is a handful of calls.
    if not isinstance(found, dict) or not found.keys() >= _KEYS:
        return False
    seconds, reasons = found["seconds"], found["reasons"]
    if not isinstance(seconds, dict) or not isinstance(reasons, dict):
        return False
    if not {*map(type, (*map(found.__getitem__, COUNTS), *seconds.values(), *reasons.values()))} <= {int}:
        return False
    return seconds.keys() <= _PLACES.keys() or all(map(_is_bound, seconds))


def _is_bound(text: str) -> bool:
    return text in _PLACES or re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text) is not None


def totals_of(found: Numbers) -> Totals:
    """What was counted since the start of the service, by version."""
    totals: Totals = {}
    for version, numbers in version_numbers.of(found).items():
        reasons: dict[str, int] = {}
        for key, (count, *_) in found.get("nbdeploy_refusals", {}).items():
            if key[0] == version:
                reasons[key[2]] = reasons.get(key[2], 0) + int(count)
        totals[version] = {
            "requests": numbers.requests, "errors": numbers.errors, "refused": numbers.refused, "rows": numbers.rows,
            "dropped": int(found.get("nbdeploy_log_drops", {}).get((version,), [0])[0]),
            "seconds": {bound: count for bound, count in zip(_PLACES, numbers.seconds, strict=True) if count},
            "reasons": reasons,
        }  # fmt: skip
    return totals


def difference(now: Totals, before: Totals) -> Totals:
    """What came in between, of the versions that had something."""
    news: Totals = {}
    for version, facts in now.items():
        old = before.get(version, {})
        found: dict[str, Any] = {}
        for key, value in facts.items():
            if isinstance(value, dict):
                held = old.get(key, {})
                found[key] = {each: n - held.get(each, 0) for each, n in value.items() if n > held.get(each, 0)}
            else:
                found[key] = max(0, value - old.get(key, 0))
        if any(found.values()):
            news[version] = found
    return news


def larger(now: Totals, before: Totals) -> Totals:
    """Of each number the larger: a counter that could not be read for a moment must not be counted again."""
    whole: Totals = {**before}
    for version, facts in now.items():
        old = before.get(version, {})
        whole[version] = {
            key: {**old.get(key, {}), **{each: max(n, old.get(key, {}).get(each, 0)) for each, n in value.items()}}
            if isinstance(value, dict)
            else max(value, old.get(key, 0))
            for key, value in facts.items()
        }
    return whole

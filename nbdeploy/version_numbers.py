"""What each version of a deployment has answered since it was started, from the files in which its workers count."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nbdeploy.home import check_name, home
from nbdeploy.worker_numbers import SECONDS, Numbers, counted

# The routes that ask for predictions, as the metrics name them: a version or a name stands in some.
_PREDICTING = frozenset({"/predict", "/invocations", "/bentoml/predict"})
_PREDICTING_ENDS = (":predict", "/infer")


@dataclass(frozen=True)
class VersionNumbers:
    """The requests for predictions that one version got.

    Attributes
    ----------
    errors : int
        Those with a status of 500 or more: the model failed, was too late or overloaded.
    refused : int
        Those with a status of 400 to 499, for which the client is to blame.
    rows : int
        Rows answered.
    bounds : tuple of float
        The upper ends of all buckets of `seconds` but the last, which has none.
    seconds : tuple of int
        In each bucket, the requests that took so long; refusals are among them.
    """

    version: str
    requests: int
    errors: int
    refused: int
    rows: int
    bounds: tuple[float, ...]
    seconds: tuple[int, ...]

    @property
    def error_rate(self) -> float:
        """The share of the requests that were errors; NaN without requests."""
        return self.errors / self.requests if self.requests else math.nan

    def minus(self, earlier: VersionNumbers) -> VersionNumbers:
        """What came after `earlier`, an older reading; all of it where the deployment has been started anew since."""
        counts = (self.requests - earlier.requests, self.errors - earlier.errors,
                  self.refused - earlier.refused, self.rows - earlier.rows)  # fmt: skip
        if self.bounds != earlier.bounds:
            return self
        seconds = tuple(now - before for now, before in zip(self.seconds, earlier.seconds, strict=True))
        if min(*counts, *seconds) < 0 or counts[1] + counts[2] > counts[0]:
            return self
        return VersionNumbers(self.version, *counts, self.bounds, seconds)

    def quantile(self, q: float) -> float:
        """The seconds in which a share `q` of the requests was answered; NaN without requests.

        It is interpolated within its bucket, and at most the last bound: beyond it nothing is known.
        """
        total = sum(self.seconds)
        if not total:
            return math.nan
        wanted, below, lower = q * total, 0, 0.0
        for upper, count in zip(self.bounds, self.seconds, strict=False):
            if count and below + count >= wanted:
                return lower + (upper - lower) * max(0.0, wanted - below) / count
            below, lower = below + count, upper
        return self.bounds[-1]


def read(name: str, *, shadows: bool = False) -> dict[str, VersionNumbers]:
    """The numbers of each version that the running or last deployment `name` served; empty where it never ran.

    No worker is asked. Each writes its numbers four times a second, and those of workers that ended are kept. What a
    version did as a shadow counts apart: with `shadows` it is that, and nothing else.
    """
    return of(counted(home() / "run" / check_name(name) / "metrics", shadows=shadows))


def of(found: Numbers) -> dict[str, VersionNumbers]:
    """The numbers of each version in what workers have counted."""
    return {version: _of(version, found) for version in sorted({key[0] for key in found.get("nbdeploy_info", {})})}


def predicts(route: str) -> bool:
    """Whether a route of the metrics asks for predictions."""
    return route in _PREDICTING or route.endswith(_PREDICTING_ENDS)


def _of(version: str, found: Numbers) -> VersionNumbers:
    asked = [
        (int(key[2]), int(numbers[0])) for key, numbers in _predicting(version, found, "nbdeploy_requests").items()
    ]
    seconds = [0] * (len(SECONDS) + 1)
    for numbers in _predicting(version, found, "nbdeploy_request_seconds").values():
        *counts, _total = numbers
        if len(counts) == len(seconds):  # others are of another nbdeploy, that a worker was restarted with
            seconds = [held + int(count) for held, count in zip(seconds, counts, strict=True)]
    return VersionNumbers(
        version,
        requests=sum(count for _, count in asked),
        errors=sum(count for status, count in asked if status >= 500),
        refused=sum(count for status, count in asked if 400 <= status < 500),
        rows=int(found.get("nbdeploy_rows", {}).get((version,), [0])[0]),
        bounds=SECONDS,
        seconds=tuple(seconds),
    )


def _predicting(version: str, found: Numbers, metric: str) -> Mapping[tuple[str, ...], list[float]]:
    held = found.get(metric, {})
    return {key: numbers for key, numbers in held.items() if key[0] == version and predicts(key[1])}

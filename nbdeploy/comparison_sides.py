"""The two sides of a comparison, and the table that is made of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nbdeploy.comparison_result import COLUMNS
from nbdeploy.version_numbers import VersionNumbers

if TYPE_CHECKING:
    from nbdeploy.release_statistics import Distance, Interval

Values = np.ndarray[Any, Any]
LARGEST = 1e100  # of larger numbers, which a client may send as labels, the sums of squares are none any more


@dataclass(frozen=True, eq=False)
class Answers:
    """What one version answered in a window of the log.

    Attributes
    ----------
    inputs : DataFrame
        As the log has them.
    predictions, ids, labels : sequence
        Per row, as plain JSON values; a label is None where there is none.
    times : array
        Per row, a moment.
    scores : array or None
        Per row the probability of the last class, NaN where nobody asked for it.
    numbers : VersionNumbers or None
        What its workers counted.
    """

    version: str
    inputs: pd.DataFrame
    predictions: Sequence[Any]
    ids: Sequence[str]
    times: Values
    labels: Sequence[Any]
    scores: Values | None = None
    numbers: VersionNumbers | None = None

    def __len__(self) -> int:
        return len(self.predictions)

    def at(self, places: Sequence[int]) -> Answers:
        """The rows at these places."""
        chosen = list(places)
        return replace(
            self, inputs=self.inputs.iloc[chosen], predictions=[self.predictions[i] for i in chosen],
            ids=[self.ids[i] for i in chosen], times=self.times[chosen], labels=[self.labels[i] for i in chosen],
            scores=None if self.scores is None else self.scores[chosen],
        )  # fmt: skip


def joined(live: Answers, candidate: Answers) -> tuple[Answers, Answers]:
    """The rows that both answered, in the same order."""
    places = {key: place for place, key in enumerate(live.ids)}
    pairs = {places[key]: place for place, key in enumerate(candidate.ids) if key in places}
    return live.at([*pairs]), candidate.at([*pairs.values()])


@dataclass(frozen=True, eq=False)
class Subject:
    """What is compared.

    Attributes
    ----------
    shadow : bool
        Both sides answered the same rows, which are in the same order.
    task : str
        ``classification`` or ``regression``; '' where answers have several values.
    """

    name: str
    live: Answers
    candidate: Answers
    shadow: bool
    task: str

    @classmethod
    def of(cls, name: str, live: Answers, candidate: Answers, *, shadow: bool, task: str) -> Subject:
        """`task` is the model's; where that is another one, the answers tell."""
        answers = [value for side in (live, candidate) for value in side.predictions if value is not None]
        numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in answers)
        if any(isinstance(value, (list, dict)) for value in answers):
            task = ""
        elif task == "regression":
            task = task if numbers else ""
        elif task != "classification":
            task = "regression" if numbers and any(isinstance(v, float) for v in answers) else "classification"
        return cls(name, live, candidate, shadow, task)

    @property
    def sides(self) -> tuple[Answers, Answers]:
        return self.live, self.candidate

    @property
    def versions(self) -> tuple[str, str]:
        return self.live.version, self.candidate.version


class Lines:
    """The table of a comparison while it is made."""

    def __init__(self, versions: tuple[str, str]) -> None:
        self._versions = versions
        self._rows: dict[str, tuple[float, float, float, float, float, str]] = {}

    def add(self, measure: str, live: float, candidate: float, interval: Interval | None = None, how: str = "") -> None:
        """Add a measure of both versions; `interval` is of the difference."""
        low, high = (interval.low, interval.high) if interval is not None else (math.nan, math.nan)
        # Without what is left of a subtraction of almost equal numbers.
        gap = 0.0 if math.isclose(candidate, live, rel_tol=1e-12) else float(candidate - live)
        self._rows[measure] = float(live), float(candidate), gap, low, high, how

    def add_counts(self, measure: str, live: int, candidate: int) -> None:
        """Add how many there are of something: no difference is worth a word."""
        self._rows[measure] = float(live), float(candidate), math.nan, math.nan, math.nan, ""

    def add_one(self, measure: str, value: float, interval: Interval | None = None, how: str = "") -> None:
        """Add a measure of both versions together: it stands where differences do."""
        low, high = (interval.low, interval.high) if interval is not None else (math.nan, math.nan)
        self._rows[measure] = math.nan, math.nan, float(value), low, high, how

    def add_distance(self, found: Distance) -> None:
        """Add how far apart the answers are."""
        self.add_one("distance of the answers", found.effect,
                     how=f"{found.measure}: {found.size}; {found.test}, p = {found.p:.2g} for one look")  # fmt: skip

    def frame(self) -> pd.DataFrame:
        index = pd.Index([*self._rows], name="measure")
        return pd.DataFrame([*self._rows.values()], index=index, columns=[*self._versions, *COLUMNS])


def numbers_of(values: Sequence[Any]) -> Values:
    """As floats, NaN for what is no number, or too large to reckon with."""
    return np.array([value if is_number(value) else math.nan for value in values], dtype=float)


def is_number(value: Any) -> bool:
    """Whether a value is a number to reckon with."""
    return isinstance(value, (int, float)) and abs(value) <= LARGEST


def category(value: Any) -> Any:
    """What stands for a value among others, equal for equal ones; '' for a missing one."""
    if isinstance(value, (list, dict)):
        return json.dumps(value, sort_keys=True, default=str)
    return "" if value is None or value != value else value


def count(number: int, noun: str) -> str:
    """So many of them, in words."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """A share in words."""
    return f"{100 * share:.1f} %"

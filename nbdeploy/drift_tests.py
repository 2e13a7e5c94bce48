"""Evidently's own tests of one column, asked about a sample where that is enough and about all rows where it is not."""

from __future__ import annotations

import math
import os
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from nbdeploy.drift_columns import Pair, Sides, inert
from nbdeploy.drift_effects import effect_of, sampling_error
from nbdeploy.drift_result import MIN_ROWS, Verdict, is_p_value

_TIMES = {"moment": "dates as days", "span": "durations as seconds", "clock": "times as seconds"}
_ENOUGH = 20  # times the smaller side from which more rows of the other change a p-value by little


def warm() -> None:
    """Import Evidently, which takes seconds, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load()


def load() -> None:
    """Import Evidently."""
    os.environ.setdefault("DO_NOT_TRACK", "1")  # Evidently's own switch for its telemetry
    import evidently.legacy.metrics
    import evidently.legacy.report  # noqa: F401


def judged(pairs: dict[str, Pair], tests: dict[str, Any] | None = None) -> dict[str, Verdict]:
    """A verdict of every pair, by its label; why there is none where Evidently cannot judge it.

    Parameters
    ----------
    tests : dict, optional
        Gets the test of each pair, which answers at once when it is asked again.

    Raises
    ------
    ImportError
        Evidently's tests are not where they were.
    """
    warm()
    import evidently.legacy.calculations.stattests  # noqa: F401 - it fails here, or not at all

    found = {}
    for label, pair in pairs.items():
        try:
            test = test_of(pair)
        except Exception as error:  # noqa: BLE001 - the reason is shown instead of a verdict
            found[label] = failed(error)
            continue
        found[label] = _judged(pair, test)
        if tests is not None:
            tests[label] = test
    return found


def test_of(pair: Pair) -> Any:
    """The test that Evidently chooses for the whole pair, asked about the pair whatever it is called with."""
    from evidently.legacy.calculations.stattests import get_stattest
    from evidently.legacy.core import ColumnType

    # What it chooses by: more than 1,000 values in the reference or not, and how many differ, up to six.
    like_reference = pd.Series(np.resize(pair.distinct.to_numpy(), min(pair.counts[0], 1001)))
    return _careful_test()(get_stattest(like_reference, pair.distinct, ColumnType(pair.kind), None), pair)


def verdict_of(
    pair: Pair, drifted: object, method: str, score: float, threshold: float, *, error: float = 0.0
) -> Verdict:
    """What Evidently says of a pair, with the size of the difference; no verdict where there are too few values."""
    if (few := min(pair.counts)) < MIN_ROWS:
        return Verdict(None, f"too few rows: {few} of the {MIN_ROWS} it takes")
    if not math.isfinite(score):
        return Verdict(None, f"not compared: {method} gave no number")
    effect, called = effect_of(pair, float(score))
    how = f"{_TIMES[pair.unit]}: {method}" if pair.unit else method
    return Verdict(bool(drifted), how, float(score), float(threshold), effect, called, error)


def failed(error: Exception) -> Verdict:
    """Why Evidently gives no verdict of a pair."""
    return Verdict(None, f"not compared: {inert(' '.join(str(error).split()))}")


def _judged(pair: Pair, test: Any) -> Verdict:
    from evidently.legacy.core import ColumnType

    if min(pair.counts) < MIN_ROWS:
        return verdict_of(pair, None, "", math.nan, math.nan)
    try:
        found = test(None, None, ColumnType(pair.kind), None)
        return verdict_of(
            pair, found.drifted, test.display_name, found.drift_score, found.actual_threshold, error=test.error
        )
    except Exception as error:  # noqa: BLE001 - the reason is shown instead of a verdict
        return failed(error)


@lru_cache(maxsize=1)
def _careful_test() -> Any:
    from evidently.legacy.calculations.stattests import StatTest

    class Careful(StatTest):  # type: ignore[misc]
        """A test of all rows where a sample might mislead: of categories, for p-values, and near the threshold."""

        def __init__(self, test: Any, pair: Pair) -> None:
            super().__init__(test.name, test.display_name, test.allowed_feature_types, test.default_threshold)
            self.test, self.pair, self.error, self.answer = test, pair, 0.0, None

        def __call__(self, _reference: Any, _current: Any, kind: Any, threshold: Any, **_: Any) -> Any:
            if self.answer is None:
                self.answer = self._answer(kind, threshold)
            return self.answer

        def _answer(self, kind: Any, threshold: Any) -> Any:
            pair = self.pair

            def ask(sides: Sides) -> Any:
                return self.test(*(side.dropna() for side in sides), kind, threshold)

            if not pair.sampled:
                return ask(pair.sample)
            p_value = is_p_value(self.display_name)
            if pair.kind == "cat" or (p_value and not pair.costly):
                return ask(pair.whole())
            result = ask(pair.sample)
            near = _is_near_p if p_value else _is_near
            error = math.nan if p_value or pair.kind == "text" else sampling_error(pair)
            if not near(result.drift_score, result.actual_threshold, pair, error):
                self.error = error
                return result
            whole = pair.whole()
            if pair.costly:  # a larger sample, not all rows
                more = max(len(whole[1]), 1)
                self.error = error * math.sqrt(min(len(pair.sample[1]) / more, 1.0))
            return ask(whole)

    return Careful


def _is_near(score: float, threshold: float, pair: Pair, error: float) -> bool:
    if pair.kind == "text":
        return abs(score - threshold) < 0.02
    if math.isnan(error):
        return threshold / 2 < score < threshold * 2
    return abs(score - threshold) < max(error, threshold / 50)


def _is_near_p(score: float, threshold: float, pair: Pair, _error: float) -> bool:
    sizes = sorted(min(len(side), count) for side, count in zip(pair.sample, pair.counts, strict=True))
    return threshold / 10 < score < min(threshold * 10, 1) or sizes[1] < _ENOUGH * sizes[0]

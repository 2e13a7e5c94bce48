"""How large a difference between two sides of a column is, on a scale of -1 to 1 that no number of rows changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nbdeploy.drift_columns import Pair

CLIFF = "Cliff's delta"
VARIATION = "total variation"
SOMERS = "Somers' D"


def effect_of(pair: Pair, score: float) -> tuple[float, str]:
    """The effect size of a pair, and what it is called.

    Of numbers (and moments) Cliff's delta: how much likelier a value of the current side is above one of the reference
    than below it, -1 to 1. Of categories the total variation distance: the share of rows that would have to move for
    both sides to be alike, 0 to 1. Of texts Somers' D of the classifier that tells both sides apart, 2 AUC - 1.

    Parameters
    ----------
    score : float
        Evidently's score of the pair: of texts it is the area under that curve.
    """
    if pair.kind == "num":
        return cliffs_delta(*(side.to_numpy() for side in pair.sample)), CLIFF
    if pair.kind == "cat" and pair.tally is not None:
        return total_variation(*pair.tally()), VARIATION
    return float(np.clip(2 * score - 1, -1, 1)), SOMERS


def cliffs_delta(reference: Any, current: Any) -> float:
    """P(current > reference) - P(current < reference), ties counting for neither; NaN where a side has no number.

    Cliff (1993), Psychological Bulletin 114(3); 0.147, 0.33 and 0.474 are called small, medium and large (Romano et al., 2006).
    """
    # Both: looking sorted values up takes a tenth of the time.
    reference, current = (np.sort(side[~np.isnan(side)]) for side in (reference, current))
    if not len(reference) or not len(current):
        return float("nan")
    below = np.searchsorted(reference, current, side="left").mean()
    not_above = np.searchsorted(reference, current, side="right").mean()
    return float((below - (len(reference) - not_above)) / len(reference))


def total_variation(reference: pd.Series, current: pd.Series) -> float:
    """Half the sum of how far the shares of all categories are apart; NaN where a side has none."""
    if not reference.sum() or not current.sum():
        return float("nan")
    return float(np.abs(reference.to_numpy() / reference.sum() - current.to_numpy() / current.sum()).sum() / 2)


def sampling_error(pair: Pair) -> float:
    """How far Wasserstein's distance of a sample may be from that of all rows, in standard deviations of the reference.

    Told by the samples themselves: the distance between two halves of one is about twice that between it and all rows.
    This is three times the latter, of both sides together. NaN where a half has fewer than 30 values.
    """
    scale = max(float(np.nanstd(pair.sample[0].to_numpy())), 0.001)  # as Evidently has it
    found = 0.0
    for side in pair.sample:
        values = side.to_numpy()
        values = values[~np.isnan(values)]
        half = len(values) // 2
        if half < 30:
            return float("nan")
        apart = np.abs(np.sort(values[0 : 2 * half : 2]) - np.sort(values[1 : 2 * half : 2])).mean()
        found += (apart / 2 / scale) ** 2
    return float(3 * np.sqrt(found))

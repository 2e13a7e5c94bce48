"""How good answers probably were, by what the model itself says: for classifiers whose probabilities are honest.

The estimate is the average confidence: the mean of the probabilities that were given to the answers. Of a calibrated
classifier it is an unbiased estimate of the accuracy, also where the inputs have drifted, as long as what an input
means has not (J. Kivimäki, J. Białek, J. K. Nurminen and W. Kuberski, Confidence-based Estimators for Predictive
Performance in Model Monitoring, 2024); NannyML's CBPE is the same idea for more metrics. A drift of what inputs mean,
concept drift, it does not see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbdeploy.answer_metrics import Values
from nbdeploy.comparison_sides import percent
from nbdeploy.gate_evidence import Evidence
from nbdeploy.model_store import ModelVersion
from nbdeploy.release_statistics import Interval, proportion

MOST = 0.05  # how far probabilities may be off, on average, to be believed
MIN_LABELLED = 200  # rows that tell how far they are off
MIN_ESTIMATED = 30  # rows of a window with probabilities
CALIBRATION = "calibration error"  # what the default gate calls it


@dataclass(frozen=True)
class Calibration:
    """How far a version's probabilities are from how often it is right, and how that is known.

    Attributes
    ----------
    error : float
        The expected calibration error; NaN where it is not known.
    words : str
        Where it was measured, for a sentence.
    """

    error: float
    words: str

    @property
    def why_not(self) -> str:
        """Why it allows no estimate; '' where it does."""
        if math.isnan(self.error):
            return self.words
        if self.error > MOST:
            return (
                f"its probabilities are off by {percent(self.error)} on average {self.words}, more than {percent(MOST)}"
            )
        return ""


def calibration(
    version: ModelVersion | None, evidence: list[Evidence], confidence: Values, right: Values
) -> Calibration:
    """How honest the probabilities of a version are.

    What is labelled in its log counts most. Where that is little it can only speak against them: then counts what its
    newest gate measured on rows of its own, and last the sample of its training rows, of which models think too well.

    Parameters
    ----------
    confidence, right : array
        Of labelled rows: the probability of the answer, and whether that was right.
    """
    if len(confidence) >= MIN_ESTIMATED:
        told = proportion(int(right.sum()), len(right))
        if not told.low <= float(confidence.mean()) <= told.high and len(confidence) < MIN_LABELLED:
            words = f"on {len(confidence):,} labelled predictions"
            return Calibration(abs(float(confidence.mean()) - told.estimate), words)
    if len(confidence) >= MIN_LABELLED:
        return Calibration(error_of(confidence, right), f"on {len(confidence):,} labelled predictions")
    for each in evidence:
        found = next((check.value for check in each.checks if check.name == CALIBRATION), math.nan)
        if each.parameters.get("data") and math.isfinite(found):
            return Calibration(float(found), "on the rows of its gate")
    if version is not None and (sample := _of_sample(version)) is not None and len(sample[0]) >= MIN_LABELLED:
        return Calibration(error_of(*sample), "on rows that it was fitted on, which flatters")
    return Calibration(math.nan, "nobody has checked its probabilities on labelled rows")


def error_of(confidence: Values, right: Values) -> float:
    """The expected calibration error, over up to ten groups of as many rows by their confidence, of 100 at least."""
    parts = np.array_split(np.argsort(confidence, kind="stable"), max(1, min(10, len(confidence) // 100)))
    gaps = [abs(float(confidence[part].mean() - right[part].mean())) * len(part) for part in parts]
    return sum(gaps) / len(confidence)


def estimated(confidence: Values, rows: int, known: Calibration) -> Interval:
    """The accuracy of the rows of a window, of which some have a probability; NaN where that tells too little.

    The interval holds what chance does to so many rows, and on either side the calibration error.
    """
    count = len(confidence)
    if known.why_not or count < MIN_ESTIMATED or 2 * count < rows:
        return Interval(math.nan, math.nan, math.nan)
    mean = float(confidence.mean())
    width = 1.96 * math.sqrt(float((confidence * (1 - confidence)).sum())) / count + known.error
    return Interval(mean, max(0.0, mean - width), min(1.0, mean + width))


def _of_sample(version: ModelVersion) -> tuple[Values, Values] | None:
    """Of the reference sample: the probability of each answer, and whether it was right."""
    labels, expected, classes = version.labels, version.expected, version.signature.classes
    if labels is None or getattr(labels, "ndim", 2) != 1 or "prediction" not in expected or not classes:
        return None
    chances = expected.filter(regex="^probability_").to_numpy(dtype=float)
    places = {value: place for place, value in enumerate(classes)}
    answered = np.array([_place(places, value) for value in expected["prediction"].tolist()])
    true = np.array([_place(places, value) for value in labels.tolist()])
    if chances.shape != (len(answered), len(classes)):
        return None
    kept = np.flatnonzero((answered >= 0) & (true >= 0))
    return chances[kept, answered[kept]], (answered == true)[kept].astype(float)


def _place(places: dict[Any, int], value: Any) -> int:
    try:
        return places.get(value, -1)
    except TypeError:  # no single value
        return -1

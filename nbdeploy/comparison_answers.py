"""How far the answers of two versions are apart, as distributions and row by row."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nbdeploy import plot, release_statistics
from nbdeploy.comparison_sides import Lines, Subject, Values, category, count, numbers_of, percent
from nbdeploy.plot import short

MAX_ROWS = 20  # that differ most
# How far apart two numbers may be and still agree: a share of the spread of the live answers.
TOLERANCE = 0.05

_SIZES = {
    "none": "distributed as those of {}",
    "small": "distributed somewhat differently from those of {}",
    "medium": "distributed clearly differently from those of {}",
    "large": "distributed very differently from those of {}",
}


@dataclass(frozen=True)
class Apart:
    """What the answers say: a sentence without an end, a picture, and the rows that differ most."""

    sentence: str
    plot: str
    rows: pd.DataFrame


def apart(about: Subject, lines: Lines) -> Apart:
    """How far the answers are apart, with its lines."""
    if about.task == "regression":
        live, candidate = (numbers_of(side.predictions) for side in about.sides)
        known = np.isfinite(live), np.isfinite(candidate)
        if not known[0].any() or not known[1].any():
            return Apart("no answer of one of them is a number", "", pd.DataFrame())
        if about.shadow and not (known[0] & known[1]).any():
            return Apart("to no row are both answers numbers", "", _most_different(about, np.full(len(live), np.inf)))
        return (
            _paired_numbers(about, lines, live, candidate) if about.shadow else _numbers(about, lines, live, candidate)
        )
    live, candidate = (_objects([*map(category, side.predictions)]) for side in about.sides)
    found = _categories(about, lines, live, candidate)
    return _paired_categories(about, lines, live, candidate, found.plot) if about.shadow else found


# -- as distributions ---------------------------------------------------------------------------------------


def _numbers(about: Subject, lines: Lines, live: Values, candidate: Values) -> Apart:
    live, candidate = live[np.isfinite(live)], candidate[np.isfinite(candidate)]
    found = release_statistics.distance_of_numbers(live, candidate)
    was, now = float(live.mean()), float(candidate.mean())
    lines.add("mean answer", was, now)
    lines.add_distance(found)
    told = _SIZES[found.size].format(about.live.version)
    sentence = f"{about.candidate.version}'s answers are {told}, {short(now)} on average instead of {short(was)}"
    return Apart(sentence, plot.histograms(live, candidate, about.versions, "Share of the answers"), pd.DataFrame())


def _categories(about: Subject, lines: Lines, live: Values, candidate: Values) -> Apart:
    found = release_statistics.distance_of_categories(live.tolist(), candidate.tolist())
    was, now = Counter(live.tolist()), Counter(candidate.tolist())
    common = [value for value, _ in (was + now).most_common(plot.MAX_BARS)]
    shares = [(was[value] / len(live), now[value] / len(candidate)) for value in common]
    for value, pair in zip(common[:5], shares, strict=False):
        interval = release_statistics.proportions((was[value], now[value]), (len(live), len(candidate)))
        lines.add(f"share of {_shown(value)}", *pair, interval, "95 % for one look (Newcombe)")
    lines.add_distance(found)
    # What changed most says more than what is commonest.
    most, (before, after) = max(zip(common, shares, strict=True), key=lambda each: abs(each[1][1] - each[1][0]))
    told = _SIZES[found.size].format(about.live.version)
    sentence = (
        f"{about.candidate.version}'s answers are {told}, {percent(after)} {_shown(most)} instead of {percent(before)}"
    )
    named, before_each, after_each = [*map(_shown, common)], [pair[0] for pair in shares], [pair[1] for pair in shares]
    drawn = plot.bars(named, before_each, after_each, about.versions, "Share of the answers")
    return Apart(sentence, drawn, pd.DataFrame())


# -- row by row ---------------------------------------------------------------------------------------------


def _paired_numbers(about: Subject, lines: Lines, live: Values, candidate: Values) -> Apart:
    kept = np.isfinite(live) & np.isfinite(candidate)
    tolerance = TOLERANCE * float(live[np.isfinite(live)].std())
    rate, gaps = release_statistics.agreement(live, candidate, tolerance)
    mean = float(gaps[kept].mean())
    lines.add("mean answer", float(live[kept].mean()), float(candidate[kept].mean()))
    lines.add_one(f"answers that agree within {short(tolerance)}", rate.estimate, rate, "95 % for one look (Wilson)")
    lines.add_one("mean distance of the two answers", mean)
    sentence = f"{_agrees(about, rate, f' within {short(tolerance)}')}, {short(mean)} apart on average"
    drawn = plot.cloud(live[kept], candidate[kept], about.versions, "The two answers to each row")
    return Apart(sentence, drawn, _most_different(about, np.where(kept, gaps, np.inf)))


def _paired_categories(about: Subject, lines: Lines, live: Values, candidate: Values, drawn: str) -> Apart:
    rate, gaps = release_statistics.agreement(live, candidate)
    lines.add_one("answers that agree", rate.estimate, rate, "95 % for one look (Wilson)")
    scores = [side.scores for side in about.sides]
    if scores[0] is not None and scores[1] is not None:  # the surer they were of different answers, the further apart
        gaps = gaps * (1 + np.nan_to_num(np.abs(scores[1] - scores[0])))
    return Apart(_agrees(about, rate, ""), drawn, _most_different(about, gaps))


def _agrees(about: Subject, rate: release_statistics.Interval, within: str) -> str:
    live, candidate = about.versions
    return (f"{candidate} answers as {live} does{within} in {percent(rate.estimate)} of {count(len(about.live), 'row')} "
            f"(95 % sure between {percent(rate.low)} and {percent(rate.high)})")  # fmt: skip


def _most_different(about: Subject, gaps: Values) -> pd.DataFrame:
    """The inputs and both answers of the rows that differ most."""
    places = release_statistics.most_different(gaps, MAX_ROWS)
    frame = about.live.at(places).inputs.reset_index(drop=True)
    added = {side.version: [side.predictions[place] for place in places] for side in about.sides}
    added["prediction_id"] = [about.live.ids[place] for place in places]
    for label, values in added.items():
        while label in frame.columns:
            label += "_"  # noqa: PLW2901 - an input may have that name
        frame[label] = pd.Series(values, index=frame.index, dtype=object)
    return frame


# -- helpers ------------------------------------------------------------------------------------------------


def _objects(values: list[Any]) -> Values:
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def _shown(value: Any) -> str:
    text = "no answer" if value == "" else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"

"""What changed in a column, in words: one sentence, and how much it weighs among those of other columns."""

from __future__ import annotations

import calendar
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nbdeploy.drift_columns import Pair, inert
from nbdeploy.drift_effects import cliffs_delta
from nbdeploy.drift_sides import Side

MIN_ROWS = 30  # of each side, for a sentence
_LISTED = 3  # values that a sentence names
_DAYS = 3  # of moments that are further apart the hours are not told
_NOTABLE = 0.01  # the least share of rows that is told of a column that has not drifted
_SURE = 4.0  # standard errors from which a share is not by chance: hundreds of shares are looked at


@dataclass(frozen=True)
class Seen:
    """What the reference is called in a sentence: ``the model has seen`` only January.

    Attributes
    ----------
    phrase : str
    answers : str
        The same of `column`, which holds what the model said and not what it saw.
    column : str
    """

    phrase: str = "the model has seen"
    answers: str = "it said in training"
    column: str = ""

    def of(self, column: Hashable) -> str:
        return self.answers if self.column and column == self.column else self.phrase


@dataclass(frozen=True)
class Change:
    """A sentence on one column, and its weight: about the share of rows that are unlike those of the reference."""

    weight: float
    sentence: str


def change_of(pair: Pair, *, drifted: bool, effect: float, seen: Seen) -> Change | None:
    """What changed most in a column; None where nothing worth a sentence did.

    A column that has drifted always has a sentence. Another has one where a value is missing, new or out of range in at
    least a hundredth of the rows, and four standard errors more often than before.
    """
    told = [*_missing(pair)]
    describe = {"num": _numbers, "cat": _categories, "text": _texts}[pair.kind]
    told += describe(pair, seen.of(pair.column), drifted=drifted)
    told = sorted((fact for fact in told if fact[0] > 0), key=lambda fact: -fact[0])[:2]
    if not told and drifted:
        told = [(abs(effect), "its values are distributed otherwise")]
    if not told:
        return None
    weight = max(*(fact[0] for fact in told), abs(effect) if drifted and math.isfinite(effect) else 0.0, 0.0)
    return Change(weight, f"`{pair.label}`: {'; '.join(fact[1] for fact in told)}")


def emptied(column: Hashable, sides: tuple[Side, Side]) -> Change | None:
    """What is said of a column that has values on one side only."""
    if not all(column in side.frame.columns for side in sides):
        return None
    present = [side.present.get(column, int(side.frame[column].notna().sum())) for side in sides]
    if all(present) or not any(present) or min(side.rows for side in sides) < MIN_ROWS:
        return None
    share = max(present[i] / max(side.rows, 1) for i, side in enumerate(sides))
    return Change(
        share,
        f"`{inert(str(column))}`: {'never missing any more, it always was' if present[1] == sides[1].rows else 'no longer always missing' if present[1] else f'always missing, instead of {_share(1 - present[0] / sides[0].rows)}'}",
    )


Fact = tuple[float, str]


def _missing(pair: Pair) -> list[Fact]:
    before, now = (1 - pair.present[i] / max(pair.rows[i], 1) for i in (0, 1))
    if abs(now - before) < _NOTABLE or not _surely(before, now, pair.rows):
        return []
    return [(abs(now - before), f"{_share(now)} missing instead of {_share(before)}")]


def _surely(before: float, now: float, rows: Sequence[int]) -> bool:
    pooled = (before * rows[0] + now * rows[1]) / max(sum(rows), 1)
    error = math.sqrt(max(pooled * (1 - pooled), 1e-12) * (1 / max(rows[0], 1) + 1 / max(rows[1], 1)))
    return abs(now - before) > _SURE * error


# -- numbers and moments ------------------------------------------------------------------------------------


def _numbers(pair: Pair, seen: str, *, drifted: bool) -> list[Fact]:
    before, now = (side.dropna().to_numpy() for side in pair.sample)
    say = _SAID[pair.unit]
    if pair.unit == "moment" and min(np.ptp(before), np.ptp(now)) > _DAYS:
        say = _day
    (low, high), facts = (before.min(), before.max()), []
    outside = float(((now < low) | (now > high)).mean())
    span = f"{say(low)} to {say(high)}" if low != high else f"only {say(low)}"
    if now.min() == now.max() and not low == high == now[0]:
        return [(1.0 - float((before == now[0]).mean()), f"all {say(now[0])}; {seen} {span}")]
    if outside > 0.5:
        return [(1.0, f"{say(now.min())} to {say(now.max())}; {seen} {span}")]
    if outside >= _NOTABLE and outside > 8 / max(len(before), 1):
        facts.append((outside, f"{_share(outside)} of the values outside of what {seen} ({span})"))
    if not drifted:
        return facts
    centre = [float(np.median(side)) for side in (before, now)]
    moved = centre[1] - centre[0]
    halves = [np.percentile(side, (25, 75)) for side in (before, now)]
    width = [float(half[1] - half[0]) for half in halves]
    if moved and say(centre[0]) != say(centre[1]):
        way = ("later" if moved > 0 else "earlier") if pair.unit in ("moment", "clock") else (
            "higher" if moved > 0 else "lower")  # fmt: skip
        apart = _distance(abs(moved), pair.unit)
        facts.append(
            (
                abs(cliffs_delta(before, now)) + 1e-9,
                f"{apart} {way} in the middle (median {say(centre[1])} instead of {say(centre[0])})",
            )
        )
    if min(width) > 0 and not 2 / 3 < width[1] / width[0] < 3 / 2:
        wider = width[1] > width[0]
        found = abs(math.log(width[1] / width[0])) / 4
        between = [f"{say(half[0])} to {say(half[1])}" for half in halves]
        facts.append(
            (
                min(found, 1.0),
                f"{'wider' if wider else 'narrower'}: half of the values are {between[1]} instead of {between[0]}",
            )
        )
    return facts


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1e15 or abs(value) < 1e-4:
        return f"{value:.3g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "\u2212")


def _moment(days: float) -> str:
    try:
        at = pd.Timestamp(round(days * 86_400_000), unit="ms")
    except (ValueError, OverflowError):
        return f"{_number(days)} days since 1970"
    return str(at.strftime("%Y-%m-%d" if days == int(days) else "%Y-%m-%d %H:%M"))


def _day(days: float) -> str:
    return _moment(days).partition(" ")[0] if abs(days) < 1e5 else _moment(days)


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
        if abs(seconds) >= size:
            return f"{_number(seconds / size)} {unit}"
    return f"{_number(seconds)} s"


def _clock(seconds: float) -> str:
    minutes = int(seconds // 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


_SAID = {"": _number, "moment": _moment, "span": _span, "clock": _clock}


def _distance(size: float, unit: str) -> str:
    return _number(size) if not unit else _span(size * 86400 if unit == "moment" else size)


# -- categories ---------------------------------------------------------------------------------------------


def _categories(pair: Pair, seen: str, *, drifted: bool) -> list[Fact]:
    assert pair.tally is not None
    before, now = pair.tally()
    rows = int(before.sum()), int(now.sum())
    shares = before / max(rows[0], 1), now / max(rows[1], 1)
    named = _named(pair, [str(label) for label in before.index])
    new = shares[1][(before == 0) & (now > 0)].sort_values(ascending=False, kind="stable")
    fresh = float(new.sum())
    notable = fresh >= _NOTABLE and _surely(0.0, fresh, rows)
    had = [named[str(label)] for label in before[before > 0].sort_values(ascending=False, kind="stable").index]
    only = f"{seen} {_only(had)}"
    there = now[now > 0]
    if len(there) == 1 and (drifted or notable):
        label = there.index[0]
        if before[label] == 0:
            return [(1.0, f"all {named[label]}; {only}")]
        return [(1 - float(shares[0][label]), f"all {named[label]}, instead of {_share(float(shares[0][label]))}")]
    facts: list[Fact] = []
    if notable:
        values = "a new value" if len(new) == 1 else f"{len(new):,} new values"
        if fresh > 0.999:
            facts.append((1.0, f"only {_list([named[str(v)] for v in new.index], len(new))}; {only}"))
            return facts
        facts.append(
            (fresh, f"{values} ({_list([named[str(v)] for v in new.index], len(new))}), {_share(fresh)} of the rows")
        )
    if not drifted:
        return facts
    old = shares[0][(now == 0) & (before > 0)].sort_values(ascending=False, kind="stable")
    if (lost := float(old.sum())) >= _NOTABLE:
        facts.append(
            (lost, f"no more {_list([named[str(v)] for v in old.index], len(old))} ({_share(lost)} of the rows before)")
        )
    common = (before > 0) & (now > 0)
    if common.any():
        moved = (shares[1] - shares[0])[common]
        label = moved.abs().idxmax()
        if abs(moved[label]) > 0:
            now_in, before_in = (_share(float(side[label])) for side in (shares[1], shares[0]))
            both = f"{named[str(label)]} in {now_in} of the rows instead of {before_in}"
            facts.append((abs(float(moved[label])), both))
    return facts


def _named(pair: Pair, labels: Sequence[str]) -> dict[str, str]:
    """What values are called: months by their names, where a column is called month and has nothing else."""
    name = str(pair.column).lower()
    months = name == "month" or name.endswith(("_month", " month"))
    if months and all(label.isdecimal() and 1 <= int(label) <= 12 for label in labels):
        return {label: calendar.month_name[int(label)] for label in labels}
    return dict(zip(labels, labels, strict=True))


def _only(values: Sequence[str]) -> str:
    return f"only {_list(values, len(values))}" if len(values) <= 2 * _LISTED else f"{len(values):,} others"


def _list(values: Sequence[str], count: int) -> str:
    shown = list(values[: _LISTED if count > 2 * _LISTED else 2 * _LISTED])
    if count > len(shown):
        return f"{', '.join(shown)} and {count - len(shown):,} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _share(share: float) -> str:
    percent = 100 * share
    if 0 < percent < 0.1:
        return "under 0.1 %"
    if 99.9 < percent < 100:
        return "over 99.9 %"
    return f"{percent:.0f} %" if percent >= 10 or percent == int(percent) else f"{percent:.1f} %"


# -- texts --------------------------------------------------------------------------------------------------


def _texts(pair: Pair, _seen: str, *, drifted: bool) -> list[Fact]:
    if not drifted:
        return []
    length: list[Any] = [side.dropna().str.len() for side in pair.sample]
    middle = [float(each.median()) for each in length]
    facts = [(0.5, "other words: a classifier tells the texts apart")]
    if min(middle) > 0 and not 2 / 3 < middle[1] / middle[0] < 3 / 2:
        facts.append((0.4, f"{_number(middle[1])} characters in the middle instead of {_number(middle[0])}"))
    return facts

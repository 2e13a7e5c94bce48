"""Two frames, as pairs of columns that can be compared: same type, sampled, every string inert."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from nbdeploy.drift_sides import Held, Side

Kind = Literal["num", "cat", "text"]
Sides = tuple[Any, Any]  # the two Series of a column: reference, current

_FEW = 10  # distinct whole numbers up to which they are categories, as Evidently has it
_SURE = 1000  # values from which the current side alone tells what kind a column is
_LONGEST = 100  # characters of a category
_COUNTED = 10_000_000  # rows that counts are laid out as for a test that wants rows; more are scaled down

# Look-alikes for all that opens markup, an entity, a template or an escape: legible, and nothing else.
_LOOKALIKES = str.maketrans({"<": "‹", ">": "›", "&": "＆", "$": "＄", "`": "‵", "\\": "＼"})
_SCHEME = re.compile(r"(javascript|vbscript|data)(\s*):", re.IGNORECASE)
_HARMLESS = re.compile(r"[\w .,;!?()+*/=@#%^~|'\"-]*", re.ASCII)

_REASONS = {
    "empty": "not compared: no values {side}",
    "moment": "not compared: dates or times on one side only",
    "other": "not compared: values that are neither numbers nor text",
}

# What pandas finds in a column, and what it is here.
_KINDS = {
    "string": "text",
    "boolean": "flag",
    "integer": "whole",
    "floating": "number",
    "mixed-integer-float": "number",
    "integer-na": "whole",
    "decimal": "number",
    "complex": "other",
    "bytes": "label",
    "interval": "label",
    **dict.fromkeys(("datetime64", "datetime", "date", "period"), "moment"),
    **dict.fromkeys(("timedelta64", "timedelta"), "span"),
    "time": "clock",
}
_TIMES = ("moment", "span", "clock")  # compared as numbers: days since 1970, seconds, seconds of the day


Columns = tuple[Held, Held]


@dataclass(frozen=True)
class Pair:
    """One column on both sides, ready to be compared.

    Attributes
    ----------
    column : Hashable
        Its own name.
    label : str
        The same, inert.
    kind : {"num", "cat", "text"}
        Numbers are float64 without infinities, categories share one categorical type, texts are strings.
    sample : tuple of Series
        Reference and current, sampled, in their order.
    whole : callable
        Makes the same pair of all rows, or of as many as can be had.
    counts : tuple of int
        The values (not null) on each side, of all rows.
    distinct : Series
        A few of the values: six different ones where there are as many.
    sampled : bool
        Whether `whole` has more rows than `sample`.
    rows, present : tuple of int
        Of each side all rows, and those with a value, infinities included.
    unit : str
        What its numbers are: ``""``, or ``moment`` (days since 1970, UTC), ``span`` (seconds), ``clock`` (seconds of
        the day).
    tally : callable, optional
        Of categories, how often each stands on each side, in all rows where that is known.
    costly : bool
        Whether `whole` reads a log again, and is a larger sample of it.
    """

    column: Hashable
    label: str
    kind: Kind
    sample: Sides
    whole: Callable[[], Sides]
    counts: tuple[int, int]
    distinct: pd.Series
    sampled: bool
    rows: tuple[int, int]
    present: tuple[int, int]
    unit: str = ""
    tally: Callable[[], Sides] | None = None
    costly: bool = False


def pair_up(reference: Side, current: Side, *, max_rows: int, seed: int) -> tuple[dict[str, Pair], dict[Hashable, str]]:
    """Return the pairs by a label that is safe to show, and for every other column why there is none."""
    picks = tuple(_sample(len(s.frame), max_rows, seed + i) for i, s in enumerate((reference, current)))
    names = reference.frame.columns, current.frame.columns
    pairs: dict[str, Pair] = {}
    reasons: dict[Hashable, str] = {}
    columns = [*names[0], *(name for name in names[1] if name not in names[0])]
    for column, label in zip(columns, apart(inert(str(column)) for column in columns), strict=True):
        if column not in names[1]:
            reasons[column] = "not compared: only in the reference"
        elif column not in names[0]:
            reasons[column] = "not compared: not in the reference"
        else:
            try:
                sides = reference.column(column), current.column(column)
                chosen = tuple(pick if len(side.cells) == len(whole.frame) else _sample(len(side.cells), max_rows, seed)
                               for side, whole, pick in zip(sides, (reference, current), picks, strict=True))  # fmt: skip
                made = _pair(column, label, sides, chosen)
            except Exception as error:  # noqa: BLE001 - one odd column must not cost the others their verdict
                made = f"not compared: {type(error).__name__} while reading it"
            if isinstance(made, str):
                reasons[column] = made
            else:
                pairs[label] = made
    return pairs, reasons


def by_label(values: pd.Series) -> pd.Series:
    """The values as text that is safe to show; nulls stay null."""
    labels: dict[str, int] = {}
    codes = _coded(values, labels)
    return pd.Series(pd.Categorical.from_codes(codes, categories=apart(inert(each) for each in labels))).astype(object)


def inert(text: str, longest: int = _LONGEST) -> str:
    """Return `text` so that no page can take it for markup, script or a link, and a reader still can read it."""
    text = shortened(text, longest)
    if _HARMLESS.fullmatch(text):
        return text or "(empty)"
    return visible(_SCHEME.sub(r"\1\2：", text.translate(_LOOKALIKES)))


def visible(text: str) -> str:
    """Return `text` on one line, with what cannot be printed (controls, direction marks) spelled out."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else f"u{ord(char):04x}" for char in text)


def shortened(text: str, longest: int) -> str:
    """Return `text`, or its beginning and its length."""
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"


def _sample(rows: int, at_most: int, seed: int) -> np.ndarray[Any, Any] | slice:
    if rows <= at_most:
        return slice(None)
    return np.sort(np.random.default_rng(seed).choice(rows, at_most, replace=False))


def _are_sampled(sides: Columns, picks: tuple[Any, ...]) -> bool:
    return any(side.sampled for side in sides) or not all(isinstance(pick, slice) for pick in picks)


def _pair(column: Hashable, label: str, sides: Columns, picks: tuple[Any, ...]) -> Pair | str:
    kinds = [kind_of(side.cells) for side in sides]
    make: Callable[..., Pair | str] = _categories
    if "empty" in kinds:
        return _REASONS["empty"].format(side=f"in the {'reference' if kinds[0] == 'empty' else 'window'}")
    times = {*kinds} & {*_TIMES}
    if times and ({*kinds} == times or {*kinds} - times == {"text"}) and len(times) == 1:
        (unit,) = times
        sides = tuple(replace(side, cells=_as_numbers(side.cells, unit), more=_then(side.more, unit)) for side in sides)  # type: ignore[assignment]
        made = _numbers(column, label, sides, picks)
        return made if isinstance(made, str) else replace(made, unit=unit)
    if times:
        return _REASONS["moment"]
    if "other" in kinds:
        return _REASONS["other"]
    if "flag" in kinds and {*kinds} & {"whole", "number"}:
        sides = tuple(
            replace(side, cells=_floats(side.cells), counts=None) if kind == "flag" else side
            for side, kind in zip(sides, kinds, strict=True)
        )  # type: ignore[assignment]
    if {*kinds} <= {"number", "whole", "flag"} and {*kinds} != {"flag"}:
        make = _categories if kinds[1] == "whole" and _agree(sides, _are_few) else _numbers
    elif len({*kinds} & {"number", "whole"}) == 1 and "text" in kinds:
        try:
            return _numbers(column, label, sides, picks)  # numbers that came as text on one side
        except ValueError:
            pass
    elif {*kinds} == {"text"} and _agree(sides, _are_many):
        make = _texts
    return make(column, label, sides, picks)


def kind_of(values: pd.Series) -> str:
    """What the values of a column are: text, flag, whole, number, label, moment, span, clock, other; or empty."""
    dtype = values.dtype
    if not values.notna().any():
        return "empty"
    if isinstance(dtype, pd.CategoricalDtype):
        return "label"
    if isinstance(dtype, pd.StringDtype):
        return "text"
    found = pd.api.types.infer_dtype(values, skipna=True)
    if found in _KINDS:
        return _KINDS[found]
    return "label" if _are_scalars(values) else "other"


def _are_scalars(values: pd.Series) -> bool:
    return all(isinstance(value, (str, bool, int, float)) or pd.api.types.is_number(value) for value in values.dropna())


def _are_few(side: Held) -> bool:
    if side.counts is not None:
        return len(side.counts) <= _FEW
    return bool(side.cells.iloc[:_SURE].nunique() <= _FEW and side.cells.nunique() <= _FEW)


def _are_many(side: Held) -> bool:
    if side.counts is not None:
        return bool(len(side.counts) > side.present * 0.5)
    if not side.sampled:
        return bool(side.cells.nunique() > side.cells.count() * 0.5)
    # Chao's estimate of how many there are in all, by those that a sample has once and twice.
    often = side.cells.value_counts()
    once, twice = int((often == 1).sum()), int((often == 2).sum())
    return bool(len(often) + once * (once - 1) / (2 * (twice + 1)) > side.present * 0.5)


def _agree(sides: Columns, rule: Callable[[Held], bool]) -> bool:
    """Whether `rule` holds for the current side, and for the reference too where the current one is short."""
    return rule(sides[1]) and (len(sides[1].cells) >= _SURE or rule(sides[0]))


def _numbers(column: Hashable, label: str, sides: Columns, picks: tuple[Any, ...]) -> Pair | str:
    def numbers(side: int, pick: Any) -> pd.Series:
        return _floats(sides[side].cells.iloc[pick])

    def most(side: int) -> pd.Series:
        more = sides[side].more
        return numbers(side, slice(None)) if more is None else _floats(more())

    sample = (numbers(0, picks[0]), numbers(1, picks[1]))
    # The whole is only counted where the sample is not the whole.
    counts = [int(sample[i].count()) if isinstance(picks[i], slice) else _finite(sides[i].cells) for i in (0, 1)]
    for i, side in enumerate(sides):
        if side.sampled and counts[i]:
            counts[i] = max(int(side.present * counts[i] / max(side.cells.count(), 1)), counts[i])
    if not all(part.count() for part in sample):
        return _REASONS["empty"].format(side=f"in the {'window' if sample[0].count() else 'reference'}")
    distinct = _six(pd.concat([part.iloc[:_SURE] for part in sample]))
    if len(distinct) < 6:
        known = [_numbers_in(side.counts) if side.counts is not None else numbers(i, slice(None))
                 for i, side in enumerate(sides)]  # fmt: skip
        distinct = _six(pd.concat(known))
    return Pair(
        column, label, "num", sample, lambda: (most(0), most(1)), (counts[0], counts[1]), distinct,
        _are_sampled(sides, picks), _rows(sides), _present(sides),
        costly=any(side.more is not None for side in sides),
    )  # fmt: skip


def _numbers_in(counts: pd.Series) -> pd.Series:
    return _floats(pd.Series(counts.index.to_numpy()))


def _rows(sides: Columns) -> tuple[int, int]:
    return sides[0].rows, sides[1].rows


def _present(sides: Columns) -> tuple[int, int]:
    return sides[0].present, sides[1].present


def _floats(values: pd.Series) -> pd.Series:
    raw = values.to_numpy(dtype="float64", na_value=np.nan)
    return pd.Series(np.where(np.isfinite(raw), raw, np.nan))


def _finite(values: pd.Series) -> int:
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "iuf":
        return int(np.isfinite(values.to_numpy()).sum())
    return int(values.count())


def _as_numbers(values: pd.Series, unit: str) -> pd.Series:
    """Moments as days since 1970 (UTC), spans as seconds, times of day as seconds of it."""
    if unit == "clock":
        clocks = values.astype(object).map(
            lambda at: at.hour * 3600 + at.minute * 60 + at.second + at.microsecond / 1e6, na_action="ignore"
        )
        return clocks.astype("float64")
    if isinstance(values.dtype, pd.ArrowDtype):
        values = values.astype(object)
    if unit == "span":
        return pd.to_timedelta(values).dt.total_seconds()
    if isinstance(values.dtype, pd.PeriodDtype) or pd.api.types.infer_dtype(values, skipna=True) == "period":
        values = pd.Series(pd.PeriodIndex(values).to_timestamp())
    made = pd.to_datetime(values, utc=True, format=None if not _is_text(values) else "ISO8601")
    return (made - pd.Timestamp(0, tz="UTC")).dt.total_seconds() / 86400


def _is_text(values: pd.Series) -> bool:
    return bool(pd.api.types.infer_dtype(values, skipna=True) == "string")


def _then(more: Callable[[], pd.Series] | None, unit: str) -> Callable[[], pd.Series] | None:
    return None if more is None else lambda: _as_numbers(more(), unit)


def _categories(column: Hashable, label: str, sides: Columns, picks: tuple[Any, ...]) -> Pair:
    labels: dict[str, int] = {}
    codes = [_coded(side.cells, labels) for side in sides]
    known = [_counted(side.counts, labels) if side.counts is not None else None for side in sides]
    names = apart(inert(each) for each in labels)

    def series(held: Any) -> pd.Series:
        return pd.Series(pd.Categorical.from_codes(held, categories=names))

    def all_of(side: int) -> Any:
        told = known[side]
        if told is None:
            return codes[side]
        kind = np.min_scalar_type(-max(len(names), 1))  # a byte for each row of most columns, however many there are
        return np.repeat(np.arange(len(told), dtype=kind), _bounded(told))

    def tally(side: int) -> pd.Series:
        told = known[side]
        if told is None:
            told = np.bincount(codes[side][codes[side] >= 0], minlength=len(names))
        return pd.Series(np.pad(told, (0, len(names) - len(told))), index=names)

    sample = tuple(series(held[pick]) for held, pick in zip(codes, picks, strict=True))
    counts = [int((codes[i] >= 0).sum()) if told is None else int(told.sum()) for i, told in enumerate(known)]
    for i, side in enumerate(sides):
        if side.sampled and known[i] is None:
            counts[i] = side.present
    return Pair(
        column, label, "cat", (sample[0], sample[1]), lambda: (series(all_of(0)), series(all_of(1))),
        (counts[0], counts[1]), pd.Series(names[:6], dtype=object), _are_sampled(sides, picks), _rows(sides),
        _present(sides), tally=lambda: (tally(0), tally(1)),
    )  # fmt: skip


def _coded(values: pd.Series, labels: dict[str, int]) -> Any:
    """The values as codes into `labels`, which grows."""
    codes, found = pd.factorize(values)
    known = np.array([labels.setdefault(_label(value), len(labels)) for value in found] or [-1])
    return np.where(codes >= 0, known[codes], -1)


def _counted(counts: pd.Series, labels: dict[str, int]) -> Any:
    """How often each code stands there."""
    codes = np.array([labels.setdefault(_label(value), len(labels)) for value in counts.index], dtype=int)
    return np.bincount(codes, weights=counts.to_numpy(dtype=float), minlength=len(labels)).astype("int64")


def _bounded(counts: Any) -> Any:
    """Counts that together are at most some ten million, in the same proportions."""
    total = int(counts.sum())
    if total <= _COUNTED:
        return counts
    return np.where(counts > 0, np.maximum((counts * (_COUNTED / total)).round().astype("int64"), 1), 0)


def _label(value: object) -> str:
    """The same word for 1, 1.0 and "1": a log may have turned one into the other."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _texts(column: Hashable, label: str, sides: Columns, picks: tuple[Any, ...]) -> Pair:
    def texts(side: int, pick: Any) -> pd.Series:
        values = sides[side].cells.iloc[pick].astype(object).reset_index(drop=True)
        return values.map(lambda text: inert(text, longest=5000), na_action="ignore")

    return Pair(
        column, label, "text", (texts(0, picks[0]), texts(1, picks[1])),
        lambda: (texts(0, slice(None)), texts(1, slice(None))), _present(sides), pd.Series(list("abcdef")),
        _are_sampled(sides, picks), _rows(sides), _present(sides),
    )  # fmt: skip


def _six(values: pd.Series) -> pd.Series:
    return pd.Series(values.dropna().unique()[:6])


def apart(labels: Iterable[str]) -> list[str]:
    """Labels that differ as their originals do, which look-alikes and shortening might have undone."""
    made: dict[str, None] = {}
    tries: dict[str, int] = {}
    for label in labels:
        fresh = label
        while fresh in made:
            tries[label] = tries.get(label, 1) + 1
            fresh = f"{label} ({tries[label]})"
        made[fresh] = None
    return list(made)

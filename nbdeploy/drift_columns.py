"""Two frames, as pairs of columns that can be compared: same type, sampled, every string inert."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

Kind = Literal["num", "cat", "text"]
Sides = tuple[Any, Any]  # the two Series of a column: reference, current

_FEW = 10  # distinct whole numbers up to which they are categories, as Evidently has it
_SURE = 1000  # values from which the current side alone tells what kind a column is
_LONGEST = 100  # characters of a category

# Look-alikes for all that opens markup, an entity, a template or an escape: legible, and nothing else.
_LOOKALIKES = str.maketrans({"<": "‹", ">": "›", "&": "＆", "$": "＄", "`": "‵", "\\": "＼"})
_SCHEME = re.compile(r"(javascript|vbscript|data)(\s*):", re.IGNORECASE)
_HARMLESS = re.compile(r"[\w .,;!?()+*/=@#%^~|'\"-]*", re.ASCII)

_REASONS = {
    "empty": "not compared: no values {side}",
    "date": "not compared: dates and durations",
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
    "bytes": "other",
    "interval": "label",
    **dict.fromkeys(("datetime64", "datetime", "date", "timedelta64", "timedelta", "time", "period"), "date"),
}


@dataclass(frozen=True)
class Pair:
    """One column on both sides, ready to be compared.

    Attributes
    ----------
    column : Hashable
        Its own name.
    kind : {"num", "cat", "text"}
        Numbers are float64 without infinities, categories share one categorical type, texts are strings.
    sample : tuple of Series
        Reference and current, sampled, in their order.
    whole : callable
        Makes the same pair of all rows.
    counts : tuple of int
        The values (not null) on each side, of all rows.
    distinct : Series
        A few of the values: six different ones where there are as many.
    sampled : bool
        Whether `whole` has more rows than `sample`.
    """

    column: Hashable
    kind: Kind
    sample: Sides
    whole: Callable[[], Sides]
    counts: tuple[int, int]
    distinct: pd.Series
    sampled: bool


def pair_up(
    reference: pd.DataFrame, current: pd.DataFrame, *, max_rows: int, seed: int
) -> tuple[dict[str, Pair], dict[Hashable, str]]:
    """Return the pairs by a label that is safe to show, and for every other column why there is none."""
    picks = (_sample(len(reference), max_rows, seed), _sample(len(current), max_rows, seed + 1))
    pairs: dict[str, Pair] = {}
    reasons: dict[Hashable, str] = {}
    columns = [*reference.columns, *(name for name in current.columns if name not in reference.columns)]
    for column, label in zip(columns, _apart(inert(str(column)) for column in columns), strict=True):
        if column not in current.columns:
            reasons[column] = "not compared: only in the reference"
        elif column not in reference.columns:
            reasons[column] = "not compared: not in the reference"
        else:
            try:
                made = _pair(column, (reference[column], current[column]), picks)
            except Exception as error:  # noqa: BLE001 - one odd column must not cost the others their verdict
                made = f"not compared: {type(error).__name__} while reading it"
            if isinstance(made, str):
                reasons[column] = made
            else:
                pairs[label] = made
    return pairs, reasons


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


def _are_sampled(picks: tuple[Any, Any]) -> bool:
    return not all(isinstance(pick, slice) for pick in picks)


def _pair(column: Hashable, sides: Sides, picks: tuple[Any, Any]) -> Pair | str:
    kinds = [_kind(side) for side in sides]
    if "flag" in kinds and {*kinds} & {"whole", "number"}:
        sides = tuple(_floats(side) if kind == "flag" else side for side, kind in zip(sides, kinds, strict=True))
    if "empty" in kinds:
        return _REASONS["empty"].format(side=f"in the {'reference' if kinds[0] == 'empty' else 'window'}")
    for kind in ("date", "other"):
        if kind in kinds:
            return _REASONS[kind]
    if {*kinds} <= {"number", "whole", "flag"} and {*kinds} != {"flag"}:
        if kinds[1] == "whole" and _agree(sides, _are_few):
            return _categories(column, sides, picks)
        return _numbers(column, sides, picks)
    if len({*kinds} & {"number", "whole"}) == 1 and "text" in kinds:
        try:
            return _numbers(column, sides, picks)  # numbers that came as text on one side
        except ValueError:
            pass
    if {*kinds} == {"text"} and _agree(sides, _are_many):
        return _texts(column, sides, picks)
    return _categories(column, sides, picks)


def _kind(values: pd.Series) -> str:
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


def _are_few(values: pd.Series) -> bool:
    return bool(values.iloc[:_SURE].nunique() <= _FEW and values.nunique() <= _FEW)


def _are_many(values: pd.Series) -> bool:
    return bool(values.nunique() > values.count() * 0.5)


def _agree(sides: Sides, rule: Callable[[pd.Series], bool]) -> bool:
    """Whether `rule` holds for the current side, and for the reference too where the current one is short."""
    return rule(sides[1]) and (len(sides[1]) >= _SURE or rule(sides[0]))


def _numbers(column: Hashable, sides: Sides, picks: tuple[Any, Any]) -> Pair | str:
    def numbers(side: int, pick: Any) -> pd.Series:
        return _floats(sides[side].iloc[pick])

    sample = (numbers(0, picks[0]), numbers(1, picks[1]))
    # The whole is only counted where the sample is not the whole.
    counts = tuple(int(sample[i].count()) if isinstance(picks[i], slice) else _finite(sides[i]) for i in (0, 1))
    if not all(part.count() for part in sample):
        return _REASONS["empty"].format(side=f"in the {'window' if sample[0].count() else 'reference'}")
    distinct = _six(pd.concat([part.iloc[:_SURE] for part in sample]))
    if len(distinct) < 6:
        distinct = _six(pd.concat([numbers(0, slice(None)), numbers(1, slice(None))]))
    return Pair(
        column,
        "num",
        sample,
        lambda: (numbers(0, slice(None)), numbers(1, slice(None))),
        (counts[0], counts[1]),
        distinct,
        sampled=_are_sampled(picks),
    )


def _floats(values: pd.Series) -> pd.Series:
    raw = values.to_numpy(dtype="float64", na_value=np.nan)
    return pd.Series(np.where(np.isfinite(raw), raw, np.nan))


def _finite(values: pd.Series) -> int:
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "iuf":
        return int(np.isfinite(values.to_numpy()).sum())
    return int(values.count())


def _categories(column: Hashable, sides: Sides, picks: tuple[Any, Any]) -> Pair:
    labels: dict[str, int] = {}
    whole = tuple(_coded(side, labels) for side in sides)
    names = _apart(inert(label) for label in labels)
    series = [pd.Series(pd.Categorical.from_codes(codes, categories=names)) for codes in whole]
    sample = tuple(part.iloc[pick].reset_index(drop=True) for part, pick in zip(series, picks, strict=True))
    counts = [int((codes >= 0).sum()) for codes in whole]
    return Pair(
        column,
        "cat",
        (sample[0], sample[1]),
        lambda: (series[0], series[1]),
        (counts[0], counts[1]),
        pd.Series(names[:6], dtype=object),
        sampled=_are_sampled(picks),
    )


def _coded(values: pd.Series, labels: dict[str, int]) -> Any:
    """The values as codes into `labels`, which grows."""
    codes, found = pd.factorize(values)
    known = np.array([labels.setdefault(_label(value), len(labels)) for value in found] or [-1])
    return np.where(codes >= 0, known[codes], -1)


def _label(value: object) -> str:
    """The same word for 1, 1.0 and "1": a log may have turned one into the other."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _texts(column: Hashable, sides: Sides, picks: tuple[Any, Any]) -> Pair:
    def texts(side: int, pick: Any) -> pd.Series:
        values = sides[side].iloc[pick].astype(object).reset_index(drop=True)
        return values.map(lambda text: inert(text, longest=5000), na_action="ignore")

    return Pair(
        column,
        "text",
        (texts(0, picks[0]), texts(1, picks[1])),
        lambda: (texts(0, slice(None)), texts(1, slice(None))),
        (int(sides[0].count()), int(sides[1].count())),
        pd.Series(list("abcdef")),
        sampled=_are_sampled(picks),
    )


def _six(values: pd.Series) -> pd.Series:
    return pd.Series(values.dropna().unique()[:6])


def _apart(labels: Iterable[str]) -> list[str]:
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

"""What the log and the training data are to a report: typed columns, sampled, every name and every string inert."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from nbdeploy.drift_columns import inert, kind_of

Kind = Literal["number", "category", "text", "moment"]

MAX_LEVELS = 120  # categories of one column that are shown each by itself
MAX_UNSEEN = 50  # of those, how many may be new
MAX_TEXT = 5000  # characters of a text
OTHERS = "(others)"
UNSEEN = "(other unseen)"

_FEW = 10  # distinct whole numbers up to which they are categories where distributions are compared


@dataclass(frozen=True)
class ReportColumn:
    """A column: its own name, the one that is safe to show, and what its values are."""

    name: str
    label: str
    kind: Kind


@dataclass(frozen=True, eq=False)
class Sides:
    """Both sides of a report.

    Attributes
    ----------
    current, reference : DataFrame
        By label. Numbers are float64 without infinities, categories and texts inert strings, moments datetime64 in
        UTC. `reference` is None where there is nothing to compare with.
    columns : tuple of ReportColumn
    known : mapping
        By label of a category: what the reference holds, as it is shown.
    rows_current, rows_reference : int
        Before sampling.
    left_out : mapping
        Why a column is in no report, by its name.
    """

    current: pd.DataFrame
    reference: pd.DataFrame | None
    columns: tuple[ReportColumn, ...]
    known: Mapping[str, list[str]]
    rows_current: int
    rows_reference: int
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def sampled(self) -> bool:
        """Whether a side had more rows than are looked at."""
        fewer = self.reference is not None and len(self.reference) < self.rows_reference
        return fewer or len(self.current) < self.rows_current

    def of(self, *kinds: Kind) -> list[str]:
        """The labels of the columns of these kinds."""
        return [column.label for column in self.columns if column.kind in kinds]

    def label_of(self, name: str) -> str | None:
        """What the column of this name is called here; its label is taken for its name."""
        for column in self.columns:
            if name in (column.name, column.label):
                return column.label
        return None

    def without(self, reasons: Mapping[str, str]) -> Sides:
        """The same without the columns of these labels, and why."""
        kept = tuple(column for column in self.columns if column.label not in reasons)
        labels = [column.label for column in kept]
        gone = {column.name: reasons[column.label] for column in self.columns if column.label in reasons}
        return Sides(
            self.current[labels], None if self.reference is None else self.reference[labels], kept, self.known,
            self.rows_current, self.rows_reference, {**self.left_out, **gone},
        )  # fmt: skip

    def facts(self) -> pd.DataFrame:
        """What each column holds, indexed by its own name.

        The columns ``kind``; ``missing`` (the share) and ``distinct``; ``typical``, the mean of numbers and the most
        common of categories; ``low`` and ``high``; and, where there is a reference, ``missing_reference`` and
        ``typical_reference``.
        """
        rows = []
        with np.errstate(all="ignore"):  # a mean of the largest numbers there are is infinite
            for column in self.columns:
                told = _facts(self.current[column.label], column.kind)
                if self.reference is not None:
                    learned = _facts(self.reference[column.label], column.kind)
                    told |= {"missing_reference": learned["missing"], "typical_reference": learned["typical"]}
                rows.append({"kind": column.kind, **told})
        index = pd.Index([column.name for column in self.columns], name="column")
        return pd.DataFrame(rows, index=index)


@dataclass(frozen=True)
class Task:
    """What is judged where labels are known.

    Attributes
    ----------
    kind : str
        ``classification`` or ``regression``.
    target, prediction : str
        Their columns.
    scores : str
        The column of the second class's probability; '' where there is none.
    classes : tuple of str
        As they are shown; the last of two is the one that scores are of.
    """

    kind: str
    target: str
    prediction: str
    scores: str = ""
    classes: tuple[str, ...] = ()

    @property
    def kinds(self) -> dict[str, Kind]:
        """What its columns are, whatever they look like."""
        kind: Kind = "number" if self.kind == "regression" else "category"
        return {self.target: kind, self.prediction: kind, **({self.scores: "number"} if self.scores else {})}

    def shown(self, sides: Sides) -> Task:
        """The same with the columns as they are called in `sides`."""
        names = [sides.label_of(name) or "" if name else "" for name in (self.target, self.prediction, self.scores)]
        return replace(self, target=names[0], prediction=names[1], scores=names[2])


def prepare(
    current: pd.DataFrame,
    reference: pd.DataFrame | None,
    *,
    max_rows: int,
    seed: int = 0,
    left_out: Mapping[str, str] | None = None,
    kinds: Mapping[str, Kind] | None = None,
    by_distribution: bool = False,
) -> Sides:
    """Both sides as `Sides`: at most `max_rows` of each, the same ones for the same seed.

    `reference` has the columns of `current`. What a column is, is seen from its values where `kinds` does not say. With `by_distribution` whole numbers with few values are categories, as Evidently compares them.
    """
    told = dict(left_out or {})
    reference = None if reference is None else reference[[*current.columns]]
    sides = [_picked(current, max_rows, seed), None if reference is None else _picked(reference, max_rows, seed + 1)]
    made: list[list[pd.Series]] = [[], []]
    columns, known = [], {}
    names = [*map(str, current.columns)]
    for place, (name, label) in enumerate(zip(names, apart(inert(name) for name in names), strict=True)):
        parts = [None if side is None else side.iloc[:, place].reset_index(drop=True) for side in sides]
        try:
            held = [part for part in parts if part is not None]
            kind = (kinds or {}).get(name) or _kind(held, by_distribution=by_distribution)
            values, levels = _categories(held) if kind == "category" else ([*map(_MAKERS[kind], held)], [])
        except ValueError as error:
            told[name] = str(error)
            continue
        except Exception as error:  # noqa: BLE001 - one odd column must not cost the report the others
            told[name] = f"{type(error).__name__} while reading it"
            continue
        columns.append(ReportColumn(name, label, kind))
        known[label] = levels
        for side, series in enumerate(values):
            made[side].append(series.rename(label))
    frames = [
        None if side is None else pd.concat(series, axis=1) if series else pd.DataFrame(index=range(len(side)))
        for side, series in zip(sides, made, strict=True)
    ]
    assert frames[0] is not None
    rows = 0 if reference is None else len(reference)
    return Sides(frames[0], frames[1], tuple(columns), known, len(current), rows, told)


def apart(labels: Iterable[str]) -> list[str]:
    """Labels that differ where making them harmless has made two the same."""
    made: dict[str, None] = {}
    for label in labels:
        fresh, number = label, 2
        while fresh in made:
            fresh, number = f"{label} ({number})", number + 1
        made[fresh] = None
    return list(made)


def word(value: Any) -> str:
    """The same word for 1, 1.0 and "1", True and "True": a log may have turned one into the other."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


# -- one column ---------------------------------------------------------------------------------------------


def _picked(frame: pd.DataFrame, at_most: int, seed: int) -> pd.DataFrame:
    if len(frame) <= at_most:
        return frame
    return frame.iloc[np.sort(np.random.default_rng(seed).choice(len(frame), at_most, replace=False))]


def _kind(parts: list[pd.Series], *, by_distribution: bool) -> Kind:
    found = {_found(part) for part in parts} - {"nothing"}
    if not found:
        msg = "no values"
        raise ValueError(msg)
    if "other" in found:
        msg = "values that are neither numbers nor text"
        raise ValueError(msg)
    if found == {"moment"}:
        return "moment"
    if found <= {"number", "whole"}:
        return "category" if by_distribution and found == {"whole"} and _are_few(parts) else "number"
    if found in ({"number", "text"}, {"whole", "text"}) and all(map(_reads_as_numbers, parts)):
        return "number"  # numbers that came as text on one side
    free = found == {"text"} and all(_is_free(part) for part in parts if _found(part) != "nothing")
    return "text" if free else "category"


def _reads_as_numbers(values: pd.Series) -> bool:
    try:
        _floats(values)
    except (ValueError, TypeError):
        return False
    return True


def _found(values: pd.Series) -> str:
    found = kind_of(values)
    if found == "moment" and isinstance(values.dtype, pd.PeriodDtype):
        return "label"
    # Here a flag is shown by its values, and a duration in seconds.
    return {"empty": "nothing", "flag": "label", "clock": "label", "span": "number"}.get(found, found)


def _are_few(parts: list[pd.Series]) -> bool:
    return all(part.nunique() <= _FEW for part in parts)


def _is_free(values: pd.Series) -> bool:
    """Whether strings are texts rather than categories: most occur once, and there are many."""
    count, distinct = values.count(), values.nunique()
    return bool(distinct > count * 0.5 and (distinct > _FEW or values.str.len().mean() > 30))


def _floats(values: pd.Series) -> pd.Series:
    if pd.api.types.is_timedelta64_dtype(values.dtype) or pd.api.types.infer_dtype(values, skipna=True) == "timedelta":
        values = pd.to_timedelta(values).dt.total_seconds()
    raw = values.to_numpy(dtype="float64", na_value=np.nan)
    return pd.Series(np.where(np.isfinite(raw), raw, np.nan))


def _moments(values: pd.Series) -> pd.Series:
    return pd.to_datetime(values.astype(object), utc=True, errors="coerce").dt.tz_localize(None)


def _texts(values: pd.Series) -> pd.Series:
    return values.astype(object).map(lambda text: inert(str(text), longest=MAX_TEXT), na_action="ignore")


_MAKERS = {"number": _floats, "moment": _moments, "text": _texts}


def _categories(parts: list[pd.Series]) -> tuple[list[pd.Series], list[str]]:
    """The parts, current first, as inert words, and those of the reference."""
    words = [part.astype(object).map(word, na_action="ignore") for part in parts]
    known = words[1].value_counts() if len(words) > 1 else pd.Series(dtype=int)
    asked = words[0].value_counts()
    if len(words) > 1:
        unseen = [level for level in asked.index if level not in known.index]
        shown = [*known.index[: MAX_LEVELS - MAX_UNSEEN], *unseen[:MAX_UNSEEN]]
    else:
        shown = [*asked.index[:MAX_LEVELS]]
    names = dict(zip(shown, apart(inert(level) for level in shown), strict=True))
    rest: dict[Hashable, str] = {level: OTHERS for level in [*known.index, *asked.index] if level not in names}
    if len(words) > 1:
        rest |= {level: UNSEEN for level in asked.index if level not in names and level not in known.index}
    made = [part.map({**names, **rest}, na_action="ignore").astype(object) for part in words]
    return made, [*dict.fromkeys({**names, **rest}[level] for level in known.index)]


def _facts(values: pd.Series, kind: Kind) -> dict[str, Any]:
    held = values.dropna()
    facts: dict[str, Any] = {
        "missing": float(values.isna().mean()) if len(values) else 0.0, "distinct": int(held.nunique()),
        "typical": "", "low": "", "high": "",
    }  # fmt: skip
    if not len(held):
        return facts
    if kind == "number":
        return facts | {"typical": float(held.mean()), "low": float(held.min()), "high": float(held.max())}
    if kind == "moment":
        return facts | {"low": f"{held.min():%Y-%m-%d %H:%M}", "high": f"{held.max():%Y-%m-%d %H:%M}"}
    if kind == "category":
        return facts | {"typical": str(held.value_counts().index[0])}
    return facts

"""What requests hold that the training frame did not: unseen categories, values out of range, missing values.

Counted, never refused: whether to answer such rows is the model's business, and how many there are shows drift early.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nbdeploy.signature import Column, Signature, build_series
from nbdeploy.signature_values import plain_floats

MAX_COLUMNS = 200  # each with a tally of its own; those after them share one
MAX_LABEL = 100
OTHER = "other"
LISTED_ROWS = 1_000  # up to here a look at Python's values is faster than one at the frame's arrays
BLOCK_CELLS = 1_000  # from here on all columns at once are faster than one after the other


@dataclass
class Tally:
    """What was counted in one column, or in all that share a tally.

    Attributes
    ----------
    label : str
        The column's name, as far as a label may have it: at most 100 characters.
    unseen, outside, nulls : int or None
        Values that are no category of training, that are out of its range, that are missing. None where there is
        nothing to count: a column of free text has no range.
    """

    label: str
    unseen: int | None = None
    outside: int | None = None
    nulls: int | None = None

    def add(self, unseen: int = 0, outside: int = 0, nulls: int = 0) -> None:
        if unseen:
            self.unseen = (self.unseen or 0) + unseen
        if outside:
            self.outside = (self.outside or 0) + outside
        if nulls:
            self.nulls = (self.nulls or 0) + nulls


class Novelty:
    """The tallies of a model's columns.

    A private column has none: whoever may ask and read the counts could find out its range and categories value by
    value. Of a column of arrays only missing cells are counted.

    Attributes
    ----------
    tallies : list of Tally
        In the order of the columns; one for all columns after the 200th, named ``other``.
    """

    def __init__(self, signature: Signature) -> None:
        self.tallies: list[Tally] = []
        self._looks: list[_Look] = []
        public = [column for column in signature.columns if not column.private]
        shared = OTHER
        while shared in signature.names:
            shared += "_"
        for place, column in enumerate(public):
            if place < MAX_COLUMNS:
                self.tallies.append(Tally(_label(column.name, place)))
            elif place == MAX_COLUMNS:
                self.tallies.append(Tally(shared))
            tally = self.tallies[-1]
            look = _Look(column, tally)
            if look.counts:
                self._looks.append(look)
        self._block = _Block.of(signature, {look.column.name: look for look in self._looks})

    def count(self, columns: Mapping[str, Sequence[Any]] | None, frame: pd.DataFrame | None) -> None:
        """Count the checked rows of one model call.

        Parameters
        ----------
        columns : mapping, optional
            JSON's values by column, as `Signature.check` gives them.
        frame : DataFrame, optional
            The same rows as `Signature.build` gives them. With both, whichever is faster to look at is.
        """
        if not self._looks:
            return
        rows = len(frame) if frame is not None else len(next(iter((columns or {"": ()}).values())))
        if not rows:
            return
        if self._block is not None and frame is not None and (columns is None or frame.size > BLOCK_CELLS):
            self._block.count(frame)
        elif columns is not None and (frame is None or rows <= LISTED_ROWS):
            for look in self._looks:
                look.values(columns[look.column.name], frame)
        elif frame is not None:
            for look in self._looks:
                look.series(frame[look.label])


class _Look:
    """How the values of one column are looked at."""

    ticks: _Ticks | None = None

    def __init__(self, column: Column, tally: Tally) -> None:
        self.column, self.tally, self.label = column, tally, column.label
        self.nullable = column.nullable
        single = not column.shape
        self.known = frozenset(column.categories) if single and column.categories is not None else None
        low, high = column.minimum, column.maximum
        ranged = single and self.known is None and low is not None and high is not None
        self.low: Any = low if ranged else None
        self.high: Any = high if ranged else None
        self.narrow = _narrow_float(column) if ranged and column.kind == "float" else None
        if ranged and column.kind == "datetime":
            self.low, self.high, self.ticks = pd.Timestamp(low), pd.Timestamp(high), _Ticks.of(column)
        self.counts = self.nullable or ranged or self.known is not None
        if self.counts:  # what can be counted is there from the start, as 0: a rate needs a first value
            tally.unseen = (tally.unseen or 0) if self.known is not None else tally.unseen
            tally.outside = (tally.outside or 0) if ranged else tally.outside
            tally.nulls = (tally.nulls or 0) if self.nullable else tally.nulls

    def values(self, values: Sequence[Any], frame: pd.DataFrame | None) -> None:
        """Count JSON's values; of datetimes the parsed ones, where there is a frame."""
        if self.column.kind == "datetime" and self.low is not None:
            self.series(frame[self.label] if frame is not None else build_series(self.column, values))
            return
        if self.nullable:
            present = [value for value in values if value is not None and (self.column.shape or value == value)]
            if len(present) < len(values):
                self.tally.add(nulls=len(values) - len(present))
            values = present
        if self.known is not None:
            if not self.known.issuperset(values):
                known = self.known
                self.tally.add(unseen=sum(value not in known for value in values))
        elif self.low is not None and values and (min(values) < self.low or max(values) > self.high):
            self.tally.add(outside=self._outside(values))

    def _outside(self, values: Sequence[Any]) -> int:
        if self.narrow is not None:  # 0.1 in JSON is not beyond the largest float32 of training, which is 0.1 too
            with np.errstate(over="ignore"):
                return _beyond(np.asarray(values, dtype=self.narrow), self.low, self.high)
        low, high = self.low, self.high
        return sum(value < low or value > high for value in values)

    def series(self, series: pd.Series) -> None:
        """Count the cells of a frame's column."""
        series = plain_floats(series)
        nulls = int(series.isna().sum()) if self.nullable else 0
        if self.known is not None:
            self.tally.add(unseen=_unseen(series, self.known, nulls), nulls=nulls)
        elif self.low is None:
            self.tally.add(nulls=nulls)
        elif self.column.kind == "datetime":
            self.tally.add(outside=_beyond_moments(series, self.low, self.high, self.ticks), nulls=nulls)
        elif self.column.kind == "date":
            low, high = dt.date.fromisoformat(self.low), dt.date.fromisoformat(self.high)
            days = series.dropna().tolist()
            self.tally.add(outside=sum(day < low or day > high for day in days), nulls=nulls)
        elif isinstance(series.dtype, np.dtype):
            self.tally.add(outside=_beyond(series.to_numpy(), self.low, self.high), nulls=nulls)
        else:
            numbers = series.to_numpy(dtype="float64", na_value=np.nan)
            self.tally.add(outside=_beyond(numbers, float(self.low), float(self.high)), nulls=nulls)


class _Block:
    """All columns at once, where all are numbers of one NumPy type."""

    def __init__(self, columns: Sequence[Column], looks: Mapping[str, _Look], dtype: np.dtype[Any]) -> None:
        least, most = _extremes(dtype)
        self._looks = [looks.get(column.name) for column in columns]
        ranges = [(look.low, look.high) if look and look.low is not None else (least, most) for look in self._looks]
        self._low = np.array([low for low, _ in ranges], dtype)
        self._high = np.array([high for _, high in ranges], dtype)
        self._dtype = dtype
        self._nullable = any(look.nullable for look in self._looks if look)

    @classmethod
    def of(cls, signature: Signature, looks: Mapping[str, _Look]) -> _Block | None:
        dtypes = {column.dtype for column in signature.columns}
        if len(dtypes) != 1 or any(c.shape or c.kind not in ("int", "float") for c in signature.columns):
            return None
        dtype = pd.api.types.pandas_dtype(dtypes.pop())
        return cls(signature.columns, looks, dtype) if isinstance(dtype, np.dtype) else None

    def count(self, frame: pd.DataFrame) -> None:
        cells = frame.to_numpy()
        if cells.dtype != self._dtype:
            cells = cells.astype(self._dtype)
        beyond = (cells < self._low) | (cells > self._high)
        for place, count in _counts(beyond):
            if look := self._looks[place]:
                look.tally.add(outside=count)
        if self._nullable:
            for place, count in _counts(np.isnan(cells)):
                if look := self._looks[place]:
                    look.tally.add(nulls=count)


def _counts(found: np.ndarray[Any, Any]) -> Iterator[tuple[int, int]]:
    if found.any():
        counts = found.sum(axis=0)
        for place in np.flatnonzero(counts).tolist():
            yield place, int(counts[place])


def _extremes(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    if dtype.kind == "f":
        return -np.inf, np.inf
    info = np.iinfo(dtype)
    return info.min, info.max


def _beyond(numbers: np.ndarray[Any, Any], low: Any, high: Any) -> int:
    return int(np.count_nonzero(numbers < low) + np.count_nonzero(numbers > high))


def _beyond_moments(series: pd.Series, low: pd.Timestamp, high: pd.Timestamp, ticks: _Ticks | None) -> int:
    array = series.array
    if ticks is None or getattr(array, "unit", None) != ticks.unit:  # Arrow's
        return int(((series < low) | (series > high)).sum())
    held = array.asi8
    return int(np.count_nonzero((held < ticks.low) & (held != _NOT_A_TIME)) + np.count_nonzero(held > ticks.high))


_NOT_A_TIME = np.iinfo("i8").min


class _Ticks(NamedTuple):
    """The range of a datetime column as pandas' own integers, whose comparison takes a tenth of the time."""

    unit: str
    low: int
    high: int

    @classmethod
    def of(cls, column: Column) -> _Ticks | None:
        dtype = pd.api.types.pandas_dtype(column.dtype)
        if isinstance(dtype, pd.DatetimeTZDtype):
            unit = str(dtype.unit)
        elif isinstance(dtype, np.dtype) and dtype.kind == "M":
            unit = np.datetime_data(dtype)[0]
        else:
            return None
        low, high = (
            int(pd.Timestamp(moment).to_datetime64().astype(f"M8[{unit}]").astype("i8"))
            for moment in (column.minimum, column.maximum)
        )
        return cls(unit, low, high)


def _unseen(series: pd.Series, known: frozenset[Any], nulls: int) -> int:
    if isinstance(series.dtype, pd.CategoricalDtype):
        new = [place for place, value in enumerate(series.cat.categories) if value not in known]
        return int(np.isin(series.cat.codes.to_numpy(), new).sum()) if new else 0
    # The distinct values are few, and as a rule all are known; counting takes longer.
    distinct = set(series.tolist()) if series.dtype == object else series.unique().tolist()
    if all(pd.isna(value) for value in distinct if value not in known):
        return 0
    return len(series) - int(series.isin(list(known)).sum()) - nulls


def _narrow_float(column: Column) -> np.dtype[Any] | None:
    # A float type of fewer bits than JSON's numbers.
    dtype = pd.api.types.pandas_dtype(column.dtype)
    found = dtype if isinstance(dtype, np.dtype) else getattr(dtype, "numpy_dtype", None)
    return found if isinstance(found, np.dtype) and found.kind == "f" and found.itemsize < 8 else None


def _label(name: str, place: int) -> str:
    # A name comes from whoever made the frame: of any length, and perhaps no text that can be encoded.
    name = "".join("\ufffd" if ord(one) < 32 and one not in "\n\t" else one for one in name[: MAX_LABEL + 1])
    name = name.encode("utf-8", "replace").decode()
    return name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 8]}…{place}"

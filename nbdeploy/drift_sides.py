"""The two sides of a comparison: all rows, or a sample of them and what is known of the rest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field, replace

import pandas as pd


@dataclass(frozen=True)
class Side:
    """The rows of one side, or a sample of them and what is known of all.

    Attributes
    ----------
    frame : DataFrame
        All rows, or a sample.
    rows : int
        How many there are in all.
    counts : mapping
        By column, how often each value (not null) stands in all rows; a column with too many of them is not there.
    present : mapping
        By column, how many of all rows have a value.
    more : callable, optional
        A larger sample of a column, for a verdict that `frame` cannot settle.
    partial : collection
        Columns of which it says nothing that a value is missing: labels may still come.
    """

    frame: pd.DataFrame
    rows: int
    counts: Mapping[Hashable, pd.Series] = field(default_factory=dict)
    present: Mapping[Hashable, int] = field(default_factory=dict)
    more: Callable[[Hashable], pd.Series] | None = None
    partial: Collection[Hashable] = ()

    @classmethod
    def of(cls, side: pd.DataFrame | Side) -> Side:
        """A frame as a side, with one column of each name."""
        made = side if isinstance(side, Side) else cls(side, len(side))
        return replace(made, frame=made.frame.loc[:, ~made.frame.columns.duplicated()])

    @property
    def sampled(self) -> bool:
        return len(self.frame) < self.rows

    def column(self, name: Hashable) -> Held:
        values, more = self.frame[name], self.more
        if name in self.partial:
            there = int(values.count())
            return Held(values.dropna(), there, there)
        present = self.present.get(name)
        return Held(
            values,
            int(values.count()) if present is None else present,
            self.rows,
            self.counts.get(name) if self.sampled else None,
            (lambda: more(name)) if more and self.sampled else None,
        )


@dataclass(frozen=True)
class Held:
    """One column of a side; see `Side`."""

    cells: pd.Series
    present: int
    rows: int
    counts: pd.Series | None = None
    more: Callable[[], pd.Series] | None = None

    @property
    def sampled(self) -> bool:
        return len(self.cells) < self.rows

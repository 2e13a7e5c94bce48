"""Which loaded version answers a request: by what it asks for, by what keeps it with one version, or by lot."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from nbdeploy import traffic_split
from nbdeploy.exchange import Question
from nbdeploy.routing import Traffic
from nbdeploy.signature import Column, Signature, json_column

HEADER = "header:"  # before the name of a header that does not begin with X-


@dataclass(frozen=True)
class Choice:
    """How requests are split, as one immutable fact of one moment.

    Attributes
    ----------
    live : str
        The version that answers where nothing says otherwise.
    slots : tuple of str
        Who has each slot; empty where the live version has all.
    header : str
        Lower-case name of the header whose value decides; '' where none does.
    column : Column or None
        The column whose value decides, row by row.
    pin : bool
        Whether a request may name its version.
    """

    name: str
    live: str
    slots: tuple[str, ...] = ()
    header: str = ""
    column: Column | None = None
    pin: bool = True

    @classmethod
    def of(cls, traffic: Traffic, loaded: Collection[str], signature: Signature) -> Choice:
        """The choice among `loaded` versions; what is not loaded leaves its share to the live one."""
        assert traffic.live is not None
        slots = tuple(version if version in loaded else traffic.live for version in traffic.slots)
        header, column = sticky_by(traffic.sticky, signature)
        choice = cls(traffic.name, traffic.live, slots, header, column, traffic.pin)
        return choice if len(set(slots)) > 1 else replace(choice, slots=())

    @cached_property
    def by_row(self) -> bool:
        """Whether each row of a request has a version of its own."""
        return self.column is not None and bool(self.slots)

    def by_key(self, key: bytes) -> str:
        """The version that answers whoever has this key."""
        return self.slots[traffic_split.slot_of(self.name, key)] if self.slots else self.live

    def by_rows(self, question: Question) -> list[str]:
        """The version of each row, by the column that decides."""
        assert self.column is not None
        values = column_values(question, self.column)
        if len(values) == 1:  # as most have
            return [self.by_key(traffic_split.key_of(values[0], self.column.kind))]
        chosen: dict[bytes, str] = {}
        found = []
        for value in values:
            key = traffic_split.key_of(value, self.column.kind)
            if key not in chosen:
                chosen[key] = self.by_key(key)
            found.append(chosen[key])
        return found


def sticky_by(sticky: str, signature: Signature) -> tuple[str, Column | None]:
    """The header, in lower case, or the column that `sticky` names; neither where it names nothing that is known."""
    for column in signature.columns:
        if column.name == sticky and not column.shape:
            return "", column
    if sticky.startswith(HEADER):
        return sticky[len(HEADER) :].lower(), None
    return (sticky.lower(), None) if sticky.lower().startswith("x-") else ("", None)


def column_values(question: Question, column: Column) -> Sequence[Any]:
    """The values of a column as JSON has them."""
    if question.columns is not None:
        told = question.columns[column.name]
        if column.dtype.lower() != "float32":
            return told
        # An Arrow stream holds what the model gets, and 0.1 is no float32.
        return [value if value is None else float(np.float32(value)) for value in told]
    assert question.frame is not None
    return json_column(column, question.frame[column.label])

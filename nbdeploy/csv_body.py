"""Rows as CSV: by the rules of JSON, and nothing is guessed."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from typing import Any

from nbdeploy.protocol_parts import check_table, dtype_of
from nbdeploy.request_body import MAX_PARTS, MAX_ROWS, Unreadable, read_json
from nbdeploy.signature import Column, Signature, problem, refusal

_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_NOT_FINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
_TRUTH = {"true": True, "false": False}


def read_csv(body: bytes, signature: Signature) -> dict[str, list[Any]]:
    """The checked values by column of a table with a header, as ``DataFrame.to_csv(index=False)`` writes it.

    An empty cell is a missing value, in a column of strings too. A cell that holds a list or a sparse row is its JSON.

    Raises
    ------
    Unreadable
        It is not UTF-8, no CSV, or has more than `MAX_PARTS` commas and lines.
    InputError
        The rows do not fit the signature, or are more than `MAX_ROWS`.
    """
    parts = body.count(b",") + max(body.count(b"\n"), body.count(b"\r"))
    if parts > MAX_PARTS:
        msg = f"the body has {parts:,} commas and lines; at most {MAX_PARTS:,} are read"
        raise Unreadable(msg)
    try:
        table = _rows(body)
        header = next(table, None)
        if header is None:
            msg = "the body is not CSV: it has no header"
            raise Unreadable(msg)
        known = {column.name: _reader(column) for column in signature.columns}
        readers, width = [known.get(name, _as_it_is) for name in header], len(header)
        # Row by row, so that never all texts are there beside their values.
        values = [
            [read(cell) for read, cell in zip(readers, row, strict=True)] if len(row) == width else row
            for row in islice(table, MAX_ROWS)
        ]
        if next(table, None) is not None:
            hint = "Send them in several requests."
            raise refusal([problem(None, None, f"at most {MAX_ROWS:,} rows", "more", hint)])
    except UnicodeDecodeError as error:
        msg = f"the body is not CSV in UTF-8: {error.reason}"
        raise Unreadable(msg) from None  # the error of a decoder holds what it decodes
    except csv.Error as error:
        msg = f"the body is not CSV in UTF-8: {' '.join(str(error).split())[:120]}"
        raise Unreadable(msg) from None
    return check_table(signature, _tellable(header, signature), values)


# -- helpers ------------------------------------------------------------------------------------------------


def _rows(body: bytes) -> Iterator[list[str]]:
    _read_long_cells()
    text = io.TextIOWrapper(io.BytesIO(body), "utf-8-sig", newline="")
    return (row for row in csv.reader(text, strict=True) if row)


@cache
def _read_long_cells() -> None:
    # 128 KiB are the csv module's own bound, for the whole process; a body is bounded as a whole.
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))


def _tellable(header: list[str], signature: Signature) -> list[str]:
    """The names of the columns, as an error may tell them: without a header the first row of values stands there."""
    if not signature.has_private:
        return header
    names = set(signature.names)
    told = []
    for place, name in enumerate(header, 1):
        word = name if name in names else f"the {_ordinal(place)} column"
        while name not in names and word in names:
            word += "_"
        told.append(word)
    return told


def _ordinal(number: int) -> str:
    few = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if number % 100 in (11, 12, 13) else few.get(number % 10, 'th')}"


# What is no such value stays text, and the check says what it should have been.


def _reader(column: Column) -> Callable[[str], Any]:
    if column.shape:
        return _list
    dtype = dtype_of(column)
    return _as_text if dtype == "string" else _truth if dtype == "bool" else _number


def _as_it_is(cell: str) -> Any:
    return cell


def _as_text(cell: str) -> Any:
    return cell or None


def _truth(cell: str) -> Any:
    return _TRUTH.get(cell.lower(), cell or None)


def _number(cell: str) -> Any:
    if not _NUMBER.fullmatch(cell):
        return _NOT_FINITE.get(cell.lower(), cell or None)
    # As in JSON, an integer beyond 64 bits is a float; and thousands of digits take an int long.
    digits = cell.lstrip("+-")
    if len(digits) <= 20 and digits.isdecimal() and -(2**63) <= (whole := int(cell)) < 2**64:
        return whole
    value = float(cell)
    return value if math.isfinite(value) else cell  # nobody wrote Infinity


def _list(cell: str) -> Any:
    if not cell:
        return None
    try:
        return read_json(cell.encode())
    except Unreadable:
        return cell

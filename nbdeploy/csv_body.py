"""Rows as CSV: by the rules of JSON, and nothing is guessed."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from typing import Any

from nbdeploy.protocol_parts import check_table, dtype_of
from nbdeploy.request_body import Unreadable, read_json
from nbdeploy.signature import Column, Signature

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NOT_FINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
_TRUTH = {"true": True, "false": False}


def read_csv(body: bytes, signature: Signature) -> dict[str, list[Any]]:
    """The checked values by column of a table with a header, as ``DataFrame.to_csv(index=False)`` writes it.

    An empty cell is a missing value, in a column of strings too. A cell that holds a list or a sparse row is its JSON.

    Raises
    ------
    Unreadable
        It is not UTF-8, or no CSV.
    InputError
        The rows do not fit the signature.
    """
    try:
        text = body.decode("utf-8-sig")
        table = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        said = " ".join(str(error).split())[:120]
        msg = f"the body is not CSV in UTF-8: {said}"
        raise Unreadable(msg) from None  # the error of a decoder holds the whole body
    if not table:
        msg = "the body is not CSV: it has no header"
        raise Unreadable(msg)
    header, rows = table[0], table[1:]
    known = {column.name: _reader(column) for column in signature.columns}
    readers = [known.get(name, _as_it_is) for name in header]
    width = len(header)
    values = [
        [read(cell) for read, cell in zip(readers, row, strict=True)] if len(row) == width else row for row in rows
    ]
    return check_table(signature, header, values)


# -- helpers ------------------------------------------------------------------------------------------------

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
    # Beyond 64 bits no column goes, and thousands of digits take long.
    return int(cell) if cell.lstrip("+-").isdecimal() and len(cell) < 20 else float(cell)


def _list(cell: str) -> Any:
    if not cell:
        return None
    try:
        return read_json(cell.encode())
    except Unreadable:
        return cell

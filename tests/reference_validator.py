"""The rules of `/predict` once more: slow, plain, and without a line of the product.

It reads a body character by character and value by value, and knows of a signature only what ``GET /signature`` says.
"""

from __future__ import annotations

import calendar
import json
import math
import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

DEPTH = 32
INTEGERS = {
    f"{sign}int{bits}": (0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for bits in (8, 16, 32, 64)
    for sign in ("", "u")
}
LARGEST = {"float32": float(2**128 - 2**104), "float64": float(2**1024 - 2**971), "float16": 65504.0}
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
MOMENT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?(Z|[+-]\d\d:?\d\d|[+-]\d\d)?)?",
    re.ASCII,
)


class Whole(Decimal):
    """A number written without point and exponent."""


class Broken(Decimal):
    """A number written with a point or an exponent."""


class Constant(str):
    """NaN, Infinity or -Infinity."""

    __slots__ = ()


class Object(list):
    """The pairs of an object, in order, doubled ones too."""


@dataclass
class Verdict:
    """What has to be answered.

    Attributes
    ----------
    columns : set of str or None
        Of a 422, the columns that its problems must be about; None is the body as a whole.
    rows : list of dict
        Of a 200, what each row says.
    """

    status: int
    columns: set[str | None] = field(default_factory=set)
    rows: list[dict[str, Any]] = field(default_factory=list)


def judge(body: bytes, signature: dict[str, Any]) -> Verdict:
    """The verdict on `body` for the signature that ``GET /signature`` answers."""
    try:
        text = body.decode("utf-8")
        if depth(text) > DEPTH:
            return Verdict(400)
        value = json.loads(text, object_pairs_hook=Object, parse_int=Whole, parse_float=Broken, parse_constant=Constant)
    except (ValueError, RecursionError):
        return Verdict(400)
    if lone_surrogate(value):
        return Verdict(400)
    columns = {column["name"]: column for column in signature["columns"]}
    faults: set[str | None] = set(doubled(value))
    rows, more = rows_of(value, columns)
    faults |= more
    read = []
    for row in rows:
        faults |= row.keys() ^ columns.keys()
        held = {}
        for name in columns.keys() & row.keys():
            try:
                held[name] = cell(columns[name], row[name])
            except ValueError:
                faults.add(name)
        read.append(held)
    return Verdict(422, faults) if faults else Verdict(200, rows=read)


# -- the body as a whole


def depth(text: str) -> int:
    deepest = now = 0
    inside = escaped = False
    for letter in text:
        if inside:
            inside = escaped or letter != '"'
            escaped = letter == "\\" and not escaped
        elif letter == '"':
            inside = True
        elif letter in "[{":
            now += 1
            deepest = max(deepest, now)
        elif letter in "]}":
            now -= 1
    return deepest


def lone_surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return any(0xD800 <= ord(letter) <= 0xDFFF for letter in value)
    if isinstance(value, Object):
        return any(lone_surrogate(key) or lone_surrogate(part) for key, part in value)
    return isinstance(value, list) and any(map(lone_surrogate, value))


def doubled(value: Any) -> set[str]:
    found: set[str] = set()
    if isinstance(value, Object):
        keys = [key for key, _ in value]
        found |= {key for key in keys if keys.count(key) > 1}
        value = [part for _, part in value]
    if isinstance(value, list):
        for part in value:
            found |= doubled(part)
    return found


def rows_of(value: Any, columns: dict[str, Any]) -> tuple[list[dict[str, Any]], set[str | None]]:
    if isinstance(value, Object):
        record = dict(value)
        if set(record) != {"columns", "data"} or set(columns) == {"columns", "data"}:
            return [record], set()
        names, data = record["columns"], record["data"]
        if not is_list(names) or not all(is_text(name) for name in names):
            return [], {None}
        faults: set[str | None] = {name for name in names if names.count(name) > 1 or name not in columns}
        faults |= {name for name in columns if name not in names}
        if not is_list(data) or not data or any(not is_list(row) or len(row) != len(names) for row in data):
            return [], faults | {None}
        return ([] if faults else [dict(zip(names, row, strict=True)) for row in data]), faults
    if not is_list(value) or not value:
        return [], {None}
    rows = [dict(row) for row in value if isinstance(row, Object)]
    return rows, {None} if len(rows) < len(value) else set()


def is_list(value: Any) -> bool:
    return isinstance(value, list) and not isinstance(value, Object)


def is_text(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, Constant)


# -- one cell: what it says, or ValueError


def cell(column: dict[str, Any], value: Any) -> Any:
    if not column["shape"]:
        return scalar(column, value)
    if value is None and column["nullable"]:
        return None
    return array(column, value, list(column["shape"]))


def array(column: dict[str, Any], value: Any, shape: list[int | None]) -> Any:
    if not shape:
        return scalar({**column, "nullable": not column["finite"]}, value)
    if not is_list(value) or shape[0] not in (None, len(value)):
        raise ValueError
    return [array(column, part, shape[1:]) for part in value]


def scalar(column: dict[str, Any], value: Any) -> Any:
    if value is None or (isinstance(value, Constant) and value == "NaN"):
        if not column["nullable"]:
            raise ValueError
        return None
    return {
        "int": integer, "float": number, "bool": boolean, "string": string, "category": category, "date": date,
        "datetime": datetime,
    }[column["kind"]](column, value)  # fmt: skip


def integer(column: dict[str, Any], value: Any) -> int:
    if not isinstance(value, Decimal):
        raise ValueError  # noqa: TRY004  what does not fit is a ValueError, whatever it is
    exact = value if isinstance(value, Whole) else Decimal(finite(value))
    low, high = INTEGERS[column["dtype"].lower()]
    if isinstance(value, Broken) and exact <= -(2**63):  # lower numbers are the same float
        raise ValueError
    if exact != exact.to_integral_value() or not low <= exact <= high:
        raise ValueError
    return int(exact)


def number(column: dict[str, Any], value: Any) -> float:
    if isinstance(value, Constant) and not column["finite"]:
        return float(value)
    if not isinstance(value, Decimal) or abs(finite(value)) > LARGEST[column["dtype"].lower()]:
        raise ValueError
    return finite(value)


def finite(value: Decimal) -> float:
    found = float(str(value))
    if not math.isfinite(found):
        raise ValueError
    return found


def boolean(_column: dict[str, Any], value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError  # noqa: TRY004  the same
    return value


def string(_column: dict[str, Any], value: Any) -> str:
    if not is_text(value):
        raise ValueError
    return value


def category(column: dict[str, Any], value: Any) -> Any:
    kind = column["category_dtype"]
    if kind == "bool":
        return boolean(column, value)
    if kind in INTEGERS:
        return integer({"dtype": kind}, value)
    if kind in LARGEST:
        return number({"dtype": kind, "finite": True}, value)
    return string(column, value)


def date(_column: dict[str, Any], value: Any) -> str:
    if not is_text(value) or not re.fullmatch(r"\d{4}-\d\d-\d\d", value, re.ASCII):
        raise ValueError
    seconds_of(*map(int, value.split("-")))
    return value


def datetime(column: dict[str, Any], value: Any) -> int:
    """Units since 1970, as the dtype counts."""
    parts = MOMENT.fullmatch(value) if is_text(value) else None
    zoned = ", " in column["dtype"]
    if parts is None or bool(parts[8]) != zoned:
        raise ValueError
    hour, minute, second = (int(part or 0) for part in parts.group(4, 5, 6))
    seconds = seconds_of(int(parts[1]), int(parts[2]), int(parts[3]))
    if hour > 23 or minute > 59 or second > 59:
        raise ValueError
    seconds += 3600 * hour + 60 * minute + second
    if parts[8] and parts[8] != "Z":
        sign, digits = parts[8][0], parts[8][1:].replace(":", "").ljust(4, "0")
        if int(digits[:2]) > 23 or int(digits[2:]) > 59:
            raise ValueError
        seconds -= int(f"{sign}1") * (3600 * int(digits[:2]) + 60 * int(digits[2:]))
    unit = UNITS[re.search(r"\[(\w+)", column["dtype"])[1]]  # type: ignore[index]
    found = seconds * unit + int((parts[7] or "").ljust(9, "0")) * unit // 10**9
    if not -(2**63) < found < 2**63:
        raise ValueError
    return found


def seconds_of(year: int, month: int, day: int) -> int:
    if year < 1 or not 1 <= month <= 12 or not 1 <= day <= calendar.monthrange(year, month)[1]:
        raise ValueError
    return calendar.timegm((year, month, day, 0, 0, 0))

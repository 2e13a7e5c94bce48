"""The JSON of a request: parsed within limits, and refused where it says one thing twice.

What bounds what: `MAX_DEPTH` the nesting; `MAX_PARTS` and the size of the body the memory, some ten times the size at
worst; `MAX_ROWS` the work of the model. No number costs more than its length.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

from nbdeploy.errors import InputError
from nbdeploy.signature import Signature, problem, refusal

MAX_DEPTH = 32
MAX_ROWS = 1_000_000
MAX_PARTS = 8_000_000  # lists, objects, strings and keys: each takes some 60 bytes beside its text


class Unreadable(Exception):
    """A body that is not JSON, or not as plain as a request's is."""


def read_rows(body: bytes, signature: Signature) -> dict[str, list[Any]]:
    """The checked values of each column: of one record, a list of records, or columns and data.

    Parameters
    ----------
    body : bytes
        JSON as RFC 8259 has it: UTF-8, without a byte order mark.

    Raises
    ------
    Unreadable
        It is not JSON, or nested deeper than `MAX_DEPTH`.
    InputError
        The rows do not fit the signature, are more than `MAX_ROWS`, or an object has a key twice.
    """
    payload = parse_json(body)
    try:
        _refuse_many(payload)
        lists = signature.check(payload)
    except InputError:
        # What fits a signature is as flat as the signature: it need not be looked at.
        refuse_deep(body)
        raise
    refuse_doubled_keys(body, payload, signature, lists)
    return lists


def read_json(body: bytes) -> Any:
    """Any JSON, for protocols whose bodies hold more than rows: nested at most `MAX_DEPTH`, and each key once.

    NaN and Infinity, which are not JSON, come through so that their place can be named.

    Raises
    ------
    Unreadable
        It is not JSON, or nested deeper.
    InputError
        An object has a key twice.
    """
    payload = parse_json(body)
    if not _marks_are(body, 2 * _quoted(payload)):
        _name_doubled(body, by_row=isinstance(payload, list))
    return payload


def parse_json(body: bytes) -> Any:
    """Parse JSON; NaN and Infinity, which are not JSON, come through so that their column can be named.

    An integer beyond 64 bits comes as a float, and a number beyond all floats as an integer that is beyond them too.
    Of a key that stands twice the last value is kept, and only 1,024 bounds the nesting: `read_rows` and `read_json`
    are stricter.

    Raises
    ------
    Unreadable
        With the place of the fault.
    """
    if len(body) > MAX_PARTS and (parts := _parts(body)) > MAX_PARTS:
        msg = f"the body has {parts:,} lists, objects, strings and keys; at most {MAX_PARTS:,} are read"
        raise Unreadable(msg)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # What orjson refuses and Python reads: numbers beyond all floats, and these two words.
        if "infinity" in str(error) or b"NaN" in body or b"Infinity" in body:
            return _lenient(body)
        refuse_deep(body)
        msg = f"the body is not JSON: {error}"
        raise Unreadable(msg) from None


def refuse_deep(body: bytes) -> None:
    """Refuse a body that is nested deeper than `MAX_DEPTH`, whether or not the rest of it is JSON.

    Raises
    ------
    Unreadable
        It is.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for bare in _outside_texts(body):
        levels = np.cumsum(_is_opening(bare).astype(np.int8) - ((bare | 0x20) == ord("}")), dtype=np.int32)
        if levels.size and depth + int(levels.max()) > MAX_DEPTH:
            msg = f"the body is nested deeper than {MAX_DEPTH} lists and objects"
            raise Unreadable(msg)
        depth += int(levels[-1]) if levels.size else 0


def refuse_doubled_keys(
    body: bytes, payload: Any, signature: Signature, lists: dict[str, list[Any]] | None = None
) -> None:
    """Refuse a body in which an object has a key twice; JSON parsers keep one of its values and say nothing.

    Exact: each key and each string stands between two quotation marks, so a body has more marks than what was parsed
    needs just where a key was dropped. For one row that takes about a microsecond.

    Parameters
    ----------
    payload : dict or list
        What `body` holds, known to fit `signature`.
    lists : dict of list, optional
        What `Signature.check` made of it.

    Raises
    ------
    InputError
        With the row and the key.
    """
    lists = signature.check(payload) if lists is None else lists
    held, by_row = 0, True
    for column in signature.columns:
        if column.shape:
            if column.kind == "string" or column.cells == "sparse":
                held += _quoted(lists[column.name])
        elif column.kind in _TEXTUAL:
            held += [*map(type, lists[column.name])].count(str)
    if isinstance(payload, dict):
        by_row = payload.keys() == lists.keys()
        held += len(payload) if by_row else len(payload) + len(payload["columns"])
    elif isinstance(payload[0], dict):
        held += len(payload) * len(lists)
    if not _marks_are(body, 2 * held):
        _name_doubled(body, by_row=by_row)


# -- helpers ------------------------------------------------------------------------------------------------

_TEXTUAL = frozenset({"string", "category", "datetime", "date"})
_BLOCK = 1 << 20  # so much is looked at at once: what is looked at must not take more memory than what is parsed
_HUGE = 10**309


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON, with all its keys."""


def _lenient(body: bytes) -> Any:
    try:
        value = json.loads(body.decode(), parse_int=_number, parse_float=_number)
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode()  # refuses lone surrogates, which no log could hold
    except (ValueError, RecursionError) as error:
        refuse_deep(body)
        said = "a lone surrogate" if isinstance(error, UnicodeEncodeError) else " ".join(str(error).split())[:120]
        msg = f"the body is not JSON: {said}"
        raise Unreadable(msg) from None
    return value


def _number(text: str) -> int | float:
    # Python takes quadratic time for integers of any length.
    if len(text) < 22 and text.lstrip("-").isdigit():
        return int(text)
    value = float(text)
    return value if math.isfinite(value) else -_HUGE if value < 0 else _HUGE


def _refuse_many(payload: Any) -> None:
    rows = payload["data"] if isinstance(payload, dict) and payload.keys() == {"columns", "data"} else payload
    if isinstance(rows, list) and len(rows) > MAX_ROWS:
        expected = f"at most {MAX_ROWS:,} rows"
        raise refusal([problem(None, None, expected, f"{len(rows):,} rows", "Send them in several requests.")])


def _parts(body: bytes) -> int:
    most = body.count(b"[") + body.count(b"{") + body.count(b'"') // 2
    if most <= MAX_PARTS:
        return most
    # Some of them may stand in texts.
    return sum(int(np.count_nonzero(_is_opening(bare) | (bare == ord('"')))) for bare in _outside_texts(body))


def _outside_texts(body: bytes) -> Iterator[np.ndarray[Any, Any]]:
    """The bytes between the strings of JSON, block by block, and one quotation mark for each string."""
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    inside = 0
    for start in range(0, len(body), _BLOCK):
        block = np.frombuffer(body, np.uint8, min(_BLOCK, len(body) - start), start)
        # Odd is inside, whether or not the count has run over.
        marks = np.cumsum(block == ord('"'), dtype=np.uint8) + np.uint8(inside)
        yield block[marks & 1 == 0]
        inside = int(marks[-1]) & 1


def _is_opening(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    # "[" and "{", as "]" and "}", differ in one bit.
    opening: np.ndarray[Any, Any] = (block | 0x20) == ord("{")
    return opening


def _quoted(value: Any, depth: int = 1) -> int:
    """How many strings and keys a JSON value holds."""
    if isinstance(value, dict):
        held, parts = len(value), list(value.values())
    elif isinstance(value, list):
        held, parts = 0, value
    else:
        return isinstance(value, str)
    if depth > MAX_DEPTH:
        msg = f"the body is nested deeper than {MAX_DEPTH} lists and objects"
        raise Unreadable(msg)
    kinds = [*map(type, parts)]
    held += kinds.count(str)
    if list in kinds or dict in kinds:
        held += sum(_quoted(part, depth + 1) for part in parts if isinstance(part, (list, dict)))
    return held


def _marks_are(body: bytes, expected: int) -> bool:
    """Whether `body` has so many quotation marks around its keys and strings."""
    marks = body.count(b'"')
    # A mark inside of a string has a backslash of its own: one that no other backslash escapes.
    return marks == expected or marks - body.replace(b"\\\\", b"").count(b'\\"') == expected


def _name_doubled(body: bytes, *, by_row: bool) -> None:
    refuse_deep(body)
    payload = json.loads(body, object_pairs_hook=_Pairs, parse_int=float)
    rows = [payload] if isinstance(payload, _Pairs) else payload
    for row, value in enumerate(rows):
        found = _doubled(value)
        if found is not None:
            raise refusal([problem(row if by_row else None, found[:80], "each key once", "the same key twice")])


def _doubled(value: Any) -> str | None:
    if isinstance(value, _Pairs):
        seen: set[str] = set()
        for key, _ in value:
            if key in seen:
                return key
            seen.add(key)
    if isinstance(value, list):
        parts = [part for _, part in value] if isinstance(value, _Pairs) else value
        return next(filter(lambda key: key is not None, map(_doubled, parts)), None)
    return None

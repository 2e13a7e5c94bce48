"""The JSON of a request: parsed, and refused where it says one thing twice."""

from __future__ import annotations

import json
from typing import Any

import orjson

from nbdeploy.signature import Signature, problem, refusal


class Unreadable(Exception):
    """A body that is not JSON."""


def parse_json(body: bytes) -> Any:
    """Parse JSON; NaN and Infinity, which are not JSON, come through so that their column can be named.

    Raises
    ------
    Unreadable
        With the place of the fault.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as strict:
        try:
            value = json.loads(body)
            json.dumps(value, ensure_ascii=False).encode()  # refuses lone surrogates, which no log could hold
        except (ValueError, RecursionError):
            msg = f"the body is not JSON: {strict}"
            raise Unreadable(msg) from strict
        return value


def refuse_doubled_keys(body: bytes, payload: Any, signature: Signature) -> None:
    """Refuse a body in which an object has a key twice; JSON parsers keep one of its values and say nothing.

    Parameters
    ----------
    payload : dict or list
        What `body` holds, known to fit `signature`.

    Raises
    ------
    InputError
        With the row and the key.
    """
    # Each key and each string stands between two quotation marks. Only where there are more marks than the parsed
    # keys and strings need can one have been dropped: then, or where a string holds a mark, it is parsed again.
    split = {"columns", "data"}
    rows: list[Any]
    places: dict[str, Any]
    if isinstance(payload, dict) and payload.keys() == split and set(signature.names) != split:
        rows, places = payload["data"], {name: i for i, name in enumerate(payload["columns"])}
        held, by_row = 2 + len(places), False
    elif isinstance(payload, list) and not isinstance(payload[0], dict):  # rows without names
        one = len(signature.columns) == 1
        rows, places = (
            [[row] for row in payload] if one else payload,
            {name: i for i, name in enumerate(signature.names)},
        )
        held, by_row = 0, True
    else:
        rows, places = payload if isinstance(payload, list) else [payload], {name: name for name in signature.names}
        held, by_row = len(rows) * len(places), True
    for column in signature.columns:
        place = places[column.name]
        if column.shape:
            if column.kind == "string" or column.cells == "sparse":
                held += sum(_quoted(row[place]) for row in rows)
        elif column.kind in ("string", "category", "datetime", "date"):
            held += list(map(type, [row[place] for row in rows])).count(str)
    if body.count(b'"') <= 2 * held:
        return
    seen = 0

    def once(pairs: list[tuple[str, Any]]) -> None:
        nonlocal seen
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            key = next(key for i, key in enumerate(keys) if key in keys[:i])
            raise refusal([problem(seen if by_row else None, key[:80], "each key once", "the same key twice")])
        seen += 1

    json.loads(body, object_pairs_hook=once, parse_int=float)


# -- helpers ------------------------------------------------------------------------------------------------


def _quoted(value: Any) -> int:
    """How many strings and keys a JSON value holds."""
    if isinstance(value, dict):
        return len(value) + sum(map(_quoted, value.values()))
    return sum(map(_quoted, value)) if isinstance(value, list) else isinstance(value, str)

"""The try-it form of the panel: a field per column, the typed texts as a record, the answer as text."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from nbdeploy.panel_static import plain
from nbdeploy.signature import Column, Signature

MAX_FIELDS = 40  # of a wider model, the other columns are sent as in the example row
MAX_CHOICES = 30
MAX_TEXT = 60
MAX_VALUE = 1000


def fields(signature: Signature) -> list[dict[str, Any]]:
    """What the browser needs to draw each field: texts only, all of them short."""
    return [
        {
            "name": _short(column.name) or "(no name)",
            "kind": column.kind,
            "nullable": column.nullable,
            "hint": _hint(column),
            "choices": _choices(column),
        }
        for column in signature.columns[:MAX_FIELDS]
    ]


def texts(signature: Signature) -> list[str]:
    """The example row as it stands in the fields."""
    example = signature.example or {}
    return [_text(example.get(column.name)) for column in signature.columns[:MAX_FIELDS]]


def record(signature: Signature, typed: Sequence[str]) -> dict[str, Any]:
    """The row to ask about. What does not fit its column is sent as it was typed: the service says what is wrong."""
    example = dict(signature.example or {})
    row = {name: example.get(name) for name in signature.names}
    for column, text in zip(signature.columns[:MAX_FIELDS], typed, strict=False):
        if column.name not in example or text not in _as_shown(example[column.name]):  # else nobody changed it
            row[column.name] = _value(column, text)
    return row


def answer(signature: Signature, answered: pd.DataFrame) -> tuple[str, str]:
    """The prediction, and the probabilities of the likeliest classes, as two texts."""
    row = answered.iloc[0]
    outputs = {output.name or signature.target or "prediction": row[output.column] for output in signature.outputs}
    found = ", ".join(f"{_short(name)}: {plain(_text(value))[:MAX_VALUE]}" for name, value in outputs.items())
    prefix = "probability_"
    scores = {str(key)[len(prefix) :]: float(row[key]) for key in answered.columns if str(key).startswith(prefix)}
    best = sorted(scores, key=lambda name: -scores[name])
    chances = ", ".join(f"{_short(name)} {scores[name]:.1%}" for name in best[:4])
    more = f" and {len(best) - 4} more" if len(best) > 4 else ""
    return found, f"probability {chances}{more}" if chances else ""


# -- helpers ------------------------------------------------------------------------------------------------


def _value(column: Column, text: str) -> Any:
    word = text.strip()
    if not word and (column.nullable or column.kind not in ("string", "category")):
        return None
    if column.shape:
        return _parsed(text)
    if column.kind == "bool":
        return {"true": True, "false": False}.get(word.lower(), text)
    if column.kind in ("int", "float"):
        return _number(word, text)
    if column.kind == "category":
        known = {_text(value): value for value in column.categories or ()}
        return known.get(text, text)
    return text


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _number(word: str, text: str) -> Any:
    # As JSON reads it: "1_000" and "nan" are no numbers, and an integer stays one.
    try:
        value = json.loads(word)
    except ValueError:
        return text
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return text
    return text if isinstance(value, int) and value.bit_length() > 64 else value


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, dict, np.ndarray)):
        text = json.dumps(value.tolist() if isinstance(value, np.ndarray) else value, default=str)
        return text if len(text) <= MAX_VALUE else f"({len(text):,} characters)"
    return str(value).removesuffix(".0")


def _as_shown(value: Any) -> tuple[str, str]:
    # A field of one line drops line breaks.
    text = _text(value)
    return text, text.replace("\r", "").replace("\n", "")


def _choices(column: Column) -> list[str] | None:
    if column.shape:
        return None
    if column.kind == "bool":
        return ["true", "false", *([""] if column.nullable else [])]
    known = [_text(value) for value in column.categories or ()]
    return [text for text in known if 0 < len(text) <= MAX_TEXT][:MAX_CHOICES] or None


def _hint(column: Column) -> str:
    words = {"int": "whole number", "float": "number", "bool": "true or false", "string": "text",
             "category": "category", "datetime": "date and time", "date": "date"}[column.kind]  # fmt: skip
    if column.shape:
        return f"{column.expected}, as JSON"
    if column.minimum is not None:
        low, high = _bound(column.minimum), _bound(column.maximum)
        words += f", {low} to {high}" if low != high else f", always {low}"
    elif column.categories:
        seen = ", ".join(_short(_text(value), 20) for value in column.categories[:4])
        more = f" … ({len(column.categories)})" if len(column.categories) > 4 else ""
        words = f"{words}: {seen}{more}"
    return f"{words}, or empty" if column.nullable else words


def _bound(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else _text(value)[:16].replace("T", " ")


def _short(text: str, limit: int = MAX_TEXT) -> str:
    line = " ".join(plain(text[: limit * 4]).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"

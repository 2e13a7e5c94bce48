"""What a gate notebook may be told: its declared parameters, and values made to fit them before anything runs."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, time
from pathlib import PurePath
from typing import Any

from nbdeploy.errors import GateError, did_you_mean

JSON = None | bool | int | float | str | list[Any] | dict[str, Any]

_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (float,),
    "str": (str,),
    "list": (list,),
    "dict": (dict,),
}
_TRUE, _FALSE, _NONE = {"true", "yes", "1"}, {"false", "no", "0"}, {"none", "null"}


@dataclass(frozen=True)
class Declared:
    """What a parameters cell says about one name: its type ("" where it does not say) and whether None is fine."""

    kind: str
    optional: bool


def declared(source: str) -> dict[str, Declared]:
    """The names that a parameters cell assigns, with the type of each.

    An annotation or a ``# type:`` comment decides, else the type of the default.
    """
    code = "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())
    try:
        tree = ast.parse(code, type_comments=True)
    except SyntaxError as error:
        msg = f"The parameters cell is not Python: {error.msg} in line {error.lineno}"
        raise GateError(msg) from error
    found: dict[str, Declared] = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = _declaration(ast.unparse(node.annotation), node.value)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found[target.id] = _declaration(node.type_comment or "", node.value)
    return found


def fitted(parameters: Mapping[str, object], known: Mapping[str, Declared], notebook: str) -> dict[str, JSON]:
    """Return `parameters` as JSON values of the declared types, or raise a `GateError` that names the culprit."""
    values: dict[str, JSON] = {}
    for name, value in parameters.items():
        if name not in known:
            hint = did_you_mean(str(name), known) or "It has no cell tagged 'parameters' that assigns anything."
            known_names = f" It knows {', '.join(sorted(known))}." if known and not hint.startswith("Known") else ""
            msg = f"{notebook} has no parameter {str(name)[:80]!r}"
            raise GateError(msg, hint + known_names)
        values[name] = _as_declared(name, plain(name, value), known[name])
    return values


def plain(name: str, value: object) -> JSON:  # noqa: C901 - one line per kind of value
    """Turn numpy and pandas values, dates, paths, tuples and sets into what JSON has."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return _finite(name, float(value))
    if isinstance(value, str):
        return _encodable(name, str.__str__(value))
    if isinstance(value, (date, time)) and value == value:  # NaT is a datetime, and equals nothing
        return value.isoformat()
    if isinstance(value, PurePath):
        return _encodable(name, str(value))
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            msg = f"Parameter {name!r} has the key {wrong[0]!r}"
            raise GateError(msg, "Keys must be text.")
        return {str.__str__(key): plain(name, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(name, item) for item in value]
    if isinstance(value, (set, frozenset)):
        items = [plain(name, item) for item in value]
        return sorted(items, key=lambda item: json.dumps(item, sort_keys=True))  # a set has no order, evidence has
    if type(value).__module__.split(".")[0] in {"numpy", "pandas"}:
        if getattr(getattr(value, "dtype", None), "kind", "") == "M" and hasattr(value, "astype"):
            value = value.astype(str)  # tolist() would give nanoseconds
        if hasattr(value, "tolist") and (items := value.tolist()) is not value:
            return plain(name, items)
    hint = "Save it to a file and give its path." if hasattr(value, "to_parquet") else "Give text, a number or a list."
    msg = f"Parameter {name!r} is a {type(value).__name__}, which a notebook cannot be given"
    raise GateError(msg, hint)


def _declaration(annotation: str, default: ast.expr | None) -> Declared:
    try:
        value = ast.literal_eval(default) if default is not None else ...
    except ValueError:  # computed, so its type is not to be read off
        value = ...
    if not annotation:
        kind = "list" if isinstance(value, tuple) else type(value).__name__
        return Declared(kind if kind in _TYPES else "", value is None)
    union = re.sub(r"^(?:typing\.)?Optional\[(.*)\]$", r"\1 | None", annotation.strip("'\""))
    parts = {part.strip().split("[")[0].removeprefix("typing.") for part in union.split("|")}
    kinds = {part if part in _TYPES else part.lower() for part in parts - {"None"}}
    kind = kinds.pop() if len(kinds) == 1 else ""
    return Declared(kind if kind in _TYPES else "", value is None or "None" in parts)


def _as_declared(name: str, value: JSON, wanted: Declared) -> JSON:
    if isinstance(value, str) and wanted.kind not in {"", "str"}:
        value = _parsed(name, value, wanted)
    if value is None and (wanted.optional or not wanted.kind):
        return None
    if not wanted.kind:
        return value
    if wanted.kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, _TYPES[wanted.kind]) and isinstance(value, bool) == (wanted.kind == "bool"):
        return value
    raise _misfit(name, wanted, value)


def _parsed(name: str, text: str, wanted: Declared) -> JSON:
    """Read text from a shell as the declared type."""
    word = text.strip().lower()
    if wanted.optional and word in _NONE:
        return None
    try:
        if wanted.kind == "bool":
            return {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}[word]
        if wanted.kind == "int":
            return int(word)
        if wanted.kind == "float":
            return _finite(name, float(word))
        value = json.loads(text)
    except (KeyError, ValueError) as error:
        if isinstance(error, GateError):
            raise
        raise _misfit(name, wanted, text) from error
    return plain(name, value)


def _misfit(name: str, wanted: Declared, value: JSON) -> GateError:
    got = "None" if value is None else f"{type(value).__name__} {value!r:.60}"
    return GateError(f"Parameter {name!r} is a {wanted.kind}{' or None' if wanted.optional else ''}, got {got}")


def _finite(name: str, number: float) -> float:
    if math.isfinite(number):
        return number
    msg = f"Parameter {name!r} is {number}"
    raise GateError(msg, "Give a finite number.")


def _encodable(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        msg = f"Parameter {name!r} is text that is not valid Unicode"
        raise GateError(msg) from error
    return text

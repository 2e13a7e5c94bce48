"""Whether one version can answer whoever asks another: what its signature takes away."""

from __future__ import annotations

from nbdeploy.signature import Column, Signature

# A column of the first kind takes what one of the others takes.
_TAKES: dict[str, frozenset[str]] = {"float": frozenset({"int"}), "string": frozenset(), "category": frozenset()}


def incompatibilities(asked: Signature, answering: Signature) -> list[str]:
    """What a request or an answer that fits `asked` would not find in `answering`, one line each; none if all fits.

    Ranges and categories do not count: what training has not seen is answered all the same.
    """
    known = {column.name: column for column in answering.columns}
    found = [f"column {column.name!r} is not among its inputs" for column in asked.columns if column.name not in known]
    before = {column.name: column for column in asked.columns}
    for column in answering.columns:
        old = before.get(column.name)
        if old is None:
            found.append(f"it needs the column {column.name!r}, which nobody sends")
        elif change := _narrower(old, column):
            found.append(f"column {column.name!r} {change}")
    return found + output_changes(asked, answering)


def _narrower(old: Column, new: Column) -> str:
    kinds = _kind(old), _kind(new)
    if kinds[0] != kinds[1] and kinds[0] not in _TAKES.get(kinds[1], frozenset()):
        return f"takes {new.kind} instead of {old.kind}"
    if old.shape != new.shape:
        return f"has cells of shape {new.shape} instead of {old.shape}"
    if old.nullable and not new.nullable:
        return "takes no nulls any more"
    return "takes no Infinity any more" if not old.finite and new.finite else ""


def _kind(column: Column) -> str:
    if column.kind != "category":
        return column.kind
    inner = column.category_dtype.lower()
    if inner == "bool":
        return "bool"
    return "int" if inner.startswith(("int", "uint")) else "float" if inner.startswith("float") else "string"


def output_changes(asked: Signature, answering: Signature) -> list[str]:
    """What in the answers of `answering` is not as in those of `asked`; none if they can stand side by side."""
    if asked.task != answering.task:
        return [f"it does {answering.task} instead of {asked.task}"]
    names = [output.name for output in asked.outputs], [output.name for output in answering.outputs]
    if names[0] != names[1]:
        return [f"its outputs are {_listed(names[1])} instead of {_listed(names[0])}"]
    for old, new in zip(asked.outputs, answering.outputs, strict=True):
        if old.shape != new.shape:
            return [f"its output {new.column!r} has the shape {new.shape} instead of {old.shape}"]
    if asked.classes is not None and answering.classes is None:
        return ["it gives no probabilities"]
    if asked.classes is not None and asked.classes != answering.classes:
        return [f"its classes are {_listed(answering.classes or ())} instead of {_listed(asked.classes)}"]
    return []


def _listed(names: object) -> str:
    shown = [str(name) or "one value" for name in (names if isinstance(names, (list, tuple)) else [names])]
    return ", ".join(shown[:5]) + (" …" if len(shown) > 5 else "")

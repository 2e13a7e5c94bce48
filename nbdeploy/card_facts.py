"""What is known about a version, as plain JSON values: the facts behind its card."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from nbdeploy import artifact, home, importance
from nbdeploy.errors import NbdeployError
from nbdeploy.gate_result import Check
from nbdeploy.signature import Signature
from nbdeploy.signature_values import plain

MAX_EXAMPLE = 60  # columns of an example that is still worth reading
PRIVATE = "(private)"


class Subject(Protocol):
    """What a card is about: a `ModelVersion`."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def created(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def signature(self) -> Signature: ...
    @property
    def provenance(self) -> dict[str, Any]: ...


def collect(version: Subject) -> dict[str, Any]:
    """Read everything that is known about `version`; what is absent is None or empty.

    Of a private column it holds the name and the type.
    """
    signature, provenance = version.signature, version.provenance
    reference = artifact.read_reference(version.path, signature)
    measured = _plain(provenance.get("metrics"))
    return {
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
        "created": version.created,
        "predicts": {
            "task": signature.task,
            "target": signature.target,
            "classes": None if signature.classes is None else _plain([plain(value) for value in signature.classes]),
            "outputs": [
                {"name": output.name, "dtype": output.dtype, "shape": list(output.shape)}
                for output in signature.outputs
            ],
        },
        "inputs": [_input(column, reference[column.label]) for column in signature.columns],
        "container": str(signature.container),
        "example": (example := _example(signature)),
        "request": _request(version.name, example),
        "training": {
            "rows": provenance.get("rows"),
            "columns": len(signature.columns),
            "reference_rows": len(reference),
            "digest": str(provenance.get("training_digest") or ""),
            "labels": (version.path / artifact.LABELS).is_file(),
        },
        "metrics": measured if isinstance(measured, dict) else {},
        "gate": latest_gate(version.name, version.digest),
        "importance": importance.read(version.path, version.digest),
        "requirements": _requirements(version, provenance),
        "parameters": _plain(provenance.get("parameters")) or {},
        "provenance": {
            key: _plain(provenance.get(key))
            for key in ("model", "framework", "format", "notebook", "git", "python", "platform", "user", "retrained")
        },
        "cells": _cells(provenance.get("cells")),
    }


def latest_gate(name: str, digest: str) -> dict[str, Any] | None:
    """The newest verdict on the version with this digest, or None; of several gates one that failed comes first.

    Its checks are decided anew.
    """
    found: dict[str, dict[str, Any]] = {}  # the newest of each gate
    try:
        evidence = home.home() / "gates" / home.check_name(name) / digest[:16]
        results = list(evidence.glob("*.json"))
    except (NbdeployError, OSError):
        return None
    for path in results:
        try:
            result = home.read_json(path)
            gate = str(result.get("gate", ""))
            if result["digest"] != digest or (gate in found and result["started"] <= found[gate]["started"]):
                continue
            checks = [Check.from_dict(check) for check in result["checks"]]
            found[gate] = {
                "passed": bool(result["passed"]) and bool(checks) and all(check.passed for check in checks),
                "reason": str(result["reason"]),
                "started": str(result["started"]),
                "seconds": float(result["seconds"]),
                "notebook": str(result["notebook"]),
                "checks": [
                    {**check.to_dict(), "shown": check.shown, "wanted": check.wanted} for check in checks
                ],
            }  # fmt: skip
        except (NbdeployError, LookupError, TypeError, ValueError, OSError, AttributeError):
            continue  # not a result of ours, or damaged: no evidence
    return max(found.values(), key=lambda one: (not one["passed"], one["started"]), default=None)


# -- helpers ------------------------------------------------------------------------------------------------


def _request(name: str, example: Mapping[str, Any] | None) -> str:
    """A command for a shell that sends `example`; '' where there is none."""
    if example is None:
        return ""
    body = json.dumps([dict(example)], ensure_ascii=False)
    if not body.isprintable():  # nothing that reverses or hides text in a command to copy
        body = json.dumps([dict(example)])
    if len(body) > 90:
        inner = ",\n  ".join(
            f"{json.dumps(key, ensure_ascii=not key.isprintable())}: {_printable(value)}"
            for key, value in example.items()
        )
        body = f"[{{\n  {inner}\n}}]"
    return (
        f"URL=...  # nbdeploy status {name} tells it\n"
        f"curl -s $URL/predict -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )


def _printable(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)


def _input(column: Any, values: pd.Series) -> dict[str, Any]:
    """One input column; of a private one only its name and type."""
    found: dict[str, Any] = {"name": column.name, "type": str(column.kind), "dtype": str(column.dtype)}
    if getattr(column, "private", False):
        return {**found, "private": True}
    found |= {
        "private": False,
        "nullable": bool(column.nullable),
        "null_share": float(values.isna().mean()) if len(values) else 0.0,
        "finite": bool(column.finite),
        "minimum": _finite(column.minimum),
        "maximum": _finite(column.maximum),
        "categories": None if column.categories is None else [plain(value) for value in column.categories],
        "middle": None,
        "distinct": None,
    }
    if column.shape:
        return {**found, "shape": list(column.shape)}
    try:
        present = values.dropna()
        found["distinct"] = int(present.nunique())
        if len(present):
            found["middle"] = _middle(str(column.kind), present)
    except (TypeError, ValueError):  # values that cannot be compared, such as arrays
        pass
    return found


def _middle(kind: str, present: pd.Series) -> Any:
    """The median of numbers and datetimes, else the most frequent value."""
    if kind in ("int", "float"):
        return _finite(float(np.median(present.to_numpy(dtype="float64"))))
    if kind in ("datetime", "date"):
        return plain(present.sort_values().iloc[len(present) // 2])
    return plain(present.value_counts().index[0])


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else plain(value)


def _example(signature: Signature) -> dict[str, Any] | None:
    example = dict(signature.example or {})
    if not example or len(example) > MAX_EXAMPLE or len(json.dumps(example, default=str)) > 8_000:
        return None
    private = {column.name for column in signature.columns if getattr(column, "private", False)}
    return {key: PRIVATE if key in private else value for key, value in example.items()}


def _requirements(version: Subject, provenance: Mapping[str, Any]) -> list[str]:
    lines = getattr(version, "requirements", None)
    if lines:
        return [str(line) for line in lines]
    versions = provenance.get("versions")
    return [f"{name}=={number}" for name, number in versions.items()] if isinstance(versions, dict) else []


def _cells(cells: Any) -> list[dict[str, str]]:
    """The notebook's cells that the model is made of, each with a name and its source."""
    pairs = cells.items() if isinstance(cells, dict) else enumerate(cells if isinstance(cells, list) else [], start=1)
    found = []
    for name, cell in pairs:
        if isinstance(cell, Mapping):
            named = cell.get("name") or cell.get("names") or name
            named = ", ".join(map(str, named)) if isinstance(named, (list, tuple)) else str(named)
            found.append({"name": named, "source": str(cell.get("source", cell.get("code", "")))})
        else:
            found.append({"name": str(name), "source": str(cell)})
    return found


def _plain(value: Any) -> Any:
    """`value` as JSON has it, whatever it is."""
    try:
        return json.loads(json.dumps(value, default=str))
    except (TypeError, ValueError):
        return str(value)

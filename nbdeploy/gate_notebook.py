"""A gate, or any notebook to run, as it stands in its file: read, without what an earlier run left in it, and told from every other by a digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from nbdeploy.errors import GateError, NotFound
from nbdeploy.gate_parameters import Declared, declared

_END_CELL = "# Added by nbdeploy: shows that the notebook came to its end with its kernel alive.\nfrom nbdeploy import gate\n\ngate.end()"
_END_TAG = "nbdeploy-end"


def read(path: Path, *, is_gate: bool = True) -> dict[str, Any]:
    """The notebook as JSON, without what an earlier run left in it, and for a gate with our last cell.

    Read without nbformat, whose import takes more than a second: the caller waits for this.

    Raises
    ------
    NotFound
        There is no such file.
    GateError
        It is not a notebook that can be run.
    """
    if not path.is_file():
        msg = f"There is no notebook {path}"
        raise NotFound(msg)
    try:
        raw = json.loads(path.read_bytes())
        major, cells, metadata = raw["nbformat"], raw.get("cells", []), raw.get("metadata", {})
        for cell in cells:
            cell["source"] = "".join(cell["source"])
            cell["metadata"]["tags"] = list(cell["metadata"].get("tags", []))
        language = metadata.get("kernelspec", {}).get("language") or metadata.get("language_info", {}).get("name")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        msg = f"{path} is not a Jupyter notebook"
        raise GateError(msg, f"{type(error).__name__}: {error}.") from error
    if major != 4:
        msg = f"{path.name} has the notebook format {str(major)[:10]}, and 4 is needed"
        raise GateError(msg, "Open it in JupyterLab and save it.")
    if str(language or "python").lower() not in {"python", "ipython"}:
        msg = f"{path.name} is written in {language}, and only Python is run"
        raise GateError(msg)
    # An earlier run's parameters would silently decide this one. What was executed once has our last cell already.
    left = {"injected-parameters", _END_TAG}
    kept = [cell for cell in cells if not left & {str(tag) for tag in cell["metadata"]["tags"]}]
    if is_gate:
        kept.append({"cell_type": "code", "source": _END_CELL, "metadata": {"tags": [_END_TAG]}})
    for number, cell in enumerate(kept):
        cell["id"] = f"cell-{number}"
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": kept}


def declared_in(notebook: dict[str, Any]) -> dict[str, Declared]:
    """The parameters that a notebook, as `read` gives it, declares."""
    tagged = (cell["source"] for cell in notebook["cells"] if "parameters" in cell["metadata"]["tags"])
    return declared(next(tagged, ""))


def digest(notebook: dict[str, Any]) -> str:
    """The SHA-256 of what a notebook, as `read` gives it, asks: kinds, tags and sources of its cells, no output."""
    cells = [
        [cell["cell_type"], sorted(map(str, cell["metadata"]["tags"])), cell["source"]] for cell in notebook["cells"]
    ]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def digest_of(path: Path) -> str:
    """The digest of the notebook in a file; see `read` for what it raises."""
    return digest(read(path))

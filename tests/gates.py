"""Gate notebooks for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHECK = "import nbdeploy\nnbdeploy.check('accuracy', 0.9, at_least=0.8)"


def write_gate(path: Path, *cells: str | tuple[str, str], metadata: Any = None) -> Path:
    """Write a notebook from the sources of its code cells; ``(source, tag)`` tags one."""
    code = [(cell, "") if isinstance(cell, str) else cell for cell in cells]
    body = [
        {
            "cell_type": "code",
            "source": source.splitlines(keepends=True),
            "metadata": {"tags": [tag]} if tag else {},
            "outputs": [],
            "execution_count": None,
        }
        for source, tag in code
    ]
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 4, "metadata": metadata or {}, "cells": body}))
    return path

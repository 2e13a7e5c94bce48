"""Where a version comes from: notebook, cells, git commit, Python, data, parameters, metrics."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

from nbdeploy import data_digest, notebook_source, processes
from nbdeploy.artifact import Written
from nbdeploy.errors import SaveError
from nbdeploy.redaction import HIDDEN, IN_URL, KNOWN_FORMS, SECRET_NAME

MAX_TEXT = 200
RETRAINING = "NBDEPLOY_RETRAINING"  # what a retraining tells the kernel of its notebook, as JSON


def here() -> dict[str, Any]:
    """Where and by whom: notebook, git commit, Python, platform, user."""
    return {
        "notebook": notebook_source.notebook_path(),
        "git": _git(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "user": processes.user(),
        **({"retrained": facts} if (facts := retraining()) else {}),
    }


def retraining() -> dict[str, Any]:
    """What this process is told of the retraining that it is part of; else nothing."""
    with suppress(ValueError):
        facts = json.loads(os.environ.get(RETRAINING) or "{}")
        return facts if isinstance(facts, dict) else {}
    return {}


def of(written: Written, X: Any) -> dict[str, Any]:
    """What is behind a model: the cells that define what it needs, its parameters, its training data."""
    return {
        **written.facts,
        "cells": notebook_source.cells(written.needed.definitions),
        "parameters": {
            str(name): _told(str(name), value) for name, value in written.parameters.items() if not _is_model(value)
        },
        "training_digest": "" if X is None else data_digest.training_digest(X),
    }


def checked_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The user's metrics as JSON values.

    Raises
    ------
    SaveError
        One is neither a number nor a text.
    """
    measured = {}
    for name, value in metrics.items():
        given = value.item() if isinstance(value, (np.generic, np.ndarray)) and not value.ndim else value
        given = float(given) if isinstance(given, (Decimal, Fraction)) else given
        if isinstance(given, str):  # from a command line
            with suppress(ValueError):
                given = float(given)
        if not isinstance(given, (int, float, str)):
            msg = f"the metric {str(name)[:80]!r} is a {type(value).__name__}"
            raise SaveError(msg, "Pass names and numbers: metrics={'auc': 0.83}.")
        if isinstance(given, int) and abs(given) >= 1 << 63:
            msg = f"the metric {str(name)[:80]!r} is too large a number"
            raise SaveError(msg, "Pass a float, or a text.")
        measured[str(name)] = given if isinstance(given, str) or math.isfinite(given) else str(given)
    return measured


# -- helpers ------------------------------------------------------------------------------------------------


def _is_model(value: Any) -> bool:
    # What a scikit-learn model is made of is among its parameters, beside their own.
    return hasattr(value, "get_params") or any(hasattr(part, "get_params") for part in _parts(value))


def _parts(value: Any) -> Iterator[Any]:
    for part in value if isinstance(value, (list, tuple)) else ():
        yield from part if isinstance(part, (list, tuple)) else (part,)


def _told(name: str, value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    whole = isinstance(value, int) and abs(value) < 1 << 63
    if value is None or whole or (isinstance(value, float) and math.isfinite(value)):
        return value
    if SECRET_NAME.search(name) and not name.endswith("token_pattern"):  # scikit-learn's, and no secret
        return HIDDEN
    try:
        text = value if isinstance(value, str) else " ".join(repr(value).split())
    except Exception:  # noqa: BLE001  anybody's repr
        return f"a {type(value).__name__}"
    return IN_URL.sub(f"{HIDDEN}:{HIDDEN}", KNOWN_FORMS.sub(HIDDEN, text))[:MAX_TEXT]


def _git() -> dict[str, Any] | None:
    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], capture_output=True, text=True, timeout=5, check=True, stdin=subprocess.DEVNULL
        )
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None

"""Whether what gates have found allows a version to be promoted. Everything that cannot be read says no."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nbdeploy import home
from nbdeploy.errors import NbdeployError
from nbdeploy.gate_notebook import digest_of
from nbdeploy.gate_result import Check

DEFAULT = "validate.ipynb"  # the gate that comes with nbdeploy; "" where a gate is named by its path
# What is judged and where it is, not how strictly.
UNCOUNTED = frozenset({"name", "version", "url", "live_url", "data"})


@dataclass(frozen=True)
class Evidence:
    """One verdict of one gate, as it was found on the disk.

    Attributes
    ----------
    path : pathlib.Path
        Of the result. The executed notebook is beside it.
    passed : bool
        Decided anew from the checks.
    checks : tuple of Check
    """

    path: Path
    digest: str
    gate: str
    gate_digest: str
    passed: bool
    reason: str
    started: datetime
    parameters: Mapping[str, Any]
    checks: tuple[Check, ...] = ()


def notebook_of(gate: Mapping[str, Any]) -> Path:
    """The file of a required gate."""
    return Path(gate["notebook"]) if gate.get("notebook") else home.template(DEFAULT)


def needed(gates: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What a promotion needs: the gate that comes with nbdeploy, first and always, and the required ones."""
    own = next((gate for gate in gates if not gate.get("notebook")), {"notebook": "", "parameters": {}})
    return [own, *(gate for gate in gates if gate.get("notebook"))]


def found(name: str, digest: str) -> list[Evidence]:
    """All verdicts on the version of `name` with this digest, the newest first."""
    try:
        folder = home.home() / "gates" / home.check_name(name) / digest[:16]
        read = [_read(path, name) for path in folder.glob("*.json") if path.is_file()]
    except (NbdeployError, OSError):
        return []
    kept = [one for one in read if one is not None and one.digest == digest]
    return sorted(kept, key=lambda one: one.started, reverse=True)


def standing(
    digest: str, gates: Sequence[Mapping[str, Any]], results: Iterable[Evidence], *, name: str, version: str
) -> tuple[list[Path], str]:
    """Whether the version with this digest may be promoted.

    Of the gate that comes with nbdeploy and of every required one, the newest verdict on this very digest, by the
    notebook as it is now, has to be a pass, with the parameters that are required.

    Parameters
    ----------
    gates : sequence of mapping
        The required ones: ``{"notebook": its path, or "" for the gate that comes with nbdeploy, "parameters": {…}}``.
    results : iterable of Evidence
        What `found` found.
    name, version : str
        For what is said.

    Returns
    -------
    list of Path
        The executed notebooks that allow it, as far as there are any.
    str
        Empty when it may be promoted; else one line that says what is missing and the command to run.
    """
    mine = sorted((one for one in results if one.digest == digest), key=lambda one: one.started, reverse=True)
    paths, reason = [], ""
    for gate in needed(gates):
        evidence, lacking = _stands(gate, mine, f"%deploy validate {name} {version}")
        if evidence is not None:
            paths.append(evidence.path.with_suffix(".ipynb"))
        elif not reason:
            reason = " ".join(f"{name}:{version} {lacking}".split())
    return paths, reason


# -- helpers ------------------------------------------------------------------------------------------------


def _stands(gate: Mapping[str, Any], mine: Sequence[Evidence], run: str) -> tuple[Evidence | None, str]:
    """The verdict that one gate stands on, or what is lacking and which command to `run`."""
    path = notebook_of(gate)
    called = path.name
    try:
        asks = digest_of(path)
    except (NbdeployError, OSError):
        back = f"{run} --notebook {shlex.quote(str(path))} --no-require"
        return None, f"needs the gate {called}, which cannot be read: put it back, or take it back by {back}"
    newest = next((one for one in mine if one.gate_digest == asks), None)
    if newest is None:
        edited = any(one.gate == called for one in mine)
        since = f"has passed no gate {called} since that was edited" if edited else f"has not passed the gate {called}"
        return None, f"{since}: run {run}"
    if not newest.passed:
        return None, f"failed the gate {called} ({newest.reason[:160]}): mend it, then run {run}"
    wanted = {key: value for key, value in (gate.get("parameters") or {}).items() if key not in UNCOUNTED}
    other = [key for key, value in wanted.items() if _text(newest.parameters.get(key, ...)) != _text(value)]
    if other:
        required = ", ".join(f"{key}={wanted[key]!r}" for key in other)[:160]
        return None, f"passed the gate {called} without the required {required}: run {run}"
    return newest, ""


def _read(path: Path, name: str) -> Evidence | None:
    """A verdict of ours; None for what is torn, or somebody else's. A pass without the notebook that was executed is none."""
    try:
        told = json.loads(path.read_bytes())
        checks = [Check.from_dict(one) for one in told["checks"]]
        started = datetime.fromisoformat(told["started"])
        texts = [told[key] for key in ("deployment", "digest", "gate", "gate_digest", "reason")]
        if not all(isinstance(text, str) for text in texts) or told["deployment"] != name:
            return None
        held = bool(checks) and all(one.passed for one in checks) and not told["reason"]
        return Evidence(
            path=path,
            digest=told["digest"],
            gate=told["gate"],
            gate_digest=told["gate_digest"],
            passed=told["passed"] is True
            and held
            and _is_executed(path.with_suffix(".ipynb"), told["notebook_digest"]),
            reason=told["reason"] or "its evidence is not whole",
            started=started if started.tzinfo else started.replace(tzinfo=timezone.utc),
            parameters=dict(told["parameters"]),
            checks=tuple(checks),
        )
    except (NbdeployError, LookupError, TypeError, ValueError, AttributeError, OSError, RecursionError):
        return None


def _is_executed(notebook: Path, digest: str) -> bool:
    """Whether a notebook stands there as it was executed."""
    return notebook.is_file() and hashlib.sha256(notebook.read_bytes()).hexdigest() == digest


def _text(value: Any) -> str:
    """A value to compare: True is no 1, and what was not given equals nothing."""
    return "" if value is ... else json.dumps(value, sort_keys=True)

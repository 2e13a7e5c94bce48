"""A guard and a rollout of a traffic in one line each, for whoever looks at it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

MAX_SAID = 200


def shares(weights: Mapping[str, float]) -> str:
    """Who gets how much: ``v1 90 %, v2 10 %``."""
    return ", ".join(f"{version} {share:g} %" for version, share in weights.items())


def rollout(facts: Mapping[str, Any], now: float | None = None) -> str:
    """How far a rollout is, and what it waits for: ``v2: 10 %, step 2 of 4 (1, 10, 50, 100 %), 3 of 10 min``."""
    steps, at, run = list(facts.get("steps", ())), int(facts.get("at", 0)), facts.get("run") or {}
    paused, minutes = bool(facts.get("paused")), float(facts.get("minutes", 0))
    now = time.time() if now is None else now
    spent = float(run.get("spent", 0)) + (0 if paused else max(0.0, now - float(run.get("since", now))))
    share = f"{steps[at]:g} %" if at < len(steps) else "?"
    told = ", ".join(f"{step:g}" for step in steps)
    line = f"{facts.get('version')}: {share}, step {at + 1} of {len(steps)} ({told} %)"
    line += f", {min(int(spent / 60), int(minutes))} of {minutes:g} min" + (", paused" if paused else "")
    said = _short(run.get("said"))
    return f"{line}: {said}" if said else line


def guard(facts: Mapping[str, Any]) -> str:
    """What a guard allows, and whom it watches or what it has done: ``errors at most 2 %. It watches v2``."""
    line, tripped, refused = str(facts.get("told", "")), facts.get("tripped"), facts.get("refused")
    if tripped:
        return f"{line}. {tripped.get('version')} was taken out: {_short(tripped.get('why'))}"
    if refused:
        return f"{line}. {refused.get('version')} was not promoted: {_short(refused.get('why'))}"
    watched = ", ".join(facts.get("watch") or ())
    return f"{line}. It watches {watched}" if watched else line


def _short(text: object) -> str:
    line = " ".join(str(text or "").split())
    return line if len(line) <= MAX_SAID else f"{line[: MAX_SAID - 1]}…"

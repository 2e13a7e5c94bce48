"""Which version of a deployment is live: one small file, replaced atomically under a lock."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nbdeploy import processes
from nbdeploy.home import check_name, folder, lock, read_json, write_json


def live(name: str) -> str | None:
    """The live version of `name`, or None before its first release."""
    state = read_json(_path(name))
    return state["live"] if state else None


def go_live(name: str, version: str, why: str) -> None:
    """Make `version` the live one and write down who did it, when and why."""
    with lock("traffic", name):
        state: dict[str, Any] = read_json(_path(name)) or {"live": None, "history": []}
        if state["live"] == version:
            return
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        step = {"time": now, "who": processes.user(), "from": state["live"], "to": version, "why": why}
        write_json(_path(name), {"live": version, "history": [*state["history"], step]})


def _path(name: str) -> Path:
    return folder("traffic") / f"{check_name(name)}.json"

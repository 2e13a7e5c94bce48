"""Why a gate did not pass, or another notebook did not come to its end, in one line, from what was heard of its run."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from nbdeploy.gate_runner import Recording

_SKIPPED = "skip-execution"  # the tag that Papermill goes by


def reason(recording: Recording, timeout: float, hide: Callable[[str], str] = str) -> str:
    """Why the gate did not pass, in one line; empty only when everything held.

    `hide` takes out what must not be told. It is asked before anything is cut short.
    """
    failed = [str(one) for _, one in sorted(recording.checks.items()) if not one.passed]
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    reasons = [f"{failed[0]}{more}"] if failed else []
    if short := fault(recording, timeout, hide) or _unproven(recording):
        reasons.append(short)
    return "; ".join(reasons)


def fault(recording: Recording, timeout: float, hide: Callable[[str], str] = str) -> str:  # noqa: C901 - one line per way to fall short
    """What kept a notebook from its end, in one line; "" where nothing did. In a gate every cell has to run."""
    cells = [cell for cell in recording.notebook.cells if "papermill-error-cell-tag" not in _tags(cell)]
    where = _label(cells, recording.at) if recording.at is not None else "the start of its kernel"
    if recording.cancelled:
        return f"it was cancelled in {where}"
    if recording.timed_out:
        return f"it was not done after {timeout:g} s, and stopped in {where}"
    if recording.full_at is not None:
        return f"it put out more than {recording.limit // 1_000_000} MB, in {_label(cells, recording.full_at)}"
    if recording.errors:
        index, name, text = recording.errors[0]
        return f"{_label(cells, index)} raised {name}" + (
            f": {text.strip().splitlines()[0]:.200}" if text.strip() else ""
        )
    if recording.quit:
        return "it asked its own kernel to quit"
    if recording.failure is not None and type(recording.failure).__name__ == "DeadKernelError":
        return f"its kernel died in {where}: {_how(recording.leash.exit_code)}"
    if recording.failure is not None:
        return f"it stopped in {where}: {' '.join(hide(str(recording.failure)).split())[:200] or type(recording.failure).__name__}"
    for index, cell in enumerate(cells):
        if cell.cell_type == "code" and cell.source.strip() and recording.statuses.get(index) != "ok":
            skipped = _SKIPPED in _tags(cell)
            if recording.is_gate or not skipped:
                return f"{_label(cells, index)} was not executed{f' (tag {_SKIPPED})' if skipped else ''}"
    return ""


def _unproven(recording: Recording) -> str:
    """What a gate that came to its end lacks for a pass."""
    if recording.claimed is None:
        return "it did not come to its end"
    if recording.claimed != len(recording.checks):
        return f"it made {recording.claimed} checks of which {len(recording.checks)} arrived; show checks, do not capture them"
    return "" if recording.checks else "no check was recorded; a gate needs at least one nbdeploy.check(...)"


def _tags(cell: Any) -> list[str]:
    return list(cell.metadata.get("tags", []))


def _label(cells: list[Any], index: int) -> str:
    count = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in cells[: index + 1])
    lines = [
        line.strip() for line in cells[index].source.splitlines() if line.strip() and not line.startswith(("#", "%"))
    ]
    return f"In [{count}] `{lines[0][:60]}`" if lines else f"In [{count}]"


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"

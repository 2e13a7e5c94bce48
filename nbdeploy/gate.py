"""Validation: a parameterized notebook with checks, run by Papermill, that passes only when everything held."""

from __future__ import annotations

import atexit
import json
import logging
import re
import secrets
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from nbdeploy import home
from nbdeploy.errors import GateError, NbdeployError, NotFound
from nbdeploy.gate_parameters import JSON, Declared, declared, fitted
from nbdeploy.gate_result import Check, GateResult, check, end

if TYPE_CHECKING:
    from nbdeploy.gate_runner import Recording

__all__ = ["Check", "GateResult", "GateRun", "check", "declared_names", "end", "run", "start"]

MAX_OUTPUT = 20_000_000
_END_CELL = "# Added by nbdeploy: shows that the notebook came to its end with its kernel alive.\nfrom nbdeploy import gate\n\ngate.end()"
_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class _Job:
    """A gate that was found fit to run."""

    path: Path
    source: dict[str, Any]
    parameters: dict[str, JSON]
    deployment: str
    version: str
    digest: str
    timeout: float
    env: Mapping[str, str]
    folder: Path
    copies: Path | None


class GateRun:
    """A gate that runs in a thread of its own. It ends with its caller: no kernel outlives the process.

    Attributes
    ----------
    done : bool
        Whether there is a verdict, or a reason why there is none.
    progress : tuple of int
        How many of its cells are done, and how many there are.
    state : str
        What it is doing: the heading above the current cell.
    """

    def __init__(self, job: _Job, on_progress: Callable[[int, int], None] | None, shown: bool) -> None:
        self.progress = (0, 0)
        self.state = "starting"
        self._job = job
        self._on_progress = on_progress
        self._shown = shown
        self._recording: Recording | None = None
        self._cancelled = False
        self._result: GateResult | None = None
        self._error: BaseException | None = None
        self._ended = threading.Event()
        atexit.register(self.cancel)
        threading.Thread(target=self._run, name="nbdeploy-gate", daemon=True).start()

    @property
    def done(self) -> bool:
        return self._ended.is_set()

    def result(self, timeout: float | None = None) -> GateResult:
        """Return the verdict, after waiting for it at most `timeout` seconds, or raise what prevented it."""
        if not self._ended.wait(timeout):
            msg = f"The gate is still running after {timeout} s: {self.state}"
            raise TimeoutError(msg)
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def wait(self) -> GateResult:
        """Wait for the verdict under a progress bar. An interrupt kills the kernel before it is raised again."""
        try:
            if self._shown:
                self._show_progress()
            return self.result()
        except BaseException:
            self.cancel()
            if self._recording is not None:  # else there is no kernel, and none will be started
                self._ended.wait(15)
            raise

    def cancel(self) -> None:
        """Kill the gate's kernel; the result then says that it was cancelled."""
        self._cancelled = True
        if self._recording is not None and not self.done:
            self._recording.cancelled = True
            self._recording.leash.cut()

    def __repr__(self) -> str:
        done, total = self.progress
        return repr(self._result) if self._result else f"Gate running, {done} of {total} cells: {self.state}"

    def _show_progress(self) -> None:
        from tqdm.auto import tqdm

        # Drawn here, in the caller's thread: a widget belongs to the cell that runs.
        with tqdm(desc=f"Validating {self._job.deployment} {self._job.version}", unit="cell", total=1) as bar:
            ended = False
            while not ended:
                ended = self._ended.wait(0.1)
                done, total = self.progress
                if (bar.n, bar.total) != (done, total or 1):
                    bar.n, bar.total = done, total or 1
                    bar.set_postfix_str(self.state, refresh=False)
                    bar.refresh()

    def _on_cell(self, done: int, total: int, heading: str) -> None:
        self.state = heading or self.state
        self.progress = (done, total)
        if self._on_progress is not None:
            try:
                self._on_progress(done, total)
            except Exception:  # who watches must not change what is seen
                logging.getLogger("nbdeploy.gate").exception("on_progress raised")

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - result() raises it, in the thread that asks
            self._error = error
        finally:
            atexit.unregister(self.cancel)
            self._ended.set()

    def _work(self) -> GateResult:
        from nbdeploy import gate_runner

        job = self._job
        notebook = gate_runner.load(job.source, job.path)
        self._recording = recording = gate_runner.Recording(secrets.token_hex(16), MAX_OUTPUT, self._on_cell)
        if self._cancelled:  # before there was anything to cancel
            self.cancel()
        started, clock = datetime.now(timezone.utc), time.monotonic()
        gate_runner.execute(
            notebook, job.parameters, recording, folder=job.path.parent, env=job.env, timeout=job.timeout
        )
        why = _reason(recording, job.timeout)
        name = f"{started:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}.ipynb"
        result = GateResult(
            deployment=job.deployment,
            version=job.version,
            digest=job.digest,
            passed=not why,
            checks=tuple(one for _, one in sorted(recording.checks.items())),
            notebook=job.folder / name,
            reason=why,
            started=started,
            seconds=time.monotonic() - clock,
            parameters=job.parameters,
            copy=job.copies and job.copies / f"validate-{job.version}-{name}",
        )
        result = _keep(result, recording, job.path)
        if not (recording.ready or recording.timed_out or recording.cancelled):
            msg = f"The kernel for {job.path.name} did not start: {why}"
            raise GateError(msg, details=recording.stderr)
        self._on_cell(self.progress[1], self.progress[1], "done")
        return result


def start(
    notebook: Path,
    parameters: Mapping[str, object] = _EMPTY,
    *,
    deployment: str,
    version: str,
    digest: str,
    timeout: float = 600,
    progress: bool = True,
    env: Mapping[str, str] = _EMPTY,
    copies: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> GateRun:
    """Start a gate in the background.

    Notebook and parameters are checked before this returns; the kernel starts after it.

    Parameters
    ----------
    notebook : pathlib.Path
        The gate. It runs in its own folder.
    parameters : mapping
        Values for the names in its cell tagged ``parameters``. numpy values and dates are made plain; text is
        read as the declared type.
    deployment, version, digest : str
        What is judged; the evidence is filed under it.
    timeout : float
        Seconds for everything, the start of the kernel included.
    progress : bool
        Whether `GateRun.wait` shows a bar.
    env : mapping
        More environment for its kernel. Never written to the notebook: the place for secrets.
    copies : pathlib.Path, optional
        A folder that gets a copy of the executed notebook, for people to open.
    on_progress : callable, optional
        Called from the gate's thread with the cells done and their total.

    Returns
    -------
    GateRun

    Raises
    ------
    NotFound
        There is no such notebook.
    GateError
        It is not a notebook that can be run, or a parameter does not fit it.
    """
    path = Path(notebook).expanduser().absolute()
    source = _read(path)
    values = fitted(parameters, _declared(source), path.name)
    if not 0 < timeout < threading.TIMEOUT_MAX:
        msg = f"A gate cannot run for {timeout!r} seconds"
        raise GateError(msg, "Give a positive number.")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", digest):
        msg = f"{digest[:80]!r} is not the digest of a version"
        raise GateError(msg)
    folder = home.folder("gates", home.check_name(deployment), digest[:16])
    job = _Job(path, source, values, deployment, version, digest, timeout, dict(env), folder, copies)
    return GateRun(job, on_progress, progress)


def run(
    notebook: Path,
    parameters: Mapping[str, object] = _EMPTY,
    *,
    deployment: str,
    version: str,
    digest: str,
    timeout: float = 600,
    progress: bool = True,
    env: Mapping[str, str] = _EMPTY,
    copies: Path | None = None,
) -> GateResult:
    """Run a gate and wait for its verdict: `start` and `GateRun.wait`."""
    return start(
        notebook,
        parameters,
        deployment=deployment,
        version=version,
        digest=digest,
        timeout=timeout,
        progress=progress,
        env=env,
        copies=copies,
    ).wait()


def declared_names(notebook: Path) -> list[str]:
    """The names of the parameters that a notebook declares."""
    return [*_declared(_read(Path(notebook).expanduser().absolute()))]


def _read(path: Path) -> dict[str, Any]:
    """The notebook as JSON, without what an earlier run left in it, and with our last cell.

    Read without nbformat, whose import takes more than a second: the caller waits for this.
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
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        msg = f"{path} is not a Jupyter notebook"
        raise GateError(msg, f"{type(error).__name__}: {error}.") from error
    if major != 4:
        msg = f"{path.name} has the notebook format {str(major)[:10]}, and a gate needs 4"
        raise GateError(msg, "Open it in JupyterLab and save it.")
    if str(language or "python").lower() not in {"python", "ipython"}:
        msg = f"{path.name} is written in {language}, and a gate runs in Python"
        raise GateError(msg)
    # An earlier run's parameters would silently decide this one.
    kept = [cell for cell in cells if "injected-parameters" not in cell["metadata"]["tags"]]
    kept.append({"cell_type": "code", "source": _END_CELL, "metadata": {"tags": ["nbdeploy-end"]}})
    for number, cell in enumerate(kept):
        cell["id"] = f"cell-{number}"
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": kept}


def _declared(notebook: dict[str, Any]) -> dict[str, Declared]:
    tagged = (cell["source"] for cell in notebook["cells"] if "parameters" in cell["metadata"]["tags"])
    return declared(next(tagged, ""))


def _keep(result: GateResult, recording: Recording, path: Path) -> GateResult:
    """Write the evidence: the executed notebook, then the result that points to it. Its copy is only a comfort."""
    import nbformat

    recording.notebook.metadata.papermill.update(input_path=str(path), output_path=str(result.notebook))
    executed = nbformat.writes(recording.notebook).encode(errors="replace")
    failing = result.notebook
    try:
        home.write_atomic(failing, executed)
        result = _copied(result, executed)
        failing = result.notebook.with_suffix(".json")
        home.write_json(failing, result.to_dict())
    except OSError as error:
        msg = f"The evidence of this gate could not be written to {failing}: {error.strerror or error}"
        raise GateError(msg, "Without evidence there is no verdict; make room and run it again.") from error
    return result


def _copied(result: GateResult, executed: bytes) -> GateResult:
    if result.copy is None:
        return result
    try:
        home.private_folder(result.copy.parent)
        home.write_atomic(result.copy, executed)
    except (OSError, NbdeployError) as error:
        log = logging.getLogger("nbdeploy.gate")
        log.warning("The executed notebook could not be copied to %s: %s", result.copy, error)
        return replace(result, copy=None)
    return result


def _reason(recording: Recording, timeout: float) -> str:
    """Why the gate did not pass, in one line; empty only when everything held."""
    failed = [str(one) for _, one in sorted(recording.checks.items()) if not one.passed]
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    reasons = [f"{failed[0]}{more}"] if failed else []
    if fault := _fault(recording, timeout):
        reasons.append(fault)
    return "; ".join(reasons)


def _fault(recording: Recording, timeout: float) -> str:  # noqa: C901 - one line per way to fall short
    cells = [
        cell for cell in recording.notebook.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])
    ]
    where = _label(cells, recording.at) if recording.at is not None else "the start of its kernel"
    if recording.cancelled:
        return f"it was cancelled in {where}"
    if recording.timed_out:
        return f"it was not done after {timeout:g} s, and stopped in {where}"
    if recording.full_at is not None:
        return f"it put out more than {MAX_OUTPUT // 1_000_000} MB, in {_label(cells, recording.full_at)}"
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
        return f"it stopped in {where}: {' '.join(str(recording.failure).split())[:200] or type(recording.failure).__name__}"
    for index, cell in enumerate(cells):
        if cell.cell_type == "code" and cell.source.strip() and recording.statuses.get(index) != "ok":
            skipped = " (tag skip-execution)" if "skip-execution" in cell.metadata.get("tags", []) else ""
            return f"{_label(cells, index)} was not executed{skipped}"
    if recording.claimed is None:
        return "it did not come to its end"
    if recording.claimed != len(recording.checks):
        return f"it made {recording.claimed} checks of which {len(recording.checks)} arrived; show checks, do not capture them"
    return "" if recording.checks else "no check was recorded; a gate needs at least one nbdeploy.check(...)"


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

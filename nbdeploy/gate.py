"""Validation: a parameterized notebook with checks, run by Papermill, that passes only when everything held."""

from __future__ import annotations

import atexit
import itertools
import json
import os
import re
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from nbdeploy import home
from nbdeploy.errors import GateError, NbdeployError, NotFound
from nbdeploy.gate_parameters import declared, fitted
from nbdeploy.gate_result import CHECK_MIME, END_MIME, NONCE, Check, GateResult

if TYPE_CHECKING:
    from nbdeploy.gate_runner import Recording

__all__ = ["Check", "GateResult", "GateRun", "check", "end", "run", "start"]

MAX_OUTPUT = 20_000_000
_END_CELL = "# Added by nbdeploy: shows that the notebook came to its end with its kernel alive.\nfrom nbdeploy import gate\n\ngate.end()"
_EMPTY: Mapping[str, Any] = MappingProxyType({})
_numbers = itertools.count()  # of this gate's checks, so that its end can say how many there were


def check(name: str, value: object, *, at_least: object = None, at_most: object = None, detail: str = "") -> bool:
    """Record a check in a gate notebook, and show it.

    A check that fails does not raise: the cells after it run, and the gate fails at its end. Outside a gate
    the check is only shown.

    Parameters
    ----------
    name : str
        What is checked.
    value : bool or number
        A bool must be True. A number needs a bound; NaN and infinity fail.
    at_least, at_most : number, optional
        The bounds, inclusive.
    detail : str, optional
        A few words to show beside it.

    Returns
    -------
    bool
        Whether it passed.

    Examples
    --------
    >>> check("accuracy", 0.91, at_least=0.8)
    ✓ accuracy: 0.91, wanted at least 0.8
    True
    """
    one = Check.of(name, value, at_least=at_least, at_most=at_most, detail=detail)
    text = f"{'✓' if one.passed else '✗'} {one}"
    shown = {"text/plain": text, "text/html": one._repr_html_()}
    if nonce := os.environ.get(NONCE):
        _publish({CHECK_MIME: {**one.to_dict(), "number": next(_numbers), "nonce": nonce}, **shown})
    elif (shell := _shell()) is not None:
        shell.display_pub.publish(data=shown)
    else:
        sys.stdout.write(text + "\n")
    return one.passed


def end() -> None:
    """Say how many checks a gate has made; the last cell of every gate notebook, added when it is run."""
    if nonce := os.environ.get(NONCE):
        made = next(_numbers)
        text = f"The end was reached, after {made} check{'' if made == 1 else 's'}."
        _publish({END_MIME: {"checks": made, "nonce": nonce}, "text/plain": text})


class GateRun:
    """A gate that runs in a thread of its own. It ends with its caller: no kernel outlives the process.

    Attributes
    ----------
    state : str
        What it is doing: the heading above the current cell.
    progress : tuple of int
        How many of its cells are done, and how many there are.
    """

    def __init__(self, work: Callable[[GateRun], GateResult], on_progress: Callable[[int, int], None] | None) -> None:
        self.state = "starting"
        self.progress = (0, 0)
        self._on_progress = on_progress
        self._recording: Recording | None = None
        self._cancelled = False
        self._result: GateResult | None = None
        self._error: BaseException | None = None
        self._ended = threading.Event()
        atexit.register(self.cancel)
        self._thread = threading.Thread(target=self._run, args=[work], name="nbdeploy-gate", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return self._ended.is_set()

    def result(self, timeout: float | None = None) -> GateResult:
        """Wait for the verdict, at most `timeout` seconds, and return it or raise what prevented it."""
        if not self._ended.wait(timeout):
            raise TimeoutError(f"The gate is still running after {timeout} s: {self.state}")
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def cancel(self) -> None:
        """Kill the gate's kernel; the result then says that it was cancelled."""
        self._cancelled = True
        if self._recording is not None and not self.done:
            self._recording.cancelled = True
            self._recording.leash.cut()

    def __repr__(self) -> str:
        return (
            repr(self._result)
            if self._result
            else f"Gate running, {self.progress[0]} of {self.progress[1]} cells: {self.state}"
        )

    def _watch(self, recording: Recording) -> None:
        self._recording = recording
        if self._cancelled:
            self.cancel()

    def _on_cell(self, done: int, total: int, heading: str) -> None:
        self.state = heading or self.state
        self.progress = (done, total)
        if self._on_progress is not None:
            self._on_progress(done, total)

    def _run(self, work: Callable[[GateRun], GateResult]) -> None:
        try:
            self._result = work(self)
        except BaseException as error:  # noqa: BLE001 - it is raised again by result(), in the caller's thread
            self._error = error
        finally:
            atexit.unregister(self.cancel)
            self._ended.set()


def start(
    notebook: Path,
    parameters: Mapping[str, object] = _EMPTY,
    *,
    deployment: str,
    version: str,
    digest: str,
    timeout: float = 600,
    env: Mapping[str, str] = _EMPTY,
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
    env : mapping
        More environment for its kernel. Never written to the notebook: the place for secrets.
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
    if not (isinstance(timeout, (int, float)) and 0 < timeout < threading.TIMEOUT_MAX):
        raise GateError(f"A gate cannot run for {timeout!r} seconds", "Give a positive number.")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", digest):
        raise GateError(f"{digest[:80]!r} is not the digest of a version")
    folder = home.folder("gates", home.check_name(deployment), digest[:16])

    def work(handle: GateRun) -> GateResult:
        from nbdeploy import gate_runner

        recording = gate_runner.Recording(secrets.token_hex(16), MAX_OUTPUT, handle._on_cell)  # noqa: SLF001
        handle._watch(recording)  # noqa: SLF001
        started, clock = datetime.now(timezone.utc), time.monotonic()
        gate_runner.execute(source, values, recording, folder=path.parent, env=env, timeout=timeout)
        why = _reason(recording, timeout)
        stem = folder / f"{started:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        result = GateResult(
            deployment=deployment,
            version=version,
            digest=digest,
            passed=not why,
            checks=tuple(one for _, one in sorted(recording.checks.items())),
            notebook=stem.with_suffix(".ipynb"),
            reason=why,
            started=started,
            seconds=time.monotonic() - clock,
            parameters=values,
        )
        _keep(result, recording, path)
        if not (recording.ready or recording.timed_out or recording.cancelled):
            raise GateError(f"The kernel for {path.name} did not start: {why}", details=recording.stderr)
        handle._on_cell(*[handle.progress[1]] * 2, "done")  # noqa: SLF001
        return result

    return GateRun(work, on_progress)


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
) -> GateResult:
    """Run a gate and wait for its verdict, with a progress bar unless `progress` is False.

    This is `start` and `GateRun.result`. An interrupt kills the gate's kernel before it is raised again.
    """
    handle = start(
        notebook, parameters, deployment=deployment, version=version, digest=digest, timeout=timeout, env=env
    )
    try:
        if progress:
            _show_progress(handle, f"{deployment} {version}")
        return handle.result()
    except BaseException:
        handle.cancel()
        with suppress(TimeoutError, NbdeployError):
            handle.result(timeout=15)
        raise


def _show_progress(handle: GateRun, title: str) -> None:
    from tqdm.auto import tqdm

    # Drawn here, in the caller's thread: widgets of the notebook's bar belong to the cell that runs.
    with tqdm(desc=f"Validating {title}", unit="cell", total=1) as bar:
        while True:
            ended = handle._ended.wait(0.1)  # noqa: SLF001 - one module
            done, total = handle.progress
            if (bar.n, bar.total) != (done, total or 1):
                bar.n, bar.total = done, total or 1
                bar.set_postfix_str(handle.state, refresh=False)
                bar.refresh()
            if ended:
                return


def _read(path: Path) -> Any:
    """The notebook as Papermill takes it, without what an earlier run left in it, and with our last cell."""
    import nbformat

    if not path.is_file():
        raise NotFound(f"There is no notebook {path}")
    try:
        raw = json.loads(path.read_bytes())
        if not isinstance(raw, dict) or "nbformat" not in raw:
            raise ValueError("no nbformat in it")
        notebook = nbformat.v4.upgrade(nbformat.convert(nbformat.from_dict(raw), 4))
        metadata = notebook.metadata
        metadata.pop("papermill", None)
        metadata.papermill = {"parameters": {}, "default_parameters": {}, "environment_variables": {}}
        # An earlier run's parameters would silently decide this one.
        notebook.cells = [one for one in notebook.cells if "injected-parameters" not in one.metadata.get("tags", [])]
        notebook.cells.append(nbformat.v4.new_code_cell(_END_CELL, metadata={"tags": ["nbdeploy-end"]}))
        for number, cell in enumerate(notebook.cells):
            cell.id = f"cell-{number}"
            cell.metadata.tags = list(cell.metadata.get("tags", []))
            cell.metadata.papermill = {}
            if cell.cell_type == "code":
                cell.update(outputs=[], execution_count=None)
        nbformat.validate(notebook)
    except Exception as error:
        raise GateError(
            f"{path} is not a Jupyter notebook: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    language = (
        metadata.get("kernelspec", {}).get("language") or metadata.get("language_info", {}).get("name") or "python"
    )
    if str(language).lower() not in {"python", "ipython"}:
        raise GateError(f"{path.name} is written in {language}, and a gate runs in Python")
    return notebook


def _declared(notebook: Any) -> Any:
    tagged = (cell.source for cell in notebook.cells if "parameters" in cell.metadata.tags and cell.cell_type == "code")
    return declared(next(tagged, ""))


def _keep(result: GateResult, recording: Recording, path: Path) -> None:
    """Write the evidence: the executed notebook, then the result that points to it."""
    import nbformat

    recording.notebook.metadata.papermill.update(input_path=str(path), output_path=str(result.notebook))
    home.write_atomic(result.notebook, nbformat.writes(recording.notebook).encode())
    home.write_json(result.notebook.with_suffix(".json"), result.to_dict())


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


def _shell() -> Any:
    # Not imported for this: where IPython is not loaded there is no notebook.
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def _publish(data: dict[str, Any]) -> None:
    """Display in a gate; only its own process can, and a check that goes nowhere must not look like one made."""
    shell = _shell()
    if shell is None or not hasattr(shell, "kernel") or shell.kernel.session.pid != os.getpid():
        raise GateError(
            "A check was made outside the notebook's own process", "Return the value, and check it in a cell."
        )
    shell.display_pub.publish(data=data)

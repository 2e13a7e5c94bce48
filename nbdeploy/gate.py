"""Validation: a parameterized notebook with checks, run by Papermill, that passes only when everything held."""

from __future__ import annotations

import atexit
import hashlib
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from nbdeploy import gate_notebook, gate_secrets, home
from nbdeploy.errors import GateError, NbdeployError
from nbdeploy.gate_parameters import JSON, fitted
from nbdeploy.gate_result import JUDGED, Check, GateResult, check, end
from nbdeploy.gate_secrets import Secrets

if TYPE_CHECKING:
    from nbdeploy.gate_runner import Recording

__all__ = [
    "Check",
    "GateResult",
    "GateRun",
    "Job",
    "Watched",
    "check",
    "declared_names",
    "end",
    "prepare",
    "run",
    "show_progress",
    "start",
]

MAX_OUTPUT = 20_000_000
_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Job:
    """A gate that was found fit to run."""

    path: Path
    source: dict[str, Any] = field(repr=False)
    parameters: dict[str, JSON]
    deployment: str
    version: str
    digest: str
    timeout: float
    env: Mapping[str, str] = field(repr=False)
    secrets: Secrets
    folder: Path
    copies: Path | None
    url: str = ""  # of the service that is judged

    @property
    def title(self) -> str:
        return f"Validating {self.deployment} {self.version}"

    def told(self, values: Mapping[str, JSON]) -> Job:
        """The same with more parameters, as far as its notebook declares them and it has none of that name."""
        declared = gate_notebook.declared_in(self.source)
        more = {key: value for key, value in values.items() if key in declared and key not in self.parameters}
        parameters = {**self.parameters, **fitted(more, declared, self.path.name)}
        return replace(self, parameters=parameters, url=str(values.get("url", "")))


class Watched(Protocol):
    """What a bar shows."""

    @property
    def progress(self) -> tuple[int, int]: ...

    @property
    def state(self) -> str: ...


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

    def __init__(self, job: Job, on_progress: Callable[[int, int], None] | None, shown: bool) -> None:
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
                show_progress({self._job.title: self}, self._ended.wait)
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
        from nbdeploy import gate_runner, gate_verdict

        job = self._job
        notebook = gate_runner.load(job.source, job.path)
        self._recording = recording = gate_runner.Recording(secrets.token_hex(16), MAX_OUTPUT, self._on_cell)
        if self._cancelled:  # before there was anything to cancel
            self.cancel()
        started, clock = datetime.now(timezone.utc), time.monotonic()
        env = {**job.env, JUDGED: f"{job.deployment} {job.url}"}
        gate_runner.execute(notebook, job.parameters, recording, folder=job.path.parent, env=env, timeout=job.timeout)
        recording.hide(job.secrets)
        why = gate_verdict.reason(recording, job.timeout, job.secrets.hide)
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
            parameters=job.secrets.hide_in(job.parameters),
            copy=job.copies and job.copies / f"{job.path.stem[:60]}-{job.version}-{name}",
            gate=job.path.name,
            gate_digest=gate_notebook.digest(job.source),
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
    tokens: Iterable[str] = (),
    copies: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> GateRun:
    """Start a gate in the background: `prepare` and a `GateRun`.

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
        More environment for its kernel, the place for secrets: what it holds is taken out of the evidence.
    tokens : iterable of str
        What else is taken out of it.
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
    job = prepare(
        notebook, parameters, deployment=deployment, version=version, digest=digest, timeout=timeout, env=env,
        tokens=tokens, copies=copies,
    )  # fmt: skip
    return GateRun(job, on_progress, progress)


def prepare(
    notebook: Path,
    parameters: Mapping[str, object] = _EMPTY,
    *,
    deployment: str,
    version: str,
    digest: str,
    timeout: float = 600,
    env: Mapping[str, str] = _EMPTY,
    tokens: Iterable[str] = (),
    copies: Path | None = None,
) -> Job:
    """Check a gate and its parameters without running it; see `start`."""
    path = Path(notebook).expanduser().absolute()
    source = gate_notebook.read(path)
    declared = gate_notebook.declared_in(source)
    values = fitted(parameters, declared, path.name)
    gate_secrets.refuse_secrets(values, declared)
    if not 0 < timeout < threading.TIMEOUT_MAX:
        msg = f"A gate cannot run for {timeout!r} seconds"
        raise GateError(msg, "Give a positive number.")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", digest):
        msg = f"{digest[:80]!r} is not the digest of a version"
        raise GateError(msg)
    folder = home.folder("gates", home.check_name(deployment), digest[:16])
    hidden = gate_secrets.known(env, tokens)
    return Job(path, source, values, deployment, version, digest, timeout, dict(env), hidden, folder, copies)


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
    tokens: Iterable[str] = (),
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
        tokens=tokens,
        copies=copies,
    ).wait()


def show_progress(bars: Mapping[str, Watched], ended: Callable[[float], bool]) -> None:
    """Draw one bar for each title until `ended`, which waits for that many seconds, says so.

    Drawn in the caller's thread: a widget belongs to the cell that runs.
    """
    from tqdm.auto import tqdm

    with ExitStack() as open_bars:
        drawn = [
            (open_bars.enter_context(tqdm(desc=title, unit="cell", total=1, position=place)), watched)
            for place, (title, watched) in enumerate(bars.items())
        ]
        over = False
        while not over:
            over = ended(0.1)
            for bar, watched in drawn:
                done, total = watched.progress
                if (bar.n, bar.total, bar.postfix) != (done, total or 1, watched.state):
                    bar.n, bar.total = done, total or 1
                    bar.set_postfix_str(watched.state, refresh=False)
                    bar.refresh()


def declared_names(notebook: Path) -> list[str]:
    """The names of the parameters that a notebook declares."""
    return [*gate_notebook.declared_in(gate_notebook.read(Path(notebook).expanduser().absolute()))]


def _keep(result: GateResult, recording: Recording, path: Path) -> GateResult:
    """Write the evidence: the executed notebook, then the result that points to it. Its copy is only a comfort."""
    import nbformat

    recording.notebook.metadata.papermill.update(input_path=str(path), output_path=str(result.notebook))
    executed = nbformat.writes(recording.notebook).encode(errors="replace")
    failing = result.notebook
    try:
        home.write_atomic(failing, executed)
        result = replace(_copied(result, executed), notebook_digest=hashlib.sha256(executed).hexdigest())
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

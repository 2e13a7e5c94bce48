"""Validation: a parameterized notebook with checks, run by Papermill, that passes only when everything held."""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from nbdeploy import gate_notebook, gate_secrets, home
from nbdeploy.errors import GateError, NbdeployError
from nbdeploy.gate_parameters import JSON, fitted
from nbdeploy.gate_result import JUDGED, Check, GateResult, check, end
from nbdeploy.gate_secrets import Secrets
from nbdeploy.notebook_thread import NotebookThread

if TYPE_CHECKING:
    from nbdeploy.gate_runner import Recording

__all__ = [
    "Check",
    "GateResult",
    "GateRun",
    "Job",
    "check",
    "declared_names",
    "end",
    "prepare",
    "run",
    "start",
]

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


class GateRun(NotebookThread[GateResult]):
    """A gate that runs in a thread of its own; see `nbdeploy.notebook_thread.NotebookThread`."""

    noun = "gate"

    def __init__(self, job: Job, on_progress: Callable[[int, int], None] | None, shown: bool) -> None:
        self._job = job
        super().__init__(job.title, on_progress, shown)

    def _work(self) -> GateResult:
        from nbdeploy import gate_verdict

        job = self._job
        started, clock = datetime.now(timezone.utc), time.monotonic()
        env = {**job.env, JUDGED: f"{job.deployment} {job.url}"}
        recording = self._executed(
            job.source, job.path, job.parameters, nonce=secrets.token_hex(16), folder=job.path.parent, env=env,
            timeout=job.timeout, hidden=job.secrets,
        )  # fmt: skip
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

"""Any notebook, run by Papermill with parameters, and kept: executed, and as a page to open or to mail.

It is no gate: nothing is judged. It runs as gates do, in a kernel of this interpreter that ends with its caller.
"""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbdeploy import gate_notebook, gate_secrets, home
from nbdeploy.errors import GateError, NotebookError
from nbdeploy.gate_parameters import JSON, Declared, fitted
from nbdeploy.notebook_thread import NotebookThread
from nbdeploy.progress import visible
from nbdeploy.report_view import link_to

if TYPE_CHECKING:
    from nbdeploy.gate_secrets import Secrets

DEFAULT = "drift_report.ipynb"  # the report that comes with nbdeploy
TIMEOUT = 3600.0

Env = Mapping[str, str] | Sequence[str]


@dataclass(frozen=True, repr=False)
class Executed:
    """What became of a notebook that was run.

    Attributes
    ----------
    name : str
        The deployment that it is about.
    notebook : pathlib.Path
        As it was executed, up to its fault where it has one.
    html : pathlib.Path
        The same as one page that holds everything and runs nothing.
    seconds : float
        How long it took.
    error : str
        What kept it from its end, in one line; '' where nothing did.
    """

    name: str
    notebook: Path
    html: Path
    seconds: float
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether it came to its end."""
        return not self.error

    @property
    def headline(self) -> str:
        done = f"stopped: {self.error}" if self.error else f"ran in {self.seconds:.1f} s"
        return f"{self.notebook.name} for {self.name} {done}"

    @property
    def links(self) -> str:
        """To both files, as HTML."""
        return f"{link_to(self.html)} · {link_to(self.notebook)}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name, "notebook": str(self.notebook), "html": str(self.html), "seconds": round(self.seconds, 3),
            "error": self.error, "passed": self.passed,
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"{self.headline}\n  notebook: {self.notebook}\n  page: {self.html}"

    def _repr_html_(self) -> str:
        return f"<div><b>{html.escape(self.headline)}</b><br>{self.links}</div>"


def run(
    path: Path | str,
    parameters: Mapping[str, object] | None = None,
    *,
    name: str,
    told: Mapping[str, object] | None = None,
    folder: Path | None = None,
    cwd: Path | None = None,
    timeout: float = TIMEOUT,
    env: Env | None = None,
    untold: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Executed:
    """Execute a notebook, and keep it and its page in a folder of its own, named by the minute and the notebook.

    A notebook that raises is kept too; what it raised stands in ``error``. Cells tagged ``skip-execution`` are
    skipped.

    Parameters
    ----------
    parameters : mapping
        For names that the cell tagged ``parameters`` assigns, as their types.
    name : str
        The deployment that it is about.
    told : mapping
        More of them, which are left out where the notebook declares no such name.
    folder : pathlib.Path, optional
        Where the folder of this run is made; by default ``nbdeploy-reports/NAME`` in the working directory.
    cwd : pathlib.Path, optional
        Where it runs; by default in the notebook's own folder.
    timeout : float
        Seconds for everything, the start of the kernel included.
    env : mapping or list of str, optional
        Secrets for the notebook, which reads them from ``os.environ``: names and values, or names alone of variables
        that have to be there. Their values are replaced by ``***`` in everything that is kept.
    untold : mapping, optional
        More environment, which is no secret.
    progress : bool
        Whether a bar is shown.

    Raises
    ------
    NotFound
        There is no such notebook.
    NotebookError
        It is not one that can be run, a parameter does not fit it, its kernel did not start, or it cannot be kept.
    """
    prepared = prepare(path, parameters, name=name, timeout=timeout, env=env).told(told or {})
    return prepared.run(folder=folder, cwd=cwd, untold=untold or {}, progress=progress)


def prepare(
    path: Path | str,
    parameters: Mapping[str, object] | None = None,
    *,
    name: str,
    timeout: float = TIMEOUT,
    env: Env | None = None,
) -> Prepared:
    """Check a notebook and what it will be given, without running it; see `run`."""
    source_path = Path(path).expanduser().absolute()
    home.check_name(name)
    with _as_notebook_error():
        source = gate_notebook.read(source_path, is_gate=False)
        declared = gate_notebook.declared_in(source)
        values = fitted(parameters or {}, declared, source_path.name)
        gate_secrets.refuse_secrets(values, declared)
        secrets = gate_secrets.environment(env)
    if not 0 < timeout < threading.TIMEOUT_MAX:
        msg = f"a notebook cannot run for {timeout!r} seconds"
        raise NotebookError(msg, "Give a positive number.")
    hidden = gate_secrets.known(secrets)
    return Prepared(source_path, source, values, declared, name, timeout, secrets, hidden)


def report_notebook(
    name: str,
    notebook: Path | str | None = None,
    parameters: Mapping[str, object] | None = None,
    *,
    since: Any = None,
    until: Any = None,
    timeout: float = 600,
    env: Env | None = None,
    folder: Path | None = None,
    progress: bool = True,
) -> Executed:
    """Run a notebook that reports on a deployment; by default the one on drift that comes with nbdeploy.

    It gets `name`, and `since` and `until` where they are given, as far as it declares them; see `run`.
    """
    told = {"name": name, "since": since, "until": until}
    return run(
        notebook or home.template(DEFAULT), parameters, name=name, folder=folder, timeout=timeout, env=env,
        told={key: value for key, value in told.items() if value is not None}, progress=progress,
        cwd=None if notebook else Path.cwd(),
    )  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """A notebook that was found fit to run."""

    path: Path
    source: dict[str, Any]
    parameters: dict[str, JSON]
    declared: Mapping[str, Declared]
    name: str
    timeout: float
    env: Mapping[str, str]
    hidden: Secrets

    def told(self, values: Mapping[str, object]) -> Prepared:
        """The same with more parameters, as far as it declares them and has none of that name."""
        more = {key: value for key, value in values.items() if key in self.declared and key not in self.parameters}
        with _as_notebook_error():
            return replace(self, parameters={**self.parameters, **fitted(more, self.declared, self.path.name)})

    def run(
        self,
        *,
        folder: Path | None = None,
        cwd: Path | None = None,
        untold: Mapping[str, str] | None = None,
        progress: bool = True,
    ) -> Executed:
        """Run it; see `nbdeploy.notebook_run.run`."""
        place = _place(folder or home.reports_folder(self.name), self.path.stem)
        try:
            return _Run(self, place, cwd or self.path.parent, {**self.env, **(untold or {})}, progress).wait()
        finally:
            with suppress(OSError):
                place.rmdir()  # where nothing could be kept


class _Run(NotebookThread[Executed]):
    def __init__(self, job: Prepared, place: Path, cwd: Path, env: Mapping[str, str], shown: bool) -> None:
        self._job, self._place, self._cwd, self._env = job, place, cwd, env
        super().__init__(f"Running {job.path.name}", None, shown and visible())

    def _work(self) -> Executed:
        from nbdeploy import gate_verdict

        job, clock = self._job, time.monotonic()
        with _as_notebook_error():
            recording = self._executed(
                job.source, job.path, job.parameters, nonce="", folder=self._cwd, env=self._env, timeout=job.timeout,
                hidden=job.hidden,
            )  # fmt: skip
        why = job.hidden.hide(gate_verdict.fault(recording, job.timeout, job.hidden.hide))
        kept = Executed(
            job.name, self._place / job.path.name, self._place / f"{job.path.stem}.html", time.monotonic() - clock, why
        )
        _keep(recording.notebook, kept, job)
        if not (recording.ready or recording.timed_out or recording.cancelled):
            msg = f"the kernel for {job.path.name} did not start: {why}"
            raise NotebookError(msg, details=recording.stderr)
        self._on_cell(self.progress[1], self.progress[1], "done")
        return kept


def _keep(notebook: Any, kept: Executed, job: Prepared) -> None:
    """Write the notebook, then its page, which nbconvert makes of it."""
    import nbformat

    from nbdeploy import notebook_html

    notebook.metadata.papermill.update(input_path=str(job.path), output_path=str(kept.notebook))
    failing = kept.notebook
    try:
        home.write_atomic(failing, nbformat.writes(notebook).encode(errors="replace"))
        failing = kept.html
        page = notebook_html.page(notebook, f"{job.name}: {job.path.stem}")
        home.write_atomic(failing, page.encode(errors="replace"))
    except OSError as error:
        msg = f"the executed notebook could not be written to {failing}: {error.strerror or error}"
        raise NotebookError(msg, "Make room, or run it from a folder that you may write to.") from error


def _place(base: Path, stem: str) -> Path:
    """A new folder for one run: ``2026-07-31T0800-drift_report``. Two in one minute get two."""
    named = f"{datetime.now(timezone.utc):%Y-%m-%dT%H%M}-{stem[:60]}"
    home.private_folder(base)
    for number in range(1, 10_000):
        place = base / (named if number == 1 else f"{named}-{number}")
        try:
            place.mkdir(mode=0o700)
            place.chmod(0o700)  # whatever the umask was
        except FileExistsError:
            continue
        except OSError as error:
            msg = f"the folder {place} cannot be made: {error.strerror}"
            raise NotebookError(msg, "Run it from a folder that you may write to.") from error
        return place
    msg = f"{base} has {number:,} runs of {stem} in this minute"
    raise NotebookError(msg, "Wait for the next.")


@contextmanager
def _as_notebook_error() -> Iterator[None]:
    """What is said of a gate, said of a notebook that is none."""
    try:
        yield
    except GateError as error:
        raise NotebookError(error.message, error.hint, error.details) from error

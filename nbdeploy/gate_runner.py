"""How a notebook is run by Papermill: in a kernel of this interpreter, on a leash, with everything it says heard.

Imported only when one runs, because it loads Papermill.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from jupyter_core.utils import ensure_event_loop
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.parameterize import parameterize_notebook

from nbdeploy.errors import GateError
from nbdeploy.gate_result import CHECK_MIME, END_MIME, NONCE, Check
from nbdeploy.gate_secrets import Secrets

_LOG = logging.getLogger("nbdeploy.gate")
_LOG.addHandler(logging.NullHandler())  # what goes wrong is in the verdict; logging's last resort would repeat it
_LIMIT_MESSAGES = {"stream", "display_data", "update_display_data", "execute_result", "error"}


class Leash:
    """A notebook's kernel with everything in its process group, to be cut from any thread at any time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._cut = False

    @property
    def is_cut(self) -> bool:
        return self._cut

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode if self._process else None

    def attach(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._process = process
            if self._cut:
                self._kill()

    def cut(self) -> None:
        """Kill the kernel and its group, now or as soon as it has started."""
        with self._lock:
            self._cut = True
            self._kill()

    def poll(self) -> int | None:
        """The exit code once the kernel is gone; its orphans go with it."""
        with self._lock:
            if self._process is None:
                return 0
            if self._process.returncode is None and self._ended(self._process.pid):
                self._kill()
            return self._process.poll()

    def wait(self, seconds: float) -> None:
        """Wait for the kernel to be gone."""
        deadline = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)

    def _kill(self) -> None:
        # Not after it was reaped: its number may then be somebody else's.
        if self._process and self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    @staticmethod
    def _ended(pid: int) -> bool:
        # WNOWAIT leaves the dead kernel in the process table, which keeps its group's number taken.
        try:
            return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except (AttributeError, ChildProcessError):  # macOS before Python 3.13; reaped by somebody else
            return False


@dataclass
class Recording:
    """What one run of a notebook said and did, as heard from outside the kernel."""

    nonce: str  # of a gate; "" for a notebook that is none
    limit: int
    on_cell: Callable[[int, int, str], None]
    leash: Leash = field(default_factory=Leash)
    notebook: Any = None
    checks: dict[int, Check] = field(default_factory=dict)
    claimed: int | None = None
    errors: list[tuple[int, str, str]] = field(default_factory=list)
    statuses: dict[int, str] = field(default_factory=dict)
    at: int | None = None
    size: int = 0
    full_at: int | None = None
    ready: bool = False
    quit: bool = False
    timed_out: bool = False
    cancelled: bool = False
    failure: Exception | None = None
    stderr: str = ""

    @property
    def is_gate(self) -> bool:
        return bool(self.nonce)

    @property
    def is_over(self) -> bool:
        """Whether its last cell was executed, and it did not ask to stop."""
        return not self.quit and (self.claimed is not None or not self.is_gate)

    def hear(self, kind: str, content: Mapping[str, Any], cell: int) -> None:
        """Take in one message of the kernel; outputs that are cleared or hidden later count all the same."""
        if kind in _LIMIT_MESSAGES or kind.startswith("comm"):
            self.size += _length(content)
            if self.size > self.limit and self.full_at is None:
                self.full_at = cell
                self.leash.cut()
        if kind == "error":
            self.errors.append((cell, str(content.get("ename")), str(content.get("evalue"))))
        data = content.get("data") if kind in {"display_data", "update_display_data", "execute_result"} else None
        if not isinstance(data, Mapping):
            return
        if record := self._mine(data.get(CHECK_MIME)):
            with suppress(GateError, KeyError, TypeError, ValueError):  # then it is missing, and missed at the end
                self.checks[int(record["number"])] = Check.from_dict(record)
        if record := self._mine(data.get(END_MIME)):
            self.claimed = int(record["checks"])

    def hide(self, secrets: Secrets) -> None:
        """Take out what must not be told, before any of it is written or cut short."""
        secrets.clean(self.notebook)
        self.errors = [(cell, secrets.hide(name), secrets.hide(text)) for cell, name, text in self.errors]
        self.checks = {
            number: replace(one, name=secrets.hide(one.name), detail=secrets.hide(one.detail))
            for number, one in self.checks.items()
        }
        self.stderr = secrets.hide(self.stderr)[-4000:]

    def _mine(self, record: object) -> Mapping[str, Any]:
        return record if isinstance(record, Mapping) and record.get("nonce") == self.nonce else {}


def load(source: Mapping[str, Any], path: Path) -> Any:
    """The notebook as Papermill takes it."""
    notebook = nbformat.from_dict(source)
    facts: dict[str, Any] = {"parameters": {}, "default_parameters": {}, "environment_variables": {}}
    notebook.metadata.papermill = nbformat.from_dict({**facts, "version": papermill.__version__})
    for cell in notebook.cells:
        cell.metadata.papermill = nbformat.from_dict({})
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        msg = f"{path} is not a valid Jupyter notebook: {str(error).strip().splitlines()[0]}"
        raise GateError(msg) from error
    return notebook


def execute(
    notebook: Any,
    parameters: Mapping[str, Any],
    recording: Recording,
    *,
    folder: Path,
    env: Mapping[str, str],
    timeout: float,
) -> None:
    """Run `notebook` to its end or its first fault, and leave in `recording` what happened. Never raises for what it does."""
    if parameters:
        notebook = parameterize_notebook(notebook, dict(parameters), kernel_name="python3", language="python")
    recording.notebook = notebook
    watchdog = threading.Timer(timeout, _stop, [recording])
    watchdog.daemon = True
    watchdog.start()
    loop = ensure_event_loop()
    try:
        with tempfile.TemporaryFile() as errors:
            try:
                papermill.execute_notebook(
                    notebook, None, engine_name="nbdeploy", kernel_name="python3", language="python", progress_bar=False,
                    recording=recording, folder=folder, env={**_environment(env), NONCE: recording.nonce}, errors=errors,
                )  # fmt: skip
            except Exception as error:  # noqa: BLE001 - whatever it is, the verdict says it
                recording.failure = error
            errors.seek(0)
            recording.stderr = errors.read()[-400_000:].decode(errors="replace")
    finally:
        watchdog.cancel()
        recording.leash.cut()
        recording.leash.wait(5)
        _close(loop)


def _stop(recording: Recording) -> None:
    recording.timed_out = True
    recording.leash.cut()


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    """The kernel's environment: ours, where nbdeploy can be imported from even when it is not installed."""
    merged = {**os.environ, **env}
    root = str(Path(__file__).resolve().parent.parent)
    if root not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        merged["PYTHONPATH"] = os.pathsep.join(filter(None, [merged.get("PYTHONPATH"), root]))
    return merged


class _Provisioner(LocalProvisioner):
    """Starts the kernel as usual, and hands it to the leash."""

    leash: Leash

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        if self.leash.is_cut:
            msg = "stopped before it had started"
            raise RuntimeError(msg)
        info = await super().launch_kernel(cmd, **kwargs)
        assert self.process is not None
        self.leash.attach(self.process)
        return info

    async def poll(self) -> int | None:
        return self.leash.poll()


class _Manager(AsyncKernelManager):
    """A kernel of this very interpreter, whatever kernelspec is called python3 here."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            display_name="Python of nbdeploy",
            language="python",
        )


class _Client(PapermillNotebookClient):
    """Papermill's client, with our kernel and our ears."""

    def __init__(self, nb_man: Any, recording: Recording, **options: Any) -> None:
        super().__init__(
            nb_man,
            on_notebook_start=self._on_ready,
            on_cell_start=self._on_cell_start,
            on_cell_executed=self._on_cell_executed,
            **options,
        )
        self.recording = recording

    def create_kernel_manager(self) -> AsyncKernelManager:
        # One ipykernel in fifteen hangs in its own exit: a second for its atexit hooks, not jupyter_client's 2.5.
        manager = _Manager(kernel_name="python3", shutdown_wait_time=2.0)
        manager.kernel_id = str(uuid.uuid4())
        manager.provisioner = _Provisioner(kernel_id=manager.kernel_id, kernel_spec=manager.kernel_spec, parent=manager)
        manager.provisioner.leash = self.recording.leash
        self.km = manager
        return manager

    def papermill_execute_cells(self) -> None:
        super().papermill_execute_cells()
        if self.recording.is_over:
            self.shutdown_kernel = "graceful"  # it came to its end: let its atexit hooks run

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        kind, was_full = msg["msg_type"], self.recording.full_at is not None
        self.recording.hear(kind, msg["content"], cell_index)
        if self.recording.full_at is None or kind in {"status", "execute_input"}:
            return super().process_message(msg, cell, cell_index)
        if not was_full:
            note = f"[cut here: more than {self.recording.limit:,} bytes of output]"
            cell.outputs.append(nbformat.v4.new_output("stream", name="stderr", text=note))
        return None

    def _on_ready(self, **_: Any) -> None:
        self.recording.ready = True

    def _on_cell_start(self, cell: Any, cell_index: int) -> None:
        if cell.cell_type == "code" and cell.source.strip():
            self.recording.at = cell_index
        self.recording.on_cell(cell_index, len(self.nb.cells), _heading(cell))

    def _on_cell_executed(self, cell_index: int, execute_reply: Mapping[str, Any], **_: Any) -> None:
        content = execute_reply["content"]
        self.recording.statuses[cell_index] = content["status"]
        # quit() is answered with "ok" and takes effect a moment later, when the rest may have run already.
        self.recording.quit |= any(load.get("source") == "ask_exit" for load in content.get("payload") or [])


class _Engine(NBClientEngine):
    """Papermill's own engine with `_Client` in place of its client."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> None:
        recording: Recording = options["recording"]
        recording.notebook = nb_man.nb
        client = _Client(
            nb_man,
            recording,
            kernel_name=kernel_name,
            log=_LOG,
            resources={"metadata": {"path": str(options["folder"])}},
            force_raise_errors=True,  # a cell tagged raises-exception stops it too: to Papermill it failed
            coalesce_streams=True,
            shutdown_kernel="immediate",
            shell_timeout_interval=1,
        )
        client.execute(
            env=options["env"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=options["errors"]
        )


papermill_engines.register("nbdeploy", _Engine)


def _heading(cell: Any) -> str:
    lines = cell.source.strip().splitlines() if cell.cell_type == "markdown" else []
    return lines[0].lstrip("#").strip() if lines and lines[0].startswith("#") else ""


def _length(content: object) -> int:
    if isinstance(content, str):
        return len(content)
    if isinstance(content, Mapping):
        return sum(_length(value) for value in content.values())
    if isinstance(content, (list, tuple)):
        return sum(map(_length, content))
    return 8


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """Close this thread's loop, which jupyter_core makes and keeps for ever."""
    if tasks := asyncio.all_tasks(loop):
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()

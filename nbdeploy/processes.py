"""Child processes: what they inherit, who they are beyond their pid, and how they end."""

from __future__ import annotations

import getpass
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nbdeploy.home import bentoml_home, home

IDENTITY = "NBDEPLOY_PROCESS"  # the token in a process's environment that tells ours from a recycled pid
SECRETS = frozenset({"NBDEPLOY_TOKEN", "NBDEPLOY_TOKEN_FILE"})  # a deployment's token stands in its file


def environment(*, without: Iterable[str] = (), **extra: str) -> dict[str, str]:
    """The environment of every child: the user's, without telemetry, tokens and what `without` names, and with cached bytecode."""
    left = {"PYTHONDONTWRITEBYTECODE", *SECRETS, *without}
    env = {key: value for key, value in os.environ.items() if key not in left}
    quiet = {
        "BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "1", "OTEL_SDK_DISABLED": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    # Absolute: a child works in another folder.
    places = {"NBDEPLOY_HOME": str(home()), "BENTOML_HOME": str(bentoml_home())}
    return {**env, **quiet, **places, **extra}


def user() -> str:
    """Who runs this, also where the user has no name, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"uid {os.getuid()}"


def started(pid: int) -> float:
    """When `pid` started, in seconds; 0.0 when it is gone.

    On Linux since the machine's start, which no change of the clock moves; elsewhere since the epoch.
    """
    import psutil

    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return 0.0
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return float(process.create_time())
    return 0.0


def resident(pid: int) -> int:
    """The memory of `pid`, in bytes; 0 when it is gone."""
    import psutil

    with suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


def is_ours(pid: int, start: float, token: str) -> bool:
    """Whether `pid` is still the very process that was recorded: alive, same start, same token."""
    import psutil

    try:
        return abs(started(pid) - start) < 0.05 and psutil.Process(pid).environ().get(IDENTITY) == token
    except (psutil.Error, OSError):
        return False


def family(pid: int, token: str) -> list[Any]:
    """The process, its descendants, and whoever else carries its token (a worker whose parent was killed)."""
    import psutil

    found = {}
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.environ().get(IDENTITY) == token:
            found = {child.pid: child for child in [process, *process.children(recursive=True)]}
    for other in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if other.pid not in found and other.environ().get(IDENTITY) == token:
                found[other.pid] = other
    return list(found.values())


def wait(pid: int, start: float, timeout: float) -> None:
    """Return when the process that started at `start` as `pid` is gone, or after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while start and started(pid) == start and time.monotonic() < deadline:
        time.sleep(0.05)


def end(processes: Iterable[Any], grace: float, first: int = 0) -> None:
    """Terminate: the one with the pid `first` (else all) politely, after `grace` seconds everyone by SIGKILL."""
    import psutil

    everyone = list(processes)
    for process in [one for one in everyone if one.pid == first] or everyone:
        with suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(everyone, timeout=grace)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def end_group(pid: int, grace: float = 3) -> None:
    """End a child that leads its own session, and its group, politely and then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(pid, number)
        except (ProcessLookupError, PermissionError):
            return
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            try:
                os.killpg(pid, 0)
            except (ProcessLookupError, PermissionError):
                return
            time.sleep(0.02)


def reap(process: subprocess.Popen[bytes]) -> None:
    """Let a child outlive its handle: no zombie while we live, no warning when the handle goes."""
    threading.Thread(target=process.wait, daemon=True).start()

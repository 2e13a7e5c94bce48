"""A version is saved only after a fresh process has loaded it and answered as the kernel did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from nbdeploy import artifact, processes, requirements
from nbdeploy.errors import NbdeployError, RehearsalError
from nbdeploy.home import folder, read_json, write_json
from nbdeploy.model_store import ModelVersion, Staged
from nbdeploy.requirements import Requirement

TIMEOUT = 600.0
MEMORY_SHARE = 0.8  # of what is available


def rehearse(
    staged: Staged | ModelVersion,
    on_wait: Callable[[], None] = lambda: None,
    python: Path | None = None,
    timeout: float = TIMEOUT,
) -> list[Requirement]:
    """Load a version in a fresh process and compare all its expected outputs.

    `on_wait` is called about every 0.1 s. An interrupt ends the process.

    Parameters
    ----------
    python : Path, optional
        Of an environment of its own; by default the one that runs this.
    timeout : float
        Seconds.

    Returns
    -------
    list of Requirement
        The distributions that the process loaded for the model.

    Raises
    ------
    RehearsalError
        It cannot be loaded, or the first row and column that differ.
    """
    place = staged.folder if isinstance(staged, Staged) else staged.path
    with tempfile.TemporaryDirectory(dir=folder("run"), prefix="rehearsal-") as where:
        spec, outcome, log = (Path(where) / name for name in ("spec.json", "outcome.json", "rehearsal.log"))
        write_json(spec, {"path": str(place), "files": dict(staged.files), "outcome": str(outcome)})
        with log.open("wb") as output:
            child = subprocess.Popen(
                [str(python or sys.executable), "-m", "nbdeploy.rehearsal", str(spec)],
                cwd=where, env=_environment(python), stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True, umask=0o077,
            )  # fmt: skip
        try:
            _wait(child, on_wait, timeout)
        except subprocess.TimeoutExpired as error:
            msg = f"{staged.name} was not loaded by a fresh process within {timeout:.0f} s"
            raise RehearsalError(msg, "Does loading the model wait for something?") from error
        finally:
            if child.poll() is None:
                processes.end_group(child.pid)
                child.wait()
        verdict = read_json(outcome)
        if child.returncode == 0 and verdict is not None:  # a model may end its process, and call that success
            return [Requirement.from_dict(each) for each in verdict["loaded"]]
        raise artifact.failure(verdict, child.returncode, log.read_text(errors="replace"))


def _wait(child: subprocess.Popen[bytes], on_wait: Callable[[], None], timeout: float) -> None:
    waited = 0.0
    while waited < timeout:
        try:
            child.wait(0.1)
        except subprocess.TimeoutExpired:
            waited += 0.1
            on_wait()
        else:
            return
    raise subprocess.TimeoutExpired(child.args, timeout)


def _environment(python: Path | None) -> dict[str, str]:
    env = processes.environment()
    if python is not None:  # nothing of this environment may help
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
            env.pop(name, None)
    return env


def _bound_memory(most: int | None) -> None:
    """Let a model that wants more than there is fail here, and nobody else."""
    import resource

    import psutil

    with suppress(OSError, ValueError):  # not on every system
        Path("/proc/self/oom_score_adj").write_text("1000")
    with suppress(OSError, ValueError):
        bound = int(most or psutil.virtual_memory().available * MEMORY_SHARE)
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard == resource.RLIM_INFINITY or bound < hard:
            resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))


def _main(spec_path: str) -> int:
    spec = json.loads(Path(spec_path).read_text())
    before = frozenset(sys.modules)
    _bound_memory(spec.get("memory"))
    try:
        loaded = artifact.rehearse(Path(spec["path"]), spec["files"])
        found = requirements.loaded(before, loaded.modules)
        write_json(Path(spec["outcome"]), {"loaded": [each.to_dict() for each in found]})
    except NbdeployError as error:
        write_json(Path(spec["outcome"]), error.to_dict() | {"message": error.message, "hint": error.hint})
        return 1
    return 0


if __name__ == "__main__":
    code = _main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the verdict is in; what the model's libraries do at their exit can only be late or wrong

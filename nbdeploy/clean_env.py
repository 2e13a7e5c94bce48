"""An environment that holds a version's requirements and nothing else."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from nbdeploy.errors import SaveError
from nbdeploy.home import private_folder
from nbdeploy.wheels import quiet_environment, run, said


def create(lines: Sequence[str], wheels: Path | None, where: Path, on_wait: Callable[[], None], log: Path) -> Path:
    """Make a virtual environment in `where` of `lines` and what they require, with this Python's version.

    pip, with the user's configuration of it (index, find-links, certificates), decides where things come from. The
    environment sees nothing of the one that calls, and belongs to the caller, who deletes it.

    Parameters
    ----------
    lines : list of str
        As in a requirements file; ``./wheels/...`` names a file of `wheels`.
    wheels : Path or None
        The folder of the carried wheels, itself named ``wheels``.
    where : Path
        A folder that does not exist yet. It is gone again after an error or an interrupt.
    on_wait : callable
        Called about ten times a second.
    log : Path
        What pip says; its last line tells what is going on.

    Returns
    -------
    Path
        Its Python.

    Raises
    ------
    SaveError
        A requirement cannot be installed. The whole log is in the error's details.
    """
    if where.exists():
        msg = f"{where} exists already"
        raise SaveError(msg, "Give a folder that does not exist.")
    env = quiet_environment()
    python = where / "bin" / "python"
    private_folder(log.parent)
    try:
        _step([sys.executable, "-I", "-m", "venv", "--symlinks", str(where)], log, log.parent, env, on_wait)
        where.chmod(0o700)
        listed = where / "requirements.txt"
        listed.write_text("".join(f"{line}\n" for line in lines))
        base = where if wheels is None else wheels.parent  # pip takes ./wheels/... from where it runs
        _step(
            [str(python), "-I", "-m", "pip", "install", "--progress-bar", "off", "--compile", "-r", str(listed)],
            log, base, env, on_wait,
        )  # fmt: skip
    except BaseException:
        shutil.rmtree(where, ignore_errors=True)
        raise
    return python


def doing(log: Path) -> str:
    """What is being installed at this moment, as few words as a progress bar has room for."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    for line in reversed(lines):
        words = line.split()
        if words and words[0] in {"Collecting", "Downloading", "Building", "Processing"}:
            return f"{words[0].lower()} {Path(words[1] if len(words) > 1 else '').name}"[:60]
        if words and words[0] == "Installing":
            return "installing"
    return ""


def _step(command: list[str], log: Path, where: Path, env: dict[str, str], on_wait: Callable[[], None]) -> None:
    if run(command, log, where, env, on_wait) != 0:
        line, text = said(log)
        msg = f"a clean environment cannot be made of the requirements: {line}"
        raise SaveError(msg, "Name what can be installed with requirements=[...], or save without clean_env.", text)

"""Where things are on disk, and how they are written: private, atomic, one writer at a time."""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nbdeploy.errors import InvalidName, NbdeployError

NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,62}"
REPORTS = "nbdeploy-reports"


def home() -> Path:
    """The folder that holds all state, read from ``NBDEPLOY_HOME`` at every call."""
    if chosen := os.environ.get("NBDEPLOY_HOME"):
        path = Path(chosen).expanduser().absolute()
    else:
        import platformdirs

        path = platformdirs.user_data_path("nbdeploy", appauthor=False)
    return private_folder(path)


def bentoml_home() -> Path:
    """The folder of BentoML's own stores, as BentoML itself finds it."""
    return Path(os.environ.get("BENTOML_HOME") or Path.home() / "bentoml").expanduser().absolute()


def folder(*parts: str) -> Path:
    """A private folder below `home`, made when missing."""
    path = home()
    for part in parts:
        path = private_folder(path / part)
    return path


def reports_folder(name: str) -> Path:
    """The visible folder beside the notebook for what users open: reports and executed notebooks.

    JupyterLab answers 404 for hidden folders and cannot reach outside its root, so this is
    below the working directory, not below `home`. Whoever writes there makes it.
    """
    return Path.cwd() / REPORTS / check_name(name)


def template(name: str) -> Path:
    """A notebook that comes with nbdeploy: inside the wheel, or at the top of a checkout."""
    package = Path(__file__).parent
    inside = package / "notebooks" / name
    return inside if inside.is_file() else package.parent / "notebooks" / name


def check_name(name: object) -> str:
    """Return `name` if it may name a deployment, else raise `InvalidName`."""
    text = name if isinstance(name, str) else ""
    if re.fullmatch(NAME_PATTERN, text) and text[-1].isalnum():
        return text
    suggestion = re.sub(r"[^a-z0-9._-]+", "-", str(name).lower())[:63].strip("._-")
    msg = f"{str(name)[:80]!r} cannot name a deployment"
    raise InvalidName(
        msg,
        "Use lower-case letters, digits, '.', '_' and '-', at most 63, a letter or digit first and last"
        + (f", for example {suggestion!r}." if re.fullmatch(NAME_PATTERN, suggestion) else "."),
    )


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data` so that a crash leaves the old or the new content, never a mix."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # created 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make a rename inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False).encode())


def write_note(path: Path, data: bytes, *, within: int | None = None) -> None:
    """Replace `path`, which has one writer, so that a reader sees the old or the new content.

    It is not synced, as by `write_atomic`: for what a power cut makes meaningless.

    Parameters
    ----------
    within : int, optional
        A descriptor of the folder of `path`. With it nothing is written into another one that has taken its place.
    """
    temporary: str | Path = note_in_work(path)
    final: str | Path = path
    if within is not None:
        temporary, final = note_in_work(path).name, path.name
    try:
        descriptor = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600, dir_fd=within)
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)
        os.replace(temporary, final, src_dir_fd=within, dst_dir_fd=within)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=within)
        raise


def note_in_work(path: Path) -> Path:
    """Where `write_note` writes before it replaces `path`."""
    return path.with_name(f".{path.name}.new")


def read_json(path: Path) -> Any:
    """The JSON in `path`, or None where there is no such file."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        msg = f"{path} is not readable as JSON: {error}"
        raise NbdeployError(msg, "Move it away and try again.") from error


@contextmanager
def lock(*parts: str, timeout: float = 600) -> Iterator[None]:
    """Hold the lock named by `parts`, across processes, for as long as the block runs.

    A lock of a process that died is free at once.
    """
    import filelock

    path = folder("locks") / ("-".join(parts) + ".lock")
    held = filelock.FileLock(path, mode=0o600)
    try:
        held.acquire(timeout=timeout)
    except filelock.Timeout as error:
        msg = f"Another process has been working on {'-'.join(parts)!r} for {timeout:.0f} s"
        raise NbdeployError(
            msg,
            "Wait for it, or end it.",
        ) from error
    try:
        yield
    finally:
        held.release()


def private_folder(path: Path) -> Path:
    """Make `path`, and whichever of its parents are missing, for this user alone.

    Raises
    ------
    NbdeployError
        The disk refuses.
    """
    if not path.is_dir():
        try:
            private_folder(path.parent)
            path.mkdir(mode=0o700, exist_ok=True)
            path.chmod(0o700)  # whatever the umask was
        except OSError as error:
            msg = f"the folder {path} cannot be made: {error.strerror}"
            raise NbdeployError(msg, "Set NBDEPLOY_HOME and BENTOML_HOME to folders that you may write to.") from error
    return path

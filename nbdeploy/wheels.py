"""Wheels of what is installed from this machine, so that a version holds what no index has."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from nbdeploy import processes
from nbdeploy.errors import SaveError
from nbdeploy.home import folder as state_folder
from nbdeploy.home import lock, private_folder

WAYS_OUT = "Publish it, install it from a commit of a remote repository, or reinstall it without -e."
KEPT = 8  # built wheels, newest first, below NBDEPLOY_HOME/wheels; the folder may be deleted at any time
_SKIPPED = {"__pycache__", "node_modules", ".git", ".hg", ".tox", ".nox", ".mypy_cache", ".ruff_cache", ".pytest_cache",
            ".ipynb_checkpoints", ".hypothesis", "nbdeploy-reports"}  # fmt: skip
_GENERATED = {"INSTALLER", "REQUESTED", "RECORD", "direct_url.json", "WHEEL"}
_WHOLE = 4 << 20  # a larger file is told by its size and time


def build(name: str, version: str, source: str, where: Path, on_wait: Callable[[], None]) -> str:
    """Build the wheel of a project's folder, or of a ``git+file`` URL, into `where`; the name of the file.

    The project is built from a copy. What is importable here serves as its build backend; where that does not do, pip
    installs the backend aside.

    Raises
    ------
    SaveError
        It cannot be built, or it builds as another version than the one that is loaded.
    """
    from_git = source.startswith("git+")
    project = Path(source)
    if not from_git and not ((project / "pyproject.toml").is_file() or (project / "setup.py").is_file()):
        msg = f"{name} {version} is installed from {source}, which is no longer a project that can be built"
        raise SaveError(msg, WAYS_OUT)
    key = hashlib.sha256(repr((source, version, sys.version)).encode())
    files = [] if from_git else list(_project_files(project))
    for path in files:
        facts = path.lstat()
        key.update(repr((str(path.relative_to(project)), facts.st_size)).encode())
        small = path.is_file() and facts.st_size <= _WHOLE
        key.update(hashlib.sha256(path.read_bytes()).digest() if small else str(facts.st_mtime_ns).encode())
    with lock("wheels"):
        kept = state_folder("wheels", key.hexdigest()[:32])
        if not list(kept.glob("*.whl")):
            with tempfile.TemporaryDirectory(dir=state_folder("run"), prefix="wheel-") as scratch:
                target = source
                if not from_git:
                    target = str(Path(scratch, "project"))
                    _copy_project(project, files, Path(target))
                built = _pip_wheel(name, version, source, target, Path(scratch), on_wait=on_wait)
                os.replace(built, kept / built.name)
        (wheel,) = kept.glob("*.whl")
        os.utime(kept)
        name_of_file = _into(wheel, where)
        for old in sorted(kept.parent.iterdir(), key=lambda path: -path.stat().st_mtime)[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
    return name_of_file


def copy(name: str, wheel: Path, recorded: str, where: Path) -> str:
    """Copy the wheel that was installed; `recorded` is its ``sha256=...``, or empty where pip kept none."""
    kind, _, expected = recorded.partition("=")
    if kind == "sha256" and hashlib.sha256(wheel.read_bytes()).hexdigest() != expected:
        msg = f"{wheel} is not the file any more that {name} was installed from"
        raise SaveError(msg, f"Install it again, or see to it that {name} comes from an index.")
    return _into(wheel, where)


def pack_installed(name: str, version: str, source: str, where: Path) -> str:
    """Make a wheel of the installed files of a distribution: what was loaded, whatever its source is by now.

    Raises
    ------
    SaveError
        It has no record of its files, a file is missing, or it has files outside of the library's folder.
    """
    distribution = metadata.distribution(name)
    scripts = {entry.name for entry in distribution.entry_points}
    members: dict[str, bytes] = {}
    info = ""
    for path in distribution.files or ():
        if path.parts[0] == "..":
            if path.name in scripts or path.suffix == ".pyc":
                continue
            msg = f"{name} {version}, installed from {source}, has a file that a wheel cannot be made of: {path.name}"
            raise SaveError(msg, WAYS_OUT)
        if path.parts[0].endswith(".dist-info"):
            info = path.parts[0]
            if path.name in _GENERATED:
                continue
        if path.suffix != ".pyc":
            located = Path(str(distribution.locate_file(path)))
            if not located.is_file():
                msg = f"{name} {version}, installed from {source}, is not whole: {path} is missing"
                raise SaveError(msg, "Install it again.")
            members[path.as_posix()] = located.read_bytes()
    if not info:
        msg = f"{name} {version}, installed from {source}, has no record of its files"
        raise SaveError(msg, WAYS_OUT)
    return _write(name, version, distribution.read_text("WHEEL") or "", info, members, where=where)


def pack_nbdeploy(version: str, where: Path) -> str:
    """Make the wheel of nbdeploy itself where it is a checkout, without a build: its package and its notebooks."""
    distribution = metadata.distribution("nbdeploy")
    package = Path(__file__).parent
    info = f"nbdeploy-{version}.dist-info"
    members = {f"{info}/METADATA": (distribution.read_text("METADATA") or "").encode()}
    if entries := distribution.read_text("entry_points.txt"):
        members[f"{info}/entry_points.txt"] = entries.encode()
    for source, prefix in ((package, "nbdeploy"), (package.parent / "notebooks", "nbdeploy/notebooks")):
        for path in _project_files(source) if source.is_dir() else ():
            members[f"{prefix}/{path.relative_to(source).as_posix()}"] = path.read_bytes()
    return _write("nbdeploy", version, "Tag: py3-none-any\nRoot-Is-Purelib: true\n", info, members, where=where)


def run(command: list[str], log: Path, where: Path, env: dict[str, str], on_wait: Callable[[], None]) -> int:
    """Run a program with its output appended to `log`; `on_wait` is called ten times a second. Its exit code.

    An interrupt ends the program and all that it started.
    """
    with os.fdopen(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600), "ab") as output:
        child = subprocess.Popen(
            command, cwd=where, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, umask=0o077,
        )  # fmt: skip
    try:
        while True:
            try:
                return child.wait(0.1)
            except subprocess.TimeoutExpired:
                on_wait()
    finally:
        if child.poll() is None:
            processes.end_group(child.pid)
            child.wait()


def quiet_environment() -> dict[str, str]:
    """The user's environment, with pip's configuration in it and without what would change Python's own."""
    dropped = {"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "PIP_TARGET", "PIP_PREFIX", "PIP_USER",
               "PIP_REQUIRE_VIRTUALENV", "PIP_REQUIREMENT", "PIP_CONSTRAINT", "PIP_PYTHON", "PIP_ROOT"}  # fmt: skip
    env = {key: value for key, value in processes.environment().items() if key not in dropped}
    return env | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONUNBUFFERED": "1"}


def said(log: Path) -> tuple[str, str]:
    """The line of a log that says what went wrong, without credentials, and the whole log."""
    text = re.sub(r"(\w+://)[^/\s@]+@", r"\1", log.read_text(errors="replace"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(ERROR|error)\b", line)]
    return next(iter((errors or lines)[-1:]), "it said nothing")[:300], text


# -- helpers ------------------------------------------------------------------------------------------------


def _pip_wheel(
    name: str, version: str, source: str, target: str, scratch: Path, *, on_wait: Callable[[], None]
) -> Path:
    out, log = private_folder(scratch / "out"), scratch / "pip.log"
    # A version that comes from tags cannot be told in a copy without a repository.
    env = quiet_environment() | {
        "SETUPTOOLS_SCM_PRETEND_VERSION": version, "PDM_BUILD_SCM_VERSION": version, "GIT_OPTIONAL_LOCKS": "0",
    }  # fmt: skip
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-cache-dir", "--wheel-dir", str(out)]
    for how in (["--no-build-isolation", "--check-build-dependencies"], []):
        if run([*command, *how, target], log, scratch, env, on_wait) == 0:
            (wheel,) = out.glob("*.whl")
            if wheel.name.split("-")[1].replace("_", "-") != version.replace("_", "-"):
                msg = f"{source} builds {wheel.name}, but {name} {version} is what is loaded"
                raise SaveError(msg, f"Install {name} again, restart the kernel, and save again.")
            return wheel
    line, text = said(log)
    msg = f"{name} {version} is installed from {source} and no wheel of it can be built: {line}"
    raise SaveError(msg, WAYS_OUT, text)


def _project_files(project: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(project):
        inside = Path(place)
        folders[:] = sorted(
            name for name in folders
            if name not in _SKIPPED and not name.endswith(".egg-info") and not (inside / name / "pyvenv.cfg").exists()
            and not (inside == project and name in {"build", "dist"})
        )  # fmt: skip
        for name in sorted(names):
            path = inside / name
            if not name.endswith(".pyc") and (path.is_file() or path.is_symlink()):
                yield path


def _copy_project(project: Path, files: list[Path], target: Path) -> None:
    for path in files:
        copied = target / path.relative_to(project)
        copied.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            shutil.copy2(path, copied)


def _into(wheel: Path, where: Path) -> str:
    shutil.copyfile(wheel, private_folder(where) / wheel.name)
    (where / wheel.name).chmod(0o600)
    return wheel.name


def _write(name: str, version: str, wheel: str, info: str, members: dict[str, bytes], *, where: Path) -> str:
    kept = [line for line in wheel.splitlines() if line.startswith(("Tag:", "Root-Is-Purelib:"))]
    tags = [line.partition(":")[2].strip().split("-") for line in kept if line.startswith("Tag:")] or [
        ["py3", "none", "any"]
    ]
    tag = "-".join(".".join(dict.fromkeys(column)) for column in zip(*tags, strict=True))
    text = "\n".join(["Wheel-Version: 1.0", "Generator: nbdeploy", *kept, ""])
    members = dict(sorted(members.items())) | {f"{info}/WHEEL": text.encode()}
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for member, data in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.writerow([member, f"sha256={digest}", len(data)])
    rows.writerow([f"{info}/RECORD", "", ""])
    members[f"{info}/RECORD"] = record.getvalue().encode()
    name_of_file = f"{re.sub(r'[-_.]+', '_', name).lower()}-{version.replace('-', '_')}-{tag}.whl"
    path = private_folder(where) / name_of_file
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for member, data in members.items():  # one time for all: the same files are the same wheel
            entry = zipfile.ZipInfo(member, (1980, 1, 1, 0, 0, 0))
            entry.external_attr, entry.compress_type = 0o100644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    path.chmod(0o600)
    return name_of_file

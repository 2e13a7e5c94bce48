"""Every version is also a Bento, so that BentoML alone can list, serve, containerize and export it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nbdeploy import artifact, processes
from nbdeploy.errors import NbdeployError
from nbdeploy.home import bentoml_home, check_name, folder, lock, read_json, write_json
from nbdeploy.model_store import ModelVersion, get


def build_in_background(version: ModelVersion) -> None:
    """Build the Bento in a process of its own, which ends by itself, unless it is there; `wait` waits for it."""
    if _path(version).is_dir():
        return
    log = folder("run", version.name) / "bento.log"
    with os.fdopen(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "nbdeploy.bento", version.name, version.version],
            cwd=log.parent, env=processes.environment(), stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True, umask=0o077,
        )  # fmt: skip
    write_json(
        log.with_name(f"bento-{version.version}.json"), {"pid": child.pid, "started": processes.started(child.pid)}
    )
    processes.reap(child)


def build(version: ModelVersion) -> None:
    """Build the Bento of `version` unless it is there already.

    Raises
    ------
    NbdeployError
        BentoML refuses to build it.
    """
    with lock("bento", version.name):
        if _path(version).is_dir():
            return
        import bentoml
        from bentoml.exceptions import BentoMLException

        with tempfile.TemporaryDirectory(dir=folder("run"), prefix="bento-") as context, _without_installing_uv():
            shutil.copyfile(version.path / artifact.SERVICE, Path(context) / artifact.SERVICE)
            wheels = version.path / artifact.WHEELS
            if wheels.is_dir():
                shutil.copytree(wheels, Path(context) / artifact.WHEELS)
            try:
                bentoml.build(
                    service=artifact.SERVICE,
                    name=version.name,
                    version=version.version,
                    build_ctx=context,
                    include=[artifact.SERVICE, f"{artifact.WHEELS}/*.whl"],
                    models=[version.tag],
                    labels={"nbdeploy": "version", "digest": version.digest[:63]},
                    # Locking would resolve against an index, packing would clone repositories, over the network.
                    python={
                        "packages": version.requirements,
                        "lock_packages": False,
                        "pack_git_packages": False,
                    },
                )
            except BentoMLException as error:
                msg = f"BentoML cannot build a Bento of {version.tag}: {error}"
                raise NbdeployError(msg, "The version itself is saved and can be served.") from error
            if wheels.is_dir():
                # Its Dockerfile installs from here, before there is a src folder; elsewhere BentoML installs from src.
                shutil.copytree(wheels, _path(version) / "env" / "python" / artifact.WHEELS)
            _make_private(_path(version))


def wait(name: str, timeout: float = 60) -> None:
    """Return when no Bento of `name` is being built any more, or after `timeout` seconds."""
    for path in folder("run", check_name(name)).glob("bento-*.json"):
        facts = read_json(path) or {}
        processes.wait(facts.get("pid", 0), facts.get("started", 0.0), timeout)
        path.unlink(missing_ok=True)


@contextmanager
def none_built(name: str) -> Iterator[None]:
    """Throughout the block no Bento of `name` is being built."""
    wait(name)
    with lock("bento", name):
        yield


@contextmanager
def _without_installing_uv() -> Iterator[None]:
    # BentoML looks for uv before it finds that locking is off, and where there is none runs `pip install uv` in the
    # user's environment. It is never run, so anything of that name will do; and pip is kept from reaching an index.
    before = {name: os.environ.get(name) for name in ("PATH", "PIP_NO_INDEX")}
    with tempfile.TemporaryDirectory() as where:
        stand_in = Path(where) / "uv"
        stand_in.write_text("#!/bin/sh\necho 'uv is not used here' >&2\nexit 1\n")
        stand_in.chmod(0o700)
        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), where])
        os.environ["PIP_NO_INDEX"] = "1"
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def _make_private(bento: Path) -> None:
    # BentoML copies some files with the mode that they have in its package.
    for path in bento.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)


def _path(version: ModelVersion) -> Path:
    return bentoml_home() / "bentos" / version.name / version.version


if __name__ == "__main__":
    build(get(sys.argv[1], sys.argv[2]))

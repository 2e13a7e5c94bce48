"""Model versions in BentoML's store: numbered, immutable, with their digests recorded outside it."""

from __future__ import annotations

import json
import keyword
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from nbdeploy import artifact, processes
from nbdeploy.errors import NbdeployError, NotFound, did_you_mean
from nbdeploy.home import (
    bentoml_home,
    check_name,
    folder,
    home,
    lock,
    private_folder,
    read_json,
    sync_folder,
    write_atomic,
    write_json,
)
from nbdeploy.signature import Signature


@dataclass(frozen=True)
class ModelVersion:
    """One immutable saved model.

    Attributes
    ----------
    name, version : str
        ``flight-delay`` and ``v1``.
    digest : str
        SHA-256 over the SHA-256 of every file, recorded outside the store when it was saved.
    path : Path
        Its folder in BentoML's model store.
    created : str
        ISO 8601, UTC.
    files : mapping
        The recorded SHA-256 of every file.
    """

    name: str
    version: str
    digest: str
    path: Path
    created: str
    files: Mapping[str, str]

    @property
    def tag(self) -> str:
        return f"{self.name}:{self.version}"

    @property
    def number(self) -> int:
        return int(self.version[1:])

    @property
    def signature(self) -> Signature:
        return artifact.read_signature(self.path)

    @property
    def provenance(self) -> dict[str, Any]:
        return dict(read_json(self.path / artifact.PROVENANCE) or {})

    @property
    def reference(self) -> pd.DataFrame:
        """The reference sample: at most 10,000 rows of the training frame."""
        return artifact.read_reference(self.path, self.signature)

    @property
    def expected(self) -> pd.DataFrame:
        """What the model answered on the reference sample in the kernel that saved it."""
        return artifact.read_frame(self.path / artifact.EXPECTED)

    @property
    def labels(self) -> pd.Series | None:
        """The true outcomes of the reference sample, or None where none were given."""
        path = self.path / artifact.LABELS
        return artifact.read_frame(path)["label"].rename(self.signature.target) if path.is_file() else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "tag": self.tag, "name": self.name, "version": self.version, "digest": self.digest,
            "created": self.created, "path": str(self.path),
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"ModelVersion({self.tag}, saved {self.created[:16].replace('T', ' ')}, sha256 {self.digest[:12]})"


@dataclass(frozen=True)
class Staged:
    """A version that is written but not rehearsed yet. Nobody sees it until `commit`."""

    name: str
    version: str
    folder: Path
    files: Mapping[str, str]
    digest: str
    created: str


@contextmanager
def stage(model: Any, name: str, X: Any, y: Any = None) -> Iterator[Staged]:
    """Write the next version of `name` aside; it is gone after the block unless `commit` took it.

    The lock of the name is held throughout, so two notebooks that save at once come one after
    the other and get different numbers.

    Raises
    ------
    InvalidName
        The name is outside the allowed alphabet.
    SaveError
        The model or its frame cannot become a version.
    """
    check_name(name)
    with lock("save", name):
        area = private_folder(bentoml_home() / "nbdeploy-staging")
        for leftover in area.glob(f"{name}@*"):  # of a process that was killed: the lock is ours
            shutil.rmtree(leftover, ignore_errors=True)
        path = Path(tempfile.mkdtemp(prefix=f"{name}@", dir=area))
        try:
            version = f"v{_next_number(name)}"
            created = datetime.now(timezone.utc).isoformat(timespec="seconds")
            artifact.write(path, model, X, y, provenance(model))
            (path / artifact.SERVICE).write_text(service_source(name, version))
            files = artifact.manifest(path)
            digest = artifact.digest(files)
            (path / artifact.BENTOML_FILE).write_text(_bentoml_yaml(name, version, digest, created))
            artifact.private_tree(path)
            yield Staged(name, version, path, files, digest, created)
        finally:
            shutil.rmtree(path, ignore_errors=True)


def commit(staged: Staged) -> ModelVersion:
    """Make a staged version one that everybody sees. After a crash at any point it exists whole or not at all."""
    target = bentoml_home() / "models" / staged.name / staged.version
    private_folder(target.parent)
    record = folder("versions", staged.name) / f"{staged.version}.json"
    artifact.sync_tree(staged.folder)
    # The digest first: a folder without its record is never taken for a version.
    write_json(
        record,
        {"name": staged.name, "version": staged.version, "digest": staged.digest, "created": staged.created,
         "files": dict(staged.files)},
    )  # fmt: skip
    try:
        os.rename(staged.folder, target)
    except BaseException:
        record.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)
    write_atomic(target.parent / "latest", staged.version.encode())
    return get(staged.name, staged.version)


def versions(name: str) -> list[ModelVersion]:
    """All versions of `name`, newest first; an empty list for an unknown name."""
    records = (home() / "versions" / check_name(name)).glob("v*.json")
    found = [version for path in records if (version := _read(path)) is not None]
    return sorted(found, key=lambda version: version.number, reverse=True)


def names() -> list[str]:
    """Every name that has a version. What is no name of ours, or cannot be read, is passed over."""
    found = []
    for path in (home() / "versions").glob("*"):
        with suppress(NbdeployError):
            found += [path.name] if versions(path.name) else []
    return sorted(found)


def get(name: str, version: str | None = None) -> ModelVersion:
    """One version, the newest by default.

    Raises
    ------
    NotFound
        With the closest known name or version.
    """
    known = versions(name)
    if not known:
        msg = f"no model is saved as {name!r}"
        raise NotFound(msg, did_you_mean(name, names()) or "Save one: %deploy save model --name NAME --data X.")
    if version is None:
        return known[0]
    wanted = version.removeprefix(f"{name}:")
    for candidate in known:
        if candidate.version == wanted:
            return candidate
    msg = f"{name!r} has no version {version!r}"
    raise NotFound(msg, did_you_mean(wanted, [candidate.version for candidate in known]))


def recorded_files(name: str, version: str) -> Mapping[str, str] | None:
    """The SHA-256 recorded for every file of a version, or None where it was saved in another home."""
    facts = read_json(home() / "versions" / check_name(name) / f"{version}.json")
    return facts["files"] if facts else None


def provenance(model: Any) -> dict[str, Any]:
    """Where a model comes from: notebook, git commit, Python, platform, versions of what it is made of."""
    # What a scikit-learn model is made of, at any depth, is among its parameters.
    parts = [model, *(part for part in _parameters(model).values() if hasattr(part, "get_params"))]
    roots = {type(part).__module__.partition(".")[0] for part in parts}
    wanted = {"nbdeploy", "bentoml", "numpy", "pandas", "cloudpickle", *(_distribution(root) for root in roots)}
    found = {}
    for name in sorted(wanted - {""}):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return {
        "model": f"{type(model).__module__}.{type(model).__qualname__}",
        "notebook": _notebook(),
        "git": _git(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": found,
        "user": processes.user(),
    }


def service_source(name: str, version: str) -> str:
    """The file that BentoML runs: a real one, because it refuses a service defined in a notebook or a factory."""
    return f'''"""{name}:{version} as a BentoML service. Written by nbdeploy."""

import bentoml
from nbdeploy.serving import BENTOML_OPTIONS, Predictor, application

app = application()


@bentoml.service(name="{name}", **BENTOML_OPTIONS)
@bentoml.asgi_app(app, path="/")
class {service_class(name)}(Predictor):
    app, tag = app, "{name}:{version}"
'''


def service_class(name: str) -> str:
    """``FlightDelay`` for ``flight-delay``."""
    words = name.replace(".", "-").replace("_", "-").split("-")
    joined = "".join(word.capitalize() for word in words)
    return joined if joined[0].isalpha() and not keyword.iskeyword(joined) else f"Model{joined}"


# -- helpers ------------------------------------------------------------------------------------------------


def _read(record: Path) -> ModelVersion | None:
    facts = read_json(record)
    path = bentoml_home() / "models" / facts["name"] / facts["version"]
    if not path.is_dir():  # deleted through BentoML, or a crash just before the rename: its number stays used
        return None
    return ModelVersion(facts["name"], facts["version"], facts["digest"], path, facts["created"], facts["files"])


def _next_number(name: str) -> int:
    recorded = (home() / "versions" / name).glob("v*.json")
    stored = (bentoml_home() / "models" / name).glob("v*")
    stems = [path.stem[1:] for path in recorded] + [path.name[1:] for path in stored]
    return max((int(stem) for stem in stems if stem.isdigit()), default=0) + 1


def _bentoml_yaml(name: str, version: str, digest: str, created: str) -> str:
    # JSON is YAML. The keys are those of BentoML's own ModelInfo.
    return json.dumps(
        {
            "name": name, "version": version, "module": "nbdeploy", "labels": {"nbdeploy": "version"},
            "options": {}, "metadata": {"digest": digest}, "signatures": {}, "api_version": "v1",
            "context": {
                "framework_name": "nbdeploy", "framework_versions": {"nbdeploy": metadata.version("nbdeploy")},
                "bentoml_version": metadata.version("bentoml"), "python_version": platform.python_version(),
            },
            "creation_time": created,
        },
        indent=1,
    )  # fmt: skip


def _parameters(model: Any) -> dict[str, Any]:
    try:
        return dict(model.get_params(deep=True))
    except Exception:  # noqa: BLE001  anybody's method, or none at all
        return {}


def _distribution(module: str) -> str:
    return {"sklearn": "scikit-learn", "__main__": "", "builtins": ""}.get(module, module)


def _notebook() -> str:
    # JupyterLab's server tells its kernels the notebook's path.
    if path := os.environ.get("JPY_SESSION_NAME"):
        return path
    return "" if "ipykernel" in sys.modules else Path(sys.argv[0]).name


def _git() -> dict[str, Any] | None:
    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], capture_output=True, text=True, timeout=5, check=True, stdin=subprocess.DEVNULL
        )
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None

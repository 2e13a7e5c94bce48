"""Model versions in BentoML's store: numbered, immutable, with their digests recorded outside it."""

from __future__ import annotations

import json
import keyword
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from nbdeploy import artifact, frameworks, pickling, provenance, requirements
from nbdeploy.errors import NbdeployError, NotFound, SaveError, did_you_mean
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
from nbdeploy.requirements import Requirement
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
        return artifact.read_expected(self.path, self.signature)

    @property
    def labels(self) -> pd.Series | pd.DataFrame | None:
        """The true outcomes of the reference sample, a frame for several targets, or None where none were given."""
        path = self.path / artifact.LABELS
        if not path.is_file():
            return None
        frame = artifact.read_frame(path)
        return frame if len(frame.columns) > 1 else frame.iloc[:, 0]

    @property
    def unbatched(self) -> bool:
        """Whether its answer to a row may depend on the rows that are asked with it."""
        return bool((read_json(self.path / artifact.MODEL) or {}).get("unbatched"))

    @property
    def requirements(self) -> list[str]:
        """What the rehearsal loaded for the model, and what the user asked for, as lines for pip."""
        path = self.path / artifact.REQUIREMENTS
        return path.read_text().splitlines() if path.is_file() else []

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
    created: str


@contextmanager
def stage(
    model: Any,
    name: str,
    X: Any,
    y: Any = None,
    options: artifact.Options | None = None,
    *,
    on_wait: Callable[[], None] = lambda: None,
) -> Iterator[Staged]:
    """Write the next version of `name` aside; it is gone after the block unless `commit` took it.

    `on_wait` is called again and again while large files are written.

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
    options = options or artifact.Options()
    measured, _ = provenance.checked_metrics(options.metrics), requirements.check_user(options.requirements)
    with staging(name) as path:
        version = f"v{next_number(name)}"
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        with pickling.watched(on_wait), _disk(path, name):
            written = artifact.write(path, model, X, y, options)
            facts = {**provenance.here(), **provenance.of(written, X), "metrics": measured}
            (path / artifact.PROVENANCE).write_text(json.dumps(facts, indent=1))
            (path / artifact.SERVICE).write_text(service_source(name, version))
            files = artifact.manifest(path)
            artifact.private_tree(path)
        yield Staged(name, version, path, files, created)


@contextmanager
def staging(name: str) -> Iterator[Path]:
    """An empty folder beside the store, gone after the block; its holder alone may add or remove versions of `name`.

    What processes that were killed have left there is removed.
    """
    with lock("save", name):
        area = private_folder(bentoml_home() / "nbdeploy-staging")
        for leftover in area.glob(f"{name}@*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with _disk(area / name, name):
            path = Path(tempfile.mkdtemp(prefix=f"{name}@", dir=area))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            artifact.sweep_copies(area)


def add_requirements(
    staged: Staged, loaded: Sequence[Requirement], own: Sequence[str] = (), on_wait: Callable[[], None] = lambda: None
) -> Staged:
    """`staged` with what the rehearsal loaded and what the user asks for; packages of this machine come along.

    Raises
    ------
    SaveError
        A line of `own` contradicts what was loaded, or a local package cannot be carried.
    """
    with _disk(staged.folder, staged.name):
        carried = requirements.carry(loaded, staged.folder, on_wait)
        lines = requirements.merge(carried, requirements.check_user(own))
        (staged.folder / artifact.REQUIREMENTS).write_text("".join(f"{line}\n" for line in lines))
        artifact.private_tree(staged.folder)
        return replace(staged, files=artifact.manifest(staged.folder, staged.files))


def commit(staged: Staged) -> ModelVersion:
    """Make a staged version one that everybody sees. After a crash at any point it exists whole or not at all."""
    with _disk(staged.folder, staged.name):
        return _committed(staged)


def _committed(staged: Staged) -> ModelVersion:
    target = bentoml_home() / "models" / staged.name / staged.version
    private_folder(target.parent)
    record = folder("versions", staged.name) / f"{staged.version}.json"
    digest = artifact.digest(staged.files)
    write_atomic(
        staged.folder / artifact.BENTOML_FILE,
        bentoml_yaml(staged.name, staged.version, digest, staged.created, staged.folder).encode(),
    )
    artifact.sync_tree(staged.folder)
    # The digest first: a folder without its record is never taken for a version.
    write_json(
        record,
        {"name": staged.name, "version": staged.version, "digest": digest, "created": staged.created,
         "files": dict(staged.files)},
    )  # fmt: skip
    try:
        os.rename(staged.folder, target)
    except BaseException:
        if staged.folder.is_dir():  # an interrupt can also come when it is done
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
    wanted = str(version).removeprefix(f"{name}:")
    for candidate in known:
        if candidate.version == wanted:
            return candidate
    msg = f"{name!r} has no version {version!r}"
    raise NotFound(msg, did_you_mean(wanted, [candidate.version for candidate in known]))


def recorded_files(name: str, version: str) -> Mapping[str, str] | None:
    """The SHA-256 recorded for every file of a version, or None where it was saved in another home."""
    facts = read_json(home() / "versions" / check_name(name) / f"{version}.json")
    return facts["files"] if facts else None


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
    # Deleted, here or through BentoML, or a crash just before the rename: its number stays used.
    if facts.get("deleted") or not path.is_dir():
        return None
    return ModelVersion(facts["name"], facts["version"], facts["digest"], path, facts["created"], facts["files"])


def next_number(name: str) -> int:
    """The number that no version of `name` has had yet."""
    recorded = (home() / "versions" / name).glob("v*.json")
    stored = (bentoml_home() / "models" / name).glob("v*")
    stems = [path.stem[1:] for path in recorded] + [path.name[1:] for path in stored]
    return max((int(stem) for stem in stems if stem.isdecimal()), default=0) + 1


def bentoml_yaml(name: str, version: str, digest: str, created: str, place: Path) -> str:
    """BentoML's own description of a model, whose files are in `place`.

    Where BentoML has a module that loads these files as they are, it is named: ``bentoml.sklearn.load_model(tag)``.
    """
    how = read_json(place / artifact.MODEL) or {}
    module = "nbdeploy" if (place / "framework.pkl").exists() else frameworks.bentoml_module(how)
    # JSON is YAML. The keys are those of BentoML's own ModelInfo.
    return json.dumps(
        {
            "name": name, "version": version, "module": module or "nbdeploy", "labels": {"nbdeploy": "version"},
            "options": how.get("facts", {}).get("bentoml", {}), "metadata": {"digest": digest}, "signatures": {},
            "api_version": how.get("facts", {}).get("bentoml_api", "v1"),
            "context": {
                "framework_name": "nbdeploy", "framework_versions": {"nbdeploy": metadata.version("nbdeploy")},
                "bentoml_version": metadata.version("bentoml"), "python_version": platform.python_version(),
            },
            "creation_time": created,
        },
        indent=1,
    )  # fmt: skip


@contextmanager
def _disk(place: Path, name: str) -> Iterator[None]:
    """Say in one line that the disk of `place` is full or refuses."""
    try:
        yield
    except OSError as error:
        msg = f"{name!r} cannot be written to {place.parent}: {error.strerror or error}"
        raise SaveError(msg, "Make room, or set BENTOML_HOME to a folder on another disk.") from error

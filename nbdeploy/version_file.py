"""A version as one file, to carry it elsewhere and back; and a version's way out of the store.

The file is an ordinary zip in the one form of `strict_zip`: ``version.json`` (what it is, with the SHA-256 and size of
every file), then the files below ``files/``. The same version gives the same bytes each time. What only repeats the
version's number is not in it: the service that BentoML runs and BentoML's own description are written at import.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from glob import escape
from pathlib import Path
from typing import IO

from nbdeploy import artifact, model_store
from nbdeploy.errors import NbdeployError, SaveError
from nbdeploy.home import (
    bentoml_home,
    check_name,
    folder,
    lock,
    private_folder,
    read_json,
    sync_folder,
    write_atomic,
    write_json,
)
from nbdeploy.model_store import ModelVersion, Staged, next_number
from nbdeploy.strict_zip import BLOCK, Reader, Writer, check_names, length

SUFFIX = ".nbdeploy.zip"
FORMAT = 1
RECORD, FILES = "version.json", "files/"
MAX_RECORD = 8 << 20  # bytes
MAX_FILES = 10_000
MAX_NUMBER = 999_999  # a file from elsewhere must not use up the numbers
# Written for the place where a version is stored, and taken from nowhere.
LOCAL = frozenset({artifact.SERVICE, *artifact.UNRECORDED})


def export_version(
    name: str, version: str | None = None, path: str | Path | None = None, *, overwrite: bool = False
) -> Path:
    """Write a version into one file that `import_version` takes, here or on another machine.

    Each file is checked against its recorded SHA-256 while it is written. An ordinary zip, uncompressed, 0600, the
    same bytes each time. It holds the reference sample: at most 10,000 rows of the training data.

    Parameters
    ----------
    version : str, optional
        ``"v2"``; by default the newest.
    path : path, optional
        The file, or the folder for it; by default ``NAME-vN.nbdeploy.zip`` in the working directory.
    overwrite : bool
        Replace a file that is there already.

    Returns
    -------
    Path
        The file, whole and durable. After a failure or a crash there is none, or the former one.

    Raises
    ------
    NotFound
        There is no such version.
    SaveError
        A file of the version is not the recorded one, or the file cannot be written or is there already.
    """
    subject = model_store.get(check_name(name), version)
    target = Path.cwd() if path is None else Path(path).expanduser().absolute()
    if target.is_dir():
        target /= f"{subject.name}-{subject.version}{SUFFIX}"
    if target.exists() and not overwrite:
        raise _taken(target)
    try:
        with lock("export", subject.name), _new_file(target, overwrite) as file:
            _write(subject, file)
    except FileExistsError:
        raise _taken(target) from None
    except OSError as error:
        msg = f"{subject.tag} cannot be written to {target}: {error.strerror or error}"
        raise SaveError(msg, "Choose another place with path=.") from error
    return target


def import_version(path: str | Path, name: str | None = None, *, digest: str | None = None) -> ModelVersion:
    """Take a version from a file that `export_version` wrote.

    It gets the number that it had where that is free and higher than all of the name, else the next one. A version
    that is here already, by its digest, is returned and not stored twice.

    Import only what you trust: a model is code, and serving it runs that code. The import itself runs nothing and
    rehearses nothing; `serve` does. The SHA-256 in the file show damage, not who made it: against that, pass the
    `digest` that you got another way.

    Parameters
    ----------
    name : str, optional
        Import it under this name; by default under its own.
    digest : str, optional
        The digest that the version must have.

    Raises
    ------
    SaveError
        The file is not what `export_version` writes, to the last byte, or is not of that digest. Nothing is kept then.
    InvalidName
    """
    source = Path(path).expanduser().absolute()
    try:
        with _regular_file(source) as file:
            return _take_in(file, source, name, digest)
    except OSError as error:
        msg = f"{source} cannot be imported: {error.strerror or error}"
        raise SaveError(msg, "Nothing was imported.") from error


def remove(version: ModelVersion) -> None:
    """Take a version and its Bento out of BentoML's stores for good; its number is never used again.

    The caller knows that nothing uses it. After a crash at any point the version is there whole, or gone.
    """
    record = folder("versions", version.name) / f"{version.version}.json"
    built = bentoml_home() / "bentos" / version.name / version.version
    with model_store.staging(version.name) as staging:
        for stored in (built, version.path):
            if stored.is_dir():
                _take_out(stored, private_folder(staging / stored.parent.parent.name))
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        write_json(record, {**(read_json(record) or {}), "deleted": now})


def _take_out(stored: Path, aside: Path) -> None:
    """Move ``STORE/NAME/vN`` into `aside` in one step; BentoML's ``latest`` names the newest that stays."""
    others = [int(path.name[1:]) for path in stored.parent.glob("v*") if path.name[1:].isdecimal() and path != stored]
    latest = stored.parent / "latest"
    if others:
        write_atomic(latest, f"v{max(others)}".encode())
    else:
        latest.unlink(missing_ok=True)
    os.rename(stored, aside / stored.name)
    sync_folder(stored.parent)
    if not others:
        with suppress(OSError):  # somebody is putting the next one there
            stored.parent.rmdir()


# -- writing ------------------------------------------------------------------------------------------------


def _write(subject: ModelVersion, file: IO[bytes]) -> None:
    files = {name: sha for name, sha in sorted(subject.files.items()) if name not in LOCAL}
    _check_file_names(files, subject.tag)
    sizes = {}
    for name in files:
        path = subject.path / name
        if not path.is_file():
            raise _changed(subject, name)
        sizes[name] = path.stat().st_size
    record = _Record(
        subject.name, subject.version, artifact.digest(files), subject.created,
        {name: (sha, sizes[name]) for name, sha in files.items()},
    ).to_bytes()  # fmt: skip
    archive = Writer(file)
    archive.add(RECORD, len(record), [record])
    for name, sha in files.items():
        with (subject.path / name).open("rb") as content:
            checked = _hashed(_blocks(content), sha, _changed(subject, name))
            archive.add(FILES + name, sizes[name], checked)
    archive.finish()


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block


def _hashed(blocks: Iterable[bytes], sha: str, wrong: SaveError) -> Iterator[bytes]:
    """Pass `blocks` on, and raise after the last one where their SHA-256 is another."""
    total = hashlib.sha256()
    for block in blocks:
        total.update(block)
        yield block
    if total.hexdigest() != sha:
        raise wrong


@contextmanager
def _new_file(target: Path, overwrite: bool) -> Iterator[IO[bytes]]:
    """A file that appears as `target`, whole, after the block, or not at all."""
    prefix, suffix = f".{target.name}.", ".part"
    for leftover in target.parent.glob(f"{escape(prefix)}*{suffix}"):  # of an export that was killed
        leftover.unlink(missing_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=prefix, suffix=suffix)  # created 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, target)
        else:
            _rename_to_free(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_folder(target.parent)


def _rename_to_free(temporary: str, target: Path) -> None:
    # A link fails where the name is taken, which a rename does not; not every file system has links.
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:
        if target.exists():
            raise FileExistsError from None
        os.replace(temporary, target)
    else:
        os.unlink(temporary)


# -- reading ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Record:
    """``version.json``: what the file says about itself. `files` has the SHA-256 and the size of each."""

    name: str
    version: str
    digest: str
    created: str
    files: Mapping[str, tuple[str, int]]

    def to_bytes(self) -> bytes:
        facts = {
            "format": FORMAT, "name": self.name, "version": self.version, "digest": self.digest,
            "created": self.created,
            "files": {name: {"sha256": sha, "size": size} for name, (sha, size) in self.files.items()},
        }  # fmt: skip
        return json.dumps(facts, indent=1, ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, raw: bytes, label: str) -> _Record:
        """Read a record that has exactly the form that `to_bytes` gives it.

        Raises
        ------
        SaveError, InvalidName
        """
        again = "Export the version again with nbdeploy.export_version."
        try:
            facts = json.loads(raw)
            number = facts["format"]
            if type(number) is int and number > FORMAT:
                msg = f"{label} has the format {number}; this nbdeploy knows {FORMAT}"
                raise SaveError(msg, "It was written by a newer nbdeploy: upgrade this one.")
            files = {name: (item["sha256"], item["size"]) for name, item in facts["files"].items()}
            record = cls(facts["name"], facts["version"], facts["digest"], facts["created"], files)
            canonical = record.to_bytes() == raw
        except NbdeployError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            msg = f"the {RECORD} in {label} is not one of ours: {type(error).__name__}: {error!s:.200}"
            raise SaveError(msg, again) from error
        if not canonical:  # a key twice, a key more, another order: nothing may depend on who reads it
            msg = f"the {RECORD} in {label} is not as nbdeploy writes it"
            raise SaveError(msg, again)
        _check_file_names(files, label)
        return record

    def __post_init__(self) -> None:
        check_name(self.name)
        shas = [self.digest, *(sha for sha, _ in self.files.values())]
        right = {
            "version": re.fullmatch(r"v[1-9][0-9]{0,17}", self.version),
            "created": datetime.fromisoformat(self.created).isoformat() == self.created and len(self.created) <= 40,
            "digest": all(re.fullmatch(r"[0-9a-f]{64}", sha) for sha in shas),
            "size": all(type(size) is int and 0 <= size < 1 << 60 for _, size in self.files.values()),
            "files": list(self.files) == sorted(self.files),
        }
        for what, fits in right.items():
            if not fits:
                msg = f"{what} is not as it must be"
                raise ValueError(msg)


def _check_file_names(names: Collection[str], label: str) -> None:
    """Raise `SaveError` unless every name may name a file of a version."""
    if len(names) > MAX_FILES:
        msg = f"{label} has {len(names)} files; {MAX_FILES} are allowed"
        raise SaveError(msg, "Let the model keep them in fewer files.")
    check_names(names, label)
    for name in names:
        parts = name.split("/")
        if parts[0].casefold() in LOCAL or "__pycache__" in parts:
            msg = f"{label} has a file named {name!r:.80}"
            raise SaveError(msg, "Files of that name are written here and taken from nowhere.")


def _take_in(file: IO[bytes], source: Path, name: str | None, digest: str | None) -> ModelVersion:
    label = source.name
    archive = Reader(file, label)
    record = _Record.from_bytes(archive.first(RECORD, MAX_RECORD), label)
    if digest is not None and record.digest != digest.lower():
        msg = f"{label} holds {record.name}:{record.version} with the digest {record.digest}, not {digest!r:.80}"
        raise SaveError(msg, "Get the file again from where the digest comes from.")
    if artifact.digest({item: sha for item, (sha, _) in record.files.items()}) != record.digest:
        msg = f"{label} states a digest that is not the one of its files"
        raise SaveError(msg, "Export the version again with nbdeploy.export_version.")
    total = os.fstat(file.fileno()).st_size
    sizes = [(RECORD, len(record.to_bytes())), *((FILES + item, size) for item, (_, size) in record.files.items())]
    if length(sizes) != total:
        msg = f"{label} has {total} bytes; what it lists takes {length(sizes)}"
        raise SaveError(msg, "It was cut short or changed: get it again.")
    name = check_name(record.name if name is None else name)
    with model_store.staging(name) as staging:
        free = shutil.disk_usage(staging).free
        if free < total:
            msg = f"{label} needs {total} bytes and {staging.parent} has {free}"
            raise SaveError(msg, "Make room, or set BENTOML_HOME to a larger disk.")
        for item, (sha, size) in record.files.items():
            wrong = SaveError(f"{item} in {label} does not match its SHA-256", "It was changed: get the file again.")
            _unpack(_hashed(archive.blocks(FILES + item, size), sha, wrong), staging / item)
        archive.finish()
        _check_content(staging, label)
        for known in model_store.versions(name):
            if known.digest == record.digest:
                return known
        return model_store.commit(_describe(staging, name, record))


def _describe(staging: Path, name: str, record: _Record) -> Staged:
    """The staged version under its number here, with the file that names that number."""
    number, own = next_number(name), int(record.version[1:])
    version = f"v{own if number <= own <= MAX_NUMBER else number}"
    service = model_store.service_source(name, version).encode()
    _unpack([service], staging / artifact.SERVICE)
    files = {item: sha for item, (sha, _) in record.files.items()}
    files[artifact.SERVICE] = hashlib.sha256(service).hexdigest()
    return Staged(name, version, staging, dict(sorted(files.items())), record.created)


def _check_content(staging: Path, label: str) -> None:
    """Raise `SaveError` unless the files are those of a version, as far as can be told without running anything."""
    for item in (artifact.MODEL, artifact.SIGNATURE, artifact.REFERENCE, artifact.EXPECTED, artifact.PROVENANCE):
        if not (staging / item).is_file():
            msg = f"{label} holds no {item}"
            raise SaveError(msg, "It is not a whole version.")
    item = artifact.SIGNATURE
    try:
        artifact.read_signature(staging)
        item = artifact.MODEL
        told = json.loads(model_store.bentoml_yaml("name", "v1", "", "", staging))  # how the model is stored
        dict(**told["options"])
    except Exception as error:
        msg = f"the {item} in {label} is not one of ours: {type(error).__name__}: {error!s:.200}"
        raise SaveError(msg, "It is not a whole version.") from error


def _unpack(blocks: Iterable[bytes], path: Path) -> None:
    private_folder(path.parent)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW  # never through or over what is there
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        for block in blocks:
            file.write(block)


@contextmanager
def _regular_file(path: Path) -> Iterator[IO[bytes]]:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe would wait for ever
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            msg = f"{path} is no file"
            raise SaveError(msg, "Pass a file that nbdeploy.export_version wrote.")
        yield file


# -- helpers ------------------------------------------------------------------------------------------------


def _changed(subject: ModelVersion, name: str) -> SaveError:
    return SaveError(
        f"{subject.tag} is not what was saved: {name} does not match its recorded SHA-256",
        "Save the model again; do not use this one.",
    )


def _taken(target: Path) -> SaveError:
    return SaveError(f"there is a file {target} already", "Pass overwrite=True to replace it, or another path=.")

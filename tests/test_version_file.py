"""A version travels as one file: the same version arrives, or nothing does, whatever the file is."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import nbdeploy
from nbdeploy import artifact, model_store
from nbdeploy import home as places
from nbdeploy.strict_zip import Reader, Writer
from nbdeploy.version_file import FILES, RECORD, SUFFIX, export_version, import_version

X = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": ["x", "y", "z"]})


class Doubler:
    """Learns nothing and doubles the first column."""

    def predict(self, X):
        return X.iloc[:, 0].to_numpy() * 2


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__), prepend=os.pathsep)  # fresh processes find Doubler here


@pytest.fixture
def another_machine(home, monkeypatch):
    """A function after which nothing is saved here: the homes are others."""

    def move() -> None:
        monkeypatch.setenv("NBDEPLOY_HOME", str(home.parent / "other-home"))
        monkeypatch.setenv("BENTOML_HOME", str(home.parent / "other-bentoml"))

    return move


def save(name="doubler", **extra_files: bytes):
    """A version without a rehearsal, in a twentieth of the time."""
    with model_store.stage(Doubler(), name, X) as staged:
        for file, content in extra_files.items():
            (staged.folder / file).write_bytes(content)
        if extra_files:
            return model_store.commit(dataclasses.replace(staged, files=artifact.manifest(staged.folder)))
        return model_store.commit(staged)


def contents(version) -> dict[str, bytes]:
    return {
        str(path.relative_to(version.path)): path.read_bytes() for path in version.path.rglob("*") if path.is_file()
    }


def everything_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if "/locks/" not in str(path)
    }


def nothing_was_imported(name="doubler"):
    staging = places.bentoml_home() / "nbdeploy-staging"
    return (
        model_store.names() == []
        and not any(staging.glob("*"))
        and not (places.bentoml_home() / "models").exists()
        and not any((places.home() / "versions").glob("*"))
    )


# Out and in again


def test_a_version_arrives_elsewhere_as_it_was(another_machine):
    save()
    sent = save()
    path = nbdeploy.export_version("doubler")
    another_machine()

    version = nbdeploy.import_version(path)

    assert (version.tag, version.digest, version.created) == (sent.tag, sent.digest, sent.created)
    assert contents(version) == contents(sent)
    assert version.files == sent.files
    assert version.path != sent.path
    pd.testing.assert_frame_equal(version.reference, X)
    assert artifact.load(version.path, version.files).outputs(X)["prediction"].tolist() == [2, 4, 6]


def test_an_imported_version_is_served(another_machine):
    path = export_version(save().name)
    another_machine()
    import_version(path, "elsewhere")

    service = nbdeploy.serve("elsewhere", progress=False)

    assert (service.name, service.version) == ("elsewhere", "v1")
    assert nbdeploy.predict("elsewhere", X)["prediction"].tolist() == [2, 4, 6]
    nbdeploy.stop("elsewhere")


def test_the_file_is_an_ordinary_private_zip_with_the_same_bytes_each_time(tmp_path):
    version = save()

    first, second = export_version("doubler"), export_version("doubler", "v1", tmp_path / "again.zip")

    assert first == tmp_path / f"doubler-v1{SUFFIX}"
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(first) as archive:
        assert archive.testzip() is None
        files = {name.removeprefix(FILES) for name in archive.namelist()} - {RECORD}
        facts = json.loads(archive.read(RECORD))
    assert files == set(facts["files"]) == set(version.files) - {artifact.SERVICE}
    assert facts["digest"] == version.digest


def test_a_version_keeps_its_number_where_that_is_free_and_higher_than_all(another_machine):
    save(), save()
    path = export_version("doubler", "v2")
    another_machine()

    assert import_version(path).version == "v2"
    assert save().version == "v3"
    assert import_version(path, "other").version == "v2"


def test_a_version_gets_the_next_number_where_its_own_is_taken(another_machine):
    path = export_version(save().name)
    another_machine()
    mine = save(note=b"not the same")

    imported = import_version(path)

    assert imported.version == "v2"
    assert imported.digest != mine.digest
    assert artifact.load(imported.path, imported.files)
    assert f'tag = app, "{imported.tag}"' in (imported.path / artifact.SERVICE).read_text()
    assert (imported.path.parent / "latest").read_text() == "v2"


def test_a_file_cannot_use_up_the_numbers():
    path = rebuilt(export_version(save().name), lambda facts, _: facts.update(version="v" + "9" * 18))

    assert import_version(path, "other").version == "v1"


def test_importing_twice_gives_the_version_that_is_there():
    saved = save()
    path = export_version("doubler")

    assert import_version(path) == saved
    assert import_version(path, "other") == import_version(path, "other")
    assert [version.version for version in nbdeploy.versions("doubler")] == ["v1"]


def test_the_digest_can_be_demanded(another_machine):
    saved = save()
    path = export_version("doubler")
    another_machine()

    with pytest.raises(nbdeploy.SaveError, match=r"with the digest .*, not '0000"):
        import_version(path, digest="0" * 64)
    assert nothing_was_imported()
    assert import_version(path, digest=saved.digest).digest == saved.digest


def test_what_is_imported_is_private_under_any_umask(another_machine):
    path = export_version(save().name)
    another_machine()
    before = os.umask(0)
    try:
        version = import_version(path)
    finally:
        os.umask(before)

    for found in [places.home(), *places.home().rglob("*"), places.bentoml_home(), *version.path.parent.rglob("*")]:
        assert found.stat().st_mode & 0o077 == 0, found


def test_an_import_runs_nothing_of_the_model(tmp_path):
    class Canary:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    import cloudpickle

    def put_everywhere(_, files):
        pickles = [name for name in files if name.endswith(".pkl")]
        assert pickles
        files.update(dict.fromkeys([*pickles, "code/evil.py", "wheels/evil.whl"], cloudpickle.dumps(Canary())))

    import_version(rebuilt(export_version(save().name), put_everywhere), "other")

    assert not (tmp_path / "ran").exists()


def test_a_file_in_place_is_replaced_only_when_told(tmp_path):
    save()
    path = export_version("doubler", path=tmp_path)
    path.write_text("mine")

    with pytest.raises(nbdeploy.SaveError, match=r"there is a file .* overwrite=True"):
        export_version("doubler")
    assert path.read_text() == "mine"

    assert zipfile.is_zipfile(export_version("doubler", overwrite=True))
    assert os.listdir(tmp_path) == [path.name]


def test_a_damaged_version_is_not_exported(tmp_path):
    version = save()
    for name in set(version.files) - {artifact.SERVICE}:
        whole = (version.path / name).read_bytes()
        (version.path / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(nbdeploy.SaveError, match=f"doubler:v1 is not what was saved: {name}"):
            export_version("doubler")
        (version.path / name).unlink()
        with pytest.raises(nbdeploy.SaveError, match=f"doubler:v1 is not what was saved: {name}"):
            export_version("doubler")
        (version.path / name).write_bytes(whole)

    assert os.listdir(tmp_path) == []
    assert export_version("doubler").is_file()


def test_what_cannot_be_written_is_one_line(tmp_path):
    save()

    with pytest.raises(nbdeploy.SaveError, match=r"doubler:v1 cannot be written to .*: No such file or directory"):
        export_version("doubler", path=tmp_path / "missing" / "file.zip")
    with pytest.raises(nbdeploy.NotFound, match="Did you mean 'doubler'"):
        export_version("dubler")


def test_the_rest_of_a_killed_export_is_swept(tmp_path):
    save()
    (tmp_path / f".doubler-v1{SUFFIX}.abc.part").write_text("half")

    assert os.listdir(tmp_path / export_version("doubler").parent) == [f"doubler-v1{SUFFIX}"]


def test_a_large_version_needs_no_memory(another_machine):
    size = 48 << 20
    sent = save(weights=os.urandom(size))
    tracemalloc.start()
    try:
        path = export_version("doubler")
        another_machine()
        tracemalloc.reset_peak()
        version = import_version(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < size / 4
    assert (version.path / "weights").stat().st_size == size
    assert version.digest == sent.digest


@pytest.mark.slow
def test_a_member_and_an_offset_beyond_4_gib_are_read_back_and_by_other_tools(tmp_path):
    class Sparse(io.FileIO):
        def write(self, data):
            if len(data) < 1 << 20:
                return super().write(data)
            self.seek(len(data), os.SEEK_CUR)
            return len(data)

    size, zeros = (1 << 32) + (3 << 20), bytes(1 << 20)
    with Sparse(tmp_path / "large.zip", "w") as file:
        writer = Writer(file)
        writer.add("large", size, (zeros for _ in range(size >> 20)))
        writer.add("small", 3, [b"abc"])
        writer.finish()

    with (tmp_path / "large.zip").open("rb") as file:
        reader = Reader(file, "large.zip")
        assert sum(map(len, reader.blocks("large", size))) == size
        assert b"".join(reader.blocks("small", 3)) == b"abc"
        reader.finish()
    with zipfile.ZipFile(tmp_path / "large.zip") as archive:
        assert [info.file_size for info in archive.infolist()] == [size, 3]
        assert archive.read("small") == b"abc"


# What is not such a file


def read(path: Path) -> tuple[dict, dict[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        facts = json.loads(archive.read(RECORD))
        return facts, {name.removeprefix(FILES): archive.read(name) for name in archive.namelist() if name != RECORD}


def rebuilt(path: Path, change=lambda facts, files: None, *, lie=lambda facts, files: None, record=None) -> Path:
    """The file again, in the right form: `change` before digests and sizes are made right, `lie` after."""
    facts, files = read(path)
    change(facts, files)
    ordered = sorted(files.items())
    files.clear()
    files.update(ordered)
    facts["files"] = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)} for name, content in files.items()
    }
    facts["digest"] = artifact.digest({name: item["sha256"] for name, item in facts["files"].items()})
    lie(facts, files)
    raw = json.dumps(facts, indent=1, ensure_ascii=False).encode(errors="surrogatepass")
    raw = record(raw) if record else raw
    target = path.with_name("hostile.zip")
    with target.open("wb") as file:
        writer = Writer(file)
        writer.add(RECORD, len(raw), [raw])
        for name, content in files.items():
            writer.add(FILES + name, len(content), [content])
        writer.finish()
    return target


def with_file(name, content=b"evil"):
    return lambda path: rebuilt(path, lambda _, files: files.update({name: content}))


def with_fact(**facts):
    return lambda path: rebuilt(path, lie=lambda found, _: found.update(facts))


def with_lie(**about):
    """What the record says about the model's file is not so."""
    return lambda path: rebuilt(path, lie=lambda facts, _: facts["files"][artifact.MODEL].update(about))


def without(name):
    return lambda path: rebuilt(path, lambda _, files: files.pop(name))


def with_record(change):
    return lambda path: rebuilt(path, record=change)


def zipped(path: Path, **options) -> zipfile.ZipFile:
    return zipfile.ZipFile(path.with_name("hostile.zip"), "w", **options)


def rezipped(compression=zipfile.ZIP_STORED, more=lambda archive: None, name=lambda name: name):
    """The same content, as other tools would write it."""

    def build(path: Path) -> Path:
        with zipfile.ZipFile(path) as old, zipped(path, compression=compression) as new:
            for info in old.infolist():
                new.writestr(name(info.filename), old.read(info), compress_type=compression)
            more(new)
        return path.with_name("hostile.zip")

    return build


def with_link(archive):
    info = zipfile.ZipInfo(FILES + "link")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    archive.writestr(info, "/etc/passwd")


def with_directory(change):
    """Other bytes in the directory at the end than in the headers."""

    def build(path: Path) -> Path:
        raw = path.read_bytes()
        start = raw.index(b"PK\1\2")
        path.write_bytes(raw[:start] + change(raw[start:]))
        return path

    return build


def with_bytes(change):
    def build(path: Path) -> Path:
        path.write_bytes(change(path.read_bytes()))
        return path

    return build


def with_only(make):
    def build(path: Path) -> Path:
        target = path.with_name("hostile.zip")
        make(target)
        return target

    return build


def patched(raw: bytes, at: int, piece: bytes, mark: bytes = b"PK\3\4") -> bytes:
    """Other bytes in the header of the second member."""
    start = raw.index(mark, raw.index(mark) + 1) + at
    return raw[:start] + piece + raw[start + len(piece) :]


def lie_about_the_model(facts, _):
    facts["files"][artifact.MODEL]["sha256"] = "0" * 64
    facts["digest"] = artifact.digest({name: item["sha256"] for name, item in facts["files"].items()})


def bomb(path: Path) -> None:
    facts = {
        "format": 1,
        "name": "doubler",
        "version": "v1",
        "digest": "0" * 64,
        "created": "2026-01-01T00:00:00+00:00",
    }
    size = 64 << 20
    facts["files"] = {"model.pkl": {"sha256": "0" * 64, "size": size}}
    facts["digest"] = artifact.digest({"model.pkl": "0" * 64})
    with zipped(path, compression=zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(RECORD, json.dumps(facts, indent=1), compress_type=zipfile.ZIP_STORED)
        archive.writestr(FILES + "model.pkl", bytes(size))


HOSTILE = {
    "an absolute path": with_file("/tmp/evil"),
    "a path upwards": with_file("../../evil"),
    "a path upwards from below": with_file("a/../../../evil"),
    "a path that stays": with_file("./evil"),
    "an empty part": with_file("a//evil"),
    "a backslash": with_file("..\\evil"),
    "a drive": with_file("C:evil"),
    "a NUL": with_file("evil\0.pkl"),
    "a newline": with_file("evil\n.pkl"),
    "a mark that turns text around": with_file("lkp.\u202eevil"),
    "no name": with_file(""),
    "a long name": with_file("a" * 256),
    "folders without end": with_file("a/" * 17 + "evil"),
    "two cases of one name": with_file(artifact.MODEL.upper()),
    "two cases of one folder": lambda path: rebuilt(path, lambda _, files: files.update({"a/b": b"", "A/c": b""})),
    "two forms of one name": lambda path: rebuilt(path, lambda _, files: files.update({"\xe9": b"", "e\u0301": b""})),
    "a file as a folder": with_file(f"{artifact.MODEL}/evil"),
    "a service of its own": with_file(artifact.SERVICE),
    "a description of its own": with_file(artifact.BENTOML_FILE),
    "a service in other letters": with_file("Service.PY"),
    "a service that is a folder": with_file(f"{artifact.SERVICE}/evil"),
    "a card of its own": with_file("card.html", b"<script>alert(1)</script>"),
    "compiled code": with_file("__pycache__/service.cpython-311.pyc"),
    "too many files": lambda path: rebuilt(path, lambda _, files: files.update({f"f{i}": b"" for i in range(10_001)})),
    "no signature": without(artifact.SIGNATURE),
    "no sample": without(artifact.REFERENCE),
    "a model of no known kind": with_file(artifact.MODEL, b'{"framework": ["evil"], "facts": 7}'),
    "a model with options that are none": with_file(artifact.MODEL, b'{"facts": {"bentoml": 7}}'),
    "a model that is a list": with_file(artifact.MODEL, b"[1]"),
    "a signature that is none": with_file(artifact.SIGNATURE, b"[1]"),
    "a signature that is no JSON": with_file(artifact.SIGNATURE, b"\xff"),
    "a name that is a path": with_fact(name="../evil"),
    "a name of another type": with_fact(name=7),
    "a version that is a path": with_fact(version="v1/../../evil"),
    "a version of zero": with_fact(version="v0"),
    "a version of another type": with_fact(version=["v1"]),
    "a time that is markup": with_fact(created="<script>alert(1)</script>"),
    "a digest of something else": with_fact(digest="0" * 64),
    "a digest that is none": with_fact(digest="../evil"),
    "files that are a list": with_fact(files=[]),
    "no files": with_fact(files={}),
    "a newer format": with_fact(format=2),
    "an older format": with_fact(format=0),
    "one fact more": with_fact(run="evil"),
    "a wrong SHA-256": with_lie(sha256="0" * 64),
    "another SHA-256 and its digest": lambda path: rebuilt(path, lie=lie_about_the_model),
    "a size below the real one": with_lie(size=3),
    "a size beyond the file": with_lie(size=1 << 50),
    "a size below zero": with_lie(size=-1),
    "a size that is no whole number": with_lie(size=1e999),
    "a file that is listed twice": with_record(
        lambda raw: raw.replace(b'"files": {', b'"files": {"a": 1}, "files": {')
    ),
    "a number of 10,000 digits": with_record(lambda raw: raw.replace(b'"format": 1', b'"format": ' + b"1" * 10_000)),
    "a record without end": with_record(lambda raw: b"[" * 100_000),
    "a record of 9 MiB": with_record(lambda raw: raw + b" " * (9 << 20)),
    "a record in UTF-16": with_record(lambda raw: raw.decode().encode("utf-16")),
    "a record that is a string": with_record(lambda raw: b'"evil"'),
    "a file that is not listed": lambda path: rebuilt(path, lie=lambda _, files: files.update(more=b"evil")),
    "a listed file that is missing": lambda path: rebuilt(path, lie=lambda _, files: files.pop(artifact.MODEL)),
    "another order": lambda path: rebuilt(
        path, lie=lambda facts, files: files.update({artifact.MODEL: files.pop(artifact.MODEL)})
    ),
    "a link": rezipped(more=with_link),
    "compressed files": rezipped(zipfile.ZIP_DEFLATED),
    "an unusual compression": rezipped(zipfile.ZIP_LZMA),
    "a bomb": with_only(bomb),
    "a second file of one name": rezipped(more=lambda archive: archive.writestr(f"{FILES}more", b"")),
    "names in the zip only": rezipped(name=lambda name: name.replace(FILES, "../")),
    "another name in the directory": with_directory(lambda raw: raw.replace(b"model", b"evil.")),
    "another size in the directory": with_directory(lambda raw: raw[:24] + struct.pack("<L", 7) + raw[28:]),
    "a link in the directory": with_directory(lambda raw: raw[:38] + struct.pack("<L", 0o120777 << 16) + raw[42:]),
    "an encrypted file": with_bytes(lambda raw: raw[:6] + struct.pack("<H", 0x801) + raw[8:]),
    "one compressed file": with_bytes(lambda raw: patched(raw, 8, struct.pack("<H", 8))),
    "one file whose size comes behind it": with_bytes(lambda raw: patched(raw, 6, struct.pack("<H", 0x808))),
    "one link": with_bytes(lambda raw: patched(raw, 38, struct.pack("<L", 0o120777 << 16), b"PK\1\2")),
    "one file of another name": with_bytes(lambda raw: patched(raw, 30, b"../..")),
    "a checksum of something else": with_bytes(lambda raw: raw[:14] + b"evil" + raw[18:]),
    "no directory": with_bytes(lambda raw: raw[: raw.index(b"PK\1\2")]),
    "something before": with_bytes(lambda raw: b"#!/bin/sh\n" + raw),
    "something behind": with_bytes(lambda raw: raw + b"evil"),
    "a comment": with_bytes(lambda raw: raw[:-2] + b"\4\0evil"),
    "half of it": with_bytes(lambda raw: raw[: len(raw) // 2]),
    "all but its last byte": with_bytes(lambda raw: raw[:-1]),
    "its first 29 bytes": with_bytes(lambda raw: raw[:29]),
    "nothing": with_bytes(lambda raw: b""),
    "text": with_bytes(lambda raw: b"hello\n" * 100),
    "a folder": with_only(Path.mkdir),
    "a pipe": with_only(os.mkfifo),
    "no file": with_only(lambda path: None),
}


@pytest.mark.parametrize("build", HOSTILE.values(), ids=[name.replace(" ", "-") for name in HOSTILE])
def test_what_is_no_such_file_is_refused_and_leaves_nothing(build, home, tmp_path, another_machine):
    path = build(export_version(save().name))
    another_machine()
    places.home()
    before = everything_below(tmp_path), everything_below(home.parent)

    with pytest.raises(nbdeploy.NbdeployError) as refused:
        import_version(path)

    assert "\n" not in str(refused.value)
    assert nothing_was_imported()
    written = set(everything_below(home.parent)) - set(before[1])
    assert all(Path(name).is_dir() and "evil" not in name for name in written), written
    assert everything_below(tmp_path) == before[0]


def check_mutants(home: Path, tmp_path: Path, examples: int) -> None:
    """Change a valid file at random: what comes out is the same version, or an error and nothing."""
    saved = save()
    whole = export_version("doubler").read_bytes()
    shutil.rmtree(saved.path.parent)
    shutil.rmtree(places.home() / "versions")
    path = tmp_path / "mutant.zip"
    files_of = {name: sha for name, sha in saved.files.items() if name != artifact.SERVICE}
    spots = st.integers(0, len(whole) - 1) | st.sampled_from(
        [found for mark in (b"PK", b"files/", b'"', b".") for found in _all_of(whole, mark)]
    )
    pieces = st.binary(max_size=8) | st.sampled_from(
        [
            b"\xff\xff\xff\xff",
            b"\0\0\0\0",
            b"PK\3\4",
            b"PK\1\2",
            b"PK\5\6",
            b"PK\6\6",
            b"../",
            b"/",
            b"\\",
            b"v2",
            b"\0",
        ]
    )
    change = st.tuples(st.sampled_from(["put", "insert", "cut", "copy"]), spots, pieces, st.integers(1, 64))

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(change, min_size=1, max_size=4))
    @example([("put", 0, b"PK", 1)])  # which is there already
    def each(changes):
        raw = whole
        for kind, at, piece, length in changes:
            raw = {
                "put": lambda r, a=at, p=piece: r[:a] + p + r[a + len(p) :],
                "insert": lambda r, a=at, p=piece: r[:a] + p + r[a:],
                "cut": lambda r, a=at, n=length: r[:a] + r[a + n :],
                "copy": lambda r, a=at, n=length: r[:a] + r[a : a + n] + r[a:],
            }[kind](raw)
        path.write_bytes(raw)
        try:
            version = import_version(path)
        except nbdeploy.NbdeployError:
            version = None
            assert nothing_was_imported() or model_store.names() == ["doubler"]
        assert version is not None or raw != whole
        if version is not None:
            assert version.digest == saved.digest
            assert {
                name: hashlib.sha256((version.path / name).read_bytes()).hexdigest() for name in files_of
            } == files_of
        assert sorted(os.listdir(tmp_path)) == ["doubler-v1.nbdeploy.zip", "mutant.zip"]
        assert {entry.name for entry in home.parent.iterdir()} <= {"home", "bentoml"}

    each()


def _all_of(whole: bytes, mark: bytes) -> list[int]:
    return [i for i in range(len(whole)) if whole.startswith(mark, i)]


def test_a_changed_file_is_the_same_version_or_an_error(home, tmp_path):
    check_mutants(home, tmp_path, 100)


@pytest.mark.slow
def test_a_changed_file_is_the_same_version_or_an_error_2000_times(home, tmp_path):
    check_mutants(home, tmp_path, 2000)


def check_names(home: Path, tmp_path: Path, examples: int) -> None:
    """Files of any name, in a file that is right otherwise: they are in the version's folder, or nowhere."""
    path = export_version(save().name)
    parts = st.sampled_from(["a", "A", ".", "..", "", "C:", "model.pkl", "service.py", "~", "x y", "\0"])
    part = parts | st.text(st.characters(exclude_categories=()), max_size=6)
    names = st.lists(part, min_size=1, max_size=5).map("/".join)

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(names, min_size=1, max_size=3))
    def each(names):
        try:
            hostile = rebuilt(path, lambda _, files: files.update(dict.fromkeys(names, b"data")))
        except UnicodeEncodeError:  # a lone surrogate: no zip can name it
            return
        before = everything_below(home.parent)
        try:
            version = import_version(hostile, "other")
        except nbdeploy.NbdeployError:
            assert everything_below(home.parent) == before
        else:
            assert set(names) <= contents(version).keys()
        inside = f"{places.bentoml_home()}/models/other/", f"{places.home()}/versions/other"
        for found in set(everything_below(home.parent)) - set(before):
            assert found.startswith(inside) or found + "/" in inside, found
        assert sorted(os.listdir(tmp_path)) == ["doubler-v1.nbdeploy.zip", "hostile.zip"]
        for folder in inside:
            shutil.rmtree(folder, ignore_errors=True)

    import_version(path, "other")
    each()


def test_a_file_of_any_name_stays_inside(home, tmp_path):
    check_names(home, tmp_path, 100)


@pytest.mark.slow
def test_a_file_of_any_name_stays_inside_2000_times(home, tmp_path):
    check_names(home, tmp_path, 2000)

"""What was acknowledged is there, whole, whatever happens; and what was changed is never loaded."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest

import nbdeploy
from nbdeploy import artifact, model_store
from nbdeploy import home as places
from nbdeploy.version_file import import_version

X = pd.DataFrame({"a": [1.0, 2.0, 3.0]})
HERE = os.path.dirname(__file__)


class Doubler:
    """Learns nothing and doubles the first column."""

    def predict(self, X):
        return X.iloc[:, 0].to_numpy() * 2


class Heavy(Doubler):
    """Answers by what it carries; in the midst of loading it comes a `Moment`."""

    def __init__(self):
        self.moment = Moment()
        self.weights = os.urandom(4 << 20)

    def predict(self, X):
        return X.iloc[:, 0].to_numpy() * 0 + zlib.crc32(self.weights)


class Moment:
    def __reduce__(self):
        return (_moment, ())


def _moment():
    # By the environment: it is another copy of this module where a version carries its code.
    if path := os.environ.get("TEST_SWAP_FILE"):
        SWAPS[os.environ["TEST_SWAP"]](Path(path))
    return Moment()


class Canary:
    """Makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.makedirs, (self.path, 0o777, True))


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", HERE, prepend=os.pathsep)


def save(model=None, name="doubler"):
    """A version without a rehearsal, in a twentieth of the time."""
    with model_store.stage(model or Doubler(), name, X) as staged:
        return model_store.commit(staged)


def answers(version) -> list[float]:
    return artifact.load(version.path, version.files).outputs(X)["prediction"].tolist()


# P5: only what was saved is loaded


def flip_bytes(times: int) -> None:
    version = save()
    chance = random.Random(5)
    files = sorted(version.files)
    for i in range(times):
        path = version.path / files[i % len(files)]
        whole = path.read_bytes()
        at = chance.randrange(len(whole)) if i >= len(files) else len(whole) - 1
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << chance.randrange(8))]) + whole[at + 1 :])
        with pytest.raises(nbdeploy.SaveError, match=re.escape(path.name)):
            artifact.load(version.path, version.files)
        path.write_bytes(whole)
    assert answers(version) == [2, 4, 6]


def test_a_version_with_a_changed_byte_in_any_file_is_not_loaded():
    flip_bytes(40)


@pytest.mark.slow
def test_a_version_with_a_changed_byte_in_any_file_is_not_loaded_200_times():
    flip_bytes(200)


@pytest.mark.parametrize("change", ["missing", "longer", "shorter", "empty", "a folder", "of another version"])
def test_a_version_whose_files_are_others_is_not_loaded(change):
    version, other = save(), save(Heavy())
    for name in version.files:
        path = version.path / name
        whole = path.read_bytes()
        path.unlink()
        if change == "a folder":
            path.mkdir()
        elif change != "missing":
            news = {
                "longer": whole + b"\n",
                "shorter": whole[:-1],
                "empty": b"",
                "of another version": b"#" + (other.path / name).read_bytes(),
            }
            path.write_bytes(news[change])
        with pytest.raises(nbdeploy.SaveError):
            artifact.load(version.path, version.files)
        path.rmdir() if change == "a folder" else path.unlink(missing_ok=True)
        path.write_bytes(whole)
    assert answers(version) == [2, 4, 6]


def model_file(version) -> Path:
    """The largest file of a version of `Heavy`: its model."""
    return max((version.path / name for name in version.files), key=lambda path: path.stat().st_size)


def in_place(path, content):
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()


def by_rename(path, content):
    new = path.with_name("new")
    new.write_bytes(content)
    os.replace(new, path)


SWAPS = {
    "overwritten": lambda path: in_place(path, bytes(path.stat().st_size)),
    "cut": lambda path: os.truncate(path, 100),
    "replaced": lambda path: by_rename(path, bytes(path.stat().st_size)),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("swap", SWAPS)
def test_what_happens_to_the_model_while_it_is_unpickled_changes_nothing(swap, monkeypatch):
    model = Heavy()
    version = save(model)
    path = model_file(version)
    whole = path.read_bytes()
    monkeypatch.setenv("TEST_SWAP", swap)
    monkeypatch.setenv("TEST_SWAP_FILE", str(path))

    assert answers(version) == [zlib.crc32(model.weights)] * 3

    changed = not path.exists() or path.read_bytes() != whole
    assert changed


SWAPPER = """
import os, sys
path, good, evil, how = sys.argv[1:]
contents = [open(evil, "rb").read(), open(good, "rb").read()]
print("swapping", flush=True)
while True:
    for content in contents:
        if how == "replaced":
            with open(path + ".new", "wb") as file:
                file.write(content)
            os.replace(path + ".new", path)
        else:
            with open(path, "r+b") as file:
                file.write(content)
                file.truncate()
"""


def swap_during_loads(tmp_path: Path, how: str, refusals: int) -> None:
    """Load while another process swaps the model's file all the time, until so many loads were refused."""
    import cloudpickle

    model = Heavy()
    right = [zlib.crc32(model.weights)] * 3
    version = save(model)
    path = model_file(version)
    good, evil = tmp_path / "good", tmp_path / "evil"
    shutil.copyfile(path, good)
    evil.write_bytes(cloudpickle.dumps([Canary(tmp_path / "ran"), os.urandom(4 << 20)]))
    command = [sys.executable, "-c", SWAPPER, str(path), str(good), str(evil), how]
    swapper = subprocess.Popen(command, stdout=subprocess.PIPE)
    refused = loaded = 0
    try:
        assert swapper.stdout.readline() == b"swapping\n"
        deadline = time.monotonic() + 120
        while refused < refusals and time.monotonic() < deadline:
            try:
                assert answers(version) == right
                loaded += 1
            except nbdeploy.SaveError:
                refused += 1
            assert not (tmp_path / "ran").exists()
    finally:
        swapper.kill()
        swapper.wait()
        swapper.stdout.close()
    assert refused == refusals, (refused, loaded)
    by_rename(path, good.read_bytes())
    assert answers(version) == right


@pytest.mark.parametrize("how", ["overwritten", "replaced"])
def test_a_model_that_is_swapped_during_the_load_is_the_recorded_one_or_refused(tmp_path, how):
    swap_during_loads(tmp_path, how, 10)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["overwritten", "replaced"])
def test_a_model_that_is_swapped_during_the_load_is_the_recorded_one_or_refused_100_times(tmp_path, how):
    swap_during_loads(tmp_path, how, 100)


# P24: one after the other


def _save_some(direct: int, real: int) -> list[str]:
    saved = [save().version for _ in range(direct)]
    return saved + [nbdeploy.save(Doubler(), "doubler", X, progress=False).version for _ in range(real)]


def save_at_once(processes: int, direct: int, real: int) -> None:
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        saved = pool.starmap(_save_some, [(direct, real)] * processes, chunksize=1)

    count = processes * (direct + real)
    assert sorted(int(version[1:]) for some in saved for version in some) == list(range(1, count + 1))
    assert all(some == sorted(some, key=lambda version: int(version[1:])) for some in saved)
    assert len(nbdeploy.versions("doubler")) == count
    for version in nbdeploy.versions("doubler"):
        assert artifact.manifest(version.path) == dict(version.files)
    assert (places.bentoml_home() / "models" / "doubler" / "latest").read_text() == f"v{count}"


def test_processes_that_save_at_once_get_different_numbers():
    save_at_once(4, 4, 1)


@pytest.mark.slow
def test_8_processes_that_save_50_times_at_once_get_400_numbers():
    save_at_once(8, 50, 0)


# P25: killed at any call

CALLS = {
    "rename": "?rename,?renameat,?renameat2",
    "unlink": "?unlink,?unlinkat,?rmdir",
    "mkdir": "?mkdir,?mkdirat",
    "link": "?link,?linkat",
    "fsync": "fsync",
    "write": "write",
    "openat": "?open,openat",
}


@pytest.fixture
def crash(tmp_path) -> Iterator[Callable[..., bool]]:
    """``crash(call, n)`` does the work of crashing.py, kills it at that call, checks what is left; False if it lived."""
    if sys.platform != "linux":
        pytest.skip("strace is for Linux")
    traced = ["strace", "-qq", "-o", os.devnull, "true"]
    if shutil.which("strace") is None or subprocess.run(traced, check=False).returncode:
        assert not os.environ.get("CI"), "continuous integration needs strace, and leave to trace"
        pytest.skip("needs strace (apt-get install strace) and leave to trace")
    worker = subprocess.Popen(
        [sys.executable, os.path.join(HERE, "crashing.py")], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    runs = iter(range(1_000_000))

    def kill_at(call: str, n: int) -> bool:
        folder = tmp_path / f"{call}-{n}-{next(runs)}"
        folder.mkdir()
        print(folder, file=worker.stdin, flush=True)
        wait_for((folder / "ready").exists)
        options = ["-qq", "-e", f"trace={CALLS[call]}", "-e", f"inject={CALLS[call]}:signal=SIGKILL:when={n}"]
        pid = int((folder / "ready").read_text())
        tracer = subprocess.Popen(["strace", *options, "-o", folder / "trace", "-p", str(pid)])
        wait_for(lambda: f"TracerPid:\t{tracer.pid}\n" in Path(f"/proc/{pid}/status").read_text())
        (folder / "go").touch()
        ended = int(worker.stdout.readline())
        tracer.wait(10)
        assert ended in (0, signal.SIGKILL), (call, n)
        check_what_is_left(folder, completed=ended == 0)
        shutil.rmtree(folder)
        return ended != 0

    yield kill_at
    worker.stdin.close()
    worker.wait(10)
    worker.stdout.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def check_what_is_left(folder: Path, *, completed: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NBDEPLOY_HOME", str(folder / "home"))
        patch.setenv("BENTOML_HOME", str(folder / "bentoml"))
        said = (folder / "said").read_text().splitlines()
        done: dict[str, list[str]] = {"saved": [], "removing": [], "removed": [], "exported": []}
        for line in said:
            verb, what = line.split()
            done[verb].append(what)
        assert len(said) == 6 + 0 if completed else len(said) <= 6, said
        listed = [version.version for version in nbdeploy.versions("doubler")]
        assert set(done["saved"]) - set(done["removing"]) <= set(listed), (said, listed)
        assert not set(done["removed"]) & set(listed)
        for version in nbdeploy.versions("doubler"):
            assert artifact.manifest(version.path) == dict(version.files)
            assert artifact.load(version.path, version.files).outputs(X)["prediction"].tolist() == [2, 4, 6]
        exported = [path for path in (folder / "out").glob("*") if not path.name.startswith(".")]
        assert {path.name for path in exported} >= set(done["exported"])
        following = save()
        assert following.number > max((int(v[1:]) for v in [*listed, *done["saved"], *done["removed"]]), default=0)
        assert (following.path.parent / "latest").read_text() == following.version
        assert not any((places.bentoml_home() / "nbdeploy-staging").iterdir())
        for path in exported:
            assert import_version(path, "other").version == "v1"
        assert [version.version for version in nbdeploy.versions("doubler")] == [following.version, *listed]


def test_a_process_that_is_killed_loses_and_tears_nothing(crash):
    for call, step in (
        ("rename", 1),
        ("mkdir", 4),
        ("link", 1),
        ("unlink", 4),
        ("fsync", 8),
        ("write", 12),
        ("openat", 24),
    ):
        n = 1
        while crash(call, n):
            n += step
        assert n > 1, call


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("call", CALLS)
def test_a_process_that_is_killed_at_any_call_loses_and_tears_nothing(crash, call):
    n = 1
    while crash(call, n):
        n += 1
    assert n > 1
    print(f"killed at each of {n - 1} calls of {call}")


INTERRUPTED = """
import os, signal, sys, threading, time
import pandas as pd, nbdeploy
from test_integrity import Doubler, X

nbdeploy.save(Doubler(), "doubler", X, progress=False)
print("ready", flush=True)
for moment in map(float, sys.argv[1:]):
    timer = threading.Timer(moment, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        nbdeploy.save(Doubler(), "doubler", X, progress=False)
        while timer.is_alive():
            time.sleep(0.01)
        time.sleep(0.1)
        print("late", flush=True)
    except KeyboardInterrupt:
        print("interrupted", [version.version for version in nbdeploy.versions("doubler")], flush=True)
"""


def interrupt(moments: list[float]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *map(str, moments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    # Python drops an interrupt that comes within a destructor: that save goes on to its end.
    assert out.count("interrupted") + out.count("late") == len(moments), (out, errors)
    assert out.count("interrupted") > len(moments) // 2, (out, errors)
    deadline = time.monotonic() + 5
    while left := [words for words in our_processes() if "nbdeploy.bento" not in words]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    staging = places.bentoml_home() / "nbdeploy-staging"
    assert not any(staging.iterdir())
    assert not any((places.home() / "run").glob("rehearsal-*"))
    stored = {path.name for path in (places.bentoml_home() / "models" / "doubler").glob("v*")}
    assert stored == {version.version for version in nbdeploy.versions("doubler")}
    for version in nbdeploy.versions("doubler"):
        assert artifact.manifest(version.path) == dict(version.files)
    following = save()
    assert following.number > max(int(name[1:]) for name in stored)


def our_processes() -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("NBDEPLOY_HOME") == str(places.home()):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def test_an_interrupted_save_leaves_nothing_half_done():
    interrupt([0.01, 0.1, 0.6, 1.2])


@pytest.mark.slow
def test_a_save_interrupted_at_any_moment_leaves_nothing_half_done():
    interrupt([i / 40 for i in range(60)])

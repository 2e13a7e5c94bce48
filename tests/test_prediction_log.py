"""What was answered is in the log: whole, once, typed, within its bounds, whatever is killed, full or wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from log_processes import NAME, SIGNATURE, TRAINING, entry, whole, writer
from nbdeploy import log_keeping, prediction_log
from nbdeploy.answers import Output
from nbdeploy.log_clock import DAY, LogClock, Moment, advance
from nbdeploy.log_keeping import expire
from nbdeploy.log_segments import lines_files, new_path, parquet_files, place
from nbdeploy.log_values import hash_key
from nbdeploy.prediction_log import Entry, LogWriter
from nbdeploy.signature import Signature, json_column
from nbdeploy.signature_inference import infer_columns

HERE = os.path.dirname(__file__)


def ids(frame: pd.DataFrame) -> list[str]:
    return frame["prediction_id"].tolist()


def read(**window) -> pd.DataFrame:
    return prediction_log.read(NAME, **window)


def fill(log: LogWriter, calls: int, filling: int | str = 0) -> list[str]:
    """What the rows that were logged are called."""
    made: list[str] = []
    text = filling if isinstance(filling, str) else "x" * filling
    for call in range(calls):
        entries = [entry(rows=1 + call % 3, filling=text) for _ in range(1 + call % 4)]
        if log.write(entries):
            made += [f"{each.request}-{row}" for each in entries for row in range(len(each.outputs))]
    return made


# -- processes that are killed ------------------------------------------------------------------------------


class Forks:
    """Runs tasks of log_processes.py, one at a time."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(HERE, "log_processes.py")], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def start(self, do: str, **task) -> int:
        print(json.dumps({"home": str(self.home), "do": do, **task}), file=self.process.stdin, flush=True)
        word, pid = self.process.stdout.readline().split()
        assert word == "pid"
        return int(pid)

    def finish(self) -> tuple[int, dict[str, list[str]]]:
        """The signal that ended it, or 0, and what it said."""
        said: dict[str, list[str]] = {}
        while (line := self.process.stdout.readline()) and not line.startswith("end "):
            word, what = line.split()
            said.setdefault(word, []).append(what)
        return int(line.split()[1]), said

    def run(self, do: str, **task) -> dict[str, list[str]]:
        self.start(do, **task)
        ended, said = self.finish()
        assert ended == 0
        return said


@pytest.fixture
def forks(home) -> Iterator[Forks]:
    made = Forks(home)
    yield made
    made.process.stdin.close()
    made.process.wait(10)
    made.process.stdout.close()


def kill_writers(forks: Forks, times: int) -> None:
    chance = random.Random(28)
    acknowledged: list[str] = []
    for turn in range(times):
        pid = forks.start("write", filling=chance.choice([0, 300, 60_000]), options={"max_bytes": 8 << 30})
        time.sleep(chance.uniform(0.005, 0.05))
        os.kill(pid, signal.SIGKILL)
        ended, said = forks.finish()
        assert ended == signal.SIGKILL
        assert "no" not in said
        acknowledged += said.get("ok", [])
        if turn % 5 == 4:
            prediction_log.seal(NAME)
    frame = read()
    found = ids(frame)
    assert set(acknowledged) <= set(found)
    assert whole(frame)
    # What was being written when it was killed may be there or not.
    assert len(found) - len(acknowledged) <= times * 12
    assert len(acknowledged) > 10 * times
    assert prediction_log.size(NAME) == len(found)
    assert prediction_log.unreadable(NAME) == 0


def test_what_was_acknowledged_is_in_the_log_though_its_writer_is_killed(forks):
    kill_writers(forks, 12)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_was_acknowledged_is_in_the_log_though_its_writer_is_killed_200_times(forks):
    kill_writers(forks, 200)


def test_processes_that_write_at_once_lose_nothing_while_others_seal_and_read(home):
    workers = [Forks(home) for _ in range(8)]
    expected: list[str] = []
    stop = threading.Event()

    def seal_and_read():
        while not stop.is_set():
            prediction_log.seal(NAME)
            frame = read()
            assert frame.empty or whole(frame)

    with writer() as before, background(seal_and_read) as failed:
        expected += fill(before, 3)
        before.rotate()
        for worker in workers:
            worker.start("write", batches=60, pause=0.002, options={"max_bytes": 1 << 30})
        for worker in workers:
            ended, said = worker.finish()
            assert ended == 0
            expected += said["ok"]
            assert said["dropped"] == ["0"]
            assert "no" not in said
        stop.set()
    for worker in workers:
        worker.process.stdin.close()
        worker.process.wait(10)
        worker.process.stdout.close()
    assert failed == []
    assert sorted(ids(read())) == sorted(expected)
    prediction_log.seal(NAME)
    assert lines_files(place(NAME)) == []
    assert sorted(ids(read())) == sorted(expected)


@contextmanager
def background(work: Callable[[], None]) -> Iterator[list[Exception]]:
    failed: list[Exception] = []

    def careful():
        try:
            work()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=careful)
    thread.start()
    yield failed
    thread.join()


def test_readers_miss_and_double_nothing_while_segments_are_sealed():
    with writer() as log:
        expected = []
        for _ in range(12):
            expected += fill(log, 10)
            log.rotate()
    stop = threading.Event()
    counts: set[int] = set()

    def look():
        while not stop.is_set():
            counts.add(len(read()))

    with background(look) as failed:
        assert prediction_log.seal(NAME) == 12
        stop.set()
    assert failed == []
    assert counts <= {len(expected)}


# -- sealing ------------------------------------------------------------------------------------------------

CALLS = {
    "rename": "?rename,?renameat,?renameat2",
    "unlink": "?unlink,?unlinkat,?rmdir",
    "mkdir": "?mkdir,?mkdirat",
    "fsync": "fsync",
    "write": "write",
    "openat": "?open,openat",
    "flock": "flock",
}


@pytest.fixture
def strace() -> str:
    if sys.platform != "linux":
        pytest.skip("strace is for Linux")
    traced = ["strace", "-qq", "-o", os.devnull, "true"]
    if shutil.which("strace") is None or subprocess.run(traced, check=False).returncode:
        assert not os.environ.get("CI"), "continuous integration needs strace, and leave to trace"
        pytest.skip("needs strace (apt-get install strace) and leave to trace")
    return "strace"


@contextmanager
def traced(pid: int, call: str, what: str, go: Path) -> Iterator[None]:
    options = ["-qq", "-e", f"trace={call}", "-e", f"inject={call}:{what}", "-o", os.devnull, "-p", str(pid)]
    tracer = subprocess.Popen(["strace", *options])
    deadline = time.monotonic() + 30
    while f"TracerPid:\t{tracer.pid}\n" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    go.touch()
    yield
    tracer.wait(10)


def seal_killed_at(forks: Forks, tmp_path: Path, call: str, n: int) -> bool:
    """Kill a process that seals at its n-th call; False if there was none."""
    shutil.rmtree(place(NAME), ignore_errors=True)
    expected = []
    for version in ("v1", "v2"):
        with writer() as log:
            entries = [entry(version) for _ in range(5)]
            yesterday = [Entry(e.version, e.request, e.inputs, e.outputs, time=time.time() - DAY) for e in entries[:2]]
            assert log.write([*yesterday, *entries[2:]])
            expected += [f"{each.request}-0" for each in entries]
    go = tmp_path / f"go-{call}-{n}-{random.random()}"
    pid = forks.start("seal", go=str(go))
    with traced(pid, CALLS[call], f"signal=SIGKILL:when={n}", go):
        ended, _ = forks.finish()
    assert ended in (0, signal.SIGKILL)
    for _ in range(2):
        frame = read()
        assert sorted(ids(frame)) == sorted(expected), (call, n)
        assert whole(frame)
        assert prediction_log.size(NAME) == len(expected)
        prediction_log.seal(NAME)
    sealed = parquet_files(place(NAME))
    assert len(sealed) == 4
    assert lines_files(place(NAME)) == []
    assert {path for path in (place(NAME) / "parquet").rglob("*") if path.is_file()} == set(sealed)
    return ended != 0


def test_a_sealing_process_that_is_killed_loses_and_doubles_nothing(strace, forks, tmp_path):
    for call, step in (("rename", 2), ("unlink", 2), ("mkdir", 4), ("fsync", 6), ("write", 13), ("openat", 29)):
        n = 1
        while seal_killed_at(forks, tmp_path, call, n):
            n += step
        assert n > 1, call


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("call", CALLS)
def test_a_sealing_process_that_is_killed_at_any_call_loses_and_doubles_nothing(strace, forks, tmp_path, call):
    n = 1
    while seal_killed_at(forks, tmp_path, call, n):
        n += 1
    assert n > 1
    print(f"killed at each of {n - 1} calls of {call}")


def test_a_segment_that_is_written_to_is_not_sealed():
    with writer() as log:
        fill(log, 2)
        assert prediction_log.seal(NAME) == 0
        log.rotate()
        fill(log, 2)
        assert prediction_log.seal(NAME) == 1
    assert prediction_log.seal(NAME) == 1
    assert prediction_log.seal(NAME) == 0


def test_the_background_seals_what_is_finished_and_ends_with_its_writer():
    import psutil

    before = threading.enumerate()
    with writer(keep_every=0.2) as log:
        expected = fill(log, 3)
        log.rotate()
        expected += fill(log, 3)
        wait_for(lambda: parquet_files(place(NAME)) and len(lines_files(place(NAME))) == 1)
        assert sorted(ids(read())) == sorted(expected)
        assert (place(NAME) / "clock.json").exists()
    assert [child.cmdline() for child in psutil.Process().children() if "nbdeploy.log_keeping" in child.cmdline()] == []
    assert "log keeper" not in [thread.name for thread in threading.enumerate() if thread not in before]


def test_who_seals_as_a_process_ends_well_and_says_what_it_could_not_seal(home):
    with writer() as log:
        fill(log, 1)
    command = [sys.executable, "-m", "nbdeploy.log_keeping", NAME]

    def sealed() -> tuple[int, str]:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            said = process.stderr.read()
            return process.wait(20), said

    (path,) = lines_files(place(NAME))
    (path.parent / "parquet").write_text("no folder")
    code, said = sealed()
    assert (code, len(said.splitlines())) == (1, 1)
    assert NAME in said
    (path.parent / "parquet").unlink()
    assert sealed() == (0, "")
    assert len(parquet_files(place(NAME))) == 1


def test_who_seals_ends_with_whoever_started_it(home):
    command = [
        sys.executable,
        "-c",
        "import nbdeploy.log_keeping as k, time; k.seal = lambda _: time.sleep(60); k.main('x')",
    ]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    process.stdin.close()
    assert process.wait(20) == 0


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- damage -------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), more=st.binary(max_size=200), sealed=st.booleans())
def test_a_segment_that_is_cut_or_goes_on_with_anything_gives_no_torn_row(cut, more, sealed):
    shutil.rmtree(place(NAME), ignore_errors=True)
    with writer() as log:
        expected = fill(log, 4)
    (path,) = lines_files(place(NAME))
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content))] + more)
    if sealed:
        prediction_log.seal(NAME)
    frame = read()
    if len(frame):
        known = frame if "n" in frame else frame.iloc[:0]
        assert set(ids(frame)) <= set(expected)
        assert whole(known)
    assert prediction_log.size(NAME) == len(frame)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=30), st.booleans())
def test_no_change_of_bytes_makes_reading_fail(changes, framed):
    shutil.rmtree(place(NAME), ignore_errors=True)
    with writer() as log:
        fill(log, 3)
        if framed:
            log.write([Entry("v1", prediction_log.new_request_id(), {}, [1, 2], frame=TRAINING)])
    (path,) = lines_files(place(NAME))
    content = bytearray(path.read_bytes())
    for place_, byte in changes:
        content[int(place_ * (len(content) - 1))] = byte
    path.write_bytes(content)
    if framed:
        frames = bytearray(path.with_suffix(".frames").read_bytes())
        for place_, byte in changes[::2]:
            frames[int(place_ * (len(frames) - 1))] = byte
        path.with_suffix(".frames").write_bytes(frames)
    first = len(read())
    prediction_log.size(NAME)
    prediction_log.unreadable(NAME)
    prediction_log.seal(NAME)
    assert len(read()) == first == prediction_log.size(NAME)


def test_a_torn_last_line_is_not_read():
    with writer() as log:
        expected = fill(log, 1)
    (path,) = lines_files(place(NAME))
    with path.open("ab") as file:
        file.write(b'{"time": 1, "version"')
    assert ids(read()) == expected
    prediction_log.seal(NAME)
    assert ids(read()) == expected


@pytest.mark.parametrize(
    "line", [b"{", b"\xff\xfe", b"[]", b"{}", b"null", b'{"time": 1, "version": "v1", "request": "r", "inputs": 1, "outputs": 2}',
             b'{"time": 1, "version": "v1", "request": "r", "inputs": {"n": [1]}, "outputs": [1, 2]}',
             b'{"time": 1, "version": "v1", "request": "r", "frame": {"at": 0, "bytes": 9, "crc": 1}, "outputs": [1]}']
)  # fmt: skip
def test_a_line_that_cannot_be_read_is_counted_and_left_out(line):
    with writer() as log:
        expected = fill(log, 1)
        (path,) = lines_files(place(NAME))
        with path.open("ab") as file:
            file.write(line + b"\n")
        expected += fill(log, 1)
        assert ids(read()) == expected
        assert prediction_log.size(NAME) == len(expected)
        assert prediction_log.unreadable(NAME) == 1
    prediction_log.seal(NAME)
    assert ids(read()) == expected
    assert (prediction_log.size(NAME), prediction_log.unreadable(NAME)) == (len(expected), 1)


def test_a_segment_of_nothing_but_damage_is_kept_and_counted():
    with writer() as log:
        fill(log, 1)
    (path,) = lines_files(place(NAME))
    path.write_bytes(b"what\nis\nthis\n")
    prediction_log.seal(NAME)
    assert (len(read()), prediction_log.size(NAME), prediction_log.unreadable(NAME)) == (0, 0, 3)
    assert prediction_log.seal(NAME) == 0


def test_a_damaged_parquet_file_is_counted_and_left_out():
    with writer() as log:
        fill(log, 1)
        log.rotate()
        expected = fill(log, 1)
    prediction_log.seal(NAME)
    (first,) = (path for path in parquet_files(place(NAME)) if expected[0].encode() not in path.read_bytes())
    first.write_bytes(first.read_bytes()[:100])
    assert ids(read()) == expected
    assert (prediction_log.size(NAME), prediction_log.unreadable(NAME)) == (len(expected), 1)


@pytest.mark.parametrize("remove", [shutil.rmtree, lambda folder: next(folder.glob("*.jsonl")).unlink()])
def test_a_segment_deleted_under_its_writer_is_followed_by_a_new_one(remove):
    with writer() as log:
        fill(log, 1)
        remove(place(NAME))
        assert ids(read()) == []
        expected = fill(log, 1)
        assert ids(read()) == expected
        assert log.dropped == 0


def test_lines_without_a_header_are_read_by_the_versions_signature():
    path = place(NAME)
    path.mkdir(parents=True)
    made = entry()
    line = {"time": 1.0, "version": "v1", "request": made.request, "inputs": made.inputs, "outputs": made.outputs}
    (path / "1763000000000000000-77.jsonl").write_bytes(orjson.dumps(line) + b"\n")
    for _ in range(2):
        frame = prediction_log.read(NAME, lambda _version: SIGNATURE)
        assert whole(frame)
        assert frame["n"].dtype == "float64"
        assert prediction_log.read(NAME)["i"].tolist() == made.inputs["i"]
        prediction_log.seal(NAME)
    assert lines_files(path) == []


# -- disks that refuse --------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(monkeypatch, tmp_path) -> Iterator[Callable[..., Path]]:
    """``small_disk("size=1m")``: a file system of its own as home."""
    mounted = []

    def mount(options: str) -> Path:
        where = tmp_path / "disk"
        where.mkdir()
        if os.geteuid() or sys.platform != "linux" or _mount("-t", "tmpfs", "-o", options, "tmpfs", where):
            pytest.skip("needs leave to mount")
        mounted.append(where)
        monkeypatch.setenv("NBDEPLOY_HOME", str(where / "home"))
        return where

    yield mount
    for where in mounted:
        subprocess.run(["umount", "-l", where], check=True)


def _mount(*words: object) -> int:
    return subprocess.run(["mount", *map(str, words)], check=False, stderr=subprocess.DEVNULL).returncode


def write_until(log: LogWriter, outcome: bool, made: list[str], filling: int = 3000, most: int = 3000) -> int:
    """Write until it is refused, or works again; how many rows were refused."""
    dropped = log.dropped
    for _ in range(most):
        before = len(made)
        made += fill(log, 1, filling)
        if (len(made) > before) is outcome:
            return log.dropped - dropped
        if outcome:
            time.sleep(0.01)
    raise AssertionError(log.failing)


def test_a_full_disk_loses_no_answer_and_the_log_goes_on_when_there_is_room(small_disk):
    where = small_disk("size=1m")
    ballast = where / "ballast"
    ballast.write_bytes(bytes(500_000))
    with writer() as log:
        made: list[str] = []
        write_until(log, False, made)
        assert "space" in log.failing
        assert sorted(ids(read())) == sorted(made)
        for _ in range(20):
            fill(log, 1, 3000)
        ballast.unlink()
        write_until(log, True, made)
        assert log.failing == ""
        assert log.rows_written == len(made)
        assert log.dropped >= 21
        frame = read()
        assert sorted(ids(frame)) == sorted(made)
        assert whole(frame)
        assert prediction_log.unreadable(NAME) == 0


def test_a_disk_without_inodes_loses_no_answer(small_disk):
    where = small_disk("size=1m,nr_inodes=12")
    names = (where / f"filling-{i}" for i in range(100))
    filled = []
    try:
        for path in names:
            path.touch()
            filled.append(path)
    except OSError:
        pass
    with writer() as log:
        assert fill(log, 1) == []
        assert log.dropped == 1
        for path in filled:
            path.unlink()
        made: list[str] = []
        write_until(log, True, made)
        assert ids(read()) == made


def test_a_disk_that_becomes_read_only_loses_no_answer(small_disk):
    where = small_disk("size=4m")
    with writer() as log:
        made = fill(log, 2)
        log.rotate()
        if _mount("-o", "remount,ro", where):
            pytest.skip("needs leave to mount")
        assert fill(log, 2) == []
        assert "ead-only" in log.failing
        assert sorted(ids(read())) == sorted(made)
        assert _mount("-o", "remount,rw", where) == 0
        write_until(log, True, made)
        assert sorted(ids(read())) == sorted(made)


@pytest.mark.parametrize(("fault", "when"), [("ENOSPC", "1..3"), ("EIO", "4..9"), ("EROFS", "5+3"), ("EIO", "2+2")])
def test_a_write_that_fails_is_told_and_what_was_told_is_there(strace, forks, tmp_path, fault, when):
    go = tmp_path / "go"
    pid = forks.start("write", batches=40, pause=0.03, go=str(go))
    with traced(pid, "write", f"error={fault}:when={when}", go):
        ended, said = forks.finish()
    assert ended == 0
    assert said["no"]
    assert len(said["no"]) == int(said["dropped"][0])
    assert said["ok"]
    frame = read()
    assert sorted(ids(frame)) == sorted(said["ok"])
    assert whole(frame)
    assert prediction_log.unreadable(NAME) == 0


def test_a_disk_that_refuses_is_not_asked_at_every_request(home, monkeypatch):
    place(NAME).parent.mkdir(parents=True)
    place(NAME).write_text("no folder")
    with writer() as log:
        started = time.perf_counter()
        assert fill(log, 500) == []
        assert time.perf_counter() - started < 2
        assert log.dropped > 500
        assert log.failing
        place(NAME).unlink()
        made: list[str] = []
        write_until(log, True, made, most=1000)
        assert ids(read()) == made


def test_what_json_cannot_carry_costs_its_neighbours_nothing():
    class Odd:
        pass

    with writer() as log:
        good = entry()
        odd = Entry("v1", "1" * 16, {"n": Odd(), "i": [1], "text": ["a"]}, [1])
        assert log.write_each([good, odd]) == [True, False]
        assert log.dropped == 1
        assert ids(read()) == [f"{good.request}-0"]
        assert log.write([entry()])


# -- bounds -------------------------------------------------------------------------------------------------


def test_frames_are_kept_beside_their_lines_and_go_with_them(monkeypatch):
    with writer() as log:
        for call in range(3):
            rows = [Entry("v1", f"{call}{k}" * 8, {}, [1, 2], frame=TRAINING) for k in range(2)]
            assert log.write([*rows, entry()])
        (path,) = lines_files(place(NAME))
        frames = path.with_suffix(".frames")
        assert frames.exists()
        frame = read()
        assert len(frame) == 15
        assert sorted(frame["n"])[:6] == [1.5] * 6
        kept = frames.read_bytes()
    prediction_log.seal(NAME)
    assert [each.name for each in place(NAME).iterdir() if each.is_file()] == ["clock.json"]
    assert len(read()) == 15
    frames.write_bytes(kept)  # as if it had been killed right then
    prediction_log.seal(NAME)
    assert not frames.exists()
    with writer() as log:
        assert log.write([Entry("v1", "a" * 16, {}, [1, 2], frame=TRAINING)])
    (path,) = lines_files(place(NAME))
    path.with_suffix(".frames").unlink()
    assert (len(read()), prediction_log.unreadable(NAME)) == (15, 1)
    assert expire(NAME, 1e12, days=1, max_bytes=1) == 2
    assert [each.name for each in place(NAME).iterdir() if each.is_file()] == ["clock.json"]


def test_a_frame_that_does_not_fit_on_the_disk_tears_nothing(small_disk):
    where = small_disk("size=1m")
    wide = TRAINING.loc[[0] * 4000].reset_index(drop=True)
    with writer() as log:
        made = 0
        for k in range(40):
            made += 4000 * log.write([Entry("v1", f"{k:016x}", {}, [1] * 4000, frame=wide)])
        assert 0 < made < 160_000
        assert made + log.dropped == 160_000
        assert len(read()) == made
        assert prediction_log.unreadable(NAME) == 0
    assert where.exists()


def disk_used(where: Path) -> int:
    total = 0
    for path in where.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def push_through(total: int, cap: int, filling: int, *, sealing: bool) -> None:
    most = 0
    noise = os.urandom(4 << 20).hex()  # which Parquet cannot make small
    with writer(max_bytes=cap, days=1e9) as log:
        segment, last = max(64 << 10, cap // 8), 0
        while log.bytes_written < total:
            start = random.randrange(len(noise) - filling)
            made = fill(log, 1, noise[start : start + filling])
            if log.bytes_written - last > segment / 3:
                last = log.bytes_written
                most = max(most, disk_used(place(NAME)))
                if sealing:
                    prediction_log.seal(NAME)
                    most = max(most, disk_used(place(NAME)))
        assert log.dropped == 0
    frame = read()
    assert set(made) <= set(ids(frame))
    assert whole(frame)
    assert most <= cap + segment
    assert most > cap / 2
    print(f"{total >> 20} MB through {cap >> 20} MB: at most {most / (1 << 20):.1f} MB")


@pytest.mark.parametrize("sealing", [False, True])
def test_the_log_stays_within_its_bytes(sealing):
    push_through(8 << 20, 1 << 20, 2_000, sealing=sealing)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sealing", [False, True])
def test_a_gigabyte_through_100_megabytes_stays_within_them(sealing):
    push_through(1 << 30, 100 << 20, 20_000, sealing=sealing)


def test_the_bytes_are_bounded_with_many_writers():
    cap = 4 << 20
    logs = [writer(max_bytes=cap, days=1e9) for _ in range(4)]
    most = 0
    for _ in range(60):
        for log in logs:
            fill(log, 20, 2_000)
        most = max(most, disk_used(place(NAME)))
    for log in logs:
        log.close()
    assert most <= cap + cap // 8


def test_workers_share_what_segments_in_use_may_take():
    with writer(max_bytes=8 << 20) as alone, writer(max_bytes=8 << 20, workers=8) as one_of_many:
        counts = []
        for log in (alone, one_of_many):
            before = len(lines_files(place(NAME)))
            fill(log, 100, 4_000)
            counts.append(len(lines_files(place(NAME))) - before)
    assert counts[1] >= 4 * counts[0]


def test_segments_of_one_millisecond_are_named_in_their_order():
    for milliseconds in (1795163144018, 1795163144019, 1001, 4035225266123):
        first = new_path(Path(), milliseconds / 1000 + 1e-4)
        second = new_path(Path(), milliseconds / 1000, first)
        assert int(second.name[:13]) == int(first.name[:13]) + 1


def test_lines_are_gone_for_good_before_their_frames_are(monkeypatch):
    frame = pd.DataFrame({"n": [1.5], "i": [1], "text": ["a"]})
    with writer() as log:
        assert log.write([Entry("v1", "0" * 16, {}, [1], frame=frame)])
    seen = []
    real = log_keeping.sync_folder

    def watched(path: Path) -> None:
        seen.append((path, [each.suffix for each in place(NAME).iterdir() if each.suffix in (".jsonl", ".frames")]))
        real(path)

    monkeypatch.setattr(log_keeping, "sync_folder", watched)
    assert prediction_log.seal(NAME) == 1
    assert seen[-1] == (place(NAME), [".frames"])
    assert not list(place(NAME).glob("*.frames"))


def test_what_is_too_old_is_removed_whole_and_nothing_else():
    now = 2_000_000_000.0
    with writer() as log:
        kept = fill(log, 1)
    (path,) = lines_files(place(NAME))
    old = path.with_name(f"{int((now - 9 * DAY) * 1000)}-00000000.jsonl")
    shutil.copyfile(path, old)
    path.rename(path.with_name(f"{int((now - 7.5 * DAY) * 1000)}-00000001.jsonl"))
    prediction_log.seal(NAME)
    assert len(read()) == 2 * len(kept)

    assert expire(NAME, now, days=7, max_bytes=1 << 40) == 1
    assert ids(read()) == kept
    assert expire(NAME, now + 2 * DAY, days=7, max_bytes=1 << 40) == 1
    assert len(read()) == 0
    assert list((place(NAME) / "parquet").glob("*")) == []


def test_a_segment_in_use_is_never_removed():
    with writer() as log:
        made = fill(log, 1)
        assert expire(NAME, 1e12, days=1, max_bytes=1) == 0
        assert ids(read()) == made
    assert expire(NAME, 1e12, days=1, max_bytes=1) == 1


# -- clocks -------------------------------------------------------------------------------------------------

MONTH = 30 * DAY


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["run", "glitch", "boot"]), st.floats(0, 5 * DAY), st.floats(-MONTH, MONTH)), max_size=20),
    st.lists(st.tuples(st.sampled_from(["run", "jump"]), st.floats(0, 5 * DAY), st.floats(-MONTH, MONTH)), max_size=20),
)  # fmt: skip
def test_the_logs_time_is_never_ahead_and_never_goes_back_however_the_clock_jumps(booted, steady):
    for steps in (booted, steady):
        true, wall, uptime, boot = 0.0, 1.7e9, 100.0, 0
        state = Moment(1.7e9, 1.7e9, uptime, "0")
        for what, passed, jump in steps:
            moves = [(passed, 0.0)] if what in ("run", "boot") else [(0.0, jump), (passed / 10, 0.0), (0.0, -jump)]
            for seconds, change in moves[:2] if what == "jump" else moves:
                true, wall, uptime = true + seconds, wall + seconds + change, uptime + seconds
                if what == "boot":  # it was off meanwhile
                    uptime, boot = 10.0, boot + 1
                after = advance(state, wall, uptime, str(boot))
                assert after.log >= state.log
                assert after.log - 1.7e9 <= true + 600 * len(steps)
                state = after


def test_time_in_which_the_machine_was_off_counts_when_the_clock_has_run_for_a_day():
    state = Moment(1000.0, 1000.0, 50.0, "a")
    state = advance(state, 1000.0 + 40 * DAY, 5.0, "b")
    state = advance(state, 1000.0 + 40.5 * DAY, 5.0 + DAY / 2, "b")
    assert state.log == pytest.approx(1000 + DAY / 2)
    state = advance(state, 1000.0 + 41.1 * DAY, 5.0 + 1.1 * DAY, "b")
    assert state.log == pytest.approx(1000 + 41.1 * DAY)


def test_a_clock_that_is_wrong_after_a_start_and_then_set_right_moves_nothing():
    state = Moment(1000.0, 1e9, 50.0, "a")
    state = advance(state, 1e9 + MONTH, 5.0, "b")  # off for an hour, and wrong
    state = advance(state, 1e9 + 3700, 105.0, "b")
    state = advance(state, 1e9 + 3700 + DAY, 105.0 + DAY, "b")
    assert state.log == pytest.approx(1000 + 3700 + DAY, abs=200)


def test_processes_that_keep_one_clock_add_the_time_that_the_machine_was_off_once(tmp_path):
    now = {"wall": 5e9, "uptime": 10.0, "boot": "a"}

    def clock():
        uptime = lambda: (now["uptime"], now["boot"])  # noqa: E731
        return LogClock(tmp_path / "clock.json", wall=lambda: now["wall"], uptime=uptime)

    def pass_(seconds: float) -> None:
        now.update(wall=now["wall"] + seconds, uptime=now["uptime"] + seconds)

    clock().save()
    now.update(wall=5e9 + 40 * DAY, uptime=5.0, boot="b")
    first, second = clock(), clock()
    first.save()
    second.save()
    pass_(DAY / 2)
    now["wall"] += 700  # only the second looks meanwhile, and waits for another day
    second.save()
    now["wall"] -= 700
    second.save()
    for _ in range(30):
        pass_(DAY / 10)
        first.save()
        pass_(1.0)
        second.save()
    assert first.now() == pytest.approx(5e9 + 43.5 * DAY, abs=1000)
    assert second.now() == pytest.approx(5e9 + 43.5 * DAY, abs=1000)


def test_the_clock_goes_on_from_its_file_or_from_the_newest_segment(tmp_path):
    now = {"wall": 5e9, "uptime": 10.0}

    def clock(newest=lambda: None):
        return LogClock(tmp_path / "clock.json", newest, wall=lambda: now["wall"], uptime=lambda: (now["uptime"], ""))

    first = clock()
    assert first.now() == 5e9
    first.save()
    now.update(wall=5e9 - MONTH, uptime=70.0)
    assert clock().now() == 5e9 + 60
    for content in (b"{", b"[]", b'{"log": "x"}', b'{"log": NaN, "wall": 1, "uptime": 1, "steady": 1, "boot": ""}'):
        (tmp_path / "clock.json").write_bytes(content)
        assert clock(lambda: 77.0).now() == 77.0


def faketime() -> str:
    for library in Path("/usr/lib").glob("*/faketime/libfaketime.so.1"):
        return str(library)
    pytest.skip("needs libfaketime (apt-get install faketime)")


@pytest.mark.parametrize("jumps", [["+30d", "-30d", "+30d"], ["-30d", "+30d", ""]])
def test_a_clock_that_jumps_30_days_removes_nothing_that_is_kept_for_a_week(home, monkeypatch, jumps):
    library = faketime()
    expected: list[str] = []
    for jump in ["", *jumps, ""]:
        with monkeypatch.context() as patch:
            if jump:
                patch.setenv("LD_PRELOAD", library)
                patch.setenv("FAKETIME", jump)
            forks = Forks(home)
        expected += forks.run("write", batches=4, options={"days": 7})["ok"]
        assert forks.run("age", days=7)["removed"] == ["0"]
        forks.run("seal")
        expected += forks.run("write", batches=4, options={"days": 7, "keep_every": 0.01}, seconds=5)["ok"]
        forks.process.stdin.close()
        forks.process.wait(10)
        forks.process.stdout.close()
    frame = read()
    assert sorted(ids(frame)) == sorted(expected)
    assert whole(frame)
    jumped = pd.Timestamp.now("UTC") - frame["time"]
    assert (jumped.abs() > pd.Timedelta(days=29)).any()


# -- what is in it ------------------------------------------------------------------------------------------


def every_kind(rows: int) -> pd.DataFrame:
    i = np.arange(rows)
    return pd.DataFrame(
        {
            "f": i / 3, "f32": (i / 3).astype("float32"), "i": i, "i8": (i % 100).astype("int8"), "b": i % 2 == 0,
            "gap": np.where(i % 3 == 0, np.nan, i), "inf": np.where(i % 3 == 0, np.inf, i / 2),
            "Int": pd.array([None if k % 4 == 0 else int(k) for k in i], dtype="Int64"),
            "text": [f"é{k}" for k in i], "maybe": pd.Series([None if k % 3 == 0 else f"t{k}" for k in i], dtype=object),
            "cat": pd.Categorical([("a", "b")[k % 2] for k in i], categories=["a", "b", "c"], ordered=True),
            "size": pd.Categorical([10 * (k % 3) for k in i]),
            "when": pd.date_range("2026-01-01", periods=rows, freq="h").astype("datetime64[ns]"),
            "zoned": pd.date_range("2026-01-01", periods=rows, freq="h", tz="Europe/Paris"),
            "on": pd.Series([pd.Timestamp("2026-01-01").date()] * rows, dtype=object),
            "arrow": pd.array(i * 1.5, dtype="float64[pyarrow]"),
            "image": [np.full((2, 3), k, dtype="float32") for k in i], "list": [[1, int(k)] for k in i],
            "day": i % 31, "version": i, "time": [f"at {k}" for k in i],
        }
    )  # fmt: skip


def same(left: pd.DataFrame, right: pd.DataFrame) -> None:
    cells = ["image", "list"]
    pd.testing.assert_frame_equal(left.drop(columns=cells), right.drop(columns=cells), check_freq=False)
    for name in cells:
        for one, other in zip(left[name], right[name], strict=True):
            assert type(one) is type(other)
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("framed", [False, True])
def test_inputs_come_back_with_the_dtypes_of_training_before_and_after_sealing(framed):
    frame = every_kind(50)
    signature = Signature(infer_columns(frame), outputs=(Output("", "string"),))
    log = LogWriter(NAME, signature.columns, outputs=signature.outputs, keep_every=None)
    columns = {c.name: json_column(c, frame[c.name]) for c in signature.columns}
    given = {"frame": frame} if framed else {}
    outputs = ["late" if k % 2 else '{"x": 1}' for k in range(50)]
    scores = [[0.25, 0.75]] * 50
    assert log.write([Entry("v1", "0" * 16, {} if framed else columns, outputs, scores, **given)])
    log.close()
    for _ in range(2):
        told = read()
        same(told[frame.columns], frame)
        assert told["prediction"].tolist() == outputs
        assert told["version_"].tolist() == ["v1"] * 50
        assert str(told["time_"].dtype) == "datetime64[ns, UTC]"
        prediction_log.seal(NAME)


def test_sealed_days_are_a_dataset_that_others_read():
    import pyarrow.dataset
    import pyarrow.parquet

    frame = every_kind(20)
    signature = Signature(infer_columns(frame), outputs=(Output("", "float64"),))
    with LogWriter(NAME, signature.columns, outputs=signature.outputs, keep_every=None) as log:
        for version in ("v1", "v2"):
            for moment in (1_700_000_000, 1_700_086_400):
                assert log.write([Entry(version, "0" * 16, {}, [0.5] * 20, time=moment, frame=frame)])
                assert log.write([Entry(version, "1" * 16, {}, [0.5] * 20, time=moment, frame=frame, purpose="gate")])
    assert prediction_log.seal(NAME) == 1
    folder = place(NAME) / "parquet"
    paths = [str(path.relative_to(folder).parent) for path in parquet_files(place(NAME))]
    assert sorted(paths) == [f"{v}/day_=2023-11-{d}" for v in ("v1", "v2") for d in (14, 15)]

    table = pyarrow.dataset.dataset(folder, partitioning="hive").to_table()
    assert table.num_rows == 160
    types = {field.name: str(field.type) for field in table.schema}
    assert types == types | {
        "f": "double", "f32": "float", "i": "int64", "i8": "int8", "b": "bool", "Int": "int64", "text": "string",
        "cat": "string", "size": "int64", "when": "timestamp[ns]", "on": "date32[day]", "image": "string",
        "prediction": "double", "prediction_id": "string", "version_": "string", "time_": "timestamp[us, tz=UTC]",
        "purpose": "string", "day": "int64", "day_": "string",
    }  # fmt: skip
    read_by_pandas = pd.read_parquet(folder / "v1")
    assert len(read_by_pandas) == 80
    assert (read_by_pandas["purpose"] == "gate").sum() == 40
    assert json.loads(read_by_pandas["image"].iloc[1]) == [[1.0] * 3] * 2
    assert prediction_log.size(NAME) == 80


def test_a_window_is_read_by_its_days_and_its_seconds():
    with writer() as log:
        for day in range(5):
            made = entry()
            assert log.write([Entry("v1", made.request, made.inputs, made.outputs, time=1.7e9 + day * DAY)])
        for _ in range(2):
            assert len(read()) == 5
            assert len(read(since=pd.Timestamp(1.7e9 + DAY, unit="s"))) == 4
            assert len(read(since=pd.Timestamp(1.7e9 + DAY + 1, unit="s"))) == 3
            assert len(read(until=pd.Timestamp(1.7e9 + DAY, unit="s"))) == 1
            window = {"since": pd.Timestamp(1.7e9 + DAY, unit="s"), "until": pd.Timestamp(1.7e9 + 3 * DAY, unit="s")}
            assert len(read(**window)) == 2
            assert len(read(since="1h")) == 0
            log.rotate()
            prediction_log.seal(NAME)
    with pytest.raises(prediction_log.NbdeployError, match="not a time"):
        read(since="yesterday-ish")


def test_what_no_user_asked_is_kept_and_not_counted():
    with writer() as log:
        asked, of_gate = entry(), entry()
        shadow = Entry("v2", asked.request, asked.inputs, [9] * len(asked.outputs), purpose="shadow")
        log.write([asked, dataclasses.replace(of_gate, purpose="gate"), shadow])
        for _ in range(2):
            assert len(read()) == prediction_log.size(NAME) == 1
            (row,), (told,) = read().to_dict("records"), read(purpose="shadow").to_dict("records")
            assert (row["prediction_id"], row["version"]) == (f"{asked.request}-0", "v1")
            assert (told["prediction_id"], told["version"], told["prediction"]) == (f"{asked.request}-0", "v2", 9)
            assert read(purpose="gate")["prediction_id"].tolist() == [f"{of_gate.request}-0"]
            assert read(purpose="other").empty
            log.rotate()
            prediction_log.seal(NAME)
    paths = parquet_files(place(NAME))
    assert [pd.read_parquet(path)["purpose"].tolist() for path in paths] == [["", "gate"], ["shadow"]]


def test_one_version_is_read_alone_with_the_probabilities_that_were_asked_for():
    with writer() as log:
        for version, scores in (("v1", [[0.25, 0.75]]), ("v1", None), ("v2", [[0.5, 0.5]]), ("odd/..", None)):
            assert log.write([dataclasses.replace(entry(version), probabilities=scores)])
    for _ in range(2):
        found = read(version="v1", proba=True)
        assert found["version"].tolist() == ["v1", "v1"]
        assert found["probabilities"].tolist() == [[0.25, 0.75], None]
        assert "probabilities" not in read(version="v2").columns
        assert len(read(version="v2")) == len(read(version="odd/..")) == 1
        assert read(version="v3", proba=True).empty
        assert len(read()) == 4
        prediction_log.seal(NAME)


def test_a_log_from_when_only_gates_were_told_apart_is_read():
    import pyarrow as pa
    import pyarrow.parquet

    with writer() as log:
        log.write([entry(), dataclasses.replace(entry(), purpose="gate")])
        log.rotate()
        log.write([entry(), dataclasses.replace(entry(), purpose="gate")])
    first, second = lines_files(place(NAME))
    for path in (first, second):
        path.write_bytes(path.read_bytes().replace(b'"purpose":"gate"', b'"gate":true'))
        assert b'"gate":true' in path.read_bytes()
    kept = second.read_bytes()
    second.unlink()
    assert prediction_log.seal(NAME) == 1
    (path,) = parquet_files(place(NAME))
    table = pyarrow.parquet.ParquetFile(path).read()
    assert table.column_names[-1] == "purpose"
    was = pa.array([purpose == "gate" for purpose in table.column("purpose").to_pylist()])
    pyarrow.parquet.write_table(table.set_column(table.num_columns - 1, "gate", was), path)
    second.write_bytes(kept)
    with writer() as log:
        log.write([entry()])

    assert (len(read()), len(read(purpose="gate")), len(read(purpose="shadow"))) == (3, 2, 0)
    assert list(read().columns) == ["n", "i", "text", "prediction", "prediction_id", "version", "time"]


def test_the_log_names_its_own_columns_around_the_inputs_and_is_sorted_by_its_own_time():
    with LogWriter("names", keep_every=None) as log:
        for now, early in ((200.0, 1), (100.0, 2)):
            inputs = {"time": [early], "time_": [early], "prediction": [8], "prediction_": [9]}
            assert log.write([Entry("v1", prediction_log.new_request_id(), inputs, [0], time=now)])
    frame = prediction_log.read("names", labels={})
    assert frame["time"].tolist() == frame["time_"].tolist() == [2, 1]
    assert frame["time__"].is_monotonic_increasing
    assert frame["prediction__"].tolist() == [0, 0]
    assert (frame["prediction"].tolist(), frame["prediction_"].tolist()) == ([8, 8], [9, 9])


def test_infinity_is_kept_after_a_whole_number():
    signature = Signature(columns=infer_columns(pd.DataFrame({"a": [math.inf, 1.5]})))
    for columns in (signature.columns, ()):
        with LogWriter(NAME, columns, keep_every=None) as log:
            assert log.write([Entry("v1", "0" * 16, {"a": [1, math.inf]}, [0] * 2)])
            assert log.write([Entry("v1", "1" * 16, {"a": [2, -math.inf]}, [0] * 2)])
    assert read()["a"].tolist() == [1, math.inf, 2, -math.inf] * 2


def test_infinity_is_kept():
    signature = Signature(columns=infer_columns(pd.DataFrame({"a": [math.inf, math.nan]})))
    with LogWriter(NAME, signature.columns, keep_every=None) as log:
        assert log.write([Entry("v1", "0" * 16, {"a": [None, math.inf, -math.inf, 1.0]}, [0] * 4)])
        assert log.write([Entry("v1", "1" * 16, {"a": [2.0]}, [0])])
    for _ in range(2):
        frame = read()
        assert frame["a"].tolist()[1:] == [math.inf, -math.inf, 1.0, 2.0]
        assert (prediction_log.size(NAME), prediction_log.unreadable(NAME)) == (5, 0)
        prediction_log.seal(NAME)


@pytest.mark.parametrize(
    "outputs", [[1, "x", None, [1, 2]], [{"a": 1}, {"a": 2}, None, {"a": [1]}], [1.5, 2, 3, 4], [True, 1, "x", 2**70]]
)
def test_predictions_of_any_kind_come_back_as_they_were(outputs):
    with writer() as log:
        for value in outputs:
            made = entry()
            assert log.write([Entry("v1", made.request, made.inputs, [value])])
    for _ in range(2):
        assert [None if v != v else v for v in read()["prediction"].tolist()] == outputs
        prediction_log.seal(NAME)
    (path,) = parquet_files(place(NAME))
    told = pd.read_parquet(path)["prediction"]
    assert [json.loads(text) if isinstance(text, str) else None for text in told] == outputs


def test_a_name_of_a_version_is_no_path():
    names = ["v1", "../../../evil", "a/b", "v1/../v2", "V 1", ""]
    with writer() as log:
        for version in names:
            assert log.write([entry(version)])
    prediction_log.seal(NAME)
    assert sorted(read()["version"]) == sorted(names)
    assert all(path.parent.parent.parent == place(NAME) / "parquet" for path in place(NAME).rglob("*.parquet"))
    assert not list(place(NAME).parent.parent.rglob("*evil*"))


# -- private and large --------------------------------------------------------------------------------------


def test_hashed_values_are_joinable_and_nowhere_in_the_clear(home):
    frame = pd.DataFrame(
        {
            "ssn": [f"CANARY{k % 3}" for k in range(9)], "number": [77_123_001 + k % 3 for k in range(9)],
            "born": pd.to_datetime([f"1942-04-2{k % 3}T04:24:24" for k in range(9)]), "name": ["CANARY"] * 9,
            "vector": [np.full(2, 77123.5 + k % 3) for k in range(9)], "free": range(9),
        }
    )  # fmt: skip
    hidden = {"ssn": "hash", "number": "hash", "born": "hash", "vector": "hash", "name": "drop"}
    signature = Signature(infer_columns(frame)).with_private(hidden)
    columns = {c.name: json_column(c, frame[c.name]) for c in signature.columns}
    columns["born"] = [text.replace("T", " ") for text in columns["born"]]  # the same moments
    with LogWriter(NAME, signature.columns, keep_every=None) as log:
        assert log.write([Entry("v1", "0" * 16, columns, [0] * 9)])
        assert log.write([Entry("v1", "1" * 16, {}, [0] * 9, frame=frame)])
    for _ in range(2):
        told = read()
        assert "name" not in told
        for name in ("ssn", "number", "born", "vector"):
            assert told[name].str.fullmatch("[0-9a-f]{16}").all()
            assert told[name].nunique() == 3
            assert told[name].tolist()[:9] == told[name].tolist()[9:], name
            assert told[name].tolist()[:3] == told[name].tolist()[3:6]
        for path in place(NAME).rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert not any(secret in content for secret in (b"CANARY", b"77123", b"1942-04")), path
        prediction_log.seal(NAME)
    expected = hmac.new(hash_key(NAME), b"ssn\0" + b'"CANARY0"', hashlib.sha256).hexdigest()[:16]
    assert told["ssn"].iloc[0] == expected
    key = home / "keys" / f"{NAME}.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert len(key.read_bytes()) == 32
    assert hash_key("another") != hash_key(NAME) == key.read_bytes()


def test_a_number_has_one_hash_however_it_came():
    frame = pd.DataFrame(
        {
            "f32": np.array([0.1, 3, 0, 1e20], "float32"), "f64": [0.5, 3, 0, 1e300], "i8": np.array([1, 2, 3, 4], "int8"),
            "cat": pd.Categorical([0.5, 3.0, 0.0, 1e20]), "ext": pd.array([0.1, 3, 0, 1e20], "Float32"),
        }
    )  # fmt: skip
    signature = Signature(infer_columns(frame)).with_private(dict.fromkeys(frame, "hash"))
    sent = {
        "f32": [0.1, 3, -0.0, 10**20], "f64": [0.5, 3, -0.0, 10**300], "i8": [1, 2, 3.0, 4],
        "cat": [0.5, 3, -0.0, 10**20], "ext": [0.1, 3, -0.0, 1e20],
    }  # fmt: skip
    with LogWriter(NAME, signature.columns, keep_every=None) as log:
        assert log.write([Entry("v1", "0" * 16, sent, [0] * 4)])
        assert log.write([Entry("v1", "1" * 16, {}, [0] * 4, frame=frame)])
    told = read()
    for name in frame:
        assert told[name].tolist()[:4] == told[name].tolist()[4:], name
        assert told[name].nunique() == 4, name


def test_without_its_key_nothing_of_a_hashed_column_is_written(home):
    signature = Signature(infer_columns(TRAINING)).with_private({"text": "hash"})
    home.mkdir(parents=True, exist_ok=True)
    (home / "keys").write_text("no folder")
    made = entry()
    with LogWriter(NAME, signature.columns, keep_every=None) as log:
        assert log.write([made]) is False
        assert log.dropped == 1
        (home / "keys").unlink()
        time.sleep(0.2)
        assert log.write([made])
        assert len(read()) == 1


def test_processes_that_start_at_once_have_one_key():
    with LogWriter(NAME, keep_every=None):
        keys: set[bytes] = set()
        threads = [threading.Thread(target=lambda: keys.add(hash_key(NAME))) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(keys) == 1


@pytest.mark.parametrize("framed", [False, True])
def test_a_large_cell_is_logged_by_its_digest_and_a_summary(framed):
    chance = np.random.default_rng(3)
    images = [chance.normal(size=(40, 40)).astype("float32") for _ in range(3)]
    texts = ["short", "long " * 20_000, "x" * 65_537]
    frame = pd.DataFrame({"image": images, "text": texts, "small": [np.arange(3)] * 3})
    signature = Signature(infer_columns(frame))
    columns = {c.name: json_column(c, frame[c.name]) for c in signature.columns}
    given = {"frame": frame} if framed else {}
    with LogWriter(NAME, signature.columns, keep_every=None) as log:
        assert log.write([Entry("v1", "0" * 16, {} if framed else columns, [0] * 3, **given)])
        assert log.bytes_written < 5_000
    for _ in range(2):
        told = read()
        for image, held in zip(images, told["image"], strict=True):
            assert held["sha256"] == hashlib.sha256(image.tobytes()).hexdigest()
            assert (held["dtype"], held["shape"]) == ("float32", [40, 40])
            assert held["min"] == pytest.approx(float(image.min()))
            assert held["max"] == pytest.approx(float(image.max()))
            assert held["mean"] == pytest.approx(float(image.mean()), rel=1e-4)
        assert told["text"].tolist()[0] == "short"
        for text, held in zip(texts[1:], told["text"].tolist()[1:], strict=True):
            assert held == f"sha256:{hashlib.sha256(text.encode()).hexdigest()} ({len(text)} characters) {text[:200]}…"
        np.testing.assert_array_equal(told["small"].iloc[2], [0, 1, 2])
        prediction_log.seal(NAME)


def test_everything_is_the_users_own_under_any_umask(home):
    signature = Signature(infer_columns(TRAINING)).with_private({"text": "hash"})
    for umask in (0o000, 0o027, 0o777):
        before = os.umask(umask)
        try:
            with LogWriter(f"u{umask}", signature.columns, keep_every=None) as log:
                assert log.write([entry()])
                log.rotate()
                prediction_log.seal(f"u{umask}")
                assert log.write([entry()])
            assert len(prediction_log.read(f"u{umask}")) == 2
        finally:
            os.umask(before)
    for path in home.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_what_is_added_is_counted_too():
    with writer() as log:
        fill(log, 4)
        first = prediction_log.size(NAME)
        assert first == len(read())
        fill(log, 4)
        assert prediction_log.size(NAME) == 2 * first == len(read())

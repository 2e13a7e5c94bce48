"""What a deployment answered is on the disk minute by minute, whatever became of who counted it, and counted once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import nbdeploy
from asking import Adder
from nbdeploy import deployment, numbers_log, version_numbers
from nbdeploy import home as places
from nbdeploy.errors import InvalidName, NbdeployError
from nbdeploy.serving_metrics import Metrics
from nbdeploy.signature import Signature
from nbdeploy.signature_inference import infer_columns

NAME = "flights"
X = pd.DataFrame({"delay": [1.0, 2.0, 3.0]})


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture
def folder(home):
    return places.folder("run", NAME, "metrics")


@pytest.fixture
def metrics(folder):
    made = counting(folder)
    yield made
    made.close()


def counting(folder, version="v1", **options):
    log = SimpleNamespace(rows_written=0, dropped=0, failing="")
    made = Metrics(NAME, version, Signature(infer_columns(X)), log, folder=folder, **options)
    made.the_log = log
    return made


def ask(metrics, statuses=(200,), *, reason="", seconds=0.01, route="/predict", rows=0):
    for status in statuses:
        metrics.arrived()
        metrics.finished(route, status, reason, seconds)
    if rows:
        metrics.called([rows], 0.01, 0)
    metrics._share._write()  # now, not within a quarter of a second


def files():
    return sorted((places.home() / "numbers" / NAME).glob("*.jsonl"))


def test_what_never_ran_has_no_numbers(home):
    assert numbers_log.read(NAME).empty
    assert numbers_log.window(NAME) == {}
    assert numbers_log.running(NAME) == []
    assert not numbers_log.record(NAME, alive=True)
    assert (
        not numbers_log.read(NAME)
        .columns.symmetric_difference(
            ["time", "began", "version", "requests", "errors", "refused", "rows", "p50", "p99", "dropped", "reasons"]
        )
        .size
    )


def test_each_line_has_what_was_counted_since_the_one_before(metrics):
    ask(metrics, [200] * 7, rows=7)
    assert numbers_log.record(NAME)
    ask(metrics, [422, 422], reason="signature")
    ask(metrics, [503], reason="overload", seconds=0.7)
    ask(metrics, [404], reason="route", route="other")
    metrics.the_log.dropped = 3
    ask(metrics, [200], route="/metrics")
    assert numbers_log.record(NAME)

    first, second = numbers_log.read(NAME).to_dict("records")

    assert (first["version"], first["requests"], first["errors"], first["rows"], first["reasons"]) == (
        "v1",
        7,
        0,
        7,
        {},
    )
    assert 0.0075 < first["p50"] <= 0.01
    assert (second["requests"], second["errors"], second["refused"], second["rows"]) == (3, 1, 2, 0)
    assert second["reasons"] == {"signature": 2, "overload": 1, "route": 1}
    assert second["dropped"] == 3
    assert 0.5 < second["p99"] <= 0.75
    assert first["began"] <= first["time"] <= second["began"] <= second["time"] <= pd.Timestamp.now("UTC")


def test_a_window_is_the_sum_of_its_minutes_with_its_rate_and_its_quantiles(folder, metrics):
    other = counting(folder, "v10")
    for _ in range(3):
        ask(metrics, [200, 500], reason="model", seconds=0.002)
        ask(other, [200], seconds=3.0)
        numbers_log.record(NAME)
    other.close()

    found = numbers_log.window(NAME, since="1h")

    assert list(found) == ["v1", "v10"]
    assert found["v1"].error_rate == 0.5
    assert found["v1"].reasons == {"model": 3}
    assert 0.001 < found["v1"].quantile(0.99) <= 0.002
    assert 2.5 < found["v10"].quantile(0.5) <= 5
    assert isinstance(found["v1"], version_numbers.VersionNumbers)
    assert numbers_log.window(NAME, until="1h") == {}


def test_what_no_line_has_yet_is_read_from_the_counters(metrics):
    ask(metrics, [200] * 2)
    numbers_log.record(NAME)
    ask(metrics, [200] * 3)

    assert numbers_log.read(NAME).requests.tolist() == [2, 3]
    assert numbers_log.window(NAME)["v1"].requests == 5


def test_an_idle_minute_has_no_line_and_a_service_says_now_and_then_that_it_runs(metrics, monkeypatch):
    assert numbers_log.record(NAME, alive=True)  # it has begun
    assert not numbers_log.record(NAME, alive=True)
    assert not numbers_log.record(NAME)
    assert numbers_log.read(NAME).empty
    ((began, ended),) = numbers_log.running(NAME)
    assert ended - began < 10

    with monkeypatch.context() as patch:
        patch.setattr(numbers_log, "HEARTBEAT", 0.0)
        assert numbers_log.record(NAME, alive=True)
    assert numbers_log.record(NAME, ending=True)
    assert len(files()[0].read_bytes().splitlines()) == 3


def test_when_nobody_was_there_is_told_from_when_nobody_asked(home):
    now = time.time()
    lines = [("a", n, now - 9000 + 300 * n) for n in range(5)] + [("b", n, now - 3000 + 300 * n) for n in range(4)]
    for run, number, when in lines:
        write(when, {}, run=run, n=number)

    spans = numbers_log.running(NAME)

    assert [(round(began - now), round(ended - now)) for began, ended in spans] == [(-9000, -7800), (-3000, -2100)]
    assert numbers_log.running(NAME, since=now - 7000, until=now - 2500) == [(pytest.approx(now - 3000), now - 2500)]


def write(when, versions, run="r", n=1, began=None):
    """A line as somebody else wrote it."""
    day = datetime.fromtimestamp(when, timezone.utc).strftime("%Y-%m-%d")
    line = {"time": when, "from": when if began is None else began, "run": run, "n": n, "versions": versions}
    with (places.folder("numbers", NAME) / f"{day}.jsonl").open("ab") as file:
        file.write(json.dumps(line).encode() + b"\n")


def facts(requests, **more):
    return {"requests": requests, "errors": 0, "refused": 0, "rows": requests, "dropped": 0,
            "seconds": {"0.01": requests}, "reasons": {}, **more}  # fmt: skip


def test_only_the_window_counts_over_days(home):
    now = time.time()
    for days in range(10):
        write(now - days * 86_400, {"v1": facts(2**days)}, n=10 - days)

    assert numbers_log.window(NAME)["v1"].requests == 1023
    assert numbers_log.window(NAME, since=now - 2.5 * 86_400)["v1"].requests == 7
    assert numbers_log.window(NAME, since=now - 4 * 86_400, until=now - 2 * 86_400)["v1"].requests == 4 + 8


def test_a_restart_begins_anew_and_the_sum_goes_on(folder):
    for _ in range(3):
        made = counting(folder)
        ask(made, [200] * 4)
        numbers_log.record(NAME, alive=True)
        ask(made, [200])
        made.close()
        numbers_log.record(NAME)
        for left in folder.iterdir():
            left.unlink()

    assert numbers_log.window(NAME)["v1"].requests == 15


def test_what_was_written_right_before_a_crash_counts_once(folder, metrics):
    ask(metrics, [200] * 4)
    numbers_log.record(NAME)
    before = (folder / numbers_log.MARK).read_bytes()
    ask(metrics, [200] * 2)
    numbers_log.record(NAME)
    (folder / numbers_log.MARK).write_bytes(before)  # killed between the line and the mark
    assert numbers_log.window(NAME)["v1"].requests == 6
    ask(metrics, [200] * 3)
    assert numbers_log.window(NAME)["v1"].requests == 9

    numbers_log.record(NAME)

    assert numbers_log.read(NAME).requests.tolist() == [4, 5]
    metrics.close()
    for left in folder.iterdir():
        left.unlink()
    assert numbers_log.read(NAME).requests.tolist() == [4, 5]


@pytest.mark.parametrize("torn", [b'{"time": 17', b"\xff\xfe", b"[]", b"7", b'{"time": "x", "from": 1, "run": 1, "n": 1}',
                                  b'{"time": 1, "from": 1, "run": "a", "n": 1, "versions": {"v1": {"requests": "many"}}}',
                                  b'{"time": 1, "from": 1, "run": "a", "n": 1, "versions": {"v1": {"requests": 1, "errors": 0, "refused": 0, "rows": 1, "dropped": 0, "seconds": {"soon": 1}, "reasons": {}}}}'])  # fmt: skip
def test_a_torn_line_is_left_out_and_the_next_one_begins_on_its_own(metrics, torn):
    ask(metrics)
    numbers_log.record(NAME)
    with files()[-1].open("ab") as file:
        file.write(torn)  # and no end of the line
    ask(metrics, [200] * 2)
    numbers_log.record(NAME)

    assert numbers_log.read(NAME).requests.tolist() == [1, 2]


def test_a_disk_that_refuses_loses_nothing(folder, metrics, monkeypatch):
    ask(metrics, [200] * 4)
    real = os.write

    def half(descriptor, data):
        return real(descriptor, data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        assert not numbers_log.record(NAME)
    ask(metrics, [200])

    assert numbers_log.record(NAME)

    assert numbers_log.read(NAME).requests.tolist() == [5]


def test_a_counter_that_cannot_be_read_for_a_moment_is_not_counted_again(folder, metrics):
    other = counting(folder)
    ask(metrics, [200] * 4)
    ask(other, [200] * 5)
    numbers_log.record(NAME)
    other.close()
    hidden = folder / "hidden"
    other._share._path.rename(hidden)
    ask(metrics, [200])
    numbers_log.record(NAME)
    hidden.rename(other._share._path)
    numbers_log.record(NAME)

    assert numbers_log.window(NAME)["v1"].requests <= 10
    ask(metrics, [200] * 20)
    assert numbers_log.window(NAME)["v1"].requests == 30


def test_two_who_write_at_once_count_nothing_twice(folder, metrics):
    ended = threading.Event()
    code = (
        "from nbdeploy import numbers_log\nimport time\nwhile True:\n numbers_log.record('flights')\n time.sleep(.003)"
    )
    children = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    seen = []

    def look():
        while not ended.is_set():
            seen.append(sum(found.requests for found in numbers_log.window(NAME).values()))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(100):
            ask(metrics, [200])
            time.sleep(0.02)
    finally:
        ended.set()
        looking.join()
        for child in children:
            child.kill()
            child.wait()

    numbers_log.record(NAME)
    assert numbers_log.window(NAME)["v1"].requests == 100
    assert seen == sorted(seen)


def test_a_clock_that_jumps_removes_nothing_and_the_lines_are_bounded(metrics, monkeypatch):
    now = time.time()
    for days in range(5):
        write(now - days * 86_400, {"v1": facts(1)}, n=days)
    real = time.time
    for jump in (300 * 86_400, -300 * 86_400):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        ask(metrics, [200])
        assert numbers_log.record(NAME, days=7)
    monkeypatch.setattr(time, "time", real)
    assert len(files()) >= 5
    assert numbers_log.window(NAME, since=now - 5 * 86_400)["v1"].requests >= 5

    ask(metrics, [200])
    numbers_log.record(NAME, days=3)
    assert len(files()) == 3
    ask(metrics, [200])
    numbers_log.record(NAME, max_bytes=10)
    assert len(files()) == 1


def test_they_are_the_users_alone(folder, metrics):
    before = os.umask(0)
    try:
        ask(metrics)
        numbers_log.record(NAME)
    finally:
        os.umask(before)
    for path in (*files(), folder / numbers_log.MARK, folder / numbers_log.LOCK):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(files()[0].parent.stat().st_mode) == 0o700


def test_what_is_no_name_or_no_time_is_said(home):
    with pytest.raises(InvalidName):
        numbers_log.read("../etc")
    with pytest.raises(NbdeployError, match="is not a time"):
        numbers_log.read(NAME, since="yesterday noonish")


def test_shadows_are_left_out(folder, metrics):
    shadow = counting(folder, "v2", worker="shadow-v2")
    ask(shadow, [200] * 5)
    ask(metrics)
    numbers_log.record(NAME)
    shadow.close()

    assert list(numbers_log.window(NAME)) == ["v1"]


def test_a_worker_at_its_end_writes_nothing_into_the_folder_of_the_next_service(folder, metrics, monkeypatch):
    ask(metrics, [200] * 5)
    shutil.rmtree(folder)
    folder.mkdir()
    monkeypatch.setattr(os, "getppid", lambda: 1)  # its supervisor was killed
    ask(metrics, [200])
    metrics.close()

    assert not [*folder.iterdir()]


# -- a service ---------------------------------------------------------------------------------------------------


def asked(many):
    rows = pd.DataFrame({"a": np.arange(3.0)})
    for _ in range(many):
        nbdeploy.predict("adder", rows)


def until(holds, seconds=15):
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert holds()


def lines_have():
    """What is on the disk without the counters."""
    held = numbers_log._lines("adder", -np.inf, np.inf)
    return sum(part.requests for line in held for part in line.parts)


def test_the_minutes_of_a_service_add_up_whoever_is_killed(monkeypatch):
    monkeypatch.setenv(numbers_log.VARIABLE, "0.3")
    frame = pd.DataFrame({"a": np.arange(20.0)})
    service = nbdeploy.deploy(Adder(1), "adder", frame, workers=2)
    asked(20)
    until(lambda: lines_have() == 20)
    assert version_numbers.read("adder")["v1"].requests == 20
    assert numbers_log.window("adder")["v1"].rows == 60

    worker = next(told["pid"] for told in deployment.acknowledged("adder").values())
    time.sleep(0.4)
    os.kill(worker, signal.SIGKILL)
    asked(10)
    until(lambda: lines_have() == 30)

    os.kill(service.pid, signal.SIGSTOP)  # it writes no more
    asked(7)
    until(lambda: numbers_log.window("adder")["v1"].requests == 37)  # within a quarter of a second
    os.kill(service.pid, signal.SIGKILL)
    until(lambda: not service.alive)
    assert lines_have() == 30
    assert numbers_log.window("adder")["v1"].requests == 37

    nbdeploy.serve("adder")
    assert lines_have() == 37
    asked(5)
    nbdeploy.stop("adder")

    assert lines_have() == 42
    assert numbers_log.window("adder")["v1"].requests == 42
    assert len(numbers_log.running("adder")) == 2
    assert numbers_log.running("adder")[-1][1] <= time.time()

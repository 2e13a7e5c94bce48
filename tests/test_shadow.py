"""A shadow is asked what users ask, after they were answered. Whatever it does, they do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import psutil
import pytest

import nbdeploy
import services
from nbdeploy import arrow_body, model_store, prediction_log, processes, version_numbers, worker_numbers
from nbdeploy.errors import ReleaseError
from nbdeploy.exchange import Asked, new_request
from nbdeploy.home import folder
from nbdeploy.serve_options import ServeOptions
from nbdeploy.shadow_feed import MAX_WAITING, ShadowFeed
from nbdeploy.shadow_frames import MARK, MAX_FACTS, Frame, is_own, socket_path
from nbdeploy.shadow_worker import note_path

NAME = "moody"
X = pd.DataFrame({"a": [1.0, 2.0, 3.0]})
JSON = "application/json"


def mood_path():
    return Path(os.environ["NBDEPLOY_HOME"]) / "mood"


class Calm:
    """Doubles."""

    def predict(self, X):
        return [value * 2 for value in X["a"]]


class Moody:
    """Doubles, as long as no file says otherwise."""

    def __init__(self):
        self.fitted = True

    def __setstate__(self, state):
        self.__dict__ = state
        if mood_path().exists() and mood_path().read_text() == "never":
            os._exit(11)

    def predict(self, X):
        place = mood_path()
        mood = place.read_text() if place.exists() else ""
        if mood == "crash":
            os._exit(7)
        if mood == "hang":
            time.sleep(3600)
        if mood == "hang in C":  # with Python's lock
            re.match(r"(a+)+$", "a" * 60 + "b")
        if mood == "slow":
            time.sleep(0.3)
        if mood == "garbage":
            return [object()] * (len(X) + 1)
        if mood == "large":
            return [["x" * 1000]] * len(X)
        return [value * 2 for value in X["a"]]


PATHS = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PATHS)


@pytest.fixture(scope="module")
def saved():
    """A home in which a version is saved."""
    with services.own_home() as made, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATHS)
        nbdeploy.save(Moody(), NAME, X)
        yield made.parent


@pytest.fixture
def mood(saved, home):
    """A version is saved; what is written into this file, it does."""
    for part in ("home/versions", "bentoml/models"):  # beside them a Bento is still being built
        shutil.copytree(saved / part, home.parent / part)
    for made in (home, home.parent / "bentoml"):
        made.chmod(0o700)
    return mood_path()


@contextmanager
def shadowing(version="v1", name=NAME, **options):
    """A shadow's process as the supervisor starts it; the block begins when it answers."""
    run = folder("run", name)
    spec = {
        "name": name, "version": "v0", "folder": str(run), "metrics": str(folder("run", name, "metrics")),
        "options": ServeOptions(**options).to_dict(), "supervisor": os.getpid(),
    }  # fmt: skip
    place = run / "worker.json"
    place.write_text(json.dumps(spec))
    note = note_path(name, version)
    note.unlink(missing_ok=True)
    with (run / "said.txt").open("ab") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "nbdeploy.shadow_worker", version], cwd=run, stdout=said, stderr=said,
            env=processes.environment(NBDEPLOY_SPEC=str(place), OMP_NUM_THREADS="1"),
        )  # fmt: skip
    try:
        until(lambda: note.exists() or process.poll() is not None, 60)
        yield process
    finally:
        process.kill()
        process.wait()


def until(holds, seconds=90.0):
    # A shadow works while a core is free: beside other tests that may take a while.
    deadline = time.monotonic() + seconds
    while not (held := holds()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return held


def feeding(work, versions=("v1",), **options):
    """Run the coroutine function `work` with a feed in a loop of its own, as a worker has it."""

    async def run():
        feed = ShadowFeed(folder("run", NAME), **options)
        feed.set_versions(versions)
        try:
            return await work(feed)
        finally:
            feed.close()

    return asyncio.run(run())


async def settled(holds, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


def asked(body=b'{"a": 5}', path="/predict", media=JSON, **headers):
    path, _, query = path.partition("?")
    parsed = dict(part.split("=") for part in query.split("&") if part)
    return Asked("POST", path, parsed, {"content-type": media, **headers}, body)


def offered(*requests, rows=1):
    """Offer them, and return their ids when the shadow has been sent all of them."""
    ids = [new_request() for _ in requests]

    async def work(feed):
        for request, one in zip(ids, requests, strict=True):
            feed.offer(one, request, rows)
        await settled(lambda: feed.sent["v1"] + feed.dropped["v1"] == len(ids))
        assert feed.sent["v1"] == len(ids), feed.dropped

    feeding(work)
    return ids


def logged(name=NAME):
    return prediction_log.read(name, purpose="shadow")


def numbers(name=NAME):
    return worker_numbers.counted(folder("run", name, "metrics"))


def statuses(name=NAME):
    """How many requests the shadow counted, by status."""
    found = Counter()
    for key, count in numbers(name).get("nbdeploy_requests", {}).items():
        found[int(key[2])] += count[0]
    return found


# -- what it does -------------------------------------------------------------------------------------------


def test_a_shadows_rows_have_the_ids_of_the_live_answers_and_are_no_predictions(mood):
    with shadowing():
        ids = offered(*(asked(b'{"a": %d}' % value) for value in range(50)))
        until(lambda: len(logged()) == 50)
    rows = logged().set_index("prediction_id")
    assert set(rows.index) == {f"{request}-0" for request in ids}
    assert rows.loc[[f"{request}-0" for request in ids], "prediction"].tolist() == [2.0 * value for value in range(50)]
    assert set(rows["version"]) == {"v1"}
    assert prediction_log.read(NAME).empty


def test_every_protocol_reaches_it_also_where_the_path_names_another_version(mood):
    signature = model_store.get(NAME).signature
    tensor = {"name": "a", "datatype": "FP64", "shape": [1], "data": [7.0]}
    binary = {"name": "a", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": 8}}
    head = json.dumps({"inputs": [binary]}).encode()
    requests = [
        asked(b'[{"a": 7}]', "/predict/"),
        asked(arrow_body.write_rows(pd.DataFrame({"a": [7.0]}), signature), media=arrow_body.MEDIA),
        asked(b"a\n7\n", "/invocations", "text/csv; charset=utf-8"),
        asked(b'{"inputs": {"a": [7]}}', "/invocations"),
        asked(json.dumps({"inputs": [tensor]}).encode(), f"/v2/models/{NAME}/infer"),
        asked(json.dumps({"inputs": [tensor]}).encode(), f"/v2/models/{NAME}/versions/9/infer"),
        asked(head + struct.pack("<d", 7), f"/v2/models/{NAME}/versions/v9/infer", "application/octet-stream",
              **{"inference-header-content-length": str(len(head))}),
        asked(b'{"instances": [{"a": 7}]}', f"/v1/models/{NAME}:predict"),
        asked(b'{"instances": [{"a": 7}]}', f"/v1/models/{NAME}/versions/9:predict"),
        asked(b'{"rows": [{"a": 7}]}', "/bentoml/predict"),
    ]  # fmt: skip
    with shadowing():
        ids = offered(*requests)
        until(lambda: sum(statuses().values()) == len(requests))
        assert statuses() == {200: len(requests)}
    assert sorted(logged()["prediction_id"]) == sorted(f"{request}-0" for request in ids)
    assert set(logged()["prediction"]) == {14.0}


def test_what_it_cannot_answer_is_counted_by_its_version_and_no_worker_more(mood):
    with shadowing():
        offered(asked(), asked(b'{"b": 5}'), asked(b"{"), asked(path="/labels"), asked(path="/explain"))
        until(lambda: sum(statuses().values()) == 5)
        assert statuses() == {200: 1, 422: 1, 400: 1, 404: 2}
        mood.write_text("garbage")
        offered(asked())
        until(lambda: statuses().get(500))
        assert "nbdeploy_workers" not in numbers()
    assert len(logged()) == 1


def test_no_shadow_learns_who_asked_or_with_which_token():
    parts = Frame(asked(authorization="Bearer secret", cookie="a=b", **{"x-client-id": "me"}), new_request(), 1).parts
    assert b"secret" not in b"".join(parts)
    assert b"me" not in b"".join(parts)


def test_a_home_may_be_deeper_than_the_address_of_a_socket(mood, home, monkeypatch, tmp_path):
    deep = tmp_path.joinpath(*["a-folder-with-a-long-name"] * 6)
    shutil.copytree(home, deep)
    monkeypatch.setenv("NBDEPLOY_HOME", str(deep))
    assert len(str(socket_path(folder("run", NAME), "v1"))) > 150
    with shadowing():
        offered(asked())
        until(lambda: len(logged()) == 1)


def test_nobody_else_can_reach_it(mood):
    with shadowing():
        place = socket_path(folder("run", NAME), "v1")
        assert place.stat().st_mode & 0o777 == 0o600
        assert place.parent.stat().st_mode & 0o777 == 0o700


def test_a_process_of_another_user_is_not_heard(monkeypatch):
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert is_own(ours)
        monkeypatch.setattr(os, "getuid", lambda: 4321)
        assert is_own(ours) is not hasattr(socket, "SO_PEERCRED")


def test_it_says_when_it_answers_and_why_it_does_not(mood):
    with shadowing() as process:
        told = json.loads(note_path(NAME, "v1").read_text())
        assert told == {"generation": 0, "ready": True, "pid": process.pid, "failed": ""}
        assert psutil.Process(process.pid).nice() >= 10
    (model_store.get(NAME).path / "service.py").write_text("import os")
    with shadowing() as process:
        assert process.wait(30) == 1
        told = json.loads(note_path(NAME, "v1").read_text())
    assert told["ready"] is False
    assert "service.py" in told["failed"]


# -- what it cannot do --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["hang", "hang in C", "stopped"])
def test_one_that_hangs_loses_requests_which_are_counted_and_nobody_waits(mood, fault):
    body = b'{"a": 5%s}' % (b" " * 8_000)
    with shadowing() as process:
        if fault == "stopped":
            process.send_signal(signal.SIGSTOP)
        else:
            mood.write_text(fault)

        async def work(feed):
            longest = 0.0
            for _ in range(3_000):
                begun = time.perf_counter()
                feed.offer(asked(body), new_request(), 1)
                longest = max(longest, time.perf_counter() - begun)
                await asyncio.sleep(0)
            pipe = feed._pipes["v1"]
            assert pipe._held <= 1 << 20
            assert longest < 0.05
            await asyncio.sleep(0.2)
            waiting = len(pipe._waiting)
            assert feed.dropped["v1"] > 2_000
            assert feed.sent["v1"] + feed.dropped["v1"] + waiting == 3_000
            feed.set_versions(())
            assert feed.sent["v1"] + feed.dropped["v1"] == 3_000

        feeding(work, budget_bytes=1 << 20)


def test_small_requests_that_wait_are_bounded_by_their_number(mood):
    async def work(feed):
        await asyncio.sleep(0.2)
        for _ in range(10_000):
            feed.offer(asked(), new_request(), 1)
        assert len(feed._pipes["v1"]._waiting) <= MAX_WAITING
        assert feed.dropped["v1"] == 10_000 - MAX_WAITING

    with _deaf():
        feeding(work)


@contextmanager
def _deaf():
    """Somebody who listens where the shadow would, and reads nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path(folder("run", NAME), "v1")))
        listener.listen()
        yield listener


def test_one_that_crashes_is_found_again_when_another_takes_its_place(mood):

    async def work(feed):
        with shadowing() as process:
            await settled(lambda: feed._pipes["v1"]._socket is not None)
            mood.write_text("crash")
            feed.offer(asked(), new_request(), 1)
            await settled(lambda: process.poll() == 7)
            await settled(lambda: feed._pipes["v1"]._socket is None)
            feed.offer(asked(), new_request(), 1)
            assert feed.dropped["v1"] == 1
        mood.write_text("")
        with shadowing():
            await settled(lambda: feed._pipes["v1"]._socket is not None)
            feed.offer(asked(b'{"a": 8}'), request := new_request(), 1)
            await settled(lambda: len(logged()) == 1)
            assert logged()["prediction_id"].tolist() == [f"{request}-0"]

    feeding(work)


def test_one_that_is_slow_takes_no_more_than_it_can_hold(mood):
    body = json.dumps([{"a": 5}] * 1_000).encode()
    with shadowing() as process:
        before = psutil.Process(process.pid).memory_info().rss
        mood.write_text("slow")

        async def work(feed):
            for _ in range(2_000):
                feed.offer(asked(body), new_request(), 1_000)
                await asyncio.sleep(0.001)
            assert feed.dropped["v1"] > 500
            assert feed._pipes["v1"]._held <= 8 << 20

        feeding(work)
        assert psutil.Process(process.pid).memory_info().rss - before < 150 << 20


def test_what_is_no_frame_ends_its_connection_and_not_the_process(mood):
    good = b"".join(Frame(asked(), new_request(), 1).parts)
    facts = json.dumps(["POST", "/predict", {}, {}, "../../etc/passwd", 1]).encode()
    wrong = [
        b"GET / HTTP/1.1\r\n\r\n" + b"x" * 100,
        struct.pack("!4sII", MARK, MAX_FACTS + 1, 0),
        struct.pack("!4sII", MARK, 10, 0xFFFFFFFF),
        struct.pack("!4sII", MARK, 5, 0) + b"[1,2]",
        struct.pack("!4sII", MARK, 4, 0) + b"\xff\xfe{]",
        struct.pack("!4sII", MARK, len(facts), 0) + facts,
        *(good[:length] for length in (3, 12, 30, len(good) - 1)),
        os.urandom(5_000),
    ]
    with shadowing(max_body=1_000) as process:
        for sent in wrong:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(socket_path(folder("run", NAME), "v1")))
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(10)
                assert connection.recv(1) == b""
        offered(asked())
        until(lambda: len(logged()) == 1)
        assert process.poll() is None


@pytest.mark.parametrize("fault", ["", "hang", "hang in C"])
def test_it_ends_at_once_when_it_is_told_to(mood, fault):
    with shadowing() as process:
        mood.write_text(fault)
        offered(asked())
        time.sleep(0.3)
        process.terminate()
        assert process.wait(1) == -signal.SIGTERM


@pytest.mark.parametrize("fault", ["", "hang in C"])
def test_it_ends_with_its_parent(mood, fault):
    program = f"""
import os, sys, time
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_shadow import shadowing
with shadowing() as process:
    print(process.pid, flush=True)
    time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    mood.write_text(fault)
    offered(asked())
    time.sleep(0.3)
    parent.kill()
    parent.communicate()
    until(lambda: not processes.started(pid), 3)


# -- what it costs ------------------------------------------------------------------------------------------


def test_an_offer_costs_nothing_without_a_shadow_and_microseconds_with_one():
    def seconds(feed):
        one, request = asked(), new_request()
        taken = []
        for _ in range(20):
            begun = time.perf_counter()
            for _ in range(40):
                feed.offer(one, request, 1)
            taken.append((time.perf_counter() - begun) / 40)
        return float(np.median(taken))

    async def work(feed):
        await asyncio.sleep(0.2)
        return seconds(feed)

    with _deaf():
        assert feeding(work, ()) < 5e-6
        assert feeding(work) < 100e-6


def test_the_feed_counts_in_the_metrics_of_the_deployment(mood):
    metrics = folder("run", NAME, "metrics")

    async def work(feed):
        for _ in range(5):
            feed.offer(asked(), new_request(), 1)

    feeding(work, metrics=metrics, worker="1")
    told = worker_numbers.counted(metrics)
    assert told["nbdeploy_shadow_requests"] == {("v1", "sent"): [0], ("v1", "dropped"): [5]}
    assert not told["nbdeploy_workers"]


def test_a_feed_may_be_told_its_shadows_before_its_loop_runs():
    feed = ShadowFeed(folder("run", NAME))
    feed.set_versions(["v1", "v2"])

    async def work():
        feed.offer(asked(), new_request(), 1)
        feed.set_versions(["v2"])
        feed.offer(asked(), new_request(), 1)
        feed.close()

    asyncio.run(work())
    assert feed.dropped == {"v1": 1, "v2": 2}


# -- beside a deployment ------------------------------------------------------------------------------------

LIVE = "calm"


@pytest.fixture(scope="module")
def released():
    """A calm version is live, and a moody one is saved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATHS)
        with services.running(Calm(), LIVE, X) as (service, made):
            nbdeploy.save(Moody(), LIVE, X)
            yield service, made


@pytest.fixture
def live(released, monkeypatch):
    """The deployment, with the moody version as its shadow."""
    service, made = released
    monkeypatch.setenv("NBDEPLOY_HOME", str(made))
    monkeypatch.setenv("BENTOML_HOME", str(made.parent / "bentoml"))
    mood_path().unlink(missing_ok=True)
    nbdeploy.traffic(LIVE, shadow=["v2"], progress=False)
    with httpx.Client(base_url=service.url) as client:  # every worker finds it within a moment
        until(lambda: ask(client, 0) in set(logged(LIVE).get("prediction_id", ())))
    yield service
    mood_path().unlink(missing_ok=True)
    end_shadows(service)


def end_shadows(service):
    nbdeploy.traffic(LIVE, shadow=[], progress=False)
    until(lambda: not shadow_pids(service))


def ask(client, value, **headers):
    answer = client.post("/predict", json={"a": value}, headers=headers)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["predictions"] == [2.0 * value]
    assert told["version"] == "v1"
    return told["prediction_ids"][0]


def test_every_row_of_a_user_has_a_shadow_and_the_answer_tells_nothing_of_it(live):
    with httpx.Client(base_url=live.url, timeout=30) as client:
        with_one = client.post("/predict", json={"a": 1})
        before = len(logged(LIVE))
        asked_of = [ask(client, value) for value in range(100)]
        until(lambda: set(asked_of) <= set(logged(LIVE)["prediction_id"]))
        gate = ask(client, 7, **{"X-NBDeploy-Purpose": "gate"})
        nbdeploy.traffic(LIVE, shadow=[], progress=False)
        without = client.post("/predict", json={"a": 1})
    rows = logged(LIVE)
    assert gate not in set(rows["prediction_id"])
    assert len(rows) - before <= 102
    assert set(rows["version"]) == {"v2"}
    assert set(prediction_log.read(LIVE)["version"]) == {"v1"}
    assert with_one.headers.keys() == without.headers.keys()
    assert with_one.json().keys() == without.json().keys()
    assert "v2" not in with_one.text


def test_no_client_can_claim_to_be_a_shadow(live):
    nbdeploy.traffic(LIVE, shadow=[], progress=False)
    with httpx.Client(base_url=live.url) as client:
        mine = ask(client, 3, **{"X-NBDeploy-Purpose": "shadow"})
    assert mine in set(prediction_log.read(LIVE)["prediction_id"])
    assert mine not in set(logged(LIVE)["prediction_id"])


@pytest.mark.parametrize("fault", ["hang", "hang in C", "crash", "garbage", "slow"])
@pytest.mark.parametrize("count", [100, pytest.param(2_000, marks=pytest.mark.slow)])
def test_no_fault_of_a_shadow_reaches_a_user(live, fault, count):
    failed = version_numbers.read(LIVE, shadows=True)["v2"].errors
    pids = shadow_pids(live)
    with httpx.Client(base_url=live.url, timeout=30) as client:
        ask(client, 1)
        mood_path().write_text(fault)
        for value in range(count):
            ask(client, value)
        if fault == "crash":
            until(lambda: shadow_pids(live) != pids)
        if fault == "garbage":
            until(lambda: version_numbers.read(LIVE, shadows=True)["v2"].errors > failed)
        ask(client, 2)


def shadow_pids(service):
    found = set()
    for child in psutil.Process(service.pid).children():
        with contextlib.suppress(psutil.Error):
            if "nbdeploy.shadow_worker" in child.cmdline():
                found.add(child.pid)
    return found


def test_it_is_told_when_a_version_cannot_be_a_shadow_and_it_is_none(live):
    end_shadows(live)
    mood_path().write_text("never")
    with pytest.raises(ReleaseError, match=r"calm:v2 cannot be a shadow: it ended with code 11"):
        nbdeploy.traffic(LIVE, shadow=["v2"], progress=False)
    assert nbdeploy.traffic(LIVE).shadow == ()
    until(lambda: not shadow_pids(live))
    with httpx.Client(base_url=live.url) as client:
        ask(client, 3)


def test_the_page_of_metrics_counts_what_shadows_were_handed_and_no_worker_for_them(live):
    with httpx.Client(base_url=live.url) as client:
        ask(client, 3)
        until(lambda: 'nbdeploy_shadow_requests_total{fate="sent",version="v2"}' in client.get("/metrics").text)
        page = client.get("/metrics").text
    assert 'nbdeploy_workers{version="v1"} 1.0' in page
    assert 'nbdeploy_workers{version="v2"}' not in page


def test_it_ends_with_the_traffic_that_named_it_and_leaves_nothing(live):
    assert len(shadow_pids(live)) == 1
    nbdeploy.traffic(LIVE, shadow=[], progress=False)
    until(lambda: not shadow_pids(live))
    until(lambda: not note_path(LIVE, "v2").exists())
    until(lambda: not socket_path(folder("run", LIVE), "v2").exists())

"""Several workers answer on one socket. One that dies is replaced; the others, and the requests, do not notice."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import time

import httpx
import pandas as pd
import psutil
import pytest

import nbdeploy
from nbdeploy import deployment, home, processes

X = pd.DataFrame({"a": [1.0, 2.0, 3.0]})


class Who:
    """Says for a row above 100 which process answers, and takes as many milliseconds."""

    def predict(self, X):
        milliseconds = float(X["a"].max())
        time.sleep(milliseconds / 1000 if milliseconds > 100 else 0)
        return [os.getpid() if value > 100 else 0 for value in X["a"]]


class Shy(Who):
    """Cannot be loaded where the file that it was told of exists."""

    def __init__(self, hindrance):
        self.hindrance = hindrance

    def __setstate__(self, state):
        self.__dict__ = state
        if os.path.exists(self.hindrance):
            os._exit(11)


class Counting(Who):
    """Writes down which process loads it."""

    def __init__(self, loads):
        self.loads = loads

    def __setstate__(self, state):
        self.__dict__ = state
        with open(self.loads, "a") as file:
            print(os.getpid(), file=file)


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))


def workers_of(service):
    found = {}
    for child in psutil.Process(service.pid).children():
        words = child.cmdline()
        found[int(words[words.index("--worker-id") + 1])] = child
    return found


def ask(service, milliseconds=150.0):
    """The process that answered, on a connection of its own."""
    answer = httpx.post(f"{service.url}/predict", json={"a": milliseconds}, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"][0]


def until(holds, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def rows_counted(service):
    lines = httpx.get(f"{service.url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("nbdeploy_rows_total{"))


def test_workers_share_the_work_and_one_that_is_killed_is_replaced_by_itself(tmp_path):
    loads = tmp_path / "loads"
    service = nbdeploy.deploy(Counting(str(loads)), "who", X, workers=2)
    workers = workers_of(service)
    assert sorted(workers) == [1, 2]
    assert (service.workers, nbdeploy.status().loc["who", "workers"]) == (2, 2)
    # It was rehearsed once, by the first; the second has the version as it was saved.
    assert sorted(map(int, loads.read_text().split())) == sorted(worker.pid for worker in workers.values())
    spec = home.read_json(home.home() / "run" / "who" / "worker.json")
    assert spec["path"] == str(home.bentoml_home() / "models" / "who" / "v1")
    assert "rows" not in spec

    with concurrent.futures.ThreadPoolExecutor(16) as clients:
        answered = set(clients.map(lambda _: ask(service), range(32)))
    assert answered == {worker.pid for worker in workers.values()}
    until(lambda: rows_counted(service) == 32)  # of both, whichever is asked
    workers[1].kill()

    # The other goes on meanwhile, and is left alone.
    for _ in range(10):
        ask(service)
    until(lambda: service.workers == 2 and len(workers_of(service)) == 2, 30)
    again = workers_of(service)
    assert again[2] == workers[2]
    assert again[1] != workers[1]
    assert "worker 1 ended with code -9; starting another" in nbdeploy.logs("who")
    until(lambda: rows_counted(service) == 42)  # what the dead one counted still counts

    family = processes.family(service.pid, service.identity)
    assert len(family) == 3
    os.kill(service.pid, signal.SIGKILL)

    until(lambda: not [process for process in family if process.is_running()], 5)


def test_each_worker_is_known_by_its_deployment_and_none_is_left_after_stop():
    service = nbdeploy.deploy(Who(), "who", X, workers=2)
    family = processes.family(service.pid, service.identity)
    assert len(family) == 3

    with concurrent.futures.ThreadPoolExecutor(6) as clients:
        asking = [clients.submit(ask, service, 1000.0) for _ in range(6)]
        time.sleep(0.5)
        nbdeploy.stop("who")
        # What was in flight is answered before its worker ends.
        assert all(each.result() in {process.pid for process in family} for each in asking)

    assert not [process for process in family if process.is_running()]
    assert not list((home.home() / "run" / "who").glob("ready"))


@pytest.mark.slow
def test_a_worker_that_cannot_start_again_is_tried_ever_more_slowly_and_the_others_answer(tmp_path):
    hindrance = tmp_path / "hindrance"
    service = nbdeploy.deploy(Shy(str(hindrance)), "shy", X, workers=2)
    workers = workers_of(service)
    hindrance.touch()

    workers[2].kill()

    until(lambda: nbdeploy.logs("shy").count("worker 2 ended with code 11") >= 2, 40)
    assert service.workers == 1
    assert service.state == "live"
    assert ask(service) == workers[1].pid
    pauses = [line.rpartition(" in ")[2] for line in nbdeploy.logs("shy").splitlines() if "worker 2 ended" in line]
    assert pauses[:3] == ["0.2 s", "0.4 s", "0.8 s"]
    hindrance.unlink()
    until(lambda: service.workers == 2, 30)


@pytest.mark.slow
def test_workers_that_are_not_ready_in_time_are_an_error_and_the_service_answers(tmp_path, monkeypatch):
    hindrance = tmp_path / "hindrance"
    nbdeploy.save(Shy(str(hindrance)), "shy", X)
    monkeypatch.setattr(deployment, "START_TIMEOUT", 8.0)
    waited = deployment._await_workers

    def hindered(*given):
        hindrance.touch()
        waited(*given)

    monkeypatch.setattr(deployment, "_await_workers", hindered)

    with pytest.raises(nbdeploy.ServiceError, match="answers, but only 1 of its 2 workers are ready"):
        nbdeploy.serve("shy", workers=2)

    assert nbdeploy.status().loc["shy", "workers"] == 1
    assert len(nbdeploy.predict("shy", X)) == 3


def test_a_number_of_workers_that_differs_from_what_runs_is_one_line():
    service = nbdeploy.deploy(Who(), "who", X)

    assert nbdeploy.serve("who") == service
    assert nbdeploy.serve("who", workers=1) == service
    for again in (lambda: nbdeploy.serve("who", workers=2), lambda: nbdeploy.deploy(Who(), "who", X, workers=2)):
        with pytest.raises(nbdeploy.NbdeployError, match=r"running already with workers=1\. Stop it first"):
            again()
    assert [version.version for version in nbdeploy.versions("who")] == ["v1"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_times_killed_the_service_is_whole_again_by_itself():
    service = nbdeploy.deploy(Who(), "who", X, workers=2)

    for time_ in range(20):
        workers = workers_of(service)
        workers[1 + time_ % 2].kill()
        assert ask(service)
        until(lambda: service.workers == 2 and len(workers_of(service)) == 2, 60)

    nbdeploy.stop("who")
    assert not service.alive

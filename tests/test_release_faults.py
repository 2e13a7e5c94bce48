"""Around a release much can go wrong: files are edited, versions deleted or broken, workers begin in the midst of it."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

import nbdeploy
from asking import Adder
from nbdeploy import deployment, routing

X = pd.DataFrame({"a": np.arange(200.0), "who": [f"client {i % 50}" for i in range(200)]})


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture
def service():
    """Three versions of one deployment, the first of them live."""
    started = nbdeploy.deploy(Adder(1), "adder", X, workers=2)
    nbdeploy.save(Adder(2), "adder", X)
    nbdeploy.save(Adder(3), "adder", X)
    return started


def promote(version, **options):
    return nbdeploy.promote("adder", version, force="the test's", **options)


def answering():
    """The versions that answer a few requests."""
    return {nbdeploy.predict("adder", X.head(1)).version[0] for _ in range(8)}


def loaded():
    return [told["loaded"] for told in deployment.acknowledged("adder").values()]


def eventually(true, seconds=20):
    deadline = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_nobody_gets_another_version_because_a_worker_begins(service):
    nbdeploy.traffic("adder", v1=50, v2=30, v3=20, sticky="who")
    expected = nbdeploy.predict("adder", X.head(50)).version.tolist()
    seen = []
    for worker in [p for p in psutil.Process(service.pid).children() if "nbdeploy.worker" in p.cmdline()]:
        worker.kill()
        worker.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and (len(seen) < 20 or deployment.get("adder").workers < 2):
        seen.append(nbdeploy.predict("adder", X.head(50)).version.tolist())
    assert len(seen) >= 20
    assert all(versions == expected for versions in seen)


class Fails(Adder):
    """Answers what training had, and fails on all else."""

    def predict(self, X):
        if (X["a"] > 1_000).any():
            msg = "too large"
            raise ValueError(msg)
        return super().predict(X)


def test_what_a_version_fails_counts_under_it_also_where_others_answer_rows_of_the_same_request(service):
    from nbdeploy import version_numbers

    nbdeploy.save(Fails(4), "adder", X)
    nbdeploy.traffic("adder", v1=50, v4=50, sticky="who")
    asked = X.assign(a=2_000.0).head(20)
    with pytest.raises(nbdeploy.NbdeployError):
        nbdeploy.predict("adder", asked)
    assert set(nbdeploy.predict("adder", X.head(20)).version) == {"v1", "v4"}

    def counted():
        numbers = version_numbers.read("adder")
        return {v: (numbers[v].requests, numbers[v].errors + numbers[v].refused) for v in ("v1", "v4") if v in numbers}

    assert eventually(lambda: counted() == {"v1": (1, 0), "v4": (2, 1)}, 5), counted()


class Whole(Adder):
    def predict(self, X):
        return super().predict(X).astype("int64")


class Halves(Adder):
    def predict(self, X):
        return super().predict(X) + 0.5


def test_our_client_changes_no_answer_into_what_the_live_version_would_give():
    nbdeploy.deploy(Whole(1), "halves", X)
    nbdeploy.save(Halves(2), "halves", X)
    nbdeploy.traffic("halves", v1=50, v2=50, allow_signature_change=True)
    for rows in (X.head(15), X):  # JSON, Arrow
        told = [nbdeploy.predict("halves", rows) for _ in range(16)]
        assert {found.version[0] for found in told} == {"v1", "v2"}
        for found in told:
            assert (found.prediction == rows.a + {"v1": 100.0, "v2": 200.5}[found.version[0]]).all()


def test_versions_that_answer_otherwise_do_not_share_a_request():
    from sklearn.linear_model import LogisticRegression

    few, many = (X.a % 2).astype(int), (X.a % 3).astype(int)
    nbdeploy.deploy(LogisticRegression().fit(X[["a"]], few), "classes", X[["a"]])
    nbdeploy.save(LogisticRegression().fit(X[["a"]], many), "classes", X[["a"]])
    with pytest.raises(nbdeploy.ReleaseError, match="cannot answer rows of one request: its classes are 0, 1, 2"):
        nbdeploy.traffic("classes", v1=50, v2=50, sticky="a", allow_signature_change=True)
    assert nbdeploy.traffic("classes", v1=50, v2=50, sticky="X-Client-ID", allow_signature_change=True).candidates
    with pytest.raises(nbdeploy.ReleaseError, match="cannot answer rows of one request"):
        nbdeploy.traffic("classes", sticky="a", allow_signature_change=True)


class Large(Adder):
    def __init__(self, number):
        super().__init__(number)
        self.held = np.full(100 << 17, float(number))  # 100 MB


def test_what_is_unloaded_gives_its_memory_its_threads_and_its_files_back():
    service = nbdeploy.deploy(Large(1), "large", X.head(20))
    for number in (2, 3):
        nbdeploy.save(Large(number), "large", X.head(20))
    worker = next(p for p in psutil.Process(service.pid).children() if "nbdeploy.worker" in p.cmdline())

    def uses():
        return worker.memory_info().rss >> 20, worker.num_threads(), worker.num_fds()

    def promoted(version):
        changed = nbdeploy.promote("large", version, force="x")
        nbdeploy.predict("large", X.head(2))
        told = nbdeploy.traffic("large")
        both = sorted([told.live, told.before[-1]])
        assert eventually(lambda: deployment.acknowledged("large")["1"]["loaded"] == both)
        time.sleep(1)
        return changed

    ((old, new),) = promoted("v2").memory
    assert 60 < (new - old) >> 20 < 140
    before = uses()
    for version in ("v3", "v1", "v3", "v2"):
        promoted(version)
    assert eventually(lambda: uses()[0] < before[0] + 60), (before, uses())
    after = uses()
    assert after[1] <= before[1] + 2, (before, after)
    assert after[2] <= before[2] + 2, (before, after)


def test_a_promotion_while_the_service_starts_comes_after_it(service, monkeypatch):
    nbdeploy.stop("adder")
    start, promoting = deployment.launch, threading.Thread(target=promote, args=("v2",))

    @contextmanager
    def launch(*given, **more):
        with start(*given, **more) as probation:
            promoting.start()
            time.sleep(1)
            yield probation

    monkeypatch.setattr(deployment, "launch", launch)
    nbdeploy.serve("adder")
    promoting.join()
    assert answering() == {nbdeploy.traffic("adder").live} == {"v2"}
    assert nbdeploy.history("adder").action.tolist() == ["promote", "served"]


def test_what_a_killed_release_left_prepared_holds_up_no_worker_and_is_forgotten_by_the_next_start(tmp_path):
    told = tmp_path / "slow"
    service = nbdeploy.deploy(Adder(1), "adder", X)
    nbdeploy.save(Slow(2, str(told)), "adder", X)
    nbdeploy.save(Adder(3), "adder", X)
    nbdeploy.traffic("adder", v1=50, v3=50)
    told.touch()
    routing.change("adder", lambda old: replace(old, warm=("v2",)))
    worker = next(p for p in psutil.Process(service.pid).children() if "nbdeploy.worker" in p.cmdline())
    worker.kill()
    worker.wait()
    begun = time.monotonic()
    assert answering() == {"v1", "v3"}
    assert time.monotonic() - begun < 15
    nbdeploy.stop("adder")
    nbdeploy.serve("adder")
    assert nbdeploy.traffic("adder").warm == ()


class Slow(Adder):
    """Is loaded in no time until a file is there."""

    def __init__(self, number, told):
        super().__init__(number)
        self.told = told

    def __setstate__(self, state):
        self.__dict__ = state
        if Path(self.told).exists():
            time.sleep(60)


def test_what_a_worker_could_not_load_is_told_also_where_a_guard_has_written_meanwhile(service):
    routing.change("adder", lambda old: replace(old, warm=("v2",)))
    assert eventually(lambda: loaded() == [["v1", "v2"]] * 2)
    generation = nbdeploy.traffic("adder").generation
    notes = sorted((Path(service.log).parent / "applied").glob("[12].json"))
    for note in notes:
        told = json.loads(note.read_text())
        note.write_text(json.dumps({**told, "generation": generation + 1, "loaded": ["v1"], "failed": {"v2": "no"}}))
    with pytest.raises(nbdeploy.ReleaseError, match="worker 1 cannot load adder:v2: no"):
        deployment.await_applied(service, generation, 1, versions=["v2"])


BROKEN = [
    '{"live": "v1", "wei', "[]", '{"live": 1}', '{"live": "v1", "weights": "v1"}', '{"live": "v1", "shadow": [5]}',
    '{"live": "v1", "generation": "x"}', '{"live": "v1", "slots": {"versions": ["v1"], "slots": "!"}}',
    '{"live": "v1", "guard": 5}', '{"live": "v1", "shadow": 5, "history": 3}',
]  # fmt: skip


def test_a_broken_traffic_file_is_told_in_a_line():
    nbdeploy.save(Adder(1), "adder", X.head())
    routing.go_live("adder", "v1", "first release")
    for written in BROKEN:
        routing.path("adder").write_text(written)
        for verb in (nbdeploy.traffic, nbdeploy.rollback):
            with pytest.raises(nbdeploy.NbdeployError, match=re.escape(str(routing.path("adder")))) as refused:
                verb("adder")
            assert "\n" not in str(refused.value)
        assert routing.path("adder").read_text() == written
    with pytest.raises(nbdeploy.NbdeployError, match=re.escape(str(routing.path("adder")))):
        nbdeploy.history("adder")


def test_a_service_goes_on_while_its_traffic_file_is_broken_and_follows_it_when_it_is_mended(service):
    promote("v2")
    whole = routing.path("adder").read_text()
    for broken in (whole[:-40], '{"live": "v1", "weights": 3, "shadow": 5}'):
        routing.path("adder").write_text(broken)
        time.sleep(0.7)
        assert answering() == {"v2"}
        assert deployment.get("adder").alive
    told = [line for line in nbdeploy.logs("adder").splitlines() if "the traffic cannot be read" in line]
    assert 2 <= len(told) <= 4 * 2  # each of two workers, and not fifty times a second
    routing.path("adder").write_text(whole)
    nbdeploy.traffic("adder", v2=50, v3=50)
    assert answering() == {"v2", "v3"}
    routing.path("adder").write_text("{")
    nbdeploy.stop("adder")


def test_a_version_that_is_deleted_is_not_where_rollback_goes(service):
    promote("v2")
    promote("v3")
    nbdeploy.delete("adder", "v2")
    assert nbdeploy.traffic("adder").before == ("v1",)
    assert eventually(lambda: loaded() == [["v1", "v3"]] * 2), loaded()
    assert nbdeploy.rollback("adder").live == "v1"

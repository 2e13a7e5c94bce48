"""Who answers is changed under load, by anybody, at any time: nobody goes without an answer, and none is wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

import nbdeploy
from asking import Adder, clients
from nbdeploy import deployment, model_store, routing, version_numbers

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


def answering(rows=1):
    """The versions that answer a few requests."""
    return {nbdeploy.predict("adder", X.head(rows)).version[0] for _ in range(8)}


# -- candidates, splits ------------------------------------------------------------------------------------------


def test_what_is_saved_under_a_live_name_is_a_candidate_and_gets_no_request(service):
    assert nbdeploy.traffic("adder").weights == {"v1": 100}
    assert answering() == {"v1"}


def test_a_split_by_request_has_its_shares_and_every_answer_and_log_row_names_its_version(service):
    nbdeploy.traffic("adder", v1=70, v2=30)
    with clients(service.url, 8) as told:
        time.sleep(1.5)
    (told,) = told
    assert not told["failed"] + told["wrong"]
    share = told["versions"]["v2"] / told["requests"]
    assert abs(share - 0.3) < 4 * (0.21 / told["requests"]) ** 0.5
    log = nbdeploy.predictions("adder").set_index("prediction_id")
    assert set(told["ids"]) <= set(log.index)
    assert (log.prediction == log.a + log.version.map({"v1": 100.0, "v2": 200.0})).all()
    assert log.version.value_counts().to_dict() == told["versions"]


def test_sticky_by_a_header_keeps_a_client_with_one_version_over_a_restart(service):
    nbdeploy.traffic("adder", v1=50, v2=50, sticky="X-Client-ID")
    seen = []
    for _ in range(2):
        with clients(deployment.get("adder").url, 16) as told:
            time.sleep(0.5)
        seen.append({who: list(versions) for who, versions in told[0]["by_client"].items()})
        nbdeploy.stop("adder")
        nbdeploy.serve("adder", workers=2)
    assert seen[0] == seen[1]
    assert all(len(versions) == 1 for versions in seen[0].values())
    assert {v for versions in seen[0].values() for v in versions} == {"v1", "v2"}


def test_sticky_by_a_column_gives_each_row_its_version_whatever_else_is_asked_with_it(service):
    nbdeploy.traffic("adder", v1=50, v2=50, sticky="who")
    together = nbdeploy.predict("adder", X)  # Arrow
    few = nbdeploy.predict("adder", X.head(15))  # JSON
    assert set(together.version) == {"v1", "v2"}
    assert (together.prediction == X.a + together.version.map({"v1": 100.0, "v2": 200.0})).all()
    assert together.groupby(X.who).version.nunique().max() == 1
    assert few.version.tolist() == together.version[:15].tolist()
    alone = [nbdeploy.predict("adder", X.iloc[[i]]).version.iloc[0] for i in range(15)]
    assert alone == few.version.tolist()
    log = nbdeploy.predictions("adder").set_index("prediction_id")
    for answer in (together, few):
        logged = log.loc[answer.prediction_id]
        assert logged.version.tolist() == answer.version.tolist()
        assert logged.a.tolist() == X.a[: len(answer)].tolist()
    # What is changed elsewhere changes nothing for them.
    nbdeploy.traffic("adder", v1=40, v2=50, v3=10)
    after = nbdeploy.predict("adder", X)
    assert (after.version[together.version == "v2"] == "v2").all()


def test_rows_that_a_sticky_column_gives_to_a_version_must_fit_its_own_signature():
    nbdeploy.deploy(Adder(1), "adder", X.assign(b=[None, *X.a[1:]]))
    nbdeploy.save(Adder(2), "adder", X.assign(b=X.a))
    nbdeploy.traffic("adder", v1=50, v2=50, sticky="who", allow_signature_change=True)
    version = nbdeploy.predict("adder", X.assign(b=1.0)).version
    with nbdeploy.connect("adder") as http:
        for name, status in (("v1", 200), ("v2", 422)):
            row = X[version == name].iloc[0].to_dict()
            assert http.post("/predict", json=[row | {"b": 1.0}]).json()["version"] == name
            assert http.post("/predict", json=[row | {"b": None}]).status_code == status


def test_a_value_of_a_sticky_column_is_the_same_whether_it_came_as_json_or_as_arrow():
    frame = X.assign(who=(X.a / 10).astype("float32"))
    nbdeploy.deploy(Adder(1), "adder", frame)
    nbdeploy.save(Adder(2), "adder", frame)
    nbdeploy.traffic("adder", v1=50, v2=50, sticky="who")
    arrow = nbdeploy.predict("adder", frame).version.tolist()
    with nbdeploy.connect("adder") as http:
        rows = [{"a": value, "who": value / 10} for value in X.a]
        assert http.post("/predict", json=rows).json()["versions"] == arrow


class Choosy(Adder):
    """Fails on numbers that training never saw."""

    def predict(self, X):
        if (X["a"] > 1000).any():
            raise ValueError
        return super().predict(X)


def test_rows_that_several_versions_answer_count_at_each_and_a_failure_at_whom_it_happened(service):
    nbdeploy.save(Choosy(4), "adder", X)
    nbdeploy.traffic("adder", v1=50, v4=50, sticky="who")
    answers = nbdeploy.predict("adder", X)
    theirs = X.a.where(answers.version == "v1", X.a + 2000)
    for _ in range(3):
        with pytest.raises(nbdeploy.InputError):
            nbdeploy.predict("adder", X.assign(a=theirs))

    def told():
        found = version_numbers.read("adder")
        return [(found[version].requests, found[version].refused) for version in ("v1", "v4") if version in found]

    assert eventually(lambda: told() == [(1, 0), (4, 3)], 10), told()


def test_a_request_may_name_its_version_where_the_deployment_allows_it(service):
    nbdeploy.traffic("adder", v1=90, v2=10)
    body = X.head(1).to_dict("records")
    with nbdeploy.connect("adder") as http:
        for version in ("v2", "2"):
            assert http.post("/predict", params={"version": version}, json=body).json()["version"] == "v2"
        assert http.post("/v1/models/adder/versions/2:predict", json={"instances": body}).json()["predictions"] == [
            200.0
        ]
        assert http.get("/signature", params={"version": "v2"}).json()["version"] == "v2"
        unknown = http.post("/predict", params={"version": "v3"}, json=body)
        assert (unknown.status_code, unknown.json()["error"]) == (404, "adder serves no 'v3' there. Known: v1, v2.")
        nbdeploy.traffic("adder", pin=False)
        assert http.post("/predict", params={"version": "v2"}, json=body).status_code == 403
        assert http.post("/v1/models/adder/versions/2:predict", json={"instances": body}).status_code == 403
        assert http.post("/predict", params={"version": "v1"}, json=body).status_code == 200


def test_without_requests_to_split_the_service_can_be_told_for_when_it_starts(service):
    nbdeploy.stop("adder")
    nbdeploy.traffic("adder", v1=50, v2=50, sticky="who")
    nbdeploy.serve("adder")
    assert set(nbdeploy.predict("adder", X).version) == {"v1", "v2"}


# -- promote, rollback -------------------------------------------------------------------------------------------


def test_rollback_goes_to_the_version_live_before_and_twice_means_two_back(service):
    promote("v2", why="better")
    promote("v3")
    assert answering() == {"v3"}
    assert nbdeploy.rollback("adder", why="worse").live == "v2"
    assert answering() == {"v2"}
    assert nbdeploy.rollback("adder").live == "v1"
    assert answering() == {"v1"}
    with pytest.raises(nbdeploy.ReleaseError, match="nothing was live before adder:v1"):
        nbdeploy.rollback("adder")
    history = nbdeploy.history("adder")
    assert history[["action", "from", "to"]].to_numpy().tolist() == [
        ["rollback", "v2", "v1"], ["rollback", "v3", "v2"], ["promote", "v2", "v3"], ["promote", "v1", "v2"],
        ["served", "", "v1"],
    ]  # fmt: skip
    assert history.why.tolist()[1:4] == ["worse", "forced: the test's", "forced: the test's; better"]
    assert len(set(history.who)) == 1
    assert history.time.is_monotonic_decreasing


def test_a_change_of_traffic_is_followed_by_a_restart_and_by_a_killed_worker(service):
    promote("v2")
    nbdeploy.traffic("adder", v2=60, v3=40, sticky="who")
    expected = nbdeploy.predict("adder", X).version.tolist()
    for worker in psutil.Process(service.pid).children():
        worker.kill()
        worker.wait()
    deadline = time.monotonic() + 30
    while deployment.get("adder").workers < 2 or len(deployment.acknowledged("adder")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert nbdeploy.predict("adder", X).version.tolist() == expected
    nbdeploy.stop("adder")
    again = nbdeploy.serve("adder")
    assert again.version == "v2"
    assert nbdeploy.predict("adder", X).version.tolist() == expected


def test_what_is_not_routed_to_is_unloaded_and_the_version_before_stays(service):
    nbdeploy.traffic("adder", v1=80, v2=10, v3=10)
    assert loaded() == [["v1", "v2", "v3"]] * 2
    promote("v2")
    assert eventually(lambda: loaded() == [["v1", "v2"]] * 2), loaded()
    promote("v3")
    assert eventually(lambda: loaded() == [["v2", "v3"]] * 2), loaded()


def test_the_memory_of_each_worker_is_told_before_and_after(service):
    changed = nbdeploy.traffic("adder", v1=90, v2=10)
    assert len(changed.memory) == 2
    assert all(old > 1 << 20 < new for old, new in changed.memory)
    assert re.search(r"memory \d+ → \d+ MB", repr(changed))


def loaded():
    return [told["loaded"] for told in deployment.acknowledged("adder").values()]


def eventually(true, seconds=20):
    deadline = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


# -- no request is lost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "least"), [(8, 1_000), pytest.param(50, 20_000, marks=pytest.mark.slow)])
def test_no_change_of_traffic_loses_a_request_or_gives_a_wrong_answer(service, changes, least):
    with clients(service.url, 16) as told:
        time.sleep(0.3)
        for i in range(changes):
            if i % 4 == 0:
                promote(["v2", "v3"][i // 4 % 2])
            elif i % 4 == 1:
                now = nbdeploy.traffic("adder")
                other = next(v for v in ("v1", "v2", "v3") if v != now.live)
                nbdeploy.traffic("adder", **{now.live: 50, other: 50})
            elif i % 4 == 2:
                nbdeploy.traffic("adder", **{nbdeploy.traffic("adder").live: 100})
            else:
                nbdeploy.rollback("adder")
            time.sleep(0.1 if changes < 20 else 0.4)
    (told,) = told
    assert not told["failed"] + told["wrong"]
    assert told["requests"] >= least
    assert len(told["versions"]) >= 2
    assert set(told["ids"]) == set(nbdeploy.predictions("adder").prediction_id)


@pytest.mark.parametrize("times", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_rollback_is_answered_by_every_worker_within_a_second_under_load(service, times):
    taken = []
    with clients(service.url, 16) as told:
        for _ in range(times):
            promote("v2")
            begun = time.perf_counter()
            nbdeploy.rollback("adder")
            taken.append(time.perf_counter() - begun)
            assert answering() == {"v1"}
    assert not told[0]["failed"] + told[0]["wrong"]
    assert max(taken) <= 1.0, taken


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_our_client_does_not_notice_a_worker_that_is_killed(service, kills):
    wrong, asked, ended = [], [], threading.Event()

    def ask():
        while not ended.is_set():
            try:
                answer = nbdeploy.predict("adder", X.head(2))
                asked.append(1)
                if answer.prediction.tolist() != [100.0, 101.0]:
                    wrong.append(answer)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(kills):
        assert eventually(lambda: deployment.get("adder").workers == 2, 30)
        children = [p for p in psutil.Process(service.pid).children() if "nbdeploy.worker" in p.cmdline()]
        children[i % len(children)].kill()
        time.sleep(0.3)
    assert eventually(lambda: deployment.get("adder").workers == 2, 30)
    ended.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(asked) > 50 * kills / 3


# -- what cannot be served never gets a request ------------------------------------------------------------------


class Faulty(Adder):
    """Is what it was until a file says how it breaks."""

    def __init__(self, number, told):
        super().__init__(number)
        self.told = told

    def __setstate__(self, state):
        self.__dict__ = state
        fault = Path(self.told).read_text() if Path(self.told).exists() else ""
        if fault == "raise":
            msg = "it cannot be loaded"
            raise ValueError(msg)
        if fault == "exit":
            os._exit(3)
        if fault == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == "hang":
            time.sleep(10_000)
        if fault == "memory":
            self.hoard = [np.zeros(1 << 27) for _ in range(10_000)]
        self.wrong = fault == "wrong"
        self.strange = fault == "strange"

    def predict(self, X):
        found = super().predict(X)
        if getattr(self, "strange", False):
            return ["garbage"] * len(found)
        return found + 1 if getattr(self, "wrong", False) else found


FAULTS = ["raise", "exit", "crash", "hang", "memory", "wrong", "strange", "tampered"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_version_that_is_broken_by_now_gets_no_request_and_the_live_one_goes_on(fault, tmp_path, monkeypatch):
    from nbdeploy import releases

    monkeypatch.setattr(releases, "LOAD_SECONDS", 6.0)  # for what hangs
    told = tmp_path / "fault"
    service = nbdeploy.deploy(Adder(1), "adder", X)
    nbdeploy.save(Faulty(2, str(told)), "adder", X)
    told.write_text(fault)
    if fault == "tampered":
        stored = model_store.get("adder", "v2").path
        with next(stored.glob("*.pkl")).open("r+b") as file:
            file.write(b"\x80\x05N.")
    before = nbdeploy.traffic("adder")
    workers = [p.pid for p in psutil.Process(service.pid).children()]
    with clients(service.url, 4) as seen:
        for change in (lambda: nbdeploy.traffic("adder", v1=90, v2=10), lambda: promote("v2")):
            with pytest.raises(nbdeploy.ReleaseError, match="adder:v2 cannot take requests") as refused:
                change()
            assert "\n" not in str(refused.value)
    assert not seen[0]["failed"] + seen[0]["wrong"]
    assert set(seen[0]["versions"]) == {"v1"}
    now = nbdeploy.traffic("adder")
    assert (now.live, now.weights, now.warm) == (before.live, before.weights, ())
    assert nbdeploy.history("adder").action.tolist() == ["served"]
    assert [p.pid for p in psutil.Process(service.pid).children()] == workers


def test_a_candidate_that_no_worker_can_load_any_more_leaves_its_share_to_the_live_one(tmp_path):
    """It was good in its rehearsal, and breaks when a worker starts anew."""
    told = tmp_path / "fault"
    service = nbdeploy.deploy(Adder(1), "adder", X)
    nbdeploy.save(Faulty(2, str(told)), "adder", X)
    nbdeploy.traffic("adder", v1=50, v2=50)
    assert answering() == {"v1", "v2"}
    told.write_text("raise")
    for worker in psutil.Process(service.pid).children():
        worker.kill()
    assert eventually(lambda: deployment.acknowledged("adder").get("1", {}).get("failed")), nbdeploy.logs("adder")
    with clients(deployment.get("adder").url, 4) as seen:
        time.sleep(0.5)
    assert not seen[0]["failed"] + seen[0]["wrong"]
    assert set(seen[0]["versions"]) == {"v1"}


# -- bad input: one line, and nothing is changed -----------------------------------------------------------------

BAD = [
    (lambda: nbdeploy.traffic("adder", v1=90, v2=20), "the weights of 'adder' sum to 110, not 100: v1=90 + v2=20"),
    (lambda: nbdeploy.traffic("adder", v1=90, v2=-10), "v2=-10 is no percentage"),
    (lambda: nbdeploy.traffic("adder", v1=99.999, v2=0.001), "is no percentage with at most two decimals"),
    (lambda: nbdeploy.traffic("adder", v1="most"), "v1='most' is no percentage"),
    (lambda: nbdeploy.traffic("adder", v1=90, v9=10), "'adder' has no version 'v9'. Known: v1, v2, v3, v4"),
    (lambda: nbdeploy.traffic("adder", shadows=["v2"]), "'shadows' is neither a version nor an option of traffic. Did you mean 'shadow'"),
    (lambda: nbdeploy.traffic("adder", v2=100), "adder:v1 is live and would get no request. Replace it by a promotion: %deploy promote adder v2"),
    (lambda: nbdeploy.traffic("adder", v1=90, v2=10, shadow=["v2"]), "adder:v2 cannot answer and shadow at the same time"),
    (lambda: nbdeploy.traffic("adder", shadow=["v1"]), "adder:v1 cannot answer and shadow at the same time"),
    (lambda: nbdeploy.traffic("adder", sticky="whom"), "adder:v1 has no column 'whom' to be sticky by. Did you mean 'who'"),
    (lambda: nbdeploy.traffic("adder", sticky="X-\r\nEvil: 1"), "has no column"),
    (lambda: nbdeploy.traffic("adder", v1=90, v4=10), "adder:v4 cannot answer who asks v1: column 'who' is not among its inputs (and 1 more)"),
    (lambda: nbdeploy.promote("adder", "v4", force="x"), "allow_signature_change"),
    (lambda: nbdeploy.promote("adder", "v1"), "adder:v1 is live already"),
    (lambda: nbdeploy.promote("adder", "v9"), "'adder' has no version 'v9'"),
    (lambda: nbdeploy.promote("adder", ""), "which version of 'adder' is not said"),
    (lambda: nbdeploy.promote("ader", "v1"), "Did you mean 'adder'"),
    (lambda: nbdeploy.rollback("adder"), "nothing was live before adder:v1"),
    (lambda: nbdeploy.delete("adder", "v2"), "adder:v2"),
]  # fmt: skip


def test_a_change_that_makes_no_sense_is_refused_in_a_line_and_changes_nothing():
    nbdeploy.deploy(Adder(1), "adder", X)
    nbdeploy.save(Adder(2), "adder", X)
    nbdeploy.save(Adder(3), "adder", X)
    nbdeploy.save(Adder(4), "adder", X.rename(columns={"who": "whoever"}))
    nbdeploy.traffic("adder", v1=95, v2=5)
    before = routing.path("adder").read_bytes()
    for change, said in BAD:
        with pytest.raises(nbdeploy.NbdeployError, match=re.escape(said)) as refused:
            change()
        assert "\n" not in str(refused.value)
        assert routing.path("adder").read_bytes() == before, said
    nbdeploy.traffic("adder", v1=90, v4=10, allow_signature_change=True)
    # What was allowed once stays so where something else is changed.
    assert nbdeploy.traffic("adder", pin=False).weights == {"v1": 90, "v4": 10}


def test_nothing_is_live_before_the_first_release():
    nbdeploy.save(Adder(1), "adder", X)
    with pytest.raises(nbdeploy.ReleaseError, match="'adder' has no live version yet"):
        nbdeploy.traffic("adder", v1=100)
    assert nbdeploy.traffic("adder").live is None


# -- several at once, and crashes --------------------------------------------------------------------------------


def test_two_who_change_at_once_come_one_after_the_other(service):
    errors = []

    def change(verb):
        try:
            verb()
        except Exception as error:
            errors.append(error)

    verbs = [lambda: promote("v2"), lambda: promote("v3"), lambda: nbdeploy.traffic("adder", sticky="who"),
             lambda: nbdeploy.traffic("adder", pin=False)]  # fmt: skip
    threads = [threading.Thread(target=change, args=(verb,)) for verb in verbs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    now = nbdeploy.traffic("adder")
    assert (now.sticky, now.pin) == ("who", False)
    assert sorted(nbdeploy.history("adder").action) == ["promote", "promote", "served", "traffic", "traffic"]
    assert {now.live, now.before[-1]} == {"v2", "v3"}


CHANGES = """
    import sys
    from dataclasses import replace
    from nbdeploy import routing
    for i in range(int(sys.argv[1]), int(sys.argv[1]) + 3):
        routing.change("adder", lambda old: old.to_live(f"v{i}"), action="promote", why="x" * 100)
        print(f"v{i}", flush=True)
"""


@pytest.mark.parametrize("call", ["rename", "fsync", "write", "openat"])
def test_the_traffic_file_is_old_or_new_after_a_crash_at_any_call(call):
    """SIGKILL at the N-th system call, for every N until it is no longer killed: what was acknowledged is there."""
    import shutil

    if shutil.which("strace") is None:
        pytest.skip("needs strace (apt-get install strace)")
    routing.go_live("adder", "v1", "first release")
    number, killed = 10, 0
    script = textwrap.dedent(CHANGES)
    for n in range(1, 2_000, 25 if call == "openat" else 1):  # Python itself opens hundreds of files at its start
        command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={n}",
                   sys.executable, "-c", script, str(number)]  # fmt: skip
        before = routing.history("adder")
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        told = done.stdout.split()
        steps = routing.history("adder")
        assert steps[len(steps) - len(before) :] == before
        new = [step["to"] for step in reversed(steps[: len(steps) - len(before)])]
        assert new[: len(told)] == told
        assert len(new) <= len(told) + 1
        assert routing.live("adder") == steps[0]["to"]
        number += 3
        if done.returncode == 0:
            break
        killed += 1
    else:
        pytest.fail("it was always killed")
    assert killed >= 3


def test_a_release_that_is_killed_midway_leaves_a_service_that_answers_and_can_be_released_again(service):
    for seconds in (0.05, 0.3, 0.8, 1.2):
        script = "import nbdeploy; nbdeploy.promote('adder', 'v2', force='x')"
        with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL) as child:
            time.sleep(seconds + 0.5)
            child.kill()
        assert answering() <= {"v1", "v2"}
        if nbdeploy.traffic("adder").live == "v2":
            nbdeploy.rollback("adder")
        assert answering() == {"v1"}
    promote("v3")
    assert answering() == {"v3"}


# -- the end of a service ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [1, 5, pytest.param(20, marks=pytest.mark.slow)])
def test_what_is_in_flight_when_the_service_is_told_to_end_is_answered(seconds):
    service = nbdeploy.deploy(Adder(1, slow=0.0), "adder", X)
    nbdeploy.save(Adder(2, slow=float(seconds)), "adder", X.head(3))
    nbdeploy.traffic("adder", v1=50, v2=50)
    answers = []

    def ask():
        with nbdeploy.connect("adder") as http:
            answer = http.post("/predict", params={"version": "v2"}, json=X.head(1).to_dict("records"))
            answers.append((answer.status_code, answer.json().get("predictions")))

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.5)
    begun = time.monotonic()
    os.kill(service.pid, signal.SIGTERM)
    thread.join()
    assert answers == [(200, [200.0])]
    assert time.monotonic() - begun < seconds + 10
    assert eventually(lambda: not psutil.pid_exists(service.pid))

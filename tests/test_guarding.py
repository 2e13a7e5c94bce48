"""Guard and rollout on real services: nobody is there but the service itself, and those who ask it."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from dataclasses import replace

import httpx
import pandas as pd
import psutil
import pytest

import nbdeploy
from nbdeploy import deployment, processes, routing
from nbdeploy.errors import GateError, InputError, NotFound, ReleaseError, ServiceError
from services import own_home

NAME = "flight-delay"
X = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0] * 10})
SECONDS = 1 / 60  # minutes that are a second


class Model:
    """Answers with a number of its own; it may fail on all rows from some value on, or on all after it met one."""

    def __init__(self, number, fails_on=1e9, breaks_at=1e9):
        self.number, self.fails_on, self.breaks_at, self.broken = number, fails_on, breaks_at, False

    def predict(self, X):
        highest = float(X["a"].max())
        self.broken = self.broken or highest >= self.breaks_at
        if self.broken or highest >= self.fails_on:
            msg = "these rows are too much"
            raise RuntimeError(msg)
        return [self.number] * len(X)


PATHS = os.pathsep.join([os.path.dirname(__file__), os.getcwd()])


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PATHS)


@pytest.fixture(scope="module")
def saved():
    """v1 is live, and nothing runs. v2 breaks for good at rows from 100 on, v3 is sound and validated, v4 refuses such rows."""
    with own_home() as made, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATHS)
        for model in (Model(1), Model(2, breaks_at=100.0), Model(3), Model(4, fails_on=100.0)):
            nbdeploy.save(model, NAME, X)
        routing.go_live(NAME, "v1", "first")
        assert nbdeploy.validate(NAME, "v3", progress=False).passed
        inside = dict(os.environ)
        try:
            yield made.parent
        finally:
            os.environ.update(inside)
            with contextlib.suppress(NotFound):
                nbdeploy.stop(NAME)


@pytest.fixture
def service(saved, monkeypatch):
    """All of them, served; one service for the tests of this module. Afterwards v1 has all requests again."""
    monkeypatch.setenv("NBDEPLOY_HOME", str(saved / "home"))
    monkeypatch.setenv("BENTOML_HOME", str(saved / "bentoml"))
    yield deployment.find(NAME) or nbdeploy.serve(NAME)
    held = routing.traffic(NAME)
    if held.rollout is not None:
        nbdeploy.rollout(NAME, abort=True)
    if held.guard is not None:
        nbdeploy.guard(NAME, off=True)
    while routing.live(NAME) != "v1":
        nbdeploy.rollback(NAME, progress=False)
    nbdeploy.traffic(NAME, v1=100, progress=False)


@pytest.fixture
def unchanged(saved, home):
    """The same where nothing runs, for tests that change nothing."""
    for part in ("home/versions", "home/traffic", "bentoml/models"):
        shutil.copytree(saved / part, home.parent / part)
    for made in (home, home.parent / "bentoml"):
        made.chmod(0o700)
    routing.change(NAME, lambda old: replace(old.split(v1=100), guard=None, rollout=None))
    before = routing.path(NAME).read_bytes()
    yield
    assert routing.path(NAME).read_bytes() == before


class Client:
    """Asks all the time, as users do, and keeps the status and the version of each answer."""

    def __init__(self, service, value=1.0):
        self.service, self.value, self.answers = service, value, []
        self._ending, self._thread = threading.Event(), threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_error):
        self._ending.set()
        self._thread.join()

    def _run(self):
        with httpx.Client(base_url=self.service.url, timeout=30) as client:
            while not self._ending.is_set():
                try:
                    answer = client.post("/predict", json={"a": self.value})
                except httpx.TransportError:  # it is being served anew
                    time.sleep(0.1)
                    continue
                self.answers.append((answer.status_code, answer.json().get("version")))
                time.sleep(0.002)


def until(holds, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"it did not happen in time: {nbdeploy.traffic(NAME).to_dict()}"
        time.sleep(0.05)


def share(version):
    return nbdeploy.traffic(NAME).share(version)


def whys(action):
    steps = nbdeploy.history(NAME)
    return list(steps["why"][steps["action"] == action])


def kill(service):
    for process in processes.family(service.pid, service.identity):
        process.kill()
    until(lambda: not service.alive)


def guardian(service):
    found = [child for child in psutil.Process(service.pid).children() if "nbdeploy.guardian" in child.cmdline()]
    return found[0] if found else None


# -- guard --------------------------------------------------------------------------------------------------


def test_a_canary_that_fails_is_taken_out_by_itself_and_history_says_why(service):
    nbdeploy.guard(NAME, error_rate=0.02)
    for version, status, said in (
        ("v2", 500, "answers were errors"), ("v4", 422, "requests were refused or failed"),
    ):  # fmt: skip
        nbdeploy.traffic(NAME, v1=50, **{version: 50})
        until(lambda version=version: version in nbdeploy.traffic(NAME).guard["watch"])

        with Client(service, 500.0) as client:
            until(lambda version=version: not share(version))
            gone = len(client.answers)
            until(lambda client=client, gone=gone: len(client.answers) > gone + 400)

        assert {found for found, _ in client.answers} == {200, status}
        assert {*client.answers[gone + 300 :]} == {(200, "v1")}
        assert f"{version} was taken out of traffic" in whys("guard")[0]
        assert said in whys("guard")[0]
        assert nbdeploy.history(NAME)["to"][0] == "v1 100 %"
        assert nbdeploy.traffic(NAME).guard["tripped"]["version"] == version
        assert f"{version} was taken out of traffic: " in repr(nbdeploy.traffic(NAME))
        assert f'nbdeploy_guard_tripped{{version="{version}"}} 1.0' in httpx.get(f"{service.url}/metrics").text


def test_a_clean_canary_is_promoted_where_that_was_asked_for(service):
    nbdeploy.guard(NAME, error_rate=0.02, canary_minutes=SECONDS, then="promote")
    nbdeploy.traffic(NAME, v1=50, v3=50)

    with Client(service) as client:
        until(lambda: nbdeploy.traffic(NAME).live == "v3")

    assert {status for status, _ in client.answers} == {200}
    assert whys("promote")[0].startswith("guard: clean for ")


def test_a_promotion_that_is_refused_is_told_once_and_the_canary_stays(service):
    nbdeploy.guard(NAME, error_rate=0.02, canary_minutes=SECONDS, then="promote")
    nbdeploy.traffic(NAME, v1=50, v4=50)

    with Client(service):
        until(lambda: nbdeploy.traffic(NAME).guard["refused"])
        tries = nbdeploy.traffic(NAME).guard["watch"]["v4"]["number"]
        until(lambda: nbdeploy.traffic(NAME).guard["watch"]["v4"]["number"] > tries + 1)

    assert dict(nbdeploy.traffic(NAME).weights) == {"v1": 50, "v4": 50}
    assert len([why for why in whys("guard") if "v4 has not passed the gate" in why]) == 1


def test_drift_of_a_canary_takes_it_out(service):
    nbdeploy.traffic(NAME, v1=20, v3=80)
    nbdeploy.guard(NAME, drift=0.1)
    until(lambda: nbdeploy.traffic(NAME).guard["watch"])
    far = pd.DataFrame({"a": [50.0, 60.0, 70.0, 80.0] * 50})

    for _ in range(10):
        httpx.post(f"{service.url}/predict", json=far.to_dict("records"), timeout=30)
    until(lambda: not share("v3"), 120)

    assert "of its columns drifted from its training data, above 10 %" in whys("guard")[0]


def test_a_guard_that_is_switched_off_leaves_no_process(service):
    nbdeploy.guard(NAME, error_rate=0.02)
    until(lambda: guardian(service))
    nbdeploy.guard(NAME, off=True)

    until(lambda: not guardian(service), 10)
    assert nbdeploy.traffic(NAME).guard is None


def test_a_guard_shows_itself(service):
    before = len(nbdeploy.history(NAME))
    set_up = nbdeploy.guard(NAME, error_rate=0.02, p99_ms=200)

    assert set_up.guard["rules"]["p99_ms"] == 200
    assert nbdeploy.guard(NAME) == set_up
    assert len(nbdeploy.history(NAME)) == before + 1


# -- rollout ------------------------------------------------------------------------------------------------


def test_a_rollout_ends_in_a_promotion_without_a_failed_request(service):
    with pytest.raises(GateError, match="v4 has not passed the gate"):
        nbdeploy.rollout(NAME, "v4", steps=[10, 50, 100])
    assert share("v4") == 0
    assert nbdeploy.rollout(NAME, "v3", steps=[10, 50, 100], minutes=SECONDS).share("v3") == 10

    with Client(service) as client:
        until(lambda: nbdeploy.traffic(NAME).live == "v3")
        until(lambda: nbdeploy.traffic(NAME).rollout is None)

    assert {status for status, _ in client.answers} == {200}
    steps = nbdeploy.history(NAME).head(4)
    assert list(steps["to"]) == ["v3", "v3", "v1 50 %, v3 50 %", "v1 90 %, v3 10 %"]
    assert steps["why"][0] == "rollout of v3: it is live"
    assert steps["evidence"][1].endswith(".ipynb")
    until(lambda: not guardian(service), 10)


def test_a_rollout_of_a_bad_version_ends_by_itself(service):
    nbdeploy.rollout(NAME, "v2", steps=[30, 60], minutes=SECONDS)

    with Client(service, 500.0):
        until(lambda: not share("v2"))

    assert nbdeploy.traffic(NAME).rollout is None
    assert "v2 was taken out of traffic" in whys("guard")[0]


def test_a_rollout_outlives_its_guardian_and_the_service(service):
    nbdeploy.rollout(NAME, "v3", steps=[20, 40], minutes=SECONDS)
    until(lambda: guardian(service))
    kill(service)

    with Client(nbdeploy.serve(NAME)):
        until(lambda: nbdeploy.traffic(NAME).rollout is None)

    assert share("v3") == 40
    assert "done, it stays at 40 %" in whys("rollout")[0]


@pytest.mark.slow
def test_a_rollout_outlives_its_guardian_the_workers_and_the_service_at_any_step(service):
    nbdeploy.rollout(NAME, "v3", steps=[20, 40, 60], minutes=3 * SECONDS)
    until(lambda: guardian(service))

    guardian(service).kill()
    with Client(service):
        until(lambda: share("v3") == 40)
    kill(service)
    again = nbdeploy.serve(NAME)
    assert share("v3") == 40
    with Client(again):
        until(lambda: share("v3") == 60)
    nbdeploy.stop(NAME)
    time.sleep(4)
    assert nbdeploy.traffic(NAME).rollout is not None
    with Client(nbdeploy.serve(NAME)):
        until(lambda: nbdeploy.traffic(NAME).rollout is None)

    assert share("v3") == 60
    assert "done, it stays at 60 %" in whys("rollout")[0]


def test_a_rollout_is_paused_resumed_and_aborted(service):
    nbdeploy.rollout(NAME, "v3", steps=[10, 20, 30], minutes=SECONDS)
    nbdeploy.rollout(NAME, pause=True)
    with Client(service):
        time.sleep(3)
        assert share("v3") == 10
        nbdeploy.rollout(NAME, resume=True)
        until(lambda: share("v3") == 20)
        after = nbdeploy.rollout(NAME, abort=True)
        assert (dict(after.weights), after.rollout) == ({"v1": 100}, None)
        time.sleep(2)

    assert dict(nbdeploy.traffic(NAME).weights) == {"v1": 100}
    assert [why.partition(": ")[2] for why in whys("rollout")][:4] == [
        "aborted", whys("rollout")[1].partition(": ")[2], "resumed", "paused"
    ]  # fmt: skip


def test_whoever_changes_the_traffic_ends_the_rollout(service):
    nbdeploy.rollout(NAME, "v3", steps=[10, 20, 30], minutes=SECONDS)

    nbdeploy.traffic(NAME, v1=65, v3=35)
    with Client(service):
        until(lambda: nbdeploy.traffic(NAME).rollout is None)

    assert dict(nbdeploy.traffic(NAME).weights) == {"v1": 65, "v3": 35}
    assert whys("rollout")[0] == "rollout of v3: ended at 10 %, the traffic was changed to v1=65 v3=35"


# -- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "kind", "said"), [
    ({"then": "promote"}, InputError, "a guard without a limit"),
    ({"error_rate": 2}, InputError, "2 % is error_rate=0.02"),
    ({"error_rate": -0.1}, InputError, "error_rate=-0.1 is no share"),
    ({"error_rate": "much"}, InputError, "error_rate='much' is no share"),
    ({"error_rate": True}, InputError, "error_rate=True is no share"),
    ({"drift": float("nan")}, InputError, "drift=nan is no share"),
    ({"p99_ms": 0}, InputError, "p99_ms=0 is not more than 0"),
    ({"p99_ms": 100_000}, InputError, "longer than what is told apart"),
    ({"error_rate": 0.1, "canary_minutes": 0}, InputError, "canary_minutes=0 is not more than 0"),
    ({"error_rate": 0.1, "canary_minutes": float("inf")}, InputError, "canary_minutes=inf"),
    ({"error_rate": 0.1, "then": "celebrate"}, InputError, "then='celebrate'"),
    ({"error_rate": 0.1, "min_requests": 0}, InputError, "min_requests=0"),
    ({"off": True}, ReleaseError, "no guard to switch off"),
])  # fmt: skip
def test_a_guard_that_means_nothing_is_one_line_and_changes_nothing(unchanged, given, kind, said):
    with pytest.raises(kind, match=said) as error:
        nbdeploy.guard(NAME, **given)

    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("given", "kind", "said"), [
    ({"version": "v2", "steps": []}, InputError, r"\(none\)"),
    ({"version": "v2", "steps": [10, 10]}, InputError, "the steps 10, 10 do not go up"),
    ({"version": "v2", "steps": [50, 10]}, InputError, "do not go up"),
    ({"version": "v2", "steps": [0, 10]}, InputError, "percent above 0"),
    ({"version": "v2", "steps": [10, 101]}, InputError, "up to 100"),
    ({"version": "v2", "steps": [1.234]}, InputError, "two decimals"),
    ({"version": "v2", "steps": ["a"]}, InputError, "percent above 0"),
    ({"version": "v2", "steps": "1,,5"}, InputError, "percent above 0"),
    ({"version": "v2", "steps": [100]}, InputError, "at once is a promotion"),
    ({"version": "v2", "minutes": 0}, InputError, "minutes=0"),
    ({"version": "v2", "minutes": -1}, InputError, "minutes=-1"),
    ({"version": "v9"}, NotFound, "v9"),
    ({"version": "v1"}, ReleaseError, "v1 is live already"),
    ({"version": "v2"}, ServiceError, "does not run"),
    ({"pause": True}, ReleaseError, "no rollout of 'flight-delay' to pause"),
    ({"resume": True}, ReleaseError, "to resume"),
    ({"abort": True}, ReleaseError, "to abort"),
    ({"pause": True, "abort": True}, InputError, "pause and abort at once"),
])  # fmt: skip
def test_a_rollout_that_means_nothing_is_one_line_and_changes_nothing(unchanged, given, kind, said):
    with pytest.raises(kind, match=said) as error:
        nbdeploy.rollout(NAME, **given)

    assert "\n" not in str(error.value)


def test_what_a_running_rollout_refuses(service):
    nbdeploy.rollout(NAME, "v3", steps=[10, 20], minutes=60)

    with pytest.raises(ReleaseError, match="a rollout of flight-delay:v3 runs already"):
        nbdeploy.rollout(NAME, "v2", steps=[10, 20])
    with pytest.raises(ReleaseError, match="is not paused"):
        nbdeploy.rollout(NAME, resume=True)
    with pytest.raises(ReleaseError, match="is of flight-delay:v3, not of v2"):
        nbdeploy.rollout(NAME, "v2", pause=True)
    nbdeploy.rollout(NAME, pause=True)
    with pytest.raises(ReleaseError, match="is paused already"):
        nbdeploy.rollout(NAME, pause=True)
    nbdeploy.rollout(NAME, "v3", abort=True)
    nbdeploy.traffic(NAME, v1=95, v2=5)
    with pytest.raises(ReleaseError, match="flight-delay:v2 has 5 % of the traffic"):
        nbdeploy.rollout(NAME, "v3", steps=[10, 20])


@pytest.mark.parametrize("verb", [nbdeploy.guard, nbdeploy.rollout])
def test_a_deployment_that_nobody_knows_is_named(verb):
    with pytest.raises(NotFound, match="fligth-delay"):
        verb("fligth-delay")

"""Gates judge the live version where it runs and any other aside, several at once, and may be required."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import psutil
import pytest

import nbdeploy
from gates import CHECK, write_gate
from nbdeploy import deployment, gate, gate_evidence, gate_group, home, model_store, prediction_log, routing, validation
from nbdeploy.errors import GateError, NotFound, SaveError
from services import own_home
from test_gate import NOTEBOOKS
from test_gate_secrets import CANARIES, RAISES, TELLS, forms, texts_below

X = pd.DataFrame({"x": np.linspace(0, 1, 200), "kind": [0.0, 1.0] * 100})
LATE = (X["x"] > 0.5).rename("late")
WHO = {"deployment": "flight-delay", "version": "v1", "digest": "ab" * 32}

ASKS = """
import os, httpx, nbdeploy
from pathlib import Path
told = nbdeploy.predict(name, [{"x": 0.1, "kind": 0.0}], url=url)
nbdeploy.check("the version", told["version"].iloc[0] == version)
with nbdeploy.connect(name, url=url) as service:
    token = service.headers["authorization"]
row = {"x": 0.25, "kind": 0.0}
nbdeploy.check("without its token", httpx.post(f"{url}/predict", json=row, trust_env=False).status_code, at_least=401, at_most=401)
# As any client would, without a word of why it asks.
bare = httpx.post(f"{url}/predict", json=row, headers={"Authorization": token}, trust_env=False)
nbdeploy.check("with it", bare.status_code, at_least=200, at_most=200)
print("url", url, "live", live_url, "token", token)
"""
PARAMETERS = ("name = ''\nversion = ''\nurl = ''\nlive_url = ''\nlimit = 1.0", "parameters")


@pytest.fixture(scope="module")
def served():
    """``flight-delay``: v1 is live and asks for a token, v2 is a worse candidate."""
    from sklearn.dummy import DummyClassifier
    from sklearn.tree import DecisionTreeClassifier

    with own_home():
        service = nbdeploy.deploy(DecisionTreeClassifier().fit(X, LATE), "flight-delay", X, LATE, token=True)
        nbdeploy.save(DummyClassifier().fit(X, ~LATE), "flight-delay", X, LATE, progress=False)
        inside = {name: os.environ[name] for name in ("NBDEPLOY_HOME", "BENTOML_HOME")}
        try:
            yield service, inside
        finally:
            os.environ.update(inside)
            with contextlib.suppress(NotFound):
                nbdeploy.stop("flight-delay")


@pytest.fixture
def service(served, home, monkeypatch, tmp_path):
    running, inside = served
    for name, value in inside.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return running


def asides():
    return list((home.home() / "run" / "flight-delay").glob("aside-*"))


def executed(result):
    return result.notebook.read_text()


def purposes():
    """Why each logged row was asked for."""
    from nbdeploy.log_segments import chunks, lines_files, place

    entries = [
        entry for path in lines_files(place("flight-delay")) for chunk in chunks(path) for entry in chunk.entries
    ]
    return [entry.get("purpose", "") for entry in entries]


# Where a version answers its gate ---------------------------------------------------------------------------------------


def test_a_gate_that_names_no_url_judges_the_candidate_and_not_who_is_live(service, tmp_path):
    asks = """
import nbdeploy
told = nbdeploy.predict("flight-delay", [{"x": 0.1, "kind": 0.0}])
with nbdeploy.connect("flight-delay") as service:
    url = str(service.base_url)
nbdeploy.check("v2 answers", told["version"].iloc[0] == "v2", detail=url)
"""
    result = nbdeploy.validate("flight-delay", "v2", notebook=write_gate(tmp_path / "a.ipynb", asks), progress=False)

    assert result.passed, result
    assert service.url not in result.checks[0].detail


LOOKS = """
import psutil
for process in psutil.process_iter():
    try:
        about = [*process.cmdline(), *([] if process.pid == os.getpid() else process.environ().values())]
    except psutil.Error:
        continue
    nbdeploy.check(f"{process.name()} {process.pid} is told no secret", not any(value in word for word in about for value in values))
"""


@pytest.mark.parametrize("named", [False, True])
def test_five_secrets_of_a_gate_are_in_no_file_no_log_and_no_other_process(service, tmp_path, monkeypatch, named):
    for name, value in CANARIES.items() if named else ():
        monkeypatch.setenv(name, value)
    notebook = write_gate(tmp_path / "asks.ipynb", PARAMETERS, ASKS, TELLS, LOOKS, RAISES)
    result = nbdeploy.validate(
        "flight-delay", "v2", notebook=notebook, env=[*CANARIES] if named else CANARIES, progress=False
    )

    assert "raised ConnectionError: no such user: *** at ***" in result.reason
    assert all(one.passed for one in result.checks)
    assert result.copy.read_bytes() == result.notebook.read_bytes()
    seen = list(texts_below(home.home(), home.bentoml_home(), tmp_path))
    assert {"service.log", result.notebook.name, result.copy.name} <= {path.name for path, _ in seen}
    assert any("predictions" in path.parts for path, _ in seen)
    for path, text in seen:
        for value in CANARIES.values():
            for form in forms(value):
                assert form not in text, path


def test_a_candidate_is_asked_aside_and_live_traffic_does_not_notice(service, tmp_path):
    notebook = write_gate(tmp_path / "asks.ipynb", PARAMETERS, ASKS)
    state = (home.home() / "deployments" / "flight-delay.json").read_bytes()
    before, traffic, numbers = purposes(), routing.traffic("flight-delay"), sorted(
        path.name for path in (home.home() / "run" / "flight-delay" / "metrics").iterdir()
    )  # fmt: skip

    result = nbdeploy.validate("flight-delay", "v2", notebook=notebook, progress=False)

    assert result.passed, result
    assert f"live {service.url} token" in executed(result)
    assert f"url {service.url}" not in executed(result)
    assert service.key.token not in executed(result)
    assert "token Bearer ***" in executed(result)
    assert purposes()[len(before) :] == ["gate", "gate"]
    assert prediction_log.size("flight-delay") == 0
    assert asides() == []
    assert (home.home() / "deployments" / "flight-delay.json").read_bytes() == state
    assert routing.traffic("flight-delay") == traffic
    assert numbers == sorted(path.name for path in (home.home() / "run" / "flight-delay" / "metrics").iterdir())
    assert deployment.find("flight-delay").pid == service.pid


def test_the_live_version_is_asked_where_it_runs(service, tmp_path):
    notebook = write_gate(tmp_path / "asks.ipynb", PARAMETERS, ASKS)
    result = nbdeploy.validate("flight-delay", notebook=notebook, progress=False)
    assert result.passed, result
    assert f"url {service.url} live  token" in executed(result)


def test_while_traffic_is_split_the_live_version_is_judged_alone(service, monkeypatch):
    split = routing.traffic("flight-delay").split(v1=50, v2=50)
    monkeypatch.setattr(routing, "traffic", lambda _name: split)
    other = type("Aside", (), {"url": "http://127.0.0.1:1"})
    monkeypatch.setattr(deployment, "aside", lambda _version, **_more: contextlib.nullcontext(other))
    with validation._served(model_store.get("flight-delay", "v1"), lambda: None) as told:
        assert told == {"url": other.url, "live_url": ""}
    with validation._served(model_store.get("flight-delay", "v2"), lambda: None) as told:
        assert told == {"url": other.url, "live_url": service.url}


CALLER = """
import os, sys, time
from nbdeploy import deployment, model_store
with deployment.aside(model_store.get("flight-delay", "v2")) as service:
    print(service.url, service.pid, flush=True)
    time.sleep(60)
"""


def test_what_is_served_aside_ends_with_its_caller_even_when_that_is_killed(service):
    caller = subprocess.Popen([sys.executable, "-c", CALLER], stdout=subprocess.PIPE, text=True)
    url, pid = caller.stdout.readline().split()
    key = deployment.key_of(url)
    assert key.token == service.key.token
    assert httpx.get(f"{url}/signature", headers=key.headers, trust_env=False).json()["version"] == "v2"
    family = [psutil.Process(int(pid)), *psutil.Process(int(pid)).children()]
    os.kill(caller.pid, signal.SIGKILL)
    caller.wait(10)
    caller.stdout.close()

    _, alive = psutil.wait_procs(family, timeout=15)
    assert not alive
    assert deployment.key_of(url).token == ""  # somebody else may have the port by now
    assert len(asides()) == 1  # which nobody could remove
    seen = []

    def fail_aside():
        with deployment.aside(model_store.get("flight-delay", "v1")) as other:
            seen.append((other, other.alive, len(asides())))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_aside()
    assert seen[0][1:] == (True, 1)
    assert not seen[0][0].alive
    assert asides() == []


def test_a_version_that_cannot_load_says_why_and_leaves_nothing(service):
    version = model_store.get("flight-delay", "v2")
    model = version.path / max(version.files, key=lambda name: name.startswith("model") and "json" not in name)
    content = model.read_bytes()
    model.chmod(0o600)
    model.write_bytes(content + b" ")
    try:
        with pytest.raises(SaveError, match=model.name) as refused:
            nbdeploy.validate("flight-delay", "v2", progress=False)
    finally:
        model.write_bytes(content)
    assert "\n" not in str(refused.value)
    assert asides() == []


# Several gates ----------------------------------------------------------------------------------------------------------


def test_gates_run_side_by_side_and_all_have_to_pass(service, tmp_path, monkeypatch):
    monkeypatch.setattr(gate_group, "_cores", lambda: 2)
    waits = textwrap.dedent("""
        import time
        from pathlib import Path
        Path(f"{me}.here").touch()
        end = time.monotonic() + 30
        while not Path(f"{other}.here").exists() and time.monotonic() < end:
            time.sleep(0.05)
        import nbdeploy
        nbdeploy.check(f"{me} met {other}", Path(f"{other}.here").exists())
    """)
    one = write_gate(tmp_path / "one.ipynb", ("limit = 1.0", "parameters"), "me, other = 'one', 'two'\n" + waits)
    two = write_gate(
        tmp_path / "two.ipynb", "me, other = 'two', 'one'\n" + waits + "nbdeploy.check('bias', 2, at_most=1)"
    )
    seen = []

    run = nbdeploy.validate(
        "flight-delay",
        notebook=[one, two],
        parameters={"limit": 3},
        wait=False,
        on_progress=lambda *at: seen.append(at),
    )
    result = run.result(timeout=60)

    assert not result.passed
    assert result.reason == "two.ipynb: bias: 2, wanted at most 1"
    assert [(part.gate, part.passed, part.parameters) for part in result.parts] == [
        ("one.ipynb", True, {"limit": 3.0}), ("two.ipynb", False, {}),
    ]  # fmt: skip
    assert [check.name for check in result.checks] == ["one met two", "two met one", "bias"]
    assert result.notebook == result.parts[1].notebook
    assert "failed its 2 gates: two.ipynb: bias" in repr(result).splitlines()[0]
    assert len(json.loads(json.dumps(result.to_dict()))["parts"]) == 2
    assert (
        run.progress == seen[-1] == (len("abcde") + 1 - 1, len("abcde") + 1 - 1) or run.progress[0] == run.progress[1]
    )
    assert "two.ipynb" in result._repr_html_()


def test_of_twelve_gates_that_run_together_only_the_good_one_passes(tmp_path, monkeypatch):
    jobs = {}
    for number, (kind, (cells, _)) in enumerate(NOTEBOOKS.items()):
        path = write_gate(tmp_path / f"gate-{number}.ipynb", *cells)
        jobs[kind] = gate.prepare(path, **WHO, timeout=6 if kind == "endless" else 60)

    runs = gate_group.GateRuns([*jobs.values()], lambda _wait: contextlib.nullcontext({}), shown=False, at_once=3)
    result = runs.result(timeout=240)

    assert not result.passed
    for (kind, (_, why)), part in zip(NOTEBOOKS.items(), result.parts, strict=True):
        assert part.passed is (kind == "ok"), kind
        assert kind == "endless" or why in part.reason, kind
    assert gate_evidence.found("flight-delay", WHO["digest"])[0].digest == WHO["digest"]
    assert sum(one.passed for one in gate_evidence.found("flight-delay", WHO["digest"])) == 1


def test_a_gate_that_cannot_run_ends_the_others(tmp_path, monkeypatch):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "ipykernel_launcher.py").write_text("raise RuntimeError('no kernel today')")
    slow = gate.prepare(write_gate(tmp_path / "slow.ipynb", CHECK, "import time; time.sleep(60)"), **WHO)
    broken = gate.prepare(
        write_gate(tmp_path / "bad.ipynb", CHECK), **WHO, env={"PYTHONPATH": str(tmp_path / "broken")}
    )
    begin = time.monotonic()
    runs = gate_group.GateRuns([slow, broken], lambda _wait: contextlib.nullcontext({}), shown=False, at_once=2)
    with pytest.raises(GateError, match=r"The kernel for bad\.ipynb did not start"):
        runs.wait()
    assert time.monotonic() - begin < 40
    assert not [one for one in psutil.Process().children() if "ipykernel" in " ".join(one.cmdline())]


def test_a_cancellation_while_the_service_starts_runs_no_gate(tmp_path):
    job = gate.prepare(write_gate(tmp_path / "g.ipynb", CHECK), **WHO)

    @contextlib.contextmanager
    def never(on_wait):
        while True:
            on_wait()
            time.sleep(0.01)
        yield {}

    runs = gate_group.GateRuns([job], never, shown=False)
    assert (runs.done, runs.state, runs.progress) == (False, "starting", (0, 2))
    runs.cancel()
    with pytest.raises(GateError, match="cancelled before there was a service"):
        runs.result(timeout=10)


# What promotions need ---------------------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch):
    """Start no kernel and no service: give what would have run."""
    told = []

    def keep(jobs, _served, **_options):
        told.append([(job.path.name, job.parameters) for job in jobs])
        return type("Runs", (), {"wait": lambda _self: told[-1]})()

    monkeypatch.setattr(gate_group, "GateRuns", keep)
    monkeypatch.setattr(validation.deployment, "find", lambda _name: None)
    return told


def gates():
    return [dict(one) for one in routing.traffic("flight-delay").gates]


def test_a_required_gate_runs_with_the_default_one_until_it_is_taken_back(service, started, tmp_path):
    mine = write_gate(tmp_path / "mine.ipynb", PARAMETERS, ASKS)
    generation = routing.traffic("flight-delay").generation

    nbdeploy.validate("flight-delay", "v2", notebook="mine.ipynb", parameters={"limit": "2"}, require=True)
    nbdeploy.validate("flight-delay", "v2", parameters={"at_least": 0.8, "url": "http://127.0.0.1:1"}, require=True)
    needed = [
        {"notebook": str(mine), "parameters": {"limit": 2.0}}, {"notebook": "", "parameters": {"at_least": 0.8}},
    ]  # fmt: skip
    assert gates() == needed
    assert routing.traffic("flight-delay").generation == generation + 2
    assert [step["why"] for step in routing.history("flight-delay")[:2]] == [
        "promotions need validate.ipynb (at_least=0.8)", "promotions need mine.ipynb (limit=2.0)",
    ]  # fmt: skip

    nbdeploy.validate("flight-delay", "v2", parameters={"margin": 0.1})
    own = {"name": "flight-delay", "version": "v2"}
    assert started[-1] == [
        ("validate.ipynb", {**own, "at_least": 0.8, "margin": 0.1}),
        ("mine.ipynb", {**own, "limit": 2.0}),
    ]
    assert gates() == needed

    mine.unlink()
    with pytest.raises(NotFound, match=r"There is no notebook .*mine\.ipynb, and promotions need it"):
        nbdeploy.validate("flight-delay", "v2")
    nbdeploy.validate("flight-delay", "v2", notebook=mine, require=False)
    assert [name for name, _ in started[-1]] == ["validate.ipynb"]
    assert gates() == [{"notebook": "", "parameters": {"at_least": 0.8}}]
    nbdeploy.validate("flight-delay", "v2", require=False)
    assert gates() == []
    assert started[-1] == [("validate.ipynb", own)]


def test_each_of_several_is_told_what_it_declares_and_nothing_is_told_that_none_does(service, started, tmp_path):
    one = write_gate(tmp_path / "one.ipynb", ("limit = 1.0\ndata = ''\ntarget = ''", "parameters"), CHECK)
    two = write_gate(tmp_path / "two.ipynb", ("share = 1.0", "parameters"), CHECK)
    told = {"notebook": [one, two, one], "data": X.assign(late=LATE), "target": "late"}

    nbdeploy.validate("flight-delay", "v2", parameters={"limit": 2, "share": 3}, **told)
    ((_, first), (_, second)) = started[-1]
    assert (first["limit"], first["target"], second) == (2.0, "late", {"share": 3.0})
    with pytest.raises(GateError, match=r"one\.ipynb has no parameter 'limt'. Did you mean 'limit'"):
        nbdeploy.validate("flight-delay", "v2", parameters={"limt": 2}, **told)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"notebook": []}, "notebook= names no notebook"),
        ({"notebook": "gone.ipynb"}, "There is no notebook"),
        ({"target": "late"}, "there is no data"),
        ({"parameters": {"db_password": "x"}}, "has no parameter 'db_password'"),
        ({"env": ["NBDEPLOY_NO_SUCH"]}, "the environment has no NBDEPLOY_NO_SUCH"),
        ({"parameters": {"limit": "many"}, "notebook": "mine.ipynb"}, "'limit' is a float"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_changes_nothing(service, started, tmp_path, given, message):
    write_gate(tmp_path / "mine.ipynb", PARAMETERS, ASKS)
    before = routing.traffic("flight-delay")
    with pytest.raises(nbdeploy.NbdeployError) as refused:
        nbdeploy.validate("flight-delay", "v2", require=True, **given)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert routing.traffic("flight-delay") == before
    assert started == []


# The default gate on a candidate ----------------------------------------------------------------------------------------


def test_a_candidate_that_is_worse_than_live_does_not_pass(service, tmp_path):
    result = nbdeploy.validate(
        "flight-delay", "v2", parameters={"requests": 2, "slices": ["kind"], "at_least": 0.1}, progress=False
    )
    failed = {one.name: one for one in result.checks if not one.passed}

    assert set(failed) == {"better than live, at worst"}
    assert failed["better than live, at worst"].at_least == -0.05
    assert failed["better than live, at worst"].value < -0.4
    assert [one.name for one in result.checks if one.name.startswith("worst")] == ["worst kind"]
    digest = model_store.get("flight-delay", "v2").digest
    paths, reason = gate_evidence.standing(
        digest, [], gate_evidence.found("flight-delay", digest), name="flight-delay", version="v2"
    )
    assert paths == []
    assert "failed the gate validate.ipynb (better than live" in reason


def test_where_nothing_runs_a_version_is_judged_all_the_same(service, tmp_path):
    nbdeploy.stop("flight-delay")
    notebook = write_gate(tmp_path / "g.ipynb", ("version = ''\nurl = ''\nlive_url = ''", "parameters"),
                          CHECK + "\nprint(version, url, live_url)\nnbdeploy.check('alone', bool(url and not live_url))")  # fmt: skip
    result = nbdeploy.validate("flight-delay", notebook=notebook, progress=False)
    assert result.passed, result
    assert result.version == "v1"
    assert asides() == []


def test_no_one_can_be_validated_who_was_never_saved(home):
    with pytest.raises(NotFound):
        nbdeploy.validate("nobody")
    assert not Path(home, "gates").exists()

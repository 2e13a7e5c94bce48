"""A service outlives whoever started it, can be found again, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time

import httpx
import pandas as pd
import psutil
import pytest

import nbdeploy
from nbdeploy import bento, deployment, home, model_store, processes


class Constant:
    """Always says the same."""

    def __init__(self, value):
        self.value = value

    def predict(self, X):
        return [self.value] * len(X)


X = pd.DataFrame({"a": [1.0, 2.0]})


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))


def everyone(service):
    return processes.family(service.pid, service.identity)


def until(holds, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_deploy_saves_serves_and_names_what_it_serves():
    service = nbdeploy.deploy(Constant(7), "seven", X)

    assert (service.name, service.version, service.state) == ("seven", "v1", "live")
    assert service.url.startswith("http://127.0.0.1:")
    assert nbdeploy.predict("seven", X)["prediction"].tolist() == [7, 7]
    assert nbdeploy.status().loc["seven", "state"] == "live"
    assert "seven" in nbdeploy.logs("seven")


def test_stop_leaves_no_process_and_keeps_what_was_saved_and_logged():
    service = nbdeploy.deploy(Constant(7), "seven", X)
    nbdeploy.predict("seven", X)
    family = everyone(service)
    assert len(family) >= 2

    nbdeploy.stop("seven")

    assert not [process for process in family if process.is_running()]
    assert nbdeploy.status().loc["seven", "state"] == "stopped"
    assert len(nbdeploy.predictions("seven")) == 2
    again = nbdeploy.serve("seven")
    assert (again.version, again.port) == ("v1", service.port)


def test_a_service_outlives_the_process_that_started_it_and_another_finds_it(tmp_path):
    script = textwrap.dedent("""
        import pandas as pd, nbdeploy
        class Nine:
            def predict(self, X): return [9] * len(X)
        print(nbdeploy.deploy(Nine(), "nine", pd.DataFrame({"a": [1]})).url, flush=True)
        input()
    """)
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    url = child.stdout.readline().strip()
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()

    assert nbdeploy.serve("nine").url == url
    assert nbdeploy.predict("nine", pd.DataFrame({"a": [1]}))["prediction"].tolist() == [9]


def test_a_starter_that_is_killed_half_way_leaves_neither_version_nor_process():
    script = textwrap.dedent("""
        import pandas as pd, nbdeploy
        class Slow:
            def predict(self, X): return [1] * len(X)
            def __setstate__(self, state):
                import time; time.sleep(60)
        slow = Slow(); slow.mood = 1
        print("go", flush=True)
        nbdeploy.deploy(slow, "slow", pd.DataFrame({"a": [1]}))
    """)
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child.stdout.readline()
    spec = home.home() / "run" / "slow" / "worker.json"
    until(spec.exists)
    child.kill()
    child.communicate()

    def ours():
        return [p for p in psutil.process_iter() if _home_of(p) == os.environ["NBDEPLOY_HOME"]]

    until(lambda: not ours(), 10)
    assert model_store.names() == []
    assert deployment.running_deployments() == []


@pytest.mark.parametrize("verb", ["deploy", "save"])
def test_an_interrupt_half_way_leaves_neither_version_nor_process(verb):
    script = textwrap.dedent(f"""
        import pandas as pd, nbdeploy
        class Slow:
            mood = 0
            def predict(self, X): return [1] * len(X)
            def __setstate__(self, state):
                import time; time.sleep(60)
        slow = Slow(); slow.mood = 1
        try:
            nbdeploy.{verb}(slow, "slow", pd.DataFrame({{"a": [1]}}))
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """)
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    run = home.home() / "run"
    until(lambda: list(run.glob("rehearsal-*/spec.json")) + list(run.glob("slow/worker.json")), 20)
    child.send_signal(signal.SIGINT)

    said, _ = child.communicate(timeout=20)

    assert said.strip() == "interrupted"
    until(lambda: not [p for p in psutil.process_iter() if _home_of(p) == os.environ["NBDEPLOY_HOME"]], 5)
    assert model_store.names() == []
    assert not list((home.bentoml_home() / "nbdeploy-staging").iterdir())


def _home_of(process):
    try:
        return process.environ().get("NBDEPLOY_HOME") if process.pid != os.getpid() else None
    except (psutil.Error, OSError):
        return None


def test_a_worker_that_is_killed_is_replaced_by_itself():
    service = nbdeploy.deploy(Constant(7), "seven", X)
    (worker,) = psutil.Process(service.pid).children()

    worker.kill()

    # Requests wait in the listening socket until the next worker is there.
    assert nbdeploy.predict("seven", X)["prediction"].tolist() == [7, 7]


def test_a_supervisor_that_is_killed_takes_its_workers_along():
    service = nbdeploy.deploy(Constant(7), "seven", X)
    family = everyone(service)

    os.kill(service.pid, signal.SIGKILL)

    until(lambda: not [process for process in family if process.is_running()], 5)
    assert nbdeploy.status().loc["seven", "state"] == "stopped"
    assert nbdeploy.serve("seven").state == "live"


def test_a_recycled_pid_is_never_taken_for_ours():
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    service = nbdeploy.deploy(Constant(7), "seven", X)
    nbdeploy.stop("seven")
    home.write_json(
        home.folder("deployments") / "seven.json",
        {**{key: getattr(service, key) for key in ("name", "version", "digest", "url", "identity", "log", "since", "token_file")},
         "pid": bystander.pid, "started": processes.started(bystander.pid), "options": {}},
    )  # fmt: skip

    with pytest.raises(nbdeploy.NotFound):
        nbdeploy.stop("seven")

    assert bystander.poll() is None
    bystander.communicate(b"\n")


def test_a_second_version_is_a_candidate_and_live_traffic_stays():
    first = nbdeploy.deploy(Constant(1), "number", X)

    second = nbdeploy.deploy(Constant(2), "number", X)

    assert second == first
    assert nbdeploy.versions("number")[0].version == "v2"
    assert nbdeploy.status().loc["number", "candidates"] == "v2"
    assert nbdeploy.predict("number", X)["prediction"].tolist() == [1, 1]


def test_two_deployments_run_side_by_side():
    services = [nbdeploy.deploy(Constant(value), name, X) for name, value in (("one", 1), ("two", 2))]

    assert services[0].port != services[1].port
    assert [nbdeploy.predict(name, X)["prediction"][0] for name in ("one", "two")] == [1, 2]
    for name in ("one", "two"):
        rows = [
            line
            for line in httpx.get(f"{nbdeploy.serve(name).url}/metrics").text.splitlines()
            if line.startswith("nbdeploy_rows_total{")
        ]
        assert rows == ['nbdeploy_rows_total{version="v1"} 2.0']
    nbdeploy.stop("one")
    assert nbdeploy.predict("two", X)["prediction"].tolist() == [2, 2]


def test_a_busy_port_names_the_holder_when_it_is_ours_and_leaves_nothing():
    one = nbdeploy.deploy(Constant(1), "one", X)

    with pytest.raises(nbdeploy.PortBusy, match=rf"port {one.port} for 'two' is taken by the deployment 'one'"):
        nbdeploy.deploy(Constant(2), "two", X, port=one.port)

    assert model_store.names() == ["one"]
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(nbdeploy.PortBusy, match="another program"):
            nbdeploy.deploy(Constant(2), "two", X, port=port)


@pytest.mark.parametrize("port", [-1, 65536, 10**9])
def test_a_number_that_is_no_port_is_one_line(port):
    with pytest.raises(nbdeploy.PortBusy, match="not a port"):
        nbdeploy.deploy(Constant(1), "one", X, port=port)


def test_a_service_that_dies_at_its_start_is_reported_with_the_end_of_its_log():
    class Deadly(Constant):
        def __reduce__(self):
            return (exec, ("import os; print('the last words', flush=True); os._exit(9)",))

    with pytest.raises(nbdeploy.NbdeployError) as failed:
        nbdeploy.deploy(Deadly(1), "deadly", X)

    assert "the last words" in failed.value.details
    assert "\n" not in str(failed.value)
    assert model_store.names() == []
    assert deployment.running_deployments() == []


def test_serving_what_runs_already_gives_the_same_service():
    service = nbdeploy.deploy(Constant(1), "one", X)

    assert nbdeploy.serve("one") == service
    with pytest.raises(nbdeploy.NbdeployError, match="is running already"):
        nbdeploy.serve("one", port=service.port + 1)


def test_unknown_names_get_a_suggestion():
    nbdeploy.save(Constant(1), "flight-delay", X)

    for verb in (
        nbdeploy.serve,
        nbdeploy.stop,
        nbdeploy.predictions,
        nbdeploy.drift,
        nbdeploy.validate,
        nbdeploy.status,
    ):
        with pytest.raises(nbdeploy.NotFound, match="Did you mean 'flight-delay'"):
            verb("flight-dely")
    with pytest.raises(nbdeploy.NotFound, match="Start it"):
        nbdeploy.stop("flight-delay")


def test_a_request_in_flight_is_answered_before_the_service_ends():
    class Slow(Constant):
        def predict(self, X):
            time.sleep(1 if len(X) == 1 else 0)
            return super().predict(X)

    import threading

    service = nbdeploy.deploy(Slow(5), "slow", X)
    answers = []
    asking = threading.Thread(target=lambda: answers.append(httpx.post(f"{service.url}/predict", json={"a": 1.0})))
    asking.start()
    time.sleep(0.4)
    nbdeploy.stop("slow")
    asking.join()

    assert answers[0].json()["predictions"] == [5]


def test_a_home_named_by_a_relative_path_is_one_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NBDEPLOY_HOME", "mine")
    monkeypatch.setenv("BENTOML_HOME", "bento")
    nbdeploy.deploy(Constant(7), "seven", X)
    try:
        nbdeploy.predict("seven", X)

        assert len(nbdeploy.predictions("seven")) == 2
        assert not list((tmp_path / "mine" / "run").rglob("predictions"))
    finally:
        nbdeploy.stop("seven")
        bento.wait("seven")
    assert (tmp_path / "bento" / "bentos" / "seven" / "v1").is_dir()


def test_a_service_whose_version_was_deleted_can_be_seen_and_stopped():
    service = nbdeploy.deploy(Constant(7), "seven", X)
    nbdeploy.predict("seven", X)
    shutil.rmtree(home.bentoml_home() / "models" / "seven")

    assert nbdeploy.status().loc["seven", "state"] == "live"
    assert len(nbdeploy.predictions("seven")) == 2
    nbdeploy.stop("seven")
    assert not service.alive


def test_a_live_version_that_was_deleted_is_no_obstacle():
    nbdeploy.deploy(Constant(1), "number", X)
    nbdeploy.stop("number")
    shutil.rmtree(home.bentoml_home() / "models" / "number" / "v1")

    service = nbdeploy.deploy(Constant(2), "number", X)

    assert service.version == "v2"
    assert nbdeploy.predict("number", X)["prediction"].tolist() == [2, 2]


def test_a_busy_port_is_found_out_before_anything_is_saved():
    nbdeploy.deploy(Constant(1), "number", X)
    with pytest.raises(nbdeploy.NbdeployError, match="running already"):
        nbdeploy.deploy(Constant(2), "number", X, port=1)
    nbdeploy.stop("number")
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(nbdeploy.PortBusy):
        nbdeploy.deploy(Constant(2), "number", X, port=other.getsockname()[1])

    assert [version.version for version in nbdeploy.versions("number")] == ["v1"]


def test_a_user_without_a_name_can_deploy(monkeypatch):
    monkeypatch.setattr(processes.getpass, "getuser", _nobody)

    assert nbdeploy.deploy(Constant(1), "number", X).state == "live"
    assert model_store.get("number").provenance["user"] == f"uid {os.getuid()}"


def _nobody():
    msg = "getpwuid(): uid not found"
    raise KeyError(msg)


def test_a_service_whose_state_is_gone_ends_by_itself():
    service = nbdeploy.deploy(Constant(1), "number", X)
    family = everyone(service)

    shutil.rmtree(home.home() / "deployments")

    until(lambda: not [process for process in family if process.is_running()], 15)


@pytest.mark.parametrize("name", ["none", "true", "class", "1-2", "a.b_c"])
def test_any_name_makes_a_service(name):
    assert nbdeploy.deploy(Constant(1), name, X).state == "live"


def test_a_bento_whose_build_was_killed_is_built_at_the_next_start():
    version = nbdeploy.save(Constant(1), "number", X)
    facts = home.read_json(home.home() / "run" / "number" / "bento-v1.json")
    os.kill(facts["pid"], signal.SIGKILL)
    until(lambda: not processes.started(facts["pid"]))
    assert not (home.bentoml_home() / "bentos" / "number").exists()

    nbdeploy.serve("number")
    nbdeploy.stop("number")

    assert (home.bentoml_home() / "bentos" / "number" / version.version).is_dir()


def test_damaged_lines_of_the_log_are_counted_in_the_status():
    nbdeploy.save(Constant(1), "number", X)
    (home.folder("predictions", "number") / "1-1.jsonl").write_text("damaged\n")

    assert nbdeploy.status().loc["number", "unreadable"] == 1
    assert len(nbdeploy.predictions("number")) == 0


def test_what_lies_about_in_the_home_takes_nothing_down():
    nbdeploy.save(Constant(1), "good", X)
    nbdeploy.save(Constant(1), "broken", X)
    (home.home() / "versions" / ".DS_Store").touch()
    (home.home() / "versions" / "broken" / "v1.json").write_text("{")

    assert list(nbdeploy.status().index) == ["good"]
    with pytest.raises(nbdeploy.NbdeployError, match="not readable as JSON"):
        nbdeploy.versions("broken")


def test_a_number_of_lines_below_one_is_one_line():
    with pytest.raises(nbdeploy.NbdeployError, match="1 or more"):
        nbdeploy.logs("number", lines=0)


@pytest.mark.slow
def test_bentoml_serves_the_bento_with_no_state_of_ours(tmp_path):
    version = nbdeploy.save(Constant(7), "seven", X)
    bento.wait("seven")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    env = {**os.environ, "NBDEPLOY_HOME": str(tmp_path / "elsewhere")}
    child = subprocess.Popen(
        [sys.executable, "-m", "bentoml", "serve", version.tag, "--host", "127.0.0.1", "--port", str(port)],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:

        def answer():
            try:
                return httpx.post(f"http://127.0.0.1:{port}/predict", json={"a": 1.0}).json()["predictions"]
            except httpx.HTTPError:
                return None

        until(answer, 60)
        assert answer() == [7]
    finally:
        child.terminate()
        child.wait(20)

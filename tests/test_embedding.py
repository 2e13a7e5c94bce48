"""A version can be mounted in the user's own application, or loaded as a model, with the checks of the service."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

import nbdeploy


@pytest.fixture
def version(flight_model, flights):
    return nbdeploy.save(flight_model, "flight-delay", *flights, progress=False)


@pytest.fixture
def client(version):
    app = nbdeploy.asgi("flight-delay")
    mine = Starlette(routes=[Route("/mine", lambda _request: PlainTextResponse("mine")), Mount("/delay", app)])
    with TestClient(mine) as found:
        yield found
    app.close()


def test_a_mounted_version_answers_checks_and_logs_as_a_service_does(client):
    row = client.get("/delay/signature").json()["example"]

    answer = client.post("/delay/predict", json=row)
    refused = client.post("/delay/predict", json={**row, "distance": "far"})

    assert client.get("/mine").text == "mine"
    assert answer.status_code == 200
    assert answer.json()["version"] == "v1"
    assert refused.status_code == 422
    assert refused.json()["problems"][0]["column"] == "distance"
    assert client.get("/delay/nothing").status_code == 404
    log = nbdeploy.predictions("flight-delay")
    assert list(log["prediction_id"]) == answer.json()["prediction_ids"]
    assert 'nbdeploy_rows_total{version="v1"} 1.0' in client.get("/delay/metrics").text


def test_every_protocol_is_there_and_the_page_finds_its_files(client):
    assert client.get("/delay/v2/models/flight-delay").status_code == 200
    assert client.get("/delay/ping").status_code == 200
    assert client.get("/delay/").status_code == 200
    assert client.get("/delay/static_content/swagger-ui.css").status_code == 200
    assert client.get("/delay/static_content/../app.py").status_code == 404


def test_a_mounted_version_asks_for_a_token_where_it_is_told_to(version):
    app = nbdeploy.asgi("flight-delay", token=True)

    with TestClient(app) as client:
        assert client.get("/signature").status_code == 401
        assert client.get("/readyz").status_code == 200

    app.close()


def test_a_token_that_is_given_leaves_that_of_a_running_deployment_alone(version, home, tmp_path, monkeypatch):
    kept = home / "tokens" / "flight-delay"
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept.write_text("of-the-deployment")
    kept.chmod(0o600)
    mine = tmp_path / "mine"
    mine.write_text("of-this-application")
    mine.chmod(0o600)
    monkeypatch.setenv("NBDEPLOY_TOKEN", "of-the-environment")

    for options, token in (({"token_file": str(mine)}, "of-this-application"), ({}, "of-the-environment")):
        app = nbdeploy.asgi("flight-delay", **options)
        with TestClient(app) as client:
            for word, status in ((token, 200), ("of-the-deployment", 401)):
                assert client.get("/signature", headers={"Authorization": f"Bearer {word}"}).status_code == status
        app.close()

    assert kept.read_text() == "of-the-deployment"


def test_two_versions_in_one_process_do_not_mix_their_counts(version, flight_model, flights):
    nbdeploy.save(flight_model, "flight-delay", *flights, progress=False)
    apps = [nbdeploy.asgi("flight-delay", each) for each in ("v1", "v2")]
    first, second = (TestClient(app) for app in apps)
    row = first.get("/signature").json()["example"]

    for _ in range(3):
        first.post("/predict", json=row)

    assert 'nbdeploy_rows_total{version="v1"} 3.0' in first.get("/metrics").text
    assert "v1" not in second.get("/metrics").text
    for app in apps:
        app.close()


def test_the_code_of_the_docs_runs(version, flights):
    import starlette.applications

    page = (Path(__file__).parent.parent / "docs" / "service.md").read_text()
    mount, load = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "nbdeploy." in code)
    names = {"nbdeploy": nbdeploy, "starlette": starlette, "X_new": flights[0].head(3)}
    exec(mount, names)
    exec(load, names)

    assert TestClient(names["app"]).get("/flight-delay/signature").json()["version"] == "v1"
    assert len(names["answers"]) == 3


def test_what_a_server_decides_is_refused_here(version):
    for option in ({"host": "0.0.0.0"}, {"workers": 2}, {"bentoml_middleware": True}):
        with pytest.raises(nbdeploy.InputError, match="your"):
            nbdeploy.asgi("flight-delay", **option)
    with pytest.raises(nbdeploy.InputError, match="log_requird"):
        nbdeploy.asgi("flight-delay", log_requird=True)


def test_a_loaded_version_answers_as_the_model_does(version, flights, flight_model):
    X, _ = flights
    loaded = nbdeploy.load("flight-delay")

    answers = loaded.predict(X[X.columns[::-1]].set_axis(range(5000, 7000)), proba=True)

    assert (loaded.name, loaded.version) == ("flight-delay", "v1")
    assert list(answers.columns) == ["prediction", "probability_False", "probability_True"]
    assert (answers["prediction"].to_numpy() == flight_model.predict(X)).all()
    assert np.array_equal(answers.iloc[:, 1:].to_numpy(), flight_model.predict_proba(X))
    assert list(answers.index) == list(range(5000, 7000))
    assert type(loaded.model).__name__ == "Pipeline"
    assert "flight-delay:v1" in repr(loaded)
    assert len(loaded.predict(X.head(0))) == 0


@pytest.mark.parametrize("rows", [3, 300])
def test_a_loaded_version_refuses_what_the_service_refuses(version, flights, rows):
    X = flights[0].head(rows).astype({"distance": object})
    X.loc[2, "distance"] = "far"
    loaded = nbdeploy.load("flight-delay")

    with pytest.raises(nbdeploy.InputError, match="distance") as refused:
        loaded.predict(X)
    assert refused.value.problems[0]["row"] == 2
    with pytest.raises(nbdeploy.InputError, match="carrier"):
        loaded.predict(X.drop(columns="carrier"))
    with pytest.raises(nbdeploy.NotFound):
        nbdeploy.load("flight-delay", "v7")


def test_a_model_without_classes_has_no_probabilities():
    X = pd.DataFrame({"a": [1.0, 2.0, 3.0]})
    nbdeploy.save(lambda frame: frame["a"].to_numpy() * 2, "double", X, progress=False)
    loaded = nbdeploy.load("double")

    assert list(loaded.predict({"a": 4.0})["prediction"]) == [8.0]
    with pytest.raises(nbdeploy.InputError, match="no probabilities"):
        loaded.predict(X, proba=True)

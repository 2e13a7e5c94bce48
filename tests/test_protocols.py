"""All protocols: whatever is sent gets an answer or a 4xx, and clients that others wrote get theirs."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nbdeploy
from nbdeploy import answers, protocol_bentoml, protocol_inference, protocol_mlflow, protocol_tensorflow
from nbdeploy.exchange import Served
from nbdeploy.signature import Signature
from nbdeploy.signature_inference import infer_columns
from protocols import FLIGHTS, RECORD, Face, chances, flights_signature
from services import running
from test_protocol_inference import HEADER, binary, many, record

NAME = "flights"
COLUMNS = {name: [value, value] for name, value in RECORD.items()}
SPLIT = {"columns": [*RECORD], "data": [[*RECORD.values()]] * 2}
ARRAY = {"x0": [1.0, 2.0], "x1": [3.0, 4.0]}


def _model(X: pd.DataFrame) -> np.ndarray:
    return np.array(["late"] * len(X), dtype=object)


def _faces(routes: Callable[[Served], Any]) -> list[Face]:
    columns = infer_columns(pd.DataFrame(ARRAY))
    array = Signature(columns=columns, container="array", detail="float64", outputs=(answers.Output("", "float64"),))
    cells = pd.DataFrame({"v": answers.cells([[1, 2], [3]]), "i": answers.cells(list(np.ones((2, 2, 2))))})
    lists = Signature(columns=infer_columns(cells), outputs=(answers.Output("", "int64"),))
    return [
        Face(routes, flights_signature(), _model, chances),
        Face(routes, array, lambda X: X.to_numpy().sum(axis=1)),
        Face(routes, lists, lambda X: X["v"].map(len)),
    ]


CELLS = [{"v": [1, 2], "i": [[1, 2], [3, 4]]}]
GOOD: dict[str, tuple[Any, str, list[Any]]] = {
    "mlflow": (protocol_mlflow.routes, "/invocations", [
        {"dataframe_split": SPLIT, "params": {"proba": True}}, {"dataframe_records": [RECORD]}, {"inputs": COLUMNS},
        {"instances": [RECORD]}, {"inputs": [[1.0, 2.0]]}, {"inputs": ARRAY}, {"dataframe_records": CELLS},
    ]),
    "inference": (protocol_inference.routes, f"/v2/models/{NAME}/infer", [
        {"inputs": record(), "parameters": {"proba": True}, "outputs": [{"name": "prediction"}]},
        {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 2], "data": [[1.0, 2.0]]}]},
        {"inputs": [{"name": "v", "datatype": "INT8", "shape": [1, 2], "data": [1, 2]},
                    {"name": "i", "datatype": "FP32", "shape": [1, 2, 2], "data": [1, 2, 3, 4]}]},
    ]),
    "tensorflow": (protocol_tensorflow.routes, f"/v1/models/{NAME}:predict", [
        {"instances": [RECORD | {"tailnum": {"b64": "eA=="}}], "signature_name": "serving_default"}, {"inputs": COLUMNS},
        {"instances": [[1, 2]]}, {"inputs": ARRAY}, {"instances": CELLS},
    ]),
    "bentoml": (protocol_bentoml.routes, "/bentoml/predict", [
        {"rows": RECORD, "proba": True}, {"rows": SPLIT}, {"frame": [RECORD]}, {"rows": [[1, 2]]}, {"rows": CELLS},
    ]),
}  # fmt: skip

WORDS = st.sampled_from([
    *RECORD, "columns", "data", "index", "b64", "name", "shape", "datatype", "parameters", "binary_data_size", "x",
    "proba", "BYTES", "INT32", "FP16", "UINT64", "", "2013-01-01", "\x00", "é", "{}",
])  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), WORDS, st.text(max_size=5),
    st.sampled_from([10**400, 2**63, -1, 0, 1]),
)  # fmt: skip
JSONS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=6
)


@st.composite
def changed(draw: Any, good: list[Any]) -> Any:
    """One of `good` with some of its parts replaced, dropped, repeated or added to."""
    value = copy.deepcopy(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(0, 3))):
        part = value
        for _ in range(draw(st.integers(0, 4))):
            inner = [*part.values()] if isinstance(part, dict) else part
            deeper = [each for each in inner if isinstance(each, (dict, list)) and each]
            if not deeper:
                break
            part = draw(st.sampled_from(deeper))
        key = draw(st.sampled_from(sorted(part) if isinstance(part, dict) else range(len(part))))
        how = draw(st.sampled_from(["replace", "drop", "add", "repeat"]))
        if how == "replace":
            part[key] = draw(JSONS)
        elif how == "drop":
            part.pop(key)
        elif isinstance(part, dict):
            part[draw(WORDS)] = draw(JSONS)
        else:
            part.append(part[key] if how == "repeat" else draw(JSONS))
        if not value:
            break
    return value


@st.composite
def damaged(draw: Any, body: bytes) -> bytes:
    """`body` with some bytes changed, cut out or put in."""
    held = bytearray(body)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(held) - 1)))
        end = place + draw(st.sampled_from([0, 1, 1, 2, 8]))
        held[place:end] = draw(st.binary(max_size=4))
    return bytes(held)


def _ask_anything(data: st.DataObject, protocol: str) -> None:
    """Anything but an answer or a refusal raises here."""
    _, path, good = GOOD[protocol]
    face = data.draw(st.sampled_from(FACES[protocol]))
    media, headers = "application/json", {}
    body: Any = data.draw(changed(good))
    kind = data.draw(st.sampled_from(["json", "json", "bytes", "other"]))
    if kind != "json":
        body = json.dumps(body).encode()
    if kind == "bytes":
        body = data.draw(damaged(body))
    elif kind == "other" and protocol == "mlflow":
        media = "text/csv"
        body = data.draw(damaged(FLIGHTS.to_csv(index=False).encode()))
    elif kind == "other" and protocol == "inference":
        media = "application/octet-stream"
        body, headers = binary({name: array[:2] for name, array in many(3).items()})
        head = int(headers[HEADER])
        if data.draw(st.booleans()):
            body = data.draw(damaged(body))
        else:
            text = json.dumps(data.draw(changed([json.loads(body[:head])]))).encode()
            body, headers = text + body[head:], {HEADER: str(len(text))}
        if data.draw(st.integers(0, 9)) == 0:
            headers[HEADER] = data.draw(st.text(max_size=3) | st.integers(-2, 2000).map(str))
    query = data.draw(st.sampled_from([{}, {}, {"proba": "true"}, {"proba": "x"}]))

    reply = face.post(path, body, media, query, **headers)

    assert reply.status in (200, 400, 415, 422)
    if reply.status != 200:
        told = json.loads(reply.body)
        assert told["error"]
        assert len(told["problems"]) <= 100
        assert len(reply.body) < 100_000
    elif reply.media == "application/json":
        json.loads(reply.body)


FACES = {protocol: _faces(routes) for protocol, (routes, _, _) in GOOD.items()}


@pytest.mark.parametrize("protocol", GOOD)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_is_sent_is_answered_or_refused(protocol, data):
    _ask_anything(data, protocol)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", GOOD)
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_is_sent_ten_thousand_times_is_answered_or_refused(protocol, data):
    _ask_anything(data, protocol)


@pytest.mark.parametrize("protocol", GOOD)
def test_good_bodies_are_answered(protocol):
    """What the fuzzing starts from: each is good for one of its models."""
    _, path, good = GOOD[protocol]
    for body in good:
        assert 200 in [face.post(path, body).status for face in FACES[protocol]], body


def test_no_two_protocols_have_the_same_route():
    served = Served(NAME, "v1", flights_signature())
    routes = [(route.method, route.path) for each, _, _ in GOOD.values() for route in each(served)]

    assert len(routes) == len(set(routes))


# -- clients that others wrote, and a real service ----------------------------------------------------------


@pytest.fixture(scope="module")
def _running(_january: tuple[pd.DataFrame, pd.Series], flight_model: Any) -> Iterator[Any]:
    with running(flight_model, NAME, *_january) as found:
        yield found


@pytest.fixture
def service(_running: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    found, home = _running
    monkeypatch.setenv("NBDEPLOY_HOME", str(home))
    monkeypatch.setenv("BENTOML_HOME", str(home.parent / "bentoml"))
    return found


@pytest.fixture(scope="module")
def rows(_january: tuple[pd.DataFrame, pd.Series], flight_model: Any) -> tuple[pd.DataFrame, list[bool], np.ndarray]:
    """Some flights, what the model says of them, and its probabilities."""
    X = _january[0].head(40)
    return X, flight_model.predict(X).tolist(), flight_model.predict_proba(X)


def elsewhere(script: str, *arguments: str) -> str:
    """What a script prints in a process of its own: some clients change how this one does input and output."""
    text = textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", text, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_mlflows_own_client_gets_its_answers(service, rows):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client_module = pytest.importorskip("mlflow.pyfunc.scoring_server.client")
    X, said, chance = rows
    host, _, port = service.url.removeprefix("http://").partition(":")
    client = client_module.ScoringServerClient(host, int(port))

    client.wait_server_ready(timeout=10)
    assert client.get_version() == nbdeploy.__version__
    records = X.to_dict(orient="records")
    for data in (X, records, json.dumps({"dataframe_records": records}),
                 json.dumps({"inputs": X.to_dict(orient="list")}), json.dumps({"instances": records})):  # fmt: skip
        answer = client.invoke(data)
        assert answer.get_predictions("ndarray").tolist() == said
        assert answer.get_predictions()[0].tolist() == said
    answer = client.invoke(X, params={"proba": True}).get_predictions()
    assert answer["prediction"].tolist() == said
    np.testing.assert_allclose(np.stack(answer["probabilities"]), chance)
    with pytest.raises(Exception, match=r"error code 422.*INVALID_PARAMETER_VALUE.*no such column"):
        client.invoke(X.drop(columns="carrier"))


def test_sagemaker_finds_its_container(service, rows):
    """Its contract: GET /ping gives 200, POST /invocations takes what the caller sent, with its media type."""
    X, said, _ = rows

    assert httpx.get(f"{service.url}/ping").status_code == 200
    asked = {"Content-Type": "text/csv", "Accept": "application/json", "X-Amzn-SageMaker-Custom-Attributes": "x"}
    answer = httpx.post(f"{service.url}/invocations", content=X.to_csv(index=False), headers=asked)
    assert answer.json() == {"predictions": said}
    assert answer.headers["x-nbdeploy-version"] == "v1"


TRITON = """
    import json, sys
    import numpy as np, pandas as pd
    import tritonclient.http as http
    from tritonclient.utils import InferenceServerException, np_to_triton_dtype

    url, path = sys.argv[1:]
    X = pd.read_parquet(path)
    client = http.InferenceServerClient(url)
    about = client.get_model_metadata("flights")
    told = {
        "live": client.is_server_live(), "ready": client.is_server_ready(), "model": client.is_model_ready("flights"),
        "version": client.is_model_ready("flights", "1"), "other": client.is_model_ready("flights", "7"),
        "server": client.get_server_metadata(), "metadata": about, "index": client.get_model_repository_index(),
        "answers": [],
    }

    def inputs(X, as_bytes):
        found = []
        for each in about["inputs"]:
            values = X[each["name"]].to_numpy()
            values = values.astype(object) if each["datatype"] == "BYTES" else values
            one = http.InferInput(each["name"], list(values.shape), np_to_triton_dtype(values.dtype))
            one.set_data_from_numpy(values, binary_data=as_bytes)
            found.append(one)
        return found

    for as_bytes in (True, False):
        for out in (True, False):
            wanted = [http.InferRequestedOutput(n, binary_data=out) for n in ("prediction", "probabilities")]
            for rows in (X, pd.concat([X] * 50, ignore_index=True)):
                found = client.infer("flights", inputs(rows, as_bytes), outputs=wanted, request_id="mine")
                told["answers"].append([
                    found.as_numpy("prediction")[: len(X)].tolist(),
                    found.as_numpy("probabilities")[: len(X)].tolist(), found.get_response()["id"],
                ])
    plain = client.infer("flights", inputs(X, True), model_version="1")
    told["plain"] = plain.as_numpy("prediction").tolist()
    told["later"] = client.async_infer("flights", inputs(X, True)).get_result().as_numpy("prediction").tolist()
    try:
        client.infer("flights", inputs(X, True)[1:])
    except InferenceServerException as error:
        told["error"] = [error.status(), error.message()]
    print(json.dumps(told))
"""


def test_tritons_own_client_gets_its_answers(service, rows, tmp_path):
    X, said, chance = rows
    X.to_parquet(tmp_path / "X.parquet")

    told = json.loads(elsewhere(TRITON, service.url.removeprefix("http://"), str(tmp_path / "X.parquet")))

    assert [told[word] for word in ("live", "ready", "model", "version", "other")] == [True] * 4 + [False]
    assert told["server"]["name"] == "nbdeploy"
    assert told["index"] == [{"name": NAME, "version": "1", "state": "READY", "reason": ""}]
    assert [each["name"] for each in told["metadata"]["inputs"]] == [*X.columns]
    assert len(told["answers"]) == 8
    for predictions, probabilities, request in told["answers"]:
        assert (predictions, request) == (said, "mine")
        np.testing.assert_allclose(probabilities, chance)
    assert told["plain"] == told["later"] == said
    assert told["error"][0] == "422"
    assert "no such column" in told["error"][1]


def test_tritons_client_for_asyncio_gets_its_answers(service, rows):
    script = """
        import asyncio, json, sys
        import numpy as np
        import tritonclient.http.aio as http

        async def main(url, row):
            async with http.InferenceServerClient(url) as client:
                inputs = []
                for name, value in row.items():
                    kind = "BYTES" if isinstance(value, str) else "FP64"
                    one = http.InferInput(name, [1], kind)
                    one.set_data_from_numpy(np.array([value], dtype=object if kind == "BYTES" else "float64"))
                    inputs.append(one)
                found = await client.infer("flights", inputs)
                print(json.dumps(found.as_numpy("prediction").tolist()))

        asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
    """
    X, said, _ = rows

    row = json.dumps(X.head(1).to_dict(orient="records")[0])
    assert json.loads(elsewhere(script, service.url.removeprefix("http://"), row)) == said[:1]


def test_bentomls_own_client_gets_its_answers(service, rows):
    script = """
        import asyncio, json, sys
        import bentoml, pandas as pd
        from bentoml.exceptions import BentoMLException

        url, rows = sys.argv[1], json.loads(sys.argv[2])
        told = {}
        with bentoml.SyncHTTPClient(url) as client:
            told["ready"] = client.is_ready()
            told["rows"] = client.predict(rows=rows)
            told["place"] = client.predict(rows)
            told["one"] = client.predict(rows=rows[0], proba=True)
            told["frame"] = client.predict_frame(pd.DataFrame(rows))
            try:
                client.predict(rows=[{**rows[0], "month": "x"}])
            except BentoMLException as error:
                told["error"] = [int(error.error_code), str(error)]

        async def later():
            async with bentoml.AsyncHTTPClient(url) as client:
                return await client.predict(rows=rows)

        told["later"] = asyncio.run(later())
        print(json.dumps(told))
    """
    X, said, chance = rows

    told = json.loads(elsewhere(script, service.url, json.dumps(X.to_dict(orient="records"))))

    assert told["ready"]
    for way in ("rows", "place", "frame", "later"):
        assert told[way]["predictions"] == said
        assert told[way]["version"] == "v1"
    assert told["one"]["predictions"] == said[:1]
    assert told["one"]["classes"] == [False, True]
    np.testing.assert_allclose(told["one"]["probabilities"], chance[:1])
    assert told["error"][0] == 422
    assert "column 'month'" in told["error"][1]


def test_what_tensorflow_servings_documentation_asks_gets_its_answers(service, rows):
    X, said, chance = rows
    url = f"{service.url}/v1/models/{NAME}"
    records, columns = X.to_dict(orient="records"), X.to_dict(orient="list")

    assert httpx.get(url).json()["model_version_status"][0]["state"] == "AVAILABLE"
    for each in (url, f"{url}/versions/1"):
        assert httpx.post(f"{each}:predict", json={"instances": records}).json() == {"predictions": said}
        assert httpx.post(f"{each}:predict", json={"inputs": columns}).json() == {"outputs": said}
    found = httpx.post(f"{url}:predict?proba=true", json={"inputs": columns}).json()["outputs"]
    np.testing.assert_allclose(found["probabilities"], chance)
    answer = httpx.post(f"{service.url}/v1/models/half:predict", json={"instances": [1.0, 5.0]})
    assert (answer.status_code, [*answer.json()]) == (404, ["error", "problems"])


def test_the_documented_examples_run(service, rows, tmp_path):
    """Each in one process after the other, with its name and place put in."""
    page = (Path(__file__).parent.parent / "docs" / "protocols.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    host, _, port = service.url.removeprefix("http://").partition(":")
    X, said, _ = rows
    X.to_parquet(tmp_path / "X.parquet")
    script = "import sys, pandas as pd\nX = pd.read_parquet(sys.argv[1])\n" + "\n".join(examples)
    script = script.replace('"127.0.0.1", 3000', f'"{host}", {port}').replace("127.0.0.1:3000", f"{host}:{port}")
    script = script.replace('"flight-delay"', f'"{NAME}"') + "\nprint(predictions.tolist(), answer['predictions'])\n"

    assert len(examples) == 3
    assert elsewhere(script, str(tmp_path / "X.parquet")) == f"{said} {said[:1]}\n"


def test_what_they_asked_is_in_the_log(service, rows):
    """By the ids that the header begins."""
    answer = httpx.post(f"{service.url}/invocations", json={"dataframe_records": rows[0].to_dict(orient="records")})

    logged = nbdeploy.predictions(NAME)
    ids = [f"{answer.headers['x-nbdeploy-request']}-{row}" for row in range(40)]
    assert set(ids) <= set(logged["prediction_id"])


@pytest.mark.parametrize(
    ("path", "media"),
    [
        ("/invocations", "text/plain"),
        (f"/v2/models/{NAME}/infer", "text/plain"),
        (f"/v1/models/{NAME}:predict", "application/x-www-form-urlencoded"),
        ("/bentoml/predict", "text/plain"),
    ],
)
def test_a_form_of_a_web_page_is_refused(service, path, media):
    answer = httpx.post(f"{service.url}{path}", content=b"{}", headers={"Content-Type": media})

    assert answer.status_code == 415
    assert answer.json()["error"]

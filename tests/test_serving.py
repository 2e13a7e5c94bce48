"""A deployment answers over HTTP, logs what it answers, and says what is wrong with a request."""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest

import nbdeploy
from nbdeploy import artifact, endpoint, prediction_log, serving
from nbdeploy.serve_options import ServeOptions
from services import running


@pytest.fixture(scope="module")
def deployed(flight_model, _january):
    with running(flight_model, "flight-delay", *_january) as (service, home):
        yield service, home


@pytest.fixture
def service(deployed, monkeypatch):
    found, home = deployed
    monkeypatch.setenv("NBDEPLOY_HOME", str(home))
    monkeypatch.setenv("BENTOML_HOME", str(home.parent / "bentoml"))
    return found


@pytest.fixture
def http(service):
    with httpx.Client(base_url=service.url, timeout=20) as client:
        yield client


@pytest.fixture
def row(http):
    return http.get("/signature").json()["example"]


def test_one_record_many_records_and_columns_with_data_get_the_same_answer(http, row):
    split = {"columns": list(row), "data": [list(row.values())]}

    answers = [http.post("/predict", json=body).json() for body in (row, [row], split)]

    assert [answer["predictions"] for answer in answers] == [answers[0]["predictions"]] * 3
    assert answers[0]["version"] == "v1"
    assert len({answer["prediction_ids"][0] for answer in answers}) == 3


def test_answers_equal_what_the_model_says_in_the_kernel(service, flight_model, flights):
    X, _ = flights

    answers = nbdeploy.predict("flight-delay", X, proba=True)

    assert list(answers.columns) == [
        "prediction", "probability_False", "probability_True", "prediction_id", "version",
    ]  # fmt: skip
    assert answers["prediction"].dtype == bool
    assert (answers["prediction"].to_numpy() == flight_model.predict(X)).all()
    assert (answers[["probability_False", "probability_True"]].to_numpy() == flight_model.predict_proba(X)).all()


def test_the_frames_index_and_any_column_order_are_kept(service, flights):
    X = flights[0].head(5).set_axis(list("vwxyz"))

    answers = nbdeploy.predict("flight-delay", X[X.columns[::-1]])

    assert list(answers.index) == list("vwxyz")


def test_probabilities_come_with_their_classes(http, row):
    answer = http.post("/predict?proba=true", json=row).json()

    assert answer["classes"] == [False, True]
    assert sum(answer["probabilities"][0]) == pytest.approx(1)


def test_every_answer_is_in_the_log_before_it_is_given(service, http, row):
    (given,) = http.post("/predict", json=row).json()["prediction_ids"]

    log = nbdeploy.predictions("flight-delay", since="1m").set_index("prediction_id")

    found = log.loc[given]
    assert found["version"] == "v1"
    assert found["carrier"] == row["carrier"]
    assert dict(log.dtypes[list(row)]) == dict(nbdeploy.versions("flight-delay")[0].reference.dtypes)
    assert abs(found["time"] - pd.Timestamp.now("UTC")) < pd.Timedelta("1m")


@pytest.mark.parametrize("said, purpose", [("gate", "gate"), ("shadow", ""), ("GATE", ""), ("", "")])
def test_a_client_may_ask_for_a_gate_and_for_nothing_else(service, http, row, said, purpose):
    for path, body in (("/predict", row), ("/invocations", {"dataframe_records": [row]})):
        answer = http.post(path, json=body, headers={"X-NBDeploy-Purpose": said})
        request = answer.headers.get("X-NBDeploy-Request") or answer.json()["prediction_ids"][0].partition("-")[0]

        found = prediction_log.read("flight-delay", since="1m", purpose=purpose)

        assert f"{request}-0" in set(found["prediction_id"])


def bad_bodies(row):
    def changed(**values):
        return json.dumps({**row, **values})

    def raw(name, text):
        return json.dumps({**row, name: "@"}).replace('"@"', text)

    without = {name: value for name, value in row.items() if name != "carrier"}
    return {
        "missing": (json.dumps(without), "carrier"),
        "extra": (changed(colour="red"), "colour"),
        "misspelt": (json.dumps({**without, "carier": "AA"}), "carier"),
        "null": (changed(dep_delay=None), "dep_delay"),
        "string in a number": (changed(distance="far"), "distance"),
        "number in a string": (changed(carrier=7), "carrier"),
        "bool in a number": (changed(dep_delay=True), "dep_delay"),
        "fraction in an integer": (changed(month=1.5), "month"),
        "nested": (changed(month=[1]), "month"),
        "NaN": (raw("dep_delay", "NaN"), "dep_delay"),
        "Infinity": (raw("dep_delay", "-Infinity"), "dep_delay"),
        "1e400": (raw("dep_delay", "1e400"), "dep_delay"),
        "10**400": (raw("month", str(10**400)), "month"),
        "2**64": (raw("month", str(2**64)), "month"),
    }


def test_rows_that_do_not_fit_get_422_with_row_column_expected_and_got(http, row):
    for what, (body, column) in bad_bodies(row).items():
        response = http.post("/predict", content=body, headers={"Content-Type": "application/json"})

        assert response.status_code == 422, (what, response.text)
        answer = response.json()
        assert "\n" not in answer["error"]
        assert column in [problem["column"] for problem in answer["problems"]], what
        assert all(set(p) == {"row", "column", "expected", "got", "hint"} for p in answer["problems"])


@pytest.mark.parametrize(
    ("body", "media", "status"),
    [
        (b"", "application/json", 400), (b"{", "application/json", 400), (b"not json", "application/json", 400),
        (b"\xff\xfe\x00", "application/json", 400), (b"[" * 100_000, "application/json", 400),
        (b'{"carrier": "\\ud800"}', "application/json", 400), (b"[]", "application/json", 422),
        (b"{}", "application/json", 422), (b"3", "application/json", 422), (b"null", "application/json", 422),
        (b"[[1]]", "application/json", 422), (b"{}", "text/plain", 415), (b"{}", "", 415),
        (b"a,b", "text/csv", 415),
    ],
)  # fmt: skip
def test_what_is_no_request_gets_a_4xx_and_a_line(http, body, media, status):
    response = http.post("/predict", content=body, headers={"Content-Type": media} if media else {})

    assert response.status_code == status, response.text
    assert response.json()["error"]


def test_a_body_beyond_the_limit_gets_413(http):
    response = http.post("/predict", content=b"[" + b" " * (65 << 20), headers={"Content-Type": "application/json"})

    assert response.status_code == 413


def test_an_unknown_route_is_404_and_a_wrong_method_405(http):
    assert http.get("/nothing").status_code == 404
    assert http.get("/predict").status_code == 405


def test_an_unseen_category_and_a_value_out_of_range_are_served(http, row):
    body = {**row, "carrier": "</script><script>alert(1)</script>", "distance": 10**6}

    assert http.post("/predict", json=body).status_code == 200


def test_signature_health_metrics_and_openapi_are_there(http, row):
    assert http.get("/signature").json()["name"] == "flight-delay"
    assert http.get("/livez").status_code == http.get("/readyz").status_code == 200
    http.post("/predict", json=row)
    assert 'nbdeploy_rows_total{version="v1"}' in http.get("/metrics").text
    document = http.get("/openapi.json").json()
    schema = document["components"]["schemas"]["Row"]
    assert list(schema["properties"]) == list(row)
    assert schema["example"] == row


def test_the_front_page_shows_columns_and_an_example_and_calls_no_third_party(http, row):
    page = http.get("/").text

    assert all(name in page for name in row)
    assert "http://" not in page
    assert "https://" not in page
    assert http.get("/static_content/swagger-ui-bundle.js").status_code == 200


def test_the_client_raises_with_the_problems_and_the_row_of_the_whole_frame(service, flights):
    X = flights[0]
    X["dep_delay"] = X["dep_delay"].astype(object)
    X.loc[1500, "dep_delay"] = "late"

    with pytest.raises(nbdeploy.InputError) as refused:
        nbdeploy.predict("flight-delay", X)

    assert refused.value.problems[0]["row"] == 1500


def test_no_row_and_an_unknown_deployment_are_one_line(service, flights):
    with pytest.raises(nbdeploy.InputError, match="no row"):
        nbdeploy.predict("flight-delay", flights[0].head(0))
    with pytest.raises(nbdeploy.NotFound, match="Did you mean 'flight-delay'"):
        nbdeploy.predict("flight-dely", flights[0])


def test_the_environment_of_a_service_asks_for_no_telemetry(service):
    import psutil

    for process in [psutil.Process(service.pid), *psutil.Process(service.pid).children(recursive=True)]:
        assert process.environ()["BENTOML_DO_NOT_TRACK"] == "True"
        assert os.environ["NBDEPLOY_HOME"] == process.environ()["NBDEPLOY_HOME"]


def test_every_socket_is_on_loopback(service):
    import psutil

    for process in [psutil.Process(service.pid), *psutil.Process(service.pid).children(recursive=True)]:
        for connection in process.net_connections("inet"):
            assert connection.laddr.ip == "127.0.0.1"


# One worker in this process


class Picky:
    """Adds up its inputs, and does on some values what no model should."""

    classes_ = None

    def __init__(self):
        self.calls = 0
        self.broken = False

    def predict(self, frame):
        self.calls += 1
        if self.broken:
            msg = "broken for good"
            raise RuntimeError(msg)
        words = set(frame["word"])
        if "raise" in words:
            msg = "found unknown\ncategories"
            raise ValueError(msg)
        if "sleep" in words:
            time.sleep(1.5)
        if "odd" in words:
            return np.array([object()] * len(frame), dtype=object)
        if "surrogate" in words:
            return np.array(["\ud800"] * len(frame), dtype=object)
        if "infinite" in words:
            return np.full(len(frame), math.inf)
        return frame["x"].to_numpy() * 2.0


@pytest.fixture
def worker_of(tmp_path, monkeypatch):
    """``worker_of(unbatched=..., **serve_options)``: a predictor for a `Picky` model, whose words are no categories."""

    def make(*, unbatched=False, **options):
        frame = pd.DataFrame({"x": [float(i) for i in range(300)], "word": [f"w{i}" for i in range(300)]})
        artifact.write(tmp_path, Picky(), frame, options=artifact.Options(unbatched=unbatched))
        spec = tmp_path.parent / f"{tmp_path.name}-spec.json"
        spec.write_text(json.dumps({
            "name": "picky", "version": "v1", "path": str(tmp_path), "files": artifact.manifest(tmp_path),
            "outcome": str(spec.with_suffix(".outcome")), "address": "127.0.0.1",
            "options": ServeOptions(allowed_hosts=["worker"], **options).to_dict(),
        }))  # fmt: skip
        monkeypatch.setenv(serving.SPEC, str(spec))
        monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)

        class Worker(serving.Predictor):
            app, tag = serving.application(), "picky:v1"

        return Worker

    return make


@pytest.fixture
def worker(worker_of):
    return worker_of()


def ask(predictor, *bodies, path="/predict", method="POST", first=0.0):
    """Send `bodies` at the same time, the first one a little earlier; the responses and when each came."""

    async def send():
        transport = httpx.ASGITransport(predictor.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://worker", timeout=20) as client:

            async def one(body, delay):
                await asyncio.sleep(delay)
                response = await client.request(
                    method, path, content=body, headers={"Content-Type": "application/json"}
                )
                return response, time.monotonic()

            return await asyncio.gather(*(one(body, first * bool(i)) for i, body in enumerate(bodies)))

    return asyncio.run(send())


def rows(*words, x=1.0):
    return json.dumps([{"x": x, "word": word} for word in words]).encode()


def test_rows_that_the_model_cannot_take_get_422_and_a_broken_model_500(worker):
    predictor = worker()

    ((response, _),) = ask(predictor, rows("w1", "raise"))
    assert response.status_code == 422, response.text
    answer = response.json()
    assert answer["error"].startswith("the model cannot answer these rows: ValueError: found unknown categories")
    assert [p["column"] for p in answer["problems"]] == [None]

    ((response, _),) = ask(predictor, rows("raise", x=1e9))
    assert response.status_code == 422
    assert [p["column"] for p in response.json()["problems"]] == ["x"]

    predictor.endpoint.model.model.broken = True
    for body in (rows("w1"), rows("w1", x=1e9)):
        ((response, _),) = ask(predictor, body)
        assert response.status_code == 500
        assert response.json()["problems"] == []


def test_an_encoder_that_refuses_an_unseen_string_is_a_422():
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    X = pd.DataFrame({"tail": [f"N{i}" for i in range(300)]})
    model = make_pipeline(OneHotEncoder(), LinearRegression()).fit(X, range(300))
    with running(model, "tails", X) as (service, _):
        response = httpx.post(f"{service.url}/predict", json={"tail": "new"}, timeout=20)

    assert response.status_code == 422, response.text
    assert "unknown categories" in response.json()["problems"][0]["got"]


@pytest.mark.parametrize("word", ["odd", "surrogate"])
def test_an_answer_that_json_cannot_hold_is_a_refusal_and_not_in_the_log(worker, word):
    predictor = worker()

    ((response, _),) = ask(predictor, rows(word))

    assert response.status_code == 422, response.text
    assert len(prediction_log.read("picky", lambda _version: None)) == 0


def test_a_prediction_that_is_not_finite_is_answered_as_null(worker):
    ((response, _),) = ask(worker(), rows("infinite"))

    assert response.json()["predictions"] == [None]


@pytest.mark.parametrize("size", [1, 3000], ids=["small", "large"])
def test_a_bad_request_is_refused_while_the_model_works(worker, size):
    bad = json.dumps([{"x": "one", "word": "w"}] * size).encode()

    (slow, slow_at), (refused, refused_at) = ask(worker(), rows("sleep"), bad, first=0.2)

    assert (slow.status_code, refused.status_code) == (200, 422)
    assert slow_at - refused_at > 0.5


def test_requests_in_flight_share_a_call_and_only_the_guilty_one_fails(worker):
    predictor = worker()
    first = predictor.endpoint.model.model.calls

    slow, *others = (
        response
        for response, _ in ask(predictor, rows("sleep"), rows("w1", x=1.0), rows("raise"), rows("w2", x=2.0), first=0.3)
    )

    assert [response.status_code for response in (slow, *others)] == [200, 200, 422, 200]
    assert [response.json()["predictions"] for response in (slow, others[0], others[2])] == [[2.0], [2.0], [4.0]]
    # The slow one; the three together, which fails; each of them alone; the example, to know whose fault it was.
    assert predictor.endpoint.model.model.calls - first == 1 + 1 + 3 + 1
    log = prediction_log.read("picky", lambda _version: predictor.endpoint.signature)
    assert log["word"].tolist() == ["sleep", "w1", "w2"]


def test_twenty_requests_that_wait_are_one_call(worker):
    predictor = worker()
    first = predictor.endpoint.model.model.calls

    answers = ask(predictor, rows("sleep"), *(rows("w", x=float(i)) for i in range(20)), first=0.3)

    assert [response.json()["predictions"] for response, _ in answers[1:]] == [[2.0 * i] for i in range(20)]
    assert predictor.endpoint.model.model.calls - first == 2


def test_a_model_that_must_not_be_batched_gets_each_request_alone(worker_of):
    predictor = worker_of(unbatched=True)()
    first = predictor.endpoint.model.model.calls

    answers = ask(predictor, rows("sleep"), *(rows("w", x=float(i)) for i in range(5)), first=0.3)

    assert [response.json()["predictions"] for response, _ in answers[1:]] == [[2.0 * i] for i in range(5)]
    assert predictor.endpoint.model.model.calls - first == 6


def test_what_cannot_be_answered_in_time_is_told_at_once_to_come_back(worker_of):
    predictor = worker_of(timeout=2.0)()
    ask(predictor, rows("sleep"))  # now it is known that a call takes 1.5 s

    answers = ask(predictor, rows("sleep"), *(rows("w") for _ in range(5)), first=0.2)

    begun, shed = answers[0][1], [(response, when) for response, when in answers[1:] if response.status_code == 503]
    assert len(shed) == 4  # the first to wait is let in
    assert all(int(response.headers["retry-after"]) >= 1 and when < begun for response, when in shed)
    assert "overloaded" in shed[0][0].json()["error"]


def test_a_request_that_takes_too_long_is_given_up(worker_of):
    predictor = worker_of(timeout=0.5)()

    ((response, _),) = ask(predictor, rows("sleep"))

    assert (response.status_code, response.json()["error"]) == (504, "no answer within 0.5 s")
    ((after, _),) = ask(predictor, rows("w"))
    assert after.status_code in (200, 504)  # the model is still busy


def test_metrics_tell_batches_and_what_waits(worker):
    predictor = worker()
    ask(predictor, rows("sleep"), *(rows("w") for _ in range(4)), first=0.3)

    ((response, _),) = ask(predictor, b"", path="/metrics", method="GET")

    assert 'nbdeploy_batch_requests_bucket{le="4.0",version="v1"} 2.0' in response.text
    assert 'nbdeploy_waiting_rows{version="v1"} 0.0' in response.text
    assert 'nbdeploy_rows_total{version="v1"} 5.0' in response.text


def test_every_refusal_is_json_with_problems(worker):
    predictor = worker()
    for method, path, status in [
        ("GET", "/nothing", 404), ("POST", "/predict/more", 404), ("GET", "/predict", 405), ("PUT", "/signature", 405),
    ]:  # fmt: skip
        ((response, _),) = ask(predictor, b"", path=path, method=method)
        assert response.status_code == status
        assert response.json()["problems"] == []
        assert response.json()["error"]
        assert ("allow" in response.headers) == (status == 405)


def test_unknown_routes_of_a_deployment_are_json_and_bentomls_own_stay(http):
    unknown = http.get("/nothing/at/all")
    wrong = http.get("/predict")

    assert (unknown.status_code, unknown.json()["problems"]) == (404, [])
    assert (wrong.status_code, wrong.json()["problems"], wrong.headers["allow"]) == (405, [], "POST")
    assert http.get("/livez").status_code == http.get("/healthz").status_code == 200
    assert http.get("/static_content/swagger-ui.css").status_code == 200
    assert http.get("/signature/", follow_redirects=True).json()["name"] == "flight-delay"


def test_probabilities_that_cannot_be_given_are_refused_before_the_model_runs(worker):
    predictor = worker()
    before = predictor.endpoint.model.model.calls

    for value, got in [("maybe", "proba=maybe"), ("true", "proba=true")]:
        ((response, _),) = ask(predictor, rows("w1"), path=f"/predict?proba={value}")
        assert response.status_code == 422
        assert [p["got"] for p in response.json()["problems"]] == [got]

    assert predictor.endpoint.model.model.calls == before


DOUBLED = {
    "record": ('{"x": 1, "word": "a", "x": 2}', 0, "x"),
    "second record": ('[{"x": 1, "word": "a"}, {"x": 1, "word": "b", "word": "c"}]', 1, "word"),
    "escaped": ('{"x": 1, "word": "a", "\\u0078": 2}', 0, "x"),
    "unlike values": ('{"x": "1", "word": "a", "x": 2}', 0, "x"),
    "split": ('{"columns": ["x", "word"], "data": [[1, "b"]], "columns": ["x", "word"]}', None, "columns"),
    "among quotation marks": ('[{"x": 1, "word": "say \\"a\\""}, {"x": 1, "x": 1, "word": "b"}]', 1, "x"),
    "among marks written as numbers": ('[{"x": 1, "word": "\\u0022\\u0022"}, {"x": 1, "x": 1, "word": "b"}]', 1, "x"),
}


@pytest.mark.parametrize("body", DOUBLED)
def test_a_key_that_stands_twice_is_refused(worker, body):
    text, row, key = DOUBLED[body]

    ((response, _),) = ask(worker(), text.encode())

    assert response.status_code == 422, response.text
    assert [(p["row"], p["column"]) for p in response.json()["problems"]] == [(row, key)]


@pytest.mark.parametrize("word", ['"', '""x": 1', "\\", '\\"', "\u2028", "", "columns"])
def test_any_text_is_served(worker, word):
    predictor = worker()
    bodies = [rows(word, "b"), json.dumps({"columns": ["word", "x"], "data": [[word, 3]]}).encode()]

    for (response, _), body in zip(ask(predictor, *bodies), bodies, strict=True):
        assert response.status_code == 200, (body, response.text)


def test_whatever_stops_a_worker_is_told_to_its_starter(worker, monkeypatch):
    def unexpected(*_, **__):
        msg = "no log\ntoday"
        raise ZeroDivisionError(msg)

    monkeypatch.setattr(endpoint, "LogWriter", unexpected)
    with pytest.raises(ZeroDivisionError):
        worker()

    outcome = json.loads(Path(os.environ[serving.SPEC]).with_suffix(".outcome").read_text())
    error = artifact.failure(outcome, 1, "")
    assert type(error).__name__ == "RehearsalError"
    assert str(error).startswith("the service cannot start: ZeroDivisionError: no log today")
    assert "Traceback" in error.details


def test_requests_pass_bentomls_own_middleware_where_it_is_asked_for(flight_model, flights):
    service = nbdeploy.deploy(flight_model, "observed", *flights, bentoml_middleware=True, progress=False)

    nbdeploy.predict("observed", flights[0].head(1))

    page = httpx.get(f"{service.url}/metrics").text
    assert "bentoml_service_request_total" in page
    assert 'nbdeploy_rows_total{version="v1"} 1.0' in page
    assert "method=POST,path=/predict" in nbdeploy.logs("observed")
    for path in ("/livez", "/schema.json", "/predict"):  # BentoML's own routes are guarded too
        assert httpx.get(service.url + path, headers={"Host": "elsewhere.example"}).status_code == 421
    nbdeploy.stop("observed")


@pytest.mark.parametrize("required", [False, True])
def test_what_cannot_be_logged_is_answered_unless_the_log_is_required(worker_of, required, home):
    predictor = worker_of(log_required=required)()
    place = home / "predictions" / "picky"
    if place.is_dir():
        place.rename(place.with_name("aside"))
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.touch()  # no segment can be opened

    ((without, _),) = ask(predictor, rows("w"))
    place.unlink()
    time.sleep(0.3)
    ((after, _),) = ask(predictor, rows("w"))

    assert without.status_code == (503 if required else 200)
    assert ("retry-after" in without.headers) == required
    assert after.status_code == 200
    assert prediction_log.size("picky") == 1
    ((page, _),) = ask(predictor, b"", path="/metrics", method="GET")
    assert f'nbdeploy_rows_total{{version="v1"}} {1 if required else 2}.0' in page.text
    assert 'nbdeploy_log_drops_total{version="v1"} 1.0' in page.text

"""What a deployment says about itself is true: its OpenAPI document, and the page that shows it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import httpx
import jsonschema
import numpy as np
import pandas as pd
import psutil
import pytest

from kinds import FRAME, RECORD, SIGNATURE, Even
from nbdeploy import http_app
from nbdeploy.answers import STRING, Output
from nbdeploy.exchange import Served
from nbdeploy.serving_docs import openapi
from nbdeploy.serving_page import index_page
from nbdeploy.signature import Column, Signature
from nbdeploy.signature_inference import infer_columns
from services import running

SERVED = Served("kinds", "v1", replace(SIGNATURE, example=RECORD, classes=(False, True)))
# Every one of them is to hold for every route.
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "negative_data_rejection", "unsupported_method",
)  # fmt: skip


@pytest.fixture(scope="module")
def service():
    with running(Even(), "kinds", FRAME, [True, False, True]) as (found, _):
        yield found


def rows_schema(document):
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return {**body, "components": document["components"]}


def is_valid(document, value):
    return jsonschema.Draft202012Validator(rows_schema(document)).is_valid(value)


def test_the_document_is_openapi_3_1():
    from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

    for token in (False, True):
        OPENAPI_31_VALIDATOR.validate(json.loads(json.dumps(openapi(SERVED, token=token))))


def test_every_route_is_in_the_document_and_nothing_else(service):
    document = httpx.get(f"{service.url}/openapi.json").json()
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}

    for method, path in described:
        response = httpx.request(method, service.url + path, content=b"" if method == "GET" else b"{}")
        assert response.status_code not in (404, 405), (method, path)
    source = Path(http_app.__file__).parent
    for module in source.glob("protocol_*.py"):
        for path in re.findall(r'"(/[\w./]+)"', module.read_text()):
            assert any(path in known for _, known in described) or path == "/docs.json", (module.name, path)
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)


def test_every_example_is_answered(service):
    document = httpx.get(f"{service.url}/openapi.json").json()
    seen = 0
    for path, methods in document["paths"].items():
        body = methods.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        examples = [body["example"]] if "example" in body else [e["value"] for e in body.get("examples", {}).values()]
        for example in examples:
            if path in ("/labels", "/explain"):
                continue
            response = httpx.post(service.url + path, json=example, timeout=20)
            assert response.status_code == 200, (path, response.text)
            seen += 1
    assert seen >= 3 + 1 + 3 + 3 + 1


def test_what_the_schema_takes_is_what_training_had_and_more():
    document = openapi(SERVED)

    assert is_valid(document, RECORD)
    assert is_valid(document, [RECORD, RECORD])
    assert is_valid(document, {"columns": list(RECORD), "data": [list(RECORD.values())]})
    for name, value in {"whole": 10**6, "kind": "new", "word": "x" * 1000, "byte": 127, "gap": None, "level": 7,
                        "when": "2050-01-01T00:00:00", "holes": [None, 1.5], "words": []}.items():  # fmt: skip
        assert is_valid(document, RECORD | {name: value}), name


@pytest.mark.parametrize(
    ("name", "value"),
    [("whole", 1.5), ("whole", None), ("byte", 128), ("big", -1), ("maybe", 2**31), ("size", "1"), ("half", 1e39),
     ("flag", 1), ("word", None), ("level", True), ("side", 1), ("when", "now"), ("when", "2013-01-31T08:15:00Z"),
     ("vector", [1.0]), ("grid", [[1, 2], [3, 40000]]), ("words", [1]), ("extra", 1)],
)  # fmt: skip
def test_what_the_service_refuses_the_schema_refuses_too(name, value):
    assert not is_valid(openapi(SERVED), RECORD | {name: value})


def test_a_token_is_asked_for_where_one_is_needed_and_not_for_health():
    document = openapi(SERVED, token=True)
    methods = {path: next(iter(operations.values())) for path, operations in document["paths"].items()}

    assert document["components"]["securitySchemes"] == {"bearer": {"type": "http", "scheme": "bearer"}}
    unprotected = {path for path, operation in methods.items() if "security" not in operation}
    assert unprotected == {
        "/livez", "/readyz", "/healthz", "/ping", "/health", "/v2/health/live", "/v2/health/ready", "/v2/models/kinds/ready",
        "/v2/models/kinds/versions/1/ready", "/v2/models/kinds/versions/v1/ready",
    }  # fmt: skip
    assert all(("401" in operation["responses"]) == ("security" in operation) for operation in methods.values())
    assert "securitySchemes" not in openapi(SERVED)["components"]


def test_of_private_columns_there_is_only_the_name_and_the_type():
    frame = pd.DataFrame({"salary": [12345.5, 67890.5], "town": ["Geheimstadt", "Verborgenheim"], "n": [1, 2]})
    frame["grade"] = pd.Categorical([41, 42])
    signature = replace(
        Signature(infer_columns(frame)), example={"salary": 12345.5, "town": "Geheimstadt", "n": 1, "grade": 41}
    )
    served = Served("private", "v1", signature.with_private(["salary", "town", "grade"]))

    for text in (json.dumps(openapi(served)), index_page(served)):
        assert not re.search("12345|67890|Geheim|Verborg|\\b4[12]\\b", text)
    row = openapi(served)["components"]["schemas"]["Row"]["properties"]
    assert {name: row[name]["type"] for name in row} == {
        "salary": "number",
        "town": "string",
        "n": "integer",
        "grade": "integer",
    }
    assert is_valid(openapi(served), openapi(served)["components"]["schemas"]["Row"]["example"])


def test_rows_without_names_are_described_where_nobody_named_the_columns():
    columns = infer_columns(pd.DataFrame({"x0": [1.5, 2.5], "x1": [3.5, 4.5]}))
    signature = Signature(columns, container="array", detail="float64", example={"x0": 1.5, "x1": 3.5})
    document = openapi(Served("bare", "v1", signature))

    assert is_valid(document, [[1.5, 3.5], [2, 3]])
    assert not is_valid(document, [[1.5]])
    row = {"indices": [0], "values": [1.5]}  # an object that a bare list would pass for a record
    sparse = Signature(
        (Column("x", "float", "float64", shape=(3,), cells="sparse"),), container="sparse", example={"x": row}
    )
    body = openapi(Served("bare", "v1", sparse))["paths"]["/predict"]["post"]["requestBody"]["content"][
        "application/json"
    ]
    for each in body["examples"].values():
        sparse.check(each["value"])
    images = infer_columns(pd.DataFrame({"x": [np.zeros((2, 2)), np.ones((2, 2))]}))
    document = openapi(Served("bare", "v1", Signature(images, container="array", example={"x": [[0.0, 0], [0, 0]]})))
    assert is_valid(document, [[[1, 2], [3, 4]]])
    assert not is_valid(document, [[[1, 2], [3]]])


@pytest.mark.parametrize(
    ("outputs", "good", "bad"),
    [
        ((Output("", "float64"),), [1.5, None], "a"),
        ((Output("", "int64", (2,)),), [[1, 2]], [1]),
        ((Output("", STRING),), ["a"], 1),
        ((Output("", "bool"),), [True], 1),
        ((Output("low", "float64"), Output("high", "float64")), [{"low": 1, "high": 2}], {"low": 1}),
        ((Output("", "object"),), [1, "a", {"b": []}], None),
        ((Output("", "datetime64[ns]"),), ["2013-01-01T00:00:00"], 5),
    ],
)
def test_answers_are_described_by_their_outputs(outputs, good, bad):
    document = openapi(Served("m", "v1", replace(SERVED.signature, outputs=outputs)))
    schema = {"$ref": "#/components/schemas/Answer", "components": document["components"]}
    answer = {"predictions": good, "prediction_ids": ["a-0"], "version": "v1"}

    jsonschema.Draft202012Validator(schema).validate(answer)
    if bad is not None:
        assert not jsonschema.Draft202012Validator(schema).is_valid(answer | {"predictions": [bad]})


# Schemathesis makes requests of the document, good ones and bad ones, and compares what is answered with it.


def explore(service, document, *arguments):
    """How many requests were made of a document, which is a URL or a file."""
    folder = Path(tempfile.mkdtemp())
    before = [child.pid for child in psutil.Process(service.pid).children(recursive=True)]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(Path(__file__).parent)}
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", str(document), f"--url={service.url}", "--continue-on-failure",
        "--no-color", "--no-shrink", "--generation-database=none", f"--report-json-path={folder / 'report.json'}", *arguments,
    ]  # fmt: skip
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        found = json.loads((folder / "report.json").read_text())
    finally:
        shutil.rmtree(folder)
    assert not found["failures"]
    assert not found["errors"]
    assert [child.pid for child in psutil.Process(service.pid).children(recursive=True)] == before
    return found["test_cases"]["generated"]


@pytest.fixture
def records_only(service, tmp_path):
    """The document with the forms of a body that a schema can describe whole: not columns and data, in any order."""
    document = httpx.get(f"{service.url}/openapi.json").json()
    document["paths"] = {"/predict": document["paths"]["/predict"]}
    content = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    content.pop("application/vnd.apache.arrow.stream")
    body = content["application/json"]
    body["schema"]["anyOf"] = body["schema"]["anyOf"][:2]
    body["examples"].pop("split")
    place = tmp_path / "records.json"
    place.write_text(json.dumps(document))
    return place


def test_a_hundred_requests_of_the_document_are_answered_as_it_says(service, records_only):
    exact = ",".join((*CHECKS, "positive_data_acceptance"))
    assert explore(service, records_only, "-c", exact, "-n", "50", "--seed=1", "--phases=fuzzing") >= 50

    # The same model under another version's path is the same route.
    every = [
        "-c",
        ",".join(CHECKS),
        "-n",
        "6",
        "--seed=2",
        "--phases=fuzzing",
        "--exclude-path-regex=/versions/|explain",
    ]
    assert explore(service, f"{service.url}/openapi.json", *every) >= 40


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_two_thousand_requests_of_the_document_are_answered_as_it_says(service, records_only, seed):
    exact = ",".join((*CHECKS, "positive_data_acceptance"))
    phases = (f"--seed={seed}", "--phases=examples,coverage,fuzzing")
    made = explore(service, records_only, "-c", exact, "-n", "700", *phases)

    whole = f"{service.url}/openapi.json"
    # SHAP takes a tenth of a second for a row.
    posts = ("--include-method=POST", "--exclude-path-regex=/versions/|explain")
    made += explore(service, whole, *posts, "-c", ",".join(CHECKS), "-n", "200", *phases)
    made += explore(service, whole, "-c", ",".join(CHECKS), "-n", "10", "--include-method=GET", *phases)
    assert made >= 2_000


# The page


def test_the_page_is_its_own_and_has_a_line_for_every_protocol(service):
    response = httpx.get(service.url)

    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert not re.search(r"https?://", response.text)
    for path in ("/predict", "/invocations", "/v2/models/kinds/infer", "/v1/models/kinds:predict", "/bentoml/predict"):
        assert f"$URL{path}" in response.text
    assert httpx.get(f"{service.url}/static_content/swagger-ui-bundle.js").status_code == 200
    assert "TOKEN" not in response.text
    assert "Authorization: Bearer $TOKEN" in index_page(SERVED, token=True).replace("&quot;", '"')


def test_a_copied_line_of_the_page_works_in_a_shell(service):
    page = httpx.get(service.url).text
    lines = [re.sub("<[^>]*>", "", block) for block in re.findall("<pre>(.*?)</pre>", page, re.DOTALL)]
    commands = [__import__("html").unescape(line) for line in lines if line.startswith("curl")]

    assert len(commands) == 5
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", f"{command} -w ' %{{http_code}}'"], env=os.environ | {"URL": service.url},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.endswith(" 200"), (command, done.stdout)


def test_nothing_in_a_name_becomes_markup_or_a_shell_word():
    names = [
        "</script><script>alert(1)</script>",
        "'; touch /tmp/x; '",
        "$(id)",
        "`id`",
        '"><img src=x onerror=alert(1)>',
        "{title}",
    ]
    frame = pd.DataFrame({name: [f"v{name}", "b"] for name in names})
    signature = replace(
        Signature(infer_columns(frame)), example={name: f"v{name}" for name in names}, target="<b>t</b>"
    )
    page = index_page(Served("odd", "v1", signature))

    assert "<script>alert" not in page
    assert "<img" not in page
    assert "<b>t" not in page
    for block in re.findall(r"<pre>(curl.*?)</pre>", page, re.DOTALL):
        words = shlex.split(__import__("html").unescape(block).replace("\\\n", ""))
        assert len(words) == 7
        json.loads(words[-1])


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_readable_at_900_pixels_in_either_scheme(service, lab_browser, tmp_path, scheme):
    shots = Path(os.environ.get("LAB_SHOTS") or tmp_path)
    with lab_browser.new_context(viewport={"width": 900, "height": 1000}, color_scheme=scheme) as context:
        page = context.new_page()
        told, asked = [], []
        page.on("console", lambda message: told.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(service.url)
        page.wait_for_selector(".opblock-summary-path >> text=/predict", timeout=15_000)
        page.screenshot(path=shots / f"service-page-{scheme}.png", full_page=True)

        assert not told
        assert all(url.startswith((service.url, "data:")) for url in asked), asked
        assert page.evaluate("document.documentElement.scrollWidth") <= 900
        assert page.locator("#url").inner_text() == service.url
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (back == "rgb(255, 255, 255)") == (scheme == "light")

"""Nobody asks a service but who may: by address, by host, by page, by token, over TLS. And nothing calls home."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import textwrap
import threading
import time

import httpx
import pandas as pd
import psutil
import pytest

import nbdeploy
from nbdeploy import access, bento, credentials, deployment, home, processes
from nbdeploy.__main__ import main
from nbdeploy.exchange import Refused
from nbdeploy.serve_options import ServeOptions
from services import own_home, running

CANARY = "canary-7f3a1c5e9b2d4f6a"
EVERYWHERE = "0.0.0.0"
X = pd.DataFrame({"a": [1.0, 2.0]})
ROW = b'{"a": 1.0}'
OPENSSL = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by openssl")


class Seven:
    """Always says 7."""

    def predict(self, X):
        return [7] * len(X)


@pytest.fixture(scope="module")
def _importable():
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.path.dirname(__file__)
    yield
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))


@pytest.fixture(scope="module")
def open_service(_importable):
    """On loopback, for everybody there."""
    with running(Seven(), "open", X) as (service, _):
        yield service


# -- Host, Origin, media type -------------------------------------------------------------------------------

RIGHT = "Host: 127.0.0.1:{port}\nContent-Type: application/json"
HEADERS = {
    "as it should be": (RIGHT, 200),
    "loopback by name": ("Host: LocalHost:{port}\nContent-Type: application/json; charset=utf-8", 200),
    "another port, as a port forward has it": ("Host: localhost:9999\nContent-Type: application/json", 200),
    "another address of loopback": ("Host: 127.9.9.9\nContent-Type: application/json", 200),
    "IPv6 loopback": ("Host: [::1]:{port}\nContent-Type: application/json", 200),
    "the service's own page": (RIGHT + "\nOrigin: http://127.0.0.1:{port}\nSec-Fetch-Site: same-origin", 200),
    "a foreign host": ("Host: evil.example:{port}\nContent-Type: application/json", 421),
    "a foreign host that begins as loopback": ("Host: 127.0.0.1.evil.example\nContent-Type: application/json", 421),
    "a foreign host that ends as loopback": ("Host: evil-localhost\nContent-Type: application/json", 421),
    "somebody's address": ("Host: 192.0.2.77:{port}\nContent-Type: application/json", 421),
    "the address that browsers take for this machine": ("Host: 0.0.0.0:{port}\nContent-Type: application/json", 421),
    "loopback as a user name": ("Host: 127.0.0.1@evil.example\nContent-Type: application/json", 421),
    "a rebound name with its own page": (
        "Host: evil.example\nOrigin: http://evil.example\nContent-Type: application/json", 421,
    ),
    "no host": ("Content-Type: application/json", 400),
    "an empty host": ("Host:\nContent-Type: application/json", 400),
    "two hosts": (RIGHT + "\nHost: evil.example", 400),
    "a foreign page": (RIGHT + "\nOrigin: https://evil.example", 403),
    "a page without an origin": (RIGHT + "\nOrigin: null", 403),
    "another page of this machine": (RIGHT + "\nOrigin: http://127.0.0.1:8888", 403),
    "an origin that begins as ours": (RIGHT + "\nOrigin: http://127.0.0.1:{port}.evil.example", 403),
    "a foreign page that hides its origin": (RIGHT + "\nSec-Fetch-Site: cross-site", 403),
    "text": ("Host: 127.0.0.1:{port}\nContent-Type: text/plain", 415),
    "a form": ("Host: 127.0.0.1:{port}\nContent-Type: application/x-www-form-urlencoded", 415),
    "no media type": ("Host: 127.0.0.1:{port}", 415),
}  # fmt: skip


def raw(port, headers, body=ROW, path="/predict"):
    lines = [f"POST {path} HTTP/1.1", *headers.format(port=port).split("\n"), f"Content-Length: {len(body)}"]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode() + body)
        answer = b""
        while block := connection.recv(65536):
            answer += block
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


@pytest.mark.parametrize("case", HEADERS)
def test_a_foreign_host_page_or_media_type_gets_no_answer(open_service, case):
    headers, expected = HEADERS[case]

    status, body = raw(open_service.port, headers)

    assert status == expected, body
    if expected != 200:
        assert b"\n" not in json.loads(body)["error"].encode()
    else:
        assert json.loads(body)["predictions"] == [7]


def guard(address="127.0.0.1", token=None, **options):
    return access.Guard(ServeOptions(host=address, **options), token, address)


def refusal(asked, *, of, method="POST", **more):
    with pytest.raises(Refused) as refused:
        of.check(method, {name.replace("_", "-"): value for name, value in asked.items()}, **more)
    return refused.value


def test_a_name_that_was_allowed_is_a_right_host_with_any_port():
    named = guard(allowed_hosts=["models.example.com"])

    assert named.check("POST", {"host": "models.example.com:8443"}) == {}
    assert named.check("POST", {"host": "Models.Example.com."}) == {}
    assert refusal({"host": "example.com"}, of=named).status == 421
    assert guard(allowed_hosts=["*"]).check("POST", {"host": "anything.example"}) == {}


def test_on_ipv6_and_on_every_address_the_right_hosts_are_addresses():
    everywhere, six = guard("::", token=CANARY), guard("::1")
    bearer = {"authorization": f"Bearer {CANARY}"}

    for host in ("[::1]:80", "127.0.0.1", "192.0.2.7:80", "[fd00::2]:80", f"{socket.gethostname()}:80"):
        everywhere.check("POST", {"host": host, **bearer})
    assert refusal({"host": "evil.example", **bearer}, of=everywhere).status == 421
    assert six.check("POST", {"host": "[::1]"}) == {}
    assert refusal({"host": "[fd00::2]"}, of=six).status == 421
    assert refusal({"host": "::1"}, of=six).status == 421  # needs brackets


def test_a_page_that_was_named_may_call_and_nobody_gets_credentials():
    page, ours = "https://app.example.com", {"host": "127.0.0.1:80"}
    named = guard(origins=[page + "/"])

    assert named.check("POST", {**ours, "origin": page})["Access-Control-Allow-Origin"] == page
    assert named.check("POST", {**ours, "origin": page})["Vary"] == "Origin"
    assert named.check("POST", ours) == {"Vary": "Origin"}
    assert refusal({**ours, "origin": "https://app.example.com.evil.example"}, of=named).status == 403
    assert refusal({**ours, "origin": "http://app.example.com"}, of=named).status == 403
    assert refusal({**ours, "origin": "null"}, of=named).status == 403
    anybody = guard(origins=["*"]).check("POST", {**ours, "origin": "null"})
    assert anybody["Access-Control-Allow-Origin"] == "*"
    assert not [name for name in anybody if "credentials" in name.lower()]


def test_a_browser_that_asks_first_is_told_what_it_may_send():
    asked = {
        "host": "127.0.0.1:80", "origin": "https://app.example.com", "access-control-request-method": "POST",
        "access-control-request-headers": "Content-Type, authorization,x-evil",
    }  # fmt: skip
    named = guard(token=CANARY, origins=["https://app.example.com"])

    reply = named.preflight("OPTIONS", asked)

    assert reply.headers["Access-Control-Allow-Headers"] == "authorization, content-type"
    assert reply.headers["Access-Control-Allow-Origin"] == "https://app.example.com"
    assert named.preflight("OPTIONS", {"host": "127.0.0.1:80"}) is None
    assert named.preflight("POST", asked) is None
    with pytest.raises(Refused, match="may not call"):
        guard().preflight("OPTIONS", asked)


def test_a_refusal_for_want_of_a_token_can_be_read_by_the_page_that_may_call():
    refused = refusal(
        {"host": "127.0.0.1", "origin": "https://app.example.com"},
        of=guard(token=CANARY, origins=["https://app.example.com"]),
    )

    assert (refused.status, refused.headers["Access-Control-Allow-Origin"]) == (401, "https://app.example.com")
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "given",
    ["", CANARY, f"Basic {CANARY}", "Bearer", "Bearer ", f"Bearer {CANARY[:-1]}", f"Bearer {CANARY}x", "Bearer é"],
)
def test_without_the_whole_token_there_is_no_answer(given):
    refused = refusal({"host": "127.0.0.1", "authorization": given}, of=guard(token=CANARY))

    assert refused.status == 401
    assert CANARY not in refused.error + str(refused.headers)


def test_with_the_token_the_host_still_counts_and_health_needs_none():
    closed = guard(token=CANARY)

    assert closed.check("POST", {"host": "127.0.0.1", "authorization": f"bearer {CANARY}"}) == {}
    assert closed.check("GET", {"host": "127.0.0.1"}, open=True) == {}
    refused = refusal({"host": "evil.example", "authorization": f"Bearer {CANARY}"}, of=closed)
    assert refused.status == 421


def test_who_sends_many_hosts_and_origins_fills_no_memory():
    lax = guard(allowed_hosts=["*"], origins=["*"])

    for number in range(5_000):
        lax.check("POST", {"host": f"h{number}.example", "origin": f"https://o{number}.example"})

    assert len(lax._right) <= 256
    assert len(lax._pages) <= 256


def test_what_a_reply_depends_on_is_decided_in_microseconds():
    closed = guard(token=CANARY, origins=["https://app.example.com"])
    asked = {"host": "127.0.0.1", "origin": "https://app.example.com", "authorization": f"Bearer {CANARY}"}

    begun = time.process_time()
    for _ in range(10_000):
        closed.check("POST", asked)

    assert (time.process_time() - begun) / 10_000 < 50e-6  # it takes 1; a machine may be busy


@pytest.mark.browser
def test_a_page_of_another_site_cannot_ask_from_a_real_browser(open_service, lab_browser, tmp_path):
    with _site(tmp_path) as site, lab_browser.new_context() as context:
        page = context.new_page()
        page.goto(site)
        before = _requests(open_service)
        tried = page.evaluate(ATTEMPTS, open_service.url)

        assert tried == {"simple": "opaque 0", "json": "failed", "read": "failed", "form": "loaded"}
        answered = _requests(open_service) - before
        assert answered == 0
        # The service's own page may, and so can its user.
        page.goto(open_service.url)
        assert page.evaluate(OWN, open_service.url) == 200


ATTEMPTS = """async (url) => {
    const said = {};
    const body = '{"a": 1.0}';
    const tried = async (name, options, path = '/predict') => {
        try {
            const answer = await fetch(url + path, options);
            said[name] = `${answer.type} ${answer.status}`;
        } catch (error) { said[name] = 'failed'; }
    };
    await tried('simple', {method: 'POST', mode: 'no-cors', headers: {'Content-Type': 'text/plain'}, body});
    await tried('json', {method: 'POST', headers: {'Content-Type': 'application/json'}, body});
    await tried('read', {}, '/signature');
    const frame = document.createElement('iframe');
    frame.name = 'target';
    document.body.append(frame);
    const form = document.createElement('form');
    Object.assign(form, {method: 'POST', action: url + '/predict', target: 'target', enctype: 'text/plain'});
    const field = document.createElement('input');
    Object.assign(field, {name: '{"a": 1.0, "b', value: '": 1}'});
    form.append(field);
    document.body.append(form);
    const loaded = new Promise((resolve) => frame.addEventListener('load', () => resolve('loaded')));
    form.submit();
    said.form = await loaded;
    return said;
}"""
OWN = """async (url) => (await fetch(url + '/predict', {
    method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{"a": 1.0}'})).status"""


@contextlib.contextmanager
def _site(folder):
    (folder / "index.html").write_text("<!doctype html><title>another site</title>")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()
        thread.join()


def _requests(service):
    lines = httpx.get(f"{service.url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("nbdeploy_rows_total{"))


# -- tokens -------------------------------------------------------------------------------------------------

HOST = {"loopback": "127.0.0.1", "every address": EVERYWHERE}
# Where it listens, what is said about a token, and who must have it: "nobody", "everybody", or it is refused.
TOKENS = [
    ("loopback", {}, "nobody"),
    ("loopback", {"token": False}, "nobody"),
    ("loopback", {"token": True}, "everybody"),
    ("loopback", {"token_file": "given"}, "everybody"),
    ("every address", {}, "everybody"),
    ("every address", {"token": False}, "refused"),
    ("every address", {"token": True}, "everybody"),
    ("every address", {"token_file": "given"}, "everybody"),
]


def _said(tmp_path, host, said):
    if "token_file" not in said:
        return {"host": HOST[host], **said}
    given = tmp_path / "given"
    given.write_text(CANARY + "\n")
    given.chmod(0o600)
    return {"host": HOST[host], "token_file": given}


@pytest.mark.parametrize(("host", "said", "who"), TOKENS)
def test_beyond_loopback_there_is_always_a_token(tmp_path, host, said, who):
    options = ServeOptions.chosen(_said(tmp_path, host, said))

    if who == "refused":
        with pytest.raises(nbdeploy.ServiceError, match=r"cannot listen on 0\.0\.0\.0 without a token"):
            deployment.check("seven", None, options)
        return
    deployment.check("seven", None, options)
    path = home.home() / "tokens" / "seven"

    assert path.exists() == (who == "everybody")
    if who == "everybody":
        assert path.stat().st_mode & 0o777 == 0o600
        assert len(path.read_text()) >= 22
        assert (path.read_text() == CANARY) == ("token_file" in said)


@pytest.mark.slow
@pytest.mark.parametrize(("host", "said", "who"), TOKENS)
def test_a_real_service_answers_only_who_has_its_token(tmp_path, host, said, who):
    options = _said(tmp_path, host, said)
    if who == "refused":
        with pytest.raises(nbdeploy.ServiceError, match="without a token"):
            nbdeploy.deploy(Seven(), "seven", X, **options)
        assert nbdeploy.status().empty
        return

    service = nbdeploy.deploy(Seven(), "seven", X, **options)

    answer = httpx.post(f"{service.url}/predict", json={"a": 1.0})
    assert answer.status_code == (200 if who == "nobody" else 401)
    assert nbdeploy.predict("seven", X)["prediction"].tolist() == [7, 7]


def test_a_worker_beyond_loopback_that_has_no_token_does_not_start():
    with pytest.raises(nbdeploy.ServiceError, match="needs a token"):
        access.Guard(ServeOptions(host=EVERYWHERE), None, EVERYWHERE)


def test_a_token_is_never_seen_but_in_its_file(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pkl").write_bytes(__import__("cloudpickle").dumps(Seven()))
    X.to_parquet("train.parquet")
    monkeypatch.setenv("NBDEPLOY_TOKEN", CANARY)
    words = ["deploy", "model.pkl", "--name", "seven", "--data", "train.parquet", "--host", EVERYWHERE]
    words += ["--access-log", "--workers", "2"]
    assert main(words) == 0
    monkeypatch.delenv("NBDEPLOY_TOKEN")
    service = deployment.get("seven")

    # It listens on every address of the machine, and each asks for the token; our own callers find it.
    address = _address()
    for host in filter(None, ("127.0.0.1", address)):
        for path in ("/predict", "/invocations", "/v2/models/seven/infer", "/metrics", "/", "/signature", "/nowhere"):
            said = httpx.post(f"http://{host}:{service.port}{path}", content=ROW, headers={"Authorization": "Bearer x"})
            assert said.status_code == 401, path
        for path in ("/livez", "/readyz", "/ping"):
            assert httpx.get(f"http://{host}:{service.port}{path}").status_code == 200, path
    assert main(["predict", "seven", "train.parquet"]) == 0
    assert main(["status"]) == 0
    assert main(["--json", "serve", "seven"]) == 0
    assert main(["logs", "seven", "--lines", "1000"]) == 0
    with nbdeploy.connect("seven") as http:
        assert http.get("/signature").status_code == 200
        shown = [repr(http.headers), repr(http)]
    with pytest.raises(nbdeploy.ServiceError) as wrong:
        nbdeploy.predict("seven", X, url=f"http://127.0.0.1:{service.port}/.")
    result = nbdeploy.validate("seven", notebook=_gate(tmp_path), progress=False)
    assert result.passed

    key = service.key
    shown += [
        repr(service),
        service._repr_html_(),
        str(service.to_dict()),
        repr(key),
        str(wrong.value),
        repr(service.options),
    ]
    shown += [*capfd.readouterr(), repr(result)]
    assert service.token_file in shown[2]
    assert key.token == CANARY
    for text in shown:
        assert CANARY not in text
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            assert not any(CANARY in word for word in process.cmdline()), process
    for process in processes.family(service.pid, service.identity):
        assert CANARY not in str(process.environ())
    bento.wait("seven")
    held = [path for path in _files(home.home(), home.bentoml_home(), tmp_path) if CANARY.encode() in path.read_bytes()]
    assert held == [home.home() / "tokens" / "seven"]


def _address():
    found = [a.address for each in psutil.net_if_addrs().values() for a in each if a.family == socket.AF_INET]
    return next((address for address in found if not address.startswith("127.")), None)


GATE = """
import httpx, nbdeploy, pandas as pd
with nbdeploy.connect("seven", url=url) as http:
    print(http.headers, http.get("/readyz"), http.get("/signature").status_code)
nbdeploy.check("answers", len(nbdeploy.predict("seven", pd.DataFrame({"a": [1.0]}), url=url)), at_least=1)
nbdeploy.check("refuses", httpx.get(url + "/signature").status_code, at_least=401)
"""


def _gate(folder):
    import nbformat

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in ("url = ''", GATE)])
    notebook.cells[0].metadata.tags = ["parameters"]
    nbformat.write(notebook, folder / "gate.ipynb")
    return folder / "gate.ipynb"


def _files(*folders):
    return [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def test_a_token_file_that_others_may_read_is_refused(tmp_path):
    given = tmp_path / "token"
    given.write_text(CANARY)
    given.chmod(0o644)

    with pytest.raises(nbdeploy.ServiceError, match=f"others may read .*chmod 600 {given}") as refused:
        deployment.check("seven", None, ServeOptions(token_file=str(given)))

    assert CANARY not in str(refused.value)


@pytest.mark.parametrize("content", ["", "short", "two words here", "line\nline-line", "umlaut-äöü-umlaut", "x" * 5000])
def test_a_file_without_a_token_is_one_line(tmp_path, content):
    given = tmp_path / "token"
    given.write_text(content)
    given.chmod(0o600)

    with pytest.raises(nbdeploy.ServiceError, match="holds no token") as refused:
        credentials.read_token(given)

    assert not content or content not in str(refused.value)


def test_a_token_that_was_made_is_used_again_and_a_given_one_takes_its_place(monkeypatch):
    options = ServeOptions(token=True)
    path = credentials.provide_token("seven", options, "127.0.0.1")
    first = credentials.read_token(home.home() / "tokens" / "seven")

    assert credentials.provide_token("seven", options, EVERYWHERE) == path
    assert credentials.key_here(path, "").token == first
    monkeypatch.setenv("NBDEPLOY_TOKEN", CANARY)
    credentials.provide_token("seven", ServeOptions(), "127.0.0.1")
    assert credentials.key_here(path, "").token == CANARY


def test_a_bento_elsewhere_has_its_token_from_the_environment(monkeypatch, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(CANARY)
    secret.chmod(0o444)  # as a container's secrets are mounted
    monkeypatch.setenv("NBDEPLOY_TOKEN_FILE", str(secret))
    anywhere = access.guard_of({"name": "seven"})

    assert anywhere.needs_token
    assert anywhere.check("POST", {"host": "pod-7.cluster", "authorization": f"Bearer {CANARY}"}) == {}
    assert refusal({"host": "pod-7.cluster"}, of=anywhere).status == 401
    monkeypatch.setenv("NBDEPLOY_ALLOWED_HOSTS", "models.example.com, other.example")
    strict = access.guard_of({"name": "seven"})
    assert refusal({"host": "pod-7.cluster"}, of=strict).status == 421


def test_a_token_is_sent_to_nobody_but_its_own_service(open_service, monkeypatch):
    credentials.provide_token("other", ServeOptions(token=True), "127.0.0.1")

    assert deployment.key_of("http://127.0.0.1:1").headers == {}
    assert deployment.key_of(open_service.url).headers == {}
    monkeypatch.setenv("NBDEPLOY_TOKEN", CANARY)
    assert deployment.key_of("https://models.example.com").headers == {"Authorization": f"Bearer {CANARY}"}


# -- options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"host": ""}, {"host": " "}, {"host": "http://x"}, {"host": "a/b"}, {"host": "1.2.3.4:80"}, {"workers": 0},
        {"workers": 1.5}, {"workers": True}, {"timeout": float("nan")}, {"max_body": "64MB"}, {"token": CANARY},
        {"token": False, "token_file": "x"}, {"tls_cert": "x"}, {"tls_key": "x"}, {"origins": ["example.com"]},
        {"origins": ["https://a.example/path"]}, {"origins": ["https://*.example"]}, {"allowed_hosts": ["a b"]},
        {"allowed_hosts": ["https://a.example"]}, {"allowed_hosts": ["*.example"]}, {"hots": "127.0.0.1"},
    ],
)  # fmt: skip
def test_an_option_that_makes_no_sense_is_one_line(options):
    with pytest.raises(nbdeploy.InputError) as refused:
        nbdeploy.serve("seven", **options)

    assert "\n" not in str(refused.value)
    assert CANARY not in str(refused.value)


def test_a_misspelt_option_is_told_its_name():
    with pytest.raises(nbdeploy.InputError, match=r"no option 'allowed_host'\. Did you mean 'allowed_hosts'"):
        nbdeploy.serve("seven", allowed_host=["x"])


def test_another_option_of_what_runs_already_is_one_line(open_service):
    options = open_service.options

    assert options.differing({"workers": 1, "host": "127.0.0.1", "token": None}) == []
    assert options.differing({"workers": 2, "allowed_hosts": ["x"]}) == ["workers=1", "allowed_hosts=[]"]


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.200", "a" * 70 + ".example"])
def test_a_host_that_is_not_this_machine_is_one_line(host):
    with pytest.raises(nbdeploy.ServiceError, match="no address of this machine") as refused:
        nbdeploy.deploy(Seven(), "seven", X, host=host)

    assert "\n" not in str(refused.value)
    assert nbdeploy.status().empty


def test_the_help_shows_every_option():
    import inspect

    for verb in (nbdeploy.serve, nbdeploy.deploy):
        parameters = inspect.signature(verb).parameters
        for name in ServeOptions().to_dict():
            assert name in parameters
            assert name in verb.__doc__


def test_a_name_is_bound_to_its_one_address():
    with deployment._listen("seven", "localhost", None, 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


@pytest.mark.skipif(not socket.has_ipv6, reason="there is no IPv6")
def test_ipv6_addresses_make_urls_with_brackets():
    from nbdeploy import listening

    assert listening.url_of(ServeOptions(host="::1"), "::1", 80) == "http://[::1]:80"
    assert listening.url_of(ServeOptions(host="::"), "::", 80) == "http://[::1]:80"
    assert listening.url_of(ServeOptions(host="models.example.com"), "192.0.2.7", 80) == "http://models.example.com:80"
    try:
        listener = deployment._listen("seven", "::", None, 0)
    except nbdeploy.ServiceError:
        pytest.skip("this machine has no IPv6")
    with listener:
        socket.create_connection(("127.0.0.1", listener.getsockname()[1])).close()
        socket.create_connection(("::1", listener.getsockname()[1])).close()


# -- TLS ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A self-signed certificate for another name, one that has expired, and a key of somebody else."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    openssl(
        *["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "30"],
        "-subj",
        "/CN=models.example",
    )
    openssl(
        *["req", "-newkey", "rsa:2048", "-nodes", "-keyout", "other.pem", "-out", "other.csr"],
        "-subj",
        "/CN=models.example",
    )
    openssl(*["rsa", "-aes128", "-passout", "pass:secret", "-in", "key.pem", "-out", "locked.pem"])
    (folder / "ca.cnf").write_text(
        textwrap.dedent("""
        [ca]
        default_ca = own
        [own]
        database = index.txt
        serial = serial
        new_certs_dir = .
        default_md = sha256
        policy = any
        [any]
        commonName = supplied
    """)
    )
    (folder / "index.txt").touch()
    (folder / "serial").write_text("01")
    openssl(
        *["ca", "-config", "ca.cnf", "-batch", "-selfsign", "-in", "other.csr", "-keyfile", "other.pem", "-out", "expired.pem"],
        *["-startdate", "20200101000000Z", "-enddate", "20200201000000Z"],
    )  # fmt: skip
    return folder


@OPENSSL
@pytest.mark.parametrize(
    ("cert", "key", "said"),
    [
        ("cert.pem", "other.pem", "key values mismatch"),
        ("cert.pem", "locked.pem", "no certificate and its key"),
        ("key.pem", "key.pem", "no certificate"),
        ("nowhere.pem", "key.pem", "nowhere.pem cannot be read"),
        ("cert.pem", "ca.cnf", "no certificate and its key"),
        ("expired.pem", "other.pem", "nobody would trust .* expired"),
    ],
)
def test_a_certificate_that_would_not_do_is_found_before_anything_is_saved(certificates, cert, key, said):
    with pytest.raises(nbdeploy.ServiceError, match=said) as refused:
        nbdeploy.deploy(Seven(), "seven", X, tls_cert=certificates / cert, tls_key=certificates / key)

    assert "\n" not in str(refused.value)
    assert nbdeploy.status().empty


@OPENSSL
def test_with_a_certificate_the_service_speaks_tls_and_our_callers_trust_it_alone(certificates):
    service = nbdeploy.deploy(
        Seven(), "seven", X, tls_cert=certificates / "cert.pem", tls_key=certificates / "key.pem", token=True,
        origins=["https://app.example.com"],
    )  # fmt: skip

    assert service.url.startswith("https://127.0.0.1:")
    assert service.state == "live"
    assert nbdeploy.predict("seven", X)["prediction"].tolist() == [7, 7]
    assert nbdeploy.predict("seven", X, url=service.url)["prediction"].tolist() == [7, 7]
    with pytest.raises(nbdeploy.ServiceError, match="SSL_CERT_FILE"):
        nbdeploy.predict("seven", X, url=service.url.replace("127.0.0.1", "localhost"))
    with pytest.raises(httpx.HTTPError):
        httpx.get(service.url.replace("https", "http") + "/readyz")
    answer = httpx.options(
        f"{service.url}/predict", verify=credentials.pinned(service.options.tls_cert),
        headers={"Origin": "https://app.example.com", "Access-Control-Request-Method": "POST"},
    )  # fmt: skip
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example.com"


@OPENSSL
def test_a_certificate_of_the_same_name_is_not_the_same_certificate(certificates, tmp_path):
    subprocess.run(
        ["openssl", *["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=models.example"]],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    impostor = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    impostor.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")

    with pytest.raises(ssl.SSLCertVerificationError):
        credentials._shake_hands(impostor, credentials.pinned(str(certificates / "cert.pem")))


# -- sockets, files, telemetry ------------------------------------------------------------------------------


def _listening():
    """The addresses beyond loopback that our processes listen on, or are connected to."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            ours = process.pid == os.getpid() or process.environ().get("NBDEPLOY_HOME") == os.environ["NBDEPLOY_HOME"]
            if not ours:
                continue
            for each in process.net_connections("inet"):
                if each.laddr and not credentials.is_loopback(each.laddr.ip):
                    found.add((process.pid, each.laddr, each.raddr))
    return found


@contextlib.contextmanager
def _watched():
    """Look at the sockets all the time, also while a verb is at work."""
    seen, over = set(), threading.Event()

    def look():
        while not over.wait(0.1):
            seen.update(_listening())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def _verbs(*, every):
    yield lambda: nbdeploy.deploy(Seven(), "seven", X, workers=2 if every else 1)
    yield lambda: nbdeploy.predict("seven", X)
    yield nbdeploy.status
    if every:
        yield lambda: nbdeploy.deploy(Seven(), "seven", X)
        yield lambda: nbdeploy.validate("seven", progress=False)
        yield lambda: nbdeploy.drift("seven")
        yield lambda: nbdeploy.card("seven", progress=False)
        yield lambda: nbdeploy.export_version("seven", "v1")
    yield lambda: nbdeploy.stop("seven")
    if every:
        yield lambda: nbdeploy.delete("seven", "v2")
        yield lambda: nbdeploy.serve("seven")


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_nothing_listens_beyond_loopback_before_during_or_after_any_verb(every, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with _watched() as seen:
        for verb in _verbs(every=every):
            verb()
            assert _listening() == set()

    assert seen == set()
    bento.wait("seven")


@pytest.mark.parametrize("umask", [0o000, *(pytest.param(each, marks=pytest.mark.slow) for each in (0o022, 0o077))])
def test_what_a_service_leaves_is_private_under_any_umask(umask):
    script = textwrap.dedent(f"""
        import os, sys
        os.umask({umask})
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import nbdeploy, test_access as shared
        from nbdeploy import bento
        nbdeploy.deploy(shared.Seven(), "seven", shared.X, token=True, access_log=True)
        nbdeploy.predict("seven", shared.X)
        bento.wait("seven")
    """)
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120)
    nbdeploy.predict("seven", X)

    parts = {path.relative_to(home.home()).parts[0] for path in _files(home.home())}
    assert {"tokens", "run", "predictions", "deployments", "traffic", "versions"} <= parts
    nbdeploy.stop("seven")
    for place in (home.home(), home.bentoml_home()):
        for path in [place, *place.rglob("*")]:
            mode = stat.S_IMODE(path.lstat().st_mode)
            if not path.is_symlink():
                assert mode & 0o077 == 0, f"{path} is {mode:o}"


def test_no_child_of_ours_is_told_to_call_home():
    env = processes.environment()

    assert env["BENTOML_DO_NOT_TRACK"] == "True"
    assert env["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert env["DO_NOT_TRACK"] == env["HF_HUB_DISABLE_TELEMETRY"] == "1"


ALONE = """
import sys
sys.path.insert(0, {here!r})
import nbdeploy, test_access as shared
from nbdeploy import bento
nbdeploy.deploy(shared.Seven(), "seven", shared.X)
assert nbdeploy.predict("seven", shared.X)["prediction"].tolist() == [7, 7]
bento.wait("seven")
{more}
nbdeploy.stop("seven")
print("done")
"""
MORE = """
assert nbdeploy.validate("seven", progress=False).passed
nbdeploy.drift("seven")
nbdeploy.card("seven", progress=False)
import mlflow.sklearn, tempfile
from sklearn.linear_model import LinearRegression
where = tempfile.mkdtemp() + "/model"
mlflow.sklearn.save_model(LinearRegression().fit(shared.X, [1, 2]), where, input_example=shared.X)
nbdeploy.save(where, "flow")
bento.wait("flow")
"""


@pytest.mark.parametrize("more", ["", pytest.param(MORE, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_in_a_network_without_a_route_everything_works_and_nothing_calls_home(tmp_path, more):
    alone = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "-"]
    traced = ["strace", "-f", "--seccomp-bpf", "-e", "trace=connect,sendto", "-o", str(tmp_path / "calls")]
    for needed in ("unshare", "ip", "strace"):
        if shutil.which(needed) is None:
            pytest.skip(f"there is no {needed}")
    if subprocess.run([*alone, *traced, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a network namespace is not permitted here")
    script = ALONE.format(here=os.path.dirname(__file__), more=more)

    done = subprocess.run(
        [*alone, *traced, sys.executable, "-W", "ignore", "-c", script],
        cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip

    assert done.stdout.strip().endswith("done"), done.stderr[-3000:]
    calls = [line for line in (tmp_path / "calls").read_text().splitlines() if "AF_INET" in line]
    assert any("127.0.0.1" in call for call in calls)  # it does see what is called
    assert [call for call in calls if "127.0.0.1" not in call and '"::1"' not in call] == []
    bento.wait("seven")


def test_a_home_that_is_not_ours_has_no_tokens():
    with own_home() as other:
        assert not (other / "tokens").exists()
        assert deployment.key_of("http://127.0.0.1:1") == credentials.Key()

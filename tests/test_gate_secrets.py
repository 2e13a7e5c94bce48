"""A secret reaches a gate by its environment only, and nothing that is kept holds it."""

from __future__ import annotations

import base64
import json
import os
import secrets
from pathlib import Path

import pytest

import nbdeploy
from gates import CHECK, write_gate
from nbdeploy import gate, gate_secrets, verbs
from nbdeploy.errors import GateError
from nbdeploy.gate_parameters import declared
from nbdeploy.gate_secrets import Secrets, environment, refuse_secrets

WHO = {"deployment": "flight-delay", "version": "v1", "digest": "ab" * 32}

# Quotes, brackets, lines, other alphabets: whatever a password may hold. Each test process has its own, since some
# tests look for them in every process of the machine.
OWN = secrets.token_hex(4)
CANARIES = {
    "DB_PASSWORD": f'canary-"quoted"\\one-{OWN}',
    "API_TOKEN": f"canary<two>&more-{OWN}",
    "PEM_KEY": f"-----BEGIN X-----\ncanary-{OWN}-line-1\ncanary-{OWN}-line-2\n-----END X-----",
    "SIGNING_SECRET": f"kanarienvögel-{OWN}",
    "PIN": str(10**12 + secrets.randbelow(10**12)),
}

TELLS = """
import json, os, sys, html, base64, warnings, ipywidgets
from urllib.parse import quote
names = ["DB_PASSWORD", "API_TOKEN", "PEM_KEY", "SIGNING_SECRET", "PIN"]
values = [os.environ[name] for name in names]
print(values)
for value in values:
    print(value, repr(value), json.dumps(value), quote(value, safe=""), base64.b64encode(value.encode()).decode())
    print(value, file=sys.stderr)
    display({"application/json": {value: [value], "n": int(value) if value.isdigit() else 0}}, raw=True)
    display({"text/html": f"<b>{html.escape(value)}</b>"}, raw=True)
    display(ipywidgets.HTML(value=f"as {value}", description=value))
    nbdeploy.check(f"asked as {value}", True, detail=value)
"""
RAISES = """
def connect(password):
    raise ConnectionError(f"no such user: {password} at {os.environ['API_TOKEN']}" + "!" * 300 + os.environ["PIN"])
connect(os.environ["DB_PASSWORD"])
"""


def forms(value):
    yield from {value, repr(value)[1:-1], json.dumps(value)[1:-1], base64.b64encode(value.encode()).decode()}
    yield from (line for line in value.splitlines() if "canary" in line)


def texts_below(*folders: Path):
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                yield path, path.read_bytes().decode(errors="replace")


def test_the_working_directory_is_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setenv("DB_PWD", "hunter2hunter2")

    hidden = gate_secrets.known({}).hide(f"hunter2hunter2 in {tmp_path}")

    assert hidden == f"*** in {tmp_path}"


def test_five_canaries_are_nowhere_in_what_a_gate_leaves(tmp_path, monkeypatch, capfd):
    notebook = write_gate(tmp_path / "tells.ipynb", CHECK, TELLS, RAISES)
    (tmp_path / "reports").mkdir()

    result = gate.run(notebook, **WHO, env=CANARIES, copies=tmp_path / "reports")

    assert not result.passed
    assert "raised ConnectionError: no such user: *** at ***" in result.reason
    assert [one.name for one in result.checks][1:] == ["asked as ***"] * 5
    executed = json.loads(result.notebook.read_text())
    assert "ConnectionError" in [out.get("ename") for cell in executed["cells"] for out in cell.get("outputs", ())]
    home = Path(os.environ["NBDEPLOY_HOME"])
    said = [(Path("said"), text) for text in (*capfd.readouterr(), repr(result), result._repr_html_())]
    seen = 0
    for path, text in [*texts_below(home, tmp_path), *said]:
        for value in CANARIES.values():
            for form in forms(value):
                assert form not in text, (path, form)
        seen += text.count("***")
    assert seen > 50


def test_a_token_and_what_our_own_environment_holds_under_such_a_name_are_hidden_too(tmp_path, monkeypatch):
    monkeypatch.setenv("CLOUD_SECRET", "inherited-canary")
    monkeypatch.setenv("CLOUD_REGION", "inherited-region")
    source = CHECK + "\nimport os; print('token-canary', os.environ['CLOUD_SECRET'], os.environ['CLOUD_REGION'])"
    result = gate.run(write_gate(tmp_path / "g.ipynb", source), **WHO, tokens=["token-canary"], progress=False)
    text = result.notebook.read_text()
    assert result.passed, result
    assert "canary" not in text
    assert "*** *** inherited-region" in text


def test_a_secret_is_found_within_the_colours_of_a_traceback():
    hidden = Secrets(["opensesame", "sesame"]).hide("\x1b[31mopen\x1b[0m\x1b[1;32msesame\x1b[0m opensesame sesame")
    assert hidden == "\x1b[31m***\x1b[0m *** ***"


def test_numbers_keys_and_nested_values_are_hidden_and_the_rest_is_as_it_was():
    secrets = Secrets(["123456", "opensesame", "ab"])
    value = {"opensesame": [123456, 1234567, True, None, 1.5, "xopensesamex", {"a": "ab"}]}
    assert secrets.hide_in(value) == {"***": ["***", 1234567, True, None, 1.5, "x***x", {"a": "ab"}]}
    assert "opensesame" not in repr(secrets)


# What env= takes -------------------------------------------------------------------------------------------------------


def test_names_alone_have_to_be_in_the_environment(monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", "opensesame")
    assert environment(["DB_PASSWORD"]) == environment("DB_PASSWORD") == {"DB_PASSWORD": "opensesame"}
    assert environment(None) == {}
    with pytest.raises(GateError, match="the environment has no DB_USER, which this notebook needs"):
        environment(["DB_PASSWORD", "DB_USER"])


@pytest.mark.parametrize(
    "env, message",
    [
        (["DB_PASSWORD=opensesame"], "env names variables, and 'DB_PASSWORD' came with a value. Give the name alone"),
        ({"A B": "opensesame"}, "env names 'A B'"),
        ({3: "opensesame"}, "env names 'int'"),
        ({"DB_PASSWORD": 12}, "env gives DB_PASSWORD a int"),
        ({"DB_PASSWORD": "open\0sesame"}, "env gives DB_PASSWORD a str with a NUL"),
        ({"DB_PASSWORD": "abc"}, "DB_PASSWORD is shorter than 4 characters"),
    ],
)
def test_what_is_no_variable_is_refused_in_one_line_without_its_value(env, message):
    with pytest.raises(GateError) as refused:
        environment(env)
    assert message in str(refused.value)
    assert "sesame" not in str(refused.value)


def test_a_short_value_that_is_no_secret_is_passed_on_and_left_alone():
    assert environment({"DEBUG": "1"}) == {"DEBUG": "1"}
    assert gate_secrets.known({"DEBUG": "1"}).hide("1 of 1") == "1 of 1"


@pytest.mark.parametrize(
    "name, value, refused",
    [
        ("db_password", "opensesame", True),
        ("api_key", "x", True),
        ("auth_token", 12345, True),
        ("options", {"user": "me", "password": "opensesame"}, True),
        ("options", [{"api_key": "opensesame"}], True),
        ("db_password", "", False),
        ("db_password", None, False),
        ("max_tokens", 100, False),
        ("options", {"user": "me"}, False),
        ("target", "late", False),
    ],
)
def test_a_parameter_that_is_named_like_a_secret_is_refused(name, value, refused):
    cell = "db_password = ''\napi_key = ''\nauth_token = ''\nmax_tokens: int = 1\noptions = None\ntarget = ''"
    if not refused:
        refuse_secrets({name: value}, declared(cell))
        return
    with pytest.raises(GateError) as said:
        refuse_secrets({name: value}, declared(cell))
    assert "is named like a secret" in str(said.value)
    assert "env={'" in str(said.value)
    assert "\n" not in str(said.value)
    assert "sesame" not in str(said.value)


def test_it_is_refused_before_anything_runs_or_is_kept(tmp_path):
    notebook = write_gate(tmp_path / "g.ipynb", ("db_password = ''", "parameters"), CHECK)
    with pytest.raises(GateError, match=r"--env DB_PASSWORD"):
        gate.run(notebook, {"db_password": "opensesame"}, **WHO)
    assert not (Path(os.environ["NBDEPLOY_HOME"]) / "gates").exists()


def test_a_shell_names_variables_and_never_values():
    verb, values = verbs.parse(["validate", "x", "v2", "--env", "A", "--env", "B", "--no-require", "--notebook", "a.ipynb",
                                "--notebook", "b.ipynb"], "nbdeploy")  # fmt: skip
    told = verbs.resolve(verb, values, lambda _kind, text: text)
    assert (told["env"], told["require"], told["notebook"]) == (["A", "B"], False, ["a.ipynb", "b.ipynb"])
    assert nbdeploy.validate.__kwdefaults__["env"] is None

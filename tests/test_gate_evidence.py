"""A version may be promoted when the newest verdicts on it, by the gates as they are now, are passes. All else says no."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from gates import CHECK, write_gate
from nbdeploy import gate_evidence, gate_notebook, home
from nbdeploy.gate_evidence import Evidence, found, needed, notebook_of, standing

NAME, VERSION, DIGEST = "flight-delay", "v2", "0123456789abcdef" * 4
OWN = gate_notebook.digest_of(home.template("validate.ipynb"))
RUN = "%deploy validate flight-delay v2"


def result(gate_digest=OWN, *, passed=True, minutes=0, digest=DIGEST, gate="validate.ipynb", reason="", **parameters):
    started = datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(minutes=minutes)
    path = Path(f"/evidence/{gate_digest[:4]}-{minutes}.json")
    return Evidence(path, digest, gate, gate_digest, passed, reason, started, parameters)


def stands(gates, *results):
    paths, reason = standing(DIGEST, gates, results, name=NAME, version=VERSION)
    assert "\n" not in reason
    return paths, reason


@pytest.fixture
def mine(tmp_path):
    return write_gate(tmp_path / "mine.ipynb", ("limit = 1.0", "parameters"), CHECK)


def test_a_passed_default_gate_is_what_every_promotion_needs():
    assert stands([], result()) == ([Path(f"/evidence/{OWN[:4]}-0.ipynb")], "")
    assert stands([]) == ([], f"flight-delay:v2 has not passed the gate validate.ipynb: run {RUN}")


def test_of_several_verdicts_the_newest_counts():
    assert stands([], result(passed=False), result(minutes=1))[1] == ""
    assert stands([], result(minutes=1, passed=False, reason="bias: 2, wanted at most 1"), result())[1] == (
        f"flight-delay:v2 failed the gate validate.ipynb (bias: 2, wanted at most 1): mend it, then run {RUN}"
    )


def test_a_verdict_on_another_digest_is_none():
    assert stands([], result(digest="f" * 64))[0] == []


def test_a_verdict_of_the_notebook_as_it_was_before_an_edit_is_none():
    assert stands([], result("f" * 64))[1] == (
        f"flight-delay:v2 has passed no gate validate.ipynb since that was edited: run {RUN}"
    )


def test_every_required_gate_has_to_have_passed(mine):
    gates = [{"notebook": str(mine), "parameters": {}}]
    asks = gate_notebook.digest_of(mine)
    own, theirs = result(), result(asks, gate="mine.ipynb", minutes=1)

    assert stands(gates, own)[1] == f"flight-delay:v2 has not passed the gate mine.ipynb: run {RUN}"
    assert "has not passed the gate validate.ipynb" in stands(gates, theirs)[1]
    assert len(stands(gates, own, theirs)[0]) == 2

    write_gate(mine, CHECK + "\nnbdeploy.check('more', True)")
    assert stands(gates, own, theirs)[1].startswith("flight-delay:v2 has passed no gate mine.ipynb since that was")

    mine.unlink()
    paths, reason = stands(gates, own, theirs)
    assert len(paths) == 1
    assert reason == (
        f"flight-delay:v2 needs the gate mine.ipynb, which cannot be read: put it back, or take it back by {RUN} "
        f"--notebook {mine} --no-require"
    )


@pytest.mark.parametrize(
    "given, passes",
    [
        ({"at_least": 0.8}, True),
        ({"at_least": 0.8, "requests": 5, "data": "x", "url": "y", "live_url": "z", "name": "n", "version": "v"}, True),
        ({"at_least": 0.79}, False),
        ({}, False),
        ({"at_least": True}, False),
        ({"at_least": "0.8"}, False),
        ({"at_least": None}, False),
    ],
)
def test_the_required_parameters_have_to_be_those_of_the_verdict(given, passes):
    gates = [{"notebook": "", "parameters": {"at_least": 0.8, "data": "other rows", "url": "elsewhere"}}]
    paths, reason = stands(gates, result(**given))
    assert bool(paths) is passes
    assert bool(reason) is not passes
    assert passes or reason == (
        f"flight-delay:v2 passed the gate validate.ipynb without the required at_least=0.8: run {RUN}"
    )


def test_a_looser_verdict_that_came_last_takes_back_what_the_stricter_one_allowed():
    gates = [{"notebook": "", "parameters": {"at_least": 0.8}}]
    assert stands(gates, result(at_least=0.8), result(minutes=1, at_least=0.5))[0] == []


def test_what_outputs_ids_and_an_earlier_run_left_in_a_notebook_changes_nothing_of_what_it_asks(mine):
    before = gate_notebook.digest_of(mine)
    notebook = json.loads(mine.read_text())
    for number, cell in enumerate(notebook["cells"]):
        cell.update(
            outputs=[{"output_type": "stream", "name": "stdout", "text": "x"}], execution_count=3, id=f"a{number}"
        )
    injected = {"cell_type": "code", "source": "limit = 0", "metadata": {"tags": ["injected-parameters"]}}
    notebook["cells"].insert(1, {**injected, "outputs": [], "execution_count": None})
    notebook["metadata"] = {"kernelspec": {"name": "other", "display_name": "x", "language": "python"}}
    mine.write_text(json.dumps(notebook))
    assert gate_notebook.digest_of(mine) == before

    notebook["cells"][0]["source"] = "limit = 2.0"
    mine.write_text(json.dumps(notebook))
    assert gate_notebook.digest_of(mine) != before


# What is on the disk ---------------------------------------------------------------------------------------------------

EXECUTED = "{}"
WHOLE = {
    "deployment": NAME, "version": VERSION, "digest": DIGEST, "passed": True, "reason": "", "gate": "validate.ipynb",
    "gate_digest": OWN, "started": "2026-01-01T00:00:00+00:00", "seconds": 1.0, "parameters": {"a": 1},
    "notebook": "/elsewhere.ipynb", "copy": None, "notebook_digest": hashlib.sha256(EXECUTED.encode()).hexdigest(),
    "checks": [{"name": "x", "passed": True, "value": 1, "at_least": 0, "at_most": None, "detail": ""}],
}  # fmt: skip


def keep(facts, name="one", notebook=True):
    folder = home.folder("gates", NAME, DIGEST[:16])
    text = facts if isinstance(facts, str) else json.dumps(facts)
    (folder / f"{name}.json").write_text(text)
    if notebook:
        (folder / f"{name}.ipynb").write_text(EXECUTED)


def test_a_whole_result_with_its_notebook_is_evidence():
    keep(WHOLE)
    (one,) = found(NAME, DIGEST)
    assert (one.passed, one.gate_digest, one.parameters) == (True, OWN, {"a": 1})
    assert standing(DIGEST, [], [one], name=NAME, version=VERSION)[1] == ""


@pytest.mark.parametrize(
    "torn",
    [
        json.dumps(WHOLE)[:-20],
        "",
        "null",
        "[1]",
        "[" * 100_000,
        json.dumps({**WHOLE, "digest": "f" * 64}),
        json.dumps({**WHOLE, "deployment": "other"}),
        json.dumps({**WHOLE, "started": "yesterday"}),
        json.dumps({**WHOLE, "checks": [{"name": "x"}]}),
        json.dumps({**WHOLE, "parameters": 3}),
        json.dumps({key: value for key, value in WHOLE.items() if key != "gate_digest"}),
    ],
)
def test_what_is_torn_or_foreign_is_no_evidence(torn):
    keep(torn)
    assert found(NAME, DIGEST) == []


@pytest.mark.parametrize(
    "change",
    [
        {"checks": []},
        {"passed": 1},
        {"passed": "true"},
        {"reason": "it was cancelled"},
        {"notebook_digest": hashlib.sha256(b"another").hexdigest()},
        {"checks": [{**WHOLE["checks"][0], "value": -1}]},
        {"checks": [{**WHOLE["checks"][0], "value": "nan"}]},
    ],
)
def test_a_pass_that_its_own_checks_do_not_bear_out_is_none(change):
    keep({**WHOLE, **change})
    (one,) = found(NAME, DIGEST)
    assert not one.passed


def test_a_pass_without_its_executed_notebook_is_none():
    keep(WHOLE, notebook=False)
    assert not found(NAME, DIGEST)[0].passed


@pytest.mark.parametrize("content", ["", "{ }", "{}\n"])
def test_a_pass_whose_executed_notebook_was_torn_or_edited_is_none(content):
    keep(WHOLE)
    next(home.folder("gates", NAME, DIGEST[:16]).glob("*.ipynb")).write_text(content)
    assert not found(NAME, DIGEST)[0].passed


def test_what_is_no_file_is_no_evidence():
    folder = home.folder("gates", NAME, DIGEST[:16])
    os.mkfifo(folder / "pipe.json")
    (folder / "folder.json").mkdir()
    (folder / "loop.json").symlink_to("loop.json")
    assert found(NAME, DIGEST) == []


def test_the_newest_comes_first_and_a_moment_without_zone_is_utc():
    keep(WHOLE, "a")
    keep({**WHOLE, "started": "2026-01-02T00:00:00"}, "b")
    keep({**WHOLE, "started": "2026-01-01T23:00:00+05:00"}, "c")
    assert [one.path.stem for one in found(NAME, DIGEST)] == ["b", "c", "a"]


def test_where_nothing_was_judged_there_is_nothing():
    assert found("never", DIGEST) == []
    assert found("../x", DIGEST) == []


def test_the_gate_that_comes_with_nbdeploy_is_needed_first_and_once(mine):
    theirs, own = {"notebook": str(mine), "parameters": {}}, {"notebook": "", "parameters": {"at_least": 0.8}}
    assert needed([]) == [{"notebook": "", "parameters": {}}]
    assert needed([theirs, own]) == [own, theirs]
    assert notebook_of(own).name == gate_evidence.DEFAULT

"""State is private, replaced whole, and written by one process at a time; errors are one line."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbdeploy import errors, home, processes, progress, routing


def test_home_is_read_at_every_call_and_made_private(tmp_path, monkeypatch):
    for name in ("first", "second"):
        monkeypatch.setenv("NBDEPLOY_HOME", str(tmp_path / name))

        assert home.home() == tmp_path / name
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o700


def test_without_a_choice_home_is_the_platforms_data_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("NBDEPLOY_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))

    assert tmp_path in home.home().parents


NAMES = st.text(max_size=70) | st.text("ab.-_/\\\x00\n", max_size=70)


@settings(max_examples=2_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES)
def test_a_name_is_accepted_only_if_it_stays_in_its_folder(name):
    stays_in_its_folder(name)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES)
def test_ten_thousand_names_stay_in_their_folder(name):
    stays_in_its_folder(name)


def stays_in_its_folder(name):
    with suppress(errors.InvalidName):
        home.check_name(name)

        assert len(name) <= 63
        assert (home.home() / f"{name}.json").resolve().parent == home.home().resolve()
        assert name == name.lower()


def test_a_file_is_old_or_new_whenever_its_writer_is_killed(tmp_path):
    path = home.folder("state") / "file.json"
    home.write_json(path, {"generation": 0})
    script = textwrap.dedent("""
        import itertools, sys
        from pathlib import Path
        from nbdeploy import home
        for generation in itertools.count(1):
            home.write_json(Path(sys.argv[1]), {"generation": generation, "filling": "x" * 100_000})
            print(flush=True)
    """)
    for writes in (1, 3, 7):
        child = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
        for _ in range(writes):
            child.stdout.readline()
        child.kill()
        child.communicate()

        assert home.read_json(path)["generation"] >= writes
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = home.folder("state") / "file.json"
    home.write_json(path, 1)

    with pytest.raises(TypeError):
        home.write_json(path, object())

    assert home.read_json(path) == 1
    assert [other.name for other in path.parent.iterdir()] == ["file.json"]


def test_a_file_that_is_no_json_is_one_line():
    path = home.folder("state") / "file.json"
    path.write_text("{")

    with pytest.raises(errors.NbdeployError, match="not readable as JSON"):
        home.read_json(path)


def _count(_number):
    path = home.folder("state") / "count.json"
    for _ in range(20):
        with home.lock("count"):
            home.write_json(path, (home.read_json(path) or 0) + 1)


def test_a_lock_lets_one_process_in_at_a_time():
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.map(_count, range(3))

    assert home.read_json(home.folder("state") / "count.json") == 60


def test_a_lock_that_is_not_given_in_time_is_one_line():
    code = "import sys; from nbdeploy import home\nwith home.lock('busy'): print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()

    with pytest.raises(errors.NbdeployError, match="working on 'busy'"), home.lock("busy", timeout=0.1):
        pass

    child.kill()  # and a dead holder holds nothing
    child.communicate()
    with home.lock("busy", timeout=5):
        pass


def test_the_live_version_and_its_history_are_remembered():
    assert routing.live("flight-delay") is None

    routing.go_live("flight-delay", "v1", "first release")
    routing.go_live("flight-delay", "v1", "again")
    routing.go_live("flight-delay", "v2", "served")

    assert routing.live("flight-delay") == "v2"
    history = home.read_json(home.folder("traffic") / "flight-delay.json")["history"]
    assert [(step["from"], step["to"], step["why"]) for step in history] == [
        (None, "v1", "first release"), ("v1", "v2", "served"),
    ]  # fmt: skip


def test_an_error_is_one_line_whatever_it_is_about():
    error = errors.NotFound("no\nsuch\nthing", "Look\nelsewhere.", details="many\nlines")

    assert str(error) == "no such thing. Look elsewhere."
    assert error._render_traceback_() == ["\x1b[31mNotFound\x1b[0m: no such thing", "  Look elsewhere."]
    assert error.to_dict()["details"] == "many\nlines"


def test_a_suggestion_is_the_closest_word_or_the_known_ones():
    assert errors.did_you_mean("flihgt", ["flight", "train"]) == "Did you mean 'flight'?"
    assert errors.did_you_mean("x", ["flight", "train"]) == "Known: flight, train."
    assert errors.did_you_mean("x", []) == ""
    assert errors.did_you_mean("x", map(str, range(100, 120))).endswith("and 12 more.")


def test_children_inherit_no_telemetry_and_cached_bytecode(monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")

    env = processes.environment(EXTRA="1")

    assert "PYTHONDONTWRITEBYTECODE" not in env
    assert (env["BENTOML_DO_NOT_TRACK"], env["DO_NOT_TRACK"], env["EXTRA"]) == ("True", "1", "1")


def test_a_process_is_ours_only_with_its_start_and_its_token():
    env = processes.environment(**{processes.IDENTITY: "token"})
    code = "print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    child.stdout.readline()
    start = processes.started(child.pid)

    assert processes.is_ours(child.pid, start, "token")
    assert not processes.is_ours(child.pid, start + 1, "token")
    assert not processes.is_ours(child.pid, start, "other")
    assert not processes.is_ours(os.getpid(), processes.started(os.getpid()), "token")
    child.communicate(b"\n")
    assert not processes.is_ours(child.pid, start, "token")


def test_work_without_a_terminal_shows_no_bar(capsys):
    with progress.steps("save", ["one", "two"]) as step:
        step("one")
        step()

    assert capsys.readouterr().err == ""

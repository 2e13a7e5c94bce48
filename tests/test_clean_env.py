"""A clean environment holds the requirements and nothing else."""

from __future__ import annotations

import subprocess
import time

import pytest

from nbdeploy import clean_env, requirements
from nbdeploy.errors import SaveError
from nbdeploy.requirements import Requirement
from test_requirements import project


def test_it_holds_the_requirements_and_nothing_of_its_parent(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(project(tmp_path, "leaked")))
    folder = project(tmp_path, "sweetlib")
    carried = requirements.carry([Requirement("sweetlib", "1.0", "editable", str(folder))], tmp_path / "version")
    lines = ["six==1.17.0", *(each.line for each in carried)]
    waits, log = [], tmp_path / "pip.log"

    python = clean_env.create(
        lines, tmp_path / "version" / "wheels", tmp_path / "env", lambda: waits.append(time.monotonic()), log
    )

    code = "import six, sweetlib, importlib.metadata as m; print(sorted(d.name for d in m.distributions()))"
    names = subprocess.check_output([python, "-I", "-c", code], text=True)
    assert set(eval(names)) - {"pip", "setuptools"} == {"six", "sweetlib"}
    assert len(waits) > 5
    assert clean_env.doing(log) == "installing"
    assert (tmp_path / "env").stat().st_mode & 0o777 == 0o700


def test_what_cannot_be_installed_is_said_and_nothing_is_left(tmp_path):
    with pytest.raises(SaveError, match="clean environment") as caught:
        clean_env.create(["six==0.0.999"], None, tmp_path / "env", lambda: None, tmp_path / "pip.log")

    assert "six==0.0.999" in str(caught.value)
    assert caught.value.details
    assert not (tmp_path / "env").exists()


def test_an_interrupt_leaves_nothing(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clean_env.create(["six==1.17.0"], None, tmp_path / "env", interrupt, tmp_path / "pip.log")

    assert not (tmp_path / "env").exists()

"""A version that is not in use can be deleted, for good; one in use cannot."""

from __future__ import annotations

import os
import subprocess
import sys

import pandas as pd
import pytest

import nbdeploy
from nbdeploy import __main__, bento, model_store
from nbdeploy import home as places

X = pd.DataFrame({"a": [1.0, 2.0, 3.0]})


class Doubler:
    """Learns nothing and doubles the first column."""

    def predict(self, X):
        return X.iloc[:, 0].to_numpy() * 2


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__), prepend=os.pathsep)


def save(times=1, name="doubler"):
    """The last of so many versions, without a rehearsal."""
    for _ in range(times):
        with model_store.stage(Doubler(), name, X) as staged:
            version = model_store.commit(staged)
    return version


def numbers(name="doubler"):
    return [version.version for version in nbdeploy.versions(name)]


def latest(store="models", name="doubler"):
    path = places.bentoml_home() / store / name / "latest"
    return path.read_text() if path.is_file() else None


def test_a_deleted_version_is_gone_and_its_number_is_not_used_again():
    gone = save(3)

    assert nbdeploy.delete("doubler", "v3") == gone

    assert not gone.path.exists()
    assert not any((places.bentoml_home() / "nbdeploy-staging").iterdir())
    assert numbers() == ["v2", "v1"]
    assert latest() == "v2"
    assert save().version == "v4"
    with pytest.raises(nbdeploy.NotFound, match="no version 'v3'"):
        nbdeploy.delete("doubler", "v3")


def test_the_newest_is_the_latest_for_bentoml_whatever_was_deleted():
    save(3)

    nbdeploy.delete("doubler", "v1")
    assert latest() == "v3"
    nbdeploy.delete("doubler", "v3")
    assert latest() == "v2"
    nbdeploy.delete("doubler", "v2")
    assert latest() is None
    assert model_store.names() == []
    assert not (places.bentoml_home() / "models" / "doubler").exists()
    assert save().version == "v4"


def test_a_folder_that_comes_back_is_no_version():
    version = save()
    nbdeploy.delete("doubler", "v1")
    version.path.mkdir(parents=True)

    assert numbers() == []
    assert save().version == "v2"


def test_the_bento_goes_too_and_bentoml_lists_neither():
    for version in (save(), save()):
        bento.build_in_background(version)
        bento.wait("doubler")

    nbdeploy.delete("doubler", "v2")

    assert not (places.bentoml_home() / "bentos" / "doubler" / "v2").exists()
    assert latest("bentos") == "v1"
    for words in (["models", "list"], ["list"]):
        command = [sys.executable, "-m", "bentoml", *words]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "doubler:v1" in listed
        assert "doubler:v2" not in listed


def test_a_bento_that_is_being_built_is_waited_for():
    save()
    bento.build_in_background(save())

    nbdeploy.delete("doubler", "v2")
    bento.wait("doubler")

    assert not (places.bentoml_home() / "bentos" / "doubler" / "v2").exists()
    assert numbers() == ["v1"]


def test_a_version_in_use_is_not_deleted():
    save(2)
    nbdeploy.serve("doubler", "v1", progress=False)

    with pytest.raises(nbdeploy.NbdeployError, match=r"doubler:v1 is running at http://127.*%deploy serve doubler v2"):
        nbdeploy.delete("doubler", "v1")
    nbdeploy.stop("doubler")
    with pytest.raises(nbdeploy.NbdeployError, match=r"doubler:v1 is the live version.*%deploy serve doubler v2"):
        nbdeploy.delete("doubler", "v1")

    nbdeploy.serve("doubler", "v2", progress=False)
    nbdeploy.delete("doubler", "v1")
    assert numbers() == ["v2"]
    assert nbdeploy.predict("doubler", X)["prediction"].tolist() == [2, 4, 6]


@pytest.mark.parametrize(
    ("name", "version", "says"),
    [
        ("doubler", "v9", "no version 'v9'"),
        ("dubler", "v1", "Did you mean 'doubler'"),
        ("doubler", "", "which version of 'doubler'.*Name one: v1"),
        ("doubler", None, "which version of 'doubler'.*Name one: v1"),
        ("doubler", "../v1", "no version '../v1'"),
        ("../doubler", "v1", "cannot name a deployment"),
    ],
)
def test_what_is_not_there_is_one_line_and_nothing_is_deleted(name, version, says):
    save()

    with pytest.raises(nbdeploy.NbdeployError, match=says) as refused:
        nbdeploy.delete(name, version)

    assert "\n" not in str(refused.value)
    assert numbers() == ["v1"]


def test_delete_is_a_word_of_the_shell_and_always_needs_a_version(capsys):
    save(2)

    assert __main__.main(["delete", "doubler", "v1"]) == 0
    assert __main__.main(["delete", "doubler"]) == 2
    assert numbers() == ["v2"]

"""A version is saved whole, after a fresh process has proved it, or not at all."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import nbdeploy
from nbdeploy import artifact, bento, home, model_store


class Doubler:
    """Learns nothing and doubles the first column."""

    def predict(self, X):
        return X.iloc[:, 0].to_numpy() * 2


class Forgetful(Doubler):
    """Answers otherwise after it was pickled."""

    def __init__(self):
        self.mood = "good"

    def __setstate__(self, state):
        self.offset = 1

    def predict(self, X):
        return super().predict(X) + getattr(self, "offset", 0)


class Homesick(Doubler):
    """Loads nowhere but here."""

    def __reduce__(self):
        return (_only_in, (os.getpid(),))


def _only_in(pid):
    if os.getpid() != pid:
        msg = "this is not my process"
        raise RuntimeError(msg)
    return Homesick()


class Picky(Doubler):
    """Needs a column called a."""

    def predict(self, X):
        return X["a"].to_numpy()


X = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": ["x", "y", "z"]})

# A pickle names these classes as `test_model_store.X`: fresh processes find them as they would a user's own module.
pytestmark = pytest.mark.usefixtures("importable")


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))


def nothing_is_left():
    staging = home.bentoml_home() / "nbdeploy-staging"
    stored = home.bentoml_home() / "models"
    return model_store.names() == [] and not any(staging.glob("*")) and not any(stored.glob("*"))


def test_a_version_holds_the_model_its_signature_sample_outputs_and_provenance(flight_model, flights):
    features, late = flights

    version = nbdeploy.save(flight_model, "flight-delay", features, late)

    assert version.tag == "flight-delay:v1"
    assert version.signature.names == list(features.columns)
    assert (version.signature.task, version.signature.target) == ("classification", "late")
    pd.testing.assert_frame_equal(version.reference, features)
    pd.testing.assert_series_equal(version.labels, late)
    assert (version.expected["prediction"].to_numpy() == flight_model.predict(features)).all()
    assert any(line.startswith("scikit-learn==") for line in version.requirements)
    assert version.provenance["python"]
    assert nbdeploy.versions("flight-delay") == [version]


def test_a_large_frame_is_sampled_to_10_000_rows_the_same_ones_each_time():
    frame = pd.DataFrame({"a": np.arange(25_000.0)})

    first, second = (nbdeploy.save(Doubler(), "big", frame, progress=False) for _ in range(2))

    assert len(first.reference) == 10_000
    pd.testing.assert_frame_equal(first.reference, second.reference)


def test_bentoml_lists_the_version_as_its_model_and_soon_as_its_bento():
    version = nbdeploy.save(Doubler(), "doubler", X)
    bento.wait("doubler")
    done = [
        subprocess.run([sys.executable, "-m", "bentoml", *words], capture_output=True, text=True, check=True).stdout
        for words in (["models", "list"], ["list"])
    ]

    assert all(version.tag in listing for listing in done)


def test_the_wheels_that_a_bento_asks_for_are_where_its_image_installs_from():
    version = nbdeploy.save(Doubler(), "doubler", X)
    bento.wait("doubler")
    built = Path(os.environ["BENTOML_HOME"]) / "bentos" / "doubler" / "v1"
    lines = (built / "env" / "python" / "requirements.txt").read_text().splitlines()

    assert set(version.requirements) <= set(lines)
    for line in lines:
        if line.startswith("./"):
            assert (built / "env" / "python" / line).is_file()
            assert (built / "src" / line).is_file()


def test_building_the_bento_installs_nothing():
    before = {distribution.name for distribution in metadata.distributions()}

    nbdeploy.save(Doubler(), "doubler", X)
    bento.wait("doubler")

    assert (home.bentoml_home() / "bentos" / "doubler" / "v1").is_dir()
    assert {distribution.name for distribution in metadata.distributions()} == before


def test_numbers_grow_and_are_never_used_twice():
    nbdeploy.save(Doubler(), "doubler", X)
    nbdeploy.save(Doubler(), "doubler", X)
    bento.wait("doubler")
    for words in (["delete"], ["models", "delete"]):  # BentoML keeps a model for as long as a Bento uses it
        command = [sys.executable, "-m", "bentoml", *words, "doubler:v2", "-y"]
        subprocess.run(command, check=True, capture_output=True)

    assert nbdeploy.save(Doubler(), "doubler", X).version == "v3"
    assert [version.version for version in nbdeploy.versions("doubler")] == ["v3", "v1"]


def _save_one(number):
    return nbdeploy.save(Doubler(), "doubler", X, progress=False).version


def test_notebooks_that_save_at_once_get_different_numbers():
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        saved = pool.map(_save_one, range(3))

    assert sorted(saved) == ["v1", "v2", "v3"]


def test_a_class_defined_in_a_cell_is_carried(tmp_path):
    script = tmp_path / "cell.py"
    script.write_text(
        textwrap.dedent("""
        import pandas as pd, nbdeploy
        class Tripler:
            def predict(self, X):
                return helper(X)
        def helper(X):
            return X["a"] * 3
        print(nbdeploy.save(Tripler(), "tripler", pd.DataFrame({"a": [1, 2]})).tag)
        """)
    )

    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path, check=False)

    assert done.stdout.strip() == "tripler:v1", done.stderr


@pytest.mark.parametrize("verb", ["save", "deploy"])
def test_a_model_that_answers_otherwise_in_a_fresh_process_is_not_saved(verb):
    with pytest.raises(nbdeploy.RehearsalError, match=r"row 0, column 'prediction': 3.0 \(float64\) instead of 2.0"):
        getattr(nbdeploy, verb)(Forgetful(), "forgetful", X)

    assert nothing_is_left()
    assert not nbdeploy.status().size


def test_a_model_that_a_fresh_process_cannot_load_is_not_saved():
    with pytest.raises(nbdeploy.RehearsalError, match=r"this is not my process"):
        nbdeploy.save(Homesick(), "homesick", X)

    assert nothing_is_left()


def test_a_module_that_a_fresh_process_cannot_import_is_named(monkeypatch):
    monkeypatch.delenv("PYTHONPATH")

    with pytest.raises(
        nbdeploy.RehearsalError, match=r"cannot import test_model_store.*it comes from .*test_model_store.py"
    ):
        nbdeploy.save(Doubler(), "doubler", X)

    assert nothing_is_left()


def test_a_rehearsal_that_is_killed_is_reported(monkeypatch):
    class Suicidal(Doubler):
        def __reduce__(self):
            return (os._exit, (7,))

    with pytest.raises(nbdeploy.RehearsalError, match="ended with code 7"):
        nbdeploy.save(Suicidal(), "suicidal", X)

    assert nothing_is_left()


@pytest.mark.parametrize(
    ("model", "data", "labels", "says"),
    [
        (object(), X, None, "has no predict"),
        (Doubler(), None, None, "needs the data"),
        (Doubler(), pd.DataFrame({"a": []}), None, "empty"),
        (Picky(), X[["b"]], None, "cannot predict the rows of X: KeyError: 'a'"),
        (Doubler(), X, [1, 2], "y has 2 rows and X has 3"),
        (Doubler(), np.zeros((2, 2, 2), dtype="datetime64[s]"), None, "3 dimensions"),
    ],
)
def test_what_cannot_become_a_version_is_one_line_and_leaves_nothing(model, data, labels, says):
    with pytest.raises(nbdeploy.SaveError, match=says) as refused:
        nbdeploy.save(model, "bad", data, labels)

    assert "\n" not in str(refused.value)
    assert nothing_is_left()


def test_a_model_that_cannot_be_pickled_is_one_line():
    model = Doubler()
    model.lines = (line for line in "abc")

    with pytest.raises(nbdeploy.SaveError, match="cannot be pickled"):
        nbdeploy.save(model, "bad", X)

    assert nothing_is_left()


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", "a/b", "-a", "a" * 64, "a\n", "é", "a\x00", None, 3, "a."])
def test_a_name_outside_the_alphabet_is_refused(name):
    with pytest.raises(nbdeploy.InvalidName) as refused:
        nbdeploy.save(Doubler(), name, X)

    assert "\n" not in str(refused.value)


def test_an_array_reaches_the_model_as_an_array():
    from sklearn.linear_model import LinearRegression

    array = np.arange(12.0).reshape(6, 2)
    version = nbdeploy.save(LinearRegression().fit(array, array[:, 0]), "plain", array, array[:, 0])

    assert version.signature.container == "array"
    assert version.signature.names == ["x0", "x1"]
    assert version.signature.task == "regression"


def test_a_changed_file_is_not_loaded():
    version = nbdeploy.save(Doubler(), "doubler", X)
    path = version.path / "saved_model.pkl"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    with pytest.raises(nbdeploy.SaveError, match=r"saved_model\.pkl does not match"):
        artifact.load(version.path, version.files)


def test_an_unknown_name_or_version_gets_a_suggestion():
    nbdeploy.save(Doubler(), "doubler", X)

    with pytest.raises(nbdeploy.NotFound, match="Did you mean 'doubler'"):
        model_store.get("dubler")
    with pytest.raises(nbdeploy.NotFound, match="Did you mean 'v1'"):
        model_store.get("doubler", "v11")


def test_everything_is_private_under_any_umask():
    before = os.umask(0)
    try:
        nbdeploy.save(Doubler(), "doubler", X)
    finally:
        os.umask(before)

    version = nbdeploy.versions("doubler")[0]
    for path in [home.home(), *home.home().rglob("*"), version.path, *version.path.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path

"""Saving what nobody expects: odd objects, odd arguments, a store that is hostile or full."""

from __future__ import annotations

import datetime as dt
import decimal
import functools
import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import nbdeploy
from nbdeploy import artifact, magic, model_store, notebook_source, provenance, requirements, verbs
from nbdeploy.errors import InputError, NotFound, RehearsalError, SaveError
from nbdeploy.requirements import Requirement

X = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": ["x", "y", "x", "z"]})


class First:
    """Answers with the column a."""

    def predict(self, X):
        return X["a"].to_numpy()


class Unready(First):
    """Its properties are no use before some other call, as those of many libraries."""

    @property
    def classes_(self):
        raise RuntimeError

    @property
    def feature_names_in_(self):
        raise RuntimeError


class Silent(First):
    """Ends every process that loads it, as if all were well."""

    def __getstate__(self):
        return {"how": self.how}

    def __setstate__(self, state):
        if state["how"] == "os":
            os._exit(0)
        sys.exit(0)


class Labels(First):
    """A classifier of two classes."""

    def __init__(self, classes):
        self.classes_ = classes

    def predict(self, X):
        answer = np.empty(len(X), dtype=object)
        answer[:] = [self.classes_[0]] * len(X)
        return answer

    def predict_proba(self, X):
        return np.full((len(X), len(self.classes_)), 0.5)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))


def staged(model, X=X, y=None, **options):
    """Write a version without rehearsing it: quick."""
    from nbdeploy.artifact import Options

    with model_store.stage(model, "edge", X, y, Options(**options)) as version:
        return json.loads((version.folder / "signature.json").read_text()) | {
            "provenance": json.loads((version.folder / "provenance.json").read_text())
        }


# -- the store


def test_a_service_file_that_was_changed_never_runs(tmp_path):
    version = nbdeploy.save(First(), "edge", X)
    service = version.path / "service.py"
    canary = tmp_path / "canary"
    service.write_text(f"open({str(canary)!r}, 'w').close()\n{service.read_text()}")

    with pytest.raises(SaveError, match=r"service\.py does not match its recorded SHA-256"):
        nbdeploy.serve("edge")
    assert not canary.exists()


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts a small disk")
def test_a_full_disk_is_named_and_nothing_is_kept(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], check=False).returncode:
        pytest.skip("may not mount")
    try:
        monkeypatch.setenv("BENTOML_HOME", str(disk))
        big = First()
        big.weights = np.random.default_rng(0).random(1_000_000)
        with pytest.raises(SaveError, match="No space left on device") as caught:
            nbdeploy.save(big, "edge", X)
        assert "pickled" not in caught.value.message
        wide = pd.DataFrame(np.random.default_rng(0).random((400, 1000)))
        with pytest.raises(SaveError, match="No space left on device") as caught:
            nbdeploy.save(lambda X: X[0], "edge", wide)
        assert "plain numbers" not in caught.value.hint
        assert nbdeploy.save(First(), "edge", X).version == "v1"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_what_another_save_is_writing_is_never_swept_away():
    with model_store.staging("loaded-999999999-x") as theirs:
        with model_store.staging("edge"):
            pass
        assert theirs.is_dir()


def test_a_copy_of_a_process_that_is_gone_is_removed_by_the_next_load():
    version = nbdeploy.save(First(), "edge", X)
    left = version.path.parents[2] / "nbdeploy-staging" / "loaded-999999999-x"
    left.mkdir()

    artifact.load(version.path, version.files)

    assert not left.exists()


@pytest.mark.parametrize("version", [3, "3", "V1", "v01", "v²", "", "../v1"])
def test_a_version_that_is_none_is_not_found(version):
    nbdeploy.save(First(), "edge", X)
    (model_store.get("edge").path.parent / "v²").mkdir()

    with pytest.raises(NotFound, match="has no version") if version else pytest.raises(NotFound):
        model_store.get("edge", version) if version != "" else nbdeploy.delete("edge", version)
    assert model_store.next_number("edge") == 2


# -- models


@pytest.mark.parametrize("how", ["os", "sys"])
def test_a_process_that_ends_without_a_verdict_is_no_success(how):
    model = Silent()
    model.how = how
    with pytest.raises(RehearsalError, match=r"ended with code 0|cannot load the model"):
        nbdeploy.save(model, "edge", X)
    assert not nbdeploy.versions("edge") if model_store.names() else True


def test_a_model_that_ends_the_process_ends_no_kernel():
    def leaves(X):
        sys.exit(0)

    with pytest.raises(SaveError, match="cannot predict the rows of X: SystemExit"):
        staged(leaves)


def test_attributes_that_raise_or_are_nonsense_are_as_good_as_none():
    class Nonsense(First):
        feature_names_in_ = 5

    class Anything(First):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *_, **__: None

    for model in (Unready(), Nonsense(), Anything()):
        assert staged(model)["task"] == "regression"


def test_a_parameter_that_cannot_be_shown_is_named_by_its_type():
    class Mute:
        def __repr__(self):
            raise ValueError

    class Told(First):
        def get_params(self, deep=True):
            return {"mute": Mute(), "huge": 10**5000, "api_key": "hunter2", "url": "db://me:hunter2@host", "depth": 3,
                    "vect__token_pattern": r"\w+"}  # fmt: skip

    told = staged(Told())["provenance"]["parameters"]
    assert told["mute"] == "a Mute"
    assert told["huge"] == "a int"
    assert told["depth"] == 3
    assert told["vect__token_pattern"] == r"\w+"
    assert "hunter2" not in json.dumps(told)


def test_classes_keep_their_types_and_what_is_no_label_is_refused():
    assert staged(Labels([1, "1"]))["classes"] == [1, "1"]
    assert staged(Labels(np.array([True, False])))["classes"] == [True, False]
    for classes in (
        np.array(["2020-01-01", "2021-01-01"], "datetime64[ns]"),
        [dt.date(2020, 1, 1), dt.date(2021, 1, 1)],
    ):
        with pytest.raises(SaveError, match="classes_"):
            staged(Labels(classes))
    with pytest.raises(SaveError, match="classes_"):
        staged(Labels([("a", 1), ("b", 2)]))


def test_a_class_instead_of_a_model_is_named():
    with pytest.raises(SaveError, match="First is a class, not a fitted model"):
        staged(First)


def test_a_model_that_answers_with_no_output_or_a_nameless_one_is_refused():
    with pytest.raises(SaveError, match="no output"):
        staged(lambda _: {})
    with pytest.raises(SaveError, match="an output without a name"):
        staged(lambda X: {"": X["a"], "b": X["a"]})


def test_the_culprit_is_found_in_partials_and_in_classes():
    class Connected(First):
        connection = threading.Lock()

    for model, where in (
        (functools.partial(lambda X, lock: X["a"], lock=threading.Lock()), r"model\.keywords\['lock'\]"),
        (functools.partial(lambda lock, X: X["a"], threading.Lock()), r"model\.args\[0\]"),
        (Connected(), r"model → its class\.connection \(a lock\)"),
    ):
        with pytest.raises(SaveError, match=where):
            staged(model)


@pytest.mark.parametrize("how", ["spawn", "forkserver"])
def test_a_script_that_multiprocessing_starts_anew_saves_its_own_classes(how, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, nbdeploy, pandas\n"
        "class Own:\n"
        "    def predict(self, X): return X['a'].to_numpy()\n"
        "def save():\n"
        "    print(nbdeploy.save(Own(), 'edge', pandas.DataFrame({'a': [1.0, 2.0]}), progress=False).tag)\n"
        "if __name__ == '__main__':\n"
        f"    child = multiprocessing.get_context({how!r}).Process(target=save)\n"
        "    child.start(), child.join()\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "edge:v1\n", done.stderr


# -- arguments


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"private": "a"}, "private= is a string"),
        ({"private": None}, "private= is a NoneType"),
        ({"tolerance": float("nan")}, "tolerance= is nan"),
        ({"tolerance": -1e-9}, "tolerance= is -1e-09"),
        ({"tolerance": float("inf")}, "tolerance= is inf"),
        ({"tolerance": "loose"}, "tolerance= is 'loose'"),
        ({"tolerance": None}, "tolerance= is None"),
        ({"format": 3}, "format= is a int"),
        ({"metrics": [("auc", 1)]}, "metrics= is a list"),
        ({"metrics": {"auc": 10**400}}, "the metric 'auc' is too large"),
        ({"requirements": 5}, "requirements= is a int"),
        ({"requirements": [None]}, "None is not a requirement"),
    ],
)
def test_an_option_of_a_wrong_kind_is_named(options, said):
    with pytest.raises(SaveError, match=said):
        nbdeploy.save(First(), "edge", X, **options)


def test_metrics_are_numbers_of_any_library():
    given = {"decimal": decimal.Decimal("0.5"), "numpy": np.float32(0.5), "array": np.array(0.5), "flag": np.True_}
    assert provenance.checked_metrics(given) == {"decimal": 0.5, "numpy": 0.5, "array": 0.5, "flag": True}


@pytest.mark.parametrize(
    "y", [[[1], [1, 2], [1], [2]], 5, "b", pd.Series([1, 2, 3, 4], name="\ud800"), (i for i in range(4))],
    ids=["ragged", "number", "text", "name", "generator"],
)  # fmt: skip
def test_labels_of_a_wrong_kind_are_refused(y):
    for model in (First(), lambda X: np.ones((len(X), 2))):
        with pytest.raises(SaveError, match=r"^(y|the name of y|the labels) "):
            staged(model, y=y)


def test_labels_of_one_name_twice_are_both_kept():
    y = pd.DataFrame([[0, 1], [2, 3], [4, 5], [6, 7]], columns=["t", "t"])
    with pytest.raises(SaveError, match="y has the column 't' twice"):
        staged(lambda X: np.ones((len(X), 2)), y=y)


@pytest.mark.parametrize("sections", ["text", [("a", "b")], {"a": 1}])
def test_sections_of_a_card_of_a_wrong_kind_are_refused(sections):
    nbdeploy.save(First(), "edge", X)
    with pytest.raises(InputError, match="section"):
        nbdeploy.card("edge", sections=sections)


# -- requirements


def test_a_pin_is_stale_only_where_what_is_here_does_not_fit_it():
    here = np.__version__

    def changed(line):
        return notebook_source.packages_changed(requirements.pinned([line]))

    for line in (f"numpy=={here.partition('.')[0]}.*", f"numpy=={here}; python_version>'3'", f"numpy[x]=={here}"):
        assert not changed(line)
    for line in ("./wheels/x.whl", "no-such-thing==1", "numpy>=99", "numpy==1.0; python_version<'3'"):
        assert not changed(line)
    for line in ("numpy==1.0", "numpy[x]==1.0", "numpy==1.0; python_version>'3'"):
        assert changed(line) == [f"numpy is {here} here and 1.0 in the version"]


def test_extras_that_the_user_asks_for_stay_with_a_carried_wheel():
    found = [Requirement("nbdeploy", "0.1", "editable", "/here", wheel="nbdeploy-0.1-py3-none-any.whl")]
    assert requirements.merge(found, ["nbdeploy[explain]"]) == ["./wheels/nbdeploy-0.1-py3-none-any.whl[explain]"]


# -- front ends


def test_a_variable_whose_attributes_raise_breaks_no_magic():
    class Broken:
        def __getattr__(self, name):
            raise RuntimeError(name)

    scope = {"broken": Broken(), "model": First()}
    assert ("model", "variable") in magic.completions("save ", scope)[1]


def test_a_pair_without_a_value_names_its_option():
    verb, values = verbs.parse(["save", "model.pkl", "--metric", "auc"], "nbdeploy")
    with pytest.raises(InputError, match="--metric"):
        verbs.resolve(verb, values, lambda _kind, text: text)


def test_an_error_of_the_disk_is_json_too(capsys, monkeypatch, tmp_path):
    from nbdeploy import __main__

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(verbs, "parse", full)
    assert __main__.main(["--json", "status"]) == 1
    assert "No space left" in json.loads(capsys.readouterr().out)["error"]


def test_a_file_of_another_kind_is_told_which_kinds_there_are(tmp_path):
    from nbdeploy import __main__

    other = Path(tmp_path / "model.h5")
    other.touch()
    with pytest.raises(InputError, match=r"\.onnx"):
        __main__.read(verbs.Kind.MODEL, str(other))


@pytest.mark.parametrize(
    ("say", "says"),
    [
        (lambda X: pd.DataFrame(np.ones((len(X), 2)), columns=["p", "p"]), "gives the output 'p' twice"),
        (lambda X: {1: np.ones(len(X)), "1": np.zeros(len(X))}, "gives the output '1' twice"),
        (
            lambda X: np.ma.masked_array(np.arange(len(X)), mask=[True] + [False] * (len(X) - 1)),
            "masked array of int64",
        ),
        (lambda X: (value for value in range(len(X))), "with a generator"),
        (lambda _X: None, "with a NoneType"),
    ],
)
def test_answers_that_would_lose_something_are_refused(say, says):
    with pytest.raises(nbdeploy.SaveError, match=says):
        nbdeploy.save(say, "bad", pd.DataFrame({"a": [1.0, 2.0, 3.0]}))


def test_masked_floats_are_missing_and_a_matrix_is_an_array():
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0]})

    masked = nbdeploy.save(lambda X: np.ma.masked_greater(X["a"].to_numpy(), 2), "masked", frame)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)  # NumPy's, of its matrices
        matrix = nbdeploy.save(lambda X: np.matrix(X["a"].to_numpy()).T, "matrix", frame)

    assert masked.expected["prediction"].isna().tolist() == [False, False, True]
    assert matrix.expected["prediction"].iloc[0].shape == (1,)


@pytest.mark.parametrize("line", ["x @ https://user:pw@example.org/x.whl", "x @ file:///tmp/x.whl"])
def test_a_requirement_with_a_secret_or_of_this_machine_is_refused(line):
    with pytest.raises(nbdeploy.SaveError, match=r"requirements=: x is at a") as refused:
        nbdeploy.save(lambda X: X["a"].to_numpy(), "bad", pd.DataFrame({"a": [1.0]}), requirements=[line])

    assert "pw" not in str(refused.value)


def test_strings_and_numbers_among_categories_are_refused_by_column():
    frame = pd.DataFrame({"kind": pd.Categorical([1, "1", 2.5])})

    with pytest.raises(nbdeploy.SaveError, match="column 'kind' has strings and numbers among its categories"):
        nbdeploy.save(lambda X: np.zeros(len(X)), "bad", frame)

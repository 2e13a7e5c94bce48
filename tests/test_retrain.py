"""A retraining gives the labelled log to a notebook, has what it saves judged, and never lets it answer by itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import nbdeploy
from gates import write_gate
from nbdeploy import __main__, home, label_log, model_store, prediction_log, retraining_data, routing
from nbdeploy.errors import InputError, NotebookError, NotFound, RetrainError
from nbdeploy.prediction_log import Entry, LogWriter
from nbdeploy.retraining_result import Retrained
from services import own_home

NAME = "shop"
ROWS = 200
PARAMETERS = ("data: str = ''\ntarget: str = ''\nname: str = ''\nsince: str = ''\nshift: float = 0.0", "parameters")
READ = "import pandas as pd\nimport nbdeploy\nrows = pd.read_parquet(data)\nX, y = rows.drop(columns=[target]), rows[target]"
MODEL = """class Sum:
    def __init__(self, shift):
        self.shift = shift

    def predict(self, X):
        return X["a"].to_numpy() * 2.0 + self.shift
"""
SAVE = "nbdeploy.deploy(Sum(shift), name, X, y, progress=False)"
ELSE = "import os\nos.environ.pop('NBDEPLOY_RETRAINING')\nnbdeploy.save(Sum(shift), name, X, y, progress=False)"


class Half:
    """Learned that the answer is half of what it is."""

    def predict(self, X):
        return X["a"].to_numpy() * 1.0


def training(rows=60):
    rng = np.random.default_rng(0)
    a = rng.uniform(0, 10, rows)
    X = pd.DataFrame({"a": a, "who": pd.Categorical(rng.choice(["x", "y"], rows)), "n": np.arange(rows, dtype="int32")})
    return X, pd.Series(a * 2.0, name="price")


def fill(name=NAME, version="v1", rows=ROWS, *, labelled=True):
    """Answer `rows` requests of version, a second apart, and say what was true of them; returns their ids."""
    columns = model_store.get(name, version).signature.columns
    ids = [prediction_log.new_request_id() for _ in range(rows)]
    begun = time.time() - rows
    with LogWriter(name, columns, outputs=model_store.get(name, version).signature.outputs, keep_every=None) as log:
        assert log.write([
            Entry(version, request, {"a": [i / 20], "who": ["z" if i % 50 == 7 else "xy"[i % 2]], "n": [i]}, [i / 20], time=begun + i)
            for i, request in enumerate(ids)
        ])  # fmt: skip
    ids = [f"{request}-0" for request in ids]
    if labelled:
        label_log.add(name, {one: i / 10 for i, one in enumerate(ids)})
    return ids


@pytest.fixture(scope="module")
def _shop():
    os.environ["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    with own_home() as place:
        nbdeploy.save(Half(), NAME, *training(), progress=False)
        routing.go_live(NAME, "v1", "test")
        fill()
        yield place


@pytest.fixture(autouse=True)
def shop(_shop, monkeypatch, tmp_path):
    """A deployment that does not run, with 200 labelled rows in its log."""
    base = tmp_path / "state"
    shutil.copytree(_shop.parent, base, symlinks=True)
    monkeypatch.setenv("NBDEPLOY_HOME", str(base / "home"))
    monkeypatch.setenv("BENTOML_HOME", str(base / "bentoml"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(*cells, name="train.ipynb"):
    return write_gate(Path(name), PARAMETERS, READ, *cells)


def retrain(path, **options):
    return nbdeploy.retrain(NAME, path, progress=False, **options)


def tags():
    return [version.version for version in nbdeploy.versions(NAME)]


# What comes out --------------------------------------------------------------------------------------------------


@pytest.mark.slow  # the story of test_retrain_notebook.py is the short one
@pytest.mark.timeout(120)
def test_what_the_notebook_saves_is_judged_on_newer_rows_and_is_a_candidate_that_answers_nobody():
    look = "print(len(rows), target, since, list(rows), rows.dtypes.astype(str).tolist(), rows['n'].max())"
    result = retrain(write(look, MODEL, SAVE, ELSE), parameters={"shift": "0.25"}, since="2h")

    assert result.passed, result
    assert result.version.tag == "shop:v2"
    assert tags() == ["v3", "v2", "v1"]  # and the newest is somebody else's
    assert (result.rows, result.held_out, result.target, result.of) == (160, 40, "price", "v1")
    executed = result.executed.notebook.read_text()
    types = "['float64', 'category', 'int32', 'float64']"
    assert f"160 price 2h ['a', 'who', 'n', 'price'] {types} 159" in executed
    assert "shift = 0.25" in executed
    better = next(check for check in result.gate.checks if check.name == "r2")
    assert better.value > 0.9
    told = result.version.provenance["retrained"]
    assert (told["of"], told["rows"], told["since"]) == ("v1", 160, "2h")
    assert nbdeploy.traffic(NAME).weights == {"v1": 100}
    assert nbdeploy.status(NAME).loc[NAME, "state"] == "stopped"
    assert not list(home.folder("retrain", NAME).iterdir())
    assert result.said == (
        "shop:v2, retrained from v1 on 160 labelled rows since 2h, passed its gate on 40 newer rows; "
        "it is a candidate without traffic"
    )
    assert "%deploy promote shop v2" in repr(result)
    assert "train.html" in result._repr_html_()
    assert json.loads(json.dumps(result.to_dict()))["version"] == "v2"


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_failed_gate_is_a_result_with_exit_code_1_and_the_magic_starts_no_service(capsys):
    write(MODEL, "model = Sum(shift)\n%load_ext nbdeploy\n%deploy model --name shop --data X --target y")
    code = __main__.main(["--json", "retrain", NAME, "--notebook", "train.ipynb", "-p", "shift=500"])
    out, err = capsys.readouterr()
    told = json.loads(out)

    assert code == 1
    assert err == ""
    assert nbdeploy.status(NAME).loc[NAME, "state"] == "stopped"
    assert not told["passed"]
    assert told["version"] == "v2"
    assert "failed its gate: r2: " in told["said"]
    assert told["said"].endswith("it gets no traffic")
    card = nbdeploy.card(NAME, "v2", progress=False).markdown
    assert "from v1 on 160 labelled rows of its log" in card
    assert nbdeploy.traffic(NAME).weights == {"v1": 100}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_rollout_begins_by_itself_only_when_the_gate_has_passed():
    nbdeploy.serve(NAME, progress=False)
    try:
        failed = retrain(write(MODEL, SAVE), parameters={"shift": 500}, then="rollout")
        assert not failed.done
        assert nbdeploy.traffic(NAME).weights == {"v1": 100}

        passed = retrain(Path("train.ipynb"), then="rollout")
        assert passed.rollout == "started"
        assert passed.said.endswith("; a rollout has begun")
        assert nbdeploy.traffic(NAME).weights == {"v1": 99, "v3": 1}
        with pytest.raises(RetrainError, match="shop:v3 is being rolled out already"):
            retrain(Path("train.ipynb"), then="rollout")
    finally:
        nbdeploy.stop(NAME)


# What goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (
            [MODEL],
            "train.ipynb came to its end, and saved no version of 'shop'. Let it end with nbdeploy.save(",
        ),
        ([MODEL, SAVE.replace("name", "'other'")], "train.ipynb saved other:v1, and no version of 'shop'"),
        (["1 / 0"], "train.ipynb stopped: In [4] `1 / 0` raised ZeroDivisionError: division by zero. See "),
        ([MODEL, SAVE, "boom"], "v2 had been saved, and gets no traffic."),
    ],
    ids=["nothing saved", "another name", "raises", "raises later"],
)
def test_a_notebook_that_makes_no_candidate_is_told_in_a_line_and_kept(cells, said, shop):
    with pytest.raises(RetrainError) as caught:
        retrain(write(*cells))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(list((shop / "nbdeploy-reports" / NAME).glob("*-train/train.*"))) == 2
    assert nbdeploy.traffic(NAME).weights == {"v1": 100}
    assert nbdeploy.status().query("state != 'stopped'").empty


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"parameters": {"sift": 1}}, NotebookError, "train.ipynb has no parameter 'sift'. Did you mean 'shift'?"),
        ({"parameters": {"data": "x"}}, InputError, "'data' is what a retraining gives to train.ipynb"),
        ({"then": "promote"}, InputError, "then='promote' is nothing that can follow a passed gate"),
        ({"then": "rollout"}, RetrainError, "'shop' does not run, and nobody would roll a new version out"),
        ({"holdout": 1.0}, InputError, "holdout=1.0 is no share from 0 to 0.9"),
        ({"drift_share": 0}, InputError, "drift_share=0 is no share above 0, up to 1"),
        ({"until": "2h"}, RetrainError, "'shop' has no labelled row until 2h, and a retraining needs 38. Say what"),
        ({"env": ["NOT_THERE"]}, NotebookError, "the environment has no NOT_THERE"),
    ],
)  # fmt: skip
def test_what_cannot_begin_is_refused_in_a_line_before_anything_runs(options, error, said, shop):
    path = write("open('ran', 'w')")
    with pytest.raises(error, match=re.escape(said)):
        retrain(path, **options)
    assert not (shop / "ran").exists()
    assert tags() == ["v1"]


def test_a_notebook_has_to_be_there_and_to_want_the_rows():
    with pytest.raises(NotFound, match="There is no notebook"):
        retrain("gone.ipynb")
    with pytest.raises(
        RetrainError, match=r"blind\.ipynb has no parameter 'data', so it would not see the labelled rows"
    ):
        retrain(write_gate(Path("blind.ipynb"), ("name = ''", "parameters"), "1"))
    with pytest.raises(NotFound, match="Did you mean 'shop'"):
        nbdeploy.retrain("shopp", "blind.ipynb")


def test_two_retrainings_of_a_name_at_once_are_one_too_many():
    with home.lock("retrain", NAME), pytest.raises(RetrainError, match="a retraining of 'shop' runs already"):
        retrain(write("1"))


def test_without_drift_nothing_is_done_and_that_is_success(capsys, shop):
    write("open('ran', 'w')")
    line = ["retrain", NAME, "--notebook", "train.ipynb", "--if-drifted", "--drift-share", "1.0"]
    assert __main__.main(line) == 0
    said = capsys.readouterr().out
    assert re.match(r"nothing was retrained: 2 of \d columns of shop have drifted, which is less than 100%", said)
    assert __main__.main([*line, "--until", "5d"]) == 0
    assert "nothing was retrained: shop:v1" in capsys.readouterr().out
    assert not (shop / "ran").exists()


def test_what_is_done_is_success_and_what_failed_is_not():
    nothing = Retrained(NAME, "nothing was retrained: no drift")
    version = model_store.get(NAME)
    assert nothing.done
    assert not nothing.passed
    assert not Retrained(NAME, "its gate could not pass", version).done
    assert not Retrained(NAME, "passed", version, SimpleNamespace(passed=True), rollout="another runs").done
    assert Retrained(NAME, "passed", version, SimpleNamespace(passed=True), rollout="started").done


INTERRUPTED = """
import sys, nbdeploy
try:
    nbdeploy.retrain("shop", sys.argv[1])
except KeyboardInterrupt:
    sys.exit(77)
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_interrupt_ends_the_kernel_and_tells_what_had_been_saved(shop):
    path = write(MODEL, SAVE, "open('on', 'w')\nwhile True: pass")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    caller = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(path)], cwd=shop, stderr=subprocess.PIPE, env=environment, text=True
    )
    deadline = time.monotonic() + 60
    while not (shop / "on").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    caller.send_signal(signal.SIGINT)
    _, said = caller.communicate(timeout=30)
    assert caller.returncode == 77
    assert said == "nbdeploy: shop:v2 had been saved before the interrupt, and gets no traffic\n"
    assert tags() == ["v2", "v1"]
    assert nbdeploy.traffic(NAME).weights == {"v1": 100}
    assert not list(home.folder("retrain", NAME).iterdir())


# The rows --------------------------------------------------------------------------------------------------------


def test_the_newest_rows_are_held_out_and_what_is_not_labelled_is_not_there():
    fill(rows=7, labelled=False)
    rows = retraining_data.labelled_rows(NAME, model_store.get(NAME), holdout=0.25)
    assert (len(rows.training), len(rows.held_out)) == (150, 50)
    assert rows.training["n"].max() < rows.held_out["n"].min()
    assert rows.training["price"].tolist() == [i / 10 for i in range(150)]
    assert rows.training.dtypes[["a", "n", "price"]].astype(str).tolist() == ["float64", "int32", "float64"]
    assert rows.training["who"].cat.categories.tolist() == ["x", "y", "z"]
    assert rows.notes == ()


def test_a_label_that_is_of_another_kind_is_left_out_and_told():
    (one, other) = fill(rows=2, labelled=False)
    label_log.add(NAME, {one: "a lot", other: True})
    rows = retraining_data.labelled_rows(NAME, model_store.get(NAME))
    assert len(rows.training) == ROWS + 1
    assert rows.notes == ("1 labels are no number, 'a lot' for one",)


@pytest.mark.parametrize(
    ("example", "labels", "told", "dtype"),
    [
        (pd.Series([True, False]), [True, 0, 1.0, "yes", 2], [True, False, True], "bool"),
        (pd.Series([1, 2], dtype="int8"), [3, 4.0, 4.5, "5"], [3, 4], "int8"),
        (pd.Series([1.5], dtype="float32"), [1, 2.5, "x"], [1.0, 2.5], "float32"),
        (pd.Series(["a"], dtype=object), ["b", 1], ["b"], "object"),
        (pd.Series(["a", "b"], dtype="category"), ["b", "c", 1], ["b", "c"], "category"),
        (pd.Series(["2026-01-01"], dtype="datetime64[ns]"), ["2026-01-02T00:00", "soon"], [pd.Timestamp("2026-01-02")], "datetime64[ns]"),
        (pd.Series([True], dtype="boolean"), [False, "x"], [False], "boolean"),
    ],
)  # fmt: skip
def test_a_label_becomes_what_the_training_target_was(example, labels, told, dtype):
    truth, fits = retraining_data.truth_like(labels, example)
    assert truth[fits].tolist() == told
    assert truth.dtype.name == dtype


def test_private_columns_are_in_no_rows_and_that_is_said():
    X, y = training()
    nbdeploy.save(Half(), NAME, X, y, private=["who"], progress=False)
    rows = retraining_data.labelled_rows(NAME, model_store.get(NAME, "v2"))
    assert list(rows.training) == ["a", "n", "price"]
    assert rows.notes == ("the log holds no 'who', which is private",)

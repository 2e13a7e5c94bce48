"""What save captures around the model: requirements that are true, where it comes from, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import nbdeploy
from kernels import kernel
from nbdeploy import __main__, artifact, notebook_source

X = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": [4.0, 3.0, 2.0, 1.0]})


class Sum:
    """Small, and of no library."""

    def predict(self, X):
        return (X["a"] + X["b"]).to_numpy()


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))


def in_a_fresh_process(code: str, folder: Path, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=folder, env={**os.environ, **env}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# -- requirements


def test_requirements_are_what_the_rehearsal_loaded_whichever_process_it_was(flight_model, flights):
    saved = nbdeploy.save(flight_model, "saved", *flights)
    nbdeploy.deploy(flight_model, "deployed", *flights)
    deployed = nbdeploy.versions("deployed")[0]

    for version in (saved, deployed):
        names = {re.split(r"[=<>]=?", line)[0] for line in version.requirements}
        assert {"scikit-learn", "scipy", "numpy", "pandas", "joblib"} <= names
        assert not names & {"torch", "xgboost", "jupyterlab", "evidently", "mlflow", "pytest"}
        assert version.files[artifact.REQUIREMENTS]


def test_the_users_own_lines_are_added_and_a_contradiction_is_refused():
    version = nbdeploy.save(Sum(), "sum", X, requirements=["six>=1.0", "pandas>=2"])

    assert "six>=1.0" in version.requirements
    with pytest.raises(nbdeploy.SaveError, match=r"pandas"):
        nbdeploy.save(Sum(), "sum", X, requirements=["pandas<1"])
    with pytest.raises(nbdeploy.SaveError, match=r"--index-url"):
        nbdeploy.save(Sum(), "sum", X, requirements=["--index-url=http://x"])
    assert len(nbdeploy.versions("sum")) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_clean_environment_holds_nothing_but_the_requirements(flight_model, flights, tmp_path):
    version = nbdeploy.save(flight_model, "clean", *flights, clean_env=True)

    assert any(line.startswith("scikit-learn==") for line in version.requirements)

    # A package that only its import within predict needs, and that nobody named, is missed there and nowhere else.
    class Hidden:
        def predict(self, X):
            return X["a"].to_numpy() + len(__import__("importlib").util.find_spec("pytest").name)

    with pytest.raises(nbdeploy.RehearsalError, match="NoneType"):
        nbdeploy.save(Hidden(), "hidden", X, clean_env=True)
    assert nbdeploy.versions("hidden") == []


# -- where it comes from


def test_metrics_parameters_data_and_code_are_kept(flight_model, flights):
    features, late = flights

    facts = nbdeploy.save(
        flight_model, "flights", features, late, metrics={"auc": np.float64(0.83), "note": "holdout"}
    ).provenance  # fmt: skip

    assert facts["metrics"] == {"auc": 0.83, "note": "holdout"}
    assert facts["parameters"]["logisticregression__max_iter"] == 1000
    assert (facts["rows"], facts["columns"]) == (2000, 10)
    assert len(facts["training_digest"]) == 64
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    json.dumps(facts)
    with pytest.raises(nbdeploy.SaveError, match="the metric 'matrix' is a list"):
        nbdeploy.save(flight_model, "flights", features, late, metrics={"matrix": [[1]]})


def test_a_deployment_is_stale_once_its_cells_or_packages_are_others(tmp_path):
    define = """
    class Clip:
        def __init__(self, top): self.top = top
        def predict(self, X): return X["a"].clip(upper=self.top).to_numpy()
    """
    with kernel(tmp_path) as notebook:
        notebook.run("%load_ext nbdeploy\nimport pandas as pd, nbdeploy; X = pd.DataFrame({'a': [1.0, 2.0, 3.0]})")
        notebook.run(define)
        notebook.run("nbdeploy.deploy(Clip(2), 'clip', X, progress=False)")
        ask = "print(nbdeploy.status('clip').loc['clip', 'stale'] or 'as saved')"
        assert notebook.run(ask).strip() == "as saved"
        notebook.run(define.replace("upper", "lower"))
        edited = notebook.run(ask)
        shown = notebook.run("nbdeploy.panel('clip')")
        cells = notebook.run("print(nbdeploy.versions('clip')[0].provenance['cells'][0]['source'])")
        notebook.run("nbdeploy.stop('clip')")

    assert "Clip" in edited
    assert "edited" in edited
    assert "stale" in shown
    assert "def predict(self, X): return" in cells


def test_packages_of_another_version_make_a_deployment_stale(monkeypatch):
    nbdeploy.deploy(Sum(), "sum", X)
    assert nbdeploy.status("sum").loc["sum", "stale"] == ""

    monkeypatch.setattr(notebook_source, "_installed", lambda *_: {"pandas": "1.0"})

    assert "pandas is 1.0 here" in nbdeploy.status("sum").loc["sum", "stale"]


def test_code_beside_the_notebook_comes_along(tmp_path):
    (tmp_path / "helpers.py").write_text("from deeper import FACTOR\n\nclass Times:\n    def predict(self, X):\n"
                                         "        import late\n        return X['a'].to_numpy() * FACTOR + late.ONE\n")  # fmt: skip
    (tmp_path / "deeper.py").write_text("FACTOR = 3\n")
    (tmp_path / "late.py").write_text("ONE = 1\n")
    with kernel(tmp_path) as notebook:
        notebook.run("import pandas as pd, nbdeploy, helpers; X = pd.DataFrame({'a': [1.0, 2.0]})")
        notebook.run("nbdeploy.deploy(helpers.Times(), 'times', X, progress=False)")
        for file in ("helpers.py", "deeper.py", "late.py"):
            (tmp_path / file).unlink()
        answers = notebook.run("print(nbdeploy.predict('times', X)['prediction'].tolist())")
        notebook.run("nbdeploy.stop('times'); nbdeploy.serve('times', progress=False)")
        again = notebook.run("print(nbdeploy.predict('times', X)['prediction'].tolist()); nbdeploy.stop('times')")

    assert answers.strip().startswith("[4.0, 7.0]")
    assert again.strip().startswith("[4.0, 7.0]")


def test_skops_stores_without_pickle_and_refuses_classes_of_the_notebook(flight_model, flights, tmp_path):
    version = nbdeploy.save(flight_model, "safe", *flights, format="skops")

    assert not list(version.path.glob("*.pkl"))
    assert (version.path / "saved_model.skops").is_file()
    with pytest.raises(nbdeploy.SaveError, match="cannot be stored as 'skops'"):
        nbdeploy.save(Sum(), "sum", X, format="skops")
    with pytest.raises(nbdeploy.SaveError, match="Did you mean 'skops'"):
        nbdeploy.save(flight_model, "safe", *flights, format="skop")


def test_the_shell_saves_with_every_option(flight_model, flights, tmp_path, monkeypatch, capsys):
    import cloudpickle

    features, late = flights
    (tmp_path / "model.pkl").write_bytes(cloudpickle.dumps(flight_model))
    features.assign(late=late).to_parquet(tmp_path / "train.parquet")
    monkeypatch.chdir(tmp_path)

    code = __main__.main([
        "--json", "save", "model.pkl", "--name", "shell", "--data", "train.parquet", "--target", "late", "--format", "skops",
        "--private", "carrier", "--private", "dest", "--metric", "auc=0.83", "--requirement", "six>=1", "--tolerance", "1e-6",
    ])  # fmt: skip

    assert code == 0, capsys.readouterr()
    assert json.loads(capsys.readouterr().out)["tag"] == "shell:v1"
    version = nbdeploy.versions("shell")[0]
    assert [column.name for column in version.signature.columns if column.private] == ["carrier", "dest"]
    assert version.provenance["metrics"] == {"auc": 0.83}
    assert "six>=1" in version.requirements


# -- what is refused


class Holder(Sum):
    def __init__(self, inner):
        self.steps = [("inner", inner)]


def test_the_attribute_that_cannot_be_pickled_is_named():
    model = Holder(Holder(threading.Lock()))

    with pytest.raises(nbdeploy.SaveError) as refused:
        nbdeploy.save(model, "bad", X)

    assert "model.steps[0][1].steps[0][1] (a lock)" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_output_that_differs_names_row_column_values_and_dtypes(tmp_path):
    said = in_a_fresh_process(
        """
        import os, numpy as np, pandas as pd, nbdeploy
        class Depends:
            def predict(self, X):
                answers = X["a"].to_numpy().copy()
                answers[2] += os.environ.get("ONLY_HERE") == "yes"
                return answers
        class Other(Depends):
            def predict(self, X):
                answers = super().predict(X) * 0
                return answers if os.environ.get("ONLY_HERE") == "yes" else answers.astype("float32")
        os.environ["ONLY_HERE"] = "yes"
        from nbdeploy import processes
        keep = processes.environment
        processes.environment = lambda **more: {**keep(**more), "ONLY_HERE": "no"}
        for model in (Depends(), Other()):
            try:
                nbdeploy.save(model, "bad", pd.DataFrame({"a": [1.0, 2.0, 3.0]}), progress=False)
            except nbdeploy.RehearsalError as error:
                print(error)
        """,
        tmp_path,
    )
    values, dtypes = said.strip().splitlines()

    assert "row 2, column 'prediction': 3.0 (float64) instead of 4.0 (float64)" in values
    assert "row 0, column 'prediction': 0.0 (float32) instead of 0.0 (float64)" in dtypes


def test_a_model_that_is_not_deterministic_is_refused_unless_a_tolerance_allows_it():
    class Noisy:
        def __init__(self, size):
            self.size = size

        def predict(self, X):
            return X["a"].to_numpy() * (1 + np.random.default_rng().normal(size=len(X)) * self.size)

    with pytest.raises(
        nbdeploy.SaveError, match=r"differently the second time: row \d, column 'prediction'.*tolerance"
    ):
        nbdeploy.save(Noisy(0.1), "noisy", X)
    assert nbdeploy.save(Noisy(1e-4), "noisy", X, tolerance=0.01).tag == "noisy:v1"


def test_a_module_that_a_fresh_process_cannot_import_is_named_with_the_ways_out(tmp_path):
    said = in_a_fresh_process(
        """
        import sys, types, pandas as pd, nbdeploy
        made = types.ModuleType("made_up")
        exec("class Model:\\n    def predict(self, X): return X['a'].to_numpy()", made.__dict__)
        made.Model.__module__ = "made_up"
        sys.modules["made_up"] = made
        try:
            nbdeploy.save(made.Model(), "bad", pd.DataFrame({"a": [1.0]}), progress=False)
        except nbdeploy.SaveError as error:
            print(error)
        """,
        tmp_path,
    )

    assert "the model needs the module made_up" in said
    assert "Install it as a package" in said
    assert "beside the notebook" in said
    assert "in a cell" in said
    assert said.strip().count("\n") == 0


@pytest.mark.parametrize("container", ["pandas", "polars", "arrow"])
def test_columns_that_the_model_never_saw_or_misses_are_named(flight_model, flights, container):
    import polars as pl
    import pyarrow as pa

    features, _ = flights
    make = {"pandas": lambda f: f, "polars": pl.from_pandas, "arrow": pa.Table.from_pandas}[container]

    with pytest.raises(nbdeploy.SaveError, match=r"has the column 'weather'.*never saw"):
        nbdeploy.save(flight_model, "bad", make(features.assign(weather=1.0)))
    with pytest.raises(nbdeploy.SaveError, match=r"no column 'carrier', which the Pipeline was fitted on.*'carier'"):
        nbdeploy.save(flight_model, "bad", make(features.rename(columns={"carrier": "carier"})))


# -- large ones


def test_a_frame_that_memory_holds_only_once_is_saved(tmp_path):
    # 600 MB of numbers, and room for less than as much again.
    said = in_a_fresh_process(
        """
        import resource, numpy as np, pandas as pd, nbdeploy, nbdeploy.workflow
        from nbdeploy import model_store
        class First:
            def predict(self, X): return X.iloc[:, 0].to_numpy()
        frame = pd.DataFrame(np.random.default_rng(0).random((3_750_000, 20)), columns=[f"c{i}" for i in range(20)])
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20), used + (400 << 20)))
        with model_store.stage(First(), "large", frame) as staged:
            print(staged.version, sorted(staged.files)[:1])
        """,
        tmp_path,
        OPENBLAS_NUM_THREADS="1", ARROW_DEFAULT_MEMORY_POOL="system", MALLOC_ARENA_MAX="2",
    )  # fmt: skip

    assert said.startswith("v1")


def _peak_beyond(megabytes: int, folder: Path) -> tuple[float, float]:
    said = in_a_fresh_process(
        f"""
        import resource, numpy as np, nbdeploy, nbdeploy.workflow
        class Large:
            def __init__(self): self.weights = np.random.default_rng(0).random({megabytes} * 131072)
            def predict(self, X): return X[:, 0] * self.weights[0]
        model, X = Large(), np.arange(1000.0).reshape(500, 2)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        nbdeploy.save(model, "large", X, progress=False)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
        print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024 - {megabytes})
        """,
        folder,
    )
    own, rehearsal = map(float, said.split())
    return own, rehearsal


@pytest.mark.skipif(sys.platform == "darwin", reason="ru_maxrss has another unit there")
def test_a_large_model_needs_its_own_size_and_200_mb_at_most(tmp_path):
    assert max(_peak_beyond(300, tmp_path)) < 200


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="ru_maxrss has another unit there")
def test_a_model_of_1_gb_needs_its_own_size_and_200_mb_at_most(tmp_path):
    assert max(_peak_beyond(1024, tmp_path)) < 200


def test_long_work_says_that_it_goes_on():
    class Large(Sum):
        def __init__(self):
            self.parts = [np.random.default_rng(i).random(1 << 17) for i in range(20)]

    heard = []
    from nbdeploy import model_store

    with model_store.stage(Large(), "large", X, on_wait=lambda: heard.append(1)):
        pass

    assert len(heard) > 40  # written and hashed in blocks of 1 MiB

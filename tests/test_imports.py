"""Importing nbdeploy costs next to nothing, and serving needs nothing of the notebook."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = {"IPython", "anywidget", "dask", "evidently", "ipywidgets", "nbclient", "papermill"}
HEAVY = {"bentoml", "matplotlib", "numpy", "pandas", "pyarrow", "scipy", "sklearn"}


def packages_loaded_by(statement: str) -> set[str]:
    """The top-level packages in a fresh process after `statement`."""
    code = f"{statement}; import json, sys; print(json.dumps([name.partition('.')[0] for name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_import_of_the_package_loads_nothing_heavy():
    assert packages_loaded_by("import nbdeploy") & (NOTEBOOK | HEAVY) == set()


def test_import_of_serving_loads_nothing_of_the_notebook():
    assert packages_loaded_by("import nbdeploy.serving") & NOTEBOOK == set()


def test_import_of_the_shell_command_loads_nothing_of_the_notebook():
    assert packages_loaded_by("import nbdeploy.__main__") & NOTEBOOK == set()


def test_the_extension_loads_neither_reports_nor_gates_nor_models():
    code = "from IPython.core.interactiveshell import InteractiveShell as S; S().run_line_magic('load_ext', 'nbdeploy')"

    assert packages_loaded_by(code) & {"dask", "evidently", "nbclient", "papermill", "sklearn"} == set()


def test_every_public_name_can_be_had():
    import nbdeploy

    for name in nbdeploy.__all__:
        assert getattr(nbdeploy, name) is not None


def test_dir_lists_what_is_public():
    import nbdeploy

    assert set(nbdeploy.__all__) <= set(dir(nbdeploy))


def test_a_name_that_does_not_exist_is_an_attribute_error():
    import nbdeploy

    with pytest.raises(AttributeError, match="deply"):
        _ = nbdeploy.deply

"""What `pip install nbdeploy` brings: the wheel is built, installed and run, outside of the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Installed:
    """nbdeploy installed from its wheel, with the dependencies of the environment that runs the tests."""

    wheel: Path
    sdist: Path
    bin: Path

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment, away from the checkout."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [str(self.bin / words[0]), *words[1:]]
        return subprocess.run(
            command, cwd=self.bin, env=environment, capture_output=True, text=True, check=False, timeout=120
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("package")
    # An sdist, then the wheel from the sdist: what is missing in the first is missing in the second.
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    environment = folder / "venv"
    venv.create(environment, symlinks=True)
    scripts = environment / "bin"
    python = scripts / "python"
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    # The dependencies come from here. The checkout does not: a .pth file found through a .pth file is not read.
    site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    Path(site.strip(), "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(wheel, sdist, scripts)


def _run(*command: str | Path) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_comes_from_the_wheel(installed: Installed):
    done = installed.run("python", "-c", "import nbdeploy; print(nbdeploy.__file__)")

    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(installed.bin.parent)


@pytest.mark.parametrize("name", ["notebooks/validate.ipynb", "notebooks/quickstart.ipynb", "py.typed", "__init__.pyi"])
def test_files_beside_the_code_are_found(installed: Installed, name: str):
    code = f"from importlib.resources import files; print(files('nbdeploy').joinpath({name!r}).is_file())"
    done = installed.run("python", "-c", code)

    assert done.stdout.strip() == "True", done.stderr


def test_every_file_of_the_package_is_in_the_wheel(installed: Installed):
    packed = set(zipfile.ZipFile(installed.wheel).namelist())
    written = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "nbdeploy").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert written - packed == set()


def test_the_wheel_holds_the_package_and_nothing_else(installed: Installed):
    top = {name.partition("/")[0] for name in zipfile.ZipFile(installed.wheel).namelist()}

    assert {name.partition("-")[0] for name in top} == {"nbdeploy"}


def test_the_sdist_can_be_tested(installed: Installed):
    with tarfile.open(installed.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {"Makefile", "setup.cfg", ".ci/run", "LICENSE", "tests/conftest.py", "tests/test_packaging.py"} <= names


def test_the_shell_command_runs(installed: Installed):
    done = installed.run("nbdeploy", "--help")

    assert done.returncode == 0, done.stderr
    assert "deploy" in done.stdout


def test_versions_agree(installed: Installed):
    done = installed.run("python", "-c", "import nbdeploy; print(nbdeploy.__version__)")

    assert _metadata(installed)["Version"] == done.stdout.strip()


def test_the_base_install_is_what_a_container_needs(installed: Installed):
    """Nothing of the notebook comes with `pip install nbdeploy`."""
    required = [line for line in _metadata(installed).get_all("Requires-Dist", []) if "extra ==" not in line]

    assert [line for line in required if line.startswith(("bentoml", "pandas"))]
    notebook = ("jupyter", "ipy", "anywidget", "papermill", "nb", "evidently", "scikit", "pytest", "dask")
    assert [line for line in required if line.startswith(notebook)] == []


def test_the_changelog_has_a_place_for_the_next_change():
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text()


def _metadata(installed: Installed):
    with zipfile.ZipFile(installed.wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(archive.read(name).decode())

"""Requirements are what a process really loaded; what no index has is carried."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from nbdeploy import requirements
from nbdeploy.errors import SaveError
from nbdeploy.requirements import Requirement

ASK = """
import json, sys
import nbdeploy.requirements as r
import {early}
before = frozenset(sys.modules)
import {late}
print(json.dumps([each.to_dict() for each in r.loaded(before, {needed!r})]))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A throwaway environment that sees the packages of this one."""
    where = tmp_path_factory.mktemp("env") / "venv"
    venv.create(where, symlinks=True)
    python = where / "bin" / "python"
    site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    root = str(Path(__file__).parent.parent)
    Path(site.strip(), "parent.pth").write_text(f"{sysconfig.get_path('purelib')}\n{root}\n")
    return python


def project(where: Path, name: str, version: str = "1.0", package: str = "") -> Path:
    package = package or name
    folder = where / name
    (folder / package.replace(".", "/")).mkdir(parents=True)
    (folder / package.replace(".", "/") / "__init__.py").write_text("value = 42\n")
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        f'[project]\nname = "{name}"\nversion = "{version}"\n'
        '[tool.hatch.build]\ndev-mode-dirs = ["."]\n'
        f'[tool.hatch.build.targets.wheel]\npackages = ["{package.partition(".")[0]}"]\n'
    )
    return folder


def install(python: Path, *what: str) -> None:
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", *map(str, what)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def ask(python: Path, late: str, needed: tuple[str, ...] = (), early: str = "json") -> dict[str, Requirement]:
    code = ASK.format(late=late, needed=needed, early=early)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    text = subprocess.check_output([python, "-c", code], text=True, cwd=Path(python).parent, env=env)
    return {each["name"]: Requirement.from_dict(each) for each in json.loads(text.splitlines()[-1])}


def test_an_editable_package_is_reported_and_carried_without_touching_its_folder(python, tmp_path):
    folder = project(tmp_path, "sweetlib")
    install(python, "-e", folder)
    found = ask(python, "sweetlib")["sweetlib"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    (carried,) = requirements.carry([found], tmp_path / "version")

    assert (found.origin, found.url) == ("editable", str(folder))
    assert carried.line.startswith("./wheels/sweetlib-1.0-py")
    assert "sweetlib/__init__.py" in zipfile.ZipFile(tmp_path / "version" / carried.line).namelist()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_package_of_a_local_repository_is_named_by_its_commit_and_carried(python, tmp_path):
    folder = project(tmp_path, "gitlib")
    git = ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    install(python, f"git+file://{folder}")

    found = ask(python, "gitlib")["gitlib"]
    (carried,) = requirements.carry([found], tmp_path / "version")

    assert (found.origin, found.commit) == ("git", commit)
    assert found.line == f"gitlib @ git+file://{folder}@{commit}"
    assert carried.line.startswith("./wheels/gitlib-1.0-py")


def test_a_namespace_package_is_told_from_its_siblings(python, tmp_path):
    install(
        python, project(tmp_path, "acme-one", package="acme.one"), project(tmp_path, "acme-two", package="acme.two")
    )

    found = ask(python, "acme.one")

    assert "acme-one" in found
    assert "acme-two" not in found


def test_names_of_modules_are_not_names_of_distributions():
    found = ask(Path(sys.executable), "sklearn.base, yaml, dateutil, google.protobuf")

    assert {"scikit-learn", "PyYAML", "python-dateutil", "protobuf", "scipy", "nbdeploy"} <= set(found)


def test_what_was_loaded_before_the_model_is_listed_only_where_the_model_needs_it():
    assert "PyYAML" not in ask(Path(sys.executable), "json", early="yaml")
    assert "PyYAML" in ask(Path(sys.executable), "json", early="yaml", needed=("yaml", "never_imported"))


def test_a_package_installed_from_a_folder_is_carried_as_it_was_installed(tmp_path, monkeypatch):
    folder = project(tmp_path, "frozenlib")
    install(Path(sys.executable), "--target", tmp_path / "site", folder)
    (folder / "frozenlib" / "__init__.py").write_text("value = 'changed since'\n")
    monkeypatch.syspath_prepend(tmp_path / "site")

    (carried,) = requirements.carry([Requirement("frozenlib", "1.0", "local", str(folder))], tmp_path / "version")

    with zipfile.ZipFile(tmp_path / "version" / carried.line) as archive:
        assert archive.read("frozenlib/__init__.py") == b"value = 42\n"
    install(Path(sys.executable), "--target", tmp_path / "again", tmp_path / "version" / carried.line)
    assert (tmp_path / "again" / "frozenlib" / "__init__.py").read_text() == "value = 42\n"


def test_nbdeploy_itself_is_carried_whole(tmp_path):
    name = requirements.wheels.pack_nbdeploy("0.1.0", tmp_path / "wheels")

    names = zipfile.ZipFile(tmp_path / "wheels" / name).namelist()
    assert {"nbdeploy/__init__.py", "nbdeploy/py.typed", "nbdeploy/notebooks/validate.ipynb"} <= set(names)


def test_a_package_that_cannot_be_built_is_refused_with_the_ways_out(tmp_path):
    folder = project(tmp_path, "broken")
    (folder / "pyproject.toml").write_text(
        "[project]\nname = 'broken'\n[build-system]\nrequires=[]\nbuild-backend='no'\n"
    )

    with pytest.raises(SaveError, match=r"broken 1\.0 is installed from .*Publish it") as caught:
        requirements.carry([Requirement("broken", "1.0", "editable", str(folder))], tmp_path / "version")

    assert caught.value.details
    with pytest.raises(SaveError, match="no longer a project"):
        requirements.carry([Requirement("gone", "1.0", "editable", str(tmp_path / "gone"))], tmp_path / "version")


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("https://me:tok@host/x.git", "https://host/x.git"),
        ("https://tok@host:8/x.git?token=s", "https://host:8/x.git"),
        ("ssh://git:pw@host/x.git", "ssh://git@host/x.git"),
    ],
)
def test_credentials_never_reach_a_requirement(url, clean):
    assert requirements._without_credentials(url) == clean


@pytest.mark.parametrize("line", ["--index-url https://x", "-e .", "not a requirement", "./foo.whl", "", "a\nb"])
def test_what_is_no_requirement_is_refused_and_quoted(line):
    with pytest.raises(SaveError, match="requirements="):
        requirements.check_user([line])


def test_a_distribution_named_twice_is_refused():
    with pytest.raises(SaveError, match="named twice"):
        requirements.check_user(["scikit-learn>1", "Scikit_Learn<9"])


def test_a_line_of_the_user_wins_only_where_it_is_true():
    found = [Requirement("xgboost-cpu", "3.2.0", "index"), Requirement("numpy", "2.1", "index")]

    assert requirements.merge(found, ["xgboost_cpu>=3", "extra[a]>=1"]) == [
        "xgboost_cpu>=3",
        "numpy==2.1",
        "extra[a]>=1",
    ]
    with pytest.raises(SaveError, match=r"numpy<2.*numpy 2\.1"):
        requirements.merge(found, ["numpy<2"])

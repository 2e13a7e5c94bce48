"""``%deploy`` translates a line into a call: variables by name, help, one-line errors, completion."""

from __future__ import annotations

import sys

import pandas as pd
import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

import nbdeploy
from nbdeploy import routing


class Constant:
    """Always says the same."""

    def predict(self, X):
        return [7] * len(X)


X = pd.DataFrame({"a": [1.0, 2.0], "label": [7, 7]})


@pytest.fixture
def shell(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", __file__.rpartition("/")[0])
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)  # IPython would warn of another one than it runs in
    made = InteractiveShell()
    made.run_line_magic("load_ext", "nbdeploy")
    made.user_ns |= {
        "model": Constant(),
        "X_train": X[["a"]],
        "labelled": X,
        "y_train": X["label"],
        "status": Constant(),
    }
    yield made
    made.run_line_magic("unload_ext", "nbdeploy")


def run(shell, line):
    with capture_output() as output:
        result = shell.run_cell(line)
    return result, output.stdout + output.stderr


def test_a_variables_name_is_the_deploy_verb(shell):
    result, _ = run(shell, "%deploy model --name seven --data X_train --target y_train")

    assert result.result.name == "seven"
    assert nbdeploy.versions("seven")[0].labels.tolist() == [7, 7]
    asked, _ = run(shell, "%deploy predict seven X_train")
    assert asked.result["prediction"].tolist() == [7, 7]


def test_a_target_may_be_a_column_of_the_data_and_the_name_the_variables_own(shell):
    run(shell, "%deploy save model --data labelled --target label")

    (version,) = nbdeploy.versions("model")
    assert version.signature.names == ["a"]
    assert version.signature.target == "label"


def test_a_second_version_is_announced_as_a_candidate(shell):
    run(shell, "%deploy model --name seven --data X_train")

    _, said = run(shell, "%deploy model --name seven --data X_train")

    assert "seven:v2 is saved as a candidate; live traffic stays with v1" in said


def test_what_comes_next_for_a_candidate_can_be_run_as_it_stands(shell):
    nbdeploy.save(Constant(), "seven", X[["a"]])
    nbdeploy.save(Constant(), "seven", X[["a"]])
    routing.go_live("seven", "v1", "first release")
    nbdeploy.traffic("seven", v1=90, v2=10)

    _, said = run(shell, "%deploy save model --name seven --data X_train")

    assert "seven:v3 is saved as a candidate; live traffic stays with v1. Next:" in said
    lines = [line.split("  ")[1] for line in said.splitlines() if line.startswith("  %deploy")]
    assert lines == [
        "%deploy validate seven v3", "%deploy traffic seven v1=80 v2=10 v3=10", "%deploy promote seven v3",
    ]  # fmt: skip
    result, _ = run(shell, lines[1])
    assert dict(result.result.weights) == {"v1": 80, "v2": 10, "v3": 10}
    status, _ = run(shell, "%deploy status seven")
    assert status.result["candidates"].tolist() == ["v2 10 %, v3 10 %"]


def test_a_verb_wins_over_a_variable_of_its_name(shell):
    result, _ = run(shell, "%deploy status")

    assert next(iter(result.result.columns)) == "state"


@pytest.mark.parametrize("line", ["%deploy", "%deploy --help", "%deploy help"])
def test_help_lists_the_verbs(shell, line):
    _, said = run(shell, line)

    assert "validate" in said
    assert "%deploy VERB --help" in said


def test_help_of_a_verb_needs_no_other_argument(shell):
    _, said = run(shell, "%deploy validate --help")

    assert "--notebook" in said
    assert "example: %deploy validate flight-delay" in said


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("%deploy valdate x", "Did you mean 'validate'?"),
        ("%deploy modle --data X_train", "Did you mean 'model'?"),
        ("%deploy predict", "required: NAME, DATA"),
        ("%deploy save", "required: MODEL"),
        ("%deploy serve x --port many", "'many' is not a whole number"),
        ('%deploy status "x', "No closing quotation"),
        ("%deploy logs x --colour red", "unrecognized arguments: --colour red"),
    ],
)
def test_a_line_that_does_not_parse_is_one_usage_line(shell, line, says):
    result, said = run(shell, line)

    assert says in said
    assert said.strip().count("\n") == 0
    assert "Traceback" not in said
    assert not result.success


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("%deploy model --name x --data X_trian", "no variable 'X_trian'"),
        ("%deploy deploy modle --data X_train", "Did you mean 'model'?"),
        ("%deploy model --name 'a b' --data X_train", "for example 'a-b'"),
        ("%deploy y_train --name x --data X_train", "has no predict method"),
        ("%deploy serve nothing", "no model is saved as 'nothing'"),
        ("%deploy drift nothing", "no model is saved as 'nothing'"),
        ("%deploy model --data X_train --port 99999", "not a port"),
    ],
)
def test_a_failure_is_two_lines_at_most_and_no_traceback(shell, line, says):
    result, said = run(shell, line)

    assert says in said
    assert said.strip().count("\n") <= 1
    assert "Traceback" not in said
    assert isinstance(result.error_in_exec, nbdeploy.NbdeployError)


def test_braces_and_dollars_stay_as_typed(shell):
    _, said = run(shell, "%deploy serve {model}$HOME")

    assert "{model}$HOME" in said


def complete(shell, text):
    with provisionalcompleter():
        return [found.text for found in shell.Completer.completions(text, len(text))]


def test_verbs_options_variables_deployments_and_versions_complete(shell):
    nbdeploy.save(Constant(), "seven", X)

    assert complete(shell, "%deploy va") == ["validate"]
    assert "model" in complete(shell, "%deploy ")
    assert complete(shell, "%deploy serve ")[:1] == ["seven"]
    assert complete(shell, "%deploy serve seven v") == ["v1"]
    assert "--fail-on-drift" in complete(shell, "%deploy drift seven --")
    assert complete(shell, "%deploy model --data ") == ["X_train", "labelled"]
    assert complete(shell, "%deploy model --target y") == ["y_train"]
    assert complete(shell, "x = 1; va") != ["validate"]


def test_versions_complete_where_traffic_is_split(shell):
    nbdeploy.save(Constant(), "seven", X)
    nbdeploy.save(Constant(), "seven", X)

    assert complete(shell, "%deploy traffic seven v") == ["v1=", "v2="]
    assert complete(shell, "%deploy traffic seven v1=90 v") == ["v2="]
    assert complete(shell, "%deploy traffic seven v1=90 v2=10 --stic") == ["--sticky"]
    assert complete(shell, "%deploy traffic seven --shadow ") == ["v2", "v1"]
    assert complete(shell, "%deploy promote seven ")[:2] == ["v2", "v1"]


def test_loading_twice_is_as_good_as_once(shell):
    shell.run_line_magic("reload_ext", "nbdeploy")

    assert complete(shell, "%deploy va") == ["validate"]


def test_loading_the_extension_loads_nothing_heavy():
    import subprocess

    code = (
        "import sys; from IPython.core.interactiveshell import InteractiveShell as S; s = S(); "
        "s.run_line_magic('load_ext', 'nbdeploy'); "
        "print([m for m in ('evidently','papermill','dask','sklearn','pandas','bentoml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"

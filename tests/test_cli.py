"""``nbdeploy VERB``: files for models and frames, one-line errors, JSON, exit codes that mean something."""

from __future__ import annotations

import json
import subprocess
import sys

import cloudpickle
import joblib
import pandas as pd
import pytest

from nbdeploy import verbs
from nbdeploy.__main__ import main


@pytest.fixture
def files(tmp_path, monkeypatch, flight_model, flights):
    monkeypatch.chdir(tmp_path)
    features, late = flights
    joblib.dump(flight_model, "model.joblib")
    (tmp_path / "model.pkl").write_bytes(cloudpickle.dumps(flight_model))
    features.assign(late=late).to_parquet("train.parquet")
    features.head(20).to_csv("ask.csv", index=False)
    late.to_frame().to_csv("late.csv", index=False)
    return tmp_path


def nbdeploy_(*words):
    done = subprocess.run([sys.executable, "-m", "nbdeploy", *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_whole_story_in_a_shell(files, capsys):
    code, out, _ = nbdeploy_(
        "--json", "deploy", "model.joblib", "--name", "flight-delay", "--data", "train.parquet", "--target", "late"
    )
    assert code == 0
    deployed = json.loads(out)
    assert (deployed["version"], deployed["state"]) == ("v1", "live")

    code, out, _ = nbdeploy_("--json", "predict", "flight-delay", "ask.csv", "--proba")
    answers = json.loads(out)["rows"]
    assert code == 0
    assert len(answers) == 20
    assert answers[0]["probability_True"] + answers[0]["probability_False"] == pytest.approx(1)

    code, out, _ = nbdeploy_("status")
    assert code == 0
    assert "flight-delay  live" in out

    code, out, _ = nbdeploy_("--json", "predictions", "flight-delay", "--since", "1h")
    assert code == 0
    assert len(json.loads(out)["rows"]) == 20

    code, out, _ = nbdeploy_("--json", "versions", "flight-delay")
    assert json.loads(out)["rows"][0]["tag"] == "flight-delay:v1"

    code, out, _ = nbdeploy_("logs", "flight-delay", "--lines", "1")
    assert code == 0
    assert out.count("\n") == 1

    code, out, _ = nbdeploy_("stop", "flight-delay")
    assert code == 0
    code, out, err = nbdeploy_("stop", "flight-delay")
    assert (code, out) == (1, "")
    assert err == "nbdeploy: 'flight-delay' is not running. Start it: nbdeploy serve flight-delay.\n"


def test_labels_may_be_a_file_and_the_name_the_models_own(files):
    frame = pd.read_parquet("train.parquet").drop(columns="late")
    frame.to_csv("train.csv", index=False)

    code, _, err = nbdeploy_("save", "model.pkl", "--data", "train.csv", "--target", "late.csv")

    assert code == 0, err
    assert nbdeploy_("--json", "versions", "model")[0] == 0


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["frobnicate"], 2, "'frobnicate' is no verb"),
        (["serv", "x"], 2, "Did you mean 'serve'?"),
        (["predict", "x"], 2, "required: DATA"),
        (["save", "nothing.pkl", "--data", "train.parquet"], 1, "there is no file 'train.parquet'|there is no file 'nothing.pkl'"),
        (["panel"], 1, "needs a notebook"),
        (["serve", "nothing"], 1, "no model is saved as 'nothing'"),
        (["validate", "nothing", "-p", "oops"], 1, "'oops' is not a parameter"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_and_a_code(words, code, says, capsys):
    import re

    assert main(words) == code

    captured = capsys.readouterr()
    assert re.search(says, captured.err)
    assert captured.err.strip().count("\n") == 0
    assert captured.out == ""


def test_a_home_that_cannot_be_made_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("NBDEPLOY_HOME", "/proc/nbdeploy")

    assert main(["status"]) == 1
    assert capsys.readouterr().err.startswith("nbdeploy: the folder /proc/nbdeploy cannot be made")


def test_errors_are_json_too(capsys):
    assert main(["--json", "serve", "nothing"]) == 1

    assert json.loads(capsys.readouterr().out)["kind"] == "NotFound"


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_every_verb_has_help(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert verbs.VERBS[verb].example in capsys.readouterr().out


@pytest.mark.parametrize("words, found", [
    (["traffic", "n", "--sticky", "c", "v1=90", "v2=10"], {"weights": ["v1=90", "v2=10"], "sticky": "c"}),
    (["traffic", "n", "v1=90", "--pin", "v2=10"], {"weights": ["v1=90", "v2=10"], "pin": True}),
    (["traffic", "n"], {"name": "n", "weights": []}),
    (["rollout", "n", "--minutes", "5", "v3"], {"version": "v3", "minutes": 5.0}),
    (["validate", "--require", "n", "v2"], {"name": "n", "version": "v2", "require": True}),
    (["validate", "n", "--require"], {"name": "n", "version": None}),
])  # fmt: skip
def test_options_stand_before_or_after_what_they_are_about(words, found):
    _, values = verbs.parse(words, "nbdeploy")
    assert {key: values[key] for key in found} == found


def test_a_reader_that_goes_away_is_no_error():
    shell = f"'{sys.executable}' -m nbdeploy validate --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("0", "")


def test_help_and_version_are_no_errors(capsys):
    assert main(["--help"]) == main(["drift", "--help"]) == main(["--version"]) == main([]) == 0
    assert "--fail-on-drift" in capsys.readouterr().out


def test_a_file_that_is_no_model_or_frame_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("model.txt", "model.pkl", "frame.csv", "frame.json"):
        (tmp_path / name).write_text("nonsense\x00")

    for model, frame, says in [
        ("model.txt", "frame.csv", "not a .pkl or .joblib"),
        ("model.pkl", "frame.csv", "cannot be read"),
    ]:
        assert main(["save", model, "--data", frame]) == 1
        assert says in capsys.readouterr().err

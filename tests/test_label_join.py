"""Labels find their predictions by keys of the user's own, and what became of each is counted."""

from __future__ import annotations

import datetime as dt
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyClassifier

import nbdeploy
from nbdeploy import __main__, label_join, label_log, prediction_log
from nbdeploy.answers import Output
from nbdeploy.errors import InputError
from nbdeploy.prediction_log import Entry, LogWriter
from nbdeploy.signature_inference import infer_columns
from services import own_home

NAME = "flight-delay"
TRAINING = pd.DataFrame(
    {
        "flight": [1, 2, 10**15 + 1],
        "day": pd.to_datetime(["2026-07-01", "2026-07-02", "2026-07-03"]),
        "date": [dt.date(2026, 7, 1), dt.date(2026, 7, 2), dt.date(2026, 7, 3)],
        "carrier": ["AA", "0012", "2026-07-03"],
        "ratio": np.array([0.1, 0.5, 2.0], dtype="float32"),
        "night": [True, False, True],
        "gate": pd.Categorical([4, 5, 6]),
        "delay": [1.5, None, 3.0],
        "prediction": ["a", "b", "c"],
    }
)
ROWS = {
    "flight": [1, 2, 10**15 + 1],
    "day": ["2026-07-01T00:00:00", "2026-07-02T00:00:00", "2026-07-03T06:00:00"],
    "date": ["2026-07-01", "2026-07-02", "2026-07-03"],
    "carrier": ["AA", "0012", "2026-07-03"],
    "ratio": [0.1, 0.5, 2.0],
    "night": [True, False, True],
    "gate": [4, 5, 6],
    "delay": [1.5, None, 3.0],
    "prediction": ["a", "b", "c"],
}


def log(rows=ROWS, *, name=NAME, when=0.0, sealed=False, frame=None):
    request = prediction_log.new_request_id()
    count = len(next(iter(rows.values())))
    writer = LogWriter(name, infer_columns(TRAINING), outputs=(Output("", "bool"),), keep_every=None)
    assert writer.write(
        [Entry("v1", request, {} if frame is not None else rows, [True] * count, time=when, frame=frame)]
    )
    writer.close()
    if sealed:
        prediction_log.seal(name)
    return prediction_log.prediction_ids(request, count)


def joined(keys, on, **more):
    """Which rows were labelled, with what."""
    given = nbdeploy.label(NAME, pd.DataFrame(keys), on=on, **more)
    return {int(key.rpartition("-")[2]): value for key, value in label_log.read(NAME).items()}, given


# What is the same


@pytest.mark.parametrize("sealed", [False, True], ids=["lines", "parquet"])
@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("flight", [1, 2]),
        ("flight", [1.0, 2.0]),
        ("flight", ["1", " 2"]),
        ("flight", pd.array([1, 2], dtype="Int64")),
        ("flight", pd.array([1, 2], dtype="int8[pyarrow]")),
        ("day", ["2026-07-01", "2026-07-02T00:00"]),
        ("day", pd.to_datetime(["2026-07-01", "2026-07-02"])),
        ("day", pd.to_datetime(["2026-07-01T02:00+02:00", "2026-07-02T02:00+02:00"])),
        ("day", [dt.date(2026, 7, 1), pd.Timestamp("2026-07-02")]),
        ("date", ["2026-07-01", "2026-07-02T00:00:00"]),
        ("date", pd.to_datetime(["2026-07-01", "2026-07-02"])),
        ("date", [dt.date(2026, 7, 1), dt.date(2026, 7, 2)]),
        ("carrier", ["AA", "0012"]),
        ("carrier", pd.Categorical(["AA", "0012"])),
        ("ratio", [0.1, 0.5]),
        ("ratio", ["0.1", "0.5"]),
        ("night", [True, False]),
        ("night", ["true", "False"]),
        ("night", [1, 0]),
        ("gate", [4, 5]),
        ("gate", [4.0, 5.0]),
        ("gate", ["4", "5"]),
        ("prediction", ["a", "b"]),
    ],
)  # fmt: skip
def test_a_key_matches_whatever_its_type_is(key, values, sealed):
    log(sealed=sealed)
    found, given = joined({key: values, "label": [False, True]}, key)
    expected = {0: False, 1: True} if key != "night" else {0: False, 1: True, 2: False}
    assert found == expected
    assert (given.labels, given.new, given.unknown, given.repeated) == (len(expected), len(expected), 0, 0)


def test_rows_that_came_as_arrow_are_joined_too():
    log(frame=TRAINING)
    found, _ = joined({"flight": [2], "date": ["2026-07-02"], "label": ["late"]}, ["flight", "date"])
    assert found == {1: "late"}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("flight", [10**15, 10**15 + 2]),  # floats would not tell them apart
        ("flight", [1.5, None]),
        ("flight", ["one", ""]),
        ("carrier", [12, "aa"]),  # the text 0012 is no number
        ("day", ["01/07/2026", "1.7.2026"]),
        ("day", [pd.NaT, pd.Timestamp("2026-07-03")]),  # at six o'clock, not at midnight
        ("day", [20635, 1.7e18]),
        ("ratio", [np.nan, np.inf]),
        ("delay", [None, np.nan]),  # what is missing is not the same as what is missing
        ("night", [None, 2]),
    ],
)
def test_what_is_something_else_matches_nothing(key, values):
    log()
    found, given = joined({key: pd.Series(values, dtype=object), "label": [1, 2]}, key)
    assert found == {}
    assert (given.labels, given.unknown) == (0, 2)


def test_keys_may_be_levels_of_an_index():
    log()
    frame = pd.DataFrame({"flight": [2, 1], "carrier": ["0012", "AA"], "label": [True, False]})
    for labels in (frame.set_index(["flight", "carrier"])["label"], frame.set_index("flight")):
        nbdeploy.label(NAME, labels, on=["flight", "carrier"])
        assert sorted(label_log.read(NAME).values()) == [False, True]


def test_large_numbers_are_told_apart():
    log()
    assert joined({"flight": [10**15 + 1, 10**15], "label": [1, 2]}, "flight")[0] == {2: 1}


def test_all_keys_have_to_match_together():
    log({"flight": [1, 1, 2, 2], "date": ["2026-07-01", "2026-07-02"] * 2})
    keys = {"flight": [1, 2, 1], "date": ["2026-07-02", "2026-07-01", "2026-07-09"], "label": ["a", "b", "c"]}
    found, given = joined(keys, ["flight", "date"])
    assert found == {1: "a", 2: "b"}
    assert given.unknown == 1


def test_a_join_agrees_with_pandas():
    rng = np.random.default_rng(0)
    rows = {"flight": rng.integers(0, 40, 3_000).tolist(), "carrier": rng.choice([*"ABCDEFG"], 3_000).tolist(),
            "gate": rng.integers(0, 4, 3_000).tolist()}  # fmt: skip
    ids = log(rows)
    frame = pd.DataFrame({"flight": rng.integers(0, 60, 400), "carrier": rng.choice([*"ABCXYZ"], 400),
                          "gate": rng.integers(0, 6, 400), "label": range(400)})  # fmt: skip
    on = ["flight", "carrier", "gate"]
    last = frame.drop_duplicates(on, keep="last")
    expected = pd.DataFrame(rows).assign(id=ids).merge(last, on=on)

    given = nbdeploy.label(NAME, frame, on=on)

    assert label_log.read(NAME) == dict(zip(expected["id"], expected["label"], strict=True))
    assert given.labels == len(expected)
    assert given.repeated == 400 - len(last)
    assert given.unknown == len(last) - len(expected.drop_duplicates(on))


# Which, and how many


def test_a_key_of_several_predictions_labels_all_of_them():
    log({"flight": [1, 2, 1]})
    log({"flight": [1]}, sealed=True)
    given = nbdeploy.label(NAME, pd.DataFrame({"flight": [1], "label": [True]}), on="flight")
    assert (given.labels, given.new, given.unknown) == (3, 3, 0)


def test_of_a_key_that_comes_twice_the_last_label_counts():
    log()
    found, given = joined({"flight": [1, 1, 2, 1], "label": ["a", "b", "c", "d"]}, "flight")
    assert found == {0: "d", 1: "c"}
    assert (given.labels, given.repeated, given.unknown) == (2, 2, 0)


def test_only_predictions_of_the_window_are_labelled():
    for day in (1, 2, 3):
        log({"flight": [1]}, when=pd.Timestamp(f"2026-07-0{day}T12:00Z").timestamp())
    frame = pd.DataFrame({"flight": [1], "label": [True]})
    assert nbdeploy.label(NAME, frame, on="flight", since="2026-07-02", until="2026-07-03").labels == 1
    assert nbdeploy.label(NAME, frame, on="flight").to_dict() == {
        "name": NAME, "labels": 3, "new": 2, "changed": 0, "repeated": 1, "unknown": 0, "missing": 0,
    }  # fmt: skip


def test_new_changed_repeated_unknown_and_missing_labels_are_counted():
    ids = log()
    nowhere = "f" * 16 + "-0"
    first = nbdeploy.label(NAME, pd.Series([1, 2, None], index=ids, dtype=object))
    assert (first.labels, first.new, first.missing) == (2, 2, 1)

    again = nbdeploy.label(
        NAME, pd.DataFrame({"prediction_id": [*ids, nowhere, ids[2], nowhere], "label": [1, 5, 3, 4, 6, 4]})
    )

    assert again == label_log.Labelled(NAME, labels=4, new=2, changed=1, repeated=3, unknown=1)
    assert repr(again) == (f"4 labels for {NAME}: 2 new, 1 changed, 3 repeated, 1 of no prediction in its log")
    assert label_log.read(NAME) == {ids[0]: 1, ids[1]: 5, ids[2]: 6, nowhere: 4}
    taken = nbdeploy.label(NAME, {ids[0]: None, ids[1]: 5.0})
    assert (taken.labels, taken.new, taken.changed, taken.repeated) == (2, 0, 1, 1)


def test_an_unknown_label_counts_as_soon_as_its_prediction_is_there():
    log()
    request = "ab" * 8
    assert nbdeploy.label(NAME, {f"{request}-0": True}).unknown == 1
    with_it = LogWriter(NAME, infer_columns(TRAINING), outputs=(Output("", "bool"),), keep_every=None)
    with_it.write([Entry("v1", request, {"flight": [9]}, [True])])
    with_it.close()
    assert nbdeploy.predictions(NAME).set_index("prediction_id")["label"][f"{request}-0"] == True  # noqa: E712


def test_labels_of_another_deployment_are_refused_and_some_are_only_unknown():
    ids, others = log(), log(name="other")
    with pytest.raises(InputError, match=r"all 3 labels are of predictions of 'other', and of none of 'flight-delay'"):
        nbdeploy.label(NAME, dict.fromkeys(others, 1))
    with pytest.raises(InputError, match=r"this label is of a prediction of 'other'"):
        nbdeploy.label(NAME, {others[0]: 1})
    assert label_log.read(NAME) == {}
    assert nbdeploy.label(NAME, {ids[0]: 1, others[0]: 1}).unknown == 1
    assert nbdeploy.label(NAME, {others[0]: 1, "f" * 16 + "-0": 1}).unknown == 2


def test_to_know_some_ids_no_other_column_is_read(monkeypatch):
    ids = log(sealed=True)
    read = []
    real = prediction_log.scan

    def scan(name, **options):
        for rows in real(name, **options):
            read.append(rows.table.column_names)
            yield rows

    monkeypatch.setattr(prediction_log, "scan", scan)
    assert label_join.known(NAME, [*ids, "f" * 16 + "-0"]) == {*ids}
    nbdeploy.label(NAME, pd.DataFrame({"flight": [1], "label": [1]}), on="flight")
    assert read == [["prediction_id"], ["flight", "prediction_id"]]


def test_the_verb_joins_a_file(tmp_path, capsys):
    log()
    frame = pd.DataFrame({"flight": [1, 2, 3], "day": ["2026-07-01", "2026-07-02", "2026-07-03"], "late": [0, 1, 1]})
    frame.to_csv(tmp_path / "labels.csv", index=False)

    line = ["label", NAME, str(tmp_path / "labels.csv"), "--on", "flight", "--on", "day", "--target", "late"]
    assert __main__.main(["--json", *line]) == 0

    told = json.loads(capsys.readouterr().out)
    assert (told["labels"], told["new"], told["unknown"]) == (2, 2, 1)
    assert __main__.main(line) == 0
    assert "2 labels for flight-delay: 2 repeated, 1 of no prediction in its log" in capsys.readouterr().out


# What cannot be joined


@pytest.fixture(scope="module")
def _saved():
    X = pd.DataFrame({"flight": [1, 2] * 20, "ssn": ["a", "b"] * 20, "mail": ["c", "d"] * 20})
    y = pd.Series([0, 1] * 20, name="late")
    with own_home() as home:
        model = DummyClassifier().fit(X, y)
        nbdeploy.save(model, NAME, X, y, private={"ssn": "drop", "mail": "hash"}, progress=False)
        yield home


@pytest.fixture
def saved(_saved, monkeypatch, tmp_path):
    shutil.copytree(_saved, tmp_path / "home")
    monkeypatch.setenv("NBDEPLOY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BENTOML_HOME", str(_saved.parent / "bentoml"))


def test_private_inputs_cannot_be_joined_on(saved):
    frame = pd.DataFrame({"ssn": ["a"], "mail": ["c"], "label": [1]})
    for key, held in (("ssn", "none of"), ("mail", "only hashes of")):
        with pytest.raises(
            InputError, match=f"the input '{key}' of {NAME} is private: its log holds {held} its values"
        ):
            nbdeploy.label(NAME, frame, on=key)


def test_the_outcome_may_be_called_as_in_training(saved):
    log({"flight": [1, 2]})
    assert nbdeploy.label(NAME, pd.DataFrame({"flight": [1], "late": [1]}), on="flight").labels == 1
    assert nbdeploy.label(NAME, pd.DataFrame({"flight": [1], "late": [1], "label": [0]}), on="flight").changed == 1


@pytest.mark.parametrize(
    ("frame", "on", "told"),
    [
        ({"flight": [1], "label": [1]}, ["fligth"], r"no column 'fligth' to join on\. Did you mean 'flight'"),
        ({"fligth": [1], "label": [1]}, ["fligth"], r"has no input 'fligth' to join labels on\. Did you mean 'flight'"),
        ({"flight": [1], "is_late": [1]}, ["flight"], r"columns flight, is_late and no 'label'\. Call its column"),
        ({"flight": [1], "label": [1]}, [], r"joined on nothing\. Name the inputs"),
        ({"flight": [[1]], "label": [1]}, ["flight"], "the column 'flight' .* no single value"),
        ({"flight": [1], "label": [[1]]}, ["flight"], "expected a string, a number, true, false or null"),
    ],
)
def test_what_cannot_be_joined_is_one_line(saved, frame, on, told):
    log({"flight": [1, 2]})
    with pytest.raises(InputError, match=told) as refused:
        nbdeploy.label(NAME, pd.DataFrame(frame), on=on)
    assert "\n" not in str(refused.value)
    assert label_log.read(NAME) == {}


def test_a_window_is_for_joins_and_a_join_is_for_frames(saved):
    ids = log({"flight": [1]})
    with pytest.raises(InputError, match="these come by prediction id"):
        nbdeploy.label(NAME, {ids[0]: 1}, since="1d")
    with pytest.raises(InputError, match=r"labels is a dict, and to be joined it has to be a frame"):
        nbdeploy.label(NAME, {ids[0]: 1}, on="flight")
    with pytest.raises(InputError, match=r"has 2 columns 'label'"):
        nbdeploy.label(NAME, pd.DataFrame([[1, 2, 3]], columns=["flight", "label", "label"]), on="flight")

"""What the model gets and gives is the same in the kernel, in the rehearsal and in the service, or it is not saved."""

from __future__ import annotations

import decimal
import math
import os

import numpy as np
import orjson
import pandas as pd
import pytest

import nbdeploy
from nbdeploy import answers, artifact
from nbdeploy.signature import Signature
from nbdeploy.signature_inference import infer_columns

pytestmark = pytest.mark.usefixtures("importable")


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))


@pytest.fixture
def rehearsed(tmp_path):
    """``rehearsed(model, X, y=None)``: written and rehearsed as `save` does it, in this process."""

    def write(model, X, y=None):
        artifact.write(tmp_path, model, X, y)
        return artifact.rehearse(tmp_path, artifact.manifest(tmp_path))

    return write


class Says:
    """Answers with what `say` makes of the first column."""

    def __init__(self, say):
        self.say = say

    def predict(self, X):
        return self.say(X.iloc[:, 0] if isinstance(X, pd.DataFrame) else X[:, 0])


NUMBERS = pd.DataFrame({"a": [1.0, 2.0, 3.0]})


# -- labels


def test_a_frame_with_integer_labels_is_saved_and_served():
    from sklearn.linear_model import LinearRegression

    frame = pd.DataFrame(np.arange(20.0).reshape(10, 2))
    model = LinearRegression().fit(frame, frame[0])

    nbdeploy.deploy(model, "numbered", frame, frame[0])

    assert list(nbdeploy.versions("numbered")[0].reference.columns) == [0, 1]
    answers = nbdeploy.predict("numbered", frame)
    np.testing.assert_allclose(answers["prediction"], model.predict(frame))


def test_integers_among_string_labels_come_back(rehearsed, tmp_path):
    frame = pd.DataFrame([["x", 1.0], ["y", 2.0]], columns=["a", 1])

    loaded = rehearsed(Says(lambda a: a.str.len()), frame)

    pd.testing.assert_frame_equal(artifact.read_reference(tmp_path, loaded.signature), frame)


# -- missing values


class OnlyLike:
    """Answers only rows whose gaps are of the one kind that it learned."""

    def __init__(self, gap):
        self.gap = gap

    def predict(self, X):
        gaps = [value for value in X["word"] if not isinstance(value, str)]
        if any(type(value) is not type(self.gap) for value in gaps):
            msg = f"got {gaps}, learned {self.gap}"
            raise ValueError(msg)
        return np.arange(len(X)) * 0.0


@pytest.mark.parametrize("gap", [None, math.nan, pd.NA], ids=["None", "nan", "NA"])
@pytest.mark.parametrize("rows", [["x", "gap"], ["gap", "gap"]])
def test_an_object_column_keeps_the_missing_value_of_the_training_frame(gap, rows, rehearsed, tmp_path):
    frame = pd.DataFrame({"word": pd.Series([gap if word == "gap" else word for word in rows], dtype=object)})

    loaded = rehearsed(OnlyLike(gap), frame)

    stored = artifact.read_reference(tmp_path, loaded.signature)
    asked = loaded.signature.decode([{"word": None}])
    assert stored["word"].dtype == asked["word"].dtype == object
    assert type(stored["word"][1]) is type(asked["word"][0]) is type(gap)


def test_of_several_missing_values_the_most_frequent_one_is_handed_over():
    frame = pd.DataFrame({"word": pd.Series(["x", None, math.nan, math.nan], dtype=object)})

    (column,) = infer_columns(frame)

    assert column.missing == "nan"


def test_a_signature_that_names_no_missing_value_still_loads():
    told = Signature(columns=infer_columns(pd.DataFrame({"word": ["x", None]}))).to_dict()
    for column in told["columns"]:
        del column["missing"]

    frame = Signature.from_dict(told).decode([{"word": None}])

    assert frame["word"].isna().all()


@pytest.mark.parametrize("gap", [None, math.nan], ids=["None", "nan"])
def test_an_encoder_that_learned_a_gap_answers_one_in_a_service(gap):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    frame = pd.DataFrame({"word": pd.Series(["x", "y", gap] * 4, dtype=object)})
    model = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(frame, [0, 1, 1] * 4)

    nbdeploy.deploy(model, "gaps", frame)

    assert nbdeploy.predict("gaps", frame)["prediction"].tolist() == [0, 1, 1] * 4


# -- models that change what they are handed


class Scribbler:
    """Overwrites its rows."""

    def predict(self, X):
        X["a"] = X["a"] * 2
        return X["a"].to_numpy()

    def predict_proba(self, X):
        X["a"] = 0.5
        return np.column_stack([X["a"], X["a"]])

    classes_ = np.array([0, 1])


class ArrayScribbler:
    def predict(self, X):
        X[:] = X * 2
        return X[:, 0]


def test_what_a_model_writes_into_its_rows_stays_there(rehearsed, tmp_path):
    mine = NUMBERS.copy()
    loaded = rehearsed(Scribbler(), mine)
    asked = NUMBERS.copy()
    loaded.outputs(asked)

    for frame in (mine, asked, artifact.read_reference(tmp_path, loaded.signature)):
        pd.testing.assert_frame_equal(frame, NUMBERS)


def test_the_same_for_arrays(rehearsed, tmp_path):
    mine = np.arange(6.0).reshape(3, 2)

    loaded = rehearsed(ArrayScribbler(), mine)

    assert (mine == np.arange(6.0).reshape(3, 2)).all()
    assert (artifact.read_reference(tmp_path, loaded.signature).to_numpy() == mine).all()


# -- several outputs


@pytest.mark.parametrize("labels", [np.zeros((3, 2)), pd.DataFrame(np.zeros((3, 2))), [[1, 2]] * 3])
def test_several_label_columns_are_one_line(labels, rehearsed):
    with pytest.raises(nbdeploy.SaveError, match=r"y has the shape \(3, 2\)") as refused:
        rehearsed(Says(lambda a: a), NUMBERS, labels)

    assert "\n" not in str(refused.value)


def test_one_column_of_labels_may_be_two_dimensional(rehearsed, tmp_path):
    rehearsed(Says(lambda a: a), NUMBERS, np.array([[1], [2], [3]]))

    assert artifact.read_frame(tmp_path / artifact.LABELS)["target"].tolist() == [1, 2, 3]


def test_a_classifier_of_several_targets_answers_with_the_probabilities_of_each():
    from sklearn.tree import DecisionTreeClassifier

    frame = pd.DataFrame({"a": np.arange(9.0)})
    labels = pd.DataFrame({"big": np.arange(9) > 3, "kind": np.arange(9) % 3})
    model = DecisionTreeClassifier(random_state=0, max_depth=2).fit(frame, labels)

    nbdeploy.deploy(model, "several", frame, labels)
    version = nbdeploy.versions("several")[0]
    asked = nbdeploy.predict("several", frame, proba=True)

    assert version.signature.classes == ((0, 1), (0, 1, 2))
    assert version.labels.columns.tolist() == ["big", "kind"]
    np.testing.assert_array_equal(np.stack(asked["prediction"]), model.predict(frame))
    for target, scores in enumerate(model.predict_proba(frame)):
        columns = [f"probability_{target}_{label}" for label in range(scores.shape[1])]
        np.testing.assert_allclose(asked[columns], scores)


@pytest.mark.parametrize(
    "say",
    [
        lambda a: np.column_stack([a, a * 2]),
        lambda a: np.column_stack([a, np.full(len(a), np.nan)]),
        lambda a: np.column_stack([a, a]).astype(str),
        lambda a: pd.DataFrame({"x": a, "y": a}),
        lambda a: np.stack([np.column_stack([a, a])] * 2, axis=1),
    ],
    ids=["numbers", "gaps", "strings", "frame", "three dimensions"],
)
def test_predictions_of_several_values_are_stored_and_rehearsed(say, rehearsed):
    loaded = rehearsed(Says(say), NUMBERS)

    assert len(loaded.outputs(NUMBERS)) == 3


def test_predictions_of_several_values_that_differ_are_found():
    want = pd.DataFrame({"prediction": [[1.0, 2.0], [3.0, 4.0]]})

    assert answers.first_difference(want, want.copy()) == ""
    assert "row 1" in answers.first_difference(want, pd.DataFrame({"prediction": [[1.0, 2.0], [3.0, 4.5]]}))
    assert "row 1" in answers.first_difference(want, pd.DataFrame({"prediction": [[1.0, 2.0], [3.0]]}))
    assert "row 1" in answers.first_difference(want, pd.DataFrame({"prediction": [[1.0, 2.0], 3.0]}))
    ragged = pd.DataFrame({"prediction": [[[1.0], [1.0, 2.0]]]})
    assert answers.first_difference(ragged, ragged.copy()) == ""


# -- models that could never answer a request


@pytest.mark.parametrize(
    "say",
    [
        lambda a: np.array([1] * len(a), dtype="timedelta64[s]"),
        lambda a: np.squeeze(a.to_numpy()),
        lambda a: a.to_numpy() - a.mean(),
    ],
    ids=["timedelta", "squeezed", "depends on the other rows"],
)
def test_a_model_that_fails_on_json_is_not_saved(say, rehearsed):
    with pytest.raises(
        nbdeploy.RehearsalError, match=r"the model fails on (one row|3 rows) that came as JSON"
    ) as refused:
        rehearsed(Says(say), NUMBERS)

    assert "\n" not in str(refused.value)


def test_a_model_whose_rows_depend_on_each_other_is_saved_as_one_that_must_not_be_batched():
    ranks, frame = Says(lambda a: a.rank().to_numpy()), NUMBERS[::-1].reset_index(drop=True)

    with pytest.raises(nbdeploy.RehearsalError, match="unbatched=True"):
        nbdeploy.save(ranks, "ranks", frame)
    nbdeploy.deploy(ranks, "ranks", frame, unbatched=True)

    assert nbdeploy.predict("ranks", NUMBERS.tail(2))["prediction"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("say", "frame"),
    [
        (lambda a: a.to_numpy() * 1j, NUMBERS),
        (lambda a: np.array(["\ud800"] * len(a), dtype=object), NUMBERS),
        (lambda a: np.array([{1, 2}] * len(a), dtype=object), NUMBERS),
        (lambda a: [decimal.Decimal(1)] * len(a), NUMBERS),
        (lambda a: np.array([b"x"] * len(a), dtype=object), NUMBERS),
        (lambda a: np.zeros(len(a)), pd.DataFrame({"a": pd.Series(["\ud800", "x"], dtype=object)})),
        (lambda a: np.zeros(len(a)), pd.DataFrame({"a": pd.cut([1, 2, 3], 2)})),
        (lambda a: np.zeros(len(a)), pd.DataFrame({"a": pd.Categorical(pd.to_datetime(["2013-01-01", "2013-01-02"]))})),
        (lambda a: np.zeros(len(a)), pd.DataFrame({"a": pd.arrays.SparseArray([0, 0, 1])})),
        (lambda a: [pd.Period("2013")] * len(a), NUMBERS),
    ],
    ids=[
        "complex",
        "surrogate answers",
        "sets",
        "Decimal",
        "bytes",
        "surrogates",
        "intervals",
        "dates as categories",
        "sparse",
        "Period",
    ],
)
def test_what_cannot_be_stored_or_sent_is_one_line(say, frame, rehearsed):
    with pytest.raises(nbdeploy.SaveError) as refused:
        rehearsed(Says(say), frame)

    assert "\n" not in str(refused.value)


def test_a_frame_of_many_types_passes_through_json(rehearsed):
    frame = pd.DataFrame(
        {
            "size": [0.5, math.nan, math.inf],
            "half": pd.Series([0.5, 1.5, 2.5], dtype="float32"),
            "many": pd.array([1, None, 3], dtype="Int64"),
            "kind": pd.Categorical(["x", None, "x"], categories=["y", "x"], ordered=True),
            "when": pd.to_datetime(["2013-01-01", None, "2013-01-03"]).tz_localize("Europe/Paris"),
            "flag": pd.array([True, None, False], dtype="boolean"),
        }
    )

    loaded = rehearsed(Says(lambda a: np.nan_to_num(a, posinf=7.0)), frame)

    assert loaded.signature.nonfinite
    pd.testing.assert_frame_equal(loaded.signature.decode(loaded.signature.encode(frame)), frame)


def test_single_precision_may_differ_in_its_last_digits(rehearsed):
    rehearsed(Says(lambda a: (a.to_numpy() * (1 + 1e-5 * (len(a) == 1))).astype("float32")), NUMBERS)


def test_attributes_of_the_frame_are_left_behind(rehearsed):
    frame = NUMBERS.copy()
    frame.attrs["what"] = object()

    rehearsed(Says(lambda a: a.to_numpy()), frame)


# -- the rest


def test_columns_called_columns_and_data_are_served():
    frame = pd.DataFrame({"columns": [1.0, 2.0], "data": [3.0, 4.0]})
    signature = Signature(columns=infer_columns(frame))

    asked = orjson.loads(orjson.dumps(signature.encode(frame)))

    pd.testing.assert_frame_equal(signature.decode(asked), frame)

"""Why one row got its answer: contributions that add up, for any model and any mixture of columns."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nbdeploy import artifact, explanations
from nbdeploy.errors import InputError
from nbdeploy.explanations import Explainer

pytest.importorskip("shap")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def _shap():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shap's and numba's own imports
        import shap  # noqa: F401


@pytest.fixture
def keep(tmp_path):
    """A model as a version has it: written, and loaded again."""

    def write_and_load(model, X, y=None, **options):
        folder = tmp_path / "version"
        folder.mkdir()
        artifact.write(folder, model, X, y, artifact.Options(**options))
        loaded = artifact.load(folder, artifact.manifest(folder))
        return loaded, artifact.read_reference(folder, loaded.signature)

    return write_and_load


def assert_adds_up(found, columns):
    for value, shares in zip(found["values"], found["contributions"], strict=True):
        assert list(shares) == columns
        total = np.asarray(found["base"]) + np.sum([np.asarray(share) for share in shares.values()], axis=0)
        np.testing.assert_allclose(total, value, atol=1e-6)


class Linear:
    """2 * number + 10 where the colour is red + days since 2020 + 5 where the count is missing."""

    def predict(self, X):
        assert str(X["colour"].dtype) == "category"
        assert str(X["count"].dtype) == "Int64"
        days = (X["when"] - pd.Timestamp("2020-01-01", tz="UTC")).dt.days
        missing = X["count"].isna().to_numpy(dtype=bool)
        return (2 * X["number"] + 10 * (X["colour"] == "red") + days).to_numpy(dtype=float) + 5 * missing


@pytest.fixture
def mixed():
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "number": rng.normal(size=60),
            "colour": pd.Categorical(rng.choice(["red", "green", "blue"], 60), categories=["red", "green", "blue"]),
            "when": pd.Timestamp("2020-01-01", tz="UTC") + pd.to_timedelta(rng.integers(0, 100, 60), unit="D"),
            "count": pd.array([None if i % 3 == 0 else 2**60 + i for i in range(60)], dtype="Int64"),
        }
    )


def test_contributions_and_base_add_up_to_the_probability_that_the_model_gives(keep, flight_model, flights):
    X, y = flights
    loaded, reference = keep(flight_model, X, y)

    found = Explainer(loaded, reference).explain(X.head(5))

    assert found["output"] == "probability of class True"
    assert_adds_up(found, list(X.columns))
    np.testing.assert_allclose(found["values"], flight_model.predict_proba(X.head(5))[:, 1])
    assert found["background_rows"] == 100
    assert "sampled" in found["method"]


def test_a_column_that_decides_gets_what_it_decides(keep, mixed):
    loaded, reference = keep(Linear(), mixed)

    found = Explainer(loaded, reference).explain(mixed.head(4))

    assert found["method"] == "exact Shapley values"
    assert_adds_up(found, list(mixed.columns))
    days = (mixed["when"] - pd.Timestamp("2020-01-01", tz="UTC")).dt.days
    expected = pd.DataFrame(
        {
            "number": 2 * (mixed["number"] - mixed["number"].mean()),
            "colour": 10.0 * ((mixed["colour"] == "red") - (mixed["colour"] == "red").mean()),
            "when": days - days.mean(),
            "count": 5.0 * (mixed["count"].isna() - mixed["count"].isna().mean()),
        }
    )
    np.testing.assert_allclose(pd.DataFrame(found["contributions"]), expected.head(4), atol=1e-6)


def test_a_row_is_explained_alike_alone_among_others_and_again(keep, flight_model, flights):
    X, y = flights
    explainer = Explainer(*keep(flight_model, X, y))

    together = explainer.explain(X.iloc[[3, 1, 2]])["contributions"]

    assert explainer.explain(X.iloc[[1]])["contributions"] == [together[1]]


def test_numpys_own_generator_stays_as_it_was(keep, mixed):
    explainer = Explainer(*keep(Linear(), mixed))
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.rand()  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002

    explainer.explain(mixed.head(1))

    assert np.random.rand() == expected  # noqa: NPY002


def test_a_category_that_training_never_saw_is_explained_too(keep, mixed):
    loaded, reference = keep(Linear(), mixed)
    row = loaded.signature.decode(loaded.signature.example | {"colour": "violet"})

    assert_adds_up(Explainer(loaded, reference).explain(row), list(mixed.columns))


def test_more_than_two_classes_have_a_number_each(keep):
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier

    X, y = load_iris(return_X_y=True, as_frame=True)
    loaded, reference = keep(RandomForestClassifier(20, random_state=0).fit(X, y), X, y)

    found = Explainer(loaded, reference).explain(X.iloc[[0, 80]])

    assert found["classes"] == [0, 1, 2]
    assert np.shape(found["base"]) == (3,)
    assert_adds_up(found, list(X.columns))


def test_a_classifier_without_probabilities_is_explained_by_its_classes(keep, flights):
    from sklearn.svm import LinearSVC

    X, y = flights
    X = X[["dep_delay", "distance"]]
    loaded, reference = keep(LinearSVC().fit(X, y), X, y)

    found = Explainer(loaded, reference).explain(X.head(3))

    assert found["classes"] == [False, True]
    assert found["output"] == "1 where the answer is this class, else 0"
    assert_adds_up(found, list(X.columns))


def test_several_values_per_row_have_a_number_each(keep):
    from sklearn.linear_model import LinearRegression

    X = np.random.default_rng(0).normal(size=(80, 12))
    loaded, reference = keep(LinearRegression().fit(X, X[:, :3]), X)

    found = Explainer(loaded, reference).explain(reference.head(2))

    assert np.shape(found["values"]) == (2, 3)
    assert_adds_up(found, [column.name for column in loaded.signature.columns])


def test_a_row_like_all_others_owes_nothing_to_any_column(keep):
    X = pd.DataFrame({"a": [1.0] * 5, "b": [2.0] * 5})

    class Sum:
        def predict(self, X):
            return X.sum(axis=1).to_numpy()

    found = Explainer(*keep(Sum(), X)).explain(X.head(1))

    assert found["base"] == 3
    assert found["contributions"] == [{"a": 0.0, "b": 0.0}]


def test_more_than_100_rows_are_refused(keep, mixed):
    explainer = Explainer(*keep(Linear(), mixed))

    with pytest.raises(InputError, match="too many rows") as refused:
        explainer.explain(pd.concat([mixed, mixed]))

    assert refused.value.problems[0]["expected"] == "at most 100 rows"


def test_what_takes_too_long_is_refused_between_two_rows(keep, mixed, monkeypatch):
    monkeypatch.setattr(explanations, "SECONDS", 0.0)

    with pytest.raises(InputError, match="take longer"):
        Explainer(*keep(Linear(), mixed)).explain(mixed.head(3))


def test_a_model_that_cannot_answer_mixtures_says_so_and_no_private_value_is_told(keep):
    X = pd.DataFrame({"name": ["ada", "bob", "cyd"] * 10, "initial": ["a", "b", "c"] * 10})

    class Picky:
        def predict(self, X):
            for name, initial in zip(X["name"], X["initial"], strict=True):
                if name[0] != initial:
                    raise ValueError(name)
            return np.arange(len(X), dtype=float) * 0

    loaded, reference = keep(Picky(), X, private=["name"])

    with pytest.raises(InputError, match="mixtures") as refused:
        Explainer(loaded, reference).explain(X.head(1))

    assert "ValueError" in str(refused.value)
    assert not any(name in str(refused.value.to_dict()) for name in ("ada", "bob", "cyd"))


def test_every_call_of_the_model_takes_its_turn(keep, mixed):
    loaded, reference = keep(Linear(), mixed)
    turns = []

    def call(work):
        turns.append(1)
        return work()

    Explainer(loaded, reference, call=call).explain(mixed.head(1))

    assert turns


def test_wide_models_are_explained_within_bounds(keep):
    from sklearn.linear_model import Ridge

    X = np.random.default_rng(0).normal(size=(200, 300))
    model = Ridge().fit(X, X[:, 0])
    loaded, reference = keep(model, X)
    explainer = Explainer(loaded, reference)

    found = explainer.explain(reference.head(1))

    assert len(explainer.background) == 33
    assert_adds_up(found, [column.name for column in loaded.signature.columns])
    expected = model.coef_ * (X[0] - explainer.background.to_numpy().mean(axis=0))
    np.testing.assert_allclose(list(found["contributions"][0].values()), expected, atol=1e-6)


def test_without_shap_it_is_not_available(monkeypatch):
    assert explanations.available()

    monkeypatch.setattr(explanations.util, "find_spec", lambda _name: None)

    assert not explanations.available()
    assert "nbdeploy[explain]" in explanations.NEEDED


def test_shap_is_not_loaded_before_something_is_explained():
    code = "import sys, nbdeploy.explanations; sys.exit('shap' in sys.modules or 'numba' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# -- to be appended to tests/test_explain.py once /explain and /card are routed --------------------------------


@pytest.fixture
def http(flight_model, flights, monkeypatch, tmp_path):
    from starlette.testclient import TestClient

    from nbdeploy import model_store, serving

    class Service(serving.Predictor):
        app, tag = serving.application(), "flight-delay:v1"

    monkeypatch.setenv(serving.SPEC, str(tmp_path / "spec.json"))
    with model_store.stage(flight_model, "flight-delay", *flights) as staged:
        spec = {"name": "flight-delay", "version": "v1", "path": str(staged.folder), "files": dict(staged.files)}
        (tmp_path / "spec.json").write_text(json.dumps(spec))
        Service()  # as `deploy` does: what it has loaded moves when it is committed
        version = model_store.commit(staged)
    return TestClient(Service.app), version.signature.example


def test_a_service_explains_what_it_predicts(http):
    client, row = http

    found = client.post("/explain", json=[row, row]).json()

    probability = client.post("/predict?proba=true", json=row).json()["probabilities"][0][1]
    assert found["version"] == "v1"
    assert client.get("/card").status_code == 200
    assert found["values"] == pytest.approx([probability] * 2)
    assert_adds_up(found, list(row))


def test_a_service_refuses_what_it_cannot_explain(http, monkeypatch):
    client, row = http

    assert client.post("/explain", json=[row] * 101).json()["problems"][0]["got"] == "101 rows"
    assert client.post("/explain", json={}).status_code == 422
    assert client.post("/explain", content=b"{", headers={"content-type": "application/json"}).status_code == 400
    assert client.post("/explain", content=b"{}").status_code == 415
    monkeypatch.setattr(explanations.util, "find_spec", lambda _name: None)
    refused = client.post("/explain", json=row)
    assert (refused.status_code, refused.json()) == (501, {"error": explanations.NEEDED, "problems": []})


def test_a_service_shows_its_card_without_scripts(http):
    client, _ = http

    page = client.get("/card")

    assert page.status_code == 200
    assert "flight-delay v1" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]

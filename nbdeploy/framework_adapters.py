"""Models of tables: scikit-learn, the gradient boosting libraries and statsmodels."""

from __future__ import annotations

import inspect
import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np

from nbdeploy import pickling
from nbdeploy.errors import SaveError
from nbdeploy.framework import Framework, Pickled, comes_from, is_a, is_from

PICKLED = "The object itself, classes of the notebook included. Loads with the {} it was saved with; loading runs code."
SAMPLE_ROWS = 20


class ScikitLearn(Framework):
    """Estimators and pipelines, transformers and classes of the notebook in them."""

    name = "scikit-learn"
    guarantee = (
        "The fitted object itself, its parts and classes of the notebook included. Loads with the scikit-learn it was "
        "saved with; loading runs code."
    )
    bentoml = "bentoml.sklearn"

    def owns(self, model: Any) -> bool:
        return comes_from(model, "sklearn")


class Skops(ScikitLearn):
    """The same without pickle. BentoML has no module for it."""

    format = "skops"
    by_default = False
    stored = "`saved_model.skops`"
    guarantee = (
        "No pickle: loading builds only the types that were named when it was saved, and runs none of their code. "
        "Classes of the notebook are refused."
    )
    bentoml = ""

    def save(self, model: Any, folder: Path) -> Mapping[str, Any]:
        skops = _skops()
        path = folder / "saved_model.skops"
        try:
            skops.dump(model, path)
        except Exception as error:  # it has none of its own
            msg = f"skops cannot store this {type(model).__name__}: {type(error).__name__}: {error}"
            raise SaveError(msg, "Leave the format out: cloudpickle can.") from error
        kinds = sorted(skops.get_untrusted_types(file=path))
        if own := [kind for kind in kinds if kind.startswith("__main__.")]:
            msg = f"skops would have to run {own[0]}, which is defined in the notebook"
            raise SaveError(msg, "Leave the format out, or move it to an installed package.")
        return {"trusted": kinds}

    def load(self, folder: Path, facts: Mapping[str, Any]) -> Any:
        return _skops().load(folder / "saved_model.skops", trusted=list(facts["trusted"]))


def _skops() -> Any:
    try:
        import skops.io
    except ImportError as error:
        msg = "the format skops needs the package skops"
        raise SaveError(msg, "pip install skops") from error
    return skops.io


class XGBoost(Framework):
    """XGBClassifier, XGBRegressor, XGBRanker and their like, and a `Booster`.

    A `Booster` is asked with all of its trees, as ``booster.predict(DMatrix(X))`` does; the others with the best
    iteration where training stopped early.
    """

    name = "XGBoost"
    format = "ubj"
    stored = "`saved_model.ubj`"
    guarantee = "XGBoost's own format: later XGBoost versions read it, and loading runs no code."
    bentoml = "bentoml.xgboost"

    def owns(self, model: Any) -> bool:
        if is_a(model, "xgboost", "Booster"):
            return is_from(model, "xgboost")
        plain = getattr(sys.modules.get("xgboost"), type(model).__name__, None) is type(model)
        # A loss of one's own is no part of the native format.
        return plain and is_a(model, "xgboost", "XGBModel") and not callable(getattr(model, "objective", None))

    def save(self, model: Any, folder: Path) -> Mapping[str, Any]:
        model.save_model(folder / "saved_model.ubj")
        options = {"model_class": type(model).__name__}
        return {"bentoml": options, "bentoml_api": "v2", "parameters": _plain_parameters(model)}

    def load(self, folder: Path, facts: Mapping[str, Any]) -> Any:
        import xgboost

        kind = getattr(xgboost, facts["bentoml"]["model_class"])
        if kind is xgboost.Booster:
            return kind(model_file=folder / "saved_model.ubj")
        model = kind(**facts["parameters"])
        model.load_model(folder / "saved_model.ubj")
        if "enable_categorical" in facts["parameters"]:
            model.enable_categorical = facts["parameters"]["enable_categorical"]
        return model

    def predict(self, model: Any, inputs: Any) -> Any:
        if not is_a(model, "xgboost", "Booster"):
            return model.predict(inputs)
        import xgboost

        names = None if hasattr(inputs, "columns") or hasattr(inputs, "column_names") else model.feature_names
        return model.predict(xgboost.DMatrix(inputs, feature_names=names, enable_categorical=True))

    def classes(self, model: Any) -> Any:
        if is_a(model, "xgboost", "Booster") or _has_several_targets(model):
            return None
        return super().classes(model)

    def inputs(self, model: Any) -> Sequence[str] | None:
        return model.feature_names if is_a(model, "xgboost", "Booster") else super().inputs(model)


class XGBoostObject(Pickled, XGBoost):
    """A subclass defined by the user, or a model with a loss of one's own."""

    guarantee = PICKLED.format("XGBoost")

    def owns(self, model: Any) -> bool:
        return comes_from(model, "xgboost")


def _has_several_targets(model: Any) -> bool:
    if not is_a(model, "xgboost", "XGBModel"):
        return False
    config = json.loads(model.get_booster().save_config())
    return int(config["learner"]["learner_model_param"].get("num_target", 1)) > 1


def _plain_parameters(model: Any) -> dict[str, Any]:
    """The parameters that JSON can hold and that are not at their default."""
    if not hasattr(model, "get_params"):
        return {}
    given = {
        name: value.item() if isinstance(value, np.generic) else value for name, value in model.get_params().items()
    }
    kinds = (bool, int, float, str)
    return {name: value for name, value in given.items() if isinstance(value, kinds) and value == value}


class LightGBM(Framework):
    """A `Booster`, categories of a frame included.

    BentoML names the file as if it were binary; it is text.
    """

    name = "LightGBM"
    format = "text"
    stored = "`saved_model.ubj`"
    guarantee = "LightGBM's own text format: later LightGBM versions read it, and loading runs no code."
    bentoml = "bentoml.lightgbm"

    def owns(self, model: Any) -> bool:
        return is_a(model, "lightgbm", "Booster") and is_from(model, "lightgbm")

    def save(self, model: Any, folder: Path) -> Mapping[str, Any]:
        (folder / "saved_model.ubj").write_text(model.model_to_string(), encoding="utf-8")
        return {}

    def load(self, folder: Path, facts: Mapping[str, Any]) -> Any:
        import lightgbm

        return lightgbm.Booster(model_file=folder / "saved_model.ubj")

    def classes(self, model: Any) -> Any:
        return None

    def inputs(self, model: Any) -> Sequence[str] | None:
        # LightGBM writes an underscore for every space, and makes names up for an array.
        names = [str(name) for name in model.feature_name()]
        return None if any("_" in name for name in names) else names


class LightGBMObject(Pickled, LightGBM):
    """LGBMClassifier, LGBMRegressor, LGBMRanker: the text format forgets their classes and parameters."""

    guarantee = PICKLED.format("LightGBM and scikit-learn")

    def owns(self, model: Any) -> bool:
        return comes_from(model, "lightgbm")

    def classes(self, model: Any) -> Any:
        return Framework.classes(self, model)

    def inputs(self, model: Any) -> Sequence[str] | None:
        booster = model if is_a(model, "lightgbm", "Booster") else getattr(model, "booster_", None)
        return None if booster is None else super().inputs(booster)


class CatBoost(Framework):
    """CatBoostClassifier, CatBoostRegressor, CatBoostRanker and CatBoost. A column of labels becomes flat."""

    name = "CatBoost"
    format = "cbm"
    stored = "`saved_model.cbm`"
    guarantee = "CatBoost's own format: later CatBoost versions read it, and loading runs no code."
    bentoml = "bentoml.catboost"

    def owns(self, model: Any) -> bool:
        plain = getattr(sys.modules.get("catboost"), type(model).__name__, None) is type(model)
        return plain and is_a(model, "catboost", "CatBoost")

    def save(self, model: Any, folder: Path) -> Mapping[str, Any]:
        model.save_model(str(folder / "saved_model.cbm"))
        return {"bentoml": {"training_class_name": type(model).__name__}}

    def load(self, folder: Path, facts: Mapping[str, Any]) -> Any:
        import catboost

        model = getattr(catboost, facts["bentoml"]["training_class_name"])()
        return model.load_model(str(folder / "saved_model.cbm"))

    def predict(self, model: Any, inputs: Any) -> Any:
        answer = np.asarray(model.predict(inputs))
        return answer[:, 0] if answer.ndim == 2 and answer.shape[1] == 1 else answer

    def inputs(self, model: Any) -> Sequence[str] | None:
        names = [str(name) for name in model.feature_names_ or ()]
        made_up = names == [str(i) for i in range(len(names))]  # for an array
        return None if made_up else names


class CatBoostObject(Pickled, CatBoost):
    """A subclass defined by the user."""

    guarantee = PICKLED.format("CatBoost")

    def owns(self, model: Any) -> bool:
        return comes_from(model, "catboost")


class Statsmodels(Framework):
    """Fitted results: of arrays and frames with their constant, and of formulas.

    The training data inside of them is left out where the predictions stay the same without it. What a formula takes
    from the notebook, ``np`` or a function, goes along.
    """

    name = "statsmodels"
    guarantee = (
        "The results without their training data where they predict alike without it: summaries may not work. "
        "Loads with the statsmodels it was saved with; loading runs code."
    )

    def owns(self, model: Any) -> bool:
        return comes_from(model, "statsmodels")

    def predict(self, model: Any, inputs: Any) -> Any:
        if not hasattr(model, "params"):
            msg = f"this {type(model).__name__} is not fitted"
            raise SaveError(msg, "Pass the results: model.fit().")
        if "exog" not in inspect.signature(model.predict).parameters:
            msg = f"a {type(model).__name__} predicts moments, not rows"
            raise SaveError(msg, "Save a function that takes the rows and calls its forecast.")
        return model.predict(inputs)

    def save(self, model: Any, folder: Path) -> Mapping[str, Any]:
        names = _formula_names(model)
        with (folder / "saved_model.pkl").open("wb") as file:
            pickling.dump(_Results(_slim(model, names), names) if names else _slim(model, names), file)
        return {}

    def inputs(self, model: Any) -> Sequence[str] | None:
        given: Any = getattr(_data(model), "orig_exog", None)
        if not hasattr(given, "columns") or getattr(_data(model), "formula", None) is not None:
            return None
        return [str(name) for name in given.columns]

    def parameters(self, model: Any) -> Mapping[str, Any]:
        formula = getattr(_data(model), "formula", None)
        kind = type(getattr(model, "model", model)).__name__
        return {"model": kind} | ({"formula": str(formula)} if formula is not None else {})


class _Results:
    """Results whose formula needs names of the notebook. Unpickled, they are the results themselves."""

    def __init__(self, results: Any, names: Mapping[str, Any]) -> None:
        self.results, self.names = results, names

    def __reduce__(self) -> tuple[Any, ...]:
        file = io.BytesIO()
        pickling.dump(self.results, file)
        return _unpickled, (dict(self.names), file.getvalue())


def _unpickled(names: dict[str, Any], pickled: bytes) -> Any:
    # statsmodels evaluates the formula in the frame of whoever unpickles.
    space = {**names, " load": cloudpickle.loads, " pickled": pickled}
    return eval("globals()[' load'](globals()[' pickled'])", space)  # noqa: S307  constant


def _formula_names(model: Any) -> dict[str, Any]:
    formula = getattr(_data(model), "formula", None)
    if formula is None:
        return {}
    columns = getattr(getattr(_data(model), "frame", None), "columns", ())
    here = vars(sys.modules["__main__"])
    found = {}
    for name, call in re.findall(r"([^\W\d]\w*)\s*(\()?", str(formula)):
        # A C that is a frame by now is not the C of C(column).
        if name in here and name not in columns and (callable(here[name]) or not call):
            found[name] = here[name]
    return found


def _slim(model: Any, names: Mapping[str, Any]) -> Any:
    """A copy without training data, or the model itself where it needs them."""
    try:
        slim = _copied(model, names)
        slim.remove_data()
        slim = _copied(slim, names)
        data = _data(model)
        frame = getattr(data, "frame", None)
        some = data.orig_exog if frame is None else frame
        some = some.iloc[:SAMPLE_ROWS] if hasattr(some, "iloc") else some[:SAMPLE_ROWS]
        alike = np.array_equal(np.asarray(model.predict(some)), np.asarray(slim.predict(some)), equal_nan=True)
    except Exception:  # noqa: BLE001  whatever it is that cannot do without
        return model
    return slim if alike else model


def _copied(model: Any, names: Mapping[str, Any]) -> Any:
    return _unpickled(dict(names), cloudpickle.dumps(model))


def _data(model: Any) -> Any:
    return getattr(getattr(model, "model", None), "data", None)


TABULAR: tuple[Framework, ...] = (
    XGBoost(),
    XGBoostObject(),
    LightGBM(),
    LightGBMObject(),
    CatBoost(),
    CatBoostObject(),
    Statsmodels(),
    ScikitLearn(),
    Skops(),
)

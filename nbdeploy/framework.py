"""How the models of one library are recognised, stored, loaded and asked: the protocol, and Python objects."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from nbdeploy import pickling


class Framework:
    """One library's models, in one format. Subclass it, and `nbdeploy.register` an instance, to add another.

    The base class is how Python objects are handled: pickled by cloudpickle, asked through ``predict`` or, without
    one, called. A subclass says what is different.

    Attributes
    ----------
    name : str
        The library, as people call it.
    format : str
        What the model is stored as; ``save(format=...)`` asks for it.
    by_default : bool
        False where a model is stored like this only if asked for.
    stored : str
        The files that hold the model, for people.
    guarantee : str
        What holds when it is loaded elsewhere, for people.
    bentoml : str
        BentoML's own module that loads these files as they are, or ''.
    lasting : bool
        Whether a loaded model still needs its files.
    """

    name: ClassVar[str] = "Python object"
    format: ClassVar[str] = "cloudpickle"
    by_default: ClassVar[bool] = True
    stored: ClassVar[str] = "`saved_model.pkl`"
    guarantee: ClassVar[str] = (
        "The object itself, classes and functions of the notebook included. Loads with the Python and the library "
        "versions that it was saved with; loading runs code."
    )
    bentoml: ClassVar[str] = "bentoml.picklable_model"
    lasting: ClassVar[bool] = False

    def owns(self, model: Any) -> bool:
        """Whether this is a model for this framework. Must not import the library."""
        return not isinstance(model, (str, Path))

    def save(self, model: Any, folder: Path) -> Mapping[str, Any]:
        """Write the model into `folder`; what is returned, JSON values, is handed to `load`.

        Two keys are for BentoML's own module: ``bentoml``, the options that it needs, and ``bentoml_api``, the
        version of its layout (``v1`` by default).
        """
        with (folder / "saved_model.pkl").open("wb") as file:
            pickling.dump(model, file)
        return {}

    def load(self, folder: Path, facts: Mapping[str, Any]) -> Any:
        """The model again, in a fresh process."""
        with (folder / "saved_model.pkl").open("rb") as file:
            return pickling.load(file)

    def predict(self, model: Any, inputs: Any) -> Any:
        """One answer per row: an array, series or list; or a frame or mapping of names to arrays."""
        ask = getattr(model, "predict", None)
        return ask(inputs) if callable(ask) else model(inputs)

    def can_predict(self, model: Any) -> bool:
        """Whether there is a way to ask this model."""
        return callable(getattr(model, "predict", None)) or (callable(model) and not isinstance(model, type))

    def classes(self, model: Any) -> Any:
        """The classes in the order of the probabilities, a list of such for several targets; None without any."""
        return getattr(model, "classes_", None) if callable(getattr(model, "predict_proba", None)) else None

    def probabilities(self, model: Any, inputs: Any) -> Any:
        """Shape (rows, classes), or a list of such for several targets."""
        return model.predict_proba(inputs)

    def inputs(self, model: Any) -> Sequence[str] | None:
        """The names of the columns that the model was fitted on, where it knows them."""
        names = getattr(model, "feature_names_in_", None)
        return None if names is None else [str(name) for name in names]

    def optional(self, model: Any) -> Collection[str]:
        """The columns that may have missing values by the model's own account, whatever the training data has."""
        return ()

    def parameters(self, model: Any) -> Mapping[str, Any]:
        """What the model was built with, by name."""
        try:
            return dict(model.get_params(deep=True))
        except Exception:  # noqa: BLE001  anybody's method, or none at all
            return {}

    def training(self, model: Any) -> Any:
        """Training data that the model brings along, for a `save` without X; None where it has none."""
        return None

    def subject(self, model: Any) -> Any:
        """What `model` stands for: itself, unless it is a path or a URI of a stored one."""
        return model


class Pickled(Framework):
    """Mixed into a framework with a format of its own: its models that this format cannot hold, as objects."""

    format = Framework.format
    stored = Framework.stored
    bentoml = Framework.bentoml

    def save(self, model: Any, folder: Path) -> Mapping[str, Any]:
        return Framework.save(self, model, folder)

    def load(self, folder: Path, facts: Mapping[str, Any]) -> Any:
        return Framework.load(self, folder, facts)


def comes_from(model: Any, *packages: str) -> bool:
    """Whether the model's class is, or extends, one of these packages; without importing them."""
    return any(cls.__module__.partition(".")[0] in packages for cls in type(model).__mro__)


def is_from(model: Any, *packages: str) -> bool:
    """Whether the model's own class is one of these packages'."""
    return type(model).__module__.partition(".")[0] in packages


def is_a(model: Any, module: str, name: str) -> bool:
    """Whether the model is an instance of this class; a library that was never imported is not imported now."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(model, kind)


def as_numpy(value: Any) -> Any:
    """Tensors of any library as arrays, in lists, tuples and mappings too; everything else as it is."""
    if isinstance(value, Mapping):
        return {str(name): as_numpy(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)) and any(hasattr(part, "shape") for part in value):
        return {str(i): as_numpy(part) for i, part in enumerate(value)}
    if hasattr(value, "detach"):  # torch
        tensor = value.detach().cpu()
        return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    return np.asarray(value) if hasattr(value, "__array__") else value

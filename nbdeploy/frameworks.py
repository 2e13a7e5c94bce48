"""Which framework stores a model, and the one that stored it: those that come with nbdeploy, and a user's own.

The first that owns a model takes it, plain Python objects come last. `register` puts a user's own first.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbdeploy import pickling
from nbdeploy.errors import SaveError, did_you_mean
from nbdeploy.framework import Framework as Framework  # noqa: PLC0414  its name for everybody else
from nbdeploy.framework_adapters import TABULAR
from nbdeploy.framework_networks import NETWORKS
from nbdeploy.framework_stored import STORED

_registered: list[Framework] = []


def register(framework: Framework) -> None:
    """Let `save` handle a library that nbdeploy does not know, or a known one otherwise.

    The framework is stored with each version that it saves, so that the version loads where nobody registered it.
    The last one registered is asked first.

    Raises
    ------
    SaveError
        It is not an instance of a subclass of `Framework`.
    """
    given: Any = framework
    if not isinstance(given, Framework) or type(given) is Framework:
        msg = f"{type(framework).__name__} is not a framework"
        raise SaveError(msg, "Pass an instance of a subclass of nbdeploy.Framework.")
    _registered[:] = [framework, *(known for known in _registered if _key(known) != _key(framework))]


def built_in() -> list[Framework]:
    """Every framework that comes with nbdeploy, in the order in which they are asked."""
    return [*STORED, *NETWORKS, *TABULAR, Framework()]


def find(model: Any, wanted: str | None = None) -> Framework:
    """The framework that stores `model`, in the format `wanted` if one is named.

    Raises
    ------
    SaveError
        None of them stores it, or not like that.
    """
    everyone = [*_registered, *built_in()]
    owners = [framework for framework in everyone if framework.owns(model)]
    if any(type(framework) is not Framework for framework in owners if framework not in _registered):
        owners = [framework for framework in owners if type(framework) is not Framework]  # they know better
    if wanted is None:
        chosen = next((framework for framework in owners if framework.by_default), None)
    else:
        chosen = next((framework for framework in owners if framework.format == wanted), None)
    if chosen is not None:
        return chosen
    if wanted is not None and owners:
        known = list(dict.fromkeys(framework.format for framework in owners))
        msg = f"a {type(model).__name__} cannot be stored as {wanted!r}"
        raise SaveError(msg, did_you_mean(wanted, known) or f"It can be stored as {', '.join(known)}.")
    named = isinstance(model, (str, Path))
    msg = f"{str(model)[:120]!r} is not a model" if named else f"no framework stores a {type(model).__name__}"
    raise SaveError(msg, "Pass a fitted model, or the path or URI of an MLflow or ONNX model.")


def store(framework: Framework, model: Any, folder: Path) -> dict[str, Any]:
    """Write the model, and say how: what `restore` needs, as JSON."""
    facts = framework.save(model, folder)
    known = {_key(each): each for each in built_in()}
    if type(known.get(_key(framework))) is not type(framework):
        with (folder / "framework.pkl").open("wb") as file:
            pickling.dump(framework, file)
    return {"framework": framework.name, "format": framework.format, "facts": dict(facts)}


def restore(folder: Path, how: Mapping[str, Any]) -> tuple[Framework, Any]:
    """The framework and the model that `store` wrote."""
    framework = stored_framework(folder, how)
    return framework, framework.load(folder, how["facts"])


def stored_framework(folder: Path, how: Mapping[str, Any]) -> Framework:
    """The framework of a stored model: the user's own, where one came along."""
    if (folder / "framework.pkl").is_file():
        with (folder / "framework.pkl").open("rb") as file:
            own: Framework = pickling.load(file)
        return own
    known = {_key(framework): framework for framework in built_in()}
    try:
        return known[how["framework"], how["format"]]
    except KeyError as error:
        msg = f"no framework here loads {how['framework']} models stored as {how['format']}"
        raise SaveError(msg, "Was it saved by a newer nbdeploy?") from error


def bentoml_module(how: Mapping[str, Any]) -> str:
    """BentoML's own module that loads a stored model, or ''."""
    known = {_key(framework): framework.bentoml for framework in built_in()}
    return known.get((how.get("framework", ""), how.get("format", "")), "")


def table() -> list[dict[str, str]]:
    """What is stored how: one row per framework and format that comes with nbdeploy, in the order asked.

    Returns
    -------
    list of dict
        With the keys ``framework``, ``format``, ``default`` (``yes``, or ``format="..."`` to ask for it), ``stored``,
        ``guaranteed``, ``bentoml`` (BentoML's own module that loads it, or ''), ``bentoml_note`` (what it needs, or
        why there is none) and ``models``.
    """
    return [
        {
            "framework": framework.name,
            "format": framework.format,
            "default": "yes" if framework.by_default else f'format="{framework.format}"',
            "stored": framework.stored,
            "guaranteed": framework.guarantee,
            "bentoml": framework.bentoml,
            "bentoml_note": " ".join(sentence for sentence in said if sentence.startswith("BentoML")),
            "models": said[0],
        }
        for framework in built_in()
        for said in [_sentences(framework)]
    ]


def can_be_asked(framework: Framework, model: Any) -> None:
    """Raise `SaveError` where there is no way to ask the model."""
    if not framework.can_predict(model):
        msg = f"a {type(model).__name__} has no predict method and is not callable"
        if "sklearn" in sys.modules and hasattr(model, "transform"):
            raise SaveError(msg, "Save its transform: nbdeploy.save(model.transform, ...).")
        if hasattr(model, "fit_predict"):
            raise SaveError(msg, "It can only label the rows it was fitted on; choose a model that predicts new ones.")
        raise SaveError(msg, "Pass a fitted model, or a function that takes the rows and returns one answer for each.")


def _sentences(framework: Framework) -> list[str]:
    if type(framework) is Framework:
        return ["Anything else with `predict`, and anything that can be called."]
    return re.split(r"(?<=\.) ", " ".join(str(type(framework).__doc__).split()))


def _key(framework: Framework) -> tuple[str, str]:
    return framework.name, framework.format

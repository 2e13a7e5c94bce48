"""What is read off a model and its labels: inputs, classes, task, labels, made plain and checked."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd

from nbdeploy.answers import Predicted
from nbdeploy.errors import SaveError, did_you_mean
from nbdeploy.framework import Framework
from nbdeploy.signature import Task


def known_inputs(framework: Framework, model: Any) -> Sequence[str] | None:
    """The columns that the model was fitted on, where it can tell."""
    try:
        return framework.inputs(model)
    except SaveError:
        raise
    except Exception:  # noqa: BLE001  anybody's attribute: what it says of itself is no help, X and predict decide
        return None


def check_inputs(known: Sequence[str] | None, given: list[str], model: Any) -> None:
    """Raise `SaveError` where X lacks one of the columns `known`, or has another."""
    missing = [name for name in known or () if name not in given]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        msg = f"X has no column {missing[0]!r}{more}, which the {type(model).__name__} was fitted on"
        others = [name for name in given if name not in (known or ())]
        raise SaveError(msg, did_you_mean(missing[0], others) or "Pass the data that it was fitted on.")
    unseen = [name for name in given if known is not None and name not in known]
    if unseen:
        more = f" (and {len(unseen) - 1} more)" if len(unseen) > 1 else ""
        msg = f"X has the column {unseen[0]!r}{more}, which the {type(model).__name__} never saw"
        raise SaveError(msg, f"Pass the columns that it was fitted on: {', '.join(map(repr, (known or ())[:8]))}.")


def labels_of(y: Any, length: int, rows: np.ndarray[Any, Any], predictions: Predicted) -> pd.DataFrame | None:
    """The true outcomes of the sampled `rows`, a column for each target; None where none were given."""
    if y is None:
        return None
    names = list(y.columns) if hasattr(y, "columns") else [getattr(y, "name", None)]
    try:
        values = np.asarray(y)
    except Exception as error:  # anybody's container
        msg = f"y is a {type(y).__name__} that is no array: {error}"
        raise SaveError(msg, "Pass one label per row.") from error
    shape = values.shape
    if not shape:
        msg = f"y is a {type(y).__name__}, not one label per row"
        raise SaveError(msg, "Pass a series or an array of labels, or none: y is only for measuring the model.")
    if doubled := [name for name in names if names.count(name) > 1]:
        msg = f"y has the column {doubled[0]!r} twice"
        raise SaveError(msg, "Rename one of them.")
    if odd := [name for name in names if not _encodes(str(name))]:
        msg = f"the name of y {odd[0]!r} is no text"
        raise SaveError(msg, "Rename it.")
    if values.ndim == 1:
        values = values[:, None]
    several = isinstance(predictions, np.ndarray) and predictions.ndim == 2 and predictions.shape[1] == shape[-1]
    if values.ndim != 2 or not (values.shape[1] == 1 or several):
        msg = f"y has the shape {shape}"
        raise SaveError(msg, "Pass one column of labels, or none: y is only for measuring the model.")
    if len(values) != length:
        msg = f"y has {len(values)} rows and X has {length}"
        raise SaveError(msg, "Pass the labels of the same rows.")
    if len(names) != values.shape[1]:
        names = [None] if values.shape[1] == 1 else [f"target{i}" for i in range(values.shape[1])]
    frame = {str("target" if name is None else name): pd.Series(values[rows, i]) for i, name in enumerate(names)}
    return pd.DataFrame(frame).infer_objects()


def classes_of(found: Any) -> tuple[Any, ...] | None:
    """What a model calls its classes as JSON values, a tuple of such for each of several targets, or None."""
    found = _listed(found)
    if not found:
        return None
    ranks = {np.ndim(part) for part in found}
    if ranks == {1} and not any(isinstance(part, tuple) for part in found):  # of several targets
        return tuple(_once([_class(label) for label in part]) for part in found)
    return _once([_class(label) for label in found]) if ranks <= {0, 1} else None


def _once(classes: list[Any]) -> tuple[Any, ...]:
    kinds = [(type(label), label) for label in classes]
    if doubled := [label for i, (_, label) in enumerate(kinds) if kinds[i] in kinds[:i]]:
        msg = f"the model's classes_ name {doubled[0]!r} twice"
        raise SaveError(msg, "Its probabilities could not be told apart; give each class its own name.")
    return tuple(classes)


def task_of(model: Any, predictions: Predicted, classes: Any, labels: pd.DataFrame | None) -> Task:
    """What kind of answers these are."""
    known = None
    with suppress(Exception):  # anybody's property
        known = _listed(getattr(model, "classes_", None))
    if classes is not None or known is not None:
        return "classification"
    first = next(iter(predictions.values())) if isinstance(predictions, dict) else predictions
    if first.dtype.kind == "f":
        return "regression"
    if labels is None:
        return "other"
    return "regression" if first.dtype.kind in "iu" and labels.iloc[:, 0].nunique() > 20 else "classification"


# -- helpers ------------------------------------------------------------------------------------------------


def _class(label: Any) -> Any:
    plain = label.item() if isinstance(label, np.generic) and label.dtype.kind not in "mM" else label
    if not isinstance(plain, (bool, int, float, str, type(None))) or (isinstance(plain, str) and not _encodes(plain)):
        msg = f"one of the model's classes_ is {label!r:.80}, a {type(label).__name__}"
        raise SaveError(msg, "Fit it on labels that are numbers, strings or booleans.")
    return plain


def _listed(found: Any) -> list[Any] | None:
    # Some objects have every attribute that they are asked for.
    return list(found) if hasattr(type(found), "__len__") and hasattr(type(found), "__iter__") else None


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True

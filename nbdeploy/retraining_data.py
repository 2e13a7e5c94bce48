"""The labelled log as training data: the rows whose truth is known, as the version learned from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nbdeploy import label_log, model_store, prediction_log
from nbdeploy.answers import PREDICTION
from nbdeploy.errors import NotFound, RetrainError
from nbdeploy.model_store import ModelVersion
from nbdeploy.signature import Signature

LEAST = 30  # labelled rows that a retraining needs, those held out not counted
TARGET = "label"  # where the training data does not name one


@dataclass(frozen=True)
class LabelledRows:
    """What a training notebook gets, and what its gate gets.

    Attributes
    ----------
    training, held_out : DataFrame
        The older rows and the newest ones: the inputs with the dtypes of the training data, and the column `target`.
    target : str
    notes : tuple of str
        What is left out, and why.
    """

    training: pd.DataFrame
    held_out: pd.DataFrame
    target: str
    notes: tuple[str, ...] = ()


def labelled_rows(
    name: str, version: ModelVersion, since: Any = None, until: Any = None, *, holdout: float = 0.0
) -> LabelledRows:
    """The labelled rows of a window of the log, oldest first, as far as they have the inputs of `version`.

    Rows that other versions answered are among them where those take the same inputs. Private columns are in no log, so
    they are not here.

    Parameters
    ----------
    holdout : float
        The share of the newest rows that is kept for the gate.

    Raises
    ------
    RetrainError
        There are too few, or they are none to learn from.
    """
    signature = version.signature
    target = _target(version)
    inputs = [column for column in signature.columns if not column.private]
    notes = [f"the log holds no {column.name!r}, which is private" for column in signature.columns if column.private]
    if odd := [column.name for column in inputs if column.shape]:
        msg = f"{version.tag} takes arrays ({', '.join(odd)[:80]}), which the log does not hold whole"
        raise RetrainError(msg, "Train it from your own data, and save it.")
    reference = version.reference.set_axis([column.name for column in signature.columns], axis=1)
    wanted = reference[[column.name for column in inputs]]
    frames, truths, times = [], [], []
    labels = label_log.read(name)
    for answered_by in model_store.versions(name) if labels else []:
        frame = prediction_log.read(name, _signature_of(name), since, until, labels, version=answered_by.version)
        known = [column.name for column in answered_by.signature.logged]
        label, time = (prediction_log.own_column(word, known) for word in ("label", "time"))
        frame = frame[frame[label].notna()] if len(frame) else frame
        if not len(frame):
            continue
        if lacking := [column for column in wanted if column not in frame]:
            notes.append(f"{len(frame):,} rows of {answered_by.version} lack {', '.join(lacking)[:80]}")
            continue
        frames.append(frame[list(wanted)])
        truths += frame[label].tolist()
        times.append(frame[time].to_numpy("datetime64[ns]"))
    window = "".join(f" {word} {when}" for word, when in (("since", since), ("until", until)) if when is not None)
    if not frames:
        found = "no labelled row"
        raise _too_few(found, window, name, notes, holdout)
    order = np.argsort(np.concatenate(times), kind="stable")
    whole = pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0].reset_index(drop=True)
    whole = pd.DataFrame({column: like(whole[column], wanted[column].dtype) for column in wanted})
    truth, fits = truth_like(truths, _example(version))
    if wrong := int((~fits).sum()):
        bad = next(value for value, good in zip(truths, fits, strict=True) if not good)
        notes.append(f"{wrong:,} labels are no {_kind(_example(version))}, {bad!r:.40} for one")
    whole[target] = truth
    whole = whole.iloc[order[fits[order]]].reset_index(drop=True)
    count = round(len(whole) * holdout) if holdout else 0
    if len(whole) - count < LEAST or (holdout and not count):
        found = f"{len(whole):,} labelled row{'' if len(whole) == 1 else 's'}"
        raise _too_few(found, window, name, notes, holdout)
    cut = len(whole) - count
    return LabelledRows(whole.iloc[:cut], whole.iloc[cut:].reset_index(drop=True), target, tuple(notes))


def like(values: pd.Series, dtype: Any) -> pd.Series:
    """`values` with a training column's dtype, as far as they can have it; categories that training lacks are added."""
    if values.dtype == dtype:
        return values
    if isinstance(dtype, pd.CategoricalDtype):
        known = dtype.categories
        new = sorted({*values.dropna()} - {*known}, key=str)
        return pd.Series(pd.Categorical(values, categories=[*known, *new]), index=values.index)
    try:
        return values.astype(dtype)
    except (ValueError, TypeError, OverflowError):  # a gap where training had none, say
        return values


def truth_like(labels: Sequence[Any], example: pd.Series) -> tuple[pd.Series, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Labels with the dtype of `example`, and which of them can have it; the others are missing."""
    kind = _kind(example)
    read = [_READ[kind](label) for label in labels]
    fits = np.array([value is not None for value in read], dtype=bool)
    filled = pd.Series(read, dtype=object)
    if not fits.all():  # these rows go; until then something of the kind stands there
        filled[~fits] = next((value for value in read if value is not None), None)
    return like(filled, example.dtype) if fits.any() else filled, fits


# -- helpers ------------------------------------------------------------------------------------------------


def _target(version: ModelVersion) -> str:
    target = version.signature.target or TARGET
    if isinstance(version.labels, pd.DataFrame) or PREDICTION not in version.expected:
        msg = f"{version.tag} has several targets, and a label is one value"
        raise RetrainError(msg, "Train it from your own data, and save it.")
    taken = {column.name for column in version.signature.columns}
    while target in taken:
        target += "_"
    return target


def _example(version: ModelVersion) -> pd.Series:
    """Values of what is predicted, with their dtype: what it was trained on, else what it answers."""
    labels = version.labels
    if isinstance(labels, pd.Series):
        return labels
    return version.expected[PREDICTION]


def _kind(example: pd.Series) -> str:
    held = example.cat.categories.to_series() if isinstance(example.dtype, pd.CategoricalDtype) else example
    types = pd.api.types
    if types.is_bool_dtype(held.dtype):
        return "truth value"
    if types.is_integer_dtype(held.dtype):
        return "whole number"
    if types.is_float_dtype(held.dtype):
        return "number"
    if types.is_datetime64_any_dtype(held.dtype):
        return "moment"
    inner = types.infer_dtype(held, skipna=True)
    return {"boolean": "truth value", "integer": "whole number", "floating": "number", "string": "text"}.get(
        inner, "value"
    )


def _truth_value(label: Any) -> bool | None:
    return bool(label) if isinstance(label, (bool, int, float)) and label in (0, 1) else None


def _whole_number(label: Any) -> int | None:
    number = _number(label)
    return int(label) if number is not None and number == int(number) else None


def _number(label: Any) -> float | None:
    return float(label) if isinstance(label, (bool, int, float)) and np.isfinite(label) else None


def _moment(label: Any) -> pd.Timestamp | None:
    read = pd.to_datetime(label, errors="coerce") if isinstance(label, str) else pd.NaT
    return None if read is pd.NaT else read


_READ: dict[str, Any] = {
    "truth value": _truth_value, "whole number": _whole_number, "number": _number, "moment": _moment,
    "text": lambda label: label if isinstance(label, str) else None, "value": lambda label: label,
}  # fmt: skip


def _signature_of(name: str) -> Any:
    known: dict[str, Signature | None] = {}

    def signature_of(version: str) -> Signature | None:
        if version not in known:
            try:
                known[version] = model_store.get(name, version).signature
            except NotFound:
                known[version] = None
        return known[version]

    return signature_of


def _too_few(found: str, window: str, name: str, notes: Sequence[str], holdout: float) -> RetrainError:
    needed = int(np.ceil(LEAST / (1 - holdout)))
    beside = f" ({'; '.join(notes)[:160]})" if notes else ""
    msg = f"{name!r} has {found}{window}, and a retraining needs {needed}{beside}"
    return RetrainError(msg, f"Say what turned out to be true: nbdeploy.label({name!r}, ...).")

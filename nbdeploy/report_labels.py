"""The labelled rows of a report's two sides, with what was answered and what was true as the same words or numbers."""

from __future__ import annotations

from typing import Any

import pandas as pd

from nbdeploy import prediction_log
from nbdeploy.drift_columns import inert
from nbdeploy.errors import ReportError
from nbdeploy.model_store import ModelVersion
from nbdeploy.report_frames import Task, apart, word

MAX_CLASSES = 50
MAX_CLASS = 60  # characters of a class


def judged(
    subject: ModelVersion, task: str, current: pd.DataFrame, reference: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame | None, Task]:
    """The labelled rows of both sides; the reference is None where the version was saved without labels.

    Parameters
    ----------
    task : str
        ``classification`` or ``regression``.
    current, reference : DataFrame
        With the answers; `current` with the log's labels and probabilities too.

    Raises
    ------
    ReportError
        The task is not the model's, nothing is labelled, or the labels are of something else.
    """
    logged = [column.name for column in subject.signature.logged]
    answer, label, scores = (
        prediction_log.own_column(each, logged) for each in ("prediction", "label", "probabilities")
    )
    if subject.signature.task not in (task, "other") or answer not in current:
        raise _unfit(subject, task)
    current = _known(current, label, answer)
    if not len(current):
        msg = f"nothing that {subject.tag} answered in this window is labelled, which a {task} report needs"
        raise ReportError(
            msg, f"Say what turned out to be true: nbdeploy.label({subject.name!r}, labels), then ask again."
        )
    told, truth = None, subject.labels
    if isinstance(truth, pd.Series) and len(truth) == len(reference):
        told = _known(reference.assign(**{label: truth.to_numpy()}), label, answer)
        told = told if len(told) else None
    probabilities, current = current[scores], current.drop(columns=scores)
    if task == "regression":
        sides = [_as_numbers(subject, side, (label, answer)) for side in (current, told) if side is not None]
        return sides[0], sides[1] if len(sides) > 1 else None, Task(task, label, answer)
    words = _as_words(subject, [side for side in (current, told) if side is not None], (label, answer))
    column = ""
    if len(words) == 2 and (chances := _chances(subject, probabilities, told)) is not None:
        column = prediction_log.own_column("probability", [*map(str, current.columns)])
        current = current.assign(**{column: chances[0]})
        told = None if told is None else told.assign(**{column: chances[1]})
    return current, told, Task(task, label, answer, column, words)


def _unfit(subject: ModelVersion, task: str) -> ReportError:
    own = subject.signature.task
    if own in ("other", task):
        msg = f"{subject.tag} has no single answer to a row, which a {task} report needs"
        return ReportError(msg, "See the summary: preset='summary'.")
    msg = f"{subject.tag} is a {own} model, which a {task} report does not fit"
    return ReportError(msg, f"Ask for preset={own!r}.")


def _known(side: pd.DataFrame, label: str, answer: str) -> pd.DataFrame:
    return side[side[label].notna() & side[answer].notna()].reset_index(drop=True)


def _as_numbers(subject: ModelVersion, side: pd.DataFrame, columns: tuple[str, str]) -> pd.DataFrame:
    for column in columns:
        if odd := [value for value in side[column] if isinstance(value, (str, bool))]:
            found = inert(str(odd[0]), MAX_CLASS)
            msg = f"a regression report needs numbers, and {subject.name} has labels or answers like {found!r}"
            raise ReportError(msg, f"Label its predictions with numbers: nbdeploy.label({subject.name!r}, labels).")
    return side.assign(**{column: side[column].astype(float) for column in columns})


def _as_words(subject: ModelVersion, sides: list[pd.DataFrame], columns: tuple[str, str]) -> tuple[str, ...]:
    """Put one inert word for each class into both columns of the sides, and return the words in the model's order."""
    label, answer = columns
    for side in sides:
        for column in columns:
            side[column] = side[column].astype(object).map(word)
    found = {value for side in sides for column in columns for value in side[column]}
    known = [*map(word, subject.signature.classes or ())]
    classes = [*known, *sorted(found - {*known})]
    if len(classes) > MAX_CLASSES:
        msg = f"the labels and answers of {subject.tag} are {len(classes):,} different values, too many for classes"
        raise ReportError(msg, "Label its predictions with what it answers.")
    words = dict(zip(classes, apart(inert(each, MAX_CLASS) for each in classes), strict=True))
    if {*sides[0][label]}.isdisjoint({*known, *sides[0][answer]}):
        first = words[sides[0][label].iloc[0]]
        msg = f"no label of {subject.name} is one of its answers: its labels are like {first!r}"
        raise ReportError(msg, f"Label its predictions with what it answers: {', '.join([*words.values()][:4])}.")
    if len(only := {*sides[0][label], *sides[0][answer]}) == 1:
        msg = f"all {len(sides[0]):,} labelled answers of {subject.name} are {words[only.pop()]!r}, as their labels are"
        raise ReportError(msg, "A classification report takes two classes: wait for more labels.")
    for side in sides:
        for column in columns:
            side[column] = side[column].map(words)
    return tuple(words.values())


def _chances(subject: ModelVersion, told: pd.Series, reference: pd.DataFrame | None) -> tuple[Any, Any] | None:
    """The probability of the second class on both sides, where each row has one."""
    if not all(isinstance(each, list) and len(each) == 2 and isinstance(each[1], (int, float)) for each in told):
        return None
    current = [float(each[1]) for each in told]
    if reference is None:
        return current, None
    expected = subject.expected
    columns = [column for column in expected.columns if str(column).startswith("probability_")]
    if len(columns) != 2 or len(expected) != len(reference):
        return None
    return current, expected[columns[1]].to_numpy()

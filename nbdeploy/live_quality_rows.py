"""What the log and the labels hold of answers, by window and version, without the inputs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from nbdeploy import prediction_log
from nbdeploy.answer_metrics import Metric, Values
from nbdeploy.comparison_sides import category, is_number
from nbdeploy.errors import QualityError
from nbdeploy.log_tables import json_values
from nbdeploy.signature import Signature

if TYPE_CHECKING:
    from nbdeploy.prediction_log import Rows

MAX_WINDOWS = 1_000
_WEEK = 7 * 86_400_000_000


@dataclass(frozen=True)
class Question:
    """What is to be read.

    Attributes
    ----------
    every : int
        Microseconds of a window. Windows begin at multiples of it, whole weeks on Mondays, in UTC.
    words : str
        How that is told.
    since, until : datetime, optional
    version : str
        Only this one; '' for all.
    """

    name: str
    every: int
    words: str
    since: datetime | None = None
    until: datetime | None = None
    version: str = ""

    def scan(self, own: Collection[str]) -> Iterator[Rows]:
        """The log's own columns, a piece at a time."""
        return prediction_log.scan(
            self.name, columns=(), own=own, since=self.since, until=self.until, version=self.version
        )

    def begins(self, window: int) -> int:
        """The moment at which a window begins, in microseconds."""
        return window * self.every + self.offset

    @property
    def offset(self) -> int:
        """When the window number 0 begins: the epoch was a Thursday."""
        return 4 * 86_400_000_000 if self.every % _WEEK == 0 else 0


@dataclass
class Held:
    """What one version answered. Windows are told by their number since the epoch; arrays go together.

    Attributes
    ----------
    rows : dict
        By window, how many rows were answered.
    places, truth, answers : list of array
        Of labelled rows: the window, and what the metric takes.
    sure_places, sure, sure_right : list of array
        Of rows with probabilities: the window, the probability of the answer, and whether that was right; NaN where it
        has no label.
    """

    rows: dict[int, int] = field(default_factory=dict)
    places: list[Values] = field(default_factory=list)
    truth: list[Values] = field(default_factory=list)
    answers: list[Values] = field(default_factory=list)
    sure_places: list[Values] = field(default_factory=list)
    sure: list[Values] = field(default_factory=list)
    sure_right: list[Values] = field(default_factory=list)

    def labelled(self) -> tuple[Values, Values, Values]:
        """`places`, `truth` and `answers`, in the order of the windows."""
        if not self.places:
            return np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
        places, truth, answers = (np.concatenate(each) for each in (self.places, self.truth, self.answers))
        order = np.argsort(places, kind="stable")
        return places[order], truth[order], answers[order]

    def confidence(self) -> tuple[Values, Values, Values]:
        """`sure_places`, `sure` and `sure_right`, in the order of the windows."""
        if not self.sure:
            return np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
        places, sure, right = (np.concatenate(each) for each in (self.sure_places, self.sure, self.sure_right))
        order = np.argsort(places, kind="stable")
        return places[order], sure[order], right[order]


class Reader:
    """Reads the log of a deployment once, a piece at a time, and keeps what a metric needs.

    Parameters
    ----------
    labels : mapping
        By prediction id.
    signatures : mapping
        Of the versions that are saved.
    """

    def __init__(
        self, question: Question, metric: Metric, labels: Mapping[str, Any], signatures: Mapping[str, Signature]
    ) -> None:
        self._question, self._name, self._metric = question, question.name, metric
        self._labels, self._signatures = labels, signatures
        self._codes: dict[Any, int] = {}
        self._answered: set[Any] = set()
        self.held: dict[str, Held] = {}

    def read(self) -> dict[str, Held]:
        """What each version answered in this time.

        Raises
        ------
        QualityError
            There are more than 1,000 windows, or the labels are of something else.
        """
        own = ("prediction", "prediction_id", "time", "version")
        chances = self._metric.name in ("accuracy", "auc")
        for rows in self._question.scan((*own, "probabilities") if chances else own):
            self._add(rows)
        self._must_be_answers()
        return self.held

    def _add(self, rows: Rows) -> None:
        held = self.held.setdefault(rows.version, Held())
        times = rows.table.column(rows.own["time"]).cast("int64").to_numpy()
        places = (times - self._question.offset) // self._question.every
        for window, count in zip(*np.unique(places, return_counts=True), strict=True):
            held.rows[int(window)] = held.rows.get(int(window), 0) + int(count)
        self._must_be_few()
        right = np.full(len(times), math.nan)
        if self._labels:
            told = [self._labels.get(key) for key in rows.table.column(rows.own["prediction_id"]).to_pylist()]
            at = np.flatnonzero([label is not None for label in told])
            if len(at):
                self._add_labelled(held, rows, [told[i] for i in at], (at, places, right))
        if self._metric.name == "accuracy":
            self._add_confidence(held, rows, places, right)

    def _add_labelled(self, held: Held, rows: Rows, told: Sequence[Any], where: tuple[Values, Values, Values]) -> None:
        at, places, right = where
        name = rows.own["prediction"]
        answers = json_values(rows.table.field(name), rows.table.column(name).take(at))
        if any(isinstance(answer, (list, dict)) for answer in answers):
            msg = f"{self._metric.name} cannot be measured: an answer of {self._name} is no single value"
            raise QualityError(msg, "Read what was asked and answered: nbdeploy.predictions(...).")
        if self._metric.task == "regression":
            if odd := next((each for each in told if isinstance(each, (str, bool))), None):
                self._refuse(odd)
            kept = [i for i, pair in enumerate(zip(told, answers, strict=True)) if all(map(is_number, pair))]
            truth, said = (np.array([each[i] for i in kept], dtype=float) for each in (told, answers))
        elif self._metric.name == "auc":
            classes = self._two_classes(rows.version)
            scores = _last(rows, at)
            kept = [i for i in range(len(told)) if not math.isnan(scores[i])]
            truth, said = np.array([told[i] == classes[-1] for i in kept], dtype=bool), scores[kept]
            self._answered.update(classes)
            for i in kept:
                self._codes.setdefault(told[i], len(self._codes))
        else:
            kept = [i for i, answer in enumerate(answers) if category(answer) != ""]
            code = self._codes
            truth = np.array([code.setdefault(told[i], len(code)) for i in kept], dtype=np.int32)
            said = np.array([code.setdefault(answers[i], len(code)) for i in kept], dtype=np.int32)
            self._answered.update(answers[i] for i in kept)
            right[at[kept]] = truth == said
        held.places.append(places[at[kept]])
        held.truth.append(truth)
        held.answers.append(said)

    def _add_confidence(self, held: Held, rows: Rows, places: Values, right: Values) -> None:
        """The probability of each answer, where it was asked for."""
        signature = self._signatures.get(rows.version)
        classes = signature.classes if signature is not None and not signature.several else None
        found = _matrix(rows, len(classes)) if classes else None
        if found is None:
            return
        at, chances = found
        name = rows.own["prediction"]
        encoded = rows.table.column(name).combine_chunks().dictionary_encode()
        order = {value: place for place, value in enumerate(classes or ())}
        coded = np.array([order.get(value, -1) for value in encoded.dictionary.to_pylist()] + [-1])
        answered = coded[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)][at]
        known = np.flatnonzero(answered >= 0)
        held.sure_places.append(places[at[known]])
        held.sure.append(chances[known, answered[known]])
        held.sure_right.append(right[at[known]])

    # -- what is refused --------------------------------------------------------------------------------

    def _must_be_few(self) -> None:
        windows = [window for held in self.held.values() for window in (min(held.rows), max(held.rows))]
        count = max(windows) - min(windows) + 1
        if count > MAX_WINDOWS:
            msg = f"every={self._question.words} gives {count:,} windows or more for {self._name}, and {MAX_WINDOWS:,} are the most"
            raise QualityError(msg, "Take longer ones, every='1w' say, or a shorter time: since='7d'.")

    def _must_be_answers(self) -> None:
        """Labels that are no answers at all are labels of something else."""
        known = {value for each in self._signatures.values() for value in each.classes or () if not each.several}
        known |= self._answered
        labels = [value for value in self._codes if value not in self._answered]
        if self._metric.task == "regression" or not self._codes or any(value in known for value in self._true()):
            return
        shown = ", ".join(sorted(f"{value!r:.20}" for value in known)[:4])
        msg = f"no label of {self._name} is one of its answers: its labels are like {labels[0]!r:.40}"
        raise QualityError(msg, f"Label its predictions with what it answers: {shown}.")

    def _true(self) -> list[Any]:
        if self._metric.name == "auc":
            return [*self._codes]
        named = [*self._codes]
        codes = {int(code) for held in self.held.values() for truth in held.truth for code in np.unique(truth)}
        return [named[code] for code in codes]

    def _two_classes(self, version: str) -> Sequence[Any]:
        signature = self._signatures.get(version)
        classes = signature.classes if signature is not None and not signature.several else None
        if classes is None or len(classes) != 2:
            msg = f"auc is for two classes, and {self._name} has {len(classes or ())}"
            raise QualityError(msg, "Use accuracy, balanced_accuracy or f1.")
        return classes

    def _refuse(self, odd: Any) -> None:
        msg = f"{self._metric.name} needs numbers, and {self._name} has labels like {odd!r:.40}"
        raise QualityError(msg, f"Label its predictions with numbers: nbdeploy.label({self._name!r}, ...).")


def task_of(question: Question) -> str:
    """What the answers in the log are: ``classification``, ``regression``, or '' where they are no single values."""
    for rows in question.scan(("prediction",)):
        label = rows.own["prediction"]
        values = [v for v in json_values(rows.table.field(label), rows.table.column(label)) if v is not None]
        if any(isinstance(value, (list, dict)) for value in values):
            return ""
        if values:
            numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
            return "regression" if numbers and any(isinstance(v, float) for v in values) else "classification"
    return "classification"


def _matrix(rows: Rows, classes: int) -> tuple[Values, Values] | None:
    """The rows that have probabilities of so many classes, and these."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = rows.table.column(rows.own["probabilities"]).combine_chunks()
    if not pa.types.is_list(column.type):
        return None
    at = np.flatnonzero(
        pc.equal(pc.list_value_length(column), classes).fill_null(fill_value=False).to_numpy(zero_copy_only=False)
    )
    if not len(at):
        return None
    values = column.take(at).flatten().to_numpy(zero_copy_only=False).astype(float)
    chances = values.reshape(len(at), classes)
    whole = np.isfinite(chances).all(axis=1)
    return at[whole], chances[whole]


def _last(rows: Rows, at: Values) -> Values:
    """The probability of the last of two classes of these rows; NaN where nobody asked for it."""
    found = np.full(len(rows.table), math.nan)
    if (held := _matrix(rows, 2)) is not None:
        found[held[0]] = held[1][:, -1]
    return found[at]

"""What is compared for drift: a window of a deployment's log, and what it is held against, each read once."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nbdeploy import label_log, model_store, prediction_log
from nbdeploy.answers import PREDICTION
from nbdeploy.drift_sides import Side
from nbdeploy.drift_words import Seen
from nbdeploy.errors import DriftError, did_you_mean
from nbdeploy.home import reports_folder
from nbdeploy.log_sample import Sample, take
from nbdeploy.log_segments import LINES, place
from nbdeploy.model_store import ModelVersion
from nbdeploy.signature import Column, Signature

if TYPE_CHECKING:
    from nbdeploy.drift_result import DriftReport

MAX_ROWS = 50_000
LABEL_BYTES = 64 << 20  # about two million labels; more are read where they are asked for
MORE_ROWS = 1_000_000  # of a number whose distance from the threshold is within the error of the sample

SignatureOf = Callable[[str], Signature | None]


@dataclass(frozen=True)
class Against:
    """What a window is held against.

    Attributes
    ----------
    version : str
        Whose.
    asked : bool
        What it was asked, in the log; otherwise the reference that is stored with it.
    window : tuple, optional
        Of the log, instead of the one that is looked at.
    """

    version: str
    asked: bool = False
    window: tuple[Any, Any] | None = None

    @property
    def text(self) -> str:
        if self.window is not None:
            return "..".join("" if each is None else str(each) for each in self.window)
        return self.version if self.asked else f"{self.version}:reference"

    def seen(self, subject: str, answer: str) -> Seen:
        if self.window is not None:
            return Seen(f"{self.text} had", f"{self.text} had", answer)
        if self.asked:
            return Seen(f"{self.version} was asked", f"{self.version} said", answer)
        whose = "the model" if self.version == subject else self.version
        return Seen(f"{whose} has seen", "it said in training", answer)


def drift(
    name: str,
    version: str,
    signature_of: SignatureOf,
    *,
    since: Any = None,
    until: Any = None,
    against: Any = "reference",
    columns: Collection[Any] | str | None = None,
    by: Any = None,
    max_rows: int = MAX_ROWS,
    html_path: Path | None = None,
    page: bool = True,
) -> DriftReport:
    """See `nbdeploy.watching.drift`; of `version`, whichever is live."""
    from nbdeploy import drift_report

    if max_rows < 1:
        msg = f"a report on {max_rows} rows has nothing to compare"
        raise DriftError(msg, "Give max_rows=1 or more.")
    if isinstance(columns, str):
        columns = [columns]
    beside = against_of(name, version, against)
    made = Windows(name, version, signature_of, max_rows)
    chosen = made.chosen(columns)
    left_out: dict[Hashable, str] = {}
    if columns is None and (size := made.label_bytes()) > LABEL_BYTES:
        chosen.remove(made.target)
        asked = f"columns=[{str(made.target)!r}]"
        left_out = {made.target: f"not compared: {size >> 20:,} MB of labels are read only when asked for, by {asked}"}
    reference, current = made.sides(since, until, beside, [*chosen, by] if by is not None else chosen)
    if page and html_path is None:
        html_path = reports_folder(name) / f"drift-{version}-{datetime.now(timezone.utc):%Y%m%dT%H%M%S}.html"
    return drift_report.measure(
        reference, current, name=name, version=version, since=_text(since), until=_text(until),
        html_path=None if html_path is None else Path(html_path), max_rows=max_rows, page=page,
        columns=chosen if columns is not None else None, by=by,
        against="reference" if beside == Against(version) else beside.text, seen=beside.seen(version, made.answer),
        left_out=left_out,
    )  # fmt: skip


def against_of(name: str, version: str, against: Any) -> Against:
    """What ``reference``, ``v2``, ``v2:reference``, ``14d..7d`` or a pair of moments stand for.

    Raises
    ------
    DriftError
        It is none of these, or a window that ends before it begins.
    NotFound
        There is no such version.
    """
    if isinstance(against, str):
        text = against.strip().removeprefix(f"{name}:")
        if text == "reference":
            return Against(version)
        if re.fullmatch(r"v\d+(:reference)?", text):
            other, _, reference = text.partition(":")
            return Against(model_store.get(name, other).version, asked=not reference)
        if ".." in text:
            against = tuple(part.strip() or None for part in text.split("..", 1))
    if isinstance(against, Sequence) and not isinstance(against, str) and len(against) == 2:
        start, end = (prediction_log.moment(each) for each in against)
        if start is not None and end is not None and start >= end:
            msg = f"the window {against[0]}..{against[1]} ends before it begins"
            raise DriftError(msg, "The earlier moment comes first: 14d..7d.")
        return Against(version, asked=True, window=(against[0], against[1]))
    msg = f"against={str(against)[:60]!r} is neither 'reference', a version nor a window"
    raise DriftError(msg, "Say against='v2', 'v2:reference', or two moments: '14d..7d'.")


class Windows:
    """The sides of a comparison of what `version` was asked and answered."""

    def __init__(self, name: str, version: str, signature_of: SignatureOf, max_rows: int = MAX_ROWS) -> None:
        self._name, self._signature_of, self._max_rows = name, signature_of, max_rows
        self._subject = model_store.get(name, version)
        signature = self._subject.signature
        logged = [column.name for column in signature.logged]
        self.answer = prediction_log.own_column("prediction", logged)
        self.target = prediction_log.own_column(signature.target or "label", [*logged, self.answer])
        # What is private is not in the log, or as hashes; arrays have no distribution to compare.
        self.inputs = {column.label: column for column in signature.columns if not column.private and not column.shape}

    def chosen(self, columns: Collection[Any] | None) -> list[Any]:
        """The columns of these names, of all that can be compared; all of them by default.

        Raises
        ------
        DriftError
            One is no such column, or there is none at all.
        """
        every = [*self.inputs, self.answer, self.target]
        if columns is None:
            return every
        found = []
        for column in columns:
            label = next((each for each in every if each == column or str(each) == str(column)), None)
            if label is None:
                msg = f"{self._subject.tag} has no column {str(column)[:60]!r} that can be compared"
                known = [str(each) for each in every]
                raise DriftError(msg, did_you_mean(str(column), known) or f"It has {', '.join(known[:10])}.")
            found.append(label)
        if not found:
            msg = "columns= names none"
            raise DriftError(msg, "Leave it out to compare all.")
        return found

    def sides(self, since: Any, until: Any, beside: Against, columns: Collection[Any]) -> tuple[Side, Side]:
        """What the window is held against, and the window: the columns that both have."""
        inputs = {label: column for label, column in self.inputs.items() if _among(label, columns)}
        answer, target = self.answer in columns, self.target in columns
        current = self._logged(self._subject, inputs, since, until, answer=answer, target=target)
        if current is None:
            window = _said(since, until)
            msg = f"{self._subject.tag} has answered no request{window}"
            raise DriftError(msg, f"Ask it something first: nbdeploy.predict({self._name!r}, X_new).")
        other = (
            self._subject if beside.version == self._subject.version else model_store.get(self._name, beside.version)
        )
        if beside.asked:
            start, end = beside.window or (since, until)
            reference = self._logged(other, inputs, start, end, answer=answer, target=target)
            if (
                reference is None and beside.window is not None
            ):  # another version was live then: its answers say nothing
                reference = self._logged(None, inputs, start, end)
            if reference is None:
                whom = f"{other.tag} has" if beside.window is None else f"nothing of {self._name} was asked and"
                msg = f"{whom} answered no request{_said(start, end)}" if beside.window is None else (
                    f"{self._name} was asked nothing{_said(start, end)}")  # fmt: skip
                hint = f"Compare with what it learned from: against='{other.version}:reference'."
                raise DriftError(msg, hint if beside.window is None else "Give a window in which it was asked.")
        else:
            reference = self._learned(other, inputs, answer=answer, target=target)
        both = [name for name in current.frame.columns if name in reference.frame.columns]
        if not both:
            msg = f"{self._subject.tag} has no column that can be compared: its inputs are arrays or private"
            raise DriftError(msg, "See its predictions: nbdeploy.predictions(...).")
        keep = {*both, *inputs}  # an input that one side lacks is told
        made = tuple(
            Side(side.frame[[name for name in side.frame.columns if name in keep]], side.rows, side.counts, side.present,
                 side.more, side.partial)
            for side in (reference, current)
        )  # fmt: skip
        return made[0], made[1]

    def _learned(self, other: ModelVersion, inputs: dict[Any, Column], *, answer: bool, target: bool) -> Side:
        whole = other.reference
        frame = whole[[label for label in inputs if label in whole.columns]]
        added: dict[str, Any] = {}
        if answer:
            expected = other.expected
            if PREDICTION in expected and len(expected) and pd.api.types.is_scalar(expected[PREDICTION].iloc[0]):
                added[self.answer] = expected[PREDICTION].to_numpy()
        if target and isinstance(true := other.labels, pd.Series) and len(true) == len(frame):
            added[self.target] = true.to_numpy()
        return Side(frame.assign(**added), len(whole), partial=(self.target,))

    def _logged(
        self,
        version: ModelVersion | None,
        inputs: dict[Any, Column],
        since: Any,
        until: Any,
        *,
        answer: bool = False,
        target: bool = False,
    ) -> Side | None:
        """What a version was asked, or else what came to it as a shadow; what anybody was asked where it is None."""
        labelled = target and version is not None and isinstance(version.labels, pd.Series) and self._has_labels()
        own = [*(["prediction"] if answer else []), *(["prediction_id"] if labelled else [])]
        names = [column.name for column in inputs.values()]

        def read(purpose: str, columns: Collection[str], own: Collection[str], at_most: int, *, count: bool) -> Sample:
            return take(
                self._name, self._signature_of, at_most, columns=columns, own=own, since=since, until=until,
                purpose=purpose, version=version.version if version else "", count=count,
            )  # fmt: skip

        for purpose in ("", "shadow"):
            sample = read(purpose, names, own, self._max_rows, count=True)
            if sample.rows or version is None or version.version == self._subject.version:
                break
        if not sample.rows:
            return None
        labels = {column.name: label for label, column in inputs.items()}
        frame = sample.inputs.rename(columns=labels)
        counts = {labels[name]: held for name, held in sample.counts.items() if name in labels}
        present = {labels[name]: many for name, many in sample.present.items() if name in labels}
        if answer and (said := self._answers(version, sample.predictions)) is not None:
            frame[self.answer] = said
            present[self.answer] = sample.present.get("", 0)
            if "" in sample.counts:
                counts[self.answer] = sample.counts[""]
        if labelled and (known := self._labels({*sample.ids})):
            frame[self.target] = pd.Series([known.get(each) for each in sample.ids], dtype=object).infer_objects()

        def more(column: Any) -> pd.Series:
            if column == self.answer:
                told = read(purpose, [], ["prediction"], MORE_ROWS, count=False)
                said = self._answers(version, told.predictions)
                return frame[self.answer] if said is None else said
            found = read(purpose, [inputs[column].name], [], MORE_ROWS, count=False).inputs
            return found.iloc[:, 0]

        return Side(frame, sample.rows, counts, present, more, partial=(self.target,))

    def _answers(self, version: ModelVersion | None, predictions: list[Any]) -> pd.Series | None:
        """What was answered, in the type of the answers to the reference; None where these are no single values."""
        expected = (version or self._subject).expected
        if PREDICTION not in expected or not len(expected) or not pd.api.types.is_scalar(expected[PREDICTION].iloc[0]):
            return None
        made = pd.Series(predictions)
        if made.isna().any():
            return None
        try:
            return made.astype(expected[PREDICTION].dtype)
        except (ValueError, TypeError):
            return made

    def label_bytes(self) -> int:
        """What the labels take on the disk; 0 where training had none to compare them with."""
        if not isinstance(self._subject.labels, pd.Series):
            return 0
        sizes = 0
        for path in (place(self._name) / "labels").glob(f"*{LINES}"):
            with suppress(FileNotFoundError):  # removed meanwhile
                sizes += path.stat().st_size
        return sizes

    def _has_labels(self) -> bool:
        return next(label_log.history(self._name), None) is not None

    def _labels(self, ids: set[str]) -> dict[str, Any]:
        """The labels of these predictions alone, of however many there are."""
        found: dict[str, Any] = {}
        for entry in label_log.history(self._name):
            found.update((key, value) for key, value in entry["labels"].items() if key in ids)
        return {key: value for key, value in found.items() if value is not None}


def _among(label: Any, columns: Collection[Any]) -> bool:
    return any(label == column or str(label) == str(column) for column in columns)


def _text(when: Any) -> str:
    return "" if when is None else str(when)


def _said(since: Any, until: Any) -> str:
    return "".join(f" {word} {when}" for word, when in (("since", since), ("until", until)) if when not in (None, ""))

"""What can go wrong, said in one line: what, with which object, what to do.

NbdeployError
├── InvalidName      a name outside the allowed alphabet
├── NotFound         an unknown deployment, version, notebook or variable
├── SaveError        a model or its frame that cannot become a version
│   └── RehearsalError   a fresh process could not reproduce the kernel's predictions
├── InputError       rows that do not fit the signature; ``problems`` lists them
├── ServiceError     a service that did not start, died or does not answer
│   └── PortBusy     the wished port belongs to somebody else
├── ReleaseError     a change of traffic that is refused, or that a version prevents
├── GateError        a gate that could not be run (a failed gate is a value, not an error)
├── NotebookError    another notebook that could not be run (one that raises is a value, too)
├── RetrainError     a retraining that cannot begin, or made no version
├── CompareError     two versions of which nothing can be said
├── ReportError      a report that does not fit the deployment, its task or its log
├── QualityError     answers of which nobody can say how good they were
├── AlertError       a rule or a target of alerts that cannot be used
│   └── RuleError        a rule that does not parse; it shows the spot
└── DriftError       nothing to compare
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any


class NbdeployError(Exception):
    """The root of everything that nbdeploy raises on purpose.

    Parameters
    ----------
    message : str
        What is wrong and with which object. Kept to one line.
    hint : str, optional
        What to do about it.
    details : str, optional
        Several lines for whoever looks closer (the end of a log, a remote traceback).
        Never part of ``str(error)``.
    """

    def __init__(self, message: str, hint: str = "", details: str = "") -> None:
        super().__init__(message)
        self.message = _one_line(message)
        self.hint = _one_line(hint)
        self.details = details

    def __str__(self) -> str:
        return f"{self.message.rstrip('.')}. {self.hint}" if self.hint else self.message

    def to_dict(self) -> dict[str, Any]:
        return {"error": str(self), "kind": type(self).__name__, "details": self.details}

    def _render_traceback_(self) -> list[str]:
        # IPython asks for this instead of a traceback; the output stays an error, so Papermill stops there.
        lines = [f"\x1b[31m{type(self).__name__}\x1b[0m: {self.message}"]
        return [*lines, f"  {self.hint}"] if self.hint else lines


class InvalidName(NbdeployError, ValueError):
    """A name outside the allowed alphabet."""


class NotFound(NbdeployError, LookupError):
    """An unknown deployment, version, notebook or variable."""


class SaveError(NbdeployError):
    """A model or its training frame cannot become a version."""


class RehearsalError(SaveError):
    """A fresh process could not load the model or reproduce its predictions."""


class InputError(NbdeployError, ValueError):
    """Rows do not fit the signature.

    Attributes
    ----------
    problems : list of dict
        One per fault, with the keys ``row``, ``column``, ``expected``, ``got`` and ``hint``.
    """

    def __init__(self, message: str, problems: Sequence[dict[str, Any]] = (), hint: str = "") -> None:
        super().__init__(message, hint)
        self.problems = list(problems)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "problems": self.problems}


class ServiceError(NbdeployError):
    """A service did not start, died or does not answer."""


class PortBusy(ServiceError):
    """The wished port is taken."""


class ReleaseError(NbdeployError):
    """A change of traffic is refused, or a version cannot take requests. Nothing was changed."""


class GateError(NbdeployError):
    """A gate could not be run at all."""


class NotebookError(NbdeployError):
    """A notebook that is no gate could not be run at all."""


class RetrainError(NbdeployError):
    """A retraining cannot begin, or its notebook made no version. What it made, if anything, gets no traffic."""


class CompareError(NbdeployError):
    """Of two versions nothing can be said."""


class ReportError(NbdeployError):
    """A report does not fit the deployment, its task or its log."""


class QualityError(NbdeployError):
    """How good answers were cannot be said."""


class AlertError(NbdeployError):
    """A rule of alerts, or where it is told, cannot be used."""


class RuleError(AlertError):
    """A rule does not parse. As text it is the message, then the rule, then a mark under the spot.

    Attributes
    ----------
    rule : str
        As it was given.
    position, length : int
        Which of its characters are at fault, from 0 on.
    """

    def __init__(self, message: str, rule: str, position: int, length: int = 1, hint: str = "") -> None:
        super().__init__(message, hint)
        self.rule, self.position, self.length = rule, position, max(1, length)

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *self._spot()])

    def to_dict(self) -> dict[str, Any]:
        facts = {"rule": self.rule, "position": self.position, "length": self.length}
        return {**super().to_dict(), "error": super().__str__(), **facts}

    def _render_traceback_(self) -> list[str]:
        first, *hint = super()._render_traceback_()
        return [first, *self._spot(), *hint]

    def _spot(self) -> list[str]:
        end = self.position + self.length
        marks = " " * _width(self.rule[: self.position]) + "^" * max(1, _width(self.rule[self.position : end]))
        return [f"  {''.join(map(_shown, self.rule))}", f"  {marks}"]


class DriftError(NbdeployError):
    """There is nothing to compare."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names the closest known word, or the known words when none is close."""
    words = sorted(map(str, known))
    if close := difflib.get_close_matches(word, words, n=1, cutoff=0.6):
        return f"Did you mean {close[0]!r}?"
    if not words:
        return ""
    shown = ", ".join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")
    return f"Known: {shown}."


def _shown(char: str) -> str:
    # One column for one character, or the mark would stand elsewhere.
    return char if char.isprintable() else "\N{REPLACEMENT CHARACTER}"


def _width(text: str) -> int:
    """How many columns of a terminal `text` takes."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)


def _one_line(text: str) -> str:
    return " ".join(str(text).split())

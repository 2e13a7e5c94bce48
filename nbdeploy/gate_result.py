"""The nouns of validation: one check, and the verdict of a whole gate."""

from __future__ import annotations

import html
import itertools
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from nbdeploy.errors import GateError
from nbdeploy.report_view import link_to

CHECK_MIME = "application/vnd.nbdeploy.check+json"
END_MIME = "application/vnd.nbdeploy.gate-end+json"
NONCE = "NBDEPLOY_GATE_NONCE"
JUDGED = "NBDEPLOY_GATE_JUDGES"  # the deployment and the URL of the service that is judged

_numbers = itertools.count()  # of this gate's checks, so that its end can say how many there were

Number = bool | int | float

_GOOD = "var(--jp-success-color1, #2e7d32)"
_BAD = "var(--jp-error-color1, #c62828)"
_MUTED = "var(--jp-ui-font-color2, #616161)"


@dataclass(frozen=True)
class Check:
    """One question that a gate asked, and what came back.

    Attributes
    ----------
    name : str
        What was measured.
    passed : bool
        Whether the value is true, or a finite number within its bounds.
    value : bool, int or float
        What was measured.
    at_least, at_most : float or None
        The bounds, inclusive.
    detail : str
        A few words on what was seen.
    """

    name: str
    passed: bool
    value: Number
    at_least: float | None = None
    at_most: float | None = None
    detail: str = ""

    @classmethod
    def of(
        cls, name: str, value: object, *, at_least: object = None, at_most: object = None, detail: str = ""
    ) -> Check:
        """Decide a check; anything that cannot be decided is a `GateError`, never a pass."""
        if not str(name).strip():
            msg = f"A check needs a name, got {name!r}"
            raise GateError(msg, "For example check('accuracy', 0.91, at_least=0.8).")
        measured = _number(name, "value", value)
        low = None if at_least is None else _bound(name, "at_least", at_least)
        high = None if at_most is None else _bound(name, "at_most", at_most)
        if isinstance(measured, bool):
            if low is not None or high is not None:
                msg = f"Check {name!r} compares {measured} with a number"
                raise GateError(msg, "Give a number, or no bound.")
            passed = measured
        elif low is None and high is None:
            msg = f"Check {name!r} has the number {measured!r} and no bound"
            raise GateError(msg, "Say at_least= or at_most=, or give a bool.")
        else:
            passed = math.isfinite(measured) and (low is None or measured >= low) and (high is None or measured <= high)
        return cls(" ".join(str(name).split()), passed, measured, low, high, " ".join(str(detail).split()))

    def to_dict(self) -> dict[str, Any]:
        """Return the check as JSON; NaN and infinity, which JSON lacks, become their names."""
        finite = isinstance(self.value, bool) or math.isfinite(self.value)
        return {
            "name": self.name,
            "passed": self.passed,
            "value": self.value if finite else str(self.value),
            "at_least": self.at_least,
            "at_most": self.at_most,
            "detail": self.detail,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Check:
        """Read back what `to_dict` wrote, deciding anew instead of believing ``passed``."""
        value = float(data["value"]) if isinstance(data["value"], str) else data["value"]
        return cls.of(
            data["name"], value, at_least=data["at_least"], at_most=data["at_most"], detail=data.get("detail", "")
        )

    @property
    def wanted(self) -> str:
        """What would pass, in words."""
        low, high = ("" if bound is None else _text(bound) for bound in (self.at_least, self.at_most))
        if low and high:
            return f"from {low} to {high}"
        return f"at least {low}" if low else f"at most {high}" if high else "True"

    @property
    def shown(self) -> str:
        """The value in as many digits as tell it from its bounds."""
        text = _text(self.value)
        near = {_text(bound) for bound in (self.at_least, self.at_most) if bound is not None and bound != self.value}
        return repr(self.value) if text in near else text

    def __str__(self) -> str:
        text = f"{self.name}: {self.shown}, wanted {self.wanted}"
        return f"{text} ({self.detail})" if self.detail else text

    def _repr_html_(self) -> str:
        return (
            f"<div>{_mark(self.passed)} <b>{html.escape(self.name)}</b>: {html.escape(self.shown)}"
            f' <span style="color: {_MUTED}">wanted {html.escape(self.wanted)}'
            f"{' · ' + html.escape(self.detail) if self.detail else ''}</span></div>"
        )


@dataclass(frozen=True, repr=False)
class GateResult:
    """The verdict of one gate on one version, and where its evidence is.

    Attributes
    ----------
    deployment, version, digest : str
        What was judged.
    passed : bool
        True only if every check passed and the notebook ran to its end.
    checks : tuple of Check
        What was asked, in order.
    notebook : pathlib.Path
        The executed notebook. A JSON file of the same name beside it holds this result.
    reason : str
        Empty when it passed, else one line.
    started : datetime.datetime
        In UTC.
    seconds : float
        How long it took.
    parameters : dict
        What the notebook was given.
    copy : pathlib.Path or None
        A copy of the executed notebook where JupyterLab can open it.
    gate, gate_digest : str
        The gate's name, ``validate.ipynb``, and the SHA-256 of what it asks: the notebook without outputs.
    notebook_digest : str
        The SHA-256 of the executed notebook's file.
    parts : tuple of GateResult
        Where several gates ran, the verdict of each. Then `checks` are those of all, and `notebook` is that of the
        first that failed, else of the first.
    """

    deployment: str
    version: str
    digest: str
    passed: bool
    checks: tuple[Check, ...]
    notebook: Path
    reason: str
    started: datetime
    seconds: float
    parameters: dict[str, Any] = field(default_factory=dict)
    copy: Path | None = None
    gate: str = ""
    gate_digest: str = ""
    notebook_digest: str = ""
    parts: tuple[GateResult, ...] = ()

    @classmethod
    def of(cls, parts: Sequence[GateResult]) -> GateResult:
        """The verdict of several gates on one version: passed only if all of them did."""
        if len(parts) == 1:
            return parts[0]
        failed = [part for part in parts if not part.passed]
        first = (failed or parts)[0]
        more = f" (and {len(failed) - 1} more gates)" if len(failed) > 1 else ""
        ends = max(part.started.timestamp() + part.seconds for part in parts)
        begun = min(part.started for part in parts)
        return replace(
            first,
            passed=not failed,
            checks=tuple(one for part in parts for one in part.checks),
            reason=f"{first.gate}: {first.reason}{more}" if failed else "",
            started=begun,
            seconds=ends - begun.timestamp(),
            parts=tuple(parts),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return {
            "deployment": self.deployment,
            "version": self.version,
            "digest": self.digest,
            "passed": self.passed,
            "reason": self.reason,
            "checks": [one.to_dict() for one in self.checks],
            "notebook": str(self.notebook),
            "copy": None if self.copy is None else str(self.copy),
            "started": self.started.isoformat(),
            "seconds": round(self.seconds, 3),
            "parameters": self.parameters,
            "gate": self.gate,
            "gate_digest": self.gate_digest,
            "notebook_digest": self.notebook_digest,
            **({"parts": [part.to_dict() for part in self.parts]} if self.parts else {}),
        }

    @property
    def headline(self) -> str:
        """The verdict in one line."""
        good = sum(one.passed for one in self.checks)
        count = f"{good} of {len(self.checks)} checks passed in {self.seconds:.1f} s"
        gates = f"{len(self.parts)} gates" if self.parts else "gate"
        verdict = f"passed its {gates}" if self.passed else f"failed its {gates}"
        return f"{self.deployment} {self.version} {verdict}: {self.reason or count}"

    def __repr__(self) -> str:
        if self.parts:
            return "\n".join([self.headline, *(f"{part.gate}: {part!r}" for part in self.parts)])
        lines = [self.headline, *(f"  {'✓' if one.passed else '✗'} {one}" for one in self.checks)]
        return "\n".join([*lines, f"  evidence: {self.notebook}"])

    def _repr_html_(self) -> str:
        if self.parts:
            inner = "".join(
                f"<div><code>{html.escape(part.gate)}</code></div>{part._repr_html_()}" for part in self.parts
            )
            return f"<div>{_mark(self.passed)} <b>{html.escape(self.headline)}</b></div>{inner}"
        # On each cell: JupyterLab aligns td to the right, whatever the row says.
        left = 'style="text-align: left"'
        heads = "".join(f"<th {left}>{word}</th>" for word in ("", "check", "value", "wanted", "detail"))
        table = "".join(
            "<tr>"
            + "".join(f"<td {left}>{word}</td>" for word in (_mark(one.passed), *map(html.escape, words)))
            + "</tr>"
            for one in self.checks
            for words in [(one.name, one.shown, one.wanted, one.detail)]
        )
        return (
            '<div style="font-family: var(--jp-ui-font-family, sans-serif);'
            ' color: var(--jp-ui-font-color1, inherit)">'
            f"<div>{_mark(self.passed)} <b>{html.escape(self.headline)}</b></div>"
            + (f"<table><thead><tr>{heads}</tr></thead><tbody>{table}</tbody></table>" if table else "")
            + (f"<div>Executed notebook: {link_to(self.copy)}</div>" if self.copy else "")
            + f'<div style="color: {_MUTED}">evidence: <code>{html.escape(str(self.notebook))}</code></div></div>'
        )


def check(name: str, value: object, *, at_least: object = None, at_most: object = None, detail: str = "") -> bool:
    """Record a check in a gate notebook, and show it.

    A check that fails does not raise: the cells after it run, and the gate fails at its end. Outside a gate
    the check is only shown.

    Parameters
    ----------
    name : str
        What is checked.
    value : bool or number
        A bool must be True. A number needs a bound; NaN and infinity fail.
    at_least, at_most : number, optional
        The bounds, inclusive.
    detail : str, optional
        A few words to show beside it.

    Returns
    -------
    bool
        Whether it passed.

    Examples
    --------
    >>> check("accuracy", 0.91, at_least=0.8)
    ✓ accuracy: 0.91, wanted at least 0.8
    True
    """
    one = Check.of(name, value, at_least=at_least, at_most=at_most, detail=detail)
    text = f"{'✓' if one.passed else '✗'} {one}"
    shown = {"text/plain": text, "text/html": one._repr_html_()}
    if nonce := os.environ.get(NONCE):
        _publish({CHECK_MIME: {**one.to_dict(), "number": next(_numbers), "nonce": nonce}, **shown})
    elif (shell := _shell()) is not None:
        shell.display_pub.publish(data=shown)
    else:
        sys.stdout.write(text + "\n")
    return one.passed


def end() -> None:
    """Say how many checks a gate has made; the last cell of every gate notebook, added when it is run."""
    if nonce := os.environ.get(NONCE):
        made = next(_numbers)
        text = f"The end was reached, after {made} check{'' if made == 1 else 's'}."
        _publish({END_MIME: {"checks": made, "nonce": nonce}, "text/plain": text})


def judged(name: str) -> str:
    """Where the version of `name` answers that this gate judges, which may be another than users are answered by; else ''."""
    deployment, _, url = os.environ.get(JUDGED, "").partition(" ")
    return url if deployment == name else ""


def _mark(passed: bool) -> str:
    return f'<span style="color: {_GOOD if passed else _BAD}">{"✓" if passed else "✗"}</span>'


def _text(number: Number) -> str:
    return str(number) if isinstance(number, (bool, int)) else f"{number:.6g}"


def _number(name: str, role: str, value: object) -> Number:
    # numpy's scalars and 0-d arrays know their plain Python value; nothing here needs numpy for that.
    if type(value).__module__.split(".")[0] == "numpy" and not getattr(value, "shape", ()):
        value = value.item()  # type: ignore[attr-defined]
    if isinstance(value, (bool, int, float)):
        return value
    msg = f"The {role} of check {name!r} is {type(value).__name__}, not a number or a bool"
    raise GateError(
        msg,
        "Reduce it to one number first.",
    )


def _bound(name: str, role: str, value: object) -> float:
    bound = _number(name, role, value)
    if isinstance(bound, bool) or not math.isfinite(bound):
        msg = f"{role} of check {name!r} is {bound!r}, which bounds nothing"
        raise GateError(msg, "Give a finite number.")
    return bound


def _shell() -> Any:
    # Not imported for this: where IPython is not loaded there is no notebook.
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def _publish(data: dict[str, Any]) -> None:
    """Display in a gate; only its own process can, and a check that goes nowhere must not look like one made."""
    shell = _shell()
    if shell is None or not hasattr(shell, "kernel") or shell.kernel.session.pid != os.getpid():
        msg = "A check was made outside the notebook's own process"
        raise GateError(msg, "Return the value, and check it in a cell.")
    shell.display_pub.publish(data=data)
